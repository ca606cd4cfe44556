"""A folder of DCE-MRI slices -> one cube of the first post-contrast phase.

1. Headers of all files, without pixels. Derived images (subtractions, projections, localisers)
   are set aside by ImageType.
2. Slices are placed by ImagePositionPatient along the normal of ImageOrientationPatient, never by
   file name; how often a position occurs is the number of phases.
3. Phases are told apart by the first of TemporalPositionIdentifier, TriggerTime, AcquisitionTime
   and ContentTime that every file has and that takes as many values as there are phases; the
   first is the one before contrast, the second the one that is read.
4. Unequal geometry, gaps, duplicates and incomplete phases are refused.
5. Pixels of that one phase; rescale slope and intercept (PS3.3 C.7.6.16.2.9).
6. Intensity: (x / reference - 1) / 0.5, clipped to [-5, 5]. The reference is the median of the
   volume's voxels above Otsu's threshold, about parenchyma: the gain of a scanner cancels and the
   lesion's enhancement relative to parenchyma stays. 0 is parenchyma, 2 twice as bright.
7. The cube around the lesion box enlarged twice, at least 20 mm and at most the volume (design
   values), on an isotropic grid. Without a box, the whole volume. Beyond the volume it is -2, air.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from her2_client.ingest import dicom
from her2_client.ingest.pixels import CLIP, Window, check_box, lowest_threshold, resample
from her2_common.cases import Box
from her2_common.errors import ImageError

Array = npt.NDArray[Any]

CROP_FACTOR: Final = 2.0
SMALLEST_CUBE_MM: Final = 20.0
CONTRAST_UNIT: Final = 0.5
"""Share of the reference that becomes one unit."""
REFERENCE_STRIDE: Final = 2
"""Voxels skipped when a large volume's reference is measured."""
LARGE_VOLUME: Final = 1 << 20

GAP_TOLERANCE: Final = 0.1
"""Share of the slice spacing by which one step may differ."""
POSITION_TOLERANCE_MM: Final = 0.05
SHIFT_TOLERANCE_MM: Final = 0.5
DIRECTION_TOLERANCE: Final = 1e-3
SPACING_TOLERANCE: Final = 1e-3

DERIVED: Final = {"SUBTRACT", "SUBTRACTION", "SUB", "MIP", "PROJECTION IMAGE", "LOCALIZER"}
GEOMETRY: Final = {
    "Rows": 1,
    "Columns": 1,
    "PixelSpacing": 2,
    "ImageOrientationPatient": 6,
    "ImagePositionPatient": 3,
}
"""What places a slice, and how many values each has."""
PHASE_KEYS: Final = ("TemporalPositionIdentifier", "TriggerTime", "AcquisitionTime", "ContentTime")
_DATES: Final = {"AcquisitionTime": "AcquisitionDate", "ContentTime": "ContentDate"}
_HEADER: Final = (
    "Modality",
    "ImageType",
    "NumberOfFrames",
    *GEOMETRY,
    *PHASE_KEYS,
    *_DATES.values(),
)


_KEYWORDS: Final = {Tag(keyword): keyword for keyword in _HEADER}
_HEADER_TAGS: Final = list(_KEYWORDS)
Header = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Slice:
    """What one file's header says. ``when[i]`` orders phases by ``PHASE_KEYS[i]``."""

    path: Path
    size: tuple[int, int]
    spacing: tuple[float, float]
    directions: tuple[float, ...]
    position: tuple[float, ...]
    when: tuple[tuple[str, float] | None, ...]


@dataclass(frozen=True)
class Stack:
    """The slices of one phase in anatomical order; ``spacing`` in mm as (slice, row, column)."""

    slices: tuple[Slice, ...]
    spacing: tuple[float, float, float]


def dce_mri(folder: Path, box: Box | None, *, size: int) -> Array:
    """(1, size, size, size) float16: slices, rows, columns around the lesion, standardised.

    Raises:
        ImageError: the series cannot be used, with its reason.
    """
    stack = first_post_contrast(read_headers(folder))
    volume = _read_volume(stack)
    sampled = volume
    if volume.size > LARGE_VOLUME:
        sampled = volume[::REFERENCE_STRIDE, ::REFERENCE_STRIDE, ::REFERENCE_STRIDE]
    reference = float(np.median(sampled[sampled > lowest_threshold(sampled, 2)]))
    if not reference > 0:
        raise ImageError("expected bright tissue, got none above zero", reason="blank image")
    values, _ = resample(volume, cube_windows(stack, box), (size, size, size))
    cube = np.clip((values / reference - 1) / CONTRAST_UNIT, -CLIP, CLIP)
    return cube[np.newaxis].astype(np.float16)  # (1, V, V, V)


