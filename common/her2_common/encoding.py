"""A change of weights in few bytes: 4, 8 or 16 bits a value, the largest alone, error feedback.

A vector's bytes, in this order; sizes follow from (size, kind, share), which the receiver takes
from the run and never from the sender:

    numbers    int8 or int16 (little endian), one a kept value; of int4 two in a byte: the first
               half of a block (the longer one, if its size is odd) in the low bits of its bytes,
               the second in the high ones
    exponents  int8, one for each block of 256 kept values; value = number * 2**exponent
    low bits   of the kept positions, one bit plane after another     only if share < 1
    high bits  of the kept positions, in unary                        only if share < 1

Rounding. A block's step is the smallest power of two, 2**-126 at least, in which its largest value
is at most 127 steps (int4: 7, int16: 32767); values are rounded to the nearest step, halves to
even. So a kept value is wrong by at most half a step: by 1/127 (1/7, 1/32767) of the block's
largest value, or by 2**-127. Steps are powers of two so that nothing else is rounded: what is sent
and what is left over add up to what was to be sent, exactly, and encoding a decoded vector as a
whole gives the same bytes. Only exact operations and rounding to the nearest are used, element by
element: the bits depend on no machine and no number of threads, as long as the processor keeps
subnormal numbers (torch.set_flush_denormal is off, as it is by default).

Positions. The share of values with the largest magnitude is kept, of equal ones the first. Their
positions are coded as by Elias (J. ACM 21, 1974) and Fano (MIT Project MAC memorandum 61, 1971):
about 2 + log2(1 / share) bits a position, in all a number of bytes that is known beforehand. Above
a share of about 0.8 the whole vector is smaller.

Error feedback. What a rounding leaves over is added to the next change before that is rounded:
Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019. The sum of what was sent and the
last residual is the sum of the true changes; a value below half a step is sent when it has grown.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np

from her2_common.errors import UpdateError

Kind = Literal["int4", "int8", "int16"]

BITS: Final[dict[Kind, int]] = {"int4": 4, "int8": 8, "int16": 16}

BLOCK: Final = 256
"""Values that share a step: its byte adds 0.8 % to 4 bits. Of a real change 4 bits leave over 15 to
19 % (L2), and 16 to 23 % with 1024 values."""

LOWEST: Final = -126
"""2**-126 is float32's smallest normal number; no decoded value is subnormal."""

_PIECE: Final = 512 * BLOCK
"""Values worked on at a time, so that what is in between stays in a core's cache."""

_NIBBLE: Final = BITS["int4"]


@dataclass(frozen=True)
class Encoded:
    """A float32 vector of ``size`` values as ``data``, uint8 (encoded_bytes(size, kind, share),).

    ``data`` may come from anybody; the rest is what the receiver expects.
    """

    data: np.ndarray
    size: int
    kind: Kind
    share: float = 1.0


class _Layout(NamedTuple):
    """Where the parts end, in bytes; ``kept`` counts values, ``low`` is bits a position."""

    bits: int
    kept: int
    low: int
    numbers: int
    exponents: int
    planes: int
    total: int


def encoded_bytes(size: int, kind: Kind, share: float = 1.0) -> int:
    """How many bytes the encoding of ``size`` values has.

    >>> encoded_bytes(1_000_000, "int8") / 4_000_000  # of float32
    0.25097675
    >>> encoded_bytes(1_000_000, "int4") / 4_000_000
    0.12597675
    >>> encoded_bytes(1_000_000, "int8", 0.1) / 4_000_000
    0.0414...
    """
    return _layout(size, kind, share).total


