"""What README says of the repository is true: files, keys, columns, commands, versions, pins."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic_core import PydanticUndefined
from typer.testing import CliRunner

from her2_client import cli as client
from her2_common import __version__, wire
from her2_common.cases import CASE_COLUMNS, LESION_COLUMNS
from her2_common.config import FederationConfig, SiteConfig
from her2_common.section import Section
from her2_deploy import cli as deploy
from her2_server import cli as server

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HOUSES = ("common", "client", "server", "deploy", "tests")
FRONT = ("Makefile", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", ".ci/run")
APPS = {"her2-client": client.app, "her2-server": server.app, "her2-deploy": deploy.app}
MAX_PICTURE_BYTES = 300_000


def section(title: str) -> str:
    """The text of README under one second-level heading."""
    parts = re.split(r"^## (.+)$", README, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[title]


def files() -> list[str]:
    """Every source file of the packages and the tests, relative to the root."""
    found = (path for house in HOUSES for path in (ROOT / house).rglob("*") if path.is_file())
    return sorted(
        path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts
    )


# --- keys, columns, messages --------------------------------------------------------------------


def keys(schema: type[Section], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys of a configuration and their defaults as README writes them."""
    for name, field in schema.model_fields.items():
        inner = [
            kind
            for kind in (field.annotation, *getattr(field.annotation, "__args__", ()))
            if isinstance(kind, type) and issubclass(kind, Section)
        ]
        if inner:
            chosen = type(field.default) if isinstance(field.default, Section) else inner[0]
            yield from keys(chosen, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", default(field.default)


def default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, tuple):
        return "`[" + ", ".join(map(str, value)) + "]`"
    text = yaml.safe_dump(value).removesuffix("...\n").strip()
    return f"`{text}`"


