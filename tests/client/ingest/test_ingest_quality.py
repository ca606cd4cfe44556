"""The verdict follows its rules, and what leaves the centre gives no small count away."""

from __future__ import annotations

import copy
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from her2_client.ingest.outcome import Note
from her2_client.ingest.quality.readiness import MIN_TEST_CASES, readiness
from her2_client.ingest.quality.sharing import shareable
from her2_client.ingest.summary import IngestSummary, RowNote
from her2_common.config import Policy
from her2_common.withhold import TOTAL, WHOLE, Counts, withhold

POLICY = Policy()
LIMIT = POLICY.min_cell
Invent = Callable[..., IngestSummary]
Path = tuple[str, ...]


# --- readiness ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(invented_summary: Invent) -> IngestSummary:
    return invented_summary(1, 400, faulty=0, unknown=0.05)


def refuse(summary: IngestSummary, column: Any, count: int) -> None:
    summary.images[column]["refused"] += count
    for number in range(count):
        reason = "damaged" if number % 3 else "wrong view"
        summary.reasons["refused"][reason] += 1
        note = Note(column, "refused", reason, "no matter")
        summary.notes.append(RowNote(number + 2, note))
    # A reason that is more common, but in another column
    other: Any = "us" if column != "us" else "mri"
    for number in range(2 * count):
        note = Note(other, "refused", "truncated", "no matter")
        summary.notes.append(RowNote(number + 2, note))


def no_training_cases(s: IngestSummary) -> None:
    s.splits["train"], s.labels["train"], s.training = 0, Counter(), Counter()


def no_known_label(s: IngestSummary) -> None:
    s.labels["train"], s.training = Counter(unknown=s.splits["train"]), Counter()


def no_positives(s: IngestSummary) -> None:
    s.labels["train"]["positive"] = 0


def few_of_each(s: IngestSummary) -> None:
    s.training.update(mg=9 - s.training["mg"])
    s.training.update(us=9 - s.training["us"], mri=3 - s.training["mri"])


def nothing_at_all(s: IngestSummary) -> None:
    s.accepted = 0


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (nothing_at_all, "No case is in the cache"),
        (no_training_cases, "No case is in the training split"),
        (no_known_label, "training cases is known"),
        (no_positives, "No training case is HER2-positive"),
        (few_of_each, "(mammography 9, ultrasound 9, MRI 3)"),
    ],
)
def test_what_makes_training_impossible(
    sound: IngestSummary, spoil: Callable[[IngestSummary], None], says: str
) -> None:
    summary = copy.deepcopy(sound)
    spoil(summary)
    verdict = readiness(summary, POLICY)
    assert verdict.verdict == "not ready"
    assert len(verdict.blockers) == 1
    assert says in verdict.blockers[0]


def no_negatives_in_validation(s: IngestSummary) -> None:
    s.labels["val"]["negative"] = 0


def few_test_cases(s: IngestSummary) -> None:
    s.splits["test"] = MIN_TEST_CASES - 1


def two_quarantined(s: IngestSummary) -> None:
    s.reasons["quarantined"].update({"text found": 1, "no verified region": 1})


def mri_unusable(s: IngestSummary) -> None:
    s.images["mri"] = Counter({"set aside": 4})
    s.modalities["mri"] = s.training["mri"] = 0


def many_refused(s: IngestSummary) -> None:
    refuse(s, "mg_cc", s.images["mg_cc"].total() // 9 + 1)


def many_unknown(s: IngestSummary) -> None:
    s.labels["test"]["unknown"] += s.accepted // 5 + 1


def no_boxes(s: IngestSummary) -> None:
    s.boxed["us"] = 0


def few_mri(s: IngestSummary) -> None:
    s.training["mri"] = POLICY.min_cases - 1


def two_inputs_unknown(s: IngestSummary) -> None:
    s.clinical["age"]["unknown"] = s.accepted // 2 + 1
    s.clinical["multifocal"]["unknown"] = s.accepted
    s.clinical["er"]["unknown"] = s.accepted  # no input of the model


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (no_negatives_in_validation, "validation split has no HER2-negative case"),
        (few_test_cases, "The test split has 29 cases, fewer than 30"),
        (two_quarantined, "2 pictures wait in quarantine"),
        (mri_unusable, "names MRI, but none of it could be used"),
        (many_refused, "most often for the reason 'damaged'"),
        (many_unknown, "is unknown (2"),
        (no_boxes, "No ultrasound case has a lesion box"),
        (few_mri, "MRI has 9 training cases of known HER2 status"),
        (two_inputs_unknown, "age 50 % and multifocal 100 %."),
    ],
)
def test_every_gap_is_named_and_explained(
    sound: IngestSummary, spoil: Callable[[IngestSummary], None], says: str
) -> None:
    assert readiness(sound, POLICY).as_dict() == {"verdict": "ready", "blockers": [], "gaps": []}
    summary = copy.deepcopy(sound)
    spoil(summary)
    verdict = readiness(summary, POLICY)
    assert verdict.verdict == "ready with gaps"
    assert len(verdict.gaps) == 1
    assert says in verdict.gaps[0]


