"""The page of a response evaluation: all that the document says, and nothing else."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.response_document import HIDDEN, WARNING, e, response_document
from tests.server.test_report import Page

from her2_common.pages import style
from her2_common.response.primary import RULES
from her2_server.report import (
    forest,
    response,
    response_figures,
    write_response_report,
)
from her2_server.report import response_words as words
from her2_server.report.response import render_response

TAG = words.ALL_COMERS_TAG
SECTIONS = (
    *("primary", "auc", "roc", "operating_points", "calibration", "net_benefit", "mcnemar"),
    *("discordance", "reclassification", "subgroups", "ipw"),
)
"""Parts that may be refused."""

Way = tuple[str | int, ...]


@cache
def drawn() -> str:
    """The page of the document as it is."""
    return render_response(response_document())


def page(document: dict[str, Any]) -> Page:
    read = Page(render_response(document))
    assert read.open == []
    return read


def leaves(part: Any, way: Way = ()) -> Iterator[tuple[Way, Any]]:
    """Every value of the document that is not a container, with the way to it."""
    if isinstance(part, dict):
        for key, value in part.items():
            yield from leaves(value, (*way, key))
    elif isinstance(part, list):
        for index, value in enumerate(part):
            yield from leaves(value, (*way, index))
    else:
        yield way, part


def replace(document: Any, way: Way, value: Any) -> None:
    for step in way[:-1]:
        document = document[step]
    document[way[-1]] = value


NUMBERS = [
    way
    for way, value in leaves(response_document())
    if isinstance(value, int | float) and not isinstance(value, bool)
]


# --- what stands where ---------------------------------------------------------------------------


def test_the_verdict_comes_first_then_what_may_not_be_said_then_plan_and_threshold() -> None:
    document, shown = response_document(), Page(drawn()).text
    primary = document["primary"]
    order = [
        "Synthetic data: no clinical claim.",
        "Supported",
        "This may be quoted",
        primary["quote"],
        "This may not be said",
        primary["do_not_quote"],
        "frozen threshold 0.4375 from: release",
        document["plan"]["sha256"],
        document["pcr"],
        document["warnings"][0],
        "How to read this",
        "The primary comparison",
    ]
    places = [shown.index(part) for part in order]
    assert places == sorted(places)


@pytest.mark.parametrize("verdict", RULES)
def test_each_verdict_is_a_word_and_a_colour(verdict: str) -> None:
    document = response_document()
    document["primary"]["verdict"] = verdict
    html = render_response(document)
    name = verdict.replace(" ", "-")
    assert f'<div class="verdict {name}">' in html
    colours = {
        selector: colour
        for selectors, colour in re.findall(
            r"^(\.verdict\.[^{]+) \{ border-left-color: var\(--([a-z-]+)\)",
            style("her2_server.report", "style.css"),
            flags=re.MULTILINE,
        )
        for selector in selectors.split(", ")
    }
    assert (colours.get(f".verdict.{name}") == "green") == (verdict == "supported")
    assert (f".verdict.{name}" in colours) == (verdict != "not compared")  # grey
    assert f'<p class="ruling">{verdict.capitalize()}</p>' in html
    assert f"<title>Image against needle: {verdict}</title>" in html


def test_tables_and_figures_hold_the_numbers_with_their_intervals() -> None:
    shown = Page(drawn()).text.replace(" ;", ";")
    for said in (
        "north 167 68 of 131 51.9 % (43.4 to 60.3) 11 of 36 30.6 % (18.1 to 46.9) "
        "2.45 (1.12 to 5.39) 21.4 (4.0 to 38.7)",
        "Mantel-Haenszel, by centre 1.85 (1.12 to 3.05) supported",
        "without north 1.52 (0.79 to 2.91) inconclusive, changes",
        "without coast 1.70 (1.01 to 2.84) supported",
        "Cochran-Mantel-Haenszel χ² = 6.09, df 1, p = 0.014",
        "Breslow-Day without Tarone χ² = 8.39, df 3, p = 0.038",
        "power at an odds ratio of 2.00 81.5 %",
        "imaging less biopsy north 161 of 527 0.563 (0.508 to 0.617) 0.609 (0.564 to 0.654) "
        "−0.046 (−0.089 to −0.003); z = −2.11, p = 0.035",
        "sensitivity 216 of 402 53.7 % (47.6 to 59.0) 53.7 % (47.0 to 59.5)",
        "20 % 0.135 (0.106 to 0.165) 0.151 (0.119 to 0.184) −0.016 (−0.029 to −0.002)",
        "biopsy HER2-positive × score, from 0 to 1 1.739 (0.492 to 2.986) 0.636 "
        "5.689 (1.636 to 19.790) 0.006",
        "HR-negative 97 of 181 1.57 (0.76 to 3.22) 11.2 points (−6.7 to 29.1)",
        "E-value of the risk ratio, and of the bound nearer to 1 2.21 and 1.24",
        "likelihood ratio: response 0.011 0.089",
        "patients without −0.118 (−0.151 to −0.084) 0.0019 (−0.0005 to 0.0044)",
        "with a pCR 47 54 statistic = 47.00, p = 0.533",
        "coast 38 of 150 logistic response",
    ):
        assert said in shown, said


def test_every_figure_is_told_in_words_and_follows_the_page() -> None:
    figures = re.findall(r"<svg.*?</svg>", drawn(), flags=re.DOTALL)
    assert len(figures) == 7
    for figure in figures:
        assert re.search(r"<title id=[^>]+>\S.*?</title><desc id=[^>]+>\S.*?</desc>", figure)
        assert re.findall(r"#[0-9a-f]{6}\b", figure) == []
    forest = figures[0]
    assert "Mantel-Haenszel: 1.85 (1.12 to 3.05), 415 patients" in forest
    assert "OR (95 % interval)" in forest
    assert "odds ratio of pCR, logarithmic scale" in forest
    assert ">1</text>" in forest  # the tick of no difference
    assert "threshold probability of pCR, %" in drawn()


def test_the_warning_stands_beside_every_number_over_all_comers() -> None:
    """In each caption and each figure of the part, and in full above each block of numbers."""
    part = drawn()[drawn().index('<section class="all-comers">') : drawn().index("</section>")]
    captions = re.findall(r"<(figcaption|caption)>(.*?)</\1>", part, flags=re.DOTALL)
    assert len(captions) == 5 + 10
    assert all(TAG in caption for _, caption in captions)
    figures = re.findall(r"<svg.*?</svg>", part, flags=re.DOTALL)
    assert len(figures) == 5
    for figure in figures:
        assert TAG in figure[figure.index("</desc>") :]
        assert TAG in figure[: figure.index("</desc>")]
    blocks = re.split(r"<h[23]>", part)[1:]
    for block in blocks:
        if "<table" in block and "Many tests at once" not in block:
            assert WARNING in block, block[:60]
    assert TAG not in drawn()[: drawn().index('<section class="all-comers">')]


# --- nothing lost, nothing invented --------------------------------------------------------------


def test_there_are_numbers_to_change() -> None:
    assert len(NUMBERS) > 300


def changed(way: Way) -> dict[str, Any]:
    """The document with another number there."""
    document = response_document()
    old = dict(leaves(document))[way]
    if way[-1] in {"biopsy", "model"}:
        replace(document, way, 1 - old)
    else:
        replace(document, way, old + 1 if isinstance(old, int) else old + 0.07 * (1 + abs(old)))
    return document


def test_every_number_is_in_words_or_in_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the figures a changed number changes the page; the points of a ROC curve aside."""
    monkeypatch.setattr(response, "_figures", lambda *_: Counter())
    plain = render_response(response_document())
    ways = [way for way in NUMBERS if way[0] != "roc"]
    assert [way for way in ways if render_response(changed(way)) == plain] == []


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([way for way in NUMBERS if way[0] in {"roc", "net_benefit", "discordance"}]))
def test_a_changed_number_changes_its_figure(way: Way) -> None:
    def draw(document: dict[str, Any]) -> str:
        if way[0] == "roc":
            return response_figures.roc(document["roc"], [], {})
        if way[0] == "net_benefit":
            return response_figures.decision_curve(document["net_benefit"]["points"])
        return response_figures.discordance_forest(document["discordance"]["strata"], "-")

    not_drawn = "over_all" in way or "discordant" in way
    assert (draw(changed(way)) == draw(response_document())) == not_drawn


