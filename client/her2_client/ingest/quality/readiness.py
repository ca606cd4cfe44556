"""Is a centre's data ready for training: a verdict by fixed rules, each with its reason.

What may be told of the data outside the centre is another question (sharing.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from her2_client.ingest.privacy.guard import REFUSED_AT_REVIEW
from her2_client.ingest.summary import UNKNOWN, IngestSummary
from her2_common.cases import CLINICAL_INPUTS, IMAGES, MODALITIES, Image, Modality, Split
from her2_common.config import Policy

Verdict = Literal["ready", "ready with gaps", "not ready"]

MIN_TEST_CASES: Final = 30
"""The 95 % interval of an AUC of 0.75 is then 0.4 wide if a third of the cases is positive (Hanley
and McNeil, Radiology 143 (1982) 29); a design value."""
FEW_REFUSED: Final = 5
"""Refused pictures of a column below which nothing is made of their share (a design value)."""
MAX_REFUSED_SHARE: Final = 0.10
"""Of a column's pictures; more is a fault of the export, not of single files (a design value)."""
MAX_UNKNOWN_LABELS: Final = 0.20
"""Of the cases in the cache (a design value)."""
MAX_UNKNOWN_INPUT: Final = 0.50
"""Of the cases in the cache, for one clinical input (a design value)."""

COLUMNS: Final[dict[Modality, tuple[Image, ...]]] = {
    "mg": ("mg_cc", "mg_mlo"),
    "us": ("us",),
    "mri": ("mri",),
}
NAMES: Final[dict[Modality, str]] = {"mg": "mammography", "us": "ultrasound", "mri": "MRI"}
_CLASSES: Final = ("positive", "negative")
SPLIT_NAMES: Final[dict[Split, str]] = {"train": "training", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class Readiness:
    """The verdict on a centre's data.

    ``blockers`` must be mended before training, ``gaps`` make it poorer; one or two sentences
    each: what it means for training, and what to do. They hold exact counts: for the site alone.
    """

    verdict: Verdict
    blockers: tuple[str, ...]
    gaps: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "verdict": self.verdict,
            "blockers": list(self.blockers),
            "gaps": list(self.gaps),
        }


def readiness(summary: IngestSummary, policy: Policy) -> Readiness:
    """Can this centre train, and what would make it better?

    Not ready: no training case; none with a known reference label; one class missing among them;
    no modality with ``policy.min_cases`` of them. Everything else is a gap. The label is the
    ``reference`` one, the default of a run. Which make of scanner prevails is no gap.

    >>> readiness(IngestSummary("north", 0), Policy()).verdict
    'not ready'
    """
    blockers = tuple(_blockers(summary, policy))
    gaps = tuple(_gaps(summary, policy))
    if blockers:
        return Readiness("not ready", blockers, gaps)
    return Readiness("ready with gaps" if gaps else "ready", (), gaps)


# --- what makes training impossible --------------------------------------------------------------


def _blockers(summary: IngestSummary, policy: Policy) -> Iterator[str]:
    cases, labels = summary.splits["train"], summary.labels["train"]
    if not summary.accepted:
        remedy = "See why the pictures were not used, mend that and run the ingest again."
        if summary.reasons["quarantined"]:
            remedy = _remedy(summary)
        yield f"No case is in the cache, so there is nothing to train on. {remedy}"
        return
    if not cases:
        yield (
            "No case is in the training split, so nothing can be learned here. Mend the split "
            "column of the case table; where it is blank, about 70 of 100 cases go to training."
        )
        return
    known = sum(labels[name] for name in _CLASSES)
    if not known:
        yield (
            f"The HER2 status of none of the {_cases(cases, 'training ')} is known, so nothing can "
            "be learned here. Fill in the columns of the biopsy, or, of patients without "
            "neoadjuvant therapy (nat 0), of the excised tumour."
        )
        return
    for name in _CLASSES:
        if not labels[name]:
            yield (
                f"No training case is HER2-{name}; a model that sees one class alone cannot learn "
                f"to tell the two apart. {_remedy(summary)}"
            )
    if max(summary.training[m] for m in MODALITIES) < policy.min_cases:
        counts = ", ".join(f"{NAMES[m]} {summary.training[m]}" for m in MODALITIES)
        yield (
            f"No modality has the {policy.min_cases} training cases of known HER2 status that "
            f"policy.min_cases of site.yaml asks for ({counts}), so no update may leave. Add cases."
        )


def _remedy(summary: IngestSummary) -> str:
    if summary.reasons["quarantined"]:
        return "First decide, at the review, on what waits in quarantine."
    return (
        "Add such cases, or see whether the HER2 columns of the case table are filled in as they "
        "should be."
    )


# --- what makes it poorer ------------------------------------------------------------------------


