"""Excluding a site from a run that has begun: ``her2-server resume RUN --without SITE``.

1. The run goes back to the checkpoint before the first round without the site: no update of later
   rounds is left in the weights, the server's optimiser or the residuals. That checkpoint must be
   kept (``run.kept_rounds``); the other sites keep as many memories, so that each finds that of its
   own last update before it.
2. exclusions.json names the site and the round, and from then on the run is that of the others.

A kill before 2 leaves a run that had come less far. The site's updates of earlier rounds stay in,
and its row in the report, as excluded. What the test cases were scored with
is worked out again if the run goes back, and else kept, for sites score them with one set of
weights a run.
"""

from __future__ import annotations

from her2_common.errors import CheckpointError, ConfigError, RunError
from her2_server import checkpoint, frozen
from her2_server.run_folder import RunFolder


def exclude(folder: RunFolder, site: str, first: int | None = None) -> int:
    """Exclude ``site`` from round ``first`` on (None: from the next round on); returns the round.

    Raises:
        ConfigError: there is no such site or round, or no other site trains.
        RunError: the run is finished, or the checkpoint to go back to is not kept.
        CheckpointError: there is no sound checkpoint.
    """
    config = folder.load_config()
    if folder.summary.exists():
        raise RunError(
            f"{folder.path}: the run is finished; its test cases have been scored",
            hint="begin another run, with a federation.yaml without the site",
        )
    if site not in config.training or len(config.training) < 2:
        names = (
            ", ".join(config.training) if len(config.training) > 1 else "none: only one site trains"
        )
        raise ConfigError(f"--without: expected a site that trains ({names}), got {site!r}")
    kept = checkpoint.kept_rounds(folder.rounds)
    last = checkpoint.latest(folder.rounds).round if kept else 0
    number = last + 1 if first is None else first
    if not 1 <= number <= last + 1:
        raise ConfigError(f"--from: expected a round from 1 to {last + 1}, got {number}")
    if number <= last:
        try:
            checkpoint.load(folder.rounds / f"{number - 1:04d}")
        except CheckpointError as error:
            rounds = ", ".join(str(n + 1) for n in kept if n <= last)
            raise RunError(
                f"--from {number}: cannot go back to round {number - 1}: {error}",
                hint=f"expected one of {rounds}; run.kept_rounds of federation.yaml says how many "
                "are kept; or begin another run without the site",
            ) from None
        frozen.drop(folder)
        checkpoint.drop_after(folder.rounds, number - 1)
    folder.exclude(site, number)
    return number
