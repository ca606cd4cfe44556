"""``her2-client ingest`` as a process that is killed, stopped, doubled and starved of disk.

The theorem behind: the bytes of a cache depend on the table, the images, the sizes and the key
alone. So whatever happened on the way, the cache in the end is that of an undisturbed ingest.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import uid
from tests.client.ingest.conftest import Site, breast, echo

from her2_client.cache import open_cache, verify_cache
from her2_client.ingest.run import ingest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="finds processes as Linux has them"
)

PROGRAM = Path(sys.executable).with_name("her2-client")
MARK = "HER2_CHAOS"
"""An environment variable by which the processes of a test are found."""
KINDS = ("us", "mg", "us", "us", "us", "mri", "us", "us", "mg us mri")
FORMER = 5
"""Cases of the cache that was there before."""
SOON = 60.0
"""Seconds until something that is bound to happen has happened."""


class Centre:
    """A site of many small cases, some faulty, and the cache of its first few."""

    def __init__(self, folder: Path, cases: int) -> None:
        self.site = site = Site(folder / "site")
        for number in range(cases):
            site.add(f"case-{number}", KINDS[number % len(KINDS)])
            self._spoil(number, site.rows[-1])
        self.units = sum(self._modalities(row) for row in site.rows)
        self.faults = sum(number % 8 in (1, 4) for number in range(cases))
        rows, site.rows = site.rows, site.rows[:FORMER]
        ingest(site.config("former"), workers=1)
        site.rows = rows
        site.config("former")
        self.before = self.tree("former")

    @staticmethod
    def _modalities(row: dict[str, Any]) -> int:
        return ("us" in row) + ("mri" in row) + ("mg_cc" in row)

    def _spoil(self, number: int, row: dict[str, Any]) -> None:
        """Some files are missing or have no region, some are compressed."""
        if number % 8 == 1:
            Path(row.get("mg_mlo") or row.get("us") or f"{row['mri']}/0-000.dcm").unlink()
        elif number % 8 == 4 and "us" in row:
            self.site.dicoms.us(Path(row["us"]), echo(), region=None, StationName=f"{number}")
        elif number % 8 == 5 and "mg_cc" in row:
            path = self.site.dicoms.mg(Path(row["mg_cc"]), breast())
            dataset = pydicom.dcmread(path)
            dataset.compress(uid.JPEG2000Lossless, generate_instance_uid=False)
            dataset.save_as(path)

    def cache(self, name: str) -> Path:
        """A new copy of the former cache, for which site.yaml is ``name``.yaml."""
        folder = self.site.folder
        text = (folder / "site.yaml").read_text()
        (folder / f"{name}.yaml").write_text(text.replace("cache: former", f"cache: {name}"))
        shutil.copytree(folder / "former", folder / name)
        return folder / name

    def start(self, name: str, **options: Any) -> subprocess.Popen[str]:
        # A shell's background job hands down that Ctrl-C is ignored; a person's terminal does not.
        options.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        return subprocess.Popen(
            [PROGRAM, "ingest", "--site", self.site.folder / f"{name}.yaml", "--workers", "2",
             "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, MARK: str(self.site.folder)},
            **options,
        )  # fmt: skip

    def ingested(self, name: str) -> dict[str, Any]:
        """The counts of an ingest that is left alone."""
        process = self.start(name)
        out, err = process.communicate(timeout=5 * SOON)
        assert process.returncode == 0, err
        counts: dict[str, Any] = json.loads(out)
        return counts

    def tree(self, name: str) -> dict[str, bytes]:
        """All files of a cache but the lock, which is empty."""
        folder = self.site.folder / name
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != ".lock"
        }

    def done(self, name: str) -> int:
        """The images of an ingest under way that are on disk."""
        with contextlib.suppress(OSError):
            journal = self.site.folder / name / ".writing" / "outcomes.jsonl"
            return journal.read_bytes().count(b"\n")
        return 0

    def alive(self, command: str = "") -> list[int]:
        """The processes of this test that have not ended, those with ``command`` on their line."""
        token = f"{MARK}={self.site.folder}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                if token not in (entry / "environ").read_bytes().split(b"\0"):
                    continue
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z" and command.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found

    def wait_for(self, name: str, images: int, process: subprocess.Popen[str]) -> None:
        """Until so many images are done or the process has ended; the cache is sound throughout."""
        end = time.monotonic() + SOON
        while self.done(name) < images and process.poll() is None:
            assert time.monotonic() < end
            assert len(open_cache(self.site.folder / name)) >= FORMER - 1
            time.sleep(0.005)

    def all_gone(self) -> bool:
        end = time.monotonic() + SOON
        while self.alive():
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Centre]:
    made = Centre(tmp_path_factory.mktemp("chaos"), 40)
    made.cache("calm")
    made.ingested("calm")
    yield made
    for process in made.alive():
        os.kill(process, signal.SIGKILL)


def killed_again_and_again(centre: Centre, name: str, seed: int, times: int) -> None:
    """Kill ``times`` ingests, each at a moment drawn by ``seed``, and let the next one end."""
    rng = np.random.default_rng(seed)
    folder = centre.cache(name)
    final, former = centre.tree("calm"), len(open_cache(folder))
    for _ in range(times):
        process = centre.start(name)
        # Early, half-way, or when all is done and the new cache takes its place.
        centre.wait_for(name, int(rng.integers(0, centre.units + 1)), process)
        time.sleep(float(rng.choice([0.0, 0.02, 0.3]) * rng.random()))
        process.kill()
        _, err = process.communicate(timeout=SOON)
        assert "Traceback" not in err
        assert centre.all_gone()
        verify_cache(folder)
        assert len(open_cache(folder)) in (former, len(open_cache(centre.site.folder / "calm")))
    left = centre.done(name)
    counts = centre.ingested(name)
    assert counts["work"]["unchanged"] >= left
    ended = centre.tree(name)
    if json.loads(ended["index.json"])["index"]["generation"] == "0002":
        assert ended == final
    else:  # a kill came after the new cache had taken its place: the last ingest copied it
        assert _without_generation(ended) == _without_generation(final)


def _without_generation(tree: dict[str, bytes]) -> dict[str, Any]:
    files: dict[str, Any] = {name.rpartition("/")[2]: content for name, content in tree.items()}
    index = json.loads(files.pop("index.json"))["index"]
    index.pop("generation")
    return files | {"index": index}


def test_a_killed_ingest_ends_as_an_undisturbed_one(centre: Centre) -> None:
    assert centre.faults >= 4
    killed_again_and_again(centre, "killed", seed=1, times=3)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [2, 3])
def test_an_ingest_killed_many_times(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    centre = Centre(tmp_path_factory.mktemp("chaos"), 80)
    centre.cache("calm")
    centre.ingested("calm")
    killed_again_and_again(centre, "killed", seed, times=10)


def test_a_worker_that_is_killed_ends_it_with_a_hint(centre: Centre) -> None:
    folder = centre.cache("worker")
    process = centre.start("worker")
    while not (workers := centre.alive("spawn_main")):
        assert process.poll() is None
    os.kill(workers[0], signal.SIGKILL)
    _, err = process.communicate(timeout=SOON)
    assert process.returncode == 1
    assert "a worker process died" in err
    assert "hint: run: her2-client ingest --workers 1" in err
    assert "Traceback" not in err
    assert centre.all_gone()
    verify_cache(folder)
    centre.ingested("worker")
    assert centre.tree("worker") == centre.tree("calm")


def test_a_second_ingest_is_refused_and_the_first_goes_on(centre: Centre) -> None:
    centre.cache("twice")
    first = centre.start("twice")
    centre.wait_for("twice", 1, first)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        second = centre.start("twice")
        out, err = second.communicate(timeout=SOON)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert (second.returncode, out) == (1, "")
    assert "another ingest is writing this cache" in err
    assert "hint: wait until it is done" in err
    first.communicate(timeout=SOON)
    assert first.returncode == 0
    assert centre.tree("twice") == centre.tree("calm")


@pytest.mark.parametrize(
    ("when", "everyone"),
    [
        ("at work", True),
        ("at the start", True),
        pytest.param("at work", False, marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_ends_it_quietly_and_the_work_is_kept(
    centre: Centre, when: str, everyone: bool
) -> None:
    """A terminal sends SIGINT to all processes of the command, at times twice; ``kill`` to one."""
    name = f"{when} {everyone}".replace(" ", "-")
    folder = centre.cache(name)
    process = centre.start(name)
    images = 8 if when == "at work" else 1
    centre.wait_for(name, images, process)
    while not centre.alive("spawn_main"):
        assert process.poll() is None
    time.sleep(0.1)  # a worker that starts is a stack trace that waits to be shown
    if everyone:
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)  # somebody is in a hurry
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=SOON)
    assert (process.returncode, out) == (130, "")
    assert err.rstrip().endswith("her2-client: error: interrupted")
    assert "Traceback" not in err
    assert centre.all_gone()
    verify_cache(folder)
    left = centre.done(name)
    assert left >= images
    assert centre.ingested(name)["work"]["unchanged"] >= left
    assert centre.tree(name) == centre.tree("calm")


@pytest.mark.slow
def test_a_file_size_limit_is_an_error_and_the_work_is_kept(centre: Centre) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (24_000, 24_000))

    folder = centre.cache("limited")
    process = centre.start("limited", preexec_fn=limited)
    _, err = process.communicate(timeout=SOON)
    assert process.returncode == 1
    assert "File too large" in err
    assert "Traceback" not in err
    assert centre.all_gone()
    verify_cache(folder)
    left = centre.done("limited")
    assert left > 0
    assert centre.ingested("limited")["work"]["unchanged"] >= left
    assert centre.tree("limited") == centre.tree("calm")


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of 2 MB at ``folder``; skips where none can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("no disk can be mounted")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_an_error_and_the_work_is_kept(centre: Centre) -> None:
    disk = centre.site.folder / "disk"
    text = (centre.site.folder / "site.yaml").read_text()
    (centre.site.folder / "full.yaml").write_text(text.replace("former", "disk/cache"))
    with small_disk(disk):
        shutil.copytree(centre.site.folder / "former", disk / "cache")
        process = centre.start("full")
        centre.wait_for("disk/cache", 6, process)
        os.kill(process.pid, signal.SIGSTOP)
        with contextlib.suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(512))
        os.kill(process.pid, signal.SIGCONT)
        _, err = process.communicate(timeout=SOON)
        assert process.returncode == 1
        assert "disk/cache: the disk is full" in err
        assert "hint: free some space" in err
        assert "Traceback" not in err
        assert centre.all_gone()
        verify_cache(disk / "cache")
        left = centre.done("disk/cache")
        assert left >= 6
        (disk / "ballast").unlink()
        assert centre.ingested("full")["work"]["unchanged"] >= left
        assert centre.tree("disk/cache") == centre.tree("calm")
