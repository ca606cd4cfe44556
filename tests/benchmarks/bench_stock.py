"""A round of 120 MB of weights beside Flower's own FedAvg: wall time, bytes, overhead.

    python tests/benchmarks/bench_stock.py [--rounds 4] [--train-seconds 60] [--json]

Four sites with the same small caches, a SuperLink and a coordinator, each a process of its own on
loopback, over TLS and with node keys; a model of 30 million parameters (scaled.py). Each round the
sites score their validation cases and train one epoch: seconds of work, the same code in each run.

1. stock: ``flwr run`` of an app whose server is ``flwr.serverapp.strategy.FedAvg`` at its defaults
   (stock/stock_app.py), ``flower-superlink`` and ``flower-supernode`` at theirs. FedAvg's exchange
   for evaluation is left out, though it would send the weights a second time.
2. float32: her2-map as it comes.
3. int4: her2-map with ``compression: {up: int4, down: int4}``.
4. long: as 3, with so many epochs that the slowest site works ``--train-seconds`` or more. What
   the round takes beyond that site's own seconds is the price of federation.

Seconds of a round are those between the ends of two rounds, the median without the first round
(in which Flower installs the app and all weights are new). Bytes are those of the bodies of all
requests between sites and SuperLink, as the probe saw them, over all rounds. The load average of
the machine before each run stands beside the result: quote it from an idle machine.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import typer
from bench_round import (
    HERE,
    SITES,
    make_sites,
    measure,
    plan,
    probed,
    rounds_bar,
    supernode_command,
    wait_for,
)
from rich.table import Table
from round_profile import FLEET, read_requests

from her2_client.keys import public_key
from her2_common.cases import MODALITIES
from her2_common.config import RunConfig, SiteConfig, load
from her2_common.console import console, print_json
from her2_common.model import GROUPS, build_model, get_groups
from her2_common.network import free_port
from her2_deploy.processes import Child, program, wait_for_tls
from her2_deploy.provision import provision

FASTER: Final = 5.0
"""The stock round is to take at least this many times as long."""
OVERHEAD: Final = 0.10
"""A long round is to take at most this share more than its slowest site's own seconds."""

INT4: Final = {"up": "int4", "down": "int4"}


@dataclass(frozen=True)
class Part:
    """One run: wall seconds of its rounds without the first, seconds of work of the slowest site
    in each (stock does not tell), bytes a round and site in both ways, load before it."""

    seconds: Sequence[float]
    work: Sequence[float]
    to_site: float
    from_site: float
    load: float


def main(
    rounds: Annotated[
        int, typer.Option(min=2, help="Rounds of each run; the first is left out.")
    ] = 4,
    train_seconds: Annotated[
        float, typer.Option(min=0, help="Seconds of work of the slowest site in the long run.")
    ] = 60.0,
    json_: Annotated[bool, typer.Option("--json", help="Print the numbers to stdout.")] = False,
) -> None:
    """Measure the four runs one after the other and compare them."""
    changes = {"preset": "scaled", "rounds": rounds, "local_epochs": 1, "round_timeout": 900}
    with tempfile.TemporaryDirectory(prefix="her2-bench-") as name:
        folder = Path(name)
        parts = {"stock": told(stock(folder / "stock", changes))}
        parts["float32"] = told(ours(folder / "float32", changes))
        parts["int4"] = told(ours(folder / "int4", changes | {"compression": INT4}))
        epochs = math.ceil(1.2 * train_seconds / median(parts["int4"].work))
        longer = {"compression": INT4, "local_epochs": epochs}
        parts["long"] = told(ours(folder / "long", changes | longer))
    report = summarise(parts, epochs)
    if json_:
        print_json(report)
    show(report)
    if not report["met"]:
        raise typer.Exit(1)


def told(part: Part) -> Part:
    """Say what was measured at once: the rest takes minutes, and may fail."""
    console.print(f"rounds {', '.join(f'{value:.1f}' for value in part.seconds)} s")
    return part


# --- the runs -----------------------------------------------------------------------------------


def ours(folder: Path, changes: dict[str, Any]) -> Part:
    """A run of her2-map."""
    result = measure("warm", folder, changes, MODALITIES, title=folder.name)
    work = [line["seconds"]["train"] + line["seconds"]["evaluate"] for line in result.lines]
    to_site, from_site = wire(folder, changes["rounds"])
    return Part(result.seconds, work, to_site, from_site, result.load)


