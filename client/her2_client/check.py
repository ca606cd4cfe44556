"""``her2-client check``: what is wrong at this site, and what to do about it, in seconds.

Every check is made whatever the others find, so that one run names all that needs mending. The
last ones look from the site towards the coordinator; nothing but a TLS handshake leaves.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from cryptography import x509
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from her2_client.cache import INDEX_NAME, open_cache, verify_cache
from her2_client.ingest.case import files_of
from her2_client.ingest.command import check_data
from her2_client.ingest.run import check_key, existing
from her2_client.ingest.units import bytes_needed
from her2_client.keys import check_private, check_unwritable, public_key, read_pseudonym_key
from her2_common.cases import CaseTable, read_cases
from her2_common.config import SiteConfig, load
from her2_common.console import console, print_json
from her2_common.errors import ConnectionFailedError, DataError, Her2Error
from her2_common.network import bypass_proxy_for_loopback, check_tls

SIGNATURE_LIFE_S: Final = 300
"""How long a signed message of a site is accepted, by Flower's SuperLink; hence clocks matter."""
EXPIRY_WARNING_DAYS: Final = 30


@dataclass(frozen=True)
class CheckResult:
    """One check: what was looked at, whether it is in order, what was found, what to do."""

    name: str
    ok: bool
    message: str
    hint: str | None = None


def check(config: SiteConfig, *, data: bool = False) -> list[CheckResult]:
    """Look at everything that a site needs, in the order in which it is set up. Raises nothing.

    With ``data`` the arrays of the cache are read through, too.
    """
    results = [
        _result("pseudonym key", lambda: _pseudonym_key(config.data.pseudonym_key_file)),
        _result("node key", lambda: _node_key(config.superlink.private_key)),
    ]
    table: CaseTable | None = None

    def tables() -> str:
        nonlocal table
        table = read_cases(config.data.cases, config.data.lesions)
        return f"{len(table)} cases, {len(table.boxes)} lesion boxes"

    results.append(_result("tables", tables))
    if table is not None:
        known = table
        results.append(_result("HER2 levels", lambda: _levels(known, config.policy.min_cases)))
        results.append(_result("images", lambda: _images(known)))
        results.append(_result("disk", lambda: _space(known, config)))
    results.append(_result("cache", lambda: _cache(config, whole=data)))
    results.append(_result("device", lambda: _device(config)))
    results.append(_result("root certificates", lambda: _roots(config.superlink.root_certificates)))
    results.append(_result("SuperLink", lambda: _superlink(config)))
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    note = f"this machine says {now}; more than {SIGNATURE_LIFE_S} s off would be refused"
    results.append(CheckResult("clock", True, note))
    return results


def _result(name: str, look: Callable[[], str]) -> CheckResult:
    try:
        return CheckResult(name, True, look())
    except Her2Error as error:
        return CheckResult(name, False, str(error), error.hint)
    except OSError as error:
        return CheckResult(name, False, error.strerror or type(error).__name__)


# --- files --------------------------------------------------------------------------------------


def check_rights(site: Path, config: SiteConfig) -> CheckResult:
    """Can others change the file of ``config``, the cache or the state, and so what is sent?"""
    return _result("rights", lambda: _rights(site, config))


def _rights(site: Path, config: SiteConfig) -> str:
    paths = [path for path in (site, config.state, config.data.cache) if path.exists()]
    for path in paths:
        check_unwritable(path)
    return f"{', '.join(path.name for path in paths)}: written by their owner alone"


def _pseudonym_key(path: Path) -> str:
    key = read_pseudonym_key(path)
    check_private(path)
    return f"{len(key)} bytes, for its owner alone"


def _node_key(path: Path) -> str:
    public = public_key(path)
    check_private(path)
    return public


def _levels(table: CaseTable, min_cases: int) -> str:
    """Not a fault where they are unknown: a run of three levels trains on the rest."""
    negative = [case.level("reference") for case in table.cases if case.label("reference") == 0]
    known = len(negative) - negative.count(None)
    message = f"raw IHC and ISH tell low from zero in {known} of {len(negative)} negative cases"
    if known < min_cases:
        message += "; too few to train it in a run with her2_levels: 3"
    return message


def _images(table: CaseTable) -> str:
    named = [
        (case.row, column, path)
        for case in table.cases
        for modality in case.modalities
        for column, paths in files_of(case, modality).items()
        for path in paths
    ]
    # os.path.exists, unlike Path.exists, takes a name that is too long or unreadable for absent
    missing = [(row, column) for row, column, path in named if not os.path.exists(path)]  # noqa: PTH110
    message = f"{len(named) - len(missing)} of {len(named)} files and folders named are there"
    if missing:
        row, column = missing[0]
        raise DataError(
            f"{message}; the first that is not: row {row}, {column}",
            hint="paths in the case table start at the table's own folder",
        )
    return message


