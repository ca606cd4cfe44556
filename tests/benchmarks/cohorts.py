"""What the experiments share: synthetic cohorts, drawn and ingested once; training; scores.

A cohort is named by (scenario, cases, seed) and lies under a cache folder; what is there is used
again. It is not noticed when the code that made it has changed: remove the folder then.

The held-out cases of a seed are the validation and test cases of its cohort and all cases of a
second cohort, drawn from seed + ``BESIDE`` by the same centres. Nothing is chosen on any of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import yaml

from her2_client.cache import open_cache
from her2_client.cohort import Cohort, load_cohort
from her2_client.ingest.run import ingest
from her2_client.keys import init_site
from her2_client.scoring import score
from her2_client.training import train_round
from her2_common.cases import MODALITIES, Modality, Split
from her2_common.config import RunConfig, SiteConfig, load, parse
from her2_common.metrics import GRID
from her2_common.model import MapModel, build_model
from her2_deploy.demo import CENTRES, IMAGE_SIZE, VOLUME_SIZE, federation_text, fix_splits
from her2_deploy.synth.build import write_cohort
from her2_deploy.synth.cohort import Scenario

BESIDE: Final = 1000
"""From a seed to that of its second cohort, from which nothing is learnt."""

UNABLE: Final = 0.5
"""The score of a case of which a model can read nothing: the one that says nothing."""

Grid = np.ndarray
"""Scores of n cases in steps of 1/1024: (n,) int64 from 0 to 1024."""

# --- cohorts -------------------------------------------------------------------------------------


def prepare(root: Path, cases: int, scenario: Scenario, seed: int) -> dict[str, SiteConfig]:
    """A cohort with keys and caches at the demo's sizes; returns the four sites' configurations."""
    hospitals = root / "hospitals"
    write_cohort(hospitals, cases=cases, scenario=scenario, size="demo", seed=seed, workers=1)
    for name in CENTRES:
        init_site(
            hospitals / name,
            name=name,
            address="localhost:1",
            lesions="lesions.csv",
            image_size=IMAGE_SIZE,
            volume_size=VOLUME_SIZE,
            threads=1,
        )
        fix_splits(hospitals / name / "keys" / "pseudonym.key", name, seed)
    configs = _configs(root)
    for config in configs.values():
        ingest(config, workers=1)
    return configs


def _configs(root: Path) -> dict[str, SiteConfig]:
    return {name: load(SiteConfig, root / "hospitals" / name / "site.yaml") for name in CENTRES}


def cached(folder: Path, cases: int, scenario: Scenario, seed: int) -> dict[str, SiteConfig]:
    """``prepare`` under ``folder``, once; of the images only what ingest made of them is kept."""
    root = folder / f"{scenario}-{cases}-{seed}"
    whole = root / "whole"  # written last: a cohort that was broken off is made again
    if not whole.exists():
        shutil.rmtree(root, ignore_errors=True)
        prepare(root, cases, scenario, seed)
        for name in CENTRES:
            shutil.rmtree(root / "hospitals" / name / "images")
        whole.touch()
    return _configs(root)


def cohort_of(config: SiteConfig, split: Split | None) -> Cohort:
    """A site's labelled cases of ``split`` (None: all)."""
    return load_cohort(
        open_cache(config.data.cache),
        split=split,
        label="reference",
        image_size=IMAGE_SIZE,
        volume_size=VOLUME_SIZE,
    )


def join(cohorts: Sequence[Cohort]) -> Cohort:
    """The cohorts on one pile: what no federation does."""
    images, rows = {}, {}
    for modality in MODALITIES:
        parts, shifted, offset = [], [], 0
        for cohort in cohorts:
            of_case = cohort.rows[modality].copy()
            of_case[of_case >= 0] += offset
            offset += len(cohort.images[modality])
            shifted.append(of_case)
            parts.append(cohort.images[modality])
        images[modality], rows[modality] = torch.cat(parts), np.concatenate(shifted)
    return Cohort(
        images=images,
        rows=rows,
        clinical=torch.cat([c.clinical for c in cohorts]),
        labels=torch.cat([c.labels for c in cohorts]),
        clinical_known=np.concatenate([c.clinical_known for c in cohorts]),
        low=torch.cat([c.low for c in cohorts]),
    )


