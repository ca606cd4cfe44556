"""`her2-server response`: read, ask, write.

1. Read the plan (the default without one) and fix its threshold: the plan's own, else the
   release's, else ``--threshold``, which then is called typed and not frozen.
2. Tables: read them (``tables``). A finished run: ask its sites (``federation``).
3. Compute (``her2_common.response.analysis``), and write what is asked for: JSON, CSV, page.

All faults that can be known are told before anything is computed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from her2_common import __version__
from her2_common.cases import TRAINED_ON, post_therapy
from her2_common.config import load
from her2_common.errors import ConfigError, DataError, MetricError, TableError
from her2_common.metrics import GRID, grid_index
from her2_common.release import Manifest, read_release
from her2_common.response.analysis import analyse
from her2_common.response.plan import CALLS, TYPED, Plan, ThresholdOrigin
from her2_common.response.pooling import ask_sources
from her2_common.response.queries import Source
from her2_common.response.study import Label
from her2_server.report.response import DOCUMENT, PAGE, write_response_report
from her2_server.response.csv_rows import to_csv
from her2_server.response.tables import Tables, of_response, read_tables

FORMAT: Final = "her2-map response"

NOT_SAFE: Final = (
    "lines are hidden because of small cells, but what stands beside them tells of them: odds "
    "ratios without one centre, McNemar's p, NRI. Nothing is withheld from who holds the tables; "
    "before this is handed to others, take out the centres that are too small"
)
"""Over tables; a site withholds instead."""


LABEL_UNKNOWN: Final = (
    "nothing says on which label the scores were trained: neither --release nor a column "
    "trained_on, as her2-client predict writes it; scores of a model that learnt HER2 from tumours "
    "excised after therapy go with the response whatever HER2 is, and are no evidence"
)


def read_plan(path: Path | None) -> Plan:
    """The plan of a file, or the default.

    Raises:
        ConfigError: the file is missing or breaks the schema.
    """
    return Plan() if path is None else load(Plan, path)


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan.

    Raises:
        ConfigError: the file exists.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        raise ConfigError(f"{path}: exists already", hint="a plan is never overwritten") from None
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(plan.as_yaml())


def fix_threshold(
    plan: Plan,
    option: float | None,
    manifest: Manifest | None,
    *,
    origin: ThresholdOrigin = TYPED,
    binary: bool = False,
) -> Plan:
    """Step 1: the plan with its threshold as a number. Calls of 0 and 1 (``binary``) need none.

    Args:
        option: ``--threshold``; it is ``origin`` unless plan or release have the same.

    Raises:
        ConfigError: there is none, it is not on the grid from 0 to 1, or option, plan and release
            contradict each other.
    """
    if option is not None:
        try:
            grid_index(option)
        except MetricError as error:
            raise ConfigError(
                f"--{error}",
                hint="scores are compared in steps of 1/1024, so that every centre and every "
                "table calls alike; choose one of these",
            ) from None
    if plan.threshold != "release":
        if option not in (None, plan.threshold):
            raise ConfigError(
                f"--threshold: expected {plan.threshold}, which the plan fixes, got {option}"
            )
        if manifest is not None and plan.release_sha256 not in (None, manifest.digest):
            raise ConfigError(
                "plan: its threshold is that of another release: expected digest "
                f"{plan.release_sha256}, got {manifest.digest}"
            )
        return plan
    if manifest is not None and option in (None, manifest.threshold):
        return plan.fix(manifest.threshold, "release", manifest.digest)
    if option is not None:
        return plan.fix(option, origin)
    if binary:
        return plan.fix(0.5, CALLS)
    raise ConfigError(
        "expected a threshold, got none",
        hint="give --release with the folder of the release that scored the cases, or a plan with "
        "a threshold; one typed with --threshold is not called frozen",
    )


def check_evidence(manifest: Manifest) -> Manifest:
    """The manifest, unless its release is no evidence on response: the label held the outcome.

    After therapy only patients without a complete response have a tumour left to test, and
    residual tumours lose HER2: a model that learnt HER2 there scores by the response.

    Raises:
        DataError: it was trained on such a label, or begun from a run that was.
    """
    if wrong := post_therapy(manifest.trained_on):
        raise DataError(
            f"release of {manifest.run}: expected HER2 labels from before therapy, got weights "
            f"trained on {', '.join(wrong)} (trained_on of manifest.json), which "
            "hold the outcome: no evidence on response",
            hint="train with label: reference (or biopsy), not begun from such a release",
        )
    return manifest


def label_of(trained_on: Iterable[str]) -> Label:
    """What the score is a probability of, by the labels of the release, joined by "+"."""
    return "pcr" if any(map(of_response, trained_on)) else "her2"


def check_scored(tables: Tables, manifest: Manifest) -> None:
    """Raises:
    TableError: a row says that another release scored it.
    """
    expected = "+".join(manifest.trained_on)
    if other := [labels for labels in tables.trained_on if labels not in ("", expected)]:
        raise TableError(
            f"column {TRAINED_ON}: expected {expected}, as the release of {manifest.run} states, "
            f"got {other[0]}",
            hint="--release takes the release that scored the tables",
        )


def over_tables(
    paths: Sequence[Path],
    plan: Plan,
    option: float | None,
    release: Path | None,
    *,
    out_of_fold: bool = False,
) -> dict[str, Any]:
    """The result over tables; ``out_of_fold`` as in ``read_tables``.

    Raises:
        ConfigError, TableError, DataError: plan, threshold, release or a table cannot be used.
    """
    manifest = None if release is None else check_evidence(read_release(release)[0])
    if plan.threshold != "release" or option is not None or manifest is not None:
        fix_threshold(plan, option, manifest)  # its faults before those of the tables
    tables = read_tables(paths, definition=plan.pcr, out_of_fold=out_of_fold)
    if manifest is not None:
        check_scored(tables, manifest)
    plan = fix_threshold(plan, option, manifest, binary=tables.binary)
    threshold = plan.fixed_threshold
    warnings = [*tables.warnings, *check_outcomes(tables, plan)]
    if manifest is None and "" in tables.trained_on:
        warnings.append(LABEL_UNKNOWN)
    if len(tables.centres) < plan.min_centres:
        warnings.append(
            f"fewer centres than the plan's min_centres ({plan.min_centres}): the result says "
            "little of other centres, and should not be published as that of several"
        )
    sources = [Source(patients, plan, threshold) for patients in tables.centres]
    trained_on = tables.trained_on if manifest is None else manifest.trained_on[-1:]
    found = analyse(ask_sources(sources), plan, threshold, label=label_of(trained_on))
    if "refused" not in found["auc"]:
        found["auc"]["on_grid"] = _on_grid(tables)
    if found["suppressed"]:
        warnings.append(NOT_SAFE)
    source = {
        "kind": "tables",
        "tables": list(tables.names),
        "out_of_fold": out_of_fold,
        "without_split": tables.without_split,
    }
    return head(source, plan, warnings) | found


def head(source: dict[str, Any], plan: Plan, warnings: list[str]) -> dict[str, Any]:
    """What stands before the sections of every result; the plan's threshold is a number."""
    return {
        "format": FORMAT,
        "version": __version__,
        "source": source,
        "plan": {"sha256": plan.sha256, "document": plan.model_dump(mode="json")},
        "threshold_from": plan.threshold_from,
        "threshold_frozen": plan.threshold_is_frozen,
        "warnings": warnings,
    }


