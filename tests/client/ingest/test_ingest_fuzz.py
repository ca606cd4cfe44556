"""Whatever the bytes and the tags of a file are: an outcome, and nothing else.

Each kind of source is written once, then changed at random and standardised as a worker does it.
Allowed are a finite image within its limits and notes. Not allowed are any other exception, a
warning, a line on the screen, a message that quotes the file, and more than ``PATIENCE`` seconds.
"""

from __future__ import annotations

import io
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gdcm
import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from tests.client.ingest.conftest import Dicoms, breast, compress_by_gdcm, dynamic, echo

from her2_client.cache import image_shape
from her2_client.ingest import decoders
from her2_client.ingest.case import Job, Sizes, standardise
from her2_client.ingest.outcome import Outcome
from her2_client.ingest.privacy.guard import Decision, Guard
from her2_common.cases import Box, Case, Modality, read_cases

PATIENCE = 20.0
"""Seconds for one example; usual are hundredths of one."""
SIZES = Sizes(image=16, volume=8)
DICOMS = Dicoms()
FAST = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
MANY = settings(FAST, max_examples=1000)


# --- the sources --------------------------------------------------------------------------------


def _mg(path: Path, syntax: str | None = None) -> None:
    DICOMS.mg(path, breast(40, 34), BitsStored=12, HighBit=11)
    if syntax == uid.JPEGLosslessSV1:
        compress_by_gdcm(path, gdcm.TransferSyntax.JPEGLosslessProcess14_1)
    elif syntax is not None:
        dataset = pydicom.dcmread(path)
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(path)


def _us(path: Path, *, jpeg: bool = False) -> None:
    grey = echo(40, 44).astype(np.uint8)
    colour = np.stack([grey, grey, (0.9 * grey).astype(np.uint8)], axis=-1)  # a tinge
    DICOMS.us(path, colour)
    if jpeg:
        stream = io.BytesIO()
        Image.fromarray(colour).save(stream, "JPEG")
        dataset = pydicom.dcmread(path)
        dataset.PixelData = encapsulate([stream.getvalue()])
        dataset["PixelData"].is_undefined_length = True
        dataset.PhotometricInterpretation = "YBR_FULL_422"
        dataset.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
        dataset.save_as(path)


def _loop(path: Path) -> None:
    stored = np.stack([np.roll(echo(30, 34), 5 * k, 1) for k in range(6)]).astype(np.uint8)
    DICOMS.us(path, stored[0], NumberOfFrames=6, PixelData=stored.tobytes())
    dataset = pydicom.dcmread(path)
    dataset.compress(uid.RLELossless, generate_instance_uid=False)
    dataset.save_as(path)


PHASES = dynamic(2, 4, 8, 10)
PHASES[1] *= 1.5


def _enhanced(path: Path) -> None:
    DICOMS.enhanced(path, PHASES)


def _nifti(path: Path) -> None:
    image = nibabel.Nifti1Image(PHASES.transpose(3, 2, 1, 0).astype(np.int16), np.eye(4))
    nibabel.save(image, path)


def _slices(path: Path) -> None:
    """A folder; ``path`` is one slice of it, the only one that is changed."""
    DICOMS.mri(path.parent, PHASES)
    (path.parent / "1-002.dcm").rename(path)


def _picture(path: Path) -> None:
    Image.fromarray(echo(40, 44).astype(np.uint8)).save(path)


def _view(path: Path) -> None:
    Image.fromarray((breast() / 16).clip(0, 255).astype(np.uint8)).save(path, quality=95)


SOURCES: dict[str, tuple[Modality, str, Callable[[Path], None]]] = {
    "mammogram": ("mg", "x.dcm", _mg),
    "JPEG lossless": ("mg", "x.dcm", lambda path: _mg(path, uid.JPEGLosslessSV1)),
    "JPEG-LS": ("mg", "x.dcm", lambda path: _mg(path, uid.JPEGLSLossless)),
    "JPEG 2000": ("mg", "x.dcm", lambda path: _mg(path, uid.JPEG2000Lossless)),
    "RLE": ("mg", "x.dcm", lambda path: _mg(path, uid.RLELossless)),
    "colour": ("us", "x.dcm", _us),
    "JPEG": ("us", "x.dcm", lambda path: _us(path, jpeg=True)),
    "loop": ("us", "x.dcm", _loop),
    "slice": ("mri", "x.dcm", _slices),
    "enhanced": ("mri", "x.dcm", _enhanced),
    "NIfTI": ("mri", "x.nii", _nifti),
    "packed NIfTI": ("mri", "x.nii.gz", _nifti),
    "PNG picture": ("us", "x.png", _picture),
    "JPEG picture": ("mg", "x.jpg", _view),
}
OF_DICOM = [name for name, (_, file, _) in SOURCES.items() if file == "x.dcm"]
BOXES = {
    "mg": Box(4, 10, 20, 26),
    "us": Box(10, 10, 24, 20),
    "loop": Box(10, 10, 24, 20, 2, 3),
    "mri": Box(2, 2, 6, 6, 1, 3),
}


