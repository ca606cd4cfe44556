"""Small cohorts in memory and small sites on disk, with a signal that a few steps learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.caches import add

from her2_client.cache import image_shape
from her2_client.cache_writer import CacheWriter
from her2_client.cohort import Cohort
from her2_client.keys import init_site
from her2_common.cases import MODALITIES, NO_LABEL, LabelSource, Modality, NoLabel, Split
from her2_common.clinical import Her2Level
from her2_common.config import SiteConfig, load

IMAGE_SIZE, VOLUME_SIZE = 32, 16

Has = list[tuple[Modality, ...]]
MakeCohort = Callable[..., Cohort]


@pytest.fixture(scope="session")
def make_cohort() -> MakeCohort:
    """``make_cohort(has, signal=...)``: case i has the modalities ``has[i]``, odd cases are
    positive and brighter on the left by ``signal`` standard deviations."""

    def make(has: Has, *, signal: float = 0.0, seed: int = 0) -> Cohort:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(len(has)) % 2
        images, rows = {}, {}
        for modality in MODALITIES:
            present = [i for i, names in enumerate(has) if modality in names]
            shape = image_shape(modality, IMAGE_SIZE, VOLUME_SIZE)
            stack = torch.randn(len(present), *shape, generator=generator)
            for row, case in enumerate(present):
                stack[row, ..., : shape[-1] // 2] += signal * float(labels[case])
            images[modality] = stack.half()
            of_case = np.full(len(has), -1, dtype=np.int64)
            of_case[present] = np.arange(len(present))
            rows[modality] = of_case
        clinical = torch.randn(len(has), 5, generator=generator)
        unknown = torch.full_like(labels, -1)
        return Cohort(images, rows, clinical, labels, np.ones(len(has), dtype=bool), unknown)

    return make


MakeSite = Callable[..., SiteConfig]


@pytest.fixture
def make_site(tmp_path: Path) -> MakeSite:
    """``make_site(has, splits)``: site.yaml, keys, cases.csv and a cache of these cases; changes
    of the policy are keyword arguments. Odd cases are positive, ``level_of`` tells the others."""

    def make(
        has: Has,
        split_of: Callable[[int], Split] = lambda _: "train",
        level_of: Callable[[int], Her2Level | None] = lambda _: None,
        clinical: bool = True,
        source_of: Callable[[int], LabelSource | NoLabel] = lambda _: "biopsy",
        in_table: int | None = None,
        **policy: Any,
    ) -> SiteConfig:
        from her2_client.keys import read_pseudonym_key
        from her2_common.cases import pseudonym

        folder = tmp_path / "site"
        init_site(folder, name="centre-t", address="localhost:1", threads=1)
        config = load(SiteConfig, folder / "site.yaml")
        policy = config.policy.model_dump() | policy
        config = config.model_copy(update={"policy": type(config.policy)(**policy)})
        key = read_pseudonym_key(config.data.pseudonym_key_file)
        rng = np.random.default_rng(1)
        with CacheWriter(
            config.data.cache, site="centre-t", image_size=IMAGE_SIZE, volume_size=VOLUME_SIZE
        ) as writer:
            writer.begin()
            for case, names in enumerate(has):
                label, source = case % 2, source_of(case)
                known = None if source in NO_LABEL else label
                add(
                    writer,
                    pseudonym=pseudonym(key, f"case-{case}"),
                    split=split_of(case),
                    clinical=(50.0 + case, None, 2.0, 1.0, 0.0) if clinical else (None,) * 5,
                    labels={"reference": known, "biopsy": label, "surgical": None, "pcr": None},
                    sources={"reference": source},
                    levels={"reference": "positive" if label else level_of(case)},
                    images={
                        m: (
                            rng.normal(size=image_shape(m, IMAGE_SIZE, VOLUME_SIZE)) + label
                        ).astype(np.float16)
                        for m in names
                    },
                )
            writer.publish(in_table)
        lines = ["case_id", *(f"case-{case}" for case in range(len(has)))]
        (folder / "cases.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return config

    return make
