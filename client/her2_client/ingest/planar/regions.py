"""The B-mode regions that an ultrasound's header states (DICOM PS3.3 C.8.5.5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from pydicom.dataset import Dataset

from her2_client.ingest.pixels import check_box
from her2_common.cases import Box
from her2_common.errors import ImageError

TWO_DIMENSIONAL: Final = 1
"""RegionSpatialFormat of a B-mode picture (PS3.3 C.8.5.5.1.1)."""
TISSUE: Final = 1
"""RegionDataType of a B-mode picture (PS3.3 C.8.5.5.1.2)."""
HARMLESS: Final = {0, TISSUE, 13}
"""Data types that paint nothing on a B-mode picture under them: none, tissue, a grey bar. All the
others do: colour flow, spectral Doppler, traces, physiological curves, a colour bar."""
WHOLE_PICTURE: Final = 0.98
"""Share from which a region is the whole picture and so hides nothing (a design value)."""


class Region(NamedTuple):
    """A region in source pixels, end-exclusive."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def area(self) -> int:
        return (self.x1 - self.x0) * (self.y1 - self.y0)


def regions_of(header: Dataset) -> list[Region]:
    """The verified regions: B-mode, on the picture, and leaving something of it outside.

    One that is the whole picture counts only where the header says that nothing is burned in.
    """
    columns, rows = int(header.Columns), int(header.Rows)
    found = []
    for item in header.get("SequenceOfUltrasoundRegions", None) or []:
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
        if not (0 <= region.x0 < region.x1 <= columns and 0 <= region.y0 < region.y1 <= rows):
            continue
        clean = header.get("BurnedInAnnotation") == "NO"
        if clean or region.area < WHOLE_PICTURE * rows * columns:
            found.append(region)
    return found


def overlaid(header: Dataset, region: Region) -> bool:
    """Whether the header states a region of other data, such as colour flow, upon ``region``."""
    for item in header.get("SequenceOfUltrasoundRegions", None) or []:
        kind = item.get("RegionDataType")
        ends = [item.get(f"RegionLocation{end}") for end in ("MinX0", "MinY0", "MaxX1", "MaxY1")]
        if kind is None or kind in HARMLESS or None in ends:
            continue
        x0, y0, x1, y1 = (int(end) for end in ends)
        if x0 < region.x1 and region.x0 <= x1 and y0 < region.y1 and region.y0 <= y1:
            return True
    return False


def choose(regions: Sequence[Region], box: Box | None, shape: Sequence[int]) -> Region:
    """The region with the middle of ``box``, or the largest if there is no box.

    ``shape`` is that of the picture, (rows, columns).

    Raises:
        ImageError: the box is beyond the picture or in no region (reason "box outside").
    """
    if box is not None:
        check_box(Box(box.x0, box.y0, box.x1, box.y1), shape)
        x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
        regions = [r for r in regions if r.x0 <= x < r.x1 and r.y0 <= y < r.y1]
        if not regions:
            raise ImageError(
                "expected a box inside a B-mode region, got one elsewhere", reason="box outside"
            )
    return max(regions, key=lambda region: region.area)
