"""One cycle of training, K steps and an update of the teacher, as each row does it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator

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
from deepteach.core.student import Student
from deepteach.core.teacher import AbstractTeacher
from deepteach.errors import ConfigError
from deepteach.models import build
from deepteach.teachers.features import Internal, Label
from deepteach.teachers.linear import Teacher
from deepteach.teachers.meta_weight_net import MetaWeightNet
from deepteach.teachers.trusted_probe import TrustedProbe

CLASSES = 10
Cycle = Callable[[], Iterator[None]]


class Work:
    """A student, its optimizer and a few batches; a cycle yields after each step."""

    def __init__(self, plan: Plan, optimizer: str = MOMENTUM) -> None:
        self.plan = plan
        self.module, internal = build(plan.spec.model, plan.spec.shape, CLASSES, seed=0)
        linear = [name for name, part in self.module.named_modules() if isinstance(part, nn.Linear)]
        if internal is None and not linear:
            raise ConfigError(f"bench needs a student with a linear layer: {plan.student} has none")
        self.internal = internal or linear[-1]
        self.module.to(plan.device)
        g = torch.Generator().manual_seed(0)
        self.batches = [
            (
                torch.randn(plan.batch, *plan.spec.shape, generator=g).to(plan.device),
                torch.randint(CLASSES, (plan.batch,), generator=g).to(plan.device),
            )
            for _ in range(4)
        ]
        self.optimizer = STUDENT_OPTIMIZERS[optimizer](list(self.module.parameters()))
        self.reversible = optimizer in REVERSIBLE

    def cycle(self, row: str, window: int) -> Cycle:
        """The work of one cycle of a row."""
        if row == PLAIN:
            return self.plain
        if row in PEERS:
            return lambda: unroll(
                row, self.module, self.optimizer, list(self.rows()), self.batches[3], window
            )
        if row == PUBLISHED:
            return self.taught(MetaWeightNet(), Lookahead(), 1, 1)
        if row == HANDWRITTEN:
            return lambda: meta_weight_net(
                self.module, self.optimizer, list(self.rows()), self.batches[3]
            )
        if row == "Exact":
            self.optimizer = ExactSGD(
                self.module.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=5e-4
            )
        if row.endswith(PROBED):
            row, teacher = row.removesuffix(PROBED), Teacher([TrustedProbe()])
        else:
            teacher = Teacher([Internal(self.width()), Label(CLASSES)])
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
            yield self.batches[number % 3]

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
        coach.trust(self.batches[3])

        def cycle() -> Iterator[None]:
            for x, y in self.rows():
                self.optimizer.zero_grad()
                coach.loss(x, y).backward()
                self.optimizer.step()
                coach.update(self.batches[3])
                yield

        return cycle
