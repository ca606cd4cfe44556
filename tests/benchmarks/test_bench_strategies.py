"""Dealing cases to sites, and how arms are compared."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from her2_common.config import RunConfig


def module(name: str) -> ModuleType:
    """A script of this folder, under the name by which its neighbours import it."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


evidence, cohorts = module("evidence"), module("cohorts")
strategies = module("bench_strategies")
ARMS, within = strategies.ARMS, strategies.within


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_run(arm: str) -> None:
    plan = RunConfig.model_validate(strategies.run_of(arm))
    assert (plan == RunConfig()) == (arm == "fedavgm .5")  # the default
    plain = (plan.strategy.step.name, plan.strategy.local.name) == ("fedavg", "plain")
    assert plain or arm.startswith("fed") or arm == "scaffold"


def test_cases_are_dealt_evenly_wherever_they_come_from() -> None:
    rng = np.random.default_rng(0)
    counts = Counter(strategies.evenly(rng, 0, case % 2) for case in range(8000))
    assert sorted(counts) == [0, 1, 2, 3]
    assert all(abs(n - 2000) < 150 for n in counts.values())


@pytest.mark.parametrize("site", range(4))
def test_a_shifted_site_keeps_a_third_of_one_class(site: int) -> None:
    rng = np.random.default_rng(site)
    kept = {label: [strategies.skewed(rng, site, label) for _ in range(6000)] for label in (0, 1)}
    rare = site % 2
    assert set(kept[1 - rare]) == {site}
    assert sum(place == site for place in kept[rare]) == pytest.approx(2000, abs=150)


def line(seed: int, arm: float) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(120) < 0.4).astype(int)
    site = np.repeat(["a", "b"], 60)
    # Site b scores everything higher: within a site that changes nothing.
    scores = np.clip(300 + 200 * arm * labels + 100 * rng.normal(size=120), 0, 700)
    scores = np.rint(scores + 300 * (site == "b")).astype(int)
    return {
        "seed": seed,
        "labels": labels.tolist(),
        "site": site.tolist(),
        "shared": scores.tolist(),
        "own": scores.tolist(),
        "up": 1e6,
        "down": 2e6,
        "seconds": 3.0,
    }


def test_own_compares_cases_of_one_site_only() -> None:
    one = line(1, 1.0)
    labels, site, own = (np.array(one[key]) for key in ("labels", "site", "own"))
    areas, pairs = [], []
    for name in ("a", "b"):
        chosen = site == name
        areas.append(roc_auc_score(labels[chosen], own[chosen]))
        pairs.append(labels[chosen].sum() * (1 - labels[chosen]).sum())
    found = within([one])
    assert found is not None
    assert found.estimate == pytest.approx(np.average(areas, weights=pairs))
    assert found.estimate > roc_auc_score(labels, own) + 0.05


def test_an_arm_stands_beside_the_same_seeds_of_fedavg() -> None:
    results = {"fedavg": [line(1, 0.2), line(2, 0.2)], "ditto": [line(2, 2.0)]}
    gap = within(results["ditto"], results["fedavg"][1:])
    assert gap is not None
    assert gap.low > 0
    text = strategies.scenario_table(results)
    assert len(text.splitlines()) == 4
    assert f"{gap.estimate:+.3f}" in text
