"""Where the seconds of a round go, from the requests that probe/sitecustomize.py writes down.

A round is followed along the site whose reply the coordinator took last: it alone decides when
the round ends, so its stages, one after the other, are the round.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, Metadata
from flwr.proto.runtime_pb2 import PushAppMessagesRequest

RUNTIME: Final = "/v1/runtime/"
FLEET: Final = "/v1/fleet/"

STAGES: Final = (
    "coordinator sends its orders",
    "order waits until the SuperNode asks",
    "SuperNode takes the order",
    "app's process takes the order",
    "app answers (imports, model, scoring)",
    "app's process gives the reply",
    "reply waits until the SuperNode looks",
    "SuperNode sends the reply",
    "coordinator takes the reply",
    "coordinator averages and writes",
)
"""The stages of a round in their order; each ends where the next begins."""


@dataclass(frozen=True)
class Request:
    """One HTTP request: monotonic seconds, path, bytes of both bodies, small control bodies."""

    began: float
    ended: float
    path: str
    sent: int
    received: int
    request: bytes
    response: bytes


@dataclass(frozen=True)
class RoundProfile:
    """Seconds of each of STAGES, the site that was last, and bytes on the wire of every site."""

    number: int
    seconds: tuple[float, ...]
    last_site: str
    wire_to_site: Mapping[str, int]
    wire_from_site: Mapping[str, int]


def read_requests(folder: Path, name: str) -> list[Request]:
    """The requests of all processes that ran under this name, by the time at which they began."""
    found = []
    for file in folder.glob(f"{name}-*.jsonl"):
        for text in file.read_text(encoding="ascii").splitlines():
            line: dict[str, Any] = json.loads(text)
            for body in ("request", "response"):
                line[body] = base64.b64decode(line[body])
            found.append(Request(**line))
    return sorted(found, key=lambda request: request.began)


def profile_rounds(
    server: Sequence[Request], sites: Mapping[str, Sequence[Request]], rounds: Iterable[int]
) -> list[RoundProfile]:
    """Follow each of ``rounds``; ``sites`` maps the name of a site to its requests.

    Raises:
        ValueError: a request that a round must have is not there.
    """
    return [_profile(server, sites, number) for number in rounds]


def mean_seconds(profiles: Sequence[RoundProfile]) -> tuple[float, ...]:
    """The mean of each stage: means add up to the mean round, medians would not."""
    return tuple(fmean(values) for values in zip(*(p.seconds for p in profiles), strict=True))


def _profile(
    server: Sequence[Request], sites: Mapping[str, Sequence[Request]], number: int
) -> RoundProfile:
    started, ended = _bounds(server, f"round {number}")
    marks: dict[str, list[float]] = {}
    to_site, from_site = {}, {}
    for name, requests in sites.items():
        marks[name], to_site[name], from_site[name] = _follow(server, requests, f"round {number}")
    last = max(marks, key=lambda name: marks[name][-1])
    # Stages may overlap (a SuperNode offers a task before it has the content): a stage begins
    # when all before it are over, so that no second is counted twice.
    line = list(accumulate([started, *marks[last], ended], max))
    seconds = tuple(after - before for before, after in pairwise(line))
    return RoundProfile(number, seconds, last, to_site, from_site)


def _bounds(server: Sequence[Request], group: str) -> tuple[float, float]:
    """When the exchange of ``group`` began and when the next one did."""
    begins: dict[str, float] = {}
    nodes = 0.0
    for request in server:
        if request.path == RUNTIME + "get-nodes":
            nodes = request.began
        elif request.path == RUNTIME + "push-messages":
            begins.setdefault(_pushed(PushAppMessagesRequest, request)[0].group_id, nodes)
    order = list(begins)
    if group not in begins or order[-1] == group:
        raise ValueError(f"expected an exchange {group!r} and one after it, got {order}")
    return begins[group], begins[order[order.index(group) + 1]]


def _follow(
    server: Sequence[Request], site: Sequence[Request], group: str
) -> tuple[list[float], int, int]:
    """When each stage but the last ended for this site, and the bytes to and from it."""
    taken, order = _first(
        site,
        FLEET + "pull-messages",
        lambda r: [m.metadata for m in PullMessagesResponse.FromString(r.response).messages_list],
        lambda m: m.group_id == group,
    )
    identity = order.message_id

    def confirmed(requests: Sequence[Request], path: str, message: str) -> Request:
        kind = ConfirmMessageReceivedRequest
        return _first(
            requests,
            path + "confirm-message-received",
            lambda r: [kind.FromString(r.request).message_object_id],
            lambda found: found == message,
        )[0]

    def pushed(
        requests: Sequence[Request], kind: Any, path: str, match: Callable[[Metadata], bool]
    ) -> tuple[Request, Metadata]:
        return _first(requests, path + "push-messages", lambda r: _pushed(kind, r), match)

    def replies(metadata: Metadata) -> bool:
        return metadata.reply_to_message_id == identity

    ordered, _ = pushed(server, PushAppMessagesRequest, RUNTIME, lambda m: m.message_id == identity)
    received = confirmed(site, FLEET, identity)
    begun = confirmed(site, RUNTIME, identity)
    answered, reply = pushed(site, PushAppMessagesRequest, RUNTIME, replies)
    sending, _ = pushed(site, PushMessagesRequest, FLEET, replies)
    ended = _objects_end(site, sending, FLEET)
    marks = [
        _objects_end(server, ordered, RUNTIME),
        taken.ended,
        received.ended,
        begun.ended,
        answered.began,
        _objects_end(site, answered, RUNTIME),
        sending.began,
        ended,
        confirmed(server, RUNTIME, reply.message_id).ended,
    ]
    fleet = [r for r in site if r.path.startswith(FLEET) and r.ended <= ended]
    return (
        marks,
        sum(r.received for r in fleet if taken.began <= r.began <= received.began),
        sum(r.sent for r in fleet if r.began >= sending.began),
    )


def _objects_end(requests: Sequence[Request], message: Request, path: str) -> float:
    """When the last object of a message was pushed."""
    end = message.ended
    for request in requests:
        if request.began < message.ended or not request.path.startswith(path):
            continue
        if request.path == path + "push-object":
            end = max(end, request.ended)
        elif not request.path.endswith("heartbeat") and not request.path.endswith("acquire-task"):
            break
    return end


def _pushed(kind: Any, request: Request) -> list[Metadata]:
    return [m.metadata for m in kind.FromString(request.request).messages_list]


def _first(
    requests: Sequence[Request],
    path: str,
    read: Callable[[Request], list[Any]],
    match: Callable[[Any], bool],
) -> tuple[Request, Any]:
    for request in requests:
        if request.path == path:
            for found in read(request):
                if match(found):
                    return request, found
    raise ValueError(f"expected a request {path}, got none of that message")
