"""One exchange: every site that is asked ends up with one outcome, and in time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st

from her2_client.keys import new_node_key
from her2_common.config import FederationConfig, Task
from her2_common.errors import RunError, UpdateError
from her2_deploy.simulation import LocalGrid, LocalNode
from her2_server import exchange as exchange_module
from her2_server.exchange import (
    LOST,
    Exchange,
    OnReply,
    Outcome,
    online_sites,
    openssh_key,
)

KEYS = {name: new_node_key()[1] for name in ("a", "b", "c")}
NODES = {"a": 1001, "b": 1002, "c": 1003}
Answer = Callable[[], Message]
Fault = Callable[[Message, Answer], Iterable[Message]]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(exchange_module, "PAUSED_POLL_SECONDS", 0.02)
    monkeypatch.setattr(exchange_module, "AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(exchange_module, "AGAIN_LIMIT_SECONDS", 0.2)


def make_app() -> ClientApp:
    """Answers an order with the same words."""
    app = ClientApp()

    def echo(message: Message, context: Context) -> Message:
        text = message.content["order"]["json"]
        return Message(RecordDict({"reply": ConfigRecord({"json": text})}), reply_to=message)

    app.train()(echo)
    app.query()(echo)
    return app


def make_grid(**faults: Fault) -> LocalGrid:
    nodes = {NODES[name]: LocalNode(make_app(), key) for name, key in KEYS.items()}
    for name, fault in faults.items():
        nodes[NODES[name]].fault = fault
    grid = LocalGrid(nodes)
    grid.get_nodes()  # tells Flower who is speaking
    return grid


def config(**run: Any) -> FederationConfig:
    return FederationConfig.model_validate(
        {
            "name": "test",
            "superlink": {
                "address": "localhost:1",
                "root_certificates": "ca.crt",
                "superexec_secret_file": "secret",
            },
            "sites": [{"name": name, "public_key": key} for name, key in KEYS.items()],
            "run": {"pause_timeout": 0} | run,
        }
    )


def order(text: str) -> RecordDict:
    return RecordDict({"order": ConfigRecord({"json": text})})


def text_of(content: RecordDict) -> str:
    return str(content["reply"]["json"])


def nothing(_site: str, _task: Task, _content: RecordDict) -> None:
    return None


class Ear:
    """Hears what an exchange says."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.states: list[tuple[str, str, str | None]] = []
        self.pauses: list[dict[str, str]] = []

    def exchange(self, grid: LocalGrid, **run: Any) -> Exchange:
        return Exchange(
            grid,
            config(**run),
            hint="her2-server resume runs/test",
            notify=self.said.append,
            on_site=lambda *state: self.states.append(state),
            on_pause=lambda waits_for: self.pauses.append(dict(waits_for)),
        )


def ask(
    exchange: Exchange,
    on_reply: OnReply = nothing,
    *,
    what: str = "round 1",
    make: Callable[[str, bool], tuple[Task, RecordDict]] | None = None,
    timeout: float = 5.0,
    quorum: int = 2,
    **options: bool,
) -> dict[str, Outcome]:
    return exchange.ask(
        "train",
        what,
        make or (lambda site, _whole: ("train", order(f"order {site}"))),
        on_reply,
        sites=KEYS,
        timeout=timeout,
        quorum=quorum,
        **options,
    )


def run(grid: LocalGrid, on_reply: OnReply = nothing, **options: Any) -> dict[str, Outcome]:
    return ask(Ear().exchange(grid), on_reply, **options)


def failing(code: int, reason: str | None, times: int = 10**6) -> Fault:
    """A node that answers its first orders with an error."""
    left = itertools.count(times, -1)
    return lambda message, answer: (
        [Message(Error(code, reason), reply_to=message)] if next(left) > 0 else [answer()]
    )


def silent(times: int = 10**6) -> Fault:
    left = itertools.count(times, -1)
    return lambda _message, answer: [] if next(left) > 0 else [answer()]


# --- one answer each ----------------------------------------------------------------------------


