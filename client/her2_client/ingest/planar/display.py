"""Stored mammographic values -> what a viewer shows: bright is dense.

Modality LUT, then VOI LUT (DICOM PS3.4 N.2), then MONOCHROME1 inverted. All three act on single
values, so they are worked out once for each value that occurs, not for each pixel. Tables are
looked up here: pydicom keeps the index in the type of the output, and 8 bits are too few for it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_rescale, apply_voi_lut

from her2_client.ingest import dicom
from her2_common.errors import ImageError

Array = npt.NDArray[Any]

GREY: Final = ("MONOCHROME1", "MONOCHROME2")
FROM_GROUPS: Final = {
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction"),
}
"""Where enhanced images keep what others have at the top level (PS3.3 C.7.6.16.2.9 and 10)."""
ENTRY_BITS: Final = (8, *range(10, 17))
"""Bits of an entry of a table (PS3.3 C.8.11.3.1.5)."""
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
    signed = settings.get("PixelRepresentation") == 1
    if (table := _table(settings, "ModalityLUTSequence")) is not None:
        rescaled, signed = _looked_up(values, table, settings, signed=signed), False
    else:
        bits = int(settings.BitsStored)
        ends = np.array([0, (1 << bits) - 1]) - (1 << bits - 1) * signed
        rescaled = apply_rescale(values, settings)
        signed = bool(apply_rescale(ends, settings).min() < 0)
    if (table := _table(settings, "VOILUTSequence")) is not None:
        # a table is entered with whole numbers
        whole = np.rint(rescaled).astype(np.int64)
        return _looked_up(whole, table, settings, signed=signed).astype(np.float32)
    shown: Array = apply_voi_lut(rescaled, settings)
    return shown.astype(np.float32)


def _table(settings: Dataset, sequence: str) -> Dataset | None:
    """The first item of ``sequence``; None if it holds no table."""
    for item in settings.get(sequence, None) or []:
        if item.get("LUTDescriptor", None) is None or item.get("LUTData", None) is None:
            return None
        table: Dataset = item
        return table
    return None


def _looked_up(values: Array, table: Dataset, settings: Dataset, *, signed: bool) -> Array:
    """The entries for ``values``; below the first and above the last these two stand.

    ``signed``: whether the values that enter the table may be negative. Without explicit VR its
    first value is read as unsigned, and its length may be read as signed (PS3.3 C.11.2.1.1).
    """
    count, first, bits = (int(value) for value in table.LUTDescriptor)
    if bits not in ENTRY_BITS:
        raise ValueError("bits of an entry")
    count = count % (1 << 16) or 1 << 16
    if signed and first >= 1 << 15:
        first -= 1 << 16
    data = table.LUTData
    if isinstance(data, bytes):
        order = "<" if settings.file_meta.TransferSyntaxUID.is_little_endian else ">"
        data = np.frombuffer(data, f"{order}u2")
    entries = np.atleast_1d(np.asarray(data, dtype=np.int64))
    if bits == 8 and len(entries) == (count + 1) // 2 and count > 1:
        entries = np.stack([entries % 256, entries // 256], axis=1).ravel()  # two in one word
    if len(entries) < count:
        raise ValueError("length of a table")
    found: Array = entries[np.clip(values - first, 0, count - 1)]
    return found


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
    rescale = {"RescaleSlope": 1, "RescaleIntercept": 0}
    for keyword in ("WindowCenter", "WindowWidth", "VOILUTFunction", *rescale):
        if keyword in settings and settings[keyword].value in (None, ""):
            del settings[keyword]  # present and empty is absent
    if any(keyword in settings for keyword in rescale):
        for keyword, neutral in rescale.items():  # one of the two leaves the other neutral
            if keyword not in settings:
                setattr(settings, keyword, neutral)
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
