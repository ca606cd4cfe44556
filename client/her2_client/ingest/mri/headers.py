"""The headers of MR files, read fast and without pixels -> one ``Slice`` a file or frame.

A site has tens of thousands of slices. Of each file the elements that place a slice are read, as
bytes, once; where that fails or finds nothing the library reads the whole header instead.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.filereader import data_element_generator, read_preamble
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from her2_client.ingest import dicom
from her2_client.ingest.dicom import Moment, moment, moment_of, number
from her2_client.ingest.mri.kinds import is_motion_corrected
from her2_common.errors import ImageError

Array = npt.NDArray[Any]

GEOMETRY: Final = {
    "Rows": 1,
    "Columns": 1,
    "PixelSpacing": 2,
    "ImageOrientationPatient": 6,
    "ImagePositionPatient": 3,
}
"""What places a slice (PS3.3 C.7.6.2), and how many values each has."""
PHASE_KEYS: Final = (
    "TemporalPositionIdentifier",
    "TriggerTime",
    "AcquisitionTime",
    "AcquisitionDateTime",
    "ContentTime",
    "AcquisitionNumber",
)
"""What tells phases apart, the most trusted first; an enhanced file has its own names for them."""
WITHIN_SERIES: Final = ("TriggerTime", "AcquisitionNumber")
"""Keys that count from the start of a series and so do not order several."""
DATES: Final = {"AcquisitionTime": "AcquisitionDate", "ContentTime": "ContentDate"}
TIMED: Final = (*DATES, "AcquisitionDateTime")
"""Keys that are times of day."""
PROTOCOL: Final = ("RepetitionTime", "EchoTime", "FlipAngle")
"""What all phases of one dynamic series share."""
ENHANCED_CLASSES: Final = (
    "1.2.840.10008.5.1.4.1.1.4.1",  # Enhanced MR
    "1.2.840.10008.5.1.4.1.1.4.4",  # Legacy Converted Enhanced MR
)
SPACING_MM: Final = (0.01, 100.0)
"""No voxel of a breast examination is smaller or larger: beyond it a header is damaged."""
FARTHEST_MM: Final = 1e5
_KEYWORDS: Final = {
    int(Tag(keyword)): keyword
    for keyword in (
        "SOPClassUID",
        "SOPInstanceUID",
        "Modality",
        "PatientID",
        "StudyInstanceUID",
        "StudyDate",
        "ImageType",
        "Manufacturer",
        "SeriesInstanceUID",
        "SeriesNumber",
        "SeriesDescription",
        "NumberOfFrames",
        "BurnedInAnnotation",
        "ScanningSequence",
        "SequenceName",
        "DiffusionBValue",
        *GEOMETRY,
        *PHASE_KEYS,
        *DATES.values(),
        *PROTOCOL,
    )
}
_LAST: Final = max(_KEYWORDS)
_TAGS: Final[list[BaseTag | int]] = list(_KEYWORDS)
_TRANSFER_SYNTAX: Final = 0x00020010
_BINARY: Final = ("Rows", "Columns", "TemporalPositionIdentifier")
"""Kept as unsigned 16-bit integers where the file says so (VR US)."""

Header = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Slice:
    """What a header says of one file, or of one ``frame`` of an enhanced one.

    ``spacing`` mm as (row, column), ``directions`` six cosines, ``position`` mm, all LPS;
    ``when[i]`` orders phases by ``PHASE_KEYS[i]``; ``study`` (StudyInstanceUID, StudyDate) is only
    compared; ``b_value`` s/mm2; ``moved``: made by correcting motion; ``rescale`` of a frame
    (slope, intercept), ``scale`` its ScaleSlope (scaling.py).
    """

    path: Path
    series: str
    size: tuple[int, int]
    spacing: tuple[float, float]
    directions: tuple[float, ...]
    position: tuple[float, ...]
    when: tuple[Moment | None, ...]
    protocol: tuple[float | None, ...] = (None,) * len(PROTOCOL)
    description: str = ""
    original: bool = True
    burned_in: bool = False
    manufacturer: str = ""
    study: tuple[str, str] = ("", "")
    b_value: float = 0.0
    moved: bool = False
    frame: int | None = None
    rescale: tuple[float, float] | None = None
    scale: float | None = None

    @property
    def normal(self) -> Array:
        """(3,) unit vector along which slices of one stack follow one another."""
        return np.cross(self.directions[:3], self.directions[3:])

    @property
    def echo_time(self) -> float | None:
        """In ms."""
        return self.protocol[PROTOCOL.index("EchoTime")]


def read_header(path: Path) -> Header:
    """The elements that place a slice, as text; those that are blank are left out.

    Raises:
        ImageError: not DICOM, truncated, damaged.
    """
    with dicom.reading():
        try:
            header = _quick(path)
        except Exception:  # odd files are the library's business
            header = {}
        if "Rows" in header and "Modality" in header:
            return header
        return _texts(dicom.header(path).values())


def _quick(path: Path) -> dict[str, tuple[str, ...]]:
    with path.open("rb") as stream:
        read_preamble(stream, force=False)
        syntax = ""
        meta = data_element_generator(
            stream, False, True, stop_when=lambda tag, _vr, _length: tag >> 16 != 2
        )
        for element in meta:
            if element.tag == _TRANSFER_SYNTAX and isinstance(element.value, bytes):
                syntax = element.value.decode("ascii").strip(" \0")
        uid = UID(syntax)
        if uid == DeflatedExplicitVRLittleEndian:
            return {}
        elements = data_element_generator(
            stream,
            uid.is_implicit_VR,
            uid.is_little_endian,
            stop_when=lambda tag, _vr, _length: tag > _LAST,
            specific_tags=_TAGS,
        )
        return _texts(elements)


def _texts(elements: Iterable[RawDataElement | DataElement]) -> dict[str, tuple[str, ...]]:
    plain: dict[str, tuple[str, ...]] = {}
    for element in elements:
        keyword = _KEYWORDS.get(element.tag)
        if keyword is None or not element.value:
            continue
        parts = _parts(keyword, element)
        if any(parts):
            plain[keyword] = parts
    return plain


def _parts(keyword: str, element: RawDataElement | DataElement) -> tuple[str, ...]:
    if not isinstance(element, RawDataElement):  # converted while it was read
        value = element.value if element.VM > 1 else [element.value]
        return tuple(str(part).strip(" \0") for part in value)
    content = element.value or b""
    if element.VR == "FD" or (keyword == "DiffusionBValue" and element.VR is None):
        order = "<" if element.is_little_endian else ">"
        return tuple(str(value) for (value,) in struct.iter_unpack(f"{order}d", content))
    if keyword in _BINARY and (element.VR == "US" or keyword in ("Rows", "Columns")):
        return (str(int.from_bytes(content, "little" if element.is_little_endian else "big")),)
    return tuple(part.strip(" \0") for part in _decoded(content).split("\\"))


def _decoded(content: bytes) -> str:
    """Text of any SpecificCharacterSet, as far as words of western languages need it."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def slice_of(path: Path, header: Header) -> Slice:
    """The slice that ``header`` describes.

    Raises:
        ImageError: it does not say where the slice lies (reason "no geometry").
    """
    numbers = {}
    for keyword, count in GEOMETRY.items():
        numbers[keyword] = _numbers(keyword, header.get(keyword, ()), count)
    spacing, directions = numbers["PixelSpacing"], numbers["ImageOrientationPatient"]
    position = numbers["ImagePositionPatient"]
    check_geometry(spacing, directions, position)
    return Slice(
        path=path,
        series=series_of(path, header),
        size=(int(numbers["Rows"][0]), int(numbers["Columns"][0])),
        spacing=(spacing[0], spacing[1]),
        directions=directions,
        position=position,
        when=tuple(_when(header, key) for key in PHASE_KEYS),
        protocol=tuple(number(header.get(key, ("",))[0]) for key in PROTOCOL),
        description=" ".join(header.get("SeriesDescription", ())),
        original=is_original(header.get("ImageType", ())),
        burned_in=header.get("BurnedInAnnotation", ("",))[0].upper() == "YES",
        manufacturer=" ".join(header.get("Manufacturer", ())),
        study=(" ".join(header.get("StudyInstanceUID", ())), "".join(header.get("StudyDate", ()))),
        b_value=number(header.get("DiffusionBValue", ("",))[0]) or 0.0,
        moved=is_motion_corrected(header.get("ImageType", ()), header.get("SeriesDescription", ())),
    )


