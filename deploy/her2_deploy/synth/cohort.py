"""The latent draw: who has which tumour, what the needle, the therapy and surgery make of it.

1. Tumour: negative, heterogeneous or homogeneous, with its amplified fraction f.
2. Needle biopsy: calls HER2 by the tumour's kind; a sample can miss the amplified part.
3. Therapy: anti-HER2 drugs follow the biopsy (in the scenario ``randomised`` a coin instead).
4. Response: pCR by what the tumour truly is, by therapy and by hormone receptors.
5. Surgery: HER2 of the excised tumour, unknown after a pCR (nothing is left) or if not tested. It
   is that of the tumour before therapy, but for residual tumours that lost HER2 under anti-HER2
   drugs. So it holds the outcome, and the label does not come from it.
6. Signals: what each modality shows of f, and what the clinical inputs show of the tumour.

Sources: CLINICAL values of the project's design; "design value" marks the ones chosen here. The
scenario ``null`` draws 6 from an unrelated tumour of the same distribution and gives all centres
one prevalence, so that neither a picture nor a scanner says anything about any label. The scenario
``shortcut`` is ``default`` case for case, but for the scanner: at three centres the second scanner
images the HER2-positive patients twice as often as the others, at the fourth half as often.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

import numpy as np

from her2_common.cases import MODALITIES, Modality
from her2_common.errors import ConfigError
from her2_deploy.synth.centres import CENTRES, Centre
from her2_deploy.synth.lesion import Breast, Lesion, draw_breast, draw_lesion

Scenario = Literal["default", "heterogeneous", "null", "randomised", "shortcut"]
SCENARIOS: Final[tuple[Scenario, ...]] = get_args(Scenario)
Kind = Literal["negative", "heterogeneous", "homogeneous"]

DEFAULT_CASES: Final = 1000
FEWEST_CASES: Final = 8

COMPOSITION: Final[dict[Kind, float]] = {
    "negative": 0.66,
    "heterogeneous": 0.05,
    "homogeneous": 0.29,
}
COMPOSITION_HETEROGENEOUS: Final[dict[Kind, float]] = {
    "negative": 0.60,
    "heterogeneous": 0.27,
    "homogeneous": 0.13,
}
"""Biopsy and tumour disagree in 13.5 % (design value within 10 to 20 %)."""

FRACTION: Final[dict[Kind, tuple[float, float]]] = {
    "negative": (0.0, 0.05),
    "heterogeneous": (0.15, 0.50),
    "homogeneous": (0.75, 1.0),
}
"""Range of f, uniform (design values); 0.1 and more is amplified."""

BIOPSY_POSITIVE: Final[dict[Kind, float]] = {
    "negative": 0.015,
    "heterogeneous": 0.55,
    "homogeneous": 0.97,
}
TREATED_IF_BIOPSY_POSITIVE: Final = 0.92
TREATED_IF_RANDOMISED: Final = 0.5

HR_POSITIVE: Final = {True: 0.55, False: 0.68}
"""Share with hormone receptors, by whether the tumour is amplified (design value)."""

PCR_HOMOGENEOUS: Final = {(True, True): 0.42, (True, False): 0.65, (False, True): 0.14} | {
    (False, False): 0.28
}
"""By (treated, hormone receptor positive)."""
PCR_HETEROGENEOUS: Final = {True: 0.12, False: 0.10}
"""By treated; the untreated value is a design value: not better than treated."""
PCR_NEGATIVE: Final = {True: 0.13, False: 0.36}
"""By hormone receptors; anti-HER2 drugs change nothing in a tumour that is not amplified."""

RESIDUAL_LOSS: Final = 0.30
"""P(a residual tumour that was amplified and had anti-HER2 drugs is HER2-negative): a design value
between what was published, 32 of 244 (Ren 2023) and 25 of 61 (dual blockade)."""
SURGICALLY_TESTED: Final = 0.85
RESPONSE_RECORDED: Final = 0.97
SECOND_SCANNER: Final = {1: 2 / 3, 0: 1 / 3}
"""In ``shortcut``: share imaged on the second scanner, by the label: knowing the scanner alone
gives an AUC of 2/3 (design value)."""
REVERSED_CENTRE: Final = "centre-b"
"""In ``shortcut``: where the shares are exchanged, so that the scanner misleads (AUC 1/3)."""
TWO_CASES: Final = 0.03
"""Share of patients with a second, contralateral case. The tumours share kind and biopsy."""

# --- calibration: how much the inputs know -------------------------------------------------------

EFFECT: Final = 1.55
"""Mean shift of a modality's signal, in standard deviations of its noise, from f = 0 to f = 1.
Against the reference label it gives an AUC of about 0.79 for one modality, so that a trained
federation reaches 0.80 over all test cases although most of them lack a modality."""
SHARED: Final = 0.15
"""Share of the noise variance that the modalities of a case have in common: tumours differ in
how they grow, whatever their HER2. It gives the sum of three an AUC of about 0.88; with none
it would be higher."""

AGE: Final = {True: 50.5, False: 53.0}
AGE_SPREAD: Final = 11.0
CLINICAL_T: Final = {True: (0.19, 0.53, 0.19, 0.09), False: (0.28, 0.52, 0.14, 0.06)}
CLINICAL_N: Final = {True: (0.38, 0.38, 0.15, 0.09), False: (0.49, 0.34, 0.11, 0.06)}
MULTIFOCAL: Final = {True: 0.33, False: 0.22}
"""Clinical inputs by whether the tumour is amplified: together an AUC of about 0.63 (design
values). T counts from 1, N from 0."""
MENOPAUSE: Final = (51.0, 3.0)
"""Mean and spread of the age at menopause, in years."""

DIAMETER_MM: Final = {1: (10.0, 19.0), 2: (18.0, 27.0), 3: (24.0, 30.0), 4: (24.0, 30.0)}
"""Of the index focus that is drawn, by clinical T. T3 and T4 tumours extend beyond it; a larger
focus would not fit into an ultrasound picture."""

STREAMS: Final = (
    "latent", "second", "table", "boxes", "header", "mg", "us", "mri", "scanner", "surgery",
)  # fmt: skip


@dataclass(frozen=True)
class SynthCase:
    """One case with everything that is true of it, recorded or not."""

    entropy: tuple[int, ...]
    centre: str
    case_id: str
    patient_id: str
    laterality: Literal["L", "R"]
    kind: Kind
    fraction: float
    hr: bool
    biopsy: int
    anti_her2: int
    pcr: int
    response_recorded: bool
    surgical_tested: bool
    age: float
    menopausal: int
    clinical_t: int
    clinical_n: int
    multifocal: int
    modalities: tuple[Modality, ...]
    signals: dict[Modality, float]
    clinical_signal: float
    breast: Breast
    lesion: Lesion
    residual_loss: float = RESIDUAL_LOSS
    second_scanner: bool = False

    @property
    def amplified(self) -> int:
        """HER2 of the whole tumour, before therapy."""
        return int(self.kind != "negative")

    @property
    def her2_lost(self) -> int:
        """1 if a residual tumour has lost HER2 under anti-HER2 drugs."""
        may = self.amplified and self.anti_her2 and not self.pcr
        return int(bool(may) and self.rng("surgery").random() < self.residual_loss)

    @property
    def surgical(self) -> int | None:
        """HER2 of the excised tumour where it is known: tumour was left, tested and recorded."""
        known = self.response_recorded and self.surgical_tested and not self.pcr
        return self.amplified * (1 - self.her2_lost) if known else None

    @property
    def reference(self) -> int:
        """The training label: everybody has neoadjuvant therapy, so it is the biopsy's HER2."""
        return self.biopsy

    def strength(self, modality: Modality) -> float:
        """The modality's signal as a rendering strength from 0 to 1, linear within ±2.3 SD."""
        return float(np.clip(0.5 + (self.signals[modality] - EFFECT / 2) / 4.6, 0, 1))

    def rng(self, stream: str) -> np.random.Generator:
        """The random numbers of one purpose; they depend on nothing but the case and the seed."""
        return np.random.default_rng(np.random.SeedSequence([*self.entropy, STREAMS.index(stream)]))


