"""The log of what was decided at review, and what the contact sheet is drawn from."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from her2_client.ingest.privacy.guard import Decision, Guard, digest
from her2_client.ingest.privacy.review import (
    COLUMNS,
    LOG_COLUMNS,
    LONGEST_SIDE,
    RecordingGuard,
    decisions_file,
    merge_decisions,
    read_decisions,
    thumbnail,
    write_sheet,
)
from her2_common.errors import ImageError, TableError

KEY = b"k" * 32
A, B, C = "a" * 32, "b" * 32, "0123456789abcdef" * 2


# --- the log ------------------------------------------------------------------------------------


def table(path: Path, *rows: str) -> Path:
    path.write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return decisions_file(tmp_path / "state")


def test_no_log_no_decisions(log: Path) -> None:
    assert read_decisions(log) == {}


def test_decisions_come_back(tmp_path: Path, log: Path) -> None:
    rows = f"{A},approve,,,,,Dr. Who", f"{B},refuse,,,,,Dr. Who", f"{C},approve,1,2,30,40,Dr. Who"
    assert merge_decisions(log, table(tmp_path / "new.csv", *rows)) == 3
    assert read_decisions(log) == {
        A: Decision(True),
        B: Decision(False),
        C: Decision(True, (1, 2, 30, 40)),
    }


def test_the_log_is_only_added_to_and_dated(tmp_path: Path, log: Path) -> None:
    merge_decisions(log, table(tmp_path / "new.csv", f"{A},approve,,,,,one"))
    before = log.read_text()
    merge_decisions(log, table(tmp_path / "new.csv", f'{A},refuse,,,,,"two, jr"'))
    assert log.read_text().startswith(before)
    rows = list(csv.DictReader(io.StringIO(log.read_text())))
    assert list(rows[0]) == list(LOG_COLUMNS)
    assert [row["by"] for row in rows] == ["one", "two, jr"]
    for row in rows:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", row["date"])
    assert read_decisions(log) == {A: Decision(False)}


def test_undo_takes_back(tmp_path: Path, log: Path) -> None:
    merge_decisions(log, table(tmp_path / "new.csv", f"{A},approve,,,,,x", f"{B},refuse,,,,,x"))
    merge_decisions(log, table(tmp_path / "new.csv", f"{A},undo,,,,,x"))
    assert read_decisions(log) == {B: Decision(False)}
    merge_decisions(log, table(tmp_path / "new.csv", f"{A},refuse,,,,,x"))
    assert read_decisions(log) == {A: Decision(False), B: Decision(False)}


def test_only_the_owner_can_read_it(tmp_path: Path, log: Path) -> None:
    log.parent.mkdir(parents=True, mode=0o755)
    merge_decisions(log, table(tmp_path / "new.csv", f"{A},approve,,,,,x"))
    assert log.stat().st_mode & 0o777 == 0o600
    assert log.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("CANARY,approve,,,,,x", "row 2: column picture: expected 32 hex digits"),
        (f"{A.upper()},approve,,,,,x", "row 2: column picture: expected 32 hex digits"),
        (f"{A},accept,,,,,x", "row 2, column decision: expected one of approve, refuse, undo"),
        (f"{A},,,,,,x", "row 2, column decision: expected one of"),
        (f"{A},approve,,,,,", "row 2: column by: expected the reviewer's name"),
        (f"{A},approve,,,,," + "x" * 65, "at most 64 characters, got 65"),
        (f"{A},approve,1,,3,4,x", "row 2: column y0: expected all four corners or none"),
        (f"{A},approve,1,2,3,,x", "row 2: column y1: expected all four corners or none"),
        (f"{A},approve,1,2,one,4,x", "row 2, column x1: expected a whole number from 0"),
        (f"{A},approve,-1,2,3,4,x", "row 2, column x0: expected a whole number from 0"),
        (f"{A},approve,1,2,3,2000000,x", "row 2, column y1: expected a whole number from 0"),
        (f"{A},approve,5,2,5,4,x", r"row 2: column x1: expected more than x0 \(5\), got 5"),
        (f"{A},approve,1,4,3,2,x", r"row 2: column y1: expected more than y0 \(4\), got 2"),
        (f"{A},refuse,1,2,3,4,x", "row 2: column x0: a part is kept only with approve, got refuse"),
        (f"{A},undo,,,,,x", "row 2: column decision: undo, but the picture has no decision yet"),
        (f"{A},approve,,,,", "row 2: expected 7 cells, got 6"),
    ],
)
def test_each_fault_is_named_and_nothing_is_kept(
    tmp_path: Path, log: Path, row: str, message: str
) -> None:
    with pytest.raises(TableError, match=message) as error:
        merge_decisions(log, table(tmp_path / "new.csv", row))
    assert "CANARY" not in str(error.value)
    assert not log.exists()


def test_a_picture_decided_twice_is_a_fault(tmp_path: Path, log: Path) -> None:
    rows = f"{A},approve,,,,,x", f"{B},approve,,,,,x", f"{A},refuse,,,,,x"
    with pytest.raises(TableError, match=r"row 4: column picture: the same picture as in row 2"):
        merge_decisions(log, table(tmp_path / "new.csv", *rows))


def test_all_faults_come_together(tmp_path: Path, log: Path) -> None:
    with pytest.raises(TableError, match="3 faults") as error:
        merge_decisions(log, table(tmp_path / "new.csv", "x,yes,,,,,x", f"{A},approve,,,,,"))
    assert str(error.value).count("\n") == 3


def test_a_column_that_is_missing_or_unknown(tmp_path: Path, log: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text("picture,decision,x0,y0,x1,y1\n")
    with pytest.raises(TableError, match="column 'by' is missing"):
        merge_decisions(log, path)
    path.write_text("picture,decision,x0,y0,x1,y1,by,patient\n")
    with pytest.raises(TableError, match="unknown column, the 8"):
        merge_decisions(log, path)


def test_no_such_file(tmp_path: Path, log: Path) -> None:
    with pytest.raises(TableError, match="no such file"):
        merge_decisions(log, tmp_path / "new.csv")


def test_the_log_itself_is_not_taken_for_new_decisions(tmp_path: Path, log: Path) -> None:
    merge_decisions(log, table(tmp_path / "new.csv", f"{A},approve,,,,,x"))
    before = log.read_bytes()
    with pytest.raises(TableError, match="got the site's own log"):
        merge_decisions(log, log)
    assert log.read_bytes() == before


def test_a_damaged_log_stops_the_ingest(tmp_path: Path, log: Path) -> None:
    merge_decisions(log, table(tmp_path / "new.csv", f"{A},approve,,,,,x"))
    log.write_text(log.read_text().replace("approve", "aprove"))
    with pytest.raises(TableError, match=r"decisions\.csv: 1 fault"):
        read_decisions(log)
    with pytest.raises(TableError, match=r"decisions\.csv: 1 fault"):
        merge_decisions(log, table(tmp_path / "new.csv", f"{B},approve,,,,,x"))


CORNER = st.integers(0, 5000)
DECISION = st.one_of(
    st.just(None),
    st.just(Decision(False)),
    st.just(Decision(True)),
    st.builds(
        lambda x, y, w, h: Decision(True, (x, y, x + w + 1, y + h + 1)),
        CORNER,
        CORNER,
        CORNER,
        CORNER,
    ),
)


@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(batches=st.lists(st.dictionaries(st.sampled_from([A, B, C]), DECISION), max_size=4))
def test_the_log_agrees_with_a_dictionary(
    tmp_path: Path, batches: list[dict[str, Decision | None]]
) -> None:
    log = decisions_file(tmp_path / "state")
    log.unlink(missing_ok=True)
    expected: dict[str, Decision] = {}
    for batch in batches:
        rows = []
        for picture, decision in batch.items():
            if decision is None:
                if expected.pop(picture, None) is None:
                    continue
                rows.append(f"{picture},undo,,,,,x")
            else:
                expected[picture] = decision
                word = "approve" if decision.approved else "refuse"
                corners = ",".join(map(str, decision.keep)) if decision.keep else ",,,"
                rows.append(f"{picture},{word},{corners},x")
        assert merge_decisions(log, table(tmp_path / "new.csv", *rows)) == len(rows)
    assert read_decisions(log) == expected


# --- what is recorded ---------------------------------------------------------------------------


def show(guard: Guard, path: Path, picture: np.ndarray, **more: Any) -> None:
    with pytest.raises(ImageError):
        guard.clear([path], picture=lambda: picture, reason="text found", message="m", **more)


def test_the_guard_records_what_is_undecided_once(tmp_path: Path) -> None:
    paths = [tmp_path / f"CANARY{n}.dcm" for n in range(4)]
    for number, path in enumerate(paths):
        path.write_bytes(b"same" if number < 2 else bytes([number]))
    names = [digest(KEY, [path]) for path in paths]
    guard = RecordingGuard(KEY, {names[3]: Decision(False)})
    picture = np.tile(np.arange(300.0), (200, 1))
    guard.row, guard.column = 5, "us"
    show(guard, paths[0], picture, found=[(1, 2, 3, 4)])
    guard.row, guard.column = 6, "mg_cc"
    for path in paths[1:]:
        show(guard, path, picture)
    assert [(s.digest, s.row, s.column, s.size, s.found) for s in guard.seen] == [
        (names[0], 5, "us", (300, 200), ((1, 2, 3, 4),)),
        (names[2], 6, "mg_cc", (300, 200), ()),
    ]
    with Image.open(io.BytesIO(guard.seen[0].jpeg)) as image:
        shown = np.asarray(image).astype(float)
    assert shown.shape == (200, 300)
    expected = np.tile(np.arange(300) * 255 / 299, (200, 1))
    assert np.abs(shown - expected).max() < 4


def test_the_scanner_is_read_from_the_header_or_not_stated(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    tags = {"Manufacturer": "ACME", "ManufacturerModelName": "One "}
    files = [
        dicoms.us(tmp_path / "0.dcm", pictures.echo(), **tags),
        dicoms.us(tmp_path / "1.dcm", pictures.echo()[:, ::-1].copy()),
        tmp_path / "2.png",
    ]
    Image.new("L", (72, 64)).save(files[2])
    guard = RecordingGuard(KEY)
    for path in files:
        show(guard, path, pictures.echo())
    assert [one.scanner for one in guard.seen] == [("ACME", "ONE"), ("", ""), ("", "")]
    page = tmp_path / "review" / "review.html"
    write_sheet(page, guard.seen, site="s", more=0)
    html = page.read_text()
    assert re.findall(r'data-group="(\d+)"', html) == ["1", "2", "2"]
    assert "ACME" not in html


@pytest.mark.parametrize("shape", [(3000, 1000), (50, 2000), (640, 640), (1, 1)])
def test_a_thumbnail_is_small_and_keeps_its_aspect(shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).normal(size=shape)
    with Image.open(io.BytesIO(thumbnail(picture))) as image:
        columns, rows = image.size
    assert max(rows, columns) == min(max(shape), LONGEST_SIDE)
    assert abs(rows * shape[1] - columns * shape[0]) <= max(shape)


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan, np.inf])
def test_a_picture_of_one_value_has_a_thumbnail(value: float) -> None:
    with Image.open(io.BytesIO(thumbnail(np.full((20, 30), value)))) as image:
        assert image.getextrema() == (0, 0)
