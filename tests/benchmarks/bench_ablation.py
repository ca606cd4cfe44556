"""What each part of the training is worth: arms that differ from the default in one thing.

Every arm trains the compact preset on the training cases of all four synthetic centres on one pile,
with the demo's settings but for the number of rounds. All arms of a seed are judged on the same
held-out cases (see cohorts.py) and compared by paired DeLong; seeds are combined by random effects
(see evidence.py).

    python tests/benchmarks/bench_ablation.py [--seeds 5] [--cases 1000] [--rounds 12] [--jobs 1]
        [--cache DIR] [--tables]

Results are kept in DIR/ablation-<cases>-<rounds>.jsonl; a broken-off run goes on where it was.
``--tables`` prints the tables of the seeds that every arm has finished, and trains nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from cohorts import (
    cached,
    demo_plan,
    held_out,
    judged,
    pooled,
    scored,
    subsets,
    swapped,
    train,
)
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

from her2_client.site import make_deterministic
from her2_common.calibration import calibration
from her2_common.cases import MODALITIES, Modality
from her2_common.metrics import GRID, Estimate, ScoreHistogram, normal_quantile

DEFAULT: Final = "default"
WRONG: Final = "wrong ultrasound"
held_out_once = lru_cache(maxsize=1)(held_out)


@dataclass(frozen=True)
class Arm:
    """``changes`` to the run, the modalities that exist, and whether training sees wrong pictures.

    ``misled``: every ultrasound picture of the training cases is that of another case.
    """

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    modalities: tuple[Modality, ...] = MODALITIES
    misled: bool = False


ARMS: Final = (
    Arm(DEFAULT),
    Arm("no alignment", {"alignment": "none"}),
    Arm("contrastive alignment", {"alignment": "contrastive"}),
    Arm("contrastive, weight .1", {"alignment": "contrastive", "alignment_weight": 0.1}),
    Arm("no single-modality terms", {"single_weight": 0}),
    Arm("modality dropout .3", {"modality_dropout": 0.3}),
    Arm("no image noise", {"image_noise": 0}),
    Arm("class balance: weights", {"class_balance": "weights"}),
    Arm("class balance: prior", {"class_balance": "prior"}),
    Arm("mammography only", modalities=("mg",)),
    Arm("ultrasound only", modalities=("us",)),
    Arm("MRI only", modalities=("mri",)),
    Arm(WRONG, misled=True),
)


def measured(arm: Arm, seed: int, cases: int, rounds: int, cache: Path) -> dict[str, Any]:
    """Train one arm and keep its scores; with wrong ultrasound and without ultrasound too."""
    make_deterministic(1)
    started = time.perf_counter()
    cohort = pooled(cached(cache, cases, "default", seed).values(), "train")
    if arm.misled:
        cohort = swapped(cohort, "us", seed)
    plan = demo_plan(seed, rounds=rounds, **arm.changes)
    model = train(plan, cohort.restricted(arm.modalities))
    test = held_out_once(cache, cases, "default", seed)
    result = {"changes": arm.changes, **judged(model, test, arm.modalities)}
    if arm.modalities == MODALITIES:
        result["wrong_us"] = scored(model, swapped(test, "us", seed)).tolist()
        result["without_us"] = scored(model, test, ("mg", "mri")).tolist()
    result["seconds"] = round(time.perf_counter() - started, 1)
    return result


# --- tables --------------------------------------------------------------------------------------

Lines = Sequence[dict[str, Any]]
"""The results of one arm, a seed each."""


def of_seeds(lines: Lines, scores: str = "scores") -> Estimate:
    return combined([auc_figure(line[scores], line["labels"]) for line in lines])


def log_loss(line: dict[str, Any]) -> Figure:
    """Mean nats a case; scores of 0 and 1 count as half a grid step inside."""
    positive = np.clip(np.array(line["scores"]) / GRID, 0.5 / GRID, 1 - 0.5 / GRID)
    nats = -np.log(np.where(np.array(line["labels"]) == 1, positive, 1 - positive))
    return Figure(float(nats.mean()), float(nats.var(ddof=1) / len(nats)))


def slope(line: dict[str, Any]) -> Figure | None:
    scores = np.array(line["scores"]) / GRID
    found = calibration(ScoreHistogram.from_scores(scores, line["labels"])).slope
    if found is None:
        return None
    return Figure(found.estimate, ((found.high - found.low) / 2 / normal_quantile(0.95)) ** 2)


def main_table(results: dict[str, Lines]) -> str:
    rows = []
    for name, lines in results.items():
        pairs = zip(lines, results[DEFAULT], strict=True)
        gaps = [difference(a["scores"], b["scores"], a["labels"]) for a, b in pairs]
        slopes = [found for found in map(slope, lines) if found is not None]
        rows.append(
            [
                name,
                shown(of_seeds(lines)),
                "" if name == DEFAULT else shown(combined(gaps), signed=True),
                f"{combined([log_loss(line) for line in lines]).estimate:.3f}",
                shown(combined(slopes)) if slopes else "",
            ]
        )
    return table(["arm", "AUC", "less the default", "log loss", "calibration slope"], rows)


def subset_table(results: dict[str, Lines]) -> str:
    names = ["+".join(subset) for subset in subsets(MODALITIES)]
    rows = []
    for name, lines in results.items():
        row = [name]
        for subset in names:
            if subset not in lines[0]["complete"]:
                row.append("")
                continue
            figures = [auc_figure(a["complete"][subset], a["complete_labels"]) for a in lines]
            row.append(f"{combined(figures).estimate:.3f}")
        rows.append(row)
    return table(["arm", *names], rows)


def accompanied(line: dict[str, Any]) -> np.ndarray:
    """The cases that have ultrasound and something else."""
    return np.array([c.startswith("mg+us") or c == "us+mri" for c in line["combinations"]])


def wrong_table(results: dict[str, Lines]) -> str:
    """AUC on the cases that have ultrasound and something else."""

    def among(line: dict[str, Any], key: str) -> np.ndarray:
        chosen: np.ndarray = np.array(line[key])[accompanied(line)]
        return chosen

    rows = []
    for name in (DEFAULT, WRONG):
        lines = results[name]
        row = [name]
        for key in ("scores", "wrong_us", "without_us"):
            figures = [auc_figure(among(a, key), among(a, "labels")) for a in lines]
            row.append(shown(combined(figures)))
        rows.append(row)
    return table(["arm", "right ultrasound", "wrong ultrasound", "without it"], rows)


def complete_seeds(lines: Lines, seeds: Sequence[int]) -> dict[str, Lines]:
    """The results by arm, of the seeds that all arms have."""
    found = {(line["arm"], line["seed"]): line for line in lines}
    whole = [seed for seed in seeds if all((arm.name, seed) in found for arm in ARMS)]
    return {arm.name: [found[arm.name, seed] for seed in whole] for arm in ARMS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "her2-map")
    parser.add_argument("--tables", action="store_true", help="of what is there; train nothing")
    options = parser.parse_args()
    file = options.cache / f"ablation-{options.cases}-{options.rounds}.jsonl"
    seeds = range(1, options.seeds + 1)
    if not options.tables:
        for seed in seeds:  # here, so that processes do not make the same cohort twice
            held_out(options.cache, options.cases, "default", seed)
        jobs = [
            Job(arm.name, seed, (arm, seed, options.cases, options.rounds, options.cache))
            for seed in seeds
            for arm in ARMS
        ]
        run_jobs(jobs, measured, file, options.jobs)
    results = complete_seeds(read_lines(file), seeds)
    done = [line["seed"] for line in results[DEFAULT]]
    if not done:
        raise SystemExit(f"{file}: no seed is finished")
    first = results[DEFAULT][0]
    held, complete = len(first["labels"]), len(first["complete_labels"])
    print(f"seeds {done}, {options.cases} cases, {options.rounds} rounds of 2 epochs")
    print(f"seed {done[0]}: {held} held-out cases, {complete} of them with all three modalities")
    print("\nall held-out cases (a case of which an arm can read nothing scores .5)")
    print(main_table(results))
    print("\ncomplete cases, of which only the modalities named are shown: AUC")
    print(subset_table(results))
    print("\ncases with ultrasound and something else")
    print(wrong_table(results))


if __name__ == "__main__":
    main()
