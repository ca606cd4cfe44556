"""Integrated gradients of a case: how much each pixel adds to the log odds of positive.

1. The case's images fade in from the standardised zero image (mean tissue) to themselves:
   a * image, with a from 0 to 1, all modalities at once.
2. Along the way, the gradient of the log odds with respect to the image is integrated over a, and
   multiplied by the image: its map. A modality's map is that of its own log odds.
3. The same with the fused log odds gives, added up over its pixels, each modality's share in it.
4. By the fundamental theorem of calculus a map adds up to log odds(image) - log odds(blank). What
   is missing is the error of the integration. The steps are tripled until it is within
   ``TOLERANCE``; the old ones are the middles of the new ones and are kept.

Source: Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", ICML 2017 (the axiom
of completeness is step 4). Deviation: the steps are equal not in a but in log(1 + a / knee). The
encoders normalise what they see, so that a picture at a hundredth of its contrast looks to them
like itself: nearly all of the integral lies at small a, which equal steps never visit. The knee
is the contrast up to which the case's log odds are still those of the blank image.

Only ``MapModel.forward`` is used: any encoder can be explained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from her2_common.cases import Modality
from her2_common.model import Batch, MapModel
from her2_common.types import LogitsOf

Array = npt.NDArray[Any]

TOLERANCE: Final = 0.05
"""Largest error of a sum of attributions, in log odds: 1.25 hundredths of a score at most (design
value)."""
FIRST_STEPS: Final = 48
MOST_STEPS: Final = 432
"""48, 144, 432: tripled at most twice, so that a case's work is bounded (design values)."""
LADDER: Final = tuple(10.0**-k for k in range(30, -1, -1))
"""Contrasts of which one becomes the knee, below which the steps are equal and above which they
grow by equal factors. The lowest is far above the smallest float32."""
ROWS: Final = 8
"""Steps that go through the model together: they bound the memory (design value)."""


@dataclass(frozen=True)
class Part:
    """What one modality of a case adds, in log odds.

    ``alone``: the modality's own log odds; ``blank``: what these are for a blank image; ``added``:
    what its map adds up to; ``share``: its part of the fused log odds.
    """

    alone: float
    blank: float
    added: float
    share: float

    @property
    def gap(self) -> float:
        """What the map adds up to beyond ``alone - blank``: the error of the integration."""
        return self.added - (self.alone - self.blank)


@dataclass(frozen=True)
class Explanation:
    """A case's ``fused`` log odds of positive (0 is even odds) and what they are made of.

    fused = start + clinical + the shares of the parts, but for ``gap``. ``start`` is what the
    model says to blank images and unknown clinical inputs, ``clinical`` what these inputs add.
    """

    fused: float
    start: float
    clinical: float
    parts: dict[Modality, Part]
    steps: int

    @property
    def gap(self) -> float:
        """What start, clinical inputs and shares add up to beyond ``fused``."""
        total = self.start + self.clinical + sum(part.share for part in self.parts.values())
        return total - self.fused

    @property
    def complete(self) -> bool:
        """Whether every sum is within ``TOLERANCE`` of what it must be."""
        gaps = [self.gap, *(part.gap for part in self.parts.values())]
        return all(abs(gap) <= TOLERANCE for gap in gaps)


def explain(model: MapModel, batch: Batch) -> tuple[Explanation, dict[Modality, Array]]:
    """The explanation of a batch's one case, and the map of each modality that it has.

    A map is (channels, *size) float32, in log odds a pixel or voxel: of the modality's own score,
    not of the fused one. The model's weights and their gradients stay as they are; it is left in
    evaluation mode.

    Raises:
        ValueError: the batch has not exactly one case.
    """
    if len(batch.clinical) != 1:
        raise ValueError(f"expected a batch of one case, got {len(batch.clinical)}")
    model.eval()
    ends, knee = _ends(model, batch)
    integral = _Integral(model, batch, knee)
    steps = FIRST_STEPS
    integral.add(middles(steps))
    maps = integral.maps(steps)
    while not (found := integral.explanation(ends, maps, steps)).complete and steps < MOST_STEPS:
        steps *= 3
        new = [step for step in range(steps) if step % 3 != 1]
        integral.add(middles(steps)[new])
        maps = integral.maps(steps)
    return found, maps


def middles(steps: int) -> Array:
    """(steps,) float64: the middles of ``steps`` equal intervals of [0, 1]."""
    midpoints: Array = (np.arange(steps) + 0.5) / steps
    return midpoints


def contrast(u: Array, knee: float) -> tuple[Array, Array]:
    """The contrast a = knee * ((1 + 1 / knee) ** u - 1) at each u of [0, 1], and da / du.

    >>> [float(a.round(9)) for a in contrast(np.array([0.0, 1.0]), 1e-4)[0]]
    [0.0, 1.0]
    """
    rate = math.log1p(1 / knee)
    a: Array = knee * np.expm1(rate * u)
    return a, rate * (a + knee)


