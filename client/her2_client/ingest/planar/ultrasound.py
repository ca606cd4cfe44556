"""One ultrasound picture -> one channel: the lesion inside a verified B-mode region.

1. A DICOM file, a folder of them, or a PNG or JPEG. In a folder the pictures with a verified
   region are put in order of acquisition and one is drawn by the seed; if that one cannot be
   used, the next of the draw. The others are further pictures of the same lesion. Several
   patients, or dates, are refused.
2. The frame of a multi-frame file: the one that the box names, and a box that names none is
   refused; without a box one of the middle half of the loop that is not blank within the
   region, drawn by the seed.
3. RGB, YBR, PALETTE COLOR and MONOCHROME become grey (ITU-R BT.601 luma).
4. SequenceOfUltrasoundRegions names the B-mode picture (regions.py). Names are often burned in
   around it and tag de-identification does not clean pixels: without such a region, as a
   secondary capture, or with text in what would be used, a reviewer is asked (guard.py). What
   the reviewer keeps is the region then.
5. The lesion box enlarged twice (a design value), square; without a box the whole region, aspect
   kept. What lies outside the region becomes 0 whatever it holds.
6. Coloured marks, such as the crosses of callipers, are lines: the pixels under them and beside
   them take the grey of the nearest pixel that is not coloured, and a remark says so. Other colour
   in what is left, more marks than ``MOST_MARKED``, or another region upon it (colour flow,
   spectral Doppler), is no B-mode picture: set aside. A reviewer is asked first, since the colour
   may be a name's.
7. Mean and spread of what is left standardise it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut
from scipy import ndimage

from her2_client.ingest import dicom
from her2_client.ingest.outcome import NO_MAKE, Standardised, scanner_make
from her2_client.ingest.pixels import (
    Place,
    coloured_pixels,
    grey,
    overlap,
    place_in,
    resample,
    square,
    standardise,
)
from her2_client.ingest.planar import words
from her2_client.ingest.planar.folder import aside, check_examination, check_patient, examine
from her2_client.ingest.planar.picture import is_picture, read_picture
from her2_client.ingest.planar.regions import Region, choose, overlaid, regions_of
from her2_client.ingest.privacy.guard import Guard
from her2_client.ingest.privacy.search import found_message, text_in
from her2_common.cases import Box
from her2_common.errors import ImageError

Array = npt.NDArray[Any]

CROP_FACTOR: Final = 2.0
MOST_BLANK: Final = 64
"""Frames of one loop that are tried before it is called blank (a design value)."""
MOST_TRIED: Final = 16
"""Pictures of one folder that are tried before it is given up (a design value)."""
MOST_COLOURED: Final = 0.01
"""Share of coloured pixels of a B-mode picture, but for marks (a design value)."""
MARK_WIDTH: Final = 5
"""Pixels across from which what is coloured is an area, not a line or cross (a design value)."""
MOST_MARKED: Final = 0.05
"""Share of the pixels that coloured marks may cover (a design value)."""
OF_ANOTHER_KIND: Final = {words.PHANTOM, words.SPECIMEN, words.BIOPSY, words.CONTRAST}
"""What descriptions may call a picture that does not show the lesion as it was found."""
MARKS_FILLED: Final = "coloured marks filled"

COLOURS: Final = (
    *("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB"),
    *("YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"),
)
IN_ORDER: Final = (
    *("AcquisitionDate", "AcquisitionTime"),
    *("SeriesNumber", "InstanceNumber", "SOPInstanceUID"),
)
UNVERIFIED: Final = "no verified region"


def ultrasound(path: Path, box: Box | None, *, size: int, seed: int, guard: Guard) -> Standardised:
    """Values (1, size, size): the lesion, or the region if there is no box.

    ``box`` is in source pixels, its ``z0`` the frame. ``seed`` draws the picture and the frame.

    Raises:
        ImageError: no picture can be used, with its reason.
    """
    draw = np.random.default_rng(seed)
    with dicom.reading():
        if path.is_dir():
            return _from_folder(path, box, size, draw, guard)
        if is_picture(path):
            return _from_picture(path, box, size, guard)
        return _from_dicom(_look(path), box, size, draw, guard)
    raise AssertionError  # pragma: no cover - `reading` never swallows


# --- which picture ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Picture:
    """A picture's header, its verified regions, and why it needs a reviewer, if it does."""

    path: Path
    header: Dataset
    regions: list[Region]
    captured: bool

    @property
    def verified(self) -> bool:
        return bool(self.regions) and not self.captured

    @property
    def overlaid(self) -> bool:
        return bool(self.regions) and all(overlaid(self.header, r) for r in self.regions)


