"""The case table (cases.csv) and the lesion table (lesions.csv): the contract with a hospital.

One row a case, blank for unknown or absent. HER2 and pCR are derived, never trusted: a stated
value that contradicts IHC/ISH or ypT/ypN is an error. All faults of a table are found in one
pass and reported together, each with its row, column, what was expected and what was got.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

from her2_common.clinical import Her2Level, her2_from_ihc_ish, her2_level, pcr_from_stage
from her2_common.tables import Faults, read_rows

Modality = Literal["mg", "us", "mri"]
MODALITIES: Final[tuple[Modality, ...]] = get_args(Modality)
"""In the order in which every table, message and picture lists them."""

Image = Literal["mg_cc", "mg_mlo", "us", "mri"]
IMAGES: Final[tuple[Image, ...]] = get_args(Image)

Split = Literal["train", "val", "test"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)
SPLIT_SHARES: Final = {"train": 0.70, "val": 0.10, "test": 0.20}

Label = Literal["reference", "biopsy", "surgical", "pcr"]

CLINICAL_INPUTS: Final = ("age", "menopausal", "clinical_t", "clinical_n", "multifocal")
"""The five clinical inputs of the MAP model; none of them is read from the biopsy."""


@dataclass(frozen=True)
class Assay:
    """HER2 of one specimen: ``ihc`` 0 to 3, ``ish`` 0/1, ``her2`` 0/1 derived from them."""

    ihc: int | None = None
    ish: int | None = None
    her2: int | None = None

    @property
    def level(self) -> Her2Level | None:
        """Zero, low or positive by the raw IHC and ISH; a stated HER2 alone tells no level."""
        return her2_level(self.ihc, self.ish)


@dataclass(frozen=True)
class Case:
    """One row of cases.csv, checked. ``row`` is its line in the file, the header being 1."""

    row: int
    case_id: str
    patient_id: str
    mg_cc: Path | None
    mg_mlo: Path | None
    us: tuple[Path, ...]
    mri: tuple[Path, ...]
    laterality: Literal["L", "R"] | None
    age: float | None
    menopausal: int | None
    clinical_t: int | None
    clinical_n: int | None
    multifocal: int | None
    er: int | None
    pr: int | None
    biopsy: Assay
    surgical: Assay
    nat: int | None
    anti_her2: int | None
    ypt: str | None
    ypn: str | None
    pcr: int | None
    split: Split | None

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities for which the row names at least one file."""
        named = {"mg": self.mg_cc or self.mg_mlo, "us": self.us, "mri": self.mri}
        return tuple(m for m in MODALITIES if named[m])

    def label(self, kind: Label) -> int | None:
        """The training label: 1, 0, or None where it is unknown.

        ``reference`` is the excised tumour where it was tested and the biopsy elsewhere.
        """
        if kind == "pcr":
            return None if self.nat == 0 else self.pcr  # no response without therapy
        return self._assay(kind).her2

    def level(self, kind: Label) -> Her2Level | None:
        """The HER2 level of the specimen that gives ``label(kind)``; None for ``pcr``."""
        return None if kind == "pcr" else self._assay(kind).level

    def _assay(self, kind: Label) -> Assay:
        if kind == "biopsy" or (kind == "reference" and self.surgical.her2 is None):
            return self.biopsy
        return self.surgical

    @property
    def clinical(self) -> tuple[float | None, ...]:
        """The five clinical inputs in the order of ``CLINICAL_INPUTS``, raw units."""
        return (self.age, self.menopausal, self.clinical_t, self.clinical_n, self.multifocal)


@dataclass(frozen=True)
class Box:
    """A lesion's box in source pixels or voxels, end-exclusive.

    ``z`` is slices of MRI, and the frame of a multi-frame ultrasound.
    """

    x0: int
    y0: int
    x1: int
    y1: int
    z0: int | None = None
    z1: int | None = None


@dataclass(frozen=True)
class CaseTable:
    """cases.csv and lesions.csv of one site, checked and joined."""

    path: Path
    cases: tuple[Case, ...]
    boxes: dict[tuple[str, Image], Box] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.cases)


# --- cells --------------------------------------------------------------------------------------


class BadCellError(ValueError):
    """Says what a cell was expected to hold; it never leaves the readers of tables."""


