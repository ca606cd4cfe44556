"""Strategies and compression in disturbed federations: no kill, lost reply or restart changes a
bit."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flwr.app import Message
from tests.federation.strategies_ground import (
    CENTRES,
    INT8,
    Answer,
    Federation,
    MakeFederation,
    bits,
    rounds,
)

from her2_common.wire import TaskOrder, read_document
from her2_server.checkpoint import Checkpoint

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


def test_a_whole_run_with_every_kind_of_memory(make: MakeFederation) -> None:
    federation = make(rounds=2, **KINDS["ditto"])
    federation.coordinator().run()
    summary = json.loads(federation.folder.summary.read_text())
    assert summary["run"]["strategy"] == "fedavgm, ditto, private mri"
    assert summary["test"]["auc"] is not None
