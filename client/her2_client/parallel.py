"""Several devices at one site share the work of a round, each in a process of its own.

1. The site starts ``devices`` helper processes at the first round, which live as long as it does:
   one a GPU (NCCL), or one a share of the CPU's threads (Gloo). They meet through a file and the
   loopback interface: nothing listens to the network.
2. For a round the site sends the plan, the objective and the weights. Each helper has the same
   cohort, draws the same order and the same augmentation, and takes its share of each modality's
   rows.
3. Each step exchanges the features of the whole batch (a few kilobytes), so that every helper
   works out the same loss, and sums gradients: one flat all-reduce a group that the batch uses,
   begun as soon as the group's gradient is there. A group that no row uses gets none, and keeps
   its bits. The result is one device's up to float rounding, and the same bits when repeated.
4. The first helper sends back the weights. If one dies, fails or says nothing for
   ``SILENCE_SECONDS``, the site ends them all, raises a TrainingError with the reason, and starts
   them anew at the next round.

torch's DistributedDataParallel would not do: it waits for the gradients of encoders that a batch
does not use, and it averages over processes where the loss averages over the cases that exist.
"""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Final, TypeVar

from her2_client.cohort import Cohort
from her2_client.helper import (
    SILENCE_SECONDS,
    Failure,
    Order,
    fingerprint,
    receive_vectors,
    run_helper,
    send_vectors,
)
from her2_client.local_objectives import OWN_LOSS, Objective
from her2_client.training import TrainResult
from her2_common.config import RunConfig, SiteConfig
from her2_common.errors import TrainingError
from her2_common.model import MapModel, get_groups, set_groups

AFTERMATH_SECONDS: Final = 5.0
"""After a first complaint, so long is waited for what was behind it."""

T = TypeVar("T")


class Crew:
    """The helper processes of a site, seen from the site."""

    def __init__(self, config: SiteConfig) -> None:
        self.config = config
        self._processes: list[SpawnProcess] = []
        self._pipes: list[Connection] = []
        self._meeting: tempfile.TemporaryDirectory[str] | None = None

    def train(
        self,
        model: MapModel,
        cohort: Cohort,
        plan: RunConfig,
        *,
        round_number: int,
        groups: Sequence[str],
        objective: Objective = OWN_LOSS,
    ) -> TrainResult:
        """``train_round`` by the helpers: the named groups of ``model`` are trained in place.

        Raises:
            TrainingError: a helper failed, died or fell silent; all of them are ended then.
        """
        weights = get_groups(model, groups)
        sizes = {group: vector.size for group, vector in weights.items()}
        order = Order(plan, round_number, sizes, fingerprint(cohort), objective)

        def give(pipe: Connection) -> None:
            pipe.send(order)
            send_vectors(pipe, weights)

        try:
            self._start()
            self._timed([partial(give, pipe) for pipe in self._pipes])
            result = self._await()
            (trained,) = self._timed([partial(receive_vectors, self._pipes[0], sizes)])
        except (EOFError, OSError):
            reason = self._reason([])
            self.stop()
            raise reason from None
        except BaseException:
            self.stop()
            raise
        set_groups(model, trained)
        return result

    @property
    def process_ids(self) -> list[int]:
        """Of the helpers that were started and not ended, in their order."""
        return [process.pid for process in self._processes if process.pid is not None]

    def stop(self) -> None:
        """End the helpers, by their own process ids; the next round starts them anew."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
            process.close()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []
        if self._meeting is not None:
            self._meeting.cleanup()
            self._meeting = None

    def _start(self) -> None:
        if self._processes and all(process.is_alive() for process in self._processes):
            return
        self.stop()
        context = get_context("spawn")
        self._meeting = tempfile.TemporaryDirectory(prefix="her2-map-")
        meeting = str(Path(self._meeting.name) / "store")
        for rank in range(self.config.devices):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=run_helper,
                args=(rank, self.config, meeting, theirs),
                name=f"helper {rank + 1}",
                daemon=True,
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    def _timed(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Transfers side by side; a helper that does not take part in time is ended."""
        with ThreadPoolExecutor(len(calls)) as pool:
            futures = [pool.submit(call) for call in calls]
            _, late = wait(futures, timeout=SILENCE_SECONDS)
            if late:
                for process in self._processes:
                    process.kill()  # its transfer then fails, and the pool can close
                raise self._silent()
        return [future.result() for future in futures]

    def _await(self) -> TrainResult:
        """The first helper's result, when all have theirs."""
        results: dict[int, TrainResult] = {}
        while len(results) < len(self._pipes):
            waiting = {pipe: i for i, pipe in enumerate(self._pipes) if i not in results}
            ready = connection.wait(list(waiting), SILENCE_SECONDS)
            if not ready:
                raise self._silent()
            for pipe, i in waiting.items():
                message = pipe.recv() if pipe in ready else None  # None: one more step is done
                if isinstance(message, Failure):
                    raise self._reason([message])
                if isinstance(message, TrainResult):
                    results[i] = message
        return results[0]

    def _silent(self) -> TrainingError:
        return TrainingError(
            f"the helper processes of devices: {self.config.devices} said nothing for "
            f"{SILENCE_SECONDS:.0f} s and were ended",
            hint="look for a hanging disk or GPU; the next round starts them anew",
        )

    def _reason(self, failures: list[Failure]) -> TrainingError:
        """Why the helpers gave up: a death explains the complaints of the others."""
        connection.wait([process.sentinel for process in self._processes], AFTERMATH_SECONDS)
        for pipe in self._pipes:
            try:
                while pipe.poll():
                    message = pipe.recv()
                    failures += [message] if isinstance(message, Failure) else []
            except (EOFError, OSError):
                continue
        until = time.monotonic() + AFTERMATH_SECONDS
        for process in self._processes:
            process.join(max(0.0, until - time.monotonic()))
        reasons = [
            (0 if failure.foreseen else 2, failure.message, failure.hint) for failure in failures
        ]
        for process in self._processes:
            if process.exitcode is not None and process.exitcode < 0:
                name = signal.Signals(-process.exitcode).name
                hint = "often for want of memory: see rows_at_once" if name == "SIGKILL" else None
                told = f"{process.name} was ended by {name}"
                # a helper may abort because another one is gone, or as it leaves after an error
                reasons.append((1 if name == "SIGABRT" else -1, told, hint))
        for _, message, hint in sorted(reasons, key=lambda reason: reason[0]):
            return TrainingError(message, hint=hint)
        ended = [f"{p.name}: exit code {p.exitcode}" for p in self._processes if p.exitcode]
        return TrainingError(f"the helper processes ended ({', '.join(ended) or 'no exit code'})")
