"""What the end of a run works out from the sites' sums, in this order and no other.

1. From the validation scores of the final weights the temperature, which goes into the weights;
   from the moments of the training features the references (``settle``).
2. From the validation scores of the calibrated weights the threshold; from the unlikeness of the
   validation cases the limits (``freeze_threshold``, ``freeze_limits``).
3. Only then are the test cases scored, once. Nothing here is fitted to them.

Every step is a function of sums over sites, so that it gives the same bits after a resume.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from her2_common.calibration import calibration, log_loss
from her2_common.cases import MODALITIES, Modality
from her2_common.config import RunConfig
from her2_common.errors import UpdateError
from her2_common.metrics import ScoreHistogram, pool, youden_threshold
from her2_common.model import preset
from her2_common.novelty import FEWEST_CASES, Reference, beyond, limit_of, reference_of
from her2_common.temperature import LogitMap, fit_temperature, fold, slope_bounds
from her2_server.evaluation import SiteScores, bins_of, is_small

FRACTION_BITS: Final = 30
MAX_SUM: Final = 2.0**32
"""Sums over the sites are kept in steps of 2**-30; with the sign they fit into 64 bits."""

Distances = Mapping[str, Mapping[str, ScoreHistogram]]
"""Site name -> modality -> histogram of unlikeness."""


@dataclass
class MomentSum:
    """Sums the moments of sites, exactly and in any order: a rounding to steps of 2**-30 a site,
    then 64-bit integers, as her2_server.aggregation sums weights. Holds one array a modality.

    ``sites`` is how many may add: each has its share of the room."""

    sites: int
    _sums: dict[Modality, np.ndarray] = field(default_factory=dict)

    def add(self, moments: Mapping[Modality, np.ndarray]) -> None:
        """Fold in one site's; all or nothing.

        Raises:
            UpdateError: "out of range".
        """
        for modality, total in moments.items():
            largest, room = float(np.abs(total).max()), MAX_SUM / self.sites
            if largest >= room:
                raise UpdateError(
                    f"moments {modality}: expected sums below {room:g}, got {largest:.3g}",
                    reason="out of range",
                )
        for modality, total in moments.items():
            steps = np.rint(total * 2.0**FRACTION_BITS).astype(np.int64)
            self._sums[modality] = self._sums.get(modality, 0) + steps

    def result(self) -> dict[Modality, np.ndarray]:
        """The sums over all sites so far, float64 (d + 1, d + 1)."""
        return {m: self._sums[m] / 2.0**FRACTION_BITS for m in MODALITIES if m in self._sums}


@dataclass(frozen=True)
class Settled:
    """The calibrated weights and what they were made from; ``before`` are the validation scores of
    the weights as trained, of the sites that were profiled."""

    groups: Mapping[str, np.ndarray]
    fit: LogitMap
    references: Mapping[Modality, Reference]
    before: SiteScores


@dataclass(frozen=True)
class Evaluation:
    """Score histograms of a split, and those of unlikeness, by site in the order of their names."""

    scores: SiteScores
    distances: Distances


def settle(
    plan: RunConfig,
    groups: Mapping[str, np.ndarray],
    before: SiteScores,
    moments: Mapping[Modality, np.ndarray],
) -> Settled:
    """Temperature and references from the sums of the profiled sites (step 1)."""
    fit = LogitMap(reason="no centre answered profile")
    if before:
        fit = fit_temperature(
            pooled_fused(before), intercept=plan.class_balance != "none", min_cell=plan.min_cell
        )
    found = {modality: reference_of(total) for modality, total in moments.items()}
    return Settled(
        fold(groups, preset(plan.preset, **plan.layout), fit),
        fit,
        {modality: reference for modality, reference in found.items() if reference},
        before,
    )


def pooled_fused(scores: SiteScores) -> ScoreHistogram:
    """The fused scores of all sites' cases in one histogram."""
    return pool(
        histogram
        for site in scores.values()
        for key, histogram in site.items()
        if key.startswith("fused|")
    )


def pooled_distances(distances: Distances, modality: Modality) -> ScoreHistogram:
    """The unlikeness of all sites' images of one modality in one histogram."""
    return pool(site[modality] for site in distances.values() if modality in site)


def freeze_threshold(validation: ScoreHistogram) -> dict[str, Any]:
    """The threshold for the test split, from validation alone: Youden's, or 0.5 without classes."""
    if validation.both_classes:
        return {"value": youden_threshold(validation), "rule": "youden", "from": "validation"}
    return {"value": 0.5, "rule": "fixed: validation holds one class only", "from": "none"}


def freeze_limits(settled: Settled, validation: Distances) -> dict[Modality, float]:
    """The limit of each modality that has a reference and enough validation cases."""
    limits = {m: limit_of(pooled_distances(validation, m)) for m in settled.references}
    return {modality: limit for modality, limit in limits.items() if limit is not None}


# --- what is published of it ----------------------------------------------------------------------


def temperature_record(
    settled: Settled, validation: SiteScores, test: SiteScores, min_cell: int
) -> dict[str, Any]:
    """The temperature and what it did, for summary.json and the manifest.

    ``temperature``, ``slope``, ``intercept``, ``reason`` (why there is none); ``slope_bounds``,
    what the score grid leaves open of the slope; ``validation`` {before, after} and ``test``, each
    {log_loss, slope}; ``n`` validation cases, and their reliability ``bins`` before. Where not all
    sites were profiled, the difference to the published results would be the others: then ``n``,
    what was before, ``bins`` and ``slope_bounds`` are None. So is what has too few cases.
    """
    fit, before = settled.fit, pooled_fused(settled.before)
    whole = settled.before.keys() == validation.keys() and not is_small(before, min_cell)
    fitted = fit.reason is None
    bounds = slope_bounds(before) if whole and fitted and not fit.intercept else (np.inf, np.inf)
    return {
        "temperature": fit.temperature,
        "slope": fit.slope,
        "intercept": fit.intercept,
        "reason": fit.reason,
        "slope_bounds": list(bounds) if np.isfinite(bounds).all() else None,
        "n": before.n if whole else None,
        "validation": {
            "before": _quality(before, min_cell) if whole else None,
            "after": _quality(pooled_fused(validation), min_cell),
        },
        "test": _quality(pooled_fused(test), min_cell),
        "bins": bins_of(before, min_cell) if whole else None,
    }


def novelty_record(
    settled: Settled,
    limits: Mapping[Modality, float],
    test: Distances,
    trained: Iterable[str],
    min_cell: int,
) -> dict[str, Any]:
    """For each modality of the release its ``limit`` (or None and the ``reason``), and how many
    test cases are ``flagged``: None if these or the others are fewer than ``min_cell``."""
    record: dict[str, Any] = {}
    for modality in (m for m in MODALITIES if m in trained):
        limit, reason, flagged = limits.get(modality), None, None
        if modality not in settled.references:
            reason = "no centre sent moments of its features that can be used"
        elif limit is None:
            reason = f"fewer than {FEWEST_CASES} validation cases"
        else:
            histogram = pooled_distances(test, modality)
            above = beyond(histogram, limit)
            if min(above, histogram.n - above) >= min_cell:
                flagged = above
        record[modality] = {"limit": limit, "reason": reason, "flagged": flagged}
    return record


def _quality(histogram: ScoreHistogram, min_cell: int) -> dict[str, Any] | None:
    if is_small(histogram, min_cell):
        return None
    slope = calibration(histogram).slope
    return {"log_loss": log_loss(histogram), "slope": slope.as_dict() if slope else None}
