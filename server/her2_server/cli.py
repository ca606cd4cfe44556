"""`her2-server`: conduct a run, go on with one, draw its report."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from flwr.serverapp import Grid
from rich.markup import escape

from her2_common.config import FederationConfig, load
from her2_common.console import console, main_for, new_app, print_json
from her2_common.errors import RunError
from her2_common.model import preset
from her2_server import leave_one_out as leave
from her2_server.compare import NAME as COMPARISON
from her2_server.compare import conduct_comparison, require_finished, tell
from her2_server.coordinator import Coordinator
from her2_server.initial import read_initial
from her2_server.report import write_report
from her2_server.response.cli import response
from her2_server.run_folder import RunFolder
from her2_server.summary import close
from her2_server.superlink import conduct
from her2_server.watch import show, state_of

app = new_app("The coordinator of a her2-map federation.")

Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON to stdout.")]


@app.command()
def run(
    federation: Annotated[Path, typer.Argument(help="federation.yaml")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; default runs/<name>.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Then compare with local models, as `compare` does.")
    ] = False,
    json: Json = False,
) -> None:
    """Train across the sites of FEDERATION and write the report."""
    config = load(FederationConfig, federation)
    folder = RunFolder(out or Path("runs") / config.name)
    folder.require_free()
    # Faults of the plan are told before the SuperLink is asked
    preset(config.run.preset, **config.run.layout)
    read_initial(config)

    def work(grid: Grid, notify: Callable[[str], None]) -> None:
        Coordinator(grid, folder, notify).run()
        if compare:
            tell(conduct_comparison(grid, folder, notify), notify)

    _conduct(folder, config, work, prepare=lambda: folder.create(federation))
    if json:
        _print_json(folder.summary)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="The run's folder, runs/<name>.")],
    json: Json = False,
) -> None:
    """Go on with a run from its newest sound checkpoint."""
    run_folder = RunFolder(folder)
    config = run_folder.load_config()
    if not _closed(run_folder):
        if run_folder.summary.exists():
            raise RunError(
                f"{folder}: the run is finished; its test split is not scored again",
                hint=f"its report is {folder / 'report.html'}",
            )
        _conduct(run_folder, config, partial(_train, run_folder))
    if json:
        _print_json(run_folder.summary)


@app.command()
def watch(
    folder: Annotated[Path, typer.Argument(help="The run's folder, runs/<name>.")],
    once: Annotated[bool, typer.Option("--once", help="Show the state once and end.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the state once as JSON to stdout.")
    ] = False,
) -> None:
    """Show the live state of a run, from any terminal that sees its folder."""
    if json:
        print_json(state_of(RunFolder(folder)))
    else:
        show(RunFolder(folder), once=once)


@app.command()
def compare(
    folder: Annotated[Path, typer.Argument(help="The run's folder, runs/<name>.")],
    json: Annotated[
        bool, typer.Option("--json", help="Print the comparison as JSON to stdout.")
    ] = False,
) -> None:
    """Have each site of a finished run train alone, and compare: for whom is it worth it?"""
    run_folder = RunFolder(folder)
    config = run_folder.load_config()
    require_finished(run_folder)
    _conduct(
        run_folder,
        config,
        lambda grid, notify: tell(conduct_comparison(grid, run_folder, notify), notify),
        again=f"her2-server compare {folder}",
    )
    if json:
        _print_json(folder / COMPARISON)


@app.command()
def leave_one_out(
    federation: Annotated[Path, typer.Argument(help="federation.yaml")],
    out: Annotated[Path, typer.Option(help="Folder of the runs, one a site.")] = Path("runs"),
    without: Annotated[
        list[str] | None, typer.Option(help="Leave out this site alone; repeatable. Default: each.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON to stdout.")
    ] = False,
) -> None:
    """For each site, train without it and test there. Finished runs are passed over."""
    runs = leave.plan(federation, out, without or [])
    for left in runs:
        if left.finished:
            _closed(left.folder)
            console.print(f"{left.folder.path}: finished, passed over", soft_wrap=True)
            continue
        console.print(f"without {left.site}: {left.folder.path}", soft_wrap=True)
        work = partial(_train, left.folder)
        _conduct(left.folder, left.config, work, prepare=left.prepare)
    name = load(FederationConfig, federation).name
    finished = [left for left in leave.plan(federation, out) if left.finished]
    document = leave.results(RunFolder(out / name), finished)
    path = out / f"{name}-leave-one-out.json"
    RunFolder(out).write_json(path, document)
    console.print(leave.table(document))
    console.print(f"results {path}", soft_wrap=True)
    if json:
        print_json(document)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="The run's folder, runs/<name>.")]) -> None:
    """Draw report.html again from summary.json and metrics.jsonl."""
    RunFolder(folder).load_config()
    require_finished(RunFolder(folder))
    console.print(f"report  {write_report(folder)}", soft_wrap=True)


def _closed(folder: RunFolder) -> bool:
    """Does what a run left undone that was killed between its summary and its report."""
    if not folder.summary.exists() or (folder.path / "report.html").exists():
        return False
    with folder.held():
        close(folder)
    console.print(f"finished, report  {folder.path / 'report.html'}", soft_wrap=True)
    return True


def _train(folder: RunFolder, grid: Grid, notify: Callable[[str], None]) -> None:
    Coordinator(grid, folder, notify).run()


def _conduct(
    folder: RunFolder,
    config: FederationConfig,
    work: Callable[[Grid, Callable[[str], None]], object],
    prepare: Callable[[], None] = lambda: None,
    again: str | None = None,
) -> None:
    """Do ``work`` over a run at the SuperLink; ``prepare`` is called once it was accepted there.
    ``again`` is the command that goes on with the work (by default resume)."""
    started = time.monotonic()

    def notify(text: str) -> None:
        shown = escape(text)
        console.print(f"[dim]{time.monotonic() - started:6.1f} s[/]  {shown}", soft_wrap=True)

    again = again or f"her2-server resume {folder.path}"
    with conduct(config, notify, previous=folder.flower_run(), again=again) as held:
        prepare()
        with folder.held():
            folder.set_flower_run(held.run_id)
            work(held.grid, notify)
    notify(f"report  {folder.path / 'report.html'}")


def _print_json(path: Path) -> None:
    import json as json_module

    print_json(json_module.loads(path.read_text(encoding="utf-8")))


app.command()(response)

main = main_for(app, "her2-server")
