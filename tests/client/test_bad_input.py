"""Wrong data at the hospital: one clear error for each fault, and nothing half-written."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from her2_client.keys import init_site
from her2_deploy.processes import environment, program
from her2_deploy.synth.build import write_cohort


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """centre-b of a small synthetic cohort: mammography and ultrasound."""
    root = tmp_path_factory.mktemp("cohort") / "hospitals"
    write_cohort(root, cases=40, scenario="default", size="demo", seed=3, workers=1)
    folder = root / "centre-b"
    init_site(
        folder,
        name="centre-b",
        address="localhost:1",
        lesions="lesions.csv",
        image_size=32,
        volume_size=16,
    )
    return folder


def ingest(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [program("her2-client"), "ingest", "--site", str(folder / "site.yaml"), *options]
    return subprocess.run(
        command,
        env=environment({"COLUMNS": "80"}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def rows(folder: Path) -> list[list[str]]:
    text = (folder / "cases.csv").read_text(encoding="utf-8")
    return [line.split(",") for line in text.splitlines()]


def write_rows(folder: Path, table: list[list[str]]) -> None:
    text = "\n".join(",".join(row) for row in table) + "\n"
    (folder / "cases.csv").write_text(text, encoding="utf-8")


def drop_a_file(folder: Path) -> None:
    table = rows(folder)
    column = table[0].index("us")
    row = next(r for r in table[1:] if r[column])
    (folder / row[column]).unlink()


def truncate_a_dicom(folder: Path) -> None:
    table = rows(folder)
    column = table[0].index("mg_cc")
    row = next(r for r in table[1:] if r[column])
    path = folder / row[column]
    path.write_bytes(path.read_bytes()[:-1000])


def add_a_column(folder: Path) -> None:
    table = rows(folder)
    table[0].append("biopsy_icc")
    write_rows(folder, [table[0], *([*row, "1"] for row in table[1:])])


def contradict_her2(folder: Path) -> None:
    table = rows(folder)
    for column, value in (("biopsy_ihc", "3"), ("biopsy_ish", ""), ("biopsy_her2", "0")):
        table[1][table[0].index(column)] = value
    write_rows(folder, table)


def lose_all_images(folder: Path) -> None:
    table = rows(folder)
    for column in ("mg_cc", "mg_mlo", "us", "mri"):
        for row in table[1:]:
            row[table[0].index(column)] = ""
    write_rows(folder, table)


def lose_the_table(folder: Path) -> None:
    (folder / "cases.csv").unlink()


CASES = {
    "missing file": (drop_a_file, ("--strict",), "us: ", "expected a file, got none of that name"),
    "truncated DICOM": (truncate_a_dicom, ("--strict",), "mg_cc: ", "truncated"),
    "unknown column": (add_a_column, (), "unknown column 'biopsy_icc'", "did you mean 'biopsy_i"),
    "contradictory HER2": (contradict_her2, (), "row 2: biopsy_her2 is 0", "means 1"),
    "no cases": (lose_all_images, (), "a site with no cases", "none has a usable image"),
    "no table": (lose_the_table, (), "cases.csv: no such file", "site.yaml"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_named_and_nothing_is_published(name: str, hospital: Path, tmp_path: Path) -> None:
    spoil, options, *words = CASES[name]
    folder = tmp_path / "centre"
    # A copy by hard links would let a test spoil the others' files.
    subprocess.run(["cp", "-r", str(hospital), str(folder)], check=True)
    spoil(folder)
    done = ingest(folder, *options)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("her2-client: error: ") or "\nher2-client: error: " in done.stderr
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    # What was done waits in .writing for the next ingest; no reader sees it.
    assert not list((folder / "cache").glob("[0-9]*/*.npy"))
    assert not (folder / "cache" / "index.json").exists()


def test_one_bad_image_is_left_out_and_told(hospital: Path, tmp_path: Path) -> None:
    folder = tmp_path / "centre"
    subprocess.run(["cp", "-r", str(hospital), str(folder)], check=True)
    truncate_a_dicom(folder)
    done = ingest(folder)
    assert done.returncode == 0, done.stderr
    assert "mg_cc" in done.stderr
    assert "truncated" in done.stderr
    assert (folder / "cache" / "index.json").exists()
