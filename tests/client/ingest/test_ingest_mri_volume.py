"""Axes, the cube around the box, and resampling, against nibabel, SciPy and block means."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from her2_client.ingest.mri import volume as module
from her2_client.ingest.mri.volume import TARGET, Dynamic, Grid, Phase, Turn, cube, standardised
from her2_common.cases import Box
from her2_common.errors import ImageError

SIDES = st.integers(0, 2**32 - 1)


def dynamic(*volumes: Any, spacing: tuple[float, float, float], axes: Any = TARGET) -> Dynamic:
    """Phases held in memory."""

    def phase(values: Any) -> Phase:
        def read(planes: Sequence[int]) -> Iterator[Any]:
            for plane in planes:
                yield values[plane].astype(np.float32)

        return Phase((), read)

    grid = Grid(volumes[0].shape, spacing, np.array(axes))
    return Dynamic(grid, dict(enumerate(map(phase, volumes))))


def signal(values: Any, reference: float) -> Any:
    """What a cube's values were before standardisation."""
    return (values.astype(float) * 0.5 + 1) * reference


def reference(values: Any) -> float:
    return module.reference_of(values.astype(np.float32))


@settings(max_examples=40, deadline=None)
@given(seed=SIDES)
def test_the_turn_is_nibabels_closest_canonical_orientation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.random((3, 4, 5))
    affine = np.eye(4)
    mirror = np.diag(rng.choice([-1.0, 1.0], 3))
    tilt = Rotation.from_rotvec(rng.uniform(-0.3, 0.3, 3)).as_matrix()
    whole = np.eye(3)[rng.permutation(3)]
    affine[:3, :3] = tilt @ whole @ mirror @ np.diag(rng.uniform(0.5, 3, 3))
    closest = nibabel.as_closest_canonical(nibabel.Nifti1Image(values, affine))  # i, j, k to RAS
    expected = np.asarray(closest.dataobj)[::-1, ::-1].T  # slices, rows, columns to S, P, L
    axes = (affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)).T * [-1, -1, 1]
    turn = Turn.of(axes[::-1])
    np.testing.assert_array_equal(turn.volume(values.T), expected)


def test_an_axial_series_stays_as_it_is_and_ties_go_the_same_way() -> None:
    assert Turn.of(TARGET) == Turn((0, 1, 2), (False, False, False))
    half = np.sqrt(0.5)
    for error in (0.0, 1e-9, -1e-9):
        tilted = np.array([[0, half, half + error], [0, half + error, -half], [1, 0, 0]])
        assert Turn.of(tilted) == Turn((0, 1, 2), (False, False, False))


