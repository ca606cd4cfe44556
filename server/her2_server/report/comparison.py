"""The section on what federation is worth for each centre, from compare.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from her2_server.report.svg import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    add_axes,
    new_figure,
    to_svg,
)
from her2_server.report.text import listed, shorten

MODELS: Final = {"local": "local", "federated": "federated", "personal": "personalised"}
"""Model -> how the report calls it."""

_DRAWN: Final = (("federated - local", BLUE, "s"), ("personal - local", GREEN, "o"))
"""The differences of the figure: colour and marker."""


def section(result: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the template needs: figure, rows, models, alarms and notes; None if there is nothing."""
    if result is None:
        return None
    centres: Mapping[str, Mapping[str, Any]] = result["centres"]
    compared = {name: one for name, one in centres.items() if one["status"] == "compared"}
    models = [name for name in MODELS if any(name in one["auc"] for one in compared.values())]
    return {
        "figure": forest(compared, result["overall"]) if compared else None,
        "centres": centres,
        "models": [(name, MODELS[name]) for name in models],
        "personal": "personal" in models,
        "alarms": _named(compared, "worse"),
        "notes": _named(compared, "perhaps worse"),
        "mean": result["overall"].get("federated - local"),
    }


def _named(compared: Mapping[str, Mapping[str, Any]], verdict: str) -> str:
    return listed([name for name, one in compared.items() if one["verdict"] == verdict])


def signed(estimate: Mapping[str, float] | None) -> str:
    """A difference of AUC with its interval and signs.

    >>> signed({"estimate": -0.031, "low": -0.07, "high": 0.008})
    '−0.03 (−0.07 to +0.01)'
    """
    if estimate is None:
        return "–"
    middle, low, high = (_sign(estimate[key]) for key in ("estimate", "low", "high"))
    return f"{middle} ({low} to {high})"


def _sign(value: float) -> str:
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")


def forest(compared: Mapping[str, Mapping[str, Any]], overall: Mapping[str, Any]) -> str:
    """The differences of each centre with their intervals, and the mean over the centres.

    Right of the line, the first model of a difference ranks the centre's cases better.
    """
    shown = [kind for kind in _DRAWN if any(kind[0] in c["difference"] for c in compared.values())]
    height, step = 0.3 + 0.2 * (len(shown) - 1), len(compared) + 1
    figure = new_figure(4.7, height * step + 0.75)
    axes = add_axes(figure, (1.3, 0.45, 1.75, height * step))
    told = []
    for y, (name, centre) in enumerate(compared.items()):
        _words(axes, y, shorten(name, 18), INK)
        for place, (key, colour, marker) in enumerate(shown):
            gap = centre["difference"].get(key)
            if gap is None:
                continue
            alarm = key == "federated - local" and centre["verdict"] == "worse"
            at = y + (place - (len(shown) - 1) / 2) * 0.42
            _mark(axes, at, gap, ORANGE if alarm else colour, marker)
            told.append(f"{name}, {_called(key)}: {signed(gap)}")
    for place, (key, colour, _) in enumerate(shown):
        mean = overall.get(key)
        if mean is not None:
            at = len(compared) + (place - (len(shown) - 1) / 2) * 0.42
            _mark(axes, at, mean, colour, "D")
            told.append(f"mean, {_called(key)}: {signed(mean)}")
    _words(axes, len(compared), "mean of centres", MUTED)
    axes.axvline(0, color=MUTED, lw=0.8, ls=(0, (4, 3)))
    axes.set_ylim(len(compared) + 0.6, -0.6)
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.set_xlabel("difference of AUC")
    return to_svg(figure, "worth", "Difference of AUC by centre", "; ".join(told) + ".")


def _called(key: str) -> str:
    first, second = key.split(" - ")
    return f"{MODELS[first]} less {MODELS[second]}"


def _words(axes: Axes, y: float, words: str, colour: str) -> None:
    place = axes.get_yaxis_transform()
    axes.text(-0.04, y, words, ha="right", va="center", fontsize=8.5, color=colour, transform=place)


def _mark(axes: Axes, y: float, gap: Mapping[str, float], colour: str, marker: str) -> None:
    axes.plot([gap["low"], gap["high"]], [y, y], color=INK, lw=1.3, solid_capstyle="butt")
    axes.plot([gap["estimate"]], [y], marker, ms=6, color=colour, mec=PAPER, mew=0.8)
    place = axes.get_yaxis_transform()
    axes.text(1.05, y, signed(gap), ha="left", va="center", fontsize=8.5, transform=place)
