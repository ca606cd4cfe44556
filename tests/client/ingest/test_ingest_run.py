"""Whole ingests of small sites: counts, faults, privacy, reproducibility."""

from __future__ import annotations

import errno
import os
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from rich.console import Console

import her2_client.ingest.run as run_module
from her2_client import image_file
from her2_client.cache import SOURCES, open_cache, verify_cache
from her2_client.cache_writer import CacheWriter
from her2_client.ingest import case, workers
from her2_client.ingest.case import AFTER_THERAPY
from her2_client.ingest.privacy.review import decisions_file, merge_decisions
from her2_client.ingest.run import ingest, quarantined_pictures
from her2_client.ingest.summary import IngestSummary, summary_table
from her2_common.cases import SPLITS, assign_split, pseudonym
from her2_common.clinical import HER2_LEVELS
from her2_common.errors import CacheError, ConfigError, DataError, TableError

KEY = bytes.fromhex("0f" * 32)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_whole_site(site: Any) -> None:
    site.add("a", age=50, biopsy_ihc=3, surgical_ihc=1, nat=1, split="train", pcr=0)
    site.add("b", "us", biopsy_her2=0, split="test")
    site.add("c", "mg mri", split="val", menopausal=1)
    site.add("d", "")
    seen: list[tuple[int, int]] = []
    summary = ingest(
        site.config(), workers=1, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert summary.notes == []
    figures = summary.as_dict()
    assert figures.pop("seconds") > 0
    clinical = figures.pop("clinical")
    assert clinical["age"] == {
        "under 40": 0, "40 to 49": 0, "50 to 59": 1, "60 to 69": 0, "70 and over": 0, "unknown": 2,
    }  # fmt: skip
    assert clinical["menopausal"] == {"no": 0, "yes": 1, "unknown": 2}
    assert clinical["biopsy_ihc"] == {
        "0": 0, "ultralow": 0, "1": 0, "2": 0, "3": 1, "unknown": 2,
    }  # fmt: skip
    assert clinical["pcr"] == {"no": 1, "yes": 0, "unknown": 2}
    accepted = {"accepted": 2, "set aside": 0, "quarantined": 0, "refused": 0}
    assert figures == {
        "site": "centre-t",
        "published": True,
        "cases": {"in_table": 4, "accepted": 3, "left_out": {"no image named": 1}},
        "images": dict.fromkeys(("mg_cc", "mg_mlo", "us", "mri"), accepted),
        "reasons": {"set aside": {}, "quarantined": {}, "refused": {}},
        "remarks": {},
        "lesion_boxes": {"mg_cc": 0, "mg_mlo": 0, "us": 0, "mri": 0},
        "scanners": {"mg": {"not stated": 4}, "us": {"not stated": 2}, "mri": {"not stated": 2}},
        "training": {"mg": 1, "us": 1, "mri": 1, "clinical": 1, "head": 1},
        "work": {"fresh": 6, "unchanged": 0},
        "modalities": {"mg": 2, "us": 2, "mri": 2},
        "combinations": {"mg+mri": 1, "mg+us+mri": 1, "us": 1},
        "splits": {
            "train": {"cases": 1, "positive": 1, "negative": 0, "unknown": 0},
            "val": {"cases": 1, "positive": 0, "negative": 0, "unknown": 1},
            "test": {"cases": 1, "positive": 0, "negative": 1, "unknown": 0},
        },
        "label_sources": {
            "biopsy": 2, "excised_untreated": 0, "treated_only": 0, "equivocal": 0, "not_tested": 1,
        },
    }  # fmt: skip

    cache = open_cache(site.folder / "cache")
    verify_cache(site.folder / "cache")
    assert cache.pseudonyms == tuple(pseudonym(KEY, case_id) for case_id in "abc")
    assert [SPLITS[i] for i in cache.split] == ["train", "test", "val"]
    assert cache.labels["biopsy"].tolist() == [1, 0, -1]
    assert cache.labels["surgical"].tolist() == [0, -1, -1]
    assert cache.labels["reference"].tolist() == [1, 0, -1]
    assert [SOURCES[i] for i in cache.sources["reference"]] == ["biopsy", "biopsy", "not_tested"]
    assert [SOURCES[i] for i in cache.sources["surgical"]][:1] == ["excised_treated"]
    assert cache.labels["pcr"].tolist() == [0, -1, -1]
    # case a: biopsy 3+, surgical 1+; case b: HER2 stated without its IHC
    assert {kind: cache.levels[kind].tolist() for kind in ("biopsy", "surgical", "reference")} == {
        "biopsy": [HER2_LEVELS.index("positive"), -1, -1],
        "surgical": [HER2_LEVELS.index("low"), -1, -1],
        "reference": [HER2_LEVELS.index("positive"), -1, -1],
    }
    np.testing.assert_array_equal(cache.clinical[:, 0], np.float32([50, np.nan, np.nan]))
    np.testing.assert_array_equal(cache.clinical[:, 1], np.float32([np.nan, np.nan, 1]))
    assert cache.rows["mg"].tolist() == [0, -1, 1]
    assert cache.rows["mri"].tolist() == [0, -1, 1]
    for array in cache.arrays.values():
        assert np.abs(array).max() <= 5


def test_a_picture_taken_after_therapy_began_is_set_aside(site: Any) -> None:
    site.add("a", "us mri", mri_days=-12, us_days=3)
    site.add("b", "mg", mg_days=-1)
    site.add("c", "mri", mri_days=0)
    summary = ingest(site.config(), workers=1)
    assert summary.as_dict()["cases"] == {
        "in_table": 3, "accepted": 2, "left_out": {"no usable image": 1},
    }  # fmt: skip
    assert summary.combinations == {"us": 1, "mri": 1}
    assert summary.reasons["set aside"] == {AFTER_THERAPY: 3}
    assert [(note.row, note.note.column) for note in summary.notes] == [
        (2, "mri"), (3, "mg_cc"), (3, "mg_mlo"),
    ]  # fmt: skip
    cache = open_cache(site.folder / "cache")
    assert cache.rows["mri"].tolist() == [-1, 0]


def test_lesion_boxes_reach_their_images(site: Any) -> None:
    site.add("a")
    ingest(site.config("plain"), workers=1)
    for image, box in {
        "mg_cc": (10, 28, "", 26, 44, ""),
        "mg_mlo": (12, 30, "", 28, 46, ""),
        "us": (28, 24, "", 44, 40, ""),
        "mri": (7, 8, 3, 13, 14, 6),
    }.items():
        names = ("x0", "y0", "z0", "x1", "y1", "z1")
        site.boxes.append({"case_id": "a", "image": image} | dict(zip(names, box, strict=True)))
    ingest(site.config("boxed"), workers=1)
    plain, boxed = open_cache(site.folder / "plain"), open_cache(site.folder / "boxed")
    np.testing.assert_array_equal(plain.arrays["mg"][0, :2], boxed.arrays["mg"][0, :2])
    for channel in (2, 3):
        assert (plain.arrays["mg"][0, channel] != boxed.arrays["mg"][0, channel]).any()
    for modality in ("us", "mri"):
        assert (plain.arrays[modality] != boxed.arrays[modality]).any()


def test_a_missing_view_is_two_empty_channels(site: Any) -> None:
    site.add("a", "mg")
    del site.rows[0]["mg_cc"]
    ingest(site.config(), workers=1)
    channels = open_cache(site.folder / "cache").arrays["mg"][0]
    assert [bool(channel.any()) for channel in channels] == [False, True, False, True]


def test_the_first_ultrasound_that_can_be_used_is_taken(site: Any, pictures: Any) -> None:
    site.add("a", "us")
    ingest(site.config("one"), workers=1)
    folder = site.folder / "images"
    site.dicoms.us(folder / "no.dcm", pictures.echo(), region=None)
    site.dicoms.us(folder / "later.dcm", pictures.echo().T)
    good = site.rows[0]["us"]
    site.rows[0]["us"] = f"{folder}/no.dcm;{good};{folder}/later.dcm"
    summary = ingest(site.config("several"), workers=1)
    assert summary.reasons["quarantined"] == {"no verified region": 1}
    one, several = open_cache(site.folder / "one"), open_cache(site.folder / "several")
    np.testing.assert_array_equal(one.arrays["us"], several.arrays["us"])


@pytest.fixture
def faulty(site: Any, pictures: Any) -> Any:
    """Eight cases with one fault each, in row order, and a ninth that is sound."""
    for number in range(9):
        site.add(f"case-{number}")

    def named(number: int, column: str) -> Path:
        return Path(site.rows[number][column])

    named(0, "mg_cc").unlink()
    data = named(1, "mg_cc").read_bytes()
    named(1, "mg_cc").write_bytes(data[: len(data) // 2])
    named(2, "mg_mlo").write_bytes(b"\x89PNG" + bytes(1000))
    site.dicoms.mg(named(3, "mg_cc"), pictures.breast(), PresentationIntentType="FOR PROCESSING")
    (named(4, "mri") / "1-004.dcm").unlink()
    twin = pydicom.dcmread(named(5, "mri") / "1-004.dcm")
    twin.SOPInstanceUID = twin.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    twin.save_as(named(5, "mri") / "x.dcm")
    site.dicoms.us(named(6, "us"), pictures.echo(), region=None)
    site.rows[7]["us"] = site.rows[7]["mg_cc"]
    return site


def test_one_bad_image_does_not_stop_the_others(faulty: Any) -> None:
    summary = ingest(faulty.config(), workers=1)
    assert [(n.row, n.note.column, n.note.reason) for n in summary.notes] == [
        (2, "mg_cc", "missing file"),
        (3, "mg_cc", "truncated"),
        (4, "mg_mlo", "not DICOM"),
        (5, "mg_cc", "for processing"),
        (6, "mri", "incomplete phase"),
        (7, "mri", "duplicate slice"),
        (8, "us", "no verified region"),
        (9, "us", "wrong modality"),
    ]
    assert str(summary.notes[1]).startswith("row 3, mg_cc: truncated DICOM")
    assert summary.accepted == 9
    assert summary.combinations == {"mg+us+mri": 5, "mg+us": 2, "mg+mri": 2}
    text = "\n".join(str(refusal) for refusal in summary.notes)
    assert "CANARY" not in text
    assert "case-" not in text


def test_strict_writes_nothing_if_one_image_is_refused(faulty: Any) -> None:
    config = faulty.config()
    with pytest.raises(DataError, match=r"8 refused or .*left as it was\n  row 2, mg_cc"):
        ingest(config, workers=1, strict=True)
    with pytest.raises(CacheError, match="no cache"):
        open_cache(config.data.cache)


@pytest.mark.parametrize("cut", [3, 130, 140, 200, 350, 600, -2000, -1])
@pytest.mark.parametrize("column", ["mg_cc", "us"])
def test_however_a_file_is_cut_it_is_refused(site: Any, column: str, cut: int) -> None:
    site.add("a")
    path = Path(site.rows[0][column])
    path.write_bytes(path.read_bytes()[:cut])
    summary = ingest(site.config(), workers=1)
    assert [(n.row, n.note.column) for n in summary.unused("refused")] == [(2, column)]
    assert summary.accepted == 1


@pytest.mark.parametrize("seed", range(12))
def test_garbage_is_refused_or_harmless(site: Any, seed: int) -> None:
    """Bytes changed at random end in a refusal or an image, never in another error."""
    site.add("a")
    rng = np.random.default_rng(seed)
    paths = [Path(site.rows[0][c]) for c in ("mg_cc", "us")]
    paths.append(Path(site.rows[0]["mri"]) / "1-003.dcm")
    for path in paths:
        data = bytearray(path.read_bytes())
        for position in rng.integers(132, min(len(data), 900), 6):
            data[position] = rng.integers(256)
        path.write_bytes(data)
    ingest(site.config(), workers=1)
    verify_cache(site.folder / "cache")


def test_no_usable_case_is_an_error_that_says_why(site: Any) -> None:
    site.add("a", "us")
    Path(site.rows[0]["us"]).unlink()
    site.add("b", "")
    with pytest.raises(DataError, match=r"a site with no cases.*1 x missing file"):
        ingest(site.config(), workers=1)
    with pytest.raises(CacheError, match="no cache"):
        open_cache(site.folder / "cache")


def test_a_case_without_a_usable_image_is_left_out_and_counted(site: Any) -> None:
    site.add("a", "us")
    site.add("b", "us")
    Path(site.rows[0]["us"]).unlink()
    summary = ingest(site.config(), workers=1)
    assert summary.left_out == {"no usable image": 1}
    assert open_cache(site.folder / "cache").pseudonyms == (pseudonym(KEY, "b"),)


def test_the_same_bytes_for_any_number_of_workers(faulty: Any) -> None:
    for number in range(9, 20):
        faulty.add(f"case-{number}", "us")
    one = ingest(faulty.config("one"), workers=1)
    two = ingest(faulty.config("two"), workers=2)
    assert one.notes == two.notes
    first, second = tree(faulty.folder / "one"), tree(faulty.folder / "two")
    assert first.keys() == second.keys()
    assert first == second


def test_no_identifier_is_in_any_byte_of_the_cache(faulty: Any) -> None:
    ingest(faulty.config(), workers=1)
    for name, data in tree(faulty.folder / "cache").items():
        for canary in ("CANARY", "case-", "images", str(faulty.folder), ".dcm"):
            assert canary.encode() not in data, (name, canary)
            assert canary.encode("utf-16-le") not in data, (name, canary)
            assert canary not in name


@pytest.mark.parametrize("name", ["CANARY", "ANNA"])
@pytest.mark.parametrize("tag", ["Modality", "ViewPosition", "PresentationIntentType"])
def test_no_message_quotes_what_a_tag_should_not_hold(
    site: Any, pictures: Any, tag: str, name: str
) -> None:
    """A name of four capitals looks like a code and is none."""
    site.add("a")
    site.dicoms.mg(
        Path(site.rows[0]["mg_cc"]),
        pictures.breast(),
        **{"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4", tag: name},
    )
    (note,) = ingest(site.config(), workers=1).notes
    assert name not in str(note)


def test_a_fault_of_the_machine_is_not_remembered_as_one_of_the_file(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add("a")
    site.add("b", "us")
    config = site.config()
    real = case.ultrasound
    for error, words in (
        (MemoryError(), "the memory is full"),
        (OSError(errno.EIO, "Input/output error"), "cannot be read on: Input/output error"),
    ):

        def fail(*_: Any, error: Exception = error, **__: Any) -> Any:
            raise error

        monkeypatch.setattr(case, "ultrasound", fail)
        with pytest.raises(DataError, match=words) as caught:
            ingest(config, workers=1)
        assert "goes on where it was" in str(caught.value.hint)
        monkeypatch.setattr(case, "ultrasound", real)
    summary = ingest(config, workers=1)
    assert (summary.accepted, summary.notes) == (2, [])


def test_a_dead_link_hides_no_change_of_its_folder(site: Any, pictures: Any) -> None:
    site.add("a", "mri")
    folder = Path(site.rows[0]["mri"])
    (folder / "dead").symlink_to("nowhere")
    config = site.config()
    first = ingest(config, workers=1)
    (folder / "1-003.dcm").touch()
    assert ingest(config, workers=1).fresh == first.fresh == 1


def test_what_a_modality_does_not_read_leaves_it_alone(site: Any) -> None:
    site.add("a", laterality="L")
    config = site.config()
    ingest(config, workers=1)
    data = config.data.model_copy(update={"mri_phases": (0, 1)})
    assert ingest(config.model_copy(update={"data": data}), workers=1).fresh == 1  # the MRI


def test_splits_follow_the_key_and_the_patient(site: Any) -> None:
    for number in range(12):
        site.add(f"case-{number}", "us", patient_id=f"patient-{number // 2}")
    ingest(site.config(), workers=1)
    cache = open_cache(site.folder / "cache")
    expected = [SPLITS.index(assign_split(KEY, f"patient-{n // 2}")) for n in range(12)]
    assert cache.split.tolist() == expected


def published(folder: Path) -> dict[str, bytes]:
    """The cache that readers see: without the lock, the generation's number and work in hand."""
    return {
        name.split("/", 1)[-1]: data
        for name, data in tree(folder).items()
        if not name.startswith(".") and name != "index.json"
    }


def test_an_error_half_way_leaves_the_previous_cache(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add("a", "us")
    config = site.config()
    ingest(config, workers=1)
    before = published(config.data.cache)

    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    site.add("b", "us")
    with pytest.raises(KeyboardInterrupt):
        ingest(site.config(), workers=1, progress=stop)
    verify_cache(config.data.cache)
    assert len(open_cache(config.data.cache)) == 1

    monkeypatch.setattr(run_module.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(CacheError, match="of free disk"):
        ingest(site.config(), workers=1)
    verify_cache(config.data.cache)
    site.rows.pop()
    monkeypatch.undo()
    ingest(site.config(), workers=1)
    assert published(config.data.cache) == before


@pytest.mark.parametrize("stop_at", [1, 3, 6])
def test_an_interrupted_ingest_goes_on_where_it_was(site: Any, stop_at: int) -> None:
    for number in range(6):
        site.add(f"case-{number}", ("mg us mri", "us", "mri")[number % 3])
    ingest(site.config("whole"), workers=1)

    def stop(done: int, _total: int) -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(site.config("cut"), workers=1, progress=stop)
    summary = ingest(site.config("cut"), workers=1)
    done = sum((3, 1, 1)[number % 3] for number in range(stop_at))
    assert (summary.unchanged, summary.fresh) == (done, 10 - done)
    assert published(site.folder / "cut") == published(site.folder / "whole")
    assert tree(site.folder / "cut")["index.json"] == tree(site.folder / "whole")["index.json"]


def test_only_what_changed_is_done_again(site: Any, pictures: Any) -> None:
    for number in range(3):
        site.add(f"case-{number}")
    config = site.config()
    first = ingest(config, workers=1)
    assert (first.fresh, first.unchanged) == (9, 0)
    again = ingest(config, workers=1)
    assert (again.fresh, again.unchanged) == (0, 9)
    assert again.as_dict() | {"work": 0, "seconds": 0} == first.as_dict() | {
        "work": 0,
        "seconds": 0,
    }

    site.dicoms.mg(Path(site.rows[1]["mg_mlo"]), pictures.breast(90, 60).T, ViewPosition="MLO")
    box = {"x0": 20, "y0": 20, "z0": "", "x1": 40, "y1": 40, "z1": ""}
    site.boxes.append({"case_id": "case-2", "image": "us"} | box)
    site.rows[0]["age"] = 61  # of the table, not of an image
    changed = ingest(site.config(), workers=1)
    assert (changed.fresh, changed.unchanged) == (2, 7)
    assert open_cache(config.data.cache).clinical[0, 0] == 61
    ingest(site.config("other"), workers=1)
    assert published(config.data.cache) == published(site.folder / "other")

    (Path(site.rows[0]["mri"]) / "1-003.dcm").touch()
    assert ingest(site.config(), workers=1).fresh == 1
    assert ingest(site.config(), workers=1, fresh=True).fresh == 9


def test_a_refused_image_is_not_read_again_until_it_changes(site: Any, pictures: Any) -> None:
    site.add("a", "us")
    site.add("b", "us")
    site.dicoms.us(Path(site.rows[0]["us"]), pictures.echo(), region=None)
    config = site.config()
    ingest(config, workers=1)
    again = ingest(config, workers=1)
    assert (again.fresh, again.unchanged) == (0, 2)
    assert [note.note.reason for note in again.notes] == ["no verified region"]
    site.dicoms.us(Path(site.rows[0]["us"]), pictures.echo(), StationName="ANOTHER")
    mended = ingest(config, workers=1)
    assert (mended.fresh, mended.accepted, mended.notes) == (1, 2, [])


def test_a_decision_redoes_its_case_alone(site: Any, pictures: Any) -> None:
    for number in range(3):
        site.add(f"case-{number}", "us")
    for row in site.rows[:2]:
        site.dicoms.us(Path(row["us"]), pictures.echo(), region=None, StationName=row["case_id"])
    config = site.config()
    summary = ingest(config, workers=1)
    assert summary.images["us"] == {"accepted": 1, "quarantined": 2}
    seen, more = quarantined_pictures(config, summary, limit=10)
    assert ([one.row for one in seen], more) == ([2, 3], 0)
    few, more = quarantined_pictures(config, summary, limit=1)
    assert (few, more) == (seen[:1], 1)

    def decide(word: str, digest: str) -> None:
        text = f"picture,decision,x0,y0,x1,y1,by\n{digest},{word},,,,,R. Reader\n"
        (site.folder / "decisions.csv").write_text(text)
        merge_decisions(decisions_file(config.state), site.folder / "decisions.csv")

    decide("approve", seen[0].digest)
    approved = ingest(config, workers=1)
    assert (approved.fresh, approved.images["us"]["accepted"]) == (1, 2)
    decide("refuse", seen[1].digest)
    refused = ingest(config, workers=1)
    assert refused.fresh == 1
    assert refused.reasons["refused"] == {"refused at review": 1}
    assert quarantined_pictures(config, refused, limit=10) == ([], 0)
    decide("undo", seen[0].digest)
    assert ingest(config, workers=1).reasons["quarantined"] == {"no verified region": 1}


def test_a_dry_run_counts_the_same_and_writes_nothing(faulty: Any) -> None:
    config = faulty.config()
    dry = ingest(config, workers=1, write=False)
    assert not config.data.cache.exists()
    wet = ingest(config, workers=1)
    before = tree(faulty.folder)
    known = ingest(config, workers=1, write=False)
    assert tree(faulty.folder) == before
    assert known.fresh == 0
    assert (dry.published, wet.published, known.published) == (False, True, False)
    own = {"work": 0, "seconds": 0, "published": 0}
    for other in (wet, known):
        assert other.notes == dry.notes
        assert other.as_dict() | own == dry.as_dict() | own


@pytest.mark.skipif(os.name != "posix", reason="inodes")
def test_new_content_of_the_same_size_and_time_is_seen(site: Any, pictures: Any) -> None:
    site.add("a", "us")
    path = Path(site.rows[0]["us"])
    config = site.config()
    ingest(config, workers=1)
    before = path.stat()
    site.dicoms.us(path, pictures.echo()[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert ingest(config, workers=1).fresh == 1


def test_another_pseudonym_key_is_refused(site: Any) -> None:
    site.add("a", "us")
    config = site.config()
    ingest(config, workers=1)
    before = published(config.data.cache)
    key = site.folder / "pseudonym.key"
    own = key.read_text()
    key.write_text("ab" * 32)
    for write in (True, False):
        with pytest.raises(ConfigError, match="expected the key with which the cache was made"):
            ingest(config, workers=1, write=write)
    assert published(config.data.cache) == before
    key.write_text(own)
    assert ingest(config, workers=1).unchanged == 1
    assert own.encode() not in b"".join(tree(config.data.cache).values())


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_the_cache_is_for_its_owner_alone(site: Any) -> None:
    site.add("a")
    config = site.config()
    ingest(config, workers=1)
    for path in [config.data.cache, *config.data.cache.rglob("*")]:
        if path.name != ".lock":
            assert path.stat().st_mode & 0o077 == 0, path


def test_an_image_whose_copy_is_damaged_counts_as_done_again(site: Any) -> None:
    site.add("a")
    config = site.config()
    ingest(config, workers=1)
    before = published(config.data.cache)
    (path,) = config.data.cache.glob("*/us.npy")
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    summary = ingest(config, workers=1)
    assert (summary.fresh, summary.unchanged) == (1, 2)
    assert published(config.data.cache) == before


def test_a_full_disk_is_told_and_the_work_is_kept(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        site.add(f"case-{number}", "us")
    config = site.config()
    append = image_file.ImageFile.append

    def full(self: Any, array: Any) -> Any:
        if self.count == 2:
            self.stream.write(b"half a row")
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(self, array)

    monkeypatch.setattr(image_file.ImageFile, "append", full)
    with pytest.raises(CacheError, match="the disk is full") as caught:
        ingest(config, workers=1)
    assert "goes on where it was" in str(caught.value.hint)
    monkeypatch.undo()
    summary = ingest(config, workers=1)
    assert (summary.unchanged, summary.fresh) == (2, 2)
    ingest(site.config("whole"), workers=1)
    assert published(config.data.cache) == published(site.folder / "whole")


def test_a_second_ingest_is_refused(site: Any) -> None:
    site.add("a", "us")
    config = site.config()
    holder = CacheWriter(config.data.cache, site="x", image_size=32, volume_size=16)
    with holder, pytest.raises(CacheError, match="another ingest"):
        ingest(config, workers=1)


def test_a_faulty_table_or_key_ends_it_before_any_image(site: Any) -> None:
    site.add("a", "us", age=7)
    with pytest.raises(TableError, match="row 2, column age"):
        ingest(site.config(), workers=1)
    site.rows[0]["age"] = 40
    (site.folder / "pseudonym.key").write_text("short")
    with pytest.raises(ConfigError, match="64 hex digits"):
        ingest(site.config(), workers=1)
    assert not (site.folder / "cache").exists()


def _die(_guard: Any) -> None:
    os._exit(1)


def test_a_dead_worker_ends_it_with_a_hint(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        site.add(f"{number}", "us")
    # as the system kills one that takes too much memory
    monkeypatch.setattr(workers, "_start_worker", _die)
    with pytest.raises(DataError, match="a worker process died") as caught:
        ingest(site.config(), workers=2)
    assert str(caught.value.hint).startswith("run: her2-client ingest --workers 1")


@pytest.mark.parametrize(
    "error", [OSError("handle is closed"), ValueError("bad value(s) in fds_to_keep")]
)
def test_a_worker_that_cannot_be_started_ends_it_with_a_hint(
    site: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    for number in range(13):
        site.add(f"{number}", "us")
    start, started = SpawnProcess.start, []

    def second_fails(process: SpawnProcess) -> None:
        if started:  # as when the first one dies meanwhile: the queue to it is closed already
            raise error
        started.append(process)
        start(process)

    monkeypatch.setattr(SpawnProcess, "start", second_fails)
    with pytest.raises(DataError, match="a worker process died or could not be started") as caught:
        ingest(site.config(), workers=2)
    assert str(caught.value.hint).startswith("run: her2-client ingest --workers 1")
    assert not started[0].is_alive()


def test_the_summary_fits_80_columns(faulty: Any) -> None:
    summary = ingest(faulty.config(), workers=1)
    for number in range(9):
        summary.reasons["refused"][f"another long reason {number}"] = 1000
    text = _render(summary)
    assert max(len(line) for line in text.splitlines()) <= 80
    for expected in ("cases in the table", "1 missing file", "mg_cc accepted", "train cases"):
        assert expected in text


def _render(summary: IngestSummary) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(summary_table(summary))
    return capture.get()
