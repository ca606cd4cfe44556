"""Which counts of a run may be published: one decision for summary.json and all that is made of it.

1. Cases are counted by site, split, combination of modalities and class. Nobody is shown these
   cells; every count that is published is a sum of some of them: the pooled cases of a split and
   its groups by centre, combination and modality, and what a site tells of its own table.
2. A group with fewer than ``min_cell`` positives or negatives is withheld, and so is a count from
   1 to ``min_cell`` - 1, or one that its site withholds. A group without cases tells of nobody.
3. The others are published one after the other, as long as each of those at 2 might still be
   ``min_cell`` or more for all that is published by then (an integer programme over the cells,
   ``her2_common.response.cells``): the test split before validation, in each the pooled cases,
   then its groups, the largest first, and last the sites' own counts.

So "withheld" does not mean small. A site whose own counts contradict its scores has them withheld;
it cannot keep the results of the others from the report.

The results of a split are decided before the sites' counts and after no other, so that runs with
the same test cases, as those of leave-one-out, withhold the same groups of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from her2_common.cases import SPLITS
from her2_common.response.cells import Blocks, Positions

Counted = Mapping[str, Mapping[str, tuple[int, int]]]
"""Site -> key of a histogram ("fused|mg+us", "single|mg") -> its negatives and positives."""

Account = Mapping[str, Any]
"""A site's part of summary.json: ``name``, and counts or None under each of ``SECTIONS``."""

SECTIONS: Final = (
    "flow", "cases", "positives", "modalities", "combinations", "label_sources", "left_out_for",
)  # fmt: skip

POOLED: Final = "all"

Published = frozenset[tuple[str, ...]]
"""(split, "all"), (split, "by_centre", name) and the like; of a site (name, "cases", "train") and
the like."""


def published(
    scores: Mapping[str, Counted], min_cell: int, accounts: Sequence[Account] = ()
) -> Published:
    """What may be published of the ``scores`` of splits, the most important first, and of sites."""
    sound = [one for one in accounts if _Ledger(_of_site(scores, one), min_cell, [one]).sound]
    ledger = _Ledger(scores, min_cell, sound)
    return frozenset(tuple(name.split("/")) for name in ledger.blocks.told(min_cell))


def withhold_counts(accounts: Iterable[dict[str, Any]], shown: Published) -> None:
    """Put None for what is not published of the sites."""
    for account in accounts:
        name = account["name"]
        for section in SECTIONS:
            for key in account[section]:
                if (name, section, key) not in shown:
                    account[section][key] = None


def _of_site(scores: Mapping[str, Counted], account: Account) -> dict[str, Counted]:
    name = account["name"]
    return {split: {name: sites[name]} for split, sites in scores.items() if name in sites}


