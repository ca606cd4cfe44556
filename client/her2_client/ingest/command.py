"""``her2-client ingest``."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from her2_client.cache import open_cache, read_outcomes
from her2_client.ingest.duke import build_duke, duke_table
from her2_client.ingest.privacy.guard import REVIEW_HINT
from her2_client.ingest.privacy.review import (
    MAX_PICTURES,
    decisions_file,
    merge_decisions,
    write_sheet,
)
from her2_client.ingest.quality.page import write_page
from her2_client.ingest.quality.readiness import Readiness, readiness
from her2_client.ingest.quality.sharing import shareable
from her2_client.ingest.quality.sheet import remove_sheet
from her2_client.ingest.quality.sheet import write_sheet as write_cache_sheet
from her2_client.ingest.run import IngestError, asked_digests, check_key, quarantined_pictures
from her2_client.ingest.run import Progress as Report
from her2_client.ingest.run import ingest as run_ingest
from her2_client.ingest.summary import DISPOSITIONS, IngestSummary, summary_table
from her2_client.keys import check_private, read_pseudonym_key
from her2_common.cases import pseudonym, read_cases
from her2_common.config import SiteConfig, load
from her2_common.console import console, print_json
from her2_common.errors import CacheError, ConfigError, DataError
from her2_common.files import replace_privately

MAX_NOTES_SHOWN: Final = 50
QUALITY_PAGE: Final = "quality.html"
SHEET: Final = "ingest/sheet.html"
"""In the site's state."""
SHARED_PAGE: Final = "quality-to-share.html"
IN_JSON: Final = "--json lists all of them"


