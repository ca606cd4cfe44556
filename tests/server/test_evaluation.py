"""The numbers of summary.json: right against pooled rows, and no small group can be derived."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sklearn.metrics import confusion_matrix, roc_auc_score

from her2_common.errors import MetricError
from her2_common.metrics import GRID, ScoreHistogram, pool
from her2_server.evaluation import COMBINATIONS, KEYS, evaluate

Scores = dict[str, dict[str, ScoreHistogram]]


def group(positives: int, negatives: int) -> ScoreHistogram:
    """Cases with scores spread over the grid, the positives a little higher."""
    scores = np.concatenate([np.linspace(0.3, 0.9, positives), np.linspace(0.1, 0.7, negatives)])
    return ScoreHistogram.from_scores(scores, np.repeat([1, 0], [positives, negatives]))


def site(**counts: tuple[int, int]) -> dict[str, ScoreHistogram]:
    """Histograms of a site; ``mg_us=(12, 30)`` are 12 positives and 30 negatives with both."""
    result: dict[str, ScoreHistogram] = {}
    for name, (positives, negatives) in counts.items():
        cases = group(positives, negatives)
        result["fused|" + name.replace("_", "+")] = cases
        for modality in name.split("_"):
            key = f"single|{modality}"
            result[key] = result.get(key, ScoreHistogram.empty()) + cases
    return result


def hidden(breakdown: dict[str, Any]) -> set[str]:
    return {name for name, numbers in breakdown.items() if numbers == {"suppressed": True}}


def rows_of(histogram: ScoreHistogram) -> tuple[np.ndarray, np.ndarray]:
    bins = np.arange(GRID + 1)
    scores = np.concatenate(
        [np.repeat(bins, histogram.negatives), np.repeat(bins, histogram.positives)]
    )
    return scores / GRID, np.repeat([0, 1], [histogram.n - histogram.m, histogram.m])


def walk(value: Any) -> Iterator[Any]:
    yield value
    for child in value.values() if isinstance(value, dict) else value or []:
        if isinstance(child, dict | list):
            yield from walk(child)
        else:
            yield child


def test_the_numbers_are_those_of_the_pooled_rows(make_scores: Callable[..., Scores]) -> None:
    scores = make_scores("test")
    got = evaluate(scores, 0.375)
    pooled = pool(h for s in scores.values() for key, h in s.items() if key.startswith("fused"))
    values, labels = rows_of(pooled)
    tn, fp, fn, tp = confusion_matrix(labels, values >= 0.375).ravel().tolist()
    assert (got["n"], got["positives"]) == (len(labels), labels.sum())
    assert got["confusion"] == {"tp": tp, "fp": fp, "tn": tn, "fn": fn}
    assert got["sensitivity"]["estimate"] == tp / (tp + fn)
    assert got["specificity"]["estimate"] == tn / (tn + fp)
    assert got["ppv"]["estimate"] == tp / (tp + fp)
    assert got["npv"]["estimate"] == tn / (tn + fn)
    assert_allclose(got["auc"]["estimate"], roc_auc_score(labels, values), atol=1e-12)
    assert got["auc"]["low"] < got["auc"]["estimate"] < got["auc"]["high"]
    fpr, tpr = np.array(got["roc"]).T
    assert_allclose(np.trapezoid(tpr, fpr), got["auc"]["estimate"], atol=1e-12)
    assert sum(bin_["n"] for bin_ in got["calibration"]["bins"]) == got["n"]
    assert min(bin_["n"] for bin_ in got["calibration"]["bins"]) >= 10


def test_each_group_is_made_of_its_own_cases(make_scores: Callable[..., Scores]) -> None:
    scores = make_scores("test")
    got = evaluate(scores, 0.375, min_cell=1)
    assert got["by_centre"].keys() == scores.keys()
    for name, histograms in scores.items():
        values, labels = rows_of(pool(h for k, h in histograms.items() if k.startswith("fused")))
        assert_allclose(
            got["by_centre"][name]["auc"]["estimate"], roc_auc_score(labels, values), atol=1e-12
        )
    for name in ("mg", "us", "mri"):
        values, labels = rows_of(
            pool(s[f"single|{name}"] for s in scores.values() if f"single|{name}" in s)
        )
        assert got["by_modality"][name]["n"] == len(labels)
        assert_allclose(
            got["by_modality"][name]["auc"]["estimate"], roc_auc_score(labels, values), atol=1e-12
        )
    values, labels = rows_of(pool(s["fused|mg+us"] for s in scores.values() if "fused|mg+us" in s))
    assert got["by_combination"]["mg+us"]["n"] == len(labels)
    assert got["by_combination"]["mg+us"]["positives"] == labels.sum()


def test_the_result_is_json_without_nan(make_scores: Callable[..., Scores]) -> None:
    one_class = {"a": site(mg=(0, 3))}
    for scores in (make_scores("test"), {"a": site(mg=(15, 1), us=(0, 5))}, one_class, {"a": {}}):
        for min_cell in (0, 10):
            got = evaluate(scores, 0.5, min_cell)
            assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_keys_are_in_the_order_of_the_modalities() -> None:
    assert COMBINATIONS == ("mg", "us", "mri", "mg+us", "mg+mri", "us+mri", "mg+us+mri")
    assert len(KEYS) == 17


@pytest.mark.parametrize("key", ["fused|us+mg", "single|mg+us", "mg", "low|us+mg", "low"])
def test_an_unknown_key_is_refused(key: str) -> None:
    with pytest.raises(MetricError, match="site a: expected keys"):
        evaluate({"a": {key: group(10, 10)}}, 0.5)


# --- small groups --------------------------------------------------------------------------------


def test_large_groups_are_all_published() -> None:
    got = evaluate({"a": site(mg=(10, 10)), "b": site(us=(10, 11))}, 0.5)
    assert not any(hidden(got[f"by_{kind}"]) for kind in ("centre", "combination", "modality"))


@pytest.mark.parametrize("small", [(9, 40), (40, 9), (0, 40)])
def test_a_small_group_takes_the_next_smallest_with_it(small: tuple[int, int]) -> None:
    got = evaluate({"a": site(mg=small), "b": site(mg=(60, 60)), "c": site(mg=(30, 30))}, 0.5)
    assert hidden(got["by_centre"]) == {"a", "c"}
    assert got["by_centre"]["b"]["n"] == 120


def test_small_groups_that_are_small_even_together_take_a_third() -> None:
    scores = {"a": site(mg=(3, 40)), "b": site(mg=(4, 40)), "c": site(mg=(30, 30))}
    got = evaluate({**scores, "d": site(mg=(50, 50))}, 0.5)
    assert hidden(got["by_centre"]) == {"a", "b", "c"}


def test_two_small_groups_that_are_large_together_stay_alone() -> None:
    scores = {"a": site(mg=(6, 40)), "b": site(mg=(7, 40)), "c": site(mg=(30, 30))}
    assert hidden(evaluate(scores, 0.5)["by_centre"]) == {"a", "b"}


def test_of_two_centres_neither_is_published_if_one_is_small() -> None:
    got = evaluate({"a": site(mg=(3, 40)), "b": site(mg=(30, 30))}, 0.5)
    assert hidden(got["by_centre"]) == {"a", "b"}
    assert got["n"] == 103


def test_a_small_total_has_no_numbers_at_all() -> None:
    got = evaluate({"a": site(mg=(4, 40)), "b": site(mg=(5, 30))}, 0.5)
    assert got["suppressed"] is True
    assert not [v for v in walk(got) if isinstance(v, int | float) and not isinstance(v, bool)]
    assert got.keys() - {"suppressed"} == evaluate({"a": site(mg=(50, 50))}, 0.5).keys()


def test_a_modality_does_not_give_a_combination_away() -> None:
    """mg and us+mri are hidden; mammography's total less mg+us would be the small group."""
    scores = {"a": site(mg=(3, 40), us_mri=(20, 20), mg_us=(50, 50), mri=(60, 60))}
    got = evaluate(scores, 0.5)
    assert hidden(got["by_combination"]) >= {"mg", "us+mri"}
    assert "mg" in hidden(got["by_modality"]) or "mg+us" in hidden(got["by_combination"])


