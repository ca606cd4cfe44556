"""The site executor: one long-lived process that runs the installed app for every message.

1. Take the site's lock, so that a second `start` is refused.
2. Start ``flower-supernode --isolation process`` with a fresh secret; restart it with back-off
   when it ends. Its connection, keys and certificates are Flower's business, its log is ours.
3. Acquire a task, check the bundle's hash against the policy, hand the message to the installed
   ClientApp, push the reply. The bundle is never unpacked or imported.
4. On SIGTERM or Ctrl-C: finish nothing, end the SuperNode by its own process id, release the lock.

torch is imported once, the cohort stays in memory and a round costs seconds less than with a
process a message (tests/benchmarks/bench_round.py prints both).
"""

from __future__ import annotations

import ctypes
import logging
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx
from filelock import FileLock, Timeout
from flwr.clientapp import ClientApp

from her2_client.app import error_reply, make_app
from her2_client.policy import check_bundle
from her2_client.site import Site
from her2_common.config import SiteConfig
from her2_common.errors import ConnectionFailedError, Her2Error, PolicyError
from her2_common.files import write_private
from her2_common.network import check_tls, free_port
from her2_common.runtime import (
    FLOWER_ENVIRONMENT,
    ClientTask,
    Endpoint,
    TaskSource,
    give_client_reply,
    open_task,
    take_client_task,
)

log = logging.getLogger("her2_client")

POLL_SECONDS: Final = 0.2
"""How often the executor asks its own SuperNode (loopback) for a task."""

BACKOFF_SECONDS: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Waits between restarts of a SuperNode. A killed one's session lives on at the SuperLink for up
to 60 s, in which a new one is refused (exit code 305): so it is tried again, without limit."""

def _end_with_parent() -> None:
    """In the child: ask Linux for SIGTERM when the executor dies, even by SIGKILL."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


class SuperNode:
    """The ``flower-supernode`` child process of a site."""

    def __init__(self, config: SiteConfig, secret_file: Path) -> None:
        self.config = config
        self.secret_file = secret_file
        self.log_path = config.state / "supernode.log"
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._restarts = 0
        self._started = 0.0
        self._log_start = 0

    def start(self) -> None:
        """Start the child on a free port."""
        self.port = free_port()
        superlink = self.config.superlink
        command = [
            str(Path(sys.executable).with_name("flower-supernode")),
            *("--superlink", superlink.address),
            *("--root-certificates", str(superlink.root_certificates)),
            *("--auth-supernode-private-key", str(superlink.private_key)),
            *("--isolation", "process"),
            *("--superexec-auth-secret-file", str(self.secret_file)),
            *("--host", "127.0.0.1"),
            *("--port", str(self.port)),
        ]
        environment = os.environ | FLOWER_ENVIRONMENT | {"FLWR_HOME": str(self.config.state)}
        with self.log_path.open("ab") as output:
            self._log_start = output.tell()
            self.process = subprocess.Popen(  # noqa: S603 (our own interpreter's script)
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 (before any thread is started)
            )
        self._started = time.monotonic()

    def watch(self) -> bool:
        """Restart an ended child once its back-off is over; True while it runs.

        Raises:
            ConnectionFailedError: the SuperLink does not know the site's key.
        """
        if self.process is None:
            self.start()
        assert self.process is not None  # noqa: S101 (start has set it; for the type checker)
        code = self.process.poll()
        if code is None:
            if time.monotonic() - self._started > 2 * BACKOFF_SECONDS[-1]:
                self._restarts = 0
            return True
        self.explain_end()
        wait = BACKOFF_SECONDS[min(self._restarts, len(BACKOFF_SECONDS) - 1)]
        if time.monotonic() - self._started >= wait:
            log.warning("the SuperNode ended with code %s; starting it again", code)
            self._restarts += 1
            self.start()
        return False

    def explain_end(self) -> None:
        """Raise the one failure that waiting does not mend: an unregistered key."""
        with self.log_path.open("rb") as file:
            file.seek(self._log_start)
            text = file.read()[-20_000:].decode(errors="replace")
        if is_unregistered(text):
            raise ConnectionFailedError(
                f"{self.config.superlink.address} does not know the key of site "
                f"{self.config.name!r}",
                hint="send keys/node.pub to the coordinator, to be put into federation.yaml",
            )

    def stop(self) -> None:
        """End the child by its own process id."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def is_unregistered(log_text: str) -> bool:
    """Does a SuperNode's log say that the SuperLink refused its key?"""
    lowered = log_text.lower()
    return "public key" in lowered and ("not registered" in lowered or "unauthor" in lowered)


def run_site(
    config: SiteConfig, *, notify: Callable[[str], None], stop_after_idle: float | None = None
) -> None:
    """Serve orders until SIGTERM or Ctrl-C.

    Raises:
        ConnectionFailedError: the SuperLink does not know the site's key.
        PolicyError: another `her2-client start` of this site is running.
    """
    config.state.mkdir(parents=True, exist_ok=True)
    lock = FileLock(config.state / "start.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise PolicyError(
            f"site {config.name!r} is running already", hint=f"its state is in {config.state}"
        ) from None
    secret = secrets.token_bytes(32)
    secret_file = config.state / "superexec.secret"
    secret_file.unlink(missing_ok=True)
    write_private(secret_file, secret)
    node = SuperNode(config, secret_file)
    previous = signal.signal(signal.SIGTERM, _raise_interrupt)
    try:
        node.start()  # it connects while torch and the cohort load
        site = Site(config, notify)
        app = make_app(lambda _: site)
        _serve(node, secret, app, config, notify)
    except KeyboardInterrupt:
        notify("stopped")
    finally:
        signal.signal(signal.SIGTERM, previous)
        node.stop()
        secret_file.unlink(missing_ok=True)
        lock.release()


def _raise_interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _serve(
    node: SuperNode,
    secret: bytes,
    app: ClientApp,
    config: SiteConfig,
    notify: Callable[[str], None],
) -> None:
    source: TaskSource | None = None
    connected = False
    while True:
        if not node.watch():
            source, connected = None, False
            time.sleep(POLL_SECONDS)
            continue
        endpoint = Endpoint(f"127.0.0.1:{node.port}", None)
        if source is None or source.endpoint != endpoint:
            source = TaskSource(endpoint, secret, "flwr-clientapp")
        try:
            token = source.acquire()
        except httpx.HTTPError:
            time.sleep(POLL_SECONDS)  # the SuperNode is starting; watch() sees if it ends
            continue
        if not connected:
            connected = True
            notify(f"site {config.name} is up, SuperLink {config.superlink.address}")
        if token is None:
            time.sleep(POLL_SECONDS)
            continue
        try:
            _run_task(endpoint, token, app, config)
        except (httpx.HTTPError, RuntimeError) as error:
            log.error(  # noqa: TRY400 (a lost connection, no trace)
                "a task could not be finished: %s", type(error).__name__
            )


def _run_task(endpoint: Endpoint, token: str, app: ClientApp, config: SiteConfig) -> None:
    with open_task(endpoint, token, "flwr-clientapp") as client:
        task: ClientTask = take_client_task(client)
        try:
            check_bundle(config.policy, task.bundle)
            reply = app(task.message, task.context)
        except Her2Error as error:
            log.error("%s: %s", error.code, error)  # noqa: TRY400 (a user's mistake, no trace)
            reply = error_reply(task.message, error.code)
        except Exception:
            log.exception("internal error")
            reply = error_reply(task.message, "internal")
        give_client_reply(client, task, reply, completed=not reply.has_error())
