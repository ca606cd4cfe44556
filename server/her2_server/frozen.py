"""What a run has settled before its test cases are scored, on disk until the run is finished.

The calibrated weights follow from the sites that answered ``profile``, and the threshold and the
limits from those that were scored on validation. With a quorum of fewer than all, others may be
there after a resume: they would settle other weights, and the sites, which score their test cases
with one set of weights a run, would refuse these. So a run that was killed goes on with what it had
settled.

``settled/sums``: 64 hexadecimal digits, the SHA-256 of the rest; then safetensors: the histograms,
int64 (2, bins), named "before/<site>/<key>", and the references. It holds single sites' histograms:
only its owner may read it, and it is deleted when summary.json is there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors.numpy import load, save

from her2_common.broadcast import fingerprint
from her2_common.documents import parse_json
from her2_common.errors import CheckpointError
from her2_common.files import replace_privately
from her2_common.metrics import ScoreHistogram
from her2_common.model import preset
from her2_common.novelty import pack, unpack
from her2_common.temperature import LogitMap, fold
from her2_server import checkpoint
from her2_server.checkpoint import Checkpoint
from her2_server.closing import Evaluation, Settled
from her2_server.run_folder import RunFolder

_DIGITS: Final = 64

Histograms = Mapping[str, Mapping[str, ScoreHistogram]]


@dataclass(frozen=True)
class Frozen:
    """The final checkpoint, what was settled of it, and the validation of the settled weights."""

    final: Checkpoint
    settled: Settled
    validation: Evaluation


def write(folder: RunFolder, frozen: Frozen) -> None:
    """Keep what was settled, durably."""
    settled, validation = frozen.settled, frozen.validation
    parts = {
        "before": settled.before,
        "scores": validation.scores,
        "distances": validation.distances,
    }
    document = {
        "round": frozen.final.round,
        "weights": frozen.final.state["fingerprints"],
        "settled": {name: fingerprint(vector) for name, vector in settled.groups.items()},
        "fit": asdict(settled.fit),
        "sites": {part: {name: sorted(of) for name, of in s.items()} for part, s in parts.items()},
    }
    tensors = {name: table for part, s in parts.items() for name, table in _tables(part, s)}
    tensors |= {f"references/{name}": array for name, array in pack(settled.references).items()}
    text = np.frombuffer(json.dumps(document).encode(), np.uint8)
    content = save({name: np.ascontiguousarray(t) for name, t in tensors.items()} | {"json": text})
    digest = hashlib.sha256(content).hexdigest().encode()
    replace_privately(folder.settled / "sums", digest + content)


def read(folder: RunFolder, notify: Callable[[str], None] = lambda _: None) -> Frozen | None:
    """What this run had settled; None if it had not come so far.

    What is damaged, or was settled of other weights, is told to ``notify`` and passed over.
    """
    path = folder.settled / "sums"
    try:
        tensors = _read_tensors(path)
    except FileNotFoundError:
        return None
    if tensors is None:
        notify(f"{path}: damaged; it is worked out again")
        return None
    document: dict[str, Any] = parse_json(tensors["json"].tobytes())
    try:
        final = checkpoint.load(folder.rounds / f"{document['round']:04d}")
    except CheckpointError as error:
        notify(str(error))
        return None
    plan = folder.load_config().run
    layout = preset(plan.preset, **plan.layout)
    fit = LogitMap(**document["fit"])
    groups = fold(final.groups, layout, fit)
    prints = {name: fingerprint(vector) for name, vector in groups.items()}
    if (final.state["fingerprints"], prints) != (document["weights"], document["settled"]):
        notify(f"{path}: was settled of other weights; it is worked out again")
        return None
    before, scores, distances = (
        {
            site: {key: ScoreHistogram(*tensors[f"{part}/{site}/{key}"]) for key in keys}
            for site, keys in document["sites"][part].items()
        }
        for part in ("before", "scores", "distances")
    )
    packed = {
        name.removeprefix("references/"): array
        for name, array in tensors.items()
        if name.startswith("references/")
    }
    # The weights stay those that the sites' test cases may have been scored with; a site that was
    # excluded since counts in no result.
    names = {site.name for site in folder.load_config().sites}
    scores, distances = (
        {site: of for site, of in part.items() if site in names} for part in (scores, distances)
    )
    settled = Settled(groups, fit, unpack(packed, layout.features), before)
    return Frozen(final, settled, Evaluation(scores, distances))


def drop(folder: RunFolder) -> None:
    """Delete what was kept."""
    shutil.rmtree(folder.settled, ignore_errors=True)


def _read_tensors(path: Path) -> dict[str, np.ndarray] | None:
    data = path.read_bytes()
    digest, content = data[:_DIGITS], data[_DIGITS:]
    if hashlib.sha256(content).hexdigest().encode() != digest:
        return None
    tensors: dict[str, np.ndarray] = load(content)
    return tensors


def _tables(part: str, sites: Histograms) -> Iterator[tuple[str, np.ndarray]]:
    for site, histograms in sites.items():
        for key, histogram in histograms.items():
            table = np.stack([histogram.negatives, histogram.positives]).astype(np.int64)
            yield f"{part}/{site}/{key}", table
