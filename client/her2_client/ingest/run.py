"""Ingest: the case table and its images -> the cache.

1. Read and check the tables; a fault there ends it before any image is read.
2. Lock the cache and make room beside the present one.
3. Workers standardise a few cases at a time; results come back in the order of the table and go
   straight to disk, so that memory does not grow with the site and bytes do not depend on the
   number of workers.
4. Publish the new cache in one step, or, after any error, leave the present one as it is.
"""

from __future__ import annotations

import errno
import math
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path
from typing import Final

from her2_client.cache import LABELS, CacheWriter, image_shape
from her2_client.ingest.case import Job, Outcome, standardise_cases
from her2_client.ingest.summary import IngestSummary
from her2_client.keys import read_pseudonym_key
from her2_common.cases import MODALITIES, Box, CaseTable, Image, pseudonym, read_cases, splits
from her2_common.config import SiteConfig
from her2_common.errors import CacheError, DataError

Progress = Callable[[int, int], None]
"""Called with the number of cases done and of all cases."""

CASES_A_TASK: Final = 4
"""Few enough for an even load and little memory, many enough to hide the cost of a task."""
TASKS_AHEAD: Final = 3
"""Tasks in flight for each worker: the bound on memory, about 30 MB a worker at full size."""
SMALL_SITE: Final = 24
"""Cases up to which starting workers costs more than it saves."""
MAX_REFUSALS_SHOWN: Final = 20


def ingest(
    config: SiteConfig,
    *,
    workers: int | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> IngestSummary:
    """Standardise every case of the site's table into its cache; returns the counts.

    ``workers`` is the number of processes (None: one a CPU); the cache is the same, byte for
    byte, whatever their number. With ``strict`` one refused image ends it, nothing written.

    Raises:
        TableError: a table breaks its contract.
        DataError: no case has a usable image, or ``strict`` and an image was refused.
        CacheError: the cache is being written by another ingest, or cannot be written.
        ConfigError: the pseudonym key cannot be used.
    """
    started = time.perf_counter()
    key = read_pseudonym_key(config.data.pseudonym_key_file)
    table = read_cases(config.data.cases, config.data.lesions)
    split_of = splits(table, key)
    summary = IngestSummary(config.name, len(table))
    count = min(workers or os.cpu_count() or 1, math.ceil(len(table) / CASES_A_TASK))
    if workers is None and len(table) <= SMALL_SITE:
        count = 1
    try:
        with CacheWriter(
            config.data.cache,
            site=config.name,
            image_size=config.data.image_size,
            volume_size=config.data.volume_size,
        ) as writer:
            _check_space(table, config)
            with closing(_outcomes(_tasks(table, config), count)) as outcomes:
                for done, (case, outcome) in enumerate(zip(table.cases, outcomes, strict=True), 1):
                    summary.count(case, outcome, split_of[case.case_id])
                    if outcome.images:
                        writer.add(
                            pseudonym=pseudonym(key, case.case_id),
                            split=split_of[case.case_id],
                            clinical=case.clinical,
                            labels={kind: case.label(kind) for kind in LABELS},
                            images=outcome.images,
                        )
                    if progress is not None:
                        progress(done, len(table))
            _check(summary, strict=strict)
            writer.publish(in_table=len(table))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise CacheError(f"{config.data.cache}: the disk is full") from None
        raise
    summary.seconds = time.perf_counter() - started
    return summary


def _check(summary: IngestSummary, *, strict: bool) -> None:
    if strict and summary.refusals:
        shown = [str(refusal) for refusal in summary.refusals[:MAX_REFUSALS_SHOWN]]
        if more := len(summary.refusals) - len(shown):
            shown.append(f"and {more} more")
        raise DataError(
            "expected every image to be usable (--strict), "
            f"got {len(summary.refusals)} refused; nothing was written\n  " + "\n  ".join(shown)
        )
    if not summary.accepted:
        reasons = ", ".join(f"{n} x {reason}" for reason, n in summary.reasons.most_common())
        raise DataError(
            f"a site with no cases: of {summary.cases_in_table} rows in the table "
            f"none has a usable image ({reasons or 'no images named'})",
            hint="paths in the case table start at the table's own folder",
        )


def _tasks(table: CaseTable, config: SiteConfig) -> Iterator[list[Job]]:
    boxes: dict[str, dict[Image, Box]] = {}
    for (case_id, image), box in table.boxes.items():
        boxes.setdefault(case_id, {})[image] = box
    sizes = (config.data.image_size, config.data.volume_size)
    for start in range(0, len(table), CASES_A_TASK):
        yield [
            Job(case, boxes.get(case.case_id, {}), *sizes)
            for case in table.cases[start : start + CASES_A_TASK]
        ]


def _outcomes(tasks: Iterator[list[Job]], workers: int) -> Generator[Outcome, None, None]:
    """The outcome of every case, in order, from this process or from ``workers`` others."""
    if workers <= 1:
        for task in tasks:
            yield from standardise_cases(task)
        return
    # Spawned, not forked: the caller may run threads (a progress bar, torch).
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    waiting: deque[Future[list[Outcome]]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(standardise_cases, task))
            if len(waiting) >= workers * TASKS_AHEAD:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "a worker process died, most likely for want of memory; nothing was written",
            hint="run: her2-client ingest --workers 1",
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when it ends, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _check_space(table: CaseTable, config: SiteConfig) -> None:
    """Refuse before hours of work what the disk cannot hold."""
    needed = bytes_needed(table, config)
    free = shutil.disk_usage(config.data.cache).free
    if free < needed:
        raise CacheError(
            f"{config.data.cache}: expected {needed / 1e9:.2f} GB of free disk, "
            f"got {free / 1e9:.2f} GB"
        )


def bytes_needed(table: CaseTable, config: SiteConfig) -> int:
    """The size of the site's cache if every image is accepted, in bytes."""
    named = [modality for case in table.cases for modality in case.modalities]
    return sum(
        2
        * named.count(modality)
        * math.prod(image_shape(modality, config.data.image_size, config.data.volume_size))
        for modality in MODALITIES
    )


def named_files(table: CaseTable) -> list[tuple[int, Image, Path]]:
    """Every file and folder that the table names: (row, column, path)."""
    named: list[tuple[int, Image, Path]] = []
    for case in table.cases:
        single: dict[Image, Path | None] = {"mg_cc": case.mg_cc, "mg_mlo": case.mg_mlo}
        named += [(case.row, image, path) for image, path in single.items() if path is not None]
        named += [(case.row, "us", path) for path in case.us]
        if case.mri is not None:
            named.append((case.row, "mri", case.mri))
    return named
