"""A cohort onto disk: DIR/<centre>/{cases.csv, lesions.csv, images/}, DIR/truth.csv, cohort.json.

1. Draw the cohort; nothing is written if an option is wrong or the folder is in use.
2. Render and write every case, in several processes; a case depends on its own seed alone, so
   the bytes do not depend on how many.
3. Write each centre's tables, then the truth, apart from all centres.
4. Write cohort.json last: a folder that has it is whole.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from her2_common.cases import CASE_COLUMNS, LESION_COLUMNS, MODALITIES, Box, Image
from her2_common.errors import ConfigError, DataError
from her2_deploy.synth import dicom, render, tables
from her2_deploy.synth.centres import BY_NAME, CENTRES, Size, with_second_scanner
from her2_deploy.synth.cohort import DEFAULT_CASES, Scenario, SynthCase, draw_cohort

BOXED: Final = 0.97
"""Share of images in which somebody drew the lesion's box."""
CHUNK: Final = 8
"""Cases a worker takes at a time."""
SUMMARY_FILE: Final = "cohort.json"
TRUTH_FILE: Final = "truth.csv"


@dataclass(frozen=True)
class CohortSummary:
    """What was written; ``as_dict`` is the content of cohort.json."""

    scenario: Scenario
    size: Size
    seed: int
    cohort: list[SynthCase]
    boxes: int

    def as_dict(self) -> dict[str, Any]:
        """Options and counts, by centre and in all."""
        return {
            "scenario": self.scenario,
            "size": self.size,
            "seed": self.seed,
            "boxes": self.boxes,
            **_counts(self.cohort),
            "centres": {
                centre.name: _counts([case for case in self.cohort if case.centre == centre.name])
                for centre in CENTRES
            },
        }


def _counts(cases: list[SynthCase]) -> dict[str, int]:
    return {
        "cases": len(cases),
        "patients": len({case.patient_id for case in cases}),
        **{m: sum(m in case.modalities for case in cases) for m in MODALITIES},
        "reference_positive": sum(case.reference for case in cases),
        "amplified": sum(case.amplified for case in cases),
        "treated_anti_her2": sum(case.anti_her2 for case in cases),
        "pcr": sum(case.pcr for case in cases if case.response_recorded),
        "her2_lost": sum(case.her2_lost for case in cases if case.surgical is not None),
    }


def write_cohort(
    out: Path,
    *,
    cases: int = DEFAULT_CASES,
    scenario: Scenario = "default",
    size: Size = "demo",
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CohortSummary:
    """Draw a cohort and write it under ``out``; same arguments, same bytes.

    ``workers`` is the number of processes (default: the machine's, at most 8); ``progress`` is
    called with (cases written, cases in all).

    Raises:
        ConfigError: a wrong option, or ``out`` is not an empty folder.
        DataError: a worker process was killed.
    """
    cohort = draw_cohort(cases=cases, scenario=scenario, seed=seed)
    if workers is not None and workers < 1:
        raise ConfigError(f"expected at least 1 worker, got {workers}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"{out}: expected a new or empty folder, got one in use",
            hint="choose another --out, or remove the folder first",
        )
    for centre in CENTRES:
        (out / centre.name / "images").mkdir(parents=True)

    boxes: dict[str, list[dict[str, str]]] = {centre.name: [] for centre in CENTRES}
    written = _write_images(out, cohort, size, workers or min(os.cpu_count() or 1, 8))
    for done, (case, drawn) in enumerate(zip(cohort, written, strict=True), start=1):
        boxes[case.centre] += [tables.lesion_row(case, image, box) for image, box in drawn]
        if progress is not None:
            progress(done, len(cohort))

    for centre in CENTRES:
        own = [case for case in cohort if case.centre == centre.name]
        folder = out / centre.name
        tables.write_table(folder / "cases.csv", CASE_COLUMNS, map(tables.case_row, own))
        tables.write_table(folder / "lesions.csv", LESION_COLUMNS, boxes[centre.name])
    tables.write_table(out / TRUTH_FILE, tables.TRUTH_COLUMNS, map(tables.truth_row, cohort))
    summary = CohortSummary(scenario, size, seed, cohort, sum(map(len, boxes.values())))
    (out / SUMMARY_FILE).write_text(json.dumps(summary.as_dict(), indent=2) + "\n", "utf-8")
    return summary


def _write_images(
    out: Path, cohort: list[SynthCase], size: Size, workers: int
) -> Iterator[list[tuple[Image, Box]]]:
    """The boxes of each case, in the cohort's order, once its images are written."""
    write = partial(write_case, out, size)
    if workers == 1:
        yield from map(write, cohort)
        return
    # Spawned, not forked: the progress bar's thread must not be copied half-way.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            yield from pool.map(write, cohort, chunksize=CHUNK)
        except BrokenProcessPool:
            raise DataError(
                "a worker process ended early", hint="full memory? try --workers 1"
            ) from None


def write_case(out: Path, size: Size, case: SynthCase) -> list[tuple[Image, Box]]:
    """Render and write the images of one case; the boxes that somebody drew."""
    centre = BY_NAME[case.centre]
    if case.second_scanner:
        centre = with_second_scanner(centre)
    paths = tables.image_paths(case)
    root = out / centre.name
    (root / "images" / case.case_id).mkdir()
    boxes: dict[Image, Box] = {}
    views: tuple[tuple[Image, render.View], ...] = (("mg_cc", "CC"), ("mg_mlo", "MLO"))
    for name, view in views:
        if name in paths:
            image, boxes[name] = render.mammogram(case, view, size)
            dicom.write_mammogram(root / paths[name], case, centre, view, image, size)
    if "us" in paths and centre.us is not None:
        image, boxes["us"] = render.ultrasound(case, centre.us, size)
        dicom.write_ultrasound(root / paths["us"], case, centre, image, size)
    if "mri" in paths and centre.mri is not None:
        where = render.geometry(case, centre.mri, size)
        phases, boxes["mri"] = render.dce_mri(case, centre.mri, size, where)
        dicom.write_dce_mri(root / paths["mri"], case, centre, phases, where)
    rng = case.rng("boxes")
    return [(image, box) for image, box in boxes.items() if rng.random() < BOXED]
