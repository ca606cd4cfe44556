"""What `her2-server watch` says of a run, in words and in 80 columns."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from her2_client.keys import new_node_key
from her2_common.errors import RunError
from her2_server.cli import app
from her2_server.run_folder import RunFolder
from her2_server.status import COMPARISON, Status
from her2_server.watch import BARS, curve, page, show, state_of

SITES = ("centre-a", "centre-of-a-rather-long-name-of-40-chars")


def line(number: int, auc: float | None) -> dict[str, Any]:
    part = {"status": "accepted", "reason": None, "loss": 0.6, "sent_bytes": 1_400_000}
    return {
        "round": number,
        "seconds": {"total": 30.0},
        "loss": 0.6,
        "validation": {"n": 10, "auc": None if auc is None else {"estimate": auc}},
        "sites": {name: part | {"received_bytes": 2_000_000} for name in SITES},
    }


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    document = {
        "name": "her2-2026",
        "superlink": {
            "address": "localhost:1",
            "root_certificates": "ca.crt",
            "superexec_secret_file": "secret",
        },
        "sites": [{"name": name, "public_key": new_node_key()[1]} for name in SITES],
        "run": {"rounds": 10},
    }
    (tmp_path / "federation.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    run = RunFolder(tmp_path / "run")
    run.create(tmp_path / "federation.yaml")
    return run


@pytest.fixture
def status(folder: RunFolder) -> Status:
    """A run in its fourth round."""
    folder.write_metrics([line(1, 0.5), line(2, 0.6), line(3, 0.55)])
    status = Status(folder.status, "her2-2026", 10, SITES)
    status.step("round 4", 3)
    status.site(SITES[0], "working", None)
    return status


@pytest.fixture
def held(folder: RunFolder) -> Iterator[None]:
    with folder.held():
        yield


def shown(folder: RunFolder) -> str:
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        console.print(page(state_of(folder), folder))
    return capture.get()


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        state_of(RunFolder(tmp_path))


def test_a_run_that_has_not_begun(folder: RunFolder) -> None:
    state = state_of(folder)
    assert (state["state"], state["round"], state["rounds"]) == ("not begun", 0, 10)
    assert "not begun" in shown(folder)


@pytest.mark.usefixtures("held")
def test_a_run_at_work(folder: RunFolder, status: Status) -> None:
    state = state_of(folder)
    assert (state["state"], state["step"], state["round"]) == ("training", "round 4", 3)
    assert state["validation"] == [0.5, 0.6, 0.55]
    assert state["best_round"] == 1  # its weights were scored in round 2
    assert (state["seconds_a_round"], state["remaining_seconds"]) == (30.0, 210.0)
    first = state["sites"][0]
    assert (first["state"], first["sent_bytes"]) == ("working", 3 * 1_400_000)
    text = shown(folder)
    for words in (
        "her2-2026  training  round 3/10  round 4 for 0.0 s",
        "validation AUC ▁█▅ 0.550, best after round 1",
        "a round takes 30 s, the rest about 4 min",
        "working",
        "4.2 MB",
        "6.0 MB",
    ):
        assert words in text.replace("round 4 for 0.1 s", "round 4 for 0.0 s")


@pytest.mark.usefixtures("held")
def test_a_run_that_waits_names_for_whom(folder: RunFolder, status: Status) -> None:
    status.site(SITES[1], "missing", "the site was lost")
    status.pause({SITES[1]: "the site was lost"})
    state = state_of(folder)
    assert state["state"] == "paused"
    assert state["waits_for"] == {SITES[1]: "the site was lost"}
    assert f"waits for {SITES[1]}: the site was lost" in shown(folder)
    status.pause({})
    assert state_of(folder)["state"] == "training"


@contextmanager
def killed_while_it_waits(folder: RunFolder, step: str) -> Iterator[None]:
    """A coordinator in a process of its own waits for centre-a in ``step``, and is killed when the
    block is over."""
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from her2_server.run_folder import RunFolder\n"
        "from her2_server.status import Status\n"
        "folder = RunFolder(Path(sys.argv[1]))\n"
        "with folder.held():\n"
        "    status = Status(folder.status, 'her2-2026', 10, ['centre-a'])\n"
        "    status.step(sys.argv[2], 0)\n"
        "    status.pause({'centre-a': 'not online'})\n"
        "    print('up', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(folder.path), step]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        yield
        child.send_signal(signal.SIGKILL)
        child.wait()


def test_a_killed_run_looks_different_from_a_waiting_one(folder: RunFolder) -> None:
    with killed_while_it_waits(folder, "round 1"):
        assert state_of(folder)["state"] == "paused"
    state = state_of(folder)
    assert state["state"] == "gone"
    text = shown(folder)
    assert "the coordinator's process is gone without a word" in text
    assert "her2-server resume" in text
    assert "waits for" not in text


def test_a_run_that_stopped_says_why(folder: RunFolder, status: Status) -> None:
    status.end("round 4: expected 2 sites, got 1")
    state = state_of(folder)
    assert (state["state"], state["why"]) == ("stopped", "round 4: expected 2 sites, got 1")
    assert state["remaining_seconds"] is None
    assert "stopped: round 4: expected 2 sites, got 1" in shown(folder)


def test_a_finished_run(folder: RunFolder, status: Status) -> None:
    folder.write_json(folder.summary, {})
    status.end("finished")
    assert state_of(folder)["state"] == "finished"
    with folder.held():  # by a comparison, which is no training
        assert state_of(folder)["state"] == "finished"

    (folder.path / "report.html").touch()
    assert f"report      {folder.path}" in shown(folder).replace("\n", "")
    assert "comparison" not in shown(folder)


@pytest.fixture
def comparing(folder: RunFolder) -> Status:
    """The comparison of a finished run."""
    folder.write_metrics([line(n, 0.5) for n in range(1, 11)])
    folder.write_json(folder.summary, {})
    status = Status(folder.status, "her2-2026", 10, SITES)
    status.step(COMPARISON, 10)
    return status


def test_a_comparison_at_work_is_not_finished(folder: RunFolder, comparing: Status) -> None:
    comparing.site(SITES[0], "working", None)
    comparing.site(SITES[1], "refused", "site error: policy")
    with folder.held():
        state, text = state_of(folder), shown(folder)
        comparing.pause({SITES[0]: "not online"})
        assert state_of(folder)["state"] == "comparing"
        assert f"waits for {SITES[0]}: not online" in shown(folder)
    assert (state["state"], state["step"], state["why"]) == ("comparing", "compare", None)
    assert state["remaining_seconds"] is None
    assert "comparing  round 10/10  compare for" in text
    assert "the run is finished; each site trains alone" in text
    assert "working" in text
    assert "site error: policy" in " ".join(text.split())


def test_a_comparison_that_was_killed_or_stopped_says_how_to_go_on(
    folder: RunFolder, comparing: Status
) -> None:
    with killed_while_it_waits(folder, COMPARISON):
        assert state_of(folder)["state"] == "comparing"
    assert (state_of(folder)["state"], state_of(folder)["step"]) == ("gone", "compare")
    killed = shown(folder)
    with pytest.raises(KeyboardInterrupt), comparing.ended():
        raise KeyboardInterrupt
    assert state_of(folder)["why"] == "interrupted"
    for text, why in ((killed, "gone without a word"), (shown(folder), "stopped: interrupted")):
        assert "the run is finished, its comparison is not" in text
        assert why in text
        assert "her2-server compare" in text
        assert "resume" not in text


def test_after_a_comparison_it_says_where_it_is(folder: RunFolder, comparing: Status) -> None:
    with comparing.ended():
        (folder.path / "compare.json").touch()
    state = state_of(folder)
    assert state["state"] == "finished"
    assert state["comparison"] == str(folder.path / "compare.json")
    assert f"comparison  {folder.path}" in shown(folder).replace("\n", "")


def test_what_ends_a_block_is_written_down(comparing: Status) -> None:
    with pytest.raises(RunError), comparing.ended():
        raise RunError("got none")
    assert comparing.document["ended"] == "got none"
    with pytest.raises(ZeroDivisionError), comparing.ended():
        raise ZeroDivisionError
    assert comparing.document["ended"] == "ZeroDivisionError (see its terminal)"


def test_looking_on_goes_on_from_a_run_to_its_comparison(
    folder: RunFolder, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between them the run is finished, but its folder held."""
    story: list[str] = []
    held = folder.held()

    def meanwhile(_: float) -> None:
        if not story:
            folder.write_json(folder.summary, {})
            status.end("finished")
        elif len(story) == 1:
            Status(folder.status, "her2-2026", 10, SITES).step(COMPARISON, 10)
        else:
            status.end("finished")
            held.__exit__(None, None, None)
        story.append(state_of(folder)["state"])

    monkeypatch.setattr("her2_server.watch.time.sleep", meanwhile)
    held.__enter__()
    assert show(folder)["state"] == "finished"
    assert story == ["finished", "comparing", "finished"]


