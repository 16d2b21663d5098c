"""What changes gradients on their way back: forward mode passes it by, so it is found out.

The student is trained with the changed gradients, so they are what the meta-gradient is of.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from by_label import Base, ByLabel, X, Y
from torch import Tensor, nn

import deepteach as dt
from deepteach.core.checks import examination
from deepteach.core.checks.examination import SECOND, Findings
from deepteach.errors import ConfigError


class Changed(Base):
    """Something changes gradients in training alone: the validation loss has its own."""

    def between(self, h: Tensor) -> Tensor:
        return self.change(h) if self.training and h.requires_grad else h

    def change(self, h: Tensor) -> Tensor:
        raise NotImplementedError


class TensorHook(Changed):
    def change(self, h: Tensor) -> Tensor:
        h.register_hook(lambda g: -0.5 * g)
        return h


class ClippingHook(Changed):
    """Not linear in the weights."""

    def change(self, h: Tensor) -> Tensor:
        h.register_hook(lambda g: g.clamp(-0.01, 0.01))
        return h


class CuttingHook(Changed):
    """Its derivative is lost."""

    def change(self, h: Tensor) -> Tensor:
        h.register_hook(lambda g: 0.5 * g.detach())
        return h


class ReadingHook(Changed):
    """It changes nothing."""

    def change(self, h: Tensor) -> Tensor:
        h.register_hook(lambda g: None if g.sum() > 0 else g)
        return h


class _ForwardReverse(torch.autograd.Function):
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


class _Reverse(torch.autograd.Function):
    """As people write it."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:  # type: ignore[override]
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g.neg()


class _Cube(torch.autograd.Function):
    """Right, without a forward mode."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(h)
        return h**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        (h,) = ctx.saved_tensors
        return 3 * h**2 * g


class _ForgetfulExp(torch.autograd.Function):
    """Its first derivative is right; the second forgets where the result came from."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:  # type: ignore[override]
        result = h.exp()
        ctx.result = result.clone()
        return result

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g * ctx.result


class ReversalWithForwardMode(Changed):
    def change(self, h: Tensor) -> Tensor:
        return _ForwardReverse.apply(h)  # type: ignore[return-value]


class Reversal(Changed):
    def change(self, h: Tensor) -> Tensor:
        return _Reverse.apply(h)  # type: ignore[return-value]


class ReversalByDetaching(Changed):
    def change(self, h: Tensor) -> Tensor:
        return 2 * h.detach() - h


class Cube(Base):
    def between(self, h: Tensor) -> Tensor:
        return _Cube.apply(h)  # type: ignore[return-value]


class ForgetfulExp(Base):
    def between(self, h: Tensor) -> Tensor:
        return _ForgetfulExp.apply(h)  # type: ignore[return-value]


class ModuleHook(Changed):
    def __init__(self) -> None:
        super().__init__()
        self.fc.register_full_backward_hook(self.hook)

    def between(self, h: Tensor) -> Tensor:
        return h

    def hook(self, _m: nn.Module, i: Any, o: Any) -> Any:
        return tuple(0.3 * g for g in i) if self.training else None


class ModulePreHook(ModuleHook):
    def __init__(self) -> None:
        Base.__init__(self)
        self.fc.register_full_backward_pre_hook(
            lambda _m, o: tuple(0.3 * g for g in o) if self.training else None
        )


