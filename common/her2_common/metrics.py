"""Metrics from two histograms: all that a site needs to send for any figure of the report.

A score is a probability on the public grid 0, 1/1024, ..., 1. A ``ScoreHistogram`` counts the
negatives and the positives at each of the 1,025 grid values. Histograms add: the sum over the
sites is the histogram of the pooled cases, so every metric below equals the one over pooled
rows, exactly, and no row leaves a site.

What a sample cannot answer is ``None``, never NaN: the AUC of one class, the sensitivity without
positives. Input that is no score, label, count or threshold raises ``MetricError``.

Intervals are two-sided, 95 % unless ``level`` says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from her2_common.errors import MetricError

GRID: Final = 1024
"""Steps of the public score grid; a score is k / GRID with k from 0 to GRID."""

MAX_CASES: Final = 2**31 - 1
"""The most cases of one histogram: products of two class counts then fit 64-bit integers."""

Counts = NDArray[np.int64]
"""Shape (GRID + 1,): cases at each grid value."""


@dataclass(frozen=True)
class Estimate:
    """A number and its confidence interval."""

    estimate: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """``{"estimate", "low", "high"}``, the form of every estimate in a JSON file."""
        return {"estimate": self.estimate, "low": self.low, "high": self.high}


def quantise(scores: ArrayLike) -> Counts:
    """The grid index 0 to 1024 of the highest grid value that each score reaches.

    A score is never rounded up: a threshold on the grid parts the scores and their grid values
    alike, so that calls from scores and from histograms are the same.

    Args:
        scores: probabilities, any shape.

    Raises:
        MetricError: a score is not a finite number from 0 to 1.

    >>> quantise([0.0, 0.4996, 0.5, 1.0]).tolist()
    [0, 511, 512, 1024]
    """
    values = np.asarray(scores, dtype=np.float64)
    if not np.all((values >= 0.0) & (values <= 1.0)):  # false for NaN too
        raise MetricError("scores: expected finite numbers from 0 to 1, got others")
    return np.floor(values * GRID).astype(np.int64)


def grid_index(threshold: float) -> int:
    """The grid index of a threshold.

    Raises:
        MetricError: it is not from 0 to 1, or lies between two values of the grid, where scores
            and their grid values would be called differently; the message names both.

    >>> grid_index(0.5)
    512
    """
    if not 0.0 <= threshold <= 1.0:
        raise MetricError(f"threshold: expected a number from 0 to 1, got {threshold}")
    index = int(threshold * GRID)
    if index != threshold * GRID:
        raise MetricError(
            f"threshold: expected a multiple of 1/{GRID}, the grid of scores, such as "
            f"{index / GRID!r} or {(index + 1) / GRID!r}, got {threshold!r}"
        )
    return index


@dataclass(frozen=True, eq=False)
class ScoreHistogram:
    """Counts of negatives and positives at each grid value, each of shape (1025,).

    The arrays are copied and read-only. ``+`` pools cases.

    Raises:
        MetricError: a shape, a type or a count is impossible.

    >>> a = ScoreHistogram.from_scores([0.2, 0.9], [0, 1])
    >>> (a + a).n, (a + a).m, a + ScoreHistogram.empty() == a
    (4, 2, True)
    """

    negatives: Counts
    positives: Counts

    def __post_init__(self) -> None:
        for name in ("negatives", "positives"):
            object.__setattr__(self, name, _counts(name, getattr(self, name)))
        if self.n > MAX_CASES:
            raise MetricError(f"histogram: expected at most {MAX_CASES} cases, got {self.n}")

    @classmethod
    def from_scores(cls, scores: ArrayLike, labels: ArrayLike) -> ScoreHistogram:
        """Quantise ``scores`` (n,) and count them by ``labels`` (n,), each 0 or 1."""
        bins, classes = quantise(scores), np.asarray(labels)
        if bins.ndim != 1 or classes.shape != bins.shape:
            raise MetricError(
                f"labels: expected one for each of the scores, shape {bins.shape}, "
                f"got shape {classes.shape}"
            )
        positive = classes == 1
        if not np.all(positive | (classes == 0)):
            raise MetricError("labels: expected 0 or 1, got others")
        return cls(
            np.bincount(bins[~positive], minlength=GRID + 1),
            np.bincount(bins[positive], minlength=GRID + 1),
        )

    @classmethod
    def empty(cls) -> ScoreHistogram:
        """No cases: the neutral element of ``+``."""
        return cls(np.zeros(GRID + 1, np.int64), np.zeros(GRID + 1, np.int64))

    @property
    def n(self) -> int:
        """Cases, negatives and positives together."""
        return int(self.negatives.sum() + self.positives.sum())

    @property
    def m(self) -> int:
        """Positives among the ``n`` cases."""
        return int(self.positives.sum())

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        if not isinstance(other, ScoreHistogram):
            return NotImplemented
        return ScoreHistogram(self.negatives + other.negatives, self.positives + other.positives)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ScoreHistogram):
            return NotImplemented
        return np.array_equal(self.negatives, other.negatives) and np.array_equal(
            self.positives, other.positives
        )

    def __hash__(self) -> int:
        return hash((self.negatives.tobytes(), self.positives.tobytes()))

    @property
    def both_classes(self) -> bool:
        """Whether there is at least one negative and one positive."""
        return 0 < self.m < self.n


def pool(histograms: Iterable[ScoreHistogram]) -> ScoreHistogram:
    """The histogram of all cases together; empty for none."""
    return sum(histograms, ScoreHistogram.empty())


def grid_scores() -> NDArray[np.float64]:
    """The scores of the grid, shape (1025,): 0, 1/1024, ..., 1."""
    return np.arange(GRID + 1, dtype=np.float64) / GRID


def _counts(name: str, value: Any) -> Counts:
    array = np.asarray(value)
    if array.shape != (GRID + 1,) or array.dtype.kind not in "iu":
        raise MetricError(
            f"{name}: expected {GRID + 1} whole numbers, "
            f"got shape {array.shape} of type {array.dtype}"
        )
    if array.min() < 0 or array.max() > MAX_CASES:
        raise MetricError(f"{name}: expected counts from 0 to {MAX_CASES}, got others")
    array = array.astype(np.int64)  # a copy, even of int64
    array.flags.writeable = False
    return array


# --- discrimination ------------------------------------------------------------------------------


def twice_placements(histogram: ScoreHistogram) -> tuple[Counts, Counts]:
    """Twice the negatives below each grid value and the positives above it (1025,), ties half."""
    negatives, positives = histogram.negatives, histogram.positives
    below = 2 * np.cumsum(negatives) - negatives
    above = 2 * (positives.sum() - np.cumsum(positives)) + positives
    return below, above


def auc(histogram: ScoreHistogram) -> float | None:
    """Area under the ROC curve: the chance that a positive outscores a negative, ties half.

    0.5 is chance, 1 a perfect ranking, 0 a perfectly inverted one; None without both classes.
    Exact for scores on the grid (Mann-Whitney, counted in whole numbers).

    >>> auc(ScoreHistogram.from_scores([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1]))
    0.875
    """
    if not histogram.both_classes:
        return None
    below, _ = twice_placements(histogram)
    pairs = histogram.m * (histogram.n - histogram.m)
    return int(histogram.positives @ below) / (2 * pairs)


def auc_interval(histogram: ScoreHistogram, level: float = 0.95) -> Estimate | None:
    """The AUC with DeLong's interval, clipped to [0, 1]; None without both classes.

    With a single positive or a single negative the variance does not exist and the interval is
    all of [0, 1]. Where the classes do not overlap, DeLong's variance is 0 and its interval a
    point, which says nothing; instead Wilson's interval is taken for the min(m, n - m) disjoint
    pairs of a positive and a negative that can be drawn, all ranked alike: each is an independent
    trial with the AUC as its probability. It is wider than need be, and honest.

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837-845.

    >>> auc_interval(ScoreHistogram.from_scores([0.1, 0.4, 0.4, 0.8], [0, 1, 0, 1])).high
    1.0
    """
    area = auc(histogram)
    if area is None:
        return None
    variance = _delong_variance(histogram, area)
    if variance is None:
        return Estimate(area, 0.0, 1.0)
    if area in {0.0, 1.0}:
        pairs = min(histogram.m, histogram.n - histogram.m)
        return wilson(int(area) * pairs, pairs, level)
    margin = normal_quantile(level) * float(np.sqrt(variance))
    return Estimate(area, max(0.0, area - margin), min(1.0, area + margin))


def _delong_variance(histogram: ScoreHistogram, area: float) -> float | None:
    positives, negatives = histogram.m, histogram.n - histogram.m
    if positives < 2 or negatives < 2:
        return None
    below, above = twice_placements(histogram)
    of_positives = below / (2 * negatives) - area  # V10 of DeLong, less its mean
    of_negatives = above / (2 * positives) - area  # V01 of DeLong, less its mean
    spread_positives = float(histogram.positives @ of_positives**2) / (positives - 1)
    spread_negatives = float(histogram.negatives @ of_negatives**2) / (negatives - 1)
    return spread_positives / positives + spread_negatives / negatives


def roc_curve(
    histogram: ScoreHistogram,
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """The corner points of the empirical ROC curve, from (0, 0) to (1, 1): ``(fpr, tpr)``.

    The area under these points is ``auc``. Points on a straight stretch are left out; the curve
    is not made convex. None without both classes.
    """
    if not histogram.both_classes:
        return None
    # Cases called positive as the threshold falls from above 1 down to 0: (GRID + 2,)
    false = np.concatenate(([0], np.cumsum(histogram.negatives[::-1])))
    true = np.concatenate(([0], np.cumsum(histogram.positives[::-1])))
    corners: list[tuple[int, int]] = []
    for point in zip(false.tolist(), true.tolist(), strict=True):
        if corners and point == corners[-1]:
            continue
        while len(corners) >= 2 and _straight(corners[-2], corners[-1], point):
            corners.pop()
        corners.append(point)
    fpr, tpr = np.asarray(corners, dtype=np.float64).T
    return fpr / fpr[-1], tpr / tpr[-1]


def _straight(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> bool:
    return (b[0] - a[0]) * (c[1] - b[1]) == (b[1] - a[1]) * (c[0] - b[0])


# --- decisions at a threshold --------------------------------------------------------------------


@dataclass(frozen=True)
class Confusion:
    """Cases by call and truth: true and false positives, true and false negatives."""

    tp: int
    fp: int
    tn: int
    fn: int


def youden_threshold(histogram: ScoreHistogram) -> float:
    """The grid value at which sensitivity + specificity - 1 (Youden's J) is greatest.

    A case is called positive if its score is at or above the threshold. Of several thresholds
    with the same J the lowest is taken: the one with the highest sensitivity.

    Source: Youden, Cancer 3 (1950) 32-35.

    Raises:
        MetricError: one of the classes is empty.

    >>> youden_threshold(ScoreHistogram.from_scores([0.25, 0.5, 0.75], [0, 1, 1]))
    0.2509765625
    """
    if not histogram.both_classes:
        raise MetricError(
            "threshold: expected positives and negatives, "
            f"got {histogram.m} and {histogram.n - histogram.m}"
        )
    # Called positive at each threshold k / GRID: (GRID + 1,)
    true = np.cumsum(histogram.positives[::-1])[::-1]
    false = np.cumsum(histogram.negatives[::-1])[::-1]
    # J times both class counts: whole numbers, so that ties are ties
    j = true * (histogram.n - histogram.m) - false * histogram.m
    return int(np.argmax(j)) / GRID


def confusion(histogram: ScoreHistogram, threshold: float) -> Confusion:
    """Calls at ``threshold``: positive if the score is at or above it.

    Raises:
        MetricError: the threshold is not from 0 to 1.

    >>> confusion(ScoreHistogram.from_scores([0.25, 0.5, 0.75], [0, 1, 0]), 0.5)
    Confusion(tp=1, fp=1, tn=1, fn=0)
    """
    if not 0.0 <= threshold <= 1.0:
        raise MetricError(f"threshold: expected a number from 0 to 1, got {threshold}")
    first = int(np.ceil(threshold * GRID))
    tp, fp = int(histogram.positives[first:].sum()), int(histogram.negatives[first:].sum())
    return Confusion(tp, fp, histogram.n - histogram.m - fp, histogram.m - tp)


def sensitivity(calls: Confusion, level: float = 0.95) -> Estimate | None:
    """Called positive among the positives: TP / (TP + FN)."""
    return wilson(calls.tp, calls.tp + calls.fn, level)


def specificity(calls: Confusion, level: float = 0.95) -> Estimate | None:
    """Called negative among the negatives: TN / (TN + FP)."""
    return wilson(calls.tn, calls.tn + calls.fp, level)


def ppv(calls: Confusion, level: float = 0.95) -> Estimate | None:
    """Positives among those called positive: TP / (TP + FP); depends on the prevalence."""
    return wilson(calls.tp, calls.tp + calls.fp, level)


def npv(calls: Confusion, level: float = 0.95) -> Estimate | None:
    """Negatives among those called negative: TN / (TN + FN); depends on the prevalence."""
    return wilson(calls.tn, calls.tn + calls.fn, level)


def wilson(k: int, n: int, level: float = 0.95) -> Estimate | None:
    """The proportion k / n with Wilson's score interval, without continuity correction.

    None for n = 0. Source: Wilson, JASA 22 (1927) 209-212.

    Raises:
        MetricError: k is not from 0 to n.

    >>> wilson(0, 10).low, round(wilson(5, 10).low, 4)
    (0.0, 0.2366)
    """
    if not 0 <= k <= n:
        raise MetricError(f"proportion: expected 0 <= k <= n, got k = {k}, n = {n}")
    if n == 0:
        return None
    p, square = k / n, normal_quantile(level) ** 2 / n
    centre = (p + square / 2) / (1 + square)
    margin = float(np.sqrt(p * (1 - p) * square + square**2 / 4)) / (1 + square)
    # At k = 0 and k = n one bound is exactly the end; rounding must not move it
    return Estimate(p, 0.0 if k == 0 else centre - margin, 1.0 if k == n else centre + margin)


def normal_quantile(level: float) -> float:
    """The half-width of a two-sided normal interval, in standard errors: 1.96 for 0.95."""
    if not 0.0 < level < 1.0:
        raise MetricError(f"level: expected a number between 0 and 1, got {level}")
    return float(norm.ppf(0.5 + level / 2))


# --- error ---------------------------------------------------------------------------------------


def brier(histogram: ScoreHistogram) -> float | None:
    """Mean squared difference of score and outcome; None without cases.

    0 is perfect; a constant score of 0.5 gives 0.25, whatever the prevalence.
    """
    if histogram.n == 0:
        return None
    score = grid_scores()
    return (
        float(histogram.negatives @ score**2 + histogram.positives @ (1 - score) ** 2) / histogram.n
    )
