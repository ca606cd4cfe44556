"""The engine: one training step, the watch over what steps give, the model made ready.

1. Each encoder runs on the rows that are here, under autocast; in chunks of ``rows_at_once`` rows
   if the card is small (``MapModel.encode``).
2. The head and the loss are worked out once, from the features of the whole batch: each term has
   the denominator of the whole batch, and pairs across chunks count.
3. The gradient of the loss by the features goes back into the encoders, chunk by chunk. The sum
   over the chunks is the gradient of the batch: nothing is averaged twice.

Nothing in a step asks the device for a value; ``Watch`` asks once in ``LOOK_EVERY`` steps.

Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
RepL4NLP 2021 (2, 3).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Final, NoReturn

import numpy as np
import torch
from torch import Tensor

from her2_client.cohort import Cohort
from her2_client.residency import Streamed
from her2_common.cases import MODALITIES, Modality
from her2_common.config import RunConfig
from her2_common.errors import ConfigError, TrainingError
from her2_common.losses import summed
from her2_common.model import (
    GROUPS,
    Batch,
    MapModel,
    MapOutput,
    build_model,
    group_parameters,
    set_groups,
)
from her2_common.types import Scalar

LOOK_EVERY: Final = 16
"""Steps between two looks at the loss: a look waits for the device."""

TERMS: Final = ("fused", *MODALITIES, "alignment")
"""The terms of the loss (her2_common.losses.loss_terms) in the columns of the record."""

ADAM_EPSILON: Final = 1e-8
"""Added to the root of AdamW's second moment (the value of its paper and of torch)."""

Loss = Callable[[MapOutput], Mapping[str, Scalar]]
"""The terms of the loss of a whole batch, by name."""

Rows = Mapping[Modality, np.ndarray]
"""Rows of a cohort's images, as the host knows them."""


def select_device(device: str) -> torch.device:
    """The device of site.yaml; ``auto`` takes the GPU if there is one.

    Raises:
        ConfigError: cuda is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ConfigError("device: expected a CUDA device, got none", hint="set device: auto")
    return torch.device("cuda" if device != "cpu" and available else "cpu")


def make_deterministic(threads: int | None) -> None:
    """The same inputs give the same bits on this machine, whatever ran before."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Of torch's two functions for it, the one that does not import its compiler (2.6 s).
    torch.set_deterministic_debug_mode("error")
    if threads is not None:
        torch.set_num_threads(threads)


def autocast(device: torch.device) -> AbstractContextManager[None]:
    """bf16 where it is native and pays (CUDA); float32 elsewhere."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


# --- the step -----------------------------------------------------------------------------------


def backward(model: MapModel, batch: Batch, loss: Loss) -> dict[str, Scalar]:
    """Add the gradients of a batch's loss to ``model``; returns the terms of the loss."""
    with autocast(batch.clinical.device):
        features = {m: model.encode(m, images) for m, images in batch.images.items()}
    terms = loss(model.judge(features, batch.rows, batch.clinical))
    summed(terms).backward()  # type: ignore[no-untyped-call]
    return {name: term.detach() for name, term in terms.items()}


