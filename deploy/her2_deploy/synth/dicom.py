"""Genuine DICOM of a case: explicit VR little endian, valid file meta, UIDs from the seed.

One data set is built a picture, or a phase of a series; what differs from slice to slice has a
fixed width and is put into the encoded bytes, so that a cohort of thousands of slices is written
in seconds. All names, numbers and dates are invented; they stand where a hospital's would, so
that a leak can be seen.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from her2_deploy.synth import render
from her2_deploy.synth.centres import Centre, MammographyLook, MriLook, Size, UltrasoundLook
from her2_deploy.synth.cohort import SynthCase

Array = npt.NDArray[Any]
Look = TypeVar("Look", MammographyLook, UltrasoundLook, MriLook)

MG_CLASS: Final = "1.2.840.10008.5.1.4.1.1.1.2"  # Digital Mammography X-Ray, for presentation
US_CLASS: Final = "1.2.840.10008.5.1.4.1.1.6.1"  # Ultrasound Image
MR_CLASS: Final = "1.2.840.10008.5.1.4.1.1.4"  # MR Image
IMPLEMENTATION: Final = "1.2.826.0.1.3680043.8.498.1"
GREY_LEVELS: Final = 4096

VIEW_CODES: Final = {
    "CC": ("399162004", "cranio-caudal"),
    "MLO": ("399368009", "medio-lateral oblique"),
}
"""SNOMED CT, DICOM PS3.16 CID 4014."""
PATIENT_ORIENTATION: Final = {
    ("L", "CC"): ["A", "R"],
    ("L", "MLO"): ["A", "FR"],
    ("R", "CC"): ["P", "L"],
    ("R", "MLO"): ["P", "FL"],
}
"""Of the rows and of the columns (PS3.3 C.7.6.1.1.1)."""

FAMILY_NAMES: Final = ("DOE", "ROE", "POE", "MOE", "LOE", "NOE", "COE", "BOE")
GIVEN_NAMES: Final = ("JANE", "ANNA", "MARY", "RUTH", "VERA", "LENA", "CORA", "IDA")
FIRST_STUDY: Final = datetime.date(2015, 1, 5)
STUDY_DAYS: Final = 2900
FIRST_PHASE_SECONDS: Final = 10 * 3600 + 20 * 60
"""When the scan before contrast starts, after midnight."""

# Placeholders of one slice; each is as wide as what takes its place.
_UID_SLOT: Final = "1.2.826.0.1.3680043.8.498." + "9" * 38
_NUMBER_SLOT: Final = "-98765"
_POSITION_SLOT: Final = ("-1111.1111", "-2222.2222", "-3333.3333")
_LOCATION_SLOT: Final = "-4444.4444"


@dataclass(frozen=True)
class Identity:
    """An invented patient as the tags and the burned-in text name her."""

    name: str
    number: str
    born: datetime.date
    study_date: datetime.date
    accession: str


def identity(case: SynthCase) -> Identity:
    """The same for every picture of a case."""
    rng = case.rng("header")
    family, given = rng.choice(FAMILY_NAMES), rng.choice(GIVEN_NAMES)
    study = FIRST_STUDY + datetime.timedelta(days=int(rng.integers(STUDY_DAYS)))
    return Identity(
        name=f"{family}^{given}",
        number=f"MRN{rng.integers(10**6, 10**7)}",
        born=study - datetime.timedelta(days=round(case.age * 365.25)),
        study_date=study,
        accession=f"ACC{rng.integers(10**6, 10**7)}",
    )


def _uid(case: SynthCase, *parts: str | int) -> str:
    """64 characters, the same in every run of a seed."""
    source = "/".join(str(part) for part in (*case.entropy, case.centre, *parts))
    uid: str = generate_uid(entropy_srcs=["her2-map synthetic cohort", source])
    return uid


def _header(case: SynthCase, modality: str, sop_class: str) -> Dataset:
    who = identity(case)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = UID(sop_class)
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.ImplementationClassUID = UID(IMPLEMENTATION)
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPClassUID = sop_class
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = f"{who.study_date:%Y%m%d}"
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = "101500"
    ds.AccessionNumber = who.accession
    ds.Modality = modality
    ds.InstitutionName = f"Hospital of {case.centre}"
    ds.ReferringPhysicianName = "HOUSE^GRETA"
    ds.StudyDescription = "Breast imaging before therapy"
    ds.PatientName = who.name
    ds.PatientID = who.number
    ds.PatientBirthDate = f"{who.born:%Y%m%d}"
    ds.PatientSex = "F"
    ds.PatientAge = f"{int(case.age):03d}Y"
    ds.StudyInstanceUID = _uid(case, "study")
    ds.SeriesInstanceUID = _uid(case, modality)
    ds.StudyID = "1"
    ds.SeriesNumber = {"MG": "1", "US": "2", "MR": "3"}[modality]
    ds.InstanceNumber = "1"
    return ds


def _set_instance(ds: Dataset, uid: str) -> None:
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID(uid)


def _set_grey(ds: Dataset, stored: Array, photometric: str, bits: int) -> None:
    """``stored`` (rows, columns) as 16-bit words of which ``bits`` are used, or as bytes."""
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = photometric
    ds.Rows, ds.Columns = stored.shape[-2:]
    ds.BitsAllocated = 16 if bits > 8 else 8
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits - 1, 0
    ds.add_new("PixelData", "OW" if bits > 8 else "OB", _bytes(stored))


def _bytes(stored: Array) -> bytes:
    wide = stored.dtype.itemsize > 1
    raw = np.ascontiguousarray(stored.astype("<u2") if wide else stored).tobytes()
    return raw + b"\0" * (len(raw) % 2)


# --- mammography ---------------------------------------------------------------------------------


def write_mammogram(
    path: Path, case: SynthCase, centre: Centre, view: render.View, image: Array, size: Size
) -> None:
    """One view, ``image`` (rows, columns) in [0, 1], 12 bits in 16."""
    look = _required(centre.mg)
    ds = _header(case, "MG", MG_CLASS)
    _set_instance(ds, _uid(case, "MG", view))
    ds.InstanceNumber = "1" if view == "CC" else "2"
    ds.Manufacturer = look.manufacturer
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.BurnedInAnnotation = "NO"
    ds.ImageLaterality = case.laterality
    ds.ViewPosition = view
    ds.ViewCodeSequence = [_code(*VIEW_CODES[view])]
    ds.BreastImplantPresent = "NO"
    ds.BodyPartExamined = "BREAST"
    ds.PatientOrientation = PATIENT_ORIENTATION[case.laterality, view]
    ds.ImagerPixelSpacing = [f"{render.MG_MM[size]:.4f}"] * 2
    ds.PixelIntensityRelationship = "LOG"
    ds.PixelIntensityRelationshipSign = 1 if look.photometric == "MONOCHROME2" else -1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "US"
    stored = _mammogram_look(ds, look, image, case.rng("header"))
    _set_grey(ds, stored, look.photometric, bits=12)
    ds.save_as(path, enforce_file_format=True)


def _mammogram_look(
    ds: Dataset, look: MammographyLook, image: Array, rng: np.random.Generator
) -> Array:
    """Stored values of 12 bits, with the window or VOI LUT that shows them as meant."""
    noise = look.noise * rng.standard_normal(image.shape, dtype=np.float32) * (image > 0)
    shown = np.clip(look.gain * np.clip(image + noise, 0, 1) ** np.float32(look.gamma), 0, 1)
    if look.voi == "lut":
        # Values are stored by their square root; the table gives back what was meant.
        table = np.round((np.arange(GREY_LEVELS) / (GREY_LEVELS - 1)) ** 2 * (GREY_LEVELS - 1))
        item = Dataset()
        item.add_new("LUTDescriptor", "US", [GREY_LEVELS, 0, 12])
        item.LUTExplanation = "square"
        item.add_new("LUTData", "OW", table.astype("<u2").tobytes())
        ds.VOILUTSequence = [item]
        shown = np.sqrt(shown)
    else:
        ds.WindowCenter, ds.WindowWidth = "2048", "4096"
        ds.WindowCenterWidthExplanation = "as acquired"
        ds.VOILUTFunction = "LINEAR"
    if look.photometric == "MONOCHROME1":
        shown = 1 - shown
    stored: Array = np.round(shown * (GREY_LEVELS - 1)).astype(np.uint16)
    return stored


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item


# --- ultrasound ----------------------------------------------------------------------------------


def write_ultrasound(path: Path, case: SynthCase, centre: Centre, image: Array, size: Size) -> None:
    """One picture: ``image`` (rows, columns) in [0, 1] is its B-mode region, a name burned in."""
    look = _required(centre.us)
    who = identity(case)
    rng = case.rng("header")
    ds = _header(case, "US", US_CLASS)
    _set_instance(ds, _uid(case, "US", 1))
    ds.Manufacturer = look.manufacturer
    ds.ImageType = ["ORIGINAL", "PRIMARY", "BREAST", "0001"]
    ds.BurnedInAnnotation = "YES"
    ds.LossyImageCompression = "00"
    ds.SequenceOfUltrasoundRegions = [_region(size)]
    picture = _screen(image, who, size)
    if look.photometric == "RGB":
        _set_rgb(ds, picture)
    else:
        _set_grey(ds, picture, look.photometric, bits=8)
        if look.photometric == "PALETTE COLOR":
            _set_palette(ds)
    if rng.random() < look.compressed:
        ds.compress(
            {"rle": RLELossless, "jpegls": JPEGLSLossless}[look.syntax],
            generate_instance_uid=False,
        )
    ds.save_as(path, enforce_file_format=True)


def _screen(image: Array, who: Identity, size: Size) -> Array:
    """The whole picture as bytes: region, name above it, depth scale beside it."""
    rows, columns = render.US_SHAPE[size]
    x0, y0, x1, y1 = render.US_REGION[size]
    canvas = Image.new("L", (columns, rows), 0)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=0.095 * rows)
    draw.text((0.03 * columns, 0.005 * rows), f"{who.name}  {who.number[3:]}", fill=210, font=font)
    for mm in range(0, int((y1 - y0) * render.US_MM[size]), 10):
        y = y0 + mm / render.US_MM[size]
        draw.line((x1 + 0.02 * columns, y, x1 + 0.05 * columns, y), fill=170)
    picture = np.array(canvas)
    picture[y0:y1, x0:x1] = np.round(image * 255).astype(np.uint8)
    return picture


def _region(size: Size) -> Dataset:
    x0, y0, x1, y1 = render.US_REGION[size]
    item = Dataset()
    item.RegionSpatialFormat = 1  # 2-D
    item.RegionDataType = 1  # tissue
    item.RegionFlags = 0
    item.RegionLocationMinX0, item.RegionLocationMinY0 = x0, y0
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = x1 - 1, y1 - 1  # the last pixel inside
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3  # cm
    item.PhysicalDeltaX = item.PhysicalDeltaY = render.US_MM[size] / 10
    return item


def _set_rgb(ds: Dataset, picture: Array) -> None:
    ds.SamplesPerPixel, ds.PlanarConfiguration = 3, 0
    ds.PhotometricInterpretation = "RGB"
    ds.Rows, ds.Columns = picture.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.add_new("PixelData", "OB", _bytes(np.stack([picture] * 3, axis=-1)))


def _set_palette(ds: Dataset) -> None:
    """A warm grey scale: as dark or bright as the index, redder than blue."""
    ramp = np.arange(256) / 255
    for name, exponent in (("Red", 0.90), ("Green", 1.00), ("Blue", 1.15)):
        table = np.round(ramp**exponent * 65535).astype("<u2")
        prefix = f"{name}PaletteColorLookupTable"
        ds.add_new(f"{prefix}Descriptor", "US", [256, 0, 16])
        ds.add_new(f"{prefix}Data", "OW", table.tobytes())


# --- DCE-MRI -------------------------------------------------------------------------------------


def write_dce_mri(
    folder: Path,
    case: SynthCase,
    centre: Centre,
    phases: list[Array],
    where: render.Geometry,
) -> None:
    """A folder of single-slice files whose names say nothing about slice or phase.

    ``phases`` are (slices, rows, columns), in units of the signal of bright tissue.
    """
    look = _required(centre.mri)
    rng = case.rng("header")
    folder.mkdir()
    slices = where.shape[0]
    names = rng.permutation(slices * len(phases)) + 1
    phase_key = look.phase_keys[int(rng.integers(len(look.phase_keys)))]
    series = _series(case, look, where)
    if phase_key == "TemporalPositionIdentifier":
        series.NumberOfTemporalPositions = str(len(phases))
    gain = look.gain * float(rng.uniform(0.9, 1.1))
    for phase, volume in enumerate(phases):
        slope = round(float(rng.uniform(0.4, 1.6)), 4)  # some scanners scale every phase anew
        stored = np.clip(np.round(volume * gain / slope), 0, GREY_LEVELS * 4 - 1).astype("<u2")
        template = _phase_template(series, look, phase, phase_key, slope)
        for k in range(slices):
            number = phase * slices + k
            header = _fill(template, case, where, number, k)
            name = f"IM{names[number]:05d}{look.suffix}"
            (folder / name).write_bytes(header + stored[k].tobytes())


def _series(case: SynthCase, look: MriLook, where: render.Geometry) -> Dataset:
    """What all slices of a series have in common, with placeholders for one slice."""
    ds = _header(case, "MR", MR_CLASS)
    _set_instance(ds, _UID_SLOT)
    ds.InstanceNumber = _NUMBER_SLOT
    ds.Manufacturer = look.manufacturer
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    ds.SeriesDescription = f"{look.plane} T1 fat-suppressed dynamic"
    ds.MagneticFieldStrength = f"{look.field_strength:.1f}"
    ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions = "GR", "SP", "FS"
    ds.MRAcquisitionType = "3D"
    ds.RepetitionTime, ds.EchoTime, ds.FlipAngle = "5.2", "2.4", "10"
    ds.BodyPartExamined = "BREAST"
    ds.PatientPosition = "FFP"
    ds.FrameOfReferenceUID = _uid(case, "frame")
    ds.Laterality = case.laterality
    ds.ImageOrientationPatient = [f"{v:.6f}" for v in (*where.along_row, *where.down_column)]
    ds.ImagePositionPatient = list(_POSITION_SLOT)
    ds.SliceLocation = _LOCATION_SLOT
    ds.SliceThickness = ds.SpacingBetweenSlices = f"{where.spacing[0]:.4f}"
    ds.PixelSpacing = [f"{where.spacing[1]:.4f}"] * 2
    ds.RescaleIntercept, ds.RescaleType = "0", "US"
    _set_grey(ds, np.zeros(where.shape[1:], dtype=np.uint16), "MONOCHROME2", bits=16)
    return ds


def _phase_template(
    series: Dataset, look: MriLook, phase: int, phase_key: str, slope: float
) -> bytes:
    """The encoded data set of one phase up to its pixels; ``phase_key`` tells it apart."""
    series.ContrastBolusAgent = "none" if phase == 0 else "gadolinium"
    series.RescaleSlope = f"{slope:.4f}"
    start = FIRST_PHASE_SECONDS
    seconds = phase * look.seconds_per_phase
    if phase_key == "TemporalPositionIdentifier":
        series.TemporalPositionIdentifier = str(phase + 1)
    elif phase_key == "TriggerTime":
        series.TriggerTime = str(seconds * 1000)  # ms
    else:
        start += seconds
    series.AcquisitionTime = f"{start // 3600:02d}{start // 60 % 60:02d}{start % 60:02d}"
    encoded = BytesIO()
    series.save_as(encoded, enforce_file_format=True)
    return encoded.getvalue()[: -len(series.PixelData)]


def _fill(template: bytes, case: SynthCase, where: render.Geometry, number: int, k: int) -> bytes:
    """The template with the values of slice ``k``; widths stay as they are."""
    position = where.position(k)
    changes = {
        _UID_SLOT: _uid(case, "MR", number),
        _NUMBER_SLOT: f"{number + 1:6d}",
        "\\".join(_POSITION_SLOT): "\\".join(f"{mm:10.4f}" for mm in position),
        _LOCATION_SLOT: f"{position @ where.normal:10.4f}",
    }
    for slot, value in changes.items():
        if len(slot) != len(value):
            raise ValueError(f"expected {len(slot)} characters, got {len(value)}")
        template = template.replace(slot.encode(), value.encode())
    return template


def _required(look: Look | None) -> Look:
    """The centre's scanner; to image a modality that a centre has not is a fault of the code."""
    if look is None:
        raise ValueError("expected a centre with this modality's scanner, got none")
    return look
