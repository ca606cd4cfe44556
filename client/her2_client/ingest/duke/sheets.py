"""The two spreadsheets of Duke-Breast-Cancer-MRI -> rows of cases.csv, and boxes.

1. A table is found by its header: the row that holds ``Patient ID``. In the workbook that is the
   second of three header rows (group, name, legend); an export with one header row reads alike.
2. Columns are found by name, with white space and case made equal, for the sheet's own names hold
   double and trailing spaces. A missing column is an error that names it.
3. Blank, white space, NA, NC and NP are missing. A cell outside its codes is a fault: it is
   collected with its row and column, left blank, and counted.

Codes are those of the sheet's legend row; each stands at its column in ``clinical_rows``.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import openpyxl  # type: ignore[import-untyped]

from her2_common.errors import TableError

PATIENT: Final = "Patient ID"
AGE: Final = "Date of Birth (Days)"
MENOPAUSE: Final = "Menopause (at diagnosis)"
ER: Final = "ER"
PR: Final = "PR"
HER2: Final = "HER2"
T_STAGE: Final = "Staging(Tumor Size)# [T]"
N_STAGE: Final = "Staging(Nodes)#(Nx replaced by -1)[N]"
MULTIFOCAL: Final = "Multicentric/Multifocal"
LOCATION: Final = "Tumor Location"
NAT: Final = "Neoadjuvant Chemotherapy"
ANTI_HER2: Final = "Neoadjuvant Anti-Her2 Neu Therapy"
RESPONSE: Final = "Pathologic Response to Neoadjuvant Therapy"
T_AFTER: Final = (
    "Pathologic response to Neoadjuvant therapy: Pathologic stage (T) following neoadjuvant therapy"
)
N_AFTER: Final = (
    "Pathologic response to Neoadjuvant therapy:  Pathologic stage (N) following neoadjuvant "
    "therapy"
)
CLINICAL_COLUMNS: Final = (
    PATIENT, AGE, MENOPAUSE, ER, PR, HER2, T_STAGE, N_STAGE, MULTIFOCAL, LOCATION,
    NAT, ANTI_HER2, RESPONSE, N_AFTER,
)  # fmt: skip
"""Must be there; ``T_AFTER`` is read where it is."""
BOX_COLUMNS: Final = (
    PATIENT, "Start Row", "End Row", "Start Column", "End Column", "Start Slice", "End Slice",
)  # fmt: skip

MISSING: Final = {"", "NA", "NC", "NP"}
DAYS_A_YEAR: Final = 365.25
AGES: Final = (18.0, 110.0)
"""Years that cases.csv accepts."""
HEADER_ROWS: Final = 10
"""In how many rows the header is looked for."""
LARGEST_INDEX: Final = 100_000
"""No image has more rows, columns or slices."""
_PATIENT: Final = re.compile(r"Breast_MRI_\d{1,6}")

Cells = Mapping[str, str]


@dataclass(frozen=True)
class Sheet:
    """A table's rows as text by column name; ``numbers`` are their rows in the file, from 1."""

    file: str
    rows: tuple[Cells, ...]
    numbers: tuple[int, ...]


@dataclass
class Faults:
    """Cells that could not be used, as sentences, in the order of the sheet."""

    lines: list[str] = field(default_factory=list)

    def cell(self, sheet: Sheet, row: int, column: str, expected: str, got: str) -> None:
        """Note one; the cell's text is repeated only where it is a number."""
        shown = got if _number(got) is not None and len(got) <= 12 else "text"
        self.row(sheet, row, f"column {_plain(column)}: expected {expected}, got {shown}")

    def row(self, sheet: Sheet, row: int, message: str) -> None:
        """Note what is wrong with a row."""
        self.lines.append(f"{sheet.file} row {sheet.numbers[row]}, {message}")


@dataclass(frozen=True)
class Response:
    """What the sheet says of response: its code 1 to 5, and ypT, ypN where it states them."""

    code: int | None
    ypt: str | None
    ypn: str | None


@dataclass(frozen=True)
class ClinicalRow:
    """One patient: the cells of cases.csv (without ``mri`` and response), and the response.

    ``her2`` is the sheet's code, 2 for borderline, which cases.csv leaves blank.
    """

    case_id: str
    cells: Mapping[str, str]
    her2: int | None
    response: Response


