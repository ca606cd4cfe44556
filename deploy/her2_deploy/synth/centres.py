"""The four centres: who comes, with which images, and how their scanners look.

Every number is a design value. A look is drawn from the centre alone, never from a label, so that
a model that learns the scanner instead of the tumour fails at the other centres. The scenario
``shortcut`` alone breaks this rule, on purpose (see cohort.py): there each centre has a second
scanner a modality, of one make everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from her2_common.cases import Modality

Size = Literal["demo", "full"]
Syntax = Literal["rle", "jpegls"]
Mix = tuple[tuple[tuple[Modality, ...], float], ...]


@dataclass(frozen=True)
class MammographyLook:
    """``gamma`` and ``gain`` shape the grey scale; ``noise`` is a share of it."""

    manufacturer: str
    photometric: Literal["MONOCHROME1", "MONOCHROME2"]
    voi: Literal["window", "lut"]
    gamma: float
    gain: float
    noise: float


@dataclass(frozen=True)
class UltrasoundLook:
    """``compressed`` is the share of pictures in ``syntax``; ``dynamic_range`` in nepers."""

    manufacturer: str
    photometric: Literal["RGB", "PALETTE COLOR", "MONOCHROME2"]
    syntax: Syntax
    compressed: float
    gain: float
    dynamic_range: float
    speckle: float


@dataclass(frozen=True)
class MriLook:
    """``phases`` by size; ``phase_keys`` the tags that tell phases apart, one drawn a case."""

    manufacturer: str
    field_strength: float  # tesla
    plane: Literal["axial", "sagittal"]
    phases: dict[Size, int]
    phase_keys: tuple[Literal["TemporalPositionIdentifier", "TriggerTime", "AcquisitionTime"], ...]
    seconds_per_phase: int
    gain: float
    noise: float
    suffix: str


@dataclass(frozen=True)
class Centre:
    """``share`` of all cases; ``prevalence`` multiplies the cohort's share of positive tumours."""

    name: str
    share: float
    prevalence: float
    mix: Mix
    mg: MammographyLook | None = None
    us: UltrasoundLook | None = None
    mri: MriLook | None = None


SHARE_D: Final = 0.12
PREVALENCE_D: Final = 0.45
PREVALENCE_ELSEWHERE: Final = (1 - SHARE_D * PREVALENCE_D) / (1 - SHARE_D)
"""So that the whole cohort keeps its composition although centre D sees few positives."""

CENTRES: Final = (
    Centre(
        name="centre-a",
        share=0.42,
        prevalence=PREVALENCE_ELSEWHERE,
        mix=(
            (("mg", "us", "mri"), 0.45),
            (("mg", "us"), 0.20),
            (("us", "mri"), 0.12),
            (("mg", "mri"), 0.08),
            (("us",), 0.07),
            (("mg",), 0.05),
            (("mri",), 0.03),
        ),
        mg=MammographyLook("Aurora Imaging", "MONOCHROME2", "window", 0.90, 1.00, 0.018),
        us=UltrasoundLook("Aurora Imaging", "RGB", "rle", 0.20, 1.00, 3.9, 1.00),
        mri=MriLook(
            manufacturer="Northfield MR",
            field_strength=1.5,
            plane="axial",
            phases={"demo": 3, "full": 4},
            phase_keys=("TemporalPositionIdentifier",),
            seconds_per_phase=90,
            gain=820.0,
            noise=0.022,
            suffix=".dcm",
        ),
    ),
    Centre(
        name="centre-b",
        share=0.28,
        prevalence=PREVALENCE_ELSEWHERE,
        mix=((("mg", "us"), 0.80), (("us",), 0.12), (("mg",), 0.08)),
        mg=MammographyLook("Meridian X-ray", "MONOCHROME1", "window", 1.15, 0.88, 0.026),
        us=UltrasoundLook("Sonora", "PALETTE COLOR", "rle", 0.15, 0.82, 3.4, 0.85),
    ),
    Centre(
        name="centre-c",
        share=0.18,
        prevalence=PREVALENCE_ELSEWHERE,
        mix=((("mri",), 1.0),),
        mri=MriLook(
            manufacturer="Helix Resonance",
            field_strength=3.0,
            plane="sagittal",
            phases={"demo": 4, "full": 6},
            phase_keys=("AcquisitionTime", "TriggerTime"),
            seconds_per_phase=72,
            gain=305.0,
            noise=0.014,
            suffix="",
        ),
    ),
    Centre(
        name="centre-d",
        share=SHARE_D,
        prevalence=PREVALENCE_D,
        mix=((("us",), 0.80), (("mg", "us"), 0.15), (("mg",), 0.05)),
        mg=MammographyLook("Lindgren", "MONOCHROME2", "lut", 1.00, 1.10, 0.032),
        us=UltrasoundLook("Portasound", "MONOCHROME2", "jpegls", 0.25, 1.12, 4.3, 1.15),
    ),
)
BY_NAME: Final = {centre.name: centre for centre in CENTRES}

SECOND_MG: Final = MammographyLook("Torvald", "MONOCHROME2", "lut", 2.20, 1.00, 0.018)
SECOND_US: Final = UltrasoundLook("Clarion Echo", "RGB", "rle", 0.20, 0.90, 5.5, 0.40)
SECOND_MRI_MANUFACTURER: Final = "Solenoid MR"
SECOND_MRI_GAIN: Final = 0.5
SECOND_MRI_NOISE: Final = 0.120
"""So unlike the first scanners that a network which is taught the scanner tells it from the
standardised picture (AUC 1.0 for ultrasound and MRI, 0.8 for mammography, from 350 cases)."""


def with_second_scanner(centre: Centre) -> Centre:
    """The centre as its second scanners show it; plane, phases and files stay its own."""
    mri = centre.mri and replace(
        centre.mri,
        manufacturer=SECOND_MRI_MANUFACTURER,
        gain=SECOND_MRI_GAIN * centre.mri.gain,
        noise=SECOND_MRI_NOISE,
    )
    return replace(centre, mg=centre.mg and SECOND_MG, us=centre.us and SECOND_US, mri=mri)