def _look(path: Path) -> _Picture:
    header, captured = dicom.read(path, "US")
    texts = (dicom.said(header, keyword) for keyword in ("SeriesDescription", "ProtocolName"))
    if (kind := words.kind_of(texts)) in OF_ANOTHER_KIND:
        raise aside(f"expected a picture of the lesion, got another kind: {kind}", str(kind))
    if header.PhotometricInterpretation not in COLOURS:
        raise ImageError("expected grey, RGB, YBR or a palette, got another", reason="colour space")
    return _Picture(path, header, regions_of(header), captured)


def _identity(picture: _Picture) -> object:
    """What two copies of one picture share: there are archives that give all one UID."""
    name = dicom.said(picture.header, "SOPInstanceUID")
    return (name, dicom.order_key(picture.header, *IN_ORDER)) if name else picture.path


def _from_folder(
    folder: Path, box: Box | None, size: int, draw: np.random.Generator, guard: Guard
) -> Standardised:
    found, notes = examine(folder, _look, what="ultrasound pictures")
    check_patient(picture.header for picture in found)
    verified = [picture for picture in found if picture.verified]
    # Copies of one picture must not weigh in the draw; of them the longest file is whole.
    copies = sorted(verified or found, key=lambda picture: picture.path.stat().st_size)
    by_name = {_identity(p): p for p in copies}
    pool = sorted(by_name.values(), key=lambda p: dicom.order_key(p.header, *IN_ORDER))
    check_examination([picture.header for picture in pool])
    if box is not None and len(pool) > 1:
        raise ImageError(
            f"expected one picture for the lesion's box, got {len(pool)}",
            reason="several pictures",
            hint="name the picture's file in the case table, or leave the box out",
        )
    tried: list[ImageError] = []
    # Pictures that say of themselves that they are overlaid are tried last.
    order = sorted(draw.permutation(len(pool)), key=lambda k: pool[k].overlaid)
    for k in order[:MOST_TRIED]:
        try:
            with dicom.reading():
                used = _from_dicom(pool[k], box, size, draw, guard)
        except ImageError as error:
            tried.append(error)
            if error.disposition == "quarantined" and not verified:
                break  # one picture of the case is enough for the reviewer
            continue
        return replace(used, set_aside=(*notes, *tried))
    raise next((e for e in tried if e.disposition == "quarantined"), tried[0])


# --- pixels -------------------------------------------------------------------------------------


def _from_dicom(
    picture: _Picture, box: Box | None, size: int, draw: np.random.Generator, guard: Guard
) -> Standardised:
    header, reason, message = picture.header, None, ""
    shape = int(header.Rows), int(header.Columns)
    if picture.captured:
        reason, message = "secondary capture", "expected an ultrasound, got a secondary capture"
    elif not picture.regions:
        reason = UNVERIFIED
        message = "expected a B-mode region in SequenceOfUltrasoundRegions, got none or all of it"
    regions = picture.regions if picture.verified else [Region(0, 0, shape[1], shape[0])]
    region = choose(regions, box, shape)
    frame, shown = _frame(header, region, box, draw)
    question = _Question(guard, picture.path, frame, reason, message, header)
    values, remarks = _standardised(shown, region, box, size, question)
    scanner = scanner_make(header.get("Manufacturer"))
    return Standardised(values, scanner, _place(box), remarks=remarks)


def _from_picture(path: Path, box: Box | None, size: int, guard: Guard) -> Standardised:
    if box is not None and (box.z0 or 0) > 0:
        raise ImageError(f"expected frame 0, got {box.z0}", reason="frame outside")
    shown = read_picture(path)
    shape = shown.shape[:2]
    region = choose([Region(0, 0, shape[1], shape[0])], box, shape)
    message = "expected DICOM with a B-mode region, got a picture without a header"
    question = _Question(guard, path, 0, UNVERIFIED, message)
    values, remarks = _standardised(shown, region, box, size, question)
    return Standardised(values, NO_MAKE, _place(box), remarks=remarks)


