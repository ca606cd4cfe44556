"""Writing a cache: beside the present one, in order, and restartable.

1. ``begin`` takes the lock's folder as it finds it: what an interrupted writer left in
   ``.writing`` goes on where it was if its records are the first ones wanted now; otherwise its
   images, like those of the present cache, are a source to copy from.
2. For each image in order, ``recall`` gives the record that is known already (its image copied if
   need be); if it gives None, the caller makes the image and calls ``put``.
3. ``add_case`` for each case; ``publish`` puts the new cache in the place of the present one.

The caller's duty: the keys given to ``begin``, in the order of the calls of ``recall`` and ``put``.
A key must name everything that its image depends on. The bytes of a cache depend on the keys, the
images and the cases alone, not on how often the writer was interrupted.

Each image is followed by a line in outcomes.jsonl with its CRC-32: whatever a killed process or a
power cut left behind that line, or did not bring to the disk before it, is cut off at ``begin``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, BinaryIO, Final

import numpy.typing as npt
from filelock import FileLock, Timeout

from her2_client.cache import (
    FORMAT,
    INDEX_NAME,
    LOCK_NAME,
    OUTCOMES_NAME,
    SOURCES,
    VERSION,
    image_shape,
    index_digest,
    read_index,
    read_outcomes,
)
from her2_client.image_file import ImageFile, read_row
from her2_common.cases import (
    LABELS,
    MODALITIES,
    PCR_LABELS,
    SPLITS,
    Label,
    LabelSource,
    Modality,
    NoLabel,
    Split,
)
from her2_common.clinical import HER2_LEVELS, Her2Level
from her2_common.config import FIRST_POST_CONTRAST
from her2_common.documents import parse_json
from her2_common.errors import CacheError
from her2_common.files import FULL, storage_error, sync_folder

WRITING_NAME: Final = ".writing"
FORMER_NAME: Final = ".former"
"""What an interrupted ingest of a table that has changed since left behind."""

Array = npt.NDArray[Any]
Record = dict[str, Any]
Usable = Callable[[Record], bool]


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn whatever the disk says of the cache in ``folder`` into a CacheError."""
    try:
        yield
    except OSError as error:
        full = error.errno in FULL
        told = "the disk is full" if full else f"cannot be written: {error.strerror}"
        known = storage_error(error)
        hint = known.hint if known is not None else None
        if full:
            hint = "free some space and run it again: it goes on where it was"
        raise CacheError(f"{folder}: {told}", hint=hint) from None


