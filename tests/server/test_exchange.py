"""One exchange: every site that is asked ends up with one outcome, and in time."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import ConfigRecord, Message, RecordDict
from tests.server.exchange_ground import (
    KEYS,
    NODES,
    Answer,
    Ear,
    ask,
    be_impatient,
    failing,
    make_grid,
    order,
    run,
    text_of,
)

from her2_client.keys import new_node_key
from her2_common.config import Task
from her2_common.errors import CheckpointError, RunError, UpdateError
from her2_deploy.simulation import LocalGrid
from her2_server.exchange import online_sites, openssh_key, until_next_look


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    be_impatient(monkeypatch)


def test_every_site_gets_its_own_order_and_answers_once() -> None:
    replies: dict[str, str] = {}
    ear = Ear()

    def on_reply(site: str, task: Task, content: RecordDict) -> None:
        assert site not in replies
        assert task == "train"
        replies[site] = text_of(content)

    outcomes = ask(ear.exchange(make_grid()), on_reply)
    assert replies == {name: f"order {name}" for name in KEYS}
    for name, outcome in outcomes.items():
        assert (outcome.status, outcome.reason) == ("accepted", None)
        assert (outcome.bytes_to_site, outcome.bytes_from_site) == (7, 7)
        assert [s[1] for s in ear.states if s[0] == name] == ["working", "accepted"]
    assert ear.said == []


def test_looks_for_replies_become_rare_in_a_long_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    waits = [until_next_look(quiet) for quiet in (0, 5, 30, 3600, math.inf)]
    assert waits == pytest.approx([0.1, 0.1, 0.3, 1, 1])


def test_a_round_with_its_quorum_does_not_wait_for_who_is_offline() -> None:
    grid = make_grid()
    grid.nodes[NODES["b"]].online = False
    ear = Ear()
    outcomes = ask(ear.exchange(grid), timeout=600)  # more than a test may take
    assert (outcomes["b"].status, outcomes["b"].reason) == ("missing", "not online")
    assert outcomes["b"].bytes_to_site == 0
    assert outcomes["a"].status == outcomes["c"].status == "accepted"
    assert ear.said == ["round 1: b missing: not online"]


def test_everyone_is_waited_for_where_that_is_asked() -> None:
    grid = make_grid()
    grid.nodes[NODES["b"]].online = False
    began = time.monotonic()
    outcomes = run(grid, timeout=0.4, everyone=True)
    assert time.monotonic() - began >= 0.4
    assert outcomes["b"].reason == "not online"


def test_a_site_that_comes_during_the_round_gets_its_order() -> None:
    grid = make_grid()
    grid.nodes[NODES["b"]].online = False

    def on_reply(site: str, _task: Task, _content: RecordDict) -> None:
        grid.nodes[NODES["b"]].online = True

    outcomes = run(grid, on_reply, timeout=600, everyone=True)  # more than a test may take
    assert {outcome.status for outcome in outcomes.values()} == {"accepted"}


def test_a_refused_reply_has_its_reason_and_its_bytes_and_is_not_asked_for_again() -> None:
    seen: list[str] = []

    def on_reply(site: str, _task: Task, _content: RecordDict) -> None:
        seen.append(site)
        if site == "b":
            raise UpdateError("bad", reason="misshapen")

    outcomes = run(make_grid(), on_reply)
    assert (outcomes["b"].status, outcomes["b"].reason) == ("refused", "misshapen")
    assert outcomes["b"].bytes_from_site == 7
    assert outcomes["a"].status == "accepted"
    assert sorted(seen) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        (2, "policy", "site error: policy"),
        (2, "MRS^CANARY: row 3", "site error"),
        (2, "<b>", "site error"),
        (2, "error", "site error"),
        (2, "internal", "site error: internal"),
        (2, "policy\n", "site error"),
        (2, None, "site error"),
    ],
)
def test_errors_are_told_by_their_code(code: int, reason: str | None, expected: str) -> None:
    seen: list[str] = []
    grid = make_grid(b=failing(code, reason, times=1))  # asked again, it would answer
    outcomes = run(grid, lambda site, *_: seen.append(site))
    assert (outcomes["b"].status, outcomes["b"].reason) == ("refused", expected)
    assert sorted(seen) == ["a", "c"]


def test_an_order_that_is_not_taken_is_missing() -> None:
    class FullGrid(LocalGrid):
        """A SuperLink that does not take messages."""

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            return ["" for _ in messages]

    outcomes = run(FullGrid(make_grid().nodes), quorum=0, timeout=0.5)
    assert {o.reason for o in outcomes.values()} == {"the SuperLink did not take its order"}
    assert {o.status for o in outcomes.values()} == {"missing"}
    assert {o.bytes_to_site for o in outcomes.values()} == {0}


def test_an_error_that_nobody_foresaw_refuses_one_reply_and_is_logged() -> None:
    def on_reply(site: str, *_: object) -> None:
        if site == "b":
            raise KeyError("unforeseen")

    logged: list[str] = []
    exchange = Ear().exchange(make_grid())
    exchange.log = logged.append
    outcomes = ask(exchange, on_reply)
    assert {site: o.reason for site, o in outcomes.items()} == {
        "a": None,
        "b": "internal",
        "c": None,
    }
    assert len(logged) == 1
    assert "KeyError: 'unforeseen'" in logged[0]


@pytest.mark.parametrize("error", [OSError(28, "full"), CheckpointError("damaged")])
def test_a_fault_of_the_coordinators_own_is_no_sites(error: Exception) -> None:
    def on_reply(*_: object) -> None:
        raise error

    with pytest.raises(type(error)):
        run(make_grid(), on_reply)


def test_a_record_that_is_none_of_the_tasks_is_refused() -> None:
    def extra(message: Message, answer: Answer) -> list[Message]:
        reply = answer()
        reply.content["note"] = ConfigRecord({"json": "{}"})
        return [reply]

    outcomes = run(make_grid(b=extra))
    assert (outcomes["b"].status, outcomes["b"].reason) == ("refused", "unknown record")


def test_a_site_that_may_decline_has_answered() -> None:
    grid = make_grid(b=failing(2, "policy"), c=failing(2, "policy"))
    outcomes = run(grid, quorum=3, may_decline=True)
    assert outcomes["b"].status == outcomes["c"].status == "refused"
    with pytest.raises(RunError, match="b refused: site error: data"):
        run(make_grid(b=failing(2, "data")), quorum=3, may_decline=True)


def test_a_site_may_be_asked_something_else_first() -> None:
    asked: list[tuple[str, Task]] = []
    described: set[str] = set()

    def make(site: str, _whole: bool) -> tuple[Task, RecordDict]:
        task: Task = "train" if site in described or site == "a" else "describe"
        return task, order(f"{task} {site}")

    def on_reply(site: str, task: Task, content: RecordDict) -> None:
        assert text_of(content) == f"{task} {site}"
        asked.append((site, task))
        described.add(site)

    outcomes = run(make_grid(), on_reply, make=make, quorum=3)
    assert sorted(asked) == [
        ("a", "train"),
        *(("b", "describe"), ("b", "train")),
        *(("c", "describe"), ("c", "train")),
    ]
    assert {o.status for o in outcomes.values()} == {"accepted"}
    assert outcomes["b"].bytes_to_site == len("describe b") + len("train b")


# --- who is who ---------------------------------------------------------------------------------


def test_online_sites_are_known_by_their_keys_alone() -> None:
    grid = make_grid()
    keys = {"c": KEYS["c"], "a": f"{KEYS['a']} engineer@hospital", "x": new_node_key()[1]}
    assert online_sites(grid, keys) == {"c": 1003, "a": 1001}  # b's key stands nowhere
    grid.nodes[1001].online = False
    assert online_sites(grid, keys) == {"c": 1003}


def test_a_node_with_a_key_of_another_kind_is_nobodys() -> None:
    key = rsa.generate_private_key(65537, 2048).public_key()
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert openssh_key(pem) == ""
