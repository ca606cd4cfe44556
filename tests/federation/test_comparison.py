"""What a federation is worth for each of its sites, asked over the true wire path."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flwr.app import Message

from her2_client import site as site_module
from her2_client.training import train_round
from her2_common.errors import RunError
from her2_common.release import read_release, write_release
from her2_server.compare import conduct_comparison
from her2_server.watch import state_of

if TYPE_CHECKING:
    from collections.abc import Callable as MakeFederation

CENTRES = {
    "centre-a": (60, ("mg", "us", "mri")),
    "centre-c": (50, ("mri",)),
    "centre-d": (50, ("us",)),
}


def ask(federation: Any, log: list[str] | None = None, **grid: Any) -> dict[str, Any]:
    notify = log.append if log is not None else (lambda _: None)
    return conduct_comparison(federation.grid(**grid), federation.folder, notify)


def test_each_centre_gets_its_row(make_federation: MakeFederation) -> None:
    federation = make_federation(centres=CENTRES, rounds=3)
    federation.coordinator().run()
    log: list[str] = []
    result = ask(federation, log)
    assert json.loads((federation.folder.path / "compare.json").read_text()) == result
    summary = json.loads(federation.folder.summary.read_text())
    for name, one in result["centres"].items():
        assert one["status"] == "compared"
        published = summary["test"]["by_centre"][name]
        if "suppressed" not in published:  # the federated model is the one that was tested
            assert one["auc"]["federated"]["estimate"] == round(published["auc"]["estimate"], 4)
            assert one["n"] == published["n"]
    assert "Is it worth it" in (federation.folder.path / "report.html").read_text()
    assert any("centre-d has answered" in line for line in log)
    # Asked again, the sites have kept their local models, and say the same.
    assert ask(federation) == result


def test_a_site_killed_in_its_long_work_goes_on(
    make_federation: MakeFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make_federation(centres=CENTRES, rounds=3)
    federation.coordinator().run()
    trained: list[tuple[str, int]] = []
    broken = True

    def dies(*given: Any, site: str, round_number: int, **rest: Any) -> Any:
        if broken and (site, round_number) == ("centre-c", 3):
            raise MemoryError
        trained.append((site, round_number))
        return train_round(*given, site=site, round_number=round_number, **rest)

    monkeypatch.setattr(site_module, "train_round", dies)
    first = ask(federation)
    assert first["centres"]["centre-c"] == {"status": "refused", "reason": "site error: internal"}
    broken = False
    trained.clear()
    second = ask(federation)
    assert trained == [("centre-c", 3)]
    assert second["centres"]["centre-c"]["status"] == "compared"
    undisturbed = make_federation("undisturbed", centres=CENTRES, rounds=3)
    undisturbed.coordinator().run()
    assert ask(undisturbed)["centres"] == second["centres"]


def test_local_is_what_the_site_alone_would_be(make_federation: MakeFederation) -> None:
    """A federation of one is its only site alone: both models have the same bits."""
    plain = {"step": {"name": "fedavg"}}  # momentum would be the coordinator's
    centres = {"centre-a": CENTRES["centre-a"]}
    federation = make_federation(centres=centres, rounds=2, strategy=plain)
    federation.coordinator().run()
    (one,) = ask(federation)["centres"].values()
    assert one["auc"]["local"] == pytest.approx(one["auc"]["federated"], abs=0.005)
    assert one["verdict"] == "no difference shown"


@pytest.mark.parametrize("personal", ["ditto", "fine-tuning"])
def test_a_personal_model_is_compared_too(make_federation: MakeFederation, personal: str) -> None:
    federation = make_federation(centres=CENTRES, strategy={"personal": {"name": personal}})
    federation.coordinator().run()
    result = ask(federation)
    for one in result["centres"].values():
        assert set(one["auc"]) == {"local", "federated", "personal"}
        assert set(one["difference"]) == {
            "federated - local",
            "personal - federated",
            "personal - local",
        }
    assert result["overall"].keys() == one["difference"].keys()


def test_private_groups_are_the_sites_own(make_federation: MakeFederation) -> None:
    federation = make_federation(centres=CENTRES, strategy={"private_groups": ["us"]})
    federation.coordinator().run()
    assert all(one["status"] == "compared" for one in ask(federation)["centres"].values())


def test_other_weights_than_the_tested_ones_are_refused(make_federation: MakeFederation) -> None:
    federation = make_federation(centres=CENTRES)
    federation.coordinator().run()
    manifest, groups = read_release(federation.folder.release)
    head = groups["head"].copy()
    head[0] += 0.01
    write_release(federation.folder.release, manifest, {**groups, "head": head})
    log: list[str] = []
    with pytest.raises(RunError, match="got none of 3"):
        ask(federation, log)
    assert sum("refused: site error: policy" in line for line in log) == 3


def test_who_does_not_answer_is_named(make_federation: MakeFederation) -> None:
    federation = make_federation(centres=CENTRES)
    federation.coordinator().run()
    policy = federation.configs["centre-c"].policy
    tasks = tuple(task for task in policy.allowed_tasks if task != "compare")
    federation.configs["centre-c"] = federation.configs["centre-c"].model_copy(
        update={"policy": policy.model_copy(update={"allowed_tasks": tasks})}
    )
    grid = federation.grid()
    federation.node(grid, "centre-d").online = False
    result = conduct_comparison(grid, federation.folder)
    assert result["centres"]["centre-a"]["status"] == "compared"
    assert result["centres"]["centre-c"] == {"status": "refused", "reason": "site error: policy"}
    assert result["centres"]["centre-d"] == {"status": "missing", "reason": "not online"}
    assert result["overall"]["federated - local"] is None


def test_without_any_answer_there_is_an_error(make_federation: MakeFederation) -> None:
    federation = make_federation(centres=CENTRES)
    federation.coordinator().run()
    grid = federation.grid()
    for node in grid.nodes.values():
        node.online = False
    log: list[str] = []
    with pytest.raises(RunError, match=r"got none of 3 \(centre-a missing: not online; centre-c"):
        conduct_comparison(grid, federation.folder, log.append)
    assert log[:2] == [
        "compare: waits for centre-a, centre-c, centre-d, 1 s at most",
        "compare: goes on without centre-a, centre-c, centre-d: not online within 1 s",
    ]
    state = state_of(federation.folder)
    assert (state["state"], state["step"], state["waits_for"]) == ("stopped", "compare", {})
    assert state["why"].startswith("compare: expected an answer of a site")


def test_sites_that_come_late_are_waited_for(make_federation: MakeFederation) -> None:
    """All reconnect one after the other, long before start_timeout."""
    federation = make_federation(centres=CENTRES, start_timeout=60)
    federation.coordinator().run()
    grid = federation.grid()
    offline = [federation.node(grid, name) for name in CENTRES]
    for node in offline:
        node.online = False
    log: list[str] = []
    waiting: list[Any] = []

    def notify(text: str) -> None:
        log.append(text)
        waiting.append(json.loads(federation.folder.status.read_text())["waits_for"])
        if offline:
            offline.pop().online = True

    result = conduct_comparison(grid, federation.folder, notify)
    assert [line.removesuffix(", 60 s at most") for line in log[:3]] == [
        "compare: waits for centre-a, centre-c, centre-d",
        "compare: waits for centre-a, centre-c",
        "compare: waits for centre-a",
    ]
    assert waiting[2:] == [{"centre-a": "not online"}, *({} for _ in waiting[3:])]
    assert all(one["status"] == "compared" for one in result["centres"].values())


def test_its_state_is_told_while_it_goes_on(make_federation: MakeFederation) -> None:
    federation = make_federation(centres=CENTRES)
    federation.coordinator().run()
    folder = federation.folder
    policy = federation.configs["centre-a"].policy.model_copy(update={"allowed_tasks": ()})
    federation.configs["centre-a"] = federation.configs["centre-a"].model_copy(
        update={"policy": policy}
    )
    grid = federation.grid()
    federation.node(grid, "centre-d").online = False
    states: list[dict[str, Any]] = []

    def fault(order: Message, answer: Callable[[], Message]) -> list[Message]:
        reply = answer()
        states.append(state_of(folder))
        return [reply]

    federation.node(grid, "centre-c").fault = fault
    with folder.held():
        conduct_comparison(grid, folder)
    assert {(state["state"], state["step"]) for state in states} == {("comparing", "compare")}
    sites = {site["name"]: (site["state"], site["reason"]) for site in states[-1]["sites"]}
    assert sites == {
        "centre-a": ("refused", "site error: policy"),
        "centre-c": ("working", None),
        "centre-d": ("offline", "not online"),
    }
    after = state_of(folder)
    assert after["state"] == "finished"
    assert after["comparison"] == str(folder.path / "compare.json")
    assert after["report"] == str(folder.path / "report.html")
    sites = {site["name"]: site["state"] for site in after["sites"]}
    assert sites == {"centre-a": "refused", "centre-c": "accepted", "centre-d": "missing"}


def test_a_run_that_is_not_finished_is_not_compared(make_federation: MakeFederation) -> None:
    federation = make_federation(centres=CENTRES)
    with pytest.raises(RunError, match="not finished"):
        ask(federation)


def test_it_begins_where_the_run_began(make_federation: MakeFederation, tmp_path: Path) -> None:
    """A run begun from a release: its sites train alone from that release, not from the seed."""
    before = make_federation("before", centres=CENTRES, rounds=3)
    before.coordinator().run()
    after = make_federation(
        "after", centres=CENTRES, initial=before.folder.release, rounds=1, local_epochs=0
    )
    after.coordinator().run()
    # Nobody trains: local and federated are both the release.
    centres = ask(after)["centres"].values()
    for one in centres:
        assert one["difference"]["federated - local"]["estimate"] == pytest.approx(0, abs=0.005)
    assert {one["auc"]["local"]["estimate"] for one in centres} != {0.5}
