"""A site's work for a run, without Flower: describe, train, profile, evaluate.

A ``Site`` lives as long as its process, keeps the cohorts of the current plan resident, and holds
no other state: the answer to an order follows from the order, the weights that came with it, and
the cache.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from her2_client.cache import Cache, open_cache
from her2_client.cohort import Cohort, load_cohorts, residence
from her2_client.engine import check_devices, make_deterministic, ready_model, select_device
from her2_client.parallel import Crew
from her2_client.policy import check_order, check_update, tell, tell_part, tell_parts
from her2_client.scoring import Scores, histograms, profile, score
from her2_client.training import TrainResult, train_round
from her2_common import __version__
from her2_common.cases import SPLITS, Modality, Split
from her2_common.config import RunConfig, SiteConfig
from her2_common.errors import DataError
from her2_common.memory import keep_memory
from her2_common.metrics import ScoreHistogram
from her2_common.model import GROUPS, Group, MapModel, get_groups, preset
from her2_common.novelty import Reference, counted
from her2_common.wire import Counts, Flow, SiteDescription, SiteReply, TaskOrder

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Answer:
    """What leaves: a document, and the arrays beside it."""

    document: SiteDescription | SiteReply
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    scores: Mapping[str, ScoreHistogram] = field(default_factory=dict)
    moments: Mapping[Modality, np.ndarray] = field(default_factory=dict)
    distances: Mapping[Modality, ScoreHistogram] = field(default_factory=dict)


class Site:
    """The installed her2-map of one hospital, ready to answer orders."""

    def __init__(self, config: SiteConfig, notify: Notify = lambda _: None) -> None:
        self.config = config
        self.notify = notify
        self.device = select_device(config.device)
        make_deterministic(config.threads)
        keep_memory()
        check_devices(config.devices, self.device)
        self.crew = Crew(config) if config.devices > 1 else None
        self._cache: Cache | None = None
        self._plan: RunConfig | None = None
        self._cohorts: dict[Split, Cohort] = {}

    def answer(
        self,
        order: TaskOrder,
        weights: Mapping[str, np.ndarray],
        references: Mapping[Modality, Reference] | None = None,
    ) -> Answer:
        """Carry out an order that the policy allows.

        ``references`` come with an evaluation; how unlike them the cases are leaves only where the
        policy allows ``profile``.

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
        if order.task == "profile":
            return self._profile(order, weights)
        return self._evaluate(order, weights, references or {})

    def close(self) -> None:
        """End the helper processes, if there are any; the next order starts them anew."""
        if self.crew is not None:
            self.crew.stop()

    # --- the cohort of a plan -------------------------------------------------------------------

    def _prepare(self, plan: RunConfig) -> None:
        """Load the cohorts of ``plan``, unless they are the ones at hand."""
        if plan == self._plan:
            return
        self._plan, self._cohorts = None, {}
        cache = open_cache(self.config.data.cache)
        layout = preset(plan.preset, **plan.layout)
        resident, told = residence(cache, layout, self.config.resident, self.device)
        self.notify(told)
        # With several devices, helper processes hold the training images.
        kept = SPLITS if self.crew is None else tuple(s for s in SPLITS if s != "train")
        min_cases = self.config.policy.min_cases
        self._cohorts = load_cohorts(
            cache,
            plan,
            min_cases=min_cases,
            device=self.device,
            resident=kept if resident else (),
        )
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
        return ready_model(
            plan,
            weights,
            self.device,
            rows_at_once=self.config.rows_at_once,
            compiled=self.config.compile,
        )

    # --- the four tasks -------------------------------------------------------------------------

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
        levels = plan.her2_levels == 3 and bool((cohorts["train"].low >= 0).any())
        if plan.her2_levels == 3 and not levels:
            self.notify(
                f"fewer than {policy.min_cases} negatives with raw IHC: this site trains positive "
                "against negative, not HER2-low against HER2-zero"
            )
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
            levels=levels,
        )

    def _train(self, order: TaskOrder, weights: Mapping[str, np.ndarray]) -> Answer:
        """Score the weights as they came on the validation cases, then train on from them."""
        cohort = self._cohorts["train"]
        groups = self._groups()
        model = self._model(order.plan, weights)
        scores, _, seconds = self._score(model, "val")
        result = self._train_round(model, cohort, order)
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

    def _train_round(self, model: MapModel, cohort: Cohort, order: TaskOrder) -> TrainResult:
        if self.crew is not None:
            return self.crew.train(
                model, cohort, order.plan, round_number=order.round, groups=self._groups()
            )
        return train_round(
            model,
            cohort,
            order.plan,
            site=self.config.name,
            round_number=order.round,
        )

    def _profile(self, order: TaskOrder, weights: Mapping[str, np.ndarray]) -> Answer:
        """Score the validation cases, and sum the moments of the training cases' features."""
        started = time.perf_counter()
        model, cohort = self._model(order.plan, weights), self._cohorts["train"]
        scores, _, _ = self._score(model, order.split)
        counts: dict[str, int] = {group: cohort.counts()[group] for group in self._groups()}
        sums = {m: total for m, total in profile(model, cohort).items() if m in counts}
        check_update(self.config.policy, counts)
        seconds = time.perf_counter() - started
        self.notify(f"profiled the training cases in {seconds:.1f} s")
        reply = SiteReply(
            site=self.config.name,
            task="profile",
            round=order.round,
            split=order.split,
            counts=counts,
            seconds={"evaluate": seconds},
            score_keys=tuple(sorted(scores)),
        )
        return Answer(reply, scores=scores, moments=sums)

    def _evaluate(
        self,
        order: TaskOrder,
        weights: Mapping[str, np.ndarray],
        references: Mapping[Modality, Reference],
    ) -> Answer:
        model = self._model(order.plan, weights)
        if "profile" not in self.config.policy.allowed_tasks:
            references = {}
        scores, distances, seconds = self._score(model, order.split, references)
        self.notify(f"scored the {order.split} cases in {seconds:.1f} s")
        reply = SiteReply(
            site=self.config.name,
            task="evaluate",
            round=order.round,
            split=order.split,
            seconds={"evaluate": seconds},
            score_keys=tuple(sorted(scores)),
            distance_keys=tuple(sorted(distances)),
        )
        return Answer(reply, scores=scores, distances=distances)

    def _score(
        self,
        model: MapModel,
        split: Split,
        references: Mapping[Modality, Reference] | None = None,
    ) -> tuple[dict[str, ScoreHistogram], dict[Modality, ScoreHistogram], float]:
        """Histograms of the scores and of the unlikeness of a split, and the seconds they took."""
        started = time.perf_counter()
        cohort = self._cohorts[split]
        scores = score(model, cohort, references) if len(cohort) else Scores(np.empty(0), {})
        counts = histograms(scores, cohort) if len(cohort) else {}
        distances = {m: counted(values) for m, values in scores.unlike.items()}
        return counts, distances, time.perf_counter() - started
