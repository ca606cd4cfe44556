"""The published preset: its size, its encoders at every size, the same numbers written plainly."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from her2_common.cases import MODALITIES
from her2_common.hovertrans import HoVerTrans, mean_of_convolution
from her2_common.losses import map_loss
from her2_common.model import (
    CHANNELS,
    ENCODERS,
    GROUPS,
    PRESETS,
    Batch,
    MapModel,
    Preset,
    build_model,
    get_groups,
    group_sizes,
    preset,
    preset_sizes,
    set_groups,
)
from her2_common.swin import APART, Merge, Swin3d, relative_places, window_plan

CPU = torch.device("cpu")
HOVER = {"dims": (4, 8), "depths": (1, 2), "heads": (2, 4), "patch": 2}
SWIN = {"patch": 4, "embedding": 12, "depths": (2, 2, 2, 2), "heads": (1, 2, 2, 4), "window": 3}
SMALL = Preset(
    image_size=32,
    volume_size=96,
    features=96,
    encoders={"mg": ("hovertrans", HOVER), "us": ("hovertrans", HOVER), "mri": ("swin3d", SWIN)},
)
"""The published encoders in small. The volume keeps its side: only there does nothing have to be
filled up, which MONAI's blocks, the oracle, treat in another way."""


@pytest.fixture(scope="module")
def plain() -> Iterator[ModuleType]:
    """tests/benchmarks/plain_map.py, which stands in no package."""
    path = Path(__file__).parents[1] / "benchmarks" / "plain_map.py"
    spec = importlib.util.spec_from_file_location("plain_map", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["plain_map"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["plain_map"]


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with noise on every parameter, so that none is at an accidental 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return module


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- the published size -------------------------------------------------------------------------


def test_parameters_of_the_published_encoders() -> None:
    """79.8 M for mammography and ultrasound each, 28.2 M for MRI."""
    sizes = preset_sizes("paper")
    assert sizes["mg"] == pytest.approx(79.8e6, rel=0.03)
    assert sizes["us"] == pytest.approx(79.8e6, rel=0.03)
    assert sizes["mri"] == pytest.approx(28.2e6, rel=0.035)
    assert (sizes["head"], sizes["clinical"]) == (768 * 2 + 2, 5 * 2)  # Linear(768 + 5, 2)


def test_the_count_differs_from_the_published_one_by_what_is_never_used() -> None:
    """Two projections of a strip (512 numbers) a stage, two tables of relative positions a block:
    with them the count is the published one, to the digits that were published."""
    strips = 4 * 2 * (512 * 512 + 512)
    grids, heads, depths = (32, 16, 8, 4), (2, 4, 8, 16), (2, 4, 4, 2)
    tables = sum(d * 2 * h * g * g for g, h, d in zip(grids, heads, depths, strict=True))
    assert round((preset_sizes("paper")["us"] + strips + tables) / 1e6, 1) == 79.8


def test_all_of_the_published_model_moves_in_groups() -> None:
    """The one test that builds it in full."""
    model = build_model("paper", 3)
    assert group_sizes(model) == preset_sizes("paper")
    assert list(model.buffers()) == []
    vectors = get_groups(model, ["us"])
    vectors["us"] += 1
    set_groups(model, vectors)
    assert get_groups(model, ["us"])["us"].tobytes() == vectors["us"].tobytes()


def test_the_seed_alone_decides_the_weights() -> None:
    def weights(seed: int) -> bytes:
        model = build_model("paper", seed, image_size=32, volume_size=16)
        return b"".join(v.tobytes() for v in get_groups(model, ("us", "mri")).values())

    torch.manual_seed(1)
    first = weights(3)
    torch.manual_seed(2)
    assert weights(3) == first
    assert weights(4) != first


# --- the same numbers as the plain formulation --------------------------------------------------


def both_ways(plain: Any, has: Tensor) -> tuple[MapModel, Any, Any, Any, Tensor, Tensor]:
    """The model and its plain twin with the same weights, and the outputs and losses of both."""
    torch.manual_seed(0)
    model = MapModel(SMALL)
    shaken(model)
    twin = plain.PlainMap(SMALL)
    twin.load(model)
    images = {
        m: noise(len(has), CHANNELS[m], *([96] * 3 if m == "mri" else [32] * 2), seed=i)
        for i, m in enumerate(MODALITIES)
    }
    labels = torch.arange(len(has)) % 2
    clinical = noise(len(has), 5)
    rows = {m: has[:, i].nonzero().flatten() for i, m in enumerate(MODALITIES)}
    output = model(Batch({m: images[m][rows[m]] for m in MODALITIES}, rows, clinical))
    zeroed = {
        m: images[m] * has[:, i].view(-1, *[1] * (images[m].ndim - 1))
        for i, m in enumerate(MODALITIES)
    }
    expected = twin(zeroed, has, clinical)
    return (
        model,
        twin,
        output,
        expected,
        map_loss(output, labels),
        plain.plain_loss(expected, has, labels),
    )


def test_the_plain_formulation_gives_the_same_numbers(plain: Any) -> None:
    """Features, scores, loss and gradients, within 1e-5 in float32, also where a modality lacks."""
    has = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 1, 1]])
    model, twin, output, expected, loss, expected_loss = both_ways(plain, has)
    fused, single, features = expected
    torch.testing.assert_close(output.fused, fused, rtol=1e-5, atol=1e-5)
    for i, modality in enumerate(MODALITIES):
        rows = output.rows[modality]
        torch.testing.assert_close(
            output.features[modality], features[rows, i], rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(output.single[modality], single[rows, i], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-5)

    loss.backward()
    expected_loss.backward()
    gradients = gradients_of(twin)
    compared = 0
    for name, parameter in model.named_parameters():
        expected_gradient = gradients.pop(name).view_as(parameter)
        torch.testing.assert_close(parameter.grad, expected_gradient, rtol=1e-4, atol=1e-5)
        compared += bool(expected_gradient.abs().max() > 1e-4)
    assert gradients == {}
    assert compared > 100  # and they are no zeros


OF_MONAI = {
    "embed.proj.": "embed.",
    "norm1": "norm_attention",
    "norm2": "norm_mlp",
    "attn.relative_position_bias_table": "attention.bias_table",
    "attn.proj": "attention.project",
    "attn.qkv": "attention.qkv",
    "mlp.linear1": "mlp.0",
    "mlp.linear2": "mlp.2",
    "reduction": "reduce",
}


def gradients_of(twin: nn.Module) -> dict[str, Tensor]:
    """The gradients of the plain model under the names that ours has for the same weights."""
    gradients = {}
    for name, parameter in twin.named_parameters():
        assert parameter.grad is not None
        ours = name
        if name.startswith("mri."):
            for theirs, renamed in OF_MONAI.items():
                ours = ours.replace(theirs, renamed)
            ours = re.sub(r"^mri\.stages\.(\d+)\.", r"mri.stages.\1.blocks.", ours)
        gradients[ours] = parameter.grad
    for name in [n for n in gradients if n.endswith(".query.weight")]:
        stem = name.removesuffix("query.weight")
        parts = [gradients.pop(f"{stem}{part}.weight") for part in ("query", "key", "value")]
        gradients[f"{stem}qkv.weight"] = torch.cat(parts)
    return gradients


def test_float64_agrees_with_float32() -> None:
    """The encoders' float32 error, at the scale of their features: below 1e-5."""
    for kind, side, channels in (("hovertrans", 32, 1), ("swin3d", 32, 1)):
        options = HOVER if kind == "hovertrans" else SWIN
        torch.manual_seed(0)
        encoder = shaken(ENCODERS[kind](channels, 96, side, **options))
        images = noise(2, channels, *[side] * (2 if kind == "hovertrans" else 3))
        with torch.no_grad():
            single = encoder(images)
            double = encoder.double()(images.double())
        assert float((single - double).abs().max() / double.abs().max()) < 1e-5


# --- sizes and companions -----------------------------------------------------------------------


@settings(deadline=None, max_examples=6)
@given(side=st.integers(1, 6).map(lambda k: 16 * k), seed=st.integers(0, 99))
def test_images_of_any_multiple_of_16_each_by_itself(side: int, seed: int) -> None:
    torch.manual_seed(seed)
    encoder = shaken(HoVerTrans(1, 24, side, **HOVER), seed)
    check_rows(encoder, noise(3, 1, side, side, seed=seed), 24)


@settings(deadline=None, max_examples=5)
@given(side=st.integers(1, 4).map(lambda k: 16 * k), seed=st.integers(0, 99))
def test_volumes_of_any_multiple_of_16_each_by_itself(side: int, seed: int) -> None:
    torch.manual_seed(seed)
    encoder = shaken(Swin3d(1, 96, **SWIN), seed)
    check_rows(encoder, noise(3, 1, side, side, side, seed=seed), 96)


def check_rows(encoder: nn.Module, images: Tensor, features: int) -> None:
    """Shape, finite values and gradients, and a row that its companions do not change."""
    together = encoder(images)
    assert together.shape == (len(images), features)
    alone = torch.cat([encoder(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    together.square().sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in encoder.parameters())
    assert (together[0] - together[1]).abs().max() > 1e-4  # it looks at its images


@pytest.mark.parametrize("image_size", [32, 48, 64])
def test_the_published_preset_shrinks_with_its_images(image_size: int) -> None:
    """Whole, forward and backward; an absent modality gets exactly no gradient."""
    plan = preset("paper", image_size=image_size, volume_size=16)
    plan = replace(plan, encoders={m: plan.encoders[m] for m in ("us", "mri")})
    torch.manual_seed(0)
    model = MapModel(plan)
    batch = Batch({"us": noise(2, 1, image_size, image_size)}, {"us": torch.arange(2)}, noise(2, 5))
    output = model(batch)
    map_loss(output, torch.tensor([0, 1])).backward()
    assert torch.isfinite(output.fused).all()
    assert all(bool(p.grad.abs().sum() > 0) for p in model.us.parameters())
    assert all(p.grad is None for p in model.mri.parameters())


def test_another_size_than_the_one_it_was_built_for_is_refused() -> None:
    encoder = HoVerTrans(1, 24, 64, **HOVER)
    with pytest.raises(ValueError, match="expected images of 64 x 64 pixels, got 32 x 32"):
        encoder(noise(1, 1, 32, 32))


def test_a_volume_encoder_says_how_many_features_it_gives() -> None:
    with pytest.raises(ValueError, match="expected 96 features, the last width, got 100"):
        Swin3d(1, 100, **SWIN)


def test_every_preset_names_groups_that_exist() -> None:
    for plan in PRESETS.values():
        assert set(plan.encoders) <= set(GROUPS)
        assert {kind for kind, _ in plan.encoders.values()} <= set(ENCODERS)


# --- parts against loops ------------------------------------------------------------------------


def test_the_mean_of_a_convolution() -> None:
    convolution = nn.Conv2d(5, 7, 3, padding=1)
    maps = noise(2, 5, 6, 6)
    expected = convolution(maps).mean((2, 3))
    torch.testing.assert_close(
        mean_of_convolution(maps, convolution), expected, rtol=1e-5, atol=1e-6
    )


def test_all_eight_sub_volumes_are_merged() -> None:
    """Each of the eight tokens of a cube reaches the merged token, by weights of its own."""
    merge = Merge(3)
    cube = noise(1, 2, 2, 2, 3).requires_grad_()
    merge(cube)[0, 0, 0, 0].square().sum().backward()
    assert cube.grad is not None
    assert bool((cube.grad.abs().sum(-1) > 0).all())
    seen = set()
    for z, y, x in product(range(2), repeat=3):
        one = torch.zeros(1, 2, 2, 2, 3)
        one[0, z, y, x, 0] = 1
        with torch.no_grad():
            seen.add(tuple(merge(one).flatten().tolist()))
    assert len(seen) == 8


@settings(deadline=None, max_examples=20)
@given(real=st.integers(1, 8), window=st.sampled_from([2, 3]), shifted=st.booleans())
def test_windows_hold_neighbours_and_only_they_meet(real: int, window: int, shifted: bool) -> None:
    """Against a loop: who may attend to whom, from the tokens' places in the volume alone."""
    side = -(-real // window) * window
    shift = window // 2 if shifted and side > window else 0
    plan = window_plan(side, real, window, shift, CPU)
    assert sorted(plan.order.tolist()) == list(range(side**3))
    assert torch.equal(plan.order[plan.inverse], torch.arange(side**3))
    places = plan.order.view(-1, window**3)
    for w, tokens in enumerate(places.tolist()):
        for i, first in enumerate(tokens):
            for j, second in enumerate(tokens):
                a, b = coordinates(first, side), coordinates(second, side)
                near = all(abs(p - q) < window for p, q in zip(a, b, strict=True))
                exists = all(q < real for q in b)
                score = 0.0 if plan.mask is None else float(plan.mask[w, i, j])
                assert score == (0.0 if near and exists else APART)


def coordinates(token: int, side: int) -> tuple[int, int, int]:
    return token // side**2, token // side % side, token % side


@pytest.mark.parametrize("window", [2, 3])
def test_relative_places_name_each_offset_once(window: int) -> None:
    """Two pairs of tokens share a bias exactly if their offsets are equal."""
    places = relative_places(window, CPU).view(window**3, window**3)
    offsets = {}
    for i, j in product(range(window**3), repeat=2):
        a, b = coordinates(i, window), coordinates(j, window)
        offset = tuple(p - q for p, q in zip(a, b, strict=True))
        offsets.setdefault(offset, set()).add(int(places[i, j]))
    assert all(len(found) == 1 for found in offsets.values())
    assert len(set.union(*offsets.values())) == (2 * window - 1) ** 3 == len(offsets)
