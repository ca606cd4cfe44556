"""``flower-supernode`` with retries after transient errors and shorter waits.

    python -m her2_client.supernode <the arguments of flower-supernode>

Flower's SuperNode has no option for what is changed here; a test pins what each change relies on.

1. It sleeps 3 s whenever it finds no order and looks every 0.5 s for its app's reply. In a round of
   a few seconds those waits are most of it (tests/benchmarks/bench_round.py prints where a round's
   seconds go), so the one module that sleeps gets a clock of its own.
2. One HTTP 500 or 404, a page instead of an answer, or one failed TLS handshake ends its loop. What
   does not come from the SuperLink's own application is tried again for RETRY_SECONDS.
3. When its loop ends, or the thread of its heartbeat, the process lives on and the site is gone for
   the coordinator. Here the process ends, and the site starts another.
4. Each answer and each failure is reported to the site, which so sees whether its SuperNode works.
5. A refused key is examined: is it unknown, or is another session open with it?
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from logging import ERROR, WARNING
from pathlib import Path
from typing import Any, ClassVar, Final

import httpx
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse
from flwr.supercore import log
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.exit import ExitCode, flwr_exit
from flwr.supercore.logger import update_console_handler
from flwr.supernode import fleet_http_connection, start_client_internal
from flwr.supernode.cli import flower_supernode
from flwr.supernode.fleet_http_client import FleetHttpClient

from her2_client.connection import ANSWERED, FAILED, OPEN_SESSION, REPORTS_VARIABLE, UNKNOWN_KEY
from her2_common.files import replace_durably
from her2_common.network import failure

IDLE_SECONDS: Final = 1.0
"""Between two questions for an order: one small request a second and site."""

REPLY_SECONDS: Final = 0.1
"""Between two looks for the app's reply, on this machine."""

RETRY_SECONDS: Final = 60.0
"""As long as the SuperLink holds the session of a silent site. A shorter outage costs no session;
after a longer one, a new process costs nothing more."""

REPORT_SECONDS: Final = 1.0
"""At least this much between two reports of an answer."""

SIGNATURE_SECONDS: Final = 300
"""How long a signature is valid: flwr.common.constant.TIMESTAMP_TOLERANCE."""

NODE_ID_FILE: Final = "node-id"
"""Under FLWR_HOME: the number that the SuperLink gave this site's key."""


class ImpatientClock:
    """The ``time`` module with shorter sleeps."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    @staticmethod
    def sleep(seconds: float) -> None:
        """Sleep IDLE_SECONDS where Flower would sleep longer, else at most REPLY_SECONDS."""
        time.sleep(IDLE_SECONDS if seconds > IDLE_SECONDS else min(seconds, REPLY_SECONDS))


class Reports:
    """Lines to the site, through a pipe that never makes the SuperNode wait."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._answered = -REPORT_SECONDS
        self._failure: str | None = None
        self.last = ""
        """The last failure, for the log."""

    def answered(self) -> None:
        """The SuperLink has answered."""
        now = time.monotonic()
        if self._failure is None and now - self._answered < REPORT_SECONDS:
            return
        self._answered, self._failure = now, None
        self._write(ANSWERED)

    def failed(self, reason: str) -> None:
        """A request had no answer of the SuperLink."""
        if reason != self._failure:
            log(WARNING, "No answer from the SuperLink: %s", reason)
        self._failure = self.last = reason
        self._write(f"{FAILED} {reason}")

    def _write(self, line: str) -> None:
        if self._descriptor is not None:
            with suppress(OSError):  # full, as the site is busy, or the site is gone
                os.write(self._descriptor, f"{line}\n".encode())


