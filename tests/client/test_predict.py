"""predictions.csv: the right numbers beside the right names, or nothing at all."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from tests.caches import add
from tests.releases import restate

from her2_client.cache import image_shape, open_cache
from her2_client.cache_writer import CacheWriter
from her2_client.cohort import Cohort, load_cohort
from her2_client.keys import read_pseudonym_key
from her2_client.predict import predict_table
from her2_client.scoring import profile, score
from her2_client.served import note_served
from her2_common.cases import pseudonym
from her2_common.config import SiteConfig
from her2_common.errors import CacheError, ConfigError, DataError
from her2_common.model import GROUPS, build_model, get_groups
from her2_common.novelty import reference_of
from her2_common.release import (
    Manifest,
    load_release,
    read_references,
    read_release,
    write_release,
)

MakeSite = Callable[..., SiteConfig]
HAS = [("mg", "us"), ("us",), ("mri",), ("mg", "us", "mri")]
SPLIT = ("train", "test", "test", "val")


@pytest.fixture
def config(make_site: MakeSite) -> SiteConfig:
    return make_site(HAS, lambda i: SPLIT[i])


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A release of the model of seed 4, as her2-server writes it."""
    folder = tmp_path / "release"
    manifest = Manifest(
        run="a-run",
        preset="compact",
        label="reference",
        image_size=32,
        volume_size=16,
        threshold=0.5,
        groups=list(GROUPS),
    )
    write_release(folder, manifest, get_groups(build_model("compact", 4), GROUPS))
    return folder


def set_manifest(release: Path, **changes: Any) -> None:
    restate(release, **changes)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def nothing_written(folder: Path) -> bool:
    return not [p for p in folder.iterdir() if "predictions" in p.name]


