"""How far a window's meta-gradient can be trusted and what it costs, measured on copies.

Nothing that is measured here changes the run: students, optimizers and teachers are copied,
random draws are undone.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepteach.core.adjoint.base import FINITE_DIFFERENCE, AbstractAdjoint
from deepteach.core.adjoint.reversed import Reversed
from deepteach.core.adjoint.stored import Stored
from deepteach.core.coach import Coach
from deepteach.core.derivatives.finite_differences import LONGEST_WINDOW
from deepteach.core.logits import logits_of
from deepteach.core.losses import SampleLoss, cross_entropy
from deepteach.core.update import UpdateRecord
from deepteach.rng import replayed, stream
from deepteach.training.build import Built
from deepteach.training.clock import seconds
from deepteach.training.step import StepRule
from deepteach.tree import cosine

LONGER, LONGEST = 4, 20
"""The window is compared with one four times as long, of 20 steps at most."""

REPEATS = 3

Batch = tuple[Any, ...]
"""Inputs and labels, and where they are known index and group, as `StepRule.take` takes them."""


@dataclass(frozen=True)
class Case:
    """A student and its batches, to measure on.

    `coach(adjoint, window)` is fresh, on copies, with interval = window; `batch(number)` is
    a training batch, `trusted` the trusted one.
    """

    coach: Callable[[AbstractAdjoint, int], Coach]
    batch: Callable[[int], Batch]
    trusted: tuple[Tensor, Tensor]
    step_rule: StepRule = StepRule()
    loss: SampleLoss = cross_entropy


@dataclass(frozen=True)
class Quality:
    """One measurement. Costs are medians, in plain training steps.

    `cosine` is that of the window's meta-gradient to the one of `longer` steps, None where
    the window is too long for that; `differences` that of its finite-difference form to the
    exact one, None where that is refused. `drift` is None where the adjoint
    recovers nothing.
    """

    window: int
    longer: int
    cosine: float | None
    differences: float | None
    drift: float | None
    effective_sample_size: float
    plain_seconds: float
    taught_steps: float
    update_steps: float


def measure(case: Case, adjoint: AbstractAdjoint, window: int) -> Quality:
    """Train copies for a few steps and look back through `window` of them."""
    with replayed(None):
        longer = max(window, min(LONGER * window, LONGEST))
        cosines = _cosines(case, window, longer)
        seconds, record = _seconds(case, adjoint, window)
    return Quality(
        window=window,
        longer=longer,
        cosine=cosines[0],
        differences=cosines[1],
        drift=record.drift,
        effective_sample_size=record.effective_sample_size,
        plain_seconds=seconds["plain"],
        taught_steps=seconds["taught"] / seconds["plain"],
        update_steps=seconds["update"] / seconds["plain"],
    )


def of(built: Built) -> Quality | None:
    """The quality of a run at its present step.

    None where no window is looked back through, or where the passes are in half precision:
    what is exact to compare with is then unknown.
    """
    loop, coach = built.loop, built.loop.coach
    learns = any(leaf.requires_grad for leaf in coach.teacher.parameters())
    looks_back = isinstance(coach.adjoint, Reversed | Stored)
    if not learns or not looks_back or loop.step_rule.precision != "float32":
        return None
    order = torch.randperm(len(loop.y), generator=stream(loop.seed, "quality", 0))
    size = loop.schedule.batch_size

    def batch(number: int) -> Batch:
        rows = torch.arange(number * size, (number + 1) * size) % len(order)
        index = order[rows].to(loop.device)
        return *loop.samples(index), index, loop.data.groups(index)

    trusted, loss = loop.trusted(loop.step), coach.objective.loss
    case = Case(built.copied, batch, trusted, loop.step_rule, loss)
    return measure(case, copy.deepcopy(coach.adjoint), coach.window)


def _cosines(case: Case, window: int, longer: int) -> tuple[float | None, float | None]:
    """Of the window's gradient to a longer one's, and of its differences to the exact form."""
    coach = case.coach(Stored(), longer)
    coach.trust(case.trusted)
    for number in range(longer):
        case.step_rule.take(coach, *case.batch(number))
    far = coach.meta_gradient(*case.trusted)
    same = longer == window
    near = far if same else coach.meta_gradient(*case.trusted, window=window)
    differences = None
    if coach.objective.held and window <= LONGEST_WINDOW:
        rough = Stored(derivatives=FINITE_DIFFERENCE)
        found = coach.meta_gradient(*case.trusted, window=window, adjoint=rough)
        differences = cosine(found, near)
    return (None if same else cosine(near, far)), differences


def _seconds(
    case: Case, adjoint: AbstractAdjoint, window: int
) -> tuple[dict[str, float], UpdateRecord]:
    """Medians of a plain step, a taught step and an update, in turn; the last update."""
    coach = case.coach(adjoint, window)
    coach.trust(case.trusted)
    module, device = copy.deepcopy(coach.student.module), case.trusted[0].device
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)
    times: dict[str, list[float]] = {"plain": [], "taught": [], "update": []}
    for repeat in range(REPEATS + 1):
        for number in range(window):
            batch = case.batch(number)
            plain = _timed(
                device, lambda batch=batch: _plain_step(module, optimizer, case.loss, *batch[:2])
            )
            taught = _timed(device, lambda batch=batch: case.step_rule.take(coach, *batch))
            if repeat:  # the first round warms up
                times["plain"].append(plain)
                times["taught"].append(taught)
        update = _timed(device, lambda: coach.update(case.trusted))
        if repeat:
            times["update"].append(update)
    assert coach.last_record is not None
    return {name: statistics.median(taken) for name, taken in times.items()}, coach.last_record


def _plain_step(
    module: nn.Module, optimizer: torch.optim.Optimizer, loss: SampleLoss, x: Tensor, y: Tensor
) -> None:
    optimizer.zero_grad()
    loss(logits_of(module(x)), y).mean().backward()
    optimizer.step()


def _timed(device: torch.device, action: Callable[[], object]) -> float:
    started = seconds(device)
    action()
    return seconds(device) - started
