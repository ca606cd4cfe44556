"""Whole federations whose sites come late, come back, are lost, are mended; and early stopping."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message

from her2_common.encoding import Encoded, decode
from her2_common.errors import RunError
from her2_common.vectors import read_vectors, up_forms
from her2_server import checkpoint, coordinator
from her2_server import exchange as exchange_module
from her2_server.exchange import LOST
from her2_server.summary import weights_hash

MakeFederation = Callable[..., Any]
Answer = Callable[[], Message]
TWO = {"centre-a": (30, ("mg", "us")), "centre-d": (30, ("us",))}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(exchange_module, "PAUSED_POLL_SECONDS", 0.02)
    monkeypatch.setattr(exchange_module, "AGAIN_SECONDS", 0.05)


def final_hash(federation: Any) -> str:
    return weights_hash(checkpoint.latest(federation.folder.rounds).groups)


def task_of(order: Message) -> str:
    document = json.loads(order.content["order"]["json"])
    return f"{document['task']} {document['round']} {document['split']}"


def failing(task: str, error: Error, times: int = 1) -> Callable[[Message, Answer], list[Message]]:
    """A site that answers the first orders of a task with an error, after the work was done."""
    seen: list[str] = []

    def fault(order: Message, answer: Answer) -> list[Message]:
        reply = answer()
        if task_of(order).startswith(task) and len(seen) < times:
            seen.append(task)
            return [Message(error, reply_to=order)]
        return [reply]

    return fault


def lines_of(federation: Any) -> list[dict[str, Any]]:
    return federation.folder.read_metrics()


@pytest.mark.parametrize("code", LOST)
def test_a_site_that_is_lost_in_a_round_comes_back_to_the_same_bits(
    make_federation: MakeFederation, undisturbed: MakeFederation, code: int
) -> None:
    calm, lost = undisturbed(centres=TWO), make_federation("lost", centres=TWO)
    grid = lost.grid()
    lost.node(grid, "centre-d").fault = failing("train 2", Error(code, "gone"))
    lost.coordinator(grid).run()
    assert final_hash(lost) == final_hash(calm)
    first, second = (line["sites"]["centre-d"] for line in lines_of(lost))
    assert second["status"] == "accepted"
    assert second["received_bytes"] > first["received_bytes"]  # it was sent again


def test_a_run_pauses_for_a_site_and_goes_on_when_it_comes_back(
    make_federation: MakeFederation, undisturbed: MakeFederation
) -> None:
    paused = make_federation("paused", centres=TWO, retries=0, pause_timeout=60)
    grid, log = paused.grid(), list[str]()
    node = paused.node(grid, "centre-d")
    node.fault = failing("train 2", Error(5, "gone"))
    conductor = paused.coordinator(grid, log=log)
    seen: list[dict[str, Any]] = []

    def on_pause(waits_for: dict[str, str]) -> None:
        conductor.status.pause(waits_for)
        seen.append(json.loads(paused.folder.status.read_text()))

    conductor.exchange.on_pause = on_pause
    conductor.run()
    assert [state["waits_for"] for state in seen] == [{"centre-d": "the site was lost"}, {}]
    assert (seen[0]["step"], seen[0]["round"]) == ("round 2", 1)
    told = "round 2: paused, 1 of 2 sites needed; waits for centre-d missing: the site was lost"
    assert told in log
    assert "round 2: goes on" in log
    assert final_hash(paused) == final_hash(undisturbed(centres=TWO))
    assert json.loads(paused.folder.status.read_text())["ended"] == "finished"


def test_a_site_whose_engineer_mends_its_cache_in_the_pause_goes_on(
    make_federation: MakeFederation, undisturbed: MakeFederation
) -> None:
    mended = make_federation("mended", centres=TWO, pause_timeout=60)
    grid = mended.grid()
    cache = mended.configs["centre-d"].data.cache
    away = cache.with_name("away")
    cache.rename(away)
    conductor = mended.coordinator(grid)

    def on_pause(waits_for: dict[str, str]) -> None:
        if waits_for:
            assert waits_for == {"centre-d": "site error: cache"}
            away.rename(cache)

    conductor.exchange.on_pause = on_pause
    conductor.run()
    assert final_hash(mended) == final_hash(undisturbed(centres=TWO))


def test_what_stops_a_run_stands_in_its_status(make_federation: MakeFederation) -> None:
    stopped = make_federation(centres=TWO)
    shutil.rmtree(stopped.configs["centre-d"].data.cache)
    with pytest.raises(RunError, match="centre-d refused: site error: cache") as caught:
        stopped.coordinator().run()
    status = json.loads(stopped.folder.status.read_text())
    assert status["ended"] == str(caught.value)
    assert status["sites"]["centre-d"]["reason"] == "site error: cache"


def test_a_site_that_comes_late_joins_the_run(make_federation: MakeFederation) -> None:
    federation = make_federation(centres=TWO, quorum=1, rounds=3)
    grid, log = federation.grid(), list[str]()
    late = federation.node(grid, "centre-d")
    late.online = False

    def come(order: Message, answer: Answer) -> list[Message]:
        late.online = task_of(order) == "train 2 val" or late.online
        return [answer()]

    federation.node(grid, "centre-a").fault = come
    federation.coordinator(grid, log=log).run()
    assert "beginning without centre-d" in log
    parts = [line["sites"]["centre-d"] for line in lines_of(federation)]
    assert [part["status"] for part in parts] == ["missing", "missing", "accepted"]
    assert parts[0]["reason"] == "not online"
    summary = json.loads(federation.folder.summary.read_text())
    account = next(site for site in summary["sites"] if site["name"] == "centre-d")
    assert (account["rounds_accepted"], account["rounds_missing"]) == (1, 2)


def test_an_offline_site_does_not_keep_a_round_that_has_its_quorum(
    make_federation: MakeFederation,
) -> None:
    federation = make_federation(centres=TWO, quorum=1, round_timeout=3600)
    grid = federation.grid()
    federation.node(grid, "centre-d").online = False
    federation.coordinator(grid).run()
    for line in lines_of(federation):
        assert line["seconds"]["wait"] < 30
        assert line["sites"]["centre-d"]["status"] == "missing"


# --- early stopping -----------------------------------------------------------------------------


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float]], None]:
    """Give the weights of each round the validation AUC that a test wants; one above 1 is better
    than that of the last round, which is the true one."""

    def set_to(aucs: dict[int, float]) -> None:
        line_of = coordinator.metrics_line

        def line(number: int, *arguments: Any, **options: Any) -> dict[str, Any]:
            made = line_of(number, *arguments, **options)
            made["validation"]["auc"]["estimate"] = aucs[number - 1]
            return made

        monkeypatch.setattr(coordinator, "metrics_line", line)

    return set_to


def test_without_a_better_round_the_run_ends_and_the_best_is_kept(
    make_federation: MakeFederation, scored: Callable[[dict[int, float]], None]
) -> None:
    scored({0: 0.99, 1: 0.5, 2: 1.5, 3: 0.6, 4: 0.7, 5: 0.7, 6: 0.7})
    federation = make_federation(centres=TWO, rounds=9, patience=3)
    log: list[str] = []
    federation.coordinator(log=log).run()
    assert [line["round"] for line in lines_of(federation)] == [1, 2, 3, 4, 5, 6]
    assert "round 2 was the best on validation; its weights are final" in log
    summary = json.loads(federation.folder.summary.read_text())["run"]
    assert (summary["final_round"], summary["rounds_done"], summary["rounds"]) == (2, 6, 9)
    best = checkpoint.load(federation.folder.rounds / "0002")
    assert summary["weights_sha256"] == weights_hash(best.groups)
    # The same weights as those of a run of two rounds: patience changes no training.
    short = make_federation("short", centres=TWO, rounds=9)
    conductor = short.coordinator()
    current = conductor._begin()
    conductor._describe()
    for _ in range(2):
        current = conductor._round(current)
    assert weights_hash(current.groups) == summary["weights_sha256"]
    page = (federation.folder.path / "report.html").read_text()
    assert "the weights are those of round 2" in page


def test_the_choice_of_the_best_round_survives_a_resume(
    make_federation: MakeFederation, scored: Callable[[dict[int, float]], None]
) -> None:
    scored({0: 0.9, 1: 1.5, 2: 0.5, 3: 0.6, 4: 0.6})
    federation = make_federation(centres=TWO, rounds=9, patience=3)
    conductor = federation.coordinator()

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    conductor._profile = dies
    with pytest.raises(KeyboardInterrupt):
        conductor.run()
    assert json.loads(federation.folder.status.read_text())["ended"] == "interrupted"
    federation.coordinator().run()
    assert len(lines_of(federation)) == 5
    assert json.loads(federation.folder.summary.read_text())["run"]["final_round"] == 1


def test_a_damaged_best_round_is_passed_over(
    make_federation: MakeFederation, scored: Callable[[dict[int, float]], None]
) -> None:
    scored({0: 0.9, 1: 1.5, 2: 1.2, 3: 0.6, 4: 0.6})
    federation = make_federation(centres=TWO, rounds=9, patience=3)
    conductor, log = federation.coordinator(), list[str]()
    settle = conductor._settle

    def damage(last: Any) -> Any:
        (federation.folder.rounds / "0001" / "state.json").write_text("{")
        return settle(last)

    conductor._settle = damage
    conductor.notify = log.append
    conductor.run()
    assert any("0001: damaged" in text for text in log)
    summary = json.loads(federation.folder.summary.read_text())
    # Round 2 was dropped when round 5 was written: the best of those that are kept.
    kept = {int(path.name) for path in federation.folder.rounds.glob("[0-9]*")}
    assert summary["run"]["final_round"] in kept - {1}


# --- the sites' own rule for the test cases -----------------------------------------------------


def test_a_site_scores_its_test_cases_with_one_set_of_weights(
    make_federation: MakeFederation,
) -> None:
    federation = make_federation(centres=TWO, rounds=1)
    federation.coordinator().run()
    federation.folder.summary.unlink()
    federation.coordinator().run()  # after a resume: the same weights, scored again
    # A coordinator that trains on and asks once more, under the same name and plan
    newest = checkpoint.latest(federation.folder.rounds)
    changed = {name: newest.groups[name] + 1 for name in newest.groups}
    state = {k: v for k, v in newest.state.items() if k not in ("files", "fingerprints")}
    checkpoint.save(federation.folder.rounds, checkpoint.Checkpoint(1, changed, state))
    federation.folder.summary.unlink()
    with pytest.raises(RunError, match=r"test: expected 2 sites, got 0 .*site error: policy"):
        federation.coordinator().run()


# --- the length of an update --------------------------------------------------------------------


@pytest.mark.parametrize("up", ["float32", "int8"])
def test_an_update_longer_than_its_bound_is_refused_by_name(
    make_federation: MakeFederation, up: str
) -> None:
    """The bound lies just below and just above the longest of all changes, measured here."""
    options = {"centres": TWO, "rounds": 1, "compression": {"up": up}}
    federation = make_federation("measured", quorum=1, **options)
    grid = federation.grid()
    lengths: dict[tuple[str, str], float] = {}

    def measure(site: str, order: Message, answer: Answer) -> list[Message]:
        reply = answer()
        if task_of(order).startswith("train"):
            forms = up_forms(federation.folder.load_config().run)
            start = checkpoint.load(federation.folder.rounds / "0000").groups
            for name, vector in read_vectors(reply.content, "update", forms).items():
                change = decode(vector) if isinstance(vector, Encoded) else vector
                squares = [np.square(v.astype(float)).sum() for v in (change, start[name])]
                lengths[site, name] = float(np.sqrt(squares[0] / squares[1]))
        return [reply]

    for site in TWO:
        federation.node(grid, site).fault = partial(measure, site)
    federation.coordinator(grid).run()
    longest = max(lengths.values())
    worst = max(lengths, key=lambda key: lengths[key])[0]
    for bound, status in ((0.999 * longest, "refused"), (1.001 * longest, "accepted")):
        bounded = make_federation(status, quorum=1, max_update_norm=bound, **options)
        bounded.coordinator().run()
        part = lines_of(bounded)[0]["sites"][worst]
        assert part["status"] == status
        assert part["reason"] == ("norm out of bounds" if status == "refused" else None)


def test_every_fault_of_the_page_is_shown_by_a_test_that_is_there() -> None:
    root = Path(__file__).resolve().parents[2]
    named = set(re.findall(r"`(test_\w+)`", (root / "docs" / "faults.md").read_text()))
    sources = [path.read_text(encoding="utf-8") for path in (root / "tests").rglob("test_*.py")]
    assert len(named) > 20
    assert [name for name in sorted(named) if not any(f"def {name}(" in s for s in sources)] == []
