"""A run from its first message to its report.

1. Wait until the sites are online: all of them, or a quorum once start_timeout has passed.
2. Ask each to describe itself: which parameter groups it can train, how many cases it has.
3. Each round, send every site only its groups. It scores them on its validation cases, trains on,
   and replies; each reply is vetted and folded in as it comes. The round ends when all have
   answered or at round_timeout, and counts if a quorum was accepted. Then: checkpoint, metrics.
4. After the last round: score the final weights on validation, freeze the threshold there, and
   only then, once, on the test split.
5. Write summary.json, the release and the report.

A run that is stopped anywhere goes on from its newest checkpoint (``resume``) and gives the same
weights: sites keep no training state, and sums do not depend on arrival.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from flwr.app import RecordDict
from flwr.serverapp import Grid

from her2_common import __version__
from her2_common.cases import Split
from her2_common.config import FederationConfig, Task
from her2_common.errors import RunError, UpdateError
from her2_common.metrics import Estimate, ScoreHistogram, auc_interval
from her2_common.model import GROUPS, build_model, get_groups, preset_sizes
from her2_common.wire import (
    MESSAGE_TYPES,
    SiteDescription,
    SiteReply,
    TaskOrder,
    document_record,
    read_document,
    read_scores,
    read_weights,
    weights_record,
)
from her2_server import checkpoint
from her2_server.aggregation import MAX_CASES, Accumulator
from her2_server.checkpoint import Checkpoint
from her2_server.evaluation import SiteScores
from her2_server.exchange import Outcome, exchange, online_sites
from her2_server.run_folder import RunFolder
from her2_server.summary import Totals, finish, freeze_threshold, pooled_fused

ONLINE_POLL_SECONDS: Final = 0.5

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
        validation = self._evaluate(current, "val")
        threshold = freeze_threshold(pooled_fused(validation))
        test = self._evaluate(current, "test")
        self.totals.seconds["total"] += time.perf_counter() - started
        finish(
            self.folder,
            current,
            sites=self.sites,
            validation=validation,
            test=test,
            threshold=threshold,
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
            if current.round:
                self.notify(f"going on after round {current.round}/{self.plan.rounds}")
            return current
        model = build_model(self.plan.preset, self.plan.seed, **self.plan.layout)
        groups = get_groups(model, GROUPS)
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
            self._check_reply(site, reply, "train", number, "val")
            self._check_counts(site, reply)
            update = read_weights(content, self.sizes)
            if set(update) != set(self.sites[site].groups):
                raise UpdateError(f"{site}: expected its own groups", reason="wrong groups")
            histograms = read_scores(content, reply.score_keys)
            accumulator.add(update, reply.counts)
            replies[site], scores[site] = reply, histograms
            fold_seconds += time.perf_counter() - began

        orders = {
            name: self._order("train", number, "val", current.groups, site.groups)
            for name, site in self.sites.items()
        }
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
        line = self._metrics_line(number, seconds, replies, outcomes, scores)
        earlier = self.folder.read_metrics(up_to=number - 1)
        self.folder.write_metrics([*earlier, line])
        began = time.perf_counter()
        checkpoint.save(self.folder.rounds, following)
        line["seconds"]["checkpoint"] = round(time.perf_counter() - began, 4)
        line["seconds"]["total"] = round(time.perf_counter() - started, 4)
        self.folder.write_metrics([*earlier, line])
        self._tell(line)
        return following

    def _metrics_line(
        self,
        number: int,
        seconds: dict[str, float],
        replies: Mapping[str, SiteReply],
        outcomes: Mapping[str, Outcome],
        scores: SiteScores,
    ) -> dict[str, Any]:
        histogram = pooled_fused(scores)
        # Without one site's cases the difference to other rounds would be that site.
        interval = self._publishable_auc(histogram) if scores.keys() == self.sites.keys() else None
        losses = {name: r.loss for name, r in replies.items() if r.loss is not None}
        cases = {name: replies[name].counts["head"] for name in losses}
        loss = sum(losses[n] * cases[n] for n in losses) / sum(cases.values()) if losses else None
        return {
            "round": number,
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
            "loss": loss,
            "validation": {
                "n": histogram.n if interval else None,
                "auc": interval.as_dict() if interval else None,
            },
            "sites": {
                name: {
                    "status": outcome.status,
                    "reason": outcome.reason,
                    "loss": losses.get(name),
                    "seconds": round(outcome.seconds, 4),
                    "train_seconds": (
                        round(replies[name].seconds.get("train", 0.0), 4)
                        if name in replies
                        else None
                    ),
                    "sent_bytes": outcome.bytes_from_site,
                    "received_bytes": outcome.bytes_to_site,
                }
                for name, outcome in sorted(outcomes.items())
            },
        }

    def _tell(self, line: dict[str, Any]) -> None:
        """One line a round, for the person who watches."""
        sites, auc, loss = line["sites"].values(), line["validation"]["auc"], line["loss"]
        accepted = sum(site["status"] == "accepted" for site in sites)
        self.notify(
            f"round {line['round']:>{len(str(self.plan.rounds))}}/{self.plan.rounds}  "
            f"{accepted}/{len(sites)} sites  loss {'-' if loss is None else format(loss, '.3f')}  "
            f"AUC before it {format(auc['estimate'], '.3f') if auc else '  -  '}  "
            f"{line['seconds']['total']:.1f} s"
        )

    # --- 4. -------------------------------------------------------------------------------------

    def _evaluate(self, current: Checkpoint, split: Split) -> Scores:
        scores: Scores = {}

        def on_reply(site: str, content: RecordDict) -> None:
            reply = read_document(content, "reply", SiteReply)
            self._check_reply(site, reply, "evaluate", current.round, split)
            scores[site] = read_scores(content, reply.score_keys)

        started = time.perf_counter()
        orders = {
            name: self._order("evaluate", current.round, split, current.groups, site.groups)
            for name, site in self.sites.items()
        }
        outcomes = self._exchange("evaluate", orders, f"{split}", on_reply)
        self._require_quorum(f"evaluation on {split}", outcomes)
        self.totals.add(split, outcomes)
        seconds = time.perf_counter() - started
        self.totals.seconds["evaluate"] += seconds
        interval = self._publishable_auc(pooled_fused(scores))
        shown = f"AUC {interval.estimate:.3f}" if interval else "too few cases for an AUC"
        self.notify(f"{split}: {shown}, {len(scores)} sites, {seconds:.1f} s")
        return dict(sorted(scores.items()))  # not in the order of arrival

    def _publishable_auc(self, histogram: ScoreHistogram) -> Estimate | None:
        """The AUC, unless a class has fewer cases than run.min_cell."""
        few = min(histogram.m, histogram.n - histogram.m) < self.plan.min_cell
        return None if few else auc_interval(histogram)

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
        if task == "describe":
            self.totals.add(task, outcomes)
        return outcomes

    @staticmethod
    def _check_reply(site: str, reply: SiteReply, task: Task, number: int, split: Split) -> None:
        if (reply.site, reply.task, reply.split) != (site, task, split):
            raise UpdateError(
                f"{site}: expected a reply to {task} on {split}", reason="wrong reply"
            )
        if reply.round != number:
            raise UpdateError(
                f"{site}: expected round {number}, got {reply.round}", reason="stale round"
            )

    def _check_counts(self, site: str, reply: SiteReply) -> None:
        """A site's weight in the mean is what it described, and leaves room for the others'."""
        limit = MAX_CASES // len(self.config.sites)
        described = self.sites[site].cases.train
        total = reply.counts.get("head", 0)
        if max(reply.counts.values(), default=0) > min(total, limit) or (
            described is not None and total != described
        ):
            raise UpdateError(
                f"{site}: expected the training cases it described, got {total}",
                reason="wrong count",
            )

    def _require_quorum(self, what: str, outcomes: Mapping[str, Outcome]) -> None:
        accepted = [name for name, outcome in outcomes.items() if outcome.status == "accepted"]
        if len(accepted) >= self.config.quorum:
            return
        reasons = "; ".join(
            f"{name} {outcome.status}: {outcome.reason}"
            for name, outcome in sorted(outcomes.items())
            if outcome.status != "accepted"
        )
        raise RunError(
            f"{what}: expected {self.config.quorum} sites, got {len(accepted)} ({reasons})",
            hint=f"mend what is named, then: her2-server resume {self.folder.path}",
        )
