"""Local training: the same bits from the same seed, one schedule, every case once an epoch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from her2_client import training
from her2_client.augment import augment
from her2_client.cohort import Cohort
from her2_client.scoring import score
from her2_client.training import (
    FINAL_SHARE,
    Balance,
    batches,
    class_balance,
    learning_rate,
    train_round,
)
from her2_common.config import RunConfig
from her2_common.errors import TrainingError
from her2_common.model import GROUPS, build_model, get_groups

MakeCohort = Callable[..., Cohort]
MIX = [("us",), ("mg", "us"), ("mri",), ("us", "mri"), ("us",), ("us",), ("mg",)]
PLAN = RunConfig(rounds=4, local_epochs=2, batch_size=3, seed=3, learning_rate=3e-3)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def changed(**changes: Any) -> RunConfig:
    return PLAN.model_copy(update=changes)


def trained(
    cohort: Cohort, plan: RunConfig = PLAN, *, site: str = "centre-a", number: int = 1
) -> dict[str, bytes]:
    model = build_model("compact", plan.seed)
    train_round(model, cohort, plan, site=site, round_number=number)
    return {g: v.tobytes() for g, v in get_groups(model, GROUPS).items()}


def test_the_same_seed_gives_the_same_bits(make_cohort: MakeCohort) -> None:
    first = trained(make_cohort(MIX))
    torch.manual_seed(99)  # the global stream has no part in it
    assert trained(make_cohort(MIX)) == first


def test_site_round_and_seed_have_draws_of_their_own(
    make_cohort: MakeCohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights differ anyway (another learning rate), so the draws themselves are looked at."""
    seen: list[bytes] = []

    def spy(images: torch.Tensor, draws: torch.Tensor, ranges: object) -> torch.Tensor:
        seen.append(draws.numpy().tobytes())
        return images

    monkeypatch.setattr(training, "augment", spy)
    cohort = make_cohort([("us",)] * 2)
    plan = PLAN.model_copy(update={"local_epochs": 1})

    def draws(**changes: object) -> bytes:
        seen.clear()
        seed = int(changes.pop("seed", plan.seed))  # type: ignore[call-overload]
        trained(cohort, plan.model_copy(update={"seed": seed}), **changes)  # type: ignore[arg-type]
        return b"".join(seen)

    base = draws()
    assert draws() == base
    others = [draws(site="centre-b"), draws(number=2), draws(seed=4)]
    assert len({base, *others}) == 4


