"""The page of a response evaluation in bad company, in a run's report, and in a browser."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.browser import chromium, console_messages
from tests.server.response_document import CENTRES, response_document
from tests.server.test_report import Page
from tests.server.test_response_report import drawn, leaves, page, replace

from her2_common.errors import RunError
from her2_server.report import response_words as words
from her2_server.report import write_report, write_response_report

# --- hostile words -------------------------------------------------------------------------------

HOSTILE = [
    "<script>alert(1)</script>",
    "a&amp;b \"quoted\" 'name'",
    "$\\frac{1}{0}$",
    "font-family: x",
    'url(#x) id="y" xlink:href="#z"',
    "</text></svg><b>",
    "north\u202ehtuos\x00\n",
    "-->",
    "北京 🏥",
    "{{ 7 * 7 }}",
    "a" * 300,
]


def renamed(name: str) -> dict[str, Any]:
    """The document, in which the centre "north" has another name and a term more."""
    text = json.dumps(response_document()).replace('"north"', json.dumps(name))
    changed: dict[str, Any] = json.loads(text)
    changed["logistic"][0]["terms"][f"centre[{name}]"] = changed["logistic"][0]["terms"]["hr"]
    return changed


@pytest.mark.parametrize("name", HOSTILE)
def test_the_name_of_a_centre_is_never_markup(name: str) -> None:
    read = page(renamed(name))
    plain = Page(drawn())
    more = Counter({"tr": 1, "th": 1, "bdi": 1, "td": 4, "span": 2})  # the added term
    drawing = {
        "g",
        "text",
        "path",
        "use",
        "defs",
        "rect",
        "clippath",
    }  # a long name takes two lines
    assert {tag: n for tag, n in read.tags.items() if tag not in drawing} == {
        tag: n for tag, n in (plain.tags + more).items() if tag not in drawing
    }
    assert " ".join(words.shown(name).split()) in read.text
    assert read.ids == plain.ids
    assert not {"\u202e", "\x00"} & set("".join(read.words))


def test_reasons_and_warnings_are_never_markup() -> None:
    document = response_document()
    for way, value in leaves(response_document()):
        if isinstance(value, str) and way[0] in {"warnings", "suppressed", "holm", "roc", "auc"}:
            replace(document, way, "<script>x</script>")
    document["mcnemar"] = {"refused": "<script>x</script>"}
    assert page(document).tags["script"] == 0


# --- the file, and the run's own report ----------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "expected a document of format 'her2-map response', got 'list'"),
        ({}, "got None"),
        ({"format": "her2-map response"}, "got one of another form (KeyError: 'plan')"),
    ],
)
def test_another_document_is_refused(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(RunError, match=re.escape(message)):
        write_response_report(document, tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("gone", ["threshold", "primary.verdict", "auc.imaging", "holm.0.p_value"])
def test_a_document_without_a_number_is_refused(tmp_path: Path, gone: str) -> None:
    document = response_document()
    part: Any = document
    *way, last = (int(step) if step.isdigit() else step for step in gone.split("."))
    for step in way:
        part = part[step]
    del part[last]
    with pytest.raises(RunError, match="got one of another form"):
        write_response_report(document, tmp_path / "page.html")


def run_with(simulated_run: Path, folder: Path, content: str) -> Path:
    shutil.copytree(simulated_run, folder)
    (folder / "response.json").write_text(content, encoding="utf-8")
    return folder


def test_the_runs_report_has_the_verdict_the_forest_and_a_link(
    simulated_run: Path, tmp_path: Path
) -> None:
    run = run_with(simulated_run, tmp_path / "run", json.dumps(response_document()))
    alone = Page(write_report(run).read_text(encoding="utf-8"))
    assert "Image against needle: the response to therapy Supported" in alone.text
    assert response_document()["primary"]["do_not_quote"] in alone.text
    assert response_document()["plan"]["sha256"] in alone.text
    assert "response-primary-title" in alone.ids
    assert alone.addresses == ["data:,"]
    write_response_report(response_document(), run / "response.html")
    linked = Page(write_report(run).read_text(encoding="utf-8"))
    assert linked.addresses == ["data:,", "response.html"]
    assert [name for name, times in linked.ids.items() if times > 1] == []


def test_without_a_response_the_runs_report_has_no_word_of_it(
    simulated_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(simulated_run, tmp_path / "run")
    shown = Page(write_report(tmp_path / "run").read_text(encoding="utf-8")).text
    assert "Image against needle" not in shown


def test_the_section_of_a_refused_comparison_has_no_figure(
    simulated_run: Path, tmp_path: Path
) -> None:
    document = response_document() | {"primary": {"refused": "expected 3 centres, got 2"}}
    run = run_with(simulated_run, tmp_path / "run", json.dumps(document))
    read = Page(write_report(run).read_text(encoding="utf-8"))
    assert "The primary comparison was not computed: expected 3 centres, got 2." in read.text
    assert "response-primary-title" not in read.ids


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "response.json: not JSON"),
        ("[]", "response.json: expected a JSON object, got list"),
        ('{"format": "her2-map response"}', "response.json: expected the document of a response"),
    ],
)
def test_a_broken_response_of_a_run_is_named(
    simulated_run: Path, tmp_path: Path, content: str, message: str
) -> None:
    run = run_with(simulated_run, tmp_path / "run", content)
    with pytest.raises(RunError, match=re.escape(message)):
        write_report(run)


# --- in a browser --------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The page, as a file."""
    write_response_report(response_document(), tmp_path / "response.html")
    return tmp_path / "response.html"


