"""Bad moments between real processes: a reverse proxy answers with errors, pages or nothing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from flwr.superlink.grid import HttpGrid
from tests.federation.ground import Ground, join, open_ground, wait_for
from tests.proxies import ReverseProxy, reverse_proxy

from her2_client.connection import SuperNode
from her2_common.config import FederationConfig, SiteConfig, load
from her2_common.errors import RunError
from her2_common.network import bypass_proxy_for_loopback
from her2_deploy.processes import child, program
from her2_server.run_folder import RunFolder
from her2_server.superlink import conduct

MakeFederation = Callable[..., Any]
SITES = {"centre-a": (40, ("mg", "us")), "centre-c": (40, ("us",))}
PULL = "/v1/fleet/pull-messages"

# The keeper forks while threads run; CPython 3.12 and later warn of it.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with open_ground(tmp_path_factory.mktemp("superlink")) as ground:
        yield ground


@pytest.fixture
def proxy(ground: Ground) -> Iterator[ReverseProxy]:
    with reverse_proxy(ground.address, ground.paths) as proxy:
        yield proxy


def behind(federation: Any, name: str, address: str, ground: Ground) -> Path:
    """The site.yaml of ``name``, which now reaches the SuperLink by ``address``."""
    path: Path = federation.folder.path.parent / name / "site.yaml"
    path.write_text(path.read_text().replace(ground.address, address))
    return path


@contextmanager
def supernode(path: Path, said: list[str]) -> Iterator[SuperNode]:
    config = load(SiteConfig, path)
    config.state.mkdir(parents=True, exist_ok=True)
    (config.state / "secret").write_bytes(b"x" * 32)
    node = SuperNode(config, config.state / "secret", said.append)
    try:
        yield node
    finally:
        node.stop()


def work(node: SuperNode, proxy: ReverseProxy) -> None:
    """Keep ``node`` until it has asked for orders again."""
    before = proxy.seen[PULL]

    def asked() -> bool:
        node.watch()
        return node.accepted and proxy.seen[PULL] > before + 1

    wait_for(asked, 120)


def test_a_transient_error_ends_neither_session_nor_process(
    make_federation: MakeFederation, ground: Ground, proxy: ReverseProxy
) -> None:
    """And a refused key whose session is open is told from one that is not known."""
    bypass_proxy_for_loopback()
    federation = make_federation(centres={"centre-x": (30, ("us",))})
    config = load(FederationConfig, join(federation, ground))
    path = behind(federation, "centre-x", proxy.address, ground)
    said: list[str] = []
    with supernode(path, said) as node, conduct(config):
        work(node, proxy)
        assert node.process is not None
        first = node.process.pid
        for fault in (500, 404, "page", "drop"):
            proxy.fault = fault  # type: ignore[assignment]
            met = proxy.seen[PULL]
            wait_for(lambda met=met: proxy.seen[PULL] > met, 60)
            proxy.fault = None
            work(node, proxy)
        assert node.process.pid == first
        assert said == []
        node.process.kill()
        node.process.wait()
        node.watch()
        wait_for(lambda: "earlier session is still open" in str(node.watch()), 60)
    log = node.log_path.read_text()
    for reason in ("HTTP 500", "HTTP 404", "an answer that is not the SuperLink's"):
        assert reason in log


def test_the_coordinator_outlives_a_transient_error_and_names_a_lasting_one(
    make_federation: MakeFederation, ground: Ground, proxy: ReverseProxy
) -> None:
    federation = make_federation(centres=SITES)
    path = join(federation, ground)
    path.write_text(path.read_text().replace(ground.address, proxy.address))
    config = load(FederationConfig, path)
    proxy.under = "/v1/runtime/"

    def outlive(grid: HttpGrid) -> None:
        proxy.fault = 500
        met = sum(proxy.seen.values())

        def heal() -> None:
            wait_for(lambda: sum(proxy.seen.values()) > met + 1, 30)
            proxy.fault = None

        healer = threading.Thread(target=heal)
        healer.start()
        grid.get_nodes()
        healer.join()
        assert proxy.fault is None

    def conducted() -> None:
        with conduct(config, again="go on") as held:
            outlive(held.grid)
            proxy.fault = 500
            held.grid._retry_invoker.max_time = 0.5
            held.grid.get_nodes()

    with pytest.raises(RunError) as caught:
        conducted()
    assert "answers with an error (HTTP 500)" in str(caught.value)
    assert "given this run up" not in str(caught.value)
    assert "log" in str(caught.value.hint)
    assert "go on" in str(caught.value.hint)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_goes_on_with_a_site_after_its_transient_errors(
    make_federation: MakeFederation, ground: Ground, proxy: ReverseProxy, tmp_path: Path
) -> None:
    federation = make_federation(centres=SITES, rounds=4)
    config = join(federation, ground)
    out = tmp_path / "out"
    behind(federation, "centre-a", proxy.address, ground)
    with ExitStack() as stack:
        for name in SITES:
            site = federation.folder.path.parent / name / "site.yaml"
            command = [program("her2-client"), "start", "--site", str(site)]
            stack.enter_context(child(name, command, tmp_path / f"{name}.log"))
        command = [program("her2-server"), "run", str(config), "--out", str(out)]
        server = stack.enter_context(child("server", command, tmp_path / "server.log"))
        for number, fault in ((1, 500), (2, "drop"), (3, 404)):
            folder = out / "rounds" / f"{number:04d}"
            wait_for(lambda f=folder: f.exists() or server.process.poll() is not None, 300)
            proxy.fault = fault  # type: ignore[assignment]
            time.sleep(3)
            proxy.fault = None
        wait_for(lambda: server.process.poll() is not None, 300)
        assert server.process.returncode == 0, server.tail(30)
    last = RunFolder(out).read_metrics()[-1]
    assert all(site["status"] == "accepted" for site in last["sites"].values()), json.dumps(last)
