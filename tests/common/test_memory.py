"""Freed memory is kept: taking it again touches no fresh pages. What is free is known."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from her2_common.memory import available_memory

SCRIPT = """
import resource, sys
import torch
from her2_common.memory import keep_memory

if sys.argv[1] == "keep":
    assert keep_memory()
for _ in range(16):  # the heap finds its shape
    torch.ones(2**24)  # 64 MB, freed at once
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(what: str) -> int:
    command = [sys.executable, "-c", SCRIPT, what]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to")
def test_freed_memory_is_taken_again_without_fresh_pages() -> None:
    pages = 5 * 4 * 2**24 // resource.getpagesize()
    kept, given_back = faults("keep"), faults("give back")
    assert kept < pages / 100
    assert given_back > 10 * max(kept, 1)


def test_available_memory_is_what_psutil_says() -> None:
    if Path("/sys/fs/cgroup/memory.max").exists():
        assert 0 < available_memory() <= 1.2 * psutil.virtual_memory().available
    else:
        assert available_memory() == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_a_container_may_have_less(tmp_path: Path) -> None:
    """/proc tells of 8 GiB; the container's limit is 4, it uses 3, of which 1 is cached files."""
    gib = 2**30
    group = tmp_path / "sys/fs/cgroup"
    (tmp_path / "proc").mkdir()
    group.mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(
        f"MemTotal: {16 * 2**20} kB\nMemAvailable: {8 * 2**20} kB\n"
    )
    assert available_memory(tmp_path) == 8 * gib  # no group at all
    (group / "memory.current").write_text(f"{3 * gib}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {gib}\n")
    (group / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) == 8 * gib
    (group / "memory.max").write_text(f"{4 * gib}\n")
    assert available_memory(tmp_path) == 2 * gib


def test_without_proc_the_free_pages_count(tmp_path: Path) -> None:
    assert available_memory(tmp_path) > 0
