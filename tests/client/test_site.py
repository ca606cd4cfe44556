"""A site's answers, without Flower: what it trains, what it tells, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from her2_client import cohort as cohort_module
from her2_client import site as site_module
from her2_client.site import Answer, Site, select_device
from her2_common import __version__
from her2_common.broadcast import fingerprint
from her2_common.cases import Modality
from her2_common.config import RunConfig, SiteConfig
from her2_common.errors import (
    CacheError,
    ConfigError,
    DataError,
    PolicyError,
    StaleBaseError,
    UpdateError,
)
from her2_common.model import build_model, get_groups
from her2_common.novelty import Reference, reference_of
from her2_common.strategy import StrategyConfig
from her2_common.wire import SiteDescription, SiteReply, TaskOrder

MakeSite = Callable[..., SiteConfig]
PLAN = RunConfig(rounds=3, image_size=32, volume_size=16, local_epochs=1, batch_size=8)
FEW_MRI = [("us",)] * 12 + [("us", "mri")] * 3 + [("mri",)] * 2
THIRDS = ("train", "val", "test")


def order(task: str = "train", **changes: Any) -> TaskOrder:
    values = {"task": task, "run": "r", "version": __version__, "round": 1, "plan": PLAN}
    return TaskOrder.model_validate(values | changes)


def weights(*groups: str) -> dict[str, np.ndarray]:
    return get_groups(build_model("compact", PLAN.seed), groups)


def ask(
    site: Site,
    asked: TaskOrder,
    sent: dict[str, np.ndarray],
    known: dict[Any, Reference] | None = None,
) -> Answer:
    """The answer to an order on the weights that come with it."""
    named = {name: fingerprint(vector) for name, vector in sent.items()}
    return site.answer(asked.model_copy(update={"weights": named}), sent, known)


def changes(answer: Answer) -> dict[str, bytes]:
    return {g: v.tobytes() for g, v in answer.update.items() if isinstance(v, np.ndarray)}


def calls_of(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """A list that grows with each call of a function by ``her2_client.site``."""
    calls: list[int] = []
    function = getattr(site_module, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return function(*arguments, **options)

    monkeypatch.setattr(site_module, name, counted)
    return calls


def describe(config: SiteConfig) -> SiteDescription:
    plan = PLAN.model_copy(update={"min_cell": config.policy.min_cell})
    document = Site(config).answer(order("describe", plan=plan), {}).document
    assert isinstance(document, SiteDescription)
    return document


def test_a_modality_below_min_cases_is_neither_trained_nor_told(make_site: MakeSite) -> None:
    config = make_site(FEW_MRI, min_cases=10, min_cell=1)
    told = describe(config)
    assert told.groups == ("us", "clinical", "head")
    assert told.combinations == {"us": 15}  # the two cases with MRI alone are left out
    assert (told.flow.in_table, told.flow.accepted, told.flow.left_out) == (17, 15, 2)
    answer = ask(Site(config), order(), weights(*told.groups))
    assert isinstance(answer.document, SiteReply)
    assert set(answer.update) == {"us", "clinical", "head"}
    assert answer.document.counts == {"us": 15, "clinical": 15, "head": 15}


SOURCES = (
    ("biopsy",) * 20 + ("excised_untreated",) * 12 + ("treated_only",) * 11 + ("equivocal",) * 3
)


def test_describe_counts_labels_by_source_and_rows_left_out_by_reason(make_site: MakeSite) -> None:
    has: list[tuple[Modality, ...]] = [("us",)] * len(SOURCES) + [("mri",)] * 2
    config = make_site(
        has,
        source_of=lambda i: (*SOURCES, "biopsy", "biopsy")[i],
        in_table=60,
        min_cases=5,
        min_cell=1,
    )
    told = describe(config)
    assert told.label_sources == {"biopsy": 20, "excised_untreated": 12}
    assert told.left_out_for == {
        "no_image": 12, "few_cases": 2, "treated_only": 11, "equivocal": 3,
    }  # fmt: skip
    flow = told.flow
    assert flow.accepted == sum(n or 0 for n in told.label_sources.values())
    assert flow.left_out == sum(n or 0 for n in told.left_out_for.values())
    # Three of IHC 2+ and two with MRI alone are too few to be told, and so is what shows them.
    config = config.model_copy(update={"policy": config.policy.model_copy(update={"min_cell": 10})})
    told = describe(config)
    assert told.label_sources == {"biopsy": 20, "excised_untreated": 12}
    assert told.left_out_for == {
        "no_image": 12, "few_cases": None, "treated_only": None, "equivocal": None,
    }  # fmt: skip


def test_with_a_lower_limit_it_is_trained(make_site: MakeSite) -> None:
    told = describe(make_site(FEW_MRI, min_cases=5, min_cell=1))
    assert told.groups == ("us", "mri", "clinical", "head")
    assert sum(n or 0 for k, n in told.combinations.items() if "mri" in k) == 5


def test_counts_below_min_cell_are_not_told(make_site: MakeSite) -> None:
    """36 cases in three splits of 12; 6 positives in each are too few, the 12 cases are not."""
    config = make_site([("us",)] * 36, lambda i: THIRDS[i // 12], min_cases=5, min_cell=10)
    told = describe(config)
    assert told.cases.model_dump() == {"train": 12, "val": 12, "test": 12}
    assert told.positives.model_dump() == {"train": None, "val": None, "test": None}
    assert told.combinations == {"us": 36}


def test_a_small_remainder_hides_the_sum_it_could_be_taken_from(make_site: MakeSite) -> None:
    """Two of 17 cases are left out: with 17 and 15 told, the 2 would be no secret."""
    told = describe(make_site(FEW_MRI, min_cases=10, min_cell=10))
    assert told.flow.model_dump() == {"in_table": None, "accepted": 15, "left_out": None}


def test_a_small_split_hides_another(make_site: MakeSite) -> None:
    splits = ["train"] * 20 + ["val"] * 3 + ["test"] * 12
    told = describe(make_site([("us",)] * 35, lambda i: splits[i], min_cases=5, min_cell=10))
    assert told.cases.model_dump() == {"train": 20, "val": None, "test": None}


def test_a_split_without_cases_is_told_as_zero(make_site: MakeSite) -> None:
    told = describe(make_site([("us",)] * 12, min_cases=5))
    assert told.cases.model_dump() == {"train": 12, "val": 0, "test": 0}
    assert told.flow.left_out == 0


def test_too_few_training_cases_stop_every_task(make_site: MakeSite) -> None:
    config = make_site([("us",)] * 9, min_cases=5)
    config = config.model_copy(
        update={"policy": config.policy.model_copy(update={"min_cases": 10})}
    )
    for task in ("describe", "train", "evaluate"):
        with pytest.raises(DataError, match=r"expected at least 10 training cases.*got 0"):
            ask(Site(config), order(task), {})


def test_no_cache_no_answer(make_site: MakeSite) -> None:
    config = make_site([("us",)] * 12)
    data = config.data.model_copy(update={"cache": config.data.cache.with_name("none")})
    with pytest.raises(CacheError, match="no cache here"):
        Site(config.model_copy(update={"data": data})).answer(order("describe"), {})


def test_the_policy_comes_before_the_work(make_site: MakeSite) -> None:
    config = make_site([("us",)] * 12, allowed_tasks=("describe",))
    config.data.cache.joinpath("index.json").unlink()  # the cache would be missed
    with pytest.raises(PolicyError, match="allowed_tasks"):
        ask(Site(config), order("evaluate"), {})


def test_an_update_of_too_few_cases_does_not_leave(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last check before leaving holds even if the choice of groups fails."""
    config = make_site(FEW_MRI, min_cases=10)
    monkeypatch.setattr(Site, "_groups", lambda _: ("mri", "us", "clinical", "head"))
    monkeypatch.setattr(cohort_module, "usable_modalities", lambda *_: ("us", "mri"))
    with pytest.raises(PolicyError, match="group 'mri' has 5 training cases"):
        ask(Site(config), order(), weights("mri", "us", "clinical", "head"))


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (("us", "head"), DataError),
        (("us", "mg", "clinical", "head"), DataError),
        ((), DataError),
    ],
)
def test_training_needs_exactly_its_own_groups(
    make_site: MakeSite, sent: tuple[str, ...], error: type[Exception]
) -> None:
    config = make_site([("us",)] * 12)
    with pytest.raises(error, match="expected the groups us, clinical, head, got"):
        ask(Site(config), order(), weights(*sent))


