"""DeLong in two rounds against the definition, pair by pair, and a published example."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.stats import chi2, norm
from sklearn.metrics import roc_auc_score
from tests.common.response.cohorts import Rows, added, assert_same, assignments, cohort, parts

from her2_common.errors import MetricError
from her2_common.metrics import GRID, Estimate, auc_interval, quantise
from her2_common.response import delong
from her2_common.response.delong import Discrimination, PlacementSums, ScoreSet

# Albumin (0.1 g/dl), total protein (0.1 g/dl), K-G score
WITHOUT_BENEFIT = [
    (30, 58, 10), (28, 48, 6), (9, 40, 5), (25, 57, 8), (36, 67, 4), (42, 76, 4), (40, 66, 6),
    (30, 47, 8), (33, 68, 6), (17, 40, 7), (29, 57, 9), (28, 62, 8),
]  # fmt: skip
WITH_BENEFIT = [
    (32, 63, 5), (39, 68, 3), (32, 58, 3), (16, 56, 5), (38, 57, 5), (37, 67, 6), (32, 54, 4),
    (38, 66, 6), (41, 66, 5), (36, 57, 5), (43, 70, 4), (23, 44, 6), (35, 58, 6), (38, 68, 7),
    (45, 74, 5), (37, 74, 5), (31, 66, 6), (41, 82, 6), (43, 70, 5), (43, 65, 4), (32, 51, 5),
    (26, 47, 6), (37, 61, 5), (33, 63, 7), (42, 77, 6), (35, 62, 5), (21, 48, 7), (40, 70, 7),
    (33, 57, 6), (37, 69, 5), (36, 66, 5),
]  # fmt: skip
"""Who benefits from surgery for ovarian cancer: the example of DeLong, DeLong and Clarke-Pearson
(1988), as far as all three were measured."""


def scores_of(rows: Rows) -> Rows:
    return {"image": rows["score"], "biopsy": rows["biopsy"], "stage": rows["t"] / 4}


def by_definition(scores: Rows, outcome: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(AUCs, covariance) over all pairs, on the grid."""
    v10, v01 = [], []
    for values in scores.values():
        x = quantise(values)[outcome == 1][:, None]
        y = quantise(values)[outcome == 0][None, :]
        wins = (x > y) + 0.5 * (x == y)
        v10.append(wins.mean(axis=1))
        v01.append(wins.mean(axis=0))
    areas = np.array([v.mean() for v in v10])
    m, n = len(v10[0]), len(v01[0])
    return areas, np.atleast_2d(np.cov(v10)) / m + np.atleast_2d(np.cov(v01)) / n


def two_rounds(sites: list[Rows]) -> Discrimination | None:
    """The federation: histograms summed and sent back, placements summed."""
    pooled = added(ScoreSet.from_rows(scores_of(site), site["pcr"]) for site in sites)
    sums = added(delong.placement_sums(scores_of(site), site["pcr"], pooled) for site in sites)
    return delong.discriminate(sums, pooled)


def test_the_example_of_delong_is_what_sas_prints() -> None:
    """SAS/STAT User's Guide, PROC LOGISTIC, Comparing Receiver Operating Characteristic Curves."""
    values = np.array(WITHOUT_BENEFIT + WITH_BENEFIT, dtype=float)
    outcome = np.repeat([0, 1], [len(WITHOUT_BENEFIT), len(WITH_BENEFIT)])
    names = ("albumin", "protein", "k-g")
    scores = dict(zip(names, (values * [1, 1, -1] + [0, 0, 100]).T / 100, strict=True))
    found = delong.at_centre(scores, outcome)
    assert found.auc.round(4).tolist() == [0.7366, 0.6478, 0.7258]
    assert np.sqrt(np.diag(found.covariance)).round(4).tolist() == [0.0927, 0.1000, 0.1028]
    interval = found.interval("albumin")
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.5549, 0.9182)
    one, two = (delong.compare(found, name, "k-g") for name in ("albumin", "protein"))
    got = [
        (round(c.difference.estimate, 4), round(c.difference.low, 4), round(c.difference.high, 4))
        for c in (one, two)
    ]
    assert got == [(0.0108, -0.1761, 0.1976), (-0.0780, -0.2830, 0.1271)]
    assert [round(c.test.statistic**2, 4) for c in (one, two)] == [0.0127, 0.5554]
    assert [round(c.test.p_value, 4) for c in (one, two)] == [0.9102, 0.4561]
    joint = delong.all_equal(found)
    assert (round(joint.statistic, 4), joint.df, round(joint.p_value, 4)) == (2.5340, 2, 0.2817)


