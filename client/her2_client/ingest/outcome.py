"""What becomes of the images of one case and modality: the vocabulary of ingest.

    accepted      standardised, in the cache
    set aside     sound, but of another kind: an implant or spot view, a subtraction, a localiser
    quarantined   may show a name in its pixels: a person must look (`ingest --review`)
    refused       missing, damaged, contradictory or incomplete

Nothing here holds a path, a tag's text or a name: outcomes are kept in the cache and shown.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from typing import Any, Final

import numpy.typing as npt

from her2_client.ingest.pixels import Place
from her2_client.ingest.privacy.guard import Decision
from her2_common.cases import Image
from her2_common.errors import Disposition, ImageError

Array = npt.NDArray[Any]

SCANNER_MAKES: Final = (
    "Agfa",
    "Aloka",
    "Canon",
    "Esaote",
    "Fujifilm",
    "GE",
    "Hitachi",
    "Hologic",
    "IMS Giotto",
    "Lorad",
    "Medison",
    "Mindray",
    "Philips",
    "Planmed",
    "Samsung",
    "Siemens",
    "SonoScape",
    "SuperSonic",
    "Toshiba",
    "Ultrasonix",
)
"""Makes that are told apart; the tag is free text and must not be repeated."""
OTHER_MAKE: Final = "another make"
NO_MAKE: Final = "not stated"


@dataclass(frozen=True)
class Note:
    """An image that was not used, and why; ``column`` is where the table names it."""

    column: Image
    disposition: Disposition
    reason: str
    message: str
    hint: str | None = None

    @classmethod
    def of(cls, column: Image, error: ImageError) -> Note:
        """The note of an image's error."""
        return cls(column, error.disposition, error.reason, str(error), error.hint)


@dataclass(frozen=True)
class Standardised:
    """A standardised image: ``values`` float16, channels first, within [-5, 5].

    ``box`` is the lesion's place in them, if the table has it: of a mammogram in the whole view.
    ``set_aside`` holds what was looked at and not used while this image was; ``remarks`` are
    short, stable words on what of the image itself was not used, such as its window.
    """

    values: Array
    scanner: str = NO_MAKE
    box: Place | None = None
    set_aside: tuple[ImageError, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass
class Outcome:
    """What became of one modality of one case; ``values`` is None if no image could be used.

    ``accepted`` names the columns used, ``scanners`` their makes, ``boxes`` the lesion's place in
    those with a box, ``remarks`` what of them was not used; ``consulted`` holds the reviewer's
    decisions that were asked for, by digest.
    """

    values: Array | None = None
    accepted: list[Image] = field(default_factory=list)
    scanners: list[str] = field(default_factory=list)
    boxes: dict[Image, Place] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    consulted: dict[str, Decision | None] = field(default_factory=dict)

    def as_record(self) -> dict[str, Any]:
        """All but the values, for the cache's outcomes.jsonl."""
        return {
            "accepted": self.accepted,
            "scanners": self.scanners,
            "boxes": self.boxes,
            "remarks": self.remarks,
            "notes": [astuple(note) for note in self.notes],
            "consulted": {
                name: None if decision is None else astuple(decision)
                for name, decision in self.consulted.items()
            },
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Outcome:
        """The outcome that ``as_record`` gave, without its values."""
        return cls(
            accepted=record["accepted"],
            scanners=record["scanners"],
            boxes=record["boxes"],
            remarks=record["remarks"],
            notes=[Note(*note) for note in record["notes"]],
            consulted={
                name: None if known is None else Decision(known[0], known[1] and tuple(known[1]))
                for name, known in record["consulted"].items()
            },
        )


def scanner_make(manufacturer: object) -> str:
    """The make out of a Manufacturer tag: one of ``SCANNER_MAKES``, another make, not stated.

    >>> scanner_make("SIEMENS HEALTHINEERS"), scanner_make("GE MEDICAL SYSTEMS"), scanner_make("")
    ('Siemens', 'GE', 'not stated')
    """
    words = str(manufacturer or "").upper()
    if not words.strip():
        return NO_MAKE
    for make in SCANNER_MAKES:
        name = make.upper()
        if words.startswith(name) or f" {name}" in words:
            return make
    return OTHER_MAKE
