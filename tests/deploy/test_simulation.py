"""The federation in one process: what arrives is a copy made from bytes, as between machines."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from her2_client.keys import new_node_key
from her2_deploy.simulation import LocalGrid, LocalNode

KEY = new_node_key()[1]


def make_node(seen: list[np.ndarray]) -> LocalNode:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        vector = message.content["weights"]["head"].numpy()
        seen.append(vector)
        vector += 1
        record = RecordDict({"weights": ArrayRecord({"head": Array(vector)})})
        return Message(record, reply_to=message)

    return LocalNode(app, KEY)


def order(vector: np.ndarray) -> RecordDict:
    return RecordDict({"weights": ArrayRecord({"head": Array(vector)})})


def test_both_sides_have_arrays_of_their_own() -> None:
    seen: list[np.ndarray] = []
    grid = LocalGrid({5: make_node(seen)})
    sent = np.arange(3, dtype=np.float32)
    (reply,) = grid.send_and_receive([grid.create_message(order(sent), "train", 5, "1", ttl=9)])
    assert sent.tolist() == [0, 1, 2]
    got = reply.content["weights"]["head"].numpy()
    assert got.tolist() == seen[0].tolist() == [1, 2, 3]
    assert not np.shares_memory(got, seen[0])


def test_the_wire_is_counted_both_ways() -> None:
    grid = LocalGrid({5: make_node([])})
    vector = np.zeros(10_000, np.float32)
    grid.send_and_receive([grid.create_message(order(vector), "train", 5, "1", ttl=9)])
    assert 2 * vector.nbytes < grid.wire_bytes < 2 * vector.nbytes + 10_000


@pytest.mark.parametrize("reverse", [False, True])
def test_replies_come_one_a_pull_in_the_order_asked_for(reverse: bool) -> None:
    def arrange(ids: list[str]) -> list[str]:
        return ids[::-1] if reverse else ids

    nodes = {n: make_node([]) for n in (5, 6, 7)}
    grid = LocalGrid(nodes, arrange)
    messages = [
        grid.create_message(order(np.zeros(1, np.float32)), "train", n, "1", ttl=9) for n in nodes
    ]
    ids = list(grid.push_messages(messages))
    order_of_ids = []
    for _ in ids:
        (reply,) = grid.pull_messages(ids)
        order_of_ids.append(reply.metadata.reply_to_message_id)
    assert order_of_ids == arrange(ids)
    assert list(grid.pull_messages(ids)) == []


def test_only_nodes_that_are_online_are_listed() -> None:
    grid = LocalGrid({5: make_node([]), 6: make_node([])})
    grid.nodes[5].online = False
    assert list(grid.get_node_ids()) == [6]


def test_a_fault_may_lose_or_double_a_reply() -> None:
    def lost(_order: Message, _answer: object) -> Iterable[Message]:
        return []

    node = make_node([])
    node.fault = lost
    grid = LocalGrid({5: node})
    message = grid.create_message(order(np.zeros(1, np.float32)), "train", 5, "1", ttl=9)
    assert list(grid.send_and_receive([message])) == []
    node.fault = lambda _, answer: [answer(), answer()]
    message = grid.create_message(order(np.ones(1, np.float32)), "train", 5, "1", ttl=9)
    assert len(list(grid.send_and_receive([message]))) == 2


def test_what_flower_cannot_carry_fails_here_too() -> None:
    with pytest.raises(TypeError):
        RecordDict({"order": ConfigRecord({"path": object()})})  # type: ignore[dict-item]
