"""A site's part of a round: the same weights however they came, and what stays at the site."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from her2_client.contribution import (
    Held,
    contribute,
    keep,
    keeps_memory,
    personal_weights,
    remembered,
    start_of,
)
from her2_client.local_objectives import Objective
from her2_client.site_memory import Memory
from her2_client.training import TrainResult
from her2_common.broadcast import advance, fingerprint
from her2_common.config import RunConfig
from her2_common.encoding import Encoded, decode
from her2_common.errors import CheckpointError, StaleBaseError, UpdateError
from her2_common.model import build_model, get_groups, preset_sizes
from her2_common.wire import TaskOrder

SIZES = preset_sizes("compact")
GROUPS = ("us", "clinical", "head")


def vectors(seed: int, *names: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=SIZES[n.split(".")[0]]).astype(np.float32) for n in names}


def plan(**changes: Any) -> RunConfig:
    return RunConfig.model_validate({"rounds": 4} | changes)


def order(of: RunConfig, number: int = 1, base: int = 0) -> TaskOrder:
    return TaskOrder(task="train", run="r", version="1", round=number, base=base, plan=of)


def named(prints: dict[str, str], number: int = 2, **changes: Any) -> TaskOrder:
    """An order that names these fingerprints."""
    return order(plan(**changes), number).model_copy(update={"weights": prints})


class Trainer:
    """Moves every value by 0.25 towards 1; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[dict[str, np.ndarray], RunConfig, int, Objective]] = []

    def __call__(
        self, weights: Any, of: RunConfig, number: int, objective: Objective
    ) -> tuple[dict[str, np.ndarray], TrainResult]:
        self.asked.append((dict(weights), of, number, objective))
        moved = {g: (v + 0.25 * (1 - v)).astype(np.float32) for g, v in weights.items()}
        controls = {g: np.full_like(v, 0.5) for g, v in weights.items() if g in objective.controls}
        return moved, TrainResult(0.7, 3, 0.1, controls)


# --- what a site holds --------------------------------------------------------------------------


def test_weights_are_the_same_however_they_came() -> None:
    first = vectors(1, "us", "head")
    second = {name: vector.copy() for name, vector in first.items()}
    steps = {n: advance(v, vectors(2, n)[n], "int8")[0] for n, v in second.items()}
    prints = {n: fingerprint(v) for n, v in second.items()}
    held = Held()
    held.take(named({n: fingerprint(v) for n, v in first.items()}), first, {})
    followed = held.take(named(prints), {}, steps)
    for taken in (
        followed,
        held.take(named(prints), {}, {}),  # held already
        held.take(named(prints), {}, steps),  # the order came twice: the step is not taken twice
        Held().take(named(prints), second, {}),  # whole
    ):
        assert {n: v.tobytes() for n, v in taken.items()} == {
            n: v.tobytes() for n, v in second.items()
        }


def test_a_site_that_lacks_something_says_so() -> None:
    first = vectors(1, "us", "head")
    moved = first["us"].copy()
    step, _ = advance(moved, vectors(2, "us")["us"], "int8")
    later = named({"us": fingerprint(moved)})
    for held in (Held(), Held()):
        with pytest.raises(StaleBaseError):
            held.take(later, {}, {"us": step})
        with pytest.raises(StaleBaseError):
            held.take(later, {}, {})
        other = vectors(5, "us")
        held.take(named({"us": fingerprint(other["us"])}), other, {})
        with pytest.raises(StaleBaseError):  # it builds on other weights
            held.take(later, {}, {"us": step})


def test_a_step_that_cannot_be_read_leaves_what_is_held() -> None:
    first = vectors(1, "us", "head")
    second = {name: vector.copy() for name, vector in first.items()}
    steps = {n: advance(v, vectors(2, n)[n], "int4")[0] for n, v in second.items()}
    later = named({n: fingerprint(v) for n, v in second.items()})
    held = Held()
    held.take(named({n: fingerprint(v) for n, v in first.items()}), first, {})
    spoilt = replace(steps["head"], data=np.full_like(steps["head"].data, 0x88))
    with pytest.raises(UpdateError):
        held.take(later, {}, steps | {"head": spoilt})
    taken = held.take(later, {}, steps)  # whatever came before the spoilt one has moved once
    assert {n: v.tobytes() for n, v in taken.items()} == {n: v.tobytes() for n, v in second.items()}