class Recurrent(Base):
    """No forward mode."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8, batch_first=True)

    def between(self, h: Tensor) -> Tensor:
        return super().between(self.lstm(h.unsqueeze(1))[0][:, 0])


class RecurrentHook(Recurrent, TensorHook):
    pass


class Rounded(Base):
    """A straight-through estimate: its gradients are not the slopes of what it computes."""

    def between(self, h: Tensor) -> Tensor:
        return h + ((10 * h).round() / 10 - h).detach()


class Always(TensorHook):
    """Changed where the validation loss is computed, too."""

    def between(self, h: Tensor) -> Tensor:
        return self.change(h) if h.requires_grad else h


class AlwaysReversed(Reversal):
    def between(self, h: Tensor) -> Tensor:
        return self.change(h)


# The longest window that is crossed exactly; longer ones are refused.
KINDS: dict[type[Base], int] = {
    Base: 4,
    ReadingHook: 4,
    Cube: 4,
    Recurrent: 4,
    TensorHook: 1,
    ReversalWithForwardMode: 1,
    Reversal: 1,
    ReversalByDetaching: 1,
    ForgetfulExp: 1,
    ModuleHook: 1,
    ModulePreHook: 1,
    RecurrentHook: 1,
    ClippingHook: 0,
    CuttingHook: 0,
    Rounded: 0,
    Always: 0,
    AlwaysReversed: 0,
}
ADJOINTS = (dt.Unrolled, dt.Reversed, dt.Stored, dt.Checkpointed)
STEPS = 5


def loop(
    kind: type[Base],
    window: int,
    adjoint: dt.AbstractAdjoint,
    moved: Any = None,
    dtype: torch.dtype = torch.float64,
    surrogate: bool = False,
) -> Any:
    """(module, coach) after five steps, the teacher moved where the window begins."""
    torch.manual_seed(0)
    module, teacher = kind().to(dtype), ByLabel()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-3)
    student = dt.Student(module, "fc", surrogate=surrogate)
    coach = dt.Coach(student, optimizer, teacher, interval=9, window=window, adjoint=adjoint)
    for i in range(STEPS):
        if moved is not None and i == STEPS - window:
            with torch.no_grad():
                teacher.k.add_(moved)
        optimizer.param_groups[0]["lr"] = 0.2 * (0.4 if i == STEPS - 1 else 1)
        optimizer.zero_grad()
        coach.loss(X[20 * i : 20 * i + 20].to(dtype), Y[20 * i : 20 * i + 20]).backward()
        optimizer.step()
    return module, coach


def differences(kind: type[Base], window: int, size: float = 1e-5) -> Tensor:
    """Of the validation loss, by black-box central differences: no derivative but training's."""

    def end(moved: Tensor) -> Tensor:
        module, _ = loop(kind, window, dt.Stored(), moved)
        module.eval()
        with torch.no_grad():
            return nn.functional.cross_entropy(module(X[100:]), Y[100:])

    axes = size * torch.eye(3, dtype=torch.float64)
    return torch.stack([(end(axis) - end(-axis)) / (2 * size) for axis in axes])


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_black_box_differences_or_refused(kind: type[Base], window: int) -> None:
    known = differences(kind, window) if window <= KINDS[kind] else None
    for adjoint in ADJOINTS:
        module, coach = loop(kind, window, adjoint())
        module.eval()
        if known is not None:
            found = coach.meta_gradient(X[100:], Y[100:])["k"]
            assert torch.allclose(found, known, rtol=1e-5, atol=1e-9)
            continue
        with pytest.raises(ConfigError, match="remove it") as caught:
            coach.meta_gradient(X[100:], Y[100:])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("kind", [Recurrent, Reversal, TensorHook, ForgetfulExp])
def test_found_in_single_precision_too(kind: type[Base], window: int) -> None:
    for adjoint in (dt.Reversed(), dt.Stored()):
        module, coach = loop(kind, window, adjoint, dtype=torch.float32)
        module.eval()
        if window <= KINDS[kind]:
            coach.meta_gradient(X[100:].float(), Y[100:])
        else:
            with pytest.raises(ConfigError, match="window=1"):
                coach.meta_gradient(X[100:].float(), Y[100:])


