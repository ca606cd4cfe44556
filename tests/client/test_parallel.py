"""Several devices at one site: the weights of one device, the same bits again, never a hang."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from her2_client import parallel
from her2_client.engine import check_devices
from her2_client.helper import Failure, Helpers, fingerprint
from her2_client.parallel import Crew
from her2_client.site import Answer, Site
from her2_common import __version__
from her2_common.broadcast import fingerprint as vector_print
from her2_common.config import RunConfig, SiteConfig
from her2_common.errors import ConfigError, TrainingError
from her2_common.model import build_model, get_groups
from her2_common.wire import TaskOrder

MakeSite = Callable[..., SiteConfig]
# An odd number of rows of each modality, batches without mg, and one process without an MRI.
HAS = [("us",), ("mg", "us"), ("us", "mri"), ("us",), ("us",), ("mg", "us", "mri"), ("us",)]
PLAN = RunConfig(
    rounds=3,
    image_size=32,
    volume_size=16,
    local_epochs=2,
    batch_size=3,
    modality_dropout=0.3,
    alignment="contrastive",
)
GROUPS = ("mg", "us", "mri", "clinical", "head")


def order(number: int = 1, plan: RunConfig = PLAN) -> TaskOrder:
    return TaskOrder(task="train", run="r", version=__version__, round=number, plan=plan)


def ask(site: Site, asked: TaskOrder, sent: dict[str, np.ndarray]) -> Answer:
    """The answer to an order on the weights that come with it."""
    named = {name: vector_print(vector) for name, vector in sent.items()}
    return site.answer(asked.model_copy(update={"weights": named}), sent)


def change_of(answer: Answer, name: str) -> np.ndarray:
    change = answer.update[name]
    assert isinstance(change, np.ndarray)
    return change


@pytest.fixture
def sent() -> dict[str, np.ndarray]:
    return get_groups(build_model("compact", PLAN.seed), GROUPS)


@pytest.fixture
def site_of(make_site: MakeSite) -> Iterator[Callable[..., Site]]:
    """``site_of(devices=2)``: one site after another on the same cases; all end with the test."""
    config = make_site(HAS, min_cases=1)
    sites: list[Site] = []

    def make(**changes: Any) -> Site:
        sites.append(Site(config.model_copy(update={"device": "cpu"} | changes)))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


def test_two_processes_give_the_weights_of_one(
    site_of: Callable[..., Site], sent: dict[str, np.ndarray]
) -> None:
    """Also with dropout, pairs across processes and chunks; the same bits the second time. The
    processes end with the site."""
    alone = ask(site_of(), order(), sent)
    pair = site_of(devices=2, rows_at_once=1)
    first = ask(pair, order(), sent)
    for group in GROUPS:
        change = change_of(alone, group)
        gap = change_of(first, group) - change
        assert np.linalg.norm(change) > 0
        # Adam divides small gradients by their own size, and so magnifies how they were rounded.
        assert np.linalg.norm(gap) < 1e-3 * np.linalg.norm(change), group
    assert first.document.loss == pytest.approx(alone.document.loss, rel=1e-5)  # type: ignore[union-attr]
    assert first.document.steps == alone.document.steps == 6  # type: ignore[union-attr]
    assert first.scores == alone.scores
    again = ask(pair, order(), sent)
    for group in GROUPS:
        assert change_of(again, group).tobytes() == change_of(first, group).tobytes()
    assert pair.crew is not None
    helpers = pair.crew.process_ids
    assert len(helpers) == 2
    pair.close()
    for process in helpers:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


STRATEGIES: list[dict[str, Any]] = [
    {"local": {"name": "fedprox", "mu": 5.0}},
    {"local": {"name": "scaffold"}, "personal": {"name": "ditto"}},
]


def test_objectives_reach_the_helpers(
    site_of: Callable[..., Site], sent: dict[str, np.ndarray]
) -> None:
    alone, pair = site_of(), site_of(devices=2)
    plain = ask(alone, order(), sent)
    for strategy in STRATEGIES:
        plan = RunConfig.model_validate(PLAN.model_dump() | {"strategy": strategy})
        given = dict(sent)
        if plan.strategy.local.name == "scaffold":
            given |= {f"{g}.control": np.full_like(sent[g], 1e-3) for g in GROUPS}
        one, two = (ask(site, order(plan=plan), given) for site in (alone, pair))
        assert one.update.keys() == two.update.keys() == given.keys()
        for name in given:
            change = change_of(one, name)
            gap = np.linalg.norm(change_of(two, name) - change)
            assert gap < 1e-2 * np.linalg.norm(change), name
            if name in ("us", "head"):  # the objective is felt more than the rounding
                felt = np.linalg.norm(change_of(plain, name) - change)
                assert felt > 10 * gap, name


def test_a_dead_helper_is_an_error_with_its_reason_and_the_next_round_works(
    site_of: Callable[..., Site], sent: dict[str, np.ndarray]
) -> None:
    site = site_of(devices=2)
    first = ask(site, order(), sent)
    assert site.crew is not None
    victim = site.crew.process_ids[1]

    def kill() -> None:
        time.sleep(1.0)
        os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    long = PLAN.model_copy(update={"local_epochs": 100})
    with pytest.raises(TrainingError, match="helper 2 was ended by SIGKILL") as caught:
        ask(site, order(plan=long), sent)
    killer.join()
    assert "memory" in str(caught.value.hint)
    assert site.crew.process_ids == []
    again = ask(site, order(), sent)
    assert all(np.array_equal(change_of(again, g), change_of(first, g)) for g in GROUPS)


def test_an_abort_is_not_the_reason_when_another_helper_was_killed(
    site_of: Callable[..., Site],
) -> None:
    crew = Crew(site_of(devices=2).config)
    context = get_context("spawn")
    for rank, number in enumerate((signal.SIGABRT, signal.SIGKILL)):
        ours, theirs = context.Pipe()
        process = context.Process(
            target=signal.raise_signal, args=(number,), name=f"helper {rank + 1}"
        )
        process.start()
        theirs.close()
        crew._processes.append(process)
        crew._pipes.append(ours)
    assert str(crew._reason([])) == "helper 2 was ended by SIGKILL"
    foreseen = Failure("the loss is not finite", hint=None, foreseen=True)
    crew._processes[1].join()
    crew._processes.pop().close()
    assert str(crew._reason([foreseen])) == "the loss is not finite"
    crew.stop()


def test_a_silent_helper_is_ended(
    site_of: Callable[..., Site], sent: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = site_of(devices=2)
    ask(site, order(), sent)
    assert site.crew is not None
    os.kill(site.crew.process_ids[0], signal.SIGSTOP)
    monkeypatch.setattr(parallel, "SILENCE_SECONDS", 2.0)
    started = time.monotonic()
    with pytest.raises(TrainingError, match="said nothing for 2 s"):
        ask(site, order(2), sent)
    assert time.monotonic() - started < 20


def test_an_error_of_training_comes_through_as_it_is(
    site_of: Callable[..., Site], sent: dict[str, np.ndarray]
) -> None:
    site = site_of(devices=2)
    broken = sent | {"us": np.full_like(sent["us"], np.nan)}
    with pytest.raises(TrainingError, match=r"round 1, epoch 1, step 1: the loss is not finite"):
        ask(site, order(), broken)


def test_a_changed_cache_is_told(site_of: Callable[..., Site], sent: dict[str, np.ndarray]) -> None:
    site = site_of(devices=2)
    site._prepare(PLAN)
    cohort = site._cohorts["train"]
    other = cohort.restricted(("us",))
    assert fingerprint(other) != fingerprint(cohort)
    site._cohorts["train"] = other  # as if the helpers found another cache than the site
    with pytest.raises(TrainingError, match="the cache has changed"):
        ask(site, order(), {g: sent[g] for g in ("us", "clinical", "head")})


@given(count=st.integers(0, 200), size=st.integers(1, 16))
def test_shares_are_all_rows_once_and_in_order(count: int, size: int) -> None:
    shares = [range(count)[Helpers(rank, size, lambda: None).share(count)] for rank in range(size)]
    assert [row for share in shares for row in share] == list(range(count))
    assert max(len(share) for share in shares) == -(-count // size)


def test_as_many_gpus_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_devices(2, torch.device("cuda"))
    check_devices(4, torch.device("cpu"))
    with pytest.raises(ConfigError, match="devices: expected 4 GPUs, got 2"):
        check_devices(4, torch.device("cuda"))