def test_other_weights_than_those_named_are_refused_and_not_held() -> None:
    sent = vectors(1, "us")
    held = Held()
    with pytest.raises(UpdateError) as caught:
        held.take(named({"us": "0" * 64}), sent, {})
    assert caught.value.reason == "wrong weights"
    with pytest.raises(StaleBaseError):
        held.take(named({"us": fingerprint(sent["us"])}), {}, {})


def test_what_is_held_is_the_site_s_own_copy() -> None:
    sent = vectors(1, "us")
    print_ = fingerprint(sent["us"])
    held = Held()
    held.take(named({"us": print_}), sent, {})
    sent["us"][:] = 0
    assert fingerprint(held.take(named({"us": print_}), {}, {})["us"]) == print_


def drawn(seed: int) -> dict[str, np.ndarray]:
    return get_groups(build_model("compact", seed), ["us", "head"])


def test_what_a_run_begins_with_follows_from_its_seed() -> None:
    first = drawn(7)
    prints = {n: fingerprint(v) for n, v in first.items()}
    zeros = np.zeros_like(first["us"])
    asked = named(prints | {"us.control": fingerprint(zeros)}, number=1, seed=7)
    taken = Held().take(asked, {}, {})
    assert {n: v.tobytes() for n, v in taken.items()} == {
        n: v.tobytes() for n, v in (first | {"us.control": zeros}).items()
    }


@pytest.mark.parametrize("asked", [{"number": 2, "seed": 7}, {"number": 1, "seed": 8}])
def test_the_seed_gives_no_other_weights(asked: dict[str, int]) -> None:
    prints = {n: fingerprint(v) for n, v in drawn(7).items()}
    with pytest.raises(StaleBaseError):
        Held().take(named(prints, **asked), {}, {})


# --- what leaves and what stays -----------------------------------------------------------------

KEEPING = {
    "int8": {"compression": {"up": "int8"}},
    "scaffold": {"strategy": {"local": {"name": "scaffold"}}},
    "ditto": {"strategy": {"personal": {"name": "ditto"}}},
    "private": {"strategy": {"private_groups": ["us"]}},
}


@pytest.mark.parametrize("name", KEEPING)
def test_a_memory_is_kept_where_the_run_needs_one(tmp_path: Path, name: str) -> None:
    of = plan(**KEEPING[name])
    assert keeps_memory(of)
    memory = Memory(tmp_path)
    keep(memory, order(of), {"x": np.ones(2, np.float32)})
    for later in (memory, Memory(tmp_path)):  # in the same process, after a restart
        assert remembered(later, order(of, 2, 1)).keys() == {"x"}
        with pytest.raises(CheckpointError, match="memory of round 2"):
            remembered(later, order(of, 3, 2))


def test_a_plain_run_keeps_nothing(tmp_path: Path) -> None:
    for changes in ({}, {"strategy": {"local": {"name": "fedprox"}, "step": {"name": "fedadam"}}}):
        of = plan(**changes)
        memory = Memory(tmp_path)
        keep(memory, order(of), {"x": np.ones(2, np.float32)})
        assert remembered(memory, order(of, 2, 1)) == {}
    assert list(tmp_path.iterdir()) == []


def test_what_is_sent_and_left_over_add_up_to_the_changes() -> None:
    of = plan(compression={"up": "int8", "keep": 0.1})
    start, memory, train = vectors(1, *GROUPS), {}, Trainer()
    sent = {g: np.zeros(SIZES[g]) for g in GROUPS}
    for number in (1, 2, 3):
        done = contribute(order(of, number, number - 1), start, start, memory, train)
        assert done.update.keys() == set(GROUPS)
        for g, vector in done.update.items():
            assert isinstance(vector, Encoded)
            assert vector.share == (0.1 if g == "us" else 1.0)
            sent[g] += decode(vector)
        memory = done.memory
    assert memory.keys() == {f"residual:{g}" for g in GROUPS}
    for g in GROUPS:
        true = 3 * 0.25 * (1 - start[g].astype(float))
        np.testing.assert_allclose(sent[g] + memory[f"residual:{g}"], true, rtol=0, atol=2e-6)


