"""Parameters that get no gradient, and so are not stepped on, are constants of the window."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loops import VALID, Loop, assert_exact, coached, differences, error, found
from torch import Tensor, nn

import deepteach as dt
from deepteach.core.adjoint import guards
from deepteach.errors import ConfigError


class Backbone(nn.Module):
    """Which of its parts have a gradient is said by the batch."""

    def __init__(self, usual: bool) -> None:
        super().__init__()
        self.usual = usual
        self.b, self.a, self.fc = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor, without: bool | None = None, skips: bool = False) -> Tensor:
        without = self.usual if without is None else without
        with torch.set_grad_enabled(torch.is_grad_enabled() and not without):
            h = self.b(x).tanh()
        return self.fc(h if skips else self.a(h).tanh())


class NoGradient(Loop):
    without: tuple[int, ...] = (0, 1, 2, 3, 4)
    """The steps at which it gets none."""
    skips: tuple[int, ...] = ()
    usual = True
    """And that the trusted batch gives it none."""

    def make(self) -> nn.Module:
        return Backbone(self.usual)

    def optimize(self, leaves: list[nn.Parameter]) -> Any:
        return torch.optim.AdamW(leaves, lr=1e-2, weight_decay=0.1)

    def batch(self, i: int) -> tuple[Any, Tensor]:
        x, y = super().batch(i)
        return {"x": x, "without": i in self.without, "skips": i in self.skips}, y


class InTraining(NoGradient):
    usual = False


class Unfreezing(InTraining):
    without = (0, 1, 2)


class Now(InTraining):
    """It is trained now and then: a step without its gradient reads what others have moved."""

    without = (0, 1, 3)


class Before(InTraining):
    without = (0, 1, 4)


class Unseen(Before):
    """Nor does the trusted batch give it one."""

    usual = True


class Zeros(InTraining):
    """Gradients of 0 are stepped on: the weight decay goes on moving it."""

    without = (1, 2, 3, 4)

    def step(self, i: int, x: Any, y: Tensor) -> None:
        super().step(i, x, y)
        for leaf in self.module.b.parameters():
            leaf.grad = torch.zeros_like(leaf)

    def optimize(self, leaves: list[nn.Parameter]) -> Any:
        optimizer = super().optimize(leaves)
        clear = optimizer.zero_grad
        optimizer.zero_grad = lambda: clear(set_to_none=False)
        return optimizer


class Skipping(InTraining):
    """A layer is left out now and then, and has no gradient there."""

    without, skips = (), (1, 3)


@pytest.mark.parametrize("kind", [NoGradient, InTraining, Unfreezing, Skipping])
def test_exact(kind: type[Loop]) -> None:
    assert_exact(kind)


@pytest.mark.parametrize("adjoint", [dt.Checkpointed, dt.Unrolled])
def test_other_adjoints(adjoint: Any) -> None:
    assert error(found(NoGradient, 3, adjoint()), differences(NoGradient, 3)) < 1e-6


@pytest.mark.parametrize("adjoint", [dt.Lookahead, dt.FirstOrder])
def test_as_if_frozen(adjoint: Any) -> None:
    class Frozen(NoGradient):
        def optimize(self, leaves: list[nn.Parameter]) -> Any:
            self.module.b.requires_grad_(False)
            return super().optimize([leaf for leaf in leaves if leaf.requires_grad])

    ends = []
    for kind in (NoGradient, Frozen):
        loop = coached(kind, 1, interval=1, adjoint=adjoint())
        loop.coach.trust(VALID)
        for i in range(3):
            loop.step(i, *loop.batch(i))
            loop.coach.update(VALID)
        ends.append(loop.teacher.k.detach())
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], coached(NoGradient, 1).teacher.k)


@pytest.mark.parametrize("kind", [Now, Before, Unseen, Zeros])
def test_what_moves_and_is_read_without_its_gradient_is_refused(kind: type[Loop]) -> None:
    for adjoint in (dt.Stored(), dt.Reversed()):
        with pytest.raises(ConfigError, match=r"under torch.no_grad\(\).*window=1") as got:
            found(kind, 3, adjoint)
        assert "\n" not in str(got.value)


def test_a_part_that_loses_its_gradient_later_is_asked_again() -> None:
    loop = coached(Now, 2, interval=2)
    for i in (2, 2, 2, 2, 2):
        loop.step(i, *loop.batch(i))
        loop.coach.update(VALID)
    loop.step(3, *loop.batch(3))
    with pytest.raises(ConfigError, match=r"under torch.no_grad\(\)"):
        loop.coach.update(VALID)


def test_layers_that_are_skipped_are_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    findings = guards.findings_of
    monkeypatch.setattr(guards, "findings_of", lambda *a: asked.append(a) or findings(*a))
    loop = coached(Skipping, 2, interval=2)
    for i in range(12):
        loop.step(i, *loop.batch(i % 5))
        loop.coach.update(VALID)
    assert len(asked) <= 4
