"""Checkpoints: whole or not at all, and the newest sound one is found."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from her2_common.broadcast import fingerprint
from her2_common.errors import CheckpointError
from her2_server import checkpoint
from her2_server.checkpoint import Checkpoint

RNG = np.random.default_rng(0)
GROUPS = {"us": RNG.normal(size=7).astype(np.float32), "head": np.array([-0.0], np.float32)}
STATE = {"run": "demo", "seed": 5, "config_sha256": "ab" * 32}


def save(folder: Path, *rounds: int) -> None:
    for number in rounds:
        groups = {g: v + np.float32(number) for g, v in GROUPS.items()}
        checkpoint.save(folder, Checkpoint(number, groups, dict(STATE)))


def same(a: Checkpoint, b: Checkpoint) -> bool:
    bits = [{g: v.tobytes() for m in (c.groups, c.memory) for g, v in m.items()} for c in (a, b)]
    return (a.round, a.state, bits[0]) == (b.round, b.state, bits[1])


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, Checkpoint(3, GROUPS, dict(STATE)))
    loaded = checkpoint.load(tmp_path / "0003")
    assert loaded.round == 3
    assert {g: v.tobytes() for g, v in loaded.groups.items()} == {
        g: v.tobytes() for g, v in GROUPS.items()
    }
    assert STATE.items() <= loaded.state.items()


def test_a_round_that_cannot_be_made_durable_is_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    assert checkpoint.latest(tmp_path).round == 1


def test_nothing_temporary_stays(tmp_path: Path) -> None:
    save(tmp_path, 0, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0000", "0001"]


def test_the_same_round_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 2)
    (tmp_path / "0002" / "left-over").touch()
    new = {"us": np.zeros(2, np.float32)}
    checkpoint.save(tmp_path, Checkpoint(2, new, {"run": "other"}))
    loaded = checkpoint.latest(tmp_path)
    assert loaded.groups["us"].tolist() == [0, 0]
    assert loaded.state["run"] == "other"
    assert not (tmp_path / "0002" / "left-over").exists()


def test_a_loaded_checkpoint_can_be_saved_again(tmp_path: Path) -> None:
    save(tmp_path / "a", 2)
    loaded = checkpoint.load(tmp_path / "a" / "0002")
    checkpoint.save(tmp_path / "b", loaded)
    assert same(checkpoint.load(tmp_path / "b" / "0002"), loaded)


MEMORY = {
    "us.residual": RNG.normal(size=7).astype(np.float32),
    "us.step": np.arange(11, dtype=np.uint8),
    "us.control": np.zeros(7, np.float32),
    "us.control.step": np.ones(3, np.uint8),
    "head.velocity": np.array([2.5], np.float32),
}


def test_what_the_next_round_needs_comes_back_too(tmp_path: Path) -> None:
    saved = checkpoint.save(tmp_path, Checkpoint(4, GROUPS, dict(STATE), MEMORY))
    loaded = checkpoint.load(tmp_path / "0004")
    assert same(saved, loaded)
    assert loaded.memory.keys() == MEMORY.keys()
    for name, tensor in MEMORY.items():
        assert loaded.memory[name].dtype == tensor.dtype
        assert loaded.memory[name].tobytes() == tensor.tobytes()
    assert loaded.state["fingerprints"].keys() == {"us", "us.control", "head"}
    with pytest.raises(KeyError):
        loaded.memory["us.velocity"]


def test_the_library_s_reader_takes_the_files(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, Checkpoint(4, GROUPS, dict(STATE), MEMORY))
    tensors = load_file(tmp_path / "0004" / "us.safetensors")
    assert tensors.keys() == {"weights", "residual", "step", "control", "control.step"}
    assert tensors["weights"].tobytes() == GROUPS["us"].tobytes()


def test_tensors_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    loaded = checkpoint.save(tmp_path, Checkpoint(4, GROUPS, dict(STATE), MEMORY))
    first, second = loaded.groups["us"], loaded.groups["us"]
    first[0] += 1  # the caller's own copy
    assert second.tobytes() == loaded.groups["us"].tobytes() == GROUPS["us"].tobytes()
    (tmp_path / "0004" / "us.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"us\.safetensors: cannot be read"):
        loaded.groups["us"]


def test_the_newest_rounds_and_the_one_that_is_named_stay(tmp_path: Path) -> None:
    for number in range(1, 8):
        draft = checkpoint.Draft(tmp_path, number)
        draft.add("us", {"weights": GROUPS["us"]})
        draft.seal(STATE)
        before = {path.name for path in tmp_path.iterdir()}
        assert f"{number:04d}" not in before  # complete, but not yet visible
        draft.publish(keep=2)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["0002", "0005", "0006", "0007"]


@pytest.mark.parametrize("rounds", [(0,), (0, 1, 2), (9, 10, 11), (9999, 10_000)])
def test_the_newest_is_the_highest_number(tmp_path: Path, rounds: tuple[int, ...]) -> None:
    save(tmp_path, *rounds)
    assert checkpoint.latest(tmp_path).round == rounds[-1]


def test_a_half_written_round_is_never_looked_at(tmp_path: Path) -> None:
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "0001", tmp_path / ".0002.tmp")
    (tmp_path / "0003.old").mkdir()
    told: list[str] = []
    assert checkpoint.latest(tmp_path, told.append).round == 1
    assert told == []
    save(tmp_path, 2)  # the left-over is no hindrance
    assert checkpoint.latest(tmp_path).round == 2


@pytest.mark.parametrize("name", ["state.json", "us.safetensors", "head.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut off"])
def test_a_damaged_round_is_told_and_passed_over(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 1, 2, 3)
    for number in ("0002", "0003"):
        path = tmp_path / number / name
        content = path.read_bytes()
        path.unlink()
        if damage != "missing":
            path.write_bytes(b"" if damage == "empty" else content[:-1])
    told: list[str] = []
    assert checkpoint.latest(tmp_path, told.append).round == 1
    assert [str(tmp_path / n) in text for n, text in zip(("0003", "0002"), told, strict=True)] == [
        True,
        True,
    ]


def test_no_sound_round_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no sound checkpoint") as caught:
        checkpoint.latest(tmp_path)
    assert "her2-server run" in str(caught.value.hint)
    (tmp_path / "0001").mkdir()
    with pytest.raises(CheckpointError, match="no sound checkpoint"):
        checkpoint.latest(tmp_path)


@settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(["state.json", "us.safetensors", "head.safetensors"]),
    share=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_one_flipped_bit_is_noticed(tmp_path: Path, name: str, share: float, bit: int) -> None:
    """Wherever the bit lies, what loads is what was saved, or nothing loads."""
    if not (tmp_path / "0007").exists():
        save(tmp_path, 7)
    path = tmp_path / "0007" / name
    sound, original = checkpoint.load(tmp_path / "0007"), path.read_bytes()
    content = bytearray(original)
    content[int(share * len(content))] ^= 1 << bit
    path.write_bytes(content)
    try:
        loaded = checkpoint.load(tmp_path / "0007")
    except CheckpointError as error:
        assert str(tmp_path / "0007") in str(error)  # noqa: PT017
    else:
        assert name == "state.json"
        assert same(loaded, sound)
    finally:
        path.write_bytes(original)


def test_files_of_two_rounds_do_not_mix(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    shutil.copy(tmp_path / "0001" / "us.safetensors", tmp_path / "0002")
    with pytest.raises(CheckpointError, match="expected SHA-256"):
        checkpoint.load(tmp_path / "0002")


def test_a_round_under_another_number_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "0001").rename(tmp_path / "0009")
    with pytest.raises(CheckpointError, match="expected round 0009, got 1"):
        checkpoint.load(tmp_path / "0009")


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"state_sha256": 5}'])
def test_what_is_no_state(tmp_path: Path, text: str) -> None:
    save(tmp_path, 1)
    (tmp_path / "0001" / "state.json").write_text(text)
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "0001")


def test_the_state_is_readable(tmp_path: Path) -> None:
    save(tmp_path, 1)
    state = json.loads((tmp_path / "0001" / "state.json").read_text())
    assert set(state) == {*STATE, "round", "files", "fingerprints", "state_sha256"}
    assert state["fingerprints"] == {g: fingerprint(v + np.float32(1)) for g, v in GROUPS.items()}
