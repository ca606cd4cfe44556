"""her2-client check: every fault is found, named, and told from the others."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from rich.console import Console
from tests.proxies import connect_proxy
from typer.testing import CliRunner

from her2_client.cache_writer import CacheWriter
from her2_client.check import CheckResult, check, check_command, check_rights, results_table
from her2_client.keys import new_node_key, write_private
from her2_common.config import SiteConfig, load
from her2_common.errors import ConfigError, ConnectionFailedError
from her2_common.network import check_tls

DAY = datetime.timedelta(days=1)


class Authority:
    """A certificate authority that writes PEM files into a folder."""

    def __init__(self, folder: Path, name: str, *, days: int = 300) -> None:
        self.folder, self.name = folder, name
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        extensions = [(x509.BasicConstraints(ca=True, path_length=None), True)]
        self.certificate = self._sign(self.subject, self.key, (-400, days), extensions)
        self.path = folder / f"{name}.crt"
        self.path.write_bytes(self.certificate.public_bytes(Encoding.PEM))

    def _sign(self, subject: Any, key: Any, days: tuple[int, int], extensions: Any) -> Any:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + days[0] * DAY)
            .not_valid_after(now + days[1] * DAY)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self.key, hashes.SHA256())

    def server(self, host: str = "127.0.0.1", days: tuple[int, int] = (-10, 100)) -> Path:
        """A file with a server's key and certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        name: Any = (
            x509.IPAddress(ipaddress.ip_address(host)) if host[0].isdigit() else x509.DNSName(host)
        )
        extensions = [(x509.SubjectAlternativeName([name]), False)]
        certificate = self._sign(x509.Name([]), key, days, extensions)
        path = self.folder / f"server-{self.name}-{host}-{days[0]}-{days[1]}.pem"
        path.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            + certificate.public_bytes(Encoding.PEM)
        )
        return path


@contextlib.contextmanager
def serving(pem: Path | None) -> Iterator[str]:
    """A server on a free port that shakes hands with ``pem``, or answers rubbish if None."""
    listener = socket.create_server(("127.0.0.1", 0))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if pem is not None:
        context.load_cert_chain(pem)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                if pem is None:
                    connection.recv(10)
                    connection.sendall(b"SSH-2.0-hello\r\n" * 9)
                else:
                    with context.wrap_socket(connection, server_side=True) as secure:
                        secure.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


def test_a_trusted_server_is_greeted(authority: Authority) -> None:
    with serving(authority.server()) as address:
        handshake = check_tls(address, authority.path)
        assert handshake.tls.startswith("TLSv1.")
        assert handshake.proxy is None


def test_each_reason_to_distrust_has_its_own_words(authority: Authority, tmp_path: Path) -> None:
    foreign = Authority(tmp_path, "theirs")
    for pem, words in [
        (foreign.server(), "foreign certificate, not signed by"),
        (authority.server(days=(-20, -10)), "has expired"),
        (authority.server(days=(10, 20)), "is not yet valid"),
        (authority.server("10.0.0.1"), "for another name"),
        (authority.server("elsewhere.example"), "for another name"),
        (None, "does not speak TLS"),
    ]:
        with serving(pem) as address, pytest.raises(ConnectionFailedError, match=words):
            check_tls(address, authority.path)


def test_silence_refusal_and_unknown_names_are_told_apart(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConnectionFailedError, match="does not answer: no answer in time"):
            check_tls(address, authority.path, timeout=0.2)
    with pytest.raises(ConnectionFailedError, match="does not answer: Connection refused"):
        check_tls(address, authority.path)
    with pytest.raises(ConnectionFailedError, match=r"no-such-host\.invalid cannot be resolved"):
        check_tls("no-such-host.invalid:8000", authority.path)
    with pytest.raises(ConfigError, match="no such file"):
        check_tls(address, authority.folder / "none.crt")


@pytest.fixture
def folder(tmp_path: Path, authority: Authority) -> Path:
    """A site in order, but for a SuperLink."""
    site = tmp_path / "site"
    private, _ = new_node_key()
    write_private(site / "node", private)
    write_private(site / "pseudonym.key", b"0f" * 32)
    (site / "a.dcm").write_bytes(b"x")
    (site / "cases.csv").write_text("case_id,us\na,a.dcm\n")
    write_config(site, "127.0.0.1:1")
    return site


def write_config(site: Path, address: str) -> SiteConfig:
    (site / "site.yaml").write_text(
        "name: centre-t\nstate: state\n"
        "data: {cases: cases.csv, cache: cache, pseudonym_key_file: pseudonym.key,\n"
        "       image_size: 32, volume_size: 16}\n"
        f"superlink: {{address: '{address}', root_certificates: ../ours.crt, private_key: node}}\n"
    )
    return load(SiteConfig, site / "site.yaml")


def by_name(results: list[CheckResult]) -> dict[str, CheckResult]:
    return {result.name: result for result in results}


