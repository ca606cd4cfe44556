"""Children end with their parent's block, and what they said is kept."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from her2_common.errors import ConnectionFailedError, Her2Error
from her2_common.network import free_port
from her2_deploy import processes
from her2_deploy.processes import (
    call,
    child,
    environment,
    program,
    stop_together,
    wait_for_tls,
)
from her2_deploy.provision import provision


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_child_ends_with_its_block(tmp_path: Path) -> None:
    with child("sleeper", ["sleep", "60"], tmp_path / "logs" / "s.log") as running:
        assert running.process.poll() is None
    assert gone(running.process.pid)
    running.stop()  # once more does no harm


def test_a_child_ends_when_its_block_fails(tmp_path: Path) -> None:
    pids: list[int] = []

    def fail() -> None:
        with child("sleeper", ["sleep", "60"], tmp_path / "s.log") as running:
            pids.append(running.process.pid)
            raise KeyError("inside")

    with pytest.raises(KeyError):
        fail()
    assert gone(pids[0])


def test_ctrl_c_in_a_terminal_does_not_reach_a_child(tmp_path: Path) -> None:
    with child("sleeper", ["sleep", "60"], tmp_path / "s.log") as running:
        assert os.getpgid(running.process.pid) != os.getpgid(0)


WAITS_FOR_THE_OTHER = """
import pathlib, signal, sys, time
own, other = map(pathlib.Path, sys.argv[1:])
def end(*_):
    own.with_suffix(".asked").touch()
    while not other.with_suffix(".asked").exists():
        time.sleep(0.01)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
own.touch()
time.sleep(60)
"""


def test_children_that_end_together_do_not_wait_for_each_other(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with ExitStack() as stack:
        children = [
            stack.enter_context(
                child(
                    own.name,
                    [sys.executable, "-c", WAITS_FOR_THE_OTHER, str(own), str(other)],
                    tmp_path / f"{own.name}.log",
                )
            )
            for own, other in ((one, two), (two, one))
        ]
        while not (one.exists() and two.exists()):
            time.sleep(0.01)
        stop_together(children)
        assert [running.process.returncode for running in children] == [0, 0]
        stop_together(children)  # once more does no harm


def test_a_child_that_does_not_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "END_SECONDS", 0.2)
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True);"
    log = tmp_path / "deaf.log"
    with child("deaf", [sys.executable, "-c", code + "signal.pause()"], log) as running:
        while not log.read_text():
            time.sleep(0.01)
        stop_together([running])
        assert running.process.returncode == -signal.SIGKILL


def test_what_it_said_is_in_its_log(tmp_path: Path) -> None:
    code = "import os; print(os.environ['MARK']); [print(i) for i in range(20)]"
    with child(
        "talker", [sys.executable, "-c", code], tmp_path / "t.log", {"MARK": "m"}
    ) as running:
        assert running.process.wait(timeout=20) == 0
    assert running.tail(3) == "17\n18\n19"
    assert running.log.read_text().startswith("m\n0\n")


def test_children_call_nobody_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "yes")
    values = environment({"EXTRA": "1"})
    assert values["FLWR_TELEMETRY_ENABLED"] == "0"
    assert "localhost" in values["NO_PROXY"]
    assert (values["KEPT"], values["EXTRA"]) == ("yes", "1")


def test_programs_stand_beside_this_interpreter() -> None:
    assert Path(program("her2-client")).parent == Path(sys.executable).parent


def test_a_server_that_ends_at_once_is_told_with_its_last_words(tmp_path: Path) -> None:
    root = provision(tmp_path, ["localhost"])["root"]
    command = [sys.executable, "-c", "print('no database'); raise SystemExit(3)"]
    with child("superlink", command, tmp_path / "s.log") as running:
        running.process.wait(timeout=20)
        with pytest.raises(ConnectionFailedError, match="superlink ended at once:\nno database"):
            wait_for_tls(running, f"localhost:{free_port()}", root)


def test_a_server_that_stays_silent_is_told(tmp_path: Path) -> None:
    root = provision(tmp_path, ["localhost"])["root"]
    with (
        child("superlink", ["sleep", "60"], tmp_path / "s.log") as running,
        pytest.raises(ConnectionFailedError, match="does not answer"),
    ):
        wait_for_tls(running, f"localhost:{free_port()}", root, seconds=0.3)


def test_a_failed_step_is_named() -> None:
    call([sys.executable, "-c", "pass"])
    with pytest.raises(Her2Error, match=r"^sh -c failed \(exit 4\)$"):
        call(["/bin/sh", "-c", "exit 4"])
