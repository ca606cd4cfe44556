"""Calibration against statsmodels on the pooled rows."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.special import expit, logit

from her2_common.calibration import calibration, reliability
from her2_common.errors import MetricError
from her2_common.metrics import GRID, ScoreHistogram, quantise, wilson


def overconfident(seed: int, n: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose log odds are twice, plus 0.4, what they should be; some are 0 or 1."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(scale=2, size=n)
    labels = (rng.random(n) < expit(truth)).astype(int)
    return quantise(expit(2 * truth + 0.4)) / GRID, labels


def log_odds(scores: np.ndarray) -> np.ndarray:
    return logit(np.clip(scores, 0.5 / GRID, 1 - 0.5 / GRID))


@pytest.mark.parametrize("seed", range(4))
def test_the_slope_is_statsmodels_logit(seed: int) -> None:
    scores, labels = overconfident(seed)
    fit = sm.Logit(labels, sm.add_constant(log_odds(scores))).fit(disp=0, tol=1e-12)
    low, high = fit.conf_int()[1]
    got = calibration(ScoreHistogram.from_scores(scores, labels)).slope
    assert_allclose([got.estimate, got.low, got.high], [fit.params[1], low, high], rtol=1e-6)
    assert got.estimate < 0.7


@pytest.mark.parametrize("seed", range(4))
def test_the_intercept_is_statsmodels_with_the_slope_held_at_one(seed: int) -> None:
    scores, labels = overconfident(seed)
    fit = sm.GLM(
        labels, np.ones(len(labels)), family=sm.families.Binomial(), offset=log_odds(scores)
    ).fit(tol=1e-12)
    low, high = fit.conf_int()[0]
    got = calibration(ScoreHistogram.from_scores(scores, labels)).intercept
    assert_allclose([got.estimate, got.low, got.high], [fit.params[0], low, high], atol=1e-6)


def test_scores_that_keep_their_promise_have_intercept_0_and_slope_1() -> None:
    """The counts are the expectation itself: of 1,024,000 cases at k/1024, k in 1,024 positive."""
    positives = 1000 * np.arange(GRID + 1)
    got = calibration(ScoreHistogram(1000 * GRID - positives, positives))
    # 0 and 1 count half a step inside, hence not exactly 0 and 1
    assert abs(got.intercept.estimate) < 1e-3
    assert abs(got.slope.estimate - 1) < 5e-3


@pytest.mark.parametrize(
    ("scores", "labels"),
    [
        ([0.2, 0.3, 0.7], [0, 0, 1]),
        ([0.2, 0.3, 0.7], [1, 1, 0]),
        ([0.2, 0.5, 0.5, 0.7], [0, 0, 1, 1]),
        ([0.5, 0.5], [0, 1]),
    ],
    ids=["separated", "inverted", "tied at the cut", "one score"],
)
def test_without_overlap_the_slope_is_not_finite(scores: list, labels: list) -> None:
    got = calibration(ScoreHistogram.from_scores(scores, labels))
    assert got.slope is None
    assert got.intercept is not None


@pytest.mark.parametrize("labels", [[], [0, 0], [1, 1]])
def test_one_class_cannot_be_calibrated(labels: list[int]) -> None:
    got = calibration(ScoreHistogram.from_scores([0.5] * len(labels), labels))
    assert (got.intercept, got.slope) == (None, None)


def test_an_extreme_sample_still_converges() -> None:
    """One positive among ten thousand negatives, far out: plain Newton steps overshoot."""
    scores = np.concatenate([np.full(9_999, 0.999), [0.001, 0.9]])
    labels = np.concatenate([np.zeros(9_999), [1, 0]]).astype(int)
    scores, labels = np.append(scores, 0.9995), np.append(labels, 1)
    fit = sm.Logit(labels, sm.add_constant(log_odds(quantise(scores) / GRID))).fit(disp=0)
    got = calibration(ScoreHistogram.from_scores(scores, labels)).slope
    assert_allclose(got.estimate, fit.params[1], rtol=1e-5)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), max_size=60),
    st.integers(1, 20),
    st.integers(0, 12),
)
def test_bins_cover_all_cases_and_none_is_small(pairs: list, bins: int, min_cell: int) -> None:
    scores = quantise([p[0] for p in pairs]) / GRID
    labels = np.array([p[1] for p in pairs], int)
    got = reliability(ScoreHistogram.from_scores(scores, labels), bins, min_cell=min_cell)
    assert got[0].low == 0
    assert got[-1].high == 1
    assert [b.low for b in got[1:]] == [b.high for b in got[:-1]]
    assert sum(b.n for b in got) == len(pairs)
    for bin_ in got:
        inside = (scores >= bin_.low) & ((scores < bin_.high) | (bin_.high == 1))
        assert bin_.n == inside.sum()
        assert bin_.observed == wilson(int(labels[inside].sum()), int(inside.sum()))
        if bin_.n:
            assert_allclose(bin_.mean_score, scores[inside].mean(), atol=1e-12)
        else:
            assert bin_.mean_score is None
        assert bin_.n >= min_cell or len(got) == 1
    if min_cell == 0:
        assert len(got) == bins


@pytest.mark.parametrize("bins", [0, GRID + 1])
def test_the_number_of_bins_is_checked(bins: int) -> None:
    with pytest.raises(MetricError, match="bins: expected 1 to 1024"):
        reliability(ScoreHistogram.empty(), bins)
