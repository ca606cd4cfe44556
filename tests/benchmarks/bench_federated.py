"""Is the federation worth it? Federated, pooled and local models on the synthetic cohort.

For each seed a cohort is drawn and ingested, and the same MAP model is trained three times with
the demo's settings:

- federated: the coordinator and four sites in one process, over the true wire path;
- pooled: all training cases on one pile, as many epochs, hence as many optimiser steps in all as
  the four sites take together;
- local: each centre alone, as many epochs.

All are judged on the test cases of all four centres together. A local model scores a case from
the modalities that its centre has; a case that has none of them gets 0.5, which is what such a
centre can say. In the null scenario nothing can be learnt: its interval must hold 0.5.

    python tests/benchmarks/bench_federated.py [--seeds 3] [--cases 1000] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from cohorts import cohort_of, join, pooled, prepare, scored, train

from her2_client.app import make_app
from her2_client.cohort import Cohort, usable_modalities
from her2_client.keys import public_key
from her2_client.site import Site, make_deterministic
from her2_common.cases import MODALITIES
from her2_common.config import FederationConfig, SiteConfig, load
from her2_common.metrics import GRID, Estimate, ScoreHistogram, auc_interval
from her2_common.model import MapModel
from her2_deploy.demo import federation_text
from her2_deploy.simulation import LocalGrid, LocalNode
from her2_server.coordinator import Coordinator
from her2_server.run_folder import RunFolder


def federated(root: Path, configs: dict[str, SiteConfig], seed: int) -> dict[str, Any]:
    """Conduct the demo's run in this process; returns its summary."""
    (root / "coordinator").mkdir()
    file = root / "coordinator" / "federation.yaml"
    keys = {name: public_key(c.superlink.private_key) for name, c in configs.items()}
    file.write_text(federation_text(keys, address="localhost:1", seed=seed), encoding="utf-8")
    folder = RunFolder(root / "run")
    folder.create(file)
    nodes = {}
    for number, site in enumerate(folder.load_config().sites, start=11):
        worker = Site(configs[site.name])
        nodes[number] = LocalNode(make_app(lambda _, worker=worker: worker), site.public_key)
    Coordinator(LocalGrid(nodes), folder).run()
    summary: dict[str, Any] = json.loads(folder.summary.read_text(encoding="utf-8"))
    return summary


def judged(model: MapModel, test: Cohort, modalities: tuple[Any, ...]) -> Estimate:
    """AUC over all test cases; those without any of ``modalities`` score 0.5."""
    scores = scored(model, test, modalities) / GRID
    estimate = auc_interval(ScoreHistogram.from_scores(scores, test.labels.numpy()))
    if estimate is None:
        raise SystemExit("the test cases hold one class only")
    return estimate


def one_seed(seed: int, cases: int, scenario: str) -> dict[str, Any]:
    """All models of one seed (in the null scenario the federated one alone)."""
    make_deterministic(1)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        configs = prepare(root, cases, scenario, seed)
        summary = federated(root, configs, seed)
        result: dict[str, Any] = {
            "seed": seed,
            "scenario": scenario,
            "test_cases": summary["test"]["n"],
            "federated": summary["test"]["auc"],
        }
        if scenario != "null":
            plan = load(FederationConfig, root / "run" / "federation.yaml").run
            test = pooled(configs.values(), "test")
            own = {name: cohort_of(config, "train") for name, config in configs.items()}
            model = train(plan, join(list(own.values())))
            result["pooled"] = judged(model, test, MODALITIES).as_dict()
            result["local"] = {}
            for name, cohort in own.items():
                able = usable_modalities(cohort, configs[name].policy.min_cases)
                model = train(plan, cohort.restricted(able), name)
                result["local"][name] = judged(model, test, able).as_dict()
    result["seconds"] = round(time.perf_counter() - started, 1)
    return result


def shown(estimate: dict[str, float]) -> str:
    return f"{estimate['estimate']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    jobs = [(seed, options.cases, "default") for seed in range(1, options.seeds + 1)]
    jobs.append((1, options.cases, "null"))
    workers = min(os.cpu_count() or 1, len(jobs))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        results = []
        for result in pool.map(one_seed, *zip(*jobs, strict=True)):
            print(f"done: {json.dumps(result)}", file=sys.stderr, flush=True)
            results.append(result)
    if options.json:
        print(json.dumps(results, indent=1))
        return
    gaps, gains = [], []
    print("test AUC over all four centres (95 % interval), synthetic data")
    for result in results:
        print(f"seed {result['seed']}, {result['scenario']}, {result['test_cases']} test cases")
        print(f"  federated          {shown(result['federated'])}")
        if "pooled" not in result:
            holds = result["federated"]["low"] <= 0.5 <= result["federated"]["high"]
            print(f"  interval holds .5  {'yes' if holds else 'NO'}")
            continue
        print(f"  pooled             {shown(result['pooled'])}")
        for name, estimate in result["local"].items():
            print(f"  {name} alone     {shown(estimate)}")
        mean = statistics.mean(e["estimate"] for e in result["local"].values())
        gaps.append(result["pooled"]["estimate"] - result["federated"]["estimate"])
        gains.append(result["federated"]["estimate"] - mean)
        print(f"  mean of local      {mean:.3f}")
        print(f"  {result['seconds']:.0f} s")
    federated_mean = statistics.mean(
        r["federated"]["estimate"] for r in results if r["scenario"] == "default"
    )
    print(f"federated, mean of seeds     {federated_mean:.3f}   (bar: at least .80)")
    print(f"pooled minus federated       {statistics.mean(gaps):+.3f}  (bar: at most .02)")
    print(f"federated minus local mean   {statistics.mean(gains):+.3f}  (bar: above 0)")


if __name__ == "__main__":
    sys.exit(main())
