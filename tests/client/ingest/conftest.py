"""Small DICOM files and whole small sites, written with pydicom."""

from __future__ import annotations

import csv
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import numpy.typing as npt
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from tests.browser import Browser, chromium_program

from her2_client.cache import verify_cache
from her2_client.ingest.outcome import Note, Outcome
from her2_client.ingest.run import ingest
from her2_client.ingest.summary import IngestSummary
from her2_common.cases import MODALITIES, Assay, Case
from her2_common.clinical import IHC_SCORES
from her2_common.config import SiteConfig, load

Array = npt.NDArray[Any]

CANARY_NAME = "CANARY^NAME"
CANARY_ID = "CANARYID4711"
KEY = "0f" * 32


class Dicoms:
    """Writes DICOM files; keyword arguments set or, with None, remove tags."""

    def write(self, path: Path, modality: str, stored: Array, tags: dict[str, Any]) -> Path:
        dataset = Dataset()
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=[str(path)])
        dataset.PatientName, dataset.PatientID = CANARY_NAME, CANARY_ID
        dataset.Modality = modality
        dataset.Rows, dataset.Columns = stored.shape[:2]
        colour = stored.ndim == 3
        dataset.SamplesPerPixel = 3 if colour else 1
        if colour:
            dataset.PlanarConfiguration = 0
        dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
        bits = stored.dtype.itemsize * 8
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
        dataset.PixelRepresentation = 0
        dataset.PixelData = stored.tobytes() + b"\x00" * (stored.nbytes % 2)
        dataset["PixelData"].VR = "OW" if bits == 16 else "OB"
        for name, value in tags.items():
            if value is None:
                if name in dataset:
                    delattr(dataset, name)
            else:
                setattr(dataset, name, value)
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta = meta
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path, enforce_file_format=True)
        return path

    def mg(self, path: Path, stored: Array, **tags: Any) -> Path:
        usual = {
            "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.2",
            "PresentationIntentType": "FOR PRESENTATION",
            "ViewPosition": "CC",
            "ImageLaterality": "L",
        }
        return self.write(path, "MG", stored.astype(np.uint16), usual | tags)

    def us(self, path: Path, stored: Array, *, region: Any = (), **tags: Any) -> Path:
        """``region`` is (x0, y0, x1, y1) end-exclusive; () leaves a border of 4, None no region."""
        if region == ():
            region = (4, 4, stored.shape[1] - 4, stored.shape[0] - 4)
        if region is not None:
            item = Dataset()
            item.RegionSpatialFormat, item.RegionDataType = 1, 1
            item.RegionLocationMinX0, item.RegionLocationMinY0 = region[0], region[1]
            item.RegionLocationMaxX1, item.RegionLocationMaxY1 = region[2] - 1, region[3] - 1
            tags.setdefault("SequenceOfUltrasoundRegions", Sequence([item]))
        return self.write(path, "US", stored.astype(np.uint8), tags)

    def mri(
        self,
        folder: Path,
        phases: Array,
        *,
        spacing: tuple[float, float, float] = (2.0, 1.0, 1.0),
        change: Callable[[int, int, dict[str, Any]], dict[str, Any] | None] | None = None,
        name: Callable[[int, int], str] = lambda phase, z: f"{phase}-{z:03d}.dcm",
    ) -> Path:
        """(phases, slices, rows, columns) as single slices; ``change`` edits or drops one."""
        for phase, volume in enumerate(phases):
            for z, plane in enumerate(volume):
                tags: dict[str, Any] = {
                    "PixelSpacing": [spacing[1], spacing[2]],
                    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
                    "ImagePositionPatient": [-20.0, -20.0, -30.0 + z * spacing[0]],
                    "TemporalPositionIdentifier": phase + 1,
                    "ImageType": ["ORIGINAL", "PRIMARY"],
                }
                edited = tags if change is None else change(phase, z, tags)
                if edited is not None:
                    self.write(folder / name(phase, z), "MR", plane.astype(np.uint16), edited)
        return folder

    def enhanced(
        self,
        path: Path,
        phases: Array,
        *,
        spacing: tuple[float, float, float] = (2.0, 1.0, 1.0),
        change: Callable[[int, int, Dataset], Dataset | None] | None = None,
        order: Callable[[int], int] = lambda number: number,
        **tags: Any,
    ) -> Path:
        """(phases, slices, rows, columns) as one multi-frame file; ``change`` edits one frame's
        functional groups or drops it, ``order`` sorts the frames."""
        frames = []
        for phase, volume in enumerate(phases):
            for z, plane in enumerate(volume):
                groups = Dataset()
                content, place = Dataset(), Dataset()
                content.TemporalPositionIndex = phase + 1
                place.ImagePositionPatient = [-20.0, -20.0, -30.0 + z * spacing[0]]
                groups.FrameContentSequence = Sequence([content])
                groups.PlanePositionSequence = Sequence([place])
                edited = groups if change is None else change(phase, z, groups)
                if edited is not None:
                    frames.append((edited, plane))
        frames = [frames[i] for i in sorted(range(len(frames)), key=order)]
        shared, measures, orientation = Dataset(), Dataset(), Dataset()
        measures.PixelSpacing = [spacing[1], spacing[2]]
        orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        shared.PixelMeasuresSequence = Sequence([measures])
        shared.PlaneOrientationSequence = Sequence([orientation])
        usual = {
            "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4.1",
            "NumberOfFrames": len(frames),
            "SharedFunctionalGroupsSequence": Sequence([shared]),
            "PerFrameFunctionalGroupsSequence": Sequence([groups for groups, _ in frames]),
            "ImageType": ["ORIGINAL", "PRIMARY"],
            "PixelData": np.stack([plane for _, plane in frames]).astype(np.uint16).tobytes(),
        }
        return self.write(path, "MR", frames[0][1].astype(np.uint16), usual | tags)


