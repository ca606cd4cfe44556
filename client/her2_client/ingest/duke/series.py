"""The image folders of Duke-Breast-Cancer-MRI -> the folders of a patient's dynamic series.

1. Every folder that holds files and lies under a folder ``Breast_MRI_<number>`` is a series. That
   is so in both layouts of TCIA's downloader: the descriptive one
   (``Breast_MRI_001/01-01-1990-NA-MRI BREAST-97538/5.000000-ax dyn 1st pass-39884/1-001.dcm``) and
   the classic one (``Breast_MRI_001/<study UID>/<series UID>/1-001.dcm`` with ``metadata.csv``).
2. A series' name is its SeriesDescription; without one, what metadata.csv or the folder says. The
   name tells whether it is dynamic, and which phase: 0 is before contrast.

   | phase | names |
   |---|---|
   | 0 | ``ax dyn pre``, ``ax 3d pre``, bare ``ax 3d dyn``, ``Ax Vibrant MultiPhase`` |
   | 1 | ``ax dyn 1st pass``, ``ax dyn 1st pas``, ``1st ax dyn``, ``Ph1/ax 3d dyn``, ``Ph1ax dyn`` |
   | 2 to 9 | the same with ``2nd`` or ``Ph2``, and so on |
   | none | ``ax t1``, ``ax t1 pre``, segmentations, subtractions, projections |

3. The headers must agree: one patient, MR, and phases whose times rise with their numbers. Where
   names and times contradict each other, or a phase is named twice or left out, the patient's
   images are not used, and the reason is counted. A wrong phase would pass unseen; a missing
   patient does not.
4. One dynamic folder in which positions repeat holds all its phases and is used as it is.

Names as public readers of the collection list them (BiomedSciAI/fuse-med-ml, fuseimg/datasets/
duke; nnDetection, tasks/Task042_Duke). Two patients are known to be faulty and are treated by hand
there and elsewhere: Breast_MRI_120, whose passes after contrast bear the name of the one before it,
and Breast_MRI_596, whose phases are there twice. Nothing here knows their numbers: point 3 finds
them.
"""

from __future__ import annotations

import csv
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from her2_client.ingest import dicom
from her2_client.ingest.dicom import Moment, moment, moment_of, number
from her2_client.ingest.mri.headers import DATES, PHASE_KEYS, WITHIN_SERIES
from her2_common.errors import ImageError

DYNAMIC: Final = re.compile(r"dyn|vibrant|multi ?phase|\b3d pre\b")
NOT_A_PHASE: Final = re.compile(
    r"(?<![a-z])(sub(tract\w*)?|mip|proj\w*|seg\w*|adc|dwi|loc\w*|reformat\w*)(?![a-z])"
)
PASS: Final = re.compile(r"(?<![0-9])([1-9])(?:st|nd|rd|th)(?![a-z])|(?<![a-z])ph ?([1-9])")
DESCRIPTIVE: Final = re.compile(r"\d+(?:\.\d+)?-(.*)-\d+")
"""Series number, name without its special characters, end of the UID."""
PATIENT_FOLDER: Final = re.compile(r"Breast_MRI_\d{1,6}")
DERIVED: Final = {"SUBTRACT", "SUBTRACTION", "SUB", "MIP", "PROJECTION IMAGE", "LOCALIZER"}

SAME_LEVEL_MM: Final = 0.05
_HEAD: Final = [
    "Modality", "ImageType", "PatientID", "StudyInstanceUID", "SeriesInstanceUID",
    "SeriesDescription", "SeriesNumber", *PHASE_KEYS, *DATES.values(),
]  # fmt: skip
_PLACE: Final = [
    "InstanceNumber", "Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient",
]  # fmt: skip


@dataclass
class Files:
    """What lies under the download folder. ``named`` is metadata.csv's name of a series folder."""

    clinical: list[Path] = field(default_factory=list)
    boxes: list[Path] = field(default_factory=list)
    series: dict[str, list[Path]] = field(default_factory=dict)
    named: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Series:
    """One folder of images of one series; ``when`` runs along ``PHASE_KEYS``."""

    folder: Path
    phase: int
    number: int
    study: str
    uid: str
    when: tuple[Moment | None, ...]
    files: int


@dataclass(frozen=True)
class Grid:
    """The first phase's matrix. ``rising`` says how slices that are counted by InstanceNumber lie
    along the slice normal: True upwards, False downwards, None neither."""

    rows: int
    columns: int
    slices: int
    rising: bool | None


@dataclass(frozen=True)
class Dynamic:
    """A patient's dynamic series: one folder a phase, the one before contrast first; or one
    folder that holds all phases."""

    folders: tuple[Path, ...]
    grid: Grid


# --- folders ------------------------------------------------------------------------------------


