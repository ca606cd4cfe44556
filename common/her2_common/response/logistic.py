"""Logistic regression over centres: Newton's method on summed gradients and Hessians.

1. The coordinator sends coefficients, at first zeros.
2. Each site returns ``LogisticSums``: patients, events, log likelihood, gradient and Hessian of
   its rows at these coefficients.
3. The sums add up to those of the pooled rows; a Newton step gives the next coefficients. Steps
   2 and 3 repeat until the step vanishes, in about six rounds.

``fit`` takes a function that answers step 2 for all centres, whatever carries the messages:
``ask(beta)`` is the sum over centres. The caller's duties: every site uses the same columns in the
same order (``design``), and what leaves a site obeys its policy (``Design.cells``).

Columns that are linear combinations of others, and data in which some combination separates the
outcomes, have no finite answer: both are refused by name. For the latter see ``firth``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import eigh
from scipy.special import expit

from her2_common.errors import MetricError
from her2_common.metrics import Estimate, normal_quantile
from her2_common.response.design import INTERCEPT
from her2_common.response.inference import (
    HypothesisTest,
    Integers,
    Matrix,
    Vector,
    chi_square,
    frozen,
    z_test,
)

STEPS: Final = 60
"""Newton steps before giving up; separation shows after about twenty, others need six."""

_CONVERGED: Final = 1e-9
"""Standard errors: a step as small as this leaves an error of its square."""

_COLLINEAR: Final = 1e-10
"""Smallest eigenvalue of the columns' scaled cross-products, below which they are collinear."""

_SEPARATED: Final = 1e-8
"""Share of the information at 0 that is left in a direction in which the outcomes separate: all
patients who tell about it are predicted with certainty."""

_INVOLVED: Final = 1e-2
"""Least share of the largest component at which a column belongs to a direction."""


@dataclass(frozen=True, eq=False)
class LogisticSums:
    """Sums over patients at given coefficients: ``gradient`` (p,), ``hessian`` (p, p).

    The Hessian is that of minus the log likelihood (the information, p (1 - p) x x'). ``+`` pools.
    """

    n: int
    events: int
    log_likelihood: float
    gradient: Vector
    hessian: Matrix

    def __post_init__(self) -> None:
        gradient, hessian = np.asarray(self.gradient), np.asarray(self.hessian)
        if gradient.ndim != 1 or hessian.shape != (gradient.size, gradient.size):
            raise MetricError(
                "logistic sums: expected shapes (p,) and (p, p), "
                f"got {gradient.shape} and {hessian.shape}"
            )
        object.__setattr__(self, "gradient", frozen(gradient.astype(np.float64)))
        object.__setattr__(self, "hessian", frozen(hessian.astype(np.float64)))

    @classmethod
    def empty(cls, columns: int) -> LogisticSums:
        """No patients: the neutral element of ``+``."""
        return cls(0, 0, 0.0, np.zeros(columns), np.zeros((columns, columns)))

    def __add__(self, other: LogisticSums) -> LogisticSums:
        if not isinstance(other, LogisticSums):
            return NotImplemented
        if self.gradient.shape != other.gradient.shape:
            raise MetricError(
                f"logistic sums: expected {self.gradient.size} columns, got {other.gradient.size}"
            )
        return LogisticSums(
            self.n + other.n,
            self.events + other.events,
            self.log_likelihood + other.log_likelihood,
            self.gradient + other.gradient,
            self.hessian + other.hessian,
        )

    def cells(self) -> Integers:
        """Patients without and with the event; ``Design.cells`` tells what the columns add."""
        return np.array([self.n - self.events, self.events], np.int64)


