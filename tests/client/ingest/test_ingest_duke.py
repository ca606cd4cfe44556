"""The public centre's spreadsheets: a generated sheet of the same layout, codes and oddities."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from her2_client.ingest.duke import build_duke, duke_table
from her2_client.ingest.duke.build import lesion_box
from her2_client.ingest.duke.series import Grid, phase_of
from her2_client.ingest.duke.sheets import SourceBox
from her2_common.cases import Case, read_cases
from her2_common.errors import DataError, TableError

RESPONSE = "Pathologic Response to Neoadjuvant Therapy"
T_AFTER = (
    "Pathologic response to Neoadjuvant therapy: Pathologic stage (T) following neoadjuvant therapy"
)
N_AFTER = T_AFTER.replace(": ", ":  ").replace("(T)", "(N)")
# group, name as the sheet spells it, legend
LAYOUT = [
    ("Patient Information", "Patient ID", "anonymous"),
    ("Demographics", "Date of Birth (Days)", "days before diagnosis,\nnegative"),
    ("", " Menopause  (at diagnosis) ", "{0 = pre, 1 = post, 2 = N/A}"),
    ("Tumor Characteristics", "ER", "{0 = neg, 1 = pos}"),
    ("", "PR", "{0 = neg, 1 = pos}"),
    ("", "HER2", "{0 = Neg, 1 = Pos, 2 = borderline}"),
    ("", "Mol Subtype", "{0 to 3}"),
    ("", "Staging(Tumor Size)# [T]", ""),
    ("", "Staging(Nodes)#(Nx replaced by -1)[N]", ""),
    ("", "Multicentric/Multifocal", "{0 = no, 1 = yes}"),
    ("", "Tumor Location", "{L, R}"),
    ("", "Bilateral Information", "{0 = no, 1 = yes}"),
    ("Chemotherapy", "Neoadjuvant Chemotherapy", "{0 = no, 1 = yes}"),
    ("Anti-Her2 Neu Therapy", "Neoadjuvant Anti-Her2 Neu Therapy ", "{0 = no, 1 = yes}"),
    ("Tumor Response", f"{RESPONSE} ", "{1 = complete, 2 = not complete, 3 = DCIS, 4 = LCIS, 5}"),
    (
        "Pathologic Response to Neoadjuvant Therapy",
        f"{T_AFTER} ",
        "{1 = T1, 2 = T2, 3 = T3, 4 = T4, 0 = T0, 5 = Tis (DCIS), -1 = TX}",
    ),
    ("", N_AFTER, "{0 = N0, 1 = N1, 2 = N2, 3 = N3, -1 = NX}"),
]
NAMES = [" ".join(name.split()) for _, name, _ in LAYOUT]
NAME_OF = {
    "id": 0, "days": 1, "menopause": 2, "er": 3, "pr": 4, "her2": 5, "subtype": 6, "t": 7, "n": 8,
    "multifocal": 9, "side": 10, "bilateral": 11, "nat": 12, "anti": 13, "response": 14,
    "t_after": 15, "n_after": 16,
}  # fmt: skip
USUAL = {
    "days": -365.25 * 50, "menopause": 1, "er": 1, "pr": 0, "her2": 0, "subtype": 0, "t": 2, "n": 1,
    "multifocal": 0, "side": "L", "bilateral": 0, "nat": 0, "anti": 0, "response": "NA",
    "t_after": "NA", "n_after": None,
}  # fmt: skip


def line(number: int, cells: Mapping[str, Any]) -> list[Any]:
    row: list[Any] = [None] * len(LAYOUT)
    for key, value in ({"id": f"Breast_MRI_{number:03d}"} | USUAL | dict(cells)).items():
        row[NAME_OF[key]] = value
    return row


def workbook(folder: Path, rows: Iterable[Mapping[str, Any]], drop: str = "") -> Path:
    """The clinical workbook: a notes sheet first, merged groups, three header rows."""
    book = openpyxl.Workbook()
    book.active.title = "Notes"
    book.active["A1"] = "NA, NC and NP are missing"
    sheet = book.create_sheet("Data")
    kept = [i for i, name in enumerate(NAMES) if name != drop]
    for part in range(3):
        sheet.append([LAYOUT[i][part] or None for i in kept])
    sheet.merge_cells("B1:C1")
    for number, cells in enumerate(rows, 1):
        row = line(number, cells)
        sheet.append([row[i] for i in kept])
    folder.mkdir(parents=True, exist_ok=True)
    book.save(folder / "Clinical_and_Other_Features.xlsx")
    return folder


def export(path: Path, rows: Iterable[Mapping[str, Any]], header_rows: int = 3) -> Path:
    """The same as CSV, with three header rows or flattened to one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.writer(stream)
        for part in range(3) if header_rows == 3 else [1]:
            writer.writerow([column[part] for column in LAYOUT])
        writer.writerows(line(number, cells) for number, cells in enumerate(rows, 1))
    return path.parent


