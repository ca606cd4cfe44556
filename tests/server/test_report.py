"""report.html: complete, the same each time, self-contained, and sound in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest
from PIL import Image
from tests.browser import chromium, console_messages

from her2_common.cases import LABEL_SOURCES, LABELS
from her2_common.errors import RunError
from her2_common.wire import LeftOut
from her2_server.evaluation import evaluate
from her2_server.report import page, text, write_report
from her2_server.report.svg import INK, add_axes, new_figure, to_svg

FIGURES: dict[str, Any] = {}
"""What the figures are drawn from -> the figures: to draw them takes most of a report's time."""


@pytest.fixture(autouse=True)
def _figures_of_one_content_are_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = page._figures

    def drawn_once(summary: Any, rounds: Any) -> Any:
        parts = ("test", "validation", "sites", "seconds", "temperature")
        content = [rounds, summary["run"]["final_round"], *(summary.get(p) for p in parts)]
        key = json.dumps(content)
        if key not in FIGURES:
            FIGURES[key] = draw(summary, rounds)
        return FIGURES[key]

    monkeypatch.setattr(page, "_figures", drawn_once)


VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """The page's ids, references, visible text, and whether every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: Counter[str] = Counter()
        self.references: set[str] = set()
        self.addresses: list[str] = []
        self.tags: Counter[str] = Counter()
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in VOID:
            self.open.append(tag)
        self._attributes(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self._attributes(attrs)

    def _attributes(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids[value or ""] += 1
            elif name in {"aria-labelledby", "aria-describedby", "for"}:
                self.references.update((value or "").split())
            elif name.split(":")[-1] in {"href", "src", "action", "data", "srcset"}:
                if (value or "").startswith("#"):
                    self.references.add((value or "")[1:])
                else:
                    self.addresses.append(value or "")
            self.references.update(re.findall(r"url\(#([^)]+)\)", value or ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"style", "title", "desc"}:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def change(run: Path, target: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the run in which ``edit`` has changed the summary."""
    shutil.copytree(run, target)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    edit(summary)
    (target / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return target


def page_of(run: Path) -> Page:
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_the_report_says_where_labels_come_from(simulated_run: Path, tmp_path: Path) -> None:
    def edit(summary: dict[str, Any]) -> None:
        for index, site in enumerate(summary["sites"]):
            site["label_sources"] = {"biopsy": 200 + index, "excised_untreated": None}
            site["left_out_for"] = {"no_image": 30, "treated_only": 41 + index}

    summary = json.loads((simulated_run / "summary.json").read_text(encoding="utf-8"))
    shown = page_of(change(simulated_run, tmp_path / "run", edit)).text
    for index in range(len(summary["sites"])):
        assert f"biopsy {200 + index}; " in shown
        assert f"{text.SOURCE_NAMES['treated_only']} {41 + index}" in shown
    assert text.SOURCE_NAMES["excised_untreated"] in shown


def test_every_source_and_reason_has_a_name() -> None:
    reasons = {name for part in get_args(LeftOut) for name in get_args(part) or (part,)}
    assert set(text.SOURCE_NAMES) == {*LABEL_SOURCES, *reasons}
    assert set(text.LABEL_SOURCES) == set(text.OUTCOMES) == set(LABELS)


def test_the_page_says_what_the_summary_says(simulated_run: Path, tmp_path: Path) -> None:
    summary = json.loads((simulated_run / "summary.json").read_text(encoding="utf-8"))
    shown = page_of(change(simulated_run, tmp_path / "run", lambda s: None)).text
    test = summary["test"]
    assert "Synthetic data: no clinical claim." in shown
    assert f"an AUC of {test['auc']['estimate']:.2f}" in shown
    assert f"interval {test['auc']['low']:.2f} to {test['auc']['high']:.2f}" in shown
    assert f"measured on {test['n']} cases ({test['positives']} positive) of 4 centres" in shown
    for name in ("sensitivity", "specificity", "ppv", "npv"):
        assert text.percent(test[name]) in shown
    for cell, words in {
        "tp": "true positive",
        "fp": "false positive",
        "tn": "true negative",
        "fn": "false negative",
    }.items():
        assert f"{test['confusion'][cell]} {words}" in shown
    for site in summary["sites"]:
        assert site["name"] in shown
        assert text.size(site["sent_bytes"]) in shown
    assert "withheld" in shown
    assert "<10" not in shown
    assert "4 D valley-practice refused norm" in shown
    assert "7 B river-clinic missing timeout" in shown
    assert "not published: fewer than 10" in shown
    assert summary["run"]["command"] in shown
    assert summary["run"]["config_sha256"] in shown
    assert "0.5 is a coin" in shown
    assert "The test cases were read once" in shown


def test_no_number_of_a_suppressed_group_is_in_the_page(
    simulated_run: Path, tmp_path: Path
) -> None:
    """The suppressed groups are named in figure and table, each time without a number."""
    run = change(simulated_run, tmp_path / "run", lambda s: None)
    html = write_report(run).read_text(encoding="utf-8")
    test = json.loads((run / "summary.json").read_text(encoding="utf-8"))["test"]
    hidden = [name for name, numbers in test["by_centre"].items() if "suppressed" in numbers]
    assert len(hidden) == 2
    for name in hidden:
        assert f"{name}: not published" in html


def test_the_same_run_gives_the_same_bytes(simulated_run: Path, tmp_path: Path) -> None:
    one = write_report(change(simulated_run, tmp_path / "a", lambda s: None)).read_bytes()
    FIGURES.clear()  # drawn anew
    two = write_report(change(simulated_run, tmp_path / "b", lambda s: None)).read_bytes()
    assert one == two
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "metrics.jsonl",
        "report.html",
        "summary.json",
    ]


