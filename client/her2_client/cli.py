"""`her2-client`: a hospital's site, from its folder to its part in a federation."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from her2_common.console import DATE_FORMAT, console, main_for, new_app
from her2_common.late import late

if TYPE_CHECKING:
    from her2_common.config import SiteConfig

app = new_app("A her2-map site: its data stays here.")

SiteOption = Annotated[Path, typer.Option("--site", help="The site's configuration.")]


@app.command()
def init(
    name: Annotated[str, typer.Option(help="The site's name: a-z, 0-9 and hyphens.")],
    superlink: Annotated[str, typer.Option(help="The coordinator's address, host:port.")],
    folder: Annotated[Path, typer.Option(help="Where site.yaml and the keys go.")] = Path(),
    cases: Annotated[str, typer.Option(help="The case table.")] = "cases.csv",
    lesions: Annotated[str | None, typer.Option(help="The lesion table.")] = None,
    root_certificates: Annotated[
        str, typer.Option(help="The coordinator's root certificate.")
    ] = "keys/ca.crt",
    image_size: Annotated[int, typer.Option(help="Pixels a side kept of MG and US.")] = 256,
    volume_size: Annotated[int, typer.Option(help="Voxels a side kept of MRI.")] = 96,
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: all.")] = None,
) -> None:
    """Write site.yaml and make the site's two keys."""
    from pydantic import TypeAdapter, ValidationError

    from her2_client.keys import init_site
    from her2_common.config import ADDRESS_FORM, Address, Name
    from her2_common.errors import ConfigError

    for option, kind, value in (("--name", Name, name), ("--superlink", Address, superlink)):
        try:
            TypeAdapter(kind).validate_python(value)
        except ValidationError:
            form = "a-z, 0-9 and hyphens" if option == "--name" else ADDRESS_FORM
            raise ConfigError(f"{option}: expected {form}, got {value!r}") from None
    public = init_site(
        folder,
        name=name,
        address=superlink,
        cases=cases,
        lesions=lesions,
        root_certificates=root_certificates,
        image_size=image_size,
        volume_size=volume_size,
        threads=threads,
    )
    console.print(f"wrote {folder / 'site.yaml'} and {folder / 'keys'}", soft_wrap=True)
    console.print("send this line to the coordinator (it is not secret):", soft_wrap=True)
    typer.echo(public)


@late(app, "check")
def _check() -> Callable[..., None]:
    """Say what is in order at this site and what is not; exit 1 if anything is not."""
    from her2_client.check import check_command

    return check_command


@late(app, "ingest")
def _ingest() -> Callable[..., None]:
    """Standardise the site's images into its cache."""
    from her2_client.ingest.command import ingest

    return ingest


@app.command()
def start(site: SiteOption = Path("site.yaml")) -> None:
    """Join the federation and train when asked, until stopped with Ctrl-C."""
    config = _read(site)
    from her2_client.executor import run_site  # brings torch and Flower

    logging.getLogger("her2_client").setLevel(logging.INFO)  # each order, and what leaves

    def notify(text: str) -> None:
        console.print(f"[dim]{time.strftime(DATE_FORMAT)}[/]  {escape(text)}", soft_wrap=True)

    run_site(config, notify=notify)


@app.command()
def predict(
    model: Annotated[Path, typer.Option(help="The release folder of a run.")],
    out: Annotated[Path, typer.Option(help="The table to write.")] = Path("predictions.csv"),
    split: Annotated[
        str, typer.Option(help="test, val, train or all; only test cases are held out.")
    ] = "test",
    site: SiteOption = Path("site.yaml"),
    force: Annotated[
        bool, typer.Option("--force", help="Replace what an earlier one wrote.")
    ] = False,
    explain: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also draw what each score depends on.")
    ] = None,
    cases: Annotated[
        str | None, typer.Option(metavar="ID,ID", help="Explain these case_ids alone.")
    ] = None,
    explain_limit: Annotated[
        int, typer.Option(min=1, help="Explain so many cases at most, the first ones.")
    ] = 50,
) -> None:
    """Score the site's cases with a released model; nothing leaves the site."""
    config = _read(site)
    from her2_client.explain.command import explainer
    from her2_client.predict import predict_table

    def notify(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    then = explainer(
        explain, out=out, site=config.name, cases=cases, limit=explain_limit, force=force
    )
    written = predict_table(config, model, out, split=split, force=force, notify=notify, then=then)
    console.print(f"wrote {out}: {written} cases", markup=False, soft_wrap=True)


def _read(site: Path) -> SiteConfig:
    from her2_common.config import SiteConfig, load

    return load(SiteConfig, site)


main = main_for(app, "her2-client")
