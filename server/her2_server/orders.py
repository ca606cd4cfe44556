"""The orders of a run: what a site is asked, and as much of the weights as it lacks.

Which vectors a site holds is known from the orders that it answered in this process, and from
nothing else: after a restart everything is sent whole once. What a run begins with is not sent if
its seed gives it. A site that holds less than is thought, or draws other weights from the seed,
says so, and is sent all of it (her2_common.broadcast).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import numpy as np
from flwr.app import Array, RecordDict

from her2_common import __version__
from her2_common.arrays import Arrays, arrays_record
from her2_common.broadcast import fingerprint
from her2_common.cases import Split
from her2_common.config import FederationConfig, Task
from her2_common.vectors import CONTROL
from her2_common.wire import SiteDescription, TaskOrder, document_record
from her2_server.checkpoint import Checkpoint


@dataclass(frozen=True)
class Model:
    """What orders are about: vectors by their fingerprints, and each site's base.

    ``whole`` reads a vector. ``step`` reads the encoded step to it from the one whose fingerprint
    is ``before[v]``; a vector that is not in ``before`` has none. ``drawn``: the seed gives them
    all, every site has them.
    """

    fingerprints: Mapping[str, str]
    whole: Callable[[str], np.ndarray]
    bases: Mapping[str, int]
    before: Mapping[str, str] = field(default_factory=dict)
    step: Callable[[str], np.ndarray] | None = None
    drawn: bool = False


def model_of(checkpoint: Checkpoint) -> Model:
    """The vectors of a checkpoint on disk, each read when an order needs it."""
    state, groups, memory = checkpoint.state, checkpoint.groups, checkpoint.memory
    return Model(
        state["fingerprints"],
        lambda name: groups[name] if name in groups else memory[name],
        state.get("bases", {}),
        {v: print_ for v, print_ in state.get("before", {}).items() if f"{v}.step" in memory},
        lambda name: memory[f"{name}.step"],
        drawn=checkpoint.round == 0 and state.get("initial") is None,
    )


def model_with(checkpoint: Checkpoint, groups: Mapping[str, np.ndarray]) -> Model:
    """Other weights, for the sites of a checkpoint: those of the release."""
    prints = {name: fingerprint(vector) for name, vector in groups.items()}
    return Model(prints, groups.__getitem__, checkpoint.state.get("bases", {}))


class Orders:
    """Writes the orders of one run; ``run_id`` tells it from others of its name."""

    def __init__(self, config: FederationConfig, run_id: str = "") -> None:
        self.config = config
        self.run_id = run_id
        self._held: dict[str, dict[str, str]] = {}  # site: {vector: fingerprint}
        self._named: dict[str, dict[str, str]] = {}  # the same, of the last order
        # Serialised vectors, as long as an order that holds them as arrays is under way.
        self._arrays: WeakValueDictionary[tuple[str, str], Array] = WeakValueDictionary()

    def describe(self) -> RecordDict:
        """The order to describe itself, the same for every site."""
        order = TaskOrder(
            task="describe", run=self.config.name, version=__version__, plan=self.config.run
        )
        return RecordDict({"order": document_record(order)})

    def work(
        self,
        task: Task,
        number: int,
        split: Split,
        model: Model,
        site: SiteDescription,
        *,
        whole: bool = False,
    ) -> RecordDict:
        """The order of a task on ``model``, of which a site gets what it can use and lacks; all of
        it with ``whole``, after it answered that it does not hold what was thought."""
        if whole:
            self._held.pop(site.site, None)
        base = model.bases.get(site.site, 0)
        named = {name: model.fingerprints[name] for name in self._wanted(task, site, base)}
        order = TaskOrder(
            task=task,
            run=self.config.name,
            run_id=self.run_id,
            version=__version__,
            round=number,
            base=base,
            split=split,
            weights=named,
            plan=self.config.run,
        )
        self._named[site.site] = named
        held = self._held.get(site.site, {})
        weights: dict[str, str] = {}
        steps: dict[str, str] = {}
        for name, print_ in named.items():
            if held.get(name) == print_ or (model.drawn and not whole):
                continue
            if model.step is not None and model.before.get(name, "") == held.get(name):
                steps[name] = print_
            else:
                weights[name] = print_
        record = RecordDict({"order": document_record(order)})
        if weights:
            record["weights"] = self._record("weights", weights, model.whole)
        if steps and model.step is not None:
            record["steps"] = self._record("steps", steps, model.step)
        return record

    def answered(self, site: str) -> None:
        """The site has carried out its last order: it holds the vectors that it named."""
        self._held[site] = self._held.get(site, {}) | self._named.get(site, {})

    def _wanted(self, task: Task, site: SiteDescription, base: int) -> list[str]:
        """The groups that a site can use; a private one only until it has its own."""
        strategy = self.config.run.strategy
        private = strategy.private_groups
        groups: list[str] = [g for g in site.groups if g not in private or base == 0]
        if task == "train" and strategy.local.name == "scaffold":
            groups += [group + CONTROL for group in site.groups if group not in private]
        return groups

    def _record(
        self, kind: str, prints: Mapping[str, str], read: Callable[[str], np.ndarray]
    ) -> Arrays:
        arrays: dict[str, Array] = {}
        for name, print_ in prints.items():
            array = self._arrays.get((kind, print_))
            arrays[name] = self._arrays[kind, print_] = array or Array(read(name))
        return arrays_record(arrays)
