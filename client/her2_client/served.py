"""Which cases a run's model was trained and validated on, by the site's own record.

The split of a case is drawn at ingest. If a table with other splits is ingested later, a case that
trained an earlier run may become a test case, and neither table nor cache shows it. So a site
writes the pseudonyms of its training and validation cases to ``state``/served/<run>.json before it
trains, and reads this record before a case counts as held out. A new pseudonym key makes new
pseudonyms: the record then matches no case.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from her2_common.documents import parse_json
from her2_common.errors import DataError
from her2_common.files import replace_privately

FOLDER: Final = "served"


def served(state: Path, run: str) -> frozenset[str]:
    """The pseudonyms of the cases that trained or validated in a run here; empty if none did.

    Raises:
        DataError: the record is damaged.
    """
    path = state / FOLDER / f"{run}.json"
    try:
        names: list[str] = parse_json(path.read_bytes())
        return frozenset(map(str, names))
    except FileNotFoundError:
        return frozenset()
    except (ValueError, TypeError, OSError):
        raise DataError(
            f"{path}: the record of the cases that trained the model is damaged",
            hint="restore it from your backup",
        ) from None


def note_served(state: Path, run: str, pseudonyms: Iterable[str]) -> None:
    """Add cases to the record of a run.

    Raises:
        DataError: the record is damaged.
    """
    before = served(state, run)
    if not before.issuperset(names := set(pseudonyms)):
        content = json.dumps(sorted(before | names), indent=0) + "\n"
        replace_privately(state / FOLDER / f"{run}.json", content.encode())
