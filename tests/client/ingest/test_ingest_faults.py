"""Faulty mammograms, ultrasounds and pictures in a whole site: each its own reason and message.

Beside every faulty case stands a sound one, which must not notice.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.sequence import Sequence
from tests.client.ingest.conftest import (
    Dicoms,
    Fault,
    breast,
    check_note,
    compress_by_gdcm,
    count_of_messages,
    echo,
    noter,
)

from her2_client.ingest.outcome import Note

Make = Callable[[Path], Any]
"""Makes a faulty source under a folder of its own; returns what the table names."""

DICOMS = Dicoms()
ECHO = echo().astype(np.uint8)
WIDE = (breast().astype(np.uint32) * 70000).tobytes()
FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.2.1"
ANGIOGRAPHY = "1.2.840.10008.5.1.4.1.1.12.1"
TOMOSYNTHESIS = "1.2.840.10008.5.1.4.1.1.13.1.3"
REPORT = "1.2.840.10008.5.1.4.1.1.88.22"
PDF = "1.2.840.10008.5.1.4.1.1.104.1"
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


# --- how sources are made -----------------------------------------------------------------------


def mg(stored: Any = None, **tags: Any) -> Make:
    return lambda at: DICOMS.mg(at / "cc.dcm", breast() if stored is None else stored, **tags)


def us(stored: Any = None, **tags: Any) -> Make:
    return lambda at: DICOMS.us(at / "us.dcm", echo() if stored is None else stored, **tags)


def folder_of(*makes: Make) -> Make:
    """A folder with one sub-folder for each."""

    def make(at: Path) -> Path:
        for number, one in enumerate(makes):
            (at / str(number)).mkdir(parents=True)
            one(at / str(number))
        return at

    return make


def raw(content: bytes, name: str = "x.dcm") -> Make:
    def make(at: Path) -> Path:
        (at / name).write_bytes(content)
        return at / name

    return make


def changed(make: Make, change: Callable[[bytes], bytes]) -> Make:
    """The file that ``make`` writes, its bytes changed."""

    def make_changed(at: Path) -> Path:
        path: Path = make(at)
        path.write_bytes(change(path.read_bytes()))
        return path

    return make_changed


def edited(make: Make, edit: Callable[[Dataset], None]) -> Make:
    """The file that ``make`` writes, its data set edited."""

    def make_edited(at: Path) -> Path:
        path: Path = make(at)
        dataset = pydicom.dcmread(path)
        edit(dataset)
        dataset.save_as(path)
        return path

    return make_edited


def compressed(syntax: str, damage: Callable[[bytes], bytes]) -> Make:
    """A compressed ultrasound whose codestream is damaged."""

    def make(at: Path) -> Path:
        path = DICOMS.us(at / "us.dcm", echo())
        if syntax in (uid.JPEGLosslessSV1, uid.JPEGLossless):
            compress_by_gdcm(path, gdcm.TransferSyntax.JPEGLosslessProcess14_1)
            dataset = pydicom.dcmread(path)
        else:
            dataset = pydicom.dcmread(path)
            dataset.compress(syntax, generate_instance_uid=False)
        frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
        dataset.PixelData = encapsulate([damage(frame)])
        dataset.save_as(path)
        return path

    return make


def renamed(syntax: str) -> Callable[[Dataset], None]:
    """Names another transfer syntax, the pixels left as they are, encapsulated."""

    def edit(dataset: Dataset) -> None:
        dataset.PixelData = encapsulate([b"\xff\xd8" + bytes(200)])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)

    return edit


def tag(**tags: Any) -> Callable[[Dataset], None]:
    def edit(dataset: Dataset) -> None:
        for name, value in tags.items():
            setattr(dataset, name, value)

    return edit


def code(value: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SRT", "CANARY"
    return item


def modified(value: str) -> Sequence:
    """A ViewCodeSequence of CC with a modifier."""
    view = code("R-10242")
    view.ViewModifierCodeSequence = Sequence([code(value)])
    return Sequence([view])


def picture(array: Any, name: str = "x.png", format: str = "PNG", **options: Any) -> Make:
    def make(at: Path) -> Path:
        image = array if isinstance(array, Image.Image) else Image.fromarray(array)
        image.save(at / name, format, **options)
        return at / name

    return make


def written(rows: int = 260, columns: int = 300) -> Any:
    """An ultrasound with words across its tissue."""
    canvas = Image.fromarray(echo(rows, columns).astype(np.uint8))
    font = ImageFont.load_default(28)
    ImageDraw.Draw(canvas).text((50, 120), "DOE JANE 1960", fill=255, font=font)
    return np.asarray(canvas)


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def middle_zeroed(content: bytes) -> bytes:
    a, b = len(content) // 3, 2 * len(content) // 3
    return content[:a] + bytes(b - a) + content[b:]


def no_tables(codestream: bytes) -> bytes:
    """Without its Huffman tables."""
    return codestream.replace(b"\xff\xc4", b"\xff\xe5")


def tail_zeroed(codestream: bytes) -> bytes:
    return codestream[:80] + bytes(60)


def resized(codestream: bytes) -> bytes:
    """JPEG 2000 that claims 9000 x 9000 (ITU-T T.800 A.5.1)."""
    return codestream.replace(struct.pack(">II", 72, 64), struct.pack(">II", 9000, 9000), 1)


def doppler(dataset: Dataset) -> None:
    dataset.SequenceOfUltrasoundRegions[0].RegionDataType = 2  # colour flow (PS3.3 C.8.5.5.1.2)


def colour_mammogram(at: Path) -> Path:
    tags = {"PresentationIntentType": "FOR PRESENTATION", "ViewPosition": "CC"}
    return DICOMS.write(at / "x.dcm", "MG", np.stack([ECHO] * 3, axis=-1), tags)


def dangling(at: Path) -> Path:
    (at / "x.dcm").symlink_to(at / "gone.dcm")
    return at / "x.dcm"


def loop(at: Path) -> Path:
    (at / "x.dcm").symlink_to(at / "y.dcm")
    (at / "y.dcm").symlink_to(at / "x.dcm")
    return at / "x.dcm"


def pipe(at: Path) -> Path:
    os.mkfifo(at / "x.dcm")
    return at / "x.dcm"


def locked(at: Path) -> Path:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = DICOMS.mg(at / "cc.dcm", breast())
    path.chmod(0)
    return path


def beneath_a_file(at: Path) -> Path:
    (at / "a").write_bytes(b"x")
    return at / "a" / "cc.dcm"


def crowd(at: Path) -> Path:
    for number in range(4):
        (at / f"{number}.txt").write_bytes(b"x")
    return at


def short_table() -> Any:
    """A LUT with fewer entries than its descriptor says."""
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTData = [9, 0, 12], [1, 2]
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    return pydicom.Sequence([item])


# fmt: off
FAULTS: dict[str, Fault] = {
    # the file itself
    "missing": Fault("mg_cc", lambda at: at / "none.dcm", "refused", "missing file",
                     "expected a file, got none of that name"),
    "dangling link": Fault("mg_cc", dangling, "refused", "missing file", "got none of that name",
                           like="missing"),
    "link to itself": Fault("mg_cc", loop, "refused", "not a file", "Too many levels of"),
    "beneath a file": Fault("mg_cc", beneath_a_file, "refused", "not a file",
                            "Not a directory"),
    "pipe": Fault("mg_cc", pipe, "refused", "not a file", "expected a file, got something else"),
    "locked": Fault("mg_cc", locked, "refused", "no permission", "may not be read"),
    "empty folder": Fault("mg_cc", lambda at: at, "refused", "empty folder", "got no file in it"),
    "too many files": Fault("mg_cc", crowd, "refused", "too many files", "at most 3 files",
                            limits={"her2_client.ingest.planar.folder.MAX_FILES": 3}),
    "text": Fault("mg_cc", raw(b"CANARY " * 99), "refused", "not DICOM", "got another format"),
    "empty file": Fault("mg_cc", raw(b""), "refused", "not DICOM", "got an empty file", hint=True),
    "PDF named dcm": Fault("mg_cc", raw(b"%PDF-1.7\nCANARY" + bytes(400)), "refused",
                           "not DICOM", "got PDF", hint=True),
    "zip file": Fault("mg_cc", raw(b"PK\x03\x04CANARY" + bytes(400)), "refused", "not DICOM",
                      "got a zip file", hint=True),
    "begins as DICOM": Fault("mg_cc", raw(b"\x08\0\x16\0UI\x06\0CANARY" + bytes(400)), "refused",
                             "not DICOM", "", like="text"),
    "path of Windows": Fault("mg_cc", lambda at: "D:\\scans\\CANARY.dcm", "refused",
                             "missing file", "got one of Windows", hint=True),
    "HEIC": Fault("mg_cc", raw(b"\0\0\0\x18ftypheic" + bytes(400), "x.heic"), "refused",
                  "not DICOM", "", like="text"),
    "GIF named png": Fault("us", picture(ECHO, "x.png", "GIF"), "refused", "not DICOM", "",
                           like="text"),
    # damaged DICOM
    "cut in the header": Fault("mg_cc", changed(mg(), lambda b: b[:500]), "refused",
                               "truncated", "the header ends early"),
    "header zeroed": Fault("mg_cc", changed(mg(), lambda b: b[:200] + bytes(400) + b[600:]),
                           "refused", "not an image", "got another DICOM object"),
    "no rows": Fault("mg_cc", edited(mg(), tag(Rows=0)), "refused", "truncated", "",
                     like="cut in the header"),
    "cut in the pixels": Fault("mg_cc", changed(mg(), half), "refused", "truncated",
                               "expected 9600 bytes of pixels, got 4"),
    "no pixels": Fault("mg_cc", mg(PixelData=None), "refused", "truncated",
                       "expected pixel data, got a header alone"),
    "matrix without pixels": Fault("mg_cc", edited(mg(), tag(Rows=8000, Columns=8000)),
                                   "refused", "truncated", "expected 128000000 bytes"),
    "huge matrix": Fault("mg_cc", edited(mg(), tag(Rows=65535, Columns=65535)), "refused",
                         "too large", "expected 1 to 67108864 samples in a frame"),
    "frames without end": Fault("us", edited(us(), tag(NumberOfFrames=2147483647)), "refused",
                                "frame count", "expected 1 to 16384 frames"),
    "minus one frame": Fault("us", edited(us(), tag(NumberOfFrames=-1)), "refused",
                             "frame count", "", like="frames without end"),
    "more frames than pixels": Fault("us", edited(us(), tag(NumberOfFrames=40)), "refused",
                                     "truncated", "expected 184320 bytes of pixels, got 4608"),
    "32 bits": Fault("mg_cc", mg(BitsAllocated=32, BitsStored=32, HighBit=31, PixelData=WIDE),
                     "refused", "bit depth", "expected at most 65536 shades of grey"),
    "12 bits allocated": Fault("mg_cc", mg(BitsAllocated=12), "refused", "damaged",
                               "damaged pixel data: it cannot be decoded"),
    "20 of 16 bits stored": Fault("mg_cc", mg(BitsStored=20), "refused", "damaged", "",
                                  like="12 bits allocated"),
    "unknown photometric": Fault("mg_cc", mg(PhotometricInterpretation="CANARY"), "refused",
                                 "damaged", "", like="12 bits allocated"),
    "no photometric": Fault("mg_cc", mg(PhotometricInterpretation=None), "refused", "damaged",
                            "damaged pixel data: it cannot be decoded",
            like="12 bits allocated"),
    "float pixels": Fault("mg_cc", mg(PixelData=None, FloatPixelData=bytes(19200)), "refused",
                          "float pixels", "expected pixels in whole numbers"),
    # compressed
    "video": Fault("us", edited(us(), renamed(uid.MPEG4HP41)), "refused", "no decoder",
                   "got MPEG-4 AVC/H.264", hint=True),
    "private syntax": Fault("us", edited(us(), renamed("1.2.3.4.5")), "refused", "no decoder",
                            "got one that is not in the standard", hint=True),
    "JPEG without tables": Fault("us", compressed(uid.JPEGLosslessSV1, no_tables), "refused",
                                 "damaged", "damaged pixel data: it cannot be decoded",
            like="12 bits allocated"),
    "JPEG-LS cut": Fault("us", compressed(uid.JPEGLSLossless, lambda b: b[:-2]), "refused",
                         "truncated", "the codestream does not end"),
    "JPEG 2000 zeroed": Fault("us", compressed(uid.JPEG2000Lossless, tail_zeroed), "refused",
                              "damaged", "", like="12 bits allocated"),
    "RLE cut": Fault("us", compressed(uid.RLELossless, half), "refused", "damaged", "",
                     like="12 bits allocated"),
    "no codestream": Fault("us", compressed(uid.JPEG2000Lossless, lambda b: b"CANARY" * 20),
                           "refused", "damaged", "the codestream has no size"),
    "codestream of another size": Fault("us", compressed(uid.JPEG2000Lossless, resized),
                                        "refused", "damaged", "a codestream of 9000 x 9000"),
    # another thing
    "ultrasound as mammogram": Fault("mg_cc", us(), "refused", "wrong modality",
                                     "expected modality MG, got US"),
    "mammogram as ultrasound": Fault("us", mg(), "refused", "wrong modality",
                                     "expected modality US, got MG"),
    "a word as modality": Fault("mg_cc", mg(Modality="CANARYTEXT"), "refused", "wrong modality",
                                "expected modality MG, got another"),
    "no modality": Fault("mg_cc", mg(Modality=None), "refused", "wrong modality", "got none"),
    "report": Fault("mg_cc", mg(SOPClassUID=REPORT, Modality="SR", Rows=None, PixelData=None),
                    "refused", "not an image", "", like="header zeroed"),
    "PDF in DICOM": Fault("mg_cc", mg(SOPClassUID=PDF, Rows=None, PixelData=None), "quarantined",
                          "encapsulated PDF", "got an encapsulated PDF", hint=True),
    "captured mammogram": Fault("mg_cc", mg(SOPClassUID=CAPTURE), "quarantined",
                                "secondary capture", "expected a mammogram", hint=True),
    "captured ultrasound": Fault("us", us(SOPClassUID=CAPTURE), "quarantined",
                                 "secondary capture", "expected an ultrasound", hint=True),
    # mammography
    "for processing": Fault("mg_cc", mg(PresentationIntentType="FOR PROCESSING"), "refused",
                            "for processing", "expected FOR PRESENTATION, got FOR PROCESSING"),
    "class for processing": Fault("mg_cc", mg(PresentationIntentType=None,
                                              SOPClassUID=FOR_PROCESSING), "refused",
                                  "for processing", "got FOR PROCESSING", like="for processing"),
    "no intent": Fault("mg_cc", mg(PresentationIntentType=None, SOPClassUID=ANGIOGRAPHY),
                       "refused", "no intent", "expected FOR PRESENTATION, got no intent"),
    "wrong view": Fault("mg_cc", mg(ViewPosition="MLO"), "refused", "wrong view",
                        "expected view CC, got MLO"),
    "another view": Fault("mg_mlo", mg(ViewPosition="ML"), "refused", "wrong view",
                          "expected view MLO, got ML"),
    "contradictory view": Fault("mg_cc", mg(ViewCodeSequence=Sequence([code("R-10226")])),
                                "refused", "contradictory view", "expected one view in the header"),
    "wrong side": Fault("mg_cc", mg(ImageLaterality="R"), "refused", "wrong laterality",
                        "expected side L as in the table, got R", row={"laterality": "L"}),
    "contradictory side": Fault("mg_cc", mg(SeriesDescription="R CC"), "refused",
                                "contradictory laterality", "expected one laterality"),
    "both sides": Fault("mg_cc", folder_of(mg(), mg(ImageLaterality="R")), "refused",
                        "side unclear", "got images of both sides or of none", hint=True),
    "other views alone": Fault("mg_cc", folder_of(mg(ViewPosition="MLO")), "refused",
                               "wrong view", "", like="wrong view"),
    "folder of ultrasound": Fault("mg_cc", folder_of(us(), raw(b"CANARY")), "refused",
                                  "no such image", "got 2 files: 1 not DICOM, 1 wrong modality"),
    "spot view": Fault("mg_cc", mg(ViewCodeSequence=modified("R-102D7")), "set aside",
                       "spot view", "got another kind: spot view"),
    "magnification view": Fault("mg_cc", mg(ViewCodeSequence=modified("R-102D6")), "set aside",
                                "magnification view", "got another kind: magnification view"),
    "magnified": Fault("mg_cc", mg(EstimatedRadiographicMagnificationFactor=1.8), "set aside",
                       "magnification view", "", like="magnification view"),
    "implant": Fault("mg_cc", mg(BreastImplantPresent="YES"), "set aside", "implant",
                     "got another kind: implant"),
    "implant displaced": Fault("mg_cc", mg(ViewCodeSequence=modified("R-102D5")), "set aside",
                               "implant displaced", "got another kind: implant displaced"),
    "partial view": Fault("mg_cc", mg(PartialView="YES"), "set aside", "partial view",
                          "got another kind: partial view"),
    "tomosynthesis": Fault("mg_cc", mg(SOPClassUID=TOMOSYNTHESIS), "set aside", "tomosynthesis",
                           "got another kind: tomosynthesis"),
    "colour mammogram": Fault("mg_cc", colour_mammogram, "refused", "not grey",
                              "expected a grey image, got colour"),
    "one value": Fault("mg_cc", mg(np.full((80, 60), 500)), "refused", "blank image",
                       "expected an image, got one constant value"),
    "all but empty": Fault("mg_cc", mg(np.pad(np.full((4, 4), 900), ((10, 70), (10, 70)))),
                           "refused", "blank image", "got an all but empty picture"),
    "padding alone": Fault("mg_cc", mg(PixelPaddingValue=0, PixelPaddingRangeLimit=4095),
                           "refused", "blank image", "got nothing but padding"),
    "rescaled to infinity": Fault("mg_cc", mg(RescaleSlope="1e300", RescaleIntercept=0),
                                  "refused", "rescale", "after rescaling, got larger", hint=True),
    "slope of zero": Fault("mg_cc", mg(RescaleSlope=0, RescaleIntercept=0), "refused", "rescale",
                           "expected a finite RescaleSlope other than 0", hint=True),
    "modality LUT too short": Fault("mg_cc", mg(ModalityLUTSequence=short_table()), "refused",
                                    "unusable grey scale", "expected 9 entries", hint=True),
    "annotated": Fault("mg_cc", mg(BurnedInAnnotation="YES"), "quarantined",
                       "burned-in annotation", "got BurnedInAnnotation YES", hint=True),
    "box outside": Fault("mg_cc", mg(), "refused", "box outside",
                         "expected a box within 60 x 80, got one up to 61 x 20",
                         box=(10, 10, 61, 20)),
    # ultrasound
    "no region": Fault("us", us(region=None), "quarantined", "no verified region",
                       "expected a B-mode region in SequenceOfUltrasoundRegions", hint=True),
    "region beyond the picture": Fault("us", us(region=(0, 0, 500, 40)), "quarantined",
                                       "no verified region", "", hint=True, like="no region"),
    "region inverted": Fault("us", us(region=(40, 40, 20, 60)), "quarantined",
                             "no verified region", "", hint=True, like="no region"),
    "region is all": Fault("us", us(region=(0, 0, 72, 64)), "quarantined", "no verified region",
                           "", hint=True, like="no region"),
    "Doppler region": Fault("us", edited(us(), doppler), "quarantined", "no verified region", "",
                            hint=True, like="no region"),
    "region of one value": Fault("us", us(np.full((64, 72), 7)), "refused", "blank image", "",
                                 like="one value"),
    "blank loop": Fault("us", us(NumberOfFrames=3, PixelData=bytes(3 * 64 * 72)), "refused",
                        "blank image", "expected a frame with a picture, got blank ones"),
    "palette without tables": Fault("us", us(PhotometricInterpretation="PALETTE COLOR"),
                                    "refused", "damaged", "damaged colour table"),
    "strange colours": Fault("us", us(PhotometricInterpretation="CMYK"), "refused",
                             "colour space", "expected grey, RGB, YBR or a palette"),
    "text in the tissue": Fault("us", us(written()), "quarantined", "text found",
                                "expected a picture without text, got text in", hint=True),
    "box in the margin": Fault("us", us(), "refused", "box outside",
                               "expected a box inside a B-mode region", box=(0, 0, 4, 4)),
    "box of a frame beyond": Fault("us", us(), "refused", "frame outside",
                                   "expected frame 0 to 0, got 7", box=(10, 10, 20, 20, 7, 8)),
    "several for one box": Fault("us", folder_of(us(), us()), "refused", "several pictures",
                                 "got 2", hint=True, box=(10, 10, 20, 20)),
    # PNG and JPEG
    "PNG without review": Fault("us", picture(ECHO), "quarantined", "no verified region",
                                "got a picture without a header", hint=True),
    "PNG bomb": Fault("us", raw(png_of(60000, 60000), "x.png"), "refused", "too large",
                      "got a very large one"),
    "PNG cut": Fault("us", changed(picture(ECHO), half), "refused", "damaged",
                     "damaged picture: it cannot be decoded"),
    "JPEG cut": Fault("us", changed(picture(ECHO, "x.jpg", "JPEG"), half), "refused", "damaged",
                      "", like="PNG cut"),
    "PNG zeroed": Fault("us", changed(picture(ECHO), middle_zeroed), "refused", "damaged",
                        "damaged picture: it cannot be decoded",
            like="PNG cut"),
    "PNG signature alone": Fault("us", raw(b"\x89PNG\r\n\x1a\n", "x.png"), "refused", "damaged",
                                 "it cannot be decoded",
            like="PNG cut"),
    "CMYK": Fault("us", picture(Image.new("CMYK", (40, 40)), "x.jpg", "JPEG"), "refused",
                  "colour space", "expected a picture in grey or RGB, got CMYK"),
    "see-through": Fault("us", picture(np.full((40, 40, 4), 90, np.uint8)), "refused", "alpha",
                         "expected an opaque picture"),
}
# fmt: on

FORM = re.compile(r"expected .+, got .+|(damaged|truncated) [\w -]+: .+|the file may not be read")
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
    root = os.geteuid() == 0  # to whom nothing is locked
    faults = {name: fault for name, fault in FAULTS.items() if not (root and name == "locked")}
    assert count_of_messages(faults, noted) >= 60
