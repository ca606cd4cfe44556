"""Messages: what is sent comes back, and each malformed message has its reason."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from her2_common.config import MAX_SITE_CASES, RunConfig
from her2_common.errors import UpdateError
from her2_common.metrics import GRID, ScoreHistogram
from her2_common.model import GROUPS
from her2_common.novelty import moments, reference_of
from her2_common.response_wire import ResponseQuery, ResponseReply
from her2_common.vectors import vectors_record
from her2_common.wire import (
    Comparison,
    SiteDescription,
    SiteReply,
    TaskOrder,
    document_record,
    moments_record,
    payload_bytes,
    read_document,
    read_moments,
    read_references,
    read_scores,
    references_record,
    scores_record,
)

KEYS = ("fused|mg", "fused|mg+us", "fused|us+mri", "single|us")


def packed(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


HEAD = np.arange(4, dtype=np.float32)


def archive() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=HEAD)
    return stream.getvalue()


def array_of(content: bytes) -> Array:
    return Array(dtype="float32", shape=(4,), stype="numpy.ndarray", data=content)


# --- documents ----------------------------------------------------------------------------------

ORDER = TaskOrder(task="train", run="demo", version="1", round=3, plan=RunConfig(rounds=7))
REPLY = SiteReply(site="centre-a", task="train", round=1, split="val", counts={"head": 12})
DESCRIPTION: dict[str, Any] = {
    "site": "centre-a",
    "version": "1",
    "groups": ["us", "head"],
    "flow": {"in_table": 30, "accepted": 20, "left_out": None},
    "cases": {"train": 12, "val": None, "test": 0},
    "positives": {"train": None, "val": None, "test": 0},
    "combinations": {"us": 20, "mg+us": None},
}


def text_of(schema: type[Any], text: Any) -> Any:
    return read_document(RecordDict({"doc": ConfigRecord({"json": text})}), "doc", schema)


def test_documents_come_back() -> None:
    for document in (ORDER, REPLY, SiteDescription.model_validate(DESCRIPTION)):
        record = RecordDict({"doc": document_record(document)})
        assert read_document(record, "doc", type(document)) == document


@settings(deadline=None, max_examples=40)
@given(
    counts=st.dictionaries(st.sampled_from(GROUPS), st.integers(0, MAX_SITE_CASES)),
    loss=st.none() | st.floats(0, 1e6),
    keys=st.lists(st.sampled_from(KEYS), unique=True),
)
def test_any_sound_reply_comes_back(
    counts: dict[str, int], loss: float | None, keys: list[str]
) -> None:
    sent = REPLY.model_copy(update={"counts": counts, "loss": loss, "score_keys": tuple(keys)})
    assert read_document(RecordDict({"r": document_record(sent)}), "r", SiteReply) == sent


def changed(document: dict[str, Any], **changes: Any) -> str:
    return json.dumps(document | changes)


REPLY_DOCUMENT = json.loads(REPLY.model_dump_json())
BAD_DOCUMENTS: dict[str, tuple[type[Any], Any]] = {
    "no JSON": (SiteReply, "{"),
    "no object": (SiteReply, "[1, 2]"),
    "a number": (SiteReply, 5),
    "too deep": (SiteReply, "[" * 200_000),
    "unknown key": (SiteReply, changed(REPLY_DOCUMENT, note="x")),
    "negative round": (SiteReply, changed(REPLY_DOCUMENT, round=-1)),
    "loss is NaN": (SiteReply, changed(REPLY_DOCUMENT, loss=float("nan"))),
    "loss is infinite": (SiteReply, changed(REPLY_DOCUMENT, loss=float("inf"))),
    "endless seconds": (SiteReply, changed(REPLY_DOCUMENT, seconds={"train": float("inf")})),
    "a loss of 1e308": (SiteReply, changed(REPLY_DOCUMENT, loss=1e308)),
    "more than a month": (SiteReply, changed(REPLY_DOCUMENT, seconds={"train": 1e308})),
    "seconds of no phase": (SiteReply, changed(REPLY_DOCUMENT, seconds={"idle": 1.0})),
    "cases of no group": (SiteReply, changed(REPLY_DOCUMENT, counts={"tail": 1})),
    "a whole number of 400 digits": (SiteReply, changed(REPLY_DOCUMENT, steps=10**400)),
    "a version of lines": (SiteDescription, changed(DESCRIPTION, version="1\n2")),
    "a version of escapes": (SiteDescription, changed(DESCRIPTION, version="\x1b[31m1")),
    "a version of a million letters": (SiteDescription, changed(DESCRIPTION, version="1" * 10**6)),
    "site with a path": (SiteReply, changed(REPLY_DOCUMENT, site="../a")),
    "unknown task": (SiteReply, changed(REPLY_DOCUMENT, task="copy")),
    "unknown score": (SiteReply, changed(REPLY_DOCUMENT, score_keys=["fused|us+mg"])),
    "score with markup": (SiteReply, changed(REPLY_DOCUMENT, score_keys=["fused|<b>"])),
    "no head": (SiteDescription, changed(DESCRIPTION, groups=["us"])),
    "a group twice": (SiteDescription, changed(DESCRIPTION, groups=["us", "us", "head"])),
    "unknown group": (SiteDescription, changed(DESCRIPTION, groups=["tail", "head"])),
    "negative cases": (SiteDescription, changed(DESCRIPTION, combinations={"us": -1})),
    "unknown combination": (SiteDescription, changed(DESCRIPTION, combinations={"us+us": 1})),
    "unknown split": (TaskOrder, changed(json.loads(ORDER.model_dump_json()), split="all")),
}


@pytest.mark.parametrize("name", BAD_DOCUMENTS)
def test_bad_documents_are_misshapen(name: str) -> None:
    with pytest.raises(UpdateError) as caught:
        text_of(*BAD_DOCUMENTS[name])
    assert caught.value.reason == "misshapen"


_KEYED = {"properties", "patternProperties", "propertyNames"}


def faults_of(schema: Any, at: str = "") -> Iterator[str]:
    """Where a JSON schema leaves a number without bounds or a text without a form."""
    if isinstance(schema, list):
        for part in schema:
            yield from faults_of(part, at)
    if not isinstance(schema, dict):
        return
    kind = schema.get("type")
    if kind in ("number", "integer"):
        for bound in ("inimum", "aximum"):
            if not {f"m{bound}", f"exclusiveM{bound}", "const", "enum"} & schema.keys():
                yield f"{at}: no m{bound}"
    if kind == "string" and not {"pattern", "enum", "const"} & schema.keys():
        yield f"{at}: any text"
    if kind == "object" and not _KEYED & schema.keys():
        yield f"{at}: any key"
    for key, part in schema.items():
        if key in ("properties", "$defs", "patternProperties"):
            for name, inner in part.items():
                yield from faults_of(inner, f"{at}.{name}")
        elif key not in ("propertyNames", "default", "examples"):
            yield from faults_of(part, at)


@pytest.mark.parametrize(
    "schema",
    [TaskOrder, SiteDescription, SiteReply, Comparison, ResponseQuery, ResponseReply],
    ids=lambda schema: schema.__name__,
)
def test_every_number_that_crosses_has_bounds_and_every_text_a_form(schema: type[Any]) -> None:
    checked_otherwise = (".terms", ".tested", ".propensity")  # lists of columns, by a validator
    faults = [
        fault
        for fault in faults_of(schema.model_json_schema())
        if not any(f"{name}:" in fault for name in checked_otherwise)
    ]
    assert faults == []


def test_the_fault_is_told_without_the_document() -> None:
    with pytest.raises(UpdateError) as caught:
        text_of(SiteReply, changed(REPLY_DOCUMENT, site="MRS^CANARY"))
    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize(
    "record",
    [RecordDict(), RecordDict({"doc": ConfigRecord({"text": "{}"})})],
    ids=["no record", "no json"],
)
def test_a_missing_document(record: RecordDict) -> None:
    with pytest.raises(UpdateError) as caught:
        read_document(record, "doc", SiteReply)
    assert caught.value.reason == "missing"


# --- scores -------------------------------------------------------------------------------------

cell_counts = st.dictionaries(st.integers(0, GRID), st.integers(1, 10_000), max_size=8)


def to_histogram(negatives: dict[int, int], positives: dict[int, int]) -> ScoreHistogram:
    tables = np.zeros((2, GRID + 1), np.int64)
    for table, cells in zip(tables, (negatives, positives), strict=True):
        for position, count in cells.items():
            table[position] = count
    return ScoreHistogram(*tables)


@settings(deadline=None, max_examples=40)
@given(
    scores=st.dictionaries(
        st.sampled_from(KEYS), st.builds(to_histogram, cell_counts, cell_counts), max_size=4
    )
)
def test_scores_come_back(scores: dict[str, ScoreHistogram]) -> None:
    record, keys = scores_record(scores)
    assert keys == tuple(sorted(scores))
    assert read_scores(RecordDict({"scores": record}), keys) == scores


def cells(*rows: tuple[int, ...], dtype: Any = np.int32) -> Array:
    return Array(np.array(rows, dtype=dtype).reshape(-1, len(rows[0]) if rows else 4))


BAD_SCORES: dict[str, Callable[[], Array]] = {
    "three columns": lambda: cells((0, 0, 5)),
    "one axis": lambda: Array(np.zeros(4, np.int32)),
    "unknown key": lambda: cells((1, 0, 5, 1)),
    "third class": lambda: cells((0, 2, 5, 1)),
    "beyond the grid": lambda: cells((0, 0, GRID + 1, 1)),
    "negative count": lambda: cells((0, 0, 5, -1)),
    "negative bin": lambda: cells((0, 0, -1, 1)),
    "floats": lambda: cells((0, 0, 5, 1), dtype=np.float64),
    "unsigned": lambda: cells((0, 0, 5, 2**64 - 3), dtype=np.uint64),
    "more cases than anybody has": lambda: cells((0, 0, 5, 2**31 - 1), (0, 0, 5, 2**31 - 1)),
    "an archive": lambda: array_of(archive()),
}


@pytest.mark.parametrize("name", BAD_SCORES)
def test_bad_scores_are_misshapen(name: str) -> None:
    record = RecordDict({"scores": ArrayRecord({"cells": BAD_SCORES[name]()})})
    with pytest.raises(UpdateError) as caught:
        read_scores(record, ("fused|mg",))
    assert caught.value.reason == "misshapen"


def test_a_key_that_stands_twice_is_refused() -> None:
    record = RecordDict({"scores": ArrayRecord({"cells": cells((0, 0, 5, 1), (1, 0, 5, 1))})})
    with pytest.raises(UpdateError, match="out of shape"):
        read_scores(record, ("fused|mg", "fused|mg"))


@pytest.mark.parametrize(
    "record", [RecordDict(), RecordDict({"scores": ArrayRecord({})})], ids=["none", "no cells"]
)
def test_missing_scores(record: RecordDict) -> None:
    with pytest.raises(UpdateError) as caught:
        read_scores(record, ())
    assert caught.value.reason == "missing"


# --- bytes --------------------------------------------------------------------------------------


def test_payload_bytes_are_those_of_the_content() -> None:
    """A float32 vector of n numbers is 4 n bytes and numpy's header of 128; text is UTF-8."""
    record = RecordDict(
        {
            "weights": vectors_record({"head": HEAD}),
            "reply": ConfigRecord({"json": "größe"}),
        }
    )
    assert payload_bytes(record) == (4 * 4 + 128) + 7
    assert payload_bytes(RecordDict()) == 0


