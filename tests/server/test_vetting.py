"""What a site's histograms may count."""

from __future__ import annotations

import numpy as np
import pytest

from her2_common.errors import UpdateError
from her2_common.metrics import GRID, ScoreHistogram
from her2_common.wire import Counts, Flow, SiteDescription
from her2_server.aggregation import MAX_CASES
from her2_server.vetting import check_scores


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
    check_scores(described(), "val", SOUND | {"low|us": counting(1, 1)}, 4, {"mg": counting(3)})
    check_scores(described(val=None), "val", SOUND, 4)


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
        check_scores(described(), "val", SOUND | changes, 4, distances)
    assert caught.value.reason == "wrong count"


def test_a_site_that_tells_no_count_has_its_share_of_the_room() -> None:
    tables = np.zeros((2, GRID + 1), dtype=np.int64)
    tables[0, 3] = MAX_CASES // 4 + 1
    with pytest.raises(UpdateError):
        check_scores(described(val=None), "val", {"fused|us": ScoreHistogram(*tables)}, 4)
    tables[0, 3] -= 1
    check_scores(described(val=None), "val", {"fused|us": ScoreHistogram(*tables)}, 4)
