"""Is the federation worth it here? Models of this site beside the shared one, on its test cases.

1. A site whose test cases are too few to be reported says so at once and trains nothing.
2. Train alone: from the weights that the run began with, by the run's own plan, on this site's
   training cases and no others. Where the run has ``patience``, the site's validation cases end
   this training and choose its round, by the rule that ends the run's. After each round the weights
   are saved under ``compare/`` in the site's state folder, so that a killed site goes on where it
   was and ends with the same bits.
3. Score the test cases with each model. They choose nothing: every model is finished before.
4. Work out the AUCs and DeLong's covariance here, for a paired comparison needs single cases, and
   single cases stay here.

Source of 4: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988) 837-845.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from her2_client import site_memory
from her2_client.cohort import Cohort
from her2_client.contribution import Train, Weights, personal_weights
from her2_client.local_objectives import OWN_LOSS
from her2_client.scoring import score
from her2_common import __version__
from her2_common.config import RunConfig
from her2_common.errors import CheckpointError
from her2_common.metrics import ScoreHistogram, auc
from her2_common.model import MapModel
from her2_common.response import delong
from her2_common.response.delong import Discrimination
from her2_common.wire import ComparedModel, Comparison, TaskOrder

Notify = Callable[[str], None]
Validate = Callable[[Weights], float | None]
"""Weights to their AUC on the site's validation cases; None where it has none."""

_AREAS: Final = "validation"
_BEST: Final = "best:"
"""What is saved beside the newest weights: every round's AUC, and the weights of the best round."""


def compare(
    order: TaskOrder,
    test: Cohort,
    val: Cohort,
    *,
    site: str,
    min_cell: int,
    first: Weights,
    federated: Weights,
    memory: Weights,
    ready: Callable[[Weights], MapModel],
    train: Train,
    state: Path,
    cases: str,
    notify: Notify = lambda _: None,
) -> Comparison:
    """The answer to ``order``: how the models rank the ``test`` cases.

    Args:
        order: of the task compare.
        test: this site's test cases.
        val: its validation cases.
        site: its name.
        min_cell: the fewest cases of a class that are reported.
        first: the weights that the run began with.
        federated: the run's final ones, private groups as this site kept them.
        memory: what the site kept of the run: personal models among it.
        ready: makes a model of weights.
        train: one round of training.
        state: the site's state folder.
        cases: a digest of the site's cache.
        notify: takes the lines of the site's own log.

    Raises:
        CheckpointError: a round cannot be saved.
        TrainingError: training broke down.
        DataError: a model gives no finite score.
    """
    started = time.perf_counter()
    labels = test.labels.cpu().numpy()
    if np.bincount(labels, minlength=2).min() < min_cell:
        notify("compare: too few test cases of a class; no model is trained alone")
        return Comparison(site=site, round=order.round)
    key = key_of(order.plan, site, cases, first)
    local = train_alone(
        order.plan,
        first,
        train,
        validate=lambda weights: _validation_auc(ready(weights), val),
        state=state,
        key=key,
        notify=notify,
    )
    named: dict[ComparedModel, Weights] = {"local": local, "federated": federated}
    own = personal_weights(order.plan, federated, memory, train)
    if own is not None:
        named["personal"] = own
    found = delong.at_centre({n: score(ready(w), test).fused for n, w in named.items()}, labels)
    if found is None:
        return Comparison(site=site, round=order.round)
    notify(_told(found))
    covariance = found.covariance
    return Comparison(
        site=site,
        round=order.round,
        models=tuple(named),
        negatives=found.negatives,
        positives=found.positives,
        auc=tuple(found.auc.tolist()),
        covariance=None if covariance is None else tuple(map(tuple, covariance.tolist())),
        seconds=time.perf_counter() - started,
    )


def key_of(plan: RunConfig, site: str, cases: str, first: Weights) -> str:
    """Names all that a model trained alone follows from: 32 hexadecimal digits."""
    text = json.dumps([__version__, site, cases, plan.model_dump(mode="json")])
    digest = hashlib.sha256(text.encode())
    for group, vector in sorted(first.items()):
        digest.update(group.encode() + np.ascontiguousarray(vector, "<f4").tobytes())
    return digest.hexdigest()[:32]


