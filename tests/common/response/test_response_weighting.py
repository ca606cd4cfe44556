"""Inverse-probability weights against statsmodels, and against a known truth."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.special import expit
from tests.common.response.cohorts import Rows, added, assert_same, assignments, cohort, parts

from her2_common.errors import MetricError
from her2_common.metrics import wilson
from her2_common.response import logistic, weighting
from her2_common.response.design import design
from her2_common.response.inference import e_value
from her2_common.response.patients import Patients
from her2_common.response.weighting import WeightSums

COVARIATES = ("hr", "t", "score")


def federated(split: list[Rows]) -> tuple[WeightSums, list[np.ndarray]]:
    """Steps 1 and 2 over centres: does therapy change pCR?"""
    designs = [
        design(Patients(str(k), part), COVARIATES, [str(k)], outcome="therapy")
        for k, part in enumerate(split)
    ]
    fit = logistic.fit(
        lambda beta: logistic.total(
            [logistic.logistic_sums(part.x, part.outcome, beta) for part in designs]
        ),
        designs[0].names,
    )
    propensities = [expit(part.x @ fit.beta) for part in designs]
    sums = added(
        weighting.weight_sums(part.outcome, rows["pcr"], p, fit.events / fit.n)
        for part, rows, p in zip(designs, split, propensities, strict=True)
    )
    return sums, propensities


@pytest.mark.parametrize("seed", range(3))
def test_the_weighted_effect_is_statsmodels_with_robust_errors(seed: int) -> None:
    rows = cohort(seed, 500)
    sums, (propensity,) = federated([rows])
    x = sm.add_constant(np.stack([rows[name] for name in COVARIATES], axis=1))
    exposed, pcr = rows["therapy"], rows["pcr"]
    want = sm.Logit(exposed, x).fit(disp=0, tol=1e-14).predict()
    assert_allclose(propensity, want, rtol=1e-8)
    share = exposed.mean()
    weights = np.where(exposed == 1, share / want, (1 - share) / (1 - want))
    got = weighting.effect(sums)
    linear = sm.WLS(pcr, sm.add_constant(exposed), weights=weights).fit(cov_type="HC0")
    gap = got.risk_difference
    assert_allclose(gap.estimate, linear.params[1], rtol=1e-8)
    assert_allclose([gap.low, gap.high], linear.conf_int()[1], rtol=1e-7)
    assert_allclose(got.risk_0.estimate, linear.params[0], rtol=1e-8)
    assert_allclose([got.risk_0.low, got.risk_0.high], linear.conf_int()[0], rtol=1e-7)
    # The marginal structural logistic model: the same weights, clustered on the patient
    structural = sm.GEE(
        pcr, sm.add_constant(exposed), groups=np.arange(500), weights=weights,
        family=sm.families.Binomial(), cov_struct=sm.cov_struct.Independence(),
    ).fit(ctol=1e-12, maxiter=200)  # fmt: skip
    ratio = got.odds_ratio
    assert_allclose(ratio.estimate, np.exp(structural.params[1]), rtol=1e-6)
    assert_allclose([ratio.low, ratio.high], np.exp(structural.conf_int()[1]), rtol=1e-5)
    assert_allclose(got.risk_ratio.estimate, got.risk_1.estimate / got.risk_0.estimate)
    for group in (0, 1):
        own = weights[exposed == group]
        assert_allclose(got.effective[group], own.sum() ** 2 / (own**2).sum())
    assert e_value(got.risk_ratio)[0] >= 1


def test_equal_weights_are_the_plain_risks() -> None:
    group, outcome = np.repeat([1, 0], [30, 40]), np.repeat([1, 0, 1, 0], [18, 12, 10, 30])
    got = weighting.effect(weighting.weight_sums(group, outcome, np.full(70, 0.4), 0.4))
    assert_allclose([got.risk_1.estimate, got.risk_0.estimate], [0.6, 0.25])
    assert_allclose(got.risk_ratio.estimate, 0.6 / 0.25)
    se = np.sqrt(0.4 / 0.6 / 30 + 0.75 / 0.25 / 40)
    assert_allclose(got.risk_ratio.high, 0.6 / 0.25 * np.exp(1.959963984540054 * se))
    assert_allclose(got.effective, [40, 30])


def test_a_confounder_is_removed() -> None:
    """Severe disease is treated more and responds less: the crude effect is wrong, this is not."""
    rng = np.random.default_rng(0)
    n = 200_000
    severe = rng.random(n) < 0.5
    treated = rng.random(n) < np.where(severe, 0.8, 0.2)
    responds = rng.random(n) < np.where(severe, 0.1, 0.5) + 0.1 * treated
    rows = {"hr": severe, "therapy": treated, "pcr": responds, "t": rng.integers(0, 5, n),
            "score": rng.random(n)}  # fmt: skip
    rows = {name: values.astype(float) for name, values in rows.items()}
    assert responds[treated].mean() - responds[~treated].mean() < 0
    got = weighting.effect(federated([rows])[0])
    assert abs(got.risk_difference.estimate - 0.1) < 0.01
    assert got.risk_difference.low < 0.1 < got.risk_difference.high


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 20), assignments(300))
def test_twelve_centres_are_the_pooled_rows(seed: int, site: np.ndarray) -> None:
    rows = cohort(seed)
    sums, pooled = federated(parts(rows, site))[0], federated([rows])[0]
    assert_same(sums, pooled)
    assert_same(weighting.effect(sums), weighting.effect(pooled))
    assert sums.cells().tolist() == pooled.cells().tolist()


def test_what_no_sample_can_answer() -> None:
    one_group = weighting.weight_sums([1, 1], [0, 1], [0.5, 0.5], 0.5)
    assert weighting.effect(one_group) is None
    assert weighting.effect(WeightSums.empty()) is None
    assert_same(one_group + WeightSums.empty(), one_group)
    all_respond = weighting.weight_sums([1, 0, 0], [1, 0, 1], [0.3, 0.5, 0.7], 0.5)
    got = weighting.effect(all_respond)
    assert (got.risk_ratio, got.odds_ratio) == (None, None)
    assert got.risk_1.estimate == 1
    assert (got.risk_0.low, got.risk_0.high) == (0, 1)


def test_a_group_that_is_all_responders_has_an_interval() -> None:
    """Of equal weights: Wilson's, and Newcombe's for the difference (table II: 10/10, 0/20)."""
    group, outcome = np.repeat([1, 0], [10, 20]), np.repeat([1, 0], [10, 20])
    got = weighting.effect(weighting.weight_sums(group, outcome, np.full(30, 1 / 3), 1 / 3))
    one, none = wilson(10, 10), wilson(0, 20)
    assert_allclose([got.risk_1.low, got.risk_1.high], [one.low, 1.0])
    assert_allclose([got.risk_0.low, got.risk_0.high], [0.0, none.high])
    assert round(got.risk_difference.low, 4) == 0.6791
    assert got.risk_difference.high == 1.0
    assert (got.risk_ratio, got.odds_ratio) == (None, None)


@pytest.mark.parametrize(
    ("propensity", "share"), [([0.0, 0.5], 0.5), ([1.0, 0.5], 0.5), ([0.5], 0.5), ([0.5, 0.5], 1.0)]
)
def test_a_certain_group_cannot_be_weighed(propensity: list[float], share: float) -> None:
    with pytest.raises(MetricError, match="propensity: expected 2 numbers between 0 and 1"):
        weighting.weight_sums([1, 0], [0, 1], propensity, share)


def test_sums_of_another_shape_are_refused() -> None:
    zeros = np.zeros(2)
    with pytest.raises(MetricError, match="two sums of squares"):
        WeightSums(np.zeros((2, 2), int), zeros, np.zeros(3), zeros, zeros)
    with pytest.raises(MetricError, match=r"counts \(2, 2\)"):
        WeightSums(np.zeros(2, int), zeros, zeros, zeros, zeros)
