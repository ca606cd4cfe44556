"""What a log, a terminal or a page can show as it is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from her2_common.text import printable


def test_escapes_and_marks_of_direction_are_replaced_and_letters_stay() -> None:
    assert printable("Größe\n\x1b[2J\r\t\u202e\u2028x") == "Größe\n?[2J????x"


@given(st.text())
def test_what_comes_out_has_as_many_lines_as_newlines(text: str) -> None:
    shown = printable(text)
    assert len(shown) == len(text)
    assert len(shown.splitlines()) <= text.count("\n") + 1
    assert printable(shown) == shown
