"""Augmentation of a whole batch at once, from numbers drawn for each case beforehand.

The random numbers of an epoch are drawn in the order of the cohort, before batches are formed, so
that what happens to a case does not depend on the company it keeps. One affine resampling does
flips, rotation, zoom and shift; then gain and offset change the intensities. Noise of a strength
that differs from case to case hides by what noise a scanner can be told: without it a model learns
the scanner where that goes with the label (docs/evidence.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from her2_common.cases import Modality
from her2_common.types import Draws, Images, RowsOf

DRAWS: Final = 10
"""Random numbers in [0, 1) a case uses: 3 flips, angle, zoom, 3 shifts, gain, offset."""


@dataclass(frozen=True)
class Ranges:
    """How far each change may go; ``flips`` are the axes (x, y, z) that may be mirrored.

    Design values. Mammograms are never flipped left to right (ingest puts the chest wall on one
    side) and ultrasound never upside down (depth has a meaning).
    """

    flips: tuple[bool, bool, bool]
    angle: float = math.radians(10)
    zoom: float = 0.10
    shift: float = 0.08  # of half the side
    gain: float = 0.10
    offset: float = 0.10  # of a standard deviation


RANGES: Final[dict[Modality, Ranges]] = {
    "mg": Ranges(flips=(False, True, False)),
    "us": Ranges(flips=(True, False, False)),
    "mri": Ranges(flips=(True, True, True)),
}


def augment(images: Images, draws: Draws, ranges: Ranges) -> Images:
    """A changed copy of ``images`` (n, channels, *size); ``draws`` (n, DRAWS) lie in [0, 1)."""
    sides = images.ndim - 2
    signed = draws * 2 - 1
    mirror = [
        torch.where(draws[:, axis] < 0.5, -1.0, 1.0)
        if ranges.flips[axis]
        else torch.ones_like(draws[:, 0])
        for axis in range(3)
    ]
    angle = signed[:, 3] * ranges.angle
    zoom = 1 + signed[:, 4] * ranges.zoom
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    theta = images.new_zeros(len(images), sides, sides + 1)
    theta[:, 0, 0], theta[:, 0, 1] = cosine * mirror[0], -sine
    theta[:, 1, 0], theta[:, 1, 1] = sine * mirror[0], cosine * mirror[1]
    if sides == 3:
        theta[:, 2, 2] = zoom * mirror[2]
    theta[:, :, sides] = signed[:, 5 : 5 + sides] * ranges.shift
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    shape = (-1,) + (1,) * (sides + 1)
    gain = 1 + signed[:, 8].view(shape) * ranges.gain
    offset = signed[:, 9].view(shape) * ranges.offset
    return moved * gain + offset


class Noise:
    """White noise for the ``count`` images of one modality, drawn for an epoch.

    One field of the size of an image serves them all: each image has it shifted around by amounts
    of its own and multiplied by a strength of its own, uniform from 0 to ``most``, in the standard
    deviations of a standardised image. Shifts of white noise are as unlike as two draws, and a
    field is drawn in no time where one for each image would cost more than the augmentation.
    """

    def __init__(
        self,
        count: int,
        shape: Sequence[int],
        most: float,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        size = torch.tensor(shape[1:])
        shifts = torch.rand(count, len(size), generator=generator)  # of a side
        self.field = torch.randn(*shape, generator=generator).to(device)  # (channels, *size)
        self.shifts = (shifts * size).long().to(device)  # (count, sides)
        self.strength = (most * torch.rand(count, generator=generator)).to(device)

    def add(self, images: Images, rows: RowsOf) -> Images:
        """``images`` (n, channels, *size) with their noise; ``rows`` (n,) are their numbers."""
        sides = self.field.ndim - 1
        shifts = self.shifts.index_select(0, rows)
        places: list[Tensor] = []
        for side in range(sides):
            length = self.field.shape[side + 1]
            place = (torch.arange(length, device=shifts.device) + shifts[:, side, None]) % length
            shape = [len(rows)] + [1] * sides
            shape[side + 1] = length
            places.append(place.view(shape))  # (n, 1, length, 1): the sides after the images
        where: tuple[slice | Tensor, ...] = (slice(None), *places)
        shifted = self.field[where].movedim(0, 1)  # (n, channels, *size)
        strength = self.strength.index_select(0, rows).view(-1, *[1] * (sides + 1))
        return images + strength * shifted
