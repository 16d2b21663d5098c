"""Controls that no meta-gradient teaches: formulas against a direct computation, short runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cases import CASE, bench
from method_training import on, seen, trained
from torch import Tensor, nn
from toy import CLASSES, arrays, settings

import deepteach as dt
from deepteach.core.losses import cross_entropy
from deepteach.core.predict import logits as predicted
from deepteach.data.dataset import Data, from_arrays
from deepteach.errors import ConfigError
from deepteach.teachers.class_balanced import ClassBalanced
from deepteach.teachers.early_learning import EarlyLearning
from deepteach.teachers.just_train_twice import Upweighted
from deepteach.teachers.logit_adjustment import LogitAdjustment
from deepteach.teachers.method import MethodContext
from deepteach.teachers.registry import method
from deepteach.teachers.source_means import SourceMeans
from deepteach.training.api import run

COUNTS = (70, 20, 10)


def batch(count: int = 12, **changes: Any) -> dt.Snapshot:
    found = seen(count=count)
    logits = found.logits.double()
    losses = cross_entropy(logits, found.labels)
    double = {"internal": found.internal.double(), "logits": logits, "losses": losses}
    return replace(found, **{**double, **changes})


@pytest.fixture(scope="module")
def tail() -> Data:
    """A long tail of three classes: 120, 24 and 6 samples, half of them on the other side."""
    made = arrays(train=360, valid=60, test=300)
    keep = np.concatenate([np.flatnonzero(made["y_train"] == y)[:n] for y, n in TAIL.items()])
    return from_arrays(
        **{**made, "x_train": made["x_train"][keep], "y_train": made["y_train"][keep]}
    )


TAIL = {0: 120, 1: 24, 2: 6}


# Logit adjustment


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_logit_adjustment_is_the_published_loss(tau: float) -> None:
    """log(1 + sum over y' != y of (pi_y' / pi_y)^tau exp(z_y' - z_y))."""
    found = batch()
    shaped = LogitAdjustment(COUNTS, tau).sample_losses(found.logits, found, cross_entropy)
    for z, y, value in zip(found.logits, found.labels, shaped, strict=True):
        others = [
            (COUNTS[k] / COUNTS[int(y)]) ** tau * torch.exp(z[k] - z[y])
            for k in range(3)
            if k != int(y)
        ]
        assert float(value) == pytest.approx(float(torch.log1p(torch.stack(others).sum())))


def test_trusted_samples_and_spare_classes_are_not_taken_for_training_ones() -> None:
    teacher = LogitAdjustment((70, 20, 10))
    found = batch(index=torch.tensor([0, 99, 100, 150] * 3))
    shaped = teacher.sample_losses(found.logits, found, cross_entropy)
    plain, all_shifted = found.losses, teacher.sample_losses(found.logits, batch(), cross_entropy)
    own = found.index < 100  # type: ignore[operator]
    assert torch.equal(shaped, torch.where(own, all_shifted, plain))
    assert not torch.isclose(plain, all_shifted).any()
    wide = torch.cat([found.logits, torch.full((12, 2), -1e9).double()], 1)
    spare = teacher.sample_losses(wide, batch(logits=wide), cross_entropy)
    torch.testing.assert_close(spare, all_shifted)
    absent = LogitAdjustment((99, 1, 0)).get_buffer("shift")
    assert absent[2] == absent[1] == pytest.approx(np.log(0.01))


def test_the_student_s_gradient_is_that_of_the_shifted_loss() -> None:
    made = bench(CASE["mlp"])
    x, y = made.batches[0]
    shift = torch.tensor([c / 100 for c in COUNTS]).double().log()
    params = list(made.module.parameters())
    want = torch.autograd.grad(nn.functional.cross_entropy(made.module(x) + shift, y), params)
    got = torch.autograd.grad(made.coach(teacher=LogitAdjustment(COUNTS)).loss(x, y), params)
    for left, right in zip(got, want, strict=True):
        assert torch.allclose(left, right, rtol=1e-9)


def test_logit_adjustment_helps_rare_classes_and_may_end_on_trusted_samples(tail: Data) -> None:
    def right(text: str) -> tuple[float, set[int]]:
        training = trained(tail, text, epochs=6)
        drawn: set[int] = set()
        samples = training.samples
        training.samples = lambda rows, part: drawn.update(rows.tolist()) or samples(rows, part)  # type: ignore[method-assign]
        on(training)
        assert tail.x_test is not None and tail.y_test is not None
        rare = tail.y_test == 2
        return float(
            (predicted(training.module, tail.x_test[rare]).argmax(1) == 2).float().mean()
        ), drawn

    plain, adjusted = right("uniform"), right("logit-adjustment")
    assert adjusted[0] > plain[0] and max(adjusted[1]) < 150
    assert max(right("logit-adjustment+fine_tune=0.34")[1]) >= 150


# Class weights


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 1.0])
def test_class_balanced_weights(beta: float) -> None:
    def weight(count: int) -> float:
        return 1 / sum(beta**k for k in range(count)) if beta < 1 else 1 / count

    found = batch()
    log_weights = ClassBalanced(COUNTS, beta)(found)
    want = torch.tensor([weight(COUNTS[int(y)]) for y in found.labels]).double()
    torch.testing.assert_close(log_weights.exp(), want)


