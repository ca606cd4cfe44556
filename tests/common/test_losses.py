"""The loss against plain loops over cases and pairs of modalities."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from her2_common.cases import MODALITIES, Modality
from her2_common.losses import alignment, map_loss
from her2_common.model import MapOutput

Presence = list[tuple[Modality, ...]]

SUBSETS = tuple(s for size in (1, 2, 3) for s in combinations(MODALITIES, size))
presences = st.lists(st.sampled_from(SUBSETS), min_size=1, max_size=7)
FEATURES = 6


def make_output(has: Presence, seed: int) -> MapOutput:
    """Random logits and features; the rows of a modality stand in a random order."""
    generator = torch.Generator().manual_seed(seed)
    single, features, rows = {}, {}, {}
    for modality in MODALITIES:
        present = torch.tensor([i for i, names in enumerate(has) if modality in names])
        if len(present) == 0:
            continue
        rows[modality] = present[torch.randperm(len(present), generator=generator)]
        single[modality] = 3 * torch.randn(len(present), 2, generator=generator)
        features[modality] = torch.randn(len(present), FEATURES, generator=generator)
    fused = 3 * torch.randn(len(has), 2, generator=generator)
    return MapOutput(fused, single, features, rows)


def make_labels(cases: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 2, (cases,), generator=torch.Generator().manual_seed(seed + 1))


def nats(logits: list[float], label: int) -> float:
    largest = max(logits)
    return math.log(sum(math.exp(x - largest) for x in logits)) + largest - logits[label]


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def oracle(output: MapOutput, labels: torch.Tensor, weight: float) -> float:
    """The module's formula, a case and a pair at a time, in Python's floats."""
    y = labels.tolist()
    total = mean([nats(logits, y[i]) for i, logits in enumerate(output.fused.tolist())])
    of_case: dict[str, dict[int, list[float]]] = {}
    for modality, logits in output.single.items():
        cases = output.rows[modality].tolist()
        total += mean([nats(row, y[c]) for c, row in zip(cases, logits.tolist(), strict=True)])
        vectors = output.features[modality].tolist()
        of_case[modality] = dict(zip(cases, vectors, strict=True))
    for a, b in combinations(of_case, 2):
        both = of_case[a].keys() & of_case[b].keys()
        total += weight * mean(
            [
                mean([abs(x - y) for x, y in zip(of_case[a][c], of_case[b][c], strict=True)])
                for c in both
            ]
        )
    return total


@settings(deadline=None, max_examples=60)
@given(has=presences, seed=st.integers(0, 10_000), weight=st.sampled_from([0.0, 0.3, 1.0]))
def test_against_plain_loops(has: Presence, seed: int, weight: float) -> None:
    output, labels = make_output(has, seed), make_labels(len(has), seed)
    got = float(map_loss(output, labels, alignment_weight=weight))
    assert got == pytest.approx(oracle(output, labels, weight), rel=1e-5, abs=1e-6)


@settings(deadline=None, max_examples=20)
@given(has=presences, labels=st.integers(0, 100))
def test_ln_2_at_zero_logits(has: Presence, labels: int) -> None:
    """One ln 2 for the fused term and one for each modality that the batch has."""
    output = make_output(has, 0)
    zero = MapOutput(
        torch.zeros_like(output.fused),
        {m: torch.zeros_like(v) for m, v in output.single.items()},
        {m: torch.ones_like(v) for m, v in output.features.items()},
        output.rows,
    )
    terms = 1 + len(output.single)
    got = float(map_loss(zero, make_labels(len(has), labels)))
    assert got == pytest.approx(terms * math.log(2), rel=1e-6)


def test_a_term_is_not_diluted_by_cases_without_the_modality() -> None:
    """Ten cases without ultrasound beside the one that has it: its term stays its own."""
    for company in (0, 10):
        has: Presence = [("us",)] + [("mg",)] * company
        output = make_output(has, 3)
        labels = torch.zeros(len(has), dtype=torch.int64)
        logits = output.single["us"].detach().requires_grad_()
        changed = MapOutput(
            output.fused, output.single | {"us": logits}, output.features, output.rows
        )
        map_loss(changed, labels).backward()
        probability = torch.softmax(logits.detach(), dim=1)
        expected = probability - torch.tensor([[1.0, 0.0]])  # of a mean over one case
        torch.testing.assert_close(logits.grad, expected)


def test_alignment_takes_only_cases_that_have_both() -> None:
    features = {"mg": torch.zeros(2, 4), "us": torch.full((2, 4), 0.5)}
    rows = {"mg": torch.tensor([0, 1]), "us": torch.tensor([1, 2])}
    single = {m: torch.zeros(2, 2) for m in features}
    output = MapOutput(torch.zeros(3, 2), single, features, rows)
    assert float(alignment(output)) == 0.5  # case 1 alone, not diluted by cases 0 and 2


def test_no_pair_means_no_alignment() -> None:
    output = make_output([("mg",), ("us",)], 1)
    assert float(alignment(output)) == 0.0
