"""Local training: one round at one site.

AdamW starts afresh every round, and every random number follows from (run seed, site, round,
epoch): a round follows from its weights and its objective alone, so that a restarted site continues
with exactly the weights that an undisturbed one would have sent.

The learning rate follows one schedule over the whole run (linear warm-up, then cosine to 1 % of
its height), which each site computes from the round it is in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor

from her2_client.augment import DRAWS, RANGES, Noise, augment
from her2_client.cohort import Cohort
from her2_client.engine import AdamW, Watch, backward
from her2_client.local_objectives import OWN_LOSS, Applied, Objective
from her2_common.cases import Modality
from her2_common.config import RunConfig
from her2_common.losses import loss_terms
from her2_common.model import GROUPS, MapModel, group_parameters
from her2_common.seeds import seed_for

FINAL_SHARE: Final = 0.01
"""The cosine ends at this share of the learning rate (the paper: 1e-4 to 1e-6)."""

ADAM_BETAS: Final = (0.9, 0.99)
"""The second moment forgets within 100 steps: a round has no more than that to warm it up."""


@dataclass(frozen=True)
class TrainResult:
    """``loss`` is the mean over all steps of the round (nats), ``seconds`` wall time; ``controls``
    are the site's next ones (SCAFFOLD)."""

    loss: float | None
    steps: int
    seconds: float
    controls: Mapping[str, np.ndarray] = field(default_factory=dict)


def learning_rate(plan: RunConfig, progress: float) -> float:
    """The rate after ``progress`` rounds (0 at the start of the run, plan.rounds at its end)."""
    if progress < plan.warmup_rounds:
        return plan.learning_rate * min(max(progress, 0.02) / plan.warmup_rounds, 1.0)
    span = max(plan.rounds - plan.warmup_rounds, 1e-9)
    done = min((progress - plan.warmup_rounds) / span, 1.0)
    height = FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * done))
    return plan.learning_rate * height


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
    objective: Objective = OWN_LOSS,
    on_epoch: Callable[[int, float], None] | None = None,
) -> TrainResult:
    """Train ``model`` in place on ``cohort`` for ``plan.local_epochs``.

    ``round_number`` counts from 1; ``objective`` acts between each backward pass and its step.
    ``on_epoch`` is told each epoch's number and mean loss.

    Raises:
        TrainingError: the loss or a weight is not finite.
    """
    started = time.perf_counter()
    device = cohort.clinical.device
    model.train()
    optimiser = AdamW(model.parameters(), betas=ADAM_BETAS, weight_decay=plan.weight_decay)
    applied = Applied(objective, {group: group_parameters(model, group) for group in GROUPS})
    balance = class_balance(cohort, plan)
    steps_per_epoch = max(math.ceil(len(cohort) / plan.batch_size), 1)
    steps = 0
    losses: list[Tensor] = []
    watch = Watch(cohort, model, round_number)
    for epoch in range(plan.local_epochs):
        generator = torch.Generator().manual_seed(
            seed_for(plan.seed, "train", site, round_number, epoch)
        )
        draws: dict[Modality, Tensor] = {
            modality: torch.rand(len(images), DRAWS, generator=generator).to(device)
            for modality, images in cohort.images.items()
        }
        seen = cohort.thinned(plan.modality_dropout, generator)
        order = list(batches(len(cohort), plan.batch_size, generator))
        noise: dict[Modality, Noise] = {}
        total = torch.zeros((), device=device)
        for step, part in enumerate(seen.feed(order)):
            batch = part.batch
            for modality, rows in part.taken.items():
                chosen = draws[modality].index_select(0, rows)
                images = augment(batch.images[modality], chosen, RANGES[modality])
                if plan.image_noise:
                    if modality not in noise:
                        seed = seed_for(plan.seed, "noise", site, round_number, epoch, modality)
                        noise[modality] = Noise(
                            len(draws[modality]),
                            images.shape[1:],
                            plan.image_noise,
                            torch.Generator().manual_seed(seed),
                            device,
                        )
                    images = noise[modality].add(images, rows)
                batch.images[modality] = images
            done = steps / (steps_per_epoch * plan.local_epochs)
            rate = learning_rate(plan, round_number - 1 + done)
            optimiser.zero_grad()
            loss = partial(
                loss_terms,
                labels=cohort.labels.index_select(0, part.cases),
                low=cohort.low.index_select(0, part.cases) if plan.her2_levels == 3 else None,
                class_weights=balance.weights,
                prior_log_odds=balance.log_odds,
                single_weight=plan.single_weight,
                alignment=plan.alignment,
                alignment_weight=plan.alignment_weight,
            )
            terms = backward(model, batch, loss)
            applied.before_step(rate)
            optimiser.step(rate)
            total += watch.note(terms, part.seen, epoch=epoch + 1, step=step + 1)
            steps += 1
        losses.append(total / steps_per_epoch)
        if on_epoch is not None:
            watch.look()
            on_epoch(epoch, float(losses[-1]))
    watch.end()
    loss_value = float(torch.stack(losses).mean()) if losses else None
    seconds = time.perf_counter() - started
    return TrainResult(loss_value, steps, seconds, applied.next_controls())
