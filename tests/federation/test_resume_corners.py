"""Corners of going on: an early best round, other sites at the end, two runs of one name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from her2_common.release import read_release
from her2_server import checkpoint, coordinator, frozen, summary
from her2_server import exchange as exchange_module
from her2_server.run_folder import RunFolder

MakeFederation = Callable[..., Any]
TWO = {"centre-a": (30, ("mg", "us")), "centre-d": (30, ("us",))}
COMPRESSED = {"up": "int8", "keep": 0.1, "down": "int8"}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(exchange_module, "PAUSED_POLL_SECONDS", 0.02)


def dies(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def dead(monkeypatch: pytest.MonkeyPatch, module: Any, function: str, conductor: Any) -> None:
    """The run ends where it calls ``function``, if it comes so far."""
    with monkeypatch.context() as patch:
        patch.setattr(module, function, dies)
        with pytest.raises(KeyboardInterrupt):
            conductor.run()


def files(federation: Any) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in federation.folder.release.iterdir()}


def summary_of(federation: Any) -> dict[str, Any]:
    return json.loads(federation.folder.summary.read_text())


def orders_of(federation: Any, grid: Any) -> list[tuple[str, str]]:
    """(site, "task split") of each order that is answered."""
    seen: list[tuple[str, str]] = []

    def fault_of(name: str) -> Callable[..., list[Any]]:
        def fault(order: Any, answer: Callable[[], Any]) -> list[Any]:
            document = json.loads(order.content["order"]["json"])
            seen.append((name, f"{document['task']} {document['split']}"))
            return [answer()]

        return fault

    for name in federation.keys:
        federation.node(grid, name).fault = fault_of(name)
    return seen


# --- a best round whose memory the sites no longer have -------------------------------------------


@pytest.mark.parametrize("local", ["plain", "scaffold"])
def test_an_early_best_round_needs_no_memory_of_it(
    make_federation: MakeFederation, monkeypatch: pytest.MonkeyPatch, local: str
) -> None:
    line_of = coordinator.metrics_line

    def line(number: int, *arguments: Any, **options: Any) -> dict[str, Any]:
        made = line_of(number, *arguments, **options)
        made["validation"]["auc"]["estimate"] = 1.5 if number == 2 else 0.5
        return made

    monkeypatch.setattr(coordinator, "metrics_line", line)
    federation = make_federation(
        centres=TWO,
        rounds=9,
        patience=4,
        compression=COMPRESSED,
        strategy={"local": {"name": local}},
    )
    federation.coordinator().run()
    run = summary_of(federation)["run"]
    assert (run["final_round"], run["rounds_done"]) == (1, 6)
    for config in federation.configs.values():
        kept = {path.stem for path in (config.state / "memory").rglob("*.safetensors")}
        assert "00001" not in kept


# --- other sites at the end -----------------------------------------------------------------------


@pytest.mark.parametrize("dead_at", ["_evaluate val", "_evaluate test", "finish"])
def test_what_was_settled_before_the_test_stays_when_other_sites_are_there(
    make_federation: MakeFederation,
    undisturbed: MakeFederation,
    monkeypatch: pytest.MonkeyPatch,
    dead_at: str,
) -> None:
    """Both settle; then the coordinator dies, and only one site comes back. Without what was kept
    it would settle other weights, which that site refuses to score its test cases with."""
    options = {"centres": TWO, "rounds": 1, "quorum": 1}
    calm, killed = undisturbed(**options), make_federation(**options)
    conductor = killed.coordinator()
    evaluate = conductor._evaluate
    if dead_at != "finish":
        split = dead_at.split()[1]
        conductor._evaluate = lambda *a: dies() if a[2] == split else evaluate(*a)
    dead(monkeypatch, coordinator, "finish", conductor)
    kept = killed.folder.settled
    assert kept.exists() == (dead_at != "_evaluate val")
    grid, log = killed.grid(), []
    seen = orders_of(killed, grid)
    if dead_at == "_evaluate val":  # nothing is frozen yet: all must come back for the same bits
        killed.coordinator(grid, log).run()
        assert files(killed) == files(calm)
        return
    assert kept.stat().st_mode & 0o077 == 0
    assert (kept / "sums").stat().st_mode & 0o077 == 0
    killed.node(grid, "centre-a").online = False
    killed.coordinator(grid, log).run()
    assert files(killed)["model.safetensors"] == files(calm)["model.safetensors"]
    assert {task for _, task in seen} == {"describe val", "evaluate test"}
    for key in ("temperature", "threshold", "validation"):
        got, expected = summary_of(killed)[key], summary_of(calm)[key]
        assert got == {**expected, "test": got["test"]} if key == "temperature" else got == expected
    assert not kept.exists()


@pytest.mark.parametrize("spoil", ["cut", "flipped", "empty", "other weights"])
def test_what_was_settled_is_worked_out_again_if_it_cannot_be_used(
    make_federation: MakeFederation,
    undisturbed: MakeFederation,
    monkeypatch: pytest.MonkeyPatch,
    spoil: str,
) -> None:
    calm, killed = (f(centres=TWO, rounds=1) for f in (undisturbed, make_federation))
    dead(monkeypatch, coordinator, "finish", killed.coordinator())
    path = killed.folder.settled / "sums"
    data = path.read_bytes()
    if spoil == "other weights":
        found = frozen.read(killed.folder)
        state = {**found.final.state, "fingerprints": {"head": "0" * 64}}
        other = checkpoint.Checkpoint(1, found.final.groups, state)
        frozen.write(killed.folder, frozen.Frozen(other, found.settled, found.validation))
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        path.write_bytes({"cut": data[:-1], "flipped": flipped, "empty": b""}[spoil])
    log: list[str] = []
    killed.coordinator(log=log).run()
    assert any(text.endswith("it is worked out again") for text in log)
    assert files(killed) == files(calm)


def test_a_site_that_trained_and_is_gone_at_the_end_stays_in_the_account(
    make_federation: MakeFederation,
) -> None:
    """Its groups are released and its rounds counted, also by a coordinator that never saw it."""
    centres = {"centre-a": (30, ("mg",)), "centre-d": (30, ("us",))}
    federation = make_federation(centres=centres, rounds=2, quorum=1)
    conductor = federation.coordinator()
    conductor._freeze = dies
    with pytest.raises(KeyboardInterrupt):
        conductor.run()
    started = conductor.started
    grid = federation.grid()
    federation.node(grid, "centre-d").online = False
    log: list[str] = []
    federation.coordinator(grid, log).run()
    manifest, _ = read_release(federation.folder.release)
    assert manifest.groups == ["mg", "us", "clinical", "head"]
    document = summary_of(federation)
    accounts = {site["name"]: site for site in document["sites"]}
    assert accounts["centre-d"]["rounds_accepted"] == 2
    assert document["run"]["started"] == started
    assert document["seconds"]["total"] > document["seconds"]["train"]
    assert not any("no site can train the group 'us'" in text for text in log)


def test_a_group_whose_updates_were_all_refused_is_not_released(
    make_federation: MakeFederation,
) -> None:
    centres = {"centre-a": (30, ("mg",)), "centre-d": (30, ("us",))}
    federation = make_federation(centres=centres, rounds=1, quorum=1)
    grid = federation.grid()

    def refused(order: Any, answer: Callable[[], Any]) -> list[Any]:
        reply = answer()
        if "update" in reply.content:
            del reply.content["update"]
        return [reply]

    federation.node(grid, "centre-d").fault = refused
    federation.coordinator(grid).run()
    manifest, _ = read_release(federation.folder.release)
    assert manifest.groups == ["mg", "clinical", "head"]


# --- two runs of one name -------------------------------------------------------------------------


def test_memories_of_two_runs_of_one_name_stay_apart(make_federation: MakeFederation) -> None:
    """The second run has the first's plan and name, and trains the round that the first did: with
    one site alone, so that it leaves other residuals behind."""
    options = {"centres": TWO, "rounds": 3, "quorum": 1, "compression": COMPRESSED}
    undisturbed, first = (make_federation(name, **options) for name in "ab")
    undisturbed.coordinator().run()
    conductor = first.coordinator()
    current = conductor._begin()
    conductor._describe()
    conductor._round(conductor._round(current))
    second = RunFolder(first.folder.path.parent / "again")
    shutil.copytree(first.folder.path, second.path, ignore=shutil.ignore_patterns("rounds"))
    grid = first.grid()
    first.node(grid, "centre-a").online = False
    other = coordinator.Coordinator(grid, second)
    current = other._begin()
    other._describe()
    other._round(other._round(current))
    first.coordinator().run()
    assert (
        summary_of(first)["run"]["weights_sha256"]
        == (summary_of(undisturbed)["run"]["weights_sha256"])
    )


# --- between summary and report -------------------------------------------------------------------


def test_a_round_that_fails_leaves_no_updates_of_single_sites(
    make_federation: MakeFederation,
) -> None:
    options = {"rounds": 1, "strategy": {"combine": {"name": "median"}}}
    federation = make_federation(centres=TWO, **options)
    grid = federation.grid()

    def fault(order: Any, answer: Callable[[], Any]) -> list[Any]:
        return [dies() if order.metadata.message_type == "train" else answer()]

    federation.node(grid, "centre-d").fault = fault
    with pytest.raises(KeyboardInterrupt):
        federation.coordinator(grid).run()
    assert not (federation.folder.rounds / ".spool").exists()


def test_what_is_closed_has_its_report_and_nothing_settled(
    make_federation: MakeFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make_federation(centres=TWO, rounds=1)
    dead(monkeypatch, summary, "close", federation.coordinator())
    report = federation.folder.path / "report.html"
    assert (report.exists(), federation.folder.settled.exists()) == (False, True)
    summary.close(federation.folder)
    assert (report.exists(), federation.folder.settled.exists()) == (True, False)
