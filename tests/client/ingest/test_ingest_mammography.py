"""Mammograms: orientation, photometric interpretation, crops, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from her2_client.ingest.mammography import mammogram
from her2_common.cases import Box
from her2_common.errors import ImageError

SIZE = 32
BOX = Box(10, 28, 26, 44)


def read(path: Path, box: Box | None = None, **options: Any) -> Any:
    return mammogram(path, box, **({"view": "CC", "laterality": None, "size": SIZE} | options))


def test_the_breast_is_standardised_and_the_air_is_zero(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    result = read(dicoms.mg(tmp_path / "cc.dcm", pictures.breast()))
    assert result.shape == (2, SIZE, SIZE)
    assert result.dtype == np.float16
    whole = result[0].astype(float)
    tissue = whole != 0
    assert whole[tissue].mean() == pytest.approx(0, abs=0.01)
    assert whole[tissue].std() == pytest.approx(1, abs=0.01)
    # the air above, below and right of the breast, and the padding (60 of 80 columns are image)
    assert not whole[0].any()
    assert not whole[-1].any()
    assert not whole[:, 24:].any()
    assert tissue[SIZE // 2, :15].all()
    # an ellipse of half axes 36 and 48 pixels, scaled by 32 / 80
    assert tissue.sum() == pytest.approx(np.pi / 2 * 36 * 48 * (SIZE / 80) ** 2, rel=0.08)


def test_monochrome1_is_inverted_monochrome2(tmp_path: Path, dicoms: Any, pictures: Any) -> None:
    stored = pictures.breast()
    plain = dicoms.mg(tmp_path / "2.dcm", stored, BitsStored=12, HighBit=11)
    inverted = dicoms.mg(
        tmp_path / "1.dcm",
        4095 - stored,
        BitsStored=12,
        HighBit=11,
        PhotometricInterpretation="MONOCHROME1",
    )
    np.testing.assert_array_equal(read(plain, BOX), read(inverted, BOX))


def test_the_window_is_applied(tmp_path: Path, dicoms: Any, pictures: Any) -> None:
    stored = pictures.breast()
    wide = dicoms.mg(tmp_path / "w.dcm", stored, WindowCenter=2048.0, WindowWidth=4096.0)
    narrow = dicoms.mg(tmp_path / "n.dcm", stored, WindowCenter=1200.0, WindowWidth=600.0)
    np.testing.assert_allclose(read(wide), read(dicoms.mg(tmp_path / "p", stored)), atol=0.01)
    # the narrow window ends at 1500: all of the dense disc (about 2000) saturates
    assert len(np.unique(read(narrow)[0][12:16, 5:9])) == 1
    assert len(np.unique(read(wide)[0][12:16, 5:9])) > 1


def test_the_modality_lut_is_applied(tmp_path: Path, dicoms: Any, pictures: Any) -> None:
    stored = pictures.breast()
    turned = dicoms.mg(tmp_path / "t", 4095 - stored, RescaleSlope=-1.0, RescaleIntercept=4095.0)
    np.testing.assert_array_equal(read(turned), read(dicoms.mg(tmp_path / "p", stored)))


@pytest.mark.parametrize("by", ["tag", "table", "picture"])
def test_right_breasts_are_mirrored_with_their_box(
    tmp_path: Path, dicoms: Any, pictures: Any, by: str
) -> None:
    stored = pictures.breast()
    columns = stored.shape[1]
    left = read(dicoms.mg(tmp_path / "l.dcm", stored), BOX)
    tag = "R" if by == "tag" else None
    path = dicoms.mg(tmp_path / "r.dcm", stored[:, ::-1], ImageLaterality=tag)
    mirrored = Box(columns - BOX.x1, BOX.y0, columns - BOX.x0, BOX.y1)
    right = read(path, mirrored, laterality="R" if by == "table" else None)
    np.testing.assert_array_equal(left, right)


def test_aspect_is_kept(tmp_path: Path, dicoms: Any) -> None:
    y, x = np.mgrid[:120, :60].astype(float)
    disc = (y - 60) ** 2 + (x - 30) ** 2 < 20**2
    result = read(dicoms.mg(tmp_path / "d", np.where(disc, 1000 + 9 * x, 10)), size=60)[0] != 0
    height, width = np.ptp(np.nonzero(result.any(1))), np.ptp(np.nonzero(result.any(0)))
    assert abs(height - width) <= 1
    assert 17 <= width <= 20  # a diameter of 40 pixels at half the resolution


def test_the_crop_is_read_at_the_original_resolution(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    stored = np.kron(pictures.breast(), np.ones((8, 8)))  # 640 x 480: the whole view shrinks 20x
    stored[300:302, 150:152] = 4000  # one micro-calcification, 2 x 2 pixels
    path = dicoms.mg(tmp_path / "c.dcm", stored)
    whole, crop = read(path, Box(140, 290, 162, 312)).astype(float)
    # 33 source pixels onto 32: the spot stays apart from its surroundings
    spot = np.unravel_index(crop.argmax(), crop.shape)
    assert crop[spot] == 5.0
    assert spot[0] == pytest.approx((301 - 284.5) / 33 * SIZE, abs=1)
    assert spot[1] == pytest.approx((151 - 134.5) / 33 * SIZE, abs=1)
    assert whole[14:16, 6:8].max() < 3.0  # in the whole view it drowns


def test_without_a_box_the_crop_is_the_whole_view(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    whole, crop = read(dicoms.mg(tmp_path / "c.dcm", pictures.breast()))
    np.testing.assert_array_equal(whole, crop)


def test_a_label_beside_the_breast_does_not_enter(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    stored = pictures.breast()
    clean = read(dicoms.mg(tmp_path / "a.dcm", stored))
    stored[2:9, 50:58] = 4000  # apart from the breast, as a film label is
    assert not read(dicoms.mg(tmp_path / "b.dcm", stored))[0, :4, 18:].any()
    assert not clean[0, :4, 18:].any()


def _view_code(value: str, modifier: str | None = None) -> Sequence:
    code = Dataset()
    code.CodeValue = value
    if modifier is not None:
        part = Dataset()
        part.CodeValue = modifier
        code.ViewModifierCodeSequence = Sequence([part])
    return Sequence([code])


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"PresentationIntentType": "FOR PROCESSING"}, "for processing"),
        ({"PresentationIntentType": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.2.1"},
         "no intent"),
        ({"Modality": "US"}, "wrong modality"),
        ({"ViewPosition": "MLO"}, "wrong view"),
        ({"ViewPosition": None, "ViewCodeSequence": _view_code("R-10226")}, "wrong view"),
        ({"ViewPosition": None, "ViewCodeSequence": _view_code("X-1")}, "wrong view"),
        ({"ViewCodeSequence": _view_code("R-10242", "R-102D7")}, "special view"),
        ({"BreastImplantPresent": "YES"}, "implant"),
        ({"ImageLaterality": "R"}, "wrong laterality"),
        ({"PixelData": None}, "truncated"),
    ],
)  # fmt: skip
def test_what_is_refused(
    tmp_path: Path, dicoms: Any, pictures: Any, tags: dict[str, Any], reason: str
) -> None:
    path = dicoms.mg(tmp_path / "cc.dcm", pictures.breast(), **tags)
    with pytest.raises(ImageError, match="expected") as caught:
        read(path, laterality="L")
    assert caught.value.reason == reason


def test_what_is_accepted_without_the_usual_tags(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    plain = read(dicoms.mg(tmp_path / "a.dcm", pictures.breast()))
    coded = dicoms.mg(
        tmp_path / "b.dcm",
        pictures.breast(),
        PresentationIntentType=None,
        ViewPosition=None,
        ViewCodeSequence=_view_code("R-10242"),
        ImageLaterality=None,
        Laterality="L",
    )
    np.testing.assert_array_equal(read(coded, laterality="L"), plain)


def test_blank_pictures_and_boxes_outside_are_refused(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    with pytest.raises(ImageError) as caught:
        read(dicoms.mg(tmp_path / "blank.dcm", np.full((40, 30), 7)))
    assert caught.value.reason == "blank image"
    with pytest.raises(ImageError) as caught:
        read(dicoms.mg(tmp_path / "cc.dcm", pictures.breast()), Box(50, 10, 61, 20))
    assert caught.value.reason == "box outside"
