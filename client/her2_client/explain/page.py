"""One page of explained cases that opens offline: what each score is made of, map by map.

The page loads nothing from elsewhere. Its pictures stand in it, or, where these would make it too
large, in files beside it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Final

from her2_client.explain.attribution import MOST_STEPS, TOLERANCE, Explanation
from her2_client.explain.picture import AGAINST, FOR, MOST_OPAQUE, Drawing
from her2_common import __version__
from her2_common.cases import MODALITIES, PCR_LABELS, Label, Modality
from her2_common.pages import environment, style

PACKAGE: Final = "her2_client.explain"
GENERATOR: Final = "her2-client predict --explain"
"""In the page's head: by it a later run knows that the page may be replaced."""

NAMES: Final[dict[Modality, str]] = {"mg": "Mammography", "us": "Ultrasound", "mri": "MRI"}


@dataclass(frozen=True)
class Card:
    """One explained case: its row of predictions.csv, and the drawing of each modality.

    ``number`` is its place on the page, from 1; the names of its pictures follow from it.
    """

    number: int
    row: Mapping[str, str]
    explanation: Explanation
    drawings: Mapping[Modality, Drawing]


@dataclass(frozen=True)
class Bar:
    """A part of the log odds, and where its bar begins and how long it is, 0 to 100."""

    name: str
    value: float
    left: float
    width: float


def picture_name(number: int, modality: Modality, panel: int, kind: str) -> str:
    """The file of a panel's grey picture (jpg) or colours (png); no case_id in it."""
    return f"{number:04d}-{modality}-{panel}.{kind}"


def render(
    cards: Sequence[Card],
    source: Callable[[str], str],
    *,
    site: str,
    run: str,
    label: Label,
    threshold: float,
    of: int,
) -> str:
    """The page as HTML; ``source(name)`` is the address of a picture, ``of`` counts all cases."""
    script = resources.files(PACKAGE).joinpath("explain.js").read_text(encoding="utf-8")
    templates = environment(PACKAGE)
    templates.filters.update(signed=signed, score=score_text)
    return templates.get_template("explain.html.j2").render(
        style=style(PACKAGE, "explain.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        generator=GENERATOR,
        version=__version__,
        site=site,
        run=run,
        outcome="pCR" if label in PCR_LABELS else "HER2-positive",
        opposite="no pCR" if label in PCR_LABELS else "HER2-negative",
        threshold=threshold,
        cards=cards,
        of=of,
        bars={card.number: bars(card.explanation) for card in cards},
        source=source,
        picture_name=picture_name,
        names=NAMES,
        tolerance=TOLERANCE,
        most_steps=MOST_STEPS,
        colours={"for": _rgb(FOR), "against": _rgb(AGAINST), "opaque": MOST_OPAQUE},
    )


def bars(explanation: Explanation) -> list[Bar]:
    """What the fused log odds are made of, in order; the values add up to ``explanation.fused``."""
    values = {
        "Blank pictures, clinical inputs unknown": explanation.start,
        "Clinical inputs": explanation.clinical,
        **{NAMES[m]: explanation.parts[m].share for m in MODALITIES if m in explanation.parts},
        "Error of the integration": -explanation.gap,
    }
    most = max(abs(value) for value in values.values()) or 1.0
    rows = []
    for name, value in values.items():
        length = 50 * abs(value) / most
        left = 50 - length if value < 0 else 50.0
        rows.append(Bar(name, value, round(left, 2), round(length, 2)))
    return rows


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, as a reader wants it.

    >>> signed(-0.5), signed(2.0), signed(-0.001)
    ('−0.50', '+2.00', '0.00')
    """
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return ("−" if value < 0 else "+") + text


def score_text(cell: str) -> str:
    """A score of predictions.csv to three digits.

    >>> score_text("0.4580078125")
    '0.458'
    """
    return f"{float(cell):.3f}"


def _rgb(colour: tuple[int, int, int]) -> str:
    return " ".join(str(part) for part in colour)
