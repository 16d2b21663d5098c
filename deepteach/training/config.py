"""The one typed configuration of a run: what a file may say, what a flag may say.

Sources, later ones winning: the defaults below, a YAML file, command-line flags.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

from deepteach.errors import ConfigError
from deepteach.names import hint
from deepteach.runs import safe_yaml as strict

NoiseKind = Literal["none", "uniform", "flip", "mwn-uniform", "mwn-flip"]


Adjoint = Literal[
    "method", "reversed", "stored", "checkpointed", "unrolled", "lookahead", "first-order"
]


class NoiseConfig(BaseModel):
    """Label noise added to the training labels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: NoiseKind = Field(
        default="none", description="none, uniform, flip, mwn-uniform or mwn-flip"
    )
    rate: float = Field(default=0.0, ge=0, le=1, description="share of labels drawn anew")
    seed: int | None = Field(default=None, ge=0, lt=2**32, description="default: the run's seed")

    @model_validator(mode="after")
    def _agree(self) -> NoiseConfig:
        if (self.kind == "none") != (self.rate == 0):
            raise ValueError(
                f"noise.kind {self.kind} and noise.rate {self.rate:g} do not agree: give both"
            )
        return self


class Config(BaseModel):
    """A run. `None` means that the run decides, as the description says."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    data: str = Field(
        default="digits",
        description="digits, npz:PATH, csv:PATH, folder:PATH, cifar10:DIR, cifar100:DIR",
    )
    valid_size: int | None = Field(default=None, gt=0, description="trusted samples to split off")
    noise: NoiseConfig = Field(default_factory=NoiseConfig)
    student: str = Field(
        default="auto", description="cnn, mlp, resnet8, ..., or package.module:function"
    )
    internal: str | None = Field(default=None, description="layer whose input the teacher reads")
    pool: Literal["none", "avg"] = Field(
        default="none", description="avg: the mean of each feature map is the teacher's input"
    )
    method: str = Field(
        default="deep", description="deep, paper, uniform, mwn, ...; settings: focal+gamma=0.5"
    )
    interval: int | None = Field(
        default=None,
        gt=0,
        description="steps between teacher updates (default: at least 200 updates)",
    )
    window: int | None = Field(
        default=None, gt=0, description="steps the meta-gradient looks back through (default: 2)"
    )
    adjoint: Adjoint = Field(default="method", description="how the meta-gradient is computed")
    through_weights: bool = Field(
        default=False, description="differentiate through the weights too"
    )
    validation_loss: Literal["method", "nll", "expected_accuracy", "smooth_error"] = Field(
        default="method", description="what the teacher lowers (default: nll for most methods)"
    )
    teacher_lr: float | None = Field(default=None, gt=0, le=10, description="default: the method's")
    teacher_from: str | None = Field(
        default=None, description="a finished run whose teacher is used, and learns no more"
    )
    epochs: int = Field(default=60, gt=0, le=1_000_000)
    batch_size: int = Field(default=64, gt=0, le=10_000_000)
    valid_batch: int = Field(default=256, gt=0, description="trusted samples per teacher update")
    lr: float = Field(default=0.05, gt=0, le=1e3)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0, le=1e3)
    milestones: tuple[NonNegativeInt, ...] | None = Field(
        default=None, description="epochs that divide the rate by 10 (default: 2/3 and 5/6 of them)"
    )
    augment: bool = Field(default=False, description="reflect-pad 4, random crop, mirror (images)")
    seed: int = Field(default=0, ge=0, lt=2**32)
    baseline: bool = Field(default=True, description="train plainly on the same schedule, too")
    beside: tuple[str, ...] = Field(
        default=(), description="more methods to train on the same schedule"
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1")
    threads: int | None = Field(
        default=None, gt=0, le=4096, description="CPU threads (default: torch's)"
    )
    out: str | None = Field(
        default=None, description="the run's folder (default: a new one in runs/)"
    )

    @property
    def decay_epochs(self) -> tuple[int, ...]:
        if self.milestones is not None:
            return self.milestones
        return (self.epochs * 2 // 3, self.epochs * 5 // 6)


RUNTIME_KEYS = frozenset({"out", "device", "threads"})
"""Keys that may differ when a run is resumed."""


def demo() -> dict[str, Any]:
    """What `deepteach train` does where no data is named: digits with 40 % flipped labels.

    Forty epochs are enough for plain training to learn the wrong labels by heart. One thread:
    the student is so small that more of them only wait for each other.
    """
    noise = {"kind": "flip", "rate": 0.4}
    return {"data": "digits", "noise": noise, "student": "mlp", "epochs": 40, "threads": 1}


def make(values: dict[str, Any]) -> Config:
    """Validate settings. Raises ConfigError: one line, the key, the nearest known key."""
    if "data" not in values and "noise" not in values:
        values = {**demo(), **values}
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_lines(error))) from None


def read(path: str | Path) -> dict[str, Any]:
    """A YAML mapping of settings, by a loader that refuses tags and duplicate keys."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from None
    try:
        values = strict.load(text)
    except ValueError as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{path} is not plain YAML: {reason}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, got {type(values).__name__}")
    return values


def dump(config: Config) -> str:
    """YAML that `read` and `make` turn into the same configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Every settable key, nested ones with dots."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from known_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def unknown_key(key: str) -> str:
    """The message for a key that is no setting."""
    told = hint(key, known_keys()) or "; see deepteach train --help"
    return f"unknown key {key!r}{told}"


def _lines(error: ValidationError) -> Iterator[str]:
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            yield unknown_key(key)
        elif item["type"] == "value_error":
            yield str(item["ctx"]["error"]) if "ctx" in item else item["msg"]
        else:
            yield f"{key}: {item['msg'].lower()}, got {item['input']!r}"
