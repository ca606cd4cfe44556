"""Augmentation: each case by its own numbers, in the directions that the anatomy allows."""

from __future__ import annotations

import pytest
import torch

from her2_client.augment import DRAWS, RANGES, Noise, Ranges, augment

NOTHING = Ranges(flips=(False, False, False), angle=0, zoom=0, shift=0, gain=0, offset=0)
STILL = torch.full((1, DRAWS), 0.5)
"""Draws in the middle of every range: no mirror, no change."""


def images(n: int, sides: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, *[12] * sides, generator=generator)


def draws(n: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(n, DRAWS, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sides", [2, 3])
def test_no_range_no_change(sides: int) -> None:
    before = images(3, sides)
    torch.testing.assert_close(augment(before, draws(3), NOTHING), before, rtol=0, atol=2e-5)


@pytest.mark.parametrize("modality", RANGES)
def test_the_middle_of_every_range_is_no_change(modality: str) -> None:
    before = images(1, 3 if modality == "mri" else 2)
    torch.testing.assert_close(augment(before, STILL, RANGES[modality]), before, rtol=0, atol=2e-5)


@pytest.mark.parametrize("modality", RANGES)
def test_a_case_is_changed_the_same_alone_and_in_company(modality: str) -> None:
    """To 1e-5: the resampling grid is a matrix product whose order may follow the batch."""
    before, numbers = images(5, 3 if modality == "mri" else 2), draws(5)
    together = augment(before, numbers, RANGES[modality])
    for i in (0, 3):
        alone = augment(before[i : i + 1], numbers[i : i + 1], RANGES[modality])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)
    order = torch.tensor([4, 2, 0, 1, 3])
    shuffled = augment(before[order], numbers[order], RANGES[modality])
    torch.testing.assert_close(shuffled, together[order], rtol=0, atol=1e-5)


def test_the_input_stays_as_it_is() -> None:
    before = images(2, 2)
    copy = before.clone()
    assert not torch.allclose(augment(before, draws(2), RANGES["us"]), before, atol=0.01)
    assert torch.equal(before, copy)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mirror_turns_one_axis(axis: int) -> None:
    """Draw ``axis`` below 0.5 mirrors x, y or z: the last, last but one, last but two."""
    numbers = STILL.clone()
    numbers[0, axis] = 0.1
    allowed = tuple(a == axis for a in range(3))
    before = images(1, 3)
    after = augment(before, numbers, Ranges(flips=allowed))
    torch.testing.assert_close(after, before.flip(-1 - axis), rtol=0, atol=2e-5)
    forbidden = tuple(a != axis for a in range(3))
    torch.testing.assert_close(
        augment(before, numbers, Ranges(flips=forbidden)), before, rtol=0, atol=2e-5
    )


def test_mirrors_that_the_anatomy_forbids() -> None:
    assert not RANGES["mg"].flips[0]  # the chest wall is on one side
    assert not RANGES["us"].flips[1]  # depth is down


def test_gain_and_offset() -> None:
    numbers = STILL.clone()
    numbers[0, 8], numbers[0, 9] = 1.0, 0.0
    before = images(1, 2)
    after = augment(before, numbers, Ranges((False,) * 3, gain=0.2, offset=0.3))
    torch.testing.assert_close(after, before * 1.2 - 0.3, rtol=0, atol=3e-5)


def test_a_shift_moves_by_its_share_of_half_the_side() -> None:
    numbers = STILL.clone()
    numbers[0, 5] = 1.0
    before = images(1, 2)
    after = augment(before, numbers, Ranges((False,) * 3, shift=2 / 6))  # 2 of 12 pixels
    torch.testing.assert_close(after[..., :-2], before[..., 2:], rtol=0, atol=2e-5)


def test_a_quarter_turn() -> None:
    numbers = STILL.clone()
    numbers[0, 3] = 1.0
    before = images(1, 2)
    after = augment(before, numbers, Ranges((False,) * 3, angle=torch.pi / 2))
    turned = [torch.rot90(before, k, (-2, -1)) for k in (1, 3)]
    assert min(float((after - t).abs().max()) for t in turned) < 1e-4


def test_draws_are_ten_a_case() -> None:
    with pytest.raises(Exception, match="Type-check error"):
        augment(images(2, 2), draws(3), NOTHING)
    with pytest.raises(Exception, match="Type-check error"):
        augment(images(2, 2), draws(2)[:, :9], NOTHING)


def noise(count: int, sides: int, most: float = 1.0, seed: int = 3) -> Noise:
    generator = torch.Generator().manual_seed(seed)
    return Noise(count, (2, *[12] * sides), most, generator, torch.device("cpu"))


@pytest.mark.parametrize("sides", [2, 3])
def test_noise_is_the_field_rolled_and_scaled_for_each_image(sides: int) -> None:
    before, drawn = images(5, sides), noise(8, sides)
    rows = torch.tensor([6, 0, 3, 3, 7])
    after = drawn.add(before, rows)
    for image, result, row in zip(before, after, rows.tolist(), strict=True):
        shift = [-s for s in drawn.shifts[row].tolist()]
        rolled = torch.roll(drawn.field, shift, dims=list(range(1, sides + 1)))
        torch.testing.assert_close(result, image + drawn.strength[row] * rolled)


def test_noise_differs_between_images_and_keeps_its_bounds() -> None:
    drawn = noise(4000, 2, most=0.3)
    assert 0 <= drawn.strength.min() < 0.001
    assert 0.299 < drawn.strength.max() <= 0.3
    assert len({tuple(shift) for shift in drawn.shifts.tolist()}) == 144  # every shift of 12 by 12
    only = noise(2, 2).add(torch.zeros(2, 2, 12, 12), torch.tensor([0, 1]))
    first, second = only.flatten(1)
    assert torch.corrcoef(torch.stack([first, second]))[0, 1].abs() < 0.25


def test_noise_without_strength_is_none() -> None:
    before = images(3, 2)
    assert torch.equal(noise(3, 2, most=0.0).add(before, torch.arange(3)), before)
