"""Freed memory is kept: taking it again touches no fresh pages."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

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
