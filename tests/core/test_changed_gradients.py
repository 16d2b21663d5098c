"""What changes gradients on their way back: forward mode passes it by, so it is found out.

The student is trained with the changed gradients, so they are what the meta-gradient is of.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deepteach as dt
from deepteach.errors import ConfigError


class ByLabel(dt.AbstractTeacher):
    """One log weight a class: a feature that no student moves."""

    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor([0.3, 0.0, -0.2], dtype=torch.float64))

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        return self.k[snapshot.labels]


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.between(self.a(x).tanh()))

    def between(self, h: Tensor) -> Tensor:
        return h


class TensorHook(Base):
    def between(self, h: Tensor) -> Tensor:
        if h.requires_grad:
            h.register_hook(lambda g: -0.5 * g)
        return h


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(h: Tensor) -> Tensor:  # type: ignore[override]
        return h.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return -g

    @staticmethod
    def jvp(ctx: Any, h: Tensor) -> Tensor:  # type: ignore[override]
        return h.clone()


class GradientReversal(Base):
    def between(self, h: Tensor) -> Tensor:
        return _Reverse.apply(h)  # type: ignore[return-value]


class ModuleHook(Base):
    def __init__(self) -> None:
        super().__init__()
        self.fc.register_full_backward_hook(lambda _m, i, o: tuple(0.3 * g for g in i))


class Rounded(Base):
    """A straight-through estimate is right in both modes."""

    def between(self, h: Tensor) -> Tensor:
        return h + ((10 * h).round() / 10 - h).detach()


KINDS = [Base, TensorHook, GradientReversal, ModuleHook, Rounded]
G = torch.Generator().manual_seed(1)
X = torch.randn(120, 6, generator=G, dtype=torch.float64)
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
STEPS = 5


def loop(kind: type[Base], window: int, adjoint: dt.AbstractAdjoint, moved: Any = None) -> Any:
    """(module, coach) after five steps, the teacher moved where the window begins."""
    torch.manual_seed(0)
    module, teacher = kind().double(), ByLabel()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-3)
    student = dt.Student(module, "fc")
    coach = dt.Coach(student, optimizer, teacher, interval=9, window=window, adjoint=adjoint)
    for i in range(STEPS):
        if moved is not None and i == STEPS - window:
            with torch.no_grad():
                teacher.k.add_(moved)
        optimizer.param_groups[0]["lr"] = 0.2 * (0.4 if i == STEPS - 1 else 1)
        optimizer.zero_grad()
        coach.loss(X[20 * i : 20 * i + 20], Y[20 * i : 20 * i + 20]).backward()
        optimizer.step()
    return module, coach


def differences(kind: type[Base], window: int, size: float = 1e-5) -> Tensor:
    """Of the validation loss, by black-box central differences: no derivative but training's."""

    def end(moved: Tensor) -> Tensor:
        module, _ = loop(kind, window, dt.Stored(), moved)
        with torch.no_grad():
            return nn.functional.cross_entropy(module(X[100:]), Y[100:])

    axes = size * torch.eye(3, dtype=torch.float64)
    return torch.stack([(end(axis) - end(-axis)) / (2 * size) for axis in axes])


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_adjoints_agree_or_refuse(kind: type[Base], window: int) -> None:
    told = []
    for adjoint in (dt.Unrolled(), dt.Reversed(), dt.Stored(), dt.Checkpointed()):
        _, coach = loop(kind, window, adjoint)
        if window > 1 and kind not in (Base, Rounded):
            with pytest.raises(ConfigError, match="on their way back.*window=1"):
                coach.meta_gradient(X[100:], Y[100:])
            continue
        told.append(coach.meta_gradient(X[100:], Y[100:])["k"])
    for one in told[1:]:
        assert torch.allclose(one, told[0], rtol=1e-8, atol=1e-12)


class Trained(ModuleHook):
    """Its gradients are changed where it is trained, not where it is looked at."""

    def between(self, h: Tensor) -> Tensor:
        if h.requires_grad and self.training:
            h.register_hook(lambda g: -0.5 * g)
        return h

    def __init__(self) -> None:
        Base.__init__(self)


@pytest.mark.parametrize("kind, window", [(Base, 1), (Base, 2), (Base, 4), (Trained, 1)])
def test_equal_to_black_box_differences(kind: type[Base], window: int) -> None:
    module, coach = loop(kind, window, dt.Reversed())
    module.eval()
    found = coach.meta_gradient(X[100:], Y[100:])["k"]
    assert torch.allclose(found, differences(kind, window), rtol=1e-5, atol=1e-9)


def test_torch_itself_is_wrong_there() -> None:
    """Why several steps are refused: plain autograd through the window, in silence."""
    module, coach = loop(Trained, 4, dt.Unrolled())
    module.eval()
    coach.objective.examined_structure = coach.student.structure()  # as if it had passed
    found = coach.meta_gradient(X[100:], Y[100:])["k"]
    assert not torch.allclose(found, differences(Trained, 4), rtol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_forward_mode_is_used_only_where_it_agrees(kind: type[Base]) -> None:
    _, coach = loop(kind, 1, dt.Stored())
    coach.meta_gradient(X[100:], Y[100:])
    assert coach.objective.forward_mode is (kind in (Base, Rounded))


def test_a_hook_that_comes_later_is_found_too() -> None:
    module, coach = loop(Base, 1, dt.Stored())
    coach.meta_gradient(X[100:], Y[100:])
    module.fc.register_full_backward_hook(lambda _m, i, o: tuple(0.3 * g for g in i))
    coach.meta_gradient(X[100:], Y[100:])
    assert coach.objective.forward_mode is False
