"""A site's comparison: training alone that survives a kill, and numbers that may leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from her2_client import compare as module
from her2_client import site_memory
from her2_client.compare import compare, key_of, train_alone
from her2_client.policy import check_order
from her2_client.scoring import Scores
from her2_client.training import TrainResult
from her2_common import __version__
from her2_common.config import Policy, RunConfig
from her2_common.errors import PolicyError
from her2_common.metrics import GRID
from her2_common.wire import TaskOrder

PLAN = RunConfig(rounds=4, min_cell=3)
FIRST = {"head": np.array([1.0, -2.0], np.float32), "us": np.zeros(3, np.float32)}

Weights = Mapping[str, np.ndarray]


class KilledError(Exception):
    """The site dies."""


def trainer(rounds: list[int], dies_in: int | None = None) -> Callable[..., Any]:
    """Training whose result depends on where it began and on the round."""

    def train(
        weights: Weights, plan: RunConfig, number: int, _objective: object
    ) -> tuple[dict[str, np.ndarray], TrainResult]:
        if number == dies_in:
            raise KilledError
        rounds.append(number)
        trained = {g: (v * 1.5 + np.float32(number)).astype(np.float32) for g, v in weights.items()}
        return trained, TrainResult(0.5, 1, 0.0)

    return train


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[g], other[g]) for g in one)


def test_training_alone_runs_all_rounds_from_the_first_weights(tmp_path: Path) -> None:
    expected = {group: vector.copy() for group, vector in FIRST.items()}
    for number in range(1, 5):
        expected = {g: (v * 1.5 + number).astype(np.float32) for g, v in expected.items()}
    rounds: list[int] = []
    found = train_alone(PLAN, FIRST, trainer(rounds), state=tmp_path, key="k")
    assert rounds == [1, 2, 3, 4]
    assert same(found, expected)


@pytest.mark.parametrize("dies_in", [1, 2, 3, 4])
def test_a_killed_site_goes_on_with_the_same_bits(tmp_path: Path, dies_in: int) -> None:
    undisturbed = train_alone(PLAN, FIRST, trainer([]), state=tmp_path / "a", key="k")
    with pytest.raises(KilledError):
        train_alone(PLAN, FIRST, trainer([], dies_in), state=tmp_path / "b", key="k")
    rounds: list[int] = []
    log: list[str] = []
    found = train_alone(
        PLAN, FIRST, trainer(rounds), state=tmp_path / "b", key="k", notify=log.append
    )
    assert same(found, undisturbed)
    assert rounds == list(range(dies_in, 5))
    assert any("going on after round" in line for line in log) == (dies_in > 1)


def test_an_order_that_comes_again_trains_nothing(tmp_path: Path) -> None:
    once = train_alone(PLAN, FIRST, trainer([]), state=tmp_path, key="k")
    rounds: list[int] = []
    assert same(train_alone(PLAN, FIRST, trainer(rounds), state=tmp_path, key="k"), once)
    assert not rounds


def test_a_damaged_round_is_passed_over(tmp_path: Path) -> None:
    once = train_alone(PLAN, FIRST, trainer([]), state=tmp_path, key="k")
    newest = tmp_path / "compare" / "memory" / "k" / "00004.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    rounds: list[int] = []
    log: list[str] = []
    found = train_alone(PLAN, FIRST, trainer(rounds), state=tmp_path, key="k", notify=log.append)
    assert same(found, once)
    assert rounds == [4]
    assert any("passed over" in line for line in log)


def test_what_is_saved_is_apart_from_the_runs_own_memory(tmp_path: Path) -> None:
    for run in ("one", "two", "three"):
        site_memory.save(tmp_path, run, 1, FIRST, base=0)
    for key in ("a", "b", "c", "d"):
        train_alone(PLAN, FIRST, trainer([]), state=tmp_path, key=key)
    assert all(site_memory.rounds(tmp_path, run) == [1] for run in ("one", "two", "three"))


@pytest.mark.parametrize(
    "changes",
    [
        {"plan": RunConfig(rounds=5, min_cell=3)},
        {"plan": RunConfig(rounds=4, min_cell=3, seed=1)},
        {"site": "centre-b"},
        {"cases": "other"},
        {"first": {**FIRST, "head": np.array([1.0, -2.5], np.float32)}},
    ],
)
def test_another_question_does_not_go_on_from_this_one(changes: dict[str, Any]) -> None:
    given: dict[str, Any] = {"plan": PLAN, "site": "centre-a", "cases": "one", "first": FIRST}
    assert key_of(**given) == key_of(**given)
    assert key_of(**given) != key_of(**given | changes)


@pytest.mark.parametrize("split", ["train", "val"])
def test_only_test_cases_are_compared(split: str) -> None:
    order = TaskOrder.model_validate(
        {
            "task": "compare",
            "run": "run",
            "version": __version__,
            "round": 4,
            "split": split,
            "plan": {"rounds": 4},
        }
    )
    with pytest.raises(PolicyError, match=f"compare on the {split} cases"):
        check_order(Policy(), order)
    check_order(Policy(), order.model_copy(update={"split": "test"}))
    with pytest.raises(PolicyError, match="allowed_tasks"):
        check_order(Policy(allowed_tasks=("describe", "train")), order)


# --- the answer ---------------------------------------------------------------------------------


class Cases:
    """A cohort, as far as a comparison looks at it."""

    def __init__(self, labels: np.ndarray) -> None:
        self.labels = torch.from_numpy(labels)


def answer(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    labels: np.ndarray,
    *,
    min_cell: int = 3,
    plan: RunConfig = PLAN,
    memory: Weights | None = None,
) -> tuple[Any, list[int], dict[str, np.ndarray]]:
    """A site's comparison with scores that follow from the weights; the scores by model's head."""
    seen: dict[str, np.ndarray] = {}

    def score(model: Weights, _test: Cases) -> Scores:
        rng = np.random.default_rng(int(abs(model["head"][0]) * 1000) % 2**31)
        values = np.rint(rng.random(len(labels)) * GRID) / GRID
        seen[str(float(model["head"][0]))] = values
        return Scores(values, {})

    monkeypatch.setattr(module, "score", score)
    rounds: list[int] = []
    order = TaskOrder(
        task="compare", run="run", version="0", round=plan.rounds, split="test", plan=plan
    )
    reply = compare(
        order,
        Cases(labels),  # type: ignore[arg-type]
        site="centre-a",
        min_cell=min_cell,
        first=FIRST,
        federated={"head": np.array([7.0, 0.0], np.float32), "us": FIRST["us"]},
        memory=memory or {},
        ready=lambda given: given,  # type: ignore[arg-type,return-value]
        train=trainer(rounds),
        state=tmp_path,
        cases="digest",
    )
    return reply, rounds, seen


def test_the_answer_is_what_sklearn_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    labels = (np.random.default_rng(3).random(90) < 0.4).astype(np.int64)
    reply, rounds, seen = answer(monkeypatch, tmp_path, labels)
    assert rounds == [1, 2, 3, 4]
    assert reply.models == ("local", "federated")
    assert (reply.positives, reply.negatives) == (labels.sum(), 90 - labels.sum())
    local, federated = seen.values()
    assert reply.auc == pytest.approx(
        (roc_auc_score(labels, local), roc_auc_score(labels, federated)), abs=1e-12
    )
    assert not np.array_equal(local, federated)


@pytest.mark.parametrize(("positives", "leaves"), [(2, False), (3, True), (57, True), (58, False)])
def test_a_small_class_is_told_to_nobody_and_costs_no_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, positives: int, leaves: bool
) -> None:
    labels = (np.arange(60) < positives).astype(np.int64)
    reply, rounds, _ = answer(monkeypatch, tmp_path, labels)
    assert bool(rounds) == leaves
    assert (reply.positives, bool(reply.auc)) == (positives if leaves else None, leaves)
    if not leaves:
        assert reply.model_dump(exclude_defaults=True) == {"site": "centre-a", "round": 4}


def test_a_personal_model_stands_beside_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    labels = (np.arange(60) % 3 == 0).astype(np.int64)
    ditto = RunConfig.model_validate(
        {"rounds": 4, "min_cell": 3, "strategy": {"personal": {"name": "ditto"}}}
    )
    memory = {"personal:head": np.array([9.0, 0.0], np.float32)}
    reply, _, seen = answer(monkeypatch, tmp_path, labels, plan=ditto, memory=memory)
    assert reply.models == ("local", "federated", "personal")
    assert reply.auc[2] == pytest.approx(roc_auc_score(labels, seen["9.0"]), abs=1e-12)
