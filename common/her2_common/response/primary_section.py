"""The primary comparison and its subgroups, as sections of the result."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from her2_common.metrics import Estimate
from her2_common.response import primary as primary_module
from her2_common.response import publish, strata, subgroups
from her2_common.response.combine import RandomEffects, random_effects
from her2_common.response.document import Json, estimate, number, rate, test
from her2_common.response.document import random_effects as effects_document
from her2_common.response.pooling import RefusedError
from her2_common.response.queries import labels
from her2_common.response.strata import Strata
from her2_common.response.study import FEW, Study


@dataclass(frozen=True)
class _Groups:
    """Subgroups by one column: the tables of those that are given, the labels of the others."""

    given: dict[str, Strata]
    few: list[str]


def _groups(study: Study) -> dict[str, _Groups]:
    """Subgroups by column. Too few centres have patients in those of ``few``; a column is left out
    where even all of these together come from too few, for a difference would tell of them."""
    found: dict[str, _Groups] = {}
    for column in study.plan.subgroups:
        groups, there = _Groups({}, []), set()
        for name in labels(column):
            blocks = {centre: t.blocks.get(name) for centre, t in study.pool.tables.items()}
            some = {centre for centre, b in blocks.items() if b is None or b.any()}
            if not some:
                continue
            try:
                groups.given[name] = study.pool.strata(name, f"subgroups {column}")
            except RefusedError:
                groups.few.append(name)
                there |= some
        if groups.given and not (groups.few and len(there) < study.pool.min_centres):
            found[column] = groups
    return found


def _shown(study: Study) -> frozenset[str]:
    tables = study.pool.strata("primary", "primary")
    groups = {column: part.given for column, part in _groups(study).items()}
    return publish.shown_primary(tables, groups, study.plan.min_cell)


def primary(study: Study) -> Json:
    tables = study.pool.strata("primary", "primary")
    found = primary_module.compare(
        tables, relevant=study.plan.relevant_odds_ratio, pcr=study.plan.pcr
    )
    pooled, shown = tables.counts.sum(axis=0), _shown(study)
    negative, positive = (rate(int(g[1]), int(g.sum())) for g in pooled)
    lines = []
    for name, table in zip(tables.names, tables.counts, strict=True):
        if not table.any():
            continue
        line: Json = {"centre": name}
        if f"centre {name}" not in shown:
            lines.append(line | study.hidden("primary.by_centre", name))
            continue
        alone = Strata((name,), table[None])
        lines.append(
            line
            | {
                "n": alone.n,
                "positive": rate(int(table[1, 1]), int(table[1].sum())),
                "negative": rate(int(table[0, 1]), int(table[0].sum())),
                "odds_ratio": estimate(strata.odds_ratio(alone)),
                "risk_difference": estimate(strata.risk_difference(alone)),
            }
        )
    return {
        "population": "biopsy HER2-positive, treated with anti-HER2 drugs, score and pCR known",
        "n": found.n,
        "pcr": tables.responders,
        "centres": [
            name for name, table in zip(tables.names, tables.counts, strict=True) if table.any()
        ],
        "positive": positive,
        "negative": negative,
        "odds_ratio": estimate(found.odds_ratio),
        "exact_odds_ratio": estimate(found.exact_odds_ratio),
        "risk_difference": estimate(found.risk_difference),
        "risk_ratio": estimate(strata.risk_ratio(tables)),
        "cmh": _nested(test(found.cmh), "corrected", test(found.cmh_corrected)),
        "breslow_day": _nested(
            test(found.breslow_day),
            "without_tarone",
            test(strata.breslow_day(tables, tarone=False)),
        ),
        "heterogeneity": effects_document(between_centres(tables), "odds_ratio"),
        "opposed": list(found.opposed),
        "by_centre": lines,
        "left_out": [
            {
                "centre": part.centre,
                "odds_ratio": estimate(part.odds_ratio),
                "verdict": part.verdict,
                "changes": part.verdict != found.statement.verdict,
            }
            for part in found.left_out
        ],
        "by_centre_and_hr": _by_centre_and_hr(study),
        "relevant_odds_ratio": found.relevant,
        "power": found.power,
        "size": found.size,
        "detectable_odds_ratio": number(found.detectable),
        "verdict": found.statement.verdict,
        "quote": found.statement.quote,
        "do_not_quote": found.statement.do_not_quote,
    }


def _by_centre_and_hr(study: Study) -> Json | None:
    try:
        parts = [
            (f"{name}, {part}", table)
            for part in labels("hr")
            for name, table in study.pool.table(part, "primary by centre and HR").items()
        ]
    except RefusedError:
        return None
    return estimate(
        strata.odds_ratio(
            sum((Strata((name,), table[None]) for name, table in parts), Strata.empty())
        )
    )


def subgroup_forests(study: Study) -> list[Json]:
    shown, groups = _shown(study), _groups(study)
    result: list[Json] = []
    for column in study.plan.subgroups:
        if column not in groups:
            why = f"expected answers of {study.pool.min_centres} centres with patients, got fewer"
            result.append({"by": column, "refused": why})
            continue
        found = subgroups.forest(groups[column].given)
        what = f"subgroups {column}"
        lines = {name: study.hidden(what, name, FEW) for name in groups[column].few}
        for row in found.rows:
            if row.label not in shown:
                lines[row.label] = study.hidden(what, row.label)
                continue
            lines[row.label] = {
                "n": row.n,
                "pcr": row.responders,
                "odds_ratio": estimate(row.odds_ratio),
                "risk_difference": estimate(row.risk_difference),
            }
        rows = [{"label": name} | lines[name] for name in labels(column) if name in lines]
        q = found.heterogeneity
        study.tested(f"subgroups by {column}", None if q is None else q.p_value)
        result.append({"by": column, "heterogeneity": test(q), "rows": rows})
    return result


def between_centres(tables: Strata) -> RandomEffects | None:
    """Random effects of the centres' own odds ratios, on the log scale; exponentiated again.

    Centres without an odds ratio are left out and named.
    """
    logs, variances, left_out = [], [], []
    for name, table in zip(tables.names, tables.counts, strict=True):
        if not table.any():
            continue
        if not table.all():  # the odds ratio or its variance does not exist
            left_out.append(name)
            continue
        (d, c), (b, a) = table.astype(np.float64)
        logs.append(np.log(a * d / (b * c)))
        variances.append(1 / a + 1 / b + 1 / c + 1 / d)
    found = random_effects(logs, variances)
    if found is None:
        return None

    def exponentiated(value: Estimate) -> Estimate:
        return Estimate(*(float(np.exp(part)) for part in value.as_dict().values()))

    return RandomEffects(
        found.centres,
        exponentiated(found.mean),
        None if found.prediction is None else exponentiated(found.prediction),
        found.tau2,
        found.q,
        found.i2,
        tuple(left_out),
    )


def _nested(main: Json | None, name: str, other: Json | None) -> Json | None:
    return None if main is None else {**main, name: other}