counts = st.tuples(st.integers(0, 25), st.integers(0, 25))


@given(st.dictionaries(st.sampled_from([c.replace("+", "_") for c in COMBINATIONS]), counts))
@settings(max_examples=80, deadline=None)
def test_published_counts_never_determine_a_small_combination(cells: dict) -> None:
    """Try to move each small group without moving any published count.

    If the published sums leave a direction in which the group's count can change, they do not
    determine it. Independent of the code: least squares instead of ranks.
    """
    got = evaluate({"a": site(**cells)}, 0.5)
    names = [n.replace("_", "+") for n, c in cells.items() if sum(c)]
    if got.get("suppressed") or not names:
        return
    sums = [[1.0] * len(names)]
    sums += [
        [float(n == name) for n in names]
        for name in names
        if name not in hidden(got["by_combination"])
    ]
    sums += [
        [float(m in n.split("+")) for n in names]
        for m in got["by_modality"]
        if m not in hidden(got["by_modality"])
    ]
    small = {n: c for n, c in zip(cells, cells.values(), strict=True) if min(c) < 10 and sum(c)}
    for name in small:
        target = np.array([float(n == name.replace("_", "+")) for n in names])
        weights, *_ = np.linalg.lstsq(np.array(sums).T, target, rcond=None)
        assert np.linalg.norm(np.array(sums).T @ weights - target) > 1e-6


