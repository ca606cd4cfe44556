"""The model that the sites hold, and how it moves: few bytes both ways, the same bits at all ends.

For one vector (a parameter group, or its control), as in DoubleSqueeze (Tang et al., ICML 2019):

1. The run's model is the vector V that the sites hold. It begins as the initial weights. The
   coordinator keeps V, the last step, and what its own roundings left over.
2. An order names the fingerprint of its round's V. It carries the last step to a site that holds
   the V before, nothing to one that holds this V or draws it from the run's seed (in round 1), V in
   float32 to any other. What a site holds is known from the last order that it answered.
3. The site ``follow``s: it adds the decoded step to what it holds, as the coordinator did, and
   compares the fingerprint. If it does not hold what the step builds on (it was restarted, an order
   was lost), it says so (StaleBaseError), and V is sent whole.
4. The site trains from V and ``encode``s the change together with its residual.
5. The coordinator folds the decoded replies in, and ``advance``s V by what follows from them.

V, not a more exact copy, is what is validated and released: the weights that were tried are those
that are used. What V lacks to the exact sum is in the coordinator's residual and follows later; but
for float32's own rounding of V + change.

V, its residual and its last step are kept in the coordinator's checkpoint. A site keeps V in memory
alone, and its own residual durably (her2_client.site_memory): it continues from the residual of the
last of its updates that was folded in, which the order names: an update that was refused or came
too late was not added, and its residual does not hold.
"""

from __future__ import annotations

import hashlib

import numpy as np

from her2_common.encoding import Encoded, Kind, add_to, encode
from her2_common.errors import StaleBaseError


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
) -> tuple[Encoded, np.ndarray]:
    """Move what the sites hold by ``change`` as they will decode it; all float32 (n,).

    ``held`` is moved in place, ``change`` is used up. Returns the step, and what its rounding left
    over (in the array of ``change``).

    Raises:
        UpdateError: as ``encode``; nothing has moved then.
    """
    step, left = encode(change, kind, share, residual, out=change)
    add_to(held, step)
    return step, left


def follow(held: np.ndarray, encoded: Encoded, expected: str) -> np.ndarray:
    """Move what a site holds as the coordinator's ``advance`` did: ``held``, float32 (n,), in
    place, which is returned.

    ``expected`` is the fingerprint that the order names.

    Raises:
        UpdateError: as ``decode``; ``held`` is as it was.
        StaleBaseError: the site held something else; ``held`` is of no use any more.
    """
    if held.shape == (encoded.size,):
        add_to(held, encoded)
    if (got := fingerprint(held)) != expected:
        raise StaleBaseError(f"expected weights {expected[:12]}..., got {got[:12]}...")
    return held
