"""Images in memory or on disk: the same bits, read in order, chosen by what is free."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from her2_client import residency
from her2_client.cache import Cache, open_cache
from her2_client.cohort import Cohort, load_cohort, residence
from her2_client.residency import AHEAD, Streamed, ahead, stays_resident
from her2_client.site import Site
from her2_client.training import train_round
from her2_common import __version__
from her2_common.broadcast import fingerprint
from her2_common.config import RunConfig, SiteConfig
from her2_common.errors import CacheError
from her2_common.model import GROUPS, build_model, get_groups, preset
from her2_common.wire import TaskOrder

MakeSite = Callable[..., SiteConfig]
CPU = torch.device("cpu")
HAS = [("us",), ("mg", "us"), ("us", "mri"), ("mri",), ("us",), ("mg", "us", "mri"), ("us",)]


@pytest.fixture
def cache(make_site: MakeSite) -> Cache:
    return open_cache(make_site(HAS).data.cache)


def cohort_of(cache: Cache, *, resident: bool, image_size: int = 32) -> Cohort:
    return load_cohort(
        cache,
        split="train",
        label="reference",
        image_size=image_size,
        volume_size=16,
        resident=resident,
    )


@pytest.mark.parametrize("image_size", [32, 16])  # 16: averaged down, batch by batch if streamed
def test_training_from_disk_gives_the_same_bits(cache: Cache, image_size: int) -> None:
    plan = RunConfig(
        image_size=image_size if image_size == 32 else None, volume_size=16, batch_size=3
    )
    sent = []
    for resident in (True, False):
        cohort = cohort_of(cache, resident=resident, image_size=image_size)
        assert {isinstance(images, Streamed) for images in cohort.images.values()} == {not resident}
        model = build_model("compact", 1)
        train_round(model, cohort, plan, site="a", round_number=1)
        sent.append({g: v.tobytes() for g, v in get_groups(model, GROUPS).items()})
    assert sent[0] == sent[1]


def test_a_site_answers_the_same_either_way(make_site: MakeSite) -> None:
    config = make_site([("us",)] * 24, lambda i: "train" if i < 12 else "val")
    plan = RunConfig(image_size=32, volume_size=16, local_epochs=1)
    weights = get_groups(build_model("compact", plan.seed), ("us", "clinical", "head"))
    named = {group: fingerprint(vector) for group, vector in weights.items()}
    order = TaskOrder(task="train", run="r", version=__version__, round=1, weights=named, plan=plan)
    answers, lines = [], []
    for choice in ("always", "never"):
        told: list[str] = []
        site = Site(config.model_copy(update={"resident": choice}), told.append)
        answers.append(site.answer(order, weights))
        lines.append(told[0])
    assert lines[0].startswith("images resident in RAM: 0.0 GB, ")
    assert lines[1].startswith("images read from the cache batch by batch: 0.0 GB, ")
    assert answers[0].scores == answers[1].scores
    assert set(answers[0].update) == set(weights)
    for group, change in answers[0].update.items():
        assert np.asarray(change).tobytes() == np.asarray(answers[1].update[group]).tobytes()


def test_what_fits_into_half_of_the_free_memory_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "available_memory", lambda: 2000)
    assert stays_resident("auto", 1000, CPU)[0]
    assert not stays_resident("auto", 1001, CPU)[0]
    assert stays_resident("always", 10**12, CPU)[0]
    assert not stays_resident("never", 1, CPU)[0]


def test_the_size_of_a_plan_is_that_of_its_images(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 mg of four views, 5 us, 3 mri in float16, whatever the cache holds them at."""
    seen: list[int] = []
    monkeypatch.setattr(
        "her2_client.cohort.stays_resident", lambda _, size, __: seen.append(size) or (True, "")
    )
    residence(cache, preset("compact", image_size=32, volume_size=16), "auto", CPU)
    cohort = cohort_of(cache, resident=True)
    held = sum(2 * images.numel() for images in cohort.images.values())  # type: ignore[union-attr]
    assert seen == [held]


def test_too_small_a_cache_is_told_before_any_batch(cache: Cache) -> None:
    with pytest.raises(CacheError, match="at least 64 pixels"):
        cohort_of(cache, resident=False, image_size=64)


# --- reading ahead ------------------------------------------------------------------------------


def test_results_come_in_order_and_few_ahead() -> None:
    begun: list[int] = []

    def work(i: int) -> int:
        begun.append(i)
        return i

    reading = ahead((lambda i=i: work(i)) for i in range(10))  # type: ignore[misc]
    for expected, found in enumerate(reading):
        assert found == expected
        assert max(begun) <= expected + AHEAD
    assert begun == list(range(10))


def test_reading_goes_on_while_the_step_works() -> None:
    begun = [threading.Event() for _ in range(4)]
    reading = ahead(event.set for event in begun)
    next(reading)
    assert begun[1].wait(10)  # nobody asked for it yet
    reading.close()


def test_an_error_comes_where_its_batch_would_have() -> None:
    def fail() -> int:
        raise OSError("disk")

    reading = ahead([lambda: 0, lambda: 1, fail, lambda: 3])
    assert [next(reading), next(reading)] == [0, 1]
    with pytest.raises(OSError, match="disk"):
        next(reading)


def test_an_epoch_that_ends_early_leaves_no_thread(cache: Cache) -> None:
    cohort = cohort_of(cache, resident=False)
    parts = cohort.feed([np.array([i]) for i in range(len(cohort))])
    next(parts)
    assert [t for t in threading.enumerate() if t.name.startswith("read-ahead")]
    parts.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("read-ahead")]
