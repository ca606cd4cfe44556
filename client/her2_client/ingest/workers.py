"""Standardising many images on all cores: results in the order of the jobs, bounded memory."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Final

from her2_client.ingest.case import Job, standardise
from her2_client.ingest.outcome import Outcome
from her2_client.ingest.privacy.guard import Guard
from her2_common.errors import DataError

JOBS_A_TASK: Final = 6
"""Few enough for an even load and little memory, many enough to hide the cost of a task."""
TASKS_AHEAD: Final = 3
"""Tasks in flight for each worker; their results are about 30 MB at full size."""
SMALL_SITE: Final = 48
"""Images up to which starting workers costs more than it saves."""

_guard: Guard
"""A worker's own, set when it starts."""


def outcomes_of(pending: list[Job], workers: int, guard: Guard) -> Generator[Outcome, None, None]:
    """The outcome of every job, in order, from this process or from ``workers`` others."""
    if workers <= 1:
        for job in pending:
            yield standardise(job, guard)
        return
    # Spawned, not forked: the caller may run threads (a progress bar, torch).
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(guard,)
    )
    others = set(multiprocessing.active_children())
    tasks = (pending[i : i + JOBS_A_TASK] for i in range(0, len(pending), JOBS_A_TASK))
    waiting: deque[Future[list[Outcome]]] = deque()
    try:
        for task in tasks:
            waiting.append(_submit(pool, task))
            if len(waiting) >= workers * TASKS_AHEAD:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool:
        # A worker that was just starting when another died is not ended by the pool, which then
        # waits for it for ever (seen with CPython 3.11.7).
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()
        raise DataError(
            "a worker process died or could not be started, most likely for want of memory",
            hint="run: her2-client ingest --workers 1 (it goes on where it was)",
        ) from None
    finally:
        with _uninterrupted():  # a second Ctrl-C would leave workers that start without a parent
            pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, task: list[Job]) -> Future[list[Outcome]]:
    """Hand ``task`` to the workers; until there are enough of them, this starts one more.

    Raises:
        BrokenProcessPool: a worker has died, or cannot be started. CPython says so itself only if
            the death was noticed before; if one dies while another is started, the ends of their
            queue are closed, which is an OSError or, closer still, a ValueError.
    """
    try:
        with _uninterrupted():
            return pool.submit(_work, task)
    except (OSError, ValueError) as error:
        raise BrokenProcessPool(str(error)) from error


def worker_count(asked: int | None, images: int) -> int:
    """How many processes to use when ``asked`` for that many, or (None) for the usual number."""
    if asked is None and images <= SMALL_SITE:
        return 1
    return min(asked or os.cpu_count() or 1, math.ceil(images / JOBS_A_TASK))


def _work(task: list[Job]) -> list[Outcome]:
    return [standardise(job, _guard) for job in task]


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits; a process that is started here will not hear it until it has its own word.

    A worker takes a second to import what it needs, and would end with a stack trace.
    """
    if not hasattr(signal, "pthread_sigmask"):  # not POSIX
        yield
        return
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _start_worker(guard: Guard) -> None:
    """Leave Ctrl-C to the parent, and end when it ends, however it ends."""
    global _guard  # noqa: PLW0603 - how a pool hands a worker what does not change
    _guard = guard
    logging.getLogger("pydicom").setLevel(logging.ERROR)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
