"""A folder of DICOM files: every file is looked at, in an order that names do not decide.

What cannot be used is returned as errors, never dropped; whatever is sound and of another kind
(another modality, a report, a text file) is set aside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from pydicom.dataset import Dataset

from her2_client.ingest import dicom
from her2_client.ingest.dicom import MAX_FILES
from her2_common.errors import ImageError

T = TypeVar("T")

OF_ANOTHER_KIND: Final = {"not DICOM", "not an image", "wrong modality"}
"""Reasons for which a file named in the table is refused, and one met in a folder set aside."""


def files(folder: Path) -> list[Path]:
    """The files below ``folder``, sub-folders included.

    Names that start with a dot are left out: they are the leftovers of desktops.

    Raises:
        ImageError: no files at all, or more than ``MAX_FILES``.
    """
    found = []
    with dicom.reading("folder"):
        for path in folder.rglob("*"):
            if not path.name.startswith(".") and path.is_file():
                found.append(path)
            if len(found) > MAX_FILES:
                raise ImageError(
                    f"expected at most {MAX_FILES} files in a folder, got more",
                    reason="too many files",
                )
    if not found:
        raise ImageError("expected a folder of images, got no file in it", reason="empty folder")
    return sorted(found)


def examine(
    folder: Path, look: Callable[[Path], T], *, what: str
) -> tuple[list[T], list[ImageError]]:
    """What ``look`` makes of each file, and the errors of the others.

    Raises:
        ImageError: nothing is left; the one error, or a summary of several.
    """
    found: list[T] = []
    errors: list[ImageError] = []
    for path in files(folder):
        try:
            with dicom.reading():
                found.append(look(path))
        except ImageError as error:
            errors.append(error)
    if not found:
        raise nothing_left(errors, what)
    return found, [met_in_folder(error) for error in errors]


def check_patient(headers: Iterable[Dataset]) -> None:
    """Raises ImageError (reason "several patients") unless one patient is named, or none."""
    if len({dicom.said(header, "PatientID") for header in headers} - {""}) > 1:
        raise ImageError(
            "expected the images of one patient in a folder, got several patients",
            reason="several patients",
        )


def check_examination(headers: Sequence[Dataset]) -> None:
    """Refuse images of several dates: a later examination shows a treated lesion.

    Studies of one date are one examination; where no date is left the study's UID counts. Dummies
    such as 19000101 are no dates.

    Raises:
        ImageError: reason "several examinations".
    """
    studies = [(*_date(header), dicom.said(header, "StudyInstanceUID")) for header in headers]
    dated = {uid for date, _, uid in studies if date} - {""}
    # A dummy date makes no two studies one: their UIDs count before it.
    examinations = {
        date or uid or dummy for date, dummy, uid in studies if date or uid not in dated
    } - {""}
    if len(examinations) > 1:
        raise ImageError(
            f"expected one examination, got {len(examinations)}",
            reason="several examinations",
            hint="name the folder or the file of the baseline examination in the case table",
        )


def _date(header: Dataset) -> tuple[str, str]:
    """(the date of the examination, or "", what StudyDate says)."""
    said = [str(header.get(keyword, "") or "") for keyword in ("StudyDate", "AcquisitionDate")]
    return next(filter(None, map(dicom.real_date, said)), ""), said[0].strip()


def met_in_folder(error: ImageError) -> ImageError:
    """The same error as a note of a folder from which another image was used."""
    if error.reason in OF_ANOTHER_KIND:
        return aside(str(error), error.reason)
    return error


def aside(message: str, reason: str) -> ImageError:
    """A note on an image that is sound and of another kind."""
    return ImageError(message, reason=reason, disposition="set aside")


def nothing_left(errors: Sequence[ImageError], what: str) -> ImageError:
    """The error for a folder in which no ``what`` is left: the only one, or all of them counted."""
    counts = Counter(error.reason for error in errors)
    if len(counts) == 1:
        return errors[0]
    listed = ", ".join(f"{number} {reason}" for reason, number in sorted(counts.items()))
    return ImageError(f"expected {what}, got {len(errors)} files: {listed}", reason="no such image")
