"""A site's part in the response evaluation: statistics of its own test cases, and who asked what.

1. The policy must allow the task (``check_order``). The first query of a run pins the analysis
   plan, its threshold with it, and the weights, durably: others are refused afterwards, unless
   ``policy.allowed_plans`` names the plan's SHA-256.
2. Each different query counts against ``policy.max_queries``, before it is answered; the same
   query again is not counted, for its answer tells nothing new.
3. The cases are those of the test split, by the cache and by the table as it is now, and by the
   record of whom the run trained with (``served``); their scores come from the weights, are
   computed once and kept with the record.
4. ``her2_common.response.queries`` answers or withholds, by the larger of the plan's ``min_cell``
   and the policy's.

The record is ``response/<run>.json`` and ``.npz`` in the state folder.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np

from her2_client.cache import Cache, index_digest, open_cache, read_index
from her2_client.cohort import load_cohort
from her2_client.engine import ready_model
from her2_client.keys import read_pseudonym_key
from her2_client.policy import check_order, check_tested
from her2_client.scoring import score
from her2_client.served import served
from her2_common.broadcast import fingerprint
from her2_common.cases import MODALITIES, Case, Modality, pseudonym, read_cases, splits
from her2_common.clinical import DEFAULT_PCR, PcrDefinition
from her2_common.config import SiteConfig
from her2_common.documents import parse_json
from her2_common.errors import DataError, PolicyError, StaleBaseError, UpdateError
from her2_common.files import replace_privately
from her2_common.model import preset
from her2_common.response.codec import pack
from her2_common.response.patients import Patients, one_row_each
from her2_common.response.plan import Plan
from her2_common.response.queries import Query, Source, Statistic
from her2_common.wire import TaskOrder

FOLDER: Final = "response"

Weights = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Asked:
    """A query as it came, with the order and the weights (none if not sent)."""

    order: TaskOrder
    weights: Weights
    analysis: Plan
    query: Query

    @property
    def prints(self) -> Mapping[str, str]:
        """The fingerprints of the weights that the query is about."""
        return dict(self.order.weights)


@dataclass(frozen=True)
class Answered:
    """The statistic as arrays, None if it is withheld, and how many queries were answered."""

    arrays: dict[str, np.ndarray] | None
    queries: int


class Responder:
    """Answers the queries of one site. Keeps the rows of the last run in memory."""

    def __init__(
        self, config: SiteConfig, device: Any, notify: Callable[[str], None] = lambda _: None
    ) -> None:
        self.config = config
        self.device = device
        self.notify = notify
        self._source: tuple[str, Source] | None = None

    def answer(self, order: TaskOrder, weights: Weights, analysis: Plan, query: Query) -> Answered:
        """Steps 1 to 4, for an order of the task response; ``weights`` are empty if none came.

        Raises:
            PolicyError: the policy refuses the order; another plan or release than before; too
                many queries.
            StaleBaseError: the weights are needed and did not come.
            DataError, TableError, CacheError: the site's own data cannot be used.
            UpdateError: weights or query are not what the order says.
        """
        check_order(self.config.policy, order)
        check_tested(self.config.state, order)
        asked = Asked(order, weights, analysis, query)
        record = self._record(asked)
        scores = self._scores(asked)
        source = self._rows(asked, scores)
        statistic: Statistic | None = source.answer(asked.query)
        told = "withheld: small cells" if statistic is None else "answered"
        name = " ".join(part for part in (asked.query.kind, asked.query.item) if part)
        used = len(record["queries"])
        self.notify(
            f"response: {name} {told}, query {used} of {self.config.policy.max_queries}, "
            f"plan {asked.analysis.sha256[:16]}"
        )
        return Answered(None if statistic is None else pack(statistic), used)

    # --- 1. and 2. what was asked before ---------------------------------------------------------

    def _path(self, asked: Asked, ending: str) -> Path:
        return self.config.state / FOLDER / f"{asked.order.run}.{ending}"

    def _record(self, asked: Asked) -> dict[str, Any]:
        """The record of the run with this query in it, on disk."""
        path, policy = self._path(asked, "json"), self.config.policy
        pins = {
            "plan": asked.analysis.sha256,
            "weights": _digest(asked.prints),
        }
        record = self._read(path)
        if record is None:
            record = {**pins, "queries": []}
        elif changed := [name for name in pins if record[name] != pins[name]]:
            if pins["plan"] not in policy.allowed_plans:
                raise PolicyError(
                    f"{asked.order.run}: queries were answered under the {changed[0]} "
                    f"{str(record[changed[0]])[:16]}, got {str(pins[changed[0]])[:16]}: the "
                    "analysis is fixed before the outcomes are seen",
                    hint=f"to allow it, put {pins['plan']} into policy.allowed_plans",
                )
            record |= pins
        digest = _query_digest(asked)
        if digest not in record["queries"]:
            if len(record["queries"]) >= policy.max_queries:
                raise PolicyError(
                    f"policy.max_queries: {policy.max_queries} queries of {asked.order.run} were "
                    "answered, and this is another one"
                )
            record["queries"].append(digest)
        replace_privately(path, (json.dumps(record, indent=1) + "\n").encode())
        return record

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            record = {}
        if not {"plan", "weights", "queries"} <= record.keys():
            # Without it the budget is unknown: fail closed
            raise PolicyError(
                f"{path}: the record of answered queries is damaged",
                hint="restore it from your backup, or remove it to begin a new one",
            )
        return record

    # --- 3. rows and scores ----------------------------------------------------------------------

    def _scores(self, asked: Asked) -> dict[str, np.ndarray]:
        """Scores of the test cases: ``pseudonyms`` (n,), ``fused`` (n,) and each modality's."""
        path = self._path(asked, "npz")
        cache = open_cache(self.config.data.cache)
        stamp = _digest({**asked.prints, "cache": index_digest(read_index(cache.folder))})
        try:
            with np.load(path, allow_pickle=False) as file:
                kept = {name: file[name] for name in file.files}
            if str(kept.pop("stamp")) == stamp:
                return kept
        except (OSError, ValueError, KeyError):
            pass  # there are none, or not of these weights
        if not asked.weights or "head" not in asked.prints:
            raise StaleBaseError("the weights are needed to score the test cases, and did not come")
        if {name: fingerprint(vector) for name, vector in asked.weights.items()} != asked.prints:
            raise UpdateError("expected the weights that the order names", reason="misshapen")
        scores = self._score(asked, cache)
        _write_arrays(path, {"stamp": np.array(stamp), **scores})
        return scores

    def _score(self, asked: Asked, cache: Cache) -> dict[str, np.ndarray]:
        layout = preset(asked.order.plan.preset, **asked.order.plan.layout)
        modalities: list[Modality] = [m for m in MODALITIES if m in asked.weights]
        cohort = load_cohort(
            cache,
            split="test",
            label=None,
            image_size=layout.image_size,
            volume_size=layout.volume_size,
            modalities=modalities,
            device=self.device,
        )
        if not len(cohort):
            raise DataError("expected test cases with an image that the model reads, got none")
        if not served(self.config.state, asked.order.run).isdisjoint(cohort.pseudonyms):
            raise DataError(
                f"expected test cases that had no part in run {asked.order.run}, got some that "
                "trained or validated in it",
                hint="the splits have changed since: ingest again with the case table and the "
                "pseudonym key of that run",
            )
        if "clinical" not in asked.weights:
            cohort = cohort.without_clinical()
        weights = {name: vector.copy() for name, vector in asked.weights.items()}  # torch's own
        model = ready_model(
            asked.order.plan, weights, self.device, rows_at_once=self.config.rows_at_once
        )
        found = score(model, cohort)
        self.notify(f"response: scored {len(cohort)} test cases")
        return {
            "pseudonyms": np.array(cohort.pseudonyms),
            "fused": found.fused,
            **{m: found.single[m] for m in modalities},
        }

    def _rows(self, asked: Asked, scores: Mapping[str, np.ndarray]) -> Source:
        """The test cases with their scores, as a source of answers."""
        config = self.config
        min_cell = max(config.policy.min_cell, asked.analysis.min_cell)
        content = config.data.cases.read_bytes()
        key = _digest(
            {**asked.prints, "plan": asked.analysis.sha256,
             "cells": str(min_cell), "table": hashlib.sha256(content).hexdigest(),
             "cases": hashlib.sha256("".join(scores["pseudonyms"].tolist()).encode()).hexdigest()}
        )  # fmt: skip
        if self._source is None or self._source[0] != key:
            patients = patients_of(config, scores, asked.analysis.pcr)
            source = Source(
                patients, asked.analysis, asked.analysis.fixed_threshold, min_cell=min_cell
            )
            self._source = (key, source)
        return self._source[1]


