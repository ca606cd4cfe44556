"""The counts of an ingest as they may leave the centre: small ones withheld, and what shows them.

The rule:

- A count from 1 to ``policy.min_cell`` - 1 is withheld: None. So is every other count without
  which it could be worked out, in its own table or through any of the sums below (withhold.py).
  The two look alike: None does not mean that the count is small.
- The same holds for the rests that stand in no table but follow from numbers that do: cases
  without a modality, with both mammographic views, pictures without a lesion box, training cases
  that lack a group.
- A zero is shown: it tells of no patient, and the policy shows it in a run, too. But if all cases
  whose value is known share one (all HER2-positive), the zeros beside it would tell the value of
  everybody; then all values of that variable are withheld. Of a column that is not recorded at
  all, everything is shown.
- How often each reason was given is withheld, small or not: most reasons belong to one modality,
  so that their numbers and those of the columns would tell of each other. Its name is shown, so it
  was given at least once: with ten pictures refused for four reasons, none was given more than
  seven times. Such a total is withheld, too, even from a reader who knows in which columns each
  reason can occur.
- The verdict of readiness, the seconds, the rows and the messages are no part of it.

Its limits: which scanner makes, reasons and combinations there are is shown, as it concerns
equipment and files. It protects against arithmetic, not against somebody who knows patients of
the centre one by one, and not against two tables of the same centre from different days, whose
difference is the cases between: share it once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from her2_client.ingest.summary import (
    DISPOSITIONS,
    NO_USABLE_IMAGE,
    SOURCE_NAMES,
    UNKNOWN,
    VARIABLES,
    IngestSummary,
)
from her2_common.cases import CLINICAL_INPUTS, IMAGES, MODALITIES, SPLITS
from her2_common.config import Policy
from her2_common.withhold import TOTAL, WHOLE, Counts, withhold

LOCAL: Final = ("work", "seconds", "published", "remarks")
"""What concerns this machine and single files, not the data."""
ONE_A_CASE: Final = ("mg_cc", "mg_mlo", "mri")
"""Columns in which a case has at most one picture or volume; ``us`` may list several."""
_RANKS: Final[dict[tuple[str, ...], int]] = {
    ("cases", "in_table"): WHOLE,
    ("cases", "accepted"): WHOLE,
    **{("splits", split, "cases"): TOTAL for split in SPLITS},
    **{("modalities", modality): TOTAL for modality in MODALITIES},
    **{("training", group): TOTAL for group in (*MODALITIES, "head")},
}

Path = tuple[str, ...]


def shareable(summary: IngestSummary, policy: Policy) -> dict[str, Any]:
    """``summary.as_dict()`` as it may leave the centre, None where a count is withheld.

    Without ``LOCAL``, with the limit as ``min_cell``. With a ``policy.min_cell`` of 1 all counts
    are shown. The rule and its limits stand in the module's docstring.
    """
    document = {key: value for key, value in summary.as_dict().items() if key not in LOCAL}
    if policy.min_cell > 1:
        document["reasons"] = {d: dict.fromkeys(given) for d, given in document["reasons"].items()}
    known = _Known(summary, document)
    withheld = withhold(known.counts, policy.min_cell)
    return {"min_cell": policy.min_cell} | {
        key: _shown(value, (key,), withheld) for key, value in document.items()
    }


def _shown(value: Any, path: Path, withheld: frozenset[Path]) -> Any:
    if isinstance(value, dict):
        return {key: _shown(inner, (*path, key), withheld) for key, inner in value.items()}
    return None if path in withheld else value


class _Known:
    """The counts of a summary and every sum that holds between them, whatever the data."""

    def __init__(self, summary: IngestSummary, document: Mapping[str, Any]) -> None:
        self.summary = summary
        self.counts = Counts()
        self.at: dict[Path, int] = {}
        self._publish(document, ())
        self.combinations = {path[1]: i for path, i in self.at.items() if path[0] == "combinations"}
        self._cases()
        self._modalities()
        self._training()
        self._pictures()
        self._receptors()
        for split in SPLITS:
            self._one_value([("splits", split, name) for name in ("positive", "negative")])
        for name, values in VARIABLES.items():
            self._one_value([("clinical", name, value) for value in values])

    def _publish(self, document: Mapping[str, Any], above: Path) -> None:
        for key, value in document.items():
            path = (*above, key)
            if isinstance(value, dict):
                self._publish(value, path)
            elif isinstance(value, int):
                self.at[path] = self.counts.publish(path, value, _RANKS.get(path, 0))

    def _under(self, *path: str) -> list[int]:
        """The counts of one table."""
        return [i for name, i in self.at.items() if name[: len(path)] == path]

    def _whole(self, whole: int, parts: Iterable[int]) -> None:
        self.counts.equal([whole], parts)

    def _value(self, position: int) -> int:
        return self.counts.values[position] or 0

    def _part(self, part: int, whole: int) -> None:
        """``part`` is some of ``whole``; the rest is as private as the part is."""
        rest = self._value(whole) - self._value(part)
        self._whole(whole, [part, self.counts.keep(rest)])

    def _at_most(self, few: Iterable[int], many: Iterable[int]) -> None:
        self.counts.equal([*few, self.counts.keep()], many)

    def _cases(self) -> None:
        accepted = self.at["cases", "accepted"]
        self._whole(self.at["cases", "in_table"], [accepted, *self._under("cases", "left_out")])
        self._whole(accepted, [self.at["splits", split, "cases"] for split in SPLITS])
        for split in SPLITS:
            names = ("positive", "negative", UNKNOWN)
            cases = self.at["splits", split, "cases"]
            self._whole(cases, [self.at["splits", split, name] for name in names])
        for name in VARIABLES:
            self._whole(accepted, self._under("clinical", name))

    def _modalities(self) -> None:
        accepted = self.at["cases", "accepted"]
        self._whole(accepted, self.combinations.values())
        for modality in MODALITIES:
            cases = self.at["modalities", modality]
            self._whole(
                cases, [i for c, i in self.combinations.items() if modality in c.split("+")]
            )
            self._part(cases, accepted)

    def _training(self) -> None:
        """Training cases of known label: some of every combination, all of the two classes."""
        head = self.at["training", "head"]
        taken = {name: self.counts.keep() for name in self.combinations}
        for name, cases in self.combinations.items():
            self._at_most([taken[name]], [cases])
        self._whole(head, taken.values())
        self._whole(head, [self.at["splits", "train", name] for name in ("positive", "negative")])
        for modality in MODALITIES:
            cases = self.at["training", modality]
            self._whole(cases, [i for name, i in taken.items() if modality in name.split("+")])
            self._part(cases, head)
            self._part(cases, self.at["modalities", modality])
        clinical = self.at["training", "clinical"]
        without = self.counts.keep(self._value(head) - self._value(clinical))
        self._whole(head, [clinical, without])
        for name in CLINICAL_INPUTS:
            self._at_most([without], [self.at["clinical", name, UNKNOWN]])

    def _pictures(self) -> None:
        accepted = {column: self.at["images", column, "accepted"] for column in IMAGES}
        for modality in ("us", "mri"):
            self._whole(self.at["modalities", modality], [accepted[modality]])
        mammography = self.at["modalities", "mg"]
        for view in ("mg_cc", "mg_mlo"):
            self._part(accepted[view], mammography)
        cc, mlo = accepted["mg_cc"], accepted["mg_mlo"]
        both = self.counts.keep(self._value(cc) + self._value(mlo) - self._value(mammography))
        self.counts.equal([mammography, both], [cc, mlo])
        for modality in MODALITIES:
            columns = [accepted[column] for column in IMAGES if column.startswith(modality)]
            self.counts.equal(columns, self._under("scanners", modality))
        for column in IMAGES:
            self._part(self.at["lesion_boxes", column], accepted[column])
        self._reasons()
        # A case that is left out for its pictures has one that was not used.
        left_out = self._under("cases", "left_out", NO_USABLE_IMAGE)
        unused = [self.at["images", c, d] for c in IMAGES for d in DISPOSITIONS]
        self._at_most(left_out, unused)
        named = [self.at["cases", "accepted"], *left_out]
        for column in ONE_A_CASE:
            states = ("accepted", "quarantined", "refused")
            self._at_most([self.at["images", column, state] for state in states], named)

    def _reasons(self) -> None:
        """Each reason that is named was given at least once, where its notes say and nowhere else.

        Nobody can know more of the columns that a reason belongs to than that.
        """
        where: dict[tuple[str, str], set[str]] = {}
        for entry in self.summary.notes:
            note = entry.note
            where.setdefault((note.disposition, note.reason), set()).add(note.column)
        for disposition in DISPOSITIONS:
            cells: dict[str, list[int]] = {column: [] for column in IMAGES}
            for reason, given in self.summary.reasons[disposition].items():
                total = self.counts.keep(given, least=1)
                columns = where.get((disposition, reason), set(IMAGES))
                parts = {column: self.counts.keep() for column in IMAGES if column in columns}
                self._whole(total, parts.values())
                for column, part in parts.items():
                    cells[column].append(part)
            for column in IMAGES:
                self._whole(self.at["images", column, disposition], cells[column])

    def _receptors(self) -> None:
        """HER2 of the biopsy follows from its IHC score; the label, and its source, from both
        specimens and from therapy: the excised tumour counts in patients known to be untreated."""
        known = ("no", "yes")
        values = (*known, UNKNOWN)
        # HER2 of the biopsy, unknown ones by whether the IHC was 2+; the excised tumour's; therapy
        needle = (*known, "equivocal", "not_tested")
        kinds = [(b, s, free) for b in needle for s in values for free in (True, False)]
        case = {kind: self.counts.keep() for kind in kinds}
        of_biopsy: dict[str, list[int]] = {
            value: [case[k] for k in kinds if (k[0] if k[0] in known else UNKNOWN) == value]
            for value in values
        }
        for value in values:
            self._whole(self.at["clinical", "biopsy_her2", value], of_biopsy[value])
            self._whole(
                self.at["clinical", "surgical_her2", value],
                [case[k] for k in kinds if k[1] == value],
            )

        scores = (*VARIABLES["biopsy_ihc"], UNKNOWN)
        may_be = {"2": (*known, "equivocal"), "3": ("yes",), UNKNOWN: (*known, "not_tested")}
        scored = {(i, b): self.counts.keep() for i in scores for b in may_be.get(i, known)}
        for score in scores:
            cells = [n for (i, _), n in scored.items() if i == score]
            self._whole(self.at["clinical", "biopsy_ihc", score], cells)
        for b in needle:
            parts = [n for (_, v), n in scored.items() if v == b]
            self.counts.equal([case[k] for k in kinds if k[0] == b], parts)

        therapy = {(n, a): self.counts.keep() for n in values for a in values}
        for value in values:
            nat, anti = (self.at["clinical", name, value] for name in ("nat", "anti_her2"))
            self._whole(nat, [therapy[value, a] for a in values])
            self._whole(anti, [therapy[n, value] for n in values])
        free = [therapy["no", a] for a in ("no", UNKNOWN)]
        self.counts.equal([case[k] for k in kinds if k[2]], free)

        of_source: dict[str, list[int]] = {source: [] for source in SOURCE_NAMES}
        of_label: dict[str, list[int]] = {value: [] for value in values}
        for b, excised, untreated in kinds:
            cases = case[b, excised, untreated]
            if untreated and excised in known:
                of_source["excised_untreated"].append(cases)
                of_label[excised].append(cases)
            elif b in known:
                of_source["biopsy"].append(cases)
                of_label[b].append(cases)
            elif excised in known:
                of_source["treated_only"].append(cases)
                of_label[UNKNOWN].append(cases)
            elif b == "not_tested" and untreated:
                # The excised tumour may be the equivocal one.
                parts = [self.counts.keep(), self.counts.keep()]
                self._whole(cases, parts)
                of_source["equivocal"].append(parts[0])
                of_source["not_tested"].append(parts[1])
                of_label[UNKNOWN].append(cases)
            else:
                of_source[b].append(cases)
                of_label[UNKNOWN].append(cases)
        for source, parts in of_source.items():
            self._whole(self.at["label_sources", source], parts)
        for value, label in zip(values, ("negative", "positive", UNKNOWN), strict=True):
            self.counts.equal(
                [self.at["splits", split, label] for split in SPLITS], of_label[value]
            )

    def _one_value(self, paths: list[Path]) -> None:
        """If one value is left among those known, none of them may be shown."""
        positions = [self.at[path] for path in paths]
        if sum(self._value(position) > 0 for position in positions) == 1:
            self.counts.secret.update(positions)