class CacheWriter:
    """Writes a new cache beside the present one and puts it in its place at the end.

        with CacheWriter(folder, site="centre-a", image_size=256, volume_size=96) as writer:
            writer.begin(keys)
            record = writer.recall(keys[0], "us") or writer.put(keys[0], "us", {}, image)
            writer.add_case(..., rows={"us": record["row"]})
            writer.publish()

    Without ``publish`` the present cache stays, and what was put waits for the next writer.
    ``key_tag`` says with which pseudonym key the cases were named, without giving it away.

    Raises:
        CacheError: another ingest holds the folder, or it holds something that is no cache.
    """

    def __init__(
        self,
        folder: Path,
        *,
        site: str,
        image_size: int,
        volume_size: int,
        mri_phases: Sequence[int] = (FIRST_POST_CONTRAST,),
        key_tag: str = "",
    ) -> None:
        self.folder = folder
        self._writing = folder / WRITING_NAME
        self._lock = FileLock(folder / LOCK_NAME, timeout=0)
        self._shapes: dict[Modality, tuple[int, ...]] = {
            m: image_shape(m, image_size, volume_size, len(mri_phases)) for m in MODALITIES
        }
        self._index: dict[str, Any] = {
            "site": site,
            "image_size": image_size,
            "volume_size": volume_size,
            "mri_phases": list(mri_phases),
            "key_tag": key_tag,
            "pseudonyms": [],
            "split": [],
            "clinical": [],
            "labels": {kind: [] for kind in LABELS},
            "levels": {kind: [] for kind in LABELS},
            "sources": {kind: [] for kind in LABELS},
            "rows": {modality: [] for modality in MODALITIES},
        }
        self._files: dict[Modality, ImageFile] = {}
        self._journal: BinaryIO | None = None
        self._done: list[Record] = []
        self._next = 0
        self._sources: dict[str, tuple[Path, Record]] = {}
        self._known: set[str] = set()
        self._published = False

    def __enter__(self) -> CacheWriter:
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            foreign = [p.name for p in self.folder.iterdir() if not _is_ours(p)]
            if foreign:
                raise CacheError(
                    f"{self.folder}: expected a cache or an empty folder, "
                    f"got {len(foreign)} other files or folders",
                    hint="data.cache in site.yaml must name a folder of its own",
                )
            try:
                self._lock.acquire()
            except Timeout:
                raise CacheError(
                    f"{self.folder}: another ingest is writing this cache",
                    hint="wait until it is done; the lock goes when that process ends",
                ) from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # a full disk; the records that count are on it
            self._close()
        if not self._published and not self._done:
            shutil.rmtree(self._writing, ignore_errors=True)
        self._lock.release()

    # --- what is known already --------------------------------------------------------------

    def begin(self, keys: Sequence[str] = (), usable: Usable = lambda record: True) -> None:
        """Take up what an interrupted writer left; ``usable`` refuses records that are stale."""
        with writing(self.folder):
            self._take_up_orphan()
            left = _journalled(self._writing)
            stands = 0
            for record, key in zip(left, keys, strict=False):
                if record["key"] != key or not usable(record):
                    break
                stands += 1
            if stands < len(left):
                self._set_aside(len(left))
                left = []
            self._open(left)
        former = self.folder / FORMER_NAME
        for source, records in ((former, _journalled(former)), self._present()):
            for record in records:
                if usable(record):
                    self._sources[record["key"]] = (source, record)
        self._known = {record["key"] for record in self._done} | self._sources.keys()

    def _take_up_orphan(self) -> None:
        """A generation that no index names was about to be published: it is work in hand."""
        try:
            named = str(read_index(self.folder)["generation"])
        except CacheError:
            named = ""
        for path in sorted(self.folder.iterdir()):
            if _is_generation(path) and path.name != named and not self._writing.exists():
                path.rename(self._writing)

    def knows(self, key: str) -> bool:
        """Whether ``recall`` will find the record of ``key``, damage aside."""
        return key in self._known

    def recall(self, key: str, modality: Modality) -> Record | None:
        """The next record if it is known, its image now in the new cache; None if it is not."""
        if self._next < len(self._done):
            self._next += 1
            return self._done[self._next - 1]
        if key not in self._sources:
            return None
        source, record = self._sources[key]
        values = None
        if record["row"] is not None:
            values = read_row(source / f"{modality}.npy", self._shapes[modality], record)
            if values is None:
                return None
        return self.put(key, modality, record, values)

    def put(
        self, key: str, modality: Modality, record: Mapping[str, Any], values: Array | None
    ) -> Record:
        """Append an image (None if there is none) and what is to be known of it, as JSON."""
        if self._journal is None:
            raise ValueError("expected begin() before put()")
        row = checksum = None
        with writing(self.folder):
            if values is not None:
                row, checksum = self._files[modality].append(values)
            whole = {**record, "key": key, "modality": modality, "row": row, "crc32": checksum}
            self._journal.write(_line(whole))
            self._journal.flush()
        self._done.append(whole)
        self._next = len(self._done)
        return whole

    def _present(self) -> tuple[Path, list[Record]]:
        """The published generation and its records; none if they are not whole."""
        try:
            generation = str(read_index(self.folder)["generation"])
            return self.folder / generation, read_outcomes(self.folder)
        except CacheError:
            return self.folder, []

    def _set_aside(self, records: int) -> None:
        """Keep the larger of two interrupted writings as a source."""
        former = self.folder / FORMER_NAME
        if len(_journalled(former)) < records:
            shutil.rmtree(former, ignore_errors=True)
            self._writing.rename(former)
        else:
            shutil.rmtree(self._writing, ignore_errors=True)

    def _open(self, left: list[Record]) -> None:
        """Open the files of ``.writing``, cut to the records of ``left`` whose images are whole."""
        self._writing.mkdir(mode=0o700, exist_ok=True)
        for modality in MODALITIES:
            file = ImageFile(self._writing / f"{modality}.npy", self._shapes[modality])
            self._files[modality] = file
        for record in left:
            if record["row"] is not None:
                written = self._files.get(record["modality"])
                if written is None or record["row"] != written.count:
                    break
                if not written.take_up(record.get("crc32")):
                    break
            self._done.append(record)
        for file in self._files.values():
            file.cut()
        kept = b"".join(_line(record) for record in self._done)
        draft = self._writing / f"{OUTCOMES_NAME}.new"
        draft.touch(0o600)
        draft.write_bytes(kept)
        draft.replace(self._writing / OUTCOMES_NAME)
        self._journal = (self._writing / OUTCOMES_NAME).open("r+b")
        self._journal.seek(len(kept))

    def _close(self) -> None:
        for file in self._files.values():
            file.stream.close()
        if self._journal is not None:
            self._journal.close()

    # --- cases ------------------------------------------------------------------------------

    def add_case(
        self,
        *,
        pseudonym: str,
        split: Split,
        clinical: tuple[float | None, ...],
        labels: Mapping[Label, int | None],
        rows: Mapping[Modality, int],
        levels: Mapping[Label, Her2Level | None] = MappingProxyType({}),
        sources: Mapping[Label, LabelSource | NoLabel] = MappingProxyType({}),
    ) -> None:
        """Append one case; ``rows[m]`` is the row that ``put`` or ``recall`` gave its image.

        A label that is not given is unknown. Without ``sources`` HER2 is of the biopsy and a
        response as stated.
        """
        index = self._index
        for modality in MODALITIES:
            index["rows"][modality].append(rows.get(modality, -1))
        index["pseudonyms"].append(pseudonym)
        index["split"].append(SPLITS.index(split))
        index["clinical"].append([None if v is None else float(v) for v in clinical])
        for kind in LABELS:
            value = labels.get(kind)
            index["labels"][kind].append(-1 if value is None else int(value))
            source = sources.get(kind, _usual_source(kind, value))
            index["sources"][kind].append(SOURCES.index(source))
            level = levels.get(kind)
            index["levels"][kind].append(-1 if level is None else HER2_LEVELS.index(level))

    def publish(self, in_table: int | None = None) -> None:
        """Make what was put the cache of this folder, durably and in one step.

        ``in_table`` counts the rows of the case table; by default the cases added.
        """
        if self._journal is None:
            raise ValueError("expected begin() before publish()")
        with writing(self.folder):
            self._publish(self._journal, in_table)

    def _publish(self, journal: BinaryIO, in_table: int | None) -> None:
        try:
            present = read_index(self.folder)["generation"]
        except CacheError:
            present = "0000"
        generation = f"{int(present) + 1:04d}"
        arrays = {modality: file.finish() for modality, file in self._files.items()}
        os.fsync(journal.fileno())
        journal.seek(0)
        outcomes = hashlib.sha256(journal.read()).hexdigest()
        rows = len(self._index["pseudonyms"]) if in_table is None else in_table
        index = self._index | {
            "in_table": rows,
            "generation": generation,
            "arrays": arrays,
            "outcomes": outcomes,
        }
        document = {
            "format": FORMAT,
            "version": VERSION,
            "sha256": index_digest(index),
            "index": index,
        }
        # 1. the arrays, under a name that no index mentions yet
        self._close()
        shutil.rmtree(self.folder / generation, ignore_errors=True)
        sync_folder(self._writing)
        self._writing.rename(self.folder / generation)
        # 2. the index, complete on disk before it takes its name
        draft = self.folder / f"{INDEX_NAME}.new"
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(document, stream, allow_nan=False)
            stream.flush()
            os.fsync(stream.fileno())
        sync_folder(self.folder)
        draft.replace(self.folder / INDEX_NAME)
        sync_folder(self.folder)
        self._published = True
        # 3. what nothing names any more; a reader that has it mapped keeps it
        for path in self.folder.iterdir():
            if path.name == FORMER_NAME or (_is_generation(path) and path.name != generation):
                shutil.rmtree(path, ignore_errors=True)


