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

from her2_common.clinical import PCR_DEFINITIONS, PcrDefinition
from her2_common.errors import ConfigError, TableError
from her2_common.model import build_model, get_groups
from her2_common.release import Manifest, read_release, write_release
from her2_common.response.plan import Model, Plan
from her2_common.response.scores_section import HER2_WARNING
from her2_server.report.response import render_response
from her2_server.response import csv_rows, text
from her2_server.response.command import (
    LABEL_UNKNOWN,
    fix_threshold,
    over_tables,
    read_plan,
    write_plan,
)
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
    (change("clinical_t", 7),
     "column clinical_t: expected a clinical stage: one of 0, 1mi, 1, 2, 3, 4, X, got '7'"),
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
    (change("split", ""), "row 5, column split: expected test, train or val, got a blank"),
    (without("split"), "row 2, column split: expected test, train or val, got no such column"),
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


OF_PATIENT = ("ypt", "anti_her2")
"""Columns in which the rows of one patient must agree."""


def test_ids_of_two_centres_are_those_of_different_patients(tables: list[Path]) -> None:
    rows = rows_of("east", 1)
    rows[7]["patient_id"] = rows[9]["patient_id"] = "north-p3"
    rows[9] |= {name: rows[7][name] for name in OF_PATIENT}
    write(tables[1], rows)
    found = read_tables(tables)
    lines = sum(len(path.read_text().splitlines()) - 1 for path in tables)
    assert sum(patients.rows for patients in found.centres) == lines - 1
    told = [line for line in found.warnings if line.startswith("east.csv: 1 ")]
    assert [("earlier row" in line, "earlier table" in line) for line in told] == [
        (False, True),
        (True, False),
    ]
    assert "north-p3" not in " ".join(found.warnings)


def test_ids_of_two_centres_in_one_table_are_those_of_different_patients(tmp_path: Path) -> None:
    rows = rows_of("north", 0)
    for index, row in enumerate(rows):
        row |= {"centre": "ab"[index % 2], "patient_id": index // 2}
    assert read_tables([write(tmp_path / "both.csv", rows)]).warnings == []
    rows[2] |= {name: rows[0][name] for name in OF_PATIENT} | {"patient_id": 0}  # both of centre a
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
    same = ("patient_id", "ypt", "anti_her2", "nat")
    rows[60] |= {name: rows[61][name] for name in same}
    found = read_tables([write(tmp_path / "north.csv", without("clinical_n")(rows))])
    assert found.centres[0].rows == 109
    assert np.isnan(found.centres[0].column("pcr")).sum() == 2  # those of nat 0 that are left
    told = " | ".join(found.warnings)
    for part in ("50 rows of the train", "4 rows without neoadjuvant", "1 rows are of a patient",
                 "no column, so unknown: N (clinical_n)"):  # fmt: skip
        assert part in told


@pytest.mark.parametrize(
    ("trained_on", "message"),
    [
        ("surgical", "expected HER2 labels from before therapy"),
        ("surgical+reference", "expected HER2 labels from before therapy"),
        ("pcr+biopsy", "expected HER2 labels from before therapy"),
        ("surgical+pcr", "expected HER2 labels from before therapy"),
        ("excised", "expected reference, biopsy, surgical, pcr, pcr_strict, joined by"),
    ],
)
def test_scores_of_a_model_that_learnt_from_the_outcome_are_refused(
    tmp_path: Path, trained_on: str, message: str
) -> None:
    path = write(tmp_path / "north.csv", added(trained_on=trained_on)(rows_of("north", 0, 40)))
    with pytest.raises(TableError, match=rf"row 2, column trained_on: {message}"):
        read_tables([path])


@pytest.mark.parametrize("trained_on", ["reference", "biopsy+reference", "reference+pcr", "pcr"])
def test_scores_of_other_models_are_taken(tmp_path: Path, trained_on: str) -> None:
    path = write(tmp_path / "north.csv", added(trained_on=trained_on)(rows_of("north", 0, 40)))
    assert read_tables([path]).trained_on == (trained_on,)


def test_scores_of_her2_and_of_the_response_are_not_mixed(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / f"{name}.csv", added(trained_on=labels)(rows_of(name, seed, 40)))
        for seed, (name, labels) in enumerate([("north", "reference"), ("south", "biopsy+pcr")])
    ]
    with pytest.raises(TableError, match=r"south.csv, column trained_on: .* north.csv"):
        read_tables(paths)


