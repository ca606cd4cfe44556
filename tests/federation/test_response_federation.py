"""The response evaluation over sites: the numbers of the pooled rows, and what a site refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.common.response.cohorts import assert_same

from her2_client.cache import open_cache
from her2_client.cohort import load_cohort
from her2_client.keys import read_pseudonym_key
from her2_client.served import note_served
from her2_common.cases import MODALITIES, SPLITS, pseudonym
from her2_common.config import Task
from her2_common.errors import ConfigError, RunError
from her2_common.model import GROUPS, build_model, get_groups
from her2_common.release import Manifest, read_release, write_release
from her2_common.response.plan import Model, Plan
from her2_common.response_wire import read_statistics, statistics_record
from her2_server.response.command import fix_threshold, over_tables
from her2_server.response.federation import over_sites

SHARES = (0.6, 0.2, 0.2)  # those of the caches that conftest.py writes

if TYPE_CHECKING:
    from tests.federation.conftest import LocalFederation

MakeFederation = Callable[..., "LocalFederation"]

CENTRES = {
    "centre-a": (120, MODALITIES),
    "centre-b": (100, ("mg", "us")),
    "centre-c": (100, ("mri",)),
    "centre-d": (80, ("us",)),
}
PLAN = Plan(
    min_cell=1,
    min_centres=1,
    one_class_centres="keep",
    models=(
        Model(name="small", terms=("hr", "score"), tested=("score",)),
        Model(name="centres", terms=("centre", "therapy", "score"), tested=("score",)),
    ),
    propensity=("hr", "n"),
)
QUICK = PLAN.model_copy(update={"models": (), "compare": ()})
"""Fewer queries, for what does not hang on their number."""


def write_cases(federation: LocalFederation) -> None:
    """Case tables whose response follows HER2 and therapy; one value in ten is blank."""
    for seed, config in enumerate(federation.configs.values()):
        rng = np.random.default_rng(seed)
        with config.data.cases.open(encoding="utf-8") as file:
            names = [row["case_id"] for row in csv.DictReader(file)]
        rows = []
        bounds = np.cumsum(SHARES) * len(names)
        for case, name in enumerate(names):
            positive = int(rng.random() < 0.6)
            therapy = int(positive and rng.random() < 0.85)
            row = {
                "case_id": name,
                "biopsy_her2": positive,
                "anti_her2": therapy,
                "er": int(rng.random() < 0.5),
                "pr": int(rng.random() < 0.3),
                "clinical_t": rng.integers(1, 5),
                "clinical_n": rng.integers(0, 4),
                "pcr": int(rng.random() < 0.25 + 0.35 * therapy),
                "nat": 1,
                "split": SPLITS[int(np.searchsorted(bounds, case, side="right"))],
            }
            drop = list(row)[3 + rng.integers(0, 5)] if rng.random() < 0.1 else ""
            rows.append({key: "" if key == drop else value for key, value in row.items()})
        with config.data.cases.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def allow(federation: LocalFederation, **policy: Any) -> None:
    """Let every site take part, with other keys of its policy."""
    tasks: tuple[Task, ...] = ("describe", "train", "profile", "evaluate", "response")
    for name, config in federation.configs.items():
        changed = config.policy.model_copy(update={"allowed_tasks": tasks, **policy})
        federation.configs[name] = config.model_copy(update={"policy": changed})


def scored_tables(federation: LocalFederation, folder: Path) -> list[Path]:
    """What each site's engineer could write: its test cases with their scores."""
    folder.mkdir()
    paths = []
    for name, config in federation.configs.items():
        key = read_pseudonym_key(config.data.pseudonym_key_file)
        with np.load(config.state / "response" / "test.npz") as kept:
            scores = {column: kept[column] for column in kept.files}
        place = {p: i for i, p in enumerate(scores["pseudonyms"].tolist())}
        rows = []
        with config.data.cases.open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                index = place.get(pseudonym(key, row["case_id"]))
                if index is None:
                    continue
                single = {m: scores[m][index] for m in MODALITIES if m in scores}
                more = {f"{m}_score": "" if np.isnan(v) else v for m, v in single.items()}
                own = {**row, "case_id": f"{name}-{row['case_id']}"}
                rows.append(own | {"score": scores["fused"][index]} | more)
        paths.append(folder / f"{name}.csv")
        write_table(paths[-1], rows)
    return paths


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        columns = list(dict.fromkeys(column for row in rows for column in row))
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def numbers(document: dict[str, Any]) -> dict[str, Any]:
    """A result without what says where it comes from."""
    return {k: v for k, v in document.items() if k not in ("source", "warnings")}


