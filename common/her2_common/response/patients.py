"""The rows of one centre, checked. They stay there: only statistics that add leave.

A score is the probability of HER2-positive tumour that the model reads from the images; it must
come from a model that has not seen the patient. A call is positive where the score is at or above
the threshold, which lies on the public grid of 1/1024.

A patient is one row (``one_row_each``): several lesions, examinations or breasts are not several
patients, and would make every interval too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from her2_common.errors import MetricError
from her2_common.metrics import grid_index, quantise
from her2_common.response.inference import Vector, frozen

COLUMNS: Final[dict[str, tuple[float, float, bool]]] = {
    "pcr": (0, 1, True),
    "score": (0, 1, False),
    "biopsy": (0, 1, True),
    "therapy": (0, 1, True),
    "hr": (0, 1, True),
    "t": (0, 4, True),
    "n": (0, 3, True),
    "age": (18, 110, False),
    "modalities": (1, 7, True),
    "mg": (0, 1, False),
    "us": (0, 1, False),
    "mri": (0, 1, False),
    "call": (0, 1, True),
}
"""Column -> lowest value, highest value, whole numbers only.

pcr: by the plan's definition. biopsy: HER2 of the needle. therapy: anti-HER2 drugs given. hr: ER or
PR positive. t, n: clinical stage. age: years. modalities: the sum of 1 for mammography, 2 for
ultrasound and 4 for MRI. mg, us, mri: the score from one modality alone. call: the score's, at the
threshold."""


@dataclass(frozen=True, eq=False)
class Patients:
    """The rows of one centre: named columns of float64, each (rows,), NaN for unknown.

    Raises:
        MetricError: an unknown column, unequal lengths, or a value outside ``COLUMNS``; the
            message names the column and the first row (counted from 0), never another value.

    >>> Patients("A", {"pcr": [1, 0], "score": [0.8, float("nan")]}).rows
    2
    """

    centre: str
    columns: Mapping[str, Vector]

    def __post_init__(self) -> None:
        if not self.centre:
            raise MetricError("centre: expected a name, got none")
        checked: dict[str, Vector] = {}
        for name, values in self.columns.items():
            if name not in COLUMNS:
                raise MetricError(
                    f"{self.centre}: expected columns out of {', '.join(COLUMNS)}, got {name!r}"
                )
            checked[name] = self._column(name, values)
        lengths = {name: values.size for name, values in checked.items()}
        if len(set(lengths.values())) > 1:
            raise MetricError(f"{self.centre}: expected columns of one length, got {lengths}")
        object.__setattr__(self, "columns", checked)

    def _column(self, name: str, given: Any) -> Vector:
        try:
            values = np.asarray(given, dtype=np.float64)
        except (TypeError, ValueError):
            raise MetricError(
                f"{self.centre}, {name}: expected numbers, got something else"
            ) from None
        if values.ndim != 1:
            raise MetricError(
                f"{self.centre}, {name}: expected one dimension, got shape {values.shape}"
            )
        low, high, whole = COLUMNS[name]
        good = (values >= low) & (values <= high) & (not whole or values == np.floor(values))
        wrong = np.flatnonzero(~(good | np.isnan(values)))
        if wrong.size:
            kind = "whole numbers" if whole else "numbers"
            raise MetricError(
                f"{self.centre}, {name}: expected {kind} from {low} to {high}, "
                f"got another in row {wrong[0]}"
            )
        return frozen(values)

    @property
    def rows(self) -> int:
        """Rows, known or not."""
        return next((values.size for values in self.columns.values()), 0)

    def column(self, name: str) -> Vector:
        """One column, (rows,).

        Raises:
            MetricError: the centre does not have it.
        """
        try:
            return self.columns[name]
        except KeyError:
            raise MetricError(
                f"{self.centre}: expected a column {name}, got {', '.join(self.columns) or 'none'}"
            ) from None

    def known(self, *names: str) -> NDArray[np.bool_]:
        """Rows in which all the named columns are known, (rows,)."""
        mask = np.ones(self.rows, dtype=np.bool_)
        for name in names:
            mask &= ~np.isnan(self.column(name))
        return mask

    def where(self, mask: NDArray[np.bool_]) -> Patients:
        """The rows of a mask (rows,)."""
        return Patients(self.centre, {name: values[mask] for name, values in self.columns.items()})


def called(scores: ArrayLike, threshold: float) -> NDArray[np.bool_]:
    """The calls at a threshold: the score is at or above it.

    The same rule as ``her2_common.metrics.confusion``, for a score reaches a value of the grid
    where its grid value does.

    Raises:
        MetricError: a score is no probability, or the threshold is not on the grid from 0 to 1.

    >>> called([0.25, 0.5], 0.5).tolist()
    [False, True]
    """
    return quantise(scores) >= grid_index(threshold)


OF_PATIENT: Final = ("pcr", "therapy")
"""Columns of which a patient has one value, whatever the number of rows."""


def one_row_each(
    who: Sequence[Any], columns: Mapping[str, Vector]
) -> tuple[dict[str, Vector], list[tuple[str, int, int]]]:
    """The rows of one patient become one: ``(columns, conflicts)``.

    ``who`` (rows,) says whose row it is; patients come in the order of their first rows. pCR and
    therapy are the patient's: they must agree where they are known, and a conflict is named by its
    column and two rows (counted from 0), with all else then to be thrown away. Of every other
    column the highest known value counts, for image and needle alike: a patient is as
    HER2-positive as the most positive lesion, in the highest stage. Modalities are those of all
    rows.

    >>> rows = {"pcr": np.array([1, np.nan, 0]), "score": np.array([0.2, 0.7, 0.4])}
    >>> columns, conflicts = one_row_each(["a", "a", "b"], rows)
    >>> columns["score"].tolist(), columns["pcr"].tolist(), conflicts
    ([0.7, 0.4], [1.0, 0.0], [])
    """
    number: dict[Any, int] = {}
    place = np.array([number.setdefault(name, len(number)) for name in who], np.int64)
    if len(number) == place.size:
        return dict(columns), []
    conflicts = []
    for name in OF_PATIENT:
        first: dict[int, int] = {}
        values = columns.get(name, np.zeros(0))
        for row in np.flatnonzero(~np.isnan(values)).tolist():
            other = first.setdefault(int(place[row]), row)
            if values[other] != values[row]:
                conflicts.append((name, other, row))
    result: dict[str, Vector] = {}
    for name, values in columns.items():
        joined = np.full(len(number), np.nan)
        if name == "modalities":
            bits = np.zeros(len(number), np.int64)
            np.bitwise_or.at(bits, place, np.nan_to_num(values).astype(np.int64))
            joined[bits > 0] = bits[bits > 0]
        else:
            np.fmax.at(joined, place, values)
        result[name] = joined
    return result, conflicts
