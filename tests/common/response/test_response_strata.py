"""Tables by stratum against statsmodels, R's printed output, and what algebra demands."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.special import xlogy
from scipy.stats import norm
from statsmodels.stats.contingency_tables import StratifiedTable, Table2x2
from tests.common.response.cohorts import BERKELEY, added, assert_same, assignments, cohort, parts

from her2_common.errors import MetricError
from her2_common.metrics import Estimate
from her2_common.response import strata
from her2_common.response.inference import may_leave, smallest_cell
from her2_common.response.strata import Strata


def random_tables(seed: int, centres: int = 5, *, low: int = 1) -> Strata:
    rng = np.random.default_rng(seed)
    names = tuple(f"centre {index}" for index in range(centres))
    return Strata(names, rng.integers(low, 40, (centres, 2, 2)))


def oracle(tables: Strata) -> StratifiedTable:
    # [k, group, outcome] -> [[a, b], [c, d]], strata last
    return StratifiedTable(np.moveaxis(tables.counts[:, ::-1, ::-1], 0, 2))


def triple(estimate: Estimate) -> list[float]:
    return [estimate.estimate, estimate.low, estimate.high]


# --- published -----------------------------------------------------------------------------------


def test_berkeley_is_what_r_prints() -> None:
    """R: mantelhaen.test(UCBAdmissions), and DescTools::BreslowDayTest of the same."""
    assert [round(v, 7) for v in triple(strata.odds_ratio(BERKELEY))] == [
        0.9046968,
        0.7719074,
        1.0603298,
    ]
    corrected = strata.cmh(BERKELEY, corrected=True)
    assert (round(corrected.statistic, 4), corrected.df) == (1.4269, 1)
    assert round(corrected.p_value, 4) == 0.2323
    breslow = strata.breslow_day(BERKELEY, tarone=False)
    assert (round(breslow.statistic, 3), breslow.df) == (18.826, 5)
    assert round(breslow.p_value, 6) == 0.002071


def test_berkeley_as_one_table_is_simpsons_paradox() -> None:
    """Bickel et al.: 44.5 % of men and 30.4 % of women admitted, odds ratio 1.84."""
    together = strata.odds_ratio(Strata(("all",), BERKELEY.counts.sum(axis=0, keepdims=True)))
    assert round(together.estimate, 2) == 1.84
    assert together.low > 1 > strata.odds_ratio(BERKELEY).low


# --- statsmodels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("centres", [1, 2, 7])
def test_odds_ratio_and_tests_are_statsmodels(seed: int, centres: int) -> None:
    tables = random_tables(seed, centres)
    want = oracle(tables)
    got = strata.odds_ratio(tables, level=0.9)
    assert_allclose(
        triple(got), [want.oddsratio_pooled, *want.oddsratio_pooled_confint(0.1)], rtol=1e-9
    )
    observed, expected, _ = strata.cmh_moments(tables)
    pairs = [(strata.cmh(tables), want.test_null_odds(False))]
    if abs(observed - expected) >= 0.5:
        pairs.append((strata.cmh(tables, corrected=True), want.test_null_odds(True)))
    if centres > 1:
        for tarone in (False, True):
            pairs.append((strata.breslow_day(tables, tarone=tarone), want.test_equal_odds(tarone)))
            assert pairs[-1][0].df == centres - 1
    for test, other in pairs:
        assert_allclose(test.statistic, other.statistic, rtol=1e-9)
        assert_allclose(test.p_value, other.pvalue, rtol=1e-9, atol=1e-12)  # theirs is 1 - cdf
    assert_allclose(strata.risk_ratio(tables).estimate, want.riskratio_pooled, rtol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_one_stratum_has_the_intervals_of_two_proportions(seed: int) -> None:
    tables = random_tables(seed, 1)
    table = Table2x2(tables.counts[0, ::-1, ::-1])
    assert_allclose(
        triple(strata.risk_ratio(tables)), [table.riskratio, *table.riskratio_confint()], rtol=1e-9
    )


NEWCOMBE = [
    ((56, 70, 48, 80), (0.0528, 0.3382)),
    ((9, 10, 3, 10), (0.1700, 0.8406)),
    ((6, 7, 2, 7), (0.0342, 0.8534)),
    ((5, 56, 0, 29), (-0.0326, 0.1933)),
    ((0, 10, 0, 20), (-0.1658, 0.2844)),
    ((0, 10, 0, 10), (-0.2879, 0.2879)),
    ((10, 10, 0, 20), (0.7156, 1.0)),
    ((10, 10, 0, 10), (0.6636, 1.0)),
]
"""Responders and patients of two groups; Miettinen and Nurminen's interval (method 6) as printed
in table II of Newcombe, Statistics in Medicine 17 (1998) 873-890."""


@pytest.mark.parametrize(("sample", "want"), NEWCOMBE)
def test_risk_differences_of_one_table_are_those_of_newcombes_paper(
    sample: tuple[int, ...], want: tuple[float, float]
) -> None:
    a, n1, c, n0 = sample
    got = strata.risk_difference(Strata.from_tables({"A": [[a, n1 - a], [c, n0 - c]]}))
    assert (round(got.low, 4), round(got.high, 4)) == want
    assert got.estimate == pytest.approx(a / n1 - c / n0)


def likeliest(table: np.ndarray, gap: float) -> tuple[float, float]:
    """Risks (group 1, group 0) that differ by ``gap`` and make a table likeliest: by trying."""
    (d, c), (b, a) = table.tolist()
    p0 = np.linspace(max(0.0, -gap), min(1.0, 1.0 - gap), 20_001)
    for _ in range(3):
        value = sum(
            xlogy(k, p) for k, p in ((a, p0 + gap), (b, 1 - p0 - gap), (c, p0), (d, 1 - p0))
        )
        best = int(np.argmax(value))
        around = p0[max(0, best - 1)], p0[min(p0.size - 1, best + 1)]
        best_p0 = p0[best]
        p0 = np.linspace(*around, 20_001)
    return best_p0 + gap, best_p0


@pytest.mark.parametrize("seed", range(4))
def test_the_score_of_a_risk_difference_is_that_of_the_likeliest_risks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tables = random_tables(seed, 3, low=0) + Strata.from_tables({"none": [[3, 1], [0, 0]]})
    gap = float(rng.uniform(-0.9, 0.9))
    distance = variance = 0.0
    for table in tables.counts[:3]:
        n0, n1 = table.sum(axis=1)
        n = n0 + n1
        weight = n0 * n1 / n
        p1, p0 = likeliest(table, gap)
        distance += weight * (table[1, 1] / n1 - table[0, 1] / n0 - gap)
        variance += weight**2 * (p1 * (1 - p1) / n1 + p0 * (1 - p0) / n0) * n / (n - 1)
    assert_allclose(strata.risk_score(tables, gap), [distance, variance], rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 3))
def test_a_risk_difference_is_within_its_interval_whose_ends_are_just_not_rejected(
    seed: int, low: int
) -> None:
    rng = np.random.default_rng(seed)
    tables = Strata(("A", "B", "C"), low + rng.integers(0, 6, (3, 2, 2)))
    got = strata.risk_difference(tables)
    if got is None:
        assert not (tables.counts.sum(axis=2) > 0).all(axis=1).any()
        return
    assert -1 <= got.low <= got.estimate <= got.high <= 1
    assert got.low < got.high
    for bound in (got.low, got.high):
        if abs(bound) < 1:
            distance, variance = strata.risk_score(tables, bound)
            assert_allclose(distance**2 / variance, norm.ppf(0.975) ** 2, rtol=1e-5)


def test_the_score_is_a_sum_over_centres() -> None:
    """Sites that are sent a difference can answer with their part."""
    tables = random_tables(1, 5)
    parts = [
        strata.risk_score(Strata((name,), table[None]), 0.1)
        for name, table in zip(tables.names, tables.counts, strict=True)
    ]
    assert_allclose(strata.risk_score(tables, 0.1), np.sum(parts, axis=0), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("centres", [4, 12])
@pytest.mark.parametrize(("share", "base", "gap"), [(0.5, 0.35, 0.0), (0.8, 0.35, 0.18)])
def test_eight_patients_a_centre_keep_the_level(
    centres: int, share: float, base: float, gap: float
) -> None:
    rng = np.random.default_rng(20)
    names = tuple(f"{k:02}" for k in range(centres))
    held = []
    for _ in range(600):
        n1 = rng.binomial(8, share, centres)
        a, c = rng.binomial(n1, base + gap), rng.binomial(8 - n1, base)
        counts = np.stack([8 - n1 - c, c, n1 - a, a], axis=1).reshape(-1, 2, 2)
        got = strata.risk_difference(Strata(names, counts))
        held.append(got is None or got.low <= gap <= got.high)
    assert np.mean(held) >= 0.93


@pytest.mark.parametrize("seed", range(4))
def test_matched_pairs_have_the_odds_ratio_of_discordant_pairs(seed: int) -> None:
    """Each pair a stratum: differences depend on discordant pairs alone."""
    rng = np.random.default_rng(seed)
    one, two = rng.random(200) < 0.4, rng.random(200) < 0.3
    pairs = Strata(
        tuple(f"{index:03d}" for index in range(200)),
        np.array([[[1 - b, b], [1 - a, a]] for a, b in zip(one, two, strict=True)], dtype=np.int64),
    )
    gap = (one.astype(float) - two).mean()
    assert strata.risk_difference(pairs).estimate == pytest.approx(gap)
    # The odds ratio is the ratio of discordant pairs, CMH McNemar's chi-square
    gained, lost = np.sum(one & ~two), np.sum(two & ~one)
    assert_allclose(strata.odds_ratio(pairs).estimate, gained / lost, rtol=1e-9)
    assert_allclose(strata.cmh(pairs).statistic, (gained - lost) ** 2 / (gained + lost), rtol=1e-9)


def test_few_large_strata_agree_with_greenland_and_robins_variance() -> None:
    """The score's variance and that of Greenland and Robins (1985) meet where cells are large."""
    tables = Strata(BERKELEY.names, BERKELEY.counts * 1000)
    (d, c), (b, a) = (tables.counts[:, group].T.astype(float) for group in (0, 1))
    n1, n0 = a + b, c + d
    weight = (n1 * n0 / (n1 + n0)).sum()
    variance = ((a * b * n0**3 + c * d * n1**3) / (n1 * n0 * (n1 + n0) ** 2)).sum() / weight**2
    got = strata.risk_difference(tables)
    half = (got.high - got.low) / 2
    # They differ where the true differences do
    assert_allclose(half, norm.ppf(0.975) * np.sqrt(variance), rtol=0.05)


