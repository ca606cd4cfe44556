"""The response evaluation of a million rows in twelve centres, beside the pooled computation.

The same questions twice, in one process on one core: the whole analysis of
`her2-server response` over the centres, and the pooled rows given to statsmodels and scikit-learn
(two models and their likelihood-ratio test, the propensity, both AUCs, the stratified table). Bar:
at most three times as long, although the analysis answers more. The numbers must be the same. How
long the tables take to be read is printed apart, for statsmodels is given arrays.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_response.py [--rows 1000000] [--centres 12]
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import statsmodels.api as sm
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from statsmodels.stats.contingency_tables import StratifiedTable

from her2_common.response.analysis import analyse
from her2_common.response.patients import Patients
from her2_common.response.plan import Plan
from her2_common.response.pooling import ask_sources
from her2_common.response.queries import Source
from her2_server.response.tables import read_tables

BAR: Final = 3.0
"""Times the pooled computation."""

CLOSE: Final = 1e-6
"""Largest difference of a number, relative: statsmodels stops its iterations there."""

THRESHOLD: Final = 0.5

COLUMNS: Final = {
    "pcr": "pcr",
    "score": "score",
    "biopsy": "biopsy_her2",
    "therapy": "anti_her2",
    "hr": "er",
    "t": "clinical_t",
    "n": "clinical_n",
}
"""Column of the analysis -> column of a table."""

Columns = dict[str, np.ndarray]


def draw(n: int, centres: int) -> tuple[Columns, np.ndarray]:
    """Rows in which the image knows more of the tumour than the needle, and their centres (n,)."""
    rng = np.random.default_rng(1)
    truth = rng.random(n) < 0.4
    biopsy = np.where(truth, rng.random(n) < 0.9, rng.random(n) < 0.05)
    therapy = biopsy & (rng.random(n) < 0.9)
    hr = rng.random(n) < 0.5
    score = np.round(expit(rng.normal(size=n) + 1.5 * truth - 0.7) * 1024) / 1024
    pcr = rng.random(n) < expit(-1.2 + 1.4 * (truth & therapy) - 0.5 * hr)
    stages = {"t": rng.integers(0, 5, n), "n": rng.integers(0, 4, n)}
    flags = {"pcr": pcr, "score": score, "biopsy": biopsy, "therapy": therapy, "hr": hr}
    rows = {name: np.asarray(v, np.float64) for name, v in (flags | stages).items()}
    return rows, rng.integers(0, centres, n)


def ours(rows: Columns, centre: np.ndarray, plan: Plan) -> dict[str, Any]:
    """The whole analysis, over the centres."""
    sources = [
        Source(
            Patients(f"c{k:02}", {name: values[centre == k] for name, values in rows.items()}),
            plan,
            THRESHOLD,
        )
        for k in range(int(centre.max()) + 1)
    ]
    return analyse(ask_sources(sources), plan, THRESHOLD)


def pooled(rows: Columns, centre: np.ndarray) -> dict[str, float]:
    """The same numbers from the pooled rows, by name."""
    n, pcr, score, biopsy = rows["pcr"].size, rows["pcr"], rows["score"], rows["biopsy"]
    centres = [(centre == k) * 1.0 for k in range(1, int(centre.max()) + 1)]
    columns = [rows[name] for name in ("therapy", "hr", "t", "n", "biopsy", "score")]
    x = np.column_stack([np.ones(n), *centres, *columns, biopsy * score])
    full = sm.Logit(pcr, x).fit(disp=0)
    small = sm.Logit(pcr, x[:, :-2]).fit(disp=0)
    treated = (biopsy == 1) & (rows["therapy"] == 1)
    calls = (score[treated] >= THRESHOLD) * 1.0
    terms = [np.ones(calls.size), *(part[treated] for part in centres)]
    terms += [rows[name][treated] for name in ("hr", "t", "n")]
    weights = sm.Logit(calls, np.column_stack(terms)).fit(disp=0).predict()
    share, outcome = calls.mean(), pcr[treated]
    weights = np.where(calls == 1, share / weights, (1 - share) / (1 - weights))
    risk = [np.average(outcome[calls == g], weights=weights[calls == g]) for g in (0, 1)]
    index = 4 * centre[treated] + 2 * (calls == 0) + (outcome == 0)
    tables = np.bincount(index, minlength=4 * (len(centres) + 1)).reshape(-1, 2, 2)
    strata = StratifiedTable(list(tables))
    return {
        "odds ratio": float(strata.oddsratio_pooled),
        "CMH": float(strata.test_null_odds().statistic),
        "AUC, imaging": float(roc_auc_score(pcr, score)),
        "AUC, biopsy": float(roc_auc_score(pcr, biopsy)),
        "coefficient, score": float(full.params[-2]),
        "likelihood ratio": float(2 * (full.llf - small.llf)),
        "weighted risk difference": float(risk[1] - risk[0]),
    }


def same_numbers(found: dict[str, Any]) -> dict[str, float]:
    """Those of ``pooled`` out of the result."""
    model = found["logistic"][0]
    return {
        "odds ratio": found["primary"]["odds_ratio"]["estimate"],
        "CMH": found["primary"]["cmh"]["statistic"],
        "AUC, imaging": found["auc"]["imaging"]["estimate"],
        "AUC, biopsy": found["auc"]["biopsy"]["estimate"],
        "coefficient, score": model["terms"]["score"]["estimate"],
        "likelihood ratio": model["likelihood_ratio"]["statistic"],
        "weighted risk difference": found["ipw"]["risk_difference"]["estimate"],
    }


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it returns, and its seconds of processor time."""
    start = time.process_time()
    return work(), time.process_time() - start


