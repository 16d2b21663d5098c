"""The training loop: batches, rates, updates, and what it reports of an epoch."""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from toy import CLASSES, FEATURES, arrays, dropout
from toy_training import LR, SCHEDULE, training

import deepteach as dt
from deepteach.data.dataset import Data, from_arrays
from deepteach.errors import ConfigError
from deepteach.rng import stream
from deepteach.teachers.confident_learning import Pruned
from deepteach.teachers.fixed_probe import FixedProbe
from deepteach.teachers.method import Method
from deepteach.training.loop import EpochEnd, TrainingLoop
from deepteach.training.schedule import batches, steps_per_epoch


@pytest.fixture(scope="module")
def data() -> Data:
    return from_arrays(**arrays(train=75, valid=24))


def ends(made: TrainingLoop) -> list[EpochEnd]:
    return [end for end in made.epoch_steps() if end is not None]


@given(count=st.integers(1, 60), size=st.integers(1, 20), seed=st.integers(0, 5))
def test_each_sample_once_an_epoch(count: int, size: int, seed: int) -> None:
    size = min(size, count)
    parts = batches(count, size, stream(seed, "order"))
    assert Counter(torch.cat(parts).tolist()) == Counter(range(count))
    assert len(parts) == steps_per_epoch(count, size)
    if size > 1 and count > 1:
        assert all(2 <= len(part) <= size + 1 for part in parts)
    again = batches(count, size, stream(seed, "order"))
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))


def test_streams_differ_by_every_part_of_their_name() -> None:
    names = [(s, p, i) for s in (0, 1) for p in ("order", "augment") for i in (0, 1, 10)]
    draws = {name: torch.rand(4, generator=stream(*name)).tolist() for name in names}
    assert len({tuple(draw) for draw in draws.values()}) == len(names)
    assert torch.rand(4, generator=stream(0, "order", 0)).tolist() == draws[(0, "order", 0)]


@given(st.lists(st.integers(0, 9), max_size=4), st.integers(0, 12))
def test_the_rate_drops_at_each_milestone(milestones: list[int], epoch: int) -> None:
    schedule = replace(SCHEDULE, milestones=tuple(milestones))
    for step in (7 * epoch, 7 * epoch + 6):
        assert schedule.rate(step, 7) == 0.1 ** len([m for m in milestones if m <= epoch])


def test_rates_of_every_shape() -> None:
    """Four epochs of 5 steps, of which one and a half warm up."""
    cosine = replace(SCHEDULE, shape="cosine")
    found = [cosine.rate(step, 5) for step in range(20)]
    assert found == pytest.approx([(1 + np.cos(np.pi * t / 20)) / 2 for t in range(20)])
    assert found == sorted(found, reverse=True) and found[0] == 1 and found[-1] > 0
    ramp = [(t + 1) / 7.5 for t in range(7)]
    for shape, rest in (
        ("constant", [1.0] * 13),
        ("step", [1.0] * 3 + [0.1] * 5 + [0.01] * 5),
        ("cosine", [(1 + np.cos(np.pi * max(t - 7.5, 0) / 12.5)) / 2 for t in range(7, 20)]),
    ):
        warm = replace(SCHEDULE, shape=shape, warmup=1.5)
        assert [warm.rate(step, 5) for step in range(20)] == pytest.approx([*ramp, *rest])


def test_a_step_has_the_rate_of_its_schedule(data: Data) -> None:
    """Student and teacher alike, in the step itself and in what is recorded of it."""
    made = training(data, replace(SCHEDULE, shape="cosine", warmup=0.6, window=3))
    teacher = made.coach.teacher_optimizer
    assert teacher is not None
    first, seen, factor = teacher.param_groups[0]["lr"], 0, 1.0
    for end in made.epoch_steps():
        factor = made.schedule.rate(made.step - 1, 5)
        assert made.optimizer.param_groups[0]["lr"] == LR * factor
        assert teacher.param_groups[0]["lr"] == first * factor
        seen += end is not None
    assert seen == 4 and factor < 0.01


def test_an_episode_has_the_whole_schedule(data: Data) -> None:
    made = training(
        data,
        replace(SCHEDULE, shape="cosine", epochs=2),
        method=Method(dt.Uniform(), curriculum=Pruned(2)),
    )
    rates = [made.optimizer.param_groups[0]["lr"] for _ in made.epoch_steps()]
    assert len(rates) == 30 and rates[:10] == rates[10:20] == rates[20:]


