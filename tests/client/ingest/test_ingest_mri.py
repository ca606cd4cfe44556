"""DCE-MRI from one folder: order, phases, intensity, the cube, and every fault by its reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from her2_client.ingest.mri.dce import dce_mri, dynamic_series
from her2_client.ingest.privacy.guard import Decision, Guard
from her2_common.cases import Box
from her2_common.errors import ImageError

SIZE = 32  # 2 mm a voxel
MM = (4.0, 3.0, 3.0)  # of the made-up volume: 40 x 72 x 60 mm
BOX = Box(7, 11, 13, 17, 3, 8)
Change = Callable[[int, int, dict[str, Any]], dict[str, Any] | None]


def cube(*sources: Path, box: Box | None = BOX, phases: tuple[int, ...] = (1,)) -> Any:
    guard = Guard(b"k" * 32)
    return dce_mri(sources, box, size=SIZE, phases=phases, guard=guard).values


def reason_of(*sources: Path, box: Box | None = BOX, phases: tuple[int, ...] = (1,)) -> str:
    with pytest.raises(ImageError, match="expected") as caught:
        cube(*sources, box=box, phases=phases)
    assert caught.value.disposition == "refused"
    return caught.value.reason


@pytest.fixture
def written(tmp_path: Path, dicoms: Any, pictures: Any) -> Callable[..., Path]:
    """Writes the made-up series, a folder a call."""
    made = iter(range(100))

    def write(phases: Any = None, **options: Any) -> Path:
        values = pictures.dynamic() if phases is None else phases
        folder: Path = dicoms.mri(tmp_path / f"mri{next(made)}", values, spacing=MM, **options)
        return folder

    return write


# --- phases and intensity -----------------------------------------------------------------------


def test_the_first_post_contrast_phase_is_read(written: Any, pictures: Any) -> None:
    phases = pictures.dynamic(4)
    plain = cube(written(phases))
    assert plain.shape == (1, SIZE, SIZE, SIZE)
    assert plain.dtype == np.float16
    others = phases.copy()
    others[0] *= 0.7  # what the other phases hold does not matter, if only 1 is brighter than 0
    others[2:] = 9
    np.testing.assert_array_equal(cube(written(others)), plain)


def test_intensity_is_relative_to_parenchyma_in_every_phase(written: Any) -> None:
    z, y, x = np.mgrid[:10, :24, :20].astype(float)
    body = np.where((y > 4) & (x > 3), 300.0, 10.0)
    lesion = (z - 5) ** 2 + (y - 14) ** 2 + (x - 10) ** 2 < 16
    folder = written(np.stack([body, body + 400 * lesion, body + 240 * lesion]))
    before, first, second = cube(folder, phases=(0, 1, 2)).astype(float)
    # (x / 300 - 1) / 0.5 of 300, 700, 540, 10; the box's middle is voxel 16 of 32
    assert before[16, 16, 16] == pytest.approx(0.0, abs=0.01)
    assert first[16, 16, 16] == pytest.approx(2.667, abs=0.01)
    assert second[16, 16, 16] == pytest.approx(1.6, abs=0.01)
    assert first[16, 16, 2] == pytest.approx(-1.933, abs=0.01)


def test_channels_come_in_the_order_asked_for(written: Any, pictures: Any) -> None:
    folder = written(pictures.dynamic(4))
    several = cube(folder, phases=(2, 0, 1))
    for channel, phase in enumerate((2, 0, 1)):
        np.testing.assert_array_equal(several[channel], cube(folder, phases=(phase,))[0])


@pytest.mark.parametrize("gain", [2.0, 3.7, 21.0])
def test_the_gain_of_the_scanner_cancels(written: Any, gain: float) -> None:
    def slope(_phase: int, _z: int, tags: dict[str, Any]) -> dict[str, Any]:
        return tags | {"RescaleSlope": gain, "RescaleIntercept": 0.0}

    np.testing.assert_allclose(cube(written(change=slope)), cube(written()), atol=5e-3)


def test_each_slice_is_rescaled_by_its_own_header(written: Any, pictures: Any) -> None:
    phases = pictures.dynamic()

    def own(_phase: int, z: int, tags: dict[str, Any]) -> dict[str, Any]:
        return tags | {"RescaleSlope": 1.0 / (1 + z % 2), "RescaleIntercept": -float(z)}

    factors = (1 + np.arange(phases.shape[1]) % 2)[:, None, None]
    shifted = (phases + np.arange(phases.shape[1])[:, None, None]) * factors
    rescaled = cube(written(shifted, change=own))
    np.testing.assert_allclose(rescaled, cube(written(phases)), atol=5e-3)


def test_signed_pixels(written: Any, pictures: Any) -> None:
    phases = pictures.dynamic()

    def signed(_phase: int, _z: int, tags: dict[str, Any]) -> dict[str, Any]:
        return tags | {"PixelRepresentation": 1, "RescaleSlope": 1, "RescaleIntercept": 500}

    # -500 stored in two's complement is what uint16 makes of it
    folder = written((phases - 500).astype(np.int16).astype(np.uint16), change=signed)
    np.testing.assert_array_equal(cube(folder), cube(written(phases)))


# --- order --------------------------------------------------------------------------------------


def _one_series(_phase: int, _z: int, tags: dict[str, Any]) -> dict[str, Any]:
    return tags | {"SeriesInstanceUID": "1.2.3"}


@settings(
    max_examples=5,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # writes, keeps nothing
)
@given(seed=st.integers(0, 2**32 - 1))
def test_file_names_sub_folders_and_other_files_do_not_matter(
    seed: int, tmp_path_factory: pytest.TempPathFactory, dicoms: Any
) -> None:
    rng = np.random.default_rng(seed)
    folder = tmp_path_factory.mktemp("shuffled")
    phases = rng.integers(10, 900, (2, 4, 8, 8)).astype(float)
    phases[1] += 400
    names = rng.permutation(8)
    places = rng.integers(0, 3, 8)

    def name(phase: int, z: int) -> str:
        number = phase * 4 + z
        return f"s{places[number]}/IM{names[number]:05d}"

    plain = dicoms.mri(folder / "plain", phases, spacing=MM, change=_one_series)
    shuffled = dicoms.mri(folder / "shuffled", phases, spacing=MM, name=name, change=_one_series)
    (shuffled / "notes.txt").write_text("read me")
    (shuffled / "empty").write_bytes(b"")
    np.testing.assert_array_equal(
        cube(shuffled, box=Box(2, 2, 6, 6, 1, 3)), cube(plain, box=Box(2, 2, 6, 6, 1, 3))
    )


def _timed(key: str, values: list[Any], date: list[str] | None = None) -> Change:
    def change(phase: int, _z: int, tags: dict[str, Any]) -> dict[str, Any]:
        tags = tags | {"TemporalPositionIdentifier": None, key: values[phase]}
        if date is not None:
            tags |= {key.replace("Time", "Date"): date[phase]}
        return tags

    return change


def _with(change: Change, **more: Any) -> Change:
    def changed(phase: int, z: int, tags: dict[str, Any]) -> dict[str, Any] | None:
        edited = change(phase, z, tags)
        return None if edited is None else edited | more

    return changed


@pytest.mark.parametrize(
    "change",
    [
        _timed("TriggerTime", [0.0, 90000.0, 180000.0]),
        _timed("TriggerTime", [9.0, 10.0, 100.0]),  # as numbers, not as text
        _timed("AcquisitionTime", ["095900", "100030.5", "100200"]),
        _timed("AcquisitionTime", ["235900", "000030", "000200"],
               ["20200102", "20200103", "20200103"]),
        _timed("AcquisitionDateTime", ["20200102095900", "20200102100030.5", "202001021002+0100"]),
        _timed("AcquisitionDateTime", ["20200102235900", "20200103000030", "20200103000200"]),
        _with(_timed("AcquisitionDateTime", ["20200102095900", "20200102100030", "20200102100200"]),
              AcquisitionTime="000000", TemporalPositionIdentifier=1, TriggerTime=0),
        _timed("ContentTime", ["10", "1001", "100200"]),
        _with(_timed("ContentTime", ["10", "1001", "100200"]), AcquisitionNumber=1),
        _timed("AcquisitionNumber", [1, 2, 10]),
    ],
)  # fmt: skip
def test_phases_are_told_apart_by_the_first_key_that_does(written: Any, change: Change) -> None:
    backwards = written(change=change, name=lambda p, z: f"{9 - p}-{z}")
    np.testing.assert_array_equal(cube(backwards), cube(written()))


@pytest.mark.parametrize(
    "content", [lambda p, z: f"10{p:02d}00", lambda p, z: f"10{p:02d}{(7 * z) % 10:02d}"]
)
def test_a_key_that_tells_nothing_is_passed_over(
    written: Any, content: Callable[[int, int], str]
) -> None:
    """One number for all, one time a slice whatever the phase; then a time a phase or a slice."""

    def change(phase: int, z: int, tags: dict[str, Any]) -> dict[str, Any]:
        return tags | {
            "TemporalPositionIdentifier": 1,
            "AcquisitionTime": f"1000{z:02d}",
            "ContentTime": content(phase, z),
        }

    np.testing.assert_array_equal(cube(written(change=change)), cube(written()))


def test_times_past_midnight_without_dates_order_nothing(written: Any) -> None:
    change = _timed("AcquisitionTime", ["235900", "000030", "000200"])
    assert reason_of(written(change=change)) == "phases unclear"


# --- what is read -------------------------------------------------------------------------------


def test_one_header_a_file_and_pixels_of_the_phases_asked_for(
    written: Any, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from her2_client.ingest.mri import dce, scan

    folder = written(pictures.dynamic(5))
    headers, opened = [], []
    read_header, whole = scan.read_header, dce.dicom.whole

    def header(path: Path) -> Any:
        headers.append(path.name)
        return read_header(path)

    def pixels(path: Path) -> Any:
        opened.append(path.name)
        return whole(path)

    monkeypatch.setattr(scan, "read_header", header)
    monkeypatch.setattr(dce.dicom, "whole", pixels)
    cube(folder, phases=(3,))
    assert sorted(headers) == sorted(path.name for path in folder.iterdir())
    assert len(headers) == 50
    once = [f"{p}-{z:03d}.dcm" for p in (1, 3) for z in range(10)]
    compared = [f"{p}-{z:03d}.dcm" for p in (0, 1) for z in range(3, 8)]  # the planes of the box
    assert sorted(opened) == sorted(once + compared)


def test_pixels_far_from_the_cube_are_not_read(dicoms: Any, tmp_path: Path) -> None:
    """Of a phase that sets no reference only the slices within the cube are opened."""
    _, y, x = np.mgrid[:40, :12, :12].astype(float)
    phases = np.stack([np.where(x > 3, 300.0, 10.0) + y] * 3)
    phases[1:] *= 1.5
    folder = dicoms.mri(tmp_path / "a", phases, spacing=(4.0, 8.0, 8.0))
    wanted = cube(folder, box=Box(2, 2, 8, 8, 18, 22), phases=(2,))
    # the cube is slices 12 to 28 and one at each rim; whatever else phase 2 holds is not seen
    for k in (*range(11), *range(29, 40)):
        (path,) = folder.glob(f"2-{k:03d}.dcm")
        path.write_bytes(path.read_bytes()[:-100])
    np.testing.assert_array_equal(cube(folder, box=Box(2, 2, 8, 8, 18, 22), phases=(2,)), wanted)
    (path,) = folder.glob("2-020.dcm")
    path.write_bytes(path.read_bytes()[:-100])
    assert reason_of(folder, box=Box(2, 2, 8, 8, 18, 22), phases=(2,)) == "truncated"


# --- faults -------------------------------------------------------------------------------------


def _without(missing: Callable[[int, int], bool]) -> Change:
    return lambda phase, z, tags: None if missing(phase, z) else tags


def _with(where: Callable[[int, int], bool], **changed: Any) -> Change:
    return lambda phase, z, tags: tags | changed if where(phase, z) else tags


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_without(lambda _, z: z == 4), "gap"),
        (_without(lambda p, z: (p, z) == (1, 4)), "incomplete phase"),
        (_without(lambda p, z: (p, z) == (0, 0)), "incomplete phase"),
        (_without(lambda p, _: p > 0), "one phase only"),
        (_without(lambda p, z: z > 0), "one slice only"),
        (_without(lambda p, z: p > 1 or (p, z) == (1, 9)), "incomplete phase"),
        (_with(lambda p, z: (p, z) == (1, 4), TemporalPositionIdentifier=1), "mixed phases"),
        (_with(lambda p, z: True, TemporalPositionIdentifier=None), "phases unclear"),
        (_with(lambda p, z: (p, z) == (1, 4), PixelSpacing=[1.0, 1.2]), "unequal geometry"),
        (_with(lambda p, z: (p, z) == (1, 4), Columns=10, Rows=48), "unequal geometry"),
        (_with(lambda p, z: z == 4, ImageOrientationPatient=[1, 0, 0, 0, 0.8, 0.6]),
         "unequal geometry"),
        (_with(lambda p, z: z == 4, ImagePositionPatient=[-15.0, -20.0, -14.0]),
         "unequal geometry"),
        (_with(lambda p, z: (p, z) == (1, 4), ImagePositionPatient=[-20.0, -20.0, -12.0]),
         "incomplete phase"),
        (_with(lambda p, z: z == 4, ImagePositionPatient=None), "no geometry"),
        (_with(lambda p, z: z == 4, PixelSpacing=[0.0, 1.0]), "no geometry"),
        (_with(lambda p, z: z == 4, PixelSpacing=[1.0]), "no geometry"),
        (_with(lambda p, z: z == 4, ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "no geometry"),
        (_with(lambda p, z: z == 4, ImageOrientationPatient=[0, 0, 0, 0, 1, 0]), "no geometry"),
        (_with(lambda p, z: z == 4, NumberOfFrames=3), "no geometry"),
        (_with(lambda p, z: z == 4, Modality="CT"), "gap"),
        (_with(lambda p, z: True, Modality="CT"), "wrong modality"),
    ],
)  # fmt: skip
def test_what_is_refused(written: Any, change: Change, reason: str) -> None:
    assert reason_of(written(change=change)) == reason


def test_messages_have_numbers(written: Any) -> None:
    for change, message in [
        (_without(lambda _, z: z == 4), "expected slices every 4.00 mm, got a step of 8.00 mm"),
        (_without(lambda p, z: (p, z) == (1, 4)),
         "expected 10 slices in each of 3 phases, got 9 in phase 1"),
        (_without(lambda p, z: p > 0),
         "expected a phase before and one after contrast, got one phase of 10 slices"),
        (_with(lambda p, z: (p, z) == (1, 4), PixelSpacing=[1.0, 1.2]),
         "expected one pixel spacing in 30 slices, got another in 1"),
    ]:  # fmt: skip
        with pytest.raises(ImageError) as caught:
            cube(written(change=change))
        assert str(caught.value) == message


def test_fewer_phases_than_asked_for(written: Any) -> None:
    folder = written()
    assert reason_of(folder, phases=(1, 3)) == "too few phases"
    with pytest.raises(ImageError, match="expected 6 phases at least, got 3"):
        cube(folder, phases=(5,))


def test_an_incomplete_last_phase_is_set_aside_unless_asked_for(written: Any) -> None:
    folder = written(change=_without(lambda p, z: p == 2 and z > 6))
    image = dce_mri((folder,), BOX, size=SIZE, phases=(1,), guard=Guard(b"k" * 32))
    np.testing.assert_array_equal(image.values, cube(written()))
    (note,) = image.set_aside
    assert (note.reason, note.disposition) == ("incomplete last phase", "set aside")
    assert "7 images" in str(note)
    assert reason_of(folder, phases=(1, 2)) == "incomplete phase"


def test_a_second_copy_of_a_slice_is_a_duplicate(written: Any) -> None:
    folder = written()
    dataset = pydicom.dcmread(folder / "1-004.dcm")
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset.save_as(folder / "copy.dcm")
    assert reason_of(folder) == "duplicate slice"


def test_missing_empty_and_blank(tmp_path: Path, dicoms: Any, written: Any) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    blank = dicoms.mri(tmp_path / "blank", np.zeros((2, 4, 8, 8)))
    folder = written()
    for path, box, reason in [
        (tmp_path / "absent", None, "missing file"),
        (tmp_path / "file", None, "not DICOM"),
        (tmp_path / "empty", None, "not DICOM"),
        (folder / "1-004.dcm", None, "one slice only"),
        (blank, None, "blank image"),
        (folder, Box(0, 0, 5, 5, 8, 11), "box outside"),
        (folder, Box(0, 0, 21, 5, 8, 9), "box outside"),
        (folder, Box(0, 0, 5, 5), "box without slices"),
    ]:
        assert reason_of(path, box=box) == reason


def test_rescaling_to_infinity_is_refused(written: Any) -> None:
    change = _with(lambda p, z: z == 4, RescaleSlope=1e39, RescaleIntercept=0)
    assert reason_of(written(change=change)) == "not finite"


def test_truncated_and_coloured_pixels(written: Any, dicoms: Any, tmp_path: Path) -> None:
    folder = written()
    path = folder / "1-004.dcm"
    path.write_bytes(path.read_bytes()[:-100])
    assert reason_of(folder) == "truncated"
    coloured = written()
    tags = {
        "PixelSpacing": [3.0, 3.0],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [-20.0, -20.0, -14.0],
        "TemporalPositionIdentifier": 2,
    }
    dicoms.write(coloured / "1-004.dcm", "MR", np.zeros((24, 20, 3), np.uint8), tags)
    assert reason_of(coloured) == "not grey"


# --- burned-in text -----------------------------------------------------------------------------


def test_burned_in_annotation_waits_for_a_reviewer(written: Any, pictures: Any) -> None:
    phases = pictures.dynamic()
    folder = written(change=_with(lambda p, z: (p, z) == (1, 4), BurnedInAnnotation="YES"))
    shown = []

    class Recording(Guard):
        def _seen(self, name: str, picture: Any, found: Any, reason: str) -> None:
            shown.append((name, picture(), reason))

    guard = Recording(b"k" * 32)
    with pytest.raises(ImageError, match="BurnedInAnnotation") as caught:
        dce_mri((folder,), BOX, size=SIZE, guard=guard)
    assert caught.value.disposition == "quarantined"
    ((name, picture, reason),) = shown
    assert reason == "burned-in annotation"
    np.testing.assert_array_equal(picture, phases[1].max(axis=0))
    assert guard.consulted == {name: None}

    whole = Guard(b"k" * 32, {name: Decision(approved=True)})
    image = dce_mri((folder,), BOX, size=SIZE, guard=whole)
    np.testing.assert_array_equal(image.values, cube(written()))
    part = Guard(b"k" * 32, {name: Decision(approved=True, keep=(2, 3, 20, 24))})
    kept = dce_mri((folder,), BOX, size=SIZE, guard=part)
    masked = phases.copy()
    masked[:, :, :3], masked[:, :, :, :2] = 0, 0
    np.testing.assert_array_equal(kept.values, cube(written(masked)))
    with pytest.raises(ImageError) as caught:
        dce_mri((folder,), BOX, size=SIZE, guard=Guard(b"k" * 32, {name: Decision(False)}))
    assert caught.value.reason == "refused at review"


def test_burned_in_text_of_a_phase_that_is_not_read_asks_nobody(written: Any) -> None:
    folder = written(change=_with(lambda p, z: p == 2, BurnedInAnnotation="YES"))
    np.testing.assert_array_equal(cube(folder), cube(written()))


def test_the_make_of_the_scanner_and_whether_there_is_a_box(written: Any) -> None:
    folder = written(change=_with(lambda p, z: True, Manufacturer="SIEMENS CANARY"))
    image = dce_mri((folder,), None, size=8, guard=Guard(b"k" * 32))
    assert (image.scanner, image.box, image.set_aside) == ("Siemens", None, ())
    assert dce_mri((folder,), BOX, size=8, guard=Guard(b"k" * 32)).box is not None


def test_phases_must_be_asked_for(written: Any) -> None:
    folder = written()
    assert reason_of(folder, phases=(-1,)) == "no phase asked for"
    with pytest.raises(ImageError):
        dynamic_series((), (1,))
