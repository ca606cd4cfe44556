"""A reader of the report, who knows every sum, cannot tell of any count that it is small."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from her2_client.policy import described
from her2_server.suppression import SECTIONS, Published, published, withhold_counts

SPLITS = ("train", "val", "test")
MODALITIES = ("mg", "us", "mri")
NAMES = ("north", "south", "east", "west")

Cell = tuple[str, str, str, int]
"""Site, split, combination, class."""
Cells = dict[Cell, int]
Name = tuple[str, ...]
SOURCES = ("biopsy", "excised_untreated")
REASONS = ("no_image", "not_tested")
Parts = dict[Name, int]
"""(site, "label_sources", source) and (site, "left_out_for", reason): cases."""


def invent(seed: int, sites: int, size: int) -> tuple[Cells, Parts]:
    """Cases by cell, those used by the source of their label, those left out by the reason."""
    rng = np.random.default_rng(seed)
    cells: Cells = {}
    for site in NAMES[:sites]:
        combinations = rng.choice(["mg", "us", "mg+us", "mri", "mg+us+mri"], 3, replace=False)
        many = rng.integers(1, size + 1)
        for split, name, label in itertools.product(SPLITS, combinations.tolist(), (0, 1)):
            share = {"train": 3, "val": 1, "test": 2}[split]
            cells[site, split, name, label] = int(rng.poisson(many * share * (0.7, 0.4)[label] / 6))
    parts: Parts = {}
    for site in NAMES[:sites]:
        used = sum(n for cell, n in cells.items() if cell[0] == site)
        parts |= parts_of(site, int(rng.binomial(used, 0.1)), used, rng.integers(0, 15, 2).tolist())
    return cells, parts


def parts_of(site: str, excised: int, used: int, left_out: list[int]) -> Parts:
    sources = dict(zip(SOURCES, (used - excised, excised), strict=True))
    reasons = dict(zip(REASONS, left_out, strict=True))
    return {(site, "label_sources", name): n for name, n in sources.items()} | {
        (site, "left_out_for", name): n for name, n in reasons.items()
    }


def at(parts: Parts, site: str, section: str) -> dict[str, int]:
    return {name[2]: n for name, n in parts.items() if name[:2] == (site, section)}


def definitions(cells: Cells, parts: Parts) -> dict[Name, np.ndarray]:
    """Every count that a report may show, and the rests that follow, as sums of cells and parts.

    What everybody knows to be 0 stands under (site, "known").
    """
    sites = list(dict.fromkeys(cell[0] for cell in cells))

    def row(section: Name = (), **wanted: Any) -> np.ndarray:
        chosen = []
        for site, split, combination, label in cells:
            true = {"site": site, "split": split, "combination": combination, "label": label}
            having = wanted.get("modality") in (None, *combination.split("+"))
            chosen.append(having and all(wanted.get(k, v) == v for k, v in true.items()))
        inside = [not section] * len(cells)
        of_parts = [bool(section) and name[: len(section)] == section for name in parts]
        return np.array([*np.logical_and(chosen, inside), *of_parts], float)

    result: dict[Name, np.ndarray] = {}
    for split in ("val", "test"):
        groups: dict[Name, dict[str, Any]] = {(split, "all"): {}}
        groups |= {(split, "by_centre", site): {"site": site} for site in sites}
        groups |= {(split, "by_combination", c): {"combination": c} for _, _, c, _ in cells}
        groups |= {(split, "by_modality", m): {"modality": m} for m in MODALITIES}
        for name, of in groups.items():
            for label in (0, 1):
                result[*name, str(label)] = row(split=split, label=label, **of)
    for site in sites:
        result[site, "flow", "accepted"] = row(site=site)
        result[site, "flow", "left_out"] = row((site, "left_out_for"))
        result[site, "flow", "in_table"] = row(site=site) + row((site, "left_out_for"))
        result[site, "known"] = row(site=site) - row((site, "label_sources"))
        for name in parts:
            if name[0] == site and parts[name]:  # a site names what it has
                result[name] = row(name)
        for split in SPLITS:
            result[site, "cases", split] = row(site=site, split=split)
            result[site, "positives", split] = row(site=site, split=split, label=1)
            result[site, "negatives", split] = row(site=site, split=split, label=0)
        for m in MODALITIES:
            result[site, "modalities", m] = row(site=site, modality=m)
        for combination in dict.fromkeys(c for s, _, c, _ in cells if s == site):
            name = site, "combinations", combination
            result[name] = row(site=site, combination=combination)
    return result


def run_of(
    cells: Cells, parts: Parts, min_cell: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Scores by split, and what the sites tell of themselves."""
    scores: dict[str, Any] = {"test": {}, "val": {}}
    accounts = []
    for site in dict.fromkeys(name[0] for name in parts):
        reasons = at(parts, site, "left_out_for")
        own = {cell[1:]: n for cell, n in cells.items() if cell[0] == site}
        combinations = list(dict.fromkeys(name for _, name, _ in own))
        for split in scores:
            keys = {f"fused|{c}": [own[split, c, k] for k in (0, 1)] for c in combinations}
            for m in MODALITIES:
                having = [
                    n for key, n in keys.items() if m in key.removeprefix("fused|").split("+")
                ]
                keys[f"single|{m}"] = np.sum(having, axis=0).tolist() if having else [0, 0]
            scores[split][site] = {key: tuple(n) for key, n in keys.items() if sum(n)}
        told = described(
            min_cell,
            left_out=sum(reasons.values()),
            cases={s: sum(n for (t, _, _), n in own.items() if s == t) for s in SPLITS},
            positives={s: sum(own[s, c, 1] for c in combinations) for s in SPLITS},
            combinations={
                c: sum(n for (_, d, _), n in own.items() if c == d) for c in combinations
            },
            label_sources={k: n for k, n in at(parts, site, "label_sources").items() if n},
            left_out_for={k: n for k, n in reasons.items() if n},
        )
        modalities: dict[str, int | None] = {}
        for m in MODALITIES:
            with_m = [n for c, n in told["combinations"].items() if m in c.split("+")]
            modalities[m] = None if None in with_m else sum(n or 0 for n in with_m)
        accounts.append({"name": site, "modalities": modalities, **told})
    return scores, accounts


