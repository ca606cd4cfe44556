"""The whole analysis: over a wire, in any order, against statsmodels and scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, roc_auc_score
from statsmodels.stats.contingency_tables import StratifiedTable
from tests.common.response.cohorts import Rows, assert_same, assignments, cohort, parts

from her2_common.errors import MetricError, UpdateError
from her2_common.response.analysis import analyse
from her2_common.response.codec import pack, unpack
from her2_common.response.patients import Patients
from her2_common.response.plan import Model, Plan
from her2_common.response.pooling import Ask, ask_sources
from her2_common.response.queries import Query, Source, Statistic

N = 300
PLAN = Plan(min_cell=1, compare=("mg",))
THRESHOLD = 0.5


def rows_of(seed: int, n: int = N, levels: int = 1024) -> Rows:
    """A cohort in which the score is on the grid, and half of it has one from mammography."""
    rows = cohort(seed, n, levels=levels)
    rng = np.random.default_rng(seed + 1)
    rows["mg"] = np.where(rng.random(n) < 0.5, rng.integers(0, 1025, n) / 1024, np.nan)
    return rows


def sources(rows: Rows, centre: np.ndarray, plan: Plan = PLAN) -> list[Source]:
    return [
        Source(Patients(f"c{index:02}", part), plan, THRESHOLD)
        for index, part in enumerate(parts(rows, centre))
        if part["pcr"].size
    ]


def over_the_wire(given: list[Source]) -> Ask:
    """Sites in reverse order, every answer packed and unpacked."""

    def ask(query: Query) -> Mapping[str, Statistic | None]:
        answers = {}
        for source in reversed(given):
            statistic = source.answer(query)
            answers[source.centre] = (
                None if statistic is None else unpack(query, source.plan, pack(statistic))
            )
        return answers

    return ask


@settings(max_examples=4, deadline=None)
@given(centre=assignments(N), seed=st.integers(0, 2**16), levels=st.sampled_from([1, 8, 1024]))
def test_answers_over_a_wire_are_those_of_the_rows(
    centre: np.ndarray, seed: int, levels: int
) -> None:
    given = sources(rows_of(seed, levels=levels), centre)
    direct = analyse(ask_sources(given), PLAN, THRESHOLD)
    wired = analyse(over_the_wire(given), PLAN, THRESHOLD)
    assert_same(wired, direct)


@settings(max_examples=3, deadline=None)
@given(centre=assignments(N), seed=st.integers(0, 2**16))
def test_the_order_of_rows_and_a_centre_without_any_change_nothing(
    centre: np.ndarray, seed: int
) -> None:
    rows = rows_of(seed)
    shuffled = np.random.default_rng(seed).permutation(N)
    one = analyse(ask_sources(sources(rows, centre)), PLAN, THRESHOLD)
    mixed = {name: values[shuffled] for name, values in rows.items()}
    given = sources(mixed, centre[shuffled])
    empty = Patients("zz", {name: np.zeros(0) for name in rows})
    other = analyse(ask_sources([*given, Source(empty, PLAN, THRESHOLD)]), PLAN, THRESHOLD)
    assert other["centres"][-1] == "zz"
    del one["centres"], other["centres"]
    assert_same(other, one)


def test_the_numbers_are_those_of_statsmodels_and_scikit_learn() -> None:
    rows, centre = rows_of(11), np.random.default_rng(5).integers(0, 4, N)
    found = analyse(ask_sources(sources(rows, centre)), PLAN, THRESHOLD)
    treated = (rows["biopsy"] == 1) & (rows["therapy"] == 1)
    tables = []
    for index in range(4):
        chosen = treated & (centre == index)
        calls, pcr = rows["score"][chosen] >= THRESHOLD, rows["pcr"][chosen] == 1
        tables.append([[np.sum(calls & pcr), np.sum(calls & ~pcr)],
                       [np.sum(~calls & pcr), np.sum(~calls & ~pcr)]])  # fmt: skip
    oracle = StratifiedTable([np.array(table, float) for table in tables])
    low, high = oracle.oddsratio_pooled_confint()
    want = {"estimate": oracle.oddsratio_pooled, "low": low, "high": high}
    assert_same(found["primary"]["odds_ratio"], want)
    null = oracle.test_null_odds()
    assert_same(found["primary"]["cmh"]["p_value"], float(null.pvalue))
    equal = oracle.test_equal_odds()
    assert_same(found["primary"]["breslow_day"]["without_tarone"]["p_value"], float(equal.pvalue))
    assert_same(found["primary"]["breslow_day"]["p_value"],
                float(oracle.test_equal_odds(adjust=True).pvalue))  # fmt: skip
    assert_same(found["auc"]["imaging"]["estimate"], roc_auc_score(rows["pcr"], rows["score"]))
    assert_same(found["auc"]["biopsy"]["estimate"], roc_auc_score(rows["pcr"], rows["biopsy"]))
    assert_same(
        found["calibration"]["brier"]["estimate"], brier_score_loss(rows["pcr"], rows["score"])
    )
    x = np.column_stack(
        [np.ones(N), *((centre == k) * 1.0 for k in (1, 2, 3)), rows["therapy"], rows["hr"],
         rows["t"], rows["n"], rows["biopsy"], rows["score"], rows["biopsy"] * rows["score"]]
    )  # fmt: skip
    fit = sm.Logit(rows["pcr"], x).fit(disp=0, tol=1e-12)
    model = found["logistic"][0]
    assert_same([term["estimate"] for term in model["terms"].values()], fit.params.tolist(), 1e-7)
    assert_same([term["se"] for term in model["terms"].values()], fit.bse.tolist(), 1e-7)
    assert_same(model["log_likelihood"], float(fit.llf))
    small = sm.Logit(rows["pcr"], x[:, :-2]).fit(disp=0, tol=1e-12)
    assert_same(model["likelihood_ratio"]["statistic"], 2 * (fit.llf - small.llf), 1e-8)
    idi = fit.predict()[rows["pcr"] == 1] - small.predict()[rows["pcr"] == 1]
    assert_same(found["reclassification"]["idi"]["pcr"]["estimate"], float(idi.mean()), 1e-7)


def test_a_section_that_cannot_be_given_says_why() -> None:
    rows = rows_of(2, 200)
    rows["therapy"] = np.zeros(200)
    found = analyse(ask_sources(sources(rows, np.zeros(200, int))), PLAN, THRESHOLD, min_centres=1)
    assert found["primary"]["refused"] == "expected answers of a centre with patients, got 0"
    dropped = {"column": "therapy", "follows": [], "words": "therapy (0 in all patients)"}
    assert dropped in found["logistic"][0]["dropped"]
    assert found["auc"]["n"] == 200


def test_too_few_centres_give_no_pooled_number() -> None:
    given = sources(rows_of(3), np.random.default_rng(0).integers(0, 2, N))
    found = analyse(ask_sources(given), PLAN, THRESHOLD, min_centres=3)
    want = "expected answers of 3 centres with patients, got 2"
    for section in ("primary", "auc", "mcnemar", "discordance", "ipw"):
        assert found[section] == {"refused": want}, section
    assert found["logistic"] == [{"model": "response", "refused": want}]


@pytest.mark.parametrize(("own", "refused"), [([1, 1, 0, 3], False), ([1, 1, 0, 0], True)])
def test_a_subgroup_of_too_few_centres_is_not_given(own: list[int], refused: bool) -> None:
    """Everywhere are patients with MRI alone; half have what is their centre's ``own``, 0 for none.

    Where all these together come from two centres, the rest of the sum would tell of two.
    """
    given = []
    for number, modality in enumerate(own):
        rows = rows_of(number)
        of_its_own = (np.arange(N) % 2 == 0) & (modality > 0)
        rows["modalities"] = np.where(of_its_own, modality, 4.0)
        given.append(Source(Patients(f"c{number}", rows), PLAN, THRESHOLD))
    found = analyse(ask_sources(given), PLAN, THRESHOLD, min_centres=3)
    forest = {line["by"]: line for line in found["subgroups"]}["modalities"]
    if refused:
        assert forest["refused"] == "expected answers of 3 centres with patients, got fewer"
        return
    assert [line.get("suppressed", False) for line in forest["rows"]] == [True, True, False]
    why = "fewer than 3 centres have patients here, or tell of them"
    line = {"what": "subgroups modalities", "which": "modalities mg", "why": why}
    assert line in found["suppressed"]


def test_separated_outcomes_are_fitted_with_a_penalty() -> None:
    rows = rows_of(4)
    centre = np.random.default_rng(1).integers(0, 3, N)
    rows["pcr"][centre == 2] = 0.0
    found = analyse(ask_sources(sources(rows, centre)), PLAN, THRESHOLD)
    model = found["logistic"][0]
    assert model["penalised"]
    assert model["likelihood_ratio"]["df"] == 2
    assert found["auc"]["by_centre"]["c02"]["imaging"] is None


def test_the_default_model_answers_where_therapy_is_the_biopsy() -> None:
    """Every biopsy-positive patient treated, nobody else: the usual case."""
    rows, centre = rows_of(12, 600), np.arange(600) % 4
    rows["therapy"] = rows["biopsy"].copy()
    found = analyse(over_the_wire(sources(rows, centre)), PLAN, THRESHOLD)
    model = found["logistic"][0]
    assert [part["words"] for part in model["dropped"]] == ["therapy (follows from biopsy)"]
    x = np.column_stack(
        [np.ones(600), *((centre == k) * 1.0 for k in (1, 2, 3)), rows["hr"], rows["t"],
         rows["n"], rows["biopsy"], rows["score"], rows["biopsy"] * rows["score"]]
    )  # fmt: skip
    fit = sm.Logit(rows["pcr"], x).fit(disp=0, tol=1e-12)
    assert list(model["terms"])[4:] == ["hr", "t", "n", "biopsy", "score", "biopsy:score"]
    assert_same([term["estimate"] for term in model["terms"].values()], fit.params.tolist(), 1e-7)
    assert_same([term["se"] for term in model["terms"].values()], fit.bse.tolist(), 1e-7)
    smaller = sm.Logit(rows["pcr"], x[:, :-2]).fit(disp=0, tol=1e-12)
    test = model["likelihood_ratio"]
    assert (test["terms"], test["df"]) == (["score", "biopsy:score"], 2)
    assert_same(test["statistic"], 2 * (fit.llf - smaller.llf), 1e-7)


def test_of_treated_patients_alone_the_score_is_tested() -> None:
    rows, centre = rows_of(13, 900), np.arange(900) % 3
    chosen = (rows["biopsy"] == 1) & (rows["therapy"] == 1)
    rows = {name: values[chosen] for name, values in rows.items()}
    rows["t"] = centre[chosen] + 1.0  # one T a centre
    found = analyse(ask_sources(sources(rows, centre[chosen])), PLAN, THRESHOLD)
    model = found["logistic"][0]
    assert {part["column"]: part["follows"] for part in model["dropped"]} == {
        "biopsy": ["intercept"],
        "therapy": ["intercept"],
        "t": ["intercept", "centre[c01]", "centre[c02]"],
        "biopsy:score": ["score"],
    }
    assert (model["likelihood_ratio"]["terms"], model["likelihood_ratio"]["df"]) == (["score"], 1)
    assert [part["column"] for part in found["ipw"]["dropped"]] == ["t"]


def test_a_score_that_is_a_covariate_is_not_tested() -> None:
    rows, centre = rows_of(14), np.arange(N) % 3
    rows["score"] = rows["hr"].copy()
    found = analyse(ask_sources(sources(rows, centre)), PLAN, THRESHOLD)
    model = found["logistic"][0]
    assert {"column": "score", "follows": ["hr"], "words": "score (follows from hr)"} in (
        model["dropped"]
    )
    assert model["likelihood_ratio"]["terms"] == ["biopsy:score"]
    rows["score"] = rows["biopsy"].copy()
    model = analyse(ask_sources(sources(rows, centre)), PLAN, THRESHOLD)["logistic"][0]
    assert model["likelihood_ratio"] is None
    assert [part["column"] for part in model["dropped"]] == ["score", "biopsy:score"]


def test_separated_outcomes_of_an_aliased_model_are_penalised() -> None:
    rows, centre = rows_of(4), np.random.default_rng(1).integers(0, 3, N)
    rows["therapy"] = rows["biopsy"].copy()
    rows["pcr"][centre == 2] = 0.0
    model = analyse(ask_sources(sources(rows, centre)), PLAN, THRESHOLD)["logistic"][0]
    assert model["penalised"]
    assert model["likelihood_ratio"]["df"] == 2
    without = Model(name="response", terms=tuple(t for t in PLAN.models[0].terms if t != "therapy"),
                    tested=PLAN.models[0].tested)  # fmt: skip
    plan = PLAN.model_copy(update={"models": (without,)})
    other = analyse(ask_sources(sources(rows, centre, plan)), plan, THRESHOLD)["logistic"][0]
    assert_same(model["terms"], other["terms"], 1e-6)
    assert_same(model["likelihood_ratio"], other["likelihood_ratio"], 1e-6)


def test_a_query_that_the_plan_does_not_have_is_refused() -> None:
    source = sources(rows_of(5, 50), np.zeros(50, int))[0]
    with pytest.raises(MetricError, match="expected a model of the plan"):
        source.answer(Query("rows", "other"))
    with pytest.raises(MetricError, match="scores: expected one of biopsy, treated, mg"):
        source.answer(Query("scores", "us"))
    with pytest.raises(MetricError, match=r"beta of shape \(9,\)"):
        source.answer(Query("logistic", "response", ("c00", "zz"), arrays={"beta": np.zeros(3)}))


HOSTILE: list[tuple[Query, dict[str, Any], str]] = [
    (Query("tables"), {"calls": np.zeros((2, 2))}, "misshapen"),
    (Query("tables"), {"primary": np.full((2, 2), -1.0)}, "wrong count"),
    (Query("tables"), {"primary": np.full((2, 2), 0.5)}, "wrong count"),
    (Query("tables"), {"other": np.zeros(1)}, "misshapen"),
    (Query("rows", "response"), {"counts": np.array([np.nan, 1])}, "not finite"),
    (Query("rows", "response"), {"counts": np.array([1e300, 1])}, "wrong count"),
    (Query("scores", "treated"), {"histograms": np.zeros((2, 2, 1025))}, "misshapen"),
    (Query("weights", "propensity"), {"counts": np.ones((2, 2)), "weights": -np.ones(2)},
     "wrong count"),
    (Query("leverage", "response", arrays={"beta": np.zeros(2)}),
     {"score": np.zeros(2), "slope": np.array([[1.0, 2], [3, 4]])}, "misshapen"),
]  # fmt: skip


@pytest.mark.parametrize(("query", "arrays", "reason"), HOSTILE)
def test_a_hostile_answer_is_refused(query: Query, arrays: dict[str, Any], reason: str) -> None:
    with pytest.raises(UpdateError) as caught:
        unpack(query, PLAN, arrays)
    assert caught.value.reason == reason


def test_a_site_that_counts_its_patients_twice_is_refused() -> None:
    source = sources(rows_of(6, 80), np.zeros(80, int))[0]
    query = Query("scores", "biopsy")
    arrays = pack(source.answer(query))  # type: ignore[arg-type]
    arrays["own counts"] = arrays["own counts"] + 1
    with pytest.raises(UpdateError) as caught:
        unpack(query, PLAN, arrays)
    assert caught.value.reason == "wrong count"


# --- the plan ------------------------------------------------------------------------------------


def test_the_hash_of_a_plan_covers_every_choice() -> None:
    changed: dict[str, Any] = {
        "threshold": 0.5, "threshold_from": "typed at this analysis", "release_sha256": "a" * 64,
        "relevant_odds_ratio": 1.5, "models": (), "propensity": ("hr",),
        "subgroups": ("hr",), "compare": (), "net_benefit": (0.5,), "max_fpr": 0.5, "min_cell": 5,
        "min_centres": 2, "one_class_centres": "keep", "seed": 1, "pcr": "ypT0 ypN0",
    }  # fmt: skip
    fixed = {"population", "strata"}
    assert set(changed) | fixed == set(Plan.model_fields)
    with_it: dict[str, dict[str, Any]] = {
        "threshold_from": {"threshold": 0.5},
        "release_sha256": {"threshold": 0.5, "threshold_from": "release"},
    }
    plans = [Plan(**{key: value} | with_it.get(key, {})) for key, value in changed.items()]
    assert len({plan.sha256 for plan in [Plan(), *plans]}) == len(plans) + 1
    assert Plan().sha256 == Plan(min_cell=10).sha256


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"models": [{"name": "a", "terms": ["hr", "pcr"]}]}, "got 'pcr'"),
        ({"models": [{"name": "a", "terms": ["hr"], "tested": ["n"]}]}, "got 'n'"),
        ({"models": [{"name": "a", "terms": ["hr"], "tested": ["hr"]}]}, "got all"),
        ({"models": [{"name": "propensity", "terms": ["hr"]}]}, "another name"),
        ({"models": [Model(name="a", terms=("hr",))] * 2}, "different names"),
        ({"propensity": ["score"]}, "got 'score'"),
        ({"subgroups": ["hr", "hr"]}, "each once"),
        ({"threshold": 1.5}, "less than or equal to 1"),
    ],
)
def test_a_faulty_plan_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(**keys)
