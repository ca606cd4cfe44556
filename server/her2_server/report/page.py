"""From a run's folder to report.html.

1. Read summary.json and metrics.jsonl.
2. Draw the figures (her2_server.report.figures and .flow) as inline SVG.
3. Fill template.html.j2, with the house's palette and style.css inside it.
4. Write a temporary file and rename it: a report is whole or absent.

The page loads nothing: no font, script, picture or link from elsewhere. The same input gives the
same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jinja2 import UndefinedError

from her2_common.cases import MODALITIES, PCR_LABELS, Label
from her2_common.clinical import PCR_DEFINITIONS
from her2_common.documents import parse_json
from her2_common.errors import RunError
from her2_common.pages import environment, style
from her2_server.report import comparison, figures, flow, text
from her2_server.report.response import response_section
from her2_server.run_folder import RunFolder, read_json
from her2_server.status import COMPARISON_FILE

_NEEDED: Final = ("version", "run", "sites", "threshold", "validation", "test", "bytes", "seconds")

_BREAKDOWNS: Final = (
    ("by_centre", "Centre"),
    ("by_combination", "Modalities of the case, all of them used"),
    ("by_modality", "One modality alone"),
)

_KINDS: Final = (
    ("describe", "description"),
    ("train", "training rounds"),
    ("profile", "profile"),
    ("val", "validation"),
    ("test", "test"),
)
"""Kind of exchange in a site's ``bytes`` -> how table 8 calls it."""


def write_report(run_folder: Path) -> Path:
    """Write ``report.html`` into ``run_folder`` from its summary.json, metrics.jsonl, compare.json.

    Returns the path of the report. Without metrics.jsonl the learning curves are left out.

    Raises:
        RunError: summary.json is missing, or one of the two files cannot be read.
    """
    summary, rounds = read_run(run_folder)
    try:
        page = render(
            summary,
            rounds,
            read_json(run_folder / COMPARISON_FILE),
            response_section(run_folder),
        )
    except (KeyError, TypeError, AttributeError, UndefinedError) as error:
        raise RunError(
            f"{run_folder / 'summary.json'}: expected the summary of a finished run, "
            f"got one of another form ({type(error).__name__}: {error})"
        ) from error
    target = run_folder / "report.html"
    temporary = target.with_name(".report.html.part")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(target)
    return target


