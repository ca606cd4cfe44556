"""Ultrasound: nothing outside the verified region enters; colour becomes grey."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydicom.pixels import convert_color_space
from scipy import ndimage
from tests.client.ingest.conftest import regions_of_data

from her2_client.ingest.pixels import saturation
from her2_client.ingest.planar.ultrasound import ultrasound
from her2_client.ingest.privacy.guard import Decision, Guard, digest
from her2_client.ingest.privacy.review import RecordingGuard
from her2_client.ingest.privacy.text import find_text
from her2_common.cases import Box
from her2_common.errors import ImageError

SIZE = 32
REPORT = "1.2.840.10008.5.1.4.1.1.88.33"
KEY = b"k" * 32


pytestmark = pytest.mark.usefixtures("searched")


def guard(**decisions: Decision) -> Guard:
    return Guard(KEY, decisions)


def standardised(path: Path, box: Box | None = None, **options: Any) -> Any:
    return ultrasound(path, box, **({"size": SIZE, "seed": 0, "guard": guard()} | options))


def read(path: Path, box: Box | None = None, **options: Any) -> Any:
    return standardised(path, box, **options).values


@pytest.mark.parametrize("box", [None, Box(6, 8, 22, 20), Box(30, 24, 50, 40)])
def test_text_outside_the_region_changes_nothing(
    tmp_path: Path, dicoms: Any, pictures: Any, box: Box | None
) -> None:
    stored = pictures.echo()
    clean = read(dicoms.us(tmp_path / "a", stored), box)
    written = stored.copy()
    for border in np.s_[:4, :], np.s_[-4:, :], np.s_[:, :4], np.s_[:, -4:]:
        written[border] = np.random.default_rng(1).integers(0, 256, written[border].shape)
    np.testing.assert_array_equal(read(dicoms.us(tmp_path / "b", written), box), clean)


def test_the_region_is_kept_to_its_last_pixel(tmp_path: Path, dicoms: Any, pictures: Any) -> None:
    stored = pictures.echo()
    plain = read(dicoms.us(tmp_path / "a", stored), None, size=64)
    stored[59, 67] = 255  # the last pixel of the region 4..68 x 4..60
    changed = read(dicoms.us(tmp_path / "b", stored), None, size=64)
    assert (plain != changed).any()


def test_the_whole_region_without_a_box_keeps_its_aspect(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    result = read(dicoms.us(tmp_path / "a", pictures.echo()), None)
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
    result = read(dicoms.us(tmp_path / "a", stored), Box(28, 24, 44, 40))
    part = stored[16:48, 20:52].astype(float)  # 32 x 32 source pixels: one to one
    np.testing.assert_allclose(result[0], (part - part.mean()) / part.std(), atol=2e-3)


def test_colour_becomes_grey_however_it_is_stored(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    grey = pictures.echo().astype(np.uint8)
    plain = read(dicoms.us(tmp_path / "g", grey), None)
    rgb = np.repeat(grey[..., np.newaxis], 3, axis=2)
    in_rgb = read(dicoms.us(tmp_path / "rgb", rgb), None)
    np.testing.assert_allclose(in_rgb, plain, atol=0.01)

    ybr = convert_color_space(rgb, "RGB", "YBR_FULL")
    path = dicoms.us(tmp_path / "ybr", ybr, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_allclose(read(path, None), plain, atol=0.05)

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
    np.testing.assert_allclose(read(path, None), plain, atol=0.01)

    path = dicoms.us(tmp_path / "m1", 255 - grey, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(read(path, None), plain, atol=0.01)


def cine(dicoms: Any, path: Path, frames: list[Any], **tags: Any) -> Path:
    stored = np.stack(frames).astype(np.uint8)
    written: Path = dicoms.us(
        path, stored[0], NumberOfFrames=len(frames), PixelData=stored.tobytes(), **tags
    )
    return written


def test_the_seed_draws_a_frame_of_the_middle_half(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    first = pictures.echo()
    frames = [np.roll(first, 7 * k, 1) for k in range(8)]
    path = cine(dicoms, tmp_path / "loop.dcm", frames)
    single = [
        read(dicoms.us(tmp_path / f"{k}.dcm", frame)).tobytes() for k, frame in enumerate(frames)
    ]
    drawn = {seed: single.index(read(path, seed=seed).tobytes()) for seed in range(24)}
    assert set(drawn.values()) == {2, 3, 4, 5}
    assert drawn == {
        seed: single.index(read(path, seed=seed).tobytes()) for seed in reversed(range(24))
    }


def test_blank_frames_are_passed_over(tmp_path: Path, dicoms: Any, pictures: Any) -> None:
    first = pictures.echo()
    blank = np.where(np.indices(first.shape)[0] < 4, first, 7)  # text above the region alone
    path = cine(dicoms, tmp_path / "loop.dcm", [first] * 2 + [blank] * 2 + [first, blank] + [first])
    plain = read(dicoms.us(tmp_path / "one.dcm", first))
    for seed in range(6):
        np.testing.assert_array_equal(read(path, seed=seed), plain)
    path = cine(dicoms, tmp_path / "blank.dcm", [first] + [blank] * 3 + [first])
    with pytest.raises(ImageError, match="got blank ones") as caught:
        read(path)
    assert caught.value.reason == "blank image"


def test_the_box_names_the_frame(tmp_path: Path, dicoms: Any, pictures: Any) -> None:
    first = pictures.echo()
    frames = [np.roll(first, 7 * k, 1) for k in range(5)]
    path = cine(dicoms, tmp_path / "loop.dcm", frames)
    box = Box(28, 24, 44, 40)
    for k in (0, 4):
        plain = read(dicoms.us(tmp_path / f"{k}.dcm", frames[k]), box)
        there = Box(box.x0, box.y0, box.x1, box.y1, k, k + 1)
        np.testing.assert_array_equal(read(path, there), plain)
    with pytest.raises(ImageError, match="names one of 5 frames") as caught:
        read(path, box)
    assert (caught.value.disposition, caught.value.reason) == ("refused", "frame unknown")
    assert "z0" in str(caught.value.hint)
    with pytest.raises(ImageError, match="expected frame 0 to 4, got 5") as caught:
        read(path, Box(28, 24, 44, 40, 5, 6))
    assert caught.value.reason == "frame outside"


def test_of_two_pictures_the_one_with_the_box_is_taken(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    stored = np.concatenate([pictures.echo(), 255 - pictures.echo()], axis=1)  # 64 x 144
    both = regions_of_data(
        ((4, 4, 68, 60), 1, 1), ((76, 4, 140, 60), 1, 1), ((0, 60, 144, 64), 3, 3)
    )
    path = dicoms.us(tmp_path / "two", stored, SequenceOfUltrasoundRegions=both)
    alone = dicoms.us(tmp_path / "one", stored, region=(76, 4, 140, 60))
    box = Box(100, 24, 116, 40)
    np.testing.assert_array_equal(read(path, box), read(alone, box))


@pytest.mark.parametrize(
    ("options", "disposition", "reason"),
    [
        ({"region": None}, "quarantined", "no verified region"),
        ({"region": (0, 0, 72, 64)}, "quarantined", "no verified region"),
        ({"SequenceOfUltrasoundRegions": regions_of_data(((4, 4, 60, 60), 3, 3))},
         "quarantined", "no verified region"),
        ({"SequenceOfUltrasoundRegions": regions_of_data(((4, 4, 73, 60), 1, 1))},
         "quarantined", "no verified region"),
        ({"SequenceOfUltrasoundRegions": regions_of_data(((40, 4, 40, 60), 1, 1))},
         "quarantined", "no verified region"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "quarantined", "secondary capture"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.4", "Modality": "OT"},
         "quarantined", "secondary capture"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1"}, "quarantined", "encapsulated PDF"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.33", "Rows": None}, "refused",
         "not an image"),
        ({"region": (0, 0, 20, 20)}, "refused", "box outside"),
        ({"Modality": "MG"}, "refused", "wrong modality"),
        ({"PhotometricInterpretation": "CMYK"}, "refused", "colour space"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "refused", "damaged"),
        ({"NumberOfFrames": 2**31 - 1}, "refused", "frame count"),
        ({"NumberOfFrames": -3}, "refused", "frame count"),
        ({"NumberOfFrames": 4}, "refused", "frame unknown"),
        ({"Rows": 65535, "Columns": 65535}, "refused", "too large"),
        ({"PixelData": None}, "refused", "truncated"),
    ],
)  # fmt: skip
def test_what_is_not_used(
    tmp_path: Path,
    dicoms: Any,
    pictures: Any,
    options: dict[str, Any],
    disposition: str,
    reason: str,
) -> None:
    path = dicoms.us(tmp_path / "us.dcm", pictures.echo(), **options)
    with pytest.raises(ImageError) as caught:
        read(path, Box(28, 24, 44, 40))
    assert (caught.value.disposition, caught.value.reason) == (disposition, reason)
    assert str(caught.value).startswith(("expected ", "damaged ", "truncated "))


def test_a_whole_picture_is_a_region_where_nothing_is_burned_in(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    path = dicoms.us(
        tmp_path / "us.dcm", pictures.echo(), region=(0, 0, 72, 64), BurnedInAnnotation="NO"
    )
    assert read(path, None).any()


# --- the guard ----------------------------------------------------------------------------------


def test_what_is_searched_is_what_enters(
    tmp_path: Path, dicoms: Any, pictures: Any, searched: list[Any]
) -> None:
    stored = pictures.echo()
    path = dicoms.us(tmp_path / "us.dcm", stored)
    read(path)
    read(path, Box(6, 8, 22, 20))  # enlarged twice: -2..30 x -2..30, of which 4 and more is region
    np.testing.assert_array_equal(searched[0], stored[4:60, 4:68])
    np.testing.assert_array_equal(searched[1], stored[4:30, 4:30])


def test_a_reviewer_may_keep_a_part_of_a_picture_without_region(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    stored = pictures.echo()
    path = dicoms.us(tmp_path / "us.dcm", stored, region=None)
    name = digest(KEY, [path])
    asked = guard()
    with pytest.raises(ImageError) as caught:
        read(path, guard=asked)
    assert caught.value.hint is not None
    assert asked.consulted == {name: None}
    for box in (None, Box(28, 24, 44, 40)):
        kept = read(path, box, guard=guard(**{name: Decision(True, (4, 4, 68, 60))}))
        np.testing.assert_array_equal(kept, read(dicoms.us(tmp_path / "with.dcm", stored), box))
    every = read(path, guard=guard(**{name: Decision(True)}))
    clean = dicoms.us(
        tmp_path / "clean.dcm", stored, region=(0, 0, 72, 64), BurnedInAnnotation="NO"
    )
    np.testing.assert_array_equal(every, read(clean))
    for decision, reason in (
        (Decision(False), "refused at review"),
        (Decision(True, (72, 0, 99, 9)), "nothing kept"),
        (Decision(True, (0, 0, 9, 9)), "box outside"),
    ):
        with pytest.raises(ImageError) as caught:
            read(path, Box(28, 24, 44, 40), guard=guard(**{name: decision}))
        assert (caught.value.disposition, caught.value.reason) == ("refused", reason)


def test_text_in_the_region_asks_for_a_reviewer(
    tmp_path: Path, dicoms: Any, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class Recorder(Guard):
        def _seen(self, name: str, picture: Any, found: Any, reason: str) -> None:
            seen.append((picture(), list(found), reason))

    stored = pictures.echo()
    path = dicoms.us(tmp_path / "us.dcm", stored)
    plain = read(path)
    monkeypatch.setattr(
        "her2_client.ingest.privacy.search.find_text", lambda _: [(1, 2, 11, 8), (1, 20, 11, 28)]
    )
    with pytest.raises(ImageError, match="got text in 2 places") as caught:
        read(path, guard=Recorder(KEY))
    assert (caught.value.disposition, caught.value.reason) == ("quarantined", "text found")
    ((picture, found, reason),) = seen
    np.testing.assert_array_equal(picture, stored)
    assert found == [(5, 6, 15, 12), (5, 24, 15, 32)]  # the region starts at 4, 4
    assert reason == "text found"
    approved = guard(**{digest(KEY, [path]): Decision(True)})
    np.testing.assert_array_equal(read(path, guard=approved), plain)
    # what is kept beyond the verified region stays outside
    wide = guard(**{digest(KEY, [path]): Decision(True, (0, 0, 72, 30))})
    low = read(dicoms.us(tmp_path / "low.dcm", stored, region=(4, 4, 68, 30)), guard=approved_all())
    np.testing.assert_array_equal(read(path, guard=wide), low)


class _Approving(dict[str, Decision]):
    def get(self, key: str, default: Any = None) -> Any:
        return Decision(True)


def approved_all() -> Guard:
    return Guard(KEY, _Approving())


def test_real_text_in_the_region_is_found(
    tmp_path: Path, dicoms: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the detector itself
    speckle = np.random.default_rng(2).normal(90, 25, (300, 400))
    picture = Image.fromarray(ndimage.gaussian_filter(speckle, 1.5).clip(0, 255).astype(np.uint8))
    assert read(dicoms.us(tmp_path / "clean.dcm", np.asarray(picture))).any()
    font = ImageFont.load_default(size=24)
    ImageDraw.Draw(picture).text((60, 200), "DOE JANE 12.03.1970", fill=255, font=font)
    with pytest.raises(ImageError) as caught:
        read(dicoms.us(tmp_path / "named.dcm", np.asarray(picture)))
    assert caught.value.reason == "text found"


# --- a folder -----------------------------------------------------------------------------------


def test_the_seed_draws_a_picture_of_a_folder_whatever_the_names(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    first = pictures.echo()
    shots = [np.roll(first, 5 * k, 1) for k in range(4)]
    single = [
        read(dicoms.us(tmp_path / f"{k}.dcm", shot)).tobytes() for k, shot in enumerate(shots)
    ]
    drawn = []
    for folder, names in (("one", "abcd"), ("two", "dbca")):
        for k, name in enumerate(names):
            dicoms.us(
                tmp_path / folder / ("sub" if k % 2 else "") / f"{name}.dcm",
                shots[k],
                AcquisitionDate="20200101",
                AcquisitionTime="101500",
                SeriesNumber=1,
                InstanceNumber=9 + k,  # 9, 10, 11: numbers, not words
                SOPInstanceUID=f"1.2.{k}",
            )
        dicoms.us(
            tmp_path / folder / "report.dcm", first, region=None, SOPClassUID=REPORT, Rows=None
        )
        dicoms.us(tmp_path / folder / "shot.dcm", first, region=None)  # no region: not drawn
        results = [standardised(tmp_path / folder, seed=seed) for seed in range(20)]
        drawn.append([single.index(result.values.tobytes()) for result in results])
        assert all([n.reason for n in r.set_aside] == ["not an image"] for r in results)
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) == {0, 1, 2, 3}


def test_what_cannot_be_read_is_noted_and_the_next_is_drawn(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    folder, stored = tmp_path / "exam", pictures.echo()
    plain = read(dicoms.us(tmp_path / "plain.dcm", stored))
    dicoms.us(folder / "good.dcm", stored)
    for k in range(3):
        dicoms.us(folder / f"blank{k}.dcm", np.full(stored.shape, 3))
    whole = (folder / "good.dcm").read_bytes()
    (folder / "a.dcm").write_bytes(whole[:900])  # a copy that broke off within the pixels
    (folder / "b.dcm").write_bytes(whole[:200])  # and one within its header
    for seed in range(8):
        result = standardised(folder, seed=seed)
        np.testing.assert_array_equal(result.values, plain)
        reasons = [note.reason for note in result.set_aside]
        assert reasons.count("not an image") == 1
        assert len(reasons) == reasons.count("blank image") + 1
    for name in ("a.dcm", "b.dcm", "good.dcm"):
        (folder / name).unlink()
    with pytest.raises(ImageError) as caught:
        read(folder)
    assert caught.value.reason == "blank image"


def test_one_picture_of_an_unverified_folder_goes_to_the_reviewer(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    folder, stored = tmp_path / "exam", pictures.echo()
    for k in range(3):
        dicoms.us(folder / f"{k}.dcm", np.roll(stored, k, 0), region=None)
    asked = guard()
    with pytest.raises(ImageError) as caught:
        read(folder, guard=asked)
    assert (caught.value.disposition, caught.value.reason) == ("quarantined", "no verified region")
    ((first, decision),) = asked.consulted.items()
    assert decision is None
    refused = guard(**{first: Decision(False)})
    with pytest.raises(ImageError) as caught:
        read(folder, guard=refused)
    assert caught.value.disposition == "quarantined"
    assert len(refused.consulted) == 2  # the next of the draw
    second = next(name for name in refused.consulted if name != first)
    used = standardised(folder, guard=guard(**{first: Decision(False), second: Decision(True)}))
    assert [note.reason for note in used.set_aside] == ["refused at review"]


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({"StudyDate": "20200101"}, {"StudyDate": "20200630"}, "several examinations"),
        ({"StudyDate": "20200102", "StudyInstanceUID": "1.2.1"},
         {"StudyDate": "20200102", "StudyInstanceUID": "1.2.2"}, None),
        *[({"StudyDate": dummy, "StudyInstanceUID": "1.2.1"},
           {"StudyDate": dummy, "StudyInstanceUID": "1.2.2"}, "several examinations")
          for dummy in ("19000101", "19700101", "20200101", "00010101", "99991231", "")],
        ({"StudyDate": "19000101", "StudyInstanceUID": "1.2.1"},
         {"StudyDate": "20200630", "StudyInstanceUID": "1.2.1"}, None),
        ({"StudyDate": "19000101", "AcquisitionDate": "20200102", "StudyInstanceUID": "1.2.1"},
         {"StudyDate": "19000101", "AcquisitionDate": "20200630", "StudyInstanceUID": "1.2.1"},
         "several examinations"),
        ({"PatientID": "ANONYMOUS"}, {"PatientID": "4711"}, None),
        ({"StudyInstanceUID": "1.2.1"}, {"StudyInstanceUID": "1.2.2"}, "several examinations"),
        ({"StudyInstanceUID": "1.2.1"}, {}, None),
        ({"StudyDate": "20200101", "StudyInstanceUID": "1.2.1"},
         {"StudyInstanceUID": "1.2.1"}, None),
        ({"StudyDate": "20200101", "region": None}, {"StudyDate": "20200630"}, None),
        ({"PatientID": "A"}, {"PatientID": "B"}, "several patients"),
        ({"PatientID": "A"}, {"PatientID": None}, None),
    ],
)  # fmt: skip
def test_a_folder_holds_one_examination_of_one_patient(
    tmp_path: Path, dicoms: Any, pictures: Any, first: Any, second: Any, reason: str | None
) -> None:
    for name, tags in (("a", first), ("b", second)):
        dicoms.us(tmp_path / "exam" / name, pictures.echo(), **tags)
    if reason is None:
        assert read(tmp_path / "exam").any()
        return
    with pytest.raises(ImageError, match="expected") as caught:
        read(tmp_path / "exam")
    assert (caught.value.disposition, caught.value.reason) == ("refused", reason)
    assert "2020" not in str(caught.value)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"SeriesDescription": "US guided biopsy"}, "biopsy view"),
        ({"SeriesDescription": "Mamma-Sono, Stanzbiopsie"}, "biopsy view"),
        ({"ProtocolName": "écho pièce opératoire"}, "specimen"),
        ({"SeriesDescription": "mit Kontrastmittel"}, "contrast-enhanced view"),
        ({"SeriesDescription": "Phantom"}, "phantom"),
    ],
)
def test_pictures_of_another_kind_are_set_aside(
    tmp_path: Path, dicoms: Any, pictures: Any, tags: dict[str, Any], reason: str
) -> None:
    plain = read(dicoms.us(tmp_path / "alone.dcm", pictures.echo()))
    dicoms.us(tmp_path / "exam" / "a", pictures.echo(), SeriesDescription="Mamma links Zoom")
    dicoms.us(tmp_path / "exam" / "b", pictures.echo()[::-1], **tags)
    result = standardised(tmp_path / "exam")
    np.testing.assert_array_equal(result.values, plain)
    assert [(n.disposition, n.reason) for n in result.set_aside] == [("set aside", reason)]


def test_a_box_needs_one_picture(tmp_path: Path, dicoms: Any, pictures: Any) -> None:
    folder, box = tmp_path / "exam", Box(28, 24, 44, 40)
    stored = pictures.echo()
    path = dicoms.us(folder / "a.dcm", stored)
    (folder / "copy.dcm").write_bytes(path.read_bytes())  # the same picture
    np.testing.assert_array_equal(read(folder, box), read(path, box))
    dicoms.us(folder / "b.dcm", stored)
    with pytest.raises(ImageError, match="expected one picture for the lesion's box, got 2") as e:
        read(folder, box)
    assert e.value.reason == "several pictures"


def test_the_make_and_the_box_are_told(tmp_path: Path, dicoms: Any, pictures: Any) -> None:
    path = dicoms.us(tmp_path / "us.dcm", pictures.echo(), Manufacturer="Philips Medical")
    assert standardised(path).scanner == "Philips"
    assert standardised(path).box is None
    assert standardised(path, Box(28, 24, 44, 40)).box == [[0.25, 0.75]] * 2


def test_a_folder_is_not_searched_without_end(
    tmp_path: Path, dicoms: Any, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(3):
        dicoms.us(tmp_path / "exam" / f"{k}.dcm", pictures.echo())
    monkeypatch.setattr("her2_client.ingest.planar.folder.MAX_FILES", 2)
    with pytest.raises(ImageError, match="expected at most 2 files") as caught:
        read(tmp_path / "exam")
    assert caught.value.reason == "too many files"


@pytest.mark.parametrize("colour", [(64, 64, 255), (255, 255, 0), (0, 120, 60)])
@pytest.mark.parametrize("quality", [None, 75])
def test_a_coloured_name_as_bright_as_the_tissue_waits_for_a_person(
    tmp_path: Path,
    dicoms: Any,
    monkeypatch: pytest.MonkeyPatch,
    colour: tuple[int, int, int],
    quality: int | None,
) -> None:
    """Blue ink has the luma of speckle: it is found by its colour, and the sheet shows it so."""
    monkeypatch.setattr("her2_client.ingest.privacy.search.find_text", find_text)
    rng = np.random.default_rng(4)
    speckle = ndimage.gaussian_filter(rng.rayleigh(60, (240, 320)), 1.2).clip(0, 255)
    drawn = Image.fromarray(np.repeat(speckle.astype(np.uint8)[..., None], 3, axis=2))
    font = ImageFont.load_default(22)
    ImageDraw.Draw(drawn).text((40, 90), "Smith, Jane", font=font, fill=colour)
    if quality is not None:
        stream = io.BytesIO()
        drawn.save(stream, "JPEG", quality=quality)
        drawn = Image.open(stream)
    path = dicoms.us(tmp_path / "us.dcm", np.asarray(drawn))
    guard = RecordingGuard(KEY)
    with pytest.raises(ImageError) as caught:
        ultrasound(path, None, size=256, seed=1, guard=guard)
    assert (caught.value.disposition, caught.value.reason) == ("quarantined", "text found")
    (seen,) = guard.seen
    sheet = np.asarray(Image.open(io.BytesIO(seen.jpeg))).astype(int)
    x0, y0, x1, y1 = seen.found[-1]
    assert (sheet[y0:y1, x0:x1].max(axis=2) - sheet[y0:y1, x0:x1].min(axis=2)).max() > 60


def test_grey_speckle_in_rgb_has_no_colour() -> None:
    """Nor has a JPEG of it: the search by colour is not asked."""
    rng = np.random.default_rng(4)
    speckle = ndimage.gaussian_filter(rng.rayleigh(60, (240, 320)), 1.2).clip(0, 255)
    drawn = Image.fromarray(np.repeat(speckle.astype(np.uint8)[..., None], 3, axis=2))
    stream = io.BytesIO()
    drawn.save(stream, "JPEG", quality=60)
    assert saturation(np.asarray(drawn)) is None
    assert saturation(np.asarray(Image.open(stream))) is None
