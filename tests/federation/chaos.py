"""A federation in a child process that dies at a moment that a seed chooses.

The child is forked from a server that has imported everything and done nothing, so that a kill
costs what it destroys and no start of torch. It may die

- at its n-th act on a file under the run (an open for writing, an fsync, a rename, a removal),
- there with what it was writing cut short, as after a power cut,
- or after some time, wherever it is.

Coordinator and sites die together. Beside that, sites die alone: before an order, or after they
did the work and kept their memory, but before the answer left; and answer twice.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flwr.app import Error, Message

from her2_client.app import make_app
from her2_client.site import Site
from her2_common.config import SiteConfig, load
from her2_deploy.simulation import LocalGrid, LocalNode
from her2_server.coordinator import Coordinator
from her2_server.exchange import LOST
from her2_server.run_folder import RunFolder

HANG_SECONDS = 120.0
ACTS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir"}
WRITING = os.O_WRONLY | os.O_RDWR


@dataclass(frozen=True)
class Kill:
    """When a child dies: at its ``at``-th act on a file, or ``at`` seconds after its start."""

    how: Literal["act", "torn", "time"]
    at: float
    seed: int


@dataclass(frozen=True)
class Trial:
    """A child that has ended."""

    killed: bool
    hung: bool
    seconds: float


def start(root: Path, kill: Kill | None, unrest: int | None) -> Trial:
    """Conduct (or go on with) the run under ``root`` in a child; ``unrest`` seeds its sites'."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    began = time.monotonic()
    child = context.Process(target=_conduct, args=(root, kill, unrest))
    child.start()
    child.join(HANG_SECONDS)
    hung = child.is_alive()
    if hung:
        child.kill()
        child.join()
    trial = Trial(child.exitcode == -signal.SIGKILL, hung, time.monotonic() - began)
    if not trial.killed and child.exitcode:
        raise AssertionError((root / "child.log").read_text(encoding="utf-8"))
    return trial


def size(root: Path) -> tuple[int, float]:
    """The acts on files and the seconds of the last child that was not killed."""
    acts, seconds = (root / "size").read_text(encoding="ascii").split()
    return int(acts), float(seconds)


def _conduct(root: Path, kill: Kill | None, unrest: int | None) -> None:
    began = time.monotonic()
    log = (root / "child.log").open("w", encoding="utf-8")
    os.dup2(log.fileno(), sys.stderr.fileno())
    count = _watch_files(root, kill)
    if kill is not None and kill.how == "time":
        timer = threading.Timer(kill.at, _die)
        timer.daemon = True
        timer.start()
    folder = RunFolder(root / "out")
    keys = {site.name: site.public_key for site in folder.load_config().sites}
    chance = random.Random(unrest)
    nodes = {}
    for number, (name, key) in enumerate(keys.items(), start=11):
        node = LocalNode(_fresh(root / name), key)
        if unrest is not None:
            node.fault = _unrest(node, root / name, chance)
        nodes[number] = node
    Coordinator(LocalGrid(nodes), folder, lambda text: print(text, file=sys.stderr)).run()
    (root / "size").write_text(f"{count()} {time.monotonic() - began}", encoding="ascii")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fresh(folder: Path) -> Any:
    site = Site(load(SiteConfig, folder / "site.yaml"))
    return make_app(lambda _: site)


def _unrest(node: LocalNode, folder: Path, chance: random.Random) -> Callable[..., list[Message]]:
    def fault(order: Message, answer: Callable[[], Message]) -> list[Message]:
        luck = chance.random()
        if luck < 0.1:  # it dies before the work
            node.app = _fresh(folder)
            return [Message(Error(next(iter(LOST)), "gone"), reply_to=order)]
        reply = answer()
        if luck < 0.2:  # it dies before the answer has left
            node.app = _fresh(folder)
            return [Message(Error(next(iter(LOST)), "gone"), reply_to=order)]
        return [reply, reply] if luck < 0.3 else [reply]

    return fault


def _watch_files(root: Path, kill: Kill | None) -> Callable[[], int]:
    """Count the acts on files under ``root`` and die at the one that ``kill`` names."""
    done = 0
    real_fsync = os.fsync
    under = str(root / "")

    def act(descriptor: int | None = None) -> None:
        nonlocal done
        done += 1
        if kill is None or kill.how == "time" or done < kill.at:
            return
        if kill.how == "act":
            _die()
        if descriptor is not None and (size := os.fstat(descriptor).st_size):
            os.ftruncate(descriptor, random.Random(kill.seed).randrange(size))
            _die()

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if str(path).startswith(under):
            act(descriptor if path.is_file() else None)
        real_fsync(descriptor)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | Path) and str(path).startswith(under) and flags & WRITING:
                act()
        elif event in ACTS and str(arguments[0]).startswith(under):
            act()

    os.fsync = fsync
    sys.addaudithook(hook)
    return lambda: done
