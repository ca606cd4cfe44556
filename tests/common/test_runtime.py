"""Requests of Flower's task protocol are retried; an error that Flower itself answers is not."""

from __future__ import annotations

import json
import time

import httpx
import pytest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from tests.proxies import scripted

from her2_common.runtime import Endpoint

PAGE = b"<html>a page of nginx</html>"
EMPTY = (200, {}, b"")


def ask(address: str, seconds: float = 10.0) -> None:
    client = Endpoint(address, None).client(max_seconds=seconds)
    try:
        client.AcquireTask(AcquireTaskRequest())
    finally:
        client.close()


@pytest.mark.parametrize("status", [500, 404, 502, 503])
def test_a_transient_error_is_retried(status: int) -> None:
    with scripted((status, {}, PAGE), (status, {}, PAGE), EMPTY) as server:
        ask(server.address)
        assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, b'{"detail": "Not authenticated"}'),
        (404, json.dumps({"code": 16, "detail": "Run ID not found"}).encode()),
        (412, json.dumps({"code": 2004, "detail": "Failed"}).encode()),
    ],
)
def test_flowers_own_answer_is_not_tried_again(status: int, body: bytes) -> None:
    with scripted((status, {}, body), EMPTY) as server:
        with pytest.raises(httpx.HTTPStatusError):
            ask(server.address)
        assert len(server.asked) == 1


def test_a_lasting_error_comes_out_after_its_time() -> None:
    began = time.monotonic()
    with scripted((500, {}, PAGE)) as server:
        with pytest.raises(httpx.HTTPStatusError):
            ask(server.address, seconds=0.5)
        assert len(server.asked) > 1
    assert time.monotonic() - began >= 0.5