def test_what_the_score_means_is_read_from_the_tables_without_a_release(tmp_path: Path) -> None:
    path = write(tmp_path / "north.csv", added(trained_on="pcr")(rows_of("north", 0, 40)))
    assert HER2_WARNING not in over_tables([path], PLAN, 0.5, None)["net_benefit"]["warning"]
    path = write(tmp_path / "north.csv", added(trained_on="reference")(rows_of("north", 0, 40)))
    assert HER2_WARNING in over_tables([path], PLAN, 0.5, None)["net_benefit"]["warning"]


def test_a_release_that_did_not_score_the_tables_is_refused(tmp_path: Path) -> None:
    release = tmp_path / "release"
    manifest = Manifest(run="a-run", preset="compact", label="reference", image_size=32,
                        volume_size=16, threshold=0.5, groups=["head"])  # fmt: skip
    write_release(release, manifest, get_groups(build_model("compact", 0), ["head"]))
    path = write(tmp_path / "north.csv", added(trained_on="biopsy")(rows_of("north", 0, 40)))
    with pytest.raises(TableError, match=r"column trained_on: expected reference.*got biopsy"):
        over_tables([path], PLAN, None, release)


def test_a_blank_word_on_the_label_is_none(tmp_path: Path) -> None:
    rows = added(trained_on="reference")(rows_of("north", 0, 40))
    rows[3]["trained_on"] = ""
    found = over_tables([write(tmp_path / "north.csv", rows)], PLAN, 0.5, None)
    assert LABEL_UNKNOWN in found["warnings"]


def test_without_a_word_on_the_label_the_result_warns(tmp_path: Path) -> None:
    silent = write(tmp_path / "north.csv", rows_of("north", 0, 40))
    assert LABEL_UNKNOWN in over_tables([silent], PLAN, 0.5, None)["warnings"]
    told = write(tmp_path / "east.csv", added(trained_on="reference")(rows_of("east", 1, 40)))
    assert LABEL_UNKNOWN not in over_tables([told], PLAN, 0.5, None)["warnings"]
    assert LABEL_UNKNOWN in over_tables([silent, told], PLAN, 0.5, None)["warnings"]


def test_hr_and_response_are_derived_as_in_the_case_table(tmp_path: Path) -> None:
    rows = rows_of("north", 0, 8)
    cells = [
        {"er": "0", "pr": "", "ypt": "is", "ypn": "0"},
        {"er": "", "pr": "80%", "ypt": "ypT0", "ypn": "ypN0(i+)"},
        {"er": "0", "pr": "0", "ypt": "X", "ypn": "X"},
        {"er": "neg", "pr": "<1%", "ypt": "", "ypn": "", "no_surgery": "progression"},
        {"er": "0", "pr": "1", "ypt": "", "ypn": "", "nat": 0, "no_surgery": "declined"},
    ]
    rows = [{**row, "no_surgery": "", **more} for row, more in zip(rows, cells, strict=False)]
    path = write(tmp_path / "north.csv", rows)
    nan = np.nan
    expected: dict[PcrDefinition, list[float]] = {
        "ypT0/is ypN0": [1, 0, nan, 0, nan],
        "ypT0 ypN0": [0, 0, nan, 0, nan],
    }
    for definition, pcr in expected.items():
        (north,) = read_tables([path], definition=definition).centres
        np.testing.assert_array_equal(north.column("hr"), [nan, 1, 0, 0, 1])
        np.testing.assert_array_equal(north.column("pcr"), pcr)


