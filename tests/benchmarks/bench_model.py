"""How fast a training step is: the published model written plainly, the same fast, and `compact`.

1. The machine: its matrix product (GFLOP/s; in bf16 on a GPU) and copy (GB/s), measured in this
   run.
2. Counted: operations of a forward and backward pass (torch.utils.flop_counter) and bytes that its
   kernels read and write, the optimiser's included; the seconds that these imply at the speeds of
   1., were there nothing else: a step can be no faster than the larger of the two.
3. Measured: seconds a step (forward, loss, backward, AdamW) and images (of a modality) a second,
   medians, for batches in which every case has all three modalities, and at the study's 2.07
   images a case. On a GPU all but `plain` run the encoders in bf16. The formulations take
   turns, a step each, so that other work on the machine weighs on all alike; the ratio of CPU time
   stands beside that of wall time, as the former hardly feels such work when --threads is 1.
4. Peak memory of each process; on a GPU, of its tensors there. All but `plain` keep freed memory
   (her2_common.memory).

`plain` is plain_map.py: every encoder on every case, unfused attention and optimiser, so that its
step costs the same whatever the cases lack. Each formulation lives in a process of its own.

    python tests/benchmarks/bench_model.py [--device auto] [--batch 12] [--rounds 2] [--threads 2]
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from her2_client.engine import backward, select_device
from her2_common.cases import MODALITIES, Modality
from her2_common.losses import loss_terms
from her2_common.memory import keep_memory
from her2_common.model import CHANNELS, PRESETS, Batch, MapModel

FORMULATIONS: Final = ("plain", "paper", "compact")
STUDY_SHARES: Final[dict[Modality, float]] = {"mg": 8 / 12, "us": 9 / 12, "mri": 8 / 12}
"""25 images in 12 cases, 2.08 a case; the study has 14,472 in 6,991, 2.07. How they divide among
the modalities is not published; nearly evenly is assumed."""

AVAILABILITIES: Final[dict[str, dict[Modality, float]]] = {
    "all three modalities": dict.fromkeys(MODALITIES, 1.0),
    "2.07 images a case": STUDY_SHARES,
}
BUDGET_SECONDS: Final = 180.0
"""After these, no further measured step of each kind is begun; the first always is."""

OPTIMISER_BYTES: Final = 28
"""AdamW a parameter: reads weight, gradient and two moments, writes all but the gradient."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=12, help="cases a step")
    parser.add_argument(
        "--rounds", type=int, default=2, help="measured steps of each kind, at most"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    arguments = parser.parse_args()
    device = select_device(arguments.device)
    result = measure(arguments.batch, arguments.rounds, arguments.threads, device)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)


# --- 1. the machine -----------------------------------------------------------------------------


def machine(threads: int, device: torch.device) -> dict[str, float]:
    """Best of several: GFLOP/s of a square product (bf16 on a GPU), GB/s (both ways) of a copy."""
    torch.set_num_threads(threads)
    gpu = device.type == "cuda"
    side = 8192 if gpu else 2048
    a, b = torch.randn(2, side, side, device=device).to(torch.bfloat16 if gpu else torch.float32)
    product = min(seconds(lambda: a @ b, device) for _ in range(8))
    source = torch.randn(2**28 if gpu else 2**26, device=device)
    target = torch.empty_like(source)
    copy = min(seconds(lambda: target.copy_(source), device) for _ in range(8))
    return {"gflops": 2 * side**3 / product / 1e9, "gbs": 2 * 4 * len(source) / copy / 1e9}


