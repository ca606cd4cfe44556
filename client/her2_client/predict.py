"""predictions.csv: a released model's scores for the cases of this site, for this site alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from her2_client.cache import Cache, open_cache
from her2_client.cohort import Cohort, load_cohort, residence
from her2_client.engine import make_deterministic, select_device
from her2_client.keys import read_pseudonym_key
from her2_client.scoring import score
from her2_client.served import served
from her2_common.cases import (
    MODALITIES,
    PCR_LABELS,
    SPLITS,
    TRAINED_ON,
    Case,
    Split,
    pseudonym,
    read_cases,
)
from her2_common.clinical import PCR_DEFINITIONS, Her2Level
from her2_common.config import SiteConfig
from her2_common.errors import CacheError, ConfigError, DataError
from her2_common.files import replacing_privately
from her2_common.metrics import GRID
from her2_common.model import MapModel, preset
from her2_common.release import Manifest, load_release, read_references
from her2_common.tables import write_csv

_SCORES: Final = tuple(f"{m}_score" for m in MODALITIES)
COLUMNS: Final = (
    "case_id", "patient_id", "split", "score", "call", *_SCORES, "modalities", "unlike",
)  # fmt: skip
LEVEL_COLUMNS: Final = ("low_score", "level")
"""Of a release with three HER2 levels, after the others."""

LOW_THRESHOLD: Final = 0.5
"""A negative case is called HER2-low from this low_score on: the likelier of the two levels."""


@dataclass(frozen=True)
class Predicted:
    """What was written: ``rows`` of the table as text; ``cases[i]`` is row i's in ``cohort``."""

    model: MapModel
    manifest: Manifest
    cohort: Cohort
    cases: tuple[int, ...]
    rows: tuple[dict[str, str], ...]


