"""What `--method` names: a teacher, how it is taught, and with which optimizer.

Each recipe is a function of the problem; the training loop knows none of their names.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from deepteach.adjoint import AbstractAdjoint, Reversed
from deepteach.errors import ConfigError
from deepteach.features import Internal, Label, TrustedProbe
from deepteach.lookahead import Lookahead
from deepteach.teacher import AbstractTeacher, MetaWeightNet, Teacher, Uniform


@dataclass(frozen=True)
class Problem:
    """What a recipe may depend on. `width` is that of the internal state."""

    classes: int
    width: int
    steps: int


@dataclass(frozen=True)
class Method:
    """A teacher and how it learns. `interval` and `window` are None where the run decides."""

    teacher: AbstractTeacher
    adjoint: AbstractAdjoint
    interval: int | None = None
    window: int | None = None
    teacher_rate: float = 1e-2
    teacher_decay: float = 0.0

    def optimizer(self) -> torch.optim.Optimizer | None:
        parameters = list(self.teacher.parameters())
        if not parameters:
            return None
        return torch.optim.Adam(parameters, lr=self.teacher_rate, weight_decay=self.teacher_decay)


def uniform(problem: Problem) -> Method:
    """Plain training."""
    return Method(Uniform(), Reversed())


def deep(problem: Problem) -> Method:
    """The default: a trusted probe of the internal states, read by a small MLP."""
    return Method(Teacher([TrustedProbe()], hidden_layers=1, hidden_width=64), Reversed())


def paper(problem: Problem) -> Method:
    """The paper's default, I0 + M0 and a linear teacher (Fan et al., section 3.3)."""
    features = [Internal(problem.width), Label(problem.classes)]
    return Method(Teacher(features), Reversed())


def mwn(problem: Problem) -> Method:
    """Meta-Weight-Net: the loss alone, one lookahead step before every step."""
    return Method(MetaWeightNet(), Lookahead(), interval=1, window=1)


METHODS: dict[str, Callable[[Problem], Method]] = {
    "deep": deep,
    "paper": paper,
    "uniform": uniform,
    "mwn": mwn,
}


def method(name: str, problem: Problem) -> Method:
    """The recipe of that name; an unknown one is refused with the nearest."""
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f", did you mean {near[0]!r}?" if near else f": use one of {', '.join(METHODS)}"
        raise ConfigError(f"unknown method {name!r}{hint}")
    return METHODS[name](problem)
