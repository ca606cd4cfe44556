"""Faults of tables, keys, decisions and folders: they end an ingest before it writes a cache."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.client.ingest.conftest import Site, echo

from her2_client.cache import open_cache
from her2_client.ingest.privacy.review import decisions_file
from her2_client.ingest.run import ingest
from her2_common.errors import CacheError, ConfigError, DataError, Her2Error, TableError

Spoil = Callable[[Path], None]
"""Spoils one thing in the folder of a sound site."""

HEADER = b"case_id,us,age,laterality,biopsy_ihc,biopsy_her2,split,ypt,pcr\n"
SOUND = b"a,us.dcm,50,L,,,,,\n"
LESIONS = b"case_id,image,x0,y0,z0,x1,y1,z1\n"
PICTURE = b"0123456789abcdef" * 2


def writes(name: str, content: bytes = b"x") -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return spoil


def cases(content: bytes) -> Spoil:
    return writes("cases.csv", content)


def rows(*lines: bytes) -> Spoil:
    return cases(HEADER + b"\n".join(lines))


def boxes(*lines: bytes) -> Spoil:
    return writes("lesions.csv", LESIONS + b"\n".join(lines))


def decisions(content: bytes) -> Spoil:
    def spoil(folder: Path) -> None:
        path = decisions_file(folder / "state")
        path.parent.mkdir(parents=True)
        path.write_bytes(content)

    return spoil


def folder_instead(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return spoil


def gone(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def makes(name: str) -> Spoil:
    return lambda folder: (folder / name).mkdir(parents=True)


LOG = b"picture,decision,x0,y0,x1,y1,by,date\n"
# fmt: off
FAULTS: dict[str, tuple[Spoil, type[Her2Error], str]] = {
    # cases.csv
    "no table": (gone("cases.csv"), TableError, "cases.csv: no such file"),
    "folder": (folder_instead("cases.csv"), TableError, "cases.csv: cannot be read: Is a direc"),
    "empty": (cases(b""), TableError, "expected a header row, got an empty file"),
    "no rows": (rows(), DataError, "a site with no cases: of 0 rows in the table"),
    "bytes": (cases(bytes(range(256))), TableError, "row 2: expected UTF-8, got a byte"),
    "UTF-16": (cases(HEADER.decode().encode("utf-16")), TableError, "row 1: expected UTF-8"),
    "semicolons": (cases(HEADER.replace(b",", b";")), TableError, "got semicolons"),
    "tabs": (cases(HEADER.replace(b",", b"\t")), TableError, "commas between the cells, got tabs"),
    "unknown column": (cases(HEADER.replace(b"age", b"aeg")), TableError, "unknown column 'aeg'"),
    "doubled column": (cases(HEADER.replace(b"age", b"us")), TableError, "stands twice"),
    "no case_id": (cases(b"us\nus.dcm\n"), TableError, "'case_id' is missing from the header"),
    "many cells": (rows(SOUND.strip() + b",x"), TableError, "row 2: expected 9 cells, got 10"),
    "open quote": (rows(b'"a,us.dcm,50,L,,,,,'), TableError, "row 2: not CSV"),
    "age": (rows(b"a,us.dcm,7,L,,,,,"), TableError, "row 2, column age: expected an age in years"),
    "side": (rows(b"a,us.dcm,50,left,,,,,"), TableError, "row 2, column laterality: expected one"),
    "IHC": (rows(b"a,us.dcm,50,,4,,,,"), TableError, "column biopsy_ihc: expected an IHC score"),
    "twice": (rows(SOUND, SOUND), TableError, "row 4: case_id is the same as in row 2"),
    "blank case": (rows(b",us.dcm,50,L,,,,,"), TableError, "row 2: case_id is blank"),
    "assay": (rows(b"a,us.dcm,50,L,3,0,,,"), TableError, "biopsy_her2 is 0, but biopsy_ihc 3"),
    "pcr": (rows(b"a,us.dcm,50,L,,,,2,1"), TableError, "pcr is 1, but ypt 2"),
    "no image is there": (rows(b"a,no.dcm,50,L,,,,,"), DataError, "of 1 rows in the table"),
    # lesions.csv
    "no boxes": (gone("lesions.csv"), TableError, "lesions.csv: no such file"),
    "inverted box": (boxes(b"a,us,9,9,,4,12,"), TableError, "x1 must be greater than x0"),
    "box of no case": (boxes(b"b,us,1,1,,4,12,"), TableError, "case_id is not in the case table"),
    "box of CT": (boxes(b"a,ct,1,1,,4,12,"), TableError, "expected one of mg_cc, mg_mlo, us, mri"),
    "no slices": (boxes(b"a,mri,1,1,,4,12,"), TableError, "column z0: expected a whole number"),
    "second box": (boxes(b"a,us,1,1,,4,12,", b"a,us,1,1,,4,12,"), TableError, "a second us box"),
    "below 0": (boxes(b"a,us,-1,1,,4,12,"), TableError, "column x0: expected a whole number"),
    # the reviewer's decisions
    "log of bytes": (decisions(b"\xff" * 99), TableError, "decisions.csv, row 1: expected UTF-8"),
    "log of a name": (decisions(LOG + b"CANARY,approve,,,,,by,2026\n"), TableError, "32 hex digit"),
    "log of a word": (decisions(LOG + PICTURE + b",perhaps,,,,,by,2026\n"), TableError,
                      "expected one of approve, refuse, undo"),
    "log of a corner": (decisions(LOG + PICTURE + b",approve,5,1,0,4,by,2026\n"), TableError,
                        "column x1: expected more than x0 (5), got 0"),
    "log is a folder": (makes("state/review/decisions.csv"), TableError, "decisions.csv: cannot"),
    # the site's folder
    "no key": (gone("pseudonym.key"), ConfigError, "pseudonym.key: no such file"),
    "short key": (writes("pseudonym.key", b"0f"), ConfigError, "expected 64 hex digits"),
    "foreign cache": (writes("cache/thesis.doc"), CacheError, "got 1 other files or folders"),
    "cache is a file": (writes("cache"), CacheError, "cache: cannot be written: File exists"),
    "lock is a folder": (makes("cache/.lock"), CacheError, "cannot be written: Is a directory"),
    "index is a folder": (makes("cache/index.json"), CacheError, "cannot be written: Is a direc"),
    "draft is a file": (writes("cache/.writing"), CacheError, "got 1 other files or folders"),
}
# fmt: on
ALIKE = [{"draft is a file", "foreign cache"}, {"index is a folder", "lock is a folder"}]
"""Faults with the same message."""
PATHS = re.compile(r"^\S*/|/\S*/site\d+")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Her2Error]:
    """The error of a fault by its name; each is ingested once."""

    @functools.cache
    def error(name: str) -> Her2Error:
        spoil, expected, _ = FAULTS[name]
        site = Site(tmp_path_factory.mktemp("site"))
        site.dicoms.us(site.folder / "us.dcm", echo())
        box = {"case_id": "a", "image": "us", "x0": 10, "y0": 10, "x1": 20, "y1": 20}
        site.rows, site.boxes = [{"case_id": "a", "us": "us.dcm"}], [box]
        config = site.config()
        (site.folder / "cases.csv").write_bytes(HEADER + SOUND)
        if name in ("no rows", "no image is there"):
            (site.folder / "lesions.csv").write_bytes(LESIONS)
        spoil(site.folder)
        with pytest.raises(expected) as caught:
            ingest(config, workers=1)
        with pytest.raises(CacheError):
            open_cache(config.data.cache)
        return caught.value

    return error


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_the_ingest_and_says_why(told: Callable[[str], Her2Error], name: str) -> None:
    error = told(name)
    assert FAULTS[name][2] in str(error)
    assert "CANARY" not in str(error)


def test_different_faults_have_different_messages(told: Callable[[str], Her2Error]) -> None:
    groups: dict[str, set[str]] = {}
    for name in FAULTS:
        groups.setdefault(PATHS.sub("", str(told(name))), set()).add(name)
    assert sorted(sorted(group) for group in groups.values() if len(group) > 1) == [
        sorted(group) for group in ALIKE
    ]


def test_an_image_that_might_not_be_read_is_read_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A permission changes neither the size of a file nor its time of change."""
    site.add("a", "us")
    site.add("b", "us")
    config = site.config()
    locked, opened = Path(site.rows[0]["us"]), Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == locked:
            raise PermissionError(13, "CANARY")
        return opened(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        first = ingest(config, workers=1)
        again = ingest(config, workers=1)
    assert [str(note) for note in first.notes] == ["row 2, us: the file may not be read"]
    assert (again.fresh, again.unchanged, again.notes) == (1, 1, first.notes)
    mended = ingest(config, workers=1)
    assert (mended.fresh, mended.unchanged, mended.notes) == (1, 1, [])
