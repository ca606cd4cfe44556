"""Two calls on the same patients: McNemar, discordance, reclassification.

``CallTable`` counts patients by outcome and two binary calls, the first usually the biopsy and the
second the model. Sensitivities and specificities of both, McNemar's tests, the discordance strata
and the net reclassification follow from its eight numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from her2_common.errors import MetricError
from her2_common.metrics import Confusion, Estimate, normal_quantile, wilson
from her2_common.response.inference import (
    HypothesisTest,
    Integers,
    Vector,
    binary,
    chi_square,
    frozen,
)
from her2_common.response.patients import Patients, called

ALL_COMERS_WARNING: Final = (
    "Therapy follows the biopsy: in all comers the biopsy predicts pCR partly because it decides "
    "who receives anti-HER2 drugs. A comparison with the biopsy here favours the biopsy."
)
"""Stands beside every number over all comers."""

RECLASSIFICATION_WARNING: Final = (
    "NRI and IDI are read by component only; their sum has no clinical meaning, and they can "
    "favour a model that adds nothing but is badly calibrated."
)
"""Sources: Pepe et al., Statistics in Medicine 34 (2015) 110-121; Kerr et al., Epidemiology 25
(2014) 114-121."""


@dataclass(frozen=True, eq=False)
class CallTable:
    """``counts`` (outcome, first call, second call), whole numbers, shape (2, 2, 2). ``+`` pools.

    Raises:
        MetricError: another shape, negative or fractional counts.

    >>> table = CallTable.from_rows(first=[1, 1, 0], second=[1, 0, 0], outcome=[1, 0, 1])
    >>> (table + table).n
    6
    """

    counts: Integers

    def __post_init__(self) -> None:
        counts = np.asarray(self.counts)
        if counts.shape != (2, 2, 2) or counts.dtype.kind not in "iu" or counts.min() < 0:
            raise MetricError(
                "calls: expected whole numbers from 0 of shape (2, 2, 2), "
                f"got shape {counts.shape} of type {counts.dtype}"
            )
        object.__setattr__(self, "counts", frozen(counts.astype(np.int64)))

    @classmethod
    def from_rows(cls, first: ArrayLike, second: ArrayLike, outcome: ArrayLike) -> CallTable:
        """Count rows by three columns, each (n,) of 0 and 1."""
        responded = binary("outcome", outcome)
        one = binary("first call", first, responded.size)
        two = binary("second call", second, responded.size)
        # (8,) -> (outcome, first, second)
        return cls(np.bincount(4 * responded + 2 * one + two, minlength=8).reshape(2, 2, 2))

    @classmethod
    def of(cls, patients: Patients, threshold: float) -> CallTable:
        """Biopsy against model, for the patients whose biopsy, score and pCR are known."""
        known = patients.where(patients.known("biopsy", "score", "pcr"))
        calls = called(known.column("score"), threshold)
        return cls.from_rows(known.column("biopsy"), calls, known.column("pcr"))

    @classmethod
    def empty(cls) -> CallTable:
        """No patients: the neutral element of ``+``."""
        return cls(np.zeros((2, 2, 2), np.int64))

    def __add__(self, other: CallTable) -> CallTable:
        if not isinstance(other, CallTable):
            return NotImplemented
        return CallTable(self.counts + other.counts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CallTable):
            return NotImplemented
        return np.array_equal(self.counts, other.counts)

    def __hash__(self) -> int:
        return hash(self.counts.tobytes())

    @property
    def n(self) -> int:
        """Patients."""
        return int(self.counts.sum())

    def cells(self) -> Integers:
        """All eight counts, flat."""
        return self.counts.ravel()

    def confusion(self, call: int) -> Confusion:
        """Calls by outcome, of the first (0) or the second (1) call."""
        table = self.counts.sum(axis=2 - call)  # (outcome, call)
        (tn, fp), (fn, tp) = table.tolist()
        return Confusion(tp=tp, fp=fp, tn=tn, fn=fn)


# --- McNemar -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class McNemar:
    """Do two calls on the same patients differ in their rate of positives?

    ``first_only`` and ``second_only`` count patients called positive by one alone; only these
    matter. Without any there is nothing to test, and all three tests are None.
    """

    first_only: int
    second_only: int
    exact: HypothesisTest | None
    chi2: HypothesisTest | None
    corrected: HypothesisTest | None


def mcnemar(first_only: int, second_only: int) -> McNemar:
    """McNemar's test: exact binomial, and chi-square with and without continuity correction.

    The statistic of the exact test is the smaller of the two counts. Source: McNemar,
    Psychometrika 12 (1947) 153-157.

    Raises:
        MetricError: a negative count.

    >>> round(mcnemar(150, 86).chi2.statistic, 2)
    17.36
    """
    if first_only < 0 or second_only < 0:
        raise MetricError(f"McNemar: expected counts from 0, got {first_only} and {second_only}")
    discordant, distance = first_only + second_only, abs(first_only - second_only)
    smaller = min(first_only, second_only)
    if discordant == 0:
        return McNemar(0, 0, None, None, None)
    return McNemar(
        first_only,
        second_only,
        HypothesisTest(float(smaller), None, float(binomtest(smaller, discordant).pvalue)),
        chi_square(distance**2 / discordant, 1),
        chi_square(max(0, distance - 1) ** 2 / discordant, 1),
    )


def mcnemar_by_outcome(table: CallTable) -> tuple[McNemar, McNemar]:
    """McNemar's test within non-pCR and within pCR: ``(specificities, sensitivities)`` compared."""
    without, responders = (mcnemar(int(part[1, 0]), int(part[0, 1])) for part in table.counts)
    return without, responders


