"""What travels between the coordinator and a site, as Flower records.

    order, coordinator to site
        "order"    {"json": TaskOrder}
        "weights"  {vector: float32}               train, profile, evaluate, compare: whole
        "steps"    {vector: uint8}                 the same: what is new, encoded
        "initial"  {group: float32 vector}         compare, of a run begun from a release
        "references"  {"mg.mean": float32 (d,), "mg.factor": float32 (d, d), ...}
                                                   evaluate, after a profile
    reply, site to coordinator
        "reply"    {"json": SiteDescription}       describe
                   {"json": SiteReply}             train, profile, evaluate
                   {"json": Comparison}            compare
        "update"   {vector: float32 or uint8}      train: the changes, encoded or not
        "scores"   {"cells": int32 (cells, 4)}     train, profile, evaluate
        "moments"  {modality: float64 (d + 1, d + 1)}  profile
        "distances"  {"cells": int32 (cells, 4)}   evaluate, with references

Documents are ConfigRecords; arrays are ConfigRecords of bytes, or ArrayRecords if they are large
(her2_common.arrays).

A vector is a group of the model's parameters ("mg", "head", ...) or, with SCAFFOLD, its control
("mg.control"). An order names the fingerprint of every vector that it is about; what the site holds
already is not sent again (her2_common.broadcast).

One flat array a vector: few large arrays travel faster than many small ones. Everything that
crosses is listed here and nowhere else.

The receiver trusts nothing: a message holds the records of its task and no others, documents are
checked against their schema, in which every number has bounds and every text a closed form, arrays
for their length before anything is read, then for their type, shape and finiteness.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import Field, ValidationError, field_validator, model_validator

from her2_common.arrays import Arrays, arrays_of, arrays_record, read_array
from her2_common.cases import MODALITIES, LabelSource, Modality, NoLabel, Split
from her2_common.config import MAX_SITE_CASES, Name, RoundNumber, RunConfig, Seconds, Task
from her2_common.documents import parse_json
from her2_common.errors import MetricError, UpdateError
from her2_common.metrics import GRID, ScoreHistogram
from her2_common.model import Group
from her2_common.novelty import Reference, pack, unpack
from her2_common.section import Section

MESSAGE_TYPES: Final[dict[Task, str]] = {
    "describe": "query",
    "train": "train",
    "profile": "evaluate",
    "evaluate": "evaluate",
    "compare": "evaluate",
    "response": "evaluate",
}
"""Flower's message type for each task."""

ORDER_RECORDS: Final[dict[Task, frozenset[str]]] = {
    "describe": frozenset({"order"}),
    "train": frozenset({"order", "weights", "steps"}),
    "profile": frozenset({"order", "weights", "steps"}),
    "evaluate": frozenset({"order", "weights", "steps", "references"}),
    "compare": frozenset({"order", "weights", "steps", "initial"}),
    "response": frozenset({"order", "query", "arrays", "weights"}),
}
"""The records that an order of each task may hold ..."""

REPLY_RECORDS: Final[dict[Task, frozenset[str]]] = {
    "describe": frozenset({"reply"}),
    "train": frozenset({"reply", "update", "scores"}),
    "profile": frozenset({"reply", "scores", "moments"}),
    "evaluate": frozenset({"reply", "scores", "distances"}),
    "compare": frozenset({"reply"}),
    "response": frozenset({"reply", "arrays"}),
}
"""... and a reply."""

_DOCUMENTS: Final = frozenset({"order", "query", "reply"})

_DOCUMENT_CHARACTERS: Final = 2**18
"""Longest JSON text of a document; an order, with the largest plan, has some 4,000. A design
value."""

_MODALITY_SETS: Final = r"(mg(\+us)?(\+mri)?|us(\+mri)?|mri)"
Combination = Annotated[str, Field(pattern=f"^{_MODALITY_SETS}$")]
"""One of the seven non-empty subsets of the modalities, e.g. "mg+us"."""

ScoreKey = Annotated[str, Field(pattern=rf"^((fused|low)\|{_MODALITY_SETS}|single\|(mg|us|mri))$")]
"""The name of a histogram: the fused score of a combination, the score of one modality, or, from a
model of three HER2 levels, the score of low against zero of the negatives of a combination."""

Cases = Annotated[int, Field(ge=0, le=MAX_SITE_CASES)]
"""Patients at one site; ``sites[].max_cases`` of federation.yaml sets each its own, lower limit."""

