"""Mammograms are turned chest wall left, upper or outer half up, and inverted ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset

from her2_client.ingest.planar.mammography import mammogram
from her2_client.ingest.planar.orientation import Turn, check, turn_of
from her2_client.ingest.privacy.guard import Decision, Guard, digest
from her2_common.cases import Box
from her2_common.errors import ImageError

KEY = b"k" * 32
BOX = Box(10, 28, 26, 44)


pytestmark = pytest.mark.usefixtures("searched")


def read(path: Path, box: Box | None = BOX, side: Any = None, **decisions: Decision) -> Any:
    guard = Guard(KEY, decisions)
    return mammogram(path, box, view="CC", laterality=side, size=32, guard=guard).values


def oblique(pectoral: float, fold: float, nipple: float, rows: int = 96, columns: int = 72) -> Any:
    """A left MLO in 12 bits: shares of the width that muscle, fold and nipple reach."""
    y, x = np.mgrid[:rows, :columns] + 0.5
    y, x = y / rows, x / columns
    muscle = x < pectoral * (1 - 1.6 * y)
    gland = (x / nipple) ** 2 + ((y - 0.5) / 0.42) ** 2 < 1
    belly = x < fold * (y - 0.8) / 0.2
    texture = 60 * np.sin(40 * y) * np.cos(30 * x)
    return np.where(muscle | gland | belly, 1500 + 700 * muscle + texture, 40).round()


SHAPES = [
    (p, f, n) for p in (0.0, 0.3, 0.6) for f in (0.0, 0.3) for n in (0.35, 0.6, 0.97) if n > f
]


# --- what the header says -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "side", "turn"),
    [
        (["A", "R"], "L", Turn(False, False, True)),
        (["P", "L"], "R", Turn(True, False, True)),
        (["A", "FR"], "L", Turn(False, False, True)),
        (["PL", "F"], "R", Turn(True, False, True)),
        (["A", "HL"], "L", Turn(False, True, True)),
        (["P", "H"], None, Turn(True, True, True)),
        (["A", "L"], "L", Turn(False, True, True)),
        (["P", "R"], "R", Turn(True, True, True)),
        (["L", "F"], "R", Turn(True, False, False)),
        (["A"], "R", Turn(True)),
        ("A", "R", Turn(True)),
        (["A", "X"], "L", Turn(False)),
        (["", ""], "R", Turn(True)),
        (None, "L", Turn(False)),
    ],
)
def test_patient_orientation_decides(words: Any, side: Any, turn: Turn) -> None:
    header = Dataset()
    if words is not None:
        header.PatientOrientation = words
    assert turn_of(header, side) == turn
    assert turn_of(None, side) == Turn(side == "R")


@pytest.mark.parametrize("words", [["F", "A"], ["R", "P"], ["FR", "AL"]])
def test_a_rotated_view_is_refused(words: list[str]) -> None:
    header = Dataset()
    header.PatientOrientation = words
    with pytest.raises(ImageError, match="expected rows that leave the chest wall") as caught:
        turn_of(header, "L")
    assert caught.value.reason == "rotated view"


@given(st.booleans(), st.booleans(), st.data())
def test_a_box_is_turned_with_its_image(columns: bool, rows: bool, data: Any) -> None:
    turn = Turn(columns, rows)
    image = np.arange(7 * 9).reshape(7, 9)
    x0, y0 = data.draw(st.integers(0, 8)), data.draw(st.integers(0, 6))
    x1, y1 = data.draw(st.integers(x0 + 1, 9)), data.draw(st.integers(y0 + 1, 7))
    box = turn.box(Box(x0, y0, x1, y1), (7, 9))
    turned = turn.image(image)[box.y0 : box.y1, box.x0 : box.x1]
    assert set(turned.ravel()) == set(image[y0:y1, x0:x1].ravel())
    assert turn.box(box, (7, 9)) == Box(x0, y0, x1, y1)
    np.testing.assert_array_equal(turn.image(turn.image(image)), image)


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("rows", [False, True])
def test_a_stated_orientation_gives_the_same_values_however_it_is_stored(
    tmp_path: Path, dicoms: Any, columns: bool, rows: bool
) -> None:
    stored = oblique(0.3, 0.2, 0.7)
    plain = read(dicoms.mg(tmp_path / "plain", stored))
    turn = Turn(columns, rows)
    words = ["P" if columns else "A", "HR" if rows else "FR"]
    path = dicoms.mg(tmp_path / "turned", turn.image(stored), PatientOrientation=words)
    np.testing.assert_array_equal(read(path, turn.box(BOX, stored.shape)), plain)


# --- what the picture says ----------------------------------------------------------------------


@pytest.mark.parametrize("side", ["L", "R", None])
@pytest.mark.parametrize("mirrored", [False, True])
def test_without_a_tag_the_picture_decides(
    tmp_path: Path, dicoms: Any, side: Any, mirrored: bool
) -> None:
    """As in collections whose right breasts were turned before they were published."""
    stored = oblique(0.4, 0.2, 0.6)
    plain = read(dicoms.mg(tmp_path / "plain", stored))
    turn = Turn(mirrored)
    path = dicoms.mg(tmp_path / "turned", turn.image(stored), ImageLaterality=side)
    np.testing.assert_array_equal(read(path, turn.box(BOX, stored.shape)), plain)
    shown = Image.fromarray(turn.image(stored).astype(np.uint16))
    shown.save(tmp_path / "turned.png")
    np.testing.assert_array_equal(
        read(tmp_path / "turned.png", turn.box(BOX, stored.shape), side), plain
    )


def test_a_tag_that_the_picture_contradicts_is_refused(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    for word, stored in (("P", pictures.breast()), ("A", pictures.breast()[:, ::-1])):
        path = dicoms.mg(tmp_path / "cc", stored, PatientOrientation=[word, "R"])
        with pytest.raises(ImageError, match="where PatientOrientation says") as caught:
            read(path)
        assert (caught.value.disposition, caught.value.reason) == (
            "refused",
            "contradictory orientation",
        )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("border", [0, 4])
def test_the_chest_wall_is_found_whatever_the_shape(shape: Any, border: int) -> None:
    """``border`` pixels of air around the view, as collimators and film give it."""
    picture = np.pad(oblique(*shape), border, constant_values=40)
    pair = picture, picture > 1000
    mirrored = picture[:, ::-1], picture[:, ::-1] > 1000
    assert check(*pair, Turn(columns=False)) == Turn(columns=False)
    assert check(*mirrored, Turn(columns=False)) == Turn(columns=True)
    assert check(*pair, Turn(columns=False, stated=True)).stated
    with pytest.raises(ImageError) as caught:
        check(*mirrored, Turn(columns=False, stated=True))
    assert caught.value.reason == "contradictory orientation"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("noise", [0, 10])
def test_air_as_bright_as_a_breast_is_refused(shape: Any, mirrored: bool, noise: float) -> None:
    picture = 4095 - Turn(mirrored).image(oblique(*shape))
    picture = picture + np.random.default_rng(1).normal(0, noise, picture.shape)
    with pytest.raises(ImageError) as caught:
        check(picture, picture > 3000, Turn(columns=False))
    assert caught.value.reason == "bright background"


def test_noise_around_a_breast_is_no_bright_background() -> None:
    picture = oblique(0.3, 0.2, 0.6) + np.random.default_rng(1).normal(0, 40, (96, 72))
    assert check(picture, picture > 1000, Turn(columns=False)) == Turn(columns=False)


@pytest.mark.parametrize(("shade", "reason"), [(1200, "bright background"), (40, None)])
def test_a_bright_edge_beside_the_breast_is_refused(shade: int, reason: str | None) -> None:
    """A frame of another program, say, that the threshold takes for tissue."""
    picture = oblique(0.0, 0.0, 0.6)
    picture[20:, 40:] = np.where(picture[20:, 40:] > 1000, picture[20:, 40:], shade)
    if reason is None:
        assert check(picture, picture > 1000, Turn(columns=False, stated=True)).stated
        return
    with pytest.raises(ImageError) as caught:
        check(picture, picture > 1000, Turn(columns=False, stated=True))
    assert caught.value.reason == reason


@pytest.mark.parametrize("side", ["L", "R", None])
@pytest.mark.parametrize("kind", ["breast", "oblique"])
def test_an_inverted_picture_is_refused(
    tmp_path: Path, dicoms: Any, pictures: Any, side: Any, kind: str
) -> None:
    stored = pictures.breast() if kind == "breast" else oblique(0.5, 0.3, 0.5)
    stored = (4095 - stored)[:, :: -1 if side == "R" else 1].astype(np.uint16)
    Image.fromarray(stored).save(tmp_path / "inverted.png")
    wrong = dicoms.mg(tmp_path / "wrong", stored, ImageLaterality=side)  # it is MONOCHROME1
    for path in (tmp_path / "inverted.png", wrong):
        with pytest.raises(ImageError, match="got a bright background") as caught:
            read(path, None, side)
        assert (caught.value.disposition, caught.value.reason) == ("refused", "bright background")
        assert caught.value.hint is not None


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("columns", [False, True])
def test_text_is_told_in_the_pixels_as_they_are_stored(
    tmp_path: Path, dicoms: Any, monkeypatch: pytest.MonkeyPatch, columns: bool, rows: bool
) -> None:
    stored, turn = oblique(0.3, 0.2, 0.7), Turn(columns, rows)
    mark = Box(12, 40, 24, 46)
    stored[mark.y0 : mark.y1, mark.x0 : mark.x1] = 4000
    words = ["P" if columns else "A", "H" if rows else "F"]
    path = dicoms.mg(tmp_path / "mlo", turn.image(stored), PatientOrientation=words)

    def find_text(part: Any) -> Any:
        y, x = np.nonzero(part == 4000)
        return [(x.min(), y.min(), x.max() + 1, y.max() + 1)]

    told: list[Any] = []

    class Recorder(Guard):
        def _seen(self, name: str, picture: Any, found: Any, reason: str) -> None:
            told.extend(found)

    monkeypatch.setattr("her2_client.ingest.privacy.search.find_text", find_text)
    with pytest.raises(ImageError, match="got text"):
        mammogram(path, None, view="CC", laterality=None, size=96, guard=Recorder(KEY))
    there = turn.box(mark, stored.shape)
    assert told == [(there.x0, there.y0, there.x1, there.y1)]
    approved = {digest(KEY, [path]): Decision(approved=True)}
    assert read(path, None, **approved).any()
