"""The folder of a run: what is written where, and when.

runs/<name>/
├── federation.yaml   frozen copy of the configuration
├── rounds/NNNN/      checkpoints (her2_server.checkpoint)
├── flower-run        Flower's number of the run, to stop a killed one
├── metrics.jsonl     one line a round
├── status.json       where the run stands, for her2-server watch
├── settled/          what the test cases are scored with, from then to the end (her2_server.frozen)
├── summary.json      at the end
├── report.html       at the end
└── release/          model.safetensors and manifest.json, at the end
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from her2_common.config import FederationConfig, load
from her2_common.errors import RunError
from her2_common.files import NO_LOCKS, naming, replace_durably


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run and the few ways in which they are written."""

    path: Path

    @property
    def config(self) -> Path:
        """The frozen federation.yaml."""
        return self.path / "federation.yaml"

    @property
    def rounds(self) -> Path:
        """The checkpoints."""
        return self.path / "rounds"

    @property
    def metrics(self) -> Path:
        """One JSON line a round."""
        return self.path / "metrics.jsonl"

    @property
    def status(self) -> Path:
        """Where the run stands."""
        return self.path / "status.json"

    @property
    def settled(self) -> Path:
        """What was settled before the test cases are scored."""
        return self.path / "settled"

    @property
    def summary(self) -> Path:
        """The run's numbers; its presence means that the run is finished."""
        return self.path / "summary.json"

    @property
    def release(self) -> Path:
        """The model as handed out."""
        return self.path / "release"

    def require_free(self) -> None:
        """Raises:
        RunError: the folder holds a run already.
        """
        if self.config.exists():
            raise RunError(
                f"{self.path} holds a run already",
                hint=f"go on with it: her2-server resume {self.path}; or choose another --out",
            )

    def create(self, config_file: Path) -> None:
        """Make the folder and freeze the configuration into it, its paths made absolute.

        The SHA-256 of the weights that ``initial`` names is frozen with it.

        Raises:
            RunError: the folder holds a run already.
            ConfigError, DataError: the configuration or the release that it names is faulty.
        """
        from her2_server.initial import read_initial  # torch, which only a new run needs

        self.require_free()
        config = load(FederationConfig, config_file)
        if (initial := read_initial(config)) is not None:
            config = config.model_copy(update={"initial_sha256": initial.sha256})
        self.path.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        replace_durably(self.config, text.encode())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep a second coordinator out of the folder while the block runs.

        Raises:
            RunError: another one is at work here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        # A moment's patience: whoever watches the run looks whether the lock is taken.
        lock = FileLock(self.path / ".lock", timeout=1)
        try:
            with naming(self.path / ".lock"):
                lock.acquire()
        except Timeout:
            raise RunError(f"{self.path}: another coordinator conducts this run") from None
        try:
            yield
        finally:
            lock.release()

    def is_held(self) -> bool:
        """Is a coordinator at work here? The system frees the lock of a killed one."""
        try:
            handle = os.open(self.path / ".lock", os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return False  # where there are no locks, no run is conducted
        finally:
            os.close(handle)
        return False

    def flower_run(self) -> int | None:
        """Flower's number of the run as it was last started, if it was."""
        try:
            return int((self.path / "flower-run").read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    def set_flower_run(self, number: int) -> None:
        """Remember Flower's number of the run."""
        replace_durably(self.path / "flower-run", f"{number}\n".encode())

    def load_config(self) -> FederationConfig:
        """The frozen configuration.

        Raises:
            RunError: the folder holds no run.
        """
        if not self.config.exists():
            raise RunError(f"{self.path} holds no run", hint="start one: her2-server run")
        return load(FederationConfig, self.config)

    def config_hash(self) -> str:
        """SHA-256 of what is trained, from what, and by whom: names, keys, who is left out, the run
        section and the hash of the initial weights, no addresses."""
        config = self.load_config()
        document = {
            "name": config.name,
            "sites": [site.model_dump(mode="json") for site in config.sites],
            "run": config.run.model_dump(mode="json"),
            "initial": config.initial_sha256,
            "left_out": config.left_out,
        }
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()

    def read_metrics(self, up_to: int | None = None) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, of rounds up to ``up_to``; a torn last line is dropped."""
        lines: list[dict[str, Any]] = []
        if not self.metrics.exists():
            return lines
        for text in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                break
            if up_to is None or line["round"] <= up_to:
                lines.append(line)
        return lines

    def write_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Replace metrics.jsonl; small enough to be written whole every round."""
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        replace_durably(self.metrics, text.encode())

    def write_json(self, path: Path, document: dict[str, Any]) -> None:
        """Replace a JSON file of the folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
        replace_durably(path, text.encode())
