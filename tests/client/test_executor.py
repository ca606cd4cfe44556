"""What the executor answers, and that an order that comes twice is worked on once."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

from her2_client.app import error_reply
from her2_client.executor import Answers
from her2_client.keys import init_site
from her2_common.bundle import build_bundle
from her2_common.config import RunConfig, SiteConfig, load
from her2_common.runtime import ClientTask
from her2_common.wire import TaskOrder


@pytest.fixture
def config(tmp_path: Path) -> SiteConfig:
    init_site(tmp_path / "site", name="centre-t", address="flower.example:9092")
    config = load(SiteConfig, tmp_path / "site" / "site.yaml")
    config.state.mkdir()
    return config


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
