"""How a mammogram must be turned: the chest wall left, the outer or upper half of the breast up.

1. PatientOrientation says where a row and a column run to (DICOM PS3.3 C.7.6.1.1.1): A, anterior,
   is away from the chest wall; a column runs to the feet, or in CC from the outer side inwards.
2. Without it right breasts are taken to be stored with the chest wall right, as a viewer shows
   them, and columns to run downwards.
3. The picture has the last word (``check``): a breast is broader at the chest wall than at the
   nipple. Where no tag stated the direction of the rows it is turned, else refused.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from her2_client.ingest.pixels import ROBUST_TOP
from her2_client.ingest.planar.air import bright_background
from her2_client.ingest.planar.views import Side
from her2_common.cases import Box
from her2_common.errors import ImageError

Array = npt.NDArray[Any]

LETTERS: Final = set("APLRFH")
END: Final = 0.05
"""Share of the breast's width that is its end (a design value)."""
CLEARLY: Final = 2.0
"""How many times broader an end is that must be the chest wall; a half circle's are 5 times apart
(a design value)."""
FLAT: Final = 4.0
"""How many times closer the shades of air are than those of tissue (a design value)."""
SHADES: Final = 32
"""Shades that are told apart along the border (a design value)."""
MOST: Final = 0.5
"""Share of the edge away from the chest wall that a breast does not cover (a design value)."""


class Turn(NamedTuple):
    """``columns``: left and right are exchanged, ``rows``: top and bottom; ``stated``: by a tag."""

    columns: bool
    rows: bool = False
    stated: bool = False

    def image(self, image: Array) -> Array:
        """(rows, columns), turned; a second time it is as it was."""
        turned: Array = image[:: -1 if self.rows else 1, :: -1 if self.columns else 1]
        return turned

    def box(self, box: Box, shape: tuple[int, int]) -> Box:
        """The box, turned with an image of ``shape``; a second time it is as it was."""
        x0, y0, x1, y1 = box.x0, box.y0, box.x1, box.y1
        if self.columns:
            x0, x1 = shape[1] - x1, shape[1] - x0
        if self.rows:
            y0, y1 = shape[0] - y1, shape[0] - y0
        return Box(x0, y0, x1, y1)


def turn_of(header: Dataset | None, side: Side | None) -> Turn:
    """What the header says, or the custom for the side; ``header`` is None for a PNG or JPEG.

    Raises:
        ImageError: the rows run along the chest wall (reason "rotated view").
    """
    value = None if header is None else header.get("PatientOrientation", None)
    words = [] if value is None or isinstance(value, str) else [str(word) for word in value]
    if len(words) != 2 or not all(word and set(word) <= LETTERS for word in words):
        return Turn(side == "R")
    row, column = words
    if row[0] not in "AP" and column[0] in "AP":
        raise ImageError(
            "expected rows that leave the chest wall, got rows along it", reason="rotated view"
        )
    upwards = "H" in column or ("F" not in column and side is not None and side in column)
    if ("A" in row) == ("P" in row):
        return Turn(side == "R", upwards)
    return Turn("P" in row, upwards, stated=True)


def check(picture: Array, mask: Array, turn: Turn) -> Turn:
    """The turn that brings the chest wall of the breast in ``mask`` to the left.

    ``picture`` and ``mask`` are (rows, columns), without padding, as ``turn`` leaves them.

    Raises:
        ImageError: the chest wall is where the tag says that it is not (reason "contradictory
            orientation"), or what is bright surrounds the breast ("bright background").
    """
    if _bright_border(picture) or _is_air(picture, mask):
        raise bright_background()
    if _chest_wall(mask) == "right":
        if turn.stated:
            raise ImageError(
                "expected the chest wall where PatientOrientation says, got it opposite",
                reason="contradictory orientation",
            )
        turn, mask = turn._replace(columns=not turn.columns), mask[:, ::-1]
    if mask[:, -1].mean() > MOST:
        raise bright_background()
    return turn


def _chest_wall(mask: Array) -> Literal["left", "right"] | None:
    """Where the breast is clearly broader."""
    across = np.nonzero(mask.any(axis=0))[0]
    first, last = int(across[0]), int(across[-1]) + 1
    end = max(1, round(END * (last - first)))
    left, right = mask[:, first : first + end].sum(), mask[:, last - end : last].sum()
    if right > CLEARLY * left:
        return "right"
    return "left" if left > CLEARLY * right else None


def _bright_border(picture: Array) -> bool:
    """Whether the commonest shade along the border, which is the air's, is one of the bright."""
    border = [picture[0], picture[-1], picture[:, 0], picture[:, -1]]
    low, high = float(picture.min()), float(np.percentile(picture, ROBUST_TOP))
    if not high > low:
        return False
    shades = np.minimum(np.concatenate(border), high)
    counts, _ = np.histogram(shades, SHADES, (low, high))
    return bool(counts.argmax() >= SHADES // 2)


def _is_air(picture: Array, mask: Array) -> bool:
    """Air is of one shade, tissue is not: which of the two is in ``mask``."""
    inside, outside = (_middle_half(picture[part]) for part in (mask, ~mask))
    return FLAT * inside < outside


def _middle_half(values: Array) -> float:
    """The distance between the quartiles; labels and margins do not move it."""
    if not values.size:
        return 0.0
    low, high = np.percentile(values, [25, 75])
    return float(high - low)
