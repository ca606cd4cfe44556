"""From the terms of a model to its columns, alike at every centre.

A term is a column of ``patients.COLUMNS``, ``centre``, or two of these joined by a colon. Columns
enter as they are: biopsy, therapy and hr as 0 and 1, t and n as one step a stage, the score from 0
to 1. ``centre`` becomes an indicator for each centre but the first of the list, which every site
must be given alike. An intercept always comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from her2_common.errors import MetricError
from her2_common.response.inference import Integers, Matrix, Vector
from her2_common.response.patients import COLUMNS, Patients

RESPONSE_TERMS: Final = (
    "centre",
    "therapy",
    "hr",
    "t",
    "n",
    "biopsy",
    "score",
    "biopsy:score",
)
"""The secondary model of pCR; the score terms are the last two."""

INTERCEPT: Final = "intercept"


@dataclass(frozen=True, eq=False)
class Design:
    """The columns of a model at one centre: ``x`` (kept rows, names), ``outcome`` (kept rows,).

    ``kept`` (rows,) marks the rows in which all terms and the outcome are known.
    """

    names: tuple[str, ...]
    x: Matrix
    outcome: Vector
    kept: NDArray[np.bool_]

    def cells(self) -> Integers:
        """Counts of patients that a Newton step over these columns can disclose.

        Gradient and Hessian are sums over patients: those of two columns of 0 and 1 count the
        patients with both, by outcome. Flat, of all such pairs and their complements.
        """
        flags = self.x[:, np.all((self.x == 0) | (self.x == 1), axis=0)]
        counts = [np.zeros(0)]
        for outcome in (0.0, 1.0):
            part = flags[self.outcome == outcome]
            both = part.T @ part
            alone = np.diag(both)
            only = alone[:, None] - both
            counts += [both.ravel(), only.ravel(), (len(part) - both - only - only.T).ravel()]
        return np.unique(np.rint(np.concatenate(counts)).astype(np.int64))


def design(
    patients: Patients,
    terms: Sequence[str],
    centres: Sequence[str],
    *,
    outcome: str = "pcr",
    complete_for: Sequence[str] = (),
) -> Design:
    """The columns of ``terms`` for the rows in which these and the outcome are known.

    ``complete_for`` names further terms that must be known, so that a smaller model is fitted to
    the rows of the larger one: a likelihood-ratio test needs that.

    Raises:
        MetricError: an unknown or doubled term, a term that contains the outcome, a column or a
            centre that is missing.

    >>> rows = Patients("B", {"pcr": [1, 0], "hr": [0, 1]})
    >>> design(rows, ("centre", "hr"), ("A", "B")).names
    ('intercept', 'centre[B]', 'hr')
    """
    if patients.centre not in centres or len(set(centres)) != len(centres):
        raise MetricError(
            f"centres: expected unique names with {patients.centre} among them, got {centres}"
        )
    if len(set(terms)) != len(terms):
        raise MetricError(f"terms: expected each once, got {', '.join(terms)}")
    parts = [part for term in (*terms, *complete_for) for part in term.split(":")]
    for part in parts:
        if part == outcome or (part != "centre" and part not in COLUMNS):
            raise MetricError(
                f"terms: expected centre or one of {', '.join(COLUMNS)} other than the outcome "
                f"{outcome}, or two joined by a colon, got {part!r}"
            )
    kept = patients.known(outcome, *(part for part in set(parts) if part != "centre"))
    rows = patients.where(kept)
    names, columns = [INTERCEPT], [np.ones((rows.rows, 1))]
    for term in terms:
        term_names, x = [""], np.ones((rows.rows, 1))
        for part in term.split(":"):
            part_names, values = _columns(rows, part, centres)
            # (rows, a) and (rows, b) -> (rows, a * b)
            x = (x[:, :, None] * values[:, None, :]).reshape(
                rows.rows, x.shape[1] * len(part_names)
            )
            term_names = [
                f"{left}:{right}" if left else right for left in term_names for right in part_names
            ]
        names += term_names
        columns.append(x)
    return Design(tuple(names), np.concatenate(columns, axis=1), rows.column(outcome), kept)


def _columns(rows: Patients, part: str, centres: Sequence[str]) -> tuple[list[str], Matrix]:
    if part != "centre":
        return [part], rows.column(part)[:, None]
    here = np.array([centre == rows.centre for centre in centres[1:]], dtype=np.float64)
    return [f"centre[{centre}]" for centre in centres[1:]], np.tile(here, (rows.rows, 1))
