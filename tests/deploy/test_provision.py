"""Certificates and secrets: they verify, they are private, nothing is overwritten."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from her2_common.errors import ConfigError
from her2_deploy.provision import SECRET_BYTES, VALID_DAYS, provision, superlink_command

HOSTS = ["flower.example", "localhost", "127.0.0.1", "::1"]


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def shake_hands(paths: dict[str, Path], root: Path, host: str) -> str | None:
    """A TLS handshake in memory; the protocol's version."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(paths["certificate"], paths["key"])
    client_context = ssl.create_default_context(cafile=str(root))
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    client = client_context.wrap_bio(to_client, to_server, server_hostname=host)
    pending = [client, server]
    for _ in range(10):
        for side in list(pending):
            try:
                side.do_handshake()
                pending.remove(side)
            except ssl.SSLWantReadError:
                continue
        if not pending:
            return client.version()
    pytest.fail("the handshake does not end")


@pytest.mark.parametrize("host", HOSTS)
def test_the_server_is_trusted_under_each_of_its_names(tmp_path: Path, host: str) -> None:
    paths = provision(tmp_path, HOSTS)
    assert shake_hands(paths, paths["root"], host) == "TLSv1.3"


def test_under_another_name_or_root_it_is_not(tmp_path: Path) -> None:
    paths, other = provision(tmp_path / "a", HOSTS), provision(tmp_path / "b", HOSTS)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(paths, paths["root"], "evil.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(paths, other["root"], "localhost")


def test_the_certificates_say_what_they_are_for(tmp_path: Path) -> None:
    paths = provision(tmp_path, HOSTS)
    root, server = certificate(paths["root"]), certificate(paths["certificate"])
    server.verify_directly_issued_by(root)
    root.verify_directly_issued_by(root)
    constraints = root.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = server.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.digital_signature, usage.key_cert_sign, usage.crl_sign) == (True, False, False)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == HOSTS[:2]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address(h) for h in HOSTS[2:]]
    key = load_pem_private_key(paths["key"].read_bytes(), None)
    assert key.public_key() == server.public_key()
    assert root.public_key() != server.public_key()


@pytest.mark.parametrize("days", [VALID_DAYS, 3])
def test_they_are_valid_from_now_for_the_days_asked(tmp_path: Path, days: int) -> None:
    now = datetime.datetime.now(datetime.UTC)
    server = certificate(provision(tmp_path, ["localhost"], days=days)["certificate"])
    assert server.not_valid_before_utc <= now
    left = server.not_valid_after_utc - now
    assert abs(left - datetime.timedelta(days=days)) < datetime.timedelta(minutes=1)


def test_the_roots_key_is_nowhere(tmp_path: Path) -> None:
    paths = provision(tmp_path, ["localhost"])
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in paths.values())
    keys = [p for p in tmp_path.iterdir() if b"PRIVATE KEY" in p.read_bytes()]
    assert keys == [paths["key"]]


def test_secrets_are_their_owners_alone_and_new_each_time(tmp_path: Path) -> None:
    first, second = provision(tmp_path / "a", ["h"]), provision(tmp_path / "b", ["h"])
    for kind in ("key", "secret"):
        assert stat.S_IMODE(first[kind].stat().st_mode) == 0o600
        assert first[kind].read_bytes() != second[kind].read_bytes()
    assert len(first["secret"].read_bytes()) == SECRET_BYTES


@pytest.mark.parametrize("name", ["ca.crt", "server.pem", "server.key", "superexec.secret"])
def test_nothing_is_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(ConfigError, match=f"{name}: exists already"):
        provision(tmp_path, ["localhost"])
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"precious"


def test_without_a_host_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one name"):
        provision(tmp_path / "new", [])
    assert not (tmp_path / "new").exists()


def test_the_superlink_is_started_with_what_was_made(tmp_path: Path) -> None:
    paths = provision(tmp_path, ["localhost"])
    command = superlink_command(paths, host="0.0.0.0", port=9092, database="state.db")
    text = " ".join(command)
    for part in (
        f"--ssl-ca-certfile {paths['root']}",
        f"--ssl-certfile {paths['certificate']}",
        f"--ssl-keyfile {paths['key']}",
        f"--superexec-auth-secret-file {paths['secret']}",
        "--enable-supernode-auth",
        "--isolation process",
        "--host 0.0.0.0 --port 9092",
        "--database state.db",
    ):
        assert part in text
    assert "--insecure" not in command
