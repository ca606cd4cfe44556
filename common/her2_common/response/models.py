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
from her2_common.response.aliasing import Dropped, estimable, order_of_terms
from her2_common.response.design import INTERCEPT, design
from her2_common.response.firth import LeverageSums, fit_penalised, profile
from her2_common.response.inference import HypothesisTest, Matrix, Vector
from her2_common.response.logistic import (
    LogisticFit,
    LogisticSums,
    Separation,
    likelihood_ratio,
    solve,
)
from her2_common.response.paired import ChangeSums, integrated_discrimination
from her2_common.response.patients import COLUMNS, Patients
from her2_common.response.plan import PROPENSITY, Model
from her2_common.response.pooling import Pool, RefusedError
from her2_common.response.queries import Query, Rows
from her2_common.response.weighting import WeightedEffect


@dataclass(frozen=True)
class FittedModel:
    """A model of the plan; ``reduced`` and ``test`` are None where nothing is tested.

    ``dropped`` are the columns that follow from others (``aliasing``), ``tested`` the terms that
    are left to be tested. ``improvement`` is the IDI by component, (no pCR, pCR), from the reduced
    to the full model. A penalised ``fit`` has intervals of all columns but intercept and centres.
    """

    fit: LogisticFit
    reduced: LogisticFit | None
    test: HypothesisTest | None
    centres: tuple[str, ...]
    improvement: tuple[Estimate | None, Estimate | None] | None
    dropped: tuple[Dropped, ...] = ()
    tested: tuple[str, ...] = ()


def fit_model(pool: Pool, model: Model) -> FittedModel:
    """Fit a model and its reduced form; with Firth's penalty where outcomes are separated.

    Columns that follow from others are dropped by the rule of ``aliasing``.

    Raises:
        RefusedError: too few centres with complete patients.
        MetricError: the data cannot be fitted (one outcome, no convergence).
    """
    what = f"logistic {model.name}"
    centres = _complete(pool, model.name, what, both=False)
    full = _Fitter(pool, model.name, model.terms, centres, what, tested=model.tested)
    fit = full.fit()
    tested = tuple(term for term in model.tested if set(full.columns[term]) & set(full.names))
    if not tested:
        return FittedModel(full.profiled(fit), None, None, centres, None, full.dropped)
    held = tuple(c for term in tested for c in full.columns[term] if c in full.names)
    if fit.penalised:
        reduced = full.penalised(held=held)
    else:
        rest = tuple(name for name in full.names if name not in held)
        reduced = _plain(_Fitter(pool, model.name, model.reduced(), centres, what, names=rest))
    small = dict(zip(reduced.names, reduced.beta.tolist(), strict=True))
    query = Query("change", model.name, centres, arrays={
        "beta": full.whole(fit.beta),
        "reduced": full.whole(np.array([small.get(name, 0.0) for name in full.names])),
    })  # fmt: skip
    changes: ChangeSums = full.total(query)
    return FittedModel(
        full.profiled(fit),  # last: it may take most of the queries
        reduced,
        likelihood_ratio(fit, reduced),
        centres,
        integrated_discrimination(changes),
        full.dropped,
        tested,
    )


@dataclass(frozen=True, eq=False)
class Weighed:
    """The weighted comparison: its effect (None without both groups), the propensity, patients
    (group, outcome), and the columns of the propensity that follow from others."""

    effect: WeightedEffect | None
    propensity: LogisticFit
    counts: np.ndarray
    centres: tuple[str, ...]
    dropped: tuple[Dropped, ...]


def weigh(pool: Pool) -> Weighed:
    """The comparison weighted by the propensity.

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
        "beta": fitter.whole(fit.beta), "share": share}))  # fmt: skip
    return Weighed(weighting.effect(sums), fit, sums.counts, centres, fitter.dropped)


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
    """One model over fixed centres: the columns that can be estimated, or those of ``names``.

    The centres answer for all columns of the terms; a dropped column has the coefficient 0, and
    what is said of it is left out of the sums.
    """

    def __init__(
        self,
        pool: Pool,
        item: str,
        terms: tuple[str, ...],
        centres: tuple[str, ...],
        what: str,
        *,
        tested: tuple[str, ...] = (),
        names: tuple[str, ...] | None = None,
    ) -> None:
        self.pool, self.item, self.centres, self.what = pool, item, centres, what
        self.is_reduced = names is not None
        outcome = "call" if item == PROPENSITY else "pcr"
        self.asked = _columns(terms, centres, outcome)
        self.columns = {term: _columns((term,), centres, outcome)[1:] for term in terms}
        self._start: LogisticSums = self.total(self._query("logistic", np.zeros(len(self.asked))))
        self.names = names or self.asked
        self.dropped: tuple[Dropped, ...] = ()
        if names is None:
            ordered = [c for term in order_of_terms(terms, tested) for c in self.columns[term]]
            products = self._start.hessian  # at coefficients of 0: a quarter of X'X
            self.names, self.dropped = estimable(products, self.asked, (INTERCEPT, *ordered))
        self._kept = [self.asked.index(name) for name in self.names]

    def fit(self) -> LogisticFit:
        """The ordinary fit, or the penalised one."""
        found = solve(self._sums, self.names)
        return self.penalised() if isinstance(found, Separation) else found

    def penalised(self, held: tuple[str, ...] = ()) -> LogisticFit:
        """Firth's fit."""
        return fit_penalised(self._sums, self._leverage, self.names, held=held)

    def profiled(self, fit: LogisticFit) -> LogisticFit:
        """A penalised fit with the intervals of what is not a centre's; another as it is."""
        if not fit.penalised:
            return fit
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

    def whole(self, beta: Vector) -> Vector:
        """Coefficients of all columns, 0 for those that are not fitted."""
        coefficients = np.zeros(len(self.asked))
        coefficients[self._kept] = beta
        return coefficients

    def _sums(self, beta: Vector) -> LogisticSums:
        sums: LogisticSums = self._start
        if beta.any():
            sums = self.total(self._query("logistic", self.whole(beta)))
        return LogisticSums(
            sums.n,
            sums.events,
            sums.log_likelihood,
            sums.gradient[self._kept],
            sums.hessian[np.ix_(self._kept, self._kept)],
        )

    def _leverage(self, beta: Vector, inverse: Matrix) -> LeverageSums:
        block = np.ix_(self._kept, self._kept)
        padded = np.zeros((len(self.asked), len(self.asked)))
        padded[block] = inverse
        sums: LeverageSums = self.total(self._query("leverage", self.whole(beta), inverse=padded))
        return LeverageSums(sums.score[self._kept], sums.slope[block])

    def _query(self, kind: Any, beta: Vector, **more: Matrix) -> Query:
        arrays = {"beta": beta, **more}
        return Query(kind, self.item, self.centres, reduced=self.is_reduced, arrays=arrays)


def _plain(fitter: _Fitter) -> LogisticFit:
    found = solve(fitter._sums, fitter.names)
    if isinstance(found, Separation):  # a part of an overlapping model overlaps
        raise MetricError(f"{fitter.what}: expected outcomes that overlap, got others")
    return found
