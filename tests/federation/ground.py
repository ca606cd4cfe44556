"""What a federation of real processes stands on: a SuperLink over TLS, and its commands."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from her2_common.network import free_port
from her2_deploy.processes import Child, child, environment, program, wait_for_tls
from her2_deploy.provision import provision, superlink_command


@dataclass
class Ground:
    """A running SuperLink and where to find it."""

    address: str
    paths: dict[str, Path]
    superlink: Child
    logs: Path


@contextmanager
def open_ground(folder: Path) -> Iterator[Ground]:
    """A SuperLink that runs while the block does."""
    paths = provision(folder, ["localhost", "127.0.0.1"])
    port = free_port()
    command = superlink_command(paths, host="127.0.0.1", port=port)
    command[0] = program(command[0])
    with child(
        "superlink", command, folder / "superlink.log", {"FLWR_HOME": str(folder)}
    ) as process:
        wait_for_tls(process, f"localhost:{port}", paths["root"])
        yield Ground(f"localhost:{port}", paths, process, folder)


def join(federation: Any, ground: Ground, out: str = "processes") -> Path:
    """Point the sites of a local federation and a new federation.yaml at the real SuperLink."""
    root = federation.folder.path.parent
    for name in federation.configs:
        path = root / name / "site.yaml"
        text = path.read_text().replace("localhost:1", ground.address)
        path.write_text(text.replace("keys/ca.crt", str(ground.paths["root"])))
    document = yaml.safe_load((root / "federation.yaml").read_text())
    document["superlink"] = {
        "address": ground.address,
        "root_certificates": str(ground.paths["root"]),
        "superexec_secret_file": str(ground.paths["secret"]),
    }
    document["run"] |= {"start_timeout": 60, "round_timeout": 120}
    path = root / f"{out}.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def her2(*arguments: str | Path, timeout: float = 150) -> subprocess.CompletedProcess[str]:
    command = [program(str(arguments[0])), *map(str, arguments[1:])]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
