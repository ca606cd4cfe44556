"""One 3-D lesion and the breast around it: what every modality of a case sees.

The breast's own frame, in millimetres: ``lateral`` away from the midline, ``depth`` from the
chest wall towards the nipple, ``cranial`` upwards; the origin is the middle of the chest wall.
A breast is half an ellipsoid in it. All lengths here are design values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Vector = tuple[float, float, float]

REACH: Final = 1.45
"""No part of a lesion is farther from its centre than this times its largest radius."""

FREE_MM: Final = 39.0
"""Lateral and cranial room on either side of the nipple line that every picture shows."""

SKIN_MM: Final = 8.0
"""Tissue left between a lesion and the skin or the chest wall."""

EDGE: Final = 0.16
"""Width of a lesion's soft margin, as a share of its radius."""

LOBES: Final = 3
SPICULES: Final = 9
SPICULE_SHARPNESS: Final = 45.0
"""Concentration of a spicule around its direction (von Mises-Fisher): about 8 degrees."""


@dataclass(frozen=True)
class Breast:
    """Semi-axes in mm and ``density``, from 0 (fatty) to 1 (dense)."""

    lateral: float
    depth: float
    cranial: float
    density: float


@dataclass(frozen=True)
class Lesion:
    """A lobulated, spiculated ellipsoid.

    ``centre`` and ``radii`` in mm; ``axes`` (3, 3) holds the ellipsoid's directions as rows;
    ``lobes`` (k, 5) rows of wave vector, phase, amplitude; ``spicules`` (n, 4) rows of unit
    direction, length as a share of the radius.
    """

    centre: Vector
    radii: Vector
    axes: Array
    lobes: Array
    spicules: Array

    @property
    def reach(self) -> float:
        """Millimetres from the centre beyond which there is no lesion."""
        return REACH * max(self.radii)

    def depth_within(self, points: Array) -> Array:
        """How far inside the margin ``points`` (..., 3) lie: 0 at it, 1 at the centre, < 0 outside.

        In shares of the radius along the same direction.
        """
        local = points.astype(np.float32) - np.asarray(self.centre, dtype=np.float32)
        axes = self.axes.astype(np.float32)
        # Sums, not a matrix product: its bits could depend on the number of threads.
        along = [
            (local[..., 0] * axes[i, 0] + local[..., 1] * axes[i, 1] + local[..., 2] * axes[i, 2])
            / np.float32(self.radii[i])
            for i in range(3)
        ]
        rho = np.sqrt(along[0] ** 2 + along[1] ** 2 + along[2] ** 2)
        unit = [value / np.maximum(rho, np.float32(1e-6)) for value in along]
        margin = np.ones_like(rho)
        for x, y, z, phase, amplitude in self.lobes.astype(np.float32):
            margin += amplitude * np.cos(x * unit[0] + y * unit[1] + z * unit[2] + phase)
        for x, y, z, length in self.spicules.astype(np.float32):
            cosine = x * unit[0] + y * unit[1] + z * unit[2]
            margin += length * np.exp(np.float32(SPICULE_SHARPNESS) * (cosine - 1))
        result: Array = 1 - rho / np.minimum(margin, np.float32(REACH))
        return result

    def membership(self, points: Array) -> Array:
        """The share of tissue at ``points`` (..., 3) that is lesion, 0 to 1; 0.5 at the margin."""
        share: Array = np.clip(0.5 + self.depth_within(points) / EDGE, 0, 1)
        return share


def draw_breast(rng: np.random.Generator) -> Breast:
    """A breast that fits into every picture."""
    return Breast(
        lateral=float(rng.uniform(56, 70)),
        depth=float(rng.uniform(68, 95)),
        cranial=float(rng.uniform(56, 68)),
        density=float(rng.beta(2, 2)),
    )


def draw_lesion(rng: np.random.Generator, breast: Breast, diameter: float) -> Lesion:
    """A lesion of about ``diameter`` mm at a random place inside ``breast``."""
    radii = diameter / 2 * rng.uniform(0.78, 1.05, size=3)
    reach = REACH * float(radii.max())
    spiculation = rng.beta(1.2, 1.6)
    return Lesion(
        centre=_place(rng, breast, reach),
        radii=(float(radii[0]), float(radii[1]), float(radii[2])),
        axes=_rotation(rng),
        lobes=np.column_stack(
            [
                _directions(rng, LOBES) * rng.uniform(2, 5, size=(LOBES, 1)),
                rng.uniform(0, 2 * np.pi, size=LOBES),
                rng.uniform(0.02, 0.08, size=LOBES),
            ]
        ),
        spicules=np.column_stack(
            [_directions(rng, SPICULES), spiculation * rng.uniform(0.15, 0.45, size=SPICULES)]
        ),
    )


def _place(rng: np.random.Generator, breast: Breast, reach: float) -> Vector:
    room = max(FREE_MM - reach, 1.0)
    semi = (breast.lateral - reach, breast.depth - reach, breast.cranial - reach)
    nearest = SKIN_MM + 0.8 * reach  # a spicule may touch the chest wall
    for _ in range(100):
        lateral, cranial = rng.uniform(-room, room, size=2)
        depth = rng.uniform(nearest, max(breast.depth - reach, nearest + 1))
        if (lateral / semi[0]) ** 2 + (depth / semi[1]) ** 2 + (cranial / semi[2]) ** 2 < 0.9:
            return float(lateral), float(depth), float(cranial)
    return 0.0, nearest, 0.0


def _directions(rng: np.random.Generator, count: int) -> Array:
    vectors = rng.standard_normal((count, 3))
    result: Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return result


def _rotation(rng: np.random.Generator) -> Array:
    """A random rotation by Gram-Schmidt on two random vectors."""
    first, second = _directions(rng, 2)
    second = second - (second @ first) * first
    second /= np.linalg.norm(second)
    return np.stack([first, second, np.cross(first, second)])
