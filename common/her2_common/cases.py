"""The case table (cases.csv) and the lesion table (lesions.csv): the contract with a hospital.

One row a case, blank for unknown or absent. HER2 and pCR are derived, never trusted: a stated
value that contradicts IHC/ISH or ypT/ypN is an error. All faults of a table are found in one
pass and reported together, each with its row, column, what was expected and what was got.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, get_args

from her2_common.clinical import (
    CLINICAL_N_CODES,
    CLINICAL_T_CODES,
    DEFAULT_PCR,
    IHC_CODES,
    ISH_CODES,
    STATUS_CODES,
    YPN_CODES,
    YPT_CODES,
    Her2Level,
    Ihc,
    PcrDefinition,
    YpN,
    YpT,
    code_of,
    her2_from_ihc_ish,
    her2_level,
    hr_status,
    pcr_from_stage,
    receptor_of,
    response,
    stage_of,
)
from her2_common.tables import Faults, read_rows

Modality = Literal["mg", "us", "mri"]
MODALITIES: Final[tuple[Modality, ...]] = get_args(Modality)
"""In the order in which every table, message and picture lists them."""

Image = Literal["mg_cc", "mg_mlo", "us", "mri"]
IMAGES: Final[tuple[Image, ...]] = get_args(Image)

Split = Literal["train", "val", "test"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)
SPLIT_SHARES: Final = {"train": 0.70, "val": 0.10, "test": 0.20}

Label = Literal["reference", "biopsy", "surgical", "pcr", "pcr_strict"]
"""What a run predicts: HER2 (``Case.labelled`` says of which specimen), or the response."""
PCR_LABELS: Final[dict[Label, PcrDefinition]] = {"pcr": DEFAULT_PCR, "pcr_strict": "ypT0 ypN0"}
LABELS: Final[tuple[Label, ...]] = get_args(Label)


def post_therapy(trained_on: Sequence[str]) -> list[str]:
    """Which of the labels that a model was trained on hold what became of patients under therapy.

    ``trained_on`` are those of the runs that made its weights, the last being its own. A model of
    the response itself is meant to know it: of that one, tumours excised after therapy alone.

    >>> post_therapy(["reference"]), post_therapy(["surgical", "reference"])
    ([], ['surgical'])
    >>> post_therapy(["reference", "pcr"]), post_therapy(["pcr", "reference"])
    ([], ['pcr'])
    """
    held = {"surgical"} if trained_on[-1] in PCR_LABELS else {"surgical", *PCR_LABELS}
    return [label for label in dict.fromkeys(trained_on) if label in held]


LabelSource = Literal[
    "biopsy", "excised_untreated", "excised_treated", "stage", "stated", "no_surgery"
]
"""Where a label comes from: the biopsy; the excised tumour of a patient without or (possibly) with
neoadjuvant therapy; for a response ypT and ypN, a stated pCR, or that there was no operation."""
LABEL_SOURCES: Final[tuple[LabelSource, ...]] = get_args(LabelSource)

NoLabel = Literal["not_tested", "equivocal", "treated_only", "untreated", "response_unknown"]
"""Why there is none: no HER2 result; IHC 2+ without ISH; only the excised tumour was tested, after
(possible) therapy; for a response: no neoadjuvant therapy, or nothing is known of it."""
NO_LABEL: Final[tuple[NoLabel, ...]] = get_args(NoLabel)

SOURCE_NAMES: Final[dict[LabelSource | NoLabel, str]] = {
    "biopsy": "biopsy",
    "excised_untreated": "excised tumour, no neoadjuvant therapy",
    "excised_treated": "excised tumour, after neoadjuvant therapy or perhaps so",
    "stage": "ypT and ypN",
    "stated": "a stated pCR",
    "no_surgery": "no operation after therapy (no pCR)",
    "not_tested": "no HER2 result",
    "equivocal": "IHC 2+ without ISH",
    "treated_only": "tested only after neoadjuvant therapy, or perhaps so",
    "untreated": "no neoadjuvant therapy, so no response",
    "response_unknown": "response not known",
}
"""The same in words, for the pages."""

TRAINED_ON: Final = "trained_on"
"""Column of predictions.csv: the labels of the runs that made the release, joined by "+"."""

NoSurgery = Literal["progression", "death", "declined", "other"]
NO_SURGERY: Final[tuple[NoSurgery, ...]] = get_args(NoSurgery)
"""Why no operation followed the neoadjuvant therapy. All of them count as no pCR."""

CLINICAL_INPUTS: Final = ("age", "menopausal", "clinical_t", "clinical_n", "multifocal")
"""The five clinical inputs of the MAP model; none of them is read from the biopsy."""


@dataclass(frozen=True)
class Assay:
    """HER2 of one specimen: IHC score, ``ish`` 0/1, ``her2`` 0/1 derived from them."""

    ihc: Ihc | None = None
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
    ypt: YpT | None
    ypn: YpN | None
    pcr: int | None
    split: Split | None
    no_surgery: NoSurgery | None = None
    mg_days: int | None = None
    us_days: int | None = None
    mri_days: int | None = None

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities for which the row names a file, without those ``after_therapy``."""
        return tuple(m for m in self._named if m not in self.after_therapy)

    @property
    def after_therapy(self) -> tuple[Modality, ...]:
        """The modalities whose pictures were taken after treatment began: they are not used."""
        days = {"mg": self.mg_days, "us": self.us_days, "mri": self.mri_days}
        return tuple(m for m in self._named if (days[m] or 0) < 0)

    @property
    def _named(self) -> tuple[Modality, ...]:
        named = {"mg": self.mg_cc or self.mg_mlo, "us": self.us, "mri": self.mri}
        return tuple(m for m in MODALITIES if named[m])

    @property
    def hr(self) -> int | None:
        """Hormone receptor status out of ER and PR."""
        return hr_status(self.er, self.pr)

    @property
    def untreated(self) -> bool:
        """Known to have had no neoadjuvant therapy; unknown counts as possibly treated."""
        return self.nat == 0 and self.anti_her2 != 1

    def response(self, definition: PcrDefinition = DEFAULT_PCR) -> int | None:
        """pCR after neoadjuvant therapy; None where it is unknown or there was no therapy."""
        if self.nat == 0:
            return None
        return response(self.ypt, self.ypn, self.pcr, definition)

    def label(self, kind: Label) -> int | None:
        """The training label: 1, 0, or None where it is unknown."""
        return self.labelled(kind)[0]

    def label_source(self, kind: Label) -> LabelSource | NoLabel:
        """Where ``label(kind)`` comes from, or why there is none."""
        return self.labelled(kind)[1]

    def labelled(self, kind: Label) -> tuple[int | None, LabelSource | NoLabel]:
        """The training label and its source.

        ``reference`` is HER2 of the tumour before treatment: the biopsy, or the excised tumour of
        a patient ``untreated``, where it was tested. After neoadjuvant therapy only those without
        a complete response have a tumour left to test, and residual tumours lose HER2: a label
        from them would hold the outcome. ``surgical`` takes every excised tumour all the same.
        """
        if kind in PCR_LABELS:
            return self._response_label(PCR_LABELS[kind])
        specimens = self._specimens(kind)
        for source, assay in specimens.items():
            if assay.her2 is not None:
                return assay.her2, source
        if kind == "reference" and self.surgical.her2 is not None:
            return None, "treated_only"
        equivocal = any(assay.ihc == "2" for assay in specimens.values())
        return None, "equivocal" if equivocal else "not_tested"

    def _response_label(
        self, definition: PcrDefinition
    ) -> tuple[int | None, LabelSource | NoLabel]:
        if self.nat == 0:
            return None, "untreated"
        found = self.response(definition)
        if found is None:
            return None, "response_unknown"
        if self.no_surgery is not None:
            return found, "no_surgery"
        derived = pcr_from_stage(self.ypt, self.ypn, definition)
        return found, "stated" if derived is None else "stage"

    def level(self, kind: Label) -> Her2Level | None:
        """The HER2 level of the specimen that gives ``label(kind)``; None for a response."""
        if kind in PCR_LABELS:
            return None
        assays = self._specimens(kind).values()
        return next((assay.level for assay in assays if assay.her2 is not None), None)

    def _specimens(self, kind: Label) -> dict[LabelSource, Assay]:
        """The specimens that may give the label: the first whose HER2 is known does."""
        excised: LabelSource = "excised_untreated" if self.untreated else "excised_treated"
        if kind == "surgical":
            return {excised: self.surgical}
        if kind == "reference" and self.untreated:
            return {excised: self.surgical, "biopsy": self.biopsy}
        return {"biopsy": self.biopsy}

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


