"""How the experiments are run, kept and compared.

1. A job is a named arm and a seed. Its result is one line of a JSON-lines file, appended as soon
   as it is there; a job whose line is there is not run again. (A line does not know the code that
   made it: remove the file after a change of the code.)
2. Two arms of a seed are compared on the same cases by paired DeLong.
3. Seeds are independent cohorts, so their figures are combined as those of independent studies:
   random effects, weights 1 / (variance within a seed + variance between seeds).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from her2_common.metrics import Estimate, normal_quantile

# --- jobs ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """``work(*arguments)`` gives the rest of the line that starts with ``arm`` and ``seed``."""

    arm: str
    seed: int
    arguments: tuple[Any, ...]


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The results in ``file``; a line that was cut off when a run was killed is passed over."""
    if not file.exists():
        return []
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def run_jobs(
    jobs: Sequence[Job], work: Callable[..., dict[str, Any]], file: Path, processes: int = 1
) -> list[dict[str, Any]]:
    """The results of ``jobs``, in their order; what ``file`` lacks is computed and appended.

    ``work`` is a function of a module, so that another process can import it. Progress and the
    time that is left go to the error stream.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    done = {(line["arm"], line["seed"]): line for line in read_lines(file)}
    missing = [job for job in jobs if (job.arm, job.seed) not in done]
    if file.exists() and not file.read_bytes().endswith(b"\n"):
        with file.open("a", encoding="utf-8") as stream:
            stream.write("\n")  # after a line that was cut off the next one starts afresh
    started = time.perf_counter()

    def keep(number: int, job: Job, result: dict[str, Any]) -> None:
        line = {"arm": job.arm, "seed": job.seed, **result}
        text = json.dumps(line)
        with file.open("a", encoding="utf-8") as stream:
            stream.write(f"{text}\n")
        done[job.arm, job.seed] = line
        passed = time.perf_counter() - started
        left = passed / number * (len(missing) - number)
        print(
            f"{number}/{len(missing)} {job.arm}, seed {job.seed}: "
            f"{passed / 60:.1f} min, about {left / 60:.0f} min left",
            file=sys.stderr,
            flush=True,
        )

    if processes == 1:
        for number, job in enumerate(missing, start=1):
            keep(number, job, work(*job.arguments))
    elif missing:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            waiting = {pool.submit(work, *job.arguments): job for job in missing}
            for number, future in enumerate(as_completed(waiting), start=1):
                keep(number, waiting[future], future.result())
    return [done[job.arm, job.seed] for job in jobs]


# --- comparisons ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """An estimate of one seed and the variance with which its cases were drawn."""

    value: float
    variance: float


def delong(
    scores: Sequence[ArrayLike], labels: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The AUCs (k,) of k scores of the same n cases, and their covariance (k, k).

    Ties count half. Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837-845.

    Args:
        scores: k times (n,), higher means more likely positive.
        labels: (n,), 0 or 1; two of each at least, else the covariance is NaN.
    """
    positive = np.asarray(labels) == 1
    of_positives, of_negatives = [], []
    for score in scores:
        values = np.asarray(score)
        cases, controls = values[positive], np.sort(values[~positive])
        below = np.searchsorted(controls, cases, "left") + np.searchsorted(controls, cases, "right")
        of_positives.append(below / (2 * len(controls)))  # V10: (m,)
        cases = np.sort(cases)
        controls = values[~positive]
        above = np.searchsorted(cases, controls, "left") + np.searchsorted(cases, controls, "right")
        of_negatives.append(1 - above / (2 * len(cases)))  # V01: (n - m,)
    v10, v01 = np.array(of_positives), np.array(of_negatives)
    covariance = (
        np.atleast_2d(np.cov(v10)) / v10.shape[1] + np.atleast_2d(np.cov(v01)) / (v01.shape[1])
    )
    areas: NDArray[np.float64] = v10.mean(axis=1)
    return areas, covariance


def auc_figure(scores: ArrayLike, labels: ArrayLike) -> Figure:
    """The AUC with DeLong's variance."""
    areas, covariance = delong([scores], labels)
    return Figure(float(areas[0]), float(covariance[0, 0]))


def difference(first: ArrayLike, second: ArrayLike, labels: ArrayLike) -> Figure:
    """AUC of ``first`` less that of ``second`` on the same cases, by paired DeLong."""
    areas, covariance = delong([first, second], labels)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    return Figure(float(areas[0] - areas[1]), max(float(variance), 0.0))


def combined(figures: Sequence[Figure], level: float = 0.95) -> Estimate:
    """The random-effects mean over the seeds with its interval.

    Source: DerSimonian and Laird, Controlled Clinical Trials 7 (1986) 177-188. A figure without
    variance (two arms that gave the same scores) counts as if it had the least other variance.
    """
    values = np.array([figure.value for figure in figures])
    variances = np.array([figure.variance for figure in figures])
    if not variances.any():
        mean, error = float(values.mean()), 0.0
        if len(values) > 1:
            error = float(values.std(ddof=1) / np.sqrt(len(values)))
    else:
        variances = np.where(variances > 0, variances, variances[variances > 0].min())
        fixed = 1 / variances
        centre = fixed @ values / fixed.sum()
        surplus = fixed @ (values - centre) ** 2 - (len(values) - 1)
        scale = fixed.sum() - fixed @ fixed / fixed.sum()
        between = max(0.0, surplus / scale) if len(values) > 1 else 0.0
        weights = 1 / (variances + between)
        mean = float(weights @ values / weights.sum())
        error = float(1 / np.sqrt(weights.sum()))
    margin = normal_quantile(level) * error
    return Estimate(mean, mean - margin, mean + margin)


# --- tables --------------------------------------------------------------------------------------


def shown(estimate: Estimate | None, *, signed: bool = False) -> str:
    """``.812 (.790 to .834)``, with a sign where it is a difference."""
    if estimate is None:
        return ""

    def number(value: float) -> str:
        return f"{value:+.3f}" if signed else f"{value:.3f}"

    return f"{number(estimate.estimate)} ({number(estimate.low)} to {number(estimate.high)})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows as a Markdown table whose columns stand under one another."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    padded = [[c.ljust(w) for c, w in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)
