"""What every section of the analysis has at hand, and notes down for the others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from her2_common.response.document import Json
from her2_common.response.paired import CallTable
from her2_common.response.plan import Plan
from her2_common.response.pooling import Pool

Label = Literal["her2", "pcr"]

HIDDEN: Final = "fewer than {min_cell} patients in a cell, or needed to hide one"
FEW: Final = "fewer than {min_centres} centres have patients here, or tell of them"


@dataclass
class Study:
    """The centres' answers, the frozen threshold, what the score is a probability of (``label``).

    ``family`` collects the p-values of the secondary tests by name, for Holm.
    """

    pool: Pool
    threshold: float
    label: Label = "her2"
    family: dict[str, float] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        """The analysis plan."""
        return self.pool.plan

    def count(self, name: str) -> int | None:
        """Patients of a table at all centres; None if one withholds it."""
        tables = [t.blocks.get(name) for t in self.pool.tables.values()]
        counts = [int(table.sum()) for table in tables if table is not None]
        return sum(counts) if len(counts) == len(tables) else None

    def tested(self, name: str, p_value: float | None) -> None:
        """A secondary test, for Holm's family."""
        if p_value is not None:
            self.family[name] = p_value

    def hidden(self, what: str, which: str, why: str = HIDDEN) -> Json:
        """What stands for a line that is not shown; it is noted with the reason."""
        why = why.format(min_cell=self.plan.min_cell, min_centres=self.pool.min_centres)
        self.pool.suppressed.append({"what": what, "which": which, "why": why})
        return {"suppressed": True}

    def calls(self, what: str) -> CallTable:
        return CallTable(sum(self.pool.table("calls", what).values(), np.zeros((2, 2, 2), int)))
