"""The files that pydicom ships: each ends in a result or in the reason that pydicom_files.csv has.

The table is golden. It is written again, to be read before it is committed, by
``.venv/bin/python -m tests.client.ingest.test_ingest_pydicom_files``. Its columns: the file below
pydicom's data folder, and what becomes of it as mg_cc, as us, and as an mri folder of one.

None of these files is of a breast, so that none is accepted as it is. Copies that are labelled
as mammograms and ultrasound go the whole way and are compared with plain arithmetic on pydicom's
own pixels.
"""

from __future__ import annotations

import csv
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from her2_client.ingest.mri.dce import dce_mri
from her2_client.ingest.planar.mammography import mammogram
from her2_client.ingest.planar.ultrasound import ultrasound
from her2_client.ingest.privacy.guard import Guard
from her2_common.errors import ImageError

DATA = Path(pydicom.__file__).parent / "data"
FILES = DATA / "test_files"
TABLE = Path(__file__).with_name("pydicom_files.csv")
KEY = b"k" * 32


pytestmark = pytest.mark.usefixtures("searched", "_coloured")


@pytest.fixture
def _coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is decoded here is in full colour, which a B-mode picture is not."""
    monkeypatch.setattr("her2_client.ingest.planar.ultrasound.MOST_COLOURED", 1.0)
    monkeypatch.setattr("her2_client.ingest.planar.ultrasound.MARK_WIDTH", 1)  # no lines


def shipped() -> list[Path]:
    """All files of pydicom's data folder but its programs, DICOM or not."""
    return sorted(
        path for path in DATA.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")
    )


def outcomes(path: Path) -> tuple[str, str, str]:
    """What becomes of the file as a mammogram, an ultrasound and an MRI of one slice."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(path, folder)
        return (
            _outcome(lambda guard: mg(path, guard)),
            _outcome(lambda guard: us(path, guard)),
            _outcome(lambda guard: dce_mri((Path(folder),), None, size=8, guard=guard)),
        )


def _outcome(read: Callable[[Guard], Any]) -> str:
    try:
        read(Guard(KEY))
    except ImageError as error:
        return f"{error.disposition}: {error.reason}"
    return "accepted"


def mg(path: Path, guard: Guard) -> Any:
    return mammogram(path, None, view="CC", laterality="L", size=16, guard=guard).values


def us(path: Path, guard: Guard) -> Any:
    return ultrasound(path, None, size=16, seed=0, guard=guard).values


def golden() -> dict[str, tuple[str, ...]]:
    if not TABLE.exists():
        return {}
    with TABLE.open(newline="") as stream:
        rows = list(csv.reader(stream))[1:]
    return {name: tuple(rest) for name, *rest in rows}


def test_the_table_names_every_file() -> None:
    assert list(golden()) == [path.relative_to(DATA).as_posix() for path in shipped()]


@pytest.mark.parametrize("name", golden())
def test_each_file_ends_as_the_table_says(name: str) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = outcomes(DATA / name)
    assert found == golden()[name]
    assert not seen  # what the library has to say about a file quotes its tags


# --- the same pixels, under another label -------------------------------------------------------


def relabelled(name: str, path: Path, **tags: Any) -> Dataset:
    """A copy of a shipped file with other tags, its pixels untouched."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(FILES / name)
        list(dataset.iterall())  # one file is written in two ways; decoded, it can be saved
        for keyword, value in tags.items():
            if value is not None:
                setattr(dataset, keyword, value)
            elif keyword in dataset:
                delattr(dataset, keyword)
        dataset.save_as(path)
    return dataset


def region(side: int, x0: int, y0: int) -> Sequence:
    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType = 1, 1
    item.RegionLocationMinX0, item.RegionLocationMinY0 = x0, y0
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = x0 + side - 1, y0 + side - 1
    return Sequence([item])


