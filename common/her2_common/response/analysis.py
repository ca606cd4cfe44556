"""The whole analysis: one plan, every centre's answers, one JSON document.

``analyse`` neither knows nor cares whether the answers come from tables here or from sites far
away. Each section is numbers, or the sentence that says why there are none.
"""

from __future__ import annotations

from collections.abc import Callable

from her2_common.clinical import PCR_DEFINITIONS
from her2_common.errors import MetricError
from her2_common.response import models_section, primary_section, scores_section
from her2_common.response.document import Json, section
from her2_common.response.inference import holm
from her2_common.response.plan import Plan
from her2_common.response.pooling import Ask, Compared, Pool
from her2_common.response.study import Label, Study


def analyse(
    ask: Ask, plan: Plan, threshold: float, *, label: Label = "her2", min_centres: int = 1
) -> Json:
    """Every section of the result, as far as the answers carry them.

    Args:
        threshold: the frozen one, by which the sources answer.
        label: what the score is a probability of.
        min_centres: centres with patients that a pooled number needs.

    Raises:
        RefusedError: no centre answers.
    """
    study = Study(Pool(ask, plan, min_centres), threshold, label)
    primary = section(lambda: primary_section.primary(study))
    result: Json = {
        "pcr": PCR_DEFINITIONS[plan.pcr],
        "centres": list(study.pool.centres),
        "n": study.count("rows"),
        "analysed": study.count("calls"),
        "threshold": threshold,
        "primary": primary,
        **_scores(study),
        "mcnemar": section(lambda: models_section.mcnemar(study)),
        "discordance": section(lambda: models_section.discordance(study)),
    }
    logistic, idi = models_section.logistic(study)
    result["reclassification"] = section(lambda: models_section.reclassification(study, idi))
    result["logistic"] = logistic
    try:
        result["subgroups"] = primary_section.subgroup_forests(study)
    except MetricError as error:
        result["subgroups"] = {"refused": str(error)}
    result["ipw"] = section(lambda: models_section.ipw(study))
    adjusted = holm(study.family)
    result["holm"] = [
        {"name": name, "p_value": p, "adjusted": adjusted[name]} for name, p in study.family.items()
    ]
    result["suppressed"] = study.pool.suppressed
    return result


def _scores(study: Study) -> Json:
    """The sections that the score and the biopsy give, from one comparison of the two."""
    sections: dict[str, Callable[[Study, Compared], Json]] = {
        "auc": scores_section.auc,
        "roc": scores_section.roc,
        "operating_points": scores_section.operating_points,
        "calibration": scores_section.calibrated,
        "net_benefit": scores_section.decision_curve,
    }
    try:
        compared = study.pool.compared("biopsy", "auc")
    except MetricError as error:
        return {name: {"refused": str(error)} for name in sections}
    return {
        name: section(lambda build=build: build(study, compared))  # type: ignore[misc]
        for name, build in sections.items()
    }
