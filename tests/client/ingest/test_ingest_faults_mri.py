"""Faulty MRI series, enhanced files and NIfTI in a whole site: each its own reason and message."""

from __future__ import annotations

import gzip
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from tests.client.ingest.conftest import (
    Dicoms,
    Fault,
    check_note,
    count_of_messages,
    dynamic,
    noter,
)

from her2_client.ingest.outcome import Note

Make = Callable[[Path], Any]
"""Makes a faulty source under a folder of its own; returns what the table names."""
Tags = dict[str, Any]

DICOMS = Dicoms()
PHASES = dynamic(2, 8, 20, 20)
GREY = PHASES.transpose(3, 2, 1, 0)
"""The same as NIfTI has it: i, j, k, phase."""
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
LARGE = b"\xff\x7f" * 3
"""32,767 along each axis, in the header of a NIfTI file."""


def series(
    change: Callable[[int, int, Tags], Tags | None] | None = None,
    phases: Any = PHASES,
    after: Callable[[Path], Any] | None = None,
    **options: Any,
) -> Make:
    """A folder of single slices; ``after`` spoils what was written."""

    def make(at: Path) -> Path:
        DICOMS.mri(at / "mri", phases, change=change, **options)
        if after is not None:
            after(at / "mri")
        return at / "mri"

    return make


def every(**tags: Any) -> Callable[[int, int, Tags], Tags]:
    return lambda _phase, _z, usual: usual | tags


def one(**tags: Any) -> Callable[[int, int, Tags], Tags]:
    """One slice of phase 1 has other tags."""
    return lambda phase, z, usual: usual | tags if (phase, z) == (1, 3) else usual


def phase_by_phase(*tags: Tags) -> Callable[[int, int, Tags], Tags]:
    return lambda phase, _z, usual: usual | tags[phase]


def spoiled(change: Callable[[bytes], bytes], name: str = "1-003.dcm") -> Callable[[Path], Any]:
    def after(folder: Path) -> None:
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return after


def nifti(
    values: Any = GREY,
    affine: Any = AFFINE,
    name: str = "x.nii.gz",
    change: Callable[[bytes], bytes] = lambda content: content,
    dtype: Any = np.int16,
) -> Make:
    def make(at: Path) -> Path:
        image = nibabel.Nifti1Image(np.asarray(values).astype(dtype), affine)
        nibabel.save(image, at / name)
        (at / name).write_bytes(change((at / name).read_bytes()))
        return at / name

    return make


def several(*makes: Make) -> Make:
    """``;`` between what they give, each under a folder of its own."""

    def make(at: Path) -> str:
        cells = []
        for number, each in enumerate(makes):
            (at / str(number)).mkdir()
            cells.append(str(each(at / str(number))))
        return ";".join(cells)

    return make


def enhanced(change: Any = None, phases: Any = PHASES, **tags: Any) -> Make:
    return lambda at: DICOMS.enhanced(at / "x.dcm", phases, change=change, **tags)


def single(at: Path) -> Path:
    return DICOMS.mri(at / "mri", PHASES) / "0-003.dcm"


def two_dynamics(at: Path) -> Path:
    for number in (1, 2):
        place = [200.0 * number, 0.0]

        def change(_p: int, z: int, usual: Tags, n: int = number, place: Any = place) -> Tags:
            return usual | {"SeriesInstanceUID": f"1.2.{n}", "ImagePositionPatient": [*place, z]}

        DICOMS.mri(at / str(number), PHASES, change=change)
    return at


def mixed(phase: int, z: int, usual: Tags) -> Tags:
    """Two slices have changed phases."""
    other = {(1, 3): 1, (0, 4): 2}.get((phase, z))
    return usual if other is None else usual | {"TemporalPositionIdentifier": other}


def other_matrix(folder: Path) -> None:
    tags = {
        "PixelSpacing": [1.0, 1.0],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [-20.0, -20.0, -24.0],
        "TemporalPositionIdentifier": 2,
    }
    DICOMS.write(folder / "1-003.dcm", "MR", np.ones((24, 20), np.uint16), tags)


def copied(folder: Path) -> None:
    dataset = pydicom.dcmread(folder / "1-003.dcm")
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset.save_as(folder / "x.dcm")


def pipe(at: Path) -> Path:
    os.mkfifo(at / "pipe")
    return at / "pipe"


def with_nan() -> Any:
    values = GREY.astype(np.float32)
    values[3:9, 3:9, 3:5, 1] = np.nan
    return values


