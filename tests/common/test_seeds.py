"""Seeds by name."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from her2_common.seeds import seed_for

words = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12)
parts = st.lists(st.one_of(words, st.integers(-(10**6), 10**6)), max_size=4)


def test_pinned() -> None:
    """A site that is updated must draw what it drew before: these values never change.

    They are halves of the first 16 digits that ``printf TEXT | sha256sum`` prints for the texts
    "0" and "5\\x1fstr:train\\x1fstr:centre-a\\x1fint:3\\x1fint:0".
    """
    assert seed_for(0) == 3456079177858693020
    assert seed_for(5, "train", "centre-a", 3, 0) == 1600797568155325894


@given(seed=st.integers(0, 2**63 - 1), names=parts)
def test_a_63_bit_seed_and_always_the_same(seed: int, names: list[str | int]) -> None:
    first = seed_for(seed, *names)
    assert first == seed_for(seed, *names)
    assert 0 <= first < 2**63


@given(a=st.tuples(st.integers(0, 99), parts), b=st.tuples(st.integers(0, 99), parts))
def test_other_names_other_streams(
    a: tuple[int, list[str | int]], b: tuple[int, list[str | int]]
) -> None:
    assert (seed_for(a[0], *a[1]) == seed_for(b[0], *b[1])) == (a == b)


def test_a_number_is_not_its_text() -> None:
    assert seed_for(1, 2) != seed_for(1, "2")
