"""From stored to displayed values, against the formulas of PS3.3 C.11 written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from her2_client.ingest.planar.display import display
from her2_common.errors import ImageError

STORED = np.random.default_rng(8).integers(0, 4096, (40, 30)).astype(np.uint16)
X = STORED.astype(float)


def header(**tags: Any) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsStored, dataset.PixelRepresentation = 12, 0
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    return dataset


def item(**tags: Any) -> Sequence:
    return Sequence([header(**tags)])


def window(x: Any, centre: float, width: float, top: float = 4095.0) -> Any:
    """C.11.2.1.2.1, LINEAR."""
    share = (x - (centre - 0.5)) / (width - 1) + 0.5
    return np.clip(share, 0, 1) * top


TABLE = (np.arange(4096) ** 2 // 256).astype(np.uint16)
LUT = {"LUTDescriptor": [4096, 0, 16], "LUTData": TABLE.tolist()}


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, X),
        ({"WindowCenter": 2000.0, "WindowWidth": 800.0}, window(X, 2000, 800)),
        ({"WindowCenter": [2000.0, 9.0], "WindowWidth": [800.0, 2.0]}, window(X, 2000, 800)),
        ({"WindowCenter": None, "WindowWidth": None}, X),
        ({"WindowCenter": 2000.0, "WindowWidth": 800.0, "VOILUTFunction": "LINEAR_EXACT"},
         np.clip((X - 2000) / 800 + 0.5, 0, 1) * 4095),
        ({"WindowCenter": 2000.0, "WindowWidth": 800.0, "VOILUTFunction": "SIGMOID"},
         4095 / (1 + np.exp(-4 * (X - 2000) / 800))),
        ({"RescaleSlope": -1.0, "RescaleIntercept": 4095.0}, 4095 - X),
        ({"RescaleSlope": 2.0, "RescaleIntercept": -10.0, "WindowCenter": 2000.0,
          "WindowWidth": 800.0}, window(2 * X - 10, 2000, 800, 8190.0) - 10),
        ({"RescaleSlope": 2.0, "RescaleIntercept": None}, 2 * X),
        ({"RescaleSlope": 2.0}, 2 * X),
        ({"RescaleSlope": None, "RescaleIntercept": 7.0}, X + 7),
        ({"ModalityLUTSequence": item(**LUT)}, TABLE[STORED]),
        ({"VOILUTSequence": item(**LUT)}, TABLE[STORED]),
        ({"VOILUTSequence": item(**LUT), "RescaleSlope": 0.5, "RescaleIntercept": 0.0},
         TABLE[np.rint(X / 2).astype(int)]),
        ({"VOILUTSequence": item(LUTDescriptor=[2048, 1000, 16], LUTData=TABLE[:2048].tolist())},
         TABLE[np.clip(STORED.astype(int) - 1000, 0, 2047)]),
        ({"SharedFunctionalGroupsSequence": item(
            FrameVOILUTSequence=item(WindowCenter=2000.0, WindowWidth=800.0))},
         window(X, 2000, 800)),
        ({"PixelPaddingValue": 0}, np.where(STORED == 0, X[STORED > 0].min(), X)),
    ],
)  # fmt: skip
def test_display_is_the_standards_formula(tags: dict[str, Any], expected: Any) -> None:
    np.testing.assert_allclose(display(STORED, header(**tags)), expected, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("first", [0, 900, -700])
@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
def test_a_table_is_looked_up_whatever_the_bits_of_its_entries(
    bits: int, first: int, sequence: str
) -> None:
    entries = np.random.default_rng(bits).integers(0, 1 << bits, 3000)
    table = item(LUTDescriptor=[3000, first, bits], LUTData=entries.tolist())
    shown = display(STORED, header(**{sequence: table}))
    np.testing.assert_array_equal(shown, entries[np.clip(STORED.astype(int) - first, 0, 2999)])


@pytest.mark.parametrize("count", [256, 65536])
@pytest.mark.parametrize("explicit", [False, True])
def test_a_table_for_signed_values_is_read_out_of_a_file(
    tmp_path: Path, count: int, explicit: bool
) -> None:
    """Implicit VR stores neither the sign of the first value nor that of the length."""
    entries = np.random.default_rng(3).integers(0, 1 << 12, count)
    table = Dataset()
    table.add_new("LUTDescriptor", "SS", [0 if count == 65536 else count, -2000, 12])
    table.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    written = header(
        VOILUTSequence=Sequence([table]), RescaleSlope=1, RescaleIntercept=-2048, SamplesPerPixel=1
    )
    written.file_meta.TransferSyntaxUID = (
        ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian
    )
    written.file_meta.MediaStorageSOPClassUID = written.file_meta.MediaStorageSOPInstanceUID = "1.2"
    written.save_as(tmp_path / "signed.dcm", enforce_file_format=True)
    dataset = pydicom.dcmread(tmp_path / "signed.dcm")
    first = dataset.VOILUTSequence[0].LUTDescriptor[1]
    assert first == (-2000 if explicit else 65536 - 2000)
    expected = entries[np.clip(STORED.astype(int) - 2048 + 2000, 0, count - 1)]
    np.testing.assert_array_equal(display(STORED, dataset), expected)


@pytest.mark.parametrize("count", [255, 256])
def test_entries_of_8_bits_may_share_a_word(count: int) -> None:
    entries = np.random.default_rng(4).integers(0, 256, count)
    packed = np.append(entries, 0)[: (count + 1) // 2 * 2].astype(np.uint8).tobytes()
    table = item(LUTDescriptor=[count, 0, 8], LUTData=packed)
    stored = (STORED % 300).astype(np.uint16)
    shown = display(stored, header(VOILUTSequence=table))
    np.testing.assert_array_equal(shown, entries[np.clip(stored, 0, count - 1)])


def test_monochrome1_is_turned_around_after_its_window() -> None:
    tags = {"WindowCenter": 2000.0, "WindowWidth": 800.0}
    dark = display(STORED, header(PhotometricInterpretation="MONOCHROME1", **tags))
    np.testing.assert_allclose(dark, 4095 - window(X, 2000, 800), atol=1e-3)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_as_dark_as_the_darkest_pixel(photometric: str) -> None:
    stored = STORED.copy()
    stored[:, :5] = 65000  # brighter than any tissue, darker in MONOCHROME1
    stored[:5] = 65010
    clean = display(STORED[5:, 5:], header(PhotometricInterpretation=photometric))
    tags = {"PixelPaddingValue": 65010, "PixelPaddingRangeLimit": 65000, "BitsStored": 16}
    padded = display(stored, header(PhotometricInterpretation=photometric, **tags))
    assert (padded[:5] == padded[5:, 5:].min()).all()
    assert (padded[:, :5] == padded[5:, 5:].min()).all()
    np.testing.assert_allclose(padded[5:, 5:] - padded.min(), clean - clean.min(), atol=1e-3)


def test_signed_values_are_displayed() -> None:
    stored = (STORED.astype(np.int32) - 2048).astype(np.int16)
    shown = display(stored, header(PixelRepresentation=1, WindowCenter=0.0, WindowWidth=800.0))
    np.testing.assert_allclose(shown, window(X - 2048, 0, 800) - 2048, atol=1e-3)


@pytest.mark.parametrize(
    ("stored", "tags", "reason"),
    [
        (np.zeros((4, 4, 3), np.uint8), {"PhotometricInterpretation": "RGB"}, "not grey"),
        (STORED, {"PhotometricInterpretation": "PALETTE COLOR"}, "not grey"),
        (np.array([[0, 1 << 20]], np.uint32), {}, "bit depth"),
        (np.full((4, 4), 7, np.uint16), {"PixelPaddingValue": 7}, "blank image"),
        (STORED, {"WindowCenter": 9.0, "WindowWidth": 0.0}, "unusable grey scale"),
        (STORED, {"VOILUTSequence": item(LUTDescriptor=[9, 0, 3], LUTData=[1])},
         "unusable grey scale"),
        (STORED, {"VOILUTSequence": item(LUTDescriptor=[9, 0, 12], LUTData=[1, 2])},
         "unusable grey scale"),
        (STORED, {"WindowCenter": 9.0, "WindowWidth": 5.0, "VOILUTFunction": "ODD"},
         "unusable grey scale"),
        (STORED, {"RescaleSlope": 0.0}, "rescale"),
        (STORED, {"RescaleSlope": "1e20"}, "rescale"),
    ],
)  # fmt: skip
def test_what_cannot_be_displayed(stored: Any, tags: dict[str, Any], reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        display(stored, header(**tags))
    assert caught.value.reason == reason