def test_looking_does_not_keep_a_coordinator_out(folder: RunFolder) -> None:
    assert not folder.is_held()
    with folder.held():
        assert folder.is_held()
        assert folder.is_held()
    assert not folder.is_held()
    with folder.held():
        pass


@pytest.mark.usefixtures("held")
def test_nothing_is_wider_than_80_columns(folder: RunFolder, status: Status) -> None:
    status.site(SITES[1], "refused", "site error: " + "x" * 60)
    status.pause({SITES[1]: "site error: " + "x" * 60})
    folder.write_metrics([line(n, 0.5 + n / 500) for n in range(1, 121)])
    assert max(map(len, shown(folder).splitlines())) <= 80


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sites": {}}'])
def test_a_status_that_cannot_be_read_is_no_end(folder: RunFolder, content: str) -> None:
    folder.status.write_text(content)
    assert state_of(folder)["state"] in ("not begun", "gone")


def test_the_command(folder: RunFolder, status: Status) -> None:
    done = CliRunner().invoke(app, ["watch", str(folder.path), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["state"] == "gone"
    done = CliRunner().invoke(app, ["watch", str(folder.path), "--once"])
    assert done.exit_code == 0


def test_the_status_says_since_when_a_site_is_in_its_state(folder: RunFolder) -> None:
    status = Status(folder.status, "her2-2026", 10, SITES)
    status.step("round 1", 0)
    status.site(SITES[0], "offline", "not online")
    first = json.loads(folder.status.read_text())["sites"][SITES[0]]
    status.site(SITES[0], "offline", "not online")  # no news
    assert json.loads(folder.status.read_text())["sites"][SITES[0]] == first
    since = datetime.fromisoformat(first["since"])
    assert timedelta(0) <= datetime.now(UTC) - since < timedelta(minutes=1)
    status.site(SITES[0], "working", None)
    assert json.loads(folder.status.read_text())["sites"][SITES[0]]["state"] == "working"


@given(st.lists(st.none() | st.floats(0, 1), max_size=200), st.integers(1, 60))
def test_a_curve_keeps_its_order_and_its_width(values: list[float | None], width: int) -> None:
    text = curve(values, width)
    assert len(text) <= width
    assert set(text) <= set(BARS) | {" "}
    known = [v for v in values if v is not None]
    if len(values) <= width and known:
        heights = {v: BARS.find(c) for v, c in zip(values, text, strict=True) if v is not None}
        assert heights[min(known)] == 0
        assert max(known) == min(known) or heights[max(known)] == len(BARS) - 1
        ordered = [heights[v] for v in sorted(heights)]
        assert ordered == sorted(ordered)
    if values and values[-1] is not None:
        assert text[-1] in BARS
