"""Is the federation worth it, and for whom? What the centres' comparisons say together.

1. After a finished run all sites are waited for, for the run's ``start_timeout`` at most. Each that
   is there, or comes while others are at work, is sent the released weights once more. It trains a
   model of its own from the run's first weights, by the same plan, and compares on its own test
   cases (her2_client.compare). This is long work: a site that is stopped goes on where it was when
   it is asked again, and one that has finished only scores again.
2. A site answers with AUCs and their covariance, or says that it has too few cases.
3. For each centre: the AUCs, the paired differences, and a verdict. Over the centres: the mean
   difference with random effects. Written to compare.json and drawn into the report.

Groups that the report withholds stay without counts here, and their numbers are rounded to two
digits: the counts of the others and exact numbers would give a small centre away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
from flwr.app import RecordDict
from flwr.serverapp import Grid

from her2_common import __version__
from her2_common.cases import Split
from her2_common.config import FederationConfig, Task
from her2_common.errors import RunError, UpdateError
from her2_common.metrics import Estimate
from her2_common.release import read_release
from her2_common.response import delong
from her2_common.response.combine import random_effects
from her2_common.response.delong import Discrimination
from her2_common.vectors import vectors_record
from her2_common.wire import Comparison, SiteDescription, read_document
from her2_server import checkpoint
from her2_server.attendance import wait_until_online
from her2_server.exchange import Exchange, Outcome
from her2_server.initial import read_initial
from her2_server.orders import Orders, model_with
from her2_server.reduction import reducing
from her2_server.report import write_report
from her2_server.report.page import read_run
from her2_server.run_folder import RunFolder
from her2_server.status import COMPARISON, COMPARISON_FILE, Status
from her2_server.vetting import case_limits, check_limit, read_description

TASK: Final[Task] = "compare"
SPLIT: Final[Split] = "test"

NOTABLE: Final = 0.02
"""A difference of AUC below minus this is noted even where its interval holds 0. A design value."""

_SMALLEST_VARIANCE: Final = 1e-12
"""Of a difference of AUCs: what remains below it, in 10^5 cases, is rounding."""

PAIRS: Final = (("federated", "local"), ("personal", "federated"), ("personal", "local"))
"""The differences that are told: AUC of the first less that of the second."""

Verdict = Literal["worse", "perhaps worse", "better", "no difference shown"]


def verdict(gap: Estimate) -> Verdict:
    """What the difference federated less local says of a centre.

    "worse", the alarm: its interval is wholly below 0. "perhaps worse": it is below -0.02.

    >>> verdict(Estimate(-0.05, -0.09, -0.01)), verdict(Estimate(-0.05, -0.12, 0.02))
    ('worse', 'perhaps worse')
    """
    if gap.high < 0:
        return "worse"
    if gap.estimate < -NOTABLE:
        return "perhaps worse"
    return "better" if gap.low > 0 else "no difference shown"


def discrimination(reply: Comparison) -> Discrimination | None:
    """A site's answer as the statistics take it; None where it has too few cases."""
    if reply.negatives is None or reply.positives is None:
        return None
    covariance = None if reply.covariance is None else np.array(reply.covariance, np.float64)
    areas = np.array(reply.auc, np.float64)
    return Discrimination(reply.models, reply.negatives, reply.positives, areas, covariance)


def centre_record(found: Discrimination | None, *, withheld: bool) -> dict[str, Any]:
    """A centre's part of compare.json; ``withheld``: the report does not publish the centre."""
    if found is None:
        return {"status": "too few"}
    digits = 2 if withheld else 4
    gaps = {
        f"{first} - {second}": delong.compare(found, first, second).difference
        for first, second in PAIRS
        if first in found.names and second in found.names
    }
    return {
        "status": "compared",
        "n": None if withheld else found.negatives + found.positives,
        "positives": None if withheld else found.positives,
        "auc": {name: _rounded(found.interval(name), digits) for name in found.names},
        "difference": {name: _rounded(gap, digits) for name, gap in gaps.items()},
        "verdict": verdict(gaps["federated - local"]),
    }