# --- moments, references, distances -------------------------------------------------------------

D = 3
FEATURES = np.random.default_rng(0).normal(size=(20, D)).astype(np.float32)
TOTAL = moments(FEATURES)


def moments_message(**arrays: np.ndarray) -> RecordDict:
    return RecordDict({"moments": ArrayRecord({m: Array(a) for m, a in arrays.items()})})


def test_moments_come_back_bit_for_bit() -> None:
    record = RecordDict({"moments": moments_record({"us": TOTAL})})
    got = read_moments(record, D, {"us": 20, "head": 25})
    assert list(got) == ["us"]
    assert got["us"].tobytes() == TOTAL.tobytes()
    assert read_moments(moments_message(), D, {"us": 20}) == {}


def with_value(row: int, column: int, value: float) -> np.ndarray:
    changed = TOTAL.copy()
    changed[row, column] = changed[column, row] = value
    return changed


def one_sided() -> np.ndarray:
    changed = TOTAL.copy()
    changed[0, 1] += 1e-9
    return changed


BAD_MOMENTS = {
    "not a modality": (moments_message(head=TOTAL), "unknown group"),
    "not of this site": (moments_message(mri=TOTAL), "unknown group"),
    "narrow": (moments_message(us=TOTAL[1:, 1:]), "misshapen"),
    "float32": (moments_message(us=TOTAL.astype(np.float32)), "wrong type"),
    "nan": (moments_message(us=with_value(1, 2, np.nan)), "not finite"),
    "infinity": (moments_message(us=with_value(1, 1, np.inf)), "not finite"),
    "not symmetric": (moments_message(us=one_sided()), "misshapen"),
    "a negative square": (moments_message(us=with_value(2, 2, -1.0)), "misshapen"),
    "other cases": (moments_message(us=with_value(0, 0, 21.0)), "wrong count"),
    "none": (RecordDict(), "missing"),
    "noise": (RecordDict({"moments": ArrayRecord({"us": array_of(b"x")})}), "misshapen"),
}


