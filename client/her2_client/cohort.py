"""The labelled cases of one split, and batches of them on the training device.

A cohort is the labelled rows of ingest's cache: copied once to where the training runs (RAM or GPU
memory, in float16), so that an epoch reads nothing, or left on disk (see residency.py). Who has
what is known on the CPU; the row numbers of an epoch go to the device once, before its first
batch, so that making a batch never waits for a GPU.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat

import numpy as np
import torch
from torch import Tensor

from her2_client.cache import Cache, image_shape
from her2_client.residency import Resident, Streamed, ahead, stays_resident
from her2_common.cases import MODALITIES, SPLITS, Label, Modality, Split
from her2_common.clinical import HER2_LEVELS
from her2_common.config import FIRST_POST_CONTRAST, RunConfig
from her2_common.model import CLINICAL_CENTRE, CLINICAL_SCALE, Batch, Preset, preset
from her2_common.types import Clinical, ImagesOf, Labels, RowsOf


@dataclass(frozen=True)
class Part:
    """One batch of an epoch on the device: the cases ``cases`` (b,) of the cohort.

    Its images are the rows ``seen[m]`` (on the host), ``taken[m]`` (the same on the device) of
    ``Cohort.images[m]``.
    """

    batch: Batch
    cases: Labels
    taken: Mapping[Modality, RowsOf]
    seen: Mapping[Modality, np.ndarray]


@dataclass(frozen=True)
class Cohort:
    """n labelled cases. ``rows[m]`` (n,) is the row in ``images[m]`` (float16), -1 if absent.

    ``low`` is 1 for HER2-low, 0 for HER2-zero, -1 for a positive case or an unknown level.
    """

    images: Mapping[Modality, ImagesOf | Streamed]
    rows: Mapping[Modality, np.ndarray]
    clinical: Clinical
    labels: Labels
    clinical_known: np.ndarray  # (n,) bool: at least one of the five inputs is known
    low: Labels
    pseudonyms: tuple[str, ...] = ()  # of the cases, for messages inside the site

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
            low=self.low[index],
            pseudonyms=tuple(self.pseudonyms[i] for i in cases) if self.pseudonyms else (),
        )

    def without_clinical(self) -> Cohort:
        """The same cohort with every clinical input unknown."""
        return replace(
            self,
            clinical=torch.zeros_like(self.clinical),
            clinical_known=np.zeros_like(self.clinical_known),
        )

    def without_levels(self) -> Cohort:
        """The same cohort with every level of the negatives unknown."""
        return replace(self, low=torch.full_like(self.low, -1))

    def thinned(self, probability: float, generator: torch.Generator) -> Cohort:
        """Modality dropout: each image of each case is taken away with ``probability``, but a
        case keeps at least one.

        Every case draws for every modality, so that the draws of one do not depend on others.
        """
        if not probability:
            return self
        drawn = torch.rand(len(self), len(MODALITIES), generator=generator).numpy()
        present = np.stack([self.rows[m] >= 0 for m in self.rows], axis=1)  # (n, modalities)
        drawn = np.where(present, drawn[:, [MODALITIES.index(m) for m in self.rows]], -1.0)
        kept = present & ((drawn >= probability) | (drawn == drawn.max(axis=1, keepdims=True)))
        rows = {m: np.where(kept[:, i], self.rows[m], -1) for i, m in enumerate(self.rows)}
        return replace(self, rows=rows)

    def feed(self, groups: Sequence[np.ndarray]) -> Iterator[Part]:
        """A batch for each group of cases, in this order. Row numbers go to the device once, all
        groups together."""
        device = self.clinical.device
        present = {m: [np.flatnonzero(of[g] >= 0) for g in groups] for m, of in self.rows.items()}
        seen = {
            m: [self.rows[m][g[p]] for g, p in zip(groups, places, strict=True)]
            for m, places in present.items()
        }
        cases = _moved(groups, device)
        rows = {m: _moved(places, device) for m, places in present.items()}
        taken = {m: _moved(places, device) for m, places in seen.items()}
        has = [[m for m in self.rows if present[m][i].size] for i in range(len(groups))]

        streamed = {m: images for m, images in self.images.items() if isinstance(images, Streamed)}

        def read(i: int) -> dict[Modality, Tensor]:
            found = {m: streamed[m].take(seen[m][i]) for m in has[i] if m in streamed}
            return {m: t.pin_memory() for m, t in found.items()} if device.type == "cuda" else found

        work = (partial(read, i) for i in range(len(groups)))
        reading: Iterator[dict[Modality, Tensor]] = ahead(work) if streamed else repeat({})
        for i, arrived in zip(range(len(groups)), reading, strict=False):
            images = {}
            for modality in has[i]:
                stored = self.images[modality]
                if isinstance(stored, Streamed):
                    found = arrived[modality].to(device, non_blocking=True)
                else:
                    found = stored.index_select(0, taken[modality][i])
                images[modality] = found.float()
            yield Part(
                batch=Batch(images, {m: rows[m][i] for m in has[i]}, self.clinical[cases[i]]),
                cases=cases[i],
                taken={m: taken[m][i] for m in has[i]},
                seen={m: seen[m][i] for m in has[i]},
            )

    def batch(self, cases: np.ndarray) -> tuple[Batch, Mapping[Modality, np.ndarray]]:
        """The batch of the given cases, and for each modality the rows it took from ``images``."""
        (part,) = self.feed([cases])
        return part.batch, part.seen


def _moved(groups: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, ...]:
    """Row numbers, moved together, as a view a group."""
    flat = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *groups])).to(device)
    return torch.split(flat, [len(group) for group in groups])


def scale_clinical(raw: np.ndarray) -> np.ndarray:
    """Clinical inputs (n, 5) in raw units, NaN unknown, to the model's scale, 0 unknown."""
    scaled = (raw - np.array(CLINICAL_CENTRE)) / np.array(CLINICAL_SCALE)
    known: np.ndarray = np.where(np.isnan(scaled), 0.0, scaled).astype(np.float32)
    return known


