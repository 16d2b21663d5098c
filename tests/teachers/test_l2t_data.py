"""L2T-data: features, draws, reward and the score-function gradient against enumeration."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import CASE, CLASSES, Bench, Setting, bench
from oracles import sample_losses
from torch import Tensor, nn

import deepteach as dt
from deepteach.errors import ConfigError
from deepteach.teachers.l2t_data import DECAY


def seen(n: int = 30, step: int = 5, seed: int = 0) -> dt.Snapshot:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, CLASSES, generator=g)
    labels = torch.randint(CLASSES, (n,), generator=g)
    losses = sample_losses(logits, labels)
    return dt.Snapshot(logits[:, :2], logits, labels, losses, dt.Clock(step, 20, mean_loss=0.4))


def teacher(**options: Any) -> dt.L2TData:
    torch.manual_seed(0)
    return dt.L2TData(CLASSES, **{"relative": False, "seed": 7, **options})


def test_features_by_hand() -> None:
    snapshot, taught = seen(1), teacher()
    taught.report(0.6)
    y, p = int(snapshot.labels[0]), snapshot.logits[0].softmax(0).tolist()
    others = max(value for j, value in enumerate(p) if j != y)
    want = [float(j == y) for j in range(CLASSES)] + p
    want += [-math.log(p[y]), p[y] - others, 0.25, 0.4 / math.log(CLASSES), 0.6]
    assert taught.features(snapshot)[0].tolist() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("window", [1, 2])
def test_a_loop_of_one_s_own_needs_no_adjoint(window: int) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    taught, student = teacher(), dt.Student(module, "2")
    coach = dt.Coach(student, optimizer, taught, interval=5, window=window)
    trusted = torch.randn(20, 6), torch.arange(20) % CLASSES
    for _ in range(15):
        optimizer.zero_grad()
        coach.loss(torch.randn(16, 6), torch.arange(16) % CLASSES).backward()
        optimizer.step()
        coach.update(trusted)
    assert int(taught.episode) == 3


def test_policy_starts_by_keeping_nearly_everything() -> None:
    taught, snapshot = teacher(), seen(400)
    with torch.no_grad():  # a look shows the probabilities themselves
        chance = taught(snapshot).exp()
    assert torch.allclose(chance, torch.tensor(2.0).sigmoid().expand(400), atol=0.03)
    share = taught(snapshot).exp().mean()
    assert float(share) == pytest.approx(float(chance.mean()), abs=0.05)


def test_draws_are_named_by_seed_episode_step_and_part() -> None:
    taught, snapshot = teacher(), seen(200)
    first = taught.draw(snapshot)
    torch.rand(3)
    assert torch.equal(taught.draw(snapshot), first)
    assert not torch.equal(taught.draw(snapshot, part=1), first)
    assert not torch.equal(taught.draw(replace(snapshot, clock=dt.Clock(6, 20))), first)
    assert not torch.equal(teacher(seed=8).draw(snapshot), first)
    taught.finish()
    assert not torch.equal(taught.draw(snapshot), first)


def test_reward_by_hand() -> None:
    taught = teacher(thresholds=(0.5, 0.7, 0.9))
    taught.kept = torch.tensor(800)
    taught.curve = [(100.0, 0.4), (200.0, 0.6), (400.0, 0.8), (600.0, 0.7)]
    want = (math.log(800 / 200) + 2 * math.log(800 / 400)) / 6  # 0.9 is never reached
    assert taught.reward() == pytest.approx(want)


def test_relative_thresholds_come_from_the_first_episode() -> None:
    taught = teacher(relative=True, thresholds=(0.5, 1.0))
    taught.kept, taught.curve = torch.tensor(8), [(2.0, 0.5), (4.0, 0.8)]
    assert taught.reward() == pytest.approx((math.log(8 / 2) + 2 * math.log(8 / 4)) / 3)
    first = taught.finish()
    for name, leaf in taught.named_parameters():  # it only sets the baseline: decay is left
        assert torch.allclose(first[name], 2 * DECAY * leaf)
    assert taught.tau.tolist() == pytest.approx([0.4, 0.8])
    taught.kept, taught.curve = torch.tensor(8), [(2.0, 0.5)]
    assert taught.reward() == pytest.approx(math.log(4) / 3)


def test_episode_gradient_is_the_published_loss() -> None:
    taught = teacher(hidden=12)
    snapshots = [seen(10, step=t, seed=t) for t in range(3)]
    taught.baseline = torch.tensor(0.3).double()
    draws = []
    for t, snapshot in enumerate(snapshots):
        draws.append(taught.draw(snapshot))
        taught.commit(4 if t == 2 else None)
    features = torch.cat([taught.features(s) for s in snapshots])[:24]
    taught.curve = [(3.0, 0.99)]
    reward = taught.reward()
    drawn = torch.cat(draws)[:24].float()
    q = taught.policy(features).squeeze(1).sigmoid()
    score = -(drawn * q.log() + (1 - drawn) * (1 - q).log()).mean()
    decay = sum((leaf**2).sum() for leaf in taught.parameters())
    loss = (reward - 0.3) * score + DECAY * decay
    want = torch.autograd.grad(loss, list(taught.parameters()))
    got = taught.finish()
    for (name, _), leaf in zip(taught.named_parameters(), want, strict=True):
        assert torch.allclose(got[name], leaf, rtol=1e-4, atol=1e-7), name
    assert float(taught.baseline) == pytest.approx(0.2 * 0.3 + 0.8 * reward)
    assert int(taught.seen) == int(taught.kept) == 0 and not taught.curve


def test_score_function_is_unbiased() -> None:
    """E[R(a) grad log pi(a)] = grad E[R(a)], by enumerating all draws of three samples."""
    taught, snapshot = teacher().double(), seen(3)
    features = taught.features(snapshot)
    worth = torch.tensor([1.0, -2.0, 0.5]).double()
    leaves = list(taught.policy.parameters())
    q = taught.policy(features).squeeze(1).sigmoid()
    want = torch.autograd.grad((q * worth).sum(), leaves, retain_graph=True)
    total = [torch.zeros_like(leaf) for leaf in leaves]
    for bits in itertools.product([False, True], repeat=3):
        a = torch.tensor(bits)
        chance = float(torch.where(a, q, 1 - q).prod().detach())
        taught.score, taught._last = torch.zeros_like(taught.score), (features, a)
        taught.commit()
        parts = taught.score.split([leaf.numel() for leaf in leaves])
        for sum_, part in zip(total, parts, strict=True):
            sum_ -= chance * float((a * worth).sum()) * part.view_as(sum_)
    for got, leaf in zip(total, want, strict=True):
        assert torch.allclose(got, leaf, rtol=1e-9)


def episode(run: Bench, coach: dt.Coach) -> dt.UpdateRecord | None:
    record = None
    for x, y in run.batches:
        run.optimizer.zero_grad()
        coach.loss(x, y).backward()
        run.optimizer.step()
        record = coach.update(run.valid)
    return record


def own_loop() -> tuple[Bench, dt.Coach, dt.L2TData]:
    run, taught = bench(CASE["mlp"], Setting(interval=8, window=1, warmup=0)), teacher().double()
    return run, run.coach(teacher=taught), taught


def test_in_a_loop_of_ones_own_the_policy_learns_once_per_episode() -> None:
    run, coach, taught = own_loop()
    before = [leaf.detach().clone() for leaf in taught.parameters()]
    record = episode(run, coach)
    assert record is not None and record.step == 8 and int(taught.episode) == 1
    moved = [not torch.equal(a, b) for a, b in zip(before, taught.parameters(), strict=True)]
    assert all(moved)


def test_dropped_samples_do_not_count() -> None:
    run, coach, taught = own_loop()
    taught.policy[-1].bias.data.fill_(0.0)  # pyright: ignore
    x, y = run.batches[2]
    losses = sample_losses(run.module(x), y)
    kept = taught.draw(coach.look(x, y))
    assert kept.any() and not kept.all()
    assert torch.allclose(coach.loss(x, y), losses[kept].mean(), rtol=1e-12)
    assert int(taught.seen) == len(y) and int(taught.kept) == int(kept.sum())


def test_saved_in_an_episode_it_goes_on_to_the_bit() -> None:
    def run_on(taught: dt.L2TData, steps: range) -> None:
        for t in steps:
            taught(seen(10, step=t, seed=t))
            taught.commit()
            taught.report(0.1 * t)

    whole, first, second = teacher(), teacher(), teacher()
    run_on(whole, range(6))
    run_on(first, range(3))
    second.load_state_dict(first.state_dict())
    run_on(second, range(3, 6))
    want, got = whole.finish(), second.finish()
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_policy_learns_to_drop_what_slows_it_down() -> None:
    """A reward that pays for dropping samples of class 0 teaches it to drop them."""
    taught = teacher().double()
    optimizer = torch.optim.Adam(taught.parameters(), lr=0.2)

    def chance(label: int) -> float:
        with torch.no_grad():
            snapshot = seen(60)
            return float(taught(snapshot).exp()[snapshot.labels == label].mean())

    start = chance(0) - chance(1)
    for t in range(80):
        snapshot = seen(20, step=t, seed=t)
        kept: Tensor = taught.draw(snapshot)
        taught.commit()
        harm = float((kept & (snapshot.labels == 0)).double().mean())
        taught.curve = [(max(1.0, 20 * harm), 1.0)]
        taught.baseline = torch.full_like(taught.baseline, 1.2)
        for name, gradient in taught.finish().items():
            dict(taught.named_parameters())[name].grad = gradient
        optimizer.step()
    assert chance(0) - chance(1) < start - 0.1


def test_refusals() -> None:
    for marks in ((), (0.9, 0.5), (0.0, 0.5), (0.5, 1.5)):
        with pytest.raises(ConfigError, match="thresholds"):
            dt.L2TData(3, thresholds=marks)