def on_the_page(accounts: list[dict[str, Any]], shown: Published, rows: Any) -> set[Name]:
    """The names of ``rows`` whose counts a reader sees."""
    told = {
        (one["name"], section, key)
        for one in accounts
        for section in SECTIONS
        for key, value in one[section].items()
        if value is not None
    }
    return {name for name in rows if name in told or name[:-1] in shown or name[-1] == "known"}


def certain(
    rows: dict[Name, np.ndarray], true: dict[Name, int], seen: set[Name], limit: int
) -> Any:
    """The small counts that a reader can tell to be small."""
    known = np.array([rows[name] for name in sorted(seen)]).reshape(len(seen), -1)
    values = np.array([true[name] for name in sorted(seen)])
    wanted = {name for name, value in true.items() if 0 < value < limit}
    for name in sorted(wanted):
        if name not in wanted:
            continue
        found = milp(
            -rows[name],
            integrality=np.ones(rows[name].size),
            bounds=Bounds(0, 10_000),
            constraints=LinearConstraint(known, values, values) if seen else (),
        )
        assert found.status == 0, found.message
        cells = np.round(found.x)
        wanted -= {other for other in wanted if rows[other] @ cells >= limit}
        if name in wanted:
            yield name


def counts_of(cells: Cells, parts: Parts) -> tuple[dict[Name, np.ndarray], Any]:
    rows = definitions(cells, parts)
    vector = np.array([*cells.values(), *parts.values()])
    return rows, {name: int(row @ vector) for name, row in rows.items()}


@settings(max_examples=15, deadline=None)
@example(seed=0, sites=4, size=100, limit=10)
@example(seed=25868, sites=4, size=300, limit=8)  # a site without such cases in one split
@given(
    seed=st.integers(0, 2**32 - 1),
    sites=st.integers(1, 4),
    size=st.sampled_from([8, 30, 100, 300]),
    limit=st.integers(2, 12),
)
def test_no_small_count_follows_from_the_report(
    seed: int, sites: int, size: int, limit: int
) -> None:
    cells, parts = invent(seed, sites, size)
    rows, true = counts_of(cells, parts)
    scores, accounts = run_of(cells, parts, limit)
    shown = published(scores, limit, accounts)
    withhold_counts(accounts, shown)
    for one in accounts:
        for section, part in one.items():
            if section != "name":
                for key, value in part.items():
                    assert value in (None, true[one["name"], section, key])
    seen = on_the_page(accounts, shown, rows)
    assert not [name for name in seen if 0 < true[name] < limit]
    assert list(certain(rows, true, seen, limit)) == []


