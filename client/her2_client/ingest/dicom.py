"""Reading one DICOM file: every fault becomes an ImageError with a short, stable reason.

1. ``read`` or ``header`` takes the header alone: a folder of a thousand files costs no pixels.
2. ``pixels`` goes back to the file for one frame. Before a decoder runs, the size in the header
   and the size in the codestream are checked against each other and against ``MAX_SAMPLES``.

Messages say what was expected and what was found, never a path, a file name or a tag that could
name a patient.
"""

from __future__ import annotations

import datetime
import errno
import io
import logging
import math
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import as_pixel_options

from her2_client.ingest.decoders import decode, plugin_for
from her2_common.errors import ImageError

Array = npt.NDArray[Any]


_MODALITIES: Final = (
    "AR AU BI CR CT DOC DR DX ECG EPS ES GM HC HD IO IVUS KO LS MG MR NM OAM OCT OP OT PR PT PX "
    "REG RF RG RTDOSE RTIMAGE RTPLAN RTSTRUCT SC SEG SM SMR SR TG US VA XA XC"
)
"""PS3.3 C.7.3.1.1.1, and what archives hold."""
_VIEWS: Final = (
    "AP AT AX CC CCID CV EXAG FB ISO LL LLD LM LMO MCC ML MLID MLO MLOID NP PA RL RLD RM RMLO SIO "
    "TAN XCC XCCL XCCM"
)
"""PS3.16 CID 4014, as ViewPosition has them."""
CODES: Final = frozenset((*_MODALITIES.split(), *_VIEWS.split()))
"""Values that a message may show: a tag can hold anything, a name of four capitals, too."""
_DUMMIES: Final = (
    "|NONE|NULL|NAN|NIL|NA|N/A|U|UNKNOWN|UNKNOW|UNSPECIFIED|UNDEFINED|NOT AVAILABLE|NOT SPECIFIED"
    "|NOT APPLICABLE|ANON|ANONYM|ANONYMOUS|ANONYMOUS PATIENT|ANONYMIZED|ANONYMISED|ANONYMIZE"
    "|DEIDENTIFIED|DE-IDENTIFIED|REMOVED|REDACTED|DELETED|DUMMY|XXX|XXXX"
    "|UNBEKANNT|KEINE|ANONYMISIERT|INCONNU|AUCUN|ANONYME|ANONYMISE|DESCONOCIDO|NINGUNO|ANONIMO"
    "|ANONIMIZADO|SCONOSCIUTO|NESSUNO|ANONIMIZZATO|ONBEKEND|GEEN|ANONIEM|DESCONHECIDO"
)
DUMMIES: Final = frozenset(_DUMMIES.split("|"))
"""What modalities and de-identifying software write into a tag for which they have no value."""
FIRST_YEAR: Final = 1985
"""The first edition of the standard, ACR-NEMA 300."""
LAST_YEAR: Final = 2100
Moment = tuple[str, float]
"""A date, or "", and seconds or a number: a later one sorts later, also past midnight."""
MAX_SAMPLES: Final = 1 << 26
"""Samples of one frame, 64 Mi: twice the largest mammogram (a design value)."""
MAX_FILES: Final = 20_000
"""Files of one folder that are looked at (a design value)."""
MAX_FRAMES: Final = 1 << 14
"""Frames of one file; the longest cine loops have some thousands (a design value)."""
OF_THE_MACHINE: Final = {
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOSPC,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
"""Errors that say nothing of a file: an ingest ends with them and goes on later."""
TINGE: Final = 6
"""Of 255: how far lossy compression moves the samples of a grey pixel (a design value)."""
MOSTLY: Final = 0.9
"""Share of grey pixels from which they say how colours are stored (a design value)."""
COMPARED: Final = 1 << 18
"""Samples that are looked at for that."""
MAX_INFLATED: Final = 1 << 28
"""Bytes that a deflated file may become (a design value)."""

SIGNATURES: Final = {
    b"PK\x03\x04": "a zip file",
    b"\x1f\x8b": "gzip",
    b"Rar!": "a rar file",
    b"7z\xbc\xaf": "a 7z file",
    b"%PDF": "PDF",
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
    b"NRRD": "NRRD",
}
"""How files of other formats begin."""
_UNPACK: Final = "unpack it, and name the folder or file that comes out in the case table"
_CONVERT: Final = "export the image as DICOM"
FORMAT_HINTS: Final = {
    **dict.fromkeys(("a zip file", "gzip", "a rar file", "a 7z file"), _UNPACK),
    **dict.fromkeys(("PDF", "TIFF", "BMP", "NRRD"), _CONVERT),
    "an empty file": "copy the file again",
    "PNG": "name the picture's file itself, in a column of mammography or ultrasound",
    "JPEG": "name the picture's file itself, in a column of mammography or ultrasound",
    "NIfTI": "name the files themselves in the column mri: one 4-D file, or one 3-D file a phase, "
    "';' between them, the one before contrast first",
}
"""The way out, by format."""
FIRST_GROUPS: Final = (0x0002, 0x0008)
"""Groups of the first element of a file without preamble: file meta information, or identity."""
_PREAMBLE: Final = 128
_NIFTI_AT: Final = 344
"""Where NIfTI-1 has its magic."""
ENCAPSULATED_PDF: Final = "1.2.840.10008.5.1.4.1.1.104.1"
SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"
"""The SOP class, and with a further number its multi-frame kinds."""

COMPUTED: Final = "1.2.840.10008.5.1.4.1.1.1"
"""Computed Radiography, the class of imaging plates; it has no PresentationIntentType."""
DIGITAL: Final = ("1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1.1")
"""Digital X-Ray, for presentation and for processing."""
BREAST: Final = {"BREAST", "MAMMA", "BRUST", "SEIN", "MAMA", "MAMMELLA", "SENO", "BORST"}
"""In BodyPartExamined: the standard's word, and what plate readers are set up with."""
BREAST_CODES: Final = {"76752008", "T-04000", "80248007", "T-04030", "73056007", "T-04020"}
"""Breast, left and right breast (CID 4013), SNOMED CT and SNOMED RT."""
MAMMOGRAPHIC_VIEWS: Final = {f"{side}{view}" for side in ("", "L", "R") for view in ("CC", "MLO")}

_IMAGE_KINDS: Final = "1 1.1 1.2 1.2.1 4 4.1 4.3 4.4 6.1 6.2 3.1 7 7.1 7.2 7.3 7.4"
_IMAGE_STORAGE: Final = {f"1.2.840.10008.5.1.4.1.1.{kind}" for kind in _IMAGE_KINDS.split()}
"""SOP classes of X-ray, mammography, MR, ultrasound and secondary captures (PS3.4 B.5)."""
_PIXEL_DATA: Final = 0x7FE00010
_LARGE_READ: Final = 1 << 20
_META_BYTES: Final = 1 << 12
"""The file meta information, which names the transfer syntax, ends well before (PS3.10, 7.1)."""
_log = logging.getLogger("pydicom")


@contextmanager
def reading(what: str = "DICOM") -> Iterator[None]:
    """Turn whatever a damaged file provokes inside the DICOM library into an ImageError.

    Its warnings and log lines quote tags, so none of them surfaces.
    """
    silent, _log.disabled = _log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd but readable headers are the rule
            yield
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError("expected a file, got none of that name", reason="missing file") from None
    except InvalidDicomError:
        raise not_dicom("another format") from None
    except IsADirectoryError:
        raise ImageError("expected a file, got a folder", reason="not a file") from None
    except PermissionError:
        raise ImageError("the file may not be read", reason="no permission") from None
    except EOFError:
        raise ImageError(f"truncated {what}: the file ends early", reason="truncated") from None
    except MemoryError:
        raise  # not the file's fault: it would be remembered as if it were
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            if error.errno in OF_THE_MACHINE:
                raise
            told = os.strerror(error.errno)
            raise ImageError(
                f"expected a readable file, got the error {told!r}", reason="not a file"
            ) from None
        # Parsers fail in many ways on bad bytes; one bad image must not stop the others.
        raise _damaged(what) from None
    finally:
        _log.disabled = silent


def not_dicom(got: str) -> ImageError:
    """The error for a file of the format ``got``, with the way out of those that are met."""
    return ImageError(f"expected DICOM, got {got}", reason="not DICOM", hint=FORMAT_HINTS.get(got))


def format_of(path: Path) -> str:
    """The format of a file that is not DICOM, by its first bytes."""
    with path.open("rb") as stream:
        start = stream.read(_NIFTI_AT + 4)
    if start[_NIFTI_AT:] in (b"n+1\0", b"ni1\0"):
        return "NIfTI"
    for signature, name in SIGNATURES.items():
        if start.startswith(signature):
            return "NIfTI" if name == "gzip" and path.name.lower().endswith(".nii.gz") else name
    return "another format" if start else "an empty file"


def _damaged(what: str) -> ImageError:
    return ImageError(
        f"damaged {what}: it cannot be decoded",
        reason="damaged",
        hint="export or copy the file again",
    )


# --- headers ------------------------------------------------------------------------------------


def header(path: Path) -> Dataset:
    """The data set at ``path`` without its pixels; ``pixels`` reads those from the file.

    Raises:
        ImageError: missing file, not DICOM, truncated, damaged.
    """
    with reading():
        if path.exists() and not path.is_dir() and not path.is_file():
            # a pipe or a device would keep us waiting
            raise ImageError("expected a file, got something else", reason="not a file")
        try:
            with opened(path) as stream:
                return _header(stream)
        except InvalidDicomError:
            raise not_dicom(format_of(path)) from None
    raise AssertionError  # pragma: no cover - `reading` never swallows


class _Bounded(io.BufferedReader):
    """A file of which no more is asked for than it holds, whatever length an element states."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LARGE_READ:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def opened(path: Path) -> BinaryIO:
    """The file at ``path`` for reading: a stated length of gigabytes takes no memory."""
    return _Bounded(io.FileIO(path))


def whole(path: Path) -> Dataset:
    """The data set at ``path`` with its pixels.

    Raises:
        ImageError: as ``header``.
    """
    with reading(), opened(path) as stream:
        return _read(stream)
    raise AssertionError  # pragma: no cover - `reading` never swallows


def _header(stream: BinaryIO) -> Dataset:
    return _read(stream, stop_before_pixels=True)


def _read(stream: BinaryIO, **options: Any) -> Dataset:
    """The data set in ``stream``; one that older software wrote may lack the preamble of PS3.10."""
    _check_inflated(stream)
    stream.seek(0)
    start = stream.read(_PREAMBLE + 4)
    stream.seek(0)
    if start[_PREAMBLE:] == b"DICM":
        return pydicom.dcmread(stream, **options)
    if int.from_bytes(start[:2], "little") not in FIRST_GROUPS:
        raise InvalidDicomError
    try:
        dataset = pydicom.dcmread(stream, force=True, **options)
    except EOFError:
        raise
    except Exception:  # bytes that only begin as DICOM does
        raise InvalidDicomError from None
    if "SOPClassUID" not in dataset or not (dataset.get("Modality") or dataset.get("Rows")):
        raise InvalidDicomError
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        plain = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = plain if little else uid.ExplicitVRBigEndian
    return dataset


def _check_inflated(stream: BinaryIO) -> None:
    """Refuse a deflated file that would become larger than ``MAX_INFLATED``."""
    start = stream.read(_META_BYTES)
    if uid.DeflatedExplicitVRLittleEndian.encode() not in start:
        return
    # The group length (0002,0000) stands first and says where the deflated part starts (PS3.10).
    stream.seek(144 + int.from_bytes(start[140:144], "little"))
    inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while block := stream.read(1 << 16):
        while block and not inflater.eof:
            total += len(inflater.decompress(block, 1 << 20))
            block = inflater.unconsumed_tail
            if total > MAX_INFLATED:
                raise ImageError(
                    f"expected a deflated file of at most {MAX_INFLATED} bytes, got more",
                    reason="too large",
                )


def read(path: Path, modality: str) -> tuple[Dataset, bool]:
    """An image of ``modality`` without its pixels, and whether it is a secondary capture.

    A capture may also be filed as OT, SC or nothing, a mammogram from an imaging plate as CR or DX.

    Raises:
        ImageError: missing file, not DICOM, truncated, damaged, not an image, wrong modality.
    """
    dataset = header(path)
    with reading():
        check_image(dataset)
        got = str(dataset.get("Modality", "") or "")
        captured = is_secondary_capture(dataset)
        filed_elsewhere = captured and got in ("OT", "SC", "")
        if not filed_elsewhere and not (modality == "MG" and is_plate_mammogram(dataset)):
            check_modality(got, modality)
    return dataset, captured


def is_plate_mammogram(dataset: Dataset) -> bool:
    """Whether an image of computed or digital radiography shows a breast, by its tags."""
    if str(dataset.get("Modality", "") or "") not in ("CR", "DX", ""):
        return False
    if str(dataset.get("SOPClassUID", "")) not in (COMPUTED, *DIGITAL):
        return False
    region = dataset.get("AnatomicRegionSequence", None) or []
    return (
        said(dataset, "BodyPartExamined").upper() in BREAST
        or bool({str(code.get("CodeValue", "")) for code in region} & BREAST_CODES)
        or said(dataset, "ViewPosition").upper() in MAMMOGRAPHIC_VIEWS
    )


def check_image(dataset: Dataset) -> None:
    """Raises ImageError unless the data set says how many pixels it has.

    An encapsulated PDF is quarantined: it is somebody's report.
    """
    if dataset.get("SOPClassUID") == ENCAPSULATED_PDF:
        raise ImageError(
            "expected an image, got an encapsulated PDF",
            reason="encapsulated PDF",
            disposition="quarantined",
            hint="take it out of the case table: it has no picture that could be approved",
        )
    if not dataset.get("Rows") or not dataset.get("Columns"):
        if str(dataset.get("SOPClassUID", "")) in _IMAGE_STORAGE:
            raise ImageError("truncated DICOM: the header ends early", reason="truncated")
        raise ImageError("expected an image, got another DICOM object", reason="not an image")


def check_modality(got: str, modality: str) -> None:
    """Raises ImageError (reason "wrong modality") unless ``got`` is ``modality``."""
    if got != modality:
        raise ImageError(f"expected modality {modality}, got {code(got)}", reason="wrong modality")


def is_secondary_capture(dataset: Dataset) -> bool:
    """Whether it is a screen shot or a scan: whatever stood on the screen is in its pixels."""
    name = str(dataset.get("SOPClassUID", "") or "")
    return name == SECONDARY_CAPTURE or name.startswith(SECONDARY_CAPTURE + ".")


def code(value: object) -> str:
    """A tag's value for a message: shown only if it is one of ``CODES``, such as MLO.

    >>> code("MLO"), code("ANNA"), code(None)
    ('MLO', 'another', 'none')
    """
    text = str(value or "")
    if not text:
        return "none"
    return text if text in CODES else "another"


def said(dataset: Dataset, keyword: str) -> str:
    """The text of ``keyword``; "" where it is blank or says that nothing is known.

    >>> example = Dataset()
    >>> example.ViewPosition, example.PatientID = "UNKNOWN", "0012"
    >>> said(example, "ViewPosition"), said(example, "PatientID"), said(example, "BodyPartExamined")
    ('', '0012', '')
    """
    text = str(dataset.get(keyword, "") or "").strip(" \0")
    return "" if is_dummy(text) else text


def is_dummy(text: str) -> bool:
    """Whether ``text`` stands where nothing is known, or where something was taken out."""
    return text.strip(" \0<>[]().-_*#?").upper() in DUMMIES or not text.strip("0.")


def number(text: str) -> float | None:
    """The finite number that ``text`` says, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def moment(date: str, time: str) -> Moment | None:
    """A date YYYYMMDD, which may be blank, and a time HHMMSS.FFFFFF, or None if it is none.

    >>> moment("20200102", "1000"), moment("", "none")
    (('20200102', 36000.0), None)
    """
    clock = time.replace(":", "")
    seconds = [number(clock[0:2]), number(clock[2:4] or "0"), number(clock[4:] or "0")]
    if seconds[0] is None or seconds[1] is None or seconds[2] is None:
        return None
    return date.replace(".", ""), seconds[0] * 3600 + seconds[1] * 60 + seconds[2]


def moment_of(text: str) -> Moment | None:
    """Of a date and time YYYYMMDDHHMMSS.FFFFFF&ZZXX (PS3.5 6.2, DT); its zone is left out.

    >>> moment_of("20200102100000.5+0100"), moment_of("20200102")
    (('20200102', 36000.5), None)
    """
    text = text.split("+")[0].split("-")[0]
    return moment(text[:8], text[8:]) if len(text) > 8 else None


def real_date(text: str) -> str:
    """YYYYMMDD, or "" where that is no day on which a picture was taken.

    De-identifying software writes 19000101 or 19700101, or leaves the year alone and writes
    January 1st. Nobody is examined on that day, and no picture is older than ``FIRST_YEAR``.

    >>> real_date("2020.01.02"), real_date("19000101"), real_date("20150101"), real_date("20151301")
    ('20200102', '', '', '')
    """
    digits = text.strip().replace(".", "").replace("-", "")
    try:
        day = datetime.date.fromisoformat(digits) if len(digits) == 8 else None
    except ValueError:
        day = None
    if day is None or not FIRST_YEAR <= day.year < LAST_YEAR or (day.month, day.day) == (1, 1):
        return ""
    return digits


def order_key(dataset: Dataset, *keywords: str) -> tuple[str, ...]:
    """What sorts images by ``keywords``, such as AcquisitionTime, whole numbers as numbers.

    Dates, times and UIDs stay in the memory of this process.
    """
    words = (str(dataset.get(keyword, "") or "").strip() for keyword in keywords)
    return tuple(word.zfill(12) if word.isdecimal() else word for word in words)


# --- pixels -------------------------------------------------------------------------------------


def check_rescale(slope: Any, intercept: Any) -> tuple[float, float]:
    """Slope and intercept as numbers.

    Raises:
        ImageError: they are not finite, or the slope is 0 (reason "rescale").
    """
    try:
        found = float(slope), float(intercept)
    except (TypeError, ValueError):
        found = math.nan, math.nan
    if not all(math.isfinite(value) for value in found) or found[0] == 0:
        raise ImageError(
            "expected a finite RescaleSlope other than 0 and a finite RescaleIntercept, got others",
            reason="rescale",
            hint="export the picture again",
        )
    return found


def frames(dataset: Dataset) -> int:
    """The number of frames, 1 if the header does not say.

    Raises:
        ImageError: none, or more than ``MAX_FRAMES`` (reason "frame count").
    """
    with reading():
        count = int(dataset.get("NumberOfFrames", 1) or 1)
    if not 1 <= count <= MAX_FRAMES:
        raise ImageError(
            f"expected 1 to {MAX_FRAMES} frames, got another number", reason="frame count"
        )
    return count


def pixels(dataset: Dataset, frame: int = 0) -> Array:
    """One frame: (rows, columns) or, in colour, (rows, columns, 3) as RGB.

    The pixels come from the data set, or from its file if it is a header alone. Palette colours
    stay indices.

    Raises:
        ImageError: no pixels, truncated, damaged, too large, no such frame, or a compression
            without a decoder.
    """
    count = frames(dataset)
    if not 0 <= frame < count:
        raise ImageError(f"expected frame 0 to {count - 1}, got {frame}", reason="frame outside")
    with reading("pixel data"):
        _check_size(dataset)
        if _compressed(dataset.file_meta.TransferSyntaxUID):
            plugin_for(dataset.file_meta.TransferSyntaxUID, dataset)
        if "PixelData" in dataset:
            return _decode(dataset, dataset, frame, len(dataset.PixelData))
        with opened(Path(str(dataset.filename))) as stream:
            if dataset.file_meta.TransferSyntaxUID == uid.DeflatedExplicitVRLittleEndian:
                return pixels(_read(stream), frame)  # its pixels cannot be sought out
            _header(stream)
            length, options = _start_of_pixels(stream, dataset)
            return _decode(dataset, stream, frame, length, **options)
    raise AssertionError  # pragma: no cover - `reading` never swallows


def _check_size(dataset: Dataset) -> None:
    samples = int(dataset.Rows) * int(dataset.Columns) * int(dataset.SamplesPerPixel)
    if not 0 < samples <= MAX_SAMPLES:
        raise ImageError(
            f"expected 1 to {MAX_SAMPLES} samples in a frame, got {samples}", reason="too large"
        )


def _start_of_pixels(stream: BinaryIO, dataset: Dataset) -> tuple[int, dict[str, Any]]:
    """Step over the element's head (PS3.5, 7.1): the bytes that follow, and the decoder's options.

    Whether the head has a VR is seen from itself; now and then the transfer syntax is wrong.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    order: Literal["little", "big"] = "little" if syntax.is_little_endian else "big"
    head = stream.read(8)
    if not head:
        raise ImageError("expected pixel data, got a header alone", reason="truncated")
    tag = int.from_bytes(head[0:2], order) << 16 | int.from_bytes(head[2:4], order)
    if tag != _PIXEL_DATA:
        raise ImageError("expected pixels in whole numbers, got others", reason="float pixels")
    options: dict[str, Any] = {"transfer_syntax_uid": syntax, "pixel_keyword": "PixelData"}
    length = head[4:8]
    if head[4:6] in (b"OB", b"OW"):
        options["pixel_vr"] = head[4:6].decode("ascii")
        length = stream.read(4)
    here = stream.tell()
    left = stream.seek(0, 2) - here
    stream.seek(here)
    return min(int.from_bytes(length, order), left), options


def _decode(
    dataset: Dataset, source: Dataset | BinaryIO, frame: int, length: int, **options: Any
) -> Array:
    syntax = dataset.file_meta.TransferSyntaxUID
    if _compressed(syntax):
        stored, photometric = decode(_codestream(dataset, source, frame), dataset, syntax)
        stored = _of_bits_stored(stored, dataset)
    else:
        if length < expected_bytes(dataset):
            raise ImageError(
                f"truncated DICOM: expected {expected_bytes(dataset)} bytes of pixels, "
                f"got {length}",
                reason="truncated",
            )
        if source is not dataset:
            options = as_pixel_options(dataset, **options)
        stored, properties = get_decoder(syntax).as_array(source, index=frame, raw=True, **options)
        photometric = str(properties["photometric_interpretation"])
    if stored.ndim == 3 and _is_ybr(stored, labelled=photometric.startswith("YBR_FULL")):
        return _rgb(stored)
    native: Array = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    return native


def _of_bits_stored(stored: Array, dataset: Dataset) -> Array:
    """Without what a codestream holds above BitsStored, as in uncompressed pixels."""
    unused = stored.dtype.itemsize * 8 - int(dataset.BitsStored)
    if stored.dtype.kind not in "iu" or unused <= 0:
        return stored
    cleared: Array = (stored << unused) >> unused  # in signed numbers the sign is filled in
    return cleared


def _is_ybr(stored: Array, *, labelled: bool) -> bool:
    """Whether three samples of 8 bits are luma and chroma; ``labelled``: what the header says.

    The label is often wrong. A picture that is grey all but everywhere has equal samples in RGB and
    both chroma samples at 128 in YBR; where neither or both hold, the label counts.
    """
    if stored.dtype != np.uint8:
        return labelled
    step = max(1, int(np.ceil(np.sqrt(stored.size / COMPARED))))
    first, second, third = (stored[::step, ::step, k].astype(np.int16) for k in range(3))
    equal = ((abs(first - second) <= TINGE) & (abs(first - third) <= TINGE)).mean() >= MOSTLY
    neutral = ((abs(second - 128) <= TINGE) & (abs(third - 128) <= TINGE)).mean() >= MOSTLY
    return labelled if equal == neutral else bool(neutral)


def _compressed(syntax: uid.UID) -> bool:
    try:
        return syntax.is_compressed
    except ValueError:  # not in the standard, or a make's own
        return True


def _codestream(dataset: Dataset, source: Dataset | BinaryIO, frame: int) -> bytes:
    """The bytes of one compressed frame."""
    encapsulated: Any = source.PixelData if isinstance(source, Dataset) else source
    offsets = None
    if "ExtendedOffsetTable" in dataset:
        offsets = dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths
    codestream: bytes = get_frame(
        encapsulated, frame, number_of_frames=frames(dataset), extended_offsets=offsets
    )
    return codestream


def _rgb(ybr: Array) -> Array:
    """YBR_FULL -> RGB in 8 bits (PS3.3 C.7.6.3.1.2, solved for RGB; T.871, section 7).

    One sum a colour and no matrix product: its bits could depend on the number of threads.
    """
    y, b, r = (ybr[..., k].astype(np.float32) for k in range(3))
    b -= 128
    r -= 128
    colours = (
        y + np.float32(1.402) * r,
        y - np.float32(0.114 * 1.772 / 0.587) * b - np.float32(0.299 * 1.402 / 0.587) * r,
        y + np.float32(1.772) * b,
    )
    rounded = np.stack([np.floor(colour + np.float32(0.5)) for colour in colours], axis=-1)
    rgb: Array = np.clip(rounded, 0, 255).astype(np.uint8)
    return rgb


def expected_bytes(dataset: Dataset) -> int:
    """How many bytes of uncompressed pixel data the header promises."""
    samples = int(dataset.SamplesPerPixel)
    count = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("NumberOfFrames", 1) or 1)
    if dataset.PhotometricInterpretation == "YBR_FULL_422":
        samples = 2  # two pixels share their colour (PS3.3 C.7.6.3.1.2)
    return count * samples * int(dataset.BitsAllocated) // 8
