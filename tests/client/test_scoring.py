"""Scores on the public grid, and histograms that count every case once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from her2_client.cohort import Cohort
from her2_client.scoring import SCORING_BATCH, Scores, histograms, profile, score
from her2_common.cases import MODALITIES, Modality
from her2_common.errors import DataError
from her2_common.metrics import GRID, ScoreHistogram, auc, pool
from her2_common.model import build_model
from her2_common.novelty import moments, reference_of, unlikeness

MakeCohort = Callable[..., Cohort]
SUBSETS = (("mg",), ("us",), ("mri",), ("mg", "us"), ("mg", "mri"), ("us", "mri"), MODALITIES)
MODEL = build_model("compact", 1)


def test_scores_are_probabilities_on_the_grid(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(list(SUBSETS))
    scores = score(MODEL, cohort)
    batch, _ = cohort.batch(np.arange(len(cohort)))
    with torch.no_grad():
        fused = torch.softmax(MODEL(batch).fused, 1)[:, 1].double().numpy()
    np.testing.assert_allclose(scores.fused, fused, rtol=0, atol=1 / GRID + 1e-6)
    for values in (scores.fused, *scores.single.values()):
        on_grid = values[~np.isnan(values)] * GRID
        np.testing.assert_array_equal(on_grid, np.rint(on_grid))
    for modality in MODALITIES:
        absent = [modality not in names for names in SUBSETS]
        np.testing.assert_array_equal(np.isnan(scores.single[modality]), absent)


def test_cases_beyond_the_first_batch_keep_their_place(make_cohort: MakeCohort) -> None:
    """Cases that alternate between modalities, over two batches."""
    has = [("us",) if i % 3 else ("us", "mg") for i in range(SCORING_BATCH + 5)]
    cohort = make_cohort(has)
    scores = score(MODEL, cohort)
    np.testing.assert_array_equal(np.isnan(scores.single["mg"]), [i % 3 > 0 for i in range(69)])
    last = np.array([68, 66])
    batch, _ = cohort.batch(last)
    with torch.no_grad():
        output = MODEL(batch)
    expected = torch.softmax(output.fused, 1)[:, 1].numpy()
    np.testing.assert_allclose(scores.fused[last], expected, rtol=0, atol=1 / GRID)


def random_scores(cohort: Cohort, seed: int) -> Scores:
    rng = np.random.default_rng(seed)
    grid = rng.integers(0, GRID + 1, size=(4, len(cohort))) / GRID
    single = {m: np.where(cohort.rows[m] >= 0, grid[i], np.nan) for i, m in enumerate(MODALITIES)}
    return Scores(grid[3], single)


@settings(deadline=None, max_examples=30)
@given(has=st.lists(st.sampled_from(SUBSETS), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_histograms_count_what_the_cohort_holds(
    make_cohort: MakeCohort, has: list[tuple[str, ...]], seed: int
) -> None:
    cohort = make_cohort(has)
    result = histograms(random_scores(cohort, seed), cohort)
    fused = {k.removeprefix("fused|"): h for k, h in result.items() if k.startswith("fused|")}
    assert {name: h.n for name, h in fused.items()} == dict(cohort.combinations())
    assert pool(fused.values()).m == int(cohort.labels.sum())
    single = {k.removeprefix("single|"): h.n for k, h in result.items() if "single" in k}
    counts = cohort.counts()
    assert single == {m: counts[m] for m in MODALITIES if counts[m]}
    assert len(result) == len(fused) + len(single)


def test_each_case_is_in_the_histogram_of_its_combination(make_cohort: MakeCohort) -> None:
    cohort = make_cohort([("us",), ("us",), ("mg", "us")])
    scores = score(MODEL, cohort)
    result = histograms(scores, cohort)
    expected = ScoreHistogram.from_scores(scores.fused[:2], [0, 1])
    assert result["fused|us"] == expected
    assert result["single|us"] == ScoreHistogram.from_scores(scores.single["us"], [0, 1, 0])
    assert result["fused|mg+us"].positives.sum() == 0


def test_scoring_changes_nothing_and_repeats(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(list(SUBSETS))
    before = {name: value.clone() for name, value in MODEL.state_dict().items()}
    first, second = score(MODEL, cohort), score(MODEL, cohort)
    np.testing.assert_array_equal(first.fused, second.fused)
    assert all(torch.equal(before[n], v) for n, v in MODEL.state_dict().items())


def test_an_empty_cohort_has_no_histogram(make_cohort: MakeCohort) -> None:
    cohort = make_cohort([("us",)]).restricted(("mg",))
    assert histograms(score(MODEL, cohort), cohort) == {}


def test_unlabelled_cases_make_no_histogram(make_cohort: MakeCohort) -> None:
    """A label of -1 (prediction) is no negative: counting it is an error, never silent."""
    cohort = make_cohort([("us",)])
    cohort.labels[0] = -1
    with pytest.raises(Exception, match="expected 0 or 1"):
        histograms(score(MODEL, cohort), cohort)


# --- three levels -------------------------------------------------------------------------------

THREE = build_model("compact", 1, levels=3)


def test_the_score_of_a_model_of_three_levels_is_that_of_its_first_part(
    make_cohort: MakeCohort,
) -> None:
    """Low against zero is a question about negatives: it takes nothing from the positive class."""
    cohort = make_cohort(list(SUBSETS))
    scores = score(THREE, cohort)
    batch, _ = cohort.batch(np.arange(len(cohort)))
    with torch.no_grad():
        logits = THREE(batch).fused.double().numpy()
    odds = np.exp(logits[:, 1] - logits[:, 0])
    np.testing.assert_allclose(scores.fused, odds / (1 + odds), rtol=0, atol=1 / GRID + 1e-6)
    expected = 1 / (1 + np.exp(-logits[:, 2]))
    np.testing.assert_allclose(scores.low, expected, rtol=0, atol=1 / GRID + 1e-6)
    assert score(MODEL, cohort).low is None


@settings(deadline=None, max_examples=30)
@given(
    levels=st.lists(st.tuples(st.sampled_from(SUBSETS), st.sampled_from([-1, 0, 1])), min_size=1),
    seed=st.integers(0, 99),
)
def test_low_histograms_hold_the_negatives_of_known_level(
    make_cohort: MakeCohort, levels: list[tuple[tuple[str, ...], int]], seed: int
) -> None:
    cohort = make_cohort([names for names, _ in levels])
    low = [level if case % 2 == 0 else -1 for case, (_, level) in enumerate(levels)]
    cohort = replace(cohort, low=torch.tensor(low))
    values = np.random.default_rng(seed).integers(0, GRID + 1, len(low)) / GRID
    result = histograms(replace(random_scores(cohort, seed), low=values), cohort)
    got = {key.removeprefix("low|"): h for key, h in result.items() if key.startswith("low|")}
    known = [case for case, level in enumerate(low) if level >= 0]
    assert Counter({name: h.n for name, h in got.items()}) == Counter(
        cohort.combination(case) for case in known
    )
    truth, said = np.array(low)[known], values[known]
    pooled = pool(got.values())
    if 0 < truth.sum() < len(truth):
        assert auc(pooled) == pytest.approx(roc_auc_score(truth, said), abs=1e-12)
    assert pooled.m == truth.sum()


def test_two_levels_send_no_low_histogram(make_cohort: MakeCohort) -> None:
    cohort = replace(make_cohort([("us",)] * 4), low=torch.tensor([1, -1, 0, -1]))
    assert set(histograms(score(MODEL, cohort), cohort)) == {"fused|us", "single|us"}
    assert set(histograms(score(THREE, cohort), cohort)) == {"fused|us", "single|us", "low|us"}


# --- unlikeness ---------------------------------------------------------------------------------


def features_of(cohort: Cohort, modality: Modality) -> np.ndarray:
    """Case by case, in the order of the cases that have the modality."""
    chosen = cohort.rows[modality][cohort.rows[modality] >= 0]
    with torch.no_grad():
        rows = [
            MODEL.get_submodule(modality)(cohort.images[modality][row : row + 1].float())
            for row in chosen
        ]
    return torch.cat(rows).numpy()


def test_the_profile_sums_the_features_of_all_batches(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(list(SUBSETS) * 11)  # two batches
    assert len(cohort) > SCORING_BATCH
    got = profile(MODEL, cohort)
    assert list(got) == list(MODALITIES)
    for modality, total in got.items():
        expected = moments(features_of(cohort, modality))
        np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-4)


def test_every_image_has_its_unlikeness_on_the_grid(make_cohort: MakeCohort) -> None:
    training, cohort = make_cohort(list(SUBSETS) * 8, seed=1), make_cohort(list(SUBSETS), seed=2)
    references = {}
    for modality in ("us", "mri"):
        made = reference_of(moments(features_of(training, modality)))
        assert made is not None
        references[modality] = made
    plain, scores = score(MODEL, cohort), score(MODEL, cohort, references)
    np.testing.assert_array_equal(plain.fused, scores.fused)
    assert plain.unlike == {}
    assert list(scores.unlike) == ["us", "mri"]
    for modality, values in scores.unlike.items():
        present = np.array([modality in names for names in SUBSETS])
        np.testing.assert_array_equal(np.isnan(values), ~present)
        expected = unlikeness(features_of(cohort, modality), references[modality])
        np.testing.assert_allclose(values[present], expected, rtol=0, atol=0.5 / GRID + 1e-3)
        np.testing.assert_array_equal(values[present] * GRID, np.rint(values[present] * GRID))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_image_that_cannot_be_scored_is_named_by_its_case(
    make_cohort: MakeCohort, value: float
) -> None:
    cohort = make_cohort([("us",), ("mg",), ("us", "mg")])
    cohort.images["us"][1, 0, 3, 3] = value  # the second ultrasound picture: the third case
    named = replace(cohort, pseudonyms=("p-one", "p-two", "p-three"))
    with pytest.raises(DataError, match="us image of case p-three"):
        score(MODEL, named)
    with pytest.raises(DataError, match="us image of case"):
        profile(MODEL, cohort)
