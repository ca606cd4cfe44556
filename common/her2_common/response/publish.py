"""Which lines of a result are shown: breakdowns by centre, by subgroup, by pair of calls.

What is said of all patients together (the primary table, the margins of the calls, patients by
outcome) is always shown; whoever may see the result sees it. A breakdown is shown line by line,
but for lines with a count from 1 to ``min_cell`` - 1 and for those without which such a count, or
the rest between two lines, could be worked out from all that is shown. Where a table of all
patients has a small count itself, none of its breakdowns is shown.

It protects the counts that are printed against sums and differences. An exact odds ratio with its
interval can be inverted for the table behind it; what keeps small counts from a coordinator is
that the site does not send them (``queries``).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from her2_common.response.cells import Blocks, Positions
from her2_common.response.inference import Integers
from her2_common.response.paired import CallTable
from her2_common.response.strata import Strata


def shown_primary(
    primary: Strata, subgroups: Mapping[str, Mapping[str, Strata]], min_cell: int
) -> frozenset[str]:
    """What is shown of the primary comparison: ``"centre A"``, ``"hr 1"`` and the like."""
    total = primary.counts.sum(axis=0)
    if _small(total, min_cell):
        return frozenset()
    blocks = Blocks()
    whole = blocks.add("", total)
    centres = [
        blocks.add(f"centre {name}", table)
        for name, table in zip(primary.names, primary.counts, strict=True)
    ]
    _sum(blocks, whole, centres)
    for groups in subgroups.values():
        parts = [blocks.add(label, tables.counts.sum(axis=0)) for label, tables in groups.items()]
        blocks.part(whole, *parts)
    return _told(blocks, min_cell)


def shown_centres(outcomes: Mapping[str, Integers], min_cell: int) -> frozenset[str]:
    """Centres, each with its patients by outcome (2,), of which something is shown."""
    total = sum(outcomes.values(), np.zeros(2, np.int64))
    if _small(total, min_cell):
        return frozenset()
    blocks = Blocks()
    whole = blocks.add("", total)
    _sum(blocks, whole, [blocks.add(name, counts) for name, counts in outcomes.items()])
    # A line needs both outcomes, or it says nothing
    return frozenset(name for name in _told(blocks, min_cell) if outcomes[name].any())


def shown_calls(table: CallTable, treated: Integers | None, min_cell: int) -> frozenset[str]:
    """Pairs of calls, ``"01"`` for biopsy negative and model positive, that are shown.

    ``treated`` is the primary table (group, outcome) of the same patients, where it is shown.
    """
    by_biopsy, by_model = table.counts.sum(axis=2), table.counts.sum(axis=1)
    if _small(by_biopsy, min_cell) or _small(by_model, min_cell):
        return frozenset()
    blocks = Blocks()
    biopsy, model = blocks.add("", by_biopsy), blocks.add("", by_model)
    always = None if treated is None else blocks.add("", treated.T)
    cells = np.zeros((2, 2, 2), np.int64)
    for first in range(2):
        for second in range(2):
            cells[:, first, second] = blocks.add(f"{first}{second}", table.counts[:, first, second])
    for outcome in range(2):
        for call in range(2):
            blocks.equal(biopsy[outcome, call], cells[outcome, call])
            blocks.equal(model[outcome, call], cells[outcome, :, call])
    if always is not None:
        blocks.part(cells[:, 1], always)
    return _told(blocks, min_cell)


def _small(counts: Integers, min_cell: int) -> bool:
    return bool(np.any((counts > 0) & (counts < min_cell)))


def _sum(blocks: Blocks, whole: Positions, parts: list[Positions]) -> None:
    for cell in np.ndindex(whole.shape):
        blocks.equal(whole[cell], np.array([part[cell] for part in parts]))


def _told(blocks: Blocks, min_cell: int) -> frozenset[str]:
    """What is shown; nothing where even what is always shown gives a small count away."""
    told = blocks.told(min_cell)
    return frozenset(told) - {""} if "" in told else frozenset()
