"""A simulated federation: scores as four centres would send them, and a run's folder of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from her2_common.calibration import grid_log_odds
from her2_common.cases import MODALITIES
from her2_common.metrics import GRID, ScoreHistogram, quantise
from her2_common.temperature import LogitMap, fit_temperature
from her2_server.closing import Settled, pooled_fused, temperature_record
from her2_server.evaluation import evaluate

SITES: dict[str, dict[str, Any]] = {
    "north-hospital": {
        "cases": 420,
        "prevalence": 0.34,
        "mix": {
            "mg": 2,
            "us": 3,
            "mri": 3,
            "mg+us": 20,
            "mg+mri": 12,
            "us+mri": 15,
            "mg+us+mri": 45,
        },
    },
    "river-clinic": {"cases": 310, "prevalence": 0.30, "mix": {"mg": 15, "us": 25, "mg+us": 60}},
    "mri-collection": {"cases": 380, "prevalence": 0.33, "mix": {"mri": 100}},
    "valley-practice": {"cases": 90, "prevalence": 0.18, "mix": {"us": 85, "mg+us": 15}},
}
SIGNAL = {"mg": 0.9, "us": 1.0, "mri": 1.3}
UPDATE_BYTES = 1_400_000
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}


def score(labels: np.ndarray, signal: float, rng: np.random.Generator) -> np.ndarray:
    """Probabilities of which the log odds are a little too extreme."""
    evidence = rng.normal(size=len(labels)) + signal * (labels - 0.5)
    return 1 / (1 + np.exp(-1.25 * (signal * evidence - 0.7)))


def scores_of_site(site: str, n: int, seed: int) -> dict[str, ScoreHistogram]:
    """The histograms a site sends for ``n`` cases."""
    facts, rng = SITES[site], np.random.default_rng(seed)
    names, weights = zip(*facts["mix"].items(), strict=True)
    chosen = rng.choice(len(names), size=n, p=np.array(weights) / sum(weights))
    labels = (rng.random(n) < facts["prevalence"]).astype(int)
    result: dict[str, ScoreHistogram] = {}
    for index, name in enumerate(names):
        if not (cases := labels[chosen == index]).size:
            continue
        present = name.split("+")
        together = float(np.sqrt(sum(SIGNAL[m] ** 2 for m in present)))
        result[f"fused|{name}"] = ScoreHistogram.from_scores(score(cases, together, rng), cases)
        for modality in present:
            one = ScoreHistogram.from_scores(score(cases, SIGNAL[modality], rng), cases)
            key = f"single|{modality}"
            result[key] = result.get(key, ScoreHistogram.empty()) + one
    return result


def simulated_scores(split: str, seed: int = 5) -> dict[str, dict[str, ScoreHistogram]]:
    """Site name -> key -> histogram, for one split of the simulated federation."""
    return {
        site: scores_of_site(site, round(facts["cases"] * SHARES[split]), seed + index)
        for index, (site, facts) in enumerate(SITES.items())
    }


def calibrated(
    scores: dict[str, dict[str, ScoreHistogram]], fit: LogitMap
) -> dict[str, dict[str, ScoreHistogram]]:
    """The scores as a model gives them that has the map of log odds in its weights."""
    to = quantise(expit(fit.slope * grid_log_odds() + fit.intercept))

    def moved(histogram: ScoreHistogram) -> ScoreHistogram:
        return ScoreHistogram(
            *(
                np.bincount(to, weights=counts, minlength=GRID + 1).astype(np.int64)
                for counts in (histogram.negatives, histogram.positives)
            )
        )

    return {site: {key: moved(h) for key, h in of.items()} for site, of in scores.items()}


def _site(name: str, index: int, rounds: int) -> dict[str, Any]:
    facts = SITES[name]
    n, mix = facts["cases"], facts["mix"]
    cases = {split: round(n * share) for split, share in SHARES.items()}
    positives: dict[str, int | None] = {
        split: round(count * facts["prevalence"]) for split, count in cases.items()
    }
    if name == "valley-practice":
        positives.update(val=None, test=None)
        cases["val"] = None  # type: ignore[assignment]
    combinations = {key: round(n * share / sum(mix.values())) for key, share in mix.items()}
    modalities: dict[str, int | None] = {
        m: sum(c for key, c in combinations.items() if m in key.split("+")) for m in MODALITIES
    }
    groups = [m for m in MODALITIES if modalities[m]]
    faults = {"valley-practice": (1, 0), "river-clinic": (0, 1)}
    refused, missing = faults.get(name, (0, 0))
    update = UPDATE_BYTES * len(groups)
    kinds = {
        "describe": {"sent": 1_912, "received": 702},
        "train": {"sent": update * (rounds - missing), "received": update * rounds},
        "val": {"sent": 24_310, "received": update},
        "test": {"sent": 26_144, "received": update},
        "profile": {"sent": 151_800 * len(groups), "received": update},
    }
    hidden = {key for key, count in combinations.items() if count < 10}
    for modality in MODALITIES:
        if any(modality in key.split("+") for key in hidden):
            modalities[modality] = None
    return {
        "name": name,
        "status": "incomplete" if refused or missing else "ok",
        "flow": {"in_table": n + 17 + 9 * index, "accepted": n, "left_out": 17 + 9 * index},
        "cases": cases,
        "positives": positives,
        "modalities": modalities,
        "combinations": {key: None if key in hidden else c for key, c in combinations.items()},
        "groups": [*groups, "clinical", "head"],
        "bytes": kinds,
        "received_bytes": sum(kind["received"] for kind in kinds.values()),
        "sent_bytes": sum(kind["sent"] for kind in kinds.values()),
        "rounds_accepted": rounds - refused - missing,
        "rounds_refused": refused,
        "rounds_missing": missing,
        "train_seconds": 4.2 * rounds * n / 300,
    }


def _round(number: int, rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    progress = 1 - np.exp(-number / 4)
    scale = 0.97 * (1 - np.exp(-(number - 1) / 2.5)) + 0.02
    scores = {
        site: {
            key: ScoreHistogram.from_scores(*_weaker(histogram, scale, rng))
            for key, histogram in histograms.items()
            if key.startswith("fused|")
        }
        for site, histograms in simulated_scores("val").items()
    }
    validation = evaluate(scores, 0.5)
    sites = {}
    for name in SITES:
        status, reason = "accepted", None
        if name == "valley-practice" and number == 4:
            status, reason = "refused", "norm"
        if name == "river-clinic" and number == 7:
            status, reason = "missing", "timeout"
        groups = len({m for key in SITES[name]["mix"] for m in key.split("+")})
        sent = UPDATE_BYTES * groups if status != "missing" else 0
        sites[name] = {
            "status": status,
            "reason": reason,
            "loss": None if status == "missing" else float(2.6 - 0.9 * progress),
            "seconds": None if status == "missing" else float(3 + rng.random()),
            "sent_bytes": sent,
            "received_bytes": UPDATE_BYTES * groups,
        }
    return {
        "round": number,
        "seconds": {"total": 6.1, "train": 4.4, "aggregate": 0.2, "checkpoint": 0.1, "wait": 1.4},
        "loss": float(2.6 - 0.9 * progress + 0.03 * rng.normal()),
        "validation": {"auc": validation["auc"], "n": validation["n"]},
        "sites": sites,
    }


def _weaker(
    histogram: ScoreHistogram, scale: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a histogram, with noise: what the same model said before it had learned."""
    bins = np.arange(len(histogram.negatives))
    scores = np.concatenate(
        [np.repeat(bins, histogram.negatives), np.repeat(bins, histogram.positives)]
    )
    labels = np.repeat([0, 1], [histogram.n - histogram.m, histogram.m])
    noisy = scale * scores / bins[-1] + (1 - scale) * rng.random(len(scores))
    return noisy, labels


