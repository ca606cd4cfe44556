"""Commands that are imported when they are called: `--help` need not wait for their libraries."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import click
import typer
from typer.core import TyperCommand

Find = Callable[[], Callable[..., None]]
"""Imports a command's function and returns it; its docstring is the line of the command's help."""


def late(app: typer.Typer, name: str) -> Callable[[Find], Find]:
    """Give ``app`` the command ``name``, whose function and options are found when they are wanted.

    >>> app = typer.Typer()
    >>> @late(app, "sum")
    ... def _sum():
    ...     '''Add numbers.'''
    ...     from statistics import fsum
    ...     return fsum
    """

    def add(find: Find) -> Find:
        app.command(name, cls=_late(name, find), help=find.__doc__)(lambda: None)
        return find

    return add


def _late(name: str, find: Find) -> type[TyperCommand]:
    class Late(TyperCommand):
        """In a list of commands it has its name and its line; all else is the command's own."""

        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            del self.params  # the placeholder's: none

        @cached_property
        def own(self) -> click.Command:
            """The command itself."""
            alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            alone.command(name)(find())
            return typer.main.get_command(alone)

        @cached_property
        def params(self) -> list[click.Parameter]:  # type: ignore[override]
            return self.own.params

        def make_context(
            self,
            info_name: str | None,
            args: list[str],
            parent: click.Context | None = None,
            **extra: Any,
        ) -> click.Context:
            return self.own.make_context(info_name, args, parent, **extra)

    return Late
