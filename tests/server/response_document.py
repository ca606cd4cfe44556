"""A document as `her2-server response` writes it, with every kind of gap that one can have.

The numbers are made up, so that each differs from all others where the page could mix them up.
Among the gaps: a suppressed centre, hidden counts, an infinite bound, an estimate that the sample
does not give, a model that was refused, a bin without patients.
"""

from __future__ import annotations

import copy
from typing import Any

WARNING = (
    "Therapy follows the biopsy: in all comers the biopsy predicts pCR partly because it decides "
    "who receives anti-HER2 drugs. A comparison with the biopsy here favours the biopsy."
)
HIDDEN = {"pcr": None, "n": None, "rate": None}
CENTRES = ["north", "river", "valley", "coast"]


def e(estimate: float | None, low: float | None, high: float | None) -> dict[str, float | None]:
    """An estimate."""
    return {"estimate": estimate, "low": low, "high": high}


def chi(statistic: float | None, df: int | None, p_value: float) -> dict[str, Any]:
    """A test."""
    return {"statistic": statistic, "df": df, "p_value": p_value}


def rate(pcr: int, n: int, low: float, high: float) -> dict[str, Any]:
    """pCR of n patients."""
    return {"pcr": pcr, "n": n, "rate": e(pcr / n, low, high)}


def proportion(k: int, n: int) -> dict[str, Any]:
    """k of n with two intervals."""
    share = k / n
    return {
        "k": k,
        "n": n,
        "wilson": e(share, share - 0.061, share + 0.053),
        "exact": e(share, share - 0.067, share + 0.058),
    }


def paired(gap: float, low: float, high: float, z: float, p_value: float) -> dict[str, Any]:
    """A paired DeLong comparison."""
    return {"difference": e(gap, low, high), **chi(z, None, p_value)}


def response_document() -> dict[str, Any]:
    """A fresh one each time: tests change it."""
    return copy.deepcopy(_document())


