"""Pages of one file that open offline: how their templates are filled, and the look they share."""

from __future__ import annotations

from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined


def environment(package: str) -> Environment:
    """Templates of ``package``: text is escaped, and what is not given is an error."""
    return Environment(
        loader=PackageLoader(package, "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def style(package: str, name: str) -> str:
    """The house's palette, light and dark, and then the style sheet ``name`` of ``package``."""
    sheets = (("her2_common", "palette.css"), (package, name))
    return "".join(
        resources.files(home).joinpath(file).read_text(encoding="utf-8") for home, file in sheets
    )
