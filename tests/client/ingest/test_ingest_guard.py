"""The guard: a decision holds for exactly the bytes it was made on."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from her2_client.ingest.privacy.guard import REVIEW_HINT, Decision, Guard, digest
from her2_common.errors import ImageError

KEY = b"k" * 32


def blank() -> np.ndarray:
    return np.zeros((4, 5))


def files(folder: Path, *contents: bytes, stem: str = "a") -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, content in enumerate(contents):
        paths.append(folder / f"{stem}{number}.dcm")
        paths[-1].write_bytes(content)
    return paths


def test_an_undecided_picture_is_quarantined_with_its_own_reason(tmp_path: Path) -> None:
    guard = Guard(KEY)
    paths = files(tmp_path, b"one")
    with pytest.raises(ImageError) as error:
        guard.clear(paths, picture=blank, reason="no verified region", message="expected a region")
    assert error.value.disposition == "quarantined"
    assert (error.value.reason, str(error.value)) == ("no verified region", "expected a region")
    assert error.value.hint == REVIEW_HINT
    assert guard.consulted == {digest(KEY, paths): None}


def test_a_refused_picture_is_refused(tmp_path: Path) -> None:
    paths = files(tmp_path, b"one")
    guard = Guard(KEY, {digest(KEY, paths): Decision(False)})
    with pytest.raises(ImageError) as error:
        guard.clear(paths, picture=blank, reason="text found", message="no matter")
    assert (error.value.disposition, error.value.reason) == ("refused", "refused at review")
    assert guard.consulted == {digest(KEY, paths): Decision(False)}


@pytest.mark.parametrize("keep", [None, (1, 2, 3, 4)])
def test_an_approved_picture_comes_back_with_the_part_to_keep(
    tmp_path: Path, keep: tuple[int, int, int, int] | None
) -> None:
    paths = files(tmp_path, b"one")
    known = Decision(True, keep)
    guard = Guard(KEY, {digest(KEY, paths): known})
    assert guard.clear(paths, picture=blank, reason="text found", message="no matter") == known
    assert guard.consulted == {digest(KEY, paths): known}


def test_the_picture_is_not_drawn_where_nobody_looks(tmp_path: Path) -> None:
    def picture() -> np.ndarray:
        raise AssertionError("drawn")

    with pytest.raises(ImageError, match="wait"):
        Guard(KEY).clear(files(tmp_path, b"one"), picture=picture, reason="x", message="wait")


def test_the_digest_by_another_way(tmp_path: Path) -> None:
    contents = [b"slice one", b"slice two", b""]
    inner = b"".join(sorted(hashlib.sha256(content).digest() for content in contents))
    expected = hmac.new(KEY, b"review\x007\x00" + inner, "sha256").hexdigest()[:32]
    assert digest(KEY, files(tmp_path, *contents), 7) == expected


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    contents=st.lists(st.binary(max_size=40), min_size=1, max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_names_and_order_do_not_matter(
    tmp_path: Path, contents: list[bytes], order: object
) -> None:
    paths = files(tmp_path / "one", *contents)
    shuffled = list(contents)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert digest(KEY, paths) == digest(KEY, files(tmp_path / "two", *shuffled, stem="other"))


def test_bytes_frame_key_and_number_of_files_do(tmp_path: Path) -> None:
    one = files(tmp_path / "1", b"one")
    digests = [
        digest(KEY, one),
        digest(KEY, one, 1),
        digest(b"j" * 32, one),
        digest(KEY, files(tmp_path / "2", b"onf")),
        digest(KEY, files(tmp_path / "3", b"one", b"one")),
        digest(KEY, files(tmp_path / "4", b"one", b"")),
    ]
    assert len(set(digests)) == len(digests)


def test_a_file_larger_than_a_block(tmp_path: Path) -> None:
    content = bytes(range(256)) * 8192  # 2 MiB
    (path,) = files(tmp_path / "1", content)
    (other,) = files(tmp_path / "2", content[:-1] + b"\x00")
    assert digest(KEY, [path]) != digest(KEY, [other])


def test_a_missing_file_is_an_image_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as error:
        digest(KEY, [tmp_path / "CANARY.dcm"])
    assert error.value.reason == "missing file"
    assert "CANARY" not in str(error.value)
