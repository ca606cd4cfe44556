"""What descriptions say a mammogram is, in the languages that mammography units are set up in.

English, German, French, Spanish, Italian, Dutch and Portuguese. Words count as whole words,
accents and capitals do not count, and a word that is denied ("without contrast") says nothing. The
texts are only compared: what comes out is a kind.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

PHANTOM: Final = "phantom"
SPECIMEN: Final = "specimen"
BIOPSY: Final = "biopsy view"
SYNTHETIC: Final = "synthetic view"
CONTRAST: Final = "contrast-enhanced view"
TOMOSYNTHESIS: Final = "tomosynthesis"
IMPLANT_DISPLACED: Final = "implant displaced"
IMPLANT: Final = "implant"
SPOT: Final = "spot view"
MAGNIFICATION: Final = "magnification view"
PARTIAL: Final = "partial view"

_PHRASES: Final = {
    PHANTOM: r"""
        PH?ANTOM[A-Z]*, FANTOM[A-Z]*, FANTOOM, FANTOCCIO, MANIQUI, QC, QA, FLAT ?FIELD,
        QUALITY CONTROL, QUALITATSKONTROLLE, QUALITAETSKONTROLLE, CONTROLE (DE
        )?QUALITE, CONTROL DE CALIDAD, CONTROLLO (DI )?QUALITA, KWALITEITSCONTROLE,
        [CK]ALIBRA[A-Z]*, KALIBRIER[A-Z]*""",
    SPECIMEN: r"""
        SPECIMENS?, EXCISED TISSUE, FAXITRON, [A-Z]*PRA?EPARAT[A-Z]*,
        [A-Z]*PRAPARAT[A-Z]*, [A-Z]*PREPARAAT[A-Z]*, PIECES?, CAROTTES?, PIEZAS?,
        ESPECIMEN(ES)?, ESPECIME, PECAS?, PEZZ[OI], CAMPION[EI]""",
    BIOPSY: r"""
        [A-Z]*BIO(PS|PT|PZ)[A-Z]*, E?STEREO[A-Z]*, SCOUT, (PRE|POST) ?FIRE, CLIPS?,
        CLIPMARKIERUNG, (POST|AFTER|NACH|APRES|TRAS|DOPO|NA) ?(MARKER|COIL), VABB?, CNB,
        FNAC?, MAMM?OTOM[A-Z]*, [A-Z]*PUNKTION(EN)?, [A-Z]*PUNCTIE, PONCTIONS?,
        PUNCION(ES)?, PUNCAO, [A-Z]*STANZEN?, NEEDLES?, [A-Z]*NADEL[A-Z]*, AIGUILLES?,
        AGUJAS?, AGULHA, AGOASPIRATO, AGOBIOPSIA, [A-Z]*NAALD[A-Z]*, (HOOK ?)?WIRES?,
        [A-Z]*DRAHT[A-Z]*, DRAAD[A-Z]*, HARPON[A-Z]*, ARPON[A-Z]*, ARPAO,
        [A-Z]*MARKIERUNG(EN)?, REPERAG[A-Z]*, CENTRAGGIO, LO[CK]ALI[SZ]AT[A-Z]*,
        LOKALISIERUNG[A-Z]*, LOCALIZAC[A-Z]*, LOCALIZZAZION[EI], MARCAJE, MARCACION""",
    SYNTHETIC: r"""
        C ?VIEW, S ?VIEW, V ?PREVIEW, INTELLIGENT ?2D, INSIGHT ?2D, I2D, S2D, GENERATED
        ?2D, SYNTH[A-Z0-9]*, SINTETI[A-Z]*, SINTESI 2D, 2D SINTESIS?""",
    CONTRAST: r"""
        CESM, CEM, CEDM, CE2D, TI ?CEM, SENO ?BRIGHT, I ?VIEW, (?<!HIGH )(?<!LOW
        )[CK]ONTRAST[A-Z]*, KM, ANGIO ?MAM[A-Z]*, [A-Z]*RE[CK]OMBIN[A-Z]*,
        RICOMBIN[A-Z]*, SUBTRA[CKZ][A-Z]*, SOUSTRA[A-Z]*, SUSTRACCION, SOTTRAZIONE,
        SUBTRACAO, (DUAL|DOUBLE|DOBLE|DOPPIA|DUPLA|DUBBELE|ZWEI|DUALE) ?ENERG[A-Z]*,
        (LOW|HIGH|BASSE|HAUTE|BAJA|ALTA|BASSA|BAIXA|LAGE|HOGE|NIEDRIGE?|HOHE|HOCH)
        ?ENERG[A-Z]*, (GALA[CK]T|GALATT|DU[CKT]T)OGRA[A-Z]*""",
    TOMOSYNTHESIS: r"[A-Z]*TOMO[A-Z]*, DBT",
    IMPLANT_DISPLACED: r"""
        IMPLANT DISPLACED, DISPLACED IMPLANT, EKLUND, IMPLANTAT VERSCHOBEN, PROTHESE
        REFOULEE, (PROTESIS|IMPLANTE) DESPLAZAD[AO], PROTESI DISLOCATA""",
    IMPLANT: r"IMPLANT[A-Z]*, IMPIANT[OI], [A-Z]*PROTH?ES(E|ES|EN|I|IS)",
    SPOT: r"""
        SPOT[A-Z]*, CONED?, ZIELAUFNAHMEN?, ZIELKOMPRESSION, (COMPRESSION|CLICHE)
        (LOCALISEE?|CENTREE?|CIBLEE?), COMPRES(ION|SAO) (FOCAL|FOCALIZADA|LOCALIZADA),
        FOCALIZADAS?, COMPRESSIONE (MIRATA|LOCALIZZATA), PARTICOLARE, DETAILOPNAMEN?""",
    MAGNIFICATION: r"""
        MAG\d*X?, MAGN, MAGNIF[A-Z]*, ZOOM, VERGRO(E?SS|S)ER[A-Z]*, LUPENAUFNAHMEN?,
        AGRANDI[A-Z]*, AMPLIACI[A-Z]*, AMPLIAD[AO]S?, AMPLIACAO, INGRANDI[A-Z]*,
        [A-Z]*VERGROT[A-Z]*""",
    PARTIAL: r"""
        PARTIAL VIEW, ROLLED, GEROLLT, TANGEN[TZ][A-Z]*, CLEOPATRA, CLEAVAGE, AXILLARY
        TAIL, AXILLA, PROLONGEMENT AXILLAIRE, AXILA, COLA AXILAR, CAVO ASCELLARE,
        ASCELLA, OKSEL[A-Z]*, ACHSEL[A-Z]*""",
}
"""Kinds in the order in which the first one counts: a synthetic view calls itself tomosynthesis."""
_KINDS: Final = {
    kind: re.compile(
        rf"(?<![A-Z0-9])(?:{'|'.join(' '.join(p.split()) for p in listed.split(','))})(?![A-Z0-9])"
    )
    for kind, listed in _PHRASES.items()
}
_DENIED: Final = re.compile(
    r"(^| )(WITHOUT|W O|NO|NON|NOT|OHNE|KEINE?|SANS|PAS DE|SIN|SENZA|ZONDER|GEEN|SEM) $"
)
"""Before a word: it is not so."""
_BOTH: Final = re.compile(r"(^| )COMBO")
"""A series of a tomosynthesis and a plain view: its description says nothing of one picture."""
_LIGATURES: Final = str.maketrans({"Æ": "AE", "Œ": "OE", "Ø": "O"})


def tokens(text: str) -> list[str]:
    """The words of ``text`` in capitals without accents.

    >>> tokens("Vergrößerung, pièce-opératoire_2")
    ['VERGROSSERUNG', 'PIECE', 'OPERATOIRE', '2']
    """
    plain = unicodedata.normalize("NFKD", text.upper().translate(_LIGATURES))
    return re.findall(r"[A-Z0-9]+", "".join(c for c in plain if not unicodedata.combining(c)))


def kind_of(texts: Iterable[str]) -> str | None:
    """The kind of special picture that one of ``texts`` names, or None.

    >>> kind_of(["L CC"]), kind_of(["L CC C-View"]), kind_of(["Präparateradiographie"])
    (None, 'synthetic view', 'specimen')
    >>> kind_of(["CC sin contraste"]), kind_of(["CC con contraste"])
    (None, 'contrast-enhanced view')
    """
    said = [" ".join(tokens(text)) for text in texts]
    for kind, pattern in _KINDS.items():
        for text in said:
            if kind == TOMOSYNTHESIS and _BOTH.search(text):
                continue
            if any(not _DENIED.search(text[: m.start()]) for m in pattern.finditer(text)):
                return kind
    return None
