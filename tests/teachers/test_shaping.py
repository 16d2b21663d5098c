"""Teachers that shape the loss: what each of them makes of it, and from where it starts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deepteach as dt
from deepteach.core.losses import cross_entropy
from deepteach.errors import ConfigError
from deepteach.teachers.class_shift import ClassShift, prior_shift
from deepteach.teachers.label_mixing import LabelMixing
from deepteach.teachers.shaping import Shaping
from deepteach.teachers.temperature import Temperature
from deepteach.teachers.transition import Transition

CLASSES = 3


def snapshot(count: int = 30, seed: int = 0, **names: Any) -> dt.Snapshot:
    """States that tell the class apart, and a student that says little."""
    torch.manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    states = 4 * nn.functional.one_hot(labels, CLASSES).float() + torch.randn(count, CLASSES)
    logits = torch.randn(count, CLASSES)
    return dt.Snapshot(states, logits, labels, cross_entropy(logits, labels), **names)


@pytest.mark.parametrize(
    "teacher", [ClassShift(CLASSES), Temperature(), LabelMixing(), Transition(CLASSES)]
)
def test_teaching_begins_at_plain_training(teacher: Shaping) -> None:
    seen = snapshot()
    losses = teacher.sample_losses(seen.logits, seen, cross_entropy)
    near = 0.2 if isinstance(teacher, Transition) else 1e-6
    assert torch.allclose(losses, seen.losses, atol=near)
    assert torch.equal(teacher(seen), torch.zeros(len(seen.losses)))


def test_shifts_are_added_to_the_logits_of_training_samples_alone() -> None:
    teacher = ClassShift(CLASSES, start=torch.tensor([1.0, 0.0, -1.0]))
    with torch.no_grad():
        teacher.shift.copy_(torch.tensor([0.5, 0.0, 0.0]))
    group = torch.tensor([0, -1] * 15)
    seen = snapshot(group=group)
    found = teacher.sample_losses(seen.logits, seen, cross_entropy)
    shifted = cross_entropy(seen.logits + torch.tensor([1.5, 0.0, -1.0]), seen.labels)
    assert torch.allclose(found, torch.where(group == -1, seen.losses, shifted))
    wide = torch.cat([seen.logits, torch.full((30, 1), -1e4)], 1)
    assert torch.allclose(teacher.sample_losses(wide, seen, cross_entropy), found, atol=1e-5)
    with pytest.raises(ConfigError, match="or more columns"):
        teacher.sample_losses(seen.logits[:, :2], seen, cross_entropy)


def test_the_prior_shift_is_that_of_the_counts() -> None:
    tail, balanced = [1000, 100, 10], [100, 100, 100]
    found = prior_shift(tail, balanced)
    share = torch.tensor([1001, 101, 11]) / 1113
    wanted = (share / ((100 + 3 * share) / 303)).log()
    assert torch.allclose(found, wanted - wanted.mean(), atol=1e-6)
    assert abs(float(found.sum())) < 1e-6 and found[0] > found[1] > found[2]


@pytest.mark.parametrize(
    "given, trusted",
    [
        ([1000, 1000, 1000], [14, 7, 9]),  # an accident of 30 draws
        ([1000, 100, 10], [100, 10, 1]),  # the same frequencies
        ([1000, 100, 10], []),
        ([], []),
        ([10, 10], [0, 0]),
    ],
)
def test_no_shift_where_the_counts_do_not_say_so(given: list[int], trusted: list[int]) -> None:
    assert not prior_shift(given, trusted).any()


def test_a_temperature_divides_the_logits() -> None:
    teacher, seen = Temperature(), snapshot()
    with torch.no_grad():
        teacher.log_temperature.fill_(torch.tensor(2.0).log())
    found = teacher.sample_losses(seen.logits, seen, cross_entropy)
    assert torch.allclose(found, cross_entropy(seen.logits / 2, seen.labels))


def test_labels_are_mixed_with_those_of_the_probe() -> None:
    teacher, trusted = LabelMixing(), snapshot()
    teacher.fit(trusted)
    wrong = replace(trusted, labels=(trusted.labels + 1) % CLASSES)
    assert float((teacher.probe.suggested(wrong) == trusted.labels).float().mean()) > 0.9
    with torch.no_grad():
        teacher.offset.fill_(0.0)
    found = teacher.sample_losses(wrong.logits, wrong, cross_entropy)
    other = cross_entropy(wrong.logits, teacher.probe.suggested(wrong))
    assert torch.allclose(found, (cross_entropy(wrong.logits, wrong.labels) + other) / 2)
    with torch.no_grad():
        teacher.slope.copy_(torch.tensor([-1.0, 0.0]))
    trust = teacher.log_trust(wrong) < teacher.log_trust(trusted)
    assert float(trust.float().mean()) > 0.9


def test_the_transition_is_estimated_on_trusted_samples_when_it_is_time() -> None:
    teacher, seen = Transition(CLASSES, warm=0.5), snapshot(90)
    noise = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.8, 0.2], [0.1, 0.0, 0.9]])
    said = noise[seen.labels].clamp(min=1e-6).log()  # a student that has learned the noise
    early = replace(seen, logits=said, clock=dt.Clock(step=1, total=10))
    teacher.fit(early)
    assert not bool(teacher.ready) and bool((teacher.matrix().diagonal() > 0.9).all())
    teacher.fit(replace(early, clock=dt.Clock(step=5, total=10)))
    assert bool(teacher.ready) and torch.allclose(teacher.matrix(), noise, atol=0.01)
    teacher.fit(replace(early, logits=torch.zeros(90, 3), clock=dt.Clock(step=6, total=10)))
    assert torch.allclose(teacher.matrix(), noise, atol=0.01)  # once


def test_forward_correction_is_the_loss_of_the_labels_that_are_given() -> None:
    teacher, seen = Transition(CLASSES), snapshot(group=torch.tensor([0] * 29 + [-1]))
    with torch.no_grad():
        teacher.rest.normal_()
    found = teacher.sample_losses(seen.logits, seen, cross_entropy)
    noisy = seen.logits.softmax(1) @ teacher.matrix()
    wanted = -noisy.gather(1, seen.labels.unsqueeze(1)).squeeze(1).log()
    assert torch.allclose(found[:29], wanted[:29], atol=1e-5)
    assert torch.allclose(found[29], seen.losses[29])
    with pytest.raises(ConfigError, match="warm share"):
        Transition(CLASSES, warm=1.0)


class Memory(dt.Feature):
    width = 1

    def __init__(self) -> None:
        super().__init__()
        self.shown = 0

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        return snapshot.losses.unsqueeze(1)

    def observe(self, snapshot: dt.Snapshot) -> None:
        self.shown += 1


def test_what_weighs_is_asked_told_and_fitted() -> None:
    feature = Memory()
    inner = dt.Teacher([feature, dt.TrustedProbe()])
    teacher, seen = ClassShift(CLASSES, weighing=inner), snapshot()
    assert torch.equal(teacher(seen), inner(seen)) and teacher.observes and teacher.reads_trusted
    assert torch.equal(teacher.log_trust(seen), inner(seen))
    teacher.observe(seen)
    teacher.fit(seen)
    assert feature.shown == 1 and inner(seen).std() > 0
    assert not Temperature().observes and not Temperature().reads_trusted