class _Ledger:
    """The cells, the tables that would be published, and the sums between them."""

    def __init__(
        self, scores: Mapping[str, Counted], min_cell: int, accounts: Sequence[Account]
    ) -> None:
        self.blocks, self.min_cell, self.scores = Blocks(), min_cell, scores
        self.at: dict[tuple[str, str, str], Positions] = {}  # (2,), negatives and positives
        named: dict[str, set[str]] = {one["name"]: set(one["combinations"]) for one in accounts}
        for sites in scores.values():
            for site, keys in sites.items():
                names = {key.removeprefix("fused|") for key in keys if key.startswith("fused|")}
                named.setdefault(site, set()).update(names)
        for site, combinations in named.items():
            for split in dict.fromkeys((*scores, *SPLITS)):
                for combination in sorted(combinations):
                    self.at[site, split, combination] = self.blocks.cells(2)
        self.groups: dict[tuple[str, str], Positions] = {}
        for split, sites in scores.items():
            self._results(split, sites)
        for account in accounts:
            self._site(account)

    @property
    def sound(self) -> bool:
        return self.blocks.sound

    def _sum(self, table: Positions, cells: Iterable[Positions]) -> None:
        """``table`` (k,) is the sum of ``cells`` (k,), element by element."""
        every = np.array(list(cells), np.int64).reshape(-1, table.size)
        for position, parts in zip(table, every.T, strict=True):
            self.blocks.equal(position, parts)

    # --- results --------------------------------------------------------------------------------

    def _results(self, split: str, sites: Counted) -> None:
        def having(key: str) -> list[Positions]:
            kind, name = key.split("|")
            return [
                cell
                for (site, part, combination), cell in self.at.items()
                if part == split
                and site in sites  # whether or not it has such cases in this split
                and (name == combination if kind == "fused" else name in combination.split("+"))
            ]

        def of(site: str) -> list[Positions]:
            return [cell for (s, part, _), cell in self.at.items() if (s, part) == (site, split)]

        keys = sorted({key for of_site in sites.values() for key in of_site})
        groups: list[tuple[str, np.ndarray, list[Positions]]] = []
        for key in keys:
            kind = {"fused": "by_combination", "single": "by_modality"}.get(key.split("|")[0])
            if kind is not None:
                total = np.sum([of_site.get(key, (0, 0)) for of_site in sites.values()], axis=0)
                groups.append((f"{split}/{kind}/{key.split('|')[1]}", total, having(key)))
        centres = {site: _fused(of_site) for site, of_site in sites.items()}
        groups += [(f"{split}/by_centre/{s}", n, of(s)) for s, n in centres.items()]
        pooled = sum(centres.values(), np.zeros(2, np.int64))
        self._group(f"{split}/{POOLED}", pooled, [c for s in sites for c in of(s)])
        for name, counts, cells in sorted(groups, key=lambda group: (-group[1].sum(), group[0])):
            table = self._group(name, counts, cells)
            if "/by_centre/" in name:
                self.groups[name.split("/")[2], split] = table

    def _group(self, name: str, counts: np.ndarray, cells: Iterable[Positions]) -> Positions:
        """A group of cases: negatives and positives, (2,)."""
        table = self.blocks.add(name, counts)
        self._sum(table, cells)
        self._protect(table, counts)
        return table

    def _protect(self, classes: Positions, counts: np.ndarray) -> None:
        """An empty class is as private as a small one: it tells the class of everybody."""
        if counts.any() and counts.min() < self.min_cell:
            self.blocks.protect(classes[counts < self.min_cell])

    # --- what a site tells ----------------------------------------------------------------------

    def _site(self, account: Account) -> None:
        name = account["name"]
        cells = {key[1:]: cell for key, cell in self.at.items() if key[0] == name}
        splits, negatives = [], []
        for split in SPLITS:
            own = [cell for (part, _), cell in cells.items() if part == split]
            classes = self.groups.get((name, split))
            exact = None if classes is None else int(_fused(self.scores[split][name]).sum())
            cases = self._count(account, "cases", split, exact)
            splits.append(cases)
            if classes is None:
                classes = self._classes(account, split)
                self._sum(classes, own)
            if account["positives"][split] is not None:
                self.blocks.equal(self._count(account, "positives", split), classes[1:])
            self.blocks.equal(cases, classes)
            negatives.append(classes[:1])
        accepted, left_out, in_table = (
            self._count(account, "flow", key) for key in ("accepted", "left_out", "in_table")
        )
        self.blocks.equal(accepted, np.concatenate(splits))
        self.blocks.equal(in_table, np.concatenate([accepted, left_out]))
        for section, whole in (("label_sources", accepted), ("left_out_for", left_out)):
            if parts := {key: self._count(account, section, key) for key in account[section]}:
                self.blocks.equal(whole, np.concatenate(list(parts.values())))
            if "no_surgery" in parts:  # all of them without a pCR
                without = np.concatenate([parts["no_surgery"], self.blocks.cells(1)])
                self.blocks.equal(np.concatenate(negatives), without)
        for section, exactly in (("modalities", False), ("combinations", True)):
            for key in account[section]:
                having = [
                    cell
                    for (_, combination), cell in cells.items()
                    if (combination == key if exactly else key in combination.split("+"))
                ]
                flat = np.concatenate(having) if having else np.zeros(0, np.int64)
                self.blocks.equal(self._count(account, section, key), flat)

    def _count(
        self, account: Account, section: str, key: str, exact: int | None = None
    ) -> Positions:
        """One count, (1,). A site shows its zeros: what it withholds is 1 or more."""
        value = account[section][key]
        if value is None:
            return self.blocks.keep(exact, least=int(exact != 0))
        return self.blocks.add(f"{account['name']}/{section}/{key}", [value])

    def _classes(self, account: Account, split: str) -> Positions:
        """Negatives and positives of a split without results, (2,)."""
        positives, cases = account["positives"][split], account["cases"][split]
        negatives = None if positives is None or cases is None else cases - positives
        table = np.concatenate([self.blocks.keep(negatives), self.blocks.keep(positives)])
        if positives is not None and negatives is not None:
            self._protect(table, np.array([negatives, positives]))
        return table


def _fused(of_site: Mapping[str, tuple[int, int]]) -> np.ndarray:
    """A site's negatives and positives, (2,)."""
    counts = [n for key, n in of_site.items() if key.startswith("fused|")]
    total: np.ndarray = np.array(counts, np.int64).reshape(-1, 2).sum(axis=0)
    return total