@pytest.mark.parametrize("large", [False, True])
@settings(max_examples=15, deadline=None)
@given(seed=SIDES)
def test_a_volume_stored_along_any_axes_gives_the_same_bits(seed: int, large: bool) -> None:
    """All 48 ways to store it; also where the reference is measured on every second voxel."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(6, 12, 3))
    spacing = tuple(float(v) for v in rng.uniform(1, 9, 3))
    volumes = [rng.integers(1, 900, shape) for _ in range(2)]
    low = [int(rng.integers(0, n - 1)) for n in shape]
    high = [int(rng.integers(a + 1, n + 1)) for a, n in zip(low, shape, strict=True)]

    def box(lows: Sequence[int], highs: Sequence[int]) -> Box:
        return Box(lows[2], lows[1], highs[2], highs[1], lows[0], highs[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LARGE_VOLUME", 1 if large else 1 << 20)
        plain = standardised(
            dynamic(*volumes, spacing=spacing),
            box(low, high),
            12,
            (0, 1),
        )
        for order in itertools.permutations(range(3)):
            back = rng.random(3) < 0.5
            steps = tuple(slice(None, None, -1 if b else 1) for b in back)
            stored = [v.transpose(order)[steps] for v in volumes]
            axes = TARGET[list(order)] * np.where(back, -1, 1)[:, None]
            n = stored[0].shape
            ends = [(low[a], high[a]) for a in order]
            ends = [(n[k] - h, n[k] - a) if back[k] else (a, h) for k, (a, h) in enumerate(ends)]
            turned = standardised(
                dynamic(*stored, spacing=tuple(spacing[a] for a in order), axes=axes),
                box([e[0] for e in ends], [e[1] for e in ends]),
                12,
                (0, 1),
            )
            np.testing.assert_array_equal(turned, plain)


@settings(max_examples=15, deadline=None)
@given(seed=SIDES)
def test_growing_is_linear_interpolation(seed: int) -> None:
    """SciPy's map_coordinates at the millimetres of each voxel's middle."""
    rng = np.random.default_rng(seed)
    values = rng.integers(200, 900, (9, 11, 13)).astype(float)
    spacing = np.array(rng.uniform(3, 8, 3))
    box = Box(2, 3, 9, 8, 1, 7)
    size = 24  # 2.67 mm a voxel
    made = standardised(dynamic(values, values, spacing=tuple(spacing)), box, size, (1,))[0]
    middle = np.array([4.0, 5.5, 5.5])
    offset = (np.arange(size) + 0.5) * 64 / size - 32  # mm
    along = [m + offset / mm - 0.5 for m, mm in zip(middle, spacing, strict=True)]
    at = np.stack(np.meshgrid(*along, indexing="ij"))  # (3, size, size, size)
    expected = ndimage.map_coordinates(values, at, order=1, mode="nearest")
    shape = np.array(values.shape)[:, None, None, None]
    inside = ((at >= -0.5) & (at <= shape - 0.5)).all(axis=0)
    scale = reference(values)
    np.testing.assert_allclose(signal(made, scale)[inside], expected[inside], atol=0.002 * scale)
    assert (made[~inside] == -2).all()


def test_shrinking_is_the_mean_of_what_a_voxel_covers() -> None:
    values = np.random.default_rng(3).integers(200, 900, (80, 70, 90)).astype(float)
    box = Box(39, 29, 51, 41, 34, 46)  # its middle is (40, 35, 45), a corner of voxels
    made = standardised(dynamic(values, values, spacing=(1.0, 1.0, 1.0)), box, 16, (1,))[0]
    part = values[8:72, 3:67, 13:77]  # 64 mm
    blocks = part.reshape(16, 4, 16, 4, 16, 4).mean(axis=(1, 3, 5))
    scale = reference(values)
    np.testing.assert_allclose(signal(made, scale), blocks, atol=0.002 * scale)


def test_a_voxel_is_equally_large_whatever_the_scanner_and_the_lesion() -> None:
    """A ball in mm stays a ball of that size: 64 mm on 32 voxels."""
    for spacing in [(3.0, 1.0, 1.0), (1.0, 2.0, 1.5), (5.0, 0.8, 0.8)]:
        shape = tuple(int(90 / mm) for mm in spacing)
        index = np.indices(shape)
        mm = [(index[k] + 0.5) * spacing[k] - 45 for k in range(3)]
        ball = sum(v**2 for v in mm) < 12**2
        values = np.where(ball, 900.0, 300.0) * (mm[1] > -40)
        middle = [int(n // 2) for n in shape]
        for half in (2, 4):
            low, high = [m - half for m in middle], [m + half for m in middle]
            box = Box(low[2], low[1], high[2], high[1], low[0], high[0])
            made = standardised(dynamic(values, values, spacing=spacing), box, 32, (1,))[0]
            # 24 mm across: 12 voxels of 2 mm; pi / 6 * 12^3 of them
            assert int((made > 2).sum()) == pytest.approx(np.pi / 6 * 12**3, rel=0.12)


def test_a_lesion_larger_than_the_field_is_kept_by_its_middle() -> None:
    values = np.full((60, 60, 60), 300.0)
    values[29:31, 29:31, 29:31] = 900.0
    values[:, :2] = 10
    made = standardised(
        dynamic(values, values, spacing=(2.0, 2.0, 2.0)), Box(5, 5, 55, 55, 5, 55), 32, (1,)
    )[0]
    assert np.argwhere(made > 3).tolist() == [
        list(p) for p in itertools.product((15, 16), repeat=3)
    ]


def test_without_a_box_the_whole_volume_is_fitted() -> None:
    values = np.random.default_rng(4).integers(200, 900, (10, 20, 40)).astype(float)
    made = standardised(dynamic(values, values, spacing=(2.0, 1.0, 1.0)), None, 20, (1,))[0]
    # 20 x 20 x 40 mm: the cube is 40 mm, 2 mm a voxel
    blocks = values.reshape(10, 10, 2, 20, 2).mean(axis=(2, 4))
    scale = reference(values)
    np.testing.assert_allclose(signal(made[5:15, 5:15], scale), blocks, atol=0.002 * scale)
    assert (made[:5] == -2).all()
    assert (made[15:] == -2).all()


@settings(max_examples=30, deadline=None)
@given(seed=SIDES)
def test_what_is_read_is_what_the_cube_needs(seed: int) -> None:
    """Voxels that are not read may hold anything: the cube stays the same."""
    rng = np.random.default_rng(seed)
    values = rng.integers(200, 900, (40, 30, 30)).astype(float)
    spacing = tuple(float(v) for v in rng.uniform(2, 6, 3))
    corner = [int(v) for v in rng.integers(0, 25, 3)]
    box = Box(corner[2], corner[1], corner[2] + 5, corner[1] + 5, corner[0], corner[0] + 5)
    where = cube(Grid(values.shape, spacing, TARGET), box)
    other = np.full_like(values, 5000.0)
    part = tuple(slice(r.start, r.stop) for r in where.needed)
    other[part] = values[part]
    scale = [values, values]
    made = [
        standardised(dynamic(v, *scale, spacing=spacing), box, 16, (0,)) for v in (values, other)
    ]
    np.testing.assert_array_equal(*made)
    assert all(
        (r.stop - r.start) * mm <= 64 + 4 * mm for r, mm in zip(where.needed, spacing, strict=True)
    )


def test_the_reference_is_the_median_above_otsus_threshold() -> None:
    rng = np.random.default_rng(6)
    air, tissue = rng.normal(20, 5, 5000), rng.normal(400, 30, 3001)
    values = np.concatenate([air, tissue])
    assert reference(values) == pytest.approx(np.median(tissue), rel=1e-6)


def test_negative_and_blank_volumes_are_refused() -> None:
    for values in (np.full((4, 4, 4), -5.0), np.linspace(-9, -1, 64).reshape(4, 4, 4)):
        with pytest.raises(ImageError) as caught:
            standardised(dynamic(values, values, spacing=(1.0, 1.0, 1.0)), None, 4, (1,))
        assert caught.value.reason == "blank image"
