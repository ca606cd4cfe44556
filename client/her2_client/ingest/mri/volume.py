"""Volumes in space: which way their axes point, the cube around a lesion, its intensities.

1. A source gives a ``Dynamic``: one grid, and per phase a way to read planes of it.
2. The axes are permuted and flipped, never interpolated, until the slice axis points toward the
   head, rows toward posterior and columns toward left (LPS, DICOM PS3.3 C.7.6.2.1.1): an axial
   DICOM series stays as it is. The box goes with them.
3. The cube is ``FIELD_MM`` wide around the middle of the box, so that a voxel is equally large at
   every centre. Without a box the whole volume is fitted, and a voxel's size then differs.
4. Only the planes that the cube needs are read, and of the first post-contrast phase those from
   which the reference is measured.
5. Intensity: (x / reference - 1) / 0.5, clipped to [-5, 5], with one reference a case.

Plain arrays: no DICOM, no files.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from her2_client.ingest.pixels import (
    CLIP,
    Place,
    Window,
    check_box,
    lowest_threshold,
    place_in,
    resample,
)
from her2_common.cases import Box
from her2_common.config import FIRST_POST_CONTRAST
from her2_common.errors import ImageError

Array = npt.NDArray[Any]

FIELD_MM: Final = 64.0
"""The cube's width: twice a large T2 tumour, 0.67 mm a voxel at 96, 2 mm at 32 (design value)."""
CONTRAST_UNIT: Final = 0.5
"""Share of the reference that becomes one unit (design value)."""
REFERENCE_STRIDE: Final = 2
"""Of a large volume every second voxel along each axis measures the reference."""
LARGE_VOLUME: Final = 1 << 20
MAX_VOXELS: Final = 1 << 28
"""Voxels of one phase; a header that promises more is damaged (design value)."""
MARGIN: Final = 1
"""Source voxels read beyond the cube, for interpolation at its rim."""

HEAD: Final = (0.0, 0.0, 1.0)
POSTERIOR: Final = (0.0, 1.0, 0.0)
LEFT: Final = (1.0, 0.0, 0.0)
TARGET: Final = np.array([HEAD, POSTERIOR, LEFT])
"""Directions of slices, rows and columns in a standardised cube, in the patient's LPS axes."""