def _space(table: CaseTable, config: SiteConfig) -> str:
    modalities = (modality for case in table.cases for modality in case.modalities)
    needed = bytes_needed(modalities, config)
    free = shutil.disk_usage(existing(config.data.cache)).free
    message = f"{needed / 1e9:.2f} GB for a new cache, {free / 1e9:.2f} GB free"
    if free <= needed:
        raise DataError(message, hint="free some space, or move data.cache elsewhere")
    return message


def _device(config: SiteConfig) -> str:
    if config.device == "cuda":
        from her2_client.engine import select_device

        select_device(config.device)
    return config.device


def _cache(config: SiteConfig, *, whole: bool) -> str:
    folder = config.data.cache
    if not (folder / INDEX_NAME).exists():
        return "none yet; run: her2-client ingest"
    cache = open_cache(folder)
    check_key(config, read_pseudonym_key(config.data.pseudonym_key_file))
    data = config.data
    got = (cache.site, cache.image_size, cache.volume_size, cache.mri_phases)
    expected = (config.name, data.image_size, data.volume_size, data.mri_phases)
    if got != expected:
        text = "{} with sizes {} and {} and MRI phases {}"
        raise DataError(
            f"expected a cache of {text.format(*expected)}, got one of {text.format(*got)}",
            hint="run: her2-client ingest",
        )
    if whole:
        verify_cache(folder)
    return f"{len(cache)} cases"


def _roots(path: Path) -> str:
    try:
        certificates = x509.load_pem_x509_certificates(path.read_bytes())
    except FileNotFoundError:
        raise ConnectionFailedError(
            f"{path}: no such file", hint="the coordinator sends it: ca.crt"
        ) from None
    except ValueError:
        raise ConnectionFailedError(f"{path}: expected certificates in PEM form") from None
    now = datetime.now(UTC)
    ends = [certificate.not_valid_after_utc for certificate in certificates]
    valid = [end for end in ends if end > now]
    if not valid:
        raise ConnectionFailedError(
            f"expired on {max(ends):%Y-%m-%d}", hint="ask the coordinator for the new ca.crt"
        )
    days = (max(valid) - now).days
    left = f" (only {days} days left)" if days < EXPIRY_WARNING_DAYS else ""
    count = "1 certificate" if len(valid) == 1 else f"{len(valid)} certificates"
    expired = len(ends) - len(valid)
    beside = f", beside {expired} expired" if expired else ""
    return f"{count}, valid until {max(valid):%Y-%m-%d}{left}{beside}"


# --- the coordinator ----------------------------------------------------------------------------


def _superlink(config: SiteConfig) -> str:
    address = config.superlink.address
    bypass_proxy_for_loopback()  # as `start` does
    handshake = check_tls(address, config.superlink.root_certificates)
    return f"{address} answers{handshake.via}, {handshake.tls}, certificate signed by our root"


# --- command ------------------------------------------------------------------------------------


def results_table(results: list[CheckResult]) -> Table:
    """The results for a person, within 80 columns."""
    table = Table(show_header=False, box=None, padding=(0, 1))
    table.add_column("ok", no_wrap=True)
    table.add_column("name", no_wrap=True)
    table.add_column("message", overflow="fold")
    for result in results:
        mark = "[green]ok[/]" if result.ok else "[red]FAIL[/]"
        table.add_row(mark, result.name, _plain(result.message))
        if result.hint is not None:
            table.add_row("", "", _plain(f"hint: {result.hint}"))
    return table


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def check_command(
    site: Annotated[Path, typer.Option(help="The site's configuration.")] = Path("site.yaml"),
    data: Annotated[
        bool, typer.Option("--data", help="Read every image, too, as ingest would.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Say what is in order at this site and what is not; exit 1 if anything is not."""
    config = load(SiteConfig, site)
    columns = (SpinnerColumn(), TextColumn("checking"))
    with Progress(*columns, console=console, transient=True) as bar:
        bar.add_task("checking", total=None)
        results = [check_rights(site, config), *check(config, data=data)]
    console.print(results_table(results))
    ok = all(result.ok for result in results)
    document: dict[str, Any] = {"checks": [asdict(result) for result in results]}
    if data and all(r.ok for r in results if r.name in ("pseudonym key", "tables")):
        summary, readiness = check_data(config)
        document |= {"data": summary.as_dict() | {"readiness": readiness.as_dict()}}
        ok = ok and readiness.verdict != "not ready"
    if as_json:
        print_json({"ok": ok} | document)
    if not ok:
        raise typer.Exit(1)
