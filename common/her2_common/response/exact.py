"""Exact answers given the margins: Fisher's test, the odds ratio, power.

Given its margins, the number of responders in group 1 of a stratum follows Fisher's noncentral
hypergeometric distribution, whose only parameter is the odds ratio; over independent strata the
numbers add, so that their distributions are convolved. No large-sample approximation is made.

Sources: Fisher, Journal of the Royal Statistical Society 98 (1935) 39-54; Gart, Biometrika 57
(1970) 471-475; Breslow and Day, Statistical Methods in Cancer Research I (1980) sections 4.2 and
4.4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from scipy.optimize import brentq
from scipy.special import chdtri, gammaln
from scipy.stats import fisher_exact

from her2_common.errors import MetricError
from her2_common.metrics import Estimate
from her2_common.response.inference import HypothesisTest, Integers, Vector
from her2_common.response.strata import Strata, cmh_moments, expected_at

_TAIL: Final = 600.0
"""Log probability below the mode at which a tail is dropped: e^-600 is 1e-261."""

_LOG_ODDS: Final = 60.0
"""Odds ratios are sought from e^-60 to e^60."""


def fisher(strata: Strata) -> HypothesisTest:
    """Fisher's exact test of one table; the statistic is the responders in group 1.

    Two-sided: the probability of all tables no likelier than the observed one.

    Raises:
        MetricError: there is not exactly one stratum.

    >>> tea = Strata.from_tables({"tea": [[3, 1], [1, 3]]})
    >>> round(fisher(tea).p_value, 4)
    0.4857
    """
    if len(strata.names) != 1:
        raise MetricError(f"Fisher's test: expected one table, got {len(strata.names)}")
    table = strata.counts[0]
    return HypothesisTest(float(table[1, 1]), None, float(fisher_exact(table).pvalue))


def conditional(strata: Strata, ratio: float) -> tuple[int, Vector]:
    """The distribution of the responders in group 1 at an odds ratio, given all margins.

    ``(first, probabilities)``: the probabilities of first, first + 1, ... Tails below e^-600 of
    the mode are left out.

    Raises:
        MetricError: the odds ratio is not a positive finite number.

    >>> conditional(Strata.from_tables({"tea": [[3, 1], [1, 3]]}), 1.0)[1].round(4).tolist()
    [0.0143, 0.2286, 0.5143, 0.2286, 0.0143]
    """
    _check(ratio)
    return _Law(strata, ratio).at(ratio)


class _Law:
    """The distribution for every odds ratio: that at ``reference``, tilted.

    The probability of a at another odds ratio is proportional to (ratio / reference)^a times that
    at ``reference``. Near it nothing is lost; far from it, only tails.
    """

    def __init__(self, strata: Strata, reference: float) -> None:
        self.reference = reference
        self.first, total = 0, np.ones(1)
        for table in strata.counts:
            first, part = _one_table(table, reference)
            # Sums of positive products: even small probabilities keep their digits
            total = np.convolve(total, part)
            total /= total.max()
            kept = np.flatnonzero(total > np.exp(-_TAIL))
            total = total[kept[0] : kept[-1] + 1]
            self.first += first + int(kept[0])
        self.logs = np.log(total)
        self.values = self.first + np.arange(total.size, dtype=np.float64)

    def at(self, ratio: float) -> tuple[int, Vector]:
        logs = self.logs + (self.values - self.first) * np.log(ratio / self.reference)
        p = np.exp(logs - logs.max())
        return self.first, p / p.sum()


def _one_table(table: Integers, ratio: float) -> tuple[int, Vector]:
    n1, n0, m1 = int(table[1].sum()), int(table[0].sum()), int(table[:, 1].sum())
    low = max(0, m1 - n0)
    a = np.arange(low, min(n1, m1) + 1, dtype=np.float64)
    # log of C(n1, a) C(n0, m1 - a) ratio^a, but for a constant
    weight = a * np.log(ratio) - gammaln(a + 1) - gammaln(n1 - a + 1)
    weight -= gammaln(m1 - a + 1) + gammaln(n0 - m1 + a + 1)
    keep = np.flatnonzero(weight > weight.max() - _TAIL)
    return low + int(keep[0]), np.exp(weight[keep] - weight.max())


def _check(ratio: float) -> None:
    if not 0.0 < ratio < float("inf"):
        raise MetricError(f"odds ratio: expected a positive finite number, got {ratio}")


def odds_ratio(strata: Strata, level: float = 0.95) -> Estimate | None:
    """The conditional maximum-likelihood odds ratio with its exact interval.

    Both are exact in small samples and remain where a cell is 0 in every stratum: the estimate is
    then 0 or infinite, the interval one-sided. The interval is at least as wide as its level. For
    one table it is that of R's fisher.test, for several that of mantelhaen.test(exact = TRUE).
    None without an informative stratum.

    >>> tea = Strata.from_tables({"tea": [[3, 1], [1, 3]]})
    >>> round(odds_ratio(tea).estimate, 4)
    6.4083
    """
    usable = strata.informative()
    if not usable.names:
        return None
    observed = int(usable.counts[:, 1, 1].sum())
    group, responders = usable.counts[:, 1].sum(axis=1), usable.counts[:, :, 1].sum(axis=1)
    least = int(np.maximum(0, responders - usable.counts[:, 0].sum(axis=1)).sum())
    most = int(np.minimum(group, responders).sum())
    tail = (1 - level) / 2
    law = _Law(usable, _ratio_at(usable, min(max(observed, least + 0.5), most - 0.5)))

    def at(statistic: Callable[[int, Vector], float], target: float) -> float:
        def difference(log_ratio: float) -> float:
            return statistic(*law.at(float(np.exp(log_ratio)))) - target

        return float(np.exp(brentq(difference, -_LOG_ODDS, _LOG_ODDS, xtol=1e-12)))

    def mean(first: int, p: Vector) -> float:
        return float((first + np.arange(p.size)) @ p)

    def at_least(first: int, p: Vector) -> float:
        return float(p[max(0, observed - first) :].sum())

    def at_most(first: int, p: Vector) -> float:
        return float(p[: max(0, observed - first + 1)].sum())

    if observed == least:
        return Estimate(0.0, 0.0, at(at_most, tail))
    if observed == most:
        return Estimate(float("inf"), at(at_least, tail), float("inf"))
    return Estimate(at(mean, observed), at(at_least, tail), at(at_most, tail))


def _ratio_at(usable: Strata, responders: float) -> float:
    """The odds ratio at which so many responders in group 1 are expected, by the large-sample mean.

    The number lies in the middle of its distribution there, also where strata contradict each
    other; at the Mantel-Haenszel odds ratio it may lie beyond the tails that are kept.
    """

    def excess(log_ratio: float) -> float:
        return float(expected_at(usable, float(np.exp(log_ratio))).sum()) - responders

    return float(np.exp(brentq(excess, -_LOG_ODDS, _LOG_ODDS)))


def power(strata: Strata, ratio: float, *, alpha: float = 0.05) -> float | None:
    """The power of the uncorrected CMH test at the observed margins if the odds ratio is ``ratio``.

    The probability, over all tables with these margins, that the test rejects at ``alpha``: exact,
    by summing the convolved noncentral hypergeometric distributions over the region of rejection.
    ``ratio`` must come from the analysis plan: the power at the estimate itself is the p-value in
    other words. At ratio 1 it is the true size of the test. None without an informative stratum.

    On power at fixed margins: Wittes and Wallenstein, JASA 82 (1987) 1104-1109.

    Raises:
        MetricError: the odds ratio is not positive, or alpha not between 0 and 1.
    """
    if not 0.0 < alpha < 1.0:
        raise MetricError(f"alpha: expected a number between 0 and 1, got {alpha}")
    _check(ratio)
    usable = strata.informative()
    return _power(usable, _Law(usable, ratio), ratio, alpha) if usable.names else None


def _power(usable: Strata, law: _Law, ratio: float, alpha: float) -> float:
    moments = cmh_moments(usable)
    if moments is None:
        return 0.0
    _, expected, variance = moments
    first, p = law.at(ratio)
    distance = np.abs(first + np.arange(p.size) - expected)
    return float(p[distance**2 >= variance * float(chdtri(1, alpha)) * (1 - 1e-12)].sum())


def detectable(strata: Strata, *, wanted: float = 0.8, alpha: float = 0.05) -> float | None:
    """The smallest odds ratio above 1 that the CMH test finds with power ``wanted``.

    At the observed margins; None where no odds ratio up to e^60 reaches it.

    Raises:
        MetricError: ``wanted`` or alpha is not between 0 and 1.
    """
    if not (0.0 < wanted < 1.0 and 0.0 < alpha < 1.0):
        raise MetricError(f"power and alpha: expected between 0 and 1, got {wanted} and {alpha}")
    usable = strata.informative()
    law = _Law(usable, 1.0)

    def missing(log_ratio: float) -> float:
        return _power(usable, law, float(np.exp(log_ratio)), alpha) - wanted

    if not usable.names or missing(_LOG_ODDS) < 0:
        return None
    if missing(0.0) >= 0:  # a small wanted power, less than the size of the test
        return 1.0
    return float(np.exp(brentq(missing, 0.0, _LOG_ODDS, xtol=1e-10)))
