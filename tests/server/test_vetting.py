"""What a site's histograms may count."""

from __future__ import annotations

import numpy as np
import pytest
from tests.server.exchange_ground import config

from her2_common.errors import UpdateError
from her2_common.metrics import GRID, ScoreHistogram
from her2_common.wire import Counts, Flow, SiteDescription, SiteReply
from her2_server.aggregation import MAX_CASES
from her2_server.vetting import case_limits, check_counts, check_scores


def described(**cases: int | None) -> SiteDescription:
    return SiteDescription(
        site="a",
        version="1",
        groups=("mg", "us", "clinical", "head"),
        flow=Flow(in_table=None, accepted=None, left_out=None),
        cases=Counts(**({"train": None, "val": 5, "test": None} | cases)),
        positives=Counts(train=None, val=None, test=None),
        combinations={},
    )


def counting(negatives: int, positives: int = 0) -> ScoreHistogram:
    labels = [0] * negatives + [1] * positives
    return ScoreHistogram.from_scores([0.5] * len(labels), labels)


SOUND = {"fused|us": counting(2), "fused|mg+us": counting(2, 1), "single|us": counting(4, 1)}


def test_histograms_of_the_described_cases_are_taken() -> None:
    check_scores(described(), "val", SOUND | {"low|us": counting(1, 1)}, 9, {"mg": counting(3)})
    check_scores(described(val=None), "val", SOUND, 9)


@pytest.mark.parametrize(
    ("changes", "distances"),
    [
        ({"fused|us": counting(3), "single|us": counting(5, 1)}, {}),
        ({"single|us": counting(5, 1)}, {}),
        ({"single|mg": counting(4)}, {}),
        ({"low|us": counting(2, 1)}, {}),
        ({"low|mri": counting(1)}, {}),
        ({}, {"us": counting(4)}),
        ({}, {"mri": counting(1)}),
    ],
    ids=["a case more", "single", "single of fewer", "low", "low of none", "distances", "no such"],
)
def test_histograms_of_other_cases_are_refused(
    changes: dict[str, ScoreHistogram], distances: dict[str, ScoreHistogram]
) -> None:
    with pytest.raises(UpdateError) as caught:
        check_scores(described(), "val", SOUND | changes, 9, distances)
    assert caught.value.reason == "wrong count"


def test_positives_are_those_that_were_described() -> None:
    one = described().model_copy(update={"positives": Counts(train=None, val=1, test=None)})
    check_scores(one, "val", SOUND, 9)
    other = one.model_copy(update={"positives": Counts(train=None, val=2, test=None)})
    with pytest.raises(UpdateError) as caught:
        check_scores(other, "val", SOUND, 9)
    assert caught.value.reason == "wrong count"


@pytest.mark.parametrize(("limit", "sites", "most"), [(50, 4, 50), (2**24, 4, MAX_CASES // 4)])
def test_a_site_counts_no_more_cases_than_are_believed(limit: int, sites: int, most: int) -> None:
    federation = config()
    roster = tuple(
        federation.sites[0].model_copy(update={"name": name, "max_cases": limit})
        for name in "abcd"[:sites]
    )
    most_of_a = case_limits(federation.model_copy(update={"sites": roster}))["a"]
    assert most_of_a == most
    tables = np.zeros((2, GRID + 1), dtype=np.int64)
    tables[0, 3] = most + 1
    with pytest.raises(UpdateError) as caught:
        check_scores(described(val=None), "val", {"fused|us": ScoreHistogram(*tables)}, most_of_a)
    assert caught.value.reason == "too many cases"
    tables[0, 3] -= 1
    check_scores(described(val=None), "val", {"fused|us": ScoreHistogram(*tables)}, most_of_a)


def reply(**counts: int) -> SiteReply:
    return SiteReply(site="a", task="train", round=1, split="val", counts=counts)


COUNTS = {"mg": 20, "us": 25, "clinical": 30, "head": 30}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"head": 101, "clinical": 101}, "too many cases"),
        ({"mg": 31}, "wrong count"),
        ({"mg": 0}, "wrong count"),
        ({"mri": 1}, "wrong groups"),
    ],
)
def test_weights_of_other_cases_are_refused(changes: dict[str, int], reason: str) -> None:
    check_counts(reply(**COUNTS), described(), 100)
    with pytest.raises(UpdateError) as caught:
        check_counts(reply(**COUNTS | changes), described(), 100)
    assert caught.value.reason == reason
