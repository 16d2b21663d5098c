"""Examine a student before a run: derivatives, replay, and what a teacher update will cost."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepteach.adjoint import AbstractAdjoint, Stored, Unrolled
from deepteach.coach import Coach
from deepteach.config import Config
from deepteach.data import Data
from deepteach.errors import ConfigError, NumericError
from deepteach.features import Internal, Label
from deepteach.objective import cross_entropy
from deepteach.resolve import resolve_student, state_width
from deepteach.student import Student
from deepteach.teacher import Teacher
from deepteach.tree import Params, cosine, distance, norm

REPEATS = 5
LR = 0.01


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
    yield from _cost(patient, window, interval)


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
            _taught_step(coach, *patient.rows(number, dtype))
        return coach.meta_gradient(*patient.trusted(dtype))
    except NumericError as error:
        raise ConfigError(f"the student cannot be replayed: {error}") from None
    except (NotImplementedError, RuntimeError) as error:
        raise ConfigError(
            f"the student cannot be differentiated twice ({' '.join(str(error).split())[:160]}): "
            "replace that operation by one with a second derivative"
        ) from None


def _taught_step(coach: Coach, x: Tensor, y: Tensor) -> None:
    coach.optimizer.zero_grad()
    coach.loss(x, y).backward()
    coach.optimizer.step()


def _plain_step(module: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    outputs = module(x)
    cross_entropy(getattr(outputs, "logits", outputs), y).mean().backward()
    optimizer.step()


def _cost(patient: Patient, window: int, interval: int) -> Iterator[str]:
    """Medians of a few runs, as ratios of a plain training step."""
    x, y = patient.rows(0, torch.float32)
    module = copy.deepcopy(patient.module).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=LR, momentum=0.9)
    coach = patient.coach(Stored(), window, torch.float32)
    plain = _seconds(lambda: _plain_step(module, optimizer, x, y))
    taught = _seconds(lambda: _taught_step(coach, x, y))
    update = _seconds(lambda: coach.meta_gradient(*patient.trusted(torch.float32)))
    overhead = taught / plain - 1 + update / plain / interval
    yield (
        f"cost: a plain step takes {plain * 1e3:.1f} ms; a taught one {taught / plain:.2f} and a "
        f"teacher update {update / plain:.2f} times that"
    )
    yield f"in all {overhead:+.0%} at interval {interval}, window {window}"


def _seconds(action: Callable[[], object]) -> float:
    action()
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)