def test_a_private_group_goes_on_from_the_site_s_own() -> None:
    of = plan(strategy={"private_groups": ["us"]})
    came, train = vectors(1, *GROUPS), Trainer()
    first = contribute(order(of), start_of(order(of), came, {}), came, {}, train)
    assert first.update.keys() == {"clinical", "head"}
    later = vectors(2, "clinical", "head")
    start = start_of(order(of, 2, 1), later, first.memory)
    assert start.keys() == set(GROUPS)
    np.testing.assert_array_equal(start["us"], came["us"] + 0.25 * (1 - came["us"]))
    np.testing.assert_array_equal(start["head"], later["head"])


def test_scaffold_sends_how_its_control_changed() -> None:
    of = plan(strategy={"local": {"name": "scaffold"}})
    came, train = vectors(1, *GROUPS, *(f"{g}.control" for g in GROUPS)), Trainer()
    memory = {"control:us": np.full(SIZES["us"], 0.125, np.float32)}
    done = contribute(order(of), start_of(order(of), came, memory), came, memory, train)
    (weights, _, _, objective), *_ = train.asked
    assert weights.keys() == set(GROUPS)
    c, own = objective.controls["us"]
    assert c is came["us.control"]
    assert (own == 0.125).all()
    assert not objective.controls["head"][1].any()  # zeros at first
    change, fresh = done.update["us.control"], done.update["head.control"]
    assert isinstance(change, np.ndarray)
    assert isinstance(fresh, np.ndarray)
    assert (change == 0.375).all()
    assert (fresh == 0.5).all()
    assert (done.memory["control:us"] == 0.5).all()


def test_fedprox_pulls_the_shared_groups_to_where_the_round_began() -> None:
    of = plan(strategy={"local": {"name": "fedprox", "mu": 0.3}, "private_groups": ["us"]})
    came, train = vectors(1, *GROUPS), Trainer()
    contribute(order(of), came, came, {}, train)
    objective = train.asked[0][3]
    assert objective.pull == 0.3
    assert objective.anchor.keys() == {"clinical", "head"}
    assert objective.anchor["head"] is came["head"]


def test_ditto_trains_its_own_model_on_from_its_own() -> None:
    of = plan(strategy={"personal": {"name": "ditto", "strength": 0.2}})
    came, train = vectors(1, *GROUPS), Trainer()
    first = contribute(order(of), came, came, {}, train)
    assert [asked[3].pull for asked in train.asked] == [0.0, 0.2]
    later = vectors(2, *GROUPS)
    contribute(order(of, 2, 1), later, later, first.memory, train)
    own, _, _, objective = train.asked[3]
    np.testing.assert_array_equal(own["us"], came["us"] + 0.25 * (1 - came["us"]))
    assert objective.anchor["us"] is later["us"]
    assert train.asked[2][0]["us"] is later["us"]  # the shared one begins from what came
    personal = personal_weights(of, later, first.memory, train)
    assert personal is not None
    np.testing.assert_array_equal(personal["us"], own["us"])


# --- a model of its own -------------------------------------------------------------------------


def test_fine_tuning_is_short_slow_and_of_the_groups_it_names() -> None:
    tuning = {"name": "fine-tuning", "epochs": 3, "rate_share": 0.5, "groups": ["head"]}
    of = plan(strategy={"personal": tuning}, learning_rate=0.01, local_epochs=7)
    train, start = Trainer(), vectors(1, *GROUPS)
    personal = personal_weights(of, start, {}, train)
    assert personal is not None
    ((weights, tuned, number, objective),) = train.asked
    assert weights.keys() == start.keys()
    assert (tuned.local_epochs, tuned.learning_rate, tuned.rounds, number) == (3, 0.005, 1, 1)
    assert tuned.warmup_rounds == 0
    assert tuned.seed != of.seed
    assert objective.tuned == ("head",)


def test_a_run_without_personal_models_has_none() -> None:
    assert personal_weights(plan(), vectors(1, *GROUPS), {}, Trainer()) is None