def _coded(find: Callable[[str], Any], expected: str) -> Callable[[str], Any]:
    """A code in any of its spellings (her2_common.clinical)."""

    def parse(text: str) -> Any:
        try:
            return find(text)
        except KeyError:
            raise BadCellError(expected) from None

    return parse


_YES_NO = _integer(0, 1)
_IHC = _coded(
    partial(code_of, codes=IHC_CODES),
    "an IHC score: 0, ultralow, 1+, 2+ (equivocal), 3+ (positive)",
)
_ISH = _coded(partial(code_of, codes=ISH_CODES), "0 or 1 (not amplified or amplified)")
_STATUS = _coded(partial(code_of, codes=STATUS_CODES), "0 or 1 (negative or positive)")
_RECEPTOR = _coded(receptor_of, "0 or 1 (negative or positive), or a share of nuclei like 80%")
_DAYS = _integer(-3650, 3650)
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
    "clinical_t": _coded(
        partial(stage_of, letter="t", prefix="c", codes=CLINICAL_T_CODES),
        "a clinical stage: one of 0, 1mi, 1, 2, 3, 4, X",
    ),
    "clinical_n": _coded(
        partial(stage_of, letter="n", prefix="c", codes=CLINICAL_N_CODES),
        "a clinical stage: one of 0, 1mi, 1, 2, 3, X",
    ),
    "multifocal": _YES_NO,
    "er": _RECEPTOR,
    "pr": _RECEPTOR,
    "biopsy_ihc": _IHC,
    "biopsy_ish": _ISH,
    "biopsy_her2": _STATUS,
    "surgical_ihc": _IHC,
    "surgical_ish": _ISH,
    "surgical_her2": _STATUS,
    "nat": _YES_NO,
    "anti_her2": _YES_NO,
    "ypt": _coded(
        partial(stage_of, letter="t", prefix="yp", codes=YPT_CODES),
        "a stage after therapy: one of 0, is, 1mi, 1, 2, 3, 4, X",
    ),
    "ypn": _coded(
        partial(stage_of, letter="n", prefix="yp", codes=YPN_CODES),
        "a stage after therapy: one of 0, 0(i+), 0(mol+), 1mi, 1, 2, 3, X",
    ),
    "pcr": _YES_NO,
    "no_surgery": _choice(*NO_SURGERY),
    "mg_days": _DAYS,
    "us_days": _DAYS,
    "mri_days": _DAYS,
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


