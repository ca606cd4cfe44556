"""Every number of a result as a row of one long table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from her2_common.tables import write_csv
from her2_server.report.response_words import ALL_COMERS_TAG

COLUMNS: Final = (
    "section",
    "centre",
    "name",
    "estimate",
    "low",
    "high",
    "statistic",
    "df",
    "p",
    "n",
    "verdict",
    "warning",
)

_ALL_COMERS: Final = (
    "auc",
    "roc",
    "operating_points",
    "calibration",
    "net_benefit",
    "mcnemar",
    "discordance",
    "reclassification",
    "logistic",
    "holm",
)
"""Sections over all comers, but for numbers whose name starts as one of ``_TREATED``."""
_TREATED: Final = ("treated ", "subgroups ")

_NAMES: Final = ("label", "model", "by", "name", "which")
"""Keys by which an entry of a list is called."""

_ESTIMATE: Final = ("estimate", "low", "high")
_TEST: Final = ("statistic", "df", "p_value")
_NO_NUMBERS: Final = ("plan", "source", "suppressed", "warnings")

Row = dict[str, Any]


def to_csv(document: Mapping[str, Any]) -> str:
    """The table as text, with a header; an unknown or hidden number is a blank cell."""
    return write_csv(COLUMNS, rows(document))


def rows(document: Mapping[str, Any]) -> Iterator[Row]:
    """Estimates (with their test, if there is one), tests and single numbers, in order."""
    for section, value in document.items():
        if section not in _NO_NUMBERS:
            for row in _walk(value, {"section": section, "centre": ""}, ()):
                if section in _ALL_COMERS and not row["name"].startswith(_TREATED):
                    row["warning"] = ALL_COMERS_TAG
                yield row


def _walk(value: Any, at: Row, path: tuple[str, ...]) -> Iterator[Row]:
    if isinstance(value, Mapping):
        yield from _mapping(value, at, path)
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            if isinstance(entry, str):
                continue
            name = _called(entry) if isinstance(entry, Mapping) else str(index)
            yield from _walk(entry, at, (*path, *([name] if name else [])))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield at | {"name": " ".join(path), "estimate": value}


def _called(entry: Mapping[str, Any]) -> str:
    if "biopsy" in entry and "model" in entry:
        return f"biopsy {entry['biopsy']} model {entry['model']}"
    names = [str(entry[key]) for key in _NAMES if key in entry]
    if not names and "threshold" in entry:
        return f"threshold {entry['threshold']:g}"
    if not names and "low" in entry:
        return f"{entry['low']:g} to {entry['high']:g}"
    return " ".join(names)


def _mapping(value: Mapping[str, Any], at: Row, path: tuple[str, ...]) -> Iterator[Row]:
    if "centre" in value:
        at = at | {"centre": value["centre"]}
    rest = dict(value)
    row: Row = {}
    n = value["n"] if isinstance(value.get("n"), int) else ""
    if set(_ESTIMATE) <= value.keys():
        row |= {key: _cell(rest.pop(key)) for key in _ESTIMATE}
    if "p_value" in value:
        row |= {"p" if k == "p_value" else k: _cell(rest.pop(k)) for k in _TEST if k in rest}
    if row:
        yield at | {"name": " ".join(path)} | row
    if "verdict" in value:
        yield at | {"name": " ".join((*path, "verdict")), "verdict": value["verdict"]}
    for key, inner in rest.items():
        if key in ("centre", *_NAMES) and not isinstance(inner, Mapping):
            continue
        place = at
        inside = (*path, key)
        if path and path[-1] == "by_centre" and not at["centre"]:  # by the centre's name
            place, inside = at | {"centre": key}, path
        for found in _walk(inner, place, inside):
            yield found if n == "" or found.get("n") else found | {"n": n}


def _cell(value: float | None) -> Any:
    return "" if value is None else value
