"""The options of `her2-server response`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from her2_common.console import console, print_json
from her2_common.errors import ConfigError
from her2_common.release import read_release
from her2_common.response.plan import Plan
from her2_server.report import write_report
from her2_server.report.response import DOCUMENT
from her2_server.response.command import (
    check_destinations,
    fix_threshold,
    over_tables,
    read_plan,
    write,
    write_plan,
)
from her2_server.response.federation import finished_release, over_sites
from her2_server.response.text import summary
from her2_server.run_folder import RunFolder
from her2_server.superlink import conduct

_STDOUT = Path("-")


def response(
    run: Annotated[
        Path | None, typer.Argument(help="A finished run's folder: ask its sites.")
    ] = None,
    table: Annotated[
        list[Path] | None, typer.Option(help="A centre's table with scores; repeat it.")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="The analysis plan (YAML).")] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="The threshold, if no plan and no release fixes it; in steps of 1/1024."),
    ] = None,
    release: Annotated[
        Path | None, typer.Option(help="The release that scored the tables.")
    ] = None,
    out_of_fold: Annotated[
        bool,
        typer.Option(
            "--out-of-fold",
            help="State that rows of the tables without a split have scores of a model that has "
            "not seen the patient.",
        ),
    ] = False,
    json: Annotated[
        Path | None, typer.Option(help="Write the numbers as JSON; - for stdout.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write every number as a row of CSV.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for JSON, CSV and page; of a run, default: its own.")
    ] = None,
    write_plan_to: Annotated[
        Path | None,
        typer.Option(
            "--write-plan",
            help="Write the plan (- for stdout), and end; --release or --threshold fixes its "
            "threshold.",
        ),
    ] = None,
) -> None:
    """Does the image say more about therapy response than the needle?

    Over tables (--table, one a centre) or over the sites of a finished RUN.
    """
    if write_plan_to is not None:
        _write_plan(write_plan_to, read_plan(plan), threshold, release)
        return
    if (run is None) == (not table):
        raise ConfigError(
            f"expected tables (--table) or a run's folder, got {'both' if table else 'neither'}"
        )
    if run is not None and run.is_file():
        raise ConfigError(f"{run}: expected a run's folder, got a file", hint="is it a --table?")
    if run is not None and out_of_fold:
        raise ConfigError("--out-of-fold: sites score their test cases, expected it with --table")
    files = {"--json": None if json == _STDOUT else json, "--csv": csv}
    check_destinations(files, out)
    chosen = read_plan(plan)
    if table:
        document = over_tables(table, chosen, threshold, release, out_of_fold=out_of_fold)
    else:
        folder = RunFolder(run or Path())
        document = _asked(folder, chosen, threshold, release)
        out = out or folder.path
    written = write(document, json_file=files["--json"], csv_file=csv, folder=out)
    if run is not None and (run / DOCUMENT) in written:
        written.append(write_report(run))  # it has a section for the answer
    if json == _STDOUT:
        print_json(document)
        console.print(summary(document), markup=False, soft_wrap=True)
    else:
        typer.echo(summary(document), nl=False)
    for path in written:
        console.print(f"written  {path}", markup=False, soft_wrap=True)


def _write_plan(path: Path, plan: Plan, threshold: float | None, release: Path | None) -> None:
    if threshold is not None or release is not None:
        manifest = None if release is None else read_release(release)[0]
        plan = fix_threshold(plan, threshold, manifest, origin="plan")
    if path == _STDOUT:
        typer.echo(plan.as_yaml(), nl=False)
        return
    write_plan(path, plan)
    console.print(f"plan  {path}", soft_wrap=True)
    if plan.threshold != "release":  # else the release is still to be hashed with it
        console.print(f"SHA-256  {plan.sha256}", soft_wrap=True)


def _asked(
    folder: RunFolder, plan: Plan, threshold: float | None, release: Path | None
) -> dict[str, Any]:
    """The result over the sites of a run."""
    if release is not None:
        raise ConfigError("--release: a run has its own, expected none with a run's folder")
    # Its faults before the SuperLink is asked
    fix_threshold(plan, threshold, finished_release(folder))
    started = time.monotonic()

    def notify(text: str) -> None:
        shown = escape(text)
        console.print(f"[dim]{time.monotonic() - started:6.1f} s[/]  {shown}", soft_wrap=True)

    config = folder.load_config()
    with conduct(config, notify, previous=folder.flower_run()) as held, folder.held():
        folder.set_flower_run(held.run_id)
        return over_sites(held.grid, folder, plan, threshold, notify)
