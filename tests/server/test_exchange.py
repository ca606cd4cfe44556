"""One exchange: every site that is asked ends up with one outcome, and in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from her2_client.keys import new_node_key
from her2_common.errors import UpdateError
from her2_common.metrics import GRID, ScoreHistogram
from her2_common.wire import Counts, Flow, SiteDescription
from her2_deploy.simulation import LocalGrid, LocalNode
from her2_server.aggregation import MAX_CASES
from her2_server.exchange import (
    NODE_UNAVAILABLE,
    Outcome,
    check_scores,
    exchange,
    online_sites,
    openssh_key,
)

KEYS = {name: new_node_key()[1] for name in ("a", "b", "c")}
NODES = {"a": 1001, "b": 1002, "c": 1003}
Answer = Callable[[], Message]


def make_app() -> ClientApp:
    """Answers an order with the same words."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        text = message.content["order"]["json"]
        return Message(RecordDict({"reply": ConfigRecord({"json": text})}), reply_to=message)

    return app


def make_grid(**faults: Callable[[Message, Answer], Iterable[Message]]) -> LocalGrid:
    nodes = {NODES[name]: LocalNode(make_app(), key) for name, key in KEYS.items()}
    for name, fault in faults.items():
        nodes[NODES[name]].fault = fault
    return LocalGrid(nodes)


def order(text: str) -> RecordDict:
    return RecordDict({"order": ConfigRecord({"json": text})})


def run(
    grid: LocalGrid,
    on_reply: Callable[[str, RecordDict], None] = lambda _site, _content: None,
    *,
    nodes: dict[str, int] = NODES,
    timeout: float = 5.0,
    told: list[str] | None = None,
) -> dict[str, Outcome]:
    online_sites(grid, KEYS)  # as the coordinator does first; it tells Flower who is speaking
    return exchange(
        grid,
        nodes,
        {name: order(f"order {name}") for name in KEYS},
        message_type="train",
        group_id="1",
        timeout=timeout,
        on_reply=on_reply,
        on_outcome=lambda site, _: told.append(site) if told is not None else None,
    )


def test_every_site_gets_its_own_order_and_answers_once() -> None:
    replies: dict[str, str] = {}
    told: list[str] = []

    def on_reply(site: str, content: RecordDict) -> None:
        assert site not in replies
        replies[site] = str(content["reply"]["json"])

    outcomes = run(make_grid(), on_reply, told=told)
    assert replies == {name: f"order {name}" for name in KEYS}
    assert sorted(told) == sorted(outcomes) == ["a", "b", "c"]
    for outcome in outcomes.values():
        assert (outcome.status, outcome.reason) == ("accepted", None)
        assert (outcome.bytes_to_site, outcome.bytes_from_site) == (7, 7)


def test_a_site_that_is_not_online_is_missing_at_once() -> None:
    outcomes = run(make_grid(), nodes={"a": 1001, "c": 1003})
    assert (outcomes["b"].status, outcomes["b"].reason) == ("missing", "not online")
    assert outcomes["b"].bytes_to_site == 0
    assert outcomes["a"].status == outcomes["c"].status == "accepted"


def test_a_refused_reply_has_its_reason_and_its_bytes() -> None:
    def on_reply(site: str, _content: RecordDict) -> None:
        if site == "b":
            raise UpdateError("bad", reason="misshapen")

    outcomes = run(make_grid(), on_reply)
    assert outcomes["b"].status == "refused"
    assert outcomes["b"].reason == "misshapen"
    assert outcomes["b"].bytes_from_site == 7
    assert outcomes["a"].status == "accepted"


def failing(code: int, reason: str | None) -> Callable[[Message, Answer], list[Message]]:
    return lambda message, _: [Message(Error(code, reason), reply_to=message)]


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        (1, "policy", ("refused", "site error: policy")),
        (1, "MRS^CANARY: row 3", ("refused", "site error")),
        (1, "<b>", ("refused", "site error")),
        (1, None, ("refused", "site error: error")),
        (NODE_UNAVAILABLE, "gone", ("missing", "the site was lost")),
    ],
)
def test_errors_are_told_by_their_code(
    code: int, reason: str | None, expected: tuple[str, str]
) -> None:
    seen: list[str] = []
    outcomes = run(make_grid(b=failing(code, reason)), lambda site, _: seen.append(site))
    assert (outcomes["b"].status, outcomes["b"].reason) == expected
    assert sorted(seen) == ["a", "c"]