def _layout(size: int, kind: Kind, share: float) -> _Layout:
    if kind not in BITS or not 0 < share <= 1 or size < 0:
        raise ValueError(
            f"expected {', '.join(BITS)}, a share in (0, 1] and a size, got {kind}, {share}, {size}"
        )
    kept = math.ceil(share * size)
    numbers = -(-kept * BITS[kind] // 8)
    exponents = numbers + -(-kept // BLOCK)
    if kept == size:
        return _Layout(BITS[kind], kept, 0, numbers, exponents, exponents, exponents)
    low = (size // kept).bit_length() - 1
    planes = exponents + low * -(-kept // 8)
    unary = kept + ((size - 1) >> low)  # bits: the last one stands at (size - 1 >> low) + kept - 1
    return _Layout(BITS[kind], kept, low, numbers, exponents, planes, planes + -(-unary // 8))


# --- encoding -----------------------------------------------------------------------------------


def encode(
    change: np.ndarray,
    kind: Kind,
    share: float = 1.0,
    residual: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> tuple[Encoded, np.ndarray]:
    """``change`` + ``residual`` rounded, and what the rounding leaves over; all float32 (n,).

    ``residual`` is what the encoding before left over, None at the first. The arguments stay as
    they are, but for ``out``: what is left over is written there; it may be ``change``.

    >>> small = np.array([100.0, 0.3], dtype=np.float32)
    >>> first, left = encode(small, "int8")
    >>> decode(first), left
    (array([100.,   0.], dtype=float32), array([0. , 0.3], dtype=float32))
    >>> decode(encode(small, "int8", residual=left)[0])
    array([100.,   1.], dtype=float32)

    Raises:
        UpdateError: "wrong type", "misshapen", "not finite", or "out of range" from 2**126 on.
    """
    _check(change, residual)
    layout = _layout(change.size, kind, share)
    data = np.empty(layout.total, dtype=np.uint8)
    encoded = Encoded(data, change.size, kind, share)
    left = np.empty(change.size, dtype=np.float32) if out is None else out
    if layout.kept == change.size:
        _round(change, residual, data, layout, left)
        return encoded, left
    _sum(change, residual, left)
    positions = _largest(left, layout.kept)
    kept = left[positions]
    _round(kept, None, data, layout, kept)
    left[positions] = kept
    _write_positions(positions, data, layout)
    return encoded, left


def _check(change: np.ndarray, residual: np.ndarray | None) -> None:
    for name, vector in (("change", change), ("residual", residual)):
        if vector is None:
            continue
        if vector.dtype != np.float32:
            raise UpdateError(f"{name}: expected float32, got {vector.dtype}", reason="wrong type")
        if vector.ndim != 1 or vector.shape != change.shape:
            raise UpdateError(
                f"{name}: expected a vector as long as the change, got shape {vector.shape}",
                reason="misshapen",
            )


def _sum(change: np.ndarray, residual: np.ndarray | None, out: np.ndarray) -> None:
    """Write what is to be sent."""
    if residual is None:
        out[:] = change
        return
    with np.errstate(over="ignore", invalid="ignore"):  # found in _exponents
        np.add(change, residual, out=out)


def _pieces(size: int) -> Iterator[tuple[slice, slice, int]]:
    """Values, their blocks and the blocks' width; the last block may be shorter than others."""
    full = size - size % BLOCK
    for start in range(0, full, _PIECE):
        stop = min(start + _PIECE, full)
        yield slice(start, stop), slice(start // BLOCK, stop // BLOCK), BLOCK
    if full < size:
        yield slice(full, size), slice(full // BLOCK, full // BLOCK + 1), size - full


def _round(
    change: np.ndarray,
    residual: np.ndarray | None,
    data: np.ndarray,
    layout: _Layout,
    left: np.ndarray,
) -> None:
    """Write the numbers and exponents of the sum, and what the rounding leaves over."""
    numbers = _stored(data, layout)
    exponents = data[layout.numbers : layout.exponents].view(np.int8)
    scratch = np.empty(min(change.size, _PIECE), dtype=np.float32)
    for part, blocks, width in _pieces(change.size):
        _sum(change[part], None if residual is None else residual[part], left[part])
        block = left[part].reshape(-1, width)  # (blocks, width), a view
        steps = scratch[: block.size].reshape(-1, width)  # (blocks, width), a view
        chosen = _exponents(np.maximum(block.max(axis=1), -block.min(axis=1)), layout.bits)
        np.multiply(block, _powers(-chosen), out=steps)
        np.rint(steps, out=steps)
        if layout.bits == _NIBBLE:
            numbers[part.start // 2 : -(-part.stop // 2)] = _paired(steps).ravel()
        else:
            numbers[part] = steps.ravel()
        exponents[blocks] = chosen
        steps *= _powers(chosen)
        # Exact: a multiple of the value's last bit, and no larger than the value.
        block -= steps


def _stored(data: np.ndarray, layout: _Layout) -> np.ndarray:
    """The numbers as they are stored, int8 (pairs of int4, too) or int16, a view."""
    return data[: layout.numbers].view(f"<i{max(layout.bits // 8, 1)}")


def _paired(numbers: np.ndarray) -> np.ndarray:
    """Blocks of whole numbers from -8 to 7 (blocks, w), two in each int8 (blocks, ceil(w / 2))."""
    blocks, width = numbers.shape
    half = -(-width // 2)
    whole = np.zeros((blocks, 2 * half), np.int8)
    whole[:, :width] = numbers
    pairs: np.ndarray = whole[:, :half] & 15 | whole[:, half:] << 4
    return pairs


def _unpaired(pairs: np.ndarray) -> np.ndarray:
    """The numbers (blocks * 2 h,) of pairs (blocks, h), int8."""
    numbers = np.empty((len(pairs), 2, pairs.shape[1]), np.int8)
    np.left_shift(pairs, 4, out=numbers[:, 0])
    numbers[:, 1] = pairs
    numbers >>= 4  # keeps the sign
    return numbers.ravel()


def _exponents(largest: np.ndarray, bits: int) -> np.ndarray:
    """The step of each block as an exponent of two, int32, for its largest magnitude."""
    if not np.isfinite(largest).all():
        raise _not_finite()
    mantissa, exponents = np.frexp(largest)  # largest = mantissa * 2**exponent, mantissa in [.5, 1)
    exponents = exponents.astype(np.int32) - (bits - 1)
    exponents += np.ldexp(mantissa, bits - 1) > _limit(bits)  # also where it rounds to the limit
    if (exponents > _highest(bits)).any():
        raise UpdateError(
            f"a change of {largest.max():.3g}, expected less than 2**126", reason="out of range"
        )
    return np.where(largest > 0, np.maximum(exponents, LOWEST), LOWEST)


def _not_finite() -> UpdateError:
    return UpdateError("a change holds NaN or infinity", reason="not finite")


def _limit(bits: int) -> int:
    """The largest number: 7, 127 or 32767."""
    return int(2 ** (bits - 1) - 1)


def _highest(bits: int) -> int:
    """The largest exponent: every decoded value is below 2**126."""
    return 127 - bits


def _powers(exponents: np.ndarray) -> np.ndarray:
    """Two to these powers, float32 (blocks, 1)."""
    powers: np.ndarray = np.ldexp(np.float32(1), exponents)[:, None]
    return powers


def _largest(values: np.ndarray, kept: int) -> np.ndarray:
    """The positions of the ``kept`` largest magnitudes, rising; of equal ones the first."""
    magnitudes = np.abs(values)
    largest = np.partition(magnitudes, values.size - kept)[values.size - kept :]  # NaN comes last
    if not np.isfinite(largest).all():
        raise _not_finite()
    threshold = largest[0]
    above = np.flatnonzero(magnitudes > threshold)
    equal = np.flatnonzero(magnitudes == threshold)[: kept - above.size]
    positions = np.concatenate([above, equal])
    positions.sort(kind="stable")
    return positions


def _planes(data: np.ndarray, layout: _Layout) -> np.ndarray:
    """The bit planes of the low bits, uint8 (low, ceil(kept / 8)), a view."""
    return data[layout.exponents : layout.planes].reshape(layout.low, -(-layout.kept // 8))


def _write_positions(positions: np.ndarray, data: np.ndarray, layout: _Layout) -> None:
    planes = _planes(data, layout)
    for bit in range(layout.low):
        planes[bit] = np.packbits((positions >> bit & 1).astype(np.bool_))
    unary = np.zeros(8 * (layout.total - layout.planes), dtype=np.bool_)
    unary[(positions >> layout.low) + np.arange(layout.kept)] = True
    data[layout.planes :] = np.packbits(unary)


# --- decoding -----------------------------------------------------------------------------------


class Parts(NamedTuple):
    """An encoding taken apart and checked: value i of ``kept`` is its number * 2**exponents[i //
    BLOCK], and stands at positions[i] (None: at i). ``stored`` numbers and ``exponents`` are views.
    """

    bits: int
    kept: int
    stored: np.ndarray
    exponents: np.ndarray
    positions: np.ndarray | None

    def numbers(self, part: slice) -> np.ndarray:
        """The numbers of a part that begins with a block, int8 or int16: a view, of int4 a copy."""
        if self.bits != _NIBBLE:
            return self.stored[part]
        width = (part.stop - part.start) % BLOCK  # of the last block, if it is shorter
        full, stop = (part.stop - width) // 2, -(-part.stop // 2)
        numbers = _unpaired(self.stored[part.start // 2 : full].reshape(-1, BLOCK // 2))
        if not width:
            return numbers
        return np.concatenate([numbers, _unpaired(self.stored[full:stop][None])[:width]])


def take_apart(encoded: Encoded) -> Parts:
    """The parts of what was sent, each within its bounds, whatever the bytes are.

    Raises:
        UpdateError: "wrong type", "misshapen" or "out of range".
    """
    layout = _layout(encoded.size, encoded.kind, encoded.share)
    data = encoded.data
    if data.dtype != np.uint8:
        raise UpdateError(f"expected bytes (uint8), got {data.dtype}", reason="wrong type")
    if data.shape != (layout.total,):
        raise UpdateError(
            f"expected {layout.total} bytes, got shape {data.shape}", reason="misshapen"
        )
    data = np.ascontiguousarray(data)
    stored = _stored(data, layout)
    exponents = data[layout.numbers : layout.exponents].view(np.int8)
    highest = _highest(layout.bits)
    if ((exponents < LOWEST) | (exponents > highest)).any():
        raise UpdateError(
            f"expected exponents from {LOWEST} to {highest}, got others", reason="out of range"
        )
    if _lowest(stored, layout.bits) < -_limit(layout.bits):
        raise UpdateError(
            f"expected numbers from -{_limit(layout.bits)} on, got less", reason="out of range"
        )
    whole = layout.kept == encoded.size
    positions = None if whole else _read_positions(data, encoded.size, layout)
    return Parts(layout.bits, layout.kept, stored, exponents, positions)


def _lowest(stored: np.ndarray, bits: int) -> int:
    if bits != _NIBBLE:
        return int(stored.min(initial=0))
    # The high halves in their order, and the low ones shifted to where the high ones stand.
    return min(int(stored.min(initial=0)), int((stored << 4).min(initial=0))) >> 4


def pieces(parts: Parts) -> Iterator[tuple[slice, np.ndarray]]:
    """The kept values, float32, a piece at a time: where they stand among the kept, and the values
    (which are valid until the next piece)."""
    scratch = np.empty(min(parts.kept, _PIECE), dtype=np.float32)
    for part, blocks, width in _pieces(parts.kept):
        values = scratch[: part.stop - part.start]
        block = values.reshape(-1, width)  # (blocks, width), a view
        block[:] = parts.numbers(part).reshape(-1, width)
        block *= _powers(parts.exponents[blocks].astype(np.int32))
        yield part, values


def decode(encoded: Encoded) -> np.ndarray:
    """The change that was sent, float32 (size,); finite, whatever the bytes are.

    Raises:
        UpdateError: as ``take_apart``.
    """
    parts = take_apart(encoded)
    change = np.zeros(encoded.size, dtype=np.float32)
    for part, values in pieces(parts):
        change[part if parts.positions is None else parts.positions[part]] = values
    return change


def add_to(vector: np.ndarray, encoded: Encoded) -> None:
    """Add the decoded change to ``vector``, float32 (size,), in place, a piece at a time.

    Raises:
        UpdateError: as ``take_apart``; the vector is then untouched.
    """
    parts = take_apart(encoded)
    with np.errstate(over="ignore"):
        for part, values in pieces(parts):
            vector[part if parts.positions is None else parts.positions[part]] += values


def _read_positions(data: np.ndarray, size: int, layout: _Layout) -> np.ndarray:
    """The kept positions; memory is bounded by what the layout allows, whatever the bytes are."""
    ones = np.flatnonzero(np.unpackbits(data[layout.planes :]))
    if ones.size != layout.kept:
        raise UpdateError(f"expected {layout.kept} positions, got {ones.size}", reason="misshapen")
    ones -= np.arange(layout.kept)
    ones <<= layout.low
    lows: np.ndarray = np.zeros(layout.kept, np.uint8 if layout.low <= 8 else np.int64)
    for bit, plane in enumerate(_planes(data, layout)):
        lows |= np.unpackbits(plane, count=layout.kept).astype(lows.dtype, copy=False) << bit
    positions: np.ndarray = np.add(ones, lows, out=ones)
    if (positions[1:] <= positions[:-1]).any() or positions[-1] >= size:
        raise UpdateError(
            f"expected rising positions below {size}, got others", reason="out of range"
        )
    return positions
