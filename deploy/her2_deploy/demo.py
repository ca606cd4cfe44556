"""The demo: a federation of four hospitals on one machine, every part of it real.

1. Make the synthetic cohort: four centres, each with DICOM files and tables.
2. At each centre: `her2-client init` (keys, site.yaml) and `her2-client ingest` (cache).
3. At the coordinator: certificates, `flower-superlink` over TLS with node authentication.
4. Start the four sites, `her2-client start`, and conduct the run, `her2-server run`.
5. End every process by its own id; leave runs/demo/report.html.

It calls the same commands that hospitals call; nothing in it is a short cut.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from her2_common.console import console
from her2_common.errors import ConfigError
from her2_common.network import free_port
from her2_deploy.processes import call, child, program, wait_for_tls
from her2_deploy.provision import provision, superlink_command

CENTRES: Final = ("centre-a", "centre-b", "centre-c", "centre-d")
IMAGE_SIZE: Final = 64
VOLUME_SIZE: Final = 32
ROUNDS: Final = 20
LOCAL_EPOCHS: Final = 2
STAMP: Final = ".her2-map-demo"

FEDERATION_TEMPLATE = """\
# The demo federation. Every key is explained in README, "federation.yaml".
name: demo
synthetic: true                 # the report says so on top

superlink:
  address: {address}
  root_certificates: ca.crt
  superexec_secret_file: superexec.secret

sites:
{sites}
run:
  rounds: {rounds}
  preset: compact
  image_size: {image_size}      # the demo's small images; the preset's own are larger
  volume_size: {volume_size}
  local_epochs: {local_epochs}
  batch_size: 6
  learning_rate: 0.002
  seed: {seed}
  round_timeout: 180
  start_timeout: 120
"""


@dataclass(frozen=True)
class Demo:
    """Where and how the demo runs."""

    folder: Path
    out: Path
    cases: int
    rounds: int
    local_epochs: int
    scenario: str
    seed: int

    @property
    def hospitals(self) -> Path:
        """Where the four centres' folders stand; truth.csv lies beside them."""
        return self.folder / "hospitals"


def run_demo(demo: Demo) -> None:
    """Run the demo; its result is ``demo.out``.

    Raises:
        Her2Error: a step failed; the step's own message stands above.
    """
    started = time.monotonic()

    def step(number: int, text: str) -> None:
        console.rule(f"[bold]{number}/4  {text}  [dim]{time.monotonic() - started:.0f} s")

    for folder in (demo.folder, demo.out):
        _require_ours(folder)
    for folder in (demo.folder, demo.out):
        _make_room(folder)
    step(1, f"a synthetic cohort of {demo.cases} cases at four centres")
    call(
        [
            program("her2-deploy"),
            "synth",
            *("--out", str(demo.hospitals)),
            *("--scenario", demo.scenario),
            *("--size", "demo"),
            *("--cases", str(demo.cases)),
            *("--seed", str(demo.seed)),
        ]
    )
    step(2, "each centre makes its keys and its cache")
    port = free_port()
    address = f"localhost:{port}"
    coordinator = demo.folder / "coordinator"
    paths = provision(coordinator, ["localhost", "127.0.0.1"])
    keys = {
        centre: _prepare_site(demo.hospitals / centre, centre, address, demo.seed)
        for centre in CENTRES
    }
    federation = coordinator / "federation.yaml"
    federation.write_text(
        federation_text(
            keys,
            address=address,
            rounds=demo.rounds,
            local_epochs=demo.local_epochs,
            seed=demo.seed,
        ),
        encoding="utf-8",
    )

    step(3, "the SuperLink and four sites start, over TLS, with node keys")
    logs = demo.folder / "logs"
    with ExitStack() as stack:
        command = superlink_command(paths, host="127.0.0.1", port=port)
        command[0] = program(command[0])
        home = {"FLWR_HOME": str(coordinator / "flwr")}
        superlink = stack.enter_context(
            child("flower-superlink", command, logs / "superlink.log", home)
        )
        wait_for_tls(superlink, address, paths["root"])
        for centre in CENTRES:
            site = demo.hospitals / centre / "site.yaml"
            start = [program("her2-client"), "start", "--site", str(site)]
            stack.enter_context(child(centre, start, logs / f"{centre}.log"))
        step(4, f"{demo.rounds} rounds of training across the four sites")
        call([program("her2-server"), "run", str(federation), "--out", str(demo.out)])
    console.rule(f"[bold]done  [dim]{time.monotonic() - started:.0f} s")
    console.print(f"open {demo.out / 'report.html'}", soft_wrap=True)
    console.print(f"logs {logs}", soft_wrap=True)


def _require_ours(folder: Path) -> None:
    """Raises:
    ConfigError: the folder holds something that no demo made.
    """
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not empty and not (folder / STAMP).exists():
        raise ConfigError(
            f"{folder}: expected an empty folder or an earlier demo's, got something else",
            hint="choose another folder",
        )


def _make_room(folder: Path) -> None:
    """An empty folder that is the demo's own; what an earlier demo left is removed.

    Raises:
        ConfigError: the folder holds something that no demo made.
    """
    _require_ours(folder)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STAMP).touch()


def _prepare_site(folder: Path, name: str, address: str, seed: int) -> str:
    """Run `her2-client init` and `ingest` for one centre; returns its public key."""
    client = program("her2-client")
    public_key = call(
        [
            client,
            "init",
            *("--name", name),
            *("--superlink", address),
            *("--folder", str(folder)),
            *("--lesions", "lesions.csv"),
            *("--root-certificates", "../../coordinator/ca.crt"),
            *("--image-size", str(IMAGE_SIZE)),
            *("--volume-size", str(VOLUME_SIZE)),
            *("--threads", "1"),  # four sites share this machine
        ],
        capture=True,
    )
    fix_splits(folder / "keys" / "pseudonym.key", name, seed)
    call([client, "ingest", "--site", str(folder / "site.yaml")])
    return public_key.strip()


def fix_splits(key_file: Path, name: str, seed: int) -> None:
    """Replace a demo site's secret pseudonym key by one that follows from the seed.

    Splits follow from the key, and `her2-client init` draws a new one each time; so that the same
    seed gives the same demo, its synthetic patients do without the secret.
    """
    key_file.write_text(hashlib.sha256(f"demo {seed} {name}".encode()).hexdigest())


def federation_text(
    keys: Mapping[str, str],
    *,
    address: str,
    rounds: int = ROUNDS,
    local_epochs: int = LOCAL_EPOCHS,
    seed: int = 1,
) -> str:
    """The demo's federation.yaml; ``keys`` maps each site's name to its public key."""
    sites = "".join(f"  - name: {name}\n    public_key: {key}\n" for name, key in keys.items())
    return FEDERATION_TEMPLATE.format(
        address=address,
        sites=sites,
        rounds=rounds,
        image_size=IMAGE_SIZE,
        volume_size=VOLUME_SIZE,
        local_epochs=local_epochs,
        seed=seed,
    )
