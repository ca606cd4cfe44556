"""Firth's penalty against its theorem for tables and a maximiser of the penalised likelihood."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import chi2
from tests.common.response.cohorts import Rows, added, assert_same, assignments, cohort, parts

from her2_common.errors import MetricError
from her2_common.response import firth, logistic
from her2_common.response.design import Design, design
from her2_common.response.logistic import LogisticFit
from her2_common.response.patients import Patients


def fit(designs: Sequence[Design], held: Sequence[str] = ()) -> LogisticFit:
    return firth.fit_penalised(*asking(designs), designs[0].names, held=held)


def asking(designs: Sequence[Design]) -> tuple[logistic.Ask, firth.AskLeverage]:
    return (
        lambda beta: logistic.total(
            [logistic.logistic_sums(part.x, part.outcome, beta) for part in designs]
        ),
        lambda beta, inverse: added(firth.leverage_sums(part.x, beta, inverse) for part in designs),
    )


def one(rows: Rows, terms: Sequence[str]) -> list[Design]:
    return [design(Patients("A", rows), terms, ["A"])]


def table(a: int, b: int, c: int, d: int) -> Rows:
    """Biopsy-positive with and without pCR, biopsy-negative with and without."""
    counts = [a, b, c, d]
    return {"biopsy": np.repeat([1.0, 1, 0, 0], counts), "pcr": np.repeat([1.0, 0, 1, 0], counts)}


def penalised(x: np.ndarray, y: np.ndarray, beta: np.ndarray) -> float:
    eta = x @ beta
    p = expit(eta)
    _, log_determinant = np.linalg.slogdet((x.T * (p * (1 - p))) @ x)
    return float(y @ eta - np.logaddexp(0, eta).sum() + log_determinant / 2)


@pytest.mark.parametrize("cells", [(8, 4, 3, 9), (7, 0, 3, 5), (6, 0, 0, 9), (1, 0, 0, 1)])
def test_a_table_of_four_gains_half_a_patient_in_each_cell(cells: tuple[int, ...]) -> None:
    """For a saturated model Jeffreys' prior is just that (Firth 1993, section 3.4)."""
    got = fit(one(table(*cells), ("biopsy",)))
    a, b, c, d = (count + 0.5 for count in cells)
    assert_allclose(got.beta, [np.log(c / d), np.log(a * d / (b * c))], rtol=1e-9, atol=1e-9)
    assert got.penalised


@pytest.mark.parametrize("separated", [False, True])
def test_the_fit_maximises_the_penalised_likelihood(separated: bool) -> None:
    rows = cohort(5, 80)
    if separated:
        rows["pcr"] = np.where(rows["biopsy"] == 1, 1.0, rows["pcr"])
    designs = one(rows, ("hr", "t", "biopsy", "score"))
    got = fit(designs)
    x, y = designs[0].x, designs[0].outcome
    want = minimize(
        lambda beta: -penalised(x, y, beta), np.zeros(5), method="BFGS", options={"gtol": 1e-7}
    )
    assert_allclose(got.beta, want.x, atol=1e-5)
    assert got.log_likelihood >= -want.fun - 1e-12
    assert_allclose(got.log_likelihood, penalised(x, y, got.beta), rtol=1e-12)
    p = expit(x @ got.beta)
    weight = p * (1 - p)
    hat = np.sqrt(weight)[:, None] * x @ np.linalg.inv((x.T * weight) @ x)
    leverage = np.einsum("ni,ni->n", hat, np.sqrt(weight)[:, None] * x)
    assert_allclose(x.T @ (y - p + leverage * (0.5 - p)), 0, atol=1e-9)  # Firth's score
    assert_allclose(got.covariance, np.linalg.inv((x.T * weight) @ x), rtol=1e-8)


