"""Ingest beside a plain pydicom + MONAI pipeline; the cost of a batch; memory as a site grows.

    python tests/benchmarks/bench_ingest.py [--cases 24] [--part speed|batch|memory] [--json]

1. speed: the images of synthetic cases at clinical size, compressed as archives hold them
   (mammography JPEG lossless, ultrasound JPEG baseline, MRI JPEG-LS), are standardised by
   `her2-client ingest` and by the plain pipeline (plain_ingest.py) in one process, as a script
   would, and in one process a core. All read the same files, one after another, and hold the
   result as float16. The decoders are the same; what a decoder alone takes stands beside it. The
   plain pipeline does not search for text: the ratios are those of the same work, and the whole
   ingest, with the search, its journal and the disk, stands beside them.
2. batch: one batch out of a resident cohort against one training step of the compact preset.
3. memory: the peak of the ingest and its workers together, for 100 and for 2,000 cases.

"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import psutil
import pydicom
import torch
from plain_ingest import plain_case
from pydicom.uid import JPEGLSLossless

from her2_client.augment import DRAWS, RANGES, augment
from her2_client.cache import open_cache
from her2_client.cohort import load_cohort
from her2_client.ingest.case import Job, standardise
from her2_client.ingest.privacy import search
from her2_client.ingest.privacy.guard import Guard
from her2_client.ingest.run import ingest
from her2_client.ingest.units import jobs
from her2_client.keys import init_site, read_pseudonym_key
from her2_common.cases import CaseTable, read_cases
from her2_common.config import SiteConfig, load
from her2_common.losses import map_loss
from her2_common.model import PRESETS, build_model
from her2_deploy.synth.build import write_cohort

CORES = os.cpu_count() or 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=24, help="synthetic cases at full size")
    parser.add_argument("--part", choices=["speed", "batch", "memory"])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        if arguments.part in (None, "speed"):
            result["speed"] = speed(root / "speed", arguments.cases)
        if arguments.part in (None, "batch"):
            result["batch"] = batch(root / "batch")
        if arguments.part in (None, "memory"):
            result["memory"] = memory(root / "memory")
    if arguments.json:
        print(json.dumps(result, indent=2))


# --- 1. speed -----------------------------------------------------------------------------------


def speed(root: Path, cases: int) -> dict[str, Any]:
    """Images a second: ours, the plain pipeline in one process and in one a core."""
    config, table = make_site(root, cases=cases, size="full")
    files, images = compress(table)
    decoding = seconds(lambda: [pydicom.dcmread(path).pixel_array for path in files["decoded"]])
    boxes = table.boxes
    tasks = [(case, boxes, config.data.image_size, config.data.volume_size) for case in table.cases]
    plain_case(*tasks[0])  # imports
    one = seconds(lambda: [plain_case(*task) for task in tasks])
    with multiprocessing.get_context("spawn").Pool(CORES) as pool:
        pool.starmap(plain_case, tasks[:CORES])
        many = seconds(lambda: pool.starmap(plain_case, tasks, chunksize=2))
    key = read_pseudonym_key(config.data.pseudonym_key_file)
    work = list(jobs(table, config, key))
    with multiprocessing.get_context("spawn").Pool(CORES, _without_text_search) as pool:
        pool.map(_standardise, work[:CORES])
        ours = seconds(lambda: pool.map(_standardise, work, chunksize=2))
    with multiprocessing.get_context("spawn").Pool(1, _without_text_search) as pool:
        pool.map(_standardise, work[:1])
        ours_one = seconds(lambda: pool.map(_standardise, work))
    whole = seconds(lambda: ingest(config, workers=CORES, fresh=True))
    again = seconds(lambda: ingest(config))
    print(f"speed: {images} images of {cases} cases, {CORES} cores; images a second")
    rows = {
        "plain pydicom + MONAI, one process": one,
        f"plain pydicom + MONAI, {CORES} processes": many,
        "her2-map, the same work, one process": ours_one,
        f"her2-map, the same work, {CORES} processes": ours,
        f"her2-client ingest, {CORES} processes, with text search": whole,
        "decoding alone of what is read, one process": decoding,
        "her2-client ingest, nothing changed": again,
    }
    for name, took in rows.items():
        print(f"  {name:52} {images / took:8.1f}   ({took:.2f} s)")
    ratios = {
        "to one process": one / ours,
        "one process to one": one / ours_one,
        "one a core to one a core": many / ours,
    }
    print("  ratio " + ", ".join(f"{name} {value:.2f}" for name, value in ratios.items()))
    return {"images": images, "seconds": rows, "ratio": ratios}


def _without_text_search() -> None:
    search.find_text = lambda picture: []  # type: ignore[assignment]


def _standardise(job: Job) -> object:
    return standardise(job, Guard(b"0" * 32)).values


def make_site(root: Path, *, cases: int, size: Any) -> tuple[SiteConfig, CaseTable]:
    """Centre A of a synthetic cohort as a site with the usual sizes."""
    write_cohort(root / "cohort", cases=cases * 3, size=size, seed=7)
    folder = root / "cohort" / "centre-a"
    keep_rows(folder / "cases.csv", cases)
    table = read_cases(folder / "cases.csv")
    keep = {case.case_id for case in table.cases}
    keep_rows(folder / "lesions.csv", None, keep)
    init_site(folder, name="bench", address="localhost:1", lesions="lesions.csv")
    config = load(SiteConfig, folder / "site.yaml")
    return config, read_cases(config.data.cases, config.data.lesions)


def keep_rows(path: Path, count: int | None, keep: set[str] | None = None) -> None:
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = list(rows[0])
    rows = [row for row in rows if keep is None or row["case_id"] in keep][:count]
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(rows)


def compress(table: CaseTable) -> tuple[dict[str, list[Path]], int]:
    """Rewrite every file in the compression that archives use; the files that ingest decodes."""
    decoded: list[Path] = []
    images = 0
    for case in table.cases:
        for path in (case.mg_cc, case.mg_mlo):
            if path is not None:
                to_jpeg(path, gdcm.TransferSyntax.JPEGLosslessProcess14_1)
                decoded.append(path)
                images += 1
        for path in case.us:
            to_jpeg(path, gdcm.TransferSyntax.JPEGBaselineProcess1)
        decoded += case.us[:1]
        images += min(len(case.us), 1)
        for folder in case.mri:
            slices = sorted(folder.iterdir())
            phases = set()
            for path in slices:
                dataset = pydicom.dcmread(path)
                dataset.compress(JPEGLSLossless)
                dataset.save_as(path)
                phases.add(dataset.get("TemporalPositionIdentifier") or dataset.AcquisitionTime)
            decoded += slices[: len(slices) // len(phases)]
            images += 1
    return {"decoded": decoded}, images


def to_jpeg(path: Path, syntax: int) -> None:
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    if not reader.Read():
        raise RuntimeError(f"gdcm cannot read {path.name}")
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    if not change.Change():
        return  # palette pictures have no JPEG baseline: they stay as they are
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    if not writer.Write():
        raise RuntimeError(f"gdcm cannot write {path.name}")


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# --- 2. batch -----------------------------------------------------------------------------------


def batch(root: Path, size: int = 12) -> dict[str, Any]:
    """Milliseconds of a batch (and its augmentation) and of a training step, medians."""
    config, _ = make_site(root, cases=48, size="demo")
    ingest(config)
    cache = open_cache(config.data.cache)
    preset = PRESETS["compact"]
    cohort = load_cohort(
        cache,
        split=None,
        label="reference",
        image_size=preset.image_size,
        volume_size=preset.volume_size,
    )
    model = build_model("compact", 0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    rng = np.random.default_rng(0)
    loading, augmenting, stepping = [], [], []
    for _ in range(12):
        chosen = rng.choice(len(cohort), size, replace=False)
        started = time.perf_counter()
        made, taken = cohort.batch(chosen)
        loading.append(time.perf_counter() - started)
        started = time.perf_counter()
        for modality, rows in taken.items():
            draws = torch.rand(len(rows), DRAWS)
            made.images[modality] = augment(made.images[modality], draws, RANGES[modality])
        augmenting.append(time.perf_counter() - started)
        started = time.perf_counter()
        loss = map_loss(model(made), cohort.labels[torch.from_numpy(chosen)])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        stepping.append(time.perf_counter() - started)
    load_ms, augment_ms, step_ms = (
        1000 * float(np.median(part)) for part in (loading, augmenting, stepping)
    )
    share = load_ms / (load_ms + augment_ms + step_ms)
    print(f"batch: {size} cases at {preset.image_size} px and {preset.volume_size} voxels")
    print(f"  batch {load_ms:.1f} ms, augmentation {augment_ms:.1f} ms, step {step_ms:.1f} ms")
    print(f"  loading is {100 * share:.2f} % of a training step")
    return {"batch_ms": load_ms, "augment_ms": augment_ms, "step_ms": step_ms, "share": share}


# --- 3. memory ----------------------------------------------------------------------------------

INGEST = """
    import sys
    from pathlib import Path
    from her2_client.ingest.run import ingest
    from her2_common.config import SiteConfig, load
    if __name__ == "__main__":
        ingest(load(SiteConfig, Path(sys.argv[1])), workers=int(sys.argv[2]))
