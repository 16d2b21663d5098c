"""Examine a student before a run: derivatives, replay, and what a teacher update will cost."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepteach.core.adjoint.base import AbstractAdjoint
from deepteach.core.adjoint.registry import ADJOINTS
from deepteach.core.adjoint.reversed import Reversed
from deepteach.core.adjoint.stored import Stored
from deepteach.core.adjoint.unrolled import Unrolled
from deepteach.core.coach import Coach
from deepteach.core.student import Student
from deepteach.data.dataset import Data
from deepteach.errors import ConfigError, NumericError
from deepteach.teachers.features import Internal, Label
from deepteach.teachers.linear import Teacher
from deepteach.training.build import resolve_student, state_width
from deepteach.training.config import Config
from deepteach.training.diagnostics import Case, measure, taught_step
from deepteach.tree import Params, cosine, distance, norm

LR = 0.01
LOOK_BACK = ("reversed", "stored", "checkpointed", "unrolled")


@dataclass(frozen=True)
class Patient:
    """A student, an untouched module to copy for each test, and its first batches."""

    module: nn.Module
    internal: str
    width: int
    data: Data
    batch: int

    def coach(self, adjoint: AbstractAdjoint, window: int, dtype: torch.dtype) -> Coach:
        """A fresh coach; nothing that is examined changes the module."""
        module = copy.deepcopy(self.module).to(dtype).train()
        torch.manual_seed(0)
        teacher = Teacher([Internal(self.width), Label(self.data.classes)]).to(dtype)
        optimizer = torch.optim.SGD(module.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
        student = Student(module, self.internal)
        return Coach(student, optimizer, teacher, interval=window, window=window, adjoint=adjoint)

    def rows(self, number: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        rows = torch.arange(number * self.batch, (number + 1) * self.batch)
        rows = rows % len(self.data.y_train)
        return self.data.x_train[rows].to(dtype), self.data.y_train[rows]

    def trusted(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.data.x_valid[: self.batch].to(dtype), self.data.y_valid[: self.batch]


def examine(config: Config, data: Data) -> Iterator[str]:
    """Findings, a line each.

    Raises:
        ConfigError: the student cannot be taught exactly; with the remedy.
    """
    window, interval = config.window or 2, config.interval or 20
    if window > interval:
        raise ConfigError(
            f"window {window} is more than interval {interval}: lower the window or raise the "
            "interval"
        )
    module, internal = resolve_student(config, data)
    width = state_width(Student(module, internal), data, config.student)
    count = sum(leaf.numel() for leaf in module.parameters())
    yield f"student: {count:,} parameters; internal state: input of {internal!r}, {width} wide"
    patient = Patient(module, internal, width, data, min(config.batch_size, len(data.y_train)))
    yield from _derivatives(patient, window)
    adjoint = ADJOINTS[config.adjoint] if config.adjoint in LOOK_BACK else Reversed
    yield from _quality(patient, adjoint, window, interval)


def _derivatives(patient: Patient, window: int) -> Iterator[str]:
    coach = patient.coach(Stored(), window, torch.float64)
    exact = _meta_gradient(patient, coach, window, torch.float64)
    yield "replay: deterministic (each recorded step gave its losses again)"
    unrolled = patient.coach(Unrolled(), window, torch.float64)
    error = distance(exact, _meta_gradient(patient, unrolled, window, torch.float64))
    yield f"meta-gradient: {error:.0e} from plain autograd through the window, in float64"
    if norm(exact) == 0 or error > 1e-6:
        raise ConfigError(
            "the meta-gradient is zero or wrong for this student: look for .detach(), "
            "torch.no_grad() or in-place changes of parameters in its forward pass"
        )
    single = patient.coach(Stored(), window, torch.float32)
    rough = _meta_gradient(patient, single, window, torch.float32)
    # Kernels differ by precision: the run's own says which rules it has.
    if single.objective.forward_mode:
        yield "teacher term: forward mode"
    else:
        yield "teacher term: double backward (an operation has no forward-mode rule; dearer)"
    agreement = cosine({name: leaf.double() for name, leaf in rough.items()}, exact)
    yield f"precision: cosine {agreement:.6f} between the float32 and float64 meta-gradients"


def _meta_gradient(patient: Patient, coach: Coach, window: int, dtype: torch.dtype) -> Params:
    try:
        for number in range(window):
            taught_step(coach, *patient.rows(number, dtype))
        return coach.meta_gradient(*patient.trusted(dtype))
    except NumericError as error:
        raise ConfigError(f"the student cannot be replayed: {error}") from None
    except (NotImplementedError, RuntimeError) as error:
        raise ConfigError(
            f"the student cannot be differentiated twice ({' '.join(str(error).split())[:160]}): "
            "replace that operation by one with a second derivative"
        ) from None


def _quality(
    patient: Patient, adjoint: Callable[[], AbstractAdjoint], window: int, interval: int
) -> Iterator[str]:
    """How much the window sees, and what it costs."""
    measured = measure(
        Case(
            coach=lambda adjoint, steps: patient.coach(adjoint, steps, torch.float32),
            batch=lambda number: patient.rows(number, torch.float32),
            trusted=patient.trusted(torch.float32),
            adjoint=adjoint,
            window=window,
        )
    )
    if measured.cosine is not None:
        yield (
            f"window: cosine {measured.cosine:.3f} between the meta-gradients of {window} and "
            f"{measured.longer} steps back"
        )
    if measured.differences is not None:
        yield f"finite differences: cosine {measured.differences:.6f} to the exact meta-gradient"
    if measured.drift is not None:
        yield f"reversal: a drift of {measured.drift:.0e} over the window"
    yield f"weights: effective sample size {measured.effective_sample_size:.0%} of a batch"
    yield (
        f"cost: a plain step takes {measured.plain_seconds * 1e3:.1f} ms; a taught one "
        f"{measured.taught_steps:.2f} and a teacher update {measured.update_steps:.2f} times that"
    )
    yield f"in all {measured.overhead(interval):+.0%} at interval {interval}, window {window}"
