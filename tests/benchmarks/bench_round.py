"""A round without training: the warm site executor beside Flower's own process a message.

    python tests/benchmarks/bench_round.py [--rounds 5] [--local-epochs 0] [--json]

Four sites with small real caches, a SuperLink and a coordinator, each a process of its own on
loopback, over TLS and with node keys. Two runs of the same plan (``local_epochs: 0``), one after
the other, that differ in one thing only:

1. warm: each site is `her2-client start`; one process answers every message.
2. Flower's own: each site is `flower-supernode --isolation subprocess` with the same ClientApp;
   Flower installs the bundle and starts a process for every message.

Seconds of a round are the coordinator's own (metrics.jsonl), the median without the first round.
Other work on the machine slows the processes of the second run most, so the load average before
each run and the ratio of the fastest rounds stand beside the result; quote it from an idle one.
The profile comes from the HTTP requests of all processes (probe/sitecustomize.py).

Without training every site returns the bits it was given, and Flower moves no object that the
receiver has already: of four equal replies it uploads one. ``--local-epochs 1`` makes the replies
differ, so that each is uploaded, at the price of two short training steps in the round.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any, Final, Literal

import psutil
import scaled
import torch
import typer
import yaml
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from round_profile import (
    STAGES,
    RoundProfile,
    mean_seconds,
    profile_rounds,
    read_requests,
)

from her2_client.keys import init_site
from her2_common.cases import Modality
from her2_common.config import SiteConfig, load
from her2_common.console import console, print_json
from her2_common.network import free_port
from her2_deploy.processes import Child, child, program, wait_for_tls
from her2_deploy.provision import provision, superlink_command
from her2_server.run_folder import RunFolder

Mode = Literal["warm", "process"]
TITLES: Final[dict[Mode, str]] = {"warm": "warm executor", "process": "process a message"}

SITES: Final = ("centre-a", "centre-b", "centre-c", "centre-d")
CASES: Final = 40
IMAGE_SIZE: Final = 32
VOLUME_SIZE: Final = 16
TARGET: Final = 3.0
"""The warm executor is to be at least this many times faster."""

END_SECONDS: Final = 15.0
"""Flower's children look every 0.2 s whether their parent lives; this is ample."""

HERE: Final = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Result:
    """One run: lines of metrics.jsonl and profiles, both without the first round.

    ``load`` is the machine's load average (1 minute) just before it.
    """

    lines: list[dict[str, Any]]
    profiles: list[RoundProfile]
    load: float

    @property
    def seconds(self) -> list[float]:
        """Wall seconds of each round."""
        return [line["seconds"]["total"] for line in self.lines]


def main(
    rounds: Annotated[
        int, typer.Option(min=2, help="Rounds of each run; the first is left out.")
    ] = 5,
    local_epochs: Annotated[int, typer.Option(min=0, help="Passes of training in each round.")] = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print the numbers to stdout.")] = False,
) -> None:
    """Measure a round without training in both ways and show where its seconds go."""
    results: dict[Mode, Result] = {}
    with tempfile.TemporaryDirectory(prefix="her2-bench-") as folder:
        for mode in TITLES:
            changes = {"rounds": rounds, "local_epochs": local_epochs}
            results[mode] = measure(mode, Path(folder) / mode, changes)
    report = summarise(results)
    if json_:
        print_json(report)
    show(report)
    if not report["target_met"]:
        raise typer.Exit(1)


# --- one run ------------------------------------------------------------------------------------


def measure(
    mode: Mode,
    folder: Path,
    changes: Mapping[str, Any],
    modalities: tuple[Modality, ...] = ("us",),
    title: str | None = None,
) -> Result:
    """Conduct a run with sites of this kind that have these modalities; ``changes`` are keys of
    its ``run``. All its processes have ended on return."""
    load_before = os.getloadavg()[0]
    port = free_port()
    address = f"localhost:{port}"
    paths = provision(folder / "coordinator", ["localhost", "127.0.0.1"])
    keys = make_sites(folder, address, modalities)
    federation = folder / "coordinator" / "federation.yaml"
    document = plan(address, keys)
    document["run"] |= changes
    federation.write_text(yaml.safe_dump(document), encoding="utf-8")
    out = RunFolder(folder / "run")
    with ExitStack() as stack:

        def begin(name: str, command: list[str]) -> Child:
            return stack.enter_context(probed(name, command, folder))

        command = superlink_command(paths, host="127.0.0.1", port=port)
        superlink = begin("superlink", [program(command[0]), *command[1:]])
        wait_for_tls(superlink, address, paths["root"])
        run = scaled.command("her2_server.cli", "run", str(federation), "--out", str(out.path))
        server = begin("server", run)
        # A plain SuperNode whose key is not registered yet ends; her2-client would try again.
        wait_for(server, lambda: "registered" in server.log.read_text(encoding="utf-8"), 60)
        sites = [begin(name, site_command(mode, folder / name)) for name in SITES]
        follow(title or TITLES[mode], server, sites, out, document["run"]["rounds"])
    lines = out.read_metrics()[1:]
    numbers = [line["round"] for line in lines]
    requests = {name: read_requests(folder, name) for name in SITES}
    profiles = profile_rounds(read_requests(folder, "server"), requests, numbers)
    return Result(lines, profiles, load_before)


