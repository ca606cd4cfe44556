"""Exact answers against R's printed output, scipy, enumeration of all tables, and simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.stats import chi2, contingency, nchypergeom_fisher
from scipy.stats import fisher_exact as scipy_fisher

from her2_common.errors import MetricError
from her2_common.response import exact, strata
from her2_common.response.strata import Strata

TEA = Strata.from_tables({"tea": [[3, 1], [1, 3]]})
"""Fisher's lady: The Design of Experiments (1935), chapter 2."""

TWINS = Strata.from_tables({"twins": [[2, 15], [10, 3]]})
"""Convictions of twins of criminals: Fisher, Journal of the Royal Statistical Society 98 (1935)
39-54, page 48."""


def small(seed: int, centres: int = 3) -> Strata:
    rng = np.random.default_rng(seed)
    return Strata(tuple("ABCDEF"[:centres]), rng.integers(0, 8, (centres, 2, 2)))


def enumerated(tables: Strata, ratio: float) -> dict[int, float]:
    """Probability of each number of responders in group 1, one table after another."""
    chances: dict[int, float] = {}
    kinds = []
    for table in tables.counts:
        n, n1, m1 = int(table.sum()), int(table[1].sum()), int(table[:, 1].sum())
        low, high = max(0, m1 - (n - n1)), min(n1, m1)
        law = nchypergeom_fisher(n, n1, m1, ratio)
        kinds.append([(a, float(law.pmf(a))) for a in range(low, high + 1)])
    for chosen in product(*kinds):
        total = sum(a for a, _ in chosen)
        chances[total] = chances.get(total, 0.0) + float(np.prod([p for _, p in chosen]))
    return chances


def test_fisher_is_what_r_prints() -> None:
    """R: fisher.test of the tea tasting (p 0.4857, odds ratio 6.408309) and of the convictions."""
    assert round(exact.fisher(TEA).p_value, 4) == 0.4857
    assert round(exact.odds_ratio(TEA).estimate, 4) == 6.4083
    assert round(exact.fisher(TWINS).p_value, 7) == 0.0005367
    assert round(exact.odds_ratio(TWINS).estimate, 6) == 0.046937


@pytest.mark.parametrize("seed", range(10))
def test_one_table_is_scipys(seed: int) -> None:
    table = np.random.default_rng(seed).integers(1, 30, (2, 2))
    tables = Strata.from_tables({"A": table.tolist()})
    want = contingency.odds_ratio(table)
    low, high = want.confidence_interval(0.9)
    got = exact.odds_ratio(tables, level=0.9)
    assert_allclose([got.estimate, got.low, got.high], [want.statistic, low, high], rtol=1e-7)
    assert_allclose(exact.fisher(tables).p_value, scipy_fisher(table).pvalue, rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 20))
def test_the_convolution_is_the_sum_over_all_tables(seed: int, ratio: float) -> None:
    tables = small(seed)
    first, p = exact.conditional(tables, ratio)
    want = enumerated(tables, ratio)
    assert_allclose([want[first + k] for k in range(p.size)], p, rtol=1e-8, atol=1e-14)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_several_tables_have_the_tails_that_define_the_interval(seed: int) -> None:
    tables = small(seed).informative()
    got = exact.odds_ratio(tables)
    if not tables.names:
        assert got is None
        return
    observed = int(tables.counts[:, 1, 1].sum())
    if got.low > 0:
        upper = sum(p for a, p in enumerated(tables, got.low).items() if a >= observed)
        assert_allclose(upper, 0.025, rtol=1e-6)
    if got.high < np.inf:
        lower = sum(p for a, p in enumerated(tables, got.high).items() if a <= observed)
        assert_allclose(lower, 0.025, rtol=1e-6)
    if 0 < got.estimate < np.inf:
        mean = sum(a * p for a, p in enumerated(tables, got.estimate).items())
        assert_allclose(mean, observed, rtol=1e-6)
    assert got.low <= got.estimate <= got.high


def test_zero_cells_leave_a_one_sided_interval() -> None:
    none = Strata.from_tables({"A": [[10, 15], [0, 30]], "B": [[3, 2], [0, 5]]})
    got = exact.odds_ratio(none)
    assert (got.estimate, got.high) == (np.inf, np.inf)
    assert got.low > 3
    mirrored = exact.odds_ratio(Strata(none.names, none.counts[:, ::-1]))
    assert (mirrored.estimate, mirrored.low) == (0.0, 0.0)
    assert_allclose(mirrored.high, 1 / got.low, rtol=1e-9)


def test_the_exact_odds_ratio_meets_mantel_haenszel_in_large_samples() -> None:
    # Odds ratio 1.5 in both
    tables = Strata.from_tables(
        {"A": [[3000, 2000], [2000, 2000]], "B": [[900, 2400], [800, 3200]]}
    )
    one, other = exact.odds_ratio(tables), strata.odds_ratio(tables)
    assert_allclose(
        [one.estimate, one.low, one.high], [other.estimate, other.low, other.high], rtol=1e-3
    )