def _usual_source(kind: Label, value: int | None) -> LabelSource | NoLabel:
    if kind in PCR_LABELS:
        return "response_unknown" if value is None else "stated"
    return "not_tested" if value is None else "biopsy"


def _line(record: Record) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def interrupted_records(folder: Path) -> list[Record]:
    """What an ingest that has not published yet put down of each image, if there is one."""
    return _journalled(folder / WRITING_NAME)


def _journalled(folder: Path) -> list[Record]:
    """The records in a folder up to the first that is not whole."""
    records: list[Record] = []
    try:
        lines = (folder / OUTCOMES_NAME).read_bytes().split(b"\n")
    except OSError:
        return records
    for line in lines[:-1]:  # what follows the last line end was not finished
        try:
            record = parse_json(line)
        except ValueError:
            break
        if not isinstance(record, dict) or not {"key", "modality", "row"} <= record.keys():
            break
        records.append(record)
    return records


def _is_ours(path: Path) -> bool:
    if path.name in {WRITING_NAME, FORMER_NAME} or _is_generation(path):
        return path.is_dir() and all(inner.name in _INSIDE for inner in path.iterdir())
    return path.name in {INDEX_NAME, f"{INDEX_NAME}.new", LOCK_NAME}


def _is_generation(path: Path) -> bool:
    # Dates and patients' numbers are names of folders, too: what is inside decides (_is_ours).
    return len(path.name) == 4 and path.name.isdecimal() and path.is_dir()


_INSIDE: Final = {OUTCOMES_NAME, f"{OUTCOMES_NAME}.new", *(f"{m}.npy" for m in MODALITIES)}