def test_the_gradient_is_that_of_torch_s_class_weights() -> None:
    made = bench(CASE["mlp"])
    x, y = made.batches[0]
    weights = 1 / torch.tensor(COUNTS).double()
    params = list(made.module.parameters())
    loss = nn.functional.cross_entropy(made.module(x), y, weight=weights)
    want = torch.autograd.grad(loss, params)
    got = torch.autograd.grad(made.coach(teacher=ClassBalanced(COUNTS, 1.0)).loss(x, y), params)
    for left, right in zip(got, want, strict=True):
        assert torch.allclose(left, right, rtol=1e-9)


def test_counts_are_those_of_the_training_labels(tail: Data) -> None:
    training = trained(tail, "class-balanced+beta=1")
    found = training.coach.teacher.get_buffer("log_weights").exp()
    assert found.tolist() == pytest.approx([1 / 120, 1 / 24, 1 / 6])


# JTT


def test_the_first_training_s_errors_weigh_more_in_the_second(data: Data) -> None:
    training = trained(data, "jtt+first=2+weight=7", epochs=3)
    teacher = training.coach.teacher
    assert isinstance(teacher, Upweighted)
    start = {name: leaf.clone() for name, leaf in training.module.state_dict().items()}
    assert (training.total, training.per_epoch) == (50, 10)
    ends = on(training, 20)
    assert [end.warm_up for end in ends] == [True, True] and training.episode == 0
    wrong = predicted(training.module, training.x).argmax(1) != training.y
    assert torch.equal(teacher.hard, wrong) and 0 < int(wrong.sum()) < 200
    rates = [training.schedule.rate(step, 10) for step in (0, 29)]
    steps = training.epoch_steps()
    next(steps)
    assert training.episode == 1 and training.progress == pytest.approx(1 / 30)
    assert training.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * rates[0])
    step = training.coach.recorder.last_step
    assert step is not None and step.snapshot.index is not None
    heavy = wrong[step.snapshot.index]
    want = torch.where(heavy, 7.0, 1.0)
    torch.testing.assert_close(step.weights, want / want.sum())
    again = trained(data, "uniform", epochs=3)
    for name, leaf in start.items():
        assert torch.equal(again.module.state_dict()[name], leaf)
    ends = [end for end in steps if end is not None]
    assert [(end.epoch, end.warm_up) for end in ends] == [(1, False), (2, False), (3, False)]
    assert training.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * rates[1])
    assert torch.equal(teacher.hard, wrong)