_DAYS_COLUMNS: Final = ("mg_days", "us_days", "mri_days")


def response_of(values: Mapping[str, Any], definition: PcrDefinition = DEFAULT_PCR) -> int | None:
    """pCR out of the parsed cells of a row, whether or not there was neoadjuvant therapy."""
    if values.get("no_surgery") is not None:
        return 0
    return response(values.get("ypt"), values.get("ypn"), values.get("pcr"), definition)


def response_faults(values: Mapping[str, Any]) -> list[str]:
    """What contradicts itself in the parsed cells of a row on the response."""
    stated, ypt, ypn = (values.get(name) for name in ("pcr", "ypt", "ypn"))
    reason = values.get("no_surgery")
    if reason is not None:
        staged = [name for name in ("ypt", "ypn") if values.get(name) not in (None, "X")]
        if staged:
            return [f"no_surgery is {reason}, but {staged[0]} is stated: leave one of them blank"]
        return [f"pcr is 1, but no_surgery {reason} means 0"] if stated == 1 else []
    derived = pcr_from_stage(ypt, ypn)
    if stated is None or derived is None or stated == derived:
        return []
    one, two = ("blank" if part is None else part for part in (ypt, ypn))
    way = "; leave pcr blank: it is derived" if stated == 0 else ""
    return [f"pcr is {stated}, but ypt {one} with ypn {two} means {derived} ({DEFAULT_PCR}){way}"]


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
        for fault in response_faults(values):
            faults.row(row, fault)

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
                pcr=response_of(values),
                split=split,
                **{name: values.get(name) for name in ("no_surgery", *_DAYS_COLUMNS)},
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
