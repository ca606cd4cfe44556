"""The slices of an MR examination -> those of its one dynamic series.

1. The slices of a series are parted by geometry into blocks.
2. Blocks of one matrix, spacing, orientation and place whose slices coincide form a family, also
   over several series: their phases add up.
3. The family with most phases is the dynamic one, the others are set aside, one note a series; of
   two with equally many neither is chosen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from her2_client.ingest.mri import kinds
from her2_client.ingest.mri.examination import (
    check_no_phase_elsewhere,
    check_one_examination,
    without_copies,
)
from her2_client.ingest.mri.headers import Slice
from her2_client.ingest.mri.scan import Found, set_aside
from her2_common.errors import ImageError

Array = npt.NDArray[Any]

SHIFT_TOLERANCE_MM: Final = 0.5
"""How far slices of one stack may lie beside one another."""
DIRECTION_TOLERANCE: Final = 1e-3
SPACING_TOLERANCE: Final = 1e-3
POSITION_TOLERANCE_MM: Final = 0.05
LEVEL_TOLERANCE: Final = 0.1
"""Share of the slice spacing within which two slices lie at the same level."""
PROTOCOL_TOLERANCE: Final = 0.05
"""Share by which repetition time, echo time and flip angle of one dynamic series may differ."""
SAGITTAL: Final = 0.7
"""Least cosine between the normal and left or right."""

ONE_A_PHASE: Final = (
    "name one folder a phase in the table, ';' between them, the one before contrast first"
)


@dataclass(frozen=True)
class Family:
    """Slices of one place: ``levels`` of ``slices`` along the normal, ``heights`` in mm a level.

    ``parted``: a series of it holds other geometries as well, and what differs in them first;
    ``protocols``: the grid has series of another repetition time, echo time or flip angle.
    """

    slices: tuple[Slice, ...]
    levels: Array
    heights: Array
    phases: int
    parted: tuple[int, int, str] = (0, 0, "")
    protocols: int = 1

    @property
    def series(self) -> tuple[str, ...]:
        """Its series, in a fixed order."""
        return tuple(sorted({item.series for item in self.slices}))


@dataclass(frozen=True)
class _Block:
    slices: tuple[Slice, ...]
    heights: Array


def families(found: Found) -> list[Family]:
    """The families of what was found, those with most phases first."""
    by_series: dict[str, list[Slice]] = {}
    for item in found.slices:
        by_series.setdefault(item.series, []).append(item)
    blocks = [block for name in sorted(by_series) for block in _blocks(by_series[name])]
    blocks.sort(key=lambda b: (-len(b.heights), -len(b.slices)))
    result = []
    for grid in _grouped(blocks, _coincide):
        protocols = _grouped(grid, _same_protocol)
        result += [_family(same, by_series, len(protocols)) for same in protocols]
    # a single slice that is taken again and again watches the bolus arrive
    return sorted(result, key=lambda f: (len(f.heights) < 2, -f.phases, -len(f.slices), f.series))


def _grouped(
    blocks: Sequence[_Block], alike: Callable[[_Block, _Block], bool]
) -> list[list[_Block]]:
    """Each block joins the first group whose first block it is like, or opens one."""
    groups: list[list[_Block]] = []
    for block in blocks:
        home = next((group for group in groups if alike(group[0], block)), None)
        if home is None:
            groups.append([block])
        else:
            home.append(block)
    return groups


def choose(found: Found) -> tuple[Family, tuple[ImageError, ...]]:
    """The family with most phases, and notes on what is not used.

    Raises:
        ImageError: one slice or phase only, several examinations or dynamic series, phases
            unclear, no geometry.
    """
    without_copies(found)
    ranked = families(found)
    best = ranked[0]
    check_one_examination([f for f in ranked if f.phases > 1 and len(f.heights) > 1])
    if len(best.heights) < 2:
        raise ImageError(
            f"expected slices at several positions, got {len(best.slices)} at one",
            reason="one slice only",
        )
    if best.phases < 2:
        raise ImageError(
            f"expected a phase before and one after contrast, got one phase of {len(best.slices)} "
            "slices",
            reason="one phase only",
            hint=ONE_A_PHASE,
        )
    equal = [f for f in ranked if f.phases == best.phases and len(f.heights) > 1]
    equal = [f for f in equal[1:] if not {*f.series} & {*best.series}]
    if len(equal) == 1 and _other_breast(best, equal[0]):
        raise ImageError(
            f"expected slices of one breast, got two sagittal series of {best.phases} phases, "
            "beside one another",
            reason="both breasts",
            hint="name the folder of the series that shows the lesion in the table",
        )
    if equal:
        raise ImageError(
            f"expected one dynamic series, got {1 + len(equal)} of {best.phases} phases each",
            reason="several dynamic series",
            hint=ONE_A_PHASE,
        )
    if len(best.series) > 1 and best.protocols > 1 and told(best) is None:
        raise ImageError(
            f"expected one repetition time, echo time and flip angle in {len(best.series)} series, "
            f"got {best.protocols}",
            reason="phases unclear",
            hint=ONE_A_PHASE,
        )
    check_no_phase_elsewhere(best, ranked[1:], ONE_A_PHASE)
    return _settled(found, best, ranked[1:])


def is_sagittal(family: Family) -> bool:
    """Whether the slices are stacked from side to side."""
    return bool(abs(family.slices[0].normal[0]) > SAGITTAL)


def _other_breast(family: Family, other: Family) -> bool:
    first, second = family.slices[0], other.slices[0]
    if not (is_sagittal(family) and float(first.normal @ second.normal) > SAGITTAL):
        return False
    ends = [(a.min(), a.max()) for a in (_along(f.slices, first) for f in (family, other))]
    return bool(ends[0][1] < ends[1][0] or ends[1][1] < ends[0][0])


def told(family: Family) -> dict[str, int] | None:
    """The phase of each series by the descriptions, if they tell it and each is one phase."""
    texts = {item.series: item.description for item in family.slices}
    found = kinds.stages([texts[series] for series in family.series])
    if found is None or len(family.series) != family.phases:
        return None
    return dict(zip(family.series, found, strict=True))


def single_phase(found: Found) -> tuple[Family, tuple[ImageError, ...]]:
    """The one family of one phase in a folder that the table names for one phase.

    Raises:
        ImageError: several phases (reason "mixed phases"), several series, no geometry.
    """
    ranked = families(found)
    best = ranked[0]
    if best.phases > 1:
        raise ImageError(
            f"expected one phase in each folder, got {best.phases}", reason="mixed phases"
        )
    if len(ranked) > 1:
        raise ImageError(
            f"expected one series in each folder, got {len(ranked)}", reason="several series"
        )
    return _settled(found, best, [])


def _settled(
    found: Found, best: Family, rest: Sequence[Family]
) -> tuple[Family, tuple[ImageError, ...]]:
    for series in best.series:
        if series in found.faults:
            raise found.faults[series][0]
    if best.parted[0]:
        raise ImageError(
            f"expected one {best.parted[2]} in {best.parted[1]} slices, got another in "
            f"{best.parted[0]}",
            reason="unequal geometry",
        )
    best, derived = _originals(best)
    unused: Counter[str] = Counter()
    for family in rest:
        for item in family.slices:
            unused[item.series] += 1
    for series in best.series:
        unused.pop(series, None)
    notes = [set_aside(kinds.DERIVED, count) for count in derived]
    notes += [set_aside(kinds.ANOTHER, unused[series]) for series in sorted(unused)]
    notes += [set_aside("no geometry", len(found.faults[name])) for name in sorted(found.faults)]
    return best, (*found.notes(), *notes)


def _originals(family: Family) -> tuple[Family, list[int]]:
    """The family without derived series, where it has original ones; and their sizes."""
    kept = [i for i, item in enumerate(family.slices) if item.original]
    if len(kept) in (0, len(family.slices)):
        return family, []
    phases = _mode(np.bincount(family.levels[kept]))
    if phases < 2:
        raise ImageError(
            f"expected original phases, got {len(kept)} slices of them and "
            f"{len(family.slices) - len(kept)} derived ones",
            reason="phases unclear",
            hint=ONE_A_PHASE,
        )
    dropped = Counter(item.series for item in family.slices if not item.original)
    slices = tuple(family.slices[i] for i in kept)
    levels, heights = level(_along(slices, slices[0]), family.heights)
    rest = Family(slices, levels, heights, phases, family.parted, family.protocols)
    return rest, [dropped[series] for series in sorted(dropped)]


def _blocks(slices: list[Slice]) -> list[_Block]:
    """The slices of one series, parted by geometry."""
    blocks = []
    while slices:
        same = _same_grid(slices[0], slices)
        held = tuple(item for item, yes in zip(slices, same, strict=True) if yes)
        slices = [item for item, yes in zip(slices, same, strict=True) if not yes]
        blocks.append(_Block(held, level(_along(held, held[0]))[1]))
    return blocks


def _same_grid(first: Slice, slices: Sequence[Slice]) -> Array:
    """Which slices have the matrix, spacing, orientation and place in the plane of ``first``."""
    same: Array = np.all(list(_agreements(first, slices).values()), axis=0)
    return same


def _difference(first: Slice, other: Slice) -> str:
    """In which of the four ``other`` differs, the first of them; perhaps in its protocol alone."""
    agreements = _agreements(first, [other])
    return next((what for what, same in agreements.items() if not same.all()), "protocol")


def _agreements(first: Slice, slices: Sequence[Slice]) -> dict[str, Array]:
    sizes = np.array([item.size for item in slices])  # (n, 2)
    spacings = np.array([item.spacing for item in slices])  # (n, 2)
    directions = np.array([item.directions for item in slices])  # (n, 6)
    points = np.array([item.position for item in slices])  # (n, 3)
    normal = first.normal
    offset = points - np.array(first.position)
    across = offset - np.outer(offset @ normal, normal)
    return {
        "matrix": (sizes == np.array(first.size)).all(axis=1),
        "orientation": (np.abs(directions - first.directions) <= DIRECTION_TOLERANCE).all(axis=1),
        "pixel spacing": (np.abs(spacings / first.spacing - 1) <= SPACING_TOLERANCE).all(axis=1),
        "place in the plane": (np.abs(across) <= SHIFT_TOLERANCE_MM).all(axis=1),
    }


def _coincide(first: _Block, other: _Block) -> bool:
    """Whether most slices of ``other`` lie on slices of ``first``, in one grid."""
    if not _same_grid(first.slices[0], other.slices).all():
        return False
    _, heights = level(_along(other.slices, first.slices[0]))
    near = np.abs(heights[:, np.newaxis] - first.heights).min(axis=1)
    return bool(np.mean(near <= _tolerance(first.heights)) >= 0.5)


def _same_protocol(first: _Block, other: _Block) -> bool:
    pairs = zip(first.slices[0].protocol, other.slices[0].protocol, strict=True)
    return all(
        a is None or b is None or abs(a - b) <= PROTOCOL_TOLERANCE * max(abs(a), abs(b))
        for a, b in pairs
    )


def _family(blocks: Sequence[_Block], by_series: dict[str, list[Slice]], protocols: int) -> Family:
    slices = tuple(item for block in blocks for item in block.slices)
    levels, heights = level(_along(slices, blocks[0].slices[0]), blocks[0].heights)
    every = [item for name in sorted({item.series for item in slices}) for item in by_series[name]]
    parted = (0, 0, "")
    if others := len(every) - len(slices):
        used = {id(item) for item in slices}
        first = next(item for item in every if id(item) not in used)
        parted = (others, len(every), _difference(slices[0], first))
    return Family(slices, levels, heights, _mode(np.bincount(levels)), parted, protocols)


def level(along: Array, typical: Array | None = None) -> tuple[Array, Array]:
    """The level of each slice, counted along the normal, and the height of each level in mm."""
    tolerance = POSITION_TOLERANCE_MM if typical is None else _tolerance(typical)
    order = np.argsort(along, kind="stable")
    rises = np.diff(along[order]) > tolerance
    levels = np.empty(len(along), dtype=np.int64)
    levels[order] = np.concatenate([[0], np.cumsum(rises)])
    heights = along[order][np.concatenate([[True], rises])]
    return levels, heights


def _tolerance(heights: Array) -> float:
    steps = np.diff(heights)
    share = LEVEL_TOLERANCE * float(np.median(steps)) if len(steps) else 0.0
    return max(POSITION_TOLERANCE_MM, share)


def _along(slices: Sequence[Slice], origin: Slice) -> Array:
    """Heights in mm along the normal of ``origin``, from its position."""
    points = np.array([item.position for item in slices])  # (n, 3)
    result: Array = (points - np.array(origin.position)) @ origin.normal
    return result


def _mode(counts: Array) -> int:
    """How often most levels occur."""
    often = Counter(counts.tolist())
    return int(max(often, key=lambda count: (often[count], count)))
