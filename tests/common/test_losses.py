"""The loss against plain loops over cases and pairs of modalities."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from her2_common.cases import MODALITIES, Modality
from her2_common.losses import CONTRAST, loss_terms, map_loss
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
    assert (
        float(loss_terms(output, torch.zeros(3).long())["alignment"]) == 0.5
    )  # case 1 alone, not diluted by cases 0 and 2


def test_no_pair_means_no_alignment() -> None:
    output = make_output([("mg",), ("us",)], 1)
    assert float(loss_terms(output, torch.zeros(2).long())["alignment"]) == 0.0


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def contrast(output: MapOutput) -> float:
    """InfoNCE a row at a time: both ways, over the cases that have both modalities."""
    total = 0.0
    for a, b in combinations(output.features, 2):
        rows, columns = output.rows[a].tolist(), output.rows[b].tolist()
        table = [
            [cosine(x, y) / CONTRAST for y in output.features[b].tolist()]
            for x in output.features[a].tolist()
        ]
        found = []
        for i, case in enumerate(rows):
            if case in columns:
                j = columns.index(case)
                found.append((nats(table[i], j) + nats([row[j] for row in table], i)) / 2)
        total += mean(found)
    return total


@settings(deadline=None, max_examples=40)
@given(has=presences, seed=st.integers(0, 10_000))
def test_the_contrastive_term_against_plain_loops(has: Presence, seed: int) -> None:
    output, labels = make_output(has, seed), make_labels(len(has), seed)
    terms = loss_terms(output, labels, alignment="contrastive")
    assert float(terms["alignment"]) == pytest.approx(contrast(output), rel=1e-4, abs=1e-5)


def test_only_l1_is_lowered_by_shrinking_the_features() -> None:
    output = make_output([("mg", "us")] * 4, 5)
    small = {m: f / 100 for m, f in output.features.items()}
    shrunk = MapOutput(output.fused, output.single, small, output.rows)
    labels = make_labels(4, 5)
    for alignment, ratio in (("l1", 0.01), ("contrastive", 1.0)):
        before, after = (
            float(loss_terms(o, labels, alignment=alignment)["alignment"])  # type: ignore[arg-type]
            for o in (output, shrunk)
        )
        assert after / before == pytest.approx(ratio, rel=1e-4)


@settings(deadline=None, max_examples=30)
@given(has=presences, seed=st.integers(0, 10_000), weights=st.tuples(*[st.floats(0.1, 9)] * 2))
def test_class_weights_are_those_of_torch(
    has: Presence, seed: int, weights: tuple[float, float]
) -> None:
    output, labels = make_output(has, seed), make_labels(len(has), seed)
    terms = loss_terms(output, labels, class_weights=weights)
    of_class = torch.tensor(weights)

    def expected(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, truth, of_class, reduction="sum") / len(truth)

    torch.testing.assert_close(terms["fused"], expected(output.fused, labels))
    for modality, logits in output.single.items():
        rows = labels[output.rows[modality]]
        torch.testing.assert_close(terms[modality], expected(logits, rows))


def test_the_prior_is_added_to_the_log_odds() -> None:
    output, labels = make_output([("mg",), ("us",), ("mri",)], 2), make_labels(3, 2)
    shifted = output.fused + torch.tensor([0.0, -1.5])
    terms = loss_terms(output, labels, prior_log_odds=-1.5)
    torch.testing.assert_close(terms["fused"], F.cross_entropy(shifted, labels))


def test_no_single_terms_and_no_alignment_leave_the_fused_one() -> None:
    output, labels = make_output([("mg", "us")] * 3, 4), make_labels(3, 4)
    assert set(loss_terms(output, labels, single_weight=0.0, alignment="none")) == {"fused"}


def test_low_against_zero_takes_the_negatives_of_known_level() -> None:
    fused = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, -1.0], [0.0, 0.0, 5.0], [0.0, 0.0, 7.0]])
    output = MapOutput(fused, {}, {}, {})
    labels, low = torch.tensor([0, 0, 0, 1]), torch.tensor([1, 0, -1, -1])
    both = loss_terms(output, labels, low=low)["fused"] - loss_terms(output, labels)["fused"]
    expected = (math.log1p(math.exp(-2.0)) + math.log1p(math.exp(-1.0))) / 2
    assert float(both) == pytest.approx(expected, rel=1e-5)
    unknown = torch.full((4,), -1)
    torch.testing.assert_close(
        loss_terms(output, labels, low=unknown)["fused"], loss_terms(output, labels)["fused"]
    )
