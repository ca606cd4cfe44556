"""One patient, one examination, phases that enhance, and values that compare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from her2_client.ingest.mri import kinds
from her2_client.ingest.mri.dce import dce_mri
from her2_client.ingest.mri.volume import reference_of
from her2_client.ingest.privacy.guard import Guard
from her2_common.cases import Box
from her2_common.errors import ImageError

SIZE = 16
MM = (4.0, 3.0, 3.0)
BOX = Box(7, 11, 13, 17, 3, 8)
SUPPRESSED = [HealthCheck.function_scoped_fixture]
Tags = dict[str, Any]
Add = Callable[..., Path]


def read(*sources: Path, phases: tuple[int, ...] = (0, 1), box: Box | None = BOX) -> Any:
    return dce_mri(sources, box, size=SIZE, phases=phases, guard=Guard(b"k" * 32))


def refused(*sources: Path, phases: tuple[int, ...] = (1,), box: Box | None = BOX) -> ImageError:
    with pytest.raises(ImageError, match="expected") as caught:
        read(*sources, phases=phases, box=box)
    assert caught.value.disposition == "refused"
    assert "CANARY" not in f"{caught.value} {caught.value.hint}"
    return caught.value


@pytest.fixture
def phases(pictures: Any) -> Any:
    return pictures.dynamic(3)


@pytest.fixture
def add(tmp_path: Path, dicoms: Any) -> Add:
    """Writes a series below the examination's folder, numbered by ``uid``."""

    def write(values: Any, uid: int, *, each: Any = None, shift: float = 0.0, **tags: Any) -> Path:
        def change(phase: int, z: int, usual: Tags) -> Tags | None:
            x, y, height = usual["ImagePositionPatient"]
            place = {
                "SeriesInstanceUID": f"1.2.{uid}",
                "ImagePositionPatient": [x + shift, y, height],
            }
            merged = usual | place | tags
            return merged if each is None else each(phase, z, merged)

        path: Path = dicoms.mri(tmp_path / "exam" / str(uid), values, spacing=MM, change=change)
        return path

    return write


@pytest.fixture
def exam(tmp_path: Path) -> Path:
    return tmp_path / "exam"


@pytest.fixture
def plain(tmp_path: Path, dicoms: Any, phases: Any) -> Any:
    """The cube of phases 0 and 1 without anything else."""
    return read(dicoms.mri(tmp_path / "plain", phases, spacing=MM)).values


# --- patients and examinations ------------------------------------------------------------------


@pytest.mark.parametrize("other", [{}, {"SeriesDescription": "ax T2"}, {"Modality": "SR"}])
def test_two_patients_in_a_folder(add: Add, exam: Path, phases: Any, other: Tags) -> None:
    add(phases, 1)
    add(phases[:1], 2, PatientID="CANARY-2", **other)
    error = refused(exam)
    assert error.reason == "several patients"
    assert "got 2 patients" in str(error)


def test_two_patients_in_the_folders_of_one_case(add: Add, phases: Any) -> None:
    first = add(phases[:1], 1)
    assert refused(first, add(phases[1:2], 2, PatientID="CANARY-2")).reason == "several patients"
    # of one patient, also where one file does not say and studies were sent again
    second = add(phases[1:2], 3, PatientID=None, StudyInstanceUID="1.9", StudyDate="20250101")
    assert read(first, second).set_aside == ()


@pytest.mark.parametrize("shift", [0.0, 40.0])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    "study",
    [
        lambda n: {"StudyInstanceUID": f"1.9.{n}", "StudyDate": "20200101"},
        lambda n: {"StudyInstanceUID": None, "StudyDate": f"2020010{n}"},
        lambda n: {"StudyInstanceUID": "1.9", "StudyDate": f"2020020{n}"},
        lambda n: {"StudyInstanceUID": "0", "StudyDate": f"2020020{n}"},
    ],
    ids=["uid", "date", "date of one uid", "date of a dummy uid"],
)
def test_two_examinations_in_a_folder(
    add: Add, exam: Path, phases: Any, study: Callable[[int], Tags], count: int, shift: float
) -> None:
    """On one grid or beside one another, with as many phases or fewer."""
    add(phases, 1, **study(1))
    add(phases[:count], 2, shift=shift, **study(2))
    error = refused(exam)
    assert error.reason == "several examinations"
    assert "baseline" in str(error.hint)


