"""The site's Flower app: unpacks orders, lets the Site answer, packs what leaves.

Only this file, the executor and her2_common.wire/runtime know Flower. An error leaves the site as
its code and nothing else; the text stays in the site's own log.

The log has a line for each order (run, round, task), and one for what leaves in answer to it: each
record with its bytes, or the code of the refusal with its text.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from her2_client.site import Site
from her2_common.config import SiteConfig, load
from her2_common.errors import Her2Error, PolicyError
from her2_common.files import storage_error
from her2_common.model import preset
from her2_common.response_wire import (
    ResponseQuery,
    ResponseReply,
    read_statistics,
    statistics_record,
)
from her2_common.text import printable
from her2_common.vectors import read_steps, read_whole, vectors_record
from her2_common.wire import (
    MESSAGE_TYPES,
    ORDER_RECORDS,
    TaskOrder,
    check_records,
    document_record,
    moments_record,
    read_document,
    read_references,
    record_bytes,
    scores_record,
)

log = logging.getLogger("her2_client")


def make_app(site_for: Callable[[Context], Site]) -> ClientApp:
    """A ClientApp whose messages are answered by the Site that ``site_for`` returns."""
    client_app = ClientApp()

    @client_app.query()
    def describe(message: Message, context: Context) -> Message:
        return _answer(site_for, message, context)

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        return _answer(site_for, message, context)

    @client_app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return _answer(site_for, message, context)

    return client_app


def _answer(site_for: Callable[[Context], Site], message: Message, context: Context) -> Message:
    def work() -> Message:
        return Message(_content(site_for(context), message), reply_to=message)

    return answer_or_code(message, work)


def answer_or_code(message: Message, work: Callable[[], Message]) -> Message:
    """What ``work`` answers to ``message``, or its error's code; the text stays in the log."""
    try:
        return work()
    except Her2Error as error:
        return _refused(message, error)
    except OSError as error:
        if (known := storage_error(error)) is None:
            return _internal(message)
        return _refused(message, known)
    except Exception:
        return _internal(message)


def _refused(message: Message, error: Her2Error) -> Message:
    hint = f" (hint: {error.hint})" if error.hint else ""
    text = printable(f"{error}{hint}")
    log.error("%s: refused: %s: %s", order_name(message), error.code, text)
    return error_reply(message, error.code)


def _internal(message: Message) -> Message:
    log.exception("%s: refused: internal", order_name(message))
    return error_reply(message, "internal")


def order_name(message: Message) -> str:
    """An order in the words of the log: "run her2-2026, round 3, train"; as far as it has them."""
    try:
        order = read_document(message.content, "order", TaskOrder)
    except Exception:  # whatever came
        return "an order that cannot be read"
    round_ = f", round {order.round}" if order.round else ""
    split = f" on {order.split}" if order.task == "evaluate" else ""
    return f"run {order.run}{round_}, {order.task}{split}"


def log_leaving(message: Message, reply: Message) -> None:
    """A line of what leaves in answer to an order."""
    if reply.has_content():
        parts = ", ".join(f"{n} {record_bytes(part)} B" for n, part in reply.content.items())
        log.info("%s: leaves: %s", order_name(message), parts)
    else:
        log.info("%s: leaves: the code %s", order_name(message), reply.error.reason)


def error_reply(message: Message, code: str) -> Message:
    """An error as it may leave the site: a code of the error tree, never an exception's text."""
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, code), reply_to=message)


def _content(site: Site, message: Message) -> RecordDict:
    order = read_document(message.content, "order", TaskOrder)
    check_records(message.content, ORDER_RECORDS[order.task])
    expected = message.metadata.message_type.split(".")[0]
    if MESSAGE_TYPES[order.task] != expected:
        raise PolicyError(f"expected a {expected} order, got {order.task}")
    if order.task == "describe":
        return RecordDict({"reply": document_record(site.answer(order, {}).document)})
    if order.task == "response":
        return _response(site, order, message.content)
    plan = order.plan
    answer = site.answer(
        order,
        read_whole(message.content, "weights", plan),
        read_references(message.content, preset(plan.preset, **plan.layout).features),
        read_whole(message.content, "initial", plan),
        read_steps(message.content, plan),
    )
    record = RecordDict({"reply": document_record(answer.document)})
    if order.task == "compare":
        return record
    if answer.update:
        record["update"] = vectors_record(answer.update)
    record["scores"], _ = scores_record(answer.scores)
    if order.task == "profile":
        record["moments"] = moments_record(answer.moments)
    if answer.distances:
        record["distances"], _ = scores_record(answer.distances)
    return record


def _response(site: Site, order: TaskOrder, content: RecordDict) -> RecordDict:
    asked = read_document(content, "query", ResponseQuery)
    answered = site.responder.answer(
        order,
        read_whole(content, "weights", order.plan),
        asked.analysis,
        asked.query(read_statistics(content)),
    )
    reply = ResponseReply(
        site=site.config.name,
        kind=asked.kind,
        item=asked.item,
        withheld=answered.arrays is None,
        queries=answered.queries,
        max_queries=site.config.policy.max_queries,
    )
    record = RecordDict({"reply": document_record(reply)})
    if answered.arrays is not None:
        record["arrays"] = statistics_record(answered.arrays)
    return record


@cache
def _site_at(path: str) -> Site:
    return Site(load(SiteConfig, Path(path)))


app = make_app(lambda context: _site_at(str(context.node_config["site"])))
"""For a plain SuperNode (``--node-config 'site="/path/to/site.yaml"'``): works, but Flower then
starts a process a message. `her2-client start` keeps one."""