def series_of(path: Path, header: Header) -> str:
    """The name of the series: its UID and number, since there are archives that give all series
    one UID; the folder where it has no UID."""
    name = " ".join(header.get("SeriesInstanceUID", ()))
    number = " ".join(header.get("SeriesNumber", ()))
    return f"{str(path.parent) if dicom.is_dummy(name) else name} {number}"


def is_original(image_type: tuple[str, ...]) -> bool:
    """Whether ImageType does not call the pixels derived (PS3.3 C.7.6.1.1.2)."""
    return not image_type or image_type[0].upper() != "DERIVED"


def check_geometry(
    spacing: tuple[float, ...], directions: tuple[float, ...], position: tuple[float, ...]
) -> None:
    """Raises ImageError (reason "no geometry") unless they can be meant; mm and cosines."""
    low, high = SPACING_MM
    if not all(low <= mm <= high for mm in spacing):
        raise ImageError(
            f"expected a pixel spacing of {low} to {high} mm, got another", reason="no geometry"
        )
    if max(abs(mm) for mm in position) > FARTHEST_MM:
        raise ImageError(
            f"expected a position within {FARTHEST_MM:.0f} mm, got another", reason="no geometry"
        )
    row, column = np.array(directions[:3]), np.array(directions[3:])
    lengths = np.linalg.norm(np.clip([row, column], -2, 2), axis=1)
    if np.abs(lengths - 1).max() > 0.01 or abs(float(row @ column)) > 0.01:
        raise ImageError(
            "expected two perpendicular unit vectors in ImageOrientationPatient, got others",
            reason="no geometry",
        )


def _numbers(keyword: str, parts: tuple[str, ...], count: int) -> tuple[float, ...]:
    values = tuple(value for part in parts if (value := number(part)) is not None)
    if len(parts) != count or len(values) != count:
        raise ImageError(
            f"expected {keyword} with {count} finite {'value' if count == 1 else 'values'}, "
            f"got {len(values)}",
            reason="no geometry",
        )
    return values


def _when(header: Header, key: str) -> Moment | None:
    text = header.get(key, ("",))[0]
    if key == "AcquisitionDateTime" or (key == "AcquisitionTime" and not text):
        return moment_of(header.get("AcquisitionDateTime", ("",))[0])
    if key in DATES:
        return moment(header.get(DATES[key], ("",))[0], text)
    value = number(text)
    return None if value is None else ("", value)
