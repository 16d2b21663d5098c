"""The coach's update: what it moves and reports, when, and what it leaves alone."""

from __future__ import annotations

import copy
import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import CASE, Setting, bench
from coach_loop import (
    DROP,
    EVERY_STEP,
    MLP,
    NORM,
    everything,
    flat,
    same,
    started,
    step,
    valid_loader,
)
from torch import Tensor, nn

import deepteach as dt


@pytest.mark.parametrize("adjoint", [dt.Reversed, dt.Stored, dt.Unrolled])
@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("name", ["batchnorm", "dropout", "running", "lstm"])
def test_meta_gradient_changes_nothing(
    name: str, through: bool, adjoint: type[dt.AbstractAdjoint]
) -> None:
    run = bench(CASE[name], Setting(window=3, through_weights=through))
    coach = run.coach(adjoint())
    run.train(coach)
    before = everything(run, coach)
    first = coach.meta_gradient(*run.valid)
    assert same(everything(run, coach), before)
    assert same(flat(coach.meta_gradient(*run.valid)), flat(first))
    assert list(first) == [name for name, _ in run.teacher.named_parameters()]


def test_update_moves_the_teacher_only() -> None:
    run = bench(NORM, Setting(window=3))
    coach = run.coach()
    run.train(coach)
    teacher = flat(run.teacher.state_dict())
    student = flat([run.module.state_dict(), run.optimizer.state_dict(), torch.get_rng_state()])
    assert coach.update(run.valid) is not None
    after = flat([run.module.state_dict(), run.optimizer.state_dict(), torch.get_rng_state()])
    assert same(after, student) and not same(flat(run.teacher.state_dict()), teacher)


@pytest.mark.parametrize("interval, window", [(1, 1), (3, 2), (4, 4)])
def test_update_acts_at_every_interval(interval: int, window: int) -> None:
    run = bench(MLP, Setting(window, interval, warmup=0))
    coach, acted = run.coach(), []
    for t in range(12):
        step(run, coach, t)
        gradient = coach.meta_gradient(*run.valid)
        found = coach.update(run.valid)
        if found is not None:
            acted.append(t + 1)
            assert found is coach.last_record and found.step == coach.steps == t + 1
            norm = sum(float(leaf.square().sum()) for leaf in gradient.values()) ** 0.5
            assert found.gradient_norm == pytest.approx(norm, rel=1e-12)
            assert found.drift is not None and found.drift < 1e-12
            assert 0 < found.effective_sample_size <= 1
    assert acted == list(range(interval, 13, interval))


def test_teacher_descends_the_meta_gradient() -> None:
    run = bench(MLP, EVERY_STEP)
    optimizer = torch.optim.SGD(run.teacher.parameters(), lr=0.5)
    coach = run.coach(teacher_optimizer=optimizer)
    step(run, coach, 0)
    gradient, before = coach.meta_gradient(*run.valid), copy.deepcopy(coach.omega)
    coach.update(run.valid)
    for name, leaf in coach.omega.items():
        assert torch.allclose(leaf, before[name] - 0.5 * gradient[name], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("adjoint", [dt.Reversed, dt.Lookahead])
def test_users_random_numbers_are_the_same_without_updates(
    adjoint: type[dt.AbstractAdjoint],
) -> None:
    def numbers(taught: bool) -> list[Any]:
        run = bench(DROP, replace(EVERY_STEP, sizes=(5,)))
        coach, found = run.coach(adjoint()), []
        torch.manual_seed(4)
        for t in range(6):
            step(run, coach, t)
            if taught:
                coach.update(valid_loader(run))
            found.append(torch.rand(3))
        return flat(found)

    assert same(numbers(True), numbers(False))


def test_collected_coach_leaves_no_hooks() -> None:
    run = bench(MLP, Setting())
    coach = run.coach()
    run.train(coach)
    coach.update(run.valid)
    del coach
    gc.collect()
    assert not run.optimizer._optimizer_step_pre_hooks
    assert not run.optimizer._optimizer_step_post_hooks
    leaves = run.module.parameters()
    assert not any(getattr(leaf, "_post_accumulate_grad_hooks", None) for leaf in leaves)


def test_teacher_without_parameters_costs_no_validation_pass() -> None:
    run = bench(MLP, EVERY_STEP)
    coach = run.coach(teacher=dt.Uniform())
    step(run, coach, 0)
    bad = (run.valid[0] * torch.nan, run.valid[1])
    assert coach.update(bad) is None and coach.meta_gradient(*run.valid) == {}


class Single(dt.AbstractTeacher):
    """All weight on the first sample of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.tensor(50.0, dtype=torch.float64))

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        first = torch.zeros_like(snapshot.losses)
        first[0] = 1
        return self.z * first


@pytest.mark.parametrize("size, collapsed", [(100, True), (20, False)])
def test_collapse_is_reported(size: int, collapsed: bool) -> None:
    run, coach = started(MLP, replace(EVERY_STEP, sizes=(size,)), teacher=Single())
    step(run, coach, 0)
    if collapsed:
        with pytest.warns(dt.CollapseWarning, match="weight decay"):
            found = coach.update(run.valid)
    else:
        found = coach.update(run.valid)
    assert found is not None
    assert found.effective_sample_size == pytest.approx(1 / size, rel=1e-6)


# Found by an outside eye once, and kept from coming back.


def test_update_after_a_plain_step() -> None:
    run, coach = started()
    step(run, coach, 0)
    run.optimizer.zero_grad()
    nn.functional.cross_entropy(run.module(run.batches[0][0]), run.batches[0][1]).backward()
    run.optimizer.step()
    with pytest.warns(dt.WindowWarning, match="without coach.loss.*waits for the next step"):
        assert coach.update(run.valid) is None


def test_frozen_teacher_parameter_stays() -> None:
    run = bench(MLP, EVERY_STEP)
    embedding = run.teacher.get_parameter("features.1.embedding.weight").requires_grad_(False)
    coach, before = run.coach(), embedding.clone()
    step(run, coach, 0)
    coach.update(run.valid)
    assert torch.equal(embedding, before)


class Halved(dt.Uniform):
    """Every raw weight 1/2, averaged over the batch instead of normalised."""

    normalised = False

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        return self.z.log().expand(len(snapshot.labels))


def test_effective_size_of_equal_weights_is_one() -> None:
    run, coach = started(teacher=Halved())
    step(run, coach, 0)
    found = coach.update(run.valid)
    assert found is not None and found.effective_sample_size == pytest.approx(1)