def test_a_held_column_stays_at_0_and_is_tested() -> None:
    rows = cohort(6, 80)
    rows["pcr"] = np.where(rows["biopsy"] == 1, 1.0, rows["pcr"])
    designs = one(rows, ("hr", "biopsy"))
    full, held = fit(designs), fit(designs, held=("biopsy",))
    assert held.beta[2] == 0
    assert held.terms() == {}  # without a profile there is no interval
    profiled = firth.profile(*asking(designs), held, ("hr",))
    assert list(profiled.terms()) == ["hr"]
    with pytest.raises(MetricError, match="expected a penalised fit and columns out of"):
        firth.profile(*asking(designs), held, ("biopsy",))
    x, y = designs[0].x, designs[0].outcome
    want = minimize(
        lambda free: -penalised(x, y, np.append(free, 0.0)), np.zeros(2), options={"gtol": 1e-7}
    )
    statistic = 2 * (full.log_likelihood + want.fun)
    got = logistic.likelihood_ratio(full, held)
    assert_allclose([got.statistic, got.p_value], [statistic, chi2.sf(statistic, 1)], rtol=1e-6)
    assert got.df == 1
    plain = logistic.fit(asking(one(rows, ("hr",)))[0], ("intercept", "hr"))
    with pytest.raises(MetricError, match="one kind"):
        logistic.likelihood_ratio(full, plain)
    with pytest.raises(MetricError, match="reduced model within"):
        logistic.likelihood_ratio(full, fit(one(rows, ("hr",))))  # another penalty
    with pytest.raises(MetricError, match="expected columns of the model, got tumour"):
        fit(designs, held=("tumour",))


def test_the_penalty_is_taken_only_where_it_is_needed() -> None:
    rows = cohort(7)
    ordinary = one(rows, ("hr", "biopsy"))
    got = firth.fit_or_penalise(*asking(ordinary), ordinary[0].names)
    assert not got.penalised
    assert_same(got, logistic.fit(asking(ordinary)[0], ordinary[0].names))
    separated = one(rows | {"pcr": rows["biopsy"]}, ("hr", "biopsy"))
    assert firth.fit_or_penalise(*asking(separated), separated[0].names).penalised


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 50), assignments(300), st.booleans())
def test_twelve_centres_are_the_pooled_rows(seed: int, site: np.ndarray, separated: bool) -> None:
    rows = cohort(seed, levels=seed % 5)
    if separated:
        rows["pcr"] = np.where(rows["biopsy"] == 1, 1.0, rows["pcr"])
    terms = ("hr", "biopsy", "score")
    federated = [
        design(Patients(str(k), part), terms, [str(k)]) for k, part in enumerate(parts(rows, site))
    ]
    got, want = fit(federated), fit(one(rows, terms))
    for name in ("beta", "covariance", "log_likelihood", "n", "events"):
        assert_same(getattr(got, name), getattr(want, name))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(MetricError, match="leverage: expected"):
        firth.leverage_sums(np.ones((3, 2)), np.zeros(2), np.eye(3))


# --- profile intervals ---------------------------------------------------------------------------

SEX2 = [
    ("000010", 1, 1), ("001000", 14, 2), ("001010", 3, 1), ("001100", 10, 8), ("001110", 12, 18),
    ("001111", 1, 0), ("010000", 44, 42), ("010001", 3, 0), ("010010", 0, 1), ("011000", 15, 1),
    ("011001", 1, 0), ("011010", 2, 0), ("011100", 7, 5), ("011110", 3, 6), ("101000", 2, 0),
    ("101010", 1, 0), ("101011", 1, 0), ("101100", 1, 2), ("101110", 0, 4), ("101111", 1, 0),
    ("110000", 5, 14), ("110010", 0, 1), ("111000", 3, 1), ("111110", 0, 2),
]  # fmt: skip
"""Women with and without urinary tract infection by age, oc, vic, vicl, vis, dia: R's logistf,
sex2; Heinze and Schemper (2002), section 4."""

