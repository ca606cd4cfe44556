"""Hostile YAML and JSON end in an error, at once, and say where."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from her2_common.config import SiteConfig, load
from her2_common.documents import MAX_BYTES, DocumentError, parse_json, parse_yaml
from her2_common.errors import ConfigError

LETTERS = "abcdefghij"
ALIAS_BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in itertools.pairwise(LETTERS)
)
HOSTILE = {
    "aliases": ALIAS_BOMB,
    "one anchor": "name: &a site",
    "brackets": "name: " + "[" * 5000,
    "mappings": "name: " + "{a: " * 5000,
    "sequences": "- " * 5000,
    "digits": "threads: " + "9" * 6000,
    "hexadecimal": "threads: 0x" + "f" * 9000,
    "binary": "threads: 0b" + "1" * 9000,
    "tag": "name: !!python/object:os.system x",
    "doubled key": "name: a\nname: b",
    "key that is a list": "? [a]\n: b",
    "control character": "name: \x00",
    "size": "# " + "x" * MAX_BYTES,
    "no end": "name: [",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_yaml_is_one_error_that_names_the_file(text: str, tmp_path: Path) -> None:
    with pytest.raises(DocumentError):
        parse_yaml(text)
    path = tmp_path / "site.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(SiteConfig, path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < len(str(path)) + 200


def test_a_date_is_text_whether_or_not_the_calendar_has_it() -> None:
    assert parse_yaml("a: 2026-13-45\nb: 2026-11-30") == {"a": "2026-13-45", "b": "2026-11-30"}


def test_a_long_value_is_cut_where_a_message_repeats_it(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("name: " + "A" * 100_000)
    with pytest.raises(ConfigError) as caught:
        load(SiteConfig, path)
    assert max(map(len, str(caught.value).splitlines())) < 300


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 100_000, "9" * 6000, "-" + "9" * 21, b"\xff", "{", ""]
)
def test_hostile_json_is_one_error(content: str | bytes) -> None:
    with pytest.raises(DocumentError):
        parse_json(content)


def outcome(parse: Callable[[str], object], text: str) -> str:
    """The message of the error that ``parse`` raises; empty if it raises none."""
    try:
        parse(text)
    except DocumentError as error:
        return str(error)
    return ""


@given(st.text() | st.text("[]{}:,-&*!?|>'\"# \n\t0123456789abc."))
def test_yaml_of_any_text_is_a_value_or_one_line_of_error(text: str) -> None:
    assert len(outcome(parse_yaml, text).splitlines()) < 2


@given(st.text() | st.text('[]{}:,"0123456789.eE+-aflnrstu \\'))
def test_json_of_any_text_is_a_value_or_one_line_of_error(text: str) -> None:
    assert len(outcome(parse_json, text).splitlines()) < 2
