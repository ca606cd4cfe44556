"""Encoded changes: what the bytes say, how wrong a value may be, and that nothing is lost."""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from her2_common.encoding import (
    BITS,
    BLOCK,
    LOWEST,
    Encoded,
    Kind,
    decode,
    encode,
    encoded_bytes,
)
from her2_common.errors import UpdateError

KINDS = tuple(BITS)
LIMIT = {"int4": 7, "int8": 127, "int16": 32767}
kinds = st.sampled_from(KINDS)
shares = st.sampled_from([1.0, 0.5, 0.25, 0.1, 0.01])
values = st.floats(-(2.0**120), 2.0**120, width=32) | st.sampled_from(
    [0.0, -0.0, 2.0**-149, -(2.0**-130), 2.0**-60]
)
vectors = arrays(np.float32, st.integers(0, 60), elements=values)


def layered(seed: int, size: int) -> np.ndarray:
    """A change as training makes it: layers of unequal scale, most values small."""
    rng = np.random.default_rng(seed)
    scale = np.repeat(10.0 ** rng.uniform(-9, 1, size // 300 + 1), 300)[:size]
    return (scale * rng.standard_normal(size) ** 3).astype(np.float32)


layers = st.builds(layered, st.integers(0, 2**32 - 1), st.integers(0, 5000))


def bits(vector: np.ndarray) -> bytes:
    return vector.tobytes()


def exact(vector: np.ndarray) -> np.ndarray:
    return vector.astype(np.float64)


def steps_of(kept: np.ndarray, kind: Kind) -> list[float]:
    """The step of each block, by trial: the smallest power of two that the largest fits into."""
    result = []
    for start in range(0, kept.size, BLOCK):
        largest = Fraction(float(np.abs(kept[start : start + BLOCK]).max()))
        step = Fraction(2) ** LOWEST
        while largest / step > LIMIT[kind]:
            step *= 2
        result.append(float(step))
    return result


def kept_positions(vector: np.ndarray, share: float) -> list[int]:
    """The largest magnitudes, of equal ones the first, by sorting."""
    count = math.ceil(share * vector.size)
    order = sorted(range(vector.size), key=lambda i: (-abs(float(vector[i])), i))
    return sorted(order[:count])


# --- against a decoder and an encoder of plain integers -------------------------------------------


def plain_decode(data: bytes, size: int, kind: Kind, share: float) -> list[Fraction]:
    """The layout of the module's docstring, read one bit after another."""
    kept, width = math.ceil(share * size), BITS[kind]
    numbers = []
    for start in range(0, kept, BLOCK):
        count = min(BLOCK, kept - start)
        block = data[start * width // 8 :][: math.ceil(count * width / 8)]
        if kind == "int4":
            digits = [byte & 15 for byte in block] + [byte >> 4 for byte in block]
            numbers += [digit - 16 if digit > 7 else digit for digit in digits[:count]]
        else:
            parts = [block[i : i + width // 8] for i in range(0, len(block), width // 8)]
            numbers += [int.from_bytes(part, "little", signed=True) for part in parts]
    rest = data[math.ceil(kept * width / 8) :]
    blocks = math.ceil(kept / BLOCK)
    powers = [int.from_bytes(rest[i : i + 1], signed=True) for i in range(blocks)]
    rest = rest[blocks:]
    positions = list(range(kept))
    if kept < size:
        low = int(math.log2(size // kept))
        plane = math.ceil(kept / 8)
        text = ["".join(f"{b:08b}" for b in rest[i * plane :][:plane]) for i in range(low)]
        unary = "".join(f"{b:08b}" for b in rest[low * plane :])
        ones = [i for i, digit in enumerate(unary) if digit == "1"]
        assert len(ones) == kept
        positions = [
            (one - i) * 2**low + sum(int(text[bit][i]) * 2**bit for bit in range(low))
            for i, one in enumerate(ones)
        ]
    result = [Fraction(0)] * size
    for i, position in enumerate(positions):
        result[position] = numbers[i] * Fraction(2) ** powers[i // BLOCK]
    return result


@settings(max_examples=40, deadline=None)
@given(vectors | layers, kinds, shares)
def test_the_bytes_say_what_the_layout_says(vector: np.ndarray, kind: Kind, share: float) -> None:
    encoded, _ = encode(vector, kind, share)
    expected = plain_decode(encoded.data.tobytes(), vector.size, kind, share)
    assert [Fraction(float(v)) for v in decode(encoded)] == expected


@settings(max_examples=40, deadline=None)
@given(vectors | layers, kinds, shares)
def test_the_largest_are_rounded_to_the_nearest_step(
    vector: np.ndarray, kind: Kind, share: float
) -> None:
    decoded = decode(encode(vector, kind, share)[0])
    positions = kept_positions(vector, share)
    expected = [0.0] * vector.size
    steps = steps_of(vector[positions], kind)
    for i, position in enumerate(positions):
        step = Fraction(steps[i // BLOCK])
        expected[position] = float(round(Fraction(float(vector[position])) / step) * step)
    assert decoded.tolist() == expected


# --- properties -----------------------------------------------------------------------------------


@settings(deadline=None)
@given(vectors | layers, kinds)
def test_a_value_is_wrong_by_half_a_step_at_most(vector: np.ndarray, kind: Kind) -> None:
    error = np.abs(exact(decode(encode(vector, kind)[0])) - exact(vector))
    for start in range(0, vector.size, BLOCK):
        largest = np.abs(exact(vector[start : start + BLOCK])).max()
        bound = max(largest / LIMIT[kind], 2.0 ** (LOWEST - 1))
        assert error[start : start + BLOCK].max() <= bound


@settings(deadline=None)
@given(vectors | layers, kinds, shares)
def test_what_is_sent_and_what_is_left_are_the_change(
    vector: np.ndarray, kind: Kind, share: float
) -> None:
    before = bits(vector)
    encoded, left = encode(vector, kind, share)
    assert (exact(decode(encoded)) + exact(left) == exact(vector)).all()
    again, rest = encode(np.zeros_like(vector), kind, share, left)
    assert (exact(decode(again)) + exact(rest) == exact(left)).all()
    assert bits(vector) == before


@settings(deadline=None)
@given(vectors | layers, kinds)
def test_a_decoded_vector_is_encoded_in_the_same_bytes(vector: np.ndarray, kind: Kind) -> None:
    encoded, _ = encode(vector, kind)
    again, left = encode(decode(encoded), kind)
    assert bits(again.data) == bits(encoded.data)
    assert not left.any()


@settings(deadline=None)
@given(vectors, kinds, shares)
def test_a_decoded_selection_is_decoded_to_the_same(
    vector: np.ndarray, kind: Kind, share: float
) -> None:
    decoded = decode(encode(vector, kind, share)[0])
    assert bits(decode(encode(decoded, kind, share)[0])) == bits(decoded)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), kinds, shares, st.integers(1, 12))
def test_all_that_was_sent_and_the_last_residual_are_all_changes(
    seed: int, kind: Kind, share: float, count: int
) -> None:
    changes = [layered(seed + i, 3000) for i in range(count)]
    sent, residual = np.zeros(3000), None
    for change in changes:
        encoded, residual = encode(change, kind, share, residual)
        sent += exact(decode(encoded))
    assert residual is not None
    truth = np.sum([exact(c) for c in changes], axis=0)
    # Only change + residual is rounded, to float32; a residual is no larger than all changes.
    tolerance = count * 2.0**-23 * np.sum([np.abs(exact(c)) for c in changes], axis=0)
    assert (np.abs(sent + exact(residual) - truth) <= tolerance).all()


@settings(deadline=None)
@given(st.integers(0, 10**7), kinds, st.floats(1e-9, 1, exclude_min=True))
def test_the_number_of_bytes_is_known_beforehand(size: int, kind: Kind, share: float) -> None:
    total, kept = encoded_bytes(size, kind, share), math.ceil(share * size)
    own = math.ceil(kept * BITS[kind] / 8) + math.ceil(kept / BLOCK)
    if kept == size:
        assert total == own
    else:  # 2 + log2(size / kept) bits a position, up to rounding to bytes
        positions = kept * (2 + math.log2(size / kept)) / 8
        assert own <= total <= own + positions + math.log2(size) + 1


def test_bytes_counted_by_hand() -> None:
    assert encoded_bytes(256, "int8") == 257
    assert encoded_bytes(257, "int16") == 514 + 2
    assert encoded_bytes(257, "int4") == 129 + 2
    # 1000 of 10,000: 1000 numbers, 4 exponents, 3 planes of 125, 1000 + 1249 bits of unary
    assert encoded_bytes(10_000, "int8", 0.1) == 1000 + 4 + 3 * 125 + math.ceil(2249 / 8)


# --- particular vectors ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [1.0, 0.1])
@pytest.mark.parametrize("size", [0, 1, 2, 9, 255, 256, 257, 1024])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.75, 1e-45, -1.1e-38, 2.0**125])
def test_constant_vectors(kind: Kind, share: float, size: int, value: float) -> None:
    vector = np.full(size, value, dtype=np.float32)
    encoded, left = encode(vector, kind, share)
    decoded, kept = decode(encoded), math.ceil(share * size)
    # A power of two and 3/4 are whole steps; what is below half the lowest step stays behind.
    exactly = abs(value) >= 2.0**-100 or value == 0
    assert decoded[kept:].tolist() == [0.0] * (size - kept)
    if exactly:
        assert decoded[:kept].tolist() == [value] * kept
        assert left[kept:].tolist() == [value] * (size - kept)
    else:
        assert np.abs(exact(decoded) - exact(vector)).max(initial=0) <= abs(
            float(np.float32(value))
        )
    assert (exact(decoded) + exact(left) == exact(vector)).all()


def test_subnormal_values_are_sent_when_they_have_grown() -> None:
    tiny, residual, sent = np.full(3, 2.0**-130, dtype=np.float32), None, np.zeros(3)
    for _ in range(16):
        encoded, residual = encode(tiny, "int8", residual=residual)
        sent += exact(decode(encoded))
    assert sent.tolist() == [2.0**-126] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_range_ends_below_2_to_the_126(kind: Kind) -> None:
    for value in (2.0**126, -(2.0**126), 3e38):
        with pytest.raises(UpdateError) as caught:
            encode(np.array([1, value], dtype=np.float32), kind)
        assert caught.value.reason == "out of range"
    largest = np.array([LIMIT[kind] * 2.0 ** (127 - BITS[kind])], dtype=np.float32)
    assert bits(decode(encode(largest, kind)[0])) == bits(largest)


@pytest.mark.parametrize("share", [1.0, 0.1])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 1500, 2999])
def test_a_change_that_is_not_finite_is_refused(share: float, bad: float, position: int) -> None:
    change = layered(0, 3000)
    change[position] = bad
    with pytest.raises(UpdateError) as caught:
        encode(change, "int8", share)
    assert caught.value.reason == "not finite"


@pytest.mark.parametrize("share", [1.0, 0.1])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_change_with_nothing_finite_is_refused(share: float, bad: float) -> None:
    with pytest.raises(UpdateError) as caught:
        encode(np.full(300_000, bad, np.float32), "int8", share)
    assert caught.value.reason == "not finite"


def test_a_sum_that_overflows_is_refused() -> None:
    huge = np.full(4, 3e38, dtype=np.float32)
    with pytest.raises(UpdateError) as caught:
        encode(huge, "int8", 1.0, huge)
    assert caught.value.reason == "not finite"


@pytest.mark.parametrize(
    ("change", "residual", "reason"),
    [
        (np.zeros(3), None, "wrong type"),
        (np.zeros((3, 1), np.float32), None, "misshapen"),
        (np.zeros(3, np.float32), np.zeros(3), "wrong type"),
        (np.zeros(3, np.float32), np.zeros(4, np.float32), "misshapen"),
        (np.zeros(3, np.float32), np.zeros((3, 1), np.float32), "misshapen"),
    ],
)
def test_only_float32_vectors_are_encoded(
    change: np.ndarray, residual: np.ndarray | None, reason: str
) -> None:
    with pytest.raises(UpdateError) as caught:
        encode(change, "int8", 1.0, residual)
    assert caught.value.reason == reason


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        encode(np.zeros(3, np.float32), "int8", share)


def test_of_equal_magnitudes_the_first_are_kept() -> None:
    vector = np.array([1, -1, 1, 2, -1, 1, 1, 1], dtype=np.float32)
    decoded = decode(encode(vector, "int8", 0.5)[0])
    assert decoded.tolist() == [1, -1, 1, 2, 0, 0, 0, 0]


# --- the same bits everywhere ---------------------------------------------------------------------


def arithmetic_vector(size: int) -> np.ndarray:
    """Values by integer arithmetic alone, over 30 powers of two."""
    state = (np.arange(size, dtype=np.uint64) * 2654435761 + 12345) % 2**32
    mantissa = (state >> 8).astype(np.float32) - np.float32(2**23)
    return np.ldexp(mantissa, -(state % 30).astype(np.int32) - 30)


@pytest.mark.parametrize(
    ("kind", "share", "digest"),
    [
        ("int8", 1.0, "3d38da2c2144aee0"),
        ("int16", 1.0, "02f415e6b105874e"),
        ("int4", 1.0, "950254a43184be82"),
        ("int8", 0.1, "3254de806382549d"),
    ],
)
def test_the_bytes_are_the_same_on_every_machine(kind: Kind, share: float, digest: str) -> None:
    encoded, left = encode(arithmetic_vector(200_001), kind, share)
    content = encoded.data.tobytes() + left.astype("<f4").tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == digest


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_the_place_in_memory_changes_no_byte(share: float) -> None:
    vector = layered(5, 70_000)
    expected = bits(encode(vector, "int8", share)[0].data)
    apart, shifted = np.zeros(140_000, np.float32), np.zeros(70_001, np.float32)
    apart[::2], shifted[1:] = vector, vector
    assert bits(encode(apart[::2], "int8", share)[0].data) == expected
    assert bits(encode(shifted[1:], "int8", share)[0].data) == expected


# --- hostile bytes --------------------------------------------------------------------------------


def decoded_or_reason(encoded: Encoded) -> np.ndarray | str:
    """A finite vector of the right size, or why there is none; no other exception."""
    try:
        decoded = decode(encoded)
    except UpdateError as error:
        reason = error.reason
    else:
        assert decoded.shape == (encoded.size,)
        assert np.isfinite(decoded).all()
        return decoded
    assert reason in ("misshapen", "out of range")
    return reason


@settings(max_examples=300, deadline=None)
@given(st.data(), kinds, shares, st.integers(0, 80))
def test_any_bytes_give_finite_values_or_a_reason(
    data: st.DataObject, kind: Kind, share: float, size: int
) -> None:
    total = encoded_bytes(size, kind, share)
    content = data.draw(st.binary(min_size=total, max_size=total))
    hostile = np.frombuffer(content, np.uint8)
    decoded = decoded_or_reason(Encoded(hostile, size, kind, share))
    if isinstance(decoded, np.ndarray):
        expected = plain_decode(content, size, kind, share)
        assert [Fraction(float(v)) for v in decoded] == expected


@settings(max_examples=200, deadline=None)
@given(st.data(), kinds, st.sampled_from([0.5, 0.1]))
def test_one_wrong_byte_is_refused_or_is_another_sound_change(
    data: st.DataObject, kind: Kind, share: float
) -> None:
    sound = encode(layered(1, 500), kind, share)[0]
    hostile = sound.data.copy()
    hostile[data.draw(st.integers(0, hostile.size - 1))] = data.draw(st.integers(0, 255))
    decoded = decoded_or_reason(Encoded(hostile, 500, kind, share))
    if isinstance(decoded, np.ndarray):
        assert np.count_nonzero(decoded) <= math.ceil(share * 500)
