"""predict --explain: the explained cases of a prediction, in a folder of the site.

1. The folder is checked before anything is computed: new, empty, or (with ``force``) holding
   nothing but the files of an earlier explanation.
2. The cases are chosen from the rows of predictions.csv: those asked for, or the first ones.
3. Each case is explained and drawn by itself. The pictures are kept for the page; once they are
   more than a page should hold, they go into files beside it, and so do those that follow.
4. The page is written last. All files are for their owner alone: they show patients' pictures and
   case ids, and nothing sends them anywhere.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from her2_client.explain.attribution import explain
from her2_client.explain.page import GENERATOR, Card, picture_name, render
from her2_client.explain.picture import Drawing, draw
from her2_client.predict import Predicted
from her2_common.cases import MODALITIES, Modality
from her2_common.errors import ConfigError
from her2_common.files import replace_privately

PAGE: Final = "index.html"
PICTURES: Final = "pictures"
MOST_IN_PAGE: Final = 22_000_000
"""Bytes of pictures in one page; as text they are a third more, below 30 MB."""
_PICTURE: Final = re.compile(r"\.?\d{4,}-(mg|us|mri)-\d+\.(jpg|png)(\.tmp)?")
_HEAD_BYTES: Final = 2000
"""The page's first bytes, in which it names what made it."""

_FORCE_HINT: Final = "name a new folder; --force replaces an earlier explanation and nothing else"


def check_folder(folder: Path, *, force: bool) -> None:
    """Refuse a folder that holds what ``write_explanations`` must not replace.

    Raises:
        ConfigError: it is no folder or not empty; with ``force``, it holds other files than those
            of an earlier explanation.
    """
    if folder.is_symlink() and not folder.exists():
        raise ConfigError(f"{folder}: expected a folder, got a link that leads nowhere")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder}: expected a folder, got a file", hint=_FORCE_HINT)
    if not any(folder.iterdir()):
        return
    if not force:
        raise ConfigError(f"{folder}: expected an empty folder, got files", hint=_FORCE_HINT)
    if foreign := [path for path in folder.iterdir() if not _is_ours(path)]:
        files = "file that is" if len(foreign) == 1 else "files that are"
        raise ConfigError(
            f"{folder}: expected an earlier explanation, got {len(foreign)} {files} not of one",
            hint=_FORCE_HINT,
        )


def write_explanations(
    folder: Path,
    predicted: Predicted,
    *,
    site: str,
    cases: Sequence[str] | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Explain cases of a prediction in ``folder``; returns their number.

    ``cases`` are case_ids, None for all; of these the first ``limit`` are explained. The caller has
    checked the folder. ``progress`` is told how many cases are done, of how many.

    Raises:
        ConfigError: a case was asked for that was not predicted.
    """
    chosen = choose(predicted, cases)[:limit]
    _clear(folder)
    pictures = _Pictures(folder)
    cards = []
    for number, place in enumerate(chosen, start=1):
        batch, _ = predicted.cohort.batch(np.array([predicted.cases[place]]))
        explanation, maps = explain(predicted.model, batch)
        drawings: dict[Modality, Drawing] = {}
        for modality in (m for m in MODALITIES if m in maps):
            image = batch.images[modality][0].cpu().numpy()
            drawings[modality], files = draw(modality, image, maps[modality])
            for index, file in enumerate(files, start=1):
                pictures.add(picture_name(number, modality, index, "jpg"), file.jpg)
                pictures.add(picture_name(number, modality, index, "png"), file.png)
        cards.append(Card(number, predicted.rows[place], explanation, drawings))
        progress(number, len(chosen))
    manifest = predicted.manifest
    html = render(
        cards,
        pictures.source,
        site=site,
        run=manifest.run,
        label=manifest.label,
        threshold=manifest.threshold,
        of=len(predicted.rows),
    )
    replace_privately(folder / PAGE, html.encode())
    return len(cards)


def choose(predicted: Predicted, cases: Sequence[str] | None) -> list[int]:
    """The places in ``predicted.rows`` of the case_ids, in the order of the table; None: all.

    Raises:
        ConfigError: a case was asked for that was not predicted; its place in the list is named.
    """
    if cases is None:
        return list(range(len(predicted.rows)))
    place_of = {row["case_id"]: place for place, row in enumerate(predicted.rows)}
    if unknown := [str(i) for i, name in enumerate(cases, start=1) if name not in place_of]:
        raise ConfigError(
            f"--cases: expected case_ids of the predictions, got others at place "
            f"{', '.join(unknown)} of the list",
            hint="compare with the column case_id of the table; --split leaves cases out",
        )
    return sorted({place_of[name] for name in cases})


# --- the folder ---------------------------------------------------------------------------------


class _Pictures:
    """The pictures of a page: in memory, and from ``MOST_IN_PAGE`` bytes on in files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / PICTURES
        self.kept: dict[str, bytes] = {}
        self.size = 0
        self.in_files = False

    def add(self, name: str, content: bytes) -> None:
        self.size += len(content)
        self.kept[name] = content
        self.in_files = self.in_files or self.size > MOST_IN_PAGE
        if self.in_files:
            for waiting, bytes_of_it in self.kept.items():
                replace_privately(self.folder / waiting, bytes_of_it)
            self.kept.clear()

    def source(self, name: str) -> str:
        if self.in_files:
            return f"{PICTURES}/{name}"
        kind = "jpeg" if name.endswith(".jpg") else "png"
        return f"data:image/{kind};base64,{base64.b64encode(self.kept[name]).decode()}"


def _is_ours(path: Path) -> bool:
    if path.is_symlink():
        return False
    if path.name == PICTURES and path.is_dir():
        return all(_is_picture(inner) for inner in path.iterdir())
    if path.name != PAGE or not path.is_file():
        return False
    with path.open("rb") as page:
        return f'content="{GENERATOR}"'.encode() in page.read(_HEAD_BYTES)


def _is_picture(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and bool(_PICTURE.fullmatch(path.name))


def _clear(folder: Path) -> None:
    """Remove the files of an earlier explanation; the folder is then the owner's alone."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    (folder / PAGE).unlink(missing_ok=True)
    if (folder / PICTURES).is_dir():
        for picture in (folder / PICTURES).iterdir():
            picture.unlink()
        (folder / PICTURES).rmdir()