# --- discordance ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class DiscordanceStratum:
    """Patients with one pair of calls and their pCR rate (Wilson); None without patients."""

    first: int
    second: int
    n: int
    responders: int
    rate: Estimate | None


def discordance(table: CallTable, level: float = 0.95) -> list[DiscordanceStratum]:
    """The four strata of first call x second call: (0, 0), (0, 1), (1, 0), (1, 1)."""
    result = []
    for first in (0, 1):
        for second in (0, 1):
            others, responders = table.counts[:, first, second].tolist()
            rate = wilson(responders, others + responders, level)
            result.append(DiscordanceStratum(first, second, others + responders, responders, rate))
    return result


# --- reclassification ----------------------------------------------------------------------------


def net_reclassification(
    table: CallTable, level: float = 0.95
) -> tuple[Estimate | None, Estimate | None]:
    """NRI from the first to the second call by component: ``(non-responders, responders)``.

    Among responders the share moved up less the share moved down, among non-responders the
    reverse: above 0 is better in both, and both are differences of paired proportions
    (specificities, sensitivities). The interval is Bonett and Price's, which stays sensible
    without discordant patients. Print ``RECLASSIFICATION_WARNING`` beside it; None for an empty
    component.

    Sources: Pencina et al., Statistics in Medicine 27 (2008) 157-172; Bonett and Price, Journal of
    Educational and Behavioral Statistics 37 (2012) 479-488.
    """
    (without, responders) = table.counts
    return (
        paired_difference(int(without[1, 0]), int(without[0, 1]), int(without.sum()), level),
        paired_difference(
            int(responders[0, 1]), int(responders[1, 0]), int(responders.sum()), level
        ),
    )


def paired_difference(gained: int, lost: int, n: int, level: float = 0.95) -> Estimate | None:
    """(gained - lost) / n with Bonett and Price's interval (one discordant pair added each way)."""
    if n == 0:
        return None
    share_gained, share_lost = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    centre = share_gained - share_lost
    margin = normal_quantile(level) * float(
        np.sqrt((share_gained + share_lost - centre**2) / (n + 2))
    )
    return Estimate((gained - lost) / n, max(-1.0, centre - margin), min(1.0, centre + margin))


@dataclass(frozen=True, eq=False)
class ChangeSums:
    """Sums over patients of the change from a first to a second probability, by outcome.

    ``counts`` (2,) patients, ``totals`` (2,) of the changes, ``squares`` (2,) of their squares.
    ``+`` pools.
    """

    counts: Integers
    totals: Vector
    squares: Vector

    @classmethod
    def from_rows(cls, first: ArrayLike, second: ArrayLike, outcome: ArrayLike) -> ChangeSums:
        """From two probabilities and an outcome of 0 and 1, each (n,)."""
        responded = binary("outcome", outcome)
        change = np.asarray(second, np.float64) - np.asarray(first, np.float64)
        if change.shape != responded.shape or not np.all(np.abs(change) <= 1):
            raise MetricError(
                f"probabilities: expected {responded.size} numbers from 0 to 1, got others"
            )
        parts = (change[~responded], change[responded])
        return cls(
            np.array([part.size for part in parts], np.int64),
            np.array([part.sum() for part in parts]),
            np.array([part @ part for part in parts]),
        )

    def __add__(self, other: ChangeSums) -> ChangeSums:
        if not isinstance(other, ChangeSums):
            return NotImplemented
        return ChangeSums(
            self.counts + other.counts, self.totals + other.totals, self.squares + other.squares
        )

    def cells(self) -> Integers:
        """Patients by outcome."""
        return self.counts


def integrated_discrimination(
    sums: ChangeSums, level: float = 0.95
) -> tuple[Estimate | None, Estimate | None]:
    """IDI by component: ``(non-responders, responders)``, above 0 is better in both.

    The mean rise of the probability in responders and its mean fall in non-responders, normal
    intervals; None with fewer than two patients. Both probabilities must be of pCR. Print
    ``RECLASSIFICATION_WARNING`` beside it. Source: Pencina et al., Statistics in Medicine 27
    (2008) 157-172.
    """
    result: list[Estimate | None] = []
    for sign, n, total, squares in zip(
        (-1, 1), sums.counts.tolist(), sums.totals, sums.squares, strict=True
    ):
        if n < 2:
            result.append(None)
            continue
        mean = sign * float(total) / n
        variance = max(0.0, float(squares) - n * mean**2) / (n - 1)
        margin = normal_quantile(level) * float(np.sqrt(variance / n))
        result.append(Estimate(mean, mean - margin, mean + margin))
    return result[0], result[1]
