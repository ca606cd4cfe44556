"""Server steps: pooled gradient descent, the papers' formulas by hand, torch, and resumed runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from her2_common.strategy import FedAdam, FedAvg, FedAvgM, FedYogi, ServerStep
from her2_server.aggregation import Accumulator
from her2_server.strategies.optimisers import (
    fedadam,
    fedavg,
    fedavgm,
    fedyogi,
    optimise,
    scaffold_control,
)
from her2_server.strategies.step import pack, parts, step, step_group, unpack

ALL: list[ServerStep] = [FedAvg(), FedAvgM(), FedAdam(), FedYogi()]
every = pytest.mark.parametrize("choice", ALL, ids=lambda choice: choice.name)
numbers = st.floats(-4, 4, width=32)
vectors = hnp.arrays(np.float32, 7, elements=numbers)
steps_of_1024th = hnp.arrays(np.int64, 7, elements=st.integers(-4096, 4096)).map(lambda k: k / 1024)


def cut(change: np.ndarray, length: int) -> Iterator[tuple[slice, np.ndarray]]:
    return ((part, change[part]) for part in parts(change.size, length))


def run(choice: ServerStep, start: np.ndarray, changes: list[np.ndarray]) -> np.ndarray:
    state: dict[str, np.ndarray] = {}
    for change in changes:
        start, state = optimise(start, change, state, choice)
    return start


# --- convex problems ----------------------------------------------------------------------------


def test_one_full_gradient_step_a_site_is_pooled_gradient_descent() -> None:
    """Site k has n[k] cases x with the loss 1/2 a_k (w - x)^2; the pool is all cases."""
    rng = np.random.default_rng(1)
    cases = [rng.normal(k, 1, (n, 3)) for k, n in enumerate((40, 7, 120))]
    curvature = np.array([0.2, 3.0, 1.0])
    pooled_x = np.concatenate(cases)
    pooled_a = np.repeat(curvature, [len(x) for x in cases])[:, None]
    rate = 0.3
    federated = np.zeros(3, np.float32)
    pooled = np.zeros(3)
    for _ in range(25):
        accumulator = Accumulator({"head": 3})
        changes, counts = [], []
        for a, x in zip(curvature, cases, strict=True):
            gradient = a * (federated.astype(float) - x).mean(axis=0)
            sent = (-rate * gradient).astype(np.float32)
            accumulator.add({"head": sent}, {"head": len(x)})
            changes.append(sent.astype(float))
            counts.append(len(x))
        change = np.average(changes, axis=0, weights=counts)
        summed, _ = step_group(federated, accumulator.take("head"), {}, FedAvg())
        federated, _ = fedavg(federated, change, {}, FedAvg())
        np.testing.assert_allclose(summed, federated, rtol=0, atol=2e-7)
        pooled -= rate * (pooled_a * (pooled - pooled_x)).mean(axis=0)
    np.testing.assert_allclose(federated, pooled, rtol=0, atol=2e-6)
    minimum = (pooled_a * pooled_x).sum(axis=0) / pooled_a.sum()
    assert np.abs(pooled - minimum).max() < 2e-3  # it went somewhere


@every
def test_every_step_reaches_the_minimum_of_a_quadratic(choice: ServerStep) -> None:
    """A change that points to the minimum, curvatures from 1 to 4: the end is the minimum. The
    adaptive steps hover around it by about their rate."""
    target, curvature = np.array([0.5, -0.25, 1.0]), np.array([1.0, 2.0, 4.0])
    w = np.zeros(3, np.float32)
    state: dict[str, np.ndarray] = {}
    for _ in range(400):
        w, state = optimise(w, -0.1 * curvature * (w - target), state, choice)
    np.testing.assert_allclose(w, target, atol=1e-5 if choice.name.startswith("fedavg") else 0.02)


# --- oracles ------------------------------------------------------------------------------------


def test_fedavgm_is_torch_sgd_with_momentum() -> None:
    rng = np.random.default_rng(2)
    start = rng.normal(size=5).astype(np.float32)
    changes = [rng.normal(size=5) for _ in range(12)]
    parameter = torch.nn.Parameter(torch.from_numpy(start.astype(np.float64)))
    optimiser = torch.optim.SGD([parameter], lr=0.7, momentum=0.8)
    for change in changes:
        parameter.grad = torch.from_numpy(-change)
        optimiser.step()
    ours = run(FedAvgM(server_learning_rate=0.7, momentum=0.8), start, changes)
    np.testing.assert_allclose(ours, parameter.detach().numpy(), rtol=2e-6, atol=2e-6)


def test_fedadam_is_torch_adam_where_the_two_agree() -> None:
    """Adam's epsilon is tau; its corrections are undone through the rate, step by step, and tau is
    so small that neither it nor the first second moment, tau**2, is felt."""
    rng = np.random.default_rng(3)
    start = np.zeros(4, np.float32)
    changes = [rng.normal(size=4) for _ in range(9)]
    choice = FedAdam(server_learning_rate=0.05, tau=1e-12)
    parameter = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimiser = torch.optim.Adam([parameter], lr=1.0, betas=(0.9, 0.99), eps=1e-12)
    for t, change in enumerate(changes, start=1):
        corrections = (1 - 0.9**t) / math.sqrt(1 - 0.99**t)
        optimiser.param_groups[0]["lr"] = 0.05 * corrections
        parameter.grad = torch.from_numpy(-change)
        optimiser.step()
    np.testing.assert_allclose(
        run(choice, start, changes), parameter.detach().numpy(), rtol=3e-6, atol=1e-7
    )


def by_hand(choice: FedAvgM | FedAdam | FedYogi, w: float, changes: list[float]) -> float:
    """The formulas of Hsu et al. and of algorithm 2 of Reddi et al. for one parameter, in float64;
    what is remembered from one round to the next is float32."""
    m, v = 0.0, 0.0
    if choice.name != "fedavgm":
        v = choice.tau**2
    for delta in changes:
        if choice.name == "fedavgm":
            m = choice.momentum * m + delta
            move = choice.server_learning_rate * m
        else:
            m = choice.beta1 * m + (1 - choice.beta1) * delta
            if choice.name == "fedadam":
                v = choice.beta2 * v + (1 - choice.beta2) * (delta * delta)
            else:
                sign = (v > delta * delta) - (v < delta * delta)
                v = v - (1 - choice.beta2) * (delta * delta) * sign
            move = choice.server_learning_rate * m / (math.sqrt(v) + choice.tau)
        w, m, v = (float(np.float32(value)) for value in (w + move, m, v))
    return w


@pytest.mark.parametrize("choice", [FedAvgM(), FedAdam(), FedYogi()], ids=lambda c: c.name)
@settings(deadline=None, max_examples=60)
@given(changes=st.lists(vectors, min_size=1, max_size=8), start=vectors)
def test_steps_are_the_papers_to_the_bit(
    choice: FedAvgM | FedAdam | FedYogi, changes: list[np.ndarray], start: np.ndarray
) -> None:
    ours = run(choice, start, changes)
    theirs = [by_hand(choice, float(start[i]), [float(c[i]) for c in changes]) for i in range(7)]
    np.testing.assert_array_equal(ours, theirs)


def test_adam_and_yogi_differ_after_a_large_change() -> None:
    """Adam forgets the large change by a share a round, Yogi by as little as the small ones are."""
    changes = [np.array([1.0])] + [np.array([0.01])] * 100
    adam: dict[str, np.ndarray] = {}
    yogi: dict[str, np.ndarray] = {}
    w = np.zeros(1, np.float32)
    for change in changes:
        _, adam = fedadam(w, change, adam, FedAdam())
        _, yogi = fedyogi(w, change, yogi, FedYogi())
    assert float(adam["second"][0]) < 0.4 * 0.01
    assert float(yogi["second"][0]) > 0.98 * 0.01


@given(start=vectors, change=vectors)
@settings(deadline=None, max_examples=40)
def test_fedavg_with_rate_1_is_the_accumulator_s_mean(
    start: np.ndarray, change: np.ndarray
) -> None:
    accumulator = Accumulator({"us": start.size})
    accumulator.add({"us": change}, {"us": 3})
    on_grid = np.rint(change.astype(np.float64) * 2.0**30).astype(np.int64) / 2.0**30  # no -0
    new, state = fedavg(start, on_grid, {}, FedAvg())
    summed, _ = step_group(start, accumulator.take("us"), {}, FedAvg())
    assert new.tobytes() == summed.tobytes()
    assert state == {}


# --- properties ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    start=vectors,
    changes=st.lists(vectors, min_size=1, max_size=4),
    length=st.integers(1, 8),
    choice=st.sampled_from(ALL),
)
def test_blocks_change_no_bit(
    start: np.ndarray, changes: list[np.ndarray], length: int, choice: ServerStep
) -> None:
    whole, blocks = start, start
    state: dict[str, np.ndarray] = {}
    in_blocks: dict[str, np.ndarray] = {}
    for change in changes:
        whole, state = optimise(whole, change, state, choice)
        blocks, in_blocks = step_group(blocks, cut(change, length), in_blocks, choice)
    assert whole.tobytes() == blocks.tobytes()
    assert {k: v.tobytes() for k, v in state.items()} == {
        k: v.tobytes() for k, v in in_blocks.items()
    }


@every
def test_a_run_that_is_resumed_from_its_checkpoint_gives_the_same_bits(choice: ServerStep) -> None:
    rng = np.random.default_rng(4)
    start = {g: rng.normal(size=n).astype(np.float32) for g, n in {"us": 5, "head": 3}.items()}
    rounds = [{g: rng.normal(size=v.size) for g, v in start.items()} for _ in range(5)]

    def go(interrupted: bool) -> dict[str, bytes]:
        groups: dict[str, np.ndarray] = start
        states: dict[str, dict[str, np.ndarray]] = {}
        for changes in rounds:
            groups, states = step(
                groups, {g: cut(c, 2) for g, c in changes.items()}, states, choice
            )
            if interrupted:
                states = unpack(load_tensors(save_tensors(pack(states))))
        return {g: v.tobytes() for g, v in groups.items()}

    assert go(interrupted=True) == go(interrupted=False)


@every
def test_a_group_that_nobody_trained_keeps_its_value_and_its_memory(choice: ServerStep) -> None:
    rng = np.random.default_rng(5)
    start = {g: rng.normal(size=4).astype(np.float32) for g in ("mg", "us")}
    both = {g: [(slice(0, 4), rng.normal(size=4))] for g in start}
    groups, states = step(start, both, {}, choice)
    one = {"us": [(slice(0, 4), rng.normal(size=4))]}
    later, after = step(groups, one, states, choice)
    assert later["mg"].tobytes() == groups["mg"].tobytes()
    assert later["mg"] is not groups["mg"]
    assert pack({"mg": after["mg"]}).keys() == pack({"mg": states["mg"]}).keys()
    for name, array in states["mg"].items():
        assert after["mg"][name].tobytes() == array.tobytes()
    assert later["us"].tobytes() != groups["us"].tobytes()


@settings(deadline=None, max_examples=60)
@given(changes=st.lists(steps_of_1024th, min_size=1, max_size=5), power=st.integers(-6, 6))
def test_scaled_changes_scale_averaging_and_leave_adaptive_steps_alone(
    changes: list[np.ndarray], power: int
) -> None:
    """By a power of two, hence exact. FedAdam and FedYogi take tau along, and so do not depend on
    the unit of the change."""
    scale = 2.0**power
    zero = np.zeros(7, np.float32)
    grown = [scale * change for change in changes]
    for linear in (FedAvg(), FedAvgM(momentum=0.75)):
        np.testing.assert_array_equal(run(linear, zero, grown), scale * run(linear, zero, changes))
    for make in (FedAdam, FedYogi):
        here, there = make(tau=2.0**-9), make(tau=2.0**-9 * scale)
        np.testing.assert_array_equal(run(there, zero, grown), run(here, zero, changes))


@every
def test_nothing_that_is_given_is_changed(choice: ServerStep) -> None:
    start, change = np.ones(3, np.float32), np.full(3, 0.5)
    _, state = optimise(start, change, {}, choice)
    before = {name: array.copy() for name, array in state.items()}
    optimise(start, change, state, choice)
    assert (start == 1).all()
    assert (change == 0.5).all()
    assert all((state[name] == array).all() for name, array in before.items())
    assert all(array.dtype == np.float32 for array in state.values())


# --- SCAFFOLD's server half, and faults ---------------------------------------------------------


def test_the_control_stays_the_mean_of_all_controls_when_sites_are_absent() -> None:
    rng = np.random.default_rng(6)
    cases = np.array([10, 30, 60])
    controls = np.zeros((3, 4))
    c = np.zeros(4, np.float32)
    for present in ([0, 1, 2], [1], [0, 2], [2]):
        moves = rng.normal(size=(len(present), 4))
        controls[present] += moves
        mean = np.average(moves, axis=0, weights=cases[present])
        c = scaffold_control(c, mean, cases[present].sum() / cases.sum())
    expected = np.average(controls, axis=0, weights=cases)
    np.testing.assert_allclose(c, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, math.nan])
def test_a_share_of_sites_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match=r"expected a share in \(0, 1\]"):
        scaffold_control(np.zeros(2, np.float32), np.zeros(2), share)


@pytest.mark.parametrize(
    "blocks",
    [
        [],
        [(slice(0, 2), np.zeros(2))],
        [(slice(2, 4), np.zeros(2)), (slice(0, 2), np.zeros(2))],
        [(slice(0, 2), np.zeros(2)), (slice(1, 4), np.zeros(3))],
        [(slice(0, 4), np.zeros(1))],
    ],
    ids=["none", "short", "order", "overlap", "broadcast"],
)
def test_blocks_must_cover_the_group_once(blocks: list[Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        step_group(np.zeros(4, np.float32), blocks, {}, FedAvg())


def test_a_change_of_an_unknown_group_is_refused() -> None:
    with pytest.raises(ValueError, match="ct"):
        step({"us": np.zeros(1, np.float32)}, {"ct": []}, {}, FedAvg())


Step = Callable[..., tuple[np.ndarray, dict[str, np.ndarray]]]


@pytest.mark.parametrize(
    ("function", "choice"),
    [
        (fedavg, FedAvg(server_learning_rate=0.5)),
        (fedavgm, FedAvgM(momentum=0.5)),
        (fedadam, FedAdam(beta1=0.5)),
        (fedyogi, FedYogi(beta2=0.5)),
    ],
)
def test_the_settings_name_the_function(function: Step, choice: ServerStep) -> None:
    start, change = np.ones(2, np.float32), np.array([0.3, -2.0])
    expected, state = function(start, change, {}, choice)
    new, kept = optimise(start, change, {}, choice)
    assert new.tobytes() == expected.tobytes()
    assert kept.keys() == state.keys()