def find_files(root: Path) -> Files:
    """The spreadsheets and series folders under ``root``; links to folders are not followed."""
    found = Files()
    for place, folders, names in os.walk(root):
        folders.sort()
        folder = Path(place)
        for name in sorted(names):
            stem, _, ending = name.lower().rpartition(".")
            stem = re.sub(r"[ -]+", "_", stem)
            if ending in ("xlsx", "csv") and stem == "clinical_and_other_features":
                found.clinical.append(folder / name)
            elif ending in ("xlsx", "csv") and stem == "annotation_boxes":
                found.boxes.append(folder / name)
            elif name.lower() == "metadata.csv":
                found.named.update(_metadata(folder / name))
        patient = next((p for p in folder.relative_to(root).parts if _is_patient(p)), None)
        if patient is not None and any(_is_image(name) for name in names):
            found.series.setdefault(patient, []).append(folder)
    return found


def _is_patient(name: str) -> bool:
    return PATIENT_FOLDER.fullmatch(name) is not None


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(".dcm")


def _metadata(path: Path) -> Iterator[tuple[Path, str]]:
    """(series folder, series name) from the downloader's list; nothing if it is another file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            for row in csv.DictReader(stream):
                place, name = row.get("File Location"), row.get("Series Description")
                if place and name:
                    yield path.parent / PurePosixPath(place.replace("\\", "/")), name
    except (OSError, UnicodeDecodeError, csv.Error):
        return


# --- names --------------------------------------------------------------------------------------


def phase_of(name: str) -> int | None:
    """The phase that a series' name tells, 0 before contrast; None for a series of another kind.

    >>> phase_of("ax dyn pre"), phase_of("Ph2/ax 3d dyn"), phase_of("ax dyn 1st pas")
    (0, 2, 1)
    >>> phase_of("ax 3d dyn"), phase_of("ax t1 tse +c"), phase_of("SUB ax dyn 1st pass")
    (0, None, None)
    """
    plain = " ".join(re.sub(r"[^a-z0-9]+", " ", name.lower()).split())
    if not DYNAMIC.search(plain) or NOT_A_PHASE.search(plain):
        return None
    found = PASS.search(plain)
    return int(found.group(1) or found.group(2)) if found else 0


def _folder_name(folder: Path, named: Mapping[Path, str]) -> str:
    described = DESCRIPTIVE.fullmatch(folder.name)
    return named.get(folder, described.group(1) if described else "")


# --- headers ------------------------------------------------------------------------------------


def _images(folder: Path) -> list[Path]:
    with dicom.reading():
        return sorted(p for p in folder.iterdir() if _is_image(p.name) and p.is_file())


def _header(path: Path, tags: Sequence[str]) -> Dataset:
    with dicom.reading():
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(tags))


def _series(folder: Path, patient: str, named: Mapping[Path, str]) -> Series | None:
    """The series in ``folder``; None where it is no phase of a dynamic series."""
    name = _folder_name(folder, named)
    told = phase_of(name)
    paths = _images(folder)
    try:
        head = _header(paths[0], _HEAD)
    except ImageError:
        if name and told is None:  # a damaged file of a series that is not wanted does no harm
            return None
        raise
    with dicom.reading():
        kinds = {str(kind).upper() for kind in head.get("ImageType") or ()}
        described = str(head.get("SeriesDescription") or "").strip()
        if head.get("Modality") != "MR" or kinds & DERIVED:
            return None
        phase = phase_of(described) if described else told
        if told is not None and phase != told:
            raise ImageError(
                "expected folder and header to name one phase, got two",
                reason="series order unclear",
            )
        if phase is None:
            return None
        owner = str(head.get("PatientID") or patient).strip()
        if owner != patient:
            raise ImageError(
                "expected images of the folder's patient, got another's", reason="another patient"
            )
        return Series(
            folder=folder,
            phase=phase,
            number=int(head.get("SeriesNumber") or 0),
            study=str(head.get("StudyInstanceUID") or ""),
            uid=str(head.get("SeriesInstanceUID") or ""),
            when=tuple(_moment(head, key) for key in PHASE_KEYS),
            files=len(paths),
        )
    raise AssertionError  # pragma: no cover - `reading` never swallows


def _moment(head: Dataset, key: str) -> Moment | None:
    text = str(head.get(key) or "").strip()
    if key == "AcquisitionDateTime":
        return moment_of(text)
    if key in DATES:
        return moment(str(head.get(DATES[key]) or ""), text)
    value = number(text)
    return None if value is None else ("", value)


def grid_of(folder: Path) -> tuple[Grid, int]:
    """The matrix in ``folder``, and how many images each position has.

    Slices are counted in the order in which InstanceNumber first reaches their position, so that
    a folder with several phases counts like one with one.

    Raises:
        ImageError: no geometry, or positions that do not all occur equally often.
    """
    places: list[tuple[int | None, float]] = []
    sizes: set[tuple[int, int]] = set()
    for path in _images(folder):
        head = _header(path, _PLACE)
        with dicom.reading():
            position = head.get("ImagePositionPatient")
            directions = head.get("ImageOrientationPatient")
            if position is None or directions is None or "Rows" not in head:
                raise ImageError(
                    "expected positions and orientation, got none", reason="no geometry"
                )
            axes = np.array([float(v) for v in directions]).reshape(2, 3)  # row, column
            along = float(np.cross(axes[0], axes[1]) @ np.array([float(v) for v in position]))
            number = head.get("InstanceNumber")
            places.append((None if number is None else int(number), along))
            sizes.add((int(head.Rows), int(head.Columns)))
    if len(sizes) != 1 or not np.isfinite([along for _, along in places]).all():
        raise ImageError("expected one matrix, got several", reason="unequal geometry")
    heights = sorted(along for _, along in places)
    level, levels = {heights[0]: 0}, 0
    for below, above in pairwise(heights):
        levels += above - below > SAME_LEVEL_MM
        level[above] = levels
    counts = np.bincount([level[along] for _, along in places])
    if len(set(counts.tolist())) != 1:
        raise ImageError("expected every position equally often, got some more often", reason="gap")
    rows, columns = sizes.pop()
    return Grid(rows, columns, len(counts), _rising(places, level)), int(counts[0])


def _rising(places: Sequence[tuple[int | None, float]], level: Mapping[float, int]) -> bool | None:
    numbers = [number for number, _ in places if number is not None]
    if len(numbers) < len(places) or len(set(numbers)) < len(numbers):
        return None
    counted = [level[along] for _, along in sorted(places, key=lambda place: place[0] or 0)]
    order = list(dict.fromkeys(counted))
    if order == sorted(order):
        return True
    return False if order == sorted(order, reverse=True) else None


# --- a patient ----------------------------------------------------------------------------------


def dynamic_series(patient: str, folders: Sequence[Path], named: Mapping[Path, str]) -> Dynamic:
    """The dynamic series among a patient's series folders.

    Raises:
        ImageError: there is none, or names and headers do not tell its phases with certainty;
            ``reason`` says which.
    """
    studies: dict[str, list[Series]] = defaultdict(list)
    for folder in folders:
        series = _series(folder, patient, named)
        if series is not None:
            studies[series.study].append(series)
    if not studies:
        raise ImageError("expected a dynamic series, got none", reason="no dynamic series")
    found, errors = [], []
    for _, members in sorted(studies.items()):
        try:
            found.append(_phases(members))
        except ImageError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    if len(found) > 1:
        raise ImageError("expected one study, got several", reason="several studies")
    return found[0]


def _phases(members: Sequence[Series]) -> Dynamic:
    phases: dict[int, Series] = {}
    for series in sorted(members, key=lambda s: (s.phase, s.number, str(s.folder))):
        first = phases.setdefault(series.phase, series)
        if first is not series and not _same_acquisition(first, series):
            raise ImageError(
                "expected one series a phase, got two of one name", reason="phase named twice"
            )
    ordered = [phases[phase] for phase in sorted(phases)]
    if len(ordered) > 1:
        if 0 not in phases:
            raise ImageError(
                "expected a phase before contrast, got none", reason="no phase before contrast"
            )
        if sorted(phases) != list(range(len(phases))):
            raise ImageError("expected phases without a gap, got a gap", reason="phase missing")
        _check_times(ordered)
    grid, repeats = grid_of(ordered[0].folder)
    if len(ordered) > 1 and repeats > 1:
        raise ImageError("expected one phase a folder, got several", reason="phases mixed")
    if len(ordered) == 1 and repeats == 1:
        raise ImageError(
            "expected a phase before and one after contrast, got one", reason="one phase only"
        )
    return Dynamic(tuple(series.folder for series in ordered), grid)


def _same_acquisition(one: Series, other: Series) -> bool:
    """Whether two series of one name are the same images, downloaded or archived twice."""
    if one.files != other.files:
        return False
    if one.uid and one.uid == other.uid:
        return True
    return one.when == other.when and any(moment is not None for moment in one.when)


def _check_times(ordered: Sequence[Series]) -> None:
    """No tag that all phases have may fall, up to the first that tells them all apart.

    Where none tells them apart, the names decide. Scanners that split one acquisition into series
    give all of them one AcquisitionTime; such a tag tells nothing. TriggerTime counts from the
    start of each series and orders none.
    """
    for place, key in enumerate(PHASE_KEYS):
        if key in WITHIN_SERIES:
            continue
        moments = [series.when[place] for series in ordered]
        known = [moment for moment in moments if moment is not None]
        if len(known) < len(ordered):
            continue
        if known != sorted(known):
            raise ImageError(
                "expected times that rise with the phases, got another order",
                reason="series order unclear",
            )
        if len(set(known)) == len(known):
            return
