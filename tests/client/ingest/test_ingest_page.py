"""The page on a centre's data: what it says, what it keeps, and that a browser shows it well."""

from __future__ import annotations

import re
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from tests.browser import chromium, console_messages

from her2_client.ingest.outcome import Note
from her2_client.ingest.quality.page import bars, count, render, write_page
from her2_client.ingest.quality.readiness import readiness
from her2_client.ingest.quality.sharing import shareable
from her2_client.ingest.summary import IngestSummary, RowNote
from her2_common.config import Policy

POLICY = Policy()
Invent = Callable[..., IngestSummary]
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """The visible text, the cells of each table, addresses, and whether every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.captions: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in {"href", "src", "action", "data", "srcset"}:
                self.addresses.append(value or "")
        if tag == "table":
            self.tables.append([])
            self.captions.append("")
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in {"td", "th"}:
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if {"style", "title"} & set(self.open):
            return
        self.words.append(data)
        if "caption" in self.open:
            self.captions[-1] += data
        elif "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def table(self, caption: str) -> list[list[str]]:
        """The rows of one table, each as the texts of its cells that are not blank."""
        (found,) = [
            table
            for table, title in zip(self.tables, self.captions, strict=True)
            if caption in " ".join(title.split())
        ]
        return [[" ".join(c.split()) for c in row if c.strip()] for row in found]


@pytest.fixture(scope="module")
def summary(invented_summary: Invent) -> IngestSummary:
    return invented_summary(11, 260, faulty=0.12, site="breast-centre-of-the-north")


def test_the_exact_page_says_what_was_counted(summary: IngestSummary) -> None:
    page = Page(render(summary, POLICY))
    exact = summary.as_dict()
    assert "Data at breast-centre-of-the-north" in page.text
    assert "Exact counts: stays at the centre." in page.text
    verdict = readiness(summary, POLICY)
    assert verdict.gaps
    assert verdict.verdict.capitalize() in page.text
    for text in verdict.gaps:
        assert text in page.text
    assert "withheld" not in page.text

    assert ["in the table", "260"] in page.table("Table 1.")
    for column, row in zip(exact["images"], page.table("Table 2.")[1:], strict=True):
        assert row[0].startswith(column)
        assert row[1:] == [str(n) for n in exact["images"][column].values()]
    reasons = page.table("Table 3.")
    for counts in exact["reasons"].values():
        for reason, number in counts.items():
            assert [reason, str(number)] in reasons
    numbers = sorted(int(row[-1]) for row in page.table("Table 4.")[1:])
    assert numbers == sorted(exact["combinations"].values())
    mri = [str(exact[part]["mri"]) for part in ("modalities", "training")]
    assert ["MRI", *mri] in page.table("Table 5.")
    assert ["test", *map(str, exact["splits"]["test"].values())] in page.table("Table 6.")
    boxes = [str(exact["lesion_boxes"]["us"]), str(exact["images"]["us"]["accepted"])]
    assert page.table("Table 7.")[3][1:] == boxes
    ages = [row[1] for row in page.table("Age in years")]
    assert ages == [str(n) for n in exact["clinical"]["age"].values()]
    makes = dict(page.table("Ultrasound"))
    assert makes == {name: str(n) for name, n in exact["scanners"]["us"].items()}


def test_rows_are_named_and_nothing_more(invented_summary: Invent) -> None:
    summary = invented_summary(1, 40, faulty=0)
    for row, column in ((7, "us"), (3, "mg_cc"), (7, "us"), (30, "us")):
        note = Note(column, "quarantined", "text found", "text in 2 places", "look at it")  # type: ignore[arg-type]
        summary.images[note.column]["quarantined"] += 1
        summary.reasons["quarantined"]["text found"] += 1
        summary.notes.append(RowNote(row, note))
    (_, row) = Page(render(summary, POLICY)).table("Table 8.")
    assert row == [
        "text foundquarantined, 4",
        "text in 2 places. look at it",
        "mg_cc 3; us 7 (×2), 30",
    ]


def test_every_row_and_every_message_is_listed_the_worst_first() -> None:
    many = IngestSummary("north", 5000)
    for row in range(2, 5002):
        message = "a gap" if row % 4 else "another gap"
        note = Note("us", "refused" if row % 2 else "quarantined", "gap", message)
        many.reasons[note.disposition]["gap"] += 1
        many.notes.append(RowNote(row, note))
    listed = [row[-1] for row in Page(render(many, POLICY)).table("Table 8.")[1:]]
    rows = [[int(number) for number in re.findall(r"\d+", cell)] for cell in listed]
    assert rows == [
        [row for row in range(2, 5002) if row % 2],
        [row for row in range(2, 5002) if row % 4 == 2],
        [row for row in range(2, 5002) if row % 4 == 0],
    ]


def test_a_page_of_a_cache_that_was_not_published_says_so(summary: IngestSummary) -> None:
    said = "Nothing was published"
    assert said in Page(render(summary, POLICY)).text
    assert said not in Page(render(summary, POLICY, shareable(summary, POLICY))).text
    assert said not in Page(render(replace(summary, published=True), POLICY)).text


def test_the_page_to_share_shows_what_may_leave(summary: IngestSummary) -> None:
    html = render(summary, POLICY, shareable(summary, POLICY))
    page = Page(html)
    shared = shareable(summary, POLICY)
    assert "Counts below 10 are withheld" in page.text
    for column, row in zip(shared["images"], page.table("Table 2.")[1:], strict=True):
        assert row[1:] == [count(n) for n in shared["images"][column].values()]
    for split, row in zip(shared["splits"], page.table("Table 6.")[1:], strict=True):
        assert row[1:] == [count(n) for n in shared["splits"][split].values()]
    stages = [row[1] for row in page.table("Clinical T")]
    assert stages == [count(n) for n in shared["clinical"]["clinical_t"].values()]
    assert "withheld" in stages
    assert "stays at the centre" not in page.text
    verdict = readiness(summary, POLICY)
    for text in (*verdict.blockers, *verdict.gaps, "Table 8.", "expected a sound picture"):
        assert text not in page.text
    assert "Ready with gaps" not in page.text


def test_a_withheld_count_has_no_trace_in_the_page_to_share(invented_summary: Invent) -> None:
    """Two centres that differ in small counts alone give the same page, byte for byte."""
    one, other = (invented_summary(21, 400) for _ in range(2))
    for summary, smallest, largest in ((one, 5, 4), (other, 2, 7)):
        counts = summary.clinical["clinical_t"]
        moved = counts["0"] + counts["4"] - 9
        counts.update({"0": smallest - counts["0"], "4": largest - counts["4"], "2": moved})
        assert counts.total() == summary.accepted
    assert one.as_dict() != other.as_dict()
    assert render(one, POLICY) != render(other, POLICY)
    assert render(one, POLICY, shareable(one, POLICY)) == render(
        other, POLICY, shareable(other, POLICY)
    )


def test_the_exact_page_is_private_and_whole(summary: IngestSummary, tmp_path: Path) -> None:
    exact, share = tmp_path / "quality.html", tmp_path / "quality-to-share.html"
    exact.write_text("an older page")
    exact.chmod(0o644)
    (tmp_path / ".quality.html.tmp").write_text("of a killed process")
    write_page(exact, summary, POLICY)
    write_page(share, summary, POLICY, shareable(summary, POLICY))
    assert stat.S_IMODE(exact.stat().st_mode) == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["quality-to-share.html", "quality.html"]
    assert exact.read_text(encoding="utf-8") == render(summary, POLICY)
    assert share.read_text(encoding="utf-8") == render(summary, POLICY, shareable(summary, POLICY))


def test_the_same_counts_give_the_same_bytes(summary: IngestSummary) -> None:
    before = summary.seconds
    first = render(summary, POLICY)
    summary.seconds += 17
    try:
        assert render(summary, POLICY) == first
    finally:
        summary.seconds = before


def test_nothing_is_loaded_from_elsewhere(summary: IngestSummary) -> None:
    html = render(summary, POLICY)
    assert Page(html).addresses == ["data:,"]
    assert "<script" not in html
    assert not re.search(r"url\(|@import|https?:", html)


def test_a_name_is_text_not_markup(invented_summary: Invent) -> None:
    summary = invented_summary(1, 30, site="<b>north</b>")
    assert "<b>north</b>" not in render(summary, POLICY)
    assert "Data at <b>north</b>" in Page(render(summary, POLICY)).text


@pytest.mark.parametrize("cases", [0, 1, 12])
@pytest.mark.parametrize("share", [False, True])
def test_small_and_empty_sites_have_a_page(
    invented_summary: Invent, cases: int, share: bool
) -> None:
    summary = invented_summary(2, cases)
    page = Page(render(summary, POLICY, shareable(summary, POLICY) if share else None))
    assert len(page.tables) >= 7
    assert ("Not ready" in page.text) == (not share)


def test_bars_are_in_proportion() -> None:
    (one, none, two) = bars({"a": 25, "b": None, "c": 100}, {"a": "A"}, whole=200)
    assert (one.name, one.count, one.length, one.share) == ("A", 25, 25.0, "12 %")
    assert (none.count, none.length, none.share) == (None, None, "")
    assert two.length == 100
    assert [bar.name for bar in bars({"x": 1, "y": None, "z": 9}, by_size=True)] == ["z", "x", "y"]
    assert [bar.length for bar in bars({"x": 0})] == [0.0]


# --- in a browser -------------------------------------------------------------------------------


def test_the_browser_has_no_complaint(summary: IngestSummary, tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", summary, POLICY)
    shown = chromium(tmp_path / "page.html", tmp_path / "profile", "--dump-dom")
    assert console_messages(shown.stderr) == []
    assert "Table 8." in Page(shown.stdout).text


@pytest.mark.parametrize("share", [False, True])
def test_nothing_is_wider_than_the_window(
    summary: IngestSummary, tmp_path: Path, share: bool
) -> None:
    """A script beside the page measures it in a frame as wide as a phone, then as a desktop."""
    html = render(summary, POLICY, shareable(summary, POLICY) if share else None)
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(
        "<iframe id=a width=400 height=800 src=page.html></iframe>"
        "<iframe id=b width=1200 height=800 src=page.html></iframe><p id=out></p>"
        "<script>onload = () => { out.textContent = [a, b].map(f => { const e = "
        "f.contentDocument.documentElement; const s = [...e.querySelectorAll('.scroll')]; "
        "return [e.scrollWidth - e.clientWidth, s.filter(x => x.scrollWidth > x.clientWidth)"
        ".length] }).join() }</script>"
    )
    shown = chromium(frame, tmp_path / "profile", "--allow-file-access-from-files", "--dump-dom")
    found = re.search(r'<p id="out">([\d,]+)</p>', shown.stdout)
    assert found is not None
    phone, scrolled_phone, desktop, scrolled_desktop = map(int, found[1].split(","))
    assert (phone, desktop, scrolled_desktop) == (0, 0, 0)
    assert scrolled_phone <= 1, "most tables fit a phone without scrolling sideways"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_painted_in_either_scheme(
    summary: IngestSummary, tmp_path: Path, scheme: str
) -> None:
    write_page(tmp_path / "page.html", summary, POLICY)
    picture = tmp_path / "page.png"
    options = ["--window-size=1200,1600", f"--screenshot={picture}"]
    if scheme == "dark":
        options.append("--blink-settings=preferredColorScheme=0")
    chromium(tmp_path / "page.html", tmp_path / "profile", *options)
    with Image.open(picture) as image:
        assert image.size == (1200, 1600)
        colours = Counter(image.convert("RGB").get_flattened_data())
    paper = colours.most_common(1)[0][0]
    assert (sum(paper) > 700) == (scheme == "light")
    assert len(colours) > 200