def test_silence_ends_at_the_timeout() -> None:
    began = time.monotonic()
    outcomes = run(make_grid(b=lambda _message, _answer: []), timeout=0.5)
    assert 0.5 <= time.monotonic() - began < 4
    assert (outcomes["b"].status, outcomes["b"].reason) == ("missing", "no reply within 0 s")
    assert outcomes["a"].status == outcomes["c"].status == "accepted"


def test_a_second_reply_to_an_order_is_ignored() -> None:
    seen: list[str] = []
    outcomes = run(
        make_grid(b=lambda _, answer: [answer(), answer()]), lambda site, _: seen.append(site)
    )
    assert sorted(seen) == ["a", "b", "c"]
    assert outcomes["b"].status == "accepted"


class FullGrid(LocalGrid):
    """A SuperLink that does not take messages."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return ["" for _ in messages]


def test_an_order_that_is_not_taken_is_missing() -> None:
    grid = FullGrid(make_grid().nodes)
    outcomes = run(grid)
    assert {o.reason for o in outcomes.values()} == {"the SuperLink did not take its order"}
    assert {o.status for o in outcomes.values()} == {"missing"}
    assert {o.bytes_to_site for o in outcomes.values()} == {0}


def test_an_error_of_ours_is_not_taken_for_the_sites() -> None:
    def on_reply(_site: str, _content: RecordDict) -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        run(make_grid(), on_reply)


def test_online_sites_are_known_by_their_keys_alone() -> None:
    grid = make_grid()
    keys = {"c": KEYS["c"], "a": f"{KEYS['a']} engineer@hospital", "x": new_node_key()[1]}
    assert online_sites(grid, keys) == {"c": 1003, "a": 1001}  # b's key stands nowhere
    grid.nodes[1001].online = False
    assert online_sites(grid, keys) == {"c": 1003}


def test_a_node_with_a_key_of_another_kind_is_nobodys() -> None:
    key = rsa.generate_private_key(65537, 2048).public_key()
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert openssh_key(pem) == ""


# --- what a site's histograms may count ----------------------------------------------------------


def described(**cases: int | None) -> SiteDescription:
    return SiteDescription(
        site="a",
        version="1",
        groups=("mg", "us", "clinical", "head"),
        flow=Flow(in_table=None, accepted=None, left_out=None),
        cases=Counts(**({"train": None, "val": 5, "test": None} | cases)),
        positives=Counts(train=None, val=None, test=None),
        combinations={},
    )


def counting(negatives: int, positives: int = 0) -> ScoreHistogram:
    labels = [0] * negatives + [1] * positives
    return ScoreHistogram.from_scores([0.5] * len(labels), labels)


SOUND = {"fused|us": counting(2), "fused|mg+us": counting(2, 1), "single|us": counting(4, 1)}


def test_histograms_of_the_described_cases_are_taken() -> None:
    check_scores(described(), "val", SOUND | {"low|us": counting(1, 1)}, 4, {"mg": counting(3)})
    check_scores(described(val=None), "val", SOUND, 4)


@pytest.mark.parametrize(
    ("changes", "distances"),
    [
        ({"fused|us": counting(3), "single|us": counting(5, 1)}, {}),
        ({"single|us": counting(5, 1)}, {}),
        ({"single|mg": counting(4)}, {}),
        ({"low|us": counting(2, 1)}, {}),
        ({"low|mri": counting(1)}, {}),
        ({}, {"us": counting(4)}),
        ({}, {"mri": counting(1)}),
    ],
    ids=["a case more", "single", "single of fewer", "low", "low of none", "distances", "no such"],
)
def test_histograms_of_other_cases_are_refused(
    changes: dict[str, ScoreHistogram], distances: dict[str, ScoreHistogram]
) -> None:
    with pytest.raises(UpdateError) as caught:
        check_scores(described(), "val", SOUND | changes, 4, distances)
    assert caught.value.reason == "wrong count"


def test_a_site_that_tells_no_count_has_its_share_of_the_room() -> None:
    tables = np.zeros((2, GRID + 1), dtype=np.int64)
    tables[0, 3] = MAX_CASES // 4 + 1
    with pytest.raises(UpdateError):
        check_scores(described(val=None), "val", {"fused|us": ScoreHistogram(*tables)}, 4)
    tables[0, 3] -= 1
    check_scores(described(val=None), "val", {"fused|us": ScoreHistogram(*tables)}, 4)
