"""Integrated gradients against closed forms, and the sanity checks that a saliency map must pass.

The oracle of most tests: for log odds g(w . x) of an image x, the integral along the line from 0
is x_i w_i / (w . x) * (g(w . x) - g(0)) for pixel i, whatever g (Sundararajan et al. 2017, whose
path integral is here along a single number).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from torch import Tensor, nn

from her2_client.explain.attribution import (
    FIRST_STEPS,
    LADDER,
    MOST_STEPS,
    ROWS,
    TOLERANCE,
    contrast,
    explain,
    middles,
)
from her2_common.cases import MODALITIES, Modality
from her2_common.model import Batch, MapModel, build_model

SIZE, VOLUME = 32, 16
SHAPE: dict[Modality, tuple[int, ...]] = {
    "mg": (4, SIZE, SIZE),
    "us": (1, SIZE, SIZE),
    "mri": (1, VOLUME, VOLUME, VOLUME),
}
SUBSETS: list[tuple[Modality, ...]] = [
    ("mg",),
    ("us",),
    ("mri",),
    ("mg", "us"),
    ("us", "mri"),
    MODALITIES,
]


class Ridge(nn.Module):
    """(n, channels, *size) to (n, features): ``g`` of one weighted sum in the first feature."""

    def __init__(self, weight: Tensor, features: int, g: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.features, self.g = nn.Parameter(weight), features, g
        self.rows: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.rows.append(len(images))
        value = self.g((images * self.weight).flatten(1).sum(1))  # (n,)
        return F.pad(value[:, None], (0, self.features - 1))


def one_case(modalities: tuple[Modality, ...] = MODALITIES, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = {m: torch.randn(1, *SHAPE[m], generator=generator) for m in modalities}
    rows = {m: torch.zeros(1, dtype=torch.int64) for m in modalities}
    return Batch(images, rows, torch.randn(1, 5, generator=generator))


def a_model(seed: int = 0, **layout: Any) -> MapModel:
    model = build_model("compact", seed, **layout)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # as far from 0 as a trained model's log odds and biases
        model.head.weight.mul_(5)
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and not name.startswith("head"):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def ridge_model(
    g: Callable[[Tensor], Tensor], modalities: tuple[Modality, ...] = MODALITIES
) -> MapModel:
    """A model whose log odds of a modality are g(weight . image) + bias + clinical."""
    model = build_model("compact", 0)
    features = model.head.weight.shape[1]
    generator = torch.Generator().manual_seed(3)
    for m in modalities:
        weight = torch.randn(SHAPE[m], generator=generator) / np.prod(SHAPE[m]) ** 0.5
        setattr(model, m, Ridge(weight, features, g))
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.weight[1, 0], model.head.weight[0, 0] = 1.25, -0.75  # 2 in log odds
    return model


def closed_form(model: MapModel, batch: Batch, m: Modality, g: Callable[[Tensor], Tensor]) -> Any:
    weight, image = model.get_submodule(m).weight.detach().double(), batch.images[m][0].double()
    total = (weight * image).sum()
    change = 2 * (g(total) - g(torch.zeros_like(total)))
    return (weight * image / total * change).numpy()


CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda s: s,
    "square": lambda s: s**2,
    "steep": lambda s: torch.tanh(1e5 * s),  # has seen all at a hundred-thousandth of the contrast
    "late": lambda s: torch.sigmoid(8 * (s.abs() - 0.5)),
}


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("modalities", SUBSETS, ids="+".join)
def test_the_closed_form(name: str, modalities: tuple[Modality, ...]) -> None:
    model, batch = ridge_model(CURVES[name]), one_case(modalities)
    explanation, maps = explain(model, batch)
    assert explanation.complete
    assert list(maps) == list(modalities)
    for m in modalities:
        expected = closed_form(model, batch, m, CURVES[name])
        assert maps[m].shape == SHAPE[m]
        # The error of the integration scales a map of this kind, and moves nothing.
        np.testing.assert_allclose(
            maps[m], expected, atol=TOLERANCE * np.abs(expected / expected.sum()).max()
        )
        assert explanation.parts[m].share == pytest.approx(
            expected.sum() / len(modalities), abs=TOLERANCE
        )


def test_a_linear_encoder_has_no_error_but_rounding() -> None:
    """For it, the gradient is the same at every step: only the weights of the steps matter."""
    model, batch = ridge_model(CURVES["linear"]), one_case()
    explanation, maps = explain(model, batch)
    assert explanation.steps == FIRST_STEPS
    for m in MODALITIES:
        expected = closed_form(model, batch, m, CURVES["linear"])
        np.testing.assert_allclose(maps[m], expected, rtol=3e-3, atol=1e-7)


def test_equal_steps_would_miss_a_steep_encoder() -> None:
    """Why the steps are not equal: nearly all of this integral lies below the first of 432."""
    model, batch = ridge_model(CURVES["steep"], ("us",)), one_case(("us",))
    image = batch.images["us"]
    steps = torch.from_numpy(middles(MOST_STEPS)).float()[:, None, None, None]
    faded = (steps * image).requires_grad_()
    rows = torch.arange(MOST_STEPS)
    output = model(Batch({"us": faded}, {"us": rows}, batch.clinical.expand(MOST_STEPS, -1)))
    log_odds = (output.single["us"][:, 1] - output.single["us"][:, 0]).sum()
    (gradient,) = torch.autograd.grad(log_odds, faded)
    by_equal_steps = float((gradient.mean(0) * image[0]).sum())
    expected = float(closed_form(model, batch, "us", CURVES["steep"]).sum())
    assert abs(expected) > 1.9
    assert abs(by_equal_steps) < 0.1
    assert explain(model, batch)[0].parts["us"].added == pytest.approx(expected, abs=TOLERANCE)


# --- completeness -------------------------------------------------------------------------------


def log_odds(logits: Tensor) -> float:
    return float(logits[0, 1] - logits[0, 0])


@pytest.mark.parametrize("modalities", SUBSETS, ids="+".join)
def test_everything_adds_up(modalities: tuple[Modality, ...]) -> None:
    model, batch = a_model(4, levels=3), one_case(modalities, seed=5)
    explanation, maps = explain(model, batch)
    blank = Batch({m: i * 0 for m, i in batch.images.items()}, batch.rows, batch.clinical)
    with torch.no_grad():
        here, nothing = model(batch), model(blank)
        unknown = model(Batch(blank.images, batch.rows, torch.zeros(1, 5)))
    assert explanation.complete
    assert explanation.fused == pytest.approx(log_odds(here.fused), abs=1e-5)
    assert explanation.start == pytest.approx(log_odds(unknown.fused), abs=1e-5)
    weight = model.clinical.weight.detach()
    expected = float((weight[1] - weight[0]) @ batch.clinical[0])
    assert explanation.clinical == pytest.approx(expected, abs=1e-5)
    shares = sum(part.share for part in explanation.parts.values())
    assert shares == pytest.approx(log_odds(here.fused) - log_odds(nothing.fused), abs=TOLERANCE)
    for m, part in explanation.parts.items():
        assert part.alone == pytest.approx(log_odds(here.single[m]), abs=1e-5)
        assert part.blank == pytest.approx(log_odds(nothing.single[m]), abs=1e-5)
        assert maps[m].sum(dtype=np.float64) == pytest.approx(
            part.alone - part.blank, abs=TOLERANCE
        )
        assert part.added == pytest.approx(maps[m].sum(dtype=np.float64))
        assert abs(part.alone - part.blank) > 2 * TOLERANCE, "else the test says nothing"


def test_the_mean_gives_each_modality_its_own_map_divided() -> None:
    explanation, _ = explain(a_model(2), one_case())
    for part in explanation.parts.values():
        assert part.share == pytest.approx(part.added / 3, abs=1e-3)


def test_what_cannot_be_integrated_is_said_to_be_so() -> None:
    """A jump has no gradient: its map is 0, and the explanation is not complete."""
    model, batch = ridge_model(lambda s: s * 0 + (s.abs() > 1e-3).double().to(s)), one_case(("us",))
    explanation, maps = explain(model, batch)
    assert not explanation.complete
    assert explanation.steps == MOST_STEPS
    assert not maps["us"].any()
    assert explanation.parts["us"].gap == pytest.approx(-2, abs=1e-5)
    assert explanation.gap == pytest.approx(-2, abs=1e-5)


# --- the work, and what it leaves ---------------------------------------------------------------


def test_the_work_is_bounded_and_no_step_is_done_twice() -> None:
    model, batch = ridge_model(lambda s: (s.abs() > 1e-3).to(s) + 0 * s), one_case(("us",))
    explain(model, batch)
    rows = model.us.rows
    assert max(rows) <= ROWS
    assert sum(rows) == MOST_STEPS + len(LADDER) + 2, "the steps, the ladder, two blank images"


def test_the_model_is_left_as_it_was() -> None:
    model, batch = a_model(1).train(), one_case()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    images = {m: image.clone() for m, image in batch.images.items()}
    first, maps = explain(model, batch)
    again, same = explain(model, batch)
    assert first == again
    for m in MODALITIES:
        np.testing.assert_array_equal(maps[m], same[m])
        assert torch.equal(images[m], batch.images[m])
        assert not batch.images[m].requires_grad
    assert not model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_one_case_at_a_time() -> None:
    batch = one_case(("us",))
    two = Batch(batch.images, batch.rows, batch.clinical.expand(2, -1))
    with pytest.raises(ValueError, match="one case, got 2"):
        explain(a_model(), two)


@given(st.floats(0, 1), st.sampled_from(LADDER))
def test_the_weights_of_the_steps_are_the_slope_of_the_contrast(u: float, knee: float) -> None:
    step = 1e-6
    (low, _), (high, _) = (contrast(np.array(at), knee) for at in (u - step, u + step))
    a, slope = contrast(np.array(u), knee)
    assert -1e-12 <= a <= 1 + 1e-12
    assert float(slope) == pytest.approx(float(high - low) / (2 * step), rel=1e-6)


@given(st.integers(1, 200))
def test_old_steps_are_the_middles_of_new_ones(steps: int) -> None:
    np.testing.assert_allclose(middles(3 * steps)[1::3], middles(steps), rtol=1e-12)


# --- does the map say anything? -----------------------------------------------------------------


@pytest.mark.parametrize("m", MODALITIES)
def test_an_encoder_that_reads_one_place_lights_up_there(m: Modality) -> None:
    weight = torch.zeros(SHAPE[m])
    place = (len(weight) - 1, *(slice(5, 9) for _ in SHAPE[m][1:]))
    weight[place] = 1 / 16
    model, batch = build_model("compact", 0), one_case((m,))
    setattr(model, m, Ridge(weight, model.head.weight.shape[1], torch.tanh))
    batch.images[m][0][place] += 2
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.weight[1, 0] = 3
    maps = explain(model, batch)[1]
    outside = maps[m].copy()
    outside[place] = 0
    assert not outside.any()
    assert maps[m][place].sum() > 1


def with_lesion(count: int, seed: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Noise with a bright spot, 4 pixels wide, at a random place of every odd image."""
    rng = np.random.default_rng(seed)
    images = rng.normal(0, 0.5, (count, *SHAPE["us"])).astype(np.float32)
    places = rng.integers(4, SIZE - 8, (count, 2))
    for i in range(1, count, 2):
        y, x = places[i]
        images[i, 0, y : y + 4, x : x + 4] += 3
    return torch.from_numpy(images), torch.arange(count) % 2, places + 1.5


