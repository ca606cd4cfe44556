"""A federation of real processes, over TLS with node keys, and the faults of connecting."""

from __future__ import annotations

import json
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.federation.ground import Ground, her2, join, open_ground, wait_for

from her2_common.config import FederationConfig, load
from her2_common.errors import ConnectionFailedError, RunError
from her2_common.network import check_tls, free_port
from her2_deploy.processes import child, program
from her2_deploy.provision import provision, superlink_command
from her2_server import checkpoint
from her2_server.run_folder import RunFolder
from her2_server.summary import weights_hash

SITES = {"centre-a": (50, ("mg", "us", "mri")), "centre-c": (50, ("mri",))}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with open_ground(tmp_path_factory.mktemp("superlink")) as ground:
        yield ground


def readable_by_others(folder: Path) -> list[str]:
    """What others than its owner may read or write under ``folder``, the folder included."""
    return [
        path.relative_to(folder).as_posix()
        for path in (folder, *folder.rglob("*"))
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    ]


def test_real_processes_give_the_bits_of_the_simulation(
    make_federation, ground: Ground, tmp_path: Path
) -> None:
    """Two sites, a SuperLink and a coordinator; the run is killed after round 1 and resumed."""
    federation = make_federation(centres=SITES, rounds=3)
    federation.coordinator().run()
    config = join(federation, ground)
    out = tmp_path / "out"
    with ExitStack() as stack:
        sites = []
        for name in SITES:
            site = federation.folder.path.parent / name / "site.yaml"
            command = [program("her2-client"), "start", "--site", str(site)]
            sites.append(stack.enter_context(child(name, command, tmp_path / f"{name}.log")))
        command = [program("her2-server"), "run", str(config), "--out", str(out)]
        with child("server", command, tmp_path / "server.log") as server:
            wait_for(lambda: (out / "rounds" / "0001").exists(), 90)
            server.process.kill()
            server.process.wait()
        assert not (out / "summary.json").exists()
        done = her2("her2-server", "resume", out, "--json")
        assert done.returncode == 0, done.stderr + sites[0].tail(30)
        site_logs = [site.log.read_text() for site in sites]
    assert "going on after round" in done.stderr
    assert readable_by_others(out) == []
    summary = json.loads(done.stdout)
    assert summary["test"]["n"] == json.loads(federation.folder.summary.read_text())["test"]["n"]
    expected = weights_hash(checkpoint.latest(federation.folder.rounds).groups)
    assert summary["run"]["weights_sha256"] == expected
    assert all("trained" in log and "Traceback" not in log for log in site_logs)
    assert all(site.process.poll() is not None for site in sites)
    again = her2("her2-server", "resume", out)
    assert again.returncode == 1
    assert "test split is not scored again" in again.stderr


def test_an_unregistered_key_is_told_so(make_federation, ground: Ground, tmp_path: Path) -> None:
    federation = make_federation(centres={"centre-x": (30, ("us",))})
    join(federation, ground)
    site = federation.folder.path.parent / "centre-x" / "site.yaml"
    command = [program("her2-client"), "start", "--site", str(site)]
    with child("centre-x", command, tmp_path / "log") as process:
        wait_for(lambda: "does not accept this site yet" in process.log.read_text(), 30)
        assert process.process.poll() is None
    text = process.log.read_text()
    assert "its key is not registered" in text
    assert "is up" not in text
    assert "Traceback" not in text


def test_a_foreign_certificate_is_told_so(make_federation, ground: Ground, tmp_path: Path) -> None:
    federation = make_federation(centres={"centre-x": (30, ("us",))})
    foreign = provision(tmp_path / "foreign", ["localhost"])
    config = join(federation, ground)
    site = federation.folder.path.parent / "centre-x" / "site.yaml"
    for path in (config, site):
        text = path.read_text().replace(str(ground.paths["root"]), str(foreign["root"]))
        path.write_text(text)
    out = tmp_path / "out"
    for command in (
        ("her2-client", "start", "--site", site),
        ("her2-server", "run", config, "--out", out),
    ):
        done = her2(*command, timeout=60)
        assert done.returncode == 1
        assert "foreign certificate, not signed by ca.crt" in done.stderr
        assert "Traceback" not in done.stderr
    assert not out.exists()


def test_an_address_that_does_not_answer_is_told_so(make_federation) -> None:
    federation = make_federation(centres={"centre-x": (30, ("us",))})
    root = federation.folder.path.parent
    provision(root / "centre-x" / "extra", ["localhost"])
    site = root / "centre-x" / "site.yaml"
    text = site.read_text().replace("localhost:1", f"localhost:{free_port()}")
    site.write_text(text.replace("keys/ca.crt", "extra/ca.crt"))
    done = her2("her2-client", "start", "--site", site, timeout=60)
    assert done.returncode == 1
    assert "does not answer: Connection refused" in done.stderr


def test_a_wrong_secret_is_told_so(make_federation, ground: Ground, tmp_path: Path) -> None:
    federation = make_federation(centres=SITES)
    config = join(federation, ground)
    wrong = tmp_path / "wrong.secret"
    wrong.write_bytes(b"x" * 32)
    config.write_text(config.read_text().replace(str(ground.paths["secret"]), str(wrong)))
    done = her2("her2-server", "run", config, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "does not accept the secret" in done.stderr


def test_an_expired_certificate_is_told_so(ground: Ground, tmp_path: Path) -> None:
    paths = provision(tmp_path, ["localhost"], days=0)
    port = free_port()
    command = superlink_command(paths, host="127.0.0.1", port=port)
    command[0] = program(command[0])
    with child("old", command, tmp_path / "log", {"FLWR_HOME": str(tmp_path)}):
        deadline = time.monotonic() + 30
        while True:
            try:
                check_tls(f"localhost:{port}", paths["root"])
            except ConnectionFailedError as error:
                if "does not answer" in str(error) and time.monotonic() < deadline:
                    time.sleep(0.2)
                    continue
                assert "its certificate has expired" in str(error)  # noqa: PT017
                break


def test_a_second_start_of_a_site_is_refused(
    make_federation, ground: Ground, tmp_path: Path
) -> None:
    federation = make_federation(centres={"centre-x": (30, ("us",))})
    join(federation, ground)
    folder = federation.folder.path.parent / "centre-x"
    command = [program("her2-client"), "start", "--site", str(folder / "site.yaml")]
    with child("first", command, tmp_path / "first.log"):
        wait_for(lambda: (folder / "state" / "superexec.secret").exists(), 30)
        done = her2("her2-client", "start", "--site", folder / "site.yaml", timeout=60)
    assert done.returncode == 1
    assert "is running already" in done.stderr


def test_a_folder_that_holds_a_run_is_not_overwritten(make_federation) -> None:
    federation = make_federation(centres=SITES)
    root = federation.folder.path.parent
    assert load(FederationConfig, root / "federation.yaml").name == "test"
    with pytest.raises(RunError, match="holds a run already"):
        RunFolder(federation.folder.path).create(root / "federation.yaml")
