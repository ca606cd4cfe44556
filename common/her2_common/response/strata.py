"""2 x 2 tables by stratum: odds ratio, risk difference and ratio, CMH, homogeneity.

A stratum is usually a centre. Its table counts patients by group (1: the model calls positive) and
outcome (1: pCR):

                 outcome 1   outcome 0
    group 1          a           b        n1
    group 0          c           d        n0
                    m1          m0         n

Strata without both groups or without both outcomes tell nothing about the odds ratio and change
none of its numbers. What no sample can answer is None: an odds ratio without one informative pair
of patients, say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from her2_common.errors import MetricError
from her2_common.metrics import MAX_CASES, Estimate, normal_quantile
from her2_common.response.inference import (
    HypothesisTest,
    Integers,
    Vector,
    binary,
    chi_square,
    frozen,
)

_NEAR: Final = 1e-9
"""Of a risk difference: closer to the estimate its interval is not sought."""


@dataclass(frozen=True, eq=False)
class Strata:
    """Named 2 x 2 tables: ``counts`` (strata, group, outcome), whole numbers.

    ``names`` are sorted and unique. ``+`` adds the tables of equal names and keeps the others, so
    that the tables of twelve centres are one sum.

    Raises:
        MetricError: unsorted or doubled names, another shape, negative or fractional counts.

    >>> a = Strata.from_rows("A", group=[1, 1, 0], outcome=[1, 0, 0])
    >>> (a + Strata.from_rows("B", [], [])).names, (a + a).n
    (('A', 'B'), 6)
    """

    names: tuple[str, ...]
    counts: Integers

    def __post_init__(self) -> None:
        counts = np.asarray(self.counts)
        if list(self.names) != sorted(set(self.names)):
            raise MetricError(f"strata: expected sorted, unique names, got {self.names}")
        if counts.shape != (len(self.names), 2, 2) or counts.dtype.kind not in "iu":
            raise MetricError(
                f"strata: expected whole numbers of shape ({len(self.names)}, 2, 2), "
                f"got shape {counts.shape} of type {counts.dtype}"
            )
        if counts.size and (counts.min() < 0 or int(counts.sum(dtype=object)) > MAX_CASES):
            raise MetricError(f"strata: expected counts from 0 to {MAX_CASES}, got others")
        object.__setattr__(self, "counts", frozen(counts.astype(np.int64)))

    @classmethod
    def from_rows(cls, name: str, group: ArrayLike, outcome: ArrayLike) -> Strata:
        """One stratum, counted from ``group`` and ``outcome``, each (n,) of 0 and 1."""
        exposed = binary("group", group)
        responded = binary("outcome", outcome, exposed.size)
        counts = np.bincount(2 * exposed + responded, minlength=4)
        return cls((name,), counts.reshape(1, 2, 2))  # (4,) -> (1, group, outcome)

    @classmethod
    def from_tables(cls, tables: Mapping[str, Sequence[Sequence[int]]]) -> Strata:
        """From ``{name: [[a, b], [c, d]]}``, the way a book prints a table."""
        names = tuple(sorted(tables))
        counts = np.array([tables[name] for name in names], dtype=np.int64).reshape(-1, 2, 2)
        return cls(names, counts[:, ::-1, ::-1])  # [[a, b], [c, d]] -> [[d, c], [b, a]]

    @classmethod
    def empty(cls) -> Strata:
        """No stratum: the neutral element of ``+``."""
        return cls((), np.zeros((0, 2, 2), np.int64))

    def __add__(self, other: Strata) -> Strata:
        if not isinstance(other, Strata):
            return NotImplemented
        names = tuple(sorted({*self.names, *other.names}))
        place = {name: index for index, name in enumerate(names)}
        counts = np.zeros((len(names), 2, 2), np.int64)
        for part in (self, other):
            counts[[place[name] for name in part.names]] += part.counts
        return Strata(names, counts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Strata):
            return NotImplemented
        return self.names == other.names and np.array_equal(self.counts, other.counts)

    def __hash__(self) -> int:
        return hash((self.names, self.counts.tobytes()))

    @property
    def n(self) -> int:
        """Patients in all strata."""
        return int(self.counts.sum())

    @property
    def responders(self) -> int:
        """Patients with outcome 1 in all strata."""
        return int(self.counts[:, :, 1].sum())

    def cells(self) -> Integers:
        """Every cell of every table, flat."""
        return self.counts.ravel()

    def without(self, name: str) -> Strata:
        """All strata but one.

        Raises:
            MetricError: there is no such stratum.
        """
        if name not in self.names:
            raise MetricError(f"strata: expected one of {', '.join(self.names)}, got {name!r}")
        keep = [index for index, other in enumerate(self.names) if other != name]
        return Strata(tuple(self.names[index] for index in keep), self.counts[keep])

    def informative(self) -> Strata:
        """The strata that have both groups and both outcomes."""
        keep = np.flatnonzero(
            (self.counts.sum(axis=1) > 0).all(axis=1) & (self.counts.sum(axis=2) > 0).all(axis=1)
        )
        return Strata(tuple(self.names[index] for index in keep), self.counts[keep])


@dataclass(frozen=True)
class _Cells:
    """The textbook's letters, each (strata,) of float64."""

    a: Vector
    b: Vector
    c: Vector
    d: Vector

    @classmethod
    def of(cls, strata: Strata) -> _Cells:
        counts = strata.counts.astype(np.float64)
        return cls(counts[:, 1, 1], counts[:, 1, 0], counts[:, 0, 1], counts[:, 0, 0])

    @property
    def n1(self) -> Vector:
        return self.a + self.b

    @property
    def n0(self) -> Vector:
        return self.c + self.d

    @property
    def m1(self) -> Vector:
        return self.a + self.c

    @property
    def n(self) -> Vector:
        return self.a + self.b + self.c + self.d


