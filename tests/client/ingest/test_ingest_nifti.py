"""NIfTI: the same volume as in DICOM gives the same cube, whichever way the file stores it."""

from __future__ import annotations

import gzip
import itertools
import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from her2_client.ingest.mri.dce import dce_mri
from her2_client.ingest.privacy.guard import Guard
from her2_common.cases import Box
from her2_common.errors import ImageError

SIZE = 24
MM = (4.0, 3.0, 2.5)
BOX = Box(7, 11, 13, 17, 3, 8)
AFFINE = np.array([[-2.5, 0, 0, 20], [0, -3.0, 0, 20], [0, 0, 4.0, -30], [0, 0, 0, 1]])
"""Columns, rows, slices of the DICOM series to RAS: its x and y are turned about."""


def cube(*sources: Path, box: Box | None = BOX, phases: tuple[int, ...] = (0, 1, 2)) -> Any:
    return dce_mri(sources, box, size=SIZE, phases=phases, guard=Guard(b"k" * 32)).values


def refused(*sources: Path, box: Box | None = BOX, phases: tuple[int, ...] = (1,)) -> ImageError:
    with pytest.raises(ImageError, match=r"expected|truncated|damaged") as caught:
        cube(*sources, box=box, phases=phases)
    assert caught.value.disposition == "refused"
    return caught.value


def write(path: Path, values: Any, affine: Any = AFFINE, **header: Any) -> Path:
    """``values`` as (i, j, k) or (i, j, k, phases)."""
    image = nibabel.Nifti1Image(values, affine, dtype=values.dtype)
    for name, value in header.items():
        image.header[name] = value
    image.header["descrip"], image.header["aux_file"] = b"CANARY-7", b"CANARY-7"
    image.header["db_name"], image.header["intent_name"] = b"CANARY-7", b"CANARY-7"
    nibabel.save(image, path)
    return path


@pytest.fixture
def phases(pictures: Any) -> Any:
    """(phases, slices, rows, columns)."""
    return pictures.dynamic(3)


@pytest.fixture
def stored(phases: Any) -> Any:
    """(columns, rows, slices, phases), as NIfTI counts."""
    return phases.transpose(3, 2, 1, 0).astype(np.int16)


@pytest.fixture
def plain(tmp_path: Path, dicoms: Any, phases: Any) -> Any:
    """The cube of the DICOM series."""
    return cube(dicoms.mri(tmp_path / "plain", phases, spacing=MM))


@pytest.mark.parametrize("suffix", ["nii", "nii.gz", "NII"])
def test_one_file_of_all_phases(tmp_path: Path, stored: Any, plain: Any, suffix: str) -> None:
    path = write(tmp_path / "a.nii", stored)
    named = tmp_path / f"b.{suffix}"
    named.write_bytes(gzip.compress(path.read_bytes()) if suffix == "nii.gz" else path.read_bytes())
    np.testing.assert_array_equal(cube(named), plain)


def test_one_file_a_phase(tmp_path: Path, stored: Any, plain: Any) -> None:
    paths = [write(tmp_path / f"{9 - p}.nii.gz", stored[..., p]) for p in range(3)]
    np.testing.assert_array_equal(cube(*paths), plain)
    np.testing.assert_array_equal(cube(*paths[:2], phases=(1,)), plain[1:2])


def test_a_single_volume_is_the_first_post_contrast_phase(
    tmp_path: Path, stored: Any, plain: Any
) -> None:
    for values in (stored[..., 1], stored[..., 1:2]):
        path = write(tmp_path / "a.nii", values)
        np.testing.assert_array_equal(cube(path, phases=(1,)), plain[1:2])
        for asked in [(0,), (0, 1), (2,)]:
            assert refused(path, phases=asked).reason == "too few phases"