def settle(device: torch.device) -> None:
    """Wait for what a GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    settle(device)
    started = time.perf_counter()
    work()
    settle(device)
    return time.perf_counter() - started


# --- a process a formulation --------------------------------------------------------------------


class ByteCounter(TorchDispatchMode):
    """Bytes of the tensors that each kernel reads and writes; views and allocations are free."""

    FREE: Final = (
        *("view", "as_strided", "transpose", "permute", "expand", "slice", "select", "unbind"),
        *("split", "t", "detach", "alias", "empty", "unsqueeze", "squeeze"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0].strip("_")
        if not any(name == free or name.startswith(f"{free}_") for free in self.FREE):
            self.bytes += sum(t.numel() * t.element_size() for t in tensors((args, output)))
        return output


def tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for part in tree:
            yield from tensors(part)


def batch_of(
    name: str, batch: int, shares: dict[Modality, float], device: torch.device
) -> tuple[Any, ...]:
    """Images of the cases that have them, as rows, and as a table of who has what.

    A modality without a share is left out (of the plain formulation, which has no such thing, its
    image is zero).
    """
    plan = PRESETS["paper" if name == "plain" else name]
    generator = torch.Generator().manual_seed(0)
    images, rows = {}, {}
    present = torch.zeros(batch, len(MODALITIES))
    start = 0
    for m, modality in enumerate(MODALITIES):
        count = round(batch * shares.get(modality, 0))
        rows[modality] = (torch.arange(count) + start).remainder(batch).sort().values
        start += count  # each modality goes on where the last left off: nobody is left with none
        present[rows[modality], m] = 1
        sides = [plan.volume_size] * 3 if modality == "mri" else [plan.image_size] * 2
        everyone = torch.randn(batch, CHANNELS[modality], *sides, generator=generator)
        if name == "plain":
            shape = (batch,) + (1,) * (everyone.ndim - 1)
            images[modality] = everyone * present[:, m].view(shape)
        else:
            images[modality] = everyone[rows[modality]]
            if not count:
                del images[modality], rows[modality]
    clinical = torch.randn(batch, 5, generator=generator).to(device)
    images = {m: values.to(device) for m, values in images.items()}
    rows = {m: values.to(device) for m, values in rows.items()}
    return images, rows, present.to(device), clinical, (torch.arange(batch) % 2).to(device)


def plain_parts() -> Any:
    """plain_map, imported where it is used: the other processes' memory is to be their own."""
    import plain_map

    return plain_map


def gradients(name: str, model: nn.Module, data: tuple[Any, ...]) -> None:
    """Forward, loss and backward pass."""
    images, rows, present, clinical, labels = data
    if name == "plain":
        plain_parts().plain_loss(model(images, present, clinical), present, labels).backward()
    else:
        backward(model, Batch(images, rows, clinical), partial(loss_terms, labels=labels))


def worker(name: str, batch: int, threads: int, device: torch.device, pipe: Connection) -> None:
    """Answer "count" and "step" for a number of cases and their images, until told to stop."""
    torch.set_num_threads(threads)
    if name != "plain":
        keep_memory()
    torch.manual_seed(0)
    plan = PRESETS["paper" if name == "plain" else name]
    model: nn.Module = plain_parts().PlainMap(plan) if name == "plain" else MapModel(plan)
    model.to(device)
    optimiser = (
        plain_parts().plain_optimiser(model)
        if name == "plain"
        else torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    )
    parameters = sum(p.numel() for p in model.parameters())
    pipe.send(parameters)
    while (order := pipe.recv()) is not None:
        task, cases, shares = order
        data = batch_of(name, cases, shares, device)
        if task == "count":
            with FlopCounterMode(display=False) as flops, ByteCounter() as traffic:
                gradients(name, model, data)
            optimiser.zero_grad(set_to_none=True)
            pipe.send((flops.get_total_flops(), traffic.bytes))
        else:
            settle(device)
            wall, cpu = time.perf_counter(), time.process_time()
            optimiser.zero_grad(set_to_none=True)
            gradients(name, model, data)
            optimiser.step()
            settle(device)
            pipe.send((time.perf_counter() - wall, time.process_time() - cpu))
        del data
        gc.collect()
    if device.type == "cuda":
        pipe.send(torch.cuda.max_memory_allocated(device))
    else:
        pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


# --- the run ------------------------------------------------------------------------------------


