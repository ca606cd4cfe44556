"""``her2-client ingest`` as an engineer sees it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from her2_client.cache import open_cache
from her2_client.ingest.command import MAX_NOTES_SHOWN, ingest
from her2_common.console import console
from her2_common.errors import DataError


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    made.command()(ingest)
    return made


@pytest.fixture
def faulty(site: Any) -> Any:
    site.add("a")
    site.add("b", "us", biopsy_her2=1)
    Path(site.rows[0]["mg_cc"]).unlink()
    site.config()
    return site


def test_refusals_and_counts_go_to_the_screen_and_json_to_stdout(
    app: typer.Typer, faulty: Any
) -> None:
    arguments = ["--site", str(faulty.folder / "site.yaml"), "--workers", "1", "--json"]
    with console.capture() as capture:
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["cases"] == {"in_table": 2, "accepted": 2, "left_out": {}}
    assert document["reasons"]["refused"] == {"missing file": 1}
    assert document["readiness"]["verdict"] == "not ready"
    assert "row" not in result.stdout
    screen = capture.get()
    assert "refused: row 2, mg_cc: expected a file, got none of that name" in screen
    assert "Ingest at centre-t" in screen
    told = [line for line in screen.splitlines() if not line.startswith("wrote ")]  # a path
    assert max(len(line) for line in told) <= 80
    assert "CANARY" not in screen + result.stdout


def test_strict_is_an_error_that_tells_a_script_why(app: typer.Typer, faulty: Any) -> None:
    arguments = ["--site", str(faulty.folder / "site.yaml"), "--strict", "--json"]
    with console.capture() as capture:
        result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, DataError)
    document = json.loads(result.stdout)
    assert document["published"] is False
    assert document["reasons"]["refused"] == {"missing file": 1}
    assert "nothing was published" in capture.get()
    assert not (faulty.folder / "cache" / "index.json").exists()
    assert [p.name for p in (faulty.folder / "state" / "ingest").iterdir()] == ["quality.html"]
    assert "Nothing was published" in (faulty.folder / "state/ingest/quality.html").read_text()


@pytest.fixture
def unverified(site: Any) -> Any:
    """A site of more unverified PNG files than the screen lists."""
    site.images.mkdir()
    for number in range(MAX_NOTES_SHOWN + 10):
        picture = Image.fromarray(np.full((8, 9), number, np.uint8))
        picture.save(site.images / f"{number}.png")
        site.rows.append({"case_id": number, "us": site.images / f"{number}.png"})
    site.config()
    return site


def test_where_nothing_is_usable_the_page_has_every_row(app: typer.Typer, unverified: Any) -> None:
    with console.capture() as capture:
        result = CliRunner().invoke(app, ["--site", str(unverified.folder / "site.yaml")])
    assert isinstance(result.exception, DataError)
    assert "--review" in str(result.exception.hint)
    page = unverified.folder / "state" / "ingest" / "quality.html"
    assert "and 10 more; all of them are on quality.html" in capture.get()
    assert f"wrote {page} (stays here)" in capture.get()
    assert [path.name for path in page.parent.iterdir()] == ["quality.html"]
    rows = range(2, MAX_NOTES_SHOWN + 12)
    assert f"<code>us</code> {', '.join(map(str, rows))}" in page.read_text()


def test_a_review_that_wrote_its_sheet_is_done_and_points_onwards(
    app: typer.Typer, unverified: Any
) -> None:
    site = ["--site", str(unverified.folder / "site.yaml")]
    with console.capture() as capture:
        result = CliRunner().invoke(app, [*site, "--review"])
    assert result.exit_code == 0
    sheet = unverified.folder / "state" / "review" / "review.html"
    (last,) = [line for line in capture.get().splitlines() if line.startswith("next: ")]
    assert str(sheet) in last
    assert "--decisions" in last
    assert "--review" not in capture.get()
    assert not (unverified.folder / "cache" / "index.json").exists()

    digests = re.findall(r'data-picture="([0-9a-f]{32})"', sheet.read_text())
    made = unverified.folder / "decisions.csv"
    lines = ["picture,decision,x0,y0,x1,y1,by", *(f"{name},refuse,,,,,R. R." for name in digests)]
    made.write_text("\n".join(lines) + "\n")
    with console.capture() as capture:
        result = CliRunner().invoke(app, [*site, "--decisions", str(made), "--review"])
    assert isinstance(result.exception, DataError), "nothing waits, nothing can be used"
    assert "--review" not in str(result.exception.hint)
    assert "the export" not in capture.get(), "what a reviewer refused is no fault of the export"
    assert not sheet.exists()


def test_a_strict_review_writes_its_sheet_and_fails(app: typer.Typer, unverified: Any) -> None:
    site = ["--site", str(unverified.folder / "site.yaml"), "--strict", "--review"]
    result = CliRunner().invoke(app, site)
    assert isinstance(result.exception, DataError)
    assert "--review" not in str(result.exception.hint)
    assert (unverified.folder / "state" / "review" / "review.html").exists()


def test_each_site_without_cases_gets_its_own_way_out(app: typer.Typer, site: Any) -> None:
    def hint() -> str:
        site.config()
        result = CliRunner().invoke(app, ["--site", str(site.folder / "site.yaml")])
        assert isinstance(result.exception, DataError)
        return str(result.exception.hint)

    site.rows.append({"case_id": "a", "us": ""})
    assert "columns" in hint()
    site.rows[0]["us"] = site.images / "none.dcm"
    assert "table's own folder" in hint()
    site.images.mkdir()
    (site.images / "none.dcm").write_bytes(b"not an image")
    assert "quality.html" in hint()


def test_pages_review_and_decisions(app: typer.Typer, faulty: Any, pictures: Any) -> None:
    faulty.add("c", "us")
    faulty.dicoms.us(Path(faulty.rows[2]["us"]), pictures.echo(), region=None)
    faulty.config()
    site = ["--site", str(faulty.folder / "site.yaml"), "--json"]
    state = faulty.folder / "state"
    with console.capture() as capture:
        document = json.loads(CliRunner().invoke(app, [*site, "--review"]).stdout)
    assert document["images"]["us"]["quarantined"] == 1
    assert "1 pictures to review" not in capture.get()
    sheet = (state / "review" / "review.html").read_text()
    (digest,) = set(re.findall(r'data-picture="([0-9a-f]{32})"', sheet))
    names = {path.name for path in (state / "ingest").iterdir()}
    assert names == {"quality.html", "quality-to-share.html", "quality-to-share.json"}
    json.loads((state / "ingest" / "quality-to-share.json").read_text())

    made = faulty.folder / "decisions.csv"
    made.write_text(f"picture,decision,x0,y0,x1,y1,by\n{'0' * 32},approve,,,,,E. V.\n")
    refused = CliRunner().invoke(app, [*site, "--decisions", str(made)]).exception
    assert "row 2: column picture: expected one that the last ingest asked about" in str(refused)
    assert not (state / "review" / "decisions.csv").exists()

    made.write_text(f"picture,decision,x0,y0,x1,y1,by\n{digest},approve,,,,,R. R.\n")
    with console.capture() as capture:
        document = json.loads(CliRunner().invoke(app, [*site, "--decisions", str(made)]).stdout)
    assert document["images"]["us"] == {
        "accepted": 3, "set aside": 0, "quarantined": 0, "refused": 0,
    }  # fmt: skip
    assert document["work"] == {"fresh": 1, "unchanged": 4}
    assert "1 decision read" in capture.get()
    assert not (state / "review" / "review.html").exists()


KILLED = """
    import sys
    from pathlib import Path
    from her2_client.ingest.run import ingest
    from her2_common.config import SiteConfig, load

    def wait(done, total):
        print(done, flush=True)
        sys.stdin.readline()

    if __name__ == "__main__":
        ingest(load(SiteConfig, Path(sys.argv[1])), workers=2, progress=wait)
"""


@pytest.mark.skipif(os.name != "posix", reason="kills a process by signal")
def test_a_killed_ingest_leaves_the_previous_cache(site: Any, tmp_path: Path) -> None:
    for number in range(20):
        site.add(f"{number}", "us")
    config = site.config()
    from her2_client.ingest.run import ingest as run

    run(config, workers=1)
    before = open_cache(config.data.cache)
    script = tmp_path / "killed.py"
    script.write_text(textwrap.dedent(KILLED))
    process = subprocess.Popen(
        [sys.executable, str(script), str(site.folder / "site.yaml")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        assert process.stdout.readline() == b"1\n"
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=20)
        # The workers hold the other end of stdout: it closes when they, too, have ended.
        assert process.stdout.read() == b""
    after = open_cache(config.data.cache)
    assert after.pseudonyms == before.pseudonyms
    assert run(config, workers=1).accepted == 20
    assert not (config.data.cache / ".writing").exists()
