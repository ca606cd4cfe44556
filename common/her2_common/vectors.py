"""The vectors of a run, and how they travel: whole in float32, or encoded.

A vector is a group of the model's parameters ("mg", "head", ...) or, with SCAFFOLD, the group's
control ("mg.control"). What a receiver expects of each follows from the run's plan and never from
the sender.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
from flwr.app import Array, RecordDict

from her2_common.arrays import Arrays, arrays_of, arrays_record, read_array
from her2_common.cases import MODALITIES
from her2_common.config import RunConfig
from her2_common.encoding import Encoded, encoded_bytes
from her2_common.errors import UpdateError
from her2_common.model import preset_sizes
from her2_common.strategy import Travels

CONTROL: Final = ".control"
"""Ends the name of a group's control."""

Vector = np.ndarray | Encoded
"""A float32 vector, or an encoded one."""


class Form(NamedTuple):
    """How a vector of ``size`` values travels; see her2_common.encoding."""

    size: int
    kind: Travels
    share: float


def whole_forms(plan: RunConfig) -> dict[str, Form]:
    """Every vector of a run, in float32."""
    sizes = preset_sizes(plan.preset, **plan.layout)
    kinds = ("", CONTROL) if plan.strategy.local.name == "scaffold" else ("",)
    return {g + kind: Form(n, "float32", 1.0) for kind in kinds for g, n in sizes.items()}


def up_forms(plan: RunConfig) -> dict[str, Form]:
    """How the changes of a run travel from a site."""
    return _forms(plan, plan.compression.up, plan.compression.keep)


def down_forms(plan: RunConfig) -> dict[str, Form]:
    """How the steps of a run's vectors travel to a site (float32: there are none)."""
    return _forms(plan, plan.compression.down, plan.compression.down_keep)


def _forms(plan: RunConfig, kind: Travels, share: float) -> dict[str, Form]:
    return {
        name: Form(form.size, kind, share if name.split(".")[0] in MODALITIES else 1.0)
        for name, form in whole_forms(plan).items()
    }


def vectors_record(vectors: Mapping[str, Vector]) -> Arrays:
    """Vectors, encoded or not, as a record."""
    return arrays_record(
        {
            name: Array(vector.data if isinstance(vector, Encoded) else vector)
            for name, vector in vectors.items()
        }
    )


def read_vectors(record: RecordDict, key: str, forms: Mapping[str, Form]) -> dict[str, Vector]:
    """The vectors of a message under ``key``, none if it has none; float32 ones are finite and
    read-only, and of the encoded ones the length is right, no more.

    Raises:
        UpdateError: "unknown group", "misshapen", "wrong type" or "not finite".
    """
    vectors: dict[str, Vector] = {}
    for name, array in arrays_of(record, key).items():
        if name not in forms:
            raise UpdateError("an unknown parameter group", reason="unknown group")
        size, kind, share = forms[name]
        values = read_array(array)
        if values is None:
            raise UpdateError(f"group {name}: not a numpy array", reason="misshapen")
        expected = np.dtype(np.float32 if kind == "float32" else np.uint8)
        length = size if kind == "float32" else encoded_bytes(size, kind, share)
        if values.dtype != expected:
            raise UpdateError(
                f"group {name}: expected {expected}, got {values.dtype}", reason="wrong type"
            )
        if values.shape != (length,):
            raise UpdateError(
                f"group {name}: expected shape ({length},), got {values.shape}", reason="misshapen"
            )
        if kind != "float32":
            vectors[name] = Encoded(values, size, kind, share)
        elif not (np.isfinite(values.min()) and np.isfinite(values.max())):  # NaN is both
            raise UpdateError(f"group {name}: holds NaN or infinity", reason="not finite")
        else:
            vectors[name] = values
    return vectors


def read_whole(record: RecordDict, key: str, plan: RunConfig) -> dict[str, np.ndarray]:
    """The whole vectors of an order, none if it has none.

    Raises:
        UpdateError: as ``read_vectors``.
    """
    read = read_vectors(record, key, whole_forms(plan))
    return {name: vector for name, vector in read.items() if isinstance(vector, np.ndarray)}


def read_steps(record: RecordDict, plan: RunConfig) -> dict[str, Encoded]:
    """The encoded steps of an order, none if it has none.

    Raises:
        UpdateError: as ``read_vectors``.
    """
    read = read_vectors(record, "steps", down_forms(plan))
    return {name: vector for name, vector in read.items() if isinstance(vector, Encoded)}
