"""The cache: what ingest leaves behind and training reads, one memory-mapped array a modality.

    cache/
    ├── index.json      the small tables, the shape and SHA-256 of every array, its own SHA-256
    ├── 0003/           the generation that index.json names
    │   ├── mg.npy      (n_mg, 4, S, S)     float16: CC, MLO, lesion crop of CC, lesion crop of MLO
    │   ├── us.npy      (n_us, 1, S, S)     float16
    │   └── mri.npy     (n_mri, 1, V, V, V) float16
    └── .lock           held by the ingest that is running

A new cache is written beside the old one and takes its place by one atomic replacement of
index.json: a killed ingest leaves the previous cache as it was. Nothing in these files is an
identifier: cases are known by keyed pseudonyms, and there are no paths, tags or dates.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, get_args

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from her2_common.cases import CLINICAL_INPUTS, MODALITIES, SPLITS, Label, Modality, Split
from her2_common.errors import CacheError
from her2_common.files import sync_folder

LABELS: Final[tuple[Label, ...]] = get_args(Label)
FORMAT: Final = "her2-map cache"
VERSION: Final = 1
INDEX_NAME: Final = "index.json"
LOCK_NAME: Final = ".lock"
WRITING_NAME: Final = ".writing"
INGEST_HINT: Final = "run: her2-client ingest"
_HASH_BLOCK_BYTES: Final = 1 << 24

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Cache:
    """The standardised cases of one site, in the order of its case table.

    ``in_table`` counts the rows of the table, accepted or left out.
    ``split`` is (n,) int8, an index into ``SPLITS``; ``clinical`` (n, 5) float32 in raw units and
    the order of ``CLINICAL_INPUTS``, NaN where unknown; ``labels[kind]`` (n,) int8, -1 where
    unknown; ``rows[m]`` (n,) int64, the case's row in ``arrays[m]``, -1 where it has no such
    image; ``arrays[m]`` float16, read-only, mapped from disk.
    """

    folder: Path
    site: str
    in_table: int
    image_size: int
    volume_size: int
    pseudonyms: tuple[str, ...]
    split: Array
    clinical: Array
    labels: dict[Label, Array]
    rows: dict[Modality, Array]
    arrays: dict[Modality, Array]

    def __len__(self) -> int:
        return len(self.pseudonyms)


def image_shape(modality: Modality, image_size: int, volume_size: int) -> tuple[int, ...]:
    """The shape of one case's array of ``modality``, channels first.

    >>> image_shape("mg", 256, 96), image_shape("mri", 256, 96)
    ((4, 256, 256), (1, 96, 96, 96))
    """
    if modality == "mri":
        return (1, volume_size, volume_size, volume_size)
    return (4 if modality == "mg" else 1, image_size, image_size)


# --- reading ------------------------------------------------------------------------------------


def open_cache(folder: Path) -> Cache:
    """Open the cache in ``folder``: a few milliseconds, the images stay on disk until read.

    The index is checked against its SHA-256, the arrays against their shapes and sizes
    (``verify_cache`` reads them through).

    Raises:
        CacheError: there is no cache, or it is damaged or of another version.
    """
    index = _read_index(folder)
    try:
        return _load(folder, index)
    except FileNotFoundError:
        # An ingest may have replaced the cache between our two looks; look once more.
        newer = _read_index(folder)
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
    stated = _read_index(folder)["arrays"]
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


def _digest(index: Mapping[str, Any]) -> str:
    text = json.dumps(index, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_index(folder: Path) -> dict[str, Any]:
    """index.json, checked against the SHA-256 that it carries."""
    try:
        document = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
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
    if not isinstance(index, dict) or _digest(index) != document.get("sha256"):
        raise _damaged(folder, f"{INDEX_NAME} does not match its SHA-256")
    return index


def _load(folder: Path, index: dict[str, Any]) -> Cache:
    sizes = (index["image_size"], index["volume_size"])
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
        pseudonyms=tuple(index["pseudonyms"]),
        split=np.array(index["split"], dtype=np.int8),
        clinical=np.array(
            [[np.nan if value is None else value for value in row] for row in index["clinical"]],
            dtype=np.float32,
        ).reshape(-1, len(CLINICAL_INPUTS)),
        labels={kind: np.array(index["labels"][kind], dtype=np.int8) for kind in LABELS},
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


# --- writing ------------------------------------------------------------------------------------


class _ArrayFile:
    """A .npy file of unknown length, written row by row, its header last."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.count = 0
        self.digest = hashlib.sha256()
        self.stream: BinaryIO = path.open("w+b")
        self._write_header()
        self.header_bytes = self.stream.tell()

    def _write_header(self) -> None:
        # numpy leaves room in the header for the first axis to grow.
        self.stream.seek(0)
        np.lib.format.write_array_header_1_0(
            self.stream,
            {"descr": "<f2", "fortran_order": False, "shape": (self.count, *self.shape)},
        )

    def append(self, array: Array) -> int:
        if array.shape != self.shape or not np.isfinite(array).all():
            raise ValueError(f"expected finite values of shape {self.shape}, got {array.shape}")
        data = np.ascontiguousarray(array, dtype="<f2").tobytes()
        self.digest.update(data)
        self.stream.write(data)
        self.count += 1
        return self.count - 1

    def finish(self) -> dict[str, Any]:
        self._write_header()
        if self.stream.tell() != self.header_bytes:  # pragma: no cover - numpy's promise
            raise ValueError(f"the header outgrew its {self.header_bytes} bytes")
        self.stream.flush()
        os.fsync(self.stream.fileno())
        size = os.fstat(self.stream.fileno()).st_size
        self.stream.close()
        return {"count": self.count, "bytes": size, "sha256": self.digest.hexdigest()}


