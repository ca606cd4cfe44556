"""Releases for tests: a manifest that states something else, and its own digest as it must be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from her2_common.release import MANIFEST_NAME, manifest_digest


def restate(release: Path, **changes: Any) -> None:
    """Change what the manifest states, as whoever makes a release can; None takes a key away."""
    path = release / MANIFEST_NAME
    document = json.loads(path.read_text()) | changes
    document = {key: value for key, value in document.items() if value is not None}
    document["digest"] = manifest_digest(document)
    path.write_text(json.dumps(document))
