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
from her2_common.metrics import GRID, Estimate
from her2_common.wire import TaskOrder
from her2_server.progress import best_rounds, out_of_patience

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


def unused(_: Weights) -> float | None:
    raise AssertionError("without patience nothing is validated")


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[g], other[g]) for g in one)


def test_training_alone_runs_all_rounds_from_the_first_weights(tmp_path: Path) -> None:
    expected = {group: vector.copy() for group, vector in FIRST.items()}
    for number in range(1, 5):
        expected = {g: (v * 1.5 + number).astype(np.float32) for g, v in expected.items()}
    rounds: list[int] = []
    found = train_alone(PLAN, FIRST, trainer(rounds), validate=unused, state=tmp_path, key="k")
    assert rounds == [1, 2, 3, 4]
    assert same(found, expected)


@pytest.mark.parametrize("dies_in", [1, 2, 3, 4])
def test_a_killed_site_goes_on_with_the_same_bits(tmp_path: Path, dies_in: int) -> None:
    undisturbed = train_alone(
        PLAN, FIRST, trainer([]), validate=unused, state=tmp_path / "a", key="k"
    )
    with pytest.raises(KilledError):
        train_alone(
            PLAN, FIRST, trainer([], dies_in), validate=unused, state=tmp_path / "b", key="k"
        )
    rounds: list[int] = []
    log: list[str] = []
    found = train_alone(
        PLAN,
        FIRST,
        trainer(rounds),
        validate=unused,
        state=tmp_path / "b",
        key="k",
        notify=log.append,
    )
    assert same(found, undisturbed)
    assert rounds == list(range(dies_in, 5))
    assert any("going on after round" in line for line in log) == (dies_in > 1)


def test_an_order_that_comes_again_trains_nothing(tmp_path: Path) -> None:
    once = train_alone(PLAN, FIRST, trainer([]), validate=unused, state=tmp_path, key="k")
    rounds: list[int] = []
    assert same(
        train_alone(PLAN, FIRST, trainer(rounds), validate=unused, state=tmp_path, key="k"), once
    )
    assert not rounds


def test_a_damaged_round_is_passed_over(tmp_path: Path) -> None:
    once = train_alone(PLAN, FIRST, trainer([]), validate=unused, state=tmp_path, key="k")
    newest = tmp_path / "compare" / "memory" / "k" / "00004.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    rounds: list[int] = []
    log: list[str] = []
    found = train_alone(
        PLAN, FIRST, trainer(rounds), validate=unused, state=tmp_path, key="k", notify=log.append
    )
    assert same(found, once)
    assert rounds == [4]
    assert any("passed over" in line for line in log)


# --- patience -----------------------------------------------------------------------------------


def judge(areas: dict[int, float | None]) -> Callable[[Weights], float | None]:
    """The AUC of the weights of each round, as ``trainer`` makes them."""
    known, weights = {}, FIRST["head"]
    for number in range(1, 13):
        weights = (weights * 1.5 + np.float32(number)).astype(np.float32)
        known[weights.tobytes()] = areas.get(number)
    return lambda given: known[given["head"].tobytes()]


def round_of(weights: Weights) -> int:
    """Which round made the weights."""
    vector = FIRST["head"]
    for number in range(1, 13):
        vector = (vector * 1.5 + np.float32(number)).astype(np.float32)
        if np.array_equal(vector, weights["head"]):
            return number
    raise AssertionError


CURVES: list[tuple[int, list[float], int, int]] = [
    # patience, AUC by round, rounds trained, the round that counts
    (1, [0.6, 0.7, 0.65, 0.9], 4, 4),  # round 3 is scored while round 4 is trained, and that counts
    (1, [0.6, 0.7, 0.65, 0.6, 0.9], 4, 2),
    (2, [0.8, 0.7, 0.7, 0.6, 0.9, 0.9], 4, 1),
    (2, [0.7, 0.7, 0.7, 0.7, 0.7], 4, 1),  # of equal ones the first
    (3, [0.5, 0.6, 0.7, 0.8, 0.9, 0.95], 6, 6),
    (9, [0.9, 0.6, 0.6, 0.6, 0.6, 0.6], 6, 1),
]


@pytest.mark.parametrize(("patience", "areas", "trained", "chosen"), CURVES)
def test_a_model_alone_has_the_patience_of_the_run(
    tmp_path: Path, patience: int, areas: list[float], trained: int, chosen: int
) -> None:
    plan = RunConfig(rounds=6, min_cell=3, patience=patience)
    validate = judge(dict(enumerate(areas, start=1)))
    rounds: list[int] = []
    given: dict[str, Any] = {"validate": validate, "state": tmp_path, "key": "k"}
    found = train_alone(plan, FIRST, trainer(rounds), **given)
    assert rounds == list(range(1, trained + 1))
    assert round_of(found) == chosen
    assert same(train_alone(plan, FIRST, trainer(rounds), **given), found)
    assert len(rounds) == trained  # nothing is trained again

    # The rule is that of the run: its lines score the weights of the round before
    lines: list[dict[str, Any]] = []
    for number in range(1, plan.rounds + 1):
        estimate = 0.5 if number == 1 else areas[number - 2]
        lines.append({"round": number, "validation": {"auc": {"estimate": estimate}}})
        if out_of_patience(lines, patience):
            break
    assert len(lines) == trained
    last = Estimate(areas[trained - 1], 0.0, 1.0)
    assert best_rounds(lines, last)[0] == chosen


@pytest.mark.parametrize("dies_in", [2, 3, 4])
def test_a_killed_site_remembers_the_best_round(tmp_path: Path, dies_in: int) -> None:
    plan = RunConfig(rounds=6, min_cell=3, patience=2)
    given: dict[str, Any] = {
        "validate": judge({1: 0.8, 2: 0.7, 3: 0.6, 4: 0.5}), "state": tmp_path, "key": "k"
    }  # fmt: skip
    with pytest.raises(KilledError):
        train_alone(plan, FIRST, trainer([], dies_in), **given)
    rounds: list[int] = []
    assert round_of(train_alone(plan, FIRST, trainer(rounds), **given)) == 1
    assert rounds == list(range(dies_in, 5))


def test_without_both_classes_in_validation_the_last_round_counts(tmp_path: Path) -> None:
    plan = RunConfig(rounds=6, min_cell=3, patience=1)
    rounds: list[int] = []
    found = train_alone(plan, FIRST, trainer(rounds), validate=judge({}), state=tmp_path, key="k")
    assert rounds == [1, 2, 3, 4, 5, 6]
    assert round_of(found) == 6


def test_what_is_saved_is_apart_from_the_runs_own_memory(tmp_path: Path) -> None:
    for run in ("one", "two", "three"):
        site_memory.save(tmp_path, run, 1, FIRST, base=0)
    for key in ("a", "b", "c", "d"):
        train_alone(PLAN, FIRST, trainer([]), validate=unused, state=tmp_path, key=key)
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


def test_validation_cases_choose_the_round_of_the_model_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The scores of a round rank the cases at random; the best of the rounds is compared."""
    labels = (np.random.default_rng(3).random(90) < 0.4).astype(np.int64)
    plan = RunConfig(rounds=4, min_cell=3, patience=3)
    reply, rounds, seen = answer(monkeypatch, tmp_path, labels, plan=plan)
    alone = [roc_auc_score(labels, values) for head, values in seen.items() if head != "7.0"]
    assert rounds == [1, 2, 3, 4]
    assert len(alone) == 4
    assert reply.auc[0] == pytest.approx(max(alone), abs=1e-12)


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
