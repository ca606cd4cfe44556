"""The site's policy: each rule refuses by its name, and nothing is allowed by default."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2_client.policy import check_bundle, check_order, check_update, tell
from her2_common import __version__
from her2_common.bundle import build_bundle, bundle_hash
from her2_common.config import Policy, RunConfig
from her2_common.errors import PolicyError
from her2_common.wire import TaskOrder


def order(**changes: object) -> TaskOrder:
    values = {
        "task": "train",
        "run": "demo",
        "version": __version__,
        "round": 1,
        "plan": RunConfig(rounds=5),
    }
    return TaskOrder.model_validate(values | changes)


def test_an_ordinary_order_is_allowed() -> None:
    check_order(Policy(), order())


@pytest.mark.parametrize(
    ("policy", "changes", "rule"),
    [
        ({}, {"version": "0.0.0"}, "expected an order of her2-map"),
        ({"allowed_tasks": ("describe",)}, {}, r"policy\.allowed_tasks: 'train' is not among desc"),
        ({"allowed_tasks": ()}, {"task": "describe"}, "'describe' is not among none"),
        ({"max_rounds": 4}, {}, r"policy\.max_rounds: expected at most 4 rounds, got 5"),
        ({"max_rounds": 5}, {"round": 6}, r"policy\.max_rounds: expected at most 5 rounds, got 6"),
    ],
)
def test_each_rule_refuses_by_its_name(
    policy: dict[str, object], changes: dict[str, object], rule: str
) -> None:
    with pytest.raises(PolicyError, match=rule) as caught:
        check_order(Policy.model_validate(policy), order(**changes))
    assert caught.value.code == "policy"


def test_the_limits_themselves_are_allowed() -> None:
    check_order(Policy(max_rounds=5), order(round=5))
    check_update(Policy(min_cases=7), {"us": 7, "head": 20})


@pytest.mark.parametrize("cases", [6, 0, -1])
def test_a_group_of_too_few_cases_does_not_leave(cases: int) -> None:
    with pytest.raises(PolicyError, match=rf"policy\.min_cases: group 'us' has {cases} training"):
        check_update(Policy(min_cases=7), {"head": 20, "us": cases})


def test_the_installed_versions_own_bundle_is_allowed() -> None:
    check_bundle(Policy(), build_bundle())


def test_a_foreign_bundle_is_refused_unless_its_whole_hash_is_listed() -> None:
    with pytest.raises(PolicyError, match=r"policy\.allowed_bundles") as caught:
        check_bundle(Policy(), b"foreign")
    assert bundle_hash(b"foreign")[:16] in str(caught.value)
    check_bundle(Policy(allowed_bundles=(bundle_hash(b"foreign"),)), b"foreign")
    for listed in (bundle_hash(b"foreign")[:16], bundle_hash(b"other"), ""):
        with pytest.raises(PolicyError):
            check_bundle(Policy(allowed_bundles=(listed,)), b"foreign")


@given(position=st.integers(0, len(build_bundle()) - 1), bit=st.integers(0, 7))
def test_a_bundle_with_one_other_bit_is_refused(position: int, bit: int) -> None:
    content = bytearray(build_bundle())
    content[position] ^= 1 << bit
    with pytest.raises(PolicyError):
        check_bundle(Policy(), bytes(content))


def test_an_empty_bundle_is_refused() -> None:
    with pytest.raises(PolicyError):
        check_bundle(Policy(), b"")


@given(cases=st.integers(0, 50), min_cell=st.integers(1, 20))
def test_a_count_is_told_from_min_cell_on(cases: int, min_cell: int) -> None:
    told = tell(Policy(min_cell=min_cell), cases)
    assert told == (cases if cases == 0 or cases >= min_cell else None)
