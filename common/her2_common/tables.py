"""CSV tables: those that people made are read with every fault by row and column; ours are written.

A spreadsheet runs a cell that begins with ``=``, ``+``, ``-`` or ``@`` as a formula. ``write_csv``
puts an apostrophe before such text (not before numbers), and ``read_rows`` takes it off again.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from her2_common.errors import TableError

MAX_FAULTS_SHOWN: Final = 20
MAX_CELL_SHOWN: Final = 40

_FORMULA: Final = re.compile(r"'*[=+\-@]")
"""Begins a formula in a spreadsheet, or is such text with apostrophes before it already."""
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_UNSEEN: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
"""Control and format characters: they forge lines of a log, or make two equal names different."""


class Faults:
    """Collects the faults of one table, so that they are reported together."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []

    def cell(self, row: int, column: str, expected: str, got: str) -> None:
        """A cell that does not hold what its column wants; a long one is cut."""
        shown = got if len(got) <= MAX_CELL_SHOWN else f"{got[:MAX_CELL_SHOWN]}..."
        self.lines.append(f"row {row}, column {column}: expected {expected}, got {shown!r}")

    def row(self, row: int, message: str) -> None:
        """Whatever else is wrong in a row."""
        self.lines.append(f"row {row}: {message}")

    def raise_if_any(self) -> None:
        """Raises TableError with the first ``MAX_FAULTS_SHOWN`` faults, if there are any."""
        if not self.lines:
            return
        shown = self.lines[:MAX_FAULTS_SHOWN]
        more = len(self.lines) - len(shown)
        if more:
            shown.append(f"and {more} more")
        count = "1 fault" if len(self.lines) == 1 else f"{len(self.lines)} faults"
        raise TableError(
            f"{self.path.name}: {count}\n  " + "\n  ".join(shown),
            hint="row 1 is the header; correct the rows named and run the command again",
        )


def read_rows(path: Path, columns: tuple[str, ...], required: set[str]) -> list[dict[str, str]]:
    """The rows of a CSV file as stripped text by column, after its header has been checked.

    Blank rows are left out. Under the key "" stands the row's line number in the file, the header
    being 1.

    Raises:
        TableError: not there, not UTF-8, not CSV, an unknown, doubled or missing column, or a row
            with too many or too few cells.
    """
    header, lines = _read(path, columns, required)
    return [
        # No column has the name ""
        {n: cell.strip() for n, cell in zip(header, cells, strict=True)} | {"": str(number)}
        for number, cells in lines
    ]


def read_columns(
    path: Path, columns: tuple[str, ...], required: set[str]
) -> tuple[dict[str, tuple[str, ...]], tuple[int, ...]]:
    """The same by column, for tables of a million rows: ``(cells by column, line numbers)``.

    Raises:
        TableError: as ``read_rows``.
    """
    header, lines = _read(path, columns, required)
    columns_of = zip(*(cells for _, cells in lines), strict=True) if lines else [()] * len(header)
    cells = {n: tuple(map(str.strip, c)) for n, c in zip(header, columns_of, strict=True)}
    return cells, tuple(number for number, _ in lines)


def _read(
    path: Path, columns: tuple[str, ...], required: set[str]
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, checked, and the cells of every row that is not blank, with its line number."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise TableError(
            f"{path.name}: no such file in {path.parent}",
            hint="the path stands in site.yaml under data",
        ) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise TableError(
            f"{path.name}, row {line}: expected UTF-8, got a byte of another encoding",
            hint="save the table as 'CSV UTF-8', or run: iconv -f latin1 -t utf-8",
        ) from None
    except OSError as error:
        raise TableError(f"{path.name}: cannot be read: {error.strerror}") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = list(reader)
    except csv.Error as error:
        raise TableError(f"{path.name}, row {reader.line_num}: not CSV: {error}") from None
    if not lines:
        raise TableError(f"{path.name}: expected a header row, got an empty file")
    header = [name.strip() for name in lines[0]]
    for separator, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and separator in header[0]:
            raise TableError(
                f"{path.name}: expected commas between the cells, got {word}",
                hint="save the table as comma-separated UTF-8",
            )
    for name in header:
        if name not in columns:
            near = difflib.get_close_matches(name, columns, n=1)
            if near:
                hint = f"did you mean {near[0]!r}?"
                raise TableError(f"{path.name}: unknown column {name!r}", hint=hint)
            # Where the header is missing, this is a patient's cell: it is not repeated.
            raise TableError(
                f"{path.name}: unknown column, the {header.index(name) + 1}. of the header",
                hint="is row 1 the header? known: " + ", ".join(columns),
            )
    if twice := {name for name in header if header.count(name) > 1}:
        raise TableError(f"{path.name}: column {min(twice)!r} stands twice in the header")
    if missing := required - set(header):
        raise TableError(f"{path.name}: column {min(missing)!r} is missing from the header")
    rows = []
    faults = Faults(path)
    for number, cells in enumerate(lines[1:], start=2):
        together = "".join(cells)
        if not together.strip():
            continue
        if len(cells) != len(header):
            raise TableError(
                f"{path.name}, row {number}: expected {len(header)} cells, got {len(cells)}"
            )
        if _UNSEEN.search(together):
            _add_unseen(faults, number, header, cells)
        if "'" in together:
            cells = [c[1:] if c.startswith("'") and _FORMULA.match(c) else c for c in cells]  # noqa: PLW2901
        rows.append((number, cells))
    faults.raise_if_any()
    return header, rows


def _add_unseen(faults: Faults, row: int, header: Sequence[str], cells: Sequence[str]) -> None:
    for name, cell in zip(header, cells, strict=True):
        if found := _UNSEEN.search(cell.strip()):
            called = unicodedata.name(found[0], "a control character").lower()
            expected = f"visible characters on one line, not U+{ord(found[0]):04X} ({called})"
            faults.cell(row, name, expected, cell)


def write_csv(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """A table as text with line feeds; what a row does not name, and None, is a blank cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _inert(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _inert(value: object) -> object:
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value
