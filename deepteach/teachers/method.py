"""A method: a teacher, how it is taught, and what the student is trained on.

A recipe makes one for the run at hand. To add a method to the package, put a recipe in a new
file of this folder; nothing else is edited (docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch

from deepteach.core.adjoint.base import AbstractAdjoint
from deepteach.core.teacher import AbstractTeacher
from deepteach.data.tasks.base import Task
from deepteach.data.tasks.classification import Classification
from deepteach.errors import ConfigError
from deepteach.teachers.curriculum import Curriculum

Parameters = list[torch.nn.Parameter]


@dataclass(frozen=True)
class MethodContext:
    """The run that a method is made for: all that a recipe may depend on."""

    classes: int
    """C, the number of classes."""
    width: int
    """Numbers in the internal state of one sample."""
    steps: int
    """Optimizer steps of one training of the student."""
    seed: int = 0
    """The run's; for what the recipe itself draws."""
    teacher_from: str | None = None
    """Folder of a finished run whose teacher, or weights, are used."""
    counts: tuple[int, ...] = ()
    """Training samples of each class, or with each label; empty where labels are quantities."""
    trusted_counts: tuple[int, ...] = ()
    """Trusted samples, likewise."""
    samples: int = 0
    """n, the number of training samples: the indices from n on are trusted ones."""
    group_counts: tuple[int, ...] = ()
    """Training samples of each source; empty where none are known."""
    task: Task = Classification()
    """What the labels are; the number of classes is filled in."""

    @property
    def groups(self) -> int:
        """Sources of the training samples; 0 where none are known."""
        return len(self.group_counts)

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", replace(self.task, classes=self.classes))


def teacher_adam(parameters: Parameters, rate: float, decay: float) -> torch.optim.Optimizer:
    """Adam with L2 regularisation `decay`: the teacher's optimizer unless a method names one."""
    return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)


def teacher_nesterov(parameters: Parameters, rate: float, decay: float) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum 0.9."""
    return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=decay, nesterov=True)


@dataclass(frozen=True)
class Method:
    """A teacher, how it learns, and what on; None where run, teacher or Coach decides."""

    teacher: AbstractTeacher
    adjoint: AbstractAdjoint | None = None
    """How its meta-gradient is computed."""
    interval: int | None = None
    """Optimizer steps between its updates (K)."""
    window: int | None = None
    """Steps that the meta-gradient looks back through (B <= K)."""
    teacher_rate: float = 1e-2
    """Learning rate of its own optimizer at the start."""
    teacher_decay: float = 0.0
    """L2 regularisation of its parameters."""
    make_optimizer: Callable[[Parameters, float, float], torch.optim.Optimizer] = teacher_adam
    """From parameters, `teacher_rate` and `teacher_decay`."""
    follows_schedule: bool = True
    """The teacher's rate drops with the student's."""
    validation_loss: str | None = None
    """What it lowers: a name of `core.losses.VALIDATION_LOSSES`."""
    curriculum: Curriculum = field(default_factory=Curriculum)
    """What each epoch draws from; all training samples unless it says otherwise."""

    def optimizer(self) -> torch.optim.Optimizer | None:
        """The teacher's optimizer; None where it has nothing to learn."""
        parameters = [leaf for leaf in self.teacher.parameters() if leaf.requires_grad]
        if not parameters:
            return None
        return self.make_optimizer(parameters, self.teacher_rate, self.teacher_decay)


Recipe = Callable[..., Method]
"""`(context, **settings) -> Method`; the settings have defaults, and types to check."""

METHODS: dict[str, Recipe] = {}
"""Every recipe by its name; filled by `recipe`, put in order by the registry."""

R = TypeVar("R", bound=Recipe)


def recipe(name: str) -> Callable[[R], R]:
    """Make a recipe known as `--method NAME`.

    Raises:
        ConfigError: another recipe has that name, or no command line could write it.
    """
    if not name or set(name) & set("+:=, "):
        raise ConfigError(f"a method's name has none of '+:=, ' in it, got {name!r}")

    def named(function: R) -> R:
        first = METHODS.setdefault(name, function)
        if (first.__module__, first.__name__) != (function.__module__, function.__name__):
            raise ConfigError(f"method {name!r} is that of {first.__module__}: choose another name")
        METHODS[name] = function  # a module may be loaded again, as in a notebook
        return function

    return named
