"""Addresses and trust: does a server answer, and is it ours? One error for each way to say no."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from her2_common.errors import ConfigError, ConnectionFailedError


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def split_address(address: str) -> tuple[str, int]:
    """host:port to its parts; brackets around an IPv6 host are taken off."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def check_tls(address: str, root_certificates: Path, *, timeout: float = 5.0) -> None:
    """Open a TLS connection to ``address`` and close it again.

    Raises:
        ConfigError: the root certificates cannot be read.
        ConnectionFailedError: nothing answers; the certificate is foreign, expired or for another
            name; or what answers does not speak TLS.
    """
    try:
        context = ssl.create_default_context(cafile=str(root_certificates))
    except FileNotFoundError:
        raise ConfigError(f"{root_certificates}: no such file") from None
    except (OSError, ssl.SSLError):
        raise ConfigError(f"{root_certificates}: expected PEM certificates") from None
    host, port = split_address(address)
    try:
        with (
            socket.create_connection((host, port), timeout=timeout) as raw,
            context.wrap_socket(raw, server_hostname=host),
        ):
            return
    except ssl.SSLCertVerificationError as error:
        raise _untrusted(address, root_certificates, error) from None
    except ssl.SSLError as error:
        raise ConnectionFailedError(
            f"{address}: expected a TLS server, got {error.reason or 'no TLS'}"
        ) from None
    except TimeoutError:
        raise ConnectionFailedError(
            f"{address}: no answer within {timeout:.0f} s",
            hint="a firewall in between? The site needs an outgoing connection to this address",
        ) from None
    except OSError as error:
        raise ConnectionFailedError(
            f"{address}: does not answer ({error.strerror or type(error).__name__})",
            hint="is flower-superlink running there, and is the address right?",
        ) from None


def _untrusted(
    address: str, root_certificates: Path, error: ssl.SSLCertVerificationError
) -> ConnectionFailedError:
    reason = error.verify_message
    if "expired" in reason:
        return ConnectionFailedError(
            f"{address}: its certificate has expired",
            hint="the coordinator renews it; if the date is right there, check this clock",
        )
    if "not yet valid" in reason:
        return ConnectionFailedError(
            f"{address}: its certificate is not valid yet", hint="check this machine's clock"
        )
    if "mismatch" in reason or "doesn't match" in reason or "not valid for" in reason:
        return ConnectionFailedError(f"{address}: its certificate is for another name")
    return ConnectionFailedError(
        f"{address}: foreign certificate, not signed by {root_certificates.name}",
        hint="ask the coordinator for the root certificate, by another way than this network",
    )