# --- low against zero ---------------------------------------------------------------------------


def with_levels(low: int, zero: int, unknown: int, positives: int = 40) -> dict[str, Any]:
    """A site of these negatives, half of them with ultrasound and half with both."""
    histograms = site(us=(positives, low + zero + unknown))
    for name, part in (("us", 0), ("mg+us", 1)):
        histograms[f"low|{name}"] = group(
            low // 2 + part * (low % 2), zero // 2 + part * (zero % 2)
        )
    return histograms


def test_low_against_zero_is_that_of_the_pooled_rows() -> None:
    sites = {"a": with_levels(31, 24, 12), "b": with_levels(15, 40, 0), "c": site(mg=(30, 30))}
    got = evaluate(sites, 0.5)["levels"]
    pooled = pool(h for s in sites.values() for key, h in s.items() if key.startswith("low|"))
    values, low = rows_of(pooled)
    assert (got["n"], got["low"], got["zero"]) == (110, 46, 64)
    assert_allclose(got["auc"]["estimate"], roc_auc_score(low, values), atol=1e-12)
    assert got["auc"]["low"] < got["auc"]["estimate"] < got["auc"]["high"]


def test_levels_leave_every_other_number_as_it_is() -> None:
    plain = {"a": site(us=(40, 60)), "b": site(us=(30, 55))}
    levelled = {"a": with_levels(30, 30, 0), "b": with_levels(30, 25, 0, positives=30)}
    assert evaluate(plain, 0.5)["levels"] is None
    got = evaluate(levelled, 0.5)
    assert got["levels"]["n"] == 115
    assert got | {"levels": None} == evaluate(plain, 0.5)


@pytest.mark.parametrize(
    ("sites", "shown"),
    [
        ({"a": with_levels(10, 10, 0)}, True),
        ({"a": with_levels(9, 30, 0)}, False),  # few low
        ({"a": with_levels(30, 9, 0)}, False),  # few zero
        ({"a": with_levels(30, 30, 1)}, False),  # negatives less known levels would be one patient
        ({"a": with_levels(30, 30, 10)}, True),
        # b knows no level; a's negatives are published, too, and would give its 3 away
        ({"a": with_levels(30, 30, 3), "b": site(us=(30, 50))}, False),
        ({"a": with_levels(30, 30, 5), "b": with_levels(30, 30, 5)}, True),
        ({"a": with_levels(30, 30, 0, positives=5)}, False),  # the split is not published at all
    ],
)  # fmt: skip
def test_levels_are_published_as_a_partition_without_small_parts(
    sites: Scores, shown: bool
) -> None:
    got = evaluate(sites, 0.5)["levels"]
    assert (got == {"suppressed": True}) is not shown


level_counts = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))


@given(st.lists(level_counts, min_size=1, max_size=4), st.integers(1, 12))
@settings(max_examples=80, deadline=None)
def test_no_difference_of_published_counts_is_a_small_level(cells: list, min_cell: int) -> None:
    sites = {f"s{i}": with_levels(*parts) for i, parts in enumerate(cells)}
    got = evaluate(sites, 0.5, min_cell)
    levels = got["levels"]
    if levels is None or levels.get("suppressed"):
        return
    low, zero, unknown = np.array(cells).sum(axis=0)
    assert (levels["low"], levels["zero"]) == (low, zero)
    assert min(low, zero) >= min_cell
    assert got["n"] - got["positives"] - levels["n"] == unknown
    telling = [parts for parts in cells if parts[0] + parts[1]]
    for rest in (unknown, sum(parts[2] for parts in telling)):
        assert rest == 0 or rest >= min_cell
