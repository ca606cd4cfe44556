"""One mammographic view -> two channels: the whole view and the lesion.

1. FOR PRESENTATION alone; the view and the side must be those of the table; spot, magnification
   and implant views are refused.
2. Modality LUT, VOI LUT (DICOM PS3.4 N.2), MONOCHROME1 inverted: bright is dense.
3. Right breasts are mirrored, so that the chest wall is always left.
4. Whole view: aspect kept, area resampling to S x S, against the chest wall, the rest is padding.
5. Breast: the largest connected part above the lowest of three-class Otsu thresholds. Its mean
   and spread standardise both channels; what is not breast becomes 0.
6. Lesion: the box enlarged 1.5 times (a design value), square, from the original resolution, so
   that micro-calcifications survive. Without a box, the whole view again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from scipy import ndimage

from her2_client.ingest import dicom
from her2_client.ingest.pixels import check_box, lowest_threshold, resample, square, standardise
from her2_common.cases import Box
from her2_common.errors import ImageError

Array = npt.NDArray[Any]
View = Literal["CC", "MLO"]

CROP_FACTOR: Final = 1.5
AIR_FAT_DENSE: Final = 3
SMALLEST_BREAST: Final = 0.01
"""Share of the picture below which what is bright is a label, not a breast (a design value)."""

FOR_PRESENTATION_CLASS: Final = "1.2.840.10008.5.1.4.1.1.1.2"
VIEW_CODES: Final[dict[str, View]] = {
    "R-10242": "CC",
    "399162004": "CC",
    "R-10226": "MLO",
    "399368009": "MLO",
}
"""DICOM PS3.16 CID 4014, SNOMED RT and SNOMED CT."""
SPECIAL_VIEW_CODES: Final = {
    "R-102D5": "implant displaced",
    "399209000": "implant displaced",
    "R-102D6": "magnification",
    "399163009": "magnification",
    "R-102D7": "spot compression",
    "399055006": "spot compression",
}
"""DICOM PS3.16 CID 4015, SNOMED RT and SNOMED CT."""


def mammogram(
    path: Path, box: Box | None, *, view: View, laterality: Literal["L", "R"] | None, size: int
) -> Array:
    """(2, size, size) float16: the whole view and its lesion crop, standardised.

    Raises:
        ImageError: the file cannot be used, with its reason.
    """
    dataset = dicom.read(path, "MG")
    with dicom.reading():
        _check_intent(dataset)
        _check_view(dataset, view)
        side = _side(dataset, laterality)
    stored = dicom.pixels(dataset)
    if stored.ndim != 2:
        raise ImageError("expected a grey image, got colour", reason="not grey")
    with dicom.reading("grey-scale LUT"):
        image = np.asarray(apply_voi_lut(apply_modality_lut(stored, dataset), dataset))
    image = image.astype(np.float32)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        image = image.max() + image.min() - image
    if side is None:
        side = "L" if _brighter_left(image) else "R"
    if box is not None:
        check_box(box, image.shape)
    if side == "R":
        columns = image.shape[1]
        image = image[:, ::-1]
        if box is not None:
            box = Box(columns - box.x1, box.y0, columns - box.x0, box.y1)
    return np.stack(_whole_and_crop(image, box, size)).astype(np.float16)


def _whole_and_crop(image: Array, box: Box | None, size: int) -> tuple[Array, Array]:
    rows, columns = image.shape
    side = max(rows, columns)
    top = (rows - side) / 2
    whole, inside = resample(image, [(top, top + side), (0, side)], (size, size))
    threshold = lowest_threshold(whole[inside], AIR_FAT_DENSE)
    breast = _largest_part(inside & (whole > threshold))
    if breast.mean() < SMALLEST_BREAST:
        raise ImageError("expected a breast, got an all but empty picture", reason="blank image")
    view = np.where(breast, standardise(whole, breast), 0.0)
    if box is None:
        return view, view
    windows = square((box.y0, box.x0), (box.y1, box.x1), CROP_FACTOR)
    crop, covered = resample(image, windows, (size, size))
    tissue = covered & (crop > threshold)
    return view, np.where(tissue, standardise(crop, breast, of=whole), 0.0)


def _largest_part(mask: Array) -> Array:
    parts, count = ndimage.label(mask)
    if count < 2:
        return mask
    largest = np.bincount(parts.ravel())[1:].argmax() + 1
    result: Array = parts == largest
    return result


def _brighter_left(image: Array) -> bool:
    half = image.shape[1] // 2
    return bool(image[:, :half].mean(dtype=np.float64) >= image[:, -half:].mean(dtype=np.float64))


# --- header -------------------------------------------------------------------------------------


def _check_intent(dataset: Dataset) -> None:
    intent = str(dataset.get("PresentationIntentType", ""))
    if intent == "FOR PROCESSING":
        raise ImageError("expected FOR PRESENTATION, got FOR PROCESSING", reason="for processing")
    if intent != "FOR PRESENTATION" and dataset.get("SOPClassUID") != FOR_PRESENTATION_CLASS:
        raise ImageError("expected FOR PRESENTATION, got no intent", reason="no intent")


def _check_view(dataset: Dataset, view: View) -> None:
    codes = dataset.get("ViewCodeSequence") or []
    for code in codes:
        for modifier in code.get("ViewModifierCodeSequence") or []:
            special = SPECIAL_VIEW_CODES.get(str(modifier.get("CodeValue", "")))
            if special is not None:
                raise ImageError(f"expected a {view} view, got {special}", reason="special view")
    if dataset.get("BreastImplantPresent") == "YES":
        raise ImageError(f"expected a {view} view, got one with an implant", reason="implant")
    got = str(dataset.get("ViewPosition", "") or "")
    if not got and codes:
        got = VIEW_CODES.get(str(codes[0].get("CodeValue", "")), "another")
    if got and got != view:
        raise ImageError(f"expected view {view}, got {dicom.code(got)}", reason="wrong view")


def _side(dataset: Dataset, stated: Literal["L", "R"] | None) -> Literal["L", "R"] | None:
    """The side by the image's own tag, else by the table; None if neither says."""
    tag = dataset.get("ImageLaterality") or dataset.get("Laterality")
    if tag not in ("L", "R"):
        return stated
    if stated is not None and tag != stated:
        raise ImageError(
            f"expected side {stated} as in the table, got {dicom.code(tag)}",
            reason="wrong laterality",
        )
    side: Literal["L", "R"] = tag
    return side
