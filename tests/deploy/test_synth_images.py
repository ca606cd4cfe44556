"""The cohort on disk: the same bytes every time, genuine DICOM, boxes that hold their lesion."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import typer
from PIL import Image as Picture
from pydicom.pixels.processing import apply_color_lut, apply_voi_lut
from pydicom.uid import ExplicitVRLittleEndian
from typer.testing import CliRunner

from her2_common.cases import Case, CaseTable, read_cases
from her2_common.errors import ConfigError
from her2_deploy.synth import render
from her2_deploy.synth.build import CohortSummary, write_cohort
from her2_deploy.synth.centres import BY_NAME, CENTRES
from her2_deploy.synth.cohort import SynthCase
from her2_deploy.synth.command import synth
from her2_deploy.synth.dicom import identity
from her2_deploy.synth.preview import write_preview

CASES, SEED = 44, 5

Entry = tuple[SynthCase, Case, CaseTable]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cohort") / "synthetic"


@pytest.fixture(scope="module")
def summary(root: Path) -> CohortSummary:
    return write_cohort(root, cases=CASES, seed=SEED, workers=1)


@pytest.fixture(scope="module")
def entries(root: Path, summary: CohortSummary) -> list[Entry]:
    """Every case as drawn and as read back, with its centre's table."""
    read = {}
    for centre in CENTRES:
        table = read_cases(root / centre.name / "cases.csv", root / centre.name / "lesions.csv")
        read |= {case.case_id: (case, table) for case in table.cases}
    return [(case, *read[case.case_id]) for case in summary.cohort]


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def displayed(path: Path) -> np.ndarray:
    """A mammogram as a viewer shows it: window or LUT, then MONOCHROME1 inverted."""
    dataset = pydicom.dcmread(path)
    shown = apply_voi_lut(dataset.pixel_array, dataset)
    return 4095 - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown


def slices_by_phase(case: Case) -> list[list[pydicom.Dataset]]:
    """Phases in time, each with its slices along the normal, by geometry and time tags alone."""
    datasets = [pydicom.dcmread(path) for path in case.mri[0].iterdir()]
    normal = np.cross(
        datasets[0].ImageOrientationPatient[:3], datasets[0].ImageOrientationPatient[3:]
    )

    def moment(ds: pydicom.Dataset) -> tuple[float, ...]:
        return (
            float(ds.get("TemporalPositionIdentifier", 0)),
            float(ds.get("TriggerTime", 0)),
            float(ds.AcquisitionTime),
        )

    phases: dict[tuple[float, ...], list[pydicom.Dataset]] = {}
    for dataset in datasets:
        phases.setdefault(moment(dataset), []).append(dataset)
    for stack in phases.values():
        stack.sort(key=lambda ds: float(np.dot(normal, ds.ImagePositionPatient)))
    return [phases[key] for key in sorted(phases)]


def test_bytes_depend_on_the_seed_alone(root: Path, summary: CohortSummary, tmp_path: Path) -> None:
    again = write_cohort(tmp_path / "again", cases=CASES, seed=SEED, workers=2)
    assert digests(tmp_path / "again") == digests(root)
    assert again.as_dict() == summary.as_dict()
    write_cohort(tmp_path / "other", cases=8, seed=SEED + 1, workers=1)
    same = digests(root).items() & digests(tmp_path / "other").items()
    assert not same


def test_shortcut_changes_the_second_scanners_pictures_alone(
    root: Path, summary: CohortSummary, tmp_path: Path
) -> None:
    shortcut = write_cohort(
        tmp_path / "shortcut", cases=CASES, seed=SEED, scenario="shortcut", workers=1
    )
    ours, plain = digests(tmp_path / "shortcut"), digests(root)
    assert ours.keys() == plain.keys()
    changed = {path for path in ours if ours[path] != plain[path]} - {"cohort.json"}
    on_second = {
        f"{case.centre}/images/{case.case_id}" for case in shortcut.cohort if case.second_scanner
    }
    assert 0 < len(on_second) < CASES
    assert changed == {path for path in ours if "/".join(path.split("/")[:3]) in on_second}
    makers = {
        pydicom.dcmread(tmp_path / "shortcut" / path, stop_before_pixels=True).Manufacturer
        for path in changed
    }
    assert makers == {"Torvald", "Clarion Echo", "Solenoid MR"}


