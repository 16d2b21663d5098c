"""Optimizers as people set, schedule and wrap them: exact, or one line when the Coach is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from loops import VALID, Loop, Plain, assert_exact, coached, differences, error, found
from torch import nn, optim
from torch.optim import lr_scheduler

import deepteach as dt
from deepteach.errors import ConfigError

Made = Callable[[list[nn.Parameter]], Any]


def sgd(**options: Any) -> Made:
    return lambda leaves: optim.SGD(leaves, **{"lr": 0.3, "momentum": 0.9, **options})


def adam(kind: Any = optim.AdamW, **options: Any) -> Made:
    return lambda leaves: kind(leaves, **{"lr": 0.1, "eps": 1e-6, **options})


def by(make: Made) -> type[Loop]:
    return type("Made", (Loop,), {"optimize": lambda self, leaves: make(leaves)})


def grouped(leaves: list[nn.Parameter]) -> optim.SGD:
    groups: list[Any] = [
        {"params": leaves[:1], "weight_decay": 0.0},
        {"params": leaves[1:], "lr": 0.1},
    ]
    return optim.SGD(groups, lr=0.3, momentum=0.9, weight_decay=0.05)


class Scaled(optim.AdamW):
    """A subclass that leaves `step` alone."""


class Wrapped:
    """As accelerate and Lightning hold an optimizer."""

    def __init__(self, inner: Any) -> None:
        self.optimizer = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["optimizer"], name)

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


EXACT: dict[str, Made] = {
    "rate as a tensor": sgd(lr=torch.tensor(0.3, dtype=torch.float64)),
    "fused": sgd(fused=True),
    "foreach": sgd(foreach=True, weight_decay=0.01),
    "groups": grouped,
    "adam, rate as a tensor": adam(lr=torch.tensor(0.1, dtype=torch.float64)),
    "adam, fused": adam(fused=True),
    "adam, foreach": adam(optim.Adam, foreach=True, weight_decay=0.01),
    "adam, decoupled": adam(optim.Adam, decoupled_weight_decay=True, weight_decay=0.1),
    "subclass": adam(Scaled),
    "wrapped": lambda leaves: Wrapped(Wrapped(sgd()(leaves))),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact(name: str) -> None:
    assert_exact(by(EXACT[name]), (2,))


class Overriding(optim.SGD):
    """Evaluates its closure twice."""

    def step(self, closure: Any = None) -> Any:
        closure()
        return super().step(closure)


class Sharpness(optim.Optimizer):
    def __init__(self, leaves: list[nn.Parameter], inner: optim.Optimizer) -> None:
        super().__init__(leaves, {})
        self.base_optimizer = inner


REFUSED: dict[str, tuple[Made, str]] = {
    "maximize": (sgd(maximize=True), "negate the loss"),
    "adam, maximize": (adam(maximize=True), "use maximize=False"),
    "amsgrad": (adam(amsgrad=True), "use amsgrad=False"),
    "dampening": (sgd(dampening=0.1), "use dampening=0"),
    "LBFGS": (lambda leaves: optim.LBFGS(leaves), "LBFGS: use one of torch.optim.SGD"),
    "closure twice": (
        lambda leaves: Overriding(leaves, lr=0.1),
        r"Overriding.*Coach\(rule=\.\.\.\)",
    ),
    "sharpness": (lambda leaves: Sharpness(leaves, sgd()(leaves)), "Sharpness: use one of"),
    "no optimizer": (lambda leaves: object(), "object: use one of"),
    "a list": (lambda leaves: [sgd()(leaves[:2]), sgd()(leaves[2:])], "list: use one of"),
    "part of the parameters": (lambda leaves: sgd()(leaves[:2]), "does not train 'fc.weight'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, remedy = REFUSED[name]
    with pytest.raises(ConfigError, match=remedy) as got:
        coached(by(make), 1)
    assert "\n" not in str(got.value)


def scheduled(make: Made, schedule: Callable[[Any], Any]) -> type[Loop]:
    class Scheduled(Loop):
        def __init__(self) -> None:
            super().__init__()
            self.scheduler = schedule(self.optimizer)

        def optimize(self, leaves: list[nn.Parameter]) -> Any:
            return make(leaves)

        def after(self, i: int) -> None:
            self.scheduler.step()

    return Scheduled


SCHEDULES: dict[str, tuple[Made, Callable[[Any], Any]]] = {
    "warm restarts": (sgd(), lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=2)),
    "one cycle": (sgd(), lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.4, total_steps=6)),
    "one cycle, betas": (adam(), lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=6)),
    "rate of 0": (sgd(), lambda o: lr_scheduler.LambdaLR(o, lambda t: float(t % 2))),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str) -> None:
    """What counts is what the step used: rate, momentum and betas."""
    make, schedule = SCHEDULES[name]
    kind = scheduled(make, schedule)
    assert coached(kind, 1).optimizer.param_groups[0]["lr"] is not None
    assert_exact(kind, (3,))


class Clearing(Loop):
    """`zero_grad` at odd places, where it changes nothing."""

    def step(self, i: int, x: Any, y: torch.Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=False)
        loss = self.coach.loss(x, y)
        self.module.zero_grad(set_to_none=False)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def test_clearing_at_odd_places() -> None:
    assert_exact(Clearing, (2,))


@pytest.mark.parametrize("wrong", [KeyboardInterrupt, torch.OutOfMemoryError, RuntimeError])
def test_a_backward_that_ends_half_way(wrong: type[BaseException]) -> None:
    """The batch is left out, its half of the gradients with it."""

    class Interrupted(Loop):
        at = 3

        def step(self, i: int, x: Any, y: torch.Tensor) -> None:
            if i != self.at:
                return super().step(i, x, y)

            def stop(_leaf: torch.Tensor) -> None:
                raise wrong

            handle = self.module.fc.weight.register_post_accumulate_grad_hook(stop)
            self.optimizer.zero_grad()
            with pytest.raises(wrong):
                self.coach.loss(x, y).backward()
            handle.remove()

    loop = coached(Interrupted, 2)
    loop.run(2)
    assert loop.coach.steps == 4 and loop.coach.meta_gradient(*VALID)["k"].isfinite().all()


def test_without_gradients_nothing_is_remembered() -> None:
    loop = coached(Loop, 2)
    for guard in (torch.no_grad(), torch.inference_mode()):
        with guard:
            loop.coach.loss(*loop.batch(0))
    loop.run(2)
    assert loop.coach.steps == 5


class Stray(Loop):
    """The last but two steps on something else than the loss that the Coach was asked for."""

    backward = False
    options = {"accumulate": False}

    def step(self, i: int, x: Any, y: torch.Tensor) -> None:
        if i != 2:
            return super().step(i, x, y)
        self.optimizer.zero_grad()
        loss = self.coach.loss(x, y)
        if self.backward:
            loss.backward()
            self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.module(x), y).backward()
        self.optimizer.step()


class StrayBackward(Stray):
    backward = True


class StrayPart(Stray):
    options = {"accumulate": True}


@pytest.mark.parametrize("kind", [Stray, StrayBackward, StrayPart])
@pytest.mark.parametrize("adjoint", [dt.Stored, dt.Reversed])
def test_a_step_on_something_else_is_not_taken_for_taught(kind: type[Loop], adjoint: Any) -> None:
    """The loss of its batch was dropped, before or after its backward()."""
    with pytest.warns(dt.WindowWarning, match="without coach.loss.*over 2 of 3"):
        got = found(kind, 3, adjoint())
    assert error(got, differences(kind, 2)) < 1e-6


class PartDropped(Loop):
    """The second part of a step is dropped before its backward()."""

    options = {"accumulate": True}

    def step(self, i: int, x: Any, y: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        self.coach.loss(x, y).backward()
        self.coach.loss(x + 1, y)
        self.optimizer.step()


def test_a_part_that_was_dropped_is_not_in_the_step() -> None:
    assert_exact(PartDropped, (1, 2))


class StateWritten(Loop):
    """Momentum is cleared between backward() and the step."""

    def between(self, i: int) -> None:
        if i == 3:
            for held in self.optimizer.state.values():
                held["momentum_buffer"].zero_()


def test_the_optimizers_memory_may_not_change_within_a_step() -> None:
    with pytest.raises(ConfigError, match=r"between coach.loss and optimizer.step\(\).*before"):
        found(StateWritten, 1, dt.Stored())


class Rescheduled(Loop):
    """The rate is changed between the loss and the step."""

    def between(self, i: int) -> None:
        self.optimizer.param_groups[0]["lr"] = 0.1 + 0.05 * i


def test_the_rate_that_counts_is_that_of_the_step() -> None:
    assert_exact(Rescheduled, (1, 2, 4))


class Unscaled(Loop):
    """A GradScaler; allowed where mixed precision is."""

    def step(self, i: int, x: Any, y: torch.Tensor) -> None:
        if not hasattr(self, "scaler"):
            self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        self.optimizer.zero_grad()
        self.scaler.scale(self.coach.loss(x, y)).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


def test_scalers() -> None:
    with pytest.raises(ConfigError, match="no GradScaler"):
        coached(Unscaled, 2).run(2)
    loop, plain = (
        coached(Unscaled, 2, adjoint=dt.Stored(mixed_precision=True, tolerance=0.1)),
        coached(Loop, 2),
    )
    for each in (loop, plain):
        each.run(2)
    want = plain.coach.meta_gradient(*VALID)["k"]
    assert torch.allclose(loop.coach.meta_gradient(*VALID)["k"], want, rtol=1e-9)


class Overflowing(Unscaled):
    """The fourth step's gradients overflow: the scaler skips it, or has the fused kernel do so."""

    def step(self, i: int, x: Any, y: torch.Tensor) -> None:
        if i == 3:

            def overflow(leaf: torch.Tensor) -> None:
                assert leaf.grad is not None
                leaf.grad[0, 0] = torch.inf

            handle = self.module.a.weight.register_post_accumulate_grad_hook(overflow)
            super().step(i, x, y)
            handle.remove()
        else:
            super().step(i, x, y)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("make", [sgd, adam])
