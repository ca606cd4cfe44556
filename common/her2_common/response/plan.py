"""The analysis plan: everything that is chosen, chosen before the outcomes are seen.

A plan is a small YAML file. Its SHA-256, over the canonical JSON of all its values (those left at
their defaults included), is printed with every result; a site that has answered under one plan
refuses another for the same model. The threshold and its origin are part of it: a plan that takes
the threshold from a release gets the number, and the release's SHA-256, before anything is asked
(``fix``). ``her2-server response --write-plan FILE`` writes the default.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from her2_common.cases import MODALITIES, Modality
from her2_common.clinical import DEFAULT_PCR, PcrDefinition
from her2_common.config import Name
from her2_common.errors import ConfigError
from her2_common.metrics import grid_index
from her2_common.response.decision import THRESHOLDS
from her2_common.response.design import RESPONSE_TERMS
from her2_common.response.inference import MIN_CELL
from her2_common.response.patients import COLUMNS
from her2_common.response.primary import RELEVANT_ODDS_RATIO
from her2_common.response.subgroups import SUBGROUPS
from her2_common.section import Section
from her2_common.thresholds import GridThreshold

Probability = Annotated[float, Field(gt=0, lt=1)]

TYPED: Final = "typed at this analysis"
CALLS: Final = "calls of 0 and 1"

ThresholdOrigin = Literal["plan", "release", "typed at this analysis", "calls of 0 and 1"]
"""Where a plan's threshold comes from: its author, the release, the command line, or from nowhere
because scores of 0 and 1 need none."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

PROPENSITY: Final = "propensity"
"""The name of the model of the weights; no other model may have it."""

_COMMENT: Final = """\
# Analysis plan of `her2-server response`. Fix it before the outcomes are seen: its SHA-256 stands
# in every result, and a site that has answered under one plan refuses another.
# threshold: at or above it the model calls positive; a multiple of 1/1024, or release: the
#   release's. --write-plan with --release or --threshold writes the number, so that the SHA-256
#   covers it; threshold_from and release_sha256 say where it comes from.
# relevant_odds_ratio: the smallest one that would change practice.
# models: terms are columns (pcr ~ ...), centre, or two joined by a colon; tested: those of the
#   likelihood-ratio test. propensity: terms of the probability of being called positive.
# compare: modalities whose own score is compared with the score of all.
# pcr: ypT0/is ypN0 allows disease in situ, ypT0 ypN0 (strict) does not.
# min_cell: counts below it are not shown; min_centres: fewer sites give no pooled number.
# one_class_centres: refuse, or keep, a table whose known pCR are all alike.
"""


def _checked(terms: tuple[str, ...]) -> tuple[str, ...]:
    known = ("centre", *(name for name in COLUMNS if name not in ("pcr", "call")))
    for term in terms:
        parts = term.split(":")
        if len(parts) > 2 or any(part not in known for part in parts):
            raise ValueError(f"expected {', '.join(known)}, or two joined by a colon, got {term!r}")
    if len(set(terms)) != len(terms):
        raise ValueError(f"expected each term once, got {', '.join(terms)}")
    return terms


class Model(Section):
    """A logistic model of pCR; ``tested`` are the terms that the smaller model lacks."""

    name: Name
    terms: tuple[str, ...] = Field(min_length=1)
    tested: tuple[str, ...] = ()

    @field_validator("terms")
    @classmethod
    def _check_terms(cls, terms: tuple[str, ...]) -> tuple[str, ...]:
        return _checked(terms)

    @model_validator(mode="after")
    def _check_tested(self) -> Model:
        if self.name == PROPENSITY:
            raise ValueError(f"models: expected another name than {PROPENSITY}")
        if unknown := [term for term in self.tested if term not in self.terms]:
            raise ValueError(f"tested: expected terms of the model, got {unknown[0]!r}")
        if len(self.tested) == len(self.terms):
            raise ValueError("tested: expected fewer than all terms, got all")
        return self

    @property
    def columns(self) -> frozenset[str]:
        """The columns of its terms, and ``centre``."""
        return frozenset(part for term in self.terms for part in term.split(":"))

    def reduced(self) -> tuple[str, ...]:
        """The terms of the smaller model."""
        return tuple(term for term in self.terms if term not in self.tested)


