"""The primary comparison: does the image tell who responds, where the needle says the same of all?

1. Population: biopsy HER2-positive, treated with anti-HER2 drugs, score and pCR known.
2. Groups: the model calls positive or negative, at a threshold frozen on training data.
3. Outcome: pCR. Strata: the centres.
4. Estimates: Mantel-Haenszel odds ratio and risk difference. Test: CMH without continuity
   correction, whose size at the observed margins is printed with its power.
5. Verdict (``verdict``), one of ``RULES``, whose first condition that holds decides:

       not compared             no centre has both groups and both outcomes: there is no interval
       centres differ           Breslow-Day's test with Tarone's correction rejects one common odds
                                ratio, or the common interval lies wholly on one side of 1 and that
                                of a centre alone wholly on the other
       supported                the interval lies wholly above 1 and not wholly below the relevant
                                odds ratio
       smaller than relevant    it lies wholly above 1 and wholly below the relevant odds ratio
       reversed                 it lies wholly below 1
       no relevant difference   it holds 1 and lies wholly below the relevant odds ratio
       inconclusive             it holds 1 and the relevant odds ratio

   The interval is that of Mantel and Haenszel, and the exact one where the former does not exist;
   the relevant odds ratio is the plan's, the smallest that would change practice. The order makes
   the rule total: every table has one verdict.

The caller's duties: the threshold and the smallest relevant odds ratio were fixed before the
outcomes were seen; no patient served to train the model; the counts may leave the sites.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from her2_common.clinical import DEFAULT_PCR, PCR_DEFINITIONS, PcrDefinition
from her2_common.errors import MetricError
from her2_common.metrics import Estimate, wilson
from her2_common.response import exact, strata
from her2_common.response.inference import HypothesisTest
from her2_common.response.patients import Patients, called
from her2_common.response.strata import Strata

Verdict = Literal[
    "not compared",
    "centres differ",
    "supported",
    "smaller than relevant",
    "reversed",
    "no relevant difference",
    "inconclusive",
]

RULES: Final[dict[Verdict, str]] = {
    "not compared": "no centre has both groups and both outcomes, so that there is no interval",
    "centres differ": "the centres do not share one odds ratio (Breslow-Day with Tarone), or a "
    "centre's own interval lies on the other side of 1",
    "supported": "the whole interval of the common odds ratio lies above 1 and reaches the "
    "smallest relevant one",
    "smaller than relevant": "the whole interval lies above 1 and below the smallest relevant odds "
    "ratio: a difference, but a smaller one",
    "reversed": "the whole interval lies below 1: model-positive patients respond less often",
    "no relevant difference": "the interval holds 1, and lies below the smallest relevant odds "
    "ratio",
    "inconclusive": "the interval holds both 1 and the smallest relevant odds ratio",
}
"""Verdict -> its condition; the first that holds decides."""

RELEVANT_ODDS_RATIO: Final = 2.0
"""Smallest odds ratio that would change practice unless the plan says otherwise; a design value."""


@dataclass(frozen=True)
class Statement:
    """The verdict with a sentence that may be quoted and one that the numbers do not carry."""

    verdict: Verdict
    quote: str
    do_not_quote: str


@dataclass(frozen=True)
class LeftOut:
    """The answer without one centre, of two or more that tell something."""

    centre: str
    odds_ratio: Estimate | None
    verdict: Verdict


@dataclass(frozen=True)
class Primary:
    """All numbers of the primary comparison; None where the sample has no answer.

    ``odds_ratio`` is the Mantel-Haenszel one, ``exact_odds_ratio`` the conditional one, whose
    interval decides where the former does not exist. ``power`` is that at ``relevant``, ``size``
    the true level of the test, ``detectable`` the odds ratio found with power 0.8. ``opposed``
    names the centres whose own interval lies on the other side of 1 than the common one.
    """

    n: int
    positive: Estimate | None
    negative: Estimate | None
    odds_ratio: Estimate | None
    exact_odds_ratio: Estimate | None
    risk_difference: Estimate | None
    cmh: HypothesisTest | None
    cmh_corrected: HypothesisTest | None
    breslow_day: HypothesisTest | None
    relevant: float
    power: float | None
    size: float | None
    detectable: float | None
    opposed: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    statement: Statement


def primary_strata(patients: Patients, threshold: float) -> Strata:
    """The 2 x 2 table of one centre: steps 1 to 3. The only thing that leaves it.

    Raises:
        MetricError: a column is missing, or the threshold is not from 0 to 1.
    """
    chosen = patients.known("biopsy", "therapy", "score", "pcr")
    chosen &= (patients.column("biopsy") == 1) & (patients.column("therapy") == 1)
    treated = patients.where(chosen)
    calls = called(treated.column("score"), threshold)
    return Strata.from_rows(patients.centre, calls, treated.column("pcr"))


def compare(
    tables: Strata,
    *,
    relevant: float = RELEVANT_ODDS_RATIO,
    level: float = 0.95,
    pcr: PcrDefinition = DEFAULT_PCR,
) -> Primary:
    """Steps 4 and 5, from the sum of the centres' tables; ``pcr`` is how response was defined.

    Raises:
        MetricError: ``relevant`` is not above 1 and finite.
    """
    if not 1.0 < relevant < float("inf"):
        raise MetricError(f"relevant odds ratio: expected a number above 1, got {relevant}")
    alpha = 1 - level
    positive, negative = (
        wilson(int(tables.counts[:, group, 1].sum()), int(tables.counts[:, group].sum()), level)
        for group in (1, 0)
    )
    telling = tables.informative().names
    left_out = tuple(
        LeftOut(name, strata.odds_ratio(rest, level), verdict(rest, relevant, level))
        for name in (telling if len(telling) > 1 else ())
        for rest in [tables.without(name)]
    )
    result = verdict(tables, relevant, level)
    achieved = exact.power(tables, relevant, alpha=alpha)
    return Primary(
        n=tables.n,
        positive=positive,
        negative=negative,
        odds_ratio=strata.odds_ratio(tables, level),
        exact_odds_ratio=exact.odds_ratio(tables, level),
        risk_difference=strata.risk_difference(tables, level),
        cmh=strata.cmh(tables),
        cmh_corrected=strata.cmh(tables, corrected=True),
        breslow_day=strata.breslow_day(tables),
        relevant=relevant,
        power=achieved,
        size=exact.power(tables, 1.0, alpha=alpha),
        detectable=exact.detectable(tables, alpha=alpha),
        opposed=opposed(tables, level),
        left_out=left_out,
        statement=_statement(tables, result, left_out, relevant, achieved, level, pcr),
    )


def verdict(tables: Strata, relevant: float = RELEVANT_ODDS_RATIO, level: float = 0.95) -> Verdict:
    """Step 5.

    Breslow-Day's test rejects at 1 - ``level``, so that centres that do share an odds ratio are
    said to differ in one of twenty studies: the price of not averaging over centres that do not.

    >>> verdict(Strata.from_tables({"A": [[60, 20], [20, 60]], "B": [[15, 30], [30, 15]]}))
    'centres differ'
    """
    interval = _deciding_interval(tables, level)
    if interval is None:
        return "not compared"
    homogeneity = strata.breslow_day(tables)
    if homogeneity is not None and homogeneity.p_value < 1 - level:
        return "centres differ"
    if opposed(tables, level):
        return "centres differ"
    small = interval.high < relevant
    if interval.low > 1.0:
        return "smaller than relevant" if small else "supported"
    if interval.high < 1.0:
        return "reversed"
    return "no relevant difference" if small else "inconclusive"


def opposed(tables: Strata, level: float = 0.95) -> tuple[str, ...]:
    """Centres whose own interval lies wholly on the other side of 1 than the common interval.

    None if the common interval holds 1: it has no side then.
    """
    common = _side(_deciding_interval(tables, level))
    names = []
    for name, table in zip(tables.names, tables.counts, strict=True):
        alone = Strata((name,), table[None])
        if common * _side(_deciding_interval(alone, level)) < 0:
            names.append(name)
    return tuple(names)


def _side(interval: Estimate | None) -> int:
    """1 if the interval lies wholly above 1, -1 if wholly below, else 0."""
    if interval is None:
        return 0
    return int(interval.low > 1.0) - int(interval.high < 1.0)


def _deciding_interval(tables: Strata, level: float) -> Estimate | None:
    """Mantel-Haenszel's, and the exact one where every pair of patients points the same way."""
    return strata.odds_ratio(tables, level) or exact.odds_ratio(tables, level)


