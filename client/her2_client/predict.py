"""predictions.csv: a released model's scores for the cases of this site, for this site alone."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Final

import numpy as np

from her2_client.cache import Cache, open_cache
from her2_client.cohort import load_cohort
from her2_client.keys import read_pseudonym_key
from her2_client.scoring import score
from her2_client.site import make_deterministic, select_device
from her2_common.cases import MODALITIES, SPLITS, pseudonym, read_cases
from her2_common.config import SiteConfig
from her2_common.errors import CacheError, ConfigError, DataError
from her2_common.metrics import GRID
from her2_common.release import load_release

COLUMNS: Final = ("case_id", "score", "call", *(f"{m}_score" for m in MODALITIES), "modalities")


def predict_table(
    config: SiteConfig, release: Path, out: Path, *, split: str = "all", force: bool = False
) -> int:
    """Score the cases in the site's cache and write ``out``; returns the number of cases.

    One row a case: ``score`` (probability of HER2-positive on the grid of 1/1024), ``call`` (1 if
    at or above the release's threshold), each modality's own score (blank where absent).

    Raises:
        DataError: the release or the table cannot be used, or there is no case.
        ConfigError: ``out`` exists and ``force`` is not set; ``split`` is no split.
    """
    if split not in (*SPLITS, "all"):
        raise ConfigError(f"--split: expected one of {', '.join(SPLITS)}, all, got {split!r}")
    if out.exists() and not force:
        raise ConfigError(f"{out}: exists already", hint="--force replaces it")
    make_deterministic(config.threads)
    model, manifest = load_release(release)
    cache = open_cache(config.data.cache)
    device = select_device(config.device)
    trained = [m for m in MODALITIES if m in manifest.groups]
    cohort = load_cohort(
        cache,
        split=None,
        label=None,
        image_size=manifest.image_size,
        volume_size=manifest.volume_size,
        modalities=trained,
        device=device,
    )
    if "clinical" not in manifest.groups:
        cohort = cohort.without_clinical()
    # The cohort's cases, in its order, as rows of the cache.
    able = np.any([cache.rows[m] >= 0 for m in trained], axis=0)
    in_cache = np.flatnonzero(able)
    scores = score(model.to(device), cohort)
    names = _case_names(config, cache)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    written = 0
    for case in range(len(cohort)):
        if split != "all" and SPLITS[cache.split[in_cache[case]]] != split:
            continue
        value = float(scores.fused[case])
        row = [names[in_cache[case]], _cell(value), int(value >= manifest.threshold)]
        row += [_cell(float(scores.single[m][case])) if m in trained else "" for m in MODALITIES]
        writer.writerow([*row, cohort.combination(case)])
        written += 1
    if not written:
        raise DataError(f"no case in split {split!r} that this model can score")
    temporary = out.with_name(f".{out.name}.tmp")
    temporary.write_text(text.getvalue(), encoding="utf-8")
    temporary.replace(out)
    return written


def _case_names(config: SiteConfig, cache: Cache) -> list[str]:
    """The table's case_id for every case of the cache, found by its pseudonym."""
    key = read_pseudonym_key(config.data.pseudonym_key_file)
    table = read_cases(config.data.cases)
    name_of = {pseudonym(key, case.case_id): case.case_id for case in table.cases}
    unknown = [p for p in cache.pseudonyms if p not in name_of]
    if unknown:
        raise CacheError(
            f"{len(unknown)} cases of the cache are not in {config.data.cases.name}",
            hint="the table or the pseudonym key has changed: run her2-client ingest again",
        )
    return [name_of[p] for p in cache.pseudonyms]


def _cell(value: float) -> str:
    """A score of the grid with all its digits (ten at most); blank for NaN."""
    return "" if math.isnan(value) else repr(round(value * GRID) / GRID)
