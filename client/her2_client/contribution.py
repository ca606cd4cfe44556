"""A site's part of a training round: from the weights that an order names to what leaves.

1. ``Held.take``: the vectors of the order, from what the site holds, what came with it and, in
   the first round, the seed.
2. ``remembered``: the memory of the order's base (her2_client.site_memory).
3. ``start_of``: the shared groups as they came, the private ones as this site kept them.
4. ``contribute``: train with the run's objective, and Ditto's personal model beside it; round the
   changes of what leaves, with what earlier roundings left over.
5. ``keep``: the round's memory, on disk before the reply leaves.

A repeated order gives the same bits: all of it follows from the order, the vectors that it names
and the memory of its base.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from her2_client.local_objectives import OWN_LOSS, Objective, leaving, weights_to_use
from her2_client.site_memory import Memory
from her2_client.training import TrainResult
from her2_common.broadcast import fingerprint, follow
from her2_common.config import RunConfig
from her2_common.encoding import Encoded, encode
from her2_common.errors import StaleBaseError, UpdateError
from her2_common.model import build_model, get_groups
from her2_common.seeds import seed_for
from her2_common.strategy import Ditto, FedProx, FineTuning, Scaffold
from her2_common.vectors import CONTROL, Form, Vector, up_forms
from her2_common.wire import TaskOrder

Weights = Mapping[str, np.ndarray]

Train = Callable[[Weights, RunConfig, int, Objective], tuple[dict[str, np.ndarray], TrainResult]]
"""``train(weights, plan, round, objective)``: the groups after training from ``weights``."""


# --- 1. to 3. -----------------------------------------------------------------------------------


class Held:
    """The vectors that this process holds of the run's model; a restart empties it."""

    def __init__(self) -> None:
        self._vectors: dict[str, tuple[str, np.ndarray]] = {}  # by name: fingerprint, float32 (n,)

    def take(
        self, order: TaskOrder, whole: Weights, steps: Mapping[str, Encoded]
    ) -> dict[str, np.ndarray]:
        """The vectors that an order names by their fingerprints; they are held from now on.

        ``whole`` and ``steps`` came with the order; what a run begins with, its seed gives. How a
        vector came changes no bit of it. Arrays that were returned before may have moved.

        Raises:
            StaleBaseError: a vector did not come, and is not held, or its step builds on another.
            UpdateError: what came is not what the order names ("wrong weights"), or not readable.
        """
        taken: dict[str, tuple[str, np.ndarray]] = {}
        drawn: dict[str, np.ndarray] | None = None
        for name, print_ in order.weights.items():
            at_hand = self._vectors.get(name)
            if at_hand is not None and at_hand[0] == print_:
                taken[name] = at_hand
            elif name in whole:
                if fingerprint(whole[name]) != print_:
                    raise UpdateError(
                        f"{name}: expected the weights that the order names, got others",
                        reason="wrong weights",
                    )
                taken[name] = (print_, np.array(whole[name]))
            elif name in steps and at_hand is not None:
                try:
                    taken[name] = (print_, follow(at_hand[1], steps[name], print_))
                except StaleBaseError:
                    del self._vectors[name]  # it was moved in place
                    raise
                self._vectors[name] = taken[name]  # whatever becomes of the next one
            else:
                drawn = drawn_by(order) if drawn is None else drawn
                if name not in drawn or fingerprint(drawn[name]) != print_:
                    raise StaleBaseError(
                        f"{name}: expected weights {print_[:12]}... here, got others"
                    )
                taken[name] = (print_, drawn[name])
        self._vectors |= taken
        return {name: vector for name, (_, vector) in taken.items()}


def drawn_by(order: TaskOrder) -> dict[str, np.ndarray]:
    """The vectors that an order of the first round names, as the plan's seed draws them here; {} in
    later rounds. Another release of torch may draw others: their fingerprint tells."""
    if order.round != 1:
        return {}
    names = [name.removesuffix(CONTROL) for name in order.weights]
    model = build_model(order.plan.preset, order.plan.seed, **order.plan.layout)
    groups = get_groups(model, names)
    return groups | {group + CONTROL: np.zeros_like(groups[group]) for group in names}


def remembered(memory: Memory, order: TaskOrder) -> dict[str, np.ndarray]:
    """What the site kept in the order's base round; {} if the order needs nothing of it.

    The weights of an earlier round may be the final ones (run.patience), whose memory is gone: so
    it is only opened for what needs it.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    strategy = order.plan.strategy
    needed = {
        "train": keeps_memory(order.plan),
        "compare": isinstance(strategy.personal, Ditto) or bool(strategy.private_groups),
    }.get(order.task, bool(strategy.private_groups))
    return memory.load(_run(order), order.base) if needed else {}


def _run(order: TaskOrder) -> str:
    """Under which name the memory of the order's run is kept."""
    return f"{order.run}-{order.run_id}" if order.run_id else order.run


