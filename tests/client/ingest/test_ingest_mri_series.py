"""A folder with everything an examination left: which series is the dynamic one, and its phases."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from her2_client.ingest.mri import kinds
from her2_client.ingest.mri.dce import dce_mri
from her2_client.ingest.privacy.guard import Guard
from her2_common.cases import Box
from her2_common.errors import ImageError

SIZE = 16
MM = (4.0, 3.0, 3.0)
BOX = Box(7, 11, 13, 17, 3, 8)


class Examination:
    """Writes one sub-folder a series; ``tags`` hold for all its slices."""

    def __init__(self, folder: Path, dicoms: Any) -> None:
        self.folder, self.dicoms, self.count = folder, dicoms, 0
        folder.mkdir()

    def add(self, phases: Any, *, spacing: Any = MM, each: Any = None, **tags: Any) -> Path:
        self.count += 1
        number = self.count
        usual: dict[str, Any] = {
            "SeriesInstanceUID": f"1.2.{number}",
            "TemporalPositionIdentifier": None,
            "RepetitionTime": "5.2",
            "EchoTime": "2.4",
            "FlipAngle": "10",
        }

        def change(phase: int, z: int, made: dict[str, Any]) -> dict[str, Any] | None:
            merged = made | usual | tags
            return merged if each is None else each(phase, z, merged)

        path: Path = self.dicoms.mri(
            self.folder / f"{99 - number}", phases, spacing=spacing, change=change
        )
        return path

    def read(self, phases: tuple[int, ...] = (1,), box: Box | None = BOX) -> Any:
        return dce_mri((self.folder,), box, size=SIZE, phases=phases, guard=Guard(b"k" * 32))

    def refused(self, phases: tuple[int, ...] = (1,)) -> ImageError:
        with pytest.raises(ImageError, match="expected") as caught:
            self.read(phases)
        return caught.value


@pytest.fixture
def exam(tmp_path: Path, dicoms: Any) -> Examination:
    return Examination(tmp_path / "exam", dicoms)


@pytest.fixture
def phases(pictures: Any) -> Any:
    return pictures.dynamic(3)


@pytest.fixture
def plain(tmp_path: Path, dicoms: Any, phases: Any) -> Any:
    folder = dicoms.mri(tmp_path / "plain", phases, spacing=MM)
    return dce_mri((folder,), BOX, size=SIZE, phases=(0, 1, 2), guard=Guard(b"k" * 32)).values


def _temporal(phase: int, _z: int, tags: dict[str, Any]) -> dict[str, Any]:
    return tags | {"TemporalPositionIdentifier": phase + 1}


# --- what is set aside --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"ImageType": ["DERIVED", "SECONDARY", "SUBTRACTION"]}, "subtraction series"),
        ({"ImageType": ["DERIVED", "PRIMARY", "M", "SUB"]}, "subtraction series"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "projection series"),
        ({"ImageType": ["DERIVED", "SECONDARY", "PROJECTION IMAGE"]}, "projection series"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localiser series"),
        ({"ImageType": ["DERIVED", "PRIMARY", "ADC"]}, "another series"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "F", "F"]}, "another series"),
        ({"SeriesDescription": "ax dyn SUB"}, "subtraction series"),
        ({"SeriesDescription": "sub1"}, "subtraction series"),
        *[
            (
                {"SeriesDescription": text, "SpecificCharacterSet": "ISO_IR 100"},
                "subtraction series",
            )
            for text in (
                "ax Subtraktion",
                "soustraction 1",
                "sustracción",
                "sottrazione",
                "subtractie",
            )
        ],
        ({"SeriesDescription": "Projektion"}, "projection series"),
        (
            {"SeriesDescription": "proyección", "SpecificCharacterSet": "ISO_IR 192"},
            "projection series",
        ),
        (
            {"SeriesDescription": "repérage", "SpecificCharacterSet": "ISO_IR 100"},
            "localiser series",
        ),
        ({"SeriesDescription": "Localizador"}, "localiser series"),
        ({"SeriesDescription": "Subtraction_2nd pass"}, "subtraction series"),
        ({"SeriesDescription": "MIP of dyn"}, "projection series"),
        ({"SeriesDescription": "cor MPR"}, "projection series"),
        ({"SeriesDescription": "3-plane loc"}, "localiser series"),
        ({"SeriesDescription": "Localizer"}, "localiser series"),
        ({"SeriesDescription": "survey"}, "localiser series"),
        ({"SeriesDescription": "ax DWI b800"}, "another series"),
        ({"SeriesDescription": "ax T2fs"}, "another series"),
        ({"SeriesDescription": "stir-sag"}, "another series"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "secondary capture"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}, "secondary capture"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1"}, "encapsulated PDF"),
        ({"Modality": "SR"}, "another modality"),
        ({"FlipAngle": "25"}, "another series"),  # same grid, other protocol, dynamic in one series
    ],
)
def test_series_that_are_set_aside(
    exam: Examination, phases: Any, plain: Any, tags: dict[str, Any], reason: str
) -> None:
    exam.add(phases, each=_temporal, SeriesDescription="ax 3d dyn")
    exam.add(np.full((1, 10, 24, 20), 4000), **tags)
    image = exam.read((0, 1, 2))
    np.testing.assert_array_equal(image.values, plain)
    (note,) = image.set_aside
    assert (note.reason, note.disposition) == (reason, "set aside")
    assert str(note) == f"{reason}: 10 images not used"


def test_series_of_another_geometry_are_set_aside_once_each(
    exam: Examination, phases: Any, plain: Any
) -> None:
    exam.add(phases, each=_temporal)
    exam.add(np.full((1, 4, 8, 8), 100), spacing=(9.0, 9.0, 9.0))
    exam.add(np.full((2, 4, 24, 20), 100), ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    bolus = np.full((9, 1, 24, 20), 100)  # one slice, taken again and again
    exam.add(bolus, each=_temporal, ImagePositionPatient=[0.0, 5.0, 3.0])
    image = exam.read((0, 1, 2))
    np.testing.assert_array_equal(image.values, plain)
    assert [note.reason for note in image.set_aside] == ["another series"] * 3


def test_a_localiser_of_three_planes_disturbs_nothing(
    exam: Examination, phases: Any, plain: Any
) -> None:
    exam.add(phases, each=_temporal)
    planes = [[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [1, 0, 0, 0, 0, -1]]

    def each(phase: int, _z: int, tags: dict[str, Any]) -> dict[str, Any]:
        return tags | {"ImageOrientationPatient": planes[phase]}

    exam.add(np.full((3, 3, 16, 16), 100), each=each)
    image = exam.read((0, 1, 2))
    np.testing.assert_array_equal(image.values, plain)
    assert [str(note) for note in image.set_aside] == ["another series: 9 images not used"]


def test_a_series_without_geometry_is_set_aside(exam: Examination, phases: Any, plain: Any) -> None:
    exam.add(phases, each=_temporal)
    exam.add(np.full((1, 2, 8, 8), 100), ImagePositionPatient=None)
    image = exam.read((0, 1, 2))
    np.testing.assert_array_equal(image.values, plain)
    assert [str(note) for note in image.set_aside] == ["no geometry: 2 images not used"]


@pytest.mark.parametrize("key", ["TemporalPositionIdentifier", "AcquisitionTime", "words"])
def test_slices_with_a_series_each_are_the_phases_that_they_are(
    exam: Examination, phases: Any, plain: Any, key: str
) -> None:
    def each(phase: int, z: int, tags: dict[str, Any]) -> dict[str, Any]:
        own = {"SeriesInstanceUID": f"1.2.9.{phase}.{z}"}
        if key == "words":
            own["SeriesDescription"] = ("dyn pre", "dyn 1st pass", "dyn 2nd pass")[phase]
        else:
            own[key] = str(phase + 1 if key.startswith("T") else 100000 + 100 * phase)
        return tags | own

    exam.add(phases, each=each)
    np.testing.assert_array_equal(exam.read((0, 1, 2)).values, plain)


def test_of_files_that_were_copied_twice_one_is_used(
    exam: Examination, phases: Any, plain: Any
) -> None:
    folder = exam.add(phases, each=_temporal)
    shutil.copytree(folder, exam.folder / "copy")
    np.testing.assert_array_equal(exam.read((0, 1, 2)).values, plain)


def test_one_instance_uid_for_all_images_hides_none(
    exam: Examination, phases: Any, plain: Any
) -> None:
    """As careless pseudonymisation leaves it."""
    exam.add(phases, each=_temporal, SOPInstanceUID="1.2.3")
    np.testing.assert_array_equal(exam.read((0, 1, 2)).values, plain)


@pytest.mark.parametrize("meta", [True, False])
def test_files_without_a_preamble_are_read(
    exam: Examination, phases: Any, plain: Any, meta: bool
) -> None:
    folder = exam.add(phases, each=_temporal)
    for path in folder.iterdir():
        content = path.read_bytes()
        after = 144 + int.from_bytes(content[140:144], "little")
        path.write_bytes(content[132:] if meta else content[after:])
    np.testing.assert_array_equal(exam.read((0, 1, 2)).values, plain)


@pytest.mark.parametrize(
    ("tags", "reason", "disposition"),
    [
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "secondary capture", "quarantined"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1"}, "encapsulated PDF", "quarantined"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MIP"]}, "derived images", "refused"),
        ({"SeriesDescription": "CANARY T2"}, "no dynamic series", "refused"),
        ({"Modality": "CT"}, "wrong modality", "refused"),
        ({"ImagePositionPatient": None}, "no geometry", "refused"),
    ],
)
def test_alone_they_are_no_case(
    exam: Examination, phases: Any, tags: dict[str, Any], reason: str, disposition: str
) -> None:
    exam.add(phases, **tags)
    error = exam.refused()
    assert (error.reason, error.disposition) == (reason, disposition)
    assert "CANARY" not in str(error)


# --- several series -----------------------------------------------------------------------------

ZOO = {
    "passes": ["ax dyn pre", "ax dyn 1st pass", "ax dyn 2nd pass"],
    "a typing error": ["ax dyn pre", "ax dyn 1st pas", "ax dyn 2nd pas"],
    "a bare name": ["ax 3d dyn", "Ph1/ax 3d dyn", "Ph2/ax 3d dyn"],
    "post": ["T1_PRE_CONTRAST", "T1_POST_1", "T1_POST_2"],
    "phases": ["pre dyn", "phase 1 dyn", "phase 2 dyn"],
    "a factor of two": ["t1_fl3d_p2_pre", "t1_fl3d_p2_post1", "t1_fl3d_p2_post2"],
    "from 0": ["dyn ph0", "dyn ph1", "dyn ph2"],
}


@pytest.mark.parametrize("names", ZOO.values(), ids=ZOO)
def test_descriptions_order_what_times_do_not(
    exam: Examination, phases: Any, plain: Any, names: list[str]
) -> None:
    for phase in (1, 2, 0):  # the numbers of the series say another order
        exam.add(phases[phase : phase + 1], SeriesDescription=names[phase], SeriesNumber=phase)
    np.testing.assert_array_equal(exam.read((0, 1, 2)).values, plain)


@pytest.mark.parametrize(
    "names",
    [
        ["phase 1", "phase 2", "phase 3"],  # is the first one before contrast?
        ["pre", "1st pass", "3rd pass"],
        ["pre", "1st pass", "1st pass"],
        ["ax dyn", "ax dyn", "ax dyn"],
        ["sag vibrant", "Ph1/ax 3d dyn", "Ph2/ax 3d dyn"],
        ["", "", ""],
    ],
)
def test_a_series_number_is_not_trusted(exam: Examination, phases: Any, names: list[str]) -> None:
    for phase in range(3):
        exam.add(phases[phase : phase + 1], SeriesDescription=names[phase], SeriesNumber=phase)
    error = exam.refused()
    assert error.reason == "phases unclear"
    assert "one folder a phase" in str(error.hint)


def test_times_order_series_of_one_name(exam: Examination, phases: Any, plain: Any) -> None:
    for phase, time in ((2, "100400"), (0, "095930.25"), (1, "100100")):
        exam.add(
            phases[phase : phase + 1],
            SeriesDescription="ax dyn",
            AcquisitionTime=time,
            TriggerTime=str(900 - phase),  # counts from the start of each series
        )
    np.testing.assert_array_equal(exam.read((0, 1, 2)).values, plain)


def test_one_series_before_contrast_and_one_with_all_phases_after(
    exam: Examination, phases: Any, plain: Any
) -> None:
    exam.add(phases[:1], TemporalPositionIdentifier=1, AcquisitionTime="100000")

    def after(phase: int, _z: int, tags: dict[str, Any]) -> dict[str, Any]:
        return tags | {
            "TemporalPositionIdentifier": phase + 1,  # starts again at 1
            "AcquisitionTime": f"10{phase + 2:02d}00",
        }

    exam.add(phases[1:], each=after)
    np.testing.assert_array_equal(exam.read((0, 1, 2)).values, plain)


def test_descriptions_that_contradict_the_times_are_refused(exam: Examination, phases: Any) -> None:
    for phase, name in enumerate(["1st pass", "pre", "2nd pass"]):
        exam.add(
            phases[phase : phase + 1],
            SeriesDescription=name,
            AcquisitionTime=f"10{phase:02d}00",
        )
    assert exam.refused().reason == "contradictory phases"


@pytest.mark.parametrize("missing", [3, 8])
def test_a_series_that_lacks_slices_is_not_skipped(
    exam: Examination, phases: Any, missing: int
) -> None:
    """Or the second phase after contrast would silently pass for the first."""
    for phase in range(3):

        def each(
            _phase: int, z: int, tags: dict[str, Any], phase: int = phase
        ) -> dict[str, Any] | None:
            return None if phase == 1 and z < missing else tags

        exam.add(phases[phase : phase + 1], AcquisitionTime=f"10{phase:02d}00", each=each)
    error = exam.refused()
    assert error.reason == "incomplete phase"
    assert f"got {10 - missing} in phase 1" in str(error)


def test_the_dynamic_set_with_most_phases_is_taken(
    exam: Examination, phases: Any, plain: Any
) -> None:
    def beside(phase: int, z: int, tags: dict[str, Any]) -> dict[str, Any]:
        x, y, height = tags["ImagePositionPatient"]
        return _temporal(phase, z, tags) | {"ImagePositionPatient": [x + 40.0, y, height]}

    exam.add(phases, each=_temporal)
    exam.add(phases[:2], each=beside)
    image = exam.read((0, 1, 2))
    np.testing.assert_array_equal(image.values, plain)
    assert [note.reason for note in image.set_aside] == ["another series"]
    exam.add(phases, each=beside, ImageOrientationPatient=[1, 0, 0, 0, -1, 0])
    error = exam.refused()
    assert error.reason == "several dynamic series"
    assert "got 2 of 3 phases each" in str(error)


def test_another_protocol_on_the_grid_of_several_series_is_unclear(
    exam: Examination, phases: Any
) -> None:
    """A map of flip angles, or the phase before contrast? The table must say."""
    for phase in range(3):
        exam.add(phases[phase : phase + 1], AcquisitionTime=f"10{phase:02d}00")
    exam.add(phases[:1], AcquisitionTime="095900", FlipAngle="3")
    assert exam.refused().reason == "phases unclear"


def test_another_protocol_is_set_aside_where_descriptions_tell(
    exam: Examination, phases: Any, plain: Any
) -> None:
    for phase, name in enumerate(["ax dyn pre", "ax dyn 1st pass", "ax dyn 2nd pass"]):
        exam.add(phases[phase : phase + 1], SeriesDescription=name)
    exam.add(phases[:1], SeriesDescription="ax t1", EchoTime="4.8")
    image = exam.read((0, 1, 2))
    np.testing.assert_array_equal(image.values, plain)
    assert [note.reason for note in image.set_aside] == ["another series"]


def test_derived_copies_of_original_phases_are_set_aside(
    exam: Examination, phases: Any, plain: Any
) -> None:
    exam.add(phases, each=_temporal)
    exam.add(phases + 50, each=_temporal, ImageType=["DERIVED", "SECONDARY", "FILTERED"])
    image = exam.read((0, 1, 2))
    np.testing.assert_array_equal(image.values, plain)
    assert [str(note) for note in image.set_aside] == ["derived series: 30 images not used"]


def test_original_and_derived_phases_side_by_side_are_unclear(
    exam: Examination, phases: Any
) -> None:
    exam.add(phases[:1], AcquisitionTime="100000")
    exam.add(phases[1:], each=lambda p, z, t: t | {"AcquisitionTime": f"100{p + 1}00"},
             ImageType=["DERIVED", "SECONDARY"])  # fmt: skip
    assert exam.refused().reason == "phases unclear"


def test_a_series_that_is_derived_altogether_is_used(
    exam: Examination, phases: Any, plain: Any
) -> None:
    exam.add(phases, each=_temporal, ImageType=["DERIVED", "SECONDARY"])
    np.testing.assert_array_equal(exam.read((0, 1, 2)).values, plain)


def test_other_files_between_the_slices(
    exam: Examination, phases: Any, plain: Any, dicoms: Any
) -> None:
    """A DICOMDIR, a text, a picture: none of them is DICOM of a slice."""
    folder = exam.add(phases, each=_temporal)
    (folder / "DICOMDIR").write_bytes(b"\x00" * 128 + b"DICM")
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" * 100)
    image = exam.read((0, 1, 2))
    np.testing.assert_array_equal(image.values, plain)
    assert image.set_aside == ()


def test_a_sub_folder_that_may_not_be_read_is_a_fault(
    exam: Examination, phases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may hold a phase: the next one would silently pass for it."""
    folders = [
        exam.add(phases[p : p + 1], AcquisitionTime=f"10{p:02d}00") for p in range(len(phases))
    ]
    scandir = os.scandir

    def locked(path: Any) -> Any:
        if Path(path) == folders[1]:
            raise PermissionError(13, "CANARY")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(ImageError, match="may not be read") as caught:
        exam.read()
    assert caught.value.reason == "no permission"


