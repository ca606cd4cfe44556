"""The account of one round: its line of metrics.jsonl, and the line that a person sees."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from her2_common.metrics import Estimate, ScoreHistogram, auc_interval
from her2_common.wire import SiteDescription, SiteReply
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


def may_join(
    lines: Sequence[Mapping[str, Any]],
    scored: Collection[str],
    sites: Mapping[str, SiteDescription],
) -> bool:
    """May the validation of the sites ``scored`` stand beside that of earlier ``lines``?

    The difference between two sums is the sites that are in one of them alone. It may be told if
    each of these has told its own validation cases and positives, because they are no small cells.
    """
    told: set[str] = set()
    for line in lines:
        if line["validation"]["auc"]:
            parts = line["sites"].items()
            told |= {name for name, part in parts if part["status"] == "accepted"} ^ set(scored)
    described = [sites.get(name) for name in told]
    return all(
        site is not None and None not in (site.cases.val, site.positives.val) for site in described
    )


def best_rounds(lines: Sequence[Mapping[str, Any]], last: Estimate | None = None) -> list[int]:
    """The trained rounds by the validation AUC of their weights, the best first; of equal ones the
    earlier first. Round n's weights are scored in the line of round n + 1; those of the last round
    have ``last``. Rounds whose AUC is not told do not stand in it."""
    found = {
        line["round"] - 1: line["validation"]["auc"]["estimate"]
        for line in lines
        if line["round"] > 1 and line["validation"]["auc"]
    }
    if last is not None and lines:
        found[lines[-1]["round"]] = last.estimate
    return sorted(found, key=lambda number: (-found[number], number))


def out_of_patience(lines: Sequence[Mapping[str, Any]], patience: int | None) -> bool:
    """Have the weights of ``patience`` rounds been scored without one better than the best?"""
    best = best_rounds(lines)
    return patience is not None and bool(best) and lines[-1]["round"] - 1 - best[0] >= patience