def test_all_ways_to_store_a_volume_give_the_same_bits(
    tmp_path: Path, stored: Any, plain: Any
) -> None:
    """48 orders and directions of i, j, k; the box counts along the axes of the file."""
    shape, low, high = stored.shape[:3], (7, 11, 3), (13, 17, 8)
    volume = stored[..., :2]
    for order in itertools.permutations(range(3)):
        for back in itertools.product((False, True), repeat=3):
            values = volume.transpose(*order, 3)
            affine = AFFINE[:, [*order, 3]].copy()
            ends = [(low[a], high[a]) for a in order]
            for axis in (k for k in range(3) if back[k]):
                n = shape[order[axis]]
                values = np.flip(values, axis)
                affine[:, 3] += affine[:, axis] * (n - 1)
                affine[:, axis] *= -1
                ends[axis] = (n - ends[axis][1], n - ends[axis][0])
            (x0, x1), (y0, y1), (z0, z1) = ends
            path = write(tmp_path / "a.nii", values, affine)
            np.testing.assert_array_equal(
                cube(path, box=Box(x0, y0, x1, y1, z0, z1), phases=(0, 1)), plain[:2]
            )


def test_scaling_kinds_and_units(tmp_path: Path, stored: Any, plain: Any) -> None:
    scaled = nibabel.Nifti1Image(stored.astype(np.float64) * 0.37 - 20, AFFINE)
    scaled.header.set_data_dtype(np.int16)
    nibabel.save(scaled, tmp_path / "scaled.nii")  # chooses a slope and an intercept
    assert nibabel.load(tmp_path / "scaled.nii").dataobj.slope != 1
    # gain cancels; the offset of -20 does not
    again = write(tmp_path / "again.nii", stored.astype(np.float32) * np.float32(0.37) - 20)
    np.testing.assert_allclose(cube(tmp_path / "scaled.nii"), cube(again), atol=5e-3)
    for kind in (np.uint8, np.uint16, np.int32, np.float32, np.float64, np.int64):
        values = stored.astype(kind) if kind is not np.uint8 else (stored // 4).astype(kind)
        path = write(tmp_path / "kind.nii", values)
        np.testing.assert_allclose(cube(path), plain, atol=0.1 if kind is np.uint8 else 0)
    metres = AFFINE * np.array([[0.001], [0.001], [0.001], [1]])
    path = write(tmp_path / "m.nii", stored, metres, xyzt_units=1)
    np.testing.assert_allclose(cube(path), plain, atol=5e-3)


def test_nifti_2(tmp_path: Path, stored: Any, plain: Any) -> None:
    nibabel.save(nibabel.Nifti2Image(stored, AFFINE), tmp_path / "a.nii")
    np.testing.assert_array_equal(cube(tmp_path / "a.nii"), plain)


def test_qform_alone_is_enough(tmp_path: Path, stored: Any, plain: Any) -> None:
    image = nibabel.Nifti1Image(stored, AFFINE)
    image.set_qform(AFFINE, code=1)
    image.set_sform(None, code=0)
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(cube(tmp_path / "a.nii"), plain, atol=5e-3)


# --- faults -------------------------------------------------------------------------------------


def test_faults_of_one_file(tmp_path: Path, stored: Any) -> None:
    sheared, flat, wild = AFFINE.copy(), AFFINE.copy(), AFFINE.copy()
    sheared[0, 2], flat[:, 2], wild[0, 3] = 1.5, 0.0, np.nan
    holes = stored.astype(np.float32)
    holes[9, 13, 5, 1] = np.nan
    colour = np.zeros(stored.shape[:3], dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    for number, (values, affine, reason) in enumerate(
        [
            (stored, sheared, "sheared geometry"),
            (stored, flat, "no geometry"),
            (stored, wild, "no geometry"),
            (holes, AFFINE, "not finite"),
            (stored.astype(np.complex64), AFFINE, "not grey"),
            (colour, AFFINE, "not grey"),
            (stored[:, :, 0, 0], AFFINE, "not a volume"),
            (np.stack([stored, stored], axis=4), AFFINE, "not a volume"),
            (stored[:, :, :1], AFFINE, "one slice only"),
            (stored * 0, AFFINE, "blank image"),
        ]
    ):
        header = nibabel.Nifti1Image(values, np.eye(4)).header
        header.set_sform(affine, code=1)  # as it is, whatever it means
        path = tmp_path / f"{number}.nii"
        nibabel.save(nibabel.Nifti1Image(values, None, header), path)
        assert refused(path).reason == reason, reason


def test_faults_of_a_file_as_such(
    tmp_path: Path, stored: Any, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    good = write(tmp_path / "good.nii", stored)
    content = good.read_bytes()
    packed = gzip.compress(content)
    unplaced = nibabel.Nifti1Image(stored, AFFINE)
    unplaced.set_sform(None, code=0)
    unplaced.set_qform(None, code=0)
    nibabel.save(unplaced, tmp_path / "unplaced.nii")
    huge = bytearray(content)
    huge[42:48] = np.array([32767, 32767, 32767], np.int16).tobytes()
    negative = bytearray(content)
    negative[42:44] = np.array([-5], np.int16).tobytes()
    for name, held, reasons in [
        ("unplaced.nii", None, {"no geometry"}),
        ("absent.nii", None, {"missing file"}),
        ("cut.nii", content[:-4000], {"truncated"}),
        ("cut.nii.gz", packed[:-400], {"truncated", "damaged"}),
        ("header.nii", content[:200], {"not NIfTI"}),
        ("empty.nii", b"", {"empty file"}),
        ("text.nii", b"CANARY-7 " * 99, {"not NIfTI"}),
        ("packed.nii.gz", content, {"not NIfTI"}),
        ("huge.nii", bytes(huge), {"too large"}),
        ("negative.nii", bytes(negative), {"damaged", "not a volume"}),
    ]:
        if held is not None:
            (tmp_path / name).write_bytes(held)
        error = refused(tmp_path / name, phases=(1, 2))
        assert error.reason in reasons, name
        assert "CANARY" not in str(error)
    (tmp_path / "folder.nii").mkdir()
    assert refused(tmp_path / "folder.nii").reason == "not a file"
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
    assert not logging.getLogger("nibabel.global").disabled


def test_faults_over_several_files(tmp_path: Path, stored: Any) -> None:
    first = write(tmp_path / "a.nii", stored[..., 0])
    moved, turned = AFFINE.copy(), AFFINE.copy()
    moved[0, 3] += 2
    turned[:3, :3] = turned[:3, :3][:, [1, 0, 2]]
    for values, affine, reason in [
        (stored[..., 1], moved, "unequal geometry"),
        (stored[..., 1], turned, "unequal geometry"),
        (stored[:-1, ..., 1], AFFINE, "unequal geometry"),
        (stored, AFFINE, "mixed phases"),
    ]:
        second = write(tmp_path / "b.nii", values, affine)
        assert refused(first, second).reason == reason
    second = write(tmp_path / "b.nii", stored[..., 1])
    assert refused(first, second, phases=(2,)).reason == "too few phases"
    assert refused(first, second, box=Box(0, 0, 21, 5, 1, 3)).reason == "box outside"


def test_only_the_phases_asked_for_are_read(tmp_path: Path, stored: Any, plain: Any) -> None:
    """A file that ends before the last phase is enough for the others."""
    path = write(tmp_path / "a.nii", stored)
    content = path.read_bytes()
    path.write_bytes(content[: -stored[..., 2].nbytes])
    np.testing.assert_array_equal(cube(path, phases=(0, 1)), plain[:2])
    assert refused(path, phases=(2,)).reason in {"truncated", "damaged"}


def test_nothing_of_a_header_comes_out(tmp_path: Path, stored: Any) -> None:
    path = write(tmp_path / "CANARY-7.nii", stored)
    image = dce_mri((path,), BOX, size=SIZE, guard=Guard(b"k" * 32))
    assert (image.scanner, image.set_aside, image.box is not None) == ("not stated", (), True)
