"""Which counts a centre must keep to itself so that no small one can be worked out.

1. The caller names the counts that it would publish, those that it never publishes, and the sums
   that hold between them. It answers for the list of sums: a sum that it leaves out is one that
   an attacker may know and we do not.
2. Small counts, 1 to ``min_cell`` - 1, are withheld, and what the caller says must be.
3. Of every one of them it is asked what an attacker would ask, who knows all published numbers
   and all sums: how large might it be? As long as one is certain to be below ``min_cell``, a
   published count near it is withheld too, a part before a total and the smallest first.
4. What was withheld at 3 is shown again, one after the other, where 3 allows it after all.

In the end every small count might, for all that is published, as well be ``min_cell`` or more, so
none can be told exactly; and none of the other withheld counts could be shown besides. The
question at 3 is an integer programme (maximise one count under the sums), solved by HiGHS. Only
optimal values decide, so the answer does not depend on how the solver goes about it; a programme
that it cannot solve counts as unsafe.

Cell suppression and its audit: Fischetti and Salazar, Management Science 47 (2001) 1008. Deviation
from the textbook: counts are withheld by a greedy rule, not the fewest possible.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp

PART: Final = 0
TOTAL: Final = 1
WHOLE: Final = 2
"""How much a count tells: a part of a table, the total of one, the total of several."""

_TOLERANCE: Final = 1e-6
"""Of the solver's optimal value."""
_MOST_NODES: Final = 10_000
"""Of the search for whole numbers; a programme of this kind needs a handful."""

Vector = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass
class Counts:
    """Counts of one centre and what holds between them.

    ``values`` holds None for what nobody has counted. ``names`` and ``ranks`` are of the counts
    that would be published; the others have the name None. Without ``zeros_shown``, zeros are
    withheld beside others, so that nobody knows a withheld count not to be one. ``limits`` holds,
    by position, what else is known of a count: it is from the first to the second.
    """

    values: list[int | None] = field(default_factory=list)
    names: list[tuple[str, ...] | None] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    sums: list[dict[int, int]] = field(default_factory=list)
    secret: set[int] = field(default_factory=set)
    zeros_shown: bool = True
    limits: dict[int, tuple[int, float]] = field(default_factory=dict)

    def publish(self, name: tuple[str, ...], value: int, rank: int = PART) -> int:
        """A count that would be published; returns its position."""
        return self._add(value, name, rank)

    def keep(self, value: int | None = None, *, least: int = 0) -> int:
        """A count that is not published; one with a value is protected if it is small.

        ``least`` is what everybody knows it to be at least: 1 where its name is published.
        """
        position = self._add(value, None, PART)
        if least:
            self.limits[position] = (least, math.inf)
        return position

    def equal(self, left: Iterable[int], right: Iterable[int]) -> None:
        """The counts at ``left`` have the same sum as those at ``right``."""
        row: dict[int, int] = {}
        for positions, sign in ((left, 1), (right, -1)):
            for position in positions:
                row[position] = row.get(position, 0) + sign
        self.sums.append(row)

    def _add(self, value: int | None, name: tuple[str, ...] | None, rank: int) -> int:
        self.values.append(value)
        self.names.append(name)
        self.ranks.append(rank)
        return len(self.values) - 1


def withhold(counts: Counts, min_cell: int) -> frozenset[tuple[str, ...]]:
    """The names of the counts to withhold: the small ones, ``counts.secret``, and what they need.

    A withheld count of 1 or more is taken to be known not to be 0, since zeros are shown. (A
    secret one may be 0, and so may what is withheld beside a secret zero.)

    >>> counts = Counts()
    >>> total = counts.publish(("all",), 60, WHOLE)
    >>> parts = [counts.publish((name,), n) for name, n in (("a", 3), ("b", 12), ("c", 45))]
    >>> counts.equal([total], parts)
    >>> sorted(withhold(counts, 10))
    [('a',), ('b',)]
    """
    if min_cell <= 1:
        return frozenset()
    audit = Audit(counts, min_cell)
    hidden = np.array([name is None for name in counts.names], dtype=np.bool_)
    if audit.largest(hidden, []) is None:
        # The sums contradict the counts: nothing is known to be safe.
        return frozenset(name for name in counts.names if name is not None)
    protected = audit.protected
    hidden[protected] = True

    causes: dict[int, list[int]] = {}
    while unsafe := audit.unsafe(hidden, protected):
        chosen: dict[int, list[int]] = {}
        for position in unsafe:
            other = audit.nearest(hidden, position)
            if other is not None:
                chosen.setdefault(other, []).append(position)
        if not chosen:
            # Nothing is left to withhold, so the solver has failed: nothing is known to be safe.
            hidden[:] = True
            break
        hidden[list(chosen)] = True
        causes |= chosen

    for position in sorted(causes, key=lambda p: (-counts.ranks[p], -(counts.values[p] or 0), p)):
        hidden[position] = False
        # Those for whose sake it was withheld are the likeliest to need it.
        if audit.unsafe(hidden, causes[position]) or audit.unsafe(hidden, protected):
            hidden[position] = True
    return frozenset(name for i, name in enumerate(counts.names) if name is not None and hidden[i])


