"""Orders: each site gets what it can use and lacks, and no more."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from tests.messages import arrays_in

from her2_common.broadcast import fingerprint
from her2_common.config import RunConfig
from her2_common.model import GROUPS
from her2_common.wire import Counts, Flow, SiteDescription, TaskOrder, read_document
from her2_server import checkpoint
from her2_server.checkpoint import Checkpoint
from her2_server.orders import Orders, model_of, model_with

ALL = ("mg", "us", "mri", "clinical", "head")


def orders(**plan: Any) -> Orders:
    config: Any = SimpleNamespace(name="demo", run=RunConfig.model_validate(plan))
    return Orders(config)


def site(*groups: str, name: str = "centre-a") -> SiteDescription:
    counts = {"train": 20, "val": 0, "test": 0}
    return SiteDescription(
        site=name,
        version="1",
        groups=groups,  # type: ignore[arg-type]
        flow=Flow(in_table=20, accepted=20, left_out=0),
        cases=Counts(**counts),
        positives=Counts(**counts),
        combinations={},
    )


def saved(folder: Path, number: int, state: dict[str, Any] | None = None) -> Checkpoint:
    """A checkpoint whose groups are all the round's number but mri, which nobody trains."""
    groups = {g: np.full(3, 0.0 if g == "mri" else number, np.float32) for g in GROUPS}
    memory = {f"{g}.control": v + np.float32(100) for g, v in groups.items()}
    if number:
        memory |= {f"{g}.step": np.full(2, number, np.uint8) for g in GROUPS if g != "mri"}
        memory |= {f"{g}.control.step": np.full(2, 9, np.uint8) for g in GROUPS if g != "mri"}
    return checkpoint.save(folder, Checkpoint(number, groups, state or {}, memory))


def rounds(folder: Path) -> tuple[Checkpoint, Checkpoint]:
    first = saved(folder, 0)
    return first, saved(folder, 1, {"before": first.state["fingerprints"], "bases": {}})


def sent(record: RecordDict) -> dict[str, set[str]]:
    return {key: set(arrays_in(record, key)) for key in ("weights", "steps")}


def named(record: RecordDict) -> dict[str, str]:
    return read_document(record, "order", TaskOrder).weights


def test_a_new_site_gets_its_groups_whole(tmp_path: Path) -> None:
    _, second = rounds(tmp_path)
    record = orders().work("train", 2, "val", model_of(second), site("us", "head"))
    assert sent(record) == {"weights": {"us", "head"}, "steps": set()}
    assert named(record) == {g: fingerprint(np.full(3, 1, np.float32)) for g in ("us", "head")}
    assert arrays_in(record, "weights")["us"].tolist() == [1, 1, 1]


def test_a_site_that_answered_gets_what_is_new(tmp_path: Path) -> None:
    first, second = rounds(tmp_path)
    made = orders()
    made.work("train", 1, "val", model_of(first), site(*ALL))
    unanswered = made.work("train", 2, "val", model_of(second), site(*ALL))
    assert sent(unanswered)["weights"] == set(ALL)
    made.work("train", 1, "val", model_of(first), site(*ALL))
    made.answered("centre-a")
    record = made.work("train", 2, "val", model_of(second), site(*ALL))
    # nobody trained mri: every site holds it as it is
    assert sent(record) == {"weights": set(), "steps": {"mg", "us", "clinical", "head"}}
    assert named(record).keys() == set(ALL)
    assert arrays_in(record, "steps")["us"].tolist() == [1, 1]
    again = made.work("train", 2, "val", model_of(second), site(*ALL))  # a retry
    assert sent(again) == sent(record)
    made.answered("centre-a")
    assert sent(made.work("profile", 2, "val", model_of(second), site(*ALL))) == {
        "weights": set(),
        "steps": set(),
    }


def test_what_the_seed_gives_is_not_sent_unless_a_site_lacks_it(tmp_path: Path) -> None:
    first, _ = rounds(tmp_path)
    made = orders()
    record = made.work("train", 1, "val", model_of(first), site("us", "head"))
    assert sent(record) == {"weights": set(), "steps": set()}
    assert set(named(record)) == {"us", "head"}
    record = made.work("train", 1, "val", model_of(first), site("us", "head"), whole=True)
    assert sent(record) == {"weights": {"us", "head"}, "steps": set()}


