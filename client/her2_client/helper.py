"""A helper process: one of several that share a round's work at one site (see parallel.py)."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from typing import Any, Final

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from her2_client.cache import open_cache
from her2_client.cohort import Cohort, load_cohorts, residence
from her2_client.engine import Team, make_deterministic, ready_model, select_device
from her2_client.local_objectives import Objective
from her2_client.training import train_round
from her2_common.cases import Modality
from her2_common.config import RunConfig, SiteConfig
from her2_common.errors import Her2Error, TrainingError
from her2_common.memory import keep_memory
from her2_common.model import Batch, MapModel, get_groups, group_parameters, preset
from her2_common.types import FeaturesOf

SILENCE_SECONDS: Final = 600.0
"""A helper reports every step. After this long without a word it is taken for dead; a step of the
published model takes 40 s on two CPU cores, loading a cohort or compiling a few minutes."""

# --- the step -----------------------------------------------------------------------------------


class Helpers(Team):
    """What one of ``size`` helper processes does its part with; see ``Team``."""

    def __init__(self, rank: int, size: int, report: Callable[[], None]) -> None:
        self.rank, self.size, self.report = rank, size, report

    def share(self, count: int) -> slice:
        """Rows ``rank * c`` to ``(rank + 1) * c`` with c = ceil(count / size)."""
        each = -(-count // self.size)
        return slice(min(self.rank * each, count), min((self.rank + 1) * each, count))

    def gather(
        self, own: Mapping[Modality, FeaturesOf], batch: Batch, width: int
    ) -> dict[Modality, FeaturesOf]:
        """Every helper's features, in the order of the batch: one exchange for all modalities."""
        self.report()
        counts = {m: len(rows) for m, rows in batch.rows.items()}
        each = {m: -(-count // self.size) for m, count in counts.items()}
        # The shares of all modalities, filled up to the same number of rows in every process.
        mine = batch.clinical.new_zeros(sum(each.values()), width)
        start = 0
        for modality, rows in each.items():
            if modality in own:
                feature = own[modality].detach()
                mine[start : start + len(feature)] = feature
            start += rows
        everyone = mine.new_empty(self.size * len(mine), width)
        dist.all_gather_single(everyone, mine)
        parts = torch.split(everyone.view(self.size, len(mine), width), list(each.values()), dim=1)
        # (size, each, width) -> (size * each, width), without what filled up the last shares
        return {
            m: part.reshape(-1, width)[: counts[m]].clone()
            for m, part in zip(each, parts, strict=True)
        }

    def spread(
        self,
        model: MapModel,
        own: Mapping[Modality, FeaturesOf],
        gradients: Mapping[Modality, Tensor],
    ) -> None:
        """Each helper's rows through its encoders, and the sum over all, group by group."""
        sums = []
        for modality, gradient in gradients.items():
            if modality in own:
                here = gradient[self.share(len(gradient))]
                own[modality].backward(here.to(own[modality].dtype))  # type: ignore[no-untyped-call]
            sums.append(self._sum(model, modality))
        # Head and clinical: every helper holds the gradient of the whole batch. The first one's
        # counts, so that all have the same bits whatever their devices.
        sums += [self._sum(model, group, mine=self.rank == 0) for group in ("clinical", "head")]
        for parameters, flat, pending in sums:
            pending.wait()
            parts = torch.split(flat, [p.numel() for p in parameters])
            for parameter, part in zip(parameters, parts, strict=True):
                parameter.grad = part.view_as(parameter)

    def _sum(
        self, model: MapModel, group: str, *, mine: bool = True
    ) -> tuple[list[torch.nn.Parameter], Tensor, Any]:
        parameters = group_parameters(model, group)
        flat = torch.cat(
            [
                (torch.zeros_like(p) if p.grad is None or not mine else p.grad).flatten()
                for p in parameters
            ]
        )
        return parameters, flat, dist.all_reduce(flat, async_op=True)


# --- the rounds ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """A round's work, before the weights: ``sizes`` says how many numbers each group has.

    ``cases`` is the ``fingerprint`` of the site's training cohort.
    """

    plan: RunConfig
    round_number: int
    sizes: dict[str, int]
    cases: str
    objective: Objective


@dataclass(frozen=True)
class Failure:
    """Why a helper gave up, in words that stay inside the site; ``foreseen``: in our own."""

    message: str
    hint: str | None = None
    foreseen: bool = False


def fingerprint(cohort: Cohort) -> str:
    """The same for two loads of the same cases with the same labels and modalities."""
    digest = hashlib.sha256("\n".join(cohort.pseudonyms).encode())
    digest.update(cohort.labels.cpu().numpy().tobytes())
    for modality, rows in cohort.rows.items():
        digest.update(modality.encode() + rows.tobytes())
    return digest.hexdigest()


def run_helper(rank: int, config: SiteConfig, meeting: str, pipe: Connection) -> None:
    """The life of a helper process: meet the others, then round after round, until told why not."""
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the site, which ends us
    try:
        _serve(rank, config, meeting, pipe)
    except (EOFError, BrokenPipeError):  # the site closed the pipe
        return
    except Her2Error as error:
        pipe.send(Failure(str(error), error.hint, foreseen=True))
    except Exception as error:  # goes to the site, which says it
        pipe.send(Failure(f"{type(error).__name__}: {error}"))
    sys.exit(1)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:

        def watch(sentinel: int) -> None:
            connection.wait([sentinel])
            os._exit(1)

        threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


def _serve(rank: int, config: SiteConfig, meeting: str, pipe: Connection) -> None:
    device = _join(rank, config, meeting)
    team = Helpers(rank, config.devices, report=lambda: pipe.send(None))
    at_hand: tuple[RunConfig, Cohort] | None = None
    while True:
        order: Order = pipe.recv()
        weights = receive_vectors(pipe, order.sizes)
        if at_hand is None or (at_hand[0], fingerprint(at_hand[1])) != (order.plan, order.cases):
            at_hand = None
            at_hand = (order.plan, _load(config, order, device))
            pipe.send(None)  # a long load is no silence
        model = ready_model(
            order.plan,
            weights,
            device,
            rows_at_once=config.rows_at_once,
            compiled=config.compile,
        )
        pipe.send(None)
        result = train_round(
            model,
            at_hand[1],
            order.plan,
            site=config.name,
            round_number=order.round_number,
            objective=order.objective,
            team=team,
        )
        pipe.send(result if rank == 0 else replace(result, controls={}))
        if rank == 0:
            send_vectors(pipe, get_groups(model, order.sizes))


def _join(rank: int, config: SiteConfig, meeting: str) -> torch.device:
    gpu = select_device(config.device).type == "cuda"
    threads = config.threads
    if not gpu:
        threads = max((config.threads or os.cpu_count() or 1) // config.devices, 1)
    make_deterministic(threads)
    keep_memory()
    names = [name for _, name in socket.if_nameindex()]
    loopback = "lo" if "lo" in names else "lo0"  # Linux, macOS
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback
    device = torch.device("cuda", rank) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if gpu else "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=config.devices,
        timeout=timedelta(seconds=SILENCE_SECONDS),
    )
    return device


def _load(config: SiteConfig, order: Order, device: torch.device) -> Cohort:
    cache = open_cache(config.data.cache)
    copies = 1 if device.type == "cuda" else config.devices
    layout = preset(order.plan.preset, **order.plan.layout)
    resident, _ = residence(cache, layout, config.resident, device, copies)
    cohorts = load_cohorts(
        cache,
        order.plan,
        min_cases=config.policy.min_cases,
        device=device,
        splits=("train",),
        resident=("train",) if resident else (),
    )
    if fingerprint(cohorts["train"]) != order.cases:
        raise TrainingError(
            "the cache has changed since this run's cohort was loaded",
            hint="restart her2-client start after an ingest",
        )
    return cohorts["train"]


def send_vectors(pipe: Connection, vectors: Mapping[str, np.ndarray]) -> None:
    """Flat float32 vectors, one message each."""
    for vector in vectors.values():
        pipe.send_bytes(np.ascontiguousarray(vector, dtype=np.float32).data)


def receive_vectors(pipe: Connection, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """What ``send_vectors`` sent, in the same order."""
    vectors = {}
    for group, size in sizes.items():
        vectors[group] = np.empty(size, dtype=np.float32)
        pipe.recv_bytes_into(vectors[group])
    return vectors
