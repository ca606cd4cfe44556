"""Three echoing sites behind a grid, and an exchange that asks them, for its tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from her2_client.keys import new_node_key
from her2_common.config import FederationConfig, Task
from her2_deploy.simulation import LocalGrid, LocalNode
from her2_server import exchange as exchange_module
from her2_server.exchange import Exchange, OnReply, Outcome

KEYS = {name: new_node_key()[1] for name in ("a", "b", "c")}
NODES = {"a": 1001, "b": 1002, "c": 1003}
Answer = Callable[[], Message]
Fault = Callable[[Message, Answer], Iterable[Message]]


def be_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits between two looks."""
    monkeypatch.setattr(exchange_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(exchange_module, "PAUSED_POLL_SECONDS", 0.02)
    monkeypatch.setattr(exchange_module, "AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(exchange_module, "AGAIN_LIMIT_SECONDS", 0.2)


def make_app() -> ClientApp:
    """Answers an order with the same words."""
    app = ClientApp()

    def echo(message: Message, context: Context) -> Message:
        text = message.content["order"]["json"]
        return Message(RecordDict({"reply": ConfigRecord({"json": text})}), reply_to=message)

    app.train()(echo)
    app.query()(echo)
    return app


def make_grid(**faults: Fault) -> LocalGrid:
    nodes = {NODES[name]: LocalNode(make_app(), key) for name, key in KEYS.items()}
    for name, fault in faults.items():
        nodes[NODES[name]].fault = fault
    grid = LocalGrid(nodes)
    grid.get_nodes()  # tells Flower who is speaking
    return grid


def config(**run: Any) -> FederationConfig:
    return FederationConfig.model_validate(
        {
            "name": "test",
            "superlink": {
                "address": "localhost:1",
                "root_certificates": "ca.crt",
                "superexec_secret_file": "secret",
            },
            "sites": [{"name": name, "public_key": key} for name, key in KEYS.items()],
            "run": {"pause_timeout": 0} | run,
        }
    )


def order(text: str) -> RecordDict:
    return RecordDict({"order": ConfigRecord({"json": text})})


def text_of(content: RecordDict) -> str:
    return str(content["reply"]["json"])


def nothing(_site: str, _task: Task, _content: RecordDict) -> None:
    return None


class Ear:
    """Hears what an exchange says."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.states: list[tuple[str, str, str | None]] = []
        self.pauses: list[dict[str, str]] = []

    def exchange(self, grid: LocalGrid, **run: Any) -> Exchange:
        return Exchange(
            grid,
            config(**run),
            hint="her2-server resume runs/test",
            notify=self.said.append,
            on_site=lambda *state: self.states.append(state),
            on_pause=lambda waits_for: self.pauses.append(dict(waits_for)),
        )


def ask(
    exchange: Exchange,
    on_reply: OnReply = nothing,
    *,
    what: str = "round 1",
    make: Callable[[str, bool], tuple[Task, RecordDict]] | None = None,
    timeout: float = 5.0,
    quorum: int = 2,
    **options: bool,
) -> dict[str, Outcome]:
    return exchange.ask(
        "train",
        what,
        make or (lambda site, _whole: ("train", order(f"order {site}"))),
        on_reply,
        sites=KEYS,
        timeout=timeout,
        quorum=quorum,
        **options,
    )


def run(grid: LocalGrid, on_reply: OnReply = nothing, **options: Any) -> dict[str, Outcome]:
    return ask(Ear().exchange(grid), on_reply, **options)


def failing(code: int, reason: str | None, times: int = 10**6) -> Fault:
    """A node that answers its first orders with an error."""
    left = itertools.count(times, -1)
    return lambda message, answer: (
        [Message(Error(code, reason), reply_to=message)] if next(left) > 0 else [answer()]
    )


def silent(times: int = 10**6) -> Fault:
    left = itertools.count(times, -1)
    return lambda _message, answer: [] if next(left) > 0 else [answer()]
