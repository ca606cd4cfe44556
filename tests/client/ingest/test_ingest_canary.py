"""Promise: nothing identifying is in any byte that an ingest writes or prints.

Canaries stand wherever an identifier can stand: in a tag of every kind, nested, in private tags,
overlays and icon images, in NIfTI, PNG and JPEG headers, in file names and table cells. Some of the
images are sound, others broken in ways that tempt a program to quote them. Then every byte of the
cache, the state folder, the screen and the JSON is searched, in every encoding that text takes.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import typer
from PIL import Image, PngImagePlugin
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from typer.testing import CliRunner

from her2_client.check import check_command
from her2_client.ingest.command import ingest
from her2_common.console import console

WORD = "CANARY"
NUMBER = 2_025_170_471
"""A canary for tags that hold numbers; its digits and its bytes are searched for."""
DATE = "19510704"
LONG_ENOUGH = 8
"""Bytes below which base64 is met by chance in a megabyte."""
UID = "1.2.826.0.1.3680043.2.471100.4711"

TEXT = {
    "AE": ("StationAETitle", f"{WORD}AE"),
    "AS": ("PatientAge", "047Y"),
    "CS": ("BodyPartExamined", f"{WORD}CS"),
    "DA": ("PatientBirthDate", DATE),
    "DS": ("PatientWeight", str(NUMBER)),
    "DT": ("DateTime", DATE + "112233"),
    "IS": ("SeriesNumber", str(NUMBER)),
    "LO": ("PatientID", f"{WORD}LO"),
    "LT": ("PatientComments", f"{WORD}LT"),
    "PN": ("PatientName", f"{WORD}PN^{WORD}"),
    "SH": ("AccessionNumber", f"{WORD}SH"),
    "ST": ("InstitutionAddress", f"{WORD}ST"),
    "UC": ("LongCodeValue", f"{WORD}UC"),
    "UI": ("StudyInstanceUID", UID),
    "UR": ("RetrieveURL", f"http://{WORD}.example"),
    "UT": ("URNCodeValue", f"{WORD}UT"),
}
"""A standard tag of each text VR (DICOM PS3.5 6.2)."""
DESCRIPTIONS = ("StudyDescription", "SeriesDescription", "ProtocolName", "ImageComments",
                "InstitutionName", "OperatorsName", "ReferringPhysicianName", "DeviceSerialNumber",
                "StationName", "OtherPatientIDs", "EthnicGroup", "Manufacturer",
                "ManufacturerModelName", "BurnedInAnnotation", "DerivationDescription")  # fmt: skip


def plant(path: Path) -> None:
    """Canaries in every kind of place of one DICOM file, the pixels aside."""
    dataset = dcmread(path)
    for vr, (keyword, value) in TEXT.items():
        if vr not in ("UI",):
            setattr(dataset, keyword, value)
    dataset.StudyInstanceUID = UID
    dataset.SeriesInstanceUID = UID + ".2"
    dataset.FrameOfReferenceUID = UID + ".3"
    for keyword in DESCRIPTIONS:
        setattr(
            dataset, keyword, f"{WORD} {keyword}"[:16] if keyword != "BurnedInAnnotation" else ""
        )
    dataset.add_new(0x00080301, "US", 4711)  # a public number
    block = dataset.private_block(0x0099, f"{WORD} CREATOR", create=True)
    for offset, (vr, value) in enumerate(
        [
            ("LO", f"{WORD}PRIVATE"),
            ("UN", f"{WORD}UN".encode()),
            ("OB", f"{WORD}OB".encode()),
            ("OW", f"{WORD}OWOW".encode()),
            ("FD", float(NUMBER)),
            ("SL", NUMBER),
            ("UL", NUMBER),
            ("PN", f"{WORD}^PRIVATE"),
        ]
    ):
        block.add_new(offset, vr, value)
    nested = Dataset()
    nested.PatientName = f"{WORD}^NESTED"
    nested.CodeMeaning = f"{WORD} MEANING"
    deeper = Dataset()
    deeper.PatientID = f"{WORD}DEEP"
    nested.RequestAttributesSequence = Sequence([deeper])
    dataset.RequestAttributesSequence = Sequence([nested])
    icon = Dataset()
    icon.Rows = icon.Columns = 4
    icon.SamplesPerPixel, icon.PhotometricInterpretation = 1, "MONOCHROME2"
    icon.BitsAllocated = icon.BitsStored = 8
    icon.HighBit, icon.PixelRepresentation = 7, 0
    icon.PixelData = f"{WORD}ICON!!!!!!".encode()
    dataset.IconImageSequence = Sequence([icon])
    overlay = f"{WORD}OVERLAY".encode()
    dataset.add_new(0x60000010, "US", 8)
    dataset.add_new(0x60000011, "US", 13)
    dataset.add_new(0x60000022, "LO", f"{WORD} DESCRIPTION")
    dataset.add_new(0x60000040, "CS", "G")
    dataset.add_new(0x60000050, "SS", [1, 1])
    dataset.add_new(0x60000100, "US", 1)
    dataset.add_new(0x60000102, "US", 0)
    dataset.add_new(0x60003000, "OW", overlay + b"\0" * (len(overlay) % 2))
    dataset.save_as(path)


def needles() -> Iterator[tuple[str, bytes]]:
    """What a canary looks like in a file, in every encoding that text takes."""
    for word in (WORD, WORD.lower(), str(NUMBER), DATE, "1951-07-04", UID):
        raw = word.encode()
        yield f"{word} plain", raw
        yield f"{word} UTF-16", word.encode("utf-16-le")
        yield f"{word} UTF-16 BE", word.encode("utf-16-be")
        yield f"{word} UTF-32", word.encode("utf-32-le")
        yield f"{word} hex", raw.hex().encode()
        yield f"{word} backwards", raw[::-1]
        for lead in range(3):  # base64 at each of its three alignments, the whole groups of it
            text = base64.b64encode(b"\0" * lead + raw)[
                4 if lead else 0 : (lead + len(raw)) // 3 * 4
            ]
            if len(text) >= LONG_ENOUGH:
                yield f"{word} base64+{lead}", text
    yield "number as bytes", struct.pack("<I", NUMBER)
    yield "number as bytes, BE", struct.pack(">I", NUMBER)
    yield "number as double", struct.pack("<d", float(NUMBER))


def assert_clean(where: str, data: bytes) -> None:
    for name, needle in needles():
        assert needle not in data, f"{name} in {where}"


@pytest.fixture
def planted(site: Any, pictures: Any) -> Any:
    """Sound and broken cases of every modality and format, a canary wherever one can stand."""
    for number in range(6):
        site.add(f"{WORD}-{number}", patient_id=f"{WORD}P{number}", laterality="L", biopsy_ihc=3)
    folder = site.images / f"{WORD}-OTHER"
    for path in site.images.rglob("*.dcm"):
        plant(path)

    def edit(path: Path, **tags: Any) -> None:
        dataset = dcmread(path)
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
        dataset.save_as(path)

    def named(number: int, column: str) -> Path:
        return Path(site.rows[number][column])

    # Case 0 is sound. The others tempt a message to quote a tag.
    edit(named(1, "mg_cc"), Modality=WORD)
    edit(named(1, "mg_mlo"), ViewPosition=WORD)
    edit(named(1, "us"), PhotometricInterpretation=WORD)
    edit(named(2, "mg_cc"), PresentationIntentType=WORD)
    edit(named(2, "mg_mlo"), ImageLaterality=WORD)
    edit(named(2, "us"), SequenceOfUltrasoundRegions=None)  # quarantined
    for path in named(2, "mri").iterdir():
        edit(path, ImageType=["DERIVED", "SECONDARY", "SUBTRACT", WORD])
    data = named(3, "mg_cc").read_bytes()
    named(3, "mg_cc").write_bytes(data[: len(data) // 2])
    named(3, "mg_mlo").unlink()
    edit(named(3, "us"), SOPClassUID=UID)
    edit(sorted(named(3, "mri").iterdir())[3], AcquisitionTime=None, ImagePositionPatient=[0, 0, 9])
    edit(named(4, "us"), Manufacturer=WORD, BurnedInAnnotation="YES")
    named(4, "mg_cc").write_bytes(b"%PDF-1.4 " + WORD.encode() * 40)

    folder.mkdir(parents=True)
    about = PngImagePlugin.PngInfo()
    about.add_text("Author", WORD)
    picture = Image.fromarray(pictures.echo().astype(np.uint8))
    picture.save(folder / f"{WORD}.png", pnginfo=about)
    exif = Image.Exif()
    exif[0x010E], exif[0x0132] = WORD, "1951:07:04 00:00:00"
    view = Image.fromarray((pictures.breast() / 16).clip(0, 255).astype(np.uint8))
    view.save(folder / f"{WORD}.jpg", exif=exif, comment=WORD, quality=95)
    volume = nibabel.Nifti1Image(
        np.moveaxis(pictures.dynamic(3, 8, 20, 20), 0, -1).transpose(2, 1, 0, 3).astype(np.int16),
        np.diag([-1.0, -1.0, 2.0, 1.0]),
    )
    volume.header["descrip"] = WORD
    volume.header["aux_file"] = WORD
    volume.header["db_name"] = WORD
    nibabel.save(volume, folder / f"{WORD}.nii.gz")
    site.rows.append(
        {
            "case_id": f"{WORD}-6",
            "us": folder / f"{WORD}.png",
            "mg_cc": folder / f"{WORD}.jpg",
            "mri": folder / f"{WORD}.nii.gz",
            "laterality": "L",
        }
    )
    site.config()
    return site


def run(command: Any, *arguments: str) -> tuple[str, str]:
    app = typer.Typer()
    app.command()(command)
    with console.capture() as capture:
        result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout, capture.get()


def test_no_identifier_is_in_anything_that_ingest_writes_or_prints(planted: Any) -> None:
    site_yaml = str(planted.folder / "site.yaml")
    inputs = {p for p in planted.folder.rglob("*") if p.is_file()}
    before = {path: path.read_bytes() for path in inputs}
    out, screen = run(ingest, "--site", site_yaml, "--json", "--review", "--workers", "2")
    again, second = run(ingest, "--site", site_yaml, "--json")
    looked, third = run(check_command, "--site", site_yaml, "--data", "--json")
    for name, text in {
        "stdout": out,
        "screen": screen,
        "stdout of the second": again,
        "screen of the second": second,
        "stdout of check": looked,
        "screen of check": third,
    }.items():
        assert_clean(name, text.encode())
    written = [p for p in planted.folder.rglob("*") if p.is_file() and p not in inputs]
    names = {path.name for path in written}
    assert {"index.json", "mg.npy", "us.npy", "mri.npy", "outcomes.jsonl"} <= names
    assert {"quality.html", "quality-to-share.html", "review.html"} <= names
    for path in written:
        assert_clean(str(path), path.read_bytes())
        assert_clean("a file's name", str(path.relative_to(planted.folder)).encode())
    assert before == {path: path.read_bytes() for path in inputs}, "a source file was changed"
    # The temptations were met: images of every fate, from every format.
    counts = __import__("json").loads(out)
    fates = {fate: sum(c[fate] for c in counts["images"].values()) for fate in
             ("accepted", "set aside", "quarantined", "refused")}  # fmt: skip
    assert fates["accepted"] >= 8
    assert fates["quarantined"] >= 2
    assert fates["refused"] >= 6
    assert counts["modalities"]["mri"] >= 3


def test_the_search_finds_a_canary_in_every_encoding(tmp_path: Path) -> None:
    """The search itself can fail: each planted form is found."""
    text = f"x{WORD}y"
    for data in (
        text.encode(),
        text.encode("utf-16-le"),
        text.encode("utf-16-be"),
        text.encode().hex().encode(),
        text[::-1].encode(),
        *(base64.b64encode(b"\1" * lead + f"CANARY^{UID}".encode()) for lead in range(3)),
        struct.pack("<d", float(NUMBER)),
    ):
        with pytest.raises(AssertionError, match="in here"):
            assert_clean("here", data)