def test_every_site_gets_its_own_order_and_answers_once() -> None:
    replies: dict[str, str] = {}
    ear = Ear()

    def on_reply(site: str, task: Task, content: RecordDict) -> None:
        assert site not in replies
        assert task == "train"
        replies[site] = text_of(content)

    outcomes = ask(ear.exchange(make_grid()), on_reply)
    assert replies == {name: f"order {name}" for name in KEYS}
    for name, outcome in outcomes.items():
        assert (outcome.status, outcome.reason) == ("accepted", None)
        assert (outcome.bytes_to_site, outcome.bytes_from_site) == (7, 7)
        assert [s[1] for s in ear.states if s[0] == name] == ["working", "accepted"]
    assert ear.said == []


def test_a_round_with_its_quorum_does_not_wait_for_who_is_offline() -> None:
    grid = make_grid()
    grid.nodes[NODES["b"]].online = False
    ear = Ear()
    began = time.monotonic()
    outcomes = ask(ear.exchange(grid), timeout=20)
    assert time.monotonic() - began < 5
    assert (outcomes["b"].status, outcomes["b"].reason) == ("missing", "not online")
    assert outcomes["b"].bytes_to_site == 0
    assert outcomes["a"].status == outcomes["c"].status == "accepted"
    assert ear.said == ["round 1: b missing: not online"]


def test_everyone_is_waited_for_where_that_is_asked() -> None:
    grid = make_grid()
    grid.nodes[NODES["b"]].online = False
    began = time.monotonic()
    outcomes = run(grid, timeout=0.4, everyone=True)
    assert 0.4 <= time.monotonic() - began < 5
    assert outcomes["b"].reason == "not online"


def test_a_site_that_comes_during_the_round_gets_its_order() -> None:
    grid = make_grid()
    grid.nodes[NODES["b"]].online = False

    def on_reply(site: str, _task: Task, _content: RecordDict) -> None:
        grid.nodes[NODES["b"]].online = True

    began = time.monotonic()
    outcomes = run(grid, on_reply, timeout=20, everyone=True)
    assert {outcome.status for outcome in outcomes.values()} == {"accepted"}
    assert time.monotonic() - began < 5


def test_a_refused_reply_has_its_reason_and_its_bytes_and_is_not_asked_for_again() -> None:
    seen: list[str] = []

    def on_reply(site: str, _task: Task, _content: RecordDict) -> None:
        seen.append(site)
        if site == "b":
            raise UpdateError("bad", reason="misshapen")

    outcomes = run(make_grid(), on_reply)
    assert (outcomes["b"].status, outcomes["b"].reason) == ("refused", "misshapen")
    assert outcomes["b"].bytes_from_site == 7
    assert outcomes["a"].status == "accepted"
    assert sorted(seen) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        (2, "policy", "site error: policy"),
        (2, "MRS^CANARY: row 3", "site error"),
        (2, "<b>", "site error"),
        (2, None, "site error: error"),
    ],
)
def test_errors_are_told_by_their_code(code: int, reason: str | None, expected: str) -> None:
    seen: list[str] = []
    grid = make_grid(b=failing(code, reason, times=1))  # asked again, it would answer
    outcomes = run(grid, lambda site, *_: seen.append(site))
    assert (outcomes["b"].status, outcomes["b"].reason) == ("refused", expected)
    assert sorted(seen) == ["a", "c"]


def test_an_order_that_is_not_taken_is_missing() -> None:
    class FullGrid(LocalGrid):
        """A SuperLink that does not take messages."""

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            return ["" for _ in messages]

    outcomes = run(FullGrid(make_grid().nodes), quorum=0, timeout=0.5)
    assert {o.reason for o in outcomes.values()} == {"the SuperLink did not take its order"}
    assert {o.status for o in outcomes.values()} == {"missing"}
    assert {o.bytes_to_site for o in outcomes.values()} == {0}


def test_an_error_of_ours_is_not_taken_for_the_sites() -> None:
    def on_reply(*_: object) -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        run(make_grid(), on_reply)


