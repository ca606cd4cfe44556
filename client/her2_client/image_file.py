"""A .npy file of images that grows row by row, each row known by its CRC-32."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class ImageFile:
    """A .npy file of unknown length, written row by row, its header last."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.row_bytes = _row_bytes(shape)
        self.count = 0
        self.digest = hashlib.sha256()
        self.stream: BinaryIO = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
        self._write_header()
        self.header_bytes = self.stream.tell()

    def _write_header(self) -> None:
        # numpy leaves room in the header for the first axis to grow.
        self.stream.seek(0)
        np.lib.format.write_array_header_1_0(
            self.stream,
            {"descr": "<f2", "fortran_order": False, "shape": (self.count, *self.shape)},
        )

    def take_up(self, checksum: int | None) -> bool:
        """Whether the next row that the file holds is whole; if so it is kept."""
        data = self.stream.read(self.row_bytes)
        if len(data) < self.row_bytes or zlib.crc32(data) != checksum:
            return False
        self.digest.update(data)
        self.count += 1
        return True

    def cut(self) -> None:
        """Drop what lies behind the rows taken up."""
        end = self.header_bytes + self.count * self.row_bytes
        self.stream.seek(end)
        self.stream.truncate(end)

    def append(self, array: Array) -> tuple[int, int]:
        """Write a row through to the file; returns its number and CRC-32."""
        if array.shape != self.shape or not np.isfinite(array).all():
            raise ValueError(f"expected finite values of shape {self.shape}, got {array.shape}")
        data = np.ascontiguousarray(array, dtype="<f2").tobytes()
        self.stream.write(data)
        self.stream.flush()
        self.digest.update(data)
        self.count += 1
        return self.count - 1, zlib.crc32(data)

    def finish(self) -> dict[str, Any]:
        self._write_header()
        if self.stream.tell() != self.header_bytes:  # pragma: no cover - numpy's promise
            raise ValueError(f"the header outgrew its {self.header_bytes} bytes")
        self.stream.flush()
        os.fsync(self.stream.fileno())
        size = os.fstat(self.stream.fileno()).st_size
        return {"count": self.count, "bytes": size, "sha256": self.digest.hexdigest()}


def _row_bytes(shape: tuple[int, ...]) -> int:
    return 2 * int(np.prod(shape))


def read_row(path: Path, shape: tuple[int, ...], record: Mapping[str, Any]) -> Array | None:
    """The image of ``record`` out of an earlier cache; None if it is not as it was written."""
    size = _row_bytes(shape)
    try:
        with path.open("rb") as stream:
            np.lib.format.read_magic(stream)
            stored, _, _ = np.lib.format.read_array_header_1_0(stream)
            if tuple(stored[1:]) != shape:
                return None
            stream.seek(record["row"] * size, os.SEEK_CUR)
            data = stream.read(size)
    except (OSError, ValueError):
        return None
    if len(data) < size or zlib.crc32(data) != record["crc32"]:
        return None
    return np.frombuffer(data, dtype="<f2").reshape(shape)