"""


def memory(root: Path, counts: Iterable[int] = (100, 500, 2000)) -> dict[str, Any]:
    """Peak bytes of the ingest and its workers, by number of cases."""
    config, _ = make_site(root, cases=20, size="demo")
    script = root / "ingest.py"
    script.write_text(textwrap.dedent(INGEST))
    site = config.data.cases.parent / "site.yaml"
    with config.data.cases.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    peaks = {}
    for count in counts:
        with config.data.cases.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            for number in range(count):
                row = dict(rows[number % len(rows)])
                row["case_id"] = row["patient_id"] = f"case-{number}"
                writer.writerow(row)
        (config.data.lesions or config.data.cases).write_text("case_id,image,x0,y0,z0,x1,y1,z1\n")
        peaks[count] = peak([sys.executable, str(script), str(site), str(CORES)])
        size = sum(path.stat().st_size for path in config.data.cache.rglob("*.npy"))
        print(
            f"memory: {count:5d} cases, cache {size / 1e6:7.0f} MB, "
            f"peak {peaks[count] / 1e6:.0f} MB"
        )
    first, last = peaks[min(peaks)], peaks[max(peaks)]
    print(f"  from {min(peaks)} to {max(peaks)} cases: {100 * (last / first - 1):+.1f} %")
    return {"peak_bytes": peaks}


def peak(command: list[str]) -> int:
    """The largest sum of unique memory (USS) over a process and its children."""
    process = psutil.Popen(command)
    most = 0
    while process.poll() is None:
        total = 0
        for one in [process, *_children(process)]:
            try:
                total += one.memory_full_info().uss
            except psutil.Error:
                continue
        most = max(most, total)
        time.sleep(0.02)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return most


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


if __name__ == "__main__":
    main()
