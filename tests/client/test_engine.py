"""The engine: the same gradients in chunks, nothing asked of the device in a step, faults told."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from her2_client import engine
from her2_client.cohort import Cohort
from her2_client.engine import LOOK_EVERY, AdamW, Watch, backward
from her2_client.training import train_round
from her2_common.cases import MODALITIES
from her2_common.config import RunConfig
from her2_common.errors import TrainingError
from her2_common.losses import loss_terms, map_loss
from her2_common.model import CHANNELS, GROUPS, Batch, MapModel, build_model, group_parameters

MakeCohort = Callable[..., Cohort]
MIX = [("us",), ("mg", "us"), ("mri",), ("us", "mri"), ("us",), MODALITIES, ("mg", "us", "mri")]
LABELS = torch.tensor([0, 1, 1, 0, 1, 0, 1])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def batch(make_cohort: MakeCohort) -> Batch:
    return make_cohort(MIX).batch(np.arange(len(MIX)))[0]


def model_of(preset: str = "compact") -> MapModel:
    return build_model(preset, 1, image_size=32, volume_size=16)


def gradients(model: MapModel) -> dict[str, Tensor]:
    return {
        g: torch.cat([p.grad.flatten() for p in group_parameters(model, g) if p.grad is not None])
        for g in GROUPS
    }


# --- the step -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "alignment"),
    [("compact", "l1"), ("compact", "contrastive"), ("paper", "contrastive")],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_chunks_give_the_gradients_of_the_whole_batch(
    batch: Batch, preset: str, alignment: Any, dtype: torch.dtype, tolerance: float
) -> None:
    """The oracle is plain autograd through the whole model at once. What is left is rounding."""
    images = {m: values.to(dtype) for m, values in batch.images.items()}
    exact = Batch(images, batch.rows, batch.clinical.to(dtype))
    model = model_of(preset).to(dtype)
    expected_loss = map_loss(model(exact), LABELS, alignment=alignment)
    expected_loss.backward()
    expected = gradients(model)
    for rows_at_once in (None, 1, 2, 100) if preset == "compact" else (None, 2):
        model.zero_grad()
        model.rows_at_once = rows_at_once
        terms = backward(model, exact, partial(loss_terms, labels=LABELS, alignment=alignment))
        total = torch.stack(list(terms.values())).sum()
        torch.testing.assert_close(total, expected_loss.detach(), rtol=tolerance, atol=0)
        for group, found in gradients(model).items():
            assert (found - expected[group]).norm() <= tolerance * expected[group].norm(), group


def test_memory_follows_the_chunk(batch: Batch) -> None:
    """Counted: what the forward pass keeps for the backward pass, beside the model and images."""

    def kept(rows_at_once: int | None, rows: int) -> int:
        model = model_of()
        model.rows_at_once = rows_at_once
        known = {p.data_ptr() for p in model.parameters()}
        total = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal total
            total += 0 if tensor.data_ptr() in known else tensor.numel() * tensor.element_size()
            return tensor

        images = torch.randn(rows, CHANNELS["mg"], 32, 32)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model.encode("mg", images)
        return total

    assert kept(None, 8) > 1.9 * kept(None, 4)
    images = 8 * CHANNELS["mg"] * 32 * 32 * 4
    assert kept(2, 8) == images < 0.2 * kept(None, 8)


def test_scores_in_chunks_are_the_same(batch: Batch) -> None:
    model = model_of()
    with torch.inference_mode():
        expected = model(batch).fused
        model.rows_at_once = 2
        torch.testing.assert_close(model(batch).fused, expected, rtol=1e-5, atol=1e-6)


class Asked(TorchDispatchMode):
    """Operators that make the host wait for the device, or whose result's shape depends on data."""

    WAITS = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select")
    WAITS_TOO = ("unique", "bincount", "_to_copy", "repeat_interleave", "argwhere", "is_same_size")

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        other_device = (kwargs or {}).get("device") is not None
        if any(name.startswith(w) for w in (*self.WAITS, *self.WAITS_TOO)) and (
            name != "_to_copy" or other_device
        ):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("preset", ["compact", "paper"])
@pytest.mark.parametrize(
    "options",
    [{}, {"alignment": "contrastive", "class_balance": "prior"}],
)
def test_no_step_asks_the_device(
    make_cohort: MakeCohort, monkeypatch: pytest.MonkeyPatch, preset: str, options: dict[str, Any]
) -> None:
    """From a batch's making to the optimiser's step and the record of its loss."""
    plan = RunConfig(
        preset=preset, image_size=32, volume_size=16, batch_size=2, local_epochs=1, **options
    )
    cohort, asked, steps = make_cohort(MIX), Asked(), 0
    whole_feed, note = Cohort.feed, Watch.note

    def feed(self: Cohort, *arguments: Any) -> Iterator[Any]:
        parts = whole_feed(self, *arguments)
        yield next(parts)  # the first follows the moves of the epoch's row numbers
        with asked:
            yield from parts

    def noted(self: Watch, *arguments: Any, **keywords: Any) -> Tensor:
        nonlocal steps
        steps += 1
        return note(self, *arguments, **keywords)

    monkeypatch.setattr(Cohort, "feed", feed)
    monkeypatch.setattr(Watch, "note", noted)
    model = build_model(preset, 1, **plan.layout)
    train_round(model, cohort, plan, site="a", round_number=1)
    assert steps == 4
    assert asked.names == []


