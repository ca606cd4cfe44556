"""NIfTI files -> the phases of a dynamic series: one 4-D file, or one 3-D file a phase in order.

The axes of a file are i, j, k as it stands, and a box counts x, y, z along them. Where they point
is the business of the affine (sform, else qform; RAS+ in mm, https://nifti.nimh.nih.gov). A single
3-D file is taken as the first post-contrast phase, and only where no other phase is asked for. Of
the header nothing but sizes, data type, scaling, units and affine is used; its texts go nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import logger
from nibabel.nifti1 import Nifti1Pair

from her2_client.ingest import dicom
from her2_client.ingest.mri.headers import FARTHEST_MM, SPACING_MM
from her2_client.ingest.mri.phases import check_enough
from her2_client.ingest.mri.volume import Dynamic, Grid, Phase
from her2_common.config import FIRST_POST_CONTRAST
from her2_common.errors import ImageError

Array = npt.NDArray[Any]

SUFFIXES: Final = (".nii", ".nii.gz")
GZIP: Final = b"\x1f\x8b"
"""Start of a file that gzip has written (RFC 1952)."""
MM: Final = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""Millimetres in the unit that the low three bits of xyzt_units name; none means millimetres."""
GREY: Final = (2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280)
"""Codes of datatype that are whole or real numbers, up to 64 bits."""
MAX_PHASES: Final = 1000
"""A header that promises more is damaged."""
SHEAR_TOLERANCE: Final = 0.01
"""Largest cosine between two axes."""
AFFINE_TOLERANCE_MM: Final = 0.5
"""How far corners of two phases may lie apart."""
LPS_OF_RAS: Final = np.array([-1.0, -1.0, 1.0])


def is_nifti(path: Path) -> bool:
    """Whether ``path`` is named as NIfTI."""
    return path.name.lower().endswith(SUFFIXES)


def nifti_dynamic(paths: Sequence[Path], asked: Sequence[int]) -> Dynamic:
    """The phases in ``paths``, unread.

    Raises:
        ImageError: missing, damaged, not grey, no or unequal geometry, too few phases.
    """
    opened = [_open(path) for path in paths]
    affines = [_affine(image) for image in opened]
    shapes = [tuple(int(n) for n in image.shape) for image in opened]
    grids = [_grid(shape, affine) for shape, affine in zip(shapes, affines, strict=True)]
    if len(paths) > 1:
        for shape, affine in zip(shapes[1:], affines[1:], strict=True):
            if shape[:3] != shapes[0][:3] or not _close(affine, affines[0], shape):
                raise ImageError(
                    "expected one matrix, spacing and orientation in all phases, got several",
                    reason="unequal geometry",
                )
    several = [_phases(shape) for shape in shapes]
    if len(paths) > 1 and max(several) > 1:
        raise ImageError(
            f"expected one phase in each of {len(paths)} files, got {max(several)} in one",
            reason="mixed phases",
        )
    count = sum(several)
    if count == 1:
        if tuple(asked) != (FIRST_POST_CONTRAST,):
            check_enough(1, (*asked, FIRST_POST_CONTRAST))
        return Dynamic(grids[0], {FIRST_POST_CONTRAST: _phase(paths[0], opened[0], 0)})
    check_enough(count, asked)
    if len(paths) == 1:
        phases = {index: _phase(paths[0], opened[0], index) for index in range(count)}
    else:
        phases = {i: _phase(p, o, 0) for i, (p, o) in enumerate(zip(paths, opened, strict=True))}
    return Dynamic(grids[0], phases)


@contextmanager
def _reading() -> Iterator[None]:
    """Faults become an ImageError; what the library logs of a header does not surface."""
    silent, logger.disabled = logger.disabled, True
    try:
        with dicom.reading("NIfTI"):
            yield
    finally:
        logger.disabled = silent


