"""A statistic as named arrays of float64, and back, with every check that its receiver needs.

Whole numbers below 2^53 are exact in float64, so that one type travels. What a statistic must look
like follows from the query and the plan; nothing that comes with it is believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from her2_common.errors import MetricError, UpdateError
from her2_common.metrics import GRID, MAX_CASES, ScoreHistogram
from her2_common.response.delong import PlacementSums, ScoreSet
from her2_common.response.firth import LeverageSums
from her2_common.response.inference import Integers, Vector
from her2_common.response.logistic import LogisticSums
from her2_common.response.paired import ChangeSums
from her2_common.response.plan import Plan
from her2_common.response.queries import Query, Rows, Scores, Statistic, Tables, table_names
from her2_common.response.weighting import WeightSums

Arrays = Mapping[str, NDArray[np.float64]]

_SYMMETRIC: Final = 1e-9
"""Largest asymmetry of a sum of products, by its largest element."""


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


def unpack(query: Query, plan: Plan, arrays: Arrays) -> Statistic:
    """The answer to ``query`` under ``plan``.

    Raises:
        UpdateError: "misshapen", "not finite" or "wrong count".
    """
    try:
        return _Reader(arrays).read(query, plan)
    except MetricError as error:
        raise UpdateError(f"answer to {query.kind}: {error}", reason="misshapen") from None


class _Reader:
    """Takes arrays out of an answer, each once, each checked."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = dict(arrays)

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
            sums = [self.take(name, (2,), least=0) for name in _WEIGHTS]
            return WeightSums(self.counts("counts", (2, 2)), *sums)
        if query.kind == "change":
            return ChangeSums(
                self.counts("counts", (2,)),
                self.take("totals", (2,)),
                self.take("squares", (2,), least=0),
            )
        p = query.arrays["beta"].size
        if query.kind == "leverage":
            return LeverageSums(self.take("score", (p,)), self.square("slope", p))
        n, events = (int(self.counts(name, ())) for name in ("n", "events"))
        if events > n:
            raise UpdateError("logistic: more events than patients", reason="wrong count")
        likelihood = float(self.take("log_likelihood", ()))
        return LogisticSums(
            n, events, likelihood, self.take("gradient", (p,)), self.square("hessian", p)
        )

    def placements(self, names: tuple[str, ...], prefix: str) -> PlacementSums:
        k = len(names)
        return PlacementSums(
            names,
            self.counts(f"{prefix}counts", (2,)),
            self.take(f"{prefix}sums", (2, k)),
            self.take(f"{prefix}products", (2, k, k)),
        )

    def take(self, name: str, shape: tuple[int, ...], least: float | None = None) -> Vector:
        value = self.arrays.pop(name, None)
        if value is None or value.shape != shape or value.dtype != np.float64:
            raise UpdateError(f"{name}: expected float64 of shape {shape}", reason="misshapen")
        if not np.isfinite(value).all():
            raise UpdateError(f"{name}: holds NaN or infinity", reason="not finite")
        if least is not None and value.size and value.min() < least:
            raise UpdateError(f"{name}: expected numbers from {least:g}", reason="wrong count")
        return value

    def counts(self, name: str, shape: tuple[int, ...]) -> Integers:
        value = self.take(name, shape, least=0)
        if np.any(value != np.floor(value)) or value.sum() > MAX_CASES:
            raise UpdateError(f"{name}: expected whole numbers", reason="wrong count")
        return value.astype(np.int64)

    def square(self, name: str, p: int) -> Vector:
        value = self.take(name, (p, p))
        if np.abs(value - value.T).max(initial=0.0) > _SYMMETRIC * np.abs(value).max(initial=0.0):
            raise UpdateError(f"{name}: expected a symmetric matrix", reason="misshapen")
        return value


_WEIGHTS: Final = ("weights", "squares", "responder_weights", "responder_squares")