@pytest.mark.parametrize("way", [w for w in NUMBERS if w[:2] == ("primary", "odds_ratio")])
def test_the_forest_is_drawn_from_the_document(way: Way) -> None:
    def draw(document: dict[str, Any]) -> str:
        lines = forest.primary_lines(document["primary"], "-", short=True)
        return forest.forest("f", "forest", lines, forest.ODDS_RATIO)

    assert draw(changed(way)) != draw(response_document())


def test_an_interval_beyond_the_axis_ends_in_an_arrow() -> None:
    def marks(low: float | None, high: float | None) -> int:
        line = forest.Line("a", "10", e(1.5, low, high))
        return forest.forest("f", "forest", [line], forest.ODDS_RATIO).count("<use")

    assert marks(1.1, None) - marks(1.1, 2.1) == 1
    inside = marks(0.11, 9.9)
    assert [marks(0.0001, 9.9) - inside, marks(0.0001, 900.0) - inside] == [1, 2]


class Watched(dict[str, Any]):
    """A mapping that notes which of its values were looked at."""

    def __init__(self, values: dict[str, Any], seen: set[Way], way: Way = ()) -> None:
        super().__init__({k: watched(v, seen, (*way, k)) for k, v in values.items()})
        self.seen, self.way = seen, way

    def __getitem__(self, key: str) -> Any:
        self.seen.add((*self.way, key))
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.seen.add((*self.way, key))
        return super().get(key, default)

    def items(self) -> Any:
        self.seen.update((*self.way, key) for key in self)
        return super().items()

    def values(self) -> Any:
        self.seen.update((*self.way, key) for key in self)
        return super().values()


