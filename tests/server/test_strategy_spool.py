"""The spool: what is refused leaves no trace, little memory, and a disk's faults are told."""

from __future__ import annotations

import math
import os
import resource
import stat
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from her2_common.encoding import decode, encode
from her2_common.errors import RunError, UpdateError
from her2_common.strategy import FedAvg, Median, NormClip, RobustRule, TrimmedMean
from her2_server.strategies import spool as spool_module
from her2_server.strategies.robust import robust_changes
from her2_server.strategies.spool import ROW_BLOCK, Spool
from her2_server.strategies.step import step

SIZES = {"mg": 5, "us": 3}
ONES = {group: np.ones(size, np.float32) for group, size in SIZES.items()}


def read(spool: Spool, group: str) -> np.ndarray:
    """All rows of a group: (sites, n)."""
    return np.concatenate([values for _, values in spool.blocks(group)], axis=1)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The operating system refuses to let a file grow past ``size`` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("block", [1, 2, 7, 2**19])
def test_rows_come_back_by_name_whatever_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(spool_module, "BLOCK_VALUES", block)
    rows = {name: np.random.default_rng(k).normal(size=5) for k, name in enumerate("cab")}
    with Spool(tmp_path / "spool", SIZES) as spool:
        for name, row in rows.items():
            spool.add(name, {"mg": row.astype(np.float32)}, {"mg": ord(name)})
        spool.add("d", {"us": ONES["us"]}, {"us": 4})
        assert spool.sites("mg") == ["a", "b", "c"]
        assert spool.counts("mg") == [97, 98, 99]
        assert spool.groups == ["mg", "us"]
        expected = np.stack([rows[name] for name in "abc"]).astype(np.float32)
        np.testing.assert_array_equal(read(spool, "mg"), expected)
        np.testing.assert_array_equal(read(spool, "us"), [[1, 1, 1]])
        wanted = np.linalg.norm(expected.astype(np.float64), axis=1)
        np.testing.assert_allclose(spool.norms("mg"), wanted, rtol=1e-14)
        assert spool.norms("us") == [math.sqrt(3)]


def test_a_row_longer_than_a_block_is_vetted_measured_and_kept_to_its_end(tmp_path: Path) -> None:
    size = ROW_BLOCK + 3
    row = np.random.default_rng(0).normal(size=size).astype(np.float32)
    broken = row.copy()
    broken[-1] = np.nan
    with Spool(tmp_path / "spool", {"us": size}) as spool:
        with pytest.raises(UpdateError) as caught:
            spool.add("b", {"us": broken}, {"us": 1})
        assert caught.value.reason == "not finite"
        spool.add("a", {"us": row}, {"us": 1})
        np.testing.assert_array_equal(read(spool, "us"), [row])
        assert spool.norms("us")[0] == pytest.approx(np.linalg.norm(row.astype(float)), rel=1e-12)


@pytest.mark.parametrize(
    ("update", "counts", "reason"),
    [
        ({"mg": np.ones(5), "ct": np.ones(1)}, {"mg": 1, "ct": 1}, "unknown group"),
        ({"mg": np.ones(5), "us": np.ones(4)}, {"mg": 1, "us": 1}, "misshapen"),
        ({"mg": np.ones(5)}, {"mg": 1, "us": 1}, "wrong count"),
        ({"mg": np.ones(5), "us": np.ones(3)}, {"mg": 1, "us": 0}, "wrong count"),
        ({"mg": np.ones(5), "us": np.array([1, np.nan, 1])}, {"mg": 1, "us": 1}, "not finite"),
        ({"mg": np.ones(5), "us": np.array([1, 300, 1])}, {"mg": 1, "us": 1}, "out of range"),
    ],
)
def test_what_is_refused_leaves_no_trace(
    tmp_path: Path, update: dict[str, np.ndarray], counts: dict[str, int], reason: str
) -> None:
    with Spool(tmp_path / "spool", SIZES) as spool:
        spool.add("b", {"mg": np.full(5, 2.0, np.float32)}, {"mg": 7})
        with pytest.raises(UpdateError) as caught:
            spool.add("a", {g: v.astype(np.float32) for g, v in update.items()}, counts)
        assert caught.value.reason == reason
        assert spool.groups == ["mg"]
        assert spool.sites("mg") == ["b"]
        spool.add("a", {"mg": np.full(5, 3.0, np.float32)}, {"mg": 1})
        np.testing.assert_array_equal(read(spool, "mg"), [[3] * 5, [2] * 5])


