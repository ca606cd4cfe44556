"""Whether the slices of a folder are one examination's, and whether a phase lies beside them.

1. Dynamic series of several studies in one folder are refused: a baseline and one under therapy
   look alike, and only a date tells them apart.
2. A phase before contrast that was taken with another matrix or repetition time is no part of the
   series with most phases. That series then starts after contrast, and its phases would be counted
   wrong, so it is refused.
3. Of a series and its motion-corrected copy the copy is not used.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from her2_client.ingest.dicom import Moment, is_dummy, real_date
from her2_client.ingest.mri import kinds
from her2_client.ingest.mri.headers import PHASE_KEYS, Slice
from her2_client.ingest.mri.scan import Found
from her2_common.errors import ImageError

if TYPE_CHECKING:
    from her2_client.ingest.mri.series import Family

LONGEST_REPETITION_MS: Final = 20.0
"""Spoiled gradient echoes of a dynamic examination are faster (design value)."""
PARALLEL: Final = 0.99
"""Least cosine between the normals of two stacks of one direction."""
CLOCK: Final = PHASE_KEYS.index("AcquisitionTime")


def check_one_examination(dynamic: Sequence[Family]) -> None:
    """Raises ImageError (reason "several examinations") where ``dynamic`` are of several studies.

    StudyInstanceUID tells, and StudyDate, each unless it is a dummy: software that takes
    identities out gives all studies one date, or one UID.
    """
    studies = {item.study for family in dynamic for item in family.slices}
    named = {uid for uid, _ in studies if not is_dummy(uid)}
    dates = {date for _, date in studies if date}
    if all(not is_dummy(uid) for uid, _ in studies):
        dates = {date for date in dates if real_date(date)}
    count = max(len(named), len(dates))
    if count > 1:
        raise ImageError(
            f"expected one examination in a folder, got dynamic series of {count}",
            reason="several examinations",
            hint="name the folder of the baseline examination in the table",
        )


def without_copies(found: Found) -> None:
    """Sets aside motion-corrected series whose original is there: as many slices, equal times."""
    by_series: dict[str, list[Slice]] = defaultdict(list)
    for item in found.slices:
        by_series[item.series].append(item)
    originals = {_signature(held) for held in by_series.values() if not held[0].moved}
    for series, held in by_series.items():
        if held[0].moved and _signature(held) in originals:
            found.others[series, kinds.DERIVED] += len(held)
            found.slices = [item for item in found.slices if item.series != series]


def _signature(held: Sequence[Slice]) -> frozenset[tuple[object, int]]:
    """Places and times, whenever the copy was made (ContentTime)."""
    places = ((tuple(np.round(item.position, 1)), item.when[: CLOCK + 1]) for item in held)
    return frozenset(Counter(places).items())


def check_no_phase_elsewhere(best: Family, others: Sequence[Family], hint: str) -> None:
    """Raises ImageError (reason "phases unclear") where a phase before contrast is left out.

    It is another series of the same place that says so, or the only one that was taken before,
    unless a series of ``best`` says that it holds the phase before contrast.
    """
    if any(kinds.stage(text) == 0 for text in {item.description for item in best.slices}):
        return
    beside = [family for family in others if _over(best, family) and not _shared(best, family)]
    says = [f for f in beside if any(kinds.stage(item.description) == 0 for item in f.slices)]
    before = [family for family in beside if family.phases == 1 and _earlier(family, best)]
    if says or len(before) == 1:
        raise ImageError(
            f"expected the phase before contrast among {best.phases} phases of one matrix and "
            "protocol, got a series before them that has another",
            reason="phases unclear",
            hint=hint,
        )


def _shared(best: Family, other: Family) -> bool:
    return bool({*best.series} & {*other.series})


def _over(best: Family, other: Family) -> bool:
    """Whether ``other`` lies in the same direction and covers half of the slices or more."""
    if len(other.heights) < 2:
        return False
    normals = [family.slices[0].normal for family in (best, other)]
    if float(normals[0] @ normals[1]) < PARALLEL:
        return False
    spans = []
    for family in (best, other):
        along = np.array([item.position for item in family.slices]) @ normals[0]
        spans.append((float(along.min()), float(along.max())))
    common = min(high for _, high in spans) - max(low for low, _ in spans)
    return common >= (spans[0][1] - spans[0][0]) / 2


def _earlier(other: Family, best: Family) -> bool:
    """Whether ``other`` may be a phase of a gradient echo, and ends before ``best`` begins."""
    repetition = other.slices[0].protocol[0]
    if repetition is not None and repetition > LONGEST_REPETITION_MS:
        return False
    first, last = _times(best), _times(other)
    return bool(first and last) and max(last) < min(first)


def _times(family: Family) -> list[Moment]:
    known = [moment for item in family.slices if (moment := item.when[CLOCK]) is not None]
    return known if len(known) == len(family.slices) else []
