"""The objective that is taught is the user's: gradients, losses and figures of every kind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CLASSES, TOLERANCE, Bench, Case, Setting, answer, bench
from objectives import (
    OBJECTIVE,
    OBJECTIVES,
    Head,
    Taught,
    ignoring,
    per_sequence,
    state_and_loss,
)
from oracles import difference, directions, inner, off, record, size, unrolled
from torch import Tensor, nn

import deepteach as dt
from deepteach.core.accuracy import told_accuracy
from deepteach.core.batches.trusted_batches import TrustedBatches

F = nn.functional


def setting(window: int = 2, **changes: Any) -> Setting:
    return Setting(window=window, interval=4, validation_loss=None, **changes)


@pytest.mark.parametrize("case", OBJECTIVES, ids=str)
@pytest.mark.parametrize("window", [1, 2, 4])
def test_meta_gradient_is_that_of_the_whole_window(case: Taught, window: int) -> None:
    """Against the own unroll, and black-box finite differences of the window in float64."""
    run = bench(case, setting(window), teacher=state_and_loss)
    recording = record(run, run.coach(dt.Stored()))
    want = unrolled(recording)
    assert size(want) > 1e-6
    for adjoint in (dt.Reversed(), dt.Stored()):
        run = bench(case, setting(window), teacher=state_and_loss)
        coach = run.coach(adjoint)
        run.train(coach)
        got = coach.meta_gradient(*run.valid)
        assert off(got, want) < TOLERANCE["adjoints"], adjoint
    (direction,) = directions(want, 1)
    error = difference(recording, direction, teacher=state_and_loss) - inner(got, direction)
    assert abs(error) < TOLERANCE["differences"] * size(want)


@pytest.mark.parametrize("name", ["some ignored", "tokens", "one logit"])
def test_through_the_weights_as_well(name: str) -> None:
    run = bench(OBJECTIVE[name], setting(4, through_weights=True), teacher=state_and_loss)
    coach = run.coach(dt.Stored())
    recording = record(run, coach)
    want = unrolled(recording)
    assert off(coach.meta_gradient(*run.valid), want) < TOLERANCE["adjoints"]
    (direction,) = directions(want, 1)
    error = difference(recording, direction, teacher=state_and_loss) - inner(want, direction)
    assert abs(error) < TOLERANCE["differences"] * size(want)


@pytest.mark.parametrize("case", OBJECTIVES, ids=str)
def test_equal_weights_are_the_plain_loss_and_the_figures_are_right(case: Taught) -> None:
    """The training loss, the trusted loss and the accuracy, or none."""
    run = bench(case, setting(1), teacher=lambda case: dt.Teacher([dt.Loss()]))
    uniform = run.coach(dt.Stored(), teacher=dt.Uniform())
    for x, y in run.batches[2:]:
        with torch.no_grad():
            plain = case.plain(answer(run.module, x), y)
            taught = uniform.loss(x, y)
        if bool(torch.isfinite(plain)):  # torch's mean of no labels at all is NaN; ours is 0
            assert float(taught) == pytest.approx(float(plain), rel=1e-12)
        else:
            assert float(taught) == 0
    coach = run.coach(dt.Stored())
    run.train(coach)
    with torch.no_grad():
        logits = answer(run.module, run.valid[0])
    told = coach.update(run.valid)
    assert told is not None
    assert told.validation_loss == pytest.approx(float(case.plain(logits, run.valid[1])), rel=1e-12)
    if case.accuracy is None:
        assert told.validation_accuracy is None and coach.clock.best_accuracy == 0
    else:
        assert told.validation_accuracy == float(case.accuracy(logits, run.valid[1]))
        assert coach.clock.best_accuracy == told.validation_accuracy


# Ignored samples count nowhere.


def halves() -> tuple[Bench, Bench]:
    """A batch of which every second sample is ignored, and the same without them."""
    runs = [bench(OBJECTIVE["label smoothing"], setting(1, sizes=(8,), warmup=0)) for _ in range(2)]
    marked, cut = runs
    for run in runs:
        run.case = OBJECTIVE["some ignored"]
    keep = torch.arange(8) % 2 == 0
    marked.batches = [(x, torch.where(keep, y, -100)) for x, y in marked.batches]
    cut.batches = [(x[keep], y[keep]) for x, y in cut.batches]
    return marked, cut


TEACHERS: dict[str, Callable[[], dt.AbstractTeacher]] = {
    "linear": lambda: dt.Teacher([dt.Internal(4), dt.Label(CLASSES, 2), dt.Surface(), dt.Loss()]),
    "uniform": dt.Uniform,
    "focal": dt.Focal,
    "hard": lambda: dt.SelfPaced("hard"),
    "soft": lambda: dt.SelfPaced("linear"),
    "mentornet": lambda: dt.MentorNet("linear", dropout=[(0.0, 100)]),
    "l2t-loss": lambda: dt.L2TLoss(CLASSES, mix=0.5),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_a_batch_with_ignored_samples_is_the_batch_without_them(name: str) -> None:
    found = []
    for run in halves():
        torch.manual_seed(2)
        coach = run.coach(dt.Stored(), teacher=TEACHERS[name]().double())
        run.train(coach)
        told = coach.update(run.valid)
        state = [leaf.detach().clone() for leaf in run.module.parameters()]
        found.append((state, coach.clock, told and told.effective_sample_size))
    (one, clock, effective), (other, other_clock, other_effective) = found
    for ours, theirs in zip(one, other, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    assert clock.mean_loss == pytest.approx(other_clock.mean_loss, rel=1e-12)
    assert effective == (other_effective and pytest.approx(other_effective, rel=1e-5))


def test_ignored_samples_have_no_weight_and_others_share_it() -> None:
    run, _ = halves()
    coach = run.coach(teacher=TEACHERS["linear"]().double())
    weights = coach.weights(*run.batches[0])
    assert not weights[1::2].any() and float(weights.sum()) == pytest.approx(8)


@pytest.mark.parametrize("teacher", ["linear", "focal"])
def test_accumulated_parts_with_ignored_samples_are_the_whole_batch(teacher: str) -> None:
    found = []
    for parts in (1, 4):
        run, _ = halves()
        for _, y in run.batches:
            y[:2] = -100  # the first part has no label at all
        torch.manual_seed(2)
        made = TEACHERS[teacher]().double()
        made.through = False
        coach = run.coach(dt.Stored(), teacher=made, accumulate=parts > 1)
        for x, y in run.batches:
            run.optimizer.zero_grad()
            for part in zip(x.chunk(parts), y.chunk(parts), strict=True):
                coach.loss(*part).backward()
            run.optimizer.step()
        found.append({n: leaf.detach().clone() for n, leaf in run.module.named_parameters()})
    assert off(*found) < 1e-12


def test_a_trusted_batch_without_any_label_is_refused() -> None:
    run, _ = halves()
    coach = run.coach(dt.Stored(), teacher=dt.Teacher([dt.Loss()]).double())
    run.train(coach)
    with pytest.raises(dt.NumericError, match="check the trusted samples"):
        coach.update((run.valid[0], torch.full_like(run.valid[1], -100)))


def test_negative_labels_that_have_a_loss_count() -> None:
    """-1 and 1 are two classes of a hinge loss, and an unlabelled sample may have a loss."""
    y = torch.tensor([-1, 1, -1, 1])
    for logits, losses in ((torch.zeros(4, 1), torch.zeros(4)), (torch.zeros(4, 3), torch.ones(4))):
        left_out = dt.Snapshot(torch.zeros(4, 2), logits, y, losses).ignored()
        assert left_out is None or not left_out.any()


# Losses that are not one value a sample.

BAD_LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Any], str]] = {
    "scalar": (F.mse_loss, r"got \(\): use reduction='none'"),
    "number": (lambda z, y: 1.0, r"got float: use reduction='none'"),
    "per output": (lambda z, y: F.mse_loss(z, y, reduction="none"), r"\(6, 2\).*mean\(1\)"),
    "flattened": (lambda z, y: (z - y).square().flatten(), r"\(12,\).*reduction='none'"),
    "too few": (lambda z, y: (z - y)[1:, 0], r"got \(5,\)"),
    "spread": (lambda z, y: (z[:, :1] - y[:, 0]).square(), r"\(6, 6\).*one shape"),
    "detached": (lambda z, y: (z - y).detach().square().mean(1), "without a gradient.*detach"),
}


@pytest.mark.parametrize("name", BAD_LOSSES)
def test_losses_of_other_shapes_are_refused_with_the_remedy(name: str) -> None:
    loss, message = BAD_LOSSES[name]
    module = Head(2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    coach = dt.Coach(dt.Student(module, "head"), optimizer, dt.Teacher([dt.Loss()]), loss=loss)
    with pytest.raises(dt.ConfigError, match=message) as told:
        coach.loss(torch.randn(6, 3), torch.randn(6, 2))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("validate, message", [
    (lambda z, y: (z - y).square().mean(1), r"scalar tensor, got \(6,\).*mean\(\)"),
    (lambda z, y: 1.0, "scalar tensor, got float"),
    (lambda z, y: (z - y).detach().mean(), "without a gradient"),
])  # fmt: skip
def test_validation_losses_that_are_no_scalar_are_refused(validate: Any, message: str) -> None:
    run = bench(OBJECTIVE["regression of two"], setting(1), teacher=state_and_loss)
    coach = run.coach(validation_loss=validate)
    run.train(coach)
    x, y = run.valid
    with pytest.raises(dt.ConfigError, match=message):
        coach.update((x[:6], y[:6]))


DEFAULTS = {
    "one logit": (torch.zeros(4, 1), torch.ones(4).long(), r"logits of shape \(4, 1\)"),
    "real": (torch.zeros(4, 3), torch.rand(4), r"float32 labels of shape \(4,\)"),
    "int32": (torch.zeros(4, 3), torch.ones(4).int(), r"int32.*cast them by .long\(\)"),
    "column": (torch.zeros(4, 3), torch.ones(4, 1).long(), r"int64 labels of shape \(4, 1\)"),
    "labels from 1": (torch.zeros(4, 3), torch.tensor([1, 2, 3, 1]), "label 3 among 3.*from 0"),
    "negative": (torch.zeros(4, 3), torch.tensor([1, 2, -1, 1]), "label -1 among 3.*-100"),
    "tokens": (torch.zeros(4, 5, 3), torch.ones(4, 5).long(), r"logits of shape \(4, 5, 3\)"),
    "dict": (torch.zeros(4, 3), {"y": torch.ones(4)}, "labels of type dict"),
}


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize("named", ["nll", "expected_accuracy", "smooth_error", None])
def test_the_package_s_losses_refuse_labels_that_they_cannot_read(name: str, named: Any) -> None:
    from deepteach.core.losses import cross_entropy, validation_loss_of

    logits, labels, message = DEFAULTS[name]
    loss: Any = validation_loss_of(named, cross_entropy) if named else cross_entropy
    with pytest.raises(dt.ConfigError, match=f"{message}.*") as told:
        loss(logits, labels)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("named", ["nll", "expected_accuracy", "smooth_error"])
def test_named_validation_losses_leave_ignored_labels_out(named: str) -> None:
    from deepteach.core.losses import cross_entropy, validation_loss_of

    loss = validation_loss_of(named, cross_entropy)
    logits, labels = torch.randn(6, 3), torch.tensor([0, -100, 2, 1, -100, 0])
    kept = labels >= 0
    assert torch.allclose(loss(logits, labels), loss(logits[kept], labels[kept]))


# Figures.


def levels(z: Tensor, y: Tensor) -> Tensor:
    """An ordinal loss: a column says whether the label is above it."""
    above = (y.unsqueeze(1) > torch.arange(z.shape[1])).to(z.dtype)
    return F.binary_cross_entropy_with_logits(z, above, reduction="none").sum(1)


def embedded(z: Tensor, y: Tensor) -> Tensor:
    """Samples of one class lie close, others far."""
    apart = (z.unsqueeze(0) - z.unsqueeze(1)).square().sum(2)
    alike = (y.unsqueeze(0) == y.unsqueeze(1)).to(z.dtype)
    return (alike * apart + (1 - alike) * (4 - apart).clamp(min=0)).mean(1)


def bce(z: Tensor, y: Tensor, **options: Any) -> Tensor:
    return F.binary_cross_entropy_with_logits(z[:, 0], y.to(z.dtype), reduction="none", **options)


BITS, THREE = torch.tensor([0, 1, 1, 0, 1, 0]), torch.tensor([0, 1, 2, 0, 1, 2])
FIGURES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int, Tensor, bool]] = {
    "cross-entropy": (lambda z, y: F.cross_entropy(z, y, reduction="none"), 3, THREE, True),
    "log probabilities": (lambda z, y: F.nll_loss(z, y, reduction="none"), 3, THREE, True),
    "probabilities": (lambda z, y: F.nll_loss(z.log(), y, reduction="none"), 3, THREE, True),
    "margins": (lambda z, y: F.multi_margin_loss(z, y, reduction="none"), 3, THREE, True),
    "one-hot squares": (
        lambda z, y: (z - F.one_hot(y, 3)).square().sum(1), 3, THREE, True,
    ),
    "levels": (levels, 3, THREE, False),
    "embedding": (embedded, 3, THREE, False),
    "one logit": (bce, 1, BITS, True),
    "one logit, float": (bce, 1, BITS.float(), True),
    "one logit, weighted": (lambda z, y: bce(z, y, pos_weight=torch.tensor(3.0)), 1, BITS, True),
    "one probability": (
        lambda z, y: F.binary_cross_entropy(z[:, 0], y.float(), reduction="none"), 1, BITS, False,
    ),
    "squares of 0 and 1": (lambda z, y: (z[:, 0] - y).square(), 1, BITS, False),
    "one logit, real": (bce, 1, torch.rand(6), False),
    "counts": (lambda z, y: z[:, 0].exp() - y * z[:, 0], 1, BITS, False),
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_accuracy_is_right_or_absent(name: str) -> None:
    loss, columns, labels, known = FIGURES[name]
    logits = torch.rand(6, columns, generator=torch.Generator().manual_seed(4)) - 0.4 * (
        "prob" not in name
    )
    found = told_accuracy(logits, labels, loss)
    predicted = logits.argmax(1) if columns > 1 else (logits[:, 0] > 0).long()
    assert found == (float((predicted == labels).double().mean()) if known else None)


# Trusted batches with labels that are no tensor.

A, B = torch.zeros(4, 3), torch.zeros(4, 3).long()


@pytest.mark.parametrize("batch", [
    (A, {"positive": A, "negative": A}),
    (A, (B[:, 0], B[:, 1])),
    ({"x": A}, (B[:, 0], B[:, 1])),
    ((A, B), (B[:, 0], B[:, 1])),
    (A, (B, B[:, 0], B[:, 1])),
])  # fmt: skip
def test_a_pair_with_several_labels_is_one_batch(batch: Any) -> None:
    for source in (batch, [batch], iter([batch])):
        reader = TrustedBatches()
        reader.source = source
        x, y = reader.next()
        assert x is batch[0] and y is batch[1]


def test_two_batches_are_two() -> None:
    reader = TrustedBatches()
    reader.source = ((A, B), (A + 1, B))
    first: Any = reader.next()[0]
    second: Any = reader.next()[0]
    assert float(first.sum()) == 0 and float(second.sum()) == 12


# What cannot be differentiated twice.


class Speech(nn.Module):
    """`(batch, time, 3)` to `(batch, time, 4)`."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).tanh())


