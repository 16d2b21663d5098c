"""The trusted probe of real-valued targets: the fit, what it ranks, what it cannot know."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from counted import Counted
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import deepteach as dt
from deepteach.teachers.ridge import ridge


def snapshot(n: int = 60, width: int = 6, noise: float = 0.2, seed: int = 0) -> dt.Snapshot:
    """Two targets that are linear in the states, and noise."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=g).double()
    slope = torch.randn(width, 2, generator=torch.Generator().manual_seed(9)).double()
    y = x @ slope + noise * torch.randn(n, 2, generator=g).double()
    return dt.Snapshot(x, torch.zeros(n, 2).double(), y, torch.zeros(n).double())


def fitted(seen: dt.Snapshot, **options: float) -> dt.TrustedRegression:
    probe = dt.TrustedRegression(**options)
    probe.fit(seen)
    return probe


@pytest.mark.parametrize("width", [3, 19, 20, 21, 200])
def test_the_slope_is_ridge_and_the_scale_that_of_samples_left_out(width: int) -> None:
    seen = snapshot(20, width, noise=1.0)
    x, y, s = seen.internal, seen.labels, 0.3
    found = ridge(x, y, s)
    penalty = s / (1 - s) * float((x - x.mean(0)).square().sum()) / width
    model = Ridge(alpha=penalty).fit(x.numpy(), y.numpy())
    assert torch.allclose(found.slope, torch.as_tensor(model.coef_).T, rtol=1e-7, atol=1e-9)
    assert torch.allclose(found.offset, torch.as_tensor(model.intercept_), rtol=1e-7, atol=1e-9)
    left = []
    for i in range(20):
        rest = torch.arange(20) != i
        model.fit(x[rest].numpy(), y[rest].numpy())
        left.append(y[i] - torch.as_tensor(model.predict(x[i : i + 1].numpy())[0]))
    assert torch.allclose(found.scale, torch.stack(left).square().mean(0).sqrt(), rtol=1e-7)


def test_the_penalty_is_the_one_that_predicts_samples_left_out_best() -> None:
    """Of states that say all and of states that say nothing."""
    for noise, most in ((0.01, 1e-3), (30.0, None)):
        seen = snapshot(60, noise=noise)
        tried = [ridge(seen.internal, seen.labels, s) for s in (1e-4, 1e-2, 0.5, 0.9, 0.9999)]
        unit = ridge(seen.internal, seen.labels, None)
        score = [(t.scale / t.spread).square().sum() for t in tried]
        assert (unit.scale / unit.spread).square().sum() <= min(score) * 1.05
        if most is not None:
            assert float((unit.scale / unit.spread).square().max()) < most


def test_the_numbers_by_hand() -> None:
    seen, fresh = snapshot(), snapshot(10, seed=1)
    fit = ridge(seen.internal, seen.labels, 0.1)
    z = (fresh.labels - fresh.internal @ fit.slope - fit.offset) / fit.scale
    density = (-0.5 * z**2 - (fit.scale / fit.spread).log()).clamp(-10, 10).mean(1)
    want = torch.stack([density, z.abs().amax(1).clamp(max=10)], 1)
    assert torch.allclose(fitted(seen, shrinkage=0.1)(fresh), want)


def test_coordinates_and_units_do_not_matter() -> None:
    """Turned and scaled states, targets in other units: the same numbers."""
    seen, fresh = snapshot(), snapshot(20, seed=1)
    turn = torch.linalg.qr(torch.randn(6, 6).double()).Q

    def other(one: dt.Snapshot) -> dt.Snapshot:
        y = one.labels * torch.tensor([1e3, 1e-3]).double() + 40
        return replace(one, internal=7 * one.internal @ turn + 3, labels=y)

    assert torch.allclose(fitted(other(seen))(other(fresh)), fitted(seen)(fresh), atol=1e-6)


def auroc(column: Tensor, wrong: Tensor) -> float:
    return float(roc_auc_score(wrong.numpy(), -column.numpy()))


def shuffled(y: Tensor, share: float = 0.3) -> tuple[Tensor, Tensor]:
    """Some targets exchanged among each other, and which."""
    g = torch.Generator().manual_seed(5)
    wrong = torch.rand(len(y), generator=g) < share
    rows, changed = wrong.nonzero().flatten(), y.clone()
    changed[rows] = y[rows[torch.randperm(len(rows), generator=g)]]
    return changed, wrong