Loss = Annotated[float, Field(ge=0, le=1e6)]
"""A mean training loss, nats; a model that guesses at random has less than 10."""

Steps = Annotated[int, Field(ge=0, lt=2**31)]
"""Steps of the optimiser in one round."""

Variance = Annotated[float, Field(ge=-1, le=1)]
"""An element of the covariance of AUCs, which lie between 0 and 1."""

Version = Annotated[str, Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+-]{0,39}$")]
"""A release of her2-map, e.g. 0.1.0."""

VectorName = Annotated[str, Field(pattern=r"^(mg|us|mri|clinical|head)(\.control)?$")]
"""A group of parameters, or its control (SCAFFOLD)."""

Fingerprint = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""her2_common.broadcast.fingerprint of a vector."""


class TaskOrder(Section):
    """What a site is asked to do, on the vectors that ``weights`` names by their fingerprints.

    ``base`` is the last round in which an update of this site was folded in (0: none): the round
    whose memory the site works from, if the run's strategy or compression has it keep one.
    ``run_id`` is drawn when a run begins: memories of runs of the same name stay apart.
    """

    task: Task
    run: Name
    run_id: Annotated[str, Field(pattern=r"^([0-9a-f]{16})?$")] = ""
    version: Version
    round: RoundNumber = 0
    base: RoundNumber = 0
    split: Split = "val"
    weights: dict[VectorName, Fingerprint] = Field(default_factory=dict)
    plan: RunConfig

    @model_validator(mode="after")
    def _check_base(self) -> TaskOrder:
        if self.base > self.round or (self.task == "train" and self.base == self.round):
            raise ValueError(f"base: expected a round before {self.round}, got {self.base}")
        return self


class Counts(Section):
    """Cases, or None where a site does not tell because there are fewer than its min_cell."""

    train: Cases | None
    val: Cases | None
    test: Cases | None


class Flow(Section):
    """How many rows the site's table has and what became of them."""

    in_table: Cases | None
    accepted: Cases | None
    left_out: Cases | None


LeftOut = Literal["no_image", "few_cases", NoLabel]
"""Why a row of the table is not used: it has no usable image; it has only modalities that too few
training cases have; or it has no label, and why."""


class SiteDescription(Section):
    """A site's answer to describe: who it is and what it can train.

    ``groups`` always holds the head, which every case uses. ``levels`` says, in a run of three HER2
    levels, whether it tells HER2-low from HER2-zero. ``label_sources`` counts the cases used by
    where their label comes from, ``left_out_for`` those left out by the reason.
    """

    site: Name
    version: Version
    groups: tuple[Group, ...]
    flow: Flow
    cases: Counts
    positives: Counts
    combinations: dict[Combination, Cases | None]
    label_sources: dict[LabelSource, Cases | None] = Field(default_factory=dict)
    left_out_for: dict[LeftOut, Cases | None] = Field(default_factory=dict)
    levels: bool = False

    @field_validator("groups")
    @classmethod
    def _check_groups(cls, groups: tuple[Group, ...]) -> tuple[Group, ...]:
        if "head" not in groups or len(set(groups)) != len(groups):
            raise ValueError(f"expected different groups with the head, got {', '.join(groups)}")
        return groups


class SiteReply(Section):
    """A site's answer to train, profile or evaluate; the arrays travel beside it.

    ``counts[g]`` is the number of training cases that use group g, the weight of its update.
    ``score_keys`` names the histograms in "scores", ``distance_keys`` those in "distances";
    ``seconds`` are wall time by phase.
    """

    site: Name
    task: Task
    round: RoundNumber
    split: Split
    counts: dict[Group, Cases] = Field(default_factory=dict)
    loss: Loss | None = None
    steps: Steps = 0
    seconds: dict[Phase, Seconds] = Field(default_factory=dict)
    score_keys: tuple[ScoreKey, ...] = Field(default=(), max_length=17)
    distance_keys: tuple[Modality, ...] = Field(default=(), max_length=3)


Phase = Literal["train", "evaluate"]
"""The phases in a site's ``seconds``."""

ComparedModel = Literal["local", "federated", "personal"]
"""Trained at the site alone; the shared one; the shared one made the site's own."""


