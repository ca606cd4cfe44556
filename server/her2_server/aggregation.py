"""Summing the sites' changes a vector at a time, exactly and in any order.

The mean change of group g is that of the sites, weighted by n[k, g], the training cases at site k
that use g. A site that has none of them takes no part.

Floating-point sums depend on their order, and replies arrive in any order. So each site's change
is rounded once to a fixed-point grid of 2**-30 and summed in 64-bit integers, where addition is
exact: arrival changes no bit of the result. The error of the mean is at most 2**-31 a parameter,
below float32's own spacing for weights above 2**-8.

Memory: one int64 sum a vector (two copies of the model) and a piece of the reply at hand, whatever
the number of sites. An encoded change is never decoded as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import numpy as np

from her2_common.encoding import BLOCK, Encoded, Parts, pieces, take_apart
from her2_common.errors import UpdateError

FRACTION_BITS: Final = 30
MAX_CHANGE: Final = 2.0**8
"""The largest change of one parameter in one round; a larger one is refused as out of range."""
MAX_CASES: Final = 2**24
"""Cases over all sites: 8 + 30 + 24 bits and the sign fit into 64."""

PIECE: Final = 512 * BLOCK
"""Values worked on at a time: their int64 steps stay in a core's cache. A design value."""

Change = np.ndarray | Parts
"""A change that was vetted: a float32 vector, or an encoding taken apart."""


def vet(
    update: Mapping[str, np.ndarray | Encoded],
    counts: Mapping[str, int],
    sizes: Mapping[str, int],
    summed: Mapping[str, int] | None = None,
) -> dict[str, Change]:
    """The changes of one site, by vector, if all of them can be summed.

    ``counts`` are its cases, ``sizes`` the lengths of the vectors, ``summed`` the cases of the
    sites before it.

    Raises:
        UpdateError: "unknown group", "misshapen", "wrong count", "wrong type", "not finite", "out
            of range".
    """
    if set(update) != set(counts):
        raise UpdateError(
            f"expected a count for each group, got groups {sorted(update)} "
            f"and counts {sorted(counts)}",
            reason="wrong count",
        )
    changes = {}
    for name, vector in update.items():
        if name not in sizes:
            raise UpdateError(f"unknown parameter group {name!r}", reason="unknown group")
        total = (summed or {}).get(name, 0) + counts[name]
        if not counts[name] > 0 or total > MAX_CASES:
            raise UpdateError(
                f"group {name}: expected 1 to {MAX_CASES} cases in all, got {counts[name]}",
                reason="wrong count",
            )
        try:
            changes[name] = _vetted(vector, sizes[name])
        except UpdateError as error:
            raise UpdateError(f"group {name}: {error}", reason=error.reason) from None
    return changes


def _vetted(vector: np.ndarray | Encoded, size: int) -> Change:
    shape = (vector.size,) if isinstance(vector, Encoded) else vector.shape
    if shape != (size,):
        raise UpdateError(f"expected shape ({size},), got {shape}", reason="misshapen")
    change: Change
    if isinstance(vector, Encoded):
        change = take_apart(vector)
        largest = _largest(change)
    else:
        change = vector
        low, high = float(vector.min(initial=0.0)), float(vector.max(initial=0.0))
        if not (math.isfinite(low) and math.isfinite(high)):  # NaN is both
            raise UpdateError("holds NaN or infinity", reason="not finite")
        largest = max(-low, high)
    if largest >= MAX_CHANGE:
        raise UpdateError(
            f"a parameter changed by {largest:.3g}, expected less than {MAX_CHANGE:g}",
            reason="out of range",
        )
    return change


def _largest(parts: Parts) -> float:
    """A magnitude that no value exceeds: exact where it matters, for steps that are not small."""
    bits = parts.bits
    highest = int(parts.exponents.max(initial=-128))
    if highest + bits - 1 <= np.log2(MAX_CHANGE):
        return float(2.0 ** (highest + bits - 1) - 2.0**highest)
    return max(float(np.abs(values).max()) for _, values in pieces(parts))


