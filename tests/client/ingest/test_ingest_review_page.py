"""The contact sheet, whole and private, and used in a real browser."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.browser import QUIET, chromium_program

from her2_client.ingest.privacy.guard import Decision
from her2_client.ingest.privacy.review import (
    Seen,
    decisions_file,
    merge_decisions,
    read_decisions,
    thumbnail,
    write_sheet,
)


def some(count: int = 4) -> list[Seen]:
    """Pictures of 400 x 200, wider on the source than on the sheet, with one place each."""
    rows, columns = 400, 800
    y, x = np.mgrid[:rows, :columns]
    seen = []
    for number in range(count):
        jpeg = thumbnail(np.sin(x / (20 + number)) + np.cos(y / 30))
        reason = "text found" if number % 2 else "no verified region"
        found = ((80, 40, 240, 80),) if number % 2 else ()
        picture = f"{number:032x}"
        seen.append(Seen(picture, "us", number + 2, reason, jpeg, (columns, rows), found))
    return seen


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return decisions_file(tmp_path / "site")


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    path = tmp_path / "state" / "review" / "review.html"
    write_sheet(path, some(), site="centre <t> & sons", more=2)
    return path


def test_the_page_is_private_and_whole(sheet: Path) -> None:
    assert sheet.stat().st_mode & 0o777 == 0o600
    assert sheet.parent.stat().st_mode & 0o777 == 0o700
    html = sheet.read_text()
    assert "centre &lt;t&gt; &amp; sons" in html
    assert "<t>" not in html
    assert "2 more cases wait" in html
    assert html.count("<article") == 4
    assert html.count('class="found"') == 2
    addresses = re.findall(r'(?:src|href|action)="([^"]*)"', html)
    assert addresses
    assert all(address.startswith("data:") for address in addresses)


def test_the_red_frame_stands_where_the_text_is(sheet: Path) -> None:
    style = re.search(r'class="found" style="([^"]*)"', sheet.read_text())
    assert style is not None
    shares = dict(re.findall(r"(\w+): ([\d.]+)%", style[1]))
    assert {name: float(share) for name, share in shares.items()} == {
        "left": 10.0,
        "top": 10.0,
        "width": 20.0,
        "height": 10.0,
    }


def test_a_sheet_of_one_reads_well(tmp_path: Path) -> None:
    write_sheet(tmp_path / "r" / "page.html", some(1), site="s", more=0)
    html = (tmp_path / "r" / "page.html").read_text()
    assert "this picture is free of names" in html
    assert "for the next sheet" not in html


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


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(chromium_program(), tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture
def page(browser: Browser, sheet: Path) -> Iterator[Browser]:
    browser.messages.clear()
    browser("Page.setDownloadBehavior", behavior="allow", downloadPath=str(sheet.parents[2]))
    browser.open(sheet)
    yield browser
    # The page asks before it goes with decisions unsaved.
    browser.value("saved = true")
    assert browser.messages == []


def decide_by(browser: Browser, name: str) -> None:
    browser.click("#by")
    browser("Input.insertText", text=name)


def saved(browser: Browser, folder: Path) -> Path:
    browser.click("#save")
    path = folder / "decisions.csv"
    for _ in range(200):
        if path.exists() and path.stat().st_size:
            return path
        time.sleep(0.05)
    raise AssertionError("nothing was downloaded")


def test_approve_refuse_and_a_part_become_decisions(
    page: Browser, sheet: Path, tmp_path: Path, log: Path
) -> None:
    assert page.value("document.querySelector('#save').hasAttribute('href')") is False
    page.click("#card-1 .approve")
    page.click("#card-2 .refuse")
    page.drag("#card-3 img", (0.25, 0.25), (0.75, 0.5))
    assert page.value("document.querySelector('#count').textContent") == "3 of 4 decided"
    assert page.value("document.querySelector('#save').hasAttribute('href')") is False
    decide_by(page, 'Dr. "A", B')
    new = saved(page, sheet.parents[2])
    assert merge_decisions(log, new) == 3
    decisions = read_decisions(log)
    names = [one.digest for one in some()]
    assert decisions[names[0]] == Decision(True)
    assert decisions[names[1]] == Decision(False)
    keep = decisions[names[2]].keep
    assert keep is not None
    width = page.place("#card-3 img")["width"]
    assert np.abs(np.subtract(keep, (200, 100, 600, 200))).max() <= np.ceil(800 / width)
    assert next(iter(csv.DictReader(io.StringIO(log.read_text()))))["by"] == 'Dr. "A", B'
    page.picture(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as image:
        assert image.size == (1200, 900)
        assert len(set(image.convert("RGB").get_flattened_data())) > 100


def test_a_drag_past_the_edge_ends_at_the_edge(page: Browser) -> None:
    page.drag("#card-1 img", (0.9, 0.5), (0.5, -0.2))
    x0, y0, x1, y1 = json.loads(page.value("JSON.stringify(decided.get(cards[0]).part)"))
    assert (y0, 718 <= x1 <= 720, 398 <= x0 <= 404, 196 <= y1 <= 200) == (0, True, True, True)


def test_a_click_on_a_picture_decides_nothing(page: Browser) -> None:
    page.click("#card-1 img")
    assert page.value("decided.size") == 0


def test_a_second_click_takes_back(page: Browser) -> None:
    for expected in (1, 0):
        page.click("#card-1 .approve")
        assert page.value("decided.size") == expected
    page.drag("#card-1 img", (0.2, 0.2), (0.6, 0.6))
    assert page.value("cards[0].dataset.state") == "part"
    page.click("#card-1 .part")
    assert page.value("decided.size") == 0
    assert page.value("cards[0].querySelector('.keep').hidden") is True


def test_a_part_by_numbers(page: Browser) -> None:
    page.click("#card-2 .part")
    for number, digits in enumerate(("10", "20", "790", "401")):
        page.click(f"#card-2 .corners label:nth-child({number + 1}) input")
        page("Input.insertText", text=digits)
    page.key("Tab")
    page.value("document.activeElement.blur()")
    assert page.value("decided.size") == 0  # 401 is past the last row
    page.value(
        "(() => { const e = document.querySelectorAll('#card-2 .corners input')[3];"
        "e.value = '400'; e.dispatchEvent(new Event('change', {bubbles: true})) })()"
    )
    assert page.value("decided.get(cards[1]).part.join()") == "10,20,790,400"


def test_the_keyboard_alone_is_enough(page: Browser) -> None:
    page.value("cards[0].focus()")
    page.key("a")
    page.key("ArrowRight")
    page.key("r")
    page.key("ArrowRight")
    page.key("a")
    page.key("u")
    page.key("ArrowLeft")
    assert page.value("document.activeElement.id") == "card-2"
    page.key("ArrowDown")
    assert page.value("document.activeElement.id") == "card-4"
    page.key("ArrowUp")
    assert page.value("document.activeElement.id") == "card-1"
    states = page.value("cards.map((card) => card.dataset.state ?? '').join()")
    assert states == "approve,refuse,,"


def test_all_of_one_reason_and_what_was_decided_stays(page: Browser) -> None:
    page.click("#card-2 .refuse")
    page.value(
        "(() => { const e = document.querySelector('#reason'); e.value = 'text found';"
        "e.dispatchEvent(new Event('change')) })()"
    )
    assert page.value("cards.map((card) => card.hidden).join()") == "true,false,true,false"
    page.click("#refuse-all")
    states = page.value("cards.map((card) => card.dataset.state ?? '').join()")
    assert states == ",refuse,,refuse"


def test_all_are_approved_but_those_with_text_and_only_when_asked_twice(page: Browser) -> None:
    marked = page.value("cards.map((card) => card.querySelectorAll('.found').length > 0).join()")
    plain = marked.split(",").count("false")
    assert 0 < plain < 4
    text = "document.querySelector('#approve-all').textContent"
    assert page.value(text) == f"Approve {plain} undecided without text"
    page.click("#approve-all")
    assert page.value("decided.size") == 0
    assert page.value(text) == f"All {plain} looked at? Approve"
    page.click("#approve-all")
    states = page.value("cards.map((card) => card.dataset.state ?? '').join()")
    assert states == marked.replace("true", "").replace("false", "approve")


@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_is_wider_than_the_window(page: Browser, width: int) -> None:
    page.size(width, 900)
    page.click("#card-1 .part")
    page.value("document.querySelector('#sheet').classList.add('large')")
    root = "document.documentElement"
    assert page.value(f"{root}.scrollWidth - {root}.clientWidth") == 0


def test_light_and_dark(page: Browser) -> None:
    def paper() -> int:
        colour = page.value("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)))

    assert paper() > 700
    page.size(1200, 900, "dark")
    assert paper() < 100
