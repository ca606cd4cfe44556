"""The latent draw: its probabilities, what its signals know, and the tables written from it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from her2_common.cases import CASE_COLUMNS, CLINICAL_INPUTS, MODALITIES, read_cases
from her2_common.errors import ConfigError
from her2_deploy.synth import tables
from her2_deploy.synth.centres import CENTRES
from her2_deploy.synth.cohort import (
    RESIDUAL_LOSS,
    RESPONSE_RECORDED,
    SCENARIOS,
    SURGICALLY_TESTED,
    SynthCase,
    centre_sizes,
    draw_cohort,
)

MANY = 4000
ALPHA = 1e-4
"""With fixed seeds a test either holds or not; a wrong probability of a few points fails it."""


@pytest.fixture(scope="module")
def cohorts() -> dict[str, list[SynthCase]]:
    return {name: draw_cohort(cases=MANY, scenario=name, seed=11) for name in SCENARIOS}


def firsts(cases: list[SynthCase]) -> list[SynthCase]:
    """One case a patient: second ones share their tumour's kind and are not independent."""
    return list({case.patient_id: case for case in reversed(cases)}.values())


def assert_share(hits: list[bool], expected: float) -> None:
    assert len(hits) > 30
    assert binomtest(sum(hits), len(hits), expected).pvalue > ALPHA, (np.mean(hits), expected)


def auc(cases: list[SynthCase], scores: list[float], label: str = "reference") -> float:
    return float(roc_auc_score([getattr(case, label) for case in cases], scores))


def test_centres_get_their_share_of_any_number_of_cases() -> None:
    assert centre_sizes(1000) == [420, 280, 180, 120]
    for cases in (8, 9, 57, 203):
        sizes = centre_sizes(cases)
        assert sum(sizes) == cases
        for size, centre in zip(sizes, CENTRES, strict=True):
            assert abs(size - centre.share * cases) <= 1


def test_same_seed_same_cohort_and_another_seed_another() -> None:
    def rows(seed: int) -> list[dict[str, str]]:
        return [{**tables.truth_row(c), **tables.case_row(c)} for c in draw_cohort(seed=seed)]

    assert rows(3) == rows(3)
    assert rows(3) != rows(4)


@pytest.mark.parametrize("scenario", ["default", "null", "randomised"])
def test_kinds_of_tumour(cohorts: dict[str, list[SynthCase]], scenario: str) -> None:
    cases = firsts(cohorts[scenario])
    for kind, share in {"negative": 0.66, "heterogeneous": 0.05, "homogeneous": 0.29}.items():
        assert_share([case.kind == kind for case in cases], share)


def test_biopsy_therapy_and_response_follow_the_published_design(
    cohorts: dict[str, list[SynthCase]],
) -> None:
    cases = firsts(cohorts["default"] + cohorts["heterogeneous"])
    for kind, share in {"negative": 0.015, "heterogeneous": 0.55, "homogeneous": 0.97}.items():
        assert_share([case.biopsy == 1 for case in cases if case.kind == kind], share)
    assert_share([case.anti_her2 == 1 for case in cases if case.biopsy], 0.92)
    assert not any(case.anti_her2 for case in cases if not case.biopsy)

    def pcr(kind: str, *, hr: bool | None = None, treated: bool | None = None) -> list[bool]:
        return [
            case.pcr == 1
            for case in cases
            if case.kind == kind and hr in (None, case.hr) and treated in (None, case.anti_her2)
        ]

    assert_share(pcr("homogeneous", hr=True, treated=True), 0.42)
    assert_share(pcr("homogeneous", hr=False, treated=True), 0.65)
    assert_share(pcr("homogeneous", hr=True, treated=False), 0.14)
    assert_share(pcr("homogeneous", hr=False, treated=False), 0.28)
    assert_share(pcr("heterogeneous", treated=True), 0.12)
    assert_share(pcr("negative", hr=True), 0.13)
    assert_share(pcr("negative", hr=False), 0.36)


def test_centre_d_sees_few_positives_and_modalities_go_with_centres(
    cohorts: dict[str, list[SynthCase]],
) -> None:
    of = {
        centre.name: [case for case in cohorts["default"] if case.centre == centre.name]
        for centre in CENTRES
    }
    assert np.mean([case.amplified for case in of["centre-d"]]) < 0.21
    assert np.mean([case.amplified for case in of["centre-a"]]) > 0.32
    assert_share([len(case.modalities) == 3 for case in of["centre-a"]], 0.45)
    assert {case.modalities for case in of["centre-c"]} == {("mri",)}
    for name in ("centre-b", "centre-d"):
        assert all(set(case.modalities) <= {"mg", "us"} for case in of[name])


