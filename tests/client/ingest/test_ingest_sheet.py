"""The contact sheet of what was accepted: drawn from the cache alone, and used in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import typer
from PIL import Image
from tests.browser import Browser
from typer.testing import CliRunner

from her2_client.cache import open_cache, read_outcomes
from her2_client.ingest.command import ingest
from her2_client.ingest.quality.sheet import page_path, write_sheet
from her2_client.ingest.run import ingest as run_ingest
from her2_common.console import console
from her2_common.errors import CacheError, ConfigError

Array = npt.NDArray[Any]


class Sheet(HTMLParser):
    """The headings, pictures (title, pixels, box in per cent) and addresses of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.pictures: list[tuple[str, Array, list[float] | None]] = []
        self.addresses: list[str] = []
        self.text = ""
        self._tag = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        values = {name: value or "" for name, value in attrs}
        self.addresses += [values[name] for name in ("src", "href") if name in values]
        if tag == "img":
            with Image.open(io.BytesIO(base64.b64decode(values["src"].split(",")[1]))) as image:
                self.pictures.append((values["alt"], np.asarray(image).astype(float), None))
        if tag == "i":
            title, pixels, _ = self.pictures[-1]
            box = [float(share) for share in re.findall(r": ([\d.]+)%", values["style"])]
            self.pictures[-1] = (title, pixels, box)

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._tag == "h2" and data.strip():
            self.headings.append(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A site of which one row has no usable picture, and its sheet."""
    from tests.client.ingest.conftest import Site, dynamic

    site = Site(tmp_path_factory.mktemp("sheet") / "site")
    site.add("CANARYCASE-a", biopsy_her2=1, split="train")
    site.rows.append({"case_id": "CANARYCASE-b", "us": site.images / "none.dcm"})
    site.add("CANARYCASE-c", "us", biopsy_ihc=2, split="test")
    # the lesion of ``dynamic``: slices 2 to 8, rows 11 to 17, columns 7 to 13
    site.dicoms.mri(site.images / "CANARYPATH-d", dynamic(3, 10, 24, 20))
    site.rows.append({"case_id": "CANARYCASE-d", "mri": site.images / "CANARYPATH-d"})
    box = {"case_id": "CANARYCASE-a", "x0": 10, "y0": 20, "x1": 30, "y1": 30}
    site.boxes.append(box | {"image": "mg_cc"})
    site.boxes.append(box | {"image": "us"})
    corners = {"x0": 7, "x1": 13, "y0": 11, "y1": 17, "z0": 3, "z1": 8}
    site.boxes.append({"case_id": "CANARYCASE-d", "image": "mri"} | corners)
    config = site.config()
    data = config.data.model_copy(update={"mri_phases": (0, 1)})
    run_ingest(config.model_copy(update={"data": data}), workers=1)
    shutil.rmtree(site.images)  # the sheet needs no source
    return site


def written(site: Any, *options: str) -> tuple[Any, str]:
    app = typer.Typer()
    app.command()(ingest)
    with console.capture() as capture:
        arguments = ["--site", str(site.folder / "site.yaml"), "--sheet", *options]
        result = CliRunner().invoke(app, arguments)
    return result, capture.get()


@pytest.fixture
def sheet(made: Any) -> Path:
    result, screen = written(made)
    assert result.exit_code == 0, result.exception
    path = Path(made.folder / "state" / "ingest" / "sheet.html")
    assert f"wrote {path} (1 page, 3 cases; stays here)" in screen
    return path


def test_the_cases_of_the_cache_stand_under_the_rows_of_the_table(sheet: Path) -> None:
    page = Sheet(sheet)
    assert page.headings == ["Row 2", "Row 4", "Row 5"]
    assert "training; HER2 positive (biopsy)" in page.text
    assert "test; HER2 unknown (IHC 2+ without ISH)" in page.text
    titles = [title for title, _, _ in page.pictures]
    planes = ("axial", "coronal", "sagittal")
    assert titles == [
        "CC, lesion box shown",
        "CC, lesion, lesion box shown",
        "MLO, no lesion box",
        "B-mode, lesion box shown",
        *(f"{p}, before contrast, no lesion box" for p in planes),
        *(f"{p}, phase 1 after contrast, no lesion box" for p in planes),
        "B-mode, no lesion box",
        *(f"{p}, before contrast, lesion box shown" for p in planes),
        *(f"{p}, phase 1 after contrast, lesion box shown" for p in planes),
    ]


def test_the_pictures_are_those_of_the_cache(made: Any, sheet: Path) -> None:
    cache = open_cache(made.folder / "cache")
    shown = {title: pixels for title, pixels, _ in reversed(Sheet(sheet).pictures)}  # row 2's
    volume = cache.arrays["mri"][0].astype(float)
    for title, values, (low, high) in (
        ("CC, lesion box shown", cache.arrays["mg"][0, 0], (-3, 3)),
        ("CC, lesion, lesion box shown", cache.arrays["mg"][0, 2], (-3, 3)),
        ("MLO, no lesion box", cache.arrays["mg"][0, 1], (-3, 3)),
        ("B-mode, lesion box shown", cache.arrays["us"][0, 0], (-3, 3)),
        ("axial, before contrast, no lesion box", volume[0, 8], (-2, 4)),
        ("coronal, phase 1 after contrast, no lesion box", volume[1, ::-1, 8], (-2, 4)),
        ("sagittal, phase 1 after contrast, no lesion box", volume[1, ::-1, :, 8], (-2, 4)),
    ):
        expected = np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255
        assert np.abs(shown[title] - expected).mean() < 8, title


def test_the_box_stands_on_the_lesion(sheet: Path) -> None:
    pictures = Sheet(sheet).pictures
    boxes = {title: box for title, _, box in reversed(pictures) if box is not None}
    # left, top, width, height: a view of 80 x 60 pixels is 80 wide
    assert boxes["CC, lesion box shown"] == [12.5, 25, 25, 12.5]
    assert boxes["CC, lesion, lesion box shown"] == pytest.approx(
        [16.67, 33.33, 66.67, 33.33], abs=0.02
    )
    assert boxes["B-mode, lesion box shown"] == [25, 37.5, 50, 25]
    # 64 mm wide around the middle of 6 x 6 x 10 mm
    assert boxes["axial, before contrast, lesion box shown"] == pytest.approx(
        [45.31, 45.31, 9.38, 9.38], abs=0.02
    )
    assert boxes["coronal, before contrast, lesion box shown"] == pytest.approx(
        [45.31, 42.19, 9.38, 15.62], abs=0.02
    )
    (found,) = [
        pixels
        for title, pixels, _ in pictures
        if title == "axial, phase 1 after contrast, lesion box shown"
    ]
    brightest = np.unravel_index(found.argmax(), found.shape)
    assert max(abs(place - 7.5) for place in brightest) <= 1.5


def test_the_sheet_is_private_and_names_nobody(sheet: Path) -> None:
    assert sheet.stat().st_mode & 0o777 == 0o600
    assert sheet.parent.stat().st_mode & 0o777 == 0o700
    html = sheet.read_text()
    assert "CANARY" not in html
    page = Sheet(sheet)
    outside = [a for a in page.addresses if not a.startswith(("data:", "#"))]
    assert outside == []
    assert not re.search(r"url\(|@import|https?:", html)


def test_large_sites_come_in_linked_pages_and_older_ones_go(made: Any, tmp_path: Path) -> None:
    cache, records = open_cache(made.folder / "cache"), read_outcomes(made.folder / "cache")
    first = tmp_path / "sheet.html"
    kept = tmp_path / "sheet-of-another.html"
    kept.touch()
    pages = write_sheet(first, cache, records, {}, most=7)
    assert pages == [page_path(first, n) for n in (1, 2)]
    parts = [Sheet(path) for path in pages]
    assert [len(part.pictures) for part in parts] == [10, 7]  # a case is not parted
    assert [part.headings for part in parts] == [
        ["Not in the table now"],
        ["Not in the table now"] * 2,
    ]
    assert "sheet-2.html" in parts[0].addresses
    assert "sheet.html" in parts[1].addresses
    assert [path.stat().st_mode & 0o777 for path in pages] == [0o600] * 2
    write_sheet(first, cache, records, {})
    assert {path.name for path in tmp_path.iterdir()} == {"sheet.html", kept.name}


def test_another_file_by_choice_leaves_its_folder_as_it_was(made: Any, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    result, _ = written(made, "--out", str(tmp_path / "look.html"), "--json")
    assert json.loads(result.stdout) == {"cases": 3, "pages": [str(tmp_path / "look.html")]}
    assert (tmp_path / "look.html").stat().st_mode & 0o777 == 0o600
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_a_sheet_without_a_cache_or_with_other_work_is_refused(site: Any) -> None:
    site.add("a", "us")
    site.config()
    result, _ = written(site)
    assert isinstance(result.exception, CacheError)
    assert "her2-client ingest" in str(result.exception.hint)
    result, _ = written(site, "--review")
    assert isinstance(result.exception, ConfigError)


def test_a_new_cache_removes_the_sheet_of_the_former(site: Any) -> None:
    site.add("a", "us")
    site.config()
    app = typer.Typer()
    app.command()(ingest)
    arguments = ["--site", str(site.folder / "site.yaml"), "--workers", "1"]
    sheet = site.folder / "state" / "ingest" / "sheet.html"
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert written(site)[0].exit_code == 0
    assert sheet.exists()
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert not sheet.exists()


# --- in a browser -------------------------------------------------------------------------------


@pytest.fixture
def page(browser: Browser, sheet: Path) -> Iterator[Browser]:
    browser.messages.clear()
    browser.open(sheet)
    yield browser
    assert browser.messages == []


def choose(page: Browser, modality: str) -> None:
    page.value(
        "(() => { const e = document.querySelector('#modality');"
        f"e.value = '{modality}'; e.dispatchEvent(new Event('change')) }})()"
    )


def test_one_modality_is_shown_alone_and_the_count_says_so(page: Browser) -> None:
    count = "document.querySelector('#count').textContent"
    assert page.value(count) == "3 of 3 cases, 17 pictures on this page"
    choose(page, "us")
    assert page.value(count) == "2 of 3 cases, 2 pictures on this page"
    visible = "[...document.querySelectorAll('img')].filter((i) => i.offsetParent).length"
    assert page.value(visible) == 2
    choose(page, "")
    assert page.value(visible) == 17


def test_the_keyboard_reaches_the_filter_and_the_choice_goes_to_the_next_page(
    browser: Browser, made: Any, tmp_path: Path
) -> None:
    browser.messages.clear()
    cache, records = open_cache(made.folder / "cache"), read_outcomes(made.folder / "cache")
    write_sheet(tmp_path / "sheet.html", cache, records, {}, most=7)
    browser.open(tmp_path / "sheet.html")
    reached = []
    for _ in range(4):
        browser.key("Tab")
        reached.append(browser.value("document.activeElement.tagName"))
    assert reached == ["A", "SUMMARY", "SELECT", "A"]
    choose(browser, "mri")
    browser.click(".pages a")
    browser.wait("location.pathname.endsWith('sheet-2.html') && document.readyState === 'complete'")
    assert browser.value("document.querySelector('#modality').value") == "mri"
    assert browser.value("document.querySelector('#count').textContent").startswith("1 of 2 cases")
    assert browser.messages == []


@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_is_wider_than_the_window(page: Browser, width: int) -> None:
    page.size(width, 900)
    page.value("document.querySelector('details').open = true")
    root = "document.documentElement"
    assert page.value(f"{root}.scrollWidth - {root}.clientWidth") == 0
