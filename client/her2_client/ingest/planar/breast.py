"""The breast in a mammogram: found, standardised as a whole and around the lesion, and searched.

The steps are those of mammography.py; nothing here knows of files or headers.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from her2_client.ingest.pixels import (
    Place,
    Rectangle,
    Window,
    place_in,
    resample,
    square,
    standardise,
)
from her2_client.ingest.planar import orientation
from her2_client.ingest.planar.air import tissue_of
from her2_client.ingest.planar.orientation import Turn
from her2_client.ingest.privacy.search import text_in
from her2_common.cases import Box
from her2_common.errors import ImageError

Array = npt.NDArray[Any]

CROP_FACTOR: Final = 1.5
SMALLEST_BREAST: Final = 0.01
"""Share of the picture below which what is bright is a label, not a breast (a design value)."""


class Breast:
    """A view of (rows, columns), bright is dense; ``turn`` brings its chest wall to the left.

    ``box`` is in the pixels of ``image`` as it is given; ``place`` is where it lies in the whole
    view.

    Raises:
        ImageError: nothing in the picture is a breast (reason "blank image").
    """

    def __init__(self, image: Array, box: Box | None, size: int, turn: Turn) -> None:
        rows, columns = image.shape
        self.turn, self.size = turn, size
        tissue = tissue_of(turn.image(image))
        self.image, self.threshold, self.fills = tissue.image, tissue.threshold, tissue.fills
        self.crop: list[Window] | None = None
        self.place: Place | None = None
        side = max(rows, columns)
        self.top, self.scale = (rows - side) / 2, side / size
        view = [(self.top, self.top + side), (0, side)]
        if box is not None:
            box = turn.box(box, (rows, columns))
            low, high = (box.y0, box.x0), (box.y1, box.x1)
            self.crop, self.place = square(low, high, CROP_FACTOR), place_in(view, low, high)
        self.whole, self.inside = resample(self.image, view, (size, size))
        self.mask = _largest_part(self.inside & (self.whole > self.threshold))
        if self.mask.mean() < SMALLEST_BREAST:
            raise ImageError(
                "expected a breast, got an all but empty picture", reason="blank image"
            )

    def checked_turn(self) -> Turn:
        """``turn``, or another if the chest wall is not left of it; raises as ``check`` does."""
        if self.fills:
            return self.turn  # there is no outline
        down, across = (self.inside.any(axis) for axis in (1, 0))
        part = np.ix_(down, across)
        return orientation.check(self.whole[part], self.mask[part], self.turn)

    def channels(self) -> Array:
        """(2, S, S) float16: the whole view and the lesion's crop, 0 where there is no breast.

        Raises:
            ImageError: the lesion's crop holds nothing of the breast (reason "box outside").
        """
        whole = np.where(self.mask, standardise(self.whole, self.mask), 0.0)
        crop = whole
        if self.crop is not None:
            values, covered = resample(self.image, self.crop, (self.size, self.size))
            (y0, y1), (x0, x1) = self.crop
            centres = (np.arange(self.size) + 0.5) / self.size
            places = y0 + centres * (y1 - y0), x0 + centres * (x1 - x0)
            # the rim is finer here than in the whole view; what is dark within it is tissue
            tissue = self.mask_at(self.mask, *places) & (values > self.threshold)
            tissue |= self.mask_at(ndimage.binary_erosion(self.mask), *places)
            tissue &= covered
            crop = self._standardised_crop(values, tissue)
        return np.stack([whole, crop]).astype(np.float16)

    @staticmethod
    def _standardised_crop(values: Array, tissue: Array) -> Array:
        if not tissue.any():
            raise ImageError(
                "expected a box on the breast, got one beside it", reason="box outside"
            )
        if values[tissue].min() == values[tissue].max():
            return np.zeros_like(values)  # a window that saturates leaves nothing to see
        return np.where(tissue, standardise(values, tissue), 0.0)

    def mask_at(self, mask: Array, y: Array, x: Array) -> Array:
        """A mask of the view at source positions, (len(y), len(x)); false beyond the view."""
        row = np.floor((np.asarray(y) - self.top) / self.scale).astype(np.int64)
        column = np.floor(np.asarray(x) / self.scale).astype(np.int64)
        in_rows, in_columns = ((k >= 0) & (k < self.size) for k in (row, column))
        nearest = mask[np.ix_(np.clip(row, 0, self.size - 1), np.clip(column, 0, self.size - 1))]
        result: Array = nearest & in_rows[:, np.newaxis] & in_columns
        return result

    def text(self) -> list[Rectangle]:
        """Where text stands in the breast or the crop, in the pixels of the image as given."""
        down, across = (np.nonzero(self.mask.any(axis))[0] for axis in (1, 0))
        whole = [
            (self.top + self.scale * down[0], self.top + self.scale * (down[-1] + 1)),
            (self.scale * across[0], self.scale * (across[-1] + 1)),
        ]
        found = self._text_within(whole, self.scale)
        if self.crop is not None:
            scale = (self.crop[0][1] - self.crop[0][0]) / self.size
            found += [r for r in self._text_within(self.crop, scale) if r not in found]
        return found

    def _text_within(self, window: list[Window], scale: float) -> list[Rectangle]:
        """``scale``: source pixels to one pixel of the cache."""
        rows, columns = self.image.shape
        (y0, y1), (x0, x1) = (
            (max(0, int(low)), min(length, int(np.ceil(high))))
            for (low, high), length in zip(window, (rows, columns), strict=True)
        )
        if y1 <= y0 or x1 <= x0:
            return []
        inside = self.mask_at(self.mask, np.arange(y0, y1) + 0.5, np.arange(x0, x1) + 0.5)
        darkest = np.float32(0 if self.fills else self.threshold)
        part = np.where(inside, self.image[y0:y1, x0:x1], darkest)
        stored = self.turn.box(Box(x0, y0, x1, y1), (rows, columns))
        # letters must not be read in a mirror
        return text_in(self.turn.image(part), stored.x0, stored.y0, scale=scale)


def _largest_part(mask: Array) -> Array:
    """The largest connected part of ``mask``, with its holes: cysts and fat are tissue."""
    parts, count = ndimage.label(mask)
    if count > 1:
        mask = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    result: Array = ndimage.binary_fill_holes(mask)
    return result
