"""What tests look at in messages."""

from __future__ import annotations

import numpy as np
from flwr.app import RecordDict

from her2_common.arrays import arrays_of, read_array


def arrays_in(content: RecordDict, key: str) -> dict[str, np.ndarray]:
    """Copies of the arrays of a message under ``key``, each of which can be read."""
    arrays = {name: read_array(value) for name, value in arrays_of(content, key).items()}
    assert all(array is not None for array in arrays.values())
    return {name: np.array(array) for name, array in arrays.items()}
