"""Ultrasound with colour flow, Doppler or elastography upon it is set aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.client.ingest.conftest import regions_of_data

from her2_client.ingest.planar.ultrasound import ultrasound
from her2_client.ingest.privacy.guard import Decision, Guard, digest
from her2_common.cases import Box
from her2_common.errors import ImageError

KEY = b"k" * 32


pytestmark = pytest.mark.usefixtures("searched")


def standardised(path: Path, box: Box | None = None, **options: Any) -> Any:
    return ultrasound(path, box, **({"size": 32, "seed": 0, "guard": Guard(KEY)} | options))


def read(path: Path, box: Box | None = None, **options: Any) -> Any:
    return standardised(path, box, **options).values


ELSEWHERE = (0, 60, 72, 64)
UPON = (20, 20, 30, 30)


@pytest.mark.parametrize(
    ("place", "data", "used"),
    [(UPON, 2, False), (UPON, 3, False), (UPON, 4, False), (UPON, 14, False), (UPON, 13, True),
     (UPON, 0, True), (ELSEWHERE, 2, True), ((4, 4, 68, 60), 2, False),
     ((67, 59, 72, 64), 2, False), ((68, 4, 72, 60), 2, True)],
)  # fmt: skip
def test_a_region_of_other_data_upon_the_picture_sets_it_aside(
    tmp_path: Path, dicoms: Any, pictures: Any, place: Any, data: int, used: bool
) -> None:
    both = regions_of_data(((4, 4, 68, 60), 1, 1), (place, 1, data))
    path = dicoms.us(tmp_path / "us", pictures.echo(), SequenceOfUltrasoundRegions=both)
    if used:
        assert read(path).any()
        return
    with pytest.raises(ImageError, match="got one with an overlay") as caught:
        read(path)
    assert (caught.value.disposition, caught.value.reason) == ("set aside", "colour overlay")


def _flow(picture: Any, rows: Any, columns: Any) -> Any:
    """The picture in RGB with red in some rows and columns."""
    colour = np.repeat(picture.astype(np.uint8)[..., np.newaxis], 3, axis=2)
    colour[rows, columns] = 200, 30, 20
    return colour


@pytest.mark.parametrize(
    ("rows", "columns", "box", "used"),
    [
        (np.s_[20:27], np.s_[20:27], None, False),  # 49 of the region's 56 x 64 pixels: 1.4 %
        (np.s_[20:25], np.s_[20:25], None, True),  # 25 of them: a mark
        (np.s_[20:25], np.s_[20:25], Box(28, 24, 44, 40), False),  # 25 of 32 x 32
        (np.s_[:4], np.s_[:], None, True),  # beside the region
        (np.s_[4:14], np.s_[4:14], Box(28, 24, 44, 40), True),  # beside the crop
    ],
)
def test_colour_in_what_is_used_sets_it_aside(
    tmp_path: Path, dicoms: Any, pictures: Any, rows: Any, columns: Any, box: Any, used: bool
) -> None:
    path = dicoms.us(tmp_path / "us", _flow(pictures.echo(), rows, columns))
    if used:
        assert read(path, box).any()
        return
    with pytest.raises(ImageError, match="got one with an overlay") as caught:
        read(path, box)
    assert (caught.value.disposition, caught.value.reason) == ("set aside", "colour overlay")


CALLIPERS = [(190, 90), (190, 154), (173, 122), (207, 122)]
"""Rows and columns of four crosses round a box of 64 x 34 pixels."""


def crosses(picture: Any, arm: int, width: int) -> Any:
    """The picture in RGB with four yellow crosses."""
    colour = np.repeat(picture.astype(np.uint8)[..., np.newaxis], 3, axis=2)
    for row, column in CALLIPERS:
        thick = slice(-(width // 2), width - width // 2)
        down, across = (slice(k + thick.start, k + thick.stop) for k in (row, column))
        colour[down, column - arm : column + arm + 1] = 255, 255, 0
        colour[row - arm : row + arm + 1, across] = 255, 255, 0
    return colour


@pytest.mark.parametrize(("arm", "width"), [(5, 1), (7, 3), (9, 4)])
@pytest.mark.parametrize("approved", [False, True])
def test_coloured_marks_take_the_grey_beside_them(
    tmp_path: Path, dicoms: Any, pictures: Any, arm: int, width: int, approved: bool
) -> None:
    stored, box = pictures.echo(360, 400), Box(90, 173, 154, 207)
    marked = crosses(stored, arm, width)
    if approved:
        path = dicoms.us(tmp_path / "us", marked, region=None)
        decided = Guard(KEY, {digest(KEY, [path]): Decision(approved=True)})
        result = standardised(path, box, guard=decided)
    else:
        result = standardised(dicoms.us(tmp_path / "us", marked), box)
    plain = standardised(dicoms.us(tmp_path / "plain", stored), box)
    assert result.remarks == ("coloured marks filled",)
    assert plain.remarks == ()
    difference = np.abs(result.values.astype(float) - plain.values.astype(float))
    assert difference.mean() < 0.1
    assert difference.max() < 2  # a cross left in place gives more than 3


def test_many_lines_are_no_marks(tmp_path: Path, dicoms: Any, pictures: Any) -> None:
    lines = _flow(pictures.echo(120, 140), np.s_[10:110:10], np.s_[10:130])
    with pytest.raises(ImageError, match=r"overlay upon it: .* are coloured") as caught:
        read(dicoms.us(tmp_path / "us", lines))
    assert caught.value.reason == "colour overlay"


def test_colour_that_is_text_waits_for_a_person_first(
    tmp_path: Path, dicoms: Any, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = dicoms.us(tmp_path / "us", _flow(pictures.echo(), np.s_[20:40], np.s_[20:40]))
    name = digest(KEY, [path])
    monkeypatch.setattr("her2_client.ingest.privacy.search.find_text", lambda _: [(16, 16, 36, 36)])
    with pytest.raises(ImageError) as caught:
        read(path)
    assert (caught.value.disposition, caught.value.reason) == ("quarantined", "text found")
    with pytest.raises(ImageError) as caught:
        read(path, guard=Guard(KEY, {name: Decision(approved=True)}))
    assert (caught.value.disposition, caught.value.reason) == ("set aside", "colour overlay")
    part = Guard(KEY, {name: Decision(True, (4, 4, 68, 18))})
    assert read(path, guard=part).any()


def test_the_next_of_the_draw_is_used_for_a_coloured_picture(
    tmp_path: Path, dicoms: Any, pictures: Any
) -> None:
    folder, stored = tmp_path / "exam", pictures.echo()
    plain = read(dicoms.us(tmp_path / "plain", stored))
    dicoms.us(folder / "plain", stored)
    dicoms.us(folder / "flow", _flow(stored, np.s_[20:40], np.s_[20:40]))
    flow = regions_of_data(((4, 4, 68, 60), 1, 1), (UPON, 1, 2))
    for k in range(20):  # more than are tried
        dicoms.us(folder / f"stated{k}", stored + k, SequenceOfUltrasoundRegions=flow)
    noted = set()
    for seed in range(8):
        result = standardised(folder, seed=seed)
        np.testing.assert_array_equal(result.values, plain)
        noted.add(tuple((n.disposition, n.reason) for n in result.set_aside))
    assert noted == {(), (("set aside", "colour overlay"),)}
