"""`her2-server`: conduct a run, go on with one, draw its report.

What a command needs is imported when it is called, what takes seconds (torch, Flower, matplotlib)
once its configuration is read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from her2_common.console import main_for, new_app, print_json
from her2_common.late import late

if TYPE_CHECKING:
    from her2_common.config import FederationConfig

app = new_app("The coordinator of a her2-map federation.")

Federation = Annotated[Path, typer.Argument(help="federation.yaml")]
Folder = Annotated[Path, typer.Argument(help="The run's folder, runs/<name>.")]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON to stdout.")]


@app.command()
def run(
    federation: Federation,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; default runs/<name>.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Then compare with local models, as `compare` does.")
    ] = False,
    json: Json = False,
) -> None:
    """Train across the sites of FEDERATION and write the report."""
    config = _plan(federation)
    from her2_server.run_folder import RunFolder

    folder = RunFolder(out or Path("runs") / config.name)
    folder.require_free()
    from her2_server import commands

    commands.run(federation, config, folder, then_compare=compare)
    if json:
        _print_json(folder.summary)


@app.command()
def resume(
    folder: Folder,
    without: Annotated[
        str | None,
        typer.Option(metavar="SITE", help="Exclude this site for the rest of the run."),
    ] = None,
    first: Annotated[
        int | None,
        typer.Option(
            "--from",
            metavar="ROUND",
            min=1,
            help="First round without that site; default: the next.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Go on with a run from its newest sound checkpoint, or without one of its sites."""
    from her2_common.errors import ConfigError
    from her2_server.run_folder import RunFolder

    if first is not None and without is None:
        raise ConfigError("--from: expected --without SITE with it, got none")

    run_folder = RunFolder(folder)
    config = run_folder.load_config()
    from her2_server import commands

    commands.resume(run_folder, config, without=without, first=first)
    if json:
        _print_json(run_folder.summary)


@app.command()
def watch(
    folder: Folder,
    once: Annotated[bool, typer.Option("--once", help="Show the state once and end.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the state once as JSON to stdout.")
    ] = False,
) -> None:
    """Show the live state of a run, from any terminal that sees its folder."""
    from her2_server.run_folder import RunFolder
    from her2_server.watch import show, state_of

    if json:
        print_json(state_of(RunFolder(folder)))
    else:
        show(RunFolder(folder), once=once)


@app.command()
def compare(
    folder: Folder,
    json: Annotated[
        bool, typer.Option("--json", help="Print the comparison as JSON to stdout.")
    ] = False,
) -> None:
    """Have each site of a finished run train alone, and compare: for whom is it worth it?"""
    from her2_server.run_folder import RunFolder

    run_folder = RunFolder(folder)
    config = run_folder.load_config()
    from her2_server import commands

    written = commands.compare(run_folder, config)
    if json:
        _print_json(written)


@app.command()
def leave_one_out(
    federation: Federation,
    out: Annotated[Path, typer.Option(help="Folder of the runs, one a site.")] = Path("runs"),
    without: Annotated[
        list[str] | None, typer.Option(help="Leave out this site alone; repeatable. Default: each.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the results as JSON to stdout.")
    ] = False,
) -> None:
    """For each site, train without it and test there. Finished runs are passed over."""
    from her2_server.leave_one_out import plan

    runs = plan(federation, out, without or [])
    from her2_server import commands

    written = commands.leave_one_out(federation, out, runs)
    if json:
        _print_json(written)


@app.command()
def report(folder: Folder) -> None:
    """Draw report.html again from summary.json and metrics.jsonl."""
    from her2_server.run_folder import RunFolder

    run_folder = RunFolder(folder)
    run_folder.load_config()
    from her2_server import commands

    commands.report(run_folder)


@late(app, "response")
def _response() -> Callable[..., None]:
    """Does the image say more about therapy response than the needle?"""
    from her2_server.response.cli import response

    return response


def _plan(federation: Path) -> FederationConfig:
    from her2_common.config import FederationConfig, load

    return load(FederationConfig, federation)


def _print_json(path: Path) -> None:
    import json as json_module

    print_json(json_module.loads(path.read_text(encoding="utf-8")))


main = main_for(app, "her2-server")
