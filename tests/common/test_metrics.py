"""Every metric against an independent oracle on the pooled rows, and the laws of histograms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.stats import norm
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc
from statsmodels.stats.proportion import proportion_confint

from her2_common import metrics
from her2_common.errors import MetricError
from her2_common.metrics import GRID, Confusion, Estimate, ScoreHistogram

Rows = tuple[np.ndarray, np.ndarray]


def sample(seed: int, n: int = 160, *, spread: float = 1.0) -> Rows:
    """Labels with prevalence 0.35 and scores that know something about them."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.35).astype(int)
    scores = 1 / (1 + np.exp(-spread * (rng.normal(size=n) + labels - 0.8)))
    return scores, labels


def coarse(seed: int) -> Rows:
    """Like ``sample``, with many ties."""
    scores, labels = sample(seed)
    return np.round(scores * 8) / 8, labels


rows = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=0, max_size=40).map(
    lambda pairs: (np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs], int))
)
both_classes = rows.filter(lambda r: 0 < r[1].sum() < len(r[1]))


def histogram(data: Rows) -> ScoreHistogram:
    return ScoreHistogram.from_scores(*data)


def on_grid(scores: np.ndarray) -> np.ndarray:
    return metrics.quantise(scores) / GRID


def naive_delong(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(AUC, variance) by the definition, one pair at a time."""
    x, y = scores[labels == 1], scores[labels == 0]
    wins = np.array([[1.0 if a > b else 0.5 if a == b else 0.0 for b in y] for a in x])
    v10, v01 = wins.mean(axis=1), wins.mean(axis=0)
    return wins.mean(), v10.var(ddof=1) / len(x) + v01.var(ddof=1) / len(y)


# --- the histogram -------------------------------------------------------------------------------


@given(rows, rows)
def test_the_sum_of_histograms_is_the_histogram_of_the_pooled_cases(a: Rows, b: Rows) -> None:
    pooled = histogram((np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1]])))
    assert histogram(a) + histogram(b) == pooled
    assert metrics.pool([histogram(a), histogram(b)]) == pooled
    assert (pooled.n, pooled.m) == (len(a[1]) + len(b[1]), a[1].sum() + b[1].sum())


@given(rows, st.randoms())
def test_the_order_of_the_cases_does_not_matter(data: Rows, random: object) -> None:
    order = list(range(len(data[0])))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert histogram((data[0][order], data[1][order])) == histogram(data)


@given(both_classes)
def test_inverting_scores_or_labels_inverts_the_auc(data: Rows) -> None:
    scores, labels = on_grid(data[0]), data[1]
    area = metrics.auc(histogram((scores, labels)))
    assert_allclose(metrics.auc(histogram((1 - scores, labels))), 1 - area, atol=1e-12)
    assert_allclose(metrics.auc(histogram((scores, 1 - labels))), 1 - area, atol=1e-12)


def test_quantise_rounds_down_to_the_grid() -> None:
    scores = np.array([0.0, 0.99 / GRID, 1 / GRID, 1 - 0.01 / GRID, 1.0], np.float32)
    assert metrics.quantise(scores).tolist() == [0, 0, 1, GRID - 1, GRID]
    assert (metrics.quantise(metrics.grid_scores()) == np.arange(GRID + 1)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e-9, 1.0000001])
def test_what_is_no_probability_is_refused(bad: float) -> None:
    with pytest.raises(MetricError, match="expected finite numbers from 0 to 1"):
        metrics.quantise([0.5, bad])


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.5, 0.5], [1], "shape"),
        ([[0.5]], [[1]], "shape"),
        ([0.5], [2], "expected 0 or 1"),
        ([0.5], [np.nan], "expected 0 or 1"),
    ],
)
def test_labels_must_fit_the_scores(scores: list, labels: list, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        ScoreHistogram.from_scores(scores, labels)


@pytest.mark.parametrize(
    "counts",
    [
        np.zeros(GRID, np.int64),
        np.zeros(GRID + 1),
        np.full(GRID + 1, -1),
        np.full(GRID + 1, metrics.MAX_CASES),
        np.full(GRID + 1, 2**63, np.uint64),
    ],
)
def test_impossible_counts_are_refused(counts: np.ndarray) -> None:
    with pytest.raises(MetricError, match="expected"):
        ScoreHistogram(counts, np.zeros(GRID + 1, np.int64))


def test_a_histogram_neither_changes_nor_shares_its_counts() -> None:
    counts = np.ones(GRID + 1, np.int64)
    kept = ScoreHistogram(counts, counts)
    counts[0] = 5
    assert kept.negatives[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        kept.negatives[0] = 2
    assert hash(kept) == hash(kept + ScoreHistogram.empty())
    assert kept != ScoreHistogram.empty()
    assert kept != "a histogram"


# --- discrimination ------------------------------------------------------------------------------


@given(both_classes)
def test_auc_is_scikit_learns_on_the_grid(data: Rows) -> None:
    expected = roc_auc_score(data[1], on_grid(data[0]))
    assert_allclose(metrics.auc(histogram(data)), expected, atol=1e-12)


def test_auc_anchors() -> None:
    labels = np.array([0, 0, 1, 1])
    assert metrics.auc(histogram((np.full(4, 0.3), labels))) == 0.5
    assert metrics.auc(histogram((labels * 0.9, labels))) == 1.0
    assert metrics.auc(histogram((1.0 - labels, labels))) == 0.0


def test_auc_of_a_large_cohort_is_exact() -> None:
    """Two classes of 10**9: the pairs need 61 bits."""
    negatives, positives = np.zeros((2, GRID + 1), np.int64)
    negatives[[0, 600]] = 10**9 - 1, 1
    positives[[500, 1024]] = 1, 10**9 - 1
    below = (10**9 - 1) + (10**9 - 1) * 10**9
    assert metrics.auc(ScoreHistogram(negatives, positives)) == below / 10**18


@pytest.mark.parametrize("make", [sample, coarse])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_interval_is_delongs(make: object, level: float) -> None:
    scores, labels = make(3)  # type: ignore[operator]
    area, variance = naive_delong(on_grid(scores), labels)
    half = norm.ppf(0.5 + level / 2) * np.sqrt(variance)
    got = metrics.auc_interval(histogram((scores, labels)), level)
    assert_allclose([got.estimate, got.low, got.high], [area, area - half, area + half], rtol=1e-12)


@given(both_classes.filter(lambda r: 2 <= r[1].sum() <= len(r[1]) - 2))
def test_the_interval_is_delongs_clipped(data: Rows) -> None:
    area, variance = naive_delong(on_grid(data[0]), data[1])
    assume(0 < area < 1)
    half = norm.ppf(0.975) * np.sqrt(variance)
    got = metrics.auc_interval(histogram(data))
    assert_allclose([got.low, got.high], [max(0, area - half), min(1, area + half)], atol=1e-7)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Binormal scores with a known AUC; 400 samples, so 95 % is 0.95 +- 0.03 (three sigma)."""
    rng = np.random.default_rng(11)
    truth, hits = norm.cdf(1 / np.sqrt(2)), 0
    labels = np.repeat([0, 1], [70, 50])
    for _ in range(400):
        scores = norm.cdf((rng.normal(size=120) + labels - 0.5) / 2)
        got = metrics.auc_interval(histogram((scores, labels)))
        hits += got.low <= truth <= got.high
    assert 0.91 <= hits / 400 <= 0.985


@pytest.mark.parametrize("labels", [[0, 0], [1, 1], []])
def test_without_both_classes_there_is_no_answer(labels: list[int]) -> None:
    one = ScoreHistogram.from_scores(np.full(len(labels), 0.5), labels)
    assert metrics.auc(one) is None
    assert metrics.auc_interval(one) is None
    assert metrics.roc_curve(one) is None
    with pytest.raises(MetricError, match="expected positives and negatives"):
        metrics.youden_threshold(one)


@pytest.mark.parametrize(("positives", "negatives"), [(4, 8), (30, 3), (2, 2)])
def test_classes_without_overlap_keep_an_interval(positives: int, negatives: int) -> None:
    labels = np.repeat([1, 0], [positives, negatives])
    pairs = min(positives, negatives)
    low, _ = proportion_confint(pairs, pairs, method="wilson")
    perfect = metrics.auc_interval(histogram((0.2 + 0.6 * labels, labels)))
    assert (perfect.estimate, perfect.high) == (1.0, 1.0)
    assert_allclose(perfect.low, low, atol=1e-12)
    inverted = metrics.auc_interval(histogram((0.8 - 0.6 * labels, labels)))
    assert_allclose([inverted.low, inverted.high], [0.0, 1 - low], atol=1e-12)


def test_a_single_positive_has_no_variance() -> None:
    one = ScoreHistogram.from_scores([0.1, 0.2, 0.3, 0.25], [0, 0, 0, 1])
    assert metrics.auc_interval(one) == Estimate(2 / 3, 0.0, 1.0)


@given(both_classes)
def test_the_roc_curve_is_scikit_learns_corners(data: Rows) -> None:
    fpr, tpr = metrics.roc_curve(histogram(data))
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert_allclose(np.trapezoid(tpr, fpr), metrics.auc(histogram(data)), atol=1e-12)
    other_fpr, other_tpr, _ = sklearn_roc(data[1], on_grid(data[0]), drop_intermediate=False)
    theirs = {(round(a, 12), round(b, 12)) for a, b in zip(other_fpr, other_tpr, strict=True)}
    assert {(round(a, 12), round(b, 12)) for a, b in zip(fpr, tpr, strict=True)} <= theirs
    points = list(zip(fpr, tpr, strict=True))
    for a, b, c in zip(points, points[1:], points[2:], strict=False):
        turn = (b[0] - a[0]) * (c[1] - b[1]) - (b[1] - a[1]) * (c[0] - b[0])
        assert abs(turn) > 1e-9


# --- decisions -----------------------------------------------------------------------------------


@given(both_classes)
def test_youden_is_the_lowest_of_the_best_grid_thresholds(data: Rows) -> None:
    scores, labels = on_grid(data[0]), data[1]
    n, m = int((labels == 0).sum()), int(labels.sum())
    j = [
        int((scores[labels == 1] >= k / GRID).sum()) * n
        - int((scores[labels == 0] >= k / GRID).sum()) * m
        for k in range(GRID + 1)
    ]
    assert metrics.youden_threshold(histogram(data)) == j.index(max(j)) / GRID


@given(rows, st.one_of(st.integers(0, GRID).map(lambda k: k / GRID), st.floats(0, 1)))
def test_confusion_counts_calls_at_or_above_the_threshold(data: Rows, threshold: float) -> None:
    calls, truth = on_grid(data[0]) >= threshold, data[1] == 1
    assert metrics.confusion(histogram(data), threshold) == Confusion(
        tp=int((calls & truth).sum()),
        fp=int((calls & ~truth).sum()),
        tn=int((~calls & ~truth).sum()),
        fn=int((~calls & truth).sum()),
    )


@pytest.mark.parametrize("threshold", [-0.1, 1.1, np.nan])
def test_a_threshold_is_a_probability(threshold: float) -> None:
    with pytest.raises(MetricError, match="threshold: expected"):
        metrics.confusion(ScoreHistogram.empty(), threshold)


def test_rates_are_taken_from_the_right_cells() -> None:
    calls = Confusion(tp=30, fp=20, tn=60, fn=10)
    rates = [
        f(calls).estimate
        for f in (metrics.sensitivity, metrics.specificity, metrics.ppv, metrics.npv)
    ]
    assert rates == [30 / 40, 60 / 80, 30 / 50, 60 / 70]
    assert metrics.sensitivity(calls) == metrics.wilson(30, 40)
    nobody = Confusion(0, 0, 0, 0)
    assert metrics.ppv(nobody) is None


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
@pytest.mark.parametrize(("k", "n"), [(0, 7), (7, 7), (1, 1), (3, 10), (81, 263), (15, 148)])
def test_wilson_is_statsmodels(k: int, n: int, level: float) -> None:
    low, high = proportion_confint(k, n, alpha=1 - level, method="wilson")
    got = metrics.wilson(k, n, level)
    assert_allclose([got.low, got.high], [low, high], atol=1e-12)
    assert got.low <= got.estimate <= got.high


def test_wilson_is_newcombes_worked_example() -> None:
    """Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3."""
    for (k, n), interval in {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }.items():
        got = metrics.wilson(k, n)
        assert (round(got.low, 4), round(got.high, 4)) == interval


def test_wilson_refuses_what_is_no_proportion() -> None:
    assert metrics.wilson(0, 0) is None
    with pytest.raises(MetricError, match="expected 0 <= k <= n"):
        metrics.wilson(3, 2)
    with pytest.raises(MetricError, match="level: expected"):
        metrics.wilson(1, 2, 95)


# --- error ---------------------------------------------------------------------------------------


@given(rows.filter(lambda r: len(r[0]) > 0))
def test_brier_is_scikit_learns(data: Rows) -> None:
    expected = brier_score_loss(data[1], on_grid(data[0]), pos_label=1, labels=[0, 1])
    assert_allclose(metrics.brier(histogram(data)), expected, atol=1e-12)


def test_brier_anchors() -> None:
    assert metrics.brier(histogram((np.full(3, 0.5), np.array([0, 1, 1])))) == 0.25
    assert metrics.brier(histogram((np.array([0.0, 1.0]), np.array([0, 1])))) == 0.0
    assert metrics.brier(ScoreHistogram.empty()) is None
