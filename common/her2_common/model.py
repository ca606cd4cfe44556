"""The MAP model: one encoder a modality, mean fusion over what is present, one shared head.

    images of modality m --encoder m--> feature (d) ----------------+--> head --> single logits m
                                           \\                        |
                                            mean over the present --+--> head --> fused logits
    clinical inputs (5) ------------------------------------------- + (added in the head)

Source: "Deep-learning-based HER2 status assessment from multimodal breast cancer data predicts
neoadjuvant therapy response", Nature Biomedical Engineering, 2025 (the architecture). Ours is:

- an encoder runs only on the rows that have its modality; an absent modality costs nothing and
  receives exactly no gradient;
- no layer keeps running statistics, so a weight means the same at every site and the output for
  a case does not depend on the other cases of its batch;
- the parameters form named groups (``mg``, ``us``, ``mri``, ``clinical``, ``head``), the units in
  which a federation sends and averages them.

The published head is one Linear(d + 5, 2). Here its columns stand in two groups: ``head``
(Linear(d, 2)) and ``clinical`` (Linear(5, 2), no bias), whose sum is the same map; a site without
clinical inputs can so leave its columns alone. With three HER2 levels the head has a third output,
the log odds of low against zero among the negatives: a continuation-ratio model (Fienberg, The
Analysis of Cross-Classified Categorical Data, 1980), whose first part is the model of two levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, Final, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from her2_common.cases import MODALITIES, Modality
from her2_common.errors import ConfigError, UpdateError
from her2_common.hovertrans import HoVerTrans
from her2_common.seeds import seed_for
from her2_common.swin import Swin3d
from her2_common.types import (
    Clinical,
    Features,
    FeaturesOf,
    Images,
    ImagesOf,
    Logits,
    LogitsOf,
    RowsOf,
)

Group = Literal["mg", "us", "mri", "clinical", "head"]
GROUPS: Final[tuple[Group, ...]] = get_args(Group)

CHANNELS: Final[dict[Modality, int]] = {"mg": 4, "us": 1, "mri": 1}

CLINICAL_CENTRE: Final = (55.0, 0.5, 2.0, 1.0, 0.3)
CLINICAL_SCALE: Final = (12.0, 0.5, 1.0, 1.0, 0.5)
"""Age in years, menopausal 0/1, T 0-4, N 0-3, multifocal 0/1: fixed round numbers near the centre
and spread of neoadjuvant cohorts (a design choice), never fitted, so that nothing about a site's
patients leaves with them. An unknown value becomes 0, the centre."""


@dataclass(frozen=True)
class Batch:
    """Cases of one step. ``rows[m]`` says to which case each row of ``images[m]`` belongs."""

    images: dict[Modality, ImagesOf]
    rows: dict[Modality, RowsOf]
    clinical: Clinical


@dataclass(frozen=True)
class MapOutput:
    """``fused`` is (b, levels); ``single[m]``, ``features[m]`` have a row for each of ``rows[m]``.

    Columns 0 and 1 are the logits of negative and positive; column 2, in a model of three levels,
    the log odds of HER2-low against HER2-zero.
    """

    fused: Logits
    single: Mapping[Modality, LogitsOf]
    features: Mapping[Modality, FeaturesOf]
    rows: Mapping[Modality, RowsOf]

    def float(self) -> MapOutput:
        """The same in float32, for a loss that autocast must not round."""
        single = {m: logits.float() for m, logits in self.single.items()}
        features = {m: feature.float() for m, feature in self.features.items()}
        return MapOutput(self.fused.float(), single, features, self.rows)


# --- encoders -----------------------------------------------------------------------------------


class ConvEncoder(nn.Module):
    """A small convolutional network: halve the size, widen, repeat; pool; project.

    GroupNorm keeps each case to itself. The pooled vector joins the mean and the maximum over
    positions: a mean alone loses a few bright micro-calcifications among many dark pixels.
    """

    def __init__(self, channels: int, widths: tuple[int, ...], features: int, dims: int) -> None:
        super().__init__()
        convolution: Any = nn.Conv2d if dims == 2 else nn.Conv3d
        layers: list[nn.Module] = []
        for before, width in zip((channels, *widths), widths, strict=False):
            layers += [
                convolution(before, width, kernel_size=3, stride=2, padding=1, bias=False),
                nn.GroupNorm(8, width),
                nn.GELU(),
            ]
        self.body = nn.Sequential(*layers)
        self.project = nn.Linear(2 * widths[-1], features)

    def forward(self, images: Images) -> Features:
        """(n, channels, *size) to (n, features)."""
        positions = self.body(images).flatten(2)  # (n, width, positions)
        pooled = torch.cat([positions.mean(-1), positions.amax(-1)], dim=1)  # (n, 2 width)
        projected: Tensor = self.project(pooled)
        return projected


def _conv2d(channels: int, features: int, size: int, *, widths: tuple[int, ...]) -> nn.Module:
    return ConvEncoder(channels, widths, features, dims=2)  # for any size


def _conv3d(channels: int, features: int, size: int, *, widths: tuple[int, ...]) -> nn.Module:
    return ConvEncoder(channels, widths, features, dims=3)  # for any size


def _swin3d(channels: int, features: int, size: int, **options: Any) -> nn.Module:
    return Swin3d(channels, features, **options)  # for any size


ENCODERS: Final[dict[str, Callable[..., nn.Module]]] = {
    "conv2d": _conv2d,
    "conv3d": _conv3d,
    "hovertrans": HoVerTrans,
    "swin3d": _swin3d,
}
"""A new encoder is one function (channels, features, size, **options) -> module, and one line
here. ``size`` is the side of the images in pixels or voxels. The module maps the rows it gets,
(n, channels, *size), to (n, features), each row by itself, and keeps no buffers."""


# --- presets ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preset:
    """A model as data: input sizes (pixels, voxels), feature width, and an encoder a modality.

    ``encoders[m]`` is a name in ``ENCODERS`` and the options of that function. ``levels``
    (of HER2) is a run's choice.
    """

    image_size: int
    volume_size: int
    features: int
    encoders: Mapping[Modality, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    levels: Literal[2, 3] = 2


_HOVERTRANS: Final = {
    "dims": (4, 8, 16, 32),
    "depths": (2, 4, 4, 2),
    "heads": (2, 4, 8, 16),
    "patch": 2,
}

PRESETS: Final[dict[str, Preset]] = {
    # The configuration of the MAP paper: 77.7 M parameters each for MG and US, 29.1 M for MRI.
    "paper": Preset(
        image_size=256,
        volume_size=96,
        features=768,
        encoders={
            "mg": ("hovertrans", _HOVERTRANS),
            "us": ("hovertrans", _HOVERTRANS),
            "mri": (
                "swin3d",
                {
                    "patch": 4,
                    "embedding": 96,
                    "depths": (2, 2, 6, 2),
                    "heads": (3, 6, 12, 24),
                    "window": 3,
                },
            ),
        },
    ),
    # A design of this project: the whole model is about 0.7 M parameters and trains on a CPU.
    "compact": Preset(
        image_size=128,
        volume_size=48,
        features=128,
        encoders={
            "mg": ("conv2d", {"widths": (24, 48, 96, 128)}),
            "us": ("conv2d", {"widths": (24, 48, 96, 128)}),
            "mri": ("conv3d", {"widths": (16, 32, 64, 128)}),
        },
    ),
}


def preset(name: str, **layout: Any) -> Preset:
    """The preset of that name; keywords other than None replace its fields.

    ``image_size`` and ``volume_size`` (pixels, voxels) are those of the images it will see: the
    weights of some encoders follow the size. ``RunConfig.layout`` gives a run's keywords.

    Raises:
        ConfigError: there is none.
    """
    if name not in PRESETS:
        known = ", ".join(PRESETS)
        raise ConfigError(f"run.preset: expected one of {known}, got {name!r}")
    return replace(PRESETS[name], **{k: value for k, value in layout.items() if value is not None})


class MapModel(nn.Module):
    """The MAP model of a preset. Build it with ``build_model``, which seeds its weights."""

    def __init__(self, plan: Preset) -> None:
        super().__init__()
        self.encoders = list(plan.encoders)
        for modality, (kind, options) in plan.encoders.items():
            size = plan.volume_size if modality == "mri" else plan.image_size
            encoder = ENCODERS[kind](CHANNELS[modality], plan.features, size, **options)
            self.add_module(modality, encoder)
        self.levels = plan.levels
        self.rows_at_once: int | None = None
        self.clinical = nn.Linear(5, plan.levels, bias=False)
        self.head = nn.Linear(plan.features, plan.levels)

    def forward(self, batch: Batch) -> MapOutput:
        """Scores every case from what it has.

        Every case must have at least one modality; ingest leaves out the ones that have none.
        """
        features = {
            modality: self.encode(modality, batch.images[modality])
            for modality in MODALITIES
            if modality in batch.rows and batch.rows[modality].numel()
        }
        return self.judge(features, batch.rows, batch.clinical)

    def encode(self, modality: Modality, images: Images) -> Features:
        """(n, channels, *size) to (n, d): the encoder of ``modality``, on at most ``rows_at_once``
        rows at a time (None: all).

        A chunk keeps its images alone and is computed again for the backward pass (Chen et al.,
        "Training Deep Nets with Sublinear Memory Cost", 2016): memory follows the chunk, and the
        gradient is that of all rows, the sum over the chunks.
        """
        encoder = self.get_submodule(modality)
        if self.rows_at_once is None:
            features: Tensor = encoder(images)
            return features
        chunks = torch.split(images, self.rows_at_once)
        if not torch.is_grad_enabled():
            return torch.cat([encoder(chunk) for chunk in chunks])
        kept = partial(checkpoint, encoder, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([kept(chunk) for chunk in chunks])

    def judge(
        self,
        features: Mapping[Modality, FeaturesOf],
        rows: Mapping[Modality, RowsOf],
        clinical: Clinical,
    ) -> MapOutput:
        """What follows the encoders: fusion, and the head on the fused and on each feature.

        In the precision of the weights, also where autocast runs the encoders in less.

        Raises:
            ValueError: no modality has a row.
        """
        with torch.autocast(clinical.device.type, enabled=False):
            exact = {m: feature.to(self.head.weight.dtype) for m, feature in features.items()}
            return self._judge(exact, rows, clinical)

    def _judge(
        self,
        features: Mapping[Modality, FeaturesOf],
        rows: Mapping[Modality, RowsOf],
        clinical: Clinical,
    ) -> MapOutput:
        told = self.clinical(clinical)  # (b, levels)
        single: dict[Modality, Tensor] = {}
        total, count = None, torch.zeros(len(told), 1, device=told.device)
        for modality, feature in features.items():
            of_case = rows[modality]
            single[modality] = self.head(feature) + told[of_case]  # (n, levels)
            if total is None:
                total = feature.new_zeros(len(told), feature.shape[1])
            total = total.index_add(0, of_case, feature)
            count = count.index_add(0, of_case, count.new_ones(len(of_case), 1))
        if total is None:
            raise ValueError("expected a batch with at least one modality, got none")
        fused = self.head(total / count) + told
        return MapOutput(fused, single, features, dict(rows))


def build_model(name: str, seed: int, **layout: Any) -> MapModel:
    """A new model of the preset, its weights drawn from ``seed`` alone; see ``preset``."""
    plan = preset(name, **layout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "weights"))
        return MapModel(plan)


# --- groups -------------------------------------------------------------------------------------


def group_parameters(model: MapModel, group: str) -> list[nn.Parameter]:
    """The parameters of a group, in the fixed order in which they are sent."""
    return list(model.get_submodule(group).parameters())


def group_sizes(model: MapModel) -> dict[str, int]:
    """How many numbers each group holds."""
    return {g: sum(p.numel() for p in group_parameters(model, g)) for g in GROUPS}


@cache
def preset_sizes(name: str, **layout: Any) -> dict[str, int]:
    """How many numbers each group of a preset's model holds; no weight is drawn or stored."""
    with torch.device("meta"):
        return group_sizes(MapModel(preset(name, **layout)))