@pytest.fixture
def finished(make_federation: MakeFederation) -> LocalFederation:
    """Four sites whose tables know the response, and a run's folder with a release for them."""
    federation = make_federation(centres=CENTRES, rounds=1, min_cell=3, round_timeout=8)
    write_cases(federation)
    allow(federation, min_cell=1)
    plan = federation.folder.load_config().run
    manifest = Manifest(
        run="test", preset=plan.preset, label="reference", image_size=32, volume_size=16,
        threshold=0.28125, groups=list(GROUPS),
    )  # fmt: skip
    groups = get_groups(build_model(plan.preset, 3, **plan.layout), GROUPS)
    write_release(federation.folder.release, manifest, groups)
    summary = {
        "run": {"rounds": 1},
        "sites": [
            {"name": name, "groups": [*modalities, "clinical", "head"]}
            for name, (_, modalities) in CENTRES.items()
        ],
    }
    federation.folder.write_json(federation.folder.summary, summary)
    return federation


def test_after_a_run_the_sites_that_took_part_are_asked(make_federation: MakeFederation) -> None:
    federation = make_federation(rounds=1, min_cell=3)
    write_cases(federation)
    federation.coordinator().run()
    allow(federation, min_cell=1)
    found = over_sites(federation.grid(), federation.folder, PLAN)
    assert found["centres"] == list(CENTRES)
    assert found["threshold_from"] == "release"
    summary = json.loads(federation.folder.summary.read_text())
    assert found["threshold"] == summary["threshold"]["value"]


def test_sites_and_tables_and_pooled_rows_give_the_same_numbers(
    finished: LocalFederation, tmp_path: Path
) -> None:
    federated = over_sites(finished.grid(), finished.folder, PLAN)
    release = finished.folder.release
    tables = scored_tables(finished, tmp_path / "tables")
    apart = over_tables(tables, PLAN, None, release)
    rows = []
    for path in tables:
        with path.open(encoding="utf-8") as file:
            rows += [{**row, "centre": path.stem} for row in csv.DictReader(file)]
    write_table(tmp_path / "pooled.csv", rows[::-1])
    pooled = over_tables([tmp_path / "pooled.csv"], PLAN, None, release)
    assert_same(numbers(federated), numbers(apart))
    assert_same(numbers(federated), numbers(pooled))
    # ... and these are numbers
    assert federated["n"] == len(rows)
    assert federated["primary"]["n"] > 20
    for section in ("primary", "auc", "roc", "calibration", "mcnemar", "ipw"):
        assert "refused" not in federated[section], section
    assert [model.get("refused") for model in federated["logistic"]] == [None, None]
    assert federated["source"]["release_sha256"]
    assert set(federated["source"]["sites"]) == set(CENTRES)


def test_the_default_policy_refuses(finished: LocalFederation) -> None:
    for name, config in finished.configs.items():
        policy = config.policy.model_copy(update={"allowed_tasks": ("describe", "evaluate")})
        finished.configs[name] = config.model_copy(update={"policy": policy})
    refused = r"expected answers of 3 sites.*centre-a refused: site error: policy"
    plan = PLAN.model_copy(update={"min_centres": 3})
    with pytest.raises(RunError, match=refused):
        over_sites(finished.grid(), finished.folder, plan)


def test_another_plan_is_refused_unless_the_engineer_allows_it(finished: LocalFederation) -> None:
    first = over_sites(finished.grid(), finished.folder, QUICK)
    other = QUICK.model_copy(update={"max_fpr": 0.3})
    with pytest.raises(RunError, match="got 0"):
        over_sites(finished.grid(), finished.folder, other)
    with pytest.raises(RunError, match="got 0"):  # the same plan at another threshold
        over_sites(finished.grid(), finished.folder, QUICK, first["threshold"] / 2)
    fixed = fix_threshold(other, None, read_release(finished.folder.release)[0])
    assert fixed.sha256 not in (other.sha256, first["plan"]["sha256"])
    allow(finished, min_cell=1, allowed_plans=(fixed.sha256,))
    assert over_sites(finished.grid(), finished.folder, other)["plan"]["sha256"] == fixed.sha256
    with pytest.raises(RunError, match="got 0"):  # what is allowed is allowed at its threshold
        over_sites(finished.grid(), finished.folder, other, first["threshold"] / 2)


def test_queries_are_counted_once_and_against_the_budget(finished: LocalFederation) -> None:
    first = over_sites(finished.grid(), finished.folder, QUICK)
    again = over_sites(finished.grid(), finished.folder, QUICK)
    used = {site: line["queries"] for site, line in first["source"]["sites"].items()}
    assert {site: line["queries"] for site, line in again["source"]["sites"].items()} == used
    assert 8 < max(used.values()) <= first["source"]["queries"]
    assert_same(numbers(first), numbers(again))
    for config in finished.configs.values():
        (config.state / "response" / "test.json").unlink()  # as on the first day
    allow(finished, min_cell=1, max_queries=5)
    with pytest.raises(RunError, match=r"query 6 .*site error: policy"):
        over_sites(finished.grid(), finished.folder, QUICK)


