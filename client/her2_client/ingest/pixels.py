"""Resampling, thresholds and intensity scaling, on plain arrays: no DICOM, no files.

Every function is elementwise or a running sum, so that the bits of a result do not depend on the
number of threads or workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from her2_common.cases import Box
from her2_common.errors import ImageError

Array = npt.NDArray[Any]
Window = tuple[float, float]
"""Start and end along one axis in source pixels; may reach beyond the image."""
Rectangle = tuple[int, int, int, int]
"""x0, y0, x1, y1 in source pixels, end-exclusive."""
Place = list[list[float]]
"""Where a box lies in a standardised image: one [start, end] an axis, as shares of its side."""
PLACE_DIGITS: Final = 4

CLIP: Final = 5.0
"""Standardised values are kept within [-5, 5]: a metal clip must not drown a lesion."""

LUMA: Final = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in luma (ITU-R BT.601)."""

COLOURED: Final = 0.2
HISTOGRAM_BINS: Final = 128
ROBUST_TOP: Final = 99.5
"""Percentile at which a histogram ends: a few bright pixels must not stretch its bins."""


def luma(colour: Array) -> Array:
    """(rows, columns, 3) RGB -> (rows, columns) float32 luma, in the units of ``colour``.

    Three products and two sums, no matrix product: its bits could depend on the threads.
    """
    red, green, blue = (colour[..., k].astype(np.float32) * np.float32(LUMA[k]) for k in range(3))
    grey: Array = red + green + blue
    return grey


def grey(shown: Array) -> Array:
    """(rows, columns) float32 of a picture as it is shown, grey or RGB."""
    return luma(shown) if shown.ndim == 3 else shown.astype(np.float32, copy=False)


def saturation(shown: Array) -> Array | None:
    """(rows, columns) float32, greatest less least of red, green and blue; None without colour.

    A picture counts as coloured if that reaches a fifth of its brightest value: lossy compression
    gives grey pictures a tinge (a design value).
    """
    if shown.ndim != 3:
        return None
    spread = shown.max(axis=2).astype(np.float32) - shown.min(axis=2)
    return spread if spread.max() > COLOURED * float(shown.max()) else None


def coloured_pixels(shown: Array) -> Array:
    """Which pixels are coloured, as ``saturation`` tells colour: (rows, columns) bool.

    >>> coloured_pixels(np.array([[[9, 9, 9], [200, 0, 0]]], np.uint8)).tolist()
    [[False, True]]
    """
    spread = saturation(shown)
    if spread is None:
        return np.zeros(shown.shape[:2], dtype=bool)
    coloured: Array = spread > COLOURED * float(shown.max())
    return coloured


def resample(image: Array, windows: Sequence[Window], shape: Sequence[int]) -> tuple[Array, Array]:
    """The part of ``image`` inside ``windows`` on a grid of ``shape``: (values, inside).

    Along an axis that shrinks each new pixel is the exact mean of the source interval it covers
    (area resampling, its own anti-aliasing); along one that grows, linear interpolation. ``inside``
    is false where less than half of a new pixel lies on the image; values there are 0.

    >>> resample(np.array([1.0, 3.0, 5.0, 7.0]), [(0, 4)], [2])[0].tolist()
    [2.0, 6.0]
    """
    inside = np.ones((), dtype=bool)
    for axis, (window, size) in enumerate(zip(windows, shape, strict=True)):
        image, covered = _resample_axis(image, axis, window, size)
        inside = inside[..., np.newaxis] & covered
    return np.where(inside, image, 0.0), inside


def _resample_axis(image: Array, axis: int, window: Window, size: int) -> tuple[Array, Array]:
    length = image.shape[axis]
    start, step = window[0], (window[1] - window[0]) / size
    along = [1] * image.ndim
    along[axis] = size

    if step < 1:
        centres = start + step * (np.arange(size) + 0.5) - 0.5
        covered = (centres >= -0.5) & (centres <= length - 0.5)
        centres = np.clip(centres, 0, length - 1)
        below = np.minimum(centres.astype(np.int64), max(length - 2, 0))
        above = np.minimum(below + 1, length - 1)
        share = (centres - below).astype(np.float32).reshape(along)
        low, high = image.take(below, axis), image.take(above, axis)
        return low * (1 - share) + high * share, covered

    edges = np.clip(start + step * np.arange(size + 1), 0, length)
    whole = edges.astype(np.int64)
    along[axis] = size + 1
    share = (edges - whole).reshape(along)
    # What an interval covers: its whole pixels, less the share of the first that lies before it,
    # plus the share of the pixel after the last. Sums of slices are far faster than running sums.
    rest = share * image.take(np.minimum(whole, length - 1), axis)
    front = np.moveaxis(image, axis, 0)
    sums = [front[a:b].sum(axis=0, dtype=np.float64) for a, b in pairwise(whole)]
    integral = np.stack(sums, axis=axis) + np.diff(rest, axis=axis)
    width = np.diff(edges)
    along[axis] = size
    means = integral / np.maximum(width, 1e-9).reshape(along)
    return means, width >= 0.5 * step


