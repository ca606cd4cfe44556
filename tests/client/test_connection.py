"""The SuperNode's keeper: what it says, when it starts again, how it ends. A shell script plays
the SuperNode; the real one is in tests/federation/test_process_disturbed.py."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from her2_client import connection
from her2_client.connection import (
    ACCEPTED,
    BACKOFF_SECONDS,
    OPEN_SESSION,
    REFUSED,
    SESSION_SECONDS,
    SILENCE_SECONDS,
    UNKNOWN_KEY,
    SuperNode,
    quote,
)
from her2_client.keys import fingerprint, init_site
from her2_common.config import SiteConfig, load

# The keeper may fork while torch's threads run; CPython 3.12 and later warn of it.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets what the SuperNode does from its next start on."""
    folder = tmp_path / "bin"
    folder.mkdir()
    path = folder / "python"
    monkeypatch.setattr(sys, "executable", str(folder / "python"))

    def write(body: str) -> None:
        path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return write


@pytest.fixture
def config(tmp_path: Path) -> SiteConfig:
    init_site(tmp_path / "site", name="centre-t", address="flower.example:9092")
    config = load(SiteConfig, tmp_path / "site" / "site.yaml")
    config.state.mkdir()
    return config


@pytest.fixture
def said() -> list[str]:
    """What the site is notified of."""
    return []


