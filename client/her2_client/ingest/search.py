"""Text in the source pixels that are about to enter the cache."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from her2_client.ingest.guard import Rectangle
from her2_client.ingest.text import find_text

Array = npt.NDArray[Any]


def text_in(part: Array, x0: int, y0: int) -> list[Rectangle]:
    """Rectangles with text in ``part``, (rows, columns), in the pixels of the whole picture.

    ``x0`` and ``y0`` say where the first pixel of ``part`` lies in it.
    """
    return [(x0 + a, y0 + b, x0 + c, y0 + d) for a, b, c, d in find_text(part)]


def found_message(count: int) -> str:
    """What is said of a picture in which text was found."""
    places = "1 place" if count == 1 else f"{count} places"
    return f"expected a picture without text, got text in {places}"
