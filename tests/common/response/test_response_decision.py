"""Net benefit, calibration error and Brier score against their definitions on the rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from statsmodels.stats.weightstats import DescrStatsW
from tests.common.response.cohorts import added, assert_same, assignments, cohort, parts

from her2_common.calibration import calibration
from her2_common.errors import MetricError
from her2_common.metrics import GRID, ScoreHistogram, quantise, wilson
from her2_common.response import decision


def histogram(rows: dict[str, np.ndarray]) -> ScoreHistogram:
    return ScoreHistogram.from_scores(rows["score"], rows["pcr"])


@pytest.mark.parametrize("seed", range(3))
def test_net_benefit_is_a_mean_over_patients(seed: int) -> None:
    rows = cohort(seed)
    scores, pcr = quantise(rows["score"]) / GRID, rows["pcr"]
    got = decision.net_benefit(histogram(rows))
    assert [part.threshold for part in got] == list(decision.THRESHOLDS)
    for part in got:
        odds = part.threshold / (1 - part.threshold)
        worth = np.where(pcr == 1, 1.0, -odds)  # of treating a patient
        treated = scores >= part.threshold
        for estimate, values in (
            (part.model, worth * treated),
            (part.treat_all, worth),
            (part.over_all, worth * treated - worth),
        ):
            want = DescrStatsW(values)
            assert_allclose(estimate.estimate, want.mean, rtol=1e-9, atol=1e-12)
            assert_allclose([estimate.low, estimate.high], want.zconfint_mean(0.05), atol=1e-12)


def test_treating_all_is_worth_nothing_at_the_prevalence() -> None:
    rows = ScoreHistogram.from_scores(np.full(100, 0.25), np.repeat([1, 0], [25, 75]))
    part = decision.net_benefit(rows, [0.25])[0]
    assert_allclose([part.treat_all.estimate, part.model.estimate], 0, atol=1e-12)
    assert part.over_all.estimate == 0


def test_thresholds_run_from_a_tenth_to_seven_tenths() -> None:
    assert decision.THRESHOLDS[0] == 0.1
    assert decision.THRESHOLDS[-1] == 0.7
    with pytest.raises(MetricError, match="between 0 and 1"):
        decision.net_benefit(ScoreHistogram.empty(), [0.5, 1.0])
    assert decision.net_benefit(ScoreHistogram.from_scores([0.5], [1])) == []
    assert len(decision.net_benefit(ScoreHistogram.from_scores([0.5, 0.5], [0, 1]))) == 13


@pytest.mark.parametrize("bins", [1, 5, 10])
def test_the_calibration_error_is_the_mean_gap(bins: int) -> None:
    rows = cohort(3)
    scores = quantise(rows["score"]) / GRID
    place = np.minimum((scores * bins).astype(int), bins - 1)
    want = sum(
        np.sum(place == k) * abs(scores[place == k].mean() - rows["pcr"][place == k].mean())
        for k in range(bins)
        if np.any(place == k)
    ) / len(scores)
    assert_allclose(decision.calibration_error(histogram(rows), bins), want, rtol=1e-9)
    assert decision.calibration_error(ScoreHistogram.empty()) is None


def test_joined_bins_can_only_hide_error() -> None:
    rows = cohort(4)
    whole = decision.calibration_error(histogram(rows), 10)
    joined = decision.calibration_error(histogram(rows), 10, min_cell=60)
    assert 0 < joined <= whole + 1e-12


def test_the_brier_score_is_a_mean_over_patients() -> None:
    rows = cohort(5)
    want = DescrStatsW((quantise(rows["score"]) / GRID - rows["pcr"]) ** 2)
    got = decision.brier_interval(histogram(rows))
    assert_allclose(got.estimate, want.mean, rtol=1e-9)
    assert_allclose([got.low, got.high], want.zconfint_mean(0.05), rtol=1e-9)
    assert decision.brier_interval(ScoreHistogram.from_scores([0.1], [1])) is None


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 30), assignments(300), st.integers(2, 300))
def test_sums_over_centres_are_the_pooled_patients(seed: int, site: np.ndarray, keep: int) -> None:
    rows = {name: values[:keep] for name, values in cohort(seed, levels=seed % 4).items()}
    federated = added(histogram(part) for part in parts(rows, site[:keep]))
    for function in (
        decision.net_benefit,
        decision.calibration_error,
        decision.brier_interval,
        calibration,
    ):
        assert_same(function(federated), function(histogram(rows)))


def test_patients_who_are_all_alike_have_an_interval_of_some_width() -> None:
    """Nobody is treated at 0.6, and all are equally wrong at 0.5."""
    alike = ScoreHistogram.from_scores([0.5] * 20, [0, 1] * 10)
    (at,) = decision.net_benefit(alike, [0.6])
    assert at.model.estimate == 0
    share = wilson(0, 20).high
    assert_allclose([at.model.low, at.model.high], [-1.5 * share, share])
    score = decision.brier_interval(alike)
    assert score.low < score.estimate == 0.25 < score.high
    perfect = decision.brier_interval(ScoreHistogram.from_scores([0, 1] * 10, [0, 1] * 10))
    assert (perfect.estimate, perfect.low) == (0, 0)
    assert perfect.high == pytest.approx(share)
