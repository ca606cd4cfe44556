"""The loss of the MAP model.

    total = CE(fused) + u * sum over modalities of CE(single) + w * alignment

Every term is a mean over the cases (for a pair of modalities: the cases that have both) for which
it exists, so that an absent modality neither dilutes a term nor contributes to it; a term that no
case of the batch has is left out. Cross entropy is in nats: ln 2 = 0.693 is chance for two
classes. Of the two alignment terms

- ``l1`` is the mean absolute difference per feature dimension, summed over the pairs of
  modalities, as published;
- ``contrastive`` asks which row of the other modality belongs to the same case (InfoNCE; van den
  Oord et al., 2018; symmetric as in CLIP, Radford et al., ICML 2021). It cannot be lowered by
  shrinking the features, which ``l1`` can.

With three HER2 levels each cross entropy gains the term of low against zero, over the negative
cases whose level is known.

Source: the four cross entropies and the L1 alignment of the MAP paper (Nature Biomedical
Engineering, 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F

from her2_common.cases import MODALITIES
from her2_common.model import MapOutput
from her2_common.types import FeaturesOf, Labels, Logits, Same, Scalar

Alignment = Literal["l1", "contrastive", "none"]

CONTRAST: Final = 0.1
"""Temperature of the contrastive term: cosines of at most 1 become logits of at most 10."""


def map_loss(output: MapOutput, labels: Labels, **options: Any) -> Scalar:
    """The scalar training loss of a batch: the sum of ``loss_terms``, whose options it takes."""
    return summed(loss_terms(output, labels, **options))


def summed(terms: Mapping[str, Scalar]) -> Scalar:
    """The loss of its terms."""
    return torch.stack(list(terms.values())).sum()


def loss_terms(
    output: MapOutput,
    labels: Labels,
    *,
    low: Labels | None = None,
    class_weights: tuple[float, float] = (1.0, 1.0),
    prior_log_odds: float = 0.0,
    single_weight: float = 1.0,
    alignment: Alignment = "l1",
    alignment_weight: float = 1.0,
) -> dict[str, Scalar]:
    """The weighted terms by name: ``fused``, each present modality, ``alignment``.

    Args:
        output: what the model said of the b cases.
        labels: 0 or 1 for every case.
        low: for a model of three levels, 1 HER2-low, 0 HER2-zero, -1 neither or unknown.
        class_weights: of the negative and the positive cases, with mean 1 over a site's cases. A
            term is the mean of weight times cross entropy: not divided by the weights of the batch,
            which would make up for the positives that a small batch lacks.
        prior_log_odds: added to the log odds of positive before the cross entropy, so that the
            logits need not learn how frequent positives are here (Menon et al., ICLR 2021).
        single_weight: u, of the single-modality terms.
        alignment: which alignment term.
        alignment_weight: w.
    """

    def entropy(logits: Logits, rows: Labels | None = None) -> Scalar:
        truth, level = labels, low
        if rows is not None:
            truth, level = labels[rows], None if low is None else low[rows]
        return _entropy(logits, truth, level, class_weights, prior_log_odds)

    terms = {"fused": entropy(output.fused)}
    if single_weight:
        for modality in MODALITIES:
            if modality in output.single:
                rows = output.rows[modality]
                terms[modality] = single_weight * entropy(output.single[modality], rows)
    if alignment != "none" and alignment_weight:
        distance = {"l1": _l1, "contrastive": _contrastive}[alignment]
        terms["alignment"] = alignment_weight * _pairs(output, distance)
    return terms


def _entropy(
    logits: Logits,
    labels: Labels,
    low: Labels | None,
    class_weights: tuple[float, float],
    prior_log_odds: float,
) -> Scalar:
    """The (weighted) mean cross entropy of negative against positive, and of low against zero."""
    log_odds = logits[:, 1] - logits[:, 0] + prior_log_odds
    nats = F.binary_cross_entropy_with_logits(log_odds, labels.to(log_odds.dtype), reduction="none")
    weights = torch.where(labels == 1, class_weights[1], class_weights[0])
    total: Scalar = (weights * nats).mean()
    if low is None:
        return total
    known = (low >= 0).to(log_odds.dtype)
    truth = low.clamp(min=0).to(log_odds.dtype)
    nats = F.binary_cross_entropy_with_logits(logits[:, 2], truth, reduction="none")
    return total + (known * nats).sum() / known.sum().clamp(min=1.0)


def _pairs(output: MapOutput, distance: Callable[[FeaturesOf, FeaturesOf, Same], Scalar]) -> Scalar:
    """The sum of ``distance`` over the pairs of modalities."""
    total = output.fused.new_zeros(())
    present = [m for m in MODALITIES if m in output.features]
    for first, second in combinations(present, 2):
        # (n_first, n_second): 1 where the two rows belong to the same case. Dense and masked, so
        # that its size does not depend on the data and a GPU need not report back.
        same = (output.rows[first][:, None] == output.rows[second][None, :]).float()
        total = total + distance(output.features[first], output.features[second], same)
    return total


def _l1(first: FeaturesOf, second: FeaturesOf, same: Same) -> Scalar:
    gaps = (first[:, None] - second[None, :]).abs().mean(-1)  # (n_first, n_second)
    total: Scalar = (gaps * same).sum() / same.sum().clamp(min=1.0)
    return total


def _contrastive(first: FeaturesOf, second: FeaturesOf, same: Same) -> Scalar:
    cosines = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T  # (n_first, n_second)
    logits = cosines / CONTRAST
    found = -(logits.log_softmax(1) + logits.log_softmax(0)) / 2  # both ways
    total: Scalar = (found * same).sum() / same.sum().clamp(min=1.0)
    return total
