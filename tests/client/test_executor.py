"""The SuperNode's keeper: what it says, when it starts again, how it ends. A shell script plays
the SuperNode; the real one is in tests/federation/test_process_federation.py."""

from __future__ import annotations

import inspect
import logging
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal

from her2_client import executor
from her2_client.app import error_reply
from her2_client.executor import (
    ACCEPTED,
    BACKOFF_SECONDS,
    REFUSED,
    SESSION_SECONDS,
    Answers,
    SuperNode,
)
from her2_client.keys import init_site
from her2_client.supernode import IDLE_SECONDS, REPLY_SECONDS, ImpatientClock
from her2_common.bundle import build_bundle
from her2_common.config import RunConfig, SiteConfig, load
from her2_common.runtime import ClientTask
from her2_common.wire import TaskOrder

# The keeper may fork while torch's threads run; CPython 3.12 and later warn of it.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets what the SuperNode does from its next start on."""
    folder = tmp_path / "bin"
    folder.mkdir()
    path = folder / "python"
    monkeypatch.setattr(sys, "executable", str(folder / "python"))

    def write(body: str) -> None:
        path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return write


@pytest.fixture
def config(tmp_path: Path) -> SiteConfig:
    init_site(tmp_path / "site", name="centre-t", address="flower.example:9092")
    config = load(SiteConfig, tmp_path / "site" / "site.yaml")
    config.state.mkdir()
    return config


