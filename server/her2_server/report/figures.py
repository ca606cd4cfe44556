"""The figures of results: learning curves, ROC, calibration, forest plots.

Every function takes parts of summary.json or metrics.jsonl (see her2_server.evaluation) and
returns one ``<svg>`` element.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, MultipleLocator

from her2_server.report.svg import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    RULE,
    add_axes,
    new_figure,
    to_svg,
)
from her2_server.report.text import interval, letter, number

Row = tuple[str, Mapping[str, Any] | None]
"""A label and the numbers of a group; None draws a heading."""

_MARKS: Final[dict[str, dict[str, Any]]] = {
    "accepted": {"marker": "o", "s": 15, "color": GREY},
    "refused": {"marker": "X", "s": 42, "color": ORANGE},
    "missing": {"marker": "o", "s": 26, "facecolors": "none", "edgecolors": ORANGE},
}


def learning_curves(
    rounds: Sequence[Mapping[str, Any]],
    final: Mapping[str, Any],
    sites: Sequence[str],
    final_round: int,
) -> str:
    """Validation AUC with its interval, training loss, and the updates of each site.

    Args:
        rounds: metrics.jsonl, one mapping a round. A round's validation is of the weights that it
            started from and is drawn at the number of rounds completed before it.
        final: the validation of the final weights, from summary.json.
        sites: names in the order of their letters.
        final_round: the round whose weights are the final ones; marked, if it is not the last.
    """
    last = rounds[-1]["round"]
    strip = 0.2 * len(sites) + 0.1
    figure = new_figure(4.6, 3.95 + strip)
    curve = add_axes(figure, (0.62, 2.2 + strip, 3.85, 1.6))
    loss = add_axes(figure, (0.62, 0.85 + strip, 3.85, 1.0))
    marks = add_axes(figure, (0.62, 0.42, 3.85, strip))

    points = [(entry["round"] - 1, (entry["validation"] or {}).get("auc")) for entry in rounds]
    if final_round == last:
        points.append((last, final.get("auc")))
    else:
        curve.axvline(final_round, color=MUTED, lw=0.8)
    known = [(x, auc) for x, auc in points if auc]
    xs = [x for x, _ in known]
    curve.fill_between(
        xs,
        [a["low"] for _, a in known],
        [a["high"] for _, a in known],
        color=BLUE,
        alpha=0.16,
        lw=0,
    )
    curve.axhline(0.5, color=MUTED, lw=0.8, ls=(0, (4, 3)))
    curve.plot(xs, [a["estimate"] for _, a in known], color=BLUE, lw=1.6, marker="o", ms=3.2)
    curve.set_ylim(min([0.4, *(a["low"] for _, a in known)]), 1.0)
    curve.set_ylabel("validation AUC")
    curve.text(
        0.995,
        0.5,
        "chance ",
        transform=curve.get_yaxis_transform(),
        ha="right",
        va="bottom",
        color=MUTED,
        fontsize=8,
    )

    losses = [(e["round"], e["loss"]) for e in rounds if e["loss"] is not None]
    loss.plot(
        *zip(*losses, strict=True) if losses else ([], []), color=GREEN, lw=1.6, marker="o", ms=3.2
    )
    loss.set_ylabel("training loss")

    for row, name in enumerate(sites):
        for entry in rounds:
            status = entry["sites"].get(name, {}).get("status", "missing")
            marks.scatter(
                [entry["round"]], [row], zorder=3, **_MARKS.get(status, _MARKS["missing"])
            )
    marks.set_ylim(len(sites) - 0.5, -0.6)
    marks.set_yticks(range(len(sites)), [letter(row) for row in range(len(sites))])
    marks.spines["left"].set_visible(False)
    marks.tick_params(axis="y", length=0)
    marks.set_xlabel("rounds completed")
    for axes in (curve, loss, marks):
        axes.set_xlim(-0.4, last + 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.grid(axis="y" if axes is not marks else "x", color=RULE, lw=0.5, alpha=0.6)
        axes.set_axisbelow(True)
    for axes in (curve, loss):
        axes.tick_params(labelbottom=False)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))

    ends = f"from {interval(known[0][1])} to {interval(known[-1][1])}" if known else "is not known"
    return to_svg(
        figure,
        "learning",
        "Learning curves",
        f"Validation AUC over {last} rounds, {ends}. Below it the training loss and a mark for "
        "the update of each site in each round.",
    )


def roc(result: Mapping[str, Any]) -> str:
    """The ROC curve with the operating point and its two intervals."""
    figure = new_figure(4.4, 4.0)
    axes = unit_square(add_axes(figure, (0.62, 0.55, 3.6, 3.3)))
    fpr, tpr = zip(*result["roc"], strict=True)
    axes.fill_between(fpr, tpr, color=BLUE, alpha=0.1, lw=0)
    axes.plot(fpr, tpr, color=BLUE, lw=1.8)
    sensitivity, specificity = result["sensitivity"], result["specificity"]
    x, y = 1 - specificity["estimate"], sensitivity["estimate"]
    axes.plot([1 - specificity["high"], 1 - specificity["low"]], [y, y], color=ORANGE, lw=1.4)
    axes.plot([x, x], [sensitivity["low"], sensitivity["high"]], color=ORANGE, lw=1.4)
    axes.plot([x], [y], "o", ms=7, color=ORANGE, mec=PAPER, mew=1.2)
    axes.text(0.97, 0.05, f"AUC {interval(result['auc'])}", ha="right", fontsize=9.5)
    axes.set_xlabel("1 − specificity")
    axes.set_ylabel("sensitivity")
    return to_svg(
        figure,
        "roc",
        "ROC curve of the test cases",
        f"AUC {interval(result['auc'])}. Operating point: sensitivity "
        f"{interval(sensitivity)}, specificity {interval(specificity)}.",
    )


def calibration(
    all_bins: Sequence[Mapping[str, Any]],
    name: str = "calibration",
    title: str = "Calibration of the test cases",
    observed: str = "share that is positive",
    tag: str = "",
) -> str:
    """The reliability diagram, with the number of cases of each bin below it.

    Args:
        all_bins: ``{"low", "high", "n", "mean_score", "observed"}`` each; empty ones and those
            whose number is withheld are not drawn.
        name: unique in the page.
        title: what is compared.
        observed: label of the upper axis.
        tag: a warning drawn into the figure, so that no copy of it goes without.
    """
    foot = 0.25 if tag else 0.0
    figure = new_figure(4.4, 4.0 + foot)
    axes = unit_square(add_axes(figure, (0.62, 1.3 + foot, 3.4, 2.55)))
    below = add_axes(figure, (0.62, 0.55 + foot, 3.4, 0.55))
    bins = [bin_ for bin_ in all_bins if bin_["n"] and bin_["observed"]]
    for bin_ in bins:
        x, seen = bin_["mean_score"], bin_["observed"]
        axes.plot([x, x], [seen["low"], seen["high"]], color=BLUE, lw=1.4)
        axes.plot([x], [seen["estimate"]], "o", ms=6, color=BLUE, mec=PAPER, mew=1.0)
        below.bar(
            bin_["low"],
            bin_["n"],
            bin_["high"] - bin_["low"],
            align="edge",
            color=GREY,
            edgecolor=PAPER,
            lw=1.0,
        )
    axes.plot(
        [bin_["mean_score"] for bin_ in bins],
        [bin_["observed"]["estimate"] for bin_ in bins],
        color=BLUE,
        lw=1.0,
        alpha=0.5,
    )
    axes.tick_params(labelbottom=False)
    axes.set_ylabel(observed)
    below.set_xlim(-0.02, 1.02)
    below.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    below.yaxis.set_major_locator(MaxNLocator(nbins=2, integer=True))
    below.set_ylabel("cases")
    below.set_xlabel("score")
    points = "; ".join(
        f"{bin_['n']} cases with mean score {number(bin_['mean_score'])}: "
        f"{interval(bin_['observed'])}"
        for bin_ in bins
    )
    figure.text(0.02, 0.012, tag, fontsize=8, color=ORANGE, va="bottom")
    return to_svg(figure, name, title, f"{tag} Observed: {points}.".strip())


def reliability(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> str:
    """Reliability of the validation cases before and after the temperature, two sets of bins."""
    figure = new_figure(4.4, 4.0)
    axes = unit_square(add_axes(figure, (0.62, 0.55, 3.6, 3.3)))
    told = []
    for words, bins, colour, face in (
        ("before", before, ORANGE, PAPER),
        ("after", after, BLUE, BLUE),
    ):
        filled = [bin_ for bin_ in bins if bin_["n"]]
        x = [bin_["mean_score"] for bin_ in filled]
        seen = [bin_["observed"] for bin_ in filled]
        axes.plot(x, [s["estimate"] for s in seen], color=colour, lw=1.0, alpha=0.5)
        for at, share in zip(x, seen, strict=True):
            axes.plot([at, at], [share["low"], share["high"]], color=colour, lw=1.2)
            axes.plot([at], [share["estimate"]], "o", ms=6, color=face, mec=colour, mew=1.4)
        points = (f"{number(a)}: {interval(s)}" for a, s in zip(x, seen, strict=True))
        told.append(f"{words}, by mean score, {'; '.join(points)}")
    axes.set_xlabel("score")
    axes.set_ylabel("share that is positive")
    return to_svg(
        figure, "temperature", "Reliability before and after the temperature", f"{'. '.join(told)}."
    )


def unit_square(axes: Axes) -> Axes:
    """Both axes 0 to 1, with the diagonal."""
    axes.plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls=(0, (4, 3)))
    ticks = [0, 0.25, 0.5, 0.75, 1]
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.grid(color=RULE, lw=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    return axes


def forest(name: str, title: str, rows: Sequence[Row], pooled: Mapping[str, Any] | None) -> str:
    """AUC of each group with its interval; a suppressed group is named, without numbers.

    Args:
        name: unique in the page.
        title: what is compared.
        rows: label and numbers ``{"n", "positives", "auc"}``, or ``{"suppressed": true}``.
        pooled: the AUC over all cases, drawn as a band behind the groups.
    """
    step = 0.34
    figure = new_figure(4.7, step * (len(rows) + 1) + 0.5)
    axes = add_axes(figure, (1.95, 0.45, 1.5, step * len(rows)))
    aucs = [result["auc"] for _, result in rows if result and result.get("auc")]
    left = min([0.4, *(math.floor(10 * auc["low"]) / 10 for auc in aucs)])
    axes.set_xlim(left, 1.005)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.axvline(0.5, color=MUTED, lw=0.8, ls=(0, (4, 3)))
    if pooled:
        axes.axvspan(pooled["low"], pooled["high"], color=BLUE, alpha=0.12, lw=0)
        axes.axvline(pooled["estimate"], color=BLUE, lw=0.9, alpha=0.8)
    _forest_text(axes, -1, "", "cases (positive)", "AUC (95 % CI)", color=MUTED)
    most = max([result.get("n") or 1 for _, result in rows if result], default=1)
    told = []
    for y, (label, result) in enumerate(rows):
        if result is None:
            _forest_text(axes, y + 0.12, label, "", "", color=MUTED, style="italic")
            continue
        auc = result.get("auc")
        if auc is None:
            reason = "not published" if result.get("suppressed") else "one class only"
            _forest_text(axes, y, label, "", reason, color=MUTED)
            told.append(f"{label}: {reason}")
            continue
        axes.plot([auc["low"], auc["high"]], [y, y], color=INK, lw=1.3, solid_capstyle="butt")
        marker = 4 + 4 * math.sqrt(result["n"] / most)
        axes.plot([auc["estimate"]], [y], "s", ms=marker, color=BLUE, mec=PAPER, mew=0.8)
        middle, low, high = (number(auc[key]) for key in ("estimate", "low", "high"))
        cases = f"{result['n']:,} ({result['positives']:,})"
        _forest_text(axes, y, label, cases, f"{middle} ({low}–{high})", color=INK)
        told.append(f"{label}: {interval(auc)}, {result['n']} cases")
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MultipleLocator(0.2))
    axes.set_xlabel("AUC")
    return to_svg(figure, name, title, "; ".join(told) + ".")


def _forest_text(axes: Axes, y: float, label: str, cases: str, result: str, **style: Any) -> None:
    """One line of a forest plot's three columns; a long label takes two lines."""
    label = "\n".join(textwrap.wrap(label, 17, max_lines=2, placeholder="…")) if cases else label
    for x, words, side in ((-1.26, label, "left"), (-0.05, cases, "right"), (1.05, result, "left")):
        axes.text(
            x,
            y,
            words,
            ha=side,
            va="center",
            fontsize=8.5,
            transform=axes.get_yaxis_transform(),
            **style,
        )
