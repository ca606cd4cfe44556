"""The command line's habits: error, hint, exit code, and which stream says what."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from her2_common.console import main_for, print_json
from her2_common.errors import ConfigError, DataError, Her2Error


@pytest.fixture(autouse=True)
def kept_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def make_app() -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def fail(kind: str) -> None:
        errors: dict[str, BaseException] = {
            "data": DataError("case [red]x[/red] is bad", hint="mend it"),
            "config": ConfigError("site.yaml: name: missing"),
            "interrupt": KeyboardInterrupt(),
            "full": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a/metrics.jsonl"),
        }
        raise errors[kind]

    @app.command()
    def answer(number: int) -> None:
        print_json({"number": number})

    @app.command()
    def make(folder: Path) -> None:
        (folder / "new").mkdir()
        (folder / "new" / "file").write_text("content")

    @app.command()
    def leave() -> None:
        raise typer.Exit(3)

    return app


def call(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["her2-test", *arguments])
    with pytest.raises(SystemExit) as left:
        main_for(make_app(), "her2-test")()
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.mark.parametrize(
    ("arguments", "code", "shown"),
    [
        (
            ("fail", "data"),
            1,
            "her2-test: error: case [red]x[/red] is bad\nhint: mend it\n",
        ),
        (("fail", "config"), 2, "her2-test: error: site.yaml: name: missing\n"),
    ],
)
def test_errors_have_one_form(
    arguments: tuple[str, ...],
    code: int,
    shown: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(*arguments, monkeypatch=monkeypatch) == code
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", shown)


def test_an_interrupt_exits_130_without_a_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("fail", "interrupt", monkeypatch=monkeypatch) == 130
    output = capsys.readouterr()
    assert output.out == ""
    assert "Traceback" not in output.err


@pytest.mark.parametrize(
    "arguments", [("answer", "many"), ("answer",), ("answer", "1", "2"), ("nothing",)]
)
def test_wrong_use_exits_2_and_names_the_help(
    arguments: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(*arguments, monkeypatch=monkeypatch) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("her2-test: error: ")
    assert "--help" in output.err
    assert "Traceback" not in output.err


def test_results_go_to_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("answer", "4", monkeypatch=monkeypatch) == 0
    output = capsys.readouterr()
    assert json.loads(output.out) == {"number": 4}
    assert output.err == ""


def test_an_exit_code_of_the_command_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("leave", monkeypatch=monkeypatch) == 3


def test_an_unforeseen_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["her2-test", "fail", "unforeseen"])
    with pytest.raises(KeyError):
        main_for(make_app(), "her2-test")()


def test_json_has_no_nan() -> None:
    with pytest.raises(ValueError, match="JSON"):
        print_json({"auc": float("nan")})


def test_every_error_has_a_code_that_may_leave() -> None:
    """Codes are what leaves a site: single words, and different ones."""

    def tree(kind: type[Her2Error]) -> list[type[Her2Error]]:
        return [kind, *(below for child in kind.__subclasses__() for below in tree(child))]

    kinds = [kind for kind in tree(Her2Error) if kind.__module__ == "her2_common.errors"]
    codes = [kind.code for kind in kinds]
    assert len(set(codes)) == len(codes) == 15
    assert all(code.isidentifier() for code in codes)
    assert {kind.exit_code for kind in kinds} == {1, 2}
    assert [kind for kind in kinds if kind.exit_code == 2] == [ConfigError]


def test_what_a_command_writes_is_for_its_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("make", str(tmp_path), monkeypatch=monkeypatch) == 0
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("new", "new/file")]
    assert modes == [0o700, 0o600]


def test_a_log_line_carries_the_date() -> None:
    code = (
        "import logging\n"
        "from her2_common.console import main_for, new_app\n"
        "app = new_app('A test.')\n"
        "@app.command()\n"
        "def warn(): logging.getLogger('her2_client').warning('something')\n"
        "main_for(app, 'her2-test')()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "warn"], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d her2_client: something\n", done.stderr)


def test_a_full_disk_names_the_file_and_the_way_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("fail", "full", monkeypatch=monkeypatch) == 1
    text = capsys.readouterr().err
    assert "error: runs/a/metrics.jsonl: No space left on device\nhint: make room" in text
