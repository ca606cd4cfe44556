"""What travels between the coordinator and a site for the task ``response``, as Flower records.

    order, coordinator to site
        "order"    {"json": TaskOrder}      the run, and the release's weights by their fingerprints
        "query"    {"json": ResponseQuery}  the analysis plan, its threshold a number; what is asked
        "arrays"   {name: float64}          what earlier answers gave: coefficients, histograms of
                                            all sites
        "weights"  {group: float32 vector}  if the site has no scores of them yet
    reply, site to coordinator
        "reply"    {"json": ResponseReply}
        "arrays"   {name: float64}          the statistic, unless it is withheld

Documents and arrays travel as in her2_common.wire. The receiver trusts nothing: see there and
her2_common.response.codec.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

import numpy as np
from flwr.app import Array, RecordDict
from numpy.typing import NDArray
from pydantic import Field, field_validator

from her2_common.arrays import Arrays, arrays_of, arrays_record, read_array
from her2_common.config import Name
from her2_common.errors import UpdateError
from her2_common.response.plan import Plan
from her2_common.response.queries import Kind, Query
from her2_common.section import Section

_ARRAYS: Final = 64
"""Arrays of one message, at most: a plan has some 25 tables."""


Item = Annotated[str, Field(pattern=r"^[a-z0-9-]{0,40}$")]
"""What a query is about: a name of her2_common.response.queries, or of a model of the plan."""

Queries = Annotated[int, Field(ge=0, le=1_000_000)]


class ResponseQuery(Section):
    """A ``her2_common.response.queries.Query`` but for its arrays, and under what plan it is
    asked, the threshold in it."""

    analysis: Plan
    kind: Kind
    item: Item = ""
    centres: tuple[Name, ...] = Field(default=(), max_length=10_000)
    reduced: bool = False

    @field_validator("analysis")
    @classmethod
    def _check_threshold(cls, plan: Plan) -> Plan:
        if plan.threshold == "release":
            raise ValueError("expected a threshold that is a number, got release")
        return plan

    @classmethod
    def of(cls, query: Query, plan: Plan) -> ResponseQuery:
        """The document of a query."""
        return cls(
            analysis=plan,
            kind=query.kind,
            item=query.item,
            centres=query.centres,
            reduced=query.reduced,
        )

    def query(self, arrays: Mapping[str, NDArray[np.float64]]) -> Query:
        """The query, with the arrays that came beside it."""
        return Query(self.kind, self.item, self.centres, self.reduced, arrays)


class ResponseReply(Section):
    """A site's answer: whose, to what, whether it is withheld, and how many queries of how many
    it has answered for this run."""

    site: Name
    kind: Kind
    item: Item
    withheld: bool = False
    queries: Queries
    max_queries: Queries


def statistics_record(arrays: Mapping[str, NDArray[np.float64]]) -> Arrays:
    """Named arrays of float64 as a record."""
    return arrays_record(
        {name: Array(np.asarray(array, order="C")) for name, array in arrays.items()}
    )


def read_statistics(record: RecordDict) -> dict[str, NDArray[np.float64]]:
    """The arrays of a message, none if it has none.

    Raises:
        UpdateError: "misshapen", "wrong type".
    """
    arrays = arrays_of(record, "arrays")
    if len(arrays) > _ARRAYS:
        raise UpdateError(f"expected at most {_ARRAYS} arrays", reason="misshapen")
    result = {}
    for name, array in arrays.items():
        values = read_array(array)
        if values is None:
            raise UpdateError("not a numpy array", reason="misshapen")
        if values.dtype != np.float64:
            raise UpdateError(f"expected float64, got {values.dtype}", reason="wrong type")
        result[name] = values
    return result