LOGISTF = {
    "age": (-1.8277045, -0.4328451),
    "oc": (-0.7986318, 0.6507581),
    "vic": (1.4248338, 3.2325326),
    "vicl": (-3.0613215, -1.2704704),
    "vis": (-1.4743338, -0.1137542),
    "dia": (1.0835108, 6.8752016),
}
"""R: logistf(case ~ age + oc + vic + vicl + vis + dia, data = sex2, alpha = 0.1), as printed."""


def test_sex2_has_the_profile_intervals_that_r_prints() -> None:
    patterns = np.array([[1.0, *map(int, pattern)] for pattern, _, _ in SEX2])
    x = np.concatenate([np.repeat(patterns, [row[k] for row in SEX2], axis=0) for k in (1, 2)])
    y = np.repeat([1.0, 0.0], [sum(row[k] for row in SEX2) for k in (1, 2)])
    assert (len(y), y.sum()) == (239, 130)
    names = ("intercept", *LOGISTF)
    ask = (
        lambda beta: logistic.logistic_sums(x, y, beta),
        lambda beta, inverse: firth.leverage_sums(x, beta, inverse),
    )
    found = firth.profile(*ask, firth.fit_penalised(*ask, names), tuple(LOGISTF), level=0.9)
    assert_allclose(found.beta[[0, 6]], [0.12025405, 3.09601166], atol=1e-6)
    terms = found.terms()
    for name, want in LOGISTF.items():
        assert_allclose([terms[name].low, terms[name].high], want, atol=2e-6)
    assert terms["dia"].high - terms["dia"].estimate > 1.5 * (
        terms["dia"].estimate - terms["dia"].low
    )
    assert terms["dia"].p_value is None


@pytest.mark.parametrize("seed", range(3))
def test_a_bound_is_where_the_profile_has_fallen_by_half_a_quantile(seed: int) -> None:
    rows = cohort(seed, 60)
    rows["pcr"] = np.where(rows["biopsy"] == 1, 1.0, rows["pcr"])
    designs = one(rows, ("hr", "biopsy"))
    x, y = designs[0].x, designs[0].outcome
    found = firth.profile(*asking(designs), fit(designs), ("hr", "biopsy"))
    for index, name in ((1, "hr"), (2, "biopsy")):
        others = [k for k in range(3) if k != index]
        for bound in found.profiles[name]:

            def loss(
                free: np.ndarray, place: int = index, rest: list = others, at: float = bound
            ) -> float:
                beta = np.zeros(3)
                beta[place], beta[rest] = at, free
                return -penalised(x, y, beta)

            best = minimize(loss, found.beta[others], options={"gtol": 1e-8})
            fallen = 2 * (found.log_likelihood + best.fun)
            assert fallen == pytest.approx(chi2.ppf(0.95, 1), abs=1e-4)


def test_a_profile_takes_few_questions() -> None:
    """A site answers a budgeted number of them: ``policy.max_queries``."""
    rows = cohort(9, 200)
    rows["pcr"] = np.where(rows["biopsy"] == 1, 1.0, rows["pcr"])
    designs = one(rows, ("hr", "t", "n", "biopsy", "score"))
    found, asked = fit(designs), []
    sums, leverages = asking(designs)
    firth.profile(
        lambda beta: (asked.append(1), sums(beta))[1],
        lambda beta, inverse: (asked.append(1), leverages(beta, inverse))[1],
        found,
        found.names[1:],
    )
    assert len(asked) <= 5 * 2 * 2 * 10


def test_a_bound_that_is_not_found_is_infinite_and_never_too_near(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = cohort(2, 80)
    rows["pcr"] = np.where(rows["biopsy"] == 1, 1.0, rows["pcr"])
    designs = one(rows, ("hr", "biopsy"))
    monkeypatch.setattr(firth, "_PROFILE_STEPS", 1)
    found = firth.profile(*asking(designs), fit(designs), ("hr", "biopsy"))
    assert found.profiles == dict.fromkeys(("hr", "biopsy"), (-np.inf, np.inf))
    ratio = found.terms()["hr"].odds_ratio()
    assert (ratio.low, ratio.high) == (0, np.inf)
