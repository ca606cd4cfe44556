"""A model of 30 million parameters (120 MB) for benchmarks, and programs that know it.

    python tests/benchmarks/scaled.py her2_client.cli start --site site.yaml

runs the ``main`` of a module with the preset ``scaled`` beside the ones that ship.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Final

from her2_common.model import PRESETS, Preset

WIDE, NARROW = (64, 256, 1024, 1152), (32, 96, 256, 448)
"""Widths that give 12.4 million parameters each for MG and US, and 4.6 million for MRI: the
proportions of the `paper` preset."""

SCALED: Final = Preset(
    image_size=32,
    volume_size=16,
    features=32,
    encoders={
        "mg": ("conv2d", {"widths": WIDE}),
        "us": ("conv2d", {"widths": WIDE}),
        "mri": ("conv3d", {"widths": NARROW}),
    },
)

PRESETS["scaled"] = SCALED


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs ``module`` with the preset known."""
    return [sys.executable, str(Path(__file__).resolve()), module, *arguments]


if __name__ == "__main__":
    name = sys.argv[1]
    sys.argv = sys.argv[1:]
    importlib.import_module(name).main()
