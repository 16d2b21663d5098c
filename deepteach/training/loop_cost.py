"""What teaching adds to a run, measured before it on copies of the run's own loop.

A step here is a step of the loop: batch, augmentation and bookkeeping are in it, and whatever the
method does in an update, such as fitting its features. So the figure is that of the whole run.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch

from deepteach.data.rows import readable
from deepteach.rng import stream, untouched
from deepteach.teachers.uniform import Uniform
from deepteach.training.build import Built
from deepteach.training.clock import seconds
from deepteach.training.loop import TrainingLoop

CYCLE = 4
"""Steps between the updates that are measured, at most: an update does not depend on it."""

MEASURED = 16
"""Steps that are measured, at least, after a first cycle."""


@dataclass(frozen=True)
class LoopCost:
    """Seconds: of a `plain` step, a `taught` one, what an `update` adds to it, and the `first`."""

    plain: float
    taught: float
    update: float
    first: float

    def added(self, interval: int, steps: int) -> float:
        """Seconds that teaching adds to a run of so many steps."""
        updates = steps // interval
        # The students' gradients are examined at the 1st, 4th, 16th, ... update.
        looks = (updates.bit_length() + 1) // 2
        examined = max(self.first - self.update, 0.0) * looks
        return (self.taught - self.plain) * steps + self.update * updates + examined

    def whole(self, interval: int, steps: int, evaluations: float = 0.0) -> float:
        """What teaching adds, as a fraction of plain training with its evaluations (seconds)."""
        return self.added(interval, steps) / (self.plain * steps + evaluations)


def loop_cost(built: Built) -> LoopCost | None:
    """Of a run at its present step; nothing is changed.

    None where nothing is taught after a step, and of curricula that start over.
    """
    coach = built.loop.coach
    taught = any(leaf.requires_grad for leaf in coach.teacher.parameters())
    if not taught or coach.adjoint.before_step or built.loop.curriculum.episodes > 1:
        return None
    interval = max(coach.window, min(coach.interval, CYCLE))
    with untouched():
        loops = built.rehearsal(Uniform(), 1), built.rehearsal(None, interval)
        return _measured(*loops, interval)


def _measured(plain: TrainingLoop, taught: TrainingLoop, interval: int) -> LoopCost:
    order = torch.randperm(len(plain.y), generator=stream(plain.seed, "quality", 1))
    size = plain.schedule.step_size
    count = max(MEASURED // interval, 2) * interval

    def lap(loop: TrainingLoop, first: int, steps: int) -> list[float]:
        numbers = range(first, first + steps)
        parts = (torch.arange(n * size, (n + 1) * size) % len(order) for n in numbers)
        return [_timed(loop, order[part]) for part in parts]

    lap(plain, 0, interval)  # warms up
    started = lap(taught, 0, interval)
    # Not in turn: a step is faster after one of its kind, as in a run.
    without, with_ = lap(plain, interval, count), lap(taught, interval, count)
    updated = statistics.median(with_[interval - 1 :: interval])
    others = [t for n, t in enumerate(with_) if (n + 1) % interval]
    step = statistics.median(without)
    # Where every step updates the teacher, none is without.
    base = statistics.median(others) if others else step
    return LoopCost(step, base, updated - base, started[-1] - base)


def _timed(loop: TrainingLoop, rows: torch.Tensor) -> float:
    started = now(loop)
    loop.take_step(rows)
    return now(loop) - started


def now(loop: TrainingLoop) -> float:
    """Seconds, of the process itself where no other one reads its samples."""
    return seconds(loop.device, alone=readable(loop.x) is None)