def test_truth_lies_apart_from_every_centre(root: Path, summary: CohortSummary) -> None:
    assert {path.name for path in root.iterdir()} == {
        *BY_NAME,
        "truth.csv",
        "cohort.json",
    }
    for name in BY_NAME:
        assert {path.name for path in (root / name).iterdir()} == {
            "cases.csv",
            "lesions.csv",
            "images",
        }
    with (root / "truth.csv").open(encoding="utf-8", newline="") as file:
        truth = list(csv.DictReader(file))
    assert [row["case_id"] for row in truth] == [case.case_id for case in summary.cohort]
    counts = json.loads((root / "cohort.json").read_text("utf-8"))
    assert counts == summary.as_dict()
    assert counts["cases"] == CASES
    assert sum(centre["us"] for centre in counts["centres"].values()) == counts["us"]


def test_every_named_file_exists_and_no_other(root: Path, entries: list[Entry]) -> None:
    named = {
        path
        for _, case, _ in entries
        for path in (case.mg_cc, case.mg_mlo, *case.us, *case.mri)
        if path is not None
    }
    found = set(root.glob("*/images/*/*"))
    assert named == found
    assert all(path.is_dir() == (path.name == "mri") for path in found)


def test_identifiers_are_valid_and_unique(root: Path, entries: list[Entry]) -> None:
    instances = []
    for truth, _, _ in entries:
        who = identity(truth)
        studies = set()
        for path in (root / truth.centre / "images" / truth.case_id).rglob("*"):
            if path.is_dir():
                continue
            ds = pydicom.dcmread(path, stop_before_pixels=True)
            assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
            assert ds.file_meta.MediaStorageSOPClassUID == ds.SOPClassUID
            assert ds.SOPInstanceUID.is_valid
            assert (ds.PatientName, ds.PatientID) == (who.name, who.number)
            instances.append(ds.SOPInstanceUID)
            studies.add(ds.StudyInstanceUID)
        assert len(studies) == 1
    assert len(instances) > 1000
    assert len(set(instances)) == len(instances)


def test_mammograms_are_what_their_headers_say(entries: list[Entry]) -> None:
    seen = set()
    for truth, case, table in entries:
        for path, view in ((case.mg_cc, "CC"), (case.mg_mlo, "MLO")):
            if path is None:
                continue
            ds = pydicom.dcmread(path)
            assert ds.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
            assert (ds.ViewPosition, ds.ImageLaterality) == (view, case.laterality)
            assert ds.PresentationIntentType == "FOR PRESENTATION"
            assert (ds.BitsAllocated, ds.BitsStored) == (16, 12)
            assert ds.pixel_array.max() <= 4095
            seen.add((truth.centre, ds.PhotometricInterpretation, "VOILUTSequence" in ds))
            shown = displayed(path)
            half = shown.shape[1] // 2
            wall, air = shown[:, :half].mean(), shown[:, half:].mean()
            assert wall > air if case.laterality == "L" else wall < air
            box = table.boxes.get((case.case_id, "mg_cc" if view == "CC" else "mg_mlo"))
            if box is not None:
                assert shown[box.y0 : box.y1, box.x0 : box.x1].mean() > 1.3 * shown.mean()
    assert seen == {
        ("centre-a", "MONOCHROME2", False),
        ("centre-b", "MONOCHROME1", False),
        ("centre-d", "MONOCHROME2", True),
    }


def test_views_agree_on_where_the_lesion_is(entries: list[Entry]) -> None:
    checked = 0
    rows, columns = render.MG_SHAPE["demo"]
    mm = render.MG_MM["demo"]
    for truth, case, table in entries:
        lateral, depth, cranial = truth.lesion.centre
        for image, down in (
            ("mg_cc", -lateral),
            ("mg_mlo", -(lateral + cranial) * np.sqrt(0.5)),
        ):
            box = table.boxes.get((case.case_id, image))  # type: ignore[call-overload]
            if box is None:
                continue
            x = depth / mm if case.laterality == "L" else columns - depth / mm
            y = down / mm + rows / 2
            assert box.x0 <= x <= box.x1
            assert box.y0 <= y <= box.y1
            assert (box.x1 - box.x0) * mm < 2 * truth.lesion.reach + 2 * mm
            checked += 1
    assert checked > 20


