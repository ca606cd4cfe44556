"""Aggregation: the pooled mean of each group, exact in any order, and no trace of the refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from her2_common.errors import UpdateError
from her2_server.aggregation import MAX_CASES, MAX_CHANGE, Accumulator

SIZES = {"mg": 3, "us": 2, "head": 4}
Groups = dict[str, np.ndarray]
Update = tuple[Groups, dict[str, int]]

starts = st.fixed_dictionaries(
    {g: hnp.arrays(np.float32, n, elements=st.floats(-8, 8, width=32)) for g, n in SIZES.items()}
)
changes = st.floats(-16, 16, width=32)


@st.composite
def updates(draw: st.DrawFn) -> Update:
    """The values and counts of a site that has some of the groups."""
    groups = draw(st.lists(st.sampled_from(sorted(SIZES)), unique=True))
    values = {g: draw(hnp.arrays(np.float32, SIZES[g], elements=changes)) for g in groups}
    return values, {g: draw(st.integers(1, 5000)) for g in groups}


def folded(start: Groups, sites: list[Update]) -> Groups:
    accumulator = Accumulator(start)
    for update, counts in sites:
        accumulator.add(update, counts)
    return accumulator.result()


def bits(groups: Groups) -> dict[str, bytes]:
    return {name: vector.tobytes() for name, vector in groups.items()}


@settings(deadline=None, max_examples=80)
@given(start=starts, sites=st.lists(updates(), max_size=5))
def test_the_result_is_the_pooled_weighted_mean(start: Groups, sites: list[Update]) -> None:
    """Within half a step of 2**-30, and half a spacing of float32 for the result itself."""
    result = folded(start, sites)
    for group in SIZES:
        parts = [(u[group].astype(np.float64), c[group]) for u, c in sites if group in u]
        if not parts:
            continue
        cases = sum(n for _, n in parts)
        mean = sum(n * values for values, n in parts) / cases
        limit = 2.0**-31 + np.spacing(np.abs(mean).astype(np.float32)) / 2 + 1e-14
        assert result[group].dtype == np.float32
        assert (np.abs(result[group] - mean) <= limit).all()


@settings(deadline=None, max_examples=60)
@given(start=starts, sites=st.lists(updates(), min_size=2, max_size=5), data=st.data())
def test_order_changes_no_bit(start: Groups, sites: list[Update], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(sites))
    assert bits(folded(start, shuffled)) == bits(folded(start, sites))


@settings(deadline=None, max_examples=60)
@given(start=starts, sites=st.lists(updates(), max_size=3), one=updates(), data=st.data())
def test_a_site_in_two_parts_with_the_same_values_is_the_site(
    start: Groups, sites: list[Update], one: Update, data: st.DataObject
) -> None:
    """Bit for bit: n cases with values v weigh what n1 + n2 = n cases with the same v do. (For
    parts with values of their own it holds to rounding: each is rounded to the grid by itself.)"""
    values, counts = one
    first = {g: data.draw(st.integers(0, n)) for g, n in counts.items()}
    parts: list[Update] = []
    for part in (first, {g: n - first[g] for g, n in counts.items()}):
        some = {g: n for g, n in part.items() if n}
        parts.append(({g: values[g] for g in some}, some))
    assert bits(folded(start, [*sites, *parts])) == bits(folded(start, [one, *sites]))


@settings(deadline=None, max_examples=40)
@given(start=starts, sites=st.lists(updates(), max_size=3))
def test_a_group_that_nobody_trained_is_untouched_bit_for_bit(
    start: Groups, sites: list[Update]
) -> None:
    result = folded(start, sites)
    for group in set(SIZES) - {g for update, _ in sites for g in update}:
        assert result[group].tobytes() == start[group].tobytes()
        assert not np.shares_memory(result[group], start[group])


def test_untouched_means_the_odd_bits_too() -> None:
    start = {"us": np.array([-0.0, np.finfo(np.float32).tiny / 8], np.float32)}
    assert bits(folded(start, [])) == bits(start)


def test_neither_the_start_nor_an_update_is_changed() -> None:
    start = {"us": np.array([1, 2], np.float32)}
    values = np.array([3, 5], np.float32)
    folded(start, [({"us": values}, {"us": 4})] * 2)
    assert start["us"].tolist() == [1, 2]
    assert values.tolist() == [3, 5]


def test_sites_that_change_nothing_leave_the_values() -> None:
    """A round in which every site sends back what it got is no random walk."""
    start = {"us": np.array([0.1, -7.3], np.float32)}
    assert bits(folded(start, [(start, {"us": 3}), (start, {"us": 11})])) == bits(start)


def test_cases_are_counted_by_group() -> None:
    start = {g: np.zeros(n, np.float32) for g, n in SIZES.items()}
    accumulator = Accumulator(start)
    accumulator.add({"us": start["us"], "head": start["head"]}, {"us": 3, "head": 5})
    accumulator.add({"head": start["head"]}, {"head": 2})
    assert accumulator.cases == {"us": 3, "head": 7}


def test_the_largest_sums_do_not_overflow() -> None:
    """As many cases as are allowed, each with nearly the largest change."""
    start = {"us": np.zeros(2, np.float32)}
    largest = np.nextafter(np.float32(MAX_CHANGE), np.float32(0))
    values = np.array([largest, -largest], np.float32)
    half = MAX_CASES // 2
    result = folded(start, [({"us": values}, {"us": half})] * 2)
    assert result["us"].tolist() == values.tolist()


# --- refusals -----------------------------------------------------------------------------------

START = {g: np.zeros(n, np.float32) for g, n in SIZES.items()}
US = np.ones(2, np.float32)
HUGE = np.full(2, np.finfo(np.float32).max, np.float32)
REFUSED: dict[str, tuple[Any, Any, str]] = {
    "unknown group": ({"tail": US}, {"tail": 3}, "unknown group"),
    "short": ({"us": US[:1]}, {"us": 3}, "misshapen"),
    "two axes": ({"us": US[None]}, {"us": 3}, "misshapen"),
    "no count": ({"us": US}, {}, "wrong count"),
    "another group's count": ({"us": US}, {"mg": 3}, "wrong count"),
    "one count too many": ({"us": US}, {"us": 3, "mg": 3}, "wrong count"),
    "no cases": ({"us": US}, {"us": 0}, "wrong count"),
    "negative cases": ({"us": US}, {"us": -3}, "wrong count"),
    "too many cases": ({"us": US}, {"us": MAX_CASES + 1}, "wrong count"),
    "absurdly many cases": ({"us": US}, {"us": 10**30}, "wrong count"),
    "NaN": ({"us": US * np.float32(np.nan)}, {"us": 3}, "not finite"),
    "infinity": ({"us": US * np.float32(np.inf)}, {"us": 3}, "not finite"),
    "too far": ({"us": US * np.float32(MAX_CHANGE)}, {"us": 3}, "out of range"),
    "too far down": ({"us": US * np.float32(-MAX_CHANGE)}, {"us": 3}, "out of range"),
    "as far as float32 goes": ({"us": HUGE}, {"us": 3}, "out of range"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_update_has_its_reason_and_leaves_no_trace(name: str) -> None:
    update, counts, reason = REFUSED[name]
    accumulator, other = Accumulator(START), Accumulator(START)
    head = {"head": np.arange(4, dtype=np.float32)}
    for each in (accumulator, other):
        each.add(head | {"us": US / 3}, {"head": 2, "us": 2})
    # a sound group comes first, so that "all or nothing" is put to the test
    with pytest.raises(UpdateError) as caught:
        accumulator.add(head | update, {"head": 4} | counts)
    assert caught.value.reason == reason
    assert bits(accumulator.result()) == bits(other.result())
    assert accumulator.cases == other.cases


def test_cases_of_all_sites_together_have_a_limit() -> None:
    accumulator = Accumulator(START)
    accumulator.add({"us": US}, {"us": MAX_CASES - 1})
    with pytest.raises(UpdateError, match=f"1 to {MAX_CASES} cases in all") as caught:
        accumulator.add({"us": US}, {"us": 2})
    assert caught.value.reason == "wrong count"
    accumulator.add({"us": US}, {"us": 1})


def test_the_difference_may_overflow_without_a_warning() -> None:
    with pytest.raises(UpdateError) as caught:
        Accumulator({"us": -HUGE}).add({"us": HUGE}, {"us": 1})
    assert caught.value.reason == "out of range"


def test_check_adds_nothing() -> None:
    accumulator = Accumulator(START)
    accumulator.check({"us": US}, {"us": 3})
    assert accumulator.cases == {}
    assert bits(accumulator.result()) == bits(START)
