"""The folder of a run: one coordinator, a frozen configuration, metrics that survive a crash."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from her2_client.keys import new_node_key
from her2_common.errors import ConfigError, RunError
from her2_server.run_folder import RunFolder

KEYS = [new_node_key()[1] for _ in range(2)]
DOCUMENT: dict[str, Any] = {
    "name": "test",
    "superlink": {
        "address": "localhost:9092",
        "root_certificates": "ca.crt",
        "superexec_secret_file": "secret",
    },
    "sites": [{"name": "a", "public_key": KEYS[0]}, {"name": "b", "public_key": KEYS[1]}],
    "run": {"rounds": 3},
}


def make(folder: Path, **changes: Any) -> RunFolder:
    folder.mkdir(exist_ok=True)
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(DOCUMENT | changes))
    run = RunFolder(folder / "run")
    run.create(file)
    return run


def test_the_configuration_is_frozen_with_absolute_paths(tmp_path: Path) -> None:
    run = make(tmp_path)
    (tmp_path / "run.yaml").write_text("changed: later")
    config = run.load_config()
    assert config.name == "test"
    assert config.run.rounds == 3
    assert config.superlink.root_certificates == tmp_path / "ca.crt"


def test_a_folder_holds_one_run(tmp_path: Path) -> None:
    run = make(tmp_path)
    before = run.config.read_bytes()
    with pytest.raises(RunError, match="holds a run already") as caught:
        run.create(tmp_path / "run.yaml")
    assert "her2-server resume" in str(caught.value.hint)
    assert run.config.read_bytes() == before


def test_a_faulty_configuration_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rounds"):
        make(tmp_path, run={"rounds": 0})
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(RunError, match="holds no run"):
        run.load_config()
    assert run.read_metrics() == []
    assert run.flower_run() is None
    run.require_free()


def test_the_hash_is_of_what_is_trained_and_by_whom(tmp_path: Path) -> None:
    base = make(tmp_path / "a").config_hash()
    assert make(tmp_path / "b").config_hash() == base  # other absolute paths
    elsewhere = DOCUMENT["superlink"] | {"address": "elsewhere:1"}
    assert make(tmp_path / "c", superlink=elsewhere).config_hash() == base
    others = [
        make(tmp_path / "d", run={"rounds": 3, "seed": 1}).config_hash(),
        make(tmp_path / "e", sites=DOCUMENT["sites"][:1]).config_hash(),
        make(tmp_path / "f", name="other").config_hash(),
    ]
    assert base not in others
    assert len(set(others)) == len(others)


# --- metrics ------------------------------------------------------------------------------------

LINES = [{"round": n, "loss": 1 / n} for n in (1, 2, 3)]


def test_metrics_come_back_up_to_a_round(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.write_metrics(LINES)
    assert run.read_metrics() == LINES
    assert run.read_metrics(up_to=2) == LINES[:2]
    assert run.read_metrics(up_to=0) == []
    assert run.metrics.read_text().count("\n") == 3


def test_a_torn_last_line_is_dropped_wherever_it_tears(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.write_metrics(LINES)
    whole = run.metrics.read_bytes()
    second = len(json.dumps(LINES[0])) + 1 + len(json.dumps(LINES[1])) + 1
    for length in range(second, len(whole) - 1):
        run.metrics.write_bytes(whole[:length])
        assert run.read_metrics() == LINES[:2]
    run.metrics.write_bytes(whole[:-1])  # only the line's end is missing
    assert run.read_metrics() == LINES


def test_metrics_hold_no_nan(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.write_metrics(LINES)
    with pytest.raises(ValueError, match="JSON"):
        run.write_metrics([{"round": 1, "loss": float("nan")}])
    assert run.read_metrics() == LINES


def test_json_files_and_their_folders_are_made(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.write_json(run.release / "manifest.json", {"a": [1, None]})
    assert json.loads((run.release / "manifest.json").read_text()) == {"a": [1, None]}


# --- one coordinator ----------------------------------------------------------------------------


def test_a_second_coordinator_is_refused(tmp_path: Path) -> None:
    run = make(tmp_path)
    with run.held(), pytest.raises(RunError, match="another coordinator"), run.held():
        pytest.fail("two coordinators hold one folder")
    with run.held():  # given back
        pass


def test_a_coordinator_in_another_process_is_refused(tmp_path: Path) -> None:
    run = make(tmp_path)
    code = (
        "import sys; from pathlib import Path\n"
        "from her2_server.run_folder import RunFolder\n"
        "from her2_common.errors import RunError\n"
        "try:\n"
        "    with RunFolder(Path(sys.argv[1])).held(): sys.exit(0)\n"
        "except RunError: sys.exit(7)\n"
    )

    def other() -> int:
        command = [sys.executable, "-c", code, str(run.path)]
        return subprocess.run(command, check=False, capture_output=True).returncode

    with run.held():
        assert other() == 7
    assert other() == 0


def test_an_error_inside_gives_the_folder_back(tmp_path: Path) -> None:
    run = make(tmp_path)

    def fail() -> None:
        with run.held():
            raise KeyError("inside")

    with pytest.raises(KeyError):
        fail()
    with run.held():
        pass


def test_flowers_number_is_remembered(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.set_flower_run(2**63 + 5)
    assert run.flower_run() == 2**63 + 5
    (run.path / "flower-run").write_text("torn")
    assert run.flower_run() is None


def test_a_file_system_without_locks_is_not_taken_for_another_coordinator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(_handle: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(OSError, match="locks") as caught, folder.held():
        pass
    assert caught.value.filename == str(tmp_path / "run" / ".lock")
    assert not folder.is_held()
