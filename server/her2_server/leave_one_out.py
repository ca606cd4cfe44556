"""Leave one centre out: for each site a run in which it takes no part, tested on its cases.

1. ``plan`` makes a run for each site: ``<name>-without-<site>``, with ``left_out`` in its
   federation.yaml. The others train and validate; threshold, temperature and limits come from them.
2. The caller conducts each that is not ``finished`` (her2_server.cli). A run that was broken off is
   resumed.
3. ``results`` sets the AUC at each site by the model that has not seen it beside that of the full
   run, if its folder is there. Both are of the same test cases.

What a report withholds (small groups, and those that would give them away) is withheld here: the
test cases of all sites are scored in every run, so that each run withholds the same groups.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from her2_common import __version__
from her2_common.config import FederationConfig, load, parse
from her2_common.errors import ConfigError, RunError
from her2_server.run_folder import RunFolder


@dataclass(frozen=True)
class LeftOut:
    """The run without ``site``."""

    site: str
    config: FederationConfig
    folder: RunFolder

    @property
    def finished(self) -> bool:
        """Has it been conducted to its end?"""
        return self.folder.summary.exists()

    def prepare(self) -> None:
        """Make its folder, unless the run was begun before."""
        if self.folder.config.exists():
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "federation.yaml"
            text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
            file.write_text(text, encoding="utf-8")
            self.folder.create(file)


def plan(federation: Path, out: Path, without: Collection[str] = ()) -> list[LeftOut]:
    """The runs of ``federation`` under ``out``, one for each site of ``without`` (none: for all).

    Raises:
        ConfigError: federation.yaml is faulty, or names no such site.
        RunError: a folder holds a run of another federation.yaml.
    """
    config = load(FederationConfig, federation)
    names = [site.name for site in config.sites]
    if unknown := sorted(set(without) - set(names)):
        raise ConfigError(f"--without: expected a site of {', '.join(names)}, got {unknown[0]!r}")
    runs = []
    for site in names:
        if without and site not in without:
            continue
        name = f"{config.name}-without-{site}"
        document = config.model_dump(mode="json") | {"name": name, "left_out": site}
        where = f"{federation.name}, without {site}"
        left = parse(FederationConfig, document, where=where, folder=federation.resolve().parent)
        run = LeftOut(site, left, RunFolder(out / name))
        if run.folder.config.exists() and _asks(run.folder.load_config()) != _asks(left):
            raise RunError(
                f"{run.folder.path}: holds a run of another federation.yaml",
                hint="choose another --out, or move the folder away",
            )
        runs.append(run)
    return runs


def _asks(config: FederationConfig) -> tuple[Any, ...]:
    """What two configurations of the same run have in common."""
    return config.name, config.left_out, config.sites, config.run


def results(full: RunFolder, runs: Sequence[LeftOut]) -> dict[str, Any]:
    """leave-one-out.json.

    ``version``, ``run``, and ``centres`` {name: ``n`` and ``positives`` of its test cases, ``auc``
    {``unseen``, ``full``} with 95 % intervals, ``threshold`` of the run without it and its
    ``sensitivity`` and ``specificity`` there}. What the reports withhold is ``suppressed``.
    """
    seen = _by_centre(full)
    centres: dict[str, Any] = {}
    for run in runs:
        summary = run.folder.read_summary()
        unseen = summary["test"]["by_centre"].get(run.site, {"suppressed": True})
        if "suppressed" in unseen:
            centres[run.site] = {"suppressed": True}
            continue
        centres[run.site] = {
            "n": unseen["n"],
            "positives": unseen["positives"],
            "auc": {"unseen": unseen["auc"], "full": seen.get(run.site, {}).get("auc")},
            "threshold": summary["threshold"]["value"],
            "sensitivity": unseen["sensitivity"],
            "specificity": unseen["specificity"],
        }
    return {"version": __version__, "run": full.path.name, "centres": centres}


def _by_centre(folder: RunFolder) -> Mapping[str, Any]:
    """The published test results of a finished run by centre; empty if it is not there."""
    if not folder.summary.exists():
        return {}
    centres: Mapping[str, Any] = folder.read_summary()["test"]["by_centre"]
    return centres


def table(document: Mapping[str, Any]) -> Table:
    """The results for a terminal of 80 columns."""
    from her2_server.report.text import interval  # brings matplotlib, which a plan does not need

    shown = Table(title="AUC on each centre's test cases (95 % interval)", title_justify="left")
    for words in ("centre", "cases", "by a model that has not seen it", "by the full run"):
        shown.add_column(words)
    for name, one in document["centres"].items():
        if "suppressed" in one:
            shown.add_row(name, "", "withheld", "")
            continue
        auc = one["auc"]
        full = interval(auc["full"]) if auc["full"] else "not there"
        shown.add_row(name, str(one["n"]), interval(auc["unseen"]), full)
    return shown