def test_a_graded_score_is_what_proc_prints() -> None:
    """R: ci.auc(roc(aSAH$outcome, aSAH$wfns)): 0.8237, DeLong 0.7485 to 0.8988.

    Patients with a good and with a poor outcome by WFNS grade 1 to 5: Turck et al., Intensive Care
    Medicine 36 (2010) 107-115.
    """
    good, poor = [37, 20, 3, 8, 4], [2, 12, 1, 8, 18]
    grades = np.repeat(np.tile(np.arange(1, 6), 2), good + poor) / 5
    found = delong.at_centre({"wfns": grades}, np.repeat([0, 1], [sum(good), sum(poor)]))
    interval = found.interval("wfns")
    values = (interval.estimate, interval.low, interval.high)
    assert tuple(round(value, 4) for value in values) == (0.8237, 0.7485, 0.8988)


@pytest.mark.parametrize("levels", [0, 4])
@pytest.mark.parametrize("seed", range(4))
def test_areas_and_covariance_are_those_over_all_pairs(seed: int, levels: int) -> None:
    rows = cohort(seed, 150, levels=levels)
    found = delong.at_centre(scores_of(rows), rows["pcr"])
    areas, covariance = by_definition(scores_of(rows), rows["pcr"])
    assert_allclose(found.auc, areas, rtol=1e-12)
    assert_allclose(found.covariance, covariance, rtol=1e-9, atol=1e-15)
    on_grid = quantise(rows["score"]) / GRID
    assert_allclose(found.auc[0], roc_auc_score(rows["pcr"], on_grid), rtol=1e-12)
    contrast = np.array([1.0, -1.0, 0.0])
    z = contrast @ areas / np.sqrt(contrast @ covariance @ contrast)
    got = delong.compare(found, "image", "biopsy")
    assert_allclose([got.test.statistic, got.test.p_value], [z, 2 * norm.sf(abs(z))], rtol=1e-9)
    both = np.array([[1, -1, 0], [0, 1, -1]])
    gap = both @ areas
    wald = gap @ np.linalg.solve(both @ covariance @ both.T, gap)
    joint = delong.all_equal(found)
    assert_allclose([joint.statistic, joint.p_value], [wald, chi2.sf(wald, 2)], rtol=1e-8)


def test_one_score_is_the_interval_of_the_histogram_alone() -> None:
    rows = cohort(3)
    pooled = ScoreSet.from_rows({"image": rows["score"]}, rows["pcr"])
    found = delong.at_centre({"image": rows["score"]}, rows["pcr"])
    assert_same(found.interval("image"), auc_interval(pooled.histograms[0]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 50), assignments(120), st.sampled_from([0, 1, 3]), st.integers(2, 120))
def test_two_rounds_over_centres_are_the_pooled_patients(
    seed: int, site: np.ndarray, levels: int, keep: int
) -> None:
    """Empty centres, centres with one outcome, ties; ``levels`` 1 makes two scores of all."""
    rows = {name: values[:keep] for name, values in cohort(seed, 120, levels=levels).items()}
    assert_same(
        two_rounds(parts(rows, site[:keep])), delong.at_centre(scores_of(rows), rows["pcr"])
    )


def test_constant_scores_know_nothing_and_claim_nothing() -> None:
    rows = cohort(1)
    flat = np.full(300, 0.5)
    scores = {"flat": flat, "also": flat, "image": rows["score"], "twin": rows["score"] ** 2}
    found = delong.at_centre(scores, rows["pcr"])
    assert found.interval("flat") == Estimate(0.5, 0.0, 1.0)
    assert delong.compare(found, "flat", "also").test is None
    assert delong.compare(found, "flat", "image").test is not None
    ranked = {"image": rows["score"], "same": rows["score"]}
    same = delong.compare(delong.at_centre(ranked, rows["pcr"]), "image", "same")
    assert same == delong.AucDifference("image", "same", Estimate(0.0, 0.0, 0.0), None)
    assert delong.all_equal(delong.at_centre(ranked, rows["pcr"])) is None
    assert delong.all_equal(delong.at_centre({"flat": flat, "also": flat}, rows["pcr"])) is None


def test_intervals_end_where_areas_do() -> None:
    nearly = {
        "a": [0.1, 0.2, 0.3, 0.7, 0.6, 0.8, 0.9, 0.95],
        "b": [0.9, 0.8, 0.7, 0.2, 0.6, 0.3, 0.2, 0.1],
    }
    found = delong.at_centre(nearly, [0, 0, 0, 0, 1, 1, 1, 1])
    assert found.interval("a").high == 1.0
    assert found.interval("b").low == 0.0
    assert 0.5 < found.interval("a").low < 1.0
    assert delong.compare(found, "a", "b").difference.high == 1.0