# --- algebra -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000))
def test_exchanging_the_groups_or_the_outcomes_inverts(seed: int) -> None:
    tables = random_tables(seed, 3)
    got = strata.odds_ratio(tables)
    for axis in (1, 2):
        mirrored = Strata(tables.names, np.flip(tables.counts, axis))
        other = strata.odds_ratio(mirrored)
        assert_allclose([1 / other.estimate, 1 / other.high, 1 / other.low], triple(got), rtol=1e-9)
        gap, opposite = strata.risk_difference(tables), strata.risk_difference(mirrored)
        assert_allclose(
            [-opposite.estimate, -opposite.high, -opposite.low], triple(gap), rtol=1e-7, atol=1e-12
        )
        assert_same(strata.cmh(mirrored), strata.cmh(tables))
        assert_same(strata.breslow_day(mirrored), strata.breslow_day(tables), 1e-7)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.floats(0.001, 1000))
def test_expected_counts_have_the_odds_ratio_and_the_margins(seed: int, ratio: float) -> None:
    tables = random_tables(seed, 4)
    a = strata.expected_at(tables, ratio)
    n0, n1 = tables.counts.sum(axis=2).T
    m1 = tables.counts[:, :, 1].sum(axis=1)
    b, c = n1 - a, m1 - a
    d = n0 - c
    assert np.all([a > 0, b > 0, c > 0, d > 0])
    assert_allclose(a * d / (b * c), ratio, rtol=1e-7)


