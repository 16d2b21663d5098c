"""One cycle of training, K steps and an update of the teacher, as each row does it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepteach.benchmarks.peers import PEERS, meta_weight_net, unroll
from deepteach.benchmarks.plan import (
    HANDWRITTEN,
    LEARNING_RATE,
    MOMENTUM,
    PLAIN,
    PROBED,
    PUBLISHED,
    REVERSIBLE,
    STRATEGIES,
    STUDENT_OPTIMIZERS,
    TAUGHT,
    Plan,
)
from deepteach.core.adjoint.base import AbstractAdjoint
from deepteach.core.adjoint.fixed_point import ExactSGD
from deepteach.core.adjoint.one_step import Lookahead
from deepteach.core.coach import Coach
from deepteach.core.student import Student, last_linear
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError
from deepteach.models import build
from deepteach.teachers.features import Internal, Label
from deepteach.teachers.linear import Teacher
from deepteach.teachers.meta_weight_net import MetaWeightNet
from deepteach.teachers.trusted_probe import TrustedProbe

CLASSES = 10
Cycle = Callable[[], Iterator[None]]


@dataclass
class Problem:
    """What is trained: a student, the layer whose input a teacher reads, batches of noise."""

    module: nn.Module
    internal: str
    batches: list[tuple[Tensor, Tensor]]
    trusted: tuple[Tensor, Tensor]
    classes: int = CLASSES

    @classmethod
    def of(cls, plan: Plan) -> Problem:
        """The student that a plan names. Raises ConfigError: it has no linear layer."""
        module, internal = build(plan.spec.model, plan.spec.shape, CLASSES, seed=0)
        internal = internal or last_linear(module)
        if internal is None:
            raise ConfigError(f"bench needs a student with a linear layer: {plan.student} has none")
        sizes = [plan.batch] * 4
        *batches, trusted = drawn(sizes, plan.spec.shape, CLASSES, plan.device)
        return cls(module.to(plan.device), internal, batches, trusted)


def drawn(
    sizes: Sequence[int], shape: tuple[int, ...], classes: int, device: str = "cpu"
) -> list[tuple[Tensor, Tensor]]:
    """A batch of noise and random labels for each of the sizes."""
    g = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(size, *shape, generator=g).to(device),
            torch.randint(classes, (size,), generator=g).to(device),
        )
        for size in sizes
    ]


class Work:
    """A student, its optimizer and a few batches; a cycle yields after each step."""

    def __init__(
        self, plan: Plan, optimizer: str = MOMENTUM, problem: Problem | None = None
    ) -> None:
        problem = Problem.of(plan) if problem is None else problem
        self.plan, self.module, self.internal = plan, problem.module, problem.internal
        self.batches, self.trusted, self.classes = problem.batches, problem.trusted, problem.classes
        self.optimizer = STUDENT_OPTIMIZERS[optimizer](list(self.module.parameters()))
        self.reversible = optimizer in REVERSIBLE

    def cycle(self, row: str, window: int) -> Cycle:
        """The work of one cycle of a row."""
        if row == PLAIN:
            return self.plain
        if row in PEERS:
            return lambda: unroll(
                row, self.module, self.optimizer, list(self.rows()), self.trusted, window
            )
        if row == PUBLISHED:
            return self.taught(MetaWeightNet(), Lookahead(), 1, 1)
        if row == HANDWRITTEN:
            return lambda: meta_weight_net(
                self.module, self.optimizer, list(self.rows()), self.trusted
            )
        if row == "Exact":
            self.optimizer = ExactSGD(
                self.module.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=5e-4
            )
        if row.endswith(PROBED):
            row, teacher = row.removesuffix(PROBED), Teacher([TrustedProbe()])
        else:
            teacher = Teacher([Internal(self.width()), Label(self.classes)])
        if row == TAUGHT:
            kind = STRATEGIES["Reversed" if self.reversible else "Stored"]
            return self.taught(teacher, kind(), 1, sys.maxsize)
        return self.taught(teacher, STRATEGIES[row](), window, self.plan.interval)

    def width(self) -> int:
        with torch.no_grad():
            return Student(copy.deepcopy(self.module), self.internal)(
                self.batches[0][0]
            ).internal.shape[1]

    def rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(self.plan.interval):
            yield self.batches[number % len(self.batches)]

    def plain(self) -> Iterator[None]:
        for x, y in self.rows():
            self.optimizer.zero_grad()
            F.cross_entropy(self.module(x), y).backward()
            self.optimizer.step()
            yield

    def taught(
        self, teacher: AbstractTeacher, adjoint: AbstractAdjoint, window: int, interval: int
    ) -> Cycle:
        student, teacher = Student(self.module, self.internal), teacher.to(self.plan.device)
        coach = Coach(
            *(student, self.optimizer, teacher), interval=interval, window=window, adjoint=adjoint
        )
        coach.trust(self.trusted)

        def cycle() -> Iterator[None]:
            for x, y in self.rows():
                self.optimizer.zero_grad()
                coach.loss(x, y).backward()
                self.optimizer.step()
                coach.update(self.trusted)
                yield

        return cycle
