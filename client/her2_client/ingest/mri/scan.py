"""What lies below a folder, or in one enhanced file: MR slices, and what is none of them.

Every file is looked at once. Secondary captures, reports, other modalities and series whose words
say subtraction, projection, localiser or another contrast are counted by series and left out.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from her2_client.ingest import dicom
from her2_client.ingest.dicom import MAX_FILES, number
from her2_client.ingest.mri import kinds
from her2_client.ingest.mri.enhanced import frames_of
from her2_client.ingest.mri.headers import (
    ENHANCED_CLASSES,
    PHASE_KEYS,
    Header,
    Slice,
    read_header,
    series_of,
    slice_of,
)
from her2_common.errors import ImageError

INSTANCE: Final = ("SOPInstanceUID", "SeriesInstanceUID", "ImagePositionPatient", *PHASE_KEYS)
"""What two copies of one image have in common."""
ECHO_TOLERANCE: Final = 0.05
"""Share by which echo times of one series may differ."""


@dataclass
class Found:
    """What a folder or file holds, before a choice; ``others`` counts by (series, reason),
    ``faults`` are what has no place, by series; ``patients`` and ``instances``
    are only compared.
    """

    slices: list[Slice] = field(default_factory=list)
    others: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: dict[str, list[ImageError]] = field(default_factory=dict)
    patients: set[str] = field(default_factory=set)
    instances: set[tuple[tuple[str, ...], ...]] = field(default_factory=set)

    def notes(self) -> tuple[ImageError, ...]:
        """One note a series."""
        return tuple(set_aside(reason, count) for (_, reason), count in sorted(self.others.items()))


def set_aside(reason: str, count: int) -> ImageError:
    """The note that a series of ``count`` images is not used."""
    return ImageError(
        f"{reason}: {count} {'image' if count == 1 else 'images'} not used",
        reason=reason,
        disposition="set aside",
    )


def scan(source: Path) -> Found:
    """The slices below a folder, or those of one enhanced file.

    Raises:
        ImageError: missing, no DICOM, nothing but other kinds, damaged, one slice only.
    """
    with dicom.reading():
        if not source.exists():
            raise ImageError("expected a folder or file, got none", reason="missing file")
        whole = source.is_dir()
        if not whole and not source.is_file():
            raise ImageError("expected a file, got something else", reason="not a file")
        paths = _files(source) if whole else [source]
    found = Found()
    foreign: list[ImageError] = []
    for path in paths:
        try:
            _look(path, found)
        except ImageError as error:
            if not whole or error.reason != "not DICOM":
                raise
            foreign.append(error)
    _join_single_slices(found)
    _part_from_diffusion(found)
    if not whole and len(found.slices) == 1 and found.slices[0].frame is None:
        raise ImageError(
            "expected a folder, a NIfTI file or an enhanced MR file, got one DICOM slice",
            reason="one slice only",
        )
    if not found.slices:
        raise _nothing(found, foreign)
    check_one_patient(found)
    return found


def check_one_patient(found: Found) -> None:
    """Raises ImageError (reason "several patients") where PatientID differs; blank ones count not.

    Identifiers stay in the memory of this process.
    """
    if len(found.patients) > 1:
        raise ImageError(
            f"expected images of one patient, got {len(found.patients)} patients",
            reason="several patients",
            hint="name a folder that holds one patient's images",
        )


def _files(folder: Path) -> list[Path]:
    """The files below ``folder``; names that start with a dot are leftovers of desktops.

    A sub-folder that may not be read is a fault: it may hold a phase.
    """
    found: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=_raise):
        folders.sort()
        paths = (Path(place, name) for name in sorted(names) if not name.startswith("."))
        found += [path for path in paths if path.is_file()]
        if len(found) > MAX_FILES:
            raise ImageError(
                f"expected at most {MAX_FILES} files in a folder, got more",
                reason="too many files",
            )
    return found


def _raise(error: OSError) -> None:
    raise error


def _look(path: Path, found: Found) -> None:
    header = read_header(path)
    if "Rows" not in header and "Modality" not in header and "SOPClassUID" not in header:
        return  # DICOMDIR
    if "SOPInstanceUID" in header:
        # with place and time: there are archives that give all images one UID
        instance = tuple(header.get(keyword, ()) for keyword in INSTANCE)
        if instance in found.instances:
            return  # the same image, copied
        found.instances.add(instance)
    series = series_of(path, header)
    # ASCII alone: other characters depend on how a header is read
    owner = "".join(c for c in "".join(header.get("PatientID", ())) if c.isascii()).strip()
    if not dicom.is_dummy(owner):
        found.patients.add(owner)
    if (reason := _other(header)) is not None:
        found.others[series, reason] += 1
        return
    try:
        if is_enhanced(header):
            frames, others = frames_of(path)
            found.slices += frames
            found.others.update({(series, reason): count for reason, count in others.items()})
        else:
            with dicom.reading():
                found.slices.append(slice_of(path, header))
    except ImageError as error:
        if error.reason != "no geometry":
            raise
        found.faults.setdefault(series, []).append(error)


def _other(header: Header) -> str | None:
    sop_class = " ".join(header.get("SOPClassUID", ()))
    if f"{sop_class}.".startswith(f"{dicom.SECONDARY_CAPTURE}."):
        return kinds.SECONDARY_CAPTURE
    if sop_class == dicom.ENCAPSULATED_PDF:
        return kinds.ENCAPSULATED_PDF
    if " ".join(header.get("Modality", ())) != "MR":
        return kinds.ANOTHER_MODALITY
    if is_enhanced(header):
        return None  # by frame
    description = " ".join(header.get("SeriesDescription", ()))
    if (reason := kinds.kind(header.get("ImageType", ()), description)) is not None:
        return reason
    another = kinds.is_another_sequence(
        header.get("ScanningSequence", ()),
        header.get("SequenceName", ("",))[0],
        number(header.get("EchoTime", ("",))[0]),
    )
    return kinds.ANOTHER if another else None


def _part_from_diffusion(found: Found) -> None:
    """Sets aside whole series of several b-values or echo times: their images are no phases."""
    bounds: dict[str, tuple[float, float, float]] = {}  # largest b; shortest, longest echo
    for item in found.slices:
        b, shortest, longest = bounds.get(item.series, (0.0, math.inf, 0.0))
        echo = item.echo_time
        if echo:
            shortest, longest = min(shortest, echo), max(longest, echo)
        bounds[item.series] = (max(b, item.b_value), shortest, longest)
    parted = {
        series
        for series, (b, shortest, longest) in bounds.items()
        if b > 0 or longest > (1 + ECHO_TOLERANCE) * shortest
    }
    for item in found.slices:
        if item.series in parted:
            found.others[item.series, kinds.ANOTHER] += 1
    found.slices = [item for item in found.slices if item.series not in parted]


def is_enhanced(header: Header) -> bool:
    """Whether one file holds many frames."""
    frames = header.get("NumberOfFrames", ("1",))[0]
    return " ".join(header.get("SOPClassUID", ())) in ENHANCED_CLASSES or frames not in ("", "1")


def _join_single_slices(found: Found) -> None:
    """Gives slices that are alone in their series a common one: some archives write one a slice."""
    sizes = Counter(item.series for item in found.slices)
    alike: dict[object, list[str]] = {}
    for item in found.slices:
        if sizes[item.series] == 1 and item.frame is None:
            what = (item.study, item.description, item.size, item.spacing, item.protocol)
            alike.setdefault((what, item.directions, item.original), []).append(item.series)
    first = {name: min(names) for names in alike.values() for name in names}
    found.slices = [
        replace(item, series=first.get(item.series, item.series)) for item in found.slices
    ]


def _nothing(found: Found, foreign: Sequence[ImageError]) -> ImageError:
    """Why nothing is left."""
    if found.faults:
        return next(iter(found.faults.values()))[0]
    reasons = {reason for _, reason in found.others}
    images = sum(found.others.values())
    if not reasons:
        if len({str(error) for error in foreign}) == 1:
            return foreign[0]
        named = next((error for error in foreign if error.hint), None)
        return named or ImageError("expected DICOM slices, got none", reason="not DICOM")
    if reasons == {kinds.ANOTHER_MODALITY}:
        return ImageError(f"expected modality MR, got {images} of another", reason="wrong modality")
    for reason in (kinds.SECONDARY_CAPTURE, kinds.ENCAPSULATED_PDF):
        if reasons == {reason}:
            return ImageError(
                f"expected a dynamic series, got {images} of kind {reason} alone",
                reason=reason,
                disposition="quarantined",
                hint="name the original series; such pictures may show a name",
            )
    return ImageError(
        f"expected a dynamic series, got {images} images of other kinds: "
        + ", ".join(sorted(reasons)),
        reason="derived images" if kinds.ANOTHER not in reasons else "no dynamic series",
    )
