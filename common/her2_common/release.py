"""A release folder: the weights of a finished run and what is needed to use them.

    release/
    ├── model.safetensors       {group: float32 vector} for the groups that some site trained
    ├── references.safetensors  features of the training cases (her2_common.novelty), if any
    └── manifest.json           Manifest, with the SHA-256 of both, and its own ("digest")

The temperature is in the weights already (her2_common.temperature): nothing is left to be applied.

The coordinator writes it; a site reads it to predict, a coordinator to begin a run from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from her2_common import __version__
from her2_common.cases import Label, Modality
from her2_common.config import Name
from her2_common.documents import DocumentError, parse_json
from her2_common.errors import ConfigError, DataError, UpdateError
from her2_common.files import replace_durably
from her2_common.model import GROUPS, Group, MapModel, build_model, preset, preset_sizes, set_groups
from her2_common.novelty import Reference, pack, unpack
from her2_common.thresholds import GridThreshold

FORMAT: Final = "her2-map release"
WEIGHTS_NAME: Final = "model.safetensors"
REFERENCES_NAME: Final = "references.safetensors"
MANIFEST_NAME: Final = "manifest.json"
_UNREADABLE: Final = (SafetensorError, KeyError, ValueError, TypeError)
"""What the reader of safetensors raises; KeyError for types that numpy does not have."""


class Manifest(BaseModel):
    """manifest.json: which model this is, and how its scores are read.

    ``groups`` are those that at least one site trained; the others are left out, so that no
    modality is ever scored by an untrained encoder. ``threshold`` is the frozen one.
    ``digest`` covers all the rest (``manifest_digest``): releases of one digest score alike.
    ``calibration`` is the temperature and what it did, as in summary.json; ``limits[m]`` the
    unlikeness above which an image of modality m is flagged. ``trained_on`` are the labels of the
    runs that made the weights, the last being ``label``: those of runs that this one began from
    come before it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    format: Literal["her2-map release"] = FORMAT
    version: str = __version__
    run: Name
    preset: str
    label: Label
    image_size: int = Field(ge=32, le=1024, multiple_of=16)
    volume_size: int = Field(ge=16, le=256, multiple_of=16)
    her2_levels: Literal[2, 3] = 2
    threshold: GridThreshold
    groups: list[Group]
    sha256: str | None = None
    calibration: dict[str, Any] = Field(default_factory=dict)
    limits: dict[Modality, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    references_sha256: str | None = None
    digest: str | None = None
    trained_on: list[Label] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check_history(self) -> Manifest:
        if not self.trained_on:
            object.__setattr__(self, "trained_on", [self.label])
        if self.trained_on[-1] != self.label:
            raise ValueError(f"trained_on: expected {self.label} last")
        return self

    @property
    def layout(self) -> dict[str, Any]:
        """What decides the shape of the weights, as keywords of ``model.preset``."""
        return {
            "image_size": self.image_size,
            "volume_size": self.volume_size,
            "levels": self.her2_levels,
        }


def write_release(
    folder: Path,
    manifest: Manifest,
    groups: Mapping[str, np.ndarray],
    references: Mapping[Modality, Reference] | None = None,
) -> None:
    """Write the release of ``groups``, of which ``manifest.groups`` are kept. Not signed."""
    tensors = save_tensors({group: groups[group] for group in manifest.groups})
    document = manifest.model_dump(mode="json")
    document["sha256"] = hashlib.sha256(tensors).hexdigest()
    folder.mkdir(exist_ok=True)
    replace_durably(folder / WEIGHTS_NAME, tensors)
    if references:
        beside = save_tensors(pack(references))
        document["references_sha256"] = hashlib.sha256(beside).hexdigest()
        replace_durably(folder / REFERENCES_NAME, beside)
    else:
        (folder / REFERENCES_NAME).unlink(missing_ok=True)
    document["digest"] = manifest_digest(document)
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    replace_durably(folder / MANIFEST_NAME, text.encode())


def manifest_digest(document: Mapping[str, Any]) -> str:
    """SHA-256, hex, of the canonical JSON (sorted keys, no spaces) of all but ``digest`` itself.

    It covers the threshold and the limits as well as, by their SHA-256, the weights.
    """
    covered = {key: value for key, value in document.items() if key != "digest"}
    text = json.dumps(covered, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_release(folder: Path) -> tuple[Manifest, dict[str, np.ndarray]]:
    """The manifest and the weights of a release folder.

    Raises:
        DataError: a file is missing or incomplete, or does not match the manifest.
    """
    hint = "expected the release/ folder of a finished run"
    try:
        document = parse_json((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        tensors = (folder / WEIGHTS_NAME).read_bytes()
        expected, stated_digest = str(document["sha256"]), str(document["digest"])
    except FileNotFoundError as error:
        name = Path(str(error.filename)).name
        raise DataError(f"{folder}: {name} is missing", hint=hint) from None
    except DocumentError as error:
        raise DataError(f"{folder}: not a release: {MANIFEST_NAME}: {error}", hint=hint) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: not a release ({type(error).__name__})", hint=hint) from None
    if manifest_digest(document) != stated_digest:
        raise DataError(
            f"{folder}: {MANIFEST_NAME} was changed: it does not match its own digest",
            hint="copy the release folder again from where it was made",
        )
    got = hashlib.sha256(tensors).hexdigest()
    if got != expected:
        raise DataError(
            f"{folder}: model.safetensors was changed: expected SHA-256 {expected[:12]}..., "
            f"got {got[:12]}..."
        )
    if not document.get("trained_on"):
        raise DataError(
            f"{folder}: manifest.json does not state the labels that the weights were trained on",
            hint=f"expected a release made by her2-map {__version__}",
        )
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as error:
        key = (*error.errors()[0]["loc"], "trained_on")[0]
        raise DataError(
            f"{folder}: manifest.json: {key} is missing or wrong",
            hint=f"expected a release made by her2-map {__version__}",
        ) from None
    try:
        groups = load_tensors(tensors)
        sizes = preset_sizes(manifest.preset, **manifest.layout)
    except (*_UNREADABLE, ConfigError) as error:
        raise DataError(f"{folder}: not a release ({type(error).__name__})", hint=hint) from None
    stated = set(manifest.groups)
    if stated != set(groups) or not stated <= set(GROUPS) or "head" not in stated:
        raise DataError(
            f"{folder}: model.safetensors: expected the groups {', '.join(sorted(stated))}, "
            f"got {', '.join(sorted(groups))}"
        )
    for name, vector in groups.items():
        if vector.dtype != np.float32 or vector.shape != (sizes[name],):
            raise DataError(
                f"{folder}: model.safetensors: {name}: expected float32 of shape "
                f"({sizes[name]},), got {vector.dtype} of shape {vector.shape}"
            )
        if not np.isfinite(vector).all():
            raise DataError(f"{folder}: model.safetensors: {name}: holds NaN or infinity")
    return manifest, groups


def read_references(folder: Path, manifest: Manifest) -> dict[Modality, Reference]:
    """The references of a release that have a limit; empty if it has none.

    Raises:
        DataError: the file is missing, or does not match the manifest.
    """
    if manifest.references_sha256 is None or not manifest.limits:
        return {}
    try:
        content = (folder / REFERENCES_NAME).read_bytes()
    except OSError:
        raise DataError(f"{folder}: {REFERENCES_NAME} is missing or cannot be read") from None
    got = hashlib.sha256(content).hexdigest()
    if got != manifest.references_sha256:
        raise DataError(
            f"{folder}: {REFERENCES_NAME} was changed: expected SHA-256 "
            f"{manifest.references_sha256[:12]}..., got {got[:12]}..."
        )
    try:
        features = preset(manifest.preset, **manifest.layout).features
        references = unpack(load_tensors(content), features)
    except (*_UNREADABLE, UpdateError) as error:
        raise DataError(f"{folder}: {REFERENCES_NAME}: {type(error).__name__}") from None
    if lacking := sorted(set(manifest.limits) - set(references)):
        raise DataError(f"{folder}: {REFERENCES_NAME}: expected a reference for {lacking[0]}")
    return {modality: references[modality] for modality in manifest.limits}


def load_release(folder: Path) -> tuple[MapModel, Manifest]:
    """The model of a release folder, and its manifest.

    Raises:
        DataError: as ``read_release``.
    """
    manifest, groups = read_release(folder)
    model = build_model(manifest.preset, 0, **manifest.layout)
    set_groups(model, groups)
    return model, manifest
