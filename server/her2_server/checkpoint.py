"""One folder a round, written whole or not at all.

    rounds/0007/
    ├── mg.safetensors   "weights", float32, after round 7, and beside it what the next round needs
    │                    of this group: the optimiser's state, the downlink's "residual" and last
    │                    "step", the "control" (with a residual and a step of its own)
    ├── ...              a file for each group, so that one group at a time can be held in memory
    └── state.json       the round, the run's identity, each site's base, the SHA-256 of each file,
                         the fingerprints of the vectors, and the SHA-256 of all these

1. Write the files into rounds/.0007.tmp as the groups are worked out (``Draft.add``), fsync each
   while the next is worked out and, with state.json, the folder (``Draft.seal``).
2. Rename it to rounds/0007 and fsync rounds/ (``Draft.publish``). The newest rounds, as many as
   the caller says, and one that it names stay.

A reader takes the newest folder whose digests fit and says which ones it passed over. Tensors are
read from the files when they are asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError, safe_open

from her2_common.broadcast import fingerprint
from her2_common.config import KEPT_ROUNDS
from her2_common.documents import parse_json
from her2_common.errors import CheckpointError
from her2_common.files import naming, sync_folder, write_durably
from her2_common.tensors import write_tensors
from her2_server.strategies.step import Sliced, parts

_READ_AT_ONCE: Final = 2**20
"""Values, a design value."""


@dataclass(frozen=True)
class Checkpoint:
    """The weights after ``round`` (0: the initial ones) and the run's bookkeeping.

    ``memory`` holds all other vectors, named ``group.name`` ("mg.velocity", "mg.control.step").
    """

    round: int
    groups: Mapping[str, np.ndarray]
    state: dict[str, Any]
    memory: Mapping[str, np.ndarray] = field(default_factory=dict)


class _Tensors(Mapping[str, np.ndarray]):
    """Tensors in a round's files, read anew each time. ``places``: name -> (file, tensor)."""

    def __init__(self, places: Mapping[str, tuple[Path, str]]) -> None:
        self.places = places

    def __getitem__(self, name: str) -> np.ndarray:
        source = self.sliced(name)
        values = np.empty(source.size, source[:0].dtype)
        for part in parts(source.size, _READ_AT_ONCE):
            values[part] = source[part]
        return values

    def sliced(self, name: str) -> _Sliced:
        """The vector ``name``, of which a slice is read when it is asked for."""
        return _Sliced(*self.places[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


class _Sliced:
    """A vector in a file. The file is closed after each slice: what is mapped counts as memory."""

    def __init__(self, path: Path, tensor: str) -> None:
        self.path, self.tensor = path, tensor
        self.size = int(self._read(lambda found: found.get_shape()[0]))

    def __getitem__(self, part: slice, /) -> np.ndarray:
        values: np.ndarray = self._read(lambda found: found[part])
        return values

    def _read(self, take: Callable[[Any], Any]) -> Any:
        try:
            with safe_open(self.path, framework="numpy") as file:
                return take(file.get_slice(self.tensor))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error}") from None


def _sync_and_close(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sliced(vectors: Mapping[str, np.ndarray], name: str) -> Sliced:
    """A vector, read from its file as it is used, if it lies in one.

    Raises:
        KeyError: there is none of this name.
        CheckpointError: it cannot be read.
    """
    return vectors.sliced(name) if isinstance(vectors, _Tensors) else vectors[name]


class Draft:
    """A checkpoint on its way to the disk; ``seconds`` is the time that this took so far."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder
        self.number = number
        self.temporary = folder / f".{number:04d}.tmp"
        self._files: dict[str, str] = {}
        self._fingerprints: dict[str, str] = {}
        self._state: dict[str, Any] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._syncing: list[Future[None]] = []
        self.seconds = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir()

    def add(self, group: str, tensors: Mapping[str, np.ndarray]) -> None:
        """Write the tensors of a group; "weights" and "control" are what the sites will hold."""
        began = time.perf_counter()
        path = self.temporary / f"{group}.safetensors"
        with naming(path), path.open("wb") as file:
            self._files[path.name] = write_tensors(file, tensors)
            file.flush()
            self._syncing.append(self._thread.submit(_sync_and_close, os.dup(file.fileno())))
        for name, vector in (("weights", group), ("control", f"{group}.control")):
            if name in tensors:
                self._fingerprints[vector] = fingerprint(tensors[name])
        self.seconds += time.perf_counter() - began

    def seal(self, state: Mapping[str, Any]) -> None:
        """Write state.json: nothing more is added, and what was is durable."""
        began = time.perf_counter()
        try:
            with naming(self.temporary):
                for file in self._syncing:
                    file.result()
        finally:
            self._thread.shutdown()
        self._state = dict(state) | {
            "round": self.number,
            "files": self._files,
            "fingerprints": self._fingerprints,
        }
        self._state["state_sha256"] = _digest(self._state)
        write_durably(self.temporary / "state.json", json.dumps(self._state, indent=1).encode())
        sync_folder(self.temporary)
        self.seconds += time.perf_counter() - began

    def publish(self, keep: int | None = None, kept: int = KEPT_ROUNDS) -> Checkpoint:
        """Let the round be seen, and drop all but the newest ``kept`` and round ``keep``; one of
        the same number is replaced."""
        began = time.perf_counter()
        final = self.folder / f"{self.number:04d}"
        shutil.rmtree(final, ignore_errors=True)
        self.temporary.rename(final)
        sync_folder(self.folder)
        for path in _rounds(self.folder)[kept:]:
            if int(path.name) not in (keep, self.number):
                shutil.rmtree(path)
        self.seconds += time.perf_counter() - began
        return _opened(final, self._state)


def save(folder: Path, checkpoint: Checkpoint) -> Checkpoint:
    """Write the checkpoint under ``folder``/NNNN; an existing one of that round is replaced."""
    draft = Draft(folder, checkpoint.round)
    for group, weights in checkpoint.groups.items():
        beside = {
            name.removeprefix(f"{group}."): tensor
            for name, tensor in checkpoint.memory.items()
            if name.startswith(f"{group}.")
        }
        draft.add(group, {"weights": weights, **beside})
    draft.seal(checkpoint.state)
    return draft.publish()


def _digest(state: Mapping[str, Any]) -> str:
    """SHA-256 of a state, its own digest aside."""
    content = {key: value for key, value in state.items() if key != "state_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load(path: Path) -> Checkpoint:
    """Open one round's folder, every file of which is checked.

    Raises:
        CheckpointError: a file is missing, or does not match its digest, or belongs to another
            round than the folder.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such round; only the newest and the best are kept")
    try:
        state = parse_json((path / "state.json").read_text(encoding="utf-8"))
        sound = state["state_sha256"] == _digest(state)
        number, files = f"{state['round']:04d}", dict(state["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({type(error).__name__})") from None
    if not sound:
        raise CheckpointError(f"{path}: state.json does not match its own SHA-256")
    if number != path.name:
        raise CheckpointError(f"{path}: expected round {path.name}, got {state['round']}")
    for name, expected in files.items():
        try:
            with (path / name).open("rb") as file:
                got = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"{path}: {name}: damaged ({type(error).__name__})") from None
        if got != expected:
            raise CheckpointError(
                f"{path}: {name}: expected SHA-256 {expected[:12]}..., got {got[:12]}..."
            )
    return _opened(path, state)


def _opened(path: Path, state: dict[str, Any]) -> Checkpoint:
    groups: dict[str, tuple[Path, str]] = {}
    memory: dict[str, tuple[Path, str]] = {}
    for name in state["files"]:
        group = name.removesuffix(".safetensors")
        try:
            with safe_open(path / name, framework="numpy") as file:
                tensors = list(file.keys())
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: {name}: not safetensors: {error}") from None
        for tensor in tensors:
            place = (path / name, tensor)
            if tensor == "weights":
                groups[group] = place
            else:
                memory[f"{group}.{tensor}"] = place
    return Checkpoint(state["round"], _Tensors(groups), state, _Tensors(memory))


def latest(folder: Path, on_damaged: Callable[[str], None] = lambda _: None) -> Checkpoint:
    """The newest sound checkpoint under ``folder``; damaged ones are told and passed over.

    Raises:
        CheckpointError: there is none.
    """
    for path in _rounds(folder):
        try:
            return load(path)
        except CheckpointError as error:
            on_damaged(str(error))
    raise CheckpointError(
        f"{folder}: no sound checkpoint",
        hint="begin the run anew in another folder: her2-server run FEDERATION --out FOLDER",
    )


def kept_rounds(folder: Path) -> list[int]:
    """The numbers of the rounds under ``folder``, rising; one may be damaged."""
    return [int(path.name) for path in reversed(_rounds(folder))]


def drop_after(folder: Path, number: int) -> None:
    """Delete the rounds after round ``number``, the newest first, durably: a kill in between leaves
    a run that had come less far."""
    for path in _rounds(folder):
        if int(path.name) > number:
            temporary = path.with_name(f".{path.name}.tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            path.rename(temporary)
            sync_folder(folder)
            shutil.rmtree(temporary)


def _rounds(folder: Path) -> list[Path]:
    """The rounds' folders, the newest first."""
    found = [path for path in folder.glob("[0-9][0-9][0-9][0-9]*") if path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name), reverse=True)