def test_a_site_that_may_decline_has_answered() -> None:
    grid = make_grid(b=failing(2, "policy"), c=failing(2, "policy"))
    outcomes = run(grid, quorum=3, may_decline=True)
    assert outcomes["b"].status == outcomes["c"].status == "refused"
    with pytest.raises(RunError, match="b refused: site error: data"):
        run(make_grid(b=failing(2, "data")), quorum=3, may_decline=True)


def test_a_site_may_be_asked_something_else_first() -> None:
    asked: list[tuple[str, Task]] = []
    described: set[str] = set()

    def make(site: str, _whole: bool) -> tuple[Task, RecordDict]:
        task: Task = "train" if site in described or site == "a" else "describe"
        return task, order(f"{task} {site}")

    def on_reply(site: str, task: Task, content: RecordDict) -> None:
        assert text_of(content) == f"{task} {site}"
        asked.append((site, task))
        described.add(site)

    outcomes = run(make_grid(), on_reply, make=make, quorum=3)
    assert sorted(asked) == [
        ("a", "train"),
        *(("b", "describe"), ("b", "train")),
        *(("c", "describe"), ("c", "train")),
    ]
    assert {o.status for o in outcomes.values()} == {"accepted"}
    assert outcomes["b"].bytes_to_site == len("describe b") + len("train b")


# --- lost, late, twice --------------------------------------------------------------------------


@pytest.mark.parametrize("code", LOST)
def test_what_was_lost_is_sent_again(code: int) -> None:
    outcomes = run(make_grid(b=failing(code, "gone", times=2)), quorum=3)
    assert outcomes["b"].status == "accepted"
    assert outcomes["b"].bytes_to_site == 3 * 7


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_it_is_sent_again_retries_times_at_most(retries: int) -> None:
    ear = Ear()
    grid = make_grid(b=failing(5, "gone"))
    began = time.monotonic()
    outcomes = ask(ear.exchange(grid, retries=retries), quorum=2)
    assert (outcomes["b"].status, outcomes["b"].reason) == ("missing", "the site was lost")
    assert outcomes["b"].bytes_to_site == (1 + retries) * 7
    assert time.monotonic() - began < 4


def test_a_silent_order_is_sent_again_in_time() -> None:
    began = time.monotonic()
    outcomes = run(make_grid(b=silent(times=1)), quorum=3, timeout=1.5)
    assert outcomes["b"].status == "accepted"
    assert outcomes["b"].bytes_to_site == 14
    assert 0.5 <= time.monotonic() - began < 1.5


def test_silence_ends_at_the_timeout() -> None:
    began = time.monotonic()
    outcomes = run(make_grid(b=silent()), timeout=0.5)
    assert 0.5 <= time.monotonic() - began < 4
    assert (outcomes["b"].status, outcomes["b"].reason) == ("missing", "no reply within 0 s")
    assert outcomes["a"].status == outcomes["c"].status == "accepted"


class LateGrid(LocalGrid):
    """A grid that keeps the replies of one node back until ``open`` is set."""

    held: int = NODES["b"]
    open: bool = False

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ids = [i for i in message_ids if self.open or not self._of_held(i)]
        return super().pull_messages(ids)

    def _of_held(self, message_id: str) -> bool:
        if message_id not in self._orders:
            return False
        return self._inflate(*self._orders[message_id]).metadata.dst_node_id == self.held


def test_a_late_answer_to_an_earlier_order_counts_and_the_other_is_a_duplicate() -> None:
    ear, seen = Ear(), list[str]()
    grid = LateGrid(make_grid().nodes)
    exchange = ear.exchange(grid)

    def make(site: str, _whole: bool) -> tuple[Task, RecordDict]:
        if len([s for s in made if s == site]) == 1:
            grid.open = True  # b's first answer comes when its second order leaves
        made.append(site)
        return "train", order(f"order {site} {len(made)}")

    made: list[str] = []
    outcomes = ask(
        exchange, lambda s, _t, c: seen.append(text_of(c)), make=make, quorum=3, timeout=1.2
    )
    assert outcomes["b"].status == "accepted"
    assert [text for text in seen if " b " in text] == ["order b 2"]  # of 2 and 4
    ask(exchange, what="round 2")
    assert "round 1: an answer of b refused: stale round" in ear.said