def rows(text: str) -> list[list[str]]:
    """The cells of every table row of a section, headers and rules left out."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize(
    ("title", "schema"), [("site.yaml", SiteConfig), ("federation.yaml", FederationConfig)]
)
def test_every_key_stands_in_readme_with_its_default(title: str, schema: type[Section]) -> None:
    stated = {row[0].strip("`"): row[1] for row in rows(section(title)) if row[0].startswith("`")}
    assert stated == dict(keys(schema))


def test_every_column_of_the_tables_stands_in_readme() -> None:
    first_cells = " ".join(row[0] for row in rows(section("The case table")))
    named = set(re.findall(r"`([a-z0-9_]+)`", first_cells))
    assert named == set(CASE_COLUMNS) | set(LESION_COLUMNS)


@pytest.mark.parametrize(
    "document", [wire.TaskOrder, wire.SiteDescription, wire.Flow, wire.Counts, wire.SiteReply]
)
def test_every_field_that_crosses_stands_in_readme(document: type[Section]) -> None:
    text = section("What leaves a hospital, and how to check")
    assert [name for name in document.model_fields if f"`{name}`" not in text] == []


def test_readme_lists_the_error_codes_that_may_leave() -> None:
    from her2_common.errors import Her2Error

    def codes(kind: type[Her2Error]) -> set[str]:
        return {kind.code}.union(*(codes(child) for child in kind.__subclasses__()))

    at_the_coordinator = {"error", "run"}  # the base, and what no site raises
    row = next(r for r in rows(README) if r[0] == "an error")
    stated = set(re.findall(r"`([a-z_]+)`", row[2]))
    assert stated == (codes(Her2Error) - at_the_coordinator) | {"internal"}


# --- commands -----------------------------------------------------------------------------------


def commands(program: str) -> dict[str, Any]:
    return dict(typer.main.get_command(APPS[program]).commands)


def command_lines() -> list[tuple[str, str, list[str]]]:
    """(program, subcommand, options) of every her2 command line in README's code."""
    fenced = re.findall(r"```[a-z]*\n(.*?)```", README, flags=re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
    lines = [line for block in fenced for line in block.replace("\\\n", " ").splitlines()]
    found = []
    for line in [*lines, *inline]:
        match = re.match(
            r"(her2-(?:client|server|deploy)) ([a-z][a-z-]*)\b(.*)", line.split(" #")[0]
        )
        if match:
            found.append((match[1], match[2], re.findall(r"--[a-z-]+", match[3])))
    return found


def test_every_command_line_in_readme_exists() -> None:
    lines = command_lines()
    assert len(lines) >= 10
    for program, name, options in lines:
        assert name in commands(program), f"{program} {name}"
        known = {option for p in commands(program)[name].params for option in p.opts} | {"--help"}
        assert set(options) <= known, f"{program} {name}: {sorted(set(options) - known)}"


@pytest.mark.parametrize("program", APPS)
def test_every_command_stands_in_readme(program: str) -> None:
    named = {name for of, name, _ in command_lines() if of == program}
    assert named == set(commands(program))


@pytest.mark.parametrize("program", APPS)
def test_every_command_has_help(program: str) -> None:
    for name in commands(program):
        result = CliRunner().invoke(APPS[program], [name, "--help"], prog_name=program)
        assert result.exit_code == 0, name
        assert f"{program} {name}" in result.output


def test_every_make_target_in_readme_exists() -> None:
    targets = set(
        re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    )
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", README, flags=re.MULTILINE))
    assert {"demo", "test"} <= named
    assert named <= targets


def anchors(text: str) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("name", ["README.md", "docs/ingest.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    for link in links:
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_reason_of_ingest_is_explained() -> None:
    page = (ROOT / "docs/ingest.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"(?<!`)`([^`\n]+)`(?!`)", page))
    given: set[str] = set()
    for path in (ROOT / "client/her2_client/ingest").rglob("*.py"):
        if path.parent.name != "duke":  # its reasons concern the collection's folders
            given |= set(re.findall(r"""(?:reason|set_aside\()=?"([^"{]+)\"""", path.read_text()))
    assert len(given) > 50
    assert given <= explained, given - explained


def test_every_test_that_corrections_names_exists() -> None:
    tables = rows((ROOT / "docs/corrections.md").read_text(encoding="utf-8"))
    named = {name for row in tables for name in re.findall(r"`(test_\w+)`", row[-1])}
    defined = {
        name
        for path in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r"^\s*def (test_\w+)", path.read_text(encoding="utf-8"), re.M)
    }
    assert named
    assert named <= defined, named - defined


# --- versions, pins, licence --------------------------------------------------------------------


def test_versions_agree() -> None:
    released = re.search(r"^## \[([0-9.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released is not None
    assert released[1] == __version__
    assert installed_version("her2-map") == __version__


def pins() -> dict[str, str]:
    text = (ROOT / "constraints.txt").read_text()
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    parts = [re.fullmatch(r"([A-Za-z0-9_.-]+)==([A-Za-z0-9.]+)", line) for line in lines if line]
    assert all(parts), "expected nothing but name==version"
    return {normal(part[1]): part[2] for part in parts if part}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned_to_what_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {normal(re.split(r"[\[<>=!~;\s]", one)[0]) for group in wanted for one in group}
    names -= {"her2-map"}
    assert sorted(names - set(pins())) == []
    off = {
        name: (pins()[name], got)
        for name in sorted(names)
        if (got := installed_version(name).split("+")[0]) != pins()[name]
    }
    assert off == {}, "expected (pinned, installed) to agree; make installs the pinned releases"


def test_licence_is_apache_2() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text


# --- what must not be committed -----------------------------------------------------------------

HERE_ALONE = re.compile(
    r"(?<![\w.])/(?:work|root|home)/[\w.]"  # a folder of one machine
    r"|/tmp/\w+/"
    r"|[-_]index-url\b|find-links\b"  # where this machine gets its packages
    r"|https?://[^\s\"')]*/simple\b",
    flags=re.IGNORECASE,
)


@pytest.mark.parametrize("bad", ["/{}/main/x", " = '/{}/.cache'", "file:///{}/x"])
def test_a_path_of_one_machine_is_seen(bad: str) -> None:
    assert HERE_ALONE.search(bad.format("root"))


def test_no_file_names_this_machine() -> None:
    names = [*files(), *FRONT, "constraints.txt", "pyproject.toml"]
    found = []
    for name in names:
        if name == Path(__file__).relative_to(ROOT).as_posix():
            continue
        text = (ROOT / name).read_text(encoding="utf-8")
        found += [f"{name}: {match[0]}" for match in HERE_ALONE.finditer(text)]
    assert found == []


@pytest.mark.parametrize("name", ["report.png", "cohort.png", "quality.png"])
def test_pictures_are_small(name: str) -> None:
    content = (ROOT / "docs" / name).read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) < MAX_PICTURE_BYTES