# --- words ---------------------------------------------------------------------------------------

_OVERSTATED: Final[dict[Verdict, str]] = {
    "not compared": "There is no difference between model-positive and model-negative patients: "
    "none were compared.",
    "centres differ": "The odds ratio of all centres together holds at each of them, or at another "
    "centre: they differ by more than chance allows.",
    "supported": "Patients whom the model calls negative do not need anti-HER2 therapy: all "
    "patients compared here received it, so that nothing is known of them without it.",
    "smaller than relevant": "The image tells apart who responds: the difference is smaller than "
    "the one that was fixed beforehand as the smallest to change practice.",
    "reversed": "The image says nothing about HER2, or the model's calls can be turned round: "
    "neither was asked, and the plan was to find more responses among model-positive patients.",
    "no relevant difference": "The image says nothing about HER2: compared was pCR at one "
    "threshold among biopsy-positive, treated patients, not agreement with the tumour.",
    "inconclusive": "There is no difference between model-positive and model-negative patients: "
    "this sample can neither show nor exclude a relevant one.",
}


def _statement(
    tables: Strata,
    result: Verdict,
    left_out: tuple[LeftOut, ...],
    relevant: float,
    achieved: float | None,
    level: float,
    pcr: PcrDefinition,
) -> Statement:
    groups = tables.counts.sum(axis=0)  # (group, outcome)
    centres = int(np.count_nonzero(tables.counts.sum(axis=(1, 2))))
    counts = (
        f"Among {tables.n} biopsy-HER2-positive patients treated with anti-HER2 drugs in "
        f"{centres} {'centre' if centres == 1 else 'centres'}, {groups[1, 1]} of "
        f"{groups[1].sum()} model-positive and {groups[0, 1]} of {groups[0].sum()} model-negative "
        f"patients had a pCR"
    )
    interval = _deciding_interval(tables, level)
    if interval is None:
        return Statement(
            result,
            f"{counts}; no centre has both groups and both outcomes, so that nothing compares "
            f"them. {PCR_DEFINITIONS[pcr]}.",
            _OVERSTATED[result],
        )
    kind = "Mantel-Haenszel" if strata.odds_ratio(tables, level) else "exact conditional"
    comparison = (
        f" ({kind} odds ratio, stratified by centre, {_number(interval.estimate)}, "
        f"{100 * level:g} % interval {_number(interval.low)} to {_number(interval.high)})"
    )
    meaning = {
        "not compared": "",
        "centres differ": _disagreement(tables, level),
        "supported": "the image-based call tells them apart where the biopsy does not",
        "smaller than relevant": "a difference, smaller than relevant: an odds ratio of "
        f"{relevant:g} or more is excluded",
        "reversed": "model-positive patients responded less often, against the direction of the "
        "plan",
        "no relevant difference": f"an odds ratio of {relevant:g} or more is excluded",
        "inconclusive": "the interval allows both no difference and a relevant one",
    }[result]
    shown = (
        "" if achieved is None else f"; the power to find {relevant:g} was {100 * achieved:.0f} %"
    )
    changed = [part.centre for part in left_out if part.verdict != result]
    fragile = f" The verdict changes without {', '.join(changed)}." if changed else ""
    quote = f"{counts}{comparison}: {meaning}{shown}.{fragile} {PCR_DEFINITIONS[pcr]}."
    return Statement(result, quote, _OVERSTATED[result])


def _disagreement(tables: Strata, level: float) -> str:
    test, against = strata.breslow_day(tables), opposed(tables, level)
    parts = []
    if test is not None and test.p_value < 1 - level:
        parts.append(
            "the centres do not share one odds ratio (Breslow-Day with Tarone's correction, "
            f"p {_probability(test.p_value)})"
        )
    if against:
        parts.append(f"the interval of {', '.join(against)} alone lies on the other side of 1")
    return " and ".join(parts)


def _number(value: float) -> str:
    return "infinity" if value == float("inf") else f"{value:.2f}"


def _probability(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"= {p:.4f}"