def pooled(configs: Iterable[SiteConfig], *splits: Split | None) -> Cohort:
    """The cases of ``splits`` of all the sites on one pile, site after site."""
    return join([cohort_of(config, split) for config in configs for split in splits])


def held_out(folder: Path, cases: int, scenario: Scenario, seed: int) -> Cohort:
    """The held-out cases of a seed (see above)."""
    own = cached(folder, cases, scenario, seed).values()
    beside = cached(folder, cases, scenario, seed + BESIDE).values()
    return join([pooled(own, "val", "test"), pooled(beside, None)])


def take(cohort: Cohort, cases: np.ndarray) -> Cohort:
    """The cases numbered ``cases`` (k,), in that order; their images stay where they are."""
    index = torch.from_numpy(cases)
    return Cohort(
        images=cohort.images,
        rows={m: rows[cases] for m, rows in cohort.rows.items()},
        clinical=cohort.clinical[index],
        labels=cohort.labels[index],
        clinical_known=cohort.clinical_known[cases],
        low=cohort.low[index],
    )


def swapped(cohort: Cohort, modality: Modality, seed: int) -> Cohort:
    """The same cohort, in which every image of ``modality`` is that of another case."""
    rows = cohort.rows[modality].copy()
    order = np.random.default_rng(seed).permutation(np.flatnonzero(rows >= 0))
    rows[order] = rows[np.roll(order, 1)]
    return replace(cohort, rows={**cohort.rows, modality: rows})


# --- training and scores -------------------------------------------------------------------------


def demo_plan(seed: int, **changes: Any) -> RunConfig:
    """The run of the demo's federation.yaml, with ``changes`` to its keys."""
    text = federation_text({}, address="localhost:1", seed=seed)
    document = yaml.safe_load(text)["run"] | changes
    return parse(RunConfig, document, where="plan", folder=Path())


def train(plan: RunConfig, cohort: Cohort, name: str = "pooled") -> MapModel:
    """A model trained on ``cohort`` as one site would, through all rounds of ``plan``."""
    model = build_model(plan.preset, plan.seed, **plan.layout)
    for number in range(1, plan.rounds + 1):
        train_round(model, cohort, plan, site=name, round_number=number)
    return model


def scored(model: MapModel, cohort: Cohort, modalities: Sequence[Modality] = MODALITIES) -> Grid:
    """Fused scores of all cases from ``modalities`` alone, (n,) on the grid 0 to 1024."""
    able = np.zeros(len(cohort), dtype=bool)
    for modality in modalities:
        able |= cohort.rows[modality] >= 0
    scores = np.full(len(cohort), UNABLE)
    if able.any():
        scores[able] = score(model, cohort.restricted(modalities)).fused
    return np.rint(scores * GRID).astype(np.int64)


def subsets(modalities: Sequence[Modality]) -> list[tuple[Modality, ...]]:
    """Every non-empty subset, small ones first."""
    sizes = range(1, len(modalities) + 1)
    return [subset for size in sizes for subset in combinations(modalities, size)]


def judged(model: MapModel, cohort: Cohort, modalities: Sequence[Modality]) -> dict[str, Any]:
    """What is kept of a model: its scores of ``cohort``, in a form that JSON can hold.

    ``labels`` (n,) and ``combinations`` (n,), e.g. "mg+us", describe the cases, ``scores`` (n,) are
    the fused ones. ``complete`` holds, for each subset of ``modalities``, the scores of the cases
    that have all three when only that subset is shown.
    """
    names = np.array([cohort.combination(case) for case in range(len(cohort))])
    complete = take(cohort, np.flatnonzero(names == "+".join(MODALITIES)))
    return {
        "labels": cohort.labels.tolist(),
        "combinations": names.tolist(),
        "scores": scored(model, cohort, modalities).tolist(),
        "complete": {
            "+".join(subset): scored(model, complete, subset).tolist()
            for subset in subsets(modalities)
        },
        "complete_labels": complete.labels.tolist(),
    }
