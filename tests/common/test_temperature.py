"""The temperature against scikit-learn and statsmodels on rows, and the folding against logits."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.optimize import brentq
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from her2_common.calibration import calibration, log_loss
from her2_common.metrics import GRID, ScoreHistogram, auc, quantise
from her2_common.model import GROUPS, Batch, MapModel, build_model, get_groups, preset, set_groups
from her2_common.temperature import LogitMap, fit_temperature, fold, slope_bounds


def rows(seed: int, n: int = 400, slope: float = 1.8, shift: float = 0.0) -> tuple:
    """Scores whose log odds are ``slope`` times, plus ``shift``, what they should be."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(scale=1.5, size=n)
    labels = (rng.random(n) < expit(truth)).astype(int)
    return expit(slope * truth + shift), labels


def unrounded_slope(scores: np.ndarray, labels: np.ndarray) -> float:
    """The root of the derivative of the likelihood, on scores as they are."""
    odds = logit(scores)
    return brentq(lambda b: odds @ (labels - expit(b * odds)), 1e-3, 50, xtol=1e-13)


@pytest.mark.parametrize("seed", range(4))
def test_the_slope_is_scikit_learns_on_the_grid(seed: int) -> None:
    scores, labels = rows(seed)
    odds = logit(np.clip(quantise(scores) / GRID, 0.5 / GRID, 1 - 0.5 / GRID))
    oracle = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-12, max_iter=1000)
    oracle.fit(odds[:, None], labels)
    got = fit_temperature(ScoreHistogram.from_scores(scores, labels))
    assert_allclose(got.slope, oracle.coef_[0, 0], rtol=1e-6)
    assert (got.intercept, got.reason) == (0.0, None)
    assert_allclose(got.temperature, 1 / got.slope)
    assert got.temperature > 1.2


@pytest.mark.parametrize("seed", range(4))
def test_slope_and_intercept_are_statsmodels(seed: int) -> None:
    scores, labels = rows(seed, shift=1.2)
    odds = logit(np.clip(quantise(scores) / GRID, 0.5 / GRID, 1 - 0.5 / GRID))
    fit = sm.Logit(labels, sm.add_constant(odds)).fit(disp=0, tol=1e-12)
    got = fit_temperature(ScoreHistogram.from_scores(scores, labels), intercept=True)
    assert_allclose([got.intercept, got.slope], fit.params, rtol=1e-6)
    assert got.intercept < -0.3


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(40, 400),
    slope=st.floats(0.3, 3.0),
)
def test_the_grid_moves_the_slope_no_further_than_its_bounds(
    seed: int, n: int, slope: float
) -> None:
    scores, labels = rows(seed, n, slope)
    histogram = ScoreHistogram.from_scores(scores, labels)
    fit = fit_temperature(histogram)
    if fit.reason is not None:
        return
    low, high = slope_bounds(histogram)
    exact = unrounded_slope(scores, labels)
    assert low - 1e-9 <= exact <= high + 1e-9
    assert low - 1e-9 <= fit.slope <= high + 1e-9


def test_the_bounds_are_narrow_and_near_the_first_order() -> None:
    """A case moved by half a step at log odds z moves the slope by about that over 4 p (1 - p)."""
    scores, labels = rows(3, slope=1.0)
    low, high = slope_bounds(ScoreHistogram.from_scores(scores, labels))
    assert 0 < high - low < 0.05


def test_a_positive_at_score_0_may_be_wrong_by_any_amount() -> None:
    scores, labels = rows(3)
    low, high = slope_bounds(
        ScoreHistogram.from_scores([*scores, 0.0], [*labels, 1])  # log odds of -8, or of -800
    )
    assert low == 0.0
    assert np.isfinite(high)


def test_after_the_map_the_slope_is_1_and_the_order_is_kept() -> None:
    scores, labels = rows(7, n=4000)
    before = ScoreHistogram.from_scores(scores, labels)
    fit = fit_temperature(before)
    after = ScoreHistogram.from_scores(expit(fit.slope * logit(scores)), labels)
    again = fit_temperature(after)
    assert_allclose(again.slope, 1.0, atol=2e-3)
    assert abs(auc(after) - auc(before)) < 1e-4
    assert log_loss(after) < log_loss(before)
    assert abs(calibration(after).slope.estimate - 1) < 0.1


