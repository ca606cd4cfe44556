"""A site's connection: a supervised ``flower-supernode`` child process.

The child (her2_client.supernode) reports each answer of the SuperLink and each failure through a
pipe. ``SuperNode`` starts it, restarts it when it ends, and tells the site's engineer since when
there has been no answer and why, that there is one again, and why a key is refused. The last error
in the child's log is quoted, with the name of the log.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from her2_client.keys import fingerprint
from her2_common.children import end_with_parent, stop_process
from her2_common.config import SiteConfig
from her2_common.network import free_port
from her2_common.runtime import FLOWER_ENVIRONMENT

BACKOFF_SECONDS: Final = (1.0, 2.0, 5.0, 10.0)
"""Waits between restarts of a SuperNode, the last one without limit."""

SESSION_SECONDS: Final = 75.0
"""A killed SuperNode's session lives on at the SuperLink for up to 60 s, in which a new one is
refused just like an unknown key. Refused for longer than this, it is something else."""

SILENCE_SECONDS: Final = 30.0
"""Without an answer of the SuperLink, until the site says so. An idle SuperNode asks every second,
one whose site is at work sends a heartbeat every 20 s."""

LISTEN_SECONDS: Final = 0.5
"""Between two looks at what the SuperNode reports."""

REFUSED: Final = "[code: 2004]"  # flwr ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED, in its log
ACCEPTED: Final = "SuperNode ID:"

OPEN_SESSION: Final = "This key has an open session."
UNKNOWN_KEY: Final = "This key is not known."
"""What her2_client.supernode found out about a refused key, in its log."""

REPORTS_VARIABLE: Final = "HER2_REPORTS"
"""In the child's environment: the descriptor to which it writes its reports."""

ANSWERED: Final = "answered"
FAILED: Final = "failed"
"""A report: ``answered``, or ``failed`` and why."""

LOG_BYTES: Final = 10_000_000
"""A SuperNode's log of more than this is put aside when the next one starts, in place of the one
that was put aside before: a site that is refused for weeks fills no disk."""

QUOTE_CHARACTERS: Final = 300
"""Longest quotation of the log on the screen."""


class Contact:
    """When the SuperLink last answered, and the reason of the last failure."""

    def __init__(self, notify: Callable[[str], None]) -> None:
        self.notify = notify
        self.reason = ""
        self._said: str | None = None
        self._answered()

    def _answered(self) -> None:
        self._at, self._when = time.monotonic(), datetime.now().astimezone()

    def hear(self, report: str) -> None:
        """Take one report."""
        kind, _, text = report.partition(" ")
        if kind == FAILED:
            self.reason = text
        elif kind == ANSWERED:
            self._answered()
            self.reason = ""
            if self._said is not None:
                self._said = None
                self.notify("the coordinator answers again")

    def look(self) -> None:
        """Notify if there has been no answer for SILENCE_SECONDS; again if the reason changes."""
        reason = self.reason or "no answer in time"
        if time.monotonic() - self._at < SILENCE_SECONDS or reason == self._said:
            return
        self._said = reason
        today = self._when.date() == datetime.now().astimezone().date()
        since = self._when.strftime("%H:%M" if today else "%Y-%m-%d %H:%M")
        self.notify(f"no answer from the coordinator since {since} ({reason})")


