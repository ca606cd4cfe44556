"""Seeds by name: one run seed gives every random decision of a federation its own stream."""

from __future__ import annotations

import hashlib


def seed_for(seed: int, *parts: str | int) -> int:
    """A 63-bit seed for the decision named by ``parts``, e.g. ("augment", site, round, epoch).

    SHA-256 of the parts, so that streams are unrelated, do not depend on the platform, and a
    restarted site finds its own again.

    >>> seed_for(1, "train", "centre-a", 3) == seed_for(1, "train", "centre-a", 3)
    True
    """
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