def built(folder: Path, **options: Any) -> tuple[list[Case], dict[str, Any]]:
    site = folder.parent / "site"
    summary = build_duke(folder, site / "cases.csv", site / "lesions.csv", **options)
    table = read_cases(site / "cases.csv", site / "lesions.csv")
    return list(table.cases), summary.as_dict()


# --- codes --------------------------------------------------------------------------------------


def test_every_code_comes_through(tmp_path: Path) -> None:
    rows = [
        {"days": -18263, "menopause": 0, "er": 1, "pr": 1, "her2": 1, "t": 4, "n": 3, "nat": 1,
         "anti": 1, "multifocal": 1, "side": "R", "response": 1, "n_after": 0, "t_after": 0},
        {"days": "-20000", "menopause": 2, "her2": 2, "t": "3", "n": -1, "side": " l "},
        {"days": "NC", "menopause": "NP", "er": "NA", "pr": " ", "her2": None, "t": " NA ",
         "n": "", "multifocal": "nc", "side": "NA", "nat": None, "anti": "NP"},
    ]  # fmt: skip
    cases, counts = built(workbook(tmp_path / "duke", rows))
    first, second, third = cases
    assert [case.case_id for case in cases] == [f"Breast_MRI_00{i}" for i in (1, 2, 3)]
    assert first.clinical == (50.0, 0, 4, 3, 1)
    assert (first.er, first.pr, first.biopsy.her2, first.laterality) == (1, 1, 1, "R")
    assert (first.nat, first.anti_her2, first.ypt, first.ypn, first.pcr) == (1, 1, "0", "0", 1)
    assert second.clinical == (54.8, None, 3, None, 0)
    assert (second.biopsy.her2, second.laterality) == (None, "L")
    assert third.clinical == (None,) * 5
    assert (third.er, third.pr, third.biopsy.her2, third.laterality) == (None,) * 4
    assert (third.nat, third.anti_her2, third.pcr) == (None,) * 3
    assert all(case.mri == () for case in cases)
    assert counts["her2"] == {"positive": 1, "negative": 0, "borderline": 1, "unknown": 1}
    assert counts["faults"]["count"] == 0


RESPONSES = [
    # response, ypT, ypN -> pCR by default, with strict nodes
    (1, None, 0, 1, 1),
    (3, None, "0", 1, 1),
    (4, 5, 0, 1, 1),
    (1, 0, None, 1, None),
    (3, "NA", -1, 1, None),
    (1, None, "NX", 1, None),
    (1, 0, 1, 0, 0),
    (3, None, 3, 0, 0),
    (2, 1, 0, 0, 0),
    (2, None, None, 0, 0),
    (2, 0, 0, 0, 0),  # the sheet contradicts itself: the response counts
    (1, 2, 0, 1, 1),
    (1, 2, None, 1, None),
    (5, 0, 0, None, None),
    (5, 3, 2, None, None),
    ("NA", 0, 0, None, None),
]


