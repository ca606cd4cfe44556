"""A site's work for a run, without Flower: describe, train, evaluate.

A ``Site`` lives as long as its process, keeps the cohorts of the current plan resident, and holds
no other state: the answer to an order follows from the order, the weights that came with it, and
the cache.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from her2_client.cache import Cache, open_cache
from her2_client.cohort import Cohort, load_cohort, usable_modalities
from her2_client.policy import check_order, check_update, tell, tell_part, tell_parts
from her2_client.scoring import histograms, score
from her2_client.training import train_round
from her2_common import __version__
from her2_common.cases import SPLITS, Modality, Split
from her2_common.config import RunConfig, SiteConfig
from her2_common.errors import ConfigError, DataError
from her2_common.memory import keep_memory
from her2_common.metrics import ScoreHistogram
from her2_common.model import GROUPS, Group, MapModel, build_model, get_groups, preset, set_groups
from her2_common.wire import Counts, Flow, SiteDescription, SiteReply, TaskOrder

Notify = Callable[[str], None]


def select_device(device: str) -> torch.device:
    """The device of site.yaml; ``auto`` takes the GPU if there is one.

    Raises:
        ConfigError: cuda is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ConfigError("device: expected a CUDA device, got none", hint="set device: auto")
    return torch.device("cuda" if device != "cpu" and available else "cpu")