def test_pictures_taken_after_therapy_began_do_not_count(tmp_path: Path) -> None:
    rows = [{**row, "us": "u", "mri": "m", "mg_cc": ""} for row in rows_of("north", 0, 4)]
    for row, days in zip(rows, ("", "0", "-2", "30"), strict=True):
        row["mri_days"] = days
    (north,) = read_tables([write(tmp_path / "north.csv", rows)]).centres
    assert north.column("modalities").tolist() == [6, 6, 2, 6]


def test_the_plan_chooses_the_definition_and_the_result_says_it(tmp_path: Path) -> None:
    """With disease in situ left in every responder, nobody has a pCR by the strict definition."""
    rows = [{**row, "ypt": row["ypt"].replace("0", "is")} for row in rows_of("north", 0, 40)]
    paths = [write(tmp_path / "north.csv", rows), write(tmp_path / "east.csv", rows_of("east", 1))]
    strict = PLAN.model_copy(update={"pcr": "ypT0 ypN0", "one_class_centres": "keep"})
    assert strict.sha256 != PLAN.sha256
    found = over_tables(paths, strict, 0.5, None)
    assert found["pcr"] == PCR_DEFINITIONS["ypT0 ypN0"]
    assert "ypT0 ypN0" in found["primary"]["quote"]
    assert "ypT0/is" not in found["primary"]["quote"]
    assert any("north (without)" in warning for warning in found["warnings"])
    assert over_tables(paths, PLAN, 0.5, None)["pcr"] == PCR_DEFINITIONS["ypT0/is ypN0"]


def test_a_patient_with_another_picture_in_training_is_refused(tmp_path: Path) -> None:
    rows = rows_of("north", 0)
    rows[4] |= {"split": "val", "patient_id": rows[9]["patient_id"]}
    with pytest.raises(TableError, match=r"row 11: expected a held-out patient.* in row 6"):
        read_tables([write(tmp_path / "north.csv", rows)], out_of_fold=True)


def test_training_patients_never_change_the_verdict(tmp_path: Path) -> None:
    """A score that has learnt the response of its training patients by heart: among those held
    out it tells nothing, and with the column split lost, the table is not evaluated."""
    rng = np.random.default_rng(3)
    rows = rows_of("north", 0, 600)
    for index, row in enumerate(rows):
        row["split"] = "test" if index % 5 == 0 else ("val" if index % 5 == 1 else "train")
        learnt = rng.random() < 0.8 and row["split"] == "train"
        right = 0.9 if row["ypt"] == "0" else 0.1
        row["score"] = right if learnt else round(float(rng.random()), 3)
    told = over_tables([write(tmp_path / "north.csv", rows)], PLAN, 0.5, None)
    assert told["n"] == 120
    assert told["primary"]["odds_ratio"]["low"] < 1
    lost = write(tmp_path / "lost.csv", without("split")(rows))
    with pytest.raises(TableError, match="column split"):
        over_tables([lost], PLAN, 0.5, None)
    stated = over_tables([lost], PLAN, 0.5, None, out_of_fold=True)
    assert stated["primary"]["odds_ratio"]["low"] > 1  # what the refusal prevents
    assert stated["source"]["without_split"] == 600


def test_scores_out_of_fold_are_by_statement_and_the_result_says_so(
    tables: list[Path], tmp_path: Path
) -> None:
    rows = rows_of("north", 0)
    for row in rows[:30]:
        row["split"] = ""
    path = write(tmp_path / "some.csv", rows)
    found = over_tables([path], PLAN, 0.5, None, out_of_fold=True)
    assert (found["n"], found["source"]["without_split"]) == (160, 30)
    assert found["source"]["out_of_fold"] is True
    for shown in (text.summary(found), render_response(found)):
        assert "30 rows have no split" in " ".join(shown.split())
    split = over_tables(tables[:1], PLAN, 0.5, None, out_of_fold=True)
    assert split["source"]["without_split"] == 0
    assert "no split" not in text.summary(split) + render_response(split)


