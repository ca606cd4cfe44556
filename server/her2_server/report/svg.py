"""matplotlib figures as inline SVG that follows the page: its colours, fonts and dark scheme.

Figures are drawn in stand-in colours, one for each role in the palette. On the way out they
become CSS variables of the page, so that one drawing serves the light, the dark and the printed
page. Text stays text. Two drawings of the same data are the same bytes: ids are salted with the
figure's name (which also keeps them apart in one page) and no date is written.
"""

from __future__ import annotations

import io
import re
import warnings
from html import escape
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK: Final = "#010101"
MUTED: Final = "#020202"
RULE: Final = "#030303"
PAPER: Final = "#040404"
BLUE: Final = "#050505"
ORANGE: Final = "#060606"
GREEN: Final = "#070707"
PURPLE: Final = "#080808"
GREY: Final = "#090909"

_VARIABLES: Final = {
    INK: "ink",
    MUTED: "muted",
    RULE: "rule",
    PAPER: "paper",
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    PURPLE: "purple",
    GREY: "grey",
}
"""Stand-in -> CSS variable of style.css. Hues: Okabe and Ito's, safe for colour-blind readers."""

_ZOOM: Final = 1.55
"""Largest size of a figure on the page, in CSS pixels a point: text is as large in each of them."""

_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "hatch.linewidth": 0.8,
}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of ``width`` x ``height`` inches; about 5 wide reads well on a phone."""
    with mpl.rc_context(_STYLE):
        return Figure(figsize=(width, height), facecolor="none")


def add_axes(figure: Figure, box: tuple[float, float, float, float]) -> Axes:
    """Axes at (left, bottom, width, height) in inches, without a frame above and to the right."""
    width, height = figure.get_size_inches()
    left, bottom, wide, high = box
    with mpl.rc_context(_STYLE):
        axes = figure.add_axes((left / width, bottom / height, wide / width, high / height))
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=3)
    return axes


def to_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """``figure`` as an ``<svg>`` element for the page, with a title and a description.

    Args:
        figure: drawn in the stand-in colours of this module.
        name: unique in the page; prefixes every id.
        title: what a screen reader announces.
        description: what the figure shows, for those who cannot see it.
    """
    buffer = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # The browser draws the letters, in a font that has them
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'xlink:href="#', f'href="#{name}-', text)
    text = re.sub(r"font-family: [^;\"<]*", "font-family: var(--sans)", text)
    text = re.sub(r"font: ((?:[\w.]+ )*?[\d.]+px) [^;\"<]*", r"font: \1 var(--sans)", text)
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, f"var(--{variable})")
    width, height = figure.get_size_inches() * 72
    head = (
        f'<svg class="figure" role="img" viewBox="0 0 {width:g} {height:g}" '
        f'style="max-width: {width * _ZOOM / 16:.1f}rem" '
        f'aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(description)}</desc>'
    )
    return head + text[text.index(">") + 1 :]
