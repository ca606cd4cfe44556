"""Strategies and compression in whole federations: the weights move as the formulas say, few bytes
cross, and no kill, lost reply or restart changes a bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from her2_client import site_memory
from her2_client.contribution import contribute, start_of
from her2_client.local_objectives import OWN_LOSS
from her2_client.site import Site
from her2_common import __version__
from her2_common.broadcast import advance, fingerprint
from her2_common.config import RunConfig
from her2_common.encoding import Encoded, decode, encode, encoded_bytes
from her2_common.release import read_release
from her2_common.strategy import FedAdam, FedAvgM, FedYogi
from her2_common.vectors import read_vectors, up_forms, vectors_record
from her2_common.wire import SiteReply, TaskOrder, read_document
from her2_deploy.simulation import LocalGrid
from her2_server import checkpoint
from her2_server.checkpoint import Checkpoint
from her2_server.strategies.optimisers import optimise

Federation = Any
MakeFederation = Callable[..., Federation]
Answer = Callable[[], Message]

CENTRES = {
    "centre-a": (36, ("us", "mri")),
    "centre-b": (30, ("us",)),
    "centre-c": (30, ("us",)),
}
INT8 = {"up": "int8", "keep": 0.1, "down": "int8"}


@pytest.fixture
def make(make_federation: MakeFederation) -> MakeFederation:
    """Three small sites."""

    def small(name: str = "run", **run: Any) -> Federation:
        plan = {"rounds": 3, "batch_size": 24, "learning_rate": 3e-3} | run
        return make_federation(name, centres=CENTRES, **plan)

    return small


class Watch:
    """What crosses between the coordinator and each site, by round."""

    def __init__(self, federation: Federation, grid: LocalGrid) -> None:
        self.orders: dict[tuple[int, str], list[RecordDict]] = {}
        self.replies: dict[tuple[int, str], RecordDict] = {}
        self.plan: RunConfig = federation.folder.load_config().run
        for name in federation.keys:
            node = federation.node(grid, name)
            node.fault = self._between(name, node.fault)

    def _between(self, name: str, fault: Callable[..., Iterable[Message]]) -> Callable[..., Any]:
        def between(order: Message, answer: Answer) -> list[Message]:
            replies = list(fault(order, answer))
            if order.metadata.message_type == "train":
                number = read_document(order.content, "order", TaskOrder).round
                self.orders.setdefault((number, name), []).append(order.content)
                for reply in replies:
                    if not reply.has_error():
                        self.replies[number, name] = reply.content
            return replies

        return between

    def changes(self, number: int) -> dict[str, tuple[dict[str, np.ndarray], dict[str, int]]]:
        """Each site's changes of a round, decoded, and its counts."""
        found = {}
        for (round_number, name), content in self.replies.items():
            if round_number == number:
                vectors = read_vectors(content, "update", up_forms(self.plan))
                decoded = {
                    n: decode(v) if isinstance(v, Encoded) else v for n, v in vectors.items()
                }
                found[name] = decoded, read_document(content, "reply", SiteReply).counts
        return found


def rounds(federation: Federation, number: int, grid: LocalGrid | None = None) -> Checkpoint:
    """A coordinator works until round ``number`` is done."""
    coordinator = federation.coordinator(grid)
    current: Checkpoint = coordinator._begin()
    coordinator._describe()
    while current.round < number:
        current = coordinator._round(current)
    return current


def at(federation: Federation, number: int) -> Checkpoint:
    return checkpoint.load(federation.folder.rounds / f"{number:04d}")


def bits(federation: Federation, current: Checkpoint) -> dict[str, bytes]:
    """All that the next round depends on: the checkpoint's tensors, and the sites' memories."""
    kept = {n: v.tobytes() for n, v in [*current.groups.items(), *current.memory.items()]}
    for name in federation.configs:
        for key, vector in memory_of(federation, name, current.round).items():
            kept[f"memory of {name}: {key}"] = vector.tobytes()
    return kept


