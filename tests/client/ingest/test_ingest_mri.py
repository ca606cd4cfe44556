"""DCE-MRI: order, phases, geometry, intensity and the cube around the lesion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from her2_client.ingest.mri import dce_mri, first_post_contrast, read_headers
from her2_common.cases import Box
from her2_common.errors import ImageError

SIZE = 16
BOX = Box(7, 11, 13, 17, 3, 8)
Change = Callable[[int, int, dict[str, Any]], dict[str, Any] | None]


def test_the_first_post_contrast_phase_is_read(tmp_path: Path, dicoms: Any, pictures: Any) -> None:
    phases = pictures.dynamic(4)
    plain = dce_mri(dicoms.mri(tmp_path / "a", phases), BOX, size=SIZE)
    assert plain.shape == (1, SIZE, SIZE, SIZE)
    assert plain.dtype == np.float16
    others = phases.copy()
    others[0], others[2:] = 7, 9  # what the other phases hold does not matter
    np.testing.assert_array_equal(
        dce_mri(dicoms.mri(tmp_path / "b", others), BOX, size=SIZE), plain
    )


def test_intensity_is_relative_to_parenchyma(tmp_path: Path, dicoms: Any, pictures: Any) -> None:
    cube = dce_mri(dicoms.mri(tmp_path / "a", pictures.dynamic()), BOX, size=SIZE)[0].astype(float)
    # parenchyma about 300, the lesion 700: (700 / 300 - 1) / 0.5 = 2.67; air 10: -1.93
    assert cube[8, 8, 8] == pytest.approx(2.67, abs=0.1)
    assert np.median(cube[np.abs(cube) < 0.5]) == pytest.approx(0, abs=0.05)


def test_beyond_the_volume_it_is_air(tmp_path: Path, dicoms: Any, pictures: Any) -> None:
    folder = dicoms.mri(tmp_path / "a", pictures.dynamic())
    cube = dce_mri(folder, Box(7, 11, 13, 17, 6, 10), size=SIZE)[0]
    # middle at slice 8 of 10, 2 mm each: 16 of 20 mm, so 6 of the cube's 20 mm lie beyond
    assert (cube[-4:] == -2.0).all()
    assert (cube[:-5] != -2.0).all()


@pytest.mark.parametrize("gain", [2.0, 3.7, 21.0])
def test_the_gain_of_the_scanner_cancels(
    tmp_path: Path, dicoms: Any, pictures: Any, gain: float
) -> None:
    phases = pictures.dynamic()
    plain = dce_mri(dicoms.mri(tmp_path / "a", phases), BOX, size=SIZE)

    def slope(_phase: int, _z: int, tags: dict[str, Any]) -> dict[str, Any]:
        return tags | {"RescaleSlope": gain, "RescaleIntercept": 0.0}

    scaled = dce_mri(dicoms.mri(tmp_path / "b", phases, change=slope), BOX, size=SIZE)
    np.testing.assert_allclose(scaled, plain, atol=5e-3)


def test_each_slice_is_rescaled_by_its_own_header(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    phases = pictures.dynamic()
    plain = dce_mri(dicoms.mri(tmp_path / "a", phases), BOX, size=SIZE)

    def own(_phase: int, z: int, tags: dict[str, Any]) -> dict[str, Any]:
        return tags | {"RescaleSlope": 1.0 / (1 + z % 2), "RescaleIntercept": -float(z)}

    factors = (1 + np.arange(phases.shape[1]) % 2)[:, None, None]
    shifted = (phases + np.arange(phases.shape[1])[:, None, None]) * factors
    written = dicoms.mri(tmp_path / "b", shifted, change=own)
    np.testing.assert_allclose(dce_mri(written, BOX, size=SIZE), plain, atol=5e-3)


def test_file_names_and_files_that_are_not_dicom_do_not_matter(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    phases = pictures.dynamic()
    plain = dce_mri(dicoms.mri(tmp_path / "a", phases), BOX, size=SIZE)
    order = np.random.default_rng(0).permutation(phases.shape[0] * phases.shape[1])

    def name(phase: int, z: int) -> str:
        return f"IM{order[phase * phases.shape[1] + z]:05d}"

    shuffled = dicoms.mri(tmp_path / "b", phases, name=name)
    (shuffled / "notes.txt").write_text("read me")
    np.testing.assert_array_equal(dce_mri(shuffled, BOX, size=SIZE), plain)


def test_slices_are_placed_along_the_normal_of_an_oblique_stack(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    phases = pictures.dynamic()
    plain = dce_mri(dicoms.mri(tmp_path / "a", phases), BOX, size=SIZE)
    row, column = np.array([0.0, 0.8, 0.6]), np.array([0.0, 0.6, -0.8])
    normal = np.cross(row, column)  # points to negative x: positions fall as slices rise

    def oblique(_phase: int, z: int, tags: dict[str, Any]) -> dict[str, Any]:
        position = [5.0, 6.0, 7.0] + 2.0 * z * normal
        return tags | {
            "ImageOrientationPatient": [*row, *column],
            "ImagePositionPatient": [float(round(v, 6)) for v in position],
        }

    tilted = dicoms.mri(tmp_path / "b", phases, change=oblique)
    np.testing.assert_array_equal(dce_mri(tilted, BOX, size=SIZE), plain)


def test_the_cube_is_isotropic(tmp_path: Path, dicoms: Any) -> None:
    """A ball in mm stays a ball, whatever the slice thickness."""
    z, y, x = np.mgrid[:24, :48, :48].astype(float)
    ball = ((z - 11.5) * 2) ** 2 + (y - 23.5) ** 2 + (x - 23.5) ** 2 < 8**2
    volume = np.where(ball, 900, 300.0) * (y > 12)
    folder = dicoms.mri(tmp_path / "a", np.stack([volume, volume]))
    cube = dce_mri(folder, Box(16, 16, 32, 32, 8, 16), size=32)[0]
    # 16 mm across, twice enlarged: 32 mm on 32 voxels
    extents = [np.ptp(np.nonzero((cube > 1).any(axis=axes))) for axes in ((1, 2), (0, 2), (0, 1))]
    assert all(14 <= extent <= 16 for extent in extents)


def test_the_cube_is_at_least_20_mm_and_at_most_the_volume(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    folder = dicoms.mri(tmp_path / "a", pictures.dynamic())  # 20 x 24 x 20 mm
    lesion_2_mm, lesion_10_mm = Box(9, 13, 11, 15, 4, 5), Box(5, 9, 15, 19, 2, 7)
    for box in (lesion_2_mm, lesion_10_mm):  # both have their middle at (10, 14, 4.5)
        np.testing.assert_array_equal(
            dce_mri(folder, box, size=SIZE), dce_mri(folder, lesion_10_mm, size=SIZE)
        )
    whole = dce_mri(folder, None, size=SIZE)
    largest = dce_mri(folder, Box(0, 0, 20, 24, 0, 10), size=SIZE)
    np.testing.assert_array_equal(whole, largest)


def _timed(key: str, values: list[Any], date: list[str] | None = None) -> Change:
    def change(phase: int, _z: int, tags: dict[str, Any]) -> dict[str, Any]:
        tags = tags | {"TemporalPositionIdentifier": None, key: values[phase]}
        if date is not None:
            tags |= {key.replace("Time", "Date"): date[phase]}
        return tags

    return change


@pytest.mark.parametrize(
    "change",
    [
        _timed("TriggerTime", [0.0, 90000.0, 180000.0]),
        _timed("TriggerTime", [9.0, 10.0, 100.0]),  # as numbers, not as text
        _timed("AcquisitionTime", ["095900", "100030.5", "100200"]),
        _timed("AcquisitionTime", ["235900", "000030", "000200"],
               ["20200101", "20200102", "20200102"]),
        _timed("ContentTime", ["10", "1001", "100200"]),
    ],
)  # fmt: skip
def test_phases_are_told_apart_by_the_first_key_that_does(
    tmp_path: Path, dicoms: Any, pictures: Any, change: Change
) -> None:
    phases = pictures.dynamic()
    plain = dce_mri(dicoms.mri(tmp_path / "a", phases), BOX, size=SIZE)
    timed = dicoms.mri(tmp_path / "b", phases, change=change)
    np.testing.assert_array_equal(dce_mri(timed, BOX, size=SIZE), plain)


def test_a_key_that_is_the_same_everywhere_is_passed_over(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    phases = pictures.dynamic()
    plain = dce_mri(dicoms.mri(tmp_path / "a", phases), BOX, size=SIZE)

    def change(phase: int, z: int, tags: dict[str, Any]) -> dict[str, Any]:
        return tags | {
            "TemporalPositionIdentifier": 1,
            "AcquisitionTime": f"1000{z:02d}",  # a time a slice tells no phases apart
            "ContentTime": f"10{phase:02d}00",
        }

    np.testing.assert_array_equal(
        dce_mri(dicoms.mri(tmp_path / "b", phases, change=change), BOX, size=SIZE), plain
    )


def test_derived_images_are_set_aside(tmp_path: Path, dicoms: Any, pictures: Any) -> None:
    phases = pictures.dynamic()
    folder = dicoms.mri(tmp_path / "a", phases)
    plain = dce_mri(folder, BOX, size=SIZE)

    def subtraction(phase: int, _z: int, tags: dict[str, Any]) -> dict[str, Any]:
        return tags | {"ImageType": ["DERIVED", "SECONDARY", "SUBTRACTION"],
                       "TemporalPositionIdentifier": 7 + phase}  # fmt: skip

    dicoms.mri(folder, phases, change=subtraction, name=lambda p, z: f"sub-{p}-{z}")
    np.testing.assert_array_equal(dce_mri(folder, BOX, size=SIZE), plain)
    alone = dicoms.mri(tmp_path / "b", phases, change=subtraction)
    with pytest.raises(ImageError) as caught:
        dce_mri(alone, BOX, size=SIZE)
    assert caught.value.reason == "derived images"


def _without(missing: Callable[[int, int], bool]) -> Change:
    return lambda phase, z, tags: None if missing(phase, z) else tags


def _with(where: Callable[[int, int], bool], **changed: Any) -> Change:
    return lambda phase, z, tags: tags | changed if where(phase, z) else tags


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without(lambda _, z: z == 4), "gap"),
        (_without(lambda p, z: (p, z) == (1, 4)), "gap"),
        (_without(lambda p, z: (p, z) == (2, 9)), "gap"),
        (_without(lambda p, _: p > 0), "one phase only"),
        (_without(lambda p, z: z > 0), "one slice only"),
        (_with(lambda p, z: (p, z) == (1, 4), TemporalPositionIdentifier=1), "duplicate slice"),
        (_with(lambda p, z: True, TemporalPositionIdentifier=None), "phases unclear"),
        (_with(lambda p, z: (p, z) == (1, 4), PixelSpacing=[1.0, 1.2]), "unequal geometry"),
        (_with(lambda p, z: (p, z) == (1, 4), Columns=10, Rows=48), "unequal geometry"),
        (_with(lambda p, z: z == 4, ImageOrientationPatient=[1, 0, 0, 0, 0.8, 0.6]),
         "unequal geometry"),
        (_with(lambda p, z: z == 4, ImagePositionPatient=[-15.0, -20.0, -22.0]),
         "unequal geometry"),
        (_with(lambda p, z: z == 4, ImagePositionPatient=None), "no geometry"),
        (_with(lambda p, z: z == 4, PixelSpacing=[0.0, 1.0]), "no geometry"),
        (_with(lambda p, z: z == 4, PixelSpacing=[1.0]), "no geometry"),
        (_with(lambda p, z: z == 4, NumberOfFrames=3), "multi-frame MR"),
        (_with(lambda p, z: z == 4, Modality="CT"), "wrong modality"),
    ],
)  # fmt: skip
def test_what_is_refused(
    tmp_path: Path, dicoms: Any, pictures: Any, change: Change, reason: str
) -> None:
    folder = dicoms.mri(tmp_path / "a", pictures.dynamic(), change=change)
    with pytest.raises(ImageError, match="expected") as caught:
        dce_mri(folder, BOX, size=SIZE)
    assert caught.value.reason == reason


def test_a_second_copy_of_a_slice_is_a_duplicate(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    folder = dicoms.mri(tmp_path / "a", pictures.dynamic())
    (folder / "copy.dcm").write_bytes((folder / "1-004.dcm").read_bytes())
    with pytest.raises(ImageError) as caught:
        dce_mri(folder, BOX, size=SIZE)
    assert caught.value.reason == "duplicate slice"


def test_missing_empty_and_blank(tmp_path: Path, dicoms: Any, pictures: Any) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    blank = dicoms.mri(tmp_path / "blank", np.zeros((2, 4, 8, 8)))
    folder = dicoms.mri(tmp_path / "a", pictures.dynamic())
    for path, box, reason in [
        (tmp_path / "absent", None, "missing file"),
        (tmp_path / "file", None, "not a folder"),
        (tmp_path / "empty", None, "not DICOM"),
        (blank, None, "blank image"),
        (folder, Box(0, 0, 5, 5, 8, 11), "box outside"),
    ]:
        with pytest.raises(ImageError) as caught:
            dce_mri(path, box, size=SIZE)
        assert caught.value.reason == reason


def test_only_one_phase_has_its_pixels_read(tmp_path: Path, dicoms: Any, pictures: Any) -> None:
    folder = dicoms.mri(tmp_path / "a", pictures.dynamic(4))
    stack = first_post_contrast(read_headers(folder))
    assert [item.path.name for item in stack.slices] == [f"1-{z:03d}.dcm" for z in range(10)]
    assert stack.spacing == (2.0, 1.0, 1.0)