def draw_cohort(
    *,
    cases: int = DEFAULT_CASES,
    scenario: Scenario = "default",
    seed: int = 0,
    residual_loss: float = RESIDUAL_LOSS,
) -> list[SynthCase]:
    """The cohort's cases, centre after centre; no image is made.

    ``residual_loss`` moves HER2 of excised tumours and nothing else.

    Raises:
        ConfigError: fewer than 8 cases, an unknown scenario, a negative seed, or a loss that is no
            probability.
    """
    if not 0.0 <= residual_loss <= 1.0:
        raise ConfigError(f"residual loss: expected a number from 0 to 1, got {residual_loss}")
    if scenario not in SCENARIOS:
        raise ConfigError(f"expected a scenario of {', '.join(SCENARIOS)}, got {scenario!r}")
    if cases < FEWEST_CASES:
        raise ConfigError(f"expected at least {FEWEST_CASES} cases in all, got {cases}")
    if seed < 0:
        raise ConfigError(f"expected a seed of at least 0, got {seed}")
    cohort: list[SynthCase] = []
    for number, (centre, count) in enumerate(zip(CENTRES, centre_sizes(cases), strict=True)):
        made: list[SynthCase] = []
        patient = 0
        while len(made) < count:
            entropy = (seed, number, patient)
            made.extend(_patient(entropy, centre, len(made), scenario, count - len(made)))
            patient += 1
        cohort.extend(made)
    cohort = [replace(case, residual_loss=residual_loss) for case in cohort]
    return [_sent_to_scanner(case) for case in cohort] if scenario == "shortcut" else cohort