def test_weights_of_another_model_are_refused(make_site: MakeSite) -> None:
    config = make_site([("us",)] * 12)
    sent = weights("us", "clinical", "head")
    sent["us"] = sent["us"][:-1]
    with pytest.raises(UpdateError, match="group 'us'"):
        ask(Site(config), order(), sent)


def test_training_scores_the_weights_as_they_came(make_site: MakeSite) -> None:
    """The validation histograms of a round are those of an evaluation of the same weights."""
    config = make_site([("us",)] * 36, lambda i: THIRDS[i // 12], min_cases=5)
    site, sent = Site(config), weights("us", "clinical", "head")
    before = {group: vector.copy() for group, vector in sent.items()}
    trained = ask(site, order(), sent)
    evaluated = ask(site, order("evaluate"), sent)
    assert trained.scores.keys() == {"fused|us", "single|us"}
    assert trained.scores == evaluated.scores
    assert evaluated.update == {}
    assert all(np.array_equal(sent[g], before[g]) for g in sent)  # not trained in place
    assert np.any(trained.update["us"])


def test_with_plain_averaging_a_site_keeps_no_memory(make_site: MakeSite) -> None:
    """A restarted site answers an order with the bits of one that has been at work."""
    config = make_site([("us", "mg")] * 12)
    sent = weights("mg", "us", "clinical", "head")
    worn = Site(config)
    ask(worn, order(), sent)
    ask(worn, order("evaluate", split="val"), sent)
    first = changes(ask(worn, order(round=2), sent))
    assert first.keys() == {"mg", "us", "clinical", "head"}
    assert first == changes(ask(Site(config), order(round=2), sent))
    assert not (config.state / "memory").exists()


def test_a_model_is_made_once_and_no_round_is_seen_in_the_next(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though training leaves its traces in the model, and decay in what the site cannot train."""
    made = calls_of(monkeypatch, "ready_model")
    plan = PLAN.model_copy(update={"learning_rate": 0.05, "weight_decay": 0.5})
    config = make_site([("us",)] * 12, clinical=False)
    sent, worn = weights("us", "head"), Site(config)
    for number in (1, 2):
        ask(worn, order(plan=plan, round=number), sent)
    with pytest.raises(StaleBaseError):
        worn.answer(order(plan=plan, weights={"us": "0" * 64}, round=3), {})
    assert len(made) == 1
    third = changes(ask(worn, order(plan=plan, round=3), sent))
    assert third == changes(ask(Site(config), order(plan=plan, round=3), sent))
    scores = ask(worn, order("evaluate", plan=plan, split="val"), sent).scores
    assert len(made) == 2  # the fresh site's own
    assert scores == ask(Site(config), order("evaluate", plan=plan, split="val"), sent).scores
    ask(worn, order(plan=plan.model_copy(update={"seed": 7})), sent)
    assert len(made) == 4  # what another seed draws is another model


def test_private_weights_are_taken_from_memory_at_hand_and_from_disk(make_site: MakeSite) -> None:
    plan = PLAN.model_copy(update={"strategy": StrategyConfig(private_groups=("us",))})
    config, sent = make_site([("us",)] * 12), weights("us", "clinical", "head")
    worn = Site(config)
    ask(worn, order(plan=plan), sent)
    shared = {name: vector for name, vector in sent.items() if name != "us"}
    second = order(plan=plan, round=2, base=1)
    got = changes(ask(worn, second, shared))
    assert got.keys() == {"clinical", "head"}
    assert got == changes(ask(Site(config), second, shared))


def test_a_new_plan_loads_the_cohort_anew(make_site: MakeSite) -> None:
    site = Site(make_site([("us",)] * 12))
    site.answer(order("describe"), {})
    larger = PLAN.model_copy(update={"image_size": 64})
    with pytest.raises(CacheError, match="at least 64 pixels"):
        site.answer(order("describe", plan=larger), {})
    site.answer(order("describe"), {})  # and back


def test_after_an_error_the_cache_is_read_anew(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engineer mends it while the process lives on."""
    read = calls_of(monkeypatch, "load_cohorts")
    site, sent = Site(make_site([("us",)] * 12)), weights("us", "clinical", "head")
    for _ in range(2):
        ask(site, order(), sent)
    assert len(read) == 1
    with pytest.raises(DataError):
        ask(site, order(), weights("us", "head"))
    ask(site, order(), sent)
    assert len(read) == 2


def test_evaluation_scores_a_split(make_site: MakeSite) -> None:
    site = Site(make_site([("us",)] * 24, lambda i: "train" if i < 12 else "val"))
    answer = ask(site, order("evaluate"), weights("us", "clinical", "head"))
    assert answer.scores["fused|us"].n == 12
    assert isinstance(answer.document, SiteReply)
    assert answer.document.score_keys == ("fused|us", "single|us")


def test_a_gpu_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device("auto") == select_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="expected a CUDA device, got none"):
        select_device("cuda")


def test_the_stricter_of_two_limits_holds(make_site: MakeSite) -> None:
    config = make_site([("us",)] * 12, min_cases=5, min_cell=1)
    described = [
        Site(config).answer(order("describe", plan=PLAN.model_copy(update=change)), {}).document
        for change in ({"min_cell": 1}, {"min_cell": 15})
    ]
    assert [d.cases.train for d in described if isinstance(d, SiteDescription)] == [12, None]


def test_few_clinical_inputs_are_not_used_at_all(make_site: MakeSite) -> None:
    """Below min_cases the group is not trained, so its first random weights must see nothing."""
    site = Site(make_site([("us",)] * 12, min_cases=5))
    site._prepare(PLAN)
    few = site._cohorts["train"]
    assert not few.without_clinical().clinical.any()
    assert few.without_clinical().counts()["clinical"] == 0


def test_weights_of_other_groups_are_not_scored(make_site: MakeSite) -> None:
    site = Site(make_site([("us",)] * 12, min_cases=5))
    with pytest.raises(DataError, match="expected the groups us, clinical, head"):
        ask(site, order("evaluate"), weights("us", "mri", "clinical", "head"))


# --- three levels -------------------------------------------------------------------------------

THREE = PLAN.model_copy(update={"her2_levels": 3})


def low_of_ten(case: int) -> str:
    return "low" if case % 4 else "zero"


def answers_of(config: SiteConfig) -> tuple[SiteDescription, set[str], list[str]]:
    """What a site says in a run of three levels: description, names of histograms, notices."""
    told: list[str] = []
    site = Site(config, told.append)
    description = site.answer(order("describe", plan=THREE), {}).document
    assert isinstance(description, SiteDescription)
    sent = get_groups(build_model("compact", 0, levels=3), description.groups)
    answer = ask(site, order("evaluate", plan=THREE), sent)
    return description, set(answer.scores), told


@pytest.mark.parametrize(
    ("negatives", "levels"), [(0, False), (9, False), (10, True)], ids=["no IHC", "few", "enough"]
)
def test_a_site_without_raw_ihc_trains_the_first_part(
    make_site: MakeSite, negatives: int, levels: bool
) -> None:
    """Ten negatives of known level are policy.min_cases; the validation cases are beside them."""
    config = make_site(
        [("us",)] * 48,
        lambda i: "train" if i < 24 else "val",
        lambda i: low_of_ten(i) if i < 2 * negatives or i >= 24 else None,
        min_cases=10,
    )
    description, keys, told = answers_of(config)
    assert description.levels is levels
    assert keys == {"fused|us", "single|us"} | ({"low|us"} if levels else set())
    assert any("not HER2-low against HER2-zero" in line for line in told) is not levels
    binary = Site(config).answer(order("describe"), {}).document
    assert isinstance(binary, SiteDescription)
    assert not binary.levels


# --- profile ------------------------------------------------------------------------------------


def halves(i: int) -> str:
    return "train" if i < 24 else "val"


def test_a_profile_is_the_scores_of_validation_and_the_moments_of_training(
    make_site: MakeSite,
) -> None:
    has = [("us",)] * 9 + [("us", "mri")] * 15 + [("us", "mri")] * 12
    site = Site(make_site(has, halves, min_cases=10))
    sent = weights("us", "mri", "clinical", "head")
    answer = ask(site, order("profile", round=3), sent)
    assert answer.scores == ask(site, order("evaluate", round=3), sent).scores
    assert {m: total[0, 0] for m, total in answer.moments.items()} == {"us": 24, "mri": 15}
    assert answer.update == {}
    assert answer.distances == {}
    document = answer.document
    assert isinstance(document, SiteReply)
    assert document.counts == {"us": 24, "mri": 15, "clinical": 24, "head": 24}


def test_moments_of_fewer_than_min_cases_do_not_leave(make_site: MakeSite) -> None:
    has = [("us",)] * 15 + [("us", "mri")] * 9 + [("us",)] * 6
    site = Site(make_site(has, halves, min_cases=10))
    answer = ask(site, order("profile", round=3), weights("us", "clinical", "head"))
    assert list(answer.moments) == ["us"]


def references(site: Site, sent: dict[str, np.ndarray]) -> dict[Any, Reference]:
    moments = ask(site, order("profile", round=3), sent).moments
    found = {modality: reference_of(total) for modality, total in moments.items()}
    return {modality: made for modality, made in found.items() if made is not None}


def test_distances_are_those_of_the_cases_of_the_split(make_site: MakeSite) -> None:
    has = [("us",)] * 24 + [("us",)] * 10 + [("mri",)] * 2
    config = make_site(has, halves, min_cases=2)
    site, sent = Site(config), weights("us", "clinical", "head")
    known = references(site, sent)
    answer = ask(site, order("evaluate", round=3), sent, known)
    assert {m: histogram.n for m, histogram in answer.distances.items()} == {"us": 10}
    assert isinstance(answer.document, SiteReply)
    assert answer.document.distance_keys == ("us",)
    assert answer.scores == ask(site, order("evaluate", round=3), sent).scores


def test_no_distances_leave_a_site_that_allows_no_profile(make_site: MakeSite) -> None:
    config = make_site([("us",)] * 36, halves)
    sent = weights("us", "clinical", "head")
    known = references(Site(config), sent)
    policy = config.policy.model_copy(update={"allowed_tasks": ("describe", "train", "evaluate")})
    silent = Site(config.model_copy(update={"policy": policy}))
    answer = ask(silent, order("evaluate", round=3), sent, known)
    assert answer.distances == {}
    with pytest.raises(PolicyError, match="'profile' is not among"):
        ask(silent, order("profile", round=3), sent)


def test_a_site_without_validation_cases_has_a_profile(make_site: MakeSite) -> None:
    site = Site(make_site([("us",)] * 24))
    sent = weights("us", "clinical", "head")
    answer = ask(site, order("profile", round=3), sent)
    assert answer.scores == {}
    assert answer.moments["us"][0, 0] == 24
    assert ask(site, order("evaluate", round=3), sent, references(site, sent)).distances == {}
