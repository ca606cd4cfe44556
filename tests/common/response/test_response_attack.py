"""Attacks on what a federation prints, by who has its JSON, or chooses its queries.

A small count is safe if other patients, among whom it is no small count, give the same result.
Such patients are made here, so that no way of computing can find the count out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.common.response.cohorts import assert_same

from her2_common.metrics import GRID
from her2_common.response.analysis import analyse
from her2_common.response.cells import attainable
from her2_common.response.codec import histograms
from her2_common.response.patients import Patients
from her2_common.response.plan import Model, Plan
from her2_common.response.pooling import ask_sources
from her2_common.response.queries import Query, Scores, Source, Statistic

LIMIT = 10
THRESHOLD = 0.5
HALF = 100
"""Patients of an outcome whom the model calls positive, and of those whom it does not."""

PLAN = Plan(
    subgroups=("hr",),
    compare=(),
    models=(Model(name="small", terms=("hr", "biopsy")),),
    propensity=("hr",),
)

Columns = dict[str, np.ndarray]


def apart(responders: set[int], others: set[int]) -> Columns:
    """400 patients with scores in even steps; per outcome, the ranks whose biopsy is positive."""
    ranks = np.arange(2 * HALF)
    biopsy = [np.isin(ranks, list(chosen)) for chosen in (others, responders)]
    n = 4 * HALF
    return {
        "pcr": np.repeat([0.0, 1.0], 2 * HALF),
        "score": np.tile((ranks * 5 + 12) / GRID, 2),  # 0.5 between ranks 99 and 100
        "biopsy": np.concatenate(biopsy) * 1.0,
        "therapy": np.concatenate(biopsy) * 1.0,
        "hr": np.ones(n),
    }


def source(columns: Columns, centre: str = "small", plan: Plan = PLAN) -> Source:
    return Source(Patients(centre, columns), plan, THRESHOLD, min_cell=LIMIT)


def large(seed: int) -> Columns:
    """Ten times as many with the same scores: placement values then rise in even steps."""
    rng = np.random.default_rng(seed)
    columns = {name: np.tile(values, 10) for name, values in apart(set(), set()).items()}
    n = columns["pcr"].size
    positive = rng.random(n) < 0.2 + 0.4 * columns["score"] + 0.2 * columns["pcr"]
    treated = positive & (rng.random(n) < 0.8)
    flags = {"biopsy": positive, "therapy": treated, "hr": rng.random(n) < 0.5}
    return columns | {name: flag * 1.0 for name, flag in flags.items()}


def result(columns: Columns) -> dict[str, Any]:
    """The result over three large sites and this one."""
    others = [source(large(seed), f"large {seed}") for seed in range(3)]
    sites = [*others, source(columns)]
    return analyse(ask_sources(sites), PLAN, THRESHOLD, min_centres=PLAN.min_centres)


CALLED = set(range(HALF, 2 * HALF))
SIX = {20, 30, 40, 45, 50, 55}
"""Uncalled ranks with a positive biopsy ..."""
MISSED = {145, 150, 155, 160, 170, 180}
"""... and called ones with a negative biopsy. Their sums differ by 720."""
TEN, TEN_MISSED = set(range(60, 70)), set(range(132, 142))
"""Ten of each, whose sums differ by 720, too."""


def test_the_same_result_comes_from_patients_without_the_small_count() -> None:
    positive = (CALLED - MISSED) | SIX
    twin = (CALLED - TEN_MISSED) | TEN
    assert sum(positive) == sum(twin)
    one, other = apart(positive, positive), apart(twin, positive)
    for columns, small in ((one, len(SIX)), (other, len(TEN))):
        cell = (columns["pcr"] == 1) & (columns["biopsy"] == 1) & (columns["score"] < THRESHOLD)
        assert cell.sum() == small
    found = result(one)
    hidden = {line["what"] for line in found["suppressed"] if line["which"] == "small"}
    assert {"primary", "mcnemar", "discordance", "ipw"} <= hidden
    assert "small" in found["auc"]["by_centre"]  # and yet it takes part
    assert "refused" not in found["auc"]
    assert_same(found, result(other), 1e-12)


def test_the_same_result_comes_from_patients_treated_otherwise() -> None:
    """Three responders whom the model misses were treated; or thirty were, and three others."""

    def treated(few: tuple[int, int]) -> Columns:
        positive = set(range(50, 150))
        columns = apart(positive, positive)
        call = columns["score"] >= THRESHOLD
        for outcome in range(2):
            for model in range(2):
                group = (columns["pcr"] == outcome) & (call == model) & (columns["biopsy"] == 1)
                dropped = np.flatnonzero(group)[3 if (outcome, model) == few else 30 :]
                columns["therapy"][dropped] = 0.0
        return columns

    one, other = treated((1, 0)), treated((0, 0))
    found = result(one)
    assert "small" not in found["primary"]["centres"]
    assert "small" in {line["which"] for line in found["suppressed"] if line["what"] == "primary"}
    assert "refused" not in found["discordance"]
    assert "mcnemar" not in {line["what"] for line in found["suppressed"]}  # all calls are told
    assert_same(found, result(other), 1e-12)


# --- sums of placement values --------------------------------------------------------------------


@pytest.mark.parametrize("positive", [set(range(HALF + 6, 2 * HALF)), set(range(HALF + 6))])
def test_areas_are_withheld_where_their_sum_tells_who_was_called(positive: set[int]) -> None:
    """The biopsy-positive have the highest scores, or the lowest: no others have that sum."""
    untreated = {"therapy": np.zeros(4 * HALF)}
    pinned = source(apart(positive, positive) | untreated)
    assert pinned.answer(Query("scores", "biopsy")) is None
    spread = (CALLED - MISSED) | SIX
    told = source(apart(spread, spread) | untreated).answer(Query("scores", "biopsy"))
    assert isinstance(told, Scores)


@pytest.mark.parametrize("start", [0, 54])
def test_what_the_treated_tell_is_subtracted(start: int) -> None:
    """Of the untreated, all uncalled are biopsy-positive, and six called: lowest or highest."""
    treated = set(range(30, 100)) | set(range(101, 181, 2))
    called = [rank for rank in range(HALF, 2 * HALF) if rank not in treated]
    positive = treated | set(range(30)) | set(called[start : start + 6])
    columns = apart(positive, positive)
    columns["therapy"] = np.tile(np.isin(np.arange(2 * HALF), list(treated)) * 1.0, 2)
    site = source(columns)
    assert site.answer(Query("scores", "treated")) is not None
    assert (site.answer(Query("scores", "biopsy")) is None) == (start == 0)


def test_a_chosen_histogram_does_not_count_the_calls() -> None:
    """Placed among very many patients just below the threshold, a value is the call itself."""
    positive = (CALLED - MISSED) | SIX
    site = source(apart(positive, positive))
    first = site.answer(Query("scores", "biopsy"))
    assert isinstance(first, Scores)
    honest = histograms(first.scores + first.scores).astype(np.float64)
    query = Query("placements", "biopsy", arrays={"histograms": honest})
    assert site.answer(query) is not None
    chosen = honest.copy()
    chosen[:, :, int(THRESHOLD * GRID) - 1] += 1e8
    assert site.answer(Query("placements", "biopsy", arrays={"histograms": chosen})) is None


def test_a_site_that_keeps_its_second_answer_back_is_left_out() -> None:
    sites = [source(large(seed), f"large {seed}") for seed in range(4)]
    open_ = ask_sources(sites)

    def ask(query: Query) -> Mapping[str, Statistic | None]:
        kept = {"large 1": None} if query.kind == "placements" else {}
        return {**open_(query), **kept}

    found = analyse(ask, PLAN, THRESHOLD)
    without = analyse(ask_sources([sites[0], *sites[2:]]), PLAN, THRESHOLD)
    line = {"what": "auc", "which": "large 1", "why": "withheld by the site: small cells"}
    assert line in found["suppressed"]
    for section in ("auc", "roc", "calibration"):
        assert_same(found[section], without[section])


@pytest.mark.parametrize("terms", [("biopsy", "score"), ("biopsy:score",)])
def test_models_of_biopsy_and_score_need_the_table_of_calls(terms: tuple[str, ...]) -> None:
    plan = PLAN.model_copy(update={"models": (Model(name="small", terms=terms),)})
    positive = (CALLED - MISSED) | SIX
    query = Query("rows", "small", ("small",))
    assert source(apart(positive, positive), plan=plan).answer(query) is None
    ten = (CALLED - TEN_MISSED) | TEN
    assert source(apart(ten, ten), plan=plan).answer(query) is not None


@given(seed=st.integers(0, 2**16), n=st.integers(1, 9), sums=st.integers(0, 2))
def test_attainable_holds_all_that_agree(seed: int, n: int, sums: int) -> None:
    rng = np.random.default_rng(seed)
    values = [rng.integers(0, 4, n) / 3 for _ in range(sums)]
    called, chosen = rng.random((2, n)) < 0.5
    subsets = (np.arange(2**n)[:, None] >> np.arange(n)) & 1 == 1
    agree = [
        int((subset & called).sum())
        for subset in subsets
        if subset.sum() == chosen.sum()
        and all(np.isclose(value[subset].sum(), value[chosen].sum()) for value in values)
    ]
    low, high = attainable(values, called, chosen)
    assert low <= min(agree)
    assert max(agree) <= high
    if not sums:
        assert (low, high) == (min(agree), max(agree))