def test_a_step_that_a_scaler_skips_is_left_out(make: Callable[..., Made], fused: bool) -> None:
    class Skipping(Overflowing):
        def optimize(self, leaves: list[nn.Parameter]) -> Any:
            return make(fused=fused)(leaves)

    adjoint = dt.Stored(mixed_precision=True, tolerance=0.1)
    loop: Any = coached(Skipping, 2, adjoint=adjoint)
    plain: Any = Skipping()
    plain.coach = Plain(plain.module, plain.teacher)
    for each in (loop, plain):
        each.run(2)
        assert each.scaler.get_scale() == 4
    assert loop.coach.steps == 4
    for ours, theirs in zip(loop.module.parameters(), plain.module.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12)
    # Of the last three batches the middle one led to no step.
    want = differences(Skipping, 3)
    assert error(loop.coach.meta_gradient(*VALID)["k"], want) < 1e-6


def others(_: dt.AbstractTeacher) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(3))]


UNABLE: dict[str, tuple[Callable[[dt.AbstractTeacher], Any], str]] = {
    "of other parameters": (lambda t: optim.Adam(others(t)), "none of the teacher's parameters"),
    "by a closure": (lambda t: optim.LBFGS(t.parameters()), "LBFGS steps by a closure.*Adam"),
}


