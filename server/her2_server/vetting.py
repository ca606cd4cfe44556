"""Can the sites do what is asked, and is a reply the answer to its order: does it count what its
site described?"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flwr.app import RecordDict

from her2_common import __version__
from her2_common.cases import MODALITIES, Split
from her2_common.config import FederationConfig, Task
from her2_common.errors import RunError, UpdateError
from her2_common.metrics import ScoreHistogram
from her2_common.model import GROUPS
from her2_common.wire import SiteDescription, SiteReply, read_document
from her2_server.aggregation import MAX_CASES


def case_limits(config: FederationConfig) -> dict[str, int]:
    """The most cases of each site that are believed: its ``max_cases``, and its share of the room
    that the sums over sites have."""
    room = MAX_CASES // len(config.sites)
    return {site.name: min(site.max_cases, room) for site in config.sites}


def read_description(site: str, content: RecordDict, limit: int) -> SiteDescription:
    """What ``site``, of at most ``limit`` cases, says of itself.

    Raises:
        UpdateError: "wrong name", "wrong version", "too many cases", "wrong count" of counts that
            contradict each other, or it breaks the schema.
    """
    description = read_document(content, "reply", SiteDescription)
    if description.site != site:
        raise UpdateError(f"site {site} calls itself {description.site}", reason="wrong name")
    if description.version != __version__:
        raise UpdateError(
            f"{site}: expected version {__version__}, got {description.version}",
            reason="wrong version",
        )
    _check_description(description, limit)
    return description


def _check_description(described: SiteDescription, limit: int) -> None:
    cases, positives = described.cases.model_dump(), described.positives.model_dump()
    known = sum(n for n in cases.values() if n is not None)
    combinations = sum(n for n in described.combinations.values() if n is not None)
    accepted, in_table = described.flow.accepted, described.flow.in_table
    told = (known, combinations, accepted or 0, *(n or 0 for n in positives.values()))
    check_limit(described.site, max(told), limit)
    sound = (
        all(None in (cases[s], n) or n <= cases[s] for s, n in positives.items())
        and (accepted is None or max(known, combinations) <= accepted)
        and (None in (accepted, in_table) or (accepted or 0) <= (in_table or 0))
    )
    if not sound:
        raise UpdateError(
            f"{described.site}: expected counts that agree, got parts above their whole",
            reason="wrong count",
        )


def check_sites(
    config: FederationConfig,
    sites: Mapping[str, SiteDescription],
    notify: Callable[[str], None],
) -> None:
    """Can these sites train what is asked? ``notify`` hears what they cannot.

    Raises:
        RunError: no site tells HER2-low from HER2-zero in a run of three levels, or the site left
            out has a modality that no other can train.
    """
    training = {name: site for name, site in sites.items() if name != config.left_out}
    guest = sites.get(config.left_out or "")
    for group in GROUPS:
        if any(group in site.groups for site in training.values()):
            continue
        if guest is not None and group in guest.groups:
            raise RunError(
                f"left_out: {guest.site} has {group}, and no other site can train it",
                hint="leave out another site: her2-server leave-one-out --without",
            )
        notify(f"no site can train the group {group!r}; it keeps its first values")
    if config.run.her2_levels == 2:
        return
    without = sorted(name for name, site in training.items() if not site.levels)
    if len(without) == len(training):
        raise RunError(
            "run.her2_levels: expected a site with raw IHC of enough negatives, got none",
            hint="begin a run with her2_levels: 2",
        )
    for name in without:
        notify(f"{name} trains positive against negative alone: too few raw IHC results")


def check_reply(site: str, reply: SiteReply, task: Task, number: int, split: Split) -> None:
    """Is this the reply to the order that ``site`` was given?

    Raises:
        UpdateError: "wrong reply" or "stale round".
    """
    if (reply.site, reply.task, reply.split) != (site, task, split):
        raise UpdateError(f"{site}: expected a reply to {task} on {split}", reason="wrong reply")
    if reply.round != number:
        raise UpdateError(
            f"{site}: expected round {number}, got {reply.round}", reason="stale round"
        )


def check_counts(reply: SiteReply, described: SiteDescription, limit: int) -> None:
    """A site's weight in a sum is what it described, and at most ``limit`` cases.

    Raises:
        UpdateError: "wrong groups", "too many cases" or "wrong count".
    """
    if set(reply.counts) != set(described.groups):
        raise UpdateError(f"{reply.site}: expected its own groups", reason="wrong groups")
    total = reply.counts["head"]
    check_limit(reply.site, total, limit)
    if (
        max(reply.counts.values()) > total
        or min(reply.counts.values()) < 1
        or (described.cases.train is not None and total != described.cases.train)
    ):
        raise UpdateError(
            f"{reply.site}: expected the training cases it described, got {total}",
            reason="wrong count",
        )


def check_limit(site: str, cases: int, limit: int) -> None:
    """Does a site count no more cases than are believed?

    Raises:
        UpdateError: "too many cases".
    """
    if cases > limit:
        raise UpdateError(
            f"{site}: expected at most {limit} cases (sites.max_cases), got {cases}",
            reason="too many cases",
        )


def check_scores(
    described: SiteDescription,
    split: Split,
    scores: Mapping[str, ScoreHistogram],
    limit: int,
    distances: Mapping[str, ScoreHistogram] | None = None,
) -> None:
    """A site's histograms count the cases of ``split`` that it described, each as often as it can
    be, and at most ``limit``: no site decides for the others by cases that it does not have.

    Raises:
        UpdateError: "too many cases" or "wrong count".
    """
    fused = {k.split("|")[1]: h for k, h in scores.items() if k.startswith("fused|")}
    total, positive = sum(h.n for h in fused.values()), sum(h.m for h in fused.values())
    having: dict[str, tuple[int, int]] = {
        m: (sum(h.n for h in with_m), sum(h.m for h in with_m))
        for m in MODALITIES
        for with_m in [[h for name, h in fused.items() if m in name.split("+")]]
    }
    single = {k.split("|")[1]: (h.n, h.m) for k, h in scores.items() if k.startswith("single|")}
    low = {k.split("|")[1]: h.n for k, h in scores.items() if k.startswith("low|")}
    check_limit(described.site, total, limit)
    sound = (
        getattr(described.cases, split) in (None, total)
        and getattr(described.positives, split) in (None, positive)
        and all(counts == having[m] for m, counts in single.items())
        and all(name in fused and n <= fused[name].n - fused[name].m for name, n in low.items())
        and all(h.n == having[m][0] and h.m == 0 for m, h in (distances or {}).items())
    )
    if not sound:
        raise UpdateError(
            f"{described.site}: expected scores of the {split} cases it described, got {total}",
            reason="wrong count",
        )
