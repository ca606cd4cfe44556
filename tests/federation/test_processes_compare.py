"""What a federation is worth, asked of real processes over TLS, one of them killed at its work."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.federation.ground import Ground, her2, join, open_ground, wait_for

from her2_deploy.processes import Child, child, program
from her2_server.compare import conduct_comparison

MakeFederation = Callable[..., Any]
SITES = {"centre-a": (60, ("us", "mri")), "centre-c": (120, ("mri",)), "centre-d": (60, ("us",))}
VICTIM = "centre-c"
ROUNDS = 6
SECONDS = 300.0


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    with open_ground(tmp_path / "superlink") as ground:
        yield ground


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_site_killed_while_it_trains_alone_changes_no_auc(
    make_federation: MakeFederation, ground: Ground, tmp_path: Path
) -> None:
    """The oracle is the same federation in this process, which nobody disturbs."""
    federation = make_federation(centres=SITES, rounds=ROUNDS, local_epochs=2)
    federation.coordinator().run()
    expected = conduct_comparison(federation.grid(), federation.folder)["centres"]
    assert {one["status"] for one in expected.values()} == {"compared"}
    config, out = join(federation, ground), tmp_path / "runs" / "test"
    root = federation.folder.path.parent

    def start(site: str, log: str) -> Child:
        command = [program("her2-client"), "start", "--site", str(root / site / "site.yaml")]
        return stack.enter_context(child(site, command, tmp_path / log))

    with ExitStack() as stack:
        sites = {site: start(site, f"{site}.log") for site in SITES}
        victim = sites[VICTIM]
        command = [program("her2-server"), "run", str(config), "--out", str(out), "--compare"]
        with child("server", command, tmp_path / "server.log") as server:
            wait_for(lambda: bool(alone(victim)) or server.process.poll() is not None, SECONDS)
            victim.process.kill()
            victim.process.wait()
            wait_for(lambda: server.process.poll() is not None, SECONDS)
        before = alone(victim)
        assert server.process.returncode == 0, server.tail(30)
        assert 0 < len(before) < ROUNDS
        lost = {"status": "missing", "reason": "the site was lost"}
        told = json.loads((out / "compare.json").read_text())
        assert told["centres"] == {**expected, VICTIM: lost}

        again = start(VICTIM, "again.log")
        done = her2("her2-server", "compare", out, "--json", timeout=SECONDS)
        assert done.returncode == 0, done.stderr
        compared = json.loads(done.stdout)
        assert json.loads((out / "compare.json").read_text()) == compared
        assert compared["centres"] == expected
        (kept,) = re.findall(rf"going on after round (\d+)/{ROUNDS}", again.log.read_text())
        assert int(kept) - before[-1] in (0, 1)  # it is saved before the log says so
        assert alone(again) == list(range(int(kept) + 1, ROUNDS + 1))
        whole = list(range(1, ROUNDS + 1))  # the others have not trained again
        assert [alone(site) for site in sites.values()] == [whole, before, whole]

        words = ("--out", out.parent, "--without", "centre-d", "--json")
        done = her2("her2-server", "leave-one-out", config, *words, timeout=SECONDS)
        assert done.returncode == 0, done.stderr
        left_out = json.loads(done.stdout)
    assert json.loads((out.parent / "test-leave-one-out.json").read_text()) == left_out
    (name, one), *others = left_out["centres"].items()
    full = json.loads((out / "summary.json").read_text())["test"]["by_centre"]["centre-d"]
    assert (name, others) == ("centre-d", [])
    assert ("suppressed" in one, one.get("n")) == ("suppressed" in full, full.get("n"))
    assert one.get("auc", {}).get("full") == full.get("auc")
    without = json.loads((out.parent / "test-without-centre-d" / "summary.json").read_text())
    unseen = without["test"]["by_centre"]["centre-d"]
    assert unseen.get("auc") == one.get("auc", {}).get("unseen")
    for site in (*sites.values(), again):
        assert "Traceback" not in site.log.read_text()


def alone(site: Child) -> list[int]:
    """The rounds of training alone that a site's log tells of."""
    return [int(n) for n in re.findall(r"compare: round (\d+)/\d+ alone", site.log.read_text())]
