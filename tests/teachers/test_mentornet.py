"""MentorNet: its curricula by hand, its moving percentile, its network, its random drop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import CASE, Setting, bench
from torch import Tensor

import deepteach as dt
from deepteach.errors import ConfigError, DataError
from deepteach.teachers.mentor_network import MentorNetwork, fit_mentor, percentile
from deepteach.teachers.mentornet import DROPOUT, predefined_weights

ALL = ((0.0, 100),)


def seen(losses: Any, percent: int = 50, step: int | None = None) -> dt.Snapshot:
    losses = torch.as_tensor(losses, dtype=torch.float64)
    n = len(losses)
    clock = dt.Clock(step=percent if step is None else step, total=100)
    return dt.Snapshot(
        torch.zeros(n, 2), torch.zeros(n, 3), torch.zeros(n, dtype=torch.long), losses, clock
    )


def test_predefined_weights_by_hand() -> None:
    losses, d = torch.tensor([0.0, 1.0, 3.0]), torch.tensor([-1.0, 0.0, 0.5])
    got = {k: predefined_weights(k, losses, d, 50).tolist() for k in ("spl", "hard", "linear")}
    assert got == {"spl": [1, 1, 0], "hard": [0, 1, 1], "linear": [1, 1, 0.5]}
    assert torch.allclose(predefined_weights("focal", losses, d, 0), (1 - (-losses).exp()) ** 2)
    published = [predefined_weights("published", losses, d, e).tolist() for e in (18, 19, 89, 90)]
    assert published == [[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 1, 0.5]]


def test_percentile_is_the_nearest_rank() -> None:
    losses = torch.arange(11.0)
    assert float(percentile(losses, 0.7)) == 7 and float(percentile(losses, 0.74)) == 7


def test_moving_average_counts_each_step_once() -> None:
    teacher = dt.MentorNet("linear", percentile=0.5, decay=0.9, dropout=ALL)
    batches = [torch.rand(9, generator=torch.Generator().manual_seed(t)) + t for t in range(4)]
    m = 0.0
    for t, losses in enumerate(batches):
        m = 0.9 * m + 0.1 * float(losses.median())
        want = (1 - (losses - m)).clamp(0, 1)
        for _ in range(3):
            assert torch.allclose(teacher(seen(losses, step=t)).exp().float(), want, atol=1e-6)
        with torch.no_grad():  # a look at other samples, before or after, leaves no trace
            teacher(seen(100 * losses, step=t))
            teacher(seen(100 * losses, step=t + 1))


def test_drop_is_a_floor_without_replacement_and_named_by_the_step() -> None:
    teacher = dt.MentorNet("focal", dropout=((0.5, 17), (0.05, 78), (0.9, 5)), seed=3)
    losses = torch.full((30,), 20.0)
    for percent, count in ((0, 15), (17, 28), (94, 28), (99, 3)):
        kept = teacher(seen(losses, percent)).exp() > 0.5
        assert int(kept.sum()) == count
        assert torch.equal(kept, teacher(seen(losses, percent)).exp() > 0.5)
    different = teacher(seen(losses, 2)).exp() != teacher(seen(losses, 3)).exp()
    assert different.any()
    with torch.no_grad():
        assert (teacher(seen(losses, 50)).exp() > 0.5).all()
    assert sum(percents for _, percents in DROPOUT) == 100


def test_resumed_teacher_goes_on_to_the_bit() -> None:
    whole, first, second = (dt.MentorNet("linear", seed=1) for _ in range(3))
    draws = [torch.rand(20, generator=torch.Generator().manual_seed(t)) for t in range(6)]
    for t, losses in enumerate(draws):
        want = whole(seen(losses, step=t))
        if t == 3:
            second.load_state_dict(first.state_dict())
        got = (first if t < 3 else second)(seen(losses, step=t))
        assert torch.equal(got, want)


def test_weighted_loss_is_the_mean_of_v_times_l() -> None:
    run = bench(CASE["mlp"], Setting(interval=1, window=1))
    teacher = dt.MentorNet("spl", decay=0.0, dropout=ALL)
    coach = run.coach(teacher=teacher)
    x, y = run.batches[0]
    losses = torch.nn.functional.cross_entropy(run.module(x), y, reduction="none").detach()
    want = (losses * (losses <= percentile(losses, 0.7))).mean()
    assert torch.allclose(coach.loss(x, y), want, rtol=1e-12)
    assert not list(teacher.parameters())


# The data-driven network


def flagged(epochs: int = 20, m: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Wrong labels keep a high loss; right ones fall."""
    g = torch.Generator().manual_seed(0)
    clean = torch.arange(m) % 5 < 3
    fall = torch.linspace(2.0, 0.2, epochs).unsqueeze(1)
    losses = torch.where(clean, fall, torch.tensor(3.0)) + 0.2 * torch.rand(epochs, m, generator=g)
    thresholds = torch.stack([losses.quantile(p, dim=1) for p in (0.4, 0.6, 0.8)], 1)
    return losses, clean, thresholds


