"""The rows of a centre: what is refused, what is known, and calls like those of the histogram."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from her2_common.errors import MetricError
from her2_common.metrics import GRID, ScoreHistogram, confusion
from her2_common.response.patients import COLUMNS, Patients, called


@pytest.mark.parametrize(
    ("centre", "columns", "message"),
    [
        ("", {}, "expected a name"),
        ("A", {"tumour": [1]}, "got 'tumour'"),
        ("A", {"pcr": [[1]]}, "one dimension"),
        ("A", {"pcr": ["yes"]}, "A, pcr: expected numbers"),
        ("A", {"pcr": [[1], [1, 0]]}, "A, pcr: expected numbers"),
        ("A", {"pcr": [1], "score": [0.1, 0.2]}, "one length"),
        ("A", {"pcr": [1, 0, 2]}, r"A, pcr: expected whole numbers from 0 to 1, .* row 2"),
        ("A", {"score": [0.1, 1.5]}, r"A, score: expected numbers from 0 to 1, .* row 1"),
        ("A", {"t": [1.5]}, "whole numbers from 0 to 4"),
        ("A", {"score": [np.inf]}, "row 0"),
        ("A", {"score": [-1e-9]}, "row 0"),
    ],
)
def test_impossible_rows_are_refused(centre: str, columns: dict, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        Patients(centre, columns)


def test_a_refusal_never_repeats_the_value() -> None:
    for value in (123456, "123456, Main Street"):
        with pytest.raises(MetricError) as refused:
            Patients("A", {"age": [50, value]})
        assert "123456" not in str(refused.value)
        assert refused.value.__cause__ is None


def test_known_rows_and_missing_columns() -> None:
    rows = Patients("A", {"pcr": [1, np.nan, 0], "score": [0.2, 0.3, np.nan]})
    assert rows.known("pcr").tolist() == [True, False, True]
    assert rows.known("pcr", "score").tolist() == [True, False, False]
    assert rows.where(rows.known("pcr")).column("pcr").tolist() == [1, 0]
    assert Patients("A", {}).rows == 0
    with pytest.raises(MetricError, match="expected a column biopsy, got pcr, score"):
        rows.column("biopsy")
    with pytest.raises(MetricError, match="got none"):
        Patients("A", {}).known("pcr")


def test_columns_neither_change_nor_are_shared() -> None:
    given_values = np.array([0.1, 0.2])
    rows = Patients("A", {"score": given_values})
    given_values[0] = 0.9
    assert rows.column("score").tolist() == [0.1, 0.2]
    with pytest.raises(ValueError, match="read-only"):
        rows.column("score")[0] = 1


def test_every_column_has_a_range() -> None:
    for name, (low, high, _) in COLUMNS.items():
        assert Patients("A", {name: [low, high]}).rows == 2


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0, 1), max_size=30), st.integers(0, GRID))
def test_calls_are_those_of_the_scores_and_of_the_histogram(
    scores: list[float], index: int
) -> None:
    threshold = index / GRID
    counts = ScoreHistogram.from_scores(scores, np.ones(len(scores), int))
    assert called(scores, threshold).tolist() == [score >= threshold for score in scores]
    assert called(scores, threshold).sum() == confusion(counts, threshold).tp


@pytest.mark.parametrize("threshold", [-0.1, 1.1, np.nan, 0.4102, np.nextafter(0.5, 1)])
def test_impossible_thresholds_are_refused(threshold: float) -> None:
    with pytest.raises(MetricError, match="threshold"):
        called([0.5], threshold)
