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
COMPILER = ("sympy", "torch._dynamo", "torch._inductor")
"""Of torch, 2.6 s a process; some of its public functions import it, and we compile nothing."""
TRAIN = """
import numpy as np
import torch
from her2_client import app
from her2_client.cache import image_shape
from her2_client.cohort import Cohort
from her2_client.engine import make_deterministic, ready_model
from her2_client.scoring import score
from her2_client.training import train_round
from her2_common.cases import MODALITIES
from her2_common.config import RunConfig

make_deterministic(1)
plan = RunConfig(preset="paper", image_size=32, volume_size=16, local_epochs=1)
images = {m: torch.zeros(2, *image_shape(m, 32, 16)).half() for m in MODALITIES}
rows = dict.fromkeys(images, np.arange(2))
labels = torch.tensor([0, 1])
cohort = Cohort(images, rows, torch.zeros(2, 5), labels, np.ones(2, bool), labels - 1)
model = ready_model(plan, {}, torch.device("cpu"))
assert train_round(model, cohort, plan, site="a", round_number=1).steps == 1
score(model, cohort)
"""
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


def imported(code: str, *words: str, watched: tuple[str, ...] = HEAVY) -> tuple[str, set[str]]:
    """What ``code`` prints, and which ``watched`` modules a fresh Python has imported after it."""
    code += f"\nprint('after:', *(name for name in {watched} if name in sys.modules))"
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


def test_a_site_trains_and_scores_without_torchs_compiler() -> None:
    assert imported(TRAIN, watched=COMPILER)[1] == set()


def test_a_coordinator_is_imported_without_torchs_compiler() -> None:
    assert imported("import her2_server.coordinator", watched=COMPILER)[1] == set()


@pytest.mark.parametrize("app", [server, client, deploy])
def test_late_commands_are_listed_by_the_first_line_of_their_own_help(app: typer.Typer) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    late = [command for command in commands.values() if hasattr(command, "own")]
    assert late
    for command in late:
        assert command.help == command.own.help.splitlines()[0]
