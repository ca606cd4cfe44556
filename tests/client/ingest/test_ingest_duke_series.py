"""The public centre's images: both folder layouts, series names, headers, and where boxes lie."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from her2_client.ingest.duke import build_duke
from her2_client.ingest.duke.build import lesion_box
from her2_client.ingest.duke.series import Grid
from her2_client.ingest.duke.sheets import BOX_COLUMNS, CLINICAL_COLUMNS, SourceBox
from her2_client.ingest.mri.dce import dce_mri
from her2_client.ingest.privacy.guard import Guard
from her2_common.cases import Box, Case, read_cases
from her2_common.errors import ImageError

Array = npt.NDArray[Any]

SHAPE = (6, 12, 10)  # slices, rows, columns
LESION = Box(3, 5, 7, 9, 1, 3)
PASSES = ("ax dyn pre", "ax dyn 1st pass", "ax dyn 2nd pass", "ax dyn 3rd pass")
AXIAL = [1, 0, 0, 0, 1, 0]
SAGITTAL = [0, 1, 0, 0, 0, -1]
BOX = {"Row": (6, 9), "Column": (4, 7), "Slice": (2, 3)}  # LESION, counted from 1


class Download:
    """A download of the collection with clinical sheet, boxes and series folders."""

    def __init__(self, folder: Path, dicoms: Any) -> None:
        self.folder, self.dicoms = folder / "duke", dicoms
        self.site = folder / "site"
        self.rows: list[str] = []
        self.boxes: list[list[Any]] = []
        self.metadata: list[list[str]] = []
        self.count = 0

    def patient(self, box: Mapping[str, tuple[int, int]] | None = BOX) -> str:
        name = f"Breast_MRI_{len(self.rows) + 1:03d}"
        self.rows.append(name)
        if box is not None:
            ends = [end for part in ("Row", "Column", "Slice") for end in box[part]]
            self.boxes.append([name, *ends])
        return name

    def series(
        self,
        patient: str,
        name: str,
        *,
        minute: int = 0,
        layout: str = "descriptive",
        phases: int = 1,
        falling: bool = False,
        directions: Sequence[float] = AXIAL,
        study: str = "1",
        before: bool = False,
        **tags: Any,
    ) -> Path:
        """One series folder; ``falling`` numbers slices against their normal. The lesion is darker
        in the first of several phases and in a series ``before`` contrast."""
        self.count += 1
        uid = f"1.2.3.{study}.{self.count}"
        if layout == "descriptive":
            plain = "".join(c for c in name if c.isalnum() or c in " _")  # as the downloader does
            place = (
                f"01-01-1990-NA-MRI BREAST-0{study}/{self.count}.000000-{plain}-{self.count:05d}"
            )
        else:
            place = f"1.2.3.{study}/{uid}"
        folder = self.folder / "manifest-1" / "Duke-Breast-Cancer-MRI" / patient / place
        relative = folder.relative_to(self.folder / "manifest-1").as_posix()
        self.metadata.append([uid, patient, name, f"./{relative}"])
        volume = np.full((phases, *SHAPE), 100)
        volume[:, 1:3, 5:9, 3:7] = 900  # LESION
        if before or phases > 1:
            volume[0, 1:3, 5:9, 3:7] = 500

        def change(phase: int, z: int, usual: dict[str, Any]) -> dict[str, Any]:
            normal = np.cross(directions[:3], directions[3:])
            order = SHAPE[0] - 1 - z if falling else z
            return (
                usual
                | {
                    "PatientID": patient,
                    "StudyInstanceUID": f"1.2.3.{study}",
                    "SeriesInstanceUID": uid,
                    "SeriesNumber": self.count,
                    "SeriesDescription": name,
                    "AcquisitionTime": f"09{minute + phase:02d}00",
                    "TemporalPositionIdentifier": None,
                    "InstanceNumber": phase * SHAPE[0] + order + 1,
                    "ImageOrientationPatient": list(directions),
                    "ImagePositionPatient": [float(v) for v in normal * (2.5 * z - 40)],
                }
                | tags
            )

        def file(phase: int, z: int) -> str:
            return f"1-{phase}{(z * 5) % 7:03d}.dcm"  # names in no order

        return Path(self.dicoms.mri(folder, volume, change=change, name=file))

    def dynamic(self, patient: str, names: Sequence[str] = PASSES, **options: Any) -> list[Path]:
        return [
            self.series(patient, name, minute=10 + 2 * i, before=i == 0, **options)
            for i, name in enumerate(names)
        ]

    def build(self, **options: Any) -> tuple[list[Case], dict[tuple[str, Any], Box], Any]:
        self._table("Clinical_and_Other_Features.csv", CLINICAL_COLUMNS, [[r] for r in self.rows])
        if self.boxes:
            self._table("Annotation_Boxes.csv", BOX_COLUMNS, self.boxes)
        if self.metadata:
            names = ["Series UID", "Subject ID", "Series Description", "File Location"]
            self._table("manifest-1/metadata.csv", names, self.metadata)
        lesions = self.site / "lesions.csv"
        summary = build_duke(self.folder, self.site / "cases.csv", lesions, **options)
        table = read_cases(self.site / "cases.csv", lesions)
        return list(table.cases), table.boxes, summary.as_dict()

    def _table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (self.folder / name).open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerows(
                [columns, *([*row, *[""] * (len(columns) - len(row))] for row in rows)]
            )


@pytest.fixture
def download(tmp_path: Path, dicoms: Any) -> Download:
    return Download(tmp_path, dicoms)


def same(paths: Sequence[Path], others: Sequence[Path]) -> bool:
    return [path.resolve() for path in paths] == [path.resolve() for path in others]


# --- folders ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["descriptive", "classic"])
@pytest.mark.parametrize(
    "names",
    [PASSES, ("ax 3d dyn", "Ph1/ax 3d dyn", "Ph2/ax 3d dyn"), ("ax dyn pre", "ax dyn 1st pas")],
)
def test_phases_are_found_in_order(download: Download, layout: str, names: Sequence[str]) -> None:
    patient = download.patient()
    download.series(patient, "ax t1 tse +c", layout=layout)
    folders = download.dynamic(patient, names, layout=layout)
    download.series(patient, "Segmentation", layout=layout, Modality="SEG")
    (case,), boxes, counts = download.build()
    assert same(case.mri, folders)
    assert boxes == {(patient, "mri"): LESION}
    assert counts["mri"]["found"] == 1
    assert counts["boxes"] == {
        "sheet": True, "found": 1, "missing": 0, "written": 1, "left_out": {},
    }  # fmt: skip
    assert counts["faults"]["count"] == 0


def test_later_phases_may_be_archived_first(download: Download) -> None:
    patient = download.patient()
    folders = [
        download.series(patient, name, minute=minute)
        for name, minute in ((PASSES[2], 30), (PASSES[1], 20), (PASSES[0], 10))
    ]
    (case,), _, _ = download.build()
    assert same(case.mri, folders[::-1])


def test_metadata_names_a_series_that_does_not_name_itself(download: Download) -> None:
    patient = download.patient()
    folders = download.dynamic(patient, layout="classic", SeriesDescription=None)
    (case,), _, _ = download.build()
    assert same(case.mri, folders)


def test_one_folder_with_all_phases_is_used_as_it_is(download: Download) -> None:
    patient = download.patient()
    folder = download.series(patient, "Ax Vibrant MultiPhase", phases=4)
    (case,), boxes, _ = download.build()
    assert same(case.mri, [folder])
    assert boxes == {(patient, "mri"): LESION}


def test_paths_start_at_the_table_even_through_a_link(download: Download) -> None:
    patient = download.patient()
    folders = download.dynamic(patient)
    real = download.folder.parent / "deep" / "down"
    real.mkdir(parents=True)
    download.site.symlink_to(real)
    (case,), _, _ = download.build()
    assert same(case.mri, folders)
    assert str(download.folder.parent) not in (real / "cases.csv").read_text()


# --- boxes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("directions", [AXIAL, [-1, 0, 0, 0, -1, 0], SAGITTAL])
@pytest.mark.parametrize("phases", [1, 3])
@pytest.mark.parametrize("falling", [False, True])
def test_the_box_holds_the_lesion_whichever_way_slices_are_numbered(
    download: Download, falling: bool, phases: int, directions: Sequence[float]
) -> None:
    first, last = BOX["Slice"]
    if falling:
        first, last = SHAPE[0] + 1 - last, SHAPE[0] + 1 - first
    patient = download.patient(BOX | {"Slice": (first, last)})
    options: dict[str, Any] = {"falling": falling, "directions": directions}
    if phases == 1:
        download.dynamic(patient, **options)
    else:
        download.series(patient, "ax dyn", phases=phases, **options)
    _, boxes, _ = download.build()
    assert boxes == {(patient, "mri"): LESION}


@pytest.mark.parametrize("falling", [False, True])
@pytest.mark.parametrize("phases", [1, 3])
def test_ingest_reads_the_lesion_in_the_middle_of_its_cube(
    download: Download, falling: bool, phases: int
) -> None:
    first, last = BOX["Slice"]
    if falling:
        first, last = SHAPE[0] + 1 - last, SHAPE[0] + 1 - first
    patient = download.patient(BOX | {"Slice": (first, last)})
    if phases == 1:
        download.dynamic(patient, falling=falling)
    else:
        download.series(patient, "ax dyn", phases=phases, falling=falling)
    (case,), boxes, _ = download.build()
    cube = dce_mri(case.mri, boxes[patient, "mri"], size=64, guard=Guard(b"0" * 32)).values
    lesion = np.argwhere(cube[0] > -0.5)  # 900 of 100 to 900; voxels of 1 mm, slices of 2.5
    np.testing.assert_allclose((lesion.min(0) + lesion.max(0) + 1) / 2, 32, atol=0.6)
    np.testing.assert_allclose(np.ptp(lesion, axis=0) + 1, [5, 4, 4], atol=1.1)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"Slice": (2, SHAPE[0] + 1)}, "box outside"),
        ({"Column": (1, SHAPE[2] + 1)}, "box outside"),
        ({"Row": (0, 0)}, "box outside"),
    ],
)
def test_a_box_beyond_the_images_is_left_out(
    download: Download, change: dict[str, tuple[int, int]], reason: str
) -> None:
    download.dynamic(download.patient(BOX | change))
    (case,), boxes, counts = download.build()
    assert case.mri
    assert boxes == {}
    assert counts["boxes"]["left_out"] == {reason: 1}


@pytest.mark.parametrize("number", [None, 7])
def test_without_instance_numbers_a_box_has_no_direction(
    download: Download, number: int | None
) -> None:
    download.dynamic(download.patient(), InstanceNumber=number)
    (case,), boxes, counts = download.build()
    assert case.mri
    assert boxes == {}
    assert counts["boxes"]["left_out"] == {"slice order unclear": 1}
    with pytest.raises(ImageError, match="numbered along their normal"):
        lesion_box(SourceBox((1, 2), (1, 2), (1, 2)), Grid(9, 9, 9, None))


def test_boxes_without_images_and_images_without_boxes(download: Download) -> None:
    download.patient()
    download.dynamic(download.patient(box=None))
    download.boxes.append(["Breast_MRI_777", 1, 2, 1, 2, 1, 2])
    download.boxes.append(["Breast_MRI_778", 4, 2, 1, 2, 1, 2])
    download.boxes.append(["Breast_MRI_779", "x", 2, 1, 2, 1, 2])
    cases, boxes, counts = download.build()
    assert [bool(case.mri) for case in cases] == [False, True]
    assert boxes == {}
    assert counts["boxes"]["found"] == 2
    assert counts["boxes"]["missing"] == 1
    assert counts["boxes"]["left_out"] == {"no images": 1, "patient not in the clinical sheet": 1}
    assert counts["mri"]["missing"] == 1
    assert counts["faults"]["all"] == [
        "Annotation_Boxes.csv row 4, expected each End at or after its Start, got one before it",
        "Annotation_Boxes.csv row 5, column Start Row: expected a whole number, got text",
    ]


# --- what cannot be used ------------------------------------------------------------------------


def passes_named_pre(download: Download, patient: str) -> None:
    download.dynamic(patient, ("ax dyn pre",) * 4)  # as in Breast_MRI_120


def phases_twice(download: Download, patient: str) -> None:
    download.dynamic(patient)
    download.series(patient, PASSES[1], minute=50)  # as in Breast_MRI_596


def times_against_names(download: Download, patient: str) -> None:
    for name, minute in zip(PASSES, (10, 14, 12, 16), strict=True):
        download.series(patient, name, minute=minute)


def later_tag_against_names(download: Download, patient: str) -> None:
    for name, minute in zip(PASSES[:3], (10, 14, 12), strict=True):
        time = f"09{minute}00"
        download.series(patient, name, AcquisitionTime="090000", ContentTime=time)


def two_of_three_times_alike(download: Download, patient: str) -> None:
    for name, minute in zip(PASSES[:3], (14, 12, 12), strict=True):
        download.series(patient, name, minute=minute)


def twice_but_incomplete(download: Download, patient: str) -> None:
    download.dynamic(patient)
    next(download.series(patient, PASSES[1], minute=12).iterdir()).unlink()


def folder_against_header(download: Download, patient: str) -> None:
    download.dynamic(patient)
    wrong = download.series(patient, "ax dyn 4th pass", minute=40)
    wrong.rename(wrong.with_name("9.000000-ax dyn 3rd pass-00009"))


def no_pre(download: Download, patient: str) -> None:
    download.dynamic(patient, PASSES[1:])


def no_first_pass(download: Download, patient: str) -> None:
    download.dynamic(patient, (PASSES[0], PASSES[2]))


def pre_alone(download: Download, patient: str) -> None:
    download.dynamic(patient, PASSES[:1])


def no_dynamic(download: Download, patient: str) -> None:
    download.series(patient, "ax t1")


def subtractions(download: Download, patient: str) -> None:
    download.dynamic(patient, ImageType=["DERIVED", "SECONDARY", "SUBTRACT"])


def mixed(download: Download, patient: str) -> None:
    download.series(patient, PASSES[0], phases=2)
    download.series(patient, PASSES[1], minute=20)


def another(download: Download, patient: str) -> None:
    download.dynamic(patient)
    download.series(patient, "ax dyn 4th pass", minute=30, PatientID="CANARY")


def two_studies(download: Download, patient: str) -> None:
    download.dynamic(patient)
    download.dynamic(patient, study="2")


def damaged(download: Download, patient: str) -> None:
    for path in download.dynamic(patient)[1].iterdir():
        path.write_bytes(b"\x00" * 200)


def test_a_trigger_time_orders_no_series(download: Download) -> None:
    """It counts from the start of each series: it may fall while the phases rise."""
    patient = download.patient()
    for place, name in enumerate(PASSES):
        download.series(patient, name, minute=10 + place, TriggerTime=str(900 - place))
    (case,), _, counts = download.build()
    assert len(case.mri) == len(PASSES)
    assert counts["mri"]["not_used"] == {}


def no_positions(download: Download, patient: str) -> None:
    download.dynamic(patient, ImagePositionPatient=None)


def a_slice_lacks(download: Download, patient: str) -> None:
    sorted(download.series(patient, "ax dyn", phases=3).iterdir())[4].unlink()


def semicolon(download: Download, patient: str) -> None:
    folder = download.dynamic(patient)[0]
    folder.rename(folder.with_name(f"{folder.name};x"))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (passes_named_pre, "phase named twice"),
        (phases_twice, "phase named twice"),
        (times_against_names, "series order unclear"),
        (later_tag_against_names, "series order unclear"),
        (two_of_three_times_alike, "series order unclear"),
        (twice_but_incomplete, "phase named twice"),
        (folder_against_header, "series order unclear"),
        (no_pre, "no phase before contrast"),
        (no_first_pass, "phase missing"),
        (pre_alone, "one phase only"),
        (no_dynamic, "no dynamic series"),
        (subtractions, "no dynamic series"),
        (mixed, "phases mixed"),
        (another, "another patient"),
        (two_studies, "several studies"),
        (damaged, "not DICOM"),
        (no_positions, "no geometry"),
        (a_slice_lacks, "gap"),
        (semicolon, "folder name"),
    ],
)
def test_what_is_not_certain_is_not_used_and_counted(
    download: Download, make: Any, reason: str
) -> None:
    good = download.patient()
    folders = download.dynamic(good)
    bad = download.patient()
    make(download, bad)
    cases, boxes, counts = download.build()
    assert same(cases[0].mri, folders)
    assert cases[1].mri == ()
    assert boxes == {(good, "mri"): LESION}
    assert counts["mri"]["not_used"] == {reason: 1}
    assert counts["mri"]["patients_not_used"] == {bad: reason}
    assert counts["boxes"]["left_out"] == {"no images": 1}


def test_the_same_images_twice_are_used_once(download: Download) -> None:
    patient = download.patient()
    folders = download.dynamic(patient)
    download.series(patient, PASSES[1], minute=12)  # the same time and number of images
    (case,), _, counts = download.build()
    assert same(case.mri, folders)
    assert counts["mri"]["not_used"] == {}


def test_times_that_tell_nothing_leave_it_to_the_names(download: Download) -> None:
    patient = download.patient()
    folders = download.dynamic(patient, AcquisitionTime="090000")
    (case,), _, _ = download.build()
    assert same(case.mri, folders)


def test_times_past_midnight_are_told_by_their_dates(download: Download) -> None:
    patient = download.patient()
    folders = [
        download.series(patient, name, AcquisitionTime=time, AcquisitionDate=date)
        for name, time, date in (
            (PASSES[0], "235800", "19900101"),
            (PASSES[1], "000100", "19900102"),
        )
    ]
    (case,), _, _ = download.build()
    assert same(case.mri, folders)


def test_a_damaged_series_of_another_kind_does_no_harm(download: Download) -> None:
    patient = download.patient()
    folders = download.dynamic(patient)
    for path in download.series(patient, "ax t1").iterdir():
        path.write_bytes(b"")
    (case,), _, _ = download.build()
    assert same(case.mri, folders)


def test_folders_of_patients_without_a_row_are_counted(download: Download) -> None:
    download.dynamic("Breast_MRI_500")
    download.patient()
    _, _, counts = download.build()
    assert counts["mri"]["folders_without_row"] == 1


def test_progress_is_told_by_patient(download: Download) -> None:
    for _ in range(3):
        download.patient()
    seen: list[tuple[int, int]] = []
    download.build(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_the_same_download_gives_the_same_bytes(download: Download) -> None:
    download.dynamic(download.patient())
    tables = [download.site / name for name in ("cases.csv", "lesions.csv")]
    download.build()
    first = [path.read_bytes() for path in tables]
    download.build(force=True)
    assert [path.read_bytes() for path in tables] == first
