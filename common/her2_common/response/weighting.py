"""Inverse-probability weighting: the two groups made alike in what was measured.

1. The propensity of belonging to group 1 is a logistic model over the centres (``logistic.fit``
   with the group as its outcome).
2. Each site weighs its patients by the share of their group over their probability of it
   (stabilised weights; the share is the fit's ``events / n``) and returns ``WeightSums``.
3. ``effect`` gives weighted risks and their contrasts with robust intervals.

The interval takes the weights for known, which on average makes it too wide rather than too
narrow. What was not measured is not balanced: print the E-value (``inference.e_value``) of the
risk ratio beside it.

Sources: Robins, Hernán and Brumback, Epidemiology 11 (2000) 550-560; Kish, Survey Sampling (1965)
for the effective size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from her2_common.errors import MetricError
from her2_common.metrics import Estimate, normal_quantile
from her2_common.response.inference import Integers, Vector, binary, frozen


@dataclass(frozen=True, eq=False)
class WeightSums:
    """Sums over patients by group, each (2,); ``+`` pools.

    ``counts`` (2, 2) patients by group and outcome, ``weights`` the weights, ``squares`` their
    squares; ``responder_weights`` and ``responder_squares`` the same among responders.
    """

    counts: Integers
    weights: Vector
    squares: Vector
    responder_weights: Vector
    responder_squares: Vector

    def __post_init__(self) -> None:
        for name in ("weights", "squares", "responder_weights", "responder_squares"):
            values = np.asarray(getattr(self, name), np.float64)
            if values.shape != (2,):
                raise MetricError(f"weights: expected two sums of {name}, got {values.shape}")
            object.__setattr__(self, name, frozen(values))
        if np.shape(self.counts) != (2, 2):
            raise MetricError(f"weights: expected counts (2, 2), got {np.shape(self.counts)}")
        object.__setattr__(self, "counts", frozen(np.asarray(self.counts, np.int64)))

    @classmethod
    def empty(cls) -> WeightSums:
        """No patients: the neutral element of ``+``."""
        return cls(np.zeros((2, 2), np.int64), *(np.zeros(2) for _ in range(4)))

    def __add__(self, other: WeightSums) -> WeightSums:
        if not isinstance(other, WeightSums):
            return NotImplemented
        return WeightSums(
            self.counts + other.counts,
            self.weights + other.weights,
            self.squares + other.squares,
            self.responder_weights + other.responder_weights,
            self.responder_squares + other.responder_squares,
        )

    def cells(self) -> Integers:
        """Patients by group and outcome, flat."""
        return self.counts.ravel()


def weight_sums(
    group: ArrayLike, outcome: ArrayLike, propensity: ArrayLike, share: float
) -> WeightSums:
    """Step 2 at a site: group and outcome (n,) of 0 and 1, propensity (n,) of group 1.

    ``share`` is the share of group 1 among the patients of all centres.

    Raises:
        MetricError: a propensity or the share is not between 0 and 1: such a patient could not
            have belonged to the other group, and no weight makes up for that.
    """
    exposed = binary("group", group)
    responded = binary("outcome", outcome, exposed.size)
    p = np.asarray(propensity, np.float64)
    if p.shape != exposed.shape or not np.all((p > 0) & (p < 1)) or not 0.0 < share < 1.0:
        raise MetricError(
            f"propensity: expected {exposed.size} numbers between 0 and 1 and a share between "
            "0 and 1, got others"
        )
    weights = np.where(exposed, share / p, (1 - share) / (1 - p))
    cell = 2 * exposed + responded
    # (4,) -> (group, outcome)
    counts = np.bincount(cell, minlength=4).reshape(2, 2)
    sums, squares = (
        np.bincount(cell, values, minlength=4).astype(np.float64).reshape(2, 2)
        for values in (weights, weights**2)
    )
    return WeightSums(counts, sums.sum(axis=1), squares.sum(axis=1), sums[:, 1], squares[:, 1])


@dataclass(frozen=True)
class WeightedEffect:
    """Weighted risks of both groups and their contrasts, group 1 against group 0.

    ``effective`` is how many unweighted patients each group is worth (group 0, group 1). The
    ratios are None where a risk is 0 or 1.
    """

    risk_1: Estimate
    risk_0: Estimate
    risk_difference: Estimate
    risk_ratio: Estimate | None
    odds_ratio: Estimate | None
    effective: tuple[float, float]


def effect(sums: WeightSums, level: float = 0.95) -> WeightedEffect | None:
    """Step 3; None without both groups. Intervals are normal, those of ratios on the log scale.

    Where a group is all responders, or has none, its robust variance is 0: Wilson's interval is
    taken for as many patients as its weights are worth, and that of the difference is made of both
    groups' margins (square and add). Source: Newcombe, Statistics in Medicine 17 (1998) 873-890.
    """
    if not np.all(sums.counts.sum(axis=1) > 0):
        return None
    width = normal_quantile(level)
    risk = sums.responder_weights / sums.weights  # (group,)
    # sum of w^2 (y - risk)^2 over (sum of w)^2, y being 0 or 1
    spread = sums.responder_squares * (1 - 2 * risk) + sums.squares * risk**2
    variance = np.maximum(spread, 0.0) / sums.weights**2
    effective = sums.weights**2 / sums.squares
    others, responders = sums.counts.T == 0  # (group,) each: none of them
    below, above = (
        np.where(
            others | responders,
            np.where(edge, 0.0, width**2 / (effective + width**2)),
            width * np.sqrt(variance),
        )
        for edge in (responders, others)
    )

    def proportion(group: int) -> Estimate:
        value = float(risk[group])
        low, high = value - float(below[group]), value + float(above[group])
        return Estimate(value, max(0.0, low), min(1.0, high))

    def ratio(of: Vector, derivative: Vector) -> Estimate:
        factor = float(np.exp(width * np.sqrt(variance @ derivative**2)))
        value = float(of[1] / of[0])
        return Estimate(value, value / factor, value * factor)

    difference = float(risk[1] - risk[0])
    low = difference - float(np.hypot(below[1], above[0]))
    high = difference + float(np.hypot(above[1], below[0]))
    risk_ratio = odds_ratio = None
    if not np.any(others | responders):
        risk_ratio = ratio(risk, 1 / risk)
        odds_ratio = ratio(risk / (1 - risk), 1 / (risk * (1 - risk)))
    return WeightedEffect(
        proportion(1),
        proportion(0),
        Estimate(difference, max(-1.0, low), min(1.0, high)),
        risk_ratio,
        odds_ratio,
        (float(effective[0]), float(effective[1])),
    )