@dataclass
class Accumulator:
    """Sums one round's changes of vectors of ``sizes``."""

    sizes: Mapping[str, int]
    _sums: dict[str, np.ndarray] = field(default_factory=dict)
    _cases: dict[str, int] = field(default_factory=dict)

    def add(self, update: Mapping[str, np.ndarray | Encoded], counts: Mapping[str, int]) -> None:
        """Fold in one site's changes; ``counts[g]`` is its number of cases that use group g.

        All or nothing: an update that is refused, or fails in any way, leaves the sums as they
        were (whole numbers: what was added is taken away again, exactly).

        Raises:
            UpdateError: as ``vet``.
        """
        changes = vet(update, counts, self.sizes, self._cases)
        added: dict[str, int] = {}
        try:
            for name, change in changes.items():
                sums = self._sums.setdefault(name, np.zeros(self.sizes[name], np.int64))
                for number, (where, steps) in enumerate(_steps(change, counts[name]), start=1):
                    sums[where] += steps
                    added[name] = number
        except Exception:
            for name, pieces_added in added.items():
                for where, steps in islice(_steps(changes[name], counts[name]), pieces_added):
                    self._sums[name][where] -= steps
            for name in changes.keys() - self._cases.keys():
                self._sums.pop(name, None)
            raise
        for name in changes:
            self._cases[name] = self._cases.get(name, 0) + counts[name]

    def take(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        """The mean change of a vector, float64, in blocks for ``strategies.step``; its sum is
        given up with it.

        Raises:
            KeyError: no site has sent it.
        """
        return _mean(self._sums.pop(name), self._cases[name])

    @property
    def cases(self) -> dict[str, int]:
        """Cases summed so far, by vector."""
        return dict(self._cases)


def _mean(sums: np.ndarray, cases: int) -> Iterator[tuple[slice, np.ndarray]]:
    for begin in range(0, sums.size, PIECE):
        part = slice(begin, min(begin + PIECE, sums.size))
        yield part, sums[part] / (cases * 2.0**FRACTION_BITS)


def _steps(change: Change, count: int) -> Iterator[tuple[slice | np.ndarray, np.ndarray]]:
    """``count`` times the change in steps of 2**-30, whole numbers, and where to add it; a piece at
    a time, valid until the next."""
    positions = None if isinstance(change, np.ndarray) else change.positions
    size = change.size if isinstance(change, np.ndarray) else change.kept
    scaled = np.empty(min(PIECE, size), np.float64)
    for begin in range(0, size, PIECE):
        part = slice(begin, min(begin + PIECE, size))
        values = scaled[: part.stop - begin]
        if isinstance(change, np.ndarray):
            np.multiply(change[part], 2.0**FRACTION_BITS, out=values, dtype=np.float64)
            steps = _rounded(values, count)
        else:
            blocks = slice(begin // BLOCK, -(-part.stop // BLOCK))
            exponents = change.exponents[blocks].astype(np.int64) + FRACTION_BITS
            if exponents.min() >= 0:
                steps = _whole(change.numbers(part), np.int64(count) << exponents, change.bits)
            else:
                values[:] = change.numbers(part)
                _scale(values, 2.0**exponents)
                steps = _rounded(values, count)
        yield part if positions is None else positions[part], steps


def _rounded(values: np.ndarray, count: int) -> np.ndarray:
    steps: np.ndarray = np.rint(values, out=values).astype(np.int64)
    steps *= count
    return steps


def _whole(numbers: np.ndarray, factors: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of so many bits times the factors of their blocks, all in integers: in int32 where
    that holds them, which is twice as fast."""
    largest = int(factors.max()) << (bits - 1)
    kind = np.int32 if largest < 2**31 else np.int64
    steps: np.ndarray = numbers.astype(kind)
    _scale(steps, factors.astype(kind))
    return steps


def _scale(values: np.ndarray, factors: np.ndarray) -> None:
    """Multiply each block of values by its factor, in place."""
    full = values.size - values.size % BLOCK
    blocks = values[:full].reshape(-1, BLOCK)  # (blocks, BLOCK), a view
    blocks *= factors[: len(blocks), None]
    values[full:] *= factors[-1]
