"""Addresses; the ways in which TLS is refused are tested with her2-client check."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from her2_common.errors import ConfigError, ConnectionFailedError
from her2_common.network import check_tls, free_port, split_address
from her2_deploy.provision import provision


def test_a_free_port_can_be_bound() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("localhost:9092", ("localhost", 9092)),
        ("10.0.0.1:443", ("10.0.0.1", 443)),
        ("[::1]:9092", ("::1", 9092)),
    ],
)
def test_addresses(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


def test_what_is_no_address_at_all(tmp_path: Path) -> None:
    """A host that no name can have, and a port that no machine has, are no stack traces."""
    root = provision(tmp_path, ["localhost"])["root"]
    with pytest.raises(ConnectionFailedError, match=r"the name a\.\.b is unknown here"):
        check_tls("a..b:443", root, timeout=2)
    with pytest.raises(ConnectionFailedError, match="does not answer"):
        check_tls("localhost:99999", root, timeout=2)


def test_root_certificates_must_be_some(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file") as caught:
        check_tls("localhost:1", tmp_path / "ca.crt")
    assert caught.value.hint is not None
    (tmp_path / "ca.crt").write_text("not PEM")
    with pytest.raises(ConfigError, match="expected PEM certificates"):
        check_tls("localhost:1", tmp_path / "ca.crt")
