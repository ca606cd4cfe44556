"""Text in the source pixels that are about to enter the cache."""

from __future__ import annotations

from typing import Any, Final

import numpy.typing as npt

from her2_client.ingest.pixels import Rectangle, grey, saturation
from her2_client.ingest.privacy.text import find_text

Array = npt.NDArray[Any]

SEARCHED: Final = 2
"""Pixels that are searched for each pixel of the cache, along each axis, at least: letters too
small to be found then have fewer than six cache pixels, which nobody can read (a design value)."""


def text_in(part: Array, x0: int, y0: int, *, scale: float) -> list[Rectangle]:
    """Rectangles with text in ``part``, in the pixels of the whole picture.

    ``part`` is (rows, columns), or (rows, columns, 3) in colour: then it is searched as grey and,
    since a coloured name may be as bright as the tissue under it, by saturation.
    ``x0`` and ``y0`` say where the first pixel of ``part`` lies in it, ``scale`` how many of them
    become one pixel of the cache.
    """
    coloured = saturation(part)
    found = _searched(grey(part), x0, y0, scale)
    return found if coloured is None else found + _searched(coloured, x0, y0, scale)


def _searched(part: Array, x0: int, y0: int, scale: float) -> list[Rectangle]:
    factor = max(1, int(scale / SEARCHED))
    rows, columns = (n // factor for n in part.shape)
    if factor > 1 and rows and columns:
        blocks = part[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor)
        part = blocks.mean(axis=(1, 3))  # (rows, columns)
    return [
        (x0 + factor * a, y0 + factor * b, x0 + factor * c, y0 + factor * d)
        for a, b, c, d in find_text(part)
    ]


def found_message(count: int) -> str:
    """What is said of a picture in which text was found."""
    places = "1 place" if count == 1 else f"{count} places"
    return f"expected a picture without text, got text in {places}"
