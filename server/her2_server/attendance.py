"""Who is there: sites that are still starting, or whose connection is just coming back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from flwr.serverapp import Grid

from her2_server.exchange import PAUSED_POLL_SECONDS, online_sites


def wait_until_online(
    grid: Grid,
    keys: Mapping[str, str],
    timeout: float,
    *,
    on_wait: Callable[[Mapping[str, str]], None] = lambda _: None,
    notify: Callable[[str], None] = lambda _: None,
) -> None:
    """Wait until all sites are online, for ``timeout`` seconds at most.

    ``keys`` maps a site's name to its public key. ``on_wait`` hears for whom it waits and why, at
    each change, and with nobody that it is over; ``notify`` takes the same in words.
    """
    until = time.monotonic() + timeout
    told: list[str] = []
    while missing := sorted(keys.keys() - online_sites(grid, keys).keys()):
        if time.monotonic() >= until:
            notify(f"goes on without {', '.join(missing)}: not online within {timeout:.0f} s")
            break
        if missing != told:
            told = missing
            on_wait(dict.fromkeys(missing, "not online"))
            notify(f"waits for {', '.join(missing)}, {timeout:.0f} s at most")
        time.sleep(PAUSED_POLL_SECONDS)
    if told:
        on_wait({})
