"""The safetensors that we write are read by their own library."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load

from her2_common.tensors import write_tensors

KINDS = ["?", "<i1", "<u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"]
some = hnp.arrays(st.sampled_from(KINDS), hnp.array_shapes(min_dims=0, min_side=0))


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text("abc.:ü", min_size=1), some, max_size=4), st.booleans())
def test_tensors_come_back_bit_for_bit(tensors: dict[str, np.ndarray], noted: bool) -> None:
    stream = io.BytesIO()
    digest = write_tensors(stream, tensors, {"sha256": "x"} if noted else None)
    assert digest == hashlib.sha256(stream.getvalue()).hexdigest()
    got = load(stream.getvalue())
    assert got.keys() == tensors.keys()
    for name, array in tensors.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        assert got[name].tobytes() == array.tobytes()


def test_what_the_format_lacks_is_refused() -> None:
    with pytest.raises(KeyError):
        write_tensors(io.BytesIO(), {"x": np.zeros(2, complex)})
