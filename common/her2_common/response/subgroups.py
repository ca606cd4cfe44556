"""The primary comparison in subgroups: where does the image help, and is that more than chance?

Subgroups are many and small: an interval that excludes 1 in one of them is no finding. The test of
heterogeneity across subgroups comes first; its p-value belongs into Holm's family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from her2_common.cases import MODALITIES
from her2_common.errors import MetricError
from her2_common.metrics import Estimate
from her2_common.response import strata
from her2_common.response.inference import HypothesisTest
from her2_common.response.patients import COLUMNS, Patients
from her2_common.response.primary import primary_strata
from her2_common.response.strata import Strata

SUBGROUPS: Final = ("hr", "t", "n", "modalities")
"""Columns by which subgroups are formed; the centres are strata already."""


@dataclass(frozen=True)
class ForestRow:
    """One line of a forest plot; None where the subgroup has no answer."""

    label: str
    n: int
    responders: int
    odds_ratio: Estimate | None
    risk_difference: Estimate | None


@dataclass(frozen=True)
class Forest:
    """All subgroups of one kind and the test that they share one odds ratio."""

    rows: tuple[ForestRow, ...]
    heterogeneity: HypothesisTest | None


def label(column: str, value: int) -> str:
    """How a subgroup is called: ``"hr 1"``, ``"modalities mg+us"``.

    >>> label("modalities", 3), label("t", 2)
    ('modalities mg+us', 't 2')
    """
    if column != "modalities":
        return f"{column} {value}"
    return f"{column} " + "+".join(
        name for bit, name in enumerate(MODALITIES) if value & (1 << bit)
    )


def subgroup_strata(patients: Patients, column: str, threshold: float) -> dict[str, Strata]:
    """The primary comparison's table of one centre in every subgroup, empty ones included.

    All centres return the same labels, so that ``add`` is a sum. Patients whose column is unknown
    are in no subgroup.

    Raises:
        MetricError: no subgroups are formed by the column, or the centre lacks it.
    """
    if column not in SUBGROUPS:
        raise MetricError(f"subgroups: expected one of {', '.join(SUBGROUPS)}, got {column!r}")
    low, high, _ = COLUMNS[column]
    values = patients.column(column)
    return {
        label(column, value): primary_strata(patients.where(values == value), threshold)
        for value in range(int(low), int(high) + 1)
    }


def add(one: Mapping[str, Strata], other: Mapping[str, Strata]) -> dict[str, Strata]:
    """The sum of two centres' subgroups."""
    return {
        name: one.get(name, Strata.empty()) + other.get(name, Strata.empty())
        for name in dict.fromkeys([*one, *other])
    }


def forest(groups: Mapping[str, Strata], level: float = 0.95) -> Forest:
    """Mantel-Haenszel odds ratio and risk difference by subgroup, stratified by centre.

    Subgroups without patients are left out. Heterogeneity is Cochran's Q over the subgroups that
    have an odds ratio; None for fewer than two.
    """
    rows = tuple(
        ForestRow(
            name,
            tables.n,
            tables.responders,
            strata.odds_ratio(tables, level),
            strata.risk_difference(tables, level),
        )
        for name, tables in groups.items()
        if tables.n
    )
    ratios = [row.odds_ratio for row in rows if row.odds_ratio is not None]
    return Forest(rows, strata.heterogeneity(ratios, level))


def by_centre(tables: Strata, level: float = 0.95) -> Forest:
    """The centres themselves as the lines of a forest plot."""
    return forest(
        {
            name: Strata((name,), tables.counts[[index]])
            for index, name in enumerate(tables.names)
            if np.any(tables.counts[index])
        },
        level,
    )
