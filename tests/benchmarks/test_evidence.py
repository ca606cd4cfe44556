"""Comparisons against other ways to the same numbers; kept results; cohorts on a pile."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score
from statsmodels.stats.meta_analysis import combine_effects

from her2_client.cohort import Cohort
from her2_common.metrics import ScoreHistogram, auc_interval


def module(name: str) -> ModuleType:
    """A script of this folder, under the name by which its neighbours import it."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


cohorts, evidence = module("cohorts"), module("evidence")
ablation, discrimination = module("bench_ablation"), module("bench_discrimination")

# --- comparisons ---------------------------------------------------------------------------------


def drawn(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two related scores with many ties, and labels of both classes."""
    rng = np.random.default_rng(seed)
    labels = np.array([0, 0, 1, 1, *rng.integers(0, 2, n)])
    common = rng.normal(size=len(labels)) + labels
    first, second = (np.round(2 * (common + rng.normal(size=len(labels)))) for _ in range(2))
    return first, second, labels


def by_pairs(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> float:
    """The variance of the difference from the matrix of all pairs, written out."""

    def ranked(score: np.ndarray) -> np.ndarray:
        gaps = score[labels == 1][:, None] - score[labels == 0][None, :]
        return (np.sign(gaps) + 1) / 2

    gap = ranked(first) - ranked(second)  # (positives, negatives)
    of_cases, of_controls = gap.mean(axis=1), gap.mean(axis=0)
    return float(of_cases.var(ddof=1) / len(of_cases) + of_controls.var(ddof=1) / len(of_controls))


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_difference_is_the_one_of_all_pairs(seed: int) -> None:
    first, second, labels = drawn(seed)
    found = evidence.difference(first, second, labels)
    areas = [roc_auc_score(labels, score) for score in (first, second)]
    assert found.value == pytest.approx(areas[0] - areas[1], abs=1e-12)
    assert found.variance == pytest.approx(by_pairs(first, second, labels), abs=1e-12)
    turned = evidence.difference(second, first, labels)
    assert (turned.value, turned.variance) == pytest.approx((-found.value, found.variance))
    assert evidence.difference(first, 3 * first + 1, labels) == evidence.Figure(0, 0)


def test_variance_of_one_auc_is_that_of_the_interval_of_the_histogram() -> None:
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 2, 300)
    grid = np.clip(rng.normal(450 + 120 * labels, 150), 0, 1024).astype(int)
    interval = auc_interval(ScoreHistogram.from_scores(grid / 1024, labels))
    assert interval is not None
    found = evidence.combined([evidence.auc_figure(grid, labels)])
    assert found.as_dict() == pytest.approx(interval.as_dict(), abs=1e-12)


def test_the_interval_of_a_difference_covers_the_truth_as_often_as_it_says() -> None:
    """Normal scores of known AUCs: P(positive > negative) = Phi(shift / sqrt 2)."""
    rng = np.random.default_rng(8)
    covered = 0
    for _ in range(400):
        labels = np.repeat([0, 1], [90, 50])
        common = rng.normal(size=140)
        first, second = (
            0.8 * common + 0.6 * rng.normal(size=140) + shift * labels for shift in (1.0, 0.6)
        )
        interval = evidence.combined([evidence.difference(first, second, labels)])
        truth = 0.7602499389 - 0.6643133830
        covered += interval.low <= truth <= interval.high
    assert 0.92 < covered / 400 < 0.975


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_seeds_are_combined_as_studies_are(seed: int) -> None:
    rng = np.random.default_rng(seed)
    variances = rng.uniform(0.5, 2, 5) * 1e-4
    values = rng.normal(0.01, 0.012, 5)
    with np.errstate(invalid="ignore"):
        oracle = combine_effects(values, variances, method_re="chi2")
        rows = oracle.summary_frame()
    found = evidence.combined(list(map(evidence.Figure, values, variances)))
    # statsmodels goes on with a variance between studies below 0; it is 0 then by definition.
    model = "random effect" if oracle.tau2 > 0 else "fixed effect"
    row = rows.loc[model, ["eff", "ci_low", "ci_upp"]]
    assert [found.estimate, found.low, found.high] == pytest.approx(row.tolist(), abs=1e-12)


def test_equal_scores_differ_by_nothing() -> None:
    same = evidence.combined([evidence.Figure(0, 0)] * 3)
    assert same.as_dict() == {"estimate": 0, "low": 0, "high": 0}


# --- kept results --------------------------------------------------------------------------------


def test_what_is_kept_is_not_done_again(tmp_path: Path) -> None:
    asked: list[str] = []

    def work(arm: str, seed: int) -> dict[str, Any]:
        asked.append(f"{arm}{seed}")
        if len(asked) == 4:
            raise KeyboardInterrupt
        return {"value": len(asked)}

    jobs = [evidence.Job(arm, seed, (arm, seed)) for seed in (1, 2) for arm in "ab"]
    file = tmp_path / "results" / "file.jsonl"
    with pytest.raises(KeyboardInterrupt):
        evidence.run_jobs(jobs, work, file)
    kept = file.read_text()
    file.write_text(kept[:-9])  # the third line was cut off half-way
    results = evidence.run_jobs(jobs, work, file)
    assert asked == ["a1", "b1", "a2", "b2", "a2", "b2"]
    assert [line["value"] for line in results] == [1, 2, 5, 6]
    assert [line["value"] for line in evidence.read_lines(file)] == [1, 2, 5, 6]
    assert evidence.run_jobs(jobs, work, file) == results


# --- cohorts -------------------------------------------------------------------------------------


def small(first: float, label: int) -> Cohort:
    """Three cases: ultrasound; ultrasound and MRI; MRI. An image holds one number everywhere."""
    rows = {"mg": [-1, -1, -1], "us": [1, 0, -1], "mri": [-1, 0, 1]}
    return Cohort(
        images={
            "mg": torch.zeros(0, 4, 8, 8).half(),
            "us": (first + torch.arange(2)).view(2, 1, 1, 1).expand(2, 1, 8, 8).half(),
            "mri": (first + torch.arange(2)).view(2, 1, 1, 1, 1).expand(2, 1, 8, 8, 8).half(),
        },
        rows={m: np.array(of_case) for m, of_case in rows.items()},
        clinical=torch.full((3, 5), float(first)),
        labels=torch.full((3,), label),
        clinical_known=np.ones(3, dtype=bool),
        low=torch.full((3,), -1),
    )


def seen(cohort: Cohort, modality: Any) -> list[float | None]:
    """The number in each case's image."""
    values = [float(image.flatten()[0]) for image in cohort.images[modality]]
    return [values[row] if row >= 0 else None for row in cohort.rows[modality].tolist()]


def test_a_pile_keeps_every_case_with_its_images() -> None:
    pile = cohorts.join([small(10, 0), small(20, 1)])
    assert seen(pile, "us") == [11, 10, None, 21, 20, None]
    assert seen(pile, "mri") == [None, 10, 11, None, 20, 21]
    assert pile.labels.tolist() == [0, 0, 0, 1, 1, 1]
    some = cohorts.take(pile, np.array([4, 0]))
    assert (seen(some, "us"), seen(some, "mri")) == ([20, 11], [20, None])
    assert some.labels.tolist() == [1, 0]
    assert some.clinical[:, 0].tolist() == [20, 10]


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_wrong_pictures_are_those_of_other_cases(seed: int) -> None:
    pile = cohorts.join([small(10, 0), small(20, 1), small(30, 1)])
    other = cohorts.swapped(pile, "us", seed)
    before, after = seen(pile, "us"), seen(other, "us")
    assert all((a is None) == (b is None) for a, b in zip(before, after, strict=True))
    assert all(a is None or a != b for a, b in zip(before, after, strict=True))
    assert sorted(filter(None, before)) == sorted(filter(None, after))
    assert seen(other, "mri") == seen(pile, "mri")


def test_a_model_says_nothing_of_a_case_of_which_it_sees_nothing() -> None:
    plan = cohorts.demo_plan(3, rounds=1, local_epochs=1)
    pile = cohorts.join([small(0.1, 0), small(0.2, 1)])
    model = cohorts.train(plan, pile)
    fused = cohorts.scored(model, pile)
    ultrasound = cohorts.scored(model, pile, ("us",))
    assert ultrasound[[2, 5]].tolist() == [512, 512]
    assert ultrasound[[0, 3]].tolist() == fused[[0, 3]].tolist()  # they have nothing else
    assert ultrasound[[1, 4]].tolist() != fused[[1, 4]].tolist()
    kept = cohorts.judged(model, pile, ("us", "mri"))
    assert kept["scores"] == fused.tolist()
    assert kept["combinations"] == ["us", "us+mri", "mri"] * 2
    assert kept["complete_labels"] == []
    assert json.loads(json.dumps(kept)) == kept


def test_a_plan_is_the_demos_with_changes() -> None:
    plan = cohorts.demo_plan(3, rounds=2, alignment="contrastive")
    assert (plan.seed, plan.rounds, plan.alignment) == (3, 2, "contrastive")
    assert (plan.image_size, plan.volume_size, plan.batch_size) == (64, 32, 6)


@pytest.mark.parametrize("arm", ablation.ARMS, ids=lambda arm: arm.name)
def test_every_arm_is_a_valid_run(arm: Any) -> None:
    plan, default = cohorts.demo_plan(1, **arm.changes), cohorts.demo_plan(1)
    assert (plan != default) == bool(arm.changes)
    assert len({other.name for other in ablation.ARMS}) == len(ablation.ARMS)


# --- tables --------------------------------------------------------------------------------------


def line(seed: int, shift: float) -> dict[str, Any]:
    """A result as a benchmark keeps it; ``shift`` says how good the scores are."""
    rng = np.random.default_rng(seed)
    labels = np.tile([0, 1, 0], 40)
    kinds = np.tile(["mg+us+mri", "mg", "us+mri", "us"], 30)

    def scores(shift: float, labels: np.ndarray = labels) -> list[int]:
        noise = np.random.default_rng(seed).normal(size=len(labels))
        return np.clip(512 + 150 * (noise + shift * (labels - 0.5)), 1, 1023).astype(int).tolist()

    whole = labels[kinds == "mg+us+mri"]
    names = ["+".join(subset) for subset in cohorts.subsets(cohorts.MODALITIES)]
    return {
        "arm": "?",
        "seed": seed,
        "labels": labels.tolist(),
        "combinations": kinds.tolist(),
        "scores": scores(shift),
        "complete": {name: scores(shift + 0.2 * i, whole) for i, name in enumerate(names)},
        "complete_labels": whole.tolist(),
        "wrong_us": scores(shift / 2),
        "without_us": scores(shift),
        "on default": scores(shift),
        "on shortcut": scores(shift / 2),
        "home": scores(shift),
        "home_labels": labels.tolist(),
        "seconds": float(rng.uniform(1, 2)),
    }


def test_ablation_tables_hold_what_the_lines_say() -> None:
    results = {
        arm.name: [line(s, 1 + 0.1 * i) for s in (1, 2)] for i, arm in enumerate(ablation.ARMS)
    }
    text = ablation.main_table(results).splitlines()
    assert len(text) == 2 + len(ablation.ARMS)
    first = results["default"][0]
    nats = log_loss(first["labels"], np.array(first["scores"]) / 1024)
    assert ablation.log_loss(first).value == pytest.approx(nats)
    better = next(row for row in text if row.startswith("| modality dropout"))
    gaps = [
        roc_auc_score(a["labels"], a["scores"]) - roc_auc_score(b["labels"], b["scores"])
        for a, b in zip(results["modality dropout .3"], results["default"], strict=True)
    ]
    assert min(gaps) > 0
    shown = float(better.split("|")[3].split("(")[0])
    assert min(gaps) - 0.001 <= shown <= max(gaps) + 0.001
    chosen = ablation.accompanied(first)
    kinds = np.array(first["combinations"])
    assert set(kinds[chosen]) == {"mg+us+mri", "us+mri"}
    assert "wrong" in ablation.wrong_table(results)
    assert len(ablation.subset_table(results).splitlines()) == 2 + len(ablation.ARMS)


def test_only_seeds_that_every_arm_has_are_shown() -> None:
    lines = [
        {"arm": arm.name, "seed": seed}
        for arm in ablation.ARMS
        for seed in (1, 2, 3)
        if not (arm.name == "MRI only" and seed == 2)
    ]
    found = ablation.complete_seeds(lines, range(1, 5))
    assert {tuple(a["seed"] for a in own) for own in found.values()} == {(1, 3)}


def test_discrimination_tables_judge_against_their_bars() -> None:
    lines = {("compact", s): line(s, 2.0) for s in (1, 2)}
    lines |= {("paper", s): line(s, 1.0) for s in (1, 2)}
    assert "bar -.01: met" in discrimination.presets_table(lines, (1, 2))
    lines |= {("compact", s): line(s, 0.0) for s in (1, 2)}
    assert "bar -.01: missed" in discrimination.presets_table(lines, (1, 2))
    rows = discrimination.subsets_table(lines, (1, 2)).splitlines()
    assert rows[4].split("|")[3].strip() == ""  # MRI alone
    assert rows[-1].split("|")[3].strip() == "mri"  # the best single one by design
    assert "met" in rows[-1]
    lines |= {(arm, s): line(s, 1.0) for arm in discrimination.SCANNER for s in (1, 2)}
    text = discrimination.scanner_table(lines, (1, 2)).splitlines()
    assert all("missed" in row for row in text[2:])  # wrong pictures are worth half
    assert all(row.split("|")[7].strip() == "+0.000 (+0.000 to +0.000)" for row in text[2:])
