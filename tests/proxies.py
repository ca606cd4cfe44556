"""Between a site and the coordinator: a reverse proxy with transient errors, and a hospital's
forward proxy that allows CONNECT alone."""

from __future__ import annotations

import base64
import http.client
import select
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

Fault = int | Literal["drop", "hang", "page"]


class ReverseProxy(ThreadingHTTPServer):
    """Ends TLS and hands on, as nginx before a SuperLink does, but for its ``fault``: a status, a
    dropped connection, no answer, or a page in place of one; for paths that begin with ``under``.
    """

    daemon_threads = True

    def __init__(self, upstream: str, paths: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.upstream = upstream
        self.trusted = ssl.create_default_context(cafile=str(paths["root"]))
        self.ours = _served(paths)
        self.served = self.ours
        self.ours.sni_callback = lambda connection, _name, _context: setattr(
            connection, "context", self.served
        )
        self.fault: Fault | None = None
        self.under = "/v1/fleet/"
        self.seen: Counter[str] = Counter()
        """Requests by path, those that met a fault included."""
        self.lasted = threading.Event()
        """Ends a hang."""

    @property
    def address(self) -> str:
        return f"localhost:{self.server_address[1]}"

    def show(self, paths: dict[str, Path] | None) -> None:
        """Serve another certificate from now on; None: the first."""
        self.served = self.ours if paths is None else _served(paths)

    def get_request(self) -> tuple[Any, Any]:
        connection, peer = super().get_request()
        connection.settimeout(60)
        wrapped = self.ours.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return wrapped, peer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that breaks off is no news here."""


def _served(paths: dict[str, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(paths["certificate"], paths["key"])
    return context


class _Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ReverseProxy

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.seen[self.path] += 1
        self.close_connection = True  # so that each request meets the state of now
        fault = self.server.fault if self.path.startswith(self.server.under) else None
        if fault == "drop":
            return
        if fault == "hang":
            self.server.lasted.wait(60)
            return
        if fault is not None:
            self._answer(200 if fault == "page" else int(fault), b"<html>maintenance</html>", {})
            return
        host, _, port = self.server.upstream.rpartition(":")
        upstream = http.client.HTTPSConnection(
            host, int(port), timeout=60, context=self.server.trusted
        )
        try:
            upstream.request("POST", self.path, body, dict(self.headers))
            answer = upstream.getresponse()
            self._answer(answer.status, answer.read(), dict(answer.getheaders()))
        except OSError:
            self._answer(502, b"<html>bad gateway</html>", {})
        finally:
            upstream.close()

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def reverse_proxy(upstream: str, paths: dict[str, Path]) -> Iterator[ReverseProxy]:
    """A reverse proxy before ``upstream`` (host:port), with the certificates of ``provision``."""
    server = ReverseProxy(upstream, paths)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.lasted.set()
        server.shutdown()
        thread.join()
        server.server_close()


class ConnectProxy:
    """A proxy for CONNECT, with Basic authentication if ``user`` (name:password) is given.

    It alone knows the names of ``hosts`` and their addresses.
    """

    def __init__(self, user: str | None, hosts: dict[str, str]) -> None:
        self.user = user
        self.hosts = hosts
        self.asked: list[tuple[str, int]] = []
        """The target of each CONNECT, and the status that it got."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _one(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(30)
            head = b""
            while b"\r\n\r\n" not in head and (part := connection.recv(4096)):
                head += part
            first, *lines = head.decode("latin-1").split("\r\n")
            target = first.split()[1]
            allowed = self.user is None or (
                f"proxy-authorization: basic {base64.b64encode(self.user.encode()).decode()}"
            ).lower() in (line.lower() for line in lines)
            self.asked.append((target, 200 if allowed else 407))
            if not allowed:
                connection.sendall(
                    b"HTTP/1.1 407 Proxy Authentication Required\r\n"
                    b'Proxy-Authenticate: Basic realm="hospital"\r\nContent-Length: 0\r\n\r\n'
                )
                return
            host, _, port = target.rpartition(":")
            address = (self.hosts.get(host, host.strip("[]")), int(port))
            with socket.create_connection(address, timeout=10) as upstream:
                connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                _join(connection, upstream)


def _join(one: socket.socket, other: socket.socket) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        ready, _, _ = select.select([one, other], [], [], 1.0)
        for source in ready:
            part = source.recv(2**16)
            if not part:
                return
            (other if source is one else one).sendall(part)


@contextmanager
def connect_proxy(
    user: str | None = None, hosts: dict[str, str] | None = None
) -> Iterator[ConnectProxy]:
    """A CONNECT proxy that runs while the block does."""
    proxy = ConnectProxy(user, hosts or {})
    thread = threading.Thread(target=proxy.serve)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join()


class Scripted(ThreadingHTTPServer):
    """Plain HTTP; gives ``answers`` one after the other, the last one for ever.

    An answer is a status, headers and a body; the body of an empty protobuf message is empty.
    """

    daemon_threads = True

    def __init__(self, answers: list[tuple[int, dict[str, str], bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Recite)
        self.answers = answers
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class _Recite(_Forward):
    server: Scripted  # type: ignore[assignment]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.close_connection = True
        self.server.asked.append(self.path)
        status, headers, body = self.server.answers[
            min(len(self.server.asked), len(self.server.answers)) - 1
        ]
        self._answer(status, body, headers)


@contextmanager
def scripted(*answers: tuple[int, dict[str, str], bytes]) -> Iterator[Scripted]:
    """A server of ``answers`` that runs while the block does."""
    server = Scripted(list(answers))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