def cut_enhanced(at: Path) -> Path:
    path = enhanced()(at)
    path.write_bytes(path.read_bytes()[:-3000])
    return path


def without_position(_phase: int, _z: int, groups: Dataset) -> Dataset:
    del groups.PlanePositionSequence
    return groups


def packed(at: Path) -> Path:
    """A slice in a transfer syntax that nobody knows."""
    folder = DICOMS.mri(at / "mri", PHASES)
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID("1.2.840.10008.1.2.4.103")
        dataset.PixelData = pydicom.encaps.encapsulate([bytes(100)])
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(path)
    return folder


def folder_named_nifti(at: Path) -> Path:
    (at / "x.nii").mkdir()
    return at / "x.nii"


def text_alone(at: Path) -> Path:
    (at / "x.txt").write_bytes(b"CANARY")
    return at


def folder_of_nifti(at: Path) -> Path:
    for number in range(2):
        nifti(PHASES[number].T, name=f"{number}.nii")(at)
    return at


def zipped(at: Path) -> Path:
    with zipfile.ZipFile(at / "x.zip", "w") as archive:
        archive.writestr("x.dcm", "CANARY")
    return at / "x.zip"


def both_formats(at: Path) -> str:
    return f"{DICOMS.mri(at / 'mri', PHASES)};{nifti(PHASES[0].T)(at)}"


CONTRADICTORY = (
    {"TemporalPositionIdentifier": None, "AcquisitionTime": "100200",
     "SeriesDescription": "dyn pre", "SeriesInstanceUID": "1.2.1"},
    {"TemporalPositionIdentifier": None, "AcquisitionTime": "100100",
     "SeriesDescription": "dyn 1st pass", "SeriesInstanceUID": "1.2.2"},
)  # fmt: skip
ONE = series(phases=PHASES[:1])
RGB = np.zeros((8, 8, 8), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])


def refused(make: Make, reason: str, says: str, **more: Any) -> Fault:
    return Fault("mri", make, "refused", reason, says, **more)


def quarantined(make: Make, reason: str, says: str) -> Fault:
    return Fault("mri", make, "quarantined", reason, says, hint=True)