def test_uninformative_strata_change_no_odds_ratio() -> None:
    tables = random_tables(3, 3)
    idle = Strata.from_tables(
        {"no group 0": [[4, 3], [0, 0]], "no responder": [[0, 4], [0, 9]], "void": [[0, 0], [0, 0]]}
    )
    for function in (strata.odds_ratio, strata.cmh, strata.breslow_day):
        assert_same(function(tables + idle), function(tables))


def test_what_no_sample_can_answer_is_none() -> None:
    alike = Strata.from_tables({"A": [[5, 0], [7, 0]]})
    assert strata.odds_ratio(alike) is None
    assert strata.cmh(alike) is None
    assert strata.risk_ratio(Strata.from_tables({"A": [[5, 1], [0, 3]]})) is None
    assert strata.risk_difference(alike).estimate == 0.0
    assert strata.risk_difference(alike).low < -0.2 < 0.2 < strata.risk_difference(alike).high < 0.5
    assert strata.risk_difference(Strata.from_tables({"A": [[5, 2], [0, 0]]})) is None
    assert strata.breslow_day(random_tables(1, 1)) is None
    assert strata.odds_ratio(Strata.empty()) is None
    assert strata.risk_difference(Strata.empty()) is None
    one_sided = Strata.from_tables({"A": [[5, 5], [0, 9]], "B": [[2, 3], [0, 4]]})
    assert strata.odds_ratio(one_sided) is None
    assert strata.breslow_day(one_sided) is None
    assert strata.cmh(one_sided).p_value < 0.05