def ctc(z: Tensor, y: Any) -> Tensor:
    return F.ctc_loss(z.log_softmax(2).transpose(0, 1), y[0], y[1], y[2], reduction="none")


def speech(case: Case | None = None) -> tuple[Any, Any]:
    x = torch.randn(4, 6, 3)
    return x, (torch.randint(1, 4, (4, 2)), torch.full((4,), 6), torch.full((4,), 2))


def test_ctc_is_taught_by_finite_differences() -> None:
    torch.manual_seed(0)
    module = Speech()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    teacher = dt.Teacher([dt.Internal(4), dt.Loss()])
    student = dt.Student(module, "head", pool="tokens")
    adjoint = dt.Stored(derivatives="finite-difference")
    coach = dt.Coach(student, optimizer, teacher, interval=2, adjoint=adjoint, loss=ctc)
    for _ in range(2):
        optimizer.zero_grad()
        coach.loss(*speech()).backward()
        optimizer.step()
    told = coach.update(speech())
    assert told is not None and told.gradient_norm > 0 and told.validation_accuracy is None


def test_states_that_do_not_begin_with_the_batch_are_named() -> None:
    module = nn.Sequential(nn.GRU(3, 4))
    student = dt.Student(module, "0", side="output")  # (time, batch, hidden)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    coach = dt.Coach(
        student, optimizer, dt.Teacher([dt.Loss()]), loss=lambda z, y: (z[-1] - y).square().mean(1)
    )
    with pytest.raises(dt.ConfigError, match="internal states of 6 rows.*begins with the batch"):
        coach.loss(torch.randn(6, 5, 3), torch.randn(5, 4))


