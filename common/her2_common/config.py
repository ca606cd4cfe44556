"""site.yaml and federation.yaml as frozen schemas.

Unknown keys are refused with the nearest valid name; relative paths are resolved against the
file they stand in; every fault is reported as "file: key: expected X, got Y".
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from her2_common.cases import PCR_LABELS, Label
from her2_common.documents import DocumentError, parse_yaml
from her2_common.errors import ConfigError
from her2_common.schema_faults import told
from her2_common.section import Section
from her2_common.strategy import Compression, StrategyConfig

FIRST_POST_CONTRAST = 1
"""The phase of a DCE-MRI that every model reads; 0 is the one before contrast."""

Task = Literal["describe", "train", "profile", "evaluate", "compare", "response"]


def _resolve(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str) and info.context:
        try:
            return Path(info.context["folder"]) / Path(value).expanduser()
        except RuntimeError:
            raise ValueError(f"expected a path, got {value!r}: no such user") from None
    return value


ResolvedPath = Annotated[Path, BeforeValidator(_resolve)]
"""A path; a relative one starts at the folder of the file in which it stands."""

Name = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9][a-z0-9-]{0,39}$",
        description="lower-case letters, digits and hyphens, at most 40",
    ),
]
"""Lower-case letters, digits and hyphens, at most 40: names appear in file names and reports."""

MAX_SITE_CASES: Final = 2**24
"""No site has as many patients: the sums over sites hold this many in all."""

MAX_ROUNDS: Final = 10_000

KEPT_ROUNDS: Final = 3
"""Rounds of a run that coordinator and sites keep: the newest, and two to go back to if it is
damaged. ``run.kept_rounds`` may ask for more."""

MAX_UPDATE_NORM: Final = 3.0
"""Longest change of a group by one site in one round, L2, relative to the group's weights: seven
times the longest that was measured over honest runs of the synthetic cohort (0.42)."""

RoundNumber = Annotated[int, Field(ge=0, le=MAX_ROUNDS)]
"""A round of a run; 0 is before the first."""

Seconds = Annotated[float, Field(ge=0, le=31 * 86_400)]
"""Wall time, at most a month."""

Weight = Annotated[float, Field(ge=0, le=1000)]
"""The weight of a term of the loss."""

ADDRESS_FORM = "host:port, no https://, an IPv6 host in brackets, [::1]:8000"

Address = Annotated[
    str,
    Field(
        pattern=r"^([A-Za-z0-9.\-]+|\[[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\]):[0-9]{1,5}$",
        description=ADDRESS_FORM,
    ),
]
"""host:port, without a scheme."""


class SiteSuperLink(Section):
    """How a site reaches the coordinator."""

    address: Address
    root_certificates: ResolvedPath
    private_key: ResolvedPath


class SiteData(Section):
    """Where a site's tables, cache and key lie, and the sizes at which images are kept."""

    cases: ResolvedPath
    lesions: ResolvedPath | None = None
    cache: ResolvedPath
    pseudonym_key_file: ResolvedPath
    image_size: int = Field(default=256, ge=32, le=1024, multiple_of=16)
    volume_size: int = Field(default=96, ge=16, le=256, multiple_of=16)
    mri_phases: tuple[Annotated[int, Field(ge=0, le=20)], ...] = Field(default=(1,), min_length=1)

    @field_validator("mri_phases")
    @classmethod
    def _rising_phases(cls, phases: tuple[int, ...]) -> tuple[int, ...]:
        if list(phases) != sorted(set(phases)) or FIRST_POST_CONTRAST not in phases:
            raise ValueError("expected rising numbers that hold 1, the first phase after contrast")
        return phases


class Policy(Section):
    """What a site allows. What is not allowed here does not happen."""

    allowed_bundles: tuple[str, ...] = ()
    allowed_tasks: tuple[Task, ...] = ("describe", "train", "profile", "evaluate", "compare")
    min_cases: int = Field(default=10, ge=1)
    min_cell: int = Field(default=10, ge=1)
    max_rounds: int = Field(default=1000, ge=1)
    max_queries: int = Field(default=400, ge=0, le=1_000_000)
    allowed_plans: tuple[str, ...] = ()


