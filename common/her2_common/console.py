"""The command line's habits, one for all roles: where text goes, and how an error is shown.

Results go to stdout, everything else (progress, tables for reading, errors) to stderr. A user's
mistake never shows a stack trace: ``her2-client: error: ...`` and, where there is one, a
``hint: ...``. Exit codes: 0 done, 1 failed, 2 wrong use or configuration, 130 interrupted.

What a command writes is for its user alone: files 0600, folders 0700, whatever the shell's umask.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, Final, NoReturn

import click
import typer
from rich.console import Console

from her2_common.errors import Her2Error
from her2_common.files import storage_error

console: Final = Console(stderr=True, highlight=False)
"""For people: progress, tables, errors."""


DATE_FORMAT: Final = "%Y-%m-%d %H:%M:%S"
"""Of log lines, which are read weeks later; local time."""

_INTERRUPTED: Final = 130


def print_json(value: Any) -> None:
    """One JSON document to stdout, NaN refused."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def new_app(purpose: str) -> typer.Typer:
    """A command line in the house's manner; ``purpose`` is the first line of its help."""
    app = typer.Typer(
        help=purpose,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def _settings() -> None:
        logging.basicConfig(
            level=logging.WARNING,
            format="%(asctime)s %(name)s: %(message)s",
            datefmt=DATE_FORMAT,
        )

    return app


def main_for(app: typer.Typer, program: str) -> Callable[[], None]:
    """The entry point of ``program``: runs ``app`` and turns errors into the house's form."""

    def main() -> None:
        # Third-party deprecation notes are for developers; tests turn every warning into an error.
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        os.umask(0o077)
        command = typer.main.get_command(app)
        try:
            result = command.main(prog_name=program, standalone_mode=False)
        except Her2Error as error:
            _fail(program, str(error), error.hint, error.exit_code)
        except click.exceptions.NoArgsIsHelpError:  # the help is on the screen already
            sys.exit(2)
        except click.UsageError as error:
            context = f"{error.ctx.command_path} --help" if error.ctx else f"{program} --help"
            message = error.format_message().replace(" (env var: 'None')", "")  # of typer's making
            _fail(program, message, f"see {context}", 2)
        except click.ClickException as error:
            _fail(program, error.format_message(), None, 1)
        except (click.exceptions.Abort, KeyboardInterrupt):
            _fail(program, "interrupted", None, _INTERRUPTED)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:
            if (known := storage_error(error)) is not None:
                _fail(program, str(known), known.hint, known.exit_code)
            where = f"{error.filename}: " if error.filename else ""
            _fail(program, f"{where}{error.strerror or type(error).__name__}", None, 1)
        if result == _INTERRUPTED:  # typer turns Ctrl-C into this code
            _fail(program, "interrupted", None, _INTERRUPTED)
        sys.exit(result if isinstance(result, int) else 0)

    return main


def _fail(program: str, message: str, hint: str | None, code: int) -> NoReturn:
    console.print(f"{program}: error: {message}", style="red", markup=False, soft_wrap=True)
    if hint:
        console.print(f"hint: {hint}", markup=False, soft_wrap=True)
    sys.exit(code)
