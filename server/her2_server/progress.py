"""The account of one round: its line of metrics.jsonl, and the line that a person sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from her2_common.metrics import Estimate, ScoreHistogram, auc_interval
from her2_common.wire import SiteReply
from her2_server.closing import pooled_fused
from her2_server.evaluation import SiteScores, is_small
from her2_server.exchange import Outcome


def publishable_auc(histogram: ScoreHistogram, min_cell: int) -> Estimate | None:
    """The AUC, unless a class has fewer cases than ``min_cell``."""
    return None if is_small(histogram, min_cell) else auc_interval(histogram)


def metrics_line(
    number: int,
    seconds: Mapping[str, float],
    replies: Mapping[str, SiteReply],
    outcomes: Mapping[str, Outcome],
    scores: SiteScores,
    *,
    min_cell: int,
    whole: bool,
) -> dict[str, Any]:
    """The line of round ``number``.

    ``whole`` says that every site of the run has sent its ``scores``: without one site's cases the
    difference to other rounds would be that site, so nothing is told of the validation then.
    """
    histogram = pooled_fused(scores)
    interval = publishable_auc(histogram, min_cell) if whole else None
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
                    round(replies[name].seconds.get("train", 0.0), 4) if name in replies else None
                ),
                "sent_bytes": outcome.bytes_from_site,
                "received_bytes": outcome.bytes_to_site,
            }
            for name, outcome in sorted(outcomes.items())
        },
    }


def told(line: Mapping[str, Any], rounds: int) -> str:
    """A round of ``rounds`` in one line, for the person who watches."""
    sites, auc, loss = line["sites"].values(), line["validation"]["auc"], line["loss"]
    accepted = sum(site["status"] == "accepted" for site in sites)
    return (
        f"round {line['round']:>{len(str(rounds))}}/{rounds}  "
        f"{accepted}/{len(sites)} sites  loss {'-' if loss is None else format(loss, '.3f')}  "
        f"AUC before it {format(auc['estimate'], '.3f') if auc else '  -  '}  "
        f"{line['seconds']['total']:.1f} s"
    )