def square(low: Sequence[float], high: Sequence[float], factor: float = 1.0) -> list[Window]:
    """The square (cube) around a box, one window an axis: its longest side times ``factor``.

    >>> square([10, 20], [20, 24], 2.0)
    [(5.0, 25.0), (12.0, 32.0)]
    """
    half = factor * max(b - a for a, b in zip(low, high, strict=True)) / 2
    return [((a + b) / 2 - half, (a + b) / 2 + half) for a, b in zip(low, high, strict=True)]


def place_in(windows: Sequence[Window], low: Sequence[float], high: Sequence[float]) -> Place:
    """Where a box lies within ``windows``: one [start, end] an axis, as shares of its length.

    >>> place_in([(5.0, 25.0), (12.0, 32.0)], [10, 20], [20, 24])
    [[0.25, 0.75], [0.4, 0.6]]
    """
    return [
        [round((end - start) / (stop - start), PLACE_DIGITS) for end in (a, b)]
        for (start, stop), a, b in zip(windows, low, high, strict=True)
    ]


def check_box(box: Box, shape: Sequence[int]) -> None:
    """Refuse a box that reaches beyond an image of ``shape``, ([slices,] rows, columns).

    Raises:
        ImageError: the box lies outside the image (reason "box outside").
    """
    corner = [box.x1, box.y1, box.z1 or 0][: len(shape)]
    sizes = list(reversed(shape))
    if any(end > size for end, size in zip(corner, sizes, strict=True)):
        raise ImageError(
            f"expected a box within {' x '.join(map(str, sizes))}, "
            f"got one up to {' x '.join(map(str, corner))}",
            reason="box outside",
        )


def overlap(
    kept: tuple[int, int, int, int], region: tuple[int, int, int, int]
) -> tuple[int, int, int, int]:
    """The part of ``kept`` that lies in ``region``, both (x0, y0, x1, y1).

    Raises:
        ImageError: there is none (reason "nothing kept").
    """
    x0, y0 = max(region[0], kept[0]), max(region[1], kept[1])
    x1, y1 = min(region[2], kept[2]), min(region[3], kept[3])
    if x0 >= x1 or y0 >= y1:
        raise ImageError(
            "expected a kept rectangle on the picture, got one beside it", reason="nothing kept"
        )
    return x0, y0, x1, y1


def lowest_threshold(values: Array, classes: int) -> float:
    """The lowest of the thresholds that part ``values`` best into 2 or 3 classes.

    Source: Otsu, IEEE Trans. SMC 9 (1979): maximal between-class variance. With three classes
    the lowest one parts the darkest class, such as air, even where bright tissue is prominent;
    where that has no shade of its own, it parts the darker tissue from the brighter.

    Raises:
        ImageError: all values are the same (reason "blank image").
    """
    low, high = float(values.min()), float(np.percentile(values, ROBUST_TOP))
    if not high > low:
        high = float(values.max())
    if not high > low:
        raise ImageError("expected an image, got one constant value", reason="blank image")
    counts, edges = np.histogram(np.minimum(values, high), HISTOGRAM_BINS, (low, high))
    centres = (edges[:-1] + edges[1:]) / 2 - low
    weight = np.concatenate([[0.0], np.cumsum(counts)])
    moment = np.concatenate([[0.0], np.cumsum(counts * centres)])

    def spread(start: Array, stop: Array) -> Array:
        share = np.maximum(weight[stop] - weight[start], 1e-9)
        result: Array = (moment[stop] - moment[start]) ** 2 / share
        return result

    end = np.array(HISTOGRAM_BINS)
    first = np.arange(1, HISTOGRAM_BINS)
    if classes == 2:
        i, score = first, spread(np.array(0), first) + spread(first, end)
    else:
        i, j = (first[k] for k in np.triu_indices(len(first), k=1))
        score = spread(np.array(0), i) + spread(i, j) + spread(j, end)
    # Empty bins between two classes leave many thresholds equally good: take their middle.
    best = i[score >= score.max() * (1 - 1e-12)]
    return float(edges[best].mean())


def standardise(values: Array, over: Array) -> Array:
    """Zero mean and unit spread over ``values[over]``, clipped to ±5.

    Raises:
        ImageError: nothing to measure, or no spread (reason "blank image").
    """
    sample = values[over].astype(np.float64)
    spread = float(sample.std()) if sample.size else 0.0
    if not spread > 1e-6 * max(1.0, float(np.abs(sample).max(initial=0.0))):
        raise ImageError("expected an image, got one constant value", reason="blank image")
    result: Array = np.clip((values - sample.mean()) / spread, -CLIP, CLIP)
    return result
