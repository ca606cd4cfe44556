"""How much text in pictures `find_text` finds, how often it errs, and how long it takes.

Text of many looks is drawn on pictures that hold none: speckle of several grains, the synthetic
cohort's three modalities, and black. A line counts as found if at least half of its box is covered.
The pictures without the text count the false alarms.

    python tests/benchmarks/text_recall.py [--pictures 40] [--seed 0]
"""

from __future__ import annotations

import argparse
import io
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from her2_client.ingest.privacy.text import find_text
from her2_deploy.synth.centres import CENTRES
from her2_deploy.synth.cohort import SynthCase, draw_cohort
from her2_deploy.synth.render import MG_SHAPE, dce_mri, geometry, mammogram, ultrasound

Array = npt.NDArray[Any]
Rectangle = tuple[int, int, int, int]
Detector = Callable[[Array], Sequence[Rectangle]]

FONTS: Final = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSansMono",
    "DejaVuSerif",
    "STIXGeneral",
    "cmss10",
    "bitmap",
)
"""Those that matplotlib ships, and Pillow's bitmap font as old scanners draw."""
SIZES: Final = (9, 10, 12, 14, 18, 24, 32, 40)
"""Of the font, in pixels; capitals are about 0.7 of it."""
LOOKS: Final = ("white ink", "grey ink", "black ink", "outlined")
BACKGROUNDS: Final = (
    "black",
    "speckle 1",
    "speckle 2",
    "speckle 4",
    "noise",
    "ultrasound",
    "mammogram",
    "mri",
)
SIDE: Final = 512
COVERED: Final = 0.5


@dataclass(frozen=True)
class Line:
    """A line of text and the box of its ink."""

    box: Rectangle
    size: int
    font: str
    look: str


# --- pictures that hold no text ------------------------------------------------------------------


def background(name: str, rng: np.random.Generator, side: int = SIDE) -> Array:
    """(side, side) uint8."""
    if name == "black":
        return np.zeros((side, side), dtype=np.uint8)
    if name == "noise":
        picture = 90 + 35 * rng.standard_normal((side, side))
    elif name.startswith("speckle"):
        picture = _speckle(rng, side, float(name.split()[1]))
    else:
        picture = 255 * _rendered(name, int(rng.integers(12)), side)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _speckle(rng: np.random.Generator, side: int, grain: float) -> Array:
    """Log-compressed Rayleigh speckle of ``grain`` pixels over layers and a dark disc."""
    parts = [ndimage.gaussian_filter(rng.standard_normal((side, side)), grain) for _ in range(2)]
    echo = np.hypot(*parts)
    y, x = np.mgrid[:side, :side] / side
    tissue = 0.7 + 0.25 * np.sin(9 * y + rng.uniform(0, 6)) + 0.1 * np.sin(5 * x)
    centre = rng.uniform(0.3, 0.7, 2)
    tissue = np.where(np.hypot(y - centre[0], x - centre[1]) < 0.13, 0.12, tissue)
    decibel = 20 * np.log10(echo / echo.mean() * tissue + 1e-3)
    result: Array = rng.uniform(60, 150) + 3.0 * decibel  # mean grey; 85 dB over the scale
    return result


@lru_cache(maxsize=1)
def _cohort() -> list[SynthCase]:
    return draw_cohort(seed=99, cases=12)