@pytest.mark.parametrize("name", UNABLE)
def test_optimizers_of_a_teacher_that_cannot_move_it(name: str) -> None:
    make, told = UNABLE[name]
    loop = Loop()
    with pytest.raises(ConfigError, match=told) as got:
        dt.Coach(loop.student(), loop.optimizer, loop.teacher, teacher_optimizer=make(loop.teacher))
    assert "\n" not in str(got.value)


def test_an_update_under_autocast_runs_without_it() -> None:
    class Half(Loop):
        def step(self, i: int, x: Any, y: torch.Tensor) -> None:
            self.optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                self.coach.loss(x, y).backward()
                self.optimizer.step()

        def make(self) -> Any:
            return super().make().float()

        def batch(self, i: int) -> tuple[Any, torch.Tensor]:
            x, y = super().batch(i)
            return x.float(), y

    valid = VALID[0].float(), VALID[1]
    loop: Any = Half()
    loop.module.float()
    loop.coach = dt.Coach(
        loop.student(),
        loop.optimizer,
        loop.teacher.float(),
        interval=5,
        adjoint=dt.Stored(mixed_precision=True, tolerance=0.1),
    )
    loop.run(2)
    want = loop.coach.meta_gradient(*valid)["k"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = loop.coach.meta_gradient(*valid)["k"]
        record = loop.coach.update(valid)
    assert torch.equal(got, want) and record is not None
    assert record.gradient_norm == pytest.approx(float(want.norm()))


def test_inference_mode() -> None:
    """Trusted samples may come from there; an update may not be called there."""
    with torch.inference_mode():
        valid: Any = tuple(leaf.clone() for leaf in VALID)
    for window in (1, 2):
        loop = coached(Loop, window, interval=5)
        loop.run(window)
        got, want = loop.coach.meta_gradient(*valid)["k"], loop.coach.meta_gradient(*VALID)["k"]
        assert torch.equal(got, want)
        for call in (loop.coach.update, lambda both, coach=loop.coach: coach.meta_gradient(*both)):
            with torch.inference_mode(), pytest.raises(ConfigError, match="outside of it") as told:
                call(VALID)
            assert "\n" not in str(told.value)
        assert loop.coach.update(valid) is not None
