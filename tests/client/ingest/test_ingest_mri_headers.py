"""Headers read fast say what the library says, in every encoding; and so do the pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from her2_client.ingest.dicom import moment
from her2_client.ingest.mri import headers
from her2_client.ingest.mri.dce import dce_mri
from her2_client.ingest.mri.headers import DATES, GEOMETRY, PHASE_KEYS, read_header
from her2_client.ingest.privacy.guard import Guard
from her2_common.cases import Box
from her2_common.errors import ImageError

SYNTAXES = [
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
]
TAGS: dict[str, Any] = {
    "ImageType": ["ORIGINAL", "PRIMARY", "M"],
    "Manufacturer": "GE MEDICAL SYSTEMS",
    "SeriesInstanceUID": "1.2.840.5",
    "SeriesDescription": "ax dyn pre",
    "PixelSpacing": [0.703125, 0.703125],
    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "ImagePositionPatient": [-170.5, -101.25, 30.0],
    "TemporalPositionIdentifier": 3,
    "AcquisitionTime": "101500.25",
    "AcquisitionDate": "20200102",
    "ContentTime": None,
    "FlipAngle": "10",
    "ScanningSequence": ["GR", "IR"],
    "SequenceName": "*fl3d1",
    "DiffusionBValue": 800.5,
    "StudyInstanceUID": "1.2.840.6",
    "StudyDate": "20200102",
    "BurnedInAnnotation": "NO",
    "PatientComments": "CANARY-7",
}


def save(dataset: Dataset, path: Path, syntax: str) -> Path:
    little = syntax != ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = syntax
    if not little:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    implicit = syntax == ImplicitVRLittleEndian
    pydicom.dcmwrite(path, dataset, implicit_vr=implicit, little_endian=little)
    return path


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_header_says_what_the_library_says(tmp_path: Path, dicoms: Any, syntax: str) -> None:
    dataset = pydicom.dcmread(
        dicoms.write(tmp_path / "a.dcm", "MR", np.ones((24, 20), np.uint16), TAGS)
    )
    block = dataset.private_block(0x0009, "CANARY-7", create=True)
    item = Dataset()
    item.PatientName, item.Rows = "CANARY-7", 7777
    nested = Sequence([item])
    nested.is_undefined_length = True
    block.add_new(1, "SQ", nested)
    dataset.ReferencedImageSequence = nested
    read = read_header(save(dataset, tmp_path / "b.dcm", syntax))
    again = pydicom.dcmread(tmp_path / "b.dcm")
    for keyword in (*GEOMETRY, *PHASE_KEYS, *DATES.values(), "Modality", "ImageType",
                    "Manufacturer", "SeriesInstanceUID", "SeriesDescription", "FlipAngle",
                    "EchoTime", "ScanningSequence", "SequenceName", "DiffusionBValue", "PatientID",
                    "StudyInstanceUID", "StudyDate", "BurnedInAnnotation", "NumberOfFrames",
                    "SOPClassUID"):  # fmt: skip
        value = again.get(keyword)
        if value is None:
            assert keyword not in read
            continue
        several = value if isinstance(value, pydicom.multival.MultiValue) else [value]
        for text, one in zip(read[keyword], several, strict=True):
            if isinstance(one, str):
                assert text == one
            else:
                assert float(text) == float(one)
    assert "CANARY-7" not in str(read)


def test_the_library_is_not_needed_for_a_sound_header(
    tmp_path: Path, dicoms: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = dicoms.write(tmp_path / "a.dcm", "MR", np.ones((24, 20), np.uint16), TAGS)
    monkeypatch.setattr(headers.dicom, "header", lambda _: pytest.fail("the slow way"))
    assert read_header(path)["Rows"] == ("24",)


def test_what_is_no_dicom(tmp_path: Path) -> None:
    for content in (b"", b"\0" * 131, b"\0" * 500, b"CANARY" * 99):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(ImageError) as caught:
            read_header(tmp_path / "a")
        assert caught.value.reason == "not DICOM"
    with pytest.raises(ImageError) as caught:
        read_header(tmp_path / "absent")
    assert caught.value.reason == "missing file"


def cube(folder: Path, box: Box | None = None) -> Any:
    guard = Guard(b"k" * 32)
    return dce_mri((folder,), box, size=16, phases=(0, 1), guard=guard).values


@pytest.mark.parametrize("syntax", [*SYNTAXES, RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_every_encoding_gives_the_same_cube(
    tmp_path: Path, dicoms: Any, pictures: Any, syntax: str
) -> None:
    folder = dicoms.mri(tmp_path / "a", pictures.dynamic(2, 8, 40, 36), spacing=(4.0, 3.0, 3.0))
    plain = cube(folder)
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        if syntax in SYNTAXES:
            save(dataset, path, syntax)
        else:
            dataset.compress(syntax, generate_instance_uid=False)
            dataset.save_as(path)
    np.testing.assert_array_equal(cube(folder), plain)


def test_sagittal_and_coronal_series_give_the_bits_of_the_axial_one(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    """The same voxels in the same places; the box counts slices along each normal."""
    phases = pictures.dynamic(2)  # (phases, z, y, x)
    depth, _, width = phases.shape[1:]
    mm = 3.0
    box = Box(7, 11, 13, 17, 3, 8)
    plain = cube(dicoms.mri(tmp_path / "axial", phases, spacing=(mm, mm, mm)), box)

    def place(x: int, y: int, z: int) -> list[float]:
        return [-20.0 + mm * x, -20.0 + mm * y, -30.0 + mm * z]

    def sagittal(_phase: int, k: int, tags: dict[str, Any]) -> dict[str, Any]:
        # row toward posterior, column toward feet: the normal points to the right, away from +x
        return tags | {
            "ImageOrientationPatient": [0, 1, 0, 0, 0, -1],
            "ImagePositionPatient": place(width - 1 - k, 0, depth - 1),
        }

    def coronal(_phase: int, k: int, tags: dict[str, Any]) -> dict[str, Any]:
        # row toward left, column toward feet: the normal points to posterior
        return tags | {
            "ImageOrientationPatient": [1, 0, 0, 0, 0, -1],
            "ImagePositionPatient": place(0, k, depth - 1),
        }

    turned = phases[:, ::-1, :, ::-1].transpose(0, 3, 1, 2)  # x backwards, z backwards, y
    folder = dicoms.mri(tmp_path / "s", turned, spacing=(mm, mm, mm), change=sagittal)
    box = Box(11, depth - 8, 17, depth - 3, width - 13, width - 7)
    np.testing.assert_array_equal(cube(folder, box), plain)
    turned = phases[:, ::-1].transpose(0, 2, 1, 3)  # y, z backwards, x
    folder = dicoms.mri(tmp_path / "c", turned, spacing=(mm, mm, mm), change=coronal)
    box = Box(7, depth - 8, 13, depth - 3, 11, 17)
    np.testing.assert_array_equal(cube(folder, box), plain)


@given(st.integers(0, 23), st.integers(0, 59), st.floats(0, 59.999))
def test_times_of_day(hour: int, minute: int, second: float) -> None:
    text = f"{hour:02d}{minute:02d}{second:09.6f}"
    assert moment("20200102", text) == ("20200102", pytest.approx(
        hour * 3600 + minute * 60 + second, abs=1e-6))  # fmt: skip
    assert moment("", f"{text[:2]}:{text[2:4]}:{text[4:]}") == moment("", text)
    assert moment("2020.01.02", text[:4]) == ("20200102", hour * 3600 + minute * 60)