class Comparison(Section):
    """A site's answer to compare: how models (m) rank its own test cases.

    ``auc`` (m,) and DeLong's ``covariance`` (m, m). All of it is left out, ``models`` empty and the
    counts None, if a class has fewer cases than the site's min_cell.
    """

    site: Name
    round: RoundNumber
    models: tuple[ComparedModel, ...] = Field(default=(), max_length=3)
    negatives: Cases | None = None
    positives: Cases | None = None
    auc: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(default=(), max_length=3)
    covariance: tuple[tuple[Variance, ...], ...] | None = Field(default=None, max_length=3)
    seconds: Seconds = 0.0

    @model_validator(mode="after")
    def _check_models(self) -> Comparison:
        models, counts = len(self.models), (self.negatives, self.positives)
        matrix = np.array(self.covariance if self.covariance is not None else np.eye(models))
        sound = (
            self.models in ((), ("local", "federated"), ("local", "federated", "personal"))
            and len(self.auc) == models
            and (None in counts) == (not models)
            and matrix.shape == ((models, models) if models else (0, 0))
            and np.array_equal(matrix, matrix.T)
            and np.linalg.eigvalsh(matrix).min(initial=0.0) >= -1e-9
        )
        if not sound:
            raise ValueError("expected an AUC for each model and their covariance")
        return self


D = TypeVar("D", bound=Section)
K = TypeVar("K", bound=str)


def document_record(document: Section) -> ConfigRecord:
    """A document as a ConfigRecord."""
    return ConfigRecord({"json": document.model_dump_json()})


def check_records(record: RecordDict, allowed: frozenset[str]) -> None:
    """Does a message hold records of these names alone, each of its kind?

    Raises:
        UpdateError: "unknown record".
    """
    for name, content in record.items():
        kinds = ConfigRecord if name in _DOCUMENTS else (ConfigRecord, ArrayRecord)
        if name not in allowed or not isinstance(content, kinds):
            raise UpdateError(
                f"expected no records but {', '.join(sorted(allowed))}, each of its kind",
                reason="unknown record",
            )


def read_document(record: RecordDict, key: str, schema: type[D]) -> D:
    """The document under ``key``, checked against its schema. The error names the first field that
    breaks it and no value.

    Raises:
        UpdateError: "missing", or "misshapen": it breaks the schema.
    """
    content: Any = record.get(key)  # not by config_records: see her2_common.arrays.arrays_of
    if content is None or "json" not in content:
        raise UpdateError(f"expected a document {key!r}, got none", reason="missing")
    text = content["json"]
    if set(content) != {"json"} or not isinstance(text, str) or len(text) > _DOCUMENT_CHARACTERS:
        raise UpdateError(
            f"document {key!r}: expected one text of at most {_DOCUMENT_CHARACTERS} characters",
            reason="misshapen",
        )
    try:
        return schema.model_validate(parse_json(text))
    except (ValueError, TypeError, RecursionError) as error:
        where = _field_of(schema, error) if isinstance(error, ValidationError) else "not JSON"
        raise UpdateError(
            f"document {key!r} breaks the schema {schema.__name__}: {where}", reason="misshapen"
        ) from None


def _field_of(schema: type[Section], error: ValidationError) -> str:
    """The first field of the schema that a document breaks; no name of the sender's is repeated."""
    at = error.errors(include_url=False, include_context=False, include_input=False)[0]["loc"]
    return (
        str(at[0]) if at and at[0] in schema.model_fields else "its keys, or what they say together"
    )


def scores_record(scores: Mapping[K, ScoreHistogram]) -> tuple[Arrays, tuple[K, ...]]:
    """Histograms as their non-empty cells: int32 rows (key index, class, bin, count)."""
    keys = tuple(sorted(scores))
    rows = []
    for index, key in enumerate(keys):
        for label, counts in enumerate((scores[key].negatives, scores[key].positives)):
            for position in np.flatnonzero(counts):
                rows.append((index, label, int(position), int(counts[position])))
    cells = np.array(rows, dtype=np.int32).reshape(-1, 4)
    return arrays_record({"cells": Array(cells)}), keys


