"""Whatever one site answers, the analysis ends with numbers or a reason."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.common.response.cohorts import cohort

from her2_common.errors import MetricError, UpdateError
from her2_common.response.analysis import analyse
from her2_common.response.codec import pack, unpack
from her2_common.response.patients import Patients
from her2_common.response.plan import Model, Plan
from her2_common.response.queries import Query, Source, Statistic

PLAN = Plan(
    min_cell=1,
    compare=(),
    one_class_centres="keep",
    models=(Model(name="small", terms=("centre", "hr", "score"), tested=("score",)),),
    propensity=("hr", "n"),
)
PATIENTS = 60
"""At each of three centres; the most that is believed of each."""


def three() -> list[Source]:
    rows = cohort(3, 3 * PATIENTS, levels=1024)
    return [
        Source(
            Patients(f"c{index}", {n: v[index::3] for n, v in rows.items()}), PLAN, threshold=0.5
        )
        for index in range(3)
    ]


SOURCES = three()
NUMBERS = (0.0, -1.0, 1.0, 0.5, 60.0, 61.0, 1e6, 2.0**31, 1e15, 1e308, -1e308, math.inf, math.nan)


def spoilt(arrays: dict[str, np.ndarray], chance: Random) -> dict[str, np.ndarray]:
    """One array or a few, changed as a liar might: also to what passes every bound."""
    result = {name: np.array(array) for name, array in arrays.items()}
    for _ in range(chance.choice((1, 1, 2))):
        name = chance.choice(sorted(result))
        array, what = result[name], chance.random()
        if what < 0.05:
            del result[name]
            result["other"] = array
        elif what < 0.1:
            result[name] = array.reshape(-1)[:-1]
        elif what < 0.15:
            result[name] = array.astype(np.float32)
        elif what < 0.35:
            result[name] = array * chance.choice(
                (0.0, -1.0, 0.1, 0.5, 0.9, 1.1, 2.0, 1e-12, 1e12, 1e300)
            )
        elif what < 0.5:
            flat = result[name].reshape(-1)
            flat[:] = flat[[chance.randrange(flat.size) for _ in range(flat.size)]]
        else:
            flat = result[name].reshape(-1)
            place = chance.choice((slice(None), slice(0, 1), slice(-1, None), slice(None, None, 3)))
            flat[place] = chance.choice(NUMBERS)
        if not result:
            break
    return result


def asking(chance: Random) -> Any:
    """Three sites. The first lies as far as it is believed: a lie that is refused (which would end
    an analysis over sites by its name) is taken back."""

    def ask(query: Query) -> Mapping[str, Statistic | None]:
        answers: dict[str, Statistic | None] = {}
        for source in SOURCES:
            answers[source.centre] = statistic = source.answer(query)
            if source.centre != "c0" or statistic is None or chance.random() < 0.4:
                continue
            for _ in range(3):
                with np.errstate(all="ignore"):
                    lie = spoilt(pack(statistic), chance)
                with suppress(UpdateError):
                    answers["c0"] = unpack(query, PLAN, lie, PATIENTS)
                    break
        return answers

    return ask


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_whatever_a_site_answers_the_analysis_ends_with_numbers_or_a_reason(seed: int) -> None:
    try:
        found = analyse(asking(Random(seed)), PLAN, 0.5)
    except MetricError:
        return
    json.dumps(found, allow_nan=False)


def test_an_honest_site_is_believed_up_to_its_number_of_patients() -> None:
    source = SOURCES[0]
    queries = [Query("tables"), Query("scores", "biopsy"), Query("scores", "treated")]
    for query in queries:
        arrays = pack(source.answer(query))  # type: ignore[arg-type]
        unpack(query, PLAN, arrays, PATIENTS)
    with pytest.raises(UpdateError) as caught:
        unpack(Query("tables"), PLAN, pack(source.answer(queries[0])), PATIENTS - 1)  # type: ignore[arg-type]
    assert caught.value.reason == "wrong count"


BETA = {"beta": np.zeros(1)}
LOGISTIC: dict[str, Any] = {
    "n": np.array(10.0),
    "events": np.array(4.0),
    "log_likelihood": np.array(-7.0),
    "gradient": np.array([1.0]),
    "hessian": np.array([[2.5]]),
}
WEIGHTS: dict[str, Any] = {
    "counts": np.array([[3.0, 2.0], [1.0, 4.0]]),
    "weights": np.array([5.0, 5.0]),
    "squares": np.array([5.0, 5.0]),
    "responder_weights": np.array([2.0, 4.0]),
    "responder_squares": np.array([2.0, 4.0]),
}
CHANGE: dict[str, Any] = {
    "counts": np.array([5.0, 5.0]),
    "totals": np.array([1.0, -1.0]),
    "squares": np.array([0.5, 0.5]),
}


@pytest.mark.parametrize(
    ("kind", "sound", "changes", "reason"),
    [
        ("logistic", LOGISTIC, {"log_likelihood": np.array(1.0)}, "out of range"),
        ("logistic", LOGISTIC, {"log_likelihood": np.array(-1e308)}, "wrong count"),
        ("logistic", LOGISTIC, {"gradient": np.array([1e308])}, "out of range"),
        ("logistic", LOGISTIC, {"hessian": np.array([[1e300]])}, "out of range"),
        ("logistic", LOGISTIC, {"hessian": np.array([[-1.0]])}, "misshapen"),
        ("logistic", LOGISTIC, {"events": np.array(11.0)}, "wrong count"),
        ("logistic", LOGISTIC, {"n": np.array(61.0)}, "wrong count"),
        ("weights", WEIGHTS, {"weights": np.array([0.0, 5.0])}, "out of range"),
        ("weights", WEIGHTS, {"squares": np.array([4.0, 5.0])}, "wrong count"),
        ("weights", WEIGHTS, {"weights": np.array([1e300, 5.0])}, "out of range"),
        ("weights", WEIGHTS, {"responder_weights": np.array([6.0, 4.0])}, "out of range"),
        ("weights", WEIGHTS, {"responder_squares": np.array([0.0, 4.0])}, "wrong count"),
        ("change", CHANGE, {"totals": np.array([6.0, 0.0])}, "out of range"),
        ("change", CHANGE, {"squares": np.array([0.1, 0.5])}, "wrong count"),
    ],
)
def test_sums_that_so_many_patients_cannot_give_are_refused(
    kind: Any, sound: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    query = Query(kind, "small", arrays=BETA)
    unpack(query, PLAN, sound, PATIENTS)
    with pytest.raises(UpdateError) as caught:
        unpack(query, PLAN, sound | changes, PATIENTS)
    assert caught.value.reason == reason


def test_an_order_with_arrays_that_are_none_of_its_query_is_refused() -> None:
    for arrays in (
        {"beta": np.zeros(1), "extra": np.zeros(1)},
        {},
        {"beta": np.full(3, 1e308)},
        {"beta": np.full(3, np.nan)},
    ):
        with pytest.raises(MetricError):
            SOURCES[0].answer(Query("logistic", "small", arrays=arrays))
    for tables in (np.full((2, 2, 1025), 1e300), np.full((2, 2, 1025), np.nan)):
        with pytest.raises(MetricError):
            SOURCES[0].answer(Query("placements", "biopsy", arrays={"histograms": tables}))
