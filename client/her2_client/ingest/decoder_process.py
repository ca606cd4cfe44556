"""The program of a decoder's own process: frames in, pixels out, until its input ends.

Decoders in C and C++ can end the whole process on damaged bytes, or never return. They run here,
so that ``decoders`` can kill and replace them. Started by path; it imports nothing of this project.

Once the decoders are imported the process gives up what decoding does not need (``confine``):
damaged or hostile bytes that take it over can open no file, the site's keys included, no socket,
and start no program. As root, who may raise any limit again, this holds against accidents alone.

A message is two lengths (8 bytes each, little-endian), a JSON text and the bytes of a frame.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import warnings
from typing import Any, BinaryIO, Final

from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder

LENGTHS: Final = struct.Struct("<QQ")
MOST_MEMORY: Final = 8 << 30
"""Bytes of address space. A frame of 20,000 x 20,000 in 16 bits is .8 GB, and a decoder holds it
four times in 32 (a design value)."""
LAST_S: Final = 60
"""Seconds after which a decoder ends itself; twice what ``decoders`` waits."""


def confine() -> None:
    """Limits that only root can raise again; what is open stays open."""
    try:
        import resource  # not on Windows
    except ImportError:
        return
    for limit, most in (
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, MOST_MEMORY),
    ):
        resource.setrlimit(limit, (most, most))


def main() -> None:
    """Answer every message on standard input."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a C library that prints must not answer
    warnings.simplefilter("ignore")
    for syntax in sys.argv[1:]:
        _ = get_decoder(syntax).available_plugins  # imports them: no file can be opened later
    confine()
    while lengths := requests.read(LENGTHS.size):
        text, frame = (requests.read(length) for length in LENGTHS.unpack(lengths))
        try:
            if hasattr(signal, "alarm"):
                signal.alarm(LAST_S)  # whoever asked may have been killed: do not run for ever
            head, pixels = _decoded(json.loads(text), frame)
        except Exception:
            head, pixels = {"error": True}, b""
        if hasattr(signal, "alarm"):
            signal.alarm(0)
        _send(answers, head, pixels)


def _decoded(request: dict[str, Any], frame: bytes) -> tuple[dict[str, Any], bytes]:
    array, properties = get_decoder(request["syntax"]).as_array(
        encapsulate([frame]),
        index=0,
        raw=True,
        decoding_plugin=request["plugin"],
        **request["options"],
    )
    photometric = str(properties["photometric_interpretation"])
    head = {"dtype": array.dtype.str, "shape": array.shape, "photometric": photometric}
    return head, array.tobytes()


def _send(stream: BinaryIO, head: dict[str, Any], pixels: bytes) -> None:
    text = json.dumps(head).encode()
    stream.write(LENGTHS.pack(len(text), len(pixels)) + text)
    stream.write(pixels)
    stream.flush()


if __name__ == "__main__":
    main()
