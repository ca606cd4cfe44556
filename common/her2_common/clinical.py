"""HER2 from IHC and ISH, response from ypT and ypN: the only place where these rules stand.

Sources: ASCO/CAP HER2 testing guideline, 2018 focused update, affirmed 2023; AJCC 8th edition
for ypT and ypN. pCR here is ypT0/is ypN0: in situ disease is allowed, the nodes must be clear.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

Her2Level = Literal["zero", "low", "positive"]
HER2_LEVELS: Final[tuple[Her2Level, ...]] = get_args(Her2Level)

PCR_DEFINITION = "pCR = ypT0/is ypN0 (in situ disease allowed, nodes negative)"


def her2_from_ihc_ish(ihc: int | None, ish: int | None) -> int | None:
    """HER2 status (1 positive, 0 negative, None unknown) from the IHC score and ISH.

    IHC 3+ is positive and IHC 0 or 1+ negative whatever the ISH; IHC 2+ is equivocal and takes
    the ISH (1 amplified). Without IHC the ISH decides. Source: ASCO/CAP 2018.

    >>> her2_from_ihc_ish(3, None), her2_from_ihc_ish(2, 1), her2_from_ihc_ish(2, None)
    (1, 1, None)
    """
    if ihc is None or ihc == 2:
        return ish
    return int(ihc == 3)


def her2_level(ihc: int | None, ish: int | None) -> Her2Level | None:
    """The three-level outcome: zero (IHC 0), low (1+ or 2+/ISH-), positive; None unknown.

    >>> her2_level(0, None), her2_level(1, None), her2_level(2, 0), her2_level(3, None)
    ('zero', 'low', 'low', 'positive')
    """
    status = her2_from_ihc_ish(ihc, ish)
    if status == 1:
        return "positive"
    if status is None or ihc is None:
        return None
    return "zero" if ihc == 0 else "low"


def pcr_from_stage(ypt: str | None, ypn: str | None) -> int | None:
    """pCR (1 yes, 0 no, None unknown) from ypT and ypN.

    ``ypt`` is ``"0"``, ``"is"`` or ``"1"`` to ``"4"``, ``ypn`` ``"0"`` to ``"3"``. Residual
    invasive disease in the breast or in the nodes decides for no, even if the other is unknown;
    a yes needs both.

    >>> pcr_from_stage("is", "0"), pcr_from_stage("0", None), pcr_from_stage("2", None)
    (1, None, 0)
    """
    if ypt in {"1", "2", "3", "4"} or ypn in {"1", "2", "3"}:
        return 0
    if ypt is None or ypn is None:
        return None
    return 1
