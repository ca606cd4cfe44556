"""Small real sites: keys, site.yaml and a written cache, with a signal that a few rounds learn."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tests.caches import add
from tests.federation.strategies_ground import CENTRES as SMALL_CENTRES

from her2_client.app import make_app
from her2_client.cache import image_shape
from her2_client.cache_writer import CacheWriter
from her2_client.keys import init_site, read_pseudonym_key
from her2_client.site import Site
from her2_common.cases import MODALITIES, SPLITS, Modality, pseudonym
from her2_common.clinical import Her2Level
from her2_common.config import SiteConfig, load
from her2_deploy.simulation import LocalGrid, LocalNode
from her2_server.coordinator import Coordinator
from her2_server.report import page
from her2_server.run_folder import RunFolder

IMAGE_SIZE = 32
VOLUME_SIZE = 16
SHARES = (0.6, 0.2, 0.2)  # train, val, test


def write_cache(
    folder: Path,
    site: str,
    cases: int,
    modalities: tuple[Modality, ...],
    seed: int,
    key: bytes = bytes(32),
) -> None:
    """A cache whose left image half is brighter in positive cases, by 0.25 standard deviations.

    Three in four positives, and a quarter of the others, have pCR; every fifth response is unknown.
    Half of the negatives are HER2-low; centre-b keeps no raw IHC.
    """
    rng = np.random.default_rng(seed)
    with CacheWriter(folder, site=site, image_size=IMAGE_SIZE, volume_size=VOLUME_SIZE) as writer:
        writer.begin()
        for case in range(cases):
            positive = int(rng.random() < 0.4)
            present = [m for m in modalities if rng.random() < 0.8] or [modalities[0]]
            images = {}
            for modality in present:
                image = rng.normal(size=image_shape(modality, IMAGE_SIZE, VOLUME_SIZE))
                image[..., : image.shape[-1] // 2] += 0.25 * positive
                images[modality] = image.astype(np.float16)
            bounds = np.cumsum(SHARES) * cases
            pcr = None if case % 5 == 0 else positive ^ int(case % 4 == 1)
            level: Her2Level = "positive" if positive else ("zero", "low")[case // 2 % 2]
            add(
                writer,
                pseudonym=pseudonym(key, f"case-{case}"),
                split=SPLITS[int(np.searchsorted(bounds, case, side="right"))],
                clinical=(float(rng.integers(30, 80)), 1, None, 1.0, 0.0),
                labels={"reference": positive, "biopsy": positive, "surgical": None, "pcr": pcr},
                levels={} if site == "centre-b" else {"reference": level, "biopsy": level},
                images=images,
            )
        writer.publish()


@dataclass
class LocalFederation:
    """Four sites in this process and the run folder of their coordinator."""

    configs: dict[str, SiteConfig]
    keys: dict[str, str]
    folder: RunFolder

    def grid(self, **options: object) -> LocalGrid:
        """A fresh grid with a fresh Site for every node, as after a restart of everything."""
        nodes = {}
        for number, (name, config) in enumerate(self.configs.items(), start=11):
            site = Site(config)
            nodes[number] = LocalNode(make_app(lambda _, site=site: site), self.keys[name])
        return LocalGrid(nodes, **options)  # type: ignore[arg-type]

    def node(self, grid: LocalGrid, name: str) -> LocalNode:
        """The node of the site of that name."""
        return next(n for n in grid.nodes.values() if n.public_key == self.keys[name])

    def coordinator(
        self, grid: LocalGrid | None = None, log: list[str] | None = None
    ) -> Coordinator:
        """A coordinator of this folder over ``grid``; its messages go to ``log``."""
        notify = log.append if log is not None else (lambda _: None)
        return Coordinator(grid or self.grid(), self.folder, notify)


MakeFederation = Callable[..., LocalFederation]

Centres = dict[str, tuple[int, tuple[Modality, ...]]]

CENTRES: Centres = {
    "centre-a": (60, MODALITIES),
    "centre-b": (50, ("mg", "us")),
    "centre-c": (50, ("mri",)),
    "centre-d": (40, ("us",)),
}


def build(
    root: Path, centres: Centres, initial: Path | None, run: dict[str, Any]
) -> LocalFederation:
    """Sites and a run folder in ``root``; ``run`` changes the run section."""
    configs, keys = {}, {}
    for seed, (site, (cases, modalities)) in enumerate(centres.items()):
        folder = root / site
        keys[site] = init_site(
            folder, name=site, address="localhost:1", image_size=32, volume_size=16, threads=1
        )
        path = folder / "site.yaml"
        path.write_text(path.read_text().replace("min_cell: 10", "min_cell: 3"))
        configs[site] = load(SiteConfig, path)
        data = configs[site].data
        key = read_pseudonym_key(data.pseudonym_key_file)
        write_cache(data.cache, site, cases, modalities, seed, key)
        lines = ["case_id", *(f"case-{case}" for case in range(cases))]
        data.cases.write_text("\n".join(lines) + "\n", encoding="utf-8")
    plan = {
        "rounds": 2,
        "image_size": IMAGE_SIZE,
        "volume_size": VOLUME_SIZE,
        "local_epochs": 1,
        "round_timeout": 120,  # a busy machine needs more than one expects
        "start_timeout": 1,
        "pause_timeout": 0,
        "min_cell": 3,
        "seed": 5,
    } | run
    federation = {
        "name": "test",
        "synthetic": True,
        "superlink": {
            "address": "localhost:1",
            "root_certificates": "ca.crt",
            "superexec_secret_file": "secret",
        },
        "sites": [{"name": n, "public_key": k} for n, k in keys.items()],
        "run": plan,
        "initial": None if initial is None else str(initial),
    }
    (root / "federation.yaml").write_text(yaml.safe_dump(federation), encoding="utf-8")
    folder = RunFolder(root / "out")
    folder.create(root / "federation.yaml")
    return LocalFederation(configs, keys, folder)


@pytest.fixture
def drawn() -> None:
    """For a test that looks at the figures of its run's report."""