def _with_both_groups(strata: Strata) -> _Cells:
    keep = np.flatnonzero((strata.counts.sum(axis=2) > 0).all(axis=1))
    return _Cells.of(Strata(tuple(strata.names[index] for index in keep), strata.counts[keep]))


# --- estimates -----------------------------------------------------------------------------------


def odds_ratio(strata: Strata, level: float = 0.95) -> Estimate | None:
    """The Mantel-Haenszel odds ratio with the interval of Robins, Breslow and Greenland.

    1 is no effect. None where it is 0, infinite or undefined: ``exact.odds_ratio`` answers there.
    Sources: Mantel and Haenszel, JNCI 22 (1959) 719-748; Robins, Breslow and Greenland,
    Biometrics 42 (1986) 311-323.

    >>> round(odds_ratio(Strata.from_tables({"A": [[20, 10], [10, 20]]})).estimate, 12)
    4.0
    """
    x = _Cells.of(strata.informative())
    r, s = x.a * x.d / x.n, x.b * x.c / x.n
    if r.sum() == 0 or s.sum() == 0:
        return None
    p, q = (x.a + x.d) / x.n, (x.b + x.c) / x.n
    variance = (
        (p @ r) / (2 * r.sum() ** 2)
        + (p @ s + q @ r) / (2 * r.sum() * s.sum())
        + (q @ s) / (2 * s.sum() ** 2)
    )
    return _on_log_scale(float(r.sum() / s.sum()), float(variance), level)


def risk_ratio(strata: Strata, level: float = 0.95) -> Estimate | None:
    """The Mantel-Haenszel risk ratio with the interval of Greenland and Robins.

    1 is no effect. None where it is 0, infinite or undefined. Source: Greenland and Robins,
    Biometrics 41 (1985) 55-68.
    """
    x = _with_both_groups(strata)
    r, s = x.a * x.n0 / x.n, x.c * x.n1 / x.n
    if r.sum() == 0 or s.sum() == 0:
        return None
    p = (x.m1 * x.n1 * x.n0 - x.a * x.c * x.n) / x.n**2
    return _on_log_scale(float(r.sum() / s.sum()), float(p.sum() / (r.sum() * s.sum())), level)