@dataclass(frozen=True)
class SourceBox:
    """A box as the sheet states it: first and last row, column and slice, counted from 1."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    slices: tuple[int, int]


# --- files --------------------------------------------------------------------------------------


def read_sheet(path: Path, columns: Sequence[str], *, optional: Sequence[str] = ()) -> Sheet:
    """The table at ``path``, an .xlsx workbook or a .csv export.

    Raises:
        TableError: not readable, no header with ``Patient ID``, a column missing or twice.
    """
    grid = _csv_grid(path) if path.suffix.lower() == ".csv" else _workbook_grid(path)
    header = next((i for i, row in enumerate(grid[:HEADER_ROWS]) if _holds(row, PATIENT)), None)
    if header is None:
        raise TableError(
            f"{path.name}: expected a column {PATIENT!r} within the first {HEADER_ROWS} rows, "
            "got none",
            hint="use the file as the archive delivers it",
        )
    names = [_plain(cell).casefold() for cell in grid[header]]
    places: dict[str, int] = {}
    missing = []
    for column in (*columns, *optional):
        name = _plain(column).casefold()
        if names.count(name) > 1:
            raise TableError(f"{path.name}: column {_plain(column)!r} stands twice in the header")
        if name in names:
            places[column] = names.index(name)
        elif column in columns:
            missing.append(_plain(column))
    if missing:
        raise TableError(
            f"{path.name}: missing from the header: " + ", ".join(repr(name) for name in missing),
            hint="use the file as the archive delivers it",
        )
    rows, numbers = [], []
    for number, cells in enumerate(grid[header + 1 :], start=header + 2):
        row = {c: cells[i].strip() if i < len(cells) else "" for c, i in places.items()}
        legend = number == header + 2 and (header > 0 or not row[PATIENT])
        if legend and not _PATIENT.fullmatch(row[PATIENT]):
            continue
        if any(cell.strip() for cell in cells):
            rows.append(row)
            numbers.append(number)
    return Sheet(path.name, tuple(rows), tuple(numbers))


def _workbook_grid(path: Path) -> list[list[str]]:
    """The cells of the first sheet that holds patients, the one called Data before the others."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # styles and extensions that do not matter here
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
            try:
                names = sorted(book.sheetnames, key=lambda name: name.strip().casefold() != "data")
                grids = ([_texts(row) for row in _rows(book[name])] for name in names)
                empty: list[list[str]] = []
                held = (g for g in grids if any(_holds(row, PATIENT) for row in g[:HEADER_ROWS]))
                return next(held, empty)
            finally:
                book.close()
    except Exception as error:
        # A workbook is a zip of XML, and damaged ones fail in as many ways.
        raise TableError(
            f"{path.name}: expected a readable workbook, got {type(error).__name__}"
        ) from None


def _rows(sheet: Any) -> Any:
    sheet.reset_dimensions()  # some writers state too small an extent
    return sheet.iter_rows(values_only=True)


def _texts(row: Sequence[object]) -> list[str]:
    return ["" if value is None else str(value) for value in row]