@pytest.fixture(autouse=True)
def _without_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without figures, for tests that do not ask to have them ``drawn``: drawing takes half
    of the time of a run as small as these."""

    def none(summary: Mapping[str, Any], _: object) -> dict[str, str | list[str]]:
        return defaultdict(str, flow=[""] * len(summary["sites"]))

    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(page, "_figures", none)


@pytest.fixture
def make_federation(tmp_path: Path) -> MakeFederation:
    """Build four sites and a run folder, of a run that may begin from the release ``initial``;
    keyword arguments change the run section."""

    def make(
        name: str = "run",
        centres: Centres | None = None,
        initial: Path | None = None,
        **run: object,
    ) -> LocalFederation:
        return build(tmp_path / name, centres or CENTRES, initial, run)

    return make


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> MakeFederation:
    """A federation whose run has ended undisturbed, to compare others with: one for all tests that
    ask for the same, which leave it as it is."""

    @cache
    def ended(options: str) -> LocalFederation:
        asked = json.loads(options)
        root = tmp_path_factory.mktemp("undisturbed")
        federation = build(root, asked.pop("centres") or CENTRES, None, asked)
        federation.coordinator().run()
        return federation

    def make(centres: Centres | None = None, **run: object) -> LocalFederation:
        return ended(json.dumps({"centres": centres} | run))

    return make


@pytest.fixture
def make(make_federation: MakeFederation) -> MakeFederation:
    """The same with three small sites, for strategies."""

    def small(name: str = "run", **run: object) -> LocalFederation:
        plan = {"rounds": 3, "batch_size": 24, "learning_rate": 3e-3} | run
        return make_federation(name, centres=SMALL_CENTRES, **plan)

    return small
