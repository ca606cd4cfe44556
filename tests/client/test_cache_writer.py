"""An interrupted writer goes on where it was, and nobody can tell from the bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from her2_client.cache import image_shape, open_cache, read_outcomes, verify_cache
from her2_client.cache_writer import CacheWriter, Record
from her2_common.cases import MODALITIES, Modality
from her2_common.errors import CacheError
from her2_common.files import sync_folder

S, V = 32, 16
LABELS = {"reference": 1, "biopsy": 0, "surgical": 1, "pcr": None}


class Stop(Exception):  # noqa: N818 - the tests' own interruption
    """Stands for a kill: nothing after it is written."""


def modality_of(key: str) -> Modality:
    return MODALITIES[sum(key.encode()) % 3]


def image_of(key: str) -> Any:
    """None for every fifth key: an image that was refused."""
    if sum(key.encode()) % 5 == 0:
        return None
    rng = np.random.default_rng(list(key.encode()))
    return rng.normal(size=image_shape(modality_of(key), S, V)).astype(np.float16)


def write(
    folder: Path, keys: Sequence[str], *, stop_after: int | None = None, stale: Sequence[str] = ()
) -> list[str]:
    """Write a cache with a case for each key; returns the keys whose image had to be made."""
    made = []
    with CacheWriter(folder, site="t", image_size=S, volume_size=V) as writer:
        writer.begin(keys, lambda record: record["key"] not in stale)
        for number, key in enumerate(keys):
            if number == stop_after:
                raise Stop
            modality = modality_of(key)
            record: Record | None = writer.recall(key, modality)
            if record is None:
                made.append(key)
                record = writer.put(key, modality, {"note": f"of {key}"}, image_of(key))
            if record["row"] is not None:
                writer.add_case(
                    pseudonym=key.rjust(24, "0"),
                    split="train",
                    clinical=(None,) * 5,
                    labels=LABELS,
                    rows={modality: record["row"]},
                )
        writer.publish()
    return made


def content(folder: Path) -> dict[str, bytes]:
    """Every byte below, the generation's number aside."""
    (generation,) = [path for path in folder.iterdir() if path.name.isdigit()]
    files = {path.name: path.read_bytes() for path in generation.iterdir()}
    open_cache(folder)
    return files


KEYS = [f"key{number}" for number in range(12)]


@pytest.mark.parametrize("stop", range(12))
def test_it_goes_on_where_it_was(tmp_path: Path, stop: int) -> None:
    write(tmp_path / "whole", KEYS)
    with pytest.raises(Stop):
        write(tmp_path / "cut", KEYS, stop_after=stop)
    assert write(tmp_path / "cut", KEYS) == KEYS[stop:]
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert not list((tmp_path / "cut").glob(".former")) + list((tmp_path / "cut").glob(".writing"))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    stop=st.integers(0, 11),
    name=st.sampled_from(["outcomes.jsonl", "mg.npy", "us.npy", "mri.npy"]),
    cut=st.integers(0, 40_000),
    flip=st.booleans(),
)
def test_whatever_a_crash_did_to_the_files(
    tmp_path: Path, stop: int, name: str, cut: int, flip: bool
) -> None:
    """Bytes missing at the end, or one byte wrong anywhere: what is not whole is made again."""
    folder = tmp_path / "cut"
    shutil.rmtree(folder, ignore_errors=True)
    if not (tmp_path / "whole").exists():
        write(tmp_path / "whole", KEYS)
    with pytest.raises(Stop):
        write(folder, KEYS, stop_after=stop)
    path = folder / ".writing" / name
    if path.exists():
        data = bytearray(path.read_bytes())
        if flip and data:
            data[cut % len(data)] ^= 0x10
        elif not flip:
            data = data[: max(0, len(data) - cut)]
        path.write_bytes(data)
    write(folder, KEYS)
    verify_cache(folder)
    whole, mended = content(tmp_path / "whole"), content(folder)
    assert mended["mg.npy"] == whole["mg.npy"]
    assert mended["us.npy"] == whole["us.npy"]
    assert mended["mri.npy"] == whole["mri.npy"]
    if not (flip and name == "outcomes.jsonl"):  # a letter of a note may have changed
        assert mended == whole


def test_a_second_cache_copies_what_is_unchanged(tmp_path: Path) -> None:
    write(tmp_path / "a", KEYS)
    assert write(tmp_path / "a", KEYS) == []
    changed = [*KEYS[:3], "new", *KEYS[4:], "more"]
    assert write(tmp_path / "a", changed) == ["new", "more"]
    write(tmp_path / "b", changed)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_what_is_stale_is_made_again(tmp_path: Path) -> None:
    write(tmp_path / "a", KEYS)
    assert write(tmp_path / "a", KEYS, stale=KEYS[2:4]) == KEYS[2:4]
    with pytest.raises(Stop):
        write(tmp_path / "b", KEYS, stop_after=8)
    assert write(tmp_path / "b", KEYS, stale=KEYS[2:4]) == [*KEYS[2:4], *KEYS[8:]]


