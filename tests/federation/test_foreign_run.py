"""The SuperLink hands out another run's task: it is left alone, and the user is told which."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from tests.federation.ground import join, open_ground

from her2_common.bundle import build_bundle, bundle_hash
from her2_common.config import FederationConfig, load
from her2_common.errors import RunError
from her2_common.runtime import retry_invoker
from her2_server.superlink import conduct

MakeFederation = Callable[..., Any]


def test_a_run_that_was_not_started_here_is_not_conducted(
    make_federation: MakeFederation, tmp_path: Path
) -> None:
    federation = make_federation(centres={"centre-a": (30, ("us",))})
    with open_ground(tmp_path) as ground:
        config = load(FederationConfig, join(federation, ground))
        control = ControlHttpClient.from_server_address(
            server_address=ground.address,
            insecure=False,
            root_certificates=ground.paths["root"].read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
            retry_invoker=retry_invoker(10.0),
        )
        fab = fab_to_proto(Fab(bundle_hash(), build_bundle(), {}))
        other = control.StartRun(StartRunRequest(fab=fab)).run_id
        control.close()
        with (
            pytest.raises(RunError, match=rf"got that of run {other}\b"),
            conduct(config, again="her2-server run f.yaml"),
        ):
            raise AssertionError("conducted a foreign run")
        with conduct(config) as own:  # the foreign task is no longer waiting
            assert own.run_id != other
