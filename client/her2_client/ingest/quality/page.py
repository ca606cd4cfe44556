"""From an ingest's counts to a page: the exact one for the centre, another one that may leave it.

1. Take the counts: ``summary.as_dict()``, or for the page to share ``shareable()`` of it.
2. Fill quality.html.j2 from these counts alone, with the house's palette and quality.css inside it.
   The page to share therefore cannot show what ``shareable`` withholds; bars are drawn from the
   same numbers.
3. Add to the exact page, and to no other, the verdict and the rows of what was not used.
4. Write a temporary file and rename it: a page is whole or absent.

The page loads nothing: no font, script, picture or link from elsewhere. The same counts give the
same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from her2_client.ingest.quality.readiness import NAMES, SPLIT_NAMES, readiness
from her2_client.ingest.summary import (
    SOURCE_NAMES,
    STATES,
    TRAINING_GROUPS,
    UNKNOWN,
    VARIABLES,
    IngestSummary,
)
from her2_common import __version__
from her2_common.cases import CLINICAL_INPUTS, IMAGES, MODALITIES, Image
from her2_common.config import Policy
from her2_common.errors import Disposition
from her2_common.files import replace_privately
from her2_common.pages import environment, style

WITHHELD: Final = "withheld"

COLUMN_NAMES: Final[dict[Image, str]] = {
    "mg_cc": "mammography, CC view",
    "mg_mlo": "mammography, MLO view",
    "us": "ultrasound",
    "mri": "MRI",
}
STATE_NAMES: Final = {
    "accepted": "standardised and in the cache",
    "set aside": "sound, but of a kind that the model does not read",
    "quarantined": "may show a name in the pixels; waits for a person",
    "refused": "missing, damaged, contradictory or incomplete",
}
GROUP_NAMES: Final[dict[str, str]] = {
    **{str(modality): name for modality, name in NAMES.items()},
    "clinical": "clinical inputs",
    "head": "all together",
}
VARIABLE_NAMES: Final = {
    "age": "Age in years",
    "menopausal": "After the menopause",
    "clinical_t": "Clinical T",
    "clinical_n": "Clinical N",
    "multifocal": "Multifocal",
    "er": "Oestrogen receptor",
    "pr": "Progesterone receptor",
    "biopsy_ihc": "HER2 of the biopsy, IHC",
    "biopsy_her2": "HER2 of the biopsy",
    "surgical_her2": "HER2 of the excised tumour",
    "nat": "Neoadjuvant therapy",
    "anti_her2": "Anti-HER2 therapy",
    "pcr": "Pathological complete response",
}
_STATUS: Final = {"no": "negative", "yes": "positive"}
_VALUE_NAMES: Final = {
    "clinical_t": {value: f"T{value}" for value in VARIABLES["clinical_t"]},
    "clinical_n": {value: f"N{value}" for value in VARIABLES["clinical_n"]},
    "biopsy_ihc": {"ultralow": "0, ultralow", "1": "1+", "2": "2+", "3": "3+"},
    **dict.fromkeys(("er", "pr", "biopsy_her2", "surgical_her2"), _STATUS),
}
_CHAPTERS: Final = (
    ("The clinical inputs of the model", CLINICAL_INPUTS),
    ("Receptors and HER2", ("er", "pr", "biopsy_ihc", "biopsy_her2", "surgical_her2")),
    ("Therapy and response", ("nat", "anti_her2", "pcr")),
)
_WORST_FIRST: Final[tuple[Disposition, ...]] = ("refused", "quarantined", "set aside")


@dataclass(frozen=True)
class Bar:
    """A named count, and its length from 0 to 100; both None where the count is withheld."""

    name: str
    count: int | None
    length: float | None
    share: str = ""


@dataclass(frozen=True)
class Unused:
    """Pictures that were not used, with one message, by column, with the table's rows."""

    disposition: Disposition
    reason: str
    count: int
    message: str
    hint: str | None
    places: tuple[tuple[Image, str], ...]


def write_page(
    path: Path, summary: IngestSummary, policy: Policy, shared: Mapping[str, Any] | None = None
) -> None:
    """Write the page on a centre's data to ``path``, for its owner alone (mode 0600).

    With ``shared``, what ``shareable`` gave of the same summary, the page is the one that may
    leave: small counts withheld, without verdict, rows and messages.

    Raises:
        OSError: the page cannot be written.
    """
    replace_privately(path, render(summary, policy, shared).encode())


def render(summary: IngestSummary, policy: Policy, shared: Mapping[str, Any] | None = None) -> str:
    """The page as HTML."""
    exact = shared is None
    document = summary.as_dict() if shared is None else shared
    templates = environment("her2_client.ingest.quality")
    templates.filters.update(count=count, combination=combination)
    return templates.get_template("quality.html.j2").render(
        style=style("her2_client.ingest.quality", "quality.css"),
        version=__version__,
        site=document["site"],
        exact=exact,
        verdict=readiness(summary, policy) if exact else None,
        min_cell=policy.min_cell,
        min_cases=policy.min_cases,
        document=document,
        flow=_flow(document["cases"]),
        states=STATES,
        state_names=STATE_NAMES,
        columns=COLUMN_NAMES,
        reasons=_reasons(document["reasons"]),
        remarks=bars(summary.remarks, by_size=True) if exact else [],
        modalities=MODALITIES,
        modality_names=NAMES,
        combinations=_combinations(document["combinations"]),
        split_names=SPLIT_NAMES,
        labels=("positive", "negative", UNKNOWN),
        sources=bars(document["label_sources"], SOURCE_NAMES),
        training=_training(document),
        chapters=_chapters(document["clinical"]),
        scanners={m: bars(document["scanners"][m], by_size=True) for m in MODALITIES},
        boxes=[
            (column, document["lesion_boxes"][column], document["images"][column]["accepted"])
            for column in IMAGES
        ],
        unused=_unused(summary) if exact else [],
        published=summary.published,
    )