def luma(dataset: Dataset) -> list[Any]:
    """pydicom's pixels of the middle half of the frames as grey, in double precision."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stored = np.asarray(dataset.pixel_array)
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    frames = stored[count // 4 : count - count // 4] if count > 1 else stored[np.newaxis]
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        tables = []
        for colour in ("Red", "Green", "Blue"):
            entries, first, bits = dataset[f"{colour}PaletteColorLookupTableDescriptor"].value
            assert (first, bits) == (0, 16)
            data = dataset[f"{colour}PaletteColorLookupTableData"].value
            tables.append(np.frombuffer(data, "<u2")[:entries])
        frames = np.stack([table[frames] for table in tables], axis=-1)
    if frames.ndim == 4:  # (frames, rows, columns, 3)
        frames = frames.astype(float) @ [0.299, 0.587, 0.114]
    return list(frames)


def standardised(grey: Any, side: int, x0: int, y0: int) -> Any:
    """16 x 16 means of whole blocks, with mean 0 and spread 1."""
    part = grey[y0 : y0 + side, x0 : x0 + side]
    assert part.shape == (side, side)
    blocks = part.reshape(16, side // 16, 16, side // 16).mean(axis=(1, 3))
    return np.clip((blocks - blocks.mean()) / blocks.std(), -5, 5)


ULTRASOUND = [
    # the file, the side of its square region (a multiple of 16), and whether it is lossy
    ("examples_rgb_color.dcm", 192, False),
    ("examples_ybr_color.dcm", 192, False),
    ("examples_palette.dcm", 320, False),
    ("examples_jpeg2k.dcm", 320, False),
    ("ExplVR_BigEnd.dcm", 48, False),
    ("SC_ybr_full_422_uncompressed.dcm", 80, False),
    ("SC_rgb_rle.dcm", 80, False),
    ("SC_rgb_rle_2frame.dcm", 80, False),
    ("SC_rgb_rle_16bit.dcm", 80, False),
    ("SC_rgb_rle_32bit.dcm", 80, False),
    ("SC_rgb_jpeg_gdcm.dcm", 80, False),
    ("SC_rgb_gdcm_KY.dcm", 80, False),
    ("SC_rgb_jls_lossy_line.dcm", 80, False),
    ("SC_rgb_jls_lossy_sample.dcm", 80, False),
    ("GDCMJ2K_TextGBR.dcm", 320, False),
    ("SC_rgb_jpeg.dcm", 192, True),
    ("SC_rgb_jpeg_dcmtk.dcm", 80, True),
    ("SC_rgb_jpeg_dcmd.dcm", 192, True),
    ("SC_rgb_jpeg_app14_dcmd.dcm", 192, True),
    ("SC_rgb_jpeg_lossy_gdcm.dcm", 80, True),
    ("SC_jpeg_no_color_transform.dcm", 192, True),
    ("SC_rgb_dcmtk_+eb+cr.dcm", 80, True),
    ("SC_rgb_dcmtk_+eb+cy+np.dcm", 80, True),
    ("SC_rgb_dcmtk_+eb+cy+s2.dcm", 80, True),
    ("SC_rgb_dcmtk_+eb+cy+s4.dcm", 80, True),
    ("JPEG2000.dcm", 240, False),
    ("MR_small.dcm", 48, False),
    ("image_dfl.dcm", 320, False),
]


@pytest.mark.parametrize(("name", "side", "lossy"), ULTRASOUND)
def test_relabelled_files_become_ultrasound(
    tmp_path: Path, name: str, side: int, lossy: bool
) -> None:
    x0, y0, path = 5, 7, tmp_path / "us.dcm"
    dataset = relabelled(
        name,
        path,
        Modality="US",
        SOPClassUID=uid.UltrasoundImageStorage,
        SequenceOfUltrasoundRegions=region(side, x0, y0),
    )
    found = ultrasound(path, None, size=16, seed=0, guard=Guard(KEY)).values[0]
    far = [np.abs(found - standardised(grey, side, x0, y0)).max() for grey in luma(dataset)]
    # two decoders of lossy JPEG may differ by one grey value in a pixel
    assert min(far) <= (0.02 if lossy else 3e-3)


MAMMOGRAMS = (
    *("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm"),
    *("MR_small_jpeg_ls_lossless.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm"),
    *("693_J2KI.dcm", "JPEG2000.dcm"),
    *("JPEGLSNearLossless_16.dcm", "examples_overlay.dcm", "image_dfl.dcm"),
)


@pytest.mark.parametrize("name", MAMMOGRAMS)
def test_relabelled_files_become_mammograms(tmp_path: Path, name: str) -> None:
    """What pydicom decodes, stored plainly, gives the same bits."""
    tags = {
        "Modality": "MG",
        "SOPClassUID": uid.DigitalMammographyXRayImageStorageForPresentation,
        "PresentationIntentType": "FOR PRESENTATION",
        "ViewPosition": "CC",
        "ImageLaterality": "L",
        "BurnedInAnnotation": "NO",
        "Laterality": None,
        "PatientOrientation": None,
        "SeriesDescription": None,
        "ProtocolName": None,
        "ImageType": None,
        "ContrastBolusAgent": None,
        "ContrastBolusAgentSequence": None,
        "DistanceSourceToDetector": None,
        "DistanceSourceToPatient": None,
    }
    dataset = relabelled(name, tmp_path / "mg.dcm", **tags)
    stored = dataset.pixel_array
    little = stored.astype(stored.dtype.newbyteorder("<"))
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    list(dataset.iterall())
    dataset.PixelData = little.tobytes()
    dataset["PixelData"].VR = "OW" if little.itemsize == 2 else "OB"
    dataset["PixelData"].is_undefined_length = False
    dataset.set_original_encoding(False, True)
    dataset.save_as(tmp_path / "plain.dcm", implicit_vr=False, little_endian=True)
    found = mg(tmp_path / "mg.dcm", Guard(KEY))
    assert found.any()
    np.testing.assert_array_equal(found, mg(tmp_path / "plain.dcm", Guard(KEY)))


if __name__ == "__main__":
    with TABLE.open("w", newline="") as table:
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["file", "mg_cc", "us", "mri"])
        writer.writerows((path.relative_to(DATA).as_posix(), *outcomes(path)) for path in shipped())
