"""What the score tells, as sections of the result: AUC, ROC, operating points, calibration."""

from __future__ import annotations

from typing import Final

import numpy as np

from her2_common.calibration import calibration, reliability
from her2_common.errors import MetricError
from her2_common.metrics import auc_interval, roc_curve
from her2_common.response import delong, publish
from her2_common.response.combine import combine_auc
from her2_common.response.decision import brier_interval, calibration_error, net_benefit
from her2_common.response.delong import Discrimination
from her2_common.response.document import Json, difference, estimate, proportion, section
from her2_common.response.document import random_effects as effects_document
from her2_common.response.operating import auc_error_bound, operating_point, partial_auc
from her2_common.response.paired import ALL_COMERS_WARNING
from her2_common.response.pooling import Compared, RefusedError
from her2_common.response.study import Study

HER2_WARNING: Final = (
    "The score is the probability of HER2-positive tumour, not of pCR: this says how it would do "
    "if it were taken for one."
)


def auc(study: Study, compared: Compared) -> Json:
    imaging, other = compared.pooled.histograms
    if compared.found is None:
        raise RefusedError(
            f"expected patients with and without pCR, got {imaging.m} of {imaging.n} with"
        )
    flat = _flat(compared.found)
    paired_test = None if flat else delong.compare(compared.found, "imaging", "other")
    if paired_test is not None and paired_test.test is not None:
        study.tested("paired DeLong: imaging against biopsy", paired_test.test.p_value)
    alone = [found for found in compared.own.values() if found is not None]
    within = delong.stratified(alone)
    there = {c: f for c, f in compared.own.items() if compared.scores[c].histograms[0].n}
    part = partial_auc(imaging, study.plan.max_fpr, seed=study.plan.seed)
    return {
        "population": "all comers: pCR, score and biopsy known",
        "n": imaging.n,
        "pcr": imaging.m,
        "centres": list(there),
        "warning": ALL_COMERS_WARNING,
        "not_compared": None
        if not flat
        else f"{_listed(flat)} the same of all patients, so that nothing is compared",
        "imaging": None if "imaging" in flat else estimate(auc_interval(imaging)),
        "biopsy": None if "other" in flat else estimate(auc_interval(other)),
        "paired_delong": None if paired_test is None else difference(paired_test),
        "stratified": None if within is None else _areas(within),
        "random_effects": {
            "imaging": effects_document(combine_auc(there, "imaging")),
            "biopsy": effects_document(combine_auc(there, "other")),
        },
        "partial": None
        if part is None
        else {
            "max_fpr": part.max_fpr,
            "area": estimate(part.area),
            "standardised": estimate(part.standardised),
        },
        "error_bound": auc_error_bound(imaging),
        "by_centre": _auc_by_centre(study, compared),
        "treated": _treated(study),
        "models": [_rival(study, item) for item in study.plan.compare],
    }


def _auc_by_centre(study: Study, compared: Compared) -> Json:
    outcomes = {
        centre: np.array([s.negatives, s.positives]) for centre, s in compared.scores.items()
    }
    shown = publish.shown_centres(outcomes, study.plan.min_cell)
    lines: Json = {}
    for centre, scores in compared.scores.items():
        if not outcomes[centre].any():
            continue
        if centre not in shown:
            lines[centre] = study.hidden("auc.by_centre", centre)
            continue
        found = compared.own[centre]
        flat = () if found is None else _flat(found)
        one, other = (auc_interval(histogram) for histogram in scores.histograms)
        lines[centre] = {
            "n": scores.negatives + scores.positives,
            "pcr": scores.positives,
            "imaging": None if "imaging" in flat else estimate(one),
            "biopsy": None if "other" in flat else estimate(other),
            "paired_delong": None
            if found is None or flat
            else difference(delong.compare(found, "imaging", "other")),
        }
    return lines


def _flat(found: Discrimination) -> tuple[str, ...]:
    """The scores that are the same for all patients (of each centre): they rank nobody."""
    return tuple(
        name
        for index, name in enumerate(found.names)
        if found.auc[index] == 0.5
        and (found.covariance is not None and found.covariance[index, index] <= 0.0)
    )


