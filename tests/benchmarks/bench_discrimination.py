"""Three questions about discrimination, on synthetic data, each with its bar.

- presets: is ``compact`` as good as ``paper``, at 64 pixels and 32 voxels and for as many epochs?
  ``paper`` has its published learning rate and batch. Bar: compact at least paper less .01.
- subsets: is a subset of the modalities ever worse than its best single one? On the held-out cases
  that have all three, of which the compact model is shown a part. Bar: worse by at most .02.
- scanner: the cohort ``shortcut`` is ``default`` case for case, but at centres A, C and D the
  scanner goes with the label, and at centre B, which is left out of the training, it goes against
  it. How much does the model lose at B? Bar: at most .03. The loss has two parts: what the other
  scanner's pictures cost a model that never had a reason to look at the scanner, and what it costs
  to have learnt the scanner.

    python tests/benchmarks/bench_discrimination.py [--part presets|subsets|scanner] [--seeds 3]
        [--cases 1000] [--rounds 12] [--jobs 1] [--cache DIR] [--tables]

Results are kept in DIR/discrimination-<cases>-<rounds>.jsonl; a broken-off run goes on where it
was. ``--tables`` prints what is there and trains nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from cohorts import (
    BESIDE,
    cached,
    demo_plan,
    held_out,
    join,
    judged,
    pooled,
    scored,
    subsets,
    train,
)
from evidence import (
    Job,
    auc_figure,
    combined,
    difference,
    read_lines,
    run_jobs,
    shown,
    table,
)

from her2_client.cohort import Cohort
from her2_client.site import make_deterministic
from her2_common.cases import MODALITIES
from her2_common.metrics import Estimate
from her2_deploy.synth.cohort import REVERSED_CENTRE, Scenario

Part = Literal["presets", "subsets", "scanner"]

PRESETS: Final[dict[str, dict[str, Any]]] = {
    "compact": {},
    "paper": {"preset": "paper", "learning_rate": 1e-4, "batch_size": 12},
}
"""Each with the rate and batch it was designed for: the demo's, and the published ones."""

SCANNER: Final[dict[str, tuple[Scenario, dict[str, Any]]]] = {
    "default": ("default", {"image_noise": 0.0}),
    "shortcut": ("shortcut", {"image_noise": 0.0}),
    "default, noise": ("default", {}),
    "shortcut, noise": ("shortcut", {}),
}

held_out_once = lru_cache(maxsize=1)(held_out)


def preset_scores(name: str, seed: int, cases: int, rounds: int, cache: Path) -> dict[str, Any]:
    """Train a preset on the training cases of all centres; judge it on the held-out ones."""
    make_deterministic(1)
    started = time.perf_counter()
    cohort = pooled(cached(cache, cases, "default", seed).values(), "train")
    model = train(demo_plan(seed, rounds=rounds, **PRESETS[name]), cohort)
    result = judged(model, held_out_once(cache, cases, "default", seed), MODALITIES)
    return {**result, "seconds": round(time.perf_counter() - started, 1)}


@lru_cache(maxsize=2)
def left_out(cache: Path, cases: int, scenario: Scenario, seed: int) -> Cohort:
    """All cases of the centre that no model of the scanner part has seen."""
    both = [cached(cache, cases, scenario, number) for number in (seed, seed + BESIDE)]
    return pooled([configs[REVERSED_CENTRE] for configs in both], None)


def scanner_scores(name: str, seed: int, cases: int, rounds: int, cache: Path) -> dict[str, Any]:
    """Train on all centres but one; judge there on either scanner's pictures, and at home."""
    make_deterministic(1)
    started = time.perf_counter()
    scenario, changes = SCANNER[name]

    def at_home(number: int, *splits: Any) -> Cohort:
        configs = cached(cache, cases, scenario, number)
        return pooled([c for site, c in configs.items() if site != REVERSED_CENTRE], *splits)

    model = train(demo_plan(seed, rounds=rounds, **changes), at_home(seed, "train"))
    home = join([at_home(seed, "val", "test"), at_home(seed + BESIDE, None)])
    away = {
        shown_in: left_out(cache, cases, shown_in, seed) for shown_in in ("default", "shortcut")
    }
    if not np.array_equal(away["default"].labels, away["shortcut"].labels):
        raise SystemExit("expected the same cases in either scenario, got others")
    return {
        "labels": away["default"].labels.tolist(),
        "on default": scored(model, away["default"]).tolist(),
        "on shortcut": scored(model, away["shortcut"]).tolist(),
        "home": scored(model, home).tolist(),
        "home_labels": home.labels.tolist(),
        "seconds": round(time.perf_counter() - started, 1),
    }


# --- tables --------------------------------------------------------------------------------------

Lines = dict[tuple[str, int], dict[str, Any]]
"""Results by arm and seed."""


def verdict(estimate: Estimate, bar: float) -> str:
    """Whether ``estimate`` is at least ``bar``, and whether its whole interval is."""
    if estimate.estimate < bar:
        return "missed"
    return "met" if estimate.low >= bar else "met, interval reaches below"


