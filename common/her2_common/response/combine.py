"""Random effects: one number for many centres, and how far the centres differ.

DerSimonian and Laird's variance between centres, Hartung and Knapp's interval (t with centres
less 1 df), which does not take that variance for known, and the interval in which the value of a
new centre is expected. With two or three centres the intervals are wide, as they should be. Centres
that happen to agree do not make it a point: it is never narrower than that of fixed effects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit
from scipy.stats import t

from her2_common.errors import MetricError
from her2_common.metrics import Estimate
from her2_common.response.delong import Discrimination
from her2_common.response.inference import HypothesisTest, Vector, chi_square


@dataclass(frozen=True)
class RandomEffects:
    """A mean over centres and their heterogeneity.

    ``mean`` has Hartung and Knapp's interval, widened where it is too narrow; ``prediction`` (from
    three centres on) bounds the value of a new centre; ``tau2`` is the variance between centres on
    the scale of the analysis; ``q`` is Cochran's test of tau2 = 0; ``i2`` the share of variance due
    to it (0 to 1). ``left_out`` names the centres without a usable variance.
    """

    centres: int
    mean: Estimate
    prediction: Estimate | None
    tau2: float
    q: HypothesisTest
    i2: float
    left_out: tuple[str, ...] = ()


def random_effects(
    values: ArrayLike, variances: ArrayLike, level: float = 0.95
) -> RandomEffects | None:
    """Combine estimates (centres,) with their squared standard errors; None for fewer than two.

    The variance of the mean is the larger of Hartung and Knapp's and DerSimonian and Laird's (the
    ad-hoc correction of Knapp and Hartung: their factor q is at least 1). The latter is at least
    that of fixed effects, and so is t's quantile. The prediction interval has centres less 2 df
    and holds the mean's.

    Sources: DerSimonian and Laird, Controlled Clinical Trials 7 (1986) 177-188; Hartung and Knapp,
    Statistics in Medicine 20 (2001) 3875-3889; Knapp and Hartung, Statistics in Medicine 22 (2003)
    2693-2710; Röver, Knapp and Friede, BMC Medical Research Methodology 15 (2015) 99; Higgins and
    Thompson, Statistics in Medicine 21 (2002) 1539-1558; Higgins, Thompson and Spiegelhalter,
    Journal of the Royal Statistical Society A 172 (2009) 137-159.

    Raises:
        MetricError: unequal shapes, a value that is not finite, a variance that is not positive.
    """
    y, v = np.asarray(values, np.float64), np.asarray(variances, np.float64)
    if y.ndim != 1 or y.shape != v.shape:
        raise MetricError(f"random effects: expected equal lengths, got {y.shape} and {v.shape}")
    if not (np.isfinite(y).all() and np.isfinite(v).all() and (v > 0).all()):
        raise MetricError("random effects: expected finite values and positive variances")
    k = y.size
    if k < 2:
        return None
    fixed = 1 / v
    q = float(fixed @ (y - (fixed @ y) / fixed.sum()) ** 2)
    excess = q - (k - 1)
    tau2 = max(0.0, excess / float(fixed.sum() - (fixed @ fixed) / fixed.sum()))
    weights: Vector = 1 / (v + tau2)
    mean = float(weights @ y / weights.sum())
    inflation = max(1.0, float(weights @ (y - mean) ** 2) / (k - 1))
    variance = inflation / float(weights.sum())
    margin = float(t.ppf(0.5 + level / 2, k - 1)) * float(np.sqrt(variance))
    prediction = None
    if k > 2:
        reach = float(t.ppf(0.5 + level / 2, k - 2)) * float(np.sqrt(tau2 + variance))
        prediction = Estimate(mean, mean - reach, mean + reach)
    return RandomEffects(
        centres=k,
        mean=Estimate(mean, mean - margin, mean + margin),
        prediction=prediction,
        tau2=tau2,
        q=chi_square(q, k - 1),
        i2=max(0.0, excess / q) if q > 0 else 0.0,
    )


def combine_auc(
    centres: Mapping[str, Discrimination | None], name: str, level: float = 0.95
) -> RandomEffects | None:
    """Random effects of the centres' own AUCs of one score, on the scale of log odds.

    ``mean`` and ``prediction`` are AUCs again, ``tau2`` stays on the log odds. Centres with one
    outcome, without a variance, or with an AUC of 0 or 1 are left out and named. None for fewer
    than two others.
    """
    areas, variances, left_out = [], [], []
    for centre, found in centres.items():
        index = None if found is None else found.index(name)
        if found is None or found.covariance is None or index is None:
            left_out.append(centre)
            continue
        area, variance = float(found.auc[index]), float(found.covariance[index, index])
        if not 0.0 < area < 1.0 or variance <= 0.0:
            left_out.append(centre)
            continue
        areas.append(area)
        variances.append(variance / (area * (1 - area)) ** 2)  # delta method
    combined = random_effects(logit(areas), variances, level)
    if combined is None:
        return None
    return RandomEffects(
        centres=combined.centres,
        mean=_as_auc(combined.mean),
        prediction=None if combined.prediction is None else _as_auc(combined.prediction),
        tau2=combined.tau2,
        q=combined.q,
        i2=combined.i2,
        left_out=tuple(left_out),
    )


def _as_auc(on_log_odds: Estimate) -> Estimate:
    return Estimate(*(float(expit(value)) for value in on_log_odds.as_dict().values()))
