"""One round's updates on disk, for rules that need every site's value of a coordinate at once.

    spool/
    ├── mg.f32      one row of float32 for each site that sent the group, in order of arrival
    └── us.f32      ...

1. A reply is vetted as the accumulator vets it, and written behind the others, a block at a time.
   All or nothing: a refused or half-written reply is no row, and its place is used again.
2. Reading goes by blocks of coordinates, (sites, block), rows in the order of the sites' names:
   arrival changes no bit.
3. Closing deletes the folder. It holds single sites' updates: only its owner may read it, and a
   run that hides these from the coordinator (secure aggregation) cannot use it.

A round that is killed starts anew, so nothing is synced and a folder left behind is deleted.

Memory is the reply at hand, one group of it decoded, and a block (BLOCK_VALUES), whatever the
number of sites; disk is one copy of a group for each site that sent it. Files are read and written,
not mapped: a write to a full disk is then an error that can be told (through a mapping it kills the
process), and pages that were read count as the system's cache and not as the process's memory.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np

from her2_common.encoding import Encoded, decode
from her2_common.errors import RunError, UpdateError
from her2_server.aggregation import vet
from her2_server.strategies.step import parts

BLOCK_VALUES: Final = 2**19
"""Values in a block over all sites, 2 MiB of float32: a block and its sorted copy stay in the
processor's cache. A design value."""

VALUE_BYTES: Final = 4
ROW_BLOCK: Final = 2**14
"""Values of one site that are measured and written at once. Fixed, since a norm's last
bits depend on how its sum is cut."""


class Spool:
    """The sites' changes of one round, of groups of ``sizes``. Use it in ``with``.

    Raises:
        RunError: ``folder`` cannot be made.
    """

    def __init__(self, folder: Path, sizes: Mapping[str, int]) -> None:
        self.folder = folder
        self.sizes = sizes
        self._files: dict[str, FileIO] = {}
        self._rows: dict[str, dict[str, int]] = {}
        self._norms: dict[str, dict[str, float]] = {}
        self._counts: dict[str, dict[str, int]] = {}
        self._sites: set[str] = set()
        with _told(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700, parents=True)

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Delete the folder. Closing twice does no harm."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- 1. -------------------------------------------------------------------------------------

    def add(
        self, site: str, update: Mapping[str, np.ndarray | Encoded], counts: Mapping[str, int]
    ) -> None:
        """Take in one site's changes; ``counts[g]`` is its number of cases that use group g.

        All or nothing: a refused update, or one that could not be written, leaves no trace.

        Raises:
            UpdateError: "duplicate", or what ``aggregation.vet`` raises.
            RunError: the disk is full or broken.
        """
        if site in self._sites:
            raise UpdateError(f"{site}: expected one update a round, got two", reason="duplicate")
        vet(update, counts, self.sizes)
        norms = {
            group: self._write(group, decode(vector) if isinstance(vector, Encoded) else vector)
            for group, vector in update.items()
        }
        self._sites.add(site)
        for group, norm in norms.items():
            rows = self._rows.setdefault(group, {})
            rows[site] = len(rows)
            self._norms.setdefault(group, {})[site] = norm
            self._counts.setdefault(group, {})[site] = counts[group]

    def _write(self, group: str, values: np.ndarray) -> float:
        """Write a row behind the last one; its L2 norm."""
        path = self.folder / f"{group}.f32"
        squares = 0.0
        with _told(path):
            if group not in self._files:
                self._files[group] = path.open("w+b", buffering=0)
            file = self._files[group]
            file.seek(len(self._rows.get(group, {})) * values.size * VALUE_BYTES)
            for part in parts(values.size, ROW_BLOCK):
                row = np.ascontiguousarray(values[part], np.float32)
                squares += float(np.square(row, dtype=np.float64).sum())
                _write_all(file, row)
        return math.sqrt(squares)

    # --- 2. -------------------------------------------------------------------------------------

    def sites(self, group: str) -> list[str]:
        """The sites that sent the group, by name: the order of rows, norms and counts."""
        return sorted(self._rows.get(group, {}))

    def norms(self, group: str) -> list[float]:
        """The L2 norm of each site's change of the group, in the order of ``sites``."""
        return [self._norms[group][site] for site in self.sites(group)]

    def counts(self, group: str) -> list[int]:
        """Each site's cases that use the group, in the order of ``sites``."""
        return [self._counts[group][site] for site in self.sites(group)]

    @property
    def groups(self) -> list[str]:
        """The groups that a site has sent, in the order of ``sizes``."""
        return [group for group in self.sizes if self._rows.get(group)]

    def blocks(self, group: str) -> Iterator[tuple[slice, np.ndarray]]:
        """The group's coordinates in blocks: where, and the sites' changes (sites, block) float32.

        Raises:
            RunError: the file is shorter than what was written, or cannot be read.
        """
        rows = [self._rows[group][site] for site in self.sites(group)]
        file, size = self._files[group], self.sizes[group]
        for part in parts(size, max(BLOCK_VALUES // len(rows), 1)):
            values = np.empty((len(rows), part.stop - part.start), np.float32)
            with _told(self.folder / f"{group}.f32"):
                for row, place in zip(values, rows, strict=True):
                    file.seek((place * size + part.start) * VALUE_BYTES)
                    _read_all(file, row)
            yield part, values


def _write_all(file: FileIO, row: np.ndarray) -> None:
    left = row.data.cast("B")
    while left:
        left = left[file.write(left) :]


def _read_all(file: FileIO, row: np.ndarray) -> None:
    left = row.data.cast("B")
    while left:
        got = file.readinto(left)
        if not got:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        left = left[got:]


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """An operating system's error as one that a user can read."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path}: the round's updates cannot be kept: {error.strerror}",
            hint="free some space there, then: her2-server resume",
        ) from None
