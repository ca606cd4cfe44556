"""The search for text: found where it stands, quiet where there is none, the same every time."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageDraw, ImageFont
from pydicom import examples
from pydicom.pixels.processing import apply_color_lut

from her2_client.ingest.privacy.text import LONGEST_SIDE, eight_bits, find_text

Array = npt.NDArray[Any]

spec = importlib.util.spec_from_file_location(
    "text_recall", Path(__file__).parents[2] / "benchmarks" / "text_recall.py"
)
assert spec is not None
assert spec.loader is not None
text_recall = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = text_recall
spec.loader.exec_module(text_recall)


def stamped(
    size: int = 22, shape: tuple[int, int] = (300, 400), at: tuple[int, int] = (90, 140)
) -> tuple[Array, tuple[int, int, int, int]]:
    """Dim noise with one line at (column, row), and the box of its ink."""
    noise = np.random.default_rng(4).normal(60, 10, shape)
    picture = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
    face = ImageFont.load_default(size=size)
    draw = ImageDraw.Draw(picture)
    draw.text(at, "DOE, JANE 1961", fill=240, font=face)
    box = draw.textbbox(at, "DOE, JANE 1961", font=face)
    return np.asarray(picture), tuple(round(v) for v in box)  # type: ignore[return-value]


def test_recall_and_false_alarms() -> None:
    """A small run of the benchmark; a long one reaches 0.98 for text of 12 px and larger."""
    tally = text_recall.measure(find_text, pictures=3, seed=1)
    lines = tally.all["size >= 12"]
    assert lines > 50
    assert tally.found["size >= 12"] / lines >= 0.94
    assert tally.found["size < 12"] / tally.all["size < 12"] >= 0.7
    assert tally.flagged / tally.written >= 0.95
    assert (sum(tally.clean.values()), sum(tally.alarms.values())) == (24, 0)


def test_the_measure_itself_sees_misses_and_alarms() -> None:
    """A detector that finds nothing, and one that finds everything."""
    nothing = text_recall.measure(lambda picture: [], pictures=1, seed=1)
    assert sum(nothing.found.values()) == 0
    assert len(nothing.missed) == nothing.all["size >= 12"] + nothing.all["size < 12"]
    all_of_it = text_recall.measure(lambda picture: [(0, 0, 512, 512)], pictures=1, seed=1)
    assert all_of_it.found == all_of_it.all
    assert all_of_it.alarms == all_of_it.clean
    assert (nothing.flagged, all_of_it.flagged) == (0, all_of_it.written)


def test_the_rectangle_holds_the_ink_and_little_more() -> None:
    picture, (x0, y0, x1, y1) = stamped()
    found = find_text(picture)
    assert found
    left, top, right, bottom = np.array(found).T
    assert (left.min() <= x0 + 3, top.min() <= y0 + 3) == (True, True)
    assert (right.max() >= x1 - 3, bottom.max() >= y1 - 3) == (True, True)
    assert (right.max() - left.min()) * (bottom.max() - top.min()) < 2.5 * (x1 - x0) * (y1 - y0)


@pytest.mark.parametrize(
    ("name", "least"), [("rgb_color", 15), ("palette_color", 12), ("ybr_color", 6)]
)
def test_real_ultrasound_with_text_on_it(name: str, least: int) -> None:
    """Pictures that pydicom ships: dates, names of departments, settings all around."""
    dataset = getattr(examples, name)
    pixels = dataset.pixel_array
    if name == "palette_color":
        pixels = apply_color_lut(pixels, dataset)
    pixels = pixels[0] if pixels.ndim == 4 else pixels
    found = find_text(pixels.mean(axis=-1))
    assert len(found) >= least


@pytest.mark.parametrize("name", ["ct", "mr", "overlay"])
def test_real_pictures_without_text(name: str) -> None:
    assert find_text(getattr(examples, name).pixel_array) == []


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "i4", "f4", "f8"])
def test_the_number_type_does_not_matter(dtype: str) -> None:
    picture, _ = stamped()
    assert find_text(picture.astype(dtype)) == find_text(picture)


def test_brightness_and_contrast_do_not_matter() -> None:
    picture, _ = stamped()
    found = find_text(picture)
    assert found
    assert find_text(picture.astype(float) * 8 - 1000) == found  # exact in floating point


def test_a_stray_pixel_does_not_hide_the_text() -> None:
    picture = stamped()[0].astype(float)
    picture[5, 5], picture[9, 9] = 1e6, np.nan
    assert find_text(picture)


@pytest.mark.parametrize("spot", ["topleft", "bottomright"])
def test_text_at_the_edge(spot: str) -> None:
    x, y = (1, 0) if spot == "topleft" else (235, 270)
    picture, _ = stamped(at=(x, y))
    found = find_text(picture)
    assert found
    assert all(0 <= a < c <= 400 and 0 <= b < d <= 300 for a, b, c, d in found)


def test_a_large_picture_is_reduced_and_its_places_are_the_source_s() -> None:
    shape = (2000, 2 * LONGEST_SIDE)
    picture, (x0, y0, x1, y1) = stamped(60, shape, (1500, 1200))
    found = [r for r in find_text(picture) if r[0] < x1 and r[2] > x0 and r[1] < y1 and r[3] > y0]
    left, top, right, bottom = np.array(found).T
    ends = [left.min(), top.min(), right.max(), bottom.max()]
    assert np.abs(np.subtract(ends, (x0, y0, x1, y1))).max() < 40


@pytest.mark.parametrize("value", [0, 255, np.nan, np.inf, -np.inf])
def test_one_value_is_no_text(value: float) -> None:
    assert find_text(np.full((50, 70), value)) == []


@pytest.mark.parametrize("shape", [(0, 0), (0, 9), (1, 1), (1, 3000), (3000, 1), (2, 2), (33, 31)])
def test_any_shape(shape: tuple[int, int]) -> None:
    assert find_text(np.random.default_rng(0).normal(size=shape)) == []


def test_colour_is_not_a_picture() -> None:
    with pytest.raises(ValueError, match=r"expected a picture of \(rows, columns\), got 3 axes"):
        find_text(np.zeros((4, 5, 3)))


@settings(deadline=None, max_examples=40)
@given(
    arrays.arrays(
        np.float64,
        arrays.array_shapes(min_dims=2, max_dims=2, max_side=40),
        elements=st.floats(allow_nan=True, allow_infinity=True),
    )
)
def test_whatever_is_in_it_the_rectangles_lie_inside(picture: Array) -> None:
    rows, columns = picture.shape
    for x0, y0, x1, y1 in find_text(picture):
        assert 0 <= x0 < x1 <= columns
        assert 0 <= y0 < y1 <= rows


@settings(deadline=None, max_examples=40)
@given(arrays.arrays(np.float32, (6, 9), elements=st.floats(-1e6, 1e6, width=32)))
def test_eight_bits_keep_the_order(picture: Array) -> None:
    grey = eight_bits(picture)
    if grey is None:
        assert picture.min() == picture.max()
        return
    assert (grey.min(), grey.max()) == (0, 255)
    order = np.argsort(picture, axis=None, kind="stable")
    assert (np.diff(grey.ravel()[order].astype(int)) >= 0).all()


def test_the_same_in_another_process() -> None:
    """What a worker finds is what this process finds."""
    picture, _ = stamped()
    program = (
        "import sys, numpy as np; from her2_client.ingest.privacy.text import find_text;"
        "p = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(300, 400);"
        "print(find_text(p))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input=picture.tobytes(), capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == str(find_text(picture))
    assert done.stderr == b""


def test_no_network_and_no_reader_are_loaded() -> None:
    """The weights are read from disk; rapidocr, which can download, is not even imported."""
    program = (
        "import sys, numpy as np; from her2_client.ingest.privacy.text import find_text;"
        "find_text(np.eye(64)); print([m for m in ('rapidocr', 'cv2', 'requests') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.decode().strip() == "[]"