def test_the_limits_themselves_are_no_gap(sound: IngestSummary) -> None:
    summary = copy.deepcopy(sound)
    summary.splits["test"] = MIN_TEST_CASES
    summary.images["mri"] = Counter(accepted=90, refused=10)
    summary.training["mri"] = POLICY.min_cases
    summary.clinical["age"]["unknown"] = summary.accepted // 2
    summary.scanners["mri"] = Counter(Siemens=summary.scanners["mri"].total())
    assert readiness(summary, POLICY).verdict == "ready"


def test_the_training_groups_are_those_of_the_cohort(sound: IngestSummary) -> None:
    known = sound.labels["train"]["positive"] + sound.labels["train"]["negative"]
    assert sound.training["head"] == known
    assert all(sound.training[group] <= known for group in ("mg", "us", "mri", "clinical"))
    assert 0 < sound.training["mri"] < sound.modalities["mri"]


# --- withholding --------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    cells=st.lists(st.integers(0, 7), min_size=4, max_size=4),
    limit=st.integers(2, 4),
    shown=st.lists(st.booleans(), min_size=5, max_size=5),
)
def test_against_every_table_there_is(cells: list[int], limit: int, shown: list[bool]) -> None:
    """Two by two with its margins: all tables that agree with what is published, counted out.

    ``shown`` says which of the margins (rows, columns, all) would be published at all.
    """
    table = np.array(cells).reshape(2, 2)
    margins = [*table.sum(1), *table.sum(0), table.sum()]
    counts = Counts()
    at = [counts.publish((f"cell {i}",), int(v)) for i, v in enumerate(cells)]
    totals = [
        counts.publish((f"margin {i}",), int(v), WHOLE if i == 4 else TOTAL)
        if shown[i]
        else counts.keep(int(v))
        for i, v in enumerate(margins)
    ]
    parts = [(0, 1), (2, 3), (0, 2), (1, 3), (0, 1, 2, 3)]
    for total, positions in zip(totals, parts, strict=True):
        counts.equal([total], [at[p] for p in positions])
    withheld = withhold(counts, limit)

    values = [*cells, *(int(v) for v in margins)]
    names = [(f"cell {i}",) for i in range(4)] + [(f"margin {i}",) for i in range(5)]
    every = np.array(list(itertools.product(range(8 + 3 * limit), repeat=4)))
    every = np.hstack([every, *(every[:, list(p)].sum(1, keepdims=True) for p in parts)])
    for i, name in enumerate(names):
        if i >= 4 and not shown[i - 4]:
            continue
        if name not in withheld:
            every = every[every[:, i] == values[i]]
        elif values[i]:
            every = every[every[:, i] > 0]
    assert (every == values).all(1).any()
    for i, name in enumerate(names):
        if 0 < values[i] < limit:
            assert every[:, i].max() >= limit, name
            assert name in withheld or i >= 4
        if name in withheld:
            assert every[:, i].min() < every[:, i].max(), name


def test_no_sum_and_no_small_count_withholds_nothing() -> None:
    counts = Counts()
    parts = [counts.publish((str(n),), n) for n in (0, 10, 25)]
    counts.equal([counts.publish(("all",), 35)], parts)
    assert withhold(counts, 10) == frozenset()


