"""The one error tree.

    Her2Error                     anything a user can cause or fix; shown without a stack trace
    ├── ConfigError               site.yaml, federation.yaml or an option is wrong         (exit 2)
    ├── DataError                 what the hospital gave cannot be used                    (exit 1)
    │   ├── TableError            cases.csv or lesions.csv: row, column, expected, got
    │   └── ImageError            one image file: what was expected, what was found
    ├── CacheError                the cache is missing, foreign, damaged or too small      (exit 1)
    ├── ConnectionFailedError     an address, certificate or key is refused                (exit 1)
    ├── StorageError              a file cannot be written: full disk, no locks            (exit 1)
    ├── PolicyError               the site's own policy says no                            (exit 1)
    ├── TrainingError             local training broke down                                (exit 1)
    ├── StaleBaseError            an order builds on weights that this site does not hold  (exit 1)
    ├── UpdateError               a message from a site cannot be used                     (exit 1)
    ├── MetricError               scores, labels or counts that no metric can use          (exit 1)
    ├── RunError                  the run cannot go on; it can usually be resumed          (exit 1)
    └── CheckpointError           a checkpoint is missing or damaged                       (exit 1)

Messages say "expected X, got Y" and where. They may name a table's row and column and a file
inside the site; they never quote a cell of a patient's row beyond the value that is out of
range. What leaves a site is the ``code`` alone, never the text.
"""

from __future__ import annotations

from typing import Final, Literal

Disposition = Literal["set aside", "quarantined", "refused"]
"""What becomes of an image that is not used: sound but of another kind (an implant view, a
subtraction); perhaps showing a name, so that a person must look; or not usable."""


class Her2Error(Exception):
    """Base of all errors a user can cause or fix.

    ``hint`` is the next thing to try, in one sentence; ``code`` is what may leave a site.
    """

    code = "error"
    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(Her2Error):
    """A configuration file or a command's option is wrong."""

    code = "config"
    exit_code = 2


class DataError(Her2Error):
    """What the hospital gave cannot be used."""

    code = "data"


class TableError(DataError):
    """A case or lesion table breaks its contract."""

    code = "table"


class ImageError(DataError):
    """An image is not used; ``reason`` is a short stable word for counts and reports."""

    code = "image"

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        disposition: Disposition = "refused",
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        self.disposition = disposition


class CacheError(Her2Error):
    """The cache is missing, foreign, damaged or too small for the run."""

    code = "cache"


class ConnectionFailedError(Her2Error):
    """The SuperLink does not answer, or one side does not trust the other."""

    code = "connection"


class StorageError(Her2Error):
    """A file cannot be written or locked. Once that is fixed, the same may be tried again."""

    code = "storage"


class PolicyError(Her2Error):
    """The site's own policy refuses a task."""

    code = "policy"


class TrainingError(Her2Error):
    """Local training broke down."""

    code = "training"


class StaleBaseError(Her2Error):
    """An order names weights that this site does not hold; the coordinator sends them whole."""

    code = "stale_base"


class UpdateError(Her2Error):
    """A message from a site cannot be used; ``reason`` names the fault in one or two words."""

    code = "update"

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class MetricError(Her2Error):
    """Scores, labels, counts or a threshold are outside what a metric is defined for."""

    code = "metric"


class RunError(Her2Error):
    """The run cannot go on."""

    code = "run"


class CheckpointError(Her2Error):
    """A checkpoint is missing or damaged."""

    code = "checkpoint"


def _codes(kind: type[Her2Error]) -> frozenset[str]:
    return frozenset({kind.code}).union(*(_codes(child) for child in kind.__subclasses__()))


SITE_CODES: Final = _codes(Her2Error) - {"error", "run"} | {"internal"}
"""Every code that may leave a site: those of the tree but for the base and what only a coordinator
raises, and "internal" for a fault of the program."""
