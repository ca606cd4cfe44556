"""One tumour into every modality: displays in [0, 1], before any scanner's look.

What a modality shows of f is its ``strength`` (0 to 1, see cohort.py):

- mammography: how many micro-calcifications the lesion holds and how bright they are;
- ultrasound: shadow (0) or enhancement (1) behind the lesion, and how mixed its echoes are;
- DCE-MRI: how much the lesion enhances over parenchyma, its rim most.

All else (place, size, shape, density, texture, gain) says nothing about f. The appearance is a
caricature that a small network can learn from hundreds of cases; it makes no clinical claim.
Lengths, intensities and shares are design values.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from her2_common.cases import Box
from her2_deploy.synth.centres import MriLook, Size, UltrasoundLook
from her2_deploy.synth.cohort import SynthCase
from her2_deploy.synth.lesion import Lesion

Array = npt.NDArray[Any]
View = Literal["CC", "MLO"]

# --- sizes ---------------------------------------------------------------------------------------

MG_SHAPE: Final[dict[Size, tuple[int, int]]] = {"demo": (160, 128), "full": (2048, 1664)}
MG_MM: Final[dict[Size, float]] = {"demo": 1.05, "full": 0.082}
US_SHAPE: Final[dict[Size, tuple[int, int]]] = {"demo": (96, 128), "full": (600, 800)}
US_MM: Final[dict[Size, float]] = {"demo": 0.62, "full": 0.0992}
US_REGION: Final[dict[Size, tuple[int, int, int, int]]] = {
    "demo": (12, 15, 116, 93),  # x0, y0, x1, y1, end-exclusive
    "full": (75, 94, 725, 582),
}
MR_SHAPE: Final[dict[Size, tuple[int, int, int]]] = {"demo": (16, 48, 48), "full": (80, 256, 256)}
MR_MM: Final[dict[Size, tuple[float, float]]] = {"demo": (5.5, 3.0), "full": (1.1, 0.5625)}
"""Slice and pixel spacing."""

# --- calibration of what is shown ----------------------------------------------------------------

FAT: Final = 0.28
GLAND: Final = 0.62
MUSCLE: Final = 0.64
"""Share of the grey scale at which these appear in a mammogram: air, fat and gland are apart, as on
real ones (fat 900 to 1400 of 4,095, gland and muscle from 2,300)."""
GLAND_EDGE: Final = 8.0
"""How sharply gland ends in fat."""
CALCIFICATIONS: Final = (1.0, 34.0)
"""Expected count in the lesion at strength 0 and 1."""
CALCIFICATION_CONTRAST: Final = (0.05, 0.75)
"""Brightness added by one, as a share of the grey scale."""
CALCIFICATION_MM: Final = 0.32
"""Spread (sigma) of one; never less than half a pixel, so that small pictures keep them."""
POSTERIOR: Final = (-1.0, 1.1)
"""Change of log echo amplitude behind the lesion: shadow to enhancement."""
ECHO_MIXTURE: Final = (0.10, 0.75)
"""Spread of the log echo amplitude inside the lesion."""
ENHANCEMENT: Final = (0.25, 1.35)
"""Relative signal increase of the lesion in the first post-contrast phase."""
RIM: Final = (0.0, 0.9)
"""How much more the margin enhances than the centre."""


def _between(limits: tuple[float, float], strength: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * strength


def texture(rng: np.random.Generator, shape: tuple[int, ...], scale: tuple[float, ...]) -> Array:
    """Smooth noise of zero mean and unit spread; ``scale`` is its width in pixels by axis."""
    field = ndimage.gaussian_filter(
        rng.standard_normal(shape, dtype=np.float32), scale, mode="wrap", truncate=3.0
    )
    field -= field.mean()
    result: Array = field / max(float(field.std()), 1e-6)
    return result


def box_of(lesion: Array) -> Box:
    """The box around membership of at least a half in (rows, columns) or (slices, rows, columns).

    One pixel wide at least, even if the lesion falls between the pixels.
    """
    inside = lesion >= min(0.5, float(lesion.max()))
    spans = []
    for axis in range(lesion.ndim):
        others = tuple(a for a in range(lesion.ndim) if a != axis)
        along = np.flatnonzero(inside.any(axis=others))
        spans.append((int(along[0]), int(along[-1]) + 1))
    (y0, y1), (x0, x1) = spans[-2:]
    if lesion.ndim == 2:
        return Box(x0, y0, x1, y1)
    return Box(x0, y0, x1, y1, *spans[0])


# --- mammography ---------------------------------------------------------------------------------

MLO_ANGLE: Final = np.deg2rad(45.0)
SMALLEST_STEP_MM: Final = 0.4
"""Of the grid on which a lesion is projected; finer pixels are interpolated."""


def mammogram(case: SynthCase, view: View, size: Size) -> tuple[Array, Box]:
    """(rows, columns) float32, chest wall left for a left breast and right for a right one; box.

    Lateral is up in CC; in MLO the axillary tail and the pectoral muscle are.
    """
    rng = case.rng("mg")
    seeds = rng.integers(2**63, size=2)
    spots = _calcifications(rng, case.lesion, case.strength("mg"))
    rng = np.random.default_rng(int(seeds[0 if view == "CC" else 1]))
    shape, mm = MG_SHAPE[size], MG_MM[size]
    rows, columns = shape
    depth = (np.arange(columns, dtype=np.float32) + 0.5) * mm
    down = (np.arange(rows, dtype=np.float32) + 0.5 - rows / 2) * mm
    image = _breast_view(rng, case, view, size, depth, down)

    across, through = _view_directions(view)
    thickness = _projection(case.lesion, across, through, depth, down, mm)
    image += thickness / max(case.lesion.radii) * np.float32(rng.uniform(0.07, 0.13))
    at_depth, at_down = spots[:, 1], spots @ across
    contrast = _between(CALCIFICATION_CONTRAST, case.strength("mg"))
    for x, y, bright in zip(at_depth, at_down, rng.uniform(0.6, 1.0, len(spots)), strict=True):
        _add_spot(image, x / mm - 0.5, y / mm + rows / 2 - 0.5, mm, contrast * bright)
    for _ in range(rng.poisson(1.5)):  # benign ones anywhere
        x, y = rng.uniform(0.1, 0.6) * case.breast.depth, rng.uniform(-30, 30)
        _add_spot(image, x / mm, y / mm + rows / 2, mm, rng.uniform(0.05, 0.3))

    box = box_of(thickness / thickness.max() * 2)  # from a quarter of the greatest thickness
    if case.laterality == "R":
        image = image[:, ::-1]
        box = Box(columns - box.x1, box.y0, columns - box.x0, box.y1)
    return np.clip(image, 0, 1), box


def _view_directions(view: View) -> tuple[Array, Array]:
    """Downwards in the picture and along the beam, in (lateral, depth, cranial)."""
    if view == "CC":
        return np.array([-1.0, 0, 0]), np.array([0, 0, -1.0])
    cosine, sine = np.cos(MLO_ANGLE), np.sin(MLO_ANGLE)
    return np.array([-sine, 0, -cosine]), np.array([cosine, 0, -sine])


def _calcifications(rng: np.random.Generator, lesion: Lesion, strength: float) -> Array:
    """Places (n, 3) in the breast's frame: the same in both views."""
    count = int(rng.poisson(_between(CALCIFICATIONS, strength)))
    direction = rng.standard_normal((count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    local = direction * rng.uniform(0, 1, (count, 1)) ** (1 / 3) * 0.85 * np.array(lesion.radii)
    result: Array = local @ lesion.axes + np.array(lesion.centre)
    return result


def _breast_view(
    rng: np.random.Generator, case: SynthCase, view: View, size: Size, depth: Array, down: Array
) -> Array:
    breast = case.breast
    coarse = MG_SHAPE["demo"]
    scale = 1.0 / MG_MM["demo"]
    tissue = texture(rng, coarse, (11 * scale, 14 * scale))
    tissue += 0.55 * texture(rng, coarse, (3.5 * scale, 5 * scale))
    strands = texture(rng, coarse, (1.0 * scale, 2.6 * scale))
    if size == "full":
        tissue, strands = _enlarge(tissue, MG_SHAPE[size]), _enlarge(strands, MG_SHAPE[size])
    y, x = down[:, None], depth[None, :]
    if view == "CC":
        half = np.full_like(y, breast.lateral)
    else:
        half = np.where(y < 0, breast.cranial * 1.18, breast.cranial).astype(np.float32)
    rho = np.sqrt((x / breast.depth) ** 2 + (y / half) ** 2)
    body = np.clip((1 - rho) / 0.10, 0, 1) ** 0.6  # thins out towards the skin
    cone = 1.1 * np.exp(-(((rho - 0.35) / 0.42) ** 2)) - 0.9 + 1.5 * (breast.density - 0.5)
    gland = 1 / (1 + np.exp(-GLAND_EDGE * (tissue + cone)))
    image = body * (FAT + (GLAND - FAT) * gland + 0.022 * strands + 0.03 * tissue * gland)
    if view == "MLO":
        muscle = 0.33 * breast.depth * (0.55 - y / breast.cranial)  # its width at this height
        inside = np.clip((muscle - x) / 2.5, 0, 1) * np.clip(1.1 - np.abs(y) / half, 0, 1) ** 0.25
        image += inside * np.maximum(MUSCLE - image, 0) * 0.85
    image += 0.012 * rng.standard_normal(image.shape, dtype=np.float32) * (body > 0)
    result: Array = image.astype(np.float32)
    return result


def _enlarge(field: Array, shape: tuple[int, ...]) -> Array:
    factors = [n / m for n, m in zip(shape, field.shape, strict=True)]
    result: Array = ndimage.zoom(field, factors, order=1, mode="nearest", grid_mode=True)
    return result


def _projection(
    lesion: Lesion, across: Array, through: Array, depth: Array, down: Array, mm: float
) -> Array:
    """Millimetres of lesion that the beam meets, (rows, columns)."""
    step = max(mm, SMALLEST_STEP_MM)
    centre = np.asarray(lesion.centre)
    offsets = np.arange(-lesion.reach, lesion.reach + step, step)
    beam = np.arange(-lesion.reach, lesion.reach + 2 * step, 2 * step)
    towards_nipple = np.array([0.0, 1.0, 0.0])
    points = (
        centre
        + offsets[:, None, None, None] * across
        + offsets[None, :, None, None] * towards_nipple
        + beam[None, None, :, None] * through
    )  # (n, n, beam, 3)
    met = lesion.membership(points).sum(axis=2) * (2 * step)  # (n, n)
    rows = (down - centre @ across + lesion.reach) / step
    columns = (depth - centre[1] + lesion.reach) / step
    r0, r1 = np.searchsorted(rows, [0, len(offsets) - 1])
    c0, c1 = np.searchsorted(columns, [0, len(offsets) - 1])
    result = np.zeros((len(rows), len(columns)), dtype=np.float32)
    grid = np.meshgrid(rows[r0:r1], columns[c0:c1], indexing="ij")
    result[r0:r1, c0:c1] = ndimage.map_coordinates(met, grid, order=1)
    return result


def _add_spot(image: Array, x: float, y: float, mm: float, bright: float) -> None:
    sigma = max(CALCIFICATION_MM / mm, 0.5)
    reach = int(np.ceil(3 * sigma))
    rows, columns = image.shape
    r0, r1 = max(0, int(y) - reach), min(rows, int(y) + reach + 2)
    c0, c1 = max(0, int(x) - reach), min(columns, int(x) + reach + 2)
    if r0 >= r1 or c0 >= c1:
        return
    dy = (np.arange(r0, r1) - y)[:, None] / sigma
    dx = (np.arange(c0, c1) - x)[None, :] / sigma
    image[r0:r1, c0:c1] += (bright * np.exp(-0.5 * (dx**2 + dy**2))).astype(np.float32)


# --- ultrasound ----------------------------------------------------------------------------------


def ultrasound(case: SynthCase, look: UltrasoundLook, size: Size) -> tuple[Array, Box]:
    """The B-mode region (rows, columns) float32, skin at the top, and the box in the whole picture.

    The plane is the lesion's lateral and depth axes; the probe stands above it.
    """
    rng = case.rng("us")
    mm = US_MM[size]
    x0, y0, x1, y1 = US_REGION[size]
    rows, columns = y1 - y0, x1 - x0
    below = ((np.arange(rows, dtype=np.float32) + 0.5) * mm)[:, None]  # mm under the probe
    aside = ((np.arange(columns, dtype=np.float32) + 0.5 - columns / 2) * mm)[None, :]
    depth = rows * mm
    radius = max(case.lesion.radii)
    middle = float(np.clip(rng.normal(0.42, 0.05) * depth, 4 + radius, 0.62 * depth - 0.2 * radius))
    shift = float(rng.uniform(-1, 1) * max(1.0, columns * mm / 2 - 1.5 * radius))

    lateral, nipple, cranial = case.lesion.centre
    points = np.stack(
        np.broadcast_arrays(lateral + aside - shift, nipple - (below - middle), cranial), axis=-1
    )  # (rows, columns, 3)
    lesion = case.lesion.membership(points)

    amplitude = _tissue_layers(rng, case, below, aside, mm)
    strength = case.strength("us")
    mixed = texture(rng, (rows, columns), (1.5 / mm, 1.5 / mm))
    inside = -2.15 + _between(ECHO_MIXTURE, strength) * mixed + rng.normal(0, 0.12)
    amplitude = amplitude * (1 - lesion) + inside * lesion
    path = np.cumsum(lesion, axis=0)
    behind = np.minimum(path * mm / (0.9 * radius), 1) * (1 - lesion)
    fade = np.exp(-np.maximum(below - middle - radius, 0) / 30)
    amplitude += _between(POSTERIOR, strength) * behind * fade

    fine = (max(0.28 / mm, 0.35), max(0.5 / mm, 0.6))
    real, imaginary = (texture(rng, (rows, columns), fine) for _ in range(2))
    rayleigh = 0.5 * np.log(real**2 + imaginary**2 + 0.02) - 0.06
    attenuation = -0.012 * below * rng.uniform(0.7, 1.3)
    log_echo = amplitude + look.speckle * 0.62 * rayleigh + attenuation
    image = np.clip(look.gain * (log_echo + look.dynamic_range) / (look.dynamic_range + 0.6), 0, 1)
    box = box_of(lesion)
    return image.astype(np.float32), Box(box.x0 + x0, box.y0 + y0, box.x1 + x0, box.y1 + y0)


def _tissue_layers(
    rng: np.random.Generator, case: SynthCase, below: Array, aside: Array, mm: float
) -> Array:
    """Log echo amplitude of skin, fat, gland and muscle, (rows, columns)."""
    shape = (below.shape[0], aside.shape[1])
    depth = shape[0] * mm
    wave = np.cumsum(rng.normal(0, 1, 4)) * 0.35
    bend = sum(w * np.sin(aside / 9 * (i + 1) + w * 7) for i, w in enumerate(wave))
    to_gland = (0.10 + 0.12 * (1 - case.breast.density)) * depth + 1.6 * bend
    to_muscle = 0.86 * depth - 0.9 * bend
    skin = np.clip((1.8 - below) / 0.5, 0, 1)
    gland = np.clip((below - to_gland) / 1.5, 0, 1)
    muscle = np.clip((below - to_muscle) / 0.8, 0, 1)
    lobules = texture(rng, shape, (1.6 / mm, 3.5 / mm))
    septa = np.exp(-((texture(rng, shape, (1.6 / mm, 5.0 / mm)) / 0.22) ** 2))
    fat = -1.30 + 0.55 * septa + 0.10 * lobules
    parenchyma = -0.45 + 0.28 * lobules
    fibres = -0.95 + 0.30 * np.sin(2 * np.pi * (below - 0.3 * bend) / 2.6)
    amplitude = fat * (1 - gland) + parenchyma * gland
    amplitude = amplitude * (1 - muscle) + fibres * muscle
    edge = np.exp(-(((below - to_muscle) / 0.6) ** 2))
    result: Array = amplitude * (1 - skin) + 0.1 * skin + 0.5 * edge * (1 - skin)
    return result


# --- DCE-MRI -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Geometry:
    """Where voxel (slice k, row i, column j) lies in the patient (DICOM LPS, mm)."""

    origin: Array  # (3,), of voxel (0, 0, 0)
    along_row: Array  # unit vector in which the column index grows
    down_column: Array  # unit vector in which the row index grows
    spacing: tuple[float, float]  # slices, pixels
    shape: tuple[int, int, int]

    @cached_property
    def normal(self) -> Array:
        """Unit vector in which slices are counted (PS3.3 C.7.6.2.1.1)."""
        result: Array = np.cross(self.along_row, self.down_column)
        return result

    def position(self, k: int) -> Array:
        """ImagePositionPatient of slice ``k``."""
        result: Array = self.origin + k * self.spacing[0] * self.normal
        return result


def geometry(case: SynthCase, look: MriLook, size: Size) -> Geometry:
    """The matrix over the affected breast: axial, or sagittal."""
    shape, spacing = MR_SHAPE[size], MR_MM[size]
    if look.plane == "axial":
        row, column = np.array([1.0, 0, 0]), np.array([0.0, 1, 0])
    else:
        row, column = np.array([0.0, 1, 0]), np.array([0.0, 0, -1])
    steps = np.stack([np.cross(row, column) * spacing[0], column * spacing[1], row * spacing[1]])
    reach = np.array(shape) - 1
    middle = np.array([0.0, -case.breast.depth * 0.5 + 8.0, 0.0])  # in the breast's own axes
    origin = middle - 0.5 * (reach @ steps) + breast_offset(case)
    return Geometry(origin, row, column, spacing, shape)


def breast_offset(case: SynthCase) -> Array:
    """Of the breast's origin from the patient's: beside the breast-bone, on the affected side."""
    return np.array([85.0 if case.laterality == "L" else -85.0, -40.0, 12.0])


def dce_mri(case: SynthCase, look: MriLook, size: Size, where: Geometry) -> tuple[list[Array], Box]:
    """One (slices, rows, columns) float32 a phase, the first before contrast, and the box."""
    rng = case.rng("mri")
    steps = (
        where.normal * where.spacing[0],
        where.down_column * where.spacing[1],
        where.along_row * where.spacing[1],
    )
    indices = np.ogrid[tuple(slice(n) for n in where.shape)]
    start = where.origin - breast_offset(case)
    left, back, up = (
        start[axis] + sum(index * step[axis] for index, step in zip(indices, steps, strict=True))
        for axis in range(3)
    )
    side = 1 if case.laterality == "L" else -1
    lateral, depth, cranial = np.broadcast_arrays(side * left, -back, up)

    breast = case.breast
    rho = np.sqrt(
        (lateral / breast.lateral) ** 2
        + (depth / breast.depth) ** 2
        + (cranial / breast.cranial) ** 2
    ).astype(np.float32)
    in_breast = np.clip((1 - rho) / 0.04, 0, 1) * (depth > 0)
    muscle = (depth <= 0) & (depth > -14)
    lung = (depth <= -14) & (depth > -60)
    scale = tuple(4.0 / s for s in (where.spacing[0], where.spacing[1], where.spacing[1]))
    tissue = texture(rng, where.shape, scale)
    cone = 0.9 - 2.2 * np.abs(rho - 0.35) + 1.6 * (breast.density - 0.6)
    gland = in_breast / (1 + np.exp(-3 * (tissue + cone)))
    lesion = _local_membership(case.lesion, lateral, depth, cranial)

    before = in_breast * 0.30 + gland * 0.22 + muscle * 0.42 + lung * 0.06
    before = before * (1 - lesion) + 0.50 * lesion
    strength = case.strength("mri")
    first = _between(ENHANCEMENT, strength) + rng.normal(0, 0.04)
    inwards = np.clip(_local_depth(case.lesion, lateral, depth, cranial), 0, 1)
    profile = 1 + _between(RIM, strength) * (0.55 - inwards)
    background = gland * rng.uniform(0.05, 0.25) + muscle * 0.10
    gain = background * (1 - lesion) + first * profile * lesion
    later = rng.uniform(-0.10, 0.06)  # wash-out or persistent, a phase
    bias = 1 + sum(  # a coil is nearer to one side
        slope * np.linspace(-1, 1, n).reshape([n if a == axis else 1 for a in range(3)])
        for axis, (n, slope) in enumerate(zip(where.shape, rng.normal(0, 0.06, 3), strict=True))
    )
    phases = []
    for phase in range(look.phases[size]):
        curve = 0.0 if phase == 0 else 1 + later * (phase - 1)
        signal = before * (1 + gain * curve) * bias
        real = signal + look.noise * rng.standard_normal(where.shape, dtype=np.float32)
        imaginary = look.noise * rng.standard_normal(where.shape, dtype=np.float32)
        phases.append(np.sqrt(real**2 + imaginary**2).astype(np.float32))
    return phases, box_of(lesion)


def _near(lesion: Lesion, *coordinates: Array) -> tuple[slice, ...]:
    """The part of the grid that the lesion can reach."""
    near = np.ones(coordinates[0].shape, dtype=bool)
    for values, middle in zip(coordinates, lesion.centre, strict=True):
        near &= np.abs(values - middle) <= lesion.reach
    spans = []
    for axis in range(near.ndim):
        along = np.flatnonzero(near.any(axis=tuple(a for a in range(near.ndim) if a != axis)))
        spans.append(slice(int(along[0]), int(along[-1]) + 1))
    return tuple(spans)


def _local_depth(lesion: Lesion, *coordinates: Array) -> Array:
    part = _near(lesion, *coordinates)
    result = np.full(coordinates[0].shape, -1, dtype=np.float32)
    result[part] = lesion.depth_within(np.stack([c[part] for c in coordinates], axis=-1))
    return result


def _local_membership(lesion: Lesion, *coordinates: Array) -> Array:
    part = _near(lesion, *coordinates)
    result = np.zeros(coordinates[0].shape, dtype=np.float32)
    result[part] = lesion.membership(np.stack([c[part] for c in coordinates], axis=-1))
    return result
