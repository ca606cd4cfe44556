"""Exact proportions, Holm, the E-value and the rule of small cells."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.stats import binom, norm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from her2_common.errors import MetricError
from her2_common.metrics import Estimate
from her2_common.response import inference
from her2_common.response.strata import Strata


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 300), st.integers(0, 300), st.sampled_from([0.8, 0.95, 0.99]))
def test_clopper_pearson_is_statsmodels_and_has_its_tails(n: int, k: int, level: float) -> None:
    k = min(k, n)
    got = inference.clopper_pearson(k, n, level)
    assert_allclose(
        [got.low, got.high], proportion_confint(k, n, 1 - level, "beta"), rtol=1e-9, atol=1e-12
    )
    if k:
        assert_allclose(binom.sf(k - 1, n, got.low), (1 - level) / 2, rtol=1e-7)
    if k < n:
        assert_allclose(binom.cdf(k, n, got.high), (1 - level) / 2, rtol=1e-7)


def test_proportions_of_nobody_and_impossible_ones() -> None:
    assert inference.clopper_pearson(0, 0) is None
    with pytest.raises(MetricError, match="0 <= k <= n"):
        inference.clopper_pearson(3, 2)
    with pytest.raises(MetricError, match="level"):
        inference.clopper_pearson(1, 2, 1.0)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_statsmodels(values: list[float]) -> None:
    got = inference.holm({f"test {k}": p for k, p in enumerate(values)})
    assert list(got) == [f"test {k}" for k in range(len(values))]
    assert_allclose(list(got.values()), multipletests(values, method="holm")[1], atol=1e-12)


def test_holm_refuses_what_is_no_p_value() -> None:
    with pytest.raises(MetricError, match="p-value a"):
        inference.holm({"a": np.nan})
    assert inference.holm({}) == {}


def test_the_e_value_of_the_paper() -> None:
    """VanderWeele and Ding (2017): maternal breastfeeding, risk ratio 3.9 (1.8 to 8.7); and the
    protective effect of their second example, 0.80 (0.71 to 0.91)."""
    assert [round(v, 1) for v in inference.e_value(Estimate(3.9, 1.8, 8.7))] == [7.3, 3.0]
    assert [round(v, 2) for v in inference.e_value(Estimate(0.80, 0.71, 0.91))] == [1.81, 1.43]


@settings(deadline=None, max_examples=60)
@given(st.floats(0.05, 20), st.floats(0.01, 3))
def test_the_e_value_is_the_least_confounding_that_explains(ratio: float, spread: float) -> None:
    """A confounder with both risk ratios E moves a ratio by E E / (E + E - 1) at most."""
    estimate = Estimate(ratio, ratio / np.exp(spread), ratio * np.exp(spread))
    point, bound = inference.e_value(estimate)
    assert_allclose(point**2 / (2 * point - 1), max(ratio, 1 / ratio), rtol=1e-9)
    inverse = Estimate(1 / ratio, 1 / estimate.high, 1 / estimate.low)
    assert_allclose(inference.e_value(inverse), (point, bound), rtol=1e-9)
    assert 1 <= bound <= point + 1e-12


def test_the_e_value_refuses_what_is_no_risk_ratio() -> None:
    with pytest.raises(MetricError, match="positive finite"):
        inference.e_value(Estimate(1.0, 0.0, 2.0))


def test_tests_in_json() -> None:
    assert inference.z_test(1.5).as_dict() == {
        "statistic": 1.5,
        "df": None,
        "p_value": pytest.approx(2 * norm.sf(1.5)),
    }
    assert inference.chi_square(2.25, 1).p_value == pytest.approx(2 * norm.sf(1.5))


def test_a_policy_counts_cells_but_not_empty_ones() -> None:
    tables = Strata.from_tables({"A": [[10, 0], [12, 30]]})
    assert inference.smallest_cell(tables) == 10
    assert inference.may_leave(tables)
    assert not inference.may_leave(tables, 11)
    assert inference.may_leave(Strata.from_tables({"A": [[0, 0], [0, 0]]}))