def cube_windows(stack: Stack, box: Box | None) -> list[Window]:
    """The cube's extent along (slice, row, column), in voxels.

    Raises:
        ImageError: the box lies outside the volume (reason "box outside").
    """
    rows, columns = stack.slices[0].size
    shape = (len(stack.slices), rows, columns)
    extent = [n * mm for n, mm in zip(shape, stack.spacing, strict=True)]
    low, high = (0, 0, 0), shape
    side = max(extent)
    if box is not None and box.z0 is not None and box.z1 is not None:
        low, high = (box.z0, box.y0, box.x0), (box.z1, box.y1, box.x1)
        check_box(box, shape)
        lesion = max((h - a) * mm for a, h, mm in zip(low, high, stack.spacing, strict=True))
        side = min(max(CROP_FACTOR * lesion, SMALLEST_CUBE_MM), side)
    half = [side / mm / 2 for mm in stack.spacing]
    middle = [(a + h) / 2 for a, h in zip(low, high, strict=True)]
    return [(m - h, m + h) for m, h in zip(middle, half, strict=True)]


# --- headers ------------------------------------------------------------------------------------


def read_headers(folder: Path) -> list[Slice]:
    """The slices in ``folder``, derived images and files that are not DICOM left out.

    Raises:
        ImageError: missing, not a folder, no DICOM in it, damaged, wrong modality, multi-frame.
    """
    if not folder.exists():
        raise ImageError("expected a folder, got none of that name", reason="missing file")
    if not folder.is_dir():
        raise ImageError("expected a folder of DICOM slices, got a file", reason="not a folder")
    with dicom.reading():
        paths = sorted(path for path in folder.iterdir() if path.is_file())
    slices, derived = [], 0
    for path in paths:
        try:
            with dicom.reading():
                dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_HEADER_TAGS)
                header = _plain(dataset)
                if "Rows" not in header and "Modality" not in header:
                    continue  # DICOMDIR
                dicom.check_modality(" ".join(header.get("Modality", ())), "MR")
                if DERIVED & {part.upper() for part in header.get("ImageType", ())}:
                    derived += 1
                    continue
                slices.append(_slice(path, header))
        except ImageError as error:
            if error.reason == "not DICOM":
                continue
            raise
    if not slices:
        if derived:
            raise ImageError("expected DCE phases, got derived images", reason="derived images")
        raise ImageError("expected DICOM slices, got none in the folder", reason="not DICOM")
    return slices


def _plain(dataset: Dataset) -> Header:
    """The values of ``dataset`` as text, those that are blank left out.

    A site has tens of thousands of slices, and turning each value into the library's own types
    would take as long as reading it.
    """
    plain: dict[str, tuple[str, ...]] = {}
    for element in dataset.values():
        keyword = _KEYWORDS.get(element.tag)
        if keyword is None or not element.value:
            continue
        if not isinstance(element, RawDataElement):  # converted while it was read
            parts = [str(v) for v in (element.value if element.VM > 1 else [element.value])]
        elif keyword in ("Rows", "Columns"):  # binary, unsigned
            order: Literal["little", "big"] = "little" if element.is_little_endian else "big"
            parts = [str(int.from_bytes(element.value, order))]
        else:
            text = element.value.decode("ascii", "replace")
            parts = [part.strip(" \0") for part in text.split("\\")]
        if any(parts):
            plain[keyword] = tuple(parts)
    return plain


def _slice(path: Path, header: Header) -> Slice:
    if int(header.get("NumberOfFrames", ("1",))[0]) > 1:
        raise ImageError("expected one slice a file, got multi-frame MR", reason="multi-frame MR")
    numbers = {}
    for keyword, count in GEOMETRY.items():
        if len(header.get(keyword, ())) != count:
            raise ImageError(f"expected {keyword} with {count} values", reason="no geometry")
        numbers[keyword] = tuple(float(part) for part in header[keyword])
    if not np.isfinite([v for values in numbers.values() for v in values]).all():
        raise ImageError("expected finite positions and spacing", reason="no geometry")
    if min(numbers["PixelSpacing"]) <= 0:
        raise ImageError("expected a PixelSpacing above 0 mm", reason="no geometry")
    return Slice(
        path=path,
        size=(int(header["Rows"][0]), int(header["Columns"][0])),
        spacing=(numbers["PixelSpacing"][0], numbers["PixelSpacing"][1]),
        directions=numbers["ImageOrientationPatient"],
        position=numbers["ImagePositionPatient"],
        when=tuple(_when(header, key) for key in PHASE_KEYS),
    )