def test_a_second_update_of_a_site_is_refused(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", SIZES) as spool:
        spool.add("a", {"us": ONES["us"]}, {"us": 1})
        with pytest.raises(UpdateError, match="a: expected one update a round") as caught:
            spool.add("a", {"mg": ONES["mg"]}, {"mg": 1})
        assert caught.value.reason == "duplicate"
        assert spool.groups == ["us"]


def test_a_full_disk_is_told_and_the_place_used_again(tmp_path: Path) -> None:
    size = 10_000
    sizes = {"mg": 4, "us": size}

    def update(value: float) -> dict[str, np.ndarray]:
        return {g: np.full(n, value, np.float32) for g, n in sizes.items()}

    counts = {"mg": 1, "us": 1}
    with Spool(tmp_path / "spool", sizes) as spool:
        spool.add("b", update(2), counts)
        with (
            largest_file(6 * size),
            pytest.raises(RunError, match=r"us\.f32: the round's updates cannot be kept") as caught,
        ):
            spool.add("a", update(1), counts)
        assert caught.value.hint is not None
        assert spool.sites("mg") == spool.sites("us") == ["b"]
        spool.add("c", update(3), counts)
        for group in sizes:
            np.testing.assert_array_equal(read(spool, group)[:, 0], [2, 3])
            np.testing.assert_array_equal(read(spool, group)[:, -1], [2, 3])


def test_a_file_that_was_cut_is_told(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", SIZES) as spool:
        spool.add("a", {"mg": ONES["mg"]}, {"mg": 1})
        os.truncate(tmp_path / "spool" / "mg.f32", 19)
        with pytest.raises(RunError, match=r"mg\.f32"):
            read(spool, "mg")


def test_the_folder_is_private_and_leaves_with_the_round(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "spool"
    folder.mkdir(parents=True)
    (folder / "mg.f32").write_bytes(b"of a round that was killed")
    with Spool(folder, SIZES) as spool:
        assert list(folder.iterdir()) == []
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        spool.add("a", {"mg": ONES["mg"]}, {"mg": 1})
        spool.close()
        assert not folder.exists()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match="file/spool: the round's updates cannot be kept"):
        Spool(tmp_path / "file" / "spool", SIZES)


@pytest.mark.parametrize("rule", [Median(), TrimmedMean(), NormClip()], ids=lambda rule: rule.name)
@pytest.mark.parametrize("sites", [4, 64])
def test_memory_stays_under_three_copies_of_the_model(
    tmp_path: Path, sites: int, rule: RobustRule
) -> None:
    """Start, reply or result, and blocks; the model is 8 MiB here, a block 2 MiB."""
    size = 2**21
    copy = 4 * size
    tracemalloc.start()
    try:
        start = {"us": np.zeros(size, np.float32)}
        with Spool(tmp_path / "spool", {"us": size}) as spool:
            for site in range(sites):
                reply = np.full(size, site - 1, np.float32)
                spool.add(f"site-{site}", {"us": reply}, {"us": 1})
                del reply
            new, _ = step(start, {"us": robust_changes(spool, "us", rule)}, {}, FedAvg())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 2 * copy < peak < 3 * copy
    assert len(np.unique(new["us"])) == 1


def test_an_encoded_change_is_kept_as_what_it_says(tmp_path: Path) -> None:
    change = np.random.default_rng(1).normal(size=3000).astype(np.float32)
    for share in (1.0, 0.1):
        encoded = encode(change, "int8", share)[0]
        with Spool(tmp_path / "spool", {"us": 3000}) as spool:
            spool.add("a", {"us": encoded}, {"us": 5})
            np.testing.assert_array_equal(read(spool, "us"), [decode(encoded)])
