"""The site's app: orders in, answers out, and of an error nothing but its code."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from tests.messages import arrays_in

from her2_client.app import make_app
from her2_client.keys import new_node_key
from her2_client.site import Answer
from her2_common import __version__
from her2_common.config import RunConfig
from her2_common.encoding import Encoded, encode
from her2_common.errors import Her2Error, ImageError, PolicyError, TableError
from her2_common.metrics import ScoreHistogram
from her2_common.model import GROUPS, build_model, get_groups, group_sizes, preset
from her2_common.novelty import Reference, moments, reference_of
from her2_common.vectors import read_whole, vectors_record
from her2_common.wire import (
    SiteReply,
    TaskOrder,
    document_record,
    read_document,
    read_moments,
    read_scores,
    references_record,
)
from her2_deploy.simulation import LocalGrid, LocalNode

CANARY = "MRS^CANARY"
PUBLIC = new_node_key()[1]
SIZES = group_sizes(build_model("compact", 0))
D = preset("compact").features


class FakeSite:
    """Answers with what it is given, and remembers what it was asked."""

    def __init__(self, answer: Callable[[], Answer]) -> None:
        self._answer = answer
        self.asked: list[tuple[TaskOrder, dict[str, np.ndarray]]] = []
        self.references: dict[str, Reference] = {}
        self.steps: dict[str, Encoded] = {}

    def answer(
        self,
        order: TaskOrder,
        weights: dict[str, np.ndarray],
        references: dict[str, Reference] | None = None,
        initial: dict[str, np.ndarray] | None = None,
        steps: dict[str, Encoded] | None = None,
    ) -> Answer:
        self.asked.append((order, weights))
        self.references = references or {}
        self.steps = steps or {}
        return self._answer()


def order(task: str = "train") -> RecordDict:
    document = TaskOrder.model_validate(
        {"task": task, "run": "r", "version": __version__, "round": 1, "plan": RunConfig()}
    )
    record = RecordDict({"order": document_record(document)})
    if task != "describe":
        record["weights"] = vectors_record(get_groups(build_model("compact", 1), ["us", "head"]))
    return record


def ask(site: Any, content: RecordDict, kind: str = "train") -> Message:
    """Over the true wire path."""
    grid = LocalGrid({7: LocalNode(make_app(lambda _: site), PUBLIC)})
    message = grid.create_message(content, kind, 7, "1", ttl=60)
    (reply,) = grid.send_and_receive([message])
    return reply


def reply_document(task: str = "train") -> SiteReply:
    return SiteReply(
        site="a", task=task, round=1, split="val", counts={"us": 3}, score_keys=("fused|us",)
    )


def test_an_answer_comes_back_whole() -> None:
    histogram = ScoreHistogram.from_scores([0.25, 0.5], [0, 1])
    sent = get_groups(build_model("compact", 2), ["us", "head"])
    site = FakeSite(lambda: Answer(reply_document(), sent, {"fused|us": histogram}))
    reply = ask(site, order())
    assert not reply.has_error()
    assert read_document(reply.content, "reply", SiteReply) == reply_document()
    got = read_whole(reply.content, "update", RunConfig())
    assert {g: v.tobytes() for g, v in got.items()} == {g: v.tobytes() for g, v in sent.items()}
    assert read_scores(reply.content, ("fused|us",)) == {"fused|us": histogram}
    (asked, weights), *_ = site.asked
    assert asked.task == "train"
    expected = get_groups(build_model("compact", 1), ["us", "head"])
    assert all(weights[g].tobytes() == expected[g].tobytes() for g in expected)


def test_steps_and_encoded_changes_travel_as_bytes() -> None:
    plan = RunConfig.model_validate({"compression": {"up": "int8", "keep": 0.1, "down": "int8"}})
    change = np.random.default_rng(0).normal(size=SIZES["us"]).astype(np.float32)
    step, sent = encode(change, "int8")[0], encode(change, "int8", 0.1)[0]
    site = FakeSite(lambda: Answer(reply_document(), {"us": sent}))
    document = TaskOrder(task="train", run="r", version=__version__, round=1, plan=plan)
    record = RecordDict({"order": document_record(document), "steps": vectors_record({"us": step})})
    reply = ask(site, record)
    assert site.steps["us"].data.tobytes() == step.data.tobytes()
    assert arrays_in(reply.content, "update")["us"].tobytes() == sent.data.tobytes()
    record["steps"] = vectors_record({"us": sent})  # in another form than the plan's
    assert ask(site, record).error.reason == "update"


def test_an_evaluation_carries_no_weights() -> None:
    reply = ask(FakeSite(lambda: Answer(reply_document("evaluate"))), order("evaluate"), "evaluate")
    assert set(reply.content) == {"reply", "scores"}


def test_a_profile_carries_moments_and_an_evaluation_distances() -> None:
    total = moments(np.random.default_rng(0).normal(size=(9, D)))
    reply = ask(
        FakeSite(lambda: Answer(reply_document("profile"), moments={"us": total})),
        order("profile"),
        "evaluate",
    )
    assert set(reply.content) == {"reply", "scores", "moments"}
    assert read_moments(reply.content, D, {"us": 9})["us"].tobytes() == total.tobytes()

    histogram = ScoreHistogram.from_scores([0.5], [0])
    site = FakeSite(lambda: Answer(reply_document("evaluate"), distances={"us": histogram}))
    asked, reference = order("evaluate"), reference_of(total)
    assert reference is not None
    asked["references"] = references_record({"us": reference})
    reply = ask(site, asked, "evaluate")
    assert set(reply.content) == {"reply", "scores", "distances"}
    assert read_scores(reply.content, ("us",), "distances") == {"us": histogram}
    assert site.references["us"].factor.tobytes() == reference.factor.tobytes()


def test_references_of_another_width_do_not_reach_the_site() -> None:
    narrow = reference_of(moments(np.random.default_rng(0).normal(size=(9, 3))))
    assert narrow is not None
    asked = order("evaluate")
    asked["references"] = references_record({"us": narrow})
    site = FakeSite(lambda: Answer(reply_document("evaluate")))
    assert ask(site, asked, "evaluate").error.reason == "update"
    assert site.asked == []


@pytest.mark.parametrize(
    "error",
    [
        PolicyError(f"{CANARY} is not allowed"),
        TableError(f"row 3: {CANARY}", hint=f"mend {CANARY}"),
        ImageError(CANARY, reason=CANARY),
        ValueError(CANARY),
        MemoryError(CANARY),
        OSError(errno.EIO, "Input/output error", CANARY),
    ],
    ids=lambda e: type(e).__name__,
)
def test_an_error_leaves_as_its_code_alone(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Answer:
        raise error

    with caplog.at_level(logging.ERROR):
        reply = ask(FakeSite(fail), order())
    assert reply.has_error()
    assert reply.error.reason == (error.code if isinstance(error, Her2Error) else "internal")
    assert CANARY not in repr(vars(reply.error))
    assert CANARY in caplog.text  # the site's own log has it
    if isinstance(error, Her2Error) and error.hint:
        assert error.hint in caplog.text


@pytest.mark.parametrize(
    ("task", "kind"), [("train", "evaluate"), ("evaluate", "train"), ("train", "query")]
)
def test_an_order_under_another_type_is_refused(task: str, kind: str) -> None:
    site = FakeSite(lambda: Answer(reply_document()))
    reply = ask(site, order(task), kind)
    assert reply.error.reason == "policy"
    assert site.asked == []


def spoil_version(record: RecordDict) -> None:
    text = json.loads(str(record["order"]["json"])) | {"note": CANARY}
    record["order"] = ConfigRecord({"json": json.dumps(text)})


def spoil_weights(record: RecordDict) -> None:
    record["weights"] = vectors_record({"us": np.full(SIZES["us"], np.nan, np.float32)})


def drop_order(record: RecordDict) -> None:
    record.pop("order")


@pytest.mark.parametrize("spoil", [spoil_version, spoil_weights, drop_order])
def test_a_malformed_order_does_not_reach_the_site(spoil: Callable[[RecordDict], None]) -> None:
    site = FakeSite(lambda: Answer(reply_document()))
    record = order()
    spoil(record)
    reply = ask(site, record)
    assert reply.error.reason == "update"
    assert site.asked == []


def test_a_site_that_cannot_be_made_is_an_error_too() -> None:
    def no_site(_context: object) -> Any:
        raise PolicyError(CANARY)

    grid = LocalGrid({7: LocalNode(make_app(no_site), PUBLIC)})
    (reply,) = grid.send_and_receive([grid.create_message(order(), "train", 7, "1", ttl=60)])
    assert reply.error.reason == "policy"


def test_groups_of_the_wire_are_those_of_the_model() -> None:
    assert tuple(SIZES) == GROUPS


def test_a_full_disk_leaves_as_a_code_that_is_asked_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> Answer:
        raise OSError(errno.ENOSPC, "No space left on device", "state/tested.json")

    with caplog.at_level(logging.ERROR):
        assert ask(FakeSite(fail), order()).error.reason == "storage"
    assert "state/tested.json: No space left on device (hint: make room" in caplog.text
    assert "Traceback" not in caplog.text
