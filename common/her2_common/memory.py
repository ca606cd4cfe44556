"""How much memory there is, and keeping what was freed for the next step.

A training step frees and takes the same gigabytes over and over. The allocator of glibc gives
large blocks back at once, and the kernel then fills them with zeros page by page when they are
taken again: a fifth of the time of a step of the published model on a CPU. No number changes.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

MMAP_MAX: Final = -4
TRIM_THRESHOLD: Final = -1
"""Parameters of mallopt(3), from malloc.h: how many blocks may be mapped one by one, and how many
free bytes at the end of the heap are given back."""


def keep_memory() -> bool:
    """Let this process keep what it frees, up to its peak; False where glibc is not in use.

    Call it once, before the first large tensor. For processes that train; one that only waits
    would hold memory that others could use.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another operating system
        return False
    return bool(mallopt(MMAP_MAX, 0)) and bool(mallopt(TRIM_THRESHOLD, 2**31 - 1))


def available_memory(root: Path = Path("/")) -> int:
    """Bytes of RAM that a process may still take; what files only cache counts as free.

    The least of what Linux says (/proc/meminfo) and what the container may have (cgroup v2, whose
    limit counts cached files too); elsewhere the free pages. ``root`` is where proc and sys are.
    """
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        kilobytes = dict(line.split(":", 1) for line in lines)["MemAvailable"]
        free = int(kilobytes.split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    group = root / "sys/fs/cgroup"
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))  # "max": there is none
        used = int((group / "memory.current").read_text(encoding="ascii"))
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        cached = int(dict(line.split() for line in lines)["inactive_file"])
    except (OSError, KeyError, ValueError):
        return free
    return max(min(free, limit - used + cached), 0)
