"""CSV tables: what nobody sees is refused, what a spreadsheet would run is written as text."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2_common.cases import read_cases
from her2_common.errors import TableError
from her2_common.tables import read_columns, read_rows, write_csv

COLUMNS = ("case_id", "note")
VISIBLE = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cf", "Cs", "Zl", "Zp", "Cn", "Co"))
)


@pytest.mark.parametrize(
    ("cell", "code"),
    [
        ("a\x1b[2Jb", "U+001B"),
        ("a\x00b", "U+0000"),
        ('"a\nb"', "U+000A"),
        ('"a\rb"', "U+000A"),
        ("a\tb", "U+0009"),
        ("a\u200bb", "U+200B"),
        ("a\u202eb", "U+202E"),
        ("a\x85b", "U+0085"),
    ],
)
def test_characters_that_nobody_sees_are_refused_by_row_and_column(
    cell: str, code: str, tmp_path: Path
) -> None:
    path = tmp_path / "cases.csv"
    path.write_text(f"case_id,us\nsound,a.png\n{cell},b.png\n", newline="")
    with pytest.raises(TableError) as caught:
        read_cases(path)
    assert "row 3, column case_id" in str(caught.value)
    assert code in str(caught.value)
    assert not set(map(chr, range(32))) - {"\n"} & set(str(caught.value))


def test_line_ends_of_windows_and_a_byte_order_mark_are_no_such_characters(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes("\ufeffcase_id,note\r\n a ,b\r\n".encode())
    assert read_rows(path, COLUMNS, set())[0] == {"case_id": "a", "note": "b", "": "2"}


@pytest.mark.parametrize(
    "cell", ["=1+2", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "'=1", "''@x", "-", "+", "-1-1"]
)
def test_formula_is_written_as_text_and_read_back_as_it_was(cell: str, tmp_path: Path) -> None:
    text = write_csv(COLUMNS, [{"case_id": cell}])
    [_, (written, _)] = csv.reader(io.StringIO(text))
    assert written == f"'{cell}"
    path = tmp_path / "table.csv"
    path.write_text(text)
    assert read_rows(path, COLUMNS, set())[0]["case_id"] == cell
    assert read_columns(path, COLUMNS, set())[0]["case_id"] == (cell,)


@pytest.mark.parametrize("cell", ["-0.12", "+3", "-1e-09", "-.5", -0.25, "a=b", "'quoted'"])
def test_numbers_and_plain_text_are_written_as_they_are(cell: object) -> None:
    [_, (written, blank)] = csv.reader(io.StringIO(write_csv(COLUMNS, [{"case_id": cell}])))
    assert (written, blank) == (str(cell), "")


@given(rows=st.lists(st.tuples(VISIBLE, VISIBLE).filter(lambda row: "".join(row).strip())))
def test_what_is_written_is_read_back(
    rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.csv"
    path.write_text(
        write_csv(COLUMNS, (dict(zip(COLUMNS, row, strict=True)) for row in rows)), newline=""
    )
    got = [(row["case_id"], row["note"]) for row in read_rows(path, COLUMNS, set())]
    assert got == [(a.strip(), b.strip()) for a, b in rows]
