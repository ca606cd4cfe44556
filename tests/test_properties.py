"""Property tests draw the same examples each time, others where that is asked for, and more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.properties import RANDOM, REPEATABLE, adjust, adjusted


@pytest.fixture
def profile() -> Iterator[Callable[[str], None]]:
    """Loads a profile until the end of the test."""
    before = settings.get_current_profile_name()
    yield settings.load_profile
    settings.load_profile(before)


def drawn(profile: str, **more: int) -> list[int]:
    """The examples of a test that asks for 5."""
    seen: list[int] = []

    @settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(0, 2**60))
    def test(value: int) -> None:
        seen.append(value)

    settings.load_profile(profile)
    adjust(test, **more)
    test()
    return seen


def test_the_repeatable_profile_draws_the_same_examples(profile: Callable[[str], None]) -> None:
    assert drawn(REPEATABLE) == drawn(REPEATABLE)


def test_the_random_profile_draws_others_each_time(profile: Callable[[str], None]) -> None:
    assert drawn(RANDOM) != drawn(RANDOM)


@pytest.mark.parametrize(("more", "count"), [({"times": 4}, 20), ({"least": 30}, 30)])
def test_more_examples_than_a_test_asks_for(
    profile: Callable[[str], None], more: dict[str, int], count: int
) -> None:
    assert len(drawn(REPEATABLE, **more)) == count


@pytest.mark.parametrize("name", [REPEATABLE, RANDOM])
def test_neither_time_nor_a_tests_own_choice_decides_how_it_is_drawn(
    profile: Callable[[str], None], name: str
) -> None:
    profile(name)
    own: list[dict[str, Any]] = [{"derandomize": True}, {"deadline": 5, "max_examples": 7}, {}]
    for options in own:
        result = adjusted(settings(**options), least=3)
        assert result.derandomize == (name == REPEATABLE)
        assert (result.database is None) == (name == REPEATABLE)
        assert result.deadline is None
        assert HealthCheck.too_slow in result.suppress_health_check
        assert result.max_examples == options.get("max_examples", 100)


@given(st.integers())
@settings(max_examples=3, deadline=1)
def test_every_property_test_is_adjusted(value: int) -> None:
    used = test_every_property_test_is_adjusted._hypothesis_internal_use_settings  # type: ignore[attr-defined]
    assert used.deadline is None
    assert used.max_examples >= 3
