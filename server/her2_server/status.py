"""Where a run stands, in status.json: what `her2-server watch` shows, written at each event.

A comparison of a finished run (her2_server.compare) writes over it: its step is ``COMPARISON``.
The file is replaced as a whole, so that a reader in another terminal sees one state or the next.
It is news and no record: nothing is resumed from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from her2_common.errors import Her2Error

COMPARISON: Final = "compare"
"""The step in which the sites of a finished run train alone ..."""

COMPARISON_FILE: Final = "compare.json"
"""... and what it leaves in the run's folder."""


def now() -> str:
    """This moment, UTC, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Status:
    """Writes the state of one run to ``path``.

    The document: ``run``; ``rounds`` planned and ``round``, the last that is done; ``step`` at work
    and ``since`` when; ``waits_for`` {site: reason} while the run pauses, else empty; ``sites``
    {name: {``state``, ``reason``, ``since``}}; ``ended`` None, "finished" or why it stopped.
    """

    def __init__(self, path: Path, run: str, rounds: int, sites: Iterable[str]) -> None:
        self.path = path
        idle = {"state": "unknown", "reason": None, "since": now()}
        self.document: dict[str, Any] = {
            "run": run,
            "rounds": rounds,
            "round": 0,
            "step": "begin",
            "since": now(),
            "waits_for": {},
            "sites": {name: dict(idle) for name in sites},
            "ended": None,
        }

    def step(self, name: str, done: int) -> None:
        """The step ``name`` begins; ``done`` rounds are."""
        self.document |= {"step": name, "since": now(), "round": done, "waits_for": {}}
        self._write()

    def site(self, name: str, state: str, reason: str | None) -> None:
        """A site's state changed."""
        before = self.document["sites"].get(name, {})
        if (before.get("state"), before.get("reason")) != (state, reason):
            self.document["sites"][name] = {"state": state, "reason": reason, "since": now()}
            self._write()

    def pause(self, waits_for: Mapping[str, str]) -> None:
        """The run waits for these sites, by name with the reason; for none: it goes on."""
        self.document["waits_for"] = dict(waits_for)
        self._write()

    def end(self, how: str) -> None:
        """The coordinator stops: "finished", or why."""
        self.document |= {"ended": how, "waits_for": {}, "since": now()}
        self._write()

    @contextmanager
    def ended(self) -> Iterator[None]:
        """Whatever ends the block is written down."""
        try:
            yield
        except KeyboardInterrupt:
            self.end("interrupted")
            raise
        except Exception as error:
            known = isinstance(error, Her2Error)
            self.end(str(error) if known else f"{type(error).__name__} (see its terminal)")
            raise
        self.end("finished")

    def _write(self) -> None:
        # Not fsynced: after a power cut this news is worth nothing.
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text(json.dumps(self.document, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.path)