def _integer(low: int, high: int) -> Callable[[str], int]:
    expected = f"{low} or {high}" if high == low + 1 else f"a whole number from {low} to {high}"

    def parse(text: str) -> int:
        try:
            value = float(text)
        except ValueError:
            raise BadCellError(expected) from None
        if not value.is_integer() or not low <= value <= high:
            raise BadCellError(expected)
        return int(value)

    return parse


def _age(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise BadCellError("an age in years from 18 to 110") from None
    if not 18 <= value <= 110:
        raise BadCellError("an age in years from 18 to 110")
    return value


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise BadCellError("one of " + ", ".join(allowed))
        return text

    return parse


def _identifier(text: str) -> str:
    if len(text) > 64:
        raise BadCellError("at most 64 characters")
    return text


_YES_NO = _integer(0, 1)
PARSERS: Final[dict[str, Callable[[str], Any]]] = {
    "case_id": _identifier,
    "patient_id": _identifier,
    "mg_cc": str,
    "mg_mlo": str,
    "us": str,
    "mri": str,
    "laterality": _choice("L", "R"),
    "age": _age,
    "menopausal": _YES_NO,
    "clinical_t": _integer(0, 4),
    "clinical_n": _integer(0, 3),
    "multifocal": _YES_NO,
    "er": _YES_NO,
    "pr": _YES_NO,
    "biopsy_ihc": _integer(0, 3),
    "biopsy_ish": _YES_NO,
    "biopsy_her2": _YES_NO,
    "surgical_ihc": _integer(0, 3),
    "surgical_ish": _YES_NO,
    "surgical_her2": _YES_NO,
    "nat": _YES_NO,
    "anti_her2": _YES_NO,
    "ypt": _choice("0", "is", "1", "2", "3", "4"),
    "ypn": _choice("0", "1", "2", "3"),
    "pcr": _YES_NO,
    "split": _choice(*SPLITS),
}
"""Column of cases.csv -> the value of a cell that is not blank; raises BadCellError."""

CASE_COLUMNS: Final = tuple(PARSERS)
LESION_COLUMNS: Final = ("case_id", "image", "x0", "y0", "z0", "x1", "y1", "z1")


def _assay(values: dict[str, Any], specimen: str, row: int, faults: Faults) -> Assay:
    ihc, ish, stated = (values.get(f"{specimen}_{name}") for name in ("ihc", "ish", "her2"))
    derived = her2_from_ihc_ish(ihc, ish)
    if derived is not None and stated is not None and derived != stated:
        faults.row(
            row,
            f"{specimen}_her2 is {stated}, but {specimen}_ihc {ihc if ihc is not None else 'blank'}"
            f" with {specimen}_ish {ish if ish is not None else 'blank'} means {derived}",
        )
    return Assay(ihc, ish, stated if derived is None else derived)


def read_cases(path: Path, lesions: Path | None = None) -> CaseTable:
    """Read and check cases.csv and, if given, lesions.csv.

    File paths in the table are resolved against the table's folder. Whether the files exist is
    the business of ingest, not of the table.

    Raises:
        TableError: naming every faulty row and column (the first 20 of them).
    """
    faults = Faults(path)
    cases: list[Case] = []
    first_row: dict[str, int] = {}
    split_of: dict[str, tuple[int, str]] = {}
    for raw in read_rows(path, CASE_COLUMNS, {"case_id"}):
        row = int(raw[""])
        values: dict[str, Any] = {}
        for column, parse in PARSERS.items():
            text = raw.get(column, "")
            if not text:
                continue
            try:
                values[column] = parse(text)
            except BadCellError as bad:
                faults.cell(row, column, str(bad), text)
        case_id = values.get("case_id")
        if case_id is None:
            if not raw.get("case_id"):
                faults.row(row, "case_id is blank")
            continue
        if case_id in first_row:
            faults.row(row, f"case_id is the same as in row {first_row[case_id]}")
            continue
        first_row[case_id] = row
        patient_id = values.get("patient_id", case_id)
        if (split := values.get("split")) is not None:
            other_row, other = split_of.setdefault(patient_id, (row, split))
            if other != split:
                faults.row(
                    row,
                    f"split is {split!r}, but row {other_row} puts the same patient into {other!r}",
                )
        stated, derived = values.get("pcr"), pcr_from_stage(values.get("ypt"), values.get("ypn"))
        if stated is not None and derived is not None and stated != derived:
            faults.row(
                row,
                f"pcr is {stated}, but ypt {values.get('ypt', 'blank')} with ypn "
                f"{values.get('ypn', 'blank')} means {derived} (ypT0/is ypN0)",
            )

        def file(column: str, values: dict[str, Any] = values) -> Path | None:
            return path.parent / values[column] if column in values else None

        def files(column: str, values: dict[str, Any] = values) -> tuple[Path, ...]:
            parts = [part.strip() for part in values.get(column, "").split(";")]
            return tuple(path.parent / part for part in parts if part)

        cases.append(
            Case(
                row=row,
                case_id=case_id,
                patient_id=patient_id,
                mg_cc=file("mg_cc"),
                mg_mlo=file("mg_mlo"),
                us=files("us"),
                mri=files("mri"),
                **{
                    name: values.get(name)
                    for name in ("laterality", *CLINICAL_INPUTS, "er", "pr", "nat", "anti_her2")
                },
                biopsy=_assay(values, "biopsy", row, faults),
                surgical=_assay(values, "surgical", row, faults),
                ypt=values.get("ypt"),
                ypn=values.get("ypn"),
                pcr=stated if derived is None else derived,
                split=split,
            )
        )
    faults.raise_if_any()
    boxes = {} if lesions is None else _read_boxes(lesions, set(first_row))
    return CaseTable(path, tuple(cases), boxes)


def _read_boxes(path: Path, known: set[str]) -> dict[tuple[str, Image], Box]:
    faults = Faults(path)
    boxes: dict[tuple[str, Image], Box] = {}
    corner = _integer(0, 1_000_000)
    for raw in read_rows(path, LESION_COLUMNS, set(LESION_COLUMNS) - {"z0", "z1"}):
        row = int(raw[""])
        image = raw["image"]
        if raw["case_id"] not in known:
            faults.row(row, "case_id is not in the case table: put it there, or delete this row")
            continue
        if image not in IMAGES:
            faults.cell(row, "image", "one of " + ", ".join(IMAGES), image)
            continue
        values: dict[str, int | None] = {"z0": None, "z1": None}
        needed: tuple[str, ...] = ("x0", "y0", "x1", "y1")
        if image == "mri" or (image == "us" and (raw.get("z0") or raw.get("z1"))):
            needed = LESION_COLUMNS[2:]
        for column in needed:
            try:
                values[column] = corner(raw.get(column, ""))
            except BadCellError:
                faults.cell(row, column, "a whole number from 0", raw.get(column, ""))
        for axis in "xyz":
            low, high = values.get(f"{axis}0"), values.get(f"{axis}1")
            if low is not None and high is not None and high <= low:
                faults.row(row, f"{axis}1 must be greater than {axis}0 (boxes are end-exclusive)")
        if (raw["case_id"], image) in boxes:
            faults.row(row, f"a second {image} box for the same case")
        if {"x0", "y0", "x1", "y1"} <= values.keys():
            boxes[raw["case_id"], image] = Box(**values)  # type: ignore[arg-type]
    faults.raise_if_any()
    return boxes


# --- keyed hashes -------------------------------------------------------------------------------


def pseudonym(key: bytes, identifier: str) -> str:
    """The name under which a case or patient is known past ingest: HMAC-SHA-256, 24 hex digits.

    Without the site's key it cannot be reversed or guessed, not even from a list of names.
    """
    return hmac.new(key, identifier.encode(), hashlib.sha256).hexdigest()[:24]


def assign_split(key: bytes, patient_id: str) -> Split:
    """Train, val or test (70/10/20 in expectation) by a keyed hash of the patient.

    All cases of a patient fall into the same part, and the part does not depend on which other
    patients the table holds.
    """
    digest = hmac.new(key, b"split\x00" + patient_id.encode(), hashlib.sha256).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < SPLIT_SHARES["train"]:
        return "train"
    return "val" if position < SPLIT_SHARES["train"] + SPLIT_SHARES["val"] else "test"


def splits(table: CaseTable, key: bytes) -> dict[str, Split]:
    """The split of every case: the table's where a row of the patient states one, else keyed."""
    stated = {case.patient_id: case.split for case in table.cases if case.split is not None}
    return {
        case.case_id: stated.get(case.patient_id) or assign_split(key, case.patient_id)
        for case in table.cases
    }
