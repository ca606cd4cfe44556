"""Logistic regression with Firth's penalty: finite where the outcomes are separated.

The likelihood is multiplied by the square root of the information's determinant (Jeffreys' prior),
which removes the leading bias of the estimates. The penalised score needs every patient's leverage
and with it the summed information, hence a second pass:

1. ``ask(beta)`` gives the sums of ``logistic`` at the coefficients, the information among them.
2. ``ask_leverage(beta, inverse)`` sends the inverse information out and returns the sum of the
   sites' ``LeverageSums``: what the penalty adds to the score, h (1/2 - p) x with the leverage h,
   and to its slope, h p (1 - p) x x', as if each patient were h patients more.
3. Gradient plus penalty is the penalised score; a step with the slope of both follows, until the
   step vanishes.

Sources: Firth, Biometrika 80 (1993) 27-38; Heinze and Schemper, Statistics in Medicine 21 (2002)
2409-2419.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from her2_common.errors import MetricError
from her2_common.response.inference import Integers, Matrix, Vector
from her2_common.response.logistic import (
    Ask,
    LogisticFit,
    LogisticSums,
    Separation,
    check,
    climb,
    solvable,
    solve,
)

STEPS: Final = 1000
"""Steps before giving up: about ten do, but the leverages move with the coefficients, and a model
too large for its patients can need hundreds."""

_CONVERGED: Final = 1e-11
"""Standard errors."""

_LONGEST: Final = 5.0
"""Log odds: no coefficient moves further in one step."""


@dataclass(frozen=True, eq=False)
class LeverageSums:
    """What the penalty adds: ``score`` (p,) and ``slope`` (p, p). ``+`` pools."""

    score: Vector
    slope: Matrix

    def __add__(self, other: LeverageSums) -> LeverageSums:
        if not isinstance(other, LeverageSums):
            return NotImplemented
        return LeverageSums(self.score + other.score, self.slope + other.slope)

    def cells(self) -> Integers:
        """None of its own: it counts no patients beyond those of ``LogisticSums``."""
        return np.zeros(0, np.int64)


AskLeverage = Callable[[Vector, Matrix], LeverageSums]
"""Coefficients (p,) and inverse information (p, p) -> the sum of all centres' ``LeverageSums``."""


def leverage_sums(x: Matrix, beta: ArrayLike, inverse: Matrix) -> LeverageSums:
    """Step 2 at a site: columns (n, p), coefficients (p,), inverse information of all (p, p).

    Raises:
        MetricError: the shapes do not fit.
    """
    b = np.asarray(beta, np.float64)
    if x.ndim != 2 or b.shape != x.shape[1:] or np.shape(inverse) != (b.size, b.size):
        raise MetricError(
            f"leverage: expected columns (n, p), coefficients (p,), inverse (p, p), "
            f"got {x.shape}, {b.shape}, {np.shape(inverse)}"
        )
    p = expit(x @ b)
    weight = p * (1 - p)
    leverage = weight * np.einsum("ni,ni->n", x @ inverse, x)
    return LeverageSums(x.T @ (leverage * (0.5 - p)), (x * (leverage * weight)[:, None]).T @ x)


def fit_penalised(
    ask: Ask, ask_leverage: AskLeverage, names: Sequence[str], *, held: Sequence[str] = ()
) -> LogisticFit:
    """The fit with Firth's penalty; columns named in ``held`` stay at 0 but keep their penalty.

    Two fits that differ in ``held`` alone give the penalised likelihood-ratio test
    (``logistic.likelihood_ratio``). Intervals and p-values of coefficients are Wald's, which are
    rough under separation: quote the test.

    Raises:
        MetricError: as ``logistic.solve``, but not for separation; an unknown column held.
    """
    if unknown := set(held) - set(names):
        raise MetricError(f"held: expected columns of the model, got {', '.join(sorted(unknown))}")
    free = np.array([name not in held for name in names])
    beta = np.zeros(len(names))
    sums = ask(beta)
    check(sums, names)
    for rounds in range(1, STEPS + 1):
        with solvable():
            inverse = np.linalg.inv(sums.hessian).astype(np.float64)
        penalty = ask_leverage(beta, inverse)
        score = (sums.gradient + penalty.score)[free]
        step = np.zeros(len(names))
        with solvable():
            step[free] = np.linalg.solve((sums.hessian + penalty.slope)[np.ix_(free, free)], score)
        if float(np.sqrt(max(0.0, float(step[free] @ score)))) <= _CONVERGED:
            covariance = np.zeros_like(inverse)
            with solvable():
                covariance[np.ix_(free, free)] = np.linalg.inv(sums.hessian[np.ix_(free, free)])
            return LogisticFit(
                tuple(names), beta, covariance, _penalised(sums), sums.n, sums.events, rounds,
                penalised=True, held=tuple(held),
            )  # fmt: skip
        step *= min(1.0, _LONGEST / float(np.abs(step).max()))
        beta, sums = climb(ask, beta, step, sums, _penalised)
    raise MetricError(f"Firth: expected convergence within {STEPS} rounds, got none")


def fit_or_penalise(ask: Ask, ask_leverage: AskLeverage, names: Sequence[str]) -> LogisticFit:
    """The ordinary fit, and the penalised one where the outcomes are separated.

    Raises:
        MetricError: as ``logistic.solve``.
    """
    result = solve(ask, names)
    return fit_penalised(ask, ask_leverage, names) if isinstance(result, Separation) else result


def _penalised(sums: LogisticSums) -> float:
    sign, log_determinant = np.linalg.slogdet(sums.hessian)
    return sums.log_likelihood + 0.5 * float(log_determinant) if sign > 0 else -np.inf
