"""The coordinator at its SuperLink: register the sites, start a run, become its ServerApp.

The SuperLink runs with ``--isolation process`` and a secret, so that its Runtime API answers only
who knows the secret; the coordinator acquires the ServerApp's task itself and conducts the run in
the process that the user started and watches.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.hazmat.primitives.serialization.ssh import load_ssh_public_key
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.superlink.grid import HttpGrid

from her2_common.bundle import build_bundle, bundle_hash
from her2_common.config import FederationConfig
from her2_common.errors import ConfigError, ConnectionFailedError, RunError
from her2_common.network import (
    bypass_proxy_for_loopback,
    check_tls,
    failure,
    key_fingerprint,
)
from her2_common.runtime import (
    RETRY_SECONDS,
    Endpoint,
    TaskSource,
    end_server_task,
    open_task,
    own_answer,
    read_secret,
    retry_invoker,
    take_server_task,
)
from her2_server.exchange import openssh_key

ACQUIRE_SECONDS = 30.0


@dataclass
class Conduct:
    """The open run: ``grid`` speaks to the sites, ``run_id`` is Flower's number for it."""

    grid: HttpGrid
    run_id: int


def register_sites(client: ControlHttpClient, config: FederationConfig) -> None:
    """Make every site's key known to the SuperLink; keys that it knows already are left alone."""
    known = {
        openssh_key(node.public_key) for node in client.ListNodes(ListNodesRequest()).nodes_info
    }
    for site in config.sites:
        if " ".join(site.public_key.split()[:2]) in known:
            continue
        key = load_ssh_public_key(site.public_key.encode())
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        client.RegisterNode(RegisterNodeRequest(public_key=pem, name=site.name))


@contextmanager
def conduct(
    config: FederationConfig,
    notify: Callable[[str], None] = lambda _: None,
    *,
    previous: int | None = None,
    again: str = "her2-server resume",
    frozen: Path | None = None,
) -> Iterator[Conduct]:
    """Start a run at the SuperLink and hold its ServerApp task while the block runs.

    A resumed run gives the number of the one that was killed as ``previous``: while the SuperLink
    believes that it goes on (a minute, and three for a message that was half sent), its sites wait
    for the rest of that message and for nothing else; stopped, it frees them at once. ``again`` is
    the command that goes on after an interruption, for the hints; ``frozen`` the configuration in
    the run's folder, if it is there already.

    The SuperLink hands out the task of whichever run has waited longest. That of another run is not
    touched: without heartbeats the SuperLink ends it within a minute.

    Raises:
        ConfigError: a file that the configuration names is not there; says what to edit.
        ConnectionFailedError: the SuperLink does not answer, its certificate is foreign, or it
            does not accept the secret.
        RunError: the SuperLink does not start the run, or hands out another one.
    """
    superlink = config.superlink
    _require_files(config, frozen)
    bypass_proxy_for_loopback()
    check_tls(superlink.address, superlink.root_certificates)
    certificates = superlink.root_certificates.read_bytes()
    try:
        secret = read_secret(superlink.superexec_secret_file)
    except OSError:
        raise ConnectionFailedError(
            f"{superlink.superexec_secret_file}: the SuperLink's secret cannot be read",
            hint="it is the file given to flower-superlink as --superexec-auth-secret-file",
        ) from None
    logging.getLogger("flwr").setLevel(logging.WARNING)
    control = ControlHttpClient.from_server_address(
        server_address=superlink.address,
        insecure=False,
        root_certificates=certificates,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        retry_invoker=retry_invoker(10.0),
    )
    run_id = 0
    try:
        register_sites(control, config)
        notify(f"registered {len(config.sites)} sites at {superlink.address}, by their keys:")
        for site in config.sites:
            notify(f"  {site.name} {key_fingerprint(site.public_key)}")
        if previous is not None:
            _stop(control, previous)
        bundle = build_bundle()
        started = control.StartRun(
            StartRunRequest(fab=fab_to_proto(Fab(bundle_hash(), bundle, {})))
        )
        if not started.HasField("run_id"):
            raise RunError("the SuperLink did not start the run")
        run_id = started.run_id
        endpoint = Endpoint(superlink.address, certificates)
        token = _acquire(endpoint, secret)
        completed, details = False, "the coordinator stopped"
        with open_task(endpoint, token, "flwr-serverapp") as client:
            task = take_server_task(client)
            if task.run.run_id != run_id:
                raise RunError(
                    f"{superlink.address}: expected the task of run {run_id}, which was started "
                    f"here, got that of run {task.run.run_id}",
                    hint="another coordinator uses this SuperLink, or one was killed as it began: "
                    f"end the former, or wait a minute; then: {again}",
                )
            grid = HttpGrid(superlink.address, root_certificates=certificates, token=token)
            grid._retry_invoker = retry_invoker()
            grid.set_run(task.run)
            try:
                yield Conduct(grid, task.run.run_id)
                completed, details = True, ""
            except httpx.HTTPError as error:
                run_id = 0  # nobody to report to
                raise _broken_off(superlink.address, error, again) from None
            finally:
                if run_id:
                    # After an error, it must not be hidden by a SuperLink that has gone, too.
                    with nullcontext() if completed else suppress(httpx.HTTPError):
                        end_server_task(client, completed=completed, details=details)
                    run_id = 0
                grid.close()
    except httpx.HTTPError as error:
        own = isinstance(error, httpx.HTTPStatusError) and own_answer(error)
        raise ConnectionFailedError(
            f"{superlink.address}: the SuperLink "
            + (f"refuses the request ({failure(error)})" if own else _unanswered(error)),
            hint="is it a flower-superlink 1.41 with --isolation process and the same secret?"
            if own
            else LOG_HINT,
        ) from None
    finally:
        if run_id:
            with suppress(httpx.HTTPError):  # it must not hide why the run ended
                _stop(control, run_id)
        control.close()


