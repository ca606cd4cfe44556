"""PNG and JPEG pictures: recognised by content, checked before they are decoded, made grey.

Nothing of a picture but its pixels is kept: text chunks, EXIF and colour profiles are read by
nobody. The orientation that EXIF states is applied.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from her2_client.ingest import dicom
from her2_common.errors import ImageError

Array = npt.NDArray[Any]

FORMATS: Final = ("PNG", "JPEG")
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8\xff"
_DICM_AT: Final = 128
"""A DICOM file may start with anything, even with another format's signature (PS3.10, 7.1)."""

GREY: Final = {"1", "L", "I", "I;16", "I;16B", "I;16L"}
"""Pillow's names of the modes with one grey sample a pixel, of 1, 8, 32 and 16 bits."""


def is_picture(path: Path) -> bool:
    """Whether the file is a PNG or a JPEG, by its first bytes, whatever its name.

    Raises:
        ImageError: there is no such file, or it may not be read.
    """
    with dicom.reading("picture"):
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            start = stream.read(_DICM_AT + 4)
        return start.startswith((_PNG, _JPEG)) and start[_DICM_AT:] != b"DICM"
    raise AssertionError  # pragma: no cover - `reading` never swallows


def read_picture(path: Path) -> Array:
    """The picture as a viewer shows it: (rows, columns) float32, or (rows, columns, 3) RGB.

    Raises:
        ImageError: damaged, truncated, too large, see-through, or in inks (CMYK).
    """
    with dicom.reading("picture"):
        try:
            with Image.open(path, formats=FORMATS) as image:
                _check_size(image)
                image.verify()  # checksums and structure; the picture must be opened again
            with Image.open(path, formats=FORMATS) as image:
                return _shown(ImageOps.exif_transpose(image))
        except Image.DecompressionBombError:
            raise ImageError(
                "expected a picture of usual size, got a very large one", reason="too large"
            ) from None
    raise AssertionError  # pragma: no cover - `reading` never swallows


def _check_size(image: Image.Image) -> None:
    samples = image.width * image.height * len(image.getbands())
    if samples > dicom.MAX_SAMPLES:
        raise ImageError(
            f"expected at most {dicom.MAX_SAMPLES} samples, got {samples}", reason="too large"
        )


def _shown(image: Image.Image) -> Array:
    see_through = "A" in image.getbands() or "transparency" in image.info
    if image.mode == "CMYK":
        raise ImageError("expected a picture in grey or RGB, got CMYK", reason="colour space")
    if image.mode in GREY and not see_through:
        return np.asarray(image).astype(np.float32)
    if see_through:
        rgba = np.asarray(image.convert("RGBA"))
        if rgba[..., 3].min() < 255:
            raise ImageError("expected an opaque picture, got a see-through one", reason="alpha")
        return rgba[..., :3]
    return np.asarray(image.convert("RGB"))
