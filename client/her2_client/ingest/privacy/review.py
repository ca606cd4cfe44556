"""The review: a contact sheet of quarantined pictures, and what a person decided on it.

1. The caller repeats the quarantined cases with a ``RecordingGuard``; ``write_sheet`` draws what
   it saw into one page that opens offline. It shows patients' pixels: only its owner can read it.
2. The reviewer saves decisions.csv from the page: picture, decision, x0, y0, x1, y1, by.
3. ``merge_decisions`` checks it and adds it, with the date (UTC), to the site's own log beside the
   page. Rows are only ever added; of two rows on one picture the later counts, and ``undo`` takes
   the decision back.
4. The next ingest reads the log (``read_decisions``) and does the cases again whose decisions
   have changed.

The page holds the table's row and column, the reason and the pixels. Nothing of a file's tags or
path enters it; pictures are named by ``guard.digest``. Pictures of one size and scanner bear a
number in common, so that one frame can be used for all of them that are not decided yet.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from her2_client.ingest import dicom
from her2_client.ingest.pixels import Rectangle
from her2_client.ingest.privacy.guard import Decision, Guard
from her2_client.ingest.privacy.text import eight_bits
from her2_common.errors import ImageError, TableError
from her2_common.files import replace_privately
from her2_common.pages import environment, style
from her2_common.tables import Faults, read_rows, write_csv

Array = npt.NDArray[Any]

MAX_PICTURES: Final = 1000
"""On one sheet; the others come on the next one."""
LONGEST_SIDE: Final = 640
"""Pixels of a picture on the sheet: text of 12 px on a screen of 1,024 can still be seen."""
JPEG_QUALITY: Final = 75

CORNERS: Final = ("x0", "y0", "x1", "y1")
COLUMNS: Final = ("picture", "decision", *CORNERS, "by")
LOG_COLUMNS: Final = (*COLUMNS, "date")
WORDS: Final = ("approve", "refuse", "undo")
MOST_PIXELS: Final = 1_000_000
"""A side of a picture, as an upper bound of a corner."""
LONGEST_NAME: Final = 64
_PICTURE: Final = re.compile(r"[0-9a-f]{32}")


# --- what is reviewed ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A picture for the reviewer; ``size`` is (columns, rows) of the source, as are ``found``.

    ``scanner`` is ``scanner_of`` its file: only whether two are the same enters the page.
    """

    digest: str
    column: str
    row: int
    reason: str
    jpeg: bytes
    size: tuple[int, int]
    found: tuple[Rectangle, ...] = ()
    scanner: tuple[str, str] = ("", "")


def scanner_of(path: Path) -> tuple[str, str]:
    """Manufacturer and model as the header has them, "" where it has none, as a PNG or JPEG."""
    try:
        header = dicom.header(path)
    except ImageError:
        return "", ""
    make, model = (
        str(header.get(tag, "") or "").strip().upper()
        for tag in ("Manufacturer", "ManufacturerModelName")
    )
    return make, model


@dataclass
class RecordingGuard(Guard):
    """Keeps every undecided picture once; the caller sets ``row`` and ``column`` beforehand."""

    row: int = 0
    seen: list[Seen] = field(default_factory=list)
    _file: Path | None = None

    def clear(self, files: Sequence[Path], **question: Any) -> Decision:
        """As ``Guard.clear``."""
        self._file = files[0]
        return super().clear(files, **question)

    def _seen(
        self, name: str, picture: Callable[[], Array], found: Sequence[Rectangle], reason: str
    ) -> None:
        if any(known.digest == name for known in self.seen):
            return
        pixels = picture()
        size = (pixels.shape[1], pixels.shape[0])
        column = self.column or ""
        self.seen.append(
            Seen(
                name,
                column,
                self.row,
                reason,
                thumbnail(pixels),
                size,
                tuple(found),
                scanner_of(self._file) if self._file is not None else ("", ""),
            )
        )


def thumbnail(pixels: Array) -> bytes:
    """A JPEG of (rows, columns) or (rows, columns, 3), longest side at most ``LONGEST_SIDE``.

    Colour stays: a coloured name may be as bright as the tissue under it.
    """
    shown: Array | None
    if pixels.ndim == 3:
        brightest = max(float(pixels.max()), 1.0)
        shown = (pixels.astype(np.float32) * (255 / brightest)).round().astype(np.uint8)
    else:
        shown = eight_bits(pixels)
        shown = np.zeros(pixels.shape, np.uint8) if shown is None else shown
    image = Image.fromarray(shown)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def write_sheet(path: Path, seen: Sequence[Seen], *, site: str, more: int) -> None:
    """Write the contact sheet of ``seen`` as one offline page that only its owner can read.

    ``more`` is how many cases wait for the next sheet; its folder is closed to others, too.
    """
    folder = resources.files("her2_client.ingest.privacy")
    script = folder.joinpath("review.js").read_text(encoding="utf-8")
    numbers = {alike: n for n, alike in enumerate(dict.fromkeys(map(_alike, seen)), 1)}
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = (
        environment("her2_client.ingest.privacy")
        .get_template("review.html.j2")
        .render(
            site=site,
            more=more,
            seen=seen,
            group=lambda one: numbers[_alike(one)],
            reasons=sorted(Counter(one.reason for one in seen).items()),
            style=style("her2_client.ingest.privacy", "review.css"),
            script=script,
            script_hash=allowed,
            data=lambda jpeg: base64.b64encode(jpeg).decode(),
            longest_name=LONGEST_NAME,
        )
    )
    replace_privately(path, page.encode())


