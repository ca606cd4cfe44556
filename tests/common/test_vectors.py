"""Vectors on the wire: what is sent comes back, and bytes that are no vector have their reason."""

from __future__ import annotations

import io

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from her2_common.config import RunConfig
from her2_common.encoding import Encoded, encode, encoded_bytes
from her2_common.errors import UpdateError
from her2_common.model import preset_sizes
from her2_common.vectors import (
    Form,
    down_forms,
    read_steps,
    read_vectors,
    read_whole,
    up_forms,
    vectors_record,
    whole_forms,
)
from her2_common.wire import payload_bytes

SIZES = {"head": 4, "clinical": 2}
WHOLE = {name: Form(size, "float32", 1.0) for name, size in SIZES.items()}
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
groups = st.fixed_dictionaries(
    {}, optional={g: hnp.arrays(np.float32, n, elements=finite) for g, n in SIZES.items()}
)


def packed(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def array_of(content: bytes) -> Array:
    return Array(dtype="float32", shape=(4,), stype="numpy.ndarray", data=content)


@settings(deadline=None, max_examples=40)
@given(groups=groups)
def test_whole_vectors_come_back_bit_for_bit(groups: dict[str, np.ndarray]) -> None:
    got = read_vectors(RecordDict({"weights": vectors_record(groups)}), "weights", WHOLE)
    assert {g: v.tobytes() for g, v in got.items() if isinstance(v, np.ndarray)} == {
        g: v.tobytes() for g, v in groups.items()
    }


def test_encoded_vectors_come_back_byte_for_byte() -> None:
    change = np.random.default_rng(0).normal(size=3000).astype(np.float32)
    sent = encode(change, "int8", 0.1)[0]
    record = RecordDict({"update": vectors_record({"us": sent})})
    assert payload_bytes(record) == encoded_bytes(3000, "int8", 0.1) + 128  # numpy's header
    got = read_vectors(record, "update", {"us": Form(3000, "int8", 0.1)})["us"]
    assert isinstance(got, Encoded)
    assert (got.size, got.kind, got.share) == (3000, "int8", 0.1)
    assert got.data.tobytes() == sent.data.tobytes()


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (Form(3000, "int8", 0.2), "misshapen"),
        (Form(3000, "int16", 0.1), "misshapen"),
        (Form(2999, "int8", 1.0), "misshapen"),
        (Form(3000, "float32", 1.0), "wrong type"),
    ],
)
def test_what_is_encoded_in_another_form_is_refused(form: Form, reason: str) -> None:
    change = np.random.default_rng(0).normal(size=3000).astype(np.float32)
    record = RecordDict({"update": vectors_record({"us": encode(change, "int8", 0.1)[0]})})
    with pytest.raises(UpdateError, match="group us: expected") as caught:
        read_vectors(record, "update", {"us": form})
    assert caught.value.reason == reason


def test_a_float32_vector_where_bytes_are_expected_is_refused() -> None:
    record = RecordDict({"update": vectors_record({"us": np.zeros(2, np.float32)})})
    with pytest.raises(UpdateError) as caught:
        read_vectors(record, "update", {"us": Form(2, "int8", 1.0)})
    assert caught.value.reason == "wrong type"


def test_a_message_without_vectors_has_none() -> None:
    for record in (RecordDict(), RecordDict({"weights": ConfigRecord({})})):
        assert read_vectors(record, "weights", WHOLE) == {}


def claim_of_400_terabytes() -> bytes:
    stream = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**14,)}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + b"1234"


def archive() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.zeros(4, np.float32))
    return stream.getvalue()


