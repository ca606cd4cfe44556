"""Stored MR values -> rescaled ones that compare between the series of an examination.

1. PixelPaddingValue, to PixelPaddingRangeLimit where there is one (PS3.3 C.7.5.1.1.2), becomes 0.
2. RescaleSlope and RescaleIntercept (PS3.3 C.7.6.16.2.9).
3. Philips scales each series by a factor of its own, ScaleSlope (2005,100E), and rescales to what
   is displayed. Comparable are displayed / (RescaleSlope x ScaleSlope): Chenevert et al., Transl
   Oncol 7 (2014), 65-71.
"""

from __future__ import annotations

import math
import struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset

from her2_client.ingest import dicom
from her2_client.ingest.mri.headers import Slice
from her2_common.errors import ImageError

Array = npt.NDArray[Any]

CREATOR: Final = (0x2005, 0x0010)
CREATORS: Final = "Philips MR Imaging DD"
"""How the private creator begins; (2005,100E) belongs to the first block of its group."""
SCALE_SLOPE: Final = (0x2005, 0x100E)
FRAME_VALUES: Final = (0x2005, 0x140F)
"""Where an enhanced file of Philips keeps private values of a frame."""


def scale_slope(dataset: Dataset) -> float | None:
    """Philips' ScaleSlope, if it stands under its private creator and is a positive number."""
    if not str(dataset.get_item(CREATOR) and dataset[CREATOR].value).startswith(CREATORS):
        return None
    value = dataset[SCALE_SLOPE].value if SCALE_SLOPE in dataset else None
    if isinstance(value, bytes) and len(value) == 4:  # VR UN
        (value,) = struct.unpack("<f", value)
    slope = float(value) if isinstance(value, int | float) else math.nan
    return slope if math.isfinite(slope) and slope > 0 else None


def frame_scale_slope(groups: Dataset) -> float | None:
    """The same out of a frame's functional groups."""
    items = groups[FRAME_VALUES].value if FRAME_VALUES in groups else None
    return scale_slope(items[0]) if isinstance(items, pydicom.Sequence) and items else None


def is_scaled(first: list[Slice]) -> bool:
    """Whether values are to be divided by ScaleSlope: the ``first`` slice of every phase has it.

    Raises:
        ImageError: one has it and another has not (reason "unequal scaling").
    """
    if not all("PHILIPS" in item.manufacturer.upper() for item in first):
        return False
    found = set()
    for item in first:
        if item.frame is None:
            with dicom.reading():
                found.add(scale_slope(dicom.header(item.path)) is not None)
        else:
            found.add(item.scale is not None)
    if len(found) > 1:
        raise _unequal()
    return found == {True}


def rescaled(stored: Array, dataset: Dataset, item: Slice, *, scaled: bool) -> Array:
    """(rows, columns) float32; padding is 0. ``scaled``: divide as Philips' series need.

    Raises:
        ImageError: a slope of 0 or not finite (reason "rescale"), or no ScaleSlope where the
            others have one (reason "unequal scaling").
    """
    with dicom.reading():
        stated = item.rescale or (dataset.get("RescaleSlope"), dataset.get("RescaleIntercept"))
        slope, intercept = dicom.check_rescale(
            *(
                neutral if value in (None, "") else value
                for value, neutral in zip(stated, (1, 0), strict=True)
            )
        )
        outside = _padding(stored, dataset)
        if scaled:
            scale = item.scale if item.frame is not None else scale_slope(dataset)
            if scale is None:
                raise _unequal()
            slope, intercept = 1 / scale, intercept / (slope * scale)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
        values: Array = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    if outside is not None:
        values[outside] = 0
    return values


def _padding(stored: Array, dataset: Dataset) -> Array | None:
    """Which pixels are padding."""
    value = dataset.get("PixelPaddingValue")
    if value in (None, ""):
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = sorted(_signed(end, dataset) for end in (value, value if limit in (None, "") else limit))
    return (stored >= ends[0]) & (stored <= ends[1])


def _signed(value: Any, dataset: Dataset) -> int:
    """A stored value, whichever of the two signs its element was written with."""
    bits, number = int(dataset.BitsAllocated), int(value)
    if dataset.get("PixelRepresentation") == 1:
        return number - (1 << bits) if number >= 1 << (bits - 1) else number
    return number + (1 << bits) if number < 0 else number


def _unequal() -> ImageError:
    return ImageError(
        "expected ScaleSlope in all slices of all phases, got it in some",
        reason="unequal scaling",
        hint="export the series again with the scanner's private elements",
    )
