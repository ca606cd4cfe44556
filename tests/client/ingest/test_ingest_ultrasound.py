"""Ultrasound: nothing outside the verified region enters; colour becomes grey."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import convert_color_space
from pydicom.sequence import Sequence
from pydicom.uid import MPEG2MPML, UID, JPEGLSLossless, RLELossless

from her2_client.ingest.ultrasound import ultrasound
from her2_common.cases import Box
from her2_common.errors import ImageError

SIZE = 32


@pytest.mark.parametrize("box", [None, Box(6, 8, 22, 20), Box(30, 24, 50, 40)])
def test_text_outside_the_region_changes_nothing(
    tmp_path: Path, dicoms: Any, pictures: Any, box: Box | None
) -> None:
    stored = pictures.echo()
    clean = ultrasound(dicoms.us(tmp_path / "a", stored), box, size=SIZE)
    written = stored.copy()
    for border in np.s_[:4, :], np.s_[-4:, :], np.s_[:, :4], np.s_[:, -4:]:
        written[border] = np.random.default_rng(1).integers(0, 256, written[border].shape)
    np.testing.assert_array_equal(
        ultrasound(dicoms.us(tmp_path / "b", written), box, size=SIZE), clean
    )


def test_the_region_is_kept_to_its_last_pixel(tmp_path: Path, dicoms: Any, pictures: Any) -> None:
    stored = pictures.echo()
    plain = ultrasound(dicoms.us(tmp_path / "a", stored), None, size=64)
    stored[59, 67] = 255  # the last pixel of the region 4..68 x 4..60
    changed = ultrasound(dicoms.us(tmp_path / "b", stored), None, size=64)
    assert (plain != changed).any()


def test_the_whole_region_without_a_box_keeps_its_aspect(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    result = ultrasound(dicoms.us(tmp_path / "a", pictures.echo()), None, size=SIZE)
    assert result.shape == (1, SIZE, SIZE)
    assert result.dtype == np.float16
    picture = result[0].astype(float)
    # 64 x 56 pixels onto 32 x 28, two lines of padding above and below
    assert not picture[:2].any()
    assert not picture[-2:].any()
    assert picture[2:-2].mean() == pytest.approx(0, abs=0.01)
    assert picture[2:-2].std() == pytest.approx(1, abs=0.01)
    assert picture[16, 16] < -1  # the lesion is dark


def test_the_box_is_enlarged_twice(tmp_path: Path, dicoms: Any, pictures: Any) -> None:
    stored = pictures.echo()
    result = ultrasound(dicoms.us(tmp_path / "a", stored), Box(28, 24, 44, 40), size=SIZE)
    part = stored[16:48, 20:52].astype(float)  # 32 x 32 source pixels: one to one
    np.testing.assert_allclose(result[0], (part - part.mean()) / part.std(), atol=2e-3)


def test_colour_becomes_grey_however_it_is_stored(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    grey = pictures.echo().astype(np.uint8)
    plain = ultrasound(dicoms.us(tmp_path / "g", grey), None, size=SIZE)
    rgb = np.repeat(grey[..., np.newaxis], 3, axis=2)
    in_rgb = ultrasound(dicoms.us(tmp_path / "rgb", rgb), None, size=SIZE)
    np.testing.assert_allclose(in_rgb, plain, atol=0.01)

    ybr = convert_color_space(rgb, "RGB", "YBR_FULL")
    path = dicoms.us(tmp_path / "ybr", ybr, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_allclose(ultrasound(path, None, size=SIZE), plain, atol=0.05)

    # a palette that turns the order of the stored numbers around
    turned = (np.arange(255, -1, -1, dtype=np.uint16) * 257).tobytes()
    tables = {
        f"{colour}PaletteColorLookupTable{part}": value
        for colour in ("Red", "Green", "Blue")
        for part, value in (("Descriptor", [256, 0, 16]), ("Data", turned))
    }
    path = dicoms.us(
        tmp_path / "palette", 255 - grey, PhotometricInterpretation="PALETTE COLOR", **tables
    )
    np.testing.assert_allclose(ultrasound(path, None, size=SIZE), plain, atol=0.01)

    path = dicoms.us(tmp_path / "m1", 255 - grey, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(ultrasound(path, None, size=SIZE), plain, atol=0.01)


def test_of_several_frames_the_first_is_read(tmp_path: Path, dicoms: Any, pictures: Any) -> None:
    first = pictures.echo().astype(np.uint8)
    plain = ultrasound(dicoms.us(tmp_path / "a", first), None, size=SIZE)
    frames = np.stack([first, 255 - first, first // 2]).tobytes()
    path = dicoms.us(tmp_path / "b", first, NumberOfFrames=3, PixelData=frames)
    np.testing.assert_array_equal(ultrasound(path, None, size=SIZE), plain)


def _regions(*regions: tuple[tuple[int, int, int, int], int, int]) -> Sequence:
    items = []
    for (x0, y0, x1, y1), spatial, data in regions:
        item = Dataset()
        item.RegionSpatialFormat, item.RegionDataType = spatial, data
        item.RegionLocationMinX0, item.RegionLocationMinY0 = x0, y0
        item.RegionLocationMaxX1, item.RegionLocationMaxY1 = x1 - 1, y1 - 1
        items.append(item)
    return Sequence(items)


def test_of_two_pictures_the_one_with_the_box_is_taken(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    stored = np.concatenate([pictures.echo(), 255 - pictures.echo()], axis=1)  # 64 x 144
    both = _regions(((4, 4, 68, 60), 1, 1), ((76, 4, 140, 60), 1, 1), ((0, 0, 144, 64), 2, 3))
    path = dicoms.us(tmp_path / "two", stored, SequenceOfUltrasoundRegions=both)
    alone = dicoms.us(tmp_path / "one", stored, region=(76, 4, 140, 60))
    box = Box(100, 24, 116, 40)
    np.testing.assert_array_equal(
        ultrasound(path, box, size=SIZE), ultrasound(alone, box, size=SIZE)
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"region": None}, "no verified region"),
        ({"region": (0, 0, 72, 64)}, "no verified region"),
        ({"SequenceOfUltrasoundRegions": _regions(((4, 4, 60, 60), 3, 3))}, "no verified region"),
        ({"SequenceOfUltrasoundRegions": _regions(((4, 4, 73, 60), 1, 1))}, "no verified region"),
        ({"SequenceOfUltrasoundRegions": _regions(((40, 4, 40, 60), 1, 1))}, "no verified region"),
        ({"region": (0, 0, 20, 20)}, "box outside"),
        ({"Modality": "MG"}, "wrong modality"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, dicoms: Any, pictures: Any, options: dict[str, Any], reason: str
) -> None:
    path = dicoms.us(tmp_path / "us.dcm", pictures.echo(), **options)
    with pytest.raises(ImageError, match="expected") as caught:
        ultrasound(path, Box(28, 24, 44, 40), size=SIZE)
    assert caught.value.reason == reason


def test_a_whole_picture_is_a_region_where_nothing_is_burned_in(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    path = dicoms.us(
        tmp_path / "us.dcm", pictures.echo(), region=(0, 0, 72, 64), BurnedInAnnotation="NO"
    )
    assert ultrasound(path, None, size=SIZE).any()


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_lossless_compression_changes_nothing(
    tmp_path: Path, dicoms: Any, pictures: Any, syntax: UID
) -> None:
    path = dicoms.us(tmp_path / "us.dcm", pictures.echo())
    plain = ultrasound(path, None, size=SIZE)
    dataset = pydicom.dcmread(path)
    dataset.compress(syntax)
    dataset.save_as(path)
    np.testing.assert_array_equal(ultrasound(path, None, size=SIZE), plain)


def test_a_compression_without_a_decoder_is_named(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    path = dicoms.us(tmp_path / "us.dcm", pictures.echo())
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    dataset.file_meta.TransferSyntaxUID = MPEG2MPML
    dataset.save_as(path)
    with pytest.raises(ImageError, match="can be decoded here, got MPEG2") as caught:
        ultrasound(path, None, size=SIZE)
    assert caught.value.reason == "no decoder"
