"""The end of a run: summary.json, the release, and the account of bytes and seconds."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from typing import Any, Final

import numpy as np

from her2_common import __version__
from her2_common.bundle import bundle_hash
from her2_common.cases import MODALITIES, Modality, Split
from her2_common.config import FederationConfig
from her2_common.model import GROUPS, Group, preset
from her2_common.release import Manifest, write_release
from her2_common.wire import SiteDescription
from her2_server import frozen
from her2_server.checkpoint import Checkpoint
from her2_server.closing import Evaluation, Settled, novelty_record, temperature_record
from her2_server.evaluation import SiteScores, counted, evaluate
from her2_server.exchange import Outcome
from her2_server.frozen import Frozen
from her2_server.report import write_report
from her2_server.report.text import predicted
from her2_server.run_folder import RunFolder
from her2_server.suppression import published, withhold_counts

RESULTS: Final[dict[str, Split]] = {"validation": "val", "test": "test"}
"""The splits with results, as summary.json calls them."""
PHASES = ("wait", "train", "evaluate", "aggregate", "checkpoint")


@dataclass
class Totals:
    """What the exchanges outside the rounds cost; the rounds' own costs stand in metrics.jsonl."""

    seconds: dict[str, float] = field(default_factory=lambda: {"total": 0.0, "evaluate": 0.0})
    bytes: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)

    def add(self, kind: str, outcomes: Mapping[str, Outcome]) -> None:
        """Count the bytes of one exchange, by kind and site."""
        for site, outcome in outcomes.items():
            entry = self.bytes.setdefault(site, {}).setdefault(kind, {"sent": 0, "received": 0})
            entry["sent"] += outcome.bytes_from_site
            entry["received"] += outcome.bytes_to_site


def finish(
    folder: RunFolder,
    end: Frozen,
    *,
    sites: Mapping[str, SiteDescription],
    test: Evaluation,
    threshold: Mapping[str, Any],
    limits: Mapping[Modality, float],
    totals: Totals,
    started: str,
) -> dict[str, Any]:
    """Write the release, summary.json and report.html; returns the summary."""
    config = folder.load_config()
    final, settled, validation = end.final, end.settled, end.validation
    lines = folder.read_metrics()
    min_cell = config.run.min_cell
    accounts = [_site(name, sites[name], lines, totals) for name in sorted(sites)]
    scores: dict[Split, SiteScores] = {"test": test.scores, "val": validation.scores}
    shown = published({s: counted(of) for s, of in scores.items()}, min_cell, accounts)
    withhold_counts(accounts, shown)
    results: dict[str, Any] = {
        name: evaluate(scores[split], threshold["value"], min_cell, split=split, shown=shown)
        for name, split in RESULTS.items()
    }
    excluded = folder.excluded()
    for account in accounts:
        if account["name"] == config.left_out:
            account["status"] = "left out"
        elif account["name"] in excluded:
            account["status"] = "excluded"
    private = config.run.strategy.private_groups  # each site's own: nothing that could be released
    counts = final.state.get("counts", {}).values()  # of the sites whose updates were folded in
    trained = [
        group
        for group in GROUPS
        if group not in private and any(group in trained_by for trained_by in counts)
    ]
    summary: dict[str, Any] = {
        "version": __version__,
        "run": _run(folder, config, final, started, len(lines)),
        "initial": final.state.get("initial"),
        "sites": accounts,
        "bytes": {
            "sent_by_sites": sum(site["sent_bytes"] for site in accounts),
            "received_by_sites": sum(site["received_bytes"] for site in accounts),
        },
        "threshold": dict(threshold),
        "temperature": temperature_record(settled, validation.scores, test.scores, min_cell),
        "novelty": novelty_record(settled, limits, test.distances, trained, min_cell),
        **results,
        "seconds": _seconds(lines, totals),
    }
    release(folder, config, settled, summary, trained)
    folder.write_json(folder.summary, summary)
    close(folder)
    return summary


def close(folder: RunFolder) -> None:
    """What is left to do when summary.json is there: draw the report, drop what was settled."""
    frozen.drop(folder)
    write_report(folder.path)


