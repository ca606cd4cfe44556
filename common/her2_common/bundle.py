"""The thin Flower bundle: names the installed packages and carries no code.

A run at a SuperLink needs a bundle (FAB). Ours holds a pyproject.toml and a README, so its hash
follows from the her2-map version alone; a site builds the same bundle from what it installed,
compares the hashes, and never unpacks or imports what came over the wire.
"""

from __future__ import annotations

import hashlib
from functools import cache

from her2_common import __version__

_PYPROJECT = f"""\
[project]
name = "her2-map"
version = "{__version__}"
description = "Runs the installed her2-map"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "her2-map"
fab-include = ["README.md"]

[tool.flwr.app.components]
serverapp = "her2_server.app:app"
clientapp = "her2_client.app:app"

[tool.flwr.app.config]
"""

_README = "This bundle carries no code: every site runs the her2-map that it installed.\n"


@cache
def build_bundle() -> bytes:
    """The bundle of the installed version; the same bytes wherever it is built."""
    from flwr.cli.build import build_fab_from_files

    content, _ = build_fab_from_files(
        {"pyproject.toml": _PYPROJECT.encode(), "README.md": _README.encode()}
    )
    return content


def bundle_hash(content: bytes | None = None) -> str:
    """SHA-256 of ``content`` (default: the installed version's own bundle), in hex."""
    return hashlib.sha256(build_bundle() if content is None else content).hexdigest()
