"""Whether contrast has arrived in the phase that is taken as the first one after it.

A few planes of the phase before contrast and of the next one are compared. Phases in the wrong
order, or one phase sent twice, show no tissue that brightens. The check is coarse: later phases in
the place of the first pass it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from her2_client.ingest.mri.volume import Dynamic
from her2_client.ingest.pixels import lowest_threshold
from her2_common.cases import Box
from her2_common.config import FIRST_POST_CONTRAST
from her2_common.errors import ImageError

Array = npt.NDArray[Any]

BEFORE_CONTRAST: Final = 0
PLANES: Final = 5
BLOCK: Final = 3
"""Pixels along each side of what is averaged against noise."""
PERCENTILE: Final = 99.0
FLOOR: Final = 0.10
"""Share by which tissue brightens somewhere, vessels at least (design value)."""


def check_enhancement(dynamic: Dynamic, box: Box | None) -> None:
    """Compare phases 0 and 1 on five planes of the box, else of the middle half of the volume.

    The 99th percentile of (x1 - x0) / x0 over tissue, or over tissue in the box, must reach 10 %.
    Tissue is what lies above the lowest of three-class Otsu thresholds of phase 0, so that
    parenchyma darker than fat counts.

    Raises:
        ImageError: it does not (reason "no enhancement"); blank, not finite, or not to be read.
    """
    if BEFORE_CONTRAST not in dynamic.phases:
        return  # one NIfTI volume, taken as the first phase after contrast
    count = dynamic.grid.shape[0]
    low, high = count // 4, count - count // 4
    if box is not None and box.z0 is not None and box.z1 is not None:
        low, high = box.z0, box.z1
    planes = sorted({int(z) for z in np.linspace(low, high - 1, PLANES).round()})
    before, after = (_blocks(dynamic, i, planes) for i in (BEFORE_CONTRAST, FIRST_POST_CONTRAST))
    tissue = (before > lowest_threshold(before, 3)) & (before > 0)
    if not tissue.any():
        raise ImageError("expected bright tissue, got none above zero", reason="blank image")
    rise = np.where(tissue, after - before, 0) / np.where(tissue, before, 1)
    risen = float(np.percentile(rise[tissue], PERCENTILE))
    if box is not None:
        inside = np.zeros_like(tissue)
        rows, columns = (
            slice(int(start // BLOCK), int(-(-stop // BLOCK)))
            for start, stop in ((box.y0, box.y1), (box.x0, box.x1))
        )
        inside[:, rows, columns] = tissue[:, rows, columns]
        if inside.any():
            risen = max(risen, float(np.percentile(rise[inside], PERCENTILE)))
    if risen < FLOOR:
        raise ImageError(
            f"expected tissue to brighten by {FLOOR:.0%} from phase {BEFORE_CONTRAST} to phase "
            f"{FIRST_POST_CONTRAST}, got {risen:.0%}",
            reason="no enhancement",
            hint="name the phases one by one in the table, ';' between them, the one before "
            "contrast first",
        )


def _blocks(dynamic: Dynamic, index: int, planes: list[int]) -> Array:
    """(planes, rows // 3, columns // 3) float64: means of blocks; a rim that fills none is left."""
    means = []
    for plane in dynamic.phases[index].read(planes):
        if not np.isfinite(plane).all():
            raise ImageError("expected finite values, got others", reason="not finite")
        block = BLOCK if min(plane.shape) >= BLOCK else 1
        rows, columns = (n // block for n in plane.shape)
        parts = plane[: rows * block, : columns * block].astype(np.float64)
        # (rows, 3, columns, 3)
        means.append(parts.reshape(rows, block, columns, block).mean(axis=(1, 3)))
    return np.stack(means)
