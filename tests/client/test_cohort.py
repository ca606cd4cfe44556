"""Cohorts: which cases, at which size, with which counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.caches import add

from her2_client.cache import Cache, image_shape, open_cache
from her2_client.cache_writer import CacheWriter
from her2_client.cohort import Cohort, load_cohort, scale_clinical, usable_modalities
from her2_client.residency import fit_size
from her2_common.cases import MODALITIES
from her2_common.errors import CacheError
from her2_common.model import CLINICAL_CENTRE, CLINICAL_SCALE

MakeCohort = Callable[..., Cohort]
SUBSETS = (("mg",), ("us",), ("mri",), ("mg", "us"), ("us", "mri"), MODALITIES)
MIX = [("mg", "us"), ("us",), ("mri",), MODALITIES, ("mg",), ("us", "mri")]


def test_counts_and_combinations(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(MIX)
    assert cohort.counts() == {"mg": 3, "us": 4, "mri": 3, "clinical": 6, "head": 6}
    assert cohort.combinations() == Counter(
        {"mg+us": 1, "us": 1, "mri": 1, "mg+us+mri": 1, "mg": 1, "us+mri": 1}
    )


@settings(deadline=None, max_examples=30)
@given(
    has=st.lists(st.sampled_from(SUBSETS), min_size=1, max_size=8),
    wanted=st.lists(st.sampled_from(MODALITIES), unique=True),
)
def test_restricted(make_cohort: MakeCohort, has: list[tuple[str, ...]], wanted: list[str]) -> None:
    """Cases keep their order, labels and images; the ones left with nothing go."""
    cohort = make_cohort(has)
    small = cohort.restricted(wanted)
    kept = [i for i, names in enumerate(has) if set(names) & set(wanted)]
    assert len(small) == len(kept)
    assert small.labels.tolist() == [i % 2 for i in kept]
    assert torch.equal(small.clinical, cohort.clinical[kept])
    for case, old in enumerate(kept):
        names = [m for m in MODALITIES if m in has[old] and m in wanted]
        assert small.combination(case) == "+".join(names)
        for m in names:
            assert torch.equal(
                small.images[m][small.rows[m][case]], cohort.images[m][cohort.rows[m][old]]
            )


def test_usable_modalities(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(MIX)
    assert usable_modalities(cohort, 4) == ("us",)
    assert usable_modalities(cohort, 3) == MODALITIES
    assert usable_modalities(cohort, 5) == ()
    only_mg = make_cohort([("mg",)] * 2)
    assert usable_modalities(only_mg, 0) == ("mg",)  # a modality that no case has is never usable


@settings(deadline=None, max_examples=40)
@given(
    has=st.lists(st.sampled_from([("mg",), ("us", "mri"), ("mg", "us", "mri")]), min_size=1),
    probability=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
)
def test_thinning_takes_images_but_never_all(
    make_cohort: MakeCohort, has: list[tuple[str, ...]], probability: float, seed: int
) -> None:
    cohort = make_cohort(has)
    thin = cohort.thinned(probability, torch.Generator().manual_seed(seed))
    assert len(thin) == len(cohort)
    for case in range(len(cohort)):
        names = thin.combination(case).split("+")
        assert names != [""]
        assert set(names) <= set(cohort.combination(case).split("+"))
    for modality, rows in thin.rows.items():
        kept = rows >= 0
        np.testing.assert_array_equal(rows[kept], cohort.rows[modality][kept])


def test_thinning_takes_the_share_that_is_asked_for(make_cohort: MakeCohort) -> None:
    """Of three independent draws all fall below p in p**3 of the cases, and then one stays."""
    cohort = make_cohort([("mg", "us", "mri")] * 400)
    kept = 0
    for seed in range(10):
        thin = cohort.thinned(0.4, torch.Generator().manual_seed(seed))
        kept += sum(int((rows >= 0).sum()) for rows in thin.rows.values())
    expected = 3 * 0.6 + 0.4**3
    assert kept / 4000 == pytest.approx(expected, abs=0.03)
    assert cohort.thinned(0.0, torch.Generator()) is cohort


def test_a_batch_holds_each_case_with_its_own_images(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(MIX)
    cases = np.array([5, 0, 2])
    batch, taken = cohort.batch(cases)
    assert torch.equal(batch.clinical, cohort.clinical[[5, 0, 2]])
    assert {m: rows.tolist() for m, rows in batch.rows.items()} == {
        "mg": [1],
        "us": [0, 1],
        "mri": [0, 2],
    }
    for modality, images in batch.images.items():
        assert images.dtype == torch.float32
        for row, position in enumerate(batch.rows[modality].tolist()):
            source = cohort.rows[modality][cases[position]]
            assert taken[modality][row] == source
            assert torch.equal(images[row], cohort.images[modality][source].float())


def test_clinical_inputs_are_scaled_and_unknown_ones_are_the_centre() -> None:
    raw = np.array([[67.0, 1, 4, 0, 0.3], [np.nan, np.nan, 2, np.nan, np.nan]], np.float32)
    scaled = scale_clinical(raw)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled[0], [1.0, 1.0, 2.0, -1.0, 0.0], atol=1e-6)
    np.testing.assert_array_equal(scaled[1], np.zeros(5))
    np.testing.assert_allclose(
        scale_clinical(np.array([CLINICAL_CENTRE, np.add(CLINICAL_CENTRE, CLINICAL_SCALE)])),
        [np.zeros(5), np.ones(5)],
        atol=1e-6,
    )


# --- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", [2, 3])
def test_a_smaller_size_is_the_average_of_blocks(sides: int) -> None:
    images = torch.randn(70, 2, *[8] * sides).half()  # more than the 64 of one part
    small = fit_size(images, 4)
    assert small.dtype == torch.float16
    blocks = images.float().numpy().reshape(70, 2, *[4, 2] * sides)
    expected = blocks.mean(axis=tuple(3 + 2 * side for side in range(sides)))
    np.testing.assert_allclose(small.float().numpy(), expected, atol=1e-3)


def test_the_same_size_is_the_same_array_and_none_is_none() -> None:
    images = torch.randn(3, 1, 8, 8).half()
    assert fit_size(images, 8) is images
    assert fit_size(images[:0], 4).shape == (0, 1, 4, 4)


def test_a_cache_that_is_too_small_is_refused() -> None:
    with pytest.raises(CacheError, match="at least 16 pixels a side for this run, got 8") as caught:
        fit_size(torch.zeros(1, 1, 8, 8).half(), 16)
    assert "ingest again" in str(caught.value.hint)


# --- from the cache -----------------------------------------------------------------------------


LEVELS = ("positive", None, "low", "zero", "positive", None, None)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Seven cases: known and unknown labels in all splits, one without any image."""
    rows = [
        ("train", 1, ("mg", "us"), (50.0, 1, 2, 0, 0)),
        ("train", None, ("mg",), (50.0, 1, 2, 0, 0)),
        ("val", 0, ("us",), (60.0, None, None, None, None)),
        ("train", 0, ("us", "mri"), (None,) * 5),
        ("test", 1, ("mri",), (40.0, 0, 1, 0, 1)),
        ("train", 1, (), (40.0, 0, 1, 0, 1)),
        ("train", 1, ("mri",), (40.0, 0, 1, 0, 1)),
    ]
    with CacheWriter(tmp_path / "c", site="s", image_size=32, volume_size=16) as writer:
        writer.begin()
        for number, (split, label, names, clinical) in enumerate(rows):
            add(
                writer,
                pseudonym=f"{number:024x}",
                split=split,
                clinical=clinical,
                labels={"reference": label, "biopsy": 0, "surgical": None, "pcr": None},
                levels={"reference": LEVELS[number], "biopsy": "low"},
                images={m: np.full(image_shape(m, 32, 16), number, np.float16) for m in names},
            )
        writer.publish()
    return open_cache(tmp_path / "c")