def test_less_than_half_a_patient_is_no_difference_once_corrected() -> None:
    level = Strata.from_tables({"A": [[10, 10], [11, 10]]})
    assert strata.cmh(level).statistic > 0
    assert (
        strata.cmh(level, corrected=True).statistic,
        strata.cmh(level, corrected=True).p_value,
    ) == (0, 1)


def test_a_risk_difference_ends_where_risks_do() -> None:
    tables = Strata.from_tables({"A": [[4, 0], [0, 4]]})
    assert strata.risk_difference(tables).high == 1.0
    assert strata.risk_difference(Strata(tables.names, tables.counts[:, ::-1])).low == -1.0
    assert 0.9 < strata.risk_difference(Strata.from_tables({"A": [[4, 0], [1, 4]]})).high < 1.0


def test_heterogeneity_is_cochrans_q() -> None:
    """Two subgroups: Q is the square of the z-test of their log ratios' difference."""
    one, two = Estimate(2.0, 1.0, 4.0), Estimate(0.5, 0.1, 2.5)
    errors = [np.log(e.high / e.low) / 2 / norm.ppf(0.975) for e in (one, two)]
    z = np.log(2.0 / 0.5) / np.hypot(*errors)
    got = strata.heterogeneity([one, two])
    assert_allclose([got.statistic, got.p_value], [z**2, 2 * norm.sf(z)], rtol=1e-9)
    assert strata.heterogeneity([one]) is None


