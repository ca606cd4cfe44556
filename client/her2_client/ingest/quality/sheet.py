"""The contact sheet of what was accepted: what training will see, drawn from the cache alone.

1. The cache gives the cases in the order of the table, their images and, in its records, makes,
   remarks and where each lesion's box lies. The table, read again, gives the rows by pseudonym; no
   image's source is opened.
2. Mammograms: each view, and the lesion's crop where there is a box. Ultrasound: the picture. MRI:
   the three middle slices of the cube, a phase at a time, seen as radiologists do: the patient's
   right on the left, the head on top.
3. Grey is one scale a modality (``GREYS``), not each picture's own, so that a picture that was
   standardised badly looks so.
4. Pages of at most ``MAX_PICTURES`` pictures, linked with one another; a case is never parted.

A page shows patients' pixels: only its owner can read it. It loads nothing.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from her2_client.cache import SOURCES, Cache
from her2_client.ingest.outcome import Outcome
from her2_client.ingest.pixels import Place, place_in, square
from her2_client.ingest.planar.breast import CROP_FACTOR
from her2_client.ingest.quality.readiness import NAMES, SPLIT_NAMES
from her2_client.ingest.summary import SOURCE_NAMES
from her2_common.cases import MODALITIES, SPLITS, Modality
from her2_common.files import replacing_privately
from her2_common.pages import environment, style

Array = npt.NDArray[Any]

MAX_PICTURES: Final = 300
"""On one page, about 3 MB (a design value)."""
GREYS: Final[dict[Modality, tuple[float, float]]] = {
    "mg": (-3.0, 3.0),
    "us": (-3.0, 3.0),
    "mri": (-2.0, 4.0),
}
"""Standardised values drawn black and white (design values); air is -2 in MRI."""
JPEG_QUALITY: Final = 80
PLANES: Final = ("axial", "coronal", "sagittal")
"""Across the axes of a cube: slices to the head, rows to posterior, columns to the left."""
_PACKAGE: Final = "her2_client.ingest.quality"
_LABELS: Final = {-1: "unknown", 0: "negative", 1: "positive"}


@dataclass(frozen=True)
class Picture:
    """One picture; ``size`` (columns, rows), ``box`` the lesion's (x0, y0, x1, y1) as shares."""

    title: str
    jpeg: bytes
    size: tuple[int, int]
    box: tuple[float, float, float, float] | None


