"""Killed at any moment and resumed, a run ends with the bits of an undisturbed one."""

from __future__ import annotations

import hashlib
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.federation import chaos
from tests.federation.chaos import Kill

# A forked child watches its own files through /proc.
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

MakeFederation = Callable[..., Any]
TWO = {"centre-a": (30, ("mg", "us")), "centre-d": (30, ("us",))}
MOST_KILLS = 3
"""In one trial; the run is then left to end."""

EVERY_MEMORY = {
    "strategy": {"local": {"name": "scaffold"}},
    "compression": {"up": "int8", "keep": 0.1, "down": "int8"},
}
"""The settings with which both sides keep the most between rounds."""


def digests(root: Path) -> dict[str, str]:
    """SHA-256 of the files of the release."""
    release = root / "out" / "release"
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(release.iterdir())}


class Ground:
    """A run that is ready to begin, and how it ends if nothing happens."""

    def __init__(self, root: Path) -> None:
        self.pristine = root
        calm = self.copy("calm")
        assert not chaos.start(calm, None, None).killed
        self.expected = digests(calm)
        self.acts, self.seconds = chaos.size(calm)

    def copy(self, name: str) -> Path:
        root = self.pristine.with_name(name)
        shutil.copytree(self.pristine, root)
        return root

    def trial(self, seed: int, kills: int = MOST_KILLS) -> int:
        """A run that is killed up to ``kills`` times; how often it was."""
        chance = random.Random(seed)
        root = self.copy(f"seed-{seed}")
        unrest = seed if chance.random() < 0.5 else None
        done: list[Kill] = []
        seconds = 0.0
        for count in range(kills):
            how = chance.choice(("act", "torn", "time"))
            most = self.seconds if how == "time" else self.acts
            # Later kills come sooner: less is left to do.
            at = chance.uniform(0.02, 0.9) * most / (count + 1)
            kill = Kill(how, at, seed)  # type: ignore[arg-type]
            trial = chaos.start(root, kill, unrest)
            assert not trial.hung, f"seed {seed}: hung after {kill}"
            seconds += trial.seconds
            if not trial.killed:
                break
            done.append(kill)
        else:
            trial = chaos.start(root, None, unrest)
            assert not trial.hung, f"seed {seed}: hung"
            seconds += trial.seconds
        told = ", ".join(f"{kill.how} {kill.at:.1f}" for kill in done) or "none"
        print(f"seed {seed}: {len(done)} kills ({told}), unrest {unrest}, {seconds:.1f} s")
        assert digests(root) == self.expected, f"seed {seed}: other bits after {done}"
        shutil.rmtree(root)
        return len(done)


@pytest.fixture
def ground(make_federation: MakeFederation, tmp_path: Path) -> Ground:
    make_federation(
        "pristine",
        centres=TWO,
        rounds=4,
        round_timeout=60,
        start_timeout=60,
        retries=20,
        patience=3,
        **EVERY_MEMORY,
    )
    return Ground(tmp_path / "pristine")


def test_three_kills_change_no_bit(ground: Ground) -> None:
    kills, seed = 0, 1
    while kills < 3:
        kills += ground.trial(seed, kills=3 - kills)
        seed += 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_thirty_kills_change_no_bit(ground: Ground) -> None:
    kills, seed = 0, 100
    while kills < 36:
        kills += ground.trial(seed)
        seed += 1
    print(f"{kills} kills, 0 differing bits, 0 hangs; undisturbed {ground.seconds:.1f} s")
