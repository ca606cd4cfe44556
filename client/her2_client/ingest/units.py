"""What an ingest has to do: one unit a case and modality, under a key that names its sources.

A key is a keyed hash of everything that the result depends on: names, sizes and times of change of
the files, boxes, the side, the sizes wanted, the choice's seed and the version. It is made without
reading a file.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Final

from her2_client.cache import image_shape
from her2_client.ingest.case import Job, Sizes, files_of
from her2_common import __version__
from her2_common.cases import MODALITIES, Box, Case, CaseTable, Image, Modality
from her2_common.config import SiteConfig

STANDARD: Final = 5
"""Raised with every change of how images are standardised: they are then all done again."""


@dataclass(frozen=True)
class Unit:
    """One modality of one case: the job and the key that names all that its result depends on."""

    job: Job
    key: str


def jobs(table: CaseTable, config: SiteConfig, key: bytes) -> Iterator[Job]:
    """One job for each modality of each case, in the order of the table."""
    boxes: dict[str, dict[Image, Box]] = {}
    for (case_id, image), box in table.boxes.items():
        boxes.setdefault(case_id, {})[image] = box
    sizes = Sizes(config.data.image_size, config.data.volume_size, config.data.mri_phases)
    for case in table.cases:
        for modality in case.modalities:
            yield Job(case, modality, boxes.get(case.case_id, {}), sizes, _seed(key, case))


def _seed(key: bytes, case: Case) -> int:
    """Decides between equal pictures: the same for a case for ever, known to nobody else."""
    content = hmac.new(key, b"frame\x00" + case.case_id.encode(), hashlib.sha256).digest()
    return int.from_bytes(content[:8], "big")


def units_of(table: CaseTable, config: SiteConfig, key: bytes) -> Iterator[Unit]:
    """The units of a site, in the order of its table; ``key`` is its pseudonym key."""
    root = config.data.cases.parent
    for job in jobs(table, config, key):
        files = files_of(job.case, job.modality)
        depends_on = {
            "standard": [STANDARD, __version__],
            "modality": job.modality,
            "read": _read_by(job),
            "boxes": {c: astuple(job.boxes[c]) for c in files if c in job.boxes},
            "files": {c: [_fingerprint(path, root) for path in p] for c, p in files.items()},
        }
        text = json.dumps(depends_on, sort_keys=True).encode()
        yield Unit(job, hmac.new(key, text, hashlib.sha256).hexdigest()[:32])


def _read_by(job: Job) -> list[Any]:
    """What of a job, beside its files and boxes, the image of its modality depends on."""
    if job.modality == "mri":
        return [job.sizes.volume, job.sizes.mri_phases]
    if job.modality == "us":
        return [job.sizes.image, job.seed]
    return [job.sizes.image, job.case.laterality]


def _fingerprint(path: Path, root: Path) -> list[Any]:
    """The path as the table has it, and name, size and times of change of each file there."""
    name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    if not os.path.isdir(path):  # noqa: PTH112 - takes names that no file can have for absent
        return [name, _status(path)]
    unread: list[str] = []
    found = [
        [folder[len(str(path)) :], file, _status(Path(folder, file))]
        for folder, _, files in os.walk(path, onerror=lambda e: unread.append(type(e).__name__))
        for file in files
    ]
    return [name, sorted(found, key=lambda entry: entry[:2]), sorted(unread)]


def _status(path: Path) -> list[Any]:
    """Size and times of change, or why there are none: the modality's module says what is wrong.

    The inode's time cannot be set back, as some tools set that of the content.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        return [type(error).__name__]
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def bytes_needed(modalities: Iterable[Modality], config: SiteConfig) -> int:
    """The size of a cache with one accepted image for each of ``modalities``, in bytes."""
    counts = Counter(modalities)
    data = config.data
    sizes = (data.image_size, data.volume_size, len(data.mri_phases))
    return sum(2 * counts[m] * math.prod(image_shape(m, *sizes)) for m in MODALITIES)
