"""One folder a round, written whole or not at all.

    rounds/0007/
    ├── groups.safetensors   the weights after round 7, one float32 vector a group
    └── state.json           the round, the run's identity, the SHA-256 of groups.safetensors,
                             and the SHA-256 of all these

1. Write both files into rounds/.0007.tmp, fsync each and the folder.
2. Rename it to rounds/0007 and fsync rounds/.

A reader takes the newest folder whose digests fit and says which ones it passed over.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from her2_common.errors import CheckpointError
from her2_common.files import sync_folder, write_durably


@dataclass(frozen=True)
class Checkpoint:
    """The weights after ``round`` (0: the initial ones) and the run's bookkeeping."""

    round: int
    groups: dict[str, np.ndarray]
    state: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint under ``folder``/NNNN; an existing one of that round is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{checkpoint.round:04d}"
    temporary = folder / f".{checkpoint.round:04d}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    tensors = save_tensors(dict(checkpoint.groups))
    state = checkpoint.state | {
        "round": checkpoint.round,
        "sha256": hashlib.sha256(tensors).hexdigest(),
    }
    write_durably(temporary / "groups.safetensors", tensors)
    state["state_sha256"] = _digest(state)
    write_durably(temporary / "state.json", json.dumps(state, indent=1).encode())
    sync_folder(temporary)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    sync_folder(folder)


def _digest(state: dict[str, Any]) -> str:
    """SHA-256 of a state, its own digest aside."""
    content = {key: value for key, value in state.items() if key != "state_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load(path: Path) -> Checkpoint:
    """Read one round's folder.

    Raises:
        CheckpointError: a file is missing, or does not match its digest, or belongs to another
            round than the folder.
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        tensors = (path / "groups.safetensors").read_bytes()
        sound = state["state_sha256"] == _digest(state)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({type(error).__name__})") from None
    if not sound:
        raise CheckpointError(f"{path}: state.json does not match its own SHA-256")
    expected, got = state["sha256"], hashlib.sha256(tensors).hexdigest()
    if got != expected:
        raise CheckpointError(f"{path}: expected SHA-256 {expected[:12]}..., got {got[:12]}...")
    try:
        groups = load_tensors(tensors)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not safetensors: {error}") from None
    if f"{state['round']:04d}" != path.name:
        raise CheckpointError(f"{path}: expected round {path.name}, got {state['round']}")
    return Checkpoint(state["round"], groups, state)


def latest(folder: Path, on_damaged: Callable[[str], None] = lambda _: None) -> Checkpoint:
    """The newest sound checkpoint under ``folder``; damaged ones are told and passed over.

    Raises:
        CheckpointError: there is none.
    """
    rounds = [path for path in folder.glob("[0-9][0-9][0-9][0-9]*") if path.name.isdecimal()]
    for path in sorted(rounds, key=lambda path: int(path.name), reverse=True):
        try:
            return load(path)
        except CheckpointError as error:
            on_damaged(str(error))
    raise CheckpointError(
        f"{folder}: no sound checkpoint", hint="start the run anew: her2-server run"
    )
