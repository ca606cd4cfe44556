"""The primary comparison: who is in it, what it concludes, what it says."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import StratifiedTable
from tests.common.response.cohorts import added, assert_same, assignments, cohort, parts

from her2_common.clinical import PCR_DEFINITION
from her2_common.errors import MetricError
from her2_common.response import exact, primary, strata
from her2_common.response.patients import Patients, called
from her2_common.response.strata import Strata

STRONG = Strata.from_tables(
    {"A": [[40, 20], [12, 30]], "B": [[25, 15], [9, 20]], "C": [[18, 9], [5, 14]]}
)
WEAK = Strata.from_tables({"A": [[9, 8], [6, 7]], "B": [[5, 6], [4, 4]], "C": [[3, 3], [2, 3]]})
NONE = Strata.from_tables({name: [[60, 60], [60, 60]] for name in "ABCD"})
"""Odds ratio about 5, 1.2 with an interval beyond 2, and 1 with an interval short of 2."""
CONTRARY = Strata.from_tables(
    {"A": [[60, 20], [20, 60]], "B": [[15, 30], [30, 15]], "C": [[30, 20], [20, 30]]}
)
"""Together 2.06 (1.37 to 3.09), but B's own interval lies below 1."""
SLIGHT = Strata.from_tables({name: [[5400, 4600], [5000, 5000]] for name in "ABC"})
"""1.17 (1.14 to 1.21): certain, and too small to matter."""


def test_only_biopsy_positive_treated_patients_with_score_and_outcome_count() -> None:
    rows = cohort(1, 400)
    rng = np.random.default_rng(1)
    for name in ("biopsy", "therapy", "score", "pcr"):
        rows[name] = np.where(rng.random(400) < 0.1, np.nan, rows[name])
    got = primary.primary_strata(Patients("A", rows), 0.5)
    counts = np.zeros((2, 2), int)
    for biopsy, therapy, score, pcr in zip(
        *(rows[name] for name in ("biopsy", "therapy", "score", "pcr")), strict=True
    ):
        if biopsy == 1 and therapy == 1 and not np.isnan(score) and not np.isnan(pcr):
            counts[int(called([score], 0.5)[0]), int(pcr)] += 1
    assert np.array_equal(got.counts[0], counts)
    assert got.names == ("A",)
    assert counts.min() > 0


def test_the_numbers_are_those_of_the_tables() -> None:
    got = primary.compare(STRONG, relevant=1.5)
    assert got.n == STRONG.n
    assert got.odds_ratio == strata.odds_ratio(STRONG)
    assert got.exact_odds_ratio == exact.odds_ratio(STRONG)
    assert got.risk_difference == strata.risk_difference(STRONG)
    assert (got.cmh, got.cmh_corrected) == (strata.cmh(STRONG), strata.cmh(STRONG, corrected=True))
    assert got.breslow_day == strata.breslow_day(STRONG)
    assert (got.relevant, got.power) == (1.5, exact.power(STRONG, 1.5))
    assert got.size == exact.power(STRONG, 1.0)
    assert got.detectable == exact.detectable(STRONG)
    assert (got.positive.estimate, got.negative.estimate) == (83 / 127, 26 / 90)


def test_each_centre_is_left_out_once() -> None:
    got = primary.compare(STRONG).left_out
    assert [part.centre for part in got] == ["A", "B", "C"]
    for index, part in enumerate(got):
        rest = np.delete(STRONG.counts, index, axis=0)
        want = StratifiedTable(np.moveaxis(rest[:, ::-1, ::-1], 0, 2)).oddsratio_pooled
        assert part.odds_ratio.estimate == pytest.approx(want, rel=1e-12)


def test_one_centre_alone_cannot_be_left_out() -> None:
    alone = Strata(("A",), STRONG.counts[:1]) + Strata.from_rows("B", [1], [1])
    got = primary.compare(alone)
    assert got.left_out == ()
    assert "verdict changes" not in got.statement.quote


