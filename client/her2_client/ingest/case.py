"""One case -> its standardised images and what was refused: the work of one worker.

A case goes on without an image that cannot be used. Nothing here knows of tables, keys or caches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from her2_client.ingest import dicom
from her2_client.ingest.mammography import View, mammogram
from her2_client.ingest.mri import dce_mri
from her2_client.ingest.ultrasound import ultrasound
from her2_common.cases import Box, Case, Image, Modality
from her2_common.errors import ImageError

Array = npt.NDArray[Any]

MG_VIEWS: dict[Image, View] = {"mg_cc": "CC", "mg_mlo": "MLO"}


@dataclass(frozen=True)
class Job:
    """A case, its boxes and the sizes wanted: all that a worker needs."""

    case: Case
    boxes: Mapping[Image, Box]
    image_size: int
    volume_size: int


@dataclass(frozen=True)
class Refusal:
    """An image that was not used: where it stands in the table, and why. No path, no name."""

    row: int
    column: Image
    reason: str
    message: str

    def __str__(self) -> str:
        return f"row {self.row}, {self.column}: {self.message}"


@dataclass
class Outcome:
    """The images of one case, channels first, float16; ``accepted`` names the columns used."""

    images: dict[Modality, Array] = field(default_factory=dict)
    accepted: list[Image] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


def standardise_cases(jobs: list[Job]) -> list[Outcome]:
    """``standardise_case`` for each of ``jobs``, in their order."""
    return [standardise_case(job) for job in jobs]


def standardise_case(job: Job) -> Outcome:
    """Read and standardise every image that the case names."""
    outcome = Outcome()
    _mammograms(job, outcome)
    _ultrasounds(job, outcome)
    if job.case.mri is not None:
        try:
            with dicom.reading("image"):
                cube = dce_mri(job.case.mri, job.boxes.get("mri"), size=job.volume_size)
        except ImageError as error:
            _refuse(job, "mri", error, outcome)
        else:
            outcome.images["mri"] = cube
            outcome.accepted.append("mri")
    return outcome


def _mammograms(job: Job, outcome: Outcome) -> None:
    """CC and MLO into four channels; a view that is missing or refused stays 0."""
    size = job.image_size
    channels = np.zeros((4, size, size), dtype=np.float16)  # CC, MLO, crop of CC, crop of MLO
    for position, (column, view) in enumerate(MG_VIEWS.items()):
        path = job.case.mg_cc if column == "mg_cc" else job.case.mg_mlo
        if path is None:
            continue
        try:
            with dicom.reading("image"):
                whole, crop = mammogram(
                    path,
                    job.boxes.get(column),
                    view=view,
                    laterality=job.case.laterality,
                    size=size,
                )
        except ImageError as error:
            _refuse(job, column, error, outcome)
            continue
        channels[position], channels[position + 2] = whole, crop
        outcome.images["mg"] = channels
        outcome.accepted.append(column)


def _ultrasounds(job: Job, outcome: Outcome) -> None:
    """The first picture that can be used; those before it are refused, those after it unread.

    The table has one ultrasound box a case; it belongs to the picture listed first.
    """
    for index, path in enumerate(job.case.us):
        box = job.boxes.get("us") if index == 0 else None
        try:
            with dicom.reading("image"):
                picture = ultrasound(path, box, size=job.image_size)
        except ImageError as error:
            _refuse(job, "us", error, outcome)
            continue
        outcome.images["us"] = picture
        outcome.accepted.append("us")
        return


def _refuse(job: Job, column: Image, error: ImageError, outcome: Outcome) -> None:
    outcome.refusals.append(Refusal(job.case.row, column, error.reason, str(error)))
