"""predict --explain: the folder, the page in it, and what both refuse."""

from __future__ import annotations

import base64
import csv
import json
import re
import stat
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.browser import chromium, console_messages
from typer.testing import CliRunner

import her2_client.explain.run as run
from her2_client.cache import index_digest
from her2_client.cli import app
from her2_client.explain.attribution import Explanation, Part
from her2_client.explain.command import explainer
from her2_client.explain.page import bars
from her2_client.keys import read_pseudonym_key
from her2_client.predict import predict_table
from her2_common.cases import pseudonym
from her2_common.config import SiteConfig
from her2_common.errors import ConfigError
from her2_common.model import GROUPS, build_model, get_groups
from her2_common.release import Manifest, write_release

MakeSite = Callable[..., SiteConfig]
HAS = [("mg", "us"), ("us",), ("mri",), ("mg", "us", "mri")]
VOID = {"meta", "link", "img", "input", "br"}


@pytest.fixture
def config(make_site: MakeSite) -> SiteConfig:
    return make_site(HAS)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return make_release(tmp_path / "release")


def make_release(folder: Path, **changes: Any) -> Path:
    about = {"run": "a-run", "preset": "compact", "label": "reference", "threshold": 0.5}
    about |= {"image_size": 32, "volume_size": 16, "groups": list(GROUPS)}
    write_release(
        folder, Manifest(**about | changes), get_groups(build_model("compact", 4), GROUPS)
    )
    return folder


def explained(
    config: SiteConfig, release: Path, folder: Path, *, force: bool = False, **options: Any
) -> str:
    """The page of a prediction with --explain."""
    chosen = {"cases": None, "limit": 50} | options
    out = folder.with_suffix(".csv")
    then = explainer(folder, out=out, site=config.name, force=force, **chosen)
    predict_table(config, release, out, split="all", force=True, then=then)
    return (folder / "index.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Words by case, the addresses of pictures, and whether every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cards: dict[str, list[str]] = {}
        self.words: list[str] = []
        self.pictures: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        given = dict(attrs)
        if tag == "article":
            self.cards[given["data-case"] or ""] = []
        if tag == "img":
            self.pictures.append(given["src"] or "")
            assert "alt" in given

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"style", "script"} & set(self.open):
            return
        self.words.append(data)
        if "article" in self.open:
            list(self.cards.values())[-1].append(data)

    def card(self, case: str) -> str:
        return " ".join(" ".join(self.cards[case]).split())

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return {row["case_id"]: row for row in csv.DictReader(stream)}


def numbers(text: str) -> list[float]:
    return [float(n.replace("−", "-")) for n in re.findall(r"[+−]?\d+\.\d+", text)]


# --- the page -----------------------------------------------------------------------------------


def test_the_page_says_what_the_table_says(
    config: SiteConfig, release: Path, tmp_path: Path
) -> None:
    page = Page(explained(config, release, tmp_path / "explain"))
    rows = table(tmp_path / "explain.csv")
    assert list(page.cards) == list(rows)
    assert "not where the tumour is; not for diagnosis." in page.text
    assert "This folder holds patients’ pictures and case ids: it stays at the centre." in page.text
    for case, row in rows.items():
        words = page.card(case)
        called = "HER2-positive" if row["call"] == "1" else "HER2-negative"
        assert words.startswith(f"{case} {float(row['score']):.3f} {called}")
        for m, name in (("mg", "Mammography"), ("us", "Ultrasound"), ("mri", "MRI")):
            has = m in row["modalities"].split("+")
            assert (f"{name} alone: " in words) == has
            if has:
                assert f"{name} alone: {float(row[f'{m}_score']):.3f}" in words
    planes = {"mg": 4, "us": 1, "mri": 3}
    count = sum(planes[m] for row in rows.values() for m in row["modalities"].split("+"))
    assert len(page.pictures) == 2 * count


def test_the_printed_parts_add_up_to_the_printed_sum(
    config: SiteConfig, release: Path, tmp_path: Path
) -> None:
    page = Page(explained(config, release, tmp_path / "explain"))
    for case, row in table(tmp_path / "explain.csv").items():
        words = page.card(case)
        inner = words[words.index("made of") : words.index(" alone:")]
        *parts, total = numbers(inner)
        assert len(parts) == 3 + len(row["modalities"].split("+"))
        assert sum(parts) == pytest.approx(total, abs=0.005 * (len(parts) + 1))
        score = float(row["score"])
        assert 1 / (1 + 2.718281828**-total) == pytest.approx(score, abs=0.003)


def test_the_bars_end_at_the_sum() -> None:
    explanation = Explanation(
        fused=1.0,
        start=-2.0,
        clinical=0.5,
        parts={"us": Part(alone=1, blank=0, added=1, share=2.51)},
        steps=48,
    )
    drawn = bars(explanation)
    assert sum(bar.value for bar in drawn) == pytest.approx(explanation.fused)
    assert [bar.name for bar in drawn][2] == "Ultrasound"
    assert max(bar.width for bar in drawn) == 50
    for bar in drawn:
        assert 0 <= bar.left <= bar.left + bar.width <= 100.01
        assert (bar.left < 50) == (bar.value < 0)


