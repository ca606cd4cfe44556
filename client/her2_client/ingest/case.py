"""The images of one case in one modality -> an array and what became of each: a worker's task.

A case goes on without an image that cannot be used. Nothing here knows of tables or caches.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from her2_client.ingest import dicom
from her2_client.ingest.mri.dce import dce_mri
from her2_client.ingest.outcome import Note, Outcome, Standardised
from her2_client.ingest.planar.mammography import mammogram
from her2_client.ingest.planar.ultrasound import ultrasound
from her2_client.ingest.planar.views import View
from her2_client.ingest.privacy.guard import Guard
from her2_common.cases import Box, Case, Image, Modality
from her2_common.config import FIRST_POST_CONTRAST
from her2_common.errors import ImageError

WINDOWS: Final = re.compile(r"\\|(^|/)[A-Za-z]:(/|$)")
"""A path as Windows writes it; this system takes it for the name of one file."""
AFTER_THERAPY: Final = "taken after therapy began"
MG_VIEWS: Final[dict[Image, View]] = {"mg_cc": "CC", "mg_mlo": "MLO"}


@dataclass(frozen=True)
class Sizes:
    """What is kept of an image: pixels a side, voxels a side, and the phases of an MRI."""

    image: int
    volume: int
    mri_phases: tuple[int, ...] = (FIRST_POST_CONTRAST,)


@dataclass(frozen=True)
class Job:
    """One modality of one case, its boxes, the sizes wanted, and the seed of its choices."""

    case: Case
    modality: Modality
    boxes: Mapping[Image, Box]
    sizes: Sizes
    seed: int


def files_of(case: Case, modality: Modality) -> dict[Image, tuple[Path, ...]]:
    """The files and folders that the table names for ``modality``, by column."""
    if modality == "us":
        return {"us": case.us}
    if modality == "mri":
        return {"mri": case.mri}
    views: dict[Image, Path | None] = {"mg_cc": case.mg_cc, "mg_mlo": case.mg_mlo}
    return {column: (path,) for column, path in views.items() if path is not None}


def taken_after_therapy(case: Case, modality: Modality) -> Outcome:
    """What becomes of pictures taken after treatment began: they show its effect, and are set
    aside unread."""
    columns = [
        column
        for column, paths in files_of(case, modality).items()
        for _ in (paths if column == "us" else paths[:1])  # an MRI in several files is one
    ]
    message = (
        f"expected a picture from before treatment, got one from after it began ({modality}_days)"
    )
    return Outcome(notes=[Note(c, "set aside", AFTER_THERAPY, message) for c in columns])


def standardise(job: Job, guard: Guard) -> Outcome:
    """Read and standardise the images that the job names."""
    guard.consulted.clear()
    outcome = Outcome()
    {"mg": _mammograms, "us": _ultrasounds, "mri": _mri}[job.modality](job, guard, outcome)
    outcome.consulted = dict(guard.consulted)
    named = files_of(job.case, job.modality)
    outcome.notes = [_explained(note, named[note.column]) for note in outcome.notes]
    return outcome


def _explained(note: Note, paths: tuple[Path, ...]) -> Note:
    """The note of a missing file, or one that says that the table has a path of Windows."""
    if note.reason != "missing file" or not any(WINDOWS.search(str(path)) for path in paths):
        return note
    return replace(
        note,
        message="expected a path with / between folders, got one of Windows, with backslashes or "
        "a drive letter",
        hint="write / between folders, and paths from the folder of the case table",
    )


def _mammograms(job: Job, guard: Guard, outcome: Outcome) -> None:
    """CC and MLO into four channels; a view that is missing or refused stays 0."""
    size = job.sizes.image
    channels = np.zeros((4, size, size), dtype=np.float16)  # CC, MLO, crop of CC, crop of MLO
    for column, (path,) in files_of(job.case, "mg").items():
        position = list(MG_VIEWS).index(column)

        def read(column: Image = column, path: Path = path) -> Standardised:
            return mammogram(
                path,
                job.boxes.get(column),
                view=MG_VIEWS[column],
                laterality=job.case.laterality,
                size=size,
                guard=guard,
            )

        image = _attempt(column, read, guard, outcome)
        if image is not None:
            channels[position], channels[position + 2] = image.values
            outcome.values = channels


def _ultrasounds(job: Job, guard: Guard, outcome: Outcome) -> None:
    """The first picture that can be used; those before it are refused, those after it unread.

    The table has one ultrasound box a case; it belongs to the picture listed first.
    """
    for index, path in enumerate(job.case.us):
        box = job.boxes.get("us") if index == 0 else None

        def read(path: Path = path, box: Box | None = box) -> Standardised:
            return ultrasound(path, box, size=job.sizes.image, seed=job.seed, guard=guard)

        image = _attempt("us", read, guard, outcome)
        if image is not None:
            outcome.values = image.values
            return


def _mri(job: Job, guard: Guard, outcome: Outcome) -> None:
    def read() -> Standardised:
        return dce_mri(
            job.case.mri,
            job.boxes.get("mri"),
            size=job.sizes.volume,
            phases=job.sizes.mri_phases,
            guard=guard,
        )

    image = _attempt("mri", read, guard, outcome)
    if image is not None:
        outcome.values = image.values


def _attempt(
    column: Image, read: Callable[[], Standardised], guard: Guard, outcome: Outcome
) -> Standardised | None:
    """The image, or None and a note that says why not."""
    guard.column = column
    try:
        with dicom.reading("image"):
            image = read()
    except ImageError as error:
        outcome.notes.append(Note.of(column, error))
        return None
    outcome.accepted.append(column)
    outcome.scanners.append(image.scanner)
    if image.box is not None:
        outcome.boxes[column] = image.box
    outcome.remarks += image.remarks
    outcome.notes += [Note.of(column, error) for error in image.set_aside]
    return image