class Audit:
    """What can be worked out from the counts that are not hidden, flags (counts,)."""

    def __init__(self, counts: Counts, min_cell: int) -> None:
        self.counts = counts
        self.min_cell = min_cell
        self.matrix = np.zeros((len(counts.sums), len(counts.values)))
        for number, row in enumerate(counts.sums):
            for position, sign in row.items():
                self.matrix[number, position] = sign
        self.found: list[Vector] = []
        self.sums_of: list[list[int]] = [[] for _ in counts.values]
        for number, row in enumerate(counts.sums):
            for position in row:
                self.sums_of[position].append(number)
        self.exact = np.array([value or 0 for value in counts.values], dtype=np.float64)
        self.least = np.array(
            [
                float(
                    counts.zeros_shown
                    and bool(value)
                    and name is not None
                    and position not in counts.secret
                )
                for position, (value, name) in enumerate(
                    zip(counts.values, counts.names, strict=True)
                )
            ]
        )

        # More than min_cell for one of them is of no use. The truth is still among the answers, for
        # a secret one may be larger than that, and nobody knows how large an uncounted one is.
        most = min_cell + sum(value or 0 for value in counts.values)
        self.wanted = [most if v is None else max(min_cell, v) for v in counts.values]
        self.most = np.full(len(counts.values), np.inf)
        for position, (low, high) in counts.limits.items():
            self.least[position] = max(self.least[position], low)
            self.most[position] = high

    @property
    def protected(self) -> list[int]:
        """The small counts, 1 to ``min_cell`` - 1, and the secret ones."""
        values = enumerate(self.counts.values)
        small = {i for i, value in values if value is not None and 0 < value < self.min_cell}
        return sorted(small | self.counts.secret)

    def unsafe(self, hidden: Flags, protected: Sequence[int], *, first: bool = False) -> list[int]:
        """Those of ``protected`` that are certain to be below ``min_cell``; or the first one."""
        open_ = list(protected)
        # What was found before and still agrees with all that is shown.
        for known in self.found:
            if open_ and np.array_equal(known[~hidden], self.exact[~hidden]):
                cleared = self._large(known, open_)
                open_ = [position for position in open_ if position not in cleared]
        # Many at once: a solution in which several are large clears them all.
        while open_:
            solution = self.largest(hidden, open_)
            cleared = set() if solution is None else self._large(solution, open_)
            if not cleared:
                break
            open_ = [position for position in open_ if position not in cleared]
        # One at a time: exact.
        found: list[int] = []
        while open_:
            position = open_.pop(0)
            solution = self.largest(hidden, [position])
            if solution is None or not self._large(solution, [position]):
                found.append(position)
                if first:
                    break
            else:
                cleared = self._large(solution, open_)
                open_ = [p for p in open_ if p not in cleared]
        return found

    def _large(self, solution: Vector, positions: list[int]) -> set[int]:
        return {p for p in positions if solution[p] > self.min_cell - 0.5}

    def largest(self, hidden: Flags, positions: list[int]) -> Vector | None:
        """Whole numbers that agree with all that is known, ``positions`` large; None: no answer."""
        low = np.where(hidden, self.least, self.exact)
        high = np.where(hidden, self.most, self.exact)
        for position in positions:
            if hidden[position]:
                high[position] = min(self.wanted[position], self.most[position])
        wish = np.zeros(len(low))
        wish[positions] = -1
        # Without the demand for whole numbers it is faster, and mostly they come out whole.
        for whole in (0, 1):
            result: Any = milp(
                wish,
                integrality=np.full(len(low), whole),
                bounds=Bounds(low, high),
                constraints=LinearConstraint(self.matrix, 0, 0),
                options={"node_limit": _MOST_NODES},
            )
            if result.status != 0 or (
                len(positions) == 1 and -result.fun < self.min_cell - 1 + _TOLERANCE
            ):
                return None
            # An answer counts only if it is exactly one.
            solution: Vector = np.round(result.x)
            if (
                not (self.matrix @ solution).any()
                and (low <= solution).all()
                and (solution <= high).all()
            ):
                self.found.append(solution)
                return solution
        return None

    def nearest(self, hidden: Flags, start: int) -> int | None:
        """The published count to withhold next for the sake of ``start``; None: there is none.

        Neighbours share a sum; what is withheld already leads on to its own neighbours. Zeros
        come last: one is withheld only if it gives away another one that must be.
        """
        seen, edge = {start}, [start]
        zeros: list[int] = []
        while edge:
            around = {p for q in edge for s in self.sums_of[q] for p in self.counts.sums[s]} - seen
            shown = [p for p in around if not hidden[p]]
            if some := [p for p in shown if self.exact[p]]:
                return min(some, key=lambda p: (self.counts.ranks[p], self.exact[p], p))
            zeros += sorted(shown)
            seen |= around
            edge = sorted(p for p in around if hidden[p])
        return zeros[0] if zeros else None
