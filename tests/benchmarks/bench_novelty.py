"""How often images unlike those of training are flagged, by modality.

    python tests/benchmarks/bench_novelty.py [--cases 400] [--seed 1] [--cache DIR]

1. A compact model is trained as in the demo on the training cases of the default scenario, at the
   demo's image size; the references are made from the same cases.
2. The held-out cases (see cohorts.py) are dealt out in two halves at random: the limit is set on
   one, the other is shown to the model as it is and in disguise.
3. Printed is the share of each that is flagged, with Wilson's interval, as a Markdown table.

What the disguises are, with the standardised image x:

    as it is         an image like those of training: about 1 % should be flagged
    noise            independent normal values with the mean and spread of x
    another kind     an image of another modality, repeated over channels (or slices) to fit
    inverted         -x: dark is bright, as in a MONOCHROME1 picture that nobody inverted
    mirrored         upside down (or head to foot): anatomy that a model may not notice
    half brightness  x / 2: a milder contrast
    blank            the mean of x everywhere
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import torch
from cohorts import cached, demo_plan, held_out, pooled, train
from evidence import table
from torch import Tensor

from her2_client.cohort import Cohort
from her2_client.scoring import profile
from her2_common.cases import MODALITIES, Modality
from her2_common.metrics import GRID, quantise, wilson
from her2_common.model import MapModel
from her2_common.novelty import Reference, counted, limit_of, reference_of, unlikeness

BATCH: Final = 64
FOREIGN: Final[dict[Modality, Modality]] = {"mg": "us", "us": "mg", "mri": "us"}
"""For each modality the one whose image is shown in its place."""


def images_of(cohort: Cohort, modality: Modality) -> Tensor:
    """The images of all cases that have the modality, float32 (n, channels, *size)."""
    rows = cohort.rows[modality]
    return cohort.images[modality][torch.from_numpy(rows[rows >= 0])].float()


def noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Normal values with the mean and spread of each image."""
    flat = images.flatten(1)
    shape = (-1,) + (1,) * (images.ndim - 1)
    drawn = torch.randn(images.shape, generator=generator)
    return drawn * flat.std(1).reshape(shape) + flat.mean(1).reshape(shape)


def foreign(images: Tensor, others: Tensor) -> Tensor:
    """Images of another modality in the shape of ``images``: one channel, repeated."""
    one = others[:, :1]  # (k, 1, S, S)
    one = torch.nn.functional.interpolate(one, size=images.shape[-2:], mode="area")
    if images.ndim == 5:
        one = one[:, :, None].expand(-1, -1, images.shape[2], -1, -1)  # (k, 1, V, V, V)
    return one.expand(-1, images.shape[1], *one.shape[2:])


def disguises(images: Tensor, others: Tensor, seed: int) -> dict[str, Callable[[], Tensor]]:
    """Name -> the images in that disguise."""
    generator = torch.Generator().manual_seed(seed)
    shape = (-1,) + (1,) * (images.ndim - 1)
    return {
        "as it is": lambda: images,
        "noise": lambda: noise(images, generator),
        "another kind": lambda: foreign(images, others),
        "inverted": lambda: -images,
        "mirrored": lambda: images.flip(2 if images.ndim == 5 else -2),
        "half brightness": lambda: images / 2,
        "blank": lambda: images.flatten(1).mean(1).reshape(shape).expand_as(images),
    }


@torch.inference_mode()
def measured(
    model: MapModel, modality: Modality, images: Tensor, reference: Reference
) -> np.ndarray:
    """Unlikeness of each image (n,), on the grid."""
    encoder = model.get_submodule(modality)
    features = torch.cat([encoder(part.contiguous()) for part in images.split(BATCH)])
    values: np.ndarray = quantise(unlikeness(features.numpy(), reference)) / GRID
    return values


def main() -> None:
    """Draw or find the cohorts, train, print the table."""
    parser = argparse.ArgumentParser(description="how often unlike images are flagged")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "her2-map")
    parser.add_argument("--cases", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    configs = cached(options.cache, options.cases, "default", options.seed)
    training = pooled(configs.values(), "train")
    others = held_out(options.cache, options.cases, "default", options.seed)
    model = train(demo_plan(options.seed), training).eval()
    totals = profile(model, training)
    rng = np.random.default_rng(options.seed)

    rows: dict[str, list[str]] = {}
    header = ["images"]
    for modality in MODALITIES:
        reference = reference_of(totals[modality])
        if reference is None:
            raise SystemExit(f"{modality}: the features do not vary")
        images = images_of(others, modality)
        images = images[torch.from_numpy(rng.permutation(len(images)))]
        half = len(images) // 2
        limit = limit_of(counted(measured(model, modality, images[:half], reference)))
        if limit is None:
            raise SystemExit(f"{modality}: {half} cases are too few for a limit")
        header.append(f"{modality}, limit {limit:.3f} ({half} cases)")
        shown = disguises(images[half:], images_of(others, FOREIGN[modality]), options.seed)
        for name, make in shown.items():
            values = measured(model, modality, make(), reference)
            flagged = int((values > limit).sum())
            share = wilson(flagged, len(values))
            if share is None:
                raise SystemExit(f"{modality}: no case is left to be shown")
            low, high = 100 * share.low, 100 * share.high
            cell = f"{100 * share.estimate:.1f} % ({low:.1f} to {high:.1f})"
            rows.setdefault(name, []).append(f"{cell}, median {np.median(values):.2f}")
    print(table(header, [[name, *cells] for name, cells in rows.items()]))


if __name__ == "__main__":
    main()