def test_a_contradiction_withholds_everything() -> None:
    counts = Counts()
    parts = [counts.publish((str(n),), n) for n in (0, 4, 25)]
    counts.equal([counts.publish(("all",), 99)], parts)
    assert withhold(counts, 10) == {("0",), ("4",), ("25",), ("all",)}


def test_a_secret_zero_is_not_told_by_its_total() -> None:
    counts = Counts()
    yes, no = counts.publish(("yes",), 40), counts.publish(("no",), 0)
    counts.equal([counts.publish(("all",), 40)], [yes, no])
    counts.secret |= {yes, no}
    assert withhold(counts, 10) == {("yes",), ("no",)}


# --- what may leave -----------------------------------------------------------------------------


def flat(document: dict[str, Any], above: Path = ()) -> Iterator[tuple[Path, Any]]:
    for key, value in document.items():
        if isinstance(value, dict):
            yield from flat(value, (*above, key))
        else:
            yield (*above, key), value


class Attacker:
    """Knows the published numbers, which counts are not 0, and how an ingest counts.

    Written from the meaning of the counts; it shares no code with what it attacks. It knows
    that a reason that is named was given, and in which columns of this table it can have been.
    """

    def __init__(
        self, published: dict[str, Any], exact: dict[str, Any], notes: Sequence[RowNote] = ()
    ) -> None:
        true = dict(flat(exact))
        self.where = {(n.note.disposition, n.note.reason, n.note.column) for n in notes}
        self.shown = dict(flat(published))
        self.names: list[Any] = [p for p in self.shown if p not in {("site",), ("min_cell",)}]
        self.rows: list[dict[Any, int]] = []
        self._relations(published)
        position = {name: i for i, name in enumerate(self.names)}
        low, high = np.zeros(len(self.names)), np.full(len(self.names), np.inf)
        for name, i in position.items():
            value = self.shown.get(name)
            if value is not None:
                low[i] = high[i] = value
            elif name in self.shown and not self._may_be_secret(name, published):
                low[i] = true[name] > 0
        matrix = np.zeros((len(self.rows), len(self.names)))
        for r, row in enumerate(self.rows):
            for name, sign in row.items():
                matrix[r, position[name]] += sign
        self.position, self.bounds = position, Bounds(low, high)
        self.matrix = LinearConstraint(matrix, 0, 0)

    def _may_be_secret(self, name: Path, published: dict[str, Any]) -> bool:
        if name[0] not in {"splits", "clinical"}:
            return False
        table = published[name[0]][name[1]]
        return all(v is None for k, v in table.items() if k not in {"unknown", "cases"})

    def _hidden(self, *name: Any) -> Any:
        self.names.append(name)
        return name

    def _equal(self, left: Any, right: Any) -> None:
        row: dict[Any, int] = {}
        for names, sign in ((left, 1), (right, -1)):
            for name in names:
                row[name] = row.get(name, 0) + sign
        self.rows.append(row)

    def _no_more(self, few: Any, many: Any) -> None:
        self._equal([*few, self._hidden("slack", len(self.names))], many)

    def _relations(self, d: dict[str, Any]) -> None:
        accepted, head = ("cases", "accepted"), ("training", "head")
        left_out = [("cases", "left_out", r) for r in d["cases"]["left_out"]]
        self._equal([("cases", "in_table")], [accepted, *left_out])
        self._equal([accepted], [("splits", s, "cases") for s in d["splits"]])
        self._equal([accepted], [("combinations", c) for c in d["combinations"]])
        for name, values in d["clinical"].items():
            self._equal([accepted], [("clinical", name, v) for v in values])
        labels = ("positive", "negative", "unknown")
        for split in d["splits"]:
            self._equal([("splits", split, "cases")], [("splits", split, x) for x in labels])
        self._equal([head], [("splits", "train", x) for x in labels[:2]])
        trained = {c: self._hidden("trained", c) for c in d["combinations"]}
        self._equal([head], trained.values())
        self._no_more([("training", "clinical")], [head])
        for combination, name in trained.items():
            self._no_more([name], [("combinations", combination)])
        for m in ("mg", "us", "mri"):
            having = [c for c in d["combinations"] if m in c.split("+")]
            self._equal([("modalities", m)], [("combinations", c) for c in having])
            self._equal([("training", m)], [trained[c] for c in having])
            columns = ["mg_cc", "mg_mlo"] if m == "mg" else [m]
            pictures = [("images", c, "accepted") for c in columns]
            self._equal([("scanners", m, make) for make in d["scanners"][m]], pictures)
            for picture in pictures:
                self._no_more([picture], [("modalities", m)])
                self._no_more([("lesion_boxes", picture[1])], [picture])
            self._no_more([("modalities", m)], pictures)
        for kind, reasons in d["reasons"].items():
            pairs = list(itertools.product(reasons, d["images"]))
            at = {(r, c): self._hidden("given", kind, r, c) for r, c in pairs}
            for r in reasons:
                self._equal([("reasons", kind, r)], [at[r, c] for c in d["images"]])
            for c in d["images"]:
                self._equal([("images", c, kind)], [at[r, c] for r in reasons])
            never = [at[r, c] for r, c in pairs if (kind, r, c) not in self.where]
            self._equal(never if self.where else (), ())
        for column in ("mg_cc", "mg_mlo", "mri"):
            states = [("images", column, s) for s in ("accepted", "quarantined", "refused")]
            self._no_more(states, [("cases", "in_table")])
        # Biopsy, excised tumour and therapy of each case: the label is the tumour's where it is
        # known and there was no therapy, else the biopsy's.
        values = ("no", "yes", "unknown")
        kinds = list(itertools.product(values, values, ("untreated", "treated")))
        of = {kind: self._hidden("kind", *kind) for kind in kinds}

        def label(b: str, s: str, therapy: str) -> str:
            return s if therapy == "untreated" and s != "unknown" else b

        for b in values:
            self._equal([("clinical", "biopsy_her2", b)], [of[k] for k in kinds if k[0] == b])
            self._equal([("clinical", "surgical_her2", b)], [of[k] for k in kinds if k[1] == b])
        for name, value in zip(labels, ("yes", "no", "unknown"), strict=True):
            cases = [of[k] for k in kinds if label(*k) == value]
            self._equal([("splits", s, name) for s in d["splits"]], cases)
        self._no_more([of[k] for k in kinds if k[2] == "untreated"], [("clinical", "nat", "no")])
        sources = {name: ("label_sources", name) for name in d["label_sources"]}
        excised = [k for k in kinds if k[2] == "untreated" and k[1] != "unknown"]
        self._equal([sources["excised_untreated"]], [of[k] for k in excised])
        biopsy = [k for k in kinds if k not in excised and k[0] != "unknown"]
        self._equal([sources["biopsy"]], [of[k] for k in biopsy])
        alone = [k for k in kinds if k not in excised + biopsy and k[1] != "unknown"]
        self._equal([sources["treated_only"]], [of[k] for k in alone])
        self._equal([("cases", "accepted")], sources.values())
        self._no_more(
            [("clinical", "biopsy_ihc", score) for score in ("0", "ultralow", "1", "3")],
            [("clinical", "biopsy_her2", value) for value in ("no", "yes")],
        )
        self._no_more([("clinical", "biopsy_ihc", "3")], [("clinical", "biopsy_her2", "yes")])

    def range(self, name: Path) -> tuple[float, float]:
        """The least and the greatest that a count might be (up to 10,000)."""
        least, most = (self._solve({name: sign}, {name: 10_000}) for sign in (1, -1))
        return least[self.position[name]], most[self.position[name]]

    def worked_out(self, true: dict[Path, Any]) -> list[Path]:
        """What is withheld and has one possible value, or is small and can only be small.

        Every solution shows what many counts might be; one by one are asked those that are left.
        """
        withheld = [n for n, v in self.shown.items() if v is None and n in self.position]
        at = np.array([self.position[n] for n in withheld], int)
        small = np.array([0 < true[n] < LIMIT for n in withheld], bool)
        truth = {n: true[n] for n in withheld}
        self._solve({}, truth, truth)  # the truth is possible
        least, most = np.full(at.size, np.inf), np.full(at.size, -np.inf)

        def open_() -> np.ndarray:
            return np.flatnonzero((least >= most) | (small & (most < LIMIT)))

        def look(names: list[Path]) -> int:
            before = len(open_())
            for sign in (-1, 1):
                caps = {n: max(LIMIT, true[n] + 1) for n in names}
                found = self._solve(dict.fromkeys(names, sign), caps)
                np.minimum(least, found[at], out=least)
                np.maximum(most, found[at], out=most)
            return before - len(open_())

        while len(left := open_()) > 1 and look([withheld[i] for i in left]):
            pass
        for i in open_():
            if i in open_():
                look([withheld[i]])
        return [withheld[i] for i in open_()]

    def _solve(
        self, wish: dict[Path, int], caps: dict[Path, int], floors: dict[Path, int] | None = None
    ) -> np.ndarray:
        """Whole numbers that agree with all that is known, the least sum of ``wish``."""
        weights, low, high = np.zeros(len(self.names)), self.bounds.lb.copy(), self.bounds.ub.copy()
        for name, sign in wish.items():
            weights[self.position[name]] = sign
        for name, cap in caps.items():
            high[self.position[name]] = min(high[self.position[name]], cap)
        for name, floor in (floors or {}).items():
            low[self.position[name]] = max(low[self.position[name]], floor)
        found = milp(
            weights,
            integrality=weights * 0 + 1,
            bounds=Bounds(low, high),
            constraints=self.matrix,
        )
        assert found.status == 0, found.message
        return np.round(found.x)