@dataclass(frozen=True)
class Grid:
    """Where voxels lie: ``shape``, ``spacing`` (mm) and ``axes`` of (slice, row, column).

    ``axes`` (3, 3): one row an axis, its direction as a unit vector in LPS.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    axes: Array


@dataclass(frozen=True)
class Phase:
    """One phase, unread: ``read(planes)`` yields (rows, columns) float32, one a plane asked for.

    ``files`` hold all its planes; ``burned_in``: a header states that text is in the pixels.
    """

    files: tuple[Path, ...]
    read: Callable[[Sequence[int]], Iterator[Array]]
    burned_in: bool = False


@dataclass(frozen=True)
class Dynamic:
    """The phases of one case on one grid, by index; 0 is before contrast.

    ``set_aside``: what was found beside them and is not used; ``skipped``: slices before the first
    one, of the other breast, that a box counts too.
    """

    grid: Grid
    phases: dict[int, Phase]
    manufacturer: str = ""
    set_aside: tuple[ImageError, ...] = ()
    skipped: int = 0


@dataclass(frozen=True)
class Turn:
    """Turned axis k is axis ``order[k]`` of the source, backwards if ``flipped[k]``."""

    order: tuple[int, ...]
    flipped: tuple[bool, ...]

    @classmethod
    def of(cls, axes: Array) -> Turn:
        """The turn that brings ``axes`` nearest to ``TARGET``.

        >>> Turn.of(TARGET)
        Turn(order=(0, 1, 2), flipped=(False, False, False))
        """
        along = TARGET @ axes.T  # (3 targets, 3 source axes), cosines
        best = -np.inf
        order: tuple[int, ...] = (0, 1, 2)
        for candidate in itertools.permutations(range(3)):
            fit = float(sum(abs(along[k, a]) for k, a in enumerate(candidate)))
            if fit > best + 1e-6:  # of equal ones the first, whatever the rounding
                best, order = fit, candidate
        return cls(order, tuple(bool(along[k, a] < 0) for k, a in enumerate(order)))

    def volume(self, values: Array) -> Array:
        """``values`` (slices, rows, columns of the source) turned; a view."""
        turned = values.transpose(self.order)
        return turned[tuple(slice(None, None, -1 if f else 1) for f in self.flipped)]

    def sizes(self, sizes: Sequence[Any]) -> tuple[Any, ...]:
        """One number an axis, turned."""
        return tuple(sizes[a] for a in self.order)

    def interval(self, k: int, low: float, high: float, length: int) -> Window:
        """An interval of turned axis ``k`` on its source axis, and the other way round."""
        return (length - high, length - low) if self.flipped[k] else (low, high)


@dataclass(frozen=True)
class Cube:
    """The cube's ``windows`` along the turned axes and the source voxels that it needs.

    ``needed``: start and stop along each source axis; ``sampled``: for the reference, likewise by
    source axis; ``place``: where the box lies in the cube.
    """

    turn: Turn
    windows: tuple[Window, ...]
    needed: tuple[range, ...]
    sampled: tuple[range, ...]
    place: Place | None


def cube(grid: Grid, box: Box | None) -> Cube:
    """Where the cube lies.

    Raises:
        ImageError: the box lies outside the volume or has no slices; too large a volume.
    """
    voxels = math.prod(grid.shape)
    if not 0 < voxels <= MAX_VOXELS:
        raise ImageError(
            f"expected 1 to {MAX_VOXELS} voxels in a phase, got {voxels}", reason="too large"
        )
    turn = Turn.of(grid.axes)
    shape, spacing = turn.sizes(grid.shape), turn.sizes(grid.spacing)
    low: tuple[float, ...] = (0.0, 0.0, 0.0)
    high: tuple[float, ...] = tuple(float(n) for n in shape)
    side = max(n * mm for n, mm in zip(shape, spacing, strict=True))
    if box is not None:
        if box.z0 is None or box.z1 is None:
            raise ImageError("expected a box with slices, got none", reason="box without slices")
        check_box(box, grid.shape)
        corners = [(box.z0, box.z1), (box.y0, box.y1), (box.x0, box.x1)]
        turned = [turn.interval(k, *corners[a], shape[k]) for k, a in enumerate(turn.order)]
        low, high = tuple(t[0] for t in turned), tuple(t[1] for t in turned)
        side = FIELD_MM
    windows = []
    needed: list[range] = [range(0)] * 3
    sampled: list[range] = [range(0)] * 3
    stride = REFERENCE_STRIDE if voxels > LARGE_VOLUME else 1
    for k, a in enumerate(turn.order):
        middle, half = (low[k] + high[k]) / 2, side / spacing[k] / 2
        windows.append((middle - half, middle + half))
        first = max(0, int(np.floor(middle - half)) - MARGIN)
        last = min(shape[k], int(np.ceil(middle + half)) + MARGIN)
        start, stop = turn.interval(k, first, last, shape[k])
        needed[a] = range(int(start), int(stop))
        every = range(0, shape[k], stride)  # counted along the turned axis: bits do not depend
        sampled[a] = range(shape[k])[::-1][::stride] if turn.flipped[k] else every
    place = None if box is None else place_in(windows, low, high)
    return Cube(turn, tuple(windows), tuple(needed), tuple(sampled), place)


def standardised(dynamic: Dynamic, box: Box | None, size: int, phases: Sequence[int]) -> Array:
    """(len(phases), size, size, size) float16 within [-5, 5]; beyond the volume -2, as air.

    Raises:
        ImageError: the box lies outside the volume; blank or not finite; a plane cannot be read.
    """
    where = cube(dynamic.grid, box)
    reference = 0.0
    parts: dict[int, Array] = {}
    for index in sorted({FIRST_POST_CONTRAST, *phases}):
        sample, part = _read(dynamic, index, where, wanted=index in phases)
        if index == FIRST_POST_CONTRAST:
            reference = reference_of(sample)
        if index in phases:
            parts[index] = _resampled(part, where, dynamic.grid, size)
    cubes = np.stack([parts[index] for index in phases])  # (P, V, V, V)
    scaled = np.clip((cubes / reference - 1) / CONTRAST_UNIT, -CLIP, CLIP)
    return scaled.astype(np.float16)


def reference_of(values: Array) -> float:
    """The median of the values above Otsu's threshold: about parenchyma.

    Values below 0 count as 0, air: only values above 0 enter the median.

    Raises:
        ImageError: no bright tissue (reason "blank image").
    """
    above = np.maximum(values, 0)  # padding that no header names joins the air
    if not above.any():
        raise ImageError("expected bright tissue, got none above zero", reason="blank image")
    reference = float(np.median(above[above > lowest_threshold(above, 2)]))
    if not reference > 0:
        raise ImageError("expected bright tissue, got none above zero", reason="blank image")
    return reference


def _read(dynamic: Dynamic, index: int, where: Cube, *, wanted: bool) -> tuple[Array, Array]:
    """(sample of the volume, the part the cube needs), both on the source's axes, float32."""
    planes, rows, columns = where.needed if wanted else (range(0), range(0), range(0))
    measured = where.sampled if index == FIRST_POST_CONTRAST else (range(0), range(0), range(0))
    sample = np.empty([len(r) for r in measured], dtype=np.float32)
    part = np.empty((len(planes), len(rows), len(columns)), dtype=np.float32)
    asked = sorted({*planes, *measured[0]})
    for number, plane in zip(asked, dynamic.phases[index].read(asked), strict=True):
        if not np.isfinite(plane).all():
            raise ImageError("expected finite values, got others", reason="not finite")
        if number in planes:
            part[planes.index(number)] = plane[rows.start : rows.stop, columns.start : columns.stop]
        if number in measured[0]:
            steps = [slice(min(r), max(r) + 1, abs(r.step)) for r in measured[1:]]
            sample[measured[0].index(number)] = plane[tuple(steps)]
    return sample, part


def _resampled(part: Array, where: Cube, grid: Grid, size: int) -> Array:
    """(size, size, size): the turned ``part`` on the cube's grid, 0 beyond the volume."""
    shifted = []
    for k, a in enumerate(where.turn.order):
        needed = where.needed[a]
        start, _ = where.turn.interval(k, needed.start, needed.stop, grid.shape[a])
        low, high = where.windows[k]
        shifted.append((low - start, high - start))
    turned = np.ascontiguousarray(where.turn.volume(part))
    values, _ = resample(turned, shifted, (size, size, size))
    return values
