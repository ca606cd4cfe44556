"""`her2-server response --table`: what it reads, refuses and computes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
import yaml
from sklearn.metrics import roc_auc_score
from statsmodels.stats.contingency_tables import StratifiedTable
from tests.common.response.cohorts import assert_same, cohort
from tests.server.response_tables import PLAN, Row, four, rows_of, write

from her2_common.errors import ConfigError, TableError
from her2_common.response.plan import Model, Plan
from her2_server.response.command import freeze, over_tables, read_plan, write_plan
from her2_server.response.tables import read_tables

ISPY2 = Path(__file__).parents[3] / "shared" / "data" / "ispy2_metadata.csv"


@pytest.fixture
def tables(tmp_path: Path) -> list[Path]:
    return four(tmp_path)


# --- reading -------------------------------------------------------------------------------------


def test_a_table_becomes_the_rows_of_its_centre(tables: list[Path]) -> None:
    found = read_tables(tables[:1])
    (patients,) = found.centres
    want = cohort(0, 160, levels=64)
    for name in ("pcr", "biopsy", "therapy", "hr", "t", "n", "score", "modalities"):
        assert_same(patients.column(name), want[name])
    assert patients.centre == "north"
    assert found.warnings == []


def test_a_column_of_centres_divides_a_table(tmp_path: Path, tables: list[Path]) -> None:
    rows = [{**row, "centre": name} for name, seed in (("b", 1), ("a", 0)) for row in
            rows_of(name, seed)]  # fmt: skip
    found = read_tables([write(tmp_path / "all.csv", rows)])
    assert sorted(patients.centre for patients in found.centres) == ["a", "b"]


def change(key: str, value: Any, row: int = 3) -> Callable[[list[Row]], list[Row]]:
    def apply(rows: list[Row]) -> list[Row]:
        rows[row][key] = value
        return rows

    return apply


def without(*keys: str) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: [{k: v for k, v in row.items() if k not in keys} for row in rows]


def added(**more: Any) -> Callable[[list[Row]], list[Row]]:
    return lambda rows: [{**row, **more} for row in rows]


FAULTS: list[tuple[Callable[[list[Row]], list[Row]], str]] = [
    (change("score", 1.5), r"row 5, column score: expected a number from 0 to 1, got '1\.5'"),
    (change("score", "high"), "row 5, column score: expected a number from 0 to 1, got 'high'"),
    (change("score", "nan"), "row 5, column score: expected a number from 0 to 1"),
    (change("clinical_t", 7), "column clinical_t: expected a whole number from 0 to 4, got '7'"),
    (without("score"), "expected one column of score and her2_imaging, got none"),
    (added(her2_imaging=1), "expected one column of score and her2_imaging, got both"),
    (without("ypt", "ypn"), r"column 'pcr' \(or ypt and ypn\) is missing"),
    (without("biopsy_ihc"), r"column 'biopsy_her2' \(or biopsy_ihc and biopsy_ish\) is missing"),
    (without("anti_her2"), "column 'anti_her2' is missing from the header: without it nothing"),
    (without("case_id"), "column 'case_id' is missing from the header"),
    (added(clinicalt=1), "unknown column 'clinicalt'"),
    (added(pcr=1), r"row \d+: pcr is 1, but ypt 2 with ypn 0 means 0"),
    (added(biopsy_her2=0), r"biopsy_her2 is 0, but biopsy_ihc 3 with biopsy_ish blank means 1"),
    (change("case_id", "north-0"), "row 5: case_id is the same as in row 2"),
    (change("case_id", ""), "row 5: case_id is blank"),
    (added(split="train"), "expected held-out cases, got those of the train and val splits alone"),
    (added(centre=""), "row 2, column centre: expected a name"),
    (added(modalities="ct"), "column modalities: expected mg, us, mri, joined by [+], got 'ct'"),
    (lambda rows: [{**row, "ypt": "2"} for row in rows],
     r"expected patients with and without pCR at every centre, got one kind: north \(without\)"),
    (lambda rows: [{**row, "ypt": ""} for row in rows], r"got one kind: north \(none at all\)"),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_a_bad_table_is_refused_with_its_message(
    tmp_path: Path, fault: Callable[[list[Row]], list[Row]], message: str
) -> None:
    path = write(tmp_path / "north.csv", fault(rows_of("north", 0, 40)))
    with pytest.raises(TableError, match=message):
        over_tables([path], PLAN, 0.5, None)


def test_ids_of_two_centres_are_those_of_different_patients(tables: list[Path]) -> None:
    rows = rows_of("east", 1)
    rows[7]["patient_id"] = rows[9]["patient_id"] = "north-p3"
    write(tables[1], rows)
    found = read_tables(tables)
    assert sum(patients.rows for patients in found.centres) == sum(
        len(path.read_text().splitlines()) - 1 for path in tables
    )
    told = [line for line in found.warnings if line.startswith("east.csv: 1 ")]
    assert [("earlier row" in line, "earlier table" in line) for line in told] == [
        (True, False),
        (False, True),
    ]
    assert "north-p3" not in " ".join(found.warnings)


def test_ids_of_two_centres_in_one_table_are_those_of_different_patients(tmp_path: Path) -> None:
    rows = rows_of("north", 0)
    for index, row in enumerate(rows):
        row |= {"centre": "ab"[index % 2], "patient_id": index // 2}
    assert read_tables([write(tmp_path / "both.csv", rows)]).warnings == []
    rows[2]["patient_id"] = 0  # the other of centre a
    (warning,) = read_tables([write(tmp_path / "both.csv", rows)]).warnings
    assert "1 rows are of a patient with an earlier row" in warning


def test_rows_without_a_score_are_counted_and_named(tmp_path: Path) -> None:
    rows = rows_of("north", 0)
    for index in (3, *range(20, 32)):
        rows[index]["score"] = ""
    for index, row in enumerate(rows):
        row["split"] = "train" if index == 3 else "test"  # row 3 is not evaluated anyway
    found = read_tables([write(tmp_path / "north.csv", rows)])
    (warning,) = [line for line in found.warnings if "no score" in line]
    assert f"12 of {len(rows) - 1} rows" in warning
    assert "row 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, ...)" in warning
    assert np.isnan(found.centres[0].column("score")).sum() == 12


def test_two_tables_of_one_centre_are_refused(tmp_path: Path, tables: list[Path]) -> None:
    (tmp_path / "more").mkdir()
    again = write(tmp_path / "more" / "north.csv", rows_of("other", 9))
    with pytest.raises(TableError, match="centre 'north' is that of another table"):
        read_tables([tables[0], again])
    with pytest.raises(TableError, match="centre 'north' is that of another table"):
        read_tables([tables[0], tables[0]])


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    rows = rows_of("north", 0)
    for index, row in enumerate(rows):
        row |= {"split": "train" if index < 50 else "test", "nat": int(index % 40 != 0)}
    rows[60]["patient_id"] = rows[61]["patient_id"]
    found = read_tables([write(tmp_path / "north.csv", without("clinical_n")(rows))])
    assert found.centres[0].rows == 110
    assert np.isnan(found.centres[0].column("pcr")).sum() == 2  # those of nat 0 that are left
    told = " | ".join(found.warnings)
    for part in ("50 rows of the train", "4 rows without neoadjuvant", "1 rows are of a patient",
                 "no column clinical_n: N is unknown"):  # fmt: skip
        assert part in told


def test_calls_of_0_and_1_need_no_threshold(tables: list[Path], tmp_path: Path) -> None:
    rows = rows_of("north", 0)
    called = [{**row, "her2_imaging": int(row["score"] >= 0.5)} for row in rows]
    called = without("score")(called)
    found = over_tables([write(tmp_path / "called.csv", called)], PLAN, None, None)
    scored = over_tables(tables[:1], PLAN, 0.5, None)
    assert found["threshold_from"] == "calls of 0 and 1"
    for key in ("positive", "negative", "odds_ratio", "verdict"):
        assert_same(found["primary"][key], scored["primary"][key])


def test_a_centre_of_one_class_can_be_kept(tables: list[Path], tmp_path: Path) -> None:
    alike = write(tmp_path / "alike.csv", [{**r, "ypt": "2"} for r in rows_of("alike", 5, 30)])
    with pytest.raises(TableError, match=r"got one kind: alike \(without\)"):
        over_tables([*tables, alike], PLAN, 0.5, None)
    plan = PLAN.model_copy(update={"one_class_centres": "keep"})
    found = over_tables([*tables, alike], plan, 0.5, None)
    assert "alike (without): all known responses are alike" in found["warnings"]
    assert_same(
        found["primary"]["odds_ratio"],
        over_tables(tables, plan, 0.5, None)["primary"]["odds_ratio"],
    )


# --- threshold and plan --------------------------------------------------------------------------


def test_a_threshold_is_needed_and_fixed_by_the_plan(tables: list[Path]) -> None:
    with pytest.raises(ConfigError, match="expected a frozen threshold, got none"):
        over_tables(tables, PLAN, None, None)
    with pytest.raises(ConfigError, match="--threshold: expected a number from 0 to 1"):
        over_tables(tables, PLAN, 1.5, None)
    fixed = Plan(threshold=0.25)
    assert freeze(fixed, None, None).origin == "plan"
    with pytest.raises(ConfigError, match=r"expected 0\.25, which the plan fixes, got 0\.5"):
        freeze(fixed, 0.5, None)


def test_the_default_plan_can_be_written_once_and_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    write_plan(path)
    assert read_plan(path) == Plan() == read_plan(None)
    assert set(yaml.safe_load(path.read_text())) == set(Plan.model_fields)
    with pytest.raises(ConfigError, match="exists already"):
        write_plan(path)
    path.write_text("treshold: 0.5\n")
    with pytest.raises(ConfigError, match=r"treshold: unknown key; did you mean 'threshold'\?"):
        read_plan(path)


# --- numbers -------------------------------------------------------------------------------------


def test_tables_of_many_centres_give_the_pooled_numbers(tables: list[Path]) -> None:
    found = over_tables(tables, PLAN, 0.5, None)
    rows = [cohort(seed, 160, levels=64) for seed in range(4)]
    pcr, score, biopsy = (
        np.concatenate([part[name] for part in rows]) for name in ("pcr", "score", "biopsy")
    )
    assert found["n"] == found["analysed"] == 640
    assert_same(found["auc"]["imaging"]["estimate"], roc_auc_score(pcr, score))
    assert_same(found["auc"]["biopsy"]["estimate"], roc_auc_score(pcr, biopsy))
    strata = []
    for part in rows:
        treated = (part["biopsy"] == 1) & (part["therapy"] == 1)
        calls, outcome = part["score"][treated] >= 0.5, part["pcr"][treated] == 1
        strata.append(
            np.array([[np.sum(c & o) for o in (outcome, ~outcome)] for c in (calls, ~calls)])
        )
    oracle = StratifiedTable(strata)
    assert_same(found["primary"]["odds_ratio"]["estimate"], float(oracle.oddsratio_pooled))
    assert_same(found["primary"]["cmh"]["p_value"], float(oracle.test_null_odds().pvalue))
    assert found["primary"]["n"] == int(np.sum(strata))
    assert found["auc"]["on_grid"] is True


def test_small_cells_are_not_shown_and_are_listed(tables: list[Path]) -> None:
    open_, closed = (over_tables(tables, plan, 0.5, None) for plan in (PLAN, Plan(min_cell=30)))
    assert open_["suppressed"] == []
    hidden = {(line["what"], line["which"]) for line in closed["suppressed"]}
    assert {("primary.by_centre", name) for name in ("north", "east", "south", "west")} <= hidden
    assert closed["primary"]["by_centre"][0] == {"centre": "east", "suppressed": True}
    assert_same(closed["primary"]["odds_ratio"], open_["primary"]["odds_ratio"])
    told = "take out the centres that are too small"
    assert any(told in warning for warning in closed["warnings"])
    assert open_["warnings"] == []


@pytest.mark.skipif(not ISPY2.exists(), reason="the real outcomes are not here")
@pytest.mark.parametrize("rule", ["alternating", "by the year of birth", "one"])
def test_real_outcomes_give_what_statsmodels_gives(tmp_path: Path, rule: str) -> None:
    with ISPY2.open(encoding="utf-8") as file:
        read = [row for row in csv.DictReader(file) if row["pCR"] and row["HR"] and row["HER2pos"]]
    centre = {
        "alternating": lambda i, row: f"c{i % 5}",
        "by the year of birth": lambda i, row: f"c{int(float(row['age'] or 0)) // 20}",
        "one": lambda i, row: "c",
    }[rule]
    rows = [
        {"case_id": str(i), "pcr": row["pCR"], "er": row["HR"], "biopsy_her2": row["HER2pos"],
         "anti_her2": row["HER2pos"], "score": row["HER2pos"], "centre": centre(i, row)}
        for i, row in enumerate(read)
    ]  # fmt: skip
    path = write(tmp_path / "ispy2.csv", rows)
    models = (Model(name="hr", terms=("hr", "biopsy", "hr:biopsy"), tested=("hr:biopsy",)),)
    found = over_tables([path], Plan(models=models, one_class_centres="keep"), 0.5, None)
    values = np.array([[float(r["pCR"]), float(r["HR"]), float(r["HER2pos"])] for r in read])
    y, hr, her2 = values.T
    x = np.column_stack([np.ones(len(y)), hr, her2, hr * her2])
    fit = sm.Logit(y, x).fit(disp=0, tol=1e-12)
    model = found["logistic"][0]
    assert_same([t["estimate"] for t in model["terms"].values()], fit.params.tolist(), 1e-9)
    assert_same([t["se"] for t in model["terms"].values()], fit.bse.tolist(), 1e-9)
    assert_same(model["log_likelihood"], float(fit.llf), 1e-9)
    smaller = sm.Logit(y, x[:, :3]).fit(disp=0, tol=1e-12)
    assert_same(model["likelihood_ratio"]["statistic"], 2 * (fit.llf - smaller.llf), 1e-9)
    assert_same(found["auc"]["biopsy"]["estimate"], roc_auc_score(y, her2), 1e-9)