# --- the verdict ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tables", "verdict"),
    [
        (STRONG, "supported"),
        (WEAK, "inconclusive"),
        (NONE, "no relevant difference"),
        (CONTRARY, "centres differ"),
        (Strata(CONTRARY.names, CONTRARY.counts[:, ::-1]), "centres differ"),
        (SLIGHT, "smaller than relevant"),
        (Strata(SLIGHT.names, SLIGHT.counts[:, ::-1]), "reversed"),
        (Strata(STRONG.names, STRONG.counts[:, ::-1]), "reversed"),
        (Strata.empty(), "not compared"),
        (Strata.from_tables({"A": [[5, 3], [0, 0]]}), "not compared"),
        (Strata.from_tables({"A": [[5, 0], [4, 0]]}), "not compared"),
        # No model-negative patient responds: infinite, and decided by the exact interval
        (Strata.from_tables({"A": [[10, 15], [0, 30]]}), "supported"),
        (Strata.from_tables({"A": [[1, 15], [0, 30]]}), "inconclusive"),
        (Strata.from_tables({"A": [[0, 30], [10, 15]]}), "reversed"),
    ],
)
def test_each_table_has_its_verdict(tables: Strata, verdict: str) -> None:
    got = primary.compare(tables)
    assert got.statement.verdict == primary.verdict(tables) == verdict


counts = st.integers(0, 60)
some_tables = st.lists(st.tuples(counts, counts, counts, counts), min_size=0, max_size=5).map(
    lambda rows: Strata(tuple("ABCDE"[: len(rows)]), np.reshape(rows, (-1, 2, 2)).astype(int))
)


@settings(max_examples=80, deadline=None)
@given(some_tables, st.sampled_from([1.2, 2.0, 4.0]))
def test_every_table_has_exactly_one_verdict_and_it_is_true(
    tables: Strata, relevant: float
) -> None:
    """The rule written once more, as conditions of which one alone may hold."""
    interval = strata.odds_ratio(tables) or exact.odds_ratio(tables)
    differ = False
    if interval is not None:
        test = strata.breslow_day(tables)
        alone = [Strata((n,), t[None]) for n, t in zip(tables.names, tables.counts, strict=True)]
        own = [strata.odds_ratio(one) or exact.odds_ratio(one) for one in alone]
        against = [
            (interval.low > 1 and one.high < 1) or (interval.high < 1 and one.low > 1)
            for one in own
            if one is not None
        ]
        differ = any(against) or (test is not None and test.p_value < 0.05)
    there = interval is not None and not differ
    low, high = (interval.low, interval.high) if interval is not None else (np.nan, np.nan)
    holds = {
        "not compared": interval is None,
        "centres differ": differ,
        "supported": there and low > 1 and high >= relevant,
        "smaller than relevant": there and low > 1 and high < relevant,
        "reversed": there and high < 1,
        "no relevant difference": there and low <= 1 <= high < relevant,
        "inconclusive": there and low <= 1 and high >= relevant,
    }
    assert set(holds) == set(primary.RULES) == set(get_args(primary.Verdict))
    assert [name for name, true in holds.items() if true] == [primary.verdict(tables, relevant)]


@settings(max_examples=25, deadline=None)
@given(some_tables)
def test_nothing_compared_prints_no_interval_and_no_p(tables: Strata) -> None:
    got = primary.compare(tables)
    numbers = (got.odds_ratio, got.exact_odds_ratio, got.cmh, got.breslow_day, got.power)
    if got.statement.verdict == "not compared":
        assert numbers == (None,) * 5
        assert "interval" not in got.statement.quote
    else:
        assert got.exact_odds_ratio is not None
        assert "interval" in got.statement.quote


def test_a_centre_on_the_other_side_forbids_supported_even_without_breslow_day() -> None:
    """Thirty small centres that agree hide from the test of all one that does not."""
    agree = {f"{k:02}": [[7, 4], [4, 7]] for k in range(30)}
    tables = Strata.from_tables(agree | {"zz": [[1, 9], [8, 2]]})
    assert strata.breslow_day(tables).p_value > 0.05
    assert strata.odds_ratio(tables).low > 1
    got = primary.compare(tables)
    assert (got.opposed, got.statement.verdict) == (("zz",), "centres differ")
    assert primary.verdict(tables.without("zz")) == "supported"


def test_centres_that_differ_are_named_with_the_test() -> None:
    got = primary.compare(CONTRARY)
    assert got.opposed == ("B",)
    assert "Breslow-Day" in got.statement.quote
    assert "interval of B alone" in got.statement.quote
    alike = Strata.from_tables({name: [[30, 20], [20, 30]] for name in "CDE"})
    apart = primary.compare(alike + Strata.from_tables({"B": [[15, 30], [30, 15]]}))
    assert {part.centre: part.verdict for part in apart.left_out}["B"] == "supported"
    assert "changes without B" in apart.statement.quote