def memory_of(federation: Federation, name: str, number: int) -> dict[str, np.ndarray]:
    """What a site keeps of a round of the only run; {} if it keeps nothing of it."""
    state = federation.configs[name].state
    runs = [path.parent.name for path in state.glob(f"memory/*/{number:05d}.safetensors")]
    assert len(runs) < 2
    return site_memory.load(state, runs[0], number) if runs else {}


def mean_change(watch: Watch, number: int, name: str) -> np.ndarray:
    """By the definition: weighted by the cases that use the group, each site's on the grid."""
    parts = [
        (np.rint(changes[name].astype(np.float64) * 2**30) / 2**30, counts[name.split(".")[0]])
        for changes, counts in watch.changes(number).values()
        if name in changes
    ]
    total = sum(n * change for change, n in parts)
    return np.asarray(total / sum(n for _, n in parts))


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
    federation = make(compression={"down": "int8", "down_keep": 0.1})
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


def test_a_private_encoder_stays_at_its_site(make: MakeFederation) -> None:
    federation = make(rounds=2, strategy={"private_groups": ["us"]})
    grid = federation.grid()
    watch = Watch(federation, grid)
    federation.coordinator(grid).run()
    assert at(federation, 2).groups["us"].tobytes() == at(federation, 0).groups["us"].tobytes()
    assert at(federation, 2).groups["head"].tobytes() != at(federation, 0).groups["head"].tobytes()
    for content in watch.replies.values():
        assert "us" not in content["update"]
    assert all("us" in watch.orders[1, name][0]["weights"] for name in CENTRES)
    assert all("us" not in watch.orders[2, name][0]["weights"] for name in CENTRES)
    kept = {
        name: memory_of(federation, name, 2)["private:us"].tobytes() for name in federation.configs
    }
    assert len(set(kept.values())) == len(CENTRES)
    manifest, released = read_release(federation.folder.release)
    assert "us" not in manifest.groups
    assert "us" not in released
    summary = json.loads(federation.folder.summary.read_text())
    assert "us" not in summary["novelty"]
    assert summary["run"]["strategy"] == "fedavg, private us"


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


# --- bytes --------------------------------------------------------------------------------------


def test_only_what_is_new_crosses(make: MakeFederation) -> None:
    federation = make(compression=INT8)
    grid = federation.grid()
    watch = Watch(federation, grid)
    federation.coordinator(grid).run()
    sizes = {g: v.size for g, v in at(federation, 1).groups.items()}
    for name in CENTRES:
        (first,), (second,) = watch.orders[1, name], watch.orders[2, name]
        named = read_document(second, "order", TaskOrder).weights
        assert first["weights"].keys() == named.keys()
        assert "steps" not in first
        assert second["steps"].keys() == named.keys()
        assert "weights" not in second
    lines = federation.folder.read_metrics()
    groups = ("us", "clinical", "head")
    scores = watch.replies[2, "centre-b"]
    rest = sum(len(a.data) for a in scores["scores"].values()) + len(scores["reply"]["json"])
    up = sum(encoded_bytes(sizes[g], "int8", 0.1 if g == "us" else 1.0) + 128 for g in groups)
    assert lines[1]["sites"]["centre-b"]["sent_bytes"] == up + rest
    document = len(watch.orders[2, "centre-b"][0]["order"]["json"])
    down = sum(encoded_bytes(sizes[g], "int8") + 128 for g in groups)
    assert lines[1]["sites"]["centre-b"]["received_bytes"] == down + document
    # Beside the references, validation and test bring what calibration changed: head and clinical.
    summary = json.loads(federation.folder.summary.read_text())
    for site in summary["sites"]:
        references = 70_000 * len(set(site["groups"]) & {"us", "mri"})
        assert site["bytes"]["val"]["received"] < references + 10_000 < 4 * sizes["us"]
        assert site["bytes"]["test"]["received"] < references + 10_000