# --- power ---------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1.0, 2.0, 5.0]))
def test_power_is_the_sum_over_all_tables_that_reject(seed: int, ratio: float) -> None:
    tables = small(seed).informative()
    got = exact.power(tables, ratio)
    if not tables.names:
        assert got is None
        return
    _, expected, variance = strata.cmh_moments(tables)
    critical = chi2.ppf(0.95, 1)
    want = sum(
        p for a, p in enumerated(tables, ratio).items() if (a - expected) ** 2 / variance > critical
    )
    assert_allclose(got, want, rtol=1e-8, atol=1e-12)


def test_power_is_how_often_the_test_rejects() -> None:
    """Tables drawn with the margins of four centres and an odds ratio of 3."""
    tables = Strata.from_tables(
        {
            "A": [[30, 25], [10, 20]],
            "B": [[9, 10], [4, 8]],
            "C": [[10, 15], [3, 12]],
            "D": [[6, 4], [2, 5]],
        }
    )
    rng = np.random.default_rng(0)
    draws = 20_000
    drawn = np.zeros(draws)
    for table in tables.counts:
        law = nchypergeom_fisher(table.sum(), table[1].sum(), table[:, 1].sum(), 3.0)
        drawn += law.rvs(draws, random_state=rng)
    _, expected, variance = strata.cmh_moments(tables)
    share = np.mean((drawn - expected) ** 2 / variance > chi2.ppf(0.95, 1))
    got = exact.power(tables, 3.0)
    assert abs(got - share) < 4 * np.sqrt(got * (1 - got) / draws)


def test_the_detectable_odds_ratio_has_the_power_wanted() -> None:
    tables = Strata(("A", "B"), np.array([[[30, 12], [25, 30]], [[18, 9], [10, 19]]]))
    ratio = exact.detectable(tables, wanted=0.9)
    assert_allclose(exact.power(tables, ratio), 0.9, atol=1e-6)
    assert exact.power(tables, 1.0) < 0.08
    assert exact.detectable(Strata.from_tables({"A": [[1, 0], [0, 1]]})) is None  # never rejects
    assert exact.detectable(Strata.empty()) is None


def test_a_hundred_thousand_patients_take_no_time() -> None:
    tables = Strata(
        tuple("ABCDEFGHIJKL"), np.random.default_rng(0).integers(9_000, 30_000, (12, 2, 2))
    )
    _, p = exact.conditional(tables, 1.1)
    assert_allclose(p.sum(), 1.0, rtol=1e-12)
    assert p.size < 200_000
    assert exact.power(tables, 1.1) > 0.99
    one, other = exact.odds_ratio(tables), strata.odds_ratio(tables)
    assert_allclose([one.low, one.high], [other.low, other.high], rtol=0.01)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0.2, 5), st.floats(0.2, 5))
def test_a_tilted_distribution_is_that_of_the_other_odds_ratio(
    seed: int, reference: float, ratio: float
) -> None:
    rng = np.random.default_rng(seed)
    tables = Strata(("A", "B", "C"), rng.integers(1, 60, (3, 2, 2)))
    first, p = exact._Law(tables, reference).at(ratio)
    want_first, want = exact.conditional(tables, ratio)
    assert first == want_first
    assert_allclose(p, want, rtol=1e-9, atol=1e-200)


@pytest.mark.parametrize("ratio", [0.0, -1.0, np.inf, np.nan])
def test_impossible_odds_ratios_are_refused(ratio: float) -> None:
    with pytest.raises(MetricError, match="positive finite"):
        exact.conditional(TEA, ratio)


def test_impossible_questions_are_refused() -> None:
    with pytest.raises(MetricError, match="one table"):
        exact.fisher(TEA + TWINS)
    with pytest.raises(MetricError, match="alpha"):
        exact.power(TEA, 2.0, alpha=1.0)
    with pytest.raises(MetricError, match="power and alpha"):
        exact.detectable(TEA, wanted=1.0)
    assert exact.odds_ratio(Strata.empty()) is None


@pytest.mark.parametrize(
    "counts",
    [
        [[[7, 24925], [159, 1]], [[88137, 3], [1, 10099]]],
        [[[208, 214], [2570, 14]], [[3775, 285], [2362, 50618]], [[14, 103], [23, 1]]],
    ],
)
def test_large_centres_that_contradict_each_other_have_an_exact_odds_ratio(
    counts: list[list[list[int]]],
) -> None:
    """The pooled odds ratios lie hundreds of standard errors away from the conditional one."""
    tables = Strata(tuple("ABC"[: len(counts)]), np.array(counts))
    found = exact.odds_ratio(tables)
    assert found is not None
    observed = int(tables.counts[:, 1, 1].sum())

    def law(ratio: float) -> tuple[np.ndarray, np.ndarray]:
        first, p = exact.conditional(tables, ratio)
        return first + np.arange(p.size), p

    values, p = law(found.estimate)
    assert_allclose(values @ p, observed, rtol=1e-9)
    values, p = law(found.low)
    assert_allclose(p[values >= observed].sum(), 0.025, rtol=1e-4)
    values, p = law(found.high)
    assert_allclose(p[values <= observed].sum(), 0.025, rtol=1e-4)
