"""What an ingest did, in counts: for the engineer's screen, for ``--json`` and for the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, get_args

from her2_client.ingest.outcome import Note, Outcome
from her2_common import cases
from her2_common.cases import (
    IMAGES,
    MODALITIES,
    SPLITS,
    Case,
    Image,
    LabelSource,
    Modality,
    NoLabel,
    Split,
)
from her2_common.clinical import IHC_SCORES
from her2_common.errors import Disposition

if TYPE_CHECKING:
    from rich.table import Table

NO_IMAGE_NAMED: Final = "no image named"
NO_USABLE_IMAGE: Final = "no usable image"
UNKNOWN: Final = "unknown"
DISPOSITIONS: Final[tuple[Disposition, ...]] = get_args(Disposition)
STATES: Final = ("accepted", *DISPOSITIONS)

_REFERENCE_SOURCES: Final[tuple[LabelSource | NoLabel, ...]] = (
    "biopsy", "excised_untreated", "treated_only", "equivocal", "not_tested",
)  # fmt: skip
SOURCE_NAMES: Final = {str(source): cases.SOURCE_NAMES[source] for source in _REFERENCE_SOURCES}
"""Where the reference label comes from, then why a case has none."""

TRAINING_GROUPS: Final = (*MODALITIES, "clinical", "head")
"""The parameter groups of the model, without importing torch."""

AGE_BANDS: Final = ("under 40", "40 to 49", "50 to 59", "60 to 69", "70 and over")
_NO_YES: Final = ("no", "yes")
VARIABLES: Final[dict[str, tuple[str, ...]]] = {
    "age": AGE_BANDS,
    "menopausal": _NO_YES,
    "clinical_t": ("0", "1", "2", "3", "4"),
    "clinical_n": ("0", "1", "2", "3"),
    "multifocal": _NO_YES,
    "er": _NO_YES,
    "pr": _NO_YES,
    "biopsy_ihc": IHC_SCORES,
    "biopsy_her2": _NO_YES,
    "surgical_her2": _NO_YES,
    "nat": _NO_YES,
    "anti_her2": _NO_YES,
    "pcr": _NO_YES,
}
"""What is told of the cases in the cache, and the values in their order; ``UNKNOWN`` comes last."""


@dataclass(frozen=True)
class RowNote:
    """A note and the row of the table that it concerns, for the engineer's screen alone."""

    row: int
    note: Note

    def __str__(self) -> str:
        return f"row {self.row}, {self.note.column}: {self.note.message}"


@dataclass
class IngestSummary:
    """Counts of one ingest.

    ``images`` counts states by column of the table, ``reasons`` by disposition, ``remarks`` by what
    was not used of accepted images; ``combinations`` is keyed like "mg+us"; ``labels`` by split, of
    the reference label, and ``sources`` where that label comes from or why there is none;
    ``scanners`` by modality;
    ``clinical`` over the cases in the cache; ``training`` holds the training cases with a known
    reference label by parameter group. ``unchanged`` counts the images (one a case and
    modality) that an earlier ingest had done, ``fresh`` those that this one did. ``notes`` name
    rows of the table and stay on the engineer's screen.
    """

    site: str
    cases_in_table: int
    accepted: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    images: dict[Image, Counter[str]] = field(
        default_factory=lambda: {image: Counter() for image in IMAGES}
    )
    reasons: dict[Disposition, Counter[str]] = field(
        default_factory=lambda: {disposition: Counter() for disposition in DISPOSITIONS}
    )
    remarks: Counter[str] = field(default_factory=Counter)
    boxed: Counter[Image] = field(default_factory=Counter)
    scanners: dict[Modality, Counter[str]] = field(
        default_factory=lambda: {modality: Counter() for modality in MODALITIES}
    )
    splits: Counter[str] = field(default_factory=Counter)
    modalities: Counter[str] = field(default_factory=Counter)
    combinations: Counter[str] = field(default_factory=Counter)
    labels: dict[Split, Counter[str]] = field(
        default_factory=lambda: {split: Counter() for split in SPLITS}
    )
    sources: Counter[str] = field(default_factory=Counter)
    clinical: dict[str, Counter[str]] = field(
        default_factory=lambda: {name: Counter() for name in VARIABLES}
    )
    training: Counter[str] = field(default_factory=Counter)
    notes: list[RowNote] = field(default_factory=list)
    fresh: int = 0
    unchanged: int = 0
    published: bool = False
    seconds: float = 0.0

    def count(
        self,
        case: Case,
        split: Split,
        outcomes: Mapping[Modality, Outcome],
        present: list[Modality],
    ) -> None:
        """Add one case; ``present`` are the modalities that it has in the cache."""
        for modality, outcome in outcomes.items():
            self.boxed.update(outcome.boxes.keys())
            self.remarks.update(outcome.remarks)
            self.scanners[modality].update(outcome.scanners)
            for column in outcome.accepted:
                self.images[column]["accepted"] += 1
            for note in outcome.notes:
                self.images[note.column][note.disposition] += 1
                self.reasons[note.disposition][note.reason] += 1
                self.notes.append(RowNote(case.row, note))
        if not present:
            named = case.modalities or case.after_therapy
            self.left_out[NO_USABLE_IMAGE if named else NO_IMAGE_NAMED] += 1
            return
        self.accepted += 1
        self.splits[split] += 1
        self.modalities.update(present)
        self.combinations["+".join(present)] += 1
        label, source = case.labelled("reference")
        self.sources[source] += 1
        name = UNKNOWN if label is None else ("positive" if label else "negative")
        self.labels[split][name] += 1
        for variable, value in _clinical(case).items():
            self.clinical[variable][value] += 1
        if split == "train" and label is not None:
            known = any(value is not None for value in case.clinical)
            self.training.update([*present, *(["clinical"] if known else []), "head"])

    def unused(self, disposition: Disposition) -> list[RowNote]:
        """The notes of one disposition, in the order of the table."""
        return [note for note in self.notes if note.note.disposition == disposition]

    def as_dict(self) -> dict[str, Any]:
        """Counts alone, ready for JSON: no rows, no messages. Exact: for use inside the site."""
        return {
            "site": self.site,
            "published": self.published,
            "cases": {
                "in_table": self.cases_in_table,
                "accepted": self.accepted,
                "left_out": dict(sorted(self.left_out.items())),
            },
            "images": {
                image: {state: counts[state] for state in STATES}
                for image, counts in self.images.items()
            },
            "reasons": {
                disposition: dict(sorted(counts.items()))
                for disposition, counts in self.reasons.items()
            },
            "remarks": dict(sorted(self.remarks.items())),
            "lesion_boxes": {image: self.boxed[image] for image in IMAGES},
            "modalities": {modality: self.modalities[modality] for modality in MODALITIES},
            "combinations": dict(sorted(self.combinations.items())),
            "scanners": {
                modality: dict(sorted(counts.items())) for modality, counts in self.scanners.items()
            },
            "splits": {
                split: {
                    "cases": self.splits[split],
                    "positive": self.labels[split]["positive"],
                    "negative": self.labels[split]["negative"],
                    "unknown": self.labels[split][UNKNOWN],
                }
                for split in SPLITS
            },
            "label_sources": {source: self.sources[source] for source in SOURCE_NAMES},
            "training": {group: self.training[group] for group in TRAINING_GROUPS},
            "clinical": {
                name: {value: counts[value] for value in (*VARIABLES[name], UNKNOWN)}
                for name, counts in self.clinical.items()
            },
            "work": {"fresh": self.fresh, "unchanged": self.unchanged},
            "seconds": round(self.seconds, 3),
        }