def test_the_weights_of_a_release_are_sent(tmp_path: Path) -> None:
    first = saved(tmp_path, 0, {"initial": {"weights_sha256": "ab"}})
    record = orders().work("train", 1, "val", model_of(first), site("us", "head"))
    assert sent(record)["weights"] == {"us", "head"}


def test_of_other_weights_only_what_differs_is_sent(tmp_path: Path) -> None:
    _, second = rounds(tmp_path)
    made = orders()
    made.work("profile", 2, "val", model_of(second), site(*ALL))
    made.answered("centre-a")
    calibrated = {**second.groups, "head": second.groups["head"] * np.float32(2)}
    record = made.work("evaluate", 2, "val", model_with(second, calibrated), site(*ALL))
    assert sent(record) == {"weights": {"head"}, "steps": set()}


def test_a_site_that_holds_less_than_thought_gets_all_of_it(tmp_path: Path) -> None:
    first, second = rounds(tmp_path)
    made = orders()
    made.work("train", 1, "val", model_of(first), site("us", "head"))
    made.answered("centre-a")
    record = made.work("train", 2, "val", model_of(second), site("us", "head"), whole=True)
    assert sent(record) == {"weights": {"us", "head"}, "steps": set()}


def test_a_site_that_missed_a_round_gets_the_weights_whole(tmp_path: Path) -> None:
    first, second = rounds(tmp_path)
    third = saved(tmp_path, 2, {"before": second.state["fingerprints"]})
    made = orders()
    made.work("train", 1, "val", model_of(first), site("us", "mri", "head"))
    made.answered("centre-a")
    record = made.work("train", 3, "val", model_of(third), site("us", "mri", "head"))
    assert sent(record) == {"weights": {"us", "head"}, "steps": set()}


def test_sites_are_told_apart(tmp_path: Path) -> None:
    first, second = rounds(tmp_path)
    made = orders()
    made.work("train", 1, "val", model_of(first), site("us", "head"))
    made.answered("centre-a")
    other = made.work("train", 2, "val", model_of(second), site("us", "head", name="centre-b"))
    assert sent(other)["weights"] == {"us", "head"}


def test_a_private_group_is_sent_until_the_site_has_its_own(tmp_path: Path) -> None:
    first = saved(tmp_path, 0)
    made = orders(strategy={"private_groups": ["us"]})
    assert named(made.work("train", 1, "val", model_of(first), site("us", "head"))).keys() == {
        "us",
        "head",
    }
    later = saved(tmp_path, 1, {"bases": {"centre-a": 1}, "before": {}})
    record = made.work("train", 2, "val", model_of(later), site("us", "head"))
    assert named(record).keys() == {"head"}
    assert read_document(record, "order", TaskOrder).base == 1


@pytest.mark.parametrize(("task", "controls"), [("train", True), ("evaluate", False)])
def test_controls_come_with_training_alone(tmp_path: Path, task: Any, controls: bool) -> None:
    _, second = rounds(tmp_path)
    made = orders(strategy={"local": {"name": "scaffold"}, "private_groups": ["mg"]})
    names = named(made.work(task, 1, "val", model_of(second), site("mg", "us", "head"))).keys()
    assert {n for n in names if "." in n} == ({"us.control", "head.control"} if controls else set())


def test_sites_share_the_serialised_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many orders are under way, a large vector is in memory once; after them, not at
    all."""
    monkeypatch.setattr("her2_common.arrays.ONE_RECORD", 0)
    _, second = rounds(tmp_path)
    made, model = orders(), model_of(second)
    records = [
        made.work("train", 2, "val", model, site("us", *more, "head", name=f"centre-{k}"))
        for k, more in (("a", ()), ("b", ("mri",)), ("c", ()))
    ]
    assert len({id(record["weights"]["us"]) for record in records}) == 1
    assert len(made._arrays) == 2  # in this test us and head are equal
    del records
    assert len(made._arrays) == 0
