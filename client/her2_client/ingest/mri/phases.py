"""The slices of a dynamic series -> its phases in order, each complete and in anatomical order.

1. Phases are told apart by the first key of ``headers.PHASE_KEYS`` that every slice has and that
   does: by its values, or, where every slice has a time of its own, because all slices of one phase
   come before those of the next.
   Every further key that tells them apart must give the same order, but for ``WEAK`` ones.
2. Where no key does, SeriesDescription is asked, one phase a series. A series' number is never
   trusted. Descriptions that contradict the times are refused.
3. Duplicates, mixed phases, gaps and incomplete phases are refused, each by its own reason. Only an
   incomplete last phase that nobody asked for, an aborted scan, is set aside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from her2_client.ingest.dicom import Moment, real_date
from her2_client.ingest.mri.headers import PHASE_KEYS, TIMED, WITHIN_SERIES, Slice
from her2_client.ingest.mri.scan import set_aside
from her2_client.ingest.mri.series import ONE_A_PHASE, Family, is_sagittal, told
from her2_common.cases import Box
from her2_common.errors import ImageError

Array = npt.NDArray[Any]

GAP_TOLERANCE: Final = 0.1
"""Share of the slice spacing by which one step may differ (design value)."""
MIDNIGHT_SECONDS: Final = 12 * 3600.0
"""Times without dates that lie further apart may have passed midnight (design value)."""
WEAK: Final = ("ContentTime", "AcquisitionNumber")
"""When an image was made, perhaps long after it was acquired, and a number that makes use as they
like: they contradict no other key."""
BREASTS_APART: Final = 3.0
BREASTS_APART_MM: Final = 10.0
"""The one step between slices, in median steps and in mm, that parts slabs (design values)."""
INCOMPLETE: Final = "incomplete phase"


def ordered(
    family: Family, asked: Sequence[int], box: Box | None = None
) -> tuple[list[tuple[Slice, ...]], tuple[ImageError, ...]]:
    """(slices along the normal, one tuple a phase in order; notes on what was set aside).

    Raises:
        ImageError: phases unclear or contradictory, too few for ``asked``, duplicates, mixed or
            incomplete phases, gaps.
    """
    labels = _labels(family)
    return complete(family, labels, asked, box)


def complete(
    family: Family, labels: Array, asked: Sequence[int], box: Box | None = None
) -> tuple[list[tuple[Slice, ...]], tuple[ImageError, ...]]:
    """The phases 0, 1, ... that ``labels`` gives the slices of ``family``, checked.

    Of sagittal slabs of both breasts the one that holds ``box``.

    Raises:
        ImageError: duplicates, mixed or incomplete phases, gaps, too few phases for ``asked``.
    """
    count = int(labels.max()) + 1
    held = np.zeros((count, len(family.heights)), dtype=np.int64)  # (phases, levels)
    np.add.at(held, (labels, family.levels), 1)
    _check_duplicates(held)
    notes: tuple[ImageError, ...] = ()
    missing = (held == 0).sum(axis=1)
    if count > max(2, *(index + 1 for index in asked)) and missing[-1] and not missing[:-1].any():
        notes = (set_aside("incomplete last phase", int(held[-1].sum())),)
        held, count = held[:-1], count - 1
    for index in range(count):
        if missing[index]:
            raise ImageError(
                f"expected {held.shape[1]} slices in each of {count} phases, got "
                f"{held.shape[1] - missing[index]} in phase {index}",
                reason=INCOMPLETE,
            )
    low, high = one_breast(family, box)
    _check_steps(family.heights[low:high])
    check_enough(count, asked)
    order = np.argsort(family.levels, kind="stable")
    order = order[(family.levels[order] >= low) & (family.levels[order] < high)]
    chosen = [tuple(family.slices[i] for i in order if labels[i] == p) for p in range(count)]
    return chosen, notes


def check_enough(count: int, asked: Sequence[int]) -> None:
    """Raises ImageError (reason "too few phases") unless ``asked`` are among ``count`` phases."""
    if max(asked) >= count:
        raise ImageError(
            f"expected {max(asked) + 1} phases at least, got {count}",
            reason="too few phases",
        )


def _check_duplicates(held: Array) -> None:
    twice = held > 1
    if not twice.any():
        return
    if ((held == 0) & twice.any(axis=0)).any():
        raise ImageError(
            f"expected one slice a position and phase, got {int(twice.sum())} of one phase at "
            "positions where another has none",
            reason="mixed phases",
        )
    raise ImageError(
        f"expected one slice a position and phase, got {int(held.max())} at {int(twice.sum())} "
        f"of {held.size}",
        reason="duplicate slice",
    )


def one_breast(family: Family, box: Box | None) -> tuple[int, int]:
    """The levels, from and to, of the sagittal slab that holds ``box``; all of one stack.

    Raises:
        ImageError: two slabs and no box in one of them (reason "both breasts").
    """
    count = len(family.heights)
    steps = np.diff(family.heights)
    wide = np.flatnonzero(steps > BREASTS_APART * np.median(steps)) if count > 1 else steps
    if len(wide) != 1 or not is_sagittal(family) or steps[wide[0]] < BREASTS_APART_MM:
        return 0, count
    cut = int(wide[0]) + 1
    if box is not None and box.z0 is not None and box.z1 is not None:
        if box.z1 <= cut:
            return 0, cut
        if box.z0 >= cut:
            return cut, count
    raise ImageError(
        f"expected slices of one breast, got two slabs {steps[cut - 1]:.0f} mm apart",
        reason="both breasts",
        hint="give the lesion a box, whose z counts the slices of both slabs along the normal",
    )


def _check_steps(heights: Array) -> None:
    steps = np.diff(heights)
    if len(steps) < 1:
        raise ImageError("expected several slices, got one", reason="one slice only")
    step = float(np.median(steps))
    far = float(steps[np.argmax(np.abs(steps - step))])
    if abs(far - step) > GAP_TOLERANCE * step:
        raise ImageError(
            f"expected slices every {step:.2f} mm, got a step of {far:.2f} mm", reason="gap"
        )


# --- order --------------------------------------------------------------------------------------


def _labels(family: Family) -> Array:
    """The phase of each slice, from 0."""
    several = len(family.series) > 1
    stage = told(family) if several else None
    said = None if stage is None else np.array([stage[item.series] for item in family.slices])
    chosen: tuple[str, Array] | None = None
    for place, key in enumerate(PHASE_KEYS):
        if several and key in WITHIN_SERIES:
            continue
        labels = _by_key(family, place)
        if labels is None:
            continue
        if said is not None and (said != labels).any() and (chosen is None or key not in WEAK):
            raise _contradiction(family, key, "SeriesDescription")
        if chosen is None:
            chosen = key, labels
        elif key not in WEAK and (chosen[1] != labels).any():
            raise _contradiction(family, key, chosen[0])
    if chosen is not None:
        return chosen[1]
    if said is not None:
        return said
    counts = np.bincount(family.levels)
    if (counts != family.phases).any():
        raise ImageError(
            f"expected {family.phases} slices at each of {len(counts)} positions, got another "
            f"number at {int((counts != family.phases).sum())}",
            reason=INCOMPLETE,
        )
    raise ImageError(
        f"expected {family.phases} phases to differ in one of {', '.join(PHASE_KEYS)}, "
        "got none that does",
        reason="phases unclear",
        hint=ONE_A_PHASE,
    )


def _by_key(family: Family, place: int) -> Array | None:
    """The phases by ``PHASE_KEYS[place]``, if every slice has it and it tells them apart."""
    known = [m for item in family.slices if (m := item.when[place]) is not None]
    if len(known) < len(family.slices) or not _comparable(known, PHASE_KEYS[place]):
        return None
    numbers = {moment: number for number, moment in enumerate(sorted(set(known)))}
    values = np.array([numbers[moment] for moment in known])
    labels = _by_value(values, family)
    return _by_rank(values, family) if labels is None else labels


def _contradiction(family: Family, key: str, other: str) -> ImageError:
    return ImageError(
        f"expected {key} to order {family.phases} phases as {other} does, got another order",
        reason="contradictory phases",
        hint=ONE_A_PHASE,
    )


def _comparable(known: Sequence[Moment], key: str) -> bool:
    """Whether all have a date or, being times of day, need none."""
    dates = {date for date, _ in known}
    if "" not in dates and (len(dates) > 1 or key not in TIMED or all(map(real_date, dates))):
        return True  # one dummy date, the same for all, does not say whether midnight passed
    seconds = [value for _, value in known]
    return len(dates) == 1 and (key not in TIMED or max(seconds) - min(seconds) < MIDNIGHT_SECONDS)


def _by_value(values: Array, family: Family) -> Array | None:
    """One value a phase: as many values as phases, or more of which half hold every position."""
    held = np.zeros((int(values.max()) + 1, len(family.heights)), dtype=np.int64)
    np.add.at(held, (values, family.levels), 1)
    whole = int((held == 1).all(axis=1).sum())
    if len(held) == family.phases or (len(held) > family.phases and 2 * whole >= len(held)):
        return values
    return None


def _by_rank(values: Array, family: Family) -> Array | None:
    """At each position the earliest is phase 0, if all of a phase comes before the next one."""
    if (np.bincount(family.levels) != family.phases).any():
        return None
    order = np.lexsort((values, family.levels))
    ranks = values[order].reshape(-1, family.phases)  # (levels, phases)
    if (ranks[:, :-1].max(axis=0) >= ranks[:, 1:].min(axis=0)).any():
        return None
    labels = np.empty(len(values), dtype=np.int64)
    labels[order] = np.tile(np.arange(family.phases), len(family.heights))
    return labels