def _csv_grid(path: Path) -> list[list[str]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TableError(
            f"{path.name}: expected a readable table, got {type(error).__name__}"
        ) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # only the legend holds more than ASCII
    start = text[:4096]
    delimiter = max(",;\t", key=start.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return list(reader)
    except csv.Error as error:
        raise TableError(f"{path.name}, row {reader.line_num}: not CSV: {error}") from None


def _plain(name: str) -> str:
    return " ".join(name.split())


def _holds(row: Sequence[str], name: str) -> bool:
    return any(_plain(cell).casefold() == name.casefold() for cell in row)


# --- cells --------------------------------------------------------------------------------------


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _missing(text: str) -> bool:
    return text.upper() in MISSING


@dataclass(frozen=True)
class _Row:
    """One row and where its faults go."""

    sheet: Sheet
    index: int
    faults: Faults

    def code(self, column: str, codes: Mapping[int, str]) -> str:
        """The cell of cases.csv for a coded cell; blank for missing and, noted, for no code."""
        text = self.sheet.rows[self.index].get(column, "")
        if _missing(text):
            return ""
        value = _number(text)
        if value is None or not value.is_integer() or int(value) not in codes:
            expected = "one of " + ", ".join(str(code) for code in sorted(codes))
            self.faults.cell(self.sheet, self.index, column, expected, text)
            return ""
        return codes[int(value)]

    def age(self) -> str:
        """Years at diagnosis with one decimal, from days counted backwards."""
        text = self.sheet.rows[self.index][AGE]
        if _missing(text):
            return ""
        days = _number(text)
        years = None if days is None else round(-days / DAYS_A_YEAR, 1)
        if years is None or not AGES[0] <= years <= AGES[1]:
            self.faults.cell(self.sheet, self.index, AGE, "negative days, 18 to 110 years", text)
            return ""
        return f"{years:.1f}"

    def side(self) -> str:
        """L or R."""
        text = self.sheet.rows[self.index][LOCATION]
        if _missing(text):
            return ""
        if text.upper() not in ("L", "R"):
            self.faults.cell(self.sheet, self.index, LOCATION, "L or R", text)
            return ""
        return text.upper()


def _same(*codes: int) -> dict[int, str]:
    return {code: str(code) for code in codes}


_NO_YES: Final = _same(0, 1)
_N_STAGE: Final = _same(0, 1, 2, 3) | {-1: ""}
_N_AFTER: Final = _same(0, 1, 2, 3) | {-1: "X"}
_T_AFTER: Final = _same(0, 1, 2, 3, 4) | {-1: "X", 5: "is"}
"""The third header row has 5 = Tis (DCIS)."""
_HER2: Final = _same(0, 1, 2)


def therapy_coding(sheet: Sheet) -> dict[str, str]:
    """Which codes the therapy columns are read with, by the column of cases.csv."""
    names = {"0": "no", "1": "yes"}
    return {
        column: ", ".join(f"{code} {names[cell]}" for code, cell in _no_yes(sheet, name).items())
        for column, name in (("nat", NAT), ("anti_her2", ANTI_HER2))
    }


def _no_yes(sheet: Sheet, column: str) -> dict[int, str]:
    """The codes of a therapy column: 0 no, 1 yes; or 1 yes, 2 no where 2 stands and 0 never.

    Sheets of hospitals use either, and a 2 beside zeros is a fault.
    """
    held = {_number(row[column]) for row in sheet.rows}
    return {1: "1", 2: "0"} if 2 in held and 0 not in held else _NO_YES


def clinical_rows(sheet: Sheet, faults: Faults) -> list[ClinicalRow]:
    """The patients of the clinical sheet, in its order; a patient named twice counts once."""
    therapy = {column: _no_yes(sheet, column) for column in (NAT, ANTI_HER2)}
    patients: list[ClinicalRow] = []
    seen: set[str] = set()
    for index, case_id in _patients(sheet, faults):
        if case_id in seen:
            faults.row(sheet, index, "the patient stands in an earlier row too; that one is used")
            continue
        seen.add(case_id)
        row = _Row(sheet, index, faults)
        her2 = row.code(HER2, _HER2)
        response = row.code(RESPONSE, _same(1, 2, 3, 4, 5))
        cells = {
            "laterality": row.side(),
            "age": row.age(),
            "menopausal": row.code(MENOPAUSE, _NO_YES | {2: ""}),  # 2: not known
            "clinical_t": row.code(T_STAGE, _same(0, 1, 2, 3, 4) | {-1: ""}),
            "clinical_n": row.code(N_STAGE, _N_STAGE),
            "multifocal": row.code(MULTIFOCAL, _NO_YES),
            "er": row.code(ER, _NO_YES),
            "pr": row.code(PR, _NO_YES),
            "biopsy_her2": "" if her2 == "2" else her2,
            "nat": row.code(NAT, therapy[NAT]),
            "anti_her2": row.code(ANTI_HER2, therapy[ANTI_HER2]),
        }
        patients.append(
            ClinicalRow(
                case_id,
                cells,
                her2=int(her2) if her2 else None,
                response=Response(
                    int(response) if response else None,
                    ypt=row.code(T_AFTER, _T_AFTER) or None,
                    ypn=_nodes_after(row) or None,
                ),
            )
        )
    return patients


def _nodes_after(row: _Row) -> str:
    if row.sheet.rows[row.index][N_AFTER].upper() in ("NX", "X"):
        return "X"
    return row.code(N_AFTER, _N_AFTER)


def source_boxes(sheet: Sheet, faults: Faults) -> dict[str, SourceBox]:
    """The boxes by patient; one that ends before it begins, or is not whole, is a fault."""
    boxes: dict[str, SourceBox] = {}
    for index, case_id in _patients(sheet, faults):
        if case_id in boxes:
            faults.row(sheet, index, "a second box of the same patient; the first is used")
            continue
        values = []
        for column in BOX_COLUMNS[1:]:
            text = sheet.rows[index][column]
            number = _number(text)
            if number is None or not number.is_integer() or not 0 <= number <= LARGEST_INDEX:
                faults.cell(sheet, index, column, "a whole number", text)
            else:
                values.append(int(number))
        if len(values) < len(BOX_COLUMNS) - 1:
            continue
        pairs = [(values[i], values[i + 1]) for i in (0, 2, 4)]
        if any(last < first for first, last in pairs):
            faults.row(sheet, index, "expected each End at or after its Start, got one before it")
            continue
        boxes[case_id] = SourceBox(*pairs)
    return boxes


def _patients(sheet: Sheet, faults: Faults) -> list[tuple[int, str]]:
    found = []
    for index, row in enumerate(sheet.rows):
        if _PATIENT.fullmatch(row[PATIENT]):
            found.append((index, row[PATIENT]))
        else:
            faults.row(
                sheet, index, f"column {PATIENT}: expected Breast_MRI_ and a number, got another"
            )
    return found
