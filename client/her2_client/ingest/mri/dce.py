"""DCE-MRI, as DICOM or NIfTI -> cubes of the phases asked for, around the lesion.

1. Sources: one DICOM folder with all phases; one enhanced (multi-frame) file; several folders or
   enhanced files, one phase each in the order of the table, the one before contrast first; NIfTI,
   one 4-D file or one 3-D file a phase.
2. Headers of all files, once, without pixels; what is no dynamic series is set aside (scan.py,
   kinds.py, series.py).
3. Slices are placed by ImagePositionPatient along the normal of ImageOrientationPatient, never by
   file name; phases are told apart and ordered; what contradicts itself is refused (phases.py).
4. A phase whose header says that text is burned in waits for a reviewer (guard.py).
5. Pixels of the phases asked for, and of the first post-contrast one; padding is 0; rescale slope
   and intercept, which some scanners set anew for each phase or slice (scaling.py).
6. Axes to LPS, the cube of 64 mm around the lesion, on one grid at every centre (volume.py).
7. Intensity: (x / reference - 1) / 0.5, clipped to [-5, 5], with one reference a case, so that
   enhancement between phases stays: the median of the first post-contrast phase above Otsu's
   threshold (IEEE Trans. SMC 9, 1979), about parenchyma. MR units are arbitrary and the gain of a
   scanner must cancel; that landmarks of the histogram set the scale is the idea of Nyul, Udupa
   and Zhang (IEEE TMI 19, 2000). One landmark, the unit and the limits are design values. 0 is
   parenchyma, 2 twice as bright. Beyond the volume it is -2, air.
8. The first post-contrast phase must be brighter somewhere than the one before contrast, of which
   five planes are read for that (enhancement.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from her2_client.ingest import dicom
from her2_client.ingest.mri.enhancement import check_enhancement
from her2_client.ingest.mri.headers import Slice
from her2_client.ingest.mri.nifti import is_nifti, nifti_dynamic
from her2_client.ingest.mri.phases import complete, one_breast, ordered
from her2_client.ingest.mri.scaling import is_scaled, rescaled
from her2_client.ingest.mri.scan import Found, check_one_patient, scan
from her2_client.ingest.mri.series import Family, choose, families, single_phase
from her2_client.ingest.mri.volume import Dynamic, Grid, Phase, cube, standardised
from her2_client.ingest.outcome import Standardised, scanner_make
from her2_client.ingest.pixels import Rectangle
from her2_client.ingest.privacy.guard import Guard
from her2_common.cases import Box
from her2_common.config import FIRST_POST_CONTRAST
from her2_common.errors import ImageError

Array = npt.NDArray[Any]

BURNED_IN: Final = "burned-in annotation"


def dce_mri(
    sources: tuple[Path, ...],
    box: Box | None,
    *,
    size: int,
    phases: tuple[int, ...] = (FIRST_POST_CONTRAST,),
    guard: Guard,
) -> Standardised:
    """(len(phases), size, size, size) float16: slices, rows, columns around the lesion.

    ``phases`` counts from 0, the one before contrast. ``box`` is in the source's voxels: x column,
    y row, z slice along the normal; in NIfTI i, j, k. With a box a voxel is 64 mm / ``size`` wide;
    without one the whole volume is fitted and a voxel is as large as that makes it.

    Raises:
        ImageError: the series cannot be used, with its reason.
    """
    dynamic = dynamic_series(sources, phases, box)
    if box is not None and box.z0 is not None and box.z1 is not None:
        box = replace(box, z0=box.z0 - dynamic.skipped, z1=box.z1 - dynamic.skipped)
    read = sorted({FIRST_POST_CONTRAST, *phases})
    cleared = {index: _cleared(dynamic.phases[index], dynamic.grid, index, guard) for index in read}
    shown = Dynamic(dynamic.grid, cleared, dynamic.manufacturer, dynamic.set_aside)
    values = standardised(shown, box, size, phases)
    check_enhancement(dynamic, box)
    return Standardised(
        values,
        scanner_make(dynamic.manufacturer),
        cube(dynamic.grid, box).place,
        dynamic.set_aside,
    )


def dynamic_series(
    sources: Sequence[Path], phases: Sequence[int], box: Box | None = None
) -> Dynamic:
    """The phases in ``sources``, ordered and checked, without pixels.

    ``box`` chooses between sagittal slabs of both breasts in one series.

    Raises:
        ImageError: as ``dce_mri``, but for what only pixels show.
    """
    if not sources or not phases or min(phases) < 0:
        raise ImageError("expected sources, and phases from 0", reason="no phase asked for")
    asked = (FIRST_POST_CONTRAST, *phases)
    named = [is_nifti(path) for path in sources]
    if all(named):
        return nifti_dynamic(sources, phases)
    if any(named):
        raise ImageError(
            f"expected phases in one format, got {sum(named)} of {len(named)} as NIfTI",
            reason="mixed formats",
        )
    if len(sources) == 1:
        found = scan(sources[0])
        family, unused = choose(found)
        stacks, more = ordered(family, asked, box)
    else:
        family, stacks, unused, more = _one_a_source(sources, asked, box)
    skipped, _ = one_breast(family, box)
    first = stacks[0][0]
    normal = first.normal
    ends = [np.array(stacks[0][k].position) @ normal for k in (0, -1)]
    step = float(ends[1] - ends[0]) / (len(stacks[0]) - 1)
    grid = Grid(
        (len(stacks[0]), *first.size),
        (step, *first.spacing),
        # slices along the normal, rows down a column, columns along a row
        np.array([normal, first.directions[3:], first.directions[:3]]),
    )
    scaled = is_scaled([stack[0] for stack in stacks])
    read = {index: _phase(stack, scaled=scaled) for index, stack in enumerate(stacks)}
    return Dynamic(grid, read, first.manufacturer, (*unused, *more), skipped)


def _one_a_source(
    sources: Sequence[Path], asked: Sequence[int], box: Box | None
) -> tuple[Family, list[tuple[Slice, ...]], tuple[ImageError, ...], tuple[ImageError, ...]]:
    """One phase a folder or enhanced file, in the order given."""
    together, unused = Found(), list[ImageError]()
    labels: dict[tuple[Path, int | None], int] = {}
    for number, source in enumerate(sources):
        found = scan(source)
        family, notes = single_phase(found)
        unused += notes
        for item in family.slices:
            if (item.path, item.frame) in labels:
                raise ImageError(
                    "expected another folder for each phase, got one twice",
                    reason="duplicate slice",
                )
            labels[item.path, item.frame] = number
        together.slices += family.slices
        together.patients |= found.patients
    check_one_patient(together)  # studies may be sent again under other UIDs
    ranked = families(together)
    if len(ranked) > 1 or ranked[0].parted[0]:
        raise ImageError(
            f"expected one matrix, spacing, orientation and protocol in {len(sources)} phases, "
            f"got {len(ranked)}",
            reason="unequal geometry",
        )
    phase = np.array([labels[item.path, item.frame] for item in ranked[0].slices])
    stacks, more = complete(ranked[0], phase, asked, box)
    return ranked[0], stacks, tuple(unused), more


# --- pixels -------------------------------------------------------------------------------------


def _phase(stack: tuple[Slice, ...], *, scaled: bool) -> Phase:
    def read(planes: Sequence[int]) -> Iterator[Array]:
        dataset, opened = Dataset(), None
        for plane in planes:
            item = stack[plane]
            if opened != item.path:
                with dicom.reading():
                    dataset, opened = dicom.whole(item.path), item.path
            yield _plane(dataset, item, scaled=scaled)

    files = tuple(dict.fromkeys(item.path for item in stack))
    return Phase(files, read, any(item.burned_in for item in stack))


def _plane(dataset: Dataset, item: Slice, *, scaled: bool) -> Array:
    """(rows, columns) float32 in comparable units."""
    stored = dicom.pixels(dataset, item.frame or 0)
    if stored.shape != item.size:
        raise ImageError("expected a grey slice, got colour", reason="not grey")
    return rescaled(stored, dataset, item, scaled=scaled)


def _cleared(phase: Phase, grid: Grid, index: int, guard: Guard) -> Phase:
    """The phase, with what a reviewer cut off set to 0, if text is burned in.

    Raises:
        ImageError: quarantined until a person has looked, or refused then.
    """
    if not phase.burned_in:
        return phase

    def picture() -> Array:
        brightest = np.full(grid.shape[1:], -np.inf, dtype=np.float32)
        for plane in phase.read(range(grid.shape[0])):
            np.maximum(brightest, plane, out=brightest)
        return brightest

    decision = guard.clear(
        phase.files,
        frame=index,
        picture=picture,
        reason=BURNED_IN,
        message=f"phase {index}: expected pixels without text, got BurnedInAnnotation YES",
    )
    if decision.keep is None:
        return phase
    return Phase(phase.files, _kept(phase, decision.keep))


def _kept(phase: Phase, keep: Rectangle) -> Any:
    x0, y0, x1, y1 = keep

    def read(planes: Sequence[int]) -> Iterator[Array]:
        for plane in phase.read(planes):
            kept = np.zeros_like(plane)
            kept[y0:y1, x0:x1] = plane[y0:y1, x0:x1]
            yield kept

    return read
