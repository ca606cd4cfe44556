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
4. ``profile`` repeats 1 to 3 for the bounds of each coefficient: where the penalised likelihood,
   the other coefficients free, has fallen by half the quantile of chi-square. A bound takes about
   seven steps of two questions each.

Sources: Firth, Biometrika 80 (1993) 27-38; Heinze and Schemper, Statistics in Medicine 21 (2002)
2409-2419; Venzon and Moolgavkar, Applied Statistics 37 (1988) 87-94.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import chdtri, expit

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

_PROFILE_STEPS: Final = 30
"""Steps of one bound before giving up: about seven do."""

_ON_TARGET: Final = 1e-6
"""Log likelihood: how near to its target a bound is left."""

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
    (``logistic.likelihood_ratio``). ``profile`` adds the coefficients' intervals; Wald's would be
    symmetric where the likelihood is not.

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


def profile(
    ask: Ask,
    ask_leverage: AskLeverage,
    fit: LogisticFit,
    names: Sequence[str],
    level: float = 0.95,
) -> LogisticFit:
    """Step 4: the fit with profile intervals of the columns ``names``.

    Each bound is the end of the coefficient for which, the others at their best, the penalised
    log likelihood is half a quantile of chi-square (1 df) below its maximum: Newton's method on
    these p equations (Venzon and Moolgavkar), with the slope of step 3. A bound that is not found
    in 30 steps, which takes a continuous column that separates all outcomes, is infinite: wider
    than need be, never narrower.

    Raises:
        MetricError: the fit is not penalised, or a column is not one of its free ones.
    """
    free = [name for name in fit.names if name not in fit.held]
    if not fit.penalised or not set(names) <= set(free):
        raise MetricError(
            f"profile: expected a penalised fit and columns out of {', '.join(free)}, "
            f"got {', '.join(names)}"
        )
    search = _Search(ask, ask_leverage, fit, level)
    intervals = {name: (search.bound(name, -1), search.bound(name, 1)) for name in names}
    return replace(fit, profiles=intervals)


class _Search:
    """The bounds of one fit's profiles."""

    def __init__(self, ask: Ask, ask_leverage: AskLeverage, fit: LogisticFit, level: float) -> None:
        self.ask, self.ask_leverage, self.fit = ask, ask_leverage, fit
        self.free = [i for i, name in enumerate(fit.names) if name not in fit.held]
        self.target = fit.log_likelihood - 0.5 * float(chdtri(1, 1 - level))
        self.start = self._at(fit.beta)
        self.longest = np.maximum(_LONGEST, 2 * np.sqrt(np.diag(self.start[2])))

    def _at(self, beta: Vector) -> tuple[float, Vector, Matrix]:
        """Penalised log likelihood, its gradient and its inverse slope at the free columns."""
        sums = self.ask(beta)
        penalty = self.ask_leverage(beta, np.linalg.inv(sums.hessian).astype(np.float64))
        slope = (sums.hessian + penalty.slope)[np.ix_(self.free, self.free)]
        gradient = (sums.gradient + penalty.score)[self.free]
        return _penalised(sums), gradient, np.linalg.inv(slope).astype(np.float64)

    def bound(self, name: str, sign: int) -> float:
        """Where the profile of a column meets the target, below (-1) or above (1) the estimate;
        infinite where that is not found."""
        place = self.fit.names.index(name)
        index = self.free.index(place)
        beta = self.fit.beta.copy()
        value, gradient, inverse = self.start
        for _ in range(_PROFILE_STEPS):
            # Of all points at which the quadratic approximation has the target, the outermost
            room = 2 * (value - self.target) + float(gradient @ inverse @ gradient)
            towards = gradient.copy()
            towards[index] += sign * float(np.sqrt(max(room, 0.0) / inverse[index, index]))
            step = inverse @ towards
            if abs(value - self.target) <= _ON_TARGET and float(towards @ step) <= _ON_TARGET:
                return float(beta[place])
            step = step / max(1.0, float((np.abs(step) / self.longest).max()))
            beta[self.free] += step
            value, gradient, inverse = self._at(beta)
        return sign * np.inf


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
