"""Whatever cases a site claims within its limits, the numbers of the report can be worked out."""

from __future__ import annotations

import json
from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.conftest import simulated_scores

from her2_common.metrics import GRID, ScoreHistogram
from her2_common.novelty import limit_of, reference_of
from her2_common.temperature import fit_temperature
from her2_server.closing import Settled, freeze_threshold, pooled_fused, temperature_record
from her2_server.evaluation import COMBINATIONS, evaluate

MOST = 100_000
HONEST = simulated_scores("val")
SMALL = {"valley-practice": HONEST["valley-practice"]}


def claimed(chance: Random) -> dict[str, ScoreHistogram]:
    """Histograms that agree with each other: few places, at the ends, all alike, or everywhere."""
    found: dict[str, ScoreHistogram] = {}
    for name in chance.sample(COMBINATIONS, chance.randint(1, 3)):
        tables = np.zeros((2, GRID + 1), np.int64)
        for _ in range(chance.choice((1, 2, 3, 40))):
            label, place = chance.randrange(2), chance.choice((0, 1, 511, 512, GRID - 1, GRID))
            place = chance.choice((place, chance.randrange(GRID + 1)))
            tables[label, place] += chance.choice((1, 2, 9, 10, 1000, MOST // 200))
        found[f"fused|{name}"] = ScoreHistogram(*tables)
    return found


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_any_histograms_give_numbers_or_none(seed: int) -> None:
    chance = Random(seed)
    liar = {"liar": claimed(chance)}
    others = chance.choice(({}, SMALL, HONEST))
    validation, test = others | liar, others | {"liar": claimed(chance)}
    threshold = freeze_threshold(pooled_fused(validation))["value"]
    for intercept in (False, True):
        fit = fit_temperature(pooled_fused(validation), intercept=intercept, min_cell=10)
        record = temperature_record(Settled({}, fit, {}, validation), validation, test, 10)
        json.dumps(record, allow_nan=False)
    for scores in (validation, test):
        json.dumps(evaluate(scores, threshold, 10), allow_nan=False)
    limit_of(pooled_fused(test))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    values=st.lists(st.floats(-1e12, 1e12), min_size=6, max_size=6),
    n=st.integers(0, 2**24),
)
def test_any_moments_give_a_finite_reference_or_none(values: list[float], n: int) -> None:
    total = np.zeros((4, 4))
    total[np.triu_indices(3)] = values
    total = total + total.T
    total[0, 0] = n
    found = reference_of(total)
    assert found is None or (np.isfinite(found.mean).all() and np.isfinite(found.factor).all())
