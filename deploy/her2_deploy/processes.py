"""Child processes that end with the program that started them, each by its own process id."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from her2_common.children import end_with_parent, stop_process
from her2_common.console import console
from her2_common.errors import ConnectionFailedError, Her2Error
from her2_common.network import check_tls

LOOPBACK = "localhost,127.0.0.1"

END_SECONDS: Final = 15.0
"""Until a child that ends children of its own is killed; these have 10 s."""


def program(name: str) -> str:
    """The path of a command that is installed beside this interpreter."""
    return str(Path(sys.executable).with_name(name))


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for local children: no proxy for loopback, no calls home."""
    from her2_common.runtime import FLOWER_ENVIRONMENT  # Flower, which `--help` does not need

    local = {"NO_PROXY": LOOPBACK, "no_proxy": LOOPBACK}
    return dict(os.environ) | FLOWER_ENVIRONMENT | local | dict(extra or {})


@dataclass
class Child:
    """A running child and its log."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self) -> None:
        """SIGTERM, and SIGKILL after 10 s, to this process id alone."""
        stop_process(self.process)

    def tail(self, lines: int = 8) -> str:
        """The last lines of its log."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])


@contextmanager
def child(
    name: str, command: Sequence[str], log: Path, extra: Mapping[str, str] | None = None
) -> Iterator[Child]:
    """Run a child while the block runs; its output goes to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 (commands of our own)
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(extra),
            process_group=0,  # Ctrl-C in a terminal is for us; we end it in order
            preexec_fn=end_with_parent,  # noqa: PLW1509 (one system call)
        )
    running = Child(name, process, log)
    try:
        yield running
    finally:
        running.stop()


def stop_together(children: Sequence[Child]) -> None:
    """SIGTERM to all at once, by their own process ids, and SIGKILL to who is left after 15 s."""
    for one in children:
        if one.process.poll() is None:
            one.process.terminate()
    until = time.monotonic() + END_SECONDS
    for one in children:
        try:
            one.process.wait(timeout=max(until - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()


def wait_for_tls(
    server: Child, address: str, root_certificates: Path, seconds: float = 30.0
) -> None:
    """Wait until a server that was just started answers.

    Raises:
        ConnectionFailedError: it ended, or does not answer in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            check_tls(address, root_certificates)
        except ConnectionFailedError:
            if server.process.poll() is not None:
                raise ConnectionFailedError(
                    f"{server.name} ended at once:\n{server.tail()}"
                ) from None
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def call(command: Sequence[str], *, capture: bool = False) -> str:
    """Run a command to its end with its output on this terminal, or, captured, its stdout back.

    Raises:
        Her2Error: it failed; its own message stands above.
    """
    done = subprocess.run(  # noqa: S603 (commands of our own)
        list(command),
        stdin=subprocess.DEVNULL,
        capture_output=capture,
        text=True,
        env=environment(),
        check=False,
    )
    if done.returncode:
        if capture:
            console.print(done.stderr, markup=False, soft_wrap=True)
        raise Her2Error(f"{Path(command[0]).name} {command[1]} failed (exit {done.returncode})")
    return done.stdout if capture else ""