@pytest.fixture
def dicoms() -> Dicoms:
    return Dicoms()


def breast(rows: int = 80, columns: int = 60) -> Array:
    """A left breast in 12 bits: air, a half-ellipse of fat, a denser disc, some texture."""
    y, x = np.mgrid[:rows, :columns].astype(float)
    tissue = ((y - rows / 2) / (0.45 * rows)) ** 2 + (x / (0.8 * columns)) ** 2 < 1
    dense = (y - 0.45 * rows) ** 2 + (x - 0.3 * columns) ** 2 < (0.15 * rows) ** 2
    texture = 60 * np.sin(y / 3) * np.cos(x / 4)
    return np.where(tissue, 1200 + 800 * dense + texture, 40).round()


def echo(rows: int = 64, columns: int = 72) -> Array:
    """An 8-bit B-mode picture: speckle around a dark disc."""
    y, x = np.mgrid[:rows, :columns].astype(float)
    dark = (y - rows / 2) ** 2 + (x - columns / 2) ** 2 < (rows / 6) ** 2
    speckle = np.random.default_rng(5).integers(0, 60, (rows, columns))
    return np.where(dark, 30, 120) + speckle


def dynamic(phases: int = 3, slices: int = 10, rows: int = 24, columns: int = 20) -> Array:
    """(phases, slices, rows, columns): parenchyma in air, a lesion that enhances."""
    z, y, x = np.mgrid[:slices, :rows, :columns].astype(float)
    body = (y > 4) & (x > 3)
    lesion = (z - 5) ** 2 + (y - 14) ** 2 + (x - 10) ** 2 < 9
    rest = 300 + 5 * np.sin(z + 2 * y + 3 * x)
    base = np.where(body, rest, 10.0)
    curve = [0.0, 400.0, 330.0, 280.0, 250.0, 220.0]
    return np.stack([(base + curve[p] * lesion).round() for p in range(phases)])


@pytest.fixture
def pictures() -> Any:
    """The three made-up pictures, as functions."""

    class Pictures:
        pass

    made = Pictures()
    made.breast, made.echo, made.dynamic = breast, echo, dynamic  # type: ignore[attr-defined]
    return made