def cut(data: np.ndarray) -> np.ndarray:
    return data[:-1]


def far_exponent(data: np.ndarray) -> np.ndarray:
    data = data.copy()
    data[-1] = 100
    return data


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (cut, "misshapen"),
        (far_exponent, "out of range"),
        (lambda data: data.astype(np.float32), "wrong type"),
        (lambda data: data.view(np.int8), "wrong type"),
    ],
)
def test_spoilt_bytes_are_refused_by_name_and_leave_no_trace(
    make: MakeFederation, spoil: Callable[[np.ndarray], np.ndarray], reason: str
) -> None:
    spoilt = make("spoilt", quorum=2, compression=INT8)
    absent = make("absent", quorum=2, compression=INT8)

    def fault(order: Message, answer: Answer) -> list[Message]:
        reply = answer()
        if order.metadata.message_type == "train":
            arrays = {n: a.numpy() for n, a in reply.content["update"].items()}
            reply.content["update"] = vectors_record(arrays | {"head": spoil(arrays["head"])})
        return [reply]

    grid = spoilt.grid()
    spoilt.node(grid, "centre-b").fault = fault
    after = rounds(spoilt, 1, grid)
    (line,) = spoilt.folder.read_metrics()
    assert line["sites"]["centre-b"]["status"] == "refused"
    assert line["sites"]["centre-b"]["reason"] == reason
    assert after.state["bases"].keys() == {"centre-a", "centre-c"}
    grid = absent.grid()
    absent.node(grid, "centre-b").online = False
    without = rounds(absent, 1, grid)
    for group, vector in without.groups.items():
        assert vector.tobytes() == after.groups[group].tobytes()


# --- the same bits ------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "scaffold": {"strategy": {"local": {"name": "scaffold"}}, "compression": INT8},
    "ditto": {
        "strategy": {
            "step": {"name": "fedavgm"},
            "personal": {"name": "ditto"},
            "private_groups": ["mri"],
        },
        "compression": INT8 | {"down_keep": 0.5},
    },
}


def killed_before_its_checkpoint(federation: Federation) -> None:
    """All sites have trained, and the coordinator dies."""
    coordinator = federation.coordinator()
    current = coordinator._begin()
    coordinator._describe()
    coordinator.folder = None  # nothing can be read or written any more
    with pytest.raises(AttributeError):
        coordinator._round(current)


def restarted_everything(federation: Federation) -> Checkpoint:
    for number in (1, 2, 3):
        final = rounds(federation, number)
    return final


def killed_in_every_round(federation: Federation) -> Checkpoint:
    for number in (1, 2, 3):
        killed_before_its_checkpoint(federation)
        final = rounds(federation, number)
    return final


def sites_restarted(federation: Federation) -> Checkpoint:
    """The coordinator lives on and thinks that the sites hold the last weights."""
    coordinator = federation.coordinator()
    current = coordinator._begin()
    coordinator._describe()
    for _ in range(3):
        current = coordinator._round(current)
        fresh = federation.grid()
        for number, node in coordinator.grid.nodes.items():
            node.app = fresh.nodes[number].app
    return current


def newest_damaged(federation: Federation) -> Checkpoint:
    rounds(federation, 2)
    path = federation.folder.rounds / "0002" / "us.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    return rounds(federation, 3)


def reply_lost(federation: Federation) -> Checkpoint:
    """Round 2's reply of one site is lost; the order is sent again."""
    grid = federation.grid()
    lost: list[bool] = []

    def fault(order: Message, answer: Answer) -> list[Message]:
        reply = answer()
        if order.metadata.message_type == "train" and not lost:
            number = read_document(order.content, "order", TaskOrder).round
            if number == 2:
                lost.append(True)
                return []
        return [reply]

    federation.node(grid, "centre-b").fault = fault
    final = rounds(federation, 3, grid)
    assert lost
    return final