# --- numbers ------------------------------------------------------------------------------------


def count(value: int | None) -> str:
    """A count as a reader wants it.

    >>> count(1204), count(None)
    ('1,204', 'withheld')
    """
    return WITHHELD if value is None else f"{value:,}"


def combination(name: str) -> str:
    """A combination of modalities in words.

    >>> combination("mg+us")
    'mammography + ultrasound'
    """
    return " + ".join(NAMES[modality] for modality in MODALITIES if modality in name.split("+"))


def bars(
    counts: Mapping[str, int | None],
    names: Mapping[str, str] | None = None,
    *,
    whole: int | None = None,
    most: int | None = None,
    by_size: bool = False,
) -> list[Bar]:
    """Bars for a table of counts; the greatest one shown is 100 long, or a count of ``most``.

    With ``whole`` each has its share of it in per cent. ``by_size`` puts the greatest first and
    what is withheld last, else the order stays.

    >>> [bar.length for bar in bars({"a": 30, "b": None, "c": 60})]
    [50.0, None, 100.0]
    """
    if most is None:
        most = max((value for value in counts.values() if value is not None), default=0)
    ordered: Iterable[tuple[str, int | None]] = counts.items()
    if by_size:
        ordered = sorted(ordered, key=lambda item: (item[1] is None, -(item[1] or 0), item[0]))
    return [
        Bar(
            (names or {}).get(name, name),
            value,
            None if value is None else round(100 * value / max(most, 1), 2),
            f"{100 * value / whole:.0f} %" if whole and value is not None else "",
        )
        for name, value in ordered
    ]


# --- parts of the page --------------------------------------------------------------------------


def _flow(cases: Mapping[str, Any]) -> list[Bar]:
    """Cases in the table, in the cache, and left out by reason."""
    rows = {"in the table": cases["in_table"], "in the cache": cases["accepted"]}
    rows |= {f"left out: {reason}": value for reason, value in cases["left_out"].items()}
    return bars(rows)


def _reasons(
    reasons: Mapping[Disposition, Mapping[str, int | None]],
) -> dict[Disposition, list[Bar]]:
    """The reasons of each disposition, the bars of all of them on one scale."""
    every = [value for counts in reasons.values() for value in counts.values()]
    most = max((value for value in every if value is not None), default=0)
    return {d: bars(reasons[d], most=most, by_size=True) for d in _WORST_FIRST}


def _combinations(counts: Mapping[str, int | None]) -> list[tuple[list[bool], Bar]]:
    """Each combination with the modalities that it has, in the order of ``MODALITIES``."""
    return [
        ([modality in bar.name.split("+") for modality in MODALITIES], bar)
        for bar in bars(counts, by_size=True)
    ]


def _training(document: Mapping[str, Any]) -> list[tuple[bool, int | None, Bar]]:
    """Cases of each parameter group, if they are counted, and how many of them train."""
    cases = {**document["modalities"], "head": document["cases"]["accepted"]}
    rows = zip(TRAINING_GROUPS, bars(document["training"], GROUP_NAMES), strict=True)
    return [(group in cases, cases.get(group), bar) for group, bar in rows]


def _chapters(
    clinical: Mapping[str, Mapping[str, int | None]],
) -> list[tuple[str, list[tuple[str, list[Bar]]]]]:
    chapters = []
    for title, names in _CHAPTERS:
        variables = []
        for name in names:
            values = clinical[name]
            known = [value for value in values.values() if value is not None]
            whole = sum(known) if len(known) == len(values) else None
            rows = bars(values, _VALUE_NAMES.get(name), whole=whole)
            variables.append((VARIABLE_NAMES[name], rows))
        chapters.append((title, variables))
    return chapters


def _unused(summary: IngestSummary) -> list[Unused]:
    """All pictures that were not used, one group a message, the worst disposition first."""
    groups: dict[tuple[Disposition, str, str, str | None], dict[Image, Counter[int]]] = {}
    for row_note in summary.notes:
        note = row_note.note
        key = (note.disposition, note.reason, note.message, note.hint)
        rows = groups.setdefault(key, {})
        rows.setdefault(note.column, Counter())[row_note.row] += 1
    unused = [
        Unused(
            disposition,
            reason,
            sum(counts.total() for counts in rows.values()),
            message,
            hint,
            tuple((column, _rows(rows[column])) for column in IMAGES if column in rows),
        )
        for (disposition, reason, message, hint), rows in groups.items()
    ]

    def order(group: Unused) -> tuple[int, int, str, int, str]:
        of_reason = summary.reasons[group.disposition][group.reason]
        worst = _WORST_FIRST.index(group.disposition)
        return worst, -of_reason, group.reason, -group.count, group.message

    return sorted(unused, key=order)


def _rows(rows: Mapping[int, int]) -> str:
    return ", ".join(f"{row}" if n == 1 else f"{row} (×{n})" for row, n in sorted(rows.items()))
