"""One reply must not hurt: whatever a site answers, the run goes on with the others, or pauses."""

from __future__ import annotations

import itertools
import json
import stat
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.federation.hostile import Content, Recorded, order_of, playing, recorder, spoil
from tests.messages import arrays_in

from her2_common.errors import RunError
from her2_common.vectors import vectors_record
from her2_deploy.simulation import LocalGrid, LocalNode
from her2_server import checkpoint, closing, rounds
from her2_server import summary as summary_module
from her2_server.coordinator import Coordinator
from her2_server.exchange import INTERNAL
from her2_server.run_folder import RunFolder
from her2_server.summary import weights_hash

MakeFederation = Callable[..., Any]
Answer = Callable[[], Message]
Alter = Callable[[RecordDict], object]

THREE = {
    "centre-a": (40, ("mg", "us")),
    "centre-b": (40, ("us",)),
    "centre-d": (40, ("us",)),
}
HOSTILE = "centre-d"


def altered(task: str, change: Alter) -> Callable[[Message, Answer], list[Message]]:
    """A site that alters its answers to orders of a task."""

    def fault(order: Message, answer: Answer) -> list[Message]:
        reply = answer()
        if order_of(order)[0] == task and not reply.has_error():
            change(reply.content)
        return [reply]

    return fault


def document(**changes: Any) -> Alter:
    def change(content: RecordDict) -> None:
        text = json.loads(content["reply"]["json"]) | changes
        content["reply"] = ConfigRecord({"json": json.dumps(text)})

    return change


def plus(amount: float) -> Alter:
    """So much on every parameter."""

    def change(content: RecordDict) -> None:
        vectors = arrays_in(content, "update")
        content["update"] = vectors_record({name: v + amount for name, v in vectors.items()})

    return change


LIES: dict[str, tuple[str, Alter, str]] = {
    "loss": ("train", document(loss=1e308), "misshapen"),
    "seconds": ("train", document(seconds={"train": 1e308}), "misshapen"),
    "a phase that is none": ("train", document(seconds={"train\n": 1.0}), "misshapen"),
    "a key": ("train", document(note="x"), "misshapen"),
    "a group": ("train", document(counts={"head": 9, "x": 9}), "misshapen"),
    "steps": ("train", document(steps=2**63), "misshapen"),
    "cases": (
        "train",
        document(counts=dict.fromkeys(("us", "clinical", "head"), 5_000_000)),
        "too many cases",
    ),
    "weights": ("train", plus(255.0), "norm out of bounds"),
    "a record": (
        "train",
        lambda content: content.update({"note": ConfigRecord({"a": 1})}),
        "unknown record",
    ),
    "version": ("describe", document(version="0.1.0\n\x1b[31mred"), "misshapen"),
    "a long version": ("describe", document(version="1" * 10**6), "misshapen"),
    "described cases": (
        "describe",
        document(cases={"train": 10**6, "val": None, "test": None}),
        "too many cases",
    ),
    "positives above cases": (
        "describe",
        document(positives={"train": 39, "val": None, "test": None}),
        "wrong count",
    ),
}


def record(federation: Any) -> dict[str, Recorded]:
    """What each site answers in an honest run."""
    grid = federation.grid()
    answers: dict[str, Recorded] = {name: {} for name in federation.keys}
    for name in federation.keys:
        federation.node(grid, name).fault = recorder(answers[name])
    federation.coordinator(grid).run()
    return answers


def playing_grid(
    federation: Any, answers: dict[str, Recorded], chance: Random | None = None
) -> LocalGrid:
    """Sites that answer what was recorded, one of them spoilt by ``chance``."""

    def alter(content: Content) -> Content | Error:
        if chance is None or chance.random() < 0.3:
            return content
        return spoil(content, chance)

    nodes = {
        number: LocalNode(
            playing(answers[name], alter if name == HOSTILE else dict), federation.keys[name]
        )
        for number, name in enumerate(answers, start=11)
    }
    if chance is None:
        return LocalGrid(nodes)
    return LocalGrid(nodes, lambda ids: chance.sample(ids, len(ids)))


def fresh(federation: Any, out: str) -> RunFolder:
    """A folder for another run of the federation."""
    folder = RunFolder(federation.folder.path.parent / out)
    folder.create(federation.folder.path.parent / "federation.yaml")
    return folder


def one_round(coordinator: Coordinator) -> None:
    """The run's first round, and no more."""
    current = coordinator._begin()
    coordinator._describe()
    coordinator._round(current)


def test_each_lie_is_refused_by_its_reason_and_the_round_goes_on(
    make_federation: MakeFederation,
) -> None:
    federation = make_federation(centres=THREE, rounds=1, quorum=2)
    answers = record(federation)
    for number, (lie, (task, change, reason)) in enumerate(LIES.items()):
        grid = playing_grid(federation, answers)
        federation.node(grid, HOSTILE).fault = altered(task, change)
        folder, log = fresh(federation, f"lie-{number}"), list[str]()
        one_round(Coordinator(grid, folder, log.append))
        assert any(text.endswith(f"{HOSTILE} refused: {reason}") for text in log), lie
        (line,) = folder.read_metrics()
        status = {name: site["status"] for name, site in line["sites"].items()}
        assert status == {"centre-a": "accepted", "centre-b": "accepted", HOSTILE: "refused"}, lie
        assert all(text.isprintable() for text in log), lie