def _open(path: Path) -> Nifti1Pair:
    with _reading():
        if not path.exists():
            raise ImageError("expected a file, got none of that name", reason="missing file")
        if not path.is_file():
            raise ImageError("expected a NIfTI file, got something else", reason="not a file")
        _check_packing(path)
        try:
            image = nibabel.load(path, mmap=False)  # a file that shrinks must not end the process
        except ImageFileError:
            image = None
        if not isinstance(image, Nifti1Pair):  # NIfTI-2 is a kind of it
            raise ImageError("expected NIfTI, got another format", reason="not NIfTI")
        if int(image.header["datatype"]) not in GREY:
            raise ImageError("expected grey values, got colour or complex", reason="not grey")
        shape = image.shape
        if len(shape) < 3 or any(n != 1 for n in shape[4:]) or min(shape[:2], default=0) < 1:
            raise ImageError(
                f"expected 3 or 4 axes, got {len(shape)}: {' x '.join(map(str, shape))}",
                reason="not a volume",
            )
        if shape[2] < 2:
            raise ImageError(f"expected several slices, got {shape[2]}", reason="one slice only")
        if _phases(shape) > MAX_PHASES:
            raise ImageError(
                f"expected at most {MAX_PHASES} phases, got {_phases(shape)}", reason="too large"
            )
        return image


def _check_packing(path: Path) -> None:
    """Whether the file holds something, and is compressed where its name says so."""
    with path.open("rb") as stream:
        start = stream.read(len(GZIP))
    if not start:
        raise ImageError("expected NIfTI, got an empty file", reason="empty file")
    if path.name.lower().endswith(".gz") and start != GZIP:
        raise ImageError(
            "expected a file compressed by gzip, as its name says, got another",
            reason="not NIfTI",
            hint="name it .nii if it is not compressed",
        )


def _check_length(path: Path, image: Nifti1Pair, planes: int) -> None:
    """Whether the file holds its first ``planes`` planes; gzip tells of itself."""
    stored: Any = image.dataobj
    plane = math.prod(image.shape[:2]) * int(stored.dtype.itemsize)
    needed, size = int(stored.offset) + planes * plane, path.stat().st_size
    if not path.name.lower().endswith(".gz") and size < needed:
        raise ImageError(
            f"truncated NIfTI: expected {needed} bytes at least, got {size}", reason="truncated"
        )


def _phases(shape: Sequence[int]) -> int:
    return int(shape[3]) if len(shape) > 3 else 1


def _affine(image: Nifti1Pair) -> Array:
    """(4, 4): voxel i, j, k -> mm in RAS+.

    Raises:
        ImageError: no sform or qform, or one that means nothing.
    """
    with _reading():
        header = image.header
        if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
            raise ImageError(
                "expected an sform or a qform, got neither: left and right are not known",
                reason="no geometry",
            )
        affine = np.array(image.affine, dtype=np.float64)
        affine[:3] *= MM[int(header["xyzt_units"]) & 7]
    low, high = SPACING_MM
    finite = bool(np.isfinite(affine).all()) and float(np.abs(affine).max()) <= FARTHEST_MM
    lengths = np.linalg.norm(affine[:3, :3], axis=0) if finite else np.zeros(3)
    if lengths.min() < low or lengths.max() > high:
        raise ImageError(
            f"expected an affine with voxels of {low} to {high} mm, got another",
            reason="no geometry",
        )
    axes = affine[:3, :3] / lengths
    cosines = np.abs(axes.T @ axes - np.eye(3))
    if cosines.max() > SHEAR_TOLERANCE:
        raise ImageError(
            f"expected perpendicular axes, got a cosine of {cosines.max():.2f}",
            reason="sheared geometry",
        )
    return affine


def _grid(shape: Sequence[int], affine: Array) -> Grid:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)  # mm along i, j, k
    axes = (affine[:3, :3] / lengths).T * LPS_OF_RAS  # rows: i, j, k in LPS
    spacing = (float(lengths[2]), float(lengths[1]), float(lengths[0]))
    return Grid((shape[2], shape[1], shape[0]), spacing, axes[::-1])


def _close(affine: Array, other: Array, shape: Sequence[int]) -> bool:
    corners = np.array([[0, 0, 0, 1], [*shape[:3], 1]], dtype=np.float64).T  # (4, 2)
    return bool(np.abs((affine - other) @ corners).max() <= AFFINE_TOLERANCE_MM)


def _phase(path: Path, image: Nifti1Pair, index: int) -> Phase:
    def read(planes: Sequence[int]) -> Iterator[Array]:
        first, last = min(planes), max(planes) + 1
        with _reading():
            # in one piece: a compressed file can only be read from its start
            _check_length(path, image, index * image.shape[2] + last)
            rest = (index, *(0 for _ in image.shape[4:])) if len(image.shape) > 3 else ()
            block = image.dataobj[(slice(None), slice(None), slice(first, last), *rest)]
        for plane in planes:
            yield np.asarray(block[:, :, plane - first].T, dtype=np.float32)  # (j, i)

    return Phase((path,), read)
