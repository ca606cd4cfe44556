"""What an MR series is, by the words of ImageType and SeriesDescription.

Free text is only compared, never repeated: what comes out is a reason or a number. Words are
whole words; a subtraction that says so nowhere is not recognised.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from unicodedata import combining, normalize

SUBTRACTION: Final = "subtraction series"
PROJECTION: Final = "projection series"
LOCALISER: Final = "localiser series"
ANOTHER: Final = "another series"
DERIVED: Final = "derived series"
SECONDARY_CAPTURE: Final = "secondary capture"
ENCAPSULATED_PDF: Final = "encapsulated PDF"
ANOTHER_MODALITY: Final = "another modality"

IMAGE_TYPES: Final[Mapping[str, frozenset[str]]] = {
    SUBTRACTION: frozenset({"SUBTRACT", "SUBTRACTION", "SUB"}),
    PROJECTION: frozenset({"MIP", "MINIP", "PROJECTION", "PROJECTION IMAGE", "MPR", "REFORMATTED"}),
    LOCALISER: frozenset({"LOCALIZER"}),
    DERIVED: frozenset({"R", "I", "REAL", "IMAGINARY"}),  # parts of complex images
    ANOTHER: frozenset(
        {"ADC", "DIFFUSION", "TRACEW", "PHASE MAP", "P"}
        | {"FAT", "F", "IN_PHASE", "IP", "OPP_PHASE", "OUT_PHASE", "OP"}  # Dixon: water is used
    ),
}
"""Values of ImageType beyond the first (PS3.3 C.7.6.1.1.2 and the makes' own)."""

DESCRIPTIONS: Final[Mapping[str, re.Pattern[str]]] = {
    SUBTRACTION: re.compile(
        r"(subs?|subtr|subtract|subtracted|subtractions?|sbtr|subtraktion(en)?|subtrahiert|"
        r"soustractions?|sustraccion(es)?|sottrazion[ei]|subtracties?|subtracao)\d*"
    ),
    PROJECTION: re.compile(
        r"(mips?|minip|mprs?|projections?|reformat|reformatted|projektion(en)?|rekonstruktion(en)?|"
        r"proyeccion(es)?|proiezion[ei]|projecties?|projecao|reformatage|reformatiert)\d*"
    ),
    LOCALISER: re.compile(
        r"(locs?|locali[sz]ers?|scout|survey|calibration|lokalisator|lokali[sz]er|localisateur|"
        r"reperages?|localizador|localizzatore|centratura|planscan|kalibrierung|calibracion)\d*"
    ),
    ANOTHER: re.compile(
        r"adc|e?dwi(bs)?|diff|diffusion|dti|trace|t2[a-z]*|stir|flair|tirm|maps?|mrs|"
        r"spectroscopy|washin|washout|colou?r"
    ),
}
"""Whole words of SeriesDescription, in English, German, French, Spanish, Italian, Dutch and
Portuguese, without accents."""

ECHO_PLANAR: Final = "EP"
"""In ScanningSequence (PS3.3 C.8.3.1)."""
SEQUENCE_NAMES: Final = re.compile(r"\*?ep(\d?d|fid|se|_)|(.*_)?b\d")
"""How SequenceName of echo-planar and diffusion sequences begins: ep2d_diff, *ep_b800, *re_b50."""
LONGEST_ECHO_MS: Final = 15.0
"""Dynamic series weight T1 with echoes of some milliseconds (design value)."""
MOTION_CORRECTED: Final = "moco"

BEFORE: Final = frozenset({"pre", "precontrast", "native", "unenhanced", "noncontrast"})
AFTER: Final = frozenset({"post", "postcontrast"})
_NUMBERS: Final = (
    re.compile(r"\bph(?:ase)? ?(\d+)\b"),
    re.compile(r"\b(\d+)(?:st|nd|rd|th)\b"),
    re.compile(r"\b(?:post|pass?|dyn) ?(\d+)\b"),
    re.compile(r"\b(\d+) (?:pass?|post)\b"),
)


def words(text: str) -> tuple[str, ...]:
    """The words of ``text``, in lower case and without accents.

    >>> words("Ph1/ax 3d_DYN"), words("repérage")
    (('ph1', 'ax', '3d', 'dyn'), ('reperage',))
    """
    plain = normalize("NFKD", text.lower())
    return tuple(re.findall(r"[a-z0-9]+", "".join(c for c in plain if not combining(c))))


def kind(image_type: Iterable[str], description: str) -> str | None:
    """Why a series is no phase of a dynamic one, or None.

    >>> kind(["DERIVED", "SECONDARY", "SUBTRACTION"], ""), kind(["ORIGINAL", "PRIMARY"], "ax T2")
    ('subtraction series', 'another series')
    """
    values = {value.strip().upper() for value in list(image_type)[1:]}
    for reason, known in IMAGE_TYPES.items():
        if values & known:
            return reason
    told = words(description)
    for reason, pattern in DESCRIPTIONS.items():
        if any(pattern.fullmatch(word) for word in told):
            return reason
    return None


def is_another_sequence(
    scanning_sequence: Iterable[str], sequence_name: str, echo_time: float | None
) -> bool:
    """Whether a sequence cannot be the dynamic one: echo-planar, diffusion, or a long echo (ms).

    >>> is_another_sequence(["GR"], "*fl3d1", 2.4), is_another_sequence(["SE"], "*ep_b800", None)
    (False, True)
    """
    if ECHO_PLANAR in {value.strip().upper() for value in scanning_sequence}:
        return True
    if SEQUENCE_NAMES.match(sequence_name.strip().lower()):
        return True
    return echo_time is not None and echo_time > LONGEST_ECHO_MS


def is_motion_corrected(image_type: Iterable[str], description: Iterable[str]) -> bool:
    """Whether ImageType or SeriesDescription says MOCO.

    >>> is_motion_corrected(["DERIVED", "PRIMARY", "M", "MOCO"], []), is_motion_corrected([], [""])
    (True, False)
    """
    told = words(" ".join([*image_type, *description]))
    return any(word.startswith(MOTION_CORRECTED) for word in told)


def stage(description: str) -> int | None:
    """The phase that a description names: 0 before contrast, 1 the first after it, or None.

    >>> [stage(t) for t in ("ax dyn pre", "ax dyn 1st pas", "Ph2/ax 3d dyn", "ax 3d dyn")]
    [0, 1, 2, None]
    """
    told = words(description)
    text = " ".join(told)
    numbers = {int(number) for pattern in _NUMBERS for number in pattern.findall(text)}
    before, after = bool(BEFORE & {*told}), bool(AFTER & {*told})
    if len(numbers) > 1 or (before and (after or numbers - {0})):
        return None
    if numbers:
        return numbers.pop()
    if before:
        return 0
    return 1 if after else None


def stages(descriptions: Sequence[str]) -> list[int] | None:
    """The phase of each series, if the descriptions together say so without a gap, else None.

    A bare description counts as the phase before contrast where its words are those of all the
    others without their number.

    >>> stages(["Ph2/ax 3d dyn", "ax 3d dyn", "Ph1/ax 3d dyn"])
    [2, 0, 1]
    >>> stages(["phase 1", "phase 2"]) is None  # is the first one before contrast?
    True
    """
    found = [stage(text) for text in descriptions]
    if found.count(None) == 1 and 0 not in found and len(found) > 1:
        bare = found.index(None)
        own = {*words(descriptions[bare])}
        others = [{*words(text)} for i, text in enumerate(descriptions) if i != bare]
        if own and all(own < other for other in others):
            found[bare] = 0
    known = [number for number in found if number is not None]
    return known if sorted(known) == list(range(len(found))) else None
