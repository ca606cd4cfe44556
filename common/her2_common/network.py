"""Addresses, proxies and TLS: does a server answer, and do we trust it? An error for each cause.

Flower speaks HTTP through httpx, which reads its proxy from HTTPS_PROXY, ALL_PROXY and NO_PROXY.
``check_tls`` goes through httpx, too, so that it uses the same route as the requests that follow.
"""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, TypeVar
from urllib.request import getproxies

from her2_common.errors import ConfigError, ConnectionFailedError

if TYPE_CHECKING:
    import httpx

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")

ASK_ADDRESS: Final = "ask the coordinator for the address"


class Handshake(NamedTuple):
    """A TLS handshake that succeeded: the version of TLS, and the proxy (host:port), if any."""

    tls: str
    proxy: str | None

    @property
    def via(self) -> str:
        """ " through the proxy ...", or nothing."""
        return "" if self.proxy is None else f" through the proxy {self.proxy}"


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def bypass_proxy_for_loopback() -> None:
    """Keep this process and its children from sending loopback traffic to a hospital's proxy.

    Flower's HTTP client obeys HTTP_PROXY even for 127.0.0.1. Of the two spellings it reads
    ``no_proxy`` alone, if there is one.
    """
    present = [host for host in getproxies().get("no", "").split(",") if host]
    wanted = [host for host in LOOPBACK if host not in present]
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join([*present, *wanted])


