"""Files that must be whole, durable or private."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from her2_common.errors import ConfigError, StorageError

FULL: Final = (errno.ENOSPC, errno.EDQUOT)
NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives the block's system errors a file's name: those of write, fsync and flock have none."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def storage_error(error: OSError) -> StorageError | None:
    """An error of a full or read-only disk, or of one without locks, in words; None if another."""
    if error.errno in FULL:
        hint = "make room on its disk, then try again"
    elif error.errno in NO_LOCKS:
        hint = "its file system keeps no locks: put the folder on a local disk"
    elif error.errno == errno.EROFS:
        hint = "its disk is mounted read-only"
    else:
        return None
    return StorageError(f"{error.filename or 'a file'}: {error.strerror}", hint=hint)


def write_private(path: Path, content: bytes) -> None:
    """Write a new file that only its owner may read.

    Raises:
        ConfigError: the file exists; a secret is never overwritten.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path}: exists already", hint="keep it, or move it away") from None
    with naming(path), os.fdopen(handle, "wb") as file:
        file.write(content)


def write_durably(path: Path, content: bytes) -> None:
    """Write and fsync one file."""
    with naming(path), path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make the folder's own entries durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


def replace_durably(path: Path, content: bytes) -> None:
    """Replace a file by new content, so that a reader sees either the old or the new."""
    temporary = path.with_name(f".{path.name}.tmp")
    write_durably(temporary, content)
    temporary.replace(path)
    sync_folder(path.parent)


def replace_privately(path: Path, content: bytes) -> None:
    """``replace_durably`` for what only the file's owner may read, in a folder of the same kind."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    with replacing_privately(path) as file:
        file.write(content)


@contextmanager
def replacing_privately(path: Path) -> Iterator[BinaryIO]:
    """A file whose content is ``path`` once the block ends, durably; only its owner may read it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with naming(path), os.fdopen(handle, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)