def get_groups(model: MapModel, groups: Iterable[str]) -> dict[str, np.ndarray]:
    """The named groups as flat float32 vectors: one array a group keeps messages few."""
    return {
        # torch.cat always copies: the vector is never a view of the model.
        group: torch.cat(
            [p.detach().float().cpu().flatten() for p in group_parameters(model, group)]
        ).numpy()
        for group in groups
    }


def set_groups(model: MapModel, vectors: Mapping[str, np.ndarray]) -> None:
    """Write flat vectors into the model's groups; groups that are not named stay as they are.

    Raises:
        UpdateError: an unknown group or a vector of another length; the model is then untouched.
    """
    sizes = group_sizes(model)
    for group, vector in vectors.items():
        if group not in sizes or vector.shape != (sizes[group],):
            expected = sizes.get(group, "no such group")
            raise UpdateError(
                f"group {group!r}: expected {expected} values, got shape {vector.shape}",
                reason="misshapen",
            )
    with torch.no_grad():
        for group, vector in vectors.items():
            position = 0
            source = torch.from_numpy(np.ascontiguousarray(vector, dtype=np.float32))
            for parameter in group_parameters(model, group):
                part = source[position : position + parameter.numel()]
                parameter.copy_(part.view_as(parameter))
                position += parameter.numel()