def test_one_examination_of_dummy_tags_is_used(
    add: Add, exam: Path, phases: Any, plain: Any
) -> None:
    """A patient's name and a series' UID that were taken out tell nothing apart."""
    dummies = {"StudyInstanceUID": "1.9", "StudyDate": "19000101", "SeriesInstanceUID": "1.2.3"}
    add(phases, 1, PatientID="ANONYMOUS", SeriesNumber=4, **dummies)
    add(phases[:1], 2, shift=40.0, SeriesNumber=5, **dummies)
    np.testing.assert_array_equal(read(exam).values, plain)


def test_a_series_of_another_study_that_is_not_dynamic_is_set_aside(
    add: Add, exam: Path, phases: Any, plain: Any
) -> None:
    add(phases, 1, StudyInstanceUID="1.9.1")
    add(phases[:1], 2, shift=40.0, StudyInstanceUID="1.9.2")
    image = read(exam)
    np.testing.assert_array_equal(image.values, plain)
    assert [note.reason for note in image.set_aside] == ["another series"]


# --- phases -------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [BOX, None])
def test_phases_that_do_not_enhance(
    tmp_path: Path, dicoms: Any, phases: Any, box: Box | None
) -> None:
    noise = np.random.default_rng(2).normal(0, 5, phases[0].shape)
    wrong = {
        "twice": [phases[0], phases[0]],
        "with noise": [phases[0], np.abs(phases[0] + noise).round()],
        "back to front": [phases[1], phases[0]],
    }
    for name, values in wrong.items():
        folder = dicoms.mri(tmp_path / name, np.stack(values), spacing=MM)
        error = refused(folder, box=box)
        assert error.reason == "no enhancement"
        assert "one by one" in str(error.hint)
        path = tmp_path / f"{name}.nii"
        volumes = np.stack(values).transpose(3, 2, 1, 0).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(volumes, np.diag([-3.0, -3.0, 4.0, 1.0])), path)
        assert refused(path, box=box).reason == "no enhancement"
    assert read(dicoms.mri(tmp_path / "right", phases, spacing=MM), box=box).scanner


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rise=st.floats(0.0, 0.3).filter(lambda v: abs(v - 0.1) > 0.02), gain=st.floats(0.2, 20.0))
def test_the_floor_of_enhancement(
    tmp_path_factory: pytest.TempPathFactory, dicoms: Any, rise: float, gain: float
) -> None:
    """A tenth, whatever the gain of the scanner."""
    before = np.full((8, 24, 24), 10.0)
    before[:, 6:, 3:] = 3000.0
    after = before.copy()
    after[2:6, 12:18, 9:15] *= 1 + rise

    def slope(_phase: int, _z: int, tags: Tags) -> Tags:
        return tags | {"RescaleSlope": gain, "RescaleIntercept": 0}

    folder = dicoms.mri(tmp_path_factory.mktemp("a"), np.stack([before, after]), change=slope)
    for box in (Box(9, 12, 15, 18, 2, 6), None):
        if rise < 0.1:
            assert refused(folder, box=box).reason == "no enhancement"
        else:
            read(folder, box=box)


def test_a_lesion_too_small_for_the_whole_image_enhances_in_its_box(
    tmp_path: Path, dicoms: Any
) -> None:
    before = np.full((8, 120, 120), 300.0)
    before[:, :30] = 10.0
    after = before.copy()
    after[3:5, 60:66, 60:66] = 900.0
    folder = dicoms.mri(tmp_path / "a", np.stack([before, after]))
    read(folder, box=Box(60, 60, 66, 66, 3, 5))
    assert refused(folder, box=Box(90, 90, 96, 96, 3, 5)).reason == "no enhancement"


