"""Whatever bytes or tags a file has, it ends in an image or an ImageError, soon and quietly."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataelem import DataElement
from pydicom.tag import Tag
from tests.client.ingest.conftest import Dicoms, breast, echo
from tests.client.ingest.test_ingest_syntaxes import LOSSLESS

from her2_client.ingest import decoders
from her2_client.ingest.planar.mammography import mammogram
from her2_client.ingest.planar.ultrasound import ultrasound
from her2_client.ingest.privacy.guard import Guard
from her2_common.errors import ImageError

KEY = b"k" * 32


pytestmark = pytest.mark.usefixtures("searched")


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sound file of each syntax."""
    folder = tmp_path_factory.mktemp("fuzz")
    for name, (write, _) in {"plain": (lambda path: None, None), **LOSSLESS}.items():
        write(Dicoms().us(folder / name, echo(34, 41)))
    Dicoms().mg(folder / "mg", breast(34, 41))
    return folder


@given(
    places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
    keep=st.floats(0.3, 1),
    name=st.sampled_from(["plain", *LOSSLESS]),
)
@settings(max_examples=60, deadline=None)
def test_changed_bytes_end_in_an_image_or_an_image_error(
    fuzzed: Path,
    places: list[tuple[float, int]],
    keep: float,
    name: str,
) -> None:
    path = fuzzed / "changed.dcm"
    content = bytearray((fuzzed / name).read_bytes())
    for place, value in places:
        content[int(place * (len(content) - 1))] = value
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoders, "DEADLINE", 1.0)  # CharLS has been seen to run for ever
        try:
            result = ultrasound(path, None, size=16, seed=0, guard=Guard(KEY)).values
        except ImageError:
            return
    assert result.shape == (1, 16, 16)
    assert np.isfinite(result).all()


KEYWORDS = (
    *("SOPClassUID", "SOPInstanceUID", "Modality", "Manufacturer", "BurnedInAnnotation"),
    *("Rows", "Columns", "SamplesPerPixel", "PlanarConfiguration", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames"),
    *("PresentationIntentType", "ViewPosition", "ViewCodeSequence", "ImageLaterality"),
    *("Laterality", "AnatomicRegionSequence", "SharedFunctionalGroupsSequence", "PartialView"),
    *("SeriesDescription", "BreastImplantPresent", "EstimatedRadiographicMagnificationFactor"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "RescaleSlope", "RescaleIntercept"),
    *("ModalityLUTSequence", "VOILUTSequence", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("SequenceOfUltrasoundRegions", "RedPaletteColorLookupTableDescriptor"),
    *("ExtendedOffsetTable", "AcquisitionTime", "SpecificCharacterSet", "PixelData"),
)


MARK = "Qx"
"""Begins every drawn text: no message holds it by chance."""


@given(
    kind=st.sampled_from(["mg", "us"]),
    changes=st.dictionaries(
        st.sampled_from(KEYWORDS),
        st.none()
        | st.integers(0, 65_535)
        | st.sampled_from(["", "0", "-1", "1e99", "nan", "RGB", "YES", "7", "CC\\MLO", "R"])
        | st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=12).map(
            lambda text: MARK + text
        ),
        min_size=1,
        max_size=4,
    ),
)
@settings(max_examples=250, deadline=None)
def test_changed_tags_end_in_an_image_or_an_image_error(
    fuzzed: Path, kind: str, changes: dict[str, int | str | None]
) -> None:
    """Tags that are missing, of another type than the standard's, or of another value."""
    path = fuzzed / "changed.dcm"
    dataset = pydicom.dcmread(fuzzed / ("mg" if kind == "mg" else "plain"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's own, about values that we make unsound here
        for keyword, value in changes.items():
            tag = Tag(keyword)
            if tag in dataset:
                del dataset[tag]
            if value is not None:
                if isinstance(value, str) or keyword == "SpecificCharacterSet":
                    dataset[tag] = DataElement(tag, "LO", str(value))
                else:
                    dataset[tag] = DataElement(tag, "US", value)
        dataset.save_as(path, enforce_file_format=False)
    try:
        if kind == "us":
            result = ultrasound(path, None, size=16, seed=0, guard=Guard(KEY))
        else:
            result = mammogram(path, None, view="CC", laterality="L", size=16, guard=Guard(KEY))
    except ImageError as error:
        shown = str(error) + error.reason
    else:
        assert np.isfinite(result.values).all()
        shown = result.scanner + "".join(str(note) for note in result.set_aside)
    assert MARK not in shown  # no text of a tag is repeated