def _gaps(summary: IngestSummary, policy: Policy) -> Iterator[str]:
    yield from _picture_gaps(summary)
    if summary.accepted:
        yield from _case_gaps(summary, policy)
        yield from _input_gaps(summary)


def _picture_gaps(summary: IngestSummary) -> Iterator[str]:
    if waiting := summary.reasons["quarantined"].total():
        one = waiting == 1
        yield (
            f"{waiting} {'picture waits' if one else 'pictures wait'} in quarantine and "
            f"{'takes' if one else 'take'} no part in training until a person has decided on "
            f"{'it' if one else 'them'} at the review."
        )
    for modality in MODALITIES:
        named = sum(summary.images[column].total() for column in COLUMNS[modality])
        if named and not summary.modalities[modality]:
            yield (
                f"The case table names {NAMES[modality]}, but none of it could be used, so this "
                f"centre does not train on {NAMES[modality]}. See the reasons by row."
            )
    for column in IMAGES:
        counts, reasons = summary.images[column], _reasons(summary, column)
        by_reviewer = reasons.pop(REFUSED_AT_REVIEW, 0)  # no fault of a file
        refused, meant = counts["refused"] - by_reviewer, counts.total() - counts["set aside"]
        if refused >= FEW_REFUSED and refused > MAX_REFUSED_SHARE * meant:
            yield (
                f"{refused} of {meant} pictures of the column {column} were refused "
                f"({_percent(refused, meant)}){_commonest(reasons)}. So many point to the "
                "export, not to single files: see one of them, mend the export and ingest again."
            )
    for modality in MODALITIES:
        if summary.modalities[modality] and not any(summary.boxed[c] for c in COLUMNS[modality]):
            yield (
                f"No {NAMES[modality]} case has a lesion box, so whole pictures are used and the "
                "lesion is small in them. Add boxes to the lesion table if there are any."
            )


def _case_gaps(summary: IngestSummary, policy: Policy) -> Iterator[str]:
    few = [m for m in MODALITIES if summary.training[m] < policy.min_cases]
    for modality in few if len(few) < len(MODALITIES) else ():  # all: that is a blocker
        count = summary.training[modality]
        if summary.modalities[modality]:
            yield (
                f"{NAMES[modality].capitalize() if modality != 'mri' else 'MRI'} has "
                f"{_cases(count, 'training ')} of known HER2 status, fewer than the "
                f"{policy.min_cases} of policy.min_cases, so it is left out of training here. "
                "Add cases."
            )
    for split in ("val", "test"):
        labels, name = summary.labels[split], SPLIT_NAMES[split]
        missing = [label for label in _CLASSES if not labels[label]]
        if missing:
            whose = "no HER2-" + " and no HER2-".join(missing)
            yield (
                f"The {name} split has {whose} case, so this centre's own AUC cannot be computed "
                "there; its cases still count in the pooled one. Add cases; where the "
                "table states no split, about 20 of 100 cases go to the test split."
            )
    if (tested := summary.splits["test"]) < MIN_TEST_CASES:
        yield (
            f"The test split has {_cases(tested)}, fewer than {MIN_TEST_CASES}, so figures of this "
            "centre alone will have wide intervals. Add cases if there are any."
        )
    unknown = sum(summary.labels[split][UNKNOWN] for split in SPLIT_NAMES)
    if unknown > MAX_UNKNOWN_LABELS * summary.accepted:
        yield (
            f"The HER2 status of {unknown} of {summary.accepted} cases is unknown "
            f"({_percent(unknown, summary.accepted)}); they take no part in training. Fill in the "
            "columns of the biopsy, or, of patients without neoadjuvant therapy (nat 0), of the "
            "excised tumour."
        )


def _input_gaps(summary: IngestSummary) -> Iterator[str]:
    sparse = [
        f"{name} {_percent(summary.clinical[name][UNKNOWN], summary.accepted)}"
        for name in CLINICAL_INPUTS
        if summary.clinical[name][UNKNOWN] > MAX_UNKNOWN_INPUT * summary.accepted
    ]
    if sparse:
        yield (
            f"Unknown in more than half of the cases: {_listed(sparse)}. The model goes without a "
            "clinical input that is unknown, and learns little from it here. Fill in the "
            f"{'columns' if len(sparse) > 1 else 'column'}."
        )


def _reasons(summary: IngestSummary, column: Image) -> Counter[str]:
    return Counter(
        note.note.reason for note in summary.unused("refused") if note.note.column == column
    )


def _commonest(reasons: Counter[str]) -> str:
    if not reasons:
        return ""
    reason, count = min(reasons.items(), key=lambda item: (-item[1], item[0]))
    return f", most often for the reason {reason!r} ({count})"


def _cases(count: int, kind: str = "") -> str:
    return f"{count} {kind}case" if count == 1 else f"{count} {kind}cases"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
