"""How much a taught step does, whatever else the machine does: operators of torch, and calls.

    python experiments/step_counts.py

Operators are those that reach a `TorchDispatchMode`, calls those of Python functions and builtins
that cProfile sees. Momentum SGD, `Reversed`, B = 2, a fitted `TrustedProbe`; prints a table.
"""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

import deepteach as dt
from deepteach.benchmarks.plan import plans
from deepteach.benchmarks.work import Work
from deepteach.core.coach import Coach

INTERVAL, WARM = 20, 6


class Operators(TorchDispatchMode):
    """Counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operators_of(step: Callable[[], object]) -> int:
    with Operators() as seen:
        step()
    return seen.count


def calls_of(step: Callable[[], object]) -> int:
    profile = cProfile.Profile()
    profile.runcall(step)
    return pstats.Stats(profile).total_calls  # type: ignore[attr-defined]


def stepper(work: Work, interval: int) -> Callable[[], None]:
    """One taught step a call."""
    student = dt.Student(work.module, work.internal)
    teacher = dt.Teacher([dt.TrustedProbe()])
    coach = Coach(student, work.optimizer, teacher, interval=interval, window=min(2, interval))
    coach.trust(work.trusted)

    def step() -> None:
        x, y = work.batches[0]
        work.optimizer.zero_grad()
        coach.loss(x, y).backward()
        work.optimizer.step()
        coach.update(work.trusted)

    return step


def main() -> None:
    print("| student | step | operators | calls |\n|---|---|---|---|")
    for plan in plans("mlp-64,resnet8-16", None, 1):
        steps = Work(replace(plan, interval=10**6)).plain()
        taught, updating = stepper(Work(plan), 10**6), stepper(Work(plan), INTERVAL)
        kinds: dict[str, tuple[Callable[[], object], int, int]] = {
            "plain": (lambda steps=steps: next(steps), INTERVAL, 0),
            # The 1st, 4th, 16th, ... step is looked at more closely: the 21st is not.
            "taught": (taught, INTERVAL, 0),
            "with an update": (updating, WARM * INTERVAL - 1, INTERVAL - 1),
        }
        for kind, (step, before, between) in kinds.items():
            for _ in range(before):
                step()
            operators = operators_of(step)
            for _ in range(between):
                step()
            print(f"| {plan.student} | {kind} | {operators} | {calls_of(step)} |")


if __name__ == "__main__":
    main()
