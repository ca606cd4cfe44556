"""The coordinator's arithmetic: memory of a round whatever the number of sites, and throughput.

    python tests/benchmarks/bench_aggregation.py [--sites 4 16 64] [--up int4] [--keep 1.0]

Memory. A child process works out one round of a model of about 30 million parameters, its groups
in the proportions of the `paper` preset, with the coordinator's own code: replies of all sites, one
after the other, then step, checkpoint and downlink. Printed is the peak of its resident memory
above what it was before the round, in copies of the model (float32).

Throughput. One site's change of 30 million parameters is folded in, beside a copy of the same
array in memory, in the same run: gigabytes of float32 (or what they stand for) a second.

Half of the copy is more than one thread can reach for float32: the copy moves 8 bytes a value
through memory (4 read, 4 written), an exact sum 20 (4 of the change read, 8 of the sum read and
written). So the last column counts the bytes moved, as STREAM does (McCalpin 1995): how near the
sum comes to what the memory gives. Tried and not better: two threads over pieces of their own (0.9
to 1.6 GB/s for float32 against 1.7 with one, for 8 bits 3.1 against 3.4, on two cores that others
used too); rounding by adding and subtracting 1.5 * 2**52, in place of a conversion that no vector
instruction of these processors makes (1.9 against 1.6 to 1.8).
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import scaled  # noqa: F401 (the preset)
from flwr.app import Array, ArrayRecord, RecordDict

from her2_common.config import RunConfig
from her2_common.encoding import BITS, Encoded, Kind, encode
from her2_common.model import GROUPS
from her2_common.vectors import down_forms, up_forms
from her2_common.wire import Counts, Flow, SiteDescription, SiteReply, document_record
from her2_server import checkpoint
from her2_server.aggregation import Accumulator
from her2_server.checkpoint import Checkpoint
from her2_server.orders import Orders
from her2_server.rounds import Round, first

CASES = 100


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sites", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--up", default="int4", choices=["float32", *BITS])
    parser.add_argument("--keep", type=float, default=1.0)
    parser.add_argument("--down", default="int4", choices=["float32", *BITS])
    parser.add_argument("--combine", default="mean")
    parser.add_argument("--step", default="fedavgm")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(*measure(options.child, plan_of(options)))
        return
    print("sites  copies of the model at the peak  seconds  (", *sys.argv[1:], ")")
    for sites in options.sites:
        command = [sys.executable, __file__, *sys.argv[1:], "--child", str(sites)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        copies, seconds = map(float, done.stdout.split())
        print(f"{sites:5d}  {copies:31.2f}  {seconds:7.1f}", flush=True)
    throughput()


def plan_of(options: argparse.Namespace) -> RunConfig:
    """The plan of a run with the options' compression."""
    return RunConfig.model_validate(
        {
            "preset": "scaled",
            "compression": {
                "up": options.up,
                "keep": options.keep,
                "down": options.down,
            },
            "strategy": {"combine": {"name": options.combine}, "step": {"name": options.step}},
        }
    )


# --- memory -------------------------------------------------------------------------------------


def measure(sites: int, plan: RunConfig) -> tuple[float, float]:
    """The peak of one round with so many sites, in copies of the model, and its seconds."""
    names = [f"site-{number:02d}" for number in range(sites)]
    config: Any = SimpleNamespace(run=plan, sites=names, name="bench")
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        size = prepare(folder, config)
        current = checkpoint.load(folder / "rounds" / "0001")
        described = {name: description(name) for name in names}
        reset_peak()
        before = status("VmRSS")
        began = time.perf_counter()
        work = Round(config, described, Orders(config), current, folder / "rounds")
        for name in names:
            work.on_reply(name, reply(folder, name))
        work.finish({}).publish()
        seconds = time.perf_counter() - began
        return (status("VmHWM") - before) / (4 * size), seconds


