"""What the demo asks its federation, with each of its options, and what it says."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest

from her2_client.keys import init_site
from her2_common.config import SiteConfig, Task, load
from her2_common.response.delong import Discrimination
from her2_deploy import demo as demo_module
from her2_deploy.demo import CENTRES, Demo, allow_all, run_demo, verdicts, what_to_type
from her2_deploy.processes import Child, program
from her2_server.compare import centre_record

DEMO = Demo(
    folder=Path("demo"),
    out=Path("runs/demo"),
    cases=300,
    rounds=2,
    local_epochs=1,
    scenario="default",
    seed=1,
)


def comparison(**gaps: float) -> dict[str, Any]:
    """compare.json of centres whose federated AUC exceeds the local one by these gaps."""
    centres: dict[str, Any] = {}
    for name, gap in gaps.items():
        areas = np.array([0.75, 0.75 + gap])
        found = Discrimination(("local", "federated"), 40, 20, areas, np.eye(2) * 1e-3)
        centres[name.replace("_", "-")] = centre_record(found, withheld=False)
    return {"centres": centres}


def test_a_line_a_centre_says_the_verdict() -> None:
    document = comparison(centre_a=-0.15, centre_b=-0.03, centre_c=0.15, centre_d=0.01)
    document["centres"]["centre-e"] = centre_record(None, withheld=True)
    document["centres"]["centre-f"] = {"status": "missing", "reason": "the site was lost"}
    head, lines = verdicts(document).splitlines()[:2], verdicts(document).splitlines()[2:]
    assert "federation's model" in head[0]
    assert [line.split("  ", 1)[0] for line in lines] == list(document["centres"])
    assert [line.rsplit("  ", 1)[1] for line in lines] == [
        "worse: an alarm",
        "perhaps worse",
        "better",
        "no difference shown",
        "too few test cases of a class",
        "the site was lost",
    ]
    assert "0.600  0.750  -0.150 (-0.238 to -0.062)" in lines[0]
    assert max(map(len, head + lines)) <= 80


def test_the_screen_says_commands_that_can_be_typed() -> None:
    here = Path(program("her2-server")).parents[2]
    text = what_to_type(DEMO, here)
    assert len(text.splitlines()) <= 23
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("  ")]
    assert commands[0] == ["cd", str(here)]
    assert {here / command[0] for command in commands[1:]} == {Path(program("her2-server"))}
    assert [command[1:] for command in commands[1:]] == [
        ["compare", "runs/demo"],
        ["response", "runs/demo"],
        ["leave-one-out", "demo/coordinator/federation.yaml"],
    ]
    assert max(len(line) for line in text.splitlines() if not line.startswith("  cd")) <= 80


def test_the_screen_says_where_runs_lie_elsewhere() -> None:
    text = what_to_type(replace(DEMO, out=Path("a folder/demo")), Path("/elsewhere"))
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("  ")]
    assert commands[1] == [program("her2-server"), "compare", "a folder/demo"]
    assert commands[3][-2:] == ["--out", "a folder"]


def test_every_task_is_allowed_at_a_demos_site_and_nothing_else_changes(tmp_path: Path) -> None:
    init_site(tmp_path, name="centre-a", address="localhost:1")
    before = load(SiteConfig, tmp_path / "site.yaml")
    allow_all(tmp_path / "site.yaml")
    after = load(SiteConfig, tmp_path / "site.yaml")
    assert set(after.policy.allowed_tasks) == set(get_args(Task))
    policy = before.policy.model_copy(update={"allowed_tasks": after.policy.allowed_tasks})
    assert after == before.model_copy(update={"policy": policy})


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that a demo calls; only `her2-client init` does what it is asked."""
    called: list[list[str]] = []

    def call(command: Sequence[str], *, capture: bool = False) -> str:
        words = [Path(command[0]).name, *command[1:]]
        called.append(words)
        if words[1] == "init":
            option = dict(zip(words[2::2], words[3::2], strict=True))
            return init_site(
                Path(option["--folder"]), name=option["--name"], address=option["--superlink"]
            )
        if "--compare" in words:
            path = Path(words[words.index("--out") + 1]) / "compare.json"
            path.write_text(json.dumps(comparison(centre_a=-0.03)), encoding="utf-8")
        return ""

    @contextmanager
    def child(name: str, *_: object) -> Iterator[Child]:
        yield Child(name, SimpleNamespace(poll=lambda: None), Path(f"{name}.log"))  # type: ignore[arg-type]

    monkeypatch.setattr(demo_module, "call", call)
    monkeypatch.setattr(demo_module, "child", child)
    monkeypatch.setattr(demo_module, "wait_for_tls", lambda *_: None)
    monkeypatch.setattr(demo_module, "stop_together", lambda _: None)
    return called


def in_folder(folder: Path, **options: bool) -> Demo:
    return replace(DEMO, folder=folder / "demo", out=folder / "runs" / "demo", **options)


@pytest.mark.parametrize("compare", [False, True])
def test_sites_are_compared_if_it_is_asked_for(
    commands: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str], compare: bool
) -> None:
    demo = in_folder(tmp_path, compare=compare)
    run_demo(demo)
    federation = str(demo.folder / "coordinator" / "federation.yaml")
    expected = ["her2-server", "run", federation, "--out", str(demo.out)]
    assert commands[-1] == expected + ["--compare"] * compare
    said = capsys.readouterr().err
    assert ("perhaps worse" in said) == compare
    assert "4/4" in said
    assert "Ctrl-C" not in said


def test_it_stays_up_until_ctrl_c_and_names_who_ends(
    commands: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    beats = iter(range(3))

    @contextmanager
    def child(name: str, *_: object) -> Iterator[Child]:
        ended = name == "centre-b"
        process = SimpleNamespace(poll=lambda: 1 if ended else None)
        yield Child(name, process, Path(f"{name}.log"))  # type: ignore[arg-type]

    def sleep(_: float) -> None:
        if next(beats, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(demo_module, "child", child)
    monkeypatch.setattr(demo_module.time, "sleep", sleep)
    run_demo(in_folder(tmp_path, keep=True))
    said = capsys.readouterr().err
    assert said.count("centre-b has ended") == 1
    assert not any(f"{name} has ended" in said for name in CENTRES if name != "centre-b")
    assert "5/5" in said
    assert said.index("leave-one-out") < said.index("done")
