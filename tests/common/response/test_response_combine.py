"""Random effects against statsmodels and the BCG trials."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.special import expit, logit
from scipy.stats import norm, t
from statsmodels.stats.meta_analysis import combine_effects
from tests.common.response.cohorts import assert_same, cohort

from her2_common.errors import MetricError
from her2_common.metrics import Estimate
from her2_common.response import combine, delong, strata
from her2_common.response.primary_section import between_centres
from her2_common.response.strata import Strata

BCG = np.array(
    [
        (4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619),
        (33, 5036, 47, 5761), (180, 1361, 372, 1079), (8, 2537, 10, 619), (505, 87886, 499, 87892),
        (29, 7470, 45, 7232), (17, 1699, 65, 1600), (186, 50448, 141, 27197), (5, 2493, 3, 2338),
        (27, 16886, 29, 17825),
    ],
    dtype=float,
)  # fmt: skip
"""Tuberculosis with and without, vaccinated and not: Colditz et al., JAMA 271 (1994) 698-702."""


def test_the_bcg_trials_are_what_metafor_prints() -> None:
    """R: rma(measure = "RR", data = dat.bcg, method = "DL")."""
    a, b, c, d = BCG.T
    y = np.log(a / (a + b)) - np.log(c / (c + d))
    v = 1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)
    got = combine.random_effects(y, v)
    assert round(got.tau2, 4) == 0.3088
    assert round(got.mean.estimate, 4) == -0.7141
    assert (round(got.q.statistic, 4), got.q.df) == (152.2330, 12)
    assert round(100 * got.i2, 2) == 92.12


@pytest.mark.parametrize("seed", range(6))
def test_mean_and_interval_are_statsmodels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    v = rng.uniform(0.01, 0.2, 6)
    y = rng.normal(0.5, np.sqrt(v + 0.05 * (seed % 3)))
    want = combine_effects(y, v, method_re="chi2", use_t=True)
    got = combine.random_effects(y, v)
    assert_allclose(got.tau2, max(0.0, want.tau2), rtol=1e-9, atol=1e-15)
    assert_allclose(got.q.statistic, want.q, rtol=1e-9)
    assert_allclose(got.i2, max(0.0, want.i2), rtol=1e-9, atol=1e-12)
    if want.tau2 > 0:
        assert_allclose(got.mean.estimate, want.mean_effect_re, rtol=1e-9)
        # R: metafor's test = "adhoc", the larger of both standard errors
        error = max(want.sd_eff_w_re_hksj, want.sd_eff_w_re)
        assert_allclose(got.mean.high - got.mean.estimate, t.ppf(0.975, 5) * error, rtol=1e-9)
        reach = t.ppf(0.975, 4) * np.hypot(np.sqrt(want.tau2), error)
        assert_allclose(got.prediction.high - got.prediction.estimate, reach, rtol=1e-9)


def width(estimate: Estimate) -> float:
    return estimate.high - estimate.low


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-3, 3), st.floats(1e-4, 4)), min_size=2, max_size=12),
    st.sampled_from([0.0, 1e-3, 1.0]),
)
def test_random_effects_are_never_narrower_than_fixed_effects(
    centres: list[tuple[float, float]], spread: float
) -> None:
    y, v = np.array(centres).T
    y = y[0] + spread * (y - y[0])  # centres that agree exactly, nearly, or not
    got = combine.random_effects(y, v)
    fixed = 2 * norm.ppf(0.975) / np.sqrt((1 / v).sum())
    assert width(got.mean) >= fixed * (1 - 1e-12)
    if got.prediction is not None:
        assert width(got.prediction) >= width(got.mean) * (1 - 1e-12)


def test_four_alike_centres_have_an_interval() -> None:
    """[[12, 15], [10, 20]] four times: 1.60, by fixed effects 0.95 to 2.70."""
    log_ratio, variance = np.log(12 * 20 / (15 * 10)), 1 / 12 + 1 / 15 + 1 / 10 + 1 / 20
    got = combine.random_effects([log_ratio] * 4, [variance] * 4)
    assert np.exp(got.mean.estimate) == pytest.approx(1.6)
    margin = t.ppf(0.975, 3) * np.sqrt(variance / 4)
    assert_allclose([got.mean.low, got.mean.high], log_ratio + margin * np.array([-1, 1]))
    tables = Strata.from_tables({name: [[12, 15], [10, 20]] for name in "ABCD"})
    found, fixed = between_centres(tables), strata.odds_ratio(tables)
    assert found.mean.low < fixed.low
    assert found.mean.high > fixed.high


def test_centres_that_agree_have_no_heterogeneity() -> None:
    got = combine.random_effects([0.3, 0.3, 0.3], [0.1, 0.2, 0.3])
    assert (got.tau2, got.i2) == (0, 0)
    assert_allclose([got.q.statistic, got.q.p_value], [0, 1], atol=1e-12)


def test_two_centres_have_no_prediction_and_one_has_no_answer() -> None:
    assert combine.random_effects([0.1, 0.4], [0.1, 0.1]).prediction is None
    assert combine.random_effects([0.1], [0.1]) is None
    assert combine.random_effects([], []) is None


@pytest.mark.parametrize(
    ("y", "v"),
    [([0.1], [0.1, 0.2]), ([np.nan, 1], [1, 1]), ([1, 1], [0, 1]), ([1, 1], [1, np.inf])],
)
def test_impossible_estimates_are_refused(y: list, v: list) -> None:
    with pytest.raises(MetricError, match="random effects: expected"):
        combine.random_effects(y, v)


def test_aucs_are_combined_on_the_log_odds() -> None:
    rows = [cohort(seed, 200) for seed in range(5)]
    centres = {
        f"centre {k}": delong.at_centre({"image": r["score"]}, r["pcr"]) for k, r in enumerate(rows)
    }
    perfect = delong.at_centre({"image": [0.1, 0.2, 0.8, 0.9]}, [0, 0, 1, 1])
    lone = delong.at_centre({"image": [0.1, 0.2, 0.8]}, [0, 0, 1])
    got = combine.combine_auc(
        centres | {"perfect": perfect, "lone": lone, "one outcome": None}, "image"
    )
    assert got.left_out == ("perfect", "lone", "one outcome")
    areas = np.array([part.auc[0] for part in centres.values()])
    variances = np.array([part.covariance[0, 0] for part in centres.values()])
    want = combine.random_effects(logit(areas), variances / (areas * (1 - areas)) ** 2)
    assert_allclose(
        [got.mean.estimate, got.mean.low, got.mean.high],
        expit([want.mean.estimate, want.mean.low, want.mean.high]),
    )
    assert_allclose(got.prediction.low, expit(want.prediction.low))
    assert_same((got.tau2, got.i2, got.q), (want.tau2, want.i2, want.q))
    assert 0 < got.mean.low < got.mean.estimate < got.mean.high < 1
    assert combine.combine_auc({"perfect": perfect}, "image") is None
