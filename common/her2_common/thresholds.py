"""The threshold of a call, as a value in a file: on the grid of scores, or refused."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from her2_common.errors import MetricError
from her2_common.metrics import grid_index


def _on_grid(threshold: float) -> float:
    try:
        grid_index(threshold)
    except MetricError as error:
        raise ValueError(str(error)) from None
    return threshold


GridThreshold = Annotated[float, Field(ge=0, le=1), AfterValidator(_on_grid)]
"""A number from 0 to 1 that is a multiple of 1/1024."""
