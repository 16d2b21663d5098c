"""What is not finite is an error, and student, optimizer and teacher stay as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from cases import Bench
from coach_loop import NORM, flat, same, started, step
from torch import Tensor, nn

import deepteach as dt


@contextmanager
def unchanged(run: Bench, coach: dt.Coach, words: str) -> Iterator[None]:
    """NumericError, with student, buffers, optimizer and teacher bit for bit as before."""

    def state() -> list[Any]:
        return flat([run.module.state_dict(), run.optimizer.state_dict(), coach.omega])

    before = state()
    with pytest.raises(dt.NumericError, match=words):
        yield
    assert same(state(), before)


BAD = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("adjoint", [dt.Reversed, dt.Lookahead])
@pytest.mark.parametrize("value", BAD)
def test_bad_loss(value: float, adjoint: type[dt.AbstractAdjoint]) -> None:
    run, coach = started(NORM, adjoint=adjoint())
    step(run, coach, 1)
    x, y = run.batches[0]
    x = x.clone()
    x[0, 0, 0, 0] = value
    with unchanged(run, coach, "the loss of .* samples is not finite"):
        coach.loss(x, y)
    run.optimizer.zero_grad()
    step(run, coach, 1)  # the loop may go on


def steep(z: Tensor, y: Tensor) -> Tensor:
    """Finite values, NaN derivatives: the square root at 0."""
    return nn.functional.cross_entropy(z, y, reduction="none") + (0 * z).sum(1).sqrt()


def test_bad_gradient() -> None:
    run, coach = started(NORM, loss=steep)
    before = flat(run.module.state_dict())
    coach.loss(*run.batches[0]).backward()
    with pytest.raises(dt.NumericError, match="the step was not taken"):
        run.optimizer.step()
    assert same(flat(run.module.state_dict()), before) and not run.optimizer.state
    run.optimizer.zero_grad()
    coach.loss(*run.batches[0])


@pytest.mark.parametrize("value", BAD)
def test_bad_validation_loss(value: float) -> None:
    run, coach = started(NORM)
    step(run, coach, 0)
    with unchanged(run, coach, "validation loss or its gradient is not finite"):
        coach.update((run.valid[0] * value, run.valid[1]))
    assert coach.update(run.valid) is not None


def test_bad_validation_gradient() -> None:
    run, coach = started(NORM, validation_loss=lambda z, y: steep(z, y).mean())
    step(run, coach, 0)
    with unchanged(run, coach, "validation loss or its gradient is not finite"):
        coach.update(run.valid)


class Steep(dt.AbstractTeacher):
    """Finite weights whose derivative is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        return self.z.abs().sqrt() * snapshot.losses


def test_bad_teacher_gradient() -> None:
    run, coach = started(NORM, teacher=Steep())
    step(run, coach, 0)
    with unchanged(run, coach, "the teacher's gradient is not finite"):
        coach.update(run.valid)


@pytest.mark.parametrize("value", BAD[:2])
def test_bad_teacher_weights(value: float) -> None:
    run, coach = started(NORM)
    step(run, coach, 0)
    with torch.no_grad():
        next(run.teacher.parameters()).fill_(value)
    with unchanged(run, coach, "the teacher's weights are not finite"):
        coach.loss(*run.batches[0])


# Found by an outside eye once, and kept from coming back.


def test_bad_validation_loss_in_the_lookahead() -> None:
    run, coach = started(NORM, adjoint=dt.Lookahead())
    step(run, coach, 0)
    coach.update((run.valid[0] * torch.nan, run.valid[1]))
    with unchanged(run, coach, "validation loss or its gradient is not finite"):
        coach.loss(*run.batches[0])
