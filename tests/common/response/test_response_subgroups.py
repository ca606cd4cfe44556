"""Subgroups are the primary comparison of the rows chosen, and add up over centres."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.stats import chi2
from tests.common.response.cohorts import BERKELEY, assert_same, assignments, cohort, parts

from her2_common.errors import MetricError
from her2_common.response import primary, strata, subgroups
from her2_common.response.patients import Patients
from her2_common.response.strata import Strata


@pytest.mark.parametrize("column", subgroups.SUBGROUPS)
def test_a_subgroup_is_the_comparison_of_its_rows(column: str) -> None:
    rows = cohort(1, 2000)
    groups = subgroups.subgroup_strata(Patients("A", rows), column, 0.5)
    assert len(groups) == {"hr": 2, "t": 5, "n": 4, "modalities": 7}[column]
    for value in np.unique(rows[column]):
        chosen = {name: values[rows[column] == value] for name, values in rows.items()}
        want = primary.primary_strata(Patients("A", chosen), 0.5)
        assert groups[subgroups.label(column, int(value))] == want
    whole = primary.primary_strata(Patients("A", rows), 0.5)
    assert sum(tables.n for tables in groups.values()) == whole.n


def test_labels_name_the_modalities() -> None:
    labels = [subgroups.label("modalities", value) for value in range(1, 8)]
    assert labels[0] == "modalities mg"
    assert labels[-1] == "modalities mg+us+mri"
    assert len(set(labels)) == 7


def test_a_forest_has_a_row_for_each_subgroup_with_patients() -> None:
    groups = {
        "hr 0": Strata.from_tables({"A": [[20, 10], [10, 20]], "B": [[9, 9], [7, 12]]}),
        "hr 1": Strata.from_tables({"A": [[10, 20], [20, 10]]}),
        "void": Strata.from_tables({"A": [[0, 0], [0, 0]]}),
        "alike": Strata.from_tables({"A": [[3, 0], [4, 0]]}),
    }
    got = subgroups.forest(groups)
    assert [row.label for row in got.rows] == ["hr 0", "hr 1", "alike"]
    assert got.rows[0].odds_ratio == strata.odds_ratio(groups["hr 0"])
    assert got.rows[0].risk_difference == strata.risk_difference(groups["hr 0"])
    assert (got.rows[0].n, got.rows[0].responders) == (97, 46)
    assert got.rows[2].odds_ratio is None
    ratios = [row.odds_ratio for row in got.rows[:2]]
    logs = np.log([r.estimate for r in ratios])
    weights = np.array([(2 * 1.959963984540054 / np.log(r.high / r.low)) ** 2 for r in ratios])
    q = weights @ (logs - weights @ logs / weights.sum()) ** 2
    assert got.heterogeneity.df == 1
    assert_allclose(
        [got.heterogeneity.statistic, got.heterogeneity.p_value], [q, chi2.sf(q, 1)], rtol=1e-9
    )


def test_centres_are_rows_too() -> None:
    tables = Strata.from_tables(
        {"A": [[20, 10], [10, 20]], "B": [[9, 9], [7, 12]], "C": [[0, 0]] * 2}
    )
    got = subgroups.by_centre(tables)
    assert [(row.label, row.n) for row in got.rows] == [("A", 60), ("B", 37)]
    assert got.rows[1].odds_ratio.estimate == pytest.approx(9 * 12 / (9 * 7))


def test_centres_are_tested_as_woolf_did() -> None:
    """R: vcd::woolf_test(UCBAdmissions), X-squared 17.902, df 5, p 0.003072."""
    got = subgroups.by_centre(BERKELEY).heterogeneity
    assert (round(got.statistic, 3), got.df, round(got.p_value, 6)) == (17.902, 5, 0.003072)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 20), assignments(300), st.sampled_from(subgroups.SUBGROUPS))
def test_centres_add_up(seed: int, site: np.ndarray, column: str) -> None:
    """All patients under one name, counted at once and by site."""
    rows = cohort(seed)
    pooled = subgroups.subgroup_strata(Patients("all", rows), column, 0.5)
    federated = reduce(
        subgroups.add,
        (
            subgroups.subgroup_strata(Patients("all", part), column, 0.5)
            for part in parts(rows, site)
        ),
    )
    assert federated == pooled
    assert_same(subgroups.forest(federated), subgroups.forest(pooled))


def test_other_columns_form_no_subgroups() -> None:
    with pytest.raises(MetricError, match="expected one of hr, t, n, modalities, got 'age'"):
        subgroups.subgroup_strata(Patients("A", cohort(1)), "age", 0.5)
    assert subgroups.add({"a": Strata.empty()}, {"b": Strata.empty()}).keys() == {"a", "b"}