def stock(folder: Path, changes: dict[str, Any]) -> Part:
    """A run of Flower's own FedAvg over Flower's own processes."""
    load_before = os.getloadavg()[0]
    port = free_port()
    address = f"localhost:{port}"
    paths = provision(folder / "coordinator", ["localhost", "127.0.0.1"])
    keys = make_sites(folder, address, MODALITIES)
    configuration = plan(address, keys)["run"] | changes
    times = folder / "times"
    times.touch()
    home = folder / "flwr" / "flwr"
    home.mkdir(parents=True)
    (home / "config.toml").write_text(
        f'[superlink.bench]\naddress = "{address}"\nroot-certificates = "{paths["root"]}"\n',
        encoding="utf-8",
    )
    with ExitStack() as stack:

        def begin(name: str, command: Sequence[str]) -> Child:
            return stack.enter_context(probed(name, list(command), folder))

        superlink = begin(
            "superlink",
            [
                program("flower-superlink"),
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--ssl-ca-certfile", str(paths["root"])),
                *("--ssl-certfile", str(paths["certificate"])),
                *("--ssl-keyfile", str(paths["key"])),
                "--enable-supernode-auth",
                "--disable-runtime-dependency-installation",
            ],
        )
        wait_for_tls(superlink, address, paths["root"])
        for name in SITES:
            key = folder / f"{name}.pub"
            private = load(SiteConfig, folder / name / "site.yaml").superlink.private_key
            key.write_text(public_key(private), encoding="ascii")
            flwr = [program("flwr"), "supernode", "register", str(key), "bench", "--name", name]
            run_to_its_end(begin("flwr", flwr))
        sites = [begin(name, supernode_command(folder / name / "site.yaml")) for name in SITES]
        text = RunConfig.model_validate(configuration).model_dump_json()
        settings = f"rounds={changes['rounds']} times='{times}' plan='{text}'"
        flwr = [program("flwr"), "run", str(HERE / "stock"), "bench", "-c", settings]
        run_to_its_end(begin("flwr", flwr))
        await_rounds(times, changes["rounds"], [superlink, *sites])
    ends = [float(value) for value in times.read_text(encoding="ascii").split()]
    seconds = [after - before for before, after in pairwise(ends[1:])]
    return Part(seconds, [], *wire(folder, changes["rounds"]), load_before)


def await_rounds(times: Path, rounds: int, running: Sequence[Child]) -> None:
    """Show progress until the stock run's last round has ended."""
    deadline = time.monotonic() + 300 * rounds
    with rounds_bar() as bar:
        task = bar.add_task("stock", total=rounds)
        while (done := len(times.read_text(encoding="ascii").split())) <= rounds:
            for one in running:
                if one.process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"stock: {one.name}:\n{one.tail(40)}")
            bar.update(task, completed=max(done - 1, 0))  # the initial weights have a line, too
            time.sleep(0.5)
        bar.update(task, completed=rounds)


def run_to_its_end(running: Child) -> None:
    wait_for(running, lambda: running.process.poll() == 0, 120)


def wire(folder: Path, rounds: int) -> tuple[float, float]:
    """Bytes to and from a site in a round, of the bodies of all requests."""
    requests = [
        request
        for name in SITES
        for request in read_requests(folder, name)
        if request.path.startswith(FLEET)
    ]
    share = rounds * len(SITES)
    return sum(r.received for r in requests) / share, sum(r.sent for r in requests) / share


# --- the numbers --------------------------------------------------------------------------------


def summarise(parts: dict[str, Part], epochs: int) -> dict[str, Any]:
    """Everything measured, as one JSON document."""
    base = parts["stock"]
    long = parts["long"]
    over = [total / own - 1 for total, own in zip(long.seconds, long.work, strict=True)]
    model = get_groups(build_model("scaled", 1), GROUPS)
    faster = median(base.seconds) / median(parts["int4"].seconds)
    enough = faster >= FASTER and median(over) <= OVERHEAD
    return {
        "weights_bytes": sum(vector.nbytes for vector in model.values()),
        "parts": {
            name: {
                "seconds": [round(value, 2) for value in part.seconds],
                "median": round(median(part.seconds), 2),
                "work": round(median(part.work), 2) if part.work else None,
                "to_site": round(part.to_site),
                "from_site": round(part.from_site),
                "bytes": round(
                    (part.to_site + part.from_site) / (base.to_site + base.from_site), 4
                ),
                "faster": round(median(base.seconds) / median(part.seconds), 2),
                "load_before": round(part.load, 2),
            }
            for name, part in parts.items()
        },
        "long_epochs": epochs,
        "overhead": [round(value, 4) for value in over],
        "met": enough,
    }


def show(report: dict[str, Any]) -> None:
    """The result for reading, 80 columns at most."""
    header = ("run", "s a round", "site's own s", "times", "MB to a site", "MB from it", "bytes")
    table = Table(*header, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, part in report["parts"].items():
        long = name == "long"
        table.add_row(
            name,
            f"{part['median']:.1f}",
            "" if part["work"] is None else f"{part['work']:.1f}",
            "" if long else f"{part['faster']:.1f}",
            f"{part['to_site'] / 1e6:.1f}",
            f"{part['from_site'] / 1e6:.1f}",
            f"{part['bytes']:.1%}",
        )
    console.print()
    console.print(table)
    over = ", ".join(f"{value:+.1%}" for value in report["overhead"])
    loads = ", ".join(f"{part['load_before']:.1f}" for part in report["parts"].values())
    console.print(
        f"weights {report['weights_bytes'] / 1e6:.0f} MB; bars: int4 {FASTER:.0f} times faster "
        f"than stock, long {OVERHEAD:.0%} over its site's own: "
        f"{'met' if report['met'] else 'MISSED'}"
    )
    console.print(f"long rounds over their slowest site's own seconds: {over}")
    console.print(f"{os.cpu_count()} CPUs, load average before the runs {loads}")


if __name__ == "__main__":
    typer.run(main)
