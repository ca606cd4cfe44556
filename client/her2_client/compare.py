"""Is the federation worth it here? Models of this site beside the shared one, on its test cases.

1. A site whose test cases are too few to be told of says so at once and trains nothing.
2. Train alone: from the weights that the run began with, by the run's own plan, on this site's
   training cases and no others. After each round the weights are saved under ``compare/`` in the
   site's state folder, so that a killed site goes on where it was and ends with the same bits.
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
from pathlib import Path

import numpy as np

from her2_client import site_memory
from her2_client.cohort import Cohort
from her2_client.contribution import Train, Weights, personal_weights
from her2_client.local_objectives import OWN_LOSS
from her2_client.scoring import score
from her2_common import __version__
from her2_common.config import RunConfig
from her2_common.errors import CheckpointError
from her2_common.model import MapModel
from her2_common.response import delong
from her2_common.response.delong import Discrimination
from her2_common.wire import ComparedModel, Comparison, TaskOrder

Notify = Callable[[str], None]


def compare(
    order: TaskOrder,
    test: Cohort,
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
        site: its name.
        min_cell: the fewest cases of a class that are told of.
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
    local = train_alone(order.plan, first, train, state=state, key=key, notify=notify)
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
    state: Path,
    key: str,
    notify: Notify = lambda _: None,
) -> dict[str, np.ndarray]:
    """The groups ``first`` after all rounds of ``plan``, going on from what is saved.

    A saved round that is damaged is passed over: training from the one before gives its bits again.

    Raises:
        CheckpointError: a round cannot be saved.
        TrainingError: training broke down.
    """
    folder, rounds = state / "compare", plan.rounds
    done, weights = _newest(folder, key, dict(first), notify)
    if done:
        notify(f"compare: going on after round {done}/{rounds} of training alone")
    for number in range(done + 1, rounds + 1):
        weights, result = train(weights, plan, number, OWN_LOSS)
        site_memory.save(folder, key, number, weights, base=number - 1)
        loss = "" if result.loss is None else f", loss {result.loss:.3f}"
        notify(f"compare: round {number}/{rounds} alone in {result.seconds:.1f} s{loss}")
    return weights


def _newest(
    folder: Path, key: str, first: dict[str, np.ndarray], notify: Notify
) -> tuple[int, dict[str, np.ndarray]]:
    """The newest sound round that is saved, and its weights; 0 and ``first`` if there is none."""
    for number in reversed(site_memory.rounds(folder, key)):
        try:
            return number, site_memory.load(folder, key, number)
        except CheckpointError as error:
            notify(f"compare: passed over: {error}")
    return 0, first


def _told(found: Discrimination) -> str:
    """What the site's own log says."""
    pairs = zip(found.names, found.auc, strict=True)
    areas = ", ".join(f"{name} {area:.3f}" for name, area in pairs)
    gap = delong.compare(found, "federated", "local").difference
    return (
        f"compare: AUC on {found.negatives + found.positives} test cases: {areas}; federated less "
        f"local {gap.estimate:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"
    )