def prepare(folder: Path, config: Any) -> int:
    """Round 1 on the disk, with the residuals of a round before it, and one site's change."""
    rng = np.random.default_rng(0)
    up, down = up_forms(config.run), down_forms(config.run)
    groups = {g: rng.normal(size=up[g].size).astype(np.float32) for g in GROUPS}
    memory = dict(first(config, groups, {}).memory)
    if config.run.compression.down != "float32":
        memory |= {f"{g}.residual": 1e-6 * v for g, v in groups.items()}
        for g, form in down.items():
            assert form.kind != "float32"
            memory[f"{g}.step"] = encode(groups[g], form.kind, form.share)[0].data
    checkpoint.save(folder / "rounds", Checkpoint(1, groups, {}, memory))
    for g, form in up.items():
        change = (1e-3 * rng.normal(size=form.size)).astype(np.float32)
        sent = change
        if form.kind != "float32":
            sent = encode(change, form.kind, form.share)[0].data
        np.save(folder / f"{g}.npy", sent)
    return sum(vector.size for vector in groups.values())


def description(name: str) -> SiteDescription:
    """A site that trains all groups and has no validation cases."""
    return SiteDescription(
        site=name,
        version="0",
        groups=GROUPS,
        flow=Flow(in_table=CASES, accepted=CASES, left_out=0),
        cases=Counts(train=CASES, val=0, test=0),
        positives=Counts(train=None, val=0, test=0),
        combinations={},
    )


def reply(folder: Path, name: str) -> RecordDict:
    """A message as it arrives: the bytes of its arrays and its document."""
    arrays = {}
    for g in GROUPS:
        content = (folder / f"{g}.npy").read_bytes()
        arrays[g] = Array(dtype="", shape=(), stype="numpy.ndarray", data=content)
    document = SiteReply(
        site=name, task="train", round=2, split="val", counts=dict.fromkeys(GROUPS, CASES)
    )
    cells = Array(np.zeros((0, 4), np.int32))
    return RecordDict(
        {
            "reply": document_record(document),
            "update": ArrayRecord(arrays),
            "scores": ArrayRecord({"cells": cells}),
        }
    )


def reset_peak() -> None:
    """Let the peak of this process's resident memory start at what it is now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


# --- throughput ---------------------------------------------------------------------------------


def throughput(size: int = 30_000_000) -> None:
    """Gigabytes of float32 a second: a copy, and a change in each form folded in."""
    change = (1e-3 * np.random.default_rng(0).normal(size=size)).astype(np.float32)
    target = np.empty_like(change)
    print("\nwhat                 GB/s  of a copy  bytes moved, of a copy")
    copied = rate(lambda: np.copyto(target, change), change.nbytes)
    print(f"copy in memory     {copied:6.2f}")
    forms: list[tuple[Kind, float]] = [("int16", 1.0), ("int8", 1.0), ("int4", 1.0), ("int8", 0.1)]
    vectors: dict[str, Any] = {"float32": change}
    vectors |= {f"{k}, keep {s:g}": encode(change, k, s)[0] for k, s in forms}
    for name, vector in vectors.items():
        accumulator = Accumulator({"us": size})
        update, counts = {"us": vector}, {"us": CASES}
        folded = rate(lambda a=accumulator, u=update, c=counts: a.add(u, c), change.nbytes)  # type: ignore[misc]
        moved = _moved(vector) / (2 * change.nbytes)
        print(
            f"fold {name:14s}{folded:6.2f}  {folded / copied:9.2f}  {moved * folded / copied:22.2f}"
        )


def _moved(change: np.ndarray | Encoded) -> int:
    """Bytes that folding ``change`` in moves at least: itself, and each sum read and written."""
    if isinstance(change, Encoded):
        kept = math.ceil(change.share * change.size)
        return int(change.data.nbytes) + 16 * kept
    return change.nbytes + 16 * change.size


def rate(work: Callable[[], object], size: int, times: int = 5) -> float:
    """The best of some times, after one to warm up."""
    work()
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return size / best / 1e9


if __name__ == "__main__":
    main()