def residence(
    cache: Cache, layout: Preset, choice: Resident, device: torch.device
) -> tuple[bool, str]:
    """Whether images of ``layout`` become resident, and a line that says so."""
    shapes = {m: image_shape(m, layout.image_size, layout.volume_size) for m in MODALITIES}
    size = sum(2 * len(cache.arrays[m]) * math.prod(shapes[m]) for m in MODALITIES)
    return stays_resident(choice, size, device)


def load_cohort(
    cache: Cache,
    *,
    split: Split | None,
    label: Label | None,
    image_size: int,
    volume_size: int,
    modalities: Sequence[Modality] = MODALITIES,
    device: torch.device | None = None,
    resident: bool = True,
) -> Cohort:
    """The cases of ``split`` (None: all) whose ``label`` is known and that have a modality.

    With ``label`` None every case is taken and the labels are -1: for prediction. Images that are
    not ``resident`` are read from the cache for each batch.

    Raises:
        CacheError: the cache holds smaller images than asked for.
    """
    device = device or torch.device("cpu")
    chosen = np.ones(len(cache), dtype=bool)
    if split is not None:
        chosen &= cache.split == SPLITS.index(split)
    unknown = np.full(len(cache), -1)
    labels = unknown if label is None else cache.labels[label].astype(np.int64)
    levels = unknown if label is None else cache.levels[label].astype(np.int64)
    low = np.where(levels == HER2_LEVELS.index("positive"), -1, levels)  # 0 zero, 1 low
    if label is not None:
        chosen &= labels >= 0
    kept = [m for m in MODALITIES if m in modalities]
    has_any = np.zeros(len(cache), dtype=bool)
    for modality in kept:
        has_any |= cache.rows[modality] >= 0
    cases = np.flatnonzero(chosen & has_any)

    images: dict[Modality, Tensor | Streamed] = {}
    rows: dict[Modality, np.ndarray] = {}
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
        size = volume_size if modality == "mri" else image_size
        stored = Streamed(array, source[present], size)
        everything = np.arange(len(stored))
        images[modality] = stored.take(everything).to(device) if resident else stored
    raw = cache.clinical[cases]
    return Cohort(
        images=images,
        rows=rows,
        clinical=torch.from_numpy(scale_clinical(raw)).to(device),
        labels=torch.from_numpy(labels[cases].astype(np.int64)).to(device),
        clinical_known=np.any(~np.isnan(raw), axis=1),
        low=torch.from_numpy(low[cases]).to(device),
        pseudonyms=tuple(cache.pseudonyms[i] for i in cases),
    )


def usable_modalities(cohort: Cohort, min_cases: int) -> tuple[Modality, ...]:
    """The modalities that at least ``min_cases`` cases of the cohort have.

    A site trains no encoder on fewer: such an update would say too much about few patients.
    """
    counts = cohort.counts()
    return tuple(m for m in MODALITIES if counts.get(m, 0) >= max(min_cases, 1))


def load_cohorts(
    cache: Cache,
    plan: RunConfig,
    *,
    min_cases: int,
    device: torch.device,
    splits: Sequence[Split] = SPLITS,
    resident: Sequence[Split] = SPLITS,
) -> dict[Split, Cohort]:
    """The cohorts of ``splits``, "train" among them, with what a site of ``min_cases`` may use.

    Left out: modalities, clinical inputs and HER2 levels that fewer training cases have. Untrained
    weights must not see the few that are known.
    """
    layout = preset(plan.preset, **plan.layout)
    cohorts = {
        split: load_cohort(
            cache,
            split=split,
            label=plan.label,
            image_size=layout.image_size,
            volume_size=layout.volume_size,
            device=device,
            resident=split in resident,
        )
        for split in splits
    }
    usable = usable_modalities(cohorts["train"], min_cases)
    cohorts = {split: cohort.restricted(usable) for split, cohort in cohorts.items()}
    if cohorts["train"].counts()["clinical"] < min_cases:
        cohorts = {split: cohort.without_clinical() for split, cohort in cohorts.items()}
    if int((cohorts["train"].low >= 0).sum()) < min_cases:
        cohorts = {split: cohort.without_levels() for split, cohort in cohorts.items()}
    return cohorts