def test_a_folder_with_too_many_files(
    exam: Examination, phases: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    exam.add(phases, each=_temporal)
    monkeypatch.setattr("her2_client.ingest.mri.scan.MAX_FILES", 29)
    assert exam.refused().reason == "too many files"


# --- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["ax dyn pre", "submillimetre dyn", "T1 locked", "mprage", "dyn t1", "map2d dynamic"]
)
def test_only_whole_words_count(text: str) -> None:
    assert kinds.kind(["ORIGINAL", "PRIMARY", "M"], text) is None


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        ("ax dyn pre", 0),
        ("PRE-CONTRAST", 0),
        ("ax 3d dyn", None),
        ("4th pass", 4),
        ("ph 3", 3),
        ("PHASE_12", 12),
        ("post 2", 2),
        ("post", 1),
        ("pre post", None),
        ("pre 2nd", None),
        ("1st of 2nd", None),
        ("3D 1ST PASS", 1),
    ],
)
def test_the_phase_that_a_description_names(text: str, stage: int | None) -> None:
    assert kinds.stage(text) == stage


def test_no_text_of_a_header_enters_a_message(exam: Examination, phases: Any) -> None:
    canary = {"SeriesDescription": "CANARY-7 sub", "Manufacturer": "CANARY-7"}
    exam.add(phases, each=_temporal, Manufacturer="CANARY-7")
    exam.add(phases, **canary, ImageType=["CANARY 7", "CANARY 7"], PatientName="CANARY-7")
    image = exam.read()
    assert "CANARY" not in " ".join(map(str, image.set_aside)) + image.scanner