def test_too_few_patients_leave_no_variance() -> None:
    scores = {"a": [0.1, 0.9, 0.8], "b": [0.9, 0.2, 0.1]}
    assert delong.at_centre(scores, [1, 1, 1]) is None
    found = delong.at_centre(scores, [0, 1, 1])
    assert found.covariance is None
    assert found.interval("a") == Estimate(1.0, 0.0, 1.0)
    assert delong.compare(found, "a", "b").difference == Estimate(1.0, -1.0, 1.0)
    assert delong.stratified([found]) is None
    assert delong.all_equal(found) is None
    certain = delong.at_centre({"a": [0.1, 0.2, 0.8, 0.9], "b": [0.9, 0.8, 0.2, 0.1]}, [0, 0, 1, 1])
    assert delong.compare(certain, "a", "b").difference == Estimate(1.0, -1.0, 1.0)


# --- strata --------------------------------------------------------------------------------------


def test_stratified_compares_patients_of_one_centre_only() -> None:
    """A score that is the centre's prevalence: pooled it discriminates, within centres not."""
    rng = np.random.default_rng(0)
    centre = np.repeat([0, 1], 400)
    outcome = (rng.random(800) < np.where(centre == 0, 0.1, 0.6)).astype(int)
    scores = {"prevalence": np.where(centre == 0, 0.1, 0.6), "noise": rng.random(800)}
    alone = [
        delong.at_centre({name: values[centre == k] for name, values in scores.items()},
                         outcome[centre == k])
        for k in (0, 1)
    ]  # fmt: skip
    assert delong.at_centre(scores, outcome).auc[0] > 0.7
    found = delong.stratified(alone)
    assert found.auc[0] == 0.5
    pairs = np.array([part.negatives * part.positives for part in alone])
    assert_allclose(found.auc[1], pairs @ [part.auc[1] for part in alone] / pairs.sum())
    variance = pairs**2 @ [part.covariance[1, 1] for part in alone] / pairs.sum() ** 2
    assert_allclose(found.covariance[1, 1], variance)
    assert (found.positives, found.negatives) == (outcome.sum(), (1 - outcome).sum())


def test_stratified_over_one_centre_is_that_centre() -> None:
    rows = cohort(2)
    alone = delong.at_centre(scores_of(rows), rows["pcr"])
    assert_same(delong.stratified([alone]), alone)


# --- refusals ------------------------------------------------------------------------------------


def test_rounds_that_do_not_fit_are_refused() -> None:
    rows = cohort(1, 50)
    scores, outcome = scores_of(rows), rows["pcr"]
    pooled = ScoreSet.from_rows(scores, outcome)
    with pytest.raises(MetricError, match="scores: expected"):
        delong.placement_sums({"image": rows["score"]}, outcome, pooled)
    with pytest.raises(MetricError, match="got more"):
        delong.placement_sums(scores, outcome, ScoreSet.empty(tuple(scores)))
    with pytest.raises(MetricError, match="negatives and"):
        delong.discriminate(PlacementSums.empty(tuple(scores)), pooled)
    with pytest.raises(MetricError, match="of each"):
        delong.placement_sums(scores, outcome[:-1], pooled + pooled)
    with pytest.raises(MetricError, match="expected one of"):
        delong.at_centre(scores, outcome).index("tumour")
    with pytest.raises(MetricError, match="expected"):
        pooled + ScoreSet.empty(("other",))
    with pytest.raises(MetricError, match="expected"):
        PlacementSums.empty(("a",)) + PlacementSums.empty(("b",))
    with pytest.raises(MetricError, match="same patients"):
        ScoreSet(("a", "b"), (pooled.histograms[0], (pooled + pooled).histograms[0]))
    with pytest.raises(MetricError, match="one histogram"):
        ScoreSet((), ())
    with pytest.raises(MetricError, match="same scores"):
        delong.stratified(
            [delong.at_centre({name: rows["score"]}, outcome) for name in ("one", "other")]
        )


def test_sums_have_neutral_elements_and_tell_their_cells() -> None:
    rows = cohort(1, 50)
    scores, outcome = scores_of(rows), rows["pcr"]
    pooled = ScoreSet.from_rows(scores, outcome)
    sums = delong.placement_sums(scores, outcome, pooled)
    assert pooled + ScoreSet.empty(pooled.names) == pooled
    assert_same(sums + PlacementSums.empty(pooled.names), sums)
    want = [int((outcome == 0).sum()), int((outcome == 1).sum())]
    assert pooled.cells().tolist() == sums.cells().tolist() == want
