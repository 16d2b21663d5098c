"""A forward that takes gradients itself: forces of an energy, an inner step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loops import VALID, Loop, assert_exact, coached, differences, error, found
from torch import Tensor, nn

import deepteach as dt
from deepteach.core.adjoint import guards
from deepteach.errors import ConfigError


class Forces(nn.Module):
    """As it is written for molecules; the batch requires a gradient from then on."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.a, self.between, self.fc = nn.Linear(6, 5), nn.Sequential(*layers), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x.requires_grad_()
        energy = self.fc(self.between(self.a(x).tanh())).sum()
        (slope,) = torch.autograd.grad(energy, x, create_graph=True)
        return -slope[:, :3]


class Inner(nn.Module):
    """A step on a loss of its own, by one of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.fc, self.drop = nn.Linear(6, 5), nn.Linear(5, 3), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.a(x).tanh())
        (slope,) = torch.autograd.grad(
            self.fc(h).square().mean(), self.fc.weight, create_graph=True
        )
        return nn.functional.linear(h, self.fc.weight - 0.1 * slope, self.fc.bias)


class Differentiating(Loop):
    def answer(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return self.module(x).detach()


class Molecules(Differentiating):
    def make(self) -> nn.Module:
        return Forces()


class Layered(Differentiating):
    def make(self) -> nn.Module:
        return Forces(nn.LayerNorm(5), nn.GELU())


class Normed(Differentiating):
    def make(self) -> nn.Module:
        return Forces(nn.BatchNorm1d(5), nn.Tanh())


class Stepping(Differentiating):
    internal = "a"

    def make(self) -> nn.Module:
        return Inner()

    def student(self) -> dt.Student:
        return dt.Student(self.module, self.internal, side="output")

    def run(self, window: int, moved: Tensor | None = None) -> None:
        torch.manual_seed(4)
        super().run(window, moved)
        self.module.eval()


KINDS = [Molecules, Layered, Normed, Stepping]


@pytest.mark.parametrize("kind", KINDS)
def test_exact(kind: type[Loop]) -> None:
    """Several steps need third derivatives, which torch does not know of normalisations."""
    assert_exact(kind, (1,) if kind in (Layered, Normed) else (1, 2, 3))


@pytest.mark.parametrize("kind", [Layered, Normed])
def test_third_derivatives_that_are_not_known_are_refused(kind: type[Loop]) -> None:
    with pytest.raises(ConfigError, match="forward takes gradients itself") as got:
        found(kind, 3, dt.Stored())
    assert "\n" not in str(got.value)


@pytest.mark.parametrize("adjoint", [dt.Checkpointed(), dt.Unrolled(), dt.Stored(micro_batch=3)])
def test_other_adjoints(adjoint: dt.AbstractAdjoint) -> None:
    assert error(found(Molecules, 3, adjoint), differences(Molecules, 3)) < 1e-6


@pytest.mark.parametrize(
    "adjoint", [dt.FirstOrder(), dt.Lookahead(), dt.Stored(derivatives="finite-difference")]
)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_looked_at_and_taught(kind: type[Loop], adjoint: dt.AbstractAdjoint) -> None:
    loop = coached(kind, 1, interval=1, adjoint=adjoint)
    loop.coach.trust(VALID)
    looked = loop.coach.weights(*loop.batch(0))
    assert looked.shape == (8,) and not looked.requires_grad
    assert not loop.coach.look(*loop.batch(0)).logits.requires_grad
    for i in range(3):
        loop.step(i, *loop.batch(i))
        loop.coach.update(VALID)


def test_the_first_look_draws_what_a_second_one_draws() -> None:
    loop = coached(Stepping, 1)
    first, second = (loop.coach.look(*loop.batch(0)).logits for _ in range(2))
    assert torch.equal(first, second)


def test_forward_mode_is_asked_as_of_any_student(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    findings = guards.findings_of

    def seen(*given: Any) -> Any:
        said.append(findings(*given))
        return said[-1]

    monkeypatch.setattr(guards, "findings_of", seen)
    found(Molecules, 1, dt.Stored())
    assert said and all(one.forward for one in said)