@pytest.mark.parametrize("form", ["flat", "column", "two"])
def test_wrong_targets_are_ranked_last(form: str) -> None:
    def shaped(one: dt.Snapshot) -> dt.Snapshot:
        y = {"flat": one.labels[:, 0], "column": one.labels[:, :1], "two": one.labels}[form]
        return replace(one, labels=y, logits=y)

    probe, seen = fitted(shaped(snapshot())), shaped(snapshot(300, seed=2))
    labels, wrong = shuffled(seen.labels)
    out = probe(replace(seen, labels=labels))
    assert auroc(out[:, 0], wrong) > 0.94 and auroc(-out[:, 1], wrong) > 0.94


def test_diabetes_is_ranked_as_well_as_its_noise_allows() -> None:
    """R^2 is near .5 there, whatever the model, so that no rule can reach more than about .67."""
    x, y = (torch.as_tensor(part).double() for part in load_diabetes(return_X_y=True))
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    trusted, rest = order[:120], order[120:]
    labels, wrong = shuffled(y[rest])
    losses = torch.zeros(len(y)).double()
    probe = fitted(dt.Snapshot(x[trusted], y[trusted], y[trusted], losses[trusted]))
    found = auroc(probe(dt.Snapshot(x[rest], labels, labels, losses[rest]))[:, 0], wrong)
    explained = 1 - float(probe.get_buffer("scale") / probe.get_buffer("spread")) ** 2
    most = 2 / math.pi * math.atan(math.sqrt((1 + explained) / (1 - explained)))
    assert 0.4 < explained < 0.6 and abs(found - most) < 0.06 and found > 0.6


def test_missing_targets_and_constant_ones_say_nothing() -> None:
    seen, fresh = snapshot(), snapshot(10, seed=1)
    seen.labels[:, 1] = 3.0
    seen.labels[4, 0] = torch.nan
    probe = fitted(seen)
    labels = fresh.labels.clone()
    labels[:, 1] = torch.linspace(-9, 9, 10).double()
    labels[3, 0] = torch.nan
    out = probe(replace(fresh, labels=labels))
    assert torch.isfinite(out).all() and not out[3].any()
    alone = fitted(replace(seen, labels=seen.labels[:, :1]))
    assert torch.allclose(out[:3], alone(replace(fresh, labels=fresh.labels[:, :1]))[:3])


def test_before_it_is_fitted_and_after_too_few_samples_it_is_silent() -> None:
    probe, seen = dt.TrustedRegression(), snapshot()
    assert not probe(seen).any()
    probe.fit(snapshot(2))
    assert not probe(seen).any()


def test_perfect_predictions_stay_finite() -> None:
    seen = snapshot(noise=0.0)
    out = fitted(seen)(seen)
    assert torch.isfinite(out).all() and float(out[:, 0].max()) <= 10


def test_it_survives_a_state_dict() -> None:
    source, target = (dt.Teacher([dt.TrustedRegression()]) for _ in range(2))
    source.fit(snapshot())
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(snapshot()), target(snapshot()))


def test_cost_follows_the_samples_not_the_square_of_the_width() -> None:
    for width in (1_000, 10_000):
        seen = snapshot(40, width)
        probe = dt.TrustedRegression()
        with Counted() as counted:
            probe.fit(seen)
            assert torch.isfinite(probe(seen)).all()
        assert counted.largest == 40 * width


@pytest.mark.parametrize("shrinkage", [0.0, 1.0, -1.0, math.nan])
def test_a_shrinkage_outside_its_range_is_refused(shrinkage: float) -> None:
    with pytest.raises(dt.ConfigError, match="shrinkage"):
        dt.TrustedRegression(shrinkage=shrinkage)


def test_targets_of_another_width_are_refused() -> None:
    seen = snapshot()
    with pytest.raises(dt.ConfigError, match="2 targets a sample and got 1"):
        fitted(seen)(replace(seen, labels=seen.labels[:, :1]))


def test_a_coach_with_it_finds_the_wrong_targets() -> None:
    torch.manual_seed(0)
    train, valid = snapshot(200, seed=3), snapshot(60, seed=4)
    labels, wrong = shuffled(train.labels)
    module = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    teacher = dt.Teacher([dt.TrustedRegression()]).double()
    rate = torch.optim.Adam(teacher.parameters(), lr=0.1)
    coach = dt.Coach(
        dt.Student(module, "2"),
        optimizer,
        teacher,
        interval=2,
        loss=lambda z, y: (z - y).square().mean(1),
        teacher_optimizer=rate,
    )
    for _ in range(40):
        optimizer.zero_grad()
        coach.loss(train.internal, labels).backward()
        optimizer.step()
        coach.update((valid.internal, valid.labels))
    assert auroc(coach.weights(train.internal, labels), wrong) > 0.9
