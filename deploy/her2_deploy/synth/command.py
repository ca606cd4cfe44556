"""`her2-deploy synth`: make a synthetic cohort from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from her2_common.console import console, print_json
from her2_common.errors import ConfigError
from her2_deploy.synth.build import CohortSummary, write_cohort
from her2_deploy.synth.centres import Size
from her2_deploy.synth.cohort import DEFAULT_CASES, Scenario
from her2_deploy.synth.preview import write_preview


def synth(
    out: Annotated[Path, typer.Option(help="New or empty folder for the cohort.")],
    scenario: Annotated[
        Scenario,
        typer.Option(
            help="default; heterogeneous: biopsy and tumour often disagree; null: images and "
            "clinical inputs say nothing; randomised: anti-HER2 therapy by coin; shortcut: the "
            "scanner goes with the label, but at centre-b the other way round."
        ),
    ] = "default",
    size: Annotated[
        Size, typer.Option(help="demo: small pictures, seconds; full: clinical matrices, slow.")
    ] = "demo",
    cases: Annotated[int, typer.Option(help="Cases of all four centres together.")] = DEFAULT_CASES,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    preview: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Also draw a sheet of a few cases.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes; by default one a processor core, at most 8.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Make four synthetic breast centres: DICOM images, case tables, and the truth kept apart.

    Writes OUT/<centre>/{cases.csv, lesions.csv, images/}, OUT/truth.csv and OUT/cohort.json.
    Nothing clinical can be learnt from it.
    """
    if preview is not None and preview.suffix.lower() != ".png":
        raise ConfigError(f"--preview: expected a file ending in .png, got {preview.name!r}")
    if preview is not None and not preview.absolute().parent.is_dir():
        raise ConfigError(f"--preview: expected an existing folder, got {preview.parent}")
    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("cases", total=cases, visible=False)
        summary = write_cohort(
            out,
            cases=cases,
            scenario=scenario,
            size=size,
            seed=seed,
            workers=workers,
            progress=lambda done, total: bar.update(
                task, completed=done, total=total, visible=True
            ),
        )
    if preview is not None:
        write_preview(out, summary.cohort, preview)
    if json:
        print_json(summary.as_dict())
    else:
        console.print(_table(summary))


def _table(summary: CohortSummary) -> Table:
    table = Table(title=f"{summary.scenario} cohort, seed {summary.seed}")
    names = {
        "cases": "cases",
        "mg": "MG",
        "us": "US",
        "mri": "MRI",
        "reference_positive": "HER2+",
        "amplified": "tumour+",
        "pcr": "pCR",
        "her2_lost": "lost",
    }
    table.add_column("centre")
    for heading in names.values():
        table.add_column(heading, justify="right")
    counts = summary.as_dict()
    for centre, row in counts["centres"].items():
        table.add_row(centre, *(str(row[name]) for name in names))
    table.add_section()
    table.add_row("all", *(str(counts[name]) for name in names))
    return table
