"""What a run may choose about its strategy and its traffic, as frozen sections of federation.yaml.

How the choices are carried out: her2_server.strategies and her2_client.local_objectives;
her2_common.encoding and her2_common.broadcast.

A default is the source's where the source has one; where it tunes the value on a grid, the
default lies on that grid and the docstring says so.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from her2_common.section import Section

GroupName = Literal["mg", "us", "mri", "clinical", "head"]
"""The names of ``her2_common.model.GROUPS``, without importing torch."""

EncoderName = Literal["mg", "us", "mri"]

Decay = Annotated[float, Field(ge=0, lt=1)]


# --- the server's step --------------------------------------------------------------------------


class FedAvg(Section):
    """The sites' mean change is taken as it is (rate 1), or a share or a multiple of it."""

    name: Literal["fedavg"] = "fedavg"
    server_learning_rate: float = Field(default=1.0, gt=0, le=10)


class FedAvgM(Section):
    """Momentum on the server. Hsu et al. (2019) try 0 to 0.997, Reddi et al. take 0.9; 0.5 is what
    the comparison in docs/strategies.md speaks for."""

    name: Literal["fedavgm"] = "fedavgm"
    server_learning_rate: float = Field(default=1.0, gt=0, le=10)
    momentum: Decay = 0.5


class FedAdam(Section):
    """Adam on the server. ``server_learning_rate`` is the size of a parameter's move in a round,
    about; Reddi et al. tune it on a grid of powers of ten, the decays and ``tau`` are theirs."""

    name: Literal["fedadam"] = "fedadam"
    server_learning_rate: float = Field(default=1e-2, gt=0, le=10)
    beta1: Decay = 0.9
    beta2: Decay = 0.99
    tau: float = Field(default=1e-3, ge=1e-12, le=1)


class FedYogi(Section):
    """As FedAdam, with Yogi's second moment."""

    name: Literal["fedyogi"] = "fedyogi"
    server_learning_rate: float = Field(default=1e-2, gt=0, le=10)
    beta1: Decay = 0.9
    beta2: Decay = 0.99
    tau: float = Field(default=1e-3, ge=1e-12, le=1)


ServerStep = Annotated[FedAvg | FedAvgM | FedAdam | FedYogi, Field(discriminator="name")]


# --- how sites are combined ---------------------------------------------------------------------


class Mean(Section):
    """The mean weighted by the cases that use the group: exact, streamed, and any one site can
    move it as far as it likes."""

    name: Literal["mean"] = "mean"


class Median(Section):
    """The median of each coordinate; each site counts once."""

    name: Literal["median"] = "median"


class TrimmedMean(Section):
    """The mean of each coordinate without its extremes; each site counts once.

    ``share`` of the sites is left out at each end, rounded up; Yin et al. ask for at least the
    share of bad sites. A design value: 0.1 leaves out 1 at each end of 3 to 10 sites.
    """

    name: Literal["trimmed-mean"] = "trimmed-mean"
    share: float = Field(default=0.1, gt=0, lt=0.5)


class NormClip(Section):
    """The mean of changes none of which is longer than a limit.

    ``max_norm`` is the limit for each group (L2); None takes the median of the round's norms.
    ``weighted`` counts cases, as Sun et al. do; by default each site counts once, because the
    number of its cases is a site's own claim.
    """

    name: Literal["norm-clip"] = "norm-clip"
    max_norm: float | None = Field(default=None, gt=0, le=1e6)
    weighted: bool = False


RobustRule = Median | TrimmedMean | NormClip
Combine = Annotated[Mean | Median | TrimmedMean | NormClip, Field(discriminator="name")]


# --- what happens at the sites ------------------------------------------------------------------


class Plain(Section):
    """The site minimises its own loss."""

    name: Literal["plain"] = "plain"


class FedProx(Section):
    """A pull towards the round's weights. Li et al. (2020) tune mu over 0.001, 0.01, 0.1 and 1."""

    name: Literal["fedprox"] = "fedprox"
    mu: float = Field(default=0.01, ge=0, le=100)


