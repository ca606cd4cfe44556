"""`her2-server`: conduct a run, go on with one, draw its report."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from her2_common.config import FederationConfig, load
from her2_common.console import console, main_for, new_app, print_json
from her2_common.errors import RunError
from her2_common.model import preset
from her2_server.coordinator import Coordinator
from her2_server.initial import read_initial
from her2_server.report import write_report
from her2_server.run_folder import RunFolder
from her2_server.superlink import conduct

app = new_app("The coordinator of a her2-map federation.")

Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON to stdout.")]


@app.command()
def run(
    federation: Annotated[Path, typer.Argument(help="federation.yaml")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; default runs/<name>.")
    ] = None,
    json: Json = False,
) -> None:
    """Train across the sites of FEDERATION and write the report."""
    config = load(FederationConfig, federation)
    folder = RunFolder(out or Path("runs") / config.name)
    folder.require_free()
    # Faults of the plan are told before the SuperLink is asked
    preset(config.run.preset, **config.run.layout)
    read_initial(config)
    _conduct(folder, config, json, prepare=lambda: folder.create(federation))


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="The run's folder, runs/<name>.")],
    json: Json = False,
) -> None:
    """Go on with a run from its newest sound checkpoint."""
    run_folder = RunFolder(folder)
    config = run_folder.load_config()
    if run_folder.summary.exists():
        raise RunError(
            f"{folder}: the run is finished; its test split is not scored again",
            hint=f"its report is {folder / 'report.html'}",
        )
    _conduct(run_folder, config, json)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="The run's folder, runs/<name>.")]) -> None:
    """Draw report.html again from summary.json and metrics.jsonl."""
    RunFolder(folder).load_config()
    if not RunFolder(folder).summary.exists():
        raise RunError(
            f"{folder}: no summary.json, the run is not finished",
            hint=f"go on with it: her2-server resume {folder}",
        )
    console.print(f"report  {write_report(folder)}", soft_wrap=True)


def _conduct(
    folder: RunFolder,
    config: FederationConfig,
    json: bool,
    prepare: Callable[[], None] = lambda: None,
) -> None:
    """Conduct a run; ``prepare`` is called once the SuperLink has accepted it."""
    started = time.monotonic()

    def notify(text: str) -> None:
        shown = escape(text)
        console.print(f"[dim]{time.monotonic() - started:6.1f} s[/]  {shown}", soft_wrap=True)

    with conduct(config, notify, previous=folder.flower_run()) as held:
        prepare()
        with folder.held():
            folder.set_flower_run(held.run_id)
            Coordinator(held.grid, folder, notify).run()
    notify(f"report  {folder.path / 'report.html'}")
    if json:
        import json as json_module

        print_json(json_module.loads(folder.summary.read_text(encoding="utf-8")))


main = main_for(app, "her2-server")
