"""The trusted probe of labels that are not classes: one logit, several labels, probabilities."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import deepteach as dt
from deepteach.data.tasks.classification import Classification
from deepteach.data.tasks.multilabel import MultiLabel
from deepteach.teachers.discriminant import label_discriminants
from deepteach.teachers.method import MethodContext
from deepteach.teachers.registry import method
from deepteach.teachers.trusted_ratio import TrustedRatio

LABELS, WIDTH = 5, 12


def snapshot(n: int, width: int = WIDTH, seed: int = 0, rate: float = 0.3) -> dt.Snapshot:
    """Several labels of each sample, of which each moves the states its own way."""
    g = torch.Generator().manual_seed(seed)
    ways = 2 * torch.randn(LABELS, width, generator=torch.Generator().manual_seed(9)).double()
    given = (torch.rand(n, LABELS, generator=g) < rate).double()
    states = given @ ways + torch.randn(n, width, generator=g).double()
    return dt.Snapshot(states, torch.zeros(n, LABELS).double(), given, torch.zeros(n).double())


def fitted(seen: dt.Snapshot, **options: Any) -> dt.TrustedProbe:
    probe = dt.TrustedProbe(**options)
    probe.fit(seen)
    return probe


def part(seen: dt.Snapshot, rows: Tensor) -> dt.Snapshot:
    return seen.rows(rows)


@pytest.mark.parametrize("width", [4, 59, 61, 300])
@pytest.mark.parametrize("shrinkage", [0.05, 0.3, 1.0])
def test_each_label_has_its_own_shrunk_discriminant(width: int, shrinkage: float) -> None:
    """As written for one label: within covariance, shrunk towards the mean variance of all."""
    seen = snapshot(60, width)
    x, given = seen.internal, seen.labels > 0
    slope, offset = label_discriminants(x, given, shrinkage)
    spread = x.var(0, correction=0).mean() * torch.eye(width).double()
    for label in range(LABELS):
        one, zero = x[given[:, label]], x[~given[:, label]]
        rows = torch.cat([one - one.mean(0), zero - zero.mean(0)])
        shrunk = (1 - shrinkage) * rows.T @ rows / 60 + shrinkage * spread
        want = torch.linalg.solve(shrunk, one.mean(0) - zero.mean(0))
        assert torch.allclose(slope[:, label], want, rtol=1e-7, atol=1e-9)
        assert torch.allclose(offset[label], -want @ (one.mean(0) + zero.mean(0)) / 2)


def test_the_numbers_are_the_mean_log_probability_and_the_least_margin() -> None:
    seen, fresh = snapshot(80), snapshot(40, seed=1)
    probe = fitted(seen)
    slope, offset = label_discriminants(seen.internal, seen.labels > 0, 0.3)
    t = probe.get_buffer("temperature")
    assert t.shape == (LABELS,) and float(t.max()) == float(t.min())
    ones = seen.labels.sum(0)
    odds = (fresh.internal @ slope + offset) / t + ((ones + 0.5) / (80 - ones + 0.5)).log()
    p = torch.where(fresh.labels > 0, odds.sigmoid(), 1 - odds.sigmoid())
    gaps = torch.where(fresh.labels > 0, odds, -odds)
    want = torch.stack([p.log().clamp(min=-10).mean(1), gaps.clamp(-10, 10).amin(1)], 1)
    assert torch.allclose(probe(fresh), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["float", "int", "bool", "signs", "smoothed"])
def test_the_ways_to_write_several_labels_are_one(kind: str) -> None:
    seen = snapshot(80)
    written = {
        "float": seen.labels,
        "int": seen.labels.long(),
        "bool": seen.labels.bool(),
        "signs": 2 * seen.labels - 1,
        "smoothed": 0.9 * seen.labels + 0.05,
    }[kind]
    other = replace(seen, labels=written)
    assert torch.equal(fitted(other)(other), fitted(seen)(seen))


def auroc(column: Tensor, wrong: Tensor) -> float:
    return float(roc_auc_score(wrong.numpy(), -column.numpy()))


@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("rare", [False, True])
def test_samples_with_one_wrong_label_are_ranked_last(column: int, rare: bool) -> None:
    seen = snapshot(400, seed=3, rate=0.08 if rare else 0.3)
    probe = fitted(snapshot(150, seed=4, rate=0.08 if rare else 0.3))
    g = torch.Generator().manual_seed(5)
    wrong, which = torch.rand(400, generator=g) < 0.3, torch.randint(LABELS, (400,), generator=g)
    labels = seen.labels.clone()
    labels[wrong, which[wrong]] = 1 - labels[wrong, which[wrong]]
    assert auroc(probe(replace(seen, labels=labels))[:, column], wrong) > 0.95


def test_states_that_say_nothing_are_not_believed() -> None:
    seen = snapshot(80)
    noise = replace(seen, internal=torch.randn(80, WIDTH).double())
    cold, warm = fitted(seen), fitted(noise)
    assert float(warm.get_buffer("temperature")[0]) > 3 * float(cold.get_buffer("temperature")[0])


def test_labels_of_one_value_say_nothing() -> None:
    seen = snapshot(80)
    seen.labels[:, 2] = 0
    probe, fresh = fitted(seen), snapshot(20, seed=1)
    flipped = replace(fresh, labels=fresh.labels.clone())
    flipped.labels[:, 2] = 1 - flipped.labels[:, 2]
    assert torch.equal(probe(fresh), probe(flipped)) and probe(fresh).any()
    silent = fitted(replace(seen, labels=torch.zeros(80, LABELS).double(), logits=seen.logits))
    assert not silent(replace(fresh, labels=fresh.labels)).any()


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_one_logit_is_two_classes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    seen = snapshot(60)
    labels = seen.labels[:, 0]
    two = replace(seen, labels=labels.long(), logits=torch.zeros(60, 2))
    one = replace(seen, labels=labels.to(dtype).reshape(shape), logits=torch.zeros(60, 1))
    assert torch.equal(fitted(one)(one), fitted(two)(two))
    flat = replace(one, logits=torch.zeros(60))
    assert torch.equal(fitted(flat)(flat), fitted(two)(two))


def test_probabilities_are_read_by_their_expectation() -> None:
    g = torch.Generator().manual_seed(2)
    index = torch.randint(3, (60,), generator=g)
    states = 3 * nn.functional.one_hot(index, 3).double() + torch.randn(60, 3, generator=g)
    hard = dt.Snapshot(states, torch.zeros(60, 3), index, torch.zeros(60))
    one_hot = replace(hard, labels=nn.functional.one_hot(index, 3).double())
    smooth = replace(hard, labels=0.9 * one_hot.labels + 0.1 / 3)
    plain = fitted(hard)(hard)
    assert torch.allclose(fitted(one_hot)(one_hot), plain)
    each = torch.stack([fitted(hard)(replace(hard, labels=index * 0 + c))[:, 0] for c in range(3)])
    found = fitted(smooth)(smooth)
    assert torch.allclose(found[:, 0], (smooth.labels * each.T).sum(1))
    assert torch.allclose(found[:, 1], plain[:, 1])


def test_labels_that_once_were_several_stay_so() -> None:
    """A later trusted batch, of which each sample has one label, does not change the reading."""
    seen, single = snapshot(80), snapshot(40, seed=2)
    single = replace(
        single, labels=nn.functional.one_hot(torch.arange(40) % LABELS, LABELS).double()
    )
    probe = fitted(seen)
    probe.fit(single)
    assert probe.get_buffer("temperature").dim() == 1


def test_labels_known_to_be_several_are_read_so_whatever_they_sum_to() -> None:
    """One label on in each trusted sample looks like one-hot classes; only the task can tell."""
    seen = snapshot(200)
    alone = part(seen, (seen.labels.sum(1) == 1).nonzero().squeeze(1))
    told, guessed = fitted(alone, several=True), fitted(alone)
    assert told.get_buffer("temperature").shape == (LABELS,)
    assert guessed.get_buffer("temperature").dim() == 0
    none = replace(alone, labels=torch.zeros_like(alone.labels))
    assert (told(none)[:, 0] < 0).all() and not guessed(none)[:, 0].any()
    classes = fitted(snapshot(200), several=False)
    assert classes.get_buffer("temperature").dim() == 0
    assert told.refitted(alone).several is True


@pytest.mark.parametrize("name", ["deep", "deep+features=probe", "probe"])
def test_the_task_says_whether_labels_are_several(name: str) -> None:
    for task, several in ((MultiLabel(3), True), (Classification(3), False)):
        context = MethodContext(classes=3, width=4, steps=10, task=task, counts=(1, 2, 3))
        made = method(name, context).teacher
        probes = [m for m in made.modules() if isinstance(m, dt.TrustedProbe)]
        assert probes and all(probe.several is several for probe in probes)


def test_it_survives_a_state_dict_and_shares_it_with_none() -> None:
    source, target = (dt.Teacher([dt.TrustedProbe()]) for _ in range(2))
    seen = snapshot(80)
    source.fit(seen)
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(seen), target(seen))


def test_gradients_through_several_labels_are_finite() -> None:
    seen = snapshot(80)
    seen.labels[:, 1] = 1
    probe, states = fitted(seen), seen.internal.clone().requires_grad_()
    (first,) = torch.autograd.grad(
        probe(replace(seen, internal=states)).square().sum(), states, create_graph=True
    )
    (second,) = torch.autograd.grad(first.square().sum(), states)
    assert torch.isfinite(first).all() and torch.isfinite(second).all() and first.any()


def test_a_coach_finds_the_wrong_labels() -> None:
    """Through training: weights rank samples with a wrong label last."""
    torch.manual_seed(0)
    train, valid = snapshot(200, seed=3), snapshot(100, seed=4)
    wrong, labels = torch.rand(200) < 0.3, train.labels.float().clone()
    rows, which = wrong.nonzero().flatten(), torch.randint(LABELS, (int(wrong.sum()),))
    labels[rows, which] = 1 - labels[rows, which]
    module = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, LABELS))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.2, momentum=0.9)

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none").mean(1)

    teacher = dt.Teacher([dt.TrustedProbe()])
    rate = torch.optim.Adam(teacher.parameters(), lr=0.1)
    coach = dt.Coach(
        dt.Student(module, "2"), optimizer, teacher, interval=2, loss=loss, teacher_optimizer=rate
    )
    x = train.internal.float()
    for _ in range(40):
        optimizer.zero_grad()
        coach.loss(x, labels).backward()
        optimizer.step()
        coach.update((valid.internal.float(), valid.labels.float()))
    assert auroc(coach.weights(x, labels), wrong) > 0.9


@pytest.mark.parametrize("named", ["nll", "expected_accuracy", "smooth_error"])
def test_classes_in_bytes_are_those_in_int64(named: str) -> None:
    """Cross-entropy takes both; as an index a tensor of bytes would be a mask."""

    def taught(kind: torch.dtype) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        for leaf in module.parameters():
            leaf.data = torch.randn(leaf.shape, generator=g) / 3
        read = [dt.TrustedProbe(), TrustedRatio(), dt.Label(3), dt.Surface()]
        teacher = dt.Teacher(read)
        for leaf in teacher.parameters():
            leaf.data = torch.randn(leaf.shape, generator=g) / 3
        optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
        student = dt.Student(module, "2")
        coach = dt.Coach(student, optimizer, teacher, interval=2, validation_loss=named)
        x, y = torch.randn(30, 4, generator=g), torch.randint(3, (30,), generator=g).to(kind)
        for _ in range(6):
            optimizer.zero_grad()
            coach.loss(x[:12], y[:12]).backward()
            optimizer.step()
            coach.update((x[12:], y[12:]))
        assert coach.last_record is not None and coach.last_record.skipped is None
        return coach.omega

    want, found = taught(torch.int64), taught(torch.uint8)
    assert all(torch.equal(found[name], leaf) for name, leaf in want.items())
