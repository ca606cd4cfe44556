"""Every transfer syntax gives the stored pixels; bytes that are not sound give an error."""

from __future__ import annotations

import io
import os
import re
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate, get_frame
from tests.client.ingest.conftest import compress_by_gdcm

from her2_client.ingest import decoders, dicom
from her2_client.ingest.codestream import stated_size
from her2_client.ingest.planar.mammography import mammogram
from her2_client.ingest.planar.ultrasound import ultrasound
from her2_client.ingest.privacy.guard import Guard
from her2_common.errors import ImageError

KEY = b"k" * 32


pytestmark = pytest.mark.usefixtures("searched", "_coloured")


@pytest.fixture
def _coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is decoded here is in full colour, which a B-mode picture is not."""
    monkeypatch.setattr("her2_client.ingest.planar.ultrasound.MOST_COLOURED", 1.0)
    monkeypatch.setattr("her2_client.ingest.planar.ultrasound.MARK_WIDTH", 1)  # no lines


def plainly(change: Callable[[Any], None]) -> Callable[[Path], None]:
    """Write the file again with another uncompressed syntax."""

    def write(path: Path) -> None:
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path)

    return write


def _implicit(dataset: Any) -> None:
    dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian


def _deflated(dataset: Any) -> None:
    dataset.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian


def _big_endian(path: Path) -> None:
    dataset = pydicom.dcmread(path)
    stored = dataset.pixel_array
    list(dataset.iterall())  # every element is decoded now, and written in the other order
    dataset.PixelData = stored.astype(stored.dtype.newbyteorder(">")).tobytes()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
    dataset.set_original_encoding(False, False)
    dataset.save_as(path, implicit_vr=False, little_endian=False)


def compressed(syntax: uid.UID, plugin: str) -> Callable[[Path], None]:
    """The plugin is named: GDCM's RLE encoder ends the process on pictures of odd size."""

    def write(path: Path) -> None:
        dataset = pydicom.dcmread(path)
        dataset.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
        dataset.save_as(path)

    return write


def by_gdcm(syntax: int) -> Callable[[Path], None]:
    return partial(compress_by_gdcm, syntax=syntax)


LOSSLESS: dict[str, tuple[Callable[[Path], None], uid.UID]] = {
    "implicit": (plainly(_implicit), uid.ImplicitVRLittleEndian),
    "big endian": (_big_endian, uid.ExplicitVRBigEndian),
    "deflated": (plainly(_deflated), uid.DeflatedExplicitVRLittleEndian),
    "RLE": (compressed(uid.RLELossless, "pydicom"), uid.RLELossless),
    "JPEG-LS": (compressed(uid.JPEGLSLossless, "pyjpegls"), uid.JPEGLSLossless),
    "JPEG 2000": (compressed(uid.JPEG2000Lossless, "pylibjpeg"), uid.JPEG2000Lossless),
    "JPEG 14": (by_gdcm(gdcm.TransferSyntax.JPEGLosslessProcess14), uid.JPEGLossless),
    "JPEG 14 SV1": (by_gdcm(gdcm.TransferSyntax.JPEGLosslessProcess14_1), uid.JPEGLosslessSV1),
}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", ["plain", "RLE", "JPEG-LS", "JPEG 2000", "JPEG 14"])
def test_bits_above_bits_stored_are_cleared_whatever_the_syntax(
    tmp_path: Path, dicoms: Any, pictures: Any, name: str, signed: bool
) -> None:
    """As an overlay in bit 12, which older scanners wrote there."""
    if signed and name == "JPEG 14":
        pytest.skip("the encoder knows no sign")
    stored = pictures.breast(34, 41).astype(np.uint16)
    stored[5:9, 5:9] |= 1 << 12
    path = dicoms.mg(tmp_path / "cc.dcm", stored, PixelRepresentation=int(signed))
    if name != "plain":
        LOSSLESS[name][0](path)
    dataset = pydicom.dcmread(path)
    dataset.BitsStored, dataset.HighBit = 12, 11
    dataset.save_as(path)
    expected = stored & 4095
    if signed:
        expected = (expected.astype(np.int32) ^ 2048) - 2048
    np.testing.assert_array_equal(dicom.pixels(dicom.header(path)), expected)


