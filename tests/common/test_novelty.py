"""Unlikeness against scikit-learn and numpy on rows; the limit by its promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sklearn.covariance import OAS

from her2_common.errors import UpdateError
from her2_common.metrics import GRID, ScoreHistogram
from her2_common.novelty import (
    FEWEST_CASES,
    Reference,
    beyond,
    counted,
    limit_of,
    moments,
    oas_shrinkage,
    pack,
    reference_of,
    unlikeness,
    unpack,
)

D = 6


def features(seed: int, n: int, d: int = D) -> np.ndarray:
    """Correlated features with a mean far from 0, in float32 as a model gives them."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(d, d))
    return (rng.normal(size=(n, d)) @ mixing + np.arange(d)).astype(np.float32)


@pytest.mark.parametrize(("n", "d"), [(200, 6), (40, 30), (12, 30), (2, 3)])
def test_the_reference_is_scikit_learns_oas(n: int, d: int) -> None:
    """Fewer cases than features, too."""
    rows, others = features(1, n, d), features(2, 50, d) + 1
    oracle = OAS().fit(rows.astype(np.float64))
    reference = reference_of(moments(rows))
    assert_allclose(reference.mean, oracle.location_, rtol=1e-5, atol=1e-6)
    square = oracle.mahalanobis(others.astype(np.float64))
    assert_allclose(unlikeness(others, reference), square / (square + d), rtol=1e-3, atol=1e-4)
    covariance = np.cov(rows.astype(np.float64), rowvar=False, bias=True)
    assert_allclose(oas_shrinkage(covariance, n), oracle.shrinkage_, rtol=1e-9)
    assert np.array_equal(reference.factor, np.tril(reference.factor))


def test_the_shrinkage_is_that_of_the_paper_but_for_2_over_d() -> None:
    """Equation 23 of Chen et al. in full."""
    n, d = 60, 128
    covariance = np.cov(features(4, n, d).astype(np.float64), rowvar=False, bias=True)
    trace, square = np.trace(covariance), np.trace(covariance @ covariance)
    paper = ((1 - 2 / d) * square + trace**2) / ((n + 1 - 2 / d) * (square - trace**2 / d))
    assert_allclose(oas_shrinkage(covariance, n), paper, rtol=0.02)
    assert oas_shrinkage(np.eye(3), 10) == 1.0  # the same spread in all directions


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(2, 80),
    cuts=st.lists(st.integers(0, 80), max_size=11),
)
def test_federated_is_pooled_for_any_partition(seed: int, n: int, cuts: list[int]) -> None:
    rows = features(seed, n)
    parts = np.split(rows, sorted(min(cut, n) for cut in cuts))  # empty ones, too
    total = sum((moments(part) for part in parts), np.zeros((D + 1, D + 1)))
    pooled = moments(rows)
    assert_allclose(total, pooled, rtol=1e-9, atol=1e-9)
    assert total[0, 0] == n
    others = features(seed + 1, 20)
    federated = unlikeness(others, reference_of(total))
    assert_allclose(federated, unlikeness(others, reference_of(pooled)), rtol=1e-5, atol=1e-6)


def test_moments_are_symmetric_to_the_last_bit() -> None:
    total = moments(features(3, 500, 40))
    assert np.array_equal(total, total.T)


@pytest.mark.parametrize(
    "total",
    [
        moments(features(1, 1)),
        moments(np.empty((0, D))),
        moments(np.full((30, D), 3.7)),
        moments(np.zeros((30, D))),
        np.eye(D + 1) - 2 * np.eye(D + 1)[::-1],  # sums of no cases
        -np.eye(D + 1),
    ],
    ids=["one case", "no case", "constant", "zero", "not sums", "negative"],
)
def test_what_gives_no_covariance_gives_no_reference(total: np.ndarray) -> None:
    assert reference_of(total) is None


def test_a_feature_that_never_varies_does_no_harm() -> None:
    rows = features(1, 300)
    rows[:, 2] = 0.0
    values = unlikeness(rows, reference_of(moments(rows)))
    assert np.isfinite(values).all()
    assert 0.4 < values.mean() < 0.5
    rows[:, 2] = 9.0  # and is missed when it does
    without = features(1, 300) * [1, 1, 0, 1, 1, 1]
    assert unlikeness(rows, reference_of(moments(without))).min() > 0.9


def test_anchors_of_the_scale() -> None:
    reference = Reference(np.ones(4, np.float32), np.eye(4, dtype=np.float32))
    steps = np.array([[0.0], [1.0], [3.0]]) * np.ones(4) + 1
    assert_allclose(unlikeness(steps, reference), [0.0, 0.5, 0.9])


# --- the limit ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [99, 100, 199, 250, 1000])
def test_of_a_hundred_new_cases_like_those_of_validation_at_most_one_is_beyond(n: int) -> None:
    """Exchangeable cases have random ranks, so every case takes its turn as the new one."""
    values = np.random.default_rng(n).permutation(n + 1) / GRID % 1
    flagged = 0
    for new in range(n + 1):
        rest = np.delete(values, new)
        flagged += values[new] > limit_of(counted(rest))
    assert flagged <= (n + 1) / 100
    if n + 1 <= GRID:  # no ties
        assert flagged == (n + 1) // 100


@given(st.lists(st.integers(0, GRID), max_size=FEWEST_CASES - 1))
def test_fewer_than_99_cases_give_no_limit(bins: list[int]) -> None:
    assert limit_of(counted(np.array(bins, dtype=float) / GRID)) is None


def test_the_limit_is_an_order_statistic() -> None:
    values = np.arange(1, 201) / GRID
    limit = limit_of(counted(values))
    assert limit == 199 / GRID  # the second largest of 200
    assert beyond(counted(values), limit) == 1
    assert beyond(counted(values), 1.0) == 0
    assert beyond(counted(values), 0.0) == 200


def test_cases_without_the_modality_are_not_counted() -> None:
    histogram = counted(np.array([0.25, np.nan, 0.5]))
    assert histogram == ScoreHistogram.from_scores([0.25, 0.5], [0, 0])


# --- packing ------------------------------------------------------------------------------------


def references() -> dict[Any, Reference]:
    return {m: reference_of(moments(features(i, 50))) for i, m in enumerate(("mg", "mri"))}


def test_packed_references_come_back() -> None:
    sent = references()
    got = unpack(pack(sent), D)
    assert list(got) == ["mg", "mri"]
    for modality, reference in got.items():
        assert reference.mean.tobytes() == sent[modality].mean.tobytes()
        assert reference.factor.tobytes() == sent[modality].factor.tobytes()
    assert unpack({}, D) == {}


@pytest.mark.parametrize(
    ("name", "array", "reason"),
    [
        ("mg.mean", np.zeros(D + 1, np.float32), "misshapen"),
        ("mg.mean", np.zeros(D), "misshapen"),
        ("mg.factor", np.zeros((D, D + 1), np.float32), "misshapen"),
        ("mg.factor", np.full((D, D), np.nan, np.float32), "not finite"),
        ("mg.mean", np.full(D, np.inf, np.float32), "not finite"),
        ("mg.mean", None, "misshapen"),  # a factor without its mean
        ("ct.mean", np.zeros(D, np.float32), "misshapen"),
    ],
)
def test_other_arrays_are_refused(name: str, array: Any, reason: str) -> None:
    with pytest.raises(UpdateError) as caught:
        unpack({**pack(references()), name: array}, D)
    assert caught.value.reason == reason
