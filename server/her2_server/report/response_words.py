"""How the page of a response evaluation says its numbers.

An estimate is ``{"estimate", "low", "high"}``; in it, None is an infinite value. A whole estimate
of None is one that the sample cannot give, a count of None one that is suppressed: three things
that must not look alike.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Final

from her2_server.report.text import UNKNOWN, WITHHELD, combination, number

Estimate = Mapping[str, float | None]

ALL_COMERS_TAG: Final = "All comers: therapy follows the biopsy."
"""Stands in every figure and every caption of numbers over all comers; the warning is nearby."""

_TERMS: Final = {
    "hr": "HR-positive",
    "t": "cT, a stage",
    "n": "cN, a stage",
    "age": "age, a year",
    "biopsy": "biopsy HER2-positive",
    "therapy": "anti-HER2 therapy",
    "score": "score, from 0 to 1",
}
_GROUPS: Final = {
    "hr 0": "HR-negative",
    "hr 1": "HR-positive",
    **{f"t {stage}": f"cT{stage}" for stage in range(5)},
    **{f"n {stage}": f"cN{stage}" for stage in range(4)},
}
_KINDS: Final = {
    "hr": "hormone receptors",
    "t": "clinical T",
    "n": "clinical N",
    "centre": "centre",
    "modalities": "modalities",
}


def shown(name: str) -> str:
    """A name as it may be drawn: control and formatting characters are replaced.

    >>> shown("A\\u202eB")
    'A�B'
    """
    return "".join("�" if unicodedata.category(c).startswith("C") else c for c in name)


def value(number_: float | None, digits: int = 2, scale: float = 1.0) -> str:
    """One value of an estimate; None is infinite.

    >>> value(None), value(0.125, 1, 100)
    ('∞', '12.5')
    """
    return "∞" if number_ is None else number(scale * number_, digits)


def estimate(numbers: Estimate | None, digits: int = 2, scale: float = 1.0) -> str:
    """An estimate with its 95 % interval; "–" where the sample gives none.

    >>> estimate({"estimate": 2.1, "low": 1.2, "high": None}), estimate(None)
    ('2.10 (1.20 to ∞)', '–')
    """
    if numbers is None:
        return UNKNOWN
    middle, high = (value(numbers[key], digits, scale) for key in ("estimate", "high"))
    low = "−∞" if numbers["low"] is None else value(numbers["low"], digits, scale)
    return f"{middle} ({low} to {high})"


def share(numbers: Estimate | None) -> str:
    """A proportion in per cent, with its interval.

    >>> share({"estimate": 0.4275, "low": 0.38, "high": 0.476})
    '42.8 % (38.0 to 47.6)'
    """
    return estimate(numbers, 1, 100).replace(" (", " % (", 1)


def points(numbers: Estimate | None) -> str:
    """A difference of proportions in percentage points, with its interval.

    >>> points({"estimate": -0.02, "low": -0.08, "high": 0.04})
    '−2.0 points (−8.0 to 4.0)'
    """
    return estimate(numbers, 1, 100).replace(" (", " points (", 1)


def p_value(p: float | None) -> str:
    """A p-value, to three digits, or to one significant digit where that is more.

    >>> p_value(0.0421), p_value(0.00032), p_value(1e-20), p_value(None)
    ('0.042', '0.0003', '<0.000001', '–')
    """
    if p is None:
        return UNKNOWN
    if p < 1e-6:
        return "<0.000001"
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1g}" if p >= 1e-4 else f"{p:.6f}"


def statistic(test: Mapping[str, Any] | None, symbol: str = "statistic") -> str:
    """Statistic, degrees of freedom and p-value of a test in one line.

    ``symbol`` names a statistic that has no degrees of freedom.

    >>> statistic({"statistic": 6.1, "df": 1, "p_value": 0.0135}, 10)
    'χ² = 6.10, df 1, p = 0.013'
    """
    if test is None:
        return UNKNOWN
    p = p_value(test["p_value"])
    said = f"p {p[0]} {p[1:]}" if p.startswith("<") else f"p = {p}"
    if test["statistic"] is None:
        return f"{symbol} {WITHHELD}, {said}"
    if test["df"] is None:
        return f"{symbol} = {number(test['statistic'])}, {said}"
    return f"χ² = {number(test['statistic'])}, df {test['df']}, {said}"


def of(numbers: Mapping[str, Any], above: str, below: str) -> str:
    """A count out of another: "12 of 40", or that they are withheld.

    >>> of({"pcr": 12, "n": 40}, "pcr", "n"), of({"pcr": None, "n": None}, "pcr", "n")
    ('12 of 40', 'withheld')
    """
    top, bottom = numbers[above], numbers[below]
    if top is None and bottom is None:
        return WITHHELD
    parts = [WITHHELD if part is None else f"{part:,}" for part in (top, bottom)]
    return " of ".join(parts)


def term(name: str) -> str:
    """A term of a model in words; a centre keeps its name.

    >>> term("biopsy:score"), term("centre[B]")
    ('biopsy HER2-positive × score, from 0 to 1', 'centre[B]')
    """
    if name.startswith("centre["):
        return name
    return " × ".join(_TERMS.get(part, part) for part in name.split(":"))


def subgroup(label: str) -> str:
    """A subgroup in words.

    >>> subgroup("hr 1"), subgroup("modalities mg+us")
    ('HR-positive', 'MG + US')
    """
    if match := re.fullmatch(r"modalities ([a-z+]+)", label):
        return combination(match[1], short=True)
    return _GROUPS.get(label, label)


def kind(by: str) -> str:
    """By what subgroups are formed, in words."""
    return _KINDS.get(by, by)


def held_out(rows: int) -> str:
    """What is known of the rows that have no split."""
    return (
        f"{rows:,} rows have no split: that their scores come from a model that has not seen the "
        "patients is stated by the user (--out-of-fold), not checked"
    )


def listed(names: Sequence[str]) -> str:
    """Names in a sentence, one after the other."""
    return ", ".join(names) or "none"
