"""A site's memory: whole or an error, the right round, and the same bits after any kill."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from her2_client.site_memory import RUNS_KEPT, Memory, load, rounds, save
from her2_common.errors import CheckpointError

RUN = "demo"
DTYPES = [np.dtype(t) for t in ("f4", "f8", "f2", "u1", "i1", "i2", "i4", "i8", "?")]
contents = st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(
        lambda name: name != "__metadata__"
    ),
    st.sampled_from(DTYPES).flatmap(lambda t: arrays(t, array_shapes(min_dims=0, min_side=0))),
    max_size=4,
)


def memory(number: int, size: int = 1000) -> dict[str, np.ndarray]:
    """Arrays that tell their round."""
    return {
        "residual/us": np.full(size, number, np.float32),
        "held/us": np.arange(size, dtype=np.float32) + number,
    }


def bits(arrays_: dict[str, np.ndarray]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in arrays_.items()}


def file_of(state: Path, number: int, run: str = RUN) -> Path:
    return state / "memory" / run / f"{number:05d}.safetensors"


def refusal(state: Path, number: int, run: str = RUN) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        load(state, run, number)
    assert caught.value.hint is not None
    assert "restore" in caught.value.hint
    return caught.value


# --- what is kept ---------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(contents)
def test_what_is_saved_comes_back_bit_for_bit(
    tmp_path: Path, content: dict[str, np.ndarray]
) -> None:
    save(tmp_path, RUN, 1, content, base=0)
    assert bits(load(tmp_path, RUN, 1)) == bits(content)


def test_arrays_that_are_views_come_back_as_they_look(tmp_path: Path) -> None:
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    other = {"t": whole.T, "every": whole[:, ::2], "big": whole.astype(">f4")}
    save(tmp_path, RUN, 1, other, base=0)
    loaded = load(tmp_path, RUN, 1)
    assert loaded["t"].tolist() == whole.T.tolist()
    assert loaded["every"].tolist() == whole[:, ::2].tolist()
    assert loaded["big"].tolist() == whole.tolist()


def test_what_was_saved_last_is_at_hand_and_all_else_is_read(tmp_path: Path) -> None:
    of = Memory(tmp_path)
    for number in (1, 2):
        of.save(RUN, number, {"t": np.full(3, number, np.float32)}, base=number - 1)
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(b"damaged")
    kept = of.load(RUN, 2)
    assert kept["t"].tolist() == [2, 2, 2]
    kept.clear()  # the caller's own
    assert of.load(RUN, 2).keys() == {"t"}
    assert of.load(RUN, 0) == {}
    for run, number in ((RUN, 1), ("other", 2)):
        with pytest.raises(CheckpointError):
            of.load(run, number)
    with pytest.raises(CheckpointError):
        Memory(tmp_path).load(RUN, 2)


def test_a_run_begins_with_an_empty_memory(tmp_path: Path) -> None:
    assert load(tmp_path, RUN, 0) == {}
    save(tmp_path, RUN, 1, memory(1), base=0)
    assert load(tmp_path, RUN, 0) == {}


def test_a_round_its_base_and_the_base_of_that_stay(tmp_path: Path) -> None:
    for number in range(1, 6):
        save(tmp_path, RUN, number, memory(number), base=number - 1)
        assert rounds(tmp_path, RUN) == [n for n in (number - 2, number - 1, number) if n > 0]
    for number in (3, 4, 5):
        assert bits(load(tmp_path, RUN, number)) == bits(memory(number))
    assert "expected this site's memory of round 2" in str(refusal(tmp_path, 2))


def test_a_run_that_keeps_more_rounds_keeps_as_many_memories(tmp_path: Path) -> None:
    for number in (1, 2, 3, 4, 5, 6, 7):
        save(tmp_path, RUN, number, memory(number), base=number - 1, kept=5)
    assert rounds(tmp_path, RUN) == [3, 4, 5, 6, 7]
    save(tmp_path, RUN, 5, memory(50), base=4, kept=5)  # the coordinator has gone back
    assert rounds(tmp_path, RUN) == [3, 4, 5]
    save(tmp_path, RUN, 6, memory(6), base=5, kept=3)
    assert rounds(tmp_path, RUN) == [4, 5, 6]


def test_a_base_stays_while_updates_are_not_folded_in(tmp_path: Path) -> None:
    save(tmp_path, RUN, 1, memory(1), base=0)
    save(tmp_path, RUN, 2, memory(2), base=1)
    for number in (3, 4, 7):
        save(tmp_path, RUN, number, memory(number), base=2)
        assert rounds(tmp_path, RUN) == [1, 2, number]
    assert bits(load(tmp_path, RUN, 2)) == bits(memory(2))
    save(tmp_path, RUN, 8, memory(8), base=7)
    assert rounds(tmp_path, RUN) == [2, 7, 8]


def test_a_round_that_comes_again_has_its_base_and_replaces_the_round(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        save(tmp_path, RUN, number, memory(number), base=number - 1)
    before = load(tmp_path, RUN, 2)
    save(tmp_path, RUN, 3, memory(30), base=2)
    assert bits(load(tmp_path, RUN, 2)) == bits(before)
    assert bits(load(tmp_path, RUN, 3)) == bits(memory(30))


def test_a_coordinator_that_lost_its_newest_checkpoint_can_go_back(tmp_path: Path) -> None:
    """It was in round 5, finds checkpoint 4 damaged and orders round 4 again, with base 3."""
    for number in range(1, 6):
        save(tmp_path, RUN, number, memory(number), base=number - 1)
    assert bits(load(tmp_path, RUN, 3)) == bits(memory(3))
    save(tmp_path, RUN, 4, memory(4), base=3)
    assert rounds(tmp_path, RUN) == [3, 4]  # round 5 is of a past that did not happen
    save(tmp_path, RUN, 5, memory(5), base=4)
    assert rounds(tmp_path, RUN) == [3, 4, 5]


def test_another_run_is_not_seen(tmp_path: Path) -> None:
    save(tmp_path, "one", 1, memory(1), base=0)
    assert rounds(tmp_path, "two") == []
    refusal(tmp_path, 1, "two")
    save(tmp_path, "two", 1, memory(2), base=0)
    assert bits(load(tmp_path, "one", 1)) == bits(memory(1))


def test_the_oldest_runs_go(tmp_path: Path) -> None:
    names = [f"run-{i}" for i in range(RUNS_KEPT + 3)]
    for age, name in enumerate(names):
        save(tmp_path, name, 1, memory(1), base=0)
        os.utime(file_of(tmp_path, 1, name), ns=(age * 10**9, age * 10**9))
    assert sorted(p.name for p in (tmp_path / "memory").iterdir()) == names[-RUNS_KEPT:]
    # The run at work stays whatever the clock says, and one half removed goes first.
    file_of(tmp_path, 1, names[-1]).unlink()
    save(tmp_path, names[0], 1, memory(1), base=0)
    os.utime(file_of(tmp_path, 1, names[0]), ns=(0, 0))
    save(tmp_path, names[0], 2, memory(2), base=1)
    left = sorted(p.name for p in (tmp_path / "memory").iterdir())
    assert left == [names[0], names[-3], names[-2]][:RUNS_KEPT]


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    save(tmp_path, RUN, 1, memory(1), base=0)
    path = file_of(tmp_path, 1)
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (path, path.parent, path.parent.parent)]
    assert modes == [0o600, 0o700, 0o700]


@pytest.mark.parametrize("run", ["", "..", "a/b", "A", "-a", "a\n", "a" * 81])
def test_a_run_that_is_no_folder_name_is_refused(tmp_path: Path, run: str) -> None:
    with pytest.raises(ValueError, match="expected lower-case"):
        save(tmp_path, run, 1, {}, base=0)
    with pytest.raises(ValueError, match="expected lower-case"):
        load(tmp_path, run, 1)


@pytest.mark.parametrize(("number", "base"), [(0, 0), (1, 1), (1, -1), (3, 4)])
def test_a_base_lies_before_its_round(tmp_path: Path, number: int, base: int) -> None:
    with pytest.raises(ValueError, match="expected a base before"):
        save(tmp_path, RUN, number, {}, base=base)


# --- damage ---------------------------------------------------------------------------------------


def test_any_flipped_bit_is_an_error(tmp_path: Path) -> None:
    save(tmp_path, RUN, 1, memory(1, size=5), base=0)
    path = file_of(tmp_path, 1)
    content = path.read_bytes()
    for position in range(len(content)):
        flipped = content[position] ^ (1 << position % 8)
        path.write_bytes(content[:position] + bytes([flipped]) + content[position + 1 :])
        assert str(path) in str(refusal(tmp_path, 1))


@pytest.mark.parametrize("length", [0, 10, 23, 40, 55, 60, 500, 8000])
def test_a_file_cut_off_is_an_error(tmp_path: Path, length: int) -> None:
    save(tmp_path, RUN, 1, memory(1), base=0)
    path = file_of(tmp_path, 1)
    content = path.read_bytes()
    assert len(content) > length
    path.write_bytes(content[:length])
    refusal(tmp_path, 1)


def test_the_memory_of_another_round_or_run_is_an_error(tmp_path: Path) -> None:
    save(tmp_path, RUN, 1, memory(1), base=0)
    save(tmp_path, RUN, 2, memory(2), base=1)
    save(tmp_path, "other", 2, memory(2), base=0)
    file_of(tmp_path, 2).write_bytes(file_of(tmp_path, 1).read_bytes())
    assert "another run or round" in str(refusal(tmp_path, 2))
    file_of(tmp_path, 2).write_bytes(file_of(tmp_path, 2, "other").read_bytes())
    assert "another run or round" in str(refusal(tmp_path, 2))


def test_a_memory_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    file_of(tmp_path, 1).mkdir(parents=True)
    assert "cannot be read" in str(refusal(tmp_path, 1))


def test_a_full_disk_is_an_error_and_the_base_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, RUN, 1, memory(1), base=0)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match="No space left") as caught:
            save(tmp_path, RUN, 2, memory(2), base=1)
    assert caught.value.hint is not None
    assert "make room" in caught.value.hint
    assert rounds(tmp_path, RUN) == [1]
    save(tmp_path, RUN, 2, memory(2), base=1)
    assert sorted(p.name for p in file_of(tmp_path, 1).parent.iterdir()) == [
        "00001.safetensors",
        "00002.safetensors",
    ]


# --- killed ---------------------------------------------------------------------------------------


class KilledError(BaseException):
    """Stands for kill -9: nothing between it and the test may catch it."""


STEPS = ("os.open", "os.fsync", "pathlib.Path.replace", "pathlib.Path.unlink", "shutil.rmtree")


def test_a_kill_before_any_step_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before its first, second, ... call of the system until a ``save`` comes through."""
    calls = 0
    deadly = -1

    def deadly_at(step: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == deadly:
                raise KilledError
            return step(*arguments, **options)

        return call

    seen = set()
    for deadly in range(1, 50):
        state = tmp_path / str(deadly)
        for name in [f"old-{i}" for i in range(RUNS_KEPT - 1)]:
            save(state, name, 1, memory(1), base=0)
            os.utime(file_of(state, 1, name), ns=(0, 0))
        for number in (1, 2, 3):
            save(state, RUN, number, memory(number), base=number - 1)
        spare = state / "memory" / "a-spare"  # one run too many: RUN's next save drops it
        spare.mkdir()
        os.utime(spare, ns=(0, 0))
        calls = 0
        with monkeypatch.context() as patch:
            for name in STEPS:
                target, attribute = name.rsplit(".", 1)
                owner: Any = Path if target == "pathlib.Path" else sys.modules[target]
                patch.setattr(owner, attribute, deadly_at(getattr(owner, attribute)))
            try:
                save(state, RUN, 4, memory(4), base=3)
                ended = True
            except KilledError:
                ended = False
        present = rounds(state, RUN)
        seen.add(tuple(present))
        for number in present:
            assert bits(load(state, RUN, number)) == bits(memory(number))
        assert {2, 3} <= set(present)
        if ended:
            assert not spare.exists()
            break
        save(state, RUN, 4, memory(4), base=3)  # as the order that comes again
        assert not spare.exists()
        assert sorted(p.name for p in file_of(state, 4).parent.iterdir()) == [
            "00002.safetensors",
            "00003.safetensors",
            "00004.safetensors",
        ]
    assert ended
    assert seen == {(1, 2, 3), (1, 2, 3, 4), (2, 3, 4)}


WORKER = """
import sys
from pathlib import Path

import numpy as np

from her2_client.site_memory import load, save

state, first, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for number in range(first, first + int(sys.argv[4])):
    before = load(state, "demo", number - 1)
    after = np.arange(size, dtype=np.float32) * np.float32(number)
    if before:
        after += before["residual"] / np.float32(3)
    sys.stdout.write(f"begin {number}\\n")  # in one piece, also to an unbuffered pipe
    sys.stdout.flush()
    save(state, "demo", number, {"residual": after}, base=number - 1)
    sys.stdout.write(f"saved {number}\\n")
    sys.stdout.flush()
"""
"""A site whose memory of a round follows from that of the round before."""

SIZE = 1_000_000
KILLS = 30


def undisturbed(last: int) -> np.ndarray:
    residual = np.zeros(SIZE, np.float32)
    for number in range(1, last + 1):
        after = np.arange(SIZE, dtype=np.float32) * np.float32(number)
        residual = after + residual / np.float32(3) if number > 1 else after
    return residual


def test_killed_again_and_again_it_ends_with_the_bits_of_an_undisturbed_one(
    tmp_path: Path,
) -> None:
    """kill -9 at moments drawn by a seed; the next worker is sent the round after the last told."""
    rng = np.random.default_rng(7)
    done, during = 0, 0
    for _ in range(KILLS):
        command = [sys.executable, "-c", WORKER, str(tmp_path), str(done + 1), str(SIZE), "1000"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            told = [worker.stdout.readline() for _ in range(1 + 2 * int(rng.integers(0, 3)))]
            time.sleep(float(rng.uniform(0, 0.03)))
            worker.kill()
            told += worker.stdout.readlines()
        assert worker.returncode == -9
        saved = [int(line.split()[1]) for line in told if line.startswith("saved")]
        done = saved[-1] if saved else done
        during += told[-1].startswith("begin")
        present = rounds(tmp_path, "demo")
        assert done in [0, *present]
        assert set(present) <= {done - 2, done - 1, done, done + 1}
        for number in present:
            load(tmp_path, "demo", number)  # whole
    assert during >= KILLS // 3  # the others met the time between two saves
    last = [sys.executable, "-c", WORKER, str(tmp_path), str(done + 1), str(SIZE), "1"]
    subprocess.run(last, check=True, capture_output=True)
    assert bits(load(tmp_path, "demo", done + 1)) == bits({"residual": undisturbed(done + 1)})
