"""The weights that a run begins with, if it begins from a release.

1. As the run's folder is made, the release is read and its SHA-256 pinned in the frozen
   federation.yaml, and so in the hash by which checkpoints know their run.
2. Before round 0 it is read again; other weights than the pinned ones are refused. What is taken
   stands in the checkpoint of round 0 and the release is not needed any more.

With the label of the release every group that it holds is taken. With another label only the
encoders are: they read images, while the head and the clinical inputs answer the question that
was asked. Whatever is not taken begins from the run's seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from her2_common.cases import MODALITIES
from her2_common.config import FederationConfig
from her2_common.errors import ConfigError, DataError
from her2_common.model import GROUPS, preset
from her2_common.release import Manifest, read_release


@dataclass(frozen=True)
class Initial:
    """``taken`` holds the flat vectors of the groups taken; ``sha256`` is of the release's file."""

    manifest: Manifest
    sha256: str
    taken: dict[str, np.ndarray]

    @property
    def record(self) -> dict[str, Any]:
        """What summary.json says of it: run, labels, sha256, groups taken, groups afresh."""
        return {
            "run": self.manifest.run,
            "label": self.manifest.label,
            "trained_on": list(self.manifest.trained_on),
            "sha256": self.sha256,
            "groups": list(self.taken),
            "afresh": [group for group in GROUPS if group not in self.taken],
        }

    def __str__(self) -> str:
        return (
            f"begins from the release of {self.manifest.run} (label {self.manifest.label}, "
            f"SHA-256 {self.sha256[:12]}...): {', '.join(self.taken)}; "
            f"afresh: {', '.join(self.record['afresh']) or 'none'}"
        )


def read_initial(config: FederationConfig) -> Initial | None:
    """The release that ``config.initial`` names, checked against the run; None if it names none.

    Raises:
        ConfigError: the folder holds no sound release; the run's preset, sizes or (with the same
            label) HER2 levels are not the release's; the weights are not those of
            ``initial_sha256``.
    """
    if config.initial is None:
        return None
    if not config.initial.is_dir():
        got = "a file" if config.initial.exists() else "nothing of that name"
        raise ConfigError(
            f"initial: {config.initial}: expected a folder, got {got}",
            hint="it is the release/ folder of a finished run",
        )
    try:
        manifest, groups = read_release(config.initial)
    except DataError as error:
        raise ConfigError(f"initial: {error}", hint=error.hint) from None
    sha256 = str(manifest.sha256)
    if config.initial_sha256 not in (None, sha256):
        raise ConfigError(
            f"initial: {config.initial}: expected weights with SHA-256 "
            f"{str(config.initial_sha256)[:12]}..., got {sha256[:12]}..."
        )
    same_question = manifest.label == config.run.label
    _check_layout(config, manifest, same_question=same_question)
    wanted = GROUPS if same_question else MODALITIES
    taken: dict[str, np.ndarray] = {g: groups[g] for g in wanted if g in groups}
    return Initial(manifest, sha256, taken)


def _check_layout(config: FederationConfig, manifest: Manifest, *, same_question: bool) -> None:
    """The keys of the run that shape the groups taken must be the release's."""
    layout = preset(config.run.preset, **config.run.layout)
    run: dict[str, Any] = {
        "preset": config.run.preset,
        "image_size": layout.image_size,
        "volume_size": layout.volume_size,
    }
    if same_question:  # these shape the head, which another question does not take
        run |= {"her2_levels": layout.levels}
    faults = [
        f"run.{key}: expected {getattr(manifest, key)} as in the release, got {value}"
        for key, value in run.items()
        if value != getattr(manifest, key)
    ]
    if faults:
        raise ConfigError(
            f"initial: {config.initial}: {'; '.join(faults)}",
            hint="give the run the release's values, or begin without it",
        )