def test_the_guard_sees_a_question(batch: Batch) -> None:
    with Asked() as asked:
        float(batch.clinical.sum())
        batch.clinical.nonzero()
    assert asked.names == ["_local_scalar_dense", "nonzero"]


@settings(deadline=None, max_examples=10)
@given(size=st.integers(1, 7))
def test_row_numbers_move_once_an_epoch(make_cohort: MakeCohort, size: int) -> None:
    cohort, moves = make_cohort(MIX), 0
    from_numpy = torch.from_numpy

    def counted(array: np.ndarray) -> Tensor:
        nonlocal moves
        moves += 1
        return from_numpy(array)

    groups = np.array_split(np.arange(len(MIX)), math.ceil(len(MIX) / size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "from_numpy", counted)
        parts = list(cohort.feed(groups))
    assert len(parts) == len(groups)
    assert moves == 1 + 2 * len(MODALITIES)


def test_the_optimiser_has_the_bits_of_torchs_own() -> None:
    """Also where a parameter has no gradient in some steps, and with another rate in each."""
    generator = torch.Generator().manual_seed(0)
    first = [torch.randn(shape, generator=generator) for shape in ((3, 5), (7,), (2, 2))]
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in first] for _ in range(2))
    options: dict[str, Any] = {"betas": (0.9, 0.99), "weight_decay": 0.05}
    optimiser = AdamW(ours, **options)
    oracle = torch.optim.AdamW(theirs, fused=True, **options)
    for step in range(5):
        optimiser.zero_grad()
        oracle.zero_grad()
        for i, parameter in enumerate(ours):
            if (step + i) % 3:  # the first is first seen in the second step, the last rests there
                theirs[i].grad = torch.randn(parameter.shape, generator=generator)
                parameter.grad = theirs[i].grad.clone()
        oracle.param_groups[0]["lr"] = rate = 0.1 / (step + 1)
        optimiser.step(rate)
        oracle.step()
        for parameter, expected, start in zip(ours, theirs, first, strict=True):
            assert torch.equal(parameter, expected)
            assert step < 2 or not torch.equal(parameter, start)


def test_without_a_gradient_nothing_moves() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    AdamW([parameter], betas=(0.9, 0.99), weight_decay=0.5).step(0.1)
    assert torch.equal(parameter, torch.ones(2))


# --- the watch ----------------------------------------------------------------------------------

PLAN = RunConfig(image_size=32, volume_size=16, batch_size=2, local_epochs=1, alignment="none")


def fault(cohort: Cohort, plan: RunConfig = PLAN, model: MapModel | None = None) -> TrainingError:
    with pytest.raises(TrainingError) as caught:
        train_round(model or model_of(), cohort, plan, site="a", round_number=2)
    return caught.value


def test_an_image_at_fault_is_named_with_its_case(make_cohort: MakeCohort) -> None:
    cohort = make_cohort([("us", "mri")] * 6)
    names = tuple(f"pseudonym-{i}" for i in range(6))
    cohort = Cohort(**(vars(cohort) | {"pseudonyms": names}))
    cohort.images["mri"][4, 0, 1, 2, 3] = -torch.inf
    error = fault(cohort)
    assert "the mri image of case pseudonym-4 holds" in str(error)
    assert "terms: fused, mri)" in str(error)  # ultrasound alone was fine in that step
    assert "ingest" in str(error.hint)
    assert error.code == "training"


def test_diverging_weights_are_told_apart(make_cohort: MakeCohort) -> None:
    cohort = make_cohort([("us",)] * 8)
    model = model_of()
    with torch.no_grad():
        model.us.project.weight.fill_(torch.inf)
    error = fault(cohort, model=model)
    assert str(error).startswith("round 2, epoch 1, step 1: the loss is not finite")
    assert "images of this step are finite, by now the weights of us" in str(error)
    assert "learning_rate" in str(error.hint)


@pytest.mark.parametrize("bad_step", [0, LOOK_EVERY - 1, LOOK_EVERY])
def test_a_fault_ends_the_round_within_sixteen_steps(
    make_cohort: MakeCohort, monkeypatch: pytest.MonkeyPatch, bad_step: int
) -> None:
    """And the step that is named is the first bad one, whichever step looks."""
    steps = 0
    true_backward = engine.backward

    def spoiled(*arguments: Any, **keywords: Any) -> dict[str, Tensor]:
        nonlocal steps
        terms = true_backward(*arguments, **keywords)
        steps += 1
        return terms | {"us": terms["us"] * torch.nan} if steps == bad_step + 1 else terms

    monkeypatch.setattr("her2_client.training.backward", spoiled)
    plan = PLAN.model_copy(update={"local_epochs": 5})  # of 10 steps
    error = fault(make_cohort([("us",)] * 20), plan)
    assert f"epoch {bad_step // 10 + 1}, step {bad_step % 10 + 1}: " in str(error)
    assert "terms: us)" in str(error)
    assert "the weights are finite" in str(error)
    assert steps == (LOOK_EVERY if bad_step < LOOK_EVERY else 2 * LOOK_EVERY)


def test_weights_that_break_in_the_last_step_do_not_leave(
    make_cohort: MakeCohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_backward = engine.backward

    def spoiled(model: MapModel, *arguments: Any, **keywords: Any) -> dict[str, Tensor]:
        terms = true_backward(model, *arguments, **keywords)
        model.head.bias.grad.fill_(torch.nan)  # type: ignore[union-attr]
        return terms

    monkeypatch.setattr("her2_client.training.backward", spoiled)
    error = fault(make_cohort([("us",)] * 2))
    assert "after the last step the weights of head are not finite" in str(error)
