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

import pytest
import typer
from typer.testing import CliRunner

from her2_client.cache import open_cache
from her2_client.ingest.command import ingest
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
    assert not (faulty.folder / "state" / "ingest").exists()


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
