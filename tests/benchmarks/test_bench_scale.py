"""The projection to many sites, against lines that are known."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def module(name: str) -> ModuleType:
    """A script of this folder, under the name by which its neighbours import it."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


evidence = module("evidence")
scale = module("bench_scale")


def rows(start: float, slope: float, memory: int, grows: int) -> list[Any]:
    return [
        scale.Row(n, start + slope * n, 0.1, 300.0, 700.0, memory + grows * n) for n in (4, 8, 64)
    ]


def test_a_line_is_found_again() -> None:
    assert scale.line([4, 8, 64], [2.0 + 0.5 * n for n in (4, 8, 64)]) == pytest.approx((2.0, 0.5))


def test_a_thousand_sites_lie_on_the_line() -> None:
    found = scale.projection(rows(1.0, 0.02, 4_000_000, 500), 1000, copy=1e6, paper=100e6)
    assert found["coordinator_seconds"] == pytest.approx({"model": 21.0, "paper": 2100.0})
    assert found["gigabytes_a_round"] == pytest.approx({"model": 0.001, "paper": 0.1})
    assert found["line_seconds"] == pytest.approx({"model": 0.008, "paper": 0.8})
    # What a site adds to the peak does not grow with the model.
    assert found["peak_gigabytes"] == pytest.approx({"model": 0.0045, "paper": 0.4005})


def test_the_longest_bar_is_the_slowest_federation() -> None:
    lengths = [text.count("#") for text in scale.bars(rows(0.0, 0.01, 1, 1)).splitlines()]
    assert lengths == [2, 5, 40]
