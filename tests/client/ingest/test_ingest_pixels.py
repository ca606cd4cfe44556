"""Resampling, thresholds and scaling against plain sums and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2_client.ingest.pixels import (
    check_box,
    lowest_threshold,
    luma,
    overlap,
    resample,
    square,
    standardise,
)
from her2_common.cases import Box
from her2_common.errors import ImageError


@given(
    length=st.integers(1, 40),
    size=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_shrinking_keeps_the_mean(length: int, size: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=length)
    shrunk, inside = resample(values, [(0, length)], [min(size, length)])
    assert inside.all()
    assert shrunk.mean() == pytest.approx(values.mean(), abs=1e-9)


def test_area_resampling_is_the_mean_over_the_covered_interval() -> None:
    values = np.array([0.0, 10.0, 20.0, 30.0, 40.0])
    shrunk, _ = resample(values, [(0, 5)], [2])
    # [0, 2.5) and [2.5, 5): half of the middle pixel goes to each side
    np.testing.assert_allclose(shrunk, [(0 + 10 + 0.5 * 20) / 2.5, (0.5 * 20 + 30 + 40) / 2.5])


def test_an_integer_factor_is_block_averaging_on_every_axis() -> None:
    volume = np.random.default_rng(0).normal(size=(4, 6, 8))
    shrunk, _ = resample(volume, [(0, 4), (0, 6), (0, 8)], (2, 3, 4))
    blocks = volume.reshape(2, 2, 3, 2, 4, 2).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(shrunk, blocks)


def test_growing_a_ramp_stays_on_the_ramp() -> None:
    ramp = np.arange(8.0)
    grown, inside = resample(ramp, [(2, 6)], [16])
    assert inside.all()
    np.testing.assert_allclose(grown, 2 + 0.25 * (np.arange(16) + 0.5) - 0.5)


@pytest.mark.parametrize(("window", "size"), [((-4, 12), 8), ((-4, 12), 64), ((-4, 12), 16)])
def test_beyond_the_image_is_outside_and_zero(window: tuple[float, float], size: int) -> None:
    values, inside = resample(np.full(8, 7.0), [window], [size])
    assert inside.sum() == size // 2
    np.testing.assert_allclose(values[inside], 7.0)
    assert not values[~inside].any()


def test_a_window_wholly_outside_is_empty() -> None:
    for size in (4, 40):
        values, inside = resample(np.full((8, 8), 7.0), [(20, 30), (0, 8)], (size, size))
        assert not inside.any()
        assert not values.any()


def test_square_takes_the_longest_side() -> None:
    assert square((0, 0), (10, 20), 1.5) == [(-10.0, 20.0), (-5.0, 25.0)]


def test_two_classes_are_parted_between_their_modes() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(10, 2, 3000), rng.normal(100, 5, 1000)])
    assert 20 < lowest_threshold(values, 2) < 80


def test_three_classes_find_the_air_below_fat_and_dense_tissue() -> None:
    rng = np.random.default_rng(1)
    parts = [rng.normal(5, 1, 2000), rng.normal(80, 5, 3000), rng.normal(250, 20, 2000)]
    values = np.concatenate(parts)
    assert 10 < lowest_threshold(values, 3) < 65
    assert lowest_threshold(values, 2) > 65  # two classes would take fat for air


@given(gain=st.floats(0.01, 1000), offset=st.floats(-1000, 1000))
def test_standardise_knows_no_gain_and_no_offset(gain: float, offset: float) -> None:
    values = np.random.default_rng(2).normal(size=500)
    everywhere = np.ones(500, dtype=bool)
    np.testing.assert_allclose(
        standardise(gain * values + offset, everywhere), standardise(values, everywhere), atol=1e-5
    )


def test_standardise_clips_and_refuses_a_blank_image() -> None:
    values = np.concatenate([np.random.default_rng(3).normal(size=999), [1e6]])
    assert standardise(values, np.ones(1000, dtype=bool)).max() == 5.0
    for blank in (np.full(9, 4.0), np.zeros(0)):
        with pytest.raises(ImageError) as caught:
            standardise(blank, np.ones(blank.shape, dtype=bool))
        assert caught.value.reason == "blank image"
    with pytest.raises(ImageError):
        lowest_threshold(np.zeros(9), 2)


def test_a_box_beyond_the_image_is_named() -> None:
    check_box(Box(0, 0, 20, 10), (10, 20))
    check_box(Box(0, 0, 20, 10, 0, 5), (5, 10, 20))
    for box, shape in [(Box(0, 0, 21, 10), (10, 20)), (Box(0, 0, 20, 10, 0, 6), (5, 10, 20))]:
        with pytest.raises(ImageError, match=r"expected a box within 20 x 10.*, got one") as caught:
            check_box(box, shape)
        assert caught.value.reason == "box outside"


@given(
    seed=st.integers(0, 1000), axis=st.integers(0, 2), low=st.floats(-6, 6), span=st.floats(4.1, 30)
)
def test_area_resampling_is_the_integral_of_the_covered_part(
    seed: int, axis: int, low: float, span: float
) -> None:
    """Against the antiderivative of the piecewise constant image, sampled at the edges."""
    volume = np.random.default_rng(seed).normal(size=(7, 8, 9))
    length = volume.shape[axis]
    windows = [(0.0, 7.0), (0.0, 8.0), (0.0, 9.0)]
    windows[axis] = (low, low + span)
    shape = [7, 8, 9]
    shape[axis] = 4  # a step of one pixel or more
    found, inside = resample(volume, windows, shape)
    line = np.moveaxis(volume, axis, -1)
    edges = np.clip(low + span / 4 * np.arange(5), 0, length)
    below = np.concatenate([np.zeros((*line.shape[:-1], 1)), np.cumsum(line, axis=-1)], axis=-1)
    grid = np.arange(length + 1)
    area = np.apply_along_axis(lambda total: np.interp(edges, grid, total), -1, below)
    width = np.diff(edges)
    covered = width >= span / 8
    np.testing.assert_array_equal(np.moveaxis(inside, axis, -1)[0, 0], covered)
    means = np.diff(area, axis=-1)[..., covered] / width[covered]
    np.testing.assert_allclose(np.moveaxis(found, axis, -1)[..., covered], means, atol=1e-9)


def test_luma_is_bt601() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (5, 4, 3)).astype(np.uint8)
    np.testing.assert_allclose(luma(colour), colour @ np.array([0.299, 0.587, 0.114]), atol=1e-4)


def test_what_is_kept_lies_on_the_picture() -> None:
    assert overlap((-3, 2, 9, 99), (0, 0, 20, 10)) == (0, 2, 9, 10)
    for beside in ((20, 0, 30, 9), (5, 5, 5, 9), (-9, -9, 0, 0)):
        with pytest.raises(ImageError) as caught:
            overlap(beside, (0, 0, 20, 10))
        assert caught.value.reason == "nothing kept"