class Source:
    """One sound file, its bytes, and the case that names it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.modality, file, write = SOURCES[name]
        (folder / "images").mkdir()
        self.path = folder / "images" / file
        write(self.path)
        self.content = self.path.read_bytes()
        column = "mg_cc" if self.modality == "mg" else self.modality
        named = self.path.parent if name == "slice" else self.path
        table = folder / "cases.csv"
        table.write_text(f"case_id,{column}\nCANARYCASE,{named}\n")
        self.case: Case = read_cases(table).cases[0]
        self.column: Any = column
        self.box = BOXES["loop" if name == "loop" else self.modality]

    def standardised(self, content: bytes, *, boxed: bool, approved: bool) -> Outcome:
        """The outcome with ``content`` in the file's place, checked."""
        self.path.write_bytes(content)
        boxes = {self.column: self.box} if boxed else {}
        guard = Guard(b"k" * 32, Approves() if approved else {})
        with watched():
            outcome = standardise(Job(self.case, self.modality, boxes, SIZES, 7), guard)
        check(outcome, self.modality, self.path.parent)
        return outcome


class Approves(dict[str, Decision]):
    """A reviewer who approves everything."""

    def get(self, _name: str, _default: Any = None) -> Any:  # type: ignore[override]
        return Decision(True)


class Hang(BaseException):
    """No ``Exception``, which readers would take for damage."""


@contextmanager
def watched(seconds: float = PATIENCE) -> Iterator[None]:
    def ring(_signal: int, _frame: Any) -> None:
        raise Hang

    former = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def check(outcome: Outcome, modality: Modality, folder: Path) -> None:
    """All that is promised of an outcome, whatever the file."""
    assert (outcome.values is None) == (not outcome.accepted)
    if outcome.values is None:
        assert outcome.notes
    else:
        assert outcome.values.dtype == np.float16
        assert outcome.values.shape == image_shape(modality, SIZES.image, SIZES.volume)
        assert np.isfinite(outcome.values).all()
        assert np.abs(outcome.values).max() <= 5
    for note in outcome.notes:
        assert note.message
        assert "CANARY" not in note.message
        assert str(folder) not in note.message
        assert note.disposition in ("set aside", "quarantined", "refused")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    return {name: Source(name, tmp_path_factory.mktemp("fuzz")) for name in SOURCES}


@pytest.fixture(autouse=True)
def _silent_and_soon(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Iterator[None]:
    monkeypatch.setattr(decoders, "DEADLINE", 1.0)  # CharLS has been seen to run for ever
    yield
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", SOURCES)
def test_the_sources_are_sound(sources: dict[str, Source], name: str) -> None:
    source = sources[name]
    contents = [source.content]
    if name in OF_DICOM:
        contents.append(retagged(source.content, [], None))
    for content in contents:
        for boxed in (False, True):
            outcome = source.standardised(content, boxed=boxed, approved=True)
            assert (outcome.accepted, outcome.notes) == ([source.column], [])


# --- bytes --------------------------------------------------------------------------------------

Edit = tuple[str, float, int, int]
"""What is done, where (a share of the file), over how many bytes, and a byte."""
SMALL = st.one_of(st.floats(0, 1), st.floats(0, 1).map(lambda share: share**4))
"""Places; the head of a file more often than the rest."""
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "set", "flip", "zero", "delete", "insert", "double", "swap"]),
        SMALL,
        st.integers(1, 64) | st.integers(1, 4096),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=8,
)


def spoilt(content: bytes, edits: list[Edit], keep: float) -> bytes:
    """``content`` after ``edits``, cut to a share of ``keep``."""
    data = bytearray(content)
    for what, place, length, value in edits:
        at = int(place * max(len(data) - 1, 0))
        end = min(at + length, len(data))
        block = bytes(data[at:end])
        if what == "set" and data:
            data[at] = value
        elif what == "flip" and data:
            data[at] ^= 1 << value % 8
        elif what == "zero":
            data[at:end] = bytes(end - at)
        elif what == "delete":
            del data[at:end]
        elif what == "insert":
            data[at:at] = bytes([value]) * length
        elif what == "double":
            data[end:end] = block
        elif what == "swap":
            data[at:end] = block[::-1]
    return bytes(data[: int(keep * len(data))])


