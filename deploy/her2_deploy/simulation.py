"""A federation in one process: ClientApps behind a Grid, for simulation, tests and benchmarks.

Every message takes the true wire path: it is deflated into Flower's objects, the objects' bytes
are stored by their ids, and the receiver inflates its own copy from the bytes. What a plain call
would hide (a type that Flower cannot carry, an array that both sides share) fails here as it does
between machines. Only processes, sockets and signatures are missing; tests/federation has one
federation with those.

A node's ``fault`` sits between the order and the app and may do what networks and hospitals do:
lose the message, answer late, answer twice, alter or refuse the reply.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.hazmat.primitives.serialization.ssh import load_ssh_public_key
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

SERVER_NODE: Final = 1

Fault = Callable[[Message, Callable[[], Message]], Iterable[Message]]
"""(order, answer) -> replies: ``answer()`` runs the app; an empty result loses the message."""


def no_fault(_order: Message, answer: Callable[[], Message]) -> Iterable[Message]:
    """The node answers once."""
    return [answer()]


@dataclass
class LocalNode:
    """A site in this process. ``public_key`` is in OpenSSH form, as in federation.yaml."""

    app: ClientApp
    public_key: str
    online: bool = True
    fault: Fault = no_fault
    node_config: dict[str, Any] = field(default_factory=dict)


class LocalGrid(Grid):
    """The sites, seen from a coordinator in the same process. Orders run when replies are pulled,
    one a pull, so that replies arrive one after the other; ``order_of_arrival`` may reorder them.
    """

    def __init__(
        self,
        nodes: Mapping[int, LocalNode],
        order_of_arrival: Callable[[list[str]], list[str]] = lambda ids: ids,
    ) -> None:
        self.nodes = dict(nodes)
        self.order_of_arrival = order_of_arrival
        self._run = Run.create_empty(run_id=secrets.randbits(63))
        self._orders: dict[str, tuple[str, dict[str, bytes]]] = {}
        self._replies: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.wire_bytes = 0

    def set_run(self, run: Run) -> None:
        """Take another run's identity."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run's identity."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message as Flower's own grids make it (they have deprecated this way)."""
        self._identify()
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are online."""
        return [node.node_id for node in self.get_nodes()]

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The nodes that are online, with their keys as Flower holds them (PEM)."""
        self._identify()
        infos = []
        for node_id, node in self.nodes.items():
            if node.online:
                key = load_ssh_public_key(node.public_key.encode())
                pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
                infos.append(NodeInfo(node_id=node_id, public_key=pem))
        return infos

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take orders; they run when their replies are pulled."""
        ids = []
        for message in messages:
            stored = self._deflate(message)
            self._orders[stored[0]] = stored
            ids.append(stored[0])
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that have arrived for these orders."""
        wanted = [i for i in message_ids if i in self._orders or self._replies.get(i)]
        for order_id in self.order_of_arrival(wanted):
            if order_id in self._orders:
                self._replies[order_id] = self._answer(*self._orders.pop(order_id))
            if replies := self._replies.pop(order_id, []):
                return [self._inflate(*reply) for reply in replies]
        return []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then pull until every order has run."""
        ids = list(self.push_messages(messages))
        replies: list[Message] = []
        while any(i in self._orders for i in ids):
            replies += self.pull_messages(ids)
        return replies

    # --- the wire -------------------------------------------------------------------------------

    def _identify(self) -> None:
        # Message() reads the task's identity from the process; here one process plays all parts.
        TaskIdentity.task_id = 1
        TaskIdentity.run_id = self._run.run_id
        TaskIdentity.node_id = SERVER_NODE

    def _deflate(self, message: Message) -> tuple[str, dict[str, bytes]]:
        message.metadata.__dict__["_message_id"] = ""
        objects = {i: o.deflate() for i, o in get_all_nested_objects(message).items()}
        self.wire_bytes += sum(map(len, objects.values()))
        return message.object_id, objects

    def _inflate(self, object_id: str, objects: dict[str, bytes]) -> Message:
        message = inflate_object_from_contents(object_id, dict(objects))
        if not isinstance(message, Message):
            raise TypeError(f"expected a Message, got {type(message).__name__}")
        message.metadata.__dict__["_message_id"] = object_id
        return message

    def _answer(
        self, order_id: str, objects: dict[str, bytes]
    ) -> list[tuple[str, dict[str, bytes]]]:
        order = self._inflate(order_id, objects)
        node_id = order.metadata.dst_node_id
        node = self.nodes[node_id]
        context = Context(
            run_id=self._run.run_id,
            node_id=node_id,
            node_config=node.node_config,
            state=RecordDict(),
            run_config={},
        )
        TaskIdentity.node_id = node_id
        try:
            replies = list(node.fault(order, lambda: node.app(order, context)))
        finally:
            self._identify()
        return [self._deflate(reply) for reply in replies]