def test_only_labelled_cases_of_the_split_with_an_image(cache: Cache) -> None:
    cohort = load_cohort(cache, split="train", label="reference", image_size=32, volume_size=16)
    assert cohort.labels.tolist() == [1, 0, 1]  # cases 0, 3 and 6
    assert [cohort.combination(i) for i in range(3)] == ["mg+us", "us+mri", "mri"]
    assert cohort.counts() == {"mg": 1, "us": 2, "mri": 2, "clinical": 2, "head": 3}
    assert [float(cohort.images["mri"][r].mean()) for r in (0, 1)] == [3.0, 6.0]
    assert cohort.clinical[1].tolist() == [0.0] * 5


def test_the_label_is_the_one_asked_for(cache: Cache) -> None:
    def labels(kind: str) -> list[int]:
        cohort = load_cohort(cache, split="train", label=kind, image_size=32, volume_size=16)
        return cohort.labels.tolist()

    assert labels("biopsy") == [0, 0, 0, 0]
    assert labels("surgical") == []


def test_levels_are_those_of_the_label_and_only_of_negatives(cache: Cache) -> None:
    def low(kind: str | None, split: str | None = "train") -> list[int]:
        cohort = load_cohort(cache, split=split, label=kind, image_size=32, volume_size=16)
        assert cohort.without_levels().low.tolist() == [-1] * len(cohort)
        return cohort.low.tolist()

    assert low("reference") == [-1, 0, -1]  # positive, zero, unknown
    assert low("biopsy") == [1, 1, 1, 1]
    assert low(None, split=None) == [-1] * 6
    both = load_cohort(cache, split=None, label="reference", image_size=32, volume_size=16)
    assert both.low.tolist() == [-1, 1, 0, -1, -1]
    assert both.restricted(["us"]).low.tolist() == [-1, 1, 0]


def test_without_a_label_every_case_with_an_image_is_taken(cache: Cache) -> None:
    cohort = load_cohort(cache, split=None, label=None, image_size=16, volume_size=16)
    assert cohort.labels.tolist() == [-1] * 6
    assert cohort.images["mg"].shape == (2, 4, 16, 16)
    assert cohort.images["mri"].shape == (3, 1, 16, 16, 16)


def test_modalities_can_be_left_out(cache: Cache) -> None:
    cohort = load_cohort(
        cache,
        split="train",
        label="reference",
        image_size=32,
        volume_size=16,
        modalities=("us", "mg"),
    )
    assert [cohort.combination(i) for i in range(len(cohort))] == ["mg+us", "us"]
