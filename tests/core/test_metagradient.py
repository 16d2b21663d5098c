"""The meta-gradient equals its oracles, over students, windows and both kinds of weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from cases import CASE, CASES, CLASSES, TOLERANCE, Bench, Case, Setting, answer, bench
from oracles import (
    Params,
    Recording,
    difference,
    directions,
    inner,
    lookahead,
    off,
    record,
    size,
    unrolled,
)
from torch import Tensor, nn

import deepteach as dt

ADJOINTS = (dt.Reversed, dt.Stored, dt.Checkpointed, dt.Unrolled)
GRID = [
    pytest.param(case, Setting(window=window, through_weights=through), id=f"{case}-{window}-{tag}")
    for case in CASES
    for through, tag in ((False, "stopped"), (True, "through"))
    for window in ((1, 2, 5, 6) if case.name == "mlp" else (1, 2, 6))  # 5: segments of two lengths
]
MLP, NORM, DROP = CASE["mlp"], CASE["batchnorm"], CASE["dropout"]


def computed(case: Case, setting: Setting, adjoint: dt.AbstractAdjoint, **options: Any) -> Params:
    """The engine's gradient after a fresh run."""
    run = bench(case, setting, **options)
    coach = run.coach(adjoint)
    run.train(coach)
    return coach.meta_gradient(*run.valid)


@cache
def reference(case: Case, setting: Setting) -> tuple[Recording, Params]:
    """A recorded run and its unrolled gradient."""
    run = bench(case, setting)
    recording = record(run, run.coach(dt.Stored()))
    return recording, unrolled(recording)


def agree(case: Case, setting: Setting) -> None:
    """All adjoints == the own unroll == finite differences."""
    recording, want = reference(case, setting)
    assert size(want) > 1e-5
    for adjoint in ADJOINTS:
        assert off(computed(case, setting, adjoint()), want) < TOLERANCE["adjoints"], adjoint
    differences_agree(recording, want)


def differences_agree(recording: Recording, want: Params) -> None:
    for direction in directions(want, 2):
        error = abs(difference(recording, direction) - inner(want, direction))
        assert error < TOLERANCE["differences"] * size(want)


@pytest.mark.parametrize("case, setting", GRID)
def test_every_adjoint_equals_the_own_unroll(case: Case, setting: Setting) -> None:
    _, want = reference(case, setting)
    assert size(want) > 1e-5
    got = {kind: computed(case, setting, kind()) for kind in ADJOINTS}
    for kind in ADJOINTS:
        assert off(got[kind], want) < TOLERANCE["adjoints"], kind
        assert off(got[kind], got[dt.Stored]) < TOLERANCE["adjoints"], kind


@pytest.mark.parametrize("case, setting", [g for g in GRID if g.values[0].still])  # pyright: ignore
def test_the_unroll_equals_finite_differences(case: Case, setting: Setting) -> None:
    differences_agree(*reference(case, setting))


def brier(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.softmax(1) - nn.functional.one_hot(labels, CLASSES)).square().sum(1).mean()


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("loss", ["nll", "expected_accuracy", brier])
def test_validation_losses(loss: Any, through: bool) -> None:
    agree(NORM, Setting(window=3, through_weights=through, validation_loss=loss))


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("name", ["dropout", "encoder", "groupnorm", "lstm"])
def test_window_in_eval_mode(name: str, through: bool) -> None:
    agree(CASE[name], Setting(window=3, through_weights=through, train=False))


def test_batchnorm_in_eval_mode() -> None:
    agree(NORM, Setting(window=3, train=False))


@pytest.mark.parametrize("window", [1, 3, 6])
@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("momenta, nesterov", [((0.0, 0.0), False), ((0.9, 0.6), True)])
def test_irreversible_sgd_is_exact_when_stored(
    momenta: tuple[float, float], nesterov: bool, through: bool, window: int
) -> None:
    setting = Setting(window, through_weights=through, momenta=momenta, nesterov=nesterov)
    recording, want = reference(NORM, setting)
    for adjoint in (dt.Stored(), dt.Unrolled()):
        assert off(computed(NORM, setting, adjoint), want) < TOLERANCE["adjoints"]
    differences_agree(recording, want)