def test_a_smaller_relevant_odds_ratio_is_harder_to_exclude() -> None:
    assert primary.verdict(NONE, 2.0) == "no relevant difference"
    assert primary.verdict(NONE, 1.1) == "inconclusive"
    assert primary.verdict(SLIGHT, 1.2) == "supported"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000))
def test_the_verdict_supported_means_that_the_test_rejects_too(seed: int) -> None:
    """Interval and CMH test are two approximations: far from the border they agree."""
    rng = np.random.default_rng(seed)
    tables = Strata(("A", "B", "C", "D"), rng.integers(5, 30, (4, 2, 2)))
    p_value, verdict = strata.cmh(tables).p_value, primary.verdict(tables)
    if verdict in ("supported", "smaller than relevant", "reversed"):
        assert p_value < 0.06
    elif p_value < 0.04:
        assert verdict == "centres differ"


# --- the words -----------------------------------------------------------------------------------


def test_the_sentence_to_quote_has_the_numbers_and_the_definition() -> None:
    quote = primary.compare(STRONG).statement.quote
    assert "217 biopsy-HER2-positive patients treated with anti-HER2 drugs in 3 centres" in quote
    assert "83 of 127 model-positive and 26 of 90 model-negative" in quote
    odds = strata.odds_ratio(STRONG)
    assert f"{odds.estimate:.2f}, 95 % interval {odds.low:.2f} to {odds.high:.2f}" in quote
    assert quote.endswith(f"{PCR_DEFINITION}.")
    assert "Mantel-Haenszel" in quote


def test_an_inconclusive_sample_says_so_with_its_power() -> None:
    got = primary.compare(WEAK)
    assert "both no difference and a relevant one" in got.statement.quote
    assert f"the power to find 2 was {100 * got.power:.0f} %" in got.statement.quote
    assert "neither show nor exclude" in got.statement.do_not_quote


def test_a_verdict_that_hangs_on_one_centre_says_so() -> None:
    fragile = WEAK + Strata.from_tables({"D": [[36, 18], [16, 26]]})
    got = primary.compare(fragile).statement
    assert got.verdict == "supported"
    assert "The verdict changes without D." in got.quote
    assert "changes without" not in primary.compare(STRONG).statement.quote


def test_each_verdict_has_its_forbidden_sentence() -> None:
    reverse = Strata(STRONG.names, STRONG.counts[:, ::-1])
    samples = (STRONG, WEAK, NONE, CONTRARY, SLIGHT, reverse, Strata.empty())
    forbidden = [primary.compare(tables).statement.do_not_quote for tables in samples]
    assert len(set(forbidden)) == len(primary.RULES)
    assert "do not need anti-HER2 therapy" in forbidden[0]


def test_nothing_to_compare_and_infinity_in_words() -> None:
    one = primary.compare(Strata.from_tables({"A": [[5, 3], [0, 0]]}))
    assert "in 1 centre, 5 of 8 model-positive and 0 of 0" in one.statement.quote
    assert "nothing compares them" in one.statement.quote
    assert (one.odds_ratio, one.cmh, one.power, one.negative) == (None, None, None, None)
    infinite = primary.compare(Strata.from_tables({"A": [[10, 15], [0, 30]]})).statement.quote
    assert "exact conditional odds ratio, stratified by centre, infinity" in infinite


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 20), assignments(300))
def test_federated_is_pooled(seed: int, site: np.ndarray) -> None:
    """Twelve sites, some empty; and the same tables from pooled rows with a centre column."""
    rows = cohort(seed)
    names = [f"{k:02d}" for k in range(12)]
    federated = added(
        primary.primary_strata(Patients(name, part), 0.375)
        for name, part in zip(names, parts(rows, site), strict=True)
    )
    chosen = (rows["biopsy"] == 1) & (rows["therapy"] == 1)
    counts = np.zeros((12, 2, 2), int)
    calls = called(rows["score"], 0.375).astype(int)
    np.add.at(counts, (site[chosen], calls[chosen], rows["pcr"][chosen].astype(int)), 1)
    assert_same(primary.compare(federated), primary.compare(Strata(tuple(names), counts)))


@pytest.mark.parametrize("relevant", [1.0, 0.5, np.inf, np.nan])
def test_impossible_plans_are_refused(relevant: float) -> None:
    with pytest.raises(MetricError, match="above 1"):
        primary.compare(STRONG, relevant=relevant)
