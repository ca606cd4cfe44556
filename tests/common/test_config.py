"""site.yaml and federation.yaml: frozen, strict, and helpful about faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from her2_client.keys import new_node_key
from her2_common.config import FederationConfig, RunConfig, SiteConfig, load, parse
from her2_common.errors import ConfigError

SITE: dict[str, Any] = {
    "name": "centre-a",
    "data": {"cases": "cases.csv", "cache": "/var/cache/her2", "pseudonym_key_file": "k"},
    "superlink": {"address": "h.example:8000", "root_certificates": "ca.crt", "private_key": "n"},
    "state": "state",
}
PUBLIC, OTHER = (new_node_key()[1] for _ in range(2))
FEDERATION: dict[str, Any] = {
    "name": "study",
    "superlink": {
        "address": "localhost:8000",
        "root_certificates": "ca.crt",
        "superexec_secret_file": "s",
    },
    "sites": [{"name": "a", "public_key": PUBLIC}, {"name": "b", "public_key": OTHER}],
}


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of ``document`` with the key at ``path`` ("data.cases") set; ... removes it."""
    first, _, rest = path.partition(".")
    copy = dict(document)
    if rest:
        copy[first] = changed(dict(copy.get(first, {})), rest, value)
    elif value is ...:
        del copy[first]
    else:
        copy[first] = value
    return copy


def write(folder: Path, document: Any) -> Path:
    path = folder / "site.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return path


def test_relative_paths_start_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path, SITE)
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load(SiteConfig, Path("../site.yaml"))
    assert config.data.cases == tmp_path / "cases.csv"
    assert config.state == tmp_path / "state"
    assert config.data.cache == Path("/var/cache/her2")
    assert config.data.lesions is None


def test_defaults_are_the_published_sizes(tmp_path: Path) -> None:
    config = load(SiteConfig, write(tmp_path, SITE))
    assert (config.data.image_size, config.data.volume_size) == (256, 96)
    assert config.device == "auto"
    assert config.policy.min_cases == 10


def test_a_configuration_is_frozen(tmp_path: Path) -> None:
    config = load(SiteConfig, write(tmp_path, SITE))
    with pytest.raises(ValidationError, match="frozen"):
        config.policy.min_cases = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("data.lesion", "x", "data.lesion: unknown key; did you mean 'lesions'?"),
        ("superlink.adress", "x", "superlink.adress: unknown key; did you mean 'address'?"),
        ("policy.min_case", 3, "policy.min_case: unknown key; did you mean 'min_cases'?"),
        ("polycy", {}, "polycy: unknown key; did you mean 'policy'?"),
        ("zzz", 1, "zzz: unknown key; known: data, device, name, policy, resident, "),
        ("devices", 2, "devices: unknown key; did you mean 'device'?"),
        ("resident", "ram", "resident: expected 'auto', 'always' or 'never', got 'ram'"),
        ("resident", True, "resident: expected another value than yes or no, got yes"),
        ("rows_at_once", 0, "rows_at_once: expected at least 1, got 0"),
        ("threads", True, "threads: expected another value than yes or no, got yes"),
        ("name", "Centre A", "name: expected lower-case letters"),
        ("name", ..., "name: missing"),
        ("data.cases", ..., "data.cases: missing"),
        ("data.image_size", 100, "data.image_size: expected a multiple of 16, got 100"),
        ("data.volume_size", 0, "data.volume_size: expected at least 16, got 0"),
        ("superlink.address", "https://h:1", "superlink.address: expected host:port"),
        ("device", "tpu", "device: expected 'auto', 'cpu' or 'cuda', got 'tpu'"),
        ("policy.min_cases", 0, "policy.min_cases: expected at least 1, got 0"),
    ],
)
def test_faults_are_named(tmp_path: Path, path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(SiteConfig, write(tmp_path, changed(SITE, path, value)))
    assert str(caught.value).startswith(f"site.yaml: {message}")
    assert caught.value.exit_code == 2


def test_all_faults_come_together(tmp_path: Path) -> None:
    document = changed(changed(SITE, "device", "tpu"), "data.cases", ...)
    with pytest.raises(ConfigError, match="2 faults") as caught:
        load(SiteConfig, write(tmp_path, document))
    assert "data.cases: missing" in str(caught.value)
    assert "device: expected" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", r"site\.yaml, line \d+: not YAML"),
        ("- a\n- b\n", "expected keys and values, got list"),
        ("", "expected keys and values, got NoneType"),
    ],
)
def test_what_is_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(SiteConfig, write(tmp_path, text))
    with pytest.raises(ConfigError, match="no such file"):
        load(SiteConfig, tmp_path / "none.yaml")


def federation(document: dict[str, Any]) -> FederationConfig:
    return parse(FederationConfig, document, where="federation.yaml", folder=Path("/etc/her2"))


def test_the_quorum_is_all_sites_unless_stated() -> None:
    assert federation(FEDERATION).quorum == 2
    assert federation(changed(FEDERATION, "run.quorum", 1)).quorum == 1
    with pytest.raises(ConfigError, match=r"expected a run\.quorum of at most 2 .*, got 3"):
        federation(changed(FEDERATION, "run.quorum", 3))


def test_site_names_must_differ() -> None:
    twice = [FEDERATION["sites"][0]] * 2
    with pytest.raises(ConfigError, match="expected different site names, got 'a' twice"):
        federation(FEDERATION | {"sites": twice})


def test_faults_inside_the_list_of_sites_are_named() -> None:
    sites = [FEDERATION["sites"][0], {"name": "b", "public_kei": PUBLIC, "public_key": OTHER}]
    with pytest.raises(ConfigError, match=r"sites\.1\.public_kei.* did you mean 'public_key'"):
        federation(FEDERATION | {"sites": sites})
    sites[1] = {"name": "b", "public_key": "ssh-rsa AAAA"}
    with pytest.raises(ConfigError, match=r"sites\.1\.public_key: expected an ECDSA key"):
        federation(FEDERATION | {"sites": sites})
    with pytest.raises(ConfigError, match="sites: "):
        federation(FEDERATION | {"sites": []})


@pytest.mark.parametrize(
    ("key", "value"),
    [("rounds", 0), ("batch_size", 0), ("learning_rate", 0.0), ("seed", -1), ("label", "her2"),
     ("strategy", "fedsgd"), ("round_timeout", 0)],
)  # fmt: skip
def test_a_run_out_of_range_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"run\.{key}: .*expected"):
        federation(changed(FEDERATION, f"run.{key}", value))


def test_a_run_survives_its_own_json() -> None:
    run = RunConfig(rounds=3, label="pcr")
    assert RunConfig.model_validate_json(run.model_dump_json()) == run


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ((PUBLIC[:60], OTHER), "sites: a: public_key is cut off or not a key"),
        ((PUBLIC, PUBLIC + " a comment"), "sites: a and b have the same public_key"),
    ],
)
def test_keys_are_whole_and_different(keys: tuple[str, str], words: str) -> None:
    sites = [{"name": name, "public_key": key} for name, key in zip("ab", keys, strict=True)]
    with pytest.raises(ConfigError, match=words):
        federation(FEDERATION | {"sites": sites})
