"""Type I error and coverage of the response evaluator, by simulation at four centres.

    .venv/bin/python tests/benchmarks/response_simulation.py [--replicates N] [--seed S] [--json F]

The centres have 170, 130, 80 and 20 biopsy-positive, treated patients, of whom the model calls
about four in five positive, and pCR rates of their own; "small" has a quarter of that. "4 x 8" and
"12 x 8" are as many centres of eight patients each, half or four fifths of them model-positive,
with pCR rates that differ between centres by 30 points. Every number comes from the code that the
evaluator runs. A line says how often a test of 5 % rejects where nothing is to be found, or how
often an interval of 95 % holds the truth; "within" is three Monte-Carlo standard errors. Marked
lines are off by more: those with "at most" or "at least" may be, in that direction.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from her2_common.metrics import Estimate, auc_interval, wilson
from her2_common.response import combine, delong, exact, logistic, paired, strata, weighting
from her2_common.response.inference import clopper_pearson
from her2_common.response.primary import verdict as verdict_of
from her2_common.response.primary_section import between_centres
from her2_common.response.strata import Strata

CENTRES: Final = ("A", "B", "C", "D")
PATIENTS: Final = np.array([170, 130, 80, 20])
POSITIVE: Final = np.array([0.85, 0.80, 0.75, 0.80])
RESPONSE: Final = np.array([0.30, 0.45, 0.38, 0.25])
"""pCR rate of model-negative patients."""

ODDS: Final = 2.5
"""The odds ratio that is there to be found."""

GAP: Final = 0.18
"""The risk difference that is there to be found."""


@dataclass(frozen=True)
class Line:
    """How often something happened, against how often it should."""

    scenario: str
    name: str
    wanted: float
    happened: int
    replicates: int
    bound: str = ""

    @property
    def share(self) -> float:
        return self.happened / self.replicates

    @property
    def within(self) -> float:
        """Three Monte-Carlo standard errors."""
        return 3 * float(np.sqrt(self.wanted * (1 - self.wanted) / self.replicates))

    @property
    def good(self) -> bool:
        low = self.share >= self.wanted - self.within or self.bound == "at most"
        return low and (self.share <= self.wanted + self.within or self.bound == "at least")


class Tally:
    """Counts what happened over the replicates of one scenario."""

    def __init__(self, scenario: str) -> None:
        self.scenario = scenario
        self.counts: dict[tuple[str, float, str], list[bool]] = {}

    def rejects(self, name: str, p_value: float | None, bound: str = "") -> None:
        rejected = p_value is not None and p_value < 0.05
        self.counts.setdefault((name, 0.05, bound), []).append(rejected)

    def covers(self, name: str, interval: Estimate | None, truth: float, bound: str = "") -> None:
        holds = interval is None or interval.low <= truth <= interval.high
        self.counts.setdefault((name, 0.95, bound), []).append(holds)

    def share(self, name: str, wanted: float, happened: bool, bound: str = "") -> None:
        self.counts.setdefault((name, wanted, bound), []).append(happened)

    @property
    def replicates(self) -> int:
        """Of the line with most."""
        return max((len(seen) for seen in self.counts.values()), default=0)

    def lines(self) -> Iterator[Line]:
        for (name, wanted, bound), seen in self.counts.items():
            yield Line(self.scenario, name, wanted, sum(seen), len(seen), bound)


def draw_tables(
    rng: np.random.Generator,
    replicates: int,
    patients: np.ndarray,
    treated: Callable[[], np.ndarray],
) -> Iterator[Strata]:
    """Tables of four centres; ``treated()`` is the pCR rate of model-positive patients (4,)."""
    positive = rng.binomial(patients, POSITIVE, (replicates, 4))
    responders = np.stack(
        [rng.binomial(patients - positive, RESPONSE), rng.binomial(positive, treated())], axis=2
    )
    groups = np.stack([patients - positive, positive], axis=2)
    # (replicates, centre, group) twice -> (replicates, centre, group, outcome)
    counts = np.stack([groups - responders, responders], axis=3)
    for replicate in counts:
        yield Strata(CENTRES, replicate)


def with_odds(ratio: float) -> np.ndarray:
    return np.asarray(expit(np.log(RESPONSE / (1 - RESPONSE)) + np.log(ratio)))


def primary(rng: np.random.Generator, replicates: int, small: bool) -> Iterator[Line]:
    """The primary comparison: no effect, a common odds ratio, a common risk difference."""
    patients = PATIENTS // 4 if small else PATIENTS
    size = "small" if small else "four centres"
    null = Tally(f"{size}, no effect")
    for tables in draw_tables(rng, replicates, patients, lambda: RESPONSE):
        odds, gap = strata.odds_ratio(tables), strata.risk_difference(tables)
        null.rejects("CMH", p_of(strata.cmh(tables)))
        null.rejects("CMH, corrected", p_of(strata.cmh(tables, corrected=True)), "at most")
        null.rejects("Breslow-Day, Tarone", p_of(strata.breslow_day(tables)))
        null.covers("Mantel-Haenszel odds ratio", odds, 1.0)
        null.covers("risk difference", gap, 0.0)
        verdict = verdict_of(tables)
        null.share("verdict supported", 0.025, verdict == "supported", "at most")
        null.share("verdict centres differ", 0.05, verdict == "centres differ", "at most")
        null.covers("random effects", between(tables), 1.0, "at least")
    yield from null.lines()
    effect = Tally(f"{size}, odds ratio {ODDS}")
    power = []
    for index, tables in enumerate(draw_tables(rng, replicates, patients, lambda: with_odds(ODDS))):
        effect.covers("Mantel-Haenszel odds ratio", strata.odds_ratio(tables), ODDS)
        effect.rejects("CMH", p_of(strata.cmh(tables)))
        if index < replicates // 8:
            power.append(exact.power(tables, ODDS) or 0.0)
            effect.covers("exact odds ratio", exact.odds_ratio(tables), ODDS, "at least")
    for line in effect.lines():
        promised = float(np.mean(power))  # instead of 5 %: the power that the evaluator prints
        yield Line(line.scenario, "CMH, against its power", promised, line.happened,
                   line.replicates) if line.name == "CMH" else line  # fmt: skip
    gaps = Tally(f"{size}, risk difference {GAP}")
    for tables in draw_tables(rng, replicates, patients, lambda: RESPONSE + GAP):
        gaps.covers("risk difference", strata.risk_difference(tables), GAP)
    yield from gaps.lines()


def between(tables: Strata) -> Estimate | None:
    found = between_centres(tables)
    return None if found is None else found.mean


def tiny(rng: np.random.Generator, replicates: int) -> Iterator[Line]:
    """The risk difference over centres of eight patients each."""
    for centres in (4, 12):
        names = tuple(f"{k:02}" for k in range(centres))
        base = np.linspace(0.2, 0.5, centres)
        for share in (0.5, 0.8):
            for gap in (0.0, GAP, 0.4):
                tally = Tally(f"{centres} x 8, {100 * share:.0f} % positive")
                for _ in range(replicates):
                    positive = rng.binomial(8, share, centres)
                    a = rng.binomial(positive, base + gap)
                    c = rng.binomial(8 - positive, base)
                    cells = np.stack([8 - positive - c, c, positive - a, a], axis=1)
                    tables = Strata(names, cells.reshape(centres, 2, 2))
                    found = strata.risk_difference(tables)
                    tally.covers(f"risk difference {gap:g}", found, gap)
                yield from tally.lines()


def p_of(test: object) -> float | None:
    return getattr(test, "p_value", None)


def discrimination(rng: np.random.Generator, replicates: int) -> Iterator[Line]:
    """Two correlated scores with an AUC of 0.75 in each of four centres."""
    tally = Tally("two scores, AUC 0.75")
    shift = np.sqrt(2) * norm.ppf(0.75)
    centre = np.repeat(np.arange(4), PATIENTS)
    for _ in range(replicates):
        outcome = (rng.random(centre.size) < RESPONSE[centre]).astype(int)
        common = rng.normal(size=centre.size)
        scores = {
            name: norm.cdf(0.7 * common + np.sqrt(0.51) * rng.normal(size=centre.size)
                           + shift * outcome - shift / 2)
            for name in ("one", "other")
        }  # fmt: skip
        alone = {
            CENTRES[k]: delong.at_centre(
                {name: values[centre == k] for name, values in scores.items()},
                outcome[centre == k],
            )
            for k in range(4)
        }
        pooled = delong.ScoreSet.from_rows(scores, outcome)
        found = delong.discriminate(delong.placement_sums(scores, outcome, pooled), pooled)
        within = delong.stratified([part for part in alone.values() if part is not None])
        if found is None or within is None:
            continue
        tally.covers("AUC, pooled", auc_interval(pooled.histograms[0]), 0.75)
        tally.covers("AUC, stratified", within.interval("one"), 0.75)
        tally.rejects("paired DeLong", p_of(delong.compare(found, "one", "other").test))
        tally.rejects(
            "paired DeLong, stratified", p_of(delong.compare(within, "one", "other").test)
        )
        mixed = combine.combine_auc(alone, "one")
        tally.covers("AUC, random effects", None if mixed is None else mixed.mean, 0.75)
    yield from tally.lines()


def fitted(x: np.ndarray, y: np.ndarray) -> logistic.LogisticFit | None:
    """The model of all columns; None where the outcomes are separated (the centre of 20 can be)."""
    names = [f"column {index}" for index in range(x.shape[1])]
    result = logistic.solve(lambda beta: logistic.logistic_sums(x, y, beta), names)
    return result if isinstance(result, logistic.LogisticFit) else None


def models(rng: np.random.Generator, replicates: int) -> Iterator[Line]:
    """The logistic model and the weights: the score says nothing, hr and biopsy do."""
    tally = Tally("models")
    centre = np.repeat(np.arange(4), PATIENTS)
    place = np.stack([np.ones(centre.size)] + [(centre == k) * 1.0 for k in (1, 2, 3)], axis=1)
    while tally.replicates < replicates:
        hr, score = (rng.random(centre.size) < 0.5) * 1.0, rng.random(centre.size)
        biopsy = (rng.random(centre.size) < expit(score - 0.5)) * 1.0
        risk = expit(np.log(RESPONSE / (1 - RESPONSE))[centre] - 0.5 * hr + 0.8 * biopsy)
        pcr = (rng.random(centre.size) < risk) * 1.0
        # No effect of the group once the centre is balanced; both depend on it
        group = (rng.random(centre.size) < POSITIVE[centre] - 0.4) * 1.0
        idle = (rng.random(centre.size) < RESPONSE[centre]) * 1.0
        x = np.column_stack([place, hr, biopsy, score, biopsy * score])
        full, reduced, propensity = fitted(x, pcr), fitted(x[:, :6], pcr), fitted(place, group)
        if full is None or reduced is None or propensity is None:
            continue
        tally.rejects("likelihood ratio, score", p_of(logistic.likelihood_ratio(full, reduced)))
        for name, column, truth in (("hr", 4, -0.5), ("biopsy", 5, 0.8)):
            term = reduced.terms()[f"column {column}"]
            interval = Estimate(term.estimate, term.low, term.high)
            tally.covers(f"coefficient, {name}", interval, truth)
        sums = weighting.weight_sums(
            group, idle, expit(place @ propensity.beta), propensity.events / propensity.n
        )
        effect = weighting.effect(sums)
        tally.covers(
            "weighted risk difference",
            None if effect is None else effect.risk_difference,
            0.0,
            "at least",
        )
    yield from tally.lines()


def proportions(rng: np.random.Generator, replicates: int) -> Iterator[Line]:
    """Single rates and paired calls of 60 patients."""
    tally = Tally("60 patients")
    for k in rng.binomial(60, 0.2, replicates).tolist():
        tally.covers("Wilson, rate 0.2", wilson(k, 60), 0.2, "at least")
        tally.covers("Clopper-Pearson, rate 0.2", clopper_pearson(k, 60), 0.2, "at least")
    for gained, lost, _ in rng.multinomial(60, [0.15, 0.15, 0.7], replicates).tolist():
        tests = paired.mcnemar(gained, lost)
        tally.rejects("McNemar, exact", tests.exact.p_value, "at most")
        tally.rejects("McNemar, chi-square", p_of(tests.chi2))
        tally.covers("NRI component", paired.paired_difference(gained, lost, 60), 0.0, "at least")
    yield from tally.lines()


def simulate(replicates: int, seed: int) -> list[Line]:
    """All scenarios; the models and scores take a quarter of the replicates."""
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(6)]
    return [
        *primary(streams[0], replicates, small=False),
        *primary(streams[1], replicates, small=True),
        *tiny(streams[5], replicates // 2),
        *discrimination(streams[2], replicates // 4),
        *models(streams[3], replicates // 4),
        *proportions(streams[4], replicates),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--replicates", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    began = time.perf_counter()
    lines = simulate(options.replicates, options.seed)
    print("| scenario | what | wanted | happened | within | replicates | |")
    print("|---|---|---|---|---|---|---|")
    for line in lines:
        print(
            f"| {line.scenario} | {line.name} | {line.bound} {100 * line.wanted:.1f} % | "
            f"{100 * line.share:.1f} % | ±{100 * line.within:.1f} | {line.replicates} | "
            f"{'' if line.good else 'off'} |"
        )
    print(f"\n{time.perf_counter() - began:.1f} s, seed {options.seed}")
    if options.json:
        options.json.write_text(json.dumps([vars(line) for line in lines], indent=1) + "\n")


if __name__ == "__main__":
    main()
