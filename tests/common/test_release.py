"""References beside the weights of a release: whole, or refused with the reason."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save as save_tensors
from tests.releases import restate

from her2_common.errors import DataError
from her2_common.model import GROUPS, build_model, get_groups, preset
from her2_common.novelty import Reference, moments, pack, reference_of
from her2_common.release import (
    MANIFEST_NAME,
    REFERENCES_NAME,
    WEIGHTS_NAME,
    Manifest,
    read_references,
    read_release,
    write_release,
)

D = preset("compact").features
LIMITS = {"us": 0.75, "mri": 0.5}


def reference(seed: int) -> Reference:
    rows = np.random.default_rng(seed).normal(size=(40, D)).astype(np.float32)
    made = reference_of(moments(rows))
    assert made is not None
    return made


REFERENCES: dict[Any, Reference] = {m: reference(i) for i, m in enumerate(("us", "mri", "mg"))}


def manifest(**changes: Any) -> Manifest:
    return Manifest(
        run="a-run",
        preset="compact",
        label="reference",
        image_size=32,
        volume_size=16,
        threshold=0.5,
        groups=list(GROUPS),
        **changes,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    groups = get_groups(build_model("compact", 4), GROUPS)
    write_release(tmp_path / "release", manifest(limits=LIMITS), groups, REFERENCES)
    return tmp_path / "release"


def test_references_come_back_bit_for_bit_with_their_limits(folder: Path) -> None:
    stated, _ = read_release(folder)
    got = read_references(folder, stated)
    assert list(got) == ["us", "mri"]  # mammography has no limit
    assert stated.limits == LIMITS
    for modality, made in got.items():
        assert made.mean.tobytes() == REFERENCES[modality].mean.tobytes()
        np.testing.assert_array_equal(made.factor, REFERENCES[modality].factor)  # not transposed


def test_a_release_states_the_labels_of_the_runs_that_made_it(folder: Path) -> None:
    assert read_release(folder)[0].trained_on == ["reference"]
    with pytest.raises(ValueError, match="expected reference last"):
        manifest(trained_on=["reference", "surgical"])
    restate(folder, trained_on=None)
    with pytest.raises(DataError, match="does not state the labels"):
        read_release(folder)


def test_a_release_without_references_has_none_of_an_earlier_one(folder: Path) -> None:
    write_release(folder, manifest(), get_groups(build_model("compact", 4), GROUPS))
    stated, _ = read_release(folder)
    assert read_references(folder, stated) == {}
    assert not (folder / REFERENCES_NAME).exists()


@pytest.mark.parametrize("position", [0, 200, -1])
def test_a_changed_file_is_refused(folder: Path, position: int) -> None:
    path = folder / REFERENCES_NAME
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"references\.safetensors was changed: expected SHA-256"):
        read_references(folder, read_release(folder)[0])


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / REFERENCES_NAME).unlink()
    with pytest.raises(DataError, match=r"references\.safetensors is missing"):
        read_references(folder, read_release(folder)[0])


def replace_file(folder: Path, content: bytes) -> None:
    (folder / REFERENCES_NAME).write_bytes(content)
    restate(folder, references_sha256=hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nonsense", "SafetensorError"),
        (save_tensors(pack({"us": Reference(np.zeros(3, "f4"), np.eye(3, dtype="f4"))})), "Update"),
        (save_tensors(pack({"us": REFERENCES["us"]})), "expected a reference for mri"),
    ],
    ids=["no tensors", "narrow", "a limit without reference"],
)
def test_a_file_that_does_not_fit_is_refused(folder: Path, content: bytes, message: str) -> None:
    replace_file(folder, content)
    with pytest.raises(DataError, match=message):
        read_references(folder, read_release(folder)[0])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("threshold", 0.1),
        ("limits", {"us": 0.1, "mri": 0.5}),
        ("label", "pcr"),
        ("run", "another"),
        ("calibration", {"temperature": 2.0}),
        ("stranger", 1),
    ],
)
def test_a_manifest_of_which_anything_was_changed_is_refused(
    folder: Path, key: str, value: Any
) -> None:
    path = folder / MANIFEST_NAME
    document = json.loads(path.read_text())
    assert document.get(key) != value
    path.write_text(json.dumps(document | {key: value}))
    with pytest.raises(DataError, match="does not match its own digest"):
        read_release(folder)


def test_the_digest_follows_from_the_threshold_and_the_weights(folder: Path) -> None:
    first = read_release(folder)[0].digest
    restate(folder, threshold=0.125)
    second = read_release(folder)[0].digest
    write_release(folder, manifest(), get_groups(build_model("compact", 4), GROUPS))
    assert len({first, second, read_release(folder)[0].digest}) == 3


@pytest.mark.parametrize("limits", [{"us": 1.5}, {"ct": 0.5}, {"us": "high"}])
def test_a_limit_off_the_scale_is_refused(folder: Path, limits: dict[str, Any]) -> None:
    restate(folder, limits=limits)
    with pytest.raises(DataError, match="limits is missing or wrong"):
        read_release(folder)


def spoil(folder: Path, content: bytes) -> None:
    """Other weights, with the hash that belongs to them."""
    (folder / WEIGHTS_NAME).write_bytes(content)
    restate(folder, sha256=hashlib.sha256(content).hexdigest())


def test_weights_that_are_not_finite_or_of_another_length_are_refused(folder: Path) -> None:
    _, groups = read_release(folder)
    us = groups["us"].copy()
    us[3] = np.nan
    for faulty, said in (
        (us, "us: holds NaN"),
        (us[:-1], r"us: expected float32 of shape \(196136"),
    ):
        spoil(folder, save_tensors(groups | {"us": faulty}))
        with pytest.raises(DataError, match=said):
            read_release(folder)


@pytest.mark.parametrize("kind", ["BF16", "F8_E4M3"])
def test_a_type_that_numpy_does_not_have_is_refused(folder: Path, kind: str) -> None:
    size = {"BF16": 2, "F8_E4M3": 1}[kind]
    header = json.dumps({"us": {"dtype": kind, "shape": [4], "data_offsets": [0, 4 * size]}})
    head = header.encode().ljust(-(-len(header) // 8) * 8)
    spoil(folder, len(head).to_bytes(8, "little") + head + bytes(4 * size))
    with pytest.raises(DataError, match="not a release"):
        read_release(folder)
