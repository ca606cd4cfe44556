"""PNG and JPEG: known by content, checked before they are decoded, grey as a viewer shows them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from her2_client.ingest.pixels import grey
from her2_client.ingest.planar.mammography import mammogram
from her2_client.ingest.planar.picture import is_picture, read_picture
from her2_client.ingest.planar.ultrasound import ultrasound
from her2_client.ingest.privacy.guard import Decision, Guard, digest
from her2_common.cases import Box
from her2_common.errors import ImageError

KEY = b"k" * 32
GREY = np.random.default_rng(4).integers(0, 256, (20, 30)).astype(np.uint8)
RGB = np.random.default_rng(5).integers(0, 256, (20, 30, 3)).astype(np.uint8)
LUMA = RGB @ np.array([0.299, 0.587, 0.114])


pytestmark = pytest.mark.usefixtures("searched")


def save(path: Path, array: Any, format: str = "PNG", **options: Any) -> Path:
    Image.fromarray(array).save(path, format, **options)
    return path


def palette() -> Any:
    image = Image.fromarray(GREY // 64)
    image.putpalette([v for k in range(256) for v in (k * 60 % 256, k * 5 % 256, k)])
    return image


SHADES = (GREY // 64).astype(float)
FROM_PALETTE = 0.299 * (SHADES * 60 % 256) + 0.587 * (SHADES * 5 % 256) + 0.114 * SHADES


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(GREY), GREY),
        (Image.fromarray(GREY.astype(np.uint16) * 257), GREY * 257.0),
        (Image.fromarray(GREY > 99), GREY > 99),
        (Image.fromarray(RGB), LUMA),
        (Image.fromarray(np.dstack([RGB, np.full((20, 30), 255, np.uint8)])), LUMA),
        (Image.fromarray(np.dstack([GREY, np.full((20, 30), 255, np.uint8)])), GREY),
        (palette(), FROM_PALETTE),
    ],
    ids=["8 bits", "16 bits", "1 bit", "RGB", "RGBA", "LA", "palette"],
)
def test_every_kind_of_png_becomes_grey(tmp_path: Path, image: Any, expected: Any) -> None:
    path = tmp_path / "picture.dat"  # the name says nothing
    image.save(path, "PNG")
    assert is_picture(path)
    found = grey(read_picture(path))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_jpeg_is_what_its_decoder_gives(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(40), np.arange(50)).astype(np.uint8)
    path = save(tmp_path / "picture.png", smooth, "JPEG", quality=95)  # a wrong name
    assert is_picture(path)
    np.testing.assert_allclose(grey(read_picture(path)), smooth, atol=3)
    path = save(tmp_path / "colour", np.dstack([smooth, smooth // 2, smooth // 3]), "JPEG")
    expected = smooth * 0.299 + smooth // 2 * 0.587 + smooth // 3 * 0.114
    np.testing.assert_allclose(grey(read_picture(path)), expected, atol=4)


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda a: a),
        (3, lambda a: a[::-1, ::-1]),
        (6, lambda a: np.rot90(a, -1)),
        (8, np.rot90),
        (2, lambda a: a[:, ::-1]),
    ],
)
@pytest.mark.parametrize("bits", [8, 16])
def test_the_orientation_of_exif_is_applied(
    tmp_path: Path, orientation: int, turned: Callable[[Any], Any], bits: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = GREY if bits == 8 else GREY.astype(np.uint16) * 257
    path = save(tmp_path / "p.png", stored, exif=exif)
    np.testing.assert_array_equal(grey(read_picture(path)), turned(stored.astype(float)))


def chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def huge(path: Path) -> Path:
    """A PNG of some bytes that claims 100,000 x 100,000 pixels."""
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


def wordy(path: Path) -> Path:
    """A PNG with a text chunk that inflates to 64 MiB."""
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a" * (64 << 20), zip=True)
    return save(path, GREY, pnginfo=info)


def see_through(path: Path) -> Path:
    return save(path, np.dstack([RGB, np.full((20, 30), 254, np.uint8)]))


def cmyk(path: Path) -> Path:
    Image.fromarray(RGB).convert("CMYK").save(path, "JPEG")
    return path


def changed(path: Path, change: Callable[[bytes], bytes], format: str = "PNG") -> Path:
    save(path, GREY, format)
    path.write_bytes(change(path.read_bytes()))
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (huge, "too large"),
        (wordy, "damaged"),
        (see_through, "alpha"),
        (cmyk, "colour space"),
        (lambda path: changed(path, lambda b: b[:-40]), "damaged"),
        (lambda path: changed(path, lambda b: b[:300]), "damaged"),
        (lambda path: changed(path, lambda b: b[:60] + b"\0\0\0" + b[63:]), "damaged"),
        (lambda path: changed(path, lambda b: b[:-200], "JPEG"), "damaged"),
        (lambda path: changed(path, lambda b: b[:20], "JPEG"), "damaged"),
    ],
    ids=["bomb", "text", "alpha", "CMYK", "short", "shorter", "checksum", "JPEG", "no JPEG"],
)
def test_pictures_that_are_refused(
    tmp_path: Path, make: Callable[[Path], Path], reason: str
) -> None:
    path = make(tmp_path / "p")
    assert is_picture(path)
    with pytest.raises(ImageError) as caught:
        grey(read_picture(path))
    assert (caught.value.disposition, caught.value.reason) == ("refused", reason)
    assert str(caught.value) != "p"


@given(
    places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    keep=st.floats(0.05, 1),
    format=st.sampled_from(["PNG", "JPEG"]),
)
@settings(max_examples=60, deadline=None)
def test_changed_bytes_end_in_a_picture_or_an_image_error(
    tmp_path_factory: pytest.TempPathFactory,
    places: list[tuple[float, int]],
    keep: float,
    format: str,
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    save(path, GREY, format)
    content = bytearray(path.read_bytes())
    for place, value in places:
        content[int(place * (len(content) - 1))] = value
    path.write_bytes(content[: max(4, int(keep * len(content)))])
    if not is_picture(path):
        return
    try:
        found = grey(read_picture(path))
    except ImageError:
        return
    assert np.isfinite(found).all()


def test_a_dicom_file_that_looks_like_a_png_is_dicom(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    path = dicoms.us(tmp_path / "us.png", pictures.echo())
    plain = ultrasound(path, None, size=32, seed=0, guard=Guard(KEY)).values
    content = path.read_bytes()
    path.write_bytes(b"\x89PNG\r\n\x1a\n".ljust(128, b"\0") + content[128:])
    assert not is_picture(path)
    again = ultrasound(path, None, size=32, seed=0, guard=Guard(KEY)).values
    np.testing.assert_array_equal(again, plain)


# --- into the cache -----------------------------------------------------------------------------


def mammogram_of(path: Path, box: Box | None = None, side: Any = None) -> Any:
    return mammogram(path, box, view="CC", laterality=side, size=32, guard=Guard(KEY))


@pytest.mark.parametrize("side", ["table", "brightness"])
def test_a_mammogram_in_png_is_that_in_dicom(
    tmp_path: Path, dicoms: Any, pictures: Any, side: str
) -> None:
    stored, box = pictures.breast().astype(np.uint16)[:, ::-1].copy(), Box(34, 28, 50, 44)
    dicom = mammogram_of(dicoms.mg(tmp_path / "r.dcm", stored, ImageLaterality="R"), box)
    png = save(tmp_path / "r", stored)
    result = mammogram_of(png, box, "R" if side == "table" else None)
    np.testing.assert_array_equal(result.values, dicom.values)
    assert (result.scanner, result.box) == ("not stated", [[0.35, 0.55], [0.125, 0.325]])


def test_text_in_a_mammogram_in_png_asks_for_a_reviewer(
    tmp_path: Path, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "her2_client.ingest.privacy.search.find_text", lambda picture: [(1, 1, 9, 4)]
    )
    with pytest.raises(ImageError) as caught:
        mammogram_of(save(tmp_path / "l", pictures.breast().astype(np.uint16)))
    assert (caught.value.disposition, caught.value.reason) == ("quarantined", "text found")


def test_an_ultrasound_in_png_always_asks_for_a_reviewer(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    stored = pictures.echo().astype(np.uint8)
    path = save(tmp_path / "us.png", stored)
    with pytest.raises(ImageError, match="got a picture without a header") as caught:
        ultrasound(path, None, size=32, seed=0, guard=Guard(KEY))
    assert (caught.value.disposition, caught.value.reason) == ("quarantined", "no verified region")
    for box in (None, Box(28, 24, 44, 40)):
        approved = Guard(KEY, {digest(KEY, [path]): Decision(True, (4, 4, 68, 60))})
        result = ultrasound(path, box, size=32, seed=0, guard=approved).values
        plain = ultrasound(
            dicoms.us(tmp_path / "us.dcm", stored), box, size=32, seed=0, guard=Guard(KEY)
        )
        np.testing.assert_array_equal(result, plain.values)
    with pytest.raises(ImageError) as caught:
        ultrasound(path, Box(28, 24, 44, 40, 1, 2), size=32, seed=0, guard=Guard(KEY))
    assert caught.value.reason == "frame outside"


def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    for read in (
        lambda path: mammogram_of(path),
        lambda path: ultrasound(path, None, size=32, seed=0, guard=Guard(KEY)),
    ):
        with pytest.raises(ImageError) as caught:
            read(tmp_path / "none.png")
        assert caught.value.reason == "missing file"
