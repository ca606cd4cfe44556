"""One mammographic view -> two channels: the whole view and the lesion.

1. FOR PRESENTATION alone, by PresentationIntentType, else by the SOP class; of imaging plates
   (Computed Radiography), which have no such tag, all that are mammograms by their tags. The view
   and the side must be those of the table (views.py). Spot, magnification, implant, partial,
   biopsy and contrast-enhanced views, tomosynthesis and what is made of it are set aside. Of a
   folder the diagnostic picture is used: a primary image before a secondary one, FOR PRESENTATION
   before FOR PROCESSING. Of several exposures that call themselves the same the last one is used,
   if all lie within half an hour: a technologist repeats a view at once where the first is not
   good enough. Everything else is a tie and refused, as are several patients, or dates.
2. Modality LUT, VOI LUT (DICOM PS3.4 N.2), MONOCHROME1 inverted: bright is dense. Padding pixels
   become as dark as the darkest of the others. A window or VOI LUT that hides the breast is not
   used, and a remark says so. A PNG or JPEG is taken as it is shown.
3. The chest wall is turned to the left, by PatientOrientation, the side, and the picture itself
   (orientation.py). An upside-down view is turned where PatientOrientation says that it is one.
4. Whole view: aspect kept, area resampling to S x S, against the chest wall, the rest is padding.
5. Breast: the largest connected part that is brighter than the air (air.py), with its holes. What
   is not breast becomes 0 in both channels. Markers and film edges are made air before anything is
   measured, so that they change nothing. Mean and spread of the breast standardise the whole view.
6. Lesion: the box enlarged 1.5 times (a design value), square, from the original resolution, so
   that micro-calcifications survive. The mean and spread of its own tissue standardise it: by
   those of the whole view a third of a crop in a fatty breast was cut off at the limit of 5, and
   calcifications with it. Without a box, the whole view again.
7. Text is searched in the breast and in the lesion's crop. Text, BurnedInAnnotation YES and
   secondary captures need a reviewer (guard.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from her2_client.ingest import dicom
from her2_client.ingest.outcome import NO_MAKE, Standardised, scanner_make
from her2_client.ingest.pixels import Place, Rectangle, check_box, grey, overlap, saturation
from her2_client.ingest.planar.air import tissue_of
from her2_client.ingest.planar.breast import Breast
from her2_client.ingest.planar.display import readable
from her2_client.ingest.planar.folder import (
    aside,
    check_examination,
    check_patient,
    examine,
    met_in_folder,
    nothing_left,
)
from her2_client.ingest.planar.orientation import Turn, turn_of
from her2_client.ingest.planar.picture import is_picture, read_picture
from her2_client.ingest.planar.views import Side, View, check_kind, other_words, side_of, view_of
from her2_client.ingest.privacy.guard import Guard
from her2_client.ingest.privacy.search import found_message
from her2_common.cases import Box
from her2_common.errors import ImageError

Array = npt.NDArray[Any]

PRESENTED_CLASSES: Final = ("1.2.840.10008.5.1.4.1.1.1.2", dicom.DIGITAL[0], dicom.COMPUTED)
FOR_PROCESSING_CLASSES: Final = ("1.2.840.10008.5.1.4.1.1.1.2.1", dicom.DIGITAL[1])
"""What counts where PresentationIntentType is missing."""
REPEATED_WITHIN_S: Final = 30 * 60
"""How long after the first exposure of a view its last repeat may be taken (a design value): an
exposure hours later belongs to a biopsy or to another question."""
_REPEATED: Final = (
    "REPEAT REPEATED RPT REP REDO RETAKE WIEDERHOLUNG WIEDERHOLT WDH REPETITION REPETEE REPETE "
    "REPRISE REPETICION REPETIDA RIPETIZIONE RIPETUTA RIPETUTO HERHALING HERHAALD REPETICAO"
)
REPEATED: Final = frozenset(_REPEATED.split())
"""Words by which a repeat may call itself, in capitals without accents."""


def mammogram(
    path: Path,
    box: Box | None,
    *,
    view: View,
    laterality: Side | None,
    size: int,
    guard: Guard,
) -> Standardised:
    """Values (2, size, size): the whole view and its lesion crop.

    ``path`` is a DICOM file, a folder of DICOM files, or a PNG or JPEG; ``box`` in its source
    pixels. ``laterality`` is the table's.

    Raises:
        ImageError: no image can be used, with its reason.
    """
    with dicom.reading():
        notes: list[ImageError] = []
        if path.is_dir():
            image, notes = _of_folder(path, view, laterality)
        elif is_picture(path):
            return _from_picture(path, box, laterality, size, guard)
        else:
            image = _look(path)
            _check(image, view, laterality)
        values, box_place, remarks = _from_dicom(image, box, laterality, size, guard)
        scanner = scanner_make(image.header.get("Manufacturer"))
    return Standardised(values, scanner, box_place, tuple(notes), remarks)


# --- which image --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Image:
    """An image's header and what it says; ``captured``: a secondary capture; ``secondary``: that,
    or made out of another image (value 2 of ImageType)."""

    path: Path
    header: Dataset
    view: str | None
    side: Side | None
    for_processing: bool
    captured: bool
    secondary: bool


def _look(path: Path) -> _Image:
    header, captured = dicom.read(path, "MG")
    check_kind(header)
    intent = dicom.said(header, "PresentationIntentType").upper()
    sop_class = str(header.get("SOPClassUID", ""))
    raw = intent == "FOR PROCESSING" or (not intent and sop_class in FOR_PROCESSING_CLASSES)
    presented = intent == "FOR PRESENTATION" or sop_class in PRESENTED_CLASSES
    if not (presented or captured or raw):
        raise ImageError("expected FOR PRESENTATION, got no intent", reason="no intent")
    view, side = view_of(header), side_of(header)
    secondary = captured or "SECONDARY" in _type(header)
    return _Image(path, header, view, side, raw, captured, secondary)


def _check(image: _Image, view: View, side: Side | None) -> None:
    """Whether the one image that the table names is what the table says."""
    if image.for_processing:
        raise ImageError("expected FOR PRESENTATION, got FOR PROCESSING", reason="for processing")
    if image.view not in (None, view):
        raise ImageError(f"expected view {view}, got {dicom.code(image.view)}", reason="wrong view")
    if None not in (side, image.side) and side != image.side:
        raise ImageError(
            f"expected side {side} as in the table, got {image.side}", reason="wrong laterality"
        )


def _of_folder(folder: Path, view: View, side: Side | None) -> tuple[_Image, list[ImageError]]:
    """The one image of ``view`` and ``side``, and notes on the others."""
    what = f"a {view} view" if side is None else f"a {view} view of side {side}"
    found, notes = examine(folder, _look, what=what)
    images = list({_identity(i): i for i in found}.values())  # it may have been copied twice
    if len(images) == 1 and not notes:
        _check(images[0], view, side)
        return images[0], []
    check_patient(image.header for image in images)

    def keep(wanted: Callable[[_Image], bool], reason: str, got: str) -> None:
        nonlocal images
        notes.extend(aside(f"expected {what}, got {got}", reason) for i in images if not wanted(i))
        images = [image for image in images if wanted(image)]

    keep(lambda i: i.view is not None, "view unclear", "one that names no view")
    keep(lambda i: i.view == view, "another view", "another view")
    if side is not None:
        keep(lambda i: i.side in (None, side), "other breast", "one of the other side")
    if any(image.side for image in images):
        keep(lambda i: i.side is not None, "side unclear", "one that names no side")
    if len({image.side for image in images}) > 1 or sum(not i.side for i in images) > 1:
        raise ImageError(
            f"expected {what}, got images of both sides or of none: the side is unclear",
            reason="side unclear",
            hint=None if side else "state the laterality in the case table",
        )
    if any(not image.secondary for image in images):
        keep(lambda i: not i.secondary, "secondary capture", "a secondary image")
    if any(not image.for_processing for image in images):
        keep(lambda i: not i.for_processing, "for processing", "one FOR PROCESSING")
    if not images:
        raise nothing_left([met_in_folder(note) for note in notes], what)
    check_examination([image.header for image in images])
    last = images[0] if len(images) == 1 else _last(images, what)
    keep(lambda i: i is last, "repeat", "an earlier exposure of the same")
    _check(last, view, side)
    return last, notes


def _identity(image: _Image) -> object:
    """What two copies of one picture share: there are archives that give all one UID."""
    name = dicom.said(image.header, "SOPInstanceUID")
    if not name:
        return image.path
    return name, image.view, image.side, _type(image.header), tuple(_times(image.header))


def _last(images: list[_Image], what: str) -> _Image:
    """The last of several exposures, if they are repeats of one view, or of one sent twice.

    Raises:
        ImageError: they are not, or no tag says so (reason "several exposures").
    """
    taken = _taken(images)
    got = None
    if len({(_type(image.header), _named(image)) for image in images}) > 1:
        got = "whose ImageType or SeriesDescription differs"
    elif len(set(taken)) < len(images):
        got = "of which no time says that one repeats the other"
    elif _seconds_apart(min(taken), max(taken)) > REPEATED_WITHIN_S:
        got = f"over more than {REPEATED_WITHIN_S // 60} minutes"
    if got is None:
        return images[taken.index(max(taken))]
    if _same_pixels(images):
        return images[0]
    raise ImageError(
        f"expected {what}, got {len(images)} exposures {got}",
        reason="several exposures",
        hint="name the file of the diagnostic picture in the case table instead of the folder",
    )


def _taken(images: list[_Image]) -> list[dicom.Moment]:
    """When each was taken, by the first time that all of them have; none if there is no such."""
    for source in zip(*(_times(image.header) for image in images), strict=True):
        known = [moment for moment in source if moment is not None]
        if len(known) == len(images):
            return known
    return []


def _seconds_apart(first: dicom.Moment, last: dicom.Moment) -> float:
    return last[1] - first[1] if first[0] == last[0] else math.inf


def _times(header: Dataset) -> list[dicom.Moment | None]:
    """When it was exposed and, the last, when the picture was made, each as far as it is known."""
    said = partial(dicom.said, header)
    return [
        dicom.moment(said("AcquisitionDate"), said("AcquisitionTime")),
        dicom.moment_of(said("AcquisitionDateTime")),
        dicom.moment(said("ContentDate"), said("ContentTime")),
    ]


def _type(header: Dataset) -> frozenset[str]:
    """The words of ImageType; numbers and what is said of every picture do not count."""
    values = header.get("ImageType", None) or []
    values = [values] if isinstance(values, str) else values
    named = {str(value).strip().upper() for value in list(values)[1:]}
    return frozenset(value for value in named - {"", "PRIMARY"} if not value.isdecimal())


def _named(image: _Image) -> frozenset[str]:
    """The words of SeriesDescription without numbers and what says that it repeats another."""
    said = other_words(dicom.said(image.header, "SeriesDescription"))
    return frozenset(word for word in said if not word.isdecimal()) - REPEATED


def _same_pixels(images: list[_Image]) -> bool:
    """Whether they are one picture that was sent several times under several names."""
    if len({(image.header.Rows, image.header.Columns) for image in images}) > 1:
        return False
    first = dicom.pixels(images[0].header)
    return all(np.array_equal(first, dicom.pixels(image.header)) for image in images[1:])


# --- pixels -------------------------------------------------------------------------------------


def _from_dicom(
    image: _Image, box: Box | None, laterality: Side | None, size: int, guard: Guard
) -> tuple[Array, Place | None, tuple[str, ...]]:
    stored = dicom.pixels(image.header)
    colour = image.captured and stored.ndim == 3  # a screen shot may be in colour
    shown, remarks = (grey(stored), ()) if colour else readable(stored, image.header)
    reason = message = None
    if image.captured:
        reason, message = "secondary capture", "expected a mammogram, got a secondary capture"
    elif image.header.get("BurnedInAnnotation") == "YES":
        reason = "burned-in annotation"
        message = "expected no annotation in the pixels, got BurnedInAnnotation YES"
    question = _Question(guard, image.path, reason, message)
    turn = turn_of(image.header, image.side or laterality or _brighter_side(shown))
    return *_standardised(shown, box, turn, size, question), remarks


def _from_picture(
    path: Path, box: Box | None, laterality: Side | None, size: int, guard: Guard
) -> Standardised:
    shown = read_picture(path)
    question = _Question(guard, path, None, None)
    if saturation(shown) is not None:
        message = "expected a mammogram in grey, got colours"
        question = _Question(guard, path, "colour in the picture", message)
    shown = grey(shown)
    turn = turn_of(None, laterality or _brighter_side(shown))
    values, place = _standardised(shown, box, turn, size, question)
    return Standardised(values, NO_MAKE, place)


@dataclass(frozen=True)
class _Question:
    """What the reviewer is asked about a picture; ``reason`` None if its header is clean."""

    guard: Guard
    path: Path
    reason: str | None
    message: str | None

    def keep(self, picture: Array, found: list[Rectangle]) -> Rectangle | None:
        """The rectangle that may be used; None: all of it. Raises unless that is so."""
        if self.reason is None and not found:
            return None
        decision = self.guard.clear(
            [self.path],
            picture=lambda: picture,
            found=found,
            reason=self.reason or "text found",
            message=self.message or found_message(len(found)),
        )
        return decision.keep


def _standardised(
    image: Array, box: Box | None, turn: Turn, size: int, question: _Question
) -> tuple[Array, Place | None]:
    if box is not None:
        check_box(box, image.shape)
    breast = None
    try:
        breast = Breast(image, box, size, turn)
    except ImageError as error:
        if question.reason is None or error.reason != "bright background":
            raise  # of a scan a reviewer may keep the part that is a mammogram
    keep = question.keep(image, [] if breast is None else breast.text())
    if keep is not None:
        x0, y0, x1, y1 = overlap(keep, (0, 0, image.shape[1], image.shape[0]))
        kept = np.full_like(image, image.min())  # what is not kept is as dark as air
        kept[y0:y1, x0:x1] = image[y0:y1, x0:x1]
        image = kept
    if breast is None or keep is not None:
        breast = Breast(image, box, size, turn)
    if (checked := breast.checked_turn()) != turn:
        breast = Breast(image, box, size, checked)
    return breast.channels(), breast.place


def _brighter_side(image: Array) -> Side:
    half = image.shape[1] // 2
    with suppress(ImageError):  # a fault is reported later, after a reviewer has seen the picture
        image = tissue_of(image).image  # without film edges
    left, right = (part.mean(dtype=np.float64) for part in (image[:, :half], image[:, -half:]))
    return "L" if left >= right else "R"