@pytest.mark.parametrize("strict", [False, True])
def test_response_follows_the_rule(tmp_path: Path, strict: bool) -> None:
    rows = [{"nat": 1, "response": r, "t_after": t, "n_after": n} for r, t, n, *_ in RESPONSES]
    cases, counts = built(workbook(tmp_path / "duke", rows), strict_nodes=strict)
    expected = [entry[4 if strict else 3] for entry in RESPONSES]
    assert [case.pcr for case in cases] == expected
    pcr = counts["pcr"]
    assert (pcr["yes"], pcr["no"]) == (expected.count(1), expected.count(0))
    assert pcr["yes_nodes_unknown"] == (0 if strict else 4)
    assert pcr["withheld_nodes_unknown"] == (4 if strict else 0)
    assert (pcr["unavailable"], pcr["not_stated"], pcr["no_nodes_positive"]) == (2, 1, 2)
    assert counts["stage_conflicts"] == 3
    assert [(case.ypt, case.ypn) for case in cases[2:4]] == [("is", "0"), ("0", None)]
    assert [(case.ypt, case.ypn) for case in cases[4:6]] == [("is", "X"), ("0", "X")]
    assert counts["faults"]["count"] == 0
    assert {(case.ypt, case.ypn) for case in cases[-3:]} == {(None, None)}


def test_stage_5_of_the_breast_afterwards_is_in_situ(tmp_path: Path) -> None:
    """The third header row says so; the real sheet has eight."""
    rows = [
        {"nat": 1, "response": 3, "t_after": t, "n_after": 0} for t in [5, "5", 5.0] * 2 + [5] * 2
    ]
    rows += [{"nat": 1, "response": 1, "t_after": 0, "n_after": 0} for _ in range(4)]
    cases, counts = built(workbook(tmp_path / "duke", rows))
    assert [case.ypt for case in cases] == ["is"] * 8 + ["0"] * 4
    assert [case.label("pcr") for case in cases] == [1] * 12
    assert [case.label("pcr_strict") for case in cases] == [0] * 8 + [1] * 4
    assert counts["faults"]["count"] == counts["stage_conflicts"] == 0


def test_a_response_code_gives_the_stage_that_is_not_stated(tmp_path: Path) -> None:
    """Else nothing would be known of disease in situ, and the strict definition would know none."""
    rows = [{"nat": 1, "response": code, "n_after": 0} for code in (1, 3, 4, 2)]
    cases, _ = built(workbook(tmp_path / "duke", rows))
    assert [case.ypt for case in cases] == ["0", "is", "0", None]
    assert [case.label("pcr_strict") for case in cases] == [1, 0, 1, 0]


def test_counts_agree_with_those_of_the_generator(tmp_path: Path) -> None:
    draw = np.random.default_rng(11)
    her2 = draw.choice(["positive", "negative", "borderline", "unknown"], 60).tolist()
    nat = draw.choice(["yes", "no"], 60).tolist()
    anti = draw.choice(["yes", "no", "unknown"], 60).tolist()
    codes = {"positive": 1, "negative": 0, "borderline": 2, "yes": 1, "no": 0, "unknown": "NC"}
    rows = [
        {"her2": codes[h], "nat": codes[n], "anti": codes[a]}
        for h, n, a in zip(her2, nat, anti, strict=True)
    ]
    cases, counts = built(workbook(tmp_path / "duke", rows))
    assert {k: v for k, v in counts["her2"].items() if v} == Counter(her2)
    assert {k: v for k, v in counts["nat"].items() if v} == Counter(nat)
    assert {k: v for k, v in counts["anti_her2"].items() if v} == Counter(anti)
    assert sum(case.biopsy.her2 == 1 for case in cases) == her2.count("positive")
    assert counts["patients"] == len(cases) == 60
    assert counts["mri"]["missing"] == counts["boxes"]["missing"] == 60
    json.dumps(counts)