@lru_cache(maxsize=64)
def _rendered(name: str, number: int, side: int) -> Array:
    """A picture of the synthetic cohort in [0, 1], cut or enlarged to ``side``."""
    case = _cohort()[number]
    site = CENTRES[0]
    if name == "ultrasound":
        assert site.us is not None
        picture = ultrasound(case, site.us, "full")[0]
    elif name == "mammogram":
        picture = mammogram(case, "CC" if number % 2 else "MLO", "full")[0]
        picture = ndimage.zoom(picture, side / MG_SHAPE["full"][0], order=1)
    else:
        assert site.mri is not None
        phases, _ = dce_mri(case, site.mri, "demo", geometry(case, site.mri, "demo"))
        plane = phases[1][phases[1].shape[0] // 2]
        picture = ndimage.zoom(plane / plane.max(), side / min(plane.shape), order=1)
    height, width = picture.shape
    if min(height, width) < side:
        picture = np.pad(picture, ((0, max(0, side - height)), (0, max(0, side - width))))
    return picture[:side, :side]


# --- text ----------------------------------------------------------------------------------------


def words(rng: np.random.Generator) -> str:
    """A made-up name, date, number or label, as it stands on pictures."""
    letters = "ABCDEFGHIJKLMNOPRSTUVWXYZ"

    def name(low: int, high: int) -> str:
        return "".join(rng.choice(list(letters), int(rng.integers(low, high))))

    kind = int(rng.integers(8))
    day, month, year = rng.integers(1, 29), rng.integers(1, 13), rng.integers(1930, 2025)
    return (
        f"{name(4, 9)}, {name(3, 8)}",
        f"{name(4, 8).capitalize()} {name(3, 7).capitalize()}",
        f"{day:02d}.{month:02d}.{year}",
        f"{year}-{month:02d}-{day:02d} 12:{day:02d}",
        f"MRN {rng.integers(10**6, 10**7)}",
        f"ID:{rng.integers(10**7, 10**8)}",
        f"{rng.choice(['L', 'R'])} {rng.choice(['CC', 'MLO'])}",
        f"{name(4, 8)}^{name(3, 6)} F {rng.integers(30, 90)}Y",
    )[kind]


@lru_cache(maxsize=64)
def _font(name: str, size: int) -> Any:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / f"{name}.ttf"), size)


