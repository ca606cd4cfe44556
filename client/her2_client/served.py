"""Which cases served to make a run's model, by the site's own record.

The split of a case is drawn at ingest. A table with other splits, ingested anew, makes a test case
of one that trained the model of an earlier run, and neither table nor cache tells. So a site notes,
before it trains, whom it trains and validates with (``state``/served/<run>.json, pseudonyms alone),
and asks this record before a case counts as held out. With another pseudonym key the record knows
nobody.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

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
        names: list[str] = json.loads(path.read_bytes())
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