def _document() -> dict[str, Any]:
    return {
        "format": "her2-map response",
        "version": "0.4.0",
        "source": {
            "kind": "federation",
            "run": "spring",
            "release_sha256": "5e" * 32,
            "label": "reference",
            "queries": 43,
            "synthetic": True,
            "sites": {
                "north": {"queries": 43, "max_queries": 200, "withheld": []},
                "coast": {"queries": 38, "max_queries": 150, "withheld": ["logistic response"]},
            },
        },
        "plan": {
            "sha256": "9f3c" * 16,
            "document": {"threshold": "release", "min_cell": 10, "min_centres": 3, "seed": 17},
        },
        "threshold": 0.4375,
        "threshold_from": "release",
        "threshold_frozen": True,
        "pcr": "pCR = ypT0/is ypN0 (in situ disease allowed, nodes negative)",
        "centres": CENTRES,
        "n": 1412,
        "analysed": 1287,
        "warnings": ["2 patients have more than one row"],
        "primary": _primary(),
        "auc": _auc(),
        "roc": {
            "imaging": [[0, 0], [0.11, 0.31], [0.42, 0.71], [1, 1]],
            "biopsy": [[0, 0], [0.28, 0.53], [1, 1]],
            "warning": WARNING,
        },
        "operating_points": {
            "warning": WARNING,
            "points": [
                {
                    "name": "imaging",
                    "threshold": 0.4375,
                    "sensitivity": proportion(216, 402),
                    "specificity": proportion(509, 885),
                    "ppv": proportion(217, 551),
                    "npv": {"k": None, "n": None, "wilson": None, "exact": None},
                },
                {
                    "name": "biopsy",
                    "threshold": 1.0,
                    "sensitivity": proportion(211, 403),
                    "specificity": proportion(607, 886),
                    "ppv": proportion(212, 445),
                    "npv": proportion(608, 795),
                },
            ],
        },
        "calibration": {
            "n": 1288,
            "intercept": e(-0.906, -1.046, -0.766),
            "slope": e(0.223, 0.136, 0.309),
            "brier": e(0.274, 0.259, 0.288),
            "calibration_error": 0.213,
            "reliability": [
                _bin(0.0, 0.4, 382, 0.191, e(0.264, 0.222, 0.311)),
                _bin(0.4, 0.7, None, None, None),
                _bin(0.7, 0.9, 241, 0.799, e(0.492, 0.429, 0.555)),
                _bin(0.9, 1.0, 0, None, None),
            ],
            "warning": f"The score is of HER2, not of pCR. {WARNING}",
        },
        "net_benefit": {
            "points": [
                {
                    "threshold": 0.2,
                    "model": e(0.135, 0.106, 0.165),
                    "treat_all": e(0.151, 0.119, 0.184),
                    "over_all": e(-0.016, -0.029, -0.002),
                },
                {
                    "threshold": 0.35,
                    "model": e(0.003, -0.031, 0.036),
                    "treat_all": e(-0.045, -0.086, -0.005),
                    "over_all": e(0.048, 0.021, 0.074),
                },
            ],
            "warning": "The score is of HER2, not of pCR.",
        },
        "mcnemar": {
            "warning": WARNING,
            "pcr": {
                "biopsy_only": 47,
                "imaging_only": 54,
                "exact": chi(47, None, 0.533),
                "chi2": chi(0.563, 1, 0.454),
                "corrected": chi(0.391, 1, 0.532),
            },
            "no_pcr": {
                "biopsy_only": None,
                "imaging_only": None,
                "exact": chi(None, None, 0.0021),
                "chi2": chi(9.41, 1, 0.0022),
                "corrected": chi(8.97, 1, 0.0027),
            },
        },
        "discordance": {
            "warning": WARNING,
            "strata": [
                _stratum(0, 0, 119, 697, 0.144, 0.201) | {"discordant": False},
                {"biopsy": 0, "model": 1, "discordant": True, "suppressed": True},
                {"biopsy": 1, "model": 0, "discordant": True, "suppressed": True},
                _stratum(1, 1, 177, 337, 0.471, 0.577) | {"discordant": False},
            ],
            "discordant": {"n": 183, "share": e(0.142, 0.124, 0.162)},
        },
        "reclassification": {
            "warning": "NRI and IDI are read by component only.",
            "not_compared": None,
            "nri": {"pcr": e(0.015, -0.025, 0.055), "no_pcr": e(-0.118, -0.151, -0.084)},
            "idi": {
                "model": "response",
                "pcr": e(0.0041, 0.0002, 0.0083),
                "no_pcr": e(0.0019, -0.0005, 0.0044),
            },
        },
        "logistic": [
            _logistic(),
            {"model": "wide", "refused": "the data are separated by therapy"},
        ],
        "subgroups": [
            {
                "by": "hr",
                "heterogeneity": chi(0.497, 1, 0.481),
                "rows": [
                    _subgroup("hr 0", 97, 181, e(1.57, 0.76, 3.22), e(0.112, -0.067, 0.291)),
                    _subgroup("hr 1", 106, 236, e(2.26, 1.13, 4.61), e(0.201, 0.039, 0.361)),
                ],
            },
            {
                "by": "modalities",
                "heterogeneity": None,
                "rows": [
                    {"label": "modalities mg+us", "suppressed": True},
                    _subgroup("modalities mri", 58, 122, None, None),
                ],
            },
        ],
        "ipw": {
            "dropped": [],
            "terms": ["centre", "hr", "t"],
            "n": 381,
            "pcr": 163,
            "centres": CENTRES,
            "risk_positive": e(0.526, 0.473, 0.579),
            "risk_negative": e(0.368, 0.257, 0.481),
            "risk_difference": e(0.158, 0.034, 0.282),
            "risk_ratio": e(1.43, 1.04, 1.97),
            "odds_ratio": e(1.91, 1.12, 3.24),
            "effective": {"positive": 290.1, "negative": 61.2},
            "e_value": {"estimate": 2.21, "interval": 1.24},
            "warning": "Weights balance what was measured.",
        },
        "holm": [
            {"name": "paired DeLong: imaging against biopsy", "p_value": 0.0212, "adjusted": 0.165},
            {"name": "likelihood ratio: response", "p_value": 0.0111, "adjusted": 0.0889},
        ],
        "suppressed": [
            {"what": "primary.by_centre", "which": "coast", "why": "fewer than 10 in a cell"},
            {"what": "discordance", "which": "01", "why": "needed to hide another"},
        ],
    }


def _primary() -> dict[str, Any]:
    return {
        "population": "biopsy HER2-positive, treated with anti-HER2 drugs, score and pCR known",
        "n": 415,
        "pcr": 205,
        "centres": CENTRES,
        "positive": rate(176, 336, 0.471, 0.576),
        "negative": rate(29, 79, 0.269, 0.477),
        "odds_ratio": e(1.853, 1.125, 3.054),
        "exact_odds_ratio": e(1.877, 1.104, 3.238),
        "risk_difference": e(0.155, 0.0341, 0.276),
        "risk_ratio": e(1.421, 1.043, 1.938),
        "cmh": chi(6.086, 1, 0.0136) | {"corrected": chi(5.484, 1, 0.0192)},
        "breslow_day": chi(8.381, 3, 0.0388) | {"without_tarone": chi(8.395, 3, 0.0385)},
        "heterogeneity": {
            "centres": 3,
            "odds_ratio": e(2.204, 0.462, 9.519),
            "prediction": e(2.214, 0.049, 98.16),
            "tau2": 0.542,
            "i2": 0.622,
            "q": chi(7.941, 2, 0.0472),
            "left_out": ["coast"],
        },
        "opposed": [],
        "by_centre": [
            {
                "centre": "north",
                "n": 167,
                "positive": rate(68, 131, 0.434, 0.603),
                "negative": rate(11, 36, 0.181, 0.469),
                "odds_ratio": e(2.453, 1.116, 5.392),
                "risk_difference": e(0.2141, 0.0404, 0.387),
            },
            {
                "centre": "river",
                "n": 121,
                "positive": HIDDEN,
                "negative": HIDDEN,
                "odds_ratio": e(None, 1.237, None),
                "risk_difference": None,
            },
            {"centre": "valley", "suppressed": True},
            {"centre": "coast", "suppressed": True},
        ],
        "left_out": [
            {
                "centre": "north",
                "odds_ratio": e(1.517, 0.791, 2.914),
                "verdict": "inconclusive",
                "changes": True,
            },
            {
                "centre": "coast",
                "odds_ratio": e(1.698, 1.014, 2.841),
                "verdict": "supported",
                "changes": False,
            },
        ],
        "by_centre_and_hr": e(1.894, 1.138, 3.141),
        "relevant_odds_ratio": 2.0,
        "power": 0.815,
        "size": 0.0461,
        "detectable_odds_ratio": 1.972,
        "verdict": "supported",
        "quote": "Among 415 patients, 176 of 336 and 29 of 79 had a pCR.",
        "do_not_quote": "Patients whom the model calls negative do not need therapy.",
    }