def test_weights_travel_once(finished: LocalFederation) -> None:
    grid = finished.grid()
    over_sites(grid, finished.folder, QUICK)
    first, grid = grid.wire_bytes, finished.grid()
    over_sites(grid, finished.folder, QUICK)  # every site restarted
    _, groups = read_release(finished.folder.release)
    weights = sum(array.nbytes for array in groups.values())
    assert first - grid.wire_bytes > weights


def test_small_cells_stay_at_the_site(finished: LocalFederation) -> None:
    allow(finished, min_cell=3)
    found = over_sites(finished.grid(), finished.folder, PLAN)
    assert any(line["why"].startswith("withheld") for line in found["suppressed"])
    assert found["source"]["sites"]["centre-d"]["withheld"]


def test_a_case_that_trained_the_model_is_refused(finished: LocalFederation) -> None:
    config = finished.configs["centre-d"]
    text = config.data.cases.read_text(encoding="utf-8").splitlines()
    moved = [text[0], *(line.replace(",test", ",train") for line in text[1:])]
    config.data.cases.write_text("\n".join(moved) + "\n", encoding="utf-8")
    found = over_sites(finished.grid(), finished.folder, QUICK)
    assert found["source"]["absent"] == {"centre-d": "refused: site error: data"}
    assert "centre-d" not in found["centres"]


def test_a_case_that_trained_under_another_split_is_refused(
    make_federation: MakeFederation,
) -> None:
    """Cache and table agree that it is a test case; the site's own record knows better."""
    federation = make_federation(rounds=1, min_cell=3)
    write_cases(federation)
    federation.coordinator().run()
    allow(federation, min_cell=1)
    config = federation.configs["centre-d"]
    names = json.loads((config.state / "served" / "test.json").read_text())
    cohort = load_cohort(open_cache(config.data.cache), split="test", label=None,
                         image_size=32, volume_size=16)  # fmt: skip
    assert names
    assert not set(names) & set(cohort.pseudonyms)
    note_served(config.state, "test", cohort.pseudonyms[:1])
    found = over_sites(federation.grid(), federation.folder, QUICK)
    assert found["source"]["absent"] == {"centre-d": "refused: site error: data"}


def test_a_lost_site_ends_the_analysis_by_name(finished: LocalFederation) -> None:
    grid = finished.grid()
    node = finished.node(grid, "centre-b")

    def fault(order: Any, answer: Callable[[], Any]) -> list[Any]:
        query = json.loads(order.content["query"]["json"])
        node.online = query["kind"] != "placements"
        return [answer()] if node.online else []

    node.fault = fault
    with pytest.raises(RunError, match=r"placements biopsy.*centre-b missing"):
        over_sites(grid, finished.folder, QUICK)


def test_a_site_that_is_still_starting_is_waited_for(finished: LocalFederation) -> None:
    grid = finished.grid()
    late, never = finished.node(grid, "centre-b"), finished.node(grid, "centre-d")
    late.online = never.online = False

    told: list[str] = []

    def notify(text: str) -> None:
        told.append(text)
        late.online = True

    found = over_sites(grid, finished.folder, QUICK, notify=notify)
    assert told[0] == "response: waits for centre-b, centre-d"
    assert found["centres"] == ["centre-a", "centre-b", "centre-c"]
    assert found["source"]["absent"] == {"centre-d": "missing: not online"}


def test_an_unfinished_run_and_a_contradicting_threshold(
    make_federation: MakeFederation, finished: LocalFederation
) -> None:
    with pytest.raises(RunError, match="not finished"):
        over_sites(make_federation("other").grid(), make_federation("third").folder, PLAN)
    fixed = PLAN.model_copy(update={"threshold": 0.25})
    with pytest.raises(ConfigError, match=r"expected 0\.25, which the plan fixes, got 0\.5"):
        over_sites(finished.grid(), finished.folder, fixed, 0.5)


@pytest.mark.parametrize(("factor", "reason"), [(1e300, "out of range"), (-1.0, "misshapen")])
def test_sums_that_no_patients_give_end_the_analysis_by_the_sites_name(
    finished: LocalFederation, factor: float, reason: str
) -> None:
    grid = finished.grid()

    def lies(order: Any, answer: Callable[[], Any]) -> list[Any]:
        reply = answer()
        if json.loads(order.content["query"]["json"])["kind"] == "logistic":
            arrays = read_statistics(reply.content)
            arrays["hessian"] = arrays["hessian"] * factor
            reply.content["arrays"] = statistics_record(arrays)
        return [reply]

    finished.node(grid, "centre-b").fault = lies
    with pytest.raises(RunError, match=rf"logistic small.*centre-b refused: {reason}"):
        over_sites(grid, finished.folder, PLAN)
    assert f"centre-b refused: {reason}" in finished.folder.log_file.read_text(encoding="utf-8")
