"""The response evaluation over the sites of a finished run.

1. Each site that took part is waited for, for the run's ``start_timeout`` at most, and asked the
   first query of the plan. Those that answer take part in the whole; a site whose policy does not
   allow the task, or that is not there, does not, and the result names it. Fewer than the plan's
   ``min_centres`` are an error.
2. Every further query goes to the same sites, and is answered by all of them or ends the analysis.
   It can be called again: the queries that were answered are not counted twice.
3. A site that has no scores of the release yet says so, and gets its weights with the same query.

No statistic is kept but in the result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from flwr.app import RecordDict
from flwr.serverapp import Grid

from her2_common import __version__
from her2_common.broadcast import fingerprint
from her2_common.config import Task
from her2_common.errors import RunError, UpdateError
from her2_common.release import Manifest, read_release
from her2_common.response.analysis import analyse
from her2_common.response.codec import unpack
from her2_common.response.plan import Plan
from her2_common.response.queries import Query, Statistic
from her2_common.response_wire import (
    ResponseQuery,
    ResponseReply,
    read_statistics,
    statistics_record,
)
from her2_common.vectors import vectors_record
from her2_common.wire import TaskOrder, document_record, read_document
from her2_server.attendance import wait_until_online
from her2_server.exchange import Exchange, Outcome
from her2_server.reduction import reducing
from her2_server.response.command import check_evidence, fix_threshold, head, label_of
from her2_server.run_folder import RunFolder
from her2_server.vetting import case_limits

TASK: Final[Task] = "response"

Notify = Callable[[str], None]


class Sites:
    """The sites of a finished run, asked one query after the other; ``__call__`` is an ``Ask``."""

    def __init__(
        self,
        grid: Grid,
        folder: RunFolder,
        plan: Plan,
        notify: Notify = lambda _: None,
    ) -> None:
        self.config = folder.load_config()
        self.summary = folder.read_summary()
        self.plan, self.notify = plan, folder.logging(notify)
        self.grid = grid
        self.exchange = Exchange(grid, self.config, notify=self.notify, log=folder.log)
        self.manifest, self.groups = read_release(folder.release)
        self.limits = case_limits(self.config)
        self.of_site: dict[str, list[str]] = {}
        for site in self.summary["sites"]:
            if site["name"] not in self.limits:  # it was excluded
                continue
            self.of_site[site["name"]] = site["groups"]
            if (told := site.get("cases", {}).get("test")) is not None:
                self.limits[site["name"]] = min(told, self.limits[site["name"]])
        if self.config.run.strategy.private_groups:
            raise RunError(
                "response: expected a run whose sites share all groups, got private ones",
                hint="score with her2-client predict at each site, and give the tables (--table)",
            )
        self.prints = {name: fingerprint(vector) for name, vector in self.groups.items()}
        self.taking_part: list[str] | None = None
        self.number = 0
        self.counts: dict[str, dict[str, Any]] = {}
        self.absent: dict[str, str] = {}

    def __call__(self, query: Query) -> Mapping[str, Statistic | None]:
        """Every site's answer to ``query``; None where it is withheld.

        Raises:
            RunError: too few sites answer, or one of them no longer does.
        """
        self.number += 1
        wanted = list(self.of_site) if self.taking_part is None else self.taking_part
        asked = [site for site in wanted if not query.centres or site in query.centres]
        answers: dict[str, Statistic | None] = {}
        if self.taking_part is None:
            self._wait_for(wanted)

        def on_reply(site: str, _task: Task, content: RecordDict) -> None:
            reply = read_document(content, "reply", ResponseReply)
            if (reply.site, reply.kind, reply.item) != (site, query.kind, query.item):
                raise UpdateError(f"{site}: expected an answer to the query", reason="wrong reply")
            arrays, patients = read_statistics(content), self.limits[site]
            if reply.withheld and arrays:
                raise UpdateError(f"{site}: expected nothing withheld", reason="wrong reply")
            answer = None if reply.withheld else unpack(query, self.plan, arrays, patients)
            answers[site] = answer
            self._count(site, reply, query)

        outcomes = self.exchange.ask(
            TASK,
            f"response {self.number}",
            lambda site, whole: (TASK, self._order(site, query, whole=whole)),
            on_reply,
            sites=asked,
            timeout=self.config.run.round_timeout,
            quorum=0,
        )
        if self.taking_part is None:
            self._begin(answers, outcomes)
        elif missing := [site for site in asked if site not in answers]:
            raise RunError(
                f"query {self.number} ({query.kind} {query.item}): "
                + "; ".join(_why(site, outcomes[site]) for site in missing),
                hint="fix the problems above, then call her2-server response again: queries that "
                "were answered are not counted twice",
            )
        return dict(sorted(answers.items()))

    def _wait_for(self, wanted: list[str]) -> None:
        """Step 1, until all are online."""
        keys = {site.name: site.public_key for site in self.config.sites if site.name in wanted}

        def on_wait(missing: Mapping[str, str]) -> None:
            if missing:
                self.notify(f"response: waits for {', '.join(missing)}")

        wait_until_online(self.grid, keys, self.config.run.start_timeout, on_wait=on_wait)

    def _begin(
        self, answers: Mapping[str, Statistic | None], outcomes: Mapping[str, Outcome]
    ) -> None:
        self.taking_part = sorted(answers)
        self.absent = {
            site: f"{outcome.status}: {outcome.reason}"
            for site, outcome in sorted(outcomes.items())
            if site not in answers
        }
        if len(answers) < max(1, self.plan.min_centres):
            reasons = "; ".join(f"{site} {why}" for site, why in self.absent.items()) or "no others"
            raise RunError(
                f"response: expected answers of {max(1, self.plan.min_centres)} sites "
                f"(min_centres of the plan), got {len(answers)} ({reasons})",
                hint="a site must be up (her2-client start), have response in policy.allowed_tasks "
                "of its site.yaml, and have answered under no other plan; its log says what it was",
            )
        self.notify(f"response: {', '.join(self.taking_part)} take part")

    def _count(self, site: str, reply: ResponseReply, query: Query) -> None:
        line = self.counts.setdefault(site, {"withheld": []})
        line |= {"queries": reply.queries, "max_queries": reply.max_queries}
        name = f"{query.kind} {query.item}".strip()
        if reply.withheld and name not in line["withheld"]:
            line["withheld"].append(name)

    def _order(self, site: str, query: Query, *, whole: bool) -> RecordDict:
        own = [group for group in self.of_site[site] if group in self.groups]
        order = TaskOrder(
            task=TASK,
            run=self.config.name,
            version=__version__,
            round=self.summary["run"]["rounds"],
            split="test",
            weights={group: self.prints[group] for group in own},
            plan=self.config.run,
        )
        content = RecordDict({"order": document_record(order)})
        content["query"] = document_record(ResponseQuery.of(query, self.plan))
        if query.arrays:
            content["arrays"] = statistics_record(query.arrays)
        if whole:
            content["weights"] = vectors_record({group: self.groups[group] for group in own})
        return content


def over_sites(
    grid: Grid,
    folder: RunFolder,
    plan: Plan,
    option: float | None = None,
    notify: Notify = lambda _: None,
) -> dict[str, Any]:
    """The result over the sites of a finished run.

    Raises:
        RunError: the run is not finished, or too few sites answer.
        ConfigError, DataError: the threshold or the release cannot be used.
    """
    manifest = finished_release(folder)
    plan = fix_threshold(plan, option, manifest)
    sites = Sites(grid, folder, plan, notify)
    way_out = "to go on without a site: take response out of its policy.allowed_tasks"
    with reducing(folder, TASK, sites.of_site, way_out):
        found = analyse(
            sites,
            plan,
            plan.fixed_threshold,
            label=label_of(manifest.trained_on[-1:]),
            min_centres=plan.min_centres,
        )
        json.dumps(found, allow_nan=False)
    if "refused" not in found["auc"]:
        found["auc"]["on_grid"] = True  # sites score on it
    source = {
        "kind": "federation",
        "run": sites.config.name,
        "release_sha256": manifest.digest,
        "label": manifest.label,
        "queries": sites.number,
        "synthetic": sites.config.synthetic,
        "sites": sites.counts,
        "absent": sites.absent,
    }
    warnings = [f"{site} takes no part: {why}" for site, why in sites.absent.items()]
    return head(source, plan, warnings) | found


def finished_release(folder: RunFolder) -> Manifest:
    """The manifest of a finished run's release.

    Raises:
        RunError: the run is not finished.
        DataError: the release cannot be read, or is no evidence on response.
    """
    folder.load_config()
    if not folder.summary.exists():
        raise RunError(
            f"{folder.path}: no summary.json, the run is not finished",
            hint=f"go on with it: her2-server resume {folder.path}",
        )
    return check_evidence(read_release(folder.release)[0])


def _why(site: str, outcome: Outcome) -> str:
    return f"{site} {outcome.status}: {outcome.reason}"
