"""From the sites' score histograms to the numbers of summary.json.

A site sends one histogram for each key:

    fused|<combination>   score of the case, for the cases with exactly these modalities,
                          joined by "+" in the order of MODALITIES: "fused|mg+us"
    single|<modality>     score of that modality alone, for the cases that have it: "single|mg"
    low|<combination>     from a model of three HER2 levels: score of low against zero, for the
                          negatives of that combination whose level is known; class 1 is HER2-low

``evaluate`` adds them up and publishes the pooled numbers and three breakdowns: by centre, by
combination and by modality. What it publishes, step by step:

1. What may be published is decided for all counts of a run at once (her2_server.suppression).
2. A group that may not, or that has fewer than ``min_cell`` positives or negatives, is
   ``{"suppressed": true}``; so are the pooled cases.
3. Low, zero and unknown level add up to the negatives. They are published pooled or not at all:
   only if low and zero are no small groups and the unknown are none or no small group, over all
   sites and over those that tell levels (by_centre has their negatives).

What this cannot hide: a centre that subtracts its own cases from the pooled numbers of two.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any, Final

import numpy as np

from her2_common.calibration import calibration, reliability
from her2_common.cases import MODALITIES, Split
from her2_common.errors import MetricError
from her2_common.metrics import (
    Estimate,
    ScoreHistogram,
    auc_interval,
    brier,
    confusion,
    npv,
    pool,
    ppv,
    roc_curve,
    sensitivity,
    specificity,
)
from her2_server.suppression import POOLED, Counted, Published, published

SiteScores = Mapping[str, Mapping[str, ScoreHistogram]]
"""Site name -> key ("fused|mg+us", "single|mg") -> histogram."""

COMBINATIONS: Final = tuple(
    "+".join(chosen)
    for size in range(1, len(MODALITIES) + 1)
    for chosen in combinations(MODALITIES, size)
)
"""The seven non-empty subsets of the modalities: mg, us, mri, mg+us, ..., mg+us+mri."""

KEYS: Final = tuple(f"{kind}|{name}" for kind in ("fused", "low") for name in COMBINATIONS) + tuple(
    f"single|{name}" for name in MODALITIES
)
"""Every key a site may send."""

SUPPRESSED: Final = {"suppressed": True}

Groups = dict[str, ScoreHistogram]


def evaluate(
    scores: SiteScores,
    threshold: float,
    min_cell: int = 10,
    *,
    split: Split = "test",
    shown: Published | None = None,
) -> dict[str, Any]:
    """The pooled numbers and the three breakdowns, ready for JSON.

    ``n``, ``positives``, ``auc``, ``sensitivity``, ``specificity``, ``ppv``, ``npv``, ``brier``,
    ``confusion`` {tp, fp, tn, fn}, ``calibration`` {slope, intercept, bins}, ``roc`` [[fpr, tpr]]
    and ``by_centre``, ``by_combination``, ``by_modality``; and ``levels`` {n, low, zero, auc},
    HER2-low against HER2-zero (suppressed, or None if no site sent such scores). An estimate is
    {"estimate", "low", "high"} with its 95 % interval; what the cases cannot answer is None. If the
    pooled cases are themselves a small group every number is None and ``suppressed`` is true.

    Args:
        scores: histograms of every site; sites and keys without cases may be left out.
        threshold: calls are positive at or above it; frozen beforehand, never fitted here.
        min_cell: fewest positives, and fewest negatives, of a published group.
        split: what the scores are of.
        shown: what of it may be published; by default all that may beside nothing else.

    Raises:
        MetricError: an unknown key, or a threshold that is not from 0 to 1.
    """
    for site, histograms in scores.items():
        for key in histograms:
            if key not in KEYS:
                raise MetricError(f"site {site}: expected keys {', '.join(KEYS)}, got {key!r}")

    if shown is None:
        shown = published({split: counted(scores)}, min_cell)
    centres: Groups = {
        site: pool(h for key, h in histograms.items() if key.startswith("fused|"))
        for site, histograms in scores.items()
    }
    by_key = {key: pool(h[key] for h in scores.values() if key in h) for key in KEYS}
    total = pool(centres.values())
    if not total.n or (split, POOLED) not in shown:
        result: dict[str, Any] = {"suppressed": True, **dict.fromkeys(_numbers(total, threshold))}
        result |= dict.fromkeys(("confusion", "calibration", "roc"))
    else:
        result = _numbers(total, threshold) | _details(total, threshold, min_cell)

    result["levels"] = _levels(scores, total, centres, min_cell)
    parts: Groups = {name: h for name in COMBINATIONS if (h := by_key[f"fused|{name}"]).n}
    singles: Groups = {name: h for name in MODALITIES if (h := by_key[f"single|{name}"]).n}
    breakdowns = (("by_centre", centres), ("by_combination", parts), ("by_modality", singles))
    for kind, groups in breakdowns:
        result[kind] = {
            group: (
                _numbers(h, threshold)
                if h.n and (split, kind, group) in shown
                else dict(SUPPRESSED)
            )
            for group, h in groups.items()
        }
    return result


def is_small(histogram: ScoreHistogram, min_cell: int) -> bool:
    """Whether a class has fewer than ``min_cell`` cases, so that nothing of it is published."""
    return min(histogram.m, histogram.n - histogram.m) < min_cell


def counted(scores: SiteScores) -> Counted:
    """The negatives and positives of every histogram."""
    return {
        site: {key: (h.n - h.m, h.m) for key, h in histograms.items()}
        for site, histograms in scores.items()
    }


def _numbers(histogram: ScoreHistogram, threshold: float) -> dict[str, Any]:
    calls = confusion(histogram, threshold)
    return {
        "n": histogram.n,
        "positives": histogram.m,
        "auc": _as_dict(auc_interval(histogram)),
        "sensitivity": _as_dict(sensitivity(calls)),
        "specificity": _as_dict(specificity(calls)),
        "ppv": _as_dict(ppv(calls)),
        "npv": _as_dict(npv(calls)),
        "brier": brier(histogram),
    }


def _details(histogram: ScoreHistogram, threshold: float, min_cell: int) -> dict[str, Any]:
    """What is given for the pooled cases only: it would identify cases of a small group."""
    calls, fit, curve = (
        confusion(histogram, threshold),
        calibration(histogram),
        roc_curve(histogram),
    )
    return {
        "confusion": {"tp": calls.tp, "fp": calls.fp, "tn": calls.tn, "fn": calls.fn},
        "calibration": {
            "slope": _as_dict(fit.slope),
            "intercept": _as_dict(fit.intercept),
            "bins": bins_of(histogram, min_cell),
        },
        "roc": None if curve is None else np.stack(curve, axis=1).tolist(),
    }


def bins_of(histogram: ScoreHistogram, min_cell: int) -> list[dict[str, Any]]:
    """The reliability diagram, ready for JSON: low, high, n, mean_score, observed."""
    return [
        {
            "low": bin_.low,
            "high": bin_.high,
            "n": bin_.n,
            "mean_score": bin_.mean_score,
            "observed": _as_dict(bin_.observed),
        }
        for bin_ in reliability(histogram, min_cell=min_cell)
    ]


def _levels(
    scores: SiteScores, total: ScoreHistogram, centres: Groups, min_cell: int
) -> dict[str, Any] | None:
    """HER2-low against HER2-zero, pooled over the sites; None if none sent such scores."""
    of_site = {
        site: pool(h for key, h in histograms.items() if key.startswith("low|"))
        for site, histograms in scores.items()
    }
    telling = [site for site, histogram in of_site.items() if histogram.n]
    if not telling:
        return None
    known = pool(of_site.values())
    unknown = [h.n - h.m - known.n for h in (total, pool(centres[site] for site in telling))]
    if any(is_small(h, min_cell) for h in (total, known)) or any(
        n < min_cell and n != 0 for n in unknown
    ):
        return dict(SUPPRESSED)
    return {
        "n": known.n,
        "low": known.m,
        "zero": known.n - known.m,
        "auc": _as_dict(auc_interval(known)),
    }


def _as_dict(estimate: Estimate | None) -> dict[str, float] | None:
    return None if estimate is None else estimate.as_dict()