def risk_difference(strata: Strata, level: float = 0.95) -> Estimate | None:
    """The Mantel-Haenszel risk difference, group 1 less group 0, with a score interval.

    0 is no effect. The interval of Miettinen and Nurminen, stratified, holds every difference that
    its score test does not reject: the variance is that under the difference in question, not the
    observed one, so that it also exists where all patients of a group are alike. Over centres of
    eight patients it covers 93 to 97 % where Sato's covers 85 to 93 %
    (tests/benchmarks/response_simulation.py). ``risk_score`` is a sum over strata: sites that are
    sent a difference can answer with their part of it.

    None without a stratum that has both groups. Sources: Greenland and Robins, Biometrics 41 (1985)
    55-68, for the weights; Miettinen and Nurminen, Statistics in Medicine 4 (1985) 213-226, for the
    test and the interval.

    >>> gap = risk_difference(Strata.from_tables({"A": [[20, 10], [10, 20]]}))
    >>> round(gap.estimate, 9), round(gap.low, 4), round(gap.high, 4)
    (0.333333333, 0.079, 0.5469)
    """
    x = _with_both_groups(strata)
    if not x.n.size:
        return None
    weight = x.n1 * x.n0 / x.n
    difference = float(((x.a * x.n0 - x.c * x.n1) / x.n).sum() / weight.sum())
    width = normal_quantile(level)

    def excess(gap: float, sign: int) -> float:
        distance, variance = _risk_score(x, gap)
        return sign * distance - width * float(np.sqrt(variance))

    def bound(sign: int) -> float:
        """Where the test just does not reject, below (1) or above (-1) the difference."""
        end, start = -float(sign), difference - sign * _NEAR
        # At the end no outcome is left to chance: the variance is 0
        if excess(end, sign) <= 0 or sign * (start - end) <= 0:
            return end
        if excess(start, sign) >= 0:
            return start
        return float(brentq(excess, end, start, args=(sign,), xtol=1e-11))

    return Estimate(difference, bound(1), bound(-1))


def risk_score(strata: Strata, gap: float) -> tuple[float, float]:
    """Miettinen and Nurminen's score at a risk difference: ``(distance, variance)``, two sums.

    The sum over strata of the weighted observed difference less ``gap``, and its variance if
    ``gap`` is the true difference everywhere; 0 without a stratum that has both groups.
    """
    return _risk_score(_with_both_groups(strata), gap)


def _risk_score(x: _Cells, gap: float) -> tuple[float, float]:
    weight = x.n1 * x.n0 / x.n
    p1, p0 = _fitted_risks(x, gap)
    variance = (p1 * (1 - p1) / x.n1 + p0 * (1 - p0) / x.n0) * x.n / (x.n - 1)
    distance = weight @ (x.a / x.n1 - x.c / x.n0 - gap)
    return float(distance), float(weight**2 @ variance)


def _fitted_risks(x: _Cells, gap: float) -> tuple[Vector, Vector]:
    """Risks of groups 1 and 0, (strata,) each, of the largest likelihood with this difference.

    That of group 0 is the middle root of the cubic of Miettinen and Nurminen (1985), appendix I.
    """
    c3 = x.n
    c2 = (x.n1 + 2 * x.n0) * gap - x.n - x.m1
    c1 = (x.n0 * gap - x.n - 2 * x.c) * gap + x.m1
    c0 = x.c * gap * (1 - gap)
    shift = c2 / (3 * c3)
    q = shift**3 - c1 * c2 / (6 * c3**2) + c0 / (2 * c3)
    p = np.where(q < 0, -1.0, 1.0) * np.sqrt(np.maximum(shift**2 - c1 / (3 * c3), 0.0))
    cosine = np.divide(q, p**3, out=np.ones_like(q), where=p != 0)
    angle = (np.pi + np.arccos(np.clip(cosine, -1.0, 1.0))) / 3
    # Rounding aside inside both groups' [0, 1]
    p0 = np.clip(2 * p * np.cos(angle) - shift, max(0.0, -gap), min(1.0, 1.0 - gap))
    return p0 + gap, p0


def _on_log_scale(ratio: float, variance: float, level: float) -> Estimate:
    factor = float(np.exp(normal_quantile(level) * np.sqrt(variance)))
    return Estimate(ratio, ratio / factor, ratio * factor)


# --- tests ---------------------------------------------------------------------------------------


