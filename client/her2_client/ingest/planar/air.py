"""The air beside a breast: how dark it is, and what in it is no tissue.

1. The level of the air is the commonest of the dark shades: air is of one shade, tissue is not.
2. Tissue is what is brighter than the air by ``LOWEST`` of the distance from there to the middle
   of the tissue, and by more than the noise of the air. The thin rim of a breast is far darker
   than its gland, so a threshold between classes (Otsu's, say) parts fat from gland instead.
3. Between air and tissue few pixels lie, and air is dark or surrounds the breast. Otherwise the
   shade is no air but fat: the breast fills the picture.
4. Markers, labels and film edges become air before anything is measured: what has the greatest
   value and borders on air, and lines along the picture's edge that are bright from end to end.
   Steps 1 and 2 are then done again, so that the same threshold results without them.
5. Tissue that fills a rectangle within the picture is a film in a frame: the steps are done again
   in the rectangle, and the frame is air.

Plain arrays: no DICOM, no files. The constants are design values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from her2_client.ingest.pixels import ROBUST_TOP
from her2_common.errors import ImageError

Array = npt.NDArray[Any]

SHADES: Final = 256
"""Shades that are told apart when the commonest is looked for."""
LOWEST: Final = 1 / 16
"""From the air to the middle of the tissue; fat may have a quarter of the brightness of gland, and
its rim a quarter of that."""
NOISE: Final = 4.0
"""Standard deviations of the air's noise that a threshold stays above it."""
MOST_NOISE: Final = 1 / 3
"""Of the way to the middle of the tissue that the noise may lift the threshold."""
START: Final = 1 / 20
"""Of the picture's range, above the air, from which the middle of the tissue is first taken."""
STEP: Final = 1 / 32
"""Of the way to the middle of the tissue, rounded down to a power of two: thresholds are whole
multiples of it, so that what covers a little of the air leaves the threshold as it is."""
VALLEY: Final = 1 / 4
"""Pixels just above the threshold, as a share of those as near to the level of the air."""
DARK: Final = 1 / 5
"""Of the way from black to the brightest tissue: up to there a shade is that of air."""
AROUND: Final = 0.6
"""Share of the picture's border from which a brighter shade, the grey of a film, is air, too."""
ONE_SHADE: Final = 0.02
"""Of the range: what is as near to a shade as this is of that shade."""
COMMON: Final = 0.1
"""Share of the picture from which one bright shade is a background, if it is commoner than the
dark one both in the picture and along its border."""
LEAST_WHITE: Final = 1 / 2000
"""Share of the picture that has its greatest value at least where a marker was painted with it."""
FRAMED: Final = 0.5
"""Share of a line that is bright where it crosses a film in its frame."""
FILLED: Final = 0.95
"""Share of a rectangle that a film fills, and of what is bright that lies in it; a breast, being
round, fills four fifths of one that holds it."""
EDGE: Final = 0.25
"""Share of the picture, from each side, in which a film edge is looked for."""
EDGE_COVERED: Final = 0.9
"""Share of an edge's line that is bright."""
EDGE_BRIGHT: Final = 0.9
"""Of the range: how bright a film edge is at least."""
MEASURED: Final = 1 << 19
"""Pixels that are measured at most, on a regular grid."""


@dataclass(frozen=True)
class Tissue:
    """``image`` (rows, columns) float32 with markers and film edges as dark as air; what is above
    ``threshold`` is tissue: all of it, -inf, where the breast fills the picture.
    """

    image: Array
    threshold: float

    @property
    def fills(self) -> bool:
        """Whether there is no air."""
        return self.threshold == -np.inf


def tissue_of(image: Array) -> Tissue:
    """What of a mammogram, bright is dense, may be tissue.

    Raises:
        ImageError: one value everywhere (reason "blank image"), or bright air (reason "bright
            background").
    """
    air = _air(image, np.ones(image.shape, dtype=bool))
    if air is None:
        return Tissue(image, -np.inf)
    level, threshold = air
    marks = _white_in_air(image, threshold) | _film_edges(image, threshold)
    if marks.any():
        image = np.where(marks, image.dtype.type(level), image)
        try:
            _, threshold = _air(image, ~marks) or air
        except ImageError:  # there was nothing but marks
            return Tissue(image, threshold)
    frame = _frame(image > threshold)
    if frame is not None and (within := _air(image, ~frame)) is not None:
        level, threshold = within
        image = np.where(frame, image.dtype.type(level), image)
    return Tissue(image, threshold)


def _frame(bright: Array) -> Array | None:
    """What surrounds the rectangle that bright pixels fill; None if they do not, or fill all."""
    down, across = (np.nonzero(bright.mean(axis) >= FRAMED)[0] for axis in (1, 0))
    if not (len(down) and len(across)):
        return None
    film = (slice(down[0], down[-1] + 1), slice(across[0], across[-1] + 1))
    if bright[film].mean() < FILLED or bright[film].size == bright.size:
        return None
    if bright[film].sum() < FILLED * bright.sum():
        return None  # a rectangle within a round breast
    frame = np.ones(bright.shape, dtype=bool)
    frame[film] = False
    return frame