def test_each_epoch_has_draws_of_its_own(
    make_cohort: MakeCohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []

    def spy(images: torch.Tensor, draws: torch.Tensor, ranges: object) -> torch.Tensor:
        seen.append(draws.numpy().tobytes())
        return images

    monkeypatch.setattr(training, "augment", spy)
    trained(make_cohort([("us",)]))
    assert len(seen) == len(set(seen)) == PLAN.local_epochs


def test_absent_groups_stay_bit_for_bit(make_cohort: MakeCohort) -> None:
    """Not even weight decay touches an encoder that no case used."""
    before = {g: v.tobytes() for g, v in get_groups(build_model("compact", 3), GROUPS).items()}
    after = trained(make_cohort([("us",)] * 4))
    assert {g for g in GROUPS if after[g] == before[g]} == {"mg", "mri"}


def test_no_epoch_no_change(make_cohort: MakeCohort) -> None:
    model = build_model("compact", 3)
    before = get_groups(model, GROUPS)
    plan = PLAN.model_copy(update={"local_epochs": 0})
    result = train_round(model, make_cohort(MIX), plan, site="a", round_number=1)
    assert (result.loss, result.steps) == (None, 0)
    after = get_groups(model, GROUPS)
    assert all(after[g].tobytes() == before[g].tobytes() for g in GROUPS)


def test_a_single_case_trains(make_cohort: MakeCohort) -> None:
    model = build_model("compact", 3)
    cohort = make_cohort([("us",)])
    result = train_round(model, cohort, PLAN, site="a", round_number=1)
    assert result.steps == PLAN.local_epochs
    assert result.loss is not None
    assert math.isfinite(result.loss)


def test_a_toy_cohort_is_learned(make_cohort: MakeCohort) -> None:
    """Chance is 2 ln 2 = 1.386 for the fused and the one single term."""
    told: list[tuple[int, float]] = []
    plan = RunConfig(rounds=1, warmup_rounds=0.2, local_epochs=6, batch_size=8, seed=1)
    result = train_round(
        build_model("compact", 1),
        make_cohort([("us",)] * 32, signal=1.5),
        plan,
        site="a",
        round_number=1,
        on_epoch=lambda epoch, loss: told.append((epoch, loss)),
    )
    assert [epoch for epoch, _ in told] == list(range(6))
    assert told[-1][1] < 0.4 < 2 * math.log(2) < told[0][1] + 0.4
    assert result.loss == pytest.approx(np.mean([loss for _, loss in told]), rel=1e-6)
    assert result.steps == 6 * 4


def test_a_loss_that_is_not_finite_is_an_error(make_cohort: MakeCohort) -> None:
    cohort = make_cohort([("us",)] * 3)
    cohort.images["us"][1, 0, 3, 3] = torch.inf
    with pytest.raises(TrainingError, match="round 2, epoch 1, step 1: the loss is not") as caught:
        train_round(build_model("compact", 1), cohort, PLAN, site="a", round_number=2)
    assert caught.value.code == "training"


def test_augmentation_does_not_depend_on_the_batch(
    make_cohort: MakeCohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A case meets the same numbers whatever the batch size, hence the batches, of the run."""

    def changes(batch_size: int) -> dict[float, torch.Tensor]:
        seen: dict[float, torch.Tensor] = {}

        def spy(images: torch.Tensor, draws: torch.Tensor, ranges: object) -> torch.Tensor:
            for image, numbers in zip(images, draws, strict=True):
                seen[float(image.sum())] = numbers.clone()
            return augment(images, draws, ranges)  # type: ignore[arg-type]

        monkeypatch.setattr(training, "augment", spy)
        plan = PLAN.model_copy(update={"batch_size": batch_size, "local_epochs": 1})
        trained(make_cohort([("us",)] * 7), plan)
        return seen

    small, large = changes(2), changes(7)
    assert len(small) == 7
    assert small.keys() == large.keys()
    assert all(torch.equal(small[key], large[key]) for key in small)


# --- batches ------------------------------------------------------------------------------------


@given(cases=st.integers(1, 60), size=st.integers(1, 20), seed=st.integers(0, 2**32))
def test_batches_hold_every_case_once(cases: int, size: int, seed: int) -> None:
    parts = list(batches(cases, size, torch.Generator().manual_seed(seed)))
    assert sorted(np.concatenate(parts).tolist()) == list(range(cases))
    sizes = [len(part) for part in parts]
    assert len(parts) == math.ceil(cases / size)
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1


# --- learning rate ------------------------------------------------------------------------------

plans = st.builds(
    RunConfig,
    rounds=st.integers(1, 50),
    warmup_rounds=st.floats(0, 5),
    learning_rate=st.floats(1e-5, 1e-1),
)


def test_the_schedule_at_its_corners() -> None:
    plan = RunConfig(rounds=10, warmup_rounds=2, learning_rate=0.1)
    assert learning_rate(plan, 0) == pytest.approx(0.1 * 0.02 / 2)  # never exactly 0
    assert learning_rate(plan, 1) == pytest.approx(0.05)
    assert learning_rate(plan, 2) == pytest.approx(0.1)
    middle = FINAL_SHARE + (1 - FINAL_SHARE) / 2
    assert learning_rate(plan, 6) == pytest.approx(0.1 * middle)
    assert learning_rate(plan, 10) == pytest.approx(0.1 * FINAL_SHARE)


def test_a_very_short_warm_up_does_not_overshoot() -> None:
    """The first step's floor of 0.02 rounds lies beyond a warm-up of 0.01."""
    plan = RunConfig(rounds=10, warmup_rounds=0.01, learning_rate=0.1)
    assert learning_rate(plan, 0) == 0.1


@settings(max_examples=60)
@given(plan=plans, a=st.floats(0, 1), b=st.floats(0, 1))
def test_the_schedule_rises_then_falls_within_its_bounds(
    plan: RunConfig, a: float, b: float
) -> None:
    first, second = sorted((a * plan.rounds, b * plan.rounds))
    low, high = learning_rate(plan, first), learning_rate(plan, second)
    assert 0 < min(low, high) <= max(low, high) <= plan.learning_rate
    if second < plan.warmup_rounds:
        assert low <= high
    if first >= plan.warmup_rounds:
        assert low >= high
        assert high >= FINAL_SHARE * plan.learning_rate * (1 - 1e-12)


def test_the_round_decides_where_in_the_schedule(
    make_cohort: MakeCohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site that joins in round 3 trains at the rate of round 3."""
    asked: list[float] = []

    def spy(plan: RunConfig, progress: float) -> float:
        asked.append(progress)
        return learning_rate(plan, progress)

    monkeypatch.setattr(training, "learning_rate", spy)
    trained(make_cohort([("us",)] * 6), number=3)  # 2 epochs of 2 steps
    assert asked == [2.0, 2.25, 2.5, 2.75]


def test_a_cohort_says_what_it_holds_in_its_shapes(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(MIX)
    with pytest.raises(Exception, match="Type-check error"):
        dataclasses.replace(cohort, labels=cohort.labels[:-1])


def test_weights_make_the_classes_weigh_the_same(make_cohort: MakeCohort) -> None:
    cohort = make_cohort([("us",)] * 8)
    cohort = replace(cohort, labels=torch.tensor([1, 0, 0, 0, 0, 0, 1, 0]))
    negative, positive = class_balance(cohort, changed(class_balance="weights")).weights
    assert 6 * negative == 2 * positive
    assert 6 * negative + 2 * positive == 8  # the learning rate keeps its meaning
    prior = class_balance(cohort, changed(class_balance="prior"))
    assert (prior.log_odds, prior.weights) == (math.log(2 / 6), (1.0, 1.0))
    assert class_balance(cohort, changed()) == Balance()


def test_a_site_of_one_class_trains_under_every_balance(make_cohort: MakeCohort) -> None:
    cohort = make_cohort([("us",)] * 4)
    cohort = replace(cohort, labels=torch.zeros(4, dtype=torch.int64))
    for balance in ("none", "weights", "prior"):
        plan = changed(class_balance=balance, local_epochs=1)
        result = train_round(build_model("compact", 3), cohort, plan, site="a", round_number=1)
        assert result.loss is not None
        assert math.isfinite(result.loss)


@pytest.mark.slow
def test_under_prior_the_score_does_not_learn_the_prevalence(make_cohort: MakeCohort) -> None:
    """Images say nothing, one case in ten is positive: plain training ends near the log odds of a
    tenth, training with the prior near 0."""
    cohort = make_cohort([("us",)] * 40)
    cohort = replace(
        cohort,
        labels=(torch.arange(40) % 10 == 0).long(),
        images={m: torch.zeros_like(images) for m, images in cohort.images.items()},
        clinical=torch.zeros(40, 5),
    )
    odds = {}
    for balance in ("none", "prior"):
        plan = changed(class_balance=balance, local_epochs=20, warmup_rounds=0)
        model = build_model("compact", 3)
        train_round(model, cohort, plan, site="a", round_number=1)
        batch, _ = cohort.batch(np.arange(2))
        logits = model(batch).fused[0].detach()
        odds[balance] = float(logits[1] - logits[0])
    assert odds["none"] == pytest.approx(math.log(4 / 36), abs=0.6)
    assert odds["prior"] == pytest.approx(0.0, abs=0.6)
    assert odds["prior"] - odds["none"] > 1.2


def test_modality_dropout_spares_the_encoders_work(
    make_cohort: MakeCohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = 0

    def spy(images: torch.Tensor, draws: torch.Tensor, ranges: object) -> torch.Tensor:
        nonlocal seen
        seen += len(images)
        return images

    monkeypatch.setattr("her2_client.training.augment", spy)
    cohort = make_cohort([("mg", "us")] * 20)
    trained(cohort, changed(modality_dropout=0.5, local_epochs=4))
    assert 80 < seen < 150  # of 160; a case keeps at least one of its two


def third_row(cohort: Cohort) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights of low against zero before and after a round, without weight decay."""
    plan = changed(her2_levels=3, weight_decay=0.0, local_epochs=2)
    model = build_model("compact", 3, levels=3)
    before = model.head.weight[2].detach().clone()
    train_round(model, cohort, plan, site="a", round_number=1)
    return before, model.head.weight[2].detach()


def test_low_against_zero_is_trained_by_negatives_of_known_level_alone(
    make_cohort: MakeCohort,
) -> None:
    cohort = make_cohort([("us",)] * 12)
    before, after = third_row(cohort)  # every level is unknown
    assert torch.equal(before, after)
    low = torch.tensor([1, -1, 0, -1] * 3)
    before, after = third_row(replace(cohort, low=low))
    assert not torch.equal(before, after)
    two = trained(replace(cohort, low=low), changed(her2_levels=2))
    assert two == trained(cohort, changed(her2_levels=2))  # and is none of a binary run's business


def test_low_against_zero_is_learned(make_cohort: MakeCohort) -> None:
    """Positives look like HER2-zero here, so that only the level's own term can tell them."""
    cohort = make_cohort([("us",)] * 32)
    low = torch.where(torch.arange(32) % 2 == 0, (torch.arange(32) // 2) % 2, -1)
    images = cohort.images["us"].clone()
    images[low == 1, ..., :16, :] += 1.5
    cohort = replace(cohort, low=low, images=cohort.images | {"us": images})
    model = build_model("compact", 3, levels=3)
    plan = changed(her2_levels=3, local_epochs=12, warmup_rounds=0)
    train_round(model, cohort, plan, site="a", round_number=1)
    scores = score(model, cohort).low
    assert scores is not None
    assert scores[low.numpy() == 1].min() > 0.5 > scores[low.numpy() == 0].max()