def make_sites(
    folder: Path, address: str, modalities: tuple[Modality, ...] = ("us",)
) -> dict[str, str]:
    """The four sites under ``folder``, and their public keys by name."""
    return {
        name: make_site(folder / name, name, address, seed, modalities)
        for seed, name in enumerate(SITES)
    }


def make_site(
    folder: Path, name: str, address: str, seed: int, modalities: tuple[Modality, ...]
) -> str:
    """A site with these modalities, so that it sends their encoders and the head."""
    key = init_site(
        folder,
        name=name,
        address=address,
        root_certificates="../coordinator/ca.crt",
        image_size=IMAGE_SIZE,
        volume_size=VOLUME_SIZE,
        threads=1,  # four sites share this machine
    )
    cache = load(SiteConfig, folder / "site.yaml").data.cache
    cache_writer()(cache, name, CASES, modalities, seed)
    return key


def cache_writer() -> Callable[..., None]:
    """``write_cache`` of the federation tests."""
    sys.path.append(str(HERE.parents[1]))
    writer: Callable[..., None] = import_module("tests.federation.conftest").write_cache
    return writer


def plan(address: str, keys: dict[str, str]) -> dict[str, Any]:
    """federation.yaml of the benchmark, beside the coordinator's certificates."""
    return {
        "name": "bench",
        "synthetic": True,
        "superlink": {
            "address": address,
            "root_certificates": "ca.crt",
            "superexec_secret_file": "superexec.secret",
        },
        "sites": [{"name": name, "public_key": key} for name, key in keys.items()],
        "run": {
            "preset": "compact",
            "image_size": IMAGE_SIZE,
            "volume_size": VOLUME_SIZE,
            "round_timeout": 180,
            "start_timeout": 120,
            "seed": 1,
        },
    }


def site_command(mode: Mode, folder: Path) -> list[str]:
    """How the site is started in either mode."""
    site = folder / "site.yaml"
    if mode == "warm":
        return scaled.command("her2_client.cli", "start", "--site", str(site))
    return supernode_command(site)


def supernode_command(site: Path) -> list[str]:
    """Flower's SuperNode at its defaults: a process a message."""
    superlink = load(SiteConfig, site).superlink
    return [
        program("flower-supernode"),
        *("--superlink", superlink.address),
        *("--root-certificates", str(superlink.root_certificates)),
        *("--auth-supernode-private-key", str(superlink.private_key)),
        *("--isolation", "subprocess"),
        *("--host", "127.0.0.1"),
        *("--port", str(free_port())),
        *("--node-config", f"site={json.dumps(str(site))}"),
    ]


# --- processes ----------------------------------------------------------------------------------


@contextmanager
def probed(name: str, command: list[str], folder: Path) -> Iterator[Child]:
    """A child whose requests and whose children's are written down under ``folder``."""
    here = [str(HERE / "probe"), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    extra = {
        "HER2_PROBE": str(folder / name),
        "PYTHONPATH": os.pathsep.join(here),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "FLWR_HOME": str(folder / name / "flwr"),
    }
    with family(name, command, folder / "logs" / f"{name}.log", extra) as running:
        yield running


@contextmanager
def family(name: str, command: list[str], log: Path, extra: dict[str, str]) -> Iterator[Child]:
    """A child and whatever it starts: none of them lives on after the block."""
    descendants: list[psutil.Process] = []
    try:
        with child(name, command, log, extra) as running:
            try:
                yield running
            finally:
                with suppress(psutil.NoSuchProcess):  # ended, and its children with it or soon
                    descendants = psutil.Process(running.process.pid).children(recursive=True)
    finally:
        _, alive = psutil.wait_procs(descendants, timeout=END_SECONDS)
        for process in alive:
            console.print(f"{name}: ending process {process.pid}, which outlived it")
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=END_SECONDS)


