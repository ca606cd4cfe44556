"""Asking every centre and adding the answers, with the rules of who must have answered.

``Pool`` knows three things of every number: which centres it is made of, which were withheld, and
whether that is enough. ``RefusedError`` says that it is not; a section of the result then holds
that sentence instead of numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from her2_common.errors import MetricError
from her2_common.response.codec import histograms
from her2_common.response.delong import (
    Discrimination,
    PlacementSums,
    ScoreSet,
    discriminate,
)
from her2_common.response.plan import Plan
from her2_common.response.queries import Query, Scores, Source, Statistic, Tables
from her2_common.response.strata import Strata

Ask = Callable[[Query], Mapping[str, Statistic | None]]
"""A query -> the answer of every centre; None where the centre withholds it."""


class RefusedError(MetricError):
    """A number that is not given: too few centres, or nothing to compute it from."""


def ask_sources(sources: list[Source]) -> Ask:
    """Answers from rows that are here, one source a centre."""
    ordered = sorted(sources, key=lambda source: source.centre)
    return lambda query: {source.centre: source.answer(query) for source in ordered}


@dataclass(frozen=True)
class Compared:
    """Two scores (or one) on the same patients: pooled, within centres, at each centre."""

    pooled: ScoreSet
    found: Discrimination | None
    scores: dict[str, ScoreSet]
    own: dict[str, Discrimination | None]


@dataclass
class Pool:
    """The centres' answers under one plan; ``min_centres`` with patients make a pooled number."""

    ask: Ask
    plan: Plan
    min_centres: int = 1
    suppressed: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        answers = self.ask(Query("tables"))
        self.tables = {name: a for name, a in sorted(answers.items()) if isinstance(a, Tables)}
        if not self.tables:
            raise RefusedError("expected an answer from at least one centre, got none")

    @property
    def centres(self) -> tuple[str, ...]:
        """The centres that take part, sorted."""
        return tuple(self.tables)

    def answers(self, query: Query, what: str) -> dict[str, Any]:
        """Who tells what; the others are noted as suppressed, under the name ``what``."""
        given = self.ask(query)
        for centre in self.centres:
            if given.get(centre) is None:
                self.withheld(what, centre)
        return {c: given[c] for c in self.centres if given.get(c) is not None}

    def withheld(self, what: str, centre: str) -> None:
        """Note what a centre keeps back, once."""
        line = {"what": what, "which": centre, "why": "withheld by the site: small cells"}
        if line not in self.suppressed:
            self.suppressed.append(line)

    def enough(self, centres: int) -> None:
        """Raises:
        RefusedError: numbers of so few centres are not given.
        """
        if centres < max(1, self.min_centres):
            wanted = "a centre" if self.min_centres <= 1 else f"{self.min_centres} centres"
            raise RefusedError(f"expected answers of {wanted} with patients, got {centres}")

    def table(self, name: str, what: str) -> dict[str, np.ndarray]:
        """A table of counts by centre.

        Raises:
            RefusedError: too few centres with patients tell it.
        """
        told = {c: t.blocks[name] for c, t in self.tables.items() if name in t.blocks}
        for centre in self.centres:
            if centre not in told:
                self.withheld(what, centre)
        self.enough(sum(bool(counts.any()) for counts in told.values()))
        return told

    def strata(self, name: str, what: str) -> Strata:
        """The 2 x 2 tables of that name, a stratum a centre.

        Raises:
            RefusedError: too few centres with patients tell it.
        """
        told = self.table(name, what)
        return Strata(tuple(told), np.stack(list(told.values())))

    def compared(self, item: str, what: str) -> Compared:
        """Both rounds of DeLong; the centres that answer both take part.

        Raises:
            RefusedError: too few centres with patients answer.
        """
        first: dict[str, Scores] = self.answers(Query("scores", item), what)
        while True:
            self.enough(sum(answer.scores.histograms[0].n > 0 for answer in first.values()))
            pooled: ScoreSet = reduce(add, (answer.scores for answer in first.values()))
            tables = histograms(pooled).astype(np.float64)
            second = self.ask(Query("placements", item, arrays={"histograms": tables}))
            sums = {c: s for c in first if isinstance(s := second.get(c), PlacementSums)}
            if not (missing := [centre for centre in first if centre not in sums]):
                break
            for centre in missing:  # with the pooled histogram it would tell too much
                self.withheld(what, centre)
                del first[centre]
        return Compared(
            pooled,
            discriminate(reduce(add, sums.values()), pooled),
            {centre: answer.scores for centre, answer in first.items()},
            {centre: discriminate(answer.own, answer.scores) for centre, answer in first.items()},
        )