def test_own_cross_entropy_without_ignored_labels_is_the_default() -> None:
    """To the last bit: the mean of samples, their weights and the figures."""
    found = []
    for case in (OBJECTIVE["some ignored"], Case("", lambda: Head(CLASSES))):
        made = Case("", lambda: Head(CLASSES), loss=ignoring if case.loss else None)
        run = bench(made, setting(2), teacher=state_and_loss)
        coach = run.coach()
        run.train(coach)
        told = coach.update(run.valid)
        assert told is not None
        found.append((told.validation_loss, told.validation_accuracy, told.gradient_norm))
    assert found[0] == found[1]


def test_the_page_s_sequences_are_taught() -> None:
    """Its blocks run, and what they define fits together."""
    text = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"torch": torch}
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(compile(block, "objectives.md", "exec"), names)
    case, g = OBJECTIVE["tokens"], torch.Generator().manual_seed(0)
    module, x, y = case.module(), case.inputs(6, g), case.labels(6, g)
    assert torch.allclose(names["per_sequence"](module(x), y), per_sequence(module(x), y))
    mask = torch.tensor([[1, 1, 0]])
    pooled = names["masked_mean"](torch.arange(6.0).view(1, 3, 2), {"mask": mask})
    assert pooled.tolist() == [[1.0, 2.0]]


