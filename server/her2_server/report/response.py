"""From the document of a response evaluation to its page, and to a section of a run's report.

1. Take the document as `her2-server response` computed it: nothing is computed here but the
   difference of two counts (patients without one centre).
2. Draw the figures (her2_server.report.forest and .response_figures) as inline SVG.
3. Fill response.html.j2, in the house's look.
4. Write a temporary file and rename it: a page is whole or absent.

The page loads nothing. The same document gives the same bytes. A part of the document that was
refused is a sentence on the page; what is suppressed says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, UndefinedError
from markupsafe import Markup, escape

from her2_common.clinical import PCR_DEFINITION
from her2_common.errors import RunError
from her2_common.pages import environment, style
from her2_common.response.paired import ALL_COMERS_WARNING
from her2_common.response.primary import RULES
from her2_server.report import figures, forest, response_figures, response_words, text
from her2_server.run_folder import read_json

FORMAT: Final = "her2-map response"
DOCUMENT: Final = "response.json"
PAGE: Final = "response.html"

_FAULTS: Final = (KeyError, TypeError, ValueError, AttributeError, UndefinedError)


def write_response_report(document: Mapping[str, Any], path: Path) -> None:
    """Write the page of ``document`` (the JSON of `her2-server response`) to ``path``.

    Raises:
        RunError: the document is of another form.
    """
    page = _checked(document, str(path), render_response)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)


def response_section(run_folder: Path) -> str | None:
    """The section "Image against needle" of a run's report; None without a response.json.

    It links to response.html where that stands in the folder.

    Raises:
        RunError: response.json cannot be read, or is of another form.
    """
    source = run_folder / DOCUMENT
    document = read_json(source)
    if document is None:
        return None
    link = PAGE if (run_folder / PAGE).exists() else None
    return _checked(document, str(source), lambda given: _section(given, link))


def _checked(document: Any, where: str, draw: Callable[[Mapping[str, Any]], str]) -> str:
    given = document.get("format") if isinstance(document, Mapping) else type(document).__name__
    if given != FORMAT:
        raise RunError(f"{where}: expected a document of format {FORMAT!r}, got {given!r}")
    try:
        return draw(document)
    except _FAULTS as error:
        raise RunError(
            f"{where}: expected the document of a response evaluation, "
            f"got one of another form ({type(error).__name__}: {error})"
        ) from error


def render_response(document: Mapping[str, Any]) -> str:
    """The page as HTML."""
    templates, common = _prepared(document)
    plan = document["plan"]
    return templates.get_template("response.html.j2").render(
        **common,
        style=style("her2_server.report", "style.css"),
        d=document,
        source=document["source"],
        all_comers_warning=ALL_COMERS_WARNING,
        all_comers_tag=response_words.ALL_COMERS_TAG,
        rules=RULES,
        pcr_definition=document.get("pcr", PCR_DEFINITION),
        plan_text=json.dumps(plan["document"], indent=2, sort_keys=True, ensure_ascii=False),
        figures=_figures(document, common["words"]),
    )


def _section(document: Mapping[str, Any], link: str | None) -> str:
    templates, common = _prepared(document)
    primary = document["primary"]
    figure = None
    if "refused" not in primary:
        figure = _primary_forest(primary, common["words"], short=True)
    return templates.get_template("response_section.html.j2").render(
        **common, d=document, figure=figure, link=link
    )


def _prepared(document: Mapping[str, Any]) -> tuple[Environment, dict[str, Any]]:
    """The templates with this page's filters, and what both templates are given."""
    min_cell = int(document["plan"]["document"]["min_cell"])
    return _templates(), {
        "words": text.WITHHELD,
        "min_cell": min_cell,
        "primary": document["primary"],
    }


@cache
def _templates() -> Environment:
    templates = environment("her2_server.report")
    templates.filters.update(
        count=text.count,
        number=text.number,
        value=response_words.value,
        estimate=lambda value, *how: _together(response_words.estimate(value, *how)),
        share=lambda value: _together(response_words.share(value)),
        points=lambda value: _together(response_words.points(value)),
        p=response_words.p_value,
        test=lambda value, *symbol: _unbroken(response_words.statistic(value, *symbol)),
        rate=lambda row: _unbroken(response_words.of(row, "pcr", "n")),
        term=response_words.term,
        subgroup=response_words.subgroup,
        kind=response_words.kind,
        held_out=response_words.held_out,
        name=response_words.shown,
        names=lambda names: response_words.listed([response_words.shown(n) for n in names]),
    )
    return templates


def _together(words: str) -> Markup:
    """An estimate that a line breaks before its interval, if anywhere."""
    head, found, tail = words.partition(" (")
    return escape(head) + (
        Markup(' <span class="ci">{}</span>').format(f"({tail}") if found else ""
    )


def _unbroken(words: str) -> str:
    """A test that a line breaks after a comma, if anywhere."""
    return ", ".join(part.replace(" ", "\u00a0") for part in words.split(", "))


def _answered(document: Mapping[str, Any], name: str) -> Any:
    """A part of the document; None where it was refused."""
    part = document[name]
    return None if isinstance(part, Mapping) and "refused" in part else part


def _primary_forest(primary: Mapping[str, Any], words: str, *, short: bool = False) -> str:
    return forest.forest(
        "response-primary",
        "Odds ratio of pCR, model-positive against model-negative",
        forest.primary_lines(primary, words, short=short),
        forest.ODDS_RATIO,
        pooled=primary["odds_ratio"],
        relevant=primary["relevant_odds_ratio"],
    )


def _figures(document: Mapping[str, Any], words: str) -> dict[str, str | None]:
    """The figures of the parts that were answered."""
    drawn: dict[str, str | None] = dict.fromkeys(
        ("primary", "auc", "roc", "calibration", "decision", "discordance", "subgroups")
    )
    primary, auc = _answered(document, "primary"), _answered(document, "auc")
    if primary is not None:
        drawn["primary"] = _primary_forest(primary, words)
    if auc is not None:
        drawn["auc"] = response_figures.auc_forest(auc, words)
    if (curves := _answered(document, "roc")) is not None:
        operating = _answered(document, "operating_points") or {"points": []}
        drawn["roc"] = response_figures.roc(curves, operating["points"], auc or {})
    if (calibration := _answered(document, "calibration")) is not None:
        drawn["calibration"] = figures.calibration(
            calibration["reliability"],
            "response-calibration",
            "Calibration of the score against pCR",
            "share with a pCR",
            response_words.ALL_COMERS_TAG,
        )
    if (benefit := _answered(document, "net_benefit")) is not None and benefit["points"]:
        drawn["decision"] = response_figures.decision_curve(benefit["points"])
    if (calls := _answered(document, "discordance")) is not None:
        drawn["discordance"] = response_figures.discordance_forest(calls["strata"], words)
    if (groups := _answered(document, "subgroups")) is not None and groups:
        drawn["subgroups"] = response_figures.subgroup_forest(groups, primary or {}, words)
    return drawn