def _clinical(case: Case) -> dict[str, str]:
    band = UNKNOWN
    if case.age is not None:
        band = AGE_BANDS[min(max(int(case.age // 10) - 3, 0), len(AGE_BANDS) - 1)]
    raw = {
        "menopausal": case.menopausal,
        "clinical_t": case.clinical_t,
        "clinical_n": case.clinical_n,
        "multifocal": case.multifocal,
        "er": case.er,
        "pr": case.pr,
        "biopsy_ihc": case.biopsy.ihc,
        "biopsy_her2": case.biopsy.her2,
        "surgical_her2": case.surgical.her2,
        "nat": case.nat,
        "anti_her2": case.anti_her2,
        "pcr": case.pcr,
    }
    named = {"age": band}
    for name, value in raw.items():
        if value is None:
            named[name] = UNKNOWN
        else:
            named[name] = _NO_YES[int(value)] if VARIABLES[name] == _NO_YES else str(value)
    return named


def summary_table(summary: IngestSummary) -> Table:
    """The summary for a person, within 80 columns."""
    from rich.table import Table

    told = "" if summary.published else ": nothing was published"
    table = Table(title=f"Ingest at {summary.site}{told}", title_justify="left", show_header=False)
    table.add_column("what", no_wrap=True)
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("of which", overflow="fold", max_width=44)

    table.add_row("cases in the table", str(summary.cases_in_table), "")
    where = "cases in the cache" if summary.published else "cases for the cache"
    table.add_row(where, str(summary.accepted), listed(summary.combinations))
    table.add_row("cases left out", str(summary.left_out.total()), listed(summary.left_out))
    table.add_section()
    for image in IMAGES:
        counts = summary.images[image]
        rest = {str(state): counts[state] for state in DISPOSITIONS}
        table.add_row(f"{image} accepted", str(counts["accepted"]), listed(rest))
    if summary.remarks:
        table.add_row("with a remark", str(summary.remarks.total()), listed(summary.remarks))
    for disposition in DISPOSITIONS:
        reasons = summary.reasons[disposition]
        table.add_row(disposition, str(reasons.total()), listed(reasons))
    table.add_section()
    for split in SPLITS:
        labels = summary.labels[split]
        row = f"HER2 {labels['positive']} positive, {labels['negative']} negative"
        if labels[UNKNOWN]:
            row += f", {labels[UNKNOWN]} unknown"
        table.add_row(f"{split} cases", str(summary.splits[split]), row)
    known = {name: summary.sources[source] for source, name in SOURCE_NAMES.items()}
    table.add_row("labels by source", "", listed(known))
    return table


def listed(counts: Mapping[str, int]) -> str:
    """The counts that are not 0, the greatest first: "7 gap, 2 damaged"."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {name}" for name, count in ordered if count)
