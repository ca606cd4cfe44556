"""What an ingest did, in counts: for the engineer's screen, and for ``--json``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from her2_client.ingest.case import Outcome, Refusal
from her2_common.cases import IMAGES, MODALITIES, SPLITS, Case, Split

if TYPE_CHECKING:
    from rich.table import Table

NO_IMAGE_NAMED: Final = "no image named"
NO_USABLE_IMAGE: Final = "no usable image"


@dataclass
class IngestSummary:
    """Counts of one ingest. ``combinations`` is keyed like "mg+us"; ``labels`` by split, of the
    reference label. ``refusals`` names table rows and stays on the engineer's screen."""

    site: str
    cases_in_table: int
    accepted: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    images_accepted: Counter[str] = field(default_factory=Counter)
    images_refused: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    modalities: Counter[str] = field(default_factory=Counter)
    combinations: Counter[str] = field(default_factory=Counter)
    labels: dict[Split, Counter[str]] = field(
        default_factory=lambda: {split: Counter() for split in SPLITS}
    )
    refusals: list[Refusal] = field(default_factory=list)
    seconds: float = 0.0

    def count(self, case: Case, outcome: Outcome, split: Split) -> None:
        """Add one case."""
        self.refusals += outcome.refusals
        self.images_accepted.update(outcome.accepted)
        self.images_refused.update(refusal.column for refusal in outcome.refusals)
        self.reasons.update(refusal.reason for refusal in outcome.refusals)
        if not outcome.images:
            self.left_out[NO_USABLE_IMAGE if case.modalities else NO_IMAGE_NAMED] += 1
            return
        present = [modality for modality in MODALITIES if modality in outcome.images]
        self.accepted += 1
        self.splits[split] += 1
        self.modalities.update(present)
        self.combinations["+".join(present)] += 1
        label = case.label("reference")
        name = "unknown" if label is None else ("positive" if label else "negative")
        self.labels[split][name] += 1

    def as_dict(self) -> dict[str, Any]:
        """Counts alone, ready for JSON: no rows, no messages."""
        return {
            "site": self.site,
            "cases": {
                "in_table": self.cases_in_table,
                "accepted": self.accepted,
                "left_out": dict(sorted(self.left_out.items())),
            },
            "images": {
                "accepted": {image: self.images_accepted[image] for image in IMAGES},
                "refused": {image: self.images_refused[image] for image in IMAGES},
                "reasons": dict(sorted(self.reasons.items())),
            },
            "modalities": {modality: self.modalities[modality] for modality in MODALITIES},
            "combinations": dict(sorted(self.combinations.items())),
            "splits": {
                split: {
                    "cases": self.splits[split],
                    "positive": self.labels[split]["positive"],
                    "negative": self.labels[split]["negative"],
                    "unknown": self.labels[split]["unknown"],
                }
                for split in SPLITS
            },
            "seconds": round(self.seconds, 3),
        }


def summary_table(summary: IngestSummary) -> Table:
    """The summary for a person, within 80 columns."""
    from rich.table import Table

    table = Table(title=f"Ingest at {summary.site}", title_justify="left", show_header=False)
    table.add_column("what", no_wrap=True)
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("of which", overflow="fold", max_width=44)

    table.add_row("cases in the table", str(summary.cases_in_table), "")
    table.add_row("cases in the cache", str(summary.accepted), _listed(summary.combinations))
    table.add_row("cases left out", str(summary.left_out.total()), _listed(summary.left_out))
    table.add_section()
    for image in IMAGES:
        count, refused = summary.images_accepted[image], summary.images_refused[image]
        table.add_row(f"{image} images", str(count), f"{refused} refused" if refused else "")
    table.add_row("images refused", str(len(summary.refusals)), _listed(summary.reasons))
    table.add_section()
    for split in SPLITS:
        labels = summary.labels[split]
        row = f"HER2 {labels['positive']} positive, {labels['negative']} negative"
        if labels["unknown"]:
            row += f", {labels['unknown']} unknown"
        table.add_row(f"{split} cases", str(summary.splits[split]), row)
    return table


def _listed(counts: Counter[str]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {name}" for name, count in ordered)