def watched(part: Any, seen: set[Way], way: Way = ()) -> Any:
    if isinstance(part, dict):
        return Watched(part, seen, way)
    if isinstance(part, list):
        return [watched(value, seen, (*way, index)) for index, value in enumerate(part)]
    return part


def test_no_part_of_the_document_is_left_unread() -> None:
    seen: set[Way] = set()
    render_response(Watched(response_document(), seen))
    told = {
        way
        for way, value in leaves(response_document())
        if isinstance(way[-1], str) and value is not None and way[0] not in {"plan", "format"}
    }
    assert told - seen == set()


def test_no_number_of_a_table_is_invented() -> None:
    """Each is a number of the document, rounded, as it is or in per cent."""
    known = {"95", "0", "1"}  # "95 %"; the anchors of a standardised AUC
    for _, value in leaves(response_document()):
        for token in re.findall(r"\d+(?:\.\d+)?", value) if isinstance(value, str) else []:
            known.add(token)
        if isinstance(value, int | float):
            for scale in (1, 100):
                for digits in range(6):
                    known.add(f"{abs(scale * value):.{digits}f}")
                known.add(words.p_value(abs(value)))
    cells = re.findall(r"<td.*?</td>", drawn(), flags=re.DOTALL)
    told = [re.sub(r"<[^>]+>", " ", cell).replace(",", "") for cell in cells]
    numbers = Counter(n for cell in told for n in re.findall(r"\d+(?:\.\d+)?", cell))
    assert sum(numbers.values()) > 300
    allowed = {"0.5"}  # chance
    assert set(numbers) - known - allowed == set()


def test_the_same_document_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "a.html", tmp_path / "b.html"
    write_response_report(response_document(), one)
    write_response_report(response_document(), two)
    assert one.read_bytes() == two.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_the_page_loads_nothing_and_refers_only_to_itself() -> None:
    read = Page(drawn())
    assert read.addresses == ["data:,"]
    assert read.tags["script"] == 0
    assert [name for name, times in read.ids.items() if times > 1] == []
    assert read.references <= set(read.ids)


# --- gaps ----------------------------------------------------------------------------------------


