"""The account of a round: what may stand in it, the best round, and when patience is over."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2_common.metrics import Estimate
from her2_common.wire import Counts, Flow, SiteDescription
from her2_server.progress import best_rounds, may_join, out_of_patience


def line(number: int, auc: float | None, accepted: str = "ab") -> dict[str, Any]:
    return {
        "round": number,
        "validation": {"n": 10, "auc": None if auc is None else {"estimate": auc}},
        "sites": {
            name: {"status": "accepted" if name in accepted else "missing"} for name in "abc"
        },
    }


def lines(*aucs: float | None) -> list[dict[str, Any]]:
    """Line n + 1 tells the AUC of the weights of round n; the first one that of no round."""
    return [line(number, auc) for number, auc in enumerate(aucs, start=1)]


def test_a_rounds_weights_are_scored_in_the_next_line() -> None:
    assert best_rounds(lines(0.9, 0.6, 0.8, 0.7)) == [2, 3, 1]  # .9 are the first weights


def test_the_last_rounds_weights_are_scored_at_the_end() -> None:
    scored = lines(0.5, 0.6, 0.8)
    assert best_rounds(scored, Estimate(0.9, 0.8, 1.0)) == [3, 2, 1]
    assert best_rounds(scored, Estimate(0.8, 0.7, 0.9)) == [2, 3, 1]  # of equals the earlier


def test_what_is_not_told_is_no_best() -> None:
    assert best_rounds(lines(0.5, None, 0.6, None)) == [2]
    assert best_rounds([]) == []
    assert best_rounds([], Estimate(0.9, 0.8, 1.0)) == []


@pytest.mark.parametrize(
    ("aucs", "over"),
    [
        ((0.5,), False),
        ((0.5, 0.6, 0.6), False),
        ((0.5, 0.6, 0.6, 0.6), True),  # rounds 2 and 3 were not better than 1
        ((0.5, 0.6, 0.5, 0.7), False),
        ((0.5, 0.6, 0.5, 0.61, 0.5), False),
        ((0.5, 0.6, 0.5, 0.61, 0.5, 0.6), True),
        ((0.5, None, None, None, None), False),  # nothing to compare
        ((0.5, 0.6, None, None), True),
    ],
)
def test_patience_of_two_rounds(aucs: tuple[float | None, ...], over: bool) -> None:
    assert out_of_patience(lines(*aucs), 2) is over
    assert out_of_patience(lines(*aucs), None) is False


@given(
    aucs=st.lists(st.none() | st.sampled_from([0.5, 0.6, 0.7, 0.8]), min_size=1, max_size=12),
    patience=st.integers(1, 5),
)
def test_patience_counts_from_the_best_round(aucs: list[float | None], patience: int) -> None:
    scored = aucs[1:]
    known = [auc for auc in scored if auc is not None]
    expected = bool(known) and len(scored) - 1 - scored.index(max(known)) >= patience
    assert out_of_patience(lines(*aucs), patience) is expected


def site(val: int | None, positives: int | None) -> SiteDescription:
    return SiteDescription(
        site="a",
        version="1",
        groups=("head",),
        flow=Flow(in_table=None, accepted=None, left_out=None),
        cases=Counts(train=None, val=val, test=None),
        positives=Counts(train=None, val=positives, test=None),
        combinations={},
    )


@pytest.mark.parametrize(
    ("told", "allowed"), [((30, 12), True), ((None, 12), False), ((30, None), False)]
)
def test_sums_that_differ_by_a_site_are_told_if_it_is_no_small_cell(
    told: tuple[int | None, int | None], allowed: bool
) -> None:
    sites = {"a": site(30, 12), "b": site(30, 12), "c": site(*told)}
    assert may_join(lines(0.5, 0.6), "ab", {"a": site(None, None), "b": site(None, None)})
    assert may_join(lines(0.5, 0.6), "abc", sites) is allowed
    assert may_join([line(1, 0.5, "abc")], "ab", sites) is allowed
    assert may_join(lines(None, None), "abc", sites)  # nothing stands beside it
    assert not may_join(lines(0.5), "abc", {"a": site(30, 12), "b": site(30, 12)})
