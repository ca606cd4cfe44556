"""Whatever the bytes or tags of an MRI are, there is a result or an ImageError, and no warning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from her2_client.ingest.mri.dce import dce_mri
from her2_client.ingest.privacy.guard import Guard
from her2_common.cases import Box
from her2_common.errors import ImageError

BOX = Box(1, 1, 5, 5, 1, 3)
FUZZ = settings(
    max_examples=60,
    deadline=2000,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
PHASES = np.random.default_rng(0).integers(10, 900, (2, 4, 6, 6)).astype(float)
BYTES = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=12)


def read(source: Path, box: Box | None) -> str:
    """The reason of an ImageError, which there must be, or "" for a sound cube."""
    try:
        image = dce_mri((source,), box, size=4, phases=(0, 1), guard=Guard(b"k" * 32))
    except ImageError as error:
        return error.reason if str(error) and "CANARY" not in str(error) else "none"
    assert image.values.shape == (2, 4, 4, 4)
    assert np.isfinite(image.values).all()
    return ""


def spoil(content: bytes, edits: list[tuple[int, int]], head: int) -> bytes:
    """Half of the edits fall into the first ``head`` bytes, where the header is."""
    spoiled = bytearray(content)
    for number, (place, value) in enumerate(edits):
        spoiled[place % min(head if number % 2 else len(spoiled), len(spoiled))] = value
    return bytes(spoiled)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@FUZZ
@given(edits=BYTES, boxed=st.booleans(), cut=st.none() | st.integers(0, 2000))
def test_bytes_of_a_slice(
    made: Path, dicoms: Any, edits: Any, boxed: bool, cut: int | None
) -> None:
    folder = made / "slices"
    if not folder.exists():
        dicoms.mri(folder, PHASES, spacing=(4.0, 4.0, 4.0))
        (folder / "1-002.dcm").rename(made / "slice")
    content = (made / "slice").read_bytes()
    (folder / "1-002.dcm").write_bytes(spoil(content, edits, 900)[:cut])
    assert read(folder, BOX if boxed else None) != "none"


@FUZZ
@given(edits=BYTES, boxed=st.booleans(), cut=st.none() | st.integers(0, 5000))
def test_bytes_of_an_enhanced_file(
    made: Path, dicoms: Any, edits: Any, boxed: bool, cut: int | None
) -> None:
    good, path = made / "enhanced", made / "enhanced.dcm"
    if not good.exists():
        dicoms.enhanced(good, PHASES, spacing=(4.0, 4.0, 4.0))
    path.write_bytes(spoil(good.read_bytes(), edits, 2000)[:cut])
    assert read(path, BOX if boxed else None) != "none"


@FUZZ
@given(edits=BYTES, boxed=st.booleans(), cut=st.none() | st.integers(0, 3000), packed=st.booleans())
def test_bytes_of_nifti(made: Path, edits: Any, boxed: bool, cut: int | None, packed: bool) -> None:
    path = made / ("a.nii.gz" if packed else "a.nii")
    values = PHASES.transpose(3, 2, 1, 0).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([4.0, 4.0, 4.0, 1])), path)
    path.write_bytes(spoil(path.read_bytes(), edits, 100 if packed else 352)[:cut])
    assert read(path, BOX if boxed else None) != "none"


ODD = ["", " ", "0", "-1", "1e400", "nan", "1e-300", "99999999999", "1\\2", "CANARY", "20200101"]
KEYWORDS = [
    "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "TriggerTime",
    "TemporalPositionIdentifier", "AcquisitionTime", "AcquisitionDate", "ContentTime",
    "NumberOfFrames", "ImageType", "SeriesDescription", "SeriesInstanceUID", "SOPClassUID",
    "Modality", "RescaleSlope", "RescaleIntercept", "FlipAngle", "EchoTime", "Manufacturer",
    "BurnedInAnnotation", "PhotometricInterpretation", "Rows", "SamplesPerPixel", "BitsAllocated",
    "BitsStored", "PixelRepresentation",
]  # fmt: skip


@FUZZ
@given(
    tags=st.dictionaries(st.sampled_from(KEYWORDS), st.sampled_from(ODD), min_size=1, max_size=3),
    everywhere=st.booleans(),
)
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_odd_values_of_tags(
    made: Path, dicoms: Any, tags: dict[str, str], everywhere: bool
) -> None:
    folder = made / "tags"
    dicoms.mri(folder, PHASES, spacing=(4.0, 4.0, 4.0))
    for path in sorted(folder.iterdir()) if everywhere else [folder / "1-002.dcm"]:
        dataset = pydicom.dcmread(path)
        for keyword, text in tags.items():
            vr = pydicom.datadict.dictionary_VR(keyword)
            content = text.encode()
            if vr == "US":
                content = (sum(content) % 65536).to_bytes(2, "little")
            tag = pydicom.tag.Tag(keyword)
            dataset[tag] = pydicom.dataelem.RawDataElement(
                tag, vr, len(content), content, 0, False, True
            )
        dataset.save_as(path)
    assert read(folder, BOX) != "none"