def predict_table(
    config: SiteConfig,
    release: Path,
    out: Path,
    *,
    split: str = "test",
    force: bool = False,
    notify: Callable[[str], None] = lambda _: None,
    then: Callable[[Predicted], Callable[[], None]] = lambda _: lambda: None,
) -> int:
    """Score the cases in the site's cache and write ``out``; returns the number of cases.

    One row a case: ``case_id`` and ``patient_id`` as in the site's case table (rows of one
    patient_id are one patient), ``split`` as at ingest (train and val cases served to make the
    model, so that only test cases are held out; a test case that this site trained the release's
    run with is train, and ``notify`` says so), ``score`` (probability of what the release's
    label asks on the grid of 1/1024: HER2-positive, or for ``pcr`` and ``pcr_strict`` a pCR),
    ``call`` (1 if at or above the release's threshold), each modality's own score (blank where
    absent), ``unlike``: the modalities whose image is beyond the release's limit, joined by "+"
    (blank if none is, or if the release has no limit: ``notify`` names those modalities). A
    release with three HER2 levels adds ``low_score`` (probability of HER2-low if not positive) and
    ``level``. ``then`` is called with what will be written, and what it returns once it is.

    Raises:
        DataError: the release or the table cannot be used, or there is no case.
        ConfigError: ``out`` exists and ``force`` is not set; ``split`` is no split.
    """
    if split not in (*SPLITS, "all"):
        raise ConfigError(f"--split: expected one of {', '.join(SPLITS)}, all, got {split!r}")
    if out.is_dir() or not out.parent.is_dir():
        got = "a folder" if out.is_dir() else f"none: {out.parent} is no folder"
        raise ConfigError(f"--out: {out}: expected a file to write, got {got}")
    if out.exists() and not force:
        raise ConfigError(f"{out}: exists already", hint="--force replaces it")
    make_deterministic(config.threads)
    model, manifest = load_release(release)
    model.rows_at_once = config.rows_at_once
    cache = open_cache(config.data.cache)
    device = select_device(config.device)
    layout = preset(manifest.preset, **manifest.layout)
    resident, _ = residence(cache, layout, config.resident, device)
    trained = [m for m in MODALITIES if m in manifest.groups]
    cohort = load_cohort(
        cache,
        split=None,
        label=None,
        image_size=manifest.image_size,
        volume_size=manifest.volume_size,
        modalities=trained,
        device=device,
        resident=resident,
    )
    if "clinical" not in manifest.groups:
        cohort = cohort.without_clinical()
    # The cohort's cases, in its order, as rows of the cache.
    able = np.any([cache.rows[m] >= 0 for m in trained], axis=0)
    in_cache = np.flatnonzero(able)
    if manifest.label in PCR_LABELS:
        definition = PCR_DEFINITIONS[PCR_LABELS[manifest.label]]
        notify(f"score and call are of the response: {definition}")
    references = read_references(release, manifest)
    if unjudged := [m for m in trained if m not in references]:
        notify(f"the release has no limit for {', '.join(unjudged)}: unlike images are not flagged")
    scores = score(model.to(device), cohort, references)
    table_of = _table_cases(config, cache)
    split_of = _splits(config, cache, manifest.run, notify)
    levels = () if scores.low is None else LEVEL_COLUMNS
    columns = (*COLUMNS, *levels, TRAINED_ON)
    cases, rows = list[int](), list[dict[str, str]]()
    for case in range(len(cohort)):
        if split not in ("all", split_of[in_cache[case]]):
            continue
        value = float(scores.fused[case])
        known = table_of[in_cache[case]]
        row = [known.case_id, known.patient_id, split_of[in_cache[case]]]
        row += [_cell(value), str(int(value >= manifest.threshold))]
        row += [_cell(float(scores.single[m][case])) if m in trained else "" for m in MODALITIES]
        beyond = [m for m, values in scores.unlike.items() if values[case] > manifest.limits[m]]
        row += [cohort.combination(case), "+".join(beyond)]
        if scores.low is not None:
            low = float(scores.low[case])
            row += [_cell(low), _level(value, low, manifest.threshold)]
        row.append("+".join(manifest.trained_on))
        rows.append(dict(zip(columns, row, strict=True)))
        cases.append(case)
    if not cases:
        raise DataError(
            f"no case in split {split!r} that this model can score",
            hint="--split all also scores train and val cases, which the model has seen",
        )
    finish = then(Predicted(model, manifest, cohort, tuple(cases), tuple(rows)))
    with replacing_privately(out) as file:
        file.write(write_csv(columns, rows).encode())
    finish()
    return len(cases)


def _table_cases(config: SiteConfig, cache: Cache) -> list[Case]:
    """The table's case for every case of the cache, found by its pseudonym."""
    key = read_pseudonym_key(config.data.pseudonym_key_file)
    table = read_cases(config.data.cases)
    case_of = {pseudonym(key, case.case_id): case for case in table.cases}
    unknown = [p for p in cache.pseudonyms if p not in case_of]
    if unknown:
        raise CacheError(
            f"{len(unknown)} cases of the cache are not in {config.data.cases.name}",
            hint="the table or the pseudonym key has changed: run her2-client ingest again",
        )
    return [case_of[p] for p in cache.pseudonyms]


def _splits(
    config: SiteConfig, cache: Cache, run: str, notify: Callable[[str], None]
) -> list[Split]:
    """The split of every case of the cache; of a test case that served to make ``run``, train."""
    splits: list[Split] = [SPLITS[index] for index in cache.split]
    used = served(config.state, run)
    moved = [i for i, p in enumerate(cache.pseudonyms) if splits[i] == "test" and p in used]
    for index in moved:
        splits[index] = "train"
    if moved:
        notify(
            f"{len(moved)} cases of the test split trained or validated in run {run}, before the "
            "splits were drawn anew: they are not held out, and their split is written as train"
        )
    return splits


def _level(score: float, low_score: float, threshold: float) -> Her2Level:
    if score >= threshold:
        return "positive"
    return "low" if low_score >= LOW_THRESHOLD else "zero"


def _cell(value: float) -> str:
    """A score of the grid with all its digits (ten at most); blank for NaN."""
    return "" if math.isnan(value) else repr(round(value * GRID) / GRID)
