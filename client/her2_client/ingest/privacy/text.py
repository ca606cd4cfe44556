"""Where machine-drawn text stands in a picture: names, dates, numbers, labels.

1. A picture longer than ``LONGEST_SIDE`` is reduced by a whole factor (mean of blocks).
2. The grey values become 8 bits: the window between the 0.1 % and the 99.9 % quantile, widened by
   its own width on either side but not past the least and the greatest value, so that one stray
   pixel does not hide the rest.
3. The text detector PP-OCRv6 small (PaddleOCR, Apache-2.0; the weights come inside the rapidocr
   package) gives each pixel the probability of lying in the core of a line of text, by
   differentiable binarisation (Liao et al., AAAI 2020).
4. Connected parts of at least ``THRESHOLD`` are lines if their mean reaches ``SCORE`` and they are
   thin: tissue that excites the detector does so in broad patches. They are widened as in the
   paper, since the core is smaller than the line, and become upright rectangles.
5. In a small picture a few calcifications look like a word: what is found there is looked at once
   more, enlarged, and kept if it is found again.

Reading is not needed, so rapidocr's own classes are not used: they turn a failure into "no text".
One thread and deterministic kernels: the same machine gives the same rectangles whatever runs
beside it. No network is used.

Capitals of 12 px fonts and larger are what it is made for; tests/benchmarks/text_recall.py
measures it. It is a help for the reviewer, not a proof that a picture holds no name.
"""

from __future__ import annotations

from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime  # type: ignore[import-untyped]
from PIL import Image
from scipy import ndimage

from her2_client.ingest.pixels import Rectangle

Array = npt.NDArray[Any]

PACKAGE: Final = "rapidocr"
WEIGHTS: Final = "rapidocr/models/PP-OCRv6_det_small.onnx"
"""Where the weights lie inside the package; it is not imported."""
LONGEST_SIDE: Final = 1280
"""Pixels given to the detector at most; bounds its time and memory (a design value)."""
GREATEST: Final = 1e30
"""Larger values become this; differences of single precision must not overflow."""
QUANTILES: Final = (0.001, 0.999)
THRESHOLD: Final = 0.3
"""Of the probability; the detector's own."""
SCORE: Final = 0.65
"""Least mean probability of a line: see the benchmark (the detector's own is 0.5)."""
THINNEST: Final = 3
"""Pixels across the core of a line; a 9 px font gives 5."""
THICKEST: Final = 44
"""Pixels across the core of a line; an 80 px font gives up to 40, tissue gives more."""
LONGER_THAN_WIDE: Final = 1.25
"""How much a core is longer than wide at least; two capitals give 1.5."""
WIDEN: Final = 1.6
"""Area over perimeter by which a core is widened; the detector's own."""
SMALL: Final = 200
"""Pixels of the longest side below which there is a second look (a design value): no clinical
picture is as small, a part of one around a lesion may be. Of 60 synthetic mammograms of 160 x 128
pixels 3 had raised an alarm, and with it none."""
LARGEST_SHARE: Final = 0.4
"""Of a small picture's shorter side that a line may be tall: more is the breast itself."""
SECOND_LOOK: Final = 48
"""Pixels to which a line is enlarged for it, up to ``MOST_ENLARGED`` times."""
MOST_ENLARGED: Final = 4.0
_MARGIN: Final = 8
_STRIDE: Final = 32
"""The detector's sides are multiples of this."""


def find_text(picture: Array) -> list[Rectangle]:
    """Rectangles of the lines of text in ``picture``, from the top down.

    ``picture`` is (rows, columns) of any real number type; what is not finite counts as darkest.

    >>> find_text(np.zeros((64, 64)))
    []

    Raises:
        ValueError: ``picture`` is not two-dimensional.
    """
    if picture.ndim != 2:
        raise ValueError(f"expected a picture of (rows, columns), got {picture.ndim} axes")
    lines = _find(picture)
    if max(picture.shape) < SMALL:
        most = LARGEST_SHARE * min(picture.shape)
        lines = [
            (x0, y0, x1, y1)
            for x0, y0, x1, y1 in lines
            if min(x1 - x0, y1 - y0) <= most and _found_again(picture, (x0, y0, x1, y1))
        ]
    return lines


