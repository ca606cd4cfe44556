"""Numbers as a reader wants them: rounded, with their interval, "withheld" where one is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from her2_common import cases
from her2_common.cases import PCR_LABELS, Label
from her2_common.clinical import PCR_DEFINITIONS

MODALITY_NAMES: Final = {"mg": "mammography", "us": "ultrasound", "mri": "MRI"}
SHORT_NAMES: Final = {"mg": "MG", "us": "US", "mri": "MRI"}

UNKNOWN: Final = "–"
"""Shown for a number that the cases cannot give."""

OUTCOMES: Final[dict[Label, tuple[str, str]]] = {
    "reference": ("HER2-positive", "HER2-negative"),
    "biopsy": ("HER2-positive", "HER2-negative"),
    "surgical": ("HER2-positive", "HER2-negative"),
    **dict.fromkeys(PCR_LABELS, ("with pCR", "without pCR")),
}
"""Label of the run -> how a case of the positive and of the negative class is called."""

LABEL_SOURCES: Final[dict[Label, str]] = {
    "reference": "HER2 of the tumour before treatment: of the biopsy, or, where no neoadjuvant "
    "therapy was given, of the excised tumour",
    "biopsy": "HER2 of the needle biopsy",
    "surgical": "HER2 of the excised tumour, after neoadjuvant therapy, too: this label holds the "
    "outcome of therapy and is no evidence on response",
    **dict.fromkeys(PCR_LABELS, "pathological complete response"),
}

SOURCE_NAMES: Final[dict[str, str]] = {
    **{str(source): name for source, name in cases.SOURCE_NAMES.items()},
    "no_image": "no usable image",
    "few_cases": "only modalities with too few cases",
}
"""Where labels come from, and why cases are left out, in words."""

RESPONSE_CAUTION: Final = (
    "Therapy follows the biopsy: patients whose needle says HER2-positive get anti-HER2 drugs, and "
    "these raise pCR. A score that follows the treatment given therefore predicts pCR, too; this "
    "AUC over all patients does not say that the model knows better than the biopsy who should be "
    "treated."
)
"""Printed wherever the AUC of a model of pCR is."""

_MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
"""English whatever the machine's locale is."""


WITHHELD: Final = "withheld"
"""Shown for a count that is small, or from which a small one follows (her2_server.suppression)."""


def count(value: int | None) -> str:
    """A count of cases.

    >>> count(1204), count(None)
    ('1,204', 'withheld')
    """
    return WITHHELD if value is None else f"{value:,}"


def number(value: float | None, digits: int = 2) -> str:
    """A plain number, with a true minus sign."""
    if value is None:
        return UNKNOWN
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def interval(estimate: Mapping[str, float] | None, digits: int = 2) -> str:
    """An estimate with its interval.

    >>> interval({"estimate": 0.812, "low": 0.7512, "high": 0.874})
    '0.81 (0.75 to 0.87)'
    """
    if estimate is None:
        return UNKNOWN
    middle, low, high = (number(estimate[key], digits) for key in ("estimate", "low", "high"))
    return f"{middle} ({low} to {high})"


def percent(estimate: Mapping[str, float] | None) -> str:
    """A proportion with its interval, in per cent.

    >>> percent({"estimate": 0.784, "low": 0.69, "high": 0.861})
    '78 % (69 to 86)'
    """
    if estimate is None:
        return UNKNOWN
    middle, low, high = (f"{100 * estimate[key]:.0f}" for key in ("estimate", "low", "high"))
    return f"{middle} % ({low} to {high})"


def size(value: float | None) -> str:
    """Bytes in decimal units.

    >>> size(812), size(16_800_000), size(None)
    ('812 B', '16.8 MB', '–')
    """
    if value is None:
        return UNKNOWN
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"


def duration(seconds: float | None) -> str:
    """A length of time.

    >>> duration(3.21), duration(147), duration(7322)
    ('3.2 s', '2 min 27 s', '2 h 2 min')
    """
    if seconds is None:
        return UNKNOWN
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def moment(value: str | None) -> str:
    """An ISO 8601 time to the minute.

    >>> moment("2026-01-15T09:12:04Z")
    '15 January 2026, 09:12 UTC'
    """
    if value is None:
        return UNKNOWN
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        return value
    zone = f" {at.tzname()}" if at.tzinfo else ""
    return f"{at.day} {_MONTHS[at.month - 1]} {at.year}, {at:%H:%M}{zone}"


