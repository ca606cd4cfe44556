"""The guard before the pixels: what no header clears is used only after a person has looked.

1. A modality's module finds a picture that may show a name (no verified region, burned-in
   annotations, text found) and calls ``Guard.clear`` with the files, the frame and the picture.
2. The guard looks for a reviewer's decision on exactly these bytes. Approved: the decision comes
   back, with the rectangle that may be kept. Refused or undecided: an ImageError.
3. Every digest asked for is in ``consulted``, so that a later decision redoes the case.

Decisions are keyed by ``digest``: HMAC-SHA-256 of the files' bytes with the site's key. A changed
file is a new picture and asks for a new decision.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from her2_client.ingest import dicom
from her2_client.ingest.pixels import Rectangle
from her2_common.cases import Image
from her2_common.errors import ImageError

Array = npt.NDArray[Any]

REVIEW_HINT: Final = "run: her2-client ingest --review"
REFUSED_AT_REVIEW: Final = "refused at review"


@dataclass(frozen=True)
class Decision:
    """A reviewer's word on one picture; ``keep`` is the part that may be used, None all of it."""

    approved: bool
    keep: Rectangle | None = None


@dataclass
class Guard:
    """The decisions of a site's reviewer; ``consulted`` notes each digest asked for.

    ``column`` is the table's column whose images are read; the caller sets it.
    """

    key: bytes
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    consulted: dict[str, Decision | None] = field(default_factory=dict)
    column: Image | None = None

    def clear(
        self,
        files: Sequence[Path],
        *,
        frame: int = 0,
        picture: Callable[[], Array],
        found: Sequence[Rectangle] = (),
        reason: str,
        message: str,
    ) -> Decision:
        """The approval for ``files``, or an error.

        ``picture`` gives what a reviewer must see, (rows, columns) in source pixels, any number
        type, or (rows, columns, 3) RGB; ``found`` are the places where text was found.

        Raises:
            ImageError: quarantined with ``reason`` and ``message``, or refused at review.
        """
        name = digest(self.key, files, frame)
        decision = self.decisions.get(name)
        self.consulted[name] = decision
        if decision is None:
            self._seen(name, picture, found, reason)
            raise ImageError(message, reason=reason, disposition="quarantined", hint=REVIEW_HINT)
        if not decision.approved:
            raise ImageError("a reviewer refused this picture", reason=REFUSED_AT_REVIEW)
        return decision

    def _seen(
        self, name: str, picture: Callable[[], Array], found: Sequence[Rectangle], reason: str
    ) -> None:
        """For a guard that draws the contact sheet."""


def digest(key: bytes, files: Sequence[Path], frame: int = 0) -> str:
    """The name under which a picture is reviewed: 32 hex digits, from bytes alone, not paths."""
    with dicom.reading():
        hashes = []
        for path in files:
            with path.open("rb") as stream:
                hashes.append(hashlib.file_digest(stream, "sha256").digest())
    text = b"review\x00" + str(frame).encode() + b"\x00" + b"".join(sorted(hashes))
    return hmac.new(key, text, hashlib.sha256).hexdigest()[:32]
