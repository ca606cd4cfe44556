"""What holds for every test: how property tests draw, and that tensor shapes are checked.

Shapes are checked at run time (house style, rule 7). The hook must be in place before the modules
are imported for the first time, hence at the top of the outermost conftest.py.
"""

from __future__ import annotations

import sys

import pytest
from hypothesis import is_hypothesis_test
from jaxtyping import install_import_hook
from tests.properties import adjust, register_profiles

SHAPED = (
    "her2_common.hovertrans",
    "her2_common.swin",
    "her2_common.model",
    "her2_common.losses",
    "her2_client.augment",
    "her2_client.residency",
    "her2_client.cohort",
    "her2_client.engine",
    "her2_client.training",
)
"""The modules whose public functions name the shapes of tensors."""

if early := [name for name in SHAPED if name in sys.modules]:
    raise RuntimeError(f"expected no import of {', '.join(early)} before the shape checks")

# An int is a float, as every type checker has it (PEP 484).
install_import_hook(SHAPED, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

register_profiles()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("property tests")
    group.addoption(
        "--examples-times", type=int, default=1, help="as many examples as a test asks for, times N"
    )
    group.addoption("--examples-least", type=int, default=0, help="at least N examples a test")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    tests = {item.function for item in items if isinstance(item, pytest.Function)}
    for test in filter(is_hypothesis_test, tests):
        adjust(
            test,
            times=config.getoption("--examples-times"),
            least=config.getoption("--examples-least"),
        )
