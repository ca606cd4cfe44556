"""The loss of the MAP model.

    total = CE(fused) + sum over modalities of CE(single) + w * sum over pairs of |f_a - f_b|

Every term is a mean over the cases (for a pair: the cases that have both) for which it exists, so
that an absent modality neither dilutes a term nor contributes to it; a term that no case of the
batch has is left out. Cross entropy is in nats: ln 2 = 0.693 is chance for two classes. The
alignment distance is the mean absolute difference per feature dimension.

Source: the four cross entropies and the L1 alignment of the MAP paper (Nature Biomedical
Engineering, 2025).
"""

from __future__ import annotations

from itertools import combinations

import torch.nn.functional as F

from her2_common.cases import MODALITIES
from her2_common.model import MapOutput
from her2_common.types import Labels, Scalar


def map_loss(output: MapOutput, labels: Labels, *, alignment_weight: float = 1.0) -> Scalar:
    """The scalar training loss of a batch; ``labels`` are 0 or 1 for every case."""
    total = F.cross_entropy(output.fused, labels)
    for modality in MODALITIES:
        if modality in output.single:
            total = total + F.cross_entropy(output.single[modality], labels[output.rows[modality]])
    if alignment_weight:
        total = total + alignment_weight * alignment(output)
    return total


def alignment(output: MapOutput) -> Scalar:
    """L1 distance of the features of each pair of modalities, over the cases that have both."""
    distance = output.fused.new_zeros(())
    present = [m for m in MODALITIES if m in output.features]
    for first, second in combinations(present, 2):
        # (n_first, n_second): 1 where the two rows belong to the same case. Dense and masked, so
        # that its size does not depend on the data and a GPU need not report back.
        same = (output.rows[first][:, None] == output.rows[second][None, :]).float()
        gaps = output.features[first][:, None] - output.features[second][None, :]
        pairs = same.sum().clamp(min=1.0)
        distance = distance + (gaps.abs().mean(-1) * same).sum() / pairs
    return distance