shapes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "cases": st.integers(0, 160),
        "has": st.tuples(*[st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])] * 3),
        "faulty": st.sampled_from([0.0, 0.05, 0.3]),
        "unknown": st.sampled_from([0.0, 0.05, 0.4]),
        "positive": st.sampled_from([0.0, 0.3, 1.0]),
        "boxed": st.sampled_from([0.0, 0.8, 0.97, 1.0]),
    }
)


FOUR_REASONS = {
    "seed": 11,
    "cases": 100,
    "has": (0.0, 0.5, 0.0),
    "faulty": 0.3,
    "unknown": 0.0,
    "positive": 0.0,
    "boxed": 0.0,
}
"""Ten pictures refused for four reasons: each reason at least once, so none more than seven times.
"""


@settings(max_examples=10, deadline=None)
@example(shape=FOUR_REASONS)
@example(shape=FOUR_REASONS | {"seed": 0, "cases": 92})
@given(shape=shapes)
def test_nothing_withheld_can_be_worked_out(invented_summary: Invent, shape: Any) -> None:
    summary = invented_summary(**shape)
    exact = summary.as_dict()
    published = shareable(summary, POLICY)
    true = dict(flat(exact))
    for name, value in flat(published):
        if name != ("min_cell",) and value is not None:
            assert value == true[name]
            assert isinstance(value, str) or value == 0 or value >= LIMIT
    assert Attacker(published, exact, summary.notes).worked_out(true) == []


