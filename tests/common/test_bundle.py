"""The thin bundle: always the same bytes, and no code in it."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tomllib
import zipfile

from her2_common import __version__
from her2_common.bundle import build_bundle, bundle_hash


def test_the_hash_is_that_of_the_bytes() -> None:
    assert bundle_hash() == hashlib.sha256(build_bundle()).hexdigest()
    assert bundle_hash(b"other") == hashlib.sha256(b"other").hexdigest()


def test_another_process_builds_the_same_bytes() -> None:
    """Sites and coordinator compare hashes of bundles that each built for itself."""
    code = "from her2_common.bundle import bundle_hash; print(bundle_hash())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == bundle_hash()


def test_it_carries_no_code() -> None:
    with zipfile.ZipFile(io.BytesIO(build_bundle())) as archive:
        names = archive.namelist()
        project = tomllib.loads(archive.read("pyproject.toml").decode())
    assert "README.md" in names
    assert not [name for name in names if name.endswith((".py", ".pyc", ".so", ".whl"))]
    assert project["project"]["version"] == __version__
    assert project["project"]["dependencies"] == []
