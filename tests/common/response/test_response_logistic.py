"""Federated Newton against statsmodels on the pooled rows; designs, collinearity, separation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.optimize import linprog
from scipy.stats import chi2
from tests.common.response.cohorts import Rows, assert_same, assignments, cohort, parts

from her2_common.errors import MetricError
from her2_common.response import logistic
from her2_common.response.design import RESPONSE_TERMS, Design, design
from her2_common.response.logistic import LogisticFit, LogisticSums, Separation
from her2_common.response.patients import Patients

CENTRES = ("A", "B", "C", "D")


def tables(rows: Rows, centre: np.ndarray, names: Sequence[str] = CENTRES) -> list[Patients]:
    return [
        Patients(name, {column: values[centre == k] for column, values in rows.items()})
        for k, name in enumerate(names)
    ]


def asking(designs: Sequence[Design]) -> Callable[[np.ndarray], LogisticSums]:
    """The federation: every centre answers, the answers are added."""
    return lambda beta: logistic.total(
        [logistic.logistic_sums(part.x, part.outcome, beta) for part in designs]
    )


def fit(centres: Sequence[Patients], terms: Sequence[str], **options: object) -> LogisticFit:
    names = [centre.centre for centre in centres]
    designs = [design(centre, terms, names, **options) for centre in centres]
    return logistic.fit(asking(designs), designs[0].names)


def matrix(rows: Rows, centre: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The response model's columns, written out."""
    columns = {
        "intercept": np.ones(len(centre)),
        **{f"centre[{name}]": (centre == k) * 1.0 for k, name in enumerate(CENTRES) if k},
        **{name: rows[name] for name in ("therapy", "hr", "t", "n", "biopsy", "score")},
        "biopsy:score": rows["biopsy"] * rows["score"],
    }
    return list(columns), np.stack(list(columns.values()), axis=1)


def with_gaps(seed: int, n: int = 600) -> tuple[Rows, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = cohort(seed, n)
    for name in ("hr", "t", "score", "pcr"):
        rows[name] = np.where(rng.random(n) < 0.05, np.nan, rows[name])
    return rows, rng.integers(0, 4, n)


# --- statsmodels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_response_model_is_statsmodels(seed: int) -> None:
    rows, centre = with_gaps(seed)
    got = fit(tables(rows, centre), RESPONSE_TERMS)
    names, x = matrix(rows, centre)
    known = ~np.isnan(x).any(axis=1) & ~np.isnan(rows["pcr"])
    want = sm.Logit(rows["pcr"][known], x[known]).fit(disp=0, method="newton", tol=1e-14)
    assert got.names == tuple(names)
    assert (got.n, got.events) == (known.sum(), rows["pcr"][known].sum())
    assert_allclose(got.beta, want.params, rtol=1e-9, atol=1e-10)
    assert_allclose(got.covariance, want.cov_params(), rtol=1e-8, atol=1e-12)
    assert_allclose(got.log_likelihood, want.llf, rtol=1e-12)
    terms = got.terms(level=0.9)
    assert_allclose([c.se for c in terms.values()], want.bse, rtol=1e-9)
    assert_allclose([c.p_value for c in terms.values()], want.pvalues, rtol=1e-8)
    assert_allclose([[c.low, c.high] for c in terms.values()], want.conf_int(0.1), rtol=1e-8)
    ratio = terms["score"].odds_ratio()
    assert_allclose(ratio.estimate, np.exp(want.params[names.index("score")]), rtol=1e-9)
    assert ratio.low < ratio.estimate < ratio.high
    assert got.rounds <= 8


@pytest.mark.parametrize("seed", range(4))
def test_the_score_terms_are_tested_by_the_likelihood_ratio(seed: int) -> None:
    rows, centre = with_gaps(seed)
    centres = tables(rows, centre)
    full = fit(centres, RESPONSE_TERMS)
    reduced = fit(centres, RESPONSE_TERMS[:-2], complete_for=RESPONSE_TERMS)
    got = logistic.likelihood_ratio(full, reduced)
    _, x = matrix(rows, centre)
    known = ~np.isnan(x).any(axis=1) & ~np.isnan(rows["pcr"])
    want, less = (
        sm.Logit(rows["pcr"][known], part[known]).fit(disp=0, tol=1e-14) for part in (x, x[:, :-2])
    )
    statistic = 2 * (want.llf - less.llf)
    assert got.df == 2
    assert_allclose(got.statistic, statistic, rtol=1e-8, atol=1e-9)
    assert_allclose(got.p_value, chi2.sf(statistic, 2), rtol=1e-8)


def test_a_table_of_four_has_its_own_odds_ratio() -> None:
    """log(20 x 20 / (10 x 10)) with Woolf's standard error."""
    rows = {
        "biopsy": np.repeat([1.0, 1, 0, 0], [20, 10, 10, 20]),
        "pcr": np.repeat([1.0, 0, 1, 0], [20, 10, 10, 20]),
    }
    got = fit([Patients("A", rows)], ("biopsy",)).terms()["biopsy"]
    assert_allclose(
        [got.estimate, got.se], [np.log(4), np.sqrt(1 / 20 + 1 / 10 + 1 / 10 + 1 / 20)], rtol=1e-12
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 50), assignments(300))
def test_twelve_centres_are_the_pooled_rows(seed: int, site: np.ndarray) -> None:
    rows = cohort(seed, levels=seed % 5)
    terms = ("hr", "t", "biopsy", "score")
    federated = [
        design(Patients(str(k), part), terms, [str(k)]) for k, part in enumerate(parts(rows, site))
    ]
    pooled = [design(Patients("all", rows), terms, ["all"])]
    got, want = (logistic.fit(asking(part), federated[0].names) for part in (federated, pooled))
    for name in ("beta", "covariance", "log_likelihood", "n", "events"):
        assert_same(getattr(got, name), getattr(want, name))