def test_what_is_meant_so_is_taken_as_it_is() -> None:
    told = []
    for adjoint in ADJOINTS:
        _, coach = loop(Rounded, 2, adjoint(), surrogate=True)
        told.append(coach.meta_gradient(X[100:], Y[100:])["k"])
    for one in told[1:]:
        assert torch.allclose(one, told[0], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("adjoint", [dt.Stored(derivatives="finite-difference"), dt.FirstOrder()])
def test_differences_of_losses_are_not_what_such_a_student_is_trained_with(
    adjoint: dt.AbstractAdjoint,
) -> None:
    module, coach = loop(TensorHook, 1, adjoint)
    module.eval()
    with pytest.raises(ConfigError, match="on their way back"):
        coach.meta_gradient(X[100:], Y[100:])


def test_torch_itself_is_wrong_there() -> None:
    """Why several steps are refused: plain autograd through the window, in silence."""
    module, coach = loop(TensorHook, 4, dt.Unrolled())
    module.eval()
    examined = coach._look_back.examined  # as if it had passed
    examined.sweeps, examined.findings = 1, Findings()
    examined.structure = (coach.student.structure(), SECOND)
    examined.names = frozenset(dict(module.named_parameters()))
    found = coach.meta_gradient(X[100:], Y[100:])["k"]
    assert not torch.allclose(found, differences(TensorHook, 4), rtol=1e-2)


@pytest.mark.parametrize("kind", [Base, ReadingHook, TensorHook, ModuleHook])
def test_forward_mode_is_used_only_where_it_agrees(kind: type[Base]) -> None:
    module, coach = loop(kind, 1, dt.Stored())
    module.eval()
    coach.meta_gradient(X[100:], Y[100:])
    assert coach.objective.forward_mode is (kind in (Base, ReadingHook))


def test_a_hook_that_comes_later_is_found_too() -> None:
    module, coach = loop(Base, 1, dt.Stored())
    module.eval()
    coach.meta_gradient(X[100:], Y[100:])
    handle = module.fc.register_full_backward_hook(lambda _m, i, o: tuple(0.3 * g for g in i))
    with pytest.raises(ConfigError, match="eval mode"):
        coach.meta_gradient(X[100:], Y[100:])
    handle.remove()
    module.fc.register_full_backward_hook(lambda _m, i, o: None)
    coach.meta_gradient(X[100:], Y[100:])
    assert coach.objective.forward_mode is True


def test_it_costs_nothing_between_changes() -> None:
    module, coach = loop(Base, 2, dt.Stored())
    passes = []
    module.register_forward_hook(lambda *_: passes.append(1))
    counts = []
    for _ in range(6):
        passes.clear()
        coach.meta_gradient(X[100:], Y[100:])
        counts.append(len(passes))
    # The first time, and the fourth.
    assert counts[1] == counts[2] == counts[4] == counts[5] == 3 < counts[0] == counts[3] < 40


def test_a_kink_beside_the_point_that_is_asked_is_no_hook() -> None:
    """Between the two shortest differences it spoils one of them, and not the other."""
    objective: Any = SimpleNamespace(student=SimpleNamespace(module=nn.Linear(3, 1)))
    theta = {"w": torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)}
    asked = examination._Examination(lambda theta: theta["w"].sum().unsqueeze(0), theta)
    kink = (asked.theta["w"] + 3e-6 * asked.along["w"]).sum()

    def losses(theta: dict[str, Tensor]) -> Tensor:
        return (1 + (theta["w"].sum() - kink).relu() + 0.1 * theta["w"].square().sum()).unsqueeze(0)

    def detached(theta: dict[str, Tensor]) -> Tensor:
        return losses(theta) + theta["w"].detach().square().sum()

    def found(function: Callable[[dict[str, Tensor]], Tensor]) -> bool:
        start = {name: leaf.clone() for name, leaf in theta.items()}
        return examination._asked(
            objective,
            start,
            lambda _double, _rows, at, point: Findings(
                examination._Examination(function, at, point).true()
            ),
        ).true

    assert examination._Examination(losses, theta).true()  # the shortest does not reach it
    assert found(losses) and not found(detached)
