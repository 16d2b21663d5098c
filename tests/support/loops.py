"""A training loop as people write it, run by the Coach and by a weighted loss of four lines.

The second is the black box: trained twice with the teacher moved a little where the window
begins, it gives the derivative of the validation loss by central differences. It shares
nothing with the engine but torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import deepteach as dt

STEPS, SIZE = 5, 8
_G = torch.Generator().manual_seed(1)
X = torch.randn(SIZE * STEPS + 20, 6, generator=_G, dtype=torch.float64)
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
VALID = (X[SIZE * STEPS :], Y[SIZE * STEPS :])


class ByLabel(dt.AbstractTeacher):
    """One log weight a class: a feature that no student moves."""

    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor([0.3, 0.0, -0.2], dtype=torch.float64))

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        return self.k[snapshot.labels]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels, reduction="none")


class Plain:
    """The weighted loss as written, in the place of a Coach."""

    def __init__(self, module: nn.Module, teacher: ByLabel, loss: Any = cross_entropy) -> None:
        self.module, self.teacher, self.of_samples = module, teacher, loss

    def loss(self, x: Any, y: Tensor) -> Tensor:
        w = self.teacher.k.detach()[y].exp()
        raw = self.module(**x) if isinstance(x, dict) else self.module(x)
        losses = self.of_samples(raw, y)
        return (w * losses).sum() / w.sum()

    def discard(self) -> None:
        for leaf in self.module.parameters():
            leaf.grad = None


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.a(x).tanh())


class Loop:
    """Five steps of momentum SGD; subclasses say what is different."""

    internal = "fc"
    options: dict[str, Any] = {}
    coach: Any
    optimizer: Any
    steps = STEPS
    criterion: Any = staticmethod(cross_entropy)

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.module: Any = self.make().double()
        self.optimizer = self.optimize(list(self.module.parameters()))
        self.teacher = ByLabel()

    def make(self) -> Any:
        return Net()

    def optimize(self, leaves: list[nn.Parameter]) -> Any:
        return torch.optim.SGD(leaves, lr=0.3, momentum=0.9, weight_decay=1e-2)

    def student(self) -> dt.Student:
        return dt.Student(self.module, self.internal)

    def prepare(self) -> None:
        """After the Coach was made."""

    def step(self, i: int, x: Any, y: Tensor) -> None:
        self.optimizer.zero_grad()
        self.coach.loss(x, y).backward()
        self.between(i)
        self.optimizer.step()
        self.after(i)

    def between(self, i: int) -> None:
        """After backward(), before step()."""

    def after(self, i: int) -> None:
        """After the step."""

    def batch(self, i: int) -> tuple[Any, Tensor]:
        rows = slice(SIZE * i, SIZE * i + SIZE)
        return X[rows], Y[rows]

    def trusted(self) -> tuple[Any, Tensor]:
        return VALID

    def answer(self, x: Any) -> Tensor:
        return self.module(x)

    def run(self, window: int, moved: Tensor | None = None) -> None:
        for i in range(self.steps):
            if moved is not None and i == self.steps - window:
                with torch.no_grad():
                    self.teacher.k.add_(moved)
            self.step(i, *self.batch(i))


def coached(kind: Callable[[], Loop], window: int, **options: Any) -> Loop:
    """A loop that has a Coach, before its first step."""
    loop = kind()
    chosen = {"interval": 20, "window": window, "adjoint": dt.Stored(), **loop.options, **options}
    if loop.criterion is not cross_entropy:
        chosen["loss"] = loop.criterion
    loop.coach = dt.Coach(loop.student(), loop.optimizer, loop.teacher, **chosen)
    loop.prepare()
    return loop


def found(kind: Callable[[], Loop], window: int, adjoint: dt.AbstractAdjoint) -> Tensor:
    """The meta-gradient of the Coach, `(3,)`."""
    loop = coached(kind, window, adjoint=adjoint)
    loop.run(window)
    return loop.coach.meta_gradient(*loop.trusted())["k"]


def assert_exact(kind: Callable[[], Loop], windows: tuple[int, ...] = (1, 3)) -> None:
    """Whether states are kept or undone, the black box says the same."""
    for window in windows:
        want = differences(kind, window)
        for adjoint in (dt.Stored(), dt.Reversed()):
            assert error(found(kind, window, adjoint), want) < 1e-6, (window, adjoint)


def differences(kind: Callable[[], Loop], window: int, size: float = 1e-5) -> Tensor:
    """The same by black-box central differences of the whole window, `(3,)`."""

    def end(moved: Tensor) -> Tensor:
        loop = kind()
        loop.coach = Plain(loop.module, loop.teacher, loop.criterion)
        loop.run(window, moved)
        with torch.no_grad():
            x, y = loop.trusted()
            return loop.criterion(loop.answer(x), y).mean()

    axes = size * torch.eye(3, dtype=torch.float64)
    return torch.stack([(end(axis) - end(-axis)) / (2 * size) for axis in axes])


def error(left: Tensor, right: Tensor) -> float:
    return float((left - right).norm() / right.norm())
