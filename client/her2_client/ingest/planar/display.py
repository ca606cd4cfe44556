"""Stored mammographic values -> what a viewer shows: bright is dense.

Modality LUT, then VOI LUT (DICOM PS3.4 N.2), then MONOCHROME1 inverted. All three act on single
values, so they are worked out once for each value that occurs, not for each pixel.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from her2_client.ingest import dicom
from her2_common.errors import ImageError

Array = npt.NDArray[Any]

GREY: Final = ("MONOCHROME1", "MONOCHROME2")
FROM_GROUPS: Final = {
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction"),
}
"""Where enhanced images keep what others have at the top level (PS3.3 C.7.6.16.2.9 and 10)."""
NEEDED: Final = (
    *("PixelRepresentation", "BitsStored", "PhotometricInterpretation"),
    *("ModalityLUTSequence", "VOILUTSequence", *sum(FROM_GROUPS.values(), ())),
)


def display(stored: Array, header: Dataset) -> Array:
    """(rows, columns) float32 out of (rows, columns) stored values.

    Raises:
        ImageError: colour, or a table or window that the standard does not allow.
    """
    if stored.ndim != 2 or header.PhotometricInterpretation not in GREY:
        raise ImageError("expected a grey image, got colour", reason="not grey")
    low, high = int(stored.min()), int(stored.max())
    if high - low >= 1 << 16 or abs(low) >= 1 << 30:
        raise ImageError(
            "expected at most 65536 shades of grey, got values further apart", reason="bit depth"
        )
    values = np.arange(low, high + 1)
    with dicom.reading("grey-scale LUT"):
        shown = _transformed(values, _settings(header))
        padding = _padding(values, header)
    places = stored.astype(np.int32) - np.int32(low)
    tissue = shown
    if padding.any():
        occurs = np.bincount(places.ravel(), minlength=len(values)) > 0
        tissue = shown[occurs & ~padding]
    if not tissue.size:
        raise ImageError("expected an image, got nothing but padding", reason="blank image")
    if header.PhotometricInterpretation == "MONOCHROME1":
        turned = tissue.max() + tissue.min()
        shown, tissue = turned - shown, turned - tissue
    shown[padding] = tissue.min()
    result: Array = shown.take(places)
    return result


def _transformed(values: Array, settings: Dataset) -> Array:
    rescaled = apply_modality_lut(values, settings)
    if "VOILUTSequence" in settings:
        rescaled = np.rint(rescaled).astype(np.int64)  # a table is entered with whole numbers
    shown: Array = apply_voi_lut(rescaled, settings)
    return shown.astype(np.float32)


def _settings(header: Dataset) -> Dataset:
    """What the transformations need, from the top level or from the shared functional groups."""
    settings = Dataset()
    for keyword in NEEDED:
        if keyword in header:
            settings[keyword] = header[keyword]
    for group in header.get("SharedFunctionalGroupsSequence", None) or []:
        for sequence, keywords in FROM_GROUPS.items():
            for item in group.get(sequence, None) or []:
                for keyword in keywords:
                    if keyword in item and keyword not in settings:
                        settings[keyword] = item[keyword]
    for keyword in ("WindowCenter", "WindowWidth", "VOILUTFunction", "RescaleSlope"):
        if keyword in settings and settings[keyword].value in (None, ""):
            del settings[keyword]  # present and empty is absent
    settings.file_meta = header.file_meta
    return settings


def _padding(values: Array, header: Dataset) -> Array:
    """Which values are padding (PS3.3 C.7.5.1.1.2): one value, or the range to its limit."""
    first = header.get("PixelPaddingValue", None)
    if first is None:
        return np.zeros(values.shape, dtype=bool)
    last = header.get("PixelPaddingRangeLimit", None)
    ends = sorted((int(first), int(first if last is None else last)))
    result: Array = (values >= ends[0]) & (values <= ends[1])
    return result