# --- what has no answer --------------------------------------------------------------------------


def test_collinear_columns_are_named() -> None:
    rows = cohort(1) | {"n": np.minimum(cohort(1)["t"], 3)}
    rows["t"] = rows["n"]
    with pytest.raises(MetricError, match=r"collinear t, n$"):
        fit([Patients("A", rows)], ("hr", "t", "n"))
    constant = cohort(1) | {"hr": np.ones(300)}
    with pytest.raises(MetricError, match=r"hr is the same in all patients"):
        fit([Patients("A", constant)], ("hr", "t"))


def test_a_centre_without_patients_is_named() -> None:
    centres = [*tables(cohort(1), np.zeros(300, int), ("A",)), Patients("B", dict.fromkeys(
        ("pcr", "hr"), np.zeros(0)))]  # fmt: skip
    with pytest.raises(MetricError, match=r"not all 0, got centre\[B\]"):
        fit(centres, ("centre", "hr"))


@pytest.mark.parametrize("overlap", [False, True])
def test_separation_is_named(overlap: bool) -> None:
    """Everyone with the biopsy responds; ``overlap``: nobody else decides it (quasi-complete)."""
    rows = cohort(2)
    rows["pcr"] = np.where(rows["biopsy"] == 1, 1.0, rows["pcr"] if overlap else 0.0)
    part = design(Patients("A", rows), ("hr", "biopsy"), ["A"])
    assert logistic.solve(asking([part]), part.names) == Separation(("biopsy",))
    with pytest.raises(MetricError, match="got biopsy predicting the outcome with certainty") as e:
        logistic.fit(asking([part]), part.names)
    assert "Firth" in e.value.hint


def test_a_score_that_separates_is_named() -> None:
    rows = cohort(3)
    rows["pcr"] = (rows["score"] > 0.5).astype(float)
    part = design(Patients("A", rows), ("hr", "score"), ["A"])
    assert logistic.solve(asking([part]), part.names).columns[-1] == "score"


