"""Leave one centre out: who is left out neither trains nor validates, and is tested."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml
from flwr.app import Message

from her2_common.config import FederationConfig, load
from her2_common.errors import ConfigError, RunError
from her2_server import checkpoint
from her2_server.coordinator import Coordinator
from her2_server.leave_one_out import plan, results, table
from her2_server.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Callable as MakeFederation

CENTRES = {
    "centre-a": (60, ("mg", "us", "mri")),
    "centre-b": (60, ("mg", "us")),
    "centre-c": (60, ("mri",)),
}


def frozen(federation: Any) -> Path:
    path: Path = federation.folder.config
    return path


def left_out(federation: Any, site: str, out: Path) -> Any:
    (run,) = plan(frozen(federation), out, [site])
    return run


def seen_by(federation: Any, grid: Any, name: str, tasks: list[str]) -> None:
    def watch(order: Message, answer: Callable[[], Message]) -> list[Message]:
        tasks.append(json.loads(order.content["order"]["json"])["task"])
        return [answer()]

    federation.node(grid, name).fault = watch


def test_who_is_left_out_is_only_tested(make_federation: MakeFederation, tmp_path: Path) -> None:
    federation = make_federation(centres=CENTRES)
    run = left_out(federation, "centre-b", tmp_path / "runs")
    run.prepare()
    grid = federation.grid()
    tasks: list[str] = []
    seen_by(federation, grid, "centre-b", tasks)
    Coordinator(grid, run.folder).run()
    assert tasks == ["describe", "evaluate"]
    summary = json.loads(run.folder.summary.read_text())
    assert summary["run"]["left_out"] == "centre-b"
    assert {site["name"]: site["status"] for site in summary["sites"]}["centre-b"] == "left out"
    assert set(summary["validation"]["by_centre"]) == {"centre-a", "centre-c"}
    assert set(summary["test"]["by_centre"]) == set(CENTRES)
    assert "centre-b was left out" in (run.folder.path / "report.html").read_text()


def test_the_weights_are_those_of_a_federation_without_it(
    make_federation: MakeFederation, tmp_path: Path
) -> None:
    federation = make_federation("all", centres=CENTRES)
    run = left_out(federation, "centre-b", tmp_path / "runs")
    run.prepare()
    Coordinator(federation.grid(), run.folder).run()
    others = {name: facts for name, facts in CENTRES.items() if name != "centre-b"}
    # The fixture draws a site's cases by its place: centre-b last leaves the others' alone.
    alone = make_federation("alone", centres=others)
    alone.configs = {name: federation.configs[name] for name in others}
    alone.keys = {name: federation.keys[name] for name in others}
    document = yaml.safe_load(frozen(federation).read_text())
    document["sites"] = [site for site in document["sites"] if site["name"] in others]
    file = tmp_path / "federation.yaml"
    file.write_text(yaml.safe_dump(document))
    alone.folder = RunFolder(tmp_path / "alone-run")
    alone.folder.create(file)
    alone.coordinator().run()
    one, other = (checkpoint.latest(folder.rounds) for folder in (run.folder, alone.folder))
    assert all(np.array_equal(one.groups[g], other.groups[g]) for g in one.groups)
    first, second = (
        json.loads(folder.summary.read_text()) for folder in (run.folder, alone.folder)
    )
    assert first["threshold"] == second["threshold"]
    assert first["temperature"]["temperature"] == second["temperature"]["temperature"]


def test_a_modality_that_only_the_left_out_site_has_ends_the_run(
    make_federation: MakeFederation, tmp_path: Path
) -> None:
    federation = make_federation(
        centres={"centre-a": (60, ("us",)), "centre-c": (60, ("us", "mri"))}
    )
    run = left_out(federation, "centre-c", tmp_path / "runs")
    run.prepare()
    with pytest.raises(RunError, match="centre-c has mri, and no other site can train it"):
        Coordinator(federation.grid(), run.folder).run()


def test_it_must_answer_at_the_end(make_federation: MakeFederation, tmp_path: Path) -> None:
    federation = make_federation(centres=CENTRES, rounds=1, round_timeout=2, pause_timeout=1)
    run = left_out(federation, "centre-b", tmp_path / "runs")
    run.prepare()
    grid = federation.grid()

    def gone(order: Message, answer: Callable[[], Message]) -> list[Message]:
        task = json.loads(order.content["order"]["json"])["task"]
        return [] if task == "evaluate" else [answer()]

    federation.node(grid, "centre-b").fault = gone
    with pytest.raises(RunError, match="centre-b"):
        Coordinator(grid, run.folder).run()
    assert not run.finished
    Coordinator(federation.grid(), run.folder).run()
    assert run.finished


def test_the_results_stand_beside_those_of_the_full_run(
    make_federation: MakeFederation, tmp_path: Path
) -> None:
    federation = make_federation(centres=CENTRES)
    runs = plan(frozen(federation), tmp_path / "runs")
    assert [run.site for run in runs] == list(CENTRES)
    for run in runs:
        run.prepare()
        run.prepare()  # as when the command is given again
        Coordinator(federation.grid(), run.folder).run()
    without_full = results(federation.folder, runs)
    assert all(
        one["auc"]["full"] is None
        for one in without_full["centres"].values()
        if "suppressed" not in one
    )
    federation.coordinator().run()
    document = results(federation.folder, runs)
    full = json.loads(federation.folder.summary.read_text())["test"]["by_centre"]
    for run in runs:
        one = document["centres"][run.site]
        unseen = json.loads(run.folder.summary.read_text())["test"]["by_centre"][run.site]
        assert ("suppressed" in one) == ("suppressed" in unseen) == ("suppressed" in full[run.site])
        if "suppressed" not in one:
            assert one["auc"] == {"unseen": unseen["auc"], "full": full[run.site]["auc"]}
            assert one["n"] == full[run.site]["n"]
    assert table(document).row_count == 3
    assert all(run.finished for run in plan(frozen(federation), tmp_path / "runs"))


def test_another_federation_in_the_folder_is_not_taken_for_this_one(
    make_federation: MakeFederation, tmp_path: Path
) -> None:
    one, other = (
        make_federation("one", centres=CENTRES),
        make_federation("two", centres=CENTRES, seed=9),
    )
    left_out(one, "centre-b", tmp_path / "runs").prepare()
    with pytest.raises(RunError, match=r"holds a run of another federation\.yaml"):
        plan(frozen(other), tmp_path / "runs")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"left_out": "nobody"}, "left_out: expected one of several sites"),
        (
            {"left_out": "centre-b", "run": {"strategy": {"private_groups": ["us"]}}},
            "expected no run.strategy.private_groups",
        ),
        ({"left_out": "centre-b", "run": {"quorum": 3}}, "run.quorum of at most 2"),
    ],
)
def test_a_left_out_that_cannot_be_is_refused(
    make_federation: MakeFederation, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    federation = make_federation(centres=CENTRES)
    document = yaml.safe_load(frozen(federation).read_text())
    file = tmp_path / "federation.yaml"
    file.write_text(yaml.safe_dump(document | changes))
    with pytest.raises(ConfigError, match=message):
        load(FederationConfig, file)
    with pytest.raises(ConfigError, match="expected a site of"):
        plan(frozen(federation), tmp_path, ["nobody"])
