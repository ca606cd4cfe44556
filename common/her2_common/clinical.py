"""HER2 from IHC and ISH, HR status, response from ypT and ypN: the only place of these rules.

Sources: ASCO/CAP HER2 testing guideline, 2018 focused update, affirmed 2023; ASCO/CAP hormone
receptor guideline 2020 (1 % of nuclei and more is positive); AJCC 8th edition for ypT and ypN.

The second part reads the codes as pathologists write them ("2+", "equivocal", "ypT1mi",
"ypN0(i+)"): a table of spellings a code. A spelling that can mean two codes is in none of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal, TypeVar, get_args

Ihc = Literal["0", "ultralow", "1", "2", "3"]
"""IHC score; ``ultralow`` is IHC 0 with faint staining in at most 10 % of the tumour cells."""
IHC_SCORES: Final[tuple[Ihc, ...]] = get_args(Ihc)

Her2Level = Literal["zero", "low", "positive"]
HER2_LEVELS: Final[tuple[Her2Level, ...]] = get_args(Her2Level)

YpT = Literal["0", "is", "1mi", "1", "2", "3", "4", "X"]
YpN = Literal["0", "0(i+)", "0(mol+)", "1mi", "1", "2", "3", "X"]
"""``0(i+)``: isolated tumour cells; ``0(mol+)``: found by RT-PCR alone, seen by no microscope."""

PcrDefinition = Literal["ypT0/is ypN0", "ypT0 ypN0"]
"""``ypT0 ypN0`` is the strict one: no disease in situ either."""
PCR_DEFINITIONS: Final[dict[PcrDefinition, str]] = {
    "ypT0/is ypN0": "pCR = ypT0/is ypN0 (in situ disease allowed, nodes negative)",
    "ypT0 ypN0": "pCR = ypT0 ypN0 (strict: no in situ disease, nodes negative)",
}
"""The definitions in words, printed wherever pCR is."""
DEFAULT_PCR: Final[PcrDefinition] = "ypT0/is ypN0"
PCR_DEFINITION: Final = PCR_DEFINITIONS[DEFAULT_PCR]

_RESIDUAL_T: Final = frozenset({"1mi", "1", "2", "3", "4"})
_CLEAR_T: Final[dict[PcrDefinition, frozenset[str]]] = {
    "ypT0/is ypN0": frozenset({"0", "is"}),
    "ypT0 ypN0": frozenset({"0"}),
}
_RESIDUAL_N: Final = frozenset({"0(i+)", "1mi", "1", "2", "3"})
_CLEAR_N: Final = frozenset({"0", "0(mol+)"})


def her2_from_ihc_ish(ihc: Ihc | None, ish: int | None) -> int | None:
    """HER2 status (1 positive, 0 negative, None unknown) from the IHC score and ISH.

    IHC 3+ is positive whatever the ISH. An amplified ISH (1: group 1 of dual-probe ISH, a ratio
    of 2.0 or more with 4.0 or more copies a cell) is positive whatever the IHC. Otherwise IHC 0,
    ultralow and 1+ are negative, and 2+ is equivocal: negative with ISH 0, unknown without ISH.
    Without IHC the ISH decides. Source: ASCO/CAP 2018, affirmed 2023.

    >>> her2_from_ihc_ish("3", None), her2_from_ihc_ish("1", 1), her2_from_ihc_ish("2", None)
    (1, 1, None)
    """
    if ihc == "3" or ish == 1:
        return 1
    if ihc is None or ihc == "2":
        return ish
    return 0


def her2_level(ihc: Ihc | None, ish: int | None) -> Her2Level | None:
    """The three-level outcome: zero (IHC 0), low (1+ or 2+/ISH-), positive; None unknown.

    HER2-ultralow is a part of IHC 0 and so of ``zero``; it is counted apart by its IHC.

    >>> her2_level("0", None), her2_level("1", None), her2_level("2", 0), her2_level("3", None)
    ('zero', 'low', 'low', 'positive')
    """
    status = her2_from_ihc_ish(ihc, ish)
    if status == 1:
        return "positive"
    if status is None or ihc is None:
        return None
    return "zero" if ihc in ("0", "ultralow") else "low"


def hr_status(er: int | None, pr: int | None) -> int | None:
    """Hormone receptor status: 1 if one is positive, 0 if both are negative, else None.

    >>> hr_status(0, 1), hr_status(0, 0), hr_status(None, 0)
    (1, 0, None)
    """
    if er == 1 or pr == 1:
        return 1
    return 0 if er == pr == 0 else None


def pcr_from_stage(
    ypt: str | None, ypn: str | None, definition: PcrDefinition = DEFAULT_PCR
) -> int | None:
    """pCR (1 yes, 0 no, None unknown) from ypT and ypN.

    Residual invasive disease in the breast or tumour in the nodes (``0(i+)``, isolated tumour
    cells, included: AJCC 8th edition) decides for no, even if the other is unknown; so does, by
    the strict definition, disease in situ. A yes needs both. ``X`` is unknown. ``0(mol+)`` counts
    as ypN0: pCR is assessed on stained sections, and no cell was seen on them.

    >>> pcr_from_stage("is", "0"), pcr_from_stage("is", "0", "ypT0 ypN0")
    (1, 0)
    >>> pcr_from_stage("0", "X"), pcr_from_stage("0", "0(i+)"), pcr_from_stage("2", None)
    (None, 0, 0)
    """
    clear = _CLEAR_T[definition]
    if ypn in _RESIDUAL_N or ypt in _RESIDUAL_T or (ypt == "is" and ypt not in clear):
        return 0
    return 1 if ypt in clear and ypn in _CLEAR_N else None


def response(
    ypt: str | None, ypn: str | None, stated: int | None, definition: PcrDefinition = DEFAULT_PCR
) -> int | None:
    """pCR from the stages; where they leave it open, from a stated pCR by the default definition.

    No pCR by the default definition is none by the strict one. A pCR is one by the strict
    definition only where ypT is known to be 0, for it may leave disease in situ.

    >>> response(None, None, 1), response(None, None, 1, "ypT0 ypN0")
    (1, None)
    """
    derived = pcr_from_stage(ypt, ypn, definition)
    if derived is not None or stated is None:
        return derived
    if stated == 0 or definition == DEFAULT_PCR or ypt == "0":
        return stated
    return None


# --- codes as they are written -------------------------------------------------------------------

T = TypeVar("T")

_NEGATIVE: Final = ("0", "negative", "neg", "-")
_POSITIVE: Final = ("1", "positive", "pos", "+")
STATUS_CODES: Final[dict[str, int]] = dict.fromkeys(_NEGATIVE, 0) | dict.fromkeys(_POSITIVE, 1)
"""A receptor, or HER2, as a result."""
ISH_CODES: Final[dict[str, int]] = (
    STATUS_CODES
    | dict.fromkeys(("notamplified", "nonamplified", "non-amplified", "unamplified"), 0)
    | {"amplified": 1}
)
IHC_CODES: Final[dict[str, Ihc]] = {
    **dict.fromkeys(("0", "null"), "0"),
    **dict.fromkeys(("ultralow", "ultra-low"), "ultralow"),
    **dict.fromkeys(("1", "1+"), "1"),
    **dict.fromkeys(("2", "2+", "equivocal"), "2"),
    **dict.fromkeys(("3", "3+", "positive", "pos"), "3"),
}
"""Not "negative", which 0, ultralow and 1+ are, and not "0+", which is written for 0 and for
ultralow. "positive" is 3+ by the guideline."""
YPT_CODES: Final[dict[str, YpT]] = {
    "0": "0",
    **dict.fromkeys(("is", "is(dcis)", "is(paget)"), "is"),
    **dict.fromkeys(("1mi", "1mic"), "1mi"),
    **dict.fromkeys(("1", "1a", "1b", "1c"), "1"),
    "2": "2",
    "3": "3",
    **dict.fromkeys(("4", "4a", "4b", "4c", "4d"), "4"),
    "x": "X",
}
YPN_CODES: Final[dict[str, YpN]] = {
    **dict.fromkeys(("0", "0(i-)", "0(mol-)"), "0"),
    **dict.fromkeys(("0(i+)", "0i+"), "0(i+)"),
    **dict.fromkeys(("0(mol+)", "0mol+"), "0(mol+)"),
    **dict.fromkeys(("1mi", "1mic"), "1mi"),
    **dict.fromkeys(("1", "1a", "1b", "1c"), "1"),
    **dict.fromkeys(("2", "2a", "2b"), "2"),
    **dict.fromkeys(("3", "3a", "3b", "3c"), "3"),
    "x": "X",
}
CLINICAL_T_CODES: Final[dict[str, int | None]] = {
    **{str(stage): stage for stage in range(5)},
    **dict.fromkeys(("1mi", "1a", "1b", "1c"), 1),
    **dict.fromkeys(("4a", "4b", "4c", "4d"), 4),
    "x": None,
}
CLINICAL_N_CODES: Final[dict[str, int | None]] = {
    **{str(stage): stage for stage in range(4)},
    **dict.fromkeys(("1mi", "1a", "1b", "1c"), 1),
    **dict.fromkeys(("2a", "2b"), 2),
    **dict.fromkeys(("3a", "3b", "3c"), 3),
    "x": None,
}

_SUFFIX: Final = re.compile(r"\((m|sn|f)\)$")
"""Of several foci, a sentinel node, a node known by its needle sample: they change no category."""
_PERCENT: Final = re.compile(r"(<|>|>=|≥)?(\d{1,3}(?:\.\d+)?)%")
POSITIVE_PERCENT: Final = 1.0
"""Of stained nuclei, from which a hormone receptor is positive (ASCO/CAP 2020)."""


def spelling(text: str) -> str:
    """A cell as the tables of codes have it: no spaces, lower case, 2 for 2.0, - for a dash.

    >>> spelling("Not Amplified"), spelling("2.0")
    ('notamplified', '2')
    """
    plain = "".join(text.casefold().split()).replace("−", "-").replace("–", "-")
    whole = re.fullmatch(r"(\d+)\.0*", plain)
    return whole[1] if whole else plain


def code_of(text: str, codes: Mapping[str, T]) -> T:
    """The code that ``text`` is a spelling of.

    Raises:
        KeyError: of none.
    """
    return codes[spelling(text)]


def stage_of(text: str, letter: Literal["t", "n"], prefix: str, codes: Mapping[str, T]) -> T:
    """The stage that ``text`` says, with or without its prefix: "ypT1mi", "T1mi", "1mi".

    ``prefix`` is "yp" after therapy and "c" before it: a stage of the other kind is refused.

    Raises:
        KeyError: it says none.
    """
    plain = spelling(text)
    if match := re.fullmatch(rf"(?:{prefix})?{letter}(.+)", plain):
        plain = match[1]
    return codes[_SUFFIX.sub("", plain)]


def receptor_of(text: str) -> int:
    """ER or PR: a status, or the share of stained nuclei with a per cent sign ("<1%", "80 %").

    A bare number other than 0 and 1 may be a per cent, an Allred or an H score: it is refused.

    Raises:
        KeyError: neither.

    >>> receptor_of("pos"), receptor_of("80 %"), receptor_of("<1%"), receptor_of("0%")
    (1, 1, 0, 0)
    """
    plain = spelling(text)
    match = _PERCENT.fullmatch(plain)
    if match is None:
        return STATUS_CODES[plain]
    bound, share = match[1], float(match[2])
    if share > 100 or (bound == "<" and share > POSITIVE_PERCENT):
        raise KeyError(text)  # "<10%" may be either
    if bound == "<":
        return 0
    if bound is not None and share < POSITIVE_PERCENT:
        raise KeyError(text)
    return int(share >= POSITIVE_PERCENT)