def absent(warnings: list[str]) -> list[str]:
    return [line for line in warnings if line.startswith("no column")]


def test_absent_columns_are_one_line(tables: list[Path], tmp_path: Path) -> None:
    lost = ("er", "pr", "clinical_t", "clinical_n")
    bare = [
        write(
            tmp_path / f"{name}.csv",
            added(trained_on="reference")(without(*lost)(rows_of(name, seed))),
        )
        for seed, name in enumerate(("a", "b", "c"))
    ]
    (line,) = absent(over_tables(bare, PLAN, 0.5, None)["warnings"])
    for what in ("HR status (er or pr)", "T (clinical_t)", "N (clinical_n)"):
        assert what in line
    assert "a.csv" not in line  # all of them
    some = write(tmp_path / "d.csv", without("clinical_t")(rows_of("d", 5)))
    (line,) = absent(over_tables([*tables, some], PLAN, 0.5, None)["warnings"])
    assert "T (clinical_t) in d.csv" in line


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
    with pytest.raises(ConfigError, match="expected a threshold, got none"):
        over_tables(tables, PLAN, None, None)
    with pytest.raises(ConfigError, match="--threshold: expected a number from 0 to 1"):
        over_tables(tables, PLAN, 1.5, None)
    fixed = Plan(threshold=0.25)
    assert fix_threshold(fixed, None, None).threshold_from == "plan"
    with pytest.raises(ConfigError, match=r"expected 0\.25, which the plan fixes, got 0\.5"):
        fix_threshold(fixed, 0.5, None)


def test_a_threshold_between_two_scores_is_refused_with_both(tables: list[Path]) -> None:
    with pytest.raises(ConfigError, match=r"such as 0\.41015625 or 0\.4111328125, got 0\.4102"):
        over_tables(tables, PLAN, 0.4102, None)
    with pytest.raises(ValueError, match=r"such as 0\.41015625 or 0\.4111328125, got 0\.4102"):
        Plan(threshold=0.4102)


@pytest.mark.parametrize(
    ("score", "threshold", "positive"),
    [(0.4996, 0.5, 0), (0.5, 0.5, 160), (0.4103, 0.41015625, 160), (0.4101, 0.41015625, 0)],
)
def test_rounding_moves_no_score_across_the_threshold(
    tmp_path: Path, score: float, threshold: float, positive: int
) -> None:
    path = write(tmp_path / "north.csv", added(score=score)(rows_of("north", 0)))
    found = over_tables([path], PLAN, threshold, None)
    calls = {part["model"]: part["n"] for part in found["discordance"]["strata"] if part["n"]}
    assert set(calls) == {int(positive > 0)}
    point = found["operating_points"]["points"][0]
    assert point["sensitivity"]["k"] == (point["sensitivity"]["n"] if positive else 0)


def test_a_typed_threshold_is_not_called_frozen(tables: list[Path], tmp_path: Path) -> None:
    typed = over_tables(tables, PLAN, 0.5, None)
    planned = over_tables(tables, Plan(min_cell=1, threshold=0.5), None, None)
    assert (typed["threshold_frozen"], planned["threshold_frozen"]) == (False, True)
    assert_same(typed["primary"], planned["primary"])
    words = [" ".join((text.summary(d) + render_response(d)).lower().split())
             for d in (typed, planned)]  # fmt: skip
    assert "frozen threshold" not in words[0]
    assert "not frozen" in words[0]
    assert "frozen threshold" in words[1]
    assert "not frozen" not in words[1]