# --- none, and why ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "labels", "options", "reason"),
    [
        ([0.2] * 9 + [0.8] * 20 + [0.9], [0] * 9 + [1] * 20 + [0], {}, None),
        ([0.2] * 9 + [0.8] * 20, [0] * 9 + [1] * 20, {}, "fewer than 10 validation cases"),
        ([0.8] * 20, [1] * 20, {"min_cell": 0}, "fewer than 1 validation cases"),
        ([0.3, 0.6] * 10, [1, 0] * 10, {}, "AUC on validation is not above 0.5"),
        ([0.5] * 20, [1, 0] * 10, {}, "AUC on validation is not above 0.5"),
        ([0.3, 0.6] * 10, [0, 1] * 10, {}, "the classes do not overlap"),
        ([0.6, 0.7] * 10, [0, 1] * 10, {"intercept": True}, "the classes do not overlap"),
        # All far above 0.5 and most of them negative: no positive slope helps
        ([0.9] * 15 + [0.95] * 10, [0] * 15 + [1] * 10, {}, "the slope is not between 0.1 and 10"),
        ([0.499, 0.501] * 9 + [0.499, 0.501] * 2, [0, 1] * 9 + [1, 1, 0, 1], {}, "not between"),
    ],
)  # fmt: skip
def test_without_a_sound_fit_scores_stay(
    scores: list, labels: list, options: dict, reason: str | None
) -> None:
    got = fit_temperature(ScoreHistogram.from_scores(scores, labels), **options)
    if reason is None:
        assert got.reason is None
        return
    assert reason in got.reason
    assert (got.slope, got.intercept, got.temperature) == (1.0, 0.0, 1.0)


@settings(deadline=None, max_examples=80)
@given(
    cells=st.lists(
        st.tuples(st.sampled_from([0, 1, 300, 511, 512, 513, 1000, 1023, GRID]), st.integers(0, 1)),
        max_size=60,
    ),
    intercept=st.booleans(),
)
def test_any_histogram_gives_a_map_or_a_reason(cells: list, intercept: bool) -> None:
    """No warning (an error here), no NaN, and never a fit that is worse than none."""
    bins, labels = [c[0] for c in cells], [c[1] for c in cells]
    histogram = ScoreHistogram.from_scores(np.array(bins, dtype=float) / GRID, labels)
    got = fit_temperature(histogram, intercept=intercept, min_cell=1)
    assert 0.1 <= got.slope <= 10
    assert np.isfinite(got.intercept)
    if got.reason is None:
        odds = logit(np.clip(np.array(bins) / GRID, 0.5 / GRID, 1 - 0.5 / GRID))
        signs = 2 * np.array(labels) - 1

        def loss(slope: float, constant: float) -> float:
            return float(np.logaddexp(0, -signs * (slope * odds + constant)).sum())

        assert loss(got.slope, got.intercept) <= loss(1.0, 0.0) + 1e-9
    low, high = slope_bounds(histogram)
    assert 0 <= low <= high


# --- folding ------------------------------------------------------------------------------------


def batch() -> Batch:
    generator = torch.Generator().manual_seed(2)
    return Batch(
        images={
            "mg": torch.randn(2, 4, 32, 32, generator=generator),
            "us": torch.randn(3, 1, 32, 32, generator=generator),
        },
        rows={"mg": torch.tensor([0, 1]), "us": torch.tensor([0, 1, 2])},
        clinical=torch.randn(3, 5, generator=generator),
    )


def model_of(groups: dict, layout: dict) -> MapModel:
    model = build_model("compact", 0, **layout)
    set_groups(model, groups)
    return model.eval()


@pytest.mark.parametrize("levels", [2, 3])
def test_folding_is_the_map_of_the_log_odds_and_of_nothing_else(levels: int) -> None:
    layout = {"image_size": 32, "volume_size": 16, "levels": levels}
    model = build_model("compact", 5, **layout)
    with torch.no_grad():  # far from 0, as after training
        model.head.weight.normal_(generator=torch.Generator().manual_seed(1))
        model.head.bias.normal_(generator=torch.Generator().manual_seed(3))
    trained = get_groups(model, GROUPS)
    before = {g: v.copy() for g, v in trained.items()}
    fit = LogitMap(slope=0.6, intercept=-0.4)
    folded = fold(trained, preset("compact", **layout), fit)
    assert all(np.array_equal(trained[g], before[g]) for g in GROUPS)
    assert all(folded[g] is trained[g] for g in ("mg", "us", "mri"))
    assert all(folded[g].dtype == np.float32 for g in GROUPS)
    with torch.no_grad():
        old, new = model_of(trained, layout)(batch()), model_of(folded, layout)(batch())
    pairs = [(old.fused, new.fused), *((old.single[m], new.single[m]) for m in old.single)]
    for was, now in pairs:
        odds, mapped = was[:, 1] - was[:, 0], now[:, 1] - now[:, 0]
        torch.testing.assert_close(mapped, 0.6 * odds - 0.4, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(now[:, 2:], was[:, 2:], rtol=0, atol=0)  # low against zero
    for modality, feature in old.features.items():
        assert torch.equal(feature, new.features[modality])


def test_no_map_changes_no_bit() -> None:
    groups = get_groups(build_model("compact", 8), GROUPS)
    folded = fold(groups, preset("compact"), LogitMap(reason="few"))
    assert all(folded[g].tobytes() == groups[g].tobytes() for g in GROUPS)
