"""Which strategy, and how much compression? Whole federations in this process, one an arm and seed.

Three scenarios, all from the synthetic cohort at the demo's sizes:

- iid: the cases of all four centres are dealt to four sites of equal size;
- default: the four centres as they are: other modalities, scanners, sizes and prevalences;
- shift: the cohort ``shortcut``, in which the scanner tells the label at three centres and misleads
  at one, and two centres keep one in three of their positives, the other two of their negatives.

Held out are all cases of a second cohort, drawn and dealt alike: each site's next patients. An arm
is judged twice: ``shared`` is the AUC of the run's weights over all held-out cases (empty for
private groups, of which there are no shared weights); ``own`` compares only cases of one site, each
scored by what that site would use: its personal model, its private groups, else the shared weights
(stratified AUC, weighted by pairs). Differences to fedavg are paired (DeLong); seeds are combined
by random effects (see evidence.py).

Two more arms are no federations: ``alone``, each site on its own training cases; ``pooled``, all
training cases on one pile, which no federation may do.

    python tests/benchmarks/bench_strategies.py [--arms fedavg,scaffold] [--scenarios iid,default]
        [--seeds 3] [--cases 400] [--rounds 12] [--jobs 1] [--cache DIR] [--tables]

Results are kept in DIR/strategies-<cases>-<rounds>.jsonl; a broken-off run goes on where it was.
``--tables`` prints what is there, and trains nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from cohorts import BESIDE, cached, cohort_of, demo_plan, join, scored, train
from evidence import (
    Figure,
    Job,
    auc_figure,
    combined,
    difference,
    read_lines,
    run_jobs,
    shown,
    table,
)

from her2_client.app import make_app
from her2_client.cache import Cache, open_cache
from her2_client.cache_writer import CacheWriter
from her2_client.cohort import Cohort, usable_modalities
from her2_client.contribution import personal_weights, remembered, start_of
from her2_client.engine import make_deterministic, ready_model
from her2_client.keys import public_key
from her2_client.site import Site
from her2_client.site_memory import Memory
from her2_common.cases import LABELS, MODALITIES, SPLITS, Modality
from her2_common.clinical import HER2_LEVELS
from her2_common.config import SiteConfig
from her2_common.metrics import GRID, Estimate
from her2_common.response import delong
from her2_common.wire import TaskOrder
from her2_deploy.demo import IMAGE_SIZE, VOLUME_SIZE, federation_text
from her2_deploy.simulation import LocalGrid, LocalNode
from her2_server import checkpoint
from her2_server.coordinator import Coordinator
from her2_server.run_folder import RunFolder

DEFAULT: Final = "fedavg"
SCENARIOS: Final = ("iid", "default", "shift")


def step(name: str, **values: Any) -> dict[str, Any]:
    return {"strategy": {"step": {"name": name, **values}}}


def local(name: str, **values: Any) -> dict[str, Any]:
    return {"strategy": {"local": {"name": name, **values}}}


def combine(name: str) -> dict[str, Any]:
    return {"strategy": {"combine": {"name": name}}}


def personal(name: str) -> dict[str, Any]:
    return {"strategy": {"personal": {"name": name}}}


ARMS: Final[dict[str, dict[str, Any]]] = {
    DEFAULT: {},
    "fedprox .01": local("fedprox", mu=0.01),
    "fedprox 1": local("fedprox", mu=1.0),
    "fedavgm .5": step("fedavgm", momentum=0.5),
    "fedavgm .9": step("fedavgm", momentum=0.9),
    "fedadam .001": step("fedadam", server_learning_rate=1e-3),
    "fedadam .01": step("fedadam", server_learning_rate=1e-2),
    "fedyogi .001": step("fedyogi", server_learning_rate=1e-3),
    "fedyogi .01": step("fedyogi", server_learning_rate=1e-2),
    "scaffold": local("scaffold"),
    "median": combine("median"),
    "trimmed mean": combine("trimmed-mean"),
    "norm clip": combine("norm-clip"),
    "private us": {"strategy": {"private_groups": ["us"]}},
    "ditto": personal("ditto"),
    "fine-tuning": personal("fine-tuning"),
    "int8": {"compression": {"up": "int8", "down": "int8"}},
    "int8, keep .1": {"compression": {"up": "int8", "keep": 0.1, "down": "int8"}},
    "int8, keep .25": {"compression": {"up": "int8", "keep": 0.25, "down": "int8"}},
    "int8, keep .4": {"compression": {"up": "int8", "keep": 0.4, "down": "int8"}},
    "int4 up, int8 down": {"compression": {"up": "int4", "down": "int8"}},
    "int4": {"compression": {"up": "int4", "down": "int4"}},
    "fedavgm .5, int4": {
        **step("fedavgm", momentum=0.5),
        "compression": {"up": "int4", "down": "int4"},
    },
    "fedavgm .5, int4 up, int8 down": {
        **step("fedavgm", momentum=0.5),
        "compression": {"up": "int4", "down": "int8"},
    },
    "fedavgm .5, int8, keep .4": {
        **step("fedavgm", momentum=0.5),
        "compression": {"up": "int8", "keep": 0.4, "down": "int8"},
    },
    "fedavgm .9, int8, keep .4": {
        **step("fedavgm", momentum=0.9),
        "compression": {"up": "int8", "keep": 0.4, "down": "int8"},
    },
}
"""Arm -> what it changes in a run of plain FedAvg, all float32."""

ALONE, POOLED = "alone", "pooled"
UNFEDERATED: Final = (ALONE, POOLED)


def run_of(arm: str) -> dict[str, Any]:
    """The strategy and the compression of an arm, as keys of ``run``."""
    changes = ARMS[arm]
    strategy = {"step": {"name": "fedavg"}} | changes.get("strategy", {})
    return {"strategy": strategy, "compression": changes.get("compression", {})}


# --- the sites of a scenario ----------------------------------------------------------------------

Assign = Callable[[np.random.Generator, int, int], int | None]
"""(generator, site, label) -> the site (0 to 3) that gets a case, None if nobody does."""


def evenly(rng: np.random.Generator, _site: int, _label: int) -> int:
    return int(rng.integers(4))


def skewed(rng: np.random.Generator, site: int, label: int) -> int | None:
    rare = 1 if site % 2 else 0
    return site if label != rare or rng.random() < 1 / 3 else None


def sites_of(scenario: str, cases: int, seed: int, cache: Path) -> dict[str, SiteConfig]:
    """The four sites of a scenario, made once under ``cache``."""
    if scenario == "default":
        return cached(cache, cases, "default", seed)
    source = cached(cache, cases, "default" if scenario == "iid" else "shortcut", seed)
    root = cache / f"{scenario}-{cases}-{seed}"
    dealt = {
        name: config.model_copy(
            update={"data": config.data.model_copy(update={"cache": root / name})}
        )
        for name, config in source.items()
    }
    if not (root / "whole").exists():  # written last, as in cohorts.cached
        shutil.rmtree(root, ignore_errors=True)
        deal(list(source.values()), list(dealt.values()), ASSIGN[scenario], seed)
        (root / "whole").touch()
    return dealt


ASSIGN: Final[dict[str, Assign]] = {"iid": evenly, "shift": skewed}


def deal(
    source: Sequence[SiteConfig], target: Sequence[SiteConfig], assign: Assign, seed: int
) -> None:
    """Write the caches of ``target`` from the labelled cases of ``source``; splits stay."""
    rng = np.random.default_rng([seed, 4])
    caches = [open_cache(config.data.cache) for config in source]
    given: list[list[tuple[Cache, int]]] = [[] for _ in target]
    for number, cache in enumerate(caches):
        for case in range(len(cache)):
            label = int(cache.labels["reference"][case])
            place = assign(rng, number, label) if label >= 0 else None
            if place is not None:
                given[place].append((cache, case))
    for config, cases in zip(target, given, strict=True):
        with CacheWriter(
            config.data.cache, site=config.name, image_size=IMAGE_SIZE, volume_size=VOLUME_SIZE
        ) as writer:
            writer.begin()
            for cache, case in cases:
                copy_case(writer, cache, case)
            writer.publish()


def copy_case(writer: CacheWriter, cache: Cache, case: int) -> None:
    key = cache.pseudonyms[case]
    rows = {
        m: writer.put(f"{key}/{m}", m, {}, np.array(cache.arrays[m][cache.rows[m][case]]))["row"]
        for m in MODALITIES
        if cache.rows[m][case] >= 0
    }
    known = {kind: int(cache.labels[kind][case]) for kind in LABELS}
    levels = {kind: int(cache.levels[kind][case]) for kind in LABELS}
    writer.add_case(
        pseudonym=key,
        split=SPLITS[cache.split[case]],
        clinical=tuple(None if np.isnan(v) else float(v) for v in cache.clinical[case]),
        labels={kind: None if v < 0 else v for kind, v in known.items()},
        levels={kind: None if v < 0 else HER2_LEVELS[v] for kind, v in levels.items()},
        rows=rows,
    )


# --- one arm --------------------------------------------------------------------------------------


def measured(
    arm: str, scenario: str, seed: int, cases: int, rounds: int, cache: Path
) -> dict[str, Any]:
    """Conduct one federation and keep its scores of the held-out cases."""
    make_deterministic(1)
    configs = sites_of(scenario, cases, seed, cache)
    held = {
        n: cohort_of(c, None) for n, c in sites_of(scenario, cases, seed + BESIDE, cache).items()
    }
    if arm in UNFEDERATED:
        return unfederated(arm, configs, held, seed, rounds)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run, sites = conducted(Path(folder), configs, run_of(arm), seed, rounds)
        seconds = time.process_time() - began
        last = checkpoint.latest(run.rounds)
        shared = ready_model(run.load_config().run, last.groups, next(iter(sites.values())).device)
        result: dict[str, Any] = {"labels": [], "site": [], "shared": [], "own": []}
        for name, cohort in held.items():
            model = ready_model(
                run.load_config().run, weights_of(sites[name], run, last), sites[name].device
            )
            result["labels"] += cohort.labels.tolist()
            result["site"] += [name] * len(cohort)
            result["shared"] += scored(shared, cohort).tolist()
            result["own"] += scored(model, cohort, able(sites[name])).tolist()
        lines = run.read_metrics()
    parts = [part for line in lines for part in line["sites"].values()]
    result["up"] = sum(part["sent_bytes"] for part in parts) / rounds
    result["down"] = sum(part["received_bytes"] for part in parts) / rounds
    return result | {"seconds": round(seconds, 1)}


def unfederated(
    arm: str,
    configs: Mapping[str, SiteConfig],
    held: Mapping[str, Cohort],
    seed: int,
    rounds: int,
) -> dict[str, Any]:
    """Models of the same plan without a federation; a pooled one is the same for all."""
    began = time.process_time()
    plan = demo_plan(seed, rounds=rounds)
    own = {name: cohort_of(config, "train") for name, config in configs.items()}
    able = {name: usable_modalities(own[name], c.policy.min_cases) for name, c in configs.items()}
    if arm == POOLED:
        models = dict.fromkeys(own, train(plan, join(list(own.values()))))
        able = dict.fromkeys(own, MODALITIES)
    else:
        models = {name: train(plan, c.restricted(able[name]), name) for name, c in own.items()}
    seconds = time.process_time() - began
    scores = {name: scored(models[name], cohort, able[name]) for name, cohort in held.items()}
    flat = [score for part in scores.values() for score in part.tolist()]
    return {
        "labels": [label for cohort in held.values() for label in cohort.labels.tolist()],
        "site": [name for name, cohort in held.items() for _ in range(len(cohort))],
        "shared": flat,
        "own": flat,
        "up": 0.0,
        "down": 0.0,
        "seconds": round(seconds, 1),
    }


def conducted(
    root: Path, configs: Mapping[str, SiteConfig], changes: dict[str, Any], seed: int, rounds: int
) -> tuple[RunFolder, dict[str, Site]]:
    """The folder of a finished run, and the sites as they were at its end."""
    keys = {name: public_key(c.superlink.private_key) for name, c in configs.items()}
    text = federation_text(keys, address="localhost:1", seed=seed, rounds=rounds)
    document = yaml.safe_load(text)
    document["run"] |= changes | {"pause_timeout": 1}  # a site with too few cases ends the arm
    file = root / "federation.yaml"
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    folder = RunFolder(root / "run")
    folder.create(file)
    sites, nodes = {}, {}
    for number, (name, config) in enumerate(configs.items(), start=11):
        site = sites[name] = Site(config.model_copy(update={"state": root / name}))
        nodes[number] = LocalNode(make_app(lambda _, site=site: site), keys[name])
    Coordinator(LocalGrid(nodes), folder).run()
    return folder, sites


def weights_of(site: Site, run: RunFolder, last: checkpoint.Checkpoint) -> dict[str, np.ndarray]:
    """What a site would use: its personal model, else the shared weights and its private groups."""
    config = run.load_config()
    order = TaskOrder(
        task="compare",
        run=config.name,
        run_id=last.state["run_id"],
        version="0",
        round=last.round,
        base=last.state["bases"].get(site.config.name, 0),
        split="test",
        plan=config.run,
    )
    memory = remembered(Memory(site.config.state), order)
    groups: dict[str, np.ndarray] = {group: last.groups[group] for group in site._groups()}
    start = start_of(order, groups, memory)
    return personal_weights(config.run, start, memory, site._trained) or start


def able(site: Site) -> list[Modality]:
    """The modalities that a site trains: it scores its patients from no others."""
    return [m for m in MODALITIES if m in site._groups()]


# --- tables ---------------------------------------------------------------------------------------

Lines = Sequence[dict[str, Any]]
"""The results of one arm, a seed each."""


def within(lines: Lines, others: Lines | None = None) -> Estimate | None:
    """The stratified AUC of ``own`` over the seeds, or its difference to another arm's."""
    figures = []
    for line, other in zip(lines, others or lines, strict=True):
        labels, site = np.array(line["labels"]), np.array(line["site"])
        found = []
        for name in sorted(set(line["site"])):
            chosen = site == name
            both = {"one": line["own"], "two": other["own"]}
            scores = {k: np.array(v)[chosen] / GRID for k, v in both.items()}
            part = delong.at_centre(scores, labels[chosen])
            found += [part] if part is not None else []
        whole = delong.stratified(found)
        if whole is None or whole.covariance is None:
            continue
        weight = np.array([1.0, -1.0]) if others is not None else np.array([1.0, 0.0])
        variance = max(float(weight @ whole.covariance @ weight), 0.0)
        figures.append(Figure(float(weight @ whole.auc), variance))
    return combined(figures) if figures else None


