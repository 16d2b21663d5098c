"""Focal, self-paced, Meta-Weight-Net, learning to reweight and SAMA against their sources."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import CASE, TOLERANCE, Bench, Setting, bench
from oracles import metric, off, sample_losses
from torch import Tensor, nn
from torch.func import functional_call

import deepteach as dt
from deepteach.errors import ConfigError

MLP = CASE["mlp"]
ONE = Setting(window=1, interval=1, warmup=2)


def seen(n: int = 40, classes: int = 3, progress: float = 0.0, seed: int = 0) -> dt.Snapshot:
    """Random logits and labels, as a teacher sees them."""
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=g, dtype=torch.float64)
    labels = torch.randint(classes, (n,), generator=g)
    clock = dt.Clock(step=round(1000 * progress), total=1000)
    losses = sample_losses(logits, labels)
    return dt.Snapshot(logits[:, :2].clone(), logits, labels, losses, clock)


def losses_of(values: list[float], progress: float) -> dt.Snapshot:
    clock = dt.Clock(step=round(1000 * progress), total=1000)
    return replace(seen(len(values)), losses=torch.tensor(values, dtype=torch.float64), clock=clock)


def shuffled(snapshot: dt.Snapshot, order: Tensor) -> dt.Snapshot:
    columns = {k: getattr(snapshot, k)[order] for k in ("internal", "logits", "labels", "losses")}
    return replace(snapshot, **columns)


def step(run: Bench, coach: dt.Coach, t: int = 0) -> None:
    """One taught step on batch t."""
    run.optimizer.zero_grad()
    coach.loss(*run.batches[t]).backward()
    run.optimizer.step()
    coach.update(run.valid)


def warmed(teacher: Any = None, **changes: Any) -> tuple[Bench, dt.Coach]:
    """A bench with a momentum behind it and trusted data at hand, before its next step."""
    run = bench(MLP, ONE, **({} if teacher is None else {"teacher": teacher}))
    coach = run.coach(**changes)
    for t in range(2):
        run.optimizer.zero_grad()
        x, y = run.batches[t]
        nn.functional.cross_entropy(run.module(x), y).backward()
        run.optimizer.step()
    coach.trust(run.valid)
    return run, coach


def grads(value: Tensor, run: Bench, **options: Any) -> list[Tensor]:
    return list(torch.autograd.grad(value, list(run.module.parameters()), **options))


# Focal


@pytest.mark.parametrize("through", [True, False])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_is_its_published_loss(gamma: float, through: bool) -> None:
    run = bench(MLP)
    coach = run.coach(teacher=dt.Focal(gamma, through=through))
    x, y = run.batches[0]
    p = run.module(x).softmax(1)[torch.arange(len(y)), y]
    weight = (1 - p) ** gamma
    want = ((weight if through else weight.detach()) * -p.log()).mean()
    got = coach.loss(x, y)
    assert torch.allclose(got, want, rtol=1e-12)
    for left, right in zip(grads(got, run), grads(want, run), strict=True):
        assert torch.allclose(left, right, rtol=1e-9, atol=1e-14)


def test_focal_by_hand_and_gamma_zero() -> None:
    p = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]], dtype=torch.float64)
    snapshot = replace(seen(3), logits=p.log(), labels=torch.tensor([0, 0, 0]))
    assert torch.allclose(dt.Focal(2.0)(snapshot).exp(), torch.tensor([0.01, 0.25, 0.64]).double())
    assert torch.allclose(dt.Focal(0.0)(snapshot).exp(), torch.ones(3).double())


def test_focal_of_a_certain_sample_has_finite_gradients() -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    snapshot = replace(seen(2), logits=logits, labels=torch.tensor([0, 0]))
    weights = dt.Focal(0.5)(snapshot).exp()
    assert weights[0] < 1e-15 and weights[1] == 1
    assert torch.isfinite(torch.autograd.grad(weights.sum(), logits)[0]).all()


def test_focal_raises_the_weight_of_high_losses() -> None:
    snapshot = seen()
    order = snapshot.losses.argsort()
    assert (dt.Focal(1.0)(snapshot)[order].diff() >= 0).all()


# Self-paced learning


def test_self_paced_keeps_the_easy_share() -> None:
    teacher = dt.SelfPaced(start=0.4, end=1.0, full=0.5)
    values = [float(v) for v in (5, 1, 4, 2, 3, 9, 8, 7, 6, 10)]
    for progress, count in ((0.0, 4), (0.25, 7), (0.5, 10), (1.0, 10)):
        kept = teacher(losses_of(values, progress)).exp()
        assert [v for v, w in zip(values, kept, strict=True) if w == 1] == [
            v for v in values if v <= count
        ]
        assert kept.sum() == count


def test_self_paced_paces() -> None:
    linear = dt.SelfPaced(start=0.25, full=0.5)
    geometric = dt.SelfPaced(start=0.25, full=0.5, pace="geometric")
    assert [linear.share(p) for p in (0, 0.25, 0.5, 1)] == [0.25, 0.625, 1, 1]
    assert [geometric.share(p) for p in (0, 0.25, 0.5, 1)] == [0.25, 0.5, 1, 1]


def test_soft_weights_are_the_published_forms() -> None:
    values = [0.1, 0.3, 0.6, 0.9, 2.0]
    snapshot, loss = losses_of(values, 0.0), torch.tensor(values, dtype=torch.float64)
    got = {
        kind: dt.SelfPaced(kind, start=0.8)(snapshot).exp()  # pyright: ignore
        for kind in ("linear", "logarithmic", "logistic")
    }
    below = (loss < 0.9).double()  # lambda = 0.9, so the published logarithm needs no scaling
    assert torch.allclose(got["linear"], below * (1 - loss / 0.9))
    published = (loss + 1 - 0.9).log() / math.log(1 - 0.9)
    assert torch.allclose(got["logarithmic"], below * published, atol=1e-12)
    assert torch.allclose(got["logistic"], (1 + math.exp(-0.9)) / (1 + (loss - 0.9).exp()))


@pytest.mark.parametrize("kind", ["hard", "linear", "logarithmic", "logistic"])
def test_self_paced_invariants(kind: Any) -> None:
    teacher, snapshot = dt.SelfPaced(kind, start=0.6), seen(progress=0.2)
    weights = teacher(snapshot)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert torch.equal(teacher(shuffled(snapshot, order)), weights[order])
    assert torch.isfinite(weights).all() and (weights <= 1e-12).all()
    assert (weights[snapshot.losses.argsort()].diff() <= 0).all()
    if kind != "logistic":
        scaled = teacher(replace(snapshot, losses=7 * snapshot.losses))
        assert torch.allclose(scaled.exp(), weights.exp(), atol=1e-12)


@pytest.mark.parametrize("kind", ["hard", "linear", "logarithmic", "logistic"])
@pytest.mark.parametrize("values", [[2.0], [1.0, 1.0, 1.0], [0.0, 0.0]])
def test_self_paced_never_drops_a_whole_batch(kind: Any, values: list[float]) -> None:
    weights = dt.SelfPaced(kind, start=0.1)(losses_of(values, 0.0))
    assert weights.exp().sum() > 0 and torch.isfinite(weights).all()


@pytest.mark.parametrize(
    "options", [{"kind": "soft"}, {"start": 0.0}, {"start": 0.8, "end": 0.5}, {"full": 0.0}]
)
def test_self_paced_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="SelfPaced"):
        dt.SelfPaced(**options)
    with pytest.raises(ConfigError, match="gamma"):
        dt.Focal(-1.0)


# Meta-Weight-Net


def test_mwn_is_the_published_network() -> None:
    torch.manual_seed(0)
    net, snapshot = dt.MetaWeightNet().double(), seen()
    w1, b1, w2, b2 = (leaf.detach() for leaf in net.parameters())
    hidden = (snapshot.losses.unsqueeze(1) @ w1.T + b1).clamp(min=0)
    want = torch.sigmoid(hidden @ w2.T + b2).squeeze(1)
    assert torch.allclose(net(snapshot).detach().exp(), want, rtol=1e-10)
    assert sum(leaf.numel() for leaf in net.parameters()) == 301
    # torch's default for 100 inputs is uniform within 0.1; bias too.
    assert 0.04 < float(w2.std()) < 0.08 and float(w2.abs().max()) <= 0.1 and float(b2) != 0


def test_unnormalised_weights_are_means() -> None:
    run = bench(MLP)
    net = dt.MetaWeightNet(normalised=False).double()
    x, y = run.batches[0]
    losses = sample_losses(run.module(x), y)
    w = net(replace(seen(len(y)), losses=losses.detach())).exp()
    assert torch.allclose(run.coach(teacher=net).loss(x, y), (w * losses).mean())


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
def test_lookahead_equals_the_unrolled_step(normalised: bool, momentum: bool) -> None:
    run, coach = warmed(
        lambda case: dt.MetaWeightNet(normalised=normalised), adjoint=dt.Lookahead(momentum)
    )
    got: dict[str, Tensor] = {}
    assert coach.teacher_optimizer is not None
    coach.teacher_optimizer.register_step_pre_hook(
        lambda *_: got.update({n: p.grad.clone() for n, p in run.teacher.named_parameters()})  # pyright: ignore
    )
    x, y = run.batches[2]
    theta: dict[str, Tensor] = dict(run.module.named_parameters())
    omega = {n: p.detach().clone().requires_grad_() for n, p in run.teacher.named_parameters()}
    losses = sample_losses(functional_call(run.module, theta, (x,)), y)
    snapshot = replace(seen(len(y)), losses=losses.detach())
    w = functional_call(run.teacher, omega, (snapshot,)).exp()
    value = (w * losses).sum() / (w.sum() if normalised else len(y))
    g = dict(
        zip(theta, torch.autograd.grad(value, list(theta.values()), create_graph=True), strict=True)
    )
    hat = {}
    for group in run.optimizer.param_groups:
        for name, leaf in theta.items():
            if any(leaf is member for member in group["params"]):
                direction = g[name]
                if momentum:
                    held = run.optimizer.state[leaf]["momentum_buffer"]
                    decayed = g[name] + group["weight_decay"] * leaf
                    direction = group["momentum"] * held + decayed
                hat[name] = leaf - group["lr"] * direction
    end = metric("nll")(functional_call(run.module, hat, (run.valid[0],)), run.valid[1])
    want = dict(zip(omega, torch.autograd.grad(end, list(omega.values())), strict=True))
    step(run, coach, 2)
    assert off(got, want) < TOLERANCE["adjoints"]


# Learning to reweight


def free_weights(run: Bench, x: Any, y: Tensor) -> Tensor:
    """As published: the derivative with respect to eps at 0 of the loss after a step."""
    theta: dict[str, Tensor] = dict(run.module.named_parameters())
    eps = torch.zeros(len(y), dtype=torch.float64, requires_grad=True)
    value = eps @ sample_losses(functional_call(run.module, theta, (x,)), y)
    g = torch.autograd.grad(value, list(theta.values()), create_graph=True)
    hat = {name: leaf - 0.1 * d for (name, leaf), d in zip(theta.items(), g, strict=True)}
    end = metric("nll")(functional_call(run.module, hat, (run.valid[0],)), run.valid[1])
    raw = (-torch.autograd.grad(end, eps)[0]).clamp(min=0)
    return raw / raw.sum()


@pytest.mark.parametrize("name", ["mlp", "lstm"])
def test_free_weights_equal_the_unrolled_step(name: str) -> None:
    run = bench(CASE[name], replace(ONE, warmup=0))
    coach = run.coach(teacher=dt.LearningToReweight())
    coach.trust(run.valid)
    for t in range(1):
        want = free_weights(run, *run.batches[t])
        step(run, coach, t)
        assert torch.allclose(coach.last_weights, want, rtol=1e-8, atol=1e-12)
        assert 0 < int((want == 0).sum()) < len(want)


def test_samples_that_all_hurt_give_no_gradient() -> None:
    run, teacher = bench(MLP, replace(ONE, warmup=0)), dt.LearningToReweight()
    coach = run.coach(teacher=teacher)
    x = run.valid[0][:1]
    probabilities = run.module(x).softmax(1)
    best, worst = int(probabilities.argmax()), int(probabilities.argmin())
    coach.trust((x, torch.tensor([best])))
    loss = coach.loss(x.expand(2, -1), torch.tensor([worst, worst]))
    assert float(loss.detach()) == 0 and int(teacher.idle) == 1
    assert all(not leaf.any() for leaf in grads(loss, run))


def test_free_weights_belong_to_their_batch_alone() -> None:
    run, coach = warmed(teacher=None)
    coach = run.coach(teacher=dt.LearningToReweight())
    coach.trust(run.valid)
    step(run, coach)
    x, y = run.batches[0]
    assert torch.equal(coach.weights(x, y), torch.ones(len(y)).double())


def test_a_batch_that_was_not_weighed_is_refused() -> None:
    run = bench(MLP, replace(ONE, interval=3, warmup=0))
    coach = run.coach(teacher=dt.LearningToReweight())
    coach.trust(run.valid)
    step(run, coach)
    with pytest.raises(ConfigError, match="interval=1"):
        step(run, coach, 1)


# SAMA


def first_order(run: Bench, coach: dt.Coach) -> dict[str, Tensor]:
    """At the present parameters: a step of rate 0 is recorded, and moves nothing."""
    for group in run.optimizer.param_groups:
        group["lr"] = 0.0
    run.optimizer.zero_grad()
    coach.loss(*run.batches[-1]).backward()
    run.optimizer.step()
    return coach.meta_gradient(*run.valid)


def test_first_order_tends_to_the_one_step_derivative() -> None:
    run = bench(MLP, Setting(window=1))
    x, y = run.batches[-1]
    theta: dict[str, Tensor] = dict(run.module.named_parameters())
    end = metric("nll")(functional_call(run.module, theta, (run.valid[0],)), run.valid[1])
    v = torch.autograd.grad(end, list(theta.values()))
    logits = functional_call(run.module, theta, (x,))
    losses = sample_losses(logits, y)
    slopes = torch.stack(
        [
            torch.stack(
                [(a * b).sum() for a, b in zip(grads(each, run, retain_graph=True), v, strict=True)]
            ).sum()
            for each in losses
        ]
    )
    coach = run.coach(dt.FirstOrder(1e-4))
    snapshot = coach.look(x, y)
    omega: dict[str, Tensor] = dict(run.teacher.named_parameters())
    w = functional_call(run.teacher, omega, (snapshot,)).exp()
    found = torch.autograd.grad(-(w / w.sum()) @ slopes, list(omega.values()))
    got = first_order(run, coach)
    assert off(got, dict(zip(omega, found, strict=True))) < TOLERANCE["differences"]
    rough = first_order(run, run.coach(dt.FirstOrder(1.0)))
    assert off(rough, got) > TOLERANCE["differences"]


def test_first_order_changes_nothing_and_repeats() -> None:
    run = bench(CASE["batchnorm"], Setting(window=1))
    coach = run.coach(dt.FirstOrder())
    run.train(coach)
    before = {name: leaf.clone() for name, leaf in run.module.state_dict().items()}
    first, again = coach.meta_gradient(*run.valid), coach.meta_gradient(*run.valid)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(leaf, before[k]) for k, leaf in run.module.state_dict().items())
