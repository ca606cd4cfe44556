"""Untrusted YAML and JSON -> plain values, in bounded time and memory.

A configuration, a manifest or a reply may come from somebody else. Whatever it holds, the readers
here return plain values or raise ``DocumentError``, at once:

- more than ``MAX_BYTES``, or lists and mappings deeper than ``MAX_DEPTH``, are refused unread;
- YAML has no anchors and aliases (ten lines of them expand to gigabytes), no tags, no dates (a date
  is text: ``2026-13-45`` is not), and each key of a mapping once;
- a whole number has at most ``MAX_DIGITS`` digits: longer ones fail where they are used.
"""

from __future__ import annotations

import json
from typing import Any, Final

import yaml

MAX_BYTES: Final = 1 << 20
"""Of a YAML document. The largest federation.yaml, of 64 sites, has 20 kB."""
MAX_DEPTH: Final = 32
"""Lists and mappings within each other. The configurations have four levels, a result has nine."""

MAX_DIGITS: Final = 20
"""Of a whole number: 2^64 has 20."""


class DocumentError(ValueError):
    """What is wrong with a document; ``line`` counts from 1, None where it is unknown."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


_TOO_LONG: Final = f"expected a number of at most {MAX_DIGITS} digits"


class _Loader(yaml.SafeLoader):
    """The subset of YAML that a configuration needs."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _fault("anchors (&) and aliases (*) are not supported", event.start_mark)
        if getattr(event, "tag", None) is not None:
            raise _fault("tags (!) are not supported", event.start_mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _fault(f"expected at most {MAX_DEPTH} nested levels", event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > MAX_DIGITS:
            raise _fault(_TOO_LONG, node.start_mark)
        value: int = super().construct_yaml_int(node)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _fault("expected a scalar as a key, got a list or a mapping", key.start_mark)
            if key.value in seen:  # of two, a reader sees one and YAML takes the other
                raise _fault(f"duplicate key {key.value[:40]!r}", key.start_mark)
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in pairs
        if not tag.endswith((":timestamp", ":merge", ":value"))
    ]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _fault(problem: str, mark: yaml.Mark) -> DocumentError:
    return DocumentError(problem, mark.line + 1)


def parse_yaml(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        DocumentError: see the module.
    """
    if len(text) > MAX_BYTES:
        raise DocumentError(f"expected at most {MAX_BYTES >> 20} MiB, got {len(text) >> 20} MiB")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except DocumentError:
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise DocumentError(f"not YAML: {problem}", line) from None
    except (ValueError, OverflowError, RecursionError) as error:
        raise DocumentError(f"not YAML: {_reason(error)}") from None


def parse_json(content: str | bytes) -> Any:
    """The value of a JSON document of any size; depth is limited by Python's own stack.

    Raises:
        DocumentError: not JSON, nested too deeply, or a number that is too long.
    """
    try:
        return json.loads(content, parse_int=_integer)
    except DocumentError:
        raise
    except json.JSONDecodeError as error:
        raise DocumentError(f"not JSON: {error.msg}", error.lineno) from None
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"not JSON: {_reason(error)}") from None


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise DocumentError(_TOO_LONG)
    return int(digits)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "expected UTF-8"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
