"""Text that a log, a terminal or a page can show as it is."""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """``text`` with a question mark for each control or format character but the newline: escape
    sequences of terminals, carriage returns, marks that turn the direction of writing.

    >>> printable("a\\x1b[31mb\\r\\nc")
    'a?[31mb?\\nc'
    """
    return "".join(
        character if character == "\n" or unicodedata.category(character) not in _UNSEEN else "?"
        for character in text
    )


_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