def combination(name: str, *, short: bool = False) -> str:
    """A combination of modalities in words.

    >>> combination("mg+us"), combination("mg+us", short=True)
    ('mammography + ultrasound', 'MG + US')
    """
    names = SHORT_NAMES if short else MODALITY_NAMES
    return " + ".join(names.get(part, part) for part in name.split("+"))


def listed(words: Sequence[str]) -> str:
    """Words in a sentence: "a", "a and b", "a, b and c"."""
    if len(words) < 2:
        return "".join(words)
    return ", ".join(words[:-1]) + " and " + words[-1]


def shorten(name: str, most: int) -> str:
    """A name of at most ``most`` characters, cut with an ellipsis.

    >>> shorten("breast-centre-of-the-north", 14)
    'breast-centre…'
    """
    return name if len(name) <= most else name[: most - 1].rstrip("-") + "…"


def threshold_rule(threshold: Mapping[str, Any]) -> str:
    """How the threshold was chosen, as the end of "was frozen before the test cases were read"."""
    if threshold["rule"] == "youden":
        return "at the greatest sensitivity + specificity on the validation cases"
    return f"by rule ({threshold['rule']})"


def letter(index: int) -> str:
    """The letter of a centre in tables and figures.

    >>> letter(0), letter(25), letter(26)
    ('A', 'Z', 'AA')
    """
    first, last = divmod(index, 26)
    return (letter(first - 1) if first else "") + chr(65 + last)


def predicted(label: Label) -> str:
    """What a run with this label predicts, with the definition of pCR where it is named."""
    source = LABEL_SOURCES[label]
    return f"{source}; {PCR_DEFINITIONS[PCR_LABELS[label]]}" if label in PCR_LABELS else source


def levels(numbers: Mapping[str, Any] | None, min_cell: int) -> str:
    """HER2-low against HER2-zero in one sentence; ``numbers`` are ``levels`` of a split.

    >>> levels({"suppressed": True}, 10)[:36]
    'HER2-low against HER2-zero: withheld'
    """
    name = "HER2-low against HER2-zero"
    if numbers is None:
        return f"{name}: no test case tells its level by IHC and ISH."
    if numbers.get("suppressed"):
        return (
            f"{name}: {WITHHELD}, because it would show a group of fewer than {min_cell} test "
            "cases: positive, low, zero, or of unknown level."
        )
    auc = numbers["auc"]
    return (
        f"{name}: among the {count(numbers['n'])} HER2-negative test cases whose IHC and ISH tell "
        f"the level ({count(numbers['low'])} low, {count(numbers['zero'])} zero), the model scores "
        f"a low one higher than a zero one {number(100 * auc['estimate'], 0)} times in 100: an AUC "
        f"of {number(auc['estimate'])} (95 % confidence interval {number(auc['low'])} to "
        f"{number(auc['high'])}). An AUC of 0.5 is chance; {verdict(auc)}."
    )


def temperature(record: Mapping[str, Any] | None) -> str:
    """What was done to make scores probabilities, in one or two sentences.

    >>> temperature({"reason": "the AUC on validation is not above 0.5"})
    'No temperature was fitted (the AUC on validation is not above 0.5): scores are as trained.'
    """
    if record is None:
        return "No temperature was fitted: scores are as trained."
    if record["reason"]:
        return f"No temperature was fitted ({record['reason']}): scores are as trained."
    value = record["temperature"]
    trained = "too extreme" if value > 1 else "too timid"
    cases = "" if record["n"] is None else f"the {count(record['n'])} "
    shift = ""
    if record["intercept"]:
        shift = (
            f", and {number(record['intercept'])} was added, for training weighed the classes "
            "otherwise than they occur"
        )
    return (
        f"As trained, scores were {trained}: their log odds were divided by {number(value)}, the "
        f"temperature, fitted on {cases}validation cases{shift}. It is part of the released "
        "weights, so every score on this page has it."
    )


def verdict(auc: Mapping[str, Any] | None) -> str:
    """What the interval of an AUC says about chance, in one clause."""
    if auc is None:
        return "it cannot be said whether the model does better than chance"
    if auc["low"] > 0.5:
        return "the whole interval lies above 0.5: the model does better than chance"
    if auc["high"] < 0.5:
        return "the whole interval lies below 0.5: the model does worse than chance"
    return "the interval contains 0.5: the model cannot be told from chance"
