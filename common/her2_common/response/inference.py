"""What every analysis needs: tests, exact proportions, Holm, the E-value, the rule of small cells.

An estimate is ``her2_common.metrics.Estimate``; a test is ``HypothesisTest``. All tests are
two-sided unless they say otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, ndtr
from scipy.stats import beta

from her2_common.errors import MetricError
from her2_common.metrics import Estimate

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Integers = NDArray[np.int64]

MIN_CELL: Final = 10
"""Patients: the smallest count that is published unless a site's policy says otherwise."""


@dataclass(frozen=True)
class HypothesisTest:
    """A test: its statistic, degrees of freedom (None where it has none) and p-value."""

    statistic: float
    df: int | None
    p_value: float

    def as_dict(self) -> dict[str, float | None]:
        """``{"statistic", "df", "p_value"}``, the form of every test in a JSON file."""
        return {"statistic": self.statistic, "df": self.df, "p_value": self.p_value}


def chi_square(statistic: float, df: int) -> HypothesisTest:
    """The upper tail of the chi-square distribution.

    >>> round(chi_square(3.841459, 1).p_value, 4)
    0.05
    """
    return HypothesisTest(statistic, df, float(chdtrc(df, statistic)))


def z_test(z: float) -> HypothesisTest:
    """Both tails of the normal distribution.

    >>> round(z_test(-1.959964).p_value, 4)
    0.05
    """
    return HypothesisTest(z, None, float(2 * ndtr(-abs(z))))


def clopper_pearson(k: int, n: int, level: float = 0.95) -> Estimate | None:
    """The proportion k / n with its exact interval: never below its level, often above it.

    None for n = 0. Source: Clopper and Pearson, Biometrika 26 (1934) 404-413.

    Raises:
        MetricError: k is not from 0 to n, or the level is not between 0 and 1.

    >>> round(clopper_pearson(0, 10).high, 4)
    0.3085
    """
    if not 0 <= k <= n:
        raise MetricError(f"proportion: expected 0 <= k <= n, got k = {k}, n = {n}")
    if not 0.0 < level < 1.0:
        raise MetricError(f"level: expected a number between 0 and 1, got {level}")
    if n == 0:
        return None
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else float(beta.ppf(tail, k, n - k + 1))
    high = 1.0 if k == n else float(beta.isf(tail, k + 1, n - k))
    return Estimate(k / n, low, high)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values, in the order given: at or below alpha means rejected.

    The chance of any false rejection among the family stays at alpha, whatever the dependence.
    Source: Holm, Scandinavian Journal of Statistics 6 (1979) 65-70.

    Raises:
        MetricError: a p-value is not from 0 to 1.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    for name, p in p_values.items():
        if not 0.0 <= p <= 1.0:
            raise MetricError(f"p-value {name}: expected a number from 0 to 1, got {p}")
    adjusted: dict[str, float] = {}
    reached = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        reached = max(reached, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = reached
    return {name: adjusted[name] for name in p_values}


def e_value(risk_ratio: Estimate) -> tuple[float, float]:
    """How strong unmeasured confounding would have to be: ``(for the estimate, for the interval)``.

    The least risk ratio that a confounder would need with both the exposure and the outcome to
    move the estimate, or the bound of the interval nearer to 1, to no effect. 1 means that
    nothing is needed: the interval holds 1 already.

    Source: VanderWeele and Ding, Annals of Internal Medicine 167 (2017) 268-274.

    Raises:
        MetricError: the risk ratio or a bound is not a positive finite number.

    >>> [round(value, 2) for value in e_value(Estimate(3.9, 1.8, 8.7))]
    [7.26, 3.0]
    """
    values = (risk_ratio.estimate, risk_ratio.low, risk_ratio.high)
    if not all(0.0 < value < float("inf") for value in values):
        raise MetricError(f"risk ratio: expected positive finite numbers, got {values}")
    nearer = risk_ratio.low if risk_ratio.estimate >= 1 else risk_ratio.high
    crosses = risk_ratio.low <= 1 <= risk_ratio.high
    return _e_value(risk_ratio.estimate), 1.0 if crosses else _e_value(nearer)


def _e_value(ratio: float) -> float:
    away = max(ratio, 1 / ratio)
    return float(away + np.sqrt(away * (away - 1)))


# --- small cells ---------------------------------------------------------------------------------


class Additive(Protocol):
    """What may leave a site: it adds, and it tells every count of patients that it discloses."""

    def __add__(self, other: Any, /) -> Any: ...

    def cells(self) -> Integers:
        """Counts of patients that the receiver can read or derive, in one flat array."""
        ...


def smallest_cell(statistic: Additive) -> int | None:
    """The smallest count of patients that the statistic discloses, empty cells aside; None: none.

    A site compares it with its ``min_cell`` before anything leaves.
    """
    counts = statistic.cells()
    counts = counts[counts > 0]
    return int(counts.min()) if counts.size else None


def may_leave(statistic: Additive, min_cell: int = MIN_CELL) -> bool:
    """Whether every cell is empty or holds at least ``min_cell`` patients."""
    smallest = smallest_cell(statistic)
    return smallest is None or smallest >= min_cell


def binary(name: str, values: Any, length: int | None = None) -> NDArray[np.bool_]:
    """``values`` (n,) of 0 and 1 as booleans.

    Raises:
        MetricError: another shape, or another value.
    """
    array = np.asarray(values)
    if array.ndim != 1 or (length is not None and array.size != length):
        wanted = "one dimension" if length is None else f"shape ({length},)"
        raise MetricError(f"{name}: expected {wanted}, got shape {array.shape}")
    one: NDArray[np.bool_] = array == 1
    if not np.all(one | (array == 0)):
        raise MetricError(f"{name}: expected 0 or 1, got others")
    return one


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """A read-only copy, for the fields of frozen dataclasses."""
    copy = np.array(array)
    copy.flags.writeable = False
    return copy
