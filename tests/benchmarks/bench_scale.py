"""How a federation grows: 4 to 64 sites in this process, and what a thousand would need.

1. Whole federations over the true wire path: coordinator and N sites, each with the same small
   cache, so that a site does little. CPU seconds of the coordinator (orders, wire, vetting,
   sums, checkpoint) are those of the process less those of the sites; bytes are messages' content.
2. The coordinator's memory: one more round is computed from the recorded replies of the last, by
   the same code, and the peak of what Python and numpy allocate for it is taken (tracemalloc).
   Replies wait in the wire's form; they are not counted. "copies" are of the model in float32.
3. A straight line through the seconds and the peaks, and its value at --target sites, for this
   model and for the published one: seconds, bytes and the part of the peak that does not grow with
   the sites are taken in proportion to the model's bytes.

    python tests/benchmarks/bench_scale.py [--sites 4,8,16,32,64] [--rounds 3] [--target 1000]
        [--compression int8] [--json]

Sites of one process work one after the other; between machines they work at once, and a round takes
the slowest site, the transfer and the coordinator's own seconds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from evidence import table

from her2_client.app import make_app
from her2_client.cache import image_shape
from her2_client.cache_writer import CacheWriter
from her2_client.engine import make_deterministic
from her2_client.keys import init_site
from her2_client.site import Site
from her2_common.cases import MODALITIES, SPLITS
from her2_common.config import SiteConfig, load
from her2_common.model import preset_sizes
from her2_deploy.simulation import LocalGrid, LocalNode
from her2_server import checkpoint
from her2_server.coordinator import Coordinator
from her2_server.orders import Orders
from her2_server.rounds import Round
from her2_server.run_folder import RunFolder

IMAGE_SIZE: Final = 32
VOLUME_SIZE: Final = 16
CASES: Final = 24
LINK: Final = 1e9 / 8
"""Bytes a second of the coordinator's line in the projection: 1 Gbit/s."""


@dataclass(frozen=True)
class Row:
    """One federation. Seconds are CPU seconds a round, bytes those of a site's part of a round."""

    sites: int
    coordinator_seconds: float
    site_seconds: float
    bytes_up: float
    bytes_down: float
    peak_bytes: int


class TimedGrid(LocalGrid):
    """Adds up what the sites take, and keeps the last reply of each."""

    def __init__(self, nodes: dict[int, LocalNode]) -> None:
        super().__init__(nodes)
        self.site_seconds = 0.0
        self.replies: dict[str, tuple[str, dict[str, bytes]]] = {}

    def _answer(
        self, order_id: str, objects: dict[str, bytes]
    ) -> list[tuple[str, dict[str, bytes]]]:
        order = self._inflate(order_id, objects)
        began = time.process_time()
        replies = super()._answer(order_id, objects)
        self.site_seconds += time.process_time() - began
        if order.metadata.message_type == "train":
            key = self.nodes[order.metadata.dst_node_id].public_key
            self.replies[key] = replies[0]
        return replies