def test_the_browser_has_no_complaint(written: Path, tmp_path: Path) -> None:
    shown = chromium(written, tmp_path / "profile", "--dump-dom")
    assert console_messages(shown.stderr) == []
    assert Page(shown.stdout).tags["svg"] == 7


def test_nothing_is_wider_than_a_phone_a_desktop_or_a_sheet_of_paper(
    written: Path, tmp_path: Path
) -> None:
    """Wide tables scroll inside their frame on a screen; on paper nothing can, so nothing may.

    672 pixels are what the margins leave of A4; the rules of print are made to hold there.
    """
    html = written.read_text(encoding="utf-8")
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    written.write_text(html, encoding="utf-8")
    assert html.count("@media print") == 1
    (tmp_path / "print.html").write_text(html.replace("@media print", "@media all"))
    frames = "".join(
        f"<iframe id={name} width={width} height=800 src='{source}'></iframe>"
        for name, width, source in (
            ("a", 390, "response.html"),
            ("b", 1200, "response.html"),
            ("c", 672, "print.html"),
        )
    )
    (tmp_path / "frame.html").write_text(
        f"{frames}<p id=out></p><script>onload = () => {{ out.textContent = [a, b, c].map(f => {{ "
        "const e = f.contentDocument.documentElement; return e.scrollWidth - e.clientWidth "
        "}).join() + ';' + Math.max(...[...b.contentDocument.querySelectorAll('.scroll')].map("
        "e => e.scrollWidth - e.clientWidth)) }</script>"
    )
    shown = chromium(
        tmp_path / "frame.html",
        tmp_path / "profile",
        "--allow-file-access-from-files",
        "--dump-dom",
    )
    assert '<p id="out">0,0,0;0</p>' in shown.stdout


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_painted_in_either_scheme(written: Path, tmp_path: Path, scheme: str) -> None:
    picture = tmp_path / "page.png"
    options = ["--window-size=1200,1600", f"--screenshot={picture}"]
    if scheme == "dark":
        options.append("--blink-settings=preferredColorScheme=0")
    chromium(written, tmp_path / "profile", *options)
    with Image.open(picture) as image:
        colours = Counter(image.convert("RGB").get_flattened_data())
    paper = colours.most_common(1)[0][0]
    assert (sum(paper) > 700) == (scheme == "light")
    assert len(colours) > 200


def test_it_prints(written: Path, tmp_path: Path) -> None:
    sheets = tmp_path / "page.pdf"
    chromium(written, tmp_path / "profile", "--no-pdf-header-footer", f"--print-to-pdf={sheets}")
    pages = sheets.read_bytes().count(b"/Type /Page\n")
    assert 5 <= pages <= 20


# --- words ---------------------------------------------------------------------------------------


def test_centres_are_listed() -> None:
    assert words.listed(CENTRES) == "north, river, valley, coast"
    assert words.listed([]) == "none"


@pytest.mark.parametrize(
    ("p", "said"),
    [
        (0.05, "0.050"),
        (0.0009, "0.0009"),
        (0.00004, "0.000040"),
        (0.0, "<0.000001"),
        (1.0, "1.000"),
    ],
)
def test_a_p_value_is_never_rounded_to_nothing(p: float, said: str) -> None:
    assert words.p_value(p) == said