@pytest.mark.parametrize("protocol", [{"RepetitionTime": "6.5"}, {"SeriesDescription": "ax pre"}])
def test_the_phase_before_contrast_beside_the_others(
    add: Add, exam: Path, phases: Any, protocol: Tags
) -> None:
    """Of another matrix or repetition time: the phases after contrast must not become 0 and 1."""
    add(phases[1:], 1, RepetitionTime="5.2",
        each=lambda p, _z, t: t | {"AcquisitionTime": f"10{p + 2:02d}00"})  # fmt: skip
    small = phases[:1, :, ::2, ::2]
    add(small, 2, AcquisitionTime="100000", PixelSpacing=[6.0, 6.0], **protocol)
    error = refused(exam)
    assert error.reason == "phases unclear"
    assert "one folder a phase" in str(error.hint)


@pytest.mark.parametrize(
    ("tags", "description"),
    [
        ({"AcquisitionTime": "110000"}, "dyn"),  # afterwards
        ({"AcquisitionTime": None}, "dyn"),
        ({"RepetitionTime": "480"}, "dyn"),  # a spin echo
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "dyn"),
        ({}, "dyn with pre"),
    ],
)
def test_other_series_beside_the_dynamic_one(
    add: Add, exam: Path, phases: Any, plain: Any, tags: Tags, description: str
) -> None:
    add(phases, 1, RepetitionTime="5.2", SeriesDescription=description,
        each=lambda p, _z, t: t | {"AcquisitionTime": f"10{p + 2:02d}00"})  # fmt: skip
    usual = {"AcquisitionTime": "100000", "PixelSpacing": [6.0, 6.0], "RepetitionTime": "5.2"}
    add(phases[:1, :, ::2, ::2], 2, **(usual | tags))
    image = read(exam)
    np.testing.assert_array_equal(image.values, plain)
    assert [note.reason for note in image.set_aside] == ["another series"]


def test_keys_that_contradict_each_other(add: Add, exam: Path, phases: Any, plain: Any) -> None:
    def times(order: list[int], key: str) -> Callable[[int, int, Tags], Tags]:
        return lambda phase, _z, tags: tags | {key: f"10{order[phase]:02d}00"}

    add(phases, 1, each=times([0, 2, 1], "AcquisitionTime"))
    error = refused(exam)
    assert error.reason == "contradictory phases"
    assert "TemporalPositionIdentifier" in str(error)
    add(phases, 1, each=times([0, 2, 1], "ContentTime"))  # when images were made says nothing
    np.testing.assert_array_equal(read(exam).values, plain)
    add(phases, 1, each=lambda p, _z, t: t | {"TriggerTime": str(30 - p)})
    assert refused(exam).reason == "contradictory phases"
    add(phases, 1, AcquisitionTime="100000")  # a key that tells nothing contradicts nothing
    np.testing.assert_array_equal(read(exam).values, plain)


# --- both breasts -------------------------------------------------------------------------------


def sagittal(k: int, side: int) -> Tags:
    """Slice ``k`` of the left (1) or right (-1) slab of 40 mm, 60 mm and more from the other."""
    x = 4.0 * k + (50 if side > 0 else -90)
    return {
        "ImageOrientationPatient": [0, 1, 0, 0, 0, -1],  # the normal points to the right, to -x
        "ImagePositionPatient": [x, 0.0, 60.0],
    }


