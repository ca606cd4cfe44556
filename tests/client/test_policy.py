"""The site's policy: each rule refuses by its name, and nothing is allowed by default."""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from her2_client.policy import (
    TESTED,
    check_bundle,
    check_order,
    check_tested,
    check_update,
    described,
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
        (
            {"allowed_tasks": ("response",)},
            {"task": "response", "split": "test", "plan": RunConfig(rounds=5, label="surgical")},
            "label: surgical: that label holds the outcome",
        ),
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


# --- describe -----------------------------------------------------------------------------------

COMBINATIONS = ("mg", "us", "mg+us", "mri", "mg+us+mri")
SPLITS = ("train", "val", "test")
SOURCES = ("biopsy", "excised_untreated")
REASONS = ("no_image", "not_tested")
TABLES = ("combinations", "label_sources", "left_out_for")


@st.composite
def cohorts(draw: st.DrawFn) -> dict[str, Any]:
    """Counts of a site that agree with each other."""
    few = st.integers(0, 30)
    cases = {split: draw(few) for split in SPLITS}
    named = draw(st.lists(st.sampled_from(COMBINATIONS), min_size=1, unique=True))
    combinations, left = {}, sum(cases.values())
    for name in named[:-1]:
        combinations[name] = draw(st.integers(0, left))
        left -= combinations[name]
    combinations[named[-1]] = left
    positives = {split: draw(st.integers(0, n)) for split, n in cases.items()}
    used = sum(cases.values())
    excised = draw(st.integers(0, used))
    reasons = {name: draw(st.integers(0, 15)) for name in REASONS}
    return {
        "left_out": sum(reasons.values()),
        "cases": cases,
        "positives": positives,
        "combinations": combinations,
        "label_sources": {
            name: n for name, n in zip(SOURCES, (used - excised, excised), strict=True) if n
        },
        "left_out_for": {name: n for name, n in reasons.items() if n},
    }


def most(counts: dict[str, Any], shown: dict[str, dict[str, int | None]], wanted: Any) -> float:
    """The largest sum of cells of ``wanted`` that agrees with what is shown.

    Cells: (split, positive, combination), then the cases left out by the reason, then those used
    by the source of their label. Written from the meaning of the counts; it shares no code with
    what it attacks.
    """
    cells = list(itertools.product(SPLITS, (0, 1), counts["combinations"]))
    parts = [(t, name) for t in ("left_out_for", "label_sources") for name in counts[t]]

    def row(
        chosen: Callable[..., bool], left_out: bool = False, part: tuple[str, str] | None = None
    ) -> np.ndarray:
        of_parts = [(left_out and p[0] == "left_out_for") or p == part for p in parts]
        return np.array([*(chosen(*cell) for cell in cells), *of_parts], float)

    sums = {
        "flow/in_table": row(lambda s, p, c: True, True),
        "flow/accepted": row(lambda s, p, c: True),
        "flow/left_out": row(lambda s, p, c: False, True),
        **{f"cases/{split}": row(lambda s, p, c, x=split: s == x) for split in SPLITS},
        **{f"positives/{x}": row(lambda s, p, c, x=x: s == x and p == 1) for x in SPLITS},
        **{f"combinations/{x}": row(lambda s, p, c, x=x: c == x) for x in counts["combinations"]},
        **{"/".join(part): row(lambda s, p, c: False, part=part) for part in parts},
    }
    low = {name: shown[name.split("/")[0]][name.split("/")[1]] for name in sums}
    bounds = [
        # Zeros are shown, but for those of a class
        (value, value) if value is not None else (int("positives" not in name), np.inf)
        for name, value in low.items()
    ]
    wish = row(wanted) if callable(wanted) else sums[wanted]
    used = sums["flow/accepted"] - sum(sums[f"label_sources/{x}"] for x in counts["label_sources"])
    found = milp(
        -wish,
        integrality=np.ones(wish.size),
        bounds=Bounds(0, 1000),
        constraints=LinearConstraint(
            np.array([*sums.values(), used]), *np.array([*bounds, (0, 0)]).T
        ),
    )
    assert found.status == 0, found.message
    return round(-found.fun)


@settings(max_examples=40, deadline=None)
@example(
    min_cell=10,  # two of 1 and 9: together they are no small cell, and yet each is one for certain
    counts={
        "left_out": 0,
        "cases": {"train": 40, "val": 1, "test": 9},
        "positives": {"train": 20, "val": 0, "test": 4},
        "combinations": {"mg": 50},
        "label_sources": {"biopsy": 50},
        "left_out_for": {},
    },
)
@given(counts=cohorts(), min_cell=st.integers(2, 12))
def test_no_small_count_follows_from_a_description(counts: dict[str, Any], min_cell: int) -> None:
    shown = described(min_cell, **counts)
    true = {key: dict(part) for key, part in counts.items() if key != "left_out"}
    accepted, left_out = sum(counts["cases"].values()), counts["left_out"]
    true["flow"] = {
        "in_table": accepted + left_out, "accepted": accepted, "left_out": left_out
    }  # fmt: skip
    assert {key: set(part) for key, part in shown.items()} == {k: set(v) for k, v in true.items()}
    for section, part in shown.items():
        for key, value in part.items():
            exact = true[section][key]
            assert value in (None, exact)
            if 0 < exact < min_cell:
                assert value is None
                assert most(counts, shown, f"{section}/{key}") >= min_cell
    for split in SPLITS:
        if 0 < counts["cases"][split] - counts["positives"][split] < min_cell:
            assert most(counts, shown, lambda s, p, c, x=split: s == x and not p) >= min_cell


@settings(max_examples=40, deadline=None)
@given(counts=cohorts(), min_cell=st.integers(1, 12))
def test_nothing_is_withheld_without_a_small_count(counts: dict[str, Any], min_cell: int) -> None:
    shown = described(min_cell, **counts)
    having = [
        sum(n for name, n in counts["combinations"].items() if modality in name.split("+"))
        for modality in ("mg", "us", "mri")
    ]
    every = [
        counts["left_out"], *having,
        *(n for table in (*TABLES, "cases") for n in counts[table].values()),
    ]  # fmt: skip
    classes = [
        (n, counts["cases"][split] - n)
        for split, n in counts["positives"].items()
        if counts["cases"][split]
    ]
    if min_cell == 1 or (
        all(n == 0 or n >= min_cell for n in every) and all(min(c) >= min_cell for c in classes)
    ):
        assert not any(value is None for part in shown.values() for value in part.values())


def test_one_label_for_everybody_is_not_told() -> None:
    counts: dict[str, Any] = {
        "left_out": 0,
        "cases": {"train": 50, "val": 20, "test": 0},
        "positives": {"train": 0, "val": 20, "test": 0},
        "combinations": {"us": 70},
        "label_sources": {"biopsy": 70},
        "left_out_for": {},
    }
    shown = described(10, **counts)
    assert shown["positives"] == {"train": None, "val": None, "test": 0}
    assert shown["cases"] == counts["cases"]


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


def test_patients_without_an_operation_do_not_bound_the_responders() -> None:
    """label: pcr. 83 of 100 have no pCR by their source alone, so that 17 responded at most; with
    12 of them in training, validation has no more than 5."""
    shown = described(
        10,
        left_out=0,
        cases={"train": 60, "val": 20, "test": 20},
        positives={"train": 12, "val": 2, "test": 1},
        combinations={"us": 100},
        label_sources={"no_surgery": 83, "stage": 17},
        left_out_for={},
    )
    assert (shown["positives"]["val"], shown["positives"]["test"]) == (None, None)
    told = (
        shown["positives"]["train"],
        shown["label_sources"]["no_surgery"],
        shown["flow"]["accepted"],
    )
    assert None in told