def keeps_memory(plan: RunConfig) -> bool:
    """Does a site keep anything between the rounds of this run?"""
    strategy = plan.strategy
    return (
        plan.compression.up != "float32"
        or isinstance(strategy.local, Scaffold)
        or isinstance(strategy.personal, Ditto)
        or bool(strategy.private_groups)
    )


def start_of(order: TaskOrder, vectors: Weights, memory: Weights) -> dict[str, np.ndarray]:
    """The groups that the site trains or scores with."""
    groups = {name: vector for name, vector in vectors.items() if not name.endswith(CONTROL)}
    return weights_to_use(groups, _named(memory, "private"), order.plan.strategy.private_groups)


def _named(memory: Weights, kind: str) -> dict[str, np.ndarray]:
    """The vectors of one kind in a memory, whose names are ``kind:vector``."""
    prefix = f"{kind}:"
    return {n.removeprefix(prefix): v for n, v in memory.items() if n.startswith(prefix)}


# --- 4. and 5. ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contribution:
    """``update`` leaves; ``memory`` is kept until the next round."""

    update: dict[str, Vector]
    memory: dict[str, np.ndarray]
    result: TrainResult


def contribute(
    order: TaskOrder, start: Weights, vectors: Weights, memory: Weights, train: Train
) -> Contribution:
    """Train a round from ``start`` and make up what leaves and what stays.

    Raises:
        TrainingError: training broke down.
        UpdateError: a change cannot be encoded.
    """
    plan, strategy = order.plan, order.plan.strategy
    shared = leaving(start, strategy.private_groups)
    controls = _controls(plan, shared, vectors, memory)
    pull = strategy.local.mu if isinstance(strategy.local, FedProx) else 0.0
    anchor = {group: start[group] for group in shared}
    trained, result = train(start, plan, order.round, Objective(pull, anchor, controls))
    changes = {group: trained[group] - start[group] for group in shared}
    kept = {f"private:{g}": trained[g] for g in start if g not in shared}
    for group, (_, before) in controls.items():
        changes[group + CONTROL] = result.controls[group] - before
        kept[f"control:{group}"] = result.controls[group]
    update: dict[str, Vector] = {}
    for name, change in changes.items():
        update[name], left = _rounded(change, up_forms(plan)[name], memory.get(f"residual:{name}"))
        if left is not None:
            kept[f"residual:{name}"] = left
    if isinstance(strategy.personal, Ditto):
        own = weights_to_use(start, _named(memory, "personal"), start)
        pulled = Objective(strategy.personal.strength, start)
        own, _ = train(own, plan, order.round, pulled)
        kept |= {f"personal:{group}": vector for group, vector in own.items()}
    return Contribution(update, kept, result)


def _controls(
    plan: RunConfig, shared: tuple[str, ...], vectors: Weights, memory: Weights
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """SCAFFOLD's c and c_k by group; {} with another objective."""
    if not isinstance(plan.strategy.local, Scaffold):
        return {}
    own = _named(memory, "control")
    return {
        group: (vectors[group + CONTROL], own.get(group, np.zeros_like(vectors[group + CONTROL])))
        for group in shared
    }


def _rounded(
    change: np.ndarray, form: Form, residual: np.ndarray | None
) -> tuple[Vector, np.ndarray | None]:
    if form.kind == "float32":
        return change, None
    return encode(change, form.kind, form.share, residual, out=change)


def keep(memory: Memory, order: TaskOrder, kept: Weights) -> None:
    """Write the round's memory, if the run has the site keep one.

    Raises:
        CheckpointError: it cannot be written.
    """
    if keeps_memory(order.plan):
        memory.save(_run(order), order.round, kept, base=order.base, kept=order.plan.kept_rounds)


# --- a model of the site's own --------------------------------------------------------------------


def personal_weights(
    plan: RunConfig, start: Weights, memory: Weights, train: Train
) -> dict[str, np.ndarray] | None:
    """The weights of this site's personal model after the run, whose final groups are ``start``;
    None if the run's strategy has none.

    Ditto's are in the memory of the site's last base. Fine-tuning trains now: by the run's plan,
    with a share of its learning rate that falls as in one round.

    Raises:
        TrainingError: training broke down.
    """
    personal = plan.strategy.personal
    if isinstance(personal, Ditto):
        return weights_to_use(start, _named(memory, "personal"), start)
    if isinstance(personal, FineTuning):
        tuning = plan.model_copy(
            update={
                "rounds": 1,
                "warmup_rounds": 0.0,
                "local_epochs": personal.epochs,
                "learning_rate": plan.learning_rate * personal.rate_share,
                "seed": seed_for(plan.seed, "fine-tuning"),
            }
        )
        objective = Objective(tuned=personal.groups) if personal.groups else OWN_LOSS
        return train(start, tuning, 1, objective)[0]
    return None