def test_network_has_the_published_shape() -> None:
    network = MentorNetwork()
    shapes = {name: tuple(leaf.shape) for name, leaf in network.named_parameters()}
    assert shapes["label.weight"] == (2, 2) and shapes["epoch.weight"] == (100, 5)
    assert shapes["dense.weight"] == (20, 9) and shapes["out.weight"] == (1, 20)
    assert shapes["lstm.weight_ih_l0"] == shapes["lstm.weight_ih_l0_reverse"] == (4, 2)
    assert not network.epoch.weight.requires_grad
    # One step of each LSTM direction by hand: c = sigmoid(i) tanh(g), from c = 0.
    losses, d, percent = torch.rand(5), torch.rand(5), torch.full((5,), 7)
    cells = []
    for end in ("", "_reverse"):
        w, b = (getattr(network.lstm, f"{k}_ih_l0{end}") for k in ("weight", "bias"))
        gates = torch.stack([losses, d], 1) @ w.T + b + getattr(network.lstm, f"bias_hh_l0{end}")
        cells.append(gates[:, 0].sigmoid() * gates[:, 2].tanh())
    row = torch.cat([network.label.weight[0], network.epoch.weight[7]])
    joined = torch.cat([row.expand(5, -1), torch.stack(cells, 1)], 1)
    want = network.out(network.dense(joined).tanh()).squeeze(1)
    assert torch.allclose(network(losses, d, percent), want, atol=1e-6)


def test_fitted_network_separates_wrong_labels_and_repeats() -> None:
    losses, clean, thresholds = flagged()
    networks = [fit_mentor(losses, clean, thresholds, steps=150, seed=2) for _ in range(2)]
    for left, right in zip(*(n.parameters() for n in networks), strict=True):
        assert torch.equal(left, right)
    teacher = dt.MentorNet("data-driven", percentile=0.6, decay=0.0, dropout=ALL)
    assert torch.equal(teacher(seen(losses[-1])).exp(), torch.ones(len(clean)).double())
    teacher.adopt(networks[0])
    late = teacher(seen(losses[-1], percent=60)).exp()
    assert late[clean].min() > late[~clean].max()
    early = teacher(seen(losses[-1], percent=16)).exp()  # within the burn-in
    assert (early == 1).all()
    # After it the epoch stays at 18.
    assert torch.equal(teacher(seen(losses[-1], percent=18)).exp(), late)
    other = dt.MentorNet("data-driven", percentile=0.6, decay=0.0, dropout=ALL)
    other.load_state_dict(teacher.state_dict())
    assert torch.equal(other(seen(losses[-1], percent=60)).exp(), late)


def test_refusals() -> None:
    losses, clean, thresholds = flagged()
    with pytest.raises(DataError, match="right and wrong"):
        fit_mentor(losses, torch.ones_like(clean), thresholds)
    with pytest.raises(ConfigError, match="kind"):
        dt.MentorNet("best")  # pyright: ignore
    with pytest.raises(ConfigError, match="percentile"):
        dt.MentorNet(percentile=70)
    with pytest.raises(ConfigError, match="dropout"):
        dt.MentorNet(dropout=((0.5, 17),))
    with pytest.raises(ConfigError, match="data-driven"):
        dt.MentorNet("spl").adopt(MentorNetwork())


def test_wrong_labels_weigh_less_under_the_published_predefined_weights() -> None:
    losses, clean, _ = flagged()
    teacher = dt.MentorNet(percentile=0.6, decay=0.0, dropout=ALL)
    snapshot = replace(seen(losses[-1]), losses=losses[-1].double())
    weights = teacher(snapshot).exp()
    assert weights[clean].mean() > 0.9 and weights[~clean].mean() < 0.1