def test_the_page_loads_nothing_and_refers_only_to_itself(
    simulated_run: Path, tmp_path: Path
) -> None:
    run = change(simulated_run, tmp_path / "run", lambda s: None)
    page = page_of(run)
    html = (run / "report.html").read_text(encoding="utf-8")
    assert page.addresses == ["data:,"]
    assert page.tags["script"] == 0
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    # matplotlib's namespaces are the only addresses, and no browser fetches those
    assert set(re.findall(r"https?://[^\"'\s<)]+", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert [name for name, times in page.ids.items() if times > 1] == []
    assert page.references <= set(page.ids)


def test_every_figure_has_a_title_and_follows_the_page(simulated_run: Path, tmp_path: Path) -> None:
    run = change(simulated_run, tmp_path / "run", lambda s: None)
    figures = re.findall(
        r"<svg.*?</svg>", write_report(run).read_text(encoding="utf-8"), flags=re.DOTALL
    )
    assert len(figures) == 4 + 8
    for figure in figures:
        assert re.search(r"<title id=[^>]+>\S.*?</title><desc id=[^>]+>\S.*?</desc>", figure)
        # A colour of its own would vanish in the dark scheme, a font of its own look foreign
        assert re.findall(r"#[0-9a-f]{6}\b", figure) == []
        assert "DejaVu" not in figure


def test_a_figure_keeps_its_ids_to_itself() -> None:
    def draw(name: str) -> str:
        figure = new_figure(2, 2)
        add_axes(figure, (0.5, 0.5, 1, 1)).plot([0, 1], [0, 1], color=INK)
        return to_svg(figure, name, "a < b", "line & more")

    one, other = Page(draw("one")), Page(draw("other"))
    assert one.ids
    assert not one.ids.keys() & other.ids.keys()
    assert '<title id="one-title">a &lt; b</title>' in draw("one")
    assert draw("one") == draw("one")


def test_too_few_test_cases_give_a_page_without_numbers(
    simulated_run: Path, tmp_path: Path, make_scores: Callable[..., Any]
) -> None:
    empty = evaluate(make_scores("test"), 0.5, min_cell=1000)
    assert empty["suppressed"] is True
    shown = page_of(change(simulated_run, tmp_path / "run", lambda s: s.update(test=empty))).text
    assert "so no result is published" in shown
    assert "Not published: the pooled test cases are too few." in shown


def test_a_run_about_pcr_says_so(simulated_run: Path, tmp_path: Path) -> None:
    def edit(summary: dict[str, Any]) -> None:
        summary["run"].update(label="pcr", synthetic=False)
        summary["threshold"]["rule"] = "fixed: validation holds one class only"

    shown = page_of(change(simulated_run, tmp_path / "run", edit)).text
    assert "pCR = ypT0/is ypN0" in shown
    assert "Therapy follows the biopsy" in shown
    assert "MAP model of the response to therapy, federated run" in shown
    assert "HER2-positive case" not in shown
    assert "HER2-negative" not in shown
    assert "Given one test case with pCR and one without pCR, drawn at random" in shown
    assert "Synthetic data" not in shown
    assert "by rule (fixed: validation holds one class only)" in shown


def test_a_run_about_her2_has_no_word_on_therapy(simulated_run: Path, tmp_path: Path) -> None:
    shown = page_of(change(simulated_run, tmp_path / "run", lambda s: None)).text
    assert "Therapy follows the biopsy" not in shown
    assert "HER2-low" not in shown
    assert "begun from" not in shown
    assert "the first point is the untrained model" in shown


@pytest.mark.parametrize(
    ("levels", "says"),
    [
        (None, "HER2-low against HER2-zero: no test case tells its level by IHC and ISH."),
        ({"suppressed": True}, "withheld, because it would show a group of fewer than 10"),
        (
            {"n": 1120, "low": 1000, "zero": 120,
             "auc": {"estimate": 0.612, "low": 0.55, "high": 0.67}},
            "among the 1,120 HER2-negative test cases whose IHC and ISH tell the level (1,000 low, "
            "120 zero), the model scores a low one higher than a zero one 61 times in 100: an AUC "
            "of 0.61 (95 % confidence interval 0.55 to 0.67). An AUC of 0.5 is chance; the whole "
            "interval lies above 0.5",
        ),
    ],
    ids=["none", "suppressed", "shown"],
)  # fmt: skip
def test_a_run_of_three_levels_says_how_well_it_tells_them(
    simulated_run: Path, tmp_path: Path, levels: dict[str, Any] | None, says: str
) -> None:
    def edit(summary: dict[str, Any]) -> None:
        summary["run"]["plan"]["her2_levels"] = 3
        summary["test"]["levels"] = levels

    assert says in page_of(change(simulated_run, tmp_path / "run", edit)).text


def test_the_release_that_a_run_began_from_is_named(simulated_run: Path, tmp_path: Path) -> None:
    def edit(summary: dict[str, Any]) -> None:
        summary["initial"] = {
            "run": "her2-2026",
            "label": "reference",
            "sha256": "ab" * 32,
            "groups": ["mg", "us", "mri"],
            "afresh": ["clinical", "head"],
        }

    shown = page_of(change(simulated_run, tmp_path / "run", edit)).text
    assert "the release of her2-2026 (HER2 of the tumour before treatment" in shown
    assert "MG, US and MRI; clinical and head began afresh; SHA-256 " + "ab" * 32 in shown
    assert "the first point is the initial model" in shown


def test_counts_that_a_site_keeps_stay_unknown(simulated_run: Path, tmp_path: Path) -> None:
    def edit(summary: dict[str, Any]) -> None:
        site = summary["sites"][3]
        for part in ("flow", "cases", "positives", "modalities", "combinations"):
            site[part] = dict.fromkeys(site[part])

    shown = page_of(change(simulated_run, tmp_path / "run", edit)).text
    assert f"D valley-practice (incomplete) {' '.join(['withheld'] * 7)}" in shown


def test_words_from_a_site_are_never_markup(simulated_run: Path, tmp_path: Path) -> None:
    run = change(simulated_run, tmp_path / "run", lambda s: None)
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    lines[2]["sites"]["river-clinic"].update(status="refused", reason="<script>alert(1)</script>")
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    page = page_of(run)
    assert page.tags["script"] == 0
    assert "<script>alert(1)</script>" in page.text


def test_without_metrics_there_are_no_learning_curves(simulated_run: Path, tmp_path: Path) -> None:
    run = change(simulated_run, tmp_path / "run", lambda s: None)
    (run / "metrics.jsonl").unlink()
    assert "no learning curves" in page_of(run).text


def test_rounds_without_an_answer_leave_gaps(simulated_run: Path, tmp_path: Path) -> None:
    """A round may have no loss, and a validation of one class no AUC."""
    run = change(simulated_run, tmp_path / "run", lambda s: None)
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.update(loss=None, validation={"auc": None, "n": 4})
    # A round that was repeated after a crash counts once
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, [*lines, lines[-1]])))
    assert "Every update of every centre" not in page_of(run).text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", None, "summary.json: no such file"),
        ("summary.json", "{", "summary.json: not JSON"),
        ("summary.json", "[]", "summary.json: expected a JSON object, got list"),
        ("summary.json", '{"version": "1"}', "got no run"),
        ("metrics.jsonl", "{}\n", "metrics.jsonl, line 1: expected the JSON of a round"),
        ("metrics.jsonl", '{"round": 1', "metrics.jsonl, line 1"),
    ],
)
def test_what_cannot_be_read_is_named(
    simulated_run: Path, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    run = change(simulated_run, tmp_path / "run", lambda s: None)
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_text(content)
    with pytest.raises(RunError, match=re.escape(message)):
        write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("gone", ["run.seed", "test.auc", "sites.0.bytes"])
def test_a_summary_of_another_form_is_refused(
    simulated_run: Path, tmp_path: Path, gone: str
) -> None:
    def edit(summary: Any) -> None:
        *way, last = gone.split(".")
        for step in way:
            summary = summary[int(step) if step.isdigit() else step]
        del summary[last]

    with pytest.raises(RunError, match="expected the summary of a finished run"):
        write_report(change(simulated_run, tmp_path / "run", edit))


# --- what a score is worth ----------------------------------------------------------------------


def test_the_temperature_and_what_it_did_are_told(simulated_run: Path, tmp_path: Path) -> None:
    record = json.loads((simulated_run / "summary.json").read_text())["temperature"]
    shown = page_of(change(simulated_run, tmp_path / "run", lambda s: None)).text
    assert f"log odds were divided by {record['temperature']:.2f}, the temperature" in shown
    assert f"fitted on the {record['n']} validation cases" in shown
    numbers = (record["validation"]["before"], record["validation"]["after"], record["test"])
    names = ("validation, as trained", "validation, as released", "test, as released")
    for name, part in zip(names, numbers, strict=True):
        assert f"{name} {part['log_loss']:.3f} {text.interval(part['slope'])}" in shown


def test_an_intercept_and_a_timid_model_are_told(simulated_run: Path, tmp_path: Path) -> None:
    def edit(summary: dict[str, Any]) -> None:
        summary["temperature"].update(temperature=0.8, intercept=-0.45, n=None)

    shown = page_of(change(simulated_run, tmp_path / "run", edit)).text
    assert "As trained, scores were too timid" in shown
    assert "fitted on validation cases, and −0.45 was added" in shown


@pytest.mark.parametrize("temperature", [None, "the fit does not converge"])
def test_without_a_temperature_there_is_no_table_of_it(
    simulated_run: Path, tmp_path: Path, temperature: str | None
) -> None:
    def edit(summary: dict[str, Any]) -> None:
        if temperature is None:
            del summary["temperature"]
        else:
            summary["temperature"]["reason"] = temperature

    shown = page_of(change(simulated_run, tmp_path / "run", edit)).text
    assert "No temperature was fitted" in shown
    assert (temperature or "scores are as trained") in shown
    assert "Table 5." not in shown
    assert "Figure 5." not in shown


def test_what_small_numbers_leave_out_of_the_temperature_is_a_dash(
    simulated_run: Path, tmp_path: Path
) -> None:
    def edit(summary: dict[str, Any]) -> None:
        summary["temperature"].update(bins=None, n=None)
        summary["temperature"]["validation"]["before"] = None
        summary["temperature"]["test"]["slope"] = None

    shown = page_of(change(simulated_run, tmp_path / "run", edit)).text
    assert "validation, as trained – –" in shown
    assert "Figure 5." not in shown


def test_limits_of_unlikeness_are_told(simulated_run: Path, tmp_path: Path) -> None:
    shown = page_of(change(simulated_run, tmp_path / "run", lambda s: None)).text
    assert "mammography none: fewer than 99 validation cases" in shown
    assert "ultrasound 0.688 withheld" in shown
    assert "MRI 0.719 12" in shown


# --- words ---------------------------------------------------------------------------------------


def test_numbers_are_rounded_for_readers() -> None:
    assert text.number(-0.001) == "0.00"
    assert text.number(-0.26) == "−0.26"
    assert text.number(None) == "–"
    assert text.size(999_499) == "999 kB"
    assert text.size(1_000_000) == "1.0 MB"
    assert text.size(99_960) == "100 kB"
    assert text.size(2_000_000_000_000) == "2000 GB"
    assert text.duration(59.96) == "1 min 0 s"
    assert text.moment("yesterday") == "yesterday"
    assert text.moment("2026-03-01T10:00:00+00:00") == "1 March 2026, 10:00 UTC"


@pytest.mark.parametrize(
    ("auc", "says"),
    [
        ({"estimate": 0.7, "low": 0.6, "high": 0.8}, "better than chance"),
        ({"estimate": 0.6, "low": 0.5, "high": 0.7}, "cannot be told from chance"),
        ({"estimate": 0.3, "low": 0.2, "high": 0.4}, "worse than chance"),
        (None, "cannot be said"),
    ],
)
def test_the_verdict_follows_the_interval(auc: dict[str, float] | None, says: str) -> None:
    assert says in text.verdict(auc)


# --- in a browser --------------------------------------------------------------------------------


def test_the_browser_has_no_complaint(simulated_run: Path, tmp_path: Path) -> None:
    report = write_report(change(simulated_run, tmp_path / "run", lambda s: None))
    shown = chromium(report, tmp_path / "profile", "--dump-dom")
    assert console_messages(shown.stderr) == []
    dom = Page(shown.stdout)
    assert dom.tags["svg"] == 12
    for words in (
        "Synthetic data: no clinical claim.",
        "How to read this",
        "Figure 9.",
        "Table 9.",
    ):
        assert words in dom.text


def test_the_check_above_sees_what_it_looks_for(tmp_path: Path) -> None:
    """The page's own policy refuses a foreign picture, and the browser says so."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\">"
        "<img src='file:///nowhere.png'>"
    )
    assert console_messages(chromium(page, tmp_path / "profile", "--dump-dom").stderr)


def test_nothing_is_wider_than_the_window(simulated_run: Path, tmp_path: Path) -> None:
    """A script beside the page measures it in a frame as wide as a phone, then as a desktop.

    Chromium's own window cannot be narrower than 500 pixels, hence the frames.
    """
    report = write_report(change(simulated_run, tmp_path / "run", lambda s: None))
    html = report.read_text(encoding="utf-8")
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    report.write_text(html, encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(
        "<iframe id=a width=400 height=800 src='run/report.html'></iframe>"
        "<iframe id=b width=1200 height=800 src='run/report.html'></iframe><p id=out></p>"
        "<script>onload = () => { out.textContent = [a, b].map(f => { const e = "
        "f.contentDocument.documentElement; return e.scrollWidth - e.clientWidth }).join() }"
        "</script>"
    )
    shown = chromium(frame, tmp_path / "profile", "--allow-file-access-from-files", "--dump-dom")
    assert '<p id="out">0,0</p>' in shown.stdout


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_painted_in_either_scheme(
    simulated_run: Path, tmp_path: Path, scheme: str
) -> None:
    report = write_report(change(simulated_run, tmp_path / "run", lambda s: None))
    picture = tmp_path / "page.png"
    options = ["--window-size=1200,1600", f"--screenshot={picture}"]
    if scheme == "dark":
        options.append("--blink-settings=preferredColorScheme=0")
    chromium(report, tmp_path / "profile", *options)
    with Image.open(picture) as image:
        assert image.size == (1200, 1600)
        colours = Counter(image.convert("RGB").get_flattened_data())
    paper = colours.most_common(1)[0][0]
    assert (sum(paper) > 700) == (scheme == "light")
    assert len(colours) > 200