def write_simulated_run(folder: Path, rounds: int = 12) -> Path:
    """summary.json and metrics.jsonl of a run that went as the simulation says."""
    folder.mkdir(parents=True, exist_ok=True)
    threshold = 0.34375
    before = simulated_scores("val")
    fit = fit_temperature(pooled_fused(before))
    validation, test = calibrated(before, fit), calibrated(simulated_scores("test"), fit)
    settled = Settled({}, fit, {}, before)
    sites = [_site(name, index, rounds) for index, name in enumerate(SITES)]
    summary = {
        "version": "0.1.0",
        "run": {
            "name": "demo",
            "started": "2026-01-15T09:12:04Z",
            "finished": "2026-01-15T09:14:31Z",
            "rounds": rounds,
            "rounds_done": rounds,
            "final_round": rounds,
            "preset": "compact",
            "label": "reference",
            "seed": 7,
            "parameters": 1_048_312,
            "image_size": 64,
            "volume_size": 32,
            "strategy": "fedavg",
            "synthetic": True,
            "weights_sha256": "5c" * 32,
            "plan": {"min_cell": 10},
            "config_sha256": "3f" * 32,
            "bundle_sha256": "a7" * 32,
            "command": "her2-deploy demo --seed 7",
            "python": "3.11.7",
            "torch": "2.13.0",
            "flwr": "1.41.0",
        },
        "sites": sites,
        "threshold": {"value": threshold, "rule": "youden", "from": "validation"},
        "temperature": temperature_record(settled, validation, test, 10),
        "novelty": {
            "mg": {"limit": None, "reason": "fewer than 99 validation cases", "flagged": None},
            "us": {"limit": 0.6875, "reason": None, "flagged": None},
            "mri": {"limit": 0.71875, "reason": None, "flagged": 12},
        },
        "validation": evaluate(validation, threshold),
        "test": evaluate(test, threshold),
        "bytes": {
            "received_by_sites": sum(site["received_bytes"] for site in sites),
            "sent_by_sites": sum(site["sent_bytes"] for site in sites),
        },
        "seconds": {
            "total": 147.0,
            "wait": 31.2,
            "train": 98.4,
            "evaluate": 9.1,
            "aggregate": 3.3,
            "checkpoint": 1.6,
        },
    }
    (folder / "summary.json").write_text(json.dumps(summary, allow_nan=False), encoding="utf-8")
    lines = [json.dumps(_round(n + 1, rounds), allow_nan=False) for n in range(rounds)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def make_scores() -> Callable[..., dict[str, dict[str, ScoreHistogram]]]:
    """``simulated_scores``."""
    return simulated_scores


@pytest.fixture(scope="session")
def simulated_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with summary.json and metrics.jsonl; tests copy it before they write."""
    return write_simulated_run(tmp_path_factory.mktemp("run") / "demo")
