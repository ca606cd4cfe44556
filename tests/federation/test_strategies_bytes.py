"""Compression in whole federations: few bytes cross, and spoilt ones are refused."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Message
from tests.federation.strategies_ground import (
    CENTRES,
    INT8,
    Answer,
    MakeFederation,
    Watch,
    at,
    cut,
    memory_of,
    rounds,
)
from tests.messages import arrays_in

from her2_client.local_objectives import OWN_LOSS
from her2_client.site import Site
from her2_common.encoding import decode, encode, encoded_bytes
from her2_common.vectors import vectors_record
from her2_common.wire import TaskOrder, read_document


def test_only_what_is_new_crosses(make: MakeFederation) -> None:
    federation = make(compression=INT8)
    grid = federation.grid()
    watch = Watch(federation, grid)
    federation.coordinator(grid).run()
    sizes = {g: v.size for g, v in at(federation, 1).groups.items()}
    for name in CENTRES:
        (first,), (second,) = watch.orders[1, name], watch.orders[2, name]
        named = read_document(second, "order", TaskOrder).weights
        assert not {"weights", "steps"} & first.keys()  # the seed gives what a run begins with
        assert second["steps"].keys() == named.keys()
        assert "weights" not in second
    lines = federation.folder.read_metrics()
    groups = ("us", "clinical", "head")
    scores = watch.replies[2, "centre-b"]
    rest = sum(map(len, scores["scores"].values())) + len(scores["reply"]["json"])
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


def far_exponent(data: np.ndarray) -> np.ndarray:
    data = data.copy()
    data[-1] = 100
    return data


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (cut, "misshapen"),
        (far_exponent, "norm out of bounds"),
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
            arrays = arrays_in(reply.content, "update")
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
                arrays = arrays_in(reply.content, "update")
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
