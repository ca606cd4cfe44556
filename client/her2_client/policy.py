"""What a site allows, decided at the site: every order passes here before anything is computed.

Fails closed: what is not allowed by name is refused with a PolicyError that says which rule.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final

from her2_common import __version__
from her2_common.bundle import bundle_hash
from her2_common.cases import MODALITIES, LabelSource, Split, post_therapy
from her2_common.config import Policy
from her2_common.documents import parse_json
from her2_common.errors import PolicyError
from her2_common.files import replace_privately
from her2_common.model import Group
from her2_common.wire import LeftOut, TaskOrder
from her2_common.withhold import TOTAL, WHOLE, Counts, withhold

TESTED: Final = "tested.json"
"""Under a site's ``state``: {run: {group: fingerprint}}, the weights that scored its test cases."""


def check_bundle(policy: Policy, content: bytes) -> None:
    """Is the run's bundle the installed version's own, or one that the site lists?

    Raises:
        PolicyError: it is neither. The content is hashed, never unpacked.
    """
    got = bundle_hash(content)
    if got != bundle_hash() and got not in policy.allowed_bundles:
        raise PolicyError(
            f"bundle {got[:16]}... is not her2-map {__version__} and not in policy.allowed_bundles",
            hint="install the version that the coordinator runs, or list the bundle's hash",
        )


def check_order(policy: Policy, order: TaskOrder) -> None:
    """Is this order allowed here?

    Raises:
        PolicyError: naming the rule that refuses it.
    """
    if order.version != __version__:
        raise PolicyError(
            f"expected an order of her2-map {__version__}, got version {order.version}",
            hint="install the same version at the site and the coordinator",
        )
    if order.task not in policy.allowed_tasks:
        allowed = ", ".join(policy.allowed_tasks) or "none"
        raise PolicyError(f"policy.allowed_tasks: {order.task!r} is not among {allowed}")
    if order.task == "evaluate" and order.split == "train":
        raise PolicyError("scores of the train cases: training cases are never scored for others")
    if order.task == "compare" and order.split != "test":
        raise PolicyError(f"compare on the {order.split} cases: expected the test cases")
    last = order.plan.patience is not None or order.round == order.plan.rounds
    if order.task == "profile" and (order.split != "val" or not last):
        raise PolicyError(
            f"profile of the {order.split} cases after round {order.round} of "
            f"{order.plan.rounds}: expected one of the val cases, after the last round"
        )
    if order.task == "response" and order.split != "test":
        raise PolicyError(
            f"response on the {order.split} cases: expected the test cases, which neither trained "
            "the model nor chose its threshold"
        )
    if order.task == "response" and post_therapy([order.plan.label]):
        raise PolicyError(
            f"response of a model with label: {order.plan.label}: that label holds the outcome of "
            "therapy, expected HER2 from before it"
        )
    if order.plan.min_cell < policy.min_cell:
        raise PolicyError(
            f"policy.min_cell: expected a run whose report shows no group of fewer than "
            f"{policy.min_cell}, got run.min_cell {order.plan.min_cell}"
        )
    if max(order.round, order.plan.rounds) > policy.max_rounds:
        raise PolicyError(
            f"policy.max_rounds: expected at most {policy.max_rounds} rounds, "
            f"got {max(order.round, order.plan.rounds)}"
        )


