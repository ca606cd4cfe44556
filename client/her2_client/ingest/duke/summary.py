"""What was read from Duke-Breast-Cancer-MRI, in counts, to be held against its own sheets."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from her2_client.ingest.summary import listed
from her2_common.clinical import PCR_DEFINITION

if TYPE_CHECKING:
    from rich.table import Table

HER2_NAMES: Final = {1: "positive", 0: "negative", 2: "borderline", None: "unknown"}
"""Names of the sheet's codes."""
PCR_COUNTS: Final = (
    "yes",
    "yes_nodes_unknown",
    "no",
    "no_nodes_positive",
    "withheld_nodes_unknown",
    "unavailable",
    "not_stated",
)
"""Each patient is in one of ``yes``, ``no``, ``withheld_nodes_unknown``, ``unavailable`` and
``not_stated``; ``yes_nodes_unknown`` is part of ``yes``, ``no_nodes_positive`` part of ``no``."""


@dataclass
class DukeSummary:
    """Counts of patients. ``nat`` is the sheet's neoadjuvant chemotherapy; ``faults`` are
    sentences that name a row and a column; ``not_used`` gives the reason for each patient whose
    images are there and cannot be used (the collection's identifiers are public)."""

    strict_nodes: bool = False
    patients: int = 0
    her2: Counter[str] = field(default_factory=Counter)
    nat: Counter[str] = field(default_factory=Counter)
    anti_her2: Counter[str] = field(default_factory=Counter)
    therapy_coding: dict[str, str] = field(default_factory=dict)
    pcr: Counter[str] = field(default_factory=Counter)
    stage_conflicts: int = 0
    box_sheet: bool = False
    boxes: Counter[str] = field(default_factory=Counter)
    boxes_left_out: Counter[str] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    not_used: dict[str, str] = field(default_factory=dict)
    folders_without_row: int = 0
    faults: list[str] = field(default_factory=list)
    written: tuple[str, ...] = ()

    @property
    def series_problems(self) -> Counter[str]:
        """How many patients' images are not used, by reason."""
        return Counter(self.not_used.values())

    def as_dict(self) -> dict[str, Any]:
        """Counts and reasons, ready for JSON."""
        yes_no = ("yes", "no", "unknown")
        return {
            "patients": self.patients,
            "strict_nodes": self.strict_nodes,
            "her2": {name: self.her2[name] for name in HER2_NAMES.values()},
            "nat": {name: self.nat[name] for name in yes_no},
            "anti_her2": {name: self.anti_her2[name] for name in yes_no},
            "therapy_coding": dict(self.therapy_coding),
            "pcr": {name: self.pcr[name] for name in PCR_COUNTS},
            "stage_conflicts": self.stage_conflicts,
            "mri": {
                "found": self.images["found"],
                "missing": self.images["missing"],
                "not_used": dict(sorted(self.series_problems.items())),
                "patients_not_used": dict(sorted(self.not_used.items())),
                "folders_without_row": self.folders_without_row,
            },
            "boxes": {
                "sheet": self.box_sheet,
                "found": self.boxes["found"],
                "missing": self.boxes["missing"],
                "written": self.boxes["written"],
                "left_out": dict(sorted(self.boxes_left_out.items())),
            },
            "faults": {"count": len(self.faults), "all": self.faults},
            "written": list(self.written),
        }


def duke_table(summary: DukeSummary) -> Table:
    """The summary for a person, within 80 columns."""
    from rich.table import Table

    table = Table(title="Duke-Breast-Cancer-MRI", title_justify="left", show_header=False)
    table.add_column("what", no_wrap=True)
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("of which", overflow="fold", max_width=44)

    count = summary.as_dict()
    pcr = count["pcr"]
    table.add_row("patients", str(summary.patients), "")
    table.add_row("HER2 positive", str(count["her2"]["positive"]), _others(count["her2"]))
    table.add_row("neoadjuvant chemotherapy", str(count["nat"]["yes"]), _others(count["nat"]))
    table.add_row("with anti-HER2", str(count["anti_her2"]["yes"]), _others(count["anti_her2"]))
    table.add_section()
    table.add_row("pCR", str(pcr["yes"]), f"{pcr['yes_nodes_unknown']} with nodes unknown")
    table.add_row("no pCR", str(pcr["no"]), f"{pcr['no_nodes_positive']} for positive nodes alone")
    unknown = {
        "nodes unknown": pcr["withheld_nodes_unknown"],
        "assessment unavailable": pcr["unavailable"],
        "not stated": pcr["not_stated"],
    }
    table.add_row("pCR unknown", str(sum(unknown.values())), listed(unknown))
    table.add_section()
    images, boxes = count["mri"], count["boxes"]
    table.add_row("with dynamic MRI", str(images["found"]), f"{images['missing']} without images")
    table.add_row("images not used", str(len(summary.not_used)), listed(images["not_used"]))
    told = f"of {boxes['found']} in the sheet" if summary.box_sheet else "no sheet of boxes"
    table.add_row("boxes written", str(boxes["written"]), told)
    left_out = boxes["left_out"]
    table.add_row("boxes left out", str(sum(left_out.values())), listed(left_out))
    table.add_row("cells left blank as faulty", str(len(summary.faults)), "")
    table.caption, table.caption_justify = PCR_DEFINITION, "left"
    return table


def _others(counts: dict[str, int]) -> str:
    return listed({k: v for k, v in counts.items() if k not in ("yes", "positive")})
