"""False-positive rate of the response verdict, by the label that the model was trained on.

    .venv/bin/python tests/benchmarks/bench_labels.py [--replicates N] [--seed S] [--lost SHARE]

The scenario: the needle is never wrong, and the image shows, beside HER2, how sensitive the tumour
is to chemotherapy, which has nothing to do with HER2. So the image knows nothing of HER2 that the
needle does not, and the interval of the odds ratio should lie above 1 in 2.5 % of the studies. Of
residual tumours that were HER2-positive a share (``--lost``) is negative after therapy; complete
responders have no tumour to test. A label from the excised tumour therefore goes with the response,
and a model that is trained on it learns the sensitivity.

A study has four centres and five folds. A logistic model of the label on the two image features
and its threshold (Youden) come from four folds and are asked of the fifth; the comparison is among
all biopsy-positive treated patients. Labels are those that the case table gives, the verdict is the
evaluator's own. "first edition" is what ``reference`` was then: the excised tumour where it was
tested, and the biopsy elsewhere.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from her2_common.cases import read_cases
from her2_common.response.primary import verdict
from her2_common.response.strata import Strata, odds_ratio

NOMINAL: Final = 0.025
CENTRES: Final = ("A", "B", "C", "D")
SHARES: Final = (0.4, 0.3, 0.2, 0.1)
"""Of the patients, by centre."""
POSITIVE: Final = 0.34
"""Share of HER2-positive tumours: heterogeneous and homogeneous ones of the synthetic cohort."""
TREATED: Final = 0.8
"""Share with neoadjuvant therapy; anti-HER2 drugs with it in all biopsy-positives."""
RESPONSE: Final = (0.20, 0.50)
"""pCR of HER2-negative and HER2-positive patients of average sensitivity."""
SLOPE: Final = 1.0
"""Log odds of pCR a standard deviation of sensitivity."""
HER2_NOISE: Final = 1.05
"""Of the image's HER2 feature, whose classes lie 1 apart: an AUC of .75."""
SENSITIVITY_NOISE: Final = 0.5
FOLDS: Final = 5

UNKNOWN: Final = -1


def label_rules() -> dict[str, np.ndarray]:
    """Rule -> (biopsy, neoadjuvant therapy, excised tumour) -> label; ``UNKNOWN`` where none is.

    The excised tumour is 0, 1, or 2 for not tested. Every kind of patient is read once from a case
    table.
    """
    kinds = list(product((0, 1), (0, 1), ("0", "1", "")))
    lines = ["case_id,us,biopsy_her2,nat,surgical_her2"]
    lines += [f"{number},a.png,{b},{n},{s}" for number, (b, n, s) in enumerate(kinds)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cases.csv"
        path.write_text("\n".join(lines) + "\n")
        cases = read_cases(path).cases
    now = [case.label("reference") for case in cases]
    before = [c.biopsy.her2 if c.surgical.her2 is None else c.surgical.her2 for c in cases]
    return {
        name: np.array([UNKNOWN if v is None else v for v in labels]).reshape(2, 2, 3)
        for name, labels in (("reference", now), ("first edition", before))
    }


def study(
    rng: np.random.Generator, patients: int, lost: float, rules: dict[str, np.ndarray]
) -> Iterator[tuple[str, str]]:
    """(label, verdict) of one study under the rule of the case table and that of before."""
    her2 = rng.random(patients) < POSITIVE
    sensitivity = rng.normal(size=patients)
    nat = rng.random(patients) < TREATED
    chance = expit(logit(np.array(RESPONSE))[her2.astype(int)] + SLOPE * sensitivity)
    pcr = nat & (rng.random(patients) < chance)
    kept = her2 & ~(nat & (rng.random(patients) < lost))
    excised = np.where(pcr, 2, kept)
    centre = rng.choice(len(CENTRES), patients, p=SHARES)
    image = np.stack(  # (patients, 2)
        [
            her2 + HER2_NOISE * rng.normal(size=patients),
            sensitivity + SENSITIVITY_NOISE * rng.normal(size=patients),
        ],
        axis=1,
    )
    fold = rng.permutation(patients) % FOLDS
    asked = nat & her2
    for name, rule in rules.items():
        label = rule[her2.astype(int), nat.astype(int), excised]
        known = label != UNKNOWN
        called = np.zeros(patients, bool)
        for held_out in range(FOLDS):
            train, out = known & (fold != held_out), fold == held_out
            model = LogisticRegression(C=np.inf, solver="newton-cholesky").fit(
                image[train], label[train]
            )
            score = model.decision_function(image)
            called[out] = score[out] >= youden(score[train], label[train])
        counts = np.zeros((len(CENTRES), 2, 2), dtype=np.int64)
        np.add.at(counts, tuple(v[asked].astype(int) for v in (centre, called, pcr)), 1)
        tables = Strata(CENTRES, counts)
        interval = odds_ratio(tables)
        above = interval is not None and interval.low > 1
        yield name, "above 1" if above else "not above 1"
        yield name, verdict(tables)


def youden(score: np.ndarray, label: np.ndarray) -> float:
    """The threshold of the largest sensitivity plus specificity."""
    order = np.argsort(-score)
    positives = np.cumsum(label[order]) / label.sum()
    negatives = np.cumsum(1 - label[order]) / (1 - label).sum()
    return float(score[order][np.argmax(positives - negatives)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lost", type=float, default=0.3, help="of positive residual tumours")
    parser.add_argument("--patients", type=int, nargs="+", default=[800, 4000])
    given = parser.parse_args()
    rules = label_rules()
    error = (NOMINAL * (1 - NOMINAL) / given.replicates) ** 0.5
    print("Nothing is to be found. Share of studies whose interval lies above 1, and verdicts;")
    print(f"nominal {NOMINAL:.1%}, Monte-Carlo standard error {error:.2%}")
    for patients in given.patients:
        rng = np.random.default_rng([given.seed, patients])
        seen: Counter[tuple[str, str]] = Counter()
        for _ in range(given.replicates):
            seen.update(study(rng, patients, given.lost, rules))
        for label in ("reference", "first edition"):
            share = seen[label, "above 1"] / given.replicates
            verdicts = ", ".join(
                f"{name} {count}"
                for (of, name), count in sorted(seen.items())
                if of == label and "above" not in name
            )
            print(f"{patients:6d} patients, label {label:14s} {share:6.1%}   {verdicts}")


if __name__ == "__main__":
    main()
