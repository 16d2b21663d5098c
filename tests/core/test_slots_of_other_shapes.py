"""An optimizer's buffers need not have the shape of their parameter: one number a row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loops import VALID, Loop, coached, differences, error, found
from torch import Tensor, nn

import deepteach as dt
from deepteach.core.optim import Hyper, Rule, State
from deepteach.tree import Params


def mean_square(grad: Tensor) -> Tensor:
    return grad.square().mean(-1, keepdim=True)


class ByRows(torch.optim.Optimizer):
    def __init__(self, leaves: Any) -> None:
        super().__init__(leaves, {"lr": 0.05})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for leaf in group["params"]:
                found = mean_square(leaf.grad)
                held = self.state[leaf].setdefault("rows", torch.zeros_like(found))
                held.lerp_(found, 0.3)
                leaf.sub_(group["lr"] * leaf.grad / (held + 1e-3).sqrt())


class RowRule(Rule):
    slot_names = ("rows",)

    def hyper(self, group: dict, held: dict) -> Hyper:
        return Hyper(lr=group["lr"])

    def step(self, state: State, gradient: Params, hyper: dict[str, Hyper]) -> State:
        theta, rows = dict(state.theta), dict(state.slots["rows"])
        for name, h in hyper.items():
            mean = mean_square(gradient[name])
            before = rows[name] if rows[name].shape == mean.shape else torch.zeros_like(mean)
            rows[name] = torch.lerp(before, mean, 0.3)
            theta[name] = theta[name] - h.lr * gradient[name] / (rows[name] + 1e-3).sqrt()
        return State(theta, {"rows": rows})


class Rows(Loop):
    options = {"rule": RowRule()}

    def optimize(self, leaves: list[nn.Parameter]) -> Any:
        return ByRows(leaves)


@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("adjoint", [dt.Stored(), dt.Checkpointed(), dt.Unrolled()])
def test_exact(adjoint: dt.AbstractAdjoint, window: int) -> None:
    """A window of all steps begins where the optimizer holds nothing yet."""
    assert error(found(Rows, window, adjoint), differences(Rows, window)) < 1e-6


def test_a_step_ahead() -> None:
    loop = coached(Rows, 1, interval=1, adjoint=dt.Lookahead(momentum=True))
    loop.coach.trust(VALID)
    before = loop.teacher.k.detach().clone()
    for i in range(3):
        loop.step(i, *loop.batch(i))
    assert not torch.equal(loop.teacher.k, before)