def check_outcomes(tables: Tables, plan: Plan) -> list[str]:
    """What is to be said of centres whose known responses are all alike.

    Raises:
        TableError: there is one, and the plan refuses it; or nobody's response is known.
    """
    alike: list[str] = []
    for patients in tables.centres:
        known = patients.column("pcr")[patients.known("pcr")]
        if np.unique(known).size < 2:
            got = "none at all" if not known.size else "with" if known[0] else "without"
            alike.append(f"{patients.centre} ({got})")
    if not alike:
        return []
    message = f"expected patients with and without pCR at every centre, got one kind: {alike[0]}"
    if plan.one_class_centres == "refuse" or len(alike) == len(tables.centres) == 1:
        raise TableError(
            message,
            hint="is the column pcr right? A centre that truly has one kind can be left out, or "
            "kept by one_class_centres: keep in the plan (--write-plan)",
        )
    return [f"{name}: all known responses are alike" for name in alike]


def _on_grid(tables: Tables) -> bool:
    scores = np.concatenate([patients.column("score") for patients in tables.centres]) * GRID
    return bool(np.all(np.isnan(scores) | (scores == np.round(scores))))


def check_destinations(files: Mapping[str, Path | None], folder: Path | None) -> None:
    """Whether what is computed can be written; ``files`` by their options.

    Raises:
        ConfigError: a file's folder is not there, or a folder and a file are mixed up.
    """
    for option, path in files.items():
        if path is None:
            continue
        if str(path) == "-":
            raise ConfigError(f"{option}: expected a file, got -", hint="only --json prints")
        if path.is_dir() or not path.parent.is_dir():
            got = "a folder" if path.is_dir() else f"no folder {path.parent}"
            raise ConfigError(f"{option}: expected a file in a folder that exists, got {got}")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out: expected a folder, got the file {folder}")


def write(
    document: Mapping[str, Any],
    *,
    json_file: Path | None = None,
    csv_file: Path | None = None,
    folder: Path | None = None,
) -> list[Path]:
    """Step 3: the files that were written."""
    numbers = json.dumps(document, indent=1, allow_nan=False) + "\n"
    texts = [(json_file, numbers), (csv_file, to_csv(document))]
    written = []
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        texts += [(folder / DOCUMENT, numbers), (folder / "response.csv", texts[1][1])]
    for path, text in texts:
        if path is not None:
            path.write_text(text, encoding="utf-8")
            written.append(path)
    if folder is not None:
        write_response_report(document, folder / PAGE)
        written.append(folder / PAGE)
    return written
