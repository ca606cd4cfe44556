"""The end of a run: what follows from the sums, and what of it may be published."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import expit, logit
from sklearn.metrics import log_loss

from her2_common.config import RunConfig
from her2_common.errors import UpdateError
from her2_common.metrics import GRID, ScoreHistogram, quantise
from her2_common.model import GROUPS, build_model, get_groups, preset
from her2_common.novelty import counted, moments, reference_of
from her2_common.temperature import LogitMap, fit_temperature, fold
from her2_server.closing import (
    MAX_SUM,
    MomentSum,
    Settled,
    freeze_limits,
    novelty_record,
    settle,
    temperature_record,
)

PLAN = RunConfig(image_size=32, volume_size=16)
D = preset("compact").features


def features(seed: int, n: int, d: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(loc=2, size=(n, d)).astype(np.float32)


def scores(seed: int, n: int = 120, slope: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=n)
    return expit(slope * truth), (rng.random(n) < expit(truth)).astype(int)


def site(seed: int, n: int = 120) -> dict[str, ScoreHistogram]:
    return {
        "fused|us": ScoreHistogram.from_scores(*scores(seed, n)),
        "single|us": counted(np.ones(3)),
    }


# --- sums ---------------------------------------------------------------------------------------


def test_sums_are_the_same_bits_in_any_order_and_those_of_the_pooled_rows() -> None:
    parts = [features(seed, n) for seed, n in enumerate((3, 50, 17))]
    results = []
    for order in itertools.permutations(parts):
        total = MomentSum(4)
        for part in order:
            total.add({"us": moments(part)})
        results.append(total.result()["us"])
    assert len({result.tobytes() for result in results}) == 1
    assert_allclose(results[0], moments(np.concatenate(parts)), rtol=1e-9, atol=1e-9)
    assert results[0][0, 0] == 70


def test_each_modality_has_its_own_sum() -> None:
    total = MomentSum(4)
    total.add({"mri": moments(features(1, 5)), "us": moments(features(2, 6))})
    total.add({"us": moments(features(3, 7))})
    assert {m: s[0, 0] for m, s in total.result().items()} == {"us": 13, "mri": 5}
    assert MomentSum(4).result() == {}


def test_sums_out_of_range_are_refused_and_leave_no_trace() -> None:
    total = MomentSum(4)
    sound = moments(features(1, 5))
    total.add({"us": sound})
    for largest in (MAX_SUM, 1e300, MAX_SUM / 4):
        spoiled = sound.copy()
        spoiled[1, 1] = largest
        with pytest.raises(UpdateError) as caught:
            total.add({"mg": sound, "us": spoiled})
        assert caught.value.reason == "out of range"
    assert list(total.result()) == ["us"]
    assert_allclose(total.result()["us"], sound, atol=1e-9)


# --- settling -----------------------------------------------------------------------------------


def test_settling_folds_the_fit_of_the_pooled_scores() -> None:
    before = {"a": site(1), "b": site(2)}
    groups = get_groups(build_model("compact", 3, **PLAN.layout), GROUPS)
    total = moments(features(1, 60, D))
    settled = settle(PLAN, groups, before, {"us": total, "mri": moments(features(1, 1, D))})
    fit = fit_temperature(before["a"]["fused|us"] + before["b"]["fused|us"])
    assert settled.fit == fit
    assert fit.reason is None
    expected = fold(groups, preset("compact", **PLAN.layout), fit)
    assert all(settled.groups[g].tobytes() == expected[g].tobytes() for g in GROUPS)
    assert list(settled.references) == ["us"]  # one case gives no reference
    assert settled.references["us"].mean.tobytes() == reference_of(total).mean.tobytes()


@pytest.mark.parametrize(
    ("balance", "shifted"), [("none", False), ("weights", True), ("prior", True)]
)
def test_a_run_that_weighed_the_classes_gets_an_intercept(balance: str, shifted: bool) -> None:
    plan = PLAN.model_copy(update={"class_balance": balance})
    groups = get_groups(build_model("compact", 3, **plan.layout), GROUPS)
    settled = settle(plan, groups, {"a": site(1)}, {})
    assert settled.fit.reason is None
    assert (settled.fit.intercept != 0) == shifted


# --- what is published --------------------------------------------------------------------------


def settled_of(before: dict[str, Any], fit: LogitMap | None = None, **references: Any) -> Settled:
    return Settled({}, fit or LogitMap(0.5), references, before)


def test_the_record_has_the_log_loss_of_the_rows_before_and_after() -> None:
    values, labels = scores(5, 200)
    before = {"a": {"fused|us": ScoreHistogram.from_scores(values, labels)}}
    mapped = expit(0.5 * logit(values))
    after = {"a": {"fused|us": ScoreHistogram.from_scores(mapped, labels)}}
    record = temperature_record(settled_of(before), after, after, 10)
    assert (record["temperature"], record["slope"], record["n"]) == (2.0, 0.5, 200)
    for key, rows in (("before", values), ("after", mapped)):
        grid = np.clip(quantise(rows) / GRID, 0.5 / GRID, 1 - 0.5 / GRID)
        assert_allclose(record["validation"][key]["log_loss"], log_loss(labels, grid), rtol=1e-9)
    slopes = [record["validation"][key]["slope"]["estimate"] for key in ("before", "after")]
    assert_allclose(slopes[1], slopes[0] / 0.5, rtol=0.02)
    assert record["test"] == record["validation"]["after"]
    assert sum(bin_["n"] for bin_ in record["bins"]) == 200
    low, high = record["slope_bounds"]
    assert low < fit_temperature(before["a"]["fused|us"]).slope < high


def test_without_all_sites_the_rest_would_be_the_difference_so_nothing_is_told() -> None:
    record = temperature_record(
        settled_of({"a": site(1)}), {"a": site(1), "b": site(2, 4)}, {"a": site(3)}, 10
    )
    assert record["temperature"] == 2.0
    assert [record[key] for key in ("n", "bins", "slope_bounds")] == [None] * 3
    assert record["validation"]["before"] is None
    assert record["validation"]["after"] is not None
    assert record["test"] is not None


def test_small_classes_are_not_told() -> None:
    few = {
        "a": {"fused|us": ScoreHistogram.from_scores([0.2] * 30 + [0.7] * 9, [0] * 30 + [1] * 9)}
    }
    record = temperature_record(settled_of(few, LogitMap(reason="few")), few, few, 10)
    assert [record[k] for k in ("n", "bins", "slope_bounds", "test")] == [None] * 4
    assert record["validation"] == {"before": None, "after": None}
    assert (record["slope"], record["reason"]) == (1.0, "few")


def test_limits_need_a_reference_and_99_cases() -> None:
    values = np.arange(1, 121) / GRID
    near = {"a": {"us": counted(values[:60])}, "b": {"us": counted(values[60:])}}
    settled = settled_of({}, us=reference_of(moments(features(1, 50))))
    assert freeze_limits(settled, near) == {"us": 120 / GRID}
    assert freeze_limits(settled, {"a": near["a"]}) == {}
    assert freeze_limits(settled_of({}), near) == {}


@pytest.mark.parametrize(
    ("above", "below", "told"), [(10, 90, 10), (9, 90, None), (0, 90, None), (90, 9, None)]
)
def test_flagged_cases_are_counted_if_neither_side_is_small(
    above: int, below: int, told: int | None
) -> None:
    test = {"a": {"us": counted(np.array([0.75] * above + [0.5] * below))}}
    settled = settled_of({}, us=object(), mg=object())
    record = novelty_record(settled, {"us": 0.5}, test, GROUPS, 10)
    assert record["us"] == {"limit": 0.5, "reason": None, "flagged": told}
    assert record["mg"]["reason"] == "fewer than 99 validation cases"
    assert record["mri"]["reason"] == "no centre sent moments of its features that can be used"
    assert list(novelty_record(settled, {"us": 0.5}, test, ("us", "head"), 10)) == ["us"]