def train_alone(
    plan: RunConfig,
    first: Weights,
    train: Train,
    *,
    validate: Validate,
    state: Path,
    key: str,
    notify: Notify = lambda _: None,
) -> dict[str, np.ndarray]:
    """The groups ``first`` after training by ``plan``, going on from what is saved.

    Without ``plan.patience`` they are those of the last round. With it they are those of the round
    with the best validation AUC, of equal ones the earlier, and training ends as the run's does:
    when the weights of so many rounds were scored without a better one, the round that is trained
    meanwhile is the last. Where validation holds one class only, all rounds are trained and the
    last one counts. A saved round that is damaged is passed over: training from the one before
    gives its bits again.

    Raises:
        CheckpointError: a round cannot be saved.
        TrainingError: training broke down.
    """
    folder, rounds = state / "compare", plan.rounds
    alone = _newest(folder, key, dict(first), notify)
    if alone.done:
        notify(f"compare: going on after round {alone.done}/{rounds} of training alone")
    for number in range(alone.done + 1, rounds + 1):
        if plan.patience is not None and alone.waited >= plan.patience:
            break
        weights, result = train(alone.weights, plan, number, OWN_LOSS)
        area = None if plan.patience is None else validate(weights)
        alone = alone.after(weights, area)
        site_memory.save(folder, key, number, alone.as_arrays(), base=number - 1)
        loss = "" if result.loss is None else f", loss {result.loss:.3f}"
        said = "" if area is None else f", validation AUC {area:.3f}"
        notify(f"compare: round {number}/{rounds} alone in {result.seconds:.1f} s{loss}{said}")
    if alone.best:
        notify(f"compare: round {alone.best} of {alone.done} was the best alone on validation")
    return alone.chosen


@dataclass(frozen=True)
class _Alone:
    """Training alone so far: the newest weights, the validation AUC of every round (NaN where none
    was worked out), and the weights of the best round, if there is one."""

    weights: dict[str, np.ndarray]
    areas: tuple[float, ...] = ()
    chosen_before: dict[str, np.ndarray] | None = None

    @property
    def done(self) -> int:
        return len(self.areas)

    @property
    def best(self) -> int:
        """The best of the rounds that were scored, of equal ones the earlier; 0: none was."""
        return self._best_of(self.done)

    def _best_of(self, rounds: int) -> int:
        known = [-1.0 if np.isnan(area) else area for area in self.areas[:rounds]]
        return known.index(max(known)) + 1 if max(known, default=-1.0) >= 0 else 0

    @property
    def waited(self) -> int:
        """How many rounds after the best one were scored when the newest had been trained.

        A run scores the weights of a round in the next one, and so the newest do not count yet.
        """
        best = self._best_of(self.done - 1)
        return self.done - 1 - best if best else 0

    @property
    def chosen(self) -> dict[str, np.ndarray]:
        return self.weights if self.chosen_before is None else self.chosen_before

    def after(self, weights: dict[str, np.ndarray], area: float | None) -> _Alone:
        """With another round."""
        new = _Alone(weights, (*self.areas, float("nan") if area is None else area))
        if new.best and new.best != new.done:
            return replace(new, chosen_before=self.chosen)
        return new

    def as_arrays(self) -> dict[str, np.ndarray]:
        kept = {f"{_BEST}{g}": v for g, v in (self.chosen_before or {}).items()}
        return {**self.weights, **kept, _AREAS: np.array(self.areas)}

    @classmethod
    def of_arrays(cls, arrays: dict[str, np.ndarray]) -> _Alone:
        areas = arrays.pop(_AREAS)
        best = {g.removeprefix(_BEST): v for g, v in arrays.items() if g.startswith(_BEST)}
        weights = {g: v for g, v in arrays.items() if not g.startswith(_BEST)}
        return cls(weights, tuple(areas.tolist()), best or None)


def _newest(folder: Path, key: str, first: dict[str, np.ndarray], notify: Notify) -> _Alone:
    """What the newest sound round that is saved holds; ``first`` if there is none."""
    for number in reversed(site_memory.rounds(folder, key)):
        try:
            return _Alone.of_arrays(site_memory.load(folder, key, number))
        except CheckpointError as error:
            notify(f"compare: passed over: {error}")
    return _Alone(first)


def _validation_auc(model: MapModel, val: Cohort) -> float | None:
    """How the model ranks the validation cases; None without both classes."""
    labels = val.labels.cpu().numpy()
    if len(np.unique(labels)) < 2:
        return None
    return auc(ScoreHistogram.from_scores(score(model, val).fused, labels))


def _told(found: Discrimination) -> str:
    """What the site's own log says."""
    pairs = zip(found.names, found.auc, strict=True)
    areas = ", ".join(f"{name} {area:.3f}" for name, area in pairs)
    gap = delong.compare(found, "federated", "local").difference
    return (
        f"compare: AUC on {found.negatives + found.positives} test cases: {areas}; federated less "
        f"local {gap.estimate:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"
    )
