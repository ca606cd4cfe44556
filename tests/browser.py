"""Headless Chromium for tests of pages; they skip where there is none, unless it is required."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

QUIET: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def chromium_program() -> str:
    """Where Chromium is; skips the test where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        if os.environ.get("HER2_REQUIRE_CHROMIUM") == "1":
            pytest.fail("HER2_REQUIRE_CHROMIUM=1, but there is no chromium on the PATH")
        pytest.skip("no chromium on the PATH; HER2_REQUIRE_CHROMIUM=1 makes this a failure")
    return program


def chromium(page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open ``page`` in headless Chromium, its log on stderr."""
    log = ("--enable-logging=stderr", "--v=0", "--hide-scrollbars")
    return subprocess.run(
        [
            chromium_program(),
            *QUIET,
            f"--user-data-dir={profile}",
            *log,
            *options,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def console_messages(log: str) -> list[str]:
    """What the page said to the browser's console."""
    return [line for line in log.splitlines() if "CONSOLE" in line]