class AdamW:
    """AdamW by torch's fused kernel, with the bits of ``torch.optim.AdamW(fused=True)``.

    Parameters without a gradient keep their bits and their count of steps. The class of torch
    imports its compiler, which takes each process 2.6 s.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """

    def __init__(
        self, parameters: Iterable[Tensor], *, betas: tuple[float, float], weight_decay: float
    ) -> None:
        self.parameters = list(parameters)
        self.betas, self.weight_decay = betas, weight_decay
        self._moments: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # first, second, steps

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move each parameter that has a gradient, at the learning rate ``rate``."""
        moved = [(i, p, p.grad) for i, p in enumerate(self.parameters) if p.grad is not None]
        if not moved:
            return
        for i, parameter, _ in moved:
            if i not in self._moments:
                count = torch.zeros((), device=parameter.device)
                zeros = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                self._moments[i] = zeros, zeros.clone(), count
        first, second, steps = zip(*(self._moments[i] for i, _, _ in moved), strict=True)
        torch._foreach_add_(steps, 1)
        # torch is pinned to one release: the name of the kernel beneath the public class holds.
        torch._fused_adamw_(
            [parameter for _, parameter, _ in moved],
            [gradient for _, _, gradient in moved],
            first,
            second,
            [],
            steps,
            lr=rate,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=self.weight_decay,
            eps=ADAM_EPSILON,
            amsgrad=False,
            maximize=False,
        )


# --- the watch ----------------------------------------------------------------------------------


class Watch:
    """Keeps each step's loss terms on the device and looks at them every ``LOOK_EVERY`` steps."""

    def __init__(self, cohort: Cohort, model: MapModel, round_number: int) -> None:
        self.cohort, self.model, self.round = cohort, model, round_number
        device = cohort.clinical.device
        self.record = torch.zeros(LOOK_EVERY, len(TERMS), device=device)
        self.zero = torch.zeros((), device=device)
        self.steps: list[tuple[int, int, Rows]] = []  # of each row of the record

    def note(self, terms: Mapping[str, Scalar], rows: Rows, *, epoch: int, step: int) -> Scalar:
        """Take down a step's terms; returns their sum. ``epoch`` and ``step`` count from 1,
        ``rows`` are those of the cohort's images that the step saw.

        Raises:
            TrainingError: this or an earlier step's loss is not finite.
        """
        row = self.record[len(self.steps)]
        torch.stack([terms.get(name, self.zero) for name in TERMS], out=row)
        self.steps.append((epoch, step, rows))
        total = row.sum()
        if len(self.steps) == LOOK_EVERY:
            self.look()
        return total

    def look(self) -> None:
        """Wait for the device and see that all terms so far are finite.

        Raises:
            TrainingError: one is not.
        """
        steps, self.steps = self.steps, []
        finite = torch.isfinite(self.record[: len(steps)]).cpu().numpy()
        for seen, (epoch, step, rows) in zip(finite, steps, strict=True):
            if not seen.all():
                terms = [name for name, fine in zip(TERMS, seen, strict=True) if not fine]
                self._explain(f"round {self.round}, epoch {epoch}, step {step}", terms, rows)

    def end(self) -> None:
        """The last look of a round, at the weights too.

        Raises:
            TrainingError: a term or a weight is not finite.
        """
        self.look()
        if broken := self._broken_groups():
            raise TrainingError(
                f"round {self.round}: after the last step the weights of {', '.join(broken)} are "
                "not finite, though every loss was",
                hint="lower run.learning_rate",
            )

    def _explain(self, where: str, terms: list[str], rows_of: Rows) -> NoReturn:
        what = f"{where}: the loss is not finite (terms: {', '.join(terms)})"
        for modality, rows in rows_of.items():
            stored = self.cohort.images[modality]
            for row in rows.tolist():
                if not _finite(stored, row):
                    case = int(np.flatnonzero(self.cohort.rows[modality] == row)[0])
                    names = self.cohort.pseudonyms
                    name = names[case] if names else f"number {case + 1}"
                    raise TrainingError(
                        f"{what}; the {modality} image of case {name} holds values that are not",
                        hint="the cache is damaged or the image is: run her2-client check, "
                        "then her2-client ingest; else take the case out of the table",
                    )
        broken = self._broken_groups()
        weights = "the weights are finite"
        if broken:
            weights = f"by now the weights of {', '.join(broken)} are not"
        raise TrainingError(
            f"{what}; the images of this step are finite, {weights}",
            hint="training diverged: lower run.learning_rate, or lengthen run.warmup_rounds",
        )

    def _broken_groups(self) -> list[str]:
        return [
            group
            for group in GROUPS
            if not all(_all_finite(p) for p in group_parameters(self.model, group))
        ]


def _all_finite(values: Tensor) -> bool:
    # A finite sum says it in a tenth of the time; it may overflow though no value did.
    return bool(torch.isfinite(values.detach().sum())) or bool(torch.isfinite(values).all())


def _finite(stored: Tensor | Streamed, row: int) -> bool:
    image = stored.take(np.array([row])) if isinstance(stored, Streamed) else stored[row]
    return _all_finite(image)


# --- the model ------------------------------------------------------------------------------------


def ready_model(
    plan: RunConfig,
    weights: Mapping[str, np.ndarray],
    device: torch.device,
    *,
    rows_at_once: int | None = None,
) -> MapModel:
    """The model of a plan on ``device``, with the groups that came; others as the seed draws them.

    Raises:
        UpdateError: the weights are of another model.
    """
    model = build_model(plan.preset, plan.seed, **plan.layout)
    model.rows_at_once = rows_at_once
    set_groups(model, weights)
    model.to(device)
    return model
