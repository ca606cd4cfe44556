"""`her2-server response --table` as it is called: options, output, exit codes."""

from __future__ import annotations

import csv
import html
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tests.common.response.cohorts import cohort
from tests.server.response_tables import PLAN, four

from her2_common.cases import Label
from her2_common.errors import DataError, Her2Error, TableError
from her2_common.model import build_model, get_groups
from her2_common.release import Manifest, write_release
from her2_common.response.analysis import analyse
from her2_common.response.patients import Patients
from her2_common.response.plan import Plan
from her2_common.response.pooling import ask_sources
from her2_common.response.queries import Source
from her2_server.cli import main
from her2_server.report.response import render_response
from her2_server.response import csv_rows, text
from her2_server.response.command import LABEL_UNKNOWN, head, over_tables

ESTIMATE = ("estimate", "low", "high")


@pytest.fixture
def tables(tmp_path: Path) -> list[Path]:
    return four(tmp_path)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["her2-server", "response", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def given(tables: list[Path]) -> list[str]:
    return [part for table in tables for part in ("--table", str(table))]


def test_the_command_writes_everything(
    tables: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    code = run(monkeypatch, *given(tables), "--threshold", "0.5", "--json", "-", "--out", str(out))
    assert code == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert document == json.loads((out / "response.json").read_text())
    assert shown.err.startswith(f"Verdict: {document['primary']['verdict']}\n")
    assert document["primary"]["quote"][:40] in shown.err
    assert (out / "response.html").stat().st_size > 10_000
    assert (out / "response.csv").read_text() == csv_rows.to_csv(document)


def test_wrong_use_ends_with_2_and_a_bad_table_with_1(
    tables: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch) == 2
    assert "expected tables (--table) or a run's folder, got neither" in capsys.readouterr().err
    assert run(monkeypatch, *given(tables)) == 2
    assert "hint: give --release" in capsys.readouterr().err
    tables[0].write_text("case_id\n1\n")
    assert run(monkeypatch, *given(tables), "--threshold", "0.5") == 1
    assert "expected one column of score and her2_imaging" in capsys.readouterr().err
    assert issubclass(TableError, Her2Error)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--json", "none/found.json"], "--json: expected a file in a folder that exists, got no"),
        (["--csv", "."], "--csv: expected a file in a folder that exists, got a folder"),
        (["--csv", "-"], "--csv: expected a file, got -\nhint: only --json prints"),
        (["--out", "north.csv"], "--out: expected a folder, got the file north.csv"),
        (["--plan", "none.yaml"], "none.yaml: no such file"),
        (["--table", "none.csv"], "none.csv: no such file\nhint: --table takes the path"),
    ],
)
def test_a_wrong_path_is_told_before_anything_is_computed(
    tables: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], more: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("her2_server.response.command.analyse", lambda *_: pytest.fail("computed"))
    assert run(monkeypatch, *given(tables), "--threshold", "0.5", *more) != 0
    assert message in capsys.readouterr().err


def a_release(folder: Path, label: Label, trained_on: list[Label]) -> Path:
    manifest = Manifest(
        run="a-run", preset="compact", label=label, image_size=32, volume_size=16, threshold=0.5,
        groups=["us", "head"], trained_on=trained_on,
    )  # fmt: skip
    groups = get_groups(build_model("compact", 4, image_size=32, volume_size=16), ["us", "head"])
    write_release(folder, manifest, groups)
    return folder


@pytest.mark.parametrize(
    ("label", "trained_on"),
    [
        ("surgical", ["surgical"]),
        ("reference", ["surgical", "reference"]),
        ("reference", ["pcr", "reference"]),
        ("pcr", ["surgical", "pcr"]),
    ],
)
def test_a_release_that_learnt_from_the_outcome_is_no_evidence(
    tables: list[Path], tmp_path: Path, label: Label, trained_on: list[Label]
) -> None:
    release = a_release(tmp_path / "release", label, trained_on)
    with pytest.raises(DataError, match=r"trained on .*, which hold the outcome: no evidence"):
        over_tables(tables, PLAN, None, release)


@pytest.mark.parametrize(
    ("label", "trained_on"), [("reference", ["reference"]), ("pcr", ["biopsy", "pcr"])]
)
def test_a_release_that_did_not_is_taken(
    tables: list[Path], tmp_path: Path, label: Label, trained_on: list[Label]
) -> None:
    found = over_tables(tables, PLAN, None, a_release(tmp_path / "release", label, trained_on))
    assert found["threshold_from"] == "release"
    assert LABEL_UNKNOWN not in found["warnings"]


def test_a_table_is_no_run_and_a_plan_can_be_printed(
    tables: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, str(tables[0])) == 2
    assert "expected a run's folder, got a file\nhint: is it a --table?" in capsys.readouterr().err
    assert run(monkeypatch, "--write-plan", "-") == 0
    assert Plan(**yaml.safe_load(capsys.readouterr().out)) == Plan()


