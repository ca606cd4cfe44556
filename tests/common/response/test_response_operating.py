"""Parts of the ROC curve, thresholds, rounding: against scikit-learn, statsmodels and raw rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sklearn.metrics import confusion_matrix, roc_auc_score
from statsmodels.stats.proportion import proportion_confint
from tests.common.response.cohorts import added, assert_same, assignments, cohort, parts

from her2_common.errors import MetricError
from her2_common.metrics import GRID, ScoreHistogram, auc, quantise
from her2_common.response import operating
from her2_common.response.patients import called


def histogram(rows: dict[str, np.ndarray]) -> ScoreHistogram:
    return ScoreHistogram.from_scores(rows["score"], rows["pcr"])


@pytest.mark.parametrize("limit", [0.05, 0.1, 0.333, 0.9])
@pytest.mark.parametrize("levels", [0, 5])
def test_the_partial_area_is_scikit_learns(limit: float, levels: int) -> None:
    rows = cohort(4, 200, levels=levels)
    got = operating.partial_auc(histogram(rows), limit)
    want = roc_auc_score(rows["pcr"], quantise(rows["score"]) / GRID, max_fpr=limit)
    assert_allclose(got.standardised.estimate, want, rtol=1e-9)


def test_the_whole_area_is_the_auc() -> None:
    rows = cohort(5, 200)
    got = operating.partial_auc(histogram(rows), 1.0)
    assert_allclose(got.area.estimate, auc(histogram(rows)), rtol=1e-12)
    assert_allclose(got.standardised.estimate, got.area.estimate, rtol=1e-12)


def test_the_interval_is_a_bootstrap_of_the_rows() -> None:
    """Resampled rows, classes apart, give the same quantiles but for chance."""
    rows = cohort(6, 200)
    scores = quantise(rows["score"]) / GRID
    rng = np.random.default_rng(1)
    classes = [np.flatnonzero(rows["pcr"] == label) for label in (0, 1)]
    areas = []
    for _ in range(250):
        drawn = np.concatenate([rng.choice(part, part.size) for part in classes])
        areas.append(roc_auc_score(rows["pcr"][drawn], scores[drawn], max_fpr=0.2))
    got = operating.partial_auc(histogram(rows), 0.2)
    low, high = np.quantile(areas, [0.025, 0.975])
    assert_allclose([got.standardised.low, got.standardised.high], [low, high], atol=0.02)
    assert got.area.low < got.area.estimate < got.area.high
    assert got == operating.partial_auc(histogram(rows), 0.2, seed=0)
    assert got != operating.partial_auc(histogram(rows), 0.2, seed=1)


@pytest.mark.parametrize("threshold", [0.0, 0.296875, 0.5, 0.75, 1.0])
def test_operating_points_are_those_of_the_calls(threshold: float) -> None:
    rows = cohort(7)
    calls = called(rows["score"], threshold)
    tn, fp, fn, tp = confusion_matrix(rows["pcr"], calls, labels=[0, 1]).ravel().tolist()
    got = operating.operating_point(histogram(rows), threshold)
    assert (got.sensitivity.k, got.sensitivity.n) == (tp, tp + fn)
    assert (got.specificity.k, got.specificity.n) == (tn, tn + fp)
    assert (got.ppv.k, got.ppv.n, got.npv.k, got.npv.n) == (tp, tp + fp, tn, tn + fn)
    for part in (got.sensitivity, got.specificity, got.ppv, got.npv):
        if part.n == 0:
            assert (part.wilson, part.exact) == (None, None)
            continue
        for estimate, method in ((part.wilson, "wilson"), (part.exact, "beta")):
            want = proportion_confint(part.k, part.n, method=method)
            assert_allclose([estimate.low, estimate.high], want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sensitivity", [0.01, 0.5, 0.9, 1.0])
def test_the_threshold_for_a_sensitivity_is_the_highest(sensitivity: float) -> None:
    rows = cohort(8)
    threshold = operating.threshold_for(histogram(rows), sensitivity)
    positives = rows["score"][rows["pcr"] == 1]
    assert called(positives, threshold).mean() >= sensitivity
    assert called(positives, threshold + 1 / GRID).mean() < sensitivity


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=2, max_size=60).filter(
        lambda rows: 0 < sum(label for _, label in rows) < len(rows)
    )
)
def test_raw_scores_are_within_the_bound(rows: list[tuple[float, int]]) -> None:
    scores, labels = (np.array(values) for values in zip(*rows, strict=True))
    coarse = ScoreHistogram.from_scores(scores, labels)
    bound = operating.auc_error_bound(coarse)
    assert abs(roc_auc_score(labels, scores) - auc(coarse)) <= bound + 1e-12


def test_the_bound_is_reached_and_is_counted_in_pairs() -> None:
    """All pairs share a bin and are ranked rightly: the AUC is 1, the histogram's is 0.5."""
    scores, labels = [0.5, 0.50001, 0.50002], [0, 1, 1]
    coarse = ScoreHistogram.from_scores(scores, labels)
    assert roc_auc_score(labels, scores) - auc(coarse) == operating.auc_error_bound(coarse) == 0.5


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 20), assignments(300))
def test_sums_over_centres_are_the_pooled_patients(seed: int, site: np.ndarray) -> None:
    rows = cohort(seed, levels=seed % 4)
    federated = added(histogram(part) for part in parts(rows, site))
    for got, want in zip(
        *(
            (
                operating.operating_point(counts, 0.4),
                operating.threshold_for(counts, 0.9),
                operating.auc_error_bound(counts),
            )
            for counts in (federated, histogram(rows))
        ),
        strict=True,
    ):
        assert_same(got, want)


def test_what_no_sample_can_answer_is_none() -> None:
    one = ScoreHistogram.from_scores([0.2, 0.4], [0, 0])
    assert operating.partial_auc(one, 0.1) is None
    assert operating.auc_error_bound(one) is None
    assert operating.threshold_for(one, 0.9) is None


@pytest.mark.parametrize("bad", [0.0, 1.1, np.nan])
def test_impossible_questions_are_refused(bad: float) -> None:
    both = ScoreHistogram.from_scores([0.2, 0.4], [0, 1])
    with pytest.raises(MetricError, match="false-positive rate"):
        operating.partial_auc(both, bad)
    with pytest.raises(MetricError, match="sensitivity"):
        operating.threshold_for(both, bad)