class Site:
    """A small site on disk; ``rows`` and ``boxes`` become its tables at ``config()``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = folder / "images"
        self.rows: list[dict[str, Any]] = []
        self.boxes: list[dict[str, Any]] = []
        self.dicoms = Dicoms()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pseudonym.key").write_text(KEY)
        (folder / "pseudonym.key").chmod(0o600)

    def add(self, case_id: str, modalities: str = "mg us mri", **values: Any) -> None:
        folder, row = self.images / f"CANARYPATH-{case_id}", dict(values)
        if "mg" in modalities:
            self.dicoms.mg(folder / "cc.dcm", breast())
            self.dicoms.mg(folder / "mlo.dcm", breast(90, 60), ViewPosition="MLO")
            row |= {"mg_cc": folder / "cc.dcm", "mg_mlo": folder / "mlo.dcm"}
        if "us" in modalities:
            self.dicoms.us(folder / "us.dcm", echo())
            row |= {"us": folder / "us.dcm"}
        if "mri" in modalities:
            self.dicoms.mri(folder / "mri", dynamic(2, 8, 20, 20))
            row |= {"mri": folder / "mri"}
        self.rows.append({"case_id": case_id} | row)

    def config(self, cache: str = "cache") -> SiteConfig:
        columns = ["case_id", *sorted({c for row in self.rows for c in row} - {"case_id"})]
        with (self.folder / "cases.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        lesions = ""
        if self.boxes:
            with (self.folder / "lesions.csv").open("w", newline="") as stream:
                names = ["case_id", "image", "x0", "y0", "z0", "x1", "y1", "z1"]
                boxes = csv.DictWriter(stream, names)
                boxes.writeheader()
                boxes.writerows(self.boxes)
            lesions = "lesions: lesions.csv,"
        (self.folder / "site.yaml").write_text(
            f"name: centre-t\nstate: state\n"
            f"data: {{cases: cases.csv, {lesions} cache: {cache}, "
            f"pseudonym_key_file: pseudonym.key, image_size: 32, volume_size: 16}}\n"
            f"superlink: {{address: 'localhost:1', root_certificates: ca.crt, private_key: node}}\n"
        )
        return load(SiteConfig, self.folder / "site.yaml")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site")


@dataclass(frozen=True)
class Fault:
    """A faulty source and the one note that it must give.

    ``make`` writes it under a folder of its own and returns the table's cell; ``says`` is a part
    of the message; ``hint``: whether there is one; ``like`` names the fault with the same message;
    ``row`` and ``box`` (x0, y0, x1, y1[, z0, z1]) go to the tables, ``limits`` replace constants.
    """

    column: str
    make: Callable[[Path], Any]
    disposition: str
    reason: str
    says: str
    hint: bool = False
    like: str = ""
    row: dict[str, Any] = field(default_factory=dict)
    box: tuple[int, ...] = ()
    phases: tuple[int, ...] = (1,)
    limits: dict[str, Any] = field(default_factory=dict)


def note_of(site: Site, fault: Fault) -> Note:
    """The note of ``fault`` out of a whole ingest, beside a sound case that is not disturbed."""
    folder = site.images / "CANARYPATH-faulty"
    folder.mkdir(parents=True)
    cell = fault.make(folder)
    site.rows.append({"case_id": "CANARYCASE", fault.column: cell} | fault.row)
    site.add("sound", "us")
    if fault.box:
        names = ("x0", "y0", "x1", "y1", "z0", "z1")
        box = dict.fromkeys(names, "") | dict(zip(names, fault.box, strict=False))
        site.boxes.append({"case_id": "CANARYCASE", "image": fault.column} | box)
    config = site.config()
    data = config.data.model_copy(update={"mri_phases": fault.phases})
    config = config.model_copy(update={"data": data})
    with pytest.MonkeyPatch.context() as patch:
        for name, value in fault.limits.items():
            patch.setattr(name, value)
        summary = ingest(config, workers=1)
    verify_cache(config.data.cache)
    assert (summary.accepted, summary.left_out) == (1, {"no usable image": 1})
    (noted,) = summary.notes
    assert (noted.row, noted.note.column) == (2, fault.column)
    outside = str(noted.note) + json.dumps(summary.as_dict())
    for private in ("CANARY", str(site.folder), site.folder.name + "/", ".dcm", "1.2.8"):
        assert private not in outside
    return noted.note


REASONS: dict[str, tuple[str, ...]] = {
    "set aside": ("implant", "special view"),
    "quarantined": ("no verified region", "text found"),
    "refused": ("damaged", "missing file", "wrong view", "gap"),
}


def invent_summary(
    seed: int,
    cases: int,
    *,
    has: tuple[float, float, float] = (0.7, 0.7, 0.5),
    faulty: float = 0.06,
    unknown: float = 0.1,
    positive: float = 0.3,
    boxed: float = 0.8,
    site: str = "centre-t",
) -> IngestSummary:
    """The summary of a made-up site, counted case by case as an ingest does.

    ``has`` are the shares of cases with mammography, ultrasound and MRI; the others are the
    shares of faulty pictures, of unknown table cells, of HER2-positive cases, of lesion boxes.
    """
    rng = np.random.default_rng(seed)

    def cell(value: Any) -> Any:
        return None if rng.random() < unknown else value

    def yes(share: float) -> int:
        return int(rng.random() < share)

    def picture(column: Any, outcome: Outcome, values: Any) -> bool:
        if rng.random() < faulty:
            kind = str(rng.choice(list(REASONS), p=[0.2, 0.3, 0.5]))
            reason = REASONS[kind][int(len(REASONS[kind]) * rng.random() ** 2)]
            message = f"expected a sound picture, got one that is {reason}"
            outcome.notes.append(Note(column, kind, reason, message))  # type: ignore[arg-type]
            return False
        outcome.accepted.append(column)
        outcome.scanners.append(str(rng.choice(values, p=[0.6, 0.3, 0.1])))
        if yes(boxed):
            outcome.boxes[column] = [[0.25, 0.75]] * (3 if column == "mri" else 2)
        return True

    makes = {
        "mg": ["Hologic", "Siemens", "not stated"],
        "us": ["Philips", "GE", "another make"],
        "mri": ["Siemens", "GE", "Philips"],
    }
    summary = IngestSummary(site, cases)
    for row in range(2, cases + 2):
        named = [m for m, share in zip(MODALITIES, has, strict=True) if yes(share)]
        outcomes: dict[Any, Outcome] = {m: Outcome() for m in named}
        for modality, outcome in outcomes.items():
            columns = [c for c in ("mg_cc", "mg_mlo") if yes(0.95)] or ["mg_cc"]
            for column in columns if modality == "mg" else [modality]:
                picture(column, outcome, makes[modality])
        ihc, tumour = cell(IHC_SCORES[int(rng.choice(len(IHC_SCORES)))]), yes(positive)
        biopsy = cell(tumour) if ihc in (None, "2") else int(ihc == "3")
        file = Path("x")
        case = Case(
            row=row,
            case_id=str(row),
            patient_id=str(row),
            mg_cc=file if "mg" in named else None,
            mg_mlo=None,
            us=(file,) if "us" in named else (),
            mri=(file,) if "mri" in named else (),
            laterality=None,
            age=cell(float(rng.integers(28, 85))),
            menopausal=cell(yes(0.6)),
            clinical_t=cell(int(rng.choice(5, p=[0.02, 0.3, 0.45, 0.18, 0.05]))),
            clinical_n=cell(int(rng.choice(4, p=[0.5, 0.35, 0.1, 0.05]))),
            multifocal=cell(yes(0.25)),
            er=cell(yes(0.7)),
            pr=cell(yes(0.6)),
            biopsy=Assay(ihc, None, biopsy),
            surgical=Assay(None, None, tumour if yes(0.5) else None),
            nat=cell(yes(0.7)),
            anti_her2=cell(tumour),
            ypt=None,
            ypn=None,
            pcr=cell(yes(0.3)),
            split=None,
        )
        split = ("train", "val", "test")[int(rng.choice(3, p=[0.7, 0.1, 0.2]))]
        present = [m for m in named if outcomes[m].accepted]
        summary.count(case, split, outcomes, present)  # type: ignore[arg-type]
    return summary


@pytest.fixture(scope="session")
def invented_summary() -> Callable[..., IngestSummary]:
    """``invent_summary``: summaries of made-up sites."""
    return invent_summary


def noter(
    tmp_path_factory: pytest.TempPathFactory, faults: Mapping[str, Fault]
) -> Callable[[str], Note]:
    """Gives the note of a fault by its name; each is ingested once."""

    @functools.cache
    def note(name: str) -> Note:
        return note_of(Site(tmp_path_factory.mktemp("site")), faults[name])

    return note


def check_note(fault: Fault, note: Note, form: re.Pattern[str]) -> None:
    """The note says of the fault what it must, in the ``form`` that every message has."""
    assert (note.disposition, note.reason) == (fault.disposition, fault.reason)
    assert fault.says in note.message
    undecoded = note.message.endswith(": it cannot be decoded")  # always with the same hint
    assert (note.hint is not None) == (fault.hint or undecoded)
    assert form.fullmatch(note.message)


def count_of_messages(faults: Mapping[str, Fault], noted: Callable[[str], Note]) -> int:
    """How many different ones there are: no two faults share one unless they say so."""
    told: dict[tuple[str, str], str] = {}
    for name, fault in faults.items():
        note = noted(name)
        first = told.setdefault((note.reason, note.message), name)
        assert first == (fault.like or name)
    return len(told)


# --- pictures -----------------------------------------------------------------------------------


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The pictures that were searched for text; none is found unless a test says otherwise."""
    seen: list[Any] = []
    monkeypatch.setattr(
        "her2_client.ingest.privacy.search.find_text", lambda picture: seen.append(picture) or []
    )
    return seen


def compress_by_gdcm(path: Path, syntax: int) -> None:
    """Rewrite a file in a compression that GDCM encodes."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def regions_of_data(*regions: tuple[tuple[int, int, int, int], int, int]) -> Sequence:
    """Ultrasound regions: corners (end-exclusive), RegionSpatialFormat and RegionDataType."""
    items = []
    for (x0, y0, x1, y1), spatial, data in regions:
        item = Dataset()
        item.RegionSpatialFormat, item.RegionDataType = spatial, data
        item.RegionLocationMinX0, item.RegionLocationMinY0 = x0, y0
        item.RegionLocationMaxX1, item.RegionLocationMaxY1 = x1 - 1, y1 - 1
        items.append(item)
    return Sequence(items)


# --- pages --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(chromium_program(), tmp_path_factory.mktemp("profile"))
    yield made
    made.close()