@pytest.mark.parametrize("name", ["plain", "JPEG-LS", "JPEG"])
@pytest.mark.parametrize("labelled", ["RGB", "YBR_FULL"])
@pytest.mark.parametrize("stored_as", ["RGB", "YBR_FULL"])
def test_a_grey_picture_is_grey_whatever_its_colours_are_called(
    tmp_path: Path, dicoms: Any, pictures: Any, name: str, labelled: str, stored_as: str
) -> None:
    grey = pictures.echo(40, 48).astype(np.uint8)
    chroma = grey if stored_as == "RGB" else np.full_like(grey, 128)
    samples = np.stack([grey, chroma, chroma], axis=-1)
    path = dicoms.us(tmp_path / "us.dcm", samples)
    if name == "JPEG-LS":
        LOSSLESS[name][0](path)
    dataset = pydicom.dcmread(path)
    if name == "JPEG":
        data = io.BytesIO()
        image = Image.fromarray(np.stack([grey] * 3, axis=-1))
        image.save(data, "JPEG", quality=95, keep_rgb=stored_as == "RGB")
        dataset.PixelData = encapsulate([data.getvalue()])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    dataset.PhotometricInterpretation = labelled
    dataset.save_as(path)
    shown = dicom.pixels(dicom.header(path)).astype(int)
    assert np.abs(shown - grey[..., np.newaxis].astype(int)).max() <= (8 if name == "JPEG" else 0)


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("kind", ["8 bits", "12 bits", "16 bits", "RGB"])
def test_lossless_syntaxes_keep_every_bit(
    tmp_path: Path, dicoms: Any, pictures: Any, name: str, kind: str
) -> None:
    write, syntax = LOSSLESS[name]
    if kind in ("8 bits", "RGB"):
        stored = pictures.echo(34, 41).astype(np.uint8)  # an odd width
        if kind == "RGB":
            stored = np.stack([stored, 255 - stored, stored // 2], axis=-1)
        path = dicoms.us(tmp_path / "us.dcm", stored)
    else:
        stored = pictures.breast(34, 41).astype(np.uint16)
        if kind == "16 bits":
            stored = stored * 31
        bits = int(kind.split()[0])
        path = dicoms.mg(tmp_path / "mg.dcm", stored, BitsStored=bits, HighBit=bits - 1)

    def standardised() -> Any:
        if kind in ("8 bits", "RGB"):
            return ultrasound(path, None, size=16, seed=0, guard=Guard(KEY)).values
        return mammogram(path, None, view="CC", laterality=None, size=16, guard=Guard(KEY)).values

    plain = standardised()
    write(path)
    header = dicom.header(path)
    assert header.file_meta.TransferSyntaxUID == syntax
    assert ("PixelData" in header) is False
    np.testing.assert_array_equal(dicom.pixels(header), stored)
    np.testing.assert_array_equal(dicom.pixels(pydicom.dcmread(path)), stored)
    np.testing.assert_array_equal(standardised(), plain)


@pytest.mark.parametrize("name", ["implicit", "deflated", "RLE", "JPEG-LS", "JPEG 2000"])
def test_a_single_frame_is_read_out_of_many(
    tmp_path: Path, dicoms: Any, pictures: Any, name: str
) -> None:
    stored = np.stack([np.roll(pictures.echo(34, 41), 5 * k, 1) for k in range(4)])
    stored = stored.astype(np.uint8)
    path = dicoms.us(tmp_path / "us.dcm", stored[0], NumberOfFrames=4, PixelData=stored.tobytes())
    LOSSLESS[name][0](path)
    header = dicom.header(path)
    for k in (3, 0, 2):
        np.testing.assert_array_equal(dicom.pixels(header, k), stored[k])
    with pytest.raises(ImageError, match="expected frame 0 to 3, got 4") as caught:
        dicom.pixels(header, 4)
    assert caught.value.reason == "frame outside"


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_file_that_ends_early_is_refused(
    tmp_path: Path, dicoms: Any, pictures: Any, name: str
) -> None:
    path = dicoms.mg(tmp_path / "mg.dcm", pictures.breast(), BitsStored=12, HighBit=11)
    LOSSLESS[name][0](path)
    content = path.read_bytes()
    tag = b"\x7f\xe0\x00\x10" if name == "big endian" else b"\xe0\x7f\x10\x00"
    start = content.find(tag) if name != "deflated" else len(content) // 2
    path.write_bytes(content[: start + 40])
    with pytest.raises(ImageError) as caught:
        dicom.pixels(dicom.header(path))
    assert caught.value.reason in ("truncated", "damaged")


# --- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["JPEG-LS", "JPEG 2000", "JPEG 14", "JPEG 14 SV1"])
def test_a_codestream_of_another_size_never_reaches_its_decoder(
    tmp_path: Path, dicoms: Any, pictures: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = dicoms.us(tmp_path / "us.dcm", pictures.echo(34, 41))
    LOSSLESS[name][0](path)
    dataset = pydicom.dcmread(path)
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    assert stated_size(frame) == (34, 41, 1, 8)
    sizes = {
        "JPEG 2000": (struct.pack(">II", 41, 34), struct.pack(">II", 60_000, 60_000)),
        "other": (struct.pack(">HH", 34, 41), struct.pack(">HH", 60_000, 60_000)),
    }
    old, new = sizes.get(name, sizes["other"])
    dataset.PixelData = encapsulate([frame.replace(old, new, 1)])
    dataset.save_as(path)
    monkeypatch.setattr(decoders, "_elsewhere", None)
    with pytest.raises(ImageError, match="got a codestream of 60000 x 60000") as caught:
        dicom.pixels(dicom.header(path))
    assert caught.value.reason == "damaged"


def test_a_deflated_bomb_is_refused(
    tmp_path: Path, dicoms: Any, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = dicoms.us(tmp_path / "us.dcm", pictures.echo())
    LOSSLESS["deflated"][0](path)
    content = path.read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = deflate.compress(b"\0" * (8 << 20)) + deflate.flush()
    path.write_bytes(content[:start] + bomb)
    monkeypatch.setattr(dicom, "MAX_INFLATED", 4 << 20)
    with pytest.raises(ImageError, match="expected a deflated file of at most") as caught:
        dicom.header(path)
    assert caught.value.reason == "too large"


def test_a_pipe_does_not_keep_us_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (dicom.header, lambda path: dicom.read(path, "US")):
        with pytest.raises(ImageError) as caught:
            read(tmp_path / "pipe")
        assert caught.value.reason == "not a file"


@pytest.mark.parametrize("tag", ["FloatPixelData", "DoubleFloatPixelData"])
def test_pixels_that_are_not_whole_numbers_are_refused(
    tmp_path: Path, dicoms: Any, pictures: Any, tag: str
) -> None:
    tags = {"PixelData": None, tag: np.zeros((64, 72), "<f8").tobytes()}
    path = dicoms.us(tmp_path / "us.dcm", pictures.echo(), **tags)
    with pytest.raises(ImageError, match="expected pixels in whole numbers") as caught:
        dicom.pixels(dicom.header(path))
    assert caught.value.reason == "float pixels"


@pytest.mark.parametrize(
    "syntax", [uid.MPEG2MPML, uid.MPEG4HP41, uid.JPEGExtended12Bit, uid.UID("1.2.840.10008.1.2.9")]
)
def test_a_compression_without_a_decoder_is_named(
    tmp_path: Path, dicoms: Any, pictures: Any, syntax: uid.UID
) -> None:
    path = dicoms.mg(tmp_path / "mg.dcm", pictures.breast(), BitsStored=12, HighBit=11)
    LOSSLESS["RLE"][0](path)
    header = dicom.header(path)
    header.file_meta.TransferSyntaxUID = syntax
    with pytest.raises(ImageError, match="can be decoded here, got") as caught:
        dicom.pixels(header)
    assert caught.value.reason == "no decoder"
    assert "1.2.840" not in str(caught.value)


# --- the decoder's own process ------------------------------------------------------------------


def test_a_decoder_that_dies_is_replaced(
    tmp_path: Path, dicoms: Any, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = dicoms.us(tmp_path / "us.dcm", pictures.echo(34, 41))
    LOSSLESS["JPEG-LS"][0](path)
    header = dicom.header(path)
    plain = dicom.pixels(header)
    process = decoders._elsewhere.process
    assert process is not None
    process.kill()
    process.wait()
    np.testing.assert_array_equal(dicom.pixels(header), plain)


def test_a_decoder_that_does_not_end_is_killed(
    tmp_path: Path, dicoms: Any, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = dicoms.us(tmp_path / "us.dcm", pictures.echo(34, 41))
    LOSSLESS["JPEG-LS"][0](path)
    header = dicom.header(path)
    plain = dicom.pixels(header)
    ends = []

    def idle(process: subprocess.Popen[bytes], *_: Any) -> Any:
        ends.append(process.wait())  # nothing was asked, so only the clock can end it
        raise EOFError

    monkeypatch.setattr(decoders, "DEADLINE", 0.1)
    monkeypatch.setattr(decoders._elsewhere, "_ask", idle)
    with pytest.raises(ImageError, match="expected a frame within 0 s") as caught:
        dicom.pixels(header)
    assert caught.value.reason == "decoder too slow"
    assert ends == [-signal.SIGKILL]
    monkeypatch.undo()
    np.testing.assert_array_equal(dicom.pixels(header), plain)


def test_bytes_that_end_the_decoder_end_in_an_error(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    """GDCM aborts its process where the length of a Huffman table is wrong."""
    path = dicoms.us(tmp_path / "us.dcm", pictures.echo(34, 41))
    LOSSLESS["JPEG 14 SV1"][0](path)
    plain = dicom.pixels(dicom.header(path))
    content = path.read_bytes()
    dataset = pydicom.dcmread(path)
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    at = frame.find(b"\xff\xc4") + 2
    dataset.PixelData = encapsulate([frame[:at] + b"\x00\x02" + frame[at + 2 :]])
    dataset.save_as(path)
    with pytest.raises(ImageError, match="the decoder broke off") as caught:
        dicom.pixels(dicom.header(path))
    assert caught.value.reason == "damaged"
    path.write_bytes(content)
    np.testing.assert_array_equal(dicom.pixels(dicom.header(path)), plain)


@pytest.mark.parametrize("name", ["JPEG-LS", "JPEG 2000", "JPEG 14 SV1"])
def test_a_codestream_with_more_bits_than_the_header_is_refused(
    tmp_path: Path, dicoms: Any, pictures: Any, name: str
) -> None:
    path = dicoms.mg(tmp_path / "mg.dcm", pictures.breast(34, 41), BitsStored=12, HighBit=11)
    LOSSLESS[name][0](path)
    dataset = pydicom.dcmread(path)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.save_as(path)
    with pytest.raises(ImageError, match="expected at most 8 bits, got a codestream of 1"):
        dicom.pixels(dicom.header(path))


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "DEADLINE", 5.0)


# --- what a decoder can reach -------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="needs Linux")
def test_decoders_process_has_a_bare_environment_and_may_open_no_file(
    tmp_path: Path, dicoms: Any, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HER2_CANARY", "a secret")
    decoders._elsewhere.stop()
    path = dicoms.us(tmp_path / "us.dcm", pictures.echo(34, 41))
    LOSSLESS["JPEG-LS"][0](path)
    dicom.pixels(dicom.header(path))
    process = decoders._elsewhere.process
    assert process is not None
    folder = Path(f"/proc/{process.pid}")
    assert b"HER2_CANARY" not in (folder / "environ").read_bytes()
    limits = (folder / "limits").read_text()
    assert re.search(r"^Max open files +0 +0 ", limits, re.MULTILINE)
    assert re.search(r"^Max file size +0 +0 ", limits, re.MULTILINE)
    decoders._elsewhere.stop()


def test_confined_process_cannot_open_a_key(tmp_path: Path) -> None:
    key = tmp_path / "node"
    key.write_text("a key")
    program = (
        "import socket, sys\n"
        "from her2_client.ingest.decoder_process import confine\n"
        "confine()\n"
        "for attempt in (lambda: open(sys.argv[1]), socket.socket):\n"
        "    try:\n"
        "        attempt()\n"
        "    except OSError:\n"
        "        continue\n"
        "    sys.exit('reached')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(key)], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "answer",
    [
        (b"[" * 100_000, b""),
        (b"7", b""),
        (b"{}", b"pixels"),
        (b'{"dtype": "O", "shape": [1], "photometric": ""}', b"12345678"),
        (b'{"dtype": "<u2", "shape": [-1, 99], "photometric": ""}', b"12"),
        (b'{"dtype": "<u2", "shape": "all", "photometric": ""}', b"12"),
    ],
    ids=["brackets", "a number", "nothing", "objects", "another size", "no shape"],
)
def test_a_decoder_that_answers_nonsense_damages_one_picture_alone(
    tmp_path: Path, dicoms: Any, pictures: Any, answer: tuple[bytes, bytes]
) -> None:
    path = dicoms.us(tmp_path / "us.dcm", pictures.echo(34, 41))
    LOSSLESS["JPEG-LS"][0](path)
    header = dicom.header(path)
    plain = dicom.pixels(header)
    decoders._elsewhere.stop()
    text, pixels = answer
    message = decoders.LENGTHS.pack(len(text), len(pixels)) + text + pixels
    program = f"import sys; sys.stdout.buffer.write({message!r}); sys.stdout.flush(); input()"
    decoders._elsewhere.owner = os.getpid()
    decoders._elsewhere.process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with pytest.raises(ImageError) as caught:
        dicom.pixels(header)
    assert caught.value.reason == "damaged"
    decoders._elsewhere.stop()
    np.testing.assert_array_equal(dicom.pixels(header), plain)