class CacheWriter:
    """Writes a new cache beside the present one and puts it in its place at the end.

        with CacheWriter(folder, site="centre-a", image_size=256, volume_size=96) as writer:
            writer.add(...)     # once a case, in the order of the table
            writer.publish()

    Without ``publish`` the present cache stays. Bytes depend on what is added alone.

    Raises:
        CacheError: another ingest holds the folder, or it holds something that is no cache.
    """

    def __init__(self, folder: Path, *, site: str, image_size: int, volume_size: int) -> None:
        self.folder = folder
        self._writing = folder / WRITING_NAME
        self._lock = FileLock(folder / LOCK_NAME, timeout=0)
        self._index: dict[str, Any] = {
            "site": site,
            "image_size": image_size,
            "volume_size": volume_size,
            "pseudonyms": [],
            "split": [],
            "clinical": [],
            "labels": {kind: [] for kind in LABELS},
            "rows": {modality: [] for modality in MODALITIES},
        }
        self._files: dict[Modality, _ArrayFile] = {}

    def __enter__(self) -> CacheWriter:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            foreign = [p.name for p in self.folder.iterdir() if not _is_ours(p)]
            if foreign:
                raise CacheError(
                    f"{self.folder}: expected a cache or an empty folder, "
                    f"got {len(foreign)} other files or folders",
                    hint="data.cache in site.yaml must name a folder of its own",
                )
            self._lock.acquire()
        except Timeout:
            raise CacheError(
                f"{self.folder}: another ingest is writing this cache",
                hint="wait until it is done; the lock goes when that process ends",
            ) from None
        except OSError as error:
            raise CacheError(f"{self.folder}: cannot be written: {error.strerror}") from None
        try:
            shutil.rmtree(self._writing, ignore_errors=True)
            self._writing.mkdir(mode=0o700)
            for modality in MODALITIES:
                shape = image_shape(modality, self._index["image_size"], self._index["volume_size"])
                self._files[modality] = _ArrayFile(self._writing / f"{modality}.npy", shape)
        except BaseException:
            self._clean()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._clean()

    def _clean(self) -> None:
        for file in self._files.values():
            file.stream.close()
        shutil.rmtree(self._writing, ignore_errors=True)
        self._lock.release()

    def add(
        self,
        *,
        pseudonym: str,
        split: Split,
        clinical: tuple[float | None, ...],
        labels: Mapping[Label, int | None],
        images: Mapping[Modality, Array],
    ) -> None:
        """Append one case; ``images[m]`` has the shape of ``image_shape`` and finite values."""
        index = self._index
        for modality in MODALITIES:
            row = -1
            if modality in images:
                row = self._files[modality].append(images[modality])
            index["rows"][modality].append(row)
        index["pseudonyms"].append(pseudonym)
        index["split"].append(SPLITS.index(split))
        index["clinical"].append([None if v is None else float(v) for v in clinical])
        for kind in LABELS:
            value = labels[kind]
            index["labels"][kind].append(-1 if value is None else int(value))

    def publish(self, in_table: int | None = None) -> None:
        """Make what was added the cache of this folder, durably and in one step.

        ``in_table`` counts the rows of the case table; by default the cases added.
        """
        try:
            present = _read_index(self.folder)["generation"]
        except CacheError:
            present = "0000"
        generation = f"{int(present) + 1:04d}"
        arrays = {modality: file.finish() for modality, file in self._files.items()}
        rows = len(self._index["pseudonyms"]) if in_table is None else in_table
        index = self._index | {"in_table": rows, "generation": generation, "arrays": arrays}
        document = {"format": FORMAT, "version": VERSION, "sha256": _digest(index), "index": index}

        # 1. the arrays, under a name that no index mentions yet
        shutil.rmtree(self.folder / generation, ignore_errors=True)
        sync_folder(self._writing)
        self._writing.rename(self.folder / generation)
        # 2. the index, complete on disk before it takes its name
        draft = self.folder / f"{INDEX_NAME}.new"
        with draft.open("w", encoding="utf-8") as stream:
            json.dump(document, stream, allow_nan=False)
            stream.flush()
            os.fsync(stream.fileno())
        sync_folder(self.folder)
        draft.replace(self.folder / INDEX_NAME)
        sync_folder(self.folder)
        # 3. what nothing names any more; a reader that has it mapped keeps it
        for path in self.folder.iterdir():
            if path.name.isdigit() and path.name != generation:
                shutil.rmtree(path, ignore_errors=True)


def _is_ours(path: Path) -> bool:
    known = {INDEX_NAME, f"{INDEX_NAME}.new", LOCK_NAME, WRITING_NAME}
    return path.name in known or (path.name.isdigit() and path.is_dir())