@dataclass(frozen=True)
class Part:
    """The pictures of one modality of a case, and the make and remarks of its sources."""

    modality: Modality
    pictures: tuple[Picture, ...]
    makes: tuple[str, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Card:
    """One case; ``row`` is None if the table has it no more."""

    row: int | None
    split: str
    label: str
    source: str
    parts: tuple[Part, ...]


def page_path(first: Path, number: int) -> Path:
    """The file of page ``number``, counted from 1.

    >>> page_path(Path("sheet.html"), 3).name
    'sheet-3.html'
    """
    return first if number == 1 else first.with_name(f"{first.stem}-{number}{first.suffix}")


def remove_sheet(first: Path) -> bool:
    """Remove all pages of a sheet; returns whether there was one."""
    pages = [first, *first.parent.glob(f"{first.stem}-[0-9]*{first.suffix}")]
    found = [page for page in pages if page.is_file()]
    for page in found:
        page.unlink()
    return bool(found)


def write_sheet(
    first: Path,
    cache: Cache,
    records: Sequence[Mapping[str, Any]],
    rows: Mapping[str, int],
    *,
    most: int = MAX_PICTURES,
) -> list[Path]:
    """Write the sheet of ``cache`` to ``first`` and further pages beside it; returns all pages.

    ``records`` are those of ``read_outcomes``; ``rows`` gives the table's row by pseudonym. Pages
    of an earlier sheet go.

    Raises:
        OSError: a page cannot be written.
    """
    outcomes = {
        (record["modality"], record["row"]): Outcome.from_record(dict(record))
        for record in records
        if record["row"] is not None
    }
    spans = list(_spans(cache, outcomes, most))
    script = resources.files(_PACKAGE).joinpath("sheet.js").read_text(encoding="utf-8")
    template = environment(_PACKAGE).get_template("sheet.html.j2")
    first.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    remove_sheet(first)
    paths = [page_path(first, number + 1) for number in range(len(spans))]
    for number, (path, span) in enumerate(zip(paths, spans, strict=True)):
        page = template.render(
            site=cache.site,
            cases=len(cache),
            cards=[_card(cache, index, outcomes, rows) for index in span],
            modalities=NAMES,
            greys=GREYS,
            number=number + 1,
            pages=[one.name for one in paths],
            style=style(_PACKAGE, "sheet.css"),
            script=script,
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            data=lambda jpeg: base64.b64encode(jpeg).decode(),
        )
        with replacing_privately(path) as file:
            file.write(page.encode())
    return paths


_Outcomes = Mapping[tuple[Modality, int], Outcome]


def _spans(cache: Cache, outcomes: _Outcomes, most: int) -> Iterator[range]:
    """The cases of each page; at least one page, though it be empty."""
    start = pictures = 0
    for index in range(len(cache)):
        count = sum(
            len(_cuts(modality, outcomes[modality, row], cache.mri_phases))
            for modality, row in _images(cache, index)
        )
        if pictures and pictures + count > most:
            yield range(start, index)
            start, pictures = index, 0
        pictures += count
    yield range(start, len(cache))


def _images(cache: Cache, index: int) -> list[tuple[Modality, int]]:
    """The modalities that a case has, and its row in the array of each."""
    found = [(modality, int(cache.rows[modality][index])) for modality in MODALITIES]
    return [(modality, row) for modality, row in found if row >= 0]


def _card(cache: Cache, index: int, outcomes: _Outcomes, rows: Mapping[str, int]) -> Card:
    parts = []
    for modality, row in _images(cache, index):
        outcome = outcomes[modality, row]
        values = cache.arrays[modality][row]
        pictures = [
            _picture(title, values[where], GREYS[modality], place, flipped=flipped)
            for title, where, place, flipped in _cuts(modality, outcome, cache.mri_phases, values)
        ]
        makes, remarks = (tuple(dict.fromkeys(w)) for w in (outcome.scanners, outcome.remarks))
        parts.append(Part(modality, tuple(pictures), makes, remarks))
    source = SOURCES[cache.sources["reference"][index]]
    return Card(
        row=rows.get(cache.pseudonyms[index]),
        split=SPLIT_NAMES[SPLITS[cache.split[index]]],
        label=_LABELS[int(cache.labels["reference"][index])],
        source=SOURCE_NAMES[source],
        parts=tuple(parts),
    )


_Cut = tuple[str, Any, Place | None, bool]
"""Title, index into a case's array, the box there, and whether the rows are turned over."""


def _cuts(
    modality: Modality, outcome: Outcome, phases: Sequence[int], values: Array | None = None
) -> list[_Cut]:
    """What is shown of an image; without its ``values`` only the number of cuts is right."""
    if modality == "us":
        return [("B-mode", 0, outcome.boxes.get("us"), False)]
    if modality == "mg":
        cuts: list[_Cut] = []
        for k, (column, view) in enumerate((("mg_cc", "CC"), ("mg_mlo", "MLO"))):
            if column not in outcome.accepted:
                continue
            place = outcome.boxes.get(column)
            cuts.append((view, k, place, False))
            if place is not None:
                cuts.append((f"{view}, lesion", k + 2, _in_crop(place), False))
        return cuts
    place = outcome.boxes.get("mri")
    middle = 0 if values is None else values.shape[1] // 2
    cuts = []
    for channel, phase in enumerate(phases):
        when = "before contrast" if phase == 0 else f"phase {phase} after contrast"
        for axis, plane in enumerate(PLANES):
            where: list[Any] = [channel, slice(None), slice(None), slice(None)]
            where[axis + 1] = middle
            in_plane = None if place is None else [p for k, p in enumerate(place) if k != axis]
            cuts.append((f"{plane}, {when}", tuple(where), in_plane, axis > 0))
    return cuts


def _in_crop(place: Place) -> Place:
    """Where a box, given by its place in the whole view, lies in the lesion's crop."""
    low, high = zip(*place, strict=True)
    return place_in(square(low, high, CROP_FACTOR), low, high)


def _picture(
    title: str, values: Array, grey: tuple[float, float], place: Place | None, *, flipped: bool
) -> Picture:
    """``values`` (rows, columns); ``flipped``: the last row comes on top."""
    if flipped:
        values = values[::-1]
    low, high = grey
    shown = np.clip((values.astype(np.float32) - low) / (high - low), 0, 1) * 255
    stream = io.BytesIO()
    Image.fromarray(shown.round().astype(np.uint8)).save(stream, "JPEG", quality=JPEG_QUALITY)
    box = None
    if place is not None:
        (y0, y1), (x0, x1) = place
        box = (x0, 1 - y1, x1, 1 - y0) if flipped else (x0, y0, x1, y1)
    return Picture(title, stream.getvalue(), (values.shape[1], values.shape[0]), box)
