"""What the coach refuses, when it is made and in the loop, with the remedy."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import CLASSES, TOLERANCE, Bench, Setting, bench
from coach_loop import EVERY_STEP, MLP, NORM, flat, same, started, step
from oracles import off
from torch import Tensor, nn

import deepteach as dt

# What it refuses when it is made


def made(run: Bench | None = None, **options: Any) -> dt.Coach:
    return (run or bench(MLP, Setting())).coach(**options)


def with_options(case_dtype: torch.dtype = torch.float64, **options: Any) -> Bench:
    """The plain student with another optimizer."""
    run = bench(MLP, Setting(), case_dtype)
    kind = options.pop("kind", torch.optim.SGD)
    extra = options.pop("extra", [])
    momentum = {} if kind is not torch.optim.SGD else {"momentum": 0.9}
    leaves = [*run.module.parameters(), *extra]
    run.optimizer = kind(leaves, **{"lr": 0.1, **momentum, **options})
    return run


REFUSALS: dict[str, tuple[Callable[[], Any], str]] = {
    "nesterov reversed": (
        lambda: made(with_options(nesterov=True)),
        r"Nesterov.*adjoint=Stored\(\)",
    ),
    "no momentum reversed": (
        lambda: made(with_options(momentum=0.0)),
        r"momentum 0.*adjoint=Stored\(\)",
    ),
    "dampening": (lambda: made(with_options(dampening=0.1)), "dampening=0"),
    "maximize": (lambda: made(with_options(maximize=True)), "negate the loss"),
    "window above interval": (lambda: made(window=7, interval=6), "lower the window or raise"),
    "no window": (lambda: made(window=0), "between 1 and interval"),
    "window too long for float32": (
        lambda: made(with_options(torch.float32), window=90, interval=90),
        r"at most 85.*shorter window, adjoint=Stored\(\)",
    ),
    "adagrad": (
        lambda: made(with_options(kind=torch.optim.Adagrad)),
        r"Adagrad: use one of torch.optim.SGD",
    ),
    "foreign parameter": (
        lambda: made(with_options(extra=[torch.zeros(3, requires_grad=True)])),
        "an optimizer of its own",
    ),
    "unknown validation loss": (
        lambda: made(validation_loss="f1"),
        "unknown validation_loss .*nll, expected_accuracy",
    ),
    "loss that averages": (
        lambda: made(loss=nn.functional.cross_entropy).loss(*bench(MLP).batches[0]),
        "reduction='none'",
    ),
    "unknown layer": (lambda: dt.Student(bench(MLP).module, "haed"), "candidates: head"),
    "data parallel": (
        lambda: dt.Student(nn.DataParallel(bench(MLP).module), "module.head"),
        "bare",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_with_the_remedy(name: str) -> None:
    attempt, remedy = REFUSALS[name]
    with pytest.raises(dt.ConfigError, match=remedy) as caught:
        attempt()
    assert "\n" not in str(caught.value)


def test_distributed_wrapper_is_refused() -> None:
    store = torch.distributed.HashStore()  # pyright: ignore
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(bench(MLP).module)
        with pytest.raises(dt.ConfigError, match="pass the bare module"):
            dt.Student(wrapped, "module.head")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("options", [{"nesterov": True}, {"momentum": 0.0}])
def test_stored_takes_what_cannot_be_undone(options: dict[str, Any]) -> None:
    assert made(with_options(**options), adjoint=dt.Stored())


# What it refuses in the loop


def test_two_losses_without_a_step() -> None:
    run, coach = started()
    coach.loss(*run.batches[0]).backward()
    with pytest.raises(dt.ConfigError, match="accumulate=True"):
        coach.loss(*run.batches[0])


@pytest.mark.parametrize("scale", [0.5, 1024.0])
def test_scaled_loss(scale: float) -> None:
    run, coach = started()
    with pytest.raises(dt.ConfigError, match="no GradScaler, no accumulation"):
        (scale * coach.loss(*run.batches[0])).backward()


def test_gradients_left_over() -> None:
    run, coach = started()
    step(run, coach, 0)
    with pytest.raises(dt.ConfigError, match=r"optimizer.zero_grad\(\) before each"):
        coach.loss(*run.batches[0]).backward()


CHANGES: dict[str, Callable[[Bench], Any]] = {
    "norm clipping": lambda run: nn.utils.clip_grad_norm_(run.module.parameters(), 0.1),
    "value clipping": lambda run: nn.utils.clip_grad_value_(run.module.parameters(), 0.1),
    "scaling": lambda run: next(run.module.parameters()).grad.mul_(0.5),  # pyright: ignore
    "replacing": lambda run: setattr(
        next(run.module.parameters()), "grad", torch.ones_like(next(run.module.parameters()))
    ),
}


@pytest.mark.parametrize("name", [*CHANGES])
def test_changed_gradients(name: str) -> None:
    run, coach = started()
    before = flat(run.module.state_dict())
    coach.loss(*run.batches[0]).backward()
    CHANGES[name](run)
    with pytest.raises(dt.ConfigError, match="clipping, unscaling, a second loss"):
        run.optimizer.step()
    assert same(flat(run.module.state_dict()), before)


def test_second_backward() -> None:
    """torch cannot tell it from the first, so the replay has to."""
    run, coach = started(MLP, Setting(window=2))
    for x, y in run.batches:
        run.optimizer.zero_grad()
        coach.loss(x, y).backward()
        run.module(run.valid[0]).square().sum().backward()
        run.optimizer.step()
    with pytest.raises(dt.ReplayError, match="."):
        coach.update(run.valid)


def test_autocast() -> None:
    run, coach = started()
    with torch.autocast("cpu"), pytest.raises(dt.ConfigError, match="outside torch.autocast"):
        coach.loss(*run.batches[0])


def test_meta_gradient_before_any_step() -> None:
    run, coach = started()
    with pytest.raises(dt.ConfigError, match="no step was recorded"):
        coach.meta_gradient(*run.valid)


@pytest.mark.parametrize("adjoint", [dt.Reversed, dt.Stored, dt.Unrolled])
def test_teacher_changed_inside_the_window(adjoint: type[dt.AbstractAdjoint]) -> None:
    run, coach = started(MLP, Setting(window=2), adjoint=adjoint())
    run.train(coach)
    with torch.no_grad():
        next(run.teacher.parameters()).add_(0.1)
    with pytest.raises(dt.ConfigError, match="the teacher changed"):
        coach.meta_gradient(*run.valid)


@pytest.mark.parametrize("window", [2, 6])
@pytest.mark.parametrize("adjoint", [dt.Reversed, dt.Stored, dt.Unrolled])
def test_auxiliary_loss(adjoint: type[dt.AbstractAdjoint], window: int) -> None:
    run, coach = started(MLP, Setting(window=window), adjoint=adjoint())
    for x, y in run.batches:
        run.optimizer.zero_grad()
        penalty = sum(leaf.square().sum() for leaf in run.module.parameters())
        (coach.loss(x, y) + 0.5 * penalty).backward()
        run.optimizer.step()
    with pytest.raises(dt.ReplayError, match="."):
        coach.meta_gradient(*run.valid)


@pytest.mark.parametrize("adjoint", [dt.Reversed, dt.Stored, dt.Unrolled])
def test_parameters_moved_outside_the_optimizer(adjoint: type[dt.AbstractAdjoint]) -> None:
    run, coach = started(MLP, Setting(window=3), adjoint=adjoint())
    for t in range(6):
        step(run, coach, t)
        with torch.no_grad():
            for leaf in run.module.parameters():
                leaf.clamp_(-0.2, 0.2)
    with pytest.raises(dt.ReplayError, match="."):
        coach.meta_gradient(*run.valid)


@pytest.mark.parametrize("adjoint", [dt.Reversed, dt.Stored])
def test_inputs_changed_in_place(adjoint: type[dt.AbstractAdjoint]) -> None:
    run, coach = started(MLP, Setting(window=2), adjoint=adjoint())
    run.train(coach)
    run.batches[-1][0].mul_(-1)
    with pytest.raises(dt.ReplayError, match="changed in place after coach.loss"):
        coach.meta_gradient(*run.valid)


class Noisy(nn.Module):
    """Draws from a generator that no replay can know of."""

    def __init__(self, size: float = 1.0) -> None:
        super().__init__()
        self.lift, self.head, self.size = nn.Linear(3, 4), nn.Linear(4, CLASSES), size
        self.draws = random.Random(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.size * self.head(self.lift(x) * self.draws.uniform(0.0, 5.0))


@pytest.mark.parametrize("adjoint", [dt.Reversed, dt.Stored])
@pytest.mark.parametrize("size", [1, 1e5])
def test_module_that_is_not_deterministic(adjoint: type[dt.AbstractAdjoint], size: float) -> None:
    """Where losses are large, rounding may be the cause, and is named."""
    case = replace(MLP, module=lambda: Noisy(size))
    run, coach = started(case, Setting(window=2), adjoint=adjoint())
    run.train(coach)
    with pytest.raises(dt.ReplayError, match="not deterministic") as caught:
        coach.meta_gradient(*run.valid)
    assert ("rounding shows: scale them, or lower the learning rate" in str(caught.value)) == (
        size > 1
    )


def test_drift_past_the_tolerance() -> None:
    """The copy that opens the window is not where the reversal arrives."""
    run, coach = started(MLP, Setting(window=3), adjoint=dt.Reversed())
    run.train(coach)
    for leaf in coach.recorder.steps[0].state.theta.values():
        leaf.mul_(1.01)
    with pytest.raises(dt.ReplayError, match=r"drifted by .*Stored\(\)"):
        coach.update(run.valid)


def test_validation_loss_must_be_a_scalar() -> None:
    run, coach = started(validation_loss=lambda z, y: z.sum(1))
    step(run, coach, 0)
    with pytest.raises(dt.ConfigError, match="must return a scalar"):
        coach.meta_gradient(*run.valid)


# Found by an outside eye once, and kept from coming back.


def test_closure_is_exact_or_refused() -> None:
    run, coach = started(NORM, adjoint=dt.Stored())

    def closure() -> Tensor:
        run.optimizer.zero_grad()
        value = coach.loss(*run.batches[0])
        value.backward()
        return value

    twin = bench(NORM, EVERY_STEP)
    other = twin.coach()
    step(twin, other, 0)
    try:
        run.optimizer.step(closure)
    except dt.ConfigError:
        return
    want = other.meta_gradient(*twin.valid)
    assert off(coach.meta_gradient(*run.valid), want) < TOLERANCE["adjoints"]


@pytest.mark.parametrize("window", [1, 2])
def test_teacher_changed_inside_the_window_through_weights(window: int) -> None:
    run, coach = started(MLP, Setting(window=window, through_weights=True))
    run.train(coach)
    with torch.no_grad():
        next(run.teacher.parameters()).add_(0.1)
    with pytest.raises(dt.ConfigError, match="the teacher changed"):
        coach.meta_gradient(*run.valid)


class Drawing(dt.AbstractTeacher):
    def __init__(self) -> None:
        super().__init__()
        self.read, self.drop = nn.Linear(1, 1).double(), nn.Dropout(0.5)

    def forward(self, snapshot: dt.Snapshot) -> Tensor:
        return self.read(self.drop(snapshot.losses.unsqueeze(1))).squeeze(1)


@pytest.mark.parametrize("adjoint", [dt.Reversed, dt.Stored, dt.Unrolled])
def test_a_teacher_that_draws(adjoint: type[dt.AbstractAdjoint]) -> None:
    run = bench(MLP, Setting(window=2), teacher=lambda _case: Drawing())
    coach = run.coach(adjoint())
    run.train(coach)
    told = r"Drawing gives other weights.*teacher.eval\(\)"
    with pytest.raises(dt.ConfigError, match=told) as got:
        coach.meta_gradient(*run.valid)
    assert "\n" not in str(got.value)
    run = bench(MLP, Setting(window=2), teacher=lambda _case: Drawing().eval())
    coach = run.coach(adjoint())
    run.train(coach)
    assert any(leaf.any() for leaf in coach.meta_gradient(*run.valid).values())
