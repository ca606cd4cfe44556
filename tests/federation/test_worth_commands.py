"""The commands that say what a federation is worth, over sites in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from her2_common.errors import RunError
from her2_server import cli

if TYPE_CHECKING:
    from collections.abc import Callable as MakeFederation

CENTRES = {"centre-a": (60, ("us", "mri")), "centre-c": (60, ("mri",)), "centre-d": (60, ("us",))}

Command = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``command(federation, "run", ...)``: the command's standard output, over fresh sites."""

    def run(federation: Any, *words: str) -> str:
        @contextmanager
        def conduct(*_: object, **__: object) -> Iterator[SimpleNamespace]:
            yield SimpleNamespace(grid=federation.grid(), run_id=1)

        monkeypatch.setattr(cli, "conduct", conduct)
        capsys.readouterr()
        cli.app(list(words), standalone_mode=False)
        return capsys.readouterr().out

    return run


def test_run_can_compare_at_its_end(
    make_federation: MakeFederation, command: Command, tmp_path: Path
) -> None:
    federation = make_federation(centres=CENTRES, rounds=1)
    out = tmp_path / "runs"
    text = command(
        federation, "run", str(federation.folder.config), "--out", str(out), "--compare", "--json"
    )
    assert json.loads(text)["run"]["name"] == "test"
    compared = json.loads((out / "compare.json").read_text())
    assert set(compared["centres"]) == set(CENTRES)
    # Later, and again, by its own command
    assert json.loads(command(federation, "compare", str(out), "--json")) == compared


def test_resume_draws_the_report_that_a_killed_run_left_out(
    make_federation: MakeFederation, command: Command
) -> None:
    federation = make_federation(centres=CENTRES, rounds=1)
    federation.coordinator().run()
    folder, report = federation.folder, federation.folder.path / "report.html"
    drawn = report.read_text()
    report.unlink()
    folder.settled.mkdir()
    printed = command(federation, "resume", str(folder.path), "--json")
    assert json.loads(printed[printed.index("{") :])["run"]["name"] == "test"
    assert (report.read_text(), folder.settled.exists()) == (drawn, False)
    with pytest.raises(RunError, match="its test split is not scored again"):
        command(federation, "resume", str(folder.path))


def test_compare_wants_a_finished_run(make_federation: MakeFederation, command: Command) -> None:
    federation = make_federation(centres=CENTRES)
    with pytest.raises(RunError, match="not finished"):
        command(federation, "compare", str(federation.folder.path))


def test_leave_one_out_is_one_command_and_goes_on(
    make_federation: MakeFederation,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    federation = make_federation(centres=CENTRES, rounds=2)
    words = (
        "leave-one-out",
        str(federation.folder.config),
        "--out",
        str(tmp_path / "runs"),
        "--json",
    )
    begun: list[str] = []
    train = cli._train

    def dies(folder: Any, grid: Any, notify: Any) -> None:
        begun.append(folder.path.name)
        if len(begun) == 2:
            raise RunError("the coordinator is gone")
        train(folder, grid, notify)

    monkeypatch.setattr(cli, "_train", dies)
    with pytest.raises(RunError, match="is gone"):
        command(federation, *words)
    document = json.loads(command(federation, *words))
    expected = [f"test-without-{name}" for name in CENTRES]
    assert begun == [expected[0], expected[1], expected[1], expected[2]]
    assert json.loads((tmp_path / "runs" / "test-leave-one-out.json").read_text()) == document
    assert set(document["centres"]) == set(CENTRES)
    # One site alone trains nothing that is finished, and keeps what the others gave.
    again = json.loads(command(federation, *words, "--without", "centre-c"))
    assert again == document
    assert len(begun) == 4