def measure(batch: int, rounds: int, threads: int, device: torch.device) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    load, started = os.getloadavg()[0], time.perf_counter()
    speed = machine(threads, device)
    pipes, processes = {}, []
    result: dict[str, Any] = {"batch": batch, "threads": threads, "load": load, "machine": speed}
    result["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    formulations: dict[str, Any] = {}
    for name in FORMULATIONS:
        ours, theirs = context.Pipe()
        arguments = (name, batch, threads, device, theirs)
        process = context.Process(target=worker, args=arguments, daemon=True)
        process.start()
        theirs.close()
        pipes[name] = ours
        processes.append(process)
        formulations[name] = {"parameters": ours.recv(), "steps": {}}
    # The cost of a plain step does not depend on what is absent: one kind of step is enough.
    kinds = [
        (name, title)
        for name in FORMULATIONS
        for title in AVAILABILITIES
        if not (name == "plain" and title != "all three modalities")
    ]
    for name, title in kinds:
        formulations[name]["steps"][title] = count(
            pipes[name], name, batch, AVAILABILITIES[title], formulations[name]["parameters"]
        )
    times: dict[tuple[str, str], list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for turn in range(rounds + 1):
        if turn > 1 and time.perf_counter() - started > BUDGET_SECONDS:
            break
        for name, title in kinds:
            took = ask(pipes[name], "step", batch, AVAILABILITIES[title])
            if turn:  # the first is to warm up
                times[name, title].append(took)
    for (name, title), took in times.items():
        wall, cpu = (statistics.median(one[part] for one in took) for part in (0, 1))
        formulations[name]["steps"][title] |= {"step_s": wall, "step_cpu_s": cpu}
    # Other work on the machine can only slow the measurement down: of two, the better one.
    speed |= {key: max(speed[key], again) for key, again in machine(threads, device).items()}
    plain = formulations["plain"]["steps"]["all three modalities"]
    for name, pipe in pipes.items():
        pipe.send(None)
        formulations[name]["peak_bytes"] = pipe.recv()
        for title, step in formulations[name]["steps"].items():
            shares = AVAILABILITIES[title]
            step["images_s"] = sum(round(batch * s) for s in shares.values()) / step["step_s"]
            step["compute_s"] = step["gflop"] / speed["gflops"]
            step["traffic_s"] = step["gb"] / speed["gbs"]
            step["limit_share"] = max(step["compute_s"], step["traffic_s"]) / step["step_s"]
            step["ratio"] = plain["step_s"] / step["step_s"]
            step["ratio_cpu"] = plain["step_cpu_s"] / step["step_cpu_s"]
    for process in processes:
        process.join()
    result["load_after"] = os.getloadavg()[0]
    return result | {"formulations": formulations}


def ask(pipe: Connection, task: str, cases: int, shares: dict[Modality, float]) -> Any:
    pipe.send((task, cases, shares))
    return pipe.recv()


def count(
    pipe: Connection, name: str, batch: int, shares: dict[Modality, float], parameters: int
) -> dict[str, float]:
    """GFLOP and GB of a step. What one case more costs is the difference of two cases and one."""
    parts = [shares] if name == "plain" else [{m: 1.0} for m in shares]
    flop, moved = 0.0, float(OPTIMISER_BYTES * parameters)
    for part in parts:
        rows = round(batch * max(shares[m] for m in part))
        one, two = (ask(pipe, "count", cases, part) for cases in (1, 2))
        flop += one[0] + (rows - 1) * (two[0] - one[0])
        moved += one[1] + (rows - 1) * (two[1] - one[1])
    return {"gflop": flop / 1e9, "gb": moved / 1e9}


def show(result: dict[str, Any]) -> None:
    speed = result["machine"]
    print(
        f"{result['device']}, {result['threads']} threads, batch {result['batch']}; "
        f"load {result['load']:.1f} before, "
        f"{result['load_after']:.1f} after\n"
        f"machine: product {speed['gflops']:.0f} GFLOP/s, copy {speed['gbs']:.1f} GB/s"
    )
    for name, numbers in result["formulations"].items():
        print(
            f"{name}: {numbers['parameters'] / 1e6:.1f} M parameters, "
            f"peak memory {numbers['peak_bytes'] / 1e9:.2f} GB"
        )
        for title, step in numbers["steps"].items():
            print(
                f"  {title:21}{step['gflop']:7.1f} GFLOP ({step['compute_s']:6.3f} s)"
                f"{step['gb']:7.2f} GB ({step['traffic_s']:6.3f} s)   step {step['step_s']:7.3f} s"
                f" ({step['step_cpu_s']:.3f} s of CPU), {100 * step['limit_share']:.0f} % of the "
                f"limit, {step['images_s']:.1f} images/s, {step['ratio']:.1f} x plain "
                f"({step['ratio_cpu']:.1f} x in CPU time)"
            )


if __name__ == "__main__":
    main()
