"""Settings: the defaults train as before, a choice is read by name, and what cannot be is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from her2_common.config import FederationConfig, parse
from her2_common.errors import ConfigError
from her2_common.model import GROUPS
from her2_common.section import Section
from her2_common.strategy import (
    Compression,
    Ditto,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedProx,
    FedYogi,
    FineTuning,
    GroupName,
    Mean,
    Median,
    NormClip,
    NotPersonal,
    Plain,
    Scaffold,
    StrategyConfig,
    TrimmedMean,
)


def read(document: dict[str, Any]) -> StrategyConfig:
    return parse(StrategyConfig, document, where="federation.yaml", folder=Path())


def test_without_a_word_it_is_fedavg_with_momentum() -> None:
    config = read({})
    assert config.step == FedAvgM(server_learning_rate=1.0, momentum=0.5)
    assert (config.combine, config.local, config.personal) == (Mean(), Plain(), NotPersonal())
    assert config.private_groups == ()


@pytest.mark.parametrize(
    ("key", "choice"),
    [
        *[("step", choice) for choice in (FedAvg(), FedAvgM(), FedAdam(), FedYogi())],
        *[("combine", choice) for choice in (Mean(), Median(), TrimmedMean(), NormClip())],
        *[("local", choice) for choice in (Plain(), FedProx(), Scaffold())],
        *[("personal", choice) for choice in (NotPersonal(), Ditto(), FineTuning())],
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_choice_is_read_by_its_name_and_written_as_it_is_read(key: str, choice: Section) -> None:
    config = read({key: {"name": choice.name}})  # type: ignore[attr-defined]
    assert getattr(config, key) == choice
    assert StrategyConfig.model_validate_json(config.model_dump_json()) == config


def test_groups_are_those_of_the_model() -> None:
    assert GroupName.__args__ == GROUPS  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"step": {"name": "fedsgd"}}, "fedsgd"),
        ({"step": {"name": "fedavg", "momentum": 0.9}}, "momentum: unknown key"),
        ({"step": {"name": "fedavgm", "momentum": 1.0}}, "momentum"),
        ({"step": {"name": "fedadam", "tau": 0}}, "tau"),
        ({"step": {"name": "fedadam", "server_learning_rate": True}}, "server_learning_rate"),
        ({"combine": {"name": "trimmed-mean", "share": 0.5}}, "share"),
        ({"combine": {"name": "norm-clip", "max_norm": 0}}, "max_norm"),
        ({"local": {"name": "fedprox", "mu": -1}}, "mu"),
        ({"personal": {"name": "fine-tuning", "groups": ["ct"]}}, "groups"),
        ({"private_groups": ["ct"]}, "private_groups"),
        ({"private_groups": ["mg", "mg"]}, "expected each group once"),
        ({"private_groups": ["head"]}, "private_groups.0: expected 'mg', 'us' or 'mri'"),
        ({"private_groups": ["clinical"]}, "private_groups.0: expected"),
        ({"local": {"name": "scaffold"}, "combine": {"name": "median"}}, "got median and fedavg"),
        ({"local": {"name": "scaffold"}, "step": {"name": "fedadam"}}, "got mean and fedadam"),
    ],
)
def test_what_cannot_be_is_refused(document: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(document)


def test_the_step_of_scaffold_need_not_be_said() -> None:
    assert read({"local": {"name": "scaffold"}}).step == FedAvg()


def test_a_strategy_is_told_in_a_few_words() -> None:
    assert str(read({})) == "fedavgm"
    chosen = {"step": {"name": "fedadam"}, "local": {"name": "fedprox"}, "private_groups": ["us"]}
    assert str(read(chosen)) == "fedadam, fedprox, private us"
    robust = {"combine": {"name": "median"}, "personal": {"name": "ditto"}}
    assert str(read(robust)) == "fedavgm, median, ditto"


def test_a_misspelt_key_of_a_choice_is_told_with_the_keys_of_that_choice() -> None:
    document = {"run": {"strategy": {"step": {"name": "fedadam", "beta3": 0.5}}}}
    with pytest.raises(ConfigError, match="did you mean 'beta"):
        parse(FederationConfig, document, where="federation.yaml", folder=Path())
    document = {"run": {"strategy": {"local": {"name": "fedprox", "nu": 0.5}}}}
    with pytest.raises(ConfigError, match=r"nu: unknown key; (did you mean 'mu'|known: mu)"):
        parse(FederationConfig, document, where="federation.yaml", folder=Path())


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"keep": 0.1}, "keep: expected 1 with float32, got 0.1"),
        ({"up": "int8", "down_keep": 0.5}, "down_keep: expected 1 with float32, got 0.5"),
        ({"up": "int2"}, "up: expected 'float32', 'int16', 'int8' or 'int4'"),
        ({"up": "int8", "keep": 0}, "keep"),
    ],
)
def test_a_compression_that_cannot_be_is_refused(document: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(Compression, document, where="federation.yaml", folder=Path())
