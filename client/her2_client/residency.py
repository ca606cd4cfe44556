"""Where a cohort's images are between the steps: on the training device, or in the cache on disk.

Resident images (float16, at the size of the run) cost an epoch nothing. If they do not fit, they
stay in ingest's memory-mapped cache and a batch is read when its turn comes, one ahead, by one
thread, so that the step does not wait while the disk keeps up. The numbers are the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from her2_common.errors import CacheError
from her2_common.memory import available_memory
from her2_common.types import Images

Resident = Literal["auto", "always", "never"]
"""site.yaml's choice; ``auto``: if they fit."""

SHARE: Final = 0.5
"""Of the memory that is free, this much at most for images; the step needs the rest (a design
value: a batch of 12 of the published model takes 8 GB)."""

AHEAD: Final = 2
"""Batches read before they are wanted: one is being copied while the next is read."""

POOL_ROWS: Final = 64
"""Images averaged down at a time."""

T = TypeVar("T")


def free_bytes(device: torch.device) -> int:
    """Memory that is free where ``device`` keeps its tensors."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory()


def stays_resident(choice: Resident, size: int, device: torch.device) -> tuple[bool, str]:
    """Whether ``size`` bytes of images become resident, and a line for the site's engineer."""
    free = free_bytes(device)
    fits = choice == "always" or (choice == "auto" and size <= SHARE * free)
    place = "GPU memory" if device.type == "cuda" else "RAM"
    how = f"resident in {place}" if fits else "read from the cache batch by batch"
    why = "" if choice == "auto" else f" (resident: {choice})"
    return fits, f"images {how}: {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free{why}"


def fit_size(images: Images, size: int) -> Float[Tensor, "n channels ..."]:
    """Images (n, channels, *size) averaged down to ``size`` along every side.

    Raises:
        CacheError: the cache holds smaller images than the run asks for.
    """
    have = images.shape[-1]
    if have == size:
        return images
    if have < size:
        raise CacheError(
            f"expected images of at least {size} pixels a side for this run, got {have}",
            hint="raise data.image_size or data.volume_size in site.yaml and ingest again",
        )
    sides = images.ndim - 2
    pool = F.adaptive_avg_pool2d if sides == 2 else F.adaptive_avg_pool3d
    parts = [pool(part.float(), size).half() for part in torch.split(images, POOL_ROWS)]
    return torch.cat(parts)


class Streamed:
    """Images that stay in the memory-mapped cache; row i is ``array[places[i]]`` cut to ``size``.

    ``array`` is (cases, channels, *size) float16 and may be a view of one channel.

    Raises:
        CacheError: the cache holds smaller images than the run asks for.
    """

    def __init__(self, array: np.ndarray, places: np.ndarray, size: int) -> None:
        self.array, self.places, self.size = array, places, size
        self.take(np.arange(0))  # an error comes now, not from the thread

    def __len__(self) -> int:
        return len(self.places)

    def take(self, rows: np.ndarray) -> Images:
        """The images of these rows, float16, on the CPU."""
        found = np.ascontiguousarray(self.array[self.places[rows]])
        return fit_size(torch.from_numpy(found), self.size)


def ahead(work: Iterable[Callable[[], T]]) -> Iterator[T]:
    """The results of ``work`` in its order, done by one thread, up to ``AHEAD`` before they are
    asked for. An error of the work comes out where its result would have."""
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        waiting: list[Future[T]] = []
        try:
            for task in work:
                waiting.append(reader.submit(task))
                if len(waiting) > AHEAD:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:  # the epoch ended early
                future.cancel()