def test_two_slabs_of_one_series(add: Add, exam: Path, phases: Any) -> None:
    """The box chooses; without one nothing does."""
    both = np.concatenate([phases, phases[:, ::-1] + 20], axis=1)  # left, then right

    def each(_phase: int, k: int, tags: Tags) -> Tags:
        return tags | sagittal(k % 10, 1 if k < 10 else -1)

    add(both, 1, each=each)
    for part, side in ((both[:, :10], 1), (both[:, 10:], -1)):
        alone = add(part, 2, each=lambda _p, k, t, side=side: t | sagittal(k, side))
        # along the normal the left slab comes first, and each starts at its leftmost slice
        low, high = (2, 7) if side > 0 else (3, 8)
        first = 0 if side > 0 else 10
        expected = read(alone, box=Box(7, 11, 13, 17, low, high)).values
        for path in alone.iterdir():
            path.unlink()
        chosen = read(exam, box=Box(7, 11, 13, 17, first + low, first + high)).values
        np.testing.assert_array_equal(chosen, expected)
    for box in (None, Box(7, 11, 13, 17, 8, 12)):
        error = refused(exam, box=box)
        assert error.reason == "both breasts"
        assert "box" in str(error.hint)
    assert refused(exam, box=Box(7, 11, 13, 17, 18, 22)).reason == "box outside"


def test_two_series_one_a_breast(add: Add, exam: Path, phases: Any) -> None:
    for side in (1, -1):
        add(phases, 2 + side, each=lambda _p, k, t, side=side: t | sagittal(k, side))
    error = refused(exam)
    assert error.reason == "both breasts"
    assert "folder" in str(error.hint)


def test_a_gap_is_no_space_between_breasts(add: Add, exam: Path, phases: Any) -> None:
    def each(_phase: int, k: int, tags: Tags) -> Tags | None:
        return None if k == 4 else tags | sagittal(k, 1)

    add(phases, 1, each=each)
    assert refused(exam).reason == "gap"


# --- what cannot be the dynamic one -------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"ScanningSequence": ["EP"]}, "another series"),
        ({"ScanningSequence": ["SE", "EP"]}, "another series"),
        ({"SequenceName": "*ep_b0"}, "another series"),
        ({"SequenceName": "ep2d_diff"}, "another series"),
        ({"SequenceName": "*re_b800"}, "another series"),
        ({"EchoTime": "60"}, "another series"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "R", "FFE"]}, "derived series"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "IMAGINARY"]}, "derived series"),
    ],
)
def test_other_sequences_are_set_aside(
    add: Add, exam: Path, phases: Any, plain: Any, tags: Tags, reason: str
) -> None:
    add(phases, 1, EchoTime="2.4")
    add(np.tile(phases, (2, 1, 1, 1)), 2, **tags)  # six phases: most of all
    image = read(exam)
    np.testing.assert_array_equal(image.values, plain)
    assert [str(note) for note in image.set_aside] == [f"{reason}: 60 images not used"]


@pytest.mark.parametrize(
    "each",
    [
        lambda p, _z, t: t | {"DiffusionBValue": 200.0 * p},
        lambda p, _z, t: t | {"EchoTime": f"{1.2 * (p + 1):.1f}"},
    ],
    ids=["b-values", "echoes"],
)
def test_b_values_and_echoes_are_no_phases(
    add: Add, exam: Path, phases: Any, plain: Any, each: Any
) -> None:
    add(phases, 1)
    add(np.tile(phases, (2, 1, 1, 1)), 2, each=each)
    image = read(exam)
    np.testing.assert_array_equal(image.values, plain)
    assert [str(note) for note in image.set_aside] == ["another series: 60 images not used"]


def test_enhanced_frames_of_b_values(tmp_path: Path, dicoms: Any, phases: Any) -> None:
    def change(phase: int, _z: int, groups: Any) -> Any:
        item = pydicom.Dataset()
        item.DiffusionBValue = 100.0 * phase
        groups.MRDiffusionSequence = pydicom.Sequence([item])
        return groups

    path = dicoms.enhanced(tmp_path / "a.dcm", phases, spacing=MM, change=change)
    assert refused(path).reason == "no dynamic series"
    planar = dicoms.enhanced(tmp_path / "b.dcm", phases, EchoPlanarPulseSequence="YES")
    assert refused(planar).reason == "no dynamic series"


@pytest.mark.parametrize(
    "name", ["*fl3d1", "fl3d1_ns", "vibrant", "T1FFE", "*tfl3d1", "efgre3d", "", "b"]
)
def test_sequences_of_dynamic_series_are_kept(name: str) -> None:
    assert not kinds.is_another_sequence(["GR"], name, 4.8)


