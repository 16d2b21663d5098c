"""The one typed configuration of a run: what a file may say, what a flag may say.

Sources, later ones winning: the defaults below, a YAML file, command-line flags. A new
setting is a new field here, nothing else: its flag, its help and its place in the help's
groups come from it. Long, because every setting stands here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from deepteach.core.adjoint.registry import ADJOINTS
from deepteach.core.losses import VALIDATION_LOSSES
from deepteach.data.noise import Kind
from deepteach.data.tasks.registry import AUTO, TASKS
from deepteach.data.worlds import WORLDS
from deepteach.errors import ConfigError
from deepteach.loggers.registry import LOGGERS
from deepteach.names import expanded, hint, is_path, known, refuse_unwritable
from deepteach.runs import safe_yaml
from deepteach.training.optimizers import OPTIMIZERS
from deepteach.training.schedule import Shape

GROUPS = ("data", "model", "teacher", "training", "run")
"""The groups of the settings, in the order of the help."""

METHODS_OWN = "method"
"""The value of a setting that leaves the choice to the method."""

LOWERED = {METHODS_OWN: None, **VALIDATION_LOSSES}
"""The names of what a teacher may lower."""


def setting(
    default: Any, group: str, description: str = "", *, common: bool = False, **constraints: Any
) -> Any:
    """A field of the configuration, in its group; a `common` one is in the short help."""
    assert group in GROUPS, group
    extra: dict[str, Any] = {"group": group, "common": common}
    return Field(default, description=description, json_schema_extra=extra, **constraints)


def group_of(field: FieldInfo) -> str:
    """The group of a setting."""
    return str(_extra(field)["group"])


def is_common(field: FieldInfo) -> bool:
    """Whether a setting is in the short help."""
    return bool(_extra(field)["common"])


def _extra(field: FieldInfo) -> dict[str, Any]:
    assert isinstance(field.json_schema_extra, dict)
    return dict(field.json_schema_extra)


def _one_of(what: str, names: Mapping[str, Any], *, path: bool = False) -> BeforeValidator:
    """A check that a text is one of `names`, or, where `path` says so, a user's own path."""

    def check(value: Any) -> Any:
        if isinstance(value, str) and not (path and is_path(value)):
            known(what, value, names)
        return value

    return BeforeValidator(check)


def _path_or_none(value: Any) -> Any:
    if isinstance(value, str) and not is_path(value):
        raise ConfigError(f"expected package.module:name, got {value!r}")
    return value


def _path_or_bool(value: Any) -> Any:
    """Text as a flag says it: a path, else what pydantic takes for true or false."""
    if isinstance(value, str) and not is_path(value):
        word = value.strip().lower()
        if word not in _BOOLEANS:
            raise ConfigError(f"expected true, false or package.module:name, got {value!r}")
        return _BOOLEANS[word]
    return value


_BOOLEANS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


def _method_text(value: Any) -> Any:
    """`{name: focal, gamma: 0.5}` is `focal+gamma=0.5`."""
    if not isinstance(value, Mapping):
        return value
    settings = dict(value)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError("a mapping needs the key name, as in {name: focal, gamma: 0.5}")
    return "+".join([name, *(f"{key}={_plain(key, found)}" for key, found in settings.items())])


def _plain(key: Any, value: Any) -> str:
    """A value as it is written behind the name of a method."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value).replace("+", "")  # 1e+30: a plus begins the next setting
    if isinstance(value, str) and "+" not in value:
        return value
    raise ConfigError(f"{key} must be a number, a text without +, true or false, got {value!r}")


def _world_text(value: Any) -> Any:
    if isinstance(value, str) and ":" not in (name := value.partition("+")[0]):
        known("world", name, WORLDS)
    return value


def _finite_or_none(value: float | None) -> float | None:
    return None if value == math.inf else value


def _parts(value: Any) -> Any:
    """`mwn,focal` as a flag has it, or a number, as a list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int) else value