def _auc() -> dict[str, Any]:
    def spread(mean: float) -> dict[str, Any]:
        return {
            "centres": 4,
            "mean": e(mean, mean - 0.057, mean + 0.054),
            "prediction": e(mean + 0.001, mean - 0.078, mean + 0.073),
            "tau2": 0.011,
            "i2": 0.174,
            "q": chi(2.955, 3, 0.399),
            "left_out": [],
        }

    return {
        "population": "all comers: pCR, score and biopsy known",
        "n": 1286,
        "pcr": 399,
        "centres": CENTRES,
        "warning": WARNING,
        "not_compared": None,
        "imaging": e(0.593, 0.559, 0.628),
        "biopsy": e(0.624, 0.595, 0.653),
        "paired_delong": paired(-0.031, -0.057, -0.005, -2.304, 0.0212),
        "stratified": {
            "imaging": e(0.581, 0.544, 0.618),
            "biopsy": e(0.617, 0.588, 0.649),
            "paired_delong": paired(-0.037, -0.066, -0.009, -2.571, 0.0102),
        },
        "random_effects": {"imaging": spread(0.591), "biopsy": None},
        "partial": {
            "max_fpr": 0.2,
            "area": e(0.0343, 0.0263, 0.0434),
            "standardised": e(0.542, 0.518, 0.565),
        },
        "error_bound": 0.00049,
        "on_grid": False,
        "by_centre": {
            "north": {
                "n": 527,
                "pcr": 161,
                "imaging": e(0.563, 0.508, 0.617),
                "biopsy": e(0.609, 0.564, 0.654),
                "paired_delong": paired(-0.046, -0.089, -0.003, -2.106, 0.0352),
            },
            "coast": {"suppressed": True},
        },
        "treated": {"n": 416, "pcr": 206, "imaging": e(0.537, 0.481, 0.594)},
        "models": [
            {
                "model": "mg",
                "n": 706,
                "pcr": 234,
                "imaging": e(0.582, 0.534, 0.626),
                "other": e(0.571, 0.526, 0.619),
                "paired_delong": paired(0.0091, -0.012, 0.034, 0.853, 0.394),
            },
            {"model": "mri", "refused": "expected answers of 3 centres, got 2"},
        ],
    }


def _logistic() -> dict[str, Any]:
    def term(estimate: float, se: float, p_value: float, ratio: dict[str, Any]) -> dict[str, Any]:
        interval = e(estimate, estimate - 1.96 * se, estimate + 1.96 * se)
        return {**interval, "se": se, "p_value": p_value, "odds_ratio": ratio}

    return {
        "model": "response",
        "outcome": "pcr",
        "n": 1201,
        "pcr": 384,
        "centres": CENTRES,
        "warning": WARNING,
        "penalised": False,
        "dropped": [],
        "terms": {
            "intercept": term(-0.751, 0.259, 0.0037, e(0.472, 0.284, 0.784)),
            "centre[river]": term(0.063, 0.149, 0.673, e(1.065, 0.795, 1.425)),
            "hr": term(-0.365, 0.129, 0.0046, e(0.694, 0.539, 0.893)),
            "biopsy:score": term(1.739, 0.636, 0.0062, e(5.689, 1.636, 19.79)),
        },
        "log_likelihood": -727.67,
        "likelihood_ratio": {"terms": ["score", "biopsy:score"], **chi(7.757, 2, 0.0207)},
    }


def _bin(
    low: float, high: float, n: int | None, mean: float | None, observed: Any
) -> dict[str, Any]:
    return {"low": low, "high": high, "n": n, "mean_score": mean, "observed": observed}


def _stratum(biopsy: int, model: int, pcr: int, n: int, low: float, high: float) -> dict[str, Any]:
    return {"biopsy": biopsy, "model": model, **rate(pcr, n, low, high)}


def _subgroup(label: str, pcr: int, n: int, ratio: Any, difference: Any) -> dict[str, Any]:
    return {"label": label, "n": n, "pcr": pcr, "odds_ratio": ratio, "risk_difference": difference}
