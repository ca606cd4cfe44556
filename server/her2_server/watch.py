"""`her2-server watch`: the live state of a run, and of its comparison, read from its folder by any
terminal.

Nothing is asked of the coordinator: what it does stands in status.json, what is done in
metrics.jsonl, and whether its process lives in the lock of the folder, which the system frees when
a process is killed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from her2_common.console import console
from her2_common.documents import parse_json
from her2_server.run_folder import RunFolder
from her2_server.status import COMPARISON, COMPARISON_FILE

REFRESH_SECONDS: Final = 1.0
BARS: Final = "▁▂▃▄▅▆▇█"
CURVE_WIDTH: Final = 40
RECENT_ROUNDS: Final = 5
"""The rounds whose mean time foretells the rest."""

State = Literal["training", "paused", "comparing", "finished", "stopped", "gone", "not begun"]

AT_WORK: Final[tuple[State, ...]] = ("training", "paused", "comparing")

COLOURS: Final[dict[str, str]] = {
    "training": "green",
    "paused": "yellow",
    "comparing": "green",
    "finished": "green",
    "stopped": "red",
    "gone": "red",
    "not begun": "dim",
    "accepted": "green",
    "working": "cyan",
    "refused": "red",
    "missing": "yellow",
    "offline": "yellow",
    "unknown": "dim",
}


def state_of(folder: RunFolder) -> dict[str, Any]:
    """What can be told of a run, as one document.

    ``run``, ``state`` (with ``step`` "compare" it is that of the comparison of a finished run),
    ``step``, ``since``, ``round``, ``rounds``, ``waits_for`` {site: reason}, ``why`` (how it ended,
    if it did), ``report`` and ``comparison`` (the files, where they are there), ``sites`` [{name,
    state, reason, since, sent_bytes, received_bytes, loss}] with bytes over all rounds,
    ``validation`` [AUC of the weights before round 1, 2, ...; None if not told], ``best_round``,
    ``seconds_a_round`` (mean of the last five), ``remaining_seconds`` of the rounds that are left.

    Raises:
        RunError: the folder holds no run.
    """
    config = folder.load_config()
    status = _read(folder)
    lines = folder.read_metrics()
    aucs = [(line["validation"]["auc"] or {}).get("estimate") for line in lines]
    told = [auc for auc in aucs[1:] if auc is not None]
    recent = [line["seconds"]["total"] for line in lines if "total" in line["seconds"]]
    pace = sum(recent[-RECENT_ROUNDS:]) / len(recent[-RECENT_ROUNDS:]) if recent else None
    state = _state(folder, status)
    left = config.run.rounds - len(lines)
    going = state in ("training", "paused") and str(status.get("step")).startswith("round")
    return {
        "run": config.name,
        "state": state,
        "step": status.get("step"),
        "since": status.get("since"),
        "round": len(lines),
        "rounds": config.run.rounds,
        "waits_for": status.get("waits_for", {}),
        "why": status.get("ended") if state == "stopped" else None,
        "report": _there(folder.path / "report.html"),
        "comparison": _there(folder.path / COMPARISON_FILE),
        "sites": [_site(site.name, status, lines) for site in config.sites],
        "validation": aucs,
        "best_round": aucs.index(max(told), 1) if told else None,
        "seconds_a_round": pace,
        "remaining_seconds": pace * left if pace is not None and going else None,
    }


def _there(path: Path) -> str | None:
    return str(path) if path.exists() else None


def _read(folder: RunFolder) -> dict[str, Any]:
    try:
        document = parse_json(folder.status.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _state(folder: RunFolder, status: Mapping[str, Any]) -> State:
    if status.get("ended") == "finished" and folder.summary.exists():
        return "finished"  # its folder may be held for something else
    compared = status.get("step") == COMPARISON
    if folder.is_held():
        if compared:
            return "comparing"
        return "paused" if status.get("waits_for") else "training"
    if folder.summary.exists() and not compared:
        return "finished"
    if not status:
        return "not begun"
    return "stopped" if status.get("ended") else "gone"


def _site(
    name: str, status: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    now = status.get("sites", {}).get(name, {})
    parts = [line["sites"][name] for line in lines if name in line["sites"]]
    return {
        "name": name,
        "state": now.get("state", "unknown"),
        "reason": now.get("reason"),
        "since": now.get("since"),
        "sent_bytes": sum(part["sent_bytes"] for part in parts),
        "received_bytes": sum(part["received_bytes"] for part in parts),
        "loss": next((p["loss"] for p in reversed(parts) if p["loss"] is not None), None),
    }


# --- for people ---------------------------------------------------------------------------------


def curve(values: Sequence[float | None], width: int = CURVE_WIDTH) -> str:
    """Values as bars between their least and greatest; a blank where there is none. More than
    ``width`` are thinned, the last one always shown."""
    if len(values) > width:
        step = len(values) / width
        values = [values[len(values) - 1 - round(i * step)] for i in reversed(range(width))]
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)

    def bar(value: float) -> str:
        return BARS[round((value - low) / span * (len(BARS) - 1))] if span else BARS[0]

    return "".join(" " if value is None else bar(value) for value in values)


def page(state: Mapping[str, Any], folder: RunFolder) -> Group:
    """The state in at most 80 columns."""
    head = Text(f"{state['run']}  ", style="bold")
    head.append(state["state"], style=COLOURS[state["state"]])
    head.append(f"  round {state['round']}/{state['rounds']}")
    if state["state"] in AT_WORK:
        head.append(f"  {state['step']} for {_ago(state['since'])}")
    parts: list[Text | Table] = [head, *_notes(state, folder), _sites(state)]
    told = [auc for auc in state["validation"] if auc is not None]
    if told:
        best = f", best after round {state['best_round']}" if state["best_round"] else ""
        parts.append(
            Text.from_markup(
                f"validation AUC {escape(curve(state['validation']))} {told[-1]:.3f}{best}"
            )
        )
    if state["seconds_a_round"] is not None:
        text = f"a round takes {_span(state['seconds_a_round'])}"
        if state["remaining_seconds"] is not None:
            text += f", the rest about {_span(state['remaining_seconds'])}"
        parts.append(Text(text))
    return Group(*parts)


def _notes(state: Mapping[str, Any], folder: RunFolder) -> list[Text]:
    """What must be said in words."""
    compared = state["step"] == COMPARISON
    again = Text(f"go on with it: her2-server {'compare' if compared else 'resume'} {folder.path}")
    notes = []
    if state["state"] == "comparing":
        notes.append(Text("the run is finished; each site trains alone, to be compared with it"))
    elif compared and state["state"] != "finished":
        notes.append(Text("the run is finished, its comparison is not"))
    if state["state"] == "gone":
        gone = "the coordinator's process is gone without a word (killed?)"
        return [*notes, Text(gone, style="red"), again]
    if state["state"] == "stopped":
        return [*notes, Text(f"stopped: {state['why']}", style="red"), again]
    if state["state"] == "finished":
        files = [(name, state[name]) for name in ("report", "comparison")]
        return [Text(f"{name:<12}{path}") for name, path in files if path is not None]
    waits = sorted(state["waits_for"].items())
    return notes + [Text(f"waits for {name}: {reason}", style="yellow") for name, reason in waits]


def _sites(state: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, width=min(console.width, 80))
    table.add_column("site", ratio=3, overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("for", justify="right", no_wrap=True)
    table.add_column("received", justify="right", no_wrap=True)
    table.add_column("sent", justify="right", no_wrap=True)
    table.add_column("loss", justify="right", no_wrap=True)
    table.add_column("last reason", ratio=4, overflow="fold")
    for site in state["sites"]:
        alive = state["state"] in AT_WORK
        name = site["state"] if alive else f"({site['state']})"
        table.add_row(
            escape(site["name"]),
            Text(name, style=COLOURS.get(site["state"], "") if alive else "dim"),
            _ago(site["since"]) if alive else "",
            _bytes(site["received_bytes"]),
            _bytes(site["sent_bytes"]),
            "-" if site["loss"] is None else f"{site['loss']:.3f}",
            escape(site["reason"] or ""),
        )
    return table


def _ago(moment: str | None) -> str:
    if moment is None:
        return "-"
    return _span((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{max(seconds, 0):.1f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 360_000 else f"{seconds / 86400:.0f} d"


def _bytes(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"


def show(folder: RunFolder, *, once: bool = False) -> dict[str, Any]:
    """Show the state until the work ends or the user leaves (Ctrl-C); returns the last one.

    Raises:
        RunError: the folder holds no run.
    """
    state = state_of(folder)
    if once or state["state"] not in AT_WORK:
        console.print(page(state, folder))
        return state
    with Live(page(state, folder), console=console, auto_refresh=False) as live:
        try:
            # Between a run and its comparison the folder stays held
            while state["state"] in AT_WORK or folder.is_held():
                time.sleep(REFRESH_SECONDS)
                state = state_of(folder)
                live.update(page(state, folder), refresh=True)
        except KeyboardInterrupt:
            pass
    return state
