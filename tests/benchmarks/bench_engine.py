"""What the engine's options cost and save: chunks, images on disk.

1. rows_at_once: peak memory and seconds of a step, the published model at --image-size and
   --volume-size (256 and 96: as published), each setting in a process of its own.
2. resident: seconds of an epoch of `compact` with the images in memory, read from the cache ahead
   of the step, and what the reading alone takes. The cache is as large as the memory it leaves to
   the operating system allows, so the disk itself is hardly measured.

Seconds are CPU seconds where one process works (other work on the machine weighs less on them),
wall seconds elsewhere.

    python tests/benchmarks/bench_engine.py [--only rows,resident] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from her2_client.cache import Cache, image_shape, open_cache
from her2_client.cache_writer import CacheWriter
from her2_client.cohort import load_cohort
from her2_client.engine import backward, make_deterministic
from her2_client.keys import init_site
from her2_client.training import train_round
from her2_common.cases import MODALITIES
from her2_common.config import RunConfig, SiteConfig, load
from her2_common.losses import loss_terms
from her2_common.memory import keep_memory
from her2_common.model import CHANNELS, Batch, build_model

BATCH: Final = 12
CASES: Final = 48
"""In the cache of 2.; 113 MB with all three modalities."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="rows,resident")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--volume-size", type=int, default=48)
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    threads, sizes = arguments.threads, (arguments.image_size, arguments.volume_size)
    if "rows" in parts:
        for rows_at_once in (None, 4, 1):
            tell("rows", apart(rows_step, threads, sizes, rows_at_once))
    if "resident" in parts:
        with tempfile.TemporaryDirectory() as folder:
            tell("resident", apart(residencies, threads, make_site(Path(folder), threads)))


def tell(part: str, numbers: dict[str, Any]) -> None:
    print(json.dumps({"part": part} | numbers), flush=True)


def apart(work: Callable[..., dict[str, Any]], threads: int, *arguments: Any) -> dict[str, Any]:
    """The result of ``work`` in a fresh process, with its peak memory in GB."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=inside, args=(theirs, work, threads, arguments))
    process.start()
    theirs.close()
    numbers: dict[str, Any] = ours.recv()
    process.join()
    return numbers


def inside(pipe: Any, work: Callable[..., Any], threads: int, arguments: Any) -> None:
    make_deterministic(threads)
    keep_memory()
    numbers = work(*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    pipe.send(numbers | {"peak_gb": round(peak, 2)})


def batch_of(image_size: int, volume_size: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = {
        m: torch.randn(
            BATCH,
            CHANNELS[m],
            *([volume_size] * 3 if m == "mri" else [image_size] * 2),
            generator=generator,
        )
        for m in MODALITIES
    }
    rows = {m: torch.arange(BATCH) for m in MODALITIES}
    return Batch(images, rows, torch.randn(BATCH, 5, generator=generator))


def step_seconds(model: Any, batch: Batch, repeats: int = 2) -> float:
    """CPU seconds of the fastest of some steps, the first left out."""
    loss = partial(loss_terms, labels=torch.arange(BATCH) % 2)
    took = []
    for _ in range(repeats + 1):
        model.zero_grad(set_to_none=True)
        started = time.process_time()
        backward(model, batch, loss)
        took.append(time.process_time() - started)
    return round(min(took[1:]), 3)


# --- the parts ----------------------------------------------------------------------------------


def rows_step(sizes: tuple[int, int], rows_at_once: int | None) -> dict[str, Any]:
    image_size, volume_size = sizes
    model = build_model("paper", 0, image_size=image_size, volume_size=volume_size)
    model.rows_at_once = rows_at_once
    seconds = step_seconds(model, batch_of(*sizes), repeats=1)
    return {"sizes": sizes, "rows_at_once": rows_at_once, "step_cpu_s": seconds}


def make_site(folder: Path, threads: int) -> SiteConfig:
    init_site(folder, name="bench", address="localhost:1", threads=threads)
    config = load(SiteConfig, folder / "site.yaml")
    rng = np.random.default_rng(0)
    with CacheWriter(config.data.cache, site="bench", image_size=256, volume_size=96) as writer:
        writer.begin()
        for case in range(CASES):
            rows = {}
            for m in MODALITIES:
                image = rng.normal(size=image_shape(m, 256, 96)).astype(np.float16)
                rows[m] = writer.put(f"{case}/{m}", m, {}, image)["row"]
            label = case % 2
            writer.add_case(
                pseudonym=f"{case:040x}",
                split="train",
                clinical=(50.0, 1.0, 2.0, 1.0, 0.0),
                labels={"reference": label, "biopsy": label, "surgical": None, "pcr": None},
                rows=rows,
            )
        writer.publish()
    return config


def residencies(config: SiteConfig) -> dict[str, Any]:
    """At the sizes of the cache, so that reading is all there is to it."""
    cache: Cache = open_cache(config.data.cache)
    plan = RunConfig(image_size=256, volume_size=96, local_epochs=1)
    numbers: dict[str, Any] = {"cases": CASES}
    for name in ("resident", "streamed"):
        cohort = load_cohort(
            cache,
            split="train",
            label="reference",
            image_size=256,
            volume_size=96,
            resident=name == "resident",
        )
        groups = np.array_split(np.arange(CASES), CASES // BATCH)
        started = time.perf_counter()
        for _ in cohort.feed(groups):
            pass
        numbers[f"{name}_feed_s"] = round(time.perf_counter() - started, 3)
        took = []
        for _ in range(2):
            model = build_model("compact", 0, **plan.layout)
            took.append(train_round(model, cohort, plan, site="b", round_number=1).seconds)
        numbers[f"{name}_epoch_s"] = round(min(took), 3)
    return numbers


if __name__ == "__main__":
    main()
