"""The whole truth tables of HER2, HR status and pCR, written out by hand from the guidelines."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from her2_common.clinical import (
    CLINICAL_N_CODES,
    CLINICAL_T_CODES,
    IHC_CODES,
    IHC_SCORES,
    ISH_CODES,
    STATUS_CODES,
    YPN_CODES,
    YPT_CODES,
    PcrDefinition,
    code_of,
    her2_from_ihc_ish,
    her2_level,
    hr_status,
    pcr_from_stage,
    receptor_of,
    response,
    stage_of,
)

DEFAULT: PcrDefinition = "ypT0/is ypN0"
STRICT: PcrDefinition = "ypT0 ypN0"

# IHC, ISH -> status, level. ASCO/CAP 2018 and 2023: 3+ positive; amplified (group 1) positive
# whatever the IHC; 2+ by ISH; 1+, ultralow and 0 negative. Ultralow is a part of IHC 0.
HER2_TABLE: dict[tuple[Any, int | None], tuple[int | None, str | None]] = {
    ("0", None): (0, "zero"),
    ("0", 0): (0, "zero"),
    ("0", 1): (1, "positive"),
    ("ultralow", None): (0, "zero"),
    ("ultralow", 0): (0, "zero"),
    ("ultralow", 1): (1, "positive"),
    ("1", None): (0, "low"),
    ("1", 0): (0, "low"),
    ("1", 1): (1, "positive"),
    ("2", None): (None, None),
    ("2", 0): (0, "low"),
    ("2", 1): (1, "positive"),
    ("3", None): (1, "positive"),
    ("3", 0): (1, "positive"),
    ("3", 1): (1, "positive"),
    (None, None): (None, None),
    (None, 0): (0, None),
    (None, 1): (1, "positive"),
}


def test_the_her2_table_is_whole() -> None:
    assert HER2_TABLE.keys() == set(itertools.product((None, *IHC_SCORES), (None, 0, 1)))


@pytest.mark.parametrize(("ihc", "ish"), HER2_TABLE)
def test_her2(ihc: Any, ish: int | None) -> None:
    assert (her2_from_ihc_ish(ihc, ish), her2_level(ihc, ish)) == HER2_TABLE[ihc, ish]


@pytest.mark.parametrize(
    ("er", "pr", "expected"),
    [
        (0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1), (1, None, 1), (None, 1, 1),
        (0, None, None), (None, 0, None), (None, None, None),
    ],
)  # fmt: skip
def test_hr_is_unknown_where_one_receptor_is_negative_and_the_other_unknown(
    er: int | None, pr: int | None, expected: int | None
) -> None:
    assert hr_status(er, pr) == expected


# ypT -> by the default definition, by the strict one: True clear, False residual, None unknown.
YPT: dict[str | None, tuple[bool | None, bool | None]] = {
    "0": (True, True),
    "is": (True, False),
    "1mi": (False, False),
    "1": (False, False),
    "2": (False, False),
    "3": (False, False),
    "4": (False, False),
    "X": (None, None),
    None: (None, None),
}
# AJCC 8: isolated tumour cells after therapy are no pCR; mol+ is seen on no section.
YPN: dict[str | None, bool | None] = {
    "0": True,
    "0(mol+)": True,
    "0(i+)": False,
    "1mi": False,
    "1": False,
    "2": False,
    "3": False,
    "X": None,
    None: None,
}


def test_every_stage_is_in_the_tables() -> None:
    assert set(YPT) == {*YPT_CODES.values(), None}
    assert set(YPN) == {*YPN_CODES.values(), None}


@pytest.mark.parametrize(("ypt", "ypn"), list(itertools.product(YPT, YPN)))
def test_pcr_needs_a_clear_breast_and_clear_nodes(ypt: str | None, ypn: str | None) -> None:
    for position, definition in enumerate((DEFAULT, STRICT)):
        parts = (YPT[ypt][position], YPN[ypn])
        expected = 0 if False in parts else None if None in parts else 1
        assert pcr_from_stage(ypt, ypn, definition) == expected
    assert pcr_from_stage(ypt, ypn) == pcr_from_stage(ypt, ypn, DEFAULT)


@pytest.mark.parametrize(
    ("ypt", "ypn", "stated", "default", "strict"),
    [
        (None, None, 1, 1, None),  # it may leave disease in situ
        (None, None, 0, 0, 0),  # none by the wider definition is none by the narrower
        (None, None, None, None, None),
        ("0", None, 1, 1, 1),
        ("0", "X", 1, 1, 1),
        ("is", None, 1, 1, 0),
        ("is", "0", 1, 1, 0),
        ("0", "0", None, 1, 1),
        ("X", "0", 1, 1, None),
        ("2", None, None, 0, 0),
    ],
)
def test_a_stated_response_is_one_of_the_default_definition(
    ypt: str | None, ypn: str | None, stated: int | None, default: int | None, strict: int | None
) -> None:
    assert response(ypt, ypn, stated) == default
    assert response(ypt, ypn, stated, STRICT) == strict


# --- codes as they are written -------------------------------------------------------------------

SPELLINGS: dict[str, tuple[dict[str, Any], dict[Any, tuple[str, ...]]]] = {
    "ihc": (
        IHC_CODES,
        {
            "0": ("0", "0.0", "null"),
            "ultralow": ("ultralow", "Ultra-low", "ultra low"),
            "1": ("1", "1+", "1 +"),
            "2": ("2", "2+", "2.0", "Equivocal"),
            "3": ("3", "3+", "positive", "Pos"),
        },
    ),
    "ish": (
        ISH_CODES,
        {
            0: ("0", "not amplified", "non-amplified", "unamplified", "negative", "neg", "-"),
            1: ("1", "1.0", "amplified", "Amplified", "positive", "pos", "+"),
        },
    ),
    "status": (
        STATUS_CODES,
        {0: ("0", "negative", "NEG", "-", "–"), 1: ("1", "positive", "Pos", "+")},
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_the_ways_pathologists_write(name: str) -> None:
    codes, spellings = SPELLINGS[name]
    for code, texts in spellings.items():
        for text in texts:
            assert code_of(text, codes) == code, text
    assert set(spellings) == set(codes.values())


@pytest.mark.parametrize(
    ("codes", "text"),
    [
        (IHC_CODES, "negative"),  # 0, ultralow or 1+
        (IHC_CODES, "0+"),  # written for 0 and for ultralow
        (IHC_CODES, "4"),
        (IHC_CODES, "1-2+"),
        (IHC_CODES, "low"),  # 1+, or 2+ without amplification
        (ISH_CODES, "equivocal"),
        (ISH_CODES, "2.3"),
        (STATUS_CODES, "equivocal"),
        (STATUS_CODES, "2"),
    ],
)
def test_a_spelling_of_no_code_or_of_several_is_refused(codes: dict[str, Any], text: str) -> None:
    with pytest.raises(KeyError):
        code_of(text, codes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0), ("1", 1), ("pos", 1), ("negative", 0), ("+", 1),
        ("0%", 0), ("<1%", 0), ("< 1 %", 0), ("0.5%", 0), ("1%", 1), ("5 %", 1), ("100%", 1),
        (">90%", 1), (">=1%", 1), (">1%", 1),
    ],
)  # fmt: skip
def test_a_receptor_is_positive_from_one_per_cent(text: str, expected: int) -> None:
    assert receptor_of(text) == expected


@pytest.mark.parametrize("text", ["80", "2", "8/8", "<10%", ">0%", "101%", "weak", "%", "1-10%"])
def test_a_share_that_may_be_another_score_is_refused(text: str) -> None:
    with pytest.raises(KeyError):
        receptor_of(text)


YPT_SPELLINGS = {
    "0": ("0", "ypT0", "T0"),
    "is": ("is", "ypTis", "Tis (DCIS)", "TIS"),
    "1mi": ("1mi", "ypT1mi", "T1mic"),
    "1": ("1", "ypT1a", "1b", "T1c", "ypT1c(m)"),
    "2": ("2", "ypT2"),
    "3": ("3", "3.0"),
    "4": ("4", "ypT4b", "4d"),
    "X": ("X", "ypTX", "TX", "x"),
}
YPN_SPELLINGS = {
    "0": ("0", "ypN0", "N0(sn)", "ypN0(i-)"),
    "0(i+)": ("0(i+)", "ypN0(i+)", "N0 (i+)", "ypN0(i+)(sn)", "0i+"),
    "0(mol+)": ("0(mol+)", "ypN0(mol+)"),
    "1mi": ("1mi", "ypN1mi"),
    "1": ("1", "ypN1a", "N1b"),
    "2": ("2", "ypN2a"),
    "3": ("3", "ypN3c"),
    "X": ("X", "ypNX", "NX"),
}


def test_stages_after_therapy_as_they_are_written() -> None:
    assert set(YPT_SPELLINGS) == set(YPT_CODES.values())
    assert set(YPN_SPELLINGS) == set(YPN_CODES.values())
    for stage, texts in YPT_SPELLINGS.items():
        assert {stage_of(text, "t", "yp", YPT_CODES) for text in texts} == {stage}
    for stage, texts in YPN_SPELLINGS.items():
        assert {stage_of(text, "n", "yp", YPN_CODES) for text in texts} == {stage}


@pytest.mark.parametrize("text", ["5", "cT2", "pT2", "N0", "is(LCIS)", "1d", "ypT", ""])
def test_a_stage_of_another_kind_is_refused(text: str) -> None:
    with pytest.raises(KeyError):
        stage_of(text, "t", "yp", YPT_CODES)


@pytest.mark.parametrize(
    ("letter", "text", "expected"),
    [
        ("t", "2", 2), ("t", "cT1c", 1), ("t", "T4d", 4), ("t", "cTX", None), ("t", "1mi", 1),
        ("n", "0", 0), ("n", "cN1mi", 1), ("n", "N3a", 3), ("n", "cNX", None), ("n", "cN1(f)", 1),
    ],
)  # fmt: skip
def test_clinical_stages(letter: Any, text: str, expected: int | None) -> None:
    codes = CLINICAL_T_CODES if letter == "t" else CLINICAL_N_CODES
    assert stage_of(text, letter, "c", codes) == expected


@pytest.mark.parametrize("text", ["ypT2", "pT2", "is", "5"])
def test_a_stage_after_therapy_is_no_clinical_one(text: str) -> None:
    with pytest.raises(KeyError):
        stage_of(text, "t", "c", CLINICAL_T_CODES)
