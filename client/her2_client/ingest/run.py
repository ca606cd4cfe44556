"""Ingest: the case table and its images -> the cache.

1. Read and check the tables; a fault there ends it before any image is read.
2. Fingerprint the sources (names, sizes, times of change; no content). What an earlier or an
   interrupted ingest did with the same sources, boxes, sizes and decisions is not done again.
3. Workers standardise a few images at a time; results come back in the order of the table and go
   straight to disk, so that memory does not grow with the site and bytes do not depend on the
   number of workers, nor on how often the ingest was interrupted.
4. Publish the new cache in one step, or, after any error, leave the present one as it is. What
   was done until then waits for the next ingest.
"""

from __future__ import annotations

import hashlib
import hmac
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from itertools import islice
from pathlib import Path
from typing import Final

from her2_client.cache import INDEX_NAME, read_index, read_outcomes
from her2_client.cache_writer import (
    WRITING_NAME,
    CacheWriter,
    Record,
    interrupted_records,
    writing,
)
from her2_client.ingest.case import files_of, standardise, taken_after_therapy
from her2_client.ingest.outcome import Outcome
from her2_client.ingest.privacy.guard import Decision, Guard
from her2_client.ingest.privacy.review import RecordingGuard, Seen, decisions_file, read_decisions
from her2_client.ingest.summary import IngestSummary
from her2_client.ingest.units import Unit, bytes_needed, jobs, units_of
from her2_client.ingest.workers import outcomes_of, worker_count
from her2_client.keys import read_pseudonym_key
from her2_common.cases import (
    LABELS,
    CaseTable,
    Modality,
    pseudonym,
    read_cases,
    splits,
)
from her2_common.config import SiteConfig
from her2_common.errors import CacheError, ConfigError, DataError

Progress = Callable[[int, int], None]
"""Called with the number of cases done and of all cases."""

PASSING: Final = frozenset({"no permission", "no decoder", "decoder too slow"})
"""Reasons that pass without a change of the file's size or time: the image is read again."""
MAX_NOTES_SHOWN: Final = 20


