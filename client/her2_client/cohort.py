"""The labelled cases of one split, resident on the training device, and batches of them.

Ingest's cache is memory-mapped; a cohort is its labelled rows copied once to where the training
runs (RAM or GPU memory, in float16), so that an epoch reads nothing. Row bookkeeping stays on the
CPU: building a batch never waits for the GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from her2_client.cache import Cache
from her2_common.cases import MODALITIES, SPLITS, Label, Modality, Split
from her2_common.config import FIRST_POST_CONTRAST
from her2_common.errors import CacheError
from her2_common.model import CLINICAL_CENTRE, CLINICAL_SCALE, Batch
from her2_common.types import Clinical, Images, ImagesOf, Labels


@dataclass(frozen=True)
class Cohort:
    """n labelled cases. ``rows[m]`` (n,) is the row in ``images[m]`` (float16), -1 if absent."""

    images: Mapping[Modality, ImagesOf]
    rows: Mapping[Modality, np.ndarray]
    clinical: Clinical
    labels: Labels
    clinical_known: np.ndarray  # (n,) bool: at least one of the five inputs is known

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def counts(self) -> dict[str, int]:
        """Cases that use each parameter group; the weights of this site's update."""
        by_modality = {m: int((rows >= 0).sum()) for m, rows in self.rows.items()}
        return by_modality | {"clinical": int(self.clinical_known.sum()), "head": len(self)}

    def combinations(self) -> Counter[str]:
        """Cases by combination of modalities, e.g. ``{"mg+us": 40, "mri": 12}``."""
        return Counter(self.combination(i) for i in range(len(self)))

    def combination(self, case: int) -> str:
        """The modalities of one case, joined by "+" in the order of ``MODALITIES``."""
        return "+".join(m for m in MODALITIES if m in self.rows and self.rows[m][case] >= 0)

    def restricted(self, modalities: Sequence[Modality]) -> Cohort:
        """The same cohort with only ``modalities``; cases that then have none are left out."""
        has_any = np.zeros(len(self), dtype=bool)
        for modality in modalities:
            has_any |= self.rows[modality] >= 0
        cases = np.flatnonzero(has_any)
        index = torch.from_numpy(cases).to(self.clinical.device)
        return Cohort(
            images={m: self.images[m] for m in modalities},
            rows={m: self.rows[m][cases] for m in modalities},
            clinical=self.clinical[index],
            labels=self.labels[index],
            clinical_known=self.clinical_known[cases],
        )

    def without_clinical(self) -> Cohort:
        """The same cohort with every clinical input unknown."""
        return replace(
            self,
            clinical=torch.zeros_like(self.clinical),
            clinical_known=np.zeros_like(self.clinical_known),
        )

    def thinned(self, probability: float, generator: torch.Generator) -> Cohort:
        """Modality dropout: each image of each case is taken away with ``probability``, but a
        case keeps at least one.

        Every case draws for every modality, so that the draws of one do not depend on others.
        """
        if not probability:
            return self
        drawn = torch.rand(len(self), len(MODALITIES), generator=generator).numpy()
        present = np.stack([self.rows[m] >= 0 for m in self.rows], axis=1)  # (n, modalities)
        drawn = np.where(present, drawn[:, : len(self.rows)], -1.0)
        kept = present & ((drawn >= probability) | (drawn == drawn.max(axis=1, keepdims=True)))
        rows = {m: np.where(kept[:, i], self.rows[m], -1) for i, m in enumerate(self.rows)}
        return replace(self, rows=rows)

    def batch(self, cases: np.ndarray) -> tuple[Batch, dict[Modality, np.ndarray]]:
        """The batch of the given cases, and for each modality the rows it took from ``images``."""
        device = self.clinical.device
        images, rows, taken = {}, {}, {}
        for modality, of_case in self.rows.items():
            source = of_case[cases]
            present = np.flatnonzero(source >= 0)
            if present.size == 0:
                continue
            taken[modality] = source[present]
            index = torch.from_numpy(taken[modality]).to(device, non_blocking=True)
            images[modality] = self.images[modality][index].float()
            rows[modality] = torch.from_numpy(present).to(device, non_blocking=True)
        index = torch.from_numpy(cases).to(device, non_blocking=True)
        return Batch(images, rows, self.clinical[index]), taken


