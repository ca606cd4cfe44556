"""Arrays of a message: few bytes in one record, many as Flower's arrays, both read alike."""

from __future__ import annotations

import io
import tracemalloc
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.common.test_vectors import array_of, claim_of_400_terabytes

from her2_common import arrays as module
from her2_common.arrays import arrays_of, arrays_record, read_array

some = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.uint8, np.int32]), hnp.array_shapes(min_side=0)
)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text(max_size=9), some, max_size=4), st.sampled_from([0, 400, 10**6]))
def test_arrays_come_back_bit_for_bit(sent: dict[str, np.ndarray], limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ONE_RECORD", limit)
        record = arrays_record({name: Array(array) for name, array in sent.items()})
    got = arrays_of(RecordDict({"arrays": record}), "arrays")
    assert got.keys() == sent.keys()
    for name, array in sent.items():
        found = read_array(got[name])
        assert found is not None
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == array.tobytes()


def test_few_bytes_are_one_object() -> None:
    arrays = {name: Array(np.full(9, k, np.float32)) for k, name in enumerate(("us", "head"))}
    assert len(get_all_nested_objects(arrays_record(arrays))) == 1
    assert len(get_all_nested_objects(ArrayRecord(arrays))) == 5  # two arrays, a piece of each


def test_many_bytes_are_arrays_of_flower(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {name: Array(np.zeros(1000, np.uint8)) for name in ("us", "head")}
    whole = sum(len(array.data) for array in arrays.values())
    monkeypatch.setattr(module, "ONE_RECORD", whole)
    assert isinstance(arrays_record(arrays), ConfigRecord)
    monkeypatch.setattr(module, "ONE_RECORD", whole - 1)
    assert isinstance(arrays_record(arrays), ArrayRecord)


@pytest.mark.parametrize("value", [1, 2.5, True, "text", b"", b"noise", [b"a", b"b"], [1.0], []])
def test_a_value_that_is_no_array_is_none(value: Any) -> None:
    record = RecordDict({"scores": ConfigRecord({"cells": value})})
    assert read_array(arrays_of(record, "scores")["cells"]) is None


def test_what_is_not_there_has_no_arrays() -> None:
    assert arrays_of(RecordDict(), "scores") == {}
    assert arrays_of(RecordDict({"scores": ConfigRecord({})}), "scores") == {}


def test_what_is_claimed_costs_no_memory() -> None:
    """A shape of 400 TB, and of 40 MB that numpy's own reader would make room for."""
    stream = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**7,)}
    np.lib.format.write_array_header_1_0(stream, header)
    for content in (claim_of_400_terabytes(), stream.getvalue()):
        tracemalloc.start()
        try:
            assert read_array(array_of(content)) is None
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 100_000


@pytest.mark.parametrize("inline", [False, True])
def test_an_array_is_read_without_a_copy(inline: bool) -> None:
    array = Array(np.arange(10**6, dtype=np.float32))
    tracemalloc.start()
    try:
        values = read_array(array.data if inline else array)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert values is not None
    assert values[-1] == 10**6 - 1
    assert not values.flags.writeable
    assert peak < 100_000
