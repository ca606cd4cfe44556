"""The logistic models and the weights, fitted over the centres by asking them again and again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from her2_common.errors import MetricError
from her2_common.metrics import Estimate
from her2_common.response import weighting
from her2_common.response.design import INTERCEPT, design
from her2_common.response.firth import fit_penalised, profile
from her2_common.response.inference import HypothesisTest, Matrix, Vector
from her2_common.response.logistic import LogisticFit, Separation, likelihood_ratio, solve
from her2_common.response.paired import ChangeSums, integrated_discrimination
from her2_common.response.patients import COLUMNS, Patients
from her2_common.response.plan import PROPENSITY, Model
from her2_common.response.pooling import Pool, RefusedError
from her2_common.response.queries import Query, Rows
from her2_common.response.weighting import WeightedEffect


@dataclass(frozen=True)
class FittedModel:
    """A model of the plan; ``reduced`` and ``test`` are None without tested terms.

    A penalised ``fit`` has intervals of all columns but intercept and centres.

    ``improvement`` is the IDI by component, (no pCR, pCR), from the reduced to the full model.
    """

    fit: LogisticFit
    reduced: LogisticFit | None
    test: HypothesisTest | None
    centres: tuple[str, ...]
    improvement: tuple[Estimate | None, Estimate | None] | None


def fit_model(pool: Pool, model: Model) -> FittedModel:
    """Fit a model and its reduced form; with Firth's penalty where outcomes are separated.

    Raises:
        RefusedError: too few centres with complete patients.
        MetricError: the data cannot be fitted (collinear terms, one outcome).
    """
    what = f"logistic {model.name}"
    centres = _complete(pool, model.name, what, both=False)
    full = _Fitter(pool, model.name, model.terms, centres, what)
    fit = full.fit()
    reduced: LogisticFit | None = None
    test = improvement = None
    if model.tested:
        part = _Fitter(pool, model.name, model.reduced(), centres, what, reduced=True)
        tested = tuple(name for name in full.names if name not in part.names)
        reduced = full.penalised(held=tested) if fit.penalised else _plain(part)
        test = likelihood_ratio(fit, reduced)
        small = np.zeros(len(full.names))
        for name, value in zip(reduced.names, reduced.beta, strict=True):
            small[full.names.index(name)] = value
        query = Query("change", model.name, centres, arrays={"beta": fit.beta, "reduced": small})
        changes: ChangeSums = full.total(query)
        improvement = integrated_discrimination(changes)
    if fit.penalised:  # last: it takes most of the queries
        fit = full.profiled(fit)
    return FittedModel(fit, reduced, test, centres, improvement)


def weigh(pool: Pool) -> tuple[WeightedEffect | None, LogisticFit, np.ndarray, tuple[str, ...]]:
    """The weighted comparison: effect, propensity, patients (group, outcome), centres.

    Centres in which the model calls all patients alike are left out: nobody there could have been
    in the other group.

    Raises:
        RefusedError: too few centres with both groups.
        MetricError: the propensity cannot be fitted.
    """
    centres = _complete(pool, PROPENSITY, "ipw", both=True)
    fitter = _Fitter(pool, PROPENSITY, pool.plan.propensity, centres, "ipw")
    fit = fitter.fit()
    share = np.array([fit.events / fit.n])
    sums = fitter.total(Query("weights", PROPENSITY, centres, arrays={
        "beta": fit.beta, "share": share}))  # fmt: skip
    return weighting.effect(sums), fit, sums.counts, centres


def _complete(pool: Pool, name: str, what: str, *, both: bool) -> tuple[str, ...]:
    """The centres with complete patients; with ``both``, of both outcomes of the model."""
    rows: dict[str, Rows] = pool.answers(Query("rows", name), what)
    kept = [c for c, r in rows.items() if (r.counts.all() if both else r.counts.any())]
    pool.enough(len(kept))
    if not kept:
        raise RefusedError(f"{what}: expected patients in whom all terms are known, got none")
    return tuple(kept)


def _columns(terms: tuple[str, ...], centres: tuple[str, ...], outcome: str) -> tuple[str, ...]:
    nobody = Patients(centres[0], dict.fromkeys(COLUMNS, np.zeros(0)))
    return design(nobody, terms, centres, outcome=outcome).names


class _Fitter:
    """One model over fixed centres."""

    def __init__(
        self,
        pool: Pool,
        item: str,
        terms: tuple[str, ...],
        centres: tuple[str, ...],
        what: str,
        *,
        reduced: bool = False,
    ) -> None:
        self.pool, self.item, self.centres, self.what = pool, item, centres, what
        self.is_reduced = reduced
        self.names = _columns(terms, centres, "call" if item == PROPENSITY else "pcr")

    def fit(self) -> LogisticFit:
        """The ordinary fit, or the penalised one."""
        found = solve(self._sums, self.names)
        return self.penalised() if isinstance(found, Separation) else found

    def penalised(self, held: tuple[str, ...] = ()) -> LogisticFit:
        """Firth's fit."""
        return fit_penalised(self._sums, self._leverage, self.names, held=held)

    def profiled(self, fit: LogisticFit) -> LogisticFit:
        """A penalised fit with the intervals of what is not a centre's."""
        names = [n for n in fit.names if n != INTERCEPT and "centre[" not in n]
        return profile(self._sums, self._leverage, fit, names)

    def total(self, query: Query) -> Any:
        """The sum of the centres' answers.

        Raises:
            RefusedError: a centre that has answered before withholds this.
        """
        given = self.pool.ask(query)
        parts = [given.get(centre) for centre in self.centres]
        if any(part is None for part in parts):
            raise RefusedError(f"{self.what}: expected the same centres in every round, got others")
        return reduce(add, parts)

    def _sums(self, beta: Vector) -> Any:
        return self.total(self._query("logistic", beta))

    def _leverage(self, beta: Vector, inverse: Matrix) -> Any:
        return self.total(self._query("leverage", beta, inverse=inverse))

    def _query(self, kind: Any, beta: Vector, **more: Matrix) -> Query:
        arrays = {"beta": beta, **more}
        return Query(kind, self.item, self.centres, reduced=self.is_reduced, arrays=arrays)


def _plain(fitter: _Fitter) -> LogisticFit:
    found = solve(fitter._sums, fitter.names)
    if isinstance(found, Separation):  # a part of an overlapping model overlaps
        raise MetricError(f"{fitter.what}: expected outcomes that overlap, got others")
    return found
