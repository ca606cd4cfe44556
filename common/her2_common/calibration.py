"""Calibration from a score histogram: do the promised probabilities come true?

The reliability diagram needs counts alone; the logistic fits see the grid values in use as
groups, so that they equal the fits over pooled rows (see her2_common.metrics).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from her2_common.errors import MetricError
from her2_common.metrics import (
    GRID,
    Counts,
    Estimate,
    ScoreHistogram,
    grid_scores,
    normal_quantile,
    wilson,
)

Vector = NDArray[np.float64]
Matrix = NDArray[np.floating[Any]]

_NEWTON_STEPS: Final = 100
_NEWTON_TOLERANCE: Final = 1e-10
"""Largest change of a coefficient, in logits, at which a logistic fit has converged."""


def grid_log_odds() -> Vector:
    """The log odds of the grid's scores, shape (1025,), in nats; 0.5 has 0.

    Scores of 0 and 1 have infinite log odds and count as half a grid step inside: 7.62.
    """
    odds: Vector = logit(np.clip(grid_scores(), 0.5 / GRID, 1 - 0.5 / GRID))
    return odds


def log_loss(histogram: ScoreHistogram) -> float | None:
    """Mean cross entropy of score and outcome, in nats; None without cases.

    0 is perfect; ln 2 = 0.693 is what a constant score of 0.5 gives. Scores of 0 and 1 count as
    half a grid step inside, so that one wrong certainty costs 7.6 and not infinity.
    """
    if histogram.n == 0:
        return None
    odds = grid_log_odds()
    wrong = histogram.negatives @ np.logaddexp(0.0, odds)
    return float(wrong + histogram.positives @ np.logaddexp(0.0, -odds)) / histogram.n


@dataclass(frozen=True)
class ReliabilityBin:
    """Cases with low <= score < high (the last bin includes 1) and what became of them.

    ``mean_score`` is what the model promised, ``observed`` the share of positives (Wilson); both
    are None in an empty bin.
    """

    low: float
    high: float
    n: int
    mean_score: float | None
    observed: Estimate | None


def reliability(
    histogram: ScoreHistogram, bins: int = 10, *, min_cell: int = 0, level: float = 0.95
) -> list[ReliabilityBin]:
    """The reliability diagram: ``bins`` intervals of equal width over [0, 1].

    Neighbours are joined from the left until each bin holds ``min_cell`` cases (what is left over
    joins the last one), so that no small cell is published. With too few cases in all there is
    one bin.

    Raises:
        MetricError: bins is not from 1 to GRID.
    """
    if not 1 <= bins <= GRID:
        raise MetricError(f"bins: expected 1 to {GRID}, got {bins}")
    total = histogram.negatives + histogram.positives
    edges = -(-np.arange(bins + 1) * GRID // bins)  # first grid index of each interval
    edges[-1] = GRID + 1
    kept = [0]
    for index in range(1, bins):
        before = total[edges[kept[-1]] : edges[index]].sum()
        after = total[edges[index] :].sum()
        if before >= min_cell and after >= min_cell:
            kept.append(index)
    result = []
    for first, last in zip(kept, [*kept[1:], bins], strict=True):
        part = slice(int(edges[first]), int(edges[last]))
        n = int(total[part].sum())
        mean = float(total[part] @ grid_scores()[part]) / n if n else None
        observed = wilson(int(histogram.positives[part].sum()), n, level)
        result.append(ReliabilityBin(first / bins, last / bins, n, mean, observed))
    return result


@dataclass(frozen=True)
class Calibration:
    """How scores relate to outcomes on the scale of log odds.

    ``intercept``: calibration in the large, fitted with the slope held at 1; 0 is ideal, above 0
    the scores are too low. ``slope``: fitted with an intercept of its own; 1 is ideal, below 1
    the scores are too extreme. None where the sample has no finite answer.
    """

    intercept: Estimate | None
    slope: Estimate | None


def calibration(histogram: ScoreHistogram, level: float = 0.95) -> Calibration:
    """Calibration in the large and calibration slope, by logistic regression on the log odds.

    Scores of 0 and 1 have infinite log odds and count as half a grid step inside. Intervals are
    Wald's. Source: Cox, Biometrika 45 (1958) 562-565; Van Calster et al., BMC Medicine 17 (2019)
    230.
    """
    if not histogram.both_classes:
        return Calibration(None, None)
    used = np.flatnonzero(histogram.negatives + histogram.positives)
    positives, n = histogram.positives[used], (histogram.negatives + histogram.positives)[used]
    odds = grid_log_odds()[used]
    ones = np.ones_like(odds)
    in_the_large = grouped_logistic(ones[:, None], odds, positives, n)
    # A complete separation at any cut has no finite slope: the fit would run away
    joint = (
        None
        if separable(histogram)
        else grouped_logistic(np.stack([ones, odds], axis=1), 0 * odds, positives, n)
    )
    z = normal_quantile(level)
    return Calibration(
        None if in_the_large is None else _wald(*in_the_large, -1, z),
        None if joint is None else _wald(*joint, -1, z),
    )


def separable(histogram: ScoreHistogram) -> bool:
    """Whether one threshold splits the classes, but for ties at the threshold itself."""
    negatives = np.flatnonzero(histogram.negatives)
    positives = np.flatnonzero(histogram.positives)
    return bool(negatives[-1] <= positives[0] or positives[-1] <= negatives[0])


def grouped_logistic(
    x: NDArray[np.float64], offset: NDArray[np.float64], positives: Counts, n: Counts
) -> tuple[Vector, Matrix] | None:
    """Newton's method for grouped logistic regression: (coefficients, covariance), or None.

    ``x`` (g, c), ``offset``, ``positives`` and ``n`` (g,) for g grid values in use.
    """

    def likelihood(at: NDArray[np.float64]) -> float:
        eta = x @ at + offset
        return float(positives @ eta - n @ np.logaddexp(0.0, eta))

    beta = np.zeros(x.shape[1])
    best = likelihood(beta)
    for _ in range(_NEWTON_STEPS):
        p = expit(x @ beta + offset)
        information = x.T @ (x * (n * p * (1 - p))[:, None])
        try:
            covariance = np.linalg.inv(information)
        except np.linalg.LinAlgError:
            return None
        step = covariance @ (x.T @ (positives - n * p))
        # The likelihood is concave: halving an overshooting step always finds a better point.
        # The slack is for rounding, which near the optimum is larger than the gain
        floor = best - 1e-12 * abs(best)
        while (value := likelihood(beta + step)) < floor and np.abs(step).max() > _NEWTON_TOLERANCE:
            step = step / 2
        beta, best = beta + step, value
        if np.abs(step).max() <= _NEWTON_TOLERANCE:
            return beta, covariance
    return None


def _wald(beta: Vector, covariance: Matrix, index: int, z: float) -> Estimate:
    centre = float(beta[index])
    margin = z * float(np.sqrt(covariance[index, index]))
    return Estimate(centre, centre - margin, centre + margin)