@pytest.fixture(scope="module")
def finder() -> MapModel:
    """A model that was taught by a few hundred pictures whether there is a bright spot."""
    model = build_model("compact", 0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    images, labels, _ = with_lesion(320, seed=1)
    for _ in range(4):
        for rows in torch.arange(len(images)).split(16):
            case = torch.arange(len(rows))
            output = model(Batch({"us": images[rows]}, {"us": case}, torch.zeros(len(rows), 5)))
            optimiser.zero_grad()
            F.cross_entropy(output.fused, labels[rows]).backward()
            optimiser.step()
    return model


def us_case(image: Tensor) -> Batch:
    return Batch({"us": image[None]}, {"us": torch.zeros(1, dtype=torch.int64)}, torch.zeros(1, 5))


def test_a_trained_encoder_lights_up_at_the_lesion(finder: MapModel) -> None:
    images, labels, places = with_lesion(40, seed=2)
    found = []
    for image, label, place in zip(images, labels, places, strict=True):
        if not label:
            continue
        explanation, maps = explain(finder, us_case(image))
        assert explanation.fused > 0
        assert explanation.complete
        smoothed = gaussian_filter(maps["us"][0], 1.0)
        peak = np.unravel_index(int(smoothed.argmax()), smoothed.shape)
        found.append(bool(np.abs(np.array(peak) - place).max() <= 3))
    # A place drawn at random would be hit in 49 of 1024.
    assert np.mean(found) >= 0.9


@pytest.mark.parametrize("what", ["head", "us"])
def test_other_weights_give_another_map(finder: MapModel, what: str) -> None:
    """Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018: the cascading test.

    With signs: without them the image itself, which every map here is multiplied by, would keep
    maps alike.
    """
    images, _, _ = with_lesion(16, seed=3)
    other = build_model("compact", 0)
    other.load_state_dict(finder.state_dict())
    fresh = build_model("compact", 77)
    other.get_submodule("head").load_state_dict(fresh.head.state_dict())
    if what == "us":
        other.get_submodule("us").load_state_dict(fresh.get_submodule("us").state_dict())
    alike = []
    for image in images[1::2]:
        maps = [explain(model, us_case(image))[1]["us"][0] for model in (finder, other)]
        first, second = (gaussian_filter(each, 1.0).ravel() for each in maps)
        alike.append(abs(spearmanr(first, second).statistic))
    assert np.mean(alike) < 0.5