# What a cell may hold, with what it must become: None for blank, "fault" for blank and noted.
CODES: dict[str, dict[int, int | None]] = {
    "menopause": {0: 0, 1: 1, 2: None},
    "er": {0: 0, 1: 1},
    "her2": {0: 0, 1: 1, 2: None},
    "t": {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, -1: None},
    "n": {0: 0, 1: 1, 2: 2, 3: 3, -1: None},
    "nat": {0: 0, 1: 1},
}
cell = st.one_of(
    st.integers(-3, 9),
    st.integers(-3, 9).map(float),
    st.sampled_from(["", " ", "NA", "NC", "NP", " NA", "x", "1.5", "nan", "inf", "-inf", "1e999"]),
)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.fixed_dictionaries(dict.fromkeys(CODES, cell)), min_size=1, max_size=6),
    header_rows=st.sampled_from([1, 3]),
)
def test_any_cells_are_taken_or_noted(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], header_rows: int
) -> None:
    folder = tmp_path_factory.mktemp("any")
    export(folder / "duke" / "Clinical_and_Other_Features.csv", rows, header_rows)
    cases, counts = built(folder / "duke")
    noted = 0
    held = {str(row["nat"]).strip().removesuffix(".0") for row in rows}
    codes = CODES | {"nat": {1: 1, 2: 0} if "2" in held and "0" not in held else CODES["nat"]}
    for case, row in zip(cases, rows, strict=True):
        got = {
            "menopause": case.menopausal, "er": case.er, "her2": case.biopsy.her2,
            "t": case.clinical_t, "n": case.clinical_n, "nat": case.nat,
        }  # fmt: skip
        for key, value in row.items():
            text = str(value).strip()
            whole = {str(c): v for c, v in codes[key].items()}
            known = whole.get(text.removesuffix(".0"))
            assert got[key] == known
            noted += text not in ("", "NA", "NC", "NP") and text.removesuffix(".0") not in whole
    assert counts["faults"]["count"] == noted


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "names"),
    [
        (0, "ax dyn pre|ax 3d dyn pre|ax 3d pre|ax 3d dyn|ax dyn|ax dynamic|ax 3d dyn MP"),
        (0, "Ax Vibrant MultiPhase|t1_fl3d_tra_dynVIEWS_spair_ pre"),
        (1, "ax dyn 1st pass|ax dyn 1st pas|1st ax dyn|Ph1/ax 3d dyn|Ph1ax 3d dyn|Ph1/ax dynamic"),
        (1, "t1_fl3d_tra_dynVIEWS_spair 1st pass|Ph1/Ax Vibrant MultiPhase"),
        (2, "Ph2/ax 3d dyn MP|AX DYN 2ND PASS|2nd ax dyn|t1_fl3d_tra_dynVIEWS_spair_2nd pass"),
        (4, "ax 3d dyn 4th pass|Ph4/ax dyn|4th ax dyn"),
        (None, "ax t1|ax t1 pre|ax t1 tse +c|ax 3d t1 bilateral|Ax 3D T1 NON FS|AX IDEAL Breast"),
        (None, "Segmentation|SUB ax dyn 1st pass|MIP ax dyn|ax dyn subtraction|dyn localizer|"),
    ],
)
def test_names_tell_the_phase(phase: int | None, names: str) -> None:
    assert {name: phase_of(name) for name in names.split("|")} == dict.fromkeys(
        names.split("|"), phase
    )


ends = st.tuples(st.integers(1, 9), st.integers(1, 9)).map(lambda pair: (min(pair), max(pair)))


