"""A statistic as named arrays of float64, and back, with every check that its receiver needs.

Whole numbers below 2^53 are exact in float64, so that one type travels. What a statistic must look
like follows from the query and the plan; nothing that comes with it is believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from her2_common.errors import MetricError, UpdateError
from her2_common.metrics import GRID, MAX_CASES, ScoreHistogram
from her2_common.response.delong import PlacementSums, ScoreSet
from her2_common.response.firth import LeverageSums
from her2_common.response.inference import Integers, Matrix, Vector
from her2_common.response.logistic import LogisticSums
from her2_common.response.paired import ChangeSums
from her2_common.response.plan import Plan
from her2_common.response.queries import Query, Rows, Scores, Statistic, Tables, table_names
from her2_common.response.weighting import WeightSums

Arrays = Mapping[str, NDArray[np.float64]]

_ROUNDING: Final = 1e-9
"""Largest asymmetry of a sum of products, by its largest element, and how far below 0 its
eigenvalues may be; the same share of a bound by which a sum may exceed it."""

_LARGEST_VALUE: Final = 110.0**2
"""Of a column of a model: two ages multiplied (her2_common.response.patients.COLUMNS)."""

_LARGEST_WEIGHT: Final = 1e12
"""Of a sum of weights: a patient of a group that the propensity all but excludes."""


def pack(statistic: Statistic) -> dict[str, NDArray[np.float64]]:
    """The statistic as arrays by name."""
    if isinstance(statistic, Tables):
        parts: dict[str, Any] = dict(statistic.blocks)
    elif isinstance(statistic, Scores):
        parts = {"histograms": histograms(statistic.scores)}
        parts |= {f"own {name}": array for name, array in pack(statistic.own).items()}
    else:
        parts = {f.name: getattr(statistic, f.name) for f in fields(statistic) if f.name != "names"}
    return {name: np.asarray(value, np.float64) for name, value in parts.items()}


def histograms(scores: ScoreSet) -> Integers:
    """The histograms of a set, (scores, outcome, grid value)."""
    return np.stack([np.stack([h.negatives, h.positives]) for h in scores.histograms])


def unpack(query: Query, plan: Plan, arrays: Arrays, patients: int = MAX_CASES) -> Statistic:
    """The answer to ``query`` under ``plan`` of a centre of so many ``patients`` at most.

    Every sum is held to what so many patients can give, so that none spoils the others'.

    Raises:
        UpdateError: "misshapen", "not finite", "out of range" or "wrong count".
    """
    try:
        return _Reader(arrays, patients).read(query, plan)
    except MetricError as error:
        raise UpdateError(f"answer to {query.kind}: {error}", reason="misshapen") from None


class _Reader:
    """Takes arrays out of an answer, each once, each checked."""

    def __init__(self, arrays: Arrays, patients: int) -> None:
        self.arrays = dict(arrays)
        self.patients = patients

    def read(self, query: Query, plan: Plan) -> Statistic:
        statistic = self._read(query, plan)
        if self.arrays:
            raise UpdateError(f"answer to {query.kind}: unknown arrays", reason="misshapen")
        return statistic

    def _read(self, query: Query, plan: Plan) -> Statistic:
        if query.kind == "tables":
            shapes = {n: s for n, s in table_names(plan).items() if n in self.arrays}
            return Tables({name: self.counts(name, shape) for name, shape in shapes.items()})
        if query.kind in ("scores", "placements"):
            names = ("imaging",) if query.item == "treated" else ("imaging", "other")
            if query.kind == "placements":
                return self.placements(names, "")
            tables = self.counts("histograms", (len(names), 2, GRID + 1))
            scores = ScoreSet(names, tuple(ScoreHistogram(*table) for table in tables))
            own = self.placements(names, "own ")
            if own.counts.tolist() != [scores.negatives, scores.positives]:
                raise UpdateError("scores: two counts of patients", reason="wrong count")
            return Scores(scores, own)
        if query.kind == "rows":
            return Rows(self.counts("counts", (2,)))
        if query.kind == "weights":
            return self.weights()
        if query.kind == "change":
            counts = self.counts("counts", (2,))
            totals = self.take("totals", (2,), most=counts)
            squares = self.take("squares", (2,), least=0, most=counts)
            spread = counts * squares * (1 + _ROUNDING) + _ROUNDING
            self.require(totals**2 <= spread, "squares: too small for the totals")
            return ChangeSums(counts, totals, squares)
        beta = query.arrays["beta"]
        p, gradient, slope = beta.size, _LARGEST_VALUE, _LARGEST_VALUE**2 / 4
        if query.kind == "leverage":
            return LeverageSums(
                self.take("score", (p,), most=self.patients * gradient),
                self.square("slope", p, most=self.patients * slope),
            )
        n, events = (int(self.counts(name, ())) for name in ("n", "events"))
        if events > n:
            raise UpdateError("logistic: more events than patients", reason="wrong count")
        # Of one patient, log(1 + e^|eta|) at most
        lowest = n * (1.0 + _LARGEST_VALUE * float(np.abs(beta).sum()))
        likelihood = float(self.take("log_likelihood", (), least=-lowest, most=0.0))
        return LogisticSums(
            n,
            events,
            likelihood,
            self.take("gradient", (p,), most=n * gradient),
            self.square("hessian", p, most=n * slope),
        )

    def weights(self) -> WeightSums:
        """A group without patients has no weight, and one with them some; so have responders."""
        counts = self.counts("counts", (2, 2))
        sums: dict[str, Vector] = {}
        sums["weights"] = self.take("weights", (2,), least=0, most=_LARGEST_WEIGHT)
        sums["squares"] = self.take("squares", (2,), least=0, most=sums["weights"] ** 2)
        sums["responder_weights"] = self.take("responder_weights", (2,), 0, sums["weights"])
        sums["responder_squares"] = self.take("responder_squares", (2,), 0, sums["squares"])
        for name, patients in (
            ("weights", counts.sum(axis=1)),
            ("squares", counts.sum(axis=1)),
            ("responder_weights", counts[:, 1]),
            ("responder_squares", counts[:, 1]),
        ):
            self.require((sums[name] > 0) == (patients > 0), f"{name}: of other patients")
        # Cauchy and Schwarz: no group is worth more patients than it has
        self.require(
            sums["weights"] ** 2 <= counts.sum(axis=1) * sums["squares"] * (1 + _ROUNDING),
            "squares: too small for the weights",
        )
        return WeightSums(counts, *(sums[name] for name in _WEIGHTS))

    def placements(self, names: tuple[str, ...], prefix: str) -> PlacementSums:
        k = len(names)
        counts = self.counts(f"{prefix}counts", (2,))
        # A placement value less its mean lies between -1 and 1
        sums = self.take(f"{prefix}sums", (2, k), most=counts[:, None])
        products = self.take(f"{prefix}products", (2, k, k), most=counts[:, None, None])
        for outcome in range(2):
            spread = counts[outcome] * products[outcome] - np.outer(sums[outcome], sums[outcome])
            self.semidefinite(f"{prefix}products", products[outcome])
            size = float(counts[outcome]) ** 2
            self.semidefinite(f"{prefix}products", spread, size)
        return PlacementSums(names, counts, sums, products)

    def require(self, sound: NDArray[np.bool_], message: str) -> None:
        if not np.all(sound):
            raise UpdateError(message, reason="wrong count")

    def semidefinite(self, name: str, matrix: Matrix, size: float | None = None) -> None:
        largest = float(np.abs(matrix).max(initial=0.0)) if size is None else size
        asymmetry = float(np.abs(matrix - matrix.T).max(initial=0.0))
        if asymmetry > _ROUNDING * largest or (
            matrix.size and np.linalg.eigvalsh(matrix)[0] < -_ROUNDING * len(matrix) * largest
        ):
            raise UpdateError(f"{name}: expected a sum of squares", reason="misshapen")

    def take(
        self,
        name: str,
        shape: tuple[int, ...],
        least: float | None = None,
        most: ArrayLike | None = None,
    ) -> Vector:
        """An array of numbers from ``least`` (none: minus ``most``) to ``most``."""
        value = self.arrays.pop(name, None)
        if value is None or value.shape != shape or value.dtype != np.float64:
            raise UpdateError(f"{name}: expected float64 of shape {shape}", reason="misshapen")
        if not np.isfinite(value).all():
            raise UpdateError(f"{name}: holds NaN or infinity", reason="not finite")
        if least is not None and value.size and value.min() < least:
            raise UpdateError(f"{name}: expected numbers from {least:g}", reason="wrong count")
        limit = np.inf if most is None else np.asarray(most) * (1 + _ROUNDING) + _ROUNDING
        if np.any(value > limit) or (least is None and np.any(-value > limit)):
            raise UpdateError(f"{name}: more than the patients can give", reason="out of range")
        return value

    def counts(self, name: str, shape: tuple[int, ...]) -> Integers:
        value = self.take(name, shape, least=0)
        # A score has a histogram of its own of the same patients
        sets = 1 if name != "histograms" else shape[0]
        whole = np.all(value == np.floor(value)) and value.max(initial=0.0) <= self.patients
        if not whole or value.sum() > self.patients * sets:
            raise UpdateError(
                f"{name}: expected whole numbers, of {self.patients} patients at most",
                reason="wrong count",
            )
        return value.astype(np.int64)

    def square(self, name: str, p: int, most: float) -> Vector:
        """A sum of products of columns (p, p)."""
        value = self.take(name, (p, p), most=most)
        self.semidefinite(name, value)
        return value


_WEIGHTS: Final = ("weights", "squares", "responder_weights", "responder_squares")
