"""A map over its picture: grey below, colours above, one panel a channel or plane.

1. The map is smoothed (Gaussian, ``sigma_of``): single pixels of a gradient are noise to the eye.
   Smoothing moves what pixels add to their neighbours and keeps the sum.
2. Planar pictures give a panel a channel. A volume gives its three planes through the voxel
   where the smoothed map is strongest.
3. One scale for all panels of a modality: full colour is the ``ROBUST`` percentile of the
   smoothed map's size, or a quarter of its greatest where that is more. The opacity grows with
   the size; the colour is its sign: ``FOR`` and ``AGAINST`` are told apart by the colour-blind.

Planes of a volume are seen as radiologists do: the patient's right on the left, the head on top.
Source of its axes: her2_client.ingest.mri.volume.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import gaussian_filter

from her2_common.cases import Modality

Array = npt.NDArray[Any]

FOR: Final = (255, 140, 26)
AGAINST: Final = (51, 144, 255)
"""Orange and blue, both seen on black and on white (sRGB)."""
MOST_OPAQUE: Final = 0.85
LEVELS: Final = 100
"""Shades of each colour."""
SIGMA_SHARE: Final = 1 / 32
"""Spread of the smoothing as a share of a picture's side (design value): about the grid on which
the encoders' strides sample it, whose pattern would else be seen. At least one pixel."""
ROBUST: Final = 99.5
GREY_RANGE: Final = (0.5, 99.5)
"""Percentiles of a picture that are drawn black and white."""
JPEG_QUALITY: Final = 85

CHANNEL_NAMES: Final[dict[Modality, tuple[str, ...]]] = {
    "mg": ("CC", "MLO", "CC, lesion crop", "MLO, lesion crop"),
    "us": ("B-mode",),
}
PLANE_NAMES: Final = ("axial", "coronal", "sagittal")
FROM: Final = ("the feet", "the front", "the right")
"""Where voxel 1 lies along the axes z, y, x."""


@dataclass(frozen=True)
class Panel:
    """One picture of ``size`` (columns, rows): a channel, or a plane of a volume."""

    title: str
    size: tuple[int, int]


class Files(NamedTuple):
    """A panel's two layers, of one size."""

    jpg: bytes
    png: bytes


@dataclass(frozen=True)
class Drawing:
    """The panels of one modality. ``sigma`` is in pixels or voxels.

    ``full``: log odds a pixel (voxel) at which the colour is full; 0 if the map is 0 everywhere.
    """

    panels: tuple[Panel, ...]
    sigma: float
    full: float


def draw(modality: Modality, image: Array, pixels: Array) -> tuple[Drawing, list[Files]]:
    """The map ``pixels`` over the standardised ``image``, both (channels, *size).

    Returns the drawing and, for each of its panels, the grey picture and the colours over it.
    """
    sigma = sigma_of(image.shape[-1])
    smoothed = smooth(pixels, sigma)
    full = full_colour(smoothed)
    if image.ndim == 3:
        names, cuts = list(CHANNEL_NAMES[modality]), list(zip(image, smoothed, strict=True))
    else:
        names, cuts = _planes(image[0], smoothed[0])
    panels = [
        Panel(name, (grey.shape[1], grey.shape[0]))
        for name, (grey, _) in zip(names, cuts, strict=True)
    ]
    files = [Files(grey_jpeg(grey), colours_png(map_, full)) for grey, map_ in cuts]
    return Drawing(tuple(panels), sigma, full), files


def sigma_of(side: int) -> float:
    """The spread of the smoothing, in pixels of a picture of ``side``.

    >>> sigma_of(256), sigma_of(16)
    (8.0, 1.0)
    """
    return max(side * SIGMA_SHARE, 1.0)


def smooth(pixels: Array, sigma: float) -> Array:
    """(channels, *size) smoothed within each channel, reflected at the rim: the sum stays."""
    along = (0.0,) + (sigma,) * (pixels.ndim - 1)
    smoothed: Array = gaussian_filter(pixels.astype(np.float64), along, mode="reflect")
    return smoothed


def full_colour(smoothed: Array) -> float:
    """The size of a value from which on the colour is full.

    >>> full_colour(np.array([0.0, 0.0, -8.0] + [0.0] * 1000))
    2.0
    """
    size = np.abs(smoothed)
    return max(float(np.percentile(size, ROBUST)), float(size.max()) / 4)


def strongest(smoothed: Array) -> tuple[int, int, int]:
    """The voxel (z, y, x) at which a smoothed map (V, V, V) is farthest from 0."""
    z, y, x = np.unravel_index(int(np.abs(smoothed).argmax()), smoothed.shape)
    return int(z), int(y), int(x)


def _planes(volume: Array, smoothed: Array) -> tuple[list[str], list[tuple[Array, Array]]]:
    """The names of three planes, and of each the picture and its map."""
    names, cuts = [], []
    for axis, place in enumerate(strongest(smoothed)):
        grey, colours = (np.take(values, place, axis) for values in (volume, smoothed))
        if axis:  # rows are slices, counted from the feet: turn the head up
            grey, colours = grey[::-1], colours[::-1]
        names.append(
            f"{PLANE_NAMES[axis]}, slice {place + 1} of {volume.shape[axis]} from {FROM[axis]}"
        )
        cuts.append((grey, colours))
    return names, cuts


# --- files --------------------------------------------------------------------------------------


def grey_jpeg(values: Array) -> bytes:
    """(rows, columns) from black at the lowest half per cent to white at the highest."""
    low, high = np.percentile(values.astype(np.float64), GREY_RANGE)
    span = high - low if high > low else 1.0
    shown = np.clip((values.astype(np.float64) - low) / span, 0, 1) * 255
    stream = io.BytesIO()
    Image.fromarray(shown.round().astype(np.uint8)).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def colours_png(smoothed: Array, full: float) -> bytes:
    """(rows, columns) in the palette: transparent at 0, ``FOR`` above it, ``AGAINST`` below.

    The place in the palette is ``LEVELS`` + the value in ``LEVELS``ths of ``full``.
    """
    share = np.clip(smoothed / full, -1, 1) if full > 0 else np.zeros_like(smoothed)
    places = (LEVELS + np.rint(LEVELS * share)).astype(np.uint8)
    indexed = Image.frombytes("P", (places.shape[1], places.shape[0]), places.tobytes())
    indexed.putpalette([*AGAINST * LEVELS, 0, 0, 0, *FOR * LEVELS])
    opacity = [round(255 * MOST_OPAQUE * abs(i - LEVELS) / LEVELS) for i in range(2 * LEVELS + 1)]
    stream = io.BytesIO()
    indexed.save(stream, "PNG", transparency=bytes(opacity), optimize=True)
    return stream.getvalue()
