"""`her2-deploy`: certificates for a coordinator, the synthetic cohort, the demo federation."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from her2_common.children import interrupted_by_sigterm
from her2_common.console import console, main_for, new_app
from her2_common.late import late
from her2_deploy.demo import LOCAL_EPOCHS, ROUNDS, Demo, run_demo
from her2_deploy.provision import VALID_DAYS, provision, superlink_command
from her2_deploy.synth.cohort import Scenario

app = new_app("Set up a her2-map federation, or try one on this machine.")


@late(app, "synth")
def _synth() -> Callable[..., None]:
    """Make four synthetic breast centres: DICOM images, case tables, and the truth kept apart."""
    from her2_deploy.synth.command import synth

    return synth


@app.command("provision")
def provision_command(
    host: Annotated[list[str], typer.Option(help="A name or address of the SuperLink; repeat.")],
    folder: Annotated[Path, typer.Option(help="Where the files go.")] = Path("coordinator"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Its port.")] = 8000,
    days: Annotated[
        int, typer.Option(min=1, max=3650, help="Days until they expire.")
    ] = VALID_DAYS,
) -> None:
    """Make a root certificate, a server certificate and the SuperLink's secret."""
    paths = provision(folder, host, days=days)
    console.print(f"wrote {', '.join(path.name for path in paths.values())} into {folder}")
    console.print("give ca.crt to every site; keep server.key and superexec.secret here")
    console.print("start the SuperLink with:")
    command = superlink_command(paths, host="127.0.0.1", port=port, database="state.db")
    typer.echo(shlex.join(command))


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the hospitals live.")] = Path("demo"),
    out: Annotated[Path, typer.Option(help="The run and its report.")] = Path("runs/demo"),
    cases: Annotated[int, typer.Option(min=300, help="Cases in all.")] = 1000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of training.")] = ROUNDS,
    local_epochs: Annotated[
        int, typer.Option(min=0, help="Epochs a site and round.")
    ] = LOCAL_EPOCHS,
    scenario: Annotated[Scenario, typer.Option(help="What the cohort is like.")] = "default",
    seed: Annotated[int, typer.Option(min=0)] = 1,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Then have each site train alone: is federation worth it?"),
    ] = False,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep",
            help="Then stay up until Ctrl-C, and say what else can be asked of the sites; with so "
            "few patients, `her2-server response` gives no verdict.",
        ),
    ] = False,
) -> None:
    """Four hospitals on this machine: cohort, ingest, training over TLS, report."""
    plan = Demo(
        folder=folder,
        out=out,
        cases=cases,
        rounds=rounds,
        local_epochs=local_epochs,
        scenario=scenario,
        seed=seed,
        compare=compare,
        keep=keep,
    )
    with interrupted_by_sigterm():
        run_demo(plan)


main = main_for(app, "her2-deploy")