def patients_of(
    config: SiteConfig, scores: Mapping[str, np.ndarray], definition: PcrDefinition = DEFAULT_PCR
) -> Patients:
    """The rows of the scored cases: what the table says of each, and its scores.

    Raises:
        DataError: a scored case is not in the table, or the table puts it into another split.
    """
    key = read_pseudonym_key(config.data.pseudonym_key_file)
    table = read_cases(config.data.cases)
    of_case = splits(table, key)
    known = {pseudonym(key, case.case_id): case for case in table.cases}
    cases: list[Case] = []
    for name in scores["pseudonyms"].tolist():
        case = known.get(name)
        if case is None:
            raise DataError(
                "a case of the cache is not in the case table",
                hint="the table or the pseudonym key has changed: run her2-client ingest again",
            )
        if of_case[case.case_id] != "test":
            raise DataError(
                f"row {case.row}: expected a test case, as at ingest, got one of the "
                f"{of_case[case.case_id]} split",
                hint="cases that trained the model are not evaluated: run her2-client ingest again",
            )
        cases.append(case)

    def column(value: Callable[[Case], float | None]) -> np.ndarray:
        found = [value(case) for case in cases]
        return np.array([math.nan if v is None else float(v) for v in found], np.float64)

    columns = {
        "pcr": column(lambda case: case.response(definition)),
        "biopsy": column(lambda case: case.biopsy.her2),
        "therapy": column(lambda case: case.anti_her2),
        "hr": column(lambda case: case.hr),
        "t": column(lambda case: case.clinical_t),
        "n": column(lambda case: case.clinical_n),
        "age": column(lambda case: case.age),
        "modalities": column(
            lambda case: sum(2 ** MODALITIES.index(m) for m in case.modalities) or None
        ),
        "score": scores["fused"],
    }
    columns |= {m: scores[m] for m in MODALITIES if m in scores}
    columns, conflicts = one_row_each([case.patient_id for case in cases], columns)
    if conflicts:
        name, one, other = conflicts[0]
        raise DataError(
            f"rows {cases[one].row} and {cases[other].row}: expected one {name} of one patient, "
            "got two",
            hint="pCR and therapy are those of the patient, not of a lesion or a breast",
        )
    return Patients(config.name, columns)


def _digest(values: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _query_digest(asked: Asked) -> str:
    """SHA-256 of everything on which the answer depends, but for the rows."""
    query = asked.query
    digest = hashlib.sha256(
        json.dumps(
            [asked.analysis.sha256, _digest(asked.prints), query.kind, query.item,
             query.centres, query.reduced]
        ).encode()
    )  # fmt: skip
    for name, array in sorted(query.arrays.items()):
        digest.update(json.dumps([name, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    buffer = BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    replace_privately(path, buffer.getvalue())