def write_cache(folder: Path) -> None:
    """Noise in every modality, half of the cases positive, most for training."""
    rng = np.random.default_rng(0)
    with CacheWriter(folder, site="any", image_size=IMAGE_SIZE, volume_size=VOLUME_SIZE) as writer:
        writer.begin()
        for case in range(CASES):
            key, label = f"case-{case}", case % 2
            rows = {}
            for m in MODALITIES:
                image = rng.normal(size=image_shape(m, IMAGE_SIZE, VOLUME_SIZE)).astype(np.float16)
                rows[m] = writer.put(f"{key}/{m}", m, {}, image)["row"]
            writer.add_case(
                pseudonym=key,
                split=SPLITS[0 if case < CASES - 8 else 1 + case // 2 % 2],
                clinical=(50.0, 1, 2.0, 1.0, 0.0),
                labels={"reference": label, "biopsy": label, "surgical": None, "pcr": None},
                rows=rows,
            )
        writer.publish()


def federation(root: Path, count: int, rounds: int, run: dict[str, Any]) -> tuple[Row, RunFolder]:
    """Conduct ``rounds`` rounds with ``count`` sites."""
    cache, nodes, keys = root / "cache", {}, {}
    if not cache.exists():
        write_cache(cache)
    here = root / f"{count}"
    for number in range(count):
        name = f"site-{number}"
        size = {"image_size": IMAGE_SIZE, "volume_size": VOLUME_SIZE, "threads": 1}
        keys[name] = init_site(here / name, name=name, address="localhost:1", **size)
        config = load(SiteConfig, here / name / "site.yaml")
        config = config.model_copy(update={"data": config.data.model_copy(update={"cache": cache})})
        site = Site(config)
        nodes[number + 11] = LocalNode(make_app(lambda _, site=site: site), keys[name])
    document = {
        "name": "scale",
        "synthetic": True,
        "superlink": {
            "address": "localhost:1",
            "root_certificates": "ca.crt",
            "superexec_secret_file": "secret",
        },
        "sites": [{"name": name, "public_key": key} for name, key in keys.items()],
        "run": {
            "rounds": rounds,
            "image_size": IMAGE_SIZE,
            "volume_size": VOLUME_SIZE,
            "local_epochs": 1,
            "batch_size": 24,
            "pause_timeout": 1,
            **run,
        },
    }
    (here / "federation.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    folder = RunFolder(here / "run")
    folder.create(here / "federation.yaml")
    grid = TimedGrid(nodes)
    coordinator = Coordinator(grid, folder)
    current = coordinator._begin()
    coordinator._describe()
    current = coordinator._round(current)  # the first one opens the caches
    grid.site_seconds, began = 0.0, time.process_time()
    for _ in range(rounds - 1):
        current = coordinator._round(current)
    whole = time.process_time() - began
    parts = [part for line in folder.read_metrics()[1:] for part in line["sites"].values()]
    row = Row(
        count,
        (whole - grid.site_seconds) / (rounds - 1),
        grid.site_seconds / (rounds - 1) / count,
        float(np.mean([part["sent_bytes"] for part in parts])),
        float(np.mean([part["received_bytes"] for part in parts])),
        peak_bytes(coordinator, grid, keys),
    )
    return row, folder


def peak_bytes(coordinator: Coordinator, grid: TimedGrid, keys: dict[str, str]) -> int:
    """The coordinator's peak in a round that is computed again from the recorded replies."""
    newest = checkpoint.latest(coordinator.folder.rounds)
    current = checkpoint.load(coordinator.folder.rounds / f"{newest.round - 1:04d}")
    scratch = coordinator.folder.path / "scratch"
    scratch.mkdir()
    tracemalloc.start()
    try:
        orders = Orders(coordinator.config)
        work = Round(coordinator.config, coordinator.sites, orders, current, scratch)
        for name, key in keys.items():
            work.order(name)
            work.on_reply(name, grid._inflate(*grid.replies[key]).content)
        work.finish(newest.state).publish(keep=None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        shutil.rmtree(scratch)
    return peak


# --- the curve ------------------------------------------------------------------------------------


def line(sites: Sequence[int], values: Sequence[float]) -> tuple[float, float]:
    """Least squares: the value at no site, and what a site adds."""
    slope, start = np.polyfit(np.asarray(sites, float), np.asarray(values, float), 1)
    return float(start), float(slope)


def bars(rows: Sequence[Row], width: int = 40) -> str:
    """The coordinator's seconds as a curve of text."""
    most = max(row.coordinator_seconds for row in rows)
    return "\n".join(
        f"{row.sites:5d} {'#' * max(round(width * row.coordinator_seconds / most), 1)} "
        f"{row.coordinator_seconds:.2f} s"
        for row in rows
    )


def projection(rows: Sequence[Row], target: int, copy: float, paper: float) -> dict[str, Any]:
    """What ``target`` sites need: a straight line through ``rows``. ``copy`` and ``paper`` are the
    bytes of this model and of the published one in float32."""
    sites = [row.sites for row in rows]
    start, slope = line(sites, [row.coordinator_seconds for row in rows])
    memory, grows = line(sites, [row.peak_bytes for row in rows])
    traffic = np.mean([row.bytes_up + row.bytes_down for row in rows])
    seconds, grown = start + target * slope, paper / copy
    return {
        "sites": target,
        "coordinator_seconds": {"model": seconds, "paper": seconds * grown},
        "seconds_a_site": {"model": slope, "paper": slope * grown},
        "gigabytes_a_round": {
            "model": target * traffic / 1e9,
            "paper": target * traffic * grown / 1e9,
        },
        "line_seconds": {
            "model": target * traffic / LINK,
            "paper": target * traffic * grown / LINK,
        },
        "peak_gigabytes": {
            "model": (memory + target * grows) / 1e9,
            "paper": (memory * grown + target * grows) / 1e9,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", default="4,8,16,32,64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--target", type=int, default=1000)
    parser.add_argument("--compression", choices=("float32", "int8"), default="float32")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds: expected at least 2, the first is not measured")
    make_deterministic(1)
    kind = options.compression
    run: dict[str, Any] = {"compression": {"up": kind, "down": kind}}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in map(int, options.sites.split(",")):
            row, _ = federation(Path(folder), count, options.rounds, run)
            rows.append(row)
            print(f"{count} sites: done", file=sys.stderr, flush=True)
            shutil.rmtree(Path(folder) / f"{count}")
    layout = {"image_size": IMAGE_SIZE, "volume_size": VOLUME_SIZE}
    copy = 4.0 * sum(preset_sizes("compact", **layout).values())
    paper = 4.0 * sum(preset_sizes("paper").values())
    found = projection(rows, options.target, copy, paper)
    if options.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "projection": found}, indent=1))
        return
    print(f"compact, {copy / 1e6:.2f} MB in float32; {kind} both ways")
    header = ["sites", "coordinator s", "s a site", "site s", "MB up", "MB down", "copies"]
    print(
        table(
            header,
            [
                [
                    f"{row.sites}",
                    f"{row.coordinator_seconds:.2f}",
                    f"{row.coordinator_seconds / row.sites:.3f}",
                    f"{row.site_seconds:.2f}",
                    f"{row.bytes_up / 1e6:.2f}",
                    f"{row.bytes_down / 1e6:.2f}",
                    f"{row.peak_bytes / copy:.2f}",
                ]
                for row in rows
            ],
        )
    )
    print(f"\ncoordinator's CPU seconds a round\n{bars(rows)}\n")
    print(f"{options.target} sites, from the straight line")
    for key, value in found.items():
        if isinstance(value, dict):
            print(f"  {key:22} {value['model']:10.3f}   paper preset {value['paper']:12.1f}")


if __name__ == "__main__":
    main()
