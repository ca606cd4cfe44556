"""Scores of a cohort: fused, and of each modality alone, on the public grid, rounded down.

Beside them, for the flag of unlike images (her2_common.novelty): the moments of the features of
training cases, and how unlike them the features of others are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from her2_client.cohort import Cohort
from her2_client.engine import autocast
from her2_common.cases import Modality
from her2_common.errors import DataError
from her2_common.metrics import GRID, ScoreHistogram, quantise
from her2_common.model import MapModel, MapOutput
from her2_common.novelty import Reference, moments, unlikeness

SCORING_BATCH = 64


@dataclass(frozen=True)
class Scores:
    """Probabilities of the positive class on the grid of 1/1024, for n cases.

    ``fused`` is (n,); ``single[m]`` is (n,) with NaN where a case lacks modality m; ``low`` (n,) is
    the probability of HER2-low if the case is not positive, None from a model of two levels.
    ``unlike[m]`` (n,) is the unlikeness of its image of modality m, on the grid, NaN without one;
    only for the modalities that have a reference.
    """

    fused: np.ndarray
    single: dict[Modality, np.ndarray]
    low: np.ndarray | None = None
    unlike: dict[Modality, np.ndarray] = field(default_factory=dict)


def score(
    model: MapModel, cohort: Cohort, references: Mapping[Modality, Reference] | None = None
) -> Scores:
    """Score every case of the cohort from the modalities it has."""
    references = references or {}
    fused = np.full(len(cohort), np.nan)
    single = {m: np.full(len(cohort), np.nan) for m in cohort.rows}
    low = np.full(len(cohort), np.nan) if model.levels == 3 else None
    unlike = {m: np.full(len(cohort), np.nan) for m in cohort.rows if m in references}
    for cases, taken, output in _outputs(model, cohort):
        fused[cases] = _probability(output.fused)
        if low is not None:
            low[cases] = _on_grid(torch.sigmoid(output.fused[:, 2]))
        for modality in taken:
            present = cases[cohort.rows[modality][cases] >= 0]
            single[modality][present] = _probability(output.single[modality])
            if modality in references:
                features = output.features[modality].cpu().numpy()  # (n, d)
                distances = unlikeness(features, references[modality])
                unlike[modality][present] = quantise(distances) / GRID
    return Scores(fused, single, low, unlike)


def profile(model: MapModel, cohort: Cohort) -> dict[Modality, np.ndarray]:
    """The ``moments`` (d + 1, d + 1) of the features of the cohort's cases, by modality."""
    sums: dict[Modality, np.ndarray] = {}
    for _, taken, output in _outputs(model, cohort):
        for modality in taken:
            part = moments(output.features[modality].cpu().numpy())
            sums[modality] = sums[modality] + part if modality in sums else part
    return sums


def _outputs(
    model: MapModel, cohort: Cohort
) -> Iterator[tuple[np.ndarray, Iterable[Modality], MapOutput]]:
    """Batch after batch: the numbers of its cases, its modalities, and what the model says."""
    model.eval()
    groups = [
        np.arange(start, min(start + SCORING_BATCH, len(cohort)))
        for start in range(0, len(cohort), SCORING_BATCH)
    ]
    for cases, part in zip(groups, cohort.feed(groups), strict=True):
        with torch.inference_mode(), autocast(cohort.clinical.device):
            output = model(part.batch).float()
        _check_finite(cohort, cases, part.taken, output)
        yield cases, part.taken, output


def _check_finite(
    cohort: Cohort, cases: np.ndarray, taken: Iterable[Modality], output: MapOutput
) -> None:
    """See that the model says something of every case.

    Raises:
        DataError: it does not, of the case whose pseudonym it names.
    """
    if bool(torch.isfinite(output.fused).all()):
        return
    for modality in taken:
        sound = torch.isfinite(output.features[modality]).all(dim=1).cpu().numpy()
        if not sound.all():
            case = int(cases[cohort.rows[modality][cases] >= 0][~sound][0])
            name = cohort.pseudonyms[case] if cohort.pseudonyms else f"number {case + 1}"
            raise DataError(
                f"the model gives no finite score for the {modality} image of case {name}",
                hint="the image in the cache is damaged: run her2-client check --data, then "
                "her2-client ingest; else take the case out of the table",
            )
    raise DataError("the model gives no finite score")


def _probability(logits: torch.Tensor) -> np.ndarray:
    return _on_grid(torch.softmax(logits[:, :2], dim=1)[:, 1])


def _on_grid(probability: torch.Tensor) -> np.ndarray:
    on_grid: np.ndarray = quantise(probability.double().cpu().numpy()) / GRID
    return on_grid


def histograms(scores: Scores, cohort: Cohort) -> dict[str, ScoreHistogram]:
    """The score histograms by which a federation is judged.

    Keys: ``fused|mg+us`` for the fused scores of the cases with exactly these modalities,
    ``single|us`` for the scores from one modality alone; from a model of three levels, also
    ``low|mg+us`` for HER2-low (1) against HER2-zero, over the negatives whose level is known.
    """
    labels, low = cohort.labels.cpu().numpy(), cohort.low.cpu().numpy()
    combinations = np.array([cohort.combination(i) for i in range(len(cohort))], dtype=object)
    result = {}
    for name in sorted(set(combinations)):
        chosen = combinations == name
        result[f"fused|{name}"] = ScoreHistogram.from_scores(scores.fused[chosen], labels[chosen])
        chosen &= low >= 0
        if scores.low is not None and chosen.any():
            result[f"low|{name}"] = ScoreHistogram.from_scores(scores.low[chosen], low[chosen])
    for modality, values in scores.single.items():
        chosen = ~np.isnan(values)
        if chosen.any():
            key = f"single|{modality}"
            result[key] = ScoreHistogram.from_scores(values[chosen], labels[chosen])
    return result