@settings(deadline=None)
@given(rows=ends, columns=ends, slices=ends, rising=st.booleans())
def test_slices_are_turned_round_as_an_array_is(
    rows: tuple[int, int], columns: tuple[int, int], slices: tuple[int, int], rising: bool
) -> None:
    numbered = np.arange(1, 10)

    def within(pair: tuple[int, int]) -> npt.NDArray[Any]:
        return (pair[0] <= numbered) & (numbered <= pair[1])

    counted = np.einsum("z,y,x->zyx", within(slices), within(rows), within(columns))
    placed = counted if rising else counted[::-1]  # along the normal
    got = lesion_box(SourceBox(rows, columns, slices), Grid(9, 9, 9, rising))
    cut = placed[got.z0 : got.z1, got.y0 : got.y1, got.x0 : got.x1]
    assert cut.all()
    assert cut.sum() == placed.sum()


# --- faults -------------------------------------------------------------------------------------


def test_faulty_cells_are_named_and_left_blank(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {},
        {"her2": 7, "side": "CANARY", "days": 18000},
        {"id": "CANARY"},
        {"id": "Breast_MRI_001"},
        {"days": -365.25 * 12, "response": 1.5, "nat": 1},
    ]
    cases, counts = built(workbook(tmp_path / "duke", rows))
    assert [case.case_id for case in cases] == [f"Breast_MRI_00{i}" for i in (1, 2, 5)]
    assert counts["faults"]["count"] == 7
    name = "Clinical_and_Other_Features.xlsx"
    assert counts["faults"]["all"] == [
        f"{name} row 6, column Patient ID: expected Breast_MRI_ and a number, got another",
        f"{name} row 5, column HER2: expected one of 0, 1, 2, got 7",
        f"{name} row 5, column Tumor Location: expected L or R, got text",
        f"{name} row 5, column Date of Birth (Days): expected negative days, 18 to 110 years, "
        "got 18000",
        f"{name} row 7, the patient stands in an earlier row too; that one is used",
        f"{name} row 8, column {RESPONSE}: expected one of 1, 2, 3, 4, 5, got 1.5",
        f"{name} row 8, column Date of Birth (Days): expected negative days, 18 to 110 years, "
        "got -4383",
    ]
    assert (cases[1].age, cases[1].laterality, cases[1].biopsy.her2) == (None, None, None)


def test_therapy_counted_from_one_is_understood(tmp_path: Path) -> None:
    """1 yes, 2 no, where no zero stands in the column; beside a zero a 2 is a fault."""
    rows = [{"nat": nat, "anti": anti} for nat, anti in ((1, 1), (2, 0), (1, 2), ("NA", 1))]
    cases, counts = built(workbook(tmp_path / "duke", rows))
    assert [case.nat for case in cases] == [1, 0, 1, None]
    assert [case.anti_her2 for case in cases] == [1, 0, None, 1]
    assert counts["nat"] == {"yes": 2, "no": 1, "unknown": 1}
    assert counts["faults"]["count"] == 1
    assert counts["therapy_coding"] == {"nat": "1 yes, 2 no", "anti_her2": "0 no, 1 yes"}


def test_a_first_row_without_a_patient_is_a_fault_unless_it_is_the_legend(tmp_path: Path) -> None:
    rows = [{"id": "patient 1"}, {}]
    path = tmp_path / "duke" / "Clinical_and_Other_Features.csv"
    cases, counts = built(export(path, rows, header_rows=1))
    assert [case.case_id for case in cases] == ["Breast_MRI_002"]
    assert counts["faults"]["all"] == [
        f"{path.name} row 2, column Patient ID: expected Breast_MRI_ and a number, got another"
    ]


@pytest.mark.parametrize("column", ["HER2", "Tumor Location", " ".join(N_AFTER.split())])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    with pytest.raises(TableError, match="missing from the header") as raised:
        built(workbook(tmp_path / "duke", [{}], drop=column))
    assert repr(column) in str(raised.value)


