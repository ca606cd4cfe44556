"""Novelty: is an image like those that the model was trained on?

A model scores whatever it is shown: noise, a knee, another scanner's protocol. For each modality,
the feature of an image is compared with the features of the training cases:

1. Each site sums [1, f] [1, f]^T over its training cases (``moments``). Sums add: those of the
   federation are those of the pooled cases.
2. ``reference_of`` the sum: mean and shrunk covariance, as the factor that whitens a feature.
3. ``unlikeness`` of a feature, 0 to 1, from its Mahalanobis distance; a site sends the histogram
   of its validation cases.
4. ``limit_of`` the summed histogram: a new image like those of validation is above it with a
   probability of at most 1 %.

Sources: Lee et al., NeurIPS 2018 (the distance; here one Gaussian a modality, not one a class, so
that it does not depend on labels); Chen, Wiesel, Eldar and Hero, IEEE TSP 58 (2010) 5016-5029 (the
shrinkage); Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005 (the limit).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from her2_common.cases import MODALITIES, Modality
from her2_common.errors import UpdateError
from her2_common.metrics import GRID, ScoreHistogram

ONE_IN: Final = 100
"""Of so many images like those of validation, one may be flagged (a design choice)."""

FEWEST_CASES: Final = ONE_IN - 1
"""Validation cases below which no limit keeps that promise."""

SMALLEST_SPREAD: Final = 1e-9
"""Variance of features, as a share of their mean square, below which it is rounding alone."""


@dataclass(frozen=True, eq=False)
class Reference:
    """The training cases' features of one modality: ``mean`` (d,) and ``factor`` (d, d), float32.

    ``factor`` F is lower triangular and F^T F the inverse of the shrunk covariance, so that
    |F (f - mean)| is the Mahalanobis distance of f.
    """

    mean: NDArray[np.float32]
    factor: NDArray[np.float32]


def moments(features: NDArray[Any]) -> NDArray[np.float64]:
    """The sum over cases of [1, f] [1, f]^T, for features (n, d): (d + 1, d + 1), n in the corner.

    >>> moments(np.array([[2.0], [4.0]])).tolist()
    [[2.0, 6.0], [6.0, 20.0]]
    """
    rows = np.concatenate([np.ones((len(features), 1)), features.astype(np.float64)], axis=1)
    total = rows.T @ rows
    exact: NDArray[np.float64] = (total + total.T) / 2  # symmetric to the last bit
    return exact


def oas_shrinkage(covariance: NDArray[np.float64], n: int) -> float:
    """How far a sample covariance (d, d) of n cases is drawn to a multiple of the identity, 0 to 1.

    Oracle approximating shrinkage needs the matrix and n, no cases: so it can be had from sums. It
    is 1 for features that have the same spread in all directions. As in scikit-learn, the terms
    2/d of the paper's equation 23 are left out: they are below 2 % of the result from d = 100 on.
    """
    d = len(covariance)
    square_mean, mean_square = (np.trace(covariance) / d) ** 2, float(np.mean(covariance**2))
    spread = (n + 1) * (mean_square - square_mean / d)
    return 1.0 if spread <= 0 else float(min(1.0, (mean_square + square_mean) / spread))


def reference_of(total: NDArray[np.float64]) -> Reference | None:
    """Mean and whitening factor from the summed ``moments`` (d + 1, d + 1) of all training cases.

    The shrinkage makes the covariance invertible with fewer cases than features, too. None for
    fewer than 2 cases, features that do not vary, or sums that are those of no cases.
    """
    n = float(total[0, 0])
    if not n >= 2:
        return None
    mean, square = total[0, 1:] / n, total[1:, 1:] / n
    covariance = square - np.outer(mean, mean)
    variance = float(np.trace(covariance))
    if not variance > SMALLEST_SPREAD * np.trace(square):
        return None
    shrinkage = oas_shrinkage(covariance, round(n))
    shrunk = (1 - shrinkage) * covariance + shrinkage * variance / len(mean) * np.eye(len(mean))
    try:
        triangle = np.linalg.cholesky(shrunk)
    except np.linalg.LinAlgError:
        return None
    factor = solve_triangular(triangle, np.eye(len(mean)), lower=True)
    return Reference(mean.astype(np.float32), factor.astype(np.float32))


def unlikeness(features: NDArray[Any], reference: Reference) -> NDArray[np.float64]:
    """D / (D + d) for features (n, d), D the squared Mahalanobis distance: (n,), in [0, 1).

    0 is the training mean; 0.5 is a D of d, which a training case would have on average without
    shrinkage (with it, they lie lower); 0.9 is three times as far.
    """
    away = (features.astype(np.float64) - reference.mean) @ reference.factor.T  # (n, d)
    square = np.sum(away**2, axis=1)
    share: NDArray[np.float64] = square / (square + away.shape[1])
    return share


def counted(values: NDArray[np.float64]) -> ScoreHistogram:
    """The histogram of unlikeness (n,), NaN left out; it knows no classes and counts all as 0."""
    known = values[~np.isnan(values)]
    return ScoreHistogram.from_scores(known, np.zeros(known.size, dtype=np.int64))


def limit_of(validation: ScoreHistogram) -> float | None:
    """The grid value that at most one in a hundred new images like those of validation exceeds.

    It is the smallest order statistic with that promise (a conformal quantile), which needs no
    assumption on the features but that the new image is drawn as those of validation were. None
    for fewer than 99 cases, which cannot give it.
    """
    cases = validation.negatives + validation.positives
    n = int(cases.sum())
    rank = n + 1 - (n + 1) // ONE_IN  # of n cases in rising order, from 1
    if rank > n:
        return None
    return int(np.searchsorted(np.cumsum(cases), rank)) / GRID


def beyond(histogram: ScoreHistogram, limit: float) -> int:
    """How many cases of a histogram of unlikeness are above ``limit``, a value of the grid."""
    cases = histogram.negatives + histogram.positives
    return int(cases[round(limit * GRID) + 1 :].sum())


# --- on the wire and in a release ----------------------------------------------------------------


def pack(references: Mapping[Modality, Reference]) -> dict[str, NDArray[np.float32]]:
    """References as named arrays: ``mg.mean`` (d,), ``mg.factor`` (d, d), and so on.

    In C order: safetensors writes an array's memory as it lies, so one in Fortran order (as LAPACK
    returns it) would come back transposed.
    """
    arrays = {}
    for modality, reference in references.items():
        arrays[f"{modality}.mean"] = np.ascontiguousarray(reference.mean)
        arrays[f"{modality}.factor"] = np.ascontiguousarray(reference.factor)
    return arrays


def unpack(arrays: Mapping[str, NDArray[Any] | None], d: int) -> dict[Modality, Reference]:
    """The references in named arrays, each checked against the feature width ``d``.

    Raises:
        UpdateError: "misshapen" or "not finite".
    """
    references: dict[Modality, Reference] = {}
    for modality in MODALITIES:
        mean, factor = arrays.get(f"{modality}.mean"), arrays.get(f"{modality}.factor")
        if mean is None or factor is None:
            continue
        for array, shape in ((mean, (d,)), (factor, (d, d))):
            if array.shape != shape or array.dtype != np.float32:
                raise UpdateError(
                    f"reference {modality}: expected float32 of shape {shape}, "
                    f"got {array.dtype} of shape {array.shape}",
                    reason="misshapen",
                )
            if not np.isfinite(array).all():
                raise UpdateError(
                    f"reference {modality}: holds NaN or infinity", reason="not finite"
                )
        references[modality] = Reference(mean, factor)
    if unknown := sorted(set(arrays) - set(pack(references))):
        raise UpdateError(
            f"references: expected mean and factor of modalities, got {unknown[0]!r}",
            reason="misshapen",
        )
    return references
