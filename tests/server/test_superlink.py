"""The coordinator at its SuperLink: what is said before it is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.server.exchange_ground import config

from her2_common.config import FederationConfig
from her2_common.errors import ConfigError
from her2_server.superlink import conduct


def at(folder: Path) -> FederationConfig:
    plan = config()
    superlink = plan.superlink.model_copy(
        update={
            "root_certificates": folder / "ca.crt",
            "superexec_secret_file": folder / "superexec.secret",
        }
    )
    return plan.model_copy(update={"superlink": superlink})


@pytest.mark.parametrize("missing", ["root_certificates", "superexec_secret_file"])
def test_a_run_folder_that_was_moved_says_what_to_edit(missing: str, tmp_path: Path) -> None:
    frozen = tmp_path / "run" / "federation.yaml"
    frozen.parent.mkdir()
    frozen.touch()
    moved = at(tmp_path)
    for name in ("ca.crt", "superexec.secret"):
        (tmp_path / name).touch()
    getattr(moved.superlink, missing).unlink()
    with pytest.raises(ConfigError) as caught, conduct(moved, frozen=frozen):
        pass
    assert f"superlink.{missing}" in str(caught.value)
    assert str(getattr(moved.superlink, missing)) in str(caught.value)
    assert str(frozen) in str(caught.value.hint)


def test_a_new_run_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file") as caught, conduct(at(tmp_path)):
        pass
    assert "provision" in str(caught.value.hint)