class Plan(Section):
    """plan.yaml. ``population`` and ``strata`` of the primary comparison are what they are; they
    stand here so that the hash covers them."""

    threshold: GridThreshold | Literal["release"] = "release"
    threshold_from: ThresholdOrigin = "release"
    release_sha256: Sha256 | None = None
    population: Literal["biopsy-positive and treated"] = "biopsy-positive and treated"
    strata: Literal["centre"] = "centre"
    pcr: PcrDefinition = DEFAULT_PCR
    relevant_odds_ratio: float = Field(default=RELEVANT_ODDS_RATIO, gt=1, le=1000)
    models: tuple[Model, ...] = (
        Model(name="response", terms=RESPONSE_TERMS, tested=RESPONSE_TERMS[-2:]),
    )
    propensity: tuple[str, ...] = ("centre", "hr", "t", "n")
    subgroups: tuple[Literal["hr", "t", "n", "modalities"], ...] = SUBGROUPS
    compare: tuple[Modality, ...] = MODALITIES
    net_benefit: tuple[Probability, ...] = THRESHOLDS
    max_fpr: float = Field(default=0.2, gt=0, le=1)
    min_cell: int = Field(default=MIN_CELL, ge=1, le=1_000_000)
    min_centres: int = Field(default=3, ge=1, le=10_000)
    one_class_centres: Literal["refuse", "keep"] = "refuse"
    seed: int = Field(default=0, ge=0, lt=2**63)

    @field_validator("propensity")
    @classmethod
    def _check_propensity(cls, terms: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := {part for term in terms for part in term.split(":")} & {"score", "call"}:
            raise ValueError(f"expected terms other than the call itself, got {min(wrong)!r}")
        return _checked(terms)

    @field_validator("subgroups", "compare")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError(f"expected each once, got {', '.join(names)}")
        return names

    @model_validator(mode="after")
    def _check_names(self) -> Plan:
        names = [model.name for model in self.models]
        if len(set(names)) != len(names):
            raise ValueError(f"models: expected different names, got {', '.join(names)}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _is_the_authors(cls, given: Any) -> Any:
        """A number without an origin is the plan's own."""
        if isinstance(given, dict) and given.get("threshold", "release") != "release":
            return {"threshold_from": "plan", **given}
        return given

    @model_validator(mode="after")
    def _check_threshold(self) -> Plan:
        fixed = self.threshold != "release"
        if not fixed and self.threshold_from != "release":
            raise ValueError("threshold_from: expected release, as threshold, or a number there")
        if (self.release_sha256 is not None) != (fixed and self.threshold_from == "release"):
            raise ValueError(
                "release_sha256: expected one where threshold is a number from a release, and only "
                "there"
            )
        return self

    @property
    def fixed_threshold(self) -> float:
        """The threshold as a number.

        Raises:
            ConfigError: it is still to be taken from a release.
        """
        if self.threshold == "release":
            raise ConfigError("plan: expected a threshold that is a number, got release")
        return self.threshold

    @property
    def threshold_is_frozen(self) -> bool:
        """Whether it was there before this analysis; one that is typed need not have been."""
        return self.threshold_from in ("plan", "release")

    def fix(self, threshold: float, origin: ThresholdOrigin, release: str | None = None) -> Plan:
        """The plan with a number for its threshold, which its hash then covers.

        Raises:
            MetricError: the number is not on the grid from 0 to 1.
        """
        grid_index(threshold)
        return self.model_copy(
            update={"threshold": threshold, "threshold_from": origin, "release_sha256": release}
        )

    @property
    def sha256(self) -> str:
        """SHA-256, hex, of the canonical JSON: keys sorted, no spaces."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def model(self, name: str) -> Model:
        """The model of that name.

        Raises:
            KeyError: the plan has none.
        """
        return {model.name: model for model in self.models}[name]

    def as_yaml(self) -> str:
        """The plan as a file, with comments."""
        body: str = yaml.safe_dump(
            self.model_dump(mode="json"), sort_keys=False, default_flow_style=None
        )
        return _COMMENT + body