def centre_sizes(cases: int) -> list[int]:
    """How many cases each centre has: its share, largest remainders rounded up, at least one."""
    exact = [centre.share * cases for centre in CENTRES]
    sizes = [max(1, int(share)) for share in exact]
    order = sorted(range(len(sizes)), key=lambda i: sizes[i] - exact[i])
    for i in order[: cases - sum(sizes)]:
        sizes[i] += 1
    return sizes


def _patient(
    entropy: tuple[int, ...], centre: Centre, first: int, scenario: Scenario, room: int
) -> list[SynthCase]:
    """One patient's case, or two."""
    rng = np.random.default_rng(np.random.SeedSequence([*entropy, STREAMS.index("latent")]))
    shares = COMPOSITION_HETEROGENEOUS if scenario == "heterogeneous" else COMPOSITION
    prevalence = 1.0 if scenario == "null" else centre.prevalence
    kind = _kind(rng, shares, prevalence)
    shown_kind = _kind(rng, shares, prevalence)  # drawn in every scenario: same later numbers
    hr = bool(rng.random() < HR_POSITIVE[kind != "negative"])
    biopsy = int(rng.random() < BIOPSY_POSITIVE[kind])
    anti_her2 = _therapy(rng, biopsy, scenario)
    laterality: Literal["L", "R"] = "L" if rng.random() < 0.5 else "R"
    if scenario != "null":
        shown_kind = kind
    shown = shown_kind != "negative"
    age = float(np.clip(rng.normal(AGE[shown], AGE_SPREAD), 24, 90))
    menopausal = int(age > rng.normal(*MENOPAUSE))
    both = rng.random() < TWO_CASES and room > 1
    made = []
    for place in range(2 if both else 1):
        own = np.random.default_rng(
            np.random.SeedSequence([*entropy, place, STREAMS.index("second")])
        )
        fraction = float(own.uniform(*FRACTION[kind]))
        shown_fraction = float(own.uniform(*FRACTION[shown_kind]))
        if scenario != "null":
            shown_fraction = fraction
        clinical_t = 1 + int(own.choice(4, p=CLINICAL_T[shown]))
        clinical_n = int(own.choice(4, p=CLINICAL_N[shown]))
        multifocal = int(own.random() < MULTIFOCAL[shown])
        breast = draw_breast(own)
        made.append(
            SynthCase(
                entropy=(*entropy, place),
                centre=centre.name,
                case_id=f"{centre.name[-1]}{first + place + 1:05d}",
                patient_id=f"p{centre.name[-1]}{first + 1:05d}",
                laterality=laterality if place == 0 else ("R" if laterality == "L" else "L"),
                kind=kind,
                fraction=fraction,
                hr=hr,
                biopsy=biopsy,
                anti_her2=anti_her2,
                pcr=int(own.random() < pcr_probability(kind, bool(anti_her2), hr)),
                response_recorded=bool(own.random() < RESPONSE_RECORDED),
                surgical_tested=bool(own.random() < SURGICALLY_TESTED),
                age=age,
                menopausal=menopausal,
                clinical_t=clinical_t,
                clinical_n=clinical_n,
                multifocal=multifocal,
                modalities=_modalities(own, centre),
                signals=_signals(own, shown_fraction),
                clinical_signal=clinical_evidence(age, clinical_t, clinical_n, multifocal),
                breast=breast,
                lesion=draw_lesion(own, breast, own.uniform(*DIAMETER_MM[clinical_t])),
            )
        )
    return made


