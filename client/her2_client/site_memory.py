"""What a site keeps between the rounds of a run, so that a killed one continues with the same bits.

Named arrays a round: what roundings left over (her2_common.encoding), the weights that the site
holds, groups that never leave it. An order names its base: the last round in which an update of
this site was folded in, 0 if there was none.

1. ``load`` the memory of the base; that of round 0 is empty.
2. Train, and ``save`` the round's memory before the reply leaves.
3. The memories of this round, of its base and of the base's own base stay (more of this chain, if
   the run keeps more rounds to go back to), all others go. So an order that comes again (a retry, a
   coordinator that resumes, be it from the checkpoint before its newest) starts from the same
   memory and gives the same bits, and the next order finds its base whether or not this update is
   folded in.

A memory is one file, ``memory/<run>/<round>.safetensors`` under site.yaml's ``state``, with a
SHA-256 over run, round and arrays. <run> is the run's name and its id, so that two runs of one name
stay apart. It is written under a temporary name, fsynced and renamed: a
kill at any moment leaves the old state or the new. What is missing or damaged is an error and
never replaced by zeros, which would quietly train another model. Only the owner may read it:
weights tell of the cases that they were trained on.

The caller's duties: one process at a time, and no reply before ``save`` has returned.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from safetensors import SafetensorError, safe_open

from her2_common.config import KEPT_ROUNDS
from her2_common.errors import CheckpointError
from her2_common.files import replacing_privately, sync_folder
from her2_common.tensors import write_tensors

RUNS_KEPT: Final = 3
"""The newest runs whose memory stays: one at work, and two that may yet be resumed."""

_RUN: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,79}")


class Memory:
    """The memories under a site's ``state``. What this process saved last is at hand and not read
    again; all else is as ``load`` and ``save`` say. Arrays that are in it are not written to."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self._newest: tuple[str, int, dict[str, np.ndarray]] | None = None

    def load(self, run: str, round_number: int) -> dict[str, np.ndarray]:
        """``load`` of this state."""
        if self._newest is not None and self._newest[:2] == (run, round_number):
            return dict(self._newest[2])
        return load(self.state, run, round_number)

    def save(
        self,
        run: str,
        round_number: int,
        arrays: Mapping[str, np.ndarray],
        *,
        base: int,
        kept: int = KEPT_ROUNDS,
    ) -> None:
        """``save`` to this state."""
        self._newest = None
        save(self.state, run, round_number, arrays, base=base, kept=kept)
        self._newest = run, round_number, dict(arrays)


def load(state: Path, run: str, round_number: int) -> dict[str, np.ndarray]:
    """The memory of a round; empty for round 0.

    Raises:
        CheckpointError: it is missing, damaged, or of another run or round.
    """
    if round_number == 0:
        return {}
    path = _path(state, run, round_number)
    hint = f"restore {path} from a backup, or begin the run anew under another name"
    try:
        with safe_open(path, framework="numpy") as file:
            stated = (file.metadata() or {}).get("sha256")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: expected this site's memory of round {round_number}, got none", hint=hint
        ) from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}", hint=hint) from None
    if stated != _digest(run, round_number, arrays):
        raise CheckpointError(
            f"{path}: damaged, or of another run or round: its SHA-256 does not match", hint=hint
        )
    return arrays


def save(
    state: Path,
    run: str,
    round_number: int,
    arrays: Mapping[str, np.ndarray],
    *,
    base: int,
    kept: int = KEPT_ROUNDS,
) -> None:
    """Write the memory of a round, durably, and drop what no order can need any more.

    ``base`` is the round whose memory it was computed from; ``kept`` memories stay, itself and the
    bases that led to it. Saving a round again replaces it.

    Raises:
        CheckpointError: it cannot be written; the memory of the base stays.
        ValueError: not 0 <= base < round_number.
    """
    if not 0 <= base < round_number:
        raise ValueError(f"expected a base before round {round_number}, got {base}")
    path = _path(state, run, round_number)
    content = {
        name: np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
        for name, array in arrays.items()
    }
    older = [number for number in rounds(state, run) if number < base]  # the last is base's base
    chain = (round_number, base, *older[-(kept - 2) :])
    keep = {_path(state, run, number) for number in chain}
    try:
        _make_folder(path.parent)
        with replacing_privately(path) as file:
            write_tensors(file, content, {"sha256": _digest(run, round_number, content)})
        _drop_rounds(path.parent, keep)
        _drop_runs(path.parent)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be written, or older ones not be removed: {error}",
            hint=f"make room and allow writing in {path.parent}, then: her2-client start",
        ) from None


def rounds(state: Path, run: str) -> list[int]:
    """The rounds of which there is a memory, rising; it may be damaged."""
    found = _path(state, run, 0).parent.glob("*.safetensors")
    return sorted(int(path.stem) for path in found if path.stem.isdecimal())


def _path(state: Path, run: str, round_number: int) -> Path:
    if not _RUN.fullmatch(run):
        raise ValueError(f"expected lower-case letters, digits and hyphens, got the run {run!r}")
    return state / "memory" / run / f"{round_number:05d}.safetensors"


def _digest(run: str, round_number: int, arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256, hex: of the arrays' names, types, shapes and bits, and of where they belong."""
    digest = hashlib.sha256(json.dumps([run, round_number]).encode())
    for name, array in sorted(arrays.items()):
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)  # (bytes,), no copy
    return digest.hexdigest()


def _make_folder(folder: Path) -> None:
    """The run's folder and those above it, durable: a file is lost with its folder's entry."""
    for one in (folder.parent.parent, folder.parent, folder):
        if not one.is_dir():
            one.mkdir(mode=0o700, parents=True)
            sync_folder(one.parent)


def _drop_rounds(folder: Path, keep: set[Path]) -> None:
    """All else in a run's folder goes, what a killed ``save`` left there included."""
    for path in folder.iterdir():
        if path not in keep:
            path.unlink(missing_ok=True)


def _drop_runs(current: Path) -> None:
    """The runs that were saved longest ago go; ``current`` was saved just now."""
    others = [path for path in current.parent.iterdir() if path.is_dir() and path != current]
    others.sort(key=_saved_at, reverse=True)
    for path in others[RUNS_KEPT - 1 :]:
        shutil.rmtree(path)


def _saved_at(run: Path) -> tuple[int, str]:
    """By the files: the folder's own time is that of a removal, perhaps a half-done one."""
    times = [path.stat().st_mtime_ns for path in run.iterdir()]
    return max(times, default=0), run.name