class RetryingClient(FleetHttpClient):
    """The SuperNode's client: it retries after transient errors and reports each outcome."""

    reports: ClassVar[Reports] = Reports(None)
    node_id_file: ClassVar[Path | None] = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._failing: dict[str, float] = {}
        """Since when a method has had no answer."""

    def _unary_unary(self, **request: Any) -> Any:
        method = request["rpc_method"]
        try:
            answer = super()._unary_unary(**request)
        except (httpx.HTTPError, ValueError) as error:  # the latter: a page in place of an answer
            if _own(error):
                self._answered(method)
                raise
            reason = _clock(error) or failure(error)
            self.reports.failed(reason)
            since = self._failing.setdefault(method, time.monotonic())
            if not _refused(error) and time.monotonic() - since < RETRY_SECONDS:
                raise httpx.ReadError("trying again") from error  # which Flower tries again
            raise
        self._answered(method)
        return answer

    def _answered(self, method: str) -> None:
        self._failing.pop(method, None)
        self.reports.answered()

    def ActivateNode(self, request: ActivateNodeRequest) -> ActivateNodeResponse:  # noqa: N802
        """Begin a session."""
        try:
            answer = super().ActivateNode(request)
        except httpx.HTTPStatusError as error:
            if _code(error) == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
                log(ERROR, OPEN_SESSION if self._known() else UNKNOWN_KEY)
            raise
        if self.node_id_file is not None:
            with suppress(OSError):  # a full disk costs a message's precision
                replace_durably(self.node_id_file, f"{answer.node_id}\n".encode())
        return answer

    def _known(self) -> bool:
        """Does the SuperLink know this site's key by the number that it gave it before?

        It lets only who has the key ask about a run; the run need not exist, and asking does not
        prolong a session, as a heartbeat would.
        """
        try:
            number = int(self.node_id_file.read_text(encoding="ascii")) if self.node_id_file else 0
            super()._unary_unary(
                path="/v1/fleet/get-run",
                rpc_method="/flwr.proto.Fleet/GetRun",
                request=GetRunRequest(node=Node(node_id=number), run_id=0),
                response_type=GetRunResponse,
            )
        except httpx.HTTPStatusError as error:
            return _own(error)
        except (OSError, ValueError, httpx.HTTPError):
            return False
        return True


def _code(error: Exception) -> int | None:
    """The number of the SuperLink's own error, if it is one."""
    if not isinstance(error, httpx.HTTPStatusError):
        return None
    own = FlowerError.from_json(error.response.text)
    return None if own is None else own.code


def _own(error: Exception) -> bool:
    """Is it an answer of the SuperLink's application, not of a proxy before it?"""
    return (
        _code(error) is not None
        and isinstance(error, httpx.HTTPStatusError)
        and not error.response.is_server_error
    )


def _refused(error: Exception) -> bool:
    """Does the SuperLink refuse the signature, or the size of a message?"""
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code in {401, 413}


def _clock(error: Exception) -> str | None:
    """What a refused signature tells of this machine's clock, from the answer's date."""
    if not isinstance(error, httpx.HTTPStatusError) or error.response.status_code != 401:
        return None
    try:
        off = (
            datetime.now(UTC) - parsedate_to_datetime(error.response.headers["date"])
        ).total_seconds()
    except (KeyError, ValueError, TypeError):
        return None
    if abs(off) < SIGNATURE_SECONDS / 2:
        return "HTTP 401, the signature is not accepted"
    return (
        f"HTTP 401, this machine's clock is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} "
        f"the coordinator's; a signature is valid for {SIGNATURE_SECONDS} s"
    )


def end_with_threads(end: Callable[[], None]) -> None:
    """Call ``end`` when a thread ends by an error: the heartbeat's must not end alone."""
    show = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        show(arguments)
        if arguments.exc_type is not SystemExit:
            end()

    threading.excepthook = hook


def main() -> None:
    """Run Flower's SuperNode until its loop ends, and end with it."""
    update_console_handler(timestamps=True, colored=False)
    descriptor = os.environ.get(REPORTS_VARIABLE)
    RetryingClient.reports = Reports(None if descriptor is None else int(descriptor))
    RetryingClient.node_id_file = Path(os.environ.get("FLWR_HOME", ".")) / NODE_ID_FILE
    start_client_internal.time = ImpatientClock()  # type: ignore[attr-defined, assignment]
    fleet_http_connection.FleetHttpClient = RetryingClient  # type: ignore[attr-defined]
    end_with_threads(lambda: os.kill(os.getpid(), signal.SIGTERM))  # Flower's handler ends in order
    reason = ""
    try:
        flower_supernode()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    # Not reached where Flower ends the process itself. Its threads would keep it alive.
    flwr_exit(
        ExitCode.SUPERNODE_CONNECTION_ERROR,
        f"The SuperNode's loop has ended. {reason or RetryingClient.reports.last}",
    )


if __name__ == "__main__":
    main()
