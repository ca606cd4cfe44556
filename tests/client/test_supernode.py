"""What her2_client.supernode changes of Flower's SuperNode, and what it relies on there."""

from __future__ import annotations

import inspect
import json
import os
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx
import pytest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse, PullMessagesRequest
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supernode import fleet_http_connection, start_client_internal
from tests.proxies import scripted

from her2_client import supernode
from her2_client.connection import ANSWERED, FAILED, OPEN_SESSION, UNKNOWN_KEY
from her2_client.supernode import (
    IDLE_SECONDS,
    NODE_ID_FILE,
    REPLY_SECONDS,
    RETRY_SECONDS,
    ImpatientClock,
    Reports,
    RetryingClient,
)

Answer = tuple[int, dict[str, str], bytes]
EMPTY: Answer = (200, {}, b"")
PAGE = b"<html>a page of nginx</html>"
JSON = {"content-type": "application/json"}


def own(status: int, code: int) -> Answer:
    """An error of Flower's application."""
    return status, JSON, json.dumps({"code": code, "detail": "said by Flower"}).encode()


class Client:
    """A client of a scripted SuperLink, and what it reports."""

    def __init__(self, address: str, folder: Path) -> None:
        self._read, write = os.pipe()
        os.set_blocking(self._read, False)

        class Ours(RetryingClient):
            reports = Reports(write)
            node_id_file = folder / NODE_ID_FILE

        self.client = Ours.from_server_address(address, True, None, [])

    def pull(self) -> None:
        self.client.PullMessages(PullMessagesRequest())

    def reported(self) -> list[str]:
        return os.read(self._read, 10_000).decode().splitlines()


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the launcher's clock forward."""
    passed, real = [0.0], time.monotonic
    monkeypatch.setattr(supernode.time, "monotonic", lambda: real() + passed[0])
    return lambda seconds: passed.append(passed.pop() + seconds)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((500, JSON, b'{"detail": "Internal server error."}'), "HTTP 500"),
        ((500, {}, PAGE), "HTTP 500"),
        ((404, {}, PAGE), "HTTP 404"),
        ((403, {}, PAGE), "HTTP 403"),
        ((502, {}, PAGE), "HTTP 502"),
        ((200, {}, PAGE), "an answer that is not the SuperLink's"),
    ],
)
def test_what_is_not_flowers_own_answer_is_tried_again_for_its_time(
    answer: Answer, reason: str, later: Callable[[float], None], tmp_path: Path
) -> None:
    with scripted(answer, answer, EMPTY, answer) as server:
        client = Client(server.address, tmp_path)
        retry = make_simple_http_retry_invoker()  # Flower's own, as its SuperNode uses it
        retry.wait_function = lambda _: None
        retry.invoke(client.pull)
        assert client.reported() == [f"{FAILED} {reason}"] * 2 + [ANSWERED]
        with pytest.raises(httpx.ReadError):
            client.pull()
        later(RETRY_SECONDS)
        with pytest.raises((httpx.HTTPStatusError, ValueError)) as caught:
            client.pull()
        assert not isinstance(caught.value, httpx.TransportError)  # now Flower's rules hold


def test_a_lost_connection_is_reported_and_stays_flowers_to_try_again(tmp_path: Path) -> None:
    with scripted(EMPTY) as server:
        client = Client(server.address, tmp_path)
    with pytest.raises(httpx.TransportError):
        client.pull()
    assert client.reported() == [f"{FAILED} Connection refused"]


def test_flowers_own_refusal_is_an_answer(tmp_path: Path) -> None:
    with scripted(own(403, 2007)) as server:
        client = Client(server.address, tmp_path)
        with pytest.raises(httpx.HTTPStatusError):
            client.pull()
    assert client.reported() == [ANSWERED]