@pytest.mark.parametrize("window", [2, 6])
def test_first_momentum_buffer_is_the_gradient(window: int) -> None:
    agree(NORM, Setting(window=window, warmup=0))


def every_feature(case: Case) -> dt.AbstractTeacher:
    features = [dt.Internal(case.width), dt.Label(CLASSES, 2), dt.Loss(), dt.Surface()]
    return dt.Teacher(features, hidden_layers=2)


@pytest.mark.parametrize("through", [False, True])
def test_deep_teacher_with_every_feature(through: bool) -> None:
    run = bench(MLP, Setting(window=3, through_weights=through), teacher=every_feature)
    recording = record(run, run.coach(dt.Stored()))
    want = unrolled(recording)
    for adjoint in ADJOINTS:
        got = computed(MLP, run.setting, adjoint(), teacher=every_feature)
        assert off(got, want) < TOLERANCE["adjoints"]
    for direction in directions(want, 2):
        error = difference(recording, direction, teacher=every_feature) - inner(want, direction)
        assert abs(error) < TOLERANCE["differences"] * size(want)


class Unnormalised(dt.Teacher):
    """(1/n) sum w l."""

    normalised = False


class Through(dt.Teacher):
    """The student's gradient passes through the weights, whatever the coach says."""

    through = True


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("kind", [Unnormalised, Through])
@pytest.mark.parametrize("name", ["batchnorm", "dropout"])
def test_teachers_of_other_kinds(
    name: str, kind: type[dt.Teacher], window: int, through: bool
) -> None:
    def teacher(case: Case) -> dt.AbstractTeacher:
        return kind([dt.Internal(case.width), dt.Label(CLASSES, 2), dt.Loss()])

    run = bench(CASE[name], Setting(window, through_weights=through), teacher=teacher)
    recording = record(run, run.coach(dt.Stored()))
    want = unrolled(recording)
    for adjoint in ADJOINTS:
        got = computed(CASE[name], run.setting, adjoint(), teacher=teacher)
        assert off(got, want) < TOLERANCE["adjoints"], adjoint
    for direction in directions(want, 2):
        error = difference(recording, direction, teacher=teacher) - inner(want, direction)
        assert abs(error) < TOLERANCE["differences"] * size(want)


@pytest.mark.parametrize("name", ["mlp", "batchnorm", "encoder", "lstm"])
@pytest.mark.parametrize("through", [False, True])
def test_float32_is_close_to_float64(name: str, through: bool) -> None:
    setting = Setting(window=5, through_weights=through)
    _, want = reference(CASE[name], setting)
    for adjoint in ADJOINTS:
        got = computed(CASE[name], setting, adjoint(), dtype=torch.float32)
        assert off(got, want) < TOLERANCE["float32"]


def trained(case: Case, setting: Setting, **options: Any) -> tuple[Bench, dt.Coach]:
    run = bench(case, setting)
    coach = run.coach(**options)
    run.train(coach)
    return run, coach


@pytest.mark.parametrize("train", [True, False])
def test_validation_runs_in_the_mode_that_the_module_is_in(train: bool) -> None:
    run, coach = trained(DROP, Setting(window=1))
    run.module.train(train)
    record = coach.update(run.valid)
    with torch.no_grad():
        want = float(nn.functional.cross_entropy(answer(run.module, run.valid[0]), run.valid[1]))
    assert record is not None and record.validation_loss == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("train", [True, False])
