"""The size that a compressed picture states of itself, read before any decoder sees it.

A decoder allocates what the codestream asks for, whatever the DICOM header promised. A few bytes
that claim 60,000 x 60,000 pixels must not cost gigabytes.
"""

from __future__ import annotations

from typing import Final, NamedTuple

_SOI: Final = b"\xff\xd8"
"""JPEG (ITU-T T.81) and JPEG-LS (ITU-T T.87) start with this marker."""
_SOF: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
"""Start of frame, SOF0 to SOF15 and that of JPEG-LS; C4, C8 and CC are other segments."""
_ALONE: Final = frozenset(range(0xD0, 0xD8)) | {0x01}
"""Markers without a length."""
_J2K: Final = b"\xff\x4f\xff\x51"
"""JPEG 2000 (ITU-T T.800): start of codestream, at once followed by the SIZ segment."""


class Size(NamedTuple):
    """Rows, columns, samples a pixel, and the bits of the first of them."""

    rows: int
    columns: int
    samples: int
    bits: int


def stated_size(codestream: bytes) -> Size | None:
    """The size in the header of a JPEG, JPEG-LS or JPEG 2000 codestream; None where it has none.

    >>> stated_size(bytes.fromhex("ffd8 ffc0 000b 08 0040 0020 01 011100"))
    Size(rows=64, columns=32, samples=1, bits=8)
    """
    start = codestream.find(_J2K, 0, 4096)  # some writers wrap it into a JP2 file
    if start >= 0 and not codestream.startswith(_SOI):
        return _siz(codestream[start + 4 : start + 43])
    return _sof(codestream) if codestream.startswith(_SOI) else None


def _siz(segment: bytes) -> Size | None:
    """Lsiz, Rsiz, Xsiz, Ysiz, XOsiz, YOsiz, four sizes of tiles, Csiz, Ssiz (T.800 A.5.1)."""
    if len(segment) < 39:
        return None
    x1, y1, x0, y0 = (int.from_bytes(segment[at : at + 4], "big") for at in (4, 8, 12, 16))
    bits = (segment[38] & 0x7F) + 1  # the first bit says whether it is signed
    return Size(y1 - y0, x1 - x0, int.from_bytes(segment[36:38], "big"), bits)


def _sof(codestream: bytes) -> Size | None:
    """Walk the segments up to the first frame header (T.81 B.2.2)."""
    at = 2
    while at + 9 < len(codestream):
        if codestream[at] != 0xFF:
            return None
        marker = codestream[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker in _ALONE:
            at += 2
            continue
        if marker in _SOF:
            rows, columns = (int.from_bytes(codestream[at + k : at + k + 2], "big") for k in (5, 7))
            return Size(rows, columns, codestream[at + 9], codestream[at + 4])
        at += 2 + int.from_bytes(codestream[at + 2 : at + 4], "big")
    return None
