"""Aggregation: the pooled mean of each group, exact in any order, and no trace of the refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from her2_common.encoding import BITS, Encoded, Kind, decode, encode
from her2_common.errors import UpdateError
from her2_server.aggregation import MAX_CASES, MAX_CHANGE, Accumulator

SIZES = {"mg": 3, "us": 2, "head": 4}
Groups = dict[str, np.ndarray]
Update = tuple[dict[str, np.ndarray], dict[str, int]]

changes = st.floats(-16, 16, width=32)


@st.composite
def updates(draw: st.DrawFn) -> Update:
    """The changes and counts of a site that has some of the groups."""
    groups = draw(st.lists(st.sampled_from(sorted(SIZES)), unique=True))
    values = {g: draw(hnp.arrays(np.float32, SIZES[g], elements=changes)) for g in groups}
    return values, {g: draw(st.integers(1, 5000)) for g in groups}


def means(accumulator: Accumulator) -> Groups:
    """The mean changes of the groups that somebody trained, float64."""
    return {
        g: np.concatenate([change for _, change in accumulator.take(g)]) for g in accumulator.cases
    }


def folded(sites: list[Update]) -> Groups:
    accumulator = Accumulator(SIZES)
    for update, counts in sites:
        accumulator.add(update, counts)
    return means(accumulator)


def bits(groups: Groups) -> dict[str, bytes]:
    return {name: vector.tobytes() for name, vector in groups.items()}


@settings(deadline=None, max_examples=80)
@given(sites=st.lists(updates(), max_size=5))
def test_the_result_is_the_pooled_weighted_mean(sites: list[Update]) -> None:
    """Within half a step of 2**-30."""
    result = folded(sites)
    assert result.keys() == {g for update, _ in sites for g in update}
    for group, found in result.items():
        parts = [(u[group].astype(np.float64), c[group]) for u, c in sites if group in u]
        mean = sum(n * values for values, n in parts) / sum(n for _, n in parts)
        assert (np.abs(found - mean) <= 2.0**-31 + 1e-14).all()


@settings(deadline=None, max_examples=60)
@given(sites=st.lists(updates(), min_size=2, max_size=5), data=st.data())
def test_order_changes_no_bit(sites: list[Update], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(sites))
    assert bits(folded(shuffled)) == bits(folded(sites))


@settings(deadline=None, max_examples=60)
@given(sites=st.lists(updates(), max_size=3), one=updates(), data=st.data())
def test_a_site_in_two_parts_with_the_same_values_is_the_site(
    sites: list[Update], one: Update, data: st.DataObject
) -> None:
    """Bit for bit: n cases with values v weigh what n1 + n2 = n cases with the same v do. (For
    parts with values of their own it holds to rounding: each is rounded to the grid by itself.)"""
    values, counts = one
    first = {g: data.draw(st.integers(0, n)) for g, n in counts.items()}
    parts: list[Update] = []
    for part in (first, {g: n - first[g] for g, n in counts.items()}):
        some = {g: n for g, n in part.items() if n}
        parts.append(({g: values[g] for g in some}, some))
    assert bits(folded([*sites, *parts])) == bits(folded([one, *sites]))


@settings(deadline=None, max_examples=100)
@given(
    size=st.sampled_from([1, 5, 1024, 1030, 40_000]),
    kind=st.sampled_from(tuple(BITS)),
    share=st.sampled_from([1.0, 0.3, 0.05]),
    scale=st.sampled_from([1e-12, 1e-7, 1e-3, 1.0, 100.0]),
    count=st.integers(1, 10_000),
    seed=st.integers(0, 2**32 - 1),
)
def test_an_encoded_change_is_summed_as_the_decoded_one(
    size: int, kind: Kind, share: float, scale: float, count: int, seed: int
) -> None:
    """Bit for bit, whether or not its steps are whole numbers of the grid's."""
    rng = np.random.default_rng(seed)
    change = (scale * rng.uniform(-1, 1, size)).astype(np.float32)
    change[: size // 3] *= rng.choice([0, 1e-6, 1])  # blocks of zeros, and of small values
    encoded = encode(change, kind, share)[0]
    both = []
    for vector in (encoded, decode(encoded)):
        accumulator = Accumulator({"us": size})
        for n in (count, 3):
            accumulator.add({"us": vector}, {"us": n})
        both.append(means(accumulator)["us"].tobytes())
    assert both[0] == both[1]


def test_an_update_is_not_changed() -> None:
    values = np.array([3, 5], np.float32)
    folded([({"us": values}, {"us": 4})] * 2)
    assert values.tolist() == [3, 5]


def test_a_mean_is_taken_once_and_its_room_given_up() -> None:
    accumulator = Accumulator(SIZES)
    accumulator.add({"us": US}, {"us": 3})
    assert np.concatenate([change for _, change in accumulator.take("us")]).tolist() == [1, 1]
    with pytest.raises(KeyError):
        accumulator.take("us")


def test_cases_are_counted_by_group() -> None:
    accumulator = Accumulator(SIZES)
    accumulator.add({"us": US, "head": HEAD}, {"us": 3, "head": 5})
    accumulator.add({"head": HEAD}, {"head": 2})
    assert accumulator.cases == {"us": 3, "head": 7}


def test_the_largest_sums_do_not_overflow() -> None:
    """As many cases as are allowed, each with nearly the largest change."""
    largest = np.nextafter(np.float32(MAX_CHANGE), np.float32(0))
    values = np.array([largest, -largest], np.float32)
    half = MAX_CASES // 2
    assert folded([({"us": values}, {"us": half})] * 2)["us"].tolist() == values.tolist()
    top = Encoded(np.array([127, 129, 1], np.int16).astype(np.uint8), 2, "int8")  # +-254
    assert folded([({"us": top}, {"us": half})] * 2)["us"].tolist() == [254, -254]


# --- refusals -----------------------------------------------------------------------------------

US = np.ones(2, np.float32)
HEAD = np.arange(4, dtype=np.float32)
HUGE = np.full(2, np.finfo(np.float32).max, np.float32)


def bytes_of(*numbers: int) -> Encoded:
    """Two int8 numbers and their exponent."""
    return Encoded(np.array(numbers, np.int8).view(np.uint8), 2, "int8")


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
    "too few bytes": ({"us": bytes_of(1, 1)}, {"us": 3}, "misshapen"),
    "encoded for another group": ({"mg": bytes_of(1, 1, 0)}, {"mg": 3}, "misshapen"),
    "too large a step": ({"us": bytes_of(1, 0, 8)}, {"us": 3}, "out of range"),
    "the largest step": ({"us": bytes_of(127, 0, 119)}, {"us": 3}, "out of range"),
    "too many steps": ({"us": bytes_of(64, 0, 2)}, {"us": 3}, "out of range"),
    "no exponent": ({"us": bytes_of(1, 0, 120)}, {"us": 3}, "out of range"),
    "no number": ({"us": bytes_of(-128, 0, 0)}, {"us": 3}, "out of range"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_update_has_its_reason_and_leaves_no_trace(name: str) -> None:
    update, counts, reason = REFUSED[name]
    accumulator, other = Accumulator(SIZES), Accumulator(SIZES)
    for each in (accumulator, other):
        each.add({"head": HEAD, "us": US / 3}, {"head": 2, "us": 2})
    # a sound group comes first, so that "all or nothing" is put to the test
    with pytest.raises(UpdateError) as caught:
        accumulator.add({"head": HEAD} | update, {"head": 4} | counts)
    assert caught.value.reason == reason
    assert accumulator.cases == other.cases
    assert bits(means(accumulator)) == bits(means(other))


def test_steps_up_to_the_limit_are_taken() -> None:
    assert folded([({"us": bytes_of(63, -63, 2)}, {"us": 3})])["us"].tolist() == [252, -252]


def test_cases_of_all_sites_together_have_a_limit() -> None:
    accumulator = Accumulator(SIZES)
    accumulator.add({"us": US}, {"us": MAX_CASES - 1})
    with pytest.raises(UpdateError, match=f"1 to {MAX_CASES} cases in all") as caught:
        accumulator.add({"us": US}, {"us": 2})
    assert caught.value.reason == "wrong count"
    accumulator.add({"us": US}, {"us": 1})