def make_deterministic(threads: int | None) -> None:
    """The same inputs give the same bits on this machine, whatever ran before."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    if threads is not None:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Answer:
    """What leaves: a document, and the arrays beside it."""

    document: SiteDescription | SiteReply
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    scores: Mapping[str, ScoreHistogram] = field(default_factory=dict)


class Site:
    """The installed her2-map of one hospital, ready to answer orders."""

    def __init__(self, config: SiteConfig, notify: Notify = lambda _: None) -> None:
        self.config = config
        self.notify = notify
        self.device = select_device(config.device)
        make_deterministic(config.threads)
        keep_memory()
        self._cache: Cache | None = None
        self._plan: RunConfig | None = None
        self._cohorts: dict[Split, Cohort] = {}
        self._usable: tuple[Modality, ...] = ()

    def answer(self, order: TaskOrder, weights: Mapping[str, np.ndarray]) -> Answer:
        """Carry out an order that the policy allows.

        Raises:
            PolicyError: the policy refuses the order or its result.
            DataError, CacheError, TrainingError: it cannot be carried out.
        """
        check_order(self.config.policy, order)
        self._prepare(order.plan)
        if order.task == "describe":
            return Answer(self._describe(order.plan))
        if order.task == "train":
            return self._train(order, weights)
        return self._evaluate(order, weights)

    # --- the cohort of a plan -------------------------------------------------------------------

    def _prepare(self, plan: RunConfig) -> None:
        """Load the cohorts of ``plan``, unless they are the ones at hand."""
        if plan == self._plan:
            return
        self._plan, self._cohorts = None, {}
        cache = open_cache(self.config.data.cache)
        layout = preset(plan.preset, **plan.layout)
        everything = {
            split: load_cohort(
                cache,
                split=split,
                label=plan.label,
                image_size=layout.image_size,
                volume_size=layout.volume_size,
                device=self.device,
            )
            for split in SPLITS
        }
        min_cases = self.config.policy.min_cases
        self._usable = usable_modalities(everything["train"], min_cases)
        self._cohorts = {
            split: cohort.restricted(self._usable) for split, cohort in everything.items()
        }
        if self._cohorts["train"].counts()["clinical"] < min_cases:
            # Untrained weights must not see the few inputs that are known.
            self._cohorts = {s: c.without_clinical() for s, c in self._cohorts.items()}
        if len(self._cohorts["train"]) < min_cases:
            raise DataError(
                f"expected at least {min_cases} training cases with a known {plan.label} label "
                f"(policy.min_cases), got {len(self._cohorts['train'])}",
                hint="see the table that her2-client ingest prints",
            )
        self._cache, self._plan = cache, plan

    def _groups(self) -> tuple[Group, ...]:
        counts = self._cohorts["train"].counts()
        return tuple(g for g in GROUPS if counts.get(g, 0) >= self.config.policy.min_cases)

    def _model(self, plan: RunConfig, weights: Mapping[str, np.ndarray]) -> MapModel:
        groups = self._groups()
        if set(weights) != set(groups):
            raise DataError(
                f"expected the groups {', '.join(groups)}, got {', '.join(sorted(weights))}"
            )
        model = build_model(plan.preset, plan.seed, **plan.layout)
        set_groups(model, weights)
        return model.to(self.device)

    # --- the three tasks ------------------------------------------------------------------------

    def _describe(self, plan: RunConfig) -> SiteDescription:
        # The run's report follows the stricter of the two limits, and so do we.
        limit = max(self.config.policy.min_cell, plan.min_cell)
        policy = self.config.policy.model_copy(update={"min_cell": limit})
        cohorts = self._cohorts
        combinations = sum((c.combinations() for c in cohorts.values()), Counter[str]())
        sizes = {split: len(cohort) for split, cohort in cohorts.items()}
        positives = {split: int(cohort.labels.sum()) for split, cohort in cohorts.items()}
        used = sum(sizes.values())
        in_table = self._cache.in_table if self._cache else 0
        left_out = in_table - used
        cases = tell_parts(policy, sizes)
        self.notify(f"described {used} cases, groups {', '.join(self._groups())}")
        return SiteDescription(
            site=self.config.name,
            version=__version__,
            groups=self._groups(),
            flow=Flow(
                in_table=tell_part(policy, in_table, in_table + left_out),
                accepted=tell(policy, used),
                left_out=tell(policy, left_out),
            ),
            cases=Counts(**cases),
            positives=Counts(**{s: tell_part(policy, positives[s], sizes[s]) for s in cohorts}),
            combinations=tell_parts(policy, dict(sorted(combinations.items()))),
        )

    def _train(self, order: TaskOrder, weights: Mapping[str, np.ndarray]) -> Answer:
        """Score the weights as they came on the validation cases, then train on from them."""
        cohort = self._cohorts["train"]
        groups = self._groups()
        model = self._model(order.plan, weights)
        scores, seconds = self._score(model, "val")
        result = train_round(
            model,
            cohort,
            order.plan,
            site=self.config.name,
            round_number=order.round,
        )
        counts: dict[str, int] = {group: cohort.counts()[group] for group in groups}
        check_update(self.config.policy, counts)
        loss = "" if result.loss is None else f", loss {result.loss:.3f}"
        self.notify(
            f"round {order.round}/{order.plan.rounds}: trained {result.steps} steps in "
            f"{result.seconds:.1f} s{loss}"
        )
        reply = SiteReply(
            site=self.config.name,
            task="train",
            round=order.round,
            split="val",
            counts=counts,
            loss=result.loss,
            steps=result.steps,
            seconds={"evaluate": seconds, "train": result.seconds},
            score_keys=tuple(sorted(scores)),
        )
        return Answer(reply, get_groups(model, groups), scores)

    def _evaluate(self, order: TaskOrder, weights: Mapping[str, np.ndarray]) -> Answer:
        scores, seconds = self._score(self._model(order.plan, weights), order.split)
        self.notify(f"scored the {order.split} cases in {seconds:.1f} s")
        reply = SiteReply(
            site=self.config.name,
            task="evaluate",
            round=order.round,
            split=order.split,
            seconds={"evaluate": seconds},
            score_keys=tuple(sorted(scores)),
        )
        return Answer(reply, scores=scores)

    def _score(self, model: MapModel, split: Split) -> tuple[dict[str, ScoreHistogram], float]:
        started = time.perf_counter()
        cohort = self._cohorts[split]
        result = histograms(score(model, cohort), cohort) if len(cohort) else {}
        return result, time.perf_counter() - started
