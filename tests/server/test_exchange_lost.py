"""What is lost on the way, comes late or comes twice in an exchange."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import pytest
from flwr.app import Error, Message, RecordDict
from tests.server.exchange_ground import (
    NODES,
    Answer,
    Ear,
    ask,
    be_impatient,
    failing,
    make_grid,
    order,
    run,
    silent,
    text_of,
)

from her2_common.config import Task
from her2_common.errors import StorageError
from her2_deploy.simulation import LocalGrid
from her2_server.exchange import LOST


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    be_impatient(monkeypatch)


@pytest.mark.parametrize("code", LOST)
def test_what_was_lost_is_sent_again(code: int) -> None:
    outcomes = run(make_grid(b=failing(code, "gone", times=2)), quorum=3)
    assert outcomes["b"].status == "accepted"
    assert outcomes["b"].bytes_to_site == 3 * 7


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_it_is_sent_again_retries_times_at_most(retries: int) -> None:
    ear = Ear()
    grid = make_grid(b=failing(5, "gone"))
    outcomes = ask(ear.exchange(grid, retries=retries), quorum=2, timeout=600)  # not waited for
    assert (outcomes["b"].status, outcomes["b"].reason) == ("missing", "the site was lost")
    assert outcomes["b"].bytes_to_site == (1 + retries) * 7


def test_a_silent_order_is_sent_again_in_time() -> None:
    began = time.monotonic()
    outcomes = run(make_grid(b=silent(times=1)), quorum=3, timeout=6)
    assert outcomes["b"].status == "accepted"
    assert outcomes["b"].bytes_to_site == 14
    assert time.monotonic() - began >= 2


def test_silence_ends_at_the_timeout() -> None:
    began = time.monotonic()
    outcomes = run(make_grid(b=silent()), timeout=0.5)
    assert time.monotonic() - began >= 0.5
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


def test_an_answer_to_an_earlier_exchange_of_the_same_name_is_not_taken_for_this_one() -> None:
    ear, seen = Ear(), list[str]()
    grid = LateGrid(make_grid().nodes)
    exchange = ear.exchange(grid, retries=0)

    def make(text: str) -> Callable[[str, bool], tuple[Task, RecordDict]]:
        return lambda site, _whole: ("train", order(f"{text} {site}"))

    ask(exchange, what="profile", make=make("last"), timeout=0.3)
    grid.open = True
    outcomes = ask(
        exchange,
        lambda _s, _t, c: seen.append(text_of(c)),
        what="profile",
        make=make("best"),
        quorum=3,
    )
    assert outcomes["b"].status == "accepted"
    assert sorted(seen) == ["best a", "best b", "best c"]
    assert "profile: an answer of b refused: stale round" in ear.said


@pytest.mark.parametrize("retries", [0, 2])
def test_a_first_question_that_is_lost_is_sent_again_retries_times_at_most(retries: int) -> None:
    made: list[str] = []

    def make(site: str, _whole: bool) -> tuple[Task, RecordDict]:
        made.append(site)
        return ("describe" if site == "b" else "train"), order(f"order {site}")

    grid = make_grid(b=failing(5, "gone"))
    outcomes = ask(Ear().exchange(grid, retries=retries), make=make, timeout=1.5)
    assert (outcomes["b"].status, outcomes["b"].reason) == ("missing", "the site was lost")
    assert made.count("b") == 1 + retries


def test_a_site_whose_disk_was_full_is_asked_again_in_its_time() -> None:
    """Its test cases are scored in one exchange of a run, which must not pass it over."""
    began = time.monotonic()
    ear = Ear()
    outcomes = ask(
        ear.exchange(make_grid(b=failing(2, StorageError.code, times=1))), quorum=2, timeout=1.5
    )
    assert outcomes["b"].status == "accepted"
    assert 0.5 <= time.monotonic() - began < 1.5
    assert any("b refused: site error: storage" in text for text in ear.said)


def test_a_disk_that_stays_full_ends_with_the_time() -> None:
    outcomes = ask(
        Ear().exchange(make_grid(b=failing(2, StorageError.code))), quorum=2, timeout=0.9
    )
    assert (outcomes["b"].status, outcomes["b"].reason) == ("refused", "site error: storage")
    assert outcomes["b"].bytes_to_site == 3 * 7
