"""What a user names, or brings along: the optimizer and the loss of a run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch

from deepteach.core.losses import SampleLoss
from deepteach.data.augment import Augmentation
from deepteach.errors import ConfigError
from deepteach.names import brief, called, imported, is_path, known
from deepteach.training.config import Config
from deepteach.training.optimizers import OPTIMIZERS, Parameters

OptimizerOf = Callable[[Parameters], torch.optim.Optimizer]

ELSEWHERE = {
    "world": "it takes the data as they are, so change the arrays with "
    "deepteach.data.worlds.changed",
    "noise": "it takes labels as they are, so change them with deepteach.data.noise and pass "
    "y_clean",
    "method": "name the method by the argument teacher, as in teacher='focal'",
    "student": "give the model, or the name of one, as the first argument",
}
"""Settings of the command line for which `train` has something else."""


@dataclass(frozen=True)
class Overrides:
    """Python objects of the user's, each in the place of a name in the configuration."""

    optimizer: Callable[..., torch.optim.Optimizer] | None = None
    loss: SampleLoss | None = None
    augment: Augmentation | None = None


def refuse_misplaced(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for settings that `train` takes in another place or form."""
    for name, told in ELSEWHERE.items():
        if settings.get(name) is not None:
            raise ConfigError(f"train has no setting {name}: {told}")
    if isinstance(settings.get("optimizer"), torch.optim.Optimizer):
        kind = type(settings["optimizer"]).__name__
        raise ConfigError(
            f"optimizer is an object of type {kind}, and a run makes several: give a function of "
            f"the parameters, as lambda parameters: {kind}(parameters, lr=0.1)"
        )


def name_of(value: object) -> str:
    """What the configuration calls an object: its path where it has one."""
    module = getattr(value, "__module__", type(value).__module__)
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{module}:{name}" if is_path(f"{module}:{name}") else f"{module}:unnamed"


def optimizer_of(config: Config, overrides: Overrides) -> OptimizerOf:
    """A function of the parameters that makes the student's optimizer.

    A user's own takes the parameters first, and those of `lr`, `momentum` and `weight_decay`
    that its signature names.

    Raises:
        ConfigError: here, an unknown name or path; when called, settings that the optimizer
            refuses, or something that is no optimizer.
    """
    own = overrides.optimizer is not None or is_path(config.optimizer)
    if overrides.optimizer is not None:
        factory: Any = overrides.optimizer
    elif own:
        factory = imported("optimizer", config.optimizer)
    else:
        factory = known("optimizer", config.optimizer, OPTIMIZERS)
    name = config.optimizer
    rates = {"lr": config.lr, "momentum": config.momentum, "weight_decay": config.weight_decay}

    def make(leaves: Parameters) -> torch.optim.Optimizer:
        if not own:
            try:
                return factory(leaves, **rates)
            except ValueError as error:
                reason = brief(error).partition(": ")[2]
                raise ConfigError(f"optimizer {name!r} refuses its settings: {reason}") from None
        found = called("optimizer", name, functools.partial(factory, leaves), **rates)
        if not isinstance(found, torch.optim.Optimizer):
            raise ConfigError(
                f"optimizer {name!r} returned type {type(found).__name__}: expected a "
                "torch.optim.Optimizer of the parameters that it is given"
            )
        return found

    return make


def loss_of(config: Config, overrides: Overrides) -> SampleLoss | None:
    """`(logits, y) -> (batch,)`; None for cross-entropy."""
    if overrides.loss is not None or config.loss is None:
        return overrides.loss
    found: Any = imported("loss", config.loss)
    if isinstance(found, type) or not callable(found):
        raise ConfigError(
            f"loss {config.loss!r} is of type {type(found).__name__}: expected a function of "
            "(logits, y) that returns one value a sample"
        )
    return cast(SampleLoss, found)
