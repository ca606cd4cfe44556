"""Duke-Breast-Cancer-MRI as the archive delivers it -> cases.csv and lesions.csv.

1. Find the spreadsheets and the series folders under one folder.
2. Read the clinical sheet; a missing column ends it, a faulty cell is left blank and counted.
3. Response: see ``judge``.
4. Choose each patient's dynamic series; where that cannot be done with certainty the ``mri`` cell
   stays blank, and the reason is counted.
5. Bring the box into voxels of that series: see ``lesion_box``.
6. Write both tables, each in one step. A table that a person wrote or changed is not replaced.

The images stay where they are; ``her2-client ingest`` reads them through the table.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from her2_client.ingest.duke.series import Dynamic, Files, Grid, dynamic_series, find_files
from her2_client.ingest.duke.sheets import (
    BOX_COLUMNS,
    CLINICAL_COLUMNS,
    T_AFTER,
    ClinicalRow,
    Faults,
    Response,
    SourceBox,
    clinical_rows,
    read_sheet,
    source_boxes,
    therapy_coding,
)
from her2_client.ingest.duke.summary import HER2_NAMES, DukeSummary
from her2_common.cases import LESION_COLUMNS, Box
from her2_common.clinical import pcr_from_stage
from her2_common.errors import DataError, ImageError, TableError
from her2_common.files import replace_durably
from her2_common.tables import write_csv

Progress = Callable[[int, int], None]
"""Called with the number of patients done and of all patients."""

COLUMNS: Final = (
    "case_id", "mri", "laterality", "age", "menopausal", "clinical_t", "clinical_n", "multifocal",
    "er", "pr", "biopsy_her2", "nat", "anti_her2", "ypt", "ypn", "pcr",
)  # fmt: skip
"""The columns of cases.csv that are written."""
COMPLETE: Final = {1: "0", 3: "is", 4: "0"}
"""Codes of response without invasive disease in the breast, with the ypT that they are: complete,
DCIS only, LCIS only (which is benign and no Tis in the AJCC's 8th edition)."""
UNAVAILABLE: Final = 5


def build_duke(
    folder: Path,
    cases: Path,
    lesions: Path | None,
    *,
    strict_nodes: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> DukeSummary:
    """Write ``cases`` and, if given, ``lesions`` from the collection under ``folder``.

    The clinical sheet is needed; boxes and images may be missing. Paths in the table start at
    its own folder. ``strict_nodes`` counts a complete response in the breast as pCR only where
    the nodes are known to be negative. ``force`` replaces tables whatever they hold.

    Raises:
        TableError: no clinical sheet, one that cannot be read, or a column missing.
        DataError: no such folder; a table exists that this function did not write, or that was
            changed since.
    """
    if not folder.is_dir():
        raise DataError("expected a folder with the collection, got none of that name")
    files = find_files(folder)
    clinical_path = _only(files.clinical)
    if clinical_path is None:
        raise TableError(
            "expected Clinical_and_Other_Features.xlsx (or .csv) in the folder, got none",
            hint="download the clinical data from the collection's page into the folder",
        )
    if not force:
        for path in (cases, lesions):
            if path is not None:
                _check_ours(path)

    faults = Faults()
    sheet = read_sheet(clinical_path, CLINICAL_COLUMNS, optional=[T_AFTER])
    patients = clinical_rows(sheet, faults)
    box_path = _only(files.boxes)
    boxes = {} if box_path is None else source_boxes(read_sheet(box_path, BOX_COLUMNS), faults)
    summary = DukeSummary(
        strict_nodes=strict_nodes,
        patients=len(patients),
        therapy_coding=therapy_coding(sheet),
        box_sheet=box_path is not None,
        folders_without_row=len(files.series.keys() - {patient.case_id for patient in patients}),
    )
    summary.boxes["found"] = len(boxes)
    rows, lesion_rows = [], []
    for done, patient in enumerate(patients, 1):
        series, cell = _images(patient.case_id, files, cases, summary)
        rows.append(
            {"case_id": patient.case_id, "mri": cell}
            | dict(patient.cells)
            | _response(patient.response, summary)
        )
        box = _box(boxes.pop(patient.case_id, None), series, lesions, summary)
        if box is not None:
            lesion_rows.append(_lesion_row(patient.case_id, box))
        _count(patient, summary)
        if progress is not None:
            progress(done, len(patients))
    if boxes:
        summary.boxes_left_out["patient not in the clinical sheet"] = len(boxes)
    summary.faults = faults.lines

    _write(cases, COLUMNS, rows)
    if lesions is not None:
        _write(lesions, LESION_COLUMNS, lesion_rows)
    summary.written = tuple(path.name for path in (cases, lesions) if path is not None)
    return summary


def _only(paths: Sequence[Path]) -> Path | None:
    """The one spreadsheet among copies; a workbook before its export."""
    books = [path for path in paths if path.suffix.lower() == ".xlsx"] or list(paths)
    if len({path.read_bytes() for path in books}) > 1:
        raise TableError(
            f"{books[0].name}: expected one in the folder, got {len(books)} that differ",
            hint="keep the one that belongs to the images",
        )
    return books[0] if books else None


def _count(patient: ClinicalRow, summary: DukeSummary) -> None:
    summary.her2[HER2_NAMES[patient.her2]] += 1
    for column, counter in (("nat", summary.nat), ("anti_her2", summary.anti_her2)):
        counter[{"1": "yes", "0": "no"}.get(patient.cells[column], "unknown")] += 1


# --- response -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """The cells of cases.csv on response. ``kinds`` are the summary's counts it belongs to;
    ``conflict`` says that the stated ypT contradicts the response and was left out."""

    pcr: int | None
    ypt: str | None
    ypn: str | None
    kinds: tuple[str, ...]
    conflict: bool = False


def judge(response: Response, *, strict_nodes: bool) -> Judged:
    """pCR out of the sheet's response code and the nodes after therapy.

    Codes 1, 3 and 4 are pCR unless nodes are positive afterwards; 2 is not; 5 is missing. Many
    complete responders have no recorded nodes or NX: they count as pCR, or, with
    ``strict_nodes``, stay blank. ypT and ypN are repeated where the sheet states them and they do
    not contradict that; where it states no ypT, codes 1, 3 and 4 give it. Definition: ypT0/is ypN0
    (her2_common.clinical).

    >>> judge(Response(3, None, "0"), strict_nodes=False).pcr
    1
    >>> judge(Response(1, None, "1"), strict_nodes=False).pcr
    0
    >>> judge(Response(1, None, None), strict_nodes=True).pcr is None
    True
    """
    ypt, ypn = response.ypt, response.ypn
    if response.code is None or response.code == UNAVAILABLE:
        # Stages alone would make a label that the sheet says it does not have.
        return Judged(None, None, None, ("not_stated" if response.code is None else "unavailable",))
    pcr: int | None
    kinds: tuple[str, ...]
    if response.code not in COMPLETE:
        pcr, kinds = 0, ("no",)
    elif ypn == "0":
        pcr, kinds = 1, ("yes",)
    elif ypn not in (None, "X"):
        pcr, kinds = 0, ("no", "no_nodes_positive")
    elif strict_nodes:
        pcr, kinds = None, ("withheld_nodes_unknown",)
    else:
        pcr, kinds = 1, ("yes", "yes_nodes_unknown")
    derived = pcr_from_stage(ypt, ypn)
    conflict = derived is not None and derived != pcr
    if conflict:
        ypt = None
    elif ypt in (None, "X"):
        ypt = COMPLETE.get(response.code, ypt)
    return Judged(pcr, ypt, ypn, kinds, conflict)


def _response(response: Response, summary: DukeSummary) -> dict[str, str]:
    judged = judge(response, strict_nodes=summary.strict_nodes)
    summary.pcr.update(judged.kinds)
    summary.stage_conflicts += judged.conflict
    return {
        "ypt": judged.ypt or "",
        "ypn": judged.ypn or "",
        "pcr": "" if judged.pcr is None else str(judged.pcr),
    }


# --- images and boxes ---------------------------------------------------------------------------


def _images(
    case_id: str, files: Files, cases: Path, summary: DukeSummary
) -> tuple[Dynamic | None, str]:
    """The patient's dynamic series and its cell of cases.csv; None and blank without one."""
    folders = files.series.get(case_id)
    if not folders:
        summary.images["missing"] += 1
        return None, ""
    try:
        series = dynamic_series(case_id, folders, files.named)
        cell = _cell(series.folders, cases)
    except ImageError as error:
        summary.not_used[case_id] = error.reason
        return None, ""
    summary.images["found"] += 1
    return series, cell


def _cell(folders: Sequence[Path], cases: Path) -> str:
    start = os.path.realpath(cases.parent)
    parts = [Path(os.path.relpath(os.path.realpath(f), start)).as_posix() for f in folders]
    if any(part != part.strip() or not part.isprintable() or ";" in part for part in parts):
        raise ImageError(
            "expected a folder name without a semicolon, got another", reason="folder name"
        )
    return ";".join(parts)


def lesion_box(box: SourceBox, grid: Grid) -> Box:
    """The box in voxels of the series, from 0 and end-exclusive, slices along their normal.

    The sheet gives first and last row, column and slice. Its slices are counted by
    InstanceNumber, as the readers of the collection's authors, nnDetection (Task042) and MAEMI
    do; where those numbers fall along the normal, the slices are turned round. Whether it counts
    from 0 or 1, and whether the last one belongs to the box, is nowhere stated: the readers
    differ by one. This box, from 1 and with the last, holds all of theirs but for one voxel at
    the far side where the sheet should count from 0.

    Raises:
        ImageError: the box reaches beyond the images, or InstanceNumber does not order them.
    """
    if grid.rising is None:
        raise ImageError(
            "expected slices numbered along their normal, got another order",
            reason="slice order unclear",
        )
    (y0, y1), (x0, x1), (z0, z1) = (
        (max(first - 1, 0), last) for first, last in (box.rows, box.columns, box.slices)
    )
    if x1 > grid.columns or y1 > grid.rows or z1 > grid.slices or min(x1, y1, z1) < 1:
        raise ImageError("expected a box within the images, got one beyond", reason="box outside")
    if not grid.rising:
        z0, z1 = grid.slices - z1, grid.slices - z0
    return Box(x0, y0, x1, y1, z0, z1)


def _box(
    box: SourceBox | None, series: Dynamic | None, lesions: Path | None, summary: DukeSummary
) -> Box | None:
    """The box for lesions.csv; a box without its images has no direction, so it is left out."""
    if box is None:
        summary.boxes["missing"] += 1
        return None
    if series is None:
        summary.boxes_left_out["no images"] += 1
        return None
    try:
        lesion = lesion_box(box, series.grid)
    except ImageError as error:
        summary.boxes_left_out[error.reason] += 1
        return None
    if lesions is None:
        summary.boxes_left_out["no lesion table in site.yaml"] += 1
        return None
    summary.boxes["written"] += 1
    return lesion


def _lesion_row(case_id: str, box: Box) -> dict[str, object]:
    return {"case_id": case_id, "image": "mri"} | {
        name: getattr(box, name) for name in LESION_COLUMNS[2:]
    }


# --- tables -------------------------------------------------------------------------------------


def _mark(path: Path) -> Path:
    """Holds the SHA-256 of what was written to ``path``, so that a changed table is seen."""
    return path.with_name(f".{path.name}.duke")


def _is_ours(path: Path) -> bool:
    try:
        marks = _mark(path).read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() in marks


def _check_ours(path: Path) -> None:
    if path.exists() and not _is_ours(path):
        raise DataError(
            f"{path.name}: expected no table, or one as --duke wrote it, got another",
            hint="move it away, or replace it with --force",
        )


def _write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    content = write_csv(columns, rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    # The mark goes first and knows both tables: whichever a crash leaves is known as ours.
    marks = [hashlib.sha256(content).hexdigest()]
    if path.exists() and _is_ours(path):
        marks.append(hashlib.sha256(path.read_bytes()).hexdigest())
    replace_durably(_mark(path), "\n".join(marks).encode("ascii") + b"\n")
    replace_durably(path, content)
