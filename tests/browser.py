"""Headless Chromium for tests of pages; they skip where there is none, unless it is required."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Final

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


class Browser:
    """Headless Chromium over its debugging pipe: real clicks, keys and downloads."""

    def __init__(self, program: str, profile: Path) -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        keep = {to_read, to_write}
        # Chromium reads file descriptor 3 and writes 4.
        command = f'exec {program} "$@" 3<&{to_read} 4>&{to_write}'
        self.process = subprocess.Popen(
            [
                "/bin/bash",
                "-c",
                command,
                "chromium",
                *QUIET,
                "--remote-debugging-pipe",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            pass_fds=keep,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for handle in keep:
            os.close(handle)
        self._buffer = b""
        self._number = 0
        self.session: str | None = None
        self.messages: list[str] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._write, json.dumps(message).encode() + b"\x00")
        while True:
            answer = self._next()
            if answer.get("method") in {
                "Runtime.exceptionThrown",
                "Log.entryAdded",
                "Runtime.consoleAPICalled",
            }:
                self.messages.append(json.dumps(answer["params"]))
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self) -> dict[str, Any]:
        while b"\x00" not in self._buffer:
            part = os.read(self._read, 1 << 16)
            assert part, "the browser has ended"
            self._buffer += part
        line, self._buffer = self._buffer.split(b"\x00", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def open(self, page: Path, width: int = 1200, height: int = 900) -> None:
        self.size(width, height)
        self("Page.navigate", url=page.as_uri())
        self.wait("document.readyState === 'complete'")

    def size(self, width: int, height: int, scheme: str = "light") -> None:
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self("Emulation.setEmulatedMedia", features=features)

    def value(self, expression: str) -> Any:
        answer = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression: str) -> None:
        for _ in range(200):
            if self.value(expression):
                return
            time.sleep(0.05)
        raise AssertionError(f"never true: {expression}")

    def place(self, selector: str) -> dict[str, float]:
        """x, y, width and height of an element, scrolled into view."""
        box: dict[str, float] = self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            "return {x: b.x, y: b.y, width: b.width, height: b.height} })()"
        )
        return box

    def mouse(self, kind: str, x: float, y: float) -> None:
        held = 0 if kind == "mouseReleased" else 1
        self(
            "Input.dispatchMouseEvent",
            type=kind,
            x=x,
            y=y,
            button="left",
            buttons=held,
            clickCount=1,
        )

    def click(self, selector: str) -> None:
        box = self.place(selector)
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def drag(self, selector: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Between two places given as shares of the element."""
        box = self.place(selector)
        points = [
            (box["x"] + a * box["width"], box["y"] + b * box["height"]) for a, b in (start, end)
        ]
        self.mouse("mousePressed", *points[0])
        self.mouse("mouseMoved", *(sum(p) / 2 for p in zip(*points, strict=True)))
        self.mouse("mouseMoved", *points[1])
        self.mouse("mouseReleased", *points[1])

    def key(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {}
        self("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **text)
        self("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    def picture(self, path: Path) -> None:
        shot = self("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._read)
        os.close(self._write)
