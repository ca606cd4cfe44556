"""``her2-client ingest``."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from her2_client.ingest.run import Progress as Report
from her2_client.ingest.run import ingest as run_ingest
from her2_client.ingest.summary import IngestSummary, summary_table
from her2_common.config import SiteConfig, load
from her2_common.console import console, print_json

MAX_REFUSALS_SHOWN: Final = 50


def ingest(
    site: Annotated[Path, typer.Option(help="The site's configuration.")] = Path("site.yaml"),
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one a CPU.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail, and write nothing, if any image is refused.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Standardise the site's images into its cache."""
    config = load(SiteConfig, site)
    # What is worth saying about a file is said by us.
    logging.getLogger("pydicom").setLevel(logging.ERROR)
    with _progress_bar() as report:
        summary = run_ingest(config, workers=workers, strict=strict, progress=report)
    show(summary)
    if as_json:
        print_json(summary.as_dict())


def show(summary: IngestSummary) -> None:
    """Print what was refused and the summary, for the engineer at the screen."""
    for refusal in summary.refusals[:MAX_REFUSALS_SHOWN]:
        console.print(f"refused: {refusal}", markup=False, soft_wrap=True)
    if len(summary.refusals) > MAX_REFUSALS_SHOWN:
        console.print(f"and {len(summary.refusals) - MAX_REFUSALS_SHOWN} more refused images")
    console.print(summary_table(summary))
    console.print(f"{summary.accepted} cases in {summary.seconds:.1f} s")


@contextlib.contextmanager
def _progress_bar() -> Iterator[Report]:
    columns = (
        TextColumn("ingest"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("cases"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("ingest", total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield report
