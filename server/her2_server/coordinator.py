"""A run from its first message to its report.

1. Take up the newest sound checkpoint, or make the first one.
2. Ask each site to describe itself: which parameter groups it can train, how many cases it has. All
   are waited for, or a quorum once start_timeout has passed; later ones join when they come.
3. Each round, send every site only its groups. It scores them on its validation cases, trains on,
   and replies; each reply is vetted and folded in as it comes. The round ends when all have
   answered or at round_timeout, and counts if a quorum was accepted. Then: checkpoint, metrics.
   With run.patience it is the last one when validation has not been better for so many rounds.
4. After the last round: score the final weights on validation, for the temperature, and sum the
   moments of the training features (with run.patience, if an earlier round was better, that of the
   best one is then taken instead); score the calibrated weights on validation and freeze the
   threshold and the limits there. All this is kept on disk (frozen.py), and only then are the
   calibrated weights scored, once, on the test split.
5. Write summary.json, the release and the report.

A run that is stopped anywhere goes on from its newest checkpoint (``resume``) and gives the same
weights: what a site keeps between rounds it keeps on disk, by round, and sums do not depend on
arrival. No answer of a site stops it (her2_server.exchange); answers that cannot be used together
end the step with an error that names them (her2_server.reduction), and ``resume --without`` goes on
without a site (her2_server.exclusion).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, closing
from datetime import UTC, datetime
from typing import Any, Final

from flwr.app import RecordDict
from flwr.serverapp import Grid

from her2_common import __version__
from her2_common.cases import Split
from her2_common.config import FederationConfig, Task
from her2_common.errors import CheckpointError, RunError
from her2_common.model import GROUPS, build_model, get_groups
from her2_common.wire import SiteDescription
from her2_server import checkpoint, frozen
from her2_server.checkpoint import Checkpoint
from her2_server.closing import (
    Evaluation,
    Settled,
    freeze_limits,
    freeze_threshold,
    pooled_fused,
)
from her2_server.exchange import STATE, Exchange, Outcome
from her2_server.final_steps import Profile, Scoring
from her2_server.frozen import Frozen
from her2_server.initial import read_initial
from her2_server.orders import Orders
from her2_server.progress import (
    best_rounds,
    may_join,
    metrics_line,
    out_of_patience,
    publishable_auc,
    told,
)
from her2_server.reduction import reducing
from her2_server.rounds import Round, first
from her2_server.run_folder import RunFolder
from her2_server.status import Status
from her2_server.summary import Totals, finish
from her2_server.vetting import case_limits, check_sites, read_description

DECLINED: Final = "site error: policy"
"""The reason of an outcome whose site does not allow the task."""

EVALUATION: Final = "evaluation on "
"""How a person reads of the steps that score a split."""

Notify = Callable[[str], None]


class Coordinator:
    """Conducts one run over ``grid``; its whole memory is the run's folder."""

    def __init__(self, grid: Grid, folder: RunFolder, notify: Notify = lambda _: None) -> None:
        self.grid = grid
        self.folder = folder
        self.notify = folder.logging(notify)
        self.config: FederationConfig = folder.load_config()
        self.excluded = folder.excluded()
        self.limits = case_limits(self.config)
        self.plan = self.config.run
        self.names = [site.name for site in self.config.sites]
        self.orders = Orders(self.config)
        self.status = Status(folder.status, self.config.name, self.plan.rounds, self.names)
        self.exchange = Exchange(
            grid,
            self.config,
            hint=f"her2-server resume {folder.path}",
            notify=self.notify,
            on_site=self._told,
            on_pause=self.status.pause,
            log=folder.log,
        )
        self._doubtful: set[str] = set()
        self.sites: dict[str, SiteDescription] = {}
        self._earlier: dict[str, SiteDescription] = {}
        self.initial: dict[str, Any] | None = None
        self.totals = Totals()
        self.started = datetime.now(UTC).isoformat(timespec="seconds")

    def run(self) -> None:
        """Conduct the run from its newest checkpoint (or from the start) to its report.

        Raises:
            RunError: a quorum is not reached in run.pause_timeout; the run can be resumed.
        """
        self.status.step("begin", 0)
        with self.status.ended():
            self._conduct()

    def _conduct(self) -> None:
        started = time.perf_counter()
        current = self._begin()
        earlier = sum(line["seconds"]["total"] for line in self.folder.read_metrics())
        self._describe()
        while current.round < self.plan.rounds and not self._enough():
            current = self._round(current)
        end = self._freeze(current)
        with self._reducing("validation", end.validation.scores):
            threshold = freeze_threshold(pooled_fused(end.validation.scores))
            limits = freeze_limits(end.settled, end.validation.distances)
        test = self._evaluate(end.final, end.settled, "test")
        self.totals.seconds["total"] += earlier + time.perf_counter() - started
        with self._reducing("report", {*end.validation.scores, *test.scores}):
            finish(
                self.folder,
                end,
                sites=self.everyone,
                test=test,
                threshold=threshold,
                limits=limits,
                totals=self.totals,
                started=self.started,
            )

    def _reducing(self, what: str, sites: Collection[str]) -> AbstractContextManager[None]:
        way_out = f"to go on without a site: her2-server resume {self.folder.path} --without SITE"
        return reducing(self.folder, what, sorted(sites), way_out)

    # --- 1. and 2. ------------------------------------------------------------------------------

    def _begin(self) -> Checkpoint:
        """The newest sound checkpoint; in a new run, the initial weights as round 0."""
        if any(self.folder.rounds.glob("[0-9]*")):
            current = checkpoint.latest(self.folder.rounds, self.notify)
            if current.state.get("config_sha256") != self.folder.config_hash():
                raise RunError(
                    f"{self.folder.path}: its checkpoints belong to another federation.yaml",
                    hint="put the one back that the run began with, or begin another run",
                )
            self.folder.write_metrics(self.folder.read_metrics(up_to=current.round))
            self.initial = current.state.get("initial")
            self.orders.run_id = current.state.get("run_id", "")
            self.started = current.state.get("started", self.started)
            described = current.state.get("sites", {})
            self._earlier = {n: SiteDescription.model_validate(d) for n, d in described.items()}
            for name, number in self.excluded.items():
                self.notify(f"{name} is excluded from round {number} on")
            if current.round:
                self.notify(f"going on after round {current.round}/{self.plan.rounds}")
            return current
        self.orders.run_id = secrets.token_hex(8)
        model = build_model(self.plan.preset, self.plan.seed, **self.plan.layout)
        groups = get_groups(model, GROUPS)
        if (release := read_initial(self.config)) is not None:
            groups = {**groups, **release.taken}
            self.initial = release.record
            self.notify(str(release))
        return checkpoint.save(self.folder.rounds, first(self.config, groups, self._state()))

    def _state(self) -> dict[str, Any]:
        return {
            "run": self.config.name,
            "run_id": self.orders.run_id,
            "started": self.started,
            "version": __version__,
            "config_sha256": self.folder.config_hash(),
            "preset": self.plan.preset,
            "seed": self.plan.seed,
            "initial": self.initial,
            "sites": {name: site.model_dump(mode="json") for name, site in self.everyone.items()},
        }

    def _describe(self) -> None:
        self._ask(
            "describe",
            "describe",
            lambda _site, _whole: self.orders.describe(),
            self._described,
            timeout=self.plan.start_timeout,
            everyone=True,
            guest=True,
        )
        if missing := [name for name in self.names if name not in self.sites]:
            self.notify(f"beginning without {', '.join(missing)}")
        here = {name: site for name, site in self.everyone.items() if name in self.names}
        check_sites(self.config, here, self.notify)

    @property
    def everyone(self) -> dict[str, SiteDescription]:
        """The sites that have described themselves in this run, also before it was resumed, and
        those that were excluded since."""
        return self._earlier | self.sites

    @property
    def training(self) -> dict[str, SiteDescription]:
        """Those of them that train: all but the one left out and those excluded."""
        return {n: site for n, site in self.everyone.items() if n in self.config.training}

    def _described(self, site: str, content: RecordDict) -> None:
        self.sites[site] = read_description(site, content, self.limits[site])
        self._doubtful.discard(site)

    # --- 3. -------------------------------------------------------------------------------------

    def _round(self, current: Checkpoint) -> Checkpoint:
        started = time.perf_counter()
        with closing(
            Round(self.config, self.sites, self.orders, current, self.folder.rounds)
        ) as work:
            outcomes = self._ask("train", f"round {work.number}", work.order, work.on_reply)
            answered = time.perf_counter()
            with self._reducing(f"round {work.number}", work.replies):
                draft = work.finish(self._state())
        number, replies, scores = work.number, work.replies, work.scores
        trained = {name: r.seconds.get("train", 0.0) for name, r in replies.items()}
        scoring = {name: r.seconds.get("evaluate", 0.0) for name, r in replies.items()}
        slowest = max(replies, key=lambda name: trained[name] + scoring[name])
        seconds = {
            "train": trained[slowest],
            "evaluate": scoring[slowest],
            "aggregate": work.seconds,
            "checkpoint": draft.seconds,
            "wait": max(answered - started - trained[slowest] - scoring[slowest], 0.0),
            "total": time.perf_counter() - started,
        }
        # The line first: killed in between, resume drops the line of a round without checkpoint.
        earlier = self.folder.read_metrics(up_to=number - 1)
        with self._reducing(f"round {number}", replies):
            line = metrics_line(
                number,
                seconds,
                replies,
                outcomes,
                scores,
                min_cell=self.plan.min_cell,
                whole=scores.keys() == self.training.keys()
                and may_join(earlier, scores, self.everyone),
            )
        self.folder.write_metrics([*earlier, line])
        best = best_rounds([*earlier, line])[:1] if self.plan.patience is not None else []
        following = draft.publish(keep=best[0] if best else None, kept=self.plan.kept_rounds)
        self.notify(told(line, self.plan.rounds))
        return following

    # --- 4. -------------------------------------------------------------------------------------

    def _enough(self) -> bool:
        """Has validation not been better for run.patience rounds? A function of metrics.jsonl
        alone, so that a resumed run decides alike."""
        return out_of_patience(self.folder.read_metrics(), self.plan.patience)

    def _freeze(self, last: Checkpoint) -> Frozen:
        """What the test cases are scored with; what an earlier process had settled, if it had."""
        found = frozen.read(self.folder, self.notify)
        if found is None:
            final, settled = self._settle(last)
            found = Frozen(final, settled, self._evaluate(final, settled, "val"))
            frozen.write(self.folder, found)
        else:
            self.notify(f"the weights of round {found.final.round} were settled before")
        return found

    def _settle(self, last: Checkpoint) -> tuple[Checkpoint, Settled]:
        """The final weights, settled: those of the last round or, with patience, of the best."""
        settled = self._profile(last)
        if self.plan.patience is None:
            return last, settled
        interval = publishable_auc(pooled_fused(settled.before), self.plan.min_cell)
        for number in best_rounds(self.folder.read_metrics(), interval):
            if number == last.round:
                break
            try:
                best = checkpoint.load(self.folder.rounds / f"{number:04d}")
            except CheckpointError as error:
                self.notify(str(error))
                continue
            self.notify(f"round {number} was the best on validation; its weights are final")
            return best, self._profile(best)
        return last, settled

    def _profile(self, current: Checkpoint) -> Settled:
        """Validation scores of the final weights and moments of the features; what follows.

        A site whose policy leaves ``profile`` out has answered: its cases do not count.
        """
        started = time.perf_counter()
        work = Profile(self.config, self.sites, self.orders, current)
        self._ask("profile", "profile", work.order, work.on_reply)
        with self._reducing("profile", work.sites):
            settled = work.settled()
        seconds = time.perf_counter() - started
        self.totals.seconds["evaluate"] += seconds
        shown = settled.fit.reason or f"{settled.fit.temperature:.3f}"
        self.notify(f"temperature: {shown}, {len(settled.before)} sites, {seconds:.1f} s")
        return settled

    def _evaluate(self, current: Checkpoint, settled: Settled, split: Split) -> Evaluation:
        started = time.perf_counter()
        work = Scoring(self.config, self.sites, self.orders, current, settled, split)
        self._ask("evaluate", split, work.order, work.on_reply, guest=split == "test")
        result = work.result()
        seconds = time.perf_counter() - started
        self.totals.seconds["evaluate"] += seconds
        with self._reducing(f"{EVALUATION}{split}", result.scores):
            interval = publishable_auc(pooled_fused(result.scores), self.plan.min_cell)
        shown = f"AUC {interval.estimate:.3f}" if interval else "too few cases for an AUC"
        self.notify(f"{split}: {shown}, {len(result.scores)} sites, {seconds:.1f} s")
        return result

    # --- messages -------------------------------------------------------------------------------

    def _ask(
        self,
        task: Task,
        what: str,
        order: Callable[[str, bool], RecordDict],
        on_reply: Callable[[str, RecordDict], None],
        *,
        timeout: float | None = None,
        everyone: bool = False,
        guest: bool = False,
    ) -> dict[str, Outcome]:
        """One exchange. A site that is new, or whose last answer was refused, and which may have
        been mended since, describes itself first. ``guest``: a site that is left out of training is
        asked too, and then all must answer."""

        def next_order(site: str, whole: bool) -> tuple[Task, RecordDict]:
            if task != "describe" and (site not in self.sites or site in self._doubtful):
                return "describe", self.orders.describe()
            return task, order(site, whole)

        def receive(site: str, asked: Task, content: RecordDict) -> None:
            (self._described if asked == "describe" else on_reply)(site, content)

        self.status.step(what, len(self.folder.read_metrics()))
        outcomes = self.exchange.ask(
            task,
            what,
            next_order,
            receive,
            sites=self.names if guest else self.config.training,
            timeout=self.plan.round_timeout if timeout is None else timeout,
            quorum=len(self.names) if guest and self.config.left_out else self.config.quorum,
            everyone=everyone,
            may_decline=task == "profile",
        )
        if task != "train":  # a round's bytes stand in metrics.jsonl
            self.totals.add(what.removeprefix(EVALUATION), outcomes)
        return outcomes

    def _told(self, site: str, state: STATE, reason: str | None) -> None:
        self.status.site(site, state, reason)
        if state == "refused" and reason != DECLINED:
            self._doubtful.add(site)