def _sent_to_scanner(case: SynthCase) -> SynthCase:
    """The case on the scanner that its label makes likely."""
    positive = case.reference
    if case.centre == REVERSED_CENTRE:
        positive = 1 - positive
    drawn = case.rng("scanner").random() < SECOND_SCANNER[positive]
    return replace(case, second_scanner=bool(drawn))


def _kind(rng: np.random.Generator, shares: dict[Kind, float], prevalence: float) -> Kind:
    draw = rng.random()
    if draw < shares["heterogeneous"] * prevalence:
        return "heterogeneous"
    if draw < (shares["heterogeneous"] + shares["homogeneous"]) * prevalence:
        return "homogeneous"
    return "negative"


def _therapy(rng: np.random.Generator, biopsy: int, scenario: Scenario) -> int:
    draw = rng.random()
    if scenario == "randomised":
        return int(draw < TREATED_IF_RANDOMISED)
    return int(biopsy == 1 and draw < TREATED_IF_BIOPSY_POSITIVE)


def pcr_probability(kind: Kind, treated: bool, hr: bool) -> float:
    """P(pCR) given what the tumour truly is.

    >>> pcr_probability("homogeneous", treated=True, hr=False)
    0.65
    """
    if kind == "homogeneous":
        return PCR_HOMOGENEOUS[treated, hr]
    if kind == "heterogeneous":
        return PCR_HETEROGENEOUS[treated]
    return PCR_NEGATIVE[hr]


def _modalities(rng: np.random.Generator, centre: Centre) -> tuple[Modality, ...]:
    draw, total = rng.random(), 0.0
    for modalities, share in centre.mix:
        total += share
        if draw < total:
            return modalities
    return centre.mix[-1][0]


def _signals(rng: np.random.Generator, fraction: float) -> dict[Modality, float]:
    common = np.sqrt(SHARED) * rng.standard_normal()
    own = np.sqrt(1 - SHARED) * rng.standard_normal(len(MODALITIES))
    return {m: float(EFFECT * fraction + common + own[i]) for i, m in enumerate(MODALITIES)}


def clinical_evidence(age: float, clinical_t: int, clinical_n: int, multifocal: int) -> float:
    """Log likelihood ratio for an amplified tumour that the clinical inputs carry; 0 is none.

    Menopausal status follows from age and adds nothing.
    """
    middle = (AGE[True] + AGE[False]) / 2
    evidence = (AGE[True] - AGE[False]) * (age - middle) / AGE_SPREAD**2
    evidence += np.log(CLINICAL_T[True][clinical_t - 1] / CLINICAL_T[False][clinical_t - 1])
    evidence += np.log(CLINICAL_N[True][clinical_n] / CLINICAL_N[False][clinical_n])
    yes, no = MULTIFOCAL[True], MULTIFOCAL[False]
    evidence += np.log(yes / no) if multifocal else np.log((1 - yes) / (1 - no))
    return float(evidence)