KEEP = st.just(1.0) | st.floats(0, 1)
BYTES = given(edits=EDITS, keep=KEEP, boxed=st.booleans(), approved=st.booleans())


@pytest.mark.parametrize("name", SOURCES)
def change_bytes(
    sources: dict[str, Source],
    name: str,
    edits: list[Edit],
    keep: float,
    boxed: bool,
    approved: bool,
) -> None:
    content = spoilt(sources[name].content, edits, keep)
    sources[name].standardised(content, boxed=boxed, approved=approved)


test_changed_bytes = FAST(BYTES(change_bytes))
test_changed_bytes_at_length = pytest.mark.slow(MANY(BYTES(change_bytes)))


# --- tags ---------------------------------------------------------------------------------------

KEYWORDS = [
    "SOPClassUID", "Modality", "ImageType", "Manufacturer", "SeriesDescription", "ProtocolName",
    "PresentationIntentType", "ViewPosition", "ViewCodeSequence", "ImageLaterality", "Laterality",
    "AnatomicRegionSequence", "BreastImplantPresent", "PartialView", "BurnedInAnnotation",
    "EstimatedRadiographicMagnificationFactor", "PaddleDescription", "AcquisitionTime",
    "AcquisitionDate", "ContentTime", "TriggerTime", "TemporalPositionIdentifier", "EchoTime",
    "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "SeriesInstanceUID",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration",
    "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept",
    "RescaleType", "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence",
    "ModalityLUTSequence", "RedPaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData", "SequenceOfUltrasoundRegions", "RegionSpatialFormat",
    "RegionDataType", "RegionLocationMinX0", "RegionLocationMaxX1", "FrameContentSequence",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "PlanePositionSequence",
    "PixelMeasuresSequence", "PlaneOrientationSequence", "DimensionIndexSequence",
    "DimensionIndexValues", "TemporalPositionIndex", "PixelData", "FloatPixelData",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "SpecificCharacterSet", "PatientName",
    "LUTDescriptor", "LUTData", "SOPInstanceUID", "InstanceNumber",
]  # fmt: skip
VRS = [
    "AE", "AS", "AT", "CS", "DA", "DS", "DT", "FD", "FL", "IS", "LO", "LT", "OB", "OF", "OW", "PN",
    "SH", "SL", "SQ", "SS", "ST", "TM", "UI", "UL", "UN", "US", "UT", "UV",
]  # fmt: skip


def _sequence(*elements: tuple[int, str, bytes]) -> bytes:
    """One item with short elements, explicit little-endian (PS3.5 7.5)."""
    body = b"".join(
        struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), len(value)) + value
        for tag, vr, value in elements
    )
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(body)) + body


CONTENTS = st.one_of(
    st.sampled_from(
        [
            b"", b" ", b"0", b"-1 ", b"1e400 ", b"nan ", b"inf ", b"1e-300", b"99999999999 ",
            b"1\\2 ", b"1\\2\\3\\4\\5\\6 ", b"CANARY", b"\x00", b"\xff" * 8, b"YES ", b"CC", b"R ",
            b"MG", b"US", b"MR", b"PALETTE COLOR ", b"YBR_FULL_422", b"MONOCHROME1 ", b"SIGMOID ",
            b"ISO 2022 IR 87", b"\\\\\\ ", b"9" * 5000, "\u00e4\u00f6\u4e2d ".encode(),
            _sequence(), _sequence((0x00080100, "SH", b"CANARY")), _sequence()[:6],
            _sequence((0x00283002, "US", b"\0\0\0\0\x10\0"), (0x00283006, "US", b"\1\0\2\0")),
            _sequence((0x00186012, "US", b"\1\0"), (0x00186014, "US", b"\1\0")),
        ]
    ),
    st.integers(0, 65535).map(lambda n: struct.pack("<H", n)),
    st.integers(-(2**31), 2**31 - 1).map(lambda n: struct.pack("<i", n)),
    st.floats(width=64).map(lambda x: struct.pack("<d", x)),
    st.floats(width=64).map(lambda x: f"{x:.6g} ".encode()),
    st.binary(max_size=40),
)  # fmt: skip
TAGS = given(
    changes=st.lists(
        st.tuples(
            st.sampled_from(KEYWORDS),
            st.none() | st.none() | st.sampled_from(VRS),
            st.none() | CONTENTS | CONTENTS | CONTENTS,
            st.integers(0, 3),
        ),
        min_size=1,
        max_size=4,
    ),
    syntax=st.none() | st.none() | st.sampled_from(
        [uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.RLELossless, uid.JPEG2000,
         uid.JPEGLSLossless, uid.JPEGBaseline8Bit, uid.MPEG4HP41, "1.2.3", "CANARY", ""]
    ),
    boxed=st.booleans(),
    approved=st.booleans(),
)  # fmt: skip