def test_an_error_code_that_is_none_is_not_repeated(make_federation: MakeFederation) -> None:
    federation = make_federation(centres=THREE, rounds=1, quorum=2)
    answers = record(federation)
    for number, code in enumerate(("x\n\x1b[2J", "policy; rm", "A" * 10**6, "identifier")):
        grid = playing_grid(federation, answers)
        federation.node(grid, HOSTILE).fault = lambda order, _, code=code: [
            Message(Error(201, code), reply_to=order)
        ]
        folder = fresh(federation, f"code-{number}")
        one_round(Coordinator(grid, folder))
        (line,) = folder.read_metrics()
        assert line["sites"][HOSTILE]["reason"] == "site error"
        written = [path.read_text(encoding="utf-8") for path in folder.path.glob("*.*")]
        assert not any(code in text for text in written)


def test_what_nobody_foresaw_is_refused_as_internal_with_a_trace_in_the_log(
    make_federation: MakeFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make_federation(centres=THREE, rounds=1, quorum=2)
    check = rounds.check_reply

    def breaks(site: str, *arguments: Any) -> None:
        check(site, *arguments)
        if site == HOSTILE:
            raise ZeroDivisionError("a fault of the program")

    monkeypatch.setattr(rounds, "check_reply", breaks)
    federation.coordinator().run()
    (line,) = federation.folder.read_metrics()
    assert line["sites"][HOSTILE] == line["sites"][HOSTILE] | {
        "status": "refused",
        "reason": INTERNAL,
    }
    written = federation.folder.log_file.read_text(encoding="utf-8")
    assert "Traceback" in written
    assert "ZeroDivisionError" in written
    assert stat.S_IMODE(federation.folder.log_file.stat().st_mode) == 0o600


def test_a_full_disk_is_no_sites_fault(
    make_federation: MakeFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make_federation(centres=THREE, rounds=1, quorum=2)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rounds, "check_reply", full)
    with pytest.raises(OSError, match="No space"):
        federation.coordinator().run()


def test_a_reply_that_cannot_be_put_together_is_refused_by_its_site(
    make_federation: MakeFederation,
) -> None:
    """Flower fails on the bytes of one message while it hands out several."""
    federation = make_federation(centres=THREE, rounds=1, quorum=2)
    grid = federation.grid()
    inflate, torn = grid._inflate, [0]

    def tears(object_id: str, objects: dict[str, bytes]) -> Message:
        message = inflate(object_id, objects)
        if "reply" in message.content and message.metadata.message_type == "train":
            text = json.loads(message.content["reply"]["json"])
            if text["site"] == HOSTILE:
                torn[0] += 1
                raise ValueError("Unexpected format for object head.")
        return message

    grid._inflate = tears
    coordinator = federation.coordinator(grid)
    coordinator.exchange._singly = True  # as after a first batch that could not be read
    coordinator.run()
    (line,) = federation.folder.read_metrics()
    assert torn[0]
    assert line["sites"][HOSTILE]["reason"] == INTERNAL


def test_answers_that_cannot_be_used_together_end_the_step_and_the_run_resumes_without_one(
    make_federation: MakeFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make_federation(centres=THREE, rounds=1, quorum=2)

    def breaks(*_: Any, **__: Any) -> Any:
        raise np.linalg.LinAlgError("Singular matrix")

    with monkeypatch.context() as patched:
        patched.setattr(closing, "reference_of", breaks)
        with pytest.raises(RunError, match=r"profile: .*centre-a, centre-b, centre-d") as caught:
            federation.coordinator().run()
    assert "--without" in (caught.value.hint or "")
    assert "LinAlgError" in federation.folder.log_file.read_text(encoding="utf-8")
    federation.coordinator().run()
    assert federation.folder.summary.exists()


# --- any field of any reply ---------------------------------------------------------------------


def spoilt_runs(federation: Any, examples: int) -> None:
    """So many runs over recorded answers, of which one site's are spoilt."""
    answers = record(federation)
    honest = checkpoint.latest(federation.folder.rounds)
    same = fresh(federation, "same")
    Coordinator(playing_grid(federation, answers), same).run()
    assert weights_hash(checkpoint.latest(same.rounds).groups) == weights_hash(honest.groups)
    numbers = itertools.count()

    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(st.integers(0, 2**32))
    def run(seed: int) -> None:
        folder = fresh(federation, f"out-{next(numbers)}")
        Coordinator(playing_grid(federation, answers, Random(seed)), folder).run()
        summary = json.loads(folder.summary.read_text(encoding="utf-8"))
        assert summary["test"]["n"] is None or summary["test"]["n"] > 0
        groups = checkpoint.latest(folder.rounds).groups
        for name in groups:
            moved = np.linalg.norm(groups[name] - honest.groups[name])
            assert moved <= 20 * np.linalg.norm(honest.groups[name]), name

    run()


def test_whatever_a_site_answers_the_run_ends_with_the_others(
    make_federation: MakeFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the drawing of the report, which the slow test beside it has."""
    monkeypatch.setattr(summary_module, "write_report", lambda _: None)
    spoilt_runs(make_federation(centres=THREE, rounds=1, quorum=2, min_cell=3), examples=12)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_whatever_a_site_answers_the_report_is_drawn(make_federation: MakeFederation) -> None:
    spoilt_runs(make_federation(centres=THREE, rounds=2, quorum=2, min_cell=3), examples=60)


def test_a_run_folder_holds_no_control_character(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log("round 1: a\x1b[31m\r\nsecond \u202e line")
    (first, second) = folder.log_file.read_text(encoding="utf-8").splitlines()
    assert first.isprintable()
    assert second.startswith("    ")
    assert second.isprintable()
    folder.log("x" * 10**6)
    assert folder.log_file.stat().st_size < 50_000