@pytest.mark.parametrize("name", BAD_MOMENTS)
def test_bad_moments_have_their_reason(name: str) -> None:
    record, reason = BAD_MOMENTS[name]
    with pytest.raises(UpdateError) as caught:
        read_moments(record, D, {"us": 20, "head": 25})
    assert caught.value.reason == reason


def test_references_come_back_bit_for_bit() -> None:
    reference = reference_of(TOTAL)
    record = RecordDict({"references": references_record({"us": reference})})
    got = read_references(record, D)
    assert got["us"].mean.tobytes() == reference.mean.tobytes()
    assert got["us"].factor.tobytes() == reference.factor.tobytes()
    assert read_references(RecordDict(), D) == {}
    with pytest.raises(UpdateError):
        read_references(record, D + 1)
    noise = RecordDict({"references": ArrayRecord({"us.mean": array_of(b"x")})})
    with pytest.raises(UpdateError, match="reference"):
        read_references(noise, D)


def test_histograms_of_distances_have_a_record_of_their_own() -> None:
    histogram = ScoreHistogram.from_scores([0.5, 0.75], [0, 0])
    cells, keys = scores_record({"mri": histogram})
    record = RecordDict({"distances": cells})
    assert read_scores(record, keys, "distances") == {"mri": histogram}
    with pytest.raises(UpdateError, match="histograms of scores, got none"):
        read_scores(record, keys)


# --- orders -------------------------------------------------------------------------------------


def order(**changes: Any) -> dict[str, Any]:
    return {"task": "train", "run": "r", "version": "1", "round": 3, "plan": {}} | changes


def test_an_order_names_its_vectors_and_its_base() -> None:
    made = TaskOrder.model_validate(order(base=2, weights={"us": "0" * 64, "us.control": "f" * 64}))
    assert made.base == 2
    assert TaskOrder.model_validate(order(task="evaluate", base=3)).base == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"base": 3},
        {"base": -1},
        {"task": "profile", "base": 4},
        {"weights": {"ct": "0" * 64}},
        {"weights": {"us.step": "0" * 64}},
        {"weights": {"us": "0" * 63}},
        {"weights": {"us": "Z" * 64}},
    ],
)
def test_an_order_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TaskOrder.model_validate(order(**changes))