def scenario_table(results: Mapping[str, Lines]) -> str:
    """The arms of a scenario that have every seed that fedavg has."""
    rows = []
    for name, lines in results.items():
        base = [b for b in results[DEFAULT] if b["seed"] in {line["seed"] for line in lines}]
        private = name == ALONE or "private_groups" in ARMS.get(name, {}).get("strategy", {})
        shared = [auc_figure(line["shared"], line["labels"]) for line in lines]
        gaps = [
            difference(line["shared"], other["shared"], line["labels"])
            for line, other in zip(lines, base, strict=True)
        ]
        own = name == DEFAULT
        up, down = (np.mean([line[way] for line in lines]) / 1e6 for way in ("up", "down"))
        rows.append(
            [
                name,
                "" if private else shown(combined(shared)),
                "" if own or private else shown(combined(gaps), signed=True),
                shown(within(lines)),
                "" if own else shown(within(lines, base), signed=True),
                f"{up:.2f}",
                f"{down:.2f}",
                f"{np.mean([line['seconds'] for line in lines]):.0f}",
            ]
        )
    header = ["arm", "shared", "less fedavg", "own", "less fedavg"]
    return table([*header, "MB up a round", "MB down", "CPU s"], rows)


def chosen(text: str, known: Sequence[str], what: str) -> list[str]:
    names = [name.strip() for name in text.split(";")] if text else list(known)
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"--{what}: expected some of {'; '.join(known)}, got {unknown[0]!r}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", default="", help="with ; between them; default: all")
    parser.add_argument("--scenarios", default="", help="with ; between them; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cases", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "her2-map")
    parser.add_argument("--tables", action="store_true", help="of what is there; train nothing")
    options = parser.parse_args()
    arms = chosen(options.arms, [*ARMS, *UNFEDERATED], "arms")
    scenarios = chosen(options.scenarios, SCENARIOS, "scenarios")
    file = options.cache / f"strategies-{options.cases}-{options.rounds}.jsonl"
    seeds = range(1, options.seeds + 1)
    if not options.tables:
        jobs = []
        for seed in seeds:
            for scenario in scenarios:
                for draw in (seed, seed + BESIDE):  # here, so that no two processes make it
                    sites_of(scenario, options.cases, draw, options.cache)
                jobs += [
                    Job(
                        json.dumps([scenario, arm]),
                        seed,
                        (arm, scenario, seed, options.cases, options.rounds, options.cache),
                    )
                    for arm in dict.fromkeys([DEFAULT, *arms])
                ]
        run_jobs(jobs, measured, file, options.jobs)
    print(f"{options.cases} cases, {options.rounds} rounds of 2 epochs, AUC (95 % interval)")
    for scenario in scenarios:
        results: dict[str, Lines] = {}
        for arm in (*ARMS, *UNFEDERATED):
            name = json.dumps([scenario, arm])
            lines = [line for line in read_lines(file) if line["arm"] == name]
            if lines:
                results[arm] = sorted(lines, key=lambda line: line["seed"])
        if DEFAULT not in results:
            print(f"\n{scenario}: no seed of {DEFAULT} is finished")
            continue
        first = results[DEFAULT][0]
        held, seen = len(first["labels"]), [line["seed"] for line in results[DEFAULT]]
        print(f"\n{scenario}: seeds {seen}, {held} held-out cases in seed {seen[0]}")
        print(scenario_table(results))


if __name__ == "__main__":
    main()