@pytest.fixture
def node(config: SiteConfig, said: list[str]) -> Iterator[SuperNode]:
    node = SuperNode(config, config.state / "secret", said.append)
    yield node
    node.stop()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the keeper's clock forward."""
    passed = 0.0
    real = time.monotonic

    def forward(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    monkeypatch.setattr(connection.time, "monotonic", lambda: real() + passed)
    return forward


def until(condition: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + 10
    while not condition():
        assert time.perf_counter() < deadline, "waited in vain"
        time.sleep(0.01)


def ended(node: SuperNode) -> None:
    assert node.process is not None
    node.process.wait(timeout=10)


def test_nothing_to_say_once_it_is_accepted(node: SuperNode, script: Callable[[str], None]) -> None:
    script(f"sleep 0.2; echo 'INFO: {ACCEPTED} 123'; exec sleep 60")
    assert node.watch() == ""  # started, not yet accepted
    assert not node.accepted
    until(lambda: node.watch() is None)
    assert node.accepted


def test_a_long_log_is_put_aside_and_one_of_them_is_kept(
    node: SuperNode, script: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LOG_BYTES", 20)
    script("echo twelve bytes")
    for _ in range(5):
        node.start()
        ended(node)
    aside = node.log_path.with_suffix(".log.1")
    assert (node.log_path.stat().st_size, aside.stat().st_size) == (13, 26)
    assert sorted(node.log_path.parent.glob("supernode*")) == [node.log_path, aside]


def test_the_command_line_keeps_the_secret_in_its_file(
    node: SuperNode, script: Callable[[str], None], config: SiteConfig
) -> None:
    script('echo "$@"; echo home "$FLWR_HOME" telemetry "$FLWR_TELEMETRY_ENABLED"')
    node.secret_file.write_bytes(b"hush")
    node.start()
    ended(node)
    said = node.log_path.read_text()
    assert "--superlink flower.example:9092" in said
    assert f"--root-certificates {config.superlink.root_certificates}" in said
    assert "--isolation process" in said
    assert f"--superexec-auth-secret-file {node.secret_file}" in said
    assert f"--host 127.0.0.1 --port {node.port}" in said
    assert f"home {config.state} telemetry 0" in said
    assert "--insecure" not in said
    assert "hush" not in said


def test_a_lost_connection_is_said_and_tried_again_after_the_wait(
    node: SuperNode, script: Callable[[str], None], clock: Callable[[float], None]
) -> None:
    script("exit 1")
    node.watch()
    first = node.process
    ended(node)
    ending = node.watch()
    assert ending is not None
    assert "flower.example:9092 ended (exit code 1; see " in ending
    assert str(node.log_path) in ending
    assert node.process is first  # not before its time
    clock(BACKOFF_SECONDS[0])
    script(f"echo '{ACCEPTED} 1'; exec sleep 60")
    assert node.watch() is not None
    assert node.process is not first
    until(lambda: node.watch() is None)


def test_waits_grow_and_never_end(
    node: SuperNode, script: Callable[[str], None], clock: Callable[[float], None]
) -> None:
    script("exit 1")
    node.watch()
    for wait in (*BACKOFF_SECONDS, BACKOFF_SECONDS[-1], BACKOFF_SECONDS[-1]):
        ended(node)
        before = node.process
        clock(wait - 0.7)
        node.watch()
        assert node.process is before
        clock(0.7)
        node.watch()
        assert node.process is not before


def refused_for(
    seconds: float, found: str, node: SuperNode, script: Callable[[str], None], clock: object
) -> str:
    script(f"echo 'ERROR : {found}'; echo 'ERROR : Exit Code: 305 {REFUSED}'; exit 1")
    node.watch()
    ended(node)
    node.watch()
    clock(seconds)  # type: ignore[operator]
    text = node.watch()  # and starts again
    assert text is not None
    ended(node)
    assert node.watch() == text  # a restart does not begin the count anew
    return text


def test_an_open_session_is_an_earlier_one_and_then_another_start(
    node: SuperNode, script: Callable[[str], None], clock: Callable[[float], None]
) -> None:
    text = refused_for(1, OPEN_SESSION, node, script, clock)
    assert "an earlier session is still open" in text
    text = refused_for(SESSION_SECONDS, OPEN_SESSION, node, script, clock)
    assert "another `her2-client start`" in text
    assert "not registered" not in text


def test_an_unknown_key_waits_for_a_run_and_then_is_to_be_compared(
    node: SuperNode, script: Callable[[str], None], clock: Callable[[float], None]
) -> None:
    key = fingerprint(node.config.superlink.private_key)
    text = refused_for(1, UNKNOWN_KEY, node, script, clock)
    assert "not registered, which is done when a run begins" in text
    assert key not in text
    text = refused_for(SESSION_SECONDS, UNKNOWN_KEY, node, script, clock)
    assert key in text
    assert "send node.pub" in text


def test_what_an_earlier_child_wrote_does_not_count(
    node: SuperNode, script: Callable[[str], None], clock: Callable[[float], None]
) -> None:
    """The log goes on across restarts; only the last child's part is read."""
    node.log_path.write_text(f"{REFUSED}\n{ACCEPTED} 7\n")
    script("exit 1")
    node.watch()
    ended(node)
    ending = node.watch()
    assert ending is not None
    assert "flower.example:9092 ended" in ending
    assert not node.accepted


def test_an_accepted_child_that_ends_is_noticed(
    node: SuperNode, script: Callable[[str], None]
) -> None:
    script(f"echo '{ACCEPTED} 1'; exec sleep 60")
    node.watch()
    until(lambda: node.watch() is None)
    assert node.process is not None
    node.process.kill()
    ended(node)
    ending = node.watch()
    assert ending is not None
    assert "killed by signal 9" in ending
    assert not node.accepted


def test_stop_ends_the_child_and_only_once(node: SuperNode, script: Callable[[str], None]) -> None:
    node.stop()  # never started
    script("exec sleep 60")
    node.start()
    assert node.process is not None
    pid = node.process.pid
    node.stop()
    node.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# --- known by its work --------------------------------------------------------------------------


def reporting(*reports: str) -> str:
    """A child that is accepted and reports."""
    lines = "; ".join(f"echo '{report}' > /proc/self/fd/$HER2_REPORTS" for report in reports)
    return f"echo '{ACCEPTED} 1'; {lines}; exec sleep 60"


def test_silence_is_said_after_its_time_with_its_reason_and_its_end(
    node: SuperNode,
    script: Callable[[str], None],
    clock: Callable[[float], None],
    said: list[str],
) -> None:
    script(reporting("answered", "failed HTTP 502"))
    node.watch()
    until(lambda: node.contact.reason == "HTTP 502")
    clock(SILENCE_SECONDS - 5)
    time.sleep(2 * connection.LISTEN_SECONDS)
    assert said == []
    clock(5)
    until(lambda: len(said) == 1)
    assert said[0].startswith("no answer from the coordinator since ")
    assert said[0].endswith("(HTTP 502)")
    node.contact.hear("failed foreign certificate")
    until(lambda: len(said) == 2)
    assert said[1].endswith("(foreign certificate)")
    node.contact.hear("answered")
    time.sleep(2 * connection.LISTEN_SECONDS)
    assert said[2:] == ["the coordinator answers again"]


def test_a_child_that_says_nothing_is_noticed(
    node: SuperNode,
    script: Callable[[str], None],
    clock: Callable[[float], None],
    said: list[str],
) -> None:
    """It lives and was accepted, and yet it does no work."""
    script(f"echo '{ACCEPTED} 1'; exec sleep 60")
    node.watch()
    until(lambda: node.watch() is None)
    clock(SILENCE_SECONDS + 1)
    until(lambda: len(said) == 1)
    assert said[0].endswith("(no answer in time)")


def test_reports_outlive_a_restart_of_the_child(
    node: SuperNode, script: Callable[[str], None], clock: Callable[[float], None]
) -> None:
    script("echo 'failed HTTP 500' > /proc/self/fd/$HER2_REPORTS; exit 1")
    node.watch()
    ended(node)
    ending = node.watch()
    assert ending is not None
    assert "(HTTP 500; see " in ending
    clock(BACKOFF_SECONDS[0])
    script(reporting("failed HTTP 404"))
    node.watch()
    until(lambda: node.contact.reason == "HTTP 404")


LOG = """\
\x1b[92mINFO \x1b[0m:      Starting Flower SuperNode
ERROR 2026-11-30 18:10:41,841:     Exit Code: 305
Failed to initialize the connection to the SuperLink.
407 Proxy Authentication Required

For more information, visit: <https://flower.ai/docs>
INFO:     Shutting down
"""


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (
            LOG,
            "Exit Code: 305 Failed to initialize the connection to the SuperLink. "
            "407 Proxy Authentication Required",
        ),
        ("INFO : all is well\n", ""),
        (
            "Traceback (most recent call last):\n  ...\nImportError: no flwr\n",
            "ImportError: no flwr",
        ),
        ("", ""),
    ],
)
def test_the_last_error_of_a_log_is_quoted(log: str, expected: str) -> None:
    assert quote(log) == expected
