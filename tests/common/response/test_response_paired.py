"""Two calls on the same patients against statsmodels, pandas and plain means."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.stats import norm
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.weightstats import DescrStatsW
from tests.common.response.cohorts import added, assert_same, assignments, cohort, parts

from her2_common.errors import MetricError
from her2_common.metrics import wilson
from her2_common.response import paired
from her2_common.response.paired import CallTable, ChangeSums
from her2_common.response.patients import Patients, called


def count(rows: dict[str, np.ndarray]) -> CallTable:
    return CallTable.of(Patients("A", rows), 0.5)


def test_approval_ratings_are_agrestis() -> None:
    """794 approve twice, 150 once and then not, 86 the reverse, 570 never: z = -4.17, z^2 = 17.36.

    Agresti, Categorical Data Analysis, 2nd edition (2002), section 10.1.1."""
    got = paired.mcnemar(150, 86)
    assert round(got.chi2.statistic, 2) == 17.36
    assert round(np.sqrt(got.chi2.statistic), 2) == 4.17


@pytest.mark.parametrize(("b", "c"), [(150, 86), (3, 12), (0, 5), (7, 7), (1, 0)])
def test_mcnemar_is_statsmodels(b: int, c: int) -> None:
    got = paired.mcnemar(b, c)
    exact, plain, corrected = (
        statsmodels_mcnemar([[10, b], [c, 20]], exact=exact, correction=correction)
        for exact, correction in ((True, False), (False, False), (False, True))
    )
    assert_allclose(got.exact.p_value, exact.pvalue, rtol=1e-9)
    assert got.exact.statistic == exact.statistic
    for test, want in ((got.chi2, plain), (got.corrected, corrected)):
        if want is corrected and b == c:
            assert (test.statistic, test.p_value) == (0, 1)  # theirs squares 0 - 1
            continue
        assert_allclose([test.statistic, test.p_value], [want.statistic, want.pvalue], rtol=1e-9)


def test_calls_that_never_differ_are_not_tested() -> None:
    got = paired.mcnemar(0, 0)
    assert (got.exact, got.chi2, got.corrected) == (None, None, None)
    with pytest.raises(MetricError, match="counts from 0"):
        paired.mcnemar(-1, 3)


def test_both_outcomes_are_compared_within_themselves() -> None:
    rows = cohort(1)
    calls = called(rows["score"], 0.5)
    without, responders = paired.mcnemar_by_outcome(count(rows))
    for got, outcome in ((without, 0), (responders, 1)):
        among = rows["pcr"] == outcome
        assert got.first_only == np.sum(among & (rows["biopsy"] == 1) & ~calls)
        assert got.second_only == np.sum(among & (rows["biopsy"] == 0) & calls)


def test_discordance_is_a_table_of_means() -> None:
    rows = cohort(2)
    frame = pd.DataFrame(rows | {"call": called(rows["score"], 0.5).astype(int)})
    want = frame.groupby(["biopsy", "call"])["pcr"].agg(["size", "sum"])
    got = paired.discordance(count(rows))
    assert [(part.first, part.second) for part in got] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for part in got:
        n, responders = want.loc[(part.first, part.second)]
        assert (part.n, part.responders) == (n, responders)
        assert part.rate == wilson(int(responders), int(n))
    assert paired.discordance(CallTable.empty())[0].rate is None


def test_confusions_of_both_calls() -> None:
    rows = cohort(3)
    got = count(rows).confusion(0), count(rows).confusion(1)
    for confusion, call in zip(got, (rows["biopsy"] == 1, called(rows["score"], 0.5)), strict=True):
        positive = rows["pcr"] == 1
        assert (confusion.tp, confusion.fp, confusion.tn, confusion.fn) == (
            np.sum(call & positive),
            np.sum(call & ~positive),
            np.sum(~call & ~positive),
            np.sum(~call & positive),
        )


# --- reclassification ----------------------------------------------------------------------------


def test_reclassification_is_the_change_of_sensitivity_and_specificity() -> None:
    table = count(cohort(4))
    first, second = table.confusion(0), table.confusion(1)
    without, responders = paired.net_reclassification(table)
    sensitivities = [c.tp / (c.tp + c.fn) for c in (first, second)]
    specificities = [c.tn / (c.tn + c.fp) for c in (first, second)]
    assert_allclose(responders.estimate, sensitivities[1] - sensitivities[0])
    assert_allclose(without.estimate, specificities[1] - specificities[0])
    assert paired.net_reclassification(CallTable.empty()) == (None, None)


def test_the_interval_of_a_paired_difference_is_bonett_and_prices() -> None:
    """Adding a discordant pair each way and taking Wald's interval of what results."""
    n, gained, lost = 60, 9, 4
    changes = np.concatenate([np.ones(gained + 1), -np.ones(lost + 1), np.zeros(n - gained - lost)])
    want = DescrStatsW(changes).mean, changes.std() / np.sqrt(n + 2) * norm.ppf(0.975)
    got = paired.paired_difference(gained, lost, n)
    assert_allclose(got.estimate, (gained - lost) / n)
    assert_allclose([got.low, got.high], [want[0] - want[1], want[0] + want[1]], rtol=1e-12)


