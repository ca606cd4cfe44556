"""What a histogram says of a part of the ROC curve, of one threshold, and of rounding.

Everything follows from the summed histogram, so that it is that of the pooled rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from her2_common.errors import MetricError
from her2_common.metrics import GRID, Estimate, ScoreHistogram, confusion, wilson
from her2_common.response.inference import Vector, clopper_pearson

RESAMPLES: Final = 2000
"""Bootstrap samples behind the interval of a partial AUC."""


@dataclass(frozen=True)
class PartialAuc:
    """The area under the part of the ROC curve with a false-positive rate up to ``max_fpr``.

    ``area`` is from 0 to ``max_fpr``; ``standardised`` is McClish's, 0.5 for chance and 1 for
    perfect. Both have percentile intervals.
    """

    max_fpr: float
    area: Estimate
    standardised: Estimate


def partial_auc(
    histogram: ScoreHistogram, max_fpr: float, *, level: float = 0.95, seed: int = 0
) -> PartialAuc | None:
    """The partial AUC with a bootstrap interval, positives and negatives drawn apart.

    The bootstrap needs no rows: a sample of patients is a multinomial sample of the histogram, and
    the same ``seed`` gives the same interval. None without both classes, and where all samples
    are alike, as if the classes do not overlap: there is no interval then. Sources: McClish,
    Medical Decision Making 9 (1989) 190-195; Efron and Tibshirani, An Introduction to the Bootstrap
    (1993), chapter 13.

    Raises:
        MetricError: ``max_fpr`` is not above 0 and at most 1.

    >>> part = partial_auc(ScoreHistogram.from_scores([0.1, 0.4, 0.6, 0.8], [0, 1, 0, 1]), 0.5)
    >>> part.area.estimate
    0.25
    """
    if not 0.0 < max_fpr <= 1.0:
        raise MetricError(f"false-positive rate: expected above 0, at most 1, got {max_fpr}")
    if not histogram.both_classes:
        return None
    rng = np.random.default_rng(seed)
    used = np.flatnonzero(histogram.negatives + histogram.positives)
    classes = (histogram.negatives[used], histogram.positives[used])
    area = _area(classes[0][None], classes[1][None], max_fpr)
    drawn = [rng.multinomial(part.sum(), part / part.sum(), RESAMPLES) for part in classes]
    resampled = _area(drawn[0], drawn[1], max_fpr)
    if np.ptp(resampled) <= 1e-12:
        return None
    tail = (1 - level) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail)).tolist()
    least = max_fpr**2 / 2

    def standardise(value: float) -> float:
        return 0.5 * (1 + (value - least) / (max_fpr - least))

    found = Estimate(float(area[0]), low, high)
    shown = Estimate(*(standardise(value) for value in found.as_dict().values()))
    return PartialAuc(max_fpr, found, shown)


def _area(negatives: NDArray[np.int64], positives: NDArray[np.int64], limit: float) -> Vector:
    """Area up to a false-positive rate, for many histograms (samples, bins): (samples,)."""
    start = np.zeros((len(negatives), 1))
    # The curve's points as the threshold falls: (samples, bins + 1)
    fpr = np.concatenate([start, np.cumsum(negatives[:, ::-1], axis=1)], axis=1)
    tpr = np.concatenate([start, np.cumsum(positives[:, ::-1], axis=1)], axis=1)
    fpr, tpr = fpr / fpr[:, -1:], tpr / tpr[:, -1:]
    left, width = fpr[:, :-1], np.diff(fpr, axis=1)
    inside = np.clip(limit - left, 0.0, width)
    slope = np.divide(np.diff(tpr, axis=1), width, out=np.zeros_like(width), where=width > 0)
    return np.asarray((inside * (tpr[:, :-1] + slope * inside / 2)).sum(axis=1))


# --- operating points ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Proportion:
    """k of n with Wilson's and the exact (Clopper-Pearson) interval; None for n = 0."""

    k: int
    n: int
    wilson: Estimate | None
    exact: Estimate | None

    @classmethod
    def of(cls, k: int, n: int, level: float = 0.95) -> Proportion:
        """Both intervals of k / n."""
        return cls(k, n, wilson(k, n, level), clopper_pearson(k, n, level))


@dataclass(frozen=True)
class OperatingPoint:
    """What calling positive at or above ``threshold`` does; ppv and npv depend on prevalence."""

    threshold: float
    sensitivity: Proportion
    specificity: Proportion
    ppv: Proportion
    npv: Proportion


def operating_point(
    histogram: ScoreHistogram, threshold: float, level: float = 0.95
) -> OperatingPoint:
    """Sensitivity, specificity and predictive values at one threshold.

    Raises:
        MetricError: the threshold is not from 0 to 1.
    """
    calls = confusion(histogram, threshold)
    return OperatingPoint(
        threshold,
        Proportion.of(calls.tp, calls.tp + calls.fn, level),
        Proportion.of(calls.tn, calls.tn + calls.fp, level),
        Proportion.of(calls.tp, calls.tp + calls.fp, level),
        Proportion.of(calls.tn, calls.tn + calls.fn, level),
    )


def threshold_for(histogram: ScoreHistogram, sensitivity: float) -> float | None:
    """The highest grid value at which at least this share of positives is called positive.

    To be found on training data and then frozen. None without positives.

    Raises:
        MetricError: the sensitivity is not above 0 and at most 1.
    """
    if not 0.0 < sensitivity <= 1.0:
        raise MetricError(f"sensitivity: expected above 0, at most 1, got {sensitivity}")
    if histogram.m == 0:
        return None
    reached = np.cumsum(histogram.positives[::-1])[::-1]  # called positive at k / GRID: (GRID + 1,)
    wanted = sensitivity * histogram.m * (1 - 1e-12)
    return int(np.flatnonzero(reached >= wanted)[-1]) / GRID


def auc_error_bound(histogram: ScoreHistogram) -> float | None:
    """How far the AUC of raw scores can be from that of the histogram, at most.

    Rounding keeps the order of any two scores in different bins; a pair in one bin counts half and
    is worth 0 to 1, so that the error is at most half the share of pairs that fall into one bin.
    Scores on the grid have no error. None without both classes.

    >>> auc_error_bound(ScoreHistogram.from_scores([0.2, 0.5, 0.5, 0.8], [0, 0, 1, 1]))
    0.125
    """
    if not histogram.both_classes:
        return None
    pairs = histogram.m * (histogram.n - histogram.m)
    return int(histogram.negatives @ histogram.positives) / (2 * pairs)