def logistic_sums(x: Matrix, outcome: ArrayLike, beta: ArrayLike) -> LogisticSums:
    """Step 2 at a site: columns (n, p), outcome (n,) of 0 and 1, coefficients (p,).

    Raises:
        MetricError: the shapes do not fit, or a number is not finite.
    """
    y, b = np.asarray(outcome, np.float64), np.asarray(beta, np.float64)
    if x.ndim != 2 or y.shape != x.shape[:1] or b.shape != x.shape[1:]:
        raise MetricError(
            f"logistic: expected columns (n, p), outcome (n,), coefficients (p,), "
            f"got {x.shape}, {y.shape}, {b.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(b).all() and np.isin(y, (0, 1)).all()):
        raise MetricError("logistic: expected finite columns and outcomes of 0 or 1, got others")
    eta = x @ b
    p = expit(eta)
    return LogisticSums(
        n=int(y.size),
        events=int(y.sum()),
        log_likelihood=float(y @ eta - np.logaddexp(0.0, eta).sum()),
        gradient=x.T @ (y - p),
        hessian=(x * (p * (1 - p))[:, None]).T @ x,
    )


# --- the fit -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coefficient:
    """A log odds ratio with its interval, standard error and p-value.

    The interval is Wald's, or that of the penalised profile; the p-value is Wald's, and None of a
    penalised fit, whose test is the likelihood ratio.
    """

    estimate: float
    low: float
    high: float
    se: float
    p_value: float | None

    def odds_ratio(self) -> Estimate:
        """The same as an odds ratio for one unit of the column."""
        with np.errstate(over="ignore"):  # e^710 is infinite
            return Estimate(*(float(np.exp(v)) for v in (self.estimate, self.low, self.high)))


@dataclass(frozen=True, eq=False)
class LogisticFit:
    """A fitted model: ``beta`` (p,), ``covariance`` (p, p), by ``names``.

    ``log_likelihood`` is the penalised one where ``penalised`` says so; ``held`` names the columns
    that were held at 0. ``profiles`` holds intervals of a penalised fit, at ``level``, by column.
    """

    names: tuple[str, ...]
    beta: Vector
    covariance: Matrix
    log_likelihood: float
    n: int
    events: int
    rounds: int
    penalised: bool = False
    held: tuple[str, ...] = ()
    profiles: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def terms(self, level: float = 0.95) -> dict[str, Coefficient]:
        """Every coefficient that has an interval, by its column's name.

        All of an ordinary fit; of a penalised one those of ``profiles``, whose level is their own.
        """
        width = normal_quantile(level)
        result = {}
        for index, name in enumerate(self.names):
            value, se = float(self.beta[index]), float(np.sqrt(self.covariance[index, index]))
            if not self.penalised:
                p_value = z_test(value / se).p_value
                low, high = value - width * se, value + width * se
                result[name] = Coefficient(value, low, high, se, p_value)
            elif name in self.profiles:
                result[name] = Coefficient(value, *self.profiles[name], se, None)
        return result


@dataclass(frozen=True)
class Separation:
    """Why there is no fit: some combination of ``columns`` predicts the outcome with certainty."""

    columns: tuple[str, ...]


Ask = Callable[[Vector], LogisticSums]
"""Coefficients (p,) -> the sum of all centres' ``LogisticSums``."""


def solve(ask: Ask, names: Sequence[str]) -> LogisticFit | Separation:
    """Steps 1 to 3: the maximum-likelihood fit, or the columns that separate the outcomes.

    Raises:
        MetricError: no patients or one outcome, collinear columns (named), no convergence, or
            sums for another number of columns.
    """
    beta = np.zeros(len(names))
    sums = ask(beta)
    check(sums, names)
    start = sums.hessian
    for rounds in range(1, STEPS + 1):
        with solvable():
            step: Vector = np.linalg.solve(sums.hessian, sums.gradient).astype(np.float64)
            information = eigh(sums.hessian, start, eigvals_only=True)[0]
        if information < _SEPARATED:
            # What separates runs away by the same step each time, all else has settled
            involved = _involved(np.abs(step) * np.sqrt(np.diag(start)), names)
            return Separation(tuple(name for name in involved if name != INTERCEPT) or involved)
        # In standard errors: the Newton decrement
        size = float(np.sqrt(max(0.0, float(step @ sums.gradient))))
        if size <= _CONVERGED:
            with solvable():
                covariance = np.linalg.inv(sums.hessian).astype(np.float64)
            return LogisticFit(
                tuple(names),
                beta + step,
                covariance,
                sums.log_likelihood,
                sums.n,
                sums.events,
                rounds,
            )
        beta, sums = climb(ask, beta, step, sums)
    raise MetricError(f"logistic: expected convergence within {STEPS} rounds, got none")


@contextmanager
def solvable() -> Iterator[None]:
    """Raises:
    MetricError: the information cannot be inverted, which that of patients can be whose columns
        passed ``check``.
    """
    try:
        yield
    except np.linalg.LinAlgError:
        raise MetricError(
            "logistic: expected sums of the same patients in every round, got an information "
            "matrix that cannot be inverted"
        ) from None


def climb(
    ask: Ask,
    beta: Vector,
    step: Vector,
    now: LogisticSums,
    value: Callable[[LogisticSums], float] = lambda sums: sums.log_likelihood,
) -> tuple[Vector, LogisticSums]:
    """The step, halved until the value does not fall: ``(coefficients, their sums)``.

    The slack is for rounding, which near the optimum exceeds the gain.

    Raises:
        MetricError: no part of the step helps.
    """
    floor = value(now) - 1e-12 * (1 + abs(value(now)))
    for _ in range(STEPS):
        sums = ask(beta + step)
        if value(sums) >= floor:
            return beta + step, sums
        step = step / 2
    raise MetricError("logistic: expected a step that raises the likelihood, got none")


def check(sums: LogisticSums, names: Sequence[str]) -> None:
    """Refuse what no model can be fitted to; ``sums`` at coefficients of 0.

    Raises:
        MetricError: sums of another number of columns, one outcome, empty, constant or collinear
            columns.
    """
    if sums.gradient.size != len(names):
        raise MetricError(f"logistic: expected {len(names)} columns, got {sums.gradient.size}")
    if not 0 < sums.events < sums.n:
        raise MetricError(
            "logistic: expected patients with and without the event, "
            f"got {sums.events} events in {sums.n} patients"
        )
    scale = np.sqrt(np.diag(sums.hessian))
    if not np.all(scale > 0):
        empty = [name for name, size in zip(names, scale, strict=True) if not size > 0]
        raise MetricError(
            f"logistic: expected columns that are not all 0, got {', '.join(empty)}",
            hint="leave the term or the centre out",
        )
    correlation = sums.hessian / np.outer(scale, scale)
    if INTERCEPT in names:
        # A column whose product with the intercept is as large as can be is a multiple of it
        with_intercept = correlation[names.index(INTERCEPT)] ** 2
        alike = [
            name
            for name, share in zip(names, with_intercept, strict=True)
            if name != INTERCEPT and 1 - share < _COLLINEAR
        ]
        if alike:
            raise MetricError(
                f"logistic: {', '.join(alike)} {'is' if len(alike) == 1 else 'are'} the same in "
                "all patients, so that nothing is compared",
                hint="leave the term out",
            )
    values, vectors = np.linalg.eigh(correlation)
    null = vectors[:, values < _COLLINEAR]
    if null.size:
        raise MetricError(
            "logistic: expected columns of which none follows from the others, got collinear "
            f"{', '.join(_involved(np.abs(null).max(axis=1), names))}",
            hint="leave one of these terms out",
        )


def _involved(weights: Vector, names: Sequence[str]) -> tuple[str, ...]:
    least = _INVOLVED * weights.max()
    return tuple(name for name, weight in zip(names, weights, strict=True) if weight > least)


def fit(ask: Ask, names: Sequence[str]) -> LogisticFit:
    """``solve``, with separation refused by name.

    Raises:
        MetricError: as ``solve``, and where the outcomes are separated.

    >>> x = np.array([[1.0, 0], [1, 0], [1, 1], [1, 1]])
    >>> y = np.array([0, 1, 0, 1])
    >>> fit(lambda beta: logistic_sums(x, y, beta), ("intercept", "score")).beta.round(9).tolist()
    [0.0, 0.0]
    """
    result = solve(ask, names)
    if isinstance(result, Separation):
        raise MetricError(
            f"logistic: expected outcomes that overlap, got {', '.join(result.columns)} "
            "predicting the outcome with certainty",
            hint="fit with Firth's penalty, or leave the term out",
        )
    return result


def likelihood_ratio(full: LogisticFit, reduced: LogisticFit) -> HypothesisTest:
    """The likelihood-ratio test that the columns only ``full`` has are 0.

    Two penalised fits are compared by the penalised likelihood, the reduced one being the full
    model with columns held at 0 (Heinze and Schemper, Statistics in Medicine 21 (2002) 2409-2419).

    Raises:
        MetricError: the fits saw other patients, one is penalised and the other not, or the
            reduced model's columns are not a proper part of the full one's.
    """
    if (full.n, full.events, full.penalised) != (reduced.n, reduced.events, reduced.penalised):
        raise MetricError(
            "likelihood ratio: expected two fits of one kind to the same patients, "
            f"got {full.n} and {reduced.n} patients, penalised {full.penalised} and "
            f"{reduced.penalised}"
        )
    whole = set(full.names) - set(full.held)
    part = set(reduced.names) - set(reduced.held)
    same_penalty = not full.penalised or full.names == reduced.names
    if not part < whole or not same_penalty:
        raise MetricError(
            "likelihood ratio: expected a reduced model within the full one, "
            f"got {', '.join(sorted(part))} within {', '.join(sorted(whole))}"
        )
    gain = max(0.0, 2 * (full.log_likelihood - reduced.log_likelihood))
    return chi_square(gain, len(whole) - len(part))


def total(parts: Mapping[str, LogisticSums] | Sequence[LogisticSums]) -> LogisticSums:
    """The sum of the centres' answers, in the order given.

    Raises:
        MetricError: no centre answered.
    """
    answers = list(parts.values()) if isinstance(parts, Mapping) else list(parts)
    if not answers:
        raise MetricError("logistic: expected an answer from at least one centre, got none")
    result = answers[0]
    for answer in answers[1:]:
        result = result + answer
    return result
