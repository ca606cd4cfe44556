"""View and side from every place in a mammogram's header where they may stand."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.sr._snomed_dict import mapping
from pydicom.sr.codedict import codes

from her2_client.ingest.planar import views
from her2_client.ingest.planar.views import check_kind, side_of, view_of
from her2_common.errors import ImageError


def items(*tags: dict[str, Any]) -> Sequence:
    return Sequence([header(**item) for item in tags])


def header(**tags: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    return dataset


def code(value: str, **more: Any) -> Sequence:
    return items({"CodeValue": value} | more)


SHARED_LEFT = items({"FrameAnatomySequence": items({"FrameLaterality": "L"})})
SHARED_REGION = items({"FrameAnatomySequence": items({"AnatomicRegionSequence": code("73056007")})})
LEFT_MODIFIER = code("T-04000", AnatomicRegionModifierSequence=code("7771000"))


@pytest.mark.parametrize(
    ("tags", "view", "side"),
    [
        ({}, None, None),
        ({"ViewPosition": "CC"}, "CC", None),
        ({"ViewPosition": "MLO "}, "MLO", None),
        ({"ViewPosition": "ML"}, "ML", None),
        ({"ViewCodeSequence": code("399162004")}, "CC", None),
        ({"ViewCodeSequence": code("R-10226")}, "MLO", None),
        ({"ViewCodeSequence": code("R-10224")}, "another", None),
        ({"ViewPosition": "CC", "ViewCodeSequence": code("R-10242")}, "CC", None),
        ({"ImageLaterality": "L"}, None, "L"),
        ({"Laterality": "R"}, None, "R"),
        ({"ImageLaterality": "R", "Laterality": "R"}, None, "R"),
        ({"ImageLaterality": "U"}, None, None),
        ({"ViewPosition": "NONE", "SeriesDescription": "L CC"}, "CC", "L"),
        ({"ViewPosition": "UNKNOWN", "ViewCodeSequence": code("R-10226")}, "MLO", None),
        ({"ViewPosition": "LCC"}, "CC", "L"),
        ({"ImageLaterality": "", "Laterality": "LEFT"}, None, "L"),
        ({"ImageLaterality": "U", "Laterality": "R"}, None, "R"),
        ({"SeriesDescription": "links CC"}, "CC", "L"),
        ({"ImageLaterality": "B"}, None, None),
        ({"SharedFunctionalGroupsSequence": SHARED_LEFT}, None, "L"),
        ({"PerFrameFunctionalGroupsSequence": SHARED_LEFT}, None, "L"),
        ({"SharedFunctionalGroupsSequence": SHARED_REGION}, None, "R"),
        ({"AnatomicRegionSequence": code("80248007")}, None, "L"),
        ({"AnatomicRegionSequence": code("T-04020")}, None, "R"),
        ({"AnatomicRegionSequence": LEFT_MODIFIER}, None, "L"),
        ({"AnatomicRegionSequence": code("76752008")}, None, None),
        ({"SeriesDescription": "L CC"}, "CC", "L"),
        ({"SeriesDescription": "RMLO"}, "MLO", "R"),
        ({"ProtocolName": "R-MLO"}, "MLO", "R"),
        ({"AcquisitionDeviceProcessingDescription": "left_cc"}, "CC", "L"),
        ({"SeriesDescription": "Routine CC"}, "CC", None),
        ({"SeriesDescription": "LXCCL"}, "XCCL", "L"),
        ({"SeriesDescription": "LM"}, "LM", None),
        # words that only look like it, and texts about several images
        ({"SeriesDescription": "ACCESS L"}, None, None),
        ({"SeriesDescription": "ROUTINE L"}, None, None),
        ({"SeriesDescription": "R CC, L CC"}, None, None),
        ({"SeriesDescription": "R CC, R MLO"}, None, None),
        # places that agree
        ({"ViewPosition": "MLO", "ImageLaterality": "R", "SeriesDescription": "R MLO"}, "MLO", "R"),
    ],
)
def test_view_and_side_are_found_wherever_they_stand(
    tags: dict[str, Any], view: str | None, side: str | None
) -> None:
    assert (view_of(header(**tags)), side_of(header(**tags))) == (view, side)


@pytest.mark.parametrize(
    ("tags", "what"),
    [
        ({"ViewPosition": "CC", "ViewCodeSequence": code("R-10226")}, "view"),
        ({"ViewPosition": "CC", "ViewCodeSequence": code("R-10224")}, "view"),
        ({"ViewPosition": "CC", "SeriesDescription": "L MLO"}, "view"),
        ({"ViewCodeSequence": code("R-10226"), "ProtocolName": "LCC"}, "view"),
        ({"SeriesDescription": "LCC", "ProtocolName": "L MLO"}, "view"),
        ({"ImageLaterality": "L", "Laterality": "R"}, "laterality"),
        ({"ImageLaterality": "R", "SharedFunctionalGroupsSequence": SHARED_LEFT}, "laterality"),
        ({"ImageLaterality": "R", "AnatomicRegionSequence": LEFT_MODIFIER}, "laterality"),
        ({"Laterality": "R", "SeriesDescription": "L CC"}, "laterality"),
    ],
)
def test_places_that_contradict_each_other_are_refused(tags: dict[str, Any], what: str) -> None:
    with pytest.raises(ImageError, match=f"expected one {what} in the header") as caught:
        (view_of if what == "view" else side_of)(header(**tags))
    assert caught.value.reason == f"contradictory {what}"
    assert caught.value.disposition == "refused"


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"NumberOfFrames": 1, "BreastImplantPresent": "NO", "PartialView": "NO"},
        {"EstimatedRadiographicMagnificationFactor": "1.07"},
        {"EstimatedRadiographicMagnificationFactor": ""},
        {"ImageType": ["DERIVED", "PRIMARY"]},
        {"ImageType": ["DERIVED", "PRIMARY", "", "", "", "", "", "150000"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", ""]},
        {"ImageType": "DERIVED"},
        {"ImageType": None},
        {"SeriesDescription": "L MLO", "PaddleDescription": "18x24CM"},
        {"ViewCodeSequence": code("R-10242", ViewModifierCodeSequence=code("442581004"))},
    ],
)
def test_a_full_view_is_no_special_one(tags: dict[str, Any]) -> None:
    check_kind(header(**tags))


@pytest.mark.parametrize(
    ("tags", "kind"),
    [
        ({"NumberOfFrames": "60"}, "several frames"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.13.1.3"}, "tomosynthesis"),
        ({"SeriesDescription": "L CC SPOT"}, "spot view"),
        ({"ProtocolName": "RMLO MAG"}, "magnification view"),
        ({"SeriesDescription": "RMLOID"}, "implant displaced"),
        (
            {"ImageType": ["DERIVED", "PRIMARY", "TOMOSYNTHESIS", "GENERATED_2D", "", "150000"]},
            "synthetic view",
        ),
        ({"ImageType": ["DERIVED", "PRIMARY", "TOMO_2D"]}, "synthetic view"),
        ({"ImageType": ["DERIVED", "PRIMARY", "", "GENERATED_2D"]}, "synthetic view"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "TOMO_PROJ"]}, "tomosynthesis"),
        ({"ImageType": ["DERIVED", "PRIMARY", "TOMOSYNTHESIS"]}, "tomosynthesis"),
        (
            {"ImageType": ["DERIVED", "PRIMARY", "POST_CONTRAST", "SUBTRACTION"]},
            "contrast-enhanced view",
        ),
        (
            {"ImageType": ["ORIGINAL", "PRIMARY", "POST_CONTRAST", "", "LOW_ENERGY"]},
            "contrast-enhanced view",
        ),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "", "", "HIGH_ENERGY"]}, "contrast-enhanced view"),
        ({"ImageType": ["DERIVED", "PRIMARY", "RECOMBINED"]}, "contrast-enhanced view"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "STEREO_SCOUT"]}, "biopsy view"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "PREFIRE_MINUS"]}, "biopsy view"),
    ],
)
def test_special_views_are_set_aside(tags: dict[str, Any], kind: str) -> None:
    with pytest.raises(ImageError, match="expected a full view") as caught:
        check_kind(header(**tags))
    assert (caught.value.disposition, caught.value.reason) == ("set aside", kind)


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (
            "synthetic view",
            "L CC C-View; RMLO S-View; V-Preview; Insight 2D; Intelligent 2D; synthesized 2D; "
            "synthetische Aufnahme; image synthétique; 2D sintética; vista sintetizada; "
            "2D sintetica; "
            "synthetisch beeld",
        ),
        (
            "contrast-enhanced view",
            "CESM; CEM recombined; dual energy; mit Kontrastmittel; L CC KM; Niedrigenergie; "
            "avec contraste; basse énergie; angiomammographie; con contraste; baja energía; "
            "doppia energia; con contrasto; met contrastmiddel; lage energie; Galaktographie",
        ),
        (
            "specimen",
            "Specimen; Präparat; Praeparatradiographie; PRÄPARATE; pièce opératoire; "
            "pieza quirúrgica; espécimen; pezzo operatorio; campione; preparaat; preparaatfoto",
        ),
        (
            "biopsy view",
            "Biopsy; post-biopsy; stereo -15; Stereotactic; needle localization; wire; Biopsie; "
            "Vakuumbiopsie; Stereotaxie; Drahtmarkierung; Markierung; nach Clip; biopsie mammaire; "
            "stéréotaxie; harpon; repérage; biopsia; estereotaxia; arpón; aguja; "
            "biopsia stereotassica; "
            "localizzazione; biopt; stereotactische biopsie; draadlokalisatie; prefire",
        ),
        ("tomosynthesis", "Tomo; tomosynthèse; Tomosynthese; tomosíntesis; tomosintesi; DBT"),
        ("magnification view", "MAG; MAG1.8x; Vergrößerung; Vergroesserung; agrandissement; "
         "ampliación; ingrandimento; vergroting; L M CC RMCC"),
        ("spot view", "spot; Zielaufnahme; compression localisée; compresión focalizada; "
         "compressione mirata; detailopname; RSMLO"),
        ("implant", "implant; Implantat; prothèse; prótesis; protesi; borstprothese; implantaat"),
        ("implant displaced", "Eklund; implant displaced; RMLOID"),
        ("partial view", "rolled; LCCRL; tangential; Achsel; axilla; cavo ascellare; oksel"),
        ("phantom", "Phantom; Fantôme; fantoma; fantoom; QC; flat field"),
    ],
)  # fmt: skip
def test_kinds_are_recognised_in_the_languages_of_the_makes(kind: str, texts: str) -> None:
    for text in texts.split("; "):
        for keyword in ("SeriesDescription", "ProtocolName"):
            with pytest.raises(ImageError) as caught:
                check_kind(header(**{keyword: text}))
            assert (text, caught.value.reason) == (text, kind)
            assert caught.value.disposition == "set aside"


@pytest.mark.parametrize(
    "text",
    [
        "L CC", "R MLO Screening", "Mammographie beidseits", "Mamma links cc", "Routine MLO droite",
        "mamografía bilateral", "mammografia sintomatica", "mammografie rechts",
        "CC without contrast",
        "ohne KM", "sans contraste", "sin contraste", "senza contrasto", "zonder contrast",
        "high contrast", "Combo tomo 2D", "no implant", "Magnolia", "Prospect", "Wirefree", "Spo t",
        "Kinder", "medio-lateral oblique", "18x24 Hologic",
    ],
)  # fmt: skip
def test_words_of_plain_views_name_no_kind(text: str) -> None:
    check_kind(header(SeriesDescription=text, ProtocolName=text))


def test_meanings_of_codes_name_a_kind() -> None:
    context = items({"ConceptCodeSequence": items({"CodeMeaning": "Stereotactic biopsy"})})
    for tags in (
        {"ViewCodeSequence": code("X", CodeMeaning="specimen")},
        {"ViewCodeSequence": code("R-10242", ViewModifierCodeSequence=items(
            {"CodeValue": "442581004", "CodeMeaning": "Vergrößerung"}))},
        {"AcquisitionContextSequence": context},
    ):  # fmt: skip
        with pytest.raises(ImageError):
            check_kind(header(**tags))


def test_the_codes_are_those_of_the_standard() -> None:
    """Against the context groups that pydicom generates from PS3.16."""
    old = mapping["SCT"]

    def both(concept: Any) -> set[str]:
        return {concept.value, old[concept.value]}

    projections, modifiers = codes.cid4014, codes.cid4015
    cc, mlo = projections.CranioCaudal, projections.MedioLateralObliqueProjection
    assert {c for c, view in views.VIEW_CODES.items() if view == "CC"} == both(cc)
    assert {c for c, view in views.VIEW_CODES.items() if view == "MLO"} == both(mlo)
    for concept, kind in (
        (modifiers.ImplantDisplaced, "implant displaced"),
        (modifiers.Magnification, "magnification view"),
        (modifiers.SpotCompression, "spot view"),
    ):
        assert {c for c, k in views.SPECIAL_VIEW_CODES.items() if k == kind} == both(concept)
    assert both(modifiers.NippleInProfile) == views.FULL_VIEW_CODES
    for side, concepts in (
        ("L", (codes.SCT.LeftBreast, codes.SCT.Left)),
        ("R", (codes.SCT.RightBreast, codes.SCT.Right)),
    ):
        expected = both(concepts[0]) | both(concepts[1])
        assert {c for c, s in views.SIDE_CODES.items() if s == side} == expected
