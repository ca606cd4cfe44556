"""The end of a run over the true wire path: its order, its refusals, its bits."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array
from safetensors.numpy import load as load_tensors
from tests.messages import arrays_in

from her2_client.scoring import profile
from her2_common.arrays import arrays_record
from her2_common.cases import SPLITS
from her2_common.config import SiteConfig
from her2_common.errors import RunError
from her2_common.model import preset
from her2_common.novelty import moments, reference_of
from her2_common.release import REFERENCES_NAME, load_release, read_references, read_release
from her2_common.temperature import LogitMap, fold
from her2_server import checkpoint

MakeFederation = Callable[..., Any]
TWO = {"centre-a": (60, ("mg", "us")), "centre-d": (60, ("us",))}


def files(federation: Any) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in federation.folder.release.iterdir()}


def summary_of(federation: Any) -> dict[str, Any]:
    return json.loads(federation.folder.summary.read_text())


def watch(federation: Any, grid: Any) -> list[tuple[str, str, set[str], set[str]]]:
    """What is asked and answered: (site, task, kinds of arrays sent, kinds received)."""
    seen: list[tuple[str, str, set[str], set[str]]] = []

    def fault_of(name: str) -> Callable[..., list[Any]]:
        def fault(order: Any, answer: Callable[[], Any]) -> list[Any]:
            reply = answer()
            document = json.loads(order.content["order"]["json"])
            received = set() if reply.has_error() else set(reply.content) - {"reply"}
            task = f"{document['task']} {document['split']}"
            seen.append((name, task, set(order.content) - {"order"}, received))
            return [reply]

        return fault

    for name in federation.keys:
        federation.node(grid, name).fault = fault_of(name)
    return seen


def test_profile_then_validation_then_test(make_federation: MakeFederation) -> None:
    federation = make_federation(centres=TWO, rounds=1)
    grid = federation.grid()
    seen = watch(federation, grid)
    federation.coordinator(grid).run()
    last = [entry for entry in seen if not entry[1].startswith(("describe", "train"))]
    assert [task for _, task, _, _ in last] == [
        *["profile val"] * 2,
        *["evaluate val"] * 2,
        *["evaluate test"] * 2,
    ]
    for _, task, sent, received in last:
        if task == "profile val":
            assert (sent, received) == ({"weights"}, {"scores", "moments"})
        else:  # what was scored on validation is at the sites already
            weights = {"weights"} if task == "evaluate val" else set()
            assert (sent, received) == (weights | {"references"}, {"scores", "distances"})


def test_the_release_is_calibrated_and_says_how(make_federation: MakeFederation) -> None:
    federation = make_federation(centres=TWO, rounds=3, local_epochs=2, class_balance="weights")
    federation.coordinator().run()
    summary = summary_of(federation)
    record = summary["temperature"]
    assert record["reason"] is None
    assert record["intercept"] != 0
    assert record["n"] == summary["validation"]["n"]
    manifest, groups = read_release(federation.folder.release)
    assert manifest.calibration == {k: v for k, v in record.items() if k != "bins"}
    trained = checkpoint.latest(federation.folder.rounds).groups
    plan = preset("compact", **manifest.layout)
    expected = fold(trained, plan, LogitMap(record["slope"], record["intercept"]))
    assert all(groups[g].tobytes() == expected[g].tobytes() for g in groups)
    assert not np.array_equal(groups["head"], trained["head"])
    before, after = record["validation"]["before"], record["validation"]["after"]
    assert after["log_loss"] < before["log_loss"]
    assert after["slope"]["estimate"] == pytest.approx(1, abs=0.05)


def moments_of(config: SiteConfig, model: Any) -> dict[str, np.ndarray]:
    from her2_client.cache import open_cache
    from her2_client.cohort import load_cohort

    cohort = load_cohort(
        open_cache(config.data.cache),
        split="train",
        label="reference",
        image_size=32,
        volume_size=16,
    )
    return profile(model, cohort)


def test_the_references_are_those_of_the_pooled_training_cases(
    make_federation: MakeFederation,
) -> None:
    many = {"centre-a": (260, ("mg", "us")), "centre-d": (260, ("us",))}
    federation = make_federation(centres=many, rounds=1)
    federation.coordinator().run()
    model, manifest = load_release(federation.folder.release)
    assert list(manifest.limits) == ["us"]  # about 42 validation cases have mammography
    parts = [moments_of(config, model.eval()) for config in federation.configs.values()]
    expected = reference_of(parts[0]["us"] + parts[1]["us"])
    got = read_references(federation.folder.release, manifest)["us"]
    np.testing.assert_allclose(got.mean, expected.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.factor, expected.factor, rtol=1e-4, atol=1e-4)
    # What has no limit would flag nothing, and says most of the few: it is not released.
    released = load_tensors((federation.folder.release / REFERENCES_NAME).read_bytes())
    assert set(released) == {"us.mean", "us.factor"}
    novelty = summary_of(federation)["novelty"]
    assert novelty["us"]["limit"] == manifest.limits["us"]
    assert novelty["mg"] == {
        "limit": None,
        "reason": "fewer than 99 validation cases",
        "flagged": None,
    }


def leaves_after(node: Any, task: str, number: int) -> None:
    """The site answers ``task`` of round ``number`` and then is off line."""

    def fault(order: Any, answer: Callable[[], Any]) -> list[Any]:
        document = json.loads(order.content["order"]["json"])
        node.online = (document["task"], document["round"]) != (task, number)
        return [answer()]

    node.fault = fault


@pytest.mark.parametrize(
    ("task", "stops_at"),
    [("train", "profile"), ("profile", "val"), ("evaluate", "test")],
)
def test_the_end_is_the_same_bits_after_a_resume(
    make_federation: MakeFederation, task: str, stops_at: str
) -> None:
    undisturbed, stopped = (make_federation(name, centres=TWO) for name in "ab")
    undisturbed.coordinator().run()
    grid = stopped.grid()
    leaves_after(stopped.node(grid, "centre-d"), task, 2)
    with pytest.raises(RunError, match=f"{stops_at}: expected 2 sites, got 1"):
        stopped.coordinator(grid).run()
    stopped.coordinator(stopped.grid(order_of_arrival=lambda ids: ids[::-1])).run()
    assert files(stopped) == files(undisturbed)
    for key in ("temperature", "threshold", "novelty", "validation", "test"):
        assert summary_of(stopped)[key] == summary_of(undisturbed)[key]


# --- refusals -----------------------------------------------------------------------------------


def decline(federation: Any, name: str) -> None:
    config = federation.configs[name]
    tasks = tuple(task for task in config.policy.allowed_tasks if task != "profile")
    policy = config.policy.model_copy(update={"allowed_tasks": tasks})
    federation.configs[name] = config.model_copy(update={"policy": policy})


def test_a_site_that_leaves_the_profile_out_takes_part_in_the_rest(
    make_federation: MakeFederation,
) -> None:
    federation = make_federation(centres=TWO, rounds=1)
    decline(federation, "centre-d")
    grid = federation.grid()
    seen = watch(federation, grid)
    log: list[str] = []
    federation.coordinator(grid, log).run()
    assert any("profile: centre-d refused: site error: policy" in line for line in log)
    record = summary_of(federation)["temperature"]
    assert record["n"] is None  # the difference to the published results would be centre-d
    answers = {(name, task): received for name, task, _, received in seen}
    assert answers["centre-d", "evaluate test"] == {"scores"}
    assert answers["centre-a", "evaluate test"] == {"scores", "distances"}


def test_if_every_site_leaves_it_out_the_model_is_released_as_trained(
    make_federation: MakeFederation,
) -> None:
    federation = make_federation(centres=TWO, rounds=1)
    for name in TWO:
        decline(federation, name)
    federation.coordinator().run()
    summary = summary_of(federation)
    assert summary["temperature"]["reason"] == "no centre answered profile"
    assert {r["reason"] for r in summary["novelty"].values()} == {
        "no centre sent moments of its features that can be used"
    }
    manifest, groups = read_release(federation.folder.release)
    trained = checkpoint.latest(federation.folder.rounds).groups
    assert all(groups[g].tobytes() == trained[g].tobytes() for g in groups)
    assert manifest.limits == {}
    assert "references.safetensors" not in files(federation)


def spoil_moments(change: Callable[[np.ndarray], np.ndarray]) -> Callable[..., list[Any]]:
    def fault(_order: Any, answer: Callable[[], Any]) -> list[Any]:
        reply = answer()
        if "moments" in reply.content:
            sent = arrays_in(reply.content, "moments")
            changed = {name: Array(change(array)) for name, array in sent.items()}
            reply.content["moments"] = arrays_record(changed)
        return [reply]

    return fault


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda total: total * 2, "wrong count"),
        (lambda total: total[1:, 1:], "misshapen"),
        (lambda total: total * np.nan, "not finite"),
    ],
    ids=["twice the cases", "narrow", "nan"],
)
def test_spoiled_moments_are_refused_by_name(
    make_federation: MakeFederation, change: Callable[[np.ndarray], np.ndarray], reason: str
) -> None:
    spoiled, absent = (make_federation(n, centres=TWO, rounds=1, quorum=1) for n in "ab")
    grid, log = spoiled.grid(), []
    spoiled.node(grid, "centre-d").fault = spoil_moments(change)
    spoiled.coordinator(grid, log).run()
    assert f"profile: centre-d refused: {reason}" in log
    decline(absent, "centre-d")
    absent.coordinator().run()
    # A refused profile leaves no trace: the weights are those of a run whose site sent none.
    assert files(spoiled)["model.safetensors"] == files(absent)["model.safetensors"]


def test_moments_are_of_the_features_of_the_site(make_federation: MakeFederation) -> None:
    """An independent way to the sums: the features themselves, case by case."""
    import torch

    from her2_client.cache import open_cache
    from her2_client.cohort import load_cohort
    from her2_common.model import build_model

    federation = make_federation(centres={"centre-d": (60, ("us",))}, rounds=1)
    config = federation.configs["centre-d"]
    model = build_model("compact", 1).eval()
    cohort = load_cohort(
        open_cache(config.data.cache),
        split=SPLITS[0],
        label="reference",
        image_size=32,
        volume_size=16,
    )
    with torch.no_grad():
        rows = [model.us(cohort.images["us"][i : i + 1].float()) for i in range(len(cohort))]
    expected = moments(torch.cat(rows).numpy())
    np.testing.assert_allclose(moments_of(config, model)["us"], expected, rtol=1e-4, atol=1e-4)