def _count_or_auto(value: Any) -> Any:
    if value != "auto" and not re.fullmatch(r"\d+", str(value)):
        raise ConfigError(f"expected a count of 0 or more, or auto, got {value!r}")
    return value


class _Settings(BaseModel):
    """What holds for every value: it can be written to a file, and true is no number."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_unfit(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name or ""].annotation
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, bool) and bool not in (annotation, *get_args(annotation)):
                raise ValueError(f"expected a number or a name, got {str(part).lower()}")
            if isinstance(part, str):
                refuse_unwritable(part)
        return value


class NoiseConfig(_Settings):
    """Label noise added to the training labels."""

    kind: Kind = setting("none", "data", "flip, uniform, shuffle, ...", common=True)
    rate: float = setting(0.0, "data", "share of labels drawn anew", common=True, ge=0, le=1)
    seed: int | None = setting(None, "data", "default: the run's seed", ge=0, lt=2**32)

    @model_validator(mode="after")
    def _agree(self) -> NoiseConfig:
        if (self.kind == "none") != (self.rate == 0):
            raise ValueError(
                f"noise.kind {self.kind} and noise.rate {self.rate:g} do not agree: give both"
            )
        return self


class Config(_Settings):
    """A run. `None` means that the run decides, as the description says."""

    model_config = ConfigDict(allow_inf_nan=False)

    data: str = setting(
        "digits",
        "data",
        "digits, npz:, csv:, parquet:, manifest:, folder:PATH, cifar10:DIR, package.module:name",
        common=True,
    )
    task: Annotated[str, _one_of("task", {AUTO: None, **TASKS})] = setting(
        AUTO, "data", f"what the labels are: {AUTO}, {', '.join(TASKS)}"
    )
    group: str | None = setting(
        None, "data", "column of a csv, parquet or manifest: the source of each sample"
    )
    world: Annotated[str | None, BeforeValidator(_world_text)] = setting(
        None,
        "data",
        f"a change of the data: {', '.join(WORLDS)} (biased+good=4), or package.module:name",
    )
    valid_size: int | None = setting(
        None, "data", "trusted samples to split off, or to take of those there are", gt=0
    )
    image_size: int | None = setting(
        None, "data", "pixels of a side of images in files (default: the first's)", gt=0, le=10_000
    )
    noise: NoiseConfig = Field(default_factory=NoiseConfig)
    decisions: str | None = setting(None, "data", "csv of index, label: rows checked by a person")
    augment: Annotated[bool | str | None, BeforeValidator(_path_or_bool)] = setting(
        None,
        "data",
        "true: crop, mirror (images in files); package.module:name",
        common=True,
    )

    student: str = setting("auto", "model", "cnn, resnet8, ... or package.module:name", common=True)
    internal: str | None = setting(None, "model", "layer whose input the teacher reads")
    pool: Literal["none", "avg", "tokens"] = setting(
        "none", "model", "avg: the mean of each feature map is the teacher's input"
    )

    method: Annotated[str, BeforeValidator(_method_text)] = setting(
        "deep",
        "teacher",
        "deep, paper, uniform, mwn, ...; settings: focal+gamma=0.5; or package.module:name",
        common=True,
    )
    interval: int | None = setting(
        None,
        "teacher",
        "steps between teacher updates (default: 20 or fewer)",
        common=True,
        gt=0,
    )
    window: int | None = setting(
        None,
        "teacher",
        "steps the meta-gradient looks back through (default: 2)",
        common=True,
        gt=0,
    )
    valid_batch: int = setting(256, "teacher", "trusted samples per teacher update", gt=0)
    adjoint: Annotated[str, _one_of("adjoint", {METHODS_OWN: None, **ADJOINTS})] = setting(
        METHODS_OWN, "teacher", f"how the meta-gradient is computed: {', '.join(ADJOINTS)}"
    )
    micro_batch: int | None = setting(
        None, "teacher", "samples of a step that the meta-gradient takes at a time", gt=0
    )
    graphs: Annotated[int | Literal["auto"], BeforeValidator(_count_or_auto)] = setting(
        0, "teacher", "training passes of a window whose graphs are kept, or auto: memory for time"
    )
    through_weights: bool = setting(False, "teacher", "differentiate through the weights too")
    validation_loss: Annotated[str, _one_of("validation loss", LOWERED)] = setting(
        METHODS_OWN, "teacher", f"what the teacher lowers: {', '.join(LOWERED)}"
    )
    teacher_lr: float | None = setting(None, "teacher", "default: the method's", gt=0, le=10)
    teacher_from: str | None = setting(
        None, "teacher", "a finished run whose teacher is used, and learns no more"
    )

    epochs: int = setting(
        60, "training", "passes through the training samples", common=True, gt=0, le=1_000_000
    )
    batch_size: int = setting(
        64, "training", "samples of a batch", common=True, gt=0, le=10_000_000
    )
    accumulate: int = setting(
        1, "training", "batches whose gradients are added up to one step", gt=0, le=10_000
    )
    optimizer: Annotated[str, _one_of("optimizer", OPTIMIZERS, path=True)] = setting(
        "sgd", "training", f"{', '.join(OPTIMIZERS)} or package.module:name", common=True
    )
    lr: float = setting(0.05, "training", "learning rate at its height", common=True, gt=0, le=1e3)
    schedule: Shape = setting(
        "step", "training", "of the rate: step, cosine, constant", common=True
    )
    warmup: float = setting(0, "training", "epochs in which the rate rises from 0", ge=0, le=1e6)
    momentum: float = setting(0.9, "training", "of Adam: beta_1", ge=0, lt=1)
    weight_decay: float = setting(5e-4, "training", "pull of every parameter to 0", ge=0, le=1e3)
    milestones: Annotated[tuple[NonNegativeInt, ...] | None, BeforeValidator(_parts)] = setting(
        None, "training", "step: epochs that divide the rate by 10 (default: 2/3 and 5/6 of them)"
    )
    loss: Annotated[str | None, BeforeValidator(_path_or_none)] = setting(
        None,
        "training",
        "a sample's loss (logits, y) -> (batch,): package.module:name (default: cross-entropy)",
    )
    clip_norm: Annotated[float | None, AfterValidator(_finite_or_none)] = setting(
        None,
        "training",
        "largest norm of the student's gradient (default: inf, no limit)",
        gt=0,
        allow_inf_nan=True,
    )
    precision: Literal["float32", "bf16"] = setting(
        "float32", "training", "bf16: passes of the student in bfloat16, parameters in float32"
    )
    channels_last: bool = setting(
        False, "training", "convolutions with the channels innermost: faster on many machines"
    )
    ema: float | None = setting(
        None,
        "training",
        "decay of a moving average of the student, evaluated beside it: 0.999 (default: none)",
        gt=0,
        lt=1,
    )
    evaluate_every: int = setting(
        1,
        "training",
        "epochs between two evaluations; the last is always evaluated",
        gt=0,
        le=10**6,
    )

    patience: int | None = setting(
        None,
        "training",
        "evaluations without a better figure on trusted samples that end it (default: none do)",
        gt=0,
        le=10**6,
    )

    workers: int = setting(
        0, "run", "processes that read ahead what is not in memory", ge=0, le=1024
    )

    seed: int = setting(0, "run", "of everything that is drawn", common=True, ge=0, lt=2**32)
    baseline: bool = setting(True, "run", "train plainly on the same schedule, too", common=True)
    beside: Annotated[tuple[str, ...], BeforeValidator(_parts)] = setting(
        (), "run", "more methods to train on the same schedule: mwn,focal", common=True
    )
    device: str = setting("auto", "run", "auto, cpu, cuda, cuda:1")
    threads: int | None = setting(None, "run", "CPU threads (default: torch's)", gt=0, le=4096)
    logger: Annotated[
        tuple[Annotated[str, _one_of("logger", LOGGERS, path=True)], ...], BeforeValidator(_parts)
    ] = setting((), "run", f"{','.join(LOGGERS)} or package.module:name: told of every epoch")
    out: str | None = setting(
        None, "run", "the run's folder (default: a new one in runs/)", common=True
    )

    @model_validator(mode="after")
    def _rates_agree(self) -> Config:
        if self.milestones is not None and self.schedule != "step":
            raise ValueError(
                f"milestones are those of schedule step, not of {self.schedule}: leave one out"
            )
        if self.warmup >= self.epochs:
            raise ValueError(
                f"warmup {self.warmup:g} must end before the last of {self.epochs} epochs does: "
                "lower it, or train longer"
            )
        return self

    @property
    def decay_epochs(self) -> tuple[float, ...]:
        """Epochs done when the rate is divided by 10; within an epoch where there are few."""
        if self.milestones is not None:
            return self.milestones
        if self.epochs < 4:  # whole ones would fall on each other, or on the first step
            return (self.epochs * 2 / 3, self.epochs * 5 / 6)
        return (self.epochs * 2 // 3, self.epochs * 5 // 6)


RUNTIME_KEYS = frozenset({"out", "device", "threads", "workers", "decisions", "logger"})
"""Keys that may differ when a run is resumed; of the decisions, what they say is compared."""


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
    path = expanded(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from None
    try:
        values = safe_yaml.parse(text)
    except ValueError as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{path} is not plain YAML: {reason}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, got {type(values).__name__}")
    return _nested(values, path)


def _nested(values: dict[Any, Any], path: Path) -> dict[str, Any]:
    """Keys with a dot, as flags have them (`noise.kind`), as the mapping that they are of."""
    dotted = {key for key in known_keys() if "." in key and key in values}
    found = {key: value for key, value in values.items() if key not in dotted}
    for key in sorted(dotted):
        owner, _, name = key.partition(".")
        place = found.setdefault(owner, {})
        if not isinstance(place, dict) or name in place:
            raise ConfigError(f"{path} sets {key} twice: leave out one of them")
        found[owner] = {**place, name: values[key]}
    return found


def dump(config: Config) -> str:
    """YAML that `read` and `make` turn into the same configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def fields_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every settable key and its field, nested ones with dots."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields_of(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def known_keys() -> Iterator[str]:
    """Every settable key."""
    return (key for key, _ in fields_of(Config))


def unknown_key(key: str) -> str:
    """The message for a key that is no setting."""
    told = hint(key, known_keys()) or "; see deepteach train --help"
    return f"unknown key {key!r}{told}"


def _shown(value: Any) -> str:
    """A value in a message: on one line, and short."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _lines(error: ValidationError) -> Iterator[str]:
    """Each fault: the key, what is wrong with its value, what it may be."""
    for item in error.errors():
        key, told = ".".join(str(part) for part in item["loc"]), item["msg"].lower()
        if item["type"] == "extra_forbidden":
            yield unknown_key(key)
        elif item["type"] == "value_error":
            told = str(item["ctx"]["error"]) if "ctx" in item else item["msg"]
            yield told if told.startswith(key) else f"{key}: {told}"
        elif item["type"] == "model_type":
            expected = "expected a mapping, as {kind: flip, rate: 0.4}"
            yield f"{key}: {expected}, got {_shown(item['input'])}"
        elif item["type"] == "literal_error":
            expected = re.findall("'([^']*)'", item.get("ctx", {}).get("expected", ""))
            yield f"{key}: {told}, got {_shown(item['input'])}{hint(str(item['input']), expected)}"
        else:
            yield f"{key}: {told}, got {_shown(item['input'])}"
