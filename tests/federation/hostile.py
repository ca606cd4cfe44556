"""Sites that answer again what they answered once, and one of them whatever a seed says.

The honest answers are recorded over a true run. Played back they cost no training, so that many
runs can be tried; they still pass the wire (her2_deploy.simulation.LocalGrid).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from io import BytesIO
from random import Random
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from her2_common.arrays import read_array

Content = dict[str, dict[str, Any]]
"""Record -> key -> JSON text or the bytes of an array."""

Recorded = dict[tuple[str, int, str], Content]
"""(task, round, split) -> what a site answered."""

NUMBERS = (
    0, -1, 1, 3, 255, 5_000_000, 2**31, 2**53, 2**63, -(2**63), 1e-308, 1e15, 1e308, -1e308,
    math.nan, math.inf, -math.inf, 0.5, True, False, None,
)  # fmt: skip
TEXTS = (
    "", "head", "centre-a", "line\nbreak", "\x1b[2J\x1b[31mred", "=1+1", "\u202ereversed",
    "x" * 100_000, "../../etc/passwd", "{{ 7 * 7 }}", "<script>alert(1)</script>", "1e308",
)  # fmt: skip
DTYPES = ("<f8", "<f4", "<f2", ">f4", "<i8", "<i4", "|u1", "|b1", "<c8", "<U3", "<M8[s]")


def order_of(message: Message) -> tuple[str, int, str]:
    """What an order asks for."""
    document = json.loads(message.content["order"]["json"])
    return document["task"], document["round"], document["split"]


def recorder(into: Recorded) -> Callable[[Message, Callable[[], Message]], list[Message]]:
    """A fault that changes nothing and notes what is answered."""

    def fault(message: Message, answer: Callable[[], Message]) -> list[Message]:
        reply = answer()
        parts = {name: dict(record) for name, record in reply.content.items()}
        into[order_of(message)] = parts
        return [reply]

    return fault


def playing(recorded: Recorded, alter: Callable[[Content], Content | Error] = dict) -> ClientApp:
    """A site that answers what was recorded, altered."""
    app = ClientApp()

    def play(message: Message, _: Context) -> Message:
        content = {name: dict(part) for name, part in recorded[order_of(message)].items()}
        altered = alter(content)
        if isinstance(altered, Error):
            return Message(altered, reply_to=message)
        records = {
            name: part if isinstance(part, MetricRecord) else ConfigRecord(part)
            for name, part in altered.items()
        }
        return Message(RecordDict(records), reply_to=message)

    app.query()(play)
    app.train()(play)
    app.evaluate()(play)
    return app


# --- what a seed does to an answer --------------------------------------------------------------


def spoil(content: Content, chance: Random) -> Content | Error:
    """One thing, or a few, of an answer changed to something that it should not be."""
    if chance.random() < 0.05:
        return Error(chance.choice((0, 3, 4, 5, 8, 201, 2**31 - 1)), chance.choice(TEXTS))
    for _ in range(chance.choice((1, 1, 1, 3))):
        kind = chance.random()
        name = chance.choice(sorted(content))
        part = content[name]
        if kind < 0.1:
            _spoil_records(content, name, chance)
        elif isinstance(part, MetricRecord) or not part:
            content[name] = {"json": "{}"}
        elif "json" in part:
            part["json"] = _spoiled_text(part["json"], chance)
        else:
            key = chance.choice(sorted(part))
            part[key] = _spoiled_array(part[key], chance)
        if not content:
            break
    return content


def _spoil_records(content: Content, name: str, chance: Random) -> None:
    what = chance.randrange(5)
    if what == 0:
        del content[name]
    elif what == 1:
        content["extra"] = {"json": "{}"}
    elif what == 2:
        content[name] = MetricRecord({"loss": 1.0})  # type: ignore[assignment]
    elif what == 3:
        content[chance.choice(("update", "scores", "arrays", "moments", "reply"))] = content[name]
    else:
        content[name] = content[name] | {chance.choice(("json", "cells", "mg", "x\n")): b"\x00"}


def _spoiled_text(text: Any, chance: Random) -> Any:
    what = chance.random()
    if what < 0.05:
        return chance.choice(
            (b"bytes", 7, "", "null", "[]", "[" * 100_000, "{", "9" * 6000, "nul\0")
        )
    try:
        document = json.loads(text)
    except (ValueError, TypeError):
        return "{}"
    places = list(_places(document))
    if not places:
        return "[]"
    holder, key = chance.choice(places)
    what = chance.random()
    if what < 0.08:
        del holder[key]
    elif what < 0.16 and isinstance(holder, dict):
        holder[chance.choice(TEXTS)] = chance.choice(NUMBERS)
    elif what < 0.3:
        holder[key] = chance.choice(([], {}, [[]], {"a": 1}, chance.choice(TEXTS), [1e308] * 20))
    elif isinstance(holder[key], int | float) and what < 0.5:
        holder[key] = holder[key] * chance.choice((-1, 2, 10, 1e6)) + chance.choice((0, 1, -1))
    else:
        holder[key] = chance.choice(NUMBERS)
    return json.dumps(document)


def _places(value: Any) -> Any:
    """Every (holder, key) of a document."""
    if isinstance(value, dict | list):
        for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield value, key
            yield from _places(inner)


def npy(array: np.ndarray) -> bytes:
    """The bytes of a .npy file."""
    stream = BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)
    return stream.getvalue()


def _spoiled_array(data: Any, chance: Random) -> bytes:
    array = read_array(data)
    what = chance.random()
    if array is None or what < 0.1:
        return chance.choice((b"", b"\x93NUMPY", bytes(100), data[: len(data) // 2], data + b"\0"))
    array = np.array(array)
    if what < 0.2:
        with np.errstate(all="ignore"):
            return npy(array.astype(chance.choice(DTYPES)))
    if what < 0.3:
        shape = chance.choice(((-1, 1), (1, -1), (-1,)))
        return npy(array.reshape(shape)[: chance.choice((1, -1, array.size))])
    flat = array.reshape(-1)
    if not flat.size:
        return npy(np.full((1, 4), 7, array.dtype))
    if what < 0.45 and array.ndim == 2:  # rows once more, in another order: still a table
        rows = [chance.randrange(len(array)) for _ in range(len(array))]
        return npy(array[rows])
    some = chance.choice((slice(None), slice(0, 1), slice(-1, None), slice(None, None, 3)))
    value = chance.choice([n for n in NUMBERS if n is not None])
    with np.errstate(all="ignore"):
        if what < 0.75:
            flat[some] = np.asarray(value, np.float64).astype(array.dtype)
        else:
            scaled = flat[some].astype(np.float64) * chance.choice((-1, 0, 2, 1e3, 1e30, 1e300))
            flat[some] = scaled.astype(array.dtype)
    return npy(flat.reshape(array.shape))
