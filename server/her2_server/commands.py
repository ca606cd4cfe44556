"""What the commands of `her2-server` do; cli.py has their options.

Work at the SuperLink is done in steps, each over a run of its own there: to train, and then, if it
is asked for, to compare. A step that is broken off (an error, Ctrl-C, SIGTERM) ends with the
command that goes on with it; the folder is held over all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from flwr.serverapp import Grid
from rich.markup import escape

from her2_common.children import interrupted_by_sigterm
from her2_common.config import FederationConfig, load
from her2_common.console import console
from her2_common.errors import RunError
from her2_common.files import storage_error
from her2_common.model import preset
from her2_server import leave_one_out as leave
from her2_server.compare import conduct_comparison, require_finished, tell
from her2_server.coordinator import Coordinator
from her2_server.exclusion import exclude
from her2_server.initial import read_initial
from her2_server.report import write_report
from her2_server.run_folder import RunFolder
from her2_server.status import COMPARISON_FILE
from her2_server.summary import close
from her2_server.superlink import conduct

INTERRUPTED: Final = 130
"""The exit code after Ctrl-C, as shells have it: 128 and the signal's number."""

Notify = Callable[[str], None]


class Step(NamedTuple):
    """``work`` over a run at the SuperLink, and the command that goes on with it."""

    work: Callable[[Grid, Notify], object]
    again: str


def run(
    federation: Path, config: FederationConfig, folder: RunFolder, *, then_compare: bool
) -> None:
    """Conduct a new run in ``folder``."""
    # Faults of the plan are told before the SuperLink is asked
    preset(config.run.preset, **config.run.layout)
    read_initial(config)
    steps = [_training(folder), *([_comparison(folder)] if then_compare else [])]
    _conduct(folder, config, steps, prepare=lambda: folder.create(federation))


def resume(
    folder: RunFolder,
    config: FederationConfig,
    *,
    without: str | None = None,
    first: int | None = None,
) -> None:
    """Go on with the run in ``folder``; ``without`` a site, from round ``first`` on (None: the
    next).

    Raises:
        RunError: it is finished, or cannot go back so far.
        ConfigError: there is no such site or round.
    """
    if without is not None:
        with folder.held():
            number = exclude(folder, without, first)
        folder.logging(lambda text: console.print(escape(text), soft_wrap=True))(
            f"{without} is excluded from round {number} on"
        )
        config = folder.load_config()
    compared = (folder.path / COMPARISON_FILE).exists()
    if not _closed(folder):
        if folder.summary.exists():
            more = "" if compared else f"; to compare with local models: {_compare(folder)}"
            raise RunError(
                f"{folder.path}: the run is finished; its test split is not scored again",
                hint=f"its report is {folder.path / 'report.html'}{more}",
            )
        _conduct(folder, config, [_training(folder)])
    if not compared:  # perhaps it was begun with --compare
        console.print(f"to compare with local models: {_compare(folder)}", soft_wrap=True)


def compare(folder: RunFolder, config: FederationConfig) -> Path:
    """Compare the finished run in ``folder`` with local models; returns compare.json."""
    require_finished(folder)
    _conduct(folder, config, [_comparison(folder)])
    return folder.path / COMPARISON_FILE


def leave_one_out(federation: Path, out: Path, runs: Sequence[leave.LeftOut]) -> Path:
    """Conduct those of ``runs`` that are not finished; returns the file of all results."""
    config = load(FederationConfig, federation)
    words = ["her2-server leave-one-out", str(federation), "--out", str(out)]
    if len(runs) < len(config.sites):
        words += [f"--without {left.site}" for left in runs]
    for left in runs:
        if left.finished:
            _closed(left.folder)
            console.print(f"{left.folder.path}: finished, passed over", soft_wrap=True)
            continue
        console.print(f"without {left.site}: {left.folder.path}", soft_wrap=True)
        step = Step(partial(_train, left.folder), " ".join(words))
        _conduct(left.folder, left.config, [step], prepare=left.prepare)
    finished = [left for left in leave.plan(federation, out) if left.finished]
    document = leave.results(RunFolder(out / config.name), finished)
    path = out / f"{config.name}-leave-one-out.json"
    RunFolder(out).write_json(path, document)
    console.print(leave.table(document))
    console.print(f"results {path}", soft_wrap=True)
    return path


def report(folder: RunFolder) -> None:
    """Draw the report of the finished run in ``folder`` again."""
    require_finished(folder)
    console.print(f"report  {write_report(folder.path)}", soft_wrap=True)


# --- steps --------------------------------------------------------------------------------------


def _training(folder: RunFolder) -> Step:
    return Step(partial(_train, folder), f"her2-server resume {folder.path}")


def _train(folder: RunFolder, grid: Grid, notify: Notify) -> None:
    Coordinator(grid, folder, notify).run()


def _comparison(folder: RunFolder) -> Step:
    def work(grid: Grid, notify: Notify) -> None:
        tell(conduct_comparison(grid, folder, notify), notify)

    return Step(work, _compare(folder))


def _compare(folder: RunFolder) -> str:
    return f"her2-server compare {folder.path}"


def _closed(folder: RunFolder) -> bool:
    """Does what a run left undone that was killed between its summary and its report."""
    if not folder.summary.exists() or (folder.path / "report.html").exists():
        return False
    with folder.held():
        close(folder)
    console.print(f"finished, report  {folder.path / 'report.html'}", soft_wrap=True)
    return True


def _conduct(
    folder: RunFolder,
    config: FederationConfig,
    steps: Sequence[Step],
    prepare: Callable[[], None] = lambda: None,
) -> None:
    """Do ``steps`` one after the other; ``prepare`` is called once the SuperLink has accepted the
    first."""
    started = time.monotonic()

    def notify(text: str) -> None:
        shown = escape(text)
        console.print(f"[dim]{time.monotonic() - started:6.1f} s[/]  {shown}", soft_wrap=True)

    with ExitStack() as stack:
        for number, (work, again) in enumerate(steps):
            previous = folder.flower_run()
            with (
                _interruptible(folder, again),
                conduct(
                    config, notify, previous=previous, again=again, frozen=folder.config
                ) as held,
            ):
                if number == 0:
                    stack.enter_context(folder.held())
                    prepare()
                folder.set_flower_run(held.run_id)
                work(held.grid, notify)
    notify(f"report  {folder.path / 'report.html'}")


@contextmanager
def _interruptible(folder: RunFolder, again: str) -> Iterator[None]:
    """Ctrl-C, SIGTERM and a full disk end the block in order, with the command that goes on as a
    hint.

    Raises:
        RunError: the block was interrupted, and ``folder`` holds a run to go on with.
    """
    try:
        with interrupted_by_sigterm():
            yield
    except OSError as fault:
        if (known := storage_error(fault)) is None or not folder.config.exists():
            raise
        raise RunError(str(known), hint=f"{known.hint}: {again}") from fault
    except KeyboardInterrupt:
        if not folder.config.exists():
            raise
        error = RunError("interrupted", hint=f"go on with it: {again}")
        error.exit_code = INTERRUPTED
        raise error from None
