"""AUC and paired DeLong over centres that pool no patients, in two rounds.

1. Each site counts its scores by outcome on the public grid (``ScoreSet``); the sum is sent back.
2. With the summed histograms a site knows every placement value of its own patients: the share of
   all negatives below a positive, of all positives above a negative, ties half. It returns their
   sums and products (``PlacementSums``); ``discriminate`` turns the total into AUCs and their
   covariance, exactly as over pooled rows.

One score alone needs no second round: ``her2_common.metrics.auc_interval`` does it from the sum.

Three readings of many centres:

    per centre   both rounds with the centre's own histograms: ``at_centre``
    stratified   only patients of one centre are compared, weighted by pairs: ``stratified``
    pooled       patients of all centres are compared with each other; a score that differs between
                 centres as the prevalence does gains by it

Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837-845.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import pinvh

from her2_common.errors import MetricError
from her2_common.metrics import (
    Estimate,
    ScoreHistogram,
    auc,
    normal_quantile,
    quantise,
    twice_placements,
)
from her2_common.response.inference import (
    HypothesisTest,
    Integers,
    Matrix,
    Vector,
    binary,
    chi_square,
    frozen,
    z_test,
)

_NOTHING: Final = 1e-12
"""Share of the variances at which the variance of a difference is rounding error."""


@dataclass(frozen=True)
class ScoreSet:
    """Histograms of several scores on the same patients. ``+`` pools.

    Raises:
        MetricError: no score, names and histograms of unequal number, or scores on other patients.
    """

    names: tuple[str, ...]
    histograms: tuple[ScoreHistogram, ...]

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) != len(self.histograms):
            raise MetricError(
                f"scores: expected one histogram for each name, got {len(self.histograms)} "
                f"for {', '.join(self.names) or 'none'}"
            )
        sizes = {(histogram.n, histogram.m) for histogram in self.histograms}
        if len(sizes) != 1:
            raise MetricError(
                f"scores: expected the same patients for all, got (patients, positives) {sizes}"
            )

    @classmethod
    def from_rows(cls, scores: Mapping[str, ArrayLike], outcome: ArrayLike) -> ScoreSet:
        """Round 1: from scores (n,) in [0, 1] by name and an outcome (n,) of 0 and 1."""
        return cls(
            tuple(scores),
            tuple(ScoreHistogram.from_scores(values, outcome) for values in scores.values()),
        )

    @classmethod
    def empty(cls, names: Sequence[str]) -> ScoreSet:
        """No patients: the neutral element of ``+``."""
        return cls(tuple(names), (ScoreHistogram.empty(),) * len(names))

    def __add__(self, other: ScoreSet) -> ScoreSet:
        if not isinstance(other, ScoreSet):
            return NotImplemented
        if self.names != other.names:
            raise MetricError(f"scores: expected {self.names}, got {other.names}")
        pairs = zip(self.histograms, other.histograms, strict=True)
        return ScoreSet(self.names, tuple(one + two for one, two in pairs))

    @property
    def negatives(self) -> int:
        """Patients with outcome 0."""
        return self.histograms[0].n - self.histograms[0].m

    @property
    def positives(self) -> int:
        """Patients with outcome 1."""
        return self.histograms[0].m

    def cells(self) -> Integers:
        """Patients by outcome: a histogram on so fine a grid is sent by secure sum, or not at all
        where the policy counts its bins."""
        return np.array([self.negatives, self.positives], np.int64)


@dataclass(frozen=True, eq=False)
class PlacementSums:
    """Round 2: sums over patients of placement values less their mean over all centres.

    ``counts`` (2,) patients by outcome, ``sums`` (2, scores), ``products`` (2, scores, scores).
    ``+`` pools.
    """

    names: tuple[str, ...]
    counts: Integers
    sums: Matrix
    products: Matrix

    def __post_init__(self) -> None:
        k = len(self.names)
        shapes = (np.shape(self.counts), np.shape(self.sums), np.shape(self.products))
        if shapes != ((2,), (2, k), (2, k, k)):
            raise MetricError(f"placements: expected shapes for {k} scores, got {shapes}")
        object.__setattr__(self, "counts", frozen(np.asarray(self.counts, np.int64)))
        object.__setattr__(self, "sums", frozen(np.asarray(self.sums, np.float64)))
        object.__setattr__(self, "products", frozen(np.asarray(self.products, np.float64)))

    @classmethod
    def empty(cls, names: Sequence[str]) -> PlacementSums:
        """No patients: the neutral element of ``+``."""
        k = len(names)
        zeros = np.zeros((2, k, k))
        return cls(tuple(names), np.zeros(2, np.int64), zeros[:, 0], zeros)

    def __add__(self, other: PlacementSums) -> PlacementSums:
        if not isinstance(other, PlacementSums):
            return NotImplemented
        if self.names != other.names:
            raise MetricError(f"placements: expected {self.names}, got {other.names}")
        return PlacementSums(
            self.names,
            self.counts + other.counts,
            self.sums + other.sums,
            self.products + other.products,
        )

    def cells(self) -> Integers:
        """Patients by outcome."""
        return self.counts


def placement_sums(
    scores: Mapping[str, ArrayLike], outcome: ArrayLike, pooled: ScoreSet
) -> PlacementSums:
    """Round 2 at a site, from its rows and the histograms of all centres.

    Raises:
        MetricError: other scores than the histograms', a score that is no probability, or an
            outcome that is not 0 or 1; a patient whom the histograms do not count.
    """
    names = pooled.names
    if set(scores) != set(names):
        raise MetricError(f"scores: expected {names}, got {tuple(scores)}")
    responded = binary("outcome", outcome)
    bins = np.stack([quantise(scores[name]) for name in names], axis=1)  # (n, scores)
    if bins.shape[0] != responded.size:
        raise MetricError(f"scores: expected {responded.size} of each, got {bins.shape[0]}")
    counts = np.array([np.count_nonzero(~responded), np.count_nonzero(responded)], np.int64)
    if counts[0] > pooled.negatives or counts[1] > pooled.positives:
        raise MetricError("scores: expected patients of the pooled histograms, got more")
    placed = np.zeros((2, len(names))), np.zeros((2, len(names), len(names)))
    if pooled.histograms[0].both_classes:
        for label, mask in enumerate((~responded, responded)):
            centred = np.stack([centred_placements(one, label) for one in pooled.histograms])
            # (scores, GRID + 1) -> (patients of this outcome, scores)
            values = centred[np.arange(len(names)), bins[mask]]
            placed[0][label] = values.sum(axis=0)
            placed[1][label] = values.T @ values
    return PlacementSums(names, counts, *placed)


def centred_placements(histogram: ScoreHistogram, label: int) -> Vector:
    """Placement values of one outcome at each grid value, less their mean, the AUC: (GRID + 1,)."""
    below, above = twice_placements(histogram)
    if label:
        share, patients = below / (2 * (histogram.n - histogram.m)), histogram.positives
    else:
        share, patients = above / (2 * histogram.m), histogram.negatives
    return np.asarray(share - (patients @ share) / patients.sum())


@dataclass(frozen=True, eq=False)
class Discrimination:
    """AUCs of several scores on the same patients and their covariance.

    ``auc`` (scores,), ``covariance`` (scores, scores); a covariance of None (fewer than two
    patients of an outcome) means that nothing can be said about the precision.
    """

    names: tuple[str, ...]
    negatives: int
    positives: int
    auc: Vector
    covariance: Matrix | None

    def index(self, name: str) -> int:
        """Where a score stands.

        Raises:
            MetricError: there is no such score.
        """
        if name not in self.names:
            raise MetricError(f"score: expected one of {', '.join(self.names)}, got {name!r}")
        return self.names.index(name)

    def interval(self, name: str, level: float = 0.95) -> Estimate:
        """The AUC of one score with DeLong's interval, clipped to [0, 1].

        All of [0, 1] without a variance. Where the variance is 0 because the classes do not
        overlap, see ``her2_common.metrics.auc_interval``, which answers for pooled patients.
        """
        index = self.index(name)
        area = float(self.auc[index])
        if self.covariance is None or self.covariance[index, index] <= 0:
            return Estimate(area, 0.0, 1.0)
        margin = normal_quantile(level) * float(np.sqrt(self.covariance[index, index]))
        return Estimate(area, max(0.0, area - margin), min(1.0, area + margin))


def discriminate(sums: PlacementSums, pooled: ScoreSet) -> Discrimination | None:
    """AUCs and DeLong's covariance from the totals of both rounds; None without both outcomes.

    Raises:
        MetricError: the rounds counted different patients.
    """
    if tuple(sums.counts.tolist()) != (pooled.negatives, pooled.positives):
        raise MetricError(
            f"placements: expected {pooled.negatives} negatives and {pooled.positives} positives, "
            f"got {sums.counts[0]} and {sums.counts[1]}"
        )
    areas = [auc(histogram) for histogram in pooled.histograms]
    if any(area is None for area in areas):
        return None
    covariance = None
    if sums.counts.min() >= 2:
        spread = [
            (products - np.outer(total, total) / n) / (n - 1) / n
            for products, total, n in zip(sums.products, sums.sums, sums.counts, strict=True)
        ]
        covariance = spread[0] + spread[1]
    values = np.array(areas, dtype=np.float64)
    return Discrimination(sums.names, pooled.negatives, pooled.positives, values, covariance)


def at_centre(scores: Mapping[str, ArrayLike], outcome: ArrayLike) -> Discrimination | None:
    """Both rounds among the patients of one centre, or of one table; None without both outcomes.

    >>> alone = at_centre({"image": [0.1, 0.4, 0.4, 0.8]}, [0, 0, 1, 1])
    >>> float(alone.auc[0])
    0.875
    """
    own = ScoreSet.from_rows(scores, outcome)
    return discriminate(placement_sums(scores, outcome, own), own)


def stratified(centres: Sequence[Discrimination]) -> Discrimination | None:
    """Only patients of one centre are compared: AUCs averaged by pairs of outcomes.

    The chance that a positive outscores a negative of the same centre, a pair drawn from all such
    pairs. Centres without a variance are left out; None if none remains.

    Raises:
        MetricError: the centres have other scores.
    """
    usable = [(part, part.covariance) for part in centres if part.covariance is not None]
    if not usable:
        return None
    names = usable[0][0].names
    if any(part.names != names for part, _ in usable):
        raise MetricError("stratified AUC: expected the same scores at every centre, got others")
    pairs = np.array([part.negatives * part.positives for part, _ in usable], np.float64)
    weights = pairs / pairs.sum()
    return Discrimination(
        names,
        sum(part.negatives for part, _ in usable),
        sum(part.positives for part, _ in usable),
        np.stack([part.auc for part, _ in usable]).T @ weights,
        np.einsum("c,cij->ij", weights**2, np.stack([matrix for _, matrix in usable])),
    )


# --- comparisons ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class AucDifference:
    """AUC of the first score less AUC of the second; ``test`` is None without a variance."""

    first: str
    second: str
    difference: Estimate
    test: HypothesisTest | None


def compare(found: Discrimination, first: str, second: str, level: float = 0.95) -> AucDifference:
    """The paired DeLong test and the interval of the difference, which is clipped to [-1, 1].

    Scores that rank all patients alike differ by 0 with certainty: the interval is (0, 0) and
    there is no test. Without a variance of the difference the interval is all of [-1, 1].

    Raises:
        MetricError: there is no such score.
    """
    one, two = found.index(first), found.index(second)
    gap = float(found.auc[one] - found.auc[two])
    if found.covariance is None:
        return AucDifference(first, second, Estimate(gap, -1.0, 1.0), None)
    own = found.covariance[one, one] + found.covariance[two, two]
    variance = float(own - 2 * found.covariance[one, two])
    if variance <= _NOTHING * own or own <= 0:
        alike = own > 0 and abs(gap) <= _NOTHING
        interval = Estimate(0.0, 0.0, 0.0) if alike else Estimate(gap, -1.0, 1.0)
        return AucDifference(first, second, interval, None)
    error = float(np.sqrt(variance))
    margin = normal_quantile(level) * error
    interval = Estimate(gap, max(-1.0, gap - margin), min(1.0, gap + margin))
    return AucDifference(first, second, interval, z_test(gap / error))


def all_equal(found: Discrimination) -> HypothesisTest | None:
    """The joint chi-square test that all scores have the same AUC; df is the rank of the contrasts.

    None without a variance or with scores that all rank alike.
    """
    if found.covariance is None or len(found.names) < 2:
        return None
    contrast = np.eye(len(found.names))[1:] - np.eye(len(found.names))[0]
    gap, spread = contrast @ found.auc, contrast @ found.covariance @ contrast.T
    scale = float(np.trace(found.covariance))
    rank = int(np.count_nonzero(np.linalg.eigvalsh(spread) > _NOTHING * scale)) if scale > 0 else 0
    if rank == 0:
        return None
    inverse = pinvh(spread, atol=_NOTHING * scale, rtol=0.0)
    return chi_square(float(gap @ inverse @ gap), rank)
