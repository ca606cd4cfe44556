"""The breast in a mammogram: all of it is kept, and what stands beside it changes no pixel."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from her2_client.ingest.planar.air import tissue_of
from her2_client.ingest.planar.breast import Breast
from her2_client.ingest.planar.orientation import Turn
from her2_common.cases import Box
from her2_common.errors import ImageError

Array = npt.NDArray[Any]

SIZE = 48
ROWS, COLUMNS = 240, 192
WHITE = 4095


class Phantom(NamedTuple):
    """(rows, columns) float32 of 12 bits, and where the breast is."""

    image: Array
    breast: Array


def phantom(
    seed: int = 0,
    *,
    muscle: bool = False,
    air: float = 0,
    noise: float = 0,
    rim: float = 0,
    texture: float = 0,
) -> Phantom:
    """A left breast: fat of 900 to 1400, gland and muscle of 2300 to 4000 (of 4095).

    ``rim``: share of the radius along which it thins out; ``texture``: pixels of its grain.
    """
    rng = np.random.default_rng(seed)
    y, x = (np.mgrid[:ROWS, :COLUMNS] + 0.5) / np.array([ROWS, COLUMNS])[:, None, None]
    height, depth = rng.uniform(0.28, 0.45), rng.uniform(0.35, 0.88)
    radius = np.sqrt(((y - 0.5) / height) ** 2 + (x / depth) ** 2)
    wall = (x < 0.6 * depth * (1 - 1.6 * y)) & muscle
    breast = (radius < 1) | wall
    clouds = ndimage.gaussian_filter(rng.normal(size=y.shape), 6)
    dense = (clouds / clouds.std() + rng.uniform(-0.8, 1.5) > 1.2 * np.abs(radius - 0.4)) | wall
    grain = ndimage.gaussian_filter(rng.random(y.shape), texture)
    grain = (grain - grain.min()) / np.ptp(grain)
    tissue = np.where(dense, 2300 + 1700 * grain, 900 + 500 * grain)
    if rim:
        tissue = air + (tissue - air) * np.clip((1 - radius) / rim, wall, 1) ** 0.6
    image = np.where(breast, tissue, air) + noise * rng.normal(size=y.shape)
    return Phantom(np.clip(image.round(), 0, WHITE).astype(np.float32), breast)


def found(image: Array, box: Box | None = None) -> Breast:
    return Breast(image, box, SIZE, Turn(columns=False))


def kept(image: Array) -> Array:
    """The mask, at the pixels of ``image``."""
    breast = found(image)
    places = (np.arange(length) + 0.5 for length in image.shape)
    return breast.mask_at(breast.mask, *places)


def beside(picture: Phantom, what: str, seed: int) -> Array:
    """The image with something white in its air."""
    white = np.zeros(picture.image.shape, dtype=bool)
    if what == "dots":
        air = np.flatnonzero(~ndimage.binary_dilation(picture.breast, iterations=2))
        dots = np.random.default_rng(seed).choice(air, len(air) // 100, replace=False)
        white.ravel()[dots] = True
    elif what == "marker":
        white[10:35, -30:-8] = True
    elif what == "right edge":
        white[:, -COLUMNS // 20 :] = True
    elif what == "upper edge":
        white[: ROWS // 20] = True
    elif what == "frame":
        white[:5] = white[-5:] = white[:, -5:] = True
    return np.where(white & ~picture.breast, np.float32(WHITE), picture.image)


BESIDE = ("dots", "marker", "right edge", "upper edge", "frame")
LOOKS: tuple[dict[str, Any], ...] = (
    {},
    {"muscle": True},
    {"texture": 2},
    {"rim": 0.1, "texture": 2},
    {"muscle": True, "rim": 0.1},
)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), look=st.sampled_from(LOOKS))
def test_all_of_a_breast_with_fat_and_gland_is_kept(seed: int, look: dict[str, Any]) -> None:
    image, breast = phantom(seed, **look)
    mask = kept(image)
    inside = ndimage.binary_erosion(breast, iterations=ROWS // SIZE, border_value=1)
    assert mask[inside].mean() >= 0.99
    if not look.get("rim"):
        assert mask[breast].mean() >= 0.99
    assert mask[~breast].mean() <= 0.05
    assert not (ndimage.binary_fill_holes(mask) & ~mask).any()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    look=st.sampled_from(LOOKS),
    what=st.sampled_from(BESIDE),
    boxed=st.booleans(),
)
def test_white_in_the_air_leaves_every_pixel_as_it_is(
    seed: int, look: dict[str, Any], what: str, boxed: bool
) -> None:
    picture = phantom(seed, **look)
    box = Box(10, 100, 45, 135) if boxed else None
    plain, marked = found(picture.image, box), found(beside(picture, what, seed), box)
    np.testing.assert_array_equal(marked.channels(), plain.channels())
    assert marked.threshold == plain.threshold
    assert marked.checked_turn() == plain.checked_turn() == plain.turn


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("look", [{"noise": 40}, {"noise": 40, "muscle": True}])
def test_in_the_noisy_air_of_a_film_white_changes_next_to_nothing(
    seed: int, look: dict[str, Any]
) -> None:
    picture = phantom(seed, air=250, texture=2, **look)
    plain = found(picture.image)
    assert kept(picture.image)[picture.breast].mean() >= 0.99
    assert kept(picture.image)[~picture.breast].mean() <= 0.05
    for what in BESIDE:
        marked = found(beside(picture, what, seed))
        assert (marked.mask != plain.mask).mean() < 0.001
        both = marked.mask & plain.mask
        change = (marked.channels().astype(float) - plain.channels().astype(float))[:, both]
        assert np.abs(change).max() < 0.05


@pytest.mark.parametrize("noise", [0, 30])
def test_the_grey_base_of_a_film_in_a_black_frame_is_air(noise: float) -> None:
    for seed in range(4):
        film = phantom(seed, air=400, noise=noise, texture=2)
        image, breast = (np.pad(part, ((20, 30), (0, 40))) for part in film)
        mask = kept(image)
        assert mask[breast].mean() >= 0.99
        assert mask[~breast].mean() <= 0.05


def test_a_label_that_touches_the_breast_is_not_part_of_it() -> None:
    picture = phantom(3, texture=2)
    tip = int(np.nonzero(picture.breast[ROWS // 2])[0].max())
    image = picture.image.copy()
    label = np.zeros(image.shape, dtype=bool)
    label[ROWS // 2 - 5 : ROWS // 2 + 5, tip - 2 : tip + 20] = True
    image[label & ~picture.breast] = WHITE
    np.testing.assert_array_equal(found(image).channels(), found(picture.image).channels())


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_a_breast_that_fills_the_picture_is_kept_whole(seed: int) -> None:
    image, breast = phantom(seed, muscle=True)
    part = image[ROWS // 2 - 45 : ROWS // 2 + 45, :50]
    if not breast[ROWS // 2 - 45 : ROWS // 2 + 45, :50].all() or (part < 2000).mean() > 0.5:
        return  # a smaller breast; or nearly all fat, which looks as air does
    assert tissue_of(part).fills
    assert found(part).mask[found(part).inside].all()
    assert found(part).checked_turn() == Turn(columns=False)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), gain=st.sampled_from([1 / 16, 0.5, 2.0, 64.0]))
def test_the_mask_knows_no_gain(seed: int, gain: float) -> None:
    image = phantom(seed, texture=2, rim=0.05).image
    np.testing.assert_array_equal(found(image * np.float32(gain)).mask, found(image).mask)


def test_a_fine_cyst_and_fat_in_a_crop_are_no_holes() -> None:
    picture = phantom(1, texture=2)
    image = picture.image.copy()
    image[115:118, 30:33] = 0  # as dark as air, within the breast
    box = Box(24, 109, 39, 124)
    whole, crop = found(image, box).channels()
    assert found(image, box).mask[SIZE // 2, 6]
    assert (crop != 0).mean() > 0.99
    assert whole.shape == crop.shape == (SIZE, SIZE)


def test_bright_air_is_refused_and_one_value_is_no_breast() -> None:
    for seed in range(4):
        with pytest.raises(ImageError) as caught:
            found(WHITE - phantom(seed).image)
        assert caught.value.reason == "bright background"
    with pytest.raises(ImageError) as caught:
        found(np.full((40, 30), 7, np.float32))
    assert caught.value.reason == "blank image"