def read_scores(
    record: RecordDict, keys: tuple[str, ...], name: str = "scores"
) -> dict[str, ScoreHistogram]:
    """The histograms of a reply, under ``name``.

    Raises:
        UpdateError: "missing" or "misshapen".
    """
    arrays = arrays_of(record, name)
    if "cells" not in arrays:
        raise UpdateError(f"expected histograms of {name}, got none", reason="missing")
    if len(arrays) > 1:
        raise UpdateError(f"histograms of {name}: expected one array", reason="misshapen")
    cells = read_array(arrays["cells"])
    limits = np.array([len(keys), 2, GRID + 1])
    if (
        cells is None
        or cells.ndim != 2
        or cells.shape[1] != 4
        or cells.dtype != np.int32
        or (cells < 0).any()
        or (cells[:, :3] >= limits).any()
        or len(set(keys)) != len(keys)
    ):
        raise UpdateError(f"histograms of {name} are out of shape", reason="misshapen")
    tables = np.zeros((len(keys), 2, GRID + 1), dtype=np.int64)
    np.add.at(tables, (cells[:, 0], cells[:, 1], cells[:, 2]), cells[:, 3])
    try:
        return {key: ScoreHistogram(*tables[index]) for index, key in enumerate(keys)}
    except MetricError as error:
        raise UpdateError(f"histograms of {name}: {error}", reason="misshapen") from None


_LARGEST_MOMENT: Final = 2.0**40
"""Of a sum of products of features, which the model's normalisation holds near 1."""

_ROUNDING: Final = 1e-9
"""A sum of squares has no eigenvalue below 0 but for rounding, by its largest element."""


def moments_record(moments: Mapping[Modality, np.ndarray]) -> Arrays:
    """Second moments of features as a record."""
    return arrays_record({modality: Array(total) for modality, total in moments.items()})


def read_moments(
    record: RecordDict, d: int, counts: Mapping[str, int]
) -> dict[Modality, np.ndarray]:
    """The second moments of a reply, for features of width ``d``.

    ``counts[m]`` is the number of training cases with modality m, as the site's reply has it.

    Raises:
        UpdateError: "missing", "unknown group", "wrong type", "misshapen", "not finite" or "wrong
            count".
    """
    if "moments" not in record:
        raise UpdateError("expected second moments, got none", reason="missing")
    result: dict[Modality, np.ndarray] = {}
    for name, array in arrays_of(record, "moments").items():
        modality = next((m for m in MODALITIES if m == name), None)
        if modality is None or name not in counts:
            raise UpdateError("moments of no modality of this site", reason="unknown group")
        total = read_array(array)
        if total is None or total.shape != (d + 1, d + 1):
            raise UpdateError(
                f"moments {name}: expected shape {(d + 1, d + 1)}", reason="misshapen"
            )
        if total.dtype != np.float64:
            raise UpdateError(
                f"moments {name}: expected float64, got {total.dtype}", reason="wrong type"
            )
        if not np.isfinite(total).all():
            raise UpdateError(f"moments {name}: holds NaN or infinity", reason="not finite")
        with np.errstate(over="ignore", invalid="ignore"):
            size = float(np.abs(total).max())
            square = np.array_equal(total, total.T) and size < _LARGEST_MOMENT
            if not square or np.linalg.eigvalsh(total)[0] < -_ROUNDING * size:
                raise UpdateError(f"moments {name}: not sums of squares", reason="misshapen")
        if total[0, 0] != counts[name]:
            raise UpdateError(
                f"moments {name}: expected those of {counts[name]} cases, got {total[0, 0]:g}",
                reason="wrong count",
            )
        result[modality] = total
    return result


def references_record(references: Mapping[Modality, Reference]) -> Arrays:
    """References as a record."""
    return arrays_record({name: Array(array) for name, array in pack(references).items()})


def read_references(record: RecordDict, d: int) -> dict[Modality, Reference]:
    """The references of an order, for features of width ``d``; empty if it has none.

    Raises:
        UpdateError: "misshapen" or "not finite".
    """
    arrays = arrays_of(record, "references")
    return unpack({name: read_array(array) for name, array in arrays.items()}, d)


def payload_bytes(record: RecordDict) -> int:
    """Bytes of content in a message: serialised arrays and documents, without Flower's framing."""
    return sum(record_bytes(part) for part in record.values())


def record_bytes(part: Mapping[str, Any]) -> int:
    """The same of one record."""
    return sum(_bytes(value) for value in part.values())


def _bytes(value: object) -> int:
    if isinstance(value, Array | bytes):
        return len(value.data if isinstance(value, Array) else value)
    return len(str(value).encode())