def test_trusted_samples_are_never_of_the_set() -> None:
    teacher = Upweighted(4, 5.0)
    teacher.hard.fill_(True)
    found = batch(4, index=torch.tensor([0, 3, 4, 9]))
    assert teacher(found).exp().tolist() == pytest.approx([5, 5, 1, 1])


def test_a_run_of_jtt_has_lines_of_the_second_training_only(data: Data) -> None:
    result = run(settings("toy", method="jtt", epochs=2), data)
    assert [line["epoch"] for line in result.metrics] == [1, 2]
    assert result.summary["steps"] == 13 + 2 * 13


# ELR


def test_the_loss_and_the_targets_of_early_learning() -> None:
    """Three steps over samples that come and go, against the formula sample by sample."""
    teacher, beta, weight = EarlyLearning(5, 3, weight=2.0, beta=0.6).double(), 0.6, 2.0
    targets = torch.zeros(5, 3).double()
    generator = torch.Generator().manual_seed(0)
    for index in ([0, 2, 4], [2, 1, 7], [4, 2, 0]):
        z = torch.randn(3, 3, generator=generator).double().requires_grad_()
        labels = torch.tensor([0, 1, 2])
        losses = cross_entropy(z.detach(), labels)
        states = torch.zeros(3, 2).double()
        found = dt.Snapshot(states, z.detach(), labels, losses, index=torch.tensor(index))
        got = teacher.sample_losses(z, found, cross_entropy)
        twice = teacher.sample_losses(z, found, cross_entropy)
        assert torch.equal(got, twice), "only what was stepped on is remembered"
        p = z.softmax(1)
        want = []
        for k, i in enumerate(index):
            value = -p[k, labels[k]].log()
            if i < 5:
                targets[i] = beta * targets[i] + (1 - beta) * p[k].detach()
                target = targets[i].clone()
                value = value + weight * torch.log(1 - (p[k] * target).sum())
            want.append(value)
        torch.testing.assert_close(got, torch.stack(want))
        (left,) = torch.autograd.grad(got.sum(), z, retain_graph=True)
        (right,) = torch.autograd.grad(torch.stack(want).sum(), z)
        torch.testing.assert_close(left, right)
        teacher.observe(found)
        torch.testing.assert_close(teacher.targets[:5], targets)
        trust = teacher.log_trust(found).exp()
        assert float(trust[2]) == pytest.approx(float(targets[index[2], 2]) if index[2] < 5 else 1)


def test_a_sure_student_has_a_finite_loss() -> None:
    teacher = EarlyLearning(2, 3, beta=0.0)
    z = torch.tensor([[90.0, 0, 0], [0, 0, 90.0]]).requires_grad_()
    labels = torch.tensor([0, 0])
    found = dt.Snapshot(
        torch.zeros(2, 2), z.detach(), labels, cross_entropy(z.detach(), labels),
        index=torch.arange(2),
    )  # fmt: skip
    losses = teacher.sample_losses(z, found, cross_entropy)
    (gradient,) = torch.autograd.grad(losses.sum(), z)
    assert losses.isfinite().all() and gradient.isfinite().all()


def test_early_learning_remembers_every_step_and_ranks_by_it(data: Data) -> None:
    training = trained(data, "elr")
    teacher = training.coach.teacher
    assert isinstance(teacher, EarlyLearning)
    on(training, 10)  # an epoch: every sample once
    torch.testing.assert_close(teacher.targets[:200].sum(1), torch.full((200,), 0.3))
    on(training, 13)
    known = teacher.targets[:200].sum(1)
    assert int((known > 0.4).sum()) == 60
    result = run(settings("toy", method="elr", epochs=6), data)
    assert result.summary["noise_auroc"] > 0.8


# Sources


