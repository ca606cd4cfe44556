"""One exchange with the sites: orders out, replies in as they come, an end in any case.

1. Push an order to every site that is online.
2. Pull replies; hand each to the caller at once, so that it can be folded in and forgotten.
3. End when every site has answered, or at the timeout. Every site that was asked ends up with one
   outcome: accepted, refused (with the reason) or missing (with the reason).

The caller checks what a reply says of itself (``check_reply``, ``check_counts``) and, at the end,
whether enough sites were accepted (``require_quorum``).

Flower reports a lost node without its id, so outcomes are kept by message id; a message that is
lost on the way gives no report at all, so silence until the timeout counts as missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from her2_common.cases import MODALITIES, Split
from her2_common.config import Task
from her2_common.errors import RunError, UpdateError
from her2_common.metrics import ScoreHistogram
from her2_common.wire import SiteDescription, SiteReply, payload_bytes
from her2_server.aggregation import MAX_CASES

POLL_SECONDS: Final = 0.1

NODE_UNAVAILABLE: Final = 5  # flwr.common.constant.ErrorCode.NODE_UNAVAILABLE
STATUS = Literal["accepted", "refused", "missing"]


@dataclass(frozen=True)
class Outcome:
    """What became of one site's part. Bytes are those of the content, seconds wall time."""

    status: STATUS
    reason: str | None
    seconds: float
    bytes_to_site: int
    bytes_from_site: int


def openssh_key(public_key: bytes) -> str:
    """A node's public key (PEM, as Flower holds it) in the OpenSSH form of federation.yaml."""
    key = load_pem_public_key(public_key)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return ""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def online_sites(grid: Grid, keys: Mapping[str, str]) -> dict[str, int]:
    """The node id of every site that is online. ``keys`` maps site name to its public key.

    A node whose key stands in no federation.yaml is nobody's site and is never asked.
    """
    name_of = {" ".join(key.split()[:2]): name for name, key in keys.items()}
    found = {}
    for node in grid.get_nodes():
        name = name_of.get(openssh_key(node.public_key))
        if name is not None:
            found[name] = node.node_id
    return {name: found[name] for name in keys if name in found}


def exchange(
    grid: Grid,
    nodes: Mapping[str, int],
    orders: Mapping[str, RecordDict],
    *,
    message_type: str,
    group_id: str,
    timeout: float,
    on_reply: Callable[[str, RecordDict], None],
    on_outcome: Callable[[str, Outcome], None] = lambda _site, _outcome: None,
) -> dict[str, Outcome]:
    """Send each site its order and collect the replies until ``timeout`` seconds have passed.

    ``on_reply`` may raise UpdateError to refuse a reply. The result has an outcome for each order.
    """
    started = time.monotonic()
    outcomes: dict[str, Outcome] = {}
    waiting: dict[str, str] = {}  # message id: site
    sent: dict[str, int] = {}

    def end(site: str, status: STATUS, reason: str | None, received: int = 0) -> None:
        seconds = time.monotonic() - started
        outcomes[site] = Outcome(status, reason, seconds, sent.get(site, 0), received)
        on_outcome(site, outcomes[site])

    for site, content in orders.items():
        if site not in nodes:
            end(site, "missing", "not online")
            continue
        message = Message(content, nodes[site], message_type, ttl=timeout + 60.0, group_id=group_id)
        ids = list(grid.push_messages([message]))
        if not ids or not ids[0]:
            end(site, "missing", "the SuperLink did not take its order")
            continue
        sent[site] = payload_bytes(content)
        waiting[ids[0]] = site

    while waiting and time.monotonic() - started < timeout:
        replies = _pull(grid, waiting)
        for reply in replies:
            site = waiting.pop(reply.metadata.reply_to_message_id, "")
            if not site:
                continue  # a second reply to the same order
            if reply.has_error():
                code = reply.error.code
                status: STATUS = "missing" if code == NODE_UNAVAILABLE else "refused"
                reason = "the site was lost" if code == NODE_UNAVAILABLE else _site_reason(reply)
                end(site, status, reason)
                continue
            received = payload_bytes(reply.content)
            try:
                on_reply(site, reply.content)
            except UpdateError as error:
                end(site, "refused", error.reason, received)
            else:
                end(site, "accepted", None, received)
        if waiting and not replies:
            time.sleep(POLL_SECONDS)
    for site in waiting.values():
        end(site, "missing", f"no reply within {timeout:.0f} s")
    return outcomes


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


def require_quorum(what: str, outcomes: Mapping[str, Outcome], quorum: int, folder: str) -> None:
    """Raises:
    RunError: fewer than ``quorum`` sites were accepted; it names the others.
    """
    accepted = [name for name, outcome in outcomes.items() if outcome.status == "accepted"]
    if len(accepted) >= quorum:
        return
    reasons = "; ".join(
        f"{name} {outcome.status}: {outcome.reason}"
        for name, outcome in sorted(outcomes.items())
        if outcome.status != "accepted"
    )
    raise RunError(
        f"{what}: expected {quorum} sites, got {len(accepted)} ({reasons})",
        hint=f"mend what is named, then: her2-server resume {folder}",
    )


def _pull(grid: Grid, waiting: Iterable[str]) -> list[Message]:
    return list(grid.pull_messages(list(waiting)))


def _site_reason(reply: Message) -> str:
    """The site's error code; anything longer than a code is not repeated."""
    reason = reply.error.reason or "error"
    return f"site error: {reason}" if reason.isidentifier() else "site error"
