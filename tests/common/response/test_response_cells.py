"""Small counts: an attacker who knows all that was told, and every sum, cannot pin one down."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from her2_common.response import publish
from her2_common.response.cells import Blocks
from her2_common.response.paired import CallTable
from her2_common.response.patients import Patients
from her2_common.response.plan import Model, Plan
from her2_common.response.queries import Query, Source, Tables, labels
from her2_common.response.strata import Strata

LIMIT = 5
PLAN = Plan(
    subgroups=("hr",),
    compare=(),
    models=(Model(name="small", terms=("hr", "biopsy")),),
    propensity=("hr",),
)
THRESHOLD = 0.5

VALUES = (0, 1, 2)  # 2: unknown
CELLS = list(itertools.product(VALUES, repeat=5))
"""Every kind of patient: (pcr, biopsy, model, therapy, hr)."""


def members(**wanted: Iterable[int] | int) -> np.ndarray:
    """Which kinds of patient have these values, (243,)."""
    names = ("pcr", "biopsy", "model", "therapy", "hr")
    sets = {n: {v} if isinstance(v, int) else set(v) for n, v in wanted.items()}
    return np.array(
        [all(c[names.index(n)] in allowed for n, allowed in sets.items()) for c in CELLS], float
    )


KNOWN = (0, 1)
TREATED = {"biopsy": 1, "therapy": 1}


def definitions() -> dict[str, list[np.ndarray]]:
    """Every table that can be told, cell by cell, as sums over kinds of patient."""
    pairs = list(itertools.product(KNOWN, KNOWN))
    tables = {
        "rows": [np.ones(len(CELLS))],
        "calls": [
            members(pcr=o, biopsy=b, model=m) for o, b, m in itertools.product(KNOWN, KNOWN, KNOWN)
        ],
        "primary": [members(pcr=o, model=m, **TREATED) for m, o in pairs],
        "scores biopsy": [members(pcr=o, biopsy=b, model=KNOWN) for o, b in pairs]
        + [members(pcr=o, biopsy=KNOWN, model=m) for o, m in pairs],
        "scores treated": [members(pcr=o, model=m, **TREATED) for m, o in pairs],
        "fit small": [members(pcr=o, biopsy=b, hr=KNOWN) for o, b in pairs],
        "fit propensity": [members(pcr=o, model=m, hr=KNOWN, **TREATED) for m, o in pairs],
    }
    for hr in KNOWN:
        tables[f"hr {hr}"] = [members(pcr=o, model=m, hr=hr, **TREATED) for m, o in pairs]
    return tables


def rests() -> list[np.ndarray]:
    """What nobody tells, but anybody could subtract."""
    return [
        *(members(pcr=o, model=m, biopsy=1, therapy=(0, 2)) for o in KNOWN for m in KNOWN),
        *(members(pcr=o, model=m, hr=2, **TREATED) for o in KNOWN for m in KNOWN),
    ]


def draw(seed: int, n: int) -> tuple[np.ndarray, Patients]:
    """Counts by kind of patient, and the patients themselves."""
    rng = np.random.default_rng(seed)
    biopsy = rng.choice(3, n, p=[0.5, 0.45, 0.05])
    columns = {
        "pcr": rng.choice(3, n, p=[0.55, 0.4, 0.05]),
        "biopsy": biopsy,
        "model": rng.choice(3, n, p=[0.45, 0.52, 0.03]),
        "therapy": np.where(biopsy == 1, rng.choice(3, n, p=[0.08, 0.9, 0.02]), 0),
        "hr": rng.choice(3, n, p=[0.4, 0.55, 0.05]),
    }
    kinds = list(zip(*(column.tolist() for column in columns.values()), strict=True))
    counts = np.array([kinds.count(cell) for cell in CELLS], float)
    known = {name: np.where(c == 2, np.nan, c.astype(float)) for name, c in columns.items()}
    known["score"] = known.pop("model")
    unknown = dict.fromkeys(("t", "n", "age", "modalities"), np.full(n, np.nan))
    return counts, Patients("A", {**known, **unknown})


def told_by(source: Source) -> set[str]:
    """What the site answers, by the names of ``definitions``."""
    tables = source.answer(Query("tables"))
    assert isinstance(tables, Tables)
    told = set(tables.blocks)
    for item in ("biopsy", "treated"):
        if source.answer(Query("scores", item)) is not None:
            told.add(f"scores {item}")
    for item in ("small", "propensity"):
        if source.answer(Query("rows", item, ("A",))) is not None:
            told.add(f"fit {item}")
    return told


def largest(cell: np.ndarray, told: np.ndarray, values: np.ndarray) -> float:
    """The largest count that agrees with everything told; whole numbers."""
    result = milp(
        -cell,
        integrality=np.ones(cell.size),
        bounds=Bounds(0, LIMIT + values.max()),
        constraints=LinearConstraint(told, values, values),
    )
    assert result.status == 0
    return float(-result.fun)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**20), n=st.integers(40, 400))
def test_no_small_count_can_be_worked_out(seed: int, n: int) -> None:
    counts, patients = draw(seed, n)
    tables = definitions()
    told = told_by(Source(patients, PLAN, THRESHOLD, min_cell=LIMIT))
    known = np.array([row for name in sorted(told) for row in tables[name]] or [np.zeros(243)])
    for name in sorted(told):
        exact = np.array([row @ counts for row in tables[name]])
        assert not np.any((exact > 0) & (exact < LIMIT)), name
    secret = [row for name in tables if name not in told for row in tables[name]] + rests()
    for row in secret:
        if 0 < row @ counts < LIMIT:
            assert largest(row, known, known @ counts) >= LIMIT


def test_large_tables_are_told_whole_and_without_a_limit_all_are() -> None:
    _, patients = draw(1, 40)
    assert told_by(Source(patients, PLAN, THRESHOLD)) == set(definitions())
    _, many = draw(1, 200_000)
    assert told_by(Source(many, PLAN, THRESHOLD, min_cell=LIMIT)) == set(definitions())


def test_the_primary_table_is_told_before_others() -> None:
    """Untreated patients are few: the primary table and that of all calls cannot both be told."""
    n = 400
    rng = np.random.default_rng(3)
    biopsy = (rng.random(n) < 0.5) * 1.0
    columns = {
        "pcr": (rng.random(n) < 0.5) * 1.0,
        "biopsy": biopsy,
        "therapy": biopsy * (np.arange(n) % 50 != 0),
        "score": (rng.random(n) < 0.5) * 1.0,
        "hr": (rng.random(n) < 0.5) * 1.0,
    }
    told = told_by(Source(Patients("A", columns), PLAN, THRESHOLD, min_cell=10))
    assert "primary" in told
    assert "calls" not in told


def test_a_histogram_does_not_leave_where_a_margin_of_the_calls_is_small() -> None:
    n = 400
    columns = {
        "pcr": np.arange(n) % 2.0,
        "biopsy": (np.arange(n) // 2) % 2.0,
        "therapy": np.zeros(n),
        "score": (np.arange(n) < 6) * 1.0,
        "hr": np.full(n, np.nan),
    }
    told = told_by(Source(Patients("A", columns), PLAN, THRESHOLD, min_cell=5))
    assert "scores biopsy" not in told
    columns["score"] = (np.arange(n) < 20) * 1.0
    assert "scores biopsy" in told_by(Source(Patients("A", columns), PLAN, THRESHOLD, min_cell=5))


def test_blocks_tell_the_most_important_first() -> None:
    blocks = Blocks()
    whole = blocks.add("all", [30])
    blocks.part(whole, blocks.add("women", [27]))
    assert blocks.told(5) == ["all"]
    other = Blocks()
    part = other.add("women", [27])
    other.part(other.add("all", [30]), part)
    assert other.told(5) == ["women"]


# --- what a result shows -------------------------------------------------------------------------


def test_a_single_small_centre_takes_the_next_with_it() -> None:
    tables = Strata.from_tables(
        {"a": [[40, 30], [30, 40]], "b": [[20, 15], [15, 20]], "c": [[12, 4], [11, 13]]}
    )
    assert publish.shown_primary(tables, {}, 10) in (
        frozenset({"centre a"}),
        frozenset({"centre b"}),
    )
    assert publish.shown_primary(tables, {}, 4) == {"centre a", "centre b", "centre c"}


def test_no_breakdown_of_a_table_that_is_small_itself() -> None:
    tables = Strata.from_tables({"a": [[40, 30], [30, 4]], "b": [[20, 15], [15, 3]]})
    assert publish.shown_primary(tables, {}, 10) == frozenset()


@pytest.mark.parametrize(("calls", "shown"), [(20, True), (3, False)])
def test_pairs_of_calls_are_shown_or_hidden(calls: int, shown: bool) -> None:
    counts = np.full((2, 2, 2), 40)
    counts[1, 0, 1] = calls
    found = publish.shown_calls(CallTable(counts), None, 10)
    assert ("01" in found) is shown


def test_pairs_of_calls_are_hidden_where_the_untreated_would_follow() -> None:
    counts = np.full((2, 2, 2), 40)
    treated = np.full((2, 2), 36)  # (group, outcome): 4 of each were not treated
    found = publish.shown_calls(CallTable(counts), treated, 10)
    assert not {"10", "11"} <= found
    assert publish.shown_calls(CallTable(counts), treated - 10, 10) == {"00", "01", "10", "11"}


def test_every_subgroup_has_a_label() -> None:
    assert labels("hr") == ("hr 0", "hr 1")
    assert len(labels("modalities")) == 7