# fmt: off
FAULTS: dict[str, Fault] = {
    # files and folders
    "missing": refused(lambda at: at / "none", "missing file", "expected a folder or file"),
    "pipe": refused(pipe, "not a file", "expected a file, got something else"),
    "empty folder": refused(lambda at: at, "not DICOM", "expected DICOM slices, got none"),
    "text alone": refused(text_alone, "not DICOM", "got another format"),
    "folder of NIfTI": refused(folder_of_nifti, "not DICOM", "got NIfTI", hint=True),
    "zip file": refused(zipped, "not DICOM", "got a zip file", hint=True),
    "too many files": refused(series(), "too many files", "expected at most 3 files in a folder",
                              limits={"her2_client.ingest.mri.scan.MAX_FILES": 3}),
    # slices
    "one slice": refused(single, "one slice only", "got one DICOM slice"),
    "one position": refused(series(every(ImagePositionPatient=[0, 0, 0])), "one slice only",
                            "expected slices at several positions, got 16 at one"),
    "gap": refused(series(lambda p, z, t: None if z == 3 else t), "gap",
                   "expected slices every 2.00 mm, got a step of 4.00 mm"),
    "slice missing": refused(series(lambda p, z, t: None if (p, z) == (1, 3) else t),
                             "incomplete phase", "got 7 in phase 1"),
    "slice of another modality": refused(series(one(Modality="CT")), "incomplete phase", "",
                                         like="slice missing"),
    "empty slice": refused(series(after=spoiled(lambda b: b"")), "incomplete phase", "",
                           like="slice missing"),
    "slice cut in the header": refused(series(after=spoiled(lambda b: b[:300])),
                                       "incomplete phase", "", like="slice missing"),
    "slice cut in the pixels": refused(series(after=spoiled(lambda b: b[:-300])), "truncated",
                                       "truncated DICOM: expected 800 bytes of pixels, got 500"),
    "slice without pixels": refused(series(one(PixelData=None)), "truncated",
                                    "expected pixel data, got a header alone"),
    "slice copied": refused(series(after=copied), "duplicate slice", "got 2 at 1 of 16"),
    "another matrix": refused(series(after=other_matrix), "unequal geometry",
                              "expected one matrix in 16 slices, got another in 1"),
    "another orientation": refused(series(one(ImageOrientationPatient=[0, 1, 0, 0, 0, -1])),
                                   "unequal geometry", "expected one orientation in 16 slices"),
    "another spacing": refused(series(one(PixelSpacing=[1.3, 1.3])), "unequal geometry",
                               "expected one pixel spacing in 16 slices"),
    "moved in the plane": refused(series(one(ImagePositionPatient=[-20.0, -12.0, -24.0])),
                                  "unequal geometry", "expected one place in the plane"),
    "no position": refused(series(one(ImagePositionPatient=None)), "no geometry",
                           "expected ImagePositionPatient with 3 finite values, got 0"),
    "spacing of zero": refused(series(every(PixelSpacing=[0.0, 0.0])), "no geometry",
                               "expected a pixel spacing of 0.01 to 100.0 mm"),
    "no orientation": refused(series(every(ImageOrientationPatient=[0.0] * 6)), "no geometry",
                              "expected two perpendicular unit vectors"),
    "far away": refused(series(every(ImagePositionPatient=[1e9, 0, 0])), "no geometry",
                        "expected a position within 100000 mm"),
    "huge matrix": refused(series(every(Rows=65535, Columns=65535)), "too large",
                           "expected 1 to 268435456 voxels in a phase, got 34358689800"),
    "colour": refused(series(every(SamplesPerPixel=3, PhotometricInterpretation="RGB",
                                   PlanarConfiguration=0, PixelData=bytes(20 * 20 * 6))),
                      "not grey", "expected a grey slice, got colour"),
    "slope of zero": refused(series(every(RescaleSlope=0, RescaleIntercept=0)), "rescale",
                             "expected a finite RescaleSlope other than 0", hint=True),
    "infinite": refused(series(every(RescaleSlope="1e300", RescaleIntercept=0)), "not finite",
                        "expected finite values"),
    "one value": refused(series(phases=np.full((2, 8, 20, 20), 300.0)), "blank image",
                         "got one constant value"),
    "below zero": refused(series(every(RescaleSlope=-1, RescaleIntercept=-5000)), "blank image",
                          "expected bright tissue, got none above zero"),
    "video": refused(packed, "no decoder", "got MPEG-4", hint=True),
    "box outside": refused(series(), "box outside", "expected a box within 20 x 20 x 8",
                           box=(2, 2, 30, 8, 1, 4)),
    # phases
    "one phase": refused(ONE, "one phase only", "got one phase of 8 slices", hint=True),
    "one phase of two missing": refused(several(ONE, lambda at: at / "none"), "missing file", "",
                                        like="missing"),
    "two phases for one": refused(several(series(), ONE), "mixed phases",
                                  "expected one phase in each folder, got 2"),
    "one folder twice": refused(lambda at: f"{ONE(at)};{at / 'mri'}", "duplicate slice",
                                "expected another folder for each phase"),
    "phases of two grids": refused(several(ONE, series(phases=PHASES[:1, :, :-1])),
                                   "unequal geometry", "in 2 phases, got 2"),
    "too few phases": refused(series(), "too few phases", "expected 3 phases at least, got 2",
                              phases=(1, 2)),
    "mixed phases": refused(series(mixed), "mixed phases",
                            "got 2 of one phase at positions where another has none"),
    "no times": refused(series(every(TemporalPositionIdentifier=None)), "phases unclear",
                        "expected 2 phases to differ in one of TemporalPositionIdentifier",
                        hint=True),
    "contradictory times": refused(series(phase_by_phase(*CONTRADICTORY)),
                                   "contradictory phases", "expected AcquisitionTime", hint=True),
    "two dynamics": refused(two_dynamics, "several dynamic series", "got 2 of 2", hint=True),
    "subtractions": refused(series(every(ImageType=["DERIVED", "SECONDARY", "SUBTRACTION"])),
                            "derived images", "16 images of other kinds: subtraction series"),
    "localisers": refused(series(every(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
                          "derived images", "16 images of other kinds: localiser series"),
    "projections": refused(series(every(SeriesDescription="MIP CANARY")), "derived images",
                           "16 images of other kinds: projection series"),
    "diffusion": refused(series(every(SeriesDescription="ep2d DWI CANARY")),
                         "no dynamic series", "16 images of other kinds: another series"),
    "CT": refused(series(every(Modality="CT")), "wrong modality", "expected modality MR, got 16"),
    "screen shots": quarantined(series(every(SOPClassUID="1.2.840.10008.5.1.4.1.1.7")),
                                "secondary capture", "of kind secondary capture alone"),
    "reports": quarantined(series(every(SOPClassUID="1.2.840.10008.5.1.4.1.1.104.1")),
                           "encapsulated PDF", "of kind encapsulated PDF alone"),
    "burned in": quarantined(series(every(BurnedInAnnotation="YES")), "burned-in annotation",
                             "expected pixels without text, got BurnedInAnnotation YES"),
    # enhanced
    "enhanced, no groups": refused(enhanced(PerFrameFunctionalGroupsSequence=None),
                                   "no geometry", "functional groups for 16 frames, got none"),
    "enhanced, few groups": refused(enhanced(NumberOfFrames=99), "damaged",
                                    "functional groups for 99 frames, got 16"),
    "enhanced, no position": refused(enhanced(without_position), "no geometry", "",
                                     like="no position"),
    "enhanced, cut": refused(cut_enhanced, "truncated", "expected 12800 bytes of pixels"),
    "enhanced, one phase": refused(enhanced(phases=PHASES[:1]), "one phase only", "",
                                   like="one phase", hint=True),
    # NIfTI
    "NIfTI missing": refused(lambda at: at / "none.nii.gz", "missing file",
                             "expected a file, got none of that name"),
    "NIfTI folder": refused(folder_named_nifti, "not a file", "expected a NIfTI file"),
    "NIfTI empty": refused(nifti(change=lambda b: b""), "empty file", "got an empty file"),
    "NIfTI magic": refused(nifti(name="x.nii", change=lambda b: b[:344] + b"CANA" + b[348:]),
                           "not NIfTI", "expected NIfTI, got another format"),
    "NIfTI not packed": refused(nifti(change=gzip.decompress), "not NIfTI",
                                "expected a file compressed by gzip", hint=True),
    "NIfTI cut": refused(nifti(name="x.nii", change=lambda b: b[:-900]), "truncated",
                         "truncated NIfTI: expected 13152 bytes at least, got 12252"),
    "NIfTI cut, packed": refused(nifti(change=lambda b: b[: len(b) // 2]), "truncated",
                                 "truncated NIfTI: the file ends early"),
    "NIfTI 2-D": refused(nifti(np.ones((20, 20))), "not a volume", "got 2: 20 x 20"),
    "NIfTI 5-D": refused(nifti(np.ones((8, 8, 8, 2, 2))), "not a volume", "8 x 8 x 8 x 2 x 2"),
    "NIfTI of one slice": refused(nifti(np.ones((20, 20, 1))), "one slice only",
                                  "expected several slices, got 1"),
    "NIfTI enormous": refused(nifti(name="x.nii", change=lambda b: b[:42] + LARGE + b[48:]),
                              "too large", "voxels in a phase, got 35181150961663"),
    "NIfTI colour": refused(nifti(RGB, dtype=RGB.dtype), "not grey", "got colour or complex"),
    "NIfTI not a number": refused(nifti(with_nan(), dtype=np.float32), "not finite", "",
                                  like="infinite"),
    "NIfTI one value": refused(nifti(GREY * 0 + 7), "blank image", "", like="one value"),
    "NIfTI sheared": refused(nifti(affine=AFFINE + 0.3 * np.eye(4, k=1)), "sheared geometry",
                             "expected perpendicular axes, got a cosine of 0.29"),
    "NIfTI without affine": refused(nifti(name="x.nii", change=lambda b: b[:252] + bytes(4) +
                                          b[256:]), "no geometry", "expected an sform or a qform"),
    "NIfTI of no width": refused(nifti(affine=np.diag([1e-9, 1, 1, 1])), "no geometry",
                                 "expected an affine with voxels of"),
    "NIfTI of two grids": refused(several(nifti(PHASES[0].T), nifti(PHASES[0].T[:-1])),
                                  "unequal geometry", "in all phases, got several"),
    "NIfTI 4-D among files": refused(several(nifti(), nifti(PHASES[0].T)), "mixed phases",
                                     "expected one phase in each of 2 files, got 2 in one"),
    "DICOM and NIfTI": refused(both_formats, "mixed formats", "got 1 of 2 as NIfTI"),
}
# fmt: on

FORM = re.compile(r"(phase \d+: )?expected .+, got .+|truncated (DICOM|NIfTI): .+")
"""How every message is built."""


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Note]:
    return noter(tmp_path_factory, FAULTS)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_gets_its_disposition_reason_and_message(
    noted: Callable[[str], Note], name: str
) -> None:
    check_note(FAULTS[name], noted(name), FORM)


def test_different_faults_have_different_messages(noted: Callable[[str], Note]) -> None:
    assert count_of_messages(FAULTS, noted) >= 50
