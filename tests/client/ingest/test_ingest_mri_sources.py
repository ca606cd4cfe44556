"""Several folders, and enhanced files: the same volume must give the same cube."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from her2_client.ingest.mri.dce import dce_mri
from her2_client.ingest.privacy.guard import Decision, Guard
from her2_common.cases import Box
from her2_common.errors import ImageError

SIZE = 24
MM = (4.0, 3.0, 3.0)
BOX = Box(7, 11, 13, 17, 3, 8)


def cube(*sources: Path, phases: tuple[int, ...] = (0, 1, 2), box: Box | None = BOX) -> Any:
    return dce_mri(sources, box, size=SIZE, phases=phases, guard=Guard(b"k" * 32)).values


def refused(*sources: Path, phases: tuple[int, ...] = (1,), box: Box | None = BOX) -> str:
    with pytest.raises(ImageError, match="expected") as caught:
        cube(*sources, phases=phases, box=box)
    assert caught.value.disposition == "refused"
    return caught.value.reason


@pytest.fixture
def phases(pictures: Any) -> Any:
    return pictures.dynamic(3)


@pytest.fixture
def plain(tmp_path: Path, dicoms: Any, phases: Any) -> Any:
    return cube(dicoms.mri(tmp_path / "plain", phases, spacing=MM))


@pytest.fixture
def folders(tmp_path: Path, dicoms: Any, phases: Any) -> Callable[..., list[Path]]:
    """One folder a phase; ``change`` edits one slice, told its phase, slice and tags."""

    def write(change: Any = None, values: Any = phases) -> list[Path]:
        made = []
        for phase in range(len(values)):

            def edit(_: int, z: int, tags: dict[str, Any], phase: int = phase) -> Any:
                tags = tags | {"TemporalPositionIdentifier": None}
                return tags if change is None else change(phase, z, tags)

            made.append(
                dicoms.mri(
                    tmp_path / f"p{9 - phase}", values[phase : phase + 1], spacing=MM, change=edit
                )
            )
        return made

    return write


# --- several folders ----------------------------------------------------------------------------


def test_several_folders_are_phases_in_the_order_of_the_table(
    folders: Any, plain: Any, phases: Any
) -> None:
    first, second, third = folders()
    np.testing.assert_array_equal(cube(first, second, third), plain)
    np.testing.assert_array_equal(cube(first, second, phases=(1,))[0], plain[1])
    # another order is another series: the reference is then another phase's
    assert (cube(first, third, second) != plain).any()
    assert refused(second, first, third) == "no enhancement"
    assert refused(first, second, phases=(2,)) == "too few phases"


def test_notes_of_several_folders_come_together(folders: Any, dicoms: Any, phases: Any) -> None:
    made = folders()
    for folder in made:
        dicoms.mri(
            folder / "sub",
            phases[:1],
            change=lambda p, z, t: t | {"ImageType": ["DERIVED", "SECONDARY", "SUBTRACTION"]},
        )
    image = dce_mri(tuple(made), BOX, size=SIZE, guard=Guard(b"k" * 32))
    assert [note.reason for note in image.set_aside] == ["subtraction series"] * 3


def test_a_folder_with_several_phases_is_mixed(dicoms: Any, phases: Any, tmp_path: Path) -> None:
    both = dicoms.mri(tmp_path / "both", phases[:2], spacing=MM)
    third = dicoms.mri(tmp_path / "third", phases[2:], spacing=MM)
    assert refused(both, third) == "mixed phases"


def test_a_folder_with_several_series_is_refused(folders: Any, dicoms: Any, phases: Any) -> None:
    first, second, _ = folders()
    dicoms.mri(first / "more", phases[:1], spacing=(9.0, 9.0, 9.0))
    assert refused(first, second) == "several series"


def test_the_same_folder_twice_is_refused(folders: Any) -> None:
    first, second, _ = folders()
    assert refused(first, first, second) == "duplicate slice"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p, z, t: t | {"PixelSpacing": [3.0, 3.0 + 0.1 * p]}, "unequal geometry"),
        (lambda p, z, t: t | {"ImagePositionPatient": [-20.0 + p, -20.0, 4.0 * z]},
         "unequal geometry"),
        (lambda p, z, t: t | {"ImagePositionPatient": [-20.0, -20.0, 4.0 * z + 2 * p]},
         "unequal geometry"),
        (lambda p, z, t: None if (p, z) == (1, 4) else t, "incomplete phase"),
        (lambda p, z, t: None if (p, z) == (0, 9) else t, "incomplete phase"),
        (lambda p, z, t: None if z == 5 else t, "gap"),
        (lambda p, z, t: None if p == 1 else t, "missing file"),
    ],
)  # fmt: skip
def test_faults_over_several_folders(folders: Any, change: Any, reason: str) -> None:
    assert refused(*folders(change)) == reason


def test_phases_in_two_formats_are_refused(folders: Any, tmp_path: Path) -> None:
    assert refused(folders()[0], tmp_path / "a.nii.gz") == "mixed formats"


# --- enhanced files -----------------------------------------------------------------------------


def test_an_enhanced_file_gives_the_same_bits(
    tmp_path: Path, dicoms: Any, phases: Any, plain: Any
) -> None:
    order = np.random.default_rng(0).permutation(30).tolist()
    for name, options in [("a", {}), ("b", {"order": order.__getitem__})]:
        path = dicoms.enhanced(tmp_path / f"{name}.dcm", phases, spacing=MM, **options)
        np.testing.assert_array_equal(cube(path), plain)
        folder = tmp_path / name
        folder.mkdir()
        path.rename(folder / "IM1")
        np.testing.assert_array_equal(cube(folder), plain)


def test_several_enhanced_files_one_a_phase(
    tmp_path: Path, dicoms: Any, phases: Any, plain: Any
) -> None:
    """As the table lists them, or in one folder by the time of their frames."""
    paths = []
    for phase in range(3):

        def timed(_: int, z: int, groups: Dataset, phase: int = phase) -> Dataset:
            content = groups.FrameContentSequence[0]
            content.FrameAcquisitionDateTime = f"2020010110{phase:02d}{z:02d}.5"
            return groups

        paths.append(
            dicoms.enhanced(
                tmp_path / "all" / f"{9 - phase}.dcm",
                phases[phase : phase + 1],
                spacing=MM,
                change=timed,
                SeriesInstanceUID=f"1.2.{phase}",
            )
        )
    np.testing.assert_array_equal(cube(*paths), plain)
    np.testing.assert_array_equal(cube(tmp_path / "all"), plain)
    assert refused(paths[0]) == "one phase only"


def _content(groups: Dataset) -> Dataset:
    content: Dataset = groups.FrameContentSequence[0]
    del content.TemporalPositionIndex
    return content


def _by_index(phase: int, z: int, groups: Dataset) -> Dataset:
    _content(groups).DimensionIndexValues = [1, z + 1, phase + 1]
    return groups


def _by_offset(phase: int, _z: int, groups: Dataset) -> Dataset:
    _content(groups)
    item = Dataset()
    item.TemporalPositionTimeOffset = 61.5 * phase
    groups.TemporalPositionSequence = Sequence([item])
    return groups


def _by_acquisition(phase: int, _z: int, groups: Dataset) -> Dataset:
    _content(groups).FrameAcquisitionDateTime = f"2020010{phase + 1}{23 - phase}0000-0500"
    return groups


def _by_reference(phase: int, z: int, groups: Dataset) -> Dataset:
    _content(groups).FrameReferenceDateTime = f"2020010110{phase:02d}{z:02d}"
    return groups


@pytest.mark.parametrize("change", [_by_index, _by_offset, _by_acquisition, _by_reference])
def test_phases_of_an_enhanced_file(
    tmp_path: Path, dicoms: Any, phases: Any, plain: Any, change: Any
) -> None:
    dimensions = []
    for pointer in ("StackID", "InStackPositionNumber", "TemporalPositionIndex"):
        item = Dataset()
        item.DimensionIndexPointer = Tag(pointer)
        dimensions.append(item)
    path = dicoms.enhanced(
        tmp_path / "a.dcm", phases, spacing=MM, change=change,
        DimensionIndexSequence=Sequence(dimensions),
    )  # fmt: skip
    np.testing.assert_array_equal(cube(path), plain)


def test_each_frame_has_its_own_rescaling(
    tmp_path: Path, dicoms: Any, phases: Any, plain: Any
) -> None:
    def own(_phase: int, z: int, groups: Dataset) -> Dataset:
        item = Dataset()
        item.RescaleSlope, item.RescaleIntercept = 1.0 / (1 + z % 2), -float(z)
        item.RescaleType = "US"
        groups.PixelValueTransformationSequence = Sequence([item])
        return groups

    z = np.arange(phases.shape[1])[:, None, None]
    stored = (phases + z) * (1 + z % 2)
    path = dicoms.enhanced(tmp_path / "a.dcm", stored, spacing=MM, change=own)
    np.testing.assert_allclose(cube(path), plain, atol=5e-3)


def test_subtracted_frames_are_set_aside(
    tmp_path: Path, dicoms: Any, phases: Any, plain: Any
) -> None:
    def typed(phase: int, _z: int, groups: Dataset) -> Dataset:
        item = Dataset()
        item.FrameType = ["DERIVED", "PRIMARY", "DYNAMIC", "SUBTRACTION" if phase > 2 else "NONE"]
        groups.MRImageFrameTypeSequence = Sequence([item])
        return groups

    more = np.concatenate([phases, phases[1:] - phases[:1]])
    path = dicoms.enhanced(tmp_path / "a.dcm", more, spacing=MM, change=typed)
    image = dce_mri((path,), BOX, size=SIZE, phases=(0, 1, 2), guard=Guard(b"k" * 32))
    np.testing.assert_array_equal(image.values, plain)
    assert [str(note) for note in image.set_aside] == ["subtraction series: 20 images not used"]


def _no_place(_phase: int, z: int, groups: Dataset) -> Dataset:
    if z == 3:
        del groups.PlanePositionSequence
    return groups


def _tilted(_phase: int, z: int, groups: Dataset) -> Dataset:
    if z == 3:
        item = Dataset()
        item.ImageOrientationPatient = [1, 0, 0, 0, 0.8, 0.6]
        groups.PlaneOrientationSequence = Sequence([item])
    return groups


def _no_time(_phase: int, _z: int, groups: Dataset) -> Dataset:
    _content(groups)
    return groups


@pytest.mark.parametrize(
    ("change", "tags", "reason"),
    [
        (_no_place, {}, "no geometry"),
        (_tilted, {}, "unequal geometry"),
        (_no_time, {}, "phases unclear"),
        (lambda p, z, g: None if (p, z) == (1, 4) else g, {}, "incomplete phase"),
        (lambda p, z, g: None if z == 4 else g, {}, "gap"),
        (None, {"NumberOfFrames": 29}, "damaged"),
        (None, {"PerFrameFunctionalGroupsSequence": None}, "no geometry"),
        (None, {"SharedFunctionalGroupsSequence": None}, "no geometry"),
        (None, {"NumberOfFrames": 10**8}, "frame count"),
        (None, {"PixelData": b"\0\0"}, "truncated"),
        (None, {"Modality": "CT"}, "wrong modality"),
    ],
)
def test_faults_of_an_enhanced_file(
    tmp_path: Path, dicoms: Any, phases: Any, change: Any, tags: dict[str, Any], reason: str
) -> None:
    path = dicoms.enhanced(tmp_path / "a.dcm", phases, spacing=MM, change=change, **tags)
    assert refused(path) == reason


def test_burned_in_text_of_an_enhanced_file(
    tmp_path: Path, dicoms: Any, phases: Any, plain: Any
) -> None:
    """One file, three phases: each has a decision of its own."""
    path = dicoms.enhanced(tmp_path / "a.dcm", phases, spacing=MM, BurnedInAnnotation="YES")
    guard = Guard(b"k" * 32)
    with pytest.raises(ImageError) as caught:
        dce_mri((path,), BOX, size=SIZE, guard=guard)
    assert (caught.value.reason, caught.value.disposition) == ("burned-in annotation",
                                                               "quarantined")  # fmt: skip
    (first,) = guard.consulted
    yes = Decision(approved=True)
    guard = Guard(b"k" * 32, {first: yes})
    np.testing.assert_array_equal(dce_mri((path,), BOX, size=SIZE, guard=guard).values, plain[1:2])
    with pytest.raises(ImageError):
        dce_mri((path,), BOX, size=SIZE, phases=(1, 2), guard=guard)