DISTURBED = (
    restarted_everything,
    killed_in_every_round,
    sites_restarted,
    newest_damaged,
    reply_lost,
)


@pytest.mark.parametrize("kind", KINDS)
def test_no_disturbance_changes_a_bit(make: MakeFederation, kind: str) -> None:
    plain = make("plain", **KINDS[kind])
    expected = bits(plain, rounds(plain, 3))
    memories = {name.split(":")[0] for name in expected if name.startswith("memory of")}
    assert memories == {f"memory of {name}" for name in CENTRES}
    for disturb in DISTURBED:
        more = {"round_timeout": 4} if disturb is reply_lost else {}
        federation = make(disturb.__name__.replace("_", "-"), **KINDS[kind], **more)
        found = bits(federation, disturb(federation))
        assert found.keys() == expected.keys()
        differing = [name for name in expected if found[name] != expected[name]]
        assert differing == [], disturb.__name__


def test_a_site_that_was_restarted_gets_the_weights_whole(make: MakeFederation) -> None:
    federation = make(compression=INT8)
    coordinator = federation.coordinator()
    watch = Watch(federation, coordinator.grid)
    current = coordinator._begin()
    coordinator._describe()
    current = coordinator._round(current)
    node = federation.node(coordinator.grid, "centre-b")
    node.app = federation.node(federation.grid(), "centre-b").app
    coordinator._round(current)
    first, second = watch.orders[2, "centre-b"]
    assert "weights" not in first
    assert "steps" not in second
    assert second["weights"].keys() == first["steps"].keys()
    assert len(watch.orders[2, "centre-a"]) == 1
    line = federation.folder.read_metrics()[1]["sites"]["centre-b"]
    assert line["status"] == "accepted"


def test_a_refused_update_keeps_its_base(make: MakeFederation) -> None:
    """What a refused update left over does not hold: the next one begins from the base before."""
    federation = make(quorum=2, compression=INT8)
    grid = federation.grid()

    def fault(order: Message, answer: Answer) -> list[Message]:
        reply = answer()
        if order.metadata.message_type == "train":
            number = read_document(order.content, "order", TaskOrder).round
            if number == 2:
                arrays = {n: a.numpy() for n, a in reply.content["update"].items()}
                reply.content["update"] = vectors_record(arrays | {"head": cut(arrays["head"])})
        return [reply]

    federation.node(grid, "centre-b").fault = fault
    watch = Watch(federation, grid)
    final = rounds(federation, 3, grid)
    bases = {
        (number, name): read_document(orders[-1], "order", TaskOrder).base
        for (number, name), orders in watch.orders.items()
    }
    assert bases[2, "centre-b"] == bases[3, "centre-b"] == 1
    assert bases[3, "centre-a"] == 2
    assert final.state["bases"] == dict.fromkeys(CENTRES, 3)
    held = at(federation, 2).groups["us"]
    residual = memory_of(federation, "centre-b", 1)["residual:us"]
    after = memory_of(federation, "centre-b", 3)["residual:us"]
    sent = watch.changes(3)["centre-b"][0]["us"]
    trained = Site(federation.configs["centre-b"])
    trained._prepare(watch.plan)
    start = {g: at(federation, 2).groups[g] for g in ("us", "clinical", "head")}
    now, _ = trained._trained(start, watch.plan, 3, OWN_LOSS)
    expected, left = encode(now["us"] - held, "int8", 0.1, residual)
    np.testing.assert_array_equal(decode(expected), sent)
    np.testing.assert_array_equal(left, after)


def test_a_whole_run_with_every_kind_of_memory(make: MakeFederation) -> None:
    federation = make(rounds=2, **KINDS["ditto"])
    federation.coordinator().run()
    summary = json.loads(federation.folder.summary.read_text())
    assert summary["run"]["strategy"] == "fedavgm, ditto, private mri"
    assert summary["test"]["auc"] is not None