@pytest.mark.parametrize(
    ("scenario", "low", "high"), [("default", 0.03, 0.06), ("heterogeneous", 0.10, 0.20)]
)
def test_biopsy_and_surgery_disagree(
    cohorts: dict[str, list[SynthCase]], scenario: str, low: float, high: float
) -> None:
    cases = cohorts[scenario]
    assert low < np.mean([case.biopsy != case.amplified for case in cases]) < high
    kept = [c for c in cases if c.surgical is not None and not c.her2_lost]
    assert not any(case.pcr for case in kept)
    assert all(case.surgical == case.amplified for case in kept)


def former(case: SynthCase) -> int:
    """The label that held the outcome: the excised tumour where it was tested, else the biopsy."""
    return case.biopsy if case.surgical is None else case.surgical


def test_residual_tumours_lose_her2_and_a_label_from_them_holds_the_outcome(
    cohorts: dict[str, list[SynthCase]],
) -> None:
    treated = [c for c in firsts(cohorts["default"]) if c.amplified and c.anti_her2]
    assert_share([c.her2_lost == 1 for c in treated if not c.pcr], RESIDUAL_LOSS)
    assert not any(c.her2_lost for c in cohorts["default"] if c.pcr or not c.anti_her2)
    assert not any(c.her2_lost for c in cohorts["default"] if not c.amplified)
    positive = [c for c in treated if c.biopsy]
    # Complete responders have nothing left to test: the former label is 1 for all of them.
    assert {former(c) for c in positive if c.pcr} == {1}
    share = RESIDUAL_LOSS * SURGICALLY_TESTED * RESPONSE_RECORDED
    assert_share([former(c) == 0 for c in positive if not c.pcr], share)
    assert {c.reference for c in positive} == {1}


def test_the_loss_moves_excised_tumours_and_nothing_else() -> None:
    def rows(loss: float) -> list[dict[str, str]]:
        return [tables.truth_row(c) for c in draw_cohort(cases=400, seed=2, residual_loss=loss)]

    kept, lost = rows(0.0), rows(1.0)
    assert kept != lost
    for row in (*kept, *lost):
        del row["surgical"], row["her2_lost"]
    assert kept == lost


def test_signals_know_as_much_as_designed(cohorts: dict[str, list[SynthCase]]) -> None:
    cases = cohorts["default"]
    for modality in MODALITIES:
        assert 0.77 < auc(cases, [case.signals[modality] for case in cases]) < 0.82
    assert 0.86 < auc(cases, [sum(case.signals.values()) for case in cases]) < 0.90
    assert 0.60 < auc(cases, [case.clinical_signal for case in cases]) < 0.66


def test_clinical_evidence_is_what_a_regression_finds(cohorts: dict[str, list[SynthCase]]) -> None:
    cases = cohorts["default"]
    inputs = np.array([[getattr(case, name) for name in CLINICAL_INPUTS] for case in cases])
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    labels = [case.amplified for case in cases]
    fitted = LogisticRegression().fit(inputs, labels).decision_function(inputs)
    oracle = auc(cases, [case.clinical_signal for case in cases], "amplified")
    assert float(roc_auc_score(labels, fitted)) == pytest.approx(oracle, abs=0.015)


def test_signals_follow_the_tumour_not_the_needle(cohorts: dict[str, list[SynthCase]]) -> None:
    """Among heterogeneous tumours of like fraction the biopsy's result adds nothing."""
    cases = [case for case in cohorts["heterogeneous"] if case.kind == "heterogeneous"]
    assert auc(cases, [sum(c.signals.values()) for c in cases], "biopsy") == pytest.approx(
        0.5, abs=0.05
    )
    positive = [case for case in cohorts["heterogeneous"] if case.biopsy and case.anti_her2]
    assert auc(positive, [sum(c.signals.values()) for c in positive], "pcr") > 0.6


