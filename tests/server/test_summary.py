"""The end of a run: thresholds, accounts, and the release."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter, ValidationError
from safetensors.numpy import load as load_tensors

from her2_client.keys import new_node_key
from her2_common.metrics import ScoreHistogram, youden_threshold
from her2_common.model import GROUPS, build_model, get_groups, preset
from her2_common.novelty import moments, reference_of
from her2_common.release import load_release, read_references
from her2_common.temperature import LogitMap
from her2_common.wire import Combination, ScoreKey
from her2_server.closing import Settled, freeze_threshold, pooled_fused
from her2_server.evaluation import COMBINATIONS, KEYS
from her2_server.exchange import Outcome
from her2_server.run_folder import RunFolder
from her2_server.summary import (
    Totals,
    modality_counts,
    release,
    weights_hash,
)

A = ScoreHistogram.from_scores([0.25, 0.5, 0.75], [0, 1, 1])
B = ScoreHistogram.from_scores([0.1], [0])


def test_totals_add_up_by_site_and_kind() -> None:
    totals = Totals()
    totals.add("val", {"a": Outcome("accepted", None, 1.0, 10, 3)})
    refused, missing = Outcome("refused", "x", 1.0, 10, 4), Outcome("missing", "", 0.0, 5, 0)
    totals.add("val", {"a": refused, "b": missing})
    totals.add("test", {"a": Outcome("accepted", None, 1.0, 2, 1)})
    assert totals.bytes == {
        "a": {"val": {"sent": 7, "received": 20}, "test": {"sent": 1, "received": 2}},
        "b": {"val": {"sent": 0, "received": 5}},
    }


def test_pooled_takes_the_fused_scores_of_every_site_once() -> None:
    scores = {
        "a": {"fused|mg": A, "single|mg": A, "fused|us": B},
        "b": {"fused|us": B, "single|us": B},
    }
    assert pooled_fused(scores) == A + B + B
    assert pooled_fused({}) == ScoreHistogram.empty()


def test_the_threshold_is_youdens_or_a_fixed_one() -> None:
    frozen = freeze_threshold(A)
    assert frozen == {"value": youden_threshold(A), "rule": "youden", "from": "validation"}
    for one_class in (B, ScoreHistogram.empty()):
        frozen = freeze_threshold(one_class)
        assert (frozen["value"], frozen["from"]) == (0.5, "none")


def test_modality_counts() -> None:
    assert modality_counts({"mg": 3, "mg+us": 4, "us+mri": 5}) == {"mg": 7, "us": 9, "mri": 5}
    assert modality_counts({"mg": 30, "mg+us": None}) == {"mg": None, "us": None, "mri": 0}
    assert modality_counts({}) == {"mg": 0, "us": 0, "mri": 0}


def test_the_hash_is_that_of_the_bits_in_the_fixed_order() -> None:
    groups = {g: np.full(2, i, np.float32) for i, g in enumerate(GROUPS)}
    content = b"".join(np.full(2, i, "<f4").tobytes() for i in range(len(GROUPS)))
    assert weights_hash(groups) == hashlib.sha256(content).hexdigest()
    assert weights_hash(dict(reversed(groups.items()))) == weights_hash(groups)
    groups["us"] = groups["us"] * np.float32(1 + 2**-23)
    assert weights_hash(groups) != hashlib.sha256(content).hexdigest()
    groups["us"], groups["mg"] = np.float32([-0.0, 0]), np.zeros(2, np.float32)
    zeros = groups | {"us": np.zeros(2, np.float32)}
    assert weights_hash(groups) != weights_hash(zeros)  # -0 is not 0


def test_a_release_is_what_a_site_can_load(tmp_path: Path) -> None:
    document: dict[str, Any] = {
        "name": "demo",
        "superlink": {
            "address": "localhost:1",
            "root_certificates": "ca.crt",
            "superexec_secret_file": "s",
        },
        "sites": [{"name": "a", "public_key": new_node_key()[1]}],
        "run": {"image_size": 64},
    }
    (tmp_path / "f.yaml").write_text(yaml.safe_dump(document))
    folder = RunFolder(tmp_path / "run")
    folder.create(tmp_path / "f.yaml")
    groups = get_groups(build_model("compact", 6), GROUPS)
    rows = np.random.default_rng(0).normal(size=(30, preset("compact").features))
    reference = reference_of(moments(rows))
    assert reference is not None
    settled = Settled(groups, LogitMap(0.5), {"us": reference}, {})
    summary = {
        "initial": {"trained_on": ["biopsy", "surgical"]},
        "threshold": {"value": 0.25},
        "temperature": {"temperature": 2.0, "slope": 0.5, "bins": [1, 2]},
        "novelty": {"us": {"limit": 0.75}, "mg": {"limit": None}},
    }
    release(folder, folder.load_config(), settled, summary, list(GROUPS))
    manifest = json.loads((folder.release / "manifest.json").read_text())
    tensors = (folder.release / "model.safetensors").read_bytes()
    assert manifest["sha256"] == hashlib.sha256(tensors).hexdigest()
    assert {g: v.tobytes() for g, v in load_tensors(tensors).items()} == {
        g: v.tobytes() for g, v in groups.items()
    }
    model, loaded = load_release(folder.release)
    assert weights_hash(get_groups(model, GROUPS)) == weights_hash(groups)
    # the image size is the run's, the volume size the preset's own
    assert (loaded.image_size, loaded.volume_size, loaded.threshold) == (64, 48, 0.25)
    assert loaded.calibration == {"temperature": 2.0, "slope": 0.5}
    assert loaded.limits == {"us": 0.75}
    # the labels of the runs that it began from are not forgotten
    assert loaded.trained_on == ["biopsy", "surgical", "reference"]
    references = read_references(folder.release, loaded)
    assert references["us"].mean.tobytes() == reference.mean.tobytes()


@pytest.mark.parametrize(
    ("kind", "names"), [(ScoreKey, KEYS), (Combination, COMBINATIONS)], ids=["keys", "combinations"]
)
def test_the_wire_takes_exactly_the_names_that_are_evaluated(
    kind: Any, names: tuple[str, ...]
) -> None:
    adapter = TypeAdapter(kind)
    parts = ("mg", "us", "mri")
    texts = {*parts, *(f"{a}+{b}" for a in parts for b in parts)}
    texts |= {f"{a}+{b}+{c}" for a in parts for b in parts for c in parts}
    texts |= {f"{kind}|{t}" for kind in ("fused", "single", "low") for t in texts}
    texts |= {"", "fused|", "mg\n"}
    assert set(names) <= texts

    def taken(text: str) -> bool:
        try:
            adapter.validate_python(text)
        except ValidationError:
            return False
        return True

    assert {text for text in texts if taken(text)} == set(names)
    pattern = get_args(kind)[1].metadata[0].pattern
    assert all(re.fullmatch(pattern, name) for name in names)