def test_a_site_in_order(folder: Path, authority: Authority) -> None:
    with serving(authority.server()) as address:
        results = by_name(check(write_config(folder, address)))
    assert [name for name, result in results.items() if not result.ok] == []
    assert results["node key"].message.startswith("ecdsa-sha2-nistp384 ")
    assert results["tables"].message == "1 cases, 0 lesion boxes"
    assert results["HER2 levels"].message == (
        "raw IHC and ISH tell low from zero in 0 of 0 negative cases; too few to train it in a run "
        "with her2_levels: 3"
    )
    assert results["images"].message == "1 of 1 files and folders named are there"
    assert "none yet" in results["cache"].message
    assert "signed by our root" in results["SuperLink"].message


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_what_is_wrong_is_named_all_at_once(folder: Path, tmp_path: Path) -> None:
    (folder / "pseudonym.key").chmod(0o644)
    (folder / "node").write_text("nonsense")
    (folder / "a.dcm").unlink()
    with CacheWriter(folder / "cache", site="other", image_size=32, volume_size=16) as writer:
        writer.begin()
        writer.publish()
    Authority(tmp_path, "ours", days=-1)
    results = by_name(check(load(SiteConfig, folder / "site.yaml")))
    for name, words in {
        "pseudonym key": "mode 0644",
        "node key": "expected an unencrypted OpenSSH private key",
        "images": "0 of 1 files and folders named are there; the first that is not: row 2, us",
        "cache": "expected a cache of centre-t with sizes 32 and 16 and MRI phases (1,)",
        "root certificates": "expired on",
        "SuperLink": "does not answer: Connection refused",
    }.items():
        assert not results[name].ok
        assert words in results[name].message
    assert results["pseudonym key"].hint == f"run: chmod 600 {folder / 'pseudonym.key'}"
    assert results["tables"].ok


@pytest.mark.skipif(os.name != "posix", reason="file modes")
@pytest.mark.parametrize(
    ("name", "mode"),
    [("site.yaml", 0o664), ("site.yaml", 0o646), (".", 0o777), ("state", 0o770), ("cache", 0o707)],
)
def test_what_others_may_write_fails_the_check_of_rights(
    folder: Path, name: str, mode: int
) -> None:
    for made in ("state", "cache"):
        (folder / made).mkdir(mode=0o700, exist_ok=True)
    config = load(SiteConfig, folder / "site.yaml")
    assert check_rights(folder / "site.yaml", config).ok
    (folder / name).chmod(mode)
    result = check_rights(folder / "site.yaml", config)
    assert not result.ok
    assert f"mode {mode:04o}" in result.message
    assert result.hint == f"run: chmod go-w {(folder / name).resolve()}"


def test_a_faulty_table_leaves_the_other_checks(folder: Path) -> None:
    (folder / "cases.csv").write_text("case,us\na,a.dcm\n")
    results = by_name(check(load(SiteConfig, folder / "site.yaml")))
    assert results["tables"].message == "cases.csv: unknown column 'case'"
    assert results["tables"].hint == "did you mean 'case_id'?"
    assert "images" not in results
    assert "clock" in results


def test_the_command_exits_1_and_prints_json(
    folder: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = typer.Typer()
    app.command()(check_command)
    arguments = ["--site", str(folder / "site.yaml"), "--json"]
    bad = CliRunner().invoke(app, arguments)
    assert bad.exit_code == 1
    document = json.loads(bad.stdout)
    assert document["ok"] is False
    assert {"name", "ok", "message", "hint"} == document["checks"][0].keys()
    with serving(authority.server()) as address:
        write_config(folder, address)
        good = CliRunner().invoke(app, arguments)
    assert good.exit_code == 0
    assert json.loads(good.stdout)["ok"] is True


def test_the_table_fits_80_columns_and_shows_brackets(folder: Path) -> None:
    results = [CheckResult("images", False, "expected [0, 1] " * 9, "see [this]")]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(results_table([*results, *check(load(SiteConfig, folder / "site.yaml"))]))
    text = capture.get()
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "[0, 1]" in text
    assert "hint: see [this]" in text


def test_known_levels_are_counted(folder: Path) -> None:
    known = "".join(f"a{n},a.dcm,{n % 2},\n" for n in range(12))
    others = "b,a.dcm,3,\nc,a.dcm,,0\nd,a.dcm,2,\n"  # positive, stated alone, equivocal
    (folder / "cases.csv").write_text("case_id,us,biopsy_ihc,biopsy_her2\n" + known + others)
    result = by_name(check(load(SiteConfig, folder / "site.yaml")))["HER2 levels"]
    assert result.ok
    assert result.message == "raw IHC and ISH tell low from zero in 12 of 13 negative cases"


def test_the_engine_settings_are_checked_before_any_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(folder, "localhost:1")
    assert by_name(check(config))["device"].ok
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    gpu = by_name(check(config.model_copy(update={"device": "cuda"})))["device"]
    assert (gpu.ok, gpu.hint) == (False, "set device: auto")


def test_an_expired_root_beside_a_valid_one_is_in_order(
    folder: Path, authority: Authority, tmp_path: Path
) -> None:
    """As in a renewal: the file holds both, and the server's certificate is signed by one."""
    expired = Authority(tmp_path, "expired", days=-1)
    both = expired.path.read_bytes() + authority.path.read_bytes()
    authority.path.write_bytes(both)
    with serving(authority.server()) as address:
        results = by_name(check(write_config(folder, address)))
    assert results["root certificates"].ok
    assert "beside 1 expired" in results["root certificates"].message
    assert results["SuperLink"].ok
    authority.path.write_bytes(expired.path.read_bytes())
    assert not by_name(check(write_config(folder, "127.0.0.1:1")))["root certificates"].ok


def test_the_proxy_on_the_way_is_named(
    folder: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "restored at the end")
        monkeypatch.delenv(name)
    with (
        serving(authority.server("flower.example")) as server,
        connect_proxy("anna:s3cret", {"flower.example": "127.0.0.1"}) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://anna:s3cret@{proxy.address}")
        address = f"flower.example:{server.split(':')[1]}"
        result = by_name(check(write_config(folder, address)))["SuperLink"]
    assert result.ok
    assert f"through the proxy {proxy.address}" in result.message
    assert "s3cret" not in result.message
