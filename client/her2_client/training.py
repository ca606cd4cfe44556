"""Local training: one round at one site.

AdamW starts afresh every round, and every random number follows from (run seed, site, round,
epoch): a site holds no training state between rounds, so that a restarted site continues with
exactly the weights that an undisturbed one would have sent.

The learning rate follows one schedule over the whole run (linear warm-up, then cosine to 1 % of
its height), which each site computes from the round it is in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from her2_client.augment import DRAWS, RANGES, augment
from her2_client.cohort import Cohort
from her2_common.cases import Modality
from her2_common.config import RunConfig
from her2_common.errors import TrainingError
from her2_common.losses import map_loss
from her2_common.model import MapModel
from her2_common.seeds import seed_for

FINAL_SHARE: Final = 0.01
"""The cosine ends at this share of the learning rate (the paper: 1e-4 to 1e-6)."""

ADAM_BETAS: Final = (0.9, 0.99)
"""The second moment forgets within 100 steps: a round has no more than that to warm it up."""


@dataclass(frozen=True)
class TrainResult:
    """``loss`` is the mean over all steps of the round (nats), ``seconds`` wall time."""

    loss: float | None
    steps: int
    seconds: float


def learning_rate(plan: RunConfig, progress: float) -> float:
    """The rate after ``progress`` rounds (0 at the start of the run, plan.rounds at its end)."""
    if progress < plan.warmup_rounds:
        return plan.learning_rate * min(max(progress, 0.02) / plan.warmup_rounds, 1.0)
    span = max(plan.rounds - plan.warmup_rounds, 1e-9)
    done = min((progress - plan.warmup_rounds) / span, 1.0)
    height = FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * done))
    return plan.learning_rate * height


def autocast(device: torch.device) -> AbstractContextManager[None]:
    """bf16 where it is native and pays (CUDA); float32 elsewhere."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


@dataclass(frozen=True)
class Balance:
    """What is done about unequal classes, as arguments of the loss."""

    weights: tuple[float, float] = (1.0, 1.0)
    log_odds: float = 0.0


def class_balance(cohort: Cohort, plan: RunConfig) -> Balance:
    """``none``: nothing, scores are probabilities. ``weights``: each class weighs the same.
    ``prior``: this site's log odds of positive are added in training and left out in use.

    A class that the site lacks counts as half a case.
    """
    positives = float(cohort.labels.sum())
    negatives = len(cohort) - positives
    positives, negatives = max(positives, 0.5), max(negatives, 0.5)
    if plan.class_balance == "weights":
        half = (positives + negatives) / 2
        return Balance(weights=(half / negatives, half / positives))
    if plan.class_balance == "prior":
        return Balance(log_odds=math.log(positives / negatives))
    return Balance()


def batches(cases: int, size: int, generator: torch.Generator) -> Iterator[np.ndarray]:
    """All cases in random order, in ceil(cases / size) batches whose sizes differ by at most 1."""
    order = torch.randperm(cases, generator=generator).numpy()
    yield from np.array_split(order, max(math.ceil(cases / size), 1))


def train_round(
    model: MapModel,
    cohort: Cohort,
    plan: RunConfig,
    *,
    site: str,
    round_number: int,
    on_epoch: Callable[[int, float], None] | None = None,
) -> TrainResult:
    """Train ``model`` in place on ``cohort`` for ``plan.local_epochs``.

    ``round_number`` counts from 1. ``on_epoch`` is told each epoch's number and mean loss.

    Raises:
        TrainingError: the loss is not finite.
    """
    started = time.perf_counter()
    device = cohort.clinical.device
    model.train()
    optimiser = torch.optim.AdamW(
        model.parameters(), betas=ADAM_BETAS, weight_decay=plan.weight_decay, fused=True
    )
    balance = class_balance(cohort, plan)
    steps_per_epoch = max(math.ceil(len(cohort) / plan.batch_size), 1)
    steps = 0
    losses: list[Tensor] = []
    for epoch in range(plan.local_epochs):
        generator = torch.Generator().manual_seed(
            seed_for(plan.seed, "train", site, round_number, epoch)
        )
        draws: dict[Modality, Tensor] = {
            modality: torch.rand(len(images), DRAWS, generator=generator).to(device)
            for modality, images in cohort.images.items()
        }
        seen = cohort.thinned(plan.modality_dropout, generator)
        total = torch.zeros((), device=device)
        for cases in batches(len(cohort), plan.batch_size, generator):
            batch, taken = seen.batch(cases)
            for modality, rows in taken.items():
                chosen = draws[modality][torch.from_numpy(rows).to(device)]
                batch.images[modality] = augment(batch.images[modality], chosen, RANGES[modality])
            done = steps / (steps_per_epoch * plan.local_epochs)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(plan, round_number - 1 + done)
            optimiser.zero_grad(set_to_none=True)
            with autocast(device):
                output = model(batch)
            index = torch.from_numpy(cases).to(device)
            loss = map_loss(
                output.float(),
                cohort.labels[index],
                class_weights=balance.weights,
                prior_log_odds=balance.log_odds,
                single_weight=plan.single_weight,
                alignment=plan.alignment,
                alignment_weight=plan.alignment_weight,
            )
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            total += loss.detach()
            steps += 1
        mean = total / steps_per_epoch
        losses.append(mean)
        value = float(mean)  # once an epoch, so that a GPU is not asked every step
        if not math.isfinite(value):
            raise TrainingError(
                f"round {round_number}, epoch {epoch + 1}: the loss is {value}",
                hint="lower run.learning_rate; if one site alone fails, inspect its images",
            )
        if on_epoch is not None:
            on_epoch(epoch, value)
    loss_value = float(torch.stack(losses).mean()) if losses else None
    return TrainResult(loss_value, steps, time.perf_counter() - started)