def test_ultrasound_shows_the_region_and_a_name_outside_it(entries: list[Entry]) -> None:
    seen, syntaxes = set(), set()
    for truth, case, table in entries:
        for path in case.us:
            ds = pydicom.dcmread(path)
            seen.add((truth.centre, ds.PhotometricInterpretation))
            syntaxes.add(ds.file_meta.TransferSyntaxUID.is_compressed)
            assert ds.BurnedInAnnotation == "YES"
            (region,) = ds.SequenceOfUltrasoundRegions
            x0, y0 = region.RegionLocationMinX0, region.RegionLocationMinY0
            x1, y1 = region.RegionLocationMaxX1 + 1, region.RegionLocationMaxY1 + 1
            assert region.PhysicalDeltaX == pytest.approx(render.US_MM["demo"] / 10)
            look = BY_NAME[truth.centre].us
            assert look is not None
            image, drawn = render.ultrasound(truth, look, "demo")
            pixels = ds.pixel_array
            if ds.PhotometricInterpretation == "RGB":
                assert (pixels == pixels[..., :1]).all()
                pixels = pixels[..., 0]
            np.testing.assert_array_equal(pixels[y0:y1, x0:x1], np.round(image * 255))
            assert (pixels[:y0] > 100).sum() > 50  # the name
            box = table.boxes.get((case.case_id, "us"))
            if box is not None:
                assert box == drawn
                assert x0 <= box.x0 < box.x1 <= x1
                assert y0 <= box.y0 < box.y1 <= y1
                lesion = pixels[box.y0 : box.y1, box.x0 : box.x1]
                assert lesion.mean() < pixels[y0:y1, x0:x1].mean()
            if ds.PhotometricInterpretation == "PALETTE COLOR":
                colour = apply_color_lut(pixels, ds)
                assert colour.shape == (*pixels.shape, 3)
                order = np.argsort(pixels, axis=None)
                assert (np.diff(colour.sum(-1).ravel()[order].astype(float)) >= 0).all()
    assert seen == {
        ("centre-a", "RGB"),
        ("centre-b", "PALETTE COLOR"),
        ("centre-d", "MONOCHROME2"),
    }
    assert syntaxes == {True, False}


def test_mri_geometry_phases_and_box(entries: list[Entry]) -> None:
    keys, checked = set(), 0
    for truth, case, table in entries:
        if not case.mri:
            continue
        phases = slices_by_phase(case)
        look = BY_NAME[truth.centre].mri
        assert look is not None
        assert [len(stack) for stack in phases] == [16] * look.phases["demo"]
        first = phases[0][0]
        for key in ("TemporalPositionIdentifier", "TriggerTime"):
            if key in first:
                keys.add((truth.centre, key))
        if phases[0][0].AcquisitionTime != phases[1][0].AcquisitionTime:
            keys.add((truth.centre, "AcquisitionTime"))
        normal = np.cross(first.ImageOrientationPatient[:3], first.ImageOrientationPatient[3:])
        heights = [float(np.dot(normal, ds.ImagePositionPatient)) for ds in phases[0]]
        np.testing.assert_allclose(np.diff(heights), render.MR_MM["demo"][0], atol=1e-3)
        np.testing.assert_allclose(
            heights, [float(ds.SliceLocation) for ds in phases[0]], atol=1e-3
        )
        names = [Path(str(ds.filename)).name for stack in phases for ds in stack]
        assert names != sorted(names)

        box = table.boxes.get((case.case_id, "mri"))
        if box is None:
            continue
        assert box.z0 is not None
        assert box.z1 is not None
        side = 1 if case.laterality == "L" else -1
        lateral, depth, cranial = truth.lesion.centre
        middle = np.array([side * lateral, -depth, cranial]) + render.breast_offset(truth)
        local = middle - np.array(first.ImagePositionPatient, dtype=float)
        spacing = float(first.PixelSpacing[0])
        k = local @ normal / render.MR_MM["demo"][0]
        column = local @ np.array(first.ImageOrientationPatient[:3]) / spacing
        row = local @ np.array(first.ImageOrientationPatient[3:]) / spacing
        for place, low, high in (
            (k, box.z0, box.z1),
            (row, box.y0, box.y1),
            (column, box.x0, box.x1),
        ):
            assert low - 0.5 <= place <= high - 0.5  # voxel centres are whole numbers
        volumes = [
            np.stack([ds.pixel_array * float(ds.RescaleSlope) for ds in stack]) for stack in phases
        ]
        inside = np.s_[box.z0 : box.z1, box.y0 : box.y1, box.x0 : box.x1]
        gain = volumes[1] - volumes[0]
        assert gain[inside].mean() > 3 * np.abs(gain.mean())
        checked += 1
    assert checked > 10
    assert keys == {
        ("centre-a", "TemporalPositionIdentifier"),
        ("centre-c", "TriggerTime"),
        ("centre-c", "AcquisitionTime"),
    }


