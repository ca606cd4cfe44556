"""The folder of a run: what is written where, and when.

runs/<name>/
├── federation.yaml   frozen copy of the configuration
├── rounds/NNNN/      checkpoints (her2_server.checkpoint)
├── flower-run        Flower's number of the run, to stop a killed one
├── metrics.jsonl     one line a round
├── status.json       where the run stands, for her2-server watch
├── run.log           messages of the coordinator with date and time (UTC), and reasons in full
├── exclusions.json   sites that were excluded, and from which round (her2_server.exclusion)
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import yaml
from filelock import FileLock, Timeout

from her2_common.config import FederationConfig, load
from her2_common.documents import DocumentError, parse_json
from her2_common.errors import RunError
from her2_common.files import NO_LOCKS, naming, replace_durably
from her2_common.text import printable

_ENTRY_CHARACTERS: Final = 20_000
"""Longest entry of run.log; of a longer one, the end is kept: the last lines of a trace."""


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
    def log_file(self) -> Path:
        """The coordinator's messages."""
        return self.path / "run.log"

    @property
    def exclusions(self) -> Path:
        """Which sites were excluded."""
        return self.path / "exclusions.json"

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
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.chmod(0o700)
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        replace_durably(self.config, text.encode())

    def read_summary(self) -> dict[str, Any]:
        """The run's numbers.

        Raises:
            RunError: the run is not finished, or its summary is damaged.
        """
        document = read_json(self.summary)
        if document is None:
            raise RunError(
                f"{self.summary}: no such file",
                hint=f"a run writes it at its end: her2-server resume {self.path}",
            )
        return document

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep a second coordinator out of the folder while the block runs.

        Raises:
            RunError: another one is at work here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        # `watch` takes the lock for a moment to see whether the run is conducted.
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

    def log(self, text: str) -> None:
        """Append to run.log with date and time (UTC); a full disk does not end the run."""
        moment = datetime.now(UTC).isoformat(timespec="seconds")
        lines = printable(text[-_ENTRY_CHARACTERS:]).splitlines() or [""]
        entry = "".join(f"{moment if i == 0 else '   '} {line}\n" for i, line in enumerate(lines))
        with suppress(OSError):
            handle = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(entry)

    def logging(self, notify: Callable[[str], None]) -> Callable[[str], None]:
        """``notify`` that also writes to run.log."""

        def both(text: str) -> None:
            self.log(text)
            notify(text)

        return both

    def excluded(self) -> dict[str, int]:
        """The sites that were excluded, and the first round without each.

        Raises:
            RunError: exclusions.json is damaged.
        """
        document = read_json(self.exclusions) or {}
        try:
            return {name: int(number) for name, number in document.items()}
        except (ValueError, TypeError):
            raise RunError(
                f"{self.exclusions}: damaged", hint='expected {"site": first round without it}'
            ) from None

    def exclude(self, site: str, first: int) -> None:
        """Exclude ``site`` from round ``first`` on."""
        self.write_json(self.exclusions, self.excluded() | {site: first})

    def load_config(self) -> FederationConfig:
        """The frozen configuration, without the sites that were excluded.

        Raises:
            RunError: the folder holds no run.
        """
        return self._frozen().without(self.excluded())

    def _frozen(self) -> FederationConfig:
        if not self.config.exists():
            raise RunError(f"{self.path} holds no run", hint="start one: her2-server run")
        return load(FederationConfig, self.config)

    def config_hash(self) -> str:
        """SHA-256 of what is trained, from what, and by whom: names, keys, who is left out, the run
        section and the hash of the initial weights, no addresses."""
        config = self._frozen()
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
                line = parse_json(text)
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


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON file of a run folder; None if there is none.

    Raises:
        RunError: it cannot be read, or is not a JSON object.
    """
    try:
        document = parse_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None
    except DocumentError as error:
        raise RunError(f"{path}: {error}") from None
    if not isinstance(document, dict):
        raise RunError(f"{path}: expected a JSON object, got {type(document).__name__}")
    return document
