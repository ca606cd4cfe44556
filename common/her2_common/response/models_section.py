"""Two calls on the same patients, models and weights, as sections of the result."""

from __future__ import annotations

from typing import Final

import numpy as np

from her2_common.errors import MetricError
from her2_common.metrics import wilson
from her2_common.response import paired, publish
from her2_common.response.aliasing import Dropped
from her2_common.response.document import Json, estimate, number, rate, test
from her2_common.response.inference import e_value
from her2_common.response.models import FittedModel, fit_model, weigh
from her2_common.response.paired import ALL_COMERS_WARNING, RECLASSIFICATION_WARNING, CallTable
from her2_common.response.pooling import RefusedError
from her2_common.response.study import Study

WEIGHTS_WARNING: Final = (
    "Weights balance what was measured. The E-value says how strong a confounder that was not "
    "measured would have to be to explain the risk ratio away."
)


def _pairs(study: Study, what: str) -> tuple[CallTable, frozenset[str]]:
    table = study.calls(what)
    try:
        treated = study.pool.strata("primary", "primary").counts.sum(axis=0)
    except RefusedError:
        treated = None
    else:
        if np.any(table.counts[:, 1] < treated.T):  # of other centres
            treated = None
    return table, publish.shown_calls(table, treated, study.plan.min_cell)


def _alike(table: CallTable) -> str | None:
    """Why two calls are not compared: one says the same of all patients; None if neither does."""
    alike = [
        name
        for axis, name in ((2, "the biopsy"), (1, "the model"))
        if np.count_nonzero(table.counts.sum(axis=(0, axis))) < 2
    ]
    if not alike:
        return None
    says = "says" if len(alike) == 1 else "say"
    return f"{' and '.join(alike)} {says} the same of all patients, so that nothing is compared"


def mcnemar(study: Study) -> Json:
    table, shown = _pairs(study, "mcnemar")
    if (why := _alike(table)) is not None:
        raise RefusedError(why)
    result: Json = {"warning": ALL_COMERS_WARNING}
    whole = {"10", "01"} <= shown
    for name, found in zip(("no_pcr", "pcr"), paired.mcnemar_by_outcome(table), strict=True):
        kind = "with pCR" if name == "pcr" else "without pCR"
        study.tested(f"McNemar: {kind}", None if found.exact is None else found.exact.p_value)
        exact = test(found.exact)
        result[name] = {
            "biopsy_only": found.first_only if whole else None,
            "imaging_only": found.second_only if whole else None,
            "exact": exact if whole or exact is None else exact | {"statistic": None},
            "chi2": test(found.chi2),
            "corrected": test(found.corrected),
        }
    return result


def discordance(study: Study) -> Json:
    table, shown = _pairs(study, "discordance")
    lines = []
    for part in paired.discordance(table):
        line: Json = {"biopsy": part.first, "model": part.second}
        line["discordant"] = part.first != part.second
        if part.n and f"{part.first}{part.second}" not in shown:
            lines.append(line | study.hidden("discordance", f"{part.first}{part.second}"))
        else:
            lines.append(line | rate(part.responders, part.n))
    discordant = int(table.counts[:, 0, 1].sum() + table.counts[:, 1, 0].sum())
    whole = {"10", "01"} <= shown
    return {
        "warning": ALL_COMERS_WARNING,
        "strata": lines,
        "discordant": {
            "n": discordant if whole else None,
            "share": estimate(wilson(discordant, table.n)) if whole else None,
        },
    }


def reclassification(study: Study, idi: Json | None) -> Json:
    table = study.calls("reclassification")
    why = _alike(table)
    without, responders = (None, None) if why else paired.net_reclassification(table)
    return {
        "not_compared": why,
        "warning": f"{RECLASSIFICATION_WARNING} {ALL_COMERS_WARNING}",
        "nri": {"pcr": estimate(responders), "no_pcr": estimate(without)},
        "idi": idi,
    }


def logistic(study: Study) -> tuple[list[Json], Json | None]:
    """The models, and the IDI of the first that tests something."""
    lines: list[Json] = []
    idi: Json | None = None
    for model in study.plan.models:
        try:
            found = fit_model(study.pool, model)
        except MetricError as error:
            lines.append({"model": model.name, "refused": str(error)})
            continue
        lines.append({"model": model.name} | _model_document(found))
        if found.test is not None:
            study.tested(f"likelihood ratio: {model.name}", found.test.p_value)
        if idi is None and found.improvement is not None:
            without, responders = found.improvement
            idi = {
                "model": model.name,
                "pcr": estimate(responders),
                "no_pcr": estimate(without),
            }
    return lines, idi


def ipw(study: Study) -> Json:
    weighed = weigh(study.pool)
    found = weighed.effect
    if found is None:
        raise RefusedError("expected patients whom the model calls positive and negative")
    values = None if found.risk_ratio is None else e_value(found.risk_ratio)
    return {
        "terms": list(study.plan.propensity),
        "dropped": _dropped(weighed.dropped),
        "n": weighed.propensity.n,
        "pcr": int(weighed.counts[:, 1].sum()),
        "centres": list(weighed.centres),
        "risk_positive": estimate(found.risk_1),
        "risk_negative": estimate(found.risk_0),
        "risk_difference": estimate(found.risk_difference),
        "risk_ratio": estimate(found.risk_ratio),
        "odds_ratio": estimate(found.odds_ratio),
        "effective": {"positive": found.effective[1], "negative": found.effective[0]},
        "e_value": None if values is None else {"estimate": values[0], "interval": values[1]},
        "warning": WEIGHTS_WARNING,
    }


def _dropped(columns: tuple[Dropped, ...]) -> list[Json]:
    return [
        {"column": part.column, "follows": list(part.follows), "words": part.words()}
        for part in columns
    ]


def _model_document(found: FittedModel) -> Json:
    terms = {
        name: {
            "estimate": term.estimate,
            "low": number(term.low),
            "high": number(term.high),
            "se": term.se,
            "p_value": term.p_value,
            "odds_ratio": estimate(term.odds_ratio()),
        }
        for name, term in found.fit.terms().items()
    }
    ratio = test(found.test)
    return {
        "outcome": "pcr",
        "n": found.fit.n,
        "pcr": found.fit.events,
        "centres": list(found.centres),
        "penalised": found.fit.penalised,
        "dropped": _dropped(found.dropped),
        "terms": terms,
        "log_likelihood": found.fit.log_likelihood,
        "likelihood_ratio": None if ratio is None else {"terms": list(found.tested), **ratio},
        "warning": ALL_COMERS_WARNING,
    }