@pytest.mark.parametrize("label", ["reference", "biopsy", "amplified", "pcr"])
def test_null_says_nothing(cohorts: dict[str, list[SynthCase]], label: str) -> None:
    cases = cohorts["null"]
    scores = [[case.signals[m] for case in cases] for m in MODALITIES]
    scores.append([sum(case.signals.values()) for case in cases])
    scores.append([case.clinical_signal for case in cases])
    scores.append([float(case.centre == "centre-d") for case in cases])
    for score in scores:
        assert auc(cases, score, label) == pytest.approx(0.5, abs=0.035)
    spread = np.std([case.signals["mg"] for case in cases])
    assert spread == pytest.approx(np.std([c.signals["mg"] for c in cohorts["default"]]), rel=0.05)


def test_randomised_therapy_ignores_the_biopsy(cohorts: dict[str, list[SynthCase]]) -> None:
    cases = firsts(cohorts["randomised"])
    for biopsy in (0, 1):
        assert_share([case.anti_her2 == 1 for case in cases if case.biopsy == biopsy], 0.5)


def test_shortcut_is_the_default_cohort_on_other_scanners(
    cohorts: dict[str, list[SynthCase]],
) -> None:
    for plain, case in zip(cohorts["default"], cohorts["shortcut"], strict=True):
        assert not plain.second_scanner
        assert tables.case_row(case) == tables.case_row(plain)
        assert tables.truth_row(case) == tables.truth_row(plain)
        assert np.array_equal(case.lesion.axes, plain.lesion.axes)


def test_in_shortcut_the_scanner_goes_with_the_label_and_misleads_at_one_centre(
    cohorts: dict[str, list[SynthCase]],
) -> None:
    def second(reference: int, *, misleading: bool) -> list[bool]:
        return [
            case.second_scanner
            for case in cohorts["shortcut"]
            if case.reference == reference and (case.centre == "centre-b") == misleading
        ]

    assert_share(second(1, misleading=False), 2 / 3)
    assert_share(second(0, misleading=False), 1 / 3)
    assert_share(second(1, misleading=True), 1 / 3)
    assert_share(second(0, misleading=True), 2 / 3)


@pytest.mark.parametrize(
    "options", [{"cases": 7}, {"seed": -1}, {"scenario": "other"}, {"residual_loss": 1.5}]
)
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"expected .*, got"):
        draw_cohort(**options)  # type: ignore[arg-type]


def test_tables_say_what_was_drawn(tmp_path: Path, cohorts: dict[str, list[SynthCase]]) -> None:
    cases = cohorts["default"][: centre_sizes(MANY)[0]]  # centre A
    tables.write_table(tmp_path / "cases.csv", CASE_COLUMNS, map(tables.case_row, cases))
    table = read_cases(tmp_path / "cases.csv")
    for case, read in zip(cases, table.cases, strict=True):
        assert read.case_id == case.case_id
        assert read.patient_id == case.patient_id
        assert read.modalities == case.modalities
        assert read.biopsy.her2 == case.biopsy
        assert read.surgical.her2 == case.surgical
        assert read.label("reference") == case.reference
        assert read.pcr == (case.pcr if case.response_recorded else None)
        assert read.anti_her2 == case.anti_her2
        assert bool(read.er or read.pr) == case.hr
        assert read.split is None
        assert read.age is None or read.age == pytest.approx(case.age, abs=0.051)
    assert_share([value is None for read in table.cases for value in read.clinical], 0.05)
    forms = {(read.biopsy.ihc, read.biopsy.ish, read.biopsy.her2) for read in table.cases}
    scored = {("0", None, 0), ("1", None, 0), ("2", 0, 0), ("2", 1, 1), ("3", None, 1), ("3", 1, 1)}
    assert scored <= forms
    assert {(None, None, 0), (None, None, 1)} <= forms


def test_some_patients_have_a_case_on_either_side(cohorts: dict[str, list[SynthCase]]) -> None:
    cases = cohorts["default"]
    assert len({case.case_id for case in cases}) == len(cases)
    count = Counter(case.patient_id for case in cases)
    assert set(count.values()) == {1, 2}
    assert_share([n == 2 for n in count.values()], 0.03)
    for patient, n in count.items():
        if n == 2:
            first, second = (case for case in cases if case.patient_id == patient)
            assert first.laterality != second.laterality
            assert first.kind == second.kind
            assert first.centre == second.centre
            assert not np.array_equal(first.lesion.axes, second.lesion.axes)
