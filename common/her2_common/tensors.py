"""Writing safetensors without a copy of the tensors, which their library's own writer makes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, BinaryIO, Final

import numpy as np

_DTYPES: Final = {
    "bool": "BOOL",
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
}


def write_tensors(
    file: BinaryIO, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> str:
    """Write a safetensors file; returns its SHA-256, hex. Reading: safetensors.safe_open.

    The tensors are little endian and contiguous, as the file has them.

    Raises:
        KeyError: a tensor whose type the format does not have.
        OSError: it cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, array in tensors.items():
        begin, end = end, end + array.nbytes
        header[name] = {
            "dtype": _DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    contents: list[bytes | memoryview] = [len(text).to_bytes(8, "little"), text]
    contents += [array.reshape(-1).view(np.uint8).data for array in tensors.values()]
    digest = hashlib.sha256()
    for content in contents:
        file.write(content)
        digest.update(content)
    return digest.hexdigest()
