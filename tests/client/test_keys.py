"""The site's secrets and its site.yaml."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

from her2_client.keys import init_site, new_node_key, public_key, read_pseudonym_key
from her2_common.config import Site, SiteConfig, load
from her2_common.errors import ConfigError


def init(folder: Path, **changes: object) -> str:
    return init_site(folder, name="centre-t", address="host:9092", **changes)  # type: ignore[arg-type]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_site_yaml_loads_and_says_what_was_asked(tmp_path: Path) -> None:
    init(tmp_path, lesions="boxes.csv", image_size=64, volume_size=32, threads=2)
    config = load(SiteConfig, tmp_path / "site.yaml")
    assert (config.name, config.superlink.address, config.threads) == ("centre-t", "host:9092", 2)
    assert config.data.lesions == tmp_path / "boxes.csv"
    assert (config.data.image_size, config.data.volume_size) == (64, 32)
    assert config.superlink.private_key == tmp_path / "keys" / "node"


def test_the_template_states_the_defaults(tmp_path: Path) -> None:
    init(tmp_path)
    config = load(SiteConfig, tmp_path / "site.yaml")
    assert (config.data.lesions, config.threads) == (None, None)
    assert config.policy == type(config.policy)()
    assert config.data.image_size == type(config.data).model_fields["image_size"].default


def test_secrets_are_private_and_public_half_fits(tmp_path: Path) -> None:
    public = init(tmp_path)
    for name in ("node", "pseudonym.key"):
        assert stat.S_IMODE((tmp_path / "keys" / name).stat().st_mode) == 0o600
    assert (tmp_path / "keys" / "node.pub").read_text() == public + "\n"
    assert public_key(tmp_path / "keys" / "node") == public
    assert Site(name="centre-t", public_key=public).public_key == public
    private = load_ssh_private_key((tmp_path / "keys" / "node").read_bytes(), None)
    loaded = load_ssh_public_key(public.encode())
    assert private.public_key() == loaded
    assert "PRIVATE" not in public


def test_two_sites_share_nothing(tmp_path: Path) -> None:
    assert init(tmp_path / "a") != init(tmp_path / "b")
    keys = [read_pseudonym_key(tmp_path / s / "keys" / "pseudonym.key") for s in "ab"]
    assert keys[0] != keys[1]
    assert {len(key) for key in keys} == {32}


@pytest.mark.parametrize("name", ["site.yaml", "keys/node", "keys/pseudonym.key"])
def test_nothing_is_overwritten(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="exists already"):
        init(tmp_path)
    assert files(tmp_path) == {name: b"precious"}


@pytest.mark.parametrize("text", ["", "ab" * 31, "ab" * 33, "zz" * 32, "ä" * 64])
def test_a_pseudonym_key_is_64_hex_digits(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="expected 64 hex digits") as caught:
        read_pseudonym_key(tmp_path / "key")
    assert not text or text not in str(caught.value)  # a secret is not repeated


def test_a_missing_key_names_the_command(tmp_path: Path) -> None:
    for read in (read_pseudonym_key, public_key):
        with pytest.raises(ConfigError, match="no such file") as caught:
            read(tmp_path / "key")
        assert "her2-client init" in str(caught.value.hint)
        assert ("backup" in str(caught.value.hint)) == (read is read_pseudonym_key)


def locked(private: bytes, cipher: bytes) -> bytes:
    """The key file with a header that says it is encrypted: cipher, kdf "bcrypt", its options.

    Strings of the format stand after their length in four bytes (OpenSSH's PROTOCOL.key).
    """

    def string(content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + content

    body = base64.b64decode(b"".join(private.split(b"\n")[1:-2]))
    magic, plain = b"openssh-key-v1\0", string(b"none") * 2 + string(b"")
    assert body.startswith(magic + plain)
    options = string(string(b"s" * 16) + (16).to_bytes(4, "big"))
    changed = magic + string(cipher) + string(b"bcrypt") + options
    changed += body[len(magic + plain) :]
    lines = (b"BEGIN", base64.b64encode(changed), b"END")
    frame = b"-----%s OPENSSH PRIVATE KEY-----"
    return b"\n".join((frame % lines[0], lines[1], frame % lines[2], b""))


def test_only_an_unencrypted_ecdsa_key_is_a_node_key(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match="expected an unencrypted OpenSSH private key"):
        public_key(path)
    other = ed25519.Ed25519PrivateKey.generate()
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    with pytest.raises(ConfigError, match="expected an ECDSA key"):
        public_key(path)
    for cipher in (b"aes256-ctr", b"rot13"):
        path.write_bytes(locked(new_node_key()[0], cipher))
        with pytest.raises(ConfigError, match="expected an unencrypted OpenSSH private key"):
            public_key(path)


def test_a_value_out_of_range_leaves_no_key_behind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.image_size"):
        init_site(tmp_path / "site", name="centre-t", address="localhost:1", image_size=33)
    assert not (tmp_path / "site").exists()


def test_a_path_with_a_colon_or_a_hash_survives(tmp_path: Path) -> None:
    init_site(tmp_path, name="centre-t", address="localhost:1", cases="a: b #c/cases.csv")
    assert load(SiteConfig, tmp_path / "site.yaml").data.cases.name == "cases.csv"
    assert load(SiteConfig, tmp_path / "site.yaml").data.cases.parent.name == "a: b #c"


@pytest.mark.parametrize(
    "address", ["[::1]:8000", "[2001:db8::17]:443", "fl.example.org:443", "10.0.0.1:8000"]
)
def test_an_address_survives(address: str, tmp_path: Path) -> None:
    init_site(tmp_path, name="centre-a", address=address)
    config = load(SiteConfig, tmp_path / "site.yaml")
    assert config.superlink.address == address
    assert f"address: {address}" in (tmp_path / "site.yaml").read_text().replace('"', "")


@pytest.mark.parametrize("address", ["::1:8000", "[fl.example.org]:443", "[]:443", "https://a:443"])
def test_what_is_no_address_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="host:port"):
        init_site(tmp_path, name="centre-a", address=address)
