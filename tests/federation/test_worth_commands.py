"""The commands that say what a federation is worth, over sites in this process."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from her2_common.errors import RunError
from her2_server import cli, commands
from her2_server.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable as MakeFederation

CENTRES = {"centre-a": (60, ("us", "mri")), "centre-c": (60, ("mri",)), "centre-d": (60, ("us",))}


class Command:
    """``command(federation, "run", ...)``: what the command prints, over fresh sites."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.again: list[str] = []
        """What each run at the SuperLink was to be gone on with."""

    def __call__(self, federation: Any, *words: str | Path) -> Any:
        @contextmanager
        def conduct(*_: object, again: str, **__: object) -> Iterator[SimpleNamespace]:
            self.again.append(again)
            yield SimpleNamespace(grid=federation.grid(), run_id=1)

        self.monkeypatch.setattr(commands, "conduct", conduct)
        self.capsys.readouterr()
        cli.app(list(map(str, words)), standalone_mode=False)
        return self.capsys.readouterr()

    def broken_off(self, name: str, fault: Any, federation: Any, *words: str | Path) -> RunError:
        """The error with which the command ends if ``commands.<name>`` ends in ``fault``."""
        with self.monkeypatch.context() as broken:
            broken.setattr(commands, name, fault)
            with pytest.raises(RunError) as caught:
                self(federation, *words)
        return caught.value


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


def test_run_can_compare_at_its_end(
    make_federation: MakeFederation, command: Command, tmp_path: Path
) -> None:
    federation = make_federation(centres=CENTRES, rounds=1)
    out = tmp_path / "runs"
    text = command(federation, "run", federation.folder.config, "--out", out, "--compare", "--json")
    assert json.loads(text.out)["run"]["name"] == "test"
    compared = json.loads((out / "compare.json").read_text())
    assert set(compared["centres"]) == set(CENTRES)
    assert command.again == [f"her2-server resume {out}", f"her2-server compare {out}"]
    # Later, and again, by its own command
    assert json.loads(command(federation, "compare", out, "--json").out) == compared


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def ended(*_: object) -> None:
    signal.raise_signal(signal.SIGTERM)


def interrupted_at(
    command: Command, name: str, fault: Any, federation: Any, out: Path
) -> str | None:
    """The hint of a `run --compare` that ends in ``fault`` where it calls ``commands.<name>``."""
    words = ("run", federation.folder.config, "--compare", "--out", out)
    error = command.broken_off(name, fault, federation, *words)
    assert (str(error), error.exit_code) == ("interrupted", 130)
    return error.hint


@pytest.mark.parametrize("fault", [interrupted, ended])
def test_broken_off_in_its_run_it_is_resumed_and_says_how_to_compare(
    make_federation: MakeFederation, command: Command, tmp_path: Path, fault: Any
) -> None:
    federation, out = make_federation(centres=CENTRES, rounds=1), tmp_path / "out"
    hint = interrupted_at(command, "_train", fault, federation, out)
    assert hint == f"go on with it: her2-server resume {out}"
    said = command(federation, "resume", out).err
    assert said.endswith(f"to compare with local models: her2-server compare {out}\n")
    assert not (out / "compare.json").exists()


@pytest.mark.parametrize("fault", [interrupted, ended])
def test_broken_off_in_its_comparison_it_is_compared_again(
    make_federation: MakeFederation, command: Command, tmp_path: Path, fault: Any
) -> None:
    federation, out = make_federation(centres=CENTRES, rounds=1), tmp_path / "out"
    hint = interrupted_at(command, "conduct_comparison", fault, federation, out)
    assert hint == f"go on with it: her2-server compare {out}"
    with pytest.raises(RunError, match="the run is finished") as finished:
        command(federation, "resume", out)
    assert str(finished.value.hint).endswith(f"her2-server compare {out}")
    command(federation, "compare", out)
    with pytest.raises(RunError, match="the run is finished") as finished:
        command(federation, "resume", out)
    assert finished.value.hint == f"its report is {out / 'report.html'}"