def split_address(address: str) -> tuple[str, int]:
    """host:port to its parts; brackets around an IPv6 host are taken off."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def join_address(host: str, port: int) -> str:
    """host:port, an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def key_fingerprint(public_key: str) -> str:
    """The fingerprint of a public key in OpenSSH form, as ``ssh-keygen -lf`` prints it."""
    digest = hashlib.sha256(base64.b64decode(public_key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def check_tls(address: str, root_certificates: Path, *, timeout: float = 10.0) -> Handshake:
    """Do a TLS handshake with ``address``, trusting ``root_certificates`` alone.

    Through the proxy that the environment names, if any, with the user and password in its URL.
    The connection ends after the handshake: no request is made.

    Raises:
        ConfigError: the root certificates cannot be read.
        ConnectionFailedError: the name is unknown, nothing answers, it does not speak TLS, or its
            certificate is expired, not yet valid, foreign or of another name; the proxy does not
            answer, refuses, or is of a kind that is not supported. Each says which.
    """
    import httpx  # late: only who connects waits for it

    try:
        context = ssl.create_default_context(cafile=str(root_certificates))
    except FileNotFoundError:
        raise ConfigError(
            f"{root_certificates}: no such file",
            hint="it is the ca.crt that the coordinator makes and sends",
        ) from None
    except (OSError, ssl.SSLError):
        raise ConfigError(f"{root_certificates}: expected PEM certificates") from None
    try:
        url = httpx.URL(f"https://{address}/")
    except httpx.InvalidURL:
        host, port = split_address(address)
        if port >= 2**16:
            raise ConnectionFailedError(
                f"{address} does not answer: there is no port {port}",
                hint=ASK_ADDRESS,
            ) from None
        raise _unknown_name(address, host, ASK_ADDRESS) from None
    route = _Route((url.host, url.port or 443))  # httpx knows no port of its own scheme
    with _client(context, timeout) as client:
        try:
            client.get(url, extensions={"trace": route.trace})
        except _HandshakeDoneError:
            return Handshake(route.tls, route.proxy)
        except httpx.ProxyError as error:
            _refused_by_proxy(address, route, error)
        except UnicodeError:  # no host name at all, "a..b"
            raise _unknown_name(address, url.host, ASK_ADDRESS) from None
        except httpx.TransportError as error:
            _not_connected(address, root_certificates, route, error)
    raise ConnectionFailedError(f"{address}: no TLS handshake was made")  # httpx always makes one


class _HandshakeDoneError(Exception):
    """Ends a request of httpx before it is sent."""


class _Route:
    """Follows httpx (its ``trace`` extension) to the end of the TLS handshake with ``target``."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.proxy: str | None = None
        self.tls = ""
        self.at = ""

    def trace(self, event: str, info: dict[str, Any]) -> None:
        self.at = event
        if event == "connection.connect_tcp.started":
            to = (info["host"], info["port"])
            self.proxy = None if to == self.target else join_address(*to)
        elif event == ("connection" if self.proxy is None else "proxy") + ".start_tls.complete":
            stream = info["return_value"]
            self.tls = stream.get_extra_info("ssl_object").version() or "TLS"
            stream.close()  # httpcore does not, if a trace raises
            raise _HandshakeDoneError

    @property
    def before_proxy(self) -> bool:
        """Is the proxy itself what has not been reached?"""
        return self.proxy is not None and self.at.startswith("connection.")


def _client(context: ssl.SSLContext, timeout: float) -> httpx.Client:
    import httpx

    try:
        return httpx.Client(verify=context, timeout=timeout)
    except (ImportError, ValueError, httpx.InvalidURL):
        named = {getproxies().get(scheme, "").lower()[:5] for scheme in ("http", "https", "all")}
        kind = "a SOCKS proxy" if "socks" in named else "a proxy of another kind than http://"
        raise ConnectionFailedError(
            f"the environment (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY) names {kind}, "
            "which is not supported",
            hint="name one for HTTP: HTTPS_PROXY=http://user:password@proxy.example:3128",
        ) from None


def _refused_by_proxy(address: str, route: _Route, error: Exception) -> NoReturn:
    hint = f"ask who runs it to let this machine CONNECT to {address}"
    if str(error).startswith("407"):
        hint = f"expected HTTPS_PROXY=http://user:password@{route.proxy}, with its user's name"
    raise ConnectionFailedError(
        f"{address}: the proxy {route.proxy} answers {str(error).strip()}", hint=hint
    ) from None


def _not_connected(
    address: str, root_certificates: Path, route: _Route, error: Exception
) -> NoReturn:
    host, _ = split_address(address)
    who, hint = address, "is the SuperLink running, and does the firewall let this machine out?"
    if route.before_proxy:
        who, hint = f"the proxy {route.proxy}", "check HTTPS_PROXY in the environment"
        host, _ = split_address(str(route.proxy))
    if (cause := _cause(error, ssl.SSLCertVerificationError)) is not None:
        if route.before_proxy:
            raise ConnectionFailedError(
                f"{who}: its certificate {_verdict(cause)}", hint=hint
            ) from None
        raise _untrusted(address, root_certificates, cause, route.proxy) from None
    if (broken := _cause(error, ssl.SSLError)) is not None:
        raise ConnectionFailedError(
            f"{who} answers, but does not speak TLS ({broken.reason or 'handshake failed'})",
            hint=hint
            if route.before_proxy
            else "is that the port of the SuperLink, and is it started with certificates?",
        ) from None
    if _cause(error, socket.gaierror) is not None:
        raise _unknown_name(who, host, hint if route.before_proxy else ASK_ADDRESS) from None
    raise ConnectionFailedError(f"{who} does not answer: {failure(error)}", hint=hint) from None


def _unknown_name(who: str, host: str, hint: str) -> ConnectionFailedError:
    return ConnectionFailedError(f"{who}: the name {host} cannot be resolved", hint=hint)


# OpenSSL's X509_V_ERR_*: not yet valid 9, expired 10, host name 62, IP address 64.
_CLOCK: Final = {9: "is not yet valid", 10: "has expired"}
_OTHER_NAME: Final = (62, 64)


def _verdict(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in _OTHER_NAME:
        return "is for another name"
    return _CLOCK.get(error.verify_code, "is foreign")


def _untrusted(
    address: str, root_certificates: Path, error: ssl.SSLCertVerificationError, proxy: str | None
) -> ConnectionFailedError:
    if error.verify_code in _CLOCK:
        return ConnectionFailedError(
            f"{address}: its certificate {_verdict(error)}",
            hint="check this machine's clock; if it is right, tell the coordinator",
        )
    if error.verify_code in _OTHER_NAME:
        return ConnectionFailedError(
            f"{address}: its certificate {_verdict(error)}",
            hint="use the name for which the coordinator made it",
        )
    hint = "ask the coordinator for the root certificate, by another way than this network"
    if proxy is not None:
        hint += f"; or the proxy {proxy} opens TLS, from which this address must be exempt"
    return ConnectionFailedError(
        f"{address}: foreign certificate, not signed by {root_certificates.name}", hint=hint
    )


def failure(error: BaseException) -> str:
    """Why a request had no answer of the SuperLink, in a few words: "HTTP 502", "Connection
    refused", "foreign certificate"."""
    import httpx

    if isinstance(error, httpx.HTTPStatusError):
        return f"HTTP {error.response.status_code}"
    if isinstance(error, httpx.ProxyError):
        return f"the proxy answers {str(error).strip()}"
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return "no answer in time"
    if (untrusted := _cause(error, ssl.SSLCertVerificationError)) is not None:
        verdict = _verdict(untrusted)
        return "foreign certificate" if verdict == "is foreign" else f"its certificate {verdict}"
    if (broken := _cause(error, ssl.SSLError)) is not None:
        return f"TLS handshake failed: {broken.reason or 'no reason given'}"
    if _cause(error, socket.gaierror) is not None:
        return "the name cannot be resolved"
    if (lost := _cause(error, OSError)) is not None and lost.strerror:
        return lost.strerror
    if isinstance(error, ValueError):
        return "an answer that is not the SuperLink's"
    return str(error) or type(error).__name__


E = TypeVar("E", bound=BaseException)


def _cause(error: BaseException, kind: type[E]) -> E | None:
    """The first of ``kind`` among an error and its causes."""
    return next((one for one in _chain(error) if isinstance(one, kind)), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__