class Answers(dt.AbstractTeacher):
    """One of the shapes that a first teacher of one's own has."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.score = kind, nn.Linear(4, 1)

    def forward(self, snapshot: dt.Snapshot) -> Any:
        column = self.score(snapshot.internal)
        return {
            "column": column,
            "scalar": column.mean(),
            "short": column.squeeze(1)[:-1],
            "whole": column.squeeze(1).long(),
            "list": column.squeeze(1).tolist(),
        }[self.kind]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("column", r"shape \(\d+, 1\): end it with .squeeze\(1\)"),
        ("scalar", r"shape \(\): answer for every row"),
        ("short", "answer for every row"),
        ("whole", "got int64"),
        ("list", "got list: compute it with torch's own operations"),
    ],
)
def test_a_teacher_answers_with_a_number_for_each_sample(kind: str, said: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    coach = dt.Coach(dt.Student(module, "2"), optimizer, Answers(kind))
    x, y = torch.randn(5, 3), torch.randint(2, (5,))
    for ask in (coach.loss, coach.weights):
        with pytest.raises(dt.ConfigError, match=f"Answers must answer with a log weight.*{said}"):
            ask(x, y)


def mixed(logits: Tensor, labels: Any) -> Tensor:
    a, b, share = labels
    one, other = (F.cross_entropy(logits, y, reduction="none") for y in (a, b))
    return share * one + (1 - share) * other


class Fitted(dt.Loss):
    reads_trusted = True


def mixing(*features: dt.Feature, **options: Any) -> tuple[dt.Coach, Callable[[], object]]:
    """A coach whose training labels are `(a, b, lam)`, and an update with plain trusted ones."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    teacher = dt.Teacher([dt.Internal(8), *features])
    coach = dt.Coach(dt.Student(module, "2"), optimizer, teacher, interval=2, loss=mixed, **options)
    x, y, trusted = (
        torch.randn(16, 6),
        torch.arange(16) % 3,
        (torch.randn(12, 6), torch.arange(12) % 3),
    )
    for share in (0.3, 0.8):
        order = torch.randperm(16)
        optimizer.zero_grad()
        labels: Any = (y, y[order], share)
        coach.loss(share * x + (1 - share) * x[order], labels).backward()
        optimizer.step()
    return coach, lambda: coach.update(trusted)


def test_trusted_labels_may_be_of_another_form() -> None:
    """`loss` is not asked about them where nobody reads what it would say."""
    coach, update = mixing(validation_loss=F.cross_entropy)
    record: Any = update()
    assert record.skipped is None and record.gradient_norm > 0
    assert record.validation_accuracy is None


@pytest.mark.parametrize(
    "features, options, told",
    [
        ((), {}, r"`loss` cannot read the trusted labels.*dt.Coach\(validation_loss=...\)"),
        (
            (Fitted(),),
            {"validation_loss": F.cross_entropy},
            "`loss` cannot read the trusted labels.*features are fitted on",
        ),
    ],
)
def test_a_loss_that_cannot_read_trusted_labels(features: Any, options: Any, told: str) -> None:
    _, update = mixing(*features, **options)
    with pytest.raises(dt.errors.ConfigError, match=told) as got:
        update()
    assert "\n" not in str(got.value)