def test_the_stage_of_the_breast_afterwards_may_be_missing(tmp_path: Path) -> None:
    rows = [{"nat": 1, "response": 1, "n_after": 0}]
    (case,), _ = built(workbook(tmp_path / "duke", rows, drop=" ".join(T_AFTER.split())))
    assert (case.pcr, case.ypt, case.ypn) == (1, "0", "0")


def test_without_its_sheet_it_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "duke").mkdir()
    with pytest.raises(TableError, match="Clinical_and_Other_Features") as raised:
        built(tmp_path / "duke")
    assert "download" in str(raised.value.hint)
    with pytest.raises(DataError, match="expected a folder"):
        built(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"Patient ID,HER2\n"])
def test_a_damaged_workbook_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "duke").mkdir()
    (tmp_path / "duke" / "Clinical_and_Other_Features.xlsx").write_bytes(content)
    with pytest.raises(TableError, match="expected a readable workbook"):
        built(tmp_path / "duke")


def test_two_sheets_that_differ_are_refused(tmp_path: Path) -> None:
    folder = workbook(tmp_path / "duke", [{}])
    workbook(folder / "old", [{"her2": 1}])
    with pytest.raises(TableError, match="got 2 that differ"):
        built(folder)


@pytest.mark.parametrize("header_rows", [1, 3])
@pytest.mark.parametrize("name", ["Clinical and Other Features.csv"])
def test_an_export_reads_like_the_workbook(tmp_path: Path, header_rows: int, name: str) -> None:
    rows = [{"her2": 1, "response": 3, "nat": 1}, {"her2": 2, "days": -21000}]
    book, _ = built(workbook(tmp_path / "a" / "duke", rows))
    csv_rows, _ = built(export(tmp_path / "b" / "duke" / name, rows, header_rows))
    assert [c.clinical for c in csv_rows] == [c.clinical for c in book]
    assert [(c.pcr, c.biopsy) for c in csv_rows] == [(c.pcr, c.biopsy) for c in book]


# --- tables -------------------------------------------------------------------------------------


def test_only_its_own_unchanged_tables_are_replaced(tmp_path: Path) -> None:
    folder, site = workbook(tmp_path / "duke", [{"her2": 1}]), tmp_path / "site"
    cases = site / "cases.csv"
    built(folder)
    workbook(folder, [{"her2": 1}, {"her2": 0}])
    assert len(built(folder)[0]) == 2  # its own table, unchanged
    edited = cases.read_text() + "Breast_MRI_900" + "," * 15 + "\n"
    cases.write_text(edited)
    with pytest.raises(
        DataError, match=r"cases\.csv: expected no table, or one as --duke"
    ) as error:
        built(folder)
    assert "--force" in str(error.value.hint)
    assert cases.read_text() == edited
    assert len(built(folder, force=True)[0]) == 2


def test_a_foreign_lesion_table_stops_it_before_anything_is_written(tmp_path: Path) -> None:
    folder, site = workbook(tmp_path / "duke", [{}]), tmp_path / "site"
    site.mkdir()
    (site / "lesions.csv").write_text("case_id,image,x0,y0,x1,y1\n")
    with pytest.raises(DataError, match=r"lesions\.csv: expected no table"):
        built(folder)
    assert [path.name for path in site.iterdir()] == ["lesions.csv"]


def test_the_table_for_a_person_fits_80_columns(tmp_path: Path) -> None:
    rows = [{"nat": 1, "response": r, "her2": r % 3} for r in (1, 2, 3, 4, 5, 1, 2)]
    folder = workbook(tmp_path / "duke", rows)
    summary = build_duke(folder, tmp_path / "cases.csv", None)
    console = Console(width=80, record=True)
    console.print(duke_table(summary))
    text = console.export_text()
    assert max(len(text_line) for text_line in text.splitlines()) <= 80
    row = next(text_line for text_line in text.splitlines() if "│ pCR " in text_line)
    assert "4" in row
    assert "4 with nodes unknown" in row
    assert summary.written == ("cases.csv",)