def bright_background() -> ImageError:
    """The error for a picture whose air is bright."""
    return ImageError(
        "expected a bright breast in dark air, got a bright background",
        reason="bright background",
        hint="see whether the picture or its PhotometricInterpretation is inverted",
    )


def _air(image: Array, measured: Array) -> tuple[float, float] | None:
    """The level of the air and the threshold above it; None where the breast fills the picture.

    ``measured`` says which pixels count.
    """
    step = max(1, int(np.ceil(np.sqrt(image.size / MEASURED))))
    every = slice(None, None, step)
    values = np.sort(image[every, every][measured[every, every]]).astype(np.float64)
    if not len(values):
        return None
    low, high = (float(np.percentile(values, share)) for share in (100 - ROBUST_TOP, ROBUST_TOP))
    if not high > low:
        low, high = float(values[0]), float(values[-1])
    if not high > low:
        raise ImageError("expected an image, got one constant value", reason="blank image")

    def between(start: float, stop: float) -> Array:
        return values[slice(*np.searchsorted(values, [start, stop], side="right"))]

    counts, edges = np.histogram(np.clip(values, low, high), SHADES, (low, high))
    half = SHADES // 2
    dark, bright = int(counts[:half].argmax()), half + int(counts[half:].argmax())
    middles = (edges[[dark, bright]] + edges[[dark + 1, bright + 1]]) / 2
    near = ONE_SHADE * (high - low)
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    of_all, of_border = (
        [float((np.abs(part - middle) <= near).mean()) for middle in middles]
        for part in (np.clip(values, low, high), np.clip(border, low, high))
    )
    brightest = len(between(middles[1] + near, np.inf)) <= VALLEY * of_all[1] * len(values)
    if brightest and of_all[1] > max(of_all[0], COMMON) and of_border[1] > of_border[0]:
        raise bright_background()
    level = float(middles[0])
    for _ in range(SHADES):  # towards the peak, whichever bins it was first seen in
        around = between(np.nextafter(level - near, -np.inf), level + near)
        found = float(around[len(around) // 2]) if len(around) else level
        if found == level:
            break
        level = found
    darker = level - values[: np.searchsorted(values, level, "right")]
    noise = 1.4826 * float(np.median(darker))  # of a normal distribution
    threshold = level + max(START * (high - low), NOISE * noise)
    for _ in range(SHADES):  # a higher threshold has a higher successor: it comes to a rest
        brighter = between(threshold, np.inf)
        if not len(brighter):
            return None
        way = float(brighter[len(brighter) // 2]) - level
        step = 2.0 ** np.floor(np.log2(way)) * STEP  # so that a few pixels do not move it
        found = level + max(LOWEST * way, min(NOISE * noise, MOST_NOISE * way))
        found = float(np.ceil(found / step) * step)
        if found == threshold:
            break
        threshold = found
    width = threshold - level
    below, above = between(level - width, threshold), between(threshold, threshold + width)
    if len(above) > VALLEY * len(below):
        return None
    black = min(0.0, low)
    dark = level - black <= DARK * (high - black)
    return (level, threshold) if dark or (border <= threshold).mean() >= AROUND else None


def _white_in_air(image: Array, threshold: float) -> Array:
    """Parts of the greatest value of which at least half of the outline is air."""
    white = image == image.max()
    if white.mean() < LEAST_WHITE:  # the brightest pixel of the tissue
        return np.zeros_like(white)
    parts, count = ndimage.label(white)
    y, x = np.nonzero(white)
    in_air, in_tissue = np.zeros(count + 1), np.zeros(count + 1)
    for down, across in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        beside = y + down, x + across
        within = (beside[0] >= 0) & (beside[0] < image.shape[0])
        within &= (beside[1] >= 0) & (beside[1] < image.shape[1])
        here, there = (y[within], x[within]), (beside[0][within], beside[1][within])
        outline = ~white[there]
        dark = image[there] <= threshold
        in_air += np.bincount(parts[here][outline & dark], minlength=count + 1)
        in_tissue += np.bincount(parts[here][outline & ~dark], minlength=count + 1)
    result: Array = ((in_air > 0) & (in_air >= in_tissue))[parts]
    return result


def _film_edges(image: Array, threshold: float) -> Array:
    """Lines along the picture's four sides, from the side inwards, that are bright all along."""
    marks = np.zeros(image.shape, dtype=bool)
    least = threshold + EDGE_BRIGHT * (float(image.max()) - threshold)
    for side in range(4):
        turned, marked = np.rot90(image, side), np.rot90(marks, side)
        lines = turned[: int(EDGE * len(turned))]
        bright = (lines >= least).mean(axis=1) >= EDGE_COVERED
        width = len(bright) if bright.all() else int(bright.argmin())
        marked[:width] = True
    return marks
