"""Temperature: one number, fitted on validation, that makes the fused score a probability.

    log odds of the released model = slope * log odds of the trained one (+ intercept)

1. The sites send the histogram of the fused score on validation, which they send anyway.
2. ``fit_temperature`` finds the slope, 1 / temperature, by maximum likelihood: a logistic
   regression without intercept on the log odds. A run whose loss was told another prevalence than
   the cases have (``class_balance``) gets an intercept too.
3. ``fold`` writes both into the last linear layer. The released model then is the calibrated one:
   nothing has to be done, or can be forgotten, when it is used.

The caller's duty: fit on validation alone, before the threshold is frozen.

A slope above 0 keeps the order of the fused scores, so that the AUC stays. The head is shared, so
the scores of single modalities are divided by the same temperature; it is not fitted to them.

Sources: Guo et al., On Calibration of Modern Neural Networks, ICML 2017 (temperature); Platt,
Advances in Large Margin Classifiers, 1999, and Cox, Biometrika 45 (1958) 562-565 (slope and
intercept).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit

from her2_common.calibration import grid_log_odds, grouped_logistic, separable
from her2_common.metrics import GRID, ScoreHistogram, auc
from her2_common.model import Preset

SLOPES: Final = (0.1, 10.0)
"""A slope outside is no calibration but a sign that something else is wrong (a design choice)."""

_PEAK: Final = 1.2784645427610738
"""Where m * expit(-m) is greatest: the solution of m * expit(m) = 1."""


@dataclass(frozen=True)
class LogitMap:
    """What is done to the log odds; 1 and 0 leave them as they are.

    ``reason`` says why nothing is done, None where the map was fitted.
    """

    slope: float = 1.0
    intercept: float = 0.0
    reason: str | None = None

    @property
    def temperature(self) -> float:
        """What the log odds are divided by: above 1, scores were too extreme."""
        return 1 / self.slope


def fit_temperature(
    validation: ScoreHistogram, *, intercept: bool = False, min_cell: int = 10
) -> LogitMap:
    """The map under which the scores of ``validation`` are likeliest, or none with its reason.

    It equals the fit over pooled rows of grid scores; ``slope_bounds`` says how far the grid can
    have moved it from the fit over the scores before rounding.

    Args:
        validation: the fused scores of the validation cases of all sites.
        intercept: fit an intercept beside the slope.
        min_cell: fewest positives, and fewest negatives, of a fit.

    >>> fit_temperature(ScoreHistogram.from_scores([0.2, 0.7], [0, 1])).reason
    'a class has fewer than 10 validation cases'
    """
    few, most = sorted((validation.m, validation.n - validation.m))
    area = auc(validation)
    if few < min_cell or not most or area is None:
        return LogitMap(reason=f"a class has fewer than {max(min_cell, 1)} validation cases")
    if area <= 0.5:
        return LogitMap(reason="the AUC on validation is not above 0.5")
    odds, cases = grid_log_odds(), validation.negatives + validation.positives
    wrong_side = validation.negatives[odds > 0].sum() + validation.positives[odds < 0].sum()
    if separable(validation) if intercept else not wrong_side:
        return LogitMap(reason="the classes do not overlap, so no slope is the best")
    used = np.flatnonzero(cases)
    columns = [np.ones(used.size), odds[used]] if intercept else [odds[used]]
    fit = grouped_logistic(
        np.stack(columns, axis=1), np.zeros(used.size), validation.positives[used], cases[used]
    )
    if fit is None:
        return LogitMap(reason="the fit does not converge")
    slope, constant = float(fit[0][-1]), float(fit[0][0]) if intercept else 0.0
    low, high = SLOPES
    if not low <= slope <= high:
        return LogitMap(reason=f"the slope is not between {low:g} and {high:g}")
    return LogitMap(slope, constant)


def slope_bounds(validation: ScoreHistogram) -> tuple[float, float]:
    """Between which slopes the fit without intercept lies for the scores before rounding.

    A case at grid value k/1024 had a score from there to below the next value. Let m be its log
    odds, with the sign changed for a negative. The slope solves sum(m * expit(-slope * m)) = 0, and
    the sum falls as the slope grows; with the least (greatest) value that each case's term can
    take, its solution is the lower (upper) bound. Where the bound is not between 0.001 and 1000 it
    is 0 or infinity: a positive at score 0, say, may be wrong by any amount.
    """
    edges = logit(np.arange(GRID + 1) / GRID)  # (GRID + 1,)
    least_odds, most_odds = edges.copy(), np.append(edges[1:], np.inf)
    least_odds[-1] = logit(1 - 0.5 / GRID)  # what the fit takes a score of 1 for
    cases = np.concatenate([validation.positives, validation.negatives])
    used = np.flatnonzero(cases)
    low, high = (
        np.concatenate(parts)[used]
        for parts in ((least_odds, -most_odds), (most_odds, -least_odds))
    )
    weights = cases[used].astype(np.float64)

    def term(margin: NDArray[np.float64], slope: float) -> NDArray[np.float64]:
        finite = np.where(margin == np.inf, 0.0, margin)  # at infinity the term is 0
        value: NDArray[np.float64] = finite * expit(-slope * finite)
        return value

    def least(slope: float) -> float:
        return float(weights @ np.minimum(term(low, slope), term(high, slope)))

    def greatest(slope: float) -> float:
        top = np.maximum(term(low, slope), term(high, slope))
        inside = (slope * low < _PEAK) & (slope * high > _PEAK)
        top[inside] = _PEAK * expit(-_PEAK) / slope
        return float(weights @ top)

    return _root(least, (0.0, 1e3)), _root(greatest, (1e-3, np.inf))


def _root(falling: Callable[[float], float], otherwise: tuple[float, float]) -> float:
    """Where a falling function of the slope is 0; ``otherwise`` if that is outside 1e-3 to 1e3."""
    if not falling(1e-3) > 0:
        return otherwise[0]
    if not falling(1e3) < 0:
        return otherwise[1]
    return float(brentq(falling, 1e-3, 1e3, xtol=1e-12))


def fold(
    groups: Mapping[str, NDArray[np.float32]], plan: Preset, fit: LogitMap
) -> dict[str, NDArray[np.float32]]:
    """The groups whose model's log odds are ``fit`` of those of ``groups``; nothing else changes.

    Groups are flat vectors in parameter order: ``head`` is a weight (levels, d) and a bias
    (levels,), ``clinical`` a weight (levels, 5). Only outputs 0 and 1 are the log odds: a third,
    low against zero, stays.
    """
    head = groups["head"].astype(np.float64)  # copies
    clinical = groups["clinical"].astype(np.float64)
    weight = head[: plan.levels * plan.features].reshape(plan.levels, plan.features)  # views
    bias = head[plan.levels * plan.features :]
    for part in (weight, bias, clinical.reshape(plan.levels, -1)):
        part[:2] *= fit.slope
    bias[1] += fit.intercept
    return {
        **groups,
        "head": head.astype(np.float32),
        "clinical": clinical.astype(np.float32),
    }