def written(folder: Path, rows: Columns, centre: np.ndarray) -> list[Path]:
    """One table a centre."""
    paths = []
    for k in range(int(centre.max()) + 1):
        chosen = np.flatnonzero(centre == k)
        whole = (rows[name][chosen].tolist() for name in COLUMNS)
        cells = (
            map(str, values) if name == "score" else (str(int(v)) for v in values)
            for name, values in zip(COLUMNS, whole, strict=True)
        )
        paths.append(folder / f"c{k:02}.csv")
        with paths[-1].open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["case_id", *COLUMNS.values()])
            writer.writerows(zip(map(str, chosen.tolist()), *cells, strict=True))
    return paths


def main() -> None:
    """Print the numbers side by side, then the seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--centres", type=int, default=12)
    given = parser.parse_args()
    rows, centre = draw(given.rows, given.centres)
    found, mine = timed(lambda: ours(rows, centre, Plan(compare=())))
    oracle, theirs = timed(lambda: pooled(rows, centre))
    apart = 0.0
    print(f"{'':<28}{'over centres':>16}{'pooled':>16}")
    for (name, value), other in zip(same_numbers(found).items(), oracle.values(), strict=True):
        print(f"{name:<28}{value:>16.9g}{other:>16.9g}")
        apart = max(apart, abs(value - other) / abs(other))
    print(f"largest relative difference {apart:.1g} ({'ok' if apart < CLOSE else 'OFF'})")
    ratio = mine / theirs
    print(f"{'seconds of one core':<28}{mine:>16.1f}{theirs:>16.1f}")
    print(f"ratio {ratio:.2f}, bar {BAR:g} ({'ok' if ratio <= BAR else 'OFF'})")
    with tempfile.TemporaryDirectory() as folder:
        paths = written(Path(folder), rows, centre)
        size = sum(path.stat().st_size for path in paths) / 2**20
        _, reading = timed(lambda: read_tables(paths, out_of_fold=True))
    print(f"reading and checking the {len(paths)} tables ({size:.0f} MiB): {reading:.1f} s more")


if __name__ == "__main__":
    main()
