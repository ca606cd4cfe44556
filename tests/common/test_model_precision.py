"""float32 against float64, and bfloat16 autocast against float32: scores, loss and gradients.

bfloat16 keeps 8 binary digits: one rounding is 0.4 % of the value. What it does to a gradient is
judged by direction and length, as single values near 0 lose theirs. The published alignment term
is left out there: its gradient is the sign of a difference, which rounding turns where features
are nearly equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from her2_common.cases import MODALITIES
from her2_common.losses import map_loss
from her2_common.model import CHANNELS, GROUPS, Batch, MapModel, build_model, group_parameters

ROWS = {"mg": [0, 1, 3], "us": [0, 2, 3], "mri": [1, 2, 3]}
LABELS = torch.tensor([1, 1, 1, 1])
SIZES = {"image_size": 64, "volume_size": 32}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_batch(dtype: torch.dtype) -> Batch:
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    images = {
        m: draw(3, CHANNELS[m], *((32,) * 3 if m == "mri" else (64,) * 2)) for m in MODALITIES
    }
    return Batch(images, {m: torch.tensor(ROWS[m]) for m in MODALITIES}, draw(4, 5))


@dataclass(frozen=True)
class Result:
    """Fused probabilities (4,), the loss, and each group's gradient, in float64."""

    scores: Tensor
    loss: float
    gradients: dict[str, Tensor]


def result(model: MapModel, dtype: torch.dtype, *, bf16: bool = False, **loss: Any) -> Result:
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        output = model(make_batch(dtype))
    value = map_loss(output.float() if dtype == torch.float32 else output, LABELS, **loss)
    value.backward()
    gradients = {
        group: torch.cat([p.grad.double().flatten() for p in group_parameters(model, group)])
        for group in GROUPS
    }
    scores = torch.softmax(output.fused.detach().double(), dim=1)[:, 1]
    return Result(scores, float(value.detach()), gradients)


@pytest.mark.parametrize("preset", ["compact", "paper"])
def test_float32_against_float64(preset: str) -> None:
    single = result(build_model(preset, 1, **SIZES), torch.float32)
    double = result(build_model(preset, 1, **SIZES).double(), torch.float64)
    torch.testing.assert_close(single.scores, double.scores, rtol=0, atol=1e-5)
    assert single.loss == pytest.approx(double.loss, abs=1e-5)
    for group in GROUPS:
        gap = single.gradients[group] - double.gradients[group]
        assert gap.norm() < 1e-4 * double.gradients[group].norm()


@pytest.mark.parametrize("preset", ["compact", "paper"])
def test_bfloat16_against_float32(preset: str) -> None:
    model = build_model(preset, 1, **SIZES)
    full = result(model, torch.float32, alignment="none")
    half = result(model, torch.float32, bf16=True, alignment="none")
    torch.testing.assert_close(half.scores, full.scores, rtol=0, atol=0.01)
    assert half.loss == pytest.approx(full.loss, abs=0.02)
    for group in GROUPS:
        a, b = half.gradients[group], full.gradients[group]
        assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.97
        assert 0.9 < a.norm() / b.norm() < 1.1
    assert not torch.equal(half.scores, full.scores)  # autocast was at work