def test_window_is_replayed_in_the_mode_that_it_ran_in(train: bool) -> None:
    """Only the validation loss may see a module switched after the window."""
    run = bench(DROP, Setting(window=3, train=train))
    coach = run.coach()
    recording = record(run, coach)
    run.module.train(not train)
    got = coach.meta_gradient(*run.valid)
    assert off(got, unrolled(recording)) < TOLERANCE["adjoints"]


@pytest.mark.parametrize("adjoint", [*ADJOINTS, dt.Lookahead])
def test_buffers_are_untouched(adjoint: type[dt.AbstractAdjoint]) -> None:
    run, coach = trained(NORM, Setting(window=3), adjoint=adjoint())
    before = {name: leaf.clone() for name, leaf in run.module.named_buffers()}
    if adjoint is not dt.Lookahead:
        coach.meta_gradient(*run.valid)
    coach.update(run.valid)
    for name, leaf in run.module.named_buffers():
        assert torch.equal(leaf, before[name]), name


@pytest.mark.parametrize("name", ["mlp", "batchnorm", "encoder"])
def test_order_within_a_batch_does_not_matter(name: str) -> None:
    run = bench(CASE[name], Setting(window=4))
    orders = [torch.randperm(len(y)) for _, y in run.batches]
    want = computed(CASE[name], run.setting, dt.Reversed())
    pairs = zip(run.batches, orders, strict=True)
    run.batches = [(x[order], y[order]) for (x, y), order in pairs]
    coach = run.coach()
    run.train(coach)
    assert off(coach.meta_gradient(*run.valid), want) < TOLERANCE["metamorphic"]


def test_constant_in_the_validation_loss_does_not_matter() -> None:
    setting = Setting(window=4)
    shifted = replace(setting, validation_loss=lambda z, y: nn.functional.cross_entropy(z, y) + 7)
    want = computed(NORM, setting, dt.Reversed())
    assert off(computed(NORM, shifted, dt.Reversed()), want) < TOLERANCE["metamorphic"]


class Scaled(dt.AbstractTeacher):
    """log w + log scale: every raw weight multiplied by the same number."""

    def __init__(self, inner: dt.AbstractTeacher, scale: float) -> None:
        super().__init__()
        self.inner, self.shift = inner, torch.tensor(scale).log()

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        return self.inner(snapshot) + self.shift


@pytest.mark.parametrize("through", [False, True])
def test_scale_of_the_weights_does_not_matter(through: bool) -> None:
    setting = Setting(window=4, through_weights=through)
    run = bench(NORM, setting)
    coach = run.coach(teacher=Scaled(run.teacher, 123.0))
    run.train(coach)
    got = {k.removeprefix("inner."): v for k, v in coach.meta_gradient(*run.valid).items()}
    assert off(got, computed(NORM, setting, dt.Reversed())) < TOLERANCE["metamorphic"]


def test_renaming_the_classes_renames_the_gradient() -> None:
    """Permuted labels, head and label embedding: the same run under other names."""
    setting = Setting(window=4)
    want = computed(MLP, setting, dt.Reversed())
    run, new = bench(MLP, setting), torch.tensor([2, 0, 1])
    old = new.argsort()
    embedding = "features.1.embedding.weight"
    with torch.no_grad():
        for leaf in (*run.module.get_submodule("head").parameters(),):
            leaf.copy_(leaf[old])
        run.teacher.get_parameter(embedding).copy_(run.teacher.get_parameter(embedding)[old])
    run.batches = [(x, new[y]) for x, y in run.batches]
    coach = run.coach()
    run.train(coach)
    got = coach.meta_gradient(run.valid[0], new[run.valid[1]])
    got[embedding] = got[embedding][new]
    assert off(got, want) < TOLERANCE["metamorphic"]


