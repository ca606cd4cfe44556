"""Child processes end with their parent, and a parent that is asked to end does so in order."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
# Loaded once, here: a forked child must not load libraries.
_LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent() -> None:
    """For Popen's ``preexec_fn``: Linux sends the child SIGTERM when its parent dies, even by
    SIGKILL. Elsewhere the parent's own clean-up must do."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def stop_process(process: subprocess.Popen[bytes]) -> None:
    """End a child by its own process id: SIGTERM, and SIGKILL after 10 s."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt while the block runs, so that clean-up code runs."""

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
