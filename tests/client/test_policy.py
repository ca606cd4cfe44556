"""The site's policy: each rule refuses by its name, and nothing is allowed by default."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2_client.policy import (
    TESTED,
    check_bundle,
    check_order,
    check_tested,
    check_update,
    tell,
    tell_part,
    tell_parts,
)
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
        ({"min_cell": 11}, {}, r"policy\.min_cell: .* no group of fewer than 11, got .* 10"),
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


counts = st.dictionaries(st.sampled_from("abcdefg"), st.integers(0, 40), max_size=6)


@given(parts=counts, min_cell=st.integers(1, 20))
def test_the_parts_that_are_told_give_away_no_small_part(
    parts: dict[str, int], min_cell: int
) -> None:
    """Whoever knows the total and what is told learns of the rest its sum and no more: it belongs
    to two parts at least and is no small cell, or nothing but zeros is told."""
    told = tell_parts(Policy(min_cell=min_cell), parts)
    assert told.keys() == parts.keys()
    assert all(cases in (None, parts[key]) for key, cases in told.items())
    assert not any(0 < (cases or 0) < min_cell for cases in told.values())
    hidden = [parts[key] for key, cases in told.items() if cases is None]
    if hidden and any(told.values()):
        assert len(hidden) >= 2
        assert sum(hidden) >= min_cell


@given(parts=counts, min_cell=st.integers(1, 20))
def test_nothing_is_hidden_without_need(parts: dict[str, int], min_cell: int) -> None:
    told = tell_parts(Policy(min_cell=min_cell), parts)
    if not any(0 < cases < min_cell for cases in parts.values()):
        assert told == parts
    assert all(told[key] == 0 for key, cases in parts.items() if cases == 0)
    shown = [cases for cases in told.values() if cases]
    hidden = [parts[key] for key, cases in told.items() if cases is None]
    assert not (shown and hidden) or min(shown) >= max(hidden)  # the smallest are hidden


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"a": 5, "b": 30, "c": 12}, {"a": None, "b": 30, "c": None}),
        ({"a": 5, "b": 6, "c": 12}, {"a": None, "b": None, "c": 12}),
        ({"a": 1, "b": 2, "c": 12}, {"a": None, "b": None, "c": None}),
        ({"a": 5, "b": 0}, {"a": None, "b": 0}),
        ({}, {}),
    ],
)
def test_worked_examples(parts: dict[str, int], told: dict[str, int | None]) -> None:
    assert tell_parts(Policy(min_cell=10), parts) == told


@given(whole=st.integers(0, 60), share=st.floats(0, 1), min_cell=st.integers(1, 20))
def test_a_part_of_a_known_whole(whole: int, share: float, min_cell: int) -> None:
    part = int(share * whole)
    small = [0 < cases < min_cell for cases in (part, whole - part)]
    assert tell_part(Policy(min_cell=min_cell), part, whole) == (None if any(small) else part)


@pytest.mark.parametrize(("split", "allowed"), [("val", True), ("test", True), ("train", False)])
def test_training_cases_are_never_scored_for_others(split: str, allowed: bool) -> None:
    asked = order(task="evaluate", split=split)
    if allowed:
        check_order(Policy(), asked)
    else:
        with pytest.raises(PolicyError, match="training cases are never scored"):
            check_order(Policy(), asked)


def scoring(run: str = "demo", seed: int = 0, **prints: str) -> TaskOrder:
    weights = {name: print_ * 64 for name, print_ in prints.items()}
    plan = RunConfig(rounds=5, seed=seed)
    return order(task="evaluate", split="test", run=run, plan=plan, weights=weights)


def test_test_cases_are_scored_with_one_set_of_weights_a_run(tmp_path: Path) -> None:
    check_tested(tmp_path, scoring(head="a", us="b"))
    check_tested(tmp_path, scoring(head="a", us="b"))  # after a resume, the same again
    for weights in ({"head": "c", "us": "b"}, {"head": "a", "us": "c"}, {"us": "c"}):
        with pytest.raises(PolicyError, match=r"run demo .* other weights \((head|us)\)") as caught:
            check_tested(tmp_path, scoring(**weights))
        assert caught.value.code == "policy"
    check_tested(tmp_path, scoring(run="demo-2", head="c", us="b"))  # another run
    check_tested(tmp_path, scoring(seed=1, head="c", us="b"))  # another plan
    with pytest.raises(PolicyError):
        check_tested(tmp_path, scoring(head="c", us="b"))
    assert (tmp_path / TESTED).stat().st_mode & 0o077 == 0


def test_scaffolds_controls_are_not_what_is_tested(tmp_path: Path) -> None:
    check_tested(tmp_path, scoring(**{"head": "a", "head.control": "b"}))
    check_tested(tmp_path, scoring(**{"head": "a", "head.control": "c"}))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"demo": 3}', b"\xff"])
def test_a_damaged_account_of_tests_allows_nothing(tmp_path: Path, content: bytes) -> None:
    check_tested(tmp_path, scoring(head="a"))
    run = next(iter(json.loads((tmp_path / TESTED).read_bytes())))
    (tmp_path / TESTED).write_bytes(content.replace(b"demo", run.encode()))
    with pytest.raises(PolicyError, match="damaged"):
        check_tested(tmp_path, scoring(head="a"))


@pytest.mark.parametrize(
    ("split", "number", "allowed"),
    [
        ("val", 5, True),
        ("val", 4, False),
        ("val", 6, False),
        ("train", 5, False),
        ("test", 5, False),
    ],
)
def test_a_profile_is_made_after_the_last_round_alone(
    split: str, number: int, allowed: bool
) -> None:
    asked = order(task="profile", split=split, round=number)
    if allowed:
        check_order(Policy(), asked)
    else:
        with pytest.raises(PolicyError, match=f"profile of the {split} cases after round {number}"):
            check_order(Policy(), asked)


def test_with_patience_the_best_round_is_profiled() -> None:
    plan = RunConfig(rounds=5, patience=2)
    check_order(Policy(), order(task="profile", split="val", round=3, plan=plan))
    with pytest.raises(PolicyError, match="profile of the train cases"):
        check_order(Policy(), order(task="profile", split="train", round=3, plan=plan))


def test_a_site_may_leave_the_profile_out() -> None:
    policy = Policy(allowed_tasks=("describe", "train", "evaluate"))
    with pytest.raises(PolicyError, match=r"policy\.allowed_tasks: 'profile' is not among"):
        check_order(policy, order(task="profile", split="val", round=5))


def test_a_full_disk_keeps_the_test_for_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The account is written before the first case is scored, or nothing is scored."""
    check_tested(tmp_path, scoring(run="earlier", head="e"))

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space") as caught:
            check_tested(tmp_path, scoring(head="a", us="b"))
    assert caught.value.filename == str(tmp_path / TESTED)
    check_tested(tmp_path, scoring(head="a", us="b"))
    for run, weights in (("demo", {"head": "c"}), ("earlier", {"head": "f"})):
        with pytest.raises(PolicyError):
            check_tested(tmp_path, scoring(run=run, **weights))