def test_epochs_and_steps(data: Data) -> None:
    made = training(data)
    seen = list(made.epoch_steps())
    assert made.total == made.step == 20 and made.per_epoch == 5
    found = [end for end in seen if end is not None]
    assert [(end.epoch, end.step) for end in found] == [(1, 5), (2, 10), (3, 15), (4, 20)]
    assert sum(end.updates for end in found) == 20 // SCHEDULE.interval
    assert list(made.epoch_steps()) == []


def test_the_students_and_the_teachers_rates_drop_together(data: Data) -> None:
    made = training(data)
    teacher = made.coach.teacher_optimizer
    assert teacher is not None
    first = teacher.param_groups[0]["lr"]
    rates: list[tuple[float, float]] = []
    for end in made.epoch_steps():
        if end is not None:
            pair = (made.optimizer.param_groups[0]["lr"], teacher.param_groups[0]["lr"])
            rates.append(pair)
    factors = [(student / LR, other / first) for student, other in rates]
    assert [f for pair in factors for f in pair] == pytest.approx(
        [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]
    )


def test_uniform_is_plain_training(data: Data) -> None:
    """The same bits as the loop anyone would write."""
    made = training(data, method=Method(dt.Uniform(), dt.Stored()))
    plain = dropout(CLASSES)
    plain.load_state_dict(made.module.state_dict())
    torch.manual_seed(9)
    losses = [end.train_loss for end in ends(made)]
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    torch.manual_seed(9)
    expected = []
    for epoch in range(4):
        optimizer.param_groups[0]["lr"] = 0.1 * (1, 1, 0.1, 0.01)[epoch]
        total = 0.0
        for rows in batches(75, 16, stream(0, "order", epoch)):
            optimizer.zero_grad()
            each = nn.functional.cross_entropy(
                plain(data.x_train[rows]), data.y_train[rows], reduction="none"
            )
            loss = each.mean()
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        expected.append(total / 5)
    for name, leaf in plain.state_dict().items():
        torch.testing.assert_close(made.module.state_dict()[name], leaf, rtol=1e-5, atol=1e-6)
    assert losses == pytest.approx(expected, rel=1e-5)


