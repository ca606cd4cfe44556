"""From HER2 to response, and three levels: runs to their reports, and what sites predict after."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.metrics import roc_auc_score

from her2_client.cache import open_cache
from her2_client.cohort import load_cohort
from her2_client.predict import predict_table
from her2_client.scoring import score
from her2_common.cases import Label
from her2_common.errors import RunError
from her2_common.model import GROUPS, build_model, get_groups
from her2_common.release import load_release, read_release
from her2_server import checkpoint
from her2_server.summary import weights_hash

MakeFederation = Callable[..., Any]
pytestmark = pytest.mark.usefixtures("drawn")
SIZES: dict[str, Any] = {"image_size": 32, "volume_size": 16}


def summary_of(federation: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(federation.folder.summary.read_text())
    return document


def report_of(federation: Any) -> str:
    page: Path = federation.folder.path / "report.html"
    return page.read_text(encoding="utf-8")


def known(federation: Any, label: Label) -> int:
    """Test cases of all sites whose label is known."""
    caches = [open_cache(config.data.cache) for config in federation.configs.values()]
    return sum(len(load_cohort(c, split="test", label=label, **SIZES)) for c in caches)


def predicted(
    federation: Any, site: str, out: Path, notify: Callable[[str], None] = lambda _: None
) -> list[dict[str, str]]:
    """What ``her2-client predict`` writes at a site for the test cases."""
    release = federation.folder.release
    predict_table(federation.configs[site], release, out, split="test", notify=notify)
    with out.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def weights_after(federation: Any, number: int) -> dict[str, np.ndarray]:
    return checkpoint.load(federation.folder.rounds / f"{number:04d}").groups


@pytest.fixture
def her2(make_federation: MakeFederation) -> Any:
    """A finished run on HER2."""
    federation = make_federation("her2")
    federation.coordinator().run()
    return federation


def test_a_her2_release_begins_a_run_about_response(
    her2: Any, make_federation: MakeFederation, tmp_path: Path
) -> None:
    second = make_federation("pcr", label="pcr", initial=her2.folder.release)
    log: list[str] = []
    second.coordinator(log=log).run()
    # Round 0: the release's encoders, and head and clinical inputs of the seed.
    _, released = read_release(her2.folder.release)
    fresh = get_groups(build_model("compact", 5, **second.folder.load_config().run.layout), GROUPS)
    first = weights_after(second, 0)
    for group in GROUPS:
        source = fresh if group in ("head", "clinical") else released
        np.testing.assert_array_equal(first[group], source[group])
        assert not np.array_equal(first[group], weights_after(second, 2)[group])
    (line,) = [text for text in log if text.startswith("begins from the release")]
    assert line.endswith("mg, us, mri; afresh: clinical, head")

    summary = summary_of(second)
    assert summary["initial"] == {
        "run": "test",
        "label": "reference",
        "sha256": json.loads((her2.folder.release / "manifest.json").read_text())["sha256"],
        "trained_on": ["reference"],
        "groups": ["mg", "us", "mri"],
        "afresh": ["clinical", "head"],
    }
    assert "ypT0/is ypN0" in summary["run"]["predicted"]
    assert summary_of(her2)["initial"] is None
    page = report_of(second)
    assert "pCR = ypT0/is ypN0" in page
    assert "Therapy follows the biopsy" in page
    assert "begun from" in page
    assert "HER2-positive" not in page.split("What it cannot say")[0]

    # Only cases of known response are judged.
    assert summary["test"]["n"] == known(second, "pcr") < known(second, "reference")
    assert summary_of(her2)["test"]["n"] == known(her2, "reference")

    told: list[str] = []
    rows = predicted(second, "centre-a", tmp_path / "predictions.csv", told.append)
    assert any("ypT0/is ypN0" in text for text in told)
    model, manifest = load_release(second.folder.release)
    assert manifest.label == "pcr"
    assert model.levels == 2
    assert "level" not in rows[0]
    assert len(rows) == 12  # every case of the split with an image, its response known or not


def test_a_run_goes_on_when_its_release_has_gone(
    her2: Any, make_federation: MakeFederation
) -> None:
    release = her2.folder.release
    undisturbed = make_federation("a", label="pcr", initial=release)
    stopped = make_federation("b", label="pcr", initial=release)
    undisturbed.coordinator().run()
    stopped.coordinator()._begin()
    shutil.rmtree(release)
    log: list[str] = []
    stopped.coordinator(log=log).run()
    last = [weights_hash(weights_after(f, 2)) for f in (undisturbed, stopped)]
    assert last[0] == last[1]
    assert summary_of(stopped)["initial"] == summary_of(undisturbed)["initial"]


def test_checkpoints_from_other_initial_weights_are_refused(
    her2: Any, make_federation: MakeFederation
) -> None:
    begun = make_federation("a", label="pcr", initial=her2.folder.release)
    begun.coordinator()._begin()
    scratch = make_federation("b", label="pcr")
    shutil.copytree(begun.folder.rounds, scratch.folder.rounds)
    text = scratch.folder.config.read_text()
    # the same sites, but for what the run began with
    keys = dict(zip(scratch.keys.values(), begun.keys.values(), strict=True))
    for old, new in keys.items():
        text = text.replace(old, new)
    scratch.folder.config.write_text(text)
    with pytest.raises(RunError, match=r"another federation\.yaml"):
        scratch.coordinator()._begin()
    begun.coordinator()._begin()


def test_three_levels_to_the_report(make_federation: MakeFederation, tmp_path: Path) -> None:
    federation = make_federation("three", her2_levels=3)
    log: list[str] = []
    federation.coordinator(log=log).run()
    summary = summary_of(federation)
    assert {site["name"]: site["levels"] for site in summary["sites"]} == {
        "centre-a": True,
        "centre-b": False,
        "centre-c": True,
        "centre-d": True,
    }
    assert any("centre-b trains positive against negative alone" in text for text in log)

    # The oracle: the released model over the pooled rows, which no federation sees.
    model, manifest = load_release(federation.folder.release)
    assert manifest.her2_levels == 3
    said, truth = [], []
    for config in federation.configs.values():
        cohort = load_cohort(
            open_cache(config.data.cache), split="test", label="reference", **SIZES
        )
        low = cohort.low.numpy()
        scores = score(model, cohort).low
        assert scores is not None
        said.append(scores[low >= 0])
        truth.append(low[low >= 0])
    low, values = np.concatenate(truth), np.concatenate(said)
    levels = summary["test"]["levels"]
    assert (levels["n"], levels["low"]) == (len(low), low.sum())
    assert_allclose(levels["auc"]["estimate"], roc_auc_score(low, values), atol=1e-12)
    assert f"an AUC of {levels['auc']['estimate']:.2f}" in report_of(federation)
    assert "HER2-low against HER2-zero: among the" in report_of(federation)

    rows = predicted(federation, "centre-b", tmp_path / "predictions.csv")
    assert rows
    for row in rows:
        negative = "low" if float(row["low_score"]) >= 0.5 else "zero"
        assert row["level"] == ("positive" if row["call"] == "1" else negative)


def test_three_levels_need_a_site_that_tells_them(make_federation: MakeFederation) -> None:
    federation = make_federation(centres={"centre-b": (50, ("us",))}, her2_levels=3)
    with pytest.raises(RunError, match="expected a site with raw IHC of enough negatives"):
        federation.coordinator().run()