def _rounded(estimate: Estimate, digits: int) -> dict[str, float]:
    return {key: round(value, digits) for key, value in estimate.as_dict().items()}


def overall(centres: Mapping[str, Discrimination]) -> dict[str, Any]:
    """Each difference over the centres, by random effects; None for fewer than two with a variance.

    ``estimate``, ``low``, ``high``, ``prediction`` (the interval for a new centre), ``i2``,
    ``centres`` and ``left_out``, the names of those without a variance.
    """
    result: dict[str, Any] = {}
    for first, second in PAIRS:
        gaps, variances, left_out = [], [], []
        for centre, found in sorted(centres.items()):
            if first not in found.names or second not in found.names:
                continue
            weight = _contrast(found, first, second)
            variance = 0.0 if found.covariance is None else weight @ found.covariance @ weight
            if variance > _SMALLEST_VARIANCE:
                gaps.append(float(weight @ found.auc))
                variances.append(float(variance))
            else:
                left_out.append(centre)
        if not gaps and not left_out:
            continue
        combined = random_effects(gaps, variances)
        result[f"{first} - {second}"] = combined and {
            **_rounded(combined.mean, 4),
            "prediction": combined.prediction and _rounded(combined.prediction, 4),
            "i2": round(combined.i2, 4),
            "centres": combined.centres,
            "left_out": left_out,
        }
    return result


def _contrast(found: Discrimination, first: str, second: str) -> np.ndarray:
    weight = np.zeros(len(found.names))
    weight[found.index(first)], weight[found.index(second)] = 1.0, -1.0
    return weight


def document(
    summary: Mapping[str, Any], replies: Mapping[str, Comparison], outcomes: Mapping[str, Outcome]
) -> dict[str, Any]:
    """compare.json, from the sites' answers and what became of the others.

    ``version``, ``run``, ``rounds``, ``centres`` {name: see ``centre_record``, or ``status`` and
    ``reason`` of one that did not answer} and ``overall``.
    """
    found = {name: discrimination(replies[name]) for name in sorted(replies)}
    published = summary["test"]["by_centre"]
    centres: dict[str, Any] = {}
    for name, outcome in sorted(outcomes.items()):
        if name in found:
            withheld = "suppressed" in published.get(name, {"suppressed": True})
            centres[name] = centre_record(found[name], withheld=withheld)
        else:
            centres[name] = {"status": outcome.status, "reason": outcome.reason}
    return {
        "version": __version__,
        "run": summary["run"]["name"],
        "rounds": summary["run"]["rounds"],
        "centres": centres,
        "overall": overall({name: one for name, one in found.items() if one is not None}),
    }


def tell(result: Mapping[str, Any], notify: Callable[[str], None]) -> None:
    """Name to the coordinator's user what came of each centre, alarms loudest."""
    for name, one in result["centres"].items():
        if one["status"] != "compared":
            notify(f"compare: {name}: {one.get('reason') or 'too few test cases of a class'}")
            continue
        gap = one["difference"]["federated - local"]
        alarm = "ALARM, federation hurts this centre: " if one["verdict"] == "worse" else ""
        notify(
            f"compare: {name}: {alarm}federated less local {gap['estimate']:+.3f} "
            f"({gap['low']:+.3f} to {gap['high']:+.3f}), {one['verdict']}"
        )


# --- asking the sites ---------------------------------------------------------------------------


def require_finished(folder: RunFolder) -> None:
    """Raises:
    RunError: the run has no summary yet.
    """
    if not folder.summary.exists():
        raise RunError(
            f"{folder.path}: no summary.json, the run is not finished",
            hint=f"go on with it: her2-server resume {folder.path}",
        )