@pytest.mark.parametrize(
    ("off", "expected"),
    [(timedelta(minutes=7), "behind"), (timedelta(minutes=-7), "ahead of"), (timedelta(), None)],
)
def test_a_refused_signature_names_a_wrong_clock(
    off: timedelta, expected: str | None, tmp_path: Path
) -> None:
    date = format_datetime(datetime.now(UTC) + off, usegmt=True)
    with scripted((401, JSON | {"date": date}, b'{"detail": "Invalid authentication"}')) as server:
        client = Client(server.address, tmp_path)
        with pytest.raises(httpx.HTTPStatusError):  # not tried again: Flower ends the process
            client.pull()
    (report,) = client.reported()
    assert "HTTP 401" in report
    assert ("clock" in report) == (expected is not None)
    assert expected is None or expected in report


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (own(403, 2008), OPEN_SESSION),  # no such run: but who asks is known
        ((401, JSON, b'{"detail": "Invalid SuperNode authentication"}'), UNKNOWN_KEY),
        ((502, {}, PAGE), UNKNOWN_KEY),
    ],
)
def test_a_refused_key_is_known_or_not(
    asked: Answer, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(supernode, "log", lambda _level, text, *_: logged.append(text))
    accepted = 200, {}, ActivateNodeResponse(node_id=77).SerializeToString()
    with scripted(accepted, own(412, 2004), asked) as server:
        client = Client(server.address, tmp_path).client
        client.ActivateNode(ActivateNodeRequest())
        assert (tmp_path / NODE_ID_FILE).read_text() == "77\n"
        with pytest.raises(httpx.HTTPStatusError):
            client.ActivateNode(ActivateNodeRequest())
        assert server.asked[-1] == "/v1/fleet/get-run"
    assert logged == [found]


def test_a_key_that_was_never_accepted_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(supernode, "log", lambda _level, text, *_: logged.append(text))
    with scripted(own(412, 2004)) as server:
        client = Client(server.address, tmp_path).client
        with pytest.raises(httpx.HTTPStatusError):
            client.ActivateNode(ActivateNodeRequest())
        assert server.asked == ["/v1/fleet/activate-node"]
    assert logged == [UNKNOWN_KEY]


def test_reports_never_make_the_supernode_wait(tmp_path: Path) -> None:
    """A site at work does not listen for a while; one that is gone never will."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    reports = Reports(write)
    for number in range(20_000):
        reports.failed(f"reason {number}")
    os.close(read)
    reports.failed("nobody listens")
    assert reports.last == "nobody listens"
    os.close(write)


@pytest.fixture
def quiet_main(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], int]:
    """Runs the launcher with a play in place of Flower's loop; returns the exit status."""
    for module, name in (
        (start_client_internal, "time"),
        (fleet_http_connection, "FleetHttpClient"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(RetryingClient, "reports", Reports(None))
    monkeypatch.setattr(RetryingClient, "node_id_file", None)
    monkeypatch.delenv("HER2_REPORTS", raising=False)
    monkeypatch.setattr("flwr.supercore.exit.exit.threading.Thread", _NoThread)

    def run(loop: Callable[[], None]) -> int:
        monkeypatch.setattr(supernode, "flower_supernode", loop)
        with pytest.raises(SystemExit) as caught:
            supernode.main()
        return int(caught.value.code or 0)

    return run


class _NoThread:
    """flwr_exit starts one that ends the process, this one, after 5 s."""

    def __init__(self, **_: object) -> None: ...

    def start(self) -> None: ...


def test_the_process_ends_with_flowers_loop(quiet_main: Callable[..., int]) -> None:
    assert quiet_main(lambda: None) == 1


def test_the_process_ends_with_an_error_of_its_loop(quiet_main: Callable[..., int]) -> None:
    def loop() -> None:
        raise RuntimeError("unexpected")

    assert quiet_main(loop) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_by_an_error_does_not_end_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    ended: list[bool] = []
    supernode.end_with_threads(lambda: ended.append(True))

    def die() -> None:
        raise RuntimeError("the SuperLink does not recognize this SuperNode")

    for work, expected in ((lambda: None, []), (die, [True])):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert ended == expected


def test_flower_holds_what_is_replaced() -> None:
    """Pins what her2_client.supernode relies on."""
    source = inspect.getsource(fleet_http_connection.http_request_response)
    assert "with FleetHttpClient.from_server_address(" in source
    loop = inspect.getsource(start_client_internal.start_client_internal)
    assert "http_request_response" not in loop  # it is reached through _init_connection
    assert start_client_internal.http_request_response is (
        fleet_http_connection.http_request_response
    )


def test_the_impatient_clock_is_where_flower_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pins what her2_client.supernode relies on: the module's ``time`` and its two sleeps."""
    source = inspect.getsource(start_client_internal)
    assert start_client_internal.time is time
    assert source.count("time.sleep(3)") == 1
    assert set(re.findall(r"time\.sleep\(([^)]*)\)", source)) == {"3", "0.5"}
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    clock = ImpatientClock()
    for seconds in (3, 0.5, 0.01):
        clock.sleep(seconds)
    assert slept == [IDLE_SECONDS, REPLY_SECONDS, 0.01]
    assert clock.monotonic() > 0