class SuperNode:
    """The ``flower-supernode`` child process of a site; ``notify`` receives its messages."""

    def __init__(
        self,
        config: SiteConfig,
        secret_file: Path,
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.config = config
        self.secret_file = secret_file
        self.log_path = config.state / "supernode.log"
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.contact = Contact(notify)
        self._reports: int | None = None
        self._heard = b""
        self._listening = threading.Lock()
        self._stopped = threading.Event()
        self._listener: threading.Thread | None = None
        self._restarts = 0
        self._started = 0.0
        self._log_start = 0
        self._refused_since: float | None = None
        self._said: str | None = None
        self.accepted = False

    def start(self) -> None:
        """Start the child on a free port."""
        self.port = free_port()
        superlink = self.config.superlink
        command = [
            *(sys.executable, "-P", "-m", "her2_client.supernode"),  # -P: no code from here
            *("--superlink", superlink.address),
            *("--root-certificates", str(superlink.root_certificates)),
            *("--auth-supernode-private-key", str(superlink.private_key)),
            *("--isolation", "process"),
            *("--superexec-auth-secret-file", str(self.secret_file)),
            *("--host", "127.0.0.1"),
            *("--port", str(self.port)),
        ]
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        environment = os.environ | FLOWER_ENVIRONMENT | {"FLWR_HOME": str(self.config.state)}
        environment[REPORTS_VARIABLE] = str(write)
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_BYTES:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        try:
            with self.log_path.open("ab") as output:
                self._log_start = output.tell()
                self.process = subprocess.Popen(  # noqa: S603 (our own interpreter's script)
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    pass_fds=(write,),
                    preexec_fn=end_with_parent,  # noqa: PLW1509 (one system call)
                )
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        self._listen_to(read)
        self._started = time.monotonic()

    def watch(self) -> str | None:
        """None while the child runs and is accepted; else what there is to say about it.

        An ended child is started again once its back-off is over, without limit: the SuperLink
        may be down for a while, and a key may be registered later than its site starts.
        """
        if self.process is None:
            self.start()
        if self.process is not None and self.process.poll() is None:
            if self.accepted:
                return None
            if ACCEPTED in self._log():
                self.accepted, self._restarts, self._refused_since = True, 0, None
                return None
            return self._said or ""
        self.accepted = False
        self._said = self._explain()
        wait = BACKOFF_SECONDS[min(self._restarts, len(BACKOFF_SECONDS) - 1)]
        if time.monotonic() - self._started >= wait:
            self._restarts += 1
            self.start()
        return self._said

    # --- what the child reports -----------------------------------------------------------------

    def _listen_to(self, reports: int | None) -> None:
        """Listen to another child, or to none. A thread does, since a site at work does not."""
        self._hear()
        with self._listening:
            if self._reports is not None:
                os.close(self._reports)
            self._reports, self._heard = reports, b""
        if self._listener is None and reports is not None:
            self._listener = threading.Thread(target=self._listen, name="contact", daemon=True)
            self._listener.start()

    def _listen(self) -> None:
        while not self._stopped.wait(LISTEN_SECONDS):
            self._hear()
            with self._listening:
                self.contact.look()

    def _hear(self) -> None:
        with self._listening:
            try:
                while self._reports is not None and (part := os.read(self._reports, 2**16)):
                    *lines, self._heard = (self._heard + part).split(b"\n")
                    for line in lines:
                        self.contact.hear(line.decode(errors="replace"))
            except BlockingIOError:
                return

    # --- why the child ended ----------------------------------------------------------------------

    def _log(self) -> str:
        with self.log_path.open("rb") as file:
            file.seek(self._log_start)
            return file.read()[-20_000:].decode(errors="replace")

    def _explain(self) -> str:
        """Why the child ended, in words for the site's engineer."""
        self._hear()
        address = self.config.superlink.address
        log = self._log()
        if REFUSED not in log:
            self._refused_since = None
            code = None if self.process is None else self.process.poll()
            killed = f"killed by signal {-code}" if code is not None and code < 0 else ""
            why = killed or quote(log) or self.contact.reason or f"exit code {code}"
            return f"the connection to {address} ended ({why}; see {self.log_path}); trying again"
        now = time.monotonic()
        self._refused_since = self._refused_since or now
        early = now - self._refused_since < SESSION_SECONDS
        if OPEN_SESSION in log:
            return (
                f"{address} knows this site, but an earlier session is still open (60 s at most); "
                "trying again"
                if early
                else f"another `her2-client start` uses the key of site {self.config.name!r}, on "
                "another machine or from another folder: end one of the two; trying again"
            )
        waiting = (
            f"{address} does not accept this site yet: its key is not registered, which is done "
            "when a run begins"
        )
        if early:
            return f"{waiting}; trying again"
        key = self.config.superlink.private_key
        return (
            f"{waiting}. If one has begun, the coordinator has another key, or another "
            f"`her2-client start` uses this one. This site's is {fingerprint(key)}: compare it "
            f"with what her2-server run shows, and send {key.name}.pub if it differs; trying again"
        )

    def stop(self) -> None:
        """End the child by its own process id."""
        if self.process is not None:
            stop_process(self.process)
        self._stopped.set()
        if self._listener is not None:
            self._listener.join()
        self._listen_to(None)


_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_RECORD: Final = re.compile(
    r"^(DEBUG|INFO|WARNING|ERROR|CRITICAL) +(?:[\d-]+ [\d:,]+ *)?:", re.MULTILINE
)


def quote(log: str) -> str:
    """The last error in a log of Flower's, in one line, without its web link; "" if none."""
    text = _COLOUR.sub("", log)
    _, *records = _RECORD.split(text)  # a level and what it is of, in turn
    for level, record in reversed(list(zip(records[::2], records[1::2], strict=True))):
        if level in ("ERROR", "CRITICAL"):
            said = record.partition("For more information")[0]
            return " ".join(said.split())[:QUOTE_CHARACTERS]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "" if records or not lines else lines[-1][:QUOTE_CHARACTERS]