def _listed(flat: tuple[str, ...]) -> str:
    words = ["the score" if name == "imaging" else "the biopsy" for name in flat]
    return f"{' and '.join(words)} {'says' if len(words) == 1 else 'say'}"


def _areas(within: Discrimination) -> Json:
    """Both AUCs within centres, and their comparison, of scores that are not flat."""
    flat = _flat(within)
    return {
        "imaging": None if "imaging" in flat else estimate(within.interval("imaging")),
        "biopsy": None if "other" in flat else estimate(within.interval("other")),
        "paired_delong": None if flat else difference(delong.compare(within, "imaging", "other")),
    }


def _treated(study: Study) -> Json | None:
    try:
        histogram = study.pool.compared("treated", "auc.treated").pooled.histograms[0]
    except MetricError:
        return None
    return {
        "n": histogram.n,
        "pcr": histogram.m,
        "imaging": estimate(auc_interval(histogram)),
    }


def _rival(study: Study, item: str) -> Json:
    def build() -> Json:
        compared = study.pool.compared(item, f"auc {item}")
        one, other = compared.pooled.histograms
        if compared.found is None:
            raise RefusedError(
                f"expected patients with and without pCR who have a score of {item} alone, "
                f"got {one.m} of {one.n} with"
            )
        if _flat(compared.found):
            raise RefusedError(
                f"the score of {item} alone, or that of all, is the same in all patients, so that "
                "nothing is compared"
            )
        found = delong.compare(compared.found, "imaging", "other")
        study.tested(
            f"paired DeLong: imaging against {item} alone",
            None if found.test is None else found.test.p_value,
        )
        return {
            "n": one.n,
            "pcr": one.m,
            "imaging": estimate(auc_interval(one)),
            "other": estimate(auc_interval(other)),
            "paired_delong": difference(found),
        }

    return {"model": item} | section(build)


def roc(study: Study, compared: Compared) -> Json:
    curves = [roc_curve(histogram) for histogram in compared.pooled.histograms]
    if any(curve is None for curve in curves):
        raise RefusedError("expected patients with and without pCR, got one kind")
    imaging, biopsy = (np.stack(curve, axis=1).tolist() for curve in curves if curve is not None)
    return {"imaging": imaging, "biopsy": biopsy, "warning": ALL_COMERS_WARNING}


def operating_points(study: Study, compared: Compared) -> Json:
    points = []
    names = (("imaging", study.threshold), ("biopsy", 1.0))
    for (name, threshold), histogram in zip(names, compared.pooled.histograms, strict=True):
        found = operating_point(histogram, threshold)
        line: Json = {"name": name, "threshold": threshold}
        for kind in ("sensitivity", "specificity", "ppv", "npv"):
            line[kind] = proportion(getattr(found, kind))
        points.append(line)
    return {"points": points, "warning": ALL_COMERS_WARNING}


def calibrated(study: Study, compared: Compared) -> Json:
    histogram = compared.pooled.histograms[0]
    fit, limit = calibration(histogram), study.plan.min_cell
    return {
        "n": histogram.n,
        "intercept": estimate(fit.intercept),
        "slope": estimate(fit.slope),
        "brier": estimate(brier_interval(histogram)),
        "calibration_error": calibration_error(histogram),
        "reliability": [
            {
                "low": part.low,
                "high": part.high,
                "n": part.n,
                "mean_score": part.mean_score,
                "observed": estimate(part.observed),
            }
            for part in reliability(histogram, min_cell=limit)
        ],
        "warning": _of_her2(study),
    }


def decision_curve(study: Study, compared: Compared) -> Json:
    histogram = compared.pooled.histograms[0]
    return {
        "points": [
            {
                "threshold": point.threshold,
                "model": estimate(point.model),
                "treat_all": estimate(point.treat_all),
                "over_all": estimate(point.over_all),
            }
            for point in net_benefit(histogram, study.plan.net_benefit)
        ],
        "warning": _of_her2(study),
    }


def _of_her2(study: Study) -> str:
    return ALL_COMERS_WARNING if study.label == "pcr" else f"{HER2_WARNING} {ALL_COMERS_WARNING}"
