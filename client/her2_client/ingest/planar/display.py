"""Stored mammographic values -> what a viewer shows: bright is dense.

Modality LUT, then VOI LUT (DICOM PS3.4 N.2), then MONOCHROME1 inverted. All three act on single
values, so they are worked out once for each value that occurs, not for each pixel. Tables are
looked up here: pydicom keeps the index in the type of the output, and 8 bits are too few for it.

A window or VOI LUT is a wish of whoever stored the picture. One that leaves the breast black or
white, or that the standard does not allow, is not used: the data's own range is.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_rescale, apply_voi_lut

from her2_client.ingest import dicom
from her2_client.ingest.planar.air import tissue_of
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
MOST_SATURATED: Final = 0.25
"""Share of the tissue that a window may leave black or white (a design value)."""
END: Final = 0.002
"""Of the range of what is shown: as near to black or white as this is black or white."""
COMPARED: Final = 1 << 18
"""Pixels that are looked at for that, on a regular grid."""
GREATEST: Final = 1e12
"""No grey value is larger after rescaling (a design value)."""
WINDOW_NOT_USED: Final = "window not used"
NEEDED: Final = (
    *("PixelRepresentation", "BitsStored", "PhotometricInterpretation"),
    *("ModalityLUTSequence", "VOILUTSequence", *sum(FROM_GROUPS.values(), ())),
)


def readable(stored: Array, header: Dataset) -> tuple[Array, tuple[str, ...]]:
    """``display``, without a VOI window or table that hides the breast; and what was not used.

    Raises:
        ImageError: as ``display``, but for the VOI window or table.
    """
    plain = display(stored, header, voi=False)
    with dicom.reading("grey-scale LUT"):
        has_voi = _has_voi(_settings(header))
    if not has_voi:
        return plain, ()
    try:
        shown = display(stored, header)
        hidden = _hides(shown, plain)
    except ImageError:  # without its window the picture is sound
        hidden = True
    return (plain, (WINDOW_NOT_USED,)) if hidden else (shown, ())


def _has_voi(settings: Dataset) -> bool:
    return "WindowWidth" in settings or _table(settings, "VOILUTSequence") is not None


def _hides(shown: Array, plain: Array) -> bool:
    """Whether much of the tissue in ``plain`` is black or white in ``shown``, and not in itself."""
    step = max(1, int(np.ceil(np.sqrt(plain.size / COMPARED))))
    shown, plain = shown[::step, ::step], plain[::step, ::step]
    try:
        tissue = tissue_of(plain)
    except ImageError:  # nothing to see, or inverted: said of what is shown
        return False
    ends = (_at_an_end(shown) & ~_at_an_end(plain))[tissue.image > tissue.threshold]
    return bool(ends.size and ends.mean() > MOST_SATURATED)


def _at_an_end(picture: Array) -> Array:
    low, high = float(picture.min()), float(picture.max())
    near = END * (high - low)
    result: Array = (picture <= low + near) | (picture >= high - near)
    return result


def display(stored: Array, header: Dataset, *, voi: bool = True) -> Array:
    """(rows, columns) float32 out of (rows, columns) stored values; ``voi``: with VOI LUT.

    Raises:
        ImageError: colour, or a table, window or slope that the standard does not allow.
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
        shown = _transformed(values, _settings(header), voi=voi)
        padding = _padding(values, header)
    if not np.abs(shown).max() <= GREATEST:
        raise ImageError(
            f"expected grey values up to {GREATEST:.0e} after rescaling, got larger ones",
            reason="rescale",
            hint="look at RescaleSlope and RescaleIntercept, and export the picture again",
        )
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


def _transformed(values: Array, settings: Dataset, *, voi: bool) -> Array:
    signed = settings.get("PixelRepresentation") == 1
    if (table := _table(settings, "ModalityLUTSequence")) is not None:
        rescaled, signed = _looked_up(values, table, settings, signed=signed), False
    else:
        dicom.check_rescale(settings.get("RescaleSlope", 1), settings.get("RescaleIntercept", 0))
        bits = int(settings.BitsStored)
        ends = np.array([0, (1 << bits) - 1]) - (1 << bits - 1) * signed
        rescaled = apply_rescale(values, settings)
        signed = bool(apply_rescale(ends, settings).min() < 0)
    if not voi:
        return rescaled.astype(np.float32)
    if (table := _table(settings, "VOILUTSequence")) is not None:
        # a table is entered with whole numbers
        whole = np.rint(rescaled).astype(np.int64)
        return _looked_up(whole, table, settings, signed=signed).astype(np.float32)
    try:
        shown: Array = apply_voi_lut(rescaled, settings)
    except (TypeError, ValueError, AttributeError, NotImplementedError, IndexError):
        raise _unusable("WindowCenter, WindowWidth and VOILUTFunction", "a window") from None
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
        raise _unusable("LUTDescriptor", "entries of 8 or 10 to 16 bits", f"{bits}")
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
        raise _unusable("LUTData", f"{count} entries", f"{len(entries)}")
    found: Array = entries[np.clip(values - first, 0, count - 1)]
    return found


def _unusable(keyword: str, expected: str, got: str = "others") -> ImageError:
    return ImageError(
        f"expected {expected} in {keyword}, got {got}",
        reason="unusable grey scale",
        hint="export the picture again, if need be without its grey-scale LUT",
    )


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
