"""Caches that tests write at a go, from arrays instead of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from her2_client.cache_writer import CacheWriter
from her2_common.cases import Modality


def add(
    writer: CacheWriter, *, pseudonym: str, images: Mapping[Modality, npt.NDArray[Any]], **case: Any
) -> None:
    """Append one case and its images; ``case`` is what else ``add_case`` takes."""
    rows = {m: writer.put(f"{pseudonym}/{m}", m, {}, image)["row"] for m, image in images.items()}
    writer.add_case(pseudonym=pseudonym, rows=rows, **case)