def test_the_interval_of_a_paired_difference_covers() -> None:
    rng = np.random.default_rng(0)
    truth, n = 0.12 - 0.05, 80
    draws = rng.multinomial(n, [0.12, 0.05, 0.83], 3000)
    found = [paired.paired_difference(int(g), int(lost), n) for g, lost, _ in draws]
    share = np.mean([interval.low <= truth <= interval.high for interval in found])
    assert 0.94 < share < 0.975


def test_discrimination_improvement_is_the_mean_change() -> None:
    rows = cohort(5)
    first, second = rows["biopsy"], rows["score"]
    got = paired.integrated_discrimination(ChangeSums.from_rows(first, second, rows["pcr"]))
    for estimate, outcome, sign in ((got[0], 0, -1), (got[1], 1, 1)):
        change = sign * (second - first)[rows["pcr"] == outcome]
        want = DescrStatsW(change)
        assert_allclose(estimate.estimate, want.mean, rtol=1e-9)
        assert_allclose([estimate.low, estimate.high], want.zconfint_mean(0.05), rtol=1e-9)
    most = ChangeSums.from_rows([0, 0, 1], [1, 0, 1], [1, 1, 1])
    assert paired.integrated_discrimination(most)[1].estimate == pytest.approx(1 / 3)
    few = ChangeSums.from_rows([0.1, 0.2], [0.3, 0.4], [1, 1])
    assert paired.integrated_discrimination(few)[0] is None


# --- federation ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 30), assignments(300), st.integers(1, 300))
def test_sums_over_centres_are_the_pooled_patients(seed: int, site: np.ndarray, keep: int) -> None:
    rows = {name: values[:keep] for name, values in cohort(seed).items()}
    split = parts(rows, site[:keep])
    federated = added(count(part) for part in split)
    assert federated == count(rows)
    assert hash(federated) == hash(count(rows))
    changes, pooled = (
        added(ChangeSums.from_rows(part["biopsy"], part["score"], part["pcr"]) for part in rows_)
        for rows_ in (split, [rows])
    )
    assert_same(changes, pooled)
    assert_same(*(paired.integrated_discrimination(sums) for sums in (changes, pooled)))
    assert changes.cells().sum() == federated.cells().sum() == federated.n == keep


def test_unknown_values_do_not_count() -> None:
    rows = {"biopsy": [1, np.nan, 1, 0], "score": [0.9, 0.9, np.nan, 0.1], "pcr": [1, 1, 1, np.nan]}
    assert CallTable.of(Patients("A", rows), 0.5) == CallTable.from_rows([1], [1], [1])


@pytest.mark.parametrize(
    "counts", [np.zeros((2, 2), int), np.zeros((2, 2, 2)), -np.ones((2, 2, 2), int)]
)
def test_impossible_tables_are_refused(counts: np.ndarray) -> None:
    with pytest.raises(MetricError, match="calls: expected"):
        CallTable(counts)


def test_impossible_rows_are_refused() -> None:
    with pytest.raises(MetricError, match="second call"):
        CallTable.from_rows([1], [1, 0], [1])
    with pytest.raises(MetricError, match="probabilities"):
        ChangeSums.from_rows([0.1], [np.nan], [1])
    assert CallTable.empty() != "a table"
