"""Strategies in whole federations: the weights move as the formulas say."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.federation.strategies_ground import (
    CENTRES,
    MakeFederation,
    Watch,
    at,
    mean_change,
    memory_of,
    rounds,
)

from her2_client.contribution import contribute, start_of
from her2_client.site import Site
from her2_common import __version__
from her2_common.broadcast import advance, fingerprint
from her2_common.config import RunConfig
from her2_common.encoding import Encoded, decode
from her2_common.release import read_release
from her2_common.strategy import FedAdam, FedAvgM, FedYogi
from her2_common.wire import TaskOrder, read_document
from her2_server.strategies.optimisers import optimise

# --- the server's side --------------------------------------------------------------------------

STEPS: dict[str, Any] = {
    "fedavgm": FedAvgM(),
    "fedadam": FedAdam(server_learning_rate=1e-3),
    "fedyogi": FedYogi(server_learning_rate=1e-3),
}


@pytest.mark.parametrize("name", ["fedavg", *STEPS])
def test_the_weights_move_as_the_step_says(make: MakeFederation, name: str) -> None:
    step = STEPS[name].model_dump() if name in STEPS else {"name": name}
    federation = make(strategy={"step": step})
    grid = federation.grid()
    watch = Watch(federation, grid)
    rounds(federation, 2, grid)
    for group in ("us", "mri", "head"):
        state: dict[str, np.ndarray] = {}
        for number in (1, 2):
            start = at(federation, number - 1).groups[group]
            change = mean_change(watch, number, group)
            if name == "fedavg":
                expected = (start.astype(np.float64) + change).astype(np.float32)
            else:
                expected, state = optimise(start, change, state, STEPS[name])
            found = at(federation, number)
            np.testing.assert_allclose(found.groups[group], expected, rtol=2e-6, atol=1e-8)
            assert not np.array_equal(found.groups[group], start)
            kept = {n.split(".")[1] for n in found.memory if n.startswith(f"{group}.")}
            assert kept == state.keys()


def clipped(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1)
    limit = np.sort(norms)[(len(rows) - 1) // 2]
    return np.asarray((rows * np.minimum(1, limit / norms)[:, None]).mean(axis=0))


ROBUST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "median": lambda rows: np.median(rows, axis=0),
    "trimmed-mean": lambda rows: np.sort(rows, axis=0)[1:2].mean(axis=0),
    "norm-clip": clipped,
}


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("up", ["float32", "int8"])
def test_robust_rules_combine_what_was_sent(make: MakeFederation, name: str, up: str) -> None:
    federation = make(strategy={"combine": {"name": name}}, compression={"up": up})
    grid = federation.grid(order_of_arrival=lambda ids: ids[::-1])
    watch = Watch(federation, grid)
    after = rounds(federation, 1, grid)
    rows = np.stack([changes["us"] for changes, _ in watch.changes(1).values()]).astype(np.float64)
    start = at(federation, 0).groups["us"]
    np.testing.assert_allclose(after.groups["us"] - start, ROBUST[name](rows), rtol=0, atol=2e-7)
    assert not (federation.folder.rounds / ".spool").exists()


def test_what_the_sites_hold_moves_by_what_was_encoded(make: MakeFederation) -> None:
    step = {"name": "fedavg"}
    federation = make(compression={"down": "int8", "down_keep": 0.1}, strategy={"step": step})
    grid = federation.grid()
    watch = Watch(federation, grid)
    rounds(federation, 2, grid)
    for group, share in (("us", 0.1), ("head", 1.0)):
        held, left = at(federation, 0).groups[group], None
        for number in (1, 2):
            exact = (held.astype(np.float64) + mean_change(watch, number, group)).astype(np.float32)
            step, left = advance(held, exact - held, "int8", share, left)
            found = at(federation, number)
            np.testing.assert_allclose(found.groups[group], held, rtol=0, atol=1e-6)
            np.testing.assert_allclose(found.memory[f"{group}.residual"], left, rtol=0, atol=1e-6)
            assert found.memory[f"{group}.step"].size == step.data.size
            held, left = found.groups[group], found.memory[f"{group}.residual"]


def test_scaffold_keeps_the_mean_of_the_sites_controls(make: MakeFederation) -> None:
    federation = make(strategy={"local": {"name": "scaffold"}})
    grid = federation.grid()
    watch = Watch(federation, grid)
    final = rounds(federation, 2, grid)
    for group in ("us", "mri", "head"):
        total = sum(mean_change(watch, number, f"{group}.control") for number in (1, 2))
        np.testing.assert_allclose(final.memory[f"{group}.control"], total, rtol=1e-5, atol=1e-8)
        assert np.any(total)
    for name in federation.configs:
        (second,) = watch.orders[2, name]
        order = read_document(second, "order", TaskOrder)
        assert {n for n in order.weights if n.endswith(".control")} == {
            f"{n}.control" for n in order.weights if "." not in n
        }
        assert order.weights["us.control"] == fingerprint(at(federation, 1).memory["us.control"])
        assert {n for n in memory_of(federation, name, 2) if n.startswith("control:")}


# --- the sites' side ----------------------------------------------------------------------------


@pytest.mark.parametrize("local", ["plain", "fedprox", "scaffold"])
def test_a_site_sends_what_its_objective_gives(make: MakeFederation, local: str) -> None:
    """The second round's changes, made again from the parts: the weights, the memory of round 1."""
    strong = {"mu": 10.0} if local == "fedprox" else {}
    federation = make(
        strategy={"local": {"name": local} | strong}, compression={"up": "int8"}, batch_size=6
    )
    grid = federation.grid()
    watch = Watch(federation, grid)
    rounds(federation, 2, grid)
    plan = watch.plan
    config = federation.configs["centre-b"]
    site = Site(config)
    site._prepare(plan)
    (content,) = watch.orders[2, "centre-b"]
    order = read_document(content, "order", TaskOrder)
    one = at(federation, 1)
    vectors = {n: one.groups[n] if "." not in n else one.memory[n] for n in order.weights}
    memory = memory_of(federation, "centre-b", 1)
    start = start_of(order, vectors, memory)
    made = contribute(order, start, vectors, memory, site._trained)
    sent = watch.changes(2)["centre-b"][0]
    for name, vector in made.update.items():
        assert isinstance(vector, Encoded)
        np.testing.assert_array_equal(decode(vector), sent[name])
    if local == "fedprox":  # the pull is felt
        free = contribute(
            order.model_copy(update={"plan": plan.model_copy(update={"strategy": PLAIN})}),
            start,
            vectors,
            memory,
            site._trained,
        )
        one_way, other = made.update["us"], free.update["us"]
        assert isinstance(one_way, Encoded)
        assert isinstance(other, Encoded)
        assert np.linalg.norm(decode(one_way)) < 0.9 * np.linalg.norm(decode(other))


