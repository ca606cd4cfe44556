"""A site's two secrets and its site.yaml, made by `her2-client init`.

- The node key (ECDSA P-384, OpenSSH form) proves to the SuperLink which site is speaking. Its
  public half goes to the coordinator.
- The pseudonym key (32 random bytes, hex) turns identifiers into pseudonyms and patients into
  splits. It never leaves; with another key the same table gives other pseudonyms and splits.
"""

from __future__ import annotations

import json
import secrets
import shlex
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from her2_common.config import SiteConfig, parse
from her2_common.documents import parse_yaml
from her2_common.errors import ConfigError, DataError
from her2_common.files import write_private
from her2_common.network import key_fingerprint

KEY_BYTES = 32


def new_node_key() -> tuple[bytes, str]:
    """A new private key and its public half, both in OpenSSH form."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return private, _public_half(key)


def public_key(private_key: Path) -> str:
    """The public half of a node key, as it goes into federation.yaml.

    Raises:
        ConfigError: the file is missing or not an unencrypted ECDSA key.
    """
    try:
        key = load_ssh_private_key(private_key.read_bytes(), password=None)
    except FileNotFoundError:
        raise ConfigError(f"{private_key}: no such file", hint="run: her2-client init") from None
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"{private_key}: expected an unencrypted OpenSSH private key, "
            f"got {type(error).__name__}"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{private_key}: expected an ECDSA key, got another kind")
    return _public_half(key)


def _public_half(key: ec.EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def fingerprint(private_key: Path) -> str:
    """The public half's fingerprint, as ``ssh-keygen -lf`` prints it."""
    return key_fingerprint(public_key(private_key))


def read_pseudonym_key(path: Path) -> bytes:
    """The pseudonym key: 64 hex digits in a file.

    Raises:
        ConfigError: the file is missing or holds something else.
    """
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file",
            hint="restore it from your backup (a new one draws other splits and voids the review); "
            "a new site gets its keys from: her2-client init",
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{path}: expected {2 * KEY_BYTES} hex digits")
    return key


def check_private(path: Path) -> None:
    """Raises DataError where others than its owner may read a secret."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise DataError(
            f"{path}: expected a file that only its owner may read, got mode {mode:04o}",
            hint=f"run: chmod 600 {shlex.quote(str(path))}",
        )


def check_unwritable(path: Path) -> None:
    """Raises DataError where others than its owner may change a file, or replace it in its folder.

    A folder with the sticky bit, as /tmp, lets nobody replace the files of others.
    """
    for place in (path, path.resolve().parent):
        mode = place.stat().st_mode
        sticky = stat.S_ISDIR(mode) and mode & stat.S_ISVTX
        if mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
            raise DataError(
                f"{place}: expected that only its owner may write to it, got mode "
                f"{stat.S_IMODE(mode):04o}",
                hint=f"run: chmod go-w {shlex.quote(str(place))}",
            )


SITE_TEMPLATE = """\
# A her2-map site. Relative paths start at this file's folder. Unknown keys are refused.
name: {name}

data:
  cases: {cases}                # the case table; see README, "The case table"
{lesions_line}
  cache: cache                  # made by `her2-client ingest`; holds no identifiers
  pseudonym_key_file: keys/pseudonym.key
  image_size: {image_size}      # pixels a side kept for mammography and ultrasound
  volume_size: {volume_size}    # voxels a side kept for MRI
  mri_phases: [1]               # 0 is before contrast, 1 the first phase after it

superlink:
  address: {address}
  root_certificates: {root_certificates}   # from the coordinator
  private_key: keys/node        # stays here; its public half went to the coordinator

device: auto                    # auto, cpu or cuda
threads: {threads}              # CPU threads for training; null: all cores

# What this site allows. What is not allowed here does not happen.
policy:
  allowed_bundles: []           # hashes beside the installed version's own
  allowed_tasks: [describe, train, profile, evaluate, compare]
  min_cases: 10                 # train no parameter group on fewer cases
  min_cell: 10                  # report no count below this
  max_rounds: 1000
  max_queries: 400              # of the response evaluation; allowed_tasks must name response

state: state                    # pages of `ingest`, the review, logs and sockets of `start`
"""


def init_site(
    folder: Path,
    *,
    name: str,
    address: str,
    cases: str = "cases.csv",
    lesions: str | None = None,
    root_certificates: str = "keys/ca.crt",
    image_size: int = 256,
    volume_size: int = 96,
    threads: int | None = None,
) -> str:
    """Write site.yaml and the two keys into ``folder``; returns the public key.

    Raises:
        ConfigError: one of the files exists already, or a value is out of range; nothing is
            written then.
    """
    targets = [folder / "site.yaml", folder / "keys" / "node", folder / "keys" / "pseudonym.key"]
    for path in targets:
        if path.exists():
            raise ConfigError(f"{path}: exists already", hint="keep it, or move it away")
    text = SITE_TEMPLATE.format(
        name=_quoted(name),
        cases=_quoted(cases),
        lesions_line=f"  lesions: {_quoted(lesions)}" if lesions else "  # lesions: lesions.csv",
        address=_quoted(address),
        root_certificates=_quoted(root_certificates),
        image_size=image_size,
        volume_size=volume_size,
        threads="null" if threads is None else threads,
    )
    parse(SiteConfig, parse_yaml(text), where="site.yaml", folder=folder)
    private, public = new_node_key()
    write_private(folder / "keys" / "node", private)
    write_private(folder / "keys" / "pseudonym.key", secrets.token_hex(KEY_BYTES).encode())
    (folder / "keys" / "node.pub").write_text(public + "\n", encoding="ascii")
    (folder / "site.yaml").write_text(text, encoding="utf-8")
    return public


def _quoted(text: str) -> str:
    """A text as a YAML string, quoted only where it must be: 007 and yes mean something else."""
    plain = all(c.isalnum() or c in "./_-:" for c in text)
    return text if plain and parse_yaml(text) == text else json.dumps(text)
