"""A run from its first message to its report.

1. Wait until the sites are online: all of them, or a quorum once start_timeout has passed.
2. Ask each to describe itself: which parameter groups it can train, how many cases it has.
3. Each round, send every site only its groups. It scores them on its validation cases, trains on,
   and replies; each reply is vetted and folded in as it comes. The round ends when all have
   answered or at round_timeout, and counts if a quorum was accepted. Then: checkpoint, metrics.
4. After the last round: score the final weights on validation, for the temperature, and sum the
   moments of the training features; score the calibrated weights on validation and freeze the
   threshold and the limits there; and only then score them, once, on the test split.
5. Write summary.json, the release and the report.

A run that is stopped anywhere goes on from its newest checkpoint (``resume``) and gives the same
weights: sites keep no training state, and sums do not depend on arrival.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from flwr.app import RecordDict
from flwr.serverapp import Grid

from her2_common import __version__
from her2_common.cases import Split
from her2_common.config import FederationConfig, Task
from her2_common.errors import RunError, UpdateError
from her2_common.metrics import ScoreHistogram
from her2_common.model import GROUPS, build_model, get_groups, preset, preset_sizes
from her2_common.wire import (
    MESSAGE_TYPES,
    SiteDescription,
    SiteReply,
    TaskOrder,
    document_record,
    read_document,
    read_moments,
    read_scores,
    read_weights,
    references_record,
    weights_record,
)
from her2_server import checkpoint
from her2_server.aggregation import Accumulator
from her2_server.checkpoint import Checkpoint
from her2_server.closing import (
    Evaluation,
    MomentSum,
    Settled,
    freeze_limits,
    freeze_threshold,
    pooled_fused,
    settle,
)
from her2_server.exchange import (
    Outcome,
    check_counts,
    check_reply,
    check_scores,
    exchange,
    online_sites,
    require_quorum,
)
from her2_server.initial import read_initial
from her2_server.progress import metrics_line, publishable_auc, told
from her2_server.run_folder import RunFolder
from her2_server.summary import Totals, finish

ONLINE_POLL_SECONDS: Final = 0.5

DECLINED: Final = "site error: policy"
"""The reason of an outcome whose site does not allow the task."""

Notify = Callable[[str], None]
Scores = dict[str, dict[str, ScoreHistogram]]


class Coordinator:
    """Conducts one run over ``grid``; its whole memory is the run's folder."""

    def __init__(self, grid: Grid, folder: RunFolder, notify: Notify = lambda _: None) -> None:
        self.grid = grid
        self.folder = folder
        self.notify = notify
        self.config: FederationConfig = folder.load_config()
        self.plan = self.config.run
        self.sizes = preset_sizes(self.plan.preset, **self.plan.layout)
        self.sites: dict[str, SiteDescription] = {}
        self.initial: dict[str, Any] | None = None
        self.totals = Totals()
        self.started = datetime.now(UTC)

    def run(self) -> None:
        """Conduct the run from its newest checkpoint (or from the start) to its report.

        Raises:
            RunError: a quorum is not reached; the run can be resumed.
        """
        started = time.perf_counter()
        current = self._begin()
        self._wait_for_sites()
        self._describe()
        while current.round < self.plan.rounds:
            current = self._round(current)
        settled = self._profile(current)
        validation = self._evaluate(current, settled, "val")
        threshold = freeze_threshold(pooled_fused(validation.scores))
        limits = freeze_limits(settled, validation.distances)
        test = self._evaluate(current, settled, "test")
        self.totals.seconds["total"] += time.perf_counter() - started
        finish(
            self.folder,
            current,
            settled,
            sites=self.sites,
            validation=validation,
            test=test,
            threshold=threshold,
            limits=limits,
            totals=self.totals,
            started=self.started,
        )

    # --- 1. and 2. ------------------------------------------------------------------------------

    def _begin(self) -> Checkpoint:
        """The newest sound checkpoint; in a new run, the initial weights as round 0."""
        if any(self.folder.rounds.glob("[0-9]*")):
            current = checkpoint.latest(self.folder.rounds, self.notify)
            if current.state.get("config_sha256") != self.folder.config_hash():
                raise RunError(
                    f"{self.folder.path}: its checkpoints belong to another federation.yaml"
                )
            self.folder.write_metrics(self.folder.read_metrics(up_to=current.round))
            self.initial = current.state.get("initial")
            if current.round:
                self.notify(f"going on after round {current.round}/{self.plan.rounds}")
            return current
        model = build_model(self.plan.preset, self.plan.seed, **self.plan.layout)
        groups = get_groups(model, GROUPS)
        if (release := read_initial(self.config)) is not None:
            groups = {**groups, **release.taken}
            self.initial = release.record
            self.notify(str(release))
        initial = Checkpoint(0, groups, self._state())
        checkpoint.save(self.folder.rounds, initial)
        return initial

    def _state(self) -> dict[str, Any]:
        return {
            "run": self.config.name,
            "version": __version__,
            "config_sha256": self.folder.config_hash(),
            "preset": self.plan.preset,
            "seed": self.plan.seed,
            "initial": self.initial,
        }

    def _keys(self) -> dict[str, str]:
        return {site.name: site.public_key for site in self.config.sites}

    def _wait_for_sites(self) -> None:
        deadline = time.monotonic() + self.plan.start_timeout
        told: set[str] = set()
        while True:
            online = set(online_sites(self.grid, self._keys()))
            for name in sorted(online - told):
                self.notify(f"{name} is online ({len(online)}/{len(self.config.sites)})")
            told |= online
            missing = [s.name for s in self.config.sites if s.name not in online]
            if not missing:
                return
            if time.monotonic() >= deadline:
                if len(online) >= self.config.quorum:
                    self.notify(f"beginning without {', '.join(missing)}")
                    return
                raise RunError(
                    f"expected {self.config.quorum} sites within {self.plan.start_timeout:.0f} s, "
                    f"got {len(online)}; not online: {', '.join(missing)}",
                    hint=f"start them (her2-client start), then: her2-server resume "
                    f"{self.folder.path}",
                )
            time.sleep(ONLINE_POLL_SECONDS)

    def _describe(self) -> None:
        def on_reply(site: str, content: RecordDict) -> None:
            description = read_document(content, "reply", SiteDescription)
            if description.site != site:
                raise UpdateError(
                    f"site {site} calls itself {description.site}", reason="wrong name"
                )
            if description.version != __version__:
                raise UpdateError(
                    f"{site}: expected version {__version__}, got {description.version}",
                    reason="wrong version",
                )
            self.sites[site] = description

        orders = {site.name: self._order("describe") for site in self.config.sites}
        outcomes = self._exchange("describe", orders, "describe", on_reply)
        self._require_quorum("describe", outcomes)
        for group in GROUPS:
            if not any(group in site.groups for site in self.sites.values()):
                self.notify(f"no site can train the group {group!r}; it keeps its first values")
        if self.plan.her2_levels == 3:
            self._tell_levels()

    def _tell_levels(self) -> None:
        """Name the sites that cannot tell HER2-low from HER2-zero; with no other, end the run."""
        without = sorted(name for name, site in self.sites.items() if not site.levels)
        if len(without) == len(self.sites):
            raise RunError(
                "run.her2_levels: expected a site with raw IHC of enough negatives, got none",
                hint="begin a run with her2_levels: 2",
            )
        for name in without:
            self.notify(f"{name} trains positive against negative alone: too few raw IHC results")

    # --- 3. -------------------------------------------------------------------------------------

    def _round(self, current: Checkpoint) -> Checkpoint:
        started = time.perf_counter()
        number = current.round + 1
        accumulator = Accumulator(current.groups)
        replies: dict[str, SiteReply] = {}
        scores: Scores = {}
        fold_seconds = 0.0

        def on_reply(site: str, content: RecordDict) -> None:
            nonlocal fold_seconds
            began = time.perf_counter()
            reply = read_document(content, "reply", SiteReply)
            check_reply(site, reply, "train", number, "val")
            check_counts(reply, self.sites[site], len(self.config.sites))
            update = read_weights(content, self.sizes)
            if set(update) != set(self.sites[site].groups):
                raise UpdateError(f"{site}: expected its own groups", reason="wrong groups")
            histograms = read_scores(content, reply.score_keys)
            check_scores(self.sites[site], "val", histograms, len(self.config.sites))
            accumulator.add(update, reply.counts)
            replies[site], scores[site] = reply, histograms
            fold_seconds += time.perf_counter() - began

        orders = self._orders("train", number, "val", current.groups)
        outcomes = self._exchange("train", orders, str(number), on_reply)
        answered = time.perf_counter()
        self._require_quorum(f"round {number}", outcomes)
        began = time.perf_counter()
        groups = accumulator.result()
        fold_seconds += time.perf_counter() - began
        following = Checkpoint(number, groups, self._state())
        work = {name: r.seconds.get("train", 0.0) for name, r in replies.items()}
        scoring = {name: r.seconds.get("evaluate", 0.0) for name, r in replies.items()}
        slowest = max(replies, key=lambda name: work[name] + scoring[name])
        seconds = {
            "train": work[slowest],
            "evaluate": scoring[slowest],
            "aggregate": fold_seconds,
        }
        seconds["wait"] = max(answered - started - work[slowest] - scoring[slowest], 0.0)
        # The line first: killed in between, resume drops the line of a round without checkpoint.
        line = metrics_line(
            number,
            seconds,
            replies,
            outcomes,
            scores,
            min_cell=self.plan.min_cell,
            whole=scores.keys() == self.sites.keys(),
        )
        earlier = self.folder.read_metrics(up_to=number - 1)
        self.folder.write_metrics([*earlier, line])
        began = time.perf_counter()
        checkpoint.save(self.folder.rounds, following)
        line["seconds"]["checkpoint"] = round(time.perf_counter() - began, 4)
        line["seconds"]["total"] = round(time.perf_counter() - started, 4)
        self.folder.write_metrics([*earlier, line])
        self.notify(told(line, self.plan.rounds))
        return following

    # --- 4. -------------------------------------------------------------------------------------

    def _profile(self, current: Checkpoint) -> Settled:
        """Validation scores of the final weights and moments of the features; what follows.

        A site whose policy leaves ``profile`` out has answered: its cases do not count.
        """
        scores: Scores = {}
        moments = MomentSum(len(self.config.sites))
        features = preset(self.plan.preset, **self.plan.layout).features

        def on_reply(site: str, content: RecordDict) -> None:
            reply = read_document(content, "reply", SiteReply)
            check_reply(site, reply, "profile", current.round, "val")
            check_counts(reply, self.sites[site], len(self.config.sites))
            histograms = read_scores(content, reply.score_keys)
            check_scores(self.sites[site], "val", histograms, len(self.config.sites))
            moments.add(read_moments(content, features, reply.counts))
            scores[site] = histograms

        started = time.perf_counter()
        orders = self._orders("profile", current.round, "val", current.groups)
        outcomes = self._exchange("profile", orders, "profile", on_reply)
        answered = {
            name: replace(outcome, status="accepted") if outcome.reason == DECLINED else outcome
            for name, outcome in outcomes.items()
        }
        self._require_quorum("profile", answered)
        settled = settle(self.plan, current.groups, dict(sorted(scores.items())), moments.result())
        seconds = time.perf_counter() - started
        self.totals.seconds["evaluate"] += seconds
        shown = settled.fit.reason or f"{settled.fit.temperature:.3f}"
        self.notify(f"temperature: {shown}, {len(scores)} sites, {seconds:.1f} s")
        return settled

    def _evaluate(self, current: Checkpoint, settled: Settled, split: Split) -> Evaluation:
        scores: Scores = {}
        distances: Scores = {}

        def on_reply(site: str, content: RecordDict) -> None:
            reply = read_document(content, "reply", SiteReply)
            check_reply(site, reply, "evaluate", current.round, split)
            described = self.sites[site]
            if not set(reply.distance_keys) <= settled.references.keys() & set(described.groups):
                raise UpdateError(f"{site}: expected its own modalities", reason="wrong reply")
            histograms = read_scores(content, reply.score_keys)
            away = (
                read_scores(content, reply.distance_keys, "distances")
                if reply.distance_keys
                else {}
            )
            check_scores(described, split, histograms, len(self.config.sites), away)
            scores[site], distances[site] = histograms, away

        started = time.perf_counter()
        orders = self._orders("evaluate", current.round, split, settled.groups)
        for name, site in self.sites.items():
            if known := {m: r for m, r in settled.references.items() if m in site.groups}:
                orders[name]["references"] = references_record(known)
        outcomes = self._exchange("evaluate", orders, f"{split}", on_reply)
        self._require_quorum(f"evaluation on {split}", outcomes)
        self.totals.add(split, outcomes)
        seconds = time.perf_counter() - started
        self.totals.seconds["evaluate"] += seconds
        interval = publishable_auc(pooled_fused(scores), self.plan.min_cell)
        shown = f"AUC {interval.estimate:.3f}" if interval else "too few cases for an AUC"
        self.notify(f"{split}: {shown}, {len(scores)} sites, {seconds:.1f} s")
        # Not in the order of arrival
        told = {name: away for name, away in sorted(distances.items()) if away}
        return Evaluation(dict(sorted(scores.items())), told)

    # --- messages -------------------------------------------------------------------------------

    def _order(
        self,
        task: Task,
        number: int = 0,
        split: Split = "val",
        groups: Mapping[str, np.ndarray] | None = None,
        wanted: Iterable[str] = (),
    ) -> RecordDict:
        order = TaskOrder(
            task=task,
            run=self.config.name,
            version=__version__,
            round=number,
            split=split,
            plan=self.plan,
        )
        record = RecordDict({"order": document_record(order)})
        if groups is not None:
            record["weights"] = weights_record({name: groups[name] for name in wanted})
        return record

    def _orders(
        self, task: Task, number: int, split: Split, groups: Mapping[str, np.ndarray]
    ) -> dict[str, RecordDict]:
        """The order for each site of the run, with the groups that it can use."""
        return {
            name: self._order(task, number, split, groups, site.groups)
            for name, site in self.sites.items()
        }

    def _exchange(
        self,
        task: Task,
        orders: Mapping[str, RecordDict],
        group_id: str,
        on_reply: Callable[[str, RecordDict], None],
    ) -> dict[str, Outcome]:
        def told(site: str, outcome: Outcome) -> None:
            if outcome.status != "accepted":
                self.notify(f"{task}: {site} {outcome.status}: {outcome.reason}")

        outcomes = exchange(
            self.grid,
            online_sites(self.grid, self._keys()),
            orders,
            message_type=MESSAGE_TYPES[task],
            group_id=group_id,
            timeout=self.plan.round_timeout,
            on_reply=on_reply,
            on_outcome=told,
        )
        if task in ("describe", "profile"):
            self.totals.add(task, outcomes)
        return outcomes

    def _require_quorum(self, what: str, outcomes: Mapping[str, Outcome]) -> None:
        require_quorum(what, outcomes, self.config.quorum, str(self.folder.path))