class SiteConfig(Section):
    """site.yaml."""

    name: Name
    data: SiteData
    superlink: SiteSuperLink
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    resident: Literal["auto", "always", "never"] = "auto"
    rows_at_once: int | None = Field(default=None, ge=1)
    policy: Policy = Policy()
    state: ResolvedPath


class CoordinatorSuperLink(Section):
    """How the coordinator reaches its SuperLink, which runs with ``--isolation process``."""

    address: Address
    root_certificates: ResolvedPath
    superexec_secret_file: ResolvedPath


class Site(Section):
    """A site as the coordinator knows it: its name and the public half of its key (OpenSSH).

    ``max_cases``: a site that counts more patients is refused. Its counts weigh its updates.
    """

    name: Name
    max_cases: int = Field(default=100_000, ge=1, le=MAX_SITE_CASES)
    public_key: str = Field(
        pattern=r"^ecdsa-sha2-nistp(256|384|521) [A-Za-z0-9+/=]+( .*)?$",
        description="an ECDSA key, ecdsa-sha2-... (the line of the site's .pub file)",
    )


class RunConfig(Section):
    """What is trained, and how. Sent to every site with the first message of a run."""

    rounds: int = Field(default=12, ge=1, le=MAX_ROUNDS)
    preset: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,40}$")] = "compact"
    image_size: int | None = Field(default=None, ge=32, le=1024, multiple_of=16)
    volume_size: int | None = Field(default=None, ge=16, le=256, multiple_of=16)
    label: Label = "reference"
    local_epochs: int = Field(default=2, ge=0, le=100)
    batch_size: int = Field(default=12, ge=1, le=1024)
    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    weight_decay: float = Field(default=0.05, ge=0, le=1)
    warmup_rounds: float = Field(default=1.0, ge=0, le=MAX_ROUNDS)
    her2_levels: Literal[2, 3] = 2
    single_weight: Weight = 1.0
    alignment: Literal["l1", "contrastive", "none"] = "l1"
    alignment_weight: Weight = 1.0
    modality_dropout: float = Field(default=0.0, ge=0, lt=1)
    image_noise: float = Field(default=0.6, ge=0, le=2)
    class_balance: Literal["none", "weights", "prior"] = "none"
    strategy: StrategyConfig = StrategyConfig()
    compression: Compression = Compression()
    quorum: int | None = Field(default=None, ge=1, le=10_000)
    round_timeout: Annotated[Seconds, Field(gt=0)] = 3600.0
    start_timeout: Annotated[Seconds, Field(gt=0)] = 600.0
    pause_timeout: Seconds = 86_400.0
    retries: int = Field(default=2, ge=0, le=100)
    patience: int | None = Field(default=None, ge=1, le=MAX_ROUNDS)
    max_update_norm: float | None = Field(default=MAX_UPDATE_NORM, gt=0, le=1e6)
    kept_rounds: int = Field(default=KEPT_ROUNDS, ge=KEPT_ROUNDS, le=1000)
    seed: int = Field(default=0, ge=0, lt=2**63)
    min_cell: int = Field(default=10, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _check_patience(self) -> RunConfig:
        own = self.strategy.private_groups or self.strategy.personal.name == "ditto"
        if own and self.patience is not None:
            raise ValueError(
                "patience: expected none with private_groups or ditto, whose earlier rounds "
                f"a site does not keep, got {self.patience}"
            )
        return self

    @model_validator(mode="after")
    def _check_levels(self) -> RunConfig:
        if self.her2_levels == 3 and self.label in PCR_LABELS:
            raise ValueError(
                f"her2_levels: expected 2 with label: {self.label}, which has no levels, got 3"
            )
        return self

    @property
    def layout(self) -> dict[str, Any]:
        """What decides the shape of the model's weights, as keywords of ``model.preset``."""
        return {
            "image_size": self.image_size,
            "volume_size": self.volume_size,
            "levels": self.her2_levels,
        }


class FederationConfig(Section):
    """federation.yaml."""

    name: Name
    superlink: CoordinatorSuperLink
    sites: tuple[Site, ...] = Field(min_length=1)
    run: RunConfig = RunConfig()
    initial: ResolvedPath | None = None
    initial_sha256: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{64}$",
        description="64 hexadecimal digits, the sha256 of the release's manifest.json",
    )
    synthetic: bool = False
    left_out: Name | None = None

    @model_validator(mode="after")
    def _check_initial(self) -> FederationConfig:
        if self.initial is None and self.initial_sha256 is not None:
            raise ValueError("initial_sha256: expected a release folder in initial, got none")
        return self

    @model_validator(mode="after")
    def _check_keys(self) -> FederationConfig:
        owner: dict[str, str] = {}
        for site in self.sites:
            try:
                load_ssh_public_key(site.public_key.encode())
            except (ValueError, UnsupportedAlgorithm):
                raise ValueError(
                    f"sites: {site.name}: public_key is cut off or not a key"
                ) from None
            other = owner.setdefault(" ".join(site.public_key.split()[:2]), site.name)
            if other != site.name:
                raise ValueError(f"sites: {other} and {site.name} have the same public_key")
        return self

    @model_validator(mode="after")
    def _check_sites(self) -> FederationConfig:
        names = [site.name for site in self.sites]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"expected different site names, got {min(twice)!r} twice")
        if self.left_out is not None and (self.left_out not in names or len(names) < 2):
            raise ValueError(
                f"left_out: expected one of several sites ({', '.join(names)}), "
                f"got {self.left_out!r}"
            )
        if self.left_out is not None and self.run.strategy.private_groups:
            raise ValueError(
                "left_out: expected no run.strategy.private_groups: a site that has not trained "
                "has none of its own"
            )
        most = len(self.training)
        if self.run.quorum is not None and self.run.quorum > most:
            raise ValueError(
                f"expected a run.quorum of at most {most} (the sites), got {self.run.quorum}"
            )
        return self

    @property
    def training(self) -> tuple[str, ...]:
        """The names of the sites that train and validate: all but ``left_out``."""
        return tuple(site.name for site in self.sites if site.name != self.left_out)

    @property
    def quorum(self) -> int:
        """How many sites a round needs: ``run.quorum``, else all that train."""
        most = len(self.training)
        return most if self.run.quorum is None else min(self.run.quorum, most)

    def without(self, names: Collection[str]) -> FederationConfig:
        """The federation without the sites of these names. Its ``run``, which the other sites know,
        stays as it is; the quorum is then no more than are left."""
        kept = tuple(site for site in self.sites if site.name not in names)
        return self.model_copy(update={"sites": kept})


S = TypeVar("S", bound=Section)


def load(schema: type[S], path: Path) -> S:
    """Read ``path`` as ``schema``.

    Raises:
        ConfigError: the file is missing, not YAML, or breaks the schema.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file", hint="go to the folder that holds it, or give its path"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: expected UTF-8, got another encoding") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        document = parse_yaml(text)
    except DocumentError as error:
        line = "" if error.line is None else f", line {error.line}"
        raise ConfigError(f"{path}{line}: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected keys and values, got {type(document).__name__}")
    return parse(schema, document, where=path.name, folder=path.resolve().parent)


def parse(schema: type[S], document: dict[str, Any], *, where: str, folder: Path) -> S:
    """Check ``document`` against ``schema``; ``where`` names it in messages."""
    try:
        return schema.model_validate(document, context={"folder": str(folder)})
    except ValidationError as error:
        raise ConfigError(f"{where}: {told(schema, error)}") from None
