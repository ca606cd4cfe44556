"""Compressed frames -> pixels, each transfer syntax by one decoder.

1. The codestream's own size must be that of the header (codestream.py).
2. Pillow, the decoder of JPEG, runs here. The others are written in C, C++ or Rust; on damaged
   bytes they have been seen to abort the process (GDCM) and to run for ever (CharLS). They run
   in a process of their own, which has a bare environment, can open no file once it has started
   (decoder_process.py), and is killed after ``DEADLINE`` seconds and replaced.

One decoder a syntax, so that the bits do not depend on what else is installed.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import as_pixel_options

from her2_client.ingest.codestream import stated_size
from her2_client.ingest.decoder_process import LENGTHS
from her2_common.errors import ImageError

Array = npt.NDArray[Any]

DECODERS: Final = {
    uid.JPEGBaseline8Bit: "pillow",
    uid.JPEGExtended12Bit: "pillow",
    uid.JPEGLossless: "gdcm",
    uid.JPEGLosslessSV1: "gdcm",
    uid.JPEGLSLossless: "pyjpegls",
    uid.JPEGLSNearLossless: "pyjpegls",
    uid.JPEG2000Lossless: "pylibjpeg",
    uid.JPEG2000: "pylibjpeg",
    uid.HTJ2KLossless: "pylibjpeg",
    uid.HTJ2KLosslessRPCL: "pylibjpeg",
    uid.HTJ2K: "pylibjpeg",
    uid.RLELossless: "pylibjpeg",
}
"""The decoder of each compressed transfer syntax. No one decodes JPEG extended of 12 bits."""
DEADLINE = 30.0
"""Seconds for one frame; the largest mammogram takes about two (a design value)."""
_PROGRAM: Final = Path(__file__).with_name("decoder_process.py")


def plugin_for(syntax: uid.UID, header: Dataset) -> str:
    """The decoder for ``syntax``.

    Raises:
        ImageError: there is none (reason "no decoder").
    """
    plugin = DECODERS.get(syntax)
    twelve = syntax == uid.JPEGExtended12Bit and int(header.BitsStored) != 8
    if plugin is None or twelve or plugin not in get_decoder(syntax).available_plugins:
        name = syntax.name if syntax.name != syntax else "one that is not in the standard"
        raise ImageError(
            f"expected a compression that can be decoded here, got {name}",
            reason="no decoder",
            hint="convert the images to uncompressed or losslessly compressed DICOM",
        )
    return plugin


def decode(frame: bytes, header: Dataset, syntax: uid.UID) -> tuple[Array, str]:
    """One frame, (rows, columns[, 3]), and the photometric interpretation that it has now.

    Raises:
        ImageError: no decoder, damaged, or the decoder did not end in time.
    """
    plugin = plugin_for(syntax, header)
    if syntax != uid.RLELossless:  # it states no size, its decoder goes by the header
        _check_size(frame, header)
    if plugin == "pyjpegls":
        _check_end(frame)
    options = as_pixel_options(header) | {"number_of_frames": 1}
    options.pop("extended_offsets", None)
    options["pixel_keyword"] = "PixelData"
    if plugin != "pillow":
        return _elsewhere.decode(frame, syntax, plugin, options)
    array, properties = get_decoder(syntax).as_array(
        encapsulate([frame]), index=0, raw=True, decoding_plugin=plugin, **options
    )
    return array, str(properties["photometric_interpretation"])


def _check_end(frame: bytes) -> None:
    """Refuse a JPEG-LS stream without its end marker: CharLS would look for it for seconds."""
    if not frame.rstrip(b"\0").endswith(b"\xff\xd9"):
        raise ImageError("truncated pixel data: the codestream does not end", reason="truncated")


def _check_size(frame: bytes, header: Dataset) -> None:
    found = stated_size(frame)
    if found is None:
        raise ImageError("damaged pixel data: the codestream has no size", reason="damaged")
    rows, columns = int(header.Rows), int(header.Columns)
    if found[:2] != (rows, columns) or found.samples > 4:
        raise ImageError(
            f"damaged pixel data: expected {rows} x {columns} pixels, got a codestream of "
            f"{found.rows} x {found.columns}",
            reason="damaged",
        )
    if found.bits > int(header.BitsAllocated):
        raise ImageError(
            f"damaged pixel data: expected at most {int(header.BitsAllocated)} bits, "
            f"got a codestream of {found.bits}",
            reason="damaged",
        )


class _Elsewhere:
    """The decoder's process: started when first needed, once a process that decodes."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0
        self.lock = threading.Lock()

    def decode(
        self, frame: bytes, syntax: uid.UID, plugin: str, options: dict[str, Any]
    ) -> tuple[Array, str]:
        """See ``decode``."""
        request = {"syntax": str(syntax), "plugin": plugin, "options": options}
        with self.lock:
            process = self._running()
            clock = threading.Timer(DEADLINE, process.kill)
            clock.start()
            started = time.monotonic()
            try:
                head, pixels = self._ask(process, json.dumps(request).encode(), frame)
            except (OSError, EOFError):
                self.stop()
                if time.monotonic() - started >= DEADLINE:
                    raise ImageError(
                        f"expected a frame within {DEADLINE:.0f} s, got none",
                        reason="decoder too slow",
                        hint="damaged pixels, or a machine with too much to do: it is tried again",
                    ) from None
                raise ImageError(
                    "damaged pixel data: the decoder broke off", reason="damaged"
                ) from None
            except BaseException:
                self.stop()  # half a message must not be taken for the answer to the next
                raise
            finally:
                clock.cancel()
        if "error" in head:
            raise ImageError(
                "damaged pixel data: it cannot be decoded",
                reason="damaged",
                hint="export or copy the file again",
            )
        array = np.frombuffer(pixels, np.dtype(head["dtype"])).reshape(head["shape"])
        return array, head["photometric"]

    def _running(self) -> subprocess.Popen[bytes]:
        mine = self.owner == os.getpid()  # a fork must not talk into its parent's pipes
        if self.process is None or not mine or self.process.poll() is not None:
            if mine:
                self.stop()
            self.owner = os.getpid()
            self.process = subprocess.Popen(  # noqa: S603 - our own program, no shell
                [sys.executable, "-P", str(_PROGRAM), *DECODERS],
                cwd="/" if os.name == "posix" else None,
                env=_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self.process

    @staticmethod
    def _ask(
        process: subprocess.Popen[bytes], request: bytes, frame: bytes
    ) -> tuple[dict[str, Any], bytes]:
        assert process.stdin is not None  # noqa: S101 - for the type checker
        assert process.stdout is not None  # noqa: S101
        process.stdin.write(LENGTHS.pack(len(request), len(frame)) + request)
        process.stdin.write(frame)
        process.stdin.flush()
        lengths = process.stdout.read(LENGTHS.size)
        if len(lengths) < LENGTHS.size:
            raise EOFError
        text, pixels = (process.stdout.read(length) for length in LENGTHS.unpack(lengths))
        return json.loads(text), pixels

    def stop(self) -> None:
        """End the process, if it is this one's."""
        process, self.process = self.process, None
        if process is None or self.owner != os.getpid():
            return
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    continue  # what was still to be written has nobody to read it
        process.wait()


def _environment() -> dict[str, str]:
    """What the decoder's process knows of this one: where the packages lie, and nothing else."""
    packages = os.pathsep.join(str(Path(path).resolve()) for path in sys.path if path)
    kept = {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}
    return {"PATH": os.defpath, "PYTHONPATH": packages, "OMP_NUM_THREADS": "1", **kept}


_elsewhere = _Elsewhere()
atexit.register(_elsewhere.stop)
