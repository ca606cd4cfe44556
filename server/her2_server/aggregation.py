"""Summing updates a group at a time, exactly and in any order.

The new value of group g is the mean of the sites' values, weighted by n[k, g], the training cases
at site k that use g. A site that has none of them takes no part; a group that no site trained
keeps its value.

Floating-point sums depend on their order, and replies arrive in any order. So each site's change
(value minus the round's starting value) is rounded once to a fixed-point grid of 2**-30 and summed
in 64-bit integers, where addition is exact: arrival changes no bit of the result. The error of the
mean is at most 2**-31 a parameter, below float32's own spacing for values above 2**-8.

Memory: one int64 accumulator a group and the reply at hand, whatever the number of sites.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from her2_common.errors import UpdateError

FRACTION_BITS: Final = 30
MAX_CHANGE: Final = 2.0**8
"""The largest change of one parameter in one round; a larger one is refused as out of range."""
MAX_CASES: Final = 2**24
"""Cases over all sites: 8 + 30 + 24 bits and the sign fit into 64."""


@dataclass
class Accumulator:
    """Sums one round's updates. ``start`` holds the values that the round began with."""

    start: Mapping[str, np.ndarray]
    _sums: dict[str, np.ndarray] = field(default_factory=dict)
    _cases: dict[str, int] = field(default_factory=dict)

    def add(self, update: Mapping[str, np.ndarray], counts: Mapping[str, int]) -> None:
        """Fold in one site's values; ``counts[g]`` is its number of cases that use group g.

        All or nothing: a refused update leaves the sums as they were.

        Raises:
            UpdateError: "unknown group", "misshapen", "wrong count", "not finite", "out of range".
        """
        self.check(update, counts)
        for group, values in update.items():
            change = values.astype(np.float64)
            change -= self.start[group]
            change *= 2.0**FRACTION_BITS
            steps = np.rint(change, out=change).astype(np.int64)
            steps *= counts[group]
            if group in self._sums:
                self._sums[group] += steps
            else:
                self._sums[group] = steps
            self._cases[group] = self._cases.get(group, 0) + counts[group]

    def check(self, update: Mapping[str, np.ndarray], counts: Mapping[str, int]) -> None:
        """Raise what ``add`` would raise, without adding."""
        if set(update) != set(counts):
            raise UpdateError(
                f"expected a count for each group, got groups {sorted(update)} "
                f"and counts {sorted(counts)}",
                reason="wrong count",
            )
        for group, values in update.items():
            if group not in self.start:
                raise UpdateError(f"unknown parameter group {group!r}", reason="unknown group")
            if values.shape != self.start[group].shape:
                raise UpdateError(
                    f"group {group}: expected shape {self.start[group].shape}, got {values.shape}",
                    reason="misshapen",
                )
            total = self._cases.get(group, 0) + counts[group]
            if not counts[group] > 0 or total > MAX_CASES:
                raise UpdateError(
                    f"group {group}: expected 1 to {MAX_CASES} cases in all, got {counts[group]}",
                    reason="wrong count",
                )
            if not np.isfinite(values).all():
                raise UpdateError(f"group {group}: holds NaN or infinity", reason="not finite")
            with np.errstate(over="ignore"):  # infinity is out of range, too
                largest = float(np.abs(values - self.start[group]).max(initial=0.0))
            if largest >= MAX_CHANGE:
                raise UpdateError(
                    f"group {group}: a parameter changed by {largest:.3g}, "
                    f"expected less than {MAX_CHANGE:g}",
                    reason="out of range",
                )

    def result(self) -> dict[str, np.ndarray]:
        """Every group's new value, float32; a group that nobody trained is the starting value."""
        new = {}
        for group, start in self.start.items():
            if group in self._sums:
                change = self._sums[group] / (self._cases[group] * 2.0**FRACTION_BITS)
                new[group] = (start.astype(np.float64) + change).astype(np.float32)
            else:
                new[group] = start.copy()
        return new

    @property
    def cases(self) -> dict[str, int]:
        """Cases summed so far, by group."""
        return dict(self._cases)