class IngestError(DataError):
    """An ingest that was conducted to its end and published nothing; ``summary`` says why."""

    def __init__(self, message: str, *, summary: IngestSummary, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.summary = summary


def ingest(
    config: SiteConfig,
    *,
    workers: int | None = None,
    strict: bool = False,
    fresh: bool = False,
    write: bool = True,
    progress: Progress | None = None,
) -> IngestSummary:
    """Standardise every case of the site's table into its cache; returns the counts.

    ``workers`` is the number of processes (None: one a CPU); the cache is the same, byte for
    byte, whatever their number. With ``strict`` one image refused or quarantined ends it, the
    cache left as it was. ``fresh`` does everything again. Without ``write`` nothing is written.

    Raises:
        TableError: a table breaks its contract.
        IngestError: no case has a usable image, or ``strict`` and an image was refused.
        CacheError: the cache is being written by another ingest, or cannot be written.
        ConfigError: the pseudonym key cannot be used.
    """
    started = time.perf_counter()
    key = read_pseudonym_key(config.data.pseudonym_key_file)
    table = read_cases(config.data.cases, config.data.lesions)
    check_key(config, key)
    guard = Guard(key, read_decisions(decisions_file(config.state)))
    units = list(units_of(table, config, key))

    def usable(record: Record) -> bool:
        return not fresh and _stands(record, guard.decisions)

    summary = IngestSummary(config.name, len(table))
    try:
        with _sink(config, units, key, write=write) as sink:
            sink.begin([unit.key for unit in units], usable)
            pending = [unit.job for unit in units if not sink.knows(unit.key)]
            with closing(outcomes_of(pending, worker_count(workers, len(pending)), guard)) as made:
                _conduct(table, units, key, sink, made, guard, summary, progress)
            summary.seconds = time.perf_counter() - started
            _check(summary, strict=strict)
            sink.publish(in_table=len(table))
            summary.published = write
    except OSError as error:
        raise DataError(
            f"the images cannot be read on: {error.strerror or error}",
            hint="what was done is kept; run it again, and it goes on where it was",
        ) from None
    except MemoryError:
        raise DataError(
            "the memory is full",
            hint="run: her2-client ingest --workers 1 (it goes on where it was)",
        ) from None
    summary.seconds = time.perf_counter() - started
    return summary


def check_key(config: SiteConfig, key: bytes) -> None:
    """Refuse to name and split the patients of a cache anew without a word.

    Raises:
        ConfigError: the cache was made with another pseudonym key.
    """
    try:
        tag = read_index(config.data.cache).get("key_tag", "")
    except CacheError:
        return
    if tag not in ("", _key_tag(key)):
        raise ConfigError(
            f"{config.data.pseudonym_key_file}: expected the key with which the cache was made, "
            "got another: patients would fall into other splits, and decisions of the review "
            "would be void",
            hint="restore the key from your backup; to start afresh, move the cache and "
            f"{config.state / 'review'} away",
        )


def _key_tag(key: bytes) -> str:
    return hmac.new(key, b"cache", hashlib.sha256).hexdigest()[:16]


def _conduct(
    table: CaseTable,
    units: list[Unit],
    key: bytes,
    sink: CacheWriter | _NoWriter,
    made: Iterator[Outcome],
    guard: Guard,
    summary: IngestSummary,
    progress: Progress | None,
) -> None:
    """Bring every unit into the cache, in order, and count the cases."""
    split_of = splits(table, key)
    remaining = iter(units)
    for done, case in enumerate(table.cases, 1):
        outcomes = {m: taken_after_therapy(case, m) for m in case.after_therapy}
        rows: dict[Modality, int] = {}
        for unit in islice(remaining, len(case.modalities)):
            modality = unit.job.modality
            record = sink.recall(unit.key, modality)
            if record is not None:
                summary.unchanged += 1
            else:
                # A known image whose copy is damaged is not among those sent to the workers.
                known = sink.knows(unit.key)
                outcome = standardise(unit.job, guard) if known else next(made)
                record = sink.put(unit.key, modality, outcome.as_record(), outcome.values)
                summary.fresh += 1
            outcomes[modality] = Outcome.from_record(record)
            if record["row"] is not None:
                rows[modality] = record["row"]
        split = split_of[case.case_id]
        summary.count(case, split, outcomes, list(rows))
        if rows:
            sink.add_case(
                pseudonym=pseudonym(key, case.case_id),
                split=split,
                clinical=case.clinical,
                labels={kind: case.label(kind) for kind in LABELS},
                levels={kind: case.level(kind) for kind in LABELS},
                sources={kind: case.label_source(kind) for kind in LABELS},
                rows=rows,
            )
        if progress is not None:
            progress(done, len(table))


def _check(summary: IngestSummary, *, strict: bool) -> None:
    unused = summary.unused("refused") + summary.unused("quarantined")
    if strict and unused:
        shown = [str(note) for note in unused[:MAX_NOTES_SHOWN]]
        if more := len(unused) - len(shown):
            shown.append(f"and {more} more")
        raise IngestError(
            "expected every image to be usable (--strict), "
            f"got {len(unused)} refused or quarantined; the cache was left as it was\n  "
            + "\n  ".join(shown),
            summary=summary,
            hint="the page quality.html has all of them; mend or decide on them, "
            "or go on without --strict",
        )
    if not summary.accepted:
        reasons = ", ".join(
            f"{n} x {reason}"
            for counts in summary.reasons.values()
            for reason, n in counts.most_common()
        )
        raise IngestError(
            f"a site with no cases: of {summary.cases_in_table} rows in the table "
            f"none has a usable image ({reasons or 'no images named'})",
            summary=summary,
            hint=_way_out(summary),
        )


def _way_out(summary: IngestSummary) -> str:
    """What to do where no case has a usable image."""
    if summary.reasons["quarantined"]:
        return "look at what was quarantined: her2-client ingest --review"
    if not summary.notes:
        return "name images in the case table: columns mg_cc, mg_mlo, us and mri"
    if summary.reasons["refused"]["missing file"]:
        return "paths in the case table start at the table's own folder"
    return "the page quality.html says by row why each was not used"


def _stands(record: Record, decisions: Mapping[str, Decision]) -> bool:
    """Whether a record still holds: the reviewer's decisions are the same, no cause has passed."""
    outcome = Outcome.from_record(record)
    return all(
        decisions.get(name) == decision for name, decision in outcome.consulted.items()
    ) and not any(note.reason in PASSING for note in outcome.notes)


def asked_digests(cache: Path) -> set[str]:
    """The pictures that the present cache and an ingest in hand asked a reviewer about.

    Raises:
        CacheError: the present cache is damaged.
    """
    records = interrupted_records(cache)
    if (cache / INDEX_NAME).exists():
        records += read_outcomes(cache)
    return {name for record in records for name in record["consulted"]}


def quarantined_pictures(
    config: SiteConfig, summary: IngestSummary, *, limit: int, progress: Progress | None = None
) -> tuple[list[Seen], int]:
    """The pictures that wait for a reviewer, at most ``limit``, and how many cases have more."""
    key = read_pseudonym_key(config.data.pseudonym_key_file)
    table = read_cases(config.data.cases, config.data.lesions)
    guard = RecordingGuard(key, read_decisions(decisions_file(config.state)))
    waiting = {(note.row, note.note.column) for note in summary.unused("quarantined")}
    asked = [
        job
        for job in jobs(table, config, key)
        if any((job.case.row, column) in waiting for column in files_of(job.case, job.modality))
    ]
    for number, job in enumerate(asked):
        if len(guard.seen) >= limit:
            return guard.seen[:limit], len(asked) - number
        guard.row = job.case.row
        standardise(job, guard)
        if progress is not None:
            progress(number + 1, len(asked))
    return guard.seen, 0


# --- where it goes ------------------------------------------------------------------------------


class _NoWriter:
    """Takes what a ``CacheWriter`` takes and writes nothing; knows the present cache's records."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._records: dict[str, Record] = {}

    def begin(self, keys: list[str], usable: Callable[[Record], bool]) -> None:
        try:
            records = read_outcomes(self.folder)
        except CacheError:
            return
        wanted = set(keys)
        self._records = {r["key"]: r for r in records if r["key"] in wanted and usable(r)}

    def knows(self, key: str) -> bool:
        return key in self._records

    def recall(self, key: str, modality: Modality) -> Record | None:
        return self._records.get(key)

    def put(self, key: str, modality: Modality, record: Record, values: object) -> Record:
        return {**record, "key": key, "modality": modality, "row": None if values is None else 0}

    def add_case(self, **case: object) -> None:
        pass

    def publish(self, in_table: int) -> None:
        pass


def _sink(
    config: SiteConfig, units: list[Unit], key: bytes, *, write: bool
) -> AbstractContextManager[CacheWriter | _NoWriter]:
    if not write:
        return nullcontext(_NoWriter(config.data.cache))
    with writing(config.data.cache):
        _check_space(units, config)
    return CacheWriter(
        config.data.cache,
        site=config.name,
        image_size=config.data.image_size,
        volume_size=config.data.volume_size,
        mri_phases=config.data.mri_phases,
        key_tag=_key_tag(key),
    )


def _check_space(units: list[Unit], config: SiteConfig) -> None:
    """Refuse before hours of work what the disk cannot hold."""
    folder = config.data.cache
    written = sum(path.stat().st_size for path in (folder / WRITING_NAME).glob("*.npy"))
    needed = bytes_needed((unit.job.modality for unit in units), config) - written
    free = shutil.disk_usage(existing(folder)).free
    if free < needed:
        raise CacheError(
            f"{folder}: expected {needed / 1e9:.2f} GB of free disk, got {free / 1e9:.2f} GB",
            hint="free some space, or move data.cache in site.yaml to another disk",
        )


def existing(folder: Path) -> Path:
    """The nearest folder above that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder
