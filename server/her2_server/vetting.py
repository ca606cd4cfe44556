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


def read_description(site: str, content: RecordDict) -> SiteDescription:
    """What ``site`` says of itself.

    Raises:
        UpdateError: "wrong name", "wrong version", or it breaks the schema.
    """
    description = read_document(content, "reply", SiteDescription)
    if description.site != site:
        raise UpdateError(f"site {site} calls itself {description.site}", reason="wrong name")
    if description.version != __version__:
        raise UpdateError(
            f"{site}: expected version {__version__}, got {description.version}",
            reason="wrong version",
        )
    return description


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


def check_counts(reply: SiteReply, described: SiteDescription, sites: int) -> None:
    """A site's weight in a sum is what it described, and leaves room for the other ``sites``.

    Raises:
        UpdateError: "wrong groups" or "wrong count".
    """
    if set(reply.counts) != set(described.groups):
        raise UpdateError(f"{reply.site}: expected its own groups", reason="wrong groups")
    limit = MAX_CASES // sites
    total = reply.counts.get("head", 0)
    if max(reply.counts.values(), default=0) > min(total, limit) or (
        described.cases.train is not None and total != described.cases.train
    ):
        raise UpdateError(
            f"{reply.site}: expected the training cases it described, got {total}",
            reason="wrong count",
        )


def check_scores(
    described: SiteDescription,
    split: Split,
    scores: Mapping[str, ScoreHistogram],
    sites: int,
    distances: Mapping[str, ScoreHistogram] | None = None,
) -> None:
    """A site's histograms count the cases of ``split`` that it described, each as often as it can
    be: no site decides for the others by cases that it does not have.

    Raises:
        UpdateError: "wrong count".
    """
    fused = {k.split("|")[1]: h for k, h in scores.items() if k.startswith("fused|")}
    told, total = getattr(described.cases, split), sum(h.n for h in fused.values())
    having: dict[str, int] = {
        m: sum(h.n for name, h in fused.items() if m in name.split("+")) for m in MODALITIES
    }
    low = {k.split("|")[1]: h.n for k, h in scores.items() if k.startswith("low|")}
    sound = (
        total <= MAX_CASES // sites
        and told in (None, total)
        and all(scores[f"single|{m}"].n == having[m] for m in MODALITIES if f"single|{m}" in scores)
        and all(name in fused and n <= fused[name].n - fused[name].m for name, n in low.items())
        and all(h.n == having[m] for m, h in (distances or {}).items())
    )
    if not sound:
        raise UpdateError(
            f"{described.site}: expected scores of the {split} cases it described, got {total}",
            reason="wrong count",
        )