@pytest.fixture
def node(config: SiteConfig) -> Iterator[SuperNode]:
    node = SuperNode(config, config.state / "secret")
    yield node
    node.stop()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the keeper's clock forward."""
    passed = 0.0
    real = time.monotonic

    def forward(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    monkeypatch.setattr(executor.time, "monotonic", lambda: real() + passed)
    return forward


def until(condition: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + 10
    while not condition():
        assert time.perf_counter() < deadline, "waited in vain"
        time.sleep(0.01)


def ended(node: SuperNode) -> None:
    assert node.process is not None
    node.process.wait(timeout=10)


def test_nothing_to_say_once_it_is_accepted(node: SuperNode, script: Callable[[str], None]) -> None:
    script(f"sleep 0.2; echo 'INFO: {ACCEPTED} 123'; exec sleep 60")
    assert node.watch() == ""  # started, not yet accepted
    assert not node.accepted
    until(lambda: node.watch() is None)
    assert node.accepted


def test_a_long_log_is_put_aside_and_one_of_them_is_kept(
    node: SuperNode, script: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "LOG_BYTES", 20)
    script("echo twelve bytes")
    for _ in range(5):
        node.start()
        ended(node)
    aside = node.log_path.with_suffix(".log.1")
    assert (node.log_path.stat().st_size, aside.stat().st_size) == (13, 26)
    assert sorted(node.log_path.parent.glob("supernode*")) == [node.log_path, aside]


def test_the_command_line_keeps_the_secret_in_its_file(
    node: SuperNode, script: Callable[[str], None], config: SiteConfig
) -> None:
    script('echo "$@"; echo home "$FLWR_HOME" telemetry "$FLWR_TELEMETRY_ENABLED"')
    node.secret_file.write_bytes(b"hush")
    node.start()
    ended(node)
    said = node.log_path.read_text()
    assert "--superlink flower.example:9092" in said
    assert f"--root-certificates {config.superlink.root_certificates}" in said
    assert "--isolation process" in said
    assert f"--superexec-auth-secret-file {node.secret_file}" in said
    assert f"--host 127.0.0.1 --port {node.port}" in said
    assert f"home {config.state} telemetry 0" in said
    assert "--insecure" not in said
    assert "hush" not in said


def test_a_lost_connection_is_said_and_tried_again_after_the_wait(
    node: SuperNode, script: Callable[[str], None], clock: Callable[[float], None]
) -> None:
    script("exit 1")
    node.watch()
    first = node.process
    ended(node)
    assert node.watch() == "the connection to flower.example:9092 ended; trying again"
    assert node.process is first  # not before its time
    clock(BACKOFF_SECONDS[0])
    script(f"echo '{ACCEPTED} 1'; exec sleep 60")
    assert node.watch() is not None
    assert node.process is not first
    until(lambda: node.watch() is None)


def test_waits_grow_and_never_end(
    node: SuperNode, script: Callable[[str], None], clock: Callable[[float], None]
) -> None:
    script("exit 1")
    node.watch()
    for wait in (*BACKOFF_SECONDS, BACKOFF_SECONDS[-1], BACKOFF_SECONDS[-1]):
        ended(node)
        before = node.process
        clock(wait - 0.7)
        node.watch()
        assert node.process is before
        clock(0.7)
        node.watch()
        assert node.process is not before


def test_a_refusal_is_first_a_session_and_then_the_key(
    node: SuperNode, script: Callable[[str], None], clock: Callable[[float], None]
) -> None:
    script(f"echo 'ERROR {REFUSED}'; exit 1")
    node.watch()
    ended(node)
    said = node.watch()
    assert said is not None
    assert "does not accept this site yet" in said
    clock(SESSION_SECONDS + 1)
    said = node.watch()  # and starts again
    assert said is not None
    assert "does not know the key of site 'centre-t': send node.pub" in said
    ended(node)
    assert node.watch() == said  # a restart does not begin the count anew


def test_what_an_earlier_child_wrote_does_not_count(
    node: SuperNode, script: Callable[[str], None], clock: Callable[[float], None]
) -> None:
    """The log goes on across restarts; only the last child's part is read."""
    node.log_path.write_text(f"{REFUSED}\n{ACCEPTED} 7\n")
    script("exit 1")
    node.watch()
    ended(node)
    assert node.watch() == "the connection to flower.example:9092 ended; trying again"
    assert not node.accepted


def test_an_accepted_child_that_ends_is_noticed(
    node: SuperNode, script: Callable[[str], None]
) -> None:
    script(f"echo '{ACCEPTED} 1'; exec sleep 60")
    node.watch()
    until(lambda: node.watch() is None)
    assert node.process is not None
    node.process.kill()
    ended(node)
    assert node.watch() == "the connection to flower.example:9092 ended; trying again"
    assert not node.accepted


def test_stop_ends_the_child_and_only_once(node: SuperNode, script: Callable[[str], None]) -> None:
    node.stop()  # never started
    script("exec sleep 60")
    node.start()
    assert node.process is not None
    pid = node.process.pid
    node.stop()
    node.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_impatient_clock_is_where_flower_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pins what her2_client.supernode relies on: the module's ``time`` and its two sleeps."""
    source = inspect.getsource(start_client_internal)
    assert start_client_internal.time is time
    assert source.count("time.sleep(3)") == 1
    assert set(re.findall(r"time\.sleep\(([^)]*)\)", source)) == {"3", "0.5"}
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    clock = ImpatientClock()
    for seconds in (3, 0.5, 0.01):
        clock.sleep(seconds)
    assert slept == [IDLE_SECONDS, REPLY_SECONDS, 0.01]
    assert clock.monotonic() > 0


# --- an order that comes twice ------------------------------------------------------------------


def order(text: str, **arrays: float) -> Message:
    content = RecordDict({"order": ConfigRecord({"json": text})})
    for name, value in arrays.items():
        content[name] = ArrayRecord({"head": Array(np.full(2, value, np.float32))})
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    message = Message(content, 5, "train")
    message.metadata.__dict__["_message_id"] = f"{text} {arrays}"
    return message


@pytest.fixture
def answers(config: SiteConfig) -> Answers:
    """Answers with the number of orders that were worked on; "bad" is an error."""
    app, done = ClientApp(), list[str]()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        text = str(message.content["order"]["json"])
        done.append(text)
        if text == "bad":
            return error_reply(message, "data")
        content = RecordDict({"reply": ConfigRecord({"n": len(done)})})
        return Message(content, reply_to=message)

    return Answers(app, config)


def ask(answers: Answers, message: Message, bundle: bytes | None = None) -> Message:
    context = Context(1, 5, {}, RecordDict(), {})
    content = build_bundle() if bundle is None else bundle
    return answers.answer(ClientTask(message, context, content))


def number(reply: Message) -> object:
    return reply.content["reply"]["n"]


def test_an_order_that_comes_twice_is_worked_on_once(answers: Answers) -> None:
    first = order("round 1", weights=1.0)
    assert number(ask(answers, first)) == 1
    # By a step or whole, the document names the same weights.
    again = order("round 1", steps=2.0)
    reply = ask(answers, again)
    assert number(reply) == 1
    assert reply.metadata.reply_to_message_id == again.metadata.message_id
    assert number(ask(answers, order("round 2", weights=1.0))) == 2
    assert number(ask(answers, order("round 1", weights=1.0))) == 3  # only the last is kept


def test_one_answer_is_held_at_a_time(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    """An update is as large as the model: the last one goes before the next is made."""
    held: list[int] = []
    app = answers.app

    def work(message: Message, context: Context) -> Message:
        held.append(len(answers._last[1]))
        return app(message, context)

    monkeypatch.setattr(answers, "app", work)
    for text in ("round 1", "round 2"):
        ask(answers, order(text))
    assert held == [0, 0]


def test_what_the_document_does_not_name_is_worked_on_again(answers: Answers) -> None:
    for expected in (1, 2):
        assert number(ask(answers, order("test", weights=1.0, references=1.0))) == expected


def test_an_error_is_not_kept(answers: Answers) -> None:
    for _ in range(2):
        assert ask(answers, order("bad")).error.reason == "data"
    assert number(ask(answers, order("round 1"))) == 3


def test_the_policy_is_asked_the_second_time_too(answers: Answers) -> None:
    assert number(ask(answers, order("round 1"))) == 1
    assert ask(answers, order("round 1"), bundle=b"foreign").error.reason == "policy"


# --- what the log says --------------------------------------------------------------------------


def test_the_log_names_each_order_and_what_leaves(
    answers: Answers, caplog: pytest.LogCaptureFixture
) -> None:
    plan = RunConfig(rounds=3)
    document = TaskOrder(task="train", run="spring", version="1", round=2, base=1, plan=plan)
    text = document.model_dump_json()
    with caplog.at_level(logging.INFO, logger="her2_client"):
        ask(answers, order(text))
        ask(answers, order(text), bundle=b"foreign")
        ask(answers, order("\x1b[31mno order\nline"))
    assert [record.getMessage() for record in caplog.records if record.levelname == "INFO"] == [
        "run spring, round 2, train: received",
        "run spring, round 2, train: leaves: reply 1 B",
        "run spring, round 2, train: received",
        "run spring, round 2, train: leaves: the code policy",
        "an order that cannot be read: received",
        "an order that cannot be read: leaves: reply 1 B",
    ]
    (refusal,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert refusal.startswith("run spring, round 2, train: refused: policy: bundle ")
    assert all(record.getMessage().isprintable() for record in caplog.records)
