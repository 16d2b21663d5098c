"""The coach's loss and weights: as by hand, and equal weights are plain training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from cases import CASE, Setting, bench
from coach_loop import EVERY_STEP, MLP, NORM, everything, same
from torch import Tensor, nn

import deepteach as dt


@pytest.mark.parametrize("train", [True, False])
def test_loss_is_the_weighted_mean_by_hand(train: bool) -> None:
    run = bench(NORM, replace(EVERY_STEP, train=train))
    coach, (x, y) = run.coach(), run.batches[0]
    w = coach.weights(x, y)
    twin = copy.deepcopy(run.module)
    losses = nn.functional.cross_entropy(twin(x), y, reduction="none")
    want = (w * losses).sum() / w.sum()
    value = coach.loss(x, y)
    assert value.dim() == 0 and float((value - want).detach().abs()) < 1e-14
    value.backward()
    want.backward()
    for ours, theirs in zip(run.module.parameters(), twin.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-10, atol=1e-14)
    for ours, theirs in zip(run.module.buffers(), twin.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_loss_without_gradients_is_the_same_and_remembers_nothing() -> None:
    run = bench(MLP, EVERY_STEP)
    coach = run.coach()
    with torch.no_grad():
        values = [coach.loss(*run.batches[0]) for _ in range(3)]
    assert coach.steps == 0 and not coach.recorder.steps
    assert torch.equal(values[0], coach.loss(*run.batches[0]).detach())


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", ["batchnorm", "dropout", "encoder", "dict"])
def test_weights_sum_to_the_batch_size_and_change_nothing(name: str, train: bool) -> None:
    run = bench(CASE[name], replace(EVERY_STEP, train=train))
    coach, (x, y) = run.coach(), run.batches[0]
    before = everything(run, coach)
    w = coach.weights(x, y)
    assert same(everything(run, coach), before)
    assert w.shape == y.shape and not w.requires_grad and bool((w >= 0).all())
    assert float(w.sum()) == pytest.approx(len(y), rel=1e-12)
    assert torch.allclose(w, len(y) * coach.teacher(coach.look(x, y)).softmax(0))


@pytest.mark.parametrize("through", [False, True])
def test_gradient_reaches_the_student_through_the_weights_only_if_asked(through: bool) -> None:
    run = bench(MLP, replace(EVERY_STEP, through_weights=through))
    coach, (x, y) = run.coach(), run.batches[0]
    losses = nn.functional.cross_entropy(run.module(x), y, reduction="none")
    stopped = (coach.weights(x, y) / len(y)) @ losses
    leaves = list(run.module.parameters())
    want = torch.autograd.grad(stopped, leaves)
    coach.loss(x, y).backward()
    gaps = [float((p.grad - g).norm()) for p, g in zip(leaves, want, strict=True)]  # pyright: ignore
    assert (max(gaps) > 1e-4) is through


class Constant(dt.AbstractTeacher):
    """Every sample the same log weight, through a parameter that cannot matter."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.tensor(-3.0))

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        return self.z.expand(len(snapshot.labels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("teacher", [Constant, dt.Uniform])
def test_equal_weights_are_plain_training(teacher: Callable, dtype: torch.dtype) -> None:
    runs = [bench(NORM, Setting(interval=20), dtype) for _ in range(2)]
    coach = runs[0].coach(teacher=teacher().to(dtype))
    runs[0].train(coach)
    runs[1].setting = replace(runs[1].setting, warmup=22, interval=0)
    runs[1].train(coach)  # nothing but warm-up, so the coach is not called
    slack = 1e-6 if dtype == torch.float32 else 1e-14
    for ours, theirs in zip(runs[0].module.parameters(), runs[1].module.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=slack, atol=slack)


class Normalising(dt.AbstractTeacher):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.read = nn.BatchNorm1d(1).double(), nn.Linear(1, 1).double()

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        return self.read(self.norm(snapshot.losses.unsqueeze(1))).squeeze(1)


@pytest.mark.parametrize("through", [False, True])
def test_asking_moves_no_running_statistics_of_the_teacher(through: bool) -> None:
    run = bench(MLP, replace(EVERY_STEP, through_weights=through), teacher=lambda _: Normalising())
    coach = run.coach()
    run.train(coach)
    before = everything(run, coach)
    assert int(coach.teacher.norm.num_batches_tracked) == coach.steps  # type: ignore[union-attr]
    coach.weights(*run.batches[0])
    coach.meta_gradient(*run.valid)
    assert same(everything(run, coach), before)
