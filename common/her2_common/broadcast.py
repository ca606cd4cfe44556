"""The model that the sites hold, and how it moves: few bytes both ways, the same bits at all ends.

For one parameter group, as in DoubleSqueeze (Tang et al., ICML 2019):

1. The run's model is the vector V that the sites hold. It begins as the initial weights W rounded
   to 16 bits, ``decode(encode(W, "int16")[0])``. The coordinator keeps V and what its own roundings
   left over.
2. A site names what it holds by its ``fingerprint`` in each reply.
3. An order names the fingerprint of its round's V. It carries the last ``Advance.encoded`` to a
   site that holds the V before, nothing to one that holds this V, V in float32 to any other (in
   the first round the 16 bits).
4. The site ``follow``s: it adds the decoded change to what it holds, as the coordinator did, and
   compares the fingerprint. A mismatch is an UpdateError, "wrong base": V is then sent whole.
5. The site trains from V and ``encode``s the change together with its residual.
6. The coordinator decodes the replies, folds them in, and ``advance``s V by their mean.

V, not a more exact copy, is what is validated and released: the weights that were tried are those
that are used. What V lacks to the exact sum is in the coordinator's residual and follows later; but
for float32's own rounding of V + change.

The caller keeps, durably and before anything leaves: at a site the residual and V; at the
coordinator V, its residual and the last encoded change. A site continues from the residual of the
last of its updates that was folded in, which the order names: an update that was refused or came
too late was not added, and its residual does not hold.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from her2_common.encoding import Encoded, Kind, decode, encode
from her2_common.errors import UpdateError


class Advance(NamedTuple):
    """A step of what the sites hold, float32 (n,), and what its rounding left over, (n,)."""

    encoded: Encoded
    held: np.ndarray
    residual: np.ndarray


def fingerprint(vector: np.ndarray) -> str:
    """SHA-256 of a float32 vector's bits, hex: by this a site names what it holds.

    >>> fingerprint(np.zeros(2, dtype=np.float32))[:12]
    'af5570f5a181'
    """
    return hashlib.sha256(np.ascontiguousarray(vector, dtype="<f4").data).hexdigest()


def advance(
    held: np.ndarray,
    change: np.ndarray,
    kind: Kind,
    share: float = 1.0,
    residual: np.ndarray | None = None,
) -> Advance:
    """Move what the sites hold by ``change`` as they will decode it; all float32 (n,).

    Raises:
        UpdateError: as ``encode``.
    """
    encoded, left = encode(change, kind, share, residual)
    return Advance(encoded, held + decode(encoded), left)


def follow(held: np.ndarray, encoded: Encoded, expected: str) -> np.ndarray:
    """What a site holds after the coordinator's ``advance``, float32 (n,), bit for bit.

    ``expected`` is the fingerprint that the order names.

    Raises:
        UpdateError: as ``decode``, and "wrong base" where the site held something else.
    """
    change = decode(encoded)
    if change.shape != held.shape or held.dtype != np.float32:
        raise UpdateError("expected a change of what this site holds", reason="wrong base")
    with np.errstate(over="ignore"):
        moved: np.ndarray = held + change
    if (got := fingerprint(moved)) != expected:
        raise UpdateError(
            f"expected weights {expected[:12]}..., got {got[:12]}...", reason="wrong base"
        )
    return moved
