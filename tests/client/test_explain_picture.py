"""A map over its picture: the right colour at the right place."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from her2_client.explain.picture import (
    AGAINST,
    FOR,
    LEVELS,
    MOST_OPAQUE,
    colours_png,
    draw,
    full_colour,
    grey_jpeg,
    sigma_of,
    smooth,
)
from her2_common.cases import Modality

VALUES = st.floats(-100, 100, width=32)


def decoded(png: bytes) -> np.ndarray:
    """(rows, columns, 4): red, green, blue, opacity."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).astype(int)


@given(arrays(np.float32, (2, 9, 12), elements=VALUES), st.floats(0.5, 4))
def test_smoothing_keeps_the_sum_of_each_channel(pixels: np.ndarray, sigma: float) -> None:
    smoothed = smooth(pixels, sigma)
    expected = pixels.sum(axis=(1, 2), dtype=np.float64)
    np.testing.assert_allclose(smoothed.sum(axis=(1, 2)), expected, atol=1e-6)


def test_smoothing_stays_in_its_channel() -> None:
    pixels = np.zeros((2, 16, 16), np.float32)
    pixels[1, 8, 8] = 1
    smoothed = smooth(pixels, 2.0)
    assert not smoothed[0].any()
    assert smoothed[1].argmax() == 8 * 16 + 8
    # The middle of a Gaussian of that spread, in two dimensions.
    assert smoothed[1, 8, 8] == pytest.approx(1 / (2 * np.pi * 2.0**2), rel=0.01)


@given(arrays(np.float64, (5, 7), elements=VALUES), st.floats(0.01, 50))
def test_the_colours_are_signs_and_the_opacity_sizes(values: np.ndarray, full: float) -> None:
    pixels = decoded(colours_png(values, full))
    share = np.clip(np.abs(values) / full, 0, 1)
    np.testing.assert_allclose(
        pixels[..., 3], 255 * MOST_OPAQUE * share, atol=0.5 + 127 * MOST_OPAQUE / LEVELS
    )
    seen = pixels[..., 3] > 0
    for colour, of_sign in ((FOR, values > 0), (AGAINST, values < 0)):
        assert (pixels[seen & of_sign][:, :3] == colour).all()


def test_a_map_of_nothing_is_transparent() -> None:
    drawing, files = draw("us", np.ones((1, 8, 8)), np.zeros((1, 8, 8)))
    assert drawing.full == 0
    assert not decoded(files[0].png)[..., 3].any()


def test_one_outlier_does_not_hide_the_rest() -> None:
    values = np.ones(10_000)
    values[0] = 3
    assert full_colour(values) == 1
    values[0] = 1000
    assert full_colour(values) == 250, "but neither does the rest drown the outlier"


def test_the_grey_picture() -> None:
    ramp = np.linspace(-5, 5, 64 * 64).reshape(64, 64)
    shown = np.asarray(Image.open(io.BytesIO(grey_jpeg(ramp)))).astype(int)
    assert shown.shape == (64, 64)
    assert shown[0].mean() < 8
    assert shown[-1].mean() > 247
    flat = np.asarray(Image.open(io.BytesIO(grey_jpeg(np.full((8, 8), 2.0)))))
    assert (flat == flat[0, 0]).all()


def test_each_view_has_its_own_panel() -> None:
    pixels = np.zeros((4, 32, 32), np.float32)
    for channel, place in enumerate([(4, 4), (4, 27), (27, 4), (27, 27)]):
        pixels[(channel, *place)] = channel + 1.0
    drawing, files = draw("mg", np.random.default_rng(0).normal(size=(4, 32, 32)), pixels)
    assert [panel.title for panel in drawing.panels] == [
        "CC",
        "MLO",
        "CC, lesion crop",
        "MLO, lesion crop",
    ]
    assert all(panel.size == (32, 32) for panel in drawing.panels)
    peaks = [int(decoded(file.png)[..., 3].argmax()) for file in files]
    # Several pixels may be at full colour: the first of them is at most one sigma away.
    for peak, place in zip(peaks, [(4, 4), (4, 27), (27, 4), (27, 27)], strict=True):
        assert np.hypot(peak // 32 - place[0], peak % 32 - place[1]) <= sigma_of(32) + 1
    strengths = [decoded(file.png)[..., 3].max() for file in files]
    assert strengths[0] < strengths[-1], "one scale for all panels"


@pytest.mark.parametrize("sign", [1, -1])
def test_the_planes_meet_at_the_strongest_voxel(sign: int) -> None:
    z, y, x = 4, 9, 13
    pixels = np.zeros((1, 16, 16, 16), np.float32)
    pixels[0, z, y, x] = sign
    volume = np.zeros((1, 16, 16, 16), np.float32)
    volume[0, z, y, x] = 5
    drawing, files = draw("mri", volume, pixels)
    assert [panel.title for panel in drawing.panels] == [
        "axial, slice 5 of 16 from the feet",
        "coronal, slice 10 of 16 from the front",
        "sagittal, slice 14 of 16 from the right",
    ]
    # Rows and columns: the head is on top, the patient's right on the left, the front on the left.
    for file, place in zip(files, [(y, x), (15 - z, x), (15 - z, y)], strict=True):
        pixel = decoded(file.png)[place]
        assert tuple(pixel[:3]) == (FOR if sign > 0 else AGAINST)
        assert pixel[3] == decoded(file.png)[..., 3].max()
        grey = np.asarray(Image.open(io.BytesIO(file.jpg))).astype(int)
        assert np.unravel_index(grey.argmax(), grey.shape) == place


@pytest.mark.parametrize(("modality", "shape"), [("mg", (4, 24, 24)), ("us", (1, 24, 24))])
def test_two_files_a_panel(modality: Modality, shape: tuple[int, ...]) -> None:
    drawing, files = draw(modality, np.zeros(shape), np.ones(shape))
    assert len(files) == len(drawing.panels) == shape[0]
    assert all(f.jpg.startswith(b"\xff\xd8") and f.png.startswith(b"\x89PNG") for f in files)
