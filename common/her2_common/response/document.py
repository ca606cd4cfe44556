"""Numbers as JSON: the forms of estimates, tests and rates, alike in every section."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from her2_common.errors import MetricError
from her2_common.metrics import Estimate, wilson
from her2_common.response.combine import RandomEffects
from her2_common.response.delong import AucDifference
from her2_common.response.inference import HypothesisTest
from her2_common.response.operating import Proportion

Json = dict[str, Any]


def number(value: float | None) -> float | None:
    """A finite number, or None: JSON has no infinity."""
    return None if value is None or not math.isfinite(value) else float(value)


def estimate(value: Estimate | None) -> Json | None:
    """``{"estimate", "low", "high"}``; a bound that is infinite is None."""
    if value is None:
        return None
    return {name: number(part) for name, part in value.as_dict().items()}


def test(value: HypothesisTest | None) -> Json | None:
    """``{"statistic", "df", "p_value"}``."""
    return None if value is None else dict(value.as_dict())


def rate(pcr: int, n: int) -> Json:
    """``{"pcr", "n", "rate"}`` with Wilson's interval."""
    return {"pcr": pcr, "n": n, "rate": estimate(wilson(pcr, n))}


def proportion(value: Proportion) -> Json:
    """``{"k", "n", "wilson", "exact"}``."""
    return {
        "k": value.k,
        "n": value.n,
        "wilson": estimate(value.wilson),
        "exact": estimate(value.exact),
    }


def difference(value: AucDifference) -> Json:
    """``{"difference", "statistic", "df", "p_value"}``; the test's are None without a variance."""
    tested = test(value.test) or {"statistic": None, "df": None, "p_value": None}
    return {"difference": estimate(value.difference), **tested}


def random_effects(value: RandomEffects | None, mean: str = "mean") -> Json | None:
    """The mean over centres (under the name ``mean``) and their heterogeneity."""
    if value is None:
        return None
    return {
        "centres": value.centres,
        mean: estimate(value.mean),
        "prediction": estimate(value.prediction),
        "tau2": value.tau2,
        "i2": value.i2,
        "q": test(value.q),
        "left_out": list(value.left_out),
    }


def section(build: Callable[[], Json]) -> Json:
    """What ``build`` returns, or ``{"refused": why}``."""
    try:
        return build()
    except MetricError as error:
        return {"refused": str(error)}
