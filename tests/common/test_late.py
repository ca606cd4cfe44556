"""A late command is listed without being found, and is itself when it is called."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from her2_common.console import main_for, new_app
from her2_common.late import late


class Program:
    """A command line with a late command ``add``, and how often that was looked for."""

    def __init__(self) -> None:
        self.app = new_app("A program.")
        self.found = 0

        @self.app.command()
        def other() -> None:
            """Do something else."""

        @late(self.app, "add")
        def _add() -> Callable[..., None]:
            """Add two numbers."""
            self.found += 1

            def add(
                first: int, second: Annotated[int, typer.Option(help="The other one.")] = 2
            ) -> None:
                """Add two numbers.

                They are printed.
                """
                typer.echo(first + second)

            return add


@pytest.fixture
def program() -> Program:
    return Program()


def test_it_is_listed_by_its_line_and_not_looked_for(program: Program) -> None:
    shown = CliRunner().invoke(program.app, ["--help"])
    assert shown.exit_code == 0
    assert "add    Add two numbers." in shown.output
    assert CliRunner().invoke(program.app, ["other"]).exit_code == 0
    assert program.found == 0


def test_called_it_has_its_own_options_and_help(program: Program) -> None:
    assert CliRunner().invoke(program.app, ["add", "3", "--second", "4"]).output == "7\n"
    shown = CliRunner().invoke(program.app, ["add", "--help"], prog_name="her2-test")
    assert "her2-test add" in shown.output
    assert "They are printed." in shown.output
    assert "The other one." in shown.output
    command = typer.main.get_command(program.app).commands["add"]  # type: ignore[attr-defined]
    assert [option for p in command.params for option in p.opts] == ["first", "--second"]


@pytest.mark.parametrize("words", [("add", "many"), ("add",), ("add", "1", "--third", "2")])
def test_its_wrong_use_is_told_as_any_others(
    program: Program,
    words: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["her2-test", *words])
    with pytest.raises(SystemExit) as left:
        main_for(program.app, "her2-test")()
    assert left.value.code == 2
    assert "hint: see her2-test add --help" in capsys.readouterr().err