class PerSample(dt.AbstractTeacher):
    """One free log weight per batch position."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.linspace(-1, 1, n, dtype=torch.float64))

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        return self.z


def one_step(**options: Any) -> tuple[Bench, dt.Coach, PerSample, nn.Module]:
    """One step on five samples; also the module as it was before it."""
    setting = Setting(window=1, interval=1, warmup=0, decays=(0.0, 0.0), sizes=(5,))
    run, teacher = bench(MLP, setting), PerSample(5)
    before = copy.deepcopy(run.module)
    coach = run.coach(teacher=teacher, **options)
    run.train(coach)
    return run, coach, teacher, before


def sample_gradients(module: nn.Module, x: Tensor, y: Tensor) -> list[list[Tensor]]:
    losses = nn.functional.cross_entropy(module(x), y, reduction="none")
    leaves = list(module.parameters())
    return [list(torch.autograd.grad(loss, leaves, retain_graph=True)) for loss in losses]


def test_one_step_closed_form() -> None:
    """d_omega = -(dg/domega)^T (eta * grad M): u_k (a_k - u.a) for free log weights."""
    run, coach, teacher, before = one_step()
    run.module.zero_grad()
    nn.functional.cross_entropy(run.module(run.valid[0]), run.valid[1]).backward()
    rate = {leaf: g["lr"] for g in run.optimizer.param_groups for leaf in g["params"]}
    descent = [-rate[leaf] * leaf.grad for leaf in run.module.parameters() if leaf.grad is not None]
    rows = sample_gradients(before, *run.batches[0])
    pairs = [zip(row, descent, strict=True) for row in rows]
    slopes = torch.stack([sum((g * d).sum() for g, d in pair) for pair in pairs])  # pyright: ignore
    u = teacher.z.detach().softmax(0)
    want = {"z": u * (slopes - u @ slopes)}
    run.module.zero_grad()
    assert off(coach.meta_gradient(*run.valid), want) < TOLERANCE["metamorphic"]


def test_equal_slopes_give_no_gradient() -> None:
    """A batch of one sample repeated: every J dv is the same, so no weight can matter."""
    setting = Setting(window=4)
    run = bench(MLP, setting)
    run.batches = [(x[:1].expand(len(y), -1), y[:1].expand(len(y))) for x, y in run.batches]
    coach = run.coach()
    run.train(coach)
    got, usual = coach.meta_gradient(*run.valid), computed(MLP, setting, dt.Reversed())
    assert size(got) < TOLERANCE["metamorphic"] * size(usual)


@pytest.mark.parametrize("adjoint", [dt.Reversed, dt.Stored, dt.Unrolled, dt.Lookahead])
def test_sample_that_helps_gains_weight(adjoint: type[dt.AbstractAdjoint]) -> None:
    """The validation sample itself, and the same sample with a wrong label."""
    run, teacher = bench(MLP, Setting(window=1, interval=1, warmup=0)), PerSample(2)
    (x, y), wrong = run.valid, (run.valid[1] + 1) % CLASSES
    optimizer = torch.optim.SGD(teacher.parameters(), lr=1.0)
    coach = run.coach(adjoint(), teacher=teacher, teacher_optimizer=optimizer)
    inputs, labels = x[:1].expand(2, -1), torch.stack([y[0], wrong[0]])
    before = coach.weights(inputs, labels)
    for _ in range(2):  # the lookahead teaches from its second batch on
        run.optimizer.zero_grad()
        coach.loss(inputs, labels).backward()
        run.optimizer.step()
        coach.update((x[:1], y[:1]))
    after = coach.weights(inputs, labels)
    assert after[0] > before[0] and after[1] < before[1]


@pytest.mark.parametrize("name", ["mlp", "batchnorm", "encoder", "lstm"])
def test_lookahead_equals_the_published_step(name: str) -> None:
    """theta^ = theta - eta grad L_w: no momentum, no decay, from the present parameters."""
    run, coach = trained(CASE[name], Setting(window=1), adjoint=dt.Lookahead())
    want = lookahead(run, *run.batches[-1])
    run.step_and_return(coach)
    assert off(coach.meta_gradient(*run.valid), want) < TOLERANCE["adjoints"]