def test_the_hash_covers_the_threshold_and_its_origin(tables: list[Path], tmp_path: Path) -> None:
    release = tmp_path / "release"
    manifest = Manifest(run="a-run", preset="compact", label="reference", image_size=32,
                        volume_size=16, threshold=0.5, groups=["head"])  # fmt: skip
    write_release(release, manifest, get_groups(build_model("compact", 0), ["head"]))
    found = [
        over_tables(tables, PLAN, None, release),
        over_tables(tables, PLAN, 0.5, None),
        over_tables(tables, PLAN, 0.25, None),
        over_tables(tables, Plan(min_cell=1, threshold=0.5), None, None),
    ]
    assert len({document["plan"]["sha256"] for document in found}) == 4
    document = found[0]["plan"]["document"]
    assert (document["threshold"], document["threshold_from"]) == (0.5, "release")
    assert document["release_sha256"] == read_release(release)[0].digest
    # Typed or not, the release's own threshold is the release's
    assert over_tables(tables, PLAN, 0.5, release)["plan"] == found[0]["plan"]
    # The plan of the result is a plan, and holds for no other release
    again = Plan(**document)
    assert over_tables(tables, again, None, release)["plan"] == found[0]["plan"]
    write_release(release, manifest, get_groups(build_model("compact", 1), ["head"]))
    with pytest.raises(ConfigError, match="that of another release"):
        over_tables(tables, again, None, release)
    # The same weights with another threshold are another release, as in source.release_sha256
    lower = manifest.model_copy(update={"threshold": 0.25})
    write_release(release, lower, get_groups(build_model("compact", 0), ["head"]))
    with pytest.raises(ConfigError, match="that of another release"):
        over_tables(tables, again, None, release)


@pytest.mark.parametrize(
    "keys",
    [
        {"threshold_from": "plan"},
        {"release_sha256": "a" * 64},
        {"threshold": 0.5, "threshold_from": "release"},
        {"threshold": 0.5, "release_sha256": "a" * 64},
        {"threshold": 0.5, "threshold_from": "me"},
    ],
)
def test_an_origin_that_does_not_fit_the_threshold_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"threshold_from|release_sha256"):
        Plan(**keys)


def test_the_default_plan_can_be_written_once_and_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    write_plan(path, Plan())
    assert read_plan(path) == Plan() == read_plan(None)
    assert set(yaml.safe_load(path.read_text())) == set(Plan.model_fields)
    with pytest.raises(ConfigError, match="exists already"):
        write_plan(path, Plan())
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
    assert open_["warnings"] == [LABEL_UNKNOWN]


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
        {"case_id": str(i), "pcr": row["pCR"], "er": row["HR"], "pr": row["HR"],
         "biopsy_her2": row["HER2pos"], "anti_her2": row["HER2pos"], "score": row["HER2pos"],
         "centre": centre(i, row),
         "split": "test"}
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


# --- what is compared, and who -------------------------------------------------------------------


def test_the_rows_of_one_patient_are_one_patient(tmp_path: Path, tables: list[Path]) -> None:
    """A second lesion of every patient, less suspicious, of a lower stage, without a response."""
    rows = rows_of("north", 0)
    seconds = [
        row | {"case_id": f"{row['case_id']}-2", "score": row["score"] / 2, "clinical_t": 0,
               "ypt": "", "ypn": "", "biopsy_ihc": 1}
        for row in rows
    ]  # fmt: skip
    (tmp_path / "two").mkdir()
    found = read_tables([write(tmp_path / "two" / "north.csv", [*rows, *seconds])])
    (want,) = read_tables(tables[:1]).centres
    assert_same(found.centres[0].columns, want.columns)
    assert [f"{len(rows)} rows are of a patient" in text for text in found.warnings] == [True]


def test_two_responses_of_one_patient_are_an_error_with_both_rows(tmp_path: Path) -> None:
    rows = rows_of("north", 0, 40)
    other = rows[3] | {"case_id": "again", "ypt": "2" if rows[3]["ypt"] == "0" else "0",
                       "anti_her2": 1 - rows[3]["anti_her2"]}  # fmt: skip
    with pytest.raises(TableError) as caught:
        read_tables([write(tmp_path / "north.csv", [*rows, other])])
    for column in ("pcr", "anti_her2"):
        line = f"row 42: {column} differs from that in row 5, of the same patient"
        assert line in str(caught.value)


