"""Tensor shapes are checked at run time in every test (house style, rule 7).

The hook must be in place before the modules are imported for the first time, hence at the top of
the outermost conftest.py.
"""

from __future__ import annotations

import sys

from jaxtyping import install_import_hook

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
