"""What takes seconds to import is imported by the commands that need it, when they are called."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from her2_client.cli import app as client
from her2_deploy.cli import app as deploy
from her2_server.cli import app as server

HEAVY = ("flwr", "matplotlib", "pandas", "pydicom", "scipy", "torch")
LEAVE = """
from {package}.cli import main
try:
    main()
except SystemExit as left:
    print(left.code)
"""
FAULTY = {
    "her2_server": [
        ["run", "federation.yaml"],
        ["leave-one-out", "federation.yaml"],
    ],
    "her2_client": [["start", "--site", "federation.yaml"]],
}


def imported(code: str, *words: str) -> tuple[str, set[str]]:
    """What ``code`` prints, and which heavy modules a fresh Python has imported after it."""
    code += f"\nprint('after:', *(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    text, _, names = done.stdout.rpartition("after:")
    return text, set(names.split())


@pytest.mark.parametrize(
    ("package", "allowed"),
    [("her2_server", set()), ("her2_client", set()), ("her2_deploy", set())],
)
def test_a_command_line_imports_no_heavy_library(package: str, allowed: set[str]) -> None:
    assert imported(f"import {package}.cli")[1] <= allowed


@pytest.mark.parametrize("command", ["resume", "watch", "report", "compare"])
def test_a_folder_without_a_run_is_told_before_any_is(command: str, tmp_path: Path) -> None:
    text, names = imported(LEAVE.format(package="her2_server"), command, str(tmp_path / "nowhere"))
    assert text == "1\n"
    assert names == set()


@pytest.mark.parametrize("content", [None, "rounds: ["])
@pytest.mark.parametrize(
    ("package", "words"), [(package, words) for package in FAULTY for words in FAULTY[package]]
)
def test_a_faulty_configuration_is_told_before_any_is(
    package: str, words: list[str], content: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "federation.yaml"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    code = LEAVE.format(package=package)
    text, names = imported(code, *(w.replace("federation.yaml", str(path)) for w in words))
    assert text == "2\n"
    assert names == set()


@pytest.mark.parametrize("app", [server, client, deploy])
def test_late_commands_are_listed_by_the_first_line_of_their_own_help(app: typer.Typer) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    late = [command for command in commands.values() if hasattr(command, "own")]
    assert late
    for command in late:
        assert command.help == command.own.help.splitlines()[0]