def ingest(
    site: Annotated[Path, typer.Option(help="The site's configuration.")] = Path("site.yaml"),
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one a CPU.")
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Fail if any image is refused or quarantined."),
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do unchanged images again, too.")] = False,
    review: Annotated[
        bool, typer.Option("--review", help="Write the contact sheet of quarantined pictures.")
    ] = False,
    decisions: Annotated[
        Path | None, typer.Option(help="A reviewer's decisions, from the contact sheet.")
    ] = None,
    sheet: Annotated[
        bool,
        typer.Option(
            "--sheet", help="Write the contact sheet of what the cache holds, and nothing else."
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="With --sheet: its file, if not in the site's state.")
    ] = None,
    duke: Annotated[
        Path | None,
        typer.Option(help="Build the tables from Duke-Breast-Cancer-MRI in this folder first."),
    ] = None,
    strict_nodes: Annotated[
        bool, typer.Option("--strict-nodes", help="With --duke: pCR demands a recorded ypN0.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="With --duke: replace tables that differ.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Standardise the site's images into its cache.

    An interrupted ingest goes on where it was; images whose files have not changed are not done
    again. What is quarantined waits for a person: --review, then --decisions.

    Exit 1 if nothing is published, unless --review wrote the sheet of what waits for a person.
    """
    config = load(SiteConfig, site)
    # What is worth saying about a file is said by us.
    logging.getLogger("pydicom").setLevel(logging.ERROR)
    if duke is None and (strict_nodes or force):
        raise ConfigError("--strict-nodes and --force go with --duke")
    if out is not None and not sheet:
        raise ConfigError("--out goes with --sheet")
    if sheet:
        if strict or fresh or review or decisions is not None or duke is not None:
            raise ConfigError("--sheet shows the cache as it is: it takes --out and --json alone")
        _write_sheet_of_cache(config, out, as_json=as_json)
        return
    document: dict[str, Any] = {}
    if duke is not None:
        document["duke"] = _build_tables(config, duke, strict_nodes=strict_nodes, force=force)
        if not document["duke"]["mri"]["found"]:
            console.print("no images in the folder: the tables are built, nothing to ingest")
            if as_json:
                print_json(document)
            return
    if decisions is not None:
        _take_decisions(config, decisions)
    failed: IngestError | None = None
    with _progress_bar() as report:
        try:
            summary = run_ingest(
                config, workers=workers, strict=strict, fresh=fresh, progress=report
            )
        except IngestError as error:
            summary, failed = error.summary, error
        except KeyboardInterrupt:
            console.print("what was done is kept: run it again, and it goes on where it was")
            raise
    verdict = readiness(summary, config.policy)
    show(summary, verdict, f"all of them are on {QUALITY_PAGE}", review=review)
    _warn_of_open_key(config)
    if summary.published and remove_sheet(config.state / SHEET):
        console.print("removed the contact sheet of the former cache; --sheet makes a new one")
    for page, use in _write_pages(config, summary).items():
        console.print(f"wrote {page} ({use})", markup=False, soft_wrap=True)
    waiting = _write_review(config, summary) if review else None
    if as_json:
        print_json(document | summary.as_dict() | {"readiness": verdict.as_dict()})
    if failed is not None:
        if waiting is None or strict:
            raise failed
        console.print("nothing was published yet: no picture can be used before the review")
    console.print(f"next: {_next_step(summary, verdict, waiting)}", markup=False, soft_wrap=True)


def _next_step(summary: IngestSummary, verdict: Readiness, sheet: Path | None) -> str:
    if sheet is not None:
        return f"open {sheet}, save the decisions, then her2-client ingest --decisions FILE"
    ready = verdict.verdict != "not ready"
    if summary.reasons["quarantined"]:
        review = "her2-client ingest --review"
        return f"{review}, or go on without those: her2-client start" if ready else review
    if not ready:
        return "fix the problems above, then her2-client ingest"
    return "her2-client ingest --sheet shows what training will see; then her2-client start"


def _warn_of_open_key(config: SiteConfig) -> None:
    try:
        check_private(config.data.pseudonym_key_file)
    except DataError as error:
        console.print(f"{error}; {error.hint}", style="yellow", markup=False, soft_wrap=True)


def check_data(
    config: SiteConfig, *, workers: int | None = None
) -> tuple[IngestSummary, Readiness]:
    """What an ingest would do, with nothing written: for ``her2-client check --data``."""
    logging.getLogger("pydicom").setLevel(logging.ERROR)
    with _progress_bar("checking the data") as report:
        try:
            summary = run_ingest(config, workers=workers, write=False, progress=report)
        except IngestError as error:
            summary = error.summary
    verdict = readiness(summary, config.policy)
    show(summary, verdict, f"her2-client ingest writes all of them to {QUALITY_PAGE}")
    return summary, verdict


def show(summary: IngestSummary, verdict: Readiness, rest: str, *, review: bool = False) -> None:
    """Print what was not used, the counts and the verdict, for the engineer at the screen.

    ``rest`` says where the notes beyond ``MAX_NOTES_SHOWN`` are; ``review``: whether this command
    makes the review's sheet, so that its hint is not given.
    """
    notes = [
        f"{disposition}: {note}"
        for disposition in DISPOSITIONS
        for note in summary.unused(disposition)
    ]
    _show_lines(notes, rest)
    console.print(summary_table(summary))
    done = f"{summary.fresh} images done, {summary.unchanged} unchanged"
    console.print(f"{summary.accepted} cases in {summary.seconds:.1f} s: {done}")
    hints = dict.fromkeys(note.note.hint for note in summary.notes if note.note.hint)
    for hint in hints:
        if not (review and hint == REVIEW_HINT):
            console.print(Padding(f"hint: {escape(hint)}", (0, 0, 0, 2)))
    console.print(verdict.verdict, style="bold")
    for text in verdict.blockers:
        console.print(Padding(f"to be fixed: {escape(text)}", (0, 0, 0, 2)))
    for text in verdict.gaps:
        console.print(Padding(f"gap: {escape(text)}", (0, 0, 0, 2)))


def _show_lines(lines: Sequence[str], rest: str) -> None:
    """The first ``MAX_NOTES_SHOWN`` lines, then how many more there are and, by ``rest``, where."""
    for line in lines[:MAX_NOTES_SHOWN]:
        console.print(line, markup=False, soft_wrap=True)
    if (more := len(lines) - MAX_NOTES_SHOWN) > 0:
        console.print(f"and {more} more; {rest}", markup=False)


def _build_tables(
    config: SiteConfig, folder: Path, *, strict_nodes: bool, force: bool
) -> dict[str, Any]:
    with _progress_bar("reading the collection") as report:
        built = build_duke(
            folder,
            config.data.cases,
            config.data.lesions,
            strict_nodes=strict_nodes,
            force=force,
            progress=report,
        )
    console.print(duke_table(built))
    _show_lines([f"left blank: {fault}" for fault in built.faults], IN_JSON)
    unused = [f"images not used: {patient}: {reason}" for patient, reason in built.not_used.items()]
    _show_lines(unused, IN_JSON)
    if config.data.lesions is None:
        console.print(
            "data.lesions is not set in site.yaml: whole volumes will be used, not lesions",
            style="yellow",
        )
    return built.as_dict()


def _write_pages(config: SiteConfig, summary: IngestSummary) -> dict[Path, str]:
    """The page for the site, and, of a cache that was published, the page and the numbers that may
    leave it; returns the pages and what each is for."""
    folder = config.state / "ingest"
    pages = {folder / QUALITY_PAGE: "stays here"}
    try:
        write_page(folder / QUALITY_PAGE, summary, config.policy)
        if summary.published:
            shared = shareable(summary, config.policy)
            numbers = json.dumps(shared, indent=2, allow_nan=False)
            write_page(folder / SHARED_PAGE, summary, config.policy, shared)
            replace_privately(folder / "quality-to-share.json", numbers.encode() + b"\n")
            pages[folder / SHARED_PAGE] = "may leave"
    except OSError as error:
        cache = "complete" if summary.published else "as it was"
        raise CacheError(
            f"{folder}: the pages cannot be written: {error.strerror}",
            hint=f"the cache is {cache}; make the folder writable and run it again",
        ) from None
    return pages


def _take_decisions(config: SiteConfig, decisions: Path) -> None:
    log = decisions_file(config.state)
    count = merge_decisions(log, decisions, asked=asked_digests(config.data.cache))
    told = "1 decision" if count == 1 else f"{count} decisions"
    console.print(f"{told} read from {decisions}", markup=False, soft_wrap=True)
    sheet = log.parent / "review.html"
    if sheet.exists():  # it shows patients' pixels
        sheet.unlink()
        console.print("removed the contact sheet; --review makes one of what is left")


def _write_review(config: SiteConfig, summary: IngestSummary) -> Path | None:
    """Write the sheet of what waits for a decision; None if nothing does."""
    with _progress_bar("drawing the sheet") as report:
        seen, more = quarantined_pictures(config, summary, limit=MAX_PICTURES, progress=report)
    path = decisions_file(config.state).parent / "review.html"
    if not seen:
        path.unlink(missing_ok=True)
        console.print("nothing to review: no picture waits for a decision")
        return None
    write_sheet(path, seen, site=config.name, more=more)
    count = "1 picture" if len(seen) == 1 else f"{len(seen)} pictures"
    console.print(f"wrote {path} ({count} to review)", markup=False, soft_wrap=True)
    return path


def _write_sheet_of_cache(config: SiteConfig, out: Path | None, *, as_json: bool) -> None:
    """Draw what the cache holds; the table is read again for its rows, the images are not."""
    key = read_pseudonym_key(config.data.pseudonym_key_file)
    check_key(config, key)
    table = read_cases(config.data.cases, config.data.lesions)
    cache, records = open_cache(config.data.cache), read_outcomes(config.data.cache)
    rows = {pseudonym(key, case.case_id): case.row for case in table.cases}
    first = out or config.state / SHEET
    try:
        pages = write_cache_sheet(first, cache, records, rows)
    except OSError as error:
        raise CacheError(
            f"{first}: the sheet cannot be written: {error.strerror}",
            hint="make the folder writable, or choose another file with --out",
        ) from None
    count = "1 page" if len(pages) == 1 else f"{len(pages)} pages"
    console.print(f"wrote {first} ({count}, {len(cache)} cases; stays here)", soft_wrap=True)
    if as_json:
        print_json({"cases": len(cache), "pages": [str(page) for page in pages]})


@contextlib.contextmanager
def _progress_bar(what: str = "ingest") -> Iterator[Report]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("cases"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield report