HEAD = np.arange(4, dtype=np.float32)
BAD_WEIGHTS: dict[str, tuple[dict[str, Array], str]] = {
    "unknown group": ({"tail": Array(HEAD)}, "unknown group"),
    "short": ({"head": Array(HEAD[:3])}, "misshapen"),
    "two axes": ({"head": Array(HEAD[None])}, "misshapen"),
    "scalar": ({"head": Array(np.array(1, np.float32))}, "misshapen"),
    "float64": ({"head": Array(HEAD.astype(np.float64))}, "wrong type"),
    "big-endian": ({"head": Array(HEAD.astype(">f4"))}, "wrong type"),
    "nan": ({"head": Array(HEAD / np.float32(np.nan))}, "not finite"),
    "infinity": ({"head": Array(HEAD + np.float32(np.inf))}, "not finite"),
    "no bytes": ({"head": array_of(b"")}, "misshapen"),
    "noise": ({"head": array_of(b"\x93NUMPY\x01\x00nonsense")}, "misshapen"),
    "cut off": ({"head": array_of(packed(HEAD)[:-1])}, "misshapen"),
    "pickle": ({"head": array_of(packed(np.array([{}], dtype=object)))}, "misshapen"),
    "an archive": ({"head": array_of(archive())}, "misshapen"),
    "half an archive": ({"head": array_of(archive()[:20])}, "misshapen"),
    "a shape that nobody sent": ({"head": array_of(claim_of_400_terabytes())}, "misshapen"),
    "foreign form": (
        {"head": Array(dtype="float32", shape=(4,), stype="other", data=packed(HEAD))},
        "misshapen",
    ),
}


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_bad_weights_have_their_reason(name: str, inline: bool) -> None:
    arrays, reason = BAD_WEIGHTS[name]
    record = ArrayRecord(arrays)
    if inline and name != "foreign form":
        record = ConfigRecord({group: array.data for group, array in arrays.items()})
    with pytest.raises(UpdateError) as caught:
        read_vectors(RecordDict({"weights": record}), "weights", WHOLE)
    assert caught.value.reason == reason


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_altered_bytes_are_an_array_or_a_named_fault(data: st.DataObject) -> None:
    content = bytearray(packed(HEAD))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    record = RecordDict({"weights": ArrayRecord({"head": array_of(bytes(content))})})
    try:
        vector = read_vectors(record, "weights", WHOLE)["head"]
    except UpdateError as error:
        assert error.reason in {"misshapen", "wrong type", "not finite"}  # noqa: PT017
    else:
        assert isinstance(vector, np.ndarray)
        assert (vector.dtype, vector.shape) == (np.float32, (4,))
        assert np.isfinite(vector).all()


# --- the forms of a run -------------------------------------------------------------------------

PLAN = RunConfig.model_validate(
    {
        "strategy": {"local": {"name": "scaffold"}},
        "compression": {"up": "int8", "keep": 0.1, "down": "int16"},
    }
)


def test_forms_follow_from_the_plan() -> None:
    sizes = preset_sizes("compact")
    up, down = up_forms(PLAN), down_forms(PLAN)
    assert up["mri"] == up["mri.control"] == Form(sizes["mri"], "int8", 0.1)
    assert up["head"] == up["head.control"] == Form(sizes["head"], "int8", 1.0)
    assert down["mri"] == Form(sizes["mri"], "int16", 1.0)
    assert whole_forms(PLAN)["mri"] == Form(sizes["mri"], "float32", 1.0)
    plain = RunConfig()
    assert up_forms(plain) == down_forms(plain) == whole_forms(plain)
    assert whole_forms(plain).keys() == sizes.keys()


def test_an_order_brings_whole_vectors_and_steps() -> None:
    sizes = preset_sizes("compact")
    head = np.ones(sizes["head"], np.float32)
    step = encode(np.ones(sizes["clinical"], np.float32), "int16")[0]
    record = RecordDict(
        {"weights": vectors_record({"head": head}), "steps": vectors_record({"clinical": step})}
    )
    assert read_whole(record, "weights", PLAN)["head"].tobytes() == head.tobytes()
    assert read_steps(record, PLAN)["clinical"].data.tobytes() == step.data.tobytes()
    with pytest.raises(UpdateError):
        read_steps(record, RunConfig())  # a run of float32 has no steps
    assert read_whole(record, "initial", PLAN) == {}
