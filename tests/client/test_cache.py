"""The cache: what is written comes back, damage is refused, replacement is one step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.caches import add

from her2_client.cache import image_shape, open_cache, verify_cache
from her2_client.cache_writer import CacheWriter
from her2_common.cases import MODALITIES
from her2_common.errors import CacheError

S, V = 32, 16
LABELS = {"reference": 1, "biopsy": 0, "surgical": 1, "pcr": None}
LEVELS = ("zero", "low", "positive")


def writer(folder: Path) -> CacheWriter:
    return CacheWriter(folder, site="centre-t", image_size=S, volume_size=V)


def case(number: int, *modalities: Any) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    return {
        "pseudonym": f"{number:024x}",
        "split": ("train", "val", "test")[number % 3],
        "clinical": (50.5 + number, None, 2, 0, 1),
        "labels": LABELS,
        "levels": dict.fromkeys(("reference", "surgical"), LEVELS[number % 3]) | {"biopsy": None},
        "images": {m: rng.normal(size=image_shape(m, S, V)).astype(np.float16) for m in modalities},
    }


def fill(folder: Path, *cases: dict[str, Any]) -> None:
    with writer(folder) as new:
        new.begin()
        for one in cases:
            add(new, **one)
        new.publish()


CASES = (case(0, "mg", "us", "mri"), case(1, "us"), case(2, "mri", "us"), case(3, "mg"))


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    fill(tmp_path / "cache", *CASES)
    cache = open_cache(tmp_path / "cache")
    assert len(cache) == 4
    assert (cache.site, cache.image_size, cache.volume_size) == ("centre-t", S, V)
    assert cache.pseudonyms == tuple(one["pseudonym"] for one in CASES)
    assert cache.split.tolist() == [0, 1, 2, 0]
    assert cache.split.dtype == np.int8
    assert cache.clinical.dtype == np.float32
    np.testing.assert_array_equal(cache.clinical[:, 0], [50.5, 51.5, 52.5, 53.5])
    assert np.isnan(cache.clinical[:, 1]).all()
    assert {kind: column.tolist() for kind, column in cache.labels.items()} == {
        "reference": [1] * 4, "biopsy": [0] * 4, "surgical": [1] * 4, "pcr": [-1] * 4,
        "pcr_strict": [-1] * 4,
    }  # fmt: skip
    assert {kind: column.tolist() for kind, column in cache.levels.items()} == {
        "reference": [0, 1, 2, 0], "biopsy": [-1] * 4, "surgical": [0, 1, 2, 0], "pcr": [-1] * 4,
        "pcr_strict": [-1] * 4,
    }  # fmt: skip
    assert cache.levels["reference"].dtype == np.int8
    assert {m: rows.tolist() for m, rows in cache.rows.items()} == {
        "mg": [0, -1, -1, 1], "us": [0, 1, 2, -1], "mri": [0, -1, 1, -1],
    }  # fmt: skip
    for index, one in enumerate(CASES):
        for modality in MODALITIES:
            row = cache.rows[modality][index]
            assert (row >= 0) == (modality in one["images"])
            if row >= 0:
                np.testing.assert_array_equal(cache.arrays[modality][row], one["images"][modality])
    verify_cache(tmp_path / "cache")


def test_arrays_are_mapped_and_read_only(tmp_path: Path) -> None:
    fill(tmp_path, *CASES)
    cache = open_cache(tmp_path)
    for modality in MODALITIES:
        assert isinstance(cache.arrays[modality], np.memmap)
        assert not cache.arrays[modality].flags.writeable


def test_a_modality_that_no_case_has_is_an_empty_array(tmp_path: Path) -> None:
    fill(tmp_path, case(0, "us"))
    cache = open_cache(tmp_path)
    assert cache.arrays["mri"].shape == (0, 1, V, V, V)
    assert cache.arrays["mg"].shape == (0, 4, S, S)
    verify_cache(tmp_path)


def test_no_cache_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no cache") as caught:
        open_cache(tmp_path / "none")
    assert caught.value.hint == "run: her2-client ingest"


@pytest.mark.parametrize("name", ["mg", "us", "mri"])
@pytest.mark.parametrize("damage", ["missing", "short", "long", "header"])
def test_a_damaged_array_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    fill(tmp_path, *CASES)
    (path,) = tmp_path.glob(f"*/{name}.npy")
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        path.write_bytes(data[:-2])
    elif damage == "long":
        path.write_bytes(data + b"\x00\x00")
    else:
        path.write_bytes(data.replace(b"<f2", b"<i2", 1))
    with pytest.raises(CacheError, match="damaged") as caught:
        open_cache(tmp_path)
    assert caught.value.hint == "run: her2-client ingest"


def test_a_flipped_bit_is_found_when_the_cache_is_verified(tmp_path: Path) -> None:
    fill(tmp_path, *CASES)
    (path,) = tmp_path.glob("*/us.npy")
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    open_cache(tmp_path)
    with pytest.raises(CacheError, match=r"us\.npy has changed"):
        verify_cache(tmp_path)


def test_an_edited_index_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, *CASES)
    path = tmp_path / "index.json"
    document = json.loads(path.read_text())
    document["index"]["labels"]["reference"][0] = 0
    path.write_text(json.dumps(document))
    with pytest.raises(CacheError, match="does not match its SHA-256"):
        open_cache(tmp_path)
    path.write_text(path.read_text()[:-9])
    with pytest.raises(CacheError, match="damaged"):
        open_cache(tmp_path)
    path.write_text("{}")
    with pytest.raises(CacheError, match="expected a her2-map cache"):
        open_cache(tmp_path)
    path.write_text(json.dumps(document | {"version": 99}))
    with pytest.raises(CacheError, match=r"expected cache version \d+, got 99"):
        open_cache(tmp_path)


def test_without_publish_the_present_cache_stays(tmp_path: Path) -> None:
    fill(tmp_path, *CASES)
    with writer(tmp_path) as new:
        new.begin()
        add(new, **CASES[1])
    with writer(tmp_path) as new:
        new.begin()
        with pytest.raises(AttributeError):
            add(new, **(CASES[1] | {"labels": None}))
    verify_cache(tmp_path)
    assert len(open_cache(tmp_path)) == 4
    fill(tmp_path, CASES[2])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "0002", "index.json"]


def test_a_new_cache_replaces_the_old_one_which_its_readers_keep(tmp_path: Path) -> None:
    fill(tmp_path, *CASES)
    old = open_cache(tmp_path)
    fill(tmp_path, CASES[1])
    assert len(open_cache(tmp_path)) == 1
    np.testing.assert_array_equal(old.arrays["mg"][1], CASES[3]["images"]["mg"])
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["0002"]


def test_a_reader_that_is_overtaken_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, *CASES)
    import her2_client.cache as module

    read, overtaken = module.read_index, []

    def read_then_replace(folder: Path) -> dict[str, Any]:
        index = read(folder)
        if not overtaken:
            overtaken.append(True)
            monkeypatch.setattr(module, "read_index", read)
            fill(tmp_path, CASES[1])
        return index

    monkeypatch.setattr(module, "read_index", read_then_replace)
    assert len(open_cache(tmp_path)) == 1


def test_two_writers_refuse_each_other(tmp_path: Path) -> None:
    with writer(tmp_path), pytest.raises(CacheError, match="another ingest"), writer(tmp_path):
        pass
    fill(tmp_path, *CASES)  # the lock is free again


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("years of work")
    with pytest.raises(CacheError, match="expected a cache or an empty folder"), writer(tmp_path):
        pass
    assert (tmp_path / "thesis.docx").read_text() == "years of work"


def test_wrong_shapes_and_values_are_refused(tmp_path: Path) -> None:
    with writer(tmp_path) as new:
        new.begin()
        for bad in (np.zeros((1, S, S + 1)), np.full((1, S, S), np.nan)):
            with pytest.raises(ValueError, match="expected finite values of shape"):
                add(new, **(CASES[1] | {"images": {"us": bad}}))


KILLED = """
    import sys, time
    from pathlib import Path
    import numpy as np
    from her2_client.cache_writer import CacheWriter
    with CacheWriter(Path(sys.argv[1]), site="x", image_size=32, volume_size=16) as new:
        new.begin()
        new.put("key", "us", {}, np.ones((1, 32, 32), dtype=np.float16))
        print("writing", flush=True)
        time.sleep(60)
"""


@pytest.mark.skipif(os.name != "posix", reason="kills a process by signal")
def test_a_killed_writer_leaves_the_present_cache_and_no_lock(tmp_path: Path) -> None:
    fill(tmp_path, *CASES)
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"writing\n"
        with pytest.raises(CacheError, match="another ingest"), writer(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=20)
    assert len(open_cache(tmp_path)) == 4
    fill(tmp_path, CASES[1])
    assert len(open_cache(tmp_path)) == 1
    assert not (tmp_path / ".writing").exists()
