"""Files that must be whole, durable or private."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

import pytest

from her2_common.errors import ConfigError
from her2_common.files import (
    naming,
    replace_durably,
    storage_error,
    write_durably,
    write_private,
)


def test_a_secret_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "secret"
    before = os.umask(0)  # the mode must not depend on it
    try:
        write_private(path, b"\x00\n\xff")
    finally:
        os.umask(before)
    assert path.read_bytes() == b"\x00\n\xff"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_secret_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write_private(path, b"first")
    with pytest.raises(ConfigError, match="exists already"):
        write_private(path, b"second")
    assert path.read_bytes() == b"first"


def test_a_secret_does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="exists already"):
        write_private(tmp_path / "link", b"secret")
    assert not (tmp_path / "elsewhere").exists()


def test_replacing_leaves_the_new_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_durably(path, b"old")
    replace_durably(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_replacement_that_fails_leaves_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    replace_durably(path, b"old")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_durably(path, b"new")
    assert path.read_bytes() == b"old"


def test_content_is_on_disk_before_the_file_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: (sizes.append(os.fstat(handle).st_size), real(handle))
    )
    write_durably(tmp_path / "file", b"12345")
    assert sizes == [5]


def test_a_full_disk_is_an_error_with_the_files_name_and_a_way_on() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OSError, match="No space") as caught:
        write_durably(full, b"x" * 100)
    error = storage_error(caught.value)
    assert error is not None
    assert str(full) in str(error)
    assert "make room" in str(error.hint)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(number: int, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught, naming(tmp_path):
        raise OSError(number, os.strerror(number))
    error = storage_error(caught.value)
    assert error is not None
    assert str(tmp_path) in str(error)
    assert "no locks" in str(error.hint)


def test_other_errors_and_names_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, naming(tmp_path):
        (tmp_path / "nowhere").read_bytes()
    assert caught.value.filename == str(tmp_path / "nowhere")
    assert storage_error(caught.value) is None
