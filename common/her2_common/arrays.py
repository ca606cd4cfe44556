"""The arrays of a message: how they travel and how they are read.

Flower moves every object of a message in a request of its own, and an Array is at least two: itself
and its pieces of 5 MiB. A request costs the SuperLink about as much time as half a megabyte. So the
arrays under one key travel in one ConfigRecord, {name: the bytes of a .npy file}, as long as they
are few bytes together, and as an ArrayRecord beyond that. Either is one object for all sites that
are sent the same: Flower names objects by their content.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from io import BytesIO
from typing import Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.constant import SType

ONE_RECORD: Final = 2**24
"""Bytes that travel in one record: as many as a few of Flower's pieces, so that a line which breaks
does not lose much. A design value."""


Arrays = ArrayRecord | ConfigRecord
"""Named arrays of a message."""


def arrays_record(arrays: Mapping[str, Array]) -> Arrays:
    """The arrays of a message under one key."""
    if sum(len(array.data) for array in arrays.values()) <= ONE_RECORD:
        return ConfigRecord({name: array.data for name, array in arrays.items()})
    record = ArrayRecord()  # filled one by one: else it copies
    for name, array in arrays.items():
        record[name] = array
    return record


def arrays_of(record: RecordDict, key: str) -> Mapping[str, object]:
    """What a message has under ``key``, each for ``read_array``; {} if it has nothing.

    Not by ``record.array_records``: to look there ties the record into a cycle of references, and
    the arrays of one message after the other would wait for the garbage collector.
    """
    content: Any = record.get(key)
    return content if isinstance(content, Arrays) else {}


_HEADER_BYTES: Final = 4096
_HEADERS: Final = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_array(value: object) -> np.ndarray | None:
    """An array of a message as a read-only view of its bytes, or None if it is anything else.

    numpy's own reader makes room for whatever shape the bytes claim, and opens archives; here the
    header is read alone, and must fit to the number of bytes that came.
    """
    if isinstance(value, Array):
        value = value.data if value.stype == SType.NUMPY else None
    if not isinstance(value, bytes):
        return None
    try:
        head = BytesIO(value[:_HEADER_BYTES])
        read_header = _HEADERS[np.lib.format.read_magic(head)]
        shape, fortran, dtype = read_header(head, max_header_size=_HEADER_BYTES)
        size = math.prod(shape)
        if (fortran and len(shape) > 1) or dtype.kind not in "iuf" or min(shape, default=0) < 0:
            return None
        if len(value) != head.tell() + size * dtype.itemsize:
            return None
        values = np.frombuffer(value, dtype, count=size, offset=head.tell())
        return values.reshape(shape)
    except Exception:  # a header is text, and whatever it holds may be wrong in many ways
        return None