def wait_for(process: Child, condition: Callable[[], bool], seconds: float) -> None:
    """Wait until the condition holds, while the process runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{process.name} did not come up:\n{process.tail(20)}")
        time.sleep(0.1)


def rounds_bar() -> Progress:
    columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TextColumn("rounds"), TimeElapsedColumn(), console=console)


def follow(title: str, server: Child, sites: list[Child], out: RunFolder, rounds: int) -> None:
    """Show progress until the coordinator ends."""
    with rounds_bar() as bar:
        task = bar.add_task(title, total=rounds)
        while True:
            try:
                code = server.process.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                bar.update(task, completed=len(out.read_metrics()))
                continue
            bar.update(task, completed=len(out.read_metrics()))
            break
    if code:
        tails = "\n".join(f"--- {one.name}\n{one.tail(15)}" for one in (server, *sites))
        raise SystemExit(f"the run over {title} failed (exit {code}):\n{tails}")


# --- the numbers --------------------------------------------------------------------------------


def summarise(results: dict[Mode, Result]) -> dict[str, Any]:
    """Everything measured, as one JSON document."""
    seconds = {mode: median(result.seconds) for mode, result in results.items()}
    fastest = {mode: min(result.seconds) for mode, result in results.items()}
    ratio = seconds["process"] / seconds["warm"]
    return {
        "sites": len(SITES),
        "machine": {
            "cpus": os.cpu_count(),
            "python": sys.version.split()[0],
            "torch": torch.__version__,
        },
        "modes": {mode: _describe(result) for mode, result in results.items()},
        "ratio": round(ratio, 2),
        "ratio_of_fastest": round(fastest["process"] / fastest["warm"], 2),
        "target": TARGET,
        "target_met": ratio >= TARGET,
    }


def _describe(result: Result) -> dict[str, Any]:
    means = mean_seconds(result.profiles)
    sites = [site for line in result.lines for site in line["sites"].values()]

    def wire(read: Callable[[RoundProfile], Mapping[str, int]]) -> float:
        return round(fmean(n for profile in result.profiles for n in read(profile).values()))

    return {
        "load_before": round(result.load, 2),
        "round_seconds": [round(value, 3) for value in result.seconds],
        "median_seconds": round(median(result.seconds), 3),
        "site_seconds": {
            phase: round(median(line["seconds"][phase] for line in result.lines), 4)
            for phase in ("train", "evaluate")
        },
        "profile_seconds": {n: round(v, 3) for n, v in zip(STAGES, means, strict=True)},
        "profile_total": round(sum(means), 3),
        "last_sites": [profile.last_site for profile in result.profiles],
        "bytes_to_site": {
            "content": round(fmean(site["received_bytes"] for site in sites)),
            "wire": wire(lambda profile: profile.wire_to_site),
        },
        "bytes_from_site": {
            "content": round(fmean(site["sent_bytes"] for site in sites)),
            "wire": wire(lambda profile: profile.wire_from_site),
        },
    }


def show(report: dict[str, Any]) -> None:
    """The result for reading, 80 columns at most."""
    warm, process = (report["modes"][mode] for mode in TITLES)
    table = Table("stage of the round, s (mean)", *TITLES.values(), box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for stage in STAGES:
        values = (f"{mode['profile_seconds'][stage]:.2f}" for mode in (warm, process))
        table.add_row(stage, *values)
    totals = (f"{mode['profile_total']:.2f}" for mode in (warm, process))
    table.add_row("all", *totals, style="bold")
    console.print()
    console.print(table)
    console.print()
    for mode, title in zip((warm, process), TITLES.values(), strict=True):
        rounds = ", ".join(f"{value:.2f}" for value in mode["round_seconds"])
        console.print(f"{title:<18} median {mode['median_seconds']:.2f} s a round ({rounds})")
    for way in ("to", "from"):
        sizes = warm[f"bytes_{way}_site"]
        console.print(
            f"{way + ' a site':<18} {sizes['content']:,} bytes of content a message, "
            f"{sizes['wire']:,} on the wire"
        )
    met = "met" if report["target_met"] else "MISSED"
    console.print(
        f"[bold]{report['ratio']:.1f} times faster[/] (target {report['target']:.0f}: {met}), "
        f"{report['ratio_of_fastest']:.1f} times in the fastest rounds"
    )
    console.print(
        f"{report['sites']} sites on {report['machine']['cpus']} CPUs, "
        f"load average before the runs {warm['load_before']:.1f} and {process['load_before']:.1f}"
    )


if __name__ == "__main__":
    typer.run(main)