def test_source_means_are_the_probe_s() -> None:
    teacher = SourceMeans(3, CLASSES, memory=0.5)
    trusted, first, second = seen(0, 30), seen(1), seen(2)
    groups = [torch.tensor([0, 1, 0, -1] * 3), torch.tensor([1, 1, 0, 0] * 3)]
    first, second = (replace(s, group=g) for s, g in zip((first, second), groups, strict=True))
    teacher.observe(first)
    assert torch.equal(teacher(first), torch.zeros(12)), "no probe has judged yet"
    teacher.fit(trusted)
    assert torch.equal(teacher(first), torch.zeros(12))

    def means(*parts: tuple[dt.Snapshot, Tensor, float]) -> list[float]:
        found = []
        for source in (0, 1):
            total = sum(share * float(p[s.group == source].sum()) for s, p, share in parts)
            found.append(
                total / sum(share * int((s.group == source).sum()) for s, _, share in parts)
            )
        total = sum(share * float(p[s.group >= 0].sum()) for s, p, share in parts)  # type: ignore[operator]
        every = sum(share * int((s.group >= 0).sum()) for s, _, share in parts)  # type: ignore[operator]
        return [*found, total / every]

    one = first, teacher.probe(first)[:, 0].exp(), 1.0
    teacher.observe(first)
    assert torch.equal(teacher(first), torch.zeros(12)), "not before the next fit"
    teacher.fit(trusted)
    assert teacher.means.tolist() == pytest.approx(means(one))
    two = second, teacher.probe(second)[:, 0].exp(), 1.0
    teacher.observe(second)
    teacher.fit(trusted)
    expected = means((*one[:2], 0.5), two)
    assert teacher.means.tolist() == pytest.approx(expected) and expected[0] != expected[1]
    weights = teacher(replace(first, group=torch.tensor([0, 1, 2, -1] * 3))).exp()
    assert weights[:4].tolist() == pytest.approx([*expected, 1.0])


def test_a_source_of_wrong_labels_weighs_less() -> None:
    made = arrays(train=108, valid=48)
    group = np.arange(108) // 3 % 3
    made["y_train"] = np.where(group == 1, (made["y_train"] + 1) % 3, made["y_train"])
    training = trained(from_arrays(**made, group_train=group), "source-means", epochs=8)
    on(training)
    means = training.coach.teacher.get_buffer("means")
    assert means[1] < 0.5 * means[[0, 2]].min()
    by_class = trained(from_arrays(**made), "source-means", epochs=1)
    on(by_class)
    assert len(by_class.coach.teacher.get_buffer("means")) == CLASSES


# What is refused


@pytest.mark.parametrize(
    "text, message",
    [
        ("logit-adjustment+tau=-1", "tau must be 0 or more"),
        ("logit-adjustment+fine_tune=1", "share"),
        ("class-balanced+beta=1.5", r"beta must lie in \[0, 1\]"),
        ("jtt+first=0", "1 epoch or more"),
        ("jtt+weight=0", "weight must be above 0"),
        ("elr+beta=1", r"beta in \[0, 1\)"),
        ("elr+weight=-1", "weight of 0 or more"),
        ("source-means+memory=2", "memory"),
    ],
)
def test_bad_settings_are_refused(text: str, message: str) -> None:
    context = MethodContext(CLASSES, 6, 60, counts=COUNTS, samples=100, group_counts=(60, 40))
    with pytest.raises(ConfigError, match=message):
        method(text, context)


@pytest.mark.parametrize("name", ["logit-adjustment", "class-balanced", "jtt", "elr"])
def test_a_context_without_data_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="needs"):
        method(name, MethodContext(CLASSES, 6, 60))


def test_what_remembers_needs_to_know_the_sample() -> None:
    found = batch()
    with pytest.raises(ConfigError, match="index="):
        Upweighted(4)(found)
    with pytest.raises(ConfigError, match="index="):
        EarlyLearning(4, 3).sample_losses(found.logits, found, cross_entropy)
    with pytest.raises(ConfigError, match="--group COLUMN"):
        SourceMeans(2, 3)(found)
