"""An exchange without its quorum pauses, and ends in any case."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping

import pytest
from flwr.app import Error, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.exchange_ground import (
    KEYS,
    NODES,
    Answer,
    Ear,
    Fault,
    ask,
    be_impatient,
    failing,
    make_grid,
    run,
    silent,
)

from her2_common.config import Task
from her2_common.errors import RunError, UpdateError
from her2_deploy.simulation import LocalGrid
from her2_server import exchange as exchange_module


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    be_impatient(monkeypatch)


def test_below_quorum_it_pauses_says_for_whom_and_goes_on_when_they_come() -> None:
    ear, seen = Ear(), list[str]()
    grid = make_grid()
    grid.nodes[NODES["b"]].online = False

    def on_pause(waits_for: Mapping[str, str]) -> None:
        ear.pauses.append(dict(waits_for))
        grid.nodes[NODES["b"]].online = True

    exchange = ear.exchange(grid, pause_timeout=600)
    exchange.on_pause = on_pause
    outcomes = ask(exchange, lambda site, *_: seen.append(site), quorum=3, timeout=600)
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
    with pytest.raises(
        RunError, match=r"expected 3 sites, got 2 \(b refused: site error: data\)"
    ) as e:
        ask(ear.exchange(make_grid(b=failing(2, "data")), pause_timeout=0.3), quorum=3)
    assert e.value.hint == "fix the problems above, then: her2-server resume runs/test"


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


def test_who_is_at_work_when_a_pause_ends_is_said_to_be() -> None:
    ear = Ear()
    grid = make_grid()
    for name in ("b", "c"):
        grid.nodes[NODES[name]].online = False
    grid.nodes[NODES["c"]].fault = silent()

    def come(waits_for: Mapping[str, str]) -> None:
        for name in waits_for:
            grid.nodes[NODES[name]].online = True

    exchange = ear.exchange(grid, pause_timeout=10)
    exchange.on_pause = come
    outcomes = ask(exchange, quorum=2)
    assert outcomes["b"].status == "accepted"
    assert outcomes["c"].status == "missing"
    assert outcomes["c"].reason == "still at work when the others were enough"
