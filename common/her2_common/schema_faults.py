"""What is wrong with a configuration file, in words for the person who wrote it.

Each fault is one line, "key: expected X, got Y"; unknown keys come with the nearest valid name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any, Final

from pydantic import BaseModel, ValidationError

MAX_SHOWN: Final = 60
"""Characters of a value that a message repeats."""

_PLAIN: Final = {
    "Input should be": "expected",
    "String should match pattern": "expected the form",
    "a valid tuple": "a list",
    "a valid boolean": "yes or no",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "more than",
    "Tuple should have": "expected",
    " item after validation": " item",
}
"""pydantic's words, and ours."""


def told(schema: type[BaseModel], error: ValidationError) -> str:
    """The faults of ``error``, which a document of ``schema`` has."""
    faults = error.errors()
    lines = []
    for fault in faults:
        at = fault["loc"]
        # A list counts its sound items alone: it is no shorter for those that are named here.
        inside = any(o["loc"][: len(at)] == at and o["loc"] != at for o in faults)
        if fault["type"] == "too_short" and inside:
            continue
        lines.append(_line(schema, fault))
    return lines[0] if len(lines) == 1 else f"{len(lines)} faults\n  " + "\n  ".join(lines)


def _line(schema: type[BaseModel], fault: Any) -> str:
    kind, at, got = fault["type"], fault["loc"], fault["input"]
    section, parts = _walk(schema, at)
    name = str(at[-1]) if at else ""
    names = [_name(model) for model in _sections(section, name)]
    context, shown = fault.get("ctx", {}), _shown(got)
    if kind == "value_error":  # a section's own rule, which may begin with the key that it is about
        message = str(context["error"])
        first, colon, rest = message.partition(": ")
        if colon and first in _walk(schema, (*at, ""))[0].model_fields:
            parts, message = [*parts, first], rest
    elif kind == "extra_forbidden":
        message = f"unknown key; {_advice(name, section.model_fields)}"
    elif kind == "missing":
        message = "missing"
    elif kind in ("model_type", "dict_type"):
        message = f"expected keys and values, got {shown}"
    elif kind == "model_attributes_type":
        message = f"expected keys and values with a name ({', '.join(names)}), got {shown}"
    elif kind == "union_tag_not_found":
        parts, message = [*parts, "name"], f"missing; one of {', '.join(names)}"
    elif kind == "union_tag_invalid":
        parts = [*parts, "name"]
        message = f"unknown name {_cut(repr(context['tag']))}; {_advice(context['tag'], names)}"
    else:
        field = section.model_fields.get(name)
        message = re.sub(r", unable to .*$", "", fault["msg"])
        for words, plain in _PLAIN.items():
            message = message.replace(words, plain)
        if kind == "string_pattern_mismatch" and field is not None and field.description:
            message = f"expected {field.description}"
        message = f"{message}, got {shown}"
    return f"{'.'.join(parts)}: {message}" if parts else message


def _advice(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(sorted(known))


def _shown(got: Any) -> str:
    """A value as YAML has it."""
    if got is None:
        return "nothing"
    return ("no", "yes")[got] if isinstance(got, bool) else _cut(repr(got))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _walk(
    schema: type[BaseModel], location: tuple[int | str, ...]
) -> tuple[type[BaseModel], list[str]]:
    """The section that holds the last key of ``location``, and the keys of the file that lead
    there. Where one of several sections may stand, ``location`` has also the chosen one's name,
    which is no key."""
    section, parts = schema, list[str]()
    for number, part in enumerate(location):
        last = number == len(location) - 1
        if isinstance(part, int) or last or part in section.model_fields:
            parts.append(str(part))
        if last or isinstance(part, int):
            continue
        if models := _sections(section, part):
            following = location[number + 1]
            section = next((m for m in models if _name(m) == following), models[0])
    return section, [part for part in parts if part]


def _sections(section: type[BaseModel], key: str) -> list[type[BaseModel]]:
    """The sections that may stand under ``key``."""
    if key not in section.model_fields:
        return []
    annotation = section.model_fields[key].annotation
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]


def _name(section: type[BaseModel]) -> str:
    """By which a section is told from others in its place."""
    return str(section.model_fields["name"].default) if "name" in section.model_fields else ""
