"""Made-up cohorts, every way to split them over centres, and equality of nested results."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.special import expit

from her2_common.response.strata import Strata

Rows = dict[str, np.ndarray]

MOST_CENTRES = 12

BERKELEY = Strata.from_tables(
    {
        "A": [[512, 313], [89, 19]],
        "B": [[353, 207], [17, 8]],
        "C": [[120, 205], [202, 391]],
        "D": [[138, 279], [131, 244]],
        "E": [[53, 138], [94, 299]],
        "F": [[22, 351], [24, 317]],
    }
)
"""Men and women admitted and rejected by department: Bickel, Hammel and O'Connell, Science 187
(1975) 398-404."""


def cohort(seed: int, n: int = 300, *, levels: int = 0) -> Rows:
    """Rows in which biopsy, therapy, score and pCR depend on each other; ``levels`` makes ties."""
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.4
    biopsy = np.where(truth, rng.random(n) < 0.9, rng.random(n) < 0.05)
    therapy = biopsy & (rng.random(n) < 0.9)
    hr = rng.random(n) < 0.5
    score = expit(rng.normal(size=n) + 1.5 * truth - 0.7)
    if levels:
        score = np.round(score * levels) / levels
    pcr = rng.random(n) < expit(-1.2 + 1.4 * (truth & therapy) - 0.5 * hr)
    return {
        "pcr": pcr.astype(float),
        "score": score,
        "biopsy": biopsy.astype(float),
        "therapy": therapy.astype(float),
        "hr": hr.astype(float),
        "t": rng.integers(0, 5, n).astype(float),
        "n": rng.integers(0, 4, n).astype(float),
        "modalities": rng.integers(1, 8, n).astype(float),
    }


@st.composite
def assignments(draw: st.DrawFn, n: int) -> np.ndarray:
    """The centre (0 to 11) of each of n rows, some centres empty, of any sizes."""
    centres = draw(st.integers(1, MOST_CENTRES))
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    return rng.choice(centres, n, p=rng.dirichlet(np.full(centres, 0.6)))


def parts(rows: Mapping[str, np.ndarray], centre: np.ndarray) -> list[Rows]:
    """The rows of each of the twelve centres, in order; empty ones included."""
    return [
        {name: values[centre == index] for name, values in rows.items()}
        for index in range(MOST_CENTRES)
    ]


def added(values: Iterable[Any]) -> Any:
    """Their sum, without a start."""
    first, *others = values
    for other in others:
        first = first + other
    return first


def assert_same(got: Any, want: Any, tolerance: float = 1e-9, where: str = "") -> None:
    """Equality of results: numbers to ``tolerance``, all else exactly, None only where None is."""
    if dataclasses.is_dataclass(want):
        assert type(got) is type(want), where
        for field in dataclasses.fields(want):
            name = field.name
            assert_same(getattr(got, name), getattr(want, name), tolerance, f"{where}.{name}")
    elif isinstance(want, Mapping):
        assert list(got) == list(want), where
        for key in want:
            assert_same(got[key], want[key], tolerance, f"{where}[{key}]")
    elif isinstance(want, Sequence) and not isinstance(want, str):
        assert len(got) == len(want), where
        for index, (one, other) in enumerate(zip(got, want, strict=True)):
            assert_same(one, other, tolerance, f"{where}[{index}]")
    elif isinstance(want, float | np.ndarray):
        assert_allclose(got, want, rtol=tolerance, atol=tolerance, err_msg=where)
    else:
        assert got == want, f"{where}: {got} is not {want}"
