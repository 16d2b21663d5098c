"""L2T-loss: the loss at the start, its state, and its meta-gradient against differences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import CASE, CLASSES, TOLERANCE, Setting, bench
from oracles import sample_losses
from torch import Tensor

import deepteach as dt
from deepteach.errors import ConfigError

MLP = CASE["mlp"]


def teacher(**options: Any) -> dt.L2TLoss:
    torch.manual_seed(0)
    return dt.L2TLoss(CLASSES, **options).double()


def seen(n: int = 30, seed: int = 0) -> dt.Snapshot:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, CLASSES, generator=g, dtype=torch.float64)
    labels = torch.randint(CLASSES, (n,), generator=g)
    losses = sample_losses(logits, labels)
    return dt.Snapshot(logits[:, :2], logits, labels, losses, dt.Clock(30, 100))


def shaped(taught: dt.L2TLoss, snapshot: dt.Snapshot) -> Tensor:
    return taught.sample_losses(snapshot.logits, snapshot, sample_losses)


def test_loss_by_hand() -> None:
    taught, snapshot = teacher(slots=2), seen(1)
    taught.fit(seen(12, seed=4))
    state = taught.state(snapshot)
    a = (taught.attention @ state).softmax(0)
    form = a[0] * taught.form[0] + a[1] * taught.form[1]
    offset = a[0] * taught.offset[0] + a[1] * taught.offset[1]
    y, log_p = int(snapshot.labels[0]), snapshot.logits[0].log_softmax(0)
    want = -torch.sigmoid(sum(form[j, y] * log_p[j] for j in range(CLASSES)) + offset[y])
    assert torch.allclose(shaped(taught, snapshot)[0], want, rtol=1e-12)


def test_teaching_begins_at_minus_sigmoid_of_log_p() -> None:
    snapshot = seen()
    p = (-snapshot.losses).exp()
    assert torch.allclose(shaped(teacher(), snapshot), -p / (1 + p), atol=0.03)
    mixed = shaped(teacher(mix=0.5), snapshot)
    assert torch.allclose(mixed, 0.5 * snapshot.losses + 0.5 * shaped(teacher(), snapshot))


def test_state_holds_progress_accuracies_and_precisions() -> None:
    taught = teacher()
    logits = torch.eye(CLASSES).double()[[0, 0, 1, 1]]
    trusted = replace(seen(4), logits=logits, labels=torch.tensor([0, 1, 1, 1]))
    assert taught.reads_trusted
    taught.fit(trusted)
    state = taught.state(replace(trusted, labels=torch.tensor([0, 0, 0, 0])))
    assert state.tolist() == pytest.approx([0.3, 0.5, 0.75, 0.5, 1.0, 0.0])


def test_smooth_error_by_hand_and_its_limits() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]], dtype=torch.float64)
    y = torch.tensor([0, 1])
    want = (0 + 2 * torch.sigmoid(torch.tensor(50 * 0.05).double()) - 1) / 2
    assert torch.allclose(dt.smooth_error(p.log(), y), want)
    assert float(dt.smooth_error(p.log(), y, 1e6)) == pytest.approx(0.5)


@pytest.mark.parametrize("loss", [dt.smooth_error, "expected_accuracy"])
@pytest.mark.parametrize("mix", [0.0, 0.5])
def test_meta_gradient_equals_differences(loss: Any, mix: float) -> None:
    """Train the same window again with the teacher moved; its state feature stays replayed."""
    setting = Setting(window=3, interval=3, warmup=2)

    def gently(z: Tensor, y: Tensor) -> Tensor:
        return dt.smooth_error(z, y, 3.0)

    measure = gently if callable(loss) else loss

    def end(direction: dict[str, Tensor], amount: float) -> tuple[float, dict[str, Tensor]]:
        run = bench(MLP, setting, teacher=lambda _: dt.L2TLoss(CLASSES, slots=2, mix=mix))
        assert isinstance(run.teacher, dt.L2TLoss)
        run.teacher.fit(seen(12, seed=4))
        with torch.no_grad():
            for name, leaf in run.teacher.named_parameters():
                if name in direction:
                    leaf.add_(direction[name], alpha=amount)
        coach = run.coach(validation_loss=measure)
        run.train(coach)
        value = coach.validation_loss(run.module(run.valid[0]), run.valid[1])
        return float(value.detach()), coach.meta_gradient(*run.valid)

    g = torch.Generator().manual_seed(2)
    _, gradient = end({}, 0.0)
    for _ in range(2):
        along = {
            name: torch.randn(leaf.shape, generator=g, dtype=leaf.dtype)
            for name, leaf in gradient.items()
        }
        slope = (end(along, 1e-5)[0] - end(along, -1e-5)[0]) / 2e-5
        want = sum(float((gradient[name] * along[name]).sum()) for name in gradient)
        assert slope == pytest.approx(want, rel=TOLERANCE["differences"], abs=1e-9)
        assert abs(want) > 1e-6


def test_adjoints_agree() -> None:
    found = []
    for adjoint in (None, dt.Reversed(), dt.Unrolled()):
        run = bench(MLP, Setting(window=3), teacher=lambda _: dt.L2TLoss(CLASSES))
        coach = run.coach(adjoint)
        run.train(coach)
        found.append(coach.meta_gradient(*run.valid))
    assert isinstance(dt.L2TLoss(3).default_adjoint(), dt.Stored)
    for other in found[1:]:
        for name, leaf in found[0].items():
            assert torch.allclose(leaf, other[name], rtol=1e-7, atol=1e-12), name


def test_state_does_not_depend_on_the_order_and_survives_saving() -> None:
    taught, snapshot, again = teacher(), seen(), teacher()
    taught.fit(seen(12, seed=4))
    order = torch.arange(29, -1, -1)
    columns = {k: getattr(snapshot, k)[order] for k in ("internal", "logits", "labels", "losses")}
    assert torch.allclose(
        shaped(taught, replace(snapshot, **columns)), shaped(taught, snapshot)[order]
    )
    again.load_state_dict(taught.state_dict())
    assert torch.equal(shaped(again, snapshot), shaped(taught, snapshot))


def test_taught_loss_lowers_the_validation_measure() -> None:
    torch.manual_seed(0)
    taught = dt.L2TLoss(CLASSES).double()
    values = []
    for learn in (False, True):
        run = bench(MLP, Setting(window=4, interval=4, warmup=0))
        optimizer = torch.optim.SGD(taught.parameters(), lr=1.0)
        coach = run.coach(
            teacher=taught, teacher_optimizer=optimizer, validation_loss=dt.smooth_error
        )
        coach.trust(run.valid)  # else the first update fits the teacher and does not step it
        run.train(coach)
        with torch.no_grad():
            values.append(float(dt.smooth_error(run.module(run.valid[0]), run.valid[1])))
        if not learn:
            coach.update(run.valid)
    assert values[1] < values[0]


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="slots"):
        dt.L2TLoss(3, slots=0)
    floating = replace(seen(), labels=torch.rand(30))
    with pytest.raises(ConfigError, match="integer labels"):
        shaped(teacher(), floating)
