"""One step of all groups, a block at a time.

A change comes as blocks, (slice, values) pairs in rising order that cover the group once: the
mean of the accumulator in one block or in many, or ``robust.robust_changes`` as it reads its
spool. Memory beyond the arguments: the new weights, what a first step remembers, and a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

import numpy as np

from her2_common.strategy import ServerStep
from her2_server.strategies.optimisers import State, optimise

Changes = Iterable[tuple[slice, np.ndarray]]
States = Mapping[str, State]


class Sliced(Protocol):
    """A float32 vector, or what gives its slices: it need not be in memory as a whole."""

    @property
    def size(self) -> int: ...

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


def parts(size: int, length: int) -> Iterator[slice]:
    """0 to ``size`` in slices of ``length``; the last may be shorter."""
    for begin in range(0, size, length):
        yield slice(begin, min(begin + length, size))


def step_group(
    start: Sliced, changes: Changes, state: State, settings: ServerStep
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The group's new weights (n,) float32 and its new state, by the optimiser of ``settings``.

    The new state takes the place of ``state`` in its arrays. The same bits however ``changes`` is
    cut into blocks.

    Raises:
        ValueError: the blocks leave something out, overlap, or come in another order.
    """
    new = np.empty(start.size, np.float32)
    kept = dict(state)
    done = 0
    for part, change in changes:
        if part.start != done or change.shape != (part.stop - part.start,):
            raise ValueError(f"expected a block at {done}, got {change.shape} at {part}")
        before = {name: array[part] for name, array in state.items()}
        new[part], after = optimise(start[part], change, before, settings)
        for name, array in after.items():
            if name not in kept:
                kept[name] = np.empty(start.size, array.dtype)
            kept[name][part] = array
        done = part.stop
    if done != start.size:
        raise ValueError(f"expected {start.size} values, got {done}")
    return new, kept


def step(
    start: Mapping[str, np.ndarray],
    changes: Mapping[str, Changes],
    states: States,
    settings: ServerStep,
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """All groups' new weights and states.

    A group without changes, which nobody trained, keeps both to the bit: momentum does not move
    weights that no case of the round has seen.

    Raises:
        ValueError: a change of an unknown group, or what ``step_group`` raises.
    """
    if unknown := changes.keys() - start.keys():
        raise ValueError(f"expected changes of {sorted(start)}, got {sorted(unknown)}")
    new: dict[str, np.ndarray] = {}
    kept: dict[str, dict[str, np.ndarray]] = {}
    for group, values in start.items():
        if group in changes:
            state = {name: array.copy() for name, array in states.get(group, {}).items()}
            new[group], kept[group] = step_group(values, changes[group], state, settings)
        else:
            new[group], kept[group] = values.copy(), dict(states.get(group, {}))
    return new, kept


def pack(states: States) -> dict[str, np.ndarray]:
    """States as flat tensors for a checkpoint, named ``group.name`` (``mg.velocity``)."""
    return {f"{g}.{name}": array for g, state in states.items() for name, array in state.items()}


def unpack(tensors: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The states that ``pack`` packed. Groups without memory are left out; they need none."""
    states: dict[str, dict[str, np.ndarray]] = {}
    for key, array in tensors.items():
        group, name = key.split(".", 1)
        states.setdefault(group, {})[name] = array
    return states
