"""Tables of patients -> the rows of each centre, checked.

1. A table has the columns of cases.csv, beside them ``score`` or ``her2_imaging`` (probability of
   HER2-positive, or a call of 0 and 1), and if wanted ``mg_score``, ``us_score``, ``mri_score``
   and ``modalities`` (as in predictions.csv). Its centre is the column ``centre``, else the
   file's name.
2. HER2 and pCR are derived as everywhere (``her2_common.clinical``); a stated value that
   contradicts them is an error. HR is positive if ER or PR is, negative if both are, else unknown.
   A response without therapy (nat 0) is none; no operation after therapy is no pCR.
3. Rows of the train and val splits are left out, and a table without others is refused: the model
   has seen the first, and the threshold was chosen on the second. A patient with such a row has no
   other. A blank split is refused, unless the user states that the scores are out of fold.
4. A patient is known by centre and id: patient 1 of two hospitals are two patients. Rows without a
   score are counted and named.
5. The rows of one patient become one (``her2_common.response.patients.one_row_each``); two values
   of pCR or therapy are an error with both rows.

Each column is parsed once a distinct text, not once a row: a million rows take seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from her2_common.cases import (
    CASE_COLUMNS,
    LABELS,
    MODALITIES,
    PARSERS,
    PCR_LABELS,
    TRAINED_ON,
    BadCellError,
    post_therapy,
    response_faults,
    response_of,
)
from her2_common.clinical import DEFAULT_PCR, PcrDefinition, her2_from_ihc_ish, hr_status
from her2_common.errors import TableError
from her2_common.response.patients import Patients, one_row_each
from her2_common.tables import Faults, read_columns

SCORES: Final = ("score", "her2_imaging")
"""Columns that hold the score; a table has one of them."""

_MODALITY_SCORES: Final = {f"{m}_score": m for m in MODALITIES}
_IGNORED: Final = ("call", "unlike", "low_score", "level")
"""Columns of predictions.csv that are not needed here."""

COLUMNS: Final = (
    *CASE_COLUMNS,
    *SCORES,
    "centre",
    "modalities",
    *_MODALITY_SCORES,
    TRAINED_ON,
    *_IGNORED,
)

_WORDS: Final = {"pcr": "pcr", "therapy": "anti_her2"}
"""What a patient has once -> the column that says so."""
_COVARIATES: Final = {
    "HR status (er or pr)": ("er", "pr"),
    "T (clinical_t)": ("clinical_t",),
    "N (clinical_n)": ("clinical_n",),
}
"""What the models adjust for, and the columns of which one is enough."""

_IMAGES: Final = {"mg": ("mg_cc", "mg_mlo"), "us": ("us",), "mri": ("mri",)}
_DAYS: Final = {modality: f"{modality}_days" for modality in MODALITIES}

_NAMED: Final = 10
"""Rows that a warning names."""

Vector = NDArray[np.float64]


@dataclass
class Tables:
    """The centres' rows and what there is to say about them.

    ``binary`` says that every score is 0 or 1, so that any threshold gives the same calls;
    ``trained_on`` holds what the rows say of the labels on which the model was trained, "" if one
    says nothing. ``without_split`` counts the rows that are held out by the user's statement alone.
    """

    centres: list[Patients]
    names: tuple[str, ...]
    warnings: list[str] = field(default_factory=list)
    binary: bool = False
    trained_on: tuple[str, ...] = ("",)
    without_split: int = 0


def read_tables(
    paths: Sequence[Path],
    *,
    definition: PcrDefinition = DEFAULT_PCR,
    out_of_fold: bool = False,
) -> Tables:
    """Steps 1 to 5, with pCR by ``definition``.

    Args:
        out_of_fold: the user states that the rows without a split have scores of a model that has
            not seen their patients.

    Raises:
        TableError: a table breaks its contract; the message names table, row and column.
    """
    seen: set[str] = set()
    rows: dict[str, list[dict[str, Vector]]] = {}
    of_table: dict[str, int] = {}
    warnings: list[str] = []
    trained_on: dict[str, str] = {}  # and the first table that says so
    without_split = 0
    absent: dict[str, list[str]] = {}
    for index, path in enumerate(paths):
        table = _Table(path, definition, out_of_fold)
        for labels in table.trained_on:
            trained_on.setdefault(labels, path.name)
        without_split += table.without_split
        for name in table.centre_names():
            if of_table.setdefault(name, index) != index:
                raise TableError(
                    f"{path.name}: centre {name!r} is that of another table",
                    hint="name the files after their centres, or give them a column centre",
                )
        table.check_patients(seen)
        for what in table.absent:
            absent.setdefault(what, []).append(path.name)
        for name, columns in table.by_centre():
            rows.setdefault(name, []).append(columns)
        warnings += table.warnings
    _check_one_kind(trained_on)
    if absent:
        parted = (
            what if len(names) == len(paths) else f"{what} in {', '.join(names)}"
            for what, names in absent.items()
        )
        warnings.append(f"no column, so unknown: {'; '.join(parted)}")
    centres = []
    for name, parts in rows.items():
        columns = {c: np.concatenate([part[c] for part in parts]) for c in parts[0]}
        centres.append(Patients(name, columns))
    scores = np.concatenate([patients.column("score") for patients in centres])
    binary = bool(np.isin(scores[~np.isnan(scores)], (0, 1)).all())
    names = tuple(path.name for path in paths)
    return Tables(centres, names, warnings, binary, tuple(trained_on), without_split)


def of_response(labels: str) -> bool:
    """Whether a cell of ``TRAINED_ON`` says that the score is a probability of pCR, not of HER2."""
    return labels.split("+")[-1] in PCR_LABELS


def _check_one_kind(trained_on: Mapping[str, str]) -> None:
    """Raises:
    TableError: some scores are probabilities of HER2, others of pCR.
    """
    name_of = {of_response(labels): name for labels, name in trained_on.items() if labels}
    if len(name_of) > 1:
        raise TableError(
            f"{name_of[True]}, column {TRAINED_ON}: expected scores of HER2, as in "
            f"{name_of[False]}, got scores of the response",
            hint="give scores of one kind; her2-client predict writes the column",
        )


class _Table:
    """One file."""

    def __init__(self, path: Path, definition: PcrDefinition, out_of_fold: bool) -> None:
        self.path, self.definition, self.out_of_fold = path, definition, out_of_fold
        if not path.exists():
            raise TableError(f"{path}: no such file", hint="--table takes the path of a CSV file")
        self.cells, self.numbers = read_columns(path, COLUMNS, {"case_id"})
        if not self.numbers:
            raise TableError(f"{path.name}: expected rows, got a header alone")
        self.faults = Faults(path)
        self.warnings: list[str] = []
        self.score = self._score_column()
        self._require("pcr", ("ypt", "ypn"), "a response")
        self._require("biopsy_her2", ("biopsy_ihc", "biopsy_ish"), "HER2 of the biopsy")
        self._require("anti_her2", (), "anti-HER2 therapy")
        self.absent = [what for what, names in _COVARIATES.items()
                       if not any(name in self.cells for name in names)]  # fmt: skip
        self.columns = self._columns()
        self._check_cases()
        self.faults.raise_if_any()
        self.kept = self._held_out()
        said = np.array(self.cells.get(TRAINED_ON, [""] * len(self.numbers)))
        self.trained_on: list[str] = sorted(set(said[self.kept].tolist()))
        self._name_missing_scores()

    def _warn(self, text: str) -> None:
        self.warnings.append(f"{self.path.name}: {text}")

    def _score_column(self) -> str:
        there = [name for name in SCORES if name in self.cells]
        if len(there) != 1:
            raise TableError(
                f"{self.path.name}: expected one column of {' and '.join(SCORES)}, got "
                f"{'both' if there else 'none'}",
                hint="join the score of predictions.csv to the case table",
            )
        return there[0]

    def _require(self, stated: str, sources: tuple[str, ...], what: str) -> None:
        if not any(name in self.cells for name in (stated, *sources)):
            others = f" (or {' and '.join(sources)})" if sources else ""
            raise TableError(
                f"{self.path.name}: column {stated!r}{others} is missing from the header: "
                f"without it nothing is known of {what}"
            )

    # --- cells ----------------------------------------------------------------------------------

    def _parsed(self, name: str, parse: Callable[[str], Any]) -> list[Any]:
        """The values of a column, None where blank; what cannot be parsed is a fault."""
        texts = self.cells.get(name)
        if texts is None:
            return [None] * len(self.numbers)
        value_of: dict[str, Any] = {"": None}
        bad: dict[str, str] = {}
        for text in dict.fromkeys(texts):
            if text:
                try:
                    value_of[text] = parse(text)
                except BadCellError as error:
                    value_of[text], bad[text] = None, str(error)
        if bad:
            for number, text in zip(self.numbers, texts, strict=True):
                if text in bad:
                    self.faults.cell(number, name, bad[text], text)
        return [value_of[text] for text in texts]

    def _columns(self) -> dict[str, Vector]:
        values = {
            name: self._parsed(name, PARSERS[name])
            for name in ("age", "clinical_t", "clinical_n", "er", "pr", "nat", "anti_her2",
                         "biopsy_ihc", "biopsy_ish", "biopsy_her2", "ypt", "ypn", "pcr",
                         "no_surgery", *_DAYS.values(), "split")
        }  # fmt: skip
        biopsy = self._derived(
            her2_from_ihc_ish, values, ("biopsy_ihc", "biopsy_ish"), "biopsy_her2"
        )
        pcr = self._response(values)
        self.split = values["split"]
        nat = _numbers(values["nat"])
        pcr[nat == 0] = np.nan
        if untreated := int(np.count_nonzero(nat == 0)):
            self._warn(f"{untreated} rows without neoadjuvant therapy (nat 0) have no response")
        pairs = zip(values["er"], values["pr"], strict=True)
        columns = {
            "pcr": pcr,
            "biopsy": biopsy,
            "therapy": _numbers(values["anti_her2"]),
            "hr": _numbers(hr_status(er, pr) for er, pr in pairs),
            "t": _numbers(values["clinical_t"]),
            "n": _numbers(values["clinical_n"]),
            "age": _numbers(values["age"]),
            "modalities": self._modalities(values),
            "score": _numbers(self._parsed(self.score, _probability)),
        }
        for name, modality in _MODALITY_SCORES.items():
            columns[modality] = _numbers(self._parsed(name, _probability))
        self._parsed("laterality", PARSERS["laterality"])
        self._parsed(TRAINED_ON, _labels)
        return columns

    def _derived(
        self,
        rule: Callable[[Any, Any], int | None],
        values: dict[str, list[Any]],
        sources: tuple[str, str],
        stated: str,
    ) -> Vector:
        """A value as the rule has it; where it has none, as stated; both, unequal, is a fault."""
        triples = list(zip(values[sources[0]], values[sources[1]], values[stated], strict=True))
        result: dict[tuple[Any, Any, Any], int | None] = {}
        wrong: dict[tuple[Any, Any, Any], int] = {}
        for triple in dict.fromkeys(triples):
            derived = rule(triple[0], triple[1])
            result[triple] = triple[2] if derived is None else derived
            if derived is not None and triple[2] not in (None, derived):
                wrong[triple] = derived
        if wrong:
            for number, triple in zip(self.numbers, triples, strict=True):
                if triple in wrong:
                    one, two = ("blank" if part is None else part for part in triple[:2])
                    self.faults.row(
                        number,
                        f"{stated} is {triple[2]}, but {sources[0]} {one} with {sources[1]} {two} "
                        f"means {wrong[triple]}",
                    )
        return _numbers(result[triple] for triple in triples)

    def _response(self, values: dict[str, list[Any]]) -> Vector:
        """pCR by the definition asked for; cells that contradict each other are a fault."""
        names = ("ypt", "ypn", "pcr", "no_surgery")
        rows = list(zip(*(values[name] for name in names), strict=True))
        found: dict[tuple[Any, ...], int | None] = {}
        wrong: dict[tuple[Any, ...], list[str]] = {}
        for row in dict.fromkeys(rows):
            cells = dict(zip(names, row, strict=True))
            found[row] = response_of(cells, self.definition)
            if faults := response_faults(cells):
                wrong[row] = faults
        if wrong:
            for number, row in zip(self.numbers, rows, strict=True):
                for fault in wrong.get(row, ()):
                    self.faults.row(number, fault)
        return _numbers(found[row] for row in rows)

    def _modalities(self, values: dict[str, list[Any]]) -> Vector:
        """1 for mammography, 2 for ultrasound, 4 for MRI, summed; unknown where none is named.

        Pictures taken after treatment began do not count: ingest leaves them out.
        """
        if "modalities" in self.cells:
            return _numbers(self._parsed("modalities", _combination))
        total = np.zeros(len(self.numbers))
        for bit, modality in enumerate(MODALITIES):
            there = [np.array(self.cells[c]) != "" for c in _IMAGES[modality] if c in self.cells]
            if there:
                before = ~(_numbers(values[_DAYS[modality]]) < 0)
                total += (np.any(there, axis=0) & before) * 2**bit
        total[total == 0] = np.nan
        return total

    # --- rows -----------------------------------------------------------------------------------

    def _check_cases(self) -> None:
        first: dict[str, int] = {}
        for number, case in zip(self.numbers, self.cells["case_id"], strict=True):
            if not case:
                self.faults.row(number, "case_id is blank")
            elif first.setdefault(case, number) != number:
                self.faults.row(number, f"case_id is the same as in row {first[case]}")

    def _held_out(self) -> NDArray[np.bool_]:
        """Step 3, (rows,)."""
        split = np.array([value or "" for value in self.split])
        used, blank = np.isin(split, ("train", "val")), split == ""
        if used.all():
            raise TableError(
                f"{self.path.name}: expected held-out cases, got those of the train and val splits "
                "alone",
                hint="the model has seen them; give scores of the test split, or out-of-fold "
                "scores with the column split left blank and --out-of-fold",
            )
        if blank.any() and not self.out_of_fold:
            where = f"row {self.numbers[int(np.argmax(blank))]}, column split"
            got = "a blank" if "split" in self.cells else "no such column"
            raise TableError(
                f"{self.path.name}, {where}: expected test, train or val, got {got}",
                hint="her2-client predict writes the column; if every score comes from a model "
                "that has not seen the patient, state it with --out-of-fold",
            )
        self.without_split = int(np.count_nonzero(blank))
        self._check_apart(used)
        if used.any():
            self._warn(f"{int(used.sum())} rows of the train and val splits are not evaluated")
        return ~used

    def _check_apart(self, used: NDArray[np.bool_]) -> None:
        """A patient whose other pictures served to make the model is not held out.

        Raises:
            TableError: there is one.
        """
        cases = self.cells["case_id"]
        patients = self.cells.get("patient_id", cases)
        centres = self.cells.get("centre", [""] * len(cases))
        names = [
            (centre, patient or case)
            for centre, patient, case in zip(centres, patients, cases, strict=True)
        ]
        row_of = {
            name: row for name, row, out in zip(names, self.numbers, used, strict=True) if out
        }
        for name, row, out in zip(names, self.numbers, used, strict=True):
            if not out and name in row_of:
                raise TableError(
                    f"{self.path.name}, row {row}: expected a held-out patient, got one who is "
                    f"in the train or val split in row {row_of[name]}",
                    hint="the splits part patients, not pictures: leave the patient out",
                )

    def _name_missing_scores(self) -> None:
        score = self.columns["score"]
        rows = np.array(self.numbers)[self.kept & np.isnan(score)].tolist()
        if rows:
            named = ", ".join(map(str, rows[:_NAMED])) + (", ..." if len(rows) > _NAMED else "")
            self._warn(
                f"{len(rows)} of {int(self.kept.sum())} rows have no score (column {self.score} is "
                f"blank; row {named}): they count in no comparison of the model"
            )

    def _patients(self) -> Iterable[tuple[int, str]]:
        """Row number and patient of the rows that are kept."""
        cases = self.cells["case_id"]
        patients = self.cells.get("patient_id", cases)
        for number, patient, case, kept in zip(
            self.numbers, patients, cases, self.kept, strict=True
        ):
            if kept:
                yield number, patient or case

    def check_patients(self, seen: set[str]) -> None:
        """Step 4; ``seen`` are the ids of earlier tables and becomes those of this one, too."""
        own = {patient for _, patient in self._patients()}
        if shared := len(own & seen):
            self._warn(
                f"{shared} patient ids are in an earlier table, too; they count as other patients, "
                "for ids hold within a centre"
            )
        seen |= own

    def centre_names(self) -> list[str]:
        """The centres of the rows that are kept.

        Raises:
            TableError: a cell of the column centre is blank.
        """
        if "centre" not in self.cells:
            return [self.path.stem]
        names = np.array(self.cells["centre"])[self.kept]
        if blank := np.flatnonzero(names == "").tolist():
            number = np.array(self.numbers)[self.kept][blank[0]]
            raise TableError(f"{self.path.name}, row {number}, column centre: expected a name")
        return sorted(set(names.tolist()))

    def by_centre(self) -> Iterable[tuple[str, dict[str, Vector]]]:
        """The columns of each centre, a row a patient (step 5).

        Raises:
            TableError: two rows of a patient contradict each other.
        """
        kept = {name: values[self.kept] for name, values in self.columns.items()}
        patients = list(self._patients())
        of_row = np.full(len(patients), self.path.stem)
        if "centre" in self.cells:
            of_row = np.array(self.cells["centre"])[self.kept]
        again = 0
        for name in self.centre_names():
            here = np.flatnonzero(of_row == name)
            columns, conflicts = one_row_each(
                [patients[row][1] for row in here.tolist()],
                {column: values[here] for column, values in kept.items()},
            )
            for what, one, other in conflicts:
                first, second = (patients[int(here[row])][0] for row in (one, other))
                self.faults.row(
                    second, f"{_WORDS[what]} differs from that in row {first}, of the same patient"
                )
            again += here.size - columns["pcr"].size
            yield name, columns
        self.faults.raise_if_any()
        if again:
            self._warn(
                f"{again} rows are of a patient with an earlier row: the rows of one patient count "
                "as one, with the highest score"
            )


def _numbers(values: Iterable[Any]) -> Vector:
    """Numbers, NaN for None."""
    return np.array(list(values), dtype=np.float64)


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise BadCellError("a number from 0 to 1") from None
    if not 0.0 <= value <= 1.0:
        raise BadCellError("a number from 0 to 1")
    return value


def _labels(text: str) -> str:
    """The labels that a release was trained on, its own the last: see ``Manifest.trained_on``."""
    labels = text.split("+")
    if not set(labels) <= set(LABELS):
        raise BadCellError(f"{', '.join(LABELS)}, joined by +")
    if post_therapy(labels):
        raise BadCellError(
            "HER2 labels from before therapy (reference, biopsy): others hold the outcome"
        )
    return text


def _combination(text: str) -> int:
    parts = text.split("+")
    if not set(parts) <= set(MODALITIES) or len(set(parts)) != len(parts):
        raise BadCellError(f"{', '.join(MODALITIES)}, joined by +")
    return sum(2 ** MODALITIES.index(part) for part in parts)
