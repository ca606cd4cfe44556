"""One ultrasound picture -> one channel: the lesion inside a verified B-mode region.

1. RGB, YBR, PALETTE COLOR and MONOCHROME become grey (ITU-R BT.601 luma); of several frames the
   first is read.
2. SequenceOfUltrasoundRegions (DICOM PS3.3 C.8.5.5) names the B-mode picture. Names are often
   burned in around it and tag de-identification does not clean pixels, so an ultrasound without
   such a region is refused, and so is one whose region is the whole picture, unless the header
   states that nothing is burned in.
3. The lesion box enlarged twice (a design value), square; without a box the whole region, aspect
   kept. What lies outside the region becomes 0 whatever it holds.
4. Mean and spread of what is left standardise it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from her2_client.ingest import dicom
from her2_client.ingest.pixels import check_box, resample, square, standardise
from her2_common.cases import Box
from her2_common.errors import ImageError

Array = npt.NDArray[Any]

CROP_FACTOR: Final = 2.0
TWO_DIMENSIONAL: Final = 1
"""RegionSpatialFormat of a B-mode picture (PS3.3 C.8.5.5.1.1)."""
TISSUE: Final = 1
"""RegionDataType of a B-mode picture (PS3.3 C.8.5.5.1.2)."""
WHOLE_PICTURE: Final = 0.98
"""Share from which a region is the whole picture and so hides nothing (a design value)."""
LUMA: Final = (0.299, 0.587, 0.114)


class Region(NamedTuple):
    """A region in source pixels, end-exclusive."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def area(self) -> int:
        return (self.x1 - self.x0) * (self.y1 - self.y0)


def ultrasound(path: Path, box: Box | None, *, size: int) -> Array:
    """(1, size, size) float16: the lesion, or the region if there is no box, standardised.

    Raises:
        ImageError: the file cannot be used, with its reason.
    """
    dataset = dicom.read(path, "US")
    with dicom.reading():
        region = _region(dataset, box)
    grey = _grey(dataset)
    part = grey[region.y0 : region.y1, region.x0 : region.x1]
    height, width = part.shape
    low, high = (0, 0), (height, width)
    factor = 1.0
    if box is not None:
        low = (box.y0 - region.y0, box.x0 - region.x0)
        high = (box.y1 - region.y0, box.x1 - region.x0)
        factor = CROP_FACTOR
    values, inside = resample(part, square(low, high, factor), (size, size))
    picture = np.where(inside, standardise(values, inside), 0.0)
    return picture[np.newaxis].astype(np.float16)  # (1, S, S)


def _grey(dataset: Dataset) -> Array:
    stored = dicom.pixels(dataset)
    with dicom.reading("colour table"):
        photometric = dataset.PhotometricInterpretation
        if photometric == "PALETTE COLOR":
            stored = apply_color_lut(stored, dataset)
        grey = stored.astype(np.float32)
        if grey.ndim == 3:
            # not a matrix product: its bits could depend on the number of threads
            red, green, blue = (grey[..., i] * np.float32(LUMA[i]) for i in range(3))
            grey = red + green + blue
        elif photometric == "MONOCHROME1":
            grey = grey.max() + grey.min() - grey
    return grey


def _region(dataset: Dataset, box: Box | None) -> Region:
    """The B-mode region with the middle of ``box``, or the largest if there is no box."""
    columns, rows = int(dataset.Columns), int(dataset.Rows)
    regions = []
    for item in dataset.get("SequenceOfUltrasoundRegions") or []:
        if item.get("RegionSpatialFormat") != TWO_DIMENSIONAL:
            continue
        if item.get("RegionDataType") != TISSUE:
            continue
        # The standard gives the first and the last pixel.
        region = Region(
            int(item.RegionLocationMinX0),
            int(item.RegionLocationMinY0),
            int(item.RegionLocationMaxX1) + 1,
            int(item.RegionLocationMaxY1) + 1,
        )
        if 0 <= region.x0 < region.x1 <= columns and 0 <= region.y0 < region.y1 <= rows:
            regions.append(region)
    if not regions:
        raise ImageError(
            "expected a B-mode region in SequenceOfUltrasoundRegions, got none",
            reason="no verified region",
            hint="names are often burned in around the picture; such files need a review",
        )
    if box is not None:
        check_box(box, (rows, columns))
        x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
        regions = [r for r in regions if r.x0 <= x < r.x1 and r.y0 <= y < r.y1]
        if not regions:
            raise ImageError(
                "expected a box inside a B-mode region, got one elsewhere", reason="box outside"
            )
    region = max(regions, key=lambda r: r.area)
    burned_in = dataset.get("BurnedInAnnotation") != "NO"
    if burned_in and region.area >= WHOLE_PICTURE * rows * columns:
        raise ImageError(
            "expected a B-mode region within the picture, got the whole picture",
            reason="no verified region",
        )
    return region
