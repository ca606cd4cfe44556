"""Which columns of a model can be estimated, where some follow from others.

Where every biopsy-positive patient is treated and nobody else, therapy and biopsy are one column,
and no data can part them. The rule, alike for every model:

1. Columns are taken in an order of importance: intercept, centres, the terms that a tested
   interaction is made of, the other terms that are not tested, the tested terms; otherwise in the
   order of the plan.
2. A column that is 0 in all patients, or a linear combination of columns taken before, is dropped,
   and named with those it follows from.

So a tested term is never kept at the cost of a covariate that explains it: what the covariates
give already cannot be tested. The fitted probabilities and the test of the columns that are left
are those of the model with all columns, whichever of the aliased ones is kept; the coefficient of
a kept one is then that of both together.

The rule needs the cross-products of the columns alone, hence the sums over centres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from her2_common.response.design import INTERCEPT
from her2_common.response.inference import Matrix

_REST: Final = 1e-9
"""Share of a column's square that the others leave unexplained, below which it follows from them:
far above the rounding of a sum, far below what a column of patients can leave."""

_INVOLVED: Final = 1e-2
"""Least share of the largest coefficient at which a column belongs to a combination."""


@dataclass(frozen=True)
class Dropped:
    """A column that is not fitted; ``follows`` names those that give it, none where it is 0."""

    column: str
    follows: tuple[str, ...]

    def words(self) -> str:
        """Why, in a few words.

        >>> Dropped("therapy", ("biopsy",)).words()
        'therapy (follows from biopsy)'
        """
        if not self.follows:
            return f"{self.column} (0 in all patients)"
        if self.follows == (INTERCEPT,):
            return f"{self.column} (the same in all patients)"
        given = " and ".join(name for name in self.follows if name != INTERCEPT)
        return f"{self.column} (follows from {given})"


def order_of_terms(terms: Sequence[str], tested: Sequence[str]) -> tuple[str, ...]:
    """The terms in the order of the rule.

    >>> order_of_terms(("centre", "therapy", "biopsy", "score", "biopsy:score"),
    ...                ("score", "biopsy:score"))
    ('centre', 'biopsy', 'therapy', 'score', 'biopsy:score')
    """
    parts = {part for term in tested if ":" in term for part in term.split(":")}

    def rank(term: str) -> int:
        if term in tested:
            return 3
        return 0 if term == "centre" else 1 if term in parts else 2

    return tuple(sorted(terms, key=rank))


def estimable(
    products: Matrix, names: Sequence[str], order: Sequence[str]
) -> tuple[tuple[str, ...], tuple[Dropped, ...]]:
    """The columns to fit, in the order of ``names``, and those that are dropped.

    Args:
        products: X'X, or a multiple of it, summed over all patients: (p, p), by ``names``.
        order: ``names`` in the order of the rule.

    >>> x = np.array([[1.0, 1, 1], [1, 0, 0], [1, 1, 1]])
    >>> kept, dropped = estimable(x.T @ x, ("intercept", "therapy", "biopsy"),
    ...                           ("intercept", "biopsy", "therapy"))
    >>> kept, dropped[0].follows
    (('intercept', 'biopsy'), ('biopsy',))
    """
    place = {name: index for index, name in enumerate(names)}
    scale = np.sqrt(np.diag(products))
    safe = np.where(scale > 0, scale, 1.0)
    scaled = products / np.outer(safe, safe)
    kept: list[int] = []
    dropped: list[Dropped] = []
    for name in order:
        index = place[name]
        if not scale[index] > 0:
            dropped.append(Dropped(name, ()))
            continue
        given = np.linalg.solve(scaled[np.ix_(kept, kept)], scaled[kept, index])
        if 1.0 - scaled[index, kept] @ given >= _REST:
            kept.append(index)
            continue
        least = _INVOLVED * np.abs(given).max()
        follows = tuple(
            names[k] for k, part in zip(kept, given.tolist(), strict=True) if abs(part) > least
        )
        dropped.append(Dropped(name, follows))
    return tuple(names[index] for index in sorted(kept)), tuple(dropped)
