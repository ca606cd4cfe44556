"""The options of predict that explain: checked at once, carried out after the prediction."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from her2_client.explain.run import PAGE, check_folder, choose, write_explanations
from her2_client.predict import Predicted
from her2_common.console import console
from her2_common.errors import ConfigError


def explainer(
    folder: Path | None, *, out: Path, site: str, cases: str | None, limit: int, force: bool
) -> Callable[[Predicted], Callable[[], None]]:
    """What predict does with its result once its table is written: nothing if ``folder`` is None.
    ``out`` is that table.

    ``cases`` are case_ids with commas between; without them the first ``limit`` cases are taken.

    Raises:
        ConfigError: the folder holds other files, or an option stands without it.
    """
    names = None if cases is None else [name.strip() for name in cases.split(",")]
    if folder is None:
        if names is not None:
            raise ConfigError(
                "--cases: expected with --explain, got no --explain",
                hint="--cases chooses the cases that --explain DIR explains",
            )
        return lambda _: lambda: None
    if names is not None and not all(names):
        raise ConfigError("--cases: expected case_ids with commas between, got a blank one")
    if folder.resolve() in (out.resolve(), *out.resolve().parents[:1]):
        raise ConfigError(f"--explain: expected a folder of its own, got that of --out: {folder}")
    check_folder(folder, force=force)

    def then(predicted: Predicted) -> Callable[[], None]:
        choose(predicted, names)  # unknown cases are told before anything is written
        return partial(write, predicted)

    def write(predicted: Predicted) -> None:
        columns = (
            TextColumn("explaining"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("cases"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("explaining", total=None)
            count = write_explanations(
                folder,
                predicted,
                site=site,
                cases=names,
                limit=limit if names is None else None,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        cut = names is None and count < len(predicted.rows)
        told = f"the first {count} of {len(predicted.rows)}" if cut else str(count)
        console.print(
            f"wrote {folder / PAGE}: {told} cases (stays here)", markup=False, soft_wrap=True
        )
        if cut:
            console.print("--explain-limit N explains more, --cases ID,ID those that you name")

    return then