def _alike(one: Seen) -> tuple[tuple[int, int], tuple[str, str]]:
    return one.size, one.scanner


# --- what was decided ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One row of decisions; ``decision`` None takes back an earlier one."""

    picture: str
    decision: Decision | None
    by: str

    def cells(self, date: str) -> list[str]:
        """The row in the log."""
        word = "undo" if self.decision is None else "refuse"
        corners = ["", "", "", ""]
        if self.decision is not None and self.decision.approved:
            word = "approve"
            corners = [str(pixel) for pixel in self.decision.keep or corners]
        return [self.picture, word, *corners, self.by, date]


def decisions_file(state: Path) -> Path:
    """The site's log of decisions."""
    return state / "review" / "decisions.csv"


def read_decisions(path: Path) -> dict[str, Decision]:
    """The decisions in force, by the picture's digest; none if there is no log.

    Raises:
        TableError: the log has been damaged; every faulty row and column is named.
    """
    if not path.exists():
        return {}
    return _in_force(_read(path, LOG_COLUMNS))


def merge_decisions(saved: Path, new: Path, *, asked: Collection[str] | None = None) -> int:
    """Check the decisions in ``new`` and add them to the log ``saved``; returns how many.

    ``asked`` are the digests that the last ingest asked about: no other may be decided on. None
    takes any.

    Raises:
        TableError: naming every faulty row and column; the log is then left as it was.
    """
    if not new.is_file():
        raise TableError(
            f"{new.name}: no such file",
            hint="the sheet's button Save decisions makes it, in the browser's downloads",
        )
    if new.resolve() == saved.resolve():
        raise TableError(
            f"{new.name}: expected the file that the page saved, got the site's own log",
            hint="save the page's decisions into another folder",
        )
    entries = _read(new, COLUMNS)
    known = read_decisions(saved)
    faults = Faults(new)
    first: dict[str, int] = {}
    for row, entry in entries:
        if (other := first.setdefault(entry.picture, row)) != row:
            faults.row(row, f"column picture: the same picture as in row {other}")
        elif entry.decision is None and entry.picture not in known:
            faults.row(row, "column decision: undo, but the picture has no decision yet")
        elif asked is not None and entry.picture not in asked and entry.picture not in known:
            faults.row(row, "column picture: expected one that the last ingest asked about")
    faults.raise_if_any()
    date = datetime.now(UTC).isoformat(timespec="seconds")
    log = write_csv(
        LOG_COLUMNS,
        (dict(zip(LOG_COLUMNS, entry.cells(date), strict=True)) for _, entry in entries),
    )
    if saved.exists():
        _, _, lines = log.partition("\n")  # without the header
        log = saved.read_text(encoding="utf-8").rstrip("\n") + "\n" + lines
    replace_privately(saved, log.encode())
    return len(entries)


def _in_force(entries: Iterable[tuple[int, Entry]]) -> dict[str, Decision]:
    decisions: dict[str, Decision] = {}
    for _, entry in entries:
        if entry.decision is None:
            decisions.pop(entry.picture, None)
        else:
            decisions[entry.picture] = entry.decision
    return decisions


def _read(path: Path, columns: tuple[str, ...]) -> list[tuple[int, Entry]]:
    """Row numbers and entries, in the order of the file."""
    faults = Faults(path)
    entries = []
    for raw in read_rows(path, columns, set(columns)):
        row = int(raw[""])
        before = len(faults.lines)
        if not _PICTURE.fullmatch(raw["picture"]):
            faults.row(row, "column picture: expected 32 hex digits, got something else")
        if raw["decision"] not in WORDS:
            faults.cell(row, "decision", "one of " + ", ".join(WORDS), raw["decision"])
        if not 0 < len(raw["by"]) <= LONGEST_NAME:
            expected = f"the reviewer's name, at most {LONGEST_NAME} characters"
            faults.row(row, f"column by: expected {expected}, got {len(raw['by'])}")
        keep = _keep(row, raw, faults)
        if len(faults.lines) == before:
            decision = (
                None if raw["decision"] == "undo" else Decision(raw["decision"] == "approve", keep)
            )
            entries.append((row, Entry(raw["picture"], decision, raw["by"])))
    faults.raise_if_any()
    return entries


def _keep(row: int, raw: dict[str, str], faults: Faults) -> Rectangle | None:
    """The part to keep, or None where the four cells are blank."""
    cells = [raw[corner] for corner in CORNERS]
    if not any(cells):
        return None
    if raw["decision"] in WORDS and raw["decision"] != "approve":
        faults.row(row, f"column x0: a part is kept only with approve, got {raw['decision']}")
        return None
    if not all(cells):
        blank = next(corner for corner in CORNERS if not raw[corner])
        faults.row(row, f"column {blank}: expected all four corners or none, got a blank")
        return None
    corners = []
    for name in CORNERS:
        text = raw[name]
        if not (text.isascii() and text.isdigit() and len(text) < 8 and int(text) <= MOST_PIXELS):
            faults.cell(row, name, f"a whole number from 0 to {MOST_PIXELS}", text)
            return None
        corners.append(int(text))
    x0, y0, x1, y1 = corners
    for axis, low, high in (("x", x0, x1), ("y", y0, y1)):
        if high <= low:
            faults.row(row, f"column {axis}1: expected more than {axis}0 ({low}), got {high}")
            return None
    return x0, y0, x1, y1
