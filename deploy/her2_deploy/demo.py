"""The demo: a federation of four hospitals on one machine, every part of it real.

1. Make the synthetic cohort: four centres, each with DICOM files and tables.
2. At each centre: `her2-client init` (keys, site.yaml) and `her2-client ingest` (cache).
3. At the coordinator: certificates, `flower-superlink` over TLS with node authentication.
4. Start the four sites, `her2-client start`, and conduct the run, `her2-server run`; if it is
   asked for, compare with what each site would be alone, `her2-server run --compare`.
5. If it is asked for, stay up until Ctrl-C, for commands from another terminal.
6. End every process by its own id; leave runs/demo/report.html.

It calls the same commands that hospitals call; nothing in it is a short cut.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

from her2_common.config import Task
from her2_common.console import console
from her2_common.errors import ConfigError
from her2_common.network import free_port
from her2_deploy.processes import (
    Child,
    call,
    child,
    program,
    stop_together,
    wait_for_tls,
)
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
  compression: {{up: int4, down: int4}}
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
    compare: bool = False
    """Also have each site train alone, and compare."""
    keep: bool = False
    """Stay up after the run, until Ctrl-C."""

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
        last = 5 if demo.keep else 4
        console.rule(f"[bold]{number}/{last}  {text}  [dim]{time.monotonic() - started:.0f} s")

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
        sites = []
        for centre in CENTRES:
            site = demo.hospitals / centre / "site.yaml"
            start = [program("her2-client"), "start", "--site", str(site)]
            sites.append(stack.enter_context(child(centre, start, logs / f"{centre}.log")))
        stack.callback(stop_together, sites)
        then = ", then by each alone" if demo.compare else ""
        step(4, f"{demo.rounds} rounds of training across the four sites{then}")
        run = [program("her2-server"), "run", str(federation), "--out", str(demo.out)]
        call([*run, "--compare"] if demo.compare else run)
        if demo.keep:
            step(5, "the SuperLink and the four sites stay up")
            console.print(what_to_type(demo, Path.cwd()), markup=False, soft_wrap=True)
            _stay([superlink, *sites])
    console.rule(f"[bold]done  [dim]{time.monotonic() - started:.0f} s")
    comparison = demo.out / "compare.json"
    if comparison.exists():  # of --compare, or made in another terminal
        told = verdicts(json.loads(comparison.read_text(encoding="utf-8")))
        console.print(told, markup=False, soft_wrap=True)
    console.print(f"open {demo.out / 'report.html'}", soft_wrap=True)
    console.print(f"logs {logs}", soft_wrap=True)


def what_to_type(demo: Demo, here: Path) -> str:
    """What can be asked of a federation that stays up: a screen of 80 columns for a user whose
    other terminal is anywhere; ``here`` is the folder that ``demo``'s paths start from."""
    server = Path(program("her2-server"))
    command = str(server.relative_to(here) if server.is_relative_to(here) else server)
    federation = demo.folder / "coordinator" / "federation.yaml"
    beside = [] if demo.out.parent == Path("runs") else ["--out", str(demo.out.parent)]
    return f"""\
Type in another terminal, one command after the other has ended:

  cd {shlex.quote(str(here))}

Is the federation worth it, and for whom? Each centre also trains alone.
  {shlex.join([command, "compare", str(demo.out)])}

Does the image say more than the needle? A centre tells no count below 10, so
that there is no verdict with so few patients.
  {shlex.join([command, "response", str(demo.out)])}

What is the model worth at a centre that took no part in it? Four runs, each
nearly as long as the first; for one of them, add: --without centre-b
  {shlex.join([command, "leave-one-out", str(federation), *beside])}

The first two add a section to {demo.out / "report.html"}
Ctrl-C here ends the SuperLink and the four sites."""


def _stay(children: Sequence[Child]) -> None:
    """Wait for Ctrl-C (or SIGTERM); who ends before is named."""
    alive = list(children)
    try:
        while True:
            for ended in [one for one in alive if one.process.poll() is not None]:
                alive.remove(ended)
                console.print(f"{ended.name} has ended; its log: {ended.log}", soft_wrap=True)
            time.sleep(1)
    except KeyboardInterrupt:
        console.print("\nending the SuperLink and the sites")  # below the ^C


def verdicts(comparison: Mapping[str, Any]) -> str:
    """compare.json in a line a centre, for a terminal of 80 columns."""
    lines = [
        "Is it worth it? AUC of the federation's model and of one trained there alone,",
        "on each centre's test cases, and the difference (95 % interval):",
    ]
    for name, one in comparison["centres"].items():
        if one["status"] != "compared":
            lines.append(f"{name}  {one.get('reason') or 'too few test cases of a class'}")
            continue
        areas = "  ".join(
            f"{one['auc'][model]['estimate']:.3f}" for model in ("federated", "local")
        )
        gap = one["difference"]["federated - local"]
        said = "worse: an alarm" if one["verdict"] == "worse" else one["verdict"]
        lines.append(
            f"{name}  {areas}  "
            f"{gap['estimate']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f})  {said}"
        )
    return "\n".join(lines)


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
    allow_all(folder / "site.yaml")
    call([client, "ingest", "--site", str(folder / "site.yaml")])
    return public_key.strip()


def fix_splits(key_file: Path, name: str, seed: int) -> None:
    """Replace a demo site's secret pseudonym key by one that follows from the seed.

    Splits follow from the key, and `her2-client init` draws a new one each time; so that the same
    seed gives the same demo, its synthetic patients do without the secret.
    """
    key_file.write_text(hashlib.sha256(f"demo {seed} {name}".encode()).hexdigest())


def allow_all(site: Path) -> None:
    """Allow every task at a demo's site, the response evaluation among them, which a hospital's
    allows by hand alone."""
    tasks = f"allowed_tasks: [{', '.join(get_args(Task))}]"
    text = site.read_text(encoding="utf-8")
    site.write_text(re.sub(r"allowed_tasks: \[.*\]", tasks, text), encoding="utf-8")


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