def scale_clinical(raw: np.ndarray) -> np.ndarray:
    """Clinical inputs (n, 5) in raw units, NaN unknown, to the model's scale, 0 unknown."""
    scaled = (raw - np.array(CLINICAL_CENTRE)) / np.array(CLINICAL_SCALE)
    known: np.ndarray = np.where(np.isnan(scaled), 0.0, scaled).astype(np.float32)
    return known


def fit_size(images: Images, size: int) -> Float[Tensor, "n channels ..."]:
    """Images (n, channels, *size) averaged down to ``size`` along every side.

    Raises:
        CacheError: the cache holds smaller images than the run asks for.
    """
    have = images.shape[-1]
    if have == size:
        return images
    if have < size:
        raise CacheError(
            f"expected images of at least {size} pixels a side for this run, got {have}",
            hint="raise data.image_size or data.volume_size in site.yaml and ingest again",
        )
    sides = images.ndim - 2
    pool = F.adaptive_avg_pool2d if sides == 2 else F.adaptive_avg_pool3d
    parts = [pool(part.float(), size).half() for part in torch.split(images, 64)]
    return torch.cat(parts)


def load_cohort(
    cache: Cache,
    *,
    split: Split | None,
    label: Label | None,
    image_size: int,
    volume_size: int,
    modalities: Sequence[Modality] = MODALITIES,
    device: torch.device | None = None,
) -> Cohort:
    """The cases of ``split`` (None: all) whose ``label`` is known and that have a modality.

    With ``label`` None every case is taken and the labels are -1: for prediction.
    """
    device = device or torch.device("cpu")
    chosen = np.ones(len(cache), dtype=bool)
    if split is not None:
        chosen &= cache.split == SPLITS.index(split)
    labels = np.full(len(cache), -1) if label is None else cache.labels[label].astype(np.int64)
    if label is not None:
        chosen &= labels >= 0
    kept = [m for m in MODALITIES if m in modalities]
    has_any = np.zeros(len(cache), dtype=bool)
    for modality in kept:
        has_any |= cache.rows[modality] >= 0
    cases = np.flatnonzero(chosen & has_any)

    images, rows = {}, {}
    for modality in kept:
        source = cache.rows[modality][cases]
        present = source >= 0
        of_case = np.full(cases.size, -1, dtype=np.int64)
        of_case[present] = np.arange(present.sum())
        rows[modality] = of_case
        array = cache.arrays[modality]
        if modality == "mri" and len(cache.mri_phases) > 1:
            # The encoders read one phase; further ones wait in the cache for those that read more.
            channel = cache.mri_phases.index(FIRST_POST_CONTRAST)
            array = array[:, channel : channel + 1]
        stored = torch.from_numpy(np.ascontiguousarray(array[source[present]]))
        size = volume_size if modality == "mri" else image_size
        images[modality] = fit_size(stored, size).to(device)
    raw = cache.clinical[cases]
    return Cohort(
        images=images,
        rows=rows,
        clinical=torch.from_numpy(scale_clinical(raw)).to(device),
        labels=torch.from_numpy(labels[cases].astype(np.int64)).to(device),
        clinical_known=np.any(~np.isnan(raw), axis=1),
    )


def usable_modalities(cohort: Cohort, min_cases: int) -> tuple[Modality, ...]:
    """The modalities that at least ``min_cases`` cases of the cohort have.

    A site trains no encoder on fewer: such an update would say too much about few patients.
    """
    counts = cohort.counts()
    return tuple(m for m in MODALITIES if counts.get(m, 0) >= max(min_cases, 1))
