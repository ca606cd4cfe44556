"""The result in 80 columns: the verdict first, then the numbers behind it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Final

from her2_server.report.response_words import ALL_COMERS_TAG, held_out

WIDTH: Final = 78
_NAME: Final = 44
_ROUNDING: Final = 1e-9

Document = Mapping[str, Any]


def summary(document: Document) -> str:
    """The result to be read in a terminal, no line longer than 80 columns."""
    return "\n".join(_lines(document)) + "\n"


def _lines(document: Document) -> Iterator[str]:
    verdict, *rest = _primary(document["primary"])
    yield verdict
    if document["source"].get("synthetic"):
        yield "Synthetic data: no clinical claim."
    yield from rest
    yield from _auc(document["auc"])
    yield from _models(document["logistic"])
    yield from _weights(document["ipw"])
    if document["holm"]:
        yield ""
        yield f"{'Secondary tests':<{_NAME}}  {'p':>9}  {'Holm':>9}"
        for test in document["holm"]:
            name = _cut(test["name"])
            yield f"  {name:<{_NAME - 2}}  {_p(test['p_value'])}  {_p(test['adjusted'])}"
        yield from _wrapped(f"{ALL_COMERS_TAG} Tests of subgroups are of the treated.", "  ")
    if hidden := document["suppressed"]:
        yield ""
        yield from _wrapped(
            f"Not shown: {len(hidden)} lines because of small cells "
            f"(min_cell {document['plan']['document']['min_cell']} of the plan, or a site's own); "
            "the JSON names them under suppressed."
        )
    for warning in document["warnings"]:
        yield from _wrapped(f"Note: {warning}")
    if rows := document["source"].get("without_split"):
        yield from _wrapped(f"Note: {held_out(rows)}")
    yield ""
    frozen = document["threshold_frozen"]
    yield (
        f"{'Frozen threshold' if frozen else 'Threshold, not frozen:'} "
        f"{document['threshold']:.4f} ({document['threshold_from']}), "
        f"plan {document['plan']['sha256'][:16]}"
    )


def _primary(primary: Document) -> Iterator[str]:
    if "refused" in primary:
        yield "Verdict: none"
        yield from _wrapped(f"The primary comparison is not given: {primary['refused']}.")
        return
    yield f"Verdict: {primary['verdict']}"
    yield from _wrapped(primary["quote"])
    yield ""
    yield from _wrapped(f"Not to be said: {primary['do_not_quote']}")
    yield ""
    yield _head(f"Primary comparison, {primary['n']} patients")
    if primary["verdict"] != "not compared":
        yield _line("odds ratio, Mantel-Haenszel", primary["odds_ratio"])
        yield _line("odds ratio, exact", primary["exact_odds_ratio"])
    if primary["risk_difference"] is not None:
        yield _line("risk difference", primary["risk_difference"])
    for name, label in (("positive", "pCR, model-positive"), ("negative", "pCR, model-negative")):
        group = primary[name]
        yield _line(f"{label} ({group['pcr']} of {group['n']})", group["rate"])
    if primary["verdict"] != "not compared":
        yield _tested("CMH", primary["cmh"])
        yield _tested("Breslow-Day (Tarone)", primary["breslow_day"])
    if primary["power"] is not None:
        name = f"power at an odds ratio of {primary['relevant_odds_ratio']:g}"
        yield f"  {name:<{_NAME - 2}}  {primary['power']:9.2f}"
    for part in primary["by_centre"]:
        name = _cut(f"at {part['centre']}", _NAME - 9)
        if part.get("suppressed"):
            yield f"  {name:<{_NAME - 2}}  {'withheld':>11}"
        else:
            yield _line(f"{name} ({part['n']})", part["odds_ratio"])
    for part in primary["left_out"]:
        changed = f" -> {part['verdict']}" if part["changes"] else ""
        yield _line(_cut(f"without {part['centre']}{changed}"), part["odds_ratio"])


def _auc(auc: Document) -> Iterator[str]:
    yield ""
    if "refused" in auc:
        yield from _wrapped(f"AUC: not given: {auc['refused']}.")
        return
    yield _head(f"AUC for pCR, {auc['n']} patients, {auc['pcr']} with pCR")
    yield _line("imaging", auc["imaging"])
    yield _line("biopsy", auc["biopsy"])
    if auc["not_compared"] is None:
        yield _line("imaging less biopsy", auc["paired_delong"]["difference"])
    else:
        yield from _wrapped(f"Not compared: {auc['not_compared']}.", "  ")
    if auc["stratified"] is not None:
        yield _line("imaging, within centres", auc["stratified"]["imaging"])
        yield _line("biopsy, within centres", auc["stratified"]["biopsy"])
    if auc["treated"] is not None:
        yield _line("imaging, primary population", auc["treated"]["imaging"])
    yield from _wrapped(auc["warning"], "  ")


def _models(models: list[Document]) -> Iterator[str]:
    for model in models:
        yield ""
        if "refused" in model:
            yield from _wrapped(f"Model {model['model']}: not given: {model['refused']}.")
            continue
        penalised = ", Firth's penalty" if model["penalised"] else ""
        yield _head(f"Model {model['model']}, {model['n']} patients{penalised}")
        yield from _dropped(model["dropped"])
        for name, term in model["terms"].items():
            if name != "intercept" and not name.startswith("centre["):
                yield _line(f"{_cut(name, 26)}, odds ratio", term["odds_ratio"])
        if model["likelihood_ratio"] is not None:
            terms = ", ".join(model["likelihood_ratio"]["terms"])
            yield _tested(_cut(f"likelihood ratio, {terms}", 36), model["likelihood_ratio"])
        yield f"  {ALL_COMERS_TAG}"


def _dropped(columns: list[Document]) -> list[str]:
    words = ", ".join(part["words"] for part in columns)
    return _wrapped(f"not fitted: {words}", "  ") if columns else []


def _weights(ipw: Document) -> Iterator[str]:
    yield ""
    if "refused" in ipw:
        yield from _wrapped(f"Weighted comparison: not given: {ipw['refused']}.")
        return
    yield _head(f"Weighted comparison, {ipw['n']} patients")
    yield from _dropped(ipw["dropped"])
    yield _line("risk difference", ipw["risk_difference"])
    yield _line("risk ratio", ipw["risk_ratio"])
    if ipw["e_value"] is not None:
        yield (
            f"  {'E-value, of its interval':<{_NAME - 2}}  {ipw['e_value']['estimate']:9.2f}  "
            + (f"{ipw['e_value']['interval']:.2f}")
        )


# --- lines ---------------------------------------------------------------------------------------


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)


def _head(text: str) -> str:
    return f"{_cut(text, _NAME):<{_NAME}}  {'estimate':>9}  95 % interval"


def _line(name: str, estimate: Document | None) -> str:
    start = f"  {_cut(name):<{_NAME - 2}}  "
    if estimate is None:
        return f"{start}{'none':>9}"
    return (
        f"{start}{_number(estimate['estimate']):>9}  "
        f"{_number(estimate['low'])} to {_number(estimate['high'])}"
    )


def _tested(name: str, test: Document | None) -> str:
    if test is None:
        return f"  {name:<{_NAME - 2}}  {'none':>9}"
    degrees = "" if test["df"] is None else f" ({test['df']} df)"
    start = f"{name}{degrees}"
    return (
        f"  {start:<{_NAME - 2}}  {_number(test['statistic']):>9}  p {_p(test['p_value']).strip()}"
    )


def _number(value: float | None) -> str:
    if value is None:
        return "unbounded"
    if abs(value) < _ROUNDING:
        return "0.000"
    return f"{value:.3f}" if 0.0005 <= abs(value) < 1e5 else f"{value:.1e}"


def _p(value: float) -> str:
    return f"{'< 0.0001':>9}" if value < 0.0001 else f"{value:9.4f}"


def _cut(text: str, length: int = _NAME - 2) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
