"""Addresses and trust: does a server answer, and is it ours? One error for each way to say no."""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path
from typing import Final

from her2_common.errors import ConfigError, ConnectionFailedError


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def bypass_proxy_for_loopback() -> None:
    """Keep this process and its children from sending loopback traffic to a hospital's proxy.

    Flower's HTTP client obeys HTTP_PROXY even for 127.0.0.1.
    """
    for name in ("NO_PROXY", "no_proxy"):
        present = [host for host in os.environ.get(name, "").split(",") if host]
        wanted = [host for host in ("127.0.0.1", "localhost") if host not in present]
        os.environ[name] = ",".join([*present, *wanted])


def split_address(address: str) -> tuple[str, int]:
    """host:port to its parts; brackets around an IPv6 host are taken off."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def check_tls(address: str, root_certificates: Path, *, timeout: float = 10.0) -> str:
    """Shake hands with ``address``, trusting ``root_certificates`` alone; the TLS version.

    Raises:
        ConfigError: the root certificates cannot be read.
        ConnectionFailedError: the name is unknown, nothing answers, it does not speak TLS, or its
            certificate is expired, not yet valid, foreign or of another name; each says which.
    """
    try:
        context = ssl.create_default_context(cafile=str(root_certificates))
    except FileNotFoundError:
        raise ConfigError(
            f"{root_certificates}: no such file",
            hint="it is the ca.crt that the coordinator makes and sends",
        ) from None
    except (OSError, ssl.SSLError):
        raise ConfigError(f"{root_certificates}: expected PEM certificates") from None
    host, port = split_address(address)
    try:
        with (
            socket.create_connection((host, port), timeout=timeout) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            return secure.version() or "TLS"
    except ssl.SSLCertVerificationError as error:
        raise _untrusted(address, root_certificates, error) from None
    except ssl.SSLError as error:
        raise ConnectionFailedError(
            f"{address} answers, but does not speak TLS ({error.reason or 'handshake failed'})",
            hint="is that the port of the SuperLink, and is it started with certificates?",
        ) from None
    except (socket.gaierror, UnicodeError):  # the latter: no host name at all, "a..b"
        raise ConnectionFailedError(
            f"{address}: the name {host} is unknown here",
            hint="ask the coordinator for the address",
        ) from None
    except (OSError, OverflowError) as error:
        what = "no answer in time" if isinstance(error, TimeoutError) else None
        what = what or getattr(error, "strerror", None) or type(error).__name__
        raise ConnectionFailedError(
            f"{address} does not answer: {what}",
            hint="is the SuperLink running, and does the firewall let this machine out?",
        ) from None


# OpenSSL's X509_V_ERR_*: not yet valid 9, expired 10, host name 62, IP address 64.
_CLOCK: Final = {9: "is not yet valid", 10: "has expired"}
_OTHER_NAME: Final = (62, 64)


def _untrusted(
    address: str, root_certificates: Path, error: ssl.SSLCertVerificationError
) -> ConnectionFailedError:
    if error.verify_code in _CLOCK:
        return ConnectionFailedError(
            f"{address}: its certificate {_CLOCK[error.verify_code]}",
            hint="check this machine's clock; if it is right, tell the coordinator",
        )
    if error.verify_code in _OTHER_NAME:
        return ConnectionFailedError(
            f"{address}: its certificate is for another name",
            hint="use the name for which the coordinator made it",
        )
    return ConnectionFailedError(
        f"{address}: foreign certificate, not signed by {root_certificates.name}",
        hint="ask the coordinator for the root certificate, by another way than this network",
    )
