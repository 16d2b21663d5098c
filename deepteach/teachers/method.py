"""A method: a teacher, how it is taught, and what the student is trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from deepteach.core.adjoint.base import AbstractAdjoint
from deepteach.core.teacher import AbstractTeacher
from deepteach.teachers.curriculum import Curriculum

Parameters = list[torch.nn.Parameter]


@dataclass(frozen=True)
class Problem:
    """What a recipe may depend on. `width` is that of the internal state."""

    classes: int
    width: int
    steps: int
    """Steps of one training of the student."""
    seed: int = 0
    teacher_from: str | None = None
    """Folder of a finished run."""


def adam(parameters: Parameters, rate: float, decay: float) -> torch.optim.Optimizer:
    """Adam with the decay added to the gradient."""
    return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)


def nesterov(parameters: Parameters, rate: float, decay: float) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum 0.9."""
    return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=decay, nesterov=True)


@dataclass(frozen=True)
class Method:
    """A teacher, how it learns, and what on.

    `interval` and `window` are None where the run decides, `adjoint` and `validation_loss`
    where the teacher or the Coach does.
    """

    teacher: AbstractTeacher
    adjoint: AbstractAdjoint | None = None
    interval: int | None = None
    window: int | None = None
    teacher_rate: float = 1e-2
    teacher_decay: float = 0.0
    make_optimizer: Callable[[Parameters, float, float], torch.optim.Optimizer] = adam
    follows_schedule: bool = True
    """The teacher's rate drops with the student's."""
    validation_loss: str | None = None
    curriculum: Curriculum = field(default_factory=Curriculum)

    def optimizer(self) -> torch.optim.Optimizer | None:
        parameters = [leaf for leaf in self.teacher.parameters() if leaf.requires_grad]
        if not parameters:
            return None
        return self.make_optimizer(parameters, self.teacher_rate, self.teacher_decay)