def test_an_incomplete_explanation_warns(
    config: SiteConfig, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(model: Any, batch: Any) -> Any:
        found, maps = run_explain(model, batch)
        return Explanation(found.fused + 1, found.start, found.clinical, found.parts, 432), maps

    run_explain = run.explain
    monkeypatch.setattr(run, "explain", never)
    page = Page(explained(config, release, tmp_path / "explain", cases="case-1"))
    assert "after 432 steps: do not rely on these maps." in page.card("case-1")


def test_a_response_model_speaks_of_response(config: SiteConfig, tmp_path: Path) -> None:
    release = make_release(tmp_path / "release", label="pcr")
    html = explained(config, release, tmp_path / "explain")
    assert "towards pCR" in Page(html).text
    assert "HER2-positive" not in html


def test_a_case_id_is_text_and_never_markup(
    make_site: MakeSite, release: Path, tmp_path: Path
) -> None:
    config = make_site([("us",)])
    name = '<img src=x onerror="alert(1)">'
    key = read_pseudonym_key(config.data.pseudonym_key_file)
    config.data.cases.write_text('case_id\n"' + name.replace('"', '""') + '"\n')
    index = config.data.cache / "index.json"
    old, new = pseudonym(key, "case-0"), pseudonym(key, name)
    document = index.read_text().replace(old, new)
    rewrite_index(index, document)
    page = Page(explained(config, release, tmp_path / "explain"))
    assert list(page.cards) == [name]
    assert len(page.pictures) == 2


def rewrite_index(path: Path, text: str) -> None:
    document = json.loads(text)
    document["sha256"] = index_digest(document["index"])
    path.write_text(json.dumps(document))


# --- the folder ---------------------------------------------------------------------------------


def modes(folder: Path) -> dict[str, int]:
    found = {str(p.relative_to(folder)): p for p in [folder, *folder.rglob("*")]}
    return {name: stat.S_IMODE(path.stat().st_mode) for name, path in found.items()}


def test_only_its_owner_can_read_it(config: SiteConfig, release: Path, tmp_path: Path) -> None:
    folder = tmp_path / "explain"
    folder.mkdir(mode=0o755)
    html = explained(config, release, folder)
    assert modes(folder) == {".": 0o700, "index.html": 0o600}
    assert all(src.startswith("data:image/") for src in Page(html).pictures)


def test_many_pictures_stand_beside_the_page(
    config: SiteConfig, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = Page(explained(config, release, tmp_path / "inside")).pictures
    monkeypatch.setattr(run, "MOST_IN_PAGE", 20_000)
    folder = tmp_path / "beside"
    sources = Page(explained(config, release, folder)).pictures
    assert len(sources) == len(set(sources)) == len(inside)
    for source, of_page in zip(sources, inside, strict=True):
        assert (folder / source).read_bytes() == base64.b64decode(of_page.split(",")[1])
        assert "case" not in source
    rights = modes(folder)
    assert rights.pop(".") == rights.pop("pictures") == 0o700
    assert set(rights.values()) == {0o600}
    assert len(rights) == len(sources) + 1
    # A smaller one takes its place, and leaves nothing of it.
    monkeypatch.undo()
    explained(config, release, folder, force=True, cases="case-1")
    assert [path.name for path in folder.iterdir()] == ["index.html"]


def test_a_folder_with_files_is_left_alone(
    config: SiteConfig, release: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "explain"
    explained(config, release, folder)
    before = (folder / "index.html").read_bytes()
    with pytest.raises(ConfigError, match="expected an empty folder, got files"):
        explained(config, release, folder)
    (folder / "thesis.docx").write_text("precious")
    with pytest.raises(ConfigError, match="got 1 file that is not of one"):
        explained(config, release, folder, force=True)
    assert (folder / "thesis.docx").read_text() == "precious"
    assert (folder / "index.html").read_bytes() == before
    (folder / "thesis.docx").unlink()
    explained(config, release, folder, force=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("index.html", "<html>another page</html>"),
        ("pictures/holiday.jpg", "precious"),
        ("pictures/0001-us-1.jpg/deep", "precious"),
        ("pictures", "a file"),
    ],
)
def test_force_replaces_nothing_of_others(
    config: SiteConfig, release: Path, tmp_path: Path, name: str, content: str
) -> None:
    folder = tmp_path / "explain"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text(content)
    with pytest.raises(ConfigError, match="not of one"):
        explained(config, release, folder, force=True)
    assert (folder / name).read_text() == content
    assert not (tmp_path / "explain.csv").exists(), "refused before anything was computed"


def test_a_link_is_not_followed(config: SiteConfig, release: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "explain"
    folder.mkdir()
    (folder / "pictures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="not of one"):
        explained(config, release, folder, force=True)


def test_a_file_is_no_folder(config: SiteConfig, release: Path, tmp_path: Path) -> None:
    (tmp_path / "explain").write_text("precious")
    with pytest.raises(ConfigError, match="expected a folder, got a file"):
        explained(config, release, tmp_path / "explain", force=True)


# --- which cases --------------------------------------------------------------------------------


def test_the_cases_asked_for(config: SiteConfig, release: Path, tmp_path: Path) -> None:
    page = Page(explained(config, release, tmp_path / "explain", cases="case-3, case-1", limit=1))
    assert list(page.cards) == ["case-1", "case-3"]
    assert "2 of 4 cases" in page.text
    assert len(table(tmp_path / "explain.csv")) == 4, "the table holds every case"


def test_cases_that_are_not_there_are_not_named(
    config: SiteConfig, release: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="at place 2, 3 of the list") as caught:
        explained(config, release, tmp_path / "explain", cases="case-1,JANE DOE,case-9")
    assert "JANE" not in f"{caught.value} {caught.value.hint}"
    assert not (tmp_path / "explain").exists()
    assert not (tmp_path / "explain.csv").exists()  # found before anything is written


def test_the_folder_is_not_that_of_the_table(tmp_path: Path) -> None:
    for out in (tmp_path / "both", tmp_path / "both" / "p.csv"):
        with pytest.raises(ConfigError, match="a folder of its own"):
            explainer(tmp_path / "both", out=out, site="s", cases=None, limit=50, force=True)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="a link that leads nowhere"):
        explainer(tmp_path / "link", out=out, site="s", cases=None, limit=50, force=True)


def test_the_command(config: SiteConfig, release: Path, tmp_path: Path) -> None:
    arguments = ["predict", "--model", str(release), "--out", str(tmp_path / "p.csv")]
    arguments += ["--split", "all"]
    arguments += ["--site", str(config.data.cases.parent / "site.yaml")]
    folder = tmp_path / "explain"
    cut = CliRunner().invoke(
        app, [*arguments, "--explain", str(folder), "--explain-limit", "3"], catch_exceptions=False
    )
    assert cut.exit_code == 0
    told = " ".join(cut.stderr.split())
    assert "index.html: the first 3 of 4 cases (stays here)" in told
    assert "--explain-limit N explains more" in told
    assert list(Page((folder / "index.html").read_text()).cards) == ["case-0", "case-1", "case-2"]
    for wrong, message in (
        (["--cases", "case-1"], "--cases: expected with --explain"),
        (["--explain", str(folder), "--cases", "case-1,,"], "got a blank one"),
    ):
        result = CliRunner().invoke(app, [*arguments, "--force", *wrong])
        assert isinstance(result.exception, ConfigError)
        assert message in str(result.exception)


def test_without_explain_nothing_is_explained(
    config: SiteConfig, release: Path, tmp_path: Path
) -> None:
    then = explainer(None, out=tmp_path / "p.csv", site="s", cases=None, limit=50, force=False)
    assert predict_table(config, release, tmp_path / "p.csv", split="all", then=then) == 4
    assert not list(tmp_path.rglob("*.html"))


# --- in a browser -------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [10**9, 1])
def test_the_page_opens(
    config: SiteConfig,
    release: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    most: int,
) -> None:
    """Its policy allows its script and its pictures, in the page and beside it."""
    monkeypatch.setattr(run, "MOST_IN_PAGE", most)
    predict_table(config, release, tmp_path / "first.csv", split="all")
    scores = [float(row["score"]) for row in table(tmp_path / "first.csv").values()]
    release = make_release(tmp_path / "release", threshold=sorted(scores)[len(scores) // 2])
    html = explained(config, release, tmp_path / "explain")
    probe = """<script>addEventListener("load", () => {
      const widths = [...document.images].map((p) => p.naturalWidth).join(" ");
      const choose = (id, value) => {
        document.getElementById(id).value = value;
        document.getElementById(id).dispatchEvent(new Event("change"));
      };
      choose("order", "high");
      choose("call", "1");
      const shown = [...document.querySelectorAll(".card:not([hidden])")];
      document.title = `${widths}|${shown.map((card) => card.dataset.case).join(" ")}`;
    });</script>"""
    # The probe is another script than the page's own: let it in, and change nothing else.
    seen = re.sub(r"script-src 'sha256-[^']+'", "script-src 'unsafe-inline'", html)
    seen = seen.replace('loading="lazy" ', "").replace("</body>", f"{probe}</body>")
    path = tmp_path / "explain" / "seen.html"
    path.write_text(seen, encoding="utf-8")
    opened = chromium(path, tmp_path / "profile", "--dump-dom")
    title = re.search(r"<title>([^<]*)</title>", opened.stdout)
    assert title is not None
    widths, shown = (part.split() for part in title[1].split("|"))
    rows = table(tmp_path / "explain.csv")
    positive = [case for case, row in rows.items() if row["call"] == "1"]
    assert 0 < len(positive) < len(rows)
    assert shown == sorted(positive, key=lambda case: -float(rows[case]["score"]))
    assert len(widths) == len(Page(html).pictures)
    assert set(widths) == {"16", "32"}
    own = chromium(tmp_path / "explain" / "index.html", tmp_path / "profile", "--dump-dom")
    assert console_messages(own.stderr) == []
    assert "4 of 4 cases</p>" in own.stdout, "its own script ran"
