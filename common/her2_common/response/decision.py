"""Is a decision by the score better than treating all or none? And does it keep its promises?

Both need the histogram alone. The score must be a probability of the outcome: a score that
predicts HER2 is no probability of pCR, and its calibration and net benefit for pCR say only how it
would do if it were taken for one.

Calibration intercept, slope and the reliability diagram are in ``her2_common.calibration``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from her2_common.calibration import reliability
from her2_common.errors import MetricError
from her2_common.metrics import (
    Estimate,
    ScoreHistogram,
    brier,
    confusion,
    grid_scores,
    normal_quantile,
)
from her2_common.response.inference import Vector

THRESHOLDS: Final = tuple(k / 20 for k in range(2, 15))
"""Probabilities at which one would treat: 0.1, 0.15, ..., 0.7."""

_ROUNDING: Final = 1e-14
"""Of a squared error: a spread as small as this is 0."""


@dataclass(frozen=True)
class NetBenefit:
    """Net true positives a patient at one threshold probability.

    ``model`` treats at or above the threshold, ``treat_all`` everybody; treating nobody is worth
    0. ``over_all`` is what the model gains over treating all; over none it gains ``model``.
    """

    threshold: float
    model: Estimate
    treat_all: Estimate
    over_all: Estimate


def net_benefit(
    histogram: ScoreHistogram, thresholds: Sequence[float] = THRESHOLDS, level: float = 0.95
) -> list[NetBenefit]:
    """The decision curve with normal intervals; empty for fewer than two patients.

    A true positive is worth 1, a false positive costs the odds of the threshold. Net benefit is a
    mean over patients, and so are its differences, hence the intervals. Source: Vickers and Elkin,
    Medical Decision Making 26 (2006) 565-574.

    Raises:
        MetricError: a threshold is not between 0 and 1.

    >>> curve = net_benefit(ScoreHistogram.from_scores([0.25, 0.5, 0.75], [0, 1, 1]), [0.5])
    >>> round(curve[0].model.estimate, 4), round(curve[0].treat_all.estimate, 4)
    (0.6667, 0.3333)
    """
    if wrong := [value for value in thresholds if not 0.0 < value < 1.0]:
        raise MetricError(f"thresholds: expected numbers between 0 and 1, got {wrong}")
    if histogram.n < 2:
        return []
    result = []
    for threshold in thresholds:
        calls, odds = confusion(histogram, threshold), threshold / (1 - threshold)
        # Patients by what the decision is worth for one of them
        model = _mean({1.0: calls.tp, -odds: calls.fp}, histogram.n, level)
        everybody = {1.0: histogram.m, -odds: histogram.n - histogram.m}
        treat_all = _mean(everybody, histogram.n, level)
        over_all = _mean({-1.0: calls.fn, odds: calls.tn}, histogram.n, level)
        result.append(NetBenefit(threshold, model, treat_all, over_all))
    return result


def _mean(values: dict[float, int], n: int, level: float) -> Estimate:
    """The mean of n values, all 0 but those counted, with a normal interval."""
    mean = sum(value * count for value, count in values.items()) / n
    if n in (*values.values(), n - sum(values.values())):
        return _of_alike(mean, min(0.0, *values), max(0.0, *values), n, level)
    squares = sum(value**2 * count for value, count in values.items())
    error = float(np.sqrt(max(0.0, squares - n * mean**2) / (n - 1) / n))
    margin = normal_quantile(level) * error
    return Estimate(mean, mean - margin, mean + margin)


def _of_alike(mean: float, low: float, high: float, n: int, level: float) -> Estimate:
    """The mean of n values that are all alike, of a range from low to high.

    Their variance is 0 and a normal interval a point. As many others as Wilson's interval allows
    for none of n may have the values at the ends of the range.
    """
    square = normal_quantile(level) ** 2
    share = square / (n + square)
    return Estimate(mean, mean - share * (mean - low), mean + share * (high - mean))


# --- promises ------------------------------------------------------------------------------------


def calibration_error(
    histogram: ScoreHistogram, bins: int = 10, *, min_cell: int = 0
) -> float | None:
    """Expected calibration error: the mean gap between promise and outcome in bins of equal width.

    0 is perfect; small samples raise it by chance. ``min_cell`` joins bins as the reliability
    diagram does. None without patients. Source: Naeini, Cooper and Hauskrecht, AAAI (2015)
    2901-2907.

    >>> calibration_error(ScoreHistogram.from_scores([0.25, 0.25, 0.75, 0.75], [0, 1, 1, 1]))
    0.25
    """
    if histogram.n == 0:
        return None
    gap = 0.0
    for part in reliability(histogram, bins, min_cell=min_cell):
        if part.mean_score is not None and part.observed is not None:
            gap += part.n * abs(part.mean_score - part.observed.estimate)
    return gap / histogram.n


def brier_interval(histogram: ScoreHistogram, level: float = 0.95) -> Estimate | None:
    """The Brier score with a normal interval, clipped to [0, 1]; None for fewer than 2 patients."""
    mean = brier(histogram)
    if mean is None or histogram.n < 2:
        return None
    error: Vector = grid_scores() ** 2
    missed: Vector = (1 - grid_scores()) ** 2
    spread = histogram.negatives @ (error - mean) ** 2 + histogram.positives @ (missed - mean) ** 2
    if spread <= _ROUNDING * histogram.n:
        return _of_alike(mean, 0.0, 1.0, histogram.n, level)
    margin = normal_quantile(level) * float(np.sqrt(spread / (histogram.n - 1) / histogram.n))
    return Estimate(mean, max(0.0, mean - margin), min(1.0, mean + margin))
