"""A teacher may shape the loss of a sample: one path for all of them, exact like a weight."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import CASE, CLASSES, TOLERANCE, Bench, Case, Setting, bench
from oracles import difference, directions, inner, off, record, size, unrolled
from shaping import Candidates, Corrected, Curved, Mixed, Shifted
from torch import nn

import deepteach as dt
from deepteach.core.objective import Objective
from deepteach.errors import ConfigError
from deepteach.teachers.class_shift import ClassShift
from deepteach.teachers.label_mixing import LabelMixing
from deepteach.teachers.shaping import Shaping
from deepteach.teachers.temperature import Temperature
from deepteach.teachers.transition import Transition

ADJOINTS = (dt.Reversed, dt.Stored, dt.Unrolled, dt.Checkpointed)


def reading(kind: Callable[..., dt.AbstractTeacher]) -> Callable[[Case], dt.AbstractTeacher]:
    return lambda case: kind([dt.Internal(case.width), dt.Label(CLASSES, 2), dt.Loss()])


def fitted(teacher: Shaping) -> Callable[[Case], dt.AbstractTeacher]:
    """One of the package's own, around a teacher of weights, that has seen trusted samples."""

    def make(case: Case) -> dt.AbstractTeacher:
        made = copy.deepcopy(teacher)
        made.weighing = dt.Teacher([dt.Loss()])
        states, labels = torch.randn(24, case.width), torch.arange(24) % CLASSES
        states = states + 2 * nn.functional.one_hot(labels % case.width, case.width)
        logits = torch.randn(24, CLASSES)
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        made.fit(dt.Snapshot(states, logits, labels, losses, dt.Clock(step=5, total=10)))
        return made

    return make


TEACHERS: dict[str, Callable[[Case], dt.AbstractTeacher]] = {
    "curved": reading(Curved),
    "mixed": reading(Mixed),
    "shifted": lambda case: Shifted(CLASSES),
    "corrected": lambda case: Corrected(CLASSES),
    "candidates": reading(Candidates),
    "class shift": fitted(ClassShift(CLASSES, start=torch.arange(float(CLASSES)))),
    "temperature": fitted(Temperature()),
    "label mixing": fitted(LabelMixing(start=-1.0)),
    "transition": fitted(Transition(CLASSES)),
}


def trained(kind: str, name: str, setting: Setting, adjoint: dt.AbstractAdjoint) -> Any:
    run = bench(CASE[name], setting, teacher=TEACHERS[kind])
    coach = run.coach(adjoint)
    run.train(coach)
    return run, coach


def gradient(kind: str, name: str, setting: Setting, adjoint: dt.AbstractAdjoint) -> Any:
    run, coach = trained(kind, name, setting, adjoint)
    return coach.meta_gradient(*run.valid)


WINDOWS = (1, 2, 4)
STUDENTS = ("batchnorm", "dropout", "lstm")
# Every teacher meets every student, and over the students every window with both kinds of weights.
PAIRS = [
    (name, kind, WINDOWS[(i + j + through) % 3], bool(through))
    for i, kind in enumerate(TEACHERS)
    for j, name in enumerate(STUDENTS)
    for through in (0, 1)
]


@pytest.mark.parametrize("name, kind, window, through", PAIRS)
def test_equals_the_oracles(name: str, kind: str, window: int, through: bool) -> None:
    """Plain autograd through the window, and black-box differences of the whole of it."""
    setting = Setting(window, through_weights=through)
    run = bench(CASE[name], setting, teacher=TEACHERS[kind])
    recording = record(run, run.coach(dt.Stored()))
    want = unrolled(recording)
    for adjoint in ADJOINTS:
        assert off(gradient(kind, name, setting, adjoint()), want) < TOLERANCE["adjoints"]
    for direction in directions(want, 2):
        error = difference(recording, direction, teacher=TEACHERS[kind]) - inner(want, direction)
        assert abs(error) < TOLERANCE["differences"] * size(want)


@pytest.mark.parametrize("kind", TEACHERS)
def test_no_double_backward_at_the_earliest_step(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One forward-mode pass is all that a window of one step takes."""
    run, coach = trained(kind, "batchnorm", Setting(1), dt.Stored())
    coach.meta_gradient(*run.valid)  # once in a run, forward mode is compared with reverse mode
    monkeypatch.setattr(Objective, "linearised", lambda *_a, **_k: pytest.fail("replayed"))
    coach.meta_gradient(*run.valid)


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("kind", TEACHERS)
def test_micro_batches(kind: str, window: int) -> None:
    setting = Setting(window)
    want = gradient(kind, "layernorm", setting, dt.Stored())
    got = gradient(kind, "layernorm", setting, dt.Stored(micro_batch=2))
    assert off(got, want) < TOLERANCE["adjoints"]


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("kind", TEACHERS)
def test_finite_differences(kind: str, window: int) -> None:
    setting = Setting(window)
    want = gradient(kind, "layernorm", setting, dt.Stored())
    rough = dt.Stored(derivatives="finite-difference")
    assert off(gradient(kind, "layernorm", setting, rough), want) < 1e-3


@pytest.mark.parametrize("kind", TEACHERS)
def test_lookahead(kind: str) -> None:
    """Taught before the batch is used; the loss is then that of the taught teacher."""
    run = bench(CASE["mlp"], Setting(1), teacher=TEACHERS[kind])
    coach = run.coach(dt.Lookahead(), interval=1)
    coach.trust(run.valid)
    before = coach.omega
    kept = {name: leaf.clone() for name, leaf in before.items()}
    run.train(coach)
    assert coach.last_record is not None and coach.last_record.gradient_norm > 0
    assert any(not torch.equal(leaf, kept[name]) for name, leaf in coach.omega.items())


def test_weights_say_what_is_distrusted() -> None:
    run, coach = trained("mixed", "mlp", Setting(2), dt.Stored())
    x, y = run.batches[0]
    snapshot = coach.look(x, y)
    share = run.teacher.log_trust(snapshot).exp()
    assert torch.allclose(coach.weights(x, y), share * len(y) / share.sum())
    run, coach = trained("shifted", "mlp", Setting(2), dt.Stored())
    assert torch.equal(coach.weights(x, y), torch.ones(len(y), dtype=torch.float64))


class OfTheBatch(Shifted):
    per_sample = False


def test_micro_batches_of_a_loss_of_the_batch_are_refused() -> None:
    run: Bench = bench(CASE["layernorm"], Setting(2), teacher=lambda case: OfTheBatch(CLASSES))
    with pytest.raises(ConfigError, match="others of its batch"):
        run.coach(dt.Stored(micro_batch=2))


class Averaged(Shifted):
    def sample_losses(self, logits: Any, snapshot: dt.Snapshot, loss: Any) -> Any:
        return super().sample_losses(logits, snapshot, loss).mean()


def test_an_averaged_loss_is_refused() -> None:
    run = bench(CASE["mlp"], Setting(2), teacher=lambda case: Averaged(CLASSES))
    with pytest.raises(ConfigError, match="sample_losses must return one value per sample"):
        run.train(run.coach(dt.Stored()))


class Detached(Shifted):
    def sample_losses(self, logits: Any, snapshot: dt.Snapshot, loss: Any) -> Any:
        return super().sample_losses(logits, snapshot, loss).detach()


def test_a_loss_without_a_gradient_is_refused() -> None:
    run = bench(CASE["mlp"], Setting(2), teacher=lambda case: Detached(CLASSES))
    with pytest.raises(ConfigError, match="sample_losses returned values without a gradient"):
        run.train(run.coach(dt.Stored()))
