"""Reading one DICOM file: every fault becomes an ImageError with a short, stable reason.

Messages say what was expected and what was found, never a path, a file name or a tag that could
name a patient.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID

from her2_common.errors import ImageError

Array = npt.NDArray[Any]


CODE_LENGTH: Final = 4
"""The longest of the modality and view codes; whatever is longer may be anything."""


@contextmanager
def reading(what: str = "DICOM") -> Iterator[None]:
    """Turn whatever a damaged file provokes inside the DICOM library into an ImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd but readable headers are the rule
            yield
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError("expected a file, got none of that name", reason="missing file") from None
    except InvalidDicomError:
        raise ImageError("expected DICOM, got another format", reason="not DICOM") from None
    except IsADirectoryError:
        raise ImageError("expected a file, got a folder", reason="not a file") from None
    except PermissionError:
        raise ImageError("the file may not be read", reason="no permission") from None
    except EOFError:
        raise ImageError(f"truncated {what}: the file ends early", reason="truncated") from None
    except Exception as error:
        # Parsers fail in many ways on bad bytes; one bad image must not stop the others.
        raise ImageError(
            f"damaged {what}: it cannot be decoded ({type(error).__name__})", reason="damaged"
        ) from None


def read(path: Path, modality: str) -> Dataset:
    """The data set at ``path``, checked to be of ``modality`` (MG, US or MR).

    Raises:
        ImageError: missing file, not DICOM, truncated, damaged, wrong modality.
    """
    if path.exists() and not path.is_file():  # a pipe or a device would keep us waiting
        raise ImageError("expected a file, got something else", reason="not a file")
    with reading():
        dataset = pydicom.dcmread(path)
        check_modality(str(dataset.get("Modality", "")), modality)
    return dataset


def check_modality(got: str, modality: str) -> None:
    """Raises ImageError (reason "wrong modality") unless ``got`` is ``modality``."""
    if got != modality:
        raise ImageError(f"expected modality {modality}, got {code(got)}", reason="wrong modality")


def code(value: object) -> str:
    """A tag's value for a message: shown only where it looks like a DICOM code, such as MLO."""
    text = str(value or "")
    if not text:
        return "none"
    return text if len(text) <= CODE_LENGTH and text.isalpha() and text.isupper() else "another"


def pixels(dataset: Dataset) -> Array:
    """The first frame: (rows, columns) or, in colour, (rows, columns, 3) as RGB.

    Raises:
        ImageError: no pixels, truncated, damaged, or a compression without a decoder.
    """
    with reading("pixel data"):
        if "PixelData" not in dataset:
            raise ImageError("expected pixel data, got a header alone", reason="truncated")
        syntax = dataset.file_meta.TransferSyntaxUID
        if not syntax.is_compressed and len(dataset.PixelData) < expected_bytes(dataset):
            raise ImageError(
                f"truncated DICOM: expected {expected_bytes(dataset)} bytes of pixels, "
                f"got {len(dataset.PixelData)}",
                reason="truncated",
            )
        if syntax.is_compressed and not _has_decoder(syntax):
            name = syntax.name if syntax.name != syntax else "one that is not in the standard"
            raise ImageError(
                f"expected a compression that can be decoded here, got {name}",
                reason="no decoder",
                hint="convert the images to uncompressed DICOM, or install python-gdcm",
            )
        return np.asarray(pixel_array(dataset, index=0))
    raise AssertionError  # pragma: no cover - `reading` never swallows


def _has_decoder(syntax: UID) -> bool:
    try:
        return get_decoder(syntax).is_available
    except NotImplementedError:
        return False


def expected_bytes(dataset: Dataset) -> int:
    """How many bytes of uncompressed pixel data the header promises."""
    samples = int(dataset.SamplesPerPixel)
    count = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("NumberOfFrames", 1) or 1)
    if dataset.PhotometricInterpretation == "YBR_FULL_422":
        samples = 2  # two pixels share their colour (PS3.3 C.7.6.3.1.2)
    return count * samples * int(dataset.BitsAllocated) // 8
