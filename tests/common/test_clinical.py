"""The whole truth tables of HER2 and pCR, written out by hand from the guidelines."""

from __future__ import annotations

import itertools

import pytest

from her2_common.clinical import her2_from_ihc_ish, her2_level, pcr_from_stage

# IHC, ISH -> status, level. ASCO/CAP 2018: 3+ positive, 2+ by ISH, 1+ and 0 negative.
HER2_TABLE = {
    (0, None): (0, "zero"),
    (0, 0): (0, "zero"),
    (0, 1): (0, "zero"),
    (1, None): (0, "low"),
    (1, 0): (0, "low"),
    (1, 1): (0, "low"),
    (2, None): (None, None),
    (2, 0): (0, "low"),
    (2, 1): (1, "positive"),
    (3, None): (1, "positive"),
    (3, 0): (1, "positive"),
    (3, 1): (1, "positive"),
    (None, None): (None, None),
    (None, 0): (0, None),
    (None, 1): (1, "positive"),
}


def test_the_her2_table_is_whole() -> None:
    assert HER2_TABLE.keys() == set(itertools.product((None, 0, 1, 2, 3), (None, 0, 1)))


@pytest.mark.parametrize(("ihc", "ish"), HER2_TABLE)
def test_her2(ihc: int | None, ish: int | None) -> None:
    assert (her2_from_ihc_ish(ihc, ish), her2_level(ihc, ish)) == HER2_TABLE[ihc, ish]


# ypT: no invasive disease ("0", "is"), residual disease, unknown; ypN the same.
@pytest.mark.parametrize("ypt", ["0", "is"])
def test_pcr_needs_both_a_clear_breast_and_clear_nodes(ypt: str) -> None:
    assert pcr_from_stage(ypt, "0") == 1
    assert pcr_from_stage(ypt, None) is None
    for ypn in ("1", "2", "3"):
        assert pcr_from_stage(ypt, ypn) == 0


@pytest.mark.parametrize("ypt", ["1", "2", "3", "4"])
@pytest.mark.parametrize("ypn", [None, "0", "1", "2", "3"])
def test_residual_invasive_disease_is_no_pcr_whatever_the_nodes(ypt: str, ypn: str | None) -> None:
    assert pcr_from_stage(ypt, ypn) == 0


@pytest.mark.parametrize(
    ("ypn", "expected"), [(None, None), ("0", None), ("1", 0), ("2", 0), ("3", 0)]
)
def test_an_unknown_breast(ypn: str | None, expected: int | None) -> None:
    assert pcr_from_stage(None, ypn) == expected