def conduct_comparison(
    grid: Grid, folder: RunFolder, notify: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Ask every site of a finished run, write compare.json and draw the report; returns the former.
    status.json tells how far it is.

    Raises:
        RunError: the run is not finished, or no site answered; it can be asked for again.
        ConfigError, DataError: the run's first weights or its release cannot be read.
    """
    require_finished(folder)
    notify = folder.logging(notify)
    config = folder.load_config()
    names = config.training
    status = Status(folder.status, config.name, config.run.rounds, names)
    status.step(COMPARISON, len(folder.read_metrics()))
    with status.ended():
        outcomes, replies = _ask(grid, folder, config, names, status, notify)
        if not replies:
            reasons = "; ".join(f"{n} {o.status}: {o.reason}" for n, o in sorted(outcomes.items()))
            raise RunError(
                f"compare: expected an answer of a site, got none of {len(names)} ({reasons})",
                hint=f"fix the problems above, then: her2-server compare {folder.path}",
            )
        way_out = f"the site can fix it; then: her2-server compare {folder.path}"
        with reducing(folder, TASK, sorted(replies), way_out):
            result = document(read_run(folder.path)[0], replies, outcomes)
            folder.write_json(folder.path / COMPARISON_FILE, result)
            write_report(folder.path)
    return result


def _ask(
    grid: Grid,
    folder: RunFolder,
    config: FederationConfig,
    names: Sequence[str],
    status: Status,
    notify: Callable[[str], None],
) -> tuple[dict[str, Outcome], dict[str, Comparison]]:
    """What became of each site, and the answers of those that gave one."""
    last = checkpoint.latest(folder.rounds, notify)
    _, released = read_release(folder.release)
    model = model_with(last, {**last.groups, **released})
    orders = Orders(config, last.state.get("run_id", ""))
    first = read_initial(config)
    sites: dict[str, SiteDescription] = {}
    replies: dict[str, Comparison] = {}
    limits = case_limits(config)

    def order(site: str, whole: bool) -> tuple[Task, RecordDict]:
        if site not in sites:
            return "describe", orders.describe()
        rounds, described = config.run.rounds, sites[site]
        content = orders.work(TASK, rounds, SPLIT, model, described, whole=whole)
        if first is not None:  # else the seed gives them
            own = described.groups
            taken: dict[str, Any] = {g: first.taken[g] for g in own if g in first.taken}
            content["initial"] = vectors_record(taken)
        return TASK, content

    def on_reply(site: str, task: Task, content: RecordDict) -> None:
        if task == "describe":
            sites[site] = read_description(site, content, limits[site])
            return
        reply = read_document(content, "reply", Comparison)
        _check(site, reply, config.run.rounds, sites[site].cases.test, limits[site])
        replies[site] = reply
        notify(f"compare: {site} has answered ({len(replies)}/{len(names)})")

    keys = {site.name: site.public_key for site in config.sites if site.name in names}
    wait_until_online(
        grid,
        keys,
        config.run.start_timeout,
        on_wait=status.pause,
        notify=lambda text: notify(f"{TASK}: {text}"),
    )
    notify(f"{TASK}: each site trains alone, for about as long as its part of the run took")
    outcomes = Exchange(grid, config, notify=notify, on_site=status.site, log=folder.log).ask(
        TASK,
        TASK,
        order,
        on_reply,
        sites=names,
        timeout=config.run.round_timeout * config.run.rounds,
        quorum=0,
    )
    return outcomes, replies


def _check(site: str, reply: Comparison, number: int, cases: int | None, limit: int) -> None:
    """Is this the answer of ``site``, on the test cases (None: not told) that it described, at most
    ``limit``?

    Raises:
        UpdateError: "wrong reply", "stale round", "too many cases" or "wrong count".
    """
    if reply.site != site:
        raise UpdateError(f"{site}: expected its own reply, got another's", reason="wrong reply")
    if reply.round != number:
        raise UpdateError(
            f"{site}: expected round {number}, got {reply.round}", reason="stale round"
        )
    if reply.negatives is None or reply.positives is None:
        return
    check_limit(site, reply.negatives + reply.positives, limit)
    if cases is None:
        return
    if reply.negatives + reply.positives != cases:
        raise UpdateError(
            f"{site}: expected the {cases} test cases that it described, "
            f"got {reply.negatives + reply.positives}",
            reason="wrong count",
        )