def presets_table(lines: Lines, seeds: Sequence[int]) -> str:
    rows = []
    for name in PRESETS:
        own = [lines[name, seed] for seed in seeds]
        figures = [auc_figure(line["scores"], line["labels"]) for line in own]
        seconds = np.mean([line["seconds"] for line in own])
        rows.append([name, shown(combined(figures)), f"{seconds:.0f} s"])
    pairs = [(lines["compact", seed], lines["paper", seed]) for seed in seeds]
    gap = combined([difference(a["scores"], b["scores"], a["labels"]) for a, b in pairs])
    rows.append(["compact less paper", shown(gap, signed=True), f"bar -.01: {verdict(gap, -0.01)}"])
    return table(["preset", "AUC", "training and scoring"], rows)


def subsets_table(lines: Lines, seeds: Sequence[int]) -> str:
    own = [lines["compact", seed] for seed in seeds]

    def area(subset: str) -> Estimate:
        return combined([auc_figure(a["complete"][subset], a["complete_labels"]) for a in own])

    rows = []
    for subset in subsets(MODALITIES):
        name = "+".join(subset)
        row = [name, shown(area(name)), "", "", ""]
        if len(subset) > 1:
            best = max(subset, key=lambda modality: area(modality).estimate)
            gap = combined(
                [
                    difference(a["complete"][name], a["complete"][best], a["complete_labels"])
                    for a in own
                ]
            )
            row[2:] = [best, shown(gap, signed=True), verdict(gap, -0.02)]
        rows.append(row)
    return table(["shown", "AUC", "best single", "less the best single", "bar -.02"], rows)


def scanner_table(lines: Lines, seeds: Sequence[int]) -> str:
    """Differences of the same cases: a model and the pictures it is shown, against another."""

    def gap(first: tuple[str, str], second: tuple[str, str]) -> Estimate:
        pairs = [(lines[first[0], seed], lines[second[0], seed]) for seed in seeds]
        return combined([difference(a[first[1]], b[second[1]], a["labels"]) for a, b in pairs])

    rows = []
    for ending in ("", ", noise"):
        plain, misled = f"default{ending}", f"shortcut{ending}"
        row = ["as the run's default" if ending else "none"]
        for arm, key, labels in (
            (misled, "home", "home_labels"),
            (plain, "on default", "labels"),
            (plain, "on shortcut", "labels"),
            (misled, "on shortcut", "labels"),
        ):
            figures = [auc_figure(lines[arm, s][key], lines[arm, s][labels]) for s in seeds]
            row.append(shown(combined(figures)))
        whole = gap((misled, "on shortcut"), (plain, "on default"))
        row += [
            shown(gap((plain, "on shortcut"), (plain, "on default")), signed=True),
            shown(gap((misled, "on shortcut"), (plain, "on shortcut")), signed=True),
            f"{shown(whole, signed=True)}: {verdict(whole, -0.03)}",
        ]
        rows.append(row)
    header = [
        "image noise",
        "shortcut, at home",
        "default on default",
        "default on shortcut",
        "shortcut on shortcut",
        "pictures cost",
        "scanner learnt costs",
        "together (bar -.03)",
    ]
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["presets", "subsets", "scanner"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "her2-map")
    parser.add_argument("--tables", action="store_true", help="of what is there; train nothing")
    options = parser.parse_args()
    file = options.cache / f"discrimination-{options.cases}-{options.rounds}.jsonl"
    parts: dict[Part, tuple[str, tuple[str, ...], Callable[..., Any], Callable[..., str]]] = {
        "subsets": ("complete cases", ("compact",), preset_scores, subsets_table),
        "scanner": (f"{REVERSED_CENTRE} left out", tuple(SCANNER), scanner_scores, scanner_table),
        "presets": ("all held-out cases", tuple(PRESETS), preset_scores, presets_table),
    }
    seeds = range(1, options.seeds + 1)
    print(f"{options.cases} cases, {options.rounds} rounds of 2 epochs, AUC (95 % interval)")
    for part, (what, arms, work, of_lines) in parts.items():
        if options.part not in (None, part):
            continue
        if not options.tables:
            for seed in seeds:  # here, so that processes do not make the same cohort twice
                held_out(options.cache, options.cases, "default", seed)
                if part == "scanner":
                    held_out(options.cache, options.cases, "shortcut", seed)
            common = (options.cases, options.rounds, options.cache)
            jobs = [Job(arm, seed, (arm, seed, *common)) for seed in seeds for arm in arms]
            run_jobs(jobs, work, file, options.jobs)
        lines = {(line["arm"], line["seed"]): line for line in read_lines(file)}
        done = [seed for seed in seeds if all((arm, seed) in lines for arm in arms)]
        print(f"\n{part}: {what}, seeds {done}")
        print(of_lines(lines, done) if done else "no seed is finished")


if __name__ == "__main__":
    main()