def test_the_table(config: SiteConfig, release: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions.csv"
    config.data.cases.write_text("case_id,patient_id\ncase-0,p0\ncase-1,p1\ncase-2,p1\ncase-3,\n")
    assert predict_table(config, release, out, split="all") == 4
    table = rows(out)
    assert list(table[0]) == [
        "case_id",
        "patient_id",
        "split",
        "score",
        "call",
        "mg_score",
        "us_score",
        "mri_score",
        "modalities",
        "unlike",
        "trained_on",
    ]
    assert [row["case_id"] for row in table] == ["case-0", "case-1", "case-2", "case-3"]
    assert [row["patient_id"] for row in table] == ["p0", "p1", "p1", "case-3"]
    assert tuple(row["split"] for row in table) == SPLIT
    assert [row["modalities"] for row in table] == ["mg+us", "us", "mri", "mg+us+mri"]
    cohort = load_cohort(
        open_cache(config.data.cache), split=None, label=None, image_size=32, volume_size=16
    )
    expected = score(build_model("compact", 4), cohort)
    for case, row in enumerate(table):
        assert float(row["score"]) == expected.fused[case]
        for modality in ("mg", "us", "mri"):
            value = expected.single[modality][case]
            if np.isnan(value):
                assert row[f"{modality}_score"] == ""
            else:
                assert float(row[f"{modality}_score"]) == value
        assert (float(row["score"]) * 1024).is_integer()


def test_a_call_is_positive_at_the_threshold_itself(
    config: SiteConfig, release: Path, tmp_path: Path
) -> None:
    out = tmp_path / "predictions.csv"
    predict_table(config, release, out, split="all")
    scores = sorted({float(row["score"]) for row in rows(out)})
    threshold = scores[len(scores) // 2]
    set_manifest(release, threshold=threshold)
    predict_table(config, release, out, split="all", force=True)
    table = rows(out)
    assert any(float(row["score"]) == threshold for row in table)
    assert [row["call"] for row in table] == [
        str(int(float(row["score"]) >= threshold)) for row in table
    ]


def test_only_test_cases_are_scored_unless_others_are_asked_for(
    config: SiteConfig, release: Path, tmp_path: Path
) -> None:
    out = tmp_path / "predictions.csv"
    assert predict_table(config, release, out) == 2
    assert [row["case_id"] for row in rows(out)] == ["case-1", "case-2"]
    assert {row["split"] for row in rows(out)} == {"test"}
    assert predict_table(config, release, out, split="val", force=True) == 1
    assert [(row["case_id"], row["split"]) for row in rows(out)] == [("case-3", "val")]


def test_a_test_case_that_trained_the_run_under_another_split_is_not_held_out(
    config: SiteConfig, release: Path, tmp_path: Path
) -> None:
    key = read_pseudonym_key(config.data.pseudonym_key_file)
    out, told = tmp_path / "predictions.csv", []
    note_served(config.state, "a-run", [pseudonym(key, "case-0")])
    note_served(config.state, "a-run", [pseudonym(key, "case-2")])
    note_served(config.state, "another-run", [pseudonym(key, "case-1")])
    assert predict_table(config, release, out, notify=told.append) == 1
    assert [row["case_id"] for row in rows(out)] == ["case-1"]
    assert any("1 cases of the test split trained or validated in run a-run" in t for t in told)
    predict_table(config, release, out, split="all", force=True)
    assert [row["split"] for row in rows(out)] == ["train", "test", "train", "val"]


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_a_missing_file_is_named(
    config: SiteConfig, release: Path, tmp_path: Path, name: str
) -> None:
    (release / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        predict_table(config, release, tmp_path / "predictions.csv")
    assert nothing_written(tmp_path)


@pytest.mark.parametrize("position", [0, 100, -1])
def test_a_tampered_model_is_refused(
    config: SiteConfig, release: Path, tmp_path: Path, position: int
) -> None:
    path = release / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"model\.safetensors was changed: expected SHA-256"):
        predict_table(config, release, tmp_path / "predictions.csv")
    assert nothing_written(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": None},
        {"threshold": "high"},
        {"image_size": None},
        {"volume_size": "16"},
        {"preset": None},
        {"sha256": None},
    ],
    ids=str,
)
def test_an_incomplete_manifest_is_refused(release: Path, changes: dict[str, Any]) -> None:
    set_manifest(release, **changes)
    with pytest.raises(DataError, match=r"manifest\.json|not a release"):
        load_release(release)


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_what_is_no_manifest(release: Path, text: str) -> None:
    (release / "manifest.json").write_text(text)
    with pytest.raises(DataError, match="not a release"):
        load_release(release)


def test_a_model_that_lacks_a_group_is_refused(release: Path) -> None:
    """Its weights would be the random ones of a new model."""
    path = release / "model.safetensors"
    groups = load_tensors(path.read_bytes())
    groups.pop("mri")
    path.write_bytes(save_tensors(groups))
    set_manifest(release, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(DataError, match="expected the groups clinical, head, mg, mri, us, got "):
        load_release(release)


def test_what_nobody_trained_scores_nothing(
    config: SiteConfig, release: Path, tmp_path: Path
) -> None:
    """A release without the MRI encoder scores MRI cases from the rest, or not at all."""
    path = release / "model.safetensors"
    groups = load_tensors(path.read_bytes())
    del groups["mri"], groups["clinical"]
    path.write_bytes(save_tensors(groups))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    set_manifest(release, sha256=digest, groups=sorted(groups))
    out = tmp_path / "predictions.csv"
    assert predict_table(config, release, out, split="all") == 3
    table = rows(out)
    assert [row["case_id"] for row in table] == ["case-0", "case-1", "case-3"]
    assert [row["modalities"] for row in table] == ["mg+us", "us", "mg+us"]
    assert {row["mri_score"] for row in table} == {""}


def test_no_safetensors(release: Path) -> None:
    (release / "model.safetensors").write_bytes(b"weights")
    set_manifest(release, sha256=hashlib.sha256(b"weights").hexdigest())
    with pytest.raises(DataError, match="not a release"):
        load_release(release)


def test_an_existing_table_is_kept(config: SiteConfig, release: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions.csv"
    out.write_text("precious")
    with pytest.raises(ConfigError, match="exists already"):
        predict_table(config, release, out)
    assert out.read_text() == "precious"
    predict_table(config, release, out, force=True)
    assert out.read_text().startswith("case_id,")


def test_another_pseudonym_key_is_refused(
    config: SiteConfig, release: Path, tmp_path: Path
) -> None:
    """Names would be given to the wrong cases, or to none."""
    config.data.pseudonym_key_file.write_text("ab" * 32)
    with pytest.raises(CacheError, match=r"4 cases of the cache are not in cases\.csv") as caught:
        predict_table(config, release, tmp_path / "predictions.csv")
    assert "ingest again" in str(caught.value.hint)
    assert nothing_written(tmp_path)


def test_a_case_that_left_the_table_is_refused(
    config: SiteConfig, release: Path, tmp_path: Path
) -> None:
    config.data.cases.write_text("case_id\ncase-0\ncase-1\ncase-2\n")
    with pytest.raises(CacheError, match="1 cases of the cache"):
        predict_table(config, release, tmp_path / "predictions.csv")


def test_the_order_of_the_table_has_no_part(
    config: SiteConfig, release: Path, tmp_path: Path
) -> None:
    predict_table(config, release, tmp_path / "a.csv")
    config.data.cases.write_text("case_id\ncase-3\ncase-1\ncase-0\ncase-2\nnew\n")
    predict_table(config, release, tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_a_case_without_image_shifts_no_name(
    config: SiteConfig, release: Path, tmp_path: Path
) -> None:
    key = read_pseudonym_key(config.data.pseudonym_key_file)
    images = {"us": np.zeros(image_shape("us", 32, 16), np.float16)}
    labels = dict.fromkeys(("reference", "biopsy", "surgical", "pcr"))
    with CacheWriter(config.data.cache, site="centre-t", image_size=32, volume_size=16) as writer:
        writer.begin()
        for number, shown in enumerate(({}, images)):
            add(
                writer,
                pseudonym=pseudonym(key, f"case-{number}"),
                split="test",
                clinical=(None,) * 5,
                labels=labels,
                images=shown,
            )
        writer.publish()
    out = tmp_path / "predictions.csv"
    assert predict_table(config, release, out) == 1
    assert [row["case_id"] for row in rows(out)] == ["case-1"]


@pytest.mark.parametrize("split", ["tests", "", "ALL"])
def test_an_unknown_split(config: SiteConfig, release: Path, tmp_path: Path, split: str) -> None:
    with pytest.raises(ConfigError, match="--split: expected one of train, val, test, all"):
        predict_table(config, release, tmp_path / "predictions.csv", split=split)


def test_an_empty_split_writes_nothing(make_site: MakeSite, release: Path, tmp_path: Path) -> None:
    config = make_site(HAS)  # all of them train
    with pytest.raises(DataError, match="no case in split 'val'"):
        predict_table(config, release, tmp_path / "predictions.csv", split="val")
    assert nothing_written(tmp_path)


# --- three levels -------------------------------------------------------------------------------


def test_three_levels(config: SiteConfig, release: Path, tmp_path: Path) -> None:
    manifest, _ = read_release(release)
    model = build_model("compact", 4, levels=3)
    with torch.no_grad():  # so that the cases fall on either side
        model.head.weight[2] *= 20
    groups = get_groups(model, GROUPS)
    predict_table(config, release, tmp_path / "two.csv", split="all")
    threshold = sorted(float(row["score"]) for row in rows(tmp_path / "two.csv"))[2]
    three = manifest.model_copy(update={"her2_levels": 3, "threshold": threshold})
    write_release(release, three, groups)
    predict_table(config, release, tmp_path / "three.csv", split="all")
    table = rows(tmp_path / "three.csv")
    assert list(table[0])[-3:] == ["low_score", "level", "trained_on"]
    assert "level" not in rows(tmp_path / "two.csv")[0]
    cohort = load_cohort(
        open_cache(config.data.cache), split=None, label=None, image_size=32, volume_size=16
    )
    expected = score(model, cohort).low
    assert expected is not None
    assert [float(row["low_score"]) for row in table] == expected.tolist()
    for row in table:
        negative = "low" if float(row["low_score"]) >= 0.5 else "zero"
        assert row["level"] == ("positive" if row["call"] == "1" else negative)
    assert {row["level"] for row in table} > {"positive"}


# --- unlike -------------------------------------------------------------------------------------


def with_references(folder: Path, cohort: Cohort, limits: dict[Any, float]) -> None:
    """The release again, with references from ``cohort``."""
    manifest, groups = read_release(folder)
    totals = profile(build_model("compact", 4), cohort)
    references = {m: made for m in limits if (made := reference_of(totals[m])) is not None}
    write_release(folder, manifest.model_copy(update={"limits": limits}), groups, references)


def test_unlike_names_the_modalities_beyond_their_limit(
    config: SiteConfig, release: Path, tmp_path: Path
) -> None:
    out, told = tmp_path / "predictions.csv", []
    cohort = load_cohort(
        open_cache(config.data.cache), split=None, label=None, image_size=32, volume_size=16
    )
    with_references(release, cohort, {"us": 0.5, "mg": 0.5})
    references = read_references(release, read_release(release)[0])
    values = score(build_model("compact", 4), cohort, references).unlike
    limits = {"mg": float(np.nanmin(values["mg"])), "us": float(np.nanmin(values["us"]))}
    with_references(release, cohort, limits)
    predict_table(config, release, out, split="all", notify=told.append)
    expected = [
        "+".join(m for m in ("mg", "us") if values[m][case] > limits[m]) for case in range(4)
    ]
    assert [row["unlike"] for row in rows(out)] == expected
    assert sum(map(len, expected)) > 0
    assert expected[2] == ""  # a case with MRI alone
    assert told == ["the release has no limit for mri: unlike images are not flagged"]


def test_a_release_without_limits_flags_nothing_and_says_so(
    config: SiteConfig, release: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    predict_table(config, release, tmp_path / "predictions.csv", notify=told.append)
    assert {row["unlike"] for row in rows(tmp_path / "predictions.csv")} == {""}
    assert told == ["the release has no limit for mg, us, mri: unlike images are not flagged"]


def test_changed_references_give_no_table(
    config: SiteConfig, release: Path, tmp_path: Path
) -> None:
    cohort = load_cohort(
        open_cache(config.data.cache), split=None, label=None, image_size=32, volume_size=16
    )
    with_references(release, cohort, {"us": 0.5})
    path = release / "references.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="was changed"):
        predict_table(config, release, tmp_path / "predictions.csv")
    assert nothing_written(tmp_path)


@pytest.mark.parametrize("out", [".", "none/p.csv"])
def test_a_table_that_cannot_be_written_is_told_at_once(
    config: SiteConfig, tmp_path: Path, out: str
) -> None:
    with pytest.raises(ConfigError, match=r"--out: .*expected a file to write"):
        predict_table(config, tmp_path / "no release", tmp_path / out, force=True)


def test_the_table_is_for_its_owner_alone(
    config: SiteConfig, release: Path, tmp_path: Path
) -> None:
    predict_table(config, release, tmp_path / "p.csv")
    assert (tmp_path / "p.csv").stat().st_mode & 0o777 == 0o600
