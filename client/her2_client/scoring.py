"""Scores of a cohort: fused, and of each modality alone, rounded to the public grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from her2_client.cohort import Cohort
from her2_client.training import autocast
from her2_common.cases import Modality
from her2_common.metrics import GRID, ScoreHistogram, quantise
from her2_common.model import MapModel

SCORING_BATCH = 64


@dataclass(frozen=True)
class Scores:
    """Probabilities of the positive class on the grid of 1/1024, for n cases.

    ``fused`` is (n,); ``single[m]`` is (n,) with NaN where a case lacks modality m.
    """

    fused: np.ndarray
    single: dict[Modality, np.ndarray]


def score(model: MapModel, cohort: Cohort) -> Scores:
    """Score every case of the cohort from the modalities it has."""
    model.eval()
    fused = np.full(len(cohort), np.nan)
    single = {m: np.full(len(cohort), np.nan) for m in cohort.rows}
    for start in range(0, len(cohort), SCORING_BATCH):
        cases = np.arange(start, min(start + SCORING_BATCH, len(cohort)))
        batch, taken = cohort.batch(cases)
        with torch.inference_mode(), autocast(cohort.clinical.device):
            output = model(batch).float()
        fused[cases] = _probability(output.fused)
        for modality in taken:
            present = cases[cohort.rows[modality][cases] >= 0]
            single[modality][present] = _probability(output.single[modality])
    return Scores(fused, single)


def _probability(logits: torch.Tensor) -> np.ndarray:
    probability = torch.softmax(logits, dim=1)[:, 1].double().cpu().numpy()
    on_grid: np.ndarray = quantise(probability) / GRID
    return on_grid


def histograms(scores: Scores, cohort: Cohort) -> dict[str, ScoreHistogram]:
    """The score histograms by which a federation is judged.

    Keys: ``fused|mg+us`` for the fused scores of the cases with exactly these modalities,
    ``single|us`` for the scores from one modality alone.
    """
    labels = cohort.labels.cpu().numpy()
    combinations = np.array([cohort.combination(i) for i in range(len(cohort))], dtype=object)
    result = {}
    for name in sorted(set(combinations)):
        chosen = combinations == name
        result[f"fused|{name}"] = ScoreHistogram.from_scores(scores.fused[chosen], labels[chosen])
    for modality, values in scores.single.items():
        chosen = ~np.isnan(values)
        if chosen.any():
            key = f"single|{modality}"
            result[key] = ScoreHistogram.from_scores(values[chosen], labels[chosen])
    return result
