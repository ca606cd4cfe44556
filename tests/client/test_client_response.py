"""A site's record of the response evaluation: what is pinned, counted, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from her2_client.keys import init_site
from her2_client.response import Responder, patients_of
from her2_common import __version__
from her2_common.cases import pseudonym
from her2_common.config import Policy, RunConfig, SiteConfig, load
from her2_common.errors import DataError, PolicyError
from her2_common.response.plan import Plan
from her2_common.response.queries import Query
from her2_common.response_wire import ResponseQuery
from her2_common.wire import TaskOrder

PRINT = "ab" * 32


@pytest.fixture
def config(tmp_path: Path) -> SiteConfig:
    """A site that allows the task, whose table has three cases."""
    init_site(tmp_path / "site", name="centre-a", address="localhost:1", threads=1)
    found = load(SiteConfig, tmp_path / "site" / "site.yaml")
    key = bytes.fromhex(found.data.pseudonym_key_file.read_text().strip())
    assert len(key) == 32
    found.data.cases.write_text(
        "case_id,biopsy_ihc,er,pr,anti_her2,ypt,ypn,nat,mg_cc,mri,split\n"
        "one,3,0,1,1,0,0,1,a.dcm,b,test\n"
        "two,0,0,,0,2,,1,,b,test\n"
        "three,3,1,1,1,0,0,0,,,test\n"
    )
    policy = Policy(allowed_tasks=("response",), max_queries=2)
    return found.model_copy(update={"policy": policy})


def order(**changes: Any) -> TaskOrder:
    return TaskOrder(
        **{
            "task": "response",
            "run": "run",
            "version": __version__,
            "round": 1,
            "split": "test",
            "weights": {"head": PRINT},
            "plan": RunConfig(rounds=1),
        }
        | changes
    )


def scores(config: SiteConfig, *cases: str) -> dict[str, np.ndarray]:
    key = bytes.fromhex(config.data.pseudonym_key_file.read_text().strip())
    names = np.array([pseudonym(key, case) for case in cases])
    return {"pseudonyms": names, "fused": np.linspace(0, 1, len(cases))}


def test_rows_are_what_the_table_says_of_the_scored_cases(config: SiteConfig) -> None:
    rows = patients_of(config, scores(config, "three", "one", "two"))
    columns = {name: rows.column(name).tolist() for name in ("biopsy", "therapy", "score")}
    assert columns == {"biopsy": [1, 1, 0], "therapy": [1, 1, 0], "score": [0, 0.5, 1]}
    # ER 0 with PR blank is unknown
    np.testing.assert_array_equal(rows.column("hr"), [1, 1, np.nan])
    np.testing.assert_array_equal(rows.column("pcr"), [np.nan, 1, 0])  # nat 0: no response
    np.testing.assert_array_equal(rows.column("modalities"), [np.nan, 5, 4])
    table = config.data.cases
    table.write_text(table.read_text().replace("1,0,0,1,a.dcm", "1,is,0,1,a.dcm"))
    for definition, expected in (("ypT0/is ypN0", 1), ("ypT0 ypN0", 0)):
        rows = patients_of(config, scores(config, "one"), definition)  # type: ignore[arg-type]
        assert rows.column("pcr").tolist() == [expected]


def test_the_cases_of_one_patient_are_one_row(config: SiteConfig) -> None:
    table = (
        "case_id,patient_id,biopsy_ihc,anti_her2,ypt,ypn,mg_cc,us,split\n"
        "one,p,3,1,0,0,a.dcm,,test\n"
        "two,p,0,1,,,,b.dcm,test\n"
        "three,q,3,1,2,0,c.dcm,,test\n"
    )
    config.data.cases.write_text(table)
    rows = patients_of(config, scores(config, "one", "three", "two"))
    columns = ("biopsy", "therapy", "pcr", "modalities", "score")
    assert [rows.column(name).tolist() for name in columns] == [
        [1, 1], [1, 1], [1, 0], [3, 1], [1, 0.5]
    ]  # fmt: skip
    config.data.cases.write_text(table.replace("two,p,0,1,,", "two,p,0,1,2,0"))
    with pytest.raises(DataError, match="rows 2 and 3: expected one pcr of one patient"):
        patients_of(config, scores(config, "one", "three", "two"))


def test_a_case_that_is_gone_or_was_moved_is_refused(config: SiteConfig) -> None:
    with pytest.raises(DataError, match="not in the case table"):
        patients_of(config, scores(config, "four"))
    table = config.data.cases
    table.write_text(table.read_text().replace("b,test", "b,train"))
    with pytest.raises(
        DataError, match="row 2: expected a test case, as at ingest, got one of the"
    ):
        patients_of(config, scores(config, "one"))


@pytest.fixture
def responder(config: SiteConfig, monkeypatch: pytest.MonkeyPatch) -> Responder:
    """The site, its cases scored beforehand."""
    made = Responder(config, "cpu")
    kept = scores(config, "one", "two", "three")
    monkeypatch.setattr(made, "_scores", lambda _asked: kept)
    return made


PLAN = Plan(min_cell=1, threshold=0.5)
TABLES = Query("tables")


def test_the_first_query_pins_and_each_different_one_counts(
    responder: Responder, config: SiteConfig
) -> None:
    path = config.state / "response" / "run.json"
    assert responder.answer(order(), {}, PLAN, TABLES).queries == 1
    assert responder.answer(order(), {}, PLAN, TABLES).queries == 1
    assert responder.answer(order(), {}, PLAN, Query("scores", "treated")).queries == 2
    record = json.loads(path.read_text())
    assert record["plan"] == PLAN.sha256
    assert path.stat().st_mode & 0o077 == 0
    before = path.read_bytes()
    with pytest.raises(PolicyError, match=r"policy\.max_queries: 2 queries of run were answered"):
        responder.answer(order(), {}, PLAN, Query("scores", "biopsy"))
    assert path.read_bytes() == before
    # Another run has a budget of its own
    assert responder.answer(order(run="other"), {}, PLAN, TABLES).queries == 1


def test_what_differs_in_a_number_is_another_query(responder: Responder) -> None:
    model = Plan(min_cell=1).models[0].name
    for index in (0, 1):
        beta = np.full(9, index / 10)
        query = Query("logistic", model, ("centre-a", "centre-b"), arrays={"beta": beta})
        assert responder.answer(order(), {}, PLAN, query).queries == index + 1


@pytest.mark.parametrize(
    "plan",
    [
        Plan(min_cell=1, threshold=0.5, seed=1),
        Plan(min_cell=1, threshold=0.25),
        Plan(min_cell=1, threshold=0.5, threshold_from="typed at this analysis"),
    ],
)
def test_another_plan_or_threshold_is_refused(responder: Responder, plan: Plan) -> None:
    responder.answer(order(), {}, PLAN, TABLES)
    with pytest.raises(PolicyError, match="under the plan") as caught:
        responder.answer(order(), {}, plan, TABLES)
    assert plan.sha256 in str(caught.value.hint)
    policy = responder.config.policy.model_copy(update={"allowed_plans": (plan.sha256,)})
    responder.config = responder.config.model_copy(update={"policy": policy})
    assert responder.answer(order(), {}, plan, TABLES).queries == 2


def test_a_query_without_a_threshold_is_refused() -> None:
    """The plan's hash covers the threshold, so that a site's list of plans does, too."""
    asked = ResponseQuery.of(TABLES, PLAN).model_dump()
    assert "threshold" not in asked
    asked["analysis"] |= {"threshold": "release", "threshold_from": "release"}
    with pytest.raises(ValueError, match="expected a threshold that is a number"):
        ResponseQuery(**asked)


def test_other_weights_are_refused(responder: Responder) -> None:
    responder.answer(order(), {}, PLAN, TABLES)
    with pytest.raises(PolicyError, match="scored with other weights"):
        responder.answer(order(weights={"head": "cd" * 32}), {}, PLAN, TABLES)


def test_a_damaged_record_answers_nothing(responder: Responder, config: SiteConfig) -> None:
    responder.answer(order(), {}, PLAN, TABLES)
    (config.state / "response" / "run.json").write_text('{"plan"')
    with pytest.raises(PolicyError, match="record of answered queries is damaged"):
        responder.answer(order(), {}, PLAN, TABLES)


@pytest.mark.parametrize("split", ["train", "val"])
def test_only_test_cases_are_evaluated(responder: Responder, split: str) -> None:
    with pytest.raises(PolicyError, match=f"response on the {split} cases"):
        responder.answer(order(split=split), {}, PLAN, TABLES)


def test_the_stricter_limit_holds(responder: Responder, config: SiteConfig) -> None:
    assert config.policy.min_cell == 10
    query = Query("scores", "treated")
    assert responder.answer(order(), {}, PLAN, query).arrays is None
    open_ = config.policy.model_copy(update={"min_cell": 1})
    responder.config = config.model_copy(update={"policy": open_})
    assert responder.answer(order(), {}, PLAN, query).arrays is not None


def test_the_default_policy_does_not_allow_it() -> None:
    assert "response" not in Policy().allowed_tasks