def test_the_same_seed_is_the_same_run(data: Data) -> None:
    def run(seed: int) -> list[Tensor]:
        made = training(data, seed=seed)
        torch.manual_seed(1)
        assert len(ends(made)) == 4
        return [*made.module.state_dict().values(), made.weights]

    first, again, other = run(0), run(0), run(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_weights_are_those_when_last_seen(data: Data) -> None:
    made = training(data)
    assert torch.equal(made.weights, torch.ones(75))
    steps = made.epoch_steps()
    next(steps)
    first = batches(75, 16, stream(0, "order", 0))[0]
    batch = made.weights[first]
    torch.testing.assert_close(batch, made.coach.last_weights * len(first))
    assert float(batch.sum()) == pytest.approx(16, rel=1e-5)
    unseen = torch.ones(75, dtype=torch.bool)
    unseen[first] = False
    assert torch.equal(made.weights[unseen], torch.ones(59))
    (*_, end) = (end for end in steps if end is not None)
    assert end.weights.shape == (75,) and float(end.weights.sum()) == pytest.approx(75, rel=1e-4)


def test_trusted_batches_are_fresh_samples(data: Data) -> None:
    made = training(data)
    drawn = []
    for step in range(60):
        x, y = made.trusted(step)
        rows = [int((data.x_valid == row).all(1).nonzero()) for row in x]
        assert len(set(rows)) == len(rows) == SCHEDULE.valid_batch
        assert torch.equal(y, data.y_valid[rows])
        drawn.append(frozenset(rows))
    assert len(set(drawn)) > 50
    assert frozenset().union(*drawn) == frozenset(range(24))
    made.schedule = replace(SCHEDULE, valid_batch=24)
    assert made.trusted(0)[0] is made.x_valid


def test_trusted_batches_are_augmented_as_training_samples_are(data: Data) -> None:
    def marked(x: Tensor, generator: torch.Generator) -> Tensor:
        return x + torch.rand(1, generator=generator)

    made = training(data, replace(SCHEDULE, valid_batch=24), augment=marked)
    moved = [made.trusted(step)[0] - made.x_valid for step in (0, 0, 1)]
    assert torch.equal(moved[0], moved[1]) and not torch.equal(moved[1], moved[2])
    assert float(moved[0].std()) < 1e-5 < float(moved[0].mean())


def test_augmentation_is_drawn_by_step(data: Data) -> None:
    seen: list[list[float]] = []

    def augment(x: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(torch.rand(2, generator=generator).tolist())
        return x

    ends(training(data, augment=augment))
    first = list(seen)
    seen.clear()
    ends(training(data, augment=augment))
    trusted = 6  # one batch an update, beside one a step
    assert seen == first and len({tuple(draw) for draw in seen}) == len(seen) == 20 + trusted


def test_epoch_means(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    made = training(data)
    losses, end = [], None
    for end in made.epoch_steps():
        if end is not None:
            break
    assert end is not None
    made = training(data)
    original = made.coach.loss

    def loss(*batch: Any, **names: Any) -> Tensor:
        losses.append(original(*batch, **names))
        return losses[-1]

    monkeypatch.setattr(made.coach, "loss", loss)
    again = next(e for e in made.epoch_steps() if e is not None)
    assert again.train_loss == end.train_loss
    assert again.train_loss == pytest.approx(sum(float(value.detach()) for value in losses) / 5)
    assert 0 < again.effective_sample_size <= 1
    assert again.valid_loss is not None and again.meta_gradient_norm is not None


def test_a_uniform_teacher_has_no_updates(data: Data) -> None:
    found = ends(training(data, method=Method(dt.Uniform(), dt.Reversed())))
    assert [end.updates for end in found] == [0, 0, 0, 0]
    assert all(end.valid_loss is None and end.drift is None for end in found)
    assert all(end.effective_sample_size == pytest.approx(1) for end in found)


def test_a_single_sample_never_is_a_batch() -> None:
    """65 = 4 * 16 + 1: batch normalisation would fail on the last."""
    data = from_arrays(**arrays(train=65, valid=24))
    assert len(ends(training(data))) == 4


def test_batches_of_one_come_to_an_end() -> None:
    data = from_arrays(**arrays(train=12, valid=24))
    module = nn.Sequential()
    module.add_module("fc", nn.Linear(FEATURES, CLASSES))
    made = training(data, replace(SCHEDULE, batch_size=1, epochs=2), module=module)
    seen = list(itertools.islice(made.epoch_steps(), 100))
    assert [end.step for end in seen if end is not None] == [12, 24]


def test_a_single_trusted_sample_where_a_pass_needs_two_is_refused(data: Data) -> None:
    layers = {"in": nn.Linear(FEATURES, 8), "norm": nn.BatchNorm1d(8), "fc": nn.Linear(8, CLASSES)}
    normed, one = nn.Sequential(OrderedDict(layers)), replace(SCHEDULE, valid_batch=1)
    for teacher in (dt.Teacher([dt.Internal(8)]), FixedProbe()):
        with pytest.raises(ConfigError, match="a valid_batch of 2 or more"):
            training(data, one, module=normed, method=Method(teacher))
    training(data, one, module=normed, method=Method(dt.Uniform()))
    plain = nn.Sequential(OrderedDict({"in": nn.Linear(FEATURES, 8), "fc": nn.Linear(8, CLASSES)}))
    training(data, one, module=plain)


def test_refuses_batches_above_the_data(data: Data) -> None:
    with pytest.raises(ConfigError, match="76 is more than the 75 training samples: lower"):
        training(data, replace(SCHEDULE, batch_size=76))
    assert training(data, replace(SCHEDULE, batch_size=75)).per_epoch == 1


def test_frozen_parameters_stay(data: Data) -> None:
    module = nn.Sequential()
    module.add_module("body", nn.Linear(FEATURES, 6))
    module.add_module("fc", nn.Linear(6, CLASSES))
    module.get_submodule("body").requires_grad_(False)
    before = {name: leaf.clone() for name, leaf in module.state_dict().items()}
    ends(training(data, module=module))
    after = module.state_dict()
    assert torch.equal(after["body.weight"], before["body.weight"])
    assert not torch.equal(after["fc.weight"], before["fc.weight"])