def check_tested(state: Path, order: TaskOrder) -> None:
    """Have the test cases been scored with other weights in this run?

    Within a run, of one name and one plan, they are scored with one set of weights only, so that
    nothing can be chosen by them. The site itself keeps the fingerprints, in ``state``/tested.json,
    before it scores; the coordinator's word is not needed for it.

    The fingerprints are on the disk before the first case is scored. If they cannot be written,
    nothing is scored and nothing is kept: the same order may come again once there is room.

    Raises:
        PolicyError: they have, or tested.json cannot be read.
        OSError: the fingerprints cannot be written.
    """
    path = state / TESTED
    run = f"{order.run} {sha256(order.plan.model_dump_json().encode()).hexdigest()[:16]}"
    weights = {name: print_ for name, print_ in order.weights.items() if "." not in name}
    try:
        known: dict[str, dict[str, str]] = parse_json(path.read_bytes()) if path.exists() else {}
        before = dict(known.get(run, {}))
    except (ValueError, TypeError, AttributeError):
        raise PolicyError(f"{path}: damaged", hint="restore it from a backup") from None
    if other := sorted(
        name for name in weights if before.get(name, weights[name]) != weights[name]
    ):
        raise PolicyError(
            f"test cases: run {order.run} has had them scored with other weights "
            f"({', '.join(other)}); expected one set of weights a run",
            hint=f"what was scored stands in {path}",
        )
    if not weights.keys() <= before.keys():
        content = json.dumps(known | {run: before | weights}, indent=1) + "\n"
        replace_privately(path, content.encode())


def check_update(policy: Policy, counts: Mapping[Group, int]) -> None:
    """May an update made from these many cases a group leave?

    Raises:
        PolicyError: a group was trained on fewer than policy.min_cases cases.
    """
    for group, cases in counts.items():
        if cases < policy.min_cases:
            raise PolicyError(
                f"policy.min_cases: group {group!r} has {cases} training cases, "
                f"expected at least {policy.min_cases}"
            )


def described(
    min_cell: int,
    *,
    left_out: int,
    cases: Mapping[Split, int],
    positives: Mapping[Split, int],
    combinations: Mapping[str, int],
    label_sources: Mapping[LabelSource, int],
    left_out_for: Mapping[LeftOut, int],
) -> dict[str, dict[str, int | None]]:
    """The counts of ``describe`` as they may leave, None where one is withheld.

    ``flow`` (in_table, accepted, left_out), ``cases``, ``positives``, ``combinations``,
    ``label_sources`` (of the cases accepted) and ``left_out_for`` (of the others). Withheld is a
    count from 1 to ``min_cell`` - 1, and what it could be worked out from (her2_common.withhold),
    also for counts that nobody is told: negatives, cases with a modality.
    Zeros are shown, but for an empty class: beside it the label of every case would be known.
    """
    counts, accepted = Counts(), sum(cases.values())
    whole = counts.publish(("flow", "accepted"), accepted, WHOLE)
    out = counts.publish(("flow", "left_out"), left_out)
    in_table = counts.publish(("flow", "in_table"), accepted + left_out, WHOLE)
    counts.equal([in_table], [whole, out])
    splits = {s: counts.publish(("cases", s), n, TOTAL) for s, n in cases.items()}
    counts.equal([whole], splits.values())
    negatives = []
    for split, n in positives.items():
        classes = counts.publish(("positives", split), n), counts.keep(cases[split] - n)
        negatives.append(classes[1])
        counts.equal([splits[split]], classes)
        if n in (0, cases[split]) and cases[split]:
            counts.secret.update(classes)  # the empty class would tell the label of everybody
    parts = {name: counts.publish(("combinations", name), n) for name, n in combinations.items()}
    counts.equal([whole], parts.values())
    for table, total, given in (
        ("label_sources", whole, label_sources),
        ("left_out_for", out, left_out_for),
    ):
        of_name = {name: counts.publish((table, name), n) for name, n in given.items()}
        counts.equal([total], of_name.values())
        if "no_surgery" in of_name:  # all of them without a pCR
            counts.equal(negatives, [of_name["no_surgery"], counts.keep()])
    for modality in MODALITIES:
        having = [name for name in combinations if modality in name.split("+")]
        total = counts.keep(sum(combinations[name] for name in having))
        counts.equal([total], [parts[name] for name in having])
    withheld = withhold(counts, min_cell)
    result: dict[str, dict[str, int | None]] = {
        "flow": {}, "cases": {}, "positives": {}, "combinations": {},
        "label_sources": {}, "left_out_for": {},
    }  # fmt: skip
    for name, value in zip(counts.names, counts.values, strict=True):
        if name is not None:
            result[name[0]][name[1]] = None if name in withheld else value
    return result