def test_what_is_suppressed_says_so_and_gives_nothing_away() -> None:
    """Numbers that should not be in a suppressed line do not reach the page from there."""
    document = response_document()
    document["primary"]["by_centre"][3].update(n=77777, odds_ratio=e(7.7777, 7.7771, 7.7779))
    document["auc"]["by_centre"]["coast"].update(n=77777, imaging=e(0.77777, 0.7, 0.8))
    document["discordance"]["strata"][1].update(n=77777, pcr=7777, rate=e(0.77777, 0.7, 0.8))
    document["subgroups"][1]["rows"][0].update(n=77777, odds_ratio=e(7.7777, 7.7771, 7.7779))
    html = render_response(document)
    assert "777" not in html
    shown = Page(html).text
    for line in (
        "coast withheld all, Mantel-Haenszel",
        "coast withheld all, pooled",
        "negative, discordant positive withheld",
        "MG + US withheld",
        "negative predictive value withheld withheld biopsy",
        "without withheld withheld statistic withheld, p = 0.002",
        "0.40 to 0.70 withheld 0.70 to 0.90",
        "river 121 withheld withheld ∞ (1.24 to ∞) –",
        "0.90 to 1.00 0 – –",
    ):
        assert line in shown, line
    assert "coast: withheld" in html  # in the description of the figure


def test_the_limit_of_small_cells_is_the_plans() -> None:
    document = response_document()
    document["plan"]["document"]["min_cell"] = 23
    shown = page(document).text
    assert "withheld" in shown
    assert "a count below 23" in shown


def test_counts_of_the_whole_that_are_withheld_say_so() -> None:
    document = response_document()
    document.update(n=None, analysed=None)
    document["primary"].update(n=None, pcr=None, positive=HIDDEN, negative=HIDDEN)
    document["discordance"]["discordant"] = {"n": None, "share": None}
    shown = page(document).text
    assert "patients withheld in all, withheld with pCR" in shown
    assert "patients compared withheld" in shown
    assert "Discordant: withheld." in shown


def test_what_the_sample_cannot_give_is_a_dash_and_never_a_number() -> None:
    document = response_document()
    nothing = dict.fromkeys(
        ("odds_ratio", "exact_odds_ratio", "risk_difference", "risk_ratio", "cmh", "breslow_day")
    ) | dict.fromkeys(("heterogeneity", "by_centre_and_hr", "power", "size"))
    document["primary"].update(nothing, detectable_odds_ratio=None, left_out=[])
    document["auc"].update(dict.fromkeys(("stratified", "random_effects", "partial", "treated")))
    document["auc"].update(paired_delong=None, models=[])
    document["reclassification"].update(idi=None)
    document["ipw"].update(e_value=None, risk_ratio=None)
    document["logistic"][0]["likelihood_ratio"] = None
    document.update(suppressed=[], subgroups=[], holm=[], warnings=[])
    shown = page(document).text
    assert "Mantel-Haenszel, by centre – supported" in shown
    assert "Cochran-Mantel-Haenszel –" in shown
    assert "power to find an odds ratio of 2.00 – not known" in shown
    assert "Nothing was suppressed." in shown
    assert "Mantel-Haenszel: no answer" in render_response(document)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_part_that_was_refused_is_a_sentence(section: str) -> None:
    document = response_document()
    document[section] = {"refused": "expected answers of 5 centres, got 2"}
    read = page(document)
    assert "expected answers of 5 centres, got 2." in read.text
    if section == "primary":
        assert "No answer The primary comparison was not computed" in read.text
    assert read.references <= set(read.ids)


def test_all_of_it_refused_is_still_a_page() -> None:
    document = response_document()
    for section in SECTIONS:
        document[section] = {"refused": "expected answers of 3 centres, got 2"}
    document["logistic"] = []
    read = page(document)
    assert read.tags["svg"] == 0
    assert read.text.count("got 2.") == len(SECTIONS) + 1


def test_tables_as_the_source_are_named() -> None:
    document = response_document()
    document["source"] = {"kind": "tables", "tables": ["a.csv", "b.csv"], "without_split": 0}
    shown = page(document).text
    assert "source tables a.csv, b.csv" in shown
    assert "Synthetic data" not in shown
