"""What a mammogram's header says of view and side, from every place where it may stand.

    view   ViewPosition, ViewCodeSequence, and words such as RMLO in the descriptions
    side   ImageLaterality, Laterality, FrameLaterality, AnatomicRegionSequence (with its
           modifier), and the same words

Two places that contradict each other are refused: nobody can tell which is right. Words count
only as whole tokens, and only if all of a text's tokens agree; a series called "R CC, R MLO" says
nothing about one image of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Final, Literal

from pydicom.dataset import Dataset

from her2_client.ingest import dicom
from her2_client.ingest.planar import words
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
COARSEST_DETECTOR_MM: Final = 0.25
"""Detector elements of mammography are .05 to .1 mm, of imaging plates up to .2 mm; what converts
files puts 1 where it knows nothing."""
FULL_VIEW_MM: Final = 100.0
"""The longer side of the smallest full view: detectors of biopsy units have 50 mm, of mammography
180 mm and more, part of which may have been cut off (a design value)."""
SPECIMEN_VIEWS: Final = {"127457009", "G-8310"}
"""Tissue specimen from breast (CID 4014), SNOMED CT and SNOMED RT."""

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
BIOPSY: Final = ("STEREO", "TOMO_SCOUT", "PREFIRE", "POSTFIRE", "POSTBIOPSY", "POSTMARKER")
"""How value 3 starts in images that guide a needle (tables C.8-74a and C.8.21.6-1a)."""

DESCRIPTIONS: Final = (
    "SeriesDescription",
    "ProtocolName",
    "AcquisitionDeviceProcessingDescription",
)
"""What may name a view and a side."""
MORE_DESCRIPTIONS: Final = (
    "AcquisitionProtocolName",
    "AcquisitionProtocolDescription",
    "PaddleDescription",
    "ViewPosition",
    "BodyPartExamined",
)
"""What may name a special view, too, as may the meanings of codes."""
CODED: Final = (
    "ViewCodeSequence",
    "ViewModifierCodeSequence",
    "AnatomicRegionSequence",
    "AcquisitionContextSequence",
    "ConceptCodeSequence",
    "PerformedProtocolCodeSequence",
)
_SIDE_AND_VIEW: Final = re.compile(r"([LR]?)(M|S)?(CC|MLO|ML|LM|LMO|XCC[LM]?|SIO)(ID|R[LMIS])?")
"""LCC, RMLO, MLO, and with what the labels of the ACR add: RMCC, LSMLO, RCCID, LCCRL."""
_ADDED: Final = {
    "M": words.MAGNIFICATION,
    "S": words.SPOT,
    "ID": words.IMPLANT_DISPLACED,
    **dict.fromkeys(("RL", "RM", "RI", "RS"), words.PARTIAL),
}
"""Magnified, spot, implant displaced, rolled (laterally, medially, inferiorly, superiorly)."""
_SIDES: Final[dict[str, Side]] = {
    **dict.fromkeys(("L", "LEFT", "LINKS", "GAUCHE", "IZQUIERDA", "SINISTRA", "ESQUERDA"), "L"),
    **dict.fromkeys(
        ("R", "RIGHT", "RECHTS", "DROITE", "DROIT", "DERECHA", "DESTRA", "DIREITA"), "R"
    ),
}


def check_kind(dataset: Dataset) -> None:
    """Set aside what is no full view of one breast in one exposure.

    Raises:
        ImageError: tomosynthesis or a view made of it, a contrast-enhanced or biopsy view, a
            specimen, a phantom, several frames, an implant, a spot, magnification or partial view
            (all set aside).
    """
    kind = _by_tags(dataset) or _by_words(dataset)
    if kind is not None:
        raise aside(f"expected a full view, got another kind: {kind}", kind)


def _by_tags(dataset: Dataset) -> str | None:
    if str(dataset.get("SOPClassUID", "")).startswith(TOMOSYNTHESIS):
        return words.TOMOSYNTHESIS
    if dicom.said(dataset, "QualityControlImage").upper() == "YES":
        return words.PHANTOM
    codes = {str(code.get("CodeValue", "")) for code in dataset.get("ViewCodeSequence", None) or []}
    if dataset.get("SpecimenDescriptionSequence", None) or codes & SPECIMEN_VIEWS:
        return words.SPECIMEN
    if kind := _by_image_type(dataset):
        return kind
    agents = dataset.get("ContrastBolusAgentSequence", None)
    if agents or dicom.said(dataset, "ContrastBolusAgent"):
        return words.CONTRAST
    if (dicom.said(dataset, "NumberOfFrames") or "1") != "1":
        return "several frames"
    for modifier in _modifiers(dataset):
        if modifier not in FULL_VIEW_CODES:
            return SPECIAL_VIEW_CODES.get(modifier, words.PARTIAL)
    if dicom.said(dataset, "BreastImplantPresent").upper() == "YES":
        return words.IMPLANT
    if dicom.said(dataset, "PartialView").upper() == "YES":
        return words.PARTIAL
    if dataset.get("PartialViewCodeSequence", None):
        return words.PARTIAL
    if _magnification(dataset) >= MAGNIFIED:
        return words.MAGNIFICATION
    return words.PARTIAL if _longer_side(dataset) < FULL_VIEW_MM else None


def _magnification(dataset: Dataset) -> float:
    """As stated, or by the distances from the source to the detector and to the breast."""
    if stated := dicom.said(dataset, "EstimatedRadiographicMagnificationFactor"):
        return float(stated)
    detector = float(dicom.said(dataset, "DistanceSourceToDetector") or 0)
    breast = float(dicom.said(dataset, "DistanceSourceToPatient") or 0)
    return detector / breast if detector > 0 and breast > 0 else 1.0


def _longer_side(dataset: Dataset) -> float:
    """In mm on the detector, infinite if ImagerPixelSpacing is missing or no detector's (1, 1)."""
    spacing = [float(mm) for mm in dataset.get("ImagerPixelSpacing", None) or []]
    if len(spacing) != 2 or not all(0 < mm <= COARSEST_DETECTOR_MM for mm in spacing):
        return math.inf
    return max(int(dataset.Rows) * spacing[0], int(dataset.Columns) * spacing[1])