def _frame(
    header: Dataset, region: Region, box: Box | None, draw: np.random.Generator
) -> tuple[int, Array]:
    """The number of the frame that is used, and what it shows, grey or RGB."""
    if box is not None and box.z0 is not None:
        return box.z0, _shown(header, box.z0)
    count = dicom.frames(header)
    if count == 1:
        return 0, _shown(header, 0)
    if box is not None:
        raise ImageError(
            f"expected a box that names one of {count} frames, got one without a frame",
            reason="frame unknown",
            hint="state the frame as z0 in the lesion table, z1 being the next number",
        )
    middle = np.arange(count // 4, count - count // 4)
    for k in draw.permutation(middle)[:MOST_BLANK]:
        shown = _shown(header, int(k))
        part = shown[region.y0 : region.y1, region.x0 : region.x1]
        if part.min() < part.max():
            return int(k), shown
    raise ImageError("expected a frame with a picture, got blank ones", reason="blank image")


def _shown(header: Dataset, frame: int) -> Array:
    """(rows, columns) float32, or (rows, columns, 3) RGB."""
    stored = dicom.pixels(header, frame)
    photometric = header.PhotometricInterpretation
    if photometric == "PALETTE COLOR":
        with dicom.reading("colour table"):
            stored = apply_color_lut(stored, header)
    if stored.ndim == 3:
        return stored
    bright = stored.astype(np.float32)
    return bright.max() + bright.min() - bright if photometric == "MONOCHROME1" else bright


@dataclass(frozen=True)
class _Question:
    """What the reviewer is asked about a frame; ``reason`` None where the header clears it.

    ``header`` is None for a PNG or JPEG.
    """

    guard: Guard
    path: Path
    frame: int
    reason: str | None
    message: str
    header: Dataset | None = None


def _standardised(
    shown: Array, region: Region, box: Box | None, size: int, question: _Question
) -> tuple[Array, tuple[str, ...]]:
    """(1, S, S) float16 and remarks; outside the region, or of what the reviewer keeps, it is 0."""
    found = _text(shown, region, None if question.reason else box, size)
    if question.reason or found:
        decision = question.guard.clear(
            [question.path],
            frame=question.frame,
            picture=lambda: shown,
            found=found,
            reason=question.reason or "text found",
            message=question.message or found_message(len(found)),
        )
        if decision.keep is not None:
            region = choose([Region(*overlap(decision.keep, region))], box, shown.shape[:2])
    bright, remarks = _without_marks(shown, region, box, question.header)
    part = bright[region.y0 : region.y1, region.x0 : region.x1]
    values, inside = resample(part, _windows(region, box), (size, size))
    picture = np.where(inside, standardise(values, inside), 0.0)
    return picture[np.newaxis].astype(np.float16), remarks  # (1, S, S)


def _windows(region: Region, box: Box | None) -> list[tuple[float, float]]:
    """The square that is used, rows then columns, counted from the region's corner."""
    if box is None:
        return square((0, 0), (region.y1 - region.y0, region.x1 - region.x0))
    low = box.y0 - region.y0, box.x0 - region.x0
    high = box.y1 - region.y0, box.x1 - region.x0
    return square(low, high, CROP_FACTOR)


def _place(box: Box | None) -> Place | None:
    """Where the box lies in what is used."""
    if box is None:
        return None
    low, high = (box.y0, box.x0), (box.y1, box.x1)
    return place_in(square(low, high, CROP_FACTOR), low, high)


def _text(
    shown: Array, region: Region, box: Box | None, size: int
) -> list[tuple[int, int, int, int]]:
    """Where text stands in what would be used, in source pixels."""
    (top, bottom), _ = _windows(region, box)
    used = _used(region, box)
    part = shown[used.y0 : used.y1, used.x0 : used.x1]
    return text_in(part, used.x0, used.y0, scale=(bottom - top) / size)


def _used(region: Region, box: Box | None) -> Region:
    """The part of ``region`` that enters the cache."""
    (top, bottom), (left, right) = _windows(region, box)
    return Region(
        region.x0 + max(0, int(left)),
        region.y0 + max(0, int(top)),
        min(region.x1, region.x0 + int(np.ceil(right))),
        min(region.y1, region.y0 + int(np.ceil(bottom))),
    )


def _without_marks(
    shown: Array, region: Region, box: Box | None, header: Dataset | None
) -> tuple[Array, tuple[str, ...]]:
    """(rows, columns) in grey, coloured marks filled, and remarks.

    Raises:
        ImageError: set aside, with colour flow, Doppler or elastography upon it.
    """
    used = _used(region, box)
    bright = grey(shown)
    here = np.s_[used.y0 : used.y1, used.x0 : used.x1]
    coloured = coloured_pixels(shown[here])
    areas = ndimage.binary_opening(coloured, np.ones((MARK_WIDTH, MARK_WIDTH), dtype=bool))
    marks = coloured & ~ndimage.binary_propagation(areas, mask=coloured)
    stated = header is not None and overlaid(header, used)
    rest = coloured & ~marks
    if stated or rest.mean() > MOST_COLOURED or marks.mean() > MOST_MARKED:
        share = f": {coloured.mean():.1%} of its pixels are coloured" if coloured.any() else ""
        raise aside(
            f"expected a B-mode picture, got one with an overlay upon it{share}", "colour overlay"
        )
    if not marks.any():
        return bright, ()
    # beside a line, its colour is mixed with the grey
    covered = ndimage.binary_dilation(marks, np.ones((3, 3), dtype=bool))
    nearest = ndimage.distance_transform_edt(covered, return_distances=False, return_indices=True)
    filled = bright.copy()
    filled[here] = bright[here][tuple(nearest)]
    return filled, (MARKS_FILLED,)