def test_answers_to_two_orders_of_a_round_count_once() -> None:
    ear, seen, made = Ear(), list[str](), list[str]()
    grid = LateGrid(make_grid(c=silent()).nodes)

    def make(site: str, _whole: bool) -> tuple[Task, RecordDict]:
        made.append(site)
        grid.open = made.count("b") == 2  # both answers of b come while c is waited for
        return "train", order(f"order {site} {len(made)}")

    outcomes = ask(
        ear.exchange(grid, retries=1), lambda s, *_: seen.append(s), make=make, timeout=1.0
    )
    assert (outcomes["b"].status, outcomes["c"].status) == ("accepted", "missing")
    assert seen.count("b") == 1
    assert "round 1: an answer of b refused: duplicate" in ear.said


def test_a_site_that_went_is_not_asked_before_it_is_back() -> None:
    asked: list[bool] = []
    grid = make_grid()

    def goes(message: Message, answer: Answer) -> list[Message]:
        asked.append(grid.nodes[NODES["b"]].online)
        if len(asked) > 1:
            return [answer()]
        grid.nodes[NODES["b"]].online = False
        return [Message(Error(5, "gone"), reply_to=message)]

    grid.nodes[NODES["b"]].fault = goes
    exchange = Ear().exchange(grid, pause_timeout=10)

    def back(waits_for: Mapping[str, str]) -> None:
        grid.nodes[NODES["b"]].online = True

    exchange.on_pause = back
    assert ask(exchange, quorum=3)["b"].status == "accepted"
    assert asked == [True, True]


def test_two_answers_to_one_order_count_once() -> None:
    ear, seen = Ear(), list[str]()
    exchange = ear.exchange(make_grid(b=lambda _, answer: [answer(), answer()]))
    outcomes = ask(exchange, lambda site, *_: seen.append(site))
    assert sorted(seen) == ["a", "b", "c"]
    assert outcomes["b"].status == "accepted"
    assert ear.said == ["round 1: an answer of b refused: duplicate"]


def test_an_answer_to_an_earlier_round_is_noticed_and_not_used() -> None:
    ear, seen = Ear(), list[str]()
    grid = LateGrid(make_grid().nodes)
    exchange = ear.exchange(grid, retries=0)
    outcomes = ask(exchange, timeout=0.3)
    assert outcomes["b"].reason == "no reply within 0 s"
    grid.open = True
    outcomes = ask(exchange, lambda site, _, c: seen.append(text_of(c)), what="round 2", quorum=3)
    assert outcomes["b"].status == "accepted"
    assert seen.count("order b") == 1
    assert "round 1: an answer of b refused: stale round" in ear.said


def test_a_site_without_the_base_gets_the_weights_whole_once() -> None:
    made: list[tuple[str, bool]] = []

    def make(site: str, whole: bool) -> tuple[Task, RecordDict]:
        made.append((site, whole))
        return "train", order(f"order {site}")

    outcomes = run(make_grid(b=failing(2, "stale_base", times=1)), make=make, quorum=3)
    assert outcomes["b"].status == "accepted"
    assert sorted(made) == [("a", False), ("b", False), ("b", True), ("c", False)]
    outcomes = run(make_grid(b=failing(2, "stale_base")), quorum=2)
    assert (outcomes["b"].status, outcomes["b"].reason) == ("refused", "site error: stale_base")


# --- the pause ----------------------------------------------------------------------------------


