"""Steps on the fixed-point grid: undone bit for bit, and as good as float ones."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from cases import CASE, Bench, Setting, bench
from hypothesis import given
from hypothesis import strategies as st
from oracles import off
from sklearn.datasets import load_digits
from torch import Tensor, nn

import deepteach as dt
from deepteach.core.adjoint.fixed_point import Past, checksum, fixed, rational, real, scaled
from deepteach.core.optim import Hyper
from deepteach.errors import ConfigError, NumericError, ReplayError

MANY = 330

INTEGERS = st.lists(st.integers(-(2**61), 2**61), min_size=1, max_size=5)


@given(INTEGERS, st.integers(0, 2**40), st.floats(1e-4, 0.9999))
def test_multiplying_by_the_momentum_is_undone(values: list[int], held: int, mu: float) -> None:
    n, d = rational(mu)
    grid = torch.tensor(values)
    store = torch.full_like(grid, held)
    later, after = scaled(grid, store, n, d)
    back, before = scaled(later, after, d, n)
    assert torch.equal(back, grid) and torch.equal(before, store)
    assert ((later.double() - grid.double() * n / d).abs() <= n + grid.double().abs() * 1e-15).all()


@given(INTEGERS, st.data())
def test_checksum_sees_every_single_change(values: list[int], data: st.DataObject) -> None:
    grid = torch.tensor(values)
    where = data.draw(st.integers(0, len(values) - 1))
    changed = grid.clone()
    changed[where] += data.draw(st.integers(-(2**20), 2**20).filter(bool))
    assert checksum(changed) != checksum(grid)


def test_fixed_point_covers_both_precisions() -> None:
    drawn = torch.randn(1000)
    assert (real(fixed(drawn)) - drawn.double()).abs().max() < 2.0**-48
    coarse = drawn[drawn.abs() > 1e-3]
    assert torch.equal(real(fixed(coarse)).float(), coarse)


Moments = list[tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Hyper], dict[str, Tensor]]]


def walk(
    steps: int, momenta: tuple[float, float], dtype: torch.dtype, scale: float, seed: int
) -> tuple[dt.ExactSGD, dict[str, Tensor], Moments]:
    """Steps on drawn gradients with two groups, rate drops, and a gradient missing at times."""
    g = torch.Generator().manual_seed(seed)
    named = {
        name: torch.randn(3, 2, generator=g, dtype=dtype).requires_grad_() for name in ("a", "b")
    }
    exact = dt.ExactSGD(
        [
            {"params": [named["a"]], "momentum": momenta[0], "weight_decay": 0.01},
            {"params": [named["b"]], "momentum": momenta[1], "lr": 0.03},
        ],
        lr=0.1,
    )
    exact.undoable = steps
    moments: Moments = []
    for t in range(steps):
        for group in exact.param_groups:
            group["lr"] *= 0.2 if t % 100 == 99 else 1.0
        for name, leaf in named.items():
            leaf.grad = scale * torch.randn(3, 2, generator=g, dtype=dtype)
            if name == "b" and t % 7 == 3:
                leaf.grad = None
        active = {name: leaf for name, leaf in named.items() if leaf.grad is not None}
        hyper = {
            name: exact.rule.hyper(group, {})
            for name, leaf in active.items()
            for group in exact.param_groups
            if leaf is group["params"][0]
        }
        theta = {name: leaf.detach().clone() for name, leaf in named.items()}
        grids = {n: exact.state[p]["velocity"] for n, p in active.items() if p in exact.state}
        moments.append(
            (theta, {n: p.grad for n, p in active.items() if p.grad is not None}, hyper, grids)
        )
        exact.step()
    return exact, named, moments


def undo(exact: dt.ExactSGD, named: dict[str, Tensor], moments: Moments) -> int:
    """Walk all the way back, every bit compared; how many steps were undone."""
    past = Past({name: exact.state[leaf] for name, leaf in named.items()})
    later = {name: leaf.detach() for name, leaf in named.items()}
    for theta, gradient, hyper, grids in reversed(moments):
        found = past.theta(later, hyper)
        for name in named:
            assert torch.equal(found[name], theta[name])
        past.velocity(found, gradient, hyper)
        for name in hyper:
            want = grids.get(name, torch.zeros(3, 2, dtype=torch.int64))
            assert torch.equal(past.trails[name].velocity, want)
        later = found
    for trail in past.trails.values():
        assert not trail.store.any() and sum(trail.counts) == 0
    return len(moments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("momenta", [(0.9, 0.5), (0.99, 0.01)])
def test_hundreds_of_steps_are_undone(momenta: tuple[float, float], dtype: torch.dtype) -> None:
    exact, named, moments = walk(MANY, momenta, dtype, 1.0, 0)
    assert len(exact.state[named["b"]]["limbs"]) >= 1
    assert undo(exact, named, moments) == MANY


@given(
    st.floats(0.001, 0.999), st.floats(0.001, 0.999), st.floats(1e-8, 100), st.integers(0, 10**6)
)
def test_any_momentum_and_scale_is_undone(one: float, two: float, scale: float, seed: int) -> None:
    assert undo(*walk(12, (one, two), torch.float32, scale, seed)) == 12


@pytest.mark.parametrize("momentum, steps", [(0.9, 1000), (0.5, 300)])
def test_memory_is_the_bits_stated(momentum: float, steps: int) -> None:
    """One int64 limb holds 46 bits or more of log2(d/n) a step; no window, no limbs."""
    exact, named, _ = walk(steps, (momentum, momentum), torch.float32, 1.0, 0)
    n, d = rational(momentum)
    limbs = len(exact.state[named["a"]]["limbs"])
    assert limbs <= steps * math.log2(d / n) / 40
    exact.undoable = 0
    leaf = named["a"]
    leaf.grad = torch.ones_like(leaf)
    exact.step()
    assert exact.state[leaf]["limbs"] == [] and exact.state[leaf]["checks"] == []


def test_limbs_that_no_window_needs_are_dropped() -> None:
    leaf = torch.zeros(2).requires_grad_()
    exact = dt.ExactSGD([leaf], lr=0.1, momentum=0.5)
    exact.undoable = 5
    most = 0
    for _ in range(400):
        leaf.grad = torch.randn(2)
        exact.step()
        held = exact.state[leaf]
        most = max(most, len(held["limbs"]))
        assert sum(held["counts"]) == len(held["checks"]) >= min(5, len(held["checks"]))
    assert most == 1


def changed(run: Bench) -> Bench:
    """The same bench on an `ExactSGD`."""
    keys = ("params", "lr", "momentum", "weight_decay")
    groups = [{key: group[key] for key in keys} for group in run.optimizer.param_groups]
    run.optimizer = dt.ExactSGD(groups, lr=0.1)  # type: ignore[assignment]
    return run


@pytest.mark.parametrize("window", [1, 6])
@pytest.mark.parametrize("name", CASE)
def test_every_adjoint_agrees_on_the_grid(name: str, window: int) -> None:
    """Group norm is among them, whose backward kernel differs under double backward."""
    for through in (False, True)[: 1 + window // 6]:
        found = []
        for adjoint in (dt.Exact(), dt.Stored(), dt.Checkpointed(), dt.Unrolled(), dt.Reversed()):
            run = changed(bench(CASE[name], Setting(window, through_weights=through)))
            coach = run.coach(adjoint)
            run.train(coach)
            found.append(coach.meta_gradient(*run.valid))
        for other in found:
            assert off(other, found[0]) < 1e-9


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.pool = nn.AvgPool2d(4)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(16, 10)


def digits() -> tuple[Tensor, Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels).float().reshape(-1, 1, 8, 8) / 16, torch.tensor(labels)


def taught(adjoint: dt.AbstractAdjoint, window: int) -> tuple[dt.Coach, tuple[Tensor, Tensor]]:
    """A convolutional student on digits in float32, taught for a window with a rate drop."""
    torch.manual_seed(0)
    module, (x, y) = Net(), digits()
    teacher = dt.Teacher([dt.Internal(16), dt.Label(10, 4)])
    optimizer = dt.ExactSGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    coach = dt.Coach(
        *(dt.Student(module, "fc"), optimizer, teacher),
        **{"interval": window + 1, "window": window, "adjoint": adjoint},
    )
    g = torch.Generator().manual_seed(1)
    for t in range(window):
        optimizer.param_groups[0]["lr"] = 0.05 if t < 0.8 * window else 0.005
        rows = torch.randint(1000, (16,), generator=g)
        optimizer.zero_grad()
        coach.loss(x[rows], y[rows]).backward()
        optimizer.step()
    return coach, (x[1000:1200], y[1000:1200])


def test_three_hundred_steps_in_float32() -> None:
    """Exact == Stored on the same run, from the same states, the memory of two limbs."""

    class Both(dt.Exact):
        """Exact, with copies kept on the side to compare with."""

        def keep(self, state: Any, position: int, window: int) -> Any:
            return dt.Stored().keep(state, position, window)

        def state_before(self, position: int, *rest: Any) -> Any:
            found = super().state_before(position, *rest)
            kept = rest[-1].steps[position].state
            for name, leaf in found.theta.items():
                assert torch.equal(leaf, kept.theta[name])
                velocity = found.slots["momentum_buffer"][name]
                assert torch.equal(velocity, kept.slots["momentum_buffer"][name])
            return found

    coach, valid = taught(Both(), 300)
    before = copy.deepcopy(coach.optimizer.state_dict())
    exact = coach.meta_gradient(*valid)
    assert same(before, coach.optimizer.state_dict())
    coach.adjoint = dt.Stored()
    assert off(exact, coach.meta_gradient(*valid)) < 1e-5
    for held in coach.optimizer.state.values():
        assert len(held["limbs"]) <= 1 and len(held["checks"]) == 300


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right) and left.dtype == right.dtype
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def test_what_is_not_the_same_step_is_found() -> None:
    coach, valid = taught(dt.Exact(), 5)
    coach.recorder.steps[2].passes[0].inputs[0].mul_(1 + 1e-6)  # type: ignore[index]
    with pytest.raises(ReplayError, match="bits"):
        coach.meta_gradient(*valid)


def test_parameters_set_by_hand_are_found() -> None:
    coach, valid = taught(dt.Exact(), 5)
    with torch.no_grad():
        next(coach.student.module.parameters()).add_(1e-3)
    with pytest.raises(ReplayError, match=r"besides optimizer\.step\(\) changed the student"):
        coach.meta_gradient(*valid)


def test_parameters_set_by_hand_are_kept_by_the_next_step() -> None:
    leaf = torch.ones(2).requires_grad_()
    exact = dt.ExactSGD([leaf], lr=0.5)
    leaf.grad = torch.ones(2)
    exact.step()
    with torch.no_grad():
        leaf.fill_(3)
    leaf.grad = torch.zeros(2)
    exact.step()
    momentum = exact.rule.hyper(exact.param_groups[0], {}).momentum
    assert torch.allclose(leaf, torch.full((2,), 3 - 0.5 * momentum))


def test_it_trains_as_torch_does() -> None:
    """Loss and accuracy on digits over three seeds: the same to rounding's own noise."""
    x, y = digits()

    def final(kind: Any, seed: int) -> tuple[float, float]:
        torch.manual_seed(seed)
        module = Net()
        optimizer = kind(module.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [200], 0.1)
        for _ in range(300):
            rows = torch.randint(1200, (32,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            logits = module.eval()(x[1200:])
            loss = nn.functional.cross_entropy(logits, y[1200:])
        return float(loss), float((logits.argmax(1) == y[1200:]).float().mean())

    ours = torch.tensor([final(dt.ExactSGD, seed) for seed in range(3)])
    torchs = torch.tensor([final(torch.optim.SGD, seed) for seed in range(3)])
    gap = (ours - torchs).mean(0).abs()
    assert (gap <= torchs.std(0) + 1e-3).all(), (ours, torchs)
    assert (ours[:, 1] > 0.8).all()


def test_resume_to_the_same_bits() -> None:
    def run(optimizer: dt.ExactSGD, leaf: Tensor, steps: range) -> None:
        for t in steps:
            leaf.grad = torch.randn(4, generator=torch.Generator().manual_seed(t)).double()
            optimizer.step()

    def fresh() -> tuple[dt.ExactSGD, Tensor]:
        leaf = torch.zeros(4, dtype=torch.float64).requires_grad_()
        optimizer = dt.ExactSGD([leaf], lr=0.1, momentum=0.5)
        optimizer.undoable = 100
        return optimizer, leaf

    one, whole = fresh()
    run(one, whole, range(80))
    two, part = fresh()
    run(two, part, range(50))
    saved = copy.deepcopy(two.state_dict())
    three, rest = fresh()
    three.load_state_dict(saved)
    with torch.no_grad():
        rest.copy_(part)
    run(two, part, range(50, 60))  # what was loaded is a copy
    run(three, rest, range(50, 80))
    assert torch.equal(rest, whole)
    assert same(three.state_dict(), one.state_dict())


def test_a_run_resumes_inside_a_window() -> None:
    """Coach, optimizer and student saved and loaded through the checkpoint's own format."""
    from deepteach.runs.serialization import pack, unpack

    coach, valid = taught(dt.Exact(), 5)
    want = coach.meta_gradient(*valid)
    saved = {"coach": coach.state_dict(), "optimizer": coach.optimizer.state_dict()}
    module = copy.deepcopy(coach.student.module)
    loaded = unpack(*pack(saved))
    optimizer = dt.ExactSGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    teacher = dt.Teacher([dt.Internal(16), dt.Label(10, 4)])
    again = dt.Coach(
        *(dt.Student(module, "fc"), optimizer, teacher), interval=6, window=5, adjoint=dt.Exact()
    )
    optimizer.load_state_dict(loaded["optimizer"])
    again.load_state_dict(loaded["coach"])
    for name, leaf in again.meta_gradient(*valid).items():
        assert torch.equal(leaf, want[name])


@pytest.mark.parametrize("momentum", [0.0, 1.0, -0.5, 1e-9])
def test_momentum_out_of_range_is_refused(momentum: float) -> None:
    with pytest.raises(ConfigError, match="momentum between 0 and 1"):
        dt.ExactSGD([torch.zeros(1)], lr=0.1, momentum=momentum)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e9])
def test_numbers_off_the_grid_change_nothing(bad: float) -> None:
    one, two = torch.ones(2).requires_grad_(), torch.ones(2).requires_grad_()
    exact = dt.ExactSGD([one, two], lr=0.1)
    one.grad, two.grad = torch.ones(2), torch.tensor([1.0, bad])
    with pytest.raises(NumericError, match="gradient"):
        exact.step()
    assert torch.equal(one, torch.ones(2)) and not exact.state


def test_exact_needs_its_optimizer() -> None:
    run = bench(CASE["mlp"], Setting())
    with pytest.raises(ConfigError, match="ExactSGD"):
        run.coach(dt.Exact())
    with pytest.raises(ConfigError, match="without clipping"):
        changed(run).coach(dt.Exact(), clip_norm=1.0)
    with pytest.raises(ConfigError, match="full precision"):
        run.coach(dt.Exact(mixed_precision=True))