def release(
    folder: RunFolder,
    config: FederationConfig,
    settled: Settled,
    summary: Mapping[str, Any],
    trained: list[Group],
) -> None:
    """Write release/ with the ``trained`` groups, those that at least one site trained.

    Of ``summary`` it states the threshold, the temperature and the limits.
    """
    layout = preset(config.run.preset, **config.run.layout)
    manifest = Manifest(
        run=config.name,
        preset=config.run.preset,
        label=config.run.label,
        image_size=layout.image_size,
        volume_size=layout.volume_size,
        her2_levels=layout.levels,
        threshold=summary["threshold"]["value"],
        groups=trained,
        trained_on=[*(summary.get("initial") or {}).get("trained_on", ()), config.run.label],
        calibration={k: v for k, v in summary["temperature"].items() if k != "bins"},
        limits={
            modality: record["limit"]
            for modality, record in summary["novelty"].items()
            if record["limit"] is not None
        },
    )
    # A reference without a limit would flag nothing, and say most where cases are few.
    references = {m: settled.references[m] for m in manifest.limits}
    write_release(folder.release, manifest, settled.groups, references)


def _run(
    folder: RunFolder, config: FederationConfig, final: Checkpoint, started: str, done: int
) -> dict[str, Any]:
    plan = config.run
    layout = preset(plan.preset, **plan.layout)
    return {
        "name": config.name,
        "started": started,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "rounds": plan.rounds,
        "rounds_done": done,
        "final_round": final.round,
        "preset": plan.preset,
        "label": plan.label,
        "predicted": predicted(plan.label),
        "left_out": config.left_out,
        "excluded": [
            {"site": name, "from_round": number}
            for name, number in sorted(folder.excluded().items())
        ],
        "seed": plan.seed,
        "parameters": int(sum(final.groups[g].size for g in GROUPS)),
        "weights_sha256": weights_hash(final.groups),
        "image_size": layout.image_size,
        "volume_size": layout.volume_size,
        "strategy": str(plan.strategy),
        "synthetic": config.synthetic,
        "config_sha256": folder.config_hash(),
        "bundle_sha256": bundle_hash(),
        "command": f"her2-server run federation.yaml --out {folder.path.name}",
        "plan": json.loads(plan.model_dump_json()),
        "python": platform.python_version(),
        "torch": installed_version("torch"),
        "flwr": installed_version("flwr"),
    }


def weights_hash(groups: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the groups in their fixed order: equal hashes mean equal bits."""
    digest = hashlib.sha256()
    for name in GROUPS:
        digest.update(np.ascontiguousarray(groups[name], dtype="<f4").tobytes())
    return digest.hexdigest()


def _site(
    name: str, site: SiteDescription, lines: list[dict[str, Any]], totals: Totals
) -> dict[str, Any]:
    parts = [line["sites"][name] for line in lines if name in line["sites"]]
    by_kind = {kind: dict(entry) for kind, entry in totals.bytes.get(name, {}).items()}
    by_kind["train"] = {
        "sent": sum(part["sent_bytes"] for part in parts),
        "received": sum(part["received_bytes"] for part in parts),
    }
    statuses = [part["status"] for part in parts]
    return {
        "name": name,
        "status": "ok" if all(s == "accepted" for s in statuses) else "incomplete",
        "flow": site.flow.model_dump(),
        "cases": site.cases.model_dump(),
        "positives": site.positives.model_dump(),
        "modalities": modality_counts(site.combinations),
        "combinations": dict(site.combinations),
        "label_sources": dict(site.label_sources),
        "left_out_for": dict(site.left_out_for),
        "groups": list(site.groups),
        "levels": site.levels,
        "bytes": by_kind,
        "sent_bytes": sum(entry["sent"] for entry in by_kind.values()),
        "received_bytes": sum(entry["received"] for entry in by_kind.values()),
        "rounds_accepted": statuses.count("accepted"),
        "rounds_refused": statuses.count("refused"),
        "rounds_missing": statuses.count("missing"),
        "train_seconds": round(sum(part["train_seconds"] or 0.0 for part in parts), 3),
    }


def modality_counts(combinations: Mapping[str, int | None]) -> dict[str, int | None]:
    """Cases that have each modality; None where a site does not tell one of the combinations."""
    counts: dict[str, int | None] = {}
    for modality in MODALITIES:
        parts = [n for name, n in combinations.items() if modality in name.split("+")]
        known = [n for n in parts if n is not None]
        counts[modality] = sum(known) if len(known) == len(parts) else None
    return counts


def _seconds(lines: list[dict[str, Any]], totals: Totals) -> dict[str, float]:
    seconds = {
        phase: round(sum(line["seconds"].get(phase, 0.0) for line in lines), 3) for phase in PHASES
    }
    seconds["evaluate"] = round(seconds["evaluate"] + totals.seconds["evaluate"], 3)
    seconds["total"] = round(totals.seconds["total"], 3)
    return seconds