def _stamp(text: str, font: str, size: int, smooth: bool, outline: bool) -> tuple[Array, Array]:
    """Ink and ink with outline, (rows, columns) in [0, 1] each."""
    made = []
    for stroke in (0, max(1, size // 14)):
        if font == "bitmap":
            small = ImageFont.load_default_imagefont()
            image = Image.new("L", (8 * len(text) + 8, 15))
            ImageDraw.Draw(image).text((3, 2), text, fill=255, font=small)
            factor = max(1, round(size / 11))
            image = image.resize((image.width * factor, image.height * factor), Image.NEAREST)
            ink = np.asarray(image) / 255
            if stroke:
                ink = ndimage.maximum_filter(ink, 2 * factor + 1)
        else:
            face = _font(font, size)
            image = Image.new("L", (int(face.getlength(text)) + 2 * size, 2 * size + 8))
            draw = ImageDraw.Draw(image)
            draw.fontmode = "L" if smooth else "1"
            draw.text((size // 2 + 3, size // 3), text, fill=255, font=face, stroke_width=stroke)
            ink = np.asarray(image) / 255
        made.append(ink)
    return made[0], made[1] if outline else made[0]


def write(
    picture: Array, rng: np.random.Generator, size: int, font: str, look: str, taken: Array
) -> Line | None:
    """Draw one line into ``picture`` at a free place; None where there is no room."""
    ink, body = _stamp(words(rng), font, size, bool(rng.integers(4)), look == "outlined")
    rows, columns = np.flatnonzero(body.any(axis=1)), np.flatnonzero(body.any(axis=0))
    part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    ink, body = ink[part], body[part]
    height, width = ink.shape
    for _ in range(30):
        if height + 4 >= picture.shape[0] or width + 4 >= picture.shape[1]:
            return None
        y = int(rng.integers(2, picture.shape[0] - height - 2))
        x = int(rng.integers(2, picture.shape[1] - width - 2))
        margin = size // 2
        around = np.s_[
            max(0, y - margin) : y + height + margin, max(0, x - margin) : x + width + margin
        ]
        if taken[around].any():
            continue
        under = picture[y : y + height, x : x + width].astype(float)
        if look == "black ink" and np.percentile(under, 20) < 70:
            continue  # nobody could read it
        taken[around] = True
        colour = {"white ink": 255.0, "outlined": 255.0, "grey ink": 205.0, "black ink": 0.0}[look]
        if look == "outlined":
            under *= 1 - body
        under = under * (1 - ink) + colour * ink
        if (
            look == "grey ink"
            and under[ink > 0.5].mean() - np.median(picture[y : y + height, x : x + width]) < 60
        ):
            continue
        picture[y : y + height, x : x + width] = under.round().astype(np.uint8)
        return Line((x, y, x + width, y + height), size, font, look)
    return None


def jpeg(picture: Array, quality: int = 75) -> Array:
    """Through JPEG and back."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def covered(line: Line, found: Sequence[Rectangle]) -> float:
    """Share of the line's box that the rectangles cover together."""
    x0, y0, x1, y1 = line.box
    mask = np.zeros((y1 - y0, x1 - x0), dtype=bool)
    for a, b, c, d in found:
        mask[max(0, b - y0) : max(0, d - y0), max(0, a - x0) : max(0, c - x0)] = True
    return float(mask.mean())


# --- measurement ---------------------------------------------------------------------------------


@dataclass
class Tally:
    """Lines found and all lines, by a word such as ``size 12``; clean pictures and alarms.

    ``written`` counts pictures with a line of at least 12 px, ``flagged`` those in which
    anything was found: that is what sends a picture to the reviewer.
    """

    found: dict[str, int]
    all: dict[str, int]
    missed: list[tuple[Line, str]]
    alarms: dict[str, int]
    clean: dict[str, int]
    written: int = 0
    flagged: int = 0


def measure(detector: Detector, pictures: int, seed: int, sizes: Sequence[int] = SIZES) -> Tally:
    """Every background ``pictures`` times, clean and with up to four lines of each a look."""
    tally = Tally(defaultdict(int), defaultdict(int), [], defaultdict(int), defaultdict(int))
    for number, name in enumerate(BACKGROUNDS):
        rng = np.random.default_rng([seed, number])
        for index in range(pictures):
            clean = background(name, rng)
            picture, taken = clean.copy(), np.zeros(clean.shape, dtype=bool)
            lines = []
            for _ in range(4):
                font = str(rng.choice(FONTS))
                line = write(
                    picture, rng, int(rng.choice(sizes)), font, str(rng.choice(LOOKS)), taken
                )
                if line is not None:
                    lines.append(line)
            if index % 2:
                clean, picture = jpeg(clean), jpeg(picture)
            tally.clean[name] += 1
            tally.alarms[name] += bool(detector(clean))
            found = detector(picture)
            if any(line.size >= 12 for line in lines):
                tally.written += 1
                tally.flagged += bool(found)
            for line in lines:
                hit = covered(line, found) >= COVERED
                big = "size >= 12" if line.size >= 12 else "size < 12"
                for key in (f"size {line.size}", line.font, line.look, name, big):
                    tally.all[key] += 1
                    tally.found[key] += hit
                if not hit:
                    tally.missed.append((line, name))
    return tally


def milliseconds(detector: Detector, side: int, repeats: int = 3) -> float:
    """The least of ``repeats`` on a picture with text."""
    rng = np.random.default_rng(side)
    picture = background("speckle 2", rng, side)
    write(picture, rng, 18, "DejaVuSans", "white ink", np.zeros(picture.shape, dtype=bool))
    detector(picture)
    times = []
    for _ in range(repeats):
        began = time.process_time()
        detector(picture)
        times.append(time.process_time() - began)
    return 1000 * min(times)


def report(detector: Detector, pictures: int, seed: int) -> None:
    """Print the table."""
    tally = measure(detector, pictures, seed)
    keys = ["size >= 12", "size < 12", *(f"size {s}" for s in SIZES), *FONTS, *LOOKS, *BACKGROUNDS]
    print(f"{'':16}{'lines':>7}{'recall':>9}{'clean pictures':>17}{'false alarms':>14}")
    for key in keys:
        share = tally.found[key] / max(1, tally.all[key])
        row = f"{key:16}{tally.all[key]:7}{share:9.3f}"
        if key in tally.clean:
            row += f"{tally.clean[key]:17}{tally.alarms[key]:14}"
        print(row)
    clean, alarms = sum(tally.clean.values()), sum(tally.alarms.values())
    print(f"false alarms: {alarms} of {clean} clean pictures ({alarms / clean:.1%})")
    print(f"pictures with text flagged: {tally.flagged} of {tally.written}")
    for side in (256, 512, 768, 1024):
        print(f"{side:5} px: {milliseconds(detector, side):6.1f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    report(find_text, options.pictures, options.seed)
