"""The cache: what ingest leaves behind and training reads, one memory-mapped array a modality.

    cache/
    ├── index.json          the small tables, shape and SHA-256 of every array, its own SHA-256
    ├── 0003/               the generation that index.json names
    │   ├── mg.npy          (n_mg, 4, S, S)     float16: CC, MLO, lesion crop of CC and of MLO
    │   ├── us.npy          (n_us, 1, S, S)     float16
    │   ├── mri.npy         (n_mri, P, V, V, V) float16: P phases, see ``mri_phases``
    │   └── outcomes.jsonl  what became of each image, under a keyed hash of its source
    └── .lock               held by the ingest that is running

A new cache is written beside the old one (cache_writer.py) and takes its place by one atomic
replacement of index.json: a killed ingest leaves the previous cache as it was. Nothing in these
files is an identifier: cases are known by keyed pseudonyms, there are no paths, tags or dates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from her2_common.cases import (
    CLINICAL_INPUTS,
    LABEL_SOURCES,
    LABELS,
    MODALITIES,
    NO_LABEL,
    Label,
    Modality,
)
from her2_common.documents import parse_json
from her2_common.errors import CacheError

SOURCES: Final = (*LABEL_SOURCES, *NO_LABEL)
"""Where a label comes from, or why there is none; ``Cache.sources`` are indices into it."""
FORMAT: Final = "her2-map cache"
VERSION: Final = 5
INDEX_NAME: Final = "index.json"
LOCK_NAME: Final = ".lock"
OUTCOMES_NAME: Final = "outcomes.jsonl"
INGEST_HINT: Final = "run: her2-client ingest"
_HASH_BLOCK_BYTES: Final = 1 << 24

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Cache:
    """The standardised cases of one site, in the order of its case table.

    ``in_table`` counts the rows of the table, accepted or left out; ``mri_phases`` says which
    phase each channel of an MRI is (0 before contrast, 1 the first after it).
    ``split`` is (n,) int8, an index into ``SPLITS``; ``clinical`` (n, 5) float32 in raw units and
    the order of ``CLINICAL_INPUTS``, NaN where unknown; ``labels[kind]`` (n,) int8, -1 where
    unknown; ``levels[kind]`` (n,) int8, the HER2 level of the specimen that gives the label, an
    index into ``HER2_LEVELS``, -1 where unknown; ``sources[kind]`` (n,) int8, where the label comes
    from, an index into ``SOURCES``; ``rows[m]`` (n,) int64, the case's row in ``arrays[m]``, -1
    where it has no such image; ``arrays[m]`` float16, read-only, mapped.
    """

    folder: Path
    site: str
    in_table: int
    image_size: int
    volume_size: int
    mri_phases: tuple[int, ...]
    pseudonyms: tuple[str, ...]
    split: Array
    clinical: Array
    labels: dict[Label, Array]
    levels: dict[Label, Array]
    sources: dict[Label, Array]
    rows: dict[Modality, Array]
    arrays: dict[Modality, Array]

    def __len__(self) -> int:
        return len(self.pseudonyms)


def image_shape(
    modality: Modality, image_size: int, volume_size: int, mri_channels: int = 1
) -> tuple[int, ...]:
    """The shape of one case's array of ``modality``, channels first.

    >>> image_shape("mg", 256, 96), image_shape("mri", 256, 96)
    ((4, 256, 256), (1, 96, 96, 96))
    """
    if modality == "mri":
        return (mri_channels, volume_size, volume_size, volume_size)
    return (4 if modality == "mg" else 1, image_size, image_size)


# --- reading ------------------------------------------------------------------------------------


def open_cache(folder: Path) -> Cache:
    """Open the cache in ``folder``: a few milliseconds, the images stay on disk until read.

    The index is checked against its SHA-256, the arrays against their shapes and sizes
    (``verify_cache`` reads them through).

    Raises:
        CacheError: there is no cache, or it is damaged or of another version.
    """
    index = read_index(folder)
    try:
        return _load(folder, index)
    except FileNotFoundError:
        # An ingest may have replaced the cache between our two looks; look once more.
        newer = read_index(folder)
        if newer == index:
            raise _damaged(folder, "a file that its index names is missing") from None
    try:
        return _load(folder, newer)
    except FileNotFoundError:
        raise _damaged(folder, "a file that its index names is missing") from None


def verify_cache(folder: Path) -> None:
    """Read every array through and compare it with the SHA-256 in the index.

    Raises:
        CacheError: the cache cannot be opened, or an array has changed since it was written.
    """
    cache = open_cache(folder)
    stated = read_index(folder)["arrays"]
    for modality in MODALITIES:
        digest = hashlib.sha256()
        flat = cache.arrays[modality].reshape(-1)
        step = _HASH_BLOCK_BYTES // flat.itemsize
        for start in range(0, flat.size, step):
            digest.update(flat[start : start + step].tobytes())
        if digest.hexdigest() != stated[modality]["sha256"]:
            raise _damaged(folder, f"{modality}.npy has changed since it was written")


def _damaged(folder: Path, why: str) -> CacheError:
    return CacheError(f"{folder}: the cache is damaged: {why}", hint=INGEST_HINT)


def index_digest(index: Mapping[str, Any]) -> str:
    """The SHA-256 of an index, over its canonical JSON."""
    text = json.dumps(index, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_index(folder: Path) -> dict[str, Any]:
    """index.json, checked against the SHA-256 that it carries.

    Raises:
        CacheError: there is none, or it is damaged or of another version.
    """
    try:
        document = parse_json((folder / INDEX_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CacheError(f"{folder}: no cache here", hint=INGEST_HINT) from None
    except (OSError, ValueError) as error:
        raise _damaged(folder, f"{INDEX_NAME}: {type(error).__name__}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CacheError(
            f"{folder}: expected a {FORMAT}, got another {INDEX_NAME}",
            hint="data.cache in site.yaml must name a folder of its own",
        )
    if document.get("version") != VERSION:
        raise CacheError(
            f"{folder}: expected cache version {VERSION}, got {document.get('version')!r}",
            hint=INGEST_HINT,
        )
    index = document.get("index")
    if not isinstance(index, dict) or index_digest(index) != document.get("sha256"):
        raise _damaged(folder, f"{INDEX_NAME} does not match its SHA-256")
    return index


def _load(folder: Path, index: dict[str, Any]) -> Cache:
    sizes = (index["image_size"], index["volume_size"], len(index["mri_phases"]))
    arrays: dict[Modality, Array] = {
        modality: _map(folder, index["generation"], modality, index["arrays"][modality], sizes)
        for modality in MODALITIES
    }
    return Cache(
        folder=folder,
        site=index["site"],
        in_table=index["in_table"],
        image_size=sizes[0],
        volume_size=sizes[1],
        mri_phases=tuple(index["mri_phases"]),
        pseudonyms=tuple(index["pseudonyms"]),
        split=np.array(index["split"], dtype=np.int8),
        clinical=np.array(
            [[np.nan if value is None else value for value in row] for row in index["clinical"]],
            dtype=np.float32,
        ).reshape(-1, len(CLINICAL_INPUTS)),
        labels={kind: np.array(index["labels"][kind], dtype=np.int8) for kind in LABELS},
        levels={kind: np.array(index["levels"][kind], dtype=np.int8) for kind in LABELS},
        sources={kind: np.array(index["sources"][kind], dtype=np.int8) for kind in LABELS},
        rows={m: np.array(index["rows"][m], dtype=np.int64) for m in MODALITIES},
        arrays=arrays,
    )


def _map(
    folder: Path, generation: str, modality: Modality, stated: dict[str, Any], sizes: Any
) -> Array:
    path = folder / generation / f"{modality}.npy"
    shape = (stated["count"], *image_shape(modality, *sizes))
    size = path.stat().st_size
    if size != stated["bytes"]:
        raise _damaged(folder, f"{path.name}: expected {stated['bytes']} bytes, got {size}")
    try:
        # An empty array cannot be mapped.
        array: Array = np.load(path, mmap_mode="r" if stated["count"] else None)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise _damaged(folder, f"{path.name}: {type(error).__name__}") from None
    if array.shape != shape or array.dtype != np.float16:
        raise _damaged(
            folder, f"{path.name}: expected float16 {shape}, got {array.dtype} {array.shape}"
        )
    return array


def read_outcomes(folder: Path) -> list[dict[str, Any]]:
    """What became of each image at the last ingest: the records that it wrote, in their order.

    Raises:
        CacheError: there is no cache, or it is damaged.
    """
    index = read_index(folder)
    try:
        content = (folder / index["generation"] / OUTCOMES_NAME).read_bytes()
    except OSError:
        raise _damaged(folder, f"{OUTCOMES_NAME} is missing") from None
    if hashlib.sha256(content).hexdigest() != index["outcomes"]:
        raise _damaged(folder, f"{OUTCOMES_NAME} has changed since it was written")
    return [parse_json(line) for line in content.splitlines()]
