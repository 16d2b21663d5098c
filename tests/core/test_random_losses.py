"""A loss that draws random numbers (dropout, sampled negatives) is replayed with the same ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loops import VALID, Loop, coached, differences, error, found
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

import deepteach as dt
from deepteach.errors import ConfigError


class Layers(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.a, self.fc, self.drop = nn.Linear(6, 5), nn.Linear(5, 3), nn.Dropout(rate)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc(dropout(self.a(x).tanh(), 0.2, self.training)))


class InTheModule(Loop):
    rate = 0.3

    def make(self) -> nn.Module:
        return Layers(self.rate)

    def run(self, window: int, moved: Tensor | None = None) -> None:
        torch.manual_seed(5)
        super().run(window, moved)
        self.module.eval()


def random_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(dropout(logits, 0.3), labels, reduction="none")


class InTheLoss(InTheModule):
    """The same numbers, drawn by the loss."""

    rate = 0.0
    options = {"loss": random_loss, "validation_loss": cross_entropy}


@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("adjoint", [dt.Stored, dt.Reversed, dt.Checkpointed, dt.Unrolled])
def test_exact(adjoint: type[dt.AbstractAdjoint], window: int) -> None:
    want = differences(InTheModule, window)
    assert error(found(InTheLoss, window, adjoint()), want) < 1e-6


def test_the_loops_own_draws_are_those_of_the_plain_loop() -> None:
    torch.manual_seed(6)
    for _ in range(4):
        random_loss(torch.zeros(8, 3).double(), torch.zeros(8).long())
    expected = torch.get_rng_state()
    loop = coached(Loop, 2, interval=2, loss=random_loss)
    torch.manual_seed(6)
    for i in range(4):
        loop.step(i, *loop.batch(i))
        loop.coach.update(VALID)
        loop.coach.weights(*loop.batch(i))
        loop.coach.look(*loop.batch(i))
    assert torch.equal(torch.get_rng_state(), expected)


def test_where_it_cannot_be_repeated_it_is_refused() -> None:
    class Shaping(dt.AbstractTeacher):
        shapes_loss = True

        def __init__(self) -> None:
            super().__init__()
            self.k = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, snapshot: dt.Snapshot) -> Tensor:
            return self.k * torch.zeros_like(snapshot.losses)

        def sample_losses(self, logits: Tensor, snapshot: dt.Snapshot, loss: Any) -> Tensor:
            return loss(self.k * logits, snapshot.labels)

    loop = Loop()
    coach = dt.Coach(loop.student(), loop.optimizer, Shaping(), loss=random_loss)
    with pytest.raises(ConfigError, match="draws random numbers") as got:
        coach.loss(*loop.batch(0))
    assert "\n" not in str(got.value)
    loop = coached(Loop, 2, loss=random_loss, adjoint=dt.Stored(micro_batch=3))
    with pytest.raises(ConfigError, match="cannot split the random numbers"):
        loop.step(0, *loop.batch(0))
