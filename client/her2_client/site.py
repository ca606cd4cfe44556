"""A site's work for a run, without Flower: describe, train, profile, evaluate, compare.

A ``Site`` lives as long as its process and keeps at hand what would else be loaded, made or sent
again: the cohorts and the model of the current plan, the weights of its last orders, and the memory
that it wrote last. The answer to an order follows from the order, the weights that it names, the
cache, and what the site kept on disk of the order's base round (contribution.py).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from her2_client.cache import SOURCES, Cache, index_digest, open_cache, read_index
from her2_client.cohort import Cohort, load_cohorts, residence
from her2_client.compare import compare
from her2_client.contribution import Held, contribute, keep, remembered, start_of
from her2_client.engine import make_deterministic, ready_model, select_device
from her2_client.local_objectives import Objective
from her2_client.policy import (
    check_order,
    check_tested,
    check_update,
    described,
)
from her2_client.response import Responder
from her2_client.scoring import Scores, histograms, profile, score
from her2_client.served import note_served
from her2_client.site_memory import Memory
from her2_client.training import TrainResult, train_round
from her2_common import __version__
from her2_common.cases import LABEL_SOURCES, NO_LABEL, SPLITS, LabelSource, Modality, Split
from her2_common.config import RunConfig, SiteConfig
from her2_common.encoding import Encoded
from her2_common.errors import CacheError, DataError, TrainingError
from her2_common.memory import keep_memory
from her2_common.metrics import ScoreHistogram
from her2_common.model import GROUPS, Group, MapModel, get_groups, preset, set_groups
from her2_common.novelty import Reference, counted
from her2_common.vectors import Vector
from her2_common.wire import (
    Comparison,
    Counts,
    Flow,
    LeftOut,
    SiteDescription,
    SiteReply,
    TaskOrder,
)

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Answer:
    """What leaves: a document, and the arrays beside it."""

    document: SiteDescription | SiteReply | Comparison
    update: Mapping[str, Vector] = field(default_factory=dict)
    scores: Mapping[str, ScoreHistogram] = field(default_factory=dict)
    moments: Mapping[Modality, np.ndarray] = field(default_factory=dict)
    distances: Mapping[Modality, ScoreHistogram] = field(default_factory=dict)


@dataclass(frozen=True)
class _Made:
    """A model that was made once for a plan: for each order its weights are written anew, and
    those ``drawn`` from the seed of groups that this site lacks, which weight decay may move."""

    plan: RunConfig
    drawn: Mapping[str, np.ndarray]
    model: MapModel


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
        self._held = Held()
        self._memory = Memory(config.state)
        self._spare: _Made | None = None  # for this order
        self._made: _Made | None = None  # in this order, for the next
        self.responder = Responder(config, self.device, notify)

    def answer(
        self,
        order: TaskOrder,
        weights: Mapping[str, np.ndarray],
        references: Mapping[Modality, Reference] | None = None,
        initial: Mapping[str, np.ndarray] | None = None,
        steps: Mapping[str, Encoded] | None = None,
    ) -> Answer:
        """Carry out an order that the policy allows.

        ``weights`` came whole, ``steps`` lead from what this site holds to what the order names.
        ``references`` come with an evaluation; how unlike them the cases are leaves only where the
        policy allows ``profile``. ``initial`` come with a comparison: the groups of the run's first
        weights that its seed does not give.

        Raises:
            PolicyError: the policy refuses the order or its result.
            StaleBaseError: this site does not hold the weights that the order builds on.
            DataError, CacheError, TrainingError, CheckpointError: it cannot be carried out.
        """
        check_order(self.config.policy, order)
        if order.split == "test":
            check_tested(self.config.state, order)
        try:
            return self._answer(order, weights, references, initial, steps)
        except (DataError, CacheError, TrainingError):
            self._plan = None  # the engineer may mend the cache: it is read anew next time
            raise

    def _answer(
        self,
        order: TaskOrder,
        weights: Mapping[str, np.ndarray],
        references: Mapping[Modality, Reference] | None,
        initial: Mapping[str, np.ndarray] | None,
        steps: Mapping[str, Encoded] | None,
    ) -> Answer:
        self._prepare(order.plan)
        if order.task == "describe":
            return Answer(self._describe(order.plan))
        self._spare, self._made = self._made or self._spare, None
        vectors = self._held.take(order, weights, steps or {})
        memory = remembered(self._memory, order)
        start = start_of(order, vectors, memory)
        if order.task == "train":
            return self._train(order, start, vectors, memory)
        if order.task == "profile":
            return self._profile(order, start)
        if order.task == "compare":
            return self._compare(order, start, memory, initial or {})
        return self._evaluate(order, start, references or {})

    # --- the cohort of a plan -------------------------------------------------------------------

    def _prepare(self, plan: RunConfig) -> None:
        """Load the cohorts of ``plan``, unless they are the ones at hand."""
        if plan == self._plan:
            return
        self._plan, self._cohorts = None, {}
        self._spare = self._made = None
        cache = open_cache(self.config.data.cache)
        layout = preset(plan.preset, **plan.layout)
        resident, told = residence(cache, layout, self.config.resident, self.device)
        self.notify(told)
        min_cases = self.config.policy.min_cases
        self._cohorts = load_cohorts(
            cache,
            plan,
            min_cases=min_cases,
            device=self.device,
            resident=SPLITS if resident else (),
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
        made, self._spare = self._spare, None
        if made is not None and made.plan == plan:
            set_groups(made.model, {**made.drawn, **weights})
        else:
            rows = self.config.rows_at_once
            model = ready_model(plan, weights, self.device, rows_at_once=rows)
            made = _Made(plan, get_groups(model, [g for g in GROUPS if g not in weights]), model)
        self._made = made
        return made.model

    # --- the five tasks -------------------------------------------------------------------------

    def _describe(self, plan: RunConfig) -> SiteDescription:
        policy, cohorts = self.config.policy, self._cohorts
        combinations = sum((c.combinations() for c in cohorts.values()), Counter[str]())
        sizes = {split: len(cohort) for split, cohort in cohorts.items()}
        used = sum(sizes.values())
        left_out = (self._cache.in_table if self._cache else 0) - used
        sources, reasons = self._label_sources(plan, left_out)
        counts = described(
            max(policy.min_cell, plan.min_cell),  # the run's report follows the stricter one, too
            left_out=left_out,
            cases=sizes,
            positives={split: int(cohort.labels.sum()) for split, cohort in cohorts.items()},
            combinations=dict(sorted(combinations.items())),
            label_sources=sources,
            left_out_for=reasons,
        )
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
            flow=Flow(**counts["flow"]),
            cases=Counts(**counts["cases"]),
            positives=Counts(**counts["positives"]),
            combinations=counts["combinations"],
            label_sources=counts["label_sources"],
            left_out_for=counts["left_out_for"],
            levels=levels,
        )

    def _label_sources(
        self, plan: RunConfig, left_out: int
    ) -> tuple[dict[LabelSource, int], dict[LeftOut, int]]:
        """Cases used, by where their label comes from, and cases left out, by the reason."""
        if self._cache is None:
            return {}, {}
        cache = self._cache
        used = {name for cohort in self._cohorts.values() for name in cohort.pseudonyms}
        counts: Counter[str] = Counter()
        for name, source in zip(cache.pseudonyms, cache.sources[plan.label], strict=True):
            if name in used or SOURCES[source] in NO_LABEL:
                counts[SOURCES[source]] += 1
        reasons: dict[LeftOut, int] = {r: counts[r] for r in NO_LABEL if counts[r]}
        reasons["no_image"] = cache.in_table - len(cache)
        reasons["few_cases"] = left_out - sum(reasons.values())
        return (
            {source: counts[source] for source in LABEL_SOURCES if counts[source]},
            {reason: cases for reason, cases in reasons.items() if cases},
        )

    def _train(
        self,
        order: TaskOrder,
        start: Mapping[str, np.ndarray],
        vectors: Mapping[str, np.ndarray],
        memory: Mapping[str, np.ndarray],
    ) -> Answer:
        """Score the weights as they came on the validation cases, then train on from them."""
        first = self._model(order.plan, start)
        scores, _, seconds = self._score(first, "val")
        counts: dict[Group, int] = {
            group: self._cohorts["train"].counts()[group] for group in self._groups()
        }
        check_update(self.config.policy, counts)
        used = (name for split in ("train", "val") for name in self._cohorts[split].pseudonyms)
        note_served(self.config.state, order.run, used)

        def train(
            weights: Mapping[str, np.ndarray], plan: RunConfig, number: int, objective: Objective
        ) -> tuple[dict[str, np.ndarray], TrainResult]:
            model = first if weights is start else None
            return self._trained(weights, plan, number, objective, model)

        done = contribute(order, start, vectors, memory, train)
        result = done.result
        keep(self._memory, order, done.memory)
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
        return Answer(reply, done.update, scores)

    def _trained(
        self,
        weights: Mapping[str, np.ndarray],
        plan: RunConfig,
        number: int,
        objective: Objective,
        model: MapModel | None = None,
    ) -> tuple[dict[str, np.ndarray], TrainResult]:
        """The groups after a round from ``weights``; a ``model`` that holds them is used up."""
        cohort, groups = self._cohorts["train"], self._groups()
        model = model or self._model(plan, weights)
        result = train_round(
            model, cohort, plan, site=self.config.name, round_number=number, objective=objective
        )
        model.zero_grad(set_to_none=True)  # the model stays, the memory of its gradients need not
        return get_groups(model, groups), result

    def _profile(self, order: TaskOrder, weights: Mapping[str, np.ndarray]) -> Answer:
        """Score the validation cases, and sum the moments of the training cases' features."""
        started = time.perf_counter()
        model, cohort = self._model(order.plan, weights), self._cohorts["train"]
        scores, _, _ = self._score(model, order.split)
        counts: dict[Group, int] = {group: cohort.counts()[group] for group in self._groups()}
        private = order.plan.strategy.private_groups  # its features are of no use to others
        sums = {
            m: total
            for m, total in profile(model, cohort).items()
            if m in counts and m not in private
        }
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

    def _compare(
        self,
        order: TaskOrder,
        start: Mapping[str, np.ndarray],
        memory: Mapping[str, np.ndarray],
        initial: Mapping[str, np.ndarray],
    ) -> Answer:
        """Train alone from the run's first weights and compare on the test cases."""
        given = {group: np.array(vector) for group, vector in initial.items()}
        return Answer(
            compare(
                order,
                self._cohorts["test"],
                self._cohorts["val"],
                site=self.config.name,
                min_cell=max(self.config.policy.min_cell, order.plan.min_cell),
                first=get_groups(ready_model(order.plan, given, self.device), self._groups()),
                federated=start,
                memory=memory,
                ready=lambda weights: self._model(order.plan, weights),
                train=self._trained,
                state=self.config.state,
                cases=index_digest(read_index(self.config.data.cache)),
                notify=self.notify,
            )
        )

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
