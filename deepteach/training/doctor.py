"""Examine a student before a run: derivatives, replay, and what a teacher update will cost."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from deepteach.core.adjoint.base import AbstractAdjoint
from deepteach.core.adjoint.registry import ADJOINTS
from deepteach.core.adjoint.reversed import Reversed
from deepteach.core.adjoint.stored import Stored
from deepteach.core.adjoint.unrolled import Unrolled
from deepteach.core.coach import Coach
from deepteach.core.losses import cross_entropy
from deepteach.core.student import Student
from deepteach.data.dataset import Data
from deepteach.distributed.collectives import Ranks
from deepteach.errors import ConfigError, NumericError
from deepteach.teachers.features import Internal, Label
from deepteach.teachers.linear import Teacher
from deepteach.training import build
from deepteach.training.choices import Overrides
from deepteach.training.config import Config
from deepteach.training.diagnostics import Case, measure
from deepteach.training.loop_cost import loop_cost
from deepteach.tree import Params, cosine, distance, norm

LR = 0.01
LOOK_BACK = ("reversed", "stored", "checkpointed", "unrolled")


def case_of(
    module: nn.Module, internal: str, width: int, data: Data, batch: int, dtype: torch.dtype
) -> Case:
    """A student in that precision, with the first batches of its data; `module` stays as it is."""
    loss = data.task.loss or cross_entropy

    def coach(adjoint: AbstractAdjoint, window: int) -> Coach:
        copied = copy.deepcopy(module).to(dtype).train()
        torch.manual_seed(0)
        labels = [Label(data.classes)] if data.task.indices else []
        teacher = Teacher([Internal(width), *labels]).to(dtype)
        optimizer = torch.optim.SGD(copied.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
        student = Student(copied, internal)
        return Coach(
            *(student, optimizer, teacher),
            interval=window,
            window=window,
            adjoint=adjoint,
            loss=loss,
        )

    def rows(number: int) -> tuple[Tensor, Tensor]:
        chosen = torch.arange(number * batch, (number + 1) * batch) % len(data.y_train)
        return data.x_train[chosen].to(dtype), data.task.learned(data.y_train[chosen])

    trusted = data.x_valid[:batch].to(dtype), data.task.learned(data.y_valid[:batch])
    return Case(coach, rows, trusted, loss=loss)


def examine(config: Config, data: Data) -> Iterator[str]:
    """Findings, a line each.

    Raises:
        ConfigError: the student cannot be taught exactly; with the remedy.
    """
    if config.batch_size == 1:
        raise ConfigError(
            "batch_size 1: the weight of a single sample is always 1, so no teacher can be "
            "examined: give 2 or more"
        )
    window, interval = config.window or 2, config.interval or 20
    if window > interval:
        raise ConfigError(
            f"window {window} is more than interval {interval}: lower the window or raise the "
            "interval"
        )
    module, internal = build.student(config, data)
    width = build.state_width(Student(module, internal), data, config.student)
    count = sum(leaf.numel() for leaf in module.parameters())
    yield f"student: {count:,} parameters; internal state: input of {internal!r}, {width} wide"
    batch = min(config.batch_size, len(data.y_train))
    single, double = (
        case_of(module, internal, width, data, batch, dtype)
        for dtype in (torch.float32, torch.float64)
    )
    yield from _derivatives(single, double, window)
    adjoint = ADJOINTS[config.adjoint] if config.adjoint in LOOK_BACK else Reversed
    yield from _quality(single, adjoint(), window)
    added = _added(config, data, module, internal, interval, window)
    yield f"in all {added:+.0%} at interval {interval}, window {window}"


def _derivatives(single: Case, double: Case, window: int) -> Iterator[str]:
    exact = _meta_gradient(double, double.coach(Stored(), window), window)
    yield "replay: deterministic (each recorded step gave its losses again)"
    error = distance(exact, _meta_gradient(double, double.coach(Unrolled(), window), window))
    yield f"meta-gradient: {error:.0e} from plain autograd through the window, in float64"
    if norm(exact) == 0 or error > 1e-6:
        raise ConfigError(
            "the meta-gradient is zero or wrong for this student: look for .detach(), "
            "torch.no_grad() or in-place changes of parameters in its forward pass"
        )
    coach = single.coach(Stored(), window)
    rough = _meta_gradient(single, coach, window)
    # Kernels differ by precision: the run's own says which rules it has.
    if coach.objective.forward_mode:
        yield "teacher term: forward mode"
    else:
        yield "teacher term: double backward (an operation has no forward-mode rule; dearer)"
    agreement = cosine({name: leaf.double() for name, leaf in rough.items()}, exact)
    yield f"precision: cosine {agreement:.6f} between the float32 and float64 meta-gradients"


def _meta_gradient(case: Case, coach: Coach, window: int) -> Params:
    try:
        for number in range(window):
            case.step_rule.take(coach, *case.batch(number))
        return coach.meta_gradient(*case.trusted)
    except NumericError as error:
        raise ConfigError(f"the student cannot be replayed: {error}") from None
    except (NotImplementedError, RuntimeError) as error:
        raise ConfigError(
            f"the student cannot be differentiated twice ({' '.join(str(error).split())[:160]}): "
            "replace that operation by one with a second derivative"
        ) from None


def _added(
    config: Config, data: Data, module: nn.Module, layer: str, interval: int, window: int
) -> float:
    """What the method of the settings adds to a run of this pace, as a fraction of plain steps."""
    paced = config.model_copy(update={"interval": interval, "window": window})
    batch = min(config.batch_size, len(data.y_train))
    paced = paced.model_copy(update={"batch_size": batch, "out": None})
    copied = copy.deepcopy(module).train()
    built = build.training(paced, data, copied, layer, None, Overrides(), Ranks())
    cost = loop_cost(built)
    return 0.0 if cost is None else cost.whole(interval, built.loop.total)


def _quality(case: Case, adjoint: AbstractAdjoint, window: int) -> Iterator[str]:
    """How much the window sees, and what it costs."""
    measured = measure(case, adjoint, window)
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