LONG = {"OB", "OF", "OW", "SQ", "UN", "UT", "UV"}
"""VRs whose length has four bytes (PS3.5 7.1.2)."""


class Element:
    """One element as it is in a file: ``value`` is bytes, or items of a sequence."""

    def __init__(self, tag: int, vr: str, value: Any, *, open_ended: bool = False) -> None:
        self.tag, self.vr, self.value, self.open_ended = tag, vr, value, open_ended

    def encoded(self) -> bytes:
        """Explicit little-endian, whatever the value."""
        vr, value = self.vr, self.value
        if isinstance(value, list):
            items = [b"".join(element.encoded() for element in item) for item in value]
            value = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(i)) + i for i in items)
        if len(value) > 0xFFFF and vr not in LONG:
            vr = "UN"
        head = struct.pack("<HH2s", self.tag >> 16, self.tag & 0xFFFF, vr.encode())
        if self.open_ended:
            end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
            return head + struct.pack("<HI", 0, 0xFFFFFFFF) + value + end
        length = struct.pack("<HI", 0, len(value)) if vr in LONG else struct.pack("<H", len(value))
        return head + length + value


Item = list[Element]


def items_of(dataset: Dataset, every: list[Item]) -> Item:
    """The elements of a data set that nobody has decoded yet; all items come into ``every``."""
    item: Item = []
    every.append(item)
    undecoded: list[Any] = [dataset.get_item(tag) for tag in sorted(dataset.keys())]
    for raw in undecoded:
        tag = raw.tag
        if raw.VR == "SQ":
            value: Any = [items_of(part, every) for part in dataset[tag].value]
        else:
            value = raw.value or b""
        if isinstance(value, str):  # the character set, which the reader needs at once
            value = value.encode().ljust(len(value) + len(value) % 2)
        compressed = int(tag) == int(Tag("PixelData")) and value.startswith(b"\xfe\xff\x00\xe0")
        item.append(Element(int(tag), raw.VR, value, open_ended=compressed))
    return item


def retagged(content: bytes, changes: list[Any], syntax: str | None) -> bytes:
    """Elements set to raw bytes of any VR, or deleted; the transfer syntax renamed."""
    start = 144 + int.from_bytes(content[140:144], "little")  # after the group length (PS3.10 7.1)
    every: list[Item] = []
    whole = items_of(pydicom.dcmread(io.BytesIO(content)), every)
    for keyword, vr, value, where in changes:
        tag = int(Tag(keyword))
        homes = [item for item in every if any(e.tag == tag for e in item)] or every
        home = homes[where % len(homes)]
        home[:] = [element for element in home if element.tag != tag]
        if value is not None:
            kind = vr or pydicom.datadict.dictionary_VR(tag).split(" or ")[0]
            home.append(Element(tag, kind, value))
            home.sort(key=lambda element: element.tag)
    head = content[:start]
    if syntax is not None:  # the name alone: the bytes are left as they are
        old = pydicom.dcmread(io.BytesIO(content)).file_meta.TransferSyntaxUID.encode()
        head = head.replace(old, syntax.encode().ljust(len(old), b"\0")[: len(old)], 1)
    return head + b"".join(element.encoded() for element in whole)


@pytest.mark.parametrize("name", OF_DICOM)
def change_tags(
    sources: dict[str, Source],
    name: str,
    changes: list[Any],
    syntax: str | None,
    boxed: bool,
    approved: bool,
) -> None:
    content = retagged(sources[name].content, changes, syntax)
    sources[name].standardised(content, boxed=boxed, approved=approved)


test_changed_tags = FAST(TAGS(change_tags))
test_changed_tags_at_length = pytest.mark.slow(MANY(TAGS(change_tags)))