PLAIN = RunConfig().strategy


def named_in(order: RecordDict) -> dict[str, str]:
    return read_document(order, "order", TaskOrder).weights


def test_a_private_encoder_stays_at_its_site(make: MakeFederation) -> None:
    federation = make(rounds=2, strategy={"private_groups": ["us"]})
    grid = federation.grid()
    watch = Watch(federation, grid)
    federation.coordinator(grid).run()
    assert at(federation, 2).groups["us"].tobytes() == at(federation, 0).groups["us"].tobytes()
    assert at(federation, 2).groups["head"].tobytes() != at(federation, 0).groups["head"].tobytes()
    for content in watch.replies.values():
        assert "us" not in content["update"]
    assert all("us" in named_in(watch.orders[1, name][0]) for name in CENTRES)
    assert all("us" not in named_in(watch.orders[2, name][0]) for name in CENTRES)
    kept = {
        name: memory_of(federation, name, 2)["private:us"].tobytes() for name in federation.configs
    }
    assert len(set(kept.values())) == len(CENTRES)
    manifest, released = read_release(federation.folder.release)
    assert "us" not in manifest.groups
    assert "us" not in released
    summary = json.loads(federation.folder.summary.read_text())
    assert "us" not in summary["novelty"]
    assert summary["run"]["strategy"] == "fedavgm, private us"


def test_an_encoder_of_its_own_scores_at_each_site(make: MakeFederation) -> None:
    """A site scores with the encoder that it kept: with another one the scores would differ."""
    federation = make(rounds=1, strategy={"private_groups": ["us"]})
    rounds(federation, 1)
    config = federation.configs["centre-b"]
    groups = {g: at(federation, 1).groups[g] for g in ("clinical", "head")}
    plan = federation.folder.load_config().run
    order = TaskOrder(
        task="evaluate",
        run="test",
        run_id=at(federation, 1).state["run_id"],
        version=__version__,
        round=1,
        base=1,
        plan=plan,
        weights={g: fingerprint(v) for g, v in groups.items()},
    )
    own = Site(config).answer(order, groups).scores
    first = {"us": at(federation, 0).groups["us"], **groups}
    prints = {g: fingerprint(v) for g, v in first.items()}
    untrained = order.model_copy(update={"base": 0, "weights": prints})
    assert own != Site(config).answer(untrained, first).scores
