"""How a hospital writes a case down: cases.csv, lesions.csv, and the truth it does not know.

Records are incomplete as real ones are: one value in twenty of the clinical inputs is blank,
HER2 is stated with or without its IHC and ISH, pCR with or without its stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from her2_common.cases import CLINICAL_INPUTS, LESION_COLUMNS, Box, Image
from her2_common.tables import write_csv
from her2_deploy.synth.cohort import SynthCase

BLANK: Final = 0.05
"""Share of clinical inputs that nobody wrote down."""
ONLY_RESULT: Final = 0.12
"""Share of specimens of which HER2 alone is stated; as many state IHC, ISH and HER2."""
EQUIVOCAL: Final = {1: 0.25, 0: 0.22}
"""Share of IHC 2+ by HER2; ISH then decides. Design values."""
IHC_ZERO: Final = 0.5
"""Share of IHC 0 among the negatives that are not 2+."""
RESIDUAL_IN_BREAST: Final = 0.85
"""Share without pCR that has invasive residual disease in the breast; the rest in the nodes."""

TRUTH_COLUMNS: Final = (
    "centre",
    "case_id",
    "patient_id",
    "kind",
    "f",
    "amplified",
    "biopsy",
    "surgical",
    "her2_lost",
    "reference",
    "hr",
    "anti_her2",
    "pcr",
    "signal_mg",
    "signal_us",
    "signal_mri",
    "signal_clinical",
    "modalities",
)


def image_paths(case: SynthCase) -> dict[Image, str]:
    """The case's files, and the folder of its MRI, relative to its centre's folder."""
    folder = f"images/{case.case_id}"
    paths: dict[Image, str] = {}
    if "mg" in case.modalities:
        paths |= {"mg_cc": f"{folder}/mg_cc.dcm", "mg_mlo": f"{folder}/mg_mlo.dcm"}
    if "us" in case.modalities:
        paths["us"] = f"{folder}/us.dcm"
    if "mri" in case.modalities:
        paths["mri"] = f"{folder}/mri"
    return paths


def case_row(case: SynthCase) -> dict[str, str]:
    """The row of cases.csv."""
    rng = case.rng("table")
    row: dict[str, Any] = {
        "case_id": case.case_id,
        "patient_id": case.patient_id,
        "laterality": case.laterality,
    }
    row |= {str(image): path for image, path in image_paths(case).items()}
    inputs = {
        "age": f"{case.age:.1f}",
        "menopausal": case.menopausal,
        "clinical_t": case.clinical_t,
        "clinical_n": case.clinical_n,
        "multifocal": case.multifocal,
    }
    for name in CLINICAL_INPUTS:
        row[name] = "" if rng.random() < BLANK else inputs[name]
    er = int(case.hr and rng.random() < 0.95)
    row |= {"er": er, "pr": int(case.hr and (not er or rng.random() < 0.75))}
    row |= _assay(rng, "biopsy", case.biopsy)
    row |= _assay(rng, "surgical", case.surgical)
    row |= {"nat": 1, "anti_her2": case.anti_her2}
    row |= _response(rng, case)
    return {name: str(value) for name, value in row.items()}


def _assay(rng: np.random.Generator, specimen: str, her2: int | None) -> dict[str, Any]:
    """IHC, ISH and HER2 of a specimen; all blank where HER2 is unknown."""
    equivocal, zero, form = rng.random(3)
    if her2 is None:
        return {}
    if equivocal < EQUIVOCAL[her2]:
        ihc: int = 2
    else:
        ihc = 3 if her2 else int(zero >= IHC_ZERO)
    values: dict[str, Any] = {"ihc": ihc, "ish": her2 if ihc == 2 else ""}
    if form < ONLY_RESULT:
        values = {"her2": her2}
    elif form < 2 * ONLY_RESULT:
        values = {"ihc": ihc, "ish": her2, "her2": her2}
    return {f"{specimen}_{name}": value for name, value in values.items()}


def _response(rng: np.random.Generator, case: SynthCase) -> dict[str, Any]:
    """ypT, ypN and pCR (ypT0/is ypN0), in one of three forms; blank if not recorded."""
    where, form = rng.random(2)
    invasive, nodes, positive = rng.integers(1, 5), rng.integers(0, 4), rng.integers(1, 4)
    if not case.response_recorded:
        return {}
    if case.pcr:
        stage = {"ypt": "0" if where < 0.7 else "is", "ypn": "0"}
    elif where < RESIDUAL_IN_BREAST:
        stage = {"ypt": str(invasive), "ypn": str(nodes)}
    else:
        stage = {"ypt": "0", "ypn": str(positive)}
    if form < 0.1:
        return {"pcr": case.pcr}
    return stage if form < 0.5 else {**stage, "pcr": case.pcr}


def lesion_row(case: SynthCase, image: Image, box: Box) -> dict[str, str]:
    """The row of lesions.csv; z is blank but for MRI."""
    corners = {name: getattr(box, name) for name in LESION_COLUMNS[2:]}
    return {"case_id": case.case_id, "image": image} | {
        name: "" if value is None else str(value) for name, value in corners.items()
    }


def truth_row(case: SynthCase) -> dict[str, str]:
    """The row of truth.csv: what no hospital knows. Signals are latent, imaged or not."""
    values: dict[str, Any] = {
        "centre": case.centre,
        "case_id": case.case_id,
        "patient_id": case.patient_id,
        "kind": case.kind,
        "f": f"{case.fraction:.6f}",
        "amplified": case.amplified,
        "biopsy": case.biopsy,
        "surgical": "" if case.surgical is None else case.surgical,
        "her2_lost": case.her2_lost,
        "reference": case.reference,
        "hr": int(case.hr),
        "anti_her2": case.anti_her2,
        "pcr": case.pcr,
        **{f"signal_{name}": f"{value:.6f}" for name, value in case.signals.items()},
        "signal_clinical": f"{case.clinical_signal:.6f}",
        "modalities": "+".join(case.modalities),
    }
    return {name: str(value) for name, value in values.items()}


def write_table(path: Path, columns: tuple[str, ...], rows: Iterable[Mapping[str, str]]) -> None:
    """A CSV table (UTF-8, line feeds); what a row does not name is blank."""
    path.write_text(write_csv(columns, rows), encoding="utf-8", newline="")