class Scaffold(Section):
    """Control variates: twice the traffic, and a site keeps its control between rounds.

    The server's learning rate is that of the step; Karimireddy et al. (2020) use 1.
    """

    name: Literal["scaffold"] = "scaffold"


LocalObjective = Annotated[Plain | FedProx | Scaffold, Field(discriminator="name")]


class NotPersonal(Section):
    """Every site uses the shared model."""

    name: Literal["none"] = "none"


class Ditto(Section):
    """A second model at each site, pulled towards the shared one; training takes twice as long.

    Li et al. (2021) choose ``strength`` (their lambda) for each site on its validation cases.
    0 trains alone, a large one stays at the shared model. A design value.
    """

    name: Literal["ditto"] = "ditto"
    strength: float = Field(default=0.1, ge=0, le=100)


class FineTuning(Section):
    """After the last round a site trains the shared model on, on its own cases.

    ``groups`` are those it trains (None: all that it can), at ``rate_share`` of the run's learning
    rate. Design values.
    """

    name: Literal["fine-tuning"] = "fine-tuning"
    epochs: int = Field(default=2, ge=1, le=100)
    rate_share: float = Field(default=0.1, gt=0, le=1)
    groups: tuple[GroupName, ...] | None = None


Personal = Annotated[NotPersonal | Ditto | FineTuning, Field(discriminator="name")]


# --- all of it ----------------------------------------------------------------------------------


class StrategyConfig(Section):
    """``run.strategy``: one choice of each kind; the encoders of ``private_groups`` never leave a
    site. (Head and clinical inputs are shared: the temperature is one for all sites.) SCAFFOLD's
    step is FedAvg, also if it is not said."""

    combine: Combine = Mean()
    step: ServerStep = FedAvgM()
    local: LocalObjective = Plain()
    personal: Personal = NotPersonal()
    private_groups: tuple[EncoderName, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _step_of_scaffold(cls, given: Any) -> Any:
        if isinstance(given, dict) and "step" not in given:
            local = given.get("local")
            if local == Scaffold() or (isinstance(local, dict) and local.get("name") == "scaffold"):
                return given | {"step": FedAvg()}
        return given

    @model_validator(mode="after")
    def _check_private(self) -> StrategyConfig:
        if len(set(self.private_groups)) != len(self.private_groups):
            raise ValueError("private_groups: expected each group once, got one twice")
        return self

    @model_validator(mode="after")
    def _check_controls(self) -> StrategyConfig:
        if self.local.name == "scaffold" and (self.combine.name, self.step.name) != (
            "mean",
            "fedavg",
        ):
            raise ValueError(
                "local: scaffold needs combine: mean and step: fedavg, for the server's control "
                f"must be the mean of the sites', got {self.combine.name} and {self.step.name}"
            )
        return self

    def __str__(self) -> str:
        """In a few words, e.g. "fedavg" or "fedadam, fedprox, private us"."""
        words: list[str] = [self.step.name]
        if self.combine.name != "mean":
            words.append(self.combine.name)
        if self.local.name != "plain":
            words.append(self.local.name)
        if self.personal.name != "none":
            words.append(self.personal.name)
        return ", ".join([*words, *(f"private {group}" for group in self.private_groups)])


# --- traffic ------------------------------------------------------------------------------------


Travels = Literal["float32", "int16", "int8", "int4"]
"""How a vector travels: whole, or encoded in so many bits (her2_common.encoding)."""


class Compression(Section):
    """``run.compression``: how a site's change (``up``) and the model's (``down``) are rounded.

    ``keep`` and ``down_keep`` are the share of an encoder's values that is sent, the largest ones;
    head and clinical inputs are always sent whole. What is not sent is sent later (error feedback).
    """

    up: Travels = "float32"
    keep: float = Field(default=1.0, gt=0, le=1)
    down: Travels = "float32"
    down_keep: float = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _check_shares(self) -> Compression:
        for key, kind, share in (
            ("keep", self.up, self.keep),
            ("down_keep", self.down, self.down_keep),
        ):
            if kind == "float32" and share < 1:
                raise ValueError(f"{key}: expected 1 with float32, got {share:g}")
        return self
