"""Certificates and secrets for a coordinator: a root of its own and a server certificate from it.

The root's private key signs one server certificate and is then thrown away unless asked for: a
root that cannot sign cannot be stolen. A renewal makes a new root.
"""

from __future__ import annotations

import ipaddress
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from her2_common.errors import ConfigError
from her2_common.files import write_private

VALID_DAYS: Final = 825
"""The longest life that common TLS clients accept for a server certificate."""

SECRET_BYTES: Final = 32


def provision(folder: Path, hosts: list[str], *, days: int = VALID_DAYS) -> dict[str, Path]:
    """Write ca.crt, server.pem, server.key and superexec.secret into ``folder``.

    ``hosts`` are the names and addresses under which the SuperLink is reached.

    Raises:
        ConfigError: one of the files exists, or ``hosts`` is empty.
    """
    if not hosts:
        raise ConfigError("--host: expected at least one name or address")
    names = {
        "root": "ca.crt",
        "certificate": "server.pem",
        "key": "server.key",
        "secret": "superexec.secret",
    }
    paths = {kind: folder / name for kind, name in names.items()}
    for path in paths.values():
        if path.exists():
            raise ConfigError(f"{path}: exists already", hint="keep it, or move it away")
    folder.mkdir(parents=True, exist_ok=True)
    root_key, server_key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "her2-map root")])
    server_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
    now = datetime.now(UTC)

    def builder(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(root_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=days))
        )

    root_id = x509.SubjectKeyIdentifier.from_public_key(root_key.public_key())
    root = (
        builder(root_name, root_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs=True), critical=True)
        .add_extension(root_id, critical=False)
        .sign(root_key, hashes.SHA384())
    )
    server = (
        builder(server_name, server_key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_san(h) for h in hosts]), critical=False)
        .add_extension(_key_usage(signs=False), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(root_id), critical=False
        )
        .sign(root_key, hashes.SHA384())
    )
    paths["root"].write_bytes(root.public_bytes(Encoding.PEM))
    paths["certificate"].write_bytes(server.public_bytes(Encoding.PEM))
    write_private(
        paths["key"],
        server_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
    write_private(paths["secret"], secrets.token_bytes(SECRET_BYTES))
    return paths


def _san(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        try:
            return x509.DNSName(host)
        except ValueError:
            raise ConfigError(f"--host: expected a name in ASCII letters, got {host!r}") from None


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def superlink_command(
    paths: dict[str, Path], *, host: str, port: int, database: str = ":flwr-in-memory:"
) -> list[str]:
    """The command line of a SuperLink as her2-map needs it (see her2_server.superlink)."""
    return [
        "flower-superlink",
        *("--host", host),
        *("--port", str(port)),
        *("--ssl-ca-certfile", str(paths["root"])),
        *("--ssl-certfile", str(paths["certificate"])),
        *("--ssl-keyfile", str(paths["key"])),
        "--enable-supernode-auth",
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(paths["secret"])),
        *("--database", database),
        "--disable-runtime-dependency-installation",
    ]