def test_the_attacker_sees_through_small_counts_alone(invented_summary: Invent) -> None:
    """The check above is sharp: with only the small counts withheld, it finds some of them."""
    summary = invented_summary(7, 150)
    exact = summary.as_dict()
    naive = {k: v for k, v in exact.items() if k not in {"work", "seconds", "published", "remarks"}}

    def hide(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: hide(value) for key, value in part.items()}
        return None if isinstance(part, int) and 0 < part < LIMIT else part

    naive = hide(naive)
    attacker = Attacker(naive, exact)
    hidden = [name for name, value in flat(naive) if value is None]
    pinned = [name for name in hidden if len(set(attacker.range(name))) == 1]
    assert 0 < len(pinned) < len(hidden)
    bounded = attacker.worked_out(dict(flat(exact)))
    assert set(pinned) < set(bounded)
    assert all(attacker.range(name)[1] < LIMIT for name in set(bounded) - set(pinned))


def test_a_large_site_keeps_little_to_itself(invented_summary: Invent) -> None:
    published = shareable(invented_summary(3, 1500), POLICY)
    cells = dict(flat(published))
    assert sum(value is None for value in cells.values()) < 0.16 * len(cells)
    for name in (("cases", "accepted"), ("modalities", "mg"), ("training", "mri")):
        assert cells[name] is not None


