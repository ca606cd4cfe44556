"""Addresses and proxies; the ways in which TLS is refused are tested with her2-client check."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from tests.proxies import ConnectProxy, ReverseProxy, connect_proxy, reverse_proxy

from her2_common.errors import ConfigError, ConnectionFailedError
from her2_common.network import (
    bypass_proxy_for_loopback,
    check_tls,
    free_port,
    key_fingerprint,
    split_address,
)
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
    with pytest.raises(ConnectionFailedError, match=r"the name a\.\.b cannot be resolved"):
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


def test_a_fingerprint_is_that_of_ssh_keygen(tmp_path: Path) -> None:
    """One that ssh-keygen -lf printed for this key."""
    key = (
        "ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBAWBeZZz4F2a694u"
        "f08XFszcqLKqvxijW9wmdYpUEIpY+sSTA5GS1ZEaN5GdNgcnn0nusmIscH2oBDl6lRKXHClo7dpPSE5Bp2Ku+W4W"
        "XB/c4jIRv/H5PuRtkMSsupuk7w=="
    )
    assert key_fingerprint(key) == "SHA256:+FY8XOeUM/26eTADB8U/p9GoF801UL8cnGxVaUSblQM"


# --- the proxy of a hospital --------------------------------------------------------------------

HOST = "flower.example"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ReverseProxy]:
    """A server for TLS whose name only a proxy knows; the environment names no proxy yet."""
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY"):
        for spelling in (name, name.lower()):
            monkeypatch.setenv(spelling, "restored at the end, whatever the test makes of it")
            monkeypatch.delenv(spelling)
    paths = provision(tmp_path, [HOST, "::1"])
    with reverse_proxy("localhost:1", paths) as server:
        yield server


def address_of(server: ReverseProxy) -> str:
    return f"{HOST}:{server.server_address[1]}"


def through(proxy: ConnectProxy, monkeypatch: pytest.MonkeyPatch, user: str = "") -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://{user}{proxy.address}")
    bypass_proxy_for_loopback()


def test_a_handshake_takes_the_proxy_and_its_password(
    server: ReverseProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect_proxy("anna:s3cret", {HOST: "127.0.0.1"}) as proxy:
        through(proxy, monkeypatch, "anna:s3cret@")
        handshake = check_tls(address_of(server), tmp_path / "ca.crt")
        assert handshake.proxy == proxy.address
        assert "s3cret" not in handshake.via
        assert proxy.asked == [(address_of(server), 200)]
    assert server.seen.total() == 0  # a handshake and no request


def test_a_proxy_that_wants_a_password_is_named_and_no_password_is(
    server: ReverseProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect_proxy("anna:s3cret", {HOST: "127.0.0.1"}) as proxy:
        for user in ("", "anna:wrong@"):
            through(proxy, monkeypatch, user)
            with pytest.raises(ConnectionFailedError) as caught:
                check_tls(address_of(server), tmp_path / "ca.crt")
            text = f"{caught.value} {caught.value.hint}"
            assert f"the proxy {proxy.address} answers 407" in text
            assert "wrong" not in text


def test_no_proxy_goes_past_it(
    server: ReverseProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect_proxy() as proxy:
        monkeypatch.setenv("NO_PROXY", HOST)
        through(proxy, monkeypatch)  # loopback is bypassed, too, and this name still is
        with pytest.raises(ConnectionFailedError, match="cannot be resolved"):
            check_tls(address_of(server), tmp_path / "ca.crt")
        assert proxy.asked == []


def test_a_proxy_that_is_not_there_is_named(
    server: ReverseProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect_proxy() as proxy:
        through(proxy, monkeypatch)
    with pytest.raises(ConnectionFailedError) as caught:
        check_tls(address_of(server), tmp_path / "ca.crt")
    assert f"the proxy {proxy.address} does not answer" in str(caught.value)
    assert "HTTPS_PROXY" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks4"])
def test_a_socks_proxy_is_an_error_with_that_word(
    name: str, scheme: str, server: ReverseProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, f"{scheme}://anna:s3cret@127.0.0.1:1080")
    with pytest.raises(ConnectionFailedError, match="SOCKS") as caught:
        check_tls(address_of(server), tmp_path / "ca.crt")
    assert "s3cret" not in f"{caught.value} {caught.value.hint}"


def test_a_proxy_that_opens_tls_is_suspected(
    server: ReverseProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.show(provision(tmp_path / "foreign", [HOST]))
    with connect_proxy(hosts={HOST: "127.0.0.1"}) as proxy:
        through(proxy, monkeypatch)
        with pytest.raises(ConnectionFailedError, match="foreign certificate") as caught:
            check_tls(address_of(server), tmp_path / "ca.crt")
    assert proxy.address in str(caught.value.hint)


def test_an_ipv6_address_is_reached(server: ReverseProxy, tmp_path: Path) -> None:
    """And a certificate for it is provisioned, with or without brackets."""
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with listener, pytest.raises(ConnectionFailedError, match="does not answer: no answer in time"):
        check_tls(f"[::1]:{listener.getsockname()[1]}", tmp_path / "ca.crt", timeout=0.3)
    bracketed = provision(tmp_path / "bracketed", ["[::1]"])["certificate"].read_bytes()
    names = x509.load_pem_x509_certificate(bracketed).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("::1")]