def log_odds(logits: LogitsOf) -> Float[Tensor, "_n"]:
    """Positive less negative; 0 is even odds."""
    return logits[:, 1] - logits[:, 0]


# --- the integral -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ends:
    """Log odds at both ends of the way; ``unknown``: blank, and without clinical inputs.

    ``alone`` and ``alone_blank``: those of each modality.
    """

    fused: float
    blank: float
    unknown: float
    alone: dict[Modality, float]
    alone_blank: dict[Modality, float]


def _faded(batch: Batch, contrasts: Tensor) -> Batch:
    """The batch's one case at each of (r,) contrasts."""
    count = len(contrasts)
    rows = torch.arange(count, device=contrasts.device)
    images = {
        # (r, 1, ...) * (1, channels, *size)
        m: contrasts.view(-1, *[1] * (image.ndim - 1)) * image
        for m, image in batch.images.items()
    }
    return Batch(images, dict.fromkeys(images, rows), batch.clinical.expand(count, -1))


def _ends(model: MapModel, batch: Batch) -> tuple[_Ends, float]:
    """The log odds at both ends of the way, and the knee: see ``LADDER``."""
    names = list(batch.images)
    device = batch.clinical.device
    told = []
    with torch.no_grad():
        for contrasts in torch.split(torch.tensor([0.0, *LADDER], device=device), ROWS):
            output = model(_faded(batch, contrasts))
            logits = (output.fused, *(output.single[m] for m in names))
            told.append(torch.stack([log_odds(each) for each in logits], dim=1))
        blank = _faded(batch, torch.zeros(1, device=device))
        nobody = Batch(blank.images, blank.rows, torch.zeros_like(blank.clinical))
        unknown = log_odds(model(nobody).fused)
    ladder = torch.cat(told).double().cpu().numpy()  # (rungs, 1 + modalities), blank first
    moved = np.abs(ladder - ladder[0]).max(axis=1) > TOLERANCE
    # The last rung before the first one that moves; argmax is 0 if none does.
    knee = LADDER[max(int(moved.argmax()) - 2, 0)] if moved.any() else LADDER[-1]
    first, last = ladder[0], ladder[-1]
    ends = _Ends(
        fused=float(last[0]),
        blank=float(first[0]),
        unknown=float(unknown[0]),
        alone={m: float(last[i]) for i, m in enumerate(names, start=1)},
        alone_blank={m: float(first[i]) for i, m in enumerate(names, start=1)},
    )
    return ends, knee


class _Integral:
    """The sums over the steps so far: of each modality's own gradient, and of the fused one's."""

    def __init__(self, model: MapModel, batch: Batch, knee: float) -> None:
        self.model, self.batch, self.knee = model, batch, knee
        self.own = {m: torch.zeros_like(image) for m, image in batch.images.items()}
        self.shares = dict.fromkeys(batch.images, 0.0)

    def add(self, u: Array) -> None:
        """Visit the steps whose middles are ``u``."""
        for start in range(0, len(u), ROWS):
            self._add(*contrast(u[start : start + ROWS], self.knee))

    def _add(self, contrasts: Array, weights: Array) -> None:
        device = self.batch.clinical.device
        faded = _faded(self.batch, torch.from_numpy(contrasts).float().to(device))
        order = list(faded.images)
        images = [faded.images[m].requires_grad_() for m in order]
        output = self.model(faded)
        # Rows do not see one another, and a modality's own score sees no other modality: the
        # gradient of the total is that of each.
        alone = torch.stack([log_odds(output.single[m]).sum() for m in order]).sum()
        own = torch.autograd.grad(alone, images, retain_graph=True)
        fused = torch.autograd.grad(log_odds(output.fused).sum(), images)
        weight = torch.from_numpy(weights).float().to(device)
        for m, of_own, of_fused in zip(order, own, fused, strict=True):
            self.own[m] += torch.tensordot(weight, of_own, dims=1)  # (r) . (r, channels, *size)
            along = torch.tensordot(weight, of_fused, dims=1) * self.batch.images[m][0]
            self.shares[m] += float(along.sum(dtype=torch.float64))

    def maps(self, steps: int) -> dict[Modality, Array]:
        """The maps (channels, *size), if the steps so far are all of ``steps``."""
        images = self.batch.images
        return {m: (self.own[m] * images[m])[0].div(steps).cpu().numpy() for m in images}

    def explanation(self, ends: _Ends, maps: dict[Modality, Array], steps: int) -> Explanation:
        """What the case's log odds are made of, likewise."""
        parts = {
            m: Part(
                alone=ends.alone[m],
                blank=ends.alone_blank[m],
                added=float(pixels.sum(dtype=np.float64)),
                share=self.shares[m] / steps,
            )
            for m, pixels in maps.items()
        }
        clinical = ends.blank - ends.unknown
        return Explanation(ends.fused, ends.unknown, clinical, parts, steps)
