"""Whole federations in one process, over the true wire path."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from tests.federation.conftest import CENTRES, LocalFederation, build
from tests.messages import arrays_in

from her2_common.errors import RunError
from her2_common.vectors import vectors_record
from her2_common.wire import TaskOrder, read_document
from her2_server import checkpoint
from her2_server.summary import weights_hash

if TYPE_CHECKING:
    from collections.abc import Callable as MakeFederation


def final_hash(folder) -> str:
    return weights_hash(checkpoint.latest(folder.rounds).groups)


@pytest.mark.usefixtures("drawn")
def test_a_run_ends_with_a_report_and_every_number(make_federation: MakeFederation) -> None:
    federation = make_federation(rounds=6, local_epochs=2)
    log: list[str] = []
    federation.coordinator(log=log).run()
    summary = json.loads(federation.folder.summary.read_text())
    assert summary["test"]["auc"]["estimate"] > 0.8
    assert summary["test"]["auc"]["low"] < summary["test"]["auc"]["estimate"]
    assert summary["threshold"]["from"] == "validation"
    assert {site["name"]: site["groups"] for site in summary["sites"]} == {
        "centre-a": ["mg", "us", "mri", "clinical", "head"],
        "centre-b": ["mg", "us", "clinical", "head"],
        "centre-c": ["mri", "clinical", "head"],
        "centre-d": ["us", "clinical", "head"],
    }
    sent = {site["name"]: site["sent_bytes"] for site in summary["sites"]}
    assert sent["centre-d"] < sent["centre-b"] < sent["centre-a"]
    assert (federation.folder.path / "report.html").stat().st_size > 10_000
    lines = federation.folder.read_metrics()
    assert [line["round"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert any("round 6/6" in text for text in log)


def test_the_same_seed_gives_the_same_bits(
    make_federation: MakeFederation, undisturbed: MakeFederation
) -> None:
    first, second, third = undisturbed(), make_federation("second"), undisturbed(seed=6)
    second.coordinator().run()
    assert final_hash(first.folder) == final_hash(second.folder)
    assert final_hash(first.folder) != final_hash(third.folder)


def test_arrival_changes_no_bit(
    make_federation: MakeFederation, undisturbed: MakeFederation
) -> None:
    first, second = undisturbed(), make_federation("second")
    second.coordinator(second.grid(order_of_arrival=lambda ids: ids[::-1])).run()
    assert final_hash(first.folder) == final_hash(second.folder)


def test_a_killed_run_resumes_to_the_same_bits(make_federation: MakeFederation) -> None:
    undisturbed, killed = make_federation("a", rounds=4), make_federation("b", rounds=4)
    undisturbed.coordinator().run()

    coordinator = killed.coordinator()
    current = coordinator._begin()
    coordinator._describe()
    for _ in range(2):
        current = coordinator._round(current)
    # The coordinator dies while it writes round 3; every site is restarted, too.
    torn = killed.folder.rounds / ".0003.tmp"
    torn.mkdir()
    (torn / "us.safetensors").write_bytes(b"half")

    log: list[str] = []
    killed.coordinator(log=log).run()
    assert any("going on after round 2/4" in text for text in log)
    assert final_hash(killed.folder) == final_hash(undisturbed.folder)
    summaries = [json.loads(f.folder.summary.read_text()) for f in (undisturbed, killed)]
    assert summaries[0]["test"] == summaries[1]["test"]


def test_a_damaged_checkpoint_is_passed_over(
    make_federation: MakeFederation, undisturbed: MakeFederation
) -> None:
    damaged = make_federation()
    damaged.coordinator().run()
    newest = damaged.folder.rounds / "0002" / "us.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    damaged.folder.summary.unlink()
    log: list[str] = []
    damaged.coordinator(log=log).run()
    assert any("0002" in text and "SHA-256" in text for text in log)
    assert final_hash(damaged.folder) == final_hash(undisturbed().folder)


def test_checkpoints_of_another_configuration_are_refused(
    make_federation: MakeFederation, undisturbed: MakeFederation
) -> None:
    one, other = undisturbed(), make_federation(seed=9)
    shutil.copytree(one.folder.rounds, other.folder.rounds)
    with pytest.raises(RunError, match=r"another federation\.yaml"):
        other.coordinator().run()


# --- faults, one site each ----------------------------------------------------------------------

Answer = Callable[[], Message]


def altered(change: Callable[[RecordDict], None]) -> Callable[[Message, Answer], Iterable[Message]]:
    """A site that alters its training replies."""

    def fault(order: Message, answer: Answer) -> list[Message]:
        reply = answer()
        if order.metadata.message_type == "train" and not reply.has_error():
            change(reply.content)
        return [reply]

    return fault


def set_update(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[RecordDict], None]:
    def apply(content: RecordDict) -> None:
        vectors = arrays_in(content, "update")
        vectors["head"] = change(vectors["head"])
        content["update"] = vectors_record(vectors)

    return apply


def set_reply(**changes: object) -> Callable[[RecordDict], None]:
    def apply(content: RecordDict) -> None:
        document = json.loads(content["reply"]["json"]) | changes
        content["reply"]["json"] = json.dumps(document)

    return apply


def spoil(vector: np.ndarray) -> np.ndarray:
    vector[0] = np.nan
    return vector


FAULTS = {
    "not finite": altered(set_update(spoil)),
    "misshapen": altered(set_update(lambda v: v[:-1])),
    "wrong type": altered(set_update(lambda v: v.astype(np.float64))),
    "norm out of bounds": altered(set_update(lambda v: v + 1e6)),
    "stale round": altered(set_reply(round=0)),
    "wrong reply": altered(set_reply(site="centre-a")),
    "wrong count": altered(set_reply(counts={"head": 5, "us": 10, "clinical": 9})),
    "missing": altered(lambda content: content.pop("update")),
}


@pytest.fixture(scope="module")
def without_d(tmp_path_factory: pytest.TempPathFactory) -> LocalFederation:
    """After a run in which the last site never was online."""
    root = tmp_path_factory.mktemp("without-d")
    federation = build(root, CENTRES, None, {"quorum": 3, "rounds": 1})
    grid = federation.grid()
    federation.node(grid, "centre-d").online = False
    federation.coordinator(grid).run()
    return federation


@pytest.mark.parametrize("reason", FAULTS)
def test_a_faulty_update_is_refused_by_name(
    make_federation: MakeFederation, without_d: LocalFederation, reason: str
) -> None:
    faulty = make_federation("faulty", quorum=3, rounds=1)
    grid = faulty.grid()
    faulty.node(grid, "centre-d").fault = FAULTS[reason]
    faulty.coordinator(grid).run()
    (line,) = faulty.folder.read_metrics()
    assert line["sites"]["centre-d"] == line["sites"]["centre-d"] | {
        "status": "refused",
        "reason": reason,
    }
    # A refused update leaves no trace: the weights are those of a run without the site.
    assert final_hash(faulty.folder) == final_hash(without_d.folder)


def test_a_second_reply_counts_once(
    make_federation: MakeFederation, undisturbed: MakeFederation
) -> None:
    plain, doubled = undisturbed(), make_federation("doubled")
    grid = doubled.grid()
    doubled.node(grid, "centre-b").fault = lambda _, answer: [answer()] * 2
    doubled.coordinator(grid).run()
    assert final_hash(plain.folder) == final_hash(doubled.folder)


def test_a_site_that_raises_sends_a_code_and_no_text(make_federation: MakeFederation) -> None:
    federation = make_federation(quorum=3, rounds=1)
    grid = federation.grid()
    cache = federation.configs["centre-d"].data.cache
    shutil.rmtree(cache)
    federation.coordinator(grid).run()
    summary = federation.folder.summary.read_text()
    assert [site["name"] for site in json.loads(summary)["sites"]] == [
        "centre-a",
        "centre-b",
        "centre-c",
    ]
    assert str(cache) not in summary


def test_a_lost_message_ends_the_round_at_its_timeout(make_federation: MakeFederation) -> None:
    federation = make_federation(quorum=3, rounds=1, round_timeout=3)
    grid = federation.grid()
    federation.node(grid, "centre-d").fault = lambda order, answer: (
        [] if order.metadata.message_type == "train" else [answer()]
    )
    federation.coordinator(grid).run()
    (line,) = federation.folder.read_metrics()
    assert line["sites"]["centre-d"]["status"] == "missing"
    assert line["sites"]["centre-d"]["reason"] == "no reply within 3 s"
    assert line["seconds"]["total"] >= 3


def test_below_quorum_the_run_stops_and_can_be_resumed(
    make_federation: MakeFederation, undisturbed: MakeFederation
) -> None:
    stopped = make_federation()
    grid = stopped.grid()
    stopped.node(grid, "centre-c").fault = altered(set_update(spoil))
    with pytest.raises(RunError, match=r"expected 4 sites, got 3.*centre-c refused: not finite"):
        stopped.coordinator(grid).run()
    stopped.coordinator().run()
    assert final_hash(stopped.folder) == final_hash(undisturbed().folder)


def test_a_missing_site_is_named_before_the_run(make_federation: MakeFederation) -> None:
    federation = make_federation()
    grid = federation.grid()
    federation.node(grid, "centre-b").online = False
    with pytest.raises(RunError, match=r"got 3 \(centre-b missing: not online\)"):
        federation.coordinator(grid).run()


def test_a_site_gets_only_the_groups_it_can_use(make_federation: MakeFederation) -> None:
    federation = make_federation(rounds=1)
    grid = federation.grid()
    seen: dict[str, set[str]] = {}
    sent: dict[str, set[str]] = {}

    def watch(name: str) -> Callable[[Message, Answer], list[Message]]:
        def fault(order: Message, answer: Answer) -> list[Message]:
            if order.metadata.message_type == "train":
                seen[name] = set(read_document(order.content, "order", TaskOrder).weights)
                sent[name] = set(order.content.get("weights", {}))
            return [answer()]

        return fault

    for name in federation.keys:
        federation.node(grid, name).fault = watch(name)
    federation.coordinator(grid).run()
    assert seen == {
        "centre-a": {"mg", "us", "mri", "clinical", "head"},
        "centre-b": {"mg", "us", "clinical", "head"},
        "centre-c": {"mri", "clinical", "head"},
        "centre-d": {"us", "clinical", "head"},
    }
    assert set().union(*sent.values()) == set()  # what it begins with, the seed gives


def test_a_modality_that_nobody_has_keeps_its_values(make_federation: MakeFederation) -> None:
    federation = make_federation(
        centres={"centre-b": (50, ("mg", "us")), "centre-d": (40, ("us",))}, rounds=1
    )
    federation.coordinator().run()
    before = checkpoint.load(federation.folder.rounds / "0000").groups
    after = checkpoint.load(federation.folder.rounds / "0001").groups
    assert np.array_equal(before["mri"], after["mri"])
    assert not np.array_equal(before["us"], after["us"])
