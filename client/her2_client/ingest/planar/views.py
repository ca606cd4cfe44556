"""What a mammogram's header says of view and side, from every place where it may stand.

    view   ViewPosition, ViewCodeSequence, and words such as RMLO in the descriptions
    side   ImageLaterality, Laterality, FrameLaterality, AnatomicRegionSequence (with its
           modifier), and the same words

Two places that contradict each other are refused: nobody can tell which is right. Words count
only as whole tokens, and only if all of a text's tokens agree; a series called "R CC, R MLO" says
nothing about one image of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, Literal

from pydicom.dataset import Dataset

from her2_client.ingest.planar.folder import aside
from her2_common.errors import ImageError

View = Literal["CC", "MLO"]
Side = Literal["L", "R"]

VIEW_CODES: Final[dict[str, View]] = {
    "R-10242": "CC",
    "399162004": "CC",
    "R-10226": "MLO",
    "399368009": "MLO",
}
"""DICOM PS3.16 CID 4014, SNOMED RT and SNOMED CT."""
SPECIAL_VIEW_CODES: Final = {
    "R-102D5": "implant displaced",
    "399209000": "implant displaced",
    "R-102D6": "magnification view",
    "399163009": "magnification view",
    "R-102D7": "spot view",
    "399055006": "spot view",
}
"""DICOM PS3.16 CID 4015, SNOMED RT and SNOMED CT."""
FULL_VIEW_CODES: Final = {"R-40AB3", "442581004"}
"""Nipple in profile: how a full view should be. Every other modifier of CID 4015 (axillary tail,
cleavage, rolled, tangential, anterior compression ...) makes a view that shows another part."""
SIDE_CODES: Final[dict[str, Side]] = {
    "T-04030": "L",
    "80248007": "L",
    "G-A101": "L",
    "7771000": "L",
    "T-04020": "R",
    "73056007": "R",
    "G-A100": "R",
    "24028007": "R",
}
"""Left and right breast (CID 4013) and the bare sides (CID 244), SNOMED RT and SNOMED CT."""

TOMOSYNTHESIS: Final = "1.2.840.10008.5.1.4.1.1.13.1."
"""Breast tomosynthesis images and breast projection images."""
MAGNIFIED: Final = 1.4
"""Radiographic magnification from which a view is a magnification view: about 1.05 on the
detector, 1.5 or more on a magnification stand (a design value)."""

IMAGE_TYPES: Final = {
    "GENERATED_2D": "synthetic view",
    "TOMO_2D": "synthetic view",
    "TOMO_PROJ": "tomosynthesis",
    "TOMOSYNTHESIS": "tomosynthesis",
    "LOW_ENERGY": "contrast-enhanced view",
    "HIGH_ENERGY": "contrast-enhanced view",
    "RECOMBINED": "contrast-enhanced view",
    "SUBTRACTION": "contrast-enhanced view",
    "ADDITION": "contrast-enhanced view",
    "PRE_CONTRAST": "contrast-enhanced view",
    "POST_CONTRAST": "contrast-enhanced view",
}
"""Values 3 and more of ImageType (PS3.3 C.8.11.7.1.4, tables C.8-74b to e), and what some makes
write in their place. The first that stands here counts: a synthetic view calls itself
tomosynthesis, too. Value 1, DERIVED, is said of every processed image and means nothing."""
BIOPSY: Final = ("STEREO_", "TOMO_SCOUT", "PREFIRE", "POSTFIRE", "POSTBIOPSY", "POSTMARKER")
"""How value 3 starts in images that guide a needle (tables C.8-74a and C.8.21.6-1a)."""

DESCRIPTIONS: Final = (
    "SeriesDescription",
    "ProtocolName",
    "AcquisitionDeviceProcessingDescription",
)
_TOKEN: Final = re.compile(r"[A-Z0-9]+")
_SIDE_AND_VIEW: Final = re.compile(r"([LR]?)(CC|MLO|ML|LM|LMO|XCC[LM]?|SIO)(ID)?")
"""LCC, RMLO, MLO, and as some makes write it RCCID for an implant displaced."""
_SIDES: Final[dict[str, Side]] = {"L": "L", "LEFT": "L", "R": "R", "RIGHT": "R"}
_SPECIAL_WORDS: Final = {
    "SPOT": "spot view",
    "MAG": "magnification view",
    "MAGNIFICATION": "magnification view",
}


def check_kind(dataset: Dataset) -> None:
    """Set aside what is no full view of one breast in one exposure.

    Raises:
        ImageError: tomosynthesis or a view made of it, a contrast-enhanced or biopsy view,
            several frames, an implant, a spot, magnification or partial view (all set aside).
    """
    kind = _kind(dataset)
    if kind is not None:
        raise aside(f"expected a full view, got another kind: {kind}", kind)


def _kind(dataset: Dataset) -> str | None:
    if str(dataset.get("SOPClassUID", "")).startswith(TOMOSYNTHESIS):
        return "tomosynthesis"
    if kind := _by_image_type(dataset):
        return kind
    if str(dataset.get("NumberOfFrames", "") or 1).strip() != "1":
        return "several frames"
    for modifier in _modifiers(dataset):
        if modifier not in FULL_VIEW_CODES:
            return SPECIAL_VIEW_CODES.get(modifier, "partial view")
    if dataset.get("BreastImplantPresent") == "YES":
        return "implant"
    if dataset.get("PartialView") == "YES":
        return "partial view"
    if float(dataset.get("EstimatedRadiographicMagnificationFactor", None) or 1) >= MAGNIFIED:
        return "magnification view"
    for text in (*_texts(dataset), str(dataset.get("PaddleDescription", "") or "")):
        for token in _TOKEN.findall(text.upper()):
            if token in _SPECIAL_WORDS:
                return _SPECIAL_WORDS[token]
            if (match := _SIDE_AND_VIEW.fullmatch(token)) and match[3]:
                return "implant displaced"
    return None


def _by_image_type(dataset: Dataset) -> str | None:
    values = dataset.get("ImageType", None) or []
    values = [values] if isinstance(values, str) else values
    words = [str(value).strip().upper() for value in values][2:]
    for word, kind in IMAGE_TYPES.items():
        if word in words:
            return kind
    return "biopsy view" if any(word.startswith(BIOPSY) for word in words) else None


def view_of(dataset: Dataset) -> str | None:
    """CC, MLO or another view's code; None where no place names one.

    Raises:
        ImageError: two places name different views (reason "contradictory view").
    """
    named = []
    if position := str(dataset.get("ViewPosition", "") or "").strip().upper():
        named.append(position)
    for code in dataset.get("ViewCodeSequence", None) or []:
        named.append(VIEW_CODES.get(str(code.get("CodeValue", "")), "another"))
    if len(set(named)) <= 1 and "another" not in named:
        # Descriptions know fewer views than the codes do: they count where these name one.
        named += [view for view, _ in map(_said, _texts(dataset)) if view is not None]
    if "another" in named and not {"CC", "MLO"} & set(named):
        return "another"
    return _agreed(named, "view")


def side_of(dataset: Dataset) -> Side | None:
    """L or R, None where no place names one side.

    Raises:
        ImageError: two places name different sides (reason "contradictory laterality").
    """
    named: list[Side] = []
    for item in (dataset, *_frame_anatomy(dataset)):
        for keyword in ("ImageLaterality", "Laterality", "FrameLaterality"):
            if (side := str(item.get(keyword, "") or "")) in ("L", "R"):
                named.append("L" if side == "L" else "R")
        for region in item.get("AnatomicRegionSequence", None) or []:
            modifiers = region.get("AnatomicRegionModifierSequence", None) or []
            for code in (region, *modifiers):
                if (value := str(code.get("CodeValue", ""))) in SIDE_CODES:
                    named.append(SIDE_CODES[value])
    named += [side for _, side in map(_said, _texts(dataset)) if side is not None]
    agreed = _agreed(named, "laterality")
    return None if agreed is None else "L" if agreed == "L" else "R"


def _agreed(named: list[Side] | list[str], what: str) -> str | None:
    if len(set(named)) > 1:
        raise ImageError(
            f"expected one {what} in the header, got places that contradict each other",
            reason=f"contradictory {what}",
        )
    return named[0] if named else None


def _modifiers(dataset: Dataset) -> Iterator[str]:
    for code in dataset.get("ViewCodeSequence", None) or []:
        for modifier in code.get("ViewModifierCodeSequence", None) or []:
            yield str(modifier.get("CodeValue", ""))


def _frame_anatomy(dataset: Dataset) -> Iterator[Dataset]:
    """The frame anatomy of the functional groups (PS3.3 C.7.6.16.2.8)."""
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in dataset.get(keyword, None) or []:
            yield from group.get("FrameAnatomySequence", None) or []


def _texts(dataset: Dataset) -> list[str]:
    return [str(dataset.get(keyword, "") or "") for keyword in DESCRIPTIONS]


def _said(text: str) -> tuple[str | None, Side | None]:
    """The view and the side that a description names; neither, if it names several.

    >>> _said("R-MLO"), _said("Mammo left CC"), _said("R MLO, R CC"), _said("Routine L")
    (('MLO', 'R'), ('CC', 'L'), (None, None), (None, None))
    """
    views, sides = set(), set()
    for token in _TOKEN.findall(text.upper()):
        if match := _SIDE_AND_VIEW.fullmatch(token):
            views.add(match[2])
            if match[1]:
                sides.add(_SIDES[match[1]])
        elif token in _SIDES:
            sides.add(_SIDES[token])
    if len(views) != 1 or len(sides) > 1:
        return None, None
    return views.pop(), sides.pop() if sides else None
