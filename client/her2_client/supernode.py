"""``flower-supernode``, asking for orders every second instead of every third.

    python -m her2_client.supernode <the arguments of flower-supernode>

Flower's SuperNode sleeps 3 s whenever it finds no order and looks every 0.5 s for its app's reply,
with no option to change either. In a round of a few seconds those waits are most of it
(tests/benchmarks/bench_round.py prints where a round's seconds go). This launcher gives the one
module that sleeps a clock of its own and changes nothing else; a test pins what it relies on.
"""

from __future__ import annotations

import time
from typing import Any, Final

from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode

IDLE_SECONDS: Final = 1.0
"""Between two questions for an order: one small request a second and site."""

REPLY_SECONDS: Final = 0.1
"""Between two looks for the app's reply, on this machine."""


class ImpatientClock:
    """The ``time`` module with shorter sleeps."""

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    @staticmethod
    def sleep(seconds: float) -> None:
        """Sleep IDLE_SECONDS where Flower would sleep longer, else at most REPLY_SECONDS."""
        time.sleep(IDLE_SECONDS if seconds > IDLE_SECONDS else min(seconds, REPLY_SECONDS))


def main() -> None:
    """Run Flower's SuperNode with the impatient clock."""
    start_client_internal.time = ImpatientClock()  # type: ignore[attr-defined, assignment]
    flower_supernode()


if __name__ == "__main__":
    main()
