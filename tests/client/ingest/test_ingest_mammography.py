"""Mammograms: orientation, photometric interpretation, crops, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from her2_client.ingest.planar.mammography import mammogram
from her2_client.ingest.privacy.guard import Decision, Guard, digest
from her2_common.cases import Box
from her2_common.errors import ImageError

SIZE = 32
BOX = Box(10, 28, 26, 44)


KEY = b"k" * 32


pytestmark = pytest.mark.usefixtures("searched")


CR, DX = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1"


def guard(**decisions: Decision) -> Guard:
    return Guard(KEY, decisions)


def standardised(path: Path, box: Box | None = None, **options: Any) -> Any:
    usual = {"view": "CC", "laterality": None, "size": SIZE, "guard": guard()}
    return mammogram(path, box, **(usual | options))


def read(path: Path, box: Box | None = None, **options: Any) -> Any:
    return standardised(path, box, **options).values


def view_code(value: str, modifier: str | None = None) -> Sequence:
    code = Dataset()
    code.CodeValue = value
    if modifier is not None:
        part = Dataset()
        part.CodeValue = modifier
        code.ViewModifierCodeSequence = Sequence([part])
    return Sequence([code])


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


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("centre", "width", "used"),
    [(2048, 4096, True), (1200, 2400, True), (127, 255, False), (50, 100, False),
     (-600, 1600, False), (1200, 1, False), (1200, 0, False), (1200, "1e308", False)],
)  # fmt: skip
def test_a_window_that_hides_the_breast_is_not_used_and_a_remark_says_so(
    tmp_path: Path,
    dicoms: Any,
    pictures: Any,
    centre: Any,
    width: Any,
    used: bool,
    photometric: str,
) -> None:
    stored = pictures.breast()
    tags: dict[str, Any] = {"BitsStored": 12, "HighBit": 11, "WindowWidth": str(width)}
    tags["WindowCenter"] = str(centre if photometric == "MONOCHROME2" else 4095 - centre)
    tags["PhotometricInterpretation"] = photometric
    shown = stored if photometric == "MONOCHROME2" else 4095 - stored
    result = standardised(dicoms.mg(tmp_path / "w", shown, **tags), BOX)
    assert result.remarks == (() if used else ("window not used",))
    if not used:
        plain = read(dicoms.mg(tmp_path / "plain", stored), BOX)
        np.testing.assert_array_equal(result.values, plain)


def test_of_a_scan_on_white_a_reviewer_may_keep_the_mammogram(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    stored = np.pad(pictures.breast(), ((60, 60), (0, 140)), constant_values=4000)
    tags = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}
    path = dicoms.mg(tmp_path / "scan", stored, **tags)
    with pytest.raises(ImageError) as caught:
        read(path)
    assert (caught.value.disposition, caught.value.reason) == ("quarantined", "secondary capture")
    name = digest(KEY, [path])
    with pytest.raises(ImageError) as caught:
        read(path, guard=guard(**{name: Decision(approved=True)}))
    assert caught.value.reason == "bright background"
    kept = read(path, guard=guard(**{name: Decision(True, (0, 60, 60, 140))}))
    assert (kept[0] != 0).any()


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


def test_the_crop_is_standardised_by_its_own_tissue(tmp_path: Path, dicoms: Any) -> None:
    """In a fatty breast a dense lesion is far above the mean: calcifications in it must be seen."""
    rng = np.random.default_rng(6)
    y, x = np.mgrid[:200, :150].astype(float)
    breast = ((y - 100) / 90) ** 2 + (x / 120) ** 2 < 1
    lesion = (y - 100) ** 2 + (x - 50) ** 2 < 10**2
    stored = np.where(breast, 500 + rng.normal(0, 20, y.shape) + 700 * lesion, 10).round()
    calcifications = (y % 7 == 3) & (x % 6 == 1) & lesion
    stored[calcifications] += 150
    box = Box(40, 90, 61, 111)
    _, crop = read(dicoms.mg(tmp_path / "cc", stored), box, size=32).astype(float)
    assert crop[crop != 0].mean() == pytest.approx(0, abs=0.01)
    assert crop[crop != 0].std() == pytest.approx(1, abs=0.01)
    # 31.5 source pixels onto 32: the nearest pixel of the crop to each calcification
    row, column = (
        (k[calcifications] + 0.5 - c + 15.75) / 31.5 * 32 for k, c in ((y, 100.5), (x, 50.5))
    )
    seen = crop[row.astype(int), column.astype(int)]
    inside = crop[8:24, 8:24]
    assert inside.max() < 5
    assert np.median(seen) > np.percentile(inside, 95)


def test_a_box_beside_the_breast_is_refused(tmp_path: Path, dicoms: Any, pictures: Any) -> None:
    path = dicoms.mg(tmp_path / "cc", pictures.breast())
    with pytest.raises(ImageError, match="expected a box on the breast") as caught:
        read(path, Box(54, 2, 58, 6))
    assert (caught.value.disposition, caught.value.reason) == ("refused", "box outside")


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


def test_a_marker_within_the_crop_does_not_enter(
    tmp_path: Path, dicoms: Any, pictures: Any, searched: list[Any]
) -> None:
    box = Box(20, 4, 56, 40)  # enlarged 1.5 times it reaches the corner with the marker
    stored = pictures.breast()
    clean = read(dicoms.mg(tmp_path / "a.dcm", stored), box)
    searched.clear()
    stored[2:9, 50:58] = 1300  # as grey as the breast: no threshold of intensity removes it
    marked = read(dicoms.mg(tmp_path / "b.dcm", stored), box)
    np.testing.assert_array_equal(marked[1] != 0, clean[1] != 0)
    # the thresholds see the marker's share of the histogram, the breast is the same
    np.testing.assert_allclose(marked, clean, atol=0.02)
    whole, crop = searched
    assert whole.shape[1] <= 50  # the marker starts there
    assert len(np.unique(crop[2:9, 50 - 11 : 58 - 11])) == 1  # the crop starts at column 11
    assert crop.max() > 1300


@pytest.mark.parametrize(
    ("tags", "disposition", "reason"),
    [
        ({"PresentationIntentType": "FOR PROCESSING"}, "refused", "for processing"),
        ({"PresentationIntentType": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.2.1"},
         "refused", "for processing"),
        ({"PresentationIntentType": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.3"},
         "refused", "no intent"),
        ({"Modality": "CR", "SOPClassUID": CR, "ViewPosition": "PA"}, "refused", "wrong modality"),
        ({"Modality": "CR", "BodyPartExamined": "BREAST"}, "refused", "wrong modality"),
        ({"Modality": "US"}, "refused", "wrong modality"),
        ({"ViewPosition": "MLO"}, "refused", "wrong view"),
        ({"ViewPosition": None, "ViewCodeSequence": view_code("R-10226")}, "refused", "wrong view"),
        ({"ViewPosition": None, "ViewCodeSequence": view_code("X-1")}, "refused", "wrong view"),
        ({"ViewCodeSequence": view_code("399368009")}, "refused", "contradictory view"),
        ({"Laterality": "R"}, "refused", "contradictory laterality"),
        ({"ImageLaterality": "R"}, "refused", "wrong laterality"),
        ({"ViewCodeSequence": view_code("R-10242", "R-102D7")}, "set aside", "spot view"),
        ({"ViewCodeSequence": view_code("R-10242", "399163009")}, "set aside",
         "magnification view"),
        ({"ViewCodeSequence": view_code("R-10242", "R-102D5")}, "set aside", "implant displaced"),
        ({"ViewCodeSequence": view_code("R-10242", "399011000")}, "set aside", "partial view"),
        ({"PartialView": "YES"}, "set aside", "partial view"),
        ({"BreastImplantPresent": "YES"}, "set aside", "implant"),
        ({"EstimatedRadiographicMagnificationFactor": "1.8"}, "set aside", "magnification view"),
        ({"PaddleDescription": "SPOT COMPRESSION"}, "set aside", "spot view"),
        ({"SeriesDescription": "R CCID"}, "set aside", "implant displaced"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.13.1.3"}, "set aside", "tomosynthesis"),
        ({"PixelData": None}, "refused", "truncated"),
        ({"RescaleSlope": 0.0, "RescaleIntercept": 0.0}, "refused", "rescale"),
        ({"RescaleSlope": 1e30, "RescaleIntercept": 0.0}, "refused", "rescale"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "refused", "not grey"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1"}, "quarantined", "encapsulated PDF"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "quarantined", "secondary capture"),
        ({"BurnedInAnnotation": "YES"}, "quarantined", "burned-in annotation"),
    ],
)  # fmt: skip
def test_what_is_not_used(
    tmp_path: Path,
    dicoms: Any,
    pictures: Any,
    tags: dict[str, Any],
    disposition: str,
    reason: str,
) -> None:
    path = dicoms.mg(tmp_path / "cc.dcm", pictures.breast(), **tags)
    with pytest.raises(ImageError) as caught:
        read(path, laterality="L")
    assert (caught.value.disposition, caught.value.reason) == (disposition, reason)
    assert str(caught.value).startswith(("expected ", "damaged "))


def test_what_is_accepted_without_the_usual_tags(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    plain = read(dicoms.mg(tmp_path / "a.dcm", pictures.breast()))
    coded = dicoms.mg(
        tmp_path / "b.dcm",
        pictures.breast(),
        PresentationIntentType=None,
        ViewPosition=None,
        ViewCodeSequence=view_code("R-10242"),
        ImageLaterality=None,
        Laterality="L",
    )
    np.testing.assert_array_equal(read(coded, laterality="L"), plain)


@pytest.mark.parametrize(
    "tags",
    [
        {"Modality": "CR", "SOPClassUID": CR},
        {"Modality": "MG", "SOPClassUID": CR},
        {"Modality": "CR", "SOPClassUID": CR, "ViewPosition": None, "SeriesDescription": "L CC",
         "BodyPartExamined": "BREAST"},
        {"Modality": "CR", "SOPClassUID": CR, "ViewPosition": None, "SeriesDescription": "L CC",
         "AnatomicRegionSequence": view_code("T-04000")},
        {"Modality": "DX", "SOPClassUID": DX},
    ],
)  # fmt: skip
def test_mammograms_of_imaging_plates_are_used(
    tmp_path: Path, dicoms: Any, pictures: Any, tags: dict[str, Any]
) -> None:
    plain = read(dicoms.mg(tmp_path / "a.dcm", pictures.breast()))
    made = dicoms.mg(tmp_path / "b.dcm", pictures.breast(), PresentationIntentType=None, **tags)
    np.testing.assert_array_equal(read(made, laterality="L"), plain)


@pytest.mark.parametrize("dummy", ["19000101", "19700101", "20200101"])
def test_two_studies_of_one_dummy_date_are_refused_in_a_folder(
    tmp_path: Path, dicoms: Any, pictures: Any, dummy: str
) -> None:
    folder, stored = tmp_path / "exam", pictures.breast()
    day = {"StudyDate": dummy, "AcquisitionDate": dummy}
    dicoms.mg(folder / "a", stored, StudyInstanceUID="1.2.1", AcquisitionTime="1000", **day)
    second = {"StudyInstanceUID": "1.2.2", "AcquisitionTime": "1010", **day}
    dicoms.mg(folder / "b", stored[::-1] + 100, **second)
    with pytest.raises(ImageError) as caught:
        read(folder, laterality="L")
    assert caught.value.reason == "several examinations"


def test_blank_pictures_and_boxes_outside_are_refused(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    with pytest.raises(ImageError) as caught:
        read(dicoms.mg(tmp_path / "blank.dcm", np.full((40, 30), 7)))
    assert caught.value.reason == "blank image"
    with pytest.raises(ImageError) as caught:
        read(dicoms.mg(tmp_path / "cc.dcm", pictures.breast()), Box(50, 10, 61, 20))
    assert caught.value.reason == "box outside"


# --- the guard ----------------------------------------------------------------------------------


def test_what_is_searched_is_what_enters(
    tmp_path: Path, dicoms: Any, pictures: Any, searched: list[Any]
) -> None:
    stored = pictures.breast()[:, ::-1]  # a right breast: letters must not be mirrored
    read(dicoms.mg(tmp_path / "r.dcm", stored, ImageLaterality="R"), Box(34, 28, 50, 44))
    whole, crop = searched
    # the box enlarged 1.5 times is 30..54 x 24..48, all of it breast
    np.testing.assert_array_equal(crop, stored[24:48, 30:54])
    tissue = whole > 1000
    rows = np.nonzero((stored > 1000).any(1))[0]
    assert whole.shape[0] == pytest.approx(np.ptp(rows) + 1, abs=2 * 80 / SIZE)
    assert whole[tissue].sum() == pytest.approx(stored[stored > 1000].sum(), rel=0.05)
    assert set(np.unique(whole[tissue])) <= set(np.unique(stored))


def test_a_large_view_is_searched_at_twice_the_caches_resolution(
    tmp_path: Path, dicoms: Any, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = np.kron(pictures.breast(), np.ones((12, 12)))  # 960 x 720: 30 pixels become one
    path = dicoms.mg(tmp_path / "cc.dcm", stored)
    seen: list[Any] = []

    def find_text(picture: Any) -> list[tuple[int, int, int, int]]:
        seen.append(picture)
        return [(2, 3, 5, 4)]

    class Recorder(Guard):
        def _seen(self, name: str, picture: Any, found: Any, reason: str) -> None:
            seen.append(list(found))

    monkeypatch.setattr("her2_client.ingest.privacy.search.find_text", find_text)
    with pytest.raises(ImageError):
        read(path, guard=Recorder(KEY))
    picture, ((x0, y0, x1, y1),) = seen
    assert max(picture.shape) <= 2.5 * SIZE
    assert (x1 - x0, y1 - y0) == (45, 15)  # blocks of 15 x 15 source pixels
    assert x0 == 30  # the breast starts at the chest wall
    assert y0 % 30 == 15  # and three blocks below a row of the cache


@pytest.mark.parametrize("side", ["L", "R"])
def test_text_asks_for_a_reviewer_who_may_keep_a_part(
    tmp_path: Path, dicoms: Any, pictures: Any, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    stored = pictures.breast()
    if side == "R":
        stored = stored[:, ::-1]
    path = dicoms.mg(tmp_path / "cc.dcm", stored, ImageLaterality=side)
    monkeypatch.setattr("her2_client.ingest.privacy.search.find_text", lambda _: [(3, 2, 13, 8)])
    seen: list[Any] = []

    class Recorder(Guard):
        def _seen(self, name: str, picture: Any, found: Any, reason: str) -> None:
            seen.append((picture(), list(found), reason))

    with pytest.raises(ImageError, match="got text in 1 place") as caught:
        read(path, guard=Recorder(KEY))
    assert (caught.value.disposition, caught.value.reason) == ("quarantined", "text found")
    ((picture, found, reason),) = seen
    assert reason == "text found"
    np.testing.assert_array_equal(picture, stored)  # what the reviewer sees is the whole picture
    ((x0, y0, x1, y1),) = found
    assert (x1 - x0, y1 - y0) == (10, 6)
    assert 0 <= x0 < x1 <= 60
    assert 0 <= y0 < y1 <= 80

    approved = {digest(KEY, [path]): Decision(True)}
    plain = read(path, guard=guard(**approved))
    monkeypatch.setattr("her2_client.ingest.privacy.search.find_text", lambda _: [])
    np.testing.assert_array_equal(plain, read(path))
    monkeypatch.setattr("her2_client.ingest.privacy.search.find_text", lambda _: [(3, 2, 13, 8)])
    kept = read(path, guard=guard(**{digest(KEY, [path]): Decision(True, (0, 0, 60, 40))}))
    assert plain[:, SIZE // 2 :].any()
    assert not kept[:, SIZE // 2 :].any()  # rows 40 to 80 are not kept
    assert kept[:, : SIZE // 2].any()

    with pytest.raises(ImageError) as caught:
        read(path, guard=guard(**{digest(KEY, [path]): Decision(False)}))
    assert (caught.value.disposition, caught.value.reason) == ("refused", "refused at review")
    with pytest.raises(ImageError) as caught:
        read(path, guard=guard(**{digest(KEY, [path]): Decision(True, (90, 90, 99, 99))}))
    assert caught.value.reason == "nothing kept"


# --- a folder -----------------------------------------------------------------------------------


def test_the_right_image_of_a_folder_is_used(tmp_path: Path, dicoms: Any, pictures: Any) -> None:
    folder, stored = tmp_path / "exam", pictures.breast()
    other = stored[::-1] + 100
    plain = read(dicoms.mg(tmp_path / "alone.dcm", stored))
    early = {"AcquisitionDate": "20200101", "AcquisitionTime": "090000"}
    late = {"AcquisitionDate": "20200101", "AcquisitionTime": "091500.5"}
    dicoms.mg(folder / "z.dcm", stored, Manufacturer="HOLOGIC, Inc.", **late)
    dicoms.mg(folder / "a.dcm", other, **early)
    dicoms.mg(folder / "sub" / "b.dcm", other, ViewPosition="MLO")
    dicoms.mg(folder / "sub" / "c.dcm", other, ImageLaterality="R")
    dicoms.mg(folder / "d.dcm", other, PresentationIntentType="FOR PROCESSING", **late)
    dicoms.mg(folder / "e.dcm", other, ViewCodeSequence=view_code("R-10242", "R-102D7"))
    dicoms.mg(folder / "f.dcm", other, BreastImplantPresent="YES")
    dicoms.mg(folder / "g.dcm", other, SOPClassUID="1.2.840.10008.5.1.4.1.1.13.1.3")
    dicoms.mg(folder / "h.dcm", other, SOPClassUID="1.2.840.10008.5.1.4.1.1.7", **late)
    dicoms.mg(folder / "i.dcm", other, ViewPosition=None)
    dicoms.mg(folder / "j.dcm", other, ImageLaterality=None)
    dicoms.mg(folder / "k.dcm", other, ViewPosition="XCCL")
    dicoms.mg(folder / "l.dcm", other, Laterality="R")
    dicoms.us(folder / "m.dcm", pictures.echo())
    dicoms.mg(folder / "n.dcm", other, SOPClassUID="1.2.840.10008.5.1.4.1.1.104.1")
    (folder / "o.txt").write_text("notes of the technician")
    (folder / ".DS_Store").write_bytes(b"desktop")
    result = standardised(folder, laterality="L")
    np.testing.assert_array_equal(result.values, plain)
    assert result.scanner == "Hologic"
    assert sorted((note.disposition, note.reason) for note in result.set_aside) == sorted(
        [
            ("set aside", "repeat"),
            ("set aside", "another view"),  # MLO
            ("set aside", "another view"),  # XCCL
            ("set aside", "other breast"),
            ("set aside", "for processing"),
            ("set aside", "spot view"),
            ("set aside", "implant"),
            ("set aside", "tomosynthesis"),
            ("set aside", "secondary capture"),
            ("set aside", "view unclear"),
            ("set aside", "side unclear"),
            ("refused", "contradictory laterality"),
            ("set aside", "wrong modality"),
            ("quarantined", "encapsulated PDF"),
            ("set aside", "not DICOM"),
        ]
    )


def test_of_repeats_within_half_an_hour_the_last_is_used_whatever_the_names(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    stored = pictures.breast()
    times = ["093000", "095000.2", "095000.1", "092500"]
    for number, names in enumerate(("abcd", "dcba", "bdac")):
        folder = tmp_path / str(number)
        for shift, (name, time) in enumerate(zip(names, times, strict=True)):
            dicoms.mg(
                folder / f"{name}.dcm",
                np.roll(stored, 3 * shift, 0),
                AcquisitionDate="20200101",
                AcquisitionTime=time,
                SOPInstanceUID=f"1.2.{shift + 1}",
            )
        last = dicoms.mg(tmp_path / "last.dcm", np.roll(stored, 3, 0))
        np.testing.assert_array_equal(read(folder), read(last))


def test_images_of_several_dates_or_patients_are_refused(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    folder, stored = tmp_path / "exam", pictures.breast()
    early = {"StudyDate": "20200102", "StudyInstanceUID": "1.2.1", "AcquisitionTime": "0900"}
    late = {"StudyDate": "20200630", "StudyInstanceUID": "1.2.2", "AcquisitionTime": "0800"}
    dicoms.mg(folder / "a", stored, **early)
    dicoms.mg(folder / "mlo", stored, ViewPosition="MLO", **late)
    dicoms.mg(folder / "right", stored[:, ::-1], ImageLaterality="R", **late)
    dicoms.mg(folder / "raw", stored, PresentationIntentType="FOR PROCESSING", **late)
    plain = read(folder, laterality="L")
    dicoms.mg(
        folder / "b", stored + 9, **(late | {"StudyDate": "20200102", "AcquisitionTime": "0840"})
    )
    assert [n.reason for n in standardised(folder, laterality="L").set_aside].count("repeat") == 1
    np.testing.assert_array_equal(plain, read(folder / "a"))
    dicoms.mg(folder / "b", stored + 9, **late)
    with pytest.raises(ImageError, match="expected one examination, got 2") as caught:
        read(folder, laterality="L")
    assert (caught.value.disposition, caught.value.reason) == ("refused", "several examinations")
    assert "baseline" in str(caught.value.hint)
    (folder / "b").unlink()
    dicoms.mg(folder / "mlo", stored, ViewPosition="MLO", PatientID="CANARY2", **early)
    with pytest.raises(ImageError) as caught:
        read(folder, laterality="L")
    assert (caught.value.disposition, caught.value.reason) == ("refused", "several patients")
    assert "CANARY" not in str(caught.value)


def item(**tags: Any) -> Sequence:
    dataset = Dataset()
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    return Sequence([dataset])


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"ImageType": ["DERIVED", "PRIMARY", "STEREO", "LEFT"]}, "biopsy view"),
        ({"ImageType": ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "GENERATED_2D"]}, "synthetic view"),
        ({"ImageType": ["DERIVED", "PRIMARY", "RECOMBINED"]}, "contrast-enhanced view"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "", "", "LOW_ENERGY"]}, "contrast-enhanced view"),
        ({"ImageType": ["DERIVED", "SECONDARY"]}, "secondary capture"),
        ({"ContrastBolusAgent": "iohexol"}, "contrast-enhanced view"),
        ({"SpecimenDescriptionSequence": item(SpecimenIdentifier="1")}, "specimen"),
        ({"ViewCodeSequence": item(CodeValue="127457009")}, "specimen"),
        ({"QualityControlImage": "YES"}, "phantom"),
        ({"PartialViewCodeSequence": item(CodeValue="112182")}, "partial view"),
        ({"DistanceSourceToDetector": 650, "DistanceSourceToPatient": 360}, "magnification view"),
        ({"ImagerPixelSpacing": [0.05, 0.05]}, "partial view"),
        ({"BodyPartExamined": "AXILLA"}, "partial view"),
        ({"SeriesDescription": "L CC C-View"}, "synthetic view"),
        ({"SeriesDescription": "L CC Präparateradiographie"}, "specimen"),
        ({"SeriesDescription": "L CC nach Stanzbiopsie"}, "biopsy view"),
        ({"ProtocolName": "CESM L"}, "contrast-enhanced view"),
        ({"PaddleDescription": "BIOPSY 5X5"}, "biopsy view"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "for processing"),
    ],
)
@pytest.mark.parametrize("minutes", [-20, 20, 120])
def test_the_diagnostic_picture_of_a_folder_is_used_whenever_the_other_was_taken(
    tmp_path: Path, dicoms: Any, pictures: Any, tags: dict[str, Any], reason: str, minutes: int
) -> None:
    stored, hour = pictures.breast(), 10 * 60
    plain = read(dicoms.mg(tmp_path / "alone.dcm", stored))
    day = {"StudyDate": "20200102", "AcquisitionDate": "20200102"}
    dicoms.mg(tmp_path / "exam" / "a.dcm", stored, AcquisitionTime="100000", **day)
    time = "{:02d}{:02d}00".format(*divmod(hour + minutes, 60))
    other = {"AcquisitionTime": time, **day, **tags}
    dicoms.mg(tmp_path / "exam" / "b.dcm", stored[::-1] + 100, **other)
    result = standardised(tmp_path / "exam", laterality="L")
    np.testing.assert_array_equal(result.values, plain)
    assert [(n.disposition, n.reason) for n in result.set_aside] == [("set aside", reason)]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {}),
        ({"AcquisitionTime": "100000"}, {}),
        ({"AcquisitionTime": "100000"}, {"AcquisitionTime": "100000"}),
        ({"AcquisitionTime": "000000"}, {"AcquisitionTime": "000000"}),
        ({"AcquisitionTime": "100000"}, {"AcquisitionTime": "103001"}),
        ({"AcquisitionDateTime": "20200102100000"}, {"AcquisitionDateTime": "20200103100100"}),
        (
            {"AcquisitionTime": "100000", "SeriesDescription": "L CC"},
            {"AcquisitionTime": "100100", "SeriesDescription": "L CC zusätzlich"},
        ),
        (
            {"AcquisitionTime": "100000", "ImageType": ["ORIGINAL", "PRIMARY"]},
            {"AcquisitionTime": "100100", "ImageType": ["DERIVED", "PRIMARY", "NEW_KIND"]},
        ),
    ],
)
def test_exposures_that_no_tag_ranks_are_refused_until_the_table_names_a_file(
    tmp_path: Path, dicoms: Any, pictures: Any, first: dict[str, Any], second: dict[str, Any]
) -> None:
    stored = pictures.breast()
    path = dicoms.mg(tmp_path / "exam" / "a.dcm", stored, **first)
    dicoms.mg(tmp_path / "exam" / "b.dcm", stored[::-1] + 100, **second)
    with pytest.raises(ImageError) as caught:
        read(tmp_path / "exam", laterality="L")
    assert (caught.value.disposition, caught.value.reason) == ("refused", "several exposures")
    assert "file" in str(caught.value.hint)
    plain = read(dicoms.mg(tmp_path / "alone.dcm", stored))
    np.testing.assert_array_equal(read(path, laterality="L"), plain)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"AcquisitionTime": "100000"}, {"AcquisitionTime": "100400"}),
        ({"AcquisitionTime": "000000", "ContentTime": "0959"}, {"ContentTime": "1001"}),
        ({"AcquisitionDateTime": "20200102100000.1"}, {"AcquisitionDateTime": "20200102100400"}),
        (
            {"AcquisitionTime": "100000", "SeriesDescription": "L CC"},
            {"AcquisitionTime": "100400", "SeriesDescription": "LCC, Wdh. 2"},
        ),
        (
            {"AcquisitionTime": "100000", "ImageType": ["ORIGINAL", "PRIMARY", "", "15"]},
            {"AcquisitionTime": "100400", "ImageType": ["DERIVED", "PRIMARY", "", "16"]},
        ),
    ],
)
def test_a_repeat_replaces_the_exposure_before_it(
    tmp_path: Path, dicoms: Any, pictures: Any, first: dict[str, Any], second: dict[str, Any]
) -> None:
    stored = pictures.breast()
    plain = read(dicoms.mg(tmp_path / "alone.dcm", stored))
    dicoms.mg(tmp_path / "exam" / "b.dcm", stored[::-1] + 100, **first)
    dicoms.mg(tmp_path / "exam" / "a.dcm", stored, **second)
    result = standardised(tmp_path / "exam", laterality="L")
    np.testing.assert_array_equal(result.values, plain)
    assert [n.reason for n in result.set_aside] == ["repeat"]


def test_one_picture_sent_under_two_uids_is_no_tie(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    stored = pictures.breast()
    plain = read(dicoms.mg(tmp_path / "exam" / "a.dcm", stored))
    dicoms.mg(tmp_path / "exam" / "b.dcm", stored, SeriesDescription="L CC archive")
    np.testing.assert_array_equal(read(tmp_path / "exam", laterality="L"), plain)


def test_views_that_share_a_uid_are_no_copies_of_one_another(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    stored, uid = pictures.breast(), "1.2.3"
    dicoms.mg(tmp_path / "exam" / "a.dcm", stored, SOPInstanceUID=uid)
    other = {"SOPInstanceUID": uid, "ViewPosition": "MLO"}
    dicoms.mg(tmp_path / "exam" / "b.dcm", stored[::-1] + 100, **other)
    plain = read(dicoms.mg(tmp_path / "alone.dcm", stored))
    np.testing.assert_array_equal(read(tmp_path / "exam", laterality="L"), plain)


@pytest.mark.parametrize(
    ("images", "laterality", "reason"),
    [
        ([{}, {"ImageLaterality": "R"}], None, "side unclear"),
        ([{"ImageLaterality": None}, {"ImageLaterality": None}], "L", "side unclear"),
        ([{"ViewPosition": "MLO"}, {"ImageLaterality": "R"}], "L", "no such image"),
        ([{"ViewPosition": "MLO"}, {"ViewPosition": "MLO"}], "L", "another view"),
        ([{"PresentationIntentType": "FOR PROCESSING"}] * 2, "L", "for processing"),
        ([{"BreastImplantPresent": "YES"}, {"Modality": "CT"}], "L", "no such image"),
        ([{"ViewPosition": "MLO"}], "L", "wrong view"),
        ([], "L", "empty folder"),
    ],
)
def test_what_is_refused_of_a_folder(
    tmp_path: Path, dicoms: Any, pictures: Any, images: Any, laterality: Any, reason: str
) -> None:
    folder = tmp_path / "exam"
    folder.mkdir()
    for number, tags in enumerate(images):
        dicoms.mg(folder / f"{number}.dcm", pictures.breast(), **tags)
    with pytest.raises(ImageError, match="expected") as caught:
        read(folder, laterality=laterality)
    assert caught.value.reason == reason


def test_an_image_without_side_is_used_if_there_is_no_other(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    stored = pictures.breast()
    plain = read(dicoms.mg(tmp_path / "alone.dcm", stored))
    dicoms.mg(tmp_path / "exam" / "a.dcm", stored, ImageLaterality=None)
    dicoms.mg(tmp_path / "exam" / "b.dcm", stored, ViewPosition="MLO")
    np.testing.assert_array_equal(read(tmp_path / "exam", laterality="L"), plain)
