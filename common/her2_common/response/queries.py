"""What is asked of the rows of one centre, and its answer: a statistic that adds, or nothing.

1. A ``Query`` names a kind, and an item of the analysis plan; its arrays are numbers that earlier
   answers gave (coefficients, histograms of all centres). Thresholds, terms and subgroups are
   the plan's: no query can ask for others.
2. ``Source.answer`` computes the statistic where the rows are, or withholds it (None) because of
   small cells. It may be asked again and gives the same.
3. The caller adds the statistics.

    kind        item                 arrays             statistic
    tables                                              Tables
    scores      biopsy, treated,                        Scores: histograms, own placement sums
                mg, us, mri
    placements  the same             histograms         PlacementSums
    rows        a model, propensity                     Rows
    logistic    a model, propensity  beta               LogisticSums
    leverage    a model, propensity  beta, inverse      LeverageSums
    weights     propensity           beta, share        WeightSums
    change      a model              beta, reduced      ChangeSums

What is withheld, with ``min_cell`` above 1:

- Every table whose counts, with all others that are told, would give away a count from 1 to
  ``min_cell`` - 1 (``cells``). The tables hold what the other kinds disclose, too: a histogram of
  scores tells the margins of the table of calls, a model's sums who is complete.
- Whatever is asked of a model also where ``Design.cells`` has a small count, and of a model with
  biopsy and score where the table of calls is withheld.
- Placement values, where their sum over the biopsy-positive would give a small call away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from her2_common.errors import MetricError
from her2_common.metrics import GRID, MAX_CASES, ScoreHistogram, quantise
from her2_common.response.cells import Blocks, Positions, attainable
from her2_common.response.delong import PlacementSums, ScoreSet, placement_sums
from her2_common.response.delong import centred_placements as placed
from her2_common.response.design import Design, design
from her2_common.response.firth import LeverageSums, leverage_sums
from her2_common.response.inference import Integers, Vector, frozen
from her2_common.response.logistic import LogisticSums, logistic_sums
from her2_common.response.paired import CallTable, ChangeSums
from her2_common.response.patients import COLUMNS, Patients, called
from her2_common.response.plan import PROPENSITY, Model, Plan
from her2_common.response.primary import primary_strata
from her2_common.response.subgroups import label, subgroup_strata
from her2_common.response.weighting import WeightSums, weight_sums

Kind = Literal[
    "tables", "scores", "placements", "rows", "logistic", "leverage", "weights", "change"
]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

ARRAYS: Final[dict[Kind, frozenset[str]]] = {
    "tables": frozenset(),
    "scores": frozenset(),
    "placements": frozenset({"histograms"}),
    "rows": frozenset(),
    "logistic": frozenset({"beta"}),
    "leverage": frozenset({"beta", "inverse"}),
    "weights": frozenset({"beta", "share"}),
    "change": frozenset({"beta", "reduced"}),
}
"""The arrays of a query of each kind; one with others is refused."""


@dataclass(frozen=True, eq=False)
class Query:
    """One question to every centre.

    ``centres`` are those of a model, in the order of its indicators; ``reduced`` asks of the model
    without its tested terms.
    """

    kind: Kind
    item: str = ""
    centres: tuple[str, ...] = ()
    reduced: bool = False
    arrays: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Tables:
    """Tables of counts by name; one that is withheld is missing. They add where both have one.

    ``rows`` (1,); ``calls`` (outcome, biopsy, model); ``primary`` and, by label, its subgroups
    (group, outcome).
    """

    blocks: Mapping[str, Integers]


@dataclass(frozen=True, eq=False)
class Scores:
    """Round 1 of DeLong, and both rounds within the centre."""

    scores: ScoreSet
    own: PlacementSums


@dataclass(frozen=True, eq=False)
class Rows:
    """Complete rows of a model by outcome, (2,)."""

    counts: Integers

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts", frozen(np.asarray(self.counts, np.int64)))


Statistic = (
    Tables | Scores | PlacementSums | Rows | LogisticSums | LeverageSums | WeightSums | ChangeSums
)


def table_names(plan: Plan) -> dict[str, tuple[int, ...]]:
    """The tables that a site may tell, and their shapes."""
    shapes: dict[str, tuple[int, ...]] = {"rows": (1,), "calls": (2, 2, 2), "primary": (2, 2)}
    for column in plan.subgroups:
        shapes |= dict.fromkeys(labels(column), (2, 2))
    return shapes


def labels(column: str) -> tuple[str, ...]:
    """The labels of all subgroups by a column, empty ones included."""
    low, high, _ = COLUMNS[column]
    return tuple(label(column, value) for value in range(int(low), int(high) + 1))


class Source:
    """The rows of one centre, ready to answer the queries of one plan.

    Args:
        threshold: the frozen one; the score, on the grid, is called positive at or above it.
        min_cell: the smallest count of patients that may leave; 1 keeps nothing back.

    Raises:
        MetricError: a column is missing, or the threshold is not from 0 to 1.
    """

    def __init__(
        self, patients: Patients, plan: Plan, threshold: float, *, min_cell: int = 1
    ) -> None:
        self.centre = patients.centre
        self.plan = plan
        self.threshold = threshold
        self.min_cell = min_cell
        calls = np.full(patients.rows, np.nan)
        known = patients.known("score")
        calls[known] = called(patients.column("score")[known], threshold)
        columns = {name: np.full(patients.rows, np.nan) for name in COLUMNS}
        self.patients = Patients(
            patients.centre, columns | dict(patients.columns) | {"call": calls}
        )

    def answer(self, query: Query) -> Statistic | None:
        """Steps 2: the statistic, or None where it is withheld.

        Raises:
            MetricError: the query is none of this plan, or its arrays do not fit.
        """
        if query.arrays.keys() != ARRAYS[query.kind]:
            names = ", ".join(sorted(ARRAYS[query.kind])) or "none"
            raise MetricError(f"{query.kind}: expected the arrays {names}, got others")
        if query.kind == "tables":
            return self._tables
        if query.kind in ("scores", "placements"):
            return self._scores(query)
        self._check_model(query)
        if query.centres and self.centre not in query.centres:
            return None
        found = self._design(query.item, query.centres or (self.centre,), reduced=query.reduced)
        cells = found.cells()
        if f"fit {query.item}" not in self._told or np.any((cells > 0) & (cells < self.min_cell)):
            return None
        if query.kind == "rows":
            return Rows(np.bincount(_whole(found.outcome), minlength=2))
        beta = _array(query, "beta", (len(found.names),))
        if query.kind == "logistic":
            return logistic_sums(found.x, found.outcome, beta)
        if query.kind == "leverage":
            return leverage_sums(found.x, beta, _array(query, "inverse", (beta.size, beta.size)))
        if query.kind == "weights":
            share = float(_array(query, "share", (1,))[0])
            responded = self._treated.column("pcr")[found.kept]
            return weight_sums(found.outcome, responded, expit(found.x @ beta), share)
        reduced = _array(query, "reduced", (beta.size,))
        return ChangeSums.from_rows(expit(found.x @ reduced), expit(found.x @ beta), found.outcome)

    # --- tables ---------------------------------------------------------------------------------

    @cached_property
    def _counted(self) -> dict[str, Integers]:
        """Every table that some answer tells."""
        rows, threshold = self.patients, self.threshold
        counted: dict[str, Integers] = {
            "rows": np.array([rows.rows], np.int64),
            "calls": CallTable.of(rows, threshold).counts,
            "primary": primary_strata(rows, threshold).counts[0],
        }
        for column in self.plan.subgroups:
            for name, table in subgroup_strata(rows, column, threshold).items():
                counted[name] = table.counts[0]
        return counted

    @cached_property
    def _told(self) -> frozenset[str]:
        """The names of what may leave: of tables, "scores ..." and "fit ..."."""
        counted = self._counted
        names = [*counted, *(f"scores {item}" for item in self._items())]
        fits = [f"fit {name}" for name in (*(m.name for m in self.plan.models), PROPENSITY)]
        if self.min_cell <= 1:
            return frozenset([*names, *fits])
        told = set(self._audited)
        if "primary" in told:
            told.add("scores treated")
        if not {"by model", "scores biopsy"} <= told or not self._safe(self._own_histogram):
            told -= {f"scores {item}" for item in ("biopsy", *self.plan.compare)}
        if "calls" not in told:  # a Newton step tells of scores among the biopsy-positive
            told -= {f"fit {m.name}" for m in self.plan.models if {"biopsy", "score"} <= m.columns}
        return frozenset(told)

    @cached_property
    def _audited(self) -> list[str]:
        return self._blocks({}).told(self.min_cell)

    def _safe(self, *histograms: ScoreHistogram) -> bool:
        """Whether sums of placement values, by these histograms, leave small calls open.

        Summed over the biopsy-positive they tell how many of these the model may have called.
        """
        if self.min_cell <= 1 or "calls" in self._audited:
            return True
        rows = self._rows_of("biopsy")
        biopsy, call, pcr = (rows.column(name) == 1 for name in ("biopsy", "call", "pcr"))
        place = quantise(rows.column("score"))
        # The histogram of the treated, if it is told, tells their part of the sum
        known = biopsy & (rows.column("therapy") == 1) & ("primary" in self._audited)
        limits: dict[int, tuple[int, int]] = {}
        for outcome in range(2):
            rest = (pcr == outcome) & ~known
            there = [placed(one, outcome) for one in histograms if one.both_classes]
            values = [value[place[rest]] for value in there]
            low, high = attainable(values, call[rest], biopsy[rest])
            counted = int(np.count_nonzero((pcr == outcome) & known & call))
            limits[outcome] = counted + low, counted + high
        return self._blocks(limits).safe(self._audited, self.min_cell)

    @cached_property
    def _own_histogram(self) -> ScoreHistogram:
        rows = self._rows_of("biopsy")
        return ScoreHistogram.from_scores(rows.column("score"), rows.column("pcr"))

    def _blocks(self, limits: Mapping[int, tuple[int, int]]) -> Blocks:
        """What may leave, the most important first; ``limits`` of the patients with both calls, by
        outcome."""
        counted, blocks = self._counted, Blocks()
        primary = blocks.add("primary", counted["primary"])
        # The margins that the histograms of round 1 tell: (outcome, biopsy), (outcome, model)
        by_model = blocks.add("by model", counted["calls"].sum(axis=1))
        by_biopsy = blocks.add("scores biopsy", counted["calls"].sum(axis=2))
        outcome = blocks.add("outcome", counted["calls"].sum(axis=(1, 2)))
        calls = blocks.add("calls", counted["calls"])
        for o in range(2):
            for call in range(2):
                blocks.equal(by_biopsy[o, call], calls[o, call])
                blocks.equal(by_model[o, call], calls[o, :, call])
            blocks.equal(outcome[o], by_biopsy[o])
        for o, (low, high) in limits.items():
            blocks.within(calls[o, 1, 1], low, high)
        blocks.part(calls[:, 1], primary.T)  # both (outcome, model)
        for model in self.plan.models:
            self._audit_fit(blocks, model, by_biopsy, outcome)
        weighed = self._treated.where(self._design(PROPENSITY, (self.centre,)).kept)
        cell = 2 * _whole(weighed.column("call")) + _whole(weighed.column("pcr"))
        counts = np.bincount(cell, minlength=4).reshape(2, 2)
        blocks.part(primary, blocks.add(f"fit {PROPENSITY}", counts))
        for column in self.plan.subgroups:
            parts = [blocks.add(name, counted[name]) for name in labels(column)]
            blocks.part(primary, *parts)
        for item in self.plan.compare:
            blocks.part(by_model, blocks.add(f"scores {item}", self._rival_calls(item)))
        everybody = blocks.add("analysed", counted["calls"].sum(keepdims=True).ravel())
        blocks.equal(everybody, outcome)
        blocks.part(blocks.add("rows", counted["rows"]), everybody)
        return blocks

    def _audit_fit(
        self, blocks: Blocks, model: Model, by_biopsy: Positions, outcome: Positions
    ) -> None:
        """Who is complete for a model, and who is not: inside the table of calls and outside."""
        kept = self._design(model.name, (self.centre,)).kept
        everybody = self.patients.where(kept)
        name = f"fit {model.name}"
        complete = blocks.add(name, np.bincount(_whole(everybody.column("pcr")), minlength=2))
        inside = everybody.where(everybody.known("biopsy", "score"))
        pcr = _whole(inside.column("pcr"))
        if "biopsy" in model.columns:
            cell = 2 * pcr + _whole(inside.column("biopsy"))
            counted = blocks.add(name, np.bincount(cell, minlength=4).reshape(2, 2))
            blocks.part(by_biopsy, counted)
            counted_outcome = blocks.add(name, np.bincount(pcr, minlength=2))
            for o in range(2):
                blocks.equal(counted_outcome[o], counted[o])
        else:
            counted_outcome = blocks.add(name, np.bincount(pcr, minlength=2))
            blocks.part(outcome, counted_outcome)
        blocks.part(complete, counted_outcome)

    @cached_property
    def _tables(self) -> Tables:
        return Tables(
            {name: counts for name, counts in self._counted.items() if name in self._told}
        )

    # --- scores ---------------------------------------------------------------------------------

    def _items(self) -> tuple[str, ...]:
        return ("biopsy", "treated", *self.plan.compare)

    @cached_property
    def _treated(self) -> Patients:
        rows = self.patients
        chosen = rows.known("biopsy", "therapy", "score", "pcr")
        return rows.where(chosen & (rows.column("biopsy") == 1) & (rows.column("therapy") == 1))

    def _rows_of(self, item: str) -> Patients:
        if item == "treated":
            return self._treated
        rows = self.patients
        return rows.where(rows.known("pcr", "score", "biopsy", item))

    def _rival_calls(self, item: str) -> Integers:
        """Patients that have the rival score, (outcome, model)."""
        rows = self._rows_of(item)
        cell = 2 * _whole(rows.column("pcr")) + _whole(rows.column("call"))
        return np.bincount(cell, minlength=4).reshape(2, 2)

    def _scores(self, query: Query) -> Scores | PlacementSums | None:
        if query.item not in self._items():
            raise MetricError(f"scores: expected one of {', '.join(self._items())}")
        if f"scores {query.item}" not in self._told:
            return None
        rows = self._rows_of(query.item)
        scores = {"imaging": rows.column("score")}
        if query.item != "treated":
            scores["other"] = rows.column(query.item)
        own = ScoreSet.from_rows(scores, rows.column("pcr"))
        if query.kind == "scores":
            return Scores(own, placement_sums(scores, rows.column("pcr"), own))
        pooled = score_set(query)
        if pooled.names != own.names:
            raise MetricError(f"placements: expected histograms of {len(own.names)} scores")
        if query.item == "biopsy" and not self._safe(self._own_histogram, pooled.histograms[0]):
            return None
        return placement_sums(scores, rows.column("pcr"), pooled)

    # --- models ---------------------------------------------------------------------------------

    def _check_model(self, query: Query) -> None:
        models = {model.name for model in self.plan.models}
        if query.kind == "weights":
            models = {PROPENSITY}
        elif query.kind != "change":
            models.add(PROPENSITY)
        if query.item not in models:
            raise MetricError(f"{query.kind}: expected a model of the plan, got another")

    def _design(self, name: str, centres: tuple[str, ...], *, reduced: bool = False) -> Design:
        if name == PROPENSITY:
            return design(self._treated, self.plan.propensity, centres, outcome="call")
        model = self.plan.model(name)
        terms = model.reduced() if reduced else model.terms
        return design(self.patients, terms, centres, complete_for=model.terms)


def score_set(query: Query) -> ScoreSet:
    """The histograms of a query of placements: (scores, outcome, grid value).

    Raises:
        MetricError: they are none.
    """
    names = ("imaging",) if query.item == "treated" else ("imaging", "other")
    tables = _array(query, "histograms", (len(names), 2, GRID + 1), MAX_CASES)
    return ScoreSet(names, tuple(ScoreHistogram(*table.astype(np.int64)) for table in tables))


def _whole(values: Vector) -> Integers:
    return values.astype(np.int64)


_LARGEST: Final = 1e15
"""Of a number in a query: coefficients are below 1e3, and the inverse information of columns that
are all but collinear is below 1e10."""


def _array(query: Query, name: str, shape: tuple[int, ...], largest: float = _LARGEST) -> Vector:
    value = query.arrays.get(name)
    # NaN is not below the bound
    if value is None or value.shape != shape or not np.all(np.abs(value) <= largest):
        raise MetricError(
            f"{query.kind}: expected numbers {name} of shape {shape} and up to {largest:g}"
        )
    return value
