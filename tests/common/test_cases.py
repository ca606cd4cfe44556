"""The case and lesion tables, pseudonyms and splits."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2_common.cases import (
    NO_SURGERY,
    SPLIT_SHARES,
    Assay,
    Box,
    CaseTable,
    assign_split,
    pseudonym,
    read_cases,
    splits,
)
from her2_common.errors import TableError

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
LESIONS = "case_id,image,x0,y0,z0,x1,y1,z1\n"


def read(folder: Path, cases: str, lesions: str | None = None) -> CaseTable:
    (folder / "cases.csv").write_text(cases, encoding="utf-8")
    if lesions is None:
        return read_cases(folder / "cases.csv")
    (folder / "lesions.csv").write_text(LESIONS + lesions, encoding="utf-8")
    return read_cases(folder / "cases.csv", folder / "lesions.csv")


def test_a_full_row(tmp_path: Path) -> None:
    header = (
        "case_id,patient_id,mg_cc,mg_mlo,us,mri,laterality,age,menopausal,clinical_t,clinical_n,"
        "multifocal,er,pr,biopsy_ihc,biopsy_ish,biopsy_her2,surgical_ihc,surgical_ish,"
        "surgical_her2,nat,anti_her2,ypt,ypn,pcr,split\n"
    )
    row = "c1,p1,a/cc.dcm,,u1.dcm; u2.dcm ,m,L,61.5,1,2,0,0,1,0,2,1,,1,,0,1,1,is,0,,val\n"
    (case,) = read(tmp_path, header + row).cases
    assert (case.row, case.case_id, case.patient_id) == (2, "c1", "p1")
    assert (case.mg_cc, case.mg_mlo) == (tmp_path / "a/cc.dcm", None)
    assert case.mri == (tmp_path / "m",)
    assert case.us == (tmp_path / "u1.dcm", tmp_path / "u2.dcm")
    assert case.modalities == ("mg", "us", "mri")
    assert case.clinical == (61.5, 1, 2, 0, 0)
    assert (case.laterality, case.er, case.pr, case.nat, case.anti_her2) == ("L", 1, 0, 1, 1)
    assert case.biopsy == Assay("2", 1, 1)
    assert case.surgical == Assay("1", None, 0)
    assert (case.ypt, case.ypn, case.pcr, case.split) == ("is", "0", 1, "val")


def test_blanks_are_unknown_and_the_patient_defaults_to_the_case(tmp_path: Path) -> None:
    table = read(tmp_path, "\ufeffcase_id,us,age,pcr\nc1,,,\n\n,,,\nc2,x.png,40,1\n")
    first, second = table.cases
    assert (first.patient_id, first.us, first.age, first.pcr) == ("c1", (), None, None)
    assert first.modalities == ()
    assert first.label("reference") is None
    assert (second.row, second.pcr) == (5, 1)
    assert len(table) == 2


NAT = ("0", "1", "")
# biopsy, excised -> (label, source) of ``reference``: without therapy; with it, or perhaps.
REFERENCE: dict[tuple[str, str], tuple[tuple[int | None, str], tuple[int | None, str]]] = {
    ("1", "0"): ((0, "excised_untreated"), (1, "biopsy")),
    ("0", "1"): ((1, "excised_untreated"), (0, "biopsy")),
    ("1", "1"): ((1, "excised_untreated"), (1, "biopsy")),
    ("0", "0"): ((0, "excised_untreated"), (0, "biopsy")),
    ("1", ""): ((1, "biopsy"), (1, "biopsy")),
    ("0", ""): ((0, "biopsy"), (0, "biopsy")),
    ("", "1"): ((1, "excised_untreated"), (None, "treated_only")),
    ("", "0"): ((0, "excised_untreated"), (None, "treated_only")),
    ("", ""): ((None, "not_tested"), (None, "not_tested")),
}


@pytest.mark.parametrize(("biopsy", "surgical"), REFERENCE)
@pytest.mark.parametrize("nat", NAT)
def test_a_tumour_excised_after_therapy_gives_no_label(
    tmp_path: Path, biopsy: str, surgical: str, nat: str
) -> None:
    """Whether therapy was given may be unknown: then it may have been."""
    header = "case_id,biopsy_her2,surgical_her2,nat\n"
    (case,) = read(tmp_path, header + f"c,{biopsy},{surgical},{nat}\n").cases
    untreated, treated = REFERENCE[biopsy, surgical]
    assert case.labelled("reference") == (untreated if nat == "0" else treated)
    assert case.label("biopsy") == (int(biopsy) if biopsy else None)
    assert case.label("surgical") == (int(surgical) if surgical else None)
    if surgical:
        source = "excised_untreated" if nat == "0" else "excised_treated"
        assert case.label_source("surgical") == source


def test_the_reference_does_not_depend_on_the_response(tmp_path: Path) -> None:
    """Residual tumours lose HER2 and responders have none: neither may move the label."""
    header = "case_id,biopsy_her2,nat,anti_her2,surgical_her2,ypt,ypn\n"
    rows = "lost,1,1,1,0,2,0\nkept,1,1,1,1,2,0\nresponded,1,1,1,,0,0\n"
    cases = read(tmp_path, header + rows).cases
    assert [case.pcr for case in cases] == [0, 0, 1]
    assert [case.label("surgical") for case in cases] == [0, 1, None]
    assert [case.labelled("reference") for case in cases] == [(1, "biopsy")] * 3


def test_anti_her2_therapy_beside_nat_0_counts_as_possibly_treated(tmp_path: Path) -> None:
    header = "case_id,biopsy_her2,surgical_her2,nat,anti_her2\n"
    first, second = read(tmp_path, header + "a,1,0,0,1\nb,1,0,0,0\n").cases
    assert first.labelled("reference") == (1, "biopsy")
    assert second.labelled("reference") == (0, "excised_untreated")


@pytest.mark.parametrize(
    ("nat", "biopsy_ihc", "surgical_ihc", "source"),
    [
        ("1", "2+", "", "equivocal"), ("", "", "2+", "not_tested"), ("0", "", "2+", "equivocal"),
        ("0", "2+", "", "equivocal"), ("0", "2+", "1+", "excised_untreated"),
        ("1", "2+", "1+", "treated_only"), ("1", "", "", "not_tested"),
    ],
)  # fmt: skip
def test_why_there_is_no_label(
    tmp_path: Path, nat: str, biopsy_ihc: str, surgical_ihc: str, source: str
) -> None:
    header = "case_id,nat,biopsy_ihc,surgical_ihc\n"
    (case,) = read(tmp_path, header + f"c,{nat},{biopsy_ihc},{surgical_ihc}\n").cases
    assert case.label_source("reference") == source


# IHC, ISH -> level, by hand (ASCO/CAP 2018; low is 1+, or 2+ without amplification).
LEVELS = {
    ("0", ""): "zero", ("0", "0"): "zero", ("0", "1"): "positive",
    ("1", ""): "low", ("1", "0"): "low", ("1", "1"): "positive",
    ("2", ""): None, ("2", "0"): "low", ("2", "1"): "positive",
    ("3", ""): "positive", ("3", "0"): "positive", ("3", "1"): "positive",
    ("", ""): None, ("", "0"): None, ("", "1"): "positive",
}  # fmt: skip
EQUIVOCAL = ("2", "")


def test_the_level_is_that_of_the_specimen_that_gives_the_label(tmp_path: Path) -> None:
    """Every pair of IHC and ISH of the biopsy with every pair of the excised tumour."""
    pairs = list(product(LEVELS, LEVELS))
    header = "case_id,biopsy_ihc,biopsy_ish,surgical_ihc,surgical_ish,nat\n"
    lines = [f"c{i}," + ",".join((*b, *s, "0")) + "\n" for i, (b, s) in enumerate(pairs)]
    cases = read(tmp_path, header + "".join(lines)).cases
    assert len(cases) == 225
    for case, (biopsy, surgical) in zip(cases, pairs, strict=True):
        assert case.level("biopsy") == LEVELS[biopsy]
        assert case.level("surgical") == LEVELS[surgical]
        untested = surgical in (EQUIVOCAL, ("", ""))
        assert case.level("reference") == LEVELS[biopsy if untested else surgical]
        assert case.level("pcr") is None
        for kind in ("biopsy", "surgical", "reference"):
            status = {"zero": 0, "low": 0, "positive": 1}
            if (level := case.level(kind)) is not None:
                assert case.label(kind) == status[level]


@pytest.mark.parametrize("her2", ["0", "1"])
def test_a_stated_status_tells_no_level(tmp_path: Path, her2: str) -> None:
    """Nor may the biopsy's level stand beside the excised tumour's status."""
    header = "case_id,biopsy_ihc,surgical_her2,nat\n"
    (case,) = read(tmp_path, header + f"c,1,{her2},0\n").cases
    assert (case.label("reference"), case.level("reference")) == (int(her2), None)
    assert case.level("biopsy") == "low"


@pytest.mark.parametrize(("nat", "expected"), [("1", 0), ("", 0), ("0", None)])
def test_pcr_is_a_response_to_neoadjuvant_therapy(
    tmp_path: Path, nat: str, expected: int | None
) -> None:
    """Blank is taken: ypT is staged after therapy. Without therapy there is nothing to respond."""
    (case,) = read(tmp_path, f"case_id,nat,ypt\nc,{nat},2\n").cases
    assert (case.pcr, case.label("pcr")) == (0, expected)


@pytest.mark.parametrize("reason", NO_SURGERY)
@pytest.mark.parametrize(("nat", "expected"), [("1", 0), ("", 0), ("0", None)])
def test_no_operation_after_therapy_is_no_pcr(
    tmp_path: Path, reason: str, nat: str, expected: int | None
) -> None:
    """Progression among the reasons: patients are not dropped for want of a specimen."""
    header = "case_id,nat,no_surgery,ypt\n"
    case, blank = read(tmp_path, header + f"c,{nat},{reason},\nd,{nat},,\n").cases
    for kind in ("pcr", "pcr_strict"):
        source = "untreated" if nat == "0" else "no_surgery"
        assert case.labelled(kind) == (expected, source)
        unknown = "untreated" if nat == "0" else "response_unknown"
        assert blank.labelled(kind) == (None, unknown)


def test_the_strict_pcr_allows_no_disease_in_situ(tmp_path: Path) -> None:
    rows = "a,1,is,0,\nb,1,0,0,\nc,1,,,1\nd,1,,,0\n"
    cases = read(tmp_path, "case_id,nat,ypt,ypn,pcr\n" + rows).cases
    assert [case.label("pcr") for case in cases] == [1, 1, 1, 0]
    assert [case.label("pcr_strict") for case in cases] == [0, 1, None, 0]
    assert [case.label_source("pcr_strict") for case in cases] == [
        "stage", "stage", "response_unknown", "stated",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("days", "used", "left_out"),
    [("", True, False), ("0", True, False), ("12", True, False), ("-1", False, True)],
)
def test_pictures_taken_after_treatment_began_are_not_used(
    tmp_path: Path, days: str, used: bool, left_out: bool
) -> None:
    header = "case_id,us,mri,mri_days\n"
    (case,) = read(tmp_path, header + f"c,u.dcm,m,{days}\n").cases
    assert ("mri" in case.modalities) == used
    assert ("mri" in case.after_therapy) == left_out
    assert "us" in case.modalities


def test_days_of_a_picture_that_is_not_named_change_nothing(tmp_path: Path) -> None:
    (case,) = read(tmp_path, "case_id,us,mri_days\nc,u.dcm,-3\n").cases
    assert (case.modalities, case.after_therapy) == (("us",), ())


def test_codes_come_through_as_they_are_written(tmp_path: Path) -> None:
    header = "case_id,biopsy_ihc,biopsy_ish,er,pr,clinical_t,clinical_n,ypt,ypn,nat\n"
    rows = (
        "a,2+,amplified,80%,<1%,cT2,cN1mi,ypT1mi,ypN0(i+),1\n"
        "b,ultralow,,neg,,T4b,NX,ypTX,ypNX,1\n"
        "c,equivocal,neg,pos,+,1c,0,ypTis,N0(sn),1\n"
    )
    first, second, third = read(tmp_path, header + rows).cases
    assert (first.biopsy, first.hr) == (Assay("2", 1, 1), 1)
    assert (first.clinical_t, first.clinical_n) == (2, 1)
    assert (first.ypt, first.ypn, first.pcr) == ("1mi", "0(i+)", 0)
    assert (second.biopsy, second.biopsy.level) == (Assay("ultralow", None, 0), "zero")
    assert (second.er, second.pr, second.hr) == (0, None, None)
    assert (second.clinical_t, second.clinical_n) == (4, None)
    assert (second.ypt, second.ypn, second.pcr) == ("X", "X", None)
    assert (third.biopsy, third.hr) == (Assay("2", 0, 0), 1)
    assert (third.ypt, third.ypn, third.pcr) == ("is", "0", 1)


@pytest.mark.parametrize(
    ("header", "message", "hint"),
    [
        ("case_id,biopsy_hc", "unknown column 'biopsy_hc'", "did you mean 'biopsy_ihc'?"),
        ("case_id,zzz", "unknown column, the 2. of the header", "is row 1 the header?"),
        ("case_id,age,age", "column 'age' stands twice", None),
        ("us,age", "column 'case_id' is missing", None),
        ("", "expected a header row", None),
    ],
)
def test_a_faulty_header(tmp_path: Path, header: str, message: str, hint: str | None) -> None:
    with pytest.raises(TableError, match=message) as caught:
        read(tmp_path, header)
    if hint is None:
        assert caught.value.hint is None
    else:
        assert str(caught.value.hint).startswith(hint)


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("age", "17", "an age in years from 18 to 110"),
        ("age", "old", "an age in years from 18 to 110"),
        ("age", "nan", "an age in years from 18 to 110"),
        ("menopausal", "2", "0 or 1"),
        ("clinical_t", "5", "a clinical stage: one of 0, 1mi, 1, 2, 3, 4, X"),
        ("clinical_n", "1.5", "a clinical stage: one of 0, 1mi, 1, 2, 3, X"),
        ("biopsy_ihc", "4", "an IHC score: 0, ultralow, 1+, 2+ (equivocal), 3+ (positive)"),
        (
            "surgical_ihc",
            "negative",
            "an IHC score: 0, ultralow, 1+, 2+ (equivocal), 3+ (positive)",
        ),
        ("biopsy_ish", "2", "0 or 1 (not amplified or amplified)"),
        ("biopsy_her2", "equivocal", "0 or 1 (negative or positive)"),
        ("er", "80", "0 or 1 (negative or positive), or a share of nuclei like 80%"),
        ("laterality", "left", "one of L, R"),
        ("ypt", "5", "a stage after therapy: one of 0, is, 1mi, 1, 2, 3, 4, X"),
        ("ypn", "0(x)", "a stage after therapy: one of 0, 0(i+), 0(mol+), 1mi, 1, 2, 3, X"),
        ("no_surgery", "1", "one of progression, death, declined, other"),
        ("mri_days", "soon", "a whole number from -3650 to 3650"),
        ("split", "training", "one of train, val, test"),
    ],
)
def test_a_cell_out_of_range(tmp_path: Path, column: str, value: str, expected: str) -> None:
    with pytest.raises(TableError) as caught:
        read(tmp_path, f"case_id,{column}\na,\nb,{value}\n")
    assert f"row 3, column {column}: expected {expected}, got {value!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "values", "message"),
    [
        ("biopsy_ihc,biopsy_her2", "3,0", "biopsy_her2 is 0, but biopsy_ihc 3 with biopsy_ish"),
        ("biopsy_ihc,biopsy_ish,biopsy_her2", "2,1,0", "biopsy_ish 1 means 1"),
        ("surgical_ihc,surgical_her2", "0,1", "surgical_her2 is 1, but surgical_ihc 0"),
        ("surgical_ish,surgical_her2", "0,1", "surgical_ihc blank with surgical_ish 0 means 0"),
        ("biopsy_ihc,biopsy_ish,biopsy_her2", "1+,amplified,neg", "biopsy_ish 1 means 1"),
        ("ypt,ypn,pcr", "0,0(i+),1", "pcr is 1, but ypt 0 with ypn 0(i+) means 0"),
        ("no_surgery,pcr", "progression,1", "pcr is 1, but no_surgery progression means 0"),
        ("no_surgery,ypt", "other,0", "no_surgery is other, but ypt is stated"),
        ("ypt,ypn,pcr", "0,1,1", "pcr is 1, but ypt 0 with ypn 1 means 0"),
        ("ypt,ypn,pcr", "is,0,0", "pcr is 0, but ypt is with ypn 0 means 1"),
        ("ypt,pcr", "2,1", "pcr is 1, but ypt 2 with ypn blank means 0"),
    ],
)
def test_contradictions(tmp_path: Path, columns: str, values: str, message: str) -> None:
    with pytest.raises(TableError) as caught:
        read(tmp_path, f"case_id,{columns}\na,{values}\n")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ("biopsy_ihc,biopsy_her2", "2,1"),
        ("ypt,pcr", "0,1"),
        ("ypt,ypn,pcr", "is,0,1"),
        ("ypt,ypn,pcr", "0,X,1"),
        ("no_surgery,ypt,ypn,pcr", "death,X,X,0"),
    ],
)
def test_no_contradiction_where_nothing_is_derived(
    tmp_path: Path, columns: str, values: str
) -> None:
    assert len(read(tmp_path, f"case_id,{columns}\na,{values}\n")) == 1


def test_all_faults_are_reported_together(tmp_path: Path) -> None:
    rows = "a,7,\na,50,\n,50,\nb,40,9\n"
    with pytest.raises(TableError) as caught:
        read(tmp_path, "case_id,age,pcr\n" + rows)
    text = str(caught.value)
    assert text.startswith("cases.csv: 4 faults\n")
    for line in (
        "row 2, column age",
        "row 3: case_id is the same as in row 2",
        "row 4: case_id is blank",
        "row 5, column pcr: expected 0 or 1, got '9'",
    ):
        assert line in text
    many = "".join(f"c{n},7\n" for n in range(100))
    with pytest.raises(TableError, match=r"100 faults[\s\S]*and 80 more$"):
        read(tmp_path, "case_id,age\n" + many)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"case_id,us\na\n", r"row 2: expected 2 cells, got 1"),
        (b'case_id,us\n"a"b,c\n', "not CSV"),
        (b"case_id\n\xff\xfe\n", "expected UTF-8, got a byte of another encoding"),
    ],
)
def test_what_is_no_table(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "cases.csv").write_bytes(content)
    with pytest.raises(TableError, match=message):
        read_cases(tmp_path / "cases.csv")
    with pytest.raises(TableError, match="no such file"):
        read_cases(tmp_path / "none.csv")


def test_one_patient_in_two_splits_is_refused(tmp_path: Path) -> None:
    header = "case_id,patient_id,split\n"
    with pytest.raises(TableError, match="row 4: split is 'test', but row 2 puts the same patient"):
        read(tmp_path, header + "a,p,train\nb,q,test\nc,p,test\n")
    table = read(tmp_path, header + "a,p,train\nb,p,\nc,p,train\n")
    assert set(splits(table, KEY).values()) == {"train"}


def test_lesion_boxes(tmp_path: Path) -> None:
    table = read(tmp_path, "case_id\na\n", "a,us,1,2,,3,4,\na,mri,1,2,3,4,5,6\n")
    assert table.boxes == {("a", "us"): Box(1, 2, 3, 4), ("a", "mri"): Box(1, 2, 4, 5, 3, 6)}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b,us,1,2,,3,4,", "row 2: case_id is not in the case table"),
        ("a,mg,1,2,,3,4,", "column image: expected one of mg_cc, mg_mlo, us, mri, got 'mg'"),
        ("a,us,-1,2,,3,4,", "column x0: expected a whole number from 0, got '-1'"),
        ("a,us,1,2,,1,4,", "x1 must be greater than x0"),
        ("a,mri,1,2,,3,4,", "column z0: expected a whole number from 0, got ''"),
        ("a,mri,1,2,5,3,4,5", "z1 must be greater than z0"),
        ("a,us,1,2,,3,4,\na,us,1,2,,3,4,", "row 3: a second us box"),
    ],
)
def test_faulty_boxes(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(TableError) as caught:
        read(tmp_path, "case_id\na\n", line + "\n")
    assert message in str(caught.value)


# --- keyed hashes -------------------------------------------------------------------------------


def test_a_pseudonym_is_keyed_and_stable() -> None:
    # printf 'case-1' | openssl dgst -sha256 -mac HMAC -macopt hexkey:000102..1f | head -c 24
    assert pseudonym(KEY, "case-1") == "c6179fb5bfe4e8f15986ec97"
    assert pseudonym(OTHER_KEY, "case-1") != pseudonym(KEY, "case-1")


@given(st.text(min_size=1), st.text(min_size=1))
def test_different_identifiers_have_different_pseudonyms(first: str, second: str) -> None:
    same = pseudonym(KEY, first) == pseudonym(KEY, second)
    assert same == (first == second)
    assert set(pseudonym(KEY, first)) <= set("0123456789abcdef")
    assert len(pseudonym(KEY, first)) == 24


def test_splits_come_in_their_shares() -> None:
    count = 20_000
    parts = [assign_split(KEY, f"patient-{number}") for number in range(count)]
    for split, share in SPLIT_SHARES.items():
        deviation = (share * (1 - share) / count) ** 0.5
        assert abs(parts.count(split) / count - share) < 4 * deviation  # type: ignore[arg-type]


def test_splits_depend_on_the_key() -> None:
    names = [f"patient-{number}" for number in range(200)]
    assert [assign_split(KEY, n) for n in names] != [assign_split(OTHER_KEY, n) for n in names]


@given(
    patients=st.lists(st.integers(0, 30), min_size=1, max_size=40),
    others=st.lists(st.integers(100, 130), max_size=20),
)
def test_a_patient_is_never_split_and_others_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory, patients: list[int], others: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("table")

    def parts(numbers: list[int]) -> dict[str, set[str]]:
        rows = "".join(f"case-{i}-{n},patient-{n}\n" for i, n in enumerate(numbers))
        table = read(folder, "case_id,patient_id\n" + rows)
        assigned = splits(table, KEY)
        assert assigned.keys() == {case.case_id for case in table.cases}
        found: dict[str, set[str]] = {}
        for case in table.cases:
            found.setdefault(case.patient_id, set()).add(assigned[case.case_id])
        return found

    alone = parts(patients)
    assert all(len(split) == 1 for split in alone.values())
    together = parts(others + patients)
    assert {patient: together[patient] for patient in alone} == alone