@pytest.mark.parametrize("shift", [0.0, 5.0])
@pytest.mark.parametrize(
    "tags",
    [{"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOCO"]}, {"SeriesDescription": "dyn_MoCo"}],
)
def test_a_motion_corrected_copy_is_set_aside(
    add: Add, exam: Path, phases: Any, plain: Any, tags: Tags, shift: float
) -> None:
    def timed(phase: int, _z: int, usual: Tags) -> Tags:
        return usual | {"AcquisitionTime": f"10{phase:02d}00"}

    add(phases, 1, each=timed, ContentTime="100900")
    copy = add(phases + 50, 2, each=timed, ContentTime="101000", **tags)
    image = read(exam)
    np.testing.assert_array_equal(image.values, plain)
    assert [str(note) for note in image.set_aside] == ["derived series: 30 images not used"]
    assert read(copy).set_aside == ()  # alone it is used
    if shift:  # another place is another series
        add(phases + 50, 2, each=timed, shift=shift, **tags)
        assert refused(exam).reason == "several dynamic series"


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("padding", "tags"),
    [
        (63536, {"PixelPaddingValue": 63536}),
        (63536, {"PixelPaddingValue": -2000, "PixelRepresentation": 1}),
        (4000, {"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 3900}),
        (4000, {"PixelPaddingValue": 3900, "PixelPaddingRangeLimit": 4095}),
    ],
)
def test_padding_is_air(tmp_path: Path, dicoms: Any, phases: Any, padding: int, tags: Tags) -> None:
    def write(name: str, value: int, rescale: Tags) -> Path:
        values = phases.copy()
        values[..., :3] = value
        folder: Path = dicoms.mri(
            tmp_path / name, values, spacing=MM, change=lambda _p, _z, t: t | rescale
        )
        return folder

    scaled = {"RescaleSlope": 2, "RescaleIntercept": 0}
    expected = read(write("air", 0, scaled)).values
    np.testing.assert_array_equal(read(write("padded", padding, tags | scaled)).values, expected)
    # padding stays 0 whatever the intercept
    moved = write("moved", padding, tags | {"RescaleSlope": 2, "RescaleIntercept": 9})
    assert (read(moved).values == -2).sum() >= (expected == -2).sum() > 0


def test_negative_padding_of_nifti_does_not_move_the_reference() -> None:
    rng = np.random.default_rng(8)
    values = np.concatenate([rng.normal(20, 5, 4000), rng.normal(400, 30, 3000)])
    oracle = np.median(values[values > 200])
    for padding in (-1.0, -2000.0, -32768.0):
        assert reference_of(np.append(values, np.full(3000, padding))) == pytest.approx(oracle)


def philips(scale: float | None, slope: float, intercept: float = 0.0) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for path in folder.iterdir():
            dataset = pydicom.dcmread(path)
            dataset.Manufacturer = "Philips Medical Systems"
            dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
            if scale is not None:
                block = dataset.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
                block.add_new(0x0E, "FL", scale)
            dataset.save_as(path)

    return change


def test_series_of_philips_are_brought_to_one_scale(
    tmp_path: Path, dicoms: Any, phases: Any, plain: Any
) -> None:
    """Stored = (true x slope x scale - intercept) / slope, another scale in each series."""
    folders = []
    for number, (scale, slope, intercept) in enumerate([(0.5, 2.0, 0.0), (0.25, 3.2, -40.0)]):
        stored = (phases[number : number + 1] * slope * scale * 40 - intercept) / slope
        folder = dicoms.mri(tmp_path / str(number), stored.round(), spacing=MM)
        philips(scale, slope, intercept)(folder)
        folders.append(folder)
    np.testing.assert_allclose(read(*folders).values, plain, atol=0.02)
    for path in folders[1].iterdir():
        dataset = pydicom.dcmread(path)
        del dataset[0x2005, 0x100E]
        dataset.save_as(path)
    assert refused(*folders).reason == "unequal scaling"
