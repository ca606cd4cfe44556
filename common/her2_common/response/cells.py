"""Tables of counts that are told whole or not at all, so that no small count can be worked out.

1. The caller adds tables, the most important first, and the sums that hold between them. It
   answers for the list: a sum that it leaves out is one that somebody may know and we do not.
2. One table after the other is told if it has no count from 1 to ``min_cell`` - 1 itself, and if
   every such count of other tables, and of the rests between a table and its parts, might still be
   ``min_cell`` or more for all that is told by then (an integer programme,
   ``her2_common.withhold``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from her2_common.response.inference import Integers, Vector
from her2_common.withhold import Audit, Counts

Positions = NDArray[np.int64]

_ROUNDING: Final = 1e-9
"""Of a sum, relative to the sum of absolute values."""
"""Where counts stand in the problem; the shape is that of the table."""


class Blocks:
    """Named tables of whole numbers, and the sums between them.

    A name may stand for several tables, which are then told together.

    >>> blocks = Blocks()
    >>> whole = blocks.add("all", [30, 40])
    >>> blocks.part(whole, blocks.add("women", [27, 20]))  # the rest: 3 and 20
    >>> blocks.told(10), blocks.told(3)
    (['all'], ['all', 'women'])
    """

    def __init__(self) -> None:
        self._counts = Counts(zeros_shown=False)  # a table is kept back with its zeros
        self._places: dict[str, list[int]] = {}

    def add(self, name: str, values: ArrayLike) -> Positions:
        """A table that would be told."""
        table: Integers = np.asarray(values, np.int64)
        flat = [self._counts.publish((name,), int(value)) for value in table.ravel()]
        self._places.setdefault(name, []).extend(flat)
        return np.array(flat, np.int64).reshape(table.shape)

    def equal(self, left: Positions, right: Positions) -> None:
        """The counts at ``left`` have the same sum as those at ``right``."""
        self._counts.equal(left.ravel().tolist(), right.ravel().tolist())

    def part(self, whole: Positions, *parts: Positions) -> None:
        """Cell by cell, ``parts`` are disjoint parts of ``whole``; all have one shape.

        What is left over is protected if it is small.
        """
        values = self._counts.values
        for cell in np.ndindex(whole.shape):
            inside = [int(part[cell]) for part in parts]
            left_over = (values[int(whole[cell])] or 0) - sum(values[i] or 0 for i in inside)
            self._counts.equal([int(whole[cell])], [*inside, self._counts.keep(left_over)])

    def within(self, position: int, low: int, high: float) -> None:
        """Whoever is told the tables knows from elsewhere that this count is from low to high."""
        self._counts.limits[int(position)] = (low, high)

    def cells(self, *shape: int) -> Positions:
        """Counts that stand in no table and need no protection of their own."""
        flat = [self._counts.keep() for _ in range(math.prod(shape))]
        return np.array(flat, np.int64).reshape(shape)

    def keep(self, value: int | None, *, least: int = 0) -> Positions:
        """One count that stands in no table, known to be ``least`` or more.

        It is protected if it is small, or if it is None: another keeps it, for a reason of theirs.
        """
        position = self._counts.keep(value, least=least)
        if value is None:
            self._counts.secret.add(position)
        return np.array([position], np.int64)

    def protect(self, positions: Positions) -> None:
        """These are never told, though they be 0."""
        self._counts.secret.update(positions.ravel().tolist())

    def safe(self, told: Iterable[str], min_cell: int) -> bool:
        """Whether these tables, told together, give no small count away."""
        hidden = np.ones(len(self._counts.values), np.bool_)
        for name in told:
            hidden[self._places[name]] = False
        audit = Audit(self._counts, min_cell)
        return not audit.unsafe(hidden, audit.protected, first=True)

    @property
    def sound(self) -> bool:
        """Whether the sums agree with the counts of all tables."""
        hidden = np.array([name is None for name in self._counts.names], np.bool_)
        return Audit(self._counts, 1).largest(hidden, []) is not None

    def told(self, min_cell: int) -> list[str]:
        """Step 2: the names of the tables that may be told, in the order of their adding."""
        audit = Audit(self._counts, min_cell)
        protected = audit.protected
        hidden = np.ones(len(self._counts.values), np.bool_)
        told: list[str] = []

        def tell(names: list[str]) -> None:
            """One after the other, with a short cut: if all may be told, so may the first ones."""
            places = [place for name in names for place in self._places[name]]
            hidden[places] = False
            if not protected or not audit.unsafe(hidden, protected, first=True):
                told.extend(names)
                return
            hidden[places] = True
            if len(names) > 1:
                tell(names[: len(names) // 2])
                tell(names[len(names) // 2 :])

        tell([n for n, places in self._places.items() if set(places).isdisjoint(protected)])
        return told


def attainable(
    values: Iterable[Vector], called: NDArray[np.bool_], chosen: NDArray[np.bool_]
) -> tuple[int, int]:
    """How many of the chosen may be called, least and most, for all that sums tell of them.

    Known are the values and the call of each of n patients, all (n,), how many are chosen, and the
    sums of their values; not, who they are. The truth is within.

    >>> called = np.array([False, False, True, True])
    >>> attainable([np.array([1.0, 2, 3, 4])], called, np.array([True, False, True, False]))
    (1, 1)
    >>> attainable([np.array([2.0, 3, 2, 3])], called, np.array([True, False, False, True]))
    (0, 2)
    """
    size, many = int(chosen.sum()), int(called.sum())
    k = np.arange(max(0, size - called.size + many), min(size, many) + 1)
    fits = np.ones(k.size, np.bool_)
    for value in values:
        total = float(value[chosen].sum())
        rounding = _ROUNDING * (1.0 + float(np.abs(value).sum()))
        # The sums of the k smallest, for every k: (n + 1,); of the largest, less those of -value
        least, most = (
            sign * (_smallest(sign * value[called])[k] + _smallest(sign * value[~called])[size - k])
            for sign in (1, -1)
        )
        fits &= (least <= total + rounding) & (most >= total - rounding)
    return int(k[fits][0]), int(k[fits][-1])


def _smallest(values: Vector) -> Vector:
    return np.concatenate([[0.0], np.cumsum(np.sort(values))])
