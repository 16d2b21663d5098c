"""Momentum that begins, ends or pauses: torch then leaves its buffer as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loops import VALID, Loop, assert_exact, coached, differences, error, found
from torch import nn
from torch.optim import lr_scheduler

import deepteach as dt
from deepteach.errors import ConfigError


class Begun(Loop):
    """Without momentum for three steps, with it for two."""

    def optimize(self, leaves: list[nn.Parameter]) -> Any:
        return torch.optim.SGD(leaves, lr=0.3)

    def after(self, i: int) -> None:
        if i == 2:
            self.optimizer.param_groups[0]["momentum"] = 0.9


class Paused(Loop):
    """The buffer of the step before the last comes back at the last."""

    def after(self, i: int) -> None:
        self.optimizer.param_groups[0]["momentum"] = 0.9 * (i % 2)


class OfOneGroup(Loop):
    def optimize(self, leaves: list[nn.Parameter]) -> Any:
        groups = [{"params": leaves[:2], "momentum": 0.0}, {"params": leaves[2:]}]
        return torch.optim.SGD(groups, lr=0.3, momentum=0.9, weight_decay=1e-2)

    def after(self, i: int) -> None:
        self.optimizer.param_groups[0]["momentum"] = 0.3 * max(i - 1, 0)


@pytest.mark.parametrize("adjoint", [dt.Stored(), dt.Checkpointed(), dt.Unrolled()])
@pytest.mark.parametrize("kind", [Begun, Paused, OfOneGroup])
def test_exact(kind: type[Loop], adjoint: dt.AbstractAdjoint) -> None:
    for window in (2, 3, 4):
        assert error(found(kind, window, adjoint), differences(kind, window)) < 1e-6, window


def test_a_cycle_whose_momentum_ends_at_zero() -> None:
    class Cycled(Loop):
        def __init__(self) -> None:
            super().__init__()
            options: dict[str, Any] = {"base_momentum": 0.0, "max_momentum": 0.9}
            self.cycle = lr_scheduler.OneCycleLR(self.optimizer, 0.3, total_steps=6, **options)

        def after(self, i: int) -> None:
            self.cycle.step()

    assert_exact(Cycled, (1, 3))


class Nesterov(Loop):
    def after(self, i: int) -> None:
        self.optimizer.param_groups[0]["nesterov"] = i >= 2


@pytest.mark.parametrize("kind", [Paused, Nesterov])
def test_what_cannot_be_undone_any_more_is_named(kind: type[Loop]) -> None:
    """The settings were others when the Coach was made."""
    loop = coached(kind, 2, adjoint=dt.Reversed())
    loop.run(2)
    with pytest.raises(ConfigError, match="cannot be undone: use adjoint=Stored"):
        loop.coach.meta_gradient(*VALID)
    assert error(found(kind, 2, dt.Stored()), differences(kind, 2)) < 1e-6