LOG_HINT: Final = "see the SuperLink's log, the output of flower-superlink, for the reason"


def _unanswered(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"answers with an error ({failure(error)})"
    return f"does not answer ({failure(error)})"


def _broken_off(address: str, error: httpx.HTTPError, again: str) -> RunError:
    """Why a run at work cannot go on: it was given up, or RETRY_SECONDS passed in vain."""
    if isinstance(error, httpx.HTTPStatusError) and own_answer(error):
        # it does not know the run, or no longer believes that we conduct it
        return RunError(
            f"{address}: the SuperLink has given this run up ({failure(error)})",
            hint=f"was the SuperLink restarted, or unreachable for long? go on: {again}",
        )
    remedy = LOG_HINT if isinstance(error, httpx.HTTPStatusError) else "start it again"
    return RunError(
        f"{address}: for {RETRY_SECONDS:.0f} s the SuperLink {_unanswered(error)}",
        hint=f"{remedy}; then go on: {again}",
    )


def _require_files(config: FederationConfig, frozen: Path | None) -> None:
    moved = frozen is not None and frozen.exists()
    for key, path, what in (
        ("root_certificates", config.superlink.root_certificates, "her2-deploy provision makes it"),
        (
            "superexec_secret_file",
            config.superlink.superexec_secret_file,
            "it is the file given to flower-superlink as --superexec-auth-secret-file",
        ),
    ):
        if not path.exists():
            where = f"{frozen}: superlink.{key}" if moved else f"superlink.{key}"
            raise ConfigError(
                f"{where}: {path}: no such file",
                hint=f"was it or the run's folder moved? edit superlink.{key} in {frozen}, which "
                "is no part of what is trained"
                if moved
                else what,
            )


def _stop(control: ControlHttpClient, run_id: int) -> None:
    """Stop a run; one that the SuperLink has ended or does not know needs no stopping, nor does any
    if nobody is there."""
    try:
        control.StopRun(StopRunRequest(run_id=run_id))
    except httpx.TransportError:
        return
    except httpx.HTTPStatusError as error:
        if error.response.status_code >= 500:
            raise


def _acquire(endpoint: Endpoint, secret: bytes) -> str:
    source = TaskSource(endpoint, secret, "flwr-serverapp")
    try:
        deadline = time.monotonic() + ACQUIRE_SECONDS
        while time.monotonic() < deadline:
            try:
                token = source.acquire()
            except httpx.HTTPError as error:
                own = isinstance(error, httpx.HTTPStatusError) and own_answer(error)
                if own and failure(error) in {"HTTP 401", "HTTP 403"}:
                    raise ConnectionFailedError(
                        f"{endpoint.address}: the SuperLink does not accept the secret",
                        hint="use the file given to it as --superexec-auth-secret-file",
                    ) from None
                if own or time.monotonic() >= deadline:
                    raise
                continue  # a transient error; `acquire` has waited
            if token is not None:
                return token
            time.sleep(0.2)
    finally:
        source.close()
    raise RunError(
        f"{endpoint.address}: the SuperLink gave no task within {ACQUIRE_SECONDS:.0f} s",
        hint="does it run with --isolation process, and is no other process taking its tasks?",
    )
