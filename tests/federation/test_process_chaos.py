"""Real processes over TLS, killed by their ids at moments that a seed chooses: the same bits."""

from __future__ import annotations

import json
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.federation.ground import Ground, join, wait_for

from her2_common.children import end_with_parent, stop_process
from her2_common.network import free_port
from her2_deploy.processes import Child, environment, program, wait_for_tls
from her2_deploy.provision import provision, superlink_command
from her2_server import checkpoint
from her2_server.run_folder import RunFolder
from her2_server.summary import weights_hash
from her2_server.watch import state_of

MakeFederation = Callable[..., Any]
SITES = {"centre-a": (30, ("mg", "us")), "centre-d": (30, ("us",))}
VICTIMS = (
    *("coordinator",) * 5,
    "superlink",
    "superlink without its database",
    "site and supernode",  # the SuperLink holds their sessions for a minute: both at once
)
SECONDS = 360.0


@dataclass
class Federation:
    """The processes of a run; each can be killed and started again."""

    root: Path
    ground: Ground
    config: Path
    out: Path
    children: dict[str, Child] = field(default_factory=dict)

    def start(self, name: str, *command: str | Path) -> None:
        log = (self.root / f"{name}.log").open("ab")
        process = subprocess.Popen(
            [program(str(command[0])), *map(str, command[1:])],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment({"FLWR_HOME": str(self.root)} if name == "superlink" else None),
            preexec_fn=end_with_parent,  # noqa: PLW1509 (one system call)
        )
        log.close()
        self.children[name] = Child(name, process, self.root / f"{name}.log")

    def kill(self, name: str) -> None:
        self.children[name].process.kill()
        self.children[name].process.wait()

    def superlink(self) -> None:
        port = int(self.ground.address.split(":")[1])
        database = str(self.root / "superlink.db")
        self.start(
            "superlink",
            *superlink_command(self.ground.paths, host="127.0.0.1", port=port, database=database),
        )
        wait_for_tls(self.children["superlink"], self.ground.address, self.ground.paths["root"])

    def site(self, name: str) -> None:
        self.start(name, "her2-client", "start", "--site", self.root / name / "site.yaml")

    def conduct(self) -> None:
        """Begin the run, or go on with it."""
        if self.out.exists():
            self.start("coordinator", "her2-server", "resume", self.out)
        else:
            self.start("coordinator", "her2-server", "run", self.config, "--out", self.out)

    def finished(self) -> bool:
        """Has it ended well? One that gave up is gone on with, as its hint says."""
        code = self.children["coordinator"].process.poll()
        if code:
            assert "her2-server resume" in self.children["coordinator"].log.read_text()
            self.conduct()
        return code == 0

    def round(self) -> int:
        return len(RunFolder(self.out).read_metrics()) if self.out.exists() else 0

    def strike(self, victim: str) -> None:
        """Kill a victim, and start it again."""
        if victim == "coordinator":
            self.kill("coordinator")
            if self.out.exists():
                assert state_of(RunFolder(self.out))["state"] in ("gone", "not begun")
            self.conduct()
        elif victim.startswith("superlink"):
            self.kill("superlink")
            if "without" in victim:
                for path in self.root.glob("superlink.db*"):
                    path.unlink()
            self.superlink()
        else:
            self.kill("centre-a")
            self.site("centre-a")
            parent = psutil.Process(self.children["centre-d"].process.pid)
            nodes = [c for c in parent.children() if "her2_client.supernode" in c.cmdline()]
            for node in nodes:
                node.kill()
            assert nodes


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_processes_killed_at_random_moments_change_no_bit(
    make_federation: MakeFederation, tmp_path: Path
) -> None:
    seed = 11
    chance = random.Random(seed)
    victims = list(VICTIMS)
    chance.shuffle(victims)
    local = make_federation(centres=SITES, rounds=len(victims) + 1, pause_timeout=600, retries=5)
    local.coordinator().run()
    expected = weights_hash(checkpoint.latest(local.folder.rounds).groups)

    root = local.folder.path.parent
    paths = provision(tmp_path / "superlink", ["localhost", "127.0.0.1"])
    ground = Ground(f"localhost:{free_port()}", paths, None, tmp_path)  # type: ignore[arg-type]
    federation = Federation(root, ground, join(local, ground), root / "processes")
    began = time.monotonic()
    try:
        federation.superlink()
        for name in SITES:
            federation.site(name)
        federation.conduct()
        for number, victim in enumerate(victims):
            wait_for(lambda n=number: federation.finished() or federation.round() >= n, SECONDS)
            time.sleep(chance.uniform(0, 3))
            print(f"seed {seed}: {time.monotonic() - began:5.1f} s, {victim} is killed", flush=True)
            federation.strike(victim)
        wait_for(federation.finished, SECONDS)
    finally:
        for process in reversed(federation.children.values()):
            stop_process(process.process)
    summary = json.loads((federation.out / "summary.json").read_text())
    assert summary["run"]["weights_sha256"] == expected
    print(f"seed {seed}: {len(victims) + 1} kills, the same bits, {time.monotonic() - began:.0f} s")
    for name in SITES:
        assert "Traceback" not in (root / f"{name}.log").read_text()