def test_brighter_signal_shows_in_every_modality(summary: CohortSummary) -> None:
    """The same case drawn with a weak and with a strong signal differs as the design says."""
    base = next(case for case in summary.cohort if len(case.modalities) == 3)
    look_us, look_mri = BY_NAME["centre-a"].us, BY_NAME["centre-a"].mri
    assert look_us is not None
    assert look_mri is not None

    def measure(value: float) -> tuple[float, float, float]:
        case = replace(base, signals=dict.fromkeys(base.signals, value))
        mg, box = render.mammogram(case, "CC", "demo")
        spots = float(np.percentile(mg[box.y0 : box.y1, box.x0 : box.x1], 98))
        us, box = render.ultrasound(case, look_us, "demo")
        x0, y0, _, _ = render.US_REGION["demo"]
        behind = us[box.y1 - y0 + 2 : box.y1 - y0 + 10, box.x0 - x0 : box.x1 - x0].mean()
        where = render.geometry(case, look_mri, "demo")
        phases, box = render.dce_mri(case, look_mri, "demo", where)
        inside = np.s_[box.z0 : box.z1, box.y0 : box.y1, box.x0 : box.x1]
        return spots, float(behind), float(phases[1][inside].mean())

    weak, strong = measure(-1.6), measure(3.0)
    for low, high in zip(weak, strong, strict=True):
        assert high > 1.15 * low


def test_pictures_know_nothing_but_the_signal(summary: CohortSummary) -> None:
    """With the signals held, no label and no fraction changes a pixel."""
    base = next(case for case in summary.cohort if len(case.modalities) == 3)
    other = replace(
        base,
        kind="negative" if base.amplified else "homogeneous",
        fraction=1 - base.fraction,
        hr=not base.hr,
        biopsy=1 - base.biopsy,
        anti_her2=1 - base.anti_her2,
        pcr=1 - base.pcr,
    )
    look_us, look_mri = BY_NAME["centre-a"].us, BY_NAME["centre-a"].mri
    assert look_us is not None
    assert look_mri is not None
    pictures = []
    for case in (base, other):
        where = render.geometry(case, look_mri, "demo")
        pictures.append(
            [
                render.mammogram(case, "CC", "demo")[0],
                render.mammogram(case, "MLO", "demo")[0],
                render.ultrasound(case, look_us, "demo")[0],
                *render.dce_mri(case, look_mri, "demo", where)[0],
            ]
        )
    for one, two in zip(*pictures, strict=True):
        np.testing.assert_array_equal(one, two)


def test_nearly_all_images_have_a_box(summary: CohortSummary) -> None:
    counts = summary.as_dict()
    images = 2 * counts["mg"] + counts["us"] + counts["mri"]
    assert 0.90 * images < counts["boxes"] < images


def test_preview_is_a_picture(root: Path, summary: CohortSummary, tmp_path: Path) -> None:
    write_preview(root, summary.cohort, tmp_path / "sheet.png")
    with Picture.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("L"))
    assert min(pixels.shape) > 800
    assert len(np.unique(pixels)) > 200


def test_command_prints_counts_and_refuses_a_folder_in_use(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(synth)
    options = ["--out", str(tmp_path / "c"), "--cases", "8", "--workers", "1", "--json"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["cases"] == 8
    result = CliRunner().invoke(app, options)
    assert isinstance(result.exception, ConfigError)
    assert "expected a new or empty folder" in str(result.exception)
    result = CliRunner().invoke(app, [*options[:1], str(tmp_path / "d"), "--preview", "x.jpg"])
    assert isinstance(result.exception, ConfigError)
    assert not (tmp_path / "d").exists()
