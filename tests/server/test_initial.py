"""Beginning from a release: what is taken, what begins afresh, what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from her2_client.keys import new_node_key
from her2_common.config import FederationConfig, load
from her2_common.errors import ConfigError
from her2_common.model import GROUPS, build_model, get_groups
from her2_common.release import Manifest, write_release
from her2_server.initial import read_initial
from her2_server.run_folder import RunFolder

KEY = new_node_key()[1]
SIZES: dict[str, Any] = {"image_size": 32, "volume_size": 16}

MakeRelease = Callable[..., dict[str, np.ndarray]]


@pytest.fixture
def make_release(tmp_path: Path) -> MakeRelease:
    """Writes ``her2/``, a release of the model of seed 4; returns its groups."""

    def make(**changes: Any) -> dict[str, np.ndarray]:
        stated: dict[str, Any] = {
            "run": "first",
            "preset": "compact",
            "label": "reference",
            "threshold": 0.5,
            "groups": list(GROUPS),
        }
        manifest = Manifest.model_validate(stated | SIZES | changes)
        groups = get_groups(build_model(manifest.preset, 4, **manifest.layout), GROUPS)
        write_release(tmp_path / "her2", manifest, groups)
        return groups

    return make


def configuration(folder: Path, run: dict[str, Any], **changes: Any) -> FederationConfig:
    """The federation.yaml of a run from ``her2/``, written into ``folder`` and read."""
    document = {
        "name": "second",
        "superlink": {
            "address": "localhost:1",
            "root_certificates": "ca.crt",
            "superexec_secret_file": "s",
        },
        "sites": [{"name": "a", "public_key": KEY}],
        "run": SIZES | run,
        "initial": "her2",
    }
    (folder / "f.yaml").write_text(yaml.safe_dump(document | changes))
    return load(FederationConfig, folder / "f.yaml")


def test_without_a_release_nothing_is_taken(tmp_path: Path) -> None:
    assert read_initial(configuration(tmp_path, {}, initial=None)) is None


def test_with_the_same_label_every_group_is_taken(
    tmp_path: Path, make_release: MakeRelease
) -> None:
    groups = make_release()
    initial = read_initial(configuration(tmp_path, {"label": "reference"}))
    assert initial is not None
    assert {g: v.tobytes() for g, v in initial.taken.items()} == {
        g: v.tobytes() for g, v in groups.items()
    }
    content = (tmp_path / "her2/model.safetensors").read_bytes()
    assert initial.record == {
        "run": "first",
        "label": "reference",
        "trained_on": ["reference"],
        "sha256": hashlib.sha256(content).hexdigest(),
        "groups": list(GROUPS),
        "afresh": [],
    }
    assert str(initial).endswith("mg, us, mri, clinical, head; afresh: none")


@pytest.mark.parametrize("label", ["pcr", "biopsy", "surgical"])
def test_with_another_label_the_encoders_are_taken(
    tmp_path: Path, make_release: MakeRelease, label: str
) -> None:
    make_release()
    initial = read_initial(configuration(tmp_path, {"label": label}))
    assert initial is not None
    assert list(initial.taken) == ["mg", "us", "mri"]
    assert initial.record["afresh"] == ["clinical", "head"]


def test_what_the_release_lacks_begins_afresh(tmp_path: Path, make_release: MakeRelease) -> None:
    make_release(groups=["us", "head"])
    same = read_initial(configuration(tmp_path, {}))
    other = read_initial(configuration(tmp_path, {"label": "pcr"}))
    assert same is not None
    assert other is not None
    assert same.record["groups"] == ["us", "head"]
    assert same.record["afresh"] == ["mg", "mri", "clinical"]
    assert other.record["groups"] == ["us"]


def test_a_release_of_three_levels_may_begin_a_run_about_pcr(
    tmp_path: Path, make_release: MakeRelease
) -> None:
    """Its head has a third output; but the head is not taken."""
    make_release(her2_levels=3)
    initial = read_initial(configuration(tmp_path, {"label": "pcr"}))
    assert initial is not None
    assert list(initial.taken) == ["mg", "us", "mri"]


@pytest.mark.parametrize(
    ("released", "run", "message"),
    [
        ({"image_size": 64}, {}, "run.image_size: expected 64 as in the release, got 32"),
        ({"volume_size": 32}, {}, "run.volume_size: expected 32 as in the release, got 16"),
        ({}, {"preset": "paper"}, "run.preset: expected compact as in the release, got paper"),
        ({"her2_levels": 3}, {}, "run.her2_levels: expected 3 as in the release, got 2"),
        ({}, {"image_size": 64, "label": "pcr"}, "run.image_size: expected 32"),
        ({}, {"preset": "nosuch"}, "run.preset: expected one of"),
    ],
)
def test_another_layout_is_refused_by_its_key(
    tmp_path: Path,
    make_release: MakeRelease,
    released: dict[str, Any],
    run: dict[str, Any],
    message: str,
) -> None:
    make_release(**released)
    config = configuration(tmp_path, run)
    with pytest.raises(ConfigError) as caught:
        read_initial(config)
    assert message in str(caught.value)
    with pytest.raises(ConfigError):
        RunFolder(tmp_path / "run").create(tmp_path / "f.yaml")
    assert not (tmp_path / "run").exists()


def test_sizes_left_to_the_preset_are_compared(tmp_path: Path, make_release: MakeRelease) -> None:
    make_release()
    document = {"image_size": None, "volume_size": None}
    with pytest.raises(ConfigError, match=r"image_size: .* got 128; run\.volume_size: .* got 48"):
        read_initial(configuration(tmp_path, document))


def test_weights_of_another_length_or_not_finite_are_refused(
    tmp_path: Path, make_release: MakeRelease
) -> None:
    groups = make_release()
    manifest = Manifest(
        run="first", preset="compact", label="reference", threshold=0.5, groups=["us", "head"],
        **SIZES,
    )  # fmt: skip
    for faulty in (groups["us"][:-1], np.where(np.arange(groups["us"].size) == 3, np.nan, 0)):
        write_release(tmp_path / "her2", manifest, groups | {"us": faulty.astype(np.float32)})
        with pytest.raises(ConfigError, match=r"initial: .*us: (expected float32|holds NaN)"):
            read_initial(configuration(tmp_path, {}))


def test_no_release(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"initial: .*her2: expected a folder, got nothing"):
        read_initial(configuration(tmp_path, {}))
    (tmp_path / "her2").touch()
    with pytest.raises(ConfigError, match=r"initial: .*her2: expected a folder, got a file"):
        read_initial(configuration(tmp_path, {}))
    (tmp_path / "her2").unlink()
    (tmp_path / "her2").mkdir()
    with pytest.raises(ConfigError, match=r"initial: .*manifest\.json is missing"):
        read_initial(configuration(tmp_path, {}))


# --- the pin ------------------------------------------------------------------------------------


def test_the_weights_are_pinned_and_part_of_the_runs_hash(
    tmp_path: Path, make_release: MakeRelease
) -> None:
    hashes = set()
    for name, release in (("a", {}), ("b", {"her2_levels": 3}), ("c", None)):
        initial = None if release is None else "her2"
        if release is not None:
            make_release(**release)
        configuration(tmp_path, {"label": "pcr"}, initial=initial)
        folder = RunFolder(tmp_path / name)
        folder.create(tmp_path / "f.yaml")
        hashes.add(folder.config_hash())
        pinned = folder.load_config().initial_sha256
        content = (tmp_path / "her2/model.safetensors").read_bytes()
        assert pinned == (hashlib.sha256(content).hexdigest() if initial else None)
    assert len(hashes) == 3


def test_weights_that_changed_since_are_refused(tmp_path: Path, make_release: MakeRelease) -> None:
    make_release()
    configuration(tmp_path, {"label": "pcr"})
    folder = RunFolder(tmp_path / "run")
    folder.create(tmp_path / "f.yaml")
    make_release(her2_levels=3)
    with pytest.raises(ConfigError, match="expected weights with SHA-256"):
        read_initial(folder.load_config())


def test_a_pin_may_be_written_by_hand(tmp_path: Path, make_release: MakeRelease) -> None:
    make_release()
    sha256 = hashlib.sha256((tmp_path / "her2/model.safetensors").read_bytes()).hexdigest()
    assert read_initial(configuration(tmp_path, {}, initial_sha256=sha256)) is not None
    with pytest.raises(ConfigError, match=r"SHA-256 000000000000\.\.\., got "):
        read_initial(configuration(tmp_path, {}, initial_sha256="0" * 64))
    with pytest.raises(ConfigError, match="expected a release folder in initial, got none"):
        configuration(tmp_path, {}, initial=None, initial_sha256=sha256)
