"""Bytes that no encoding gives: refused with a reason, before they cost anything."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from her2_common.encoding import (
    BITS,
    Encoded,
    Kind,
    add_to,
    decode,
    encode,
    encoded_bytes,
)
from her2_common.errors import UpdateError


def changes(seed: int, size: int) -> np.ndarray:
    """A change whose values differ by orders of magnitude."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(size) * 10.0 ** rng.uniform(-6, 0, size)).astype(np.float32)


@pytest.mark.parametrize("exponent", [-128, -127, 120, 127])
def test_exponents_out_of_range_are_refused(exponent: int) -> None:
    data = np.array([1, 1, exponent], np.int8).view(np.uint8)
    with pytest.raises(UpdateError) as caught:
        decode(Encoded(data, 2, "int8"))
    assert caught.value.reason == "out of range"


@pytest.mark.parametrize("kind", tuple(BITS))
def test_the_number_that_has_no_opposite_is_refused(kind: Kind) -> None:
    data = encode(np.array([1.0], np.float32), kind)[0].data.copy()
    data[: data.size - 1] = 0
    data[data.size - 2] = 0x80
    with pytest.raises(UpdateError) as caught:
        decode(Encoded(data, 1, kind))
    assert caught.value.reason == "out of range"


@pytest.mark.parametrize("byte", [0x08, 0x80, 0x88, 0x18])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_each_half_of_a_byte_is_looked_at(byte: int, place: int) -> None:
    data = np.full(4, 0x77, np.uint8)  # 7 at six places, and an exponent
    data[3] = 0
    assert decode(Encoded(data, 6, "int4")).tolist() == [7] * 6
    data[place] = byte
    with pytest.raises(UpdateError) as caught:
        decode(Encoded(data, 6, "int4"))
    assert caught.value.reason == "out of range"


@pytest.mark.parametrize(
    ("positions", "reason"),
    [
        # 2 of 8: two low bits, 2 + 1 bits of unary; 0 to 7 are 0b000 to 0b111
        ([0b00_000000, 0b00_000000, 0b10_000000], "misshapen"),  # one position
        ([0b00_000000, 0b00_000000, 0b11_100000], "misshapen"),  # three positions
        ([0b00_000000, 0b00_000000, 0b11_000000], "out of range"),  # 0 and 0
        ([0b10_000000, 0b00_000000, 0b11_000000], "out of range"),  # 1 and 0
        ([0b00_000000, 0b00_000000, 0b10_010000], "out of range"),  # 0 and 8
        ([0b11_000000, 0b11_000000, 0b00_000011], "out of range"),  # far beyond
    ],
)
def test_positions_that_are_none_are_refused(positions: list[int], reason: str) -> None:
    data = np.array([1, 1, 0, *positions], np.uint8)
    with pytest.raises(UpdateError) as caught:
        decode(Encoded(data, 8, "int8", 0.25))
    assert caught.value.reason == reason
    sound = np.array([1, 2, 0, 0b01_000000, 0b01_000000, 0b10_100000], np.uint8)
    assert decode(Encoded(sound, 8, "int8", 0.25)).tolist() == [1, 0, 0, 0, 0, 0, 0, 2]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (np.zeros(11, np.int8), "wrong type"),
        (np.zeros(11, object), "wrong type"),
        (np.zeros(11, np.float32), "wrong type"),
        (np.zeros(11, "V1"), "wrong type"),
        (np.zeros(10, np.uint8), "misshapen"),
        (np.zeros(12, np.uint8), "misshapen"),
        (np.zeros((11, 1), np.uint8), "misshapen"),
        (np.zeros((), np.uint8), "misshapen"),
        (np.zeros(0, np.uint8), "misshapen"),
    ],
)
def test_other_sentare_refused(data: np.ndarray, reason: str) -> None:
    assert encoded_bytes(10, "int8") == 11
    with pytest.raises(UpdateError) as caught:
        decode(Encoded(data, 10, "int8"))
    assert caught.value.reason == reason


@pytest.mark.parametrize("fill", [0, 1, 255])
def test_hostile_bytes_take_no_more_memory_than_honest_ones(fill: int) -> None:
    size, share = 400_000, 0.1
    honest = encode(changes(2, size), "int8", share)[0]

    def peak(data: np.ndarray) -> int:
        tracemalloc.start()
        try:
            decode(Encoded(data, size, "int8", share))
        except UpdateError:
            pass
        finally:
            top = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return top

    allowed = peak(honest.data)
    assert allowed > 4 * size  # the result itself is seen
    assert peak(np.full(honest.data.size, fill, np.uint8)) <= allowed
    assert peak(np.full(50 * honest.data.size, fill, np.uint8)) < 10_000
    assert peak(np.broadcast_to(np.uint8(fill), (2**40,))) < 10_000


@pytest.mark.parametrize("share", [1.0, 0.1])
@pytest.mark.parametrize("kind", tuple(BITS))
def test_adding_is_adding_what_is_decoded(kind: Kind, share: float) -> None:
    encoded, start = encode(changes(3, 140_000), kind, share)[0], changes(4, 140_000)
    vector = start.copy()
    add_to(vector, encoded)
    np.testing.assert_array_equal(vector, start + decode(encoded))


def test_what_cannot_be_read_is_not_added() -> None:
    encoded, vector = encode(changes(3, 2000), "int8")[0], changes(4, 2000)
    data = encoded.data.copy()
    data[-1] = 120  # the last exponent
    before = vector.tobytes()
    with pytest.raises(UpdateError):
        add_to(vector, Encoded(data, 2000, "int8"))
    assert vector.tobytes() == before
