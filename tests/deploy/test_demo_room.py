"""The demo makes room only where it, or nothing, was before."""

from __future__ import annotations

from pathlib import Path

import pytest

from her2_common.errors import ConfigError
from her2_deploy.demo import STAMP, _make_room


@pytest.mark.parametrize("exists", [True, False])
def test_a_new_or_empty_folder_becomes_the_demos(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "deep" / "demo"
    if exists:
        folder.mkdir(parents=True)
    _make_room(folder)
    assert [p.name for p in folder.iterdir()] == [STAMP]


def test_an_earlier_demo_is_removed(tmp_path: Path) -> None:
    _make_room(tmp_path / "demo")
    (tmp_path / "demo" / "hospitals").mkdir()
    (tmp_path / "demo" / "hospitals" / "cases.csv").touch()
    _make_room(tmp_path / "demo")
    assert [p.name for p in (tmp_path / "demo").iterdir()] == [STAMP]


def test_a_folder_with_anything_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="expected an empty folder or an earlier demo's"):
        _make_room(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ConfigError, match="expected an empty folder"):
        _make_room(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"