def test_a_constant_biopsy_is_not_compared(tmp_path: Path) -> None:
    """A study of biopsy-positive patients alone."""
    paths = [
        write(tmp_path / f"{name}.csv", [r | {"biopsy_ihc": 3} for r in rows_of(name, seed)])
        for seed, name in enumerate(("north", "east", "south"))
    ]
    found = over_tables(paths, PLAN, 0.5, None)
    why = "the biopsy says the same of all patients, so that nothing is compared"
    auc = found["auc"]
    assert (auc["biopsy"], auc["paired_delong"], auc["not_compared"]) == (None, None, why)
    assert auc["imaging"]["low"] < auc["imaging"]["estimate"]
    assert (auc["stratified"]["biopsy"], auc["stratified"]["paired_delong"]) == (None, None)
    assert {line["biopsy"] for line in auc["by_centre"].values()} == {None}
    assert found["mcnemar"] == {"refused": why}
    assert found["reclassification"]["not_compared"] == why
    assert found["reclassification"]["nri"] == {"pcr": None, "no_pcr": None}
    assert "biopsy" in {part["column"] for part in found["logistic"][0]["dropped"]}
    assert not {line["name"] for line in found["holm"]} & {
        "paired DeLong: imaging against biopsy", "McNemar: with pCR", "McNemar: without pCR",
    }  # fmt: skip
    assert f"Not compared: {why}." in " ".join(text.summary(found).split())
    assert render_response(found).count(why) == 3
    rows = [line for line in csv_rows.rows(found) if line["section"] in ("auc", "mcnemar")]
    assert not [line for line in rows if "biopsy" in line["name"].split() and "p" in line]


def test_a_threshold_of_0_compares_nothing_and_says_so_everywhere(tables: list[Path]) -> None:
    found = over_tables(tables, PLAN, 0.0, None)
    primary = found["primary"]
    assert primary["verdict"] == "not compared"
    for name in ("odds_ratio", "exact_odds_ratio", "risk_difference", "risk_ratio", "cmh",
                 "breslow_day", "heterogeneity", "power", "by_centre_and_hr"):  # fmt: skip
        assert primary[name] is None, name
    assert "interval" not in primary["quote"]
    assert "the model says the same" in found["mcnemar"]["refused"]
    lines = text.summary(found).splitlines()
    assert lines[0] == "Verdict: not compared"
    assert not [line for line in lines if "odds ratio, " in line and "none" not in line]
    assert '<div class="verdict not-compared">' in render_response(found)
    rows = [row for row in csv_rows.rows(found) if row["section"] == "primary"]
    assert [row["verdict"] for row in rows if "verdict" in row] == ["not compared"]
    assert {row["name"] for row in rows if "p" in row} == set()


def test_centres_that_contradict_each_other_are_not_supported_anywhere(tmp_path: Path) -> None:
    samples = {"a": [60, 20, 20, 60], "b": [15, 30, 30, 15], "c": [30, 20, 20, 30]}
    paths = []
    for name, counts in samples.items():
        kinds = np.repeat([(1, 1), (1, 0), (0, 1), (0, 0)], counts, axis=0).tolist()
        rows = [
            {"case_id": f"{name}{i}", "her2_imaging": call, "pcr": pcr, "biopsy_her2": 1,
             "anti_her2": 1, "split": "test"}
            for i, (call, pcr) in enumerate(kinds)
        ]  # fmt: skip
        paths.append(write(tmp_path / f"{name}.csv", rows))
    found = over_tables(paths, PLAN, None, None)
    assert (found["primary"]["verdict"], found["primary"]["opposed"]) == ("centres differ", ["b"])
    assert text.summary(found).startswith("Verdict: centres differ\n")
    page = render_response(found)
    assert '<div class="verdict centres-differ">' in page
    assert 'class="verdict supported"' not in page
    named = {row["centre"]: row["verdict"] for row in csv_rows.rows(found) if "verdict" in row}
    assert named[""] == "centres differ"
    assert set(named) == {"", "a", "b", "c"}