def _found_again(picture: Array, line: Rectangle) -> bool:
    """Whether most of ``line`` is found in an enlarged view of its surroundings."""
    x0, y0, x1, y1 = line
    high = min(x1 - x0, y1 - y0)
    around = 2 * high + _MARGIN
    left, top = max(0, x0 - around), max(0, y0 - around)
    part = picture[top : y1 + around, left : x1 + around]
    factor = min(max(SECOND_LOOK / high, 1.0), MOST_ENLARGED)
    size = (round(part.shape[1] * factor), round(part.shape[0] * factor))
    enlarged = Image.fromarray(_reduced(part, 1)).resize(size, Image.Resampling.BICUBIC)
    for a, b, c, d in _find(np.asarray(enlarged)):
        wide = min(left + c / factor, x1) - max(left + a / factor, x0)
        tall = min(top + d / factor, y1) - max(top + b / factor, y0)
        if wide > 0 and tall > 0 and 2 * wide * tall >= (x1 - x0) * (y1 - y0):
            return True
    return False


def _find(picture: Array) -> list[Rectangle]:
    rows, columns = picture.shape
    factor = max(1, -(-max(rows, columns) // LONGEST_SIDE))
    grey = eight_bits(_reduced(picture, factor))
    if grey is None:
        return []
    lines = []
    for x0, y0, x1, y1 in _lines(_probability(grey)):
        line = (
            max(0, int(np.floor(x0 * factor))),
            max(0, int(np.floor(y0 * factor))),
            min(columns, int(np.ceil(x1 * factor))),
            min(rows, int(np.ceil(y1 * factor))),
        )
        if line[0] < line[2] and line[1] < line[3]:
            lines.append(line)
    return sorted(lines, key=lambda line: (line[1], line[0]))


def _reduced(picture: Array, factor: int) -> Array:
    """float32, finite, means of blocks of ``factor`` x ``factor``."""
    if picture.dtype.kind == "f":
        finite = np.isfinite(picture)
        darkest = picture.min(initial=np.inf, where=finite) if finite.any() else 0.0
        picture = np.clip(np.where(finite, picture, darkest), -GREATEST, GREATEST)
    values = picture.astype(np.float32)
    if factor > 1:
        values = np.asarray(Image.fromarray(values).reduce(factor))
    return values


def eight_bits(picture: Array) -> Array | None:
    """(rows, columns) uint8 as step 2 says, or None if there is nothing but one value."""
    values = _reduced(picture, 1)
    if values.size == 0:
        return None
    least, greatest = float(values.min()), float(values.max())
    low, high = (float(q) for q in np.quantile(values, QUANTILES))
    if high > low:
        least, greatest = max(least, 2 * low - high), min(greatest, 2 * high - low)
    if not greatest > least:
        return None
    scaled: Array = (np.clip(values, least, greatest) - least) * (255 / (greatest - least))
    return scaled.round().astype(np.uint8)


@lru_cache(maxsize=1)
def _detector() -> onnxruntime.InferenceSession:
    """The network, once a process."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.enable_cpu_mem_arena = False  # memory goes back after a large picture
    options.log_severity_level = 3
    weights = Path(str(metadata.distribution(PACKAGE).locate_file(WEIGHTS))).read_bytes()
    return onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])


def _probability(grey: Array) -> Array:
    """(rows, columns) float32 of uint8: how likely each pixel lies in the core of a line."""
    rows, columns = grey.shape
    after = [_MARGIN + -(n + 2 * _MARGIN) % _STRIDE for n in (rows, columns)]
    padded = np.pad(grey, [(_MARGIN, pixels) for pixels in after], mode="edge")
    values = padded.astype(np.float32) / np.float32(127.5) - np.float32(1)
    colours = np.broadcast_to(values, (1, 3, *values.shape))  # (1, red green blue, H, W)
    session = _detector()
    name = session.get_inputs()[0].name
    (result,) = session.run(None, {name: np.ascontiguousarray(colours)})  # (1, 1, H, W)
    core: Array = result[0, 0, _MARGIN : _MARGIN + rows, _MARGIN : _MARGIN + columns]
    return core


def _lines(probability: Array) -> list[tuple[float, float, float, float]]:
    """x0, y0, x1, y1 of each line, widened, perhaps past the edges."""
    parts, count = ndimage.label(probability >= THRESHOLD, np.ones((3, 3)))
    if not count:
        return []
    scores = ndimage.mean(probability, parts, np.arange(1, count + 1))
    lines = []
    for (down, along), score in zip(ndimage.find_objects(parts), scores, strict=True):
        height, width = down.stop - down.start, along.stop - along.start
        across, length = sorted((height, width))
        if score < SCORE or not THINNEST <= across <= THICKEST:
            continue
        if length < LONGER_THAN_WIDE * across:
            continue
        margin = WIDEN * height * width / (2 * (height + width))
        lines.append(
            (along.start - margin, down.start - margin, along.stop + margin, down.stop + margin)
        )
    return lines
