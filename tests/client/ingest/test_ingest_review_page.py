"""The contact sheet, whole and private, and used in a real browser."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.browser import Browser

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


# --- one frame for many -------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Six pictures of one scanner, of which two have text; one of another scanner, one size."""
    path = tmp_path / "state" / "review" / "review.html"
    first, text, *_ = some(2)
    others = [
        replace(first, digest=f"{number:032x}", row=number + 2, scanner=("ACME", "ONE"))
        for number in range(4)
    ]
    within = replace(text, digest="a" * 32, row=6, scanner=("ACME", "ONE"))
    beside = replace(within, digest="b" * 32, row=7, found=((0, 0, 70, 30),))
    model = replace(first, digest="c" * 32, row=8, scanner=("ACME", "TWO"))
    size = replace(first, digest="d" * 32, row=9, scanner=("ACME", "ONE"), size=(400, 200))
    write_sheet(path, [*others, within, beside, model, size], site="centre-t", more=0)
    return path


def states(page: Browser) -> str:
    return str(page.value("cards.map((card) => (card.dataset.state || '-')[0]).join('')"))


def test_a_frame_serves_the_undecided_of_its_size_and_scanner(
    page: Browser, many: Path, tmp_path: Path, log: Path
) -> None:
    page.open(many)
    page.click("#card-2 .refuse")
    page.drag("#card-1 img", (0.15, 0.125), (0.75, 0.5))
    share = "document.querySelector('#card-1 .share').textContent"
    assert page.value(share) == "Use this frame for 3 undecided of this size and scanner"
    left = page.value("document.querySelector('#card-1 .left').textContent")
    assert left == "1 with text within it: one by one"
    page.click("#card-1 .share")
    assert states(page) == "pr------", "asked twice, as all that approves many"
    assert page.value(share) == "All 3 looked at? Use the frame"
    page.click("#card-1 .share")
    assert states(page) == "prpp-p--"
    assert page.value("document.querySelector('#card-1 .same').hidden") is True
    assert page.value("document.querySelector('#count').textContent") == "5 of 8 decided"
    assert page.value("document.activeElement.id") == "card-1"
    for width in (1200, 400):
        page.size(width, 900)
        root = "document.documentElement"
        assert page.value(f"{root}.scrollWidth - {root}.clientWidth") == 0
    decide_by(page, "R. R.")
    assert merge_decisions(log, saved(page, many.parents[2])) == 5
    kept = {name: decision.keep for name, decision in read_decisions(log).items()}
    frame = kept[f"{0:032x}"]
    assert frame is not None
    assert kept == {
        f"{0:032x}": frame,
        f"{1:032x}": None,
        f"{2:032x}": frame,
        f"{3:032x}": frame,
        "b" * 32: frame,
    }


def test_a_frame_is_taken_back_from_those_that_still_have_it(page: Browser, many: Path) -> None:
    page.open(many)
    undo = "document.querySelector('#undo-frame')"
    assert page.value(f"{undo}.hidden") is True
    page.drag("#card-1 img", (0.5, 0.5), (0.9, 0.9))
    page.click("#card-1 .share")
    page.click("#card-1 .share")
    assert states(page) == "pppppp--"
    page.click("#card-3 .refuse")
    assert page.value(f"{undo}.textContent") == "Take back row 2’s frame from 4"
    page.click("#undo-frame")
    assert states(page) == "p-r-----"
    assert page.value(f"{undo}.hidden") is True
    assert page.value("document.activeElement.id") == "card-1"


def test_pictures_without_a_header_share_a_frame_that_says_so(page: Browser) -> None:
    page.drag("#card-1 img", (0.5, 0.5), (0.9, 0.9))
    share = "document.querySelector('#card-1 .share').textContent"
    assert page.value(share) == "Use this frame for 3 undecided of this size, scanner not stated"


def test_a_frame_leaves_out_what_the_filter_hides(page: Browser, many: Path) -> None:
    page.open(many)
    page.value(
        "(() => { const e = document.querySelector('#reason'); e.value = 'text found';"
        "e.dispatchEvent(new Event('change')) })()"
    )
    page.drag("#card-6 img", (0.5, 0.5), (0.9, 0.9))
    page.click("#card-6 .share")
    page.click("#card-6 .share")
    assert states(page) == "----pp--"
