"""A sheet of a few cases as they lie on disk: what a person, and the model, gets to see."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.pixels.processing import apply_color_lut, apply_voi_lut

from her2_common.cases import Box, Case, CaseTable, Image, read_cases
from her2_deploy.synth.centres import CENTRES
from her2_deploy.synth.cohort import SynthCase

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = npt.NDArray[Any]
Moment = Literal["before contrast", "after contrast"]

COLUMNS: Final = ("MG CC", "MG MLO", "US", "MRI before contrast", "MRI after contrast")
STILLS: Final[tuple[Image, ...]] = ("mg_cc", "mg_mlo", "us")
CASES_PER_CENTRE: Final = 2
BOX_COLOUR: Final = "#ffb000"


def write_preview(root: Path, cohort: list[SynthCase], path: Path) -> None:
    """Draw two cases a centre, one with and one without amplification, as a PNG at ``path``.

    ``root`` is the folder that ``write_cohort`` filled; images and boxes are read back from it.
    """
    from matplotlib.figure import Figure  # slow to import, needed here alone

    rows: list[tuple[SynthCase, Case, CaseTable]] = []
    for centre in CENTRES:
        folder = root / centre.name
        table = read_cases(folder / "cases.csv", folder / "lesions.csv")
        by_id = {case.case_id: case for case in table.cases}
        own = [case for case in cohort if case.centre == centre.name]
        rows += [(case, by_id[case.case_id], table) for case in _chosen(own)]

    figure = Figure(figsize=(11, 2.15 * len(rows) + 0.4), layout="constrained", facecolor="white")
    axes = figure.subplots(len(rows), len(COLUMNS), squeeze=False)
    for axis, title in zip(axes[0], COLUMNS, strict=True):
        axis.set_title(title, fontsize=10)
    for line, (truth, case, table) in zip(axes, rows, strict=True):
        volumes = _mri_middle(case, table)
        for axis, image in zip(line, STILLS, strict=False):
            _draw(axis, _still(case, image), table.boxes.get((case.case_id, image)))
        for axis, picture in zip(line[3:], volumes, strict=True):
            top = float(np.percentile(volumes[1], 99.7)) if volumes[1] is not None else None
            _draw(axis, picture, table.boxes.get((case.case_id, "mri")), top)
        line[0].set_ylabel(
            f"{truth.centre}\n{truth.kind}\nf = {truth.fraction:.2f}\n"
            f"reference {'+' if truth.reference else '–'}",
            fontsize=8,
            rotation=0,
            ha="right",
            va="center",
        )
    figure.savefig(path, dpi=110)


def _chosen(cases: list[SynthCase]) -> list[SynthCase]:
    """Those with most modalities: one negative, one positive, as far as there are."""
    ranked = sorted(cases, key=lambda case: (-len(case.modalities), case.case_id))
    first = [next((c for c in ranked if c.amplified == kind), None) for kind in (0, 1)]
    return [case for case in first if case is not None][:CASES_PER_CENTRE]


def _draw(axis: Axes, picture: Array | None, box: Box | None, top: float | None = None) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    if picture is None:
        axis.text(0.5, 0.5, "not imaged", ha="center", va="center", color="0.6", fontsize=8)
        return
    axis.imshow(picture, cmap="gray", vmin=0, vmax=top)
    if box is not None:
        from matplotlib.patches import Rectangle

        width, height = box.x1 - box.x0, box.y1 - box.y0
        corner = (box.x0 - 0.5, box.y0 - 0.5)
        axis.add_patch(Rectangle(corner, width, height, fill=False, color=BOX_COLOUR, lw=0.8))


def _still(case: Case, image: Image) -> Array | None:
    """A mammographic view or an ultrasound picture as its viewer would show it."""
    if image == "us":
        path = case.us[0] if case.us else None
    else:
        path = case.mg_cc if image == "mg_cc" else case.mg_mlo
    if path is None:
        return None
    dataset = pydicom.dcmread(path)
    pixels: Array = dataset.pixel_array
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        colour: Array = apply_color_lut(pixels, dataset)
        return colour / 65535
    if image == "us":
        return pixels / 255 if pixels.ndim == 3 else pixels
    shown: Array = apply_voi_lut(pixels, dataset)
    return 4095 - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown


def _mri_middle(case: Case, table: CaseTable) -> tuple[Array | None, Array | None]:
    """The slice through the lesion's middle, in the first and second phase."""
    if not case.mri:
        return None, None
    slices = [pydicom.dcmread(path) for path in sorted(case.mri[0].iterdir())]
    first = slices[0]
    normal = np.cross(first.ImageOrientationPatient[:3], first.ImageOrientationPatient[3:])
    # Instance numbers are in order of phase, then slice.
    slices.sort(key=lambda s: int(s.InstanceNumber))
    heights = np.array([np.dot(normal, s.ImagePositionPatient) for s in slices])
    count = len({round(float(height), 3) for height in heights})
    box = table.boxes.get((case.case_id, "mri"))
    middle = count // 2
    if box is not None and box.z0 is not None and box.z1 is not None:
        middle = (box.z0 + box.z1) // 2
    before, after = (slices[phase * count + middle] for phase in range(2))
    return _scaled(before), _scaled(after)


def _scaled(dataset: pydicom.Dataset) -> Array:
    scaled: Array = dataset.pixel_array * float(dataset.RescaleSlope)
    return scaled