# --- federation ----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 30), assignments(300), st.integers(2, 200))
def test_sites_add_up_to_the_pooled_rows(seed: int, site: np.ndarray, keep: int) -> None:
    """Sites that each hold some patients of every stratum, zero cells and empty sites included."""
    rows = cohort(seed)
    stratum = np.random.default_rng(seed).integers(0, 4, 300)
    names = [f"stratum {index}" for index in range(4)]
    rows = {name: values[:keep] for name, values in (rows | {"stratum": stratum}).items()}

    def count(part: dict[str, np.ndarray]) -> Strata:
        return added(
            Strata.from_rows(
                name, part["biopsy"][part["stratum"] == k], part["pcr"][part["stratum"] == k]
            )
            for k, name in enumerate(names)
        )

    federated = added(count(part) for part in parts(rows, site[:keep]))
    assert federated == count(rows)
    assert hash(federated) == hash(count(rows))
    groups = np.zeros((4, 2, 2), int)
    np.add.at(groups, (rows["stratum"], rows["biopsy"].astype(int), rows["pcr"].astype(int)), 1)
    assert np.array_equal(federated.counts, groups)


def test_addition_has_a_neutral_element_and_any_order() -> None:
    a, b = random_tables(1, 2), random_tables(2, 4)
    assert a + Strata.empty() == a == Strata.empty() + a
    assert a + b == b + a
    assert (a + b).n == a.n + b.n
    assert a != "a table"
    assert a != Strata(("other", "others"), a.counts)
    with pytest.raises(TypeError):
        a + 1  # type: ignore[operator]


def test_leaving_a_centre_out_and_only_informative_ones() -> None:
    assert BERKELEY.without("A").names == ("B", "C", "D", "E", "F")
    assert BERKELEY.without("A").n == BERKELEY.n - 933
    with pytest.raises(MetricError, match="expected one of A, B"):
        BERKELEY.without("G")
    assert (BERKELEY + Strata.from_rows("G", [1], [1])).informative() == BERKELEY
    assert BERKELEY.responders == 1755


def test_the_smallest_cell_is_what_the_policy_sees() -> None:
    assert smallest_cell(BERKELEY) == 8
    assert may_leave(BERKELEY, 8)
    assert not may_leave(BERKELEY, 9)
    assert smallest_cell(Strata.empty()) is None
    assert may_leave(Strata.empty())


@pytest.mark.parametrize(
    ("names", "counts", "message"),
    [
        (("B", "A"), np.zeros((2, 2, 2), int), "sorted"),
        (("A", "A"), np.zeros((2, 2, 2), int), "unique"),
        (("A",), np.zeros((2, 2), int), "shape"),
        (("A",), np.zeros((1, 2, 2)), "whole numbers"),
        (("A",), np.full((1, 2, 2), -1), "counts from 0"),
        (("A",), np.full((1, 2, 2), 2**62), "counts from 0"),
    ],
)
def test_impossible_tables_are_refused(names: tuple, counts: np.ndarray, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        Strata(names, counts)


@pytest.mark.parametrize(
    ("group", "outcome"), [([1, 0], [1]), ([2], [1]), ([1], [np.nan]), ([[1]], [[1]])]
)
def test_impossible_rows_are_refused(group: list, outcome: list) -> None:
    with pytest.raises(MetricError, match="expected"):
        Strata.from_rows("A", group, outcome)


def test_tables_neither_change_nor_share_their_counts() -> None:
    counts = np.ones((1, 2, 2), np.int64)
    tables = Strata(("A",), counts)
    counts[0, 0, 0] = 7
    assert tables.n == 4
    with pytest.raises(ValueError, match="read-only"):
        tables.counts[0, 0, 0] = 7


def test_expected_counts_stay_between_the_margins_at_any_odds_ratio() -> None:
    """Equal margins (n1 = m1) make the quadratic a perfect square far from an odds ratio of 1."""
    tables = Strata.from_tables({"A": [[1, 2], [2, 1]], "B": [[1530, 2], [2, 8]]})
    for log_ratio in range(-60, 61, 5):
        fitted = strata.expected_at(tables, float(np.exp(log_ratio)))
        assert (fitted >= 0).all()
        assert (fitted <= np.array([3, 1532]) * (1 + 1e-12)).all()
    assert_allclose(strata.expected_at(tables, float(np.exp(60))), [3, 1532], rtol=1e-9)
