"""Where torch's forward rule of an operation is not finite, but its gradient is."""

from __future__ import annotations

import pytest
import torch
from loops import Loop, X, Y, coached, differences, error, found
from torch import Tensor, nn

import deepteach as dt


class Saturated(Loop):
    """The probability of a sample in each batch is 1 to the last bit."""

    def make(self) -> nn.Module:
        linear = nn.Linear(6, 1)
        with torch.no_grad():
            linear.weight[:, 0] = 1.0
        return nn.Sequential(linear, nn.Sigmoid())

    internal = "0"

    def batch(self, i: int) -> tuple[Tensor, Tensor]:
        x, y = super().batch(i)
        x, y = x.clone(), y.clone()
        x[6, 0], y[6] = 99.0, 1  # none of the samples that an examination asks
        return x, y

    @staticmethod
    def criterion(p: Tensor, y: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy(p[:, 0], (y > 0).to(p.dtype), reduction="none")


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("adjoint", [dt.Reversed, dt.Stored, dt.Checkpointed, dt.Unrolled])
def test_a_saturated_probability(adjoint: type[dt.AbstractAdjoint], window: int) -> None:
    loop = Saturated()
    assert bool((loop.module(loop.batch(0)[0])[6] == 1).all())
    got = found(Saturated, window, adjoint())
    assert error(got, differences(Saturated, window)) < 1e-6


def test_a_training_of_which_samples_saturate_goes_on() -> None:
    loop = coached(Saturated, 2, interval=2)
    for i in range(4):
        loop.step(i, *loop.batch(i))
        loop.coach.update((X[:9], Y[:9]))
    assert loop.coach.last_record.skipped is None