def four_centres() -> tuple[Cells, Parts]:
    """Test cases 44, 23, 23 and 7: 97 in all."""
    cells: Cells = {}
    for site, n in zip(NAMES, (44, 23, 23, 7), strict=True):
        for split, many in (("train", 10 * n), ("val", 4 * n), ("test", n)):
            positives = many // 2
            cells |= {(site, split, "us", 0): many - positives, (site, split, "us", 1): positives}
    return cells, without_parts(cells, NAMES, 0)


def without_parts(cells: Cells, sites: tuple[str, ...], left_out: int) -> Parts:
    """All labels of one source, those left out for one reason."""
    parts: Parts = {}
    for site in sites:
        used = sum(n for cell, n in cells.items() if cell[0] == site)
        parts |= parts_of(site, 0, used, [left_out, 0])
    return parts


def test_the_attack_finds_what_only_small_counts_withheld_would_show() -> None:
    """As it was: 97 - 44 - 23 - 23 are the 7 test cases of the fourth centre."""
    cells, parts = four_centres()
    rows, true = counts_of(cells, parts)
    _, accounts = run_of(cells, parts, 10)
    seen = on_the_page(accounts, frozenset({("test", "all")}), rows)
    assert ("west", "cases", "test") not in seen
    assert {("west", "cases", "test")} <= set(certain(rows, true, seen, 10))


def test_the_total_does_not_give_the_smallest_centre_away() -> None:
    cells, parts = four_centres()
    scores, accounts = run_of(cells, parts, 10)
    shown = published(scores, 10, accounts)
    withhold_counts(accounts, shown)
    assert ("test", "all") in shown
    assert [one["cases"]["test"] for one in accounts].count(None) >= 2
    assert accounts[0]["cases"]["test"] == 44
    assert ("test", "by_centre", "north") in shown


def test_large_counts_are_all_published() -> None:
    cells = dict.fromkeys(invent(1, 3, 100)[0], 40)
    scores, accounts = run_of(cells, without_parts(cells, NAMES[:3], 12), 10)
    shown = published(scores, 10, accounts)
    before = copy.deepcopy(accounts)
    withhold_counts(accounts, shown)
    assert accounts == before
    assert {("test", "by_centre", name) for name in NAMES[:3]} < shown


@pytest.mark.parametrize("section", ["flow", "cases", "positives", "combinations"])
def test_a_site_that_contradicts_itself_leaves_the_others_as_they_are(section: str) -> None:
    cells = dict.fromkeys(invent(1, 3, 100)[0], 40)
    scores, accounts = run_of(cells, without_parts(cells, NAMES[:3], 12), 10)
    key = {"flow": "in_table", "cases": "train", "positives": "test"}.get(section)
    accounts[0][section][key or next(iter(accounts[0][section]))] += 1
    shown = published(scores, 10, accounts)
    withhold_counts(accounts, shown)
    assert not any(v for s in ("flow", "cases") for v in accounts[0][s].values())
    assert accounts[1]["cases"] == dict.fromkeys(SPLITS, 240)
    assert ("test", "by_centre", "north") in shown


def test_one_class_for_all_is_withheld_with_what_would_tell_it() -> None:
    cells = {cell: (0 if cell[0] == "north" and cell[3] else 40) for cell in invent(1, 3, 100)[0]}
    scores, accounts = run_of(cells, without_parts(cells, NAMES[:3], 12), 10)
    shown = published(scores, 10, accounts)
    withhold_counts(accounts, shown)
    assert {one["positives"]["test"] for one in accounts[:1]} == {None}
    assert sum(("test", "by_centre", name) in shown for name in NAMES[:3]) <= 1


def test_patients_without_an_operation_do_not_bound_the_responders_in_a_report() -> None:
    """83 of 100 did not respond, by the source of their label; with 12 responders in training, the
    others have no more than 5."""
    account = {
        "name": "a",
        "flow": {"in_table": 100, "accepted": 100, "left_out": 0},
        "cases": {"train": 60, "val": 20, "test": 20},
        "positives": {"train": 12, "val": None, "test": None},
        "modalities": {"mg": 0, "us": 100, "mri": 0},
        "combinations": {"us": 100},
        "label_sources": {"no_surgery": 83, "stage": 17},
        "left_out_for": {},
    }
    scores = {"test": {"a": {"fused|us": (19, 1)}}, "val": {"a": {"fused|us": (18, 2)}}}
    shown = published(scores, 10, [account])
    assert ("a", "flow", "accepted") in shown
    named = {("a", "positives", "train"), ("a", "label_sources", "no_surgery")}
    assert not named <= shown