def cmh(strata: Strata, *, corrected: bool = False) -> HypothesisTest | None:
    """The Cochran-Mantel-Haenszel test that the odds ratio is 1 in every stratum, 1 df.

    ``corrected`` takes half a patient off the difference (continuity correction), which makes the
    test conservative; a difference below half a patient counts as none, where statsmodels squares
    what is left and R leaves the correction out. None without an informative stratum. Source:
    Mantel and Haenszel, JNCI 22 (1959) 719-748.
    """
    moments = cmh_moments(strata)
    if moments is None:
        return None
    observed, expected, variance = moments
    distance = abs(observed - expected)
    if corrected:
        distance = max(0.0, distance - 0.5)
    return chi_square(distance**2 / variance, 1)


def cmh_moments(strata: Strata) -> tuple[float, float, float] | None:
    """Responders in group 1: observed, expected and variance under the null, given the margins."""
    x = _Cells.of(strata.informative())
    if not x.n.size:
        return None
    expected = x.n1 * x.m1 / x.n
    variance = x.n1 * x.n0 * x.m1 * (x.n - x.m1) / (x.n**2 * (x.n - 1))
    return float(x.a.sum()), float(expected.sum()), float(variance.sum())


def breslow_day(strata: Strata, *, tarone: bool = True) -> HypothesisTest | None:
    """The Breslow-Day test that all strata share one odds ratio; df is informative strata less 1.

    ``tarone`` subtracts Tarone's correction, without which the statistic is a little too large.
    None with fewer than two informative strata, or where the Mantel-Haenszel odds ratio is 0 or
    infinite. It needs that odds ratio first: over centres that send their tables it is one round,
    over a sum it is two. Sources: Breslow and Day, Statistical Methods in Cancer Research I (1980)
    section 4.4; Tarone, Biometrika 72 (1985) 91-95.
    """
    usable = strata.informative()
    common = odds_ratio(usable)
    if common is None or len(usable.names) < 2:
        return None
    x = _Cells.of(usable)
    fitted = expected_at(usable, common.estimate)
    information = 1 / fitted + 1 / (x.n1 - fitted) + 1 / (x.m1 - fitted)
    information += 1 / (x.n0 - x.m1 + fitted)
    statistic = float(((x.a - fitted) ** 2 * information).sum())
    if tarone:
        statistic -= float((x.a - fitted).sum() ** 2 / (1 / information).sum())
    return chi_square(max(0.0, statistic), len(usable.names) - 1)


def expected_at(strata: Strata, ratio: float) -> Vector:
    """The count a (strata,) at which each stratum, its margins kept, has the odds ratio ``ratio``.

    The root of the quadratic of Breslow and Day (1980) that leaves no cell negative, computed
    without cancellation; all strata must be informative.
    """
    x = _Cells.of(strata)
    linear = x.n0 - x.m1 + ratio * (x.n1 + x.m1)
    square = 1 - ratio
    # The discriminant as a sum of terms none of which is negative, whatever the ratio
    mixed = 2 * ratio * (x.n1 * x.n0 + x.m1 * (x.n - x.m1))
    root = np.sqrt((ratio * (x.n1 - x.m1)) ** 2 + mixed + (x.n0 - x.m1) ** 2)
    # A negative linear term makes ratio < 1, so that square is not near 0
    divisor = square if square != 0 else 1.0
    return np.where(
        linear > 0,
        2 * ratio * x.n1 * x.m1 / np.maximum(linear + root, 1e-300),
        (root - linear) / (2 * divisor),
    )


def heterogeneity(ratios: Sequence[Estimate], level: float = 0.95) -> HypothesisTest | None:
    """Cochran's Q of log ratios with their intervals' standard errors; df is ratios less 1.

    None for fewer than two. ``level`` is that of the intervals. Source: Cochran, Biometrics 10
    (1954) 101-129.
    """
    if len(ratios) < 2:
        return None
    logs = np.log([ratio.estimate for ratio in ratios])
    errors = np.log([ratio.high / ratio.low for ratio in ratios]) / (2 * normal_quantile(level))
    weights = 1 / errors**2
    mean = (weights @ logs) / weights.sum()
    return chi_square(float(weights @ (logs - mean) ** 2), len(ratios) - 1)
