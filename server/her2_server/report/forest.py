"""Forest plots of the response evaluation: estimates with 95 % intervals, one line each.

Odds ratios stand on a logarithmic axis with 1 marked. A line that is suppressed, or that has no
answer, says so in words and has no mark. An interval that leaves the axis ends in an arrow.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from matplotlib.axes import Axes

from her2_server.report.response_words import Estimate, estimate, shown, value
from her2_server.report.svg import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    RULE,
    add_axes,
    new_figure,
    to_svg,
)


@dataclass(frozen=True)
class Line:
    """One line: an estimate with the patients behind it, or ``words`` in its place.

    ``style``: a group (square), a pooled answer (diamond), a range without a middle (the
    prediction of a new centre), or a heading, of which the label alone is drawn.
    """

    label: str
    n: str = ""
    numbers: Estimate | None = None
    words: str = "no answer"
    style: Literal["group", "pooled", "range", "heading"] = "group"


@dataclass(frozen=True)
class Scale:
    """The axis: what it measures, its reference, the words at its two ends."""

    label: str
    head: str
    reference: float
    low: float
    high: float
    log: bool = False
    ends: tuple[str, str] | None = None
    digits: int = 2
    factor: float = 1.0


ODDS_RATIO: Final = Scale(
    label="odds ratio of pCR, logarithmic scale",
    head="OR (95 % interval)",
    reference=1.0,
    low=0.02,
    high=50.0,
    log=True,
    ends=("← less pCR if\nmodel-positive", "more pCR if →\nmodel-positive"),
)
AUC: Final = Scale("AUC for pCR", "AUC (95 % interval)", 0.5, 0.0, 1.0)
PCR_RATE: Final = Scale(
    "patients with a pCR, %", "% (95 % interval)", 0.0, 0.0, 1.0, digits=1, factor=100.0
)
_TICKS: Final = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
_WHISKERS: Final = (0.1, 10.0)
"""Odds ratios between which the axis follows intervals; a longer one ends in an arrow."""

_STEP: Final = 0.31
_WIDTH, _LEFT, _AXIS = 4.65, 1.95, 1.3
"""Inches: height of a line; width of the figure, what is left of the axis, the axis."""


def forest(
    name: str,
    title: str,
    lines: Sequence[Line],
    scale: Scale,
    *,
    n_head: str = "patients",
    pooled: Estimate | None = None,
    relevant: float | None = None,
    tag: str = "",
) -> str:
    """The lines from top to bottom: label, patients, mark with its whisker, numbers.

    Args:
        name: unique in the page.
        title: what is compared.
        lines: what is drawn; the description for screen readers holds all of them.
        scale: ``ODDS_RATIO``, ``AUC`` or ``PCR_RATE``.
        n_head: heading of the patients' column.
        pooled: an answer drawn as a band behind the lines.
        relevant: the smallest relevant odds ratio, a dotted line.
        tag: a warning drawn into the figure, so that no copy of it goes without.
    """
    low, high = _limits(lines, scale, relevant)
    foot = 0.5 + 0.36 * (scale.ends is not None) + 0.22 * bool(tag)
    figure = new_figure(_WIDTH, _STEP * (len(lines) + 1) + foot + 0.04)
    axes = add_axes(figure, (_LEFT, foot, _AXIS, _STEP * len(lines)))
    if scale.log:
        axes.set_xscale("log")
    axes.set(xlim=(low, high), ylim=(len(lines) - 0.5, -0.5))
    if pooled:
        start, middle, end = (pooled[key] for key in ("low", "estimate", "high"))
        if start is not None and middle is not None and end is not None:
            axes.axvspan(start, end, color=BLUE, alpha=0.12, lw=0)
            axes.axvline(middle, color=BLUE, lw=0.9, alpha=0.8)
    axes.axvline(scale.reference, color=INK, lw=0.9)
    if relevant is not None:
        axes.axvline(relevant, color=ORANGE, lw=1.1, ls=(0, (1, 2)))
    _columns(axes, -1, "", n_head, scale.head, color=MUTED)
    told = [_line(axes, y, line, scale, (low, high)) for y, line in enumerate(lines)]

    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    if scale.log:
        ticks = [tick for tick in _TICKS if low <= tick <= high]
        wide = len(ticks) > 6
        names = [f"{t:g}" if not wide or t in (0.02, 0.1, 1, 10, 50) else "" for t in ticks]
        axes.set_xticks(ticks, names)
        axes.minorticks_off()
    else:
        ticks = [k / 4 for k in range(5) if low <= k / 4 <= high]
        axes.set_xticks(ticks, [f"{scale.factor * t:g}" for t in ticks])
    axes.grid(axis="x", color=RULE, lw=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(scale.label)
    height = figure.get_size_inches()[1]
    if scale.ends is not None:
        at = (foot - 0.5) / height
        centre = _LEFT + _AXIS / 2
        for shift, side, words in zip((-0.07, 0.07), ("right", "left"), scale.ends, strict=True):
            x = (centre + shift) / _WIDTH
            figure.text(x, at, words, ha=side, va="top", fontsize=7.5, color=MUTED)
    if tag:
        figure.text(0.02, 0.05 / height, tag, fontsize=8, color=ORANGE, va="bottom")
    description = "; ".join(part for part in told if part) + "."
    return to_svg(figure, name, title, f"{tag} {description}".strip())


def _limits(lines: Sequence[Line], scale: Scale, relevant: float | None) -> tuple[float, float]:
    """The axis holds all estimates and, up to a point, their intervals; a range may leave it."""
    drawn = [line.numbers for line in lines if line.numbers and line.style != "range"]
    ends = [v for numbers in drawn for v in numbers.values() if v is not None]
    if not scale.log:
        inside = [min(max(v, scale.low), scale.high) for v in ends]
        floor = min([math.floor(10 * v) / 10 for v in inside], default=scale.low)
        return min(floor, scale.reference - 0.1 * (scale.reference > 0)), scale.high + 0.005
    middles = [numbers["estimate"] for numbers in drawn]
    inside = [min(max(v, scale.low), scale.high) for v in middles if v is not None]
    inside += [min(max(v, _WHISKERS[0]), _WHISKERS[1]) for v in ends]
    low, high = min([0.5, *inside]), max([2.0, relevant or 2.0, *inside])
    return low / 1.15, high * 1.15


def _line(axes: Axes, y: int, line: Line, scale: Scale, limits: tuple[float, float]) -> str:
    label = shown(line.label)
    if line.style == "heading":
        _columns(axes, y + 0.1, label, "", "", color=MUTED, style="italic")
        return ""
    if line.numbers is None:
        _columns(axes, y, label, line.n, line.words, color=MUTED)
        return f"{label}: {line.words}"
    numbers = line.numbers
    _whisker(axes, y, numbers, limits, scale.log)
    middle = numbers["estimate"]
    if line.style != "range" and middle is not None and limits[0] <= middle <= limits[1]:
        mark = {"group": "s", "pooled": "D"}[line.style]
        colour = BLUE if line.style == "pooled" else INK
        axes.plot([middle], [y], mark, ms=6.5, color=colour, mec=PAPER, mew=0.8, zorder=3)
    said = estimate(numbers, scale.digits, scale.factor)
    bounds = [value(numbers[key], scale.digits, scale.factor) for key in ("low", "high")]
    printed = f"{value(middle, scale.digits, scale.factor)} ({bounds[0]}–{bounds[1]})"
    if line.style == "range":
        said, printed = " to ".join(bounds), f"({bounds[0]}–{bounds[1]})"
    _columns(axes, y, label, line.n, printed, color=INK)
    return f"{label}: {said}" + (f", {line.n} patients" if line.n else "")


def _whisker(axes: Axes, y: int, numbers: Estimate, limits: tuple[float, float], log: bool) -> None:
    """The 95 % interval, with an arrow where it leaves the axis or has no end."""
    low, high = numbers["low"], numbers["high"]
    start = limits[0] if low is None else min(max(low, limits[0]), limits[1])
    end = limits[1] if high is None else min(max(high, limits[0]), limits[1])
    axes.plot([start, end], [y, y], color=INK, lw=1.3, solid_capstyle="butt", zorder=2)
    for cut, at, mark in (
        (low is None or low < limits[0], start, "<"),
        (high is None or high > limits[1], end, ">"),
    ):
        if cut:
            axes.plot([at], [y], mark, ms=5, color=INK, mec=INK, clip_on=False, zorder=2)


def _columns(axes: Axes, y: float, label: str, n: str, words: str, **style: Any) -> None:
    """The texts of one line; a long label takes two lines."""
    if n or words:
        label = "\n".join(textwrap.wrap(label, 21, max_lines=2, placeholder="…"))
    for x, said, side in (
        (-0.98 * _LEFT / _AXIS, label, "left"),
        (-0.06, n, "right"),
        (1.06, words, "left"),
    ):
        axes.text(
            x,
            y,
            said,
            ha=side,
            va="center",
            fontsize=8.2,
            linespacing=0.95,
            parse_math=False,
            transform=axes.get_yaxis_transform(),
            **style,
        )


# --- lines from the document ---------------------------------------------------------------------


def hidden(label: str, words: str) -> Line:
    """A line that names what is suppressed."""
    return Line(label, words=words)


def primary_lines(primary: Mapping[str, Any], words: str, *, short: bool = False) -> list[Line]:
    """The forest of the primary comparison: centres, all together, and without each centre.

    Args:
        primary: ``primary`` of the document.
        words: stands for a suppressed centre.
        short: without the sensitivity analyses.
    """
    n = _count(primary["n"])
    lines = [Line("by centre", style="heading")]
    lines += [
        hidden(row["centre"], words)
        if row.get("suppressed")
        else Line(row["centre"], _count(row["n"]), row["odds_ratio"])
        for row in primary["by_centre"]
    ]
    lines += [
        Line("all centres together", style="heading"),
        Line("Mantel-Haenszel", n, primary["odds_ratio"], style="pooled"),
    ]
    if short:
        return lines
    lines.append(Line("exact conditional", n, primary["exact_odds_ratio"], style="pooled"))
    if (spread := primary["heterogeneity"]) is not None:
        effects = f"random effects, {spread['centres']} centres"
        lines.append(Line(effects, "", spread["odds_ratio"], style="pooled"))
        if spread["prediction"] is not None:
            lines.append(Line("expected in a new centre", "", spread["prediction"], style="range"))
    by_both = "by centre and HR status, where known"
    lines.append(Line(by_both, "", primary["by_centre_and_hr"], style="pooled"))
    if primary["left_out"]:
        lines.append(Line("one centre left out", style="heading"))
    counts = {row["centre"]: row.get("n") for row in primary["by_centre"]}
    for part in primary["left_out"]:
        own = counts.get(part["centre"])
        rest = "" if own is None or primary["n"] is None else _count(primary["n"] - own)
        lines.append(Line(f"without {part['centre']}", rest, part["odds_ratio"], style="pooled"))
    return lines


def _count(n: int | None) -> str:
    return "" if n is None else f"{n:,}"
