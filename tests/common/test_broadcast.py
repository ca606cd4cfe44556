"""Both ways of a round in few bytes: the same bits at all ends, and the optimum is reached."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from her2_common.broadcast import advance, fingerprint, follow
from her2_common.encoding import BITS, Kind, decode, encode
from her2_common.errors import StaleBaseError


def changes(seed: int, size: int) -> np.ndarray:
    """A change whose values differ by orders of magnitude."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(size) * 10.0 ** rng.uniform(-6, 0, size)).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(tuple(BITS)), st.sampled_from([1.0, 0.1]))
def test_a_site_that_follows_holds_the_coordinators_bits(
    seed: int, kind: Kind, share: float
) -> None:
    held = decode(encode(changes(seed, 2500), "int16")[0])
    at_site, residual = held.copy(), None
    for number in range(4):
        before = held.copy()
        step, residual = advance(held, changes(seed + number, 2500), kind, share, residual)
        assert held.tobytes() != before.tobytes()
        at_site = follow(at_site, step, fingerprint(held))
        assert at_site.tobytes() == held.tobytes()


def test_a_site_that_holds_something_else_is_told() -> None:
    held = changes(1, 2000)
    moved = held.copy()
    step, _ = advance(moved, changes(2, 2000), "int8")
    other = held.copy()
    other[7] = np.nextafter(other[7], np.float32(9))
    for wrong in (other, held[:-1], moved):
        with pytest.raises(StaleBaseError, match="expected weights"):
            follow(wrong.copy(), step, fingerprint(moved))
    assert follow(held, step, fingerprint(moved)).tobytes() == moved.tobytes()


def test_a_fingerprint_is_of_the_bits() -> None:
    vector = np.array([0.0, 1.5], np.float32)
    content = bytes.fromhex("000000000000c03f")
    assert fingerprint(vector) == hashlib.sha256(content).hexdigest()
    assert fingerprint(-vector * -1) == fingerprint(vector)
    assert fingerprint(np.array([-0.0, 1.5], np.float32)) != fingerprint(vector)
    assert fingerprint(np.zeros(0, np.float32)) == hashlib.sha256(b"").hexdigest()


# --- a convex problem -----------------------------------------------------------------------------


def descend(kind: Kind, share: float, opposed: float, feedback: bool, rounds: int) -> np.ndarray:
    """Two sites minimise the sum of |x - b|^2 / 2, rounded on both ways; what they then hold.

    Their b are 1 in all places but the first, where they pull apart by ``opposed`` each: the best
    x is (0, 1, 1, ...), and the sites' own changes do not vanish there.
    """
    size = 16
    targets = [np.r_[sign * opposed, np.ones(size - 1)] for sign in (1, -1)]
    held = np.zeros(size, np.float32)
    left: list[np.ndarray | None] = [None, None, None]
    for number in range(rounds):
        rate = 0.05 * (1.001 + math.cos(math.pi * number / rounds))
        total = np.zeros(size)
        for site, target in enumerate(targets):
            change = (rate * (target - held)).astype(np.float32)
            encoded, left[site] = encode(change, kind, share, left[site])
            total += decode(encoded)
        _, left[2] = advance(held, (total / 2).astype(np.float32), kind, share, left[2])
        if not feedback:
            left = [None, None, None]
    return held


@pytest.mark.parametrize(
    ("kind", "share", "opposed"), [("int8", 1.0, 300.0), ("int8", 1 / 16, 5.0)]
)
def test_feedback_reaches_the_optimum_where_plain_rounding_stalls(
    kind: Kind, share: float, opposed: float
) -> None:
    best = np.r_[0, np.ones(15)]
    plain = descend(kind, share, opposed, feedback=False, rounds=600)
    assert np.abs(plain - best).max() == 1  # not one step away from its start
    fed = descend(kind, share, opposed, feedback=True, rounds=600)
    assert np.abs(fed - best).max() < 0.03


def test_16_bits_need_little_feedback() -> None:
    plain = descend("int16", 1.0, 5.0, feedback=False, rounds=600)
    assert np.abs(plain - np.r_[0, np.ones(15)]).max() < 0.002
