"""A site is excluded from a run that has begun: what is left is the run of the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import Message
from typer.testing import CliRunner

from her2_common.errors import CheckpointError, ConfigError, RunError
from her2_server import checkpoint, cli
from her2_server.exclusion import exclude
from her2_server.summary import weights_hash

MakeFederation = Callable[..., Any]
Answer = Callable[[], Message]

THREE = {"centre-a": (40, ("mg", "us")), "centre-b": (40, ("us",)), "centre-d": (40, ("us",))}
OUT = "centre-d"
OPTIONS: dict[str, Any] = {
    "centres": THREE,
    "rounds": 5,
    "compression": {"up": "int4", "down": "int4"},  # sites keep what rounding left over, by round
}


def stopped(federation: Any, rounds: int) -> None:
    """Conduct ``rounds`` rounds, and no more."""
    coordinator = federation.coordinator()
    current = coordinator._begin()
    coordinator._describe()
    for _ in range(rounds):
        current = coordinator._round(current)


def final(federation: Any) -> str:
    return weights_hash(checkpoint.latest(federation.folder.rounds).groups)


def without_it(make_federation: MakeFederation, rounds_with: int) -> Any:
    """The run in which the site is offline after so many rounds."""
    federation = make_federation("offline", quorum=2, **OPTIONS)
    grid = federation.grid()
    node = federation.node(grid, OUT)

    def leave(order: Message, answer: Answer) -> list[Message]:
        number = json.loads(order.content["order"]["json"])["round"]
        node.online = number < rounds_with
        return [answer()]

    node.fault = leave
    node.online = rounds_with > 0
    federation.coordinator(grid).run()
    return federation


@pytest.mark.parametrize("first", [2, 3])
def test_going_back_gives_the_bits_of_a_run_that_the_site_left(
    make_federation: MakeFederation, first: int
) -> None:
    federation = make_federation("excluded", quorum=2, **OPTIONS)
    stopped(federation, 3)
    assert exclude(federation.folder, OUT, first) == first
    log: list[str] = []
    federation.coordinator(log=log).run()
    assert f"going on after round {first - 1}/5" in log
    assert final(federation) == final(without_it(make_federation, first - 1))
    summary = json.loads(federation.folder.summary.read_text(encoding="utf-8"))
    assert summary["run"]["excluded"] == [{"site": OUT, "from_round": first}]
    status = {site["name"]: site["status"] for site in summary["sites"]}
    assert status == {"centre-a": "ok", "centre-b": "ok", OUT: "excluded"}
    assert OUT not in summary["test"]["by_centre"]
    page = (federation.folder.path / "report.html").read_text(encoding="utf-8")
    assert f"{OUT} was excluded" in page
    lines = federation.folder.read_metrics()
    assert [OUT in line["sites"] for line in lines] == [line["round"] < first for line in lines]


def test_an_excluded_site_is_asked_nothing_and_the_quorum_is_that_of_the_others(
    make_federation: MakeFederation,
) -> None:
    federation = make_federation(**OPTIONS)  # all three are needed
    stopped(federation, 1)
    assert exclude(federation.folder, OUT) == 2
    grid = federation.grid()
    asked: list[Message] = []
    federation.node(grid, OUT).fault = lambda order, answer: asked.append(order) or [answer()]
    federation.coordinator(grid).run()
    assert asked == []
    assert federation.folder.load_config().run == federation.coordinator().plan


def test_a_site_is_excluded_in_the_middle_of_the_end_and_the_test_cases_are_scored_once(
    make_federation: MakeFederation,
) -> None:
    """What the test cases were scored with stays: the sites would refuse other weights."""
    federation = make_federation(quorum=2, **OPTIONS | {"rounds": 1})
    grid = federation.grid()
    coordinator = federation.coordinator(grid)

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    coordinator.orders.answered = lambda site: None
    evaluate = coordinator._evaluate
    coordinator._evaluate = lambda c, s, split: (
        evaluate(c, s, split) if split == "val" else (evaluate(c, s, split), dies())
    )
    with pytest.raises(KeyboardInterrupt):
        coordinator.run()
    exclude(federation.folder, OUT)
    federation.coordinator().run()
    summary = json.loads(federation.folder.summary.read_text(encoding="utf-8"))
    assert OUT not in summary["test"]["by_centre"]
    assert OUT not in summary["validation"]["by_centre"]


def test_how_far_a_run_goes_back_is_what_it_keeps(make_federation: MakeFederation) -> None:
    short = make_federation("short", quorum=2, **OPTIONS)
    stopped(short, 4)
    with pytest.raises(RunError) as caught:
        exclude(short.folder, OUT, 1)
    assert "expected one of 3, 4, 5;" in (caught.value.hint or "")
    long = make_federation("long", quorum=2, kept_rounds=5, **OPTIONS)
    stopped(long, 4)
    assert exclude(long.folder, OUT, 1) == 1
    assert checkpoint.kept_rounds(long.folder.rounds) == [0]
    long.coordinator().run()  # the others' memories of so long ago are there, or not needed
    assert final(long) == final(without_it(make_federation, 0))


def test_what_cannot_be_excluded_is_named(make_federation: MakeFederation) -> None:
    federation = make_federation(**OPTIONS | {"rounds": 1})
    stopped(federation, 1)
    for site, first in (("centre-x", None), (OUT, 3), (OUT, 0)):
        with pytest.raises(ConfigError):
            exclude(federation.folder, site, first)
    exclude(federation.folder, OUT)
    exclude(federation.folder, "centre-b")
    with pytest.raises(ConfigError, match="none: only one site trains"):
        exclude(federation.folder, "centre-a")
    federation.coordinator().run()
    with pytest.raises(RunError, match="finished"):
        exclude(federation.folder, "centre-a")


def test_a_kill_while_a_run_goes_back_leaves_a_run_that_came_less_far(
    make_federation: MakeFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make_federation(**OPTIONS)
    stopped(federation, 3)
    remove, calls = checkpoint.shutil.rmtree, [0]

    def dies(*arguments: Any, **options: Any) -> None:
        calls[0] += not options
        if calls[0] == 2:
            raise KeyboardInterrupt
        remove(*arguments, **options)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", dies)
    with pytest.raises(KeyboardInterrupt):
        exclude(federation.folder, OUT, 2)
    monkeypatch.undo()
    assert federation.folder.excluded() == {}
    assert checkpoint.latest(federation.folder.rounds).round == 1
    federation.coordinator().run()
    assert federation.folder.summary.exists()


def test_damaged_exclusions_are_an_error(make_federation: MakeFederation) -> None:
    federation = make_federation(**OPTIONS)
    federation.folder.exclusions.write_text("[]", encoding="utf-8")
    with pytest.raises(RunError, match=r"exclusions\.json"):
        federation.coordinator()


def test_from_without_a_site_is_a_wrong_use(tmp_path: Any) -> None:
    result = CliRunner().invoke(cli.app, ["resume", str(tmp_path), "--from", "2"])
    assert isinstance(result.exception, ConfigError)


def test_no_sound_checkpoint_is_an_error(make_federation: MakeFederation) -> None:
    federation = make_federation(**OPTIONS)
    stopped(federation, 1)
    for path in federation.folder.rounds.glob("0*"):
        (path / "state.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError):
        exclude(federation.folder, OUT)