def _when(header: Header, key: str) -> tuple[str, float] | None:
    """(date, seconds), (date, number) or None; a later one sorts later, also past midnight."""
    text = header.get(key, ("",))[0]
    if not text:
        return None
    if key not in _DATES:
        return "", float(text)
    seconds = int(text[0:2]) * 3600 + int(text[2:4] or 0) * 60 + float(text[4:] or 0)
    return header.get(_DATES[key], ("",))[0], seconds


# --- phases -------------------------------------------------------------------------------------


def first_post_contrast(slices: list[Slice]) -> Stack:
    """The second phase of the series, its slices in anatomical order, its geometry checked.

    Raises:
        ImageError: unequal geometry, gap, duplicate slice, one phase only, phases unclear.
    """
    first = slices[0]
    directions = np.array([s.directions for s in slices])  # (n, 6)
    spacings = np.array([s.spacing for s in slices])  # (n, 2)
    if (
        {s.size for s in slices} != {first.size}
        or np.abs(directions - directions[0]).max() > DIRECTION_TOLERANCE
        or np.abs(spacings / spacings[0] - 1).max() > SPACING_TOLERANCE
    ):
        raise ImageError(
            "expected one matrix, spacing and orientation, got several",
            reason="unequal geometry",
        )
    normal = np.cross(directions[0, :3], directions[0, 3:])
    points = np.array([s.position for s in slices])  # (n, 3)
    along = points @ normal
    across = (points - points[0]) - np.outer(along - along[0], normal)
    if np.abs(across).max() > SHIFT_TOLERANCE_MM:
        raise ImageError(
            "expected slices above one another, got some shifted sideways",
            reason="unequal geometry",
        )
    level, heights = _levels(along)
    counts = np.bincount(level)
    phases = Counter(counts.tolist()).most_common(1)[0][0]
    if phases < 2:
        raise ImageError(
            f"expected a phase before and one after contrast, got one phase of {len(slices)}",
            reason="one phase only",
        )
    moments = _moments(slices, phases)
    second = sorted(set(moments))[1]
    for moment in set(moments):
        held = level[[m == moment for m in moments]]
        if len(set(held.tolist())) < len(held):
            raise ImageError(
                "expected one slice a position and phase, got two", reason="duplicate slice"
            )
        if len(held) < len(heights):
            raise ImageError(
                f"expected {len(heights)} slices in each of {phases} phases, got {len(held)}",
                reason="gap",
            )
    steps = np.diff(heights)
    if len(steps) < 1:
        raise ImageError("expected several slices, got one", reason="one slice only")
    step = float(np.median(steps))
    if np.abs(steps - step).max() > GAP_TOLERANCE * step:
        raise ImageError(
            f"expected slices every {step:.2f} mm, got a step of {steps.max():.2f} mm",
            reason="gap",
        )
    chosen = [i for i, moment in enumerate(moments) if moment == second]
    chosen.sort(key=lambda i: int(level[i]))
    return Stack(tuple(slices[i] for i in chosen), (step, *first.spacing))


def _levels(along: Array) -> tuple[Array, Array]:
    """The level of each slice, counted along the normal, and the height of each level in mm."""
    order = np.argsort(along, kind="stable")
    rises = np.diff(along[order]) > POSITION_TOLERANCE_MM
    level = np.empty(len(along), dtype=np.int64)
    level[order] = np.concatenate([[0], np.cumsum(rises)])
    heights = along[order][np.concatenate([[True], rises])]
    return level, heights


def _moments(slices: list[Slice], phases: int) -> list[tuple[str, float]]:
    """When each slice was taken, by the first key that tells ``phases`` phases apart."""
    for index in range(len(PHASE_KEYS)):
        moments = [s.when[index] for s in slices]
        known = [moment for moment in moments if moment is not None]
        if len(known) == len(slices) and len(set(known)) == phases:
            return known
    raise ImageError(
        f"expected {phases} phases to differ in one of {', '.join(PHASE_KEYS)}, got none that does",
        reason="phases unclear",
    )


# --- pixels -------------------------------------------------------------------------------------


def _read_volume(stack: Stack) -> Array:
    """(slices, rows, columns) float32 in the scanner's rescaled units."""
    volume = np.empty((len(stack.slices), *stack.slices[0].size), dtype=np.float32)
    for index, item in enumerate(stack.slices):
        dataset = dicom.read(item.path, "MR")
        stored = dicom.pixels(dataset)
        if stored.shape != item.size:
            raise ImageError("expected a grey slice, got colour", reason="not grey")
        with dicom.reading():
            slope = float(dataset.get("RescaleSlope", 1.0) or 1.0)
            intercept = float(dataset.get("RescaleIntercept", 0.0) or 0.0)
        volume[index] = stored * np.float32(slope) + np.float32(intercept)
    if not np.isfinite(volume).all():
        raise ImageError("expected finite values, got others after rescaling", reason="damaged")
    return volume