def test_a_written_plan_fixes_the_threshold_that_the_result_then_has(
    tables: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    plan, found = tmp_path / "plan.yaml", tmp_path / "found.json"
    assert run(monkeypatch, "--write-plan", str(plan), "--threshold", "0.5") == 0
    sha256 = capsys.readouterr().err.split()[-1]
    assert run(monkeypatch, *given(tables), "--plan", str(plan), "--json", str(found)) == 0
    document = json.loads(found.read_text())
    assert document["plan"]["sha256"] == sha256
    assert (document["threshold_from"], document["threshold_frozen"]) == ("plan", True)
    assert "Frozen threshold 0.5000 (plan)" in capsys.readouterr().out


def test_the_report_of_a_run_gets_the_answer(
    tables: list[Path], tmp_path: Path, simulated_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(simulated_run, tmp_path / "run")
    found = over_tables(tables, PLAN, 0.5, None)
    monkeypatch.setattr("her2_server.response.cli._asked", lambda *_: found)
    assert run(monkeypatch, str(folder), "--out", str(tmp_path / "elsewhere")) == 0
    assert not (folder / "report.html").exists()
    assert run(monkeypatch, str(folder)) == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert html.escape(found["primary"]["quote"][:40]) in page
    assert 'href="response.html"' in page


def test_the_summary_fits_80_columns_whatever_was_refused(tables: list[Path]) -> None:
    wide = over_tables(tables, PLAN, 0.5, None)
    lines = text.summary(wide).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == f"Verdict: {wide['primary']['verdict']}"
    for section in ("primary", "auc", "ipw"):
        refused = {**wide, section: {"refused": "expected answers of 3 centres, got 2"}}
        assert "expected answers of 3 centres, got 2" in text.summary(refused)


def test_the_summary_of_synthetic_data_says_so(tables: list[Path]) -> None:
    document = over_tables(tables, PLAN, 0.5, None)
    assert "Synthetic" not in text.summary(document)
    document["source"]["synthetic"] = True
    assert text.summary(document).splitlines()[1] == "Synthetic data: no clinical claim."


def test_subgroups_that_are_refused_are_named_on_the_page(tables: list[Path]) -> None:
    document = over_tables(tables, PLAN, 0.5, None)
    document["subgroups"][0] = {"by": "hr", "refused": "expected answers of 3 centres"}
    page = render_response(document)
    assert "hormone receptors; not computed: expected answers of 3 centres" in page  # the table
    assert "hormone receptors: not computed" in page  # the figure


@pytest.mark.parametrize("seed", range(4))
def test_whatever_sites_keep_back_the_result_can_be_read(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sites = []
    for number in range(4):
        rows = cohort(10 * seed + number, int(rng.choice([0, 20, 200, 800])), levels=64)
        if rng.random() < 0.5:
            rows["modalities"] = np.full_like(rows["pcr"], rng.integers(1, 8))
        if rng.random() < 0.3:
            rows["therapy"] = np.zeros_like(rows["pcr"])
        sites.append(Source(Patients(f"site-{number}", rows), Plan(), 0.5, min_cell=10))
    found = analyse(ask_sources(sites), Plan(), 0.5, min_centres=3)
    source = {"kind": "federation", "run": "run", "release_sha256": "ab", "label": "reference",
              "queries": 3, "synthetic": True, "sites": {}, "absent": {}}  # fmt: skip
    document = head(source, Plan().fix(0.5, "plan"), []) | found
    assert max(map(len, text.summary(document).splitlines())) <= 80
    page = render_response(document)
    assert all(line["which"] in page for line in found["suppressed"] if line["what"] == "primary")
    assert csv_rows.to_csv(document).count("\n") > 2


@pytest.mark.parametrize(
    ("factor", "shown"), [(-1e15, "e+1"), (1e-4, "e-05"), (1e-16, "0.000  0.000 to 0.000")]
)
def test_the_summary_fits_80_columns_whatever_the_numbers(
    tables: list[Path], factor: float, shown: str
) -> None:
    def scaled(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: v * factor if k in ESTIMATE else scaled(v) for k, v in value.items()}
        return [scaled(v) for v in value] if isinstance(value, list) else value

    document = over_tables(tables, PLAN, 0.5, None)
    odd = document | {name: scaled(document[name]) for name in ("auc", "logistic")}
    told = text.summary(odd)
    assert max(map(len, told.splitlines())) <= 80
    assert shown in told


def test_every_number_is_in_the_csv(tables: list[Path]) -> None:
    document = over_tables(tables, PLAN, 0.5, None)
    rows = list(csv.DictReader(csv_rows.to_csv(document).splitlines()))
    cells = {cell for row in rows for cell in row.values()}

    def numbers(value: Any) -> list[float]:
        if isinstance(value, dict):
            return [n for inner in value.values() for n in numbers(inner)]
        if isinstance(value, list):
            return [n for inner in value for n in numbers(inner)]
        return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []

    kept = {k: v for k, v in document.items() if k not in ("plan", "source")}
    missing = [n for n in numbers(kept) if str(n) not in cells]
    assert missing == []
    warned = {row["section"] for row in rows if row["warning"]}
    whole = {name for name, part in document.items() if "Therapy follows" in json.dumps(part)}
    assert whole == warned - {"holm"}
    assert all(row["warning"] for row in rows if row["section"] in whole - {"auc"})
    assert not any(r["warning"] for r in rows if r["name"] in ("treated n", "subgroups by hr"))
    by_centre = [r for r in rows if r["section"] == "primary" and r["centre"] == "north"]
    assert {"by_centre odds_ratio", "left_out odds_ratio"} <= {r["name"] for r in by_centre}
    assert any(r["section"] == "auc" and r["centre"] == "north" for r in rows)