def test_what_leaves_is_counts_alone(invented_summary: Invent) -> None:
    summary = invented_summary(2, 60)
    published = shareable(summary, POLICY)
    summary.published = True
    assert published == shareable(summary, POLICY)
    assert set(summary.as_dict()) - set(published) == {"work", "seconds", "published", "remarks"}
    assert published["min_cell"] == LIMIT
    assert json.loads(json.dumps(published, allow_nan=False)) == published
    assert not any("row" in name for path, _ in flat(published) for name in path)


def test_reasons_are_named_but_never_counted(invented_summary: Invent) -> None:
    """`gap` is of MRI alone: beside the refused MRI its number would tell that of the others."""
    summary = invented_summary(2, 60)
    given: list[tuple[Any, str, int]] = [
        ("mri", "gap", 12),
        ("mri", "mixed phases", 3),
        ("us", "wrong view", 80),
    ]
    for column, reason, times in given:
        summary.reasons["refused"][reason] += times
        summary.images[column]["refused"] += times
        note = RowNote(2, Note(column, "refused", reason, "no matter"))
        summary.notes += [note] * times
    published = shareable(summary, POLICY)
    assert published["images"]["us"]["refused"] is not None  # the sums agree with the counts
    assert published["reasons"].keys() == summary.reasons.keys()
    for disposition, reasons in published["reasons"].items():
        assert set(reasons) == set(summary.reasons[disposition])
        assert set(reasons.values()) <= {None}


@pytest.mark.parametrize(("cc", "mlo"), [(35, 28), (58, 5), (60, 3)])
def test_cases_with_both_views_cannot_be_worked_out(cc: int, mlo: int) -> None:
    summary = IngestSummary("north", 60, accepted=60)
    summary.combinations["mg"] = summary.modalities["mg"] = 60
    summary.splits["train"] = summary.labels["train"]["unknown"] = 60
    summary.sources["not_tested"] = 60
    for counts in summary.clinical.values():
        counts["unknown"] = 60
    summary.images["mg_cc"]["accepted"], summary.images["mg_mlo"]["accepted"] = cc, mlo
    summary.scanners["mg"]["GE"] = cc + mlo
    published = shareable(summary, POLICY)
    shown = [
        published["modalities"]["mg"],
        published["images"]["mg_cc"]["accepted"],
        published["images"]["mg_mlo"]["accepted"],
    ]
    assert None in shown
    assert published["cases"]["accepted"] == 60
    if shown[0] is not None:  # then the pictures together are not to be had either
        assert None in (shown[1], shown[2])
        assert published["scanners"]["mg"]["GE"] is None


def test_a_total_of_ten_for_four_reasons_is_withheld(invented_summary: Invent) -> None:
    """Shown, it would bound each of the four, which were given 5, 1, 3 and 1 times, by 7."""
    summary = invented_summary(**FOUR_REASONS)
    assert sorted(summary.reasons["refused"].values()) == [1, 1, 3, 5]
    assert summary.images["us"]["refused"] == LIMIT
    published = shareable(summary, POLICY)
    assert published["images"]["us"]["refused"] is None
    assert set(published["reasons"]["refused"]) == set(summary.reasons["refused"])


def test_a_limit_of_one_withholds_nothing(invented_summary: Invent) -> None:
    summary = invented_summary(2, 30)
    published = shareable(summary, Policy(min_cell=1))
    exact = {
        k: v
        for k, v in summary.as_dict().items()
        if k not in {"work", "seconds", "published", "remarks"}
    }
    assert published == {"min_cell": 1} | exact


def test_one_value_for_everybody_is_not_told(invented_summary: Invent) -> None:
    """All of a split HER2-positive: the 0 beside it would tell the status of each of them."""
    summary = invented_summary(4, 300, positive=1.0, unknown=0.0)
    assert summary.clinical["anti_her2"] == Counter(yes=summary.accepted)
    published = shareable(summary, POLICY)
    assert published["clinical"]["anti_her2"] == {"no": None, "yes": None, "unknown": 0}


def test_a_column_that_is_not_recorded_is_shown(invented_summary: Invent) -> None:
    summary = invented_summary(5, 300, unknown=0.0)
    summary.clinical["pcr"] = Counter(unknown=summary.accepted)
    published = shareable(summary, POLICY)
    assert published["clinical"]["pcr"] == {"no": 0, "yes": 0, "unknown": summary.accepted}