def _by_words(dataset: Dataset) -> str | None:
    more = (dicom.said(dataset, keyword) for keyword in MORE_DESCRIPTIONS)
    texts = [*_texts(dataset), *more, *_meanings(dataset)]
    if (kind := words.kind_of([*texts, " ".join(_image_type(dataset))])) is not None:
        return kind
    for token in (token for text in texts for token in words.tokens(text)):
        if (match := _SIDE_AND_VIEW.fullmatch(token)) and (match[2] or match[4]):
            return _ADDED[match[4] or match[2]]
    return None


def _meanings(dataset: Dataset) -> Iterator[str]:
    """The meanings of the codes that say what the picture shows, at every depth."""
    for keyword in CODED:
        for item in dataset.get(keyword, None) or []:
            yield str(item.get("CodeMeaning", "") or "")
            yield str(item.get("TextValue", "") or "")
            yield from _meanings(item)


def _image_type(dataset: Dataset) -> list[str]:
    """Values 3 and more of ImageType."""
    values = dataset.get("ImageType", None) or []
    values = [values] if isinstance(values, str) else values
    return [str(value).strip().upper() for value in values][2:]


def _by_image_type(dataset: Dataset) -> str | None:
    named = _image_type(dataset)
    for word, kind in IMAGE_TYPES.items():
        if word in named:
            return kind
    return words.BIOPSY if any(word.startswith(BIOPSY) for word in named) else None


def view_of(dataset: Dataset) -> str | None:
    """CC, MLO or another view's code; None where no place names one.

    Raises:
        ImageError: two places name different views (reason "contradictory view").
    """
    named = []
    if position := dicom.said(dataset, "ViewPosition").upper():
        named.append(_said(position)[0] or position)
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
            if (side := dicom.said(item, keyword).upper()) in _SIDES:
                named.append(_SIDES[side])
        for region in item.get("AnatomicRegionSequence", None) or []:
            modifiers = region.get("AnatomicRegionModifierSequence", None) or []
            for code in (region, *modifiers):
                if (value := str(code.get("CodeValue", ""))) in SIDE_CODES:
                    named.append(SIDE_CODES[value])
    texts = [dicom.said(dataset, "ViewPosition"), *_texts(dataset)]
    named += [side for _, side in map(_said, texts) if side is not None]
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
    return [dicom.said(dataset, keyword) for keyword in DESCRIPTIONS]


def other_words(text: str) -> set[str]:
    """The words of a description that name neither a side nor a view.

    >>> sorted(other_words("R CC, RMLO Screening 2"))
    ['2', 'SCREENING']
    """
    said = words.tokens(text)
    return {word for word in said if word not in _SIDES and not _SIDE_AND_VIEW.fullmatch(word)}


def _said(text: str) -> tuple[str | None, Side | None]:
    """The view and the side that a description names; neither, if it names several.

    >>> _said("R-MLO"), _said("Mammo left CC"), _said("R MLO, R CC"), _said("Routine L")
    (('MLO', 'R'), ('CC', 'L'), (None, None), (None, None))
    """
    views, sides = set(), set()
    for token in words.tokens(text):
        if match := _SIDE_AND_VIEW.fullmatch(token):
            views.add(match[3])
            if match[1]:
                sides.add(_SIDES[match[1]])
        elif token in _SIDES:
            sides.add(_SIDES[token])
    if len(views) != 1 or len(sides) > 1:
        return None, None
    return views.pop(), sides.pop() if sides else None
