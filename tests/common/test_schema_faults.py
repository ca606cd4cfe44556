"""The faults of a federation.yaml, as the person who wrote it reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from her2_client.keys import new_node_key
from her2_common.config import FederationConfig, parse
from her2_common.errors import ConfigError

KEY = new_node_key()[1]


def fault(**changes: Any) -> str:
    document = {
        "name": "t",
        "superlink": {
            "address": "localhost:1",
            "root_certificates": "ca.crt",
            "superexec_secret_file": "secret",
        },
        "sites": [{"name": "a", "public_key": KEY}],
    } | changes
    with pytest.raises(ConfigError) as error:
        parse(FederationConfig, document, where="federation.yaml", folder=Path("/"))
    return str(error.value).removeprefix("federation.yaml: ")


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (
            {"strategy": {"step": "fedavg"}},
            "run.strategy.step: expected keys and values with a name "
            "(fedavg, fedavgm, fedadam, fedyogi), got 'fedavg'",
        ),
        ({"strategy": "fedprox"}, "run.strategy: expected keys and values, got 'fedprox'"),
        (
            {"strategy": {"step": {"name": "fedadm"}}},
            "run.strategy.step.name: unknown name 'fedadm'; did you mean 'fedadam'?",
        ),
        (
            {"strategy": {"local": {"name": "xyz"}}},
            "run.strategy.local.name: unknown name 'xyz'; known: fedprox, plain, scaffold",
        ),
        (
            {"strategy": {"step": {"server_learning_rate": 1.0}}},
            "run.strategy.step.name: missing; one of fedavg, fedavgm, fedadam, fedyogi",
        ),
        (
            {"strategy": {"step": {"name": "fedadam", "beta": 0.9}}},
            "run.strategy.step.beta: unknown key; did you mean 'beta2'?",
        ),
        (
            {"strategy": {"local": {"name": "fedprox", "nu": 0.9}}},
            "run.strategy.local.nu: unknown key; known: mu, name",
        ),
        (
            {"strategy": {"local": {"name": "fedprox", "mu": "big"}}},
            "run.strategy.local.mu: expected a number, got 'big'",
        ),
        (
            {"strategy": {"personal": {"name": "fine-tuning", "groups": ["x"]}}},
            "run.strategy.personal.groups.0: expected 'mg', 'us', 'mri', 'clinical' or 'head', "
            "got 'x'",
        ),
        ({"strategy": {"private_groups": "us"}}, "run.strategy.private_groups: expected a list"),
        (
            {"strategy": {"private_groups": ["us", "us"]}},
            "run.strategy.private_groups: expected each group once",
        ),
        ({"compression": {"keep": 0.1}}, "run.compression.keep: expected 1 with float32, got 0.1"),
        (
            {"compression": {"up": "int2"}},
            "run.compression.up: expected 'float32', 'int16', 'int8' or 'int4', got 'int2'",
        ),
        ({"rounds": True}, "run.rounds: expected another value than yes or no, got yes"),
        ({"rounds": "many"}, "run.rounds: expected a whole number, got 'many'"),
        ({"batch_size": 5000}, "run.batch_size: expected at most 1024, got 5000"),
        ({"learning_rate": 0}, "run.learning_rate: expected more than 0, got 0"),
        (None, "run: expected keys and values, got nothing"),
        (
            {"patience": 3, "strategy": {"personal": {"name": "ditto"}}},
            "run.patience: expected none with private_groups or ditto",
        ),
    ],
)
def test_faults_of_the_run_name_the_key_as_it_stands_in_the_file(run: Any, expected: str) -> None:
    assert fault(run=run).startswith(expected)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"initial": "release", "initial_sha256": "abc"},
            "initial_sha256: expected 64 hexadecimal digits, the sha256 of the release's "
            "manifest.json, got 'abc'",
        ),
        ({"name": "My Run"}, "name: expected lower-case letters, digits and hyphens"),
        ({"synthetic": "maybe"}, "synthetic: expected yes or no, got 'maybe'"),
        ({"sites": []}, "sites: expected at least 1 item, not 0, got []"),
        (
            {"sites": [{"name": "a", "public_key": "ssh-rsa AAA"}]},
            "sites.0.public_key: expected an ECDSA key",
        ),
        ({"sites": [{"public_key": KEY}]}, "sites.0.name: missing"),
        ({"Name": "t"}, "Name: unknown key; did you mean 'name'?"),
    ],
)
def test_faults_beside_the_run(changes: dict[str, Any], expected: str) -> None:
    assert fault(**changes).startswith(expected)


def test_all_faults_are_told_each_on_a_line() -> None:
    told = fault(run={"rounds": 0, "compression": {"up": "int2"}}, sites=[{"name": "a"}])
    assert told.splitlines() == [
        "3 faults",
        "  sites.0.public_key: missing",
        "  run.rounds: expected at least 1, got 0",
        "  run.compression.up: expected 'float32', 'int16', 'int8' or 'int4', got 'int2'",
    ]
