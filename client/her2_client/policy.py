"""What a site allows, decided at the site: every order passes here before anything is computed.

Fails closed: what is not allowed by name is refused with a PolicyError that says which rule.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final, TypeVar

from her2_common import __version__
from her2_common.bundle import bundle_hash
from her2_common.config import Policy
from her2_common.errors import PolicyError
from her2_common.files import replace_privately
from her2_common.wire import TaskOrder

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
        known: dict[str, dict[str, str]] = json.loads(path.read_bytes()) if path.exists() else {}
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


def check_update(policy: Policy, counts: Mapping[str, int]) -> None:
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


def tell(policy: Policy, cases: int) -> int | None:
    """A count as it may leave: None below policy.min_cell, 0 as it is."""
    return cases if cases == 0 or cases >= policy.min_cell else None


Key = TypeVar("Key", bound=str)


def tell_parts(policy: Policy, parts: Mapping[Key, int]) -> dict[Key, int | None]:
    """Counts that add up to a known total, as they may leave.

    One hidden part would be the total minus the others. So the smallest parts are hidden, one
    after the other, until none of the shown ones is small and the hidden ones are together no
    small cell either.
    """
    limit = policy.min_cell
    hidden: set[Key] = {key for key, cases in parts.items() if 0 < cases < limit}
    shown = sorted(
        (key for key in parts if key not in hidden and parts[key]), key=lambda k: parts[k]
    )
    while hidden and shown and (len(hidden) < 2 or sum(parts[k] for k in hidden) < limit):
        hidden.add(shown.pop(0))
    return {key: None if key in hidden else cases for key, cases in parts.items()}


def tell_part(policy: Policy, part: int, whole: int) -> int | None:
    """A count out of a known total as it may leave: None if it or the rest is a small cell."""
    rest_is_small = tell(policy, whole - part) is None
    return None if rest_is_small else tell(policy, part)