def test_below_quorum_it_pauses_says_for_whom_and_goes_on_when_they_come() -> None:
    ear, seen = Ear(), list[str]()
    grid = make_grid()
    grid.nodes[NODES["b"]].online = False

    def on_pause(waits_for: Mapping[str, str]) -> None:
        ear.pauses.append(dict(waits_for))
        grid.nodes[NODES["b"]].online = True

    exchange = ear.exchange(grid, pause_timeout=10)
    exchange.on_pause = on_pause
    began = time.monotonic()
    outcomes = ask(exchange, lambda site, *_: seen.append(site), quorum=3, timeout=60)
    assert time.monotonic() - began < 5
    assert {o.status for o in outcomes.values()} == {"accepted"}
    assert sorted(seen) == ["a", "b", "c"]  # what was accepted is kept
    assert ear.pauses == [{"b": "not online"}, {}]
    assert ear.said == [
        "round 1: paused, 2 of 3 sites needed; waits for b missing: not online",
        "round 1: goes on",
    ]


def test_in_a_pause_a_site_that_could_not_answer_is_asked_ever_less_often() -> None:
    times: list[float] = []

    def broken(message: Message, answer: Answer) -> list[Message]:
        times.append(time.monotonic())
        if len(times) < 5:
            return [Message(Error(2, "cache"), reply_to=message)]
        return [answer()]

    ear = Ear()
    outcomes = ask(ear.exchange(make_grid(b=broken), pause_timeout=10), quorum=3)
    assert outcomes["b"].status == "accepted"
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert len(gaps) == 4
    assert all(gap >= least for gap, least in zip(gaps, (0.05, 0.05, 0.1, 0.2), strict=True))


def test_a_pause_ends_after_its_time_with_a_hint() -> None:
    ear = Ear()
    began = time.monotonic()
    with pytest.raises(
        RunError, match=r"expected 3 sites, got 2 \(b refused: site error: data\)"
    ) as e:
        ask(ear.exchange(make_grid(b=failing(2, "data")), pause_timeout=0.3), quorum=3)
    assert time.monotonic() - began < 10
    assert e.value.hint == "mend what is named, then: her2-server resume runs/test"


def test_nothing_busy_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "PAUSED_POLL_SECONDS", 0.1)
    pulls: list[int] = []

    class Counting(LocalGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            pulls.append(1)
            return super().pull_messages(message_ids)

    grid = Counting(make_grid(b=failing(2, "data")).nodes)
    with pytest.raises(RunError):
        ask(Ear().exchange(grid, pause_timeout=1.0), quorum=3, timeout=0.1)
    assert len(pulls) < 30


FAULTS: dict[str, Callable[[], Fault]] = {
    "none": lambda: lambda _, answer: [answer()],
    "lost": lambda: silent(1),
    "always lost": silent,
    "error": lambda: failing(2, "data"),
    "gone once": lambda: failing(5, None, 1),
    "gone": lambda: failing(5, None),
    "twice": lambda: lambda _, answer: [answer(), answer()],
    "stale": lambda: failing(2, "stale_base", 1),
}


@settings(max_examples=15, deadline=None)
@given(
    faults=st.fixed_dictionaries({name: st.sampled_from(sorted(FAULTS)) for name in KEYS}),
    online=st.fixed_dictionaries({name: st.booleans() for name in KEYS}),
    refused=st.sets(st.sampled_from(sorted(KEYS))),
)
def test_whatever_happens_each_site_has_one_outcome_and_counts_once(
    faults: dict[str, str], online: dict[str, bool], refused: set[str]
) -> None:
    folded: list[str] = []

    def on_reply(site: str, _task: Task, _content: RecordDict) -> None:
        if site in refused:
            raise UpdateError("bad", reason="not finite")
        folded.append(site)

    grid = make_grid(**{name: FAULTS[fault]() for name, fault in faults.items()})
    for name in KEYS:
        grid.nodes[NODES[name]].online = online[name]
    outcomes = run(grid, on_reply, timeout=0.2, quorum=0)
    accepted = sorted(name for name, o in outcomes.items() if o.status == "accepted")
    assert sorted(folded) == accepted
    for name, outcome in outcomes.items():
        good = faults[name] not in ("always lost", "error", "gone")
        assert (outcome.status == "accepted") == (good and online[name] and name not in refused)
        assert (outcome.reason is None) == (outcome.status == "accepted")


# --- who is who ---------------------------------------------------------------------------------


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
