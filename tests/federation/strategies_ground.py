"""Three small sites under a strategy: what crosses, and all that the next round depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict

from her2_client import site_memory
from her2_common.config import RunConfig
from her2_common.encoding import Encoded, decode
from her2_common.vectors import read_vectors, up_forms
from her2_common.wire import SiteReply, TaskOrder, read_document
from her2_deploy.simulation import LocalGrid
from her2_server import checkpoint
from her2_server.checkpoint import Checkpoint

Federation = Any
MakeFederation = Callable[..., Federation]
Answer = Callable[[], Message]

CENTRES = {
    "centre-a": (36, ("us", "mri")),
    "centre-b": (30, ("us",)),
    "centre-c": (30, ("us",)),
}
INT8 = {"up": "int8", "keep": 0.1, "down": "int8"}


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


def cut(data: np.ndarray) -> np.ndarray:
    return data[:-1]
