"""The stages of a round, from requests whose times are known."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, Message, Metadata
from flwr.proto.runtime_pb2 import PushAppMessagesRequest

spec = importlib.util.spec_from_file_location(
    "round_profile", Path(__file__).with_name("round_profile.py")
)
assert spec is not None
assert spec.loader is not None
round_profile = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = round_profile
spec.loader.exec_module(round_profile)

RUNTIME, FLEET = round_profile.RUNTIME, round_profile.FLEET


def request(began: float, ended: float, path: str, **bodies: bytes):
    sizes = {"sent": 100, "received": 1000}
    return round_profile.Request(
        began, ended, path, **sizes, **({"request": b"", "response": b""} | bodies)
    )


def message(identity: str, group: str, reply_to: str = "") -> list[Message]:
    metadata = Metadata(message_id=identity, group_id=group, reply_to_message_id=reply_to)
    return [Message(metadata=metadata)]


def confirm(began: float, ended: float, path: str, identity: str):
    body = ConfirmMessageReceivedRequest(message_object_id=identity).SerializeToString()
    return request(began, ended, path + "confirm-message-received", request=body)


def order(began: float, ended: float, identity: str, group: str):
    body = PushAppMessagesRequest(messages_list=message(identity, group)).SerializeToString()
    return request(began, ended, RUNTIME + "push-messages", request=body)


def site_requests(name: str, late: float) -> list:
    """A site that takes its order at 3 s and replies; ``late`` moves its reply."""
    pulled = PullMessagesResponse(messages_list=message(f"order-{name}", "round 2"))
    reply = message(f"reply-{name}", "round 2", f"order-{name}")
    given = PushAppMessagesRequest(messages_list=reply).SerializeToString()
    sent = PushMessagesRequest(messages_list=reply).SerializeToString()
    return [
        request(0.0, 0.1, FLEET + "pull-messages"),  # nothing yet
        request(2.9, 3.0, FLEET + "pull-messages", response=pulled.SerializeToString()),
        request(3.0, 3.2, FLEET + "pull-object"),
        confirm(3.2, 3.3, FLEET, f"order-{name}"),
        confirm(3.5, 3.6, RUNTIME, f"order-{name}"),
        request(late + 4.0, late + 4.1, RUNTIME + "push-messages", request=given),
        request(late + 4.1, late + 4.3, RUNTIME + "push-object"),
        request(late + 4.3, late + 4.4, RUNTIME + "push-task-output"),
        request(late + 4.5, late + 4.6, FLEET + "push-messages", request=sent),
        request(late + 4.6, late + 4.8, FLEET + "push-object"),
        request(late + 4.8, late + 4.9, FLEET + "pull-messages"),
    ]


SERVER = [
    request(1.0, 1.1, RUNTIME + "get-nodes"),
    order(1.1, 1.2, "order-a", "round 2"),
    request(1.2, 1.3, RUNTIME + "push-object"),
    order(1.3, 1.4, "order-b", "round 2"),
    request(1.4, 1.5, RUNTIME + "push-object"),
    confirm(4.9, 5.0, RUNTIME, "reply-a"),
    confirm(6.9, 7.0, RUNTIME, "reply-b"),
    request(7.5, 7.6, RUNTIME + "get-nodes"),
    order(7.6, 7.7, "next-a", "val"),
]


def test_the_stages_are_those_of_the_last_site_and_add_up_to_the_round() -> None:
    sites = {"a": site_requests("a", 0.0), "b": site_requests("b", 2.0)}
    (profile,) = round_profile.profile_rounds(SERVER, sites, [2])
    assert profile.last_site == "b"
    assert sum(profile.seconds) == pytest.approx(7.5 - 1.0)
    expected = [0.5, 1.5, 0.3, 0.3, 2.4, 0.3, 0.2, 0.3, 0.2, 0.5]
    assert list(profile.seconds) == pytest.approx(expected)
    assert len(expected) == len(round_profile.STAGES)


def test_bytes_on_the_wire_are_those_of_one_message() -> None:
    sites = {"a": site_requests("a", 0.0), "b": site_requests("b", 2.0)}
    (profile,) = round_profile.profile_rounds(SERVER, sites, [2])
    assert profile.wire_to_site == {"a": 3000, "b": 3000}  # pull, one object, confirm
    assert profile.wire_from_site == {"a": 200, "b": 200}  # push, one object


def test_overlapping_stages_are_counted_once() -> None:
    """A SuperNode may learn of an order before the coordinator has sent all of it."""
    server = [*SERVER[:4], request(1.4, 3.1, RUNTIME + "push-object"), *SERVER[5:]]
    sites = {"a": site_requests("a", 0.0), "b": site_requests("b", 2.0)}
    (profile,) = round_profile.profile_rounds(server, sites, [2])
    assert profile.seconds[:3] == pytest.approx((2.1, 0.0, 0.2))
    assert sum(profile.seconds) == pytest.approx(7.5 - 1.0)


def test_a_message_that_left_no_trace_is_an_error() -> None:
    sites = {"a": site_requests("a", 0.0)[:5]}
    with pytest.raises(ValueError, match="expected a request /v1/runtime/push-messages"):
        round_profile.profile_rounds(SERVER, sites, [2])
    with pytest.raises(ValueError, match="expected an exchange 'round 3'"):
        round_profile.profile_rounds(SERVER, {}, [3])