def read_run(run_folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The summary, and one mapping a round in their order; of a repeated round the last counts."""
    path = run_folder / "summary.json"
    summary = RunFolder(run_folder).read_summary()
    missing = [key for key in _NEEDED if key not in summary]
    if missing:
        raise RunError(f"{path}: expected the keys {', '.join(_NEEDED)}, got no {missing[0]}")

    path = run_folder / "metrics.jsonl"
    rounds: dict[int, dict[str, Any]] = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            entry = parse_json(line)
            rounds[int(entry["round"])] = entry
        except (ValueError, KeyError, TypeError):
            raise RunError(f"{path}, line {number}: expected the JSON of a round") from None
    return summary, [rounds[number] for number in sorted(rounds)]


def render(
    summary: Mapping[str, Any],
    rounds: Sequence[Mapping[str, Any]],
    compared: Mapping[str, Any] | None = None,
    response: str | None = None,
) -> str:
    """The page as HTML.

    ``compared`` is compare.json, if the centres were compared; ``response`` is the section of
    response.json, as HTML, if the response to therapy was evaluated.
    """
    templates = environment("her2_server.report")
    templates.filters.update(
        count=text.count,
        number=text.number,
        interval=text.interval,
        percent=text.percent,
        size=text.size,
        duration=text.duration,
        moment=text.moment,
        combination=text.combination,
        signed=comparison.signed,
    )
    run, test, sites = summary["run"], summary["test"], summary["sites"]
    positive, negative = text.OUTCOMES[run["label"]]
    return templates.get_template("template.html.j2").render(
        style=style("her2_server.report", "style.css"),
        summary=summary,
        run=run,
        test=test,
        sites=[site | {"letter": text.letter(index)} for index, site in enumerate(sites)],
        labelled=any("label_sources" in site for site in sites),
        source_names=text.SOURCE_NAMES,
        rounds=rounds,
        faults=_faults(rounds, sites),
        figures=_figures(summary, rounds),
        breakdowns=[(title, _named(kind, test[kind])) for kind, title in _BREAKDOWNS],
        modalities=MODALITIES,
        modality_names=text.MODALITY_NAMES,
        positive=positive,
        negative=negative,
        such_as=_phrases(run["label"], positive, negative),
        label_source=text.LABEL_SOURCES[run["label"]],
        pcr_definition=_pcr_definition(run["label"]),
        caution=text.RESPONSE_CAUTION if run["label"] in PCR_LABELS else None,
        levels=_levels(summary),
        worth=comparison.section(compared),
        response=response,
        temperature=summary.get("temperature"),
        temperature_told=text.temperature(summary.get("temperature")),
        novelty=summary.get("novelty", {}),
        initial=_initial(summary.get("initial")),
        verdict=text.verdict(test["auc"]),
        threshold_rule=text.threshold_rule(summary["threshold"]),
        totals=_totals(sites),
        kinds=_KINDS,
        kind_totals={
            kind: sum(site["bytes"].get(kind, {}).get("sent", 0) for site in sites)
            for kind, _ in _KINDS
        },
        min_cell=_min_cell(summary),
    )


def _pcr_definition(label: Label) -> str | None:
    return PCR_DEFINITIONS[PCR_LABELS[label]] if label in PCR_LABELS else None


def _phrases(label: Label, positive: str, negative: str) -> dict[str, str]:
    """The classes as they follow "a case" and "cases"."""
    one, several = ("", "") if label in PCR_LABELS else ("that is ", "that are ")
    return {
        "positive": one + positive,
        "negative": one + negative,
        "plural_positive": several + positive,
        "plural_negative": several + negative,
    }


def _levels(summary: Mapping[str, Any]) -> str | None:
    """The sentence on HER2-low against HER2-zero, for a run of three levels."""
    if summary["run"].get("plan", {}).get("her2_levels", 2) != 3:
        return None
    return text.levels(summary["test"].get("levels"), _min_cell(summary))


def _initial(initial: Mapping[str, Any] | None) -> dict[str, str] | None:
    """The release that the run began from, in words."""
    if initial is None:
        return None
    return {
        "run": initial["run"],
        "predicted": text.predicted(initial["label"]),
        "groups": text.listed([text.combination(g, short=True) for g in initial["groups"]]),
        "afresh": text.listed([text.combination(g, short=True) for g in initial["afresh"]]),
        "sha256": initial["sha256"],
    }


def _figures(
    summary: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]
) -> dict[str, str | list[str] | None]:
    test, sites = summary["test"], summary["sites"]
    centres: list[figures.Row] = [*_named("by_centre", test["by_centre"])]
    kinds: list[figures.Row] = [("all modalities of the case", None)]
    kinds += _named("by_combination", test["by_combination"], short=True)
    kinds += [("one modality alone", None)]
    kinds += _named("by_modality", test["by_modality"], short=True)
    return {
        "flow": [flow.patient_flow(site, index) for index, site in enumerate(sites)],
        "learning": (
            figures.learning_curves(
                rounds,
                summary["validation"],
                [site["name"] for site in sites],
                summary["run"]["final_round"],
            )
            if rounds
            else None
        ),
        "roc": figures.roc(test) if test["roc"] else None,
        "calibration": (
            figures.calibration(test["calibration"]["bins"]) if test["calibration"] else None
        ),
        "temperature": _temperature_figure(summary),
        "centres": figures.forest("centres", "AUC by centre", centres, test["auc"]),
        "kinds": figures.forest("kinds", "AUC by modalities", kinds, test["auc"]),
        "traffic": flow.traffic(sites),
        "phases": flow.phases(summary["seconds"]),
    }


def _temperature_figure(summary: Mapping[str, Any]) -> str | None:
    """Drawn where a temperature was fitted and both reliabilities are published."""
    record, after = summary.get("temperature"), summary["validation"]["calibration"]
    if not record or record["reason"] or not record["bins"] or not after:
        return None
    return figures.reliability(record["bins"], after["bins"])


def _named(
    kind: str, groups: Mapping[str, Mapping[str, Any]], *, short: bool = False
) -> list[tuple[str, Mapping[str, Any]]]:
    if kind == "by_centre":
        return list(groups.items())
    return [(text.combination(name, short=short), numbers) for name, numbers in groups.items()]


def _min_cell(summary: Mapping[str, Any]) -> int:
    """The run's limit for small groups, 10 if the summary does not hold its plan."""
    return int(summary["run"].get("plan", {}).get("min_cell", 10))


def _totals(sites: Sequence[Mapping[str, Any]]) -> dict[str, int | None]:
    """Sums over the sites of the counts of the flow; None if a site keeps one of them."""

    def total(section: str, key: str) -> int | None:
        values = [(site.get(section) or {}).get(key) for site in sites]
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == len(values) else None

    return {
        "in_table": total("flow", "in_table"),
        "left_out": total("flow", "left_out"),
        "accepted": total("flow", "accepted"),
        "train": total("cases", "train"),
        "val": total("cases", "val"),
        "test": total("cases", "test"),
    }


def _faults(
    rounds: Sequence[Mapping[str, Any]], sites: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The updates that were refused or missing, in their order."""
    letters = {site["name"]: text.letter(index) for index, site in enumerate(sites)}
    return [
        {
            "round": entry["round"],
            "letter": letters.get(name, ""),
            "site": name,
            "status": update["status"],
            "reason": update["reason"] or "not stated",
        }
        for entry in rounds
        for name, update in entry["sites"].items()
        if update["status"] != "accepted"
    ]
