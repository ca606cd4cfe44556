"""The site executor: one long-lived process that runs the installed app for every message.

1. See that the SuperLink answers and is ours; take the site's lock, so that a second `start` is
   refused.
2. Start ``flower-supernode --isolation process`` with a fresh secret; restart it with back-off when
   it ends (her2_client.connection). Its connection, keys and certificates are Flower's business,
   its log is ours.
3. Acquire a task, check the bundle's hash against the policy, hand the message to the installed
   ClientApp, push the reply. The bundle is never unpacked or imported. An order that comes twice
   (the coordinator sends one again that was silent for long, or was itself restarted) is answered
   from memory the second time.
4. On SIGTERM or Ctrl-C: finish nothing, end the SuperNode by its own process id, release the lock.

torch is imported once, the cohort stays in memory and a round costs seconds less than with a
process a message (tests/benchmarks/bench_round.py prints both).
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Final

import httpx
from filelock import FileLock, Timeout
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from her2_client.app import answer_or_code, log_leaving, make_app, order_name
from her2_client.connection import SuperNode
from her2_client.policy import check_bundle
from her2_client.site import Site
from her2_common.children import interrupted_by_sigterm
from her2_common.config import SiteConfig
from her2_common.errors import PolicyError
from her2_common.files import naming, write_private
from her2_common.network import bypass_proxy_for_loopback, check_tls
from her2_common.runtime import (
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


def run_site(config: SiteConfig, *, notify: Callable[[str], None]) -> None:
    """Serve orders until SIGTERM or Ctrl-C.

    Raises:
        ConnectionFailedError: the SuperLink does not answer, or its certificate is foreign.
        PolicyError: another `her2-client start` of this site is running.
    """
    bypass_proxy_for_loopback()
    handshake = check_tls(config.superlink.address, config.superlink.root_certificates)
    config.state.mkdir(parents=True, exist_ok=True)
    lock = FileLock(config.state / "start.lock")
    try:
        with naming(config.state / "start.lock"):
            lock.acquire(timeout=0)
    except Timeout:
        raise PolicyError(
            f"site {config.name!r} is running already", hint=f"its state is in {config.state}"
        ) from None
    secret = secrets.token_bytes(32)
    secret_file = config.state / "superexec.secret"
    secret_file.unlink(missing_ok=True)
    write_private(secret_file, secret)
    node = SuperNode(config, secret_file, notify)
    try:
        node.start()  # it connects while torch and the cohort load
        site = Site(config, notify)
        with interrupted_by_sigterm():
            _serve(node, secret, Answers(make_app(lambda _: site), config), notify, handshake.via)
    except KeyboardInterrupt:
        notify("stopped")
    finally:
        node.stop()
        secret_file.unlink(missing_ok=True)
        lock.release()


class Answers:
    """What the installed app answers; the last answer is kept, for the same order again."""

    def __init__(self, app: ClientApp, config: SiteConfig) -> None:
        self.app = app
        self.config = config
        self._last: tuple[str, RecordDict] = ("", RecordDict())

    def answer(self, task: ClientTask) -> Message:
        """The reply to a task's message, an error's code if it cannot be answered."""
        log.info("%s: received", order_name(task.message))
        reply = answer_or_code(task.message, partial(self._answer, task))
        log_leaving(task.message, reply)
        return reply

    def _answer(self, task: ClientTask) -> Message:
        check_bundle(self.config.policy, task.bundle)
        key = _work(task.message.content) if task.message.has_content() else ""
        if key and key == self._last[0]:
            return Message(self._last[1], reply_to=task.message)
        self._last = ("", RecordDict())  # an update is as large as the model: one at a time
        reply = self.app(task.message, task.context)
        if key and reply.has_content():
            self._last = (key, reply.content)
        return reply


def _work(order: RecordDict) -> str:
    """What an order asks for, in full: its document names all weights by their fingerprints. Empty
    if other arrays belong to it."""
    if not set(order) <= {"order", "weights", "steps"}:
        return ""
    return str(dict(order.get("order") or {}).get("json", ""))


def _serve(
    node: SuperNode,
    secret: bytes,
    answers: Answers,
    notify: Callable[[str], None],
    via: str,
) -> None:
    config = answers.config
    source: TaskSource | None = None
    said = ""
    while True:
        trouble = node.watch()
        if trouble is not None:
            if trouble not in ("", said):
                notify(trouble)
            said = trouble or said
            time.sleep(POLL_SECONDS)
            continue
        if said != "up":
            said = "up"
            notify(f"site {config.name} is up, SuperLink {config.superlink.address}{via}")
        endpoint = Endpoint(f"127.0.0.1:{node.port}", None)
        if source is None or source.endpoint != endpoint:
            source = TaskSource(endpoint, secret, "flwr-clientapp")
        try:
            token = source.acquire()
        except httpx.HTTPError:
            time.sleep(POLL_SECONDS)  # the SuperNode is ending; watch() will see it
            continue
        if token is None:
            time.sleep(POLL_SECONDS)
            continue
        # A SuperNode works on one message at a time. If it offers another task while the input
        # of this one is still awaited, it has given this one up.
        while token is not None:
            token = _run_task(source, token, answers)


def _run_task(source: TaskSource, token: str, answers: Answers) -> str | None:
    """Do one task; returns the token of the next, if this one was given up for it."""
    abandoned = threading.Event()
    try:
        with (
            open_task(source.endpoint, token, "flwr-clientapp") as client,
            ThreadPoolExecutor(1, thread_name_prefix="task-input") as pool,
        ):
            taking = pool.submit(take_client_task, client, abandoned)
            try:
                while not wait([taking], timeout=POLL_SECONDS).done:
                    if (newer := source.acquire()) is not None:
                        log.warning("a message whose content did not come is given up")
                        return newer
            finally:
                abandoned.set()
            task = taking.result()
            reply = answers.answer(task)
            give_client_reply(client, task, reply, completed=not reply.has_error())
    except Exception as error:  # a task that fails to come or go must not end the site
        log.error("a task could not be finished: %s", type(error).__name__)  # noqa: TRY400
    return None
