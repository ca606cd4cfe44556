"""The figures of the federation: patient flow, bytes and seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from matplotlib.axes import Axes

from her2_common.cases import MODALITIES
from her2_server.report.svg import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    PURPLE,
    RULE,
    add_axes,
    new_figure,
    to_svg,
)
from her2_server.report.text import MODALITY_NAMES, WITHHELD, count, duration, shorten, size

_STUB: Final = 0.03
"""Width, as a share of the axis, that stands for a count that is withheld."""

_SPLITS: Final = (
    ("train", "training", BLUE),
    ("val", "validation", GREEN),
    ("test", "test", ORANGE),
)
_PHASES: Final = (
    ("train", BLUE),
    ("wait", GREY),
    ("evaluate", GREEN),
    ("aggregate", ORANGE),
    ("checkpoint", PURPLE),
)


def patient_flow(site: Mapping[str, Any], index: int) -> str:
    """One centre: in the table, accepted, split into three parts; and who has which modality.

    ``site`` is an entry of ``sites`` in summary.json. Counts that are None are drawn as a hatched
    stub of fixed width and labelled "withheld".
    """
    flow = site.get("flow") or {}
    accepted, whole = flow.get("accepted"), flow.get("in_table")
    known = sum(n or 0 for n in (site.get("cases") or {}).values())
    scale = whole or accepted or known or 1
    figure = new_figure(4.5, 2.05)
    axes = add_axes(figure, (0.98, 0.08, 2.55, 1.9))
    axes.axis("off")
    axes.set_xlim(0, scale)
    axes.set_ylim(6.75, -0.55)
    told = [f"in the table {count(whole)}", f"accepted {count(accepted)}"]

    _bar(axes, 0, "in the table", whole, scale, GREY)
    _bar(axes, 1, "accepted", accepted, scale, INK)
    start = 0.0
    for split, name, colour in _SPLITS:
        value = (site.get("cases") or {}).get(split)
        width = _STUB * scale if value is None else value
        _rectangle(axes, start, 2, width, colour, unknown=value is None)
        if width > 0.09 * scale:
            axes.text(
                start + width / 2,
                2,
                f"{value:,}",
                ha="center",
                va="center",
                color=PAPER,
                fontsize=8.5,
            )
        start += width
        told.append(f"{name} {count(value)}")
    _label(axes, 2, "split")
    for row, modality in enumerate(MODALITIES, start=4):
        known, hidden = _having(site, modality)
        words = _at_least(known, hidden)
        if known and not hidden and accepted:
            words += f" ({100 * known / accepted:.0f} %)"
        _rectangle(axes, 0, row, accepted or scale, RULE, alpha=0.45)
        _rectangle(axes, 0, row, known, PURPLE)
        if hidden:
            _rectangle(axes, known, row, _STUB * scale, PURPLE, unknown=True)
        _label(axes, row, MODALITY_NAMES[modality])
        axes.text((accepted or scale) + 0.015 * scale, row, words, va="center", fontsize=8.5)
        told.append(f"{MODALITY_NAMES[modality]} {words}")
    return to_svg(figure, f"flow-{index}", f"Patient flow at {site['name']}", "; ".join(told) + ".")


def _having(site: Mapping[str, Any], modality: str) -> tuple[int, bool]:
    """Cases with ``modality`` as far as they are published, and whether others are withheld."""
    whole = site["modalities"].get(modality, 0)
    if whole is not None:
        return whole, False
    parts = [n for name, n in site["combinations"].items() if modality in name.split("+")]
    return sum(n for n in parts if n is not None), True


def _at_least(known: int, hidden: bool) -> str:
    if not hidden:
        return f"{known:,}" if known else "none"
    return f"{known:,} or more" if known else WITHHELD


def _bar(
    axes: Axes,
    row: float,
    label: str,
    value: int | None,
    scale: float,
    colour: str,
) -> None:
    width = _STUB * scale if value is None else value
    _rectangle(axes, 0, row, width, colour, unknown=value is None)
    _label(axes, row, label)
    axes.text(width + 0.015 * scale, row, count(value), va="center", fontsize=8.5, clip_on=False)


def _label(axes: Axes, row: float, label: str) -> None:
    axes.text(
        -0.02,
        row,
        label,
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="center",
        fontsize=8.5,
        color=MUTED,
    )


def _rectangle(
    axes: Axes,
    start: float,
    row: float,
    width: float,
    colour: str,
    *,
    unknown: bool = False,
    alpha: float = 1.0,
) -> None:
    axes.barh(
        [row],
        [width],
        0.72,
        left=[start],
        alpha=alpha,
        lw=0.8,
        edgecolor=PAPER if not unknown else colour,
        color="none" if unknown else colour,
        hatch="//////" if unknown else None,
    )


def traffic(sites: Sequence[Mapping[str, Any]]) -> str:
    """Bytes that left and that reached each centre."""
    figure = new_figure(4.5, 0.56 * len(sites) + 0.35)
    axes = add_axes(figure, (1.4, 0.1, 2.4, 0.56 * len(sites) + 0.15))
    most = max(
        (site[k] or 0 for site in sites for k in ("sent_bytes", "received_bytes")), default=0
    )
    axes.set_xlim(0, most or 1)
    axes.set_ylim(len(sites) - 0.45, -0.6)
    axes.axis("off")
    for row, site in enumerate(sites):
        axes.text(
            -0.02,
            row,
            shorten(site["name"], 22),
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="center",
            fontsize=8.5,
        )
        for key, shift, colour in (("sent_bytes", -0.18, ORANGE), ("received_bytes", 0.18, GREY)):
            value = site[key] or 0
            axes.barh([row + shift], [value], 0.3, color=colour, lw=0)
            axes.text(
                value + 0.015 * (most or 1), row + shift, size(site[key]), va="center", fontsize=8
            )
    return to_svg(
        figure,
        "traffic",
        "Bytes that left and reached each centre",
        "; ".join(
            f"{site['name']}: left {size(site['sent_bytes'])}, received "
            f"{size(site['received_bytes'])}"
            for site in sites
        )
        + ".",
    )


def phases(seconds: Mapping[str, float | None]) -> str:
    """Seconds of the run by phase; what no phase accounts for is "other"."""
    parts = [(name, seconds.get(name) or 0.0, colour) for name, colour in _PHASES]
    rest = (seconds.get("total") or 0.0) - sum(value for _, value, _ in parts)
    if rest > 0.05:
        parts.append(("other", rest, MUTED))
    most = max(value for _, value, _ in parts) or 1.0
    figure = new_figure(4.5, 0.3 * len(parts) + 0.25)
    axes = add_axes(figure, (1.4, 0.1, 2.4, 0.3 * len(parts) + 0.1))
    axes.set_xlim(0, most)
    axes.set_ylim(len(parts) - 0.5, -0.5)
    axes.axis("off")
    for row, (name, value, colour) in enumerate(parts):
        axes.barh([row], [value], 0.62, color=colour, lw=0)
        axes.text(
            -0.02,
            row,
            name,
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="center",
            fontsize=8.5,
        )
        axes.text(value + 0.015 * most, row, duration(value), va="center", fontsize=8)
    return to_svg(
        figure,
        "phases",
        "Seconds by phase",
        "; ".join(f"{name} {duration(value)}" for name, value, _ in parts) + ".",
    )