def test_a_table_changed_after_an_interruption_keeps_what_it_can(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        write(tmp_path / "a", KEYS, stop_after=9)
    turned = KEYS[::-1]
    with pytest.raises(Stop):
        write(tmp_path / "a", turned, stop_after=5)  # interrupted once more
    assert write(tmp_path / "a", turned) == []
    write(tmp_path / "b", turned)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_what_is_no_longer_wanted_is_gone(tmp_path: Path) -> None:
    """A patient who is taken out of the table is in no byte of the next cache."""
    with pytest.raises(Stop):
        write(tmp_path / "a", KEYS, stop_after=9)
    key = next(key for key in KEYS if image_of(key) is not None)
    needle = image_of(key).tobytes()
    assert needle in (tmp_path / "a" / ".writing" / f"{modality_of(key)}.npy").read_bytes()
    write(tmp_path / "a", [k for k in KEYS if k != key])
    for path in (tmp_path / "a").rglob("*"):
        assert not path.is_file() or (needle not in path.read_bytes())
        assert not path.is_file() or key.encode() + b'"' not in path.read_bytes()


def test_damage_in_the_present_cache_is_made_again(tmp_path: Path) -> None:
    write(tmp_path / "a", KEYS)
    before = content(tmp_path / "a")
    (path,) = (tmp_path / "a").glob("*/us.npy")
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    last = [k for k in KEYS if modality_of(k) == "us" and image_of(k) is not None][-1]
    assert write(tmp_path / "a", KEYS) == [last]
    assert content(tmp_path / "a") == before


def test_outcomes_are_kept_and_guarded(tmp_path: Path) -> None:
    write(tmp_path, KEYS)
    assert [record["note"] for record in read_outcomes(tmp_path)] == [f"of {k}" for k in KEYS]
    (path,) = tmp_path.glob("*/outcomes.jsonl")
    path.write_text(path.read_text().replace("of key3", "of key4"))
    with pytest.raises(CacheError, match=r"outcomes\.jsonl has changed"):
        read_outcomes(tmp_path)
    path.unlink()
    with pytest.raises(CacheError, match=r"outcomes\.jsonl is missing"):
        read_outcomes(tmp_path)
    assert write(tmp_path, KEYS) == KEYS  # nothing to trust, so everything is made again


def test_other_sizes_are_another_cache(tmp_path: Path) -> None:
    write(tmp_path, KEYS)
    with CacheWriter(tmp_path, site="t", image_size=S, volume_size=2 * V) as writer:
        writer.begin(KEYS)
        for key in KEYS:
            if modality_of(key) == "mri" and image_of(key) is not None:
                assert writer.recall(key, "mri") is None


@pytest.mark.parametrize("name", ["2023", "4711", "20231107", ".writing", "0001"])
def test_a_folder_of_a_hospital_is_never_taken_for_ours(tmp_path: Path, name: str) -> None:
    """Years, dates and patients' numbers are names of folders, and a slip of site.yaml is human."""
    path = tmp_path / name / "IM1.dcm"
    path.parent.mkdir()
    path.write_text("a mammogram")
    with pytest.raises(CacheError, match="expected a cache or an empty folder"):
        write(tmp_path, KEYS)
    assert path.read_text() == "a mammogram"
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("failing", range(9))
def test_a_stop_at_any_step_of_publishing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Every rename, replacement and sync of ``publish``: the work is kept, one cache is left."""
    write(tmp_path / "whole", KEYS)
    folder = tmp_path / "cut"
    steps = [0]

    def stepped(real: Any) -> Any:
        def step(*arguments: Any, **options: Any) -> Any:
            if armed:
                steps[0] += 1
                if steps[0] == failing + 1:
                    raise Stop
            return real(*arguments, **options)

        return step

    armed: list[bool] = []
    publish = CacheWriter.publish

    def armed_publish(self: CacheWriter, in_table: int | None = None) -> None:
        armed.append(True)
        publish(self, in_table)

    monkeypatch.setattr(CacheWriter, "publish", armed_publish)
    monkeypatch.setattr(Path, "rename", stepped(Path.rename))
    monkeypatch.setattr(Path, "replace", stepped(Path.replace))
    monkeypatch.setattr("her2_client.cache_writer.sync_folder", stepped(sync_folder))
    monkeypatch.setattr("her2_client.cache_writer.os.fsync", stepped(os.fsync))
    stopped = False
    try:
        write(folder, KEYS)
    except Stop:
        stopped = True
    monkeypatch.undo()
    assert stopped or failing >= steps[0]
    assert write(folder, KEYS) == []
    assert content(folder) == content(tmp_path / "whole")


def test_put_wants_begin(tmp_path: Path) -> None:
    with (
        CacheWriter(tmp_path, site="t", image_size=S, volume_size=V) as writer,
        pytest.raises(ValueError, match="expected begin"),
    ):
        writer.put("k", "us", {}, None)