def test_what_never_began_has_nothing_to_go_on_with(tmp_path: Path) -> None:
    nothing = commands.RunFolder(tmp_path)
    with pytest.raises(KeyboardInterrupt), commands._interruptible(nothing, "her2-server resume"):
        raise KeyboardInterrupt


def test_resume_draws_the_report_that_a_killed_run_left_out(
    make_federation: MakeFederation, command: Command
) -> None:
    federation = make_federation(centres=CENTRES, rounds=1)
    federation.coordinator().run()
    folder, report = federation.folder, federation.folder.path / "report.html"
    drawn = report.read_text()
    report.unlink()
    folder.settled.mkdir()
    printed = command(federation, "resume", folder.path, "--json").out
    assert json.loads(printed)["run"]["name"] == "test"
    assert (report.read_text(), folder.settled.exists()) == (drawn, False)
    with pytest.raises(RunError, match="its test split is not scored again"):
        command(federation, "resume", folder.path)


def test_compare_wants_a_finished_run(make_federation: MakeFederation, command: Command) -> None:
    federation = make_federation(centres=CENTRES)
    with pytest.raises(RunError, match="not finished"):
        command(federation, "compare", federation.folder.path)


def test_leave_one_out_is_one_command_and_goes_on(
    make_federation: MakeFederation,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    federation = make_federation(centres=CENTRES, rounds=2)
    out = tmp_path / "runs"
    words = ("leave-one-out", federation.folder.config, "--out", out, "--json")
    begun: list[str] = []
    train = commands._train

    def dies(folder: Any, grid: Any, notify: Any) -> None:
        begun.append(folder.path.name)
        if len(begun) == 2:
            raise RunError("the coordinator is gone")
        train(folder, grid, notify)

    monkeypatch.setattr(commands, "_train", dies)
    with pytest.raises(RunError, match="is gone"):
        command(federation, *words)
    document = json.loads(command(federation, *words).out)
    whole = f"her2-server leave-one-out {federation.folder.config} --out {out}"
    assert set(command.again) == {whole}
    expected = [f"test-without-{name}" for name in CENTRES]
    assert begun == [expected[0], expected[1], expected[1], expected[2]]
    assert json.loads((out / "test-leave-one-out.json").read_text()) == document
    assert set(document["centres"]) == set(CENTRES)
    # One site alone trains nothing that is finished, and keeps what the others gave.
    again = json.loads(command(federation, *words, "--without", "centre-c").out)
    assert again == document
    assert len(begun) == 4


def test_a_site_left_out_alone_is_gone_on_with_alone(
    make_federation: MakeFederation, command: Command, tmp_path: Path
) -> None:
    federation = make_federation(centres=CENTRES)
    words = ("leave-one-out", federation.folder.config, "--out", tmp_path, "--without", "centre-c")
    error = command.broken_off("_train", interrupted, federation, *words)
    assert error.hint == f"go on with it: her2-server {' '.join(map(str, words))}"


def test_a_run_takes_its_lock_before_it_freezes_its_configuration(
    make_federation: MakeFederation, command: Command, tmp_path: Path
) -> None:
    federation = make_federation(centres=CENTRES, rounds=1)
    out = tmp_path / "runs"
    with RunFolder(out).held(), pytest.raises(RunError, match="another coordinator"):
        command(federation, "run", federation.folder.config, "--out", out)
    assert not RunFolder(out).config.exists()


def test_a_full_disk_ends_a_run_with_the_command_that_goes_on(
    make_federation: MakeFederation, command: Command, tmp_path: Path
) -> None:
    federation = make_federation(centres=CENTRES, rounds=1)
    out = tmp_path / "runs"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out / "metrics.jsonl"))

    error = command.broken_off(
        "_train", full, federation, "run", federation.folder.config, "--out", out
    )
    assert f"{out / 'metrics.jsonl'}: No space" in str(error)
    assert f"her2-server resume {out}" in str(error.hint)