def separable(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether some combination of columns never points to the wrong outcome, by linear programming.

    Konis, Linear programming algorithms for detecting separated data (2007).
    """
    signed = (2 * y - 1)[:, None] * x
    best = linprog(
        -signed.sum(axis=0), A_ub=-signed, b_ub=np.zeros(len(y)), bounds=[(-1, 1)] * x.shape[1]
    )
    return bool(-best.fun > 1e-7)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**20))
def test_separation_is_found_where_it_is_and_nowhere_else(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, columns = int(rng.integers(2, 40)), int(rng.integers(1, 5))
    x = np.column_stack(
        [np.ones(n)]
        + [
            (rng.random(n) < rng.random()) * 1.0
            if rng.random() < 0.7
            else rng.random(n) * rng.choice([1, 100])
            for _ in range(columns - 1)
        ]
    )
    y = (rng.random(n) < rng.choice([0.1, 0.3, 0.5])) * 1.0
    names = [f"column {index}" for index in range(columns)]

    def solve() -> LogisticFit | Separation:
        return logistic.solve(lambda beta: logistic.logistic_sums(x, y, beta), names)

    if np.linalg.matrix_rank(x) < columns or y.min() == y.max():
        with pytest.raises(MetricError, match="logistic: expected"):
            solve()
    else:
        assert isinstance(solve(), Separation) == separable(x, y)


def test_strong_effects_and_rare_events_are_no_separation() -> None:
    """One event in 200,000 without the factor, half with it: finite, and found."""
    rows = {
        "biopsy": np.repeat([0.0, 0, 1, 1], [199_999, 1, 20, 20]),
        "pcr": np.repeat([0.0, 1, 0, 1], [199_999, 1, 20, 20]),
    }
    got = fit([Patients("A", rows)], ("biopsy",))
    assert_allclose(got.beta, [-np.log(199_999), np.log(199_999)], rtol=1e-9)


def test_one_outcome_has_no_model() -> None:
    rows = cohort(1) | {"pcr": np.ones(300)}
    with pytest.raises(MetricError, match="got 300 events in 300 patients"):
        fit([Patients("A", rows)], ("hr",))


# --- designs -------------------------------------------------------------------------------------


def test_columns_are_those_of_the_terms() -> None:
    rows = {"pcr": [1, 0, np.nan], "hr": [1, 0, 1], "score": [0.5, 0.25, 0.1]}
    got = design(Patients("B", rows), ("centre", "hr:score", "centre:hr"), ("A", "B", "C"))
    assert got.names == (
        "intercept", "centre[B]", "centre[C]", "hr:score", "centre[B]:hr", "centre[C]:hr"
    )  # fmt: skip
    assert got.x.tolist() == [[1, 1, 0, 0.5, 1, 0], [1, 1, 0, 0, 0, 0]]
    assert got.outcome.tolist() == [1, 0]
    assert got.kept.tolist() == [True, True, False]


def test_cells_count_every_pair_of_flags_by_outcome() -> None:
    rows = cohort(4, 80)
    part = design(Patients("A", rows), ("hr", "biopsy", "score"), ["A"])
    cells = set(part.cells().tolist())
    want = {
        int(np.sum((rows["pcr"] == y) & (rows["hr"] == h) & (rows["biopsy"] == b)))
        for y in (0, 1)
        for h in (0, 1)
        for b in (0, 1)
    }
    assert want <= cells
    assert cells <= want | {0} | {
        int(np.sum((rows["pcr"] == y) & (rows[name] == v)))
        for y in (0, 1)
        for name in ("hr", "biopsy")
        for v in (0, 1)
    } | {int(np.sum(rows["pcr"] == y)) for y in (0, 1)}


@pytest.mark.parametrize(
    ("terms", "centres", "message"),
    [
        (("tumour",), ("A",), "got 'tumour'"),
        (("pcr",), ("A",), "other than the outcome"),
        (("hr", "hr"), ("A",), "each once"),
        (("hr",), ("B",), "with A among them"),
        (("hr",), ("A", "A"), "unique"),
        (("age",), ("A",), "expected a column age"),
    ],
)
def test_impossible_designs_are_refused(terms: tuple, centres: tuple, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        design(Patients("A", cohort(1, 10)), terms, centres)


def test_sums_that_do_not_fit_are_refused() -> None:
    x, y = np.ones((3, 2)), np.array([0, 1, 1])
    for bad_x, bad_y, bad_beta in (
        (x, y[:-1], np.zeros(2)),
        (x, y, np.zeros(3)),
        (x * np.nan, y, np.zeros(2)),
        (x, y * 2, np.zeros(2)),
        (x, y, np.array([0, np.inf])),
    ):
        with pytest.raises(MetricError, match="logistic: expected"):
            logistic.logistic_sums(bad_x, bad_y, bad_beta)
    sums = logistic.logistic_sums(x, y, np.zeros(2))
    assert sums.cells().tolist() == [1, 2]
    assert_same(sums + LogisticSums.empty(2), sums)
    with pytest.raises(MetricError, match="expected 2 columns"):
        sums + LogisticSums.empty(3)
    with pytest.raises(MetricError, match="shapes"):
        LogisticSums(1, 1, 0.0, np.zeros(2), np.zeros((3, 3)))
    with pytest.raises(MetricError, match="expected 1 columns, got 2"):
        logistic.fit(lambda beta: sums, ("intercept",))
    with pytest.raises(MetricError, match="at least one centre"):
        logistic.total([])
    assert_same(logistic.total({"A": sums, "B": sums}), sums + sums)


def test_models_that_are_not_nested_are_refused() -> None:
    centres = tables(cohort(1), np.zeros(300, int), ("A",))
    full, other = fit(centres, ("hr", "biopsy")), fit(centres, ("score",))
    fewer = fit(tables(cohort(1, 200), np.zeros(200, int), ("A",)), ("hr",))
    with pytest.raises(MetricError, match="reduced model within"):
        logistic.likelihood_ratio(full, other)
    with pytest.raises(MetricError, match="reduced model within"):
        logistic.likelihood_ratio(full, full)
    with pytest.raises(MetricError, match="same patients"):
        logistic.likelihood_ratio(full, fewer)
