"""Tables of patients as a hospital writes them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from tests.common.response.cohorts import cohort

from her2_common.response.plan import Plan

PLAN = Plan(min_cell=1)

Row = dict[str, Any]


def rows_of(prefix: str, seed: int, n: int = 160) -> list[Row]:
    """Rows of one centre as a hospital writes them."""
    found = cohort(seed, n, levels=64)
    return [
        {
            "case_id": f"{prefix}-{i}",
            "patient_id": f"{prefix}-p{i}",
            "mg_cc": "x/mg.dcm" if int(found["modalities"][i]) & 1 else "",
            "us": "x/us.dcm" if int(found["modalities"][i]) & 2 else "",
            "mri": "x/mri" if int(found["modalities"][i]) & 4 else "",
            "er": int(found["hr"][i]),
            "pr": int(found["hr"][i]),
            "clinical_t": int(found["t"][i]),
            "clinical_n": int(found["n"][i]),
            "biopsy_ihc": 3 if found["biopsy"][i] else 1,
            "anti_her2": int(found["therapy"][i]),
            "nat": 1,
            "ypt": "0" if found["pcr"][i] else "2",
            "ypn": "0",
            "split": "test",
            "score": found["score"][i],
        }
        for i in range(n)
    ]


def write(path: Path, rows: list[Row]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def four(folder: Path) -> list[Path]:
    """Tables of four centres."""
    return [
        write(folder / f"{name}.csv", rows_of(name, seed))
        for seed, name in enumerate(("north", "east", "south", "west"))
    ]
