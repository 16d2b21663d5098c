"""The package's own default: a linear teacher of the trusted probe; and its controls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch

from deepteach.errors import ConfigError
from deepteach.runs.reader import open_run
from deepteach.teachers.controls import RandomNumbers, Shuffled, noise_gradients
from deepteach.teachers.frozen import Frozen, Given
from deepteach.teachers.linear import Teacher
from deepteach.teachers.method import Method, MethodContext, Parameters, recipe, teacher_adam
from deepteach.teachers.trusted_probe import TrustedProbe
from deepteach.teachers.trusted_set import FineTuned

Control = Literal["none", "shuffled", "frozen", "random-features", "random-gradient"]


@recipe("deep")
def deep(context: MethodContext, control: Control = "none", fine_tune: float = 0.0) -> Method:
    """The default: a trusted probe of the internal states, read by a linear teacher.

    An MLP in its place was no more accurate and ranked wrong labels far worse (LOG.md).
    `fine_tune` is the share of the epochs, the last ones, that train on the trusted set alone.
    A `control` takes one part of its signal away; if it does as well, that part did nothing.

    Raises:
        ConfigError: both at once, or a frozen teacher without `teacher_from`.
    """
    whole = Method(Teacher([TrustedProbe()]), teacher_rate=3e-2)
    if fine_tune and control != "none":
        raise ConfigError("fine_tune and control cannot be combined: choose one")
    if fine_tune:
        return replace(whole, curriculum=FineTuned(fine_tune))
    match control:
        case "none":
            return whole
        case "shuffled":
            return replace(whole, teacher=Shuffled(whole.teacher, context.seed))
        case "random-features":
            features = RandomNumbers(TrustedProbe.width, context.seed)
            return replace(whole, teacher=Teacher([features]))
        case "random-gradient":
            return replace(whole, make_optimizer=_noisy_adam(context.seed))
        case "frozen":
            return _frozen(context.teacher_from)


def _noisy_adam(seed: int) -> Callable[[Parameters, float, float], torch.optim.Optimizer]:
    def make(parameters: Parameters, rate: float, decay: float) -> torch.optim.Optimizer:
        return noise_gradients(teacher_adam(parameters, rate, decay), seed)

    return make


def _frozen(source: str | None) -> Method:
    if source is None:
        raise ConfigError(
            "control=frozen takes the weights of a finished run: name its folder with teacher_from"
        )
    given = Given()
    return Method(given, curriculum=Frozen(given, open_run(source).weights))
