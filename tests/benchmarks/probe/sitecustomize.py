"""Writes a line for every HTTP request of this process to ``$HER2_PROBE-<pid>.jsonl``.

Python imports a module of this name when it starts, if the module's folder is on PYTHONPATH; so a
benchmark sees the requests of processes whose code it does not touch, Flower's own included. Times
are those of the monotonic clock, which all processes of a Linux machine share.
"""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

KEPT_BYTES = 16_384
"""Bodies of control requests up to this size are kept; they name the message they are about."""

CONTROL = ("push-messages", "pull-messages", "confirm-message-received")


def install(prefix: str) -> None:
    """Wrap ``httpx.Client.send``, by which every call of Flower's clients goes."""
    import httpx

    original = httpx.Client.send
    lock = threading.Lock()

    def kept(content: bytes, path: str) -> str:
        small = path.endswith(CONTROL) and len(content) <= KEPT_BYTES
        return base64.b64encode(content).decode() if small else ""

    def send(self: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        began = time.monotonic()
        response = original(self, request, **options)
        ended = time.monotonic()
        if options.get("stream"):
            return response
        path = request.url.path
        line = {
            "began": began,
            "ended": ended,
            "path": path,
            "sent": len(request.content),
            "received": len(response.content),
            "request": kept(request.content, path),
            "response": kept(response.content, path),
        }
        with lock, Path(f"{prefix}-{os.getpid()}.jsonl").open("a", encoding="ascii") as file:
            file.write(json.dumps(line) + "\n")
        return response

    httpx.Client.send = send  # type: ignore[method-assign]


if "HER2_PROBE" in os.environ:
    install(os.environ["HER2_PROBE"])
