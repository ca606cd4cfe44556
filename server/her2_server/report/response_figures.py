"""The figures of the response evaluation besides the forest of the primary comparison.

Every function takes parts of the response document and returns one ``<svg>`` element. Figures over
all comers carry ``ALL_COMERS_TAG`` inside, so that a copy of one does not lose it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from her2_server.report.figures import unit_square
from her2_server.report.forest import AUC, ODDS_RATIO, PCR_RATE, Line, forest
from her2_server.report.response_words import (
    ALL_COMERS_TAG,
    estimate,
    kind,
    of,
    p_value,
    share,
    subgroup,
    value,
)
from her2_server.report.svg import (
    BLUE,
    INK,
    ORANGE,
    PAPER,
    RULE,
    add_axes,
    new_figure,
    to_svg,
)

_COLOURS: Final = {"imaging": BLUE, "biopsy": ORANGE}
_DASHES: Final[dict[str, Any]] = {"imaging": "-", "biopsy": (0, (5, 2))}


def roc(
    curves: Mapping[str, Sequence[Sequence[float]]],
    points: Sequence[Mapping[str, Any]],
    areas: Mapping[str, Any],
) -> str:
    """ROC curves of the image and of the biopsy, with their operating points.

    Args:
        curves: ``roc`` of the document.
        points: ``operating_points.points``; one whose counts are suppressed is not drawn.
        areas: ``auc`` of the document, or nothing.
    """
    figure = new_figure(4.4, 4.25)
    axes = unit_square(add_axes(figure, (0.62, 0.8, 3.6, 3.3)))
    told = []
    for row, (name, colour) in enumerate(_COLOURS.items()):
        fpr, tpr = zip(*curves[name], strict=True)
        axes.plot(fpr, tpr, color=colour, lw=1.8, ls=_DASHES[name])
        area = f"{name}: AUC {estimate(areas.get(name))}"
        axes.text(0.98, 0.12 - 0.07 * row, area, ha="right", fontsize=9, color=colour)
        told.append(area)
    for point in points:
        told.append(_operating_point(axes, point))
    axes.set_xlabel("1 − specificity: called positive among patients without a pCR")
    axes.set_ylabel("sensitivity: called positive among those with")
    return _tagged(figure, "response-roc", "ROC curves of image and biopsy for pCR", told)


def _operating_point(axes: Axes, point: Mapping[str, Any]) -> str:
    sensitivity, specificity = (point[key]["wilson"] for key in ("sensitivity", "specificity"))
    at = f"{point['name']} at {value(point['threshold'], 4)}"
    if sensitivity is None or specificity is None:
        return f"{at}: not shown"
    colour = _COLOURS.get(point["name"], INK)
    x, y = 1 - specificity["estimate"], sensitivity["estimate"]
    axes.plot([1 - specificity["high"], 1 - specificity["low"]], [y, y], color=colour, lw=1.3)
    axes.plot([x, x], [sensitivity["low"], sensitivity["high"]], color=colour, lw=1.3)
    axes.plot([x], [y], "o", ms=7, color=colour, mec=PAPER, mew=1.2)
    return f"{at}: sensitivity {share(sensitivity)}, specificity {share(specificity)}"


def decision_curve(points: Sequence[Mapping[str, Any]]) -> str:
    """Net benefit of treating by the score, against treating all and treating none."""
    figure = new_figure(4.4, 4.05)
    axes = add_axes(figure, (0.72, 0.8, 3.5, 3.1))
    x = [100 * point["threshold"] for point in points]
    for key, colour, dashes, words in (
        ("treat_all", ORANGE, (0, (5, 2)), "treat all"),
        ("model", BLUE, "-", "treat by score"),
    ):
        curve = [point[key] for point in points]
        axes.fill_between(
            x,
            [part["low"] for part in curve],
            [part["high"] for part in curve],
            color=colour,
            alpha=0.14,
            lw=0,
        )
        axes.plot(x, [p["estimate"] for p in curve], color=colour, lw=1.7, ls=dashes, label=words)
    axes.axhline(0, color=INK, lw=1.1, label="treat none")
    top = max(p[key]["high"] for p in points for key in ("model", "treat_all"))
    axes.set_ylim(-0.12, max(top, 0.05) * 1.05)
    axes.legend(frameon=False, fontsize=8.5, loc="upper right", labelcolor=INK)
    axes.grid(color=RULE, lw=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("threshold probability of pCR, %")
    axes.set_ylabel("net benefit, true positives a patient")
    told = [
        f"at {value(p['threshold'], 0, 100)} %: by score {estimate(p['model'], 3)}, "
        f"treat all {estimate(p['treat_all'], 3)}"
        for p in points
    ]
    return _tagged(figure, "response-decision", "Decision curve for pCR", told)


def _tagged(figure: Figure, name: str, title: str, told: Sequence[str]) -> str:
    """The figure with the warning about all comers at its foot."""
    height = figure.get_size_inches()[1]
    figure.text(0.02, 0.05 / height, ALL_COMERS_TAG, fontsize=8, color=ORANGE, va="bottom")
    return to_svg(figure, name, title, f"{ALL_COMERS_TAG} {'; '.join(told)}.")


def auc_forest(auc: Mapping[str, Any], words: str) -> str:
    """AUC of image and biopsy in each centre, and of all together."""
    lines: list[Line] = []
    for centre, numbers in auc["by_centre"].items():
        if numbers.get("suppressed"):
            lines += [Line(centre, style="heading"), Line("  both", words=words)]
            continue
        lines.append(Line(centre, style="heading"))
        n = "" if numbers["n"] is None else f"{numbers['n']:,}"
        lines += [Line(f"  {name}", n, numbers[name]) for name in _COLOURS]
    pooled = "" if auc["n"] is None else f"{auc['n']:,}"
    for title, part, n in (("pooled", auc, pooled), ("within centres", auc["stratified"], "")):
        lines.append(Line(f"all centres, {title}", style="heading"))
        lines += [Line(f"  {name}", n, (part or {}).get(name), style="pooled") for name in _COLOURS]
    return forest(
        "response-auc",
        "AUC for pCR of image and biopsy by centre",
        lines,
        AUC,
        tag=ALL_COMERS_TAG,
    )


def discordance_forest(strata: Sequence[Mapping[str, Any]], words: str) -> str:
    """The pCR rate of the four strata of biopsy and model."""
    lines = []
    for row in strata:
        label = f"biopsy {_sign(row['biopsy'])}, model {_sign(row['model'])}"
        if row.get("suppressed"):
            lines.append(Line(label, words=words))
        else:
            lines.append(Line(label, of(row, "pcr", "n"), row["rate"]))
    return forest(
        "response-discordance",
        "pCR by biopsy and model",
        lines,
        PCR_RATE,
        n_head="pCR",
        tag=ALL_COMERS_TAG,
    )


def _sign(call: int) -> str:
    return "positive" if call else "negative"


def subgroup_forest(
    subgroups: Sequence[Mapping[str, Any]], primary: Mapping[str, Any], words: str
) -> str:
    """The primary comparison in subgroups, with the pooled answer behind them."""
    lines: list[Line] = []
    for group in subgroups:
        if "refused" in group:
            lines.append(Line(f"{kind(group['by'])}: not computed", style="heading"))
            continue
        test = group["heterogeneity"]
        p = "" if test is None else f", alike: p = {p_value(test['p_value'])}"
        lines.append(Line(f"{kind(group['by'])}{p}", style="heading"))
        for row in group["rows"]:
            label = subgroup(row["label"])
            if row.get("suppressed"):
                lines.append(Line(label, words=words))
            else:
                n = "" if row["n"] is None else f"{row['n']:,}"
                lines.append(Line(label, n, row["odds_ratio"]))
    return forest(
        "response-subgroups",
        "Odds ratio of pCR in subgroups",
        lines,
        ODDS_RATIO,
        pooled=primary.get("odds_ratio"),
        relevant=primary.get("relevant_odds_ratio"),
    )
